r"""The denoising network: an unfolded sparse encoder whose unfoldings have atoms of their own.

An unfolding is one iteration of the encoder. Unfolding t adds to the codes of an image the
correlations of its residual with atoms, and shrinks the codes by soft thresholds S:
:math:`z_{t+1} = S(z_t + A_t (x - B_{t-1} z_t))`, from :math:`z_0 = 0`. Each unfolding has an
analysis :math:`A_t`, a synthesis :math:`B_t`, and thresholds, which grow with the noise. The last
synthesis decodes the codes.

The noise is of one level, of a range that thresholds follow, or of photons. The noise of photons
grows with their expected number. After Anscombe's transform, which takes roots of counts, its
standard deviation is about 1 wherever there are more than a few photons. So a network with roots as
input and target is a network for Gaussian noise.
"""

from itertools import product
from math import inf, log, sqrt

import numpy as np
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import check_non_negative
from torch import nn

from skpudle._data.arrays import host_array, to_tensor
from skpudle._data.images import extend
from skpudle._fit.encoders import refuse
from skpudle._fit.messages import warn
from skpudle._learners.convolutional.noise import estimate_noise, extent_of
from skpudle._losses import Poisson
from skpudle._operators._conv import ConvDictionary, ConvLayers
from skpudle.encoding._unfold import unfold

# Length of the finite difference that estimates how the denoised image follows its input, in
# standard deviations of the noise, see `_share`.
_STEP = 0.1

