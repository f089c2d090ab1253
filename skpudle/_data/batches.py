"""Samples in memory, how often each counts, and batches of samples for training.

A source of samples has a number of samples ``n_samples``, and ``blocks(n_rows, generator)``, which
yields all samples once, some at a time, in a random order if there is a generator.

A fit to a sample of weight 2 equals a fit to the same sample twice, and a sample of weight 0 equals
an absent sample, in any order of samples. For this a `fit` merges equal rows in memory into one row
with the sum of their weights. Unless all rows then have one weight, it also sorts rows by their
contents, so that random draws of rows are the same in both fits. Distinct rows of equal weight stay
in their order.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from skpudle._data.arrays import host_array, split_missing, to_numpy, to_tensor, with_gaps
from skpudle.search._epoch import own
from skpudle.search.held_out import hash_rows

# Weights whose relative difference is at most this count as equal: it is rounding.
_SAME = {torch.float64: 1e-12, torch.float32: 1e-6}


def send(tensor, device):
    """Return a tensor on a device. The host does not wait until a GPU has its copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Batches:
    """Samples for training, batch by batch.

    Parameters
    ----------
    source : source of samples
        All samples, see the module's docstring.
    batch_size : int, default=1
        Number of samples in a batch; the last batch of an epoch may be smaller.
    generator : torch.Generator, default=None
        Draws a new order for every epoch; by default samples come in their own order.
    """

    def __init__(self, source, batch_size=1, generator=None):
        self.source = source
        self.generator = getattr(source, "generator", generator)  # a loader shuffles by its own
        self.batch_size = min(batch_size, source.n_samples or batch_size)

    @property
    def n_batches(self):
        """The number of batches of an epoch, None before a stream has been read to its end."""
        n_samples = self.source.n_samples
        return n_samples and -(-n_samples // self.batch_size)

    def batches(self):
        """Return an iterator over the batches of an epoch, which are `Samples`."""
        return self.source.blocks(self.batch_size, self.generator)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with their masks, targets and weights; ``samples[rows]`` selects rows of all four.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    mask : Tensor of the shape of ``x``, default=None
        1 where data are known, 0 where they are missing.
    target : Tensor of shape (n_samples, ...), default=None
        What a learner knows of each sample beside its features, such as a label or an exposure.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in sums over samples; None is once. In a `fit` the mean of the
        weights is 1.
    """

    x: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self):
        return len(self.x)

    n_samples = property(__len__)

    def map(self, function):
        """Return the samples with all tensors changed by a function."""
        parts = vars(self).values()
        return Samples(*(None if part is None else function(part) for part in parts))

    @property
    def known(self):
        """A mask of 1 for known entries and 0 for missing ones, also if no entry is missing."""
        return self.x.new_ones(()).expand_as(self.x) if self.mask is None else self.mask

    @property
    def total_weight(self):
        """The sum of weights; the number of samples if they have no weights."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

    def weigh(self, values):  # (n_samples, ...) -> the same
        """Return values times the weights of their samples."""
        if self.weight is None:
            return values
        return values * self.weight.to(values).view(-1, *[1] * (values.ndim - 1))

    def __getitem__(self, rows):
        return self.map(lambda part: part[rows])

    def after(self, earlier):  # -> Samples
        """Return the samples ``earlier``, followed by these, on the device of these."""
        both, target, weight = (earlier.to(self.x.device), self), None, None
        x, mask = split_missing(torch.cat([with_gaps(one.x, one.mask) for one in both]))
        if self.target is not None:
            target = torch.cat([one.target for one in both])
        if any(one.weight is not None for one in both):
            weight = torch.cat([one.weigh(one.x.new_ones(len(one))) for one in both])
        return Samples(x, mask, target, weight)

    def of_features(self, features):
        """Return the samples with some of their features; ``features`` are their numbers."""
        mask = None if self.mask is None else self.mask[:, features]
        return replace(self, x=self.x[:, features], mask=mask)

    def in_units(self, units):
        """Return the samples in units, see `skpudle.search.units`; outliers become missing."""
        if units.changes_nothing:
            return self
        x, mask, _ = units.enter(self.x, self.mask)
        return replace(self, x=x, mask=mask)

    def to(self, *place):
        """Return the samples in another dtype or on another device."""
        return self.map(lambda part: part.to(*place))

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in random order if there is a generator."""
        order = torch.arange(len(self), device="cpu")
        if generator is not None and n_rows < len(self):
            order = torch.randperm(len(self), generator=generator, device="cpu")
        for rows in send(order, self.x.device).split(n_rows):
            yield self.map(lambda part, rows=rows: part.index_select(0, rows))


# ------------------------------------------------------------------ weights


def check_sample_weight(sample_weight, n_samples):  # -> Tensor (n_samples,), float64
    """Return the user's weights; raise ValueError unless they are valid for ``n_samples``.

    Valid weights are finite, not negative, and not all zero.
    """
    weight, rows = host_array(sample_weight), np.empty((n_samples, 0))
    checks = dict(dtype=np.float64, ensure_non_negative=True)
    return to_tensor(_check_sample_weight(weight, rows, **checks))


def merge_copies(keys, weight, heights=None):  # -> rows (k,), weight (k,), places (n,)
    """Merge rows with equal keys, and drop rows without weight.

    Parameters
    ----------
    keys : Tensor of shape (n_samples,)
        Numbers that depend on the contents of rows alone; see `hash_rows`.
    weight : Tensor of shape (n_samples,)
        Weights, not negative.
    heights : Tensor of shape (n_samples,), default=None
        Numbers that order the rows; by default the keys.

    Returns
    -------
    rows : Tensor of shape (k,)
        Index of the first copy of each distinct row. They are in the order of heights, or in
        increasing order if all distinct rows have the same weight.
    weight : Tensor of shape (k,)
        For each distinct row the sum of the weights of its copies.
    places : Tensor of shape (n_samples,)
        For each row the index into ``rows`` of its copy, and -1 for a row without weight.
    """
    weight, places = to_numpy(weight), np.full(len(keys), -1)
    known = np.flatnonzero(weight > 0)
    _, first, number = np.unique(to_numpy(keys)[known], return_index=True, return_inverse=True)
    rows, sums = known[first], np.bincount(number, weight[known])
    has_equal_weights = (sums == sums[:1]).all()
    heights = to_numpy(keys if heights is None else heights)
    order = rows.argsort() if has_equal_weights else heights[rows].argsort(kind="stable")
    rows, sums, places[known] = rows[order], sums[order], order.argsort()[number]
    return tuple(map(to_tensor, (rows, sums, places)))


def merge_samples(samples):  # -> Samples, places (n,)
    """Merge equal samples; return distinct samples, and for each sample the index of its copy.

    Samples are equal if data, gaps and targets are equal.
    """
    keys = hash_rows(samples.x, samples.mask)
    if samples.target is not None:
        # Combine the keys of data and of targets: multiplying by an odd number loses no bits.
        keys = -0x61C8864680B583EB * keys + hash_rows(samples.target.to(samples.x.dtype))
    often = samples.weigh(samples.x.new_ones(len(samples))).cpu().double()
    # Rows are ordered by a linear combination of their entries, whose factors are not rational.
    # Neither a change of the data's unit nor rounding changes this order.
    x = samples.x if samples.mask is None else samples.x * samples.mask
    factors = torch.arange(2, 2 + x.shape[1], dtype=torch.float64, device="cpu").sqrt()
    heights = x.cpu().double() @ factors
    rows, weight, places = merge_copies(keys, often, heights)
    if len(rows) == len(samples) and samples.weight is None:
        return samples, places
    samples = replace(samples[rows.to(samples.x.device)], weight=weight.to(samples.x))
    if samples.mask is not None:  # gaps held column means of all rows, copies included
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
        ``total(*tensors)`` returns the sums of tensors over all processes that train together, each
        on its own samples.

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
    """Return the samples of positive weight, without weights if all of these are 1."""
    if samples.weight is None:
        return samples
    samples = samples[samples.weight > 0]
    return replace(samples, weight=None) if bool((samples.weight == 1).all()) else samples
