"""The search for atoms of images: pieces of images as a problem, and its steps in a fit."""

from dataclasses import replace
from functools import partial
from itertools import product
from math import ceil, prod

import torch

from skpudle._data.arrays import unit_of
from skpudle._learners.convolutional.values import (
    auto_penalty,
    initial_atoms,
    initial_parameters,
    universal_threshold,
)
from skpudle._learners.record import Fitted
from skpudle._operators._atoms import project_atoms
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

# pixels of a piece: its correlations with some atoms stay in a cache
_PIXELS = 2**14


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
    plan : DictionaryPlan
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
    plan : DictionaryPlan
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
        atoms = initial_atoms(self._seen, plan.start, shape, generator)
        self.atoms = project_atoms(atoms.contiguous())
        self._penalty = self._initial_penalty()
        self._search_alpha = float(self._penalty) if searches else None

    @property
    def _pieces(self):
        return pieces_of(self._images, self._plan.kernel, self._plan.stride)

    def _initial_penalty(self):
        alpha = self._plan.given.alpha
        if alpha != "auto":
            return alpha
        alpha = auto_penalty(self._seen, self.atoms, 0.0)
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
        parameters = initial_parameters(plan, atoms, self._penalty)
        model, rows = plan.model(parameters, images, images.geometry, alpha=parameters.alpha)
        known = dict(search_alpha=self._search_alpha, size_path=self._size_path)
        return Fitted(model=model, rows=rows, **known | found)

    def _problem(self):
        return problem_of(self._plan, self._seen, float(self._penalty))

    def choose_number(self, run):
        """Choose the number of atoms, and continue with the atoms of that number."""

        def start(n):
            shape = (n, *self.atoms.shape[1:])
            begun = initial_atoms(self._seen, "search", shape, self._generator)
            return as_pictures(begun)

        def attributes_of(trial):
            return run.attributes_of(self.fitted(trial.atoms, size_path=trial.path))

        trials = try_sizes(self._problem(), self._generator, start=start)
        trial = run.make_trials("size", trials, attributes_of)
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
