"""Samples with their targets: which are one, and which are held out.

A target is a row for each sample: what is to be decided and, in the last column, the sample's
weight (see `skpudle._learners.tasks`).
"""

from math import ceil

import numpy as np
import torch

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.batches import Batch

__all__ = ["distinct", "hold_out"]


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
