r"""`DenoisingNetwork`, the torch module of `skpudle.ConvDenoiser`, and the noise of its training.

The network encodes an image ``x`` by an unfolded convolutional encoder and decodes the codes. An
*unfolding* is one iteration of the encoder:
:math:`z_{t+1} = S_t(z_t + A_t (x - B_{t-1} z_t))`, from :math:`z_0 = 0`, where :math:`S_t` is soft
thresholding. Each unfolding has its own atoms for the analysis :math:`A_t` (correlations of images
with atoms), its own atoms for the synthesis :math:`B_t` (images from codes), and a threshold for
each atom. The synthesis of the last unfolding decodes the codes.

A network is trained for one level of noise (a standard deviation), for a range of levels, where
thresholds grow with the noise of an image, or for photon counts. The variance of photon counts
equals their expectation. Anscombe's transform, which takes roots of counts, makes the standard
deviation about 1 wherever more than a few photons are expected. So a network for photons is a
network for Gaussian noise of level 1, with the roots of counts as input and target.

Shapes are (n, n_channels, *size), with ``size`` (length,) for signals and (height, width) for
pictures. A *grid* is the set of positions of atoms, ``stride`` pixels apart; atoms cover an image
*exactly* if its size is the size of an atom plus a multiple of the stride.
"""

from itertools import product
from math import inf, log, sqrt

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import check_non_negative
from torch import nn

from skpudle._data.arrays import host_array, to_tensor, warn
from skpudle._data.images import extend
from skpudle._fit.messages import refuse
from skpudle._learners.convolutional.learn import estimate_noise, extent_of
from skpudle._losses import Poisson
from skpudle._operators._conv import ConvDictionary, ConvLayers
from skpudle.encoding._unfold import unfold

# Step of the finite difference that estimates the derivative of the denoised image in its input, in
# standard deviations of the noise; see `_share`.
_STEP = 0.1