# Rows of the matrix that turns three colours into three images for a network of one channel: the
# mean of the colours, and two differences of colours with the noise of one colour. The rows are
# orthogonal.
_OPPONENT = (
    (1 / 3, 1 / 3, 1 / 3),
    (2**-0.5, 0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


# ---------------------------------------------------------------- the noise of training


class Noise:
    """The noise that a network is trained for, read from the parameter ``noise_std``.

    Attributes
    ----------
    low, high : float
        Smallest and largest standard deviation; equal for noise of one level.
    is_range : bool
        Whether ``noise_std`` is a pair.
    of_photons : bool
        Whether the noise is of photon counts.

    Raises
    ------
    ValueError
        If it is no number, no pair of positive numbers in order, and not "poisson".
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

    @property
    def typical(self):
        """The geometric mean of the smallest and the largest level."""
        return sqrt(self.low * self.high)

    def enter(self, x):
        """Return the network's input for images: stabilised counts, other images unchanged."""
        return Poisson().response(x) if self.of_photons else x

    def leave(self, x):
        """Return the images of the network's output, the inverse of `enter`."""
        return Poisson().of_response(x) if self.of_photons else x

    def added_to(self, x, generator):
        """Return images ``x`` (n, ...) with random noise of training, and its levels (n,).

        Levels of a range are drawn evenly on a logarithmic scale: the error in decibels is nearly a
        line on this scale, so that all levels weigh alike. For photons, counts are drawn, and ``x``
        are expected counts. Both are stabilised by Anscombe's transform.
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
        """Return clean images with noise of the middle level; images of a size get equal noise."""
        noise, generator = Noise(self.typical) if self.is_range else self, torch.Generator()
        parts = [noise.added_to(one[None], generator.manual_seed(0))[0] for one in self.enter(x)]
        return self.leave(torch.cat(parts))

    def levels(self, noise_std, images):  # -> Tensor of shape (n,) or None
        """Return the noise levels that a user gave for images, or None if there are none.

        ``noise_std`` is a number or one number for each of the n ``images`` (an `Images`).

        Raises
        ------
        ValueError
            If levels are not finite, negative or not one for each image, or if the network is for
            no noise, or for photons.
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
        """Warn if the noise is larger than all pixels, or so small that its unit must be wrong.

        ``images`` is a list of tensors. ``levels``, a tensor, is the noise that a user gave for
        them; by default the noise of training counts.
        """
        largest = max(float(image.abs().max()) for image in images)
        # In practice the largest pixel is at most 1,200 times the noise of training. If a noise of
        # 50 is given as 50 / 255 for pixels up to 255, the ratio is 1,300. Noise that the user gave
        # for these very images may be as small as it likes. Counts of photons have no unit.
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
    """Return the least number from ``n`` on with this remainder after division by ``stride``."""
    return n + (remainder - n) % stride


def _each(values, x):  # (n,) -> (n, 1, ...), with the number of axes of x
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _share(images, denoised, deviation, probe, derivative):  # each (n, ...) -> (n,)
    r"""Return how far to go from noisy images to denoised ones: 0 to 1 for each image.

    The mix of both, with this share of the denoised image, has the smallest estimated error.
    Denoising changes images ``y`` with noise ``n`` by ``d``. The error of ``y + w d`` is least at
    ``w = -<n, d> / |d|^2``. By Stein's identity the mean of ``-<n, d>`` is the sum of
    ``v_i (1 - df_i / dy_i)``, with ``v_i`` the variance of pixel ``i`` and ``f(y)`` the denoised
    image (C. M. Stein, Annals of Statistics 9, 1981). For photons, with variances equal to their
    counts, it holds up to second derivatives (J. C. Hudson, Annals of Statistics 6, 1978). With a
    ``probe``, random signs times deviations, and the ``derivative`` of the denoised image along the
    probe, the sum of their products estimates the sum of ``v_i df_i / dy_i``.
    """
    explained = (deviation.square() - probe * derivative).flatten(1).sum(1)
    change = (denoised - images).square().flatten(1).sum(1)
    # For images like those of training the estimate is about 0.95. Times 1.1 it is above 1, so that
    # the network's output is returned unchanged. A share that is too large does little harm: the
    # mix is better than the input up to twice the best share. The inner `where` avoids a division
    # by zero, which autograd would turn into NaN.
    share = 1.1 * explained / torch.where(change > 0, change, 1.0)
    return torch.where(change > 0, share, 0.0).clamp(0, 1)


class DenoisingNetwork(nn.Module):
    """A denoiser as a module of torch: channels first, batches, and gradients in the images.

    ``network_`` of `skpudle.ConvDenoiser` is one. ``module(x, sigma)`` is called as by libraries of
    inverse problems, such as deepinv, and returns what `~skpudle.ConvDenoiser.denoise` returns; a
    module of photons takes stabilised counts.

    Parameters
    ----------
    shape : tuple of int
        (n_unfoldings, n_components, n_channels, *kernel).
    stride : tuple of int
        Distance of neighbouring positions along each axis.
    noise_std : float, tuple (low, high) or "poisson"
        The noise of training.
    peak : float, default=1.0
        The largest magnitude of a pixel of the clean training images.

    Attributes
    ----------
    analysis, synthesis : Parameter of the shape
        Atoms of each unfolding, of any norm; the step of the unfolding is contained in them.
    thresholds : Parameter of shape (n_unfoldings, n_components)
        Thresholds of codes without noise.
    slopes : Parameter of shape (n_unfoldings, n_components) or None
        What the middle level of a range of noise adds to the thresholds; other levels add in
        proportion. None unless the network is for a range.

    Notes
    -----
    A plug-and-play loop that repeats the denoiser at one level of noise need not converge: the
    differential of the packaged denoisers has a spectral norm of 1.3 to 2.9 at a photograph, and
    convergence is certain up to 1 only. Lower ``sigma`` from iteration to iteration, from about
    50 / 255 to the noise of the data by equal factors, and end after 10 to 20 iterations, as
    `skpudle.images.inpaint` does and [1]_ recommends: ``deepinv.optim.DPIR(sigma,
    denoiser=module)``.

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

    tile = 768  # pixels along an axis that are denoised at once, plus the overlap
    tell = staticmethod(lambda: None)  # called after each tile

    def __init__(self, shape, stride, noise_std, *, peak=1.0):
        super().__init__()
        self.stride, self.kernel, self.peak = tuple(stride), tuple(shape[3:]), peak
        self.noise_std, self.noise = noise_std, Noise(noise_std)
        zeros = [torch.zeros(size, device="cpu") for size in (shape, shape, shape[:2], shape[:2])]
        self.analysis, self.synthesis, self.thresholds, slopes = map(nn.Parameter, zeros)
        self.register_parameter("slopes", slopes if self.noise.is_range else None)

    @property
    def levels(self):
        """The parameters in units of the images: the thresholds, and the slopes of a range."""
        return [self.thresholds] if self.slopes is None else [self.thresholds, self.slopes]

    @torch.no_grad()
    def adjust_levels(self, unit=1.0):  # -> DenoisingNetwork
        """Set negative `levels` to 0, and multiply them by a new unit; return this network."""
        for levels in self.levels:
            levels.mul_(unit).clamp_min_(0)
        return self

    def get_extra_state(self):
        """Return what `state_dict` needs beside the arrays: stride, noise and peak."""
        return {"stride": self.stride, "noise_std": self.noise_std, "peak": self.peak}

    def set_extra_state(self, state):
        """Take what `get_extra_state` returned."""
        vars(self).update(state, noise=Noise(state["noise_std"]))

    # ------------------------------------------------------------------ codes

    def encode(self, x, sigma=None):  # (n, n_channels, *size) -> code maps
        """Return code maps, (n, n_components, *positions), of images that atoms cover exactly.

        ``sigma``, (n,), is the noise of each image, by default that of `noise_of`. A noise outside
        of the levels of training counts as the nearest level.
        """
        sigma = self.noise_of(x) if sigma is None else sigma
        levels = self.thresholds.to(x)  # (n_unfoldings, n_components), or one for each image
        if self.slopes is not None:
            share = sigma.clamp(self.noise.low, self.noise.high) / self.noise.typical
            levels = levels[:, None] + share[:, None] * self.slopes.to(x)[:, None]
        levels = levels.reshape(*levels.shape, *[1] * len(self.stride))
        both = self.analysis, self.synthesis
        analysis, synthesis = (ConvLayers(atoms.to(x), self.stride) for atoms in both)
        return unfold(synthesis, x, levels, x.new_ones(()), analysis=analysis)

    def decode(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return the images of code maps."""
        return ConvDictionary(self.synthesis[-1].to(z), self.stride).synthesis(z)

    # ------------------------------------------------------------------ noise

    def noise_of(self, x, extent=None):  # (n, n_channels, *size) -> (n,)
        """Return the noise of each image: an estimate if thresholds follow the noise.

        Otherwise it is the noise of training. ``extent`` is for `estimate_noise`.
        """
        if self.slopes is not None:
            return estimate_noise(x, extent)
        return x.new_full((len(x),), self.noise.high)

    def _unit_of(self, x, sigma):  # (n, ...), (n,) -> (n,)
        """Return divisors (n,) that make images ``x`` with noise ``sigma`` like those in training.

        The divisor is 1 if pixels and noise of an image are as large as in training. For noise
        above the range of training it is at least the noise over the largest level. For noise below
        the range pixels grow at most to the peak of training, even if the noise stays below the
        range: a network with atoms for each unfolding is unstable for images unlike those in
        training.
        """
        low, high = self.noise.low, self.noise.high
        if not high:
            return torch.ones_like(sigma)
        largest = x.abs().flatten(1).amax(1)
        same_noise = (sigma >= low) & (sigma <= high)
        # Divide only if pixels exceed the peak of training by more than noise can: the largest of a
        # million normal numbers is about 5 standard deviations, and 6 are allowed.
        same_units = ((largest - 6 * sigma) / self.peak).clamp_min(1)
        other_units = torch.maximum(sigma / high, largest / self.peak)
        unit = torch.where(same_noise, same_units, other_units)
        return torch.where(unit == 0, 1.0, unit)

    # ------------------------------------------------------------------ images

    def _in_tiles(self, x, sigma):  # (n, n_channels, *size) -> the same
        """Return decoded codes of images that atoms cover exactly, tile by tile.

        An unfolding carries information over less than the size of an atom. So tiles that overlap
        by one atom for every unfolding give the result of the whole image, up to rounding.
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
        """Return decoded codes of images of any size, on one grid of positions of atoms.

        Images are extended by reflection, so that border pixels are covered by as many atoms as
        inner pixels. ``shift`` says for each axis how many pixels the grid is moved, and ``room``
        is the largest shift of all grids.
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
        """Denoise three colours by a network for one channel.

        Three grey images, see `_OPPONENT`, are denoised one by one, and turned back into colours.
        """
        mixing = x.new_tensor(_OPPONENT)
        channels = torch.einsum("oc,nc...->on...", mixing, x)[:, :, None]
        if sigma is None and self.slopes is not None:
            # The range of the grey image bounds the texture that colour differences may have.
            extent = extent_of(channels[0])
            levels = [self.noise_of(channel.detach(), extent) for channel in channels]
        else:
            sigma = self.noise_of(x) if sigma is None else sigma
            levels = mixing.norm(dim=1)[:, None] * sigma
        pairs = zip(channels, levels, strict=True)
        denoised = torch.cat([self(*pair, shift_average=shift_average) for pair in pairs], 1)
        return torch.einsum("co,no...->nc...", torch.linalg.inv(mixing), denoised)

    def forward(self, x, sigma=None, *, shift_average=False):
        """Denoise images, and keep their size.

        A network for one channel denoises three. The output is mixed with the input by Stein's
        unbiased risk estimate, which costs one more pass on one grid.

        Parameters
        ----------
        x : Tensor of shape (n, n_channels, height, width)
            Noisy images in float32 or float64.
        sigma : float or Tensor of shape () or (n,), default=None
            Standard deviation of the noise; by default estimated for each image.
        shift_average : bool, default=False
            Whether to average over all grids of positions.

        Returns
        -------
        Tensor of shape (n, n_channels, height, width)
            Denoised images, differentiable in ``x``.
        """
        if sigma is not None:
            sigma = to_tensor(sigma, x.device, x.dtype).flatten().expand(len(x))
        if x.shape[1] == len(_OPPONENT) > self.analysis.shape[2]:
            return self._of_opponents(x, sigma, shift_average)
        shifts = list(product(*(range(s if shift_average else 1) for s in self.stride)))
        # the noise is that of the whole image, and not of its tiles
        noise, sigma = self.noise, self.noise_of(x.detach()) if sigma is None else sigma
        unit = _each(self._unit_of(x, sigma), x)

        def reconstruct(x, shift):  # on the grid of a shift; the last of all shifts is the largest
            return self._on_grid(x / unit, sigma / unit.flatten(), shift, shifts[-1]) * unit

        parts = [reconstruct(x, shift) for shift in shifts]
        mean = sum(parts) / len(parts)
        if not noise.high:
            return mean
        images, denoised, first = map(noise.leave, (x, mean, parts[0]))
        # The variance of photon counts is their expectation, for which the noisy image stands.
        deviation = images.sqrt() if noise.of_photons else _each(sigma, images).expand_as(images)
        # The probe: random signs, the same for every image of a size, times the noise.
        generator = torch.Generator(device="cpu").manual_seed(0)
        bits = torch.randint(2, (1, *images.shape[1:]), generator=generator, device="cpu")
        probe = (2 * bits - 1).to(images) * deviation
        beside = noise.leave(reconstruct(noise.enter(images + _STEP * probe), shifts[0]))
        share = _share(images, denoised, deviation, probe, (beside - first) / _STEP)
        return noise.enter(images.lerp(denoised, _each(share, images)))
