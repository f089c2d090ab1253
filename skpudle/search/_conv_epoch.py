"""An epoch of the search for atoms of signals, pictures and volumes; see `_epoch` for rows.

An epoch first solves for the codes of given atoms, and then improves the atoms for these codes. A
*coordinate* is one atom at one position of an image.

Codes: coordinate descent works on the residual of an image. A coordinate costs one product for each
pixel of the atom, however many other atoms overlap it. All coordinates that violate the optimality
condition enter the *working set* together, the coordinates that descent minimises over. A sweep
over them starts with the largest violation, and each coordinate starts from the residual that the
coordinates before it have left.

Atoms: for given codes the objective is quadratic in one atom. Its curvature is the autocorrelation
of the atom's codes, which for sparse codes is little more than the sum of the squared codes at
shift zero. The sum of the moduli of the autocorrelation bounds the curvature, so that no step on
the sphere raises the objective. Missing pixels count as if the dictionary explained them.

Moves: an atom of a search may be a shifted copy of a pattern in the data, cut off at the border of
the atom. The residuals around the positions of the atom, weighted by the codes, continue the
pattern beyond the border. The atom *moves* to the window with the most energy (sum of squares), and
the positions of the codes move along. A gain of a thousandth of the energy is enough (``_GAIN``).
"""

from dataclasses import replace
from functools import cached_property, lru_cache

import numpy as np
import torch

from skpudle._compilation import in_parts
from skpudle.search import _epoch as rules
from skpudle.search._conv_compiled import Grid, loops

# The codes of an image in an epoch have one working set, at most 3 sweeps over it, and the
# tolerance 1e-2 times alpha in the optimality condition; the last two numbers are as for rows.
# Codes need not converge in an epoch, since the next epoch starts from them.
_EFFORT = (1, rules.SWEEPS_OF_CODES)
_TOLERANCE = rules.TOLERANCE

# An atom moves to a window whose energy (sum of squares) is more than this multiple of the energy
# of its present window, see the module. In seven synthetic problems with 58 planted atoms a search
# finds all atoms with the multiple 1.003 or 1.01, and two thirds with 1.05. In some further
# synthetic problems a search misses the last atoms with more than 1.001.
_GAIN = 1.001

# Tolerance of the codes that `conv_codes` returns: the largest change of a coordinate in the last
# sweep, times its curvature, as a fraction of alpha.
SOLVED = 1e-8
# The largest numbers of working sets, and of sweeps over each working set, in `conv_codes`. They
# only bound the time: descent ends when the tolerance is reached.
MOST_EFFORT = (200, 200)
# Tolerance of codes that predict hidden pixels, as a fraction of alpha. Scores of three photographs
# differ by at most 2e-4 from the scores of codes with the tolerance SOLVED, and take a third of
# the time or less. Least squares on the supports of codes have this tolerance, too, and at most 20
# sweeps.
SOLVED_OF_PATH = 1e-3


