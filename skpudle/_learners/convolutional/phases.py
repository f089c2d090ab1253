"""The fit of `ConvPUDLEDictionaryLearning`: units of channels, pieces, and the phases of a fit.

`choose_channels` decides what is subtracted from each channel, and `read_pieces` cuts the images
into pieces of one size. `ImagePhases` lists the phases, the stages of a fit, as
`skpudle._learners.rows.RowPhases` does for rows. A phase is a method that takes a record, the
results of the fit so far (`Fitted`), and yields new records.

Words of this module: ``kernel`` is the size of an atom and ``stride`` the distance of its
neighbouring copies, tuples with an int for each axis of ``size``. ``learner`` is the estimator with
the user's parameters. An atom of rank one is a *map*, a number for each channel, times a
*waveform*.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil, inf, log, pi, prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import median_filter
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array
from torch import Tensor

from skpudle._data.arrays import (
    check_range,
    dictionary_of,
    split_missing,
    to_tensor,
    unit_of,
    warn,
)
from skpudle._data.images import covered, covering_positions
from skpudle._data.sources import Batches, Samples
from skpudle._fit.encoders import fixed
from skpudle._fit.run import Fitted, Phase, Run
from skpudle._fit.train import Stopping, Trainer
from skpudle._gradients import GRADIENT_RULES
from skpudle._image_noise import (
    estimate_noise,
    estimate_noise_of_known,
    parts_of_images,
    penalty_of_correlations,
)
from skpudle._learners.convolutional.base import atoms_inside, geometry_of
from skpudle._operators._atoms import factor_atoms, project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._optimizers import make_optimizer
from skpudle._rows import MEDIAN_OF_NORMAL, spread_rows
from skpudle._states import SearchState
from skpudle.encoding import encode
from skpudle.search import choose, descend, find, held_out
from skpudle.search._conv_epoch import conv_synthesis
from skpudle.search.conv_problem import ConvProblem, conv_codes

# ---------------------------------------------------------------------------- parameters


def starts_at_random(learner):  # -> bool
    """Return whether ``dict_init`` asks for random atoms, without a search."""
    return isinstance(learner.dict_init, str) and learner.dict_init == "random"


def gradient_of(learner):  # -> str, or None if nothing trains
    """Return the gradient that trains the atoms of a `ConvPUDLEDictionaryLearning`.

    "ae-ls" differentiates the squared error through decoder and encoder, "ae-lasso" the lasso's
    objective through both, "dec" the squared error through the decoder alone. "auto" is "ae-ls" if
    the user has set a number of ``n_unfoldings``, or random atoms, which only training makes
    useful. Otherwise codes solve the lasso, and leave nothing to train.
    """
    if learner.gradient != "auto":
        return learner.gradient
    unfolds = learner.n_unfoldings not in ("auto", None)
    return "ae-ls" if unfolds or starts_at_random(learner) else None


def unfoldings_of(learner):  # -> int, or None for codes of the lasso
    """Return the number of iterations of the encoder of a `ConvPUDLEDictionaryLearning`.

    The learner's ``n_unfoldings`` may be "auto": 15 if a gradient trains the atoms.
    """
    if learner.n_unfoldings != "auto":
        return learner.n_unfoldings
    return None if gradient_of(learner) is None else 15  # as in the PUDLE paper


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
    # for each axis the length of the smallest image, the size of an atom, and the stride
    for n, k, s in zip(smallest, kernel, stride, strict=True):
        most_pixels = max(side, 4 * k)
        # Signals are cut into pieces of equal length, which hardly overlap. Pieces of pictures have
        # the largest size instead, and overlap: in a smaller piece there may be little to see, and
        # the penalty, which depends on the energy of pieces, would vary.
        n_pixels = ceil(n / ceil(n / most_pixels)) if len(kernel) == 1 else most_pixels
        # m + 1 copies of an atom cover k + s * m pixels exactly
        size.append(k + s * min((n - k) // s, ceil((n_pixels - k) / s)))
    for image in (image for x in tensors for image in x):
        axes = zip(image.shape[1:], size, stride, strict=True)
        # The corners of pieces are evenly spaced, and the last piece ends at the last pixel. If one
        # piece covers an axis, a few pixels may be left at its end: less than a stride, so that no
        # further copy of an atom would fit. An image has n pixels along the axis, and a piece m.
        corners = (
            np.linspace(0, n - m, ceil((n - s + 1) / m), dtype=int) for n, m, s in axes
        )
        for corner in product(*corners):
            window = (
                slice(first, first + n) for first, n in zip(corner, size, strict=True)
            )
            pieces.append(image[(..., *window)])
    return torch.stack(pieces[:: max(1, ceil(len(pieces) * pieces[0].numel() / most))])


def read_pieces(images, learner, most=inf):  # Images, learner -> Samples
    """Cut a user's images into the pieces (n_pieces, n_channels, *size) that a fit learns from.

    Users' rows are extended by zeros until copies of an atom cover them. If the pieces have more
    than about ``most`` numbers, only every n-th piece is returned. Missing pixels get a mask.

    Raises
    ------
    ValueError
        If squares of the data would leave the range of their dtype.
    """
    kernel, stride = geometry_of(learner)
    x = images.tensors
    if images.kind == "rows":
        x = [covered(one, kernel, stride) for one in x]
    # Pieces have the default area, 2**14 pixels: their correlations with atoms stay in the cache.
    x, mask = split_missing(cut_pieces(x, kernel, stride, most=most), len(kernel))
    # the mean squared norm of a window of the size of an atom
    check_range(float(x.square().mean()) * images.n_channels * prod(kernel), [x])
    return Samples(x, mask)


def make_problem(pieces, alpha, learner):  # Samples, float, learner -> ConvProblem
    """Return the data and the objective of a search for atoms, at the penalty ``alpha``.

    ``pieces`` have the shape (n_pieces, n_channels, *size), and ``alpha`` is in their units.
    """
    kernel, stride = geometry_of(learner)
    x = pieces.x.to(torch.float64, copy=True)
    # Data and penalty are divided by a power of two, ``unit``, so that squares and higher powers of
    # very large or small data stay in the range of float64.
    unit = unit_of(float(torch.linalg.vector_norm(x)) ** 2 / x.numel() * prod(kernel))
    return ConvProblem(
        x.div_(unit),
        alpha / unit,
        learner.positive_code,
        mask=pieces.mask,
        unit=unit,
        kernel=kernel,
        stride=stride,
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
    # ``energy`` becomes the sum of squares of each patch, by the position of its first corner.
    energy = x.detach().square().sum(1).double()
    for axis, k in enumerate(kernel, 1):
        energy = energy.unfold(axis, k, 1).sum(-1)
    shape = n_components, x.shape[1], *kernel
    atoms = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    atoms = atoms.to(x)
    # A random level draws the patch at which the cumulated energy passes it. Repeated patches are
    # dropped, so four times as many are drawn.
    levels = torch.rand(
        4 * n_components, generator=generator, dtype=torch.float64, device="cpu"
    )
    total = energy.flatten().cumsum(0).cpu()
    if total[-1] > 0:
        corners = torch.searchsorted(total, levels * total[-1], right=True)
        corners = dict.fromkeys(corners.clamp_max(len(total) - 1).tolist())
        positions = np.unravel_index([*corners][:n_components], energy.shape)
        for number, (i, *starts) in enumerate(zip(*positions, strict=True)):
            window = (slice(a, a + n) for a, n in zip(starts, kernel, strict=True))
            atoms[number] = x[(i, ..., *window)]
    return project_atoms(atoms)


def threshold_of_noise(deviation, x, kernel, stride):  # -> float
    """Return a penalty that hardly any correlation of noise with an atom exceeds.

    ``deviation`` is the standard deviation of the correlations of an atom with the noise of ``x``
    (n, n_channels, *size). Of n independent normal numbers the largest is about ``sqrt(2 log n)``
    standard deviations, the universal threshold [1]_. For signals n is the number of positions of
    an atom in all signals. For images n is the number of atoms of the size ``kernel`` that fit side
    by side in all images, since correlations at overlapping positions depend on one another.

    .. [1] D. Donoho and I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81, 1994.
    """
    # With the number of positions for images, too, 0.83 of the planted atoms in volumes are found,
    # and with atoms side by side 0.975: see benchmarks/bench_volumes.py. With atoms side by side
    # for signals, the correlation with the atoms of three recordings with slow noise falls from
    # 0.91, 0.65 and 0.93 to 0.79, 0.65 and 0.74.
    size = x.shape[2:]
    if len(size) == 1:
        n_numbers = len(x) * prod(covering_positions(size, kernel, stride))
    else:
        n_numbers = len(x) * prod(size) / prod(kernel)
    return deviation * sqrt(2 * log(max(n_numbers, 2)))


def least_penalty(pieces, learner):  # Samples, learner -> float
    """Return the least penalty of a search: `threshold_of_noise` of the white noise of the data.

    ``pieces`` have the shape (n_pieces, n_channels, *size). Missing pixels have no noise, so that
    the standard deviation of correlations falls with the root of the share of known pixels.
    """
    if pieces.mask is None:
        of_images = map(estimate_noise, parts_of_images(pieces.x))
        deviation = float(torch.cat([*of_images]).median())
    else:
        share_known = float((pieces.mask != 0).double().mean())
        noise = estimate_noise_of_known(pieces.x, pieces.mask)
        deviation = noise * sqrt(share_known)
    return threshold_of_noise(deviation, pieces.x, *geometry_of(learner))


def noise_level(problem, atoms):  # -> float
    """Return a penalty above almost all correlations of the atoms with the noise of signals.

    It is `threshold_of_noise` of the standard deviation of the correlations of residuals with
    atoms. ``problem`` is a `ConvProblem` of signals, in whose units the penalty is, and ``atoms``
    has the shape (n_components, n_channels, length).

    `find_atoms` begins the search again at this level if the penalty of the search is much smaller.
    The first penalty of a search comes from differences of neighbouring samples. It is too small
    for slow noise, whose differences are small and whose correlations with slow atoms are large.
    The level may be too small, too: codes at a penalty below the level explain a part of the noise,
    which the residual then lacks.
    """
    # To save time, noise is measured in some signals only, with 2**17 time steps in all.
    n_time_steps = problem.x[0, 0].numel()
    some = spread_rows(len(problem.x), max(1, 2**17 // n_time_steps))
    coded = descend.solve_codes(problem.of_rows(some), atoms, 4, refit=True)
    x = to_tensor(coded.residuals())
    blocks = ConvDictionary(atoms, problem.stride).analysis_in_blocks(x)
    correlations = torch.cat([block.abs().flatten() for block in blocks])
    deviation = float(correlations.median()) / MEDIAN_OF_NORMAL
    return threshold_of_noise(deviation, problem.x, problem.kernel, problem.stride)


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
            pixels = np.asarray(one.nan_to_num(0.0).cpu())
            size = [2 * k for k in self.kernel]
            drift = median_filter(pixels, size)
            drift = drift + median_filter(pixels - drift, size)
            one -= to_tensor(drift).to(one)
        return x.div_(self.noise.to(x))

    def leave(self, x):  # (n, n_channels, *size) -> the same
        """Convert images back to the user's units, with their baselines but without their drift."""
        return x * self.noise.to(x) + self.intercept.to(x)


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, for ``channel_noise="auto"``.

    It is the median of `estimate_noise` over images, but at least a tenth of the median over
    channels. The result is all ones if most channels seem free of noise.
    """
    filled = (split_missing(x, x.ndim - 2)[0] for x in images)
    noise = torch.cat([estimate_noise(x.flatten(0, 1)[:, None]) for x in filled])
    noise = noise.view(-1, images[0].shape[1]).median(0).values
    # Each channel will be divided by its noise, which must not be 0. But `estimate_noise` subtracts
    # a fraction of the range, and may return 0 for a channel with a strong signal.
    least = 0.1 * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)


class BriefSearch(NamedTuple):
    """How many codes the data need, after a brief search for atoms.

    Attributes
    ----------
    n_codes : float
        Number of nonzero codes, divided by the number of entries of the data.
    n_more : float
        The number of codes that the residual could still need, divided in the same way. A code is
        used only if it lowers half the squared norm of the residual by at least half the squared
        penalty. So the number of codes that could explain a residual is at most its squared norm
        divided by the squared penalty.
    alpha : float
        The penalty of the search.
    """

    n_codes: float
    n_more: float
    alpha: float


def search_briefly(images, learner, alpha=None):  # -> BriefSearch
    """Search briefly for atoms, in a part of the data, and count the codes that the data need.

    ``images`` are `Images`. ``alpha`` is the penalty of the search; by default it follows from the
    correlations of the data with random patches, and from the noise.
    """
    pieces = read_pieces(images, learner, 2**17)
    kernel, stride = geometry_of(learner)
    n_atoms = 4 if learner.n_components == "auto" else learner.n_components
    atoms = draw_patches(pieces.x, n_atoms, kernel, torch.Generator().manual_seed(0))
    if alpha is None:
        usual = penalty_of_correlations([pieces.x], atoms, stride)
        alpha = max(usual, least_penalty(pieces, learner))
    problem = make_problem(pieces, alpha, learner)
    start = atoms.double()
    coded = descend.exhaust(descend.descend(problem, start, problem.no_codes(), 10))
    n = pieces.x.numel()
    n_more = 2 * coded.loss * len(pieces) / n / problem.alpha**2
    return BriefSearch(coded.n_entries / n, n_more, alpha)


def choose_channels(images, learner):  # Images, learner -> Channels
    """Choose what a fit subtracts from each channel: nothing, the baseline, or also the drift.

    Where events are short and rare, the median of a channel is its baseline, and running medians
    are its drift, see `Channels.enter`. If baseline and drift are not subtracted, atoms have to
    explain them by codes everywhere. Where events are dense, however, the median is no baseline,
    and the slow parts belong to the events. So with ``detrend="auto"`` brief searches of the data
    with and without each of the two count the codes. Each is subtracted if that saves more than a
    third of the codes. Drift itself counts as half a code for each length of an atom: it has a
    value there, while a code has a value and a position.
    """
    kernel, _ = geometry_of(learner)
    x = torch.cat([x.transpose(0, 1).flatten(1) for x in images.tensors], 1)
    medians = x.nanmedian(1).values.nan_to_num(0.0)
    medians = medians.reshape(-1, *[1] * len(kernel)).cpu()
    constant = Channels(medians, torch.ones_like(medians))
    candidates = {
        None: replace(constant, intercept=torch.zeros_like(medians)),
        "constant": constant,
        "slow": replace(constant, kernel=kernel),
    }
    tried = ()
    best = candidates[None if learner.detrend == "auto" else learner.detrend]
    if learner.detrend == "auto":
        tried = ("constant", "slow") if len(kernel) == 1 else ("constant",)
    before = images
    for name in tried:
        after = images.map(candidates[name].enter)
        is_slow = name == "slow"
        removed = sum(
            float((x - y).square().nansum())
            for x, y in zip(before.tensors, after.tensors, strict=True)
        )
        left = sum(float(x.square().nansum()) for x in after.tensors)
        # To save time, nothing is searched if the subtraction removes hardly any energy. Drift is a
        # running median of n = 2 * kernel[0] numbers, plus a running median of the remainder. Of
        # the energy of white noise the first removes the fraction pi / (2 n), both 1.6 times this.
        # So the limit for drift is 0.02 plus pi / (2 n), relative to the energy that is left, and
        # 0.02 for the baseline. (With atoms of fewer than about 25 numbers white noise exceeds the
        # limit for drift, which costs a search and no more.)
        if removed <= (0.02 + is_slow * pi / (4 * kernel[0])) * left:
            continue
        search_after = search_briefly(after, learner)
        search_before = search_briefly(before, learner, search_after.alpha)
        saved = (
            search_before.n_codes - search_after.n_codes - is_slow / (2 * prod(kernel))
        )
        # Baseline or drift is subtracted if this saves more than a third of the codes; a smaller
        # residual counts as the codes that could explain the difference. Measured savings, over the
        # number of codes before: 0.90 by the baseline of an electrocardiogram, six standard
        # deviations of the noise; 0.39 to 20 by drift of one third to ten standard deviations; and
        # at most 0.34 by the median of dense events, which is no baseline.
        if (
            saved + max(0.0, search_before.n_more - search_after.n_more)
            > search_before.n_codes / 3
        ):
            best = candidates[name]
            before = after
    if learner.channel_noise == "auto" and images.n_channels > 1:
        noise = noise_of_channels(images.tensors).cpu().view_as(medians)
        best = replace(best, noise=noise)
    return best


# ---------------------------------------------------------------------------- atoms of rank one


def combine_channels(
    x, directions
):  # (n, n_channels, *size) -> (n, n_directions, *size)
    """Return weighted sums of channels, so that a search or encoder computes with fewer channels.

    ``directions`` (n_channels, n_directions) are the weights of the channels in each sum.
    """
    return torch.einsum("ck,nc...->nk...", directions.to(x), x)


def span_of_maps(atoms):  # (n, n_channels, *kernel) -> (n_channels, n_directions)
    """Return orthonormal weights of channels that span the maps of atoms of rank one.

    `combine_channels` with these weights loses no signal of such atoms, but most of the noise, and
    leaves fewer channels to compute with.
    """
    return torch.linalg.qr(factor_atoms(atoms)[0].mT).Q


def fit_products(
    pieces, atoms, alpha, learner
):  # -> (n, n_channels, *kernel) of rank one
    """Turn atoms of a search into atoms of rank one, and improve their waveforms and maps by turns.

    ``pieces`` are `Samples` of images (n_pieces, n_channels, *size), ``atoms`` are (n, n_channels,
    *kernel) of any rank, ``alpha`` is the penalty of codes, and ``learner`` is the estimator.
    Waveforms and codes improve in the few combinations of channels that the maps span, since epochs
    in all channels would take much longer. Maps are then least squares in all channels, given the
    *sources*: the signals that the codes and the waveform of each atom make. Missing pixels count
    as if the sources explained them.
    """
    # Each of two rounds improves waveforms and codes, then maps. A third round would change no
    # waveform by more than 0.001.
    for _ in range(2):
        directions = span_of_maps(atoms)
        # A pixel that is missing in one channel is missing in every combination with this channel.
        # So data with missing pixels keep all channels.
        if pieces.mask is not None:
            directions = torch.eye(len(directions)).to(atoms)
        combined = replace(pieces, x=combine_channels(pieces.x, directions))
        problem = replace(make_problem(combined, alpha, learner), rank=1)
        start = combine_channels(atoms, directions).double()
        steps = descend.descend(problem, start, problem.no_codes(), 10)
        coded = descend.exhaust(steps)
        maps, waveforms = factor_atoms(coded.atoms)
        # With these atoms, which have one channel for each waveform, a synthesis keeps the signals
        # of the waveforms apart.
        apart = torch.einsum("kl,k...->kl...", torch.eye(len(maps)).to(maps), waveforms)
        sources = conv_synthesis(problem, apart, coded.refit_codes())
        sources = sources.flatten(2).to(atoms)
        maps = maps.to(atoms) @ directions.mT
        correlations = 0.0
        for s, x, observed in zip(sources, pieces.x, pieces.observed, strict=True):
            residual = (x.flatten(1) - maps.mT @ s) * observed.flatten(1)
            correlations = correlations + s @ residual.mT
        gram = torch.einsum("nkt,nlt->kl", sources, sources)
        maps = maps + torch.linalg.pinv(gram, hermitian=True) @ correlations
        products = torch.einsum("pc,p...->pc...", maps, waveforms.to(atoms))
        atoms = project_atoms(products)
    return atoms


def replace_twin(coded, generator):
    """Return the atoms of a search with a patch of the residual in place of a shifted copy.

    Two atoms may share the events of one source, while the events of another source, elsewhere,
    have no atom. The moves and splits of a search do not leave this state. An atom is a shifted
    copy if it correlates by at least 0.95 with another atom at some shift; without such a copy
    return None.

    ``coded`` is the `ConvEpoch` at the end of the search, and ``generator`` draws the patch. The
    result has the shape (n_components, n_channels, *kernel).
    """
    atoms = coded.atoms.clone()
    problem = coded.problem
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
    residuals = to_tensor(coded.residuals())
    atoms[twin] = draw_patches(residuals, 1, problem.kernel, generator)[0]
    return atoms


# ---------------------------------------------------------------------------- codes


def code_images(
    dictionary, x, mask=None, *, learner, alpha, debias=0.0, tolerance=1e-8
):
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
    tolerance : float, default=1e-8
        How far codes of the lasso may violate its optimality conditions, as a fraction of
        ``alpha``; an unfolded encoder ignores it.

    Returns
    -------
    Tensor of shape (n, n_components, *positions)
        Codes, at all positions of the atoms.

    Warns
    -----
    ConvergenceWarning
        If codes of the lasso have not converged.
    """
    positive = learner.positive_code
    if (n_unfoldings := unfoldings_of(learner)) is not None:
        return encode(
            dictionary,
            x,
            n_unfoldings=n_unfoldings,
            alpha=alpha,
            positive_code=positive,
            mask=mask,
        )
    codes, solved = conv_codes(
        dictionary,
        x,
        alpha=alpha,
        positive_code=positive,
        debias=debias,
        mask=mask,
        tolerance=tolerance,
    )
    if not solved.all():
        n = f"{(~solved).sum()} of {len(solved)}"
        warn(
            f"The codes of {n} images or signals have not converged at alpha={alpha:.3g}. "
            "Pass detrend='slow', or a larger alpha.",
            ConvergenceWarning,
        )
    return codes


