"""Batches, and sources of batches in memory or elsewhere.

A source has a ``generator`` (or None) and three methods: ``plan()`` draws the order of an epoch,
``batches(plan, start)`` yields the epoch's batches from number ``start`` on, and ``samples(keys)``
returns samples by the keys of their batches, with NaN for missing entries. ``n_batches`` is the
number of batches of an epoch, None if only the end of an epoch tells.

If samples have numbers, the source is an `Indexed`, which reads samples by their numbers.
"""

from copy import copy
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._data.arrays import with_gaps

__all__ = ["Batch", "Indexed", "Rows", "check_end", "count_batches", "once_only"]


# Count at most this many batches; beyond, as for 25 million rows, users should state the number.
_MOST_BATCHES = 100_000


# Optional tensors of samples.
_BESIDE = "target", "mask", "offset"


class Batch(NamedTuple):
    """The samples of one update; ``source.samples`` finds them by their `keys` (n, ...).

    The `offset` (n, 1) is added to the natural parameter of samples, and `noise_std` (n,) is the
    standard deviation of their noise.
    """

    keys: Tensor
    x: Tensor
    target: Tensor | None = None
    mask: Tensor | None = None
    offset: Tensor | None = None
    noise_std: Tensor | None = None

    def part(self, rows):
        """Return some of the samples, without their keys."""
        return Batch(None, *(t if t is None else t[rows] for t in self[1:]))


class Indexed:
    """Numbered samples, batch by batch.

    A subclass has a length, ``samples``, and ``read(parts)``. The latter yields a `Batch` for each
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

    n_counted = None  # number of batches, if a stream was read to its end
    n_judged = 1  # number of samples that tell, by their mean objective, if training has stalled

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

    def plan(self):  # -> (n_samples,), on the CPU
        """Draw the order of the samples in an epoch."""
        if self.generator is None or not self.shuffle or self.batch_size >= len(self):
            return torch.arange(len(self), device="cpu")
        return torch.randperm(len(self), generator=self.generator, device="cpu")

    def has(self, keys):
        """Return whether these are keys of samples; they come from a file."""
        whole = keys.ndim == 1 and not keys.is_floating_point()
        return whole and bool(((keys >= 0) & (keys < len(self))).all())

    def batches(self, plan, start=0):
        """Yield the batches of an epoch."""
        return self.read(plan.split(self.batch_size)[start:])

    def blocks(self, n_rows, generator):
        """Yield all samples once, some rows at a time, in a random order."""
        source = self.for_training(n_rows, generator, shuffle=True)
        return source.batches(source.plan())


class Rows(Indexed):
    """Samples that fit into memory.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    batch_size, generator
        As in `Indexed`; without a generator batches come in the order of the samples.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where data are known, 0 where they are missing.
    offset : Tensor of shape (n_samples, 1), default=None
        Added to the natural parameter of samples.
    target : Tensor of shape (n_samples, ...), default=None
        Target of each sample: a clean one, or a response.
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
        return order.pin_memory().to(self.x.device, non_blocking=True)  # without waiting

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
    """Return the error for data that can be iterated only once."""
    return TypeError(
        f"{what} can be iterated only once, but training takes many epochs. Pass an object with an "
        "__iter__ that starts anew each time, or call partial_fit for every batch."
    )


def count_batches(source):
    """Return the number of batches of an epoch; iterate over one epoch if it is unknown.

    Raises
    ------
    TypeError
        If the epoch yields no batches.
    ValueError
        If it seems endless.
    """
    n_known = source.n_batches or getattr(source, "n_counted", None)
    if n_known is not None:
        return n_known
    n_batches = sum(1 for _ in islice(source.batches(source.plan()), _MOST_BATCHES))
    if not n_batches:
        raise once_only("X yields no batches any more; it")
    check_end(n_batches)
    return n_batches


def check_end(n_batches):
    """Raise ValueError if so many batches seem to have no end."""
    if n_batches >= _MOST_BATCHES:
        raise ValueError(
            f"X yielded {n_batches} batches, and no end is in sight. Give it a __len__, the number "
            "of batches of an epoch, or call partial_fit for every batch."
        )
