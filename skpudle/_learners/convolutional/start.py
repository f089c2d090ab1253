"""The start of a fit of images: initial atoms, the penalty, and the search, on pieces of images."""

import statistics
from dataclasses import replace
from functools import partial
from itertools import product
from math import ceil, log, pi, prod, sqrt

import numpy as np
import torch
from sklearn.utils import check_array

from skpudle._data.arrays import to_tensor, unit_of
from skpudle._data.foreign import dictionary_of
from skpudle._data.images import split_gaps
from skpudle._learners.convolutional.model import atoms_inside
from skpudle._learners.convolutional.noise import estimate_noise
from skpudle._learners.record import Fitted
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
from skpudle.search.find import penalty_path, search_above_noise
from skpudle.search.held_out import hold_out

# alpha="auto" is this fraction of the median over images of the largest correlation.
_ALPHA = 0.1

# Places of an atom, along the last axis of an image, with correlations in memory at a time.
_PLACES = 2**14

# pixels of a piece: its correlations with some atoms stay in a cache
_PIXELS = 2**14

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


class AtomSearch:
    """Find the dictionary of a fit: initial atoms, their number, a search and its refinements.

    Parameters
    ----------
    plan : ConvPlan
        The plan of the fit.
    images : TrainingImages
        The images.
    generator : torch.Generator
        Random numbers.
    n_components : int
        Number of initial atoms.
    searches : bool
        Whether a search follows, and atoms of rank one are first found in combinations of channels.
    """

    def __init__(self, plan, images, generator, n_components, *, searches):
        self._plan, self._images, self._generator = plan, images, generator
        self._directions, self._seen, self._size_path = None, images, None
        if plan.given.rank is not None and searches and images.masks is None:
            self._directions = self._pieces.principal_directions(n_components)
        if self._directions is not None:
            self._seen = images.mapped(
                lambda image: combine_channels(image[None], self._directions)[0]
            )
        shape = n_components, self._seen.images[0].shape[0], *plan.kernel
        atoms = self._initial_atoms(plan.start, shape)
        self.atoms = project_atoms(atoms.contiguous())
        self._penalty = self._initial_penalty()
        self._search_alpha = float(self._penalty) if searches else None

    def _initial_atoms(self, start, shape):
        seen = self._seen
        return initial_atoms(seen.images, seen.geometry, start, shape, self._generator)

    @property
    def _pieces(self):
        return pieces_of(self._images, self._plan.kernel, self._plan.stride)

    def _initial_penalty(self):
        alpha = self._plan.given.alpha
        if alpha != "auto":
            return alpha
        images = map(self._seen.covered, self._seen.images)
        alpha = penalty_of_correlations(images, self.atoms, self._plan.stride)
        if not self._plan.codes_follow_data:
            return alpha
        return max(alpha, universal_threshold(self._images, self._plan.kernel))

    def fitted(self, atoms, **found):  # (n, n_channels, *kernel) -> Fitted
        """Return the record of a fit with these atoms, of all channels or of their combinations."""
        plan, images = self._plan, self._images
        atoms = atoms.reshape(len(atoms), -1, *plan.kernel).to(self.atoms)
        if atoms.shape[1] != len(images.images[0]):
            atoms = spread_channels(atoms, self._directions.to(atoms))
        atoms = project_atoms(atoms, atom_norm=None, rank=plan.given.rank)
        model, rows = plan.model(atoms, float(self._penalty), images, images.geometry)
        known = dict(search_alpha=self._search_alpha, size_path=self._size_path)
        return Fitted(model=model, rows=rows, **known | found)

    def _problem(self):
        return problem_of(self._plan, self._seen, float(self._penalty))

    def choose_number(self, run):
        """Choose the number of atoms, and continue with the atoms of that number."""

        def start(n):
            shape = (n, *self.atoms.shape[1:])
            return as_pictures(self._initial_atoms("search", shape))

        def attributes_of(trial):
            return run.attributes_of(self.fitted(trial.atoms, size_path=trial.path))

        trials = try_sizes(self._problem(), self._generator, start=start)
        trial = run.make_trials(trials, attributes_of)
        self._size_path = trial.path
        self.atoms = trial.atoms.reshape(-1, *self.atoms.shape[1:]).to(self.atoms)

    def find(self, run):  # -> Fitted
        """Search, refine the atoms, and choose the penalty of codes."""
        given = self._plan.given
        problem = hold_out(self._problem(), fixed=given.alpha != "auto")

        def attributes_of(found):
            return run.attributes_of(self.fitted(found.atoms, losses=found.losses))

        start = as_pictures(self.atoms)
        found = run.search(problem, start, attributes_of)
        complete = self._images.masks is None
        of_noise = given.alpha == "auto" and len(self._plan.kernel) == 1 and complete
        if of_noise and found.is_done:
            level = partial(search_above_noise, problem, start, found)
            now = partial(attributes_of, found)
            problem, found = run.make_step("level of the noise", level, now)
        now = partial(attributes_of, found)
        if given.rank is not None:
            refine = partial(_products_of, problem, found, self._pieces, self._directions)
            fitted = self.fitted(run.make_step("maps and waveforms", refine, now))
        else:
            fitted = self.fitted(run.refit(found, now))
        path = penalty_path(problem, found.path, problem.unit)
        fitted = replace(fitted, search_alpha=found.alpha * problem.unit, penalty_path=path)
        if found.is_done and problem.held_out is not None and self._plan.codes_follow_data:
            unseen = project_atoms(found.trial.judged, rank=given.rank)
            options = dict(debias=self._plan.debias, place=found.trial.prediction.place)
            coding = run.choose_coding(problem.held_out, unseen, problem.unit, now, **options)
            fitted = replace(fitted, coding=coding)
        return fitted
