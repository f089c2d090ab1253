"""Fit one dictionary by several processes, which add up their sums by `torch.distributed`.

Every process holds its own rows and the whole dictionary. A search and training use the data only
in sums over rows. Each process adds up these sums over all processes, and so makes the same update
as one process with all rows would.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

if dist.is_available():
    # This import must come before processes are connected. Otherwise functions of the module keep
    # the connected group as a default value for good, and its threads can abort the end of Python.
    import torch.distributed.nn


class Team:
    """The processes that fit one dictionary, and what they exchange; by default one process.

    All processes must call its methods in the same order, since each call waits for the others.
    ``group`` is the group of `torch.distributed`, ``rank`` the number of this process, ``size`` the
    number of processes, and ``is_alone`` is True for a single process.
    """

    def __init__(self, group=None, rank=0, size=1):
        self.group, self.rank, self.size, self.is_alone = group, rank, size, size == 1

    def sum(self, *tensors):
        """Return each tensor summed over all processes, in its own shape.

        There is one all-reduce for all tensors, in the dtype of the last one.
        """
        if self.is_alone:
            return tensors
        flat = torch.cat([tensor.reshape(-1).to(tensors[-1].dtype) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors)]

    def largest(self, value):
        """Return the largest value of all processes, as an integer; of flags, whether any is True.

        ``value`` is the integer or flag of this process.
        """
        largest = torch.tensor(int(value), device="cpu")
        if not self.is_alone:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def gather(self, tensor):  # (n, ...) -> (sum of n, ...)
        """Return the rows of all processes, in the order of their ranks, on the device of these."""
        parts = [tensor.cpu()] * self.size
        if not self.is_alone:
            dist.all_gather_object(parts, tensor.cpu(), group=self.group)
        return torch.cat(parts).to(tensor.device)


ALONE = Team()
_TEAM = ContextVar("skpudle_team", default=ALONE)
current_team = _TEAM.get  # the team that `data_parallel` made for this thread, or `ALONE`


def refuse_several(task):
    """Raise ValueError if several processes fit together; ``task`` names what cannot be shared."""
    if not current_team().is_alone:
        raise ValueError(f"{task} runs in one process. Call it outside of data_parallel.")


@contextmanager
def data_parallel(group: Any = None, *, timeout: float = 60.0) -> Iterator[Team]:
    """Fit one dictionary by several processes, each with its own rows.

    Inside this context all processes call `fit` together, each with the same parameters and with
    rows of its own. All processes end with the same dictionary and penalty, bit for bit.
    ``batch_size`` counts the rows of one process.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, default=None
        Processes that are connected already, by a backend that sums tensors of the CPU, and of the
        GPU if there is one. None takes the processes of ``torchrun``. If the latter are not
        connected yet, they are connected here and disconnected at the end: by Gloo, and by NCCL if
        there are GPUs. Then each process takes the GPU whose number is its local rank.
    timeout : float, default=60.0
        Seconds that one process waits for another before it gives up, if they are connected here.
        It has to exceed the time for reading a batch, and of a callback.

    Yields
    ------
    Team
        With the attributes ``rank``, the number of this process from 0, and ``size``, the number
        of processes.

    Raises
    ------
    RuntimeError
        From torch, if another process stopped or took too long.
    ValueError
        If the processes were not started together. `partial_fit`, `choose_alpha`, a fit with a
        `Checkpoint`, and learners of images, of targets and of events run in one process only, and
        raise this error inside of the context.

    Notes
    -----
    Parameters and features are not compared: processes that differ in them wait for each other, or
    learn something else. Initial atoms and penalties are chosen from rows of all processes, at most
    16384 of each. The largest of the seeds counts, so that ``random_state=None`` works; each
    process has its own ``device`` and ``verbose``. Numbers of rows may differ: a process that runs
    out of rows in an epoch waits for the end of the epoch. Any process may have callbacks.

    Examples
    --------
    A script for ``torchrun --nproc-per-node=4 script.py``::

        with data_parallel() as team:
            learner = PUDLEDictionaryLearning(256).fit(X[team.rank :: team.size])
    """
    connects = group is None and not dist.is_initialized()
    if connects:
        if has_gpu := torch.cuda.is_available():
            here = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
            torch.cuda.set_device(here)
        backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    token = _TEAM.set(Team(group, dist.get_rank(group), dist.get_world_size(group)))
    try:
        yield _TEAM.get()
    finally:
        _TEAM.reset(token)
        if connects:
            # Gloo's threads need the GIL to release tensors, some time after their results arrive.
            # Older releases of torch hold the GIL in `destroy_process_group` while they wait for
            # these threads: without the pause the process would hang.
            time.sleep(0.2)
            dist.destroy_process_group()
