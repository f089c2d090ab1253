r"""Tasks of a dictionary, and the model of a dictionary learned for one: atoms and a head.

A task is classification or regression. It knows its targets, its loss, and the linear model of
scikit-learn that a head starts as. The units of its targets and decisions are ``scale`` and
``mean``; fitted weights are in the units of ``y``.

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
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import LabelEncoder
from torch import Tensor
from torch.nn.functional import cross_entropy

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.plan import DenseModel
from skpudle._gradients import Evaluation, average
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import in_own_precision


def class_decisions(decisions):  # (n, n_outputs) -> (n, n_classes)
    """Return an output for every class; a single output of two classes belongs to the second."""
    if decisions.shape[1] > 1:
        return decisions
    return torch.cat([torch.zeros_like(decisions), decisions], dim=1)


@dataclass(frozen=True, eq=False)
class Classification:
    """One of several classes, by cross-entropy; a target is its index.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted labels.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far.
    """

    classes: np.ndarray
    total_weight: float = 0.0

    mean, scale, n_terms, penalty, is_flat = np.zeros(1), np.ones(1), 1, 1, False

    @property
    def n_outputs(self):
        """Number of outputs: two classes need a single one."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def encode(self, y):  # (n,) -> (n, 1)
        """Return the indices of labels; raise ValueError for an unknown label."""
        return LabelEncoder().fit(self.classes).transform(y)[:, None].astype(float)

    def losses(self, decisions, target):  # (n, n_outputs), (n, 1) -> (n,)
        """Return the cross-entropy of every sample."""
        return cross_entropy(class_decisions(decisions), target[:, 0].long(), reduction="none")

    def linear_model(self, C):
        """Return scikit-learn's model with this loss."""
        return LogisticRegression(C=C, max_iter=1000)


@dataclass(frozen=True, eq=False)
class Regression:
    r"""Regression, by least squares; a target is centred and divided by its standard deviation.

    The loss is half the unexplained share of the variance, averaged over outputs. It is independent
    of the units of ``y`` and of the number of outputs.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_outputs,)
        Means and standard deviations of ``y``.
    is_flat : bool
        Whether ``y`` has one dimension.
    total_weight : float, default=0.0
        The sum of the weights of all samples so far.
    """

    mean: np.ndarray
    scale: np.ndarray
    is_flat: bool
    total_weight: float = 0.0

    @property
    def n_outputs(self):
        """Number of outputs."""
        return len(self.mean)

    n_terms = n_outputs  # squared errors of a sample in the loss
    penalty = 10  # of the weights with C=1

    def encode(self, y):  # (n,) or (n, n_outputs) -> (n, n_outputs)
        """Return numbers in columns, centred and divided by their standard deviation."""
        return (y.reshape(len(y), -1) - self.mean) / self.scale

    def losses(self, decisions, target):  # (n, n_outputs) twice -> (n,)
        """Return half the mean squared error of every sample."""
        return 0.5 * (decisions - target).square().mean(1)

    def linear_model(self, C):
        """Return scikit-learn's model with this loss."""
        return Ridge(alpha=self.penalty / C)


# ------------------------------------------------------------------ the model


@dataclass(frozen=True, eq=False)
class _TaskDictionary(DenseDictionary):
    """A dictionary with the rows of parameters of its model."""

    rows: Tensor


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

    name_of_baseline = "baseline_"  # `intercept_` is of the decisions

    @in_own_precision
    def rule(self, dictionary, batch, *, encoder, penalty):
        r"""Reconstruction and task, both differentiated through the encoder.

        With the supervision :math:`b` and the mean squared norm of a sample :math:`E`, which makes
        :math:`b` independent of units, atoms descend

        .. math:: (1 - b) \tfrac12 \|x - D z\|^2 + b\, E\, \ell(W z, y),

        and the head descends :math:`E (\ell(W z, y) + \frac\rho2 \|W\|^2)` whatever :math:`b`. See
        `skpudle._gradients.ae_ls` for arguments and results.
        """
        b, rows, task = self.supervision, dictionary.rows, self.task
        z = encoder(dictionary, batch.x, mask=batch.mask)
        # From samples as atoms only the gradient "dec" finds a dictionary: codes are constants.
        residual = dictionary.synthesis(z.detach() if self.from_samples else z) - batch.x
        residual = residual if batch.mask is None else residual * batch.mask
        losses = 0.5 * residual.square().sum(1)
        of_task = task.losses(self.decide(rows, b * z + (1 - b) * z.detach()), batch.target)
        ridge = task.penalty / (self.C * task.total_weight * task.n_terms)
        ridge = 0.5 * ridge * self.head(rows)[0].square().sum()
        unit = self.data_scale or 1.0
        surrogate = average((1 - b) * losses + unit * of_task, batch.weight) + unit * ridge
        return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())

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
        return _TaskDictionary(dictionary.atoms, rows), *rest

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
        decisions = {"coef_": coef, "intercept_": intercept, "_fitted_task": self.task}
        return super().attributes(rows) | decisions
