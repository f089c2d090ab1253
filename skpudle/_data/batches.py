"""Batches, and the samples that they are made of, in memory or elsewhere.

A source of batches has a ``generator`` (or None) and three methods: ``plan()`` draws the order of
an epoch, ``batches(plan, start)`` yields the epoch's batches from number ``start`` on, and
``samples(keys)`` returns samples, with NaN where they are missing, by the keys that came with their
batches. ``n_batches`` is the
number of batches of an epoch, None if only the end of an epoch tells.

Where samples have numbers, a source is an `Indexed`, and says how to read those of some numbers.
"""

from copy import copy
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._data.arrays import with_gaps

__all__ = ["Batch", "Indexed", "Rows", "count_batches", "once_only"]


# Counted at most: where there are more, as of 25 million rows, their number is better told.
_MOST_BATCHES = 100_000


# What samples may have beside their data.
_BESIDE = "target", "mask", "offset"


class Batch(NamedTuple):
    """What one update sees; `keys` (n, ...) are what ``source.samples`` finds its samples by.

    The `offset` (n, 1) is what the samples add to what a dictionary makes of their codes, and
    `noise_std` (n,) how noisy they are.
    """

    keys: Tensor
    x: Tensor
    target: Tensor | None = None
    mask: Tensor | None = None
    offset: Tensor | None = None
    noise_std: Tensor | None = None


class Indexed:
    """Samples that have numbers, batch by batch.

    A subclass has a length, ``read(parts)``, which yields a `Batch` of the samples with the numbers
    of each part, (n,) on the CPU, and ``samples``.

    Parameters
    ----------
    batch_size : int
        Number of samples in a batch; the last one of an epoch may be smaller.
    generator : torch.Generator, default=None
        What draws.
    shuffle : bool, default=True
        Whether it draws a new order for every epoch.
    """

    n_judged = 1  # samples whose mean objective tells whether training has stalled

    def __init__(self, batch_size=1, generator=None, *, shuffle=True):
        self.batch_size, self.generator, self.shuffle = batch_size, generator, shuffle

    def for_training(self, batch_size, generator, *, shuffle):
        """Return the same samples in batches of some size, shuffled or in their own order."""
        source = copy(self)
        source.batch_size = min(batch_size, len(self))
        source.generator = generator if shuffle else None
        return source

    @property
    def n_batches(self):
        return -(-len(self) // self.batch_size)

    def plan(self):  # -> (n_samples,), on the CPU
        """Draw the order of the samples in an epoch."""
        if self.generator is None or not self.shuffle or self.batch_size >= len(self):
            return torch.arange(len(self), device="cpu")
        return torch.randperm(len(self), generator=self.generator, device="cpu")

    def has(self, keys):
        """Return whether these are keys of samples, which a file says."""
        whole = keys.ndim == 1 and not keys.is_floating_point()
        return whole and bool(((keys >= 0) & (keys < len(self))).all())

    def batches(self, plan, start=0):
        """Yield the batches of an epoch."""
        return self.read(plan.split(self.batch_size)[start:])


class Rows(Indexed):
    """Samples that fit into memory.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    batch_size, generator
        As of `Indexed`; without a generator batches come in the order of the samples.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where data are known, 0 where they are missing.
    offset : Tensor of shape (n_samples, 1), default=None
        What samples add to what a dictionary makes of their codes.
    target : Tensor of shape (n_samples, ...), default=None
        What the samples are to be mapped to.
    """

    def __init__(self, x, batch_size=1, *, generator=None, mask=None, offset=None, target=None):
        super().__init__(min(batch_size, len(x)), generator)
        self.x, self.mask, self.offset, self.target = x, mask, offset, target

    def __len__(self):
        return len(self.x)

    def to(self, dtype):
        """Return the same samples in another dtype."""
        source = copy(self)
        for name in ("x", *_BESIDE):
            value = getattr(self, name)
            setattr(source, name, value if value is None else value.to(dtype))
        return source

    def plan(self):  # -> (n_samples,), where the samples are
        """Draw the order of the samples in an epoch."""
        order = super().plan()
        if self.x.device.type != "cuda":
            return order.to(self.x.device)
        return order.pin_memory().to(self.x.device, non_blocking=True)  # the host does not wait

    def read(self, parts):
        """Yield the samples with the numbers of each part."""
        for keys in parts:
            beside = {name: getattr(self, name) for name in _BESIDE}
            given = {name: None if t is None else t[keys] for name, t in beside.items()}
            yield Batch(keys, self.x.index_select(0, keys), **given)

    def samples(self, keys):
        """Return the samples at the given positions, in the shape of atoms."""
        return with_gaps(self.x[keys], None if self.mask is None else self.mask[keys])


def once_only(what):
    """Return the error for data that cannot be gone through again."""
    return TypeError(
        f"{what} can be iterated only once, but training takes many epochs. Pass an object whose "
        "__iter__ starts anew each time, or call partial_fit for every batch."
    )


def count_batches(source):
    """Return the number of batches of an epoch, going through one if need be.

    Raises
    ------
    TypeError
        If that yields none.
    ValueError
        If there seems to be no end of them.
    """
    if source.n_batches is not None:
        return source.n_batches
    n_batches = sum(1 for _ in islice(source.batches(source.plan()), _MOST_BATCHES))
    if not n_batches:
        raise once_only("X yields no batches any more; it")
    if n_batches == _MOST_BATCHES:
        raise ValueError(
            f"X yielded {n_batches} batches, and no end is in sight. Give it a __len__, the number "
            "of batches of an epoch, or call partial_fit for every batch."
        )
    return n_batches
