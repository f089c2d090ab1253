"""The start of a fit of images: initial atoms, the penalty, and the search, on pieces of images."""

import statistics
from dataclasses import replace
from itertools import product
from math import ceil, log, pi, prod, sqrt

import numpy as np
import torch
from sklearn.utils import check_array

from skpudle._data.arrays import to_tensor, unit_of
from skpudle._data.foreign import dictionary_of
from skpudle._data.images import split_gaps
from skpudle._fit.fitted import Fitted, Searched
from skpudle._fit.phases import Phases
from skpudle._fit.run import Phase
from skpudle._learners.convolutional.model import atoms_inside
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
from skpudle.search.choose import try_sizes
from skpudle.search.find import search_above_noise
from skpudle.search.held_out import hold_out

# alpha="auto" is this fraction of the median over images of the largest correlation.
_ALPHA = 0.1

# Places of an atom, along the last axis of an image, with correlations in memory at a time.
_PLACES = 2**14

# pixels of a piece: its correlations with some atoms stay in a cache
_PIXELS = 2**14

# Number of atoms that are chosen from the data, before they are.
ATOMS = 64

# The least noise of a channel, as a share of the median over channels, since estimates of channels
# with a strong signal may be 0.
_LEAST_OF_CHANNELS = 0.1


# ---------------------------------------------------------------------------- initial atoms


def _cosines(shape):  # -> (prod(shape), *shape)
    """Return products of cosines along all axes, channels too, the slowest first."""
    options = dict(dtype=torch.float64, device="cpu")
    cosines, speeds = torch.ones((), **options), torch.zeros((), **options)
    for n in shape:
        frequency = torch.arange(n, **options)
        wave = torch.cos(pi * frequency[:, None] * (frequency + 0.5) / n)
        cosines = torch.tensordot(cosines, wave, dims=0)
        speeds = speeds[..., None] + frequency / n
    n_axes = len(shape)  # axes alternate between frequency and place
    cosines = cosines.permute(*range(0, 2 * n_axes, 2), *range(1, 2 * n_axes, 2))
    return cosines.flatten(0, n_axes - 1)[speeds.flatten().argsort(stable=True)]


def patches_by_energy(images, shape, n_components, generator):
    """Return random patches of norm 1, more often those of more energy.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images at least as large as an atom.
    shape : tuple of int
        (n_channels, *kernel).
    n_components : int
        Number of patches; if too few are not zero, random directions complete it.
    generator : torch.Generator
        Random numbers, on the CPU.

    Returns
    -------
    Tensor of shape (n_components, *shape)
        The patches, of the dtype and on the device of the images.
    """
    kernel, energies = shape[1:], []
    for image in images:
        squares = image.detach().double().square().sum(0)
        for axis, k in enumerate(kernel):
            squares = squares.unfold(axis, k, 1).sum(-1)
        energies.append(squares.cpu())
    options = dict(generator=generator, dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, *shape, **options).to(images[0])
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


def initial_atoms(images, geometry, dict_init, shape, generator):
    """Return the atoms that a search or training starts from.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        The images.
    geometry : Geometry
        Their shape.
    dict_init : {"search", "data", "random", "dct"} or array-like
        Random patches, of more energy more often ("search" or "data"), random directions, the
        slowest cosines of an atom's size and then random directions, or atoms of the shape.
    shape : tuple of int
        (n_components, n_channels, *kernel).
    generator : torch.Generator
        Random numbers.

    Returns
    -------
    Tensor of the shape
        The atoms.
    """
    n_components, n_channels, *kernel = shape
    if isinstance(dict_init, str) and dict_init in ("search", "data"):
        return patches_by_energy(images, shape[1:], n_components, generator)
    if isinstance(dict_init, str):
        options = dict(generator=generator, dtype=torch.float64, device="cpu")
        atoms = torch.randn(shape, **options).to(images[0])
        if dict_init == "dct":
            cosines = _cosines(shape[1:])[:n_components]
            atoms[: len(cosines)] = cosines.to(atoms)
        return atoms / atom_norms(atoms)
    options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
    atoms = check_array(dictionary_of(dict_init), **options)
    expected = (n_components, *kernel, *[n_channels][: geometry.channel_axis])
    if atoms.shape != expected:
        raise ValueError(
            f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
            f"{', n_channels' if geometry.channel_axis else ''}) = {expected}."
        )
    return atoms_inside(atoms, geometry, images[0])


