r"""Tasks: classification and regression from codes.

A task turns ``y`` into a target, with a row for each sample: its class or numbers and, in the last
column, its weight. Learners use

* ``target(y, weights)`` of a ``y`` that passed ``check(y, estimator)``; for a whole fit
  ``check_target(target, name)``, and ``strata(target)``, with shares that a split of samples keeps;
* ``n_outputs``, the number of outputs of the head;
* ``weights(target)``, the weight of each sample in the loss;
* ``loss(decisions, target)`` of each sample, and ``score(decisions, target)`` of all;
* ``solve(features, target, C)``, the best head for fixed codes;
* ``fitted(head)``, its fitted attributes, ``head(coef, intercept)``, the inverse, and ``memory()``,
  the private attributes that this needs.

The prediction minimises the loss, which has no parameter: cross-entropy for probabilities, least
squares for expectations.

Equal samples count as one (`distinct`), and `hold_out` keeps some for early stopping.
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
from skpudle._data.batches import Samples

# The intercept of a class without samples, which cross-entropy would make -infinity. Rows of
# logistic regression add up to zero, so the largest decision is at least 0, and the probability of
# the class at most exp(-30).
_ABSENT = -30.0


class Head(NamedTuple):
    """A linear map of features of codes.

    Attributes
    ----------
    weights : Tensor of shape (n_outputs, n_sides * n_components)
        Weights of features in the unit of the layout; positive sides come first.
    intercept : Tensor of shape (n_outputs,)
        Intercept of each output.
    """

    weights: Tensor
    intercept: Tensor


def check_weights(weights, name):
    """Raise ValueError unless weights are finite, non-negative and not all zero."""
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
    """Return the head of a linear model of scikit-learn, in float64."""
    rows = to_numpy(features).astype(np.float64)
    model.fit(rows, values, sample_weight=to_numpy(weights).astype(np.float64))
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    return Head(*(to_tensor(part).to(features) for part in (coef, intercept)))


# ------------------------------------------------------------------ classes


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
    class_weight : dict, "balanced" or None
        The parameter, as in scikit-learn.
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
        """Number of outputs: two classes need a single one."""
        return 1 if len(self.classes) == 2 else len(self.classes)

    def target(self, y, weights):  # -> ndarray (n, 2)
        """Return the indices of labels, and weights of samples times weights of their classes."""
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
        if unknown and unnamed:  # scikit-learn allows unknown labels only if all classes are named
            raise ValueError(
                f"class_weight has weights for {unknown!r:.80}, none of the classes "
                f"{classes!r:.80}. Pass weights by labels as they are in y."
            )
        return np.array([given.get(c, 1.0) for c in classes], float)

    def check_target(self, target, name):
        """Raise ValueError if there are fewer than two classes."""
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
        """Return the weights of samples."""
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
        # Two present classes of several have opposite rows: with w for their difference the penalty
        # is |w|^2 / 4, instead of |w|^2 / 2 for a single row.
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
        """Return the fitted attributes."""
        return {"coef_": to_numpy(head.weights), "intercept_": to_numpy(head.intercept)}

    def head(self, coef, intercept):  # arrays -> Head of codes in the units of the data
        """Return the head of fitted attributes."""
        return Head(to_tensor(coef), to_tensor(intercept))

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        return {}


# ------------------------------------------------------------------ numbers


def _moments(y, weights):  # (n,), (n,) -> mean, deviation
    # by distinct values: neither repetitions instead of weights nor the order of samples matter
    values, which = np.unique(y[weights > 0], return_inverse=True)
    sums = np.bincount(which, weights[weights > 0])
    mean = np.average(values, weights=sums)
    return mean, np.sqrt(np.average((values - mean) ** 2, weights=sums)) or 1.0


@dataclass(frozen=True, eq=False)
class Regression:
    r"""Regression, by least squares; a target is centred and divided by its standard deviation.

    The loss is half the unexplained share of the variance, averaged over outputs. It is independent
    of the units of ``y`` and of the number of outputs.

    Parameters
    ----------
    mean, scale : ndarray of shape (n_outputs,)
        Mean and standard deviation of ``y``.
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
        try:
            return check_array(y, **options)
        except ValueError as error:
            if "could not convert string" not in str(error):
                raise
            raise ValueError(
                f"y holds texts, such as {str(np.ravel(y)[0])!r:.50}, and a regressor predicts "
                "numbers. Pass numbers, or learn classes by PUDLEClassifier."
            ) from error

    @classmethod
    def of(cls, y, weights):
        """Return the task of predicting these numbers."""
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
        """Accept any target."""

    def strata(self, target):
        """Return None: a regression has no strata."""

    def weights(self, target):  # -> (n,)
        """Return the weights of samples, summed over their outputs."""
        return target[:, -1] * self.n_outputs

    def loss(self, decisions, target):  # (n, n_outputs), (n, n_outputs + 1) -> (n,)
        """Return the weighted squared error of every sample, halved."""
        return 0.5 * target[:, -1] * (decisions - target[:, :-1]).square().sum(1)

    def score(self, decisions, target):  # -> float
        """Return the explained share of the variance of all training samples."""
        left = self.loss(decisions, target).sum() / self.weights(target).sum()
        return 1 - 2 * float(left)

    def solve(self, features, target, C):  # (n, n_features_out), (n, n_outputs + 1) -> Head
        """Return the head of ridge regression."""
        model = Ridge(alpha=1 / C)
        return _solve(model, features, to_numpy(target[:, :-1]), target[:, -1])

    def fitted(self, head):  # of codes in the units of the data -> dict
        """Return the fitted attributes."""
        mean, scale = (to_tensor(part).to(head.weights) for part in (self.mean, self.scale))
        coef, intercept = head.weights * scale[:, None], mean + scale * head.intercept
        if self.flat:
            return {"coef_": to_numpy(coef[0]), "intercept_": float(intercept)}
        return {"coef_": to_numpy(coef), "intercept_": to_numpy(intercept)}

    def head(self, coef, intercept):  # arrays -> Head of codes in the units of the data
        """Return the head of fitted attributes."""
        coef, intercept = np.atleast_2d(coef), np.atleast_1d(intercept)
        parts = coef / self.scale[:, None], (intercept - self.mean) / self.scale
        return Head(*map(to_tensor, parts))

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        return {"target_mean": self.mean, "target_scale": self.scale}


