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

import numpy as np
import torch
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.plan import DenseModel
from skpudle._gradients import Evaluation, average
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import in_own_precision


@dataclass(frozen=True, eq=False)
class _TaskDictionary(DenseDictionary):
    """A dictionary with the rows of parameters of its model."""

    rows: Tensor
    model: "TaskModel"


@in_own_precision
def joint(dictionary, batch, *, encoder, penalty):
    r"""Reconstruction and task, both differentiated through the encoder.

    With the supervision :math:`b` and the mean squared norm of a sample :math:`E`, which makes
    :math:`b` independent of units, atoms descend

    .. math:: (1 - b) \tfrac12 \|x - D z\|^2 + b\, E\, \ell(W z, y),

    and the head descends :math:`E (\ell(W z, y) + \frac\rho2 \|W\|^2)` whatever :math:`b`. See
    `skpudle._gradients.ae_ls` for arguments and results.
    """
    model, rows = dictionary.model, dictionary.rows
    b, unit = model.supervision, model.data_scale or 1.0
    z = encoder(dictionary, batch.x, mask=batch.mask)
    # far from a dictionary only "dec" finds it
    residual = dictionary.synthesis(z.detach() if model.from_samples else z) - batch.x
    residual = residual if batch.mask is None else residual * batch.mask
    losses = 0.5 * residual.square().sum(1)
    decisions = model.decide(rows, b * z + (1 - b) * z.detach())
    task = model.task.losses(decisions, batch.target)
    ridge = 0.5 * model.ridge * model.head(rows)[0].square().sum()
    surrogate = average((1 - b) * losses + unit * task, batch.weight) + unit * ridge
    return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())


@dataclass(frozen=True, eq=False)
class TaskModel(DenseModel):
    """A dictionary and its head; see `skpudle._fit.train` and `DenseModel`.

    Parameters
    ----------
    task : Classification or Regression
        The task.
    supervision : float
        From 0, a head on codes of an unsupervised dictionary, to 1, the task alone.
    n_sides : int
        Number of features of a code.
    C : float
        Weight of the data against the penalty of the head, as in scikit-learn.
    """

    task: object = None  # a default, since inherited fields have one
    supervision: float = 1.0
    n_sides: int = 1
    C: float = 1.0

    rule = staticmethod(joint)
    name_of_baseline = "baseline_"  # `intercept_` is of the decisions

    @property
    def ridge(self):
        """The penalty of the head, relative to the mean loss."""
        return self.task.penalty / (self.C * self.task.total_weight * self.task.n_terms)

    def unit(self, n_components):  # -> float
        """Return the unit of codes."""
        return ((self.data_scale or 0.0) / n_components) ** 0.5 or 1.0

    def features(self, z):  # (n, n_components) -> (n, n_sides * n_components)
        """Return features of codes for a head; positive sides come first."""
        z = z / self.unit(z.shape[1])
        return z if self.n_sides == 1 else torch.cat([z.clamp_min(0), z.neg().clamp_min(0)], dim=1)

    def join(self, atoms, weights, intercept):  # -> rows (n_components, n_parameters)
        """Return one row for each atom; see `head` for shapes."""
        weights = weights.unflatten(1, (self.n_sides, len(atoms))).movedim(2, 0).flatten(1)
        return torch.cat([atoms, weights, intercept.expand(len(atoms), -1)], dim=1)

    def atoms(self, rows):  # -> (n_components, n_features)
        """Return the atoms in rows; differentiable."""
        return rows[:, : -self.task.n_outputs * (self.n_sides + 1)]

    def head(self, rows):  # -> (n_outputs, n_sides * n_components), (n_outputs,)
        """Return the weights and intercepts in rows; differentiable."""
        n, sides = self.task.n_outputs, self.n_sides
        weights = rows[:, -n * (sides + 1) : -n].unflatten(1, (n, sides))
        return weights.movedim(0, 2).flatten(1), rows[:, -n:].mean(0)

    def decide(self, rows, z):  # (n, n_components) -> (n, n_outputs)
        """Return the decisions from codes."""
        weights, intercept = self.head(rows)
        return self.features(z) @ weights.mT + intercept

    def network(self, rows, update):
        """Return the dictionary with its head, the encoder and the penalty of an update."""
        dictionary, *rest = super().network(self.atoms(rows), update)
        return _TaskDictionary(dictionary.atoms, rows, self), *rest

    def project(self, rows):
        """Return the nearest rows with atoms that satisfy the constraints."""
        atoms = self.atoms(rows)
        return torch.cat([super().project(atoms), rows[:, atoms.shape[1] :]], dim=1)

    def replacements(self, rows, samples):
        """Return rows for samples, with weights of zero."""
        atoms, (weights, intercept) = super().replacements(rows, samples), self.head(rows)
        blank = weights.new_zeros(len(weights), len(atoms) * self.n_sides)
        return self.join(atoms, blank, intercept)

    @torch.no_grad()
    def solve(self, atoms, samples):  # -> head
        """Return the head that scikit-learn finds for codes of atoms, in float64."""
        dictionary, encoder, _ = DenseModel.network(self, atoms, 0)
        features = self.features(encoder(dictionary, samples.x, mask=samples.mask))
        model = self.task.linear_model(self.C * self.task.total_weight / samples.total_weight)
        weight = None if samples.weight is None else to_numpy(samples.weight.double())
        target = to_numpy(samples.target.squeeze(1))
        model.fit(to_numpy(features.double()), target, sample_weight=weight)
        head = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
        return [to_tensor(part).to(features) for part in head]

    def attributes(self, rows):
        """Return the fitted attributes."""
        weights, intercept = self.head(rows)
        mean, scale = (to_tensor(part).to(rows) for part in (self.task.mean, self.task.scale))
        coef = weights * (scale[:, None] / self.unit(len(rows)))
        coef, intercept = to_numpy(coef), to_numpy(mean + scale * intercept)
        if self.task.is_flat:
            coef, intercept = coef[0], float(intercept[0])
        return super().attributes(rows) | {"coef_": coef, "intercept_": intercept}
