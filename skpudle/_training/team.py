"""Train one dictionary by several processes, which share sums by `torch.distributed`.

Every process holds its own samples and the whole dictionary. In an update each encodes a batch of
its own, and gradients and sums are added up over all processes. All make the same update as one
process would with the batches in one.
"""

import importlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle.search._epoch import spread_rows

if dist.is_available():
    # Imported before a group exists: on import its functions keep the connected group for good,
    # whose threads can abort the end of Python.
    importlib.import_module("torch.distributed.nn")

# rows of each process, at most, to choose initial atoms and alpha from
_ROWS = 2**14

# seconds between the last exchange and the end of the group
_PAUSE = 0.2


class Alone:
    """A team of one, the operations of `Team` without exchange and copies."""

    rank, size, is_alone = 0, 1, True

    largest = all = first = collect = agree = own = staticmethod(lambda value: value)
    sum = any = staticmethod(lambda *values: values)

    def gather(self, tensor):
        """Return the tensor in a list."""
        return [tensor]

    gather_bytes = gather

    def check_agreement(self, facts):
        """Agree."""


ALONE = Alone()

_TEAM = ContextVar("skpudle_team", default=ALONE)


def current_team():
    """Return the team that `data_parallel` made for this thread, or `ALONE`."""
    return _TEAM.get()


class Team:
    """The processes of a group of `torch.distributed`, and their joint operations."""

    is_alone = False  # a group of one computes as any group

    def __init__(self, group=None):
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._first = 0 if group is None else dist.get_global_rank(group, 0)
        nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else "cpu"

    def _run(self, collective, *arguments, **options):
        try:
            collective(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise RuntimeError(
                "The processes that train together lost touch: one of them stopped, or took longer "
                "than the timeout of data_parallel. Look for its error, and start all of them "
                f"again; with a checkpoint training resumes where it was written last. ({error})"
            ) from error

    def sum(self, *tensors):
        """Return sums over all processes, by one all-reduce in the dtype of the last tensor."""
        last = tensors[-1]
        flat = torch.cat([tensor.reshape(-1).to(last.dtype) for tensor in tensors])
        flat = flat.to(self._device)  # the group may sum on another device than training
        self._run(dist.all_reduce, flat)
        parts = flat.to(last.device).split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]

    def _largest(self, values):  # list of int -> list of int
        tensor = torch.tensor(values, device=self._device)
        self._run(dist.all_reduce, tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def largest(self, value):
        """Return the largest of the integers of all processes."""
        return self._largest([value])[0]

    def any(self, *flags):
        """Return for each flag whether a process has it."""
        return [bool(value) for value in self._largest([int(flag) for flag in flags])]

    def all(self, flags):  # (n,) bool -> (n,) bool
        """Return for each flag whether all processes have it."""
        return self.sum(flags.int())[0] == self.size

    def gather(self, tensor):
        """Return the tensors of all processes, which may differ in length, as a list."""
        lengths = [0] * self.size
        lengths[self.rank] = len(tensor)
        lengths = self._largest(lengths)
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:], device=self._device)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in lengths]
        self._run(dist.all_gather, parts, padded)
        return [part[:n].to(tensor.device) for part, n in zip(parts, lengths)]

    def gather_bytes(self, content):
        """Return the bytes of all processes, as a list."""
        sent = to_tensor(np.frombuffer(content, np.uint8))
        return [to_numpy(part).tobytes() for part in self.gather(sent)]

    def check_agreement(self, facts):
        """Raise the same error in every process unless all have the same facts.

        Parameters
        ----------
        facts : callable
            Returns a dict of str to str, this process's facts by name.

        Raises
        ------
        ValueError
            If processes differ; the message says in which facts, and lists their values.
        """
        everyone = [json.loads(part) for part in self.gather_bytes(json.dumps(facts()).encode())]
        differ = []
        for name in dict.fromkeys(name for found in everyone for name in found):
            ranks = {}
            for rank, found in enumerate(everyone):
                ranks.setdefault(found.get(name), []).append(str(rank))
            if len(ranks) > 1:
                pairs = (f"{value} on rank {', '.join(who)}" for value, who in ranks.items())
                differ.append(f"{name}: {' but '.join(pairs)}")
        if differ:
            raise ValueError(
                f"The processes that train together do not agree ({'; '.join(differ)}). Call the "
                "same method of the same learner, with the same parameters, in all of them."
            )

    def broadcast(self, tensor):
        """Return the first process's tensor; all processes' have its shape."""
        sent = tensor.detach().to(self._device).clone()
        self._run(dist.broadcast, sent, self._first)
        return sent.to(tensor.device)

    def first(self, contents):
        """Return the list of the first process, which has one bytes object or none."""
        n_items = int(self.broadcast(torch.tensor(len(contents), device="cpu")))
        return [self.gather_bytes(contents[0] if self.rank == 0 else b"")[0]] if n_items else []

    def collect(self, samples):
        """Return samples of all processes, at most 2**14 of each, in the order of processes.

        The result does not mark gaps.
        """
        (weighted,) = self.any(samples.weight is not None)
        if weighted:
            samples = replace(samples, weight=samples.weigh(torch.ones_like(samples.x[:, 0])))
        some = replace(samples, mask=None)[spread_rows(len(samples), _ROWS)]
        return some.map(lambda part: torch.cat(self.gather(part)))

    def agree(self, generator):
        """Return a generator with the seed of the first process's."""
        seed = self.broadcast(torch.tensor([generator.initial_seed()], device="cpu"))
        return torch.Generator().manual_seed(int(seed))

    def own(self, generator):
        """Return the generator of a process for draws from its own samples."""
        if self.rank == 0:
            return generator
        return torch.Generator().manual_seed(generator.initial_seed() + self.rank)


