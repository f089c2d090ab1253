r"""`DenoisingNetwork`, the torch module of `skpudle.ConvDenoiser`, and the noise of its training.

The network computes sparse codes ``z`` of an image ``x`` by some iterations, called *unfoldings*,
and turns the codes into the denoised image. An unfolding is
:math:`z_{t+1} = S_t(z_t + A_t (x - B_{t-1} z_t))`, from :math:`z_0 = 0`, where :math:`S_t` is soft
thresholding. Each unfolding has its own atoms for the *analysis* :math:`A_t` (correlations of
images with atoms), its own atoms for the *synthesis* :math:`B_t` (images from codes), and a
threshold for each atom. The synthesis of the last unfolding turns the codes into the image.

A network is trained for one *level* of noise (a standard deviation), for a range of levels, where
thresholds grow with the noise of an image, or for photon counts. The variance of photon counts
equals their expectation. Anscombe's transform, which takes roots of counts, makes the standard
deviation about 1 wherever more than a few photons are expected. So a network for photons is a
network for Gaussian noise of level 1, with the roots of counts as input and target.

Shapes are (n, n_channels, *size), with ``size`` (length,) for signals and (height, width) for
pictures. Copies of each atom lie on a *grid* of positions, ``stride`` pixels apart. They cover an
image *exactly* if its size is the size of an atom plus a multiple of the stride.
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
from skpudle._image_noise import estimate_noise, extent_of
from skpudle._losses import Poisson
from skpudle._operators._conv import ConvDictionary, ConvLayers
from skpudle.encoding._unfold import unfold

# `_share` needs the derivative of the denoised image in the noisy image. A finite difference
# estimates it, whose step is this number of standard deviations of the noise.
_STEP = 0.1

# A network of one channel denoises colours as three grey images: the mean of the colours, and two
# differences of colours. The rows of this matrix make these images from the three colours. The rows
# are orthogonal, so that the images have independent noise. The rows of the differences have norm
# 1, so that a difference has the noise of one colour.
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
        If ``noise_std`` is neither a finite number, nor a pair of positive numbers in order, nor
        "poisson".
    """

    def __init__(self, noise_std):
        self.of_photons = noise_std == "poisson"
        self.is_range = isinstance(noise_std, tuple)
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
        """Add random noise to clean images, which an update trains the network to remove.

        ``x`` are clean images after `enter`. Return the noisy images, also in the form of `enter`,
        and the noise level of each image. From a range each image draws its own level, uniform on a
        logarithmic scale: the error in decibels is nearly linear on this scale, so that all levels
        have equal weight. For photons, where ``x`` are roots of expected counts, the result are
        roots of random counts, and levels are 1. ``generator`` is a torch generator on the CPU, so
        that the same numbers are drawn for all devices.
        """
        options = dict(generator=generator, dtype=x.dtype, device="cpu")
        if self.of_photons:
            counts = torch.poisson(self.leave(x).cpu(), generator=generator)
            return self.enter(counts.to(x)), x.new_ones(len(x))
        sigma = x.new_full((len(x),), self.high)
        if self.is_range:
            low = log(self.low)
            high = log(self.high)
            sigma = torch.exp(low + (high - low) * torch.rand(len(x), **options)).to(x)
        return x + _each(sigma, x) * torch.randn(x.shape, **options).to(x), sigma

    def typically_added_to(self, x):  # (n, n_channels, *size) -> the same
        """Return clean images with noise of level `typical`, for `ConvDenoiser.score`.

        ``x`` are images in the user's units, as is the result. Every image gets noise from the same
        seed, so that repeated scores are equal.
        """
        noise = Noise(self.typical) if self.is_range else self
        generator = torch.Generator()
        parts = [
            noise.added_to(one[None], generator.manual_seed(0))[0]
            for one in self.enter(x)
        ]
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
        reason = "follows from their counts" if self.of_photons else "of training was 0"
        refuse(
            self.of_photons or not self.high,
            f"noise_std={noise_std!r:.50}, but the noise {reason}. Leave noise_std=None, or "
            "train with noise_std, of one level or a pair.",
        )
        levels = np.broadcast_to(host_array(noise_std), len(images))
        levels = check_array(
            levels, ensure_2d=False, dtype=np.float64, input_name="noise_std"
        )
        check_non_negative(levels, "noise_std")
        return to_tensor(levels).to(images.tensors[0])

    def warn_of_more(self, images):
        """Warn if `Images` seem to have more than twice the noise of a training for one level.

        The network would leave most of such noise. A network for a range of noise, or for photons,
        follows the noise of each image, so there is no warning.
        """
        if self.is_range or self.of_photons or self.high == 0:
            return
        estimates = [float(estimate_noise(x).max()) for x in images.tensors]
        if max(estimates) > 2 * self.high:
            warn(
                f"The noise of an image seems to be {max(estimates):.3g}, and the network was "
                f"trained for {self.high:.3g}: it leaves most of this noise. Pass the noise to "
                "denoise, as noise_std, or fit with noise_std='auto', for a range of noise."
            )

    def warn_of_units(self, images, levels=None):
        """Warn if noise and images seem to have different units, such as 25 and 25 / 255.

        ``images`` is a list of tensors (n, n_channels, *size). ``levels`` (n,) is the noise that a
        user passed for them; by default it is the noise of training. The warning comes if the noise
        is larger than all pixels, or if the noise of training is below 1 / 1,200 of the largest
        pixel.
        """
        largest = max(float(image.abs().max()) for image in images)
        # The limit of 1,200 separates right from wrong units: if a user passes 50 / 255 instead of
        # 50 for pixels up to 255, the largest pixel is 1,300 times the noise. The limit holds for
        # the noise of training only: levels passed to `denoise` may be as small as the user likes.
        # Photon counts have no unit, so there is no warning.
        level = self.typical
        least = largest / 1200
        if levels is not None:
            level = float(levels.max())
            least = 0.0
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


