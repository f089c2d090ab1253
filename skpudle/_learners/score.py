"""Score by predicting held-out features from the rest.

Everything is a sum over samples, so that parts of the data add up.
"""

import torch

from skpudle._data.arrays import wide
from skpudle._precision import own_precision
from skpudle.losses import Gaussian
from skpudle.operators import DenseDictionary

__all__ = [
    "deviance_of_means",
    "deviance_of_pixels",
    "hidden_deviance",
    "sums_of",
    "together",
]

_GROUPS = 10


def hidden_deviance(loss, encoder_of, dictionary, offset_of):
    """Return a function of samples: the deviance of all features, each held out once.

    Codes are inferred from the features of the other groups; a single feature, which has no others,
    is predicted from itself.

    Parameters
    ----------
    loss : object of `skpudle.losses`
        The loss.
    encoder_of : callable
        Returns the encoder of some features: ``encoder(dictionary, x, mask=mask, offset=offset)``.
    dictionary : DenseDictionary
        The dictionary.
    offset_of : callable
        ``offset_of(samples)`` returns the offset of their reconstruction, or None.
    """
    n_features, device = dictionary.atoms.shape[1], dictionary.atoms.device
    order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0), device="cpu")
    sizes = [len(part) for part in order.tensor_split(min(_GROUPS, n_features))]
    groups = order.to(device).split(sizes)

    def deviance(samples):
        x, mask, offset, total = samples.x, samples.mask, offset_of(samples), 0.0
        for i, hidden in enumerate(groups):
            others = [*groups[:i], *groups[i + 1 :]] or [hidden]
            seen = torch.cat(others).sort().values
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
            entries = 2 * loss.half_deviance(wide(natural), wide(x[:, hidden]))
            total = total + (entries if mask is None else entries * mask[:, hidden]).sum()
        return float(total)  # once for all groups, since the host waits for a device here

    return deviance


def deviance_of_pixels(loss, network, x, known):
    """Return the deviance of all pixels of images, each held out once.

    Parameters
    ----------
    loss : object of `skpudle.losses`
        The loss.
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
        natural = network.synthesis(network.encode(x, mask=seen.expand_as(x)))
        total = total + (2 * loss.half_deviance(wide(natural), wide(x)) * hidden).sum()
    return float(total)


def _moments(x, mask):  # -> of each column its number, mean and sum of squared deviations
    if mask is None:
        mask, origin = torch.ones_like(x[:1]), x[0]
        n_known = len(x) * mask[0]
    else:
        origin = x.masked_fill(mask == 0, torch.inf).amin(0)
        origin, n_known = origin.masked_fill(origin.isinf(), 0), mask.sum(0)
    centred = (x - origin) * mask  # exactly zero for constant columns, even with a rounded mean
    mean = centred.sum(0) / n_known.clamp_min(1)
    squares = ((centred - mean) * mask).square().sum(0)
    return n_known, origin + mean, squares


def sums_of(loss, samples):
    """Return the sums that `deviance_of_means` needs of each column, on the host."""
    samples = samples.map(wide)
    x, mask, exposure = samples.x, samples.mask, samples.offset
    if isinstance(loss, Gaussian):
        return tuple(t.cpu() for t in _moments(x, mask))
    mask = torch.ones_like(x) if mask is None else mask
    exposure = x.new_zeros(()) if exposure is None else exposure
    parts = exposure.exp(), x, loss.saturated(x), x * exposure
    return tuple((mask * part).sum(0).cpu() for part in parts)


def together(loss, one, other):
    """Merge the sums of two parts; the difference of their means adds variation."""
    if not isinstance(loss, Gaussian):
        return tuple(a + b for a, b in zip(one, other, strict=True))
    (n, mean, squares), (n_other, mean_other, squares_other) = one, other
    share = n_other / (n + n_other).clamp_min(1)
    apart = mean_other - mean
    squares = squares + squares_other + apart.square() * n * share
    return n + n_other, mean + apart * share, squares


def deviance_of_means(loss, sums):  # -> float
    """Return the summed deviance from the column means, the rates times the exposures."""
    if isinstance(loss, Gaussian):
        return float(sums[2].sum())
    size, total, saturated, weighted = sums
    mean = total / size.clamp_min(torch.finfo(size.dtype).tiny)
    # A(eta) - mean * eta = - saturated(mean), where mean is the expectation
    deviance = saturated - weighted - size * loss.saturated(mean)
    # below the rounding of sums that cancel, the deviance of a constant column
    eps = torch.finfo(size.dtype).eps
    rounding = size * eps * size.clamp_min(1).sqrt() * loss.saturated(mean).abs()
    return 2 * float(torch.where(deviance > rounding, deviance, 0.0).sum())
