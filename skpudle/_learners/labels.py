"""Labels of samples as what a task is trained on: classes, weights, and what is held out."""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, _check_y, check_consistent_length

from skpudle._data.arrays import host_array, to_numpy, to_tensor
from skpudle._data.batches import Batch

__all__ = ["distinct", "hold_out", "targets_of"]


def _weights_of(class_weight, classes, labels, weights):  # -> (n_classes,)
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, dict):
        return np.array([class_weight.get(name, 1.0) for name in classes.tolist()], float)
    totals = np.bincount(labels, weights, minlength=len(classes))
    present = totals > 0
    return totals.sum() / present.sum() / np.where(present, totals, 1)


def targets_of(y, x, *, classes, class_weight, sample_weight, estimator):
    """Return the classes, and the weight of each sample in the column of its class.

    Parameters
    ----------
    y : array-like or Tensor of shape (n_samples,)
        Labels.
    x : Tensor of shape (n_samples, n_features)
        Samples.
    classes : ndarray or None
        All classes, sorted; None: those in ``y``.
    class_weight : dict, "balanced" or None
        As in scikit-learn.
    sample_weight : array-like of shape (n_samples,) or None
        Not negative.
    estimator : object
        Named in error messages.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted.
    target : Tensor of shape (n_samples, n_classes)
        Of the dtype and on the device of ``x``.
    """
    y = _check_y(host_array(y), estimator=estimator)
    check_classification_targets(y)
    check_consistent_length(x, y)
    present = np.unique(y)
    classes = present if classes is None else classes
    unknown = np.setdiff1d(present, classes)
    if len(unknown):
        raise ValueError(f"y contains {unknown!r:.80}, which is not in classes={classes!r:.80}.")
    weights = _check_sample_weight(host_array(sample_weight), y, ensure_non_negative=True)
    labels = np.searchsorted(classes, y)
    target = np.zeros((len(y), len(classes)))
    target[np.arange(len(y)), labels] = weights
    target *= _weights_of(class_weight, classes, labels, weights)
    return classes, to_tensor(target, x.device).to(x.dtype)


def distinct(x, mask, target):  # -> the same, sorted
    """Return samples with those that are equal, of equal class, as one with the sum of weights.

    So weights mean what repetitions do, and no order of the samples counts.
    """
    kept = target.sum(1) > 0
    x, mask, target = (None if t is None else t[kept] for t in (x, mask, target))
    label = target.argmax(1, keepdim=True).to(x)
    rows = torch.cat([x, label] if mask is None else [x, label, mask], dim=1)
    rows, which = torch.unique(rows, dim=0, return_inverse=True)
    summed = target.new_zeros(len(rows), target.shape[1]).index_add_(0, which, target)
    n_features = x.shape[1]
    mask = None if mask is None else rows[:, n_features + 1 :].contiguous()
    return rows[:, :n_features].contiguous(), mask, summed


def hold_out(x, mask, target, fraction, random_state):  # -> x, mask, target, Batch
    """Return samples without a fraction of each class, and those."""
    parts = train_test_split(
        np.arange(len(x)),
        test_size=fraction,
        stratify=to_numpy(target.argmax(1)),
        random_state=random_state,
    )
    train, rest = (to_tensor(np.sort(part), x.device) for part in parts)
    known = (None, None) if mask is None else (mask[train], mask[rest])
    return x[train], known[0], target[train], Batch(rest, x[rest], target[rest], known[1])
