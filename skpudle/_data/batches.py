"""Hold samples with their masks, targets and weights, and cut them into batches for training.

A *source of samples* is an object with the number ``n_samples``, and a method ``blocks(n_rows,
generator)``. The method yields all samples once as `Samples`, ``n_rows`` at a time, in a random
order if there is a generator. Sources are `Samples`, and `Table` and `Stream` of
`skpudle._data.sources`.

A fit to a sample of weight 2 equals a fit to the same sample twice, and a sample of weight 0 equals
an absent sample, in any order of samples. For this a `fit` merges equal rows in memory into one row
with the sum of their weights. If the distinct rows then have different weights, the fit also sorts
them by their contents, so that random draws of rows are the same in both fits. Otherwise distinct
rows stay in their order.
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

# Weights whose relative difference is at most this count as equal, since rounding explains it.
_SAME = {torch.float64: 1e-12, torch.float32: 1e-6}


def send(tensor, device):
    """Copy a tensor of any shape to a device, without waiting until a GPU has its copy.

    Such a copy is possible only from pinned memory of the host.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Batches:
    """The batches of every epoch of training by gradients, in a new random order for each epoch.

    Parameters
    ----------
    source : Samples, Table or Stream
        All samples; any source of samples, see the module.
    batch_size : int, default=1
        Number of samples in a batch; the last batch of an epoch may be smaller.
    generator : torch.Generator, default=None
        Draws the orders; by default samples come in their own order. The generator of a stream's
        own loader takes precedence.
    """

    def __init__(self, source, batch_size=1, generator=None):
        self.source = source
        # A DataLoader shuffles by its own generator. Checkpoints save the state of ``generator``.
        self.generator = getattr(source, "generator", generator)
        self.batch_size = min(batch_size, source.n_samples or batch_size)

    @property
    def n_batches(self):
        """The number of batches of an epoch; None for a stream that has not been read before."""
        n_samples = self.source.n_samples
        return n_samples and -(-n_samples // self.batch_size)

    def batches(self):
        """Return an iterator over the batches of an epoch, which are `Samples`."""
        return self.source.blocks(self.batch_size, self.generator)


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows, images or signals in memory, with all that belongs to each of them.

    ``samples[rows]`` selects rows of all four tensors. ``x`` may share the memory of the user's
    data, so no code may change it in place.

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
        """Return samples with a function applied to each tensor: data, mask, target and weight."""
        parts = vars(self).values()
        return Samples(*(None if part is None else function(part) for part in parts))

    @property
    def known(self):
        """The mask, of the shape of ``x``; a mask of ones if no entry is missing."""
        return self.x.new_ones(()).expand_as(self.x) if self.mask is None else self.mask

    @property
    def total_weight(self):
        """The sum of weights; the number of samples if they have no weights."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

    def weigh(self, values):  # (n_samples, ...) -> the same
        """Return values of samples, such as losses, times the weights of the samples."""
        if self.weight is None:
            return values
        return values * self.weight.to(values).view(-1, *[1] * (values.ndim - 1))

    def __getitem__(self, rows):
        return self.map(lambda part: part[rows])

    def after(self, earlier):  # -> Samples
        """Concatenate the samples ``earlier`` and these samples, on the device of these samples.

        Missing entries hold the column means of all rows afterwards. If only one of both has
        weights, samples of the other have weight 1. Either both have targets or neither.
        """
        both, target, weight = (earlier.to(self.x.device), self), None, None
        x, mask = split_missing(torch.cat([with_gaps(one.x, one.mask) for one in both]))
        if self.target is not None:
            target = torch.cat([one.target for one in both])
        if any(one.weight is not None for one in both):
            weight = torch.cat([one.weigh(one.x.new_ones(len(one))) for one in both])
        return Samples(x, mask, target, weight)

    def of_features(self, features):
        """Return rows with some of their features, chosen by the indices ``features``, (k,)."""
        mask = None if self.mask is None else self.mask[:, features]
        return replace(self, x=self.x[:, features], mask=mask)

    def in_units(self, units):
        """Return rows less their baseline, divided by their noise; outliers become missing entries.

        ``units`` are units that a fit has learned, see `skpudle.search.units`.
        """
        if units.changes_nothing:
            return self
        x, mask, _ = units.enter(self.x, self.mask)
        return replace(self, x=x, mask=mask)

    def to(self, *place):  # -> Samples
        """Return the samples in another dtype or on another device: `Tensor.to` of all tensors."""
        return self.map(lambda part: part.to(*place))

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in random order if there is a generator.

        If all samples fit into one block, they come in their order, and nothing is drawn.
        """
        order = torch.arange(len(self), device="cpu")
        if generator is not None and n_rows < len(self):
            order = torch.randperm(len(self), generator=generator, device="cpu")
        for rows in send(order, self.x.device).split(n_rows):
            yield self.map(lambda part, rows=rows: part.index_select(0, rows))


# ------------------------------------------------------------------ weights


def check_sample_weight(sample_weight, n_samples):  # -> Tensor (n_samples,), float64
    """Check and convert the user's ``sample_weight``, array-like of shape (n_samples,) or a number.

    Raises
    ------
    ValueError
        If the shape is another one, or weights are negative, not finite, or all zero.
    """
    weight, rows = host_array(sample_weight), np.empty((n_samples, 0))
    checks = dict(dtype=np.float64, ensure_non_negative=True)
    return to_tensor(_check_sample_weight(weight, rows, **checks))


def merge_copies(keys, weight, heights=None):  # -> rows (k,), weight (k,), places (n,)
    """Merge rows with equal keys, and drop rows of weight 0, so that weights equal repeated rows.

    The order of the result must not depend on how often a row is repeated: a fit draws random rows
    by their index, see the module.

    Parameters
    ----------
    keys : Tensor of shape (n_samples,)
        Numbers that depend on the contents of rows alone; see `hash_rows`.
    weight : Tensor of shape (n_samples,)
        Weights, not negative.
    heights : Tensor of shape (n_samples,), default=None
        Numbers that distinct rows are sorted by if their weights differ; by default the keys.

    Returns
    -------
    rows : Tensor of shape (k,)
        Index of the first copy of each distinct row. The indices are in the order of heights, or in
        increasing order if all distinct rows have the same weight.
    weight : Tensor of shape (k,)
        For each distinct row the sum of the weights of its copies.
    places : Tensor of shape (n_samples,)
        For each row the index into ``rows`` of the distinct row that equals it, and -1 for a row of
        weight 0.
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
    """Merge equal samples into one sample with the sum of their weights, for a fit in memory.

    Samples are equal if their known entries, their missing entries and their targets are equal.

    Returns
    -------
    samples : Samples
        Distinct samples with a weight above 0, in the order of `merge_copies`.
    places : Tensor of shape (n_samples,)
        For each given sample the index of its distinct sample, and -1 for a sample of weight 0.
    """
    keys = hash_rows(samples.x, samples.mask)
    if samples.target is not None:
        # Equal data with different targets must not merge, so keys of targets are added. An odd
        # factor keeps all bits of the keys of data.
        keys = -0x61C8864680B583EB * keys + hash_rows(samples.target.to(samples.x.dtype))
    often = samples.weigh(samples.x.new_ones(len(samples))).cpu().double()
    # A change of the data's unit must not change the order, so rows are sorted by a linear
    # combination of their entries and not by their keys. The factors are roots of 2, 3, 4 and so
    # on: sums of different rows are seldom equal, also where entries are integers.
    x = samples.x if samples.mask is None else samples.x * samples.mask
    factors = torch.arange(2, 2 + x.shape[1], dtype=torch.float64, device="cpu").sqrt()
    heights = x.cpu().double() @ factors
    rows, weight, places = merge_copies(keys, often, heights)
    if len(rows) == len(samples) and samples.weight is None:
        return samples, places
    samples = replace(samples[rows.to(samples.x.device)], weight=weight.to(samples.x))
    # Missing entries held column means of all rows. Means of the distinct rows do not depend on the
    # number of copies.
    if samples.mask is not None:
        x, mask = split_missing(with_gaps(samples.x, samples.mask))
        samples = replace(samples, x=x, mask=mask)
    return samples, places


def scale_weights(weight, n, total=own):  # -> Tensor (n,) or None, float or None
    """Divide weights of samples by their mean, so that a fit does not depend on their unit.

    Parameters
    ----------
    weight : Tensor of shape (n,) or None
        Weights; None if all are 1.
    n : int
        Number of samples of this process.
    total : callable, default=own
        ``total(*tensors)`` returns the sums of tensors over all processes that train together, each
        on its own samples.

    Returns
    -------
    weight : Tensor of shape (n,) or None
        Weights of mean 1 over all processes; None if all are equal up to rounding.
    mean : float or None
        The mean that the weights were divided by; None if no process has weights.
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
    """Drop samples of weight 0, which count as absent, and drop the weights if all are then 1."""
    if samples.weight is None:
        return samples
    samples = samples[samples.weight > 0]
    return replace(samples, weight=None) if bool((samples.weight == 1).all()) else samples
