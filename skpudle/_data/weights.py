"""Weights of samples: how often each counts in sums over samples.

A sample of weight 2 equals the same sample twice, and a sample of weight 0 an absent sample, to the
bit and in any order of samples. For this a `fit` merges equal rows in memory into one row with the
sum of their weights, and unless all rows count the same, sorts rows by their contents, so that all
later draws agree. Distinct rows of equal weight stay as they are.
"""

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.validation import _check_sample_weight

from skpudle._data.arrays import host_array, split_missing, to_numpy, to_tensor, with_gaps
from skpudle.search._epoch import own
from skpudle.search.held_out import hash_rows

# An odd factor of 64 bits, which combines the keys of data and of their targets.
_FACTOR = -0x61C8864680B583EB
# Relative difference of weights that is rounding.
_SAME = {torch.float64: 1e-12, torch.float32: 1e-6}
# Entries of a sparse array that are dense at a time.
_NUMBERS_AT_A_TIME = 2**20


def check_sample_weight(sample_weight, n_samples):  # -> Tensor (n_samples,), float64
    """Check the weights of samples, of this number.

    Raises
    ------
    ValueError
        If they are not one finite number for each row that is not negative, or if all are zero.
    """
    rows = np.empty((n_samples, 0))
    weight = _check_sample_weight(host_array(sample_weight), rows, ensure_non_negative=True)
    if not (np.isfinite(weight).all() and (weight > 0).any()):  # a single number may be wrong, too
        raise ValueError(
            f"sample_weight={sample_weight!r:.50} has no finite weight above zero. Pass one number "
            "for each row, how often it counts."
        )
    return to_tensor(weight.astype(np.float64))


def merge_copies(keys, weight=None, heights=None):  # -> rows (k,), weight (k,), places (n,)
    """Merge rows with equal keys, and drop rows without weight.

    Parameters
    ----------
    keys : Tensor of shape (n_samples,)
        Numbers that depend on the contents of rows alone; see `hash_rows`.
    weight : Tensor of shape (n_samples,), default=None
        Weights, not negative; None if all are 1.
    heights : Tensor of shape (n_samples,), default=None
        Numbers that order the rows; see `_project`. By default they have the order of their keys.

    Returns
    -------
    rows : Tensor of shape (k,)
        Places of the first copies in order, or in their own order if all have the same weight.
    weight : Tensor of shape (k,)
        Sums of the weights of all copies.
    places : Tensor of shape (n_samples,)
        For each row the place of its copy among ``rows``, and -1 for a row without weight.
    """
    n = len(keys)
    weight = torch.ones(n, dtype=torch.float64, device="cpu") if weight is None else weight
    (known,) = (weight > 0).nonzero(as_tuple=True)
    values, number = keys[known].unique(return_inverse=True)
    sums = weight.new_zeros(len(values)).index_add_(0, number, weight[known])
    rows = torch.full_like(values, n).scatter_reduce(0, number, known, "amin")
    order = None
    if bool((sums == sums[:1]).all()):
        order = rows.argsort()
    elif heights is not None:
        order = heights[rows].argsort(stable=True)
    if order is not None:
        rows, sums, number = rows[order], sums[order], order.argsort()[number]
    places = torch.full((n,), -1, device="cpu")
    places[known] = number
    return rows, sums, places


