"""Samples with their targets: which are one, and which are held out.

A target is a row for each sample: what is to be decided and, in the last column, the sample's
weight (see `skpudle._learners.tasks`).
"""

import numpy as np
import torch
from sklearn.model_selection import train_test_split

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


def hold_out(x, mask, target, fraction, random_state, strata):  # -> x, mask, target, Batch
    """Return samples without a fraction of them, of each of the strata if there are, and those."""
    parts = train_test_split(
        np.arange(len(x)),
        test_size=fraction,
        stratify=None if strata is None else to_numpy(strata),
        random_state=random_state,
    )
    train, rest = (to_tensor(np.sort(part), x.device) for part in parts)
    known = (None, None) if mask is None else (mask[train], mask[rest])
    return x[train], known[0], target[train], Batch(rest, x[rest], target[rest], known[1])