def distinct(samples):  # -> Samples, sorted
    """Merge equal samples of equal value into one, with the sum of their weights.

    Weights then mean the same as repetitions, and the order of the samples does not matter.
    """
    samples = samples[samples.target[:, -1] > 0]
    x, mask, target = samples.x, samples.mask, samples.target
    parts = [x, target[:, :-1]] if mask is None else [x, target[:, :-1], mask]
    rows, which = torch.unique(torch.cat(parts, dim=1), dim=0, return_inverse=True)
    x, values, *mask = (part.contiguous() for part in rows.split([p.shape[1] for p in parts], 1))
    weights = target.new_zeros(len(rows)).index_add_(0, which, target[:, -1])
    target = torch.cat([values, weights[:, None]], dim=1)
    return Samples(x, mask[0] if mask else None, target=target, weight=weights)


def hold_out(samples, fraction, random_state, strata=None):  # -> Samples, Samples
    """Split samples: return all but a fraction, and the fraction, of each stratum in proportion.

    At least one sample of each stratum (of all samples without strata) is not held out.

    Raises
    ------
    ValueError
        If there are too few samples.
    """
    n, n_held = len(samples), ceil(len(samples) * fraction)
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
    # take every k-th of the list sorted by strata, from a random start
    places = np.arange(len(candidates) + 1) * n_held / len(candidates) + random_state.uniform()
    held = candidates[np.diff(np.floor(places)) > 0]
    parts = np.setdiff1d(np.arange(n), held), np.sort(held)
    train, rest = (samples[to_tensor(part, samples.x.device)] for part in parts)
    return train, rest