def _project(x, mask=None):  # (n, n_features) -> (n,)
    """Return combinations of the known entries, whose order no change of units or offset changes.

    (So scaled data, or data clipped from 0 and 1 to 0.01 and 0.99, keep their order.)
    """
    generator, sums = torch.Generator().manual_seed(0), []
    factors = torch.rand(x.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    size = max(1, _NUMBERS_AT_A_TIME // max(x.shape[1], 1))
    for start in range(0, len(x), size):
        part = x[start : start + size].cpu().double()
        part = part if mask is None else part * mask[start : start + size].cpu()
        sums.append((part * factors).sum(1))
    return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64, device="cpu")


def merge_samples(samples):  # -> Samples, places (n,)
    """Return distinct samples with their weights, and the place of each sample among them."""
    keys = hash_rows(samples.x, samples.mask)
    for part in (samples.offset, samples.target):
        if part is not None:
            keys = _FACTOR * keys + hash_rows(part.to(samples.x.dtype))
    often = None if samples.weight is None else samples.weight.cpu().double()
    rows, weight, places = merge_copies(keys, often, _project(samples.x, samples.mask))
    if len(rows) == len(samples) and samples.weight is None:
        return samples, places
    samples = replace(samples[rows.to(samples.x.device)], weight=weight.to(samples.x))
    if samples.mask is not None:  # gaps hold column means of all rows
        x, mask = split_missing(with_gaps(samples.x, samples.mask))
        samples = replace(samples, x=x, mask=mask)
    return samples, places


def _dense_parts(X):  # array-like or sparse array (n_samples, ...), yields tensors
    X = sparse.csr_array(X) if sparse.issparse(X) else np.asarray(X)
    dtype = X.dtype if X.dtype == np.float32 else np.float64
    size = max(1, _NUMBERS_AT_A_TIME // max(prod(X.shape[1:]), 1))
    for first in range(0, X.shape[0], size):
        part = X[first : first + size]
        part = part.toarray() if sparse.issparse(part) else part
        yield to_tensor(part.astype(dtype))


def hash_array(X):  # array-like or sparse array (n_samples, ...) -> (n_samples,), see `hash_rows`
    """Return a number for each row that depends on its contents alone."""
    return torch.cat(list(map(hash_rows, _dense_parts(X))))


def merge_sparse(X, exposure=None, weight=None):  # -> the same, of rows that differ
    """Merge the rows of a sparse array, see `merge_copies`.

    Parameters
    ----------
    X : csr_array of shape (n_samples, n_features)
        Data.
    exposure : array-like of shape (n_samples,), default=None
        Exposures; rows of other exposures differ.
    weight : Tensor of shape (n_samples,), default=None
        Weights.
    """
    if X.dtype.kind not in "iufb" or not X.shape[0]:  # the reader refuses it
        return X, exposure, weight
    keys = hash_array(X)
    if exposure is not None:
        exposure = np.asarray(host_array(exposure), dtype=np.float64)
        keys = _FACTOR * keys + hash_rows(to_tensor(exposure)[:, None])
    heights = torch.cat(list(map(_project, _dense_parts(X))))
    rows, sums, _ = merge_copies(keys, weight, heights)
    if len(rows) == X.shape[0] and weight is None:
        return X, exposure, None
    rows = to_numpy(rows)
    return X[rows], None if exposure is None else exposure[rows], sums


def scale_weights(
    weight, n, total=own
):  # -> Tensor (n,) or None, mean of the given weights or None
    """Divide weights by their mean.

    Parameters
    ----------
    weight : Tensor of shape (n,) or None
        Weights; None if all are 1.
    n : int
        Number of samples.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over processes that have other samples.

    Returns
    -------
    weight : Tensor of shape (n,) or None
        Weights of mean 1; None if all are equal.
    mean : float or None
        The divisor; None without weights.
    """
    number = partial(torch.tensor, dtype=torch.float64, device="cpu")
    if not any(total(number(float(weight is not None)))):
        return None, None
    weight = torch.ones(n, dtype=torch.float64, device="cpu") if weight is None else weight
    sums = [float(weight.double().sum()), float(n)]
    of_all, n = total(number(sums))[0].tolist()
    weight = weight * (n / of_all)
    (differ,) = total(((weight - 1).abs() > _SAME[weight.dtype]).any().cpu().double())
    return weight if differ else None, of_all / n


def known_samples(samples):  # -> Samples
    """Return the samples whose weight is not zero, without weights if all count once."""
    if samples.weight is None:
        return samples
    samples = samples[samples.weight > 0]
    return replace(samples, weight=None) if bool((samples.weight == 1).all()) else samples
