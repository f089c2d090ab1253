"""Batches, and samples in memory as a source of them.

A source of batches has a ``generator`` (or None) and three methods: ``plan()`` draws the order of
an epoch, ``batches(plan, start)`` yields the epoch's batches from number ``start`` on, and
``samples(keys)`` returns samples by the keys that came with their batches. ``n_batches`` is the
number of batches of an epoch, None if only the end of an epoch tells.
"""

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "Rows", "count_batches", "once_only"]


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


class Rows:
    """Samples that fit into memory, batch by batch.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    batch_size : int
        Number of samples in a batch; the last one of an epoch may be smaller.
    generator : torch.Generator, default=None
        Shuffles every epoch; without it batches come in the order of the samples.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where data are known, 0 where they are missing.
    offset : Tensor of shape (n_samples, 1), default=None
        What samples add to what a dictionary makes of their codes.
    target : Tensor of shape (n_samples, ...), default=None
        What the samples are to be mapped to.
    """

    n_judged = 1  # samples whose mean objective tells whether training has stalled

    def __init__(self, x, batch_size=1, *, generator=None, mask=None, offset=None, target=None):
        self.x, self.batch_size, self.generator = x, min(batch_size, len(x)), generator
        self.mask, self.offset, self.target = mask, offset, target

    def for_training(self, batch_size, generator, *, shuffle):
        """Return the same samples in batches of some size, shuffled or in their own order."""
        generator = generator if shuffle else None
        given = {name: getattr(self, name) for name in _BESIDE}
        return Rows(self.x, batch_size, generator=generator, **given)

    def to(self, dtype):
        """Return the same samples in another dtype."""
        beside = {name: getattr(self, name) for name in _BESIDE}
        given = {name: None if t is None else t.to(dtype) for name, t in beside.items()}
        given["generator"] = self.generator
        return Rows(self.x.to(dtype), self.batch_size, **given)

    @property
    def n_batches(self):
        return -(-len(self.x) // self.batch_size)

    def plan(self):
        """Draw the order of the samples in an epoch; None is their own."""
        if self.generator is None or self.batch_size == len(self.x):
            return None
        order = torch.randperm(len(self.x), generator=self.generator, device="cpu")
        if self.x.device.type != "cuda":
            return order.to(self.x.device)
        return order.pin_memory().to(self.x.device, non_blocking=True)  # the host does not wait

    def batches(self, plan, start=0):
        """Yield the batches of an epoch."""
        for first in range(start * self.batch_size, len(self.x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            if plan is None:
                keys = torch.arange(len(self.x), device=self.x.device)[rows]
            else:
                keys = rows = plan[rows]
            beside = {name: getattr(self, name) for name in _BESIDE}
            given = {name: None if t is None else t[rows] for name, t in beside.items()}
            yield Batch(keys, self.x[rows], **given)

    def samples(self, keys):
        """Return the samples at the given positions, in the shape of atoms."""
        return self.x[keys]


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
