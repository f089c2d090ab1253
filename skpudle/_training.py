"""Training: the only epoch loop.

`Trainer` turns batches into updates and knows nothing of NumPy, of estimators or of where the
samples come from. It waits for the device once a round, some updates long, to learn whether
training is still finite and whether to stop.
"""

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.gradients import differentiate

__all__ = ["Batch", "Diverged", "EpochSummary", "Rows", "Stopping", "Trainer"]

# Between two looks at the loss: rare enough that a GPU never idles, often enough that a first epoch
# of a hundred thousand samples need not be finished when nothing is left to gain.
_UPDATES_PER_ROUND = 10


class Batch(NamedTuple):
    """What one update sees; `indices` are the positions of its samples in the source."""

    indices: Tensor | slice
    x: Tensor
    target: Tensor | None = None
    mask: Tensor | None = None


class Rows:
    """Samples that fit into memory, batch by batch.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    batch_size : int
        Number of samples in a batch; the last one of an epoch may be smaller.
    generator : torch.Generator, default=None
        Shuffles every epoch; without it batches come in the order of the samples.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where data are known, 0 where they are missing.
    """

    def __init__(self, x, batch_size, *, generator=None, mask=None):
        self.x, self.batch_size, self.generator = x, min(batch_size, len(x)), generator
        self.mask = mask

    @property
    def n_samples(self):
        return len(self.x)

    def epoch(self):
        """Yield the batches of one epoch."""
        if self.generator is None or self.batch_size == self.n_samples:
            for start in range(0, self.n_samples, self.batch_size):
                indices = slice(start, start + self.batch_size)
                yield self._batch(indices)
        else:
            order = torch.randperm(self.n_samples, generator=self.generator).to(self.x.device)
            for indices in order.split(self.batch_size):
                yield self._batch(indices)

    def _batch(self, indices):
        mask = None if self.mask is None else self.mask[indices]
        return Batch(indices, self.x[indices], mask=mask)

    def samples(self, indices):
        """Return the samples at the given positions, in the shape of atoms."""
        return self.x[indices]


class Diverged(ArithmeticError):
    """Training is not finite any more, also after the learning rate was halved."""

    def __init__(self, update):
        super().__init__(f"training diverged at update {update}")
        self.update = update


class Stopping:
    """Stop when the smoothed objective has not improved for some checks in a row.

    Parameters
    ----------
    tol : float or None
        Relative improvement that counts; None never stops.
    patience : int
        Number of checks without one.
    first_update : int, default=0
        Updates before this one are not judged.
    n_updates : int, default=None
        Stop after that many in any case, in the middle of an epoch if need be.
    """

    def __init__(self, tol, patience, *, first_update=0, n_updates=None):
        self.tol, self.patience, self.first_update = tol, patience, first_update
        self.n_updates = n_updates
        self._smoothed, self._best, self._stalled = None, None, 0

    def limit(self, length, update):
        """Return how many of the next ``length`` updates are to be made."""
        return length if self.n_updates is None else min(length, self.n_updates - update)

    def check(self, objective, update):
        """Return whether to stop, given the mean objective since the last check."""
        if self.tol is None or update < self.first_update:
            return False
        # the mean with its own past halves the variance of a minibatch objective in a few checks
        previous = objective if self._smoothed is None else self._smoothed
        self._smoothed = (previous + objective) / 2
        improved = self._best is None or self._smoothed < self._best - self.tol * abs(self._best)
        self._stalled = 0 if improved else self._stalled + 1
        self._best = self._smoothed if self._best is None else min(self._best, self._smoothed)
        return self._stalled >= self.patience


class EpochSummary(NamedTuple):
    """The mean reconstruction loss of an epoch, and whether the objective has stalled."""

    loss: float
    converged: bool


class Trainer:
    """Atoms in training.

    Parameters
    ----------
    make_dictionary : callable
        Returns a dictionary with the given atoms.
    rule : callable
        One of `skpudle.gradients.GRADIENT_RULES`.
    schedule : callable
        ``schedule(update)`` returns the keyword arguments ``encoder`` and ``penalty`` of the rule
        for that update, counted from 0.
    optimizer : GradientOptimizer
        Owns the atoms.
    n_steps : int, default=0
        Number of updates made before.
    part_size : int, default=None
        Samples of a batch that are evaluated at a time, which bounds memory; by default all.
    """

    def __init__(self, make_dictionary, rule, schedule, optimizer, *, n_steps=0, part_size=None):
        self.make_dictionary, self.rule, self.schedule = make_dictionary, rule, schedule
        self.optimizer, self.n_steps, self.part_size = optimizer, n_steps, part_size
        self._halved = False
        self._finite_state = None  # the latest (atoms, optimiser's state, number of updates)
        self._unused = self._losses = None

    def run_epoch(self, source, stopping):
        """Go through the source once, or until ``stopping`` says that it is enough.

        Raises
        ------
        Diverged
            If training stopped being finite for the second time; the optimiser then holds the last
            finite atoms.
        """
        batches = source.epoch()
        total = n_seen = 0
        self._losses = None
        self._unused = torch.ones_like(self.optimizer.atoms.flatten(1)[:, 0], dtype=torch.bool)
        while n_seen < source.n_samples:
            length = stopping.limit(_UPDATES_PER_ROUND, self.n_steps)
            if length == 0:
                break
            start = self.optimizer.atoms.detach().clone(), self.optimizer.state(), self.n_steps
            sums = [self._update(b, source.n_samples) for b in islice(batches, length)]
            finite = torch.isfinite(torch.stack(sums)).all(1)
            loss, objective, n_samples = torch.stack(sums).double().sum(0).tolist()
            if finite[0] or self._finite_state is None:
                self._finite_state = start  # that a state is finite is known from its next loss
            if not (finite.all() and torch.isfinite(self.optimizer.atoms).all()):
                first_bad = start[2] + min(int(finite.sum()) + 1, len(sums))
                *state, self.n_steps = self._finite_state
                self.optimizer.load(*state)
                if self._halved:
                    raise Diverged(first_bad)
                self._halved = True
                self.optimizer.halve_learning_rate()
                return self.run_epoch(source, stopping)
            total, n_seen = total + loss, n_seen + n_samples
            if stopping.check(objective / n_samples, self.n_steps):
                return EpochSummary(total / n_seen, converged=True)
        return EpochSummary(total / n_seen, converged=False)

    def _update(self, batch, n_samples):  # -> summed loss, summed objective, number of samples
        atoms = self.optimizer.atoms
        with torch.enable_grad():  # whatever the caller's mode is
            gradient, evaluation = differentiate(
                self.rule,
                self.make_dictionary(atoms),
                atoms,
                batch,
                part_size=self.part_size,
                **self.schedule(self.n_steps),
            )
        self.optimizer.update(gradient, evaluation.codes)
        self.n_steps += 1
        self._unused &= (evaluation.codes == 0).transpose(0, 1).flatten(1).all(1)
        if self._losses is None:
            self._losses = evaluation.losses.new_zeros(n_samples)
        self._losses[batch.indices] = evaluation.losses
        size = torch.full_like(evaluation.objective, len(batch.x))
        return torch.stack([evaluation.losses.sum(), evaluation.objective * size, size])

    def replace_unused(self, source):
        """Replace atoms that no code of the last epoch used by the worst reconstructed samples."""
        unused = self._unused.nonzero().squeeze(1)
        losses, worst = self._losses.topk(min(len(unused), len(self._losses)))
        worst = worst[losses > 0]
        unused = unused[: len(worst)]
        if len(unused):
            self.optimizer.replace(unused, source.samples(worst))
