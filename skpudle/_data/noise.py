"""Noise of images: levels, ranges, photons, and estimates.

The noise of photons grows with their expected number. After Anscombe's transform, which takes roots
of counts, its standard deviation is about 1 wherever there are more than a few photons. So a
network with roots as input and target is a network for Gaussian noise.
"""

import warnings
from math import comb, inf, sqrt
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch

from skpudle._data.arrays import host_array, to_tensor
from skpudle._data.images import largest_unsigned, split_gaps
from skpudle._data.names import users_level
from skpudle._losses import Poisson

# Largest ratio of pixels to noise in practice; sigma 50, given as a fraction of 255, is beyond it.
_RANGE = 1200

# The median magnitude of a normal variable of standard deviation 1; pixels of a block; and the
# relative distance of the lower quartile of medians of many such blocks below their mean, for white
# noise.
_MEDIAN_OF_NORMAL, _BLOCK, _BELOW = 0.6745, 256, 0.085

# Least number of details that separate noise from texture; and the relative standard error of the
# variance of n details of white noise, times sqrt(n), measured, since neighbouring details
# correlate.
_FEW, _STANDARD_ERROR = 32, 6.0

# Fine texture as a share of the excess variance of coarse details (typical and largest), and as a
# share of the range of an image, the least to subtract. Coarse details of photographs have some 4
# times the variance of fine details. Of 1,500 noise-free parts of a photograph 95 then seem noisy,
# and 217 with a share of a half.
_TEXTURE, _MOST_TEXTURE, _LEAST_TEXTURE = 1 / 3, 1.0, 0.008

# The least noise of a channel, as a share of the median over channels, since estimates of channels
# with a strong signal may be 0.
_LEAST_OF_CHANNELS = 0.1