def _each(
    values, x
):  # one number per image (n,) -> (n, 1, ...), which broadcasts against x
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _share(
    images,
    denoised,
    deviation,
    probe,
    derivative,
):  # each (n, ...) -> (n,)
    r"""Return the weight of the denoised image in the output, from 0 to 1 for each image.

    The output of the network is ``images + w * (denoised - images)`` with noisy ``images``. The
    weight ``w`` minimises an estimate of the squared error of the output (Stein's unbiased risk
    estimate). ``deviation`` is the standard deviation of the noise of each pixel, ``probe`` has
    random signs times ``deviation``, and ``derivative`` is the derivative of the denoised images
    along ``probe``.

    Let ``n`` be the noise of the images ``y``, and ``d = f(y) - y`` the change by the denoiser
    ``f``. The error is least at ``w = -<n, d> / |d|^2``, in the code ``explained`` over
    ``squared_change``. By Stein's identity the expectation of ``-<n, d>`` is the sum over pixels of
    ``v_i (1 - df_i / dy_i)``, with ``v_i`` the variance of pixel ``i`` (C. M. Stein, Annals of
    Statistics 9, 1981). For photon counts, whose variances are estimated by the counts, the
    identity holds up to second derivatives (J. C. Hudson, Annals of Statistics 6, 1978). ``<probe,
    derivative>`` estimates the sum of ``v_i df_i / dy_i``.
    """
    explained = (deviation.square() - probe * derivative).flatten(1).sum(1)
    squared_change = (denoised - images).square().flatten(1).sum(1)
    # For images like the training images the estimated weight is about 0.95. The factor 1.1 raises
    # the weight above 1, so that these images get the network's output unchanged. A weight that is
    # too large does little harm: up to twice the best weight the output is still better than the
    # noisy image. The inner `where` avoids a division by zero, whose gradient would be NaN although
    # the outer `where` discards its result.
    share = 1.1 * explained / torch.where(squared_change > 0, squared_change, 1.0)
    return torch.where(squared_change > 0, share, 0.0).clamp(0, 1)


