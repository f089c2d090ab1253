"""Samples, and sources of batches of them in memory or elsewhere.

A source has a ``generator`` (or None) and two methods: ``batches()`` draws the order of an epoch
and returns an iterator over its batches, and ``samples(keys)`` returns samples by the keys of their
batches, with NaN for missing entries. ``n_batches`` is the number of batches of an epoch, None if
it is unknown before the end.

If samples have numbers, the source is an `Indexed`, which reads samples by their numbers.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from skpudle._data.arrays import with_gaps

# Most batches to count; with more, as for 25 million rows, users have to state the number.
_MOST_BATCHES = 100_000


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with their masks, weights and what belongs to them; ``samples[rows]`` selects some.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    mask : Tensor of the shape of ``x``, default=None
        1 where data are known, 0 where they are missing.
    target : Tensor of shape (n_samples, ...), default=None
        What a learner knows of each sample beside its numbers, such as the response to learn.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in sums over samples; None is once. Their mean is 1 in a `fit`.
    keys : Tensor of shape (n_samples, ...), default=None
        Keys of the samples of a batch, by which ``source.samples`` finds them.
    """

    x: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None
    keys: Tensor | None = None

    def __len__(self):
        return len(self.x)

    def map(self, function, keys=None):
        """Return the samples with all tensors but the keys changed by a function."""
        parts = self.x, self.mask, self.target, self.weight
        return Samples(*(None if part is None else function(part) for part in parts), keys)

    @property
    def total_weight(self):
        """The sum of weights, the number of samples that all count once."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

    def weigh(self, values):  # (n_samples, ...) -> the same
        """Return values times the weights of their samples."""
        if self.weight is None:
            return values
        return values * self.weight.to(values).view(-1, *[1] * (values.ndim - 1))

    def __getitem__(self, rows):
        return self.map(lambda part: part[rows])

    def of_features(self, features):
        """Return the samples with some of their features."""
        mask = None if self.mask is None else self.mask[:, features]
        return replace(self, x=self.x[:, features], mask=mask)

    def to(self, *place):
        """Return the samples in another dtype or on another device."""
        return self.map(lambda part: part.to(*place))


class Indexed:
    """Numbered samples, batch by batch.

    A subclass has a length, ``samples``, and ``read(parts)``. ``read`` yields `Samples` for each
    part, a tensor (n,) of numbers of samples on the CPU.

    Parameters
    ----------
    batch_size : int
        Number of samples in a batch; the last one of an epoch may be smaller.
    generator : torch.Generator, default=None
        Random numbers.
    shuffle : bool, default=True
        Whether to draw a new order for every epoch.
    """

    n_judged = 1  # samples whose mean objective decides if training has stalled

    def __init__(self, batch_size=1, generator=None, *, shuffle=True):
        self.batch_size, self.generator, self.shuffle = batch_size, generator, shuffle

    def for_training(self, batch_size, generator, *, shuffle):
        """Return the same samples in batches of this size, shuffled or in their own order."""
        source = copy(self)
        source.batch_size = min(batch_size, len(self))
        source.generator = generator if shuffle else None
        return source

    @property
    def n_batches(self):
        return -(-len(self) // self.batch_size)

    def _order(self):  # -> (n_samples,), on the CPU
        """Draw the order of the samples in an epoch."""
        if self.generator is None or not self.shuffle or self.batch_size >= len(self):
            return torch.arange(len(self), device="cpu")
        return torch.randperm(len(self), generator=self.generator, device="cpu")

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        return self.read(self._order().split(self.batch_size))

    def blocks(self, n_rows, generator):
        """Yield all samples once, some rows at a time, in a random order."""
        return self.for_training(n_rows, generator, shuffle=True).batches()


class Rows(Indexed):
    """Samples that fit into memory.

    Parameters
    ----------
    given : Samples
        All samples.
    batch_size, generator
        As in `Indexed`; without a generator batches come in the order of the samples.
    n_given : int, default=None
        Number of samples that were given, a sum of weights; None is the number of ``given``.
    """

    def __init__(self, given, batch_size=1, *, generator=None, n_given=None):
        super().__init__(min(batch_size, len(given)), generator)
        self.given, self.n_given = given, len(given) if n_given is None else n_given

    def __len__(self):
        return len(self.given)

    def to(self, dtype):
        """Return the same samples in another dtype."""
        source = copy(self)
        source.given = self.given.to(dtype)
        return source

    def _order(self):  # -> (n_samples,), where the samples are
        """Draw the order of the samples in an epoch."""
        order, device = super()._order(), self.given.x.device
        if device.type != "cuda":
            return order.to(device)
        return order.pin_memory().to(device, non_blocking=True)  # without a wait of the host

    def read(self, parts):
        """Yield the samples with the numbers of each part."""
        for keys in parts:
            yield self.given.map(partial(torch.index_select, dim=0, index=keys), keys)

    def samples(self, keys):
        """Return the samples at the given positions, in the shape of atoms."""
        chosen = self.given[keys]
        return with_gaps(chosen.x, chosen.mask)


def once_only(what):
    """Return the error for data that can be iterated only once."""
    return TypeError(
        f"{what} can be iterated only once, but training takes many epochs. Pass an object with an "
        "__iter__ that starts anew each time, or call partial_fit for every batch."
    )


def count_batches(source):
    """Return the number of batches of an epoch; iterate over one epoch if it is unknown."""
    if source.n_batches is not None:
        return source.n_batches
    n_batches = sum(1 for _ in islice(source.batches(), _MOST_BATCHES))
    check_end(n_batches)
    return n_batches


def check_end(n_batches):
    """Raise ValueError if a source yields more batches than `_MOST_BATCHES`."""
    if n_batches >= _MOST_BATCHES:
        raise ValueError(
            f"X yielded {n_batches} batches, and no end is in sight. Give it a __len__, the number "
            "of batches of an epoch, or call partial_fit for every batch."
        )
