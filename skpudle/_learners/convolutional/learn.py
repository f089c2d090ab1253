"""Learn atoms of images: first atoms, a search on pieces of the images, and penalties.

`learn` is the whole fit, a generator of records. Atoms of rank one are first found in combinations
of channels.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, log, prod, sqrt

import numpy as np
import torch
from torch import Tensor

from skpudle._data.arrays import check_range, unit_of
from skpudle._data.images import covered, split_gaps
from skpudle._learners.convolutional.noise import estimate_noise
from skpudle._operators._atoms import atom_norms, project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.search._conv_epoch import ConvProblem, as_pictures
from skpudle.search._epoch import spread_rows
from skpudle.search._maps import (
    combine_channels,
    principal_directions,
    refine_products,
    spread_channels,
)
from skpudle.search.choose import SizePath, best_coding, judged, try_sizes
from skpudle.search.descend import refit_atoms
from skpudle.search.find import PenaltyPath, find_atoms, penalty_path, search_above_noise
from skpudle.search.held_out import hold_out

# Places of an atom, along the last axis of an image, with correlations in memory at a time.
_PLACES_AT_A_TIME = 2**14


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
        x, masks = zip(*(split_gaps(x, len(kernel)) for x in images.singles()), strict=True)
        if all(mask is None for mask in masks):
            masks = None
        else:
            pairs = zip(x, masks, strict=True)
            masks = [torch.ones_like(one) if mask is None else mask for one, mask in pairs]
        if images.kind == "rows":
            x = [covered(one, kernel, stride) for one in x]
            masks = masks and [covered(mask, kernel, stride, end=1.0) for mask in masks]
        mean_square = statistics.mean(float(one.square().mean()) for one in x)
        check_range(mean_square * len(x[0]) * prod(kernel), x)
        return cls(list(x), masks, kernel, stride)

    def pieces(self, images=None):  # -> list of (n_channels, *size)
        """Return pieces of one size, which atoms cover exactly, and which cover all images.

        They overlap where an image is no multiple of them. No piece is copied.
        """
        # the correlations of a piece with some atoms stay in a cache
        images, side = self.images if images is None else images, (2**14) ** (1 / len(self.kernel))
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

    def combined(self, directions):  # -> TrainingImages
        """Return the images with combinations of their channels."""
        images = [combine_channels(image[None], directions)[0] for image in self.images]
        return replace(self, images=images)

    def problem(self, alpha, positive_code):  # -> ConvProblem
        """Return the problem of a search for atoms, of all pieces."""
        flat = (1,) * (2 - len(self.kernel))
        masks = self.masks and as_pictures(torch.stack(self.pieces(self.masks)))
        x = torch.stack(self.pieces()).double()
        # a power of two, which divides data and penalty in the search
        unit = unit_of(float(x.square().mean()) * prod(self.kernel))
        sizes = (*flat, *self.kernel), (*flat, *self.stride)
        how = dict(mask=masks, unit=unit)
        return ConvProblem(as_pictures(x / unit), *sizes, alpha / unit, positive_code, **how)


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
    norms = atom_norms(atoms)
    return atoms / torch.where(norms > 0, norms, 1.0)


def noise_of_channels(images):  # list of (n, n_channels, *size) -> (n_channels,)
    """Return the standard deviation of the noise in each channel, by `estimate_noise`.

    It is the median over images, and at least a tenth of the median over channels.
    """
    complete = [split_gaps(x, x.ndim - 2)[0].transpose(0, 1) for x in images]
    noise = [torch.stack([estimate_noise(channel[:, None]) for channel in x]) for x in complete]
    noise = torch.cat(noise, dim=1).median(1).values
    # estimates of channels with a strong signal may be 0
    least = 0.1 * noise.median()
    return noise.clamp_min(least) if least > 0 else torch.ones_like(noise)


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


# ---------------------------------------------------------------------------- the fit


@dataclass(frozen=True, eq=False, kw_only=True)
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

    def with_coding(self, coding, unit):  # -> Fitted
        """Return the record with another penalty of codes."""
        alpha, debias, noise_std = coding.in_units(unit)
        return replace(self, alpha=alpha, debias=debias, noise_std=noise_std)


def unfoldings_of(learner):  # -> int, or None for codes of the lasso
    """Return the number of iterations of the encoder of a `ConvPUDLEDictionaryLearning`."""
    if learner.n_unfoldings == "auto":
        # as in the paper, with a gradient
        return None if learner.gradient is None else 15
    return learner.n_unfoldings


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
        directions = principal_directions(sum(x @ x.mT for x in flat), n_components)
        seen = data.combined(directions)
    if start is None:
        start = draw_patches(seen.images, n_components, data.kernel, generator)
    elif directions is not None:
        start = combine_channels(start, directions)
    start, alpha = project_atoms(start.contiguous()), given.alpha
    if is_auto:
        alpha = penalty_of_correlations(seen.images, start, data.stride)
        alpha = max(alpha, universal_threshold(data)) if of_lasso else alpha
    debias = None if given.debias == "auto" else float(given.debias)

    def in_channels(atoms):  # of the problem -> of all channels, (n, n_channels, *kernel)
        atoms = atoms.reshape(len(atoms), -1, *data.kernel).to(like)
        if len(like) != atoms.shape[1]:
            atoms = spread_channels(atoms, directions.to(atoms))
        return project_atoms(atoms, atom_norm=None, rank=rank)

    known = dict(alpha=float(alpha), debias=debias or 0.0, search_alpha=float(alpha))
    fitted = Fitted(atoms=in_channels(start), **known)
    if isinstance(given.dict_init, str) and given.dict_init == "random":
        yield replace(fitted, note="random directions")
        return
    problem, start = seen.problem(alpha, given.positive_code), as_pictures(start)
    if decides:

        def begin(n):
            return as_pictures(draw_patches(seen.images, n, data.kernel, generator))

        for trial in try_sizes(problem, generator, start=begin):
            start, note = (
                trial.atoms,
                f"size, {len(trial.path.n_components)} numbers of atoms tried",
            )
            note = f"{note}  {len(start)} atoms so far"
            yield replace(fitted, atoms=in_channels(start), size_path=trial.path, note=note)
        fitted = replace(fitted, size_path=trial.path)

    def with_search(problem, found):
        note = f"search, epoch {len(found.losses)}  {found.stage}  {found.n_atoms} atoms"
        return replace(
            fitted,
            atoms=in_channels(found.atoms),
            search_alpha=found.alpha * problem.unit,
            penalty_path=penalty_path(problem, found.path, problem.unit),
            losses=(*fitted.losses, *found.losses),
            note=f"{note}  loss {found.losses[-1]:.6g}",
        )

    problem = hold_out(problem, fixed=not is_auto)
    for found in find_atoms(problem, start):
        yield with_search(problem, found)
    losses = found.losses
    if is_auto and data.masks is None and len(data.kernel) == 1:
        problem, found = search_above_noise(problem, start, found)
    fitted = replace(with_search(problem, found), losses=losses, note="penalty of codes")
    if rank is not None:
        rows = spread_rows(len(problem.x), -(-len(problem.x) // found.stride))
        part = replace(problem.of_rows(rows), alpha=found.alpha)
        pieces = data.pieces()
        pieces = [pieces[i] for i in rows.tolist()]
        atoms = refine_products(part, found.atoms, pieces, directions)
        fitted = replace(fitted, atoms=in_channels(atoms))
    elif found.is_unbiased:
        atoms = refit_atoms(found.coded.problem, found.atoms, found.coded.codes)
        fitted = replace(fitted, atoms=in_channels(atoms))
    chooses = is_auto and of_lasso  # unfolded codes keep the penalty of the start
    if chooses and found.trial is not None:  # atoms that have not seen the held-out images
        trial, how = found.trial, dict(debias=debias, place=found.trial.prediction.place)
        unseen = trial.judged if rank is None else project_atoms(trial.judged, rank=rank)
        fitted = fitted.with_coding(best_coding(problem.held_out, unseen, **how), problem.unit)
    elif chooses:
        problem = data.problem(fitted.alpha, given.positive_code)
        coding = best_coding(judged(problem), as_pictures(fitted.atoms), debias=debias)
        fitted = fitted.with_coding(coding, problem.unit)
    yield fitted
