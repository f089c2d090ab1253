"""Weights of samples: how often each counts in sums over samples.

A sample of weight 2 equals the same sample twice, and a sample of weight 0 an absent sample, in any
order of samples. For this a `fit` merges equal rows in memory into one row with the sum of their
weights, and unless all rows count the same, sorts rows by their contents, so that all later draws
agree. Distinct rows of equal weight stay as they are.
"""

from dataclasses import replace
from functools import partial
from numbers import Real

import numpy as np
import torch
from sklearn.utils.validation import _check_sample_weight

from skpudle._data.arrays import host_array, split_missing, to_numpy, to_tensor, with_gaps
from skpudle.search._epoch import own
from skpudle.search.held_out import hash_rows

# Relative difference of weights that is rounding.
_SAME = {torch.float64: 1e-12, torch.float32: 1e-6}


def check_sample_weight(sample_weight, n_samples):  # -> Tensor (n_samples,), float64
    """Return the weights of samples, of this number: finite, not negative, and not all zero."""
    weight, rows = host_array(sample_weight), np.empty((n_samples, 0))
    if isinstance(weight, Real):  # a single number may be wrong, too
        weight = np.full(n_samples, weight)
    checks = dict(dtype=np.float64, ensure_non_negative=True)
    return to_tensor(_check_sample_weight(weight, rows, **checks))


def merge_copies(keys, weight=None, heights=None):  # -> rows (k,), weight (k,), places (n,)
    """Merge rows with equal keys, and drop rows without weight.

    Parameters
    ----------
    keys : Tensor of shape (n_samples,)
        Numbers that depend on the contents of rows alone; see `hash_rows`.
    weight : Tensor of shape (n_samples,), default=None
        Weights, not negative; None if all are 1.
    heights : Tensor of shape (n_samples,), default=None
        Numbers that order the rows; by default the keys.

    Returns
    -------
    rows : Tensor of shape (k,)
        Places of the first copies in the order of heights, or in their own order if all have the
        same weight.
    weight : Tensor of shape (k,)
        Sums of the weights of all copies.
    places : Tensor of shape (n_samples,)
        For each row the place of its copy among ``rows``, and -1 for a row without weight.
    """
    weight = np.ones(len(keys)) if weight is None else to_numpy(weight)
    places, known = np.full(len(keys), -1), np.flatnonzero(weight > 0)
    _, first, number = np.unique(to_numpy(keys)[known], return_index=True, return_inverse=True)
    rows, sums = known[first], np.bincount(number, weight[known])
    has_equal_weights = (sums == sums[:1]).all()
    heights = to_numpy(keys if heights is None else heights)
    order = rows.argsort() if has_equal_weights else heights[rows].argsort(kind="stable")
    rows, sums, places[known] = rows[order], sums[order], order.argsort()[number]
    return tuple(map(to_tensor, (rows, sums, places)))


def merge_samples(samples):  # -> Samples, places (n,)
    """Return distinct samples with their weights, and the place of each sample among them."""
    keys = hash_rows(samples.x, samples.mask)
    if samples.target is not None:
        # an odd factor combines the keys of data and of their targets
        keys = -0x61C8864680B583EB * keys + hash_rows(samples.target.to(samples.x.dtype))
    often = None if samples.weight is None else samples.weight.cpu().double()
    # a combination of entries: neither another unit nor rounding changes the order of rows
    generator, how = torch.Generator().manual_seed(0), dict(dtype=torch.float64, device="cpu")
    factors = torch.rand(samples.x.shape[1], generator=generator, **how)
    known = samples.x if samples.mask is None else samples.x * samples.mask
    heights = known.cpu().double() @ factors
    rows, weight, places = merge_copies(keys, often, heights)
    if len(rows) == len(samples) and samples.weight is None:
        return samples, places
    samples = replace(samples[rows.to(samples.x.device)], weight=weight.to(samples.x))
    if samples.mask is not None:  # gaps hold column means of all rows
        x, mask = split_missing(with_gaps(samples.x, samples.mask))
        samples = replace(samples, x=x, mask=mask)
    return samples, places


def scale_weights(weight, n, total=own):  # -> Tensor (n,) or None, float or None
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
