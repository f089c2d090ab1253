"""Learn atoms of images: units of channels, a search on pieces of the images, penalties, training.

`learn` is a whole fit without gradients, a generator of records. Atoms of rank one are first found
in combinations of channels. `train` goes on by gradients, through an unfolded encoder or with codes
of the lasso.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import ceil, inf, isfinite, log, pi, prod, sqrt

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from skpudle._data.arrays import check_range, to_tensor, unit_of
from skpudle._data.batches import Samples
from skpudle._data.images import covered, sizes, split_gaps
from skpudle._fit.train import Stopping
from skpudle._gradients import GRADIENT_RULES, differentiate
from skpudle._learners.convolutional.base import stride_of
from skpudle._learners.convolutional.noise import estimate_noise
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._optimizers import make_optimizer
from skpudle.encoding import encode
from skpudle.search import _maps
from skpudle.search._conv_epoch import ConvProblem, as_pictures, conv_codes
from skpudle.search._epoch import spread_rows
from skpudle.search.choose import SizePath, best_coding, judged, try_sizes
from skpudle.search.descend import descend, exhaust, refit_atoms
from skpudle.search.find import PenaltyPath, find_atoms, penalty_path
from skpudle.search.held_out import hold_out

# Places of an atom, along the last axis of an image, with correlations in memory at a time.
_PLACES_AT_A_TIME = 2**14

# Checks without progress that end training.
PATIENCE = 5


# ---------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Images of a fit, in units of the noise of their channels.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images, which have no piece without an atom.
    masks : list of Tensor or None
        For each image 1 for known pixels, 0 for missing ones. None: all are known.
    kernel, stride : tuple of int
        Size and distance of atoms.
    """

    images: list[Tensor]
    masks: list[Tensor] | None
    kernel: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, images, kernel, stride):  # Images -> TrainingImages
        """Return the images of a user; rows are continued by zeros until atoms cover them."""
        x = images.singles()
        if images.kind == "rows":
            x = [covered(one, kernel, stride) for one in x]
        x, masks = zip(*(split_gaps(one, len(kernel)) for one in x), strict=True)
        pairs, gaps = zip(x, masks, strict=True), any(mask is not None for mask in masks)
        masks = [torch.ones_like(one) if m is None else m for one, m in pairs] if gaps else None
        mean_square = statistics.mean(float(one.square().mean()) for one in x)
        check_range(mean_square * len(x[0]) * prod(kernel), x)
        return cls(list(x), masks, kernel, stride)

    def pieces(self, images=None, area=inf):  # -> list of (n_channels, *size)
        """Return pieces of one size, which atoms cover exactly, and which cover all images.

        They overlap where an image is no multiple of them. No piece is copied. A piece has at most
        the area, or four atoms in each direction.
        """
        images = self.images if images is None else images
        # the correlations of a piece with some atoms stay in a cache
        side = min(2**14, area) ** (1 / len(self.kernel))
        smallest = (min(axis) for axis in zip(*(image.shape[1:] for image in images), strict=True))
        axes = zip(smallest, self.kernel, self.stride, strict=True)
        size = [k + s * ((max(k, min(n, max(round(side), 4 * k))) - k) // s) for n, k, s in axes]
        pieces = []
        for image in images:
            axes = []
            for n, length in zip(image.shape[1:], size, strict=True):
                last, n_parts = n - length, ceil(n / length)
                starts = (i * last // max(n_parts - 1, 1) for i in range(n_parts))  # to the end
                axes.append([slice(start, start + length) for start in starts])
            pieces += [image[(..., *corner[::-1])] for corner in product(*reversed(axes))]
        return pieces

    def problem(self, alpha, positive_code, area=inf):  # -> ConvProblem
        """Return the problem of a search for atoms, of all pieces."""
        flat = (1,) * (2 - len(self.kernel))
        masks = self.masks and as_pictures(torch.stack(self.pieces(self.masks, area)))
        x = torch.stack(self.pieces(area=area)).double()
        # a power of two, which divides data and penalty in the search
        unit = unit_of(float(x.square().mean()) * prod(self.kernel))
        how = dict(mask=masks, unit=unit, kernel=(*flat, *self.kernel))
        how |= dict(stride=(*flat, *self.stride))
        return ConvProblem(as_pictures(x / unit), alpha / unit, positive_code, **how)


# ---------------------------------------------------------------------------- first atoms, penalty


def draw_patches(images, n_components, kernel, generator):
    """Return random patches of norm 1, more often those of more energy.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images at least as large as an atom.
    n_components : int
        Number of patches; if too few are not zero, random directions complete it.
    kernel : tuple of int
        Size of a patch.
    generator : torch.Generator
        Random numbers, on the CPU.

    Returns
    -------
    Tensor of shape (n_components, n_channels, *kernel)
        The patches, of the dtype and on the device of the images.
    """
    energies = []
    for image in images:
        squares = image.detach().double().square().sum(0)
        for axis, k in enumerate(kernel):
            squares = squares.unfold(axis, k, 1).sum(-1)
        energies.append(squares.cpu())
    options = dict(generator=generator, dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, len(images[0]), *kernel, **options).to(images[0])
    total = torch.cat([energy.flatten() for energy in energies]).cumsum(0)
    drawn = torch.rand(4 * n_components, **options) * total[-1]
    places = torch.searchsorted(total, drawn, right=True).clamp_max(len(total) - 1)
    places = list(dict.fromkeys(places.tolist()))[:n_components] if total[-1] > 0 else []
    for k, place in enumerate(places):
        i = 0
        while place >= energies[i].numel():
            place, i = place - energies[i].numel(), i + 1
        starts = np.unravel_index(place, energies[i].shape)
        window = (slice(a, a + n) for a, n in zip(starts, kernel, strict=True))
        atoms[k] = images[i][(..., *window)]
    return project_atoms(atoms)


def universal_threshold(data):
    """Return the level that correlations of noise with atoms reach at one place in all images.

    Of n normal numbers the largest is about ``sqrt(2 log n)`` deviations [1]_.

    .. [1] D. Donoho and I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81, 1994.
    """
    if data.masks is not None:
        return 0.0
    noise = torch.cat([estimate_noise(image[None]) for image in data.images])
    axes = (zip(image.shape[1:], data.kernel, data.stride, strict=True) for image in data.images)
    n = sum(prod((size - k) // s + 1 for size, k, s in each) for each in axes)
    return float(noise.median()) * sqrt(2 * log(max(n, 2)))


def largest_correlation(image, dictionary):  # (n_channels, *size), ConvDictionary -> float
    """Return the largest modulus of correlations of an image with atoms, at places inside."""
    kernel, stride = dictionary.atoms.shape[2:], dictionary.stride
    axes = zip(image.shape[1:], kernel, stride, strict=True)
    image = image[(..., *(slice(n - (n - k) % s) for n, k, s in axes))]
    k, s = kernel[-1], stride[-1]
    starts = range(0, max(image.shape[-1] - k + s, 1), _PLACES_AT_A_TIME * s)
    parts = (image[None, ..., start : start + (_PLACES_AT_A_TIME - 1) * s + k] for start in starts)
    return max(float(dictionary.analysis(part).abs().max()) for part in parts)


def penalty_of_correlations(images, atoms, stride):
    """Return the penalty of ``alpha="auto"``, in the units of the images.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    stride : tuple of int
        Distance of atoms.
    """
    dictionary = ConvDictionary(atoms, stride)
    found = [v for image in images if (v := largest_correlation(image, dictionary)) > 0]
    # alpha="auto" is a tenth of the median over images of the largest correlation
    return 0.1 * (statistics.median_low(found) if found else 1.0)


# ---------------------------------------------------------------------------- units of channels


def slow_part(x, kernel):  # (n, n_channels, *size) -> the same
    """Return what is slower than two atoms, by medians and those of the rest; NaN are gaps."""
    size, slow = [2 * k for k in kernel], torch.empty_like(x)
    for one, into in zip(x.flatten(0, 1), slow.flatten(0, 1), strict=True):
        known = np.asarray(one.nan_to_num(0.0).cpu())
        medians = median_filter(known, size)
        into[...] = to_tensor(medians + median_filter(known - medians, size))
    return slow


@dataclass(frozen=True, eq=False)
class Channels:
    """Units of the channels of images, tensors of shape (n_channels, 1[, 1]).

    Parameters
    ----------
    intercept, noise : Tensor
        Baselines, and standard deviations of the noise or ones.
    kernel : tuple of int, default=None
        Size of atoms, if slower drift is taken off.
    """

    intercept: Tensor
    noise: Tensor
    kernel: tuple[int, ...] | None = None

    def enter(self, x):  # (n, n_channels, *size) -> the same
        """Return images in units of the channels."""
        x = x - self.intercept.to(x)
        x = x if self.kernel is None else x - slow_part(x, self.kernel)
        return x / self.noise.to(x)

    def leave(self, x):  # (n, n_channels, *size) -> the same
        """Return images with their baselines."""
        return x * self.noise.to(x) + self.intercept.to(x)


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, by `estimate_noise`.

    It is the median over images, and at least a tenth of the median over channels.
    """
    whole = (split_gaps(x, x.ndim - 2)[0].flatten(0, 1)[:, None] for x in images)
    noise = torch.cat([*map(estimate_noise, whole)]).view(-1, images[0].shape[1]).median(0).values
    # estimates of channels with a strong signal may be 0
    least = 0.1 * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)


def _count_codes(data, given, alpha=None):  # -> float, float
    """Return the number of codes of a piece of images after a brief search, and the penalty."""
    n_atoms = 4 if given.n_components == "auto" else given.n_components
    atoms = draw_patches(data.images, n_atoms, data.kernel, torch.Generator().manual_seed(0))
    usual = penalty_of_correlations(data.images, atoms, data.stride)
    problem = data.problem(alpha or max(usual, universal_threshold(data)), given.positive_code)
    problem = problem.thinned(-(-problem.x.numel() // 2**17))
    steps = descend(problem, as_pictures(atoms).double(), problem.no_codes(), 10)
    return exhaust(steps).n_entries / len(problem.x), problem.alpha * problem.unit


def choose_channels(images, given):  # Images, learner -> Channels
    """Return the baselines of channels and whether drift is taken off, if this saves codes.

    Events are short and rare, so the median of a channel is its baseline, also where codes are not
    negative. Drift is what medians in windows of two atoms see; it costs a number for each atom's
    length. Atoms explain both by codes everywhere. Where events are dense, their median is no
    baseline, and they have slow parts of their own: the atoms of a brief search tell.
    """
    kernel, stride = sizes(given.atom_shape, 1), stride_of(given)
    x = torch.cat([x.transpose(0, 1).flatten(1) for x in images.tensors], 1)
    medians = x.nanmedian(1).values.nan_to_num(0.0).reshape(-1, *[1] * len(kernel))
    zeros, ones = torch.zeros_like(medians), torch.ones_like(medians)
    named = {None: Channels(zeros, ones), "constant": Channels(medians, ones)}
    named["slow"] = Channels(medians, ones, kernel)
    chooses = given.detrend == "auto"
    best, before = named[None if chooses else given.detrend], images
    for name in ("constant", "slow")[: 3 - len(kernel)] if chooses else ():
        after, is_slow = images.map(named[name].enter), name == "slow"
        pairs = list(zip(before.tensors, after.tensors, strict=True))
        removed = sum(float((y - z).square().nansum()) for y, z in pairs)
        left = sum(float(z.square().nansum()) for _, z in pairs)
        # medians of n numbers have the share pi / (2 n) of white noise
        if removed <= (0.02 + is_slow * pi / (4 * kernel[0])) * left:
            continue
        data = [TrainingImages.of(each, kernel, stride) for each in (before, after)]
        n_after, alpha = _count_codes(data[1], given)
        n_numbers = sum(x.numel() for x in data[1].images) / prod(kernel)
        n_after += is_slow * n_numbers / len(data[1].pieces())
        # A constant of six deviations of the noise in an electrocardiogram saves .90 of the codes,
        # drift of one and a half .46, medians of dense events -.08 to .37.
        if n_after < 2 / 3 * _count_codes(data[0], given, alpha)[0]:
            best, before = named[name], after
    if given.channel_noise == "auto" and images.n_channels > 1:
        best = replace(best, noise=noise_of_channels(images.tensors).view_as(ones))
    return best


# ---------------------------------------------------------------------------- the fit


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit so far, in units of the noise of channels.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Atoms.
    alpha, debias, noise_std : float
        Penalty of codes, share of its bias to remove, and noise, if the data have chosen them.
    search_alpha : float
        Penalty of the search.
    size_path : SizePath, default=None
        The numbers of atoms that were tried.
    penalty_path : PenaltyPath, default=None
        The penalties that were tried.
    losses : tuple of float, default=()
        Mean squared errors of the epochs.
    ended_by : {"search", "tol", "max_iter"}, default="search"
        What the fit ended by.
    note : str, default=""
        A line of progress.
    """

    atoms: Tensor
    alpha: float
    debias: float
    search_alpha: float
    noise_std: float | None = None
    size_path: SizePath | None = None
    penalty_path: PenaltyPath | None = None
    losses: tuple = ()
    ended_by: str = "search"
    note: str = ""


def unfoldings_of(learner):  # -> int, or None for codes of the lasso
    """Return the number of iterations of the encoder of a `ConvPUDLEDictionaryLearning`."""
    usual = None if learner.gradient is None else 15  # as in the paper
    return usual if learner.n_unfoldings == "auto" else learner.n_unfoldings


def learn(data, given, generator, start=None) -> Iterator[Fitted]:
    """Learn atoms, their number, and penalties; yield a record after every epoch.

    Parameters
    ----------
    data : TrainingImages
        Images.
    given : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    generator : torch.Generator
        Random numbers.
    start : Tensor of shape (n_components, n_channels, *kernel), default=None
        Atoms to begin with; by default patches.
    """
    decides, rank, is_auto = given.n_components == "auto", given.rank, given.alpha == "auto"
    of_lasso = unfoldings_of(given) is None
    # atoms that are chosen from the data, before their number is
    n_components = 64 if decides else given.n_components
    seen, directions, like = data, None, data.images[0]
    if rank is not None and data.masks is None and len(like) > n_components:
        flat = (piece.double().flatten(1).cpu() for piece in data.pieces())
        directions = _maps.principal_directions(sum(x @ x.mT for x in flat), n_components)
        combined = [_maps.combine_channels(image[None], directions)[0] for image in data.images]
        seen = replace(data, images=combined)
    is_random = isinstance(given.dict_init, str) and given.dict_init == "random"
    if start is None:  # patches of zeros are random directions
        pool = [torch.zeros_like(x) if is_random else x for x in seen.images]
        start = draw_patches(pool, n_components, data.kernel, generator)
    elif directions is not None:
        start = _maps.combine_channels(start, directions)
    start, alpha = project_atoms(start.contiguous()), given.alpha
    if is_auto:
        alpha = penalty_of_correlations(seen.images, start, data.stride)
        alpha = max(alpha, universal_threshold(data)) if of_lasso else alpha
    debias = None if given.debias == "auto" else float(given.debias)

    def in_channels(atoms):  # of the problem -> of all channels, (n, n_channels, *kernel)
        atoms = atoms.reshape(len(atoms), -1, *data.kernel).to(like)
        if len(like) != atoms.shape[1]:
            atoms = _maps.spread_channels(atoms, directions.to(atoms))
        return project_atoms(atoms, atom_norm=None, rank=rank)

    fitted = Fitted(in_channels(start), float(alpha), debias or 0.0, float(alpha))
    if is_random:
        yield replace(fitted, note="random directions")
        return
    problem, start = seen.problem(alpha, given.positive_code), as_pictures(start)
    if decides:

        def begin(n):
            return as_pictures(draw_patches(seen.images, n, data.kernel, generator))

        # Fewer than four pieces hold nothing out. Of 8 stretches two kinds of beats have 2 or 3
        # atoms, however they are cut, of 16 and 24 up to 9 and 15, of one 64.
        area, positive = sum(x[0].numel() for x in seen.images) / 8, given.positive_code
        parts = problem if len(problem.x) >= 4 else seen.problem(alpha, positive, area)
        for trial in try_sizes(parts, generator, start=begin):
            start, n_tried = trial.atoms, len(trial.path.n_components)
            note = f"size, {n_tried} numbers of atoms tried  {len(start)} atoms so far"
            yield replace(fitted, atoms=in_channels(start), size_path=trial.path, note=note)
        fitted = replace(fitted, size_path=trial.path)

    def with_search(problem, found):
        note = f"search, epoch {len(found.losses)}  {found.stage}  {found.n_atoms} atoms"
        return replace(
            fitted,
            atoms=in_channels(found.atoms),
            search_alpha=found.alpha * problem.unit,
            penalty_path=penalty_path(problem, found.path, problem.unit),
            losses=found.losses,
            note=f"{note}  loss {found.losses[-1]:.6g}",
        )

    problem = hold_out(problem, fixed=not is_auto)
    for found in find_atoms(problem, start):
        yield with_search(problem, found)
    losses = found.losses
    if is_auto and data.masks is None and len(data.kernel) == 1:
        problem, found = _maps.search_above_noise(problem, start, found)
    fitted = replace(with_search(problem, found), losses=losses, note="penalty of codes")
    if rank is not None:
        rows = spread_rows(len(problem.x), -(-len(problem.x) // found.stride))
        part = replace(problem.of_rows(rows), alpha=found.alpha)
        pieces = [data.pieces()[i] for i in rows.tolist()]
        atoms = _maps.refine_products(part, found.atoms, pieces, directions)
        fitted = replace(fitted, atoms=in_channels(atoms))
    elif found.is_unbiased:
        atoms = refit_atoms(found.coded.problem, found.atoms, found.coded.codes)
        fitted = replace(fitted, atoms=in_channels(atoms))
    if is_auto and of_lasso:  # unfolded codes keep the penalty of the start
        if found.trial is not None:  # atoms that have not seen the held-out images
            held_out, place = problem.held_out, found.trial.prediction.place
            atoms = found.trial.judged
            atoms = atoms if rank is None else project_atoms(atoms, rank=rank)
        else:
            problem = data.problem(fitted.alpha, given.positive_code)
            held_out, atoms, place = judged(problem), as_pictures(fitted.atoms), None
        coding = best_coding(held_out, atoms, debias=debias, place=place)
        alpha, debias, noise_std = coding.in_units(problem.unit)
        fitted = replace(fitted, alpha=alpha, debias=debias, noise_std=noise_std)
    yield fitted


# ---------------------------------------------------------------------------- training


def code_images(dictionary, x, mask=None, *, learner, alpha, debias=0.0):
    """Return code maps of images that atoms cover, and whether each image has converged codes.

    Parameters
    ----------
    dictionary : ConvDictionary
        The atoms.
    x, mask : Tensor of shape (n, n_channels, *size)
        Images, and 1 for known pixels, 0 for missing ones; None if all are known.
    learner : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    alpha, debias : float
        The penalty, and the share of the lasso's bias to remove.
    """
    options = dict(alpha=alpha, positive_code=learner.positive_code)
    mask, depth = None if mask is None else mask.expand_as(x), unfoldings_of(learner)
    if depth is None:
        return conv_codes(dictionary, x, mask=mask, debias=debias, **options)
    codes = encode(dictionary, x, mask=mask, n_unfoldings=depth, **options)
    return codes, torch.ones(len(x), dtype=torch.bool)


def train(records, data, given, generator) -> Iterator[Fitted]:
    """Train the atoms of a search; yield its records, and one after every epoch of training.

    Parameters
    ----------
    records : iterator of Fitted
        The search.
    data : TrainingImages
        Images.
    given : ConvPUDLEDictionaryLearning
        The learner, with its parameters.
    generator : torch.Generator
        Random numbers.

    Raises
    ------
    ValueError
        If training diverges.
    """
    for fitted in records:
        yield fitted
    x = torch.stack(data.pieces())
    samples = Samples(x, data.masks and torch.stack(data.pieces(data.masks)))
    project = partial(project_atoms, rank=given.rank)
    how = dict(learning_rate=None, data_scale=float(x.square().mean()) * prod(x.shape[1:]))
    optimizer = make_optimizer(given.optimizer, fitted.atoms, project, **how)

    def encoder(dictionary, x, mask):
        return code_images(dictionary, x, mask, learner=given, alpha=fitted.alpha)[0]

    how, rule = dict(encoder=encoder, penalty=fitted.alpha), GRADIENT_RULES[given.gradient]
    stopping = Stopping(given.tol, PATIENCE)
    # codes of all unfoldings, which the derivative needs, take half a gigabyte for 64 atoms
    usual = min(16, max(1, 2**16 // x[0, 0].numel()))
    batch_size = usual if given.batch_size == "auto" else given.batch_size
    for epoch in range(1, given.max_iter + 1):
        loss = objective = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            batch, atoms = samples[rows], optimizer.atoms
            with torch.enable_grad():  # whichever mode the caller set
                step = differentiate(rule, ConvDictionary(atoms, data.stride), atoms, batch, **how)
            optimizer.update(step[0])
            loss += float(step[1].losses.sum())
            objective += float(step[1].objective) * len(rows)
        if not (isfinite(objective) and optimizer.atoms.isfinite().all()):
            raise ValueError(
                f"Training diverged in epoch {epoch}. Pass a smaller learning rate, such as "
                "optimizer=partial(torch.optim.Adam, lr=1e-4)."
            )
        is_over = stopping.check(objective, len(x), epoch, n_judged=256)  # that of few is too noisy
        fitted = replace(
            fitted,
            atoms=optimizer.atoms.detach().clone(),
            losses=(*fitted.losses, loss / len(x)),
            note=f"{given.gradient}, epoch {epoch}  loss {loss / len(x):.6g}",
            ended_by="tol" if is_over else "max_iter",
        )
        yield fitted
        if is_over:
            break
