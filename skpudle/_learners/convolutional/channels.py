"""Units of channels: a baseline, drift that is slower than atoms, and noise.

Events are short and rare, so the median of a channel is its baseline, also where codes are not
negative. Drift is what medians in windows of two atoms see. Atoms explain both by codes everywhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skpudle._data.images import extend, split_gaps
from skpudle._learners.convolutional.noise import estimate_noise

# The least noise of a channel, as a share of the median over channels, since estimates of channels
# with a strong signal may be 0.
_LEAST_OF_CHANNELS = 0.1


def _medians(x, kernel):  # (*size) -> the same
    """Return medians of windows of two atoms every half atom, interpolated."""
    size, steps = x.shape, [max(1, k // 2) for k in kernel]
    last = [step * -(-(n - 1) // step) for n, step in zip(size, steps, strict=True)]
    axes = zip(size, kernel, last, strict=True)
    windows = extend(x[None, None], kernel, [k + end + 1 - n for n, k, end in axes])
    for axis, (k, step) in enumerate(zip(kernel, steps, strict=True), 2):
        windows = windows.unfold(axis, 2 * k, step)
    medians = windows.flatten(-len(kernel)).nanmedian(-1).values.nan_to_num(0.0)
    how = dict(mode="linear" if len(kernel) == 1 else "bilinear", align_corners=True)
    medians = torch.nn.functional.interpolate(medians, [end + 1 for end in last], **how)
    return medians[(0, 0, *map(slice, size))]


def slow_part(x, kernel):  # (n, n_channels, *size) -> the same
    """Return what is slower than two atoms, by medians and those of the rest; NaN are gaps."""
    slow = torch.empty_like(x)
    for one, into in zip(x.flatten(0, 1), slow.flatten(0, 1), strict=True):
        into[...] = _medians(one, kernel)
        into += _medians(one - into, kernel)
    return slow


@dataclass(frozen=True, eq=False)
class Channels:
    """Units of the channels of images.

    Parameters
    ----------
    intercept : Tensor of shape (n_channels,)
        Baselines.
    kernel : tuple of int, default=None
        Size of atoms, if slower drift is taken off.
    noise : Tensor of shape (n_channels,), default=None
        Standard deviations of the noise; None if they are equal.
    """

    intercept: Tensor
    kernel: tuple[int, ...] | None = None
    noise: Tensor | None = None

    def scale(self, x):  # (n, n_channels, *size) -> divisors of the channels
        """Return the units of channels, of images or atoms."""
        return x.new_ones(()) if self.noise is None else self._along(self.noise, x)

    def _along(self, values, x):
        return values.to(x).reshape(-1, *[1] * (x.ndim - 2))

    def enter(self, x):  # (n, n_channels, *size) -> the same
        """Return images in units of the channels."""
        x = x - self._along(self.intercept, x)
        x = x if self.kernel is None else x - slow_part(x, self.kernel)
        return x / self.scale(x)

    def leave(self, x):  # (n, n_channels, *size) -> the same
        """Return images with their baselines."""
        return x * self.scale(x) + self._along(self.intercept, x)


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, by `estimate_noise`.

    It is the median over images, and at least a tenth of the median over channels.
    """
    complete = [split_gaps(x, x.ndim - 2)[0].transpose(0, 1) for x in images]
    noise = [torch.stack([estimate_noise(channel[:, None]) for channel in x]) for x in complete]
    noise = torch.cat(noise, dim=1).median(1).values
    least = _LEAST_OF_CHANNELS * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)