# Orthogonal rows of a matrix that turns three colours into three grey images for a network of one
# channel: the mean of the colours, and two differences of colours. The rows of the differences have
# norm 1, so that a difference has the noise of one colour.
_OPPONENT = (
    (1 / 3, 1 / 3, 1 / 3),
    (2**-0.5, 0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


# ---------------------------------------------------------------- the noise of training


class Noise:
    """The noise that a network is trained for: adds it to images, and checks the user's levels.

    Parameters
    ----------
    noise_std : float, tuple (low, high) or "poisson"
        Standard deviation of Gaussian noise, a range of standard deviations, or photon counts.

    Attributes
    ----------
    low, high : float
        Smallest and largest standard deviation. They are equal for one level, and 1 for photons.
    typical : float
        The geometric mean of ``low`` and ``high``; for one level this level.
    is_range : bool
        Whether ``noise_std`` is a pair.
    of_photons : bool
        Whether the noise is of photon counts.

    Raises
    ------
    ValueError
        If it is not a finite number, a pair of positive numbers in order, or "poisson".
    """

    def __init__(self, noise_std):
        self.of_photons, self.is_range = noise_std == "poisson", isinstance(noise_std, tuple)
        level = 1.0 if self.of_photons else noise_std
        self.low, self.high = map(float, level if self.is_range else (level, level))
        refuse(
            not (self.low <= self.high < inf and (self.low > 0 or not self.is_range)),
            f"noise_std={noise_std!r:.80} is neither a standard deviation nor a pair "
            "(low, high) of positive ones. Pass one number, such a pair, or 'poisson'.",
        )
        self.typical = sqrt(self.low * self.high)

    def enter(self, x):  # (n, ...) -> the same shape
        """Return the network's input: roots of photon counts (Anscombe), else ``x`` unchanged."""
        return Poisson().response(x) if self.of_photons else x

    def leave(self, x):  # (n, ...) -> the same shape
        """Return the images that the network's output stands for: the inverse of `enter`."""
        return Poisson().of_response(x) if self.of_photons else x

    def added_to(self, x, generator):  # (n, ...) -> (n, ...), (n,)
        """Return clean inputs of the network with random noise, and the noise levels of the images.

        Each image has its own level. Levels of a range are uniform on a logarithmic scale: the
        error in decibels is nearly linear on this scale, so that all levels have equal weight. For
        photons, ``x`` are the roots (`enter`) of expected counts, and the roots of random counts
        are returned. Random numbers are drawn on the CPU, equal for all devices.
        """
        options = dict(generator=generator, dtype=x.dtype, device="cpu")
        if self.of_photons:
            counts = torch.poisson(self.leave(x).cpu(), generator=generator)
            return self.enter(counts.to(x)), x.new_ones(len(x))
        sigma = x.new_full((len(x),), self.high)
        if self.is_range:
            low, high = log(self.low), log(self.high)
            sigma = torch.exp(low + (high - low) * torch.rand(len(x), **options)).to(x)
        return x + _each(sigma, x) * torch.randn(x.shape, **options).to(x), sigma

    def typically_added_to(self, x):  # (n, n_channels, *size) -> the same
        """Return clean images with noise of level `typical`, for `ConvDenoiser.score`.

        Every image gets the noise of one seed, so that repeated scores are equal.
        """
        noise, generator = Noise(self.typical) if self.is_range else self, torch.Generator()
        parts = [noise.added_to(one[None], generator.manual_seed(0))[0] for one in self.enter(x)]
        return self.leave(torch.cat(parts))

    def levels(self, noise_std, images):  # -> Tensor of shape (n,) or None
        """Check the ``noise_std`` that a user passed to `ConvDenoiser.denoise`; return the levels.

        ``noise_std`` is None, a number, or one number for each of the n images of ``images`` (an
        `Images`). For None the result is None.

        Raises
        ------
        ValueError
            If levels are negative, not finite or not one for each image; or if levels are passed
            to a network for photons, or for a noise of 0.
        """
        if noise_std is None:
            return None
        known = "follows from their counts" if self.of_photons else "of training was 0"
        refuse(
            self.of_photons or not self.high,
            f"noise_std={noise_std!r:.50}, but the noise {known}. Leave noise_std=None, or "
            "train with noise_std, of one level or a pair.",
        )
        levels = np.broadcast_to(host_array(noise_std), len(images))
        levels = check_array(levels, ensure_2d=False, dtype=np.float64, input_name="noise_std")
        check_non_negative(levels, "noise_std")
        return to_tensor(levels).to(images.tensors[0])

    def warn_of_units(self, images, levels=None):
        """Warn if noise and images seem to have different units, such as 25 and 25 / 255.

        ``images`` is a list of tensors (n, n_channels, *size). ``levels`` (n,) is the noise that a
        user passed for them; by default it is the noise of training. The warning comes if the noise
        is larger than all pixels, or if the noise of training is below 1 / 1,200 of the largest
        pixel.
        """
        largest = max(float(image.abs().max()) for image in images)
        # In practice the largest pixel is at most 1,200 times the noise of training. If a user
        # passes 50 / 255 instead of 50 for pixels up to 255, the ratio is 1,300. Levels that the
        # user passed for these images have no lower limit. Counts of photons have no unit.
        level, least = self.typical, largest / 1200
        if levels is not None:
            level, least = float(levels.max()), 0.0
        if level and largest and not (self.of_photons or least <= level <= largest):
            warn(
                f"noise_std={level:.3g}, but the largest pixel is {largest:.3g}. Noise is "
                "in the units of the images, and unsigned integers become fractions of their "
                "largest value: 25 for values from 0 to 255 is 25 / 255 for fractions."
            )


# ---------------------------------------------------------------- the network


def _round_up(n, stride, remainder=0):
    """Return the smallest integer >= ``n`` with this remainder after division by ``stride``."""
    return n + (remainder - n) % stride


def _each(values, x):  # (n,) -> (n, 1, ...), with the number of axes of x
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _share(images, denoised, deviation, probe, derivative):  # each (n, ...) -> (n,)
    r"""Return the weight of the denoised image in the output, from 0 to 1 for each image.

    The output is ``images + w * (denoised - images)``, and ``w`` minimises an estimate of its
    squared error (Stein's unbiased risk estimate). ``deviation`` is the standard deviation of the
    noise of each pixel, ``probe`` has random signs times ``deviation``, and ``derivative`` is the
    derivative of the denoised images along ``probe``.

    Let ``n`` be the noise of the images ``y``, and ``d = f(y) - y`` the change by the denoiser
    ``f``. The error is least at ``w = -<n, d> / |d|^2``. By Stein's identity the expectation of
    ``-<n, d>`` is the sum over pixels of ``v_i (1 - df_i / dy_i)``, with ``v_i`` the variance of
    pixel ``i`` (C. M. Stein, Annals of Statistics 9, 1981). For photon counts, whose variances
    are estimated by the counts, the identity holds up to second derivatives (J. C. Hudson, Annals
    of Statistics 6, 1978). ``<probe, derivative>`` estimates the sum of ``v_i df_i / dy_i``.
    """
    explained = (deviation.square() - probe * derivative).flatten(1).sum(1)
    change = (denoised - images).square().flatten(1).sum(1)
    # For images like the training images the estimated weight is about 0.95. The factor 1.1 raises
    # the weight above 1, so that these images get the network's output unchanged. A weight that is
    # too large does little harm: the output is better than the noisy image up to twice the best
    # weight. The inner `where` avoids a division by zero, whose gradient would be NaN.
    share = 1.1 * explained / torch.where(change > 0, change, 1.0)
    return torch.where(change > 0, share, 0.0).clamp(0, 1)


class DenoisingNetwork(nn.Module):
    """A denoiser as a torch module: ``network_`` of `skpudle.ConvDenoiser`.

    ``module(x, sigma)`` has the interface of denoisers in libraries for inverse problems, such as
    deepinv. It takes and returns batches with channels first, is differentiable in ``x``, and
    returns what `~skpudle.ConvDenoiser.denoise` returns. A module for photons takes and returns
    counts after Anscombe's transform, ``2 * sqrt(counts + 3 / 8)``.

    Parameters
    ----------
    shape : tuple of int
        Shape of the atoms: (n_unfoldings, n_components, n_channels, *kernel), where ``kernel`` is
        the size of an atom. All parameters are 0 until they are trained or loaded.
    stride : tuple of int
        Distance of neighbouring positions of atoms along each axis.
    noise_std : float, tuple (low, high) or "poisson"
        The noise of training.
    peak : float, default=1.0
        The largest magnitude of a pixel of the clean training images.

    Attributes
    ----------
    analysis, synthesis : Parameter of shape (n_unfoldings, n_components, n_channels, *kernel)
        Atoms of each unfolding. They have any norm, since they contain the encoder's step size.
    thresholds : Parameter of shape (n_unfoldings, n_components)
        Thresholds of the codes; for a range of noise, their values without noise.
    slopes : Parameter of shape (n_unfoldings, n_components) or None
        For a range of noise, what noise of the geometric mean of low and high adds to the
        thresholds; other levels add in proportion. None for one level and for photons.
    stride, noise_std, peak
        The parameters of these names.
    noise : Noise
        The noise of training, read from ``noise_std``.

    Notes
    -----
    A plug-and-play loop that repeats the denoiser at one level of noise need not converge: the
    derivative (Jacobian) of the packaged denoisers has a spectral norm of 1.3 to 2.9 at a
    photograph, and convergence is certain up to 1 only. Lower ``sigma`` from iteration to
    iteration, from about 50 / 255 to the noise of the data by equal factors, and end after 10 to 20
    iterations, as `skpudle.images.inpaint` does and [1]_ recommends:
    ``deepinv.optim.DPIR(sigma, denoiser=module)``.

    References
    ----------
    .. [1] K. Zhang, Y. Li, W. Zuo, L. Zhang, L. Van Gool and R. Timofte, "Plug-and-play image
       restoration with deep denoiser prior", IEEE Transactions on Pattern Analysis and Machine
       Intelligence 44, 2022.

    Examples
    --------
    >>> import torch
    >>> from skpudle.pretrained import load_denoiser
    >>> module = load_denoiser("gaussian-small").network_
    >>> x = torch.rand(2, 3, 24, 24, requires_grad=True)
    >>> module(x, 0.1).square().sum().backward()
    >>> x.grad.shape
    torch.Size([2, 3, 24, 24])
    """

    tile = 768  # size of a tile along an axis in pixels, without the overlap of tiles
    tell = staticmethod(lambda: None)  # called after each tile; `ConvDenoiser` prints progress

    def __init__(self, shape, stride, noise_std, *, peak=1.0):
        super().__init__()
        self.stride, self.kernel, self.peak = tuple(stride), tuple(shape[3:]), peak
        self.noise_std, self.noise = noise_std, Noise(noise_std)
        zeros = [torch.zeros(size, device="cpu") for size in (shape, shape, shape[:2], shape[:2])]
        self.analysis, self.synthesis, self.thresholds, slopes = map(nn.Parameter, zeros)
        self.register_parameter("slopes", slopes if self.noise.is_range else None)

    @property
    def levels(self):
        """The parameters that are in units of the images: thresholds, and slopes if there are any.

        `adjust_levels` changes the unit of exactly these parameters.
        """
        return [self.thresholds] if self.slopes is None else [self.thresholds, self.slopes]

    @torch.no_grad()
    def adjust_levels(self, unit=1.0):  # -> DenoisingNetwork
        """Multiply thresholds and slopes by a factor, set negative ones to 0; return this network.

        Training calls it after each update to keep thresholds non-negative, and with a factor when
        images change their unit.
        """
        for levels in self.levels:
            levels.mul_(unit).clamp_min_(0)
        return self

    def get_extra_state(self):
        """Return stride, noise and peak, which `state_dict` stores beside the parameters."""
        return {"stride": self.stride, "noise_std": self.noise_std, "peak": self.peak}

    def set_extra_state(self, state):
        """Take over the result of `get_extra_state`; `load_state_dict` calls this method."""
        vars(self).update(state, noise=Noise(state["noise_std"]))

    # ------------------------------------------------------------------ codes

    def encode(self, x, sigma=None):  # (n, n_channels, *size) -> code maps
        """Return codes, (n, n_components, *positions), of images that atoms cover exactly.

        ``sigma`` (n,) is the standard deviation of the noise of each image, by default `noise_of`.
        It sets the thresholds of a network for a range of noise, after it is clipped to the range,
        and has no effect on other networks.
        """
        sigma = self.noise_of(x) if sigma is None else sigma
        levels = self.thresholds.to(x)  # (n_unfoldings, [n,] n_components), n if there are slopes
        if self.slopes is not None:
            share = sigma.clamp(self.noise.low, self.noise.high) / self.noise.typical
            levels = levels[:, None] + share[:, None] * self.slopes.to(x)[:, None]
        levels = levels.reshape(*levels.shape, *[1] * len(self.stride))
        both = self.analysis, self.synthesis
        analysis, synthesis = (ConvLayers(atoms.to(x), self.stride) for atoms in both)
        return unfold(synthesis, x, levels, x.new_ones(()), analysis=analysis)

    def decode(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return images from the codes of `encode`, by the synthesis of the last unfolding."""
        return ConvDictionary(self.synthesis[-1].to(z), self.stride).synthesis(z)

    # ------------------------------------------------------------------ noise

    def noise_of(self, x, extent=None):  # (n, n_channels, *size) -> (n,)
        """Return the standard deviation of the noise to assume for images without a known noise.

        A network for a range of noise estimates it from each image. For other networks it is the
        noise of training. ``extent`` (n,) is an argument of `estimate_noise`: the range of pixels
        that bounds the texture of each image, by default the range of the image.
        """
        if self.slopes is not None:
            return estimate_noise(x, extent)
        return x.new_full((len(x),), self.noise.high)

    def _unit_of(self, x, sigma):  # (n, ...), (n,) -> (n,)
        """Return divisors that bring images ``x`` with noise ``sigma`` to the scale of training.

        If the noise of training was 0, all divisors are 1. If the noise of an image is in the range
        of training, its divisor is 1, or larger if pixels exceed the peak of training. Else it is
        the larger of noise / high and largest pixel / peak: noise above the range falls to the
        largest level or below, and images with noise below the range grow until the noise has the
        largest level or a pixel the peak. Larger pixels than in training would make the unfoldings
        unstable.
        """
        low, high = self.noise.low, self.noise.high
        if not high:
            return torch.ones_like(sigma)
        largest = x.abs().flatten(1).amax(1)
        same_noise = (sigma >= low) & (sigma <= high)
        # Noise alone lifts pixels above the peak of the clean training images: of a million pixels
        # the largest by about 5 standard deviations. A pixel that exceeds the peak by more than 6
        # standard deviations must have another reason, and only then the image is divided.
        same_units = ((largest - 6 * sigma) / self.peak).clamp_min(1)
        other_units = torch.maximum(sigma / high, largest / self.peak)
        unit = torch.where(same_noise, same_units, other_units)
        return torch.where(unit == 0, 1.0, unit)

    # ------------------------------------------------------------------ images

    def _in_tiles(self, x, sigma):  # (n, n_channels, *size) -> the same
        """Encode and decode images that atoms cover exactly, tile by tile to bound memory.

        ``sigma`` (n,) is the noise of each image. An unfolding carries information over less than
        the size of an atom. So tiles with a margin of the size of an atom for each unfolding give
        the result of the whole image, up to rounding. Tiles start at multiples of the stride, so
        that all tiles have the grid of the whole image.
        """
        for axis, (k, s) in enumerate(zip(self.kernel, self.stride, strict=True), start=2):
            total, reach = x.shape[axis], _round_up(len(self.analysis) * (k - 1), s)
            tile, parts = max(s, self.tile // s * s), []
            if total < tile + 2 * (reach + s) + k:
                continue
            for start in range(0, total, tile):
                first, stop = max(0, start - reach), min(start + tile, total)
                last = min(total, first + _round_up(stop + reach - first, s, k))
                part = self._in_tiles(x.narrow(axis, first, last - first), sigma)
                parts.append(part.narrow(axis, start - first, stop - start))
            return torch.cat(parts, axis)
        decoded = self.decode(self.encode(x, sigma))
        self.tell()
        return decoded

    def _on_grid(self, x, sigma, shift, room):  # (n, n_channels, *size) -> the same
        """Encode and decode images of any size, on one grid of positions of atoms.

        Images are extended by reflection, so that as many atoms cover a border pixel as an inner
        pixel. ``sigma`` (n,) is the noise of each image. ``shift``, a tuple, is the shift of the
        grid along each axis in pixels, and ``room`` the largest shift along each axis that the
        caller averages over: results for all shifts up to ``room`` come from extended images of one
        size.
        """
        axes = list(zip(x.shape[2:], self.kernel, self.stride, shift, room, strict=True))
        before = [k - 1 - first for _, k, _, first, _ in axes]
        totals = [_round_up(n + 2 * (k - 1) - r, s, k) for n, k, s, _, r in axes]
        after = [total - n - b for total, n, b in zip(totals, x.shape[2:], before, strict=True)]
        found = self._in_tiles(extend(x, before, after), sigma)
        for axis, (start, n) in enumerate(zip(before, x.shape[2:], strict=True), start=2):
            found = found.narrow(axis, start, n)
        return found

    def _of_opponents(self, x, sigma, shift_average):  # (n, 3, *size) -> the same
        """Denoise images of three colours by a network for one channel.

        The colours become three grey images by `_OPPONENT`. Each is denoised alone, with its own
        noise level, and the inverse matrix gives colours again. ``sigma`` (n,) is the noise of each
        image, or None to take it from `noise_of`.
        """
        mixing = x.new_tensor(_OPPONENT)
        channels = torch.einsum("oc,nc...->on...", mixing, x)[:, :, None]
        if sigma is None and self.slopes is not None:
            # `estimate_noise` bounds texture by the range of an image. The texture of colour
            # differences is bounded by the range of the grey image, not by their own range.
            extent = extent_of(channels[0])
            levels = [self.noise_of(channel.detach(), extent) for channel in channels]
        else:
            sigma = self.noise_of(x) if sigma is None else sigma
            levels = mixing.norm(dim=1)[:, None] * sigma
        pairs = zip(channels, levels, strict=True)
        denoised = torch.cat([self(*pair, shift_average=shift_average) for pair in pairs], 1)
        return torch.einsum("co,no...->nc...", torch.linalg.inv(mixing), denoised)

    def forward(self, x, sigma=None, *, shift_average=False):
        """Denoise images of any size.

        A network for one channel also denoises three, by their mean and two differences. The result
        is a weighted mean of the network's output and its input, with the weight of least error by
        Stein's unbiased risk estimate. The estimate takes one more pass through the network.

        Parameters
        ----------
        x : Tensor of shape (n, n_channels, height, width) or (n, n_channels, length)
            Noisy images in float32 or float64; counts after Anscombe's transform if the network is
            for photons.
        sigma : float or Tensor of shape () or (n,), default=None
            Standard deviation of the noise of each image, in the units of ``x``. By default it is
            estimated for a network for a range of noise, and else the noise of training.
        shift_average : bool, default=False
            Whether to average the output over all shifts of the grid of positions.

        Returns
        -------
        Tensor of the shape of x
            Denoised images, differentiable in ``x``.
        """
        if sigma is not None:
            sigma = to_tensor(sigma, x.device, x.dtype).flatten().expand(len(x))
        if x.shape[1] == len(_OPPONENT) > self.analysis.shape[2]:
            return self._of_opponents(x, sigma, shift_average)
        shifts = list(product(*(range(s if shift_average else 1) for s in self.stride)))
        # Noise is estimated here, once for the whole image, so that all tiles get the same noise.
        noise, sigma = self.noise, self.noise_of(x.detach()) if sigma is None else sigma
        unit = _each(self._unit_of(x, sigma), x)

        def reconstruct(x, shift):  # on the grid of a shift; shifts[-1] is the largest of all
            return self._on_grid(x / unit, sigma / unit.flatten(), shift, shifts[-1]) * unit

        parts = [reconstruct(x, shift) for shift in shifts]
        mean = sum(parts) / len(parts)
        if not noise.high:
            return mean
        images, denoised, first = map(noise.leave, (x, mean, parts[0]))
        # The variance of photon counts is their expectation, which the noisy counts estimate.
        deviation = images.sqrt() if noise.of_photons else _each(sigma, images).expand_as(images)
        # The probe of `_share`: random signs times the noise. The signs have a fixed seed, so that
        # the same image always gives the same result.
        generator = torch.Generator(device="cpu").manual_seed(0)
        bits = torch.randint(2, (1, *images.shape[1:]), generator=generator, device="cpu")
        probe = (2 * bits - 1).to(images) * deviation
        beside = noise.leave(reconstruct(noise.enter(images + _STEP * probe), shifts[0]))
        share = _share(images, denoised, deviation, probe, (beside - first) / _STEP)
        return noise.enter(images.lerp(denoised, _each(share, images)))
