r"""An epoch of the search for atoms of images and signals; see `_epoch` for rows.

Coordinate descent on the residual of an image finds the codes. A coordinate costs one product for
each pixel of an atom, whatever overlaps it. All coordinates that violate the optimality condition
enter at once, the worst first, and each starts from the residual that the coordinates before it
have left.

For given codes the objective of one atom has their autocorrelation as its curvature, which is
little more than the sum of their squares where they are sparse. A bound of it makes steps on the
sphere safe. Missing pixels count as if the dictionary explained them.

An atom may be a shifted copy of a true one, cut off at its border. The residuals of its users
around it, weighted by their codes, continue it beyond its borders. It *moves* to the window with
the most energy, and its codes move along. A small gain must be enough (``_GAIN``).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch

from skpudle._compilation import blocks_of_rows, in_parts
from skpudle._operators._atoms import project_atoms
from skpudle.search import _epoch as rules
from skpudle.search._conv_compiled import loops
from skpudle.search.problem import Problem

# Effort of an epoch: working sets, and sweeps over each.
_EFFORT, _TOLERANCE = (1, rules.SWEEPS_OF_CODES), rules.TOLERANCE

# Least gain of a move: an atom moves to a window with at least this multiple of its energy. All 58
# atoms of seven synthetic problems are found with 1.003 or 1.01, two thirds with 1.05; in other
# problems the last atoms need 1.001.
_GAIN = 1.001

# Tolerance of solved codes: the largest move of a coordinate, as a share of alpha.
_SOLVED = 1e-8
# Working sets of solved codes, and sweeps over each.
_MOST_EFFORT = (200, 200)
# Tolerance, and sweeps of least squares, of codes that compare penalties or free atoms of bias.
_SOLVED_OF_PATH = 1e-3
_REFIT_OF_PATH = _SOLVED_OF_PATH, 20


@dataclass(frozen=True, eq=False)
class ConvProblem(Problem):
    """Images of one size, in the form of the compiled loops, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_images, n_channels, height, width)
        Data, with any number in missing pixels; a signal is an image of height 1.
    alpha, positive_code, mask, unit, held_out, held_rows
        As in `skpudle.search.Problem`, of images.
    kernel, stride : tuple of int
        Size of an atom and distance of its positions along both axes.
    rank : {1, None}, default=None
        1: an atom is a map over the channels times one waveform. None: any atom.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    rank: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "x", self.x.to("cpu", torch.float64))
        super().__post_init__()

    @property
    def n_samples(self):
        """The number of disjoint patches in all images."""
        return max(len(self.x), self.x[:, 0].numel() // prod(self.kernel))

    @cached_property
    def positions(self):
        """The number of positions along both axes."""
        axes = zip(self.x.shape[2:], self.kernel, self.stride, strict=True)
        return tuple((n - k) // s + 1 for n, k, s in axes)

    @property
    def n_positions(self):
        """The number of positions of an atom."""
        return prod(self.positions)

    def first_codes(self, atoms):
        """Return codes to begin with: zeros."""
        return self.no_codes()

    def epoch(self, atoms, codes, *, turn=None, **effort):
        """Return the epoch of these atoms, starting from codes of other atoms.

        ``turn`` has no effect, since images have few atoms.
        """
        return ConvEpoch(self, atoms, codes, **effort)

    def project(self, atoms):
        """Return the nearest atoms of norm 1 and of the rank."""
        return project_atoms(atoms, rank=self.rank)


class ConvEpoch(rules.Coded):
    """Codes for the atoms of an epoch, and statistics of both; see `_epoch.Epoch`."""

    # Splits that do not have to pay: an atom that mixes two shifted copies leaves little energy in
    # any single direction.
    n_always_split = 1

    def __init__(self, problem, atoms, codes, *, refit=False, effort=_EFFORT, tolerance=_TOLERANCE):
        self.problem, self.atoms = problem, atoms.contiguous()
        n = len(problem.x)
        self._grid = np.array([*problem.stride, *problem.positions])
        x = np.asarray(problem.x)
        self._mask = x[:, :0] if problem.mask is None else np.asarray(problem.mask)
        self._options = problem.alpha, problem.positive_code
        self._residual, found = np.empty_like(x), [None] * n

        own = np.asarray(self.atoms)

        def solve(first, last):
            for i in range(first, last):
                found[i] = loops.solve_image(
                    x[i], self._mask[i], own, self._grid, *self._options,
                    tolerance * problem.alpha, *effort, *codes.of_row(i), self._residual[i],
                )  # fmt: skip

        in_parts(solve, n, 1)
        self.codes = _joined(found)
        size = float(sum(np.abs(value).sum() for _, value, _ in found))
        self.solved = np.array([solved for *_, solved in found], dtype=bool)
        loss = float(np.square(self._residual).sum()) / 2
        # atoms adapt to these codes
        self.fitting = self.refit_codes(*_REFIT_OF_PATH) if refit else self.codes
        self._measure(atoms.new_tensor([loss, size, loss, len(self.codes.value), n]))

    def refit_codes(self, tolerance=_SOLVED, n_sweeps=_MOST_EFFORT[1]):  # -> Codes
        """Return least squares on the supports of the codes, and update the residual.

        A code is zero where least squares would turn its sign. Descent ends when no coordinate
        moves by more than ``tolerance`` in units of alpha.
        """
        residual, codes = self._residual, replace(self.codes, value=self.codes.value.clone())
        tolerance, grid = tolerance * self.problem.alpha, self._grid
        atoms = np.asarray(self.atoms)

        def refit(first, last):
            for i in range(first, last):
                how = self._mask[i], atoms, grid, tolerance, n_sweeps
                loops.refit_image(*how, *codes.of_row(i), residual[i])

        in_parts(refit, len(residual), 1)
        return codes

    @cached_property
    def _entries(self):  # sorted by atom, and then by image and position
        _, index, value = self.fitting.arrays()
        image = np.asarray(self.fitting.rows.int())
        atom, place = np.divmod(index, self.problem.n_positions)
        order = np.argsort(atom, kind="stable")
        first = np.cumsum(np.bincount(atom, minlength=len(self.atoms)))
        start = np.concatenate([[0], first])
        return start, image[order], place[order].astype(np.int32), value[order]

    @property
    def uses(self):  # -> (p,)
        """The number of places where each atom is used."""
        return torch.as_tensor(np.diff(self._entries[0]))

    def improved_atoms(self, earlier=None):
        """Return the atoms after sweeps of block coordinate descent; images have no ``earlier``."""
        atoms, residual = self.atoms.clone(), self._residual.copy()
        # five steps of an atom in each sweep
        options = self._grid, self._mask, 5, np.asarray(atoms), residual
        # steps of an atom are cheap compared with its residuals
        for _ in range(rules.SWEEPS["few"]):
            loops.sweep_atoms(*self._entries, *options)
        return atoms if self.problem.rank is None else self.problem.project(atoms)

    def move_atoms(self):
        """Move atoms and codes to the windows with the most energy; None if no atom moves."""
        p, n_channels, height, width = self.atoms.shape
        total = np.zeros((p, n_channels, 3 * height - 2, 3 * width - 2))
        weight = np.zeros((p, *total.shape[2:]))
        loops.add_surroundings(*self._entries, self._grid, self._residual, total, weight)
        wide = torch.as_tensor(total / np.where(weight > 0, weight, 1.0)[:, None])
        wide[:, :, height - 1 : 2 * height - 1, width - 1 : 2 * width - 1] += self.atoms
        windows = wide.square().sum(1).unfold(1, height, 1).unfold(2, width, 1)
        steps = self.problem.stride
        starts = (height - 1) % steps[0], (width - 1) % steps[1]
        windows = windows[:, starts[0] :: steps[0], starts[1] :: steps[1]]
        energy = windows.sum((3, 4))
        centre = (height - 1) // steps[0], (width - 1) // steps[1]
        largest, best = energy.flatten(1).max(1)
        moves = largest > _GAIN * energy[:, centre[0], centre[1]]
        if not moves.any():
            return None
        best = torch.where(moves, best, centre[0] * energy.shape[2] + centre[1])
        atoms, (rows, columns) = self.atoms.clone(), torch.unravel_index(best, energy.shape[1:])
        for k in moves.nonzero()[:, 0].tolist():
            y, x = (int(v[k]) * s + a for v, s, a in zip((rows, columns), steps, starts))
            atoms[k] = wide[k, :, y : y + height, x : x + width]
        shift = np.stack([np.asarray(rows) - centre[0], np.asarray(columns) - centre[1]])
        return self.problem.project(atoms), self._shifted(shift)

    def _shifted(self, shift):  # (2, p) positions -> Codes
        rows, columns = self.problem.positions
        found = []
        for places, values in map(self.codes.of_row, range(len(self.codes))):
            atom, place = np.divmod(places, self.problem.n_positions)
            y, x = (v + s[atom] for v, s in zip(np.divmod(place, columns), shift))
            inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            places = (atom * self.problem.n_positions + y * columns + x)[inside].astype(np.int32)
            order = np.argsort(places)
            found.append((places[order], values[inside][order]))
        return _joined(found)

    def residuals(self):  # -> array of the shape of the data
        """Return the residuals of the codes that atoms adapt to."""
        return self._residual

    def _second_moments(self, residuals, direction):  # (p, n_pixels) -> the same
        moments, direction = np.zeros(self.atoms.shape), direction.view_as(self.atoms)
        given = *self._entries[:3], self._grid, residuals, np.asarray(direction)
        loops.add_second_moments(*given, moments)
        return torch.as_tensor(moments).flatten(1)

    def _rivals(self):  # -> (p, n, 3) atom, row and column of the shifted atoms most like each
        p, _, height, width = self.atoms.shape
        margins = [width - 1, width - 1, height - 1, height - 1]
        starts = [(n - 1) % s for n, s in zip((height, width), self.problem.stride)]
        rivals = []
        for some in blocks_of_rows(p, p * (2 * height - 1) * (2 * width - 1)):
            part = self.atoms[some]
            grams = torch.nn.functional.conv2d(
                torch.nn.functional.pad(part, margins)[:, :, starts[0] :, starts[1] :],
                self.atoms,
                stride=self.problem.stride,
            )
            grams = grams if self.problem.positive_code else grams.abs()
            own = torch.arange(len(part))
            grams[own, some.start + own] = -1.0
            # the most similar ones
            best = grams.flatten(1).topk(min(16, grams[0].numel())).indices
            atom, *places = torch.unravel_index(best, grams.shape[1:])
            axes = zip(places, self.problem.stride, starts, (height, width), strict=True)
            rivals.append(torch.stack([atom, *(v * s + a - (k - 1) for v, s, a, k in axes)], 2))
        return np.asarray(torch.cat(rivals))

    def _removals(self):  # -> (p,), (p, p), (p, p)
        p = len(self.atoms)
        cost, taken_over = torch.zeros(p).double(), torch.zeros(p, p).double()
        loops.removals(
            *self._entries, self._rivals(), rules.USERS, 3, self._mask,
            np.asarray(self.atoms), self._grid, *self._options, *self.codes.arrays(),
            self._residual, np.asarray(cost), np.asarray(taken_over),
        )  # fmt: skip
        return cost, taken_over, torch.arange(p).expand(p, p)


def _joined(found):  # list of (index, value, ...) -> Codes
    return rules.Codes.joined(([len(index)], index, value) for index, value, *_ in found)


def as_pictures(x):  # (n, n_channels, [height,] width) -> with a height
    """Return signals as pictures of height 1; pictures are returned unchanged."""
    return x if x.ndim == 4 else x[:, :, None]


def conv_codes(dictionary, x, *, alpha, positive_code=False, debias=0.0, mask=None):
    """Solve the lasso for code maps, by coordinate descent.

    Parameters
    ----------
    dictionary : ConvDictionary
        Atoms of any norm, for signals or pictures.
    x : Tensor of shape (n, n_channels, [height,] width)
        Data; atoms must cover them exactly.
    alpha : float
        Penalty, more than 0.
    positive_code : bool, default=False
        Whether codes are non-negative.
    debias : float, default=0.0
        Share of the lasso's bias to remove, from 0 to 1, as in `skpudle.lasso.solve_lasso`: codes
        move by this share towards least squares on their support, among codes of the same signs.
    mask : Tensor of the shape of ``x``, default=None
        1 for known pixels, 0 for missing ones.

    Returns
    -------
    codes : Tensor of shape (n, n_components, [rows,] columns)
        The code maps, with the dtype and on the device of the data.
    solved : ndarray of shape (n,)
        True for images with codes within 1e-8 alpha of the optimality conditions of the lasso.
    """
    atoms = as_pictures(dictionary.atoms.detach().to("cpu", torch.float64))
    how = dict(stride=(1, *dictionary.strides)[-2:])
    how["mask"] = None if mask is None else as_pictures(mask.expand_as(x))
    kernel = tuple(atoms.shape[2:])
    problem = ConvProblem(as_pictures(x), alpha, positive_code, kernel=kernel, **how)
    epoch = problem.epoch(atoms, problem.no_codes(), effort=_MOST_EFFORT, tolerance=_SOLVED)
    shape = len(atoms), *dictionary.positions(x.shape[2:])
    z = epoch.codes.dense(prod(shape))
    z = torch.lerp(z, epoch.refit_codes().dense(prod(shape)), debias) if debias else z
    return z.unflatten(1, shape).to(x), epoch.solved


def conv_path(problem, atoms, alphas):
    """Solve for code maps at falling penalties, each from the codes of the one before.

    Parameters
    ----------
    problem : ConvProblem
        Data, their mask and the objective.
    atoms : Tensor of shape (n_components, n_channels, height, width)
        Atoms.
    alphas : iterable of float
        Penalties, also without an end.

    Yields
    ------
    codes, refits : Codes
        Codes of the lasso, to a thousandth of the penalty, and least squares on their supports.
    """
    codes = problem.no_codes()
    for alpha in alphas:
        epoch = replace(problem, alpha=alpha).epoch(atoms, codes, effort=(20, 20),
                                                    tolerance=_SOLVED_OF_PATH)  # fmt: skip
        codes = epoch.codes
        yield codes, epoch.refit_codes(*_REFIT_OF_PATH)


def conv_synthesis(problem, atoms, codes):  # Codes -> (n, n_channels, height, width)
    """Return the images of codes, with the channels of the atoms."""
    grid = np.array([*problem.stride, *problem.positions])
    images = np.zeros((len(problem.x), atoms.shape[1], *problem.x.shape[2:]))
    atoms = np.ascontiguousarray(atoms)

    def add(first, last):
        for i in range(first, last):
            loops.synthesise(atoms, grid, *codes.of_row(i), images[i])

    in_parts(add, len(images), 1)
    return torch.as_tensor(images)