# ---------------------------------------------------------------------------- the phases


class ImagePhases(Run):
    """One fit of images: the phases, as methods, and the data that they share.

    `Run.make_phases` runs the phases that `table` lists. The arguments are those of `Run`, without
    a plan. ``data.samples`` are the pieces of the images, (n_pieces, n_channels, *size), in units
    of the noise of their channels.

    A search for atoms of rank one looks only at the combinations of channels with the most energy,
    one for each atom, if the data have more channels and no missing pixel. ``searched.atoms`` of a
    record have these combinations as channels, while ``atoms`` have all channels.

    Attributes
    ----------
    directions : Tensor of shape (n_channels, n_directions)
        The weights of channels in these combinations; otherwise the identity.
    seen : Samples of shape (n_pieces, n_directions, *size)
        The pieces as the search sees them.
    n_components : int
        Number of initial atoms. With ``n_components="auto"`` it is 64, and the phase "size" chooses
        the number.
    max_iter : int
        Largest number of epochs of training.
    """

    def __init__(
        self,
        learner,
        X,
        y,
        began,
        plan,
        data,
    ):
        super().__init__(learner, X, y, began, plan, data)
        is_auto = learner.n_components == "auto"
        self.n_components = 64 if is_auto else learner.n_components
        self.max_iter = 100 if learner.max_iter == "auto" else learner.max_iter
        self.pieces = self.seen = pieces = data.samples
        self.kernel, self.stride = geometry_of(learner)
        self.directions = torch.eye(pieces.x.shape[1])
        # the problem of the search, and its data with codes: `make_problem` and `coded` return both
        self._problem = None
        self._coded = None
        # The leading eigenvectors of the second moments of channels are the combinations of
        # channels with the most energy.
        if (
            learner.rank is not None
            and pieces.mask is None
            and len(self.directions) > self.n_components
        ):
            moments = sum(x @ x.mT for x in pieces.x.flatten(2))
            vectors = torch.linalg.eigh(moments.double().cpu()).eigenvectors
            self.directions = vectors[:, -self.n_components :]
            self.seen = replace(pieces, x=combine_channels(pieces.x, self.directions))

    def table(self, fitted):  # -> tuple of Phase
        """Return all phases in their order, each with a flag: whether this fit needs the phase.

        A callback or Ctrl-C may end the search early. Then the phases are left out that need the
        end of a search.
        """
        learner = self.learner
        searched = fitted.searched
        # The atoms of the finished search, and their prediction of held-out pieces. ``unbiased`` is
        # whether atoms that are freed of the lasso's bias predict better.
        trial = searched and searched.trial
        is_whole = trial is not None and fitted.ended_by is None
        has_rank_one = learner.rank is not None
        chooses_size = learner.n_components == "auto"
        is_signal = len(self.kernel) == 1
        chooses_penalty = learner.alpha == "auto" and unfoldings_of(learner) is None
        trains = gradient_of(learner) is not None
        refits = is_whole and not has_rank_one and trial.unbiased
        return (
            Phase("size", self.choose_size, chooses_size, "number of atoms"),
            Phase("search", self.search, searched is not None, "epoch of the search"),
            Phase(
                "twin", self.search_again, is_whole and is_signal, "epoch of the search"
            ),
            Phase("rank one", self.factor, is_whole and has_rank_one),
            Phase("unbiased atoms", self.refit, refits),
            Phase("penalty of codes", self.choose_coding, is_whole and chooses_penalty),
            Phase("training", self.train, trains, "epoch", most=self.max_iter),
        )

    # ------------------------------------------------------------------ the first atoms

    def first(self):  # -> Fitted
        """Return the `Fitted` before all phases: first atoms, and the first penalty of a search.

        ``searched`` has the atoms that a search begins with; it is None with random atoms, which
        only training changes.
        """
        learner = self.learner
        x = self.seen.x
        at_random = starts_at_random(learner)
        if isinstance(learner.dict_init, str):
            # `draw_patches` of zeros returns random noise.
            pool = torch.zeros_like(x) if at_random else x
            start = draw_patches(pool, self.n_components, self.kernel, self.generator)
        else:
            start = combine_channels(self._atoms_of_user(), self.directions)
        start = project_atoms(start.contiguous())
        alpha = learner.alpha
        if alpha == "auto":
            # codes of the lasso; unfolded codes have no least penalty
            solves = unfoldings_of(learner) is None
            level = least_penalty(self.pieces, learner) if solves else 0.0
            alpha = max(penalty_of_correlations([x], start, self.stride), level)
        alpha = float(alpha)
        begun = SearchState("start", coded=None, atoms=start, alpha=alpha)
        return Fitted(
            atoms=self._in_channels(start),
            alpha=alpha,
            search_alpha=alpha,
            penalty=alpha,
            searched=None if at_random else begun,
            note="random directions" if at_random else "",
        )

    def _atoms_of_user(self):  # -> (n_components, n_channels, *kernel)
        """Check the atoms that a user gives as ``dict_init``, and convert them to the fit's units.

        Raises
        ------
        ValueError
            If the atoms have not the shape of ``components_`` after a fit.
        """
        inputs = self.data.inputs
        x = self.pieces.x
        atoms = check_array(
            dictionary_of(self.learner.dict_init),
            dtype=np.float64,
            ensure_2d=False,
            allow_nd=True,
            input_name="dict_init",
        )
        expected = self.n_components, *self.kernel
        if inputs["_channel_axis"]:
            expected = *expected, x.shape[1]
        if atoms.shape != expected:
            raise ValueError(
                f"dict_init has shape {atoms.shape}. Pass atoms of shape {expected}, channels last."
            )
        atoms = atoms_inside(atoms, len(self.kernel), x)
        return atoms / inputs["_channels"].noise.to(atoms)

    def _in_channels(self, atoms):
        """Convert atoms of the search, (n, n_directions, *kernel), to all channels.

        The result has the shape (n, n_channels, *kernel).
        """
        atoms = combine_channels(atoms.to(self.pieces.x), self.directions.mT)
        return project_atoms(atoms, atom_norm=None, rank=self.learner.rank)

    def choose_size(self, fitted):
        """Choose the number of atoms by predictions of held-out pieces: a phase.

        It yields a `Fitted` for each number tried; the last one has the atoms of the chosen number.
        """
        pieces = self.seen

        def start(n):  # -> (n, n_directions, *kernel)
            return draw_patches(self.seen.x, n, self.kernel, self.generator)

        # Of fewer than four pieces none would be held out, so the data are cut into about four
        # smaller pieces. In 16 random pictures and signals with four planted atoms, 4 atoms are
        # then chosen 12 times, and 9 times with eight pieces.
        if len(pieces) < 4:
            area = pieces.x[:, 0].numel() / 4
            cut = partial(cut_pieces, kernel=self.kernel, stride=self.stride, area=area)
            pieces = pieces.map(lambda part: cut([part]))
        problem = make_problem(pieces, fitted.penalty, self.learner)
        for trial in choose.try_sizes(problem, self.generator, start=start):
            n_tried = len(trial.path.n_components)
            yield replace(
                fitted,
                atoms=self._in_channels(trial.atoms),
                searched=replace(fitted.searched, atoms=trial.atoms),
                size_path=trial.path,
                is_done=trial.is_last,
                note=f"size, {n_tried} numbers of atoms tried  {len(trial.atoms)} atoms so far",
            )

    # ------------------------------------------------------------------ the search

    def make_problem(self, fitted):  # -> ConvProblem
        """Return the data and the objective of the search, with pieces that are held out.

        A search of signals may raise the first penalty, and then holds out pieces for the new one.
        ``fitted.penalty`` is the present one, so that a fit that resumes from a checkpoint makes
        the same problem again.
        """
        if self._problem is None:
            problem = make_problem(self.seen, fitted.penalty, self.learner)
            self._problem = held_out.hold_out_images(problem)
        return self._problem

    def coded(self, fitted):  # -> ConvEpoch
        """Return the data with codes for the atoms of the search, for the phases after it.

        They are kept from the search. If the search was made before the fit resumed from a
        checkpoint, they are computed again, for one in ``searched.stride`` pieces.
        """
        if self._coded is None:
            searched = fitted.searched
            problem = self.make_problem(fitted)
            part = problem.thinned(searched.stride, alpha=searched.alpha)
            # Three epochs bring the objective close to its minimum, as in rows.
            self._coded = descend.solve_codes(part, searched.atoms, 3)
        return self._coded

    def search(self, fitted):
        """Search for atoms: a phase, which yields a `Fitted` for each epoch.

        The algorithm is `skpudle.search.find`. If a fit resumes from a checkpoint, the search
        begins again with the atoms of the checkpoint.
        """
        # The first penalty is too small for slow noise. So a search of signals begins again if the
        # penalty that `noise_level` returns is much larger.
        raises_penalty = (
            self.learner.alpha == "auto"
            and self.pieces.mask is None
            and len(self.kernel) == 1
        )
        level = noise_level if raises_penalty else None
        problem = self.make_problem(fitted)
        for state in find.find_atoms(problem, fitted.searched.atoms, level=level):
            self._problem = state.problem
            self._coded = state.coded
            unit = state.problem.unit
            losses = state.losses
            yield replace(
                fitted,
                atoms=self._in_channels(state.atoms),
                searched=replace(state, coded=None, problem=None, losses=()),
                penalty=state.problem.alpha * unit,
                search_alpha=state.alpha * unit,
                losses=losses,
                is_done=state.stage == "done",
                note=f"search, epoch {len(losses)}  {state.stage}  loss {losses[-1]:.6g}",
            )

    def search_again(self, fitted):
        """Search signals once more if an atom is a shifted copy of another one: a phase.

        A patch of the residual replaces the copy. The phase yields a `Fitted` for each epoch of the
        second search; without a copy it yields ``fitted``.
        """
        searched = fitted.searched
        atoms = replace_twin(self.coded(fitted), self.generator)
        if atoms is None:
            yield fitted
        else:
            yield from self.search(
                replace(fitted, searched=replace(searched, atoms=atoms))
            )

    def factor(self, fitted):
        """Make atoms products of a map and a waveform: a phase, which yields one `Fitted`.

        Atoms get rank one only after the search, since a search that allows no other atoms gets
        stuck more often. With three planted waveforms in 8 channels, and four times as much noise
        as signal, the correlation of found and planted waveforms is 0.95, and 0.89 after a search
        with atoms of rank one.
        """
        pieces = self.pieces
        # as many pieces as the search took at its end, one in ``stride``
        n = -(-len(pieces) // fitted.searched.stride)
        some = pieces[spread_rows(len(pieces), n)]
        alpha = fitted.search_alpha
        atoms = fit_products(some, fitted.atoms, alpha, self.learner)
        yield replace(fitted, atoms=atoms)

    def refit(self, fitted):
        """Free the atoms of the search of the lasso's bias: a phase, which yields one `Fitted`.

        The search has compared its atoms with atoms that were freed of the bias: at the chosen
        penalty the freed atoms predict held-out pieces better.
        """
        coded = self.coded(fitted)
        atoms = descend.refit_atoms(coded.problem, coded.atoms, coded.codes)
        yield replace(fitted, atoms=self._in_channels(atoms))

    def choose_coding(self, fitted):
        """Choose penalty and debiasing of codes by held-out pieces: a phase, yielding one `Fitted`.

        This is for codes of the lasso only; unfolded codes keep the first penalty. A ``debias``
        that the user has set stays: `fixed` returns it as a number, and None for "auto".
        """
        problem = self.make_problem(fitted)
        trial = fitted.searched.trial
        # ``trial.judged`` are the atoms before the last stage of the search, which also learns from
        # the held-out pieces. Predictions of these pieces can judge only atoms that have not
        # learned from them.
        atoms = trial.judged
        if self.learner.rank is not None:
            atoms = project_atoms(atoms, rank=self.learner.rank)
        coding = choose.best_coding(
            problem.held_out,
            atoms,
            debias=fixed(self.learner.debias),
            index=trial.prediction.index,
        ).in_units(problem.unit)
        yield replace(fitted, coding=coding, alpha=coding.alpha)

    # ------------------------------------------------------------------ training

    def network(self, fitted, n_steps):
        """Return what `Trainer` differentiates: a gradient rule, the dictionary, and a dict.

        The rule is a function for "ae-ls", "ae-lasso" or "dec". The dict has its further arguments,
        the encoder and the penalty. ``n_steps``, the number of updates so far, has no effect.
        """
        alpha = fitted.alpha
        encoder = partial(code_images, learner=self.learner, alpha=alpha)
        rule = GRADIENT_RULES[gradient_of(self.learner)]
        dictionary = ConvDictionary(fitted.atoms, self.stride)
        return rule, dictionary, dict(encoder=encoder, penalty=alpha)

    def with_rows(self, fitted, rows):  # -> Fitted
        """Return the record with the atoms ``rows``, which `Trainer` updates."""
        return replace(fitted, atoms=rows)

    def train(self, fitted):
        """Train atoms by gradients: a phase, which yields a `Fitted` for each epoch.

        If ``fitted`` comes from a checkpoint with the state of a training, training goes on from
        this state, and the first `Fitted` that is yielded is the state itself.
        """
        learner = self.learner
        x = self.pieces.x
        past = fitted.training
        ended_by = fitted.ended_by if past else None
        fitted = replace(fitted, ended_by=None)
        optimizer = make_optimizer(
            learner.optimizer,
            fitted.atoms,
            partial(project_atoms, rank=learner.rank),
            learning_rate=learner.learning_rate,
            data_scale=float(x.square().mean()) * prod(x.shape[1:]),
        )
        # A gradient through the encoder keeps the codes of all unfoldings in memory. So a batch has
        # at most 16 pieces, and at most 2**16 pixels unless one piece has more. The codes of 64
        # atoms in 15 unfoldings then take half a gigabyte in float64 with stride 1, and a sixteenth
        # with 4.
        size = learner.batch_size
        if size == "auto":
            size = min(16, max(1, 2**16 // x[0, 0].numel()))
        source = Batches(self.pieces, size, self.generator)
        # Whether to stop is decided once in an epoch, or after 256 pieces if an epoch has fewer,
        # since the mean loss of few pieces is too noisy to show an improvement.
        n_judged = max(256, len(x))
        stopping = Stopping(learner.tol, learner.n_iter_no_change, n_judged=n_judged)
        # A checkpoint stores the "moments" of the optimiser, the course of `stopping`, and the
        # state of the generator that draws batches.
        if past:
            optimizer.load(fitted.atoms, past["moments"])
            stopping.course = past["stopping"]
            self.generator.set_state(past["generator"])
            ended_by = ended_by or ("tol" if stopping.is_over else None)
        trainer = Trainer(self, fitted, optimizer, interrupts=self)
        name = gradient_of(learner)
        # `Run._make` asks for no more records after one with ``is_done``, which ends the loop.
        while True:
            now = trainer.fitted
            n_epochs = len(now.loss_curve)
            if ended_by is None and n_epochs >= self.max_iter:
                ended_by = "max_iter"
            if n_epochs:
                state = {
                    "stopping": stopping.course,
                    "generator": self.generator.get_state(),
                }
                yield replace(
                    now,
                    training=now.training | state,
                    ended_by=ended_by,
                    is_done=ended_by is not None,
                    note=f"{name}, epoch {n_epochs}  loss {now.loss_curve[-1]:.6g}",
                )
            if trainer.run_epoch(source, stopping):
                ended_by = "tol"
