r"""Tasks: decide classes or numbers from codes.

A task turns what users call ``y`` into a target, a row for each sample: what is to be decided and,
in the last column, the sample's weight. All that a learner asks of a task is

* ``target(y, weights)`` of what ``check(y, estimator)`` lets through; for a whole fit
  ``check_target(target, name)``, and ``strata(target)``, whose shares a split of samples keeps;
* ``n_outputs``, how many numbers decide;
* ``weights(target)``, what each sample weighs in the loss;
* ``loss(decisions, target)`` of each sample, and ``score(decisions, target)`` of all;
* ``solve(features, target, C)``, the head for fixed codes;
* ``fitted(head)``, what users see of one, ``head(coef, intercept)``, the way back, and
  ``memory()``, what that takes beside.

The loss is the one that has the prediction as its minimum and needs no parameter: cross-entropy
for probabilities, least squares for expectations.

Samples that are equal count as one (`distinct`), and `hold_out` keeps some for early stopping.
"""

from dataclasses import dataclass
from math import ceil
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y
from torch import Tensor
from torch.nn.functional import cross_entropy

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Batch

__all__ = [
    "Classification",
    "Head",
    "Regression",
    "check_weights",
    "class_decisions",
    "distinct",
    "hold_out",
]

# The intercept of a class that no sample has; by cross-entropy it would be -infinity, from where
# no gradient comes back. The rows of logistic regression add up to zero, so that the largest
# decision is at least 0, and the probability of such a class at most exp(-30), 1e-13.
_ABSENT = -30.0


class Head(NamedTuple):
    """A linear map of features of codes.

    Attributes
    ----------
    weights : Tensor of shape (n_outputs, n_sides * n_components)
        Of features in the unit of the layout; positive sides come first.
    intercept : Tensor of shape (n_outputs,)
        What is added.
    """

    weights: Tensor
    intercept: Tensor


def check_weights(weights, name):
    """Raise ValueError for weights that are no finite numbers from 0 on, or where none is above."""
    wrong = weights[~((weights >= 0) & (weights < float("inf")))]
    if len(wrong):
        raise ValueError(
            f"{name} has samples of weight {float(wrong[0])}. Pass finite numbers that are not "
            "negative as sample_weight."
        )
    if not (weights > 0).any():
        raise ValueError(
            f"{name} learns from weighted samples, and no sample has a weight above 0. Pass a "
            "positive weight for some, by sample_weight and class_weight."
        )


def _solve(model, features, values, weights):  # -> Head
    """Return the head that a linear model of scikit-learn finds, in float64."""
    rows = to_numpy(features).astype(np.float64)
    model.fit(rows, values, sample_weight=to_numpy(weights).astype(np.float64))
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    return Head(*(to_tensor(part).to(features) for part in (coef, intercept)))


# ------------------------------------------------------------------ classes


def class_decisions(decisions):  # (n, n_outputs) -> (n, n_classes)
    """Return an output for every class; a single one is for the second of two."""
    if decisions.shape[1] > 1:
        return decisions
    return torch.cat([torch.zeros_like(decisions), decisions], dim=1)


