r"""The model of a dictionary learned for a task: atoms, and a head that decides from codes.

The parameters of an atom are one row of numbers: the atom, its weights in the task, and a copy of
the intercepts, which are the mean of all copies. The trainer and the optimiser see one tensor, as
for any dictionary.

A head may see codes as they are, or their positive and negative parts as two features of an atom,
its sides. All weights are for codes in one unit: the root of the mean squared norm of a sample over
the number of atoms. Units of each feature's own standard deviation would overweight rare features:
0.8 % more errors on digits for two sides.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from skpudle._gradients import Evaluation
from skpudle._learners.models import DenseModel
from skpudle._learners.supervised.tasks import Head
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import in_own_precision


class TaskLayout(NamedTuple):
    """The layout of a row of parameters: an atom, weights, copies of the intercepts."""

    n_features: int
    n_outputs: int
    n_sides: int
    unit: float

    def features(self, z):  # (n, n_components) -> (n, n_sides * n_components)
        """Return features of codes for a head, in its unit."""
        z = z / self.unit
        return z if self.n_sides == 1 else torch.cat([z.clamp_min(0), z.neg().clamp_min(0)], dim=1)

    def pack(self, atoms, head):  # (n_components, n_features), Head -> (n_components, n_parameters)
        """Return one row for each atom."""
        weights = head.weights.unflatten(1, (self.n_sides, len(atoms))).movedim(2, 0).flatten(1)
        return torch.cat([atoms, weights, head.intercept.expand(len(atoms), -1)], dim=1)

    def blank_head(self, atoms):  # (n_components, n_features) -> Head
        """Return a head without weights."""
        n_weights = len(atoms) * self.n_sides
        return Head(atoms.new_zeros(self.n_outputs, n_weights), atoms.new_zeros(self.n_outputs))

    def atoms(self, rows):  # (n_components, n_parameters) -> (n_components, n_features)
        """Return the atoms in rows; differentiable."""
        return rows[:, : self.n_features]

    def head(self, rows):  # (n_components, n_parameters) -> Head
        """Return the head in rows; differentiable."""
        sizes = [self.n_features, self.n_outputs * self.n_sides, self.n_outputs]
        _, weights, copies = rows.split(sizes, dim=1)
        weights = weights.unflatten(1, (self.n_outputs, self.n_sides)).movedim(0, 2).flatten(1)
        return Head(weights, copies.mean(0))


@dataclass(frozen=True, eq=False)
class _TaskDictionary(DenseDictionary):
    """A dictionary and a head."""

    head: Head
    model: "TaskModel"

    def decide(self, z):  # (n, n_components) -> (n, n_outputs)
        return self.model.layout.features(z) @ self.head.weights.mT + self.head.intercept


@in_own_precision
def joint(dictionary, batch, *, encoder, penalty):
    r"""Reconstruction and task, both differentiated through the encoder.

    With the supervision :math:`b` and the mean squared norm of a sample :math:`E`, which makes
    :math:`b` independent of units, atoms descend

    .. math:: (1 - b) \tfrac12 \|x - D z\|^2 + b\, E\, \ell(W z, y),

    and the head descends :math:`E (\ell(W z, y) + \frac\rho2 \|W\|^2)` whatever :math:`b`. Samples
    have weights in both terms; the target holds the weights of the second term. See
    `skpudle._gradients.ae_ls` for arguments and results.
    """
    model = dictionary.model
    b, unit = model.supervision, model.data_scale or 1.0
    z = encoder(dictionary, batch.x, mask=batch.mask)
    # far from a dictionary only "dec" finds it
    residual = dictionary.synthesis(z.detach() if model.from_samples else z) - batch.x
    if batch.mask is not None:
        residual = residual * batch.mask
    losses = 0.5 * residual.square().sum(1)
    seen = b * z + (1 - b) * z.detach()
    task = model.task.loss(dictionary.decide(seen), batch.target) / model.mean_weight
    ridge = 0.5 * model.ridge * dictionary.head.weights.square().sum()
    # weights have the mean 1 in a `fit`
    weighted = losses if batch.weight is None else losses * batch.weight
    surrogate = ((1 - b) * weighted + unit * task).mean() + unit * ridge
    return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())


@dataclass(frozen=True)
class TaskModel(DenseModel):
    """A dictionary and its head; see `skpudle._training.loop` and `DenseModel`.

    Parameters
    ----------
    layout : TaskLayout
        Layout of the rows of parameters.
    task : Classification or Regression
        The task.
    supervision : float
        From 0, a head on codes of an unsupervised dictionary, to 1, the task alone.
    mean_weight, total_weight : float
        Mean and sum of the weights of samples in the task's loss.
    strength : float
        Weight of the data against the penalty of the head, ``C`` of scikit-learn.
    """

    layout: TaskLayout | None = None  # a default, since inherited fields have one
    task: object = None
    supervision: float = 1.0
    mean_weight: float = 1.0
    total_weight: float = 1.0
    strength: float = 1.0

    name_of_baseline = "baseline_"  # `intercept_` is of the decisions

    @property
    def ridge(self):
        """The penalty of the head, relative to the mean loss."""
        return 1 / (self.strength * self.total_weight)

    def network(self, rows, update):
        """Return the dictionary with its head, the encoder and the penalty of an update."""
        dictionary, *rest = super().network(self.layout.atoms(rows), update)
        return _TaskDictionary(dictionary.atoms, self.layout.head(rows), self), *rest

    def project(self, rows):
        """Return the nearest rows with atoms that satisfy the constraints."""
        atoms, rest = self.layout.atoms(rows), rows[:, self.layout.n_features :]
        return torch.cat([super().project(atoms), rest], dim=1)

    def replacements(self, rows, samples):
        """Return rows for samples, with weights of zero."""
        atoms, head = super().replacements(rows, samples), self.layout.head(rows)
        blank = head.weights.new_zeros(len(head.weights), len(atoms) * self.layout.n_sides)
        return self.layout.pack(atoms, Head(blank, head.intercept))

    def parts(self, rows):  # -> atoms (n_components, n_features), None
        """Return the atoms in rows, and no intercept."""
        return self.layout.atoms(rows), None

    def step(self, rows):
        """Return the step for the atoms of these rows."""
        return super().step(self.layout.atoms(rows))

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        super().warn_of_step(*map(self.layout.atoms, (initial, final)))

    @torch.no_grad()
    def score(self, batch, rows):  # -> float
        """Return the score of the decisions on a batch; larger is better."""
        dictionary, encoder, _ = self.network(rows, 0)
        decisions = dictionary.decide(encoder(dictionary, batch.x, mask=batch.mask))
        return self.task.score(decisions, batch.target)

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        weights = {"mean_weight": self.mean_weight, "total_weight": self.total_weight}
        return super().memory() | weights | self.task.memory()

    def attributes(self, rows):
        """Return the fitted attributes."""
        head = self.layout.head(rows)
        in_units = Head(head.weights / self.layout.unit, head.intercept)
        return super().attributes(self.layout.atoms(rows)) | self.task.fitted(in_units)
