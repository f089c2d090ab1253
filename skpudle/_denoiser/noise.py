"""The noise that a denoiser is trained for: one level, a range that thresholds follow, or photons.

The noise of photons grows with their expected number. After Anscombe's transform, which takes roots
of counts, its standard deviation is about 1 wherever there are more than a few photons. So a
network with roots as input and target is a network for Gaussian noise.
"""

from math import inf, log, sqrt
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch

from skpudle._data.arrays import host_array, to_tensor
from skpudle._fit.messages import warn
from skpudle._losses import Poisson


class Noise(NamedTuple):
    """The noise of ``noise_std``."""

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
        pair = noise_std if isinstance(noise_std, tuple) else (noise_std, noise_std)
        numbers = all(isinstance(level, Real) and 0 <= level < inf for level in pair)
        is_range = isinstance(noise_std, tuple)
        if len(pair) != 2 or not numbers or pair[0] > pair[1] or (is_range and not pair[0]):
            raise ValueError(
                f"noise_std={noise_std!r:.80} is neither a standard deviation nor a pair "
                "(low, high) of positive ones. Pass one number, such a pair, or 'poisson'."
            )
        return cls(*map(float, pair), is_range)

    @property
    def typical(self):
        """The level in the middle, on a logarithmic scale."""
        return sqrt(self.low * self.high)

    def enter(self, x):
        """Return the network's input for images: stabilised counts, other images unchanged."""
        return Poisson().response(x) if self.of_photons else x

    def leave(self, x):
        """Return the images of the network's output, the inverse of `enter`."""
        return Poisson().of_response(x) if self.of_photons else x

    def added_to(self, x, generator, sigma=None):
        """Return images with noise, and its levels (n,).

        Levels are given, or drawn evenly on a logarithmic scale: the error of denoising is nearly
        a line there, so all levels weigh alike in decibels. Counts are drawn from expected ones;
        both are stabilised.
        """
        options = dict(generator=generator, dtype=x.dtype, device="cpu")
        if self.of_photons:
            loss = Poisson()
            counts = torch.poisson(loss.of_response(x).cpu(), generator=generator)
            return loss.response(counts.to(x)), x.new_ones(len(x))
        if sigma is None and self.is_range:
            low, high = log(self.low), log(self.high)
            sigma = torch.exp(low + (high - low) * torch.rand(len(x), **options)).to(x)
        sigma = x.new_full((len(x),), self.high) if sigma is None else sigma
        noise = torch.randn(x.shape, **options).to(x)
        return x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise, sigma

    def typically_added_to(self, x):  # (n, n_channels, *size) -> the same
        """Return images with noise of the middle level, the same for all images of a size."""
        level, generator = x.new_full((1,), self.typical), torch.Generator()
        noisy = (self.added_to(one[None], generator.manual_seed(0), level)[0] for one in x)
        return torch.cat(list(noisy))

    def levels(self, noise_std, images):  # -> a list of Tensor of shape (n,) or None
        """Return the noise levels that a user gave for images.

        Raises
        ------
        ValueError
            If levels are not finite, negative or not one for each image, or if the network is for
            no noise, or for photons.
        """
        if noise_std is None:
            return [None] * len(images.tensors)
        if self.of_photons or not self.high:
            known = "follows from their counts" if self.of_photons else "of training was 0"
            raise ValueError(
                f"noise_std={noise_std!r:.50}, but the noise {known}. Leave noise_std=None, or "
                "train with noise_std, of one level or a pair."
            )
        try:
            levels = np.broadcast_to(np.asarray(host_array(noise_std), dtype=float), len(images))
        except (TypeError, ValueError):
            levels = np.full(1, np.nan)
        if not (np.isfinite(levels) & (levels >= 0)).all():
            raise ValueError(
                f"noise_std={noise_std!r:.50} is no standard deviation. Pass one finite number "
                f"that is not negative, or one for each of {len(images)} images."
            )
        levels = to_tensor(levels, images.tensors[0].device, images.dtype)
        return levels.split([len(x) for x in images.tensors])

    def warn_of_units(self, images, levels=None):  # images: tensors
        """Warn if the noise, given as `levels` or by training, has other units than images."""
        told = [float(level.max()) for level in levels or [] if level is not None]
        largest = max(float(image.abs().max()) for image in images)
        # counts have no unit, estimates have that of the images, and a given noise may be small
        estimated = levels is not None and not told and self.is_range
        # in practice pixels are at most so many times the noise; sigma 50, given as a fraction of
        # 255, is beyond it
        level, least = max(told, default=self.typical), 0.0 if told else largest / 1200
        if level and largest and not (self.of_photons or estimated or least <= level <= largest):
            warn(
                f"noise_std={level:.3g}, but the largest pixel is {largest:.3g}. Noise is "
                "in the units of the images, and unsigned integers become fractions of their "
                "largest value: 25 for values from 0 to 255 is 25 / 255 for fractions."
            )


def deviation_of(images):  # list of (..., *size) -> float
    """Return the standard deviation of the pixels of images from their common mean."""
    n = sum(image.numel() for image in images)
    mean = sum(float(image.double().sum()) for image in images) / n
    return sqrt(sum(float((image.double() - mean).square().sum()) for image in images) / n)