@dataclass(frozen=True, eq=False)
class Classification:
    """One of several classes, by cross-entropy; a target is its index.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Sorted.
    class_weight : dict, "balanced" or None
        As in scikit-learn.
    """

    classes: np.ndarray
    class_weight: object = None

    @staticmethod
    def check(y, estimator):  # -> (n_samples,)
        """Return labels, or raise ValueError."""
        y = _check_y(y, estimator=estimator)
        check_classification_targets(y)
        return y

    @property
    def n_outputs(self):
        """One of two classes is told by one number."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def target(self, y, weights):  # -> ndarray (n, 2)
        """Return the indices of labels, and weights of samples times those of their classes."""
        unknown = np.setdiff1d(y, self.classes)
        if len(unknown):
            raise ValueError(
                f"y contains {unknown!r:.80}, which is not in classes={self.classes!r:.80}."
            )
        labels = np.searchsorted(self.classes, y)
        return np.column_stack([labels, weights * self._class_weights(labels, weights)[labels]])

    def _class_weights(self, labels, weights):  # -> (n_classes,)
        if self.class_weight is None:
            return np.ones(len(self.classes))
        if isinstance(self.class_weight, dict):
            return self._named_weights()
        totals = np.bincount(labels, weights, minlength=len(self.classes))
        present = totals > 0
        return totals.sum() / present.sum() / np.where(present, totals, 1)

    def _named_weights(self):  # -> (n_classes,)
        given, classes = self.class_weight, self.classes.tolist()
        for label, weight in given.items():
            if not isinstance(weight, Real) or not 0 <= weight < np.inf:
                raise ValueError(
                    f"class_weight gives class {label!r:.50} the weight {weight!r:.50}. Pass "
                    "finite numbers that are not negative."
                )
        unknown, unnamed = [c for c in given if c not in classes], set(classes) - set(given)
        if unknown and unnamed:  # scikit-learn takes weights of classes that a part of data lacks
            raise ValueError(
                f"class_weight has weights for {unknown!r:.80}, none of the classes "
                f"{classes!r:.80}. Pass weights by labels as they are in y."
            )
        return np.array([given.get(c, 1.0) for c in classes], float)

    def check_target(self, target, name):
        """Raise ValueError where there is nothing to decide."""
        present = target[target[:, 1] > 0, 0].unique()
        if len(present) < 2:
            raise ValueError(
                f"{name} separates classes, and all samples with a weight are of one class, "
                f"{self.classes[int(present[0])]}; pass samples of two or more."
            )

    def strata(self, target):  # -> Tensor (n,)
        """Return classes."""
        return target[:, 0]

    def weights(self, target):  # -> (n,)
        """Return what samples weigh."""
        return target[:, 1]

    def loss(self, decisions, target):  # (n, n_outputs), (n, 2) -> (n,)
        """Return the weighted cross-entropy of every sample."""
        labels = target[:, 0].long()
        entropy = cross_entropy(class_decisions(decisions), labels, reduction="none")
        return target[:, 1] * entropy

    def score(self, decisions, target):  # -> float
        """Return the accuracy."""
        right = class_decisions(decisions).argmax(1) == target[:, 0]
        return float(target[right, 1].sum() / target[:, 1].sum())

    def solve(self, features, target, C):  # (n, n_features_out), (n, 2) -> Head
        """Return the head of logistic regression; classes without samples get a low intercept."""
        known = target[:, 1] > 0
        features, labels, weights = features[known], target[known, 0], target[known, 1]
        present = labels.unique().long()
        # two of more classes have two rows, opposite to one another: with w for their difference
        # the penalty is |w|^2 / 4, where that of a single row is |w|^2 / 2
        opposite = len(present) == 2 < self.n_outputs
        model = LogisticRegression(C=2 * C if opposite else C, max_iter=1000)
        head = _solve(model, features, to_numpy(labels), weights)
        if opposite:
            head = Head(*(torch.cat([-part, part]) / 2 for part in head))
        if len(head.intercept) == self.n_outputs:
            return head
        coef = head.weights.new_zeros(self.n_outputs, head.weights.shape[1])
        intercept = head.intercept.new_full((self.n_outputs,), _ABSENT)
        return Head(
            coef.index_copy(0, present, head.weights),
            intercept.index_copy(0, present, head.intercept),
        )

    def fitted(self, head):  # of codes in the units of the data -> dict
        """Return what users see."""
        return {"coef_": to_numpy(head.weights), "intercept_": to_numpy(head.intercept)}

    def head(self, coef, intercept):  # arrays -> Head of codes in the units of the data
        """Return the head that users see."""
        return Head(to_tensor(coef), to_tensor(intercept))

    def memory(self):
        """Return what a later `partial_fit` needs to know beside."""
        return {}


# ------------------------------------------------------------------ numbers


def _moments(y, weights):  # (n,), (n,) -> mean, deviation
    # of distinct values, so that neither repetitions instead of weights nor the order count
    values, which = np.unique(y[weights > 0], return_inverse=True)
    sums = np.bincount(which, weights[weights > 0])
    mean = np.average(values, weights=sums)
    return mean, np.sqrt(np.average((values - mean) ** 2, weights=sums)) or 1.0


@dataclass(frozen=True, eq=False)
class Regression:
    r"""Numbers, by least squares; a target is in deviations from the mean, in units of their own.

    So the loss is half the share of the variance that is left, averaged over outputs, and means
    the same whatever the units of ``y`` and however many numbers a sample has.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_outputs,)
        Of what is to be predicted.
    flat : bool
        Whether ``y`` has one dimension.
    """

    mean: np.ndarray
    scale: np.ndarray
    flat: bool

    @staticmethod
    def check(y, estimator):  # -> (n_samples,) or (n_samples, n_outputs)
        """Return numbers, or raise ValueError."""
        options = dict(ensure_2d=False, dtype=np.float64, input_name="y", estimator=estimator)
        return check_array(y, **options)

    @classmethod
    def of(cls, y, weights):
        """Return the task of predicting such numbers."""
        moments = [_moments(column, weights) for column in y.reshape(len(y), -1).T]
        return cls(*map(np.array, zip(*moments)), y.ndim == 1)

    @property
    def n_outputs(self):
        return len(self.mean)

    def target(self, y, weights):  # -> ndarray (n, n_outputs + 1)
        """Return numbers in their units, and weights."""
        if (y.ndim == 1, y.size // len(y)) != (self.flat, self.n_outputs):
            shape = "(n_samples,)" if self.flat else f"(n_samples, {self.n_outputs})"
            raise ValueError(f"y has the shape {y.shape}, and the first one had {shape}.")
        values = (y.reshape(len(y), -1) - self.mean) / self.scale
        return np.column_stack([values, weights])

    def check_target(self, target, name):
        """Accept any."""

    def strata(self, target):
        """Return none."""

    def weights(self, target):  # -> (n,)
        """Return what samples weigh, each of their numbers once."""
        return target[:, -1] * self.n_outputs

    def loss(self, decisions, target):  # (n, n_outputs), (n, n_outputs + 1) -> (n,)
        """Return the weighted squared error of every sample, halved."""
        return 0.5 * target[:, -1] * (decisions - target[:, :-1]).square().sum(1)

    def score(self, decisions, target):  # -> float
        """Return the share of the variance of all training samples that is not left."""
        left = self.loss(decisions, target).sum() / self.weights(target).sum()
        return 1 - 2 * float(left)

    def solve(self, features, target, C):  # (n, n_features_out), (n, n_outputs + 1) -> Head
        """Return the head of ridge regression."""
        model = Ridge(alpha=1 / C)
        return _solve(model, features, to_numpy(target[:, :-1]), target[:, -1])

    def fitted(self, head):  # of codes in the units of the data -> dict
        """Return what users see."""
        mean, scale = (to_tensor(part).to(head.weights) for part in (self.mean, self.scale))
        coef, intercept = head.weights * scale[:, None], mean + scale * head.intercept
        if self.flat:
            return {"coef_": to_numpy(coef[0]), "intercept_": float(intercept)}
        return {"coef_": to_numpy(coef), "intercept_": to_numpy(intercept)}

    def head(self, coef, intercept):  # arrays -> Head of codes in the units of the data
        """Return the head that users see."""
        coef, intercept = np.atleast_2d(coef), np.atleast_1d(intercept)
        parts = coef / self.scale[:, None], (intercept - self.mean) / self.scale
        return Head(*map(to_tensor, parts))

    def memory(self):
        """Return what a later `partial_fit` needs to know beside."""
        return {"target_mean": self.mean, "target_scale": self.scale}


def distinct(x, mask, target):  # -> the same, sorted
    """Return samples with those that are equal, of equal value, as one with the sum of weights.

    So weights mean what repetitions do, and no order of the samples counts.
    """
    kept = target[:, -1] > 0
    x, mask, target = (None if t is None else t[kept] for t in (x, mask, target))
    parts = [x, target[:, :-1]] if mask is None else [x, target[:, :-1], mask]
    rows, which = torch.unique(torch.cat(parts, dim=1), dim=0, return_inverse=True)
    x, values, *mask = (part.contiguous() for part in rows.split([p.shape[1] for p in parts], 1))
    weights = target.new_zeros(len(rows)).index_add_(0, which, target[:, -1])
    return x, mask[0] if mask else None, torch.cat([values, weights[:, None]], dim=1)


def hold_out(x, mask, target, fraction, random_state, strata=None):  # -> x, mask, target, Batch
    """Return samples without a fraction of them, and those: of each stratum in proportion.

    One of each stratum, of all where there are none, is not held out.

    Raises
    ------
    ValueError
        If there are too few.
    """
    n, n_held = len(x), ceil(len(x) * fraction)
    strata = np.zeros(n) if strata is None else to_numpy(strata)
    order = random_state.permutation(n)
    order = order[strata[order].argsort(kind="stable")]
    first = np.diff(strata[order], prepend=np.nan) != 0
    candidates = order[~first]
    if n_held > len(candidates):
        needed = "one" if first.sum() == 1 else f"one of each of {first.sum()} classes"
        raise ValueError(
            f"early_stopping=True holds out {n_held} of {n} samples that differ "
            f"(validation_fraction={fraction}), and training needs {needed}. To hold some out, "
            "pass more samples or a smaller validation_fraction; or pass early_stopping=False."
        )
    # every so many of a list that is sorted by strata, from a random place on
    places = np.arange(len(candidates) + 1) * n_held / len(candidates) + random_state.uniform()
    held = candidates[np.diff(np.floor(places)) > 0]
    train = to_tensor(np.setdiff1d(np.arange(n), held), x.device)
    rest = to_tensor(np.sort(held), x.device)
    known = (None, None) if mask is None else (mask[train], mask[rest])
    return x[train], known[0], target[train], Batch(rest, x[rest], target[rest], known[1])