class DenoisingNetwork(nn.Module):
    """A denoiser as a torch module: ``network_`` of `skpudle.ConvDenoiser`.

    ``module(x, sigma)`` has the interface of denoisers in libraries for inverse problems, such as
    deepinv: ``x`` are noisy images with channels first, and ``sigma`` is the standard deviation of
    their noise. It is differentiable in ``x``, and returns what `~skpudle.ConvDenoiser.denoise`
    returns. A module for photons takes and returns counts after Anscombe's transform, ``2 *
    sqrt(counts + 3 / 8)``.

    Parameters
    ----------
    shape : tuple of int
        Shape of the atoms: (n_unfoldings, n_components, n_channels, *kernel), where ``kernel`` is
        the size of an atom. All parameters are 0 until they are trained or loaded.
    stride : tuple of int
        Distance in pixels of neighbouring copies of an atom along each axis.
    noise_std : float, tuple (low, high) or "poisson"
        The noise of training.
    peak : float, default=1.0
        The largest magnitude of a pixel of the clean training images (for photons of their roots).
        Images with larger pixels are divided, see `forward`.

    Attributes
    ----------
    analysis, synthesis : Parameter of shape (n_unfoldings, n_components, n_channels, *kernel)
        Atoms of each unfolding. They have any norm, since they contain the encoder's step size.
    thresholds : Parameter of shape (n_unfoldings, n_components)
        Thresholds of the codes; for a range of noise, the thresholds without noise.
    slopes : Parameter of shape (n_unfoldings, n_components) or None
        For a range of noise, what noise of the level ``noise.typical`` adds to the thresholds;
        other levels add in proportion to the level. None for one level and for photons.
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

    tile = 768  # pixels of a tile along each axis, without overlap; bounds the memory of `forward`
    # called after each tile; `ConvDenoiser` sets a printer here
    tell = staticmethod(lambda: None)

    def __init__(
        self,
        shape,
        stride,
        noise_std,
        *,
        peak=1.0,
    ):
        super().__init__()
        self.stride = tuple(stride)
        self.kernel = tuple(shape[3:])
        self.peak = peak
        self.noise_std = noise_std
        self.noise = Noise(noise_std)
        zeros = [
            torch.zeros(size, device="cpu")
            for size in (shape, shape, shape[:2], shape[:2])
        ]
        self.analysis, self.synthesis, self.thresholds, slopes = map(
            nn.Parameter, zeros
        )
        self.register_parameter("slopes", slopes if self.noise.is_range else None)

    @property
    def levels(self):
        """The parameters that have the unit of the images: thresholds, and slopes if there are any.

        `adjust_levels` multiplies these parameters if the unit changes. Atoms have no unit.
        """
        return (
            [self.thresholds] if self.slopes is None else [self.thresholds, self.slopes]
        )

    @torch.no_grad()
    def adjust_levels(self, unit=1.0):  # -> DenoisingNetwork
        """Multiply thresholds and slopes by a factor, set negative ones to 0; return this network.

        Training calls this method after each update to keep thresholds non-negative. With the
        factor ``unit`` a network for images ``x`` becomes one for images ``unit * x``.
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

        The size of the images has to be the size of an atom plus a multiple of the stride. A code
        belongs to an atom and a position of the grid. ``sigma`` (n,) is the standard deviation of
        the noise of each image, by default what `noise_of` returns. In a network for a range of
        noise ``sigma``, clipped to the range, sets the thresholds; other networks ignore it.
        """
        sigma = self.noise_of(x) if sigma is None else sigma
        # ``levels`` are the thresholds, (n_unfoldings, n_components); with slopes they differ
        # between images, (n_unfoldings, n, n_components). The step of an unfolding is 1, since the
        # atoms contain it.
        levels = self.thresholds.to(x)
        if self.slopes is not None:
            ratio = sigma.clamp(self.noise.low, self.noise.high) / self.noise.typical
            levels = levels[:, None] + ratio[:, None] * self.slopes.to(x)[:, None]
        levels = levels.reshape(*levels.shape, *[1] * len(self.stride))
        both = self.analysis, self.synthesis
        analysis, synthesis = (ConvLayers(atoms.to(x), self.stride) for atoms in both)
        return unfold(synthesis, x, levels, x.new_ones(()), analysis=analysis)

    def decode(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return images from the codes of `encode`, by the synthesis of the last unfolding."""
        return ConvDictionary(self.synthesis[-1].to(z), self.stride).synthesis(z)

    # ------------------------------------------------------------------ noise

    def noise_of(self, x, extent=None):  # (n, n_channels, *size) -> (n,)
        """Return the noise level to assume for images of which the user passed none.

        A network for a range of noise estimates the level of each image from its pixels. For other
        networks it is the noise of training. ``extent`` (n,) is passed to `estimate_noise`: the
        range of pixels that bounds the texture of each image, by default the range of the image.
        """
        if self.slopes is not None:
            return estimate_noise(x, extent)
        return x.new_full((len(x),), self.noise.high)

    def _unit_of(self, x, sigma):  # (n, ...), (n,) -> (n,)
        """Return divisors that bring images ``x`` with noise ``sigma`` to the scale of training.

        So a network also denoises images in other units, or with other noise, than in training.
        Pixels must not become larger than in training: the unfoldings would be unstable.

        If the noise of training was 0, all divisors are 1. If the noise of an image is in the range
        of training, its divisor is 1, or larger if pixels exceed the peak of training. Otherwise
        the divisor is the larger of noise / high and largest pixel / peak: noise above the range
        falls to the level ``high`` or below, and an image with noise below the range grows until
        its noise has the level ``high`` or its largest pixel equals the peak.
        """
        low = self.noise.low
        high = self.noise.high
        if not high:
            return torch.ones_like(sigma)
        largest = x.abs().flatten(1).amax(1)
        same_noise = (sigma >= low) & (sigma <= high)
        # Noise alone lifts pixels above the peak of the clean training images: the largest of a
        # million pixels by about 5 standard deviations. So an image is divided only if a pixel
        # exceeds the peak by more than 6 standard deviations, which noise does not explain.
        same_units = ((largest - 6 * sigma) / self.peak).clamp_min(1)
        other_units = torch.maximum(sigma / high, largest / self.peak)
        unit = torch.where(same_noise, same_units, other_units)
        return torch.where(unit == 0, 1.0, unit)

    # ------------------------------------------------------------------ images

    def _in_tiles(self, x, sigma):  # (n, n_channels, *size) -> the same
        """Encode and decode images that atoms cover exactly, tile by tile to bound memory.

        Images, and tiles with their margins, have the size of an atom plus a multiple of the
        stride. ``sigma`` (n,) is the noise of each image. A pixel affects other pixels at a
        distance of at most the size of an atom minus 1 in each unfolding. So a tile gets a margin
        of this distance times the number of unfoldings, and its inner part then equals that of the
        whole image, up to rounding. Tiles must start at multiples of the stride, since only then
        their grid is that of the whole image. The method calls itself for each tile, to cut the
        next axis.
        """
        for axis, (k, s) in enumerate(
            zip(self.kernel, self.stride, strict=True), start=2
        ):
            total = x.shape[axis]
            margin = _round_up(len(self.analysis) * (k - 1), s)
            tile = max(s, self.tile // s * s)
            parts = []
            # An axis that is little longer than a tile with its margins is not cut.
            if total < tile + 2 * (margin + s) + k:
                continue
            for start in range(0, total, tile):
                first = max(0, start - margin)
                stop = min(start + tile, total)
                last = min(total, first + _round_up(stop + margin - first, s, k))
                part = self._in_tiles(x.narrow(axis, first, last - first), sigma)
                parts.append(part.narrow(axis, start - first, stop - start))
            return torch.cat(parts, axis)
        decoded = self.decode(self.encode(x, sigma))
        self.tell()
        return decoded

    def _on_grid(
        self,
        x,
        sigma,
        shift,
        largest,
    ):  # (n, n_channels, *size) -> the same
        """Encode and decode images of any size, on one grid of positions of atoms.

        Images are extended by reflection, so that a pixel at the border is covered by as many atoms
        as an inner pixel, and the extension is cut off from the result. ``sigma`` (n,) is the noise
        of each image. ``shift``, a tuple, is the shift of the grid along each axis in pixels.
        ``largest`` is the largest shift along each axis that the caller averages over: extended
        images have the same size for all these shifts.
        """
        axes = list(
            zip(x.shape[2:], self.kernel, self.stride, shift, largest, strict=True)
        )
        # A grid that is shifted by ``moved`` pixels begins this much nearer to the image.
        before = [k - 1 - moved for _, k, _, moved, _ in axes]
        totals = [_round_up(n + 2 * (k - 1) - r, s, k) for n, k, s, _, r in axes]
        after = [
            total - n - b
            for total, n, b in zip(totals, x.shape[2:], before, strict=True)
        ]
        denoised = self._in_tiles(extend(x, before, after), sigma)
        for axis, (start, n) in enumerate(
            zip(before, x.shape[2:], strict=True), start=2
        ):
            denoised = denoised.narrow(axis, start, n)
        return denoised

    def _of_opponents(self, x, sigma, shift_average):  # (n, 3, *size) -> the same
        """Denoise images of three colours by a network for one channel.

        The colours become three grey images by the matrix `_OPPONENT`. Each grey image is denoised
        alone, with its own noise level, and the inverse matrix gives colours again. ``sigma`` (n,)
        is the noise of each image, the same for its three colours; None takes it from `noise_of`.
        """
        mixing = x.new_tensor(_OPPONENT)
        channels = torch.einsum("oc,nc...->on...", mixing, x)[:, :, None]
        if sigma is None and self.slopes is not None:
            # `estimate_noise` subtracts possible texture, as a fraction of the range of pixels.
            # Differences of colours have a small range of their own, but the texture of the
            # picture: so the range is that of the mean of the colours, channels[0].
            extent = extent_of(channels[0])
            levels = [self.noise_of(channel.detach(), extent) for channel in channels]
        else:
            sigma = self.noise_of(x) if sigma is None else sigma
            levels = mixing.norm(dim=1)[:, None] * sigma
        pairs = zip(channels, levels, strict=True)
        denoised = torch.cat(
            [self(*pair, shift_average=shift_average) for pair in pairs], 1
        )
        return torch.einsum("co,no...->nc...", torch.linalg.inv(mixing), denoised)

    def forward(self, x, sigma=None, *, shift_average=False):
        """Denoise images of any size.

        A network for one channel also denoises three channels, by their mean and two differences.
        Images whose noise or pixels are outside of what training has seen are scaled before and
        after the unfoldings. The result is a weighted mean of the decoded image and the input, with
        the weight of least error by Stein's unbiased risk estimate. The estimate takes one more
        pass through the network. Without noise in training the result is the decoded image.

        Parameters
        ----------
        x : Tensor of shape (n, n_channels, height, width) or (n, n_channels, length)
            Noisy images in float32 or float64; counts after Anscombe's transform if the network is
            for photons.
        sigma : float or Tensor of shape () or (n,), default=None
            Standard deviation of the noise of each image, in the units of ``x``. By default it is
            estimated for a network for a range of noise, and else the noise of training.
        shift_average : bool, default=False
            Whether to average the output over all shifts of the grid of positions, ``stride``
            shifts along each axis.

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
        # Noise is estimated here, from the whole image, since every tile alone would get another
        # estimate, and tiles would differ in how much noise is removed. ``unit`` has divisors that
        # bring the images to the scale of training.
        noise = self.noise
        sigma = self.noise_of(x.detach()) if sigma is None else sigma
        unit = _each(self._unit_of(x, sigma), x)

        # Decode images with the grid moved by ``shift``; shifts[-1] is the largest shift.
        def reconstruct(
            x, shift
        ):  # (n, n_channels, *size), tuple of int -> the same shape as x
            return (
                self._on_grid(x / unit, sigma / unit.flatten(), shift, shifts[-1])
                * unit
            )

        parts = [reconstruct(x, shift) for shift in shifts]
        mean = sum(parts) / len(parts)
        if not noise.high:
            return mean
        # Photons are compared as counts: `leave` undoes Anscombe's transform. ``unshifted`` is the
        # denoised image on one grid, whose derivative costs one pass instead of one for each shift.
        images, denoised, unshifted = map(noise.leave, (x, mean, parts[0]))
        # The variance of photon counts is their expectation, which the noisy counts estimate.
        deviation = (
            images.sqrt()
            if noise.of_photons
            else _each(sigma, images).expand_as(images)
        )
        # The probe of `_share`: random signs times the standard deviation of the noise. The signs
        # have a fixed seed, so that the same image always gives the same result. ``of_probed`` is
        # the denoised image of the image plus _STEP times the probe.
        generator = torch.Generator(device="cpu").manual_seed(0)
        bits = torch.randint(
            2, (1, *images.shape[1:]), generator=generator, device="cpu"
        )
        probe = (2 * bits - 1).to(images) * deviation
        of_probed = noise.leave(
            reconstruct(noise.enter(images + _STEP * probe), shifts[0])
        )
        share = _share(
            images, denoised, deviation, probe, (of_probed - unshifted) / _STEP
        )
        return noise.enter(images.lerp(denoised, _each(share, images)))