@lru_cache
def make_grid(n_channels, size, kernel, stride):  # int, three tuples of int -> Grid
    """Return the `Grid`, where positions lie, of images of a size for atoms of the size ``kernel``.

    Tuples of one or two numbers, of signals and pictures, get further axes of length 1 in front.
    """
    depth, height, width = (1, 1, *size)[-3:]
    kernel = (1, 1, *kernel)[-3:]
    stride = (1, 1, *stride)[-3:]
    # where positions begin along depth and height, and the slices of an atom at the first position
    first_slices = np.arange(0, depth - kernel[0] + 1, stride[0])
    first_rows = np.arange(0, height - kernel[1] + 1, stride[1])
    slices = (
        np.arange(n_channels)[:, None, None] * depth + np.arange(kernel[0])[:, None]
    )
    # Blocks of an image have the size of an atom. There is a margin of one block at both ends of
    # depth and of height, unless the image is as long as an atom along this axis.
    margins = [int(depth > kernel[0]), int(height > kernel[1])]
    n_rows = height // kernel[1] + 1 + 2 * margins[1]
    n_slices = depth // kernel[0] + 1 + 2 * margins[0]
    block_of_slice = np.arange(depth)[:, None] // kernel[0] + margins[0]
    block_of_row = np.arange(height) // kernel[1] + margins[1]
    neighbours = [np.arange(-margin, margin + 1) for margin in margins]
    return Grid(
        step=stride[2],
        n_columns=(width - kernel[2]) // stride[2] + 1,
        top=(first_slices[:, None] * height + first_rows).ravel(),
        rows=(slices * height + np.arange(kernel[1])).ravel(),
        height=height,
        kernel=kernel,
        block=(block_of_slice * n_rows + block_of_row).ravel(),
        near=(neighbours[0][:, None] * n_rows + neighbours[1]).ravel(),
        n_blocks=(n_slices * n_rows, width // kernel[2] + 3),
    )


def in_rows(images):  # (n, n_channels, *size) -> array (n, n_rows, width)
    """Return images or atoms as matrices for compiled loops, in the same memory.

    A matrix has the rows of pixels of all channels and slices below each other.
    """
    return np.asarray(images).reshape(len(images), -1, images.shape[-1])


class ConvEpoch(rules.Coded):
    """Images with codes for given atoms, and sums that improve the atoms; see `_epoch.Coded`.

    Making the object solves for the codes.

    Parameters
    ----------
    problem : ConvProblem
        The images and the objective.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Atoms of any norm.
    codes : Codes
        Codes to begin with.
    refit : bool, default=False
        Whether atoms adapt to least squares on the supports of the codes, instead of the codes.
    effort : tuple of int
        Largest numbers of working sets and of sweeps over each working set, for each image.
    tolerance : float
        Tolerance of the codes in the optimality condition, as a fraction of alpha.

    Attributes
    ----------
    solved : ndarray of bool of shape (n_images,)
        Whether the codes of each image have reached the tolerance.
    fitting : Codes
        The codes that atoms adapt to: ``codes``, or with ``refit`` least squares on their supports.
    """

    # A round of the search splits at least one atom of images, even if the estimated gain is less
    # than the cost of the atom that it removes. The estimate, the energy of residuals along one
    # direction, is too small for an atom that mixes two shifted copies of a pattern.
    n_always_split = 1

    def __init__(
        self,
        problem,
        atoms,
        codes,
        *,
        refit=False,
        effort=_EFFORT,
        tolerance=_TOLERANCE,
    ):
        self.problem = problem
        self.atoms = atoms.contiguous()
        n = len(problem.x)
        shape = problem.x.shape
        self._grid = make_grid(shape[1], shape[2:], problem.kernel, problem.stride)
        x = in_rows(problem.x)
        self._mask = x[:, :0] if problem.mask is None else in_rows(problem.mask)
        self._residual = np.empty_like(x)
        max_rounds, max_sweeps = effort
        atom_rows = in_rows(self.atoms)
        solved = [None] * n  # (index, value, whether codes are solved) of each image

        def solve(first, last):  # set `solved` of images `first:last`
            for i in range(first, last):
                index, value = codes.of_row(i)
                solved[i] = loops.solve_image(
                    x[i],
                    self._mask[i],
                    atom_rows,
                    self._grid,
                    alpha=problem.alpha,
                    positive=problem.positive_code,
                    tolerance=tolerance * problem.alpha,
                    max_rounds=max_rounds,
                    max_sweeps=max_sweeps,
                    index=index,
                    value=value,
                    residual=self._residual[i],
                )

        in_parts(solve, n, 1)
        parts = (([len(index)], index, value) for index, value, _ in solved)
        self.codes = rules.Codes.joined(parts)
        sum_of_moduli = float(sum(np.abs(value).sum() for _, value, _ in solved))
        self.solved = np.array([is_solved for _, _, is_solved in solved], dtype=bool)
        loss = float(np.square(self._residual).sum()) / 2
        self.fitting = self.refit_on_path() if refit else self.codes
        self._measure(atoms.new_tensor([loss, sum_of_moduli, len(self.codes.value), n]))

    def refit_on_path(self):  # -> Codes
        """Return least squares on the supports, to a tolerance of a thousandth of the penalty.

        The codes of `conv_path`, which predict hidden pixels, need not be more exact.
        """
        return self.refit_codes(SOLVED_OF_PATH, n_sweeps=20)

    def refit_codes(self, tolerance=SOLVED, n_sweeps=MOST_EFFORT[1]):  # -> Codes
        """Return least squares on the supports of the codes, and update the residual in place.

        So later sums, such as `residuals` and `improved_atoms`, take the residual of the new codes.
        A code whose sign least squares would turn becomes zero. Descent ends after a sweep in which
        no coordinate moves by more than ``tolerance`` times alpha, over its curvature, or after
        ``n_sweeps``, by default 200.
        """
        residual = self._residual
        codes = replace(self.codes, value=self.codes.value.clone())
        tolerance = tolerance * self.problem.alpha
        grid = self._grid
        atoms = in_rows(self.atoms)

        def refit(first, last):  # change `codes` and `residual` of images `first:last`
            for i in range(first, last):
                index, value = codes.of_row(i)
                loops.refit_image(
                    self._mask[i],
                    atoms,
                    grid,
                    tolerance=tolerance,
                    max_sweeps=n_sweeps,
                    index=index,
                    value=value,
                    residual=residual[i],
                )

        in_parts(refit, len(residual), 1)
        return codes

    @cached_property
    def _entries(self):  # -> (p + 1,) and three arrays (n_entries,)
        """The entries of ``fitting`` for loops over atoms: sorted by atom, image and position.

        Four arrays: where the entries of each atom start, and the number of the image, the number
        of the position in the image, and the value of each entry.
        """
        _, index, value = self.fitting.arrays()
        image = np.asarray(self.fitting.rows.int())
        atom, position = np.divmod(index, self.problem.n_positions)
        order = np.argsort(atom, kind="stable")
        start = np.searchsorted(atom[order], np.arange(len(self.atoms) + 1))
        return start, image[order], position[order].astype(np.int32), value[order]

    @property
    def uses(self):  # -> (p,)
        """The number of nonzero codes of each atom, over all images and positions."""
        return torch.as_tensor(np.diff(self._entries[0]))

    def improved_atoms(self, earlier=None):  # -> the shape of the atoms, of norm 1
        """Return better atoms for the codes, the second half of an epoch.

        Two sweeps improve one atom at a time. ``earlier`` has no effect: in streams of rows it is a
        penalty on steps of the atoms.
        """
        atoms = self.atoms.clone()
        residual = self._residual.copy()
        start, image, position, value = self._entries
        for _ in range(rules.SWEEPS["few"]):
            loops.sweep_atoms(
                start,
                image,
                position,
                value,
                grid=self._grid,
                mask=self._mask,
                atoms=in_rows(atoms),
                residual=residual,
            )
        # the sweeps keep norms of 1, but not the rank
        return atoms if self.problem.rank is None else self.problem.project(atoms)

    def move_atoms(self):  # -> (atoms, Codes) or None
        """Move atoms that cut a pattern off to the windows with the most energy, with their codes.

        An atom may be a pattern that its border cuts off; residuals beyond the border then continue
        the pattern. A round of the search calls the method (`descend.play_rounds`). Return all
        atoms (p, n_channels, *kernel) and their `Codes`, or None if no atom moves.
        """
        p, n_channels, *kernel = self.atoms.shape
        stride = self.problem.stride
        size = self.problem.x.shape[2:]
        # of wide windows, with `k - 1` pixels more than the atom at each end of an axis
        total = np.zeros((p, n_channels, *[3 * k - 2 for k in kernel]))
        weight = np.zeros((p, 1, *total.shape[2:]))
        start, image, position, value = self._entries
        # Residuals around the positions of an atom are fitted by least squares as code times
        # pattern: the sum of code times residual over the sum of squared codes. The residuals are
        # padded with zeros beyond the borders of images. `inside` marks the pixels of images, so
        # that only codes whose pixel is inside count in the divisor.
        padding = [(0, 0), (0, 0), *[(k - 1, k - 1) for k in kernel]]
        images = np.pad(self.residuals(), padding)
        inside = np.pad(np.ones((len(images), 1, *size)), padding)
        grid = make_grid(n_channels, images.shape[2:], total.shape[2:], stride)
        loops.add_patches(
            start, image, position, value, grid, in_rows(images), total=in_rows(total)
        )
        squares = value**2
        loops.add_patches(
            start,
            image,
            position,
            squares,
            grid,
            in_rows(inside),
            total=in_rows(weight),
        )
        # the fits, plus the atom itself in the middle: what the atom would be in a wide window
        wide = torch.as_tensor(total / np.where(weight > 0, weight, 1.0))
        wide[(..., *[slice(k - 1, 2 * k - 1) for k in kernel])] += self.atoms

        # Windows differ from the atom's present window by multiples of the stride, so that codes
        # can move to other positions along with their atom.
        axes = [*zip(kernel, stride, strict=True)]
        starts = [slice((k - 1) % s, None) for k, s in axes]
        centre = tuple((k - 1) // s for k, s in axes)

        def cut(images):  # (p, ..., *wide kernel) -> (p, ..., *windows, *kernel)
            # all windows of the size of an atom
            images = images[(..., *starts)]
            for k, s in axes:
                images = images.unfold(-len(axes), k, s)
            return images

        energy = cut(wide.square().sum(1))
        energy = energy.sum([*range(-len(axes), 0)])
        largest, best = energy.flatten(1).max(1)
        moves = largest > _GAIN * energy[(slice(None), *centre)]
        if not moves.any():
            return None
        windows = torch.stack(torch.unravel_index(best, energy.shape[1:]), 1)
        windows[~moves] = torch.tensor(centre)
        atoms = cut(wide)[(torch.arange(p), slice(None), *windows.unbind(1))]
        atoms[~moves] = self.atoms[~moves]
        shifted = self._shifted(windows - torch.tensor(centre))
        return self.problem.project(atoms), shifted

    def _shifted(self, steps):  # (p, n_axes) -> Codes
        """Shift the positions of each atom's codes, when `move_atoms` shifts the atoms.

        ``steps`` says for each atom by how many positions its codes move along each axis. Return
        the codes in order of ``index``, on which compiled loops rely. A code that would leave the
        image is dropped.
        """
        n = self.problem.n_positions
        index = self.codes.index.long()
        atom = index // n
        position = 0
        inside = True
        axes = zip(
            torch.unravel_index(index % n, self.problem.positions),
            steps[atom].unbind(1),
            self.problem.positions,
            strict=True,
        )
        for before, step, length in axes:
            moved = before + step
            inside = inside & (moved >= 0) & (moved < length)
            position = position * length + moved
        moved = self.codes.renumbered(atom * n + position, inside)
        order = (moved.rows * (len(self.atoms) * n) + moved.index).argsort()
        return replace(moved, index=moved.index[order], value=moved.value[order])

    def residuals(self):  # -> array of the shape of the data
        """Return the residuals for the codes that atoms adapt to, zero in missing pixels."""
        return self._residual.reshape(self.problem.x.shape)

    def _second_moments(self, residuals, direction):  # -> (p, n_pixels)
        """Return for each atom the sum of ``r_e (r_e . v)`` over its users ``e``.

        It is one power iteration of `common_directions`. A user is a position with a nonzero code,
        ``r_e`` is the patch of the residual there, and ``v`` the row of ``direction``
        (p, n_pixels) for the atom.
        """
        moments = np.zeros_like(in_rows(self.atoms))
        start, image, position, _ = self._entries
        loops.add_second_moments(
            start,
            image,
            position,
            grid=self._grid,
            residual=in_rows(residuals),
            direction=in_rows(direction.view_as(self.atoms)),
            moments=moments,
        )
        return torch.as_tensor(moments).flatten(1)

    def _removals(self):  # -> (p, 1 + p), (p, p)
        """Estimate for `costs` how the objective and other codes would change without each atom.

        Returns
        -------
        changes : Tensor of shape (p, 1 + p)
            For each atom the rise of the objective without it, then the growth of the moduli of
            codes at each atom.
        near : Tensor of shape (p, p), int64
            The numbers of the atoms to which the columns of ``changes`` from the second on belong:
            0 to ``p - 1`` in each row.
        """
        p = len(self.atoms)
        changes = np.zeros((p, 1 + p))
        start, image, position, value = self._entries
        starts, indices, values = self.codes.arrays()
        loops.removals(
            start,
            image,
            position,
            value,
            most=rules.USERS,
            n_sweeps=3,
            mask=self._mask,
            atoms=in_rows(self.atoms),
            grid=self._grid,
            alpha=self.problem.alpha,
            positive=self.problem.positive_code,
            starts=starts,
            indices=indices,
            values=values,
            residual=self._residual,
            changes=changes,
        )
        return torch.as_tensor(changes), torch.arange(p).expand(p, p)


def conv_path(problem, atoms, alphas):
    """Solve for codes at falling penalties, each from the codes at the penalty before.

    `skpudle.search.held_out` chooses a penalty along this path.

    Parameters
    ----------
    problem : ConvProblem
        Images, their mask and the sign of codes. The penalty of the problem has no effect.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Atoms of any norm.
    alphas : iterable of float
        Penalties from large to small; the iterable may be infinite.

    Yields
    ------
    codes, refits : Codes
        For each penalty the lasso's codes, to a tolerance of a thousandth of the penalty or after
        at most 20 working sets of 20 sweeps, and least squares on the supports of these codes.
    """
    codes = problem.no_codes()
    for alpha in alphas:
        epoch = replace(problem, alpha=alpha).epoch(
            atoms, codes, effort=(20, 20), tolerance=SOLVED_OF_PATH
        )
        codes = epoch.codes
        yield codes, epoch.refit_on_path()


def conv_synthesis(problem, atoms, codes):  # Codes -> (n, n_channels, *size)
    """Return the images that codes stand for, each atom at its positions times its codes.

    ``problem`` sets the number and the size of the images. ``atoms`` (n_components, n_channels,
    *kernel) set the number of channels, which may differ from that of the data.
    """
    n_channels = atoms.shape[1]
    size = problem.x.shape[2:]
    grid = make_grid(n_channels, size, problem.kernel, problem.stride)
    images = torch.zeros(len(problem.x), n_channels, *size, dtype=torch.float64)
    rows = in_rows(images)
    atoms = in_rows(atoms.contiguous())

    def add(first, last):  # add to images `first:last`
        for i in range(first, last):
            index, value = codes.of_row(i)
            loops.synthesise(atoms, grid, index, value, rows[i])

    in_parts(add, len(images), 1)
    return images
