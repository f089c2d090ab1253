"""Train a dictionary by stochastic gradients, epoch by epoch, in one process or in several.

`Trainer` changes the "rows of parameters" batch by batch: a tensor of the atoms and, for some
models, of further numbers that are learned with them. It knows neither estimators nor kinds of
sources. Ten updates, or the rest of an epoch, are a cycle. After a cycle the host waits for the
device once, reads whether training is still finite, and decides by `Stopping` whether to stop.
Training goes on with the same bits from the record between two epochs, `Trainer.fitted`.

What is trained is decided by the ``model``, a `skpudle._fit.plan.Plan`, in three methods:
``with_rows(fitted, rows)`` returns a record with other rows of parameters. ``network(fitted,
update)`` returns the gradient rule of an update, counted from 0, the dictionary of the record, and
a dict with its encoder and penalty. ``replacements(fitted, samples)`` returns rows of parameters
for samples that become atoms.

Several processes, a `Team`, fit one dictionary by `data_parallel`. Every process holds its own rows
and the whole dictionary. A search and training use the data only in sums over rows. Each process
adds up these sums over all processes by `torch.distributed`, and so makes the same update as one
process with all rows would.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from itertools import chain, islice, repeat
from math import inf
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from skpudle._compilation import threads_for
from skpudle._data.arrays import with_gaps
from skpudle._gradients import differentiate

if dist.is_available():
    # This import must come before processes are connected. Otherwise functions of the module keep
    # the group of processes as a default value for good, and the threads of the group can abort
    # Python when it exits.
    import torch.distributed.nn

# Checks in a row without improvement that end training, for learners without the parameter
# ``n_iter_no_change``.
PATIENCE = 5
# What `Trainer` reads instead of `Interrupts` if its caller does not handle Ctrl-C.
_UNDISTURBED = SimpleNamespace(pending=False)


# ---------------------------------------------------------------------------- several processes


class Team:
    """The processes that fit one dictionary, and what they exchange; by default one process.

    All processes must call its methods in the same order, since each call waits for the others.
    ``group`` is the group of `torch.distributed`, ``rank`` the number of this process, ``size`` the
    number of processes, and ``is_alone`` is True for a single process.
    """

    def __init__(self, group=None, rank=0, size=1):
        self.group = group
        self.rank = rank
        self.size = size
        self.is_alone = size == 1

    def sum(self, *tensors):
        """Return each tensor summed over all processes, in its own shape.

        There is one all-reduce for all tensors, in the dtype of the last one.
        """
        if self.is_alone:
            return tensors
        flat = torch.cat(
            [tensor.reshape(-1).to(tensors[-1].dtype) for tensor in tensors]
        )
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
        """Return the rows of all processes, ordered by rank, on the device of ``tensor``."""
        parts = [tensor.cpu()] * self.size
        if not self.is_alone:
            dist.all_gather_object(parts, tensor.cpu(), group=self.group)
        return torch.cat(parts).to(tensor.device)


ALONE = Team()
_TEAM = ContextVar("skpudle_team", default=ALONE)
# returns the team that `data_parallel` made for this thread, or `ALONE`
current_team = _TEAM.get


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
            gpu = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
            torch.cuda.set_device(gpu)
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


# ---------------------------------------------------------------------------- the end of training


class Diverged(ValueError):
    """The error of a training whose loss or atoms are infinite or NaN.

    ``fitted`` is the last finite record, which `fit` keeps, or None. ``update`` is the number of
    the update, for the message.
    """

    def __init__(self, update, fitted=None):
        super().__init__(
            f"Training diverged: it stopped being finite at update {update}. Pass a smaller step "
            "(learning_rate, step_size, or the rate of an optimizer of your own), or scale the "
            "data."
        )
        self.fitted = fitted


class Stopping:
    """Decide when training ends: its smoothed objective has not improved for some checks in a row.

    Parameters
    ----------
    tol : float or None
        Least relative improvement that counts; None never stops.
    patience : int
        Number of successive checks without improvement that end training.
    first_update : int, default=0
        Checks before this update are ignored.
    n_updates : int, default=inf
        `Trainer` stops after this number of updates in any case, if need be within an epoch.
    n_judged : int, default=1
        Least number of new samples in a check; fewer samples wait for the next check.
    """

    def __init__(
        self,
        tol,
        patience,
        first_update=0,
        n_updates=inf,
        n_judged=1,
    ):
        self.tol = tol
        self.patience = patience
        self.first_update = first_update
        self.n_updates = n_updates
        self.n_judged = n_judged
        # The state, which checkpoints store: number of successive checks without an improvement;
        # smoothed objective of the last check; least smoothed objective so far; and, of the samples
        # since the last check, the sum of their objectives and their number.
        self.course = 0, None, None, 0.0, 0

    @property
    def is_over(self):
        """Whether the objective has stalled for long enough."""
        return self.tol is not None and self.course[0] >= self.patience

    def check(self, total, n_samples, update):
        """Judge the objective of new samples; return whether training shall stop.

        ``total`` is the objective summed over ``n_samples`` samples, and ``update`` the number of
        updates so far.
        """
        if self.tol is None or update < self.first_update:
            return False
        stalled, smoothed, best, *waiting = self.course
        total = total + waiting[0]
        n_samples = n_samples + waiting[1]
        if n_samples < self.n_judged:
            self.course = stalled, smoothed, best, total, n_samples
            return False
        objective = total / n_samples
        # The objective of a check varies with its samples. So it is averaged with the smoothed
        # objective of the check before, which after a few checks leaves a third of the variance.
        smoothed = objective if smoothed is None else (smoothed + objective) / 2
        stalled = (
            0 if best is None or smoothed < best - self.tol * abs(best) else stalled + 1
        )
        best = smoothed if best is None else min(best, smoothed)
        self.course = stalled, smoothed, best, 0.0, 0
        return self.is_over


# ---------------------------------------------------------------------------- the trainer


class Trainer:
    """A training in progress: it updates atoms, and knows losses and the state to resume from.

    Parameters
    ----------
    model : Plan
        What is trained, see the module.
    fitted : Fitted
        The record that training begins with, with the losses and the number of updates so far.
    optimizer : GradientOptimizer or SurrogateOptimizer
        Owns the rows of parameters as ``optimizer.atoms``, and changes them.
    team : Team, default=ALONE
        The processes that train one dictionary, each with samples of its own.
    interrupts : Interrupts, optional
        Its ``pending``, true after Ctrl-C, ends an epoch after the present update or, with several
        processes, after the present cycle.
    """

    def __init__(
        self, model, fitted, optimizer, *, team=ALONE, interrupts=_UNDISTURBED
    ):
        self._begun = fitted
        self.model = model
        self.optimizer = optimizer
        self.n_steps = fitted.n_steps
        self.loss_curve = fitted.loss_curve
        self.team = team
        self._interrupts = interrupts
        # A dict about the current or latest epoch: "n_samples", their number; "loss", the sum of
        # their losses; "unused", True for each atom that no nonzero code has used; and "seen", the
        # losses and samples of the last ten updates, from which `replace_unused` makes new atoms.
        self.epoch = fitted.training.get("epoch")
        self._finite = None  # the latest record that is known to be finite

    def run_epoch(self, source, stopping):  # -> bool
        """Train for one epoch, which ends early if ``stopping`` says so or after Ctrl-C.

        ``source`` are `Batches` that yield the samples, and ``stopping`` is a `Stopping`. Return
        whether the objective has stalled, so that training is over. The mean loss of the epoch is
        appended to ``loss_curve``.

        Raises
        ------
        Diverged
            If training diverged; the error holds the last finite record.
        """
        rows = self.optimizer.atoms.detach()
        converged = False
        unused = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        self.epoch = dict(
            unused=unused,
            n_samples=0.0,
            loss=0.0,
            seen=[],
        )
        batches = (batch.in_units(self._begun.units) for batch in source.batches())
        if not self.team.is_alone:
            # The processes add up their gradients in every update, so all must make the same number
            # of updates. A process that has run out of batches takes part with None.
            n_batches = self.team.largest(source.n_batches)
            batches = islice(chain(batches, repeat(None)), n_batches)
        # The host waits for the device, and decides whether to stop, after 10 updates each (a
        # cycle): enough that a GPU does not idle, and few enough that training can stop within a
        # first epoch of a hundred thousand samples.
        while length := min(10, stopping.n_updates - self.n_steps):
            start = self.fitted
            sums, unused, seen = self._cycle(islice(batches, length))
            if not sums:
                break
            n_unused = unused.sum()
            is_finite = torch.isfinite(self.optimizer.atoms.detach()).all()
            # All numbers come in one transfer, since each transfer would wait for the GPU.
            flags = torch.stack([n_unused, is_finite]).to(sums[0])
            numbers = torch.cat([*sums, flags]).cpu()
            sums = numbers[:-2].view(-1, 3)
            n_unused, atoms_are_finite = numbers[-2:].int().tolist()
            interrupted = self.team.largest(self._interrupts.pending)
            finite = torch.isfinite(sums).all(1)
            # A finite loss in the first update shows that the atoms before it were finite.
            if finite[0] or self._finite is None:
                self._finite = start
            if not (finite.all() and atoms_are_finite):
                # once the loss is not finite, it stays so in all later updates
                first_bad = min(int(finite.sum()) + 1, len(sums))
                raise Diverged(start.n_steps + first_bad, self._finite)
            loss, objective, n_samples = sums.double().sum(0).tolist()
            self.epoch["n_samples"] += n_samples
            self.epoch["loss"] += loss
            self.epoch |= dict(unused=unused, seen=seen if n_unused else [])
            if interrupted:
                break
            converged = stopping.check(objective, n_samples, self.n_steps)
            if converged or len(sums) < length:
                break
        self.loss_curve = *self.loss_curve, self.epoch["loss"] / self.epoch["n_samples"]
        return converged

    def _cycle(self, batches):
        """Make one update for each of at most ten batches, without a wait for the device.

        ``batches`` yields `Samples`, or None if only other processes still have samples.

        Returns
        -------
        sums : list of Tensor of shape (3,)
            Summed loss, summed objective and number of samples of each update.
        unused : Tensor of shape (n_components,), bool
            Atoms that no code of the epoch so far has used.
        seen : list of tuple
            Losses, a Tensor of shape (n_samples,), and `Samples` of each batch.
        """
        sums = []
        unused = self.epoch["unused"]
        seen = []
        for batch in batches:
            total, used, losses = self._update(batch)
            sums.append(total)
            unused = unused & ~used
            if batch is not None:
                seen.append((losses, batch))
            if self.team.is_alone and self._interrupts.pending:
                break
        return sums, unused, seen

    def _update(self, batch):
        """Make one update: change atoms, and what is trained with them, by a batch's gradient.

        Parameters
        ----------
        batch : Samples or None
            The batch; None in a process that has no samples left.

        Returns
        -------
        total : Tensor of shape (3,)
            Summed loss, summed objective and number of samples, over all processes.
        used : Tensor of shape (n_components,), bool
            Atoms that nonzero codes of this process use.
        losses : Tensor of shape (n_samples,)
            Losses of the samples of this process.
        """
        rows = self.optimizer.atoms
        model = self.model
        team = self.team
        if batch is None:  # this process has no samples left, but other processes have
            gradient = torch.zeros_like(rows)
            codes = rows.detach().new_zeros(0, len(rows))
            losses = codes.new_zeros(0)
            total = codes.new_zeros(3)
        else:
            with torch.enable_grad():  # the user may call `fit` under torch.no_grad
                present = model.with_rows(self._begun, rows)
                rule, dictionary, settings = model.network(present, self.n_steps)
                with threads_for(dictionary.atoms, batch.x):
                    gradient, evaluation = differentiate(
                        rule, dictionary, rows, batch, **settings
                    )
            codes = evaluation.codes
            losses = evaluation.losses
            weight = batch.weigh(torch.ones_like(losses))
            n_samples = weight.sum()
            loss = (weight * losses).sum()
            total = torch.stack([loss, evaluation.objective * n_samples, n_samples])
        # The gradient of one process is a mean over its samples. All processes together take the
        # mean over all samples.
        if not team.is_alone:
            gradient, total = team.sum(gradient * total[2], total)
            gradient = gradient / total[2].clamp_min(torch.finfo(total.dtype).tiny)
        with threads_for(rows, rows):
            self.optimizer.update(
                gradient,
                codes,
                weight=None if batch is None else batch.weight,
                total=None if team.is_alone else team.sum,
            )
        self.n_steps += 1
        # An atom is used if the moduli of its codes have a sum above 0. `any` would say the same,
        # but takes several times as long.
        used = codes.abs().sum([axis for axis in range(codes.ndim) if axis != 1]) != 0
        return total, used, losses

    def replace_unused(self, *, among=None):
        """Replace atoms that no code of the epoch has used by badly reconstructed samples.

        The samples have the largest losses in the last cycle of the epoch. Without an epoch, and
        if no sample has a loss, nothing changes.

        Parameters
        ----------
        among : Tensor of shape (n_components,), bool, default=None
            True for atoms that may be replaced; by default all.
        """
        if self.epoch is None:
            return
        atoms = self.optimizer.atoms.detach()
        team = self.team
        (used,) = team.sum((~self.epoch["unused"].to(atoms.device)).int())
        unused = used == 0 if among is None else (used == 0) & among.to(used.device)
        unused = unused.nonzero().squeeze(1)
        if not len(unused):
            return
        losses = atoms.new_zeros(0)
        samples = atoms[:0]  # none, if this process had no samples
        if self.epoch["seen"]:
            seen = [
                (losses, with_gaps(batch.x, batch.mask))
                for losses, batch in self.epoch["seen"]
            ]
            losses, samples = (torch.cat(part).to(atoms.device) for part in zip(*seen))
        # Each process offers its worst samples, and the worst of all processes become atoms.
        worst = losses.topk(min(len(unused), len(losses))).indices
        losses = team.gather(losses[worst])
        samples = team.gather(samples[worst])
        worst = losses.topk(min(len(unused), len(losses)))
        samples = samples[worst.indices[worst.values > 0]]
        # a zero sample makes no atom
        samples = samples[samples.nan_to_num().flatten(1).any(1)]
        if len(samples):
            rows = self.model.replacements(
                self.model.with_rows(self._begun, atoms), samples
            )
            # a sample equal to the baseline has a row of zeros
            rows = rows[rows.flatten(1).any(1)]
            self.optimizer.replace(unused[: len(rows)], rows)

    @property
    def fitted(self):
        """The record of the fit with the present atoms, losses and state of the optimiser."""
        rows = self.optimizer.atoms.detach().clone()
        state = self.optimizer.state()
        training = self._begun.training | {"moments": state, "epoch": self.epoch}
        return replace(
            self.model.with_rows(self._begun, rows),
            loss_curve=self.loss_curve,
            n_steps=self.n_steps,
            training=training,
        )
