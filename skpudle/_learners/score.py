"""Score by predicting held-out features from the rest.

Everything is a sum over samples, so that parts of the data add up.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._data.arrays import wide
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import own_precision
from skpudle.search._held_out import hide_in_turn

_GROUPS = 10


def hidden_deviance(loss, encoder_of, dictionary, offset_of, places=None, limit=None):
    """Return a function of samples: the deviance of all features, each held out once.

    Codes are inferred from the features of all other groups; a single feature is predicted from
    itself.

    Parameters
    ----------
    loss : object of `skpudle._losses`
        The loss.
    encoder_of : callable
        Returns the encoder of some features: ``encoder(dictionary, x, mask=mask, offset=offset)``.
    dictionary : DenseDictionary
        The dictionary.
    offset_of : callable
        ``offset_of(samples)`` returns the offset of their reconstruction, or None.
    places : Tensor of shape (n_features,), default=None
        For each feature the place of its first copy, with which it is held out; by default features
        are distinct, so that a score depends on its own samples alone.
    limit : Tensor of shape (n_features,), default=None
        What the error of an entry counts at most.
    """
    atoms = dictionary.atoms
    places = torch.arange(atoms.shape[1], device="cpu") if places is None else places
    turns = [[part.to(atoms.device) for part in turn] for turn in hide_in_turn(places)]

    def deviance(samples):
        x, mask, offset, total = samples.x, samples.mask, offset_of(samples), 0.0
        for seen, hidden in turns:
            visible = DenseDictionary(dictionary.atoms[:, seen])
            codes = encoder_of(seen)(
                visible,
                x[:, seen],
                mask=None if mask is None else mask[:, seen],
                offset=None if offset is None else offset[..., seen],
            )
            with own_precision():
                natural = codes @ dictionary.atoms[:, hidden]
            natural = loss.shifted(natural, None if offset is None else offset[..., hidden])
            values = x[:, hidden]
            if limit is not None:
                most = limit[hidden]
                values = natural + torch.maximum(torch.minimum(values - natural, most), -most)
            entries = 2 * loss.half_deviance(wide(natural), wide(values))
            entries = samples.weigh(entries)
            total = total + (entries if mask is None else entries * mask[:, hidden]).sum()
        return float(total)  # one wait for the device

    return deviance


def error_of_pixels(network, x, known):
    """Return the squared error of all pixels of images, each held out once.

    Parameters
    ----------
    network : ConvNetwork
        Encoder and decoder, on one grid.
    x : Tensor of shape (n, n_channels, *size)
        Images.
    known : Tensor of shape size
        1 for pixels, 0 beyond the border.
    """
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(_GROUPS, known.shape, generator=generator, device="cpu").to(x.device)
    total = 0.0
    for i in range(_GROUPS):
        seen, hidden = (known * part.to(x.dtype) for part in (group != i, group == i))
        predicted = network.synthesis(network.encode(x, mask=seen.expand_as(x)))
        total = total + ((wide(x) - wide(predicted)).square() * hidden).sum()
    return float(total)


class _Moments(NamedTuple):
    """The number, the mean and the sum of squared deviations of each column."""

    n_known: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, samples, loss):
        """Return the moments of known entries."""
        x, mask = samples.x, samples.mask
        if mask is None:
            mask, origin = torch.ones_like(x[:1]), x[0]
            n_known = samples.total_weight * mask[0]
        else:
            origin = x.masked_fill(mask == 0, torch.inf).amin(0)
            origin, n_known = origin.masked_fill(origin.isinf(), 0), samples.weigh(mask).sum(0)
        centred = (x - origin) * mask  # exactly zero for constant columns, even with a rounded mean
        mean = samples.weigh(centred).sum(0) / torch.where(n_known > 0, n_known, 1.0)
        squares = samples.weigh(((centred - mean) * mask).square()).sum(0)
        return cls(n_known.cpu(), (origin + mean).cpu(), squares.cpu())

    def with_part(self, other):
        """Return the moments of both parts together."""
        n_known = self.n_known + other.n_known
        share = other.n_known / torch.where(n_known > 0, n_known, 1.0)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * self.n_known * share
        return _Moments(n_known, self.mean + apart * share, squares)

    def deviance(self, loss):  # -> float
        """Return the summed deviance from the column means."""
        return float(self.squares.sum())


class _Rates(NamedTuple):
    """The sums of exposures, events and terms of the likelihood in each column."""

    size: Tensor
    total: Tensor
    saturated: Tensor
    weighted: Tensor

    @classmethod
    def of(cls, samples, loss):
        """Return the sums of known entries; offsets hold the logarithms of exposures."""
        x, mask = samples.x, samples.mask
        mask = samples.weigh(torch.ones_like(x) if mask is None else mask)
        exposure = x.new_zeros(()) if samples.offset is None else samples.offset
        parts = exposure.exp(), x, loss.saturated(x), x * exposure
        return cls(*((mask * part).sum(0).cpu() for part in parts))

    def with_part(self, other):
        """Return the sums of both parts."""
        return _Rates(*(a + b for a, b in zip(self, other, strict=True)))

    def deviance(self, loss):  # -> float
        """Return the summed deviance from the rates times the exposures."""
        size, total, saturated, weighted = self
        mean = total / size.clamp_min(torch.finfo(size.dtype).tiny)
        # A(eta) - mean * eta = - saturated(mean), where mean is the expectation
        deviance = saturated - weighted - size * loss.saturated(mean)
        # below the rounding of sums that cancel, the deviance of a constant column
        eps = torch.finfo(size.dtype).eps
        rounding = size * eps * size.clamp_min(1).sqrt() * loss.saturated(mean).abs()
        return 2 * float(torch.where(deviance > rounding, deviance, 0.0).sum())


def sums_of(loss, samples):
    """Return sums of samples on the host: parts add up, and yield the deviance from the means."""
    return (_Moments if loss.is_quadratic else _Rates).of(samples.map(wide), loss)
