"""The fit of `ConvPUDLEDictionaryLearning`: units of channels, search, penalties, training.

`estimate_noise` measures white noise, also for denoisers, and `noise_level` the penalty above it.
`choose_channels` decides what is subtracted from each channel, and `read_pieces` cuts the images
into pieces of one size. `learn` is a fit without gradients, a generator of records (`Fitted`, the
results so far). `train` goes on by gradients, through an unfolded encoder or with codes of the
lasso.

Words of this module: ``kernel`` is the size of an atom and ``stride`` the distance of its
neighbouring copies, tuples with an int for each axis of ``size``. ``given`` is the learner with the
user's parameters. An atom of rank one is a *map*, a number for each channel, times a *waveform*.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from math import ceil, comb, inf, log, pi, prod, sqrt
from types import SimpleNamespace

import numpy as np
import torch
from scipy.ndimage import median_filter
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skpudle._data.arrays import check_range, split_missing, to_tensor, unit_of, warn
from skpudle._data.images import covered, covering_positions
from skpudle._data.sources import Batches, Samples
from skpudle._fit.encoders import fixed
from skpudle._fit.run import Fitted
from skpudle._fit.train import Stopping, Trainer
from skpudle._gradients import GRADIENT_RULES
from skpudle._learners.convolutional.base import geometry_of, parts_of_images
from skpudle._operators._atoms import factor_atoms, project_atoms
from skpudle._operators._conv import ConvDictionary, as_pictures
from skpudle._optimizers import make_optimizer
from skpudle._rows import MEDIAN_OF_NORMAL, spread_rows
from skpudle.encoding import encode
from skpudle.search import choose, descend, find, held_out
from skpudle.search._conv_epoch import ConvProblem, conv_codes, conv_synthesis

# ---------------------------------------------------------------------------- white noise


def _shifted_sum(
    x, axis, lag, sign
):  # (n, n_channels, *size) -> shorter by lag along the axis
    """Return sums or, with the sign -1, differences of pixels ``lag`` apart along an axis.

    `_variance_of_details` makes its differences of images by it.
    """
    n = x.shape[axis] - lag
    return x.narrow(axis, lag, n) + sign * x.narrow(axis, 0, n)


def _variance_of_details(x, scale):  # (n, n_channels, *size) -> (n,), int
    """Estimate the variance of white noise in each image, from fourth differences of its pixels.

    Details are the fourth differences along each axis: of pixels if ``scale`` is 1, of sums of two
    neighbouring pixels if it is 2. They are scaled so that white noise keeps its variance. The
    estimate follows from the median magnitude of details in blocks of about 256. Return it with the
    number of details of an image.
    """
    n_axes = x.ndim - 2
    details = x
    for axis, n in enumerate(x.shape[2:], start=2):
        if scale == 2 and n > 1:
            details = _shifted_sum(details, axis, 1, 1) / 2**0.5
        # Fourth differences, with the weights 1, -4, 6, -4, 1, multiply the variance of white noise
        # by their squared norm 70, the binomial coefficient by which they are divided below. An
        # axis of few pixels has differences of a lower order.
        order = min(4, n // (2 * scale))
        for _ in range(order):
            details = _shifted_sum(details, axis, scale, -1)
        details = details / comb(2 * order, order) ** 0.5
    side = round(256 ** (1 / max(1, sum(n > 1 for n in x.shape[2:]))))
    for axis in range(2, x.ndim):
        n = details.shape[axis]
        length = n // max(1, n // side)
        details = details.unfold(axis, length, length)
    medians = details.abs().flatten(-n_axes).median(-1).values.flatten(1)
    # Noise is estimated from the lower quartile of the medians of blocks, which in white noise is
    # below their mean: by 8.5 % with many blocks, by less with few. ``smooth`` corrects for that.
    smooth = 1 - 0.085 * (1 - 1 / medians.shape[1])
    deviation = medians.quantile(0.25, dim=1) / (MEDIAN_OF_NORMAL * smooth)
    return deviation.square(), details[0].numel()


def extent_of(x):  # (n, ...) -> (n,)
    """Return the range of the pixels of each image: the largest minus the smallest."""
    return x.flatten(1).amax(1) - x.flatten(1).amin(1)


def estimate_noise(x, extent=None):  # (n, n_channels, *size), (n,) -> (n,)
    """Estimate the standard deviation of white noise in each image, rather too low than too high.

    Too high an estimate does more harm than too low an estimate, since a denoiser then removes
    texture. ``extent`` (n,) is the range of the pixels of each image, by default `extent_of`. Where
    images are differences of colours it is the range of the colours. The estimate for a tiny image
    is 0.

    Fourth differences along each axis remove most of a photograph except noise. (Second differences
    are used by J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image
    Understanding 64, 1996.)
    The estimate takes their median magnitude in each block, and the lower quartile of blocks: noise
    is the same everywhere, and texture is not. Differences of sums of two pixels have the same
    noise and, in photographs, some four times the texture or more. So a part of the excess of
    their variance is subtracted as texture, and a part of the range of the image.

    The estimated variance is at most twice the variance that is left after the most possible
    texture: up to twice the true variance, a weighted mean of a noisy image and its denoised image
    is better than the noisy image. Texture as white as noise counts as noise: 1 in 16 noise-free
    parts of 24 to 80 pixels, from a photograph of roofs and leaves, seems noisy.
    """
    (fine, _), (coarse, n_details) = (
        _variance_of_details(x, scale) for scale in (1, 2)
    )
    # Fewer than 32 details are too few to tell noise from texture, so the estimate is 0.
    if n_details < 32:
        return torch.zeros_like(fine)
    # The relative standard error of the variance that is estimated from n details of white noise.
    # The factor 6 was measured, since neighbouring details are correlated.
    error = 6.0 / n_details**0.5
    # Fine details are differences of single pixels, coarse details of sums of two pixels. In white
    # noise both have the same variance. If fine details have more, beyond chance, the rest is not
    # white noise.
    fine = torch.minimum(fine, coarse * (1 + error))
    # Some texture is assumed in every image: a standard deviation of 0.008 times the image's range.
    least = 0.008 * (extent_of(x) if extent is None else extent)

    # Return the variance of fine details without texture. The variance of texture is ``least``**2
    # plus ``share`` times the excess variance of coarse details over fine details. The fraction
    # ``doubt`` of the variance of coarse details may be chance, and is left out of the excess.
    def without(share, doubt):  # float, float -> (n,)
        more = (coarse * max(0.0, 1 - doubt) - fine).clamp_min(0)
        return (fine - least.square() - share * more).clamp_min(0)

    # In photographs without noise coarse details have some 4 times the variance of fine details, an
    # excess of 3 times. So a third of the excess estimates the variance of fine texture: of 1,500
    # noise-free parts of a photograph 95 then seem noisy, and 217 with a half instead of a third.
    # At the most all of the excess is texture. Twice the variance that this would leave is the
    # largest estimate, see the docstring.
    return torch.minimum(without(1 / 3, error / 2), 2 * without(1.0, error)).sqrt()


def noise_level(problem, atoms):  # -> float
    """Return a penalty above almost all correlations of the atoms with the noise of signals.

    The penalty is the universal threshold, ``s sqrt(2 log N)``: ``s`` is the standard deviation of
    the correlations of residuals with atoms, and ``N`` is the number of positions of one atom in
    all signals. ``problem`` is a `ConvProblem` of signals, in whose units the penalty is, and
    ``atoms`` has the shape (n_components, n_channels, 1, length).

    `find_atoms` begins the search again at this level if the penalty of the search is much smaller.
    The first penalty of a search comes from differences of neighbouring samples. It is too small
    for slow noise, whose differences are small and whose correlations with slow atoms are large.
    The level may be too small, too: codes at a penalty below the level explain a part of the noise,
    which the residual then lacks.
    """
    # To save time, noise is measured in some signals only, with 2**17 time steps in all.
    rows = spread_rows(len(problem.x), max(1, 2**17 // problem.x[0, 0].numel()))
    x = to_tensor(
        descend.solve_codes(problem.of_rows(rows), atoms, 4, refit=True).residuals()
    )
    # `analysis_in_blocks` cuts data along their first axis. So the axis of height, which has length
    # 1 in signals, is left out.
    dictionary = ConvDictionary(atoms[:, :, 0], problem.stride[1:])
    blocks = dictionary.analysis_in_blocks(x[:, :, 0])
    correlations = torch.cat([block.abs().flatten() for block in blocks])
    noise = float(correlations.median()) / MEDIAN_OF_NORMAL
    return noise * sqrt(2 * log(max(len(problem.x) * problem.n_positions, 2)))


# ---------------------------------------------------------------------------- pieces of images


def cut_pieces(
    tensors, kernel, stride, area=2**14, most=inf
):  # -> (n_pieces, n_channels, *size)
    """Cut images of any sizes into pieces of one size, so that one tensor holds all data of a fit.

    ``tensors`` is a list of images (n, n_channels, *size). Copies of an atom cover a piece exactly,
    and pieces cover all images; they overlap where an image is no multiple of a piece. A piece has
    about ``area`` pixels at most, or four times the size of an atom along each axis if this is
    more. If the pieces have more than about ``most`` numbers, only every n-th piece is returned.
    """
    smallest = (min(axis) for axis in zip(*(x.shape[2:] for x in tensors), strict=True))
    size = []
    pieces = []
    side = round(area ** (1 / len(kernel)))
    for n, k, s in zip(smallest, kernel, stride, strict=True):
        most_pixels = max(side, 4 * k)
        # Signals are cut into pieces of equal length, which hardly overlap. Pieces of pictures have
        # the largest size instead, and overlap: in a smaller piece there may be little to see, and
        # the penalty, which depends on the energy of pieces, would vary.
        n_pixels = ceil(n / ceil(n / most_pixels)) if len(kernel) == 1 else most_pixels
        size.append(k + s * min((n - k) // s, ceil((n_pixels - k) / s)))
    for image in (image for x in tensors for image in x):
        axes = zip(image.shape[1:], size, stride, strict=True)
        # The corners of pieces are evenly spaced, and the last piece ends at the last pixel. If one
        # piece covers an axis, a few pixels may be left at its end: less than a stride, so that no
        # further copy of an atom would fit.
        corners = (
            np.linspace(0, n - k, ceil((n - s + 1) / k), dtype=int) for n, k, s in axes
        )
        for corner in product(*corners):
            window = (
                slice(first, first + n) for first, n in zip(corner, size, strict=True)
            )
            pieces.append(image[(..., *window)])
    return torch.stack(pieces[:: max(1, ceil(len(pieces) * pieces[0].numel() / most))])


def read_pieces(images, given, most=inf):  # Images, learner -> Samples
    """Cut a user's images into the pieces (n_pieces, n_channels, *size) that a fit learns from.

    Users' rows are extended by zeros until copies of an atom cover them. ``most`` limits the
    numbers in all pieces, as in `cut_pieces`. Missing pixels get a mask.

    Raises
    ------
    ValueError
        If squares of the data would leave the range of their dtype.
    """
    x, (kernel, stride) = images.tensors, geometry_of(given)
    if images.kind == "rows":
        x = [covered(one, kernel, stride) for one in x]
    # Pieces have the default area, 2**14 pixels: their correlations with atoms stay in the cache.
    x, mask = split_missing(cut_pieces(x, kernel, stride, most=most), len(kernel))
    check_range(float(x.square().mean()) * images.n_channels * prod(kernel), [x])
    return Samples(x, mask)


def make_problem(pieces, alpha, given):  # Samples, float, learner -> ConvProblem
    """Return the data and the objective of a search for atoms, at the penalty ``alpha``.

    ``pieces`` have the shape (n_pieces, n_channels, *size), and ``alpha`` is in their units.
    """
    kernel, stride = geometry_of(given)
    x = pieces.x.to(torch.float64, copy=True)
    # Data and penalty are divided by a power of two, ``unit``, so that squares and higher powers of
    # very large or small data stay in the range of float64.
    unit = unit_of(float(torch.linalg.vector_norm(x)) ** 2 / x.numel() * prod(kernel))
    how = dict(unit=unit, kernel=(1, *kernel)[-2:], stride=(1, *stride)[-2:])
    how["mask"] = None if pieces.mask is None else as_pictures(pieces.mask)
    return ConvProblem(
        as_pictures(x.div_(unit)), alpha / unit, given.positive_code, **how
    )


# ---------------------------------------------------------------------------- first atoms, penalty


def draw_patches(x, n_components, kernel, generator):
    """Draw random patches of the data as initial atoms, with probabilities in proportion to energy.

    Parameters
    ----------
    x : Tensor of shape (n, n_channels, *size)
        Images at least as large as an atom.
    n_components : int
        Number of patches. If the data have fewer patches that are not zero, patches of random noise
        are added.
    kernel : tuple of int
        Size of a patch.
    generator : torch.Generator
        Random numbers, on the CPU.

    Returns
    -------
    Tensor of shape (n_components, n_channels, *kernel)
        The patches, scaled to norm 1, of the dtype and on the device of the images.
    """
    energy = x.detach().square().sum(1).double()
    for axis, k in enumerate(kernel, 1):
        energy = energy.unfold(axis, k, 1).sum(-1)
    options = dict(generator=generator, dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, x.shape[1], *kernel, **options).to(x)
    total = energy.flatten().cumsum(0).cpu()
    drawn = torch.rand(4 * n_components, **options) * total[-1]
    places = torch.searchsorted(total, drawn, right=True).clamp_max(len(total) - 1)
    places = (
        list(dict.fromkeys(places.tolist()))[:n_components] if total[-1] > 0 else []
    )
    corners = np.unravel_index(np.array(places, int), energy.shape)
    for k, (i, *starts) in enumerate(zip(*corners, strict=True)):
        window = (slice(a, a + n) for a, n in zip(starts, kernel, strict=True))
        atoms[k] = x[(i, ..., *window)]
    return project_atoms(atoms)


def universal_threshold(pieces, given):  # Samples, learner -> float
    """Return the least penalty of a search: the largest correlation of noise with a unit atom.

    Of n normal numbers the largest is about ``sqrt(2 log n)`` standard deviations [1]_. Here n is
    the number of positions of an atom in all pieces (n_pieces, n_channels, *size). With missing
    pixels the noise is unknown, and the result is 0.

    .. [1] D. Donoho and I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81, 1994.
    """
    if pieces.mask is not None:
        return 0.0
    n = len(pieces) * prod(covering_positions(pieces.x.shape[2:], *geometry_of(given)))
    noise = torch.cat([*map(estimate_noise, parts_of_images(pieces.x))])
    return float(noise.median()) * sqrt(2 * log(max(n, 2)))


def largest_correlations(
    x, dictionary
):  # (n, n_channels, *size), ConvDictionary -> (n,)
    """Return each image's largest correlation with an atom, in modulus: the largest useful penalty.

    At this penalty all codes of the image are zero. Copies of an atom lie inside the image.
    """
    blocks = dictionary.analysis_in_blocks(x)
    return torch.stack([z.abs().flatten(1).amax(1) for z in blocks]).amax(0)


def penalty_of_correlations(tensors, atoms, stride):
    """Return the penalty that a search with ``alpha="auto"`` begins with, in units of the images.

    Parameters
    ----------
    tensors : list of Tensor of shape (n, n_channels, *size)
        Images.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    stride : tuple of int
        Distance of neighbouring copies of an atom.

    Returns
    -------
    float
        The penalty.
    """
    dictionary = ConvDictionary(atoms, stride)
    parts = chain(*map(parts_of_images, tensors))
    found = torch.cat([largest_correlations(x, dictionary) for x in parts])
    # The penalty is a tenth of the median, over images, of an image's largest correlation. If all
    # data are zero, no penalty matters, and it is 0.1.
    return 0.1 * float(found[found > 0].median()) if found.any() else 0.1


# ---------------------------------------------------------------------------- units of channels


@dataclass(frozen=True, eq=False)
class Channels:
    """Conversion of images to the units of a fit: less baseline and drift, divided by the noise.

    A fitted learner keeps it for `transform` and `inverse_transform`.

    Parameters
    ----------
    intercept : Tensor of shape (n_channels, 1[, 1])
        The baseline of each channel.
    noise : Tensor of shape (n_channels, 1[, 1])
        The standard deviation of the noise of each channel, or ones.
    kernel : tuple of int, default=None
        Size of atoms, if drift that is slower than atoms is subtracted, too.
    """

    intercept: Tensor
    noise: Tensor
    kernel: tuple[int, ...] | None = None

    def enter(self, x):  # (n, n_channels, *size) -> the same
        """Convert images from the user's units to the units of the fit; NaN stays.

        Drift is the running median in windows of twice the size of an atom, plus the running median
        of the remainder.
        """
        x = (x - self.intercept.to(x)).contiguous()
        for one in x.flatten(0, 1) if self.kernel else ():
            known = np.asarray(one.nan_to_num(0.0).cpu())
            size = [2 * k for k in self.kernel]
            medians = median_filter(known, size)
            one -= to_tensor(medians + median_filter(known - medians, size)).to(one)
        return x.div_(self.noise.to(x))

    def leave(self, x):  # (n, n_channels, *size) -> the same
        """Convert images back to the user's units, with their baselines but without their drift."""
        return x * self.noise.to(x) + self.intercept.to(x)


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, for ``channel_noise="auto"``.

    It is the median of `estimate_noise` over images, but at least a tenth of the median over
    channels. The result is all ones if most channels seem free of noise.
    """
    whole = (split_missing(x, x.ndim - 2)[0].flatten(0, 1)[:, None] for x in images)
    noise = (
        torch.cat([*map(estimate_noise, whole)])
        .view(-1, images[0].shape[1])
        .median(0)
        .values
    )
    # Each channel will be divided by its noise, which must not be 0. But `estimate_noise` subtracts
    # a fraction of the range, and may return 0 for a channel with a strong signal.
    least = 0.1 * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)


def _search_briefly(images, given, alpha=None):  # -> float, float, float
    """Search briefly for atoms, in a part of the data, to measure how many codes the data need.

    Return three numbers. The first is the number of nonzero codes, and the second the number of
    codes that the residual could still need, both divided by the number of entries of the data. The
    third is the penalty, ``alpha`` or by default a penalty from the data.

    A code is used only if it lowers half the squared norm of the residual by at least half the
    squared penalty. So the number of codes that could explain a residual is at most its squared
    norm divided by the squared penalty.
    """
    pieces, (kernel, stride) = read_pieces(images, given, 2**17), geometry_of(given)
    n_atoms = 4 if given.n_components == "auto" else given.n_components
    atoms = draw_patches(pieces.x, n_atoms, kernel, torch.Generator().manual_seed(0))
    if alpha is None:
        usual = penalty_of_correlations([pieces.x], atoms, stride)
        alpha = max(usual, universal_threshold(pieces, given))
    problem = make_problem(pieces, alpha, given)
    steps = descend.descend(
        problem, as_pictures(atoms).double(), problem.no_codes(), 10
    )
    coded = descend.exhaust(steps)
    n = pieces.x.numel()
    return (
        coded.n_entries / n,
        2 * coded.loss * len(pieces) / n / problem.alpha**2,
        alpha,
    )


def choose_channels(images, given):  # Images, learner -> Channels
    """Choose what a fit subtracts from each channel: nothing, the baseline, or also the drift.

    Where events are short and rare, the median of a channel is its baseline, and running medians
    are its drift, see `Channels.enter`. If baseline and drift are not subtracted, atoms have to
    explain them by codes everywhere. Where events are dense, however, the median is no baseline,
    and the slow parts belong to the events. So with ``detrend="auto"`` brief searches of the data
    with and without each of the two count the codes. Drift itself counts as half a code for each
    length of an atom: it has a value there, while a code has a value and a position.
    """
    kernel, _ = geometry_of(given)
    x = torch.cat([x.transpose(0, 1).flatten(1) for x in images.tensors], 1)
    medians = (
        x.nanmedian(1).values.nan_to_num(0.0).reshape(-1, *[1] * len(kernel)).cpu()
    )
    constant = Channels(medians, torch.ones_like(medians))
    named = {
        None: replace(constant, intercept=torch.zeros_like(medians)),
        "constant": constant,
    }
    named["slow"] = replace(constant, kernel=kernel)
    tried = ("constant", "slow")[: 3 - len(kernel)] if given.detrend == "auto" else ()
    best = named[None if tried else given.detrend]
    before = images
    for name in tried:
        after = images.map(named[name].enter)
        is_slow = name == "slow"
        parts = map(torch.sub, before.tensors, after.tensors), after.tensors
        removed, left = (
            sum(float(x.square().nansum()) for x in part) for part in parts
        )
        # To save time, nothing is searched if the subtraction removes hardly any energy. Drift is a
        # running median of n = 2 * kernel[0] numbers, plus a running median of the remainder. Of
        # the energy of white noise the first removes the fraction pi / (2 n), both 1.6 times this.
        # So the limit for drift is 0.02 plus pi / (2 n), relative to the energy that is left, and
        # 0.02 for the baseline. (With atoms of fewer than about 25 numbers white noise exceeds the
        # limit for drift, which costs a search and no more.)
        if removed <= (0.02 + is_slow * pi / (4 * kernel[0])) * left:
            continue
        n_after, rest_after, alpha = _search_briefly(after, given)
        n_before, rest_before, _ = _search_briefly(before, given, alpha)
        saved = n_before - n_after - is_slow / (2 * prod(kernel))
        # Baseline or drift is subtracted if this saves more than a third of the codes; a smaller
        # residual counts as the codes that could explain the difference. Measured savings, over the
        # number of codes before: .90 by the baseline of an electrocardiogram, six standard
        # deviations of the noise; .39 to 20 by drift of one third to ten standard deviations; and
        # at most .34 by the median of dense events, which is no baseline.
        if saved + max(0.0, rest_before - rest_after) > n_before / 3:
            best = named[name]
            before = after
    if given.channel_noise == "auto" and images.n_channels > 1:
        best = replace(
            best, noise=noise_of_channels(images.tensors).cpu().view_as(medians)
        )
    return best


# ---------------------------------------------------------------------------- the fit


def unfoldings_of(learner):  # -> int, or None for codes of the lasso
    """Return the number of iterations of the encoder of a `ConvPUDLEDictionaryLearning`.

    The learner's ``n_unfoldings`` may be "auto", which depends on ``gradient``.
    """
    usual = None if learner.gradient is None else 15  # as in the PUDLE paper
    return usual if learner.n_unfoldings == "auto" else learner.n_unfoldings


def combine_channels(
    x, directions
):  # (n, n_channels, *size) -> (n, n_directions, *size)
    """Return weighted sums of channels, so that a search or encoder computes with fewer channels.

    ``directions`` are the weights.
    """
    return torch.einsum("ck,nc...->nk...", directions.to(x), x)


def span_of_maps(atoms):  # (n, n_channels, *kernel) -> (n_channels, n_directions)
    """Return orthonormal weights of channels that span the maps of atoms of rank one.

    `combine_channels` with these weights loses no signal of such atoms, but most of the noise, and
    leaves fewer channels to compute with.
    """
    return torch.linalg.qr(factor_atoms(atoms)[0].mT).Q


def _fit_products(
    pieces, atoms, alpha, given
):  # -> (n, n_channels, *kernel) of rank one
    """Turn atoms of a search into atoms of rank one, and improve their waveforms and maps by turns.

    ``pieces`` are `Samples` of images (n_pieces, n_channels, *size), ``atoms`` are (n, n_channels,
    *kernel) of any rank, ``alpha`` is the penalty of codes, and ``given`` is the learner.
    Waveforms and codes improve in the few combinations of channels that the maps span, since epochs
    in all channels would take much longer. Maps are then least squares in all channels, given the
    *sources*: the signals that the codes and the waveform of each atom make. Missing pixels count
    as if the sources explained them.
    """
    # Each of two rounds improves waveforms and codes, then maps. A third round would change no
    # waveform by more than .001.
    for _ in range(2):
        directions = span_of_maps(atoms)
        # A pixel that is missing in one channel is missing in every combination with this channel.
        # So data with missing pixels keep all channels.
        if pieces.mask is not None:
            directions = torch.eye(len(directions)).to(atoms)
        seen = replace(pieces, x=combine_channels(pieces.x, directions))
        part = replace(make_problem(seen, alpha, given), rank=1)
        begun = as_pictures(combine_channels(atoms, directions)).double()
        coded = descend.exhaust(descend.descend(part, begun, part.no_codes(), 10))
        maps, waveforms = factor_atoms(coded.atoms)
        apart = torch.eye(len(maps)).to(maps)[:, :, None, None] * waveforms[:, None]
        sources = conv_synthesis(part, apart, coded.refit_codes()).flatten(2).to(atoms)
        maps = maps.to(atoms) @ directions.mT
        pull = 0.0
        for s, x, known in zip(sources, pieces.x, pieces.observed, strict=True):
            pull = pull + s @ ((x.flatten(1) - maps.mT @ s) * known.flatten(1)).mT
        gram = torch.einsum("nkt,nlt->kl", sources, sources)
        maps = maps + torch.linalg.pinv(gram, hermitian=True) @ pull
        waveforms = waveforms.view(len(maps), *atoms.shape[2:]).to(atoms)
        atoms = project_atoms(torch.einsum("pc,p...->pc...", maps, waveforms))
    return atoms


def _try_sizes(pieces, alpha, given, generator):  # yields SizeTrial
    """Choose the number of atoms by predictions of held-out pieces, see `skpudle.search.choose`.

    ``pieces`` are `Samples` (n_pieces, n_channels, *size), ``alpha`` is the first penalty, and
    ``given`` the learner. The last `SizeTrial` has the atoms of the chosen number.
    """
    shape = geometry_of(given)

    def begin(n):
        return as_pictures(draw_patches(pieces.x, n, shape[0], generator))

    # Of fewer than four pieces none would be held out, so the data are cut into about four smaller
    # pieces. In 16 random pictures and signals with four planted atoms, 4 atoms are then chosen 12
    # times, and 9 times with eight pieces.
    if len(pieces) < 4:
        area = pieces.x[:, 0].numel() / 4
        pieces = pieces.map(lambda part: cut_pieces([part], *shape, area))
    return choose.try_sizes(make_problem(pieces, alpha, given), generator, start=begin)


def _is_random(given):  # -> bool
    """Return whether ``dict_init`` asks for random atoms, without a search."""
    return isinstance(given.dict_init, str) and given.dict_init == "random"


def _begin(pieces, given, generator, start):
    """Prepare a search: its data, initial atoms and first penalty.

    Parameters
    ----------
    pieces, given, generator, start
        As in `learn`.

    Returns
    -------
    seen : Samples of shape (n_pieces, n_directions, *size)
        The data of the search. For atoms of rank one they are the combinations of channels with the
        most energy, one for each atom, otherwise all channels.
    directions : Tensor of shape (n_channels, n_directions)
        The weights of channels in these combinations.
    start : Tensor of shape (n_components, n_directions, height, width)
        Initial atoms of norm 1; the height is 1 for signals.
    alpha : float
        The penalty, in the units of the pieces.
    """
    # With n_components="auto" the number of atoms is chosen later, and 64 stands in for it.
    n_components = 64 if given.n_components == "auto" else given.n_components
    (kernel, stride), seen, directions = (
        geometry_of(given),
        pieces,
        torch.eye(pieces.x.shape[1]),
    )
    if (
        given.rank is not None
        and pieces.mask is None
        and len(directions) > n_components
    ):
        moments = sum(x @ x.mT for x in pieces.x.flatten(2))
        directions = torch.linalg.eigh(moments.double().cpu()).eigenvectors[
            :, -n_components:
        ]
        seen = replace(pieces, x=combine_channels(pieces.x, directions))
    # For dict_init="random" `draw_patches` gets data of zeros, and so returns random noise.
    if start is None:
        pool = torch.zeros_like(seen.x) if _is_random(given) else seen.x
        start = draw_patches(pool, n_components, kernel, generator)
    else:
        start = combine_channels(start, directions)
    start = project_atoms(start.contiguous())
    alpha = given.alpha
    if alpha == "auto":
        level = (
            universal_threshold(pieces, given) if unfoldings_of(given) is None else 0.0
        )
        alpha = max(penalty_of_correlations([seen.x], start, stride), level)
    return seen, directions, as_pictures(start), float(alpha)


def _search(problem, start, level, generator):  # yields SearchState
    """Search for atoms; in signals search once more if an atom is a shifted copy of another atom.

    ``problem`` is a `ConvProblem` with held-out data, ``start`` the initial atoms (n_components,
    n_channels, height, width), and ``level`` as in `find_atoms`. ``generator`` draws the patch that
    replaces the copy.
    """
    for found in find.find_atoms(problem, start, level):
        yield found
    if (
        problem.x.shape[2] == 1
        and (again := _without_twin(found, generator)) is not None
    ):
        yield from find.find_atoms(found.problem, again, level)


def learn(pieces, given, generator, start=None) -> Iterator[Fitted]:
    """Learn atoms, their number, and penalties; yield a `Fitted`, the record, after every epoch.

    A record has the atoms (n_components, n_channels, *kernel) in units of the noise of channels.
    The generator returns its last record, which `train` needs.

    Parameters
    ----------
    pieces : Samples of shape (n_pieces, n_channels, *size)
        Pieces of images, in units of the noise of their channels.
    given : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    generator : torch.Generator
        Random numbers.
    start : Tensor of shape (n_components, n_channels, *kernel), default=None
        Initial atoms; by default random patches.
    """
    (kernel, _), rank, is_auto = geometry_of(given), given.rank, given.alpha == "auto"
    seen, directions, start, alpha = _begin(pieces, given, generator, start)

    # Convert atoms of the search to atoms of all channels.
    def in_channels(
        atoms,
    ):  # (n, n_directions, height, width) -> (n, n_channels, *kernel)
        atoms = atoms.reshape(len(atoms), -1, *kernel).to(pieces.x)
        return project_atoms(
            combine_channels(atoms, directions.mT), atom_norm=None, rank=rank
        )

    fitted = Fitted(
        atoms=in_channels(start), alpha=alpha, search_alpha=alpha, is_done=False
    )
    if _is_random(given):
        yield replace(fitted, note="random directions")
        return fitted
    for trial in (
        _try_sizes(seen, alpha, given, generator)
        if given.n_components == "auto"
        else ()
    ):
        start = trial.atoms
        n_tried = len(trial.path.n_components)
        note = f"size, {n_tried} numbers of atoms tried  {len(start)} atoms so far"
        fitted = replace(
            fitted, atoms=in_channels(start), size_path=trial.path, note=note
        )
        yield fitted
    level = (
        noise_level if is_auto and pieces.mask is None and len(kernel) == 1 else None
    )
    held = held_out.hold_out(make_problem(seen, alpha, given))
    for found in _search(held, start, level, generator):
        losses = found.losses
        search_alpha = found.alpha * found.problem.unit
        note = f"search, epoch {len(losses)}  {found.stage}  loss {losses[-1]:.6g}"
        known = dict(
            searched=found, search_alpha=search_alpha, losses=losses, note=note
        )
        fitted = replace(fitted, atoms=in_channels(found.atoms), **known)
        yield fitted
    if rank is not None:
        # Atoms become products of a map and a waveform (rank one) only after the search, since a
        # search that allows no other atoms gets stuck more often. With three planted waveforms in 8
        # channels, and four times as much noise as signal, the correlation of found and planted
        # waveforms is 0.95, and 0.89 after a search with atoms of rank one.
        rows = spread_rows(len(pieces), -(-len(pieces) // found.stride))
        products = _fit_products(pieces[rows], fitted.atoms, search_alpha, given)
        fitted = replace(fitted, atoms=products)
    elif found.trial is not None and found.trial.unbiased:
        # The search compared its atoms with atoms that were freed of the lasso's bias: at the
        # chosen penalty the freed atoms predict held-out data better.
        atoms = descend.refit_atoms(found.coded.problem, found.atoms, found.coded.codes)
        fitted = replace(fitted, atoms=in_channels(atoms))
    # Predictions choose a penalty for codes of the lasso only; unfolded codes keep the first one.
    if is_auto and unfoldings_of(given) is None:
        problem = found.problem
        trial = found.trial
        # ``trial.judged`` are the atoms before they learned from the held-out pieces, too. Only
        # such atoms may be judged by predictions of these pieces.
        atoms = trial.judged if rank is None else project_atoms(trial.judged, rank=rank)
        how = dict(debias=fixed(given.debias), place=trial.prediction.place)
        coding = choose.best_coding(problem.held_out, atoms, **how).in_units(
            problem.unit
        )
        fitted = replace(fitted, coding=coding, alpha=coding.alpha)
    yield replace(fitted, note="penalty of codes", is_done=given.gradient is None)
    return fitted


def _without_twin(
    found, generator
):  # -> (n_components, n_channels, height, width) or None
    """Return the atoms of a search with a patch of the residual in place of a shifted copy.

    Two atoms may share the events of one source, while the events of another source, elsewhere,
    have no atom. The moves and splits of a search do not leave this state. An atom is a shifted
    copy if it correlates by at least 0.95 with another atom at some shift; without such a copy
    return None. ``found`` is the `SearchState` at the end of the search.
    """
    atoms = found.atoms.clone()
    problem = found.problem
    # Each atom is correlated with each other atom at every shift: atoms are extended by zeros, so
    # that a shifted copy overlaps by one pixel at least. In the end ``alike`` has, for each atom,
    # its largest correlation with an earlier atom.
    ends = [k - 1 for k in reversed(problem.kernel) for _ in range(2)]
    blocks = ConvDictionary(atoms).analysis_in_blocks(
        torch.nn.functional.pad(atoms, ends)
    )
    alike = torch.cat(list(blocks), -1).flatten(2)
    alike = (alike if problem.positive_code else alike.abs()).amax(2).triu(1).amax(0)
    twin = int(alike.argmax())
    if alike[twin] < 0.95:
        return None
    atoms[twin] = draw_patches(
        to_tensor(found.coded.residuals()), 1, problem.kernel, generator
    )[0]
    return atoms


# ---------------------------------------------------------------------------- training


def code_images(dictionary, x, mask=None, *, learner, alpha, debias=0.0, **effort):
    """Encode images by the lasso, or by an unfolded encoder, as the learner's parameters say.

    Parameters
    ----------
    dictionary : ConvDictionary
        The atoms.
    x : Tensor of shape (n, n_channels, *size)
        Images, which copies of atoms must cover exactly.
    mask : Tensor of the shape of ``x``, default=None
        1 for known pixels, 0 for missing ones. None if all are known.
    learner : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    alpha : float
        The penalty.
    debias : float, default=0.0
        The share of the lasso's bias to remove, from 0 to 1; an unfolded encoder ignores it.
    **effort : dict
        The tolerance of `conv_codes`.

    Returns
    -------
    Tensor of shape (n, n_components, *positions)
        Codes, at all positions of the atoms.

    Warns
    -----
    ConvergenceWarning
        If codes of the lasso have not converged.
    """
    options = dict(alpha=alpha, positive_code=learner.positive_code, mask=mask)
    if (depth := unfoldings_of(learner)) is not None:
        return encode(dictionary, x, n_unfoldings=depth, **options)
    codes, solved = conv_codes(dictionary, x, debias=debias, **options, **effort)
    if not solved.all():
        n = f"{(~solved).sum()} of {len(solved)}"
        said = f"The codes of {n} images or signals have not converged at alpha={alpha:.3g}"
        warn(f"{said}. Pass detrend='slow', or a larger alpha.", ConvergenceWarning)
    return codes


def train(pieces, given, generator, start=None) -> Iterator[Fitted]:
    """Train the atoms of a search by gradients; yield a `Fitted` for each epoch of both.

    First come the results of `learn`, which searches, and then those of training.

    Parameters
    ----------
    pieces, given, generator, start
        As in `learn`.

    Raises
    ------
    ValueError
        If training diverges.
    """
    fitted = yield from learn(pieces, given, generator, start)
    x = pieces.x
    project = partial(project_atoms, rank=given.rank)
    how = dict(
        learning_rate=None, data_scale=float(x.square().mean()) * prod(x.shape[1:])
    )
    optimizer = make_optimizer(given.optimizer, fitted.atoms, project, **how)
    rule, (_, stride), alpha = (
        GRADIENT_RULES[given.gradient],
        geometry_of(given),
        fitted.alpha,
    )
    options = dict(
        encoder=partial(code_images, learner=given, alpha=alpha), penalty=alpha
    )

    def network(fitted, update):
        return rule, ConvDictionary(fitted.atoms, stride), options

    model = SimpleNamespace(
        network=network, with_rows=lambda fitted, x: replace(fitted, atoms=x)
    )
    trainer = Trainer(model, fitted, optimizer)
    # A gradient through the encoder keeps the codes of all unfoldings in memory. So a batch has at
    # most 16 pieces, and at most 2**16 pixels unless one piece has more. The codes of 64 atoms in
    # 15 unfoldings then take half a gigabyte in float64 with stride 1, and a sixteenth with 4.
    usual = min(16, max(1, 2**16 // x[0, 0].numel()))
    source = Batches(
        pieces, usual if given.batch_size == "auto" else given.batch_size, generator
    )
    # Whether to stop is decided once in an epoch, or after 256 pieces if an epoch has fewer, since
    # the mean loss of few pieces is too noisy to show an improvement.
    stopping = Stopping(given.tol, given.n_iter_no_change, n_judged=max(256, len(x)))
    for epoch in range(1, given.max_iter + 1):
        ended_by = "tol" if trainer.run_epoch(source, stopping) else "max_iter"
        is_done = ended_by == "tol" or epoch == given.max_iter
        note = f"{given.gradient}, epoch {epoch}  loss {trainer.loss_curve[-1]:.6g}"
        yield replace(trainer.fitted, ended_by=ended_by, is_done=is_done, note=note)