@contextmanager
def data_parallel(group: Any = None, *, timeout: float = 60.0) -> Iterator[Team]:
    """Train one dictionary by several processes, each with its own samples.

    Inside this context all processes run every `fit`, `partial_fit` and `choose_alpha` together:
    each calls it with its own share of the samples and the same parameters, and each ends with the
    same dictionary and penalty, bit for bit. ``batch_size`` counts the samples of one process.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        Processes that are connected already. None takes the processes of ``torchrun``. If these are
        not connected yet, they are connected here and disconnected at the end: by NCCL if this
        process has a GPU, of its local rank, else by Gloo.
    timeout : float, default=60.0
        Seconds that one process waits for another before it gives up, if they are connected here.
        It has to exceed the time for reading a batch, and of a callback.

    Yields
    ------
    Team
        With the attributes ``rank``, the number of this process, and ``size``, their number.

    Raises
    ------
    RuntimeError
        If the processes were not started together, or if one of them stopped.
    ValueError
        In every process, from these methods, if they differ in class, method, parameters, dtype,
        number or names of features, or in the state that they resume.

    Notes
    -----
    Initial atoms and penalties are chosen from samples of all processes, at most 16384 of each. The
    first process's ``random_state`` counts, so that None works; each process has its own ``device``
    and ``verbose``. Shares may differ in size: a process that runs out of samples in an epoch waits
    for the end of the epoch. The first process reads and writes the checkpoint, by its own
    callback; a checkpoint resumes with the same number of processes. Any process may have other
    callbacks.

    Examples
    --------
    A script for ``torchrun --nproc-per-node=4 script.py``::

        with data_parallel() as team:
            learner = PUDLEDictionaryLearning(256).fit(X[team.rank :: team.size])
    """
    if not dist.is_available():
        raise RuntimeError("This build of torch comes without torch.distributed.")
    connects = group is None and not dist.is_initialized()
    if connects:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise RuntimeError(
                "data_parallel found no other processes. Start the script by torchrun, or call "
                "torch.distributed.init_process_group first."
            )
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            here = os.environ.get("LOCAL_RANK", os.environ["RANK"])  # torchrun alone sets the first
            torch.cuda.set_device(int(here) % torch.cuda.device_count())
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        token = _TEAM.set(Team(group))
        try:
            yield _TEAM.get()
        finally:
            _TEAM.reset(token)
    finally:
        if connects:
            # Gloo's threads need the GIL to release tensors, some time after their results arrive.
            # Older releases of torch hold the GIL in `destroy_process_group` while they wait for
            # these threads: without the pause the process would hang.
            time.sleep(_PAUSE)
            dist.destroy_process_group()
