"""Samples in memory, and batches of samples for training.

A source of samples has a number of samples ``n_samples``, and ``blocks(n_rows, generator)``, which
yields all samples once, some at a time, in a random order if there is a generator.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


def draw_order(n, generator):  # -> (n,), on the CPU
    """Return the numbers of samples in a random order, or in their own without a generator."""
    if generator is None:
        return torch.arange(n, device="cpu")
    return torch.randperm(n, generator=generator, device="cpu")


def send(tensor, device):
    """Return a tensor on a device, without a wait of the host."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Batches:
    """Samples for training, batch by batch.

    Parameters
    ----------
    source : source of samples
        All samples.
    batch_size : int, default=1
        Number of samples in a batch; the last one of an epoch may be smaller.
    generator : torch.Generator, default=None
        Draws a new order for every epoch; by default samples come in their own order.
    """

    def __init__(self, source, batch_size=1, generator=None):
        self.source = source
        self.generator = getattr(source, "generator", generator)  # a loader has its own
        self.batch_size = min(batch_size, source.n_samples or batch_size)

    @property
    def n_batches(self):
        """The number of batches of an epoch, None before a stream has been read to its end."""
        n_samples = self.source.n_samples
        return n_samples and -(-n_samples // self.batch_size)

    def batches(self):
        """Return an iterator over the batches of an epoch."""
        return self.source.blocks(self.batch_size, self.generator)


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
        parts = (getattr(self, part.name) for part in fields(self))
        return Samples(*(None if part is None else function(part) for part in parts))

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

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, some rows at a time."""
        order = draw_order(len(self), generator if n_rows < len(self) else None)
        for rows in send(order, self.x.device).split(n_rows):
            yield self.map(lambda part, rows=rows: part.index_select(0, rows))
