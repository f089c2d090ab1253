r"""An epoch of the search for atoms of images and signals; see `_epoch` for rows.

An epoch first solves for the codes of given atoms, and then improves the atoms for these codes.

Codes: coordinate descent works on the residual of an image. A coordinate is one atom at one
position. It costs one product for each pixel of the atom, however many other atoms overlap it. All
coordinates that violate the optimality condition enter together. The sweep over them starts with
the largest violation, and each coordinate starts from the residual that the coordinates before it
have left.

Atoms: for given codes the objective is quadratic in one atom. Its curvature is the autocorrelation
of the atom's codes. For sparse codes the autocorrelation is little more than the sum of the squared
codes at shift zero. The sum of its moduli bounds the curvature, so that no step on the sphere
raises the objective. Missing pixels count as if the dictionary explained them.

Moves: an atom of a search may be a shifted copy of a pattern in the data, cut off at the border of
the atom. The residuals around the positions of the atom, weighted by the codes, continue the
pattern beyond the border. The atom *moves* to the window with the most energy, and the positions of
the codes move along. A gain of a thousandth of the energy is enough (``_GAIN``).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
import torch

from skpudle._compilation import in_parts
from skpudle._operators._atoms import project_atoms
from skpudle._operators._conv import as_pictures
from skpudle.search import _epoch as rules
from skpudle.search._conv_compiled import loops
from skpudle.search.problem import Problem

# Effort of an epoch: the number of working sets, and the number of sweeps over each working set.
# Then the tolerance of its codes in the optimality condition, as a share of alpha.
_EFFORT, _TOLERANCE = (1, rules.SWEEPS_OF_CODES), rules.TOLERANCE

# Least gain of a move: an atom moves to a window with at least this multiple of the atom's present
# energy. In seven synthetic problems with 58 planted atoms a search finds all atoms with 1.003 or
# 1.01, and two thirds with 1.05. In some further synthetic problems a search misses the last atoms
# with more than 1.001.
_GAIN = 1.001

# Tolerance of the codes that `conv_codes` returns: the largest change of a coordinate in the last
# sweep, as a share of alpha.
_SOLVED = 1e-8
# Effort of the codes that `conv_codes` returns: the largest numbers of working sets and of sweeps
# over each working set. Descent ends earlier at the tolerance.
_MOST_EFFORT = (200, 200)
# Tolerance of codes that predict hidden pixels, as a share of alpha: scores of three photographs
# differ by at most 2e-4 from those of solved codes, in a third of the time or less. Least squares
# on the supports of codes have this tolerance too, and a largest number of sweeps.
SOLVED_OF_PATH = 1e-3
_REFIT_OF_PATH = SOLVED_OF_PATH, 20


@dataclass(frozen=True, eq=False)
class ConvProblem(Problem):
    """Images or signals of one size, as float64 on the CPU for compiled loops, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_images, n_channels, height, width)
        Data, with any number in missing pixels; a signal is an image of height 1.
    alpha, positive_code, mask, unit, held_out, held_rows
        As in `skpudle.search.Problem`, with images for rows.
    kernel, stride : tuple of int
        Size of an atom, and distance of neighbouring positions of an atom, along both axes, in
        pixels.
    rank : {1, None}, default=None
        1: each atom is an outer product of a map, one number for each channel, and one waveform.
        None: atoms have any shape.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    rank: int | None = None

    def __post_init__(self):
        """Bring images to float64 on the CPU, with 0 in missing pixels."""
        object.__setattr__(self, "x", self.x.to("cpu", torch.float64))
        super().__post_init__()

    @cached_property
    def positions(self):  # -> (rows, columns)
        """The numbers of positions along both axes."""
        axes = zip(self.x.shape[2:], self.kernel, self.stride, strict=True)
        return tuple((n - k) // s + 1 for n, k, s in axes)

    @property
    def n_positions(self):  # -> int
        """The number of positions of an atom."""
        return prod(self.positions)

    def first_codes(self, atoms):  # -> Codes
        """Return the codes that an epoch begins with: zeros, for any atoms."""
        return self.no_codes()

    def epoch(self, atoms, codes, *, turn=None, **effort):  # -> ConvEpoch
        """Solve for the codes of given atoms, starting from ``codes``; return the coded data.

        ``effort`` are options of `ConvEpoch`. ``turn`` has no effect: it saves time for rows with
        1,024 atoms and more, see `Problem.epoch`.
        """
        return ConvEpoch(self, atoms, codes, **effort)

    def project(self, atoms):  # (p, n_channels, height, width) -> the same
        """Return the nearest atoms of norm 1, and of rank one if ``rank`` is 1."""
        return project_atoms(atoms, rank=self.rank)


class ConvEpoch(rules.Coded):
    """Images with codes for given atoms, and sums that improve the atoms; see `_epoch.Coded`.

    Parameters
    ----------
    problem : ConvProblem
        The images and the objective.
    atoms : Tensor of shape (n_components, n_channels, height, width)
        Atoms of any norm.
    codes : Codes
        Codes to begin with.
    refit : bool, default=False
        Whether atoms adapt to least squares on the supports of the codes, instead of the codes.
    effort : tuple of int
        Largest numbers of working sets and of sweeps over each working set.
    tolerance : float
        Tolerance of the codes in the optimality condition, as a share of alpha.

    Attributes
    ----------
    solved : ndarray of bool of shape (n_images,)
        Whether the codes of each image have reached the tolerance.
    fitting : Codes
        The codes that atoms adapt to.
    """

    # A round always splits at least one atom, even where the estimated gain is less than the cost.
    # The estimate is the energy of residuals along one direction, which is small for an atom that
    # mixes two shifted copies of a pattern.
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

        def solve(first, last):  # set `found`, (index, value, solved), of images `first:last`
            for i in range(first, last):
                found[i] = loops.solve_image(
                    x[i], self._mask[i], own, self._grid, *self._options,
                    tolerance * problem.alpha, *effort, *codes.of_row(i), self._residual[i],
                )  # fmt: skip

        in_parts(solve, n, 1)
        self.codes = rules.Codes.joined(([len(index)], index, z) for index, z, _ in found)
        size = float(sum(np.abs(value).sum() for _, value, _ in found))
        self.solved = np.array([solved for *_, solved in found], dtype=bool)
        loss = float(np.square(self._residual).sum()) / 2
        self.fitting = self.refit_codes(*_REFIT_OF_PATH) if refit else self.codes
        self._measure(atoms.new_tensor([loss, size, len(self.codes.value), n]))

    def refit_codes(self, tolerance=_SOLVED, n_sweeps=_MOST_EFFORT[1]):  # -> Codes
        """Return least squares on the supports of the codes, and update the residual in place.

        A code whose sign least squares would turn becomes zero. Descent ends after a sweep in which
        no coordinate moves by more than ``tolerance`` times alpha, or after ``n_sweeps``.
        """
        residual, codes = self._residual, replace(self.codes, value=self.codes.value.clone())
        tolerance, grid = tolerance * self.problem.alpha, self._grid
        atoms = np.asarray(self.atoms)

        def refit(first, last):  # change `codes` and `residual` of images `first:last`
            for i in range(first, last):
                how = self._mask[i], atoms, grid, tolerance, n_sweeps
                loops.refit_image(*how, *codes.of_row(i), residual[i])

        in_parts(refit, len(residual), 1)
        return codes

    @cached_property
    def _entries(self):  # -> start (p + 1,), image, place and value (n_entries,)
        """The codes that atoms adapt to, sorted by atom, then by image and position."""
        _, index, value = self.fitting.arrays()
        image = np.asarray(self.fitting.rows.int())
        atom, place = np.divmod(index, self.problem.n_positions)
        order = np.argsort(atom, kind="stable")
        start = np.searchsorted(atom[order], np.arange(len(self.atoms) + 1))
        return start, image[order], place[order].astype(np.int32), value[order]

    @property
    def uses(self):  # -> (p,)
        """The number of nonzero codes of each atom, over all images and positions."""
        return torch.as_tensor(np.diff(self._entries[0]))

    def improved_atoms(self, earlier=None):  # -> (p, n_channels, height, width) of norm 1
        """Return the atoms after two sweeps of block coordinate descent, an atom a block.

        ``earlier`` has no effect: it exists for streams of rows, see `stream.Held`.
        """
        atoms, residual = self.atoms.clone(), self._residual.copy()
        options = self._grid, self._mask, np.asarray(atoms), residual
        for _ in range(rules.SWEEPS["few"]):
            loops.sweep_atoms(*self._entries, *options)
        return atoms if self.problem.rank is None else self.problem.project(atoms)

    def move_atoms(self):  # -> (atoms, Codes) or None
        """Return atoms moved to the windows with the most energy, and their codes moved along.

        Return None if no atom moves.
        """
        p, n_channels, height, width = self.atoms.shape
        total = np.zeros((p, n_channels, 3 * height - 2, 3 * width - 2))
        weight = np.zeros((p, 1, *total.shape[2:]))
        start, image, place, value = self._entries
        # images that are continued by zeros, and 1 at their own pixels
        around = (0, 0), (0, 0), *((k - 1, k - 1) for k in (height, width))
        images, inside = np.pad(self._residual, around), np.ones_like(self._residual[:, :1])
        loops.add_patches(start, image, place, value, self._grid, images, total)
        inside = np.pad(inside, around)
        loops.add_patches(start, image, place, value**2, self._grid, inside, weight)
        wide = torch.as_tensor(total / np.where(weight > 0, weight, 1.0))
        wide[:, :, height - 1 : 2 * height - 1, width - 1 : 2 * width - 1] += self.atoms
        steps = self.problem.stride
        starts = (height - 1) % steps[0], (width - 1) % steps[1]
        centre = (height - 1) // steps[0], (width - 1) // steps[1]

        def cut(images):  # (p, ..., height, width) -> (p, ..., *places, height, width): windows
            images = images[..., starts[0] :, starts[1] :]
            return images.unfold(-2, height, steps[0]).unfold(-2, width, steps[1])

        energy = cut(wide.square().sum(1)).sum((3, 4))
        largest, best = energy.flatten(1).max(1)
        moves = largest > _GAIN * energy[:, centre[0], centre[1]]
        if not moves.any():
            return None
        best = torch.where(moves, best, centre[0] * energy.shape[2] + centre[1])
        rows, columns = torch.unravel_index(best, energy.shape[1:])
        atoms = cut(wide)[torch.arange(p), :, rows, columns]
        atoms[~moves] = self.atoms[~moves]
        shifted = self._shifted(rows - centre[0], columns - centre[1])
        return self.problem.project(atoms), shifted

    def _shifted(self, down, right):  # (p,), (p,) -> Codes
        """Return the codes, moved by a number of positions for each atom, along both axes.

        A code that would leave the image is dropped.
        """
        codes, n, (rows, columns) = self.codes, self.problem.n_positions, self.problem.positions
        atom, place = codes.index.long() // n, codes.index.long() % n
        y, x = place // columns + down[atom], place % columns + right[atom]
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        moved = codes.renumbered(atom * n + y * columns + x, inside)
        order = (moved.rows * (len(self.atoms) * n) + moved.index).argsort()
        return replace(moved, index=moved.index[order], value=moved.value[order])

    def residuals(self):  # -> array of the shape of the data
        """Return the residuals for the codes that atoms adapt to, zero in missing pixels."""
        return self._residual

    def _second_moments(self, residuals, direction):  # direction (p, n_pixels) -> (p, n_pixels)
        """Return for each atom the sum of ``r_e (r_e . v)`` over its users ``e``.

        ``r_e`` is the patch of the residual at the user, and ``v`` the direction of the atom.
        """
        moments, direction = np.zeros(self.atoms.shape), direction.view_as(self.atoms)
        given = *self._entries[:3], self._grid, residuals, np.asarray(direction)
        loops.add_second_moments(*given, moments)
        return torch.as_tensor(moments).flatten(1)

    def _removals(self):  # -> (p, 1 + p), (p, p)
        """Return how the objective and the codes of all atoms would change without each atom.

        Row ``k`` of the first array has the rise of the objective without atom ``k``, then the
        growth of the moduli of codes at each atom. The second has the numbers of these atoms.
        """
        p = len(self.atoms)
        changes = np.zeros((p, 1 + p))
        loops.removals(
            *self._entries, rules.USERS, 3, self._mask, np.asarray(self.atoms), self._grid,
            *self._options, *self.codes.arrays(), self._residual, changes,
        )  # fmt: skip
        return torch.as_tensor(changes), torch.arange(p).expand(p, p)


def conv_codes(dictionary, x, *, alpha, positive_code=False, debias=0.0, mask=None,
               tolerance=_SOLVED):  # fmt: skip
    """Solve the lasso for the codes of signals or pictures, by coordinate descent.

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
    tolerance : float, default=1e-8
        The largest violation of the optimality conditions, as a share of ``alpha``.

    Returns
    -------
    codes : Tensor of shape (n, n_components, [rows,] columns)
        The codes at all positions, with the dtype and on the device of the data.
    solved : ndarray of bool of shape (n,)
        True where the lasso's codes of an image meet the optimality conditions to the tolerance.
    """
    atoms = as_pictures(dictionary.atoms.detach().to("cpu", torch.float64))
    how = dict(stride=(1, *dictionary.strides)[-2:])
    how["mask"] = None if mask is None else as_pictures(mask.expand_as(x))
    kernel = tuple(atoms.shape[2:])
    problem = ConvProblem(as_pictures(x), alpha, positive_code, kernel=kernel, **how)
    epoch = problem.epoch(atoms, problem.no_codes(), effort=_MOST_EFFORT, tolerance=tolerance)
    shape = len(atoms), *dictionary.positions(x.shape[2:])
    z = epoch.codes.dense(prod(shape))
    z = torch.lerp(z, epoch.refit_codes(tolerance).dense(prod(shape)), debias) if debias else z
    return z.unflatten(1, shape).to(x), epoch.solved


def conv_path(problem, atoms, alphas):
    """Solve for codes at falling penalties, each from the codes at the penalty before.

    Parameters
    ----------
    problem : ConvProblem
        Data, their mask and the sign of codes.
    atoms : Tensor of shape (n_components, n_channels, height, width)
        Atoms of any norm.
    alphas : iterable of float
        Penalties from large to small; the iterable may be infinite.

    Yields
    ------
    codes, refits : Codes
        For each penalty the lasso's codes, to a tolerance of a thousandth of the penalty, and least
        squares on the supports of these codes.
    """
    codes = problem.no_codes()
    for alpha in alphas:
        epoch = replace(problem, alpha=alpha).epoch(atoms, codes, effort=(20, 20),
                                                    tolerance=SOLVED_OF_PATH)  # fmt: skip
        codes = epoch.codes
        yield codes, epoch.refit_codes(*_REFIT_OF_PATH)


def conv_synthesis(problem, atoms, codes):  # Codes -> (n, n_channels, height, width)
    """Return the images that codes synthesise, with the channels of ``atoms``.

    The atoms may have more or fewer channels than the data of the problem.
    """
    grid = np.array([*problem.stride, *problem.positions])
    images = np.zeros((len(problem.x), atoms.shape[1], *problem.x.shape[2:]))
    atoms = np.ascontiguousarray(atoms)

    def add(first, last):  # add to images `first:last`
        for i in range(first, last):
            loops.synthesise(atoms, grid, *codes.of_row(i), images[i])

    in_parts(add, len(images), 1)
    return torch.as_tensor(images)
