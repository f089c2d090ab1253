"""What decisions are for: one of several classes, or numbers.

A task knows its targets, its loss, and the linear model of scikit-learn that a head starts as. The
units of its targets and decisions are ``scale`` and ``mean``; fitted weights are in those of ``y``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import LabelEncoder
from torch.nn.functional import cross_entropy


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