class Noise(NamedTuple):
    """The noise of ``noise_std``: one level, a range that thresholds follow, or photons."""

    low: float
    high: float
    is_range: bool = False
    of_photons: bool = False

    @classmethod
    def of(cls, noise_std):
        """Read the noise from the parameter.

        Raises
        ------
        ValueError
            If it is no number, no pair of positive numbers in order, and not "poisson".
        """
        if noise_std == "poisson":
            return cls(1.0, 1.0, of_photons=True)
        if not isinstance(noise_std, tuple):
            if not isinstance(noise_std, Real):
                raise ValueError(
                    f"noise_std={noise_std!r:.80} is no standard deviation. Pass a number, a pair "
                    "(low, high) of them, or 'poisson'."
                )
            return cls(float(noise_std), float(noise_std))
        positive = all(isinstance(level, Real) and 0 < level < inf for level in noise_std)
        if len(noise_std) != 2 or not positive or noise_std[0] > noise_std[1]:
            raise ValueError(
                f"noise_std={noise_std!r:.80} is not a pair (low, high) of positive numbers. Pass "
                "such a pair, or one number."
            )
        return cls(*map(float, noise_std), is_range=True)

    @property
    def typical(self):
        """The level in the middle, on a logarithmic scale."""
        return sqrt(self.low * self.high)

    @property
    def unit(self):
        """The unit of thresholds that follow the noise; None if they do not."""
        return self.typical if self.is_range else None

    def enter(self, x):
        """Return the network's input for images: stabilised counts, other images unchanged."""
        return Poisson().response(x) if self.of_photons else x

    def leave(self, x):
        """Return the images of the network's output, the inverse of `enter`."""
        return Poisson().of_response(x) if self.of_photons else x

    def deviation(self, images, noise_std):  # (n, ...), (n,) -> (n, ...)
        """Return the standard deviation of the noise of each pixel; counts need no level."""
        if self.of_photons:
            return images.sqrt()
        return noise_std.reshape(-1, *[1] * (images.ndim - 1)).expand_as(images)

    def levels(self, noise_std, images):  # -> a list of Tensor of shape (n,) or None
        """Check noise levels of images for a network trained on this noise.

        Parameters
        ----------
        noise_std : float or array-like of shape (n_images,), or None
            The standard deviation, if it is known.
        images : Images
            The images.

        Raises
        ------
        ValueError
            If levels are not finite, negative or not one for each image, or if the network is for
            no noise, or for photons.
        """
        if noise_std is None:
            return [None] * len(images.tensors)
        if self.of_photons:
            raise ValueError(
                f"noise_std={noise_std!r:.50}, but the noise of photons follows from their counts. "
                "Leave noise_std=None."
            )
        refusal = ValueError(
            f"noise_std={noise_std!r:.50} is no standard deviation. Pass one finite number that is "
            f"not negative, or one for each of {len(images)} images."
        )
        try:
            levels = np.asarray(host_array(noise_std))
        except (TypeError, ValueError):  # lists of other lengths
            raise refusal from None
        if levels.dtype.kind not in "iuf":
            raise refusal
        levels = to_tensor(levels, images.tensors[0].device, images.dtype)
        known = levels.isfinite() & (levels >= 0)
        if levels.shape not in ((), (len(images),)) or not known.all():
            raise refusal
        first = images.source[0] if images.kind == "list" else images.source
        largest = None if images.kind == "rows" else largest_unsigned(first)
        if largest is not None and (levels > 1).any():
            raise ValueError(
                f"noise_std={noise_std!r:.50}, but images of {first.dtype} become fractions of "
                f"{largest}, their largest value. Pass the noise as such a fraction, noise_std / "
                f"{largest}."
            )
        if not self.high:
            raise ValueError(
                f"noise_std={noise_std!r:.50}, but the thresholds are for no noise. Train with "
                "noise_std, of one level or a pair."
            )
        return levels.expand(len(images)).split([len(x) for x in images.tensors])

    def warn_of_units(self, images, levels=None):  # images: tensors
        """Warn if the noise, given as `levels` or by training, has other units than images."""
        if self.of_photons:  # counts have no unit
            return
        largest = max(float(image.abs().max()) for image in images)
        known = [] if levels is None else [level for level in levels if level is not None]
        if levels is not None and not known and self.is_range:  # estimated, in units of the images
            return
        told = max((float(level.max()) for level in known), default=None)
        level = self.typical if told is None else told
        least = largest / _RANGE if told is None else 0.0  # a given noise may be small
        if level and largest and not least <= level <= largest:
            warnings.warn(
                f"noise_std={level:.3g}, but the largest pixel is {largest:.3g}. Noise is "
                "in the units of the images, and unsigned integers become fractions of their "
                "largest value: 25 for values from 0 to 255 is 25 / 255 for fractions.",
                stacklevel=users_level(),
            )


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, by `estimate_noise`.

    It is the median over images, and at least a tenth of the median over channels.
    """
    complete = (split_gaps(image, image.ndim - 2)[0] for image in images)
    noise = [
        torch.stack([estimate_noise(channel[:, None]) for channel in image.unbind(1)], dim=1)
        for image in complete
    ]
    noise = torch.cat(noise).median(0).values
    least = _LEAST_OF_CHANNELS * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)


def given_channel_noise(given, images):  # array-like or "auto", Images -> (n_channels,)
    """Return the noise of the channels of images, given or by `noise_of_channels`.

    Raises
    ------
    ValueError
        If it is not one positive number for each channel.
    """
    if isinstance(given, str):
        return noise_of_channels(images.tensors)
    noise = np.asarray(given)
    positive = noise.dtype.kind in "iuf" and (noise > 0).all() and np.isfinite(noise).all()
    if noise.shape != (images.n_channels,) or not positive:
        raise ValueError(
            f"channel_noise={given!r:.80} is not one positive number for each of "
            f"{images.n_channels} channels. Pass their standard deviations of the noise, 'auto' or "
            "'equal'."
        )
    return to_tensor(noise.astype(np.float64)).to(images.tensors[0])


def with_noise(image, noise):
    """Add typical `Noise` to an image, the same for all images of this size."""
    generator = torch.Generator().manual_seed(0)
    if noise.of_photons:
        return with_photons(image, generator)
    normal = torch.randn(image.shape, generator=generator, dtype=image.dtype, device="cpu")
    return image + noise.typical * normal.to(image.device)


def with_photons(x, generator):
    """Draw counts from expected counts; both are stabilised."""
    loss = Poisson()
    counts = torch.poisson(loss.of_response(x).cpu(), generator=generator)
    return loss.response(counts.to(x.device))


def _shifted_sum(x, axis, lag, sign):
    n = x.shape[axis] - lag
    return x.narrow(axis, lag, n) + sign * x.narrow(axis, 0, n)


def _variance_of_details(x, scale):  # (n, n_channels, *size) -> (n,), number of details
    """Estimate the variance of white noise from details of one pixel or of two."""
    n_axes, details = x.ndim - 2, x
    for axis, n in enumerate(x.shape[2:], start=2):
        if scale == 2 and n > 1:
            details = _shifted_sum(details, axis, 1, 1) / 2**0.5
        order = min(4, n // (2 * scale))  # 1, -4, 6, -4, 1 and its norm; lower for few pixels
        for _ in range(order):
            details = _shifted_sum(details, axis, scale, -1)
        details = details / comb(2 * order, order) ** 0.5
    side = round(_BLOCK ** (1 / max(1, sum(n > 1 for n in x.shape[2:]))))
    for axis in reversed(range(2, x.ndim)):
        n = details.shape[axis]
        n_blocks = max(1, n // side)
        length = n // n_blocks
        details = details.narrow(axis, 0, n_blocks * length).unflatten(axis, (n_blocks, length))
    within = [3 + 2 * axis for axis in range(n_axes)]
    blocks = details.abs().movedim(within, list(range(-n_axes, 0))).flatten(-n_axes)
    medians = blocks.median(-1).values.flatten(1)
    smooth = 1 - _BELOW * (1 - 1 / medians.shape[1])  # approximately, for white noise
    deviation = medians.quantile(0.25, dim=1) / (_MEDIAN_OF_NORMAL * smooth)
    return deviation.square(), details[0].numel()


def deviation_of(images):  # list of (..., *size) -> float
    """Return the standard deviation of the pixels of images from their common mean."""
    n = sum(image.numel() for image in images)
    mean = sum(float(image.double().sum()) for image in images) / n
    return sqrt(sum(float((image.double() - mean).square().sum()) for image in images) / n)


def extent_of(x):  # (n, ...) -> (n,)
    """Return the range of the pixels of each image."""
    pixels = x.flatten(1)
    return pixels.amax(1) - pixels.amin(1)


def estimate_noise(x, extent=None):  # (n, n_channels, *size), (n,) -> (n,)
    """Estimate the standard deviation of white noise in each image, without possible texture.

    Fourth differences along each axis remove most of a photograph except noise (J. Immerkaer, "Fast
    noise variance estimation", Computer Vision and Image Understanding 64, 1996, has second ones).
    The estimate takes their median magnitude in each block, and the lower quartile of blocks: noise
    is the same everywhere, and texture is not. Differences of sums of two pixels have the same
    noise and, in photographs, some four times the texture or more. So a share of their excess is
    subtracted as texture, and a part of the range of the image. ``extent`` replaces that range if
    images are differences of colours.

    The estimate is at most the square root of 2 times the level that is left after the most
    possible texture: up to twice the variance of its noise, a mix with an input is better than
    that input.

    Too high an estimate does more harm than too low an estimate, since it removes texture. The
    estimate for a tiny image is 0. Texture as white as noise counts as noise: 1 in 16 noise-free
    parts of 24 to 80 pixels, from a photograph of roofs and leaves, seems noisy.
    """
    (fine, _), (coarse, n_details) = (_variance_of_details(x, scale) for scale in (1, 2))
    if n_details < _FEW:
        return torch.zeros_like(fine)
    error = _STANDARD_ERROR / n_details**0.5
    fine = torch.minimum(fine, coarse * (1 + error))  # white noise: at most coarse, beside chance
    least = _LEAST_TEXTURE * (extent_of(x) if extent is None else extent)

    def without(share, doubt):  # texture; doubt: a share that is chance
        more = (coarse * max(0.0, 1 - doubt) - fine).clamp_min(0)
        return (fine - least.square() - share * more).clamp_min(0)

    usually, surely = without(_TEXTURE, error / 2), without(_MOST_TEXTURE, error)
    return torch.minimum(usually, 2 * surely).sqrt()