# ---------------------------------------------------------------------------- noise and penalty


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


def universal_threshold(images, kernel):
    """Return the level that correlations of noise with atoms reach at one place in all images.

    Of n normal numbers the largest is about ``sqrt(2 log n)`` deviations [1]_.

    .. [1] D. Donoho and I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81, 1994.
    """
    if images.masks is not None:
        return 0.0
    noise = torch.cat([estimate_noise(image[None]) for image in images.images])
    axes = (zip(image.shape[1:], kernel, images.stride, strict=True) for image in images.images)
    n = sum(prod((size - k) // s + 1 for size, k, s in each) for each in axes)
    return float(noise.median()) * sqrt(2 * log(max(n, 2)))


def penalty_of_correlations(images, atoms, stride):
    """Return the penalty of ``alpha="auto"``.

    Parameters
    ----------
    images : iterable of Tensor of shape (n_channels, *size)
        Images, which atoms cover exactly.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    stride : tuple of int
        Distance of atoms.

    Returns
    -------
    float
        The penalty, in the units of the images.
    """
    dictionary, k, s = ConvDictionary(atoms, stride), atoms.shape[-1], stride[-1]
    reach = (_PLACES - 1) * s + k

    def largest(image):
        starts = range(0, max(image.shape[-1] - k + s, 1), _PLACES * s)
        parts = (image[None, ..., start : start + reach] for start in starts)
        return max(float(dictionary.analysis(part).abs().max()) for part in parts)

    found = [value for image in images if (value := largest(image)) > 0]
    return _ALPHA * (statistics.median_low(found) if found else 1.0)


# ---------------------------------------------------------------------------- the search


def windows_of(images, kernel, stride):  # -> list of (number of an image, slices of its axes)
    """Return pieces of one size, which atoms cover exactly, and which cover all images."""
    side = round(_PIXELS ** (1 / len(kernel)))
    smallest = (min(axis) for axis in zip(*(image.shape[1:] for image in images), strict=True))
    axes = zip(smallest, kernel, stride, strict=True)
    size = [k + s * ((max(k, min(n, max(side, 4 * k))) - k) // s) for n, k, s in axes]
    windows = []
    for number, image in enumerate(images):
        axes = []
        for n, length in zip(image.shape[1:], size, strict=True):
            last, n_parts = n - length, ceil(n / length)
            starts = (i * last // max(n_parts - 1, 1) for i in range(n_parts))  # to the end
            axes.append([slice(start, start + length) for start in starts])
        windows += [(number, corner[::-1]) for corner in product(*reversed(axes))]
    return windows


class Pieces:
    """Pieces of one size of images of any sizes, which overlap if an image is no multiple of them.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images; no piece is copied before it is used.
    windows : list of (int, tuple of slice)
        The number of an image and a part of it, for each piece.
    unit : float, default=1.0
        Divisor of combinations and products.
    """

    def __init__(self, images, windows, unit=1.0):
        self._images, self._windows, self._unit = images, windows, unit

    def __iter__(self):
        """Yield the pieces, of shape (n_channels, *size)."""
        return (self._images[i][(..., *window)] for i, window in self._windows)

    def part(self, rows, unit):
        """Return the pieces with these numbers, divided by a unit."""
        return Pieces(self._images, [self._windows[i] for i in rows.tolist()], unit)

    def stacked(self, images=None):  # -> (n, n_channels, *size)
        """Return the pieces of the images, or of ``images`` of the same sizes."""
        images = self._images if images is None else images
        return torch.stack([images[i][(..., *window)] for i, window in self._windows])

    def principal_directions(self, n):  # -> (n_channels, n), or None if there are no more channels
        """Return the combinations of channels with the most energy."""
        if len(self._images[0]) <= n:
            return None
        flat = (piece.double().flatten(1).cpu() for piece in self)
        return principal_directions(sum(x @ x.mT for x in flat), n)

    def combined(self, directions):  # -> (n, n_directions, height, width)
        """Return the pieces as pictures with combinations of their channels."""
        pieces = (piece[None].double().cpu() for piece in self)
        combined = torch.cat([combine_channels(piece, directions) for piece in pieces])
        return as_pictures(combined) / self._unit

    def products(self, sources):  # (n, k, height, width) -> (k, n_channels)
        """Return products of sources and pieces, summed over places and pieces."""
        pairs = zip(sources, self, strict=True)
        sums = sum(s.flatten(1) @ x.double().cpu().flatten(1).mT for s, x in pairs)
        return sums / self._unit


def pieces_of(images, kernel, stride):  # -> Pieces
    """Return pieces of training images."""
    return Pieces(images.images, windows_of(images.images, kernel, stride))


def problem_of(plan, images, alpha):  # -> ConvProblem
    """Return the problem of a search for atoms of images.

    Parameters
    ----------
    plan : ConvPlan
        The plan of the fit.
    images : TrainingImages
        The images.
    alpha : float
        Penalty.
    """
    pieces, flat = pieces_of(images, plan.kernel, plan.stride), (1,) * (2 - len(plan.kernel))
    mask = None if images.masks is None else as_pictures(pieces.stacked(images.masks))
    seen = pieces.stacked()
    # a power of two, which divides data and penalty in the search
    unit = unit_of(float(seen.double().square().mean()) * prod(plan.kernel))
    return ConvProblem(
        as_pictures(seen.double() / unit),
        (*flat, *plan.kernel),
        (*flat, *plan.stride),
        alpha / unit,
        plan.given.positive_code,
        mask=mask,
        unit=unit,
    )


def _products_of(problem, found, pieces, directions):  # -> (n_components, n_channels, h, w)
    """Return the atoms of rank one next to the atoms of a search.

    Parameters
    ----------
    problem : ConvProblem
        The problem of the search.
    found : Found
        Its result.
    pieces : Pieces
        The images in all channels.
    directions : Tensor of shape (n_channels, n_directions) or None
        The combinations of channels that the problem has.
    """
    rows = spread_rows(len(problem.x), -(-len(problem.x) // found.stride))
    part = replace(problem.of_rows(rows), alpha=found.alpha)
    return refine_products(part, found.atoms, pieces.part(rows, problem.unit), directions)


def first_atoms(plan, images, seen, n_components, generator):  # -> atoms, penalty
    """Return initial atoms, and the penalty.

    Parameters
    ----------
    plan : ConvPlan
        The plan of the fit.
    images, seen : TrainingImages
        The images, and the same with combinations of channels that a search sees.
    n_components : int
        Number of atoms.
    generator : torch.Generator
        Random numbers.
    """
    shape = n_components, seen.images[0].shape[0], *plan.kernel
    atoms = initial_atoms(seen.images, seen.geometry, plan.start, shape, generator)
    atoms, alpha = project_atoms(atoms.contiguous()), plan.given.alpha
    if alpha == "auto":
        covered = map(seen.covered, seen.images)
        alpha = penalty_of_correlations(covered, atoms, plan.stride)
        if plan.codes_follow_data:
            alpha = max(alpha, universal_threshold(images, plan.kernel))
    return atoms, float(alpha)


def record_of(plan, images, atoms, alpha):  # (n, n_channels, *kernel) -> Fitted
    """Return the record of a fit with these atoms and this penalty."""
    atoms = project_atoms(atoms, atom_norm=None, rank=plan.given.rank)
    model, rows = plan.model(atoms, alpha, images, images.geometry)
    return Fitted(model=model, rows=rows)


class ImagePhases(Phases):
    """The phases of a fit of images; see `Phases` for its parameters.

    Atoms of rank one are first found in combinations of channels.
    """

    def __init__(self, learner, plan, data, run):
        super().__init__(learner, plan, data, run)
        self._images = self._seen = data.samples
        self._decides = isinstance(plan.given.n_components, str)
        self._directions = self._begun_atoms = None
        n_components = ATOMS if self._decides else plan.given.n_components
        if plan.given.rank is not None and plan.searches and self._images.masks is None:
            self._directions = self._pieces.principal_directions(n_components)
        if self._directions is not None:
            self._seen = self._images.mapped(
                lambda image: combine_channels(image[None], self._directions)[0]
            )
        given = plan, self._images, self._seen, n_components, run.generator
        self._atoms, self._penalty = first_atoms(*given)

    def before_training(self):  # -> tuple of Phase
        """Return the phases that find the atoms."""
        plan, complete = self.plan, self._images.masks is None
        of_noise = complete and plan.given.alpha == "auto" and len(plan.kernel) == 1
        is_rank_one = plan.given.rank is not None

        def is_unbiased(fitted):
            return not is_rank_one and plan.searches and fitted.searched.is_unbiased

        def judges(fitted):
            return plan.searches and plan.codes_follow_data and fitted.searched.is_predicted

        return (
            Phase("size", self.choose_size, lambda _: self._decides, "number of atoms"),
            Phase("search", self.search, lambda _: plan.searches, "epoch of the search"),
            Phase(
                "level of the noise",
                self.search_above_noise,
                lambda fitted: plan.searches and of_noise and fitted.searched.is_done,
            ),
            Phase(
                "maps and waveforms",
                self.find_maps,
                lambda _: plan.searches and is_rank_one,
                ends_search=True,
            ),
            Phase("unbiased atoms", self.refit, is_unbiased, ends_search=True),
            Phase("penalty of codes", self.choose_unseen_coding, judges),
        )

    def first(self):  # -> Fitted
        """Return the record before all phases, with initial atoms."""
        atoms, known = self._atoms, {}
        if self.plan.searches:
            searched = Searched(as_pictures(atoms), self._penalty)
            known = dict(search_alpha=self._penalty, searched=searched)
        fitted = record_of(self.plan, self._images, self._of_channels(atoms), self._penalty)
        return replace(fitted, **known)

    @property
    def _pieces(self):
        return pieces_of(self._images, self.plan.kernel, self.plan.stride)

    def _of_channels(self, atoms):  # -> (n, n_channels, *kernel)
        """Return atoms of all channels, or of their combinations, as atoms of all channels."""
        atoms = atoms.reshape(len(atoms), -1, *self.plan.kernel).to(self._atoms)
        if atoms.shape[1] == len(self._images.images[0]):
            return atoms
        return spread_channels(atoms, self._directions.to(atoms))

    def rows_of(self, fitted, atoms):  # -> rows of parameters
        """Return the rows of atoms of all channels, or of their combinations."""
        atoms = self._of_channels(atoms)
        return project_atoms(atoms, atom_norm=None, rank=self.plan.given.rank).flatten(1)

    def choose_size(self, fitted):
        """Choose the number of atoms."""
        seen, generator, shape = self._seen, self.run.generator, self._atoms.shape[1:]

        def start(n):
            how = seen.images, seen.geometry, "search", (n, *shape), generator
            return as_pictures(initial_atoms(*how))

        trials = try_sizes(problem_of(self.plan, seen, self._penalty), generator, start=start)
        for trial, known in self.follow_sizes(trials):
            atoms = trial.atoms.reshape(-1, *shape).to(self._atoms)
            searched = Searched(as_pictures(atoms), self._penalty)
            yield replace(fitted, rows=self.rows_of(fitted, atoms), searched=searched, **known)

    # ------------------------------------------------------------------ the search

    def make_problem(self, fitted):  # -> ConvProblem
        """Return the problem of the search of a record, with images that are held out."""
        searched = fitted.searched
        fixed = self.plan.given.alpha != "auto" or searched.number > 1
        return hold_out(problem_of(self.plan, self._seen, searched.penalty), fixed=fixed)

    def search(self, fitted):
        """Search for atoms; a search of an earlier process goes on from its atoms."""
        self._begun_atoms = fitted.searched.atoms
        return self.follow_search(fitted, self.make_problem(fitted))

    def search_above_noise(self, fitted):
        """Search again with a penalty above the noise of signals, if the penalty was below."""
        before, _ = self.found(fitted)
        start = fitted.searched.atoms if self._begun_atoms is None else self._begun_atoms
        problem, found = search_above_noise(before, start, fitted.searched)
        if problem is not before:
            known = dict(penalty=problem.alpha * problem.unit, number=2)
            again = replace(fitted, searched=replace(fitted.searched, **known))
            fitted = self.with_search(again, problem, found)
        yield fitted

    def find_maps(self, fitted):
        """Find the maps and waveforms of atoms of rank one."""
        problem, _ = self.found(fitted)
        atoms = _products_of(problem, fitted.searched, self._pieces, self._directions)
        yield replace(fitted, rows=self.rows_of(fitted, atoms))

    def coding_problem(self, fitted):  # -> ConvProblem, atoms
        """Return the problem whose codes `best_coding` judges, and its atoms."""
        problem = problem_of(self.plan, self.data.samples, float(fitted.model.alpha))
        return problem, as_pictures(fitted.model.atoms(fitted.rows))
