"""The loops of the convolutional search over images and over atoms, compiled by numba.

`skpudle.search._conv_epoch` calls them. The functions are plain Python until `loops` compiles them.

Signals, pictures and volumes are matrices here. An image ``x``, (n_rows, width), has all rows of
pixels below each other: the rows of a slice, the slices of a channel, the channels. A signal has
one row for each channel. ``atoms`` have the shape (n_atoms, n_patch_rows, kernel_width), and a
`Grid` says which rows of the image an atom covers. Codes of an image are sparse: ``value[e]``
stands at ``index[e] = atom * n_positions + position``, in ascending order of ``index``. One
``index``, an atom at a position, is a *coordinate*. ``(y, x)`` is the row and the column of the
first pixel of an atom at its position.

The loops keep the residual ``x - D z``, which is zero where pixels are missing. So a coordinate
costs a pass over the pixels of an atom, however many other atoms overlap it. A ``mask`` has 1 for
known and 0 for missing pixels, in the shape of the image; it has no rows if all pixels are known.
``alpha`` is the penalty, and ``positive`` says whether codes are non-negative. The *slope* of a
coordinate is the product of its atom with the residual at its position, and the *curvature* is the
squared norm of the atom over known pixels.

Loops over atoms take the codes of all images sorted by atom: atom ``k`` has the entries from
``start[k]`` to ``start[k + 1] - 1``, each with the number of its ``image``, a ``position`` and a
``value``. A *user* of an atom is one of these entries.
"""

from typing import NamedTuple

import numpy as np

from skpudle._compilation import Loops

# Number of neighbouring positions along a row of the image whose slopes `_correlate` computes at
# once, so few that the slopes stay in the fastest cache while it adds up the pixels of an atom.
_POSITIONS_AT_A_TIME = 512

# After _PLAIN_SWEEPS sweeps over a working set, coordinates go beyond their minimisers by the
# fraction _OVERSHOOT of their steps, because copies of an atom at neighbouring positions are so
# alike that descent is slow. Solving for the codes of an electrocardiogram of 45 s takes 1.0 s, and
# 1.4 s if coordinates end at their minimisers. An epoch of a search has no more than _PLAIN_SWEEPS
# sweeps.
_PLAIN_SWEEPS = 3
_OVERSHOOT = 0.3


class Grid(NamedTuple):
    """Where positions of atoms and pixels of patches lie in an image; `make_grid` makes it.

    Rows of an image are counted from its first row. An image has three axes, depth, height and
    width: a picture has depth 1, and a signal has height 1, too.

    Attributes
    ----------
    step, n_columns : int
        Distance of neighbouring positions along a row of pixels, and their number in a row.
    top : ndarray of shape (n_position_rows,), int64
        The row of the image in which each row of positions begins.
    rows : ndarray of shape (n_patch_rows,), int64
        The rows of the image that an atom at the first position covers, over all channels.
    height : int
        Number of rows of a slice of the image.
    kernel : tuple of int
        Depth, height and width of an atom.
    block : ndarray of shape (n_slices * height,), int64
        For each row of the first channel its row of blocks. A block has the size of an atom.
    near : ndarray of shape (n_near,), int64
        The distances of a row of blocks to the rows of blocks around it, and 0 for itself.
    n_blocks : tuple of int
        Number of rows and of columns of blocks, with margins around the image.
    """

    step: int
    n_columns: int
    top: np.ndarray
    rows: np.ndarray
    height: int
    kernel: tuple[int, int, int]
    block: np.ndarray
    near: np.ndarray
    n_blocks: tuple[int, int]


def _corner(position, grid):  # int, Grid -> y, x
    """Return the row and the column of the first pixel of an atom at a position."""
    return grid.top[position // grid.n_columns], position % grid.n_columns * grid.step


def _shift(y, y1, grid):  # -> two ints
    """Return how many slices, and how many rows within a slice, lie from row y to row y1."""
    if grid.height == len(grid.block):  # one slice: this saves the divisions
        return 0, y1 - y
    along_depth = y1 // grid.height - y // grid.height
    return along_depth, y1 - y - along_depth * grid.height


def _locate(index, atoms, grid):  # -> atom (n_patch_rows, width), y, x
    """Return the atom of a coordinate, and the row and the column of the atom's first pixel.

    ``index`` is the number of the atom times the number of positions, plus the position.
    """
    n_positions = len(grid.top) * grid.n_columns
    y, x = _corner(index % n_positions, grid)
    return atoms[index // n_positions], y, x


def _slope(residual, atom, rows, y, x):  # -> float
    """Return the product of an atom with the part of the residual that begins at ``(y, x)``."""
    total = 0.0
    for i in range(atom.shape[0]):
        for j in range(atom.shape[1]):
            total += atom[i, j] * residual[y + rows[i], x + j]
    return total


def _curvature(mask, atom, rows, y, x):  # -> float
    """Return the squared norm of an atom at ``(y, x)``, over the known pixels of the image."""
    total = 0.0
    for i in range(atom.shape[0]):
        for j in range(atom.shape[1]):
            d = atom[i, j]
            total += mask[y + rows[i], x + j] * d * d if mask.size else d * d
    return total


def _subtract(step, atom, rows, y, x, mask, residual):  # fmt: skip
    """Subtract ``step * atom`` at ``(y, x)`` from known pixels of the residual, in place."""
    for i in range(atom.shape[0]):
        row = y + rows[i]
        for j in range(atom.shape[1]):
            d = step * atom[i, j]
            residual[row, x + j] -= d * mask[row, x + j] if mask.size else d


def _add_patch(
    factor,
    residual,
    rows,
    y,
    x,
    total,
):
    """Add ``factor`` times a patch of the residual to ``total``, in place.

    The patch begins at ``(y, x)`` and has the shape of ``total``, (n_patch_rows, width).
    """
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] += factor * residual[y + rows[i], x + j]


def _shrink(target, alpha, positive):  # -> float: the soft threshold of the target
    if target > alpha:
        return target - alpha
    if target < -alpha and not positive:
        return target + alpha
    return 0.0


def _correlate(residual, atoms, grid, slopes):
    """Compute the slopes of all coordinates of an image, to find violations of optimality.

    They are written to ``slopes`` (n_coordinates,). With a stride of 1 four neighbouring pixels of
    an atom are multiplied at a time, which is faster.
    """
    p, n_rows, width = atoms.shape
    step = grid.step
    for start in range(0, grid.n_columns, _POSITIONS_AT_A_TIME):
        n = min(_POSITIONS_AT_A_TIME, grid.n_columns - start)
        for k in range(p):
            for y in range(len(grid.top)):
                first = (k * len(grid.top) + y) * grid.n_columns + start
                out = slopes[first : first + n]
                out[:] = 0.0
                for i in range(n_rows):
                    row = residual[grid.top[y] + grid.rows[i], start * step :]
                    d = atoms[k, i]
                    j = 0
                    while step == 1 and j + 3 < width:
                        d0 = d[j]
                        d1 = d[j + 1]
                        d2 = d[j + 2]
                        d3 = d[j + 3]
                        for x in range(n):
                            pair = d0 * row[x + j] + d1 * row[x + j + 1]
                            out[x] += pair + d2 * row[x + j + 2] + d3 * row[x + j + 3]
                        j += 4
                    while j < width:
                        for x in range(n):
                            out[x] += d[j] * row[x * step + j]
                        j += 1


def _sweep(active, n, now, woken, atoms, curvatures, grid, mask, alpha, positive, tolerance,
           residual, z):  # fmt: skip
    """Minimise the lasso over the codes of an image once, one coordinate after the other.

    To save time a sweep skips blocks of the image, of an atom's size, where codes have converged. A
    coordinate that changes by more than ``tolerance`` over its curvature *wakes* its block and the
    neighbouring blocks, and the sweep skips blocks that were woken neither in this sweep nor in the
    sweep before.

    Parameters
    ----------
    active : ndarray of shape (n_coordinates,), int32
        The first ``n`` entries are the coordinates to minimise over. Nonzero coordinates move to
        the front.
    n : int
        Number of coordinates to minimise over.
    now : int
        Number of this sweep.
    woken : ndarray of shape (n_block_rows, n_block_columns), int32
        The number of the last sweep that woke each block; updated.
    atoms, grid, mask : ndarray, Grid, ndarray
        The atoms, where their positions lie in the image, and 1 for known pixels of the image.
    alpha, positive : float, bool
        The penalty, and whether codes are non-negative.
    curvatures : ndarray of shape (n_coordinates,)
        For active coordinates the squared norm of the atom over known pixels.
    tolerance : float
        A change times the curvature up to this number wakes no block.
    residual : ndarray of shape (n_rows, width)
        The residual; updated.
    z : ndarray of shape (n_coordinates,)
        The codes; updated.

    Returns
    -------
    int
        Number of nonzero coordinates, now first in ``active``.
    bool
        Whether a coordinate has woken any block.
    """
    kept = 0
    moves = False
    rows = grid.rows
    for e in range(n):
        index = active[e]
        atom, y, x = _locate(index, atoms, grid)
        # the block of the coordinate; `woken` has one more column at each border
        i = grid.block[y]
        j = 1 + x // atoms.shape[2]
        new = z[index]
        if woken[i, j] >= now - 1:
            curvature = curvatures[index]
            new = 0.0
            if curvature > 0.0:
                target = _slope(residual, atom, rows, y, x) + curvature * z[index]
                new = _shrink(target, alpha, positive) / curvature
            # After _PLAIN_SWEEPS sweeps a code goes beyond its minimiser by the fraction _OVERSHOOT
            # of its step, unless the code is or becomes zero, or its sign would change.
            far = new + (new - z[index]) * _OVERSHOOT
            if now > _PLAIN_SWEEPS and far * new > 0.0 and new * z[index] > 0.0:
                new = far
            step = new - z[index]
            if step != 0.0:
                z[index] = new
                _subtract(step, atom, rows, y, x, mask, residual)
            if abs(step) * curvature > tolerance:
                for offset in grid.near:
                    woken[i + offset, j - 1 : j + 2] = now
                moves = True
        if new != 0.0:
            active[kept] = index
            kept += 1
    return kept, moves


def solve_image(x, mask, atoms, grid, alpha, positive, tolerance, max_rounds, max_sweeps,
                index, value, residual):  # fmt: skip
    """Solve the lasso for the codes of an image.

    A round first admits all coordinates that violate the optimality condition by more than
    ``tolerance``, and then sweeps over the admitted coordinates, the largest violation first. So
    what one coordinate explains has left the residual before the sweep reaches the next coordinate.

    Parameters
    ----------
    x, mask : ndarray of shape (n_rows, width)
        The image, and 1 for known pixels; the mask has no rows if all pixels are known.
    atoms, grid : ndarray of shape (n_atoms, n_patch_rows, kernel_width), Grid
        The atoms, and where their positions lie in the image.
    alpha, positive : float, bool
        The penalty, and whether codes are non-negative.
    tolerance : float
        Tolerance of the slopes in the optimality condition.
    max_rounds, max_sweeps : int
        Largest number of rounds, and of sweeps in each round.
    index, value : ndarray of shape (n_entries,)
        The codes to begin with; ``index`` is the number of the atom times the number of positions,
        plus the position.
    residual : ndarray of the shape of ``x``
        Output: the residual of the codes.

    Returns
    -------
    index, value : ndarray of shape (n_new_entries,)
        The codes.
    bool
        Whether they are solved: no coordinate enters any more, and the last sweep changes none by
        more than ``tolerance``.
    """
    rows = grid.rows
    n_coordinates = len(atoms) * len(grid.top) * grid.n_columns
    z = np.zeros(n_coordinates)
    slopes = np.empty(n_coordinates)
    active = np.empty(n_coordinates, np.int32)
    n = len(index)
    solved = False
    curvatures = np.empty(len(slopes))  # set for active coordinates only
    residual[:] = x
    for e in range(n):
        active[e] = index[e]
        z[index[e]] = value[e]
        atom, top, left = _locate(index[e], atoms, grid)
        _subtract(value[e], atom, rows, top, left, mask, residual)
        curvatures[index[e]] = _curvature(mask, atom, rows, top, left)
    options = atoms, curvatures, grid, mask, alpha, positive, tolerance, residual, z
    # a sweep over the codes to begin with, of number 0, which skips no block
    n, moves = _sweep(active, n, 0, np.zeros(grid.n_blocks, np.int32), *options)
    for _ in range(max_rounds):
        _correlate(residual, atoms, grid, slopes)
        n_admitted = n
        woken = np.zeros(grid.n_blocks, np.int32)  # the first sweep skips no block
        for i in range(len(slopes)):
            size = slopes[i] if positive else abs(slopes[i])
            if size > alpha + tolerance and z[i] == 0.0:
                active[n_admitted] = i
                n_admitted += 1
                atom, top, left = _locate(i, atoms, grid)
                curvatures[i] = _curvature(mask, atom, rows, top, left)
        # the largest violation first
        active[n:n_admitted] = active[n:n_admitted][
            np.argsort(-np.abs(slopes[active[n:n_admitted]]))
        ]
        entered = n_admitted > n
        n = n_admitted
        for now in range(1, max_sweeps + 1):
            n, moves = _sweep(active, n, now, woken, *options)
            if not moves:
                break
        solved = not entered and not moves
        if solved:
            break
    index = np.sort(active[:n])
    return index, z[index], solved


def refit_image(
    mask,
    atoms,
    grid,
    tolerance,
    max_sweeps,
    index,
    value,
    residual,
):
    """Turn the codes of an image into least squares on their support, by coordinate descent.

    The signs of codes are constraints: a code whose sign would turn becomes zero. ``mask`` is 1 for
    known pixels, and ``index`` has for each code its atom and position, see `_locate`. ``value``
    (n_entries,) and ``residual`` (n_rows, width) are updated in place. Descent ends
    after a sweep in which no coordinate changes by more than ``tolerance`` over its curvature, or
    after ``max_sweeps``.
    """
    rows = grid.rows
    sign = value.copy()
    curvatures = np.empty(len(index))
    for e in range(len(index)):
        atom, y, x = _locate(index[e], atoms, grid)
        curvatures[e] = _curvature(mask, atom, rows, y, x)
    for _ in range(max_sweeps):
        largest = 0.0
        for e in np.flatnonzero(curvatures):
            atom, y, x = _locate(index[e], atoms, grid)
            curvature = curvatures[e]
            new = value[e] + _slope(residual, atom, rows, y, x) / curvature
            new = max(new, 0.0) if sign[e] > 0.0 else min(new, 0.0)
            step = new - value[e]
            value[e] = new
            _subtract(step, atom, rows, y, x, mask, residual)
            largest = max(largest, abs(step) * curvature)
        if largest <= tolerance:
            break


def synthesise(
    atoms,
    grid,
    index,
    value,
    image,
):
    """Add the image that sparse codes, each a ``value`` at an ``index``, stand for to ``image``.

    ``image`` is (n_rows, width), and ``index`` is as in `_locate`.
    """
    for e in range(len(index)):
        atom, y, x = _locate(index[e], atoms, grid)
        # `image[:0]`, a mask without rows, says that all pixels are known
        _subtract(-value[e], atom, grid.rows, y, x, image[:0], image)


def _self_overlap(
    start,
    stop,
    image,
    position,
    value,
    grid,
    overlap,
):
    """Compute the autocorrelation of one atom's codes, which bounds the curvature of the atom.

    The codes are the entries ``start:stop``. An entry of ``overlap`` (2 * depth - 1, 2 * height -
    1, 2 * width - 1) belongs to a shift, from one copy of the atom to another copy that overlaps
    it; shift zero is in the middle. The entry is set to the sum of the products of all pairs of
    codes at this shift.
    """
    depth, height, width = grid.kernel
    last = (
        (depth - 1) * grid.height + height - 1
    )  # the last row of an atom in a channel
    overlap[:] = 0.0
    for e in range(start, stop):
        y, x = _corner(position[e], grid)
        overlap[depth - 1, height - 1, width - 1] += value[e] ** 2
        # Entries are sorted by image, then by row, so that after the first entry that is too far
        # away no later entry overlaps.
        for f in range(e + 1, stop):
            y1, x1 = _corner(position[f], grid)
            if image[f] != image[e] or y1 - y > last or (last == 0 and x1 - x >= width):
                break
            # the shift along depth, height and width
            back, down = _shift(y, y1, grid)
            right = x1 - x
            if back < depth and abs(down) < height and abs(right) < width:
                product = value[e] * value[f]
                overlap[depth - 1 + back, height - 1 + down, width - 1 + right] += (
                    product
                )
                overlap[depth - 1 - back, height - 1 - down, width - 1 - right] += (
                    product
                )


def add_patches(
    start,
    image,
    position,
    factor,
    grid,
    images,
    total,
):
    """Add up patches of images at the positions of each atom's users, times their factors.

    The users of atom ``k`` are the entries ``start[k]`` to ``start[k + 1] - 1``, each with the
    number of its ``image``, a ``position`` and a ``factor``. The sum of their patches is added to
    ``total[k]``, whose shape (n_patch_rows, width) is that of a patch. ``images``, (n_images,
    n_rows, width), and ``grid`` may be those of data that are continued beyond their borders.
    """
    for k in range(len(total)):
        for e in range(start[k], start[k + 1]):
            y, x = _corner(position[e], grid)
            _add_patch(factor[e], images[image[e]], grid.rows, y, x, total[k])


def sweep_atoms(
    start,
    image,
    position,
    value,
    grid,
    mask,
    atoms,
    residual,
):
    """Improve the atoms for given codes, one by one, each by a step on the sphere of norm 1.

    A step never raises the objective, because the sum of the moduli of the autocorrelation of the
    atom's codes bounds its curvature. ``atoms``, and ``residual`` of shape (n_images, n_rows,
    width), are updated in place; ``start``, ``image``, ``position`` and ``value`` are the
    codes sorted by atom. Missing pixels count as if the dictionary explained them, which bounds the
    objective from above.
    """
    depth, height, width = grid.kernel
    overlap = np.empty((2 * depth - 1, 2 * height - 1, 2 * width - 1))
    for k in range(len(atoms)):
        _self_overlap(start[k], start[k + 1], image, position, value, grid, overlap)
        # `target` is the direction of the new atom: the patches of the residual at its users, times
        # their codes, plus the old atom times the bound of the curvature
        target = np.zeros((1, *atoms.shape[1:]))
        add_patches(start[k : k + 2], image, position, value, grid, residual, target)
        target += np.abs(overlap).sum() * atoms[k]
        norm = np.sqrt(np.square(target).sum())
        if norm > 0.0:
            change = target[0] / norm - atoms[k]
            atoms[k] += change
            for e in range(start[k], start[k + 1]):
                y, x = _corner(position[e], grid)
                _subtract(
                    value[e],
                    change,
                    grid.rows,
                    y,
                    x,
                    mask[image[e]],
                    residual[image[e]],
                )


def add_second_moments(
    start,
    image,
    position,
    grid,
    residual,
    direction,
    moments,
):
    """Add one power iteration for the common direction of residuals, for each atom.

    ``sum_e r_e (r_e . v)`` is added to ``moments[k]``: the sum is over the users ``e`` of the atom
    ``k``, ``r_e`` is the patch of the residual at the position of the user, and ``v`` is
    ``direction[k]``. ``direction`` and ``moments`` have the shape of the atoms.
    """
    for k in range(len(direction)):
        for e in range(start[k], start[k + 1]):
            y, x = _corner(position[e], grid)
            length = _slope(residual[image[e]], direction[k], grid.rows, y, x)
            _add_patch(length, residual[image[e]], grid.rows, y, x, moments[k])


def _change(
    step,
    z,
    slope,
    curvature,
    alpha,
):  # five numbers -> float
    """Return the change of the lasso's objective if a coordinate moves from ``z`` by ``step``.

    ``slope`` and ``curvature`` of the coordinate are taken before the move.
    """
    return step * (0.5 * curvature * step - slope) + alpha * (abs(z + step) - abs(z))


def removals(start, image, position, value, most, n_sweeps, mask, atoms, grid, alpha, positive,
             starts, indices, values, residual, changes):  # fmt: skip
    """Estimate by how much the objective rises, and other codes grow, if an atom is removed.

    At most ``most`` users of an atom, at regular distances in the list of users, stand for all its
    users. Each of these users is removed alone, and the codes of other atoms that overlap it adapt
    by ``n_sweeps`` sweeps of coordinate descent.

    Parameters
    ----------
    start, image, position, value
        The codes sorted by atom: atom ``k`` has the users ``start[k]`` to ``start[k + 1] - 1``.
    most : int
        Largest number of users of an atom that are tried.
    n_sweeps : int
        Number of sweeps over the codes that overlap a user.
    mask, atoms, grid, alpha, positive
        The mask (n_images, n_rows, width) of known pixels, without rows if all are known, the
        atoms, where their positions lie, the penalty, and whether codes are non-negative.
    starts, indices, values
        The codes sorted by image: image ``i`` has the entries ``starts[i]`` to
        ``starts[i + 1] - 1``.
    residual : ndarray of shape (n_images, n_rows, width)
        The residual of the codes; changed, and restored at the end.
    changes : ndarray of shape (n_atoms, 1 + n_atoms)
        Output, zero before: for each removed atom the rise of the objective, then the growth of the
        moduli of codes at each remaining atom.
    """
    rows = grid.rows
    depth, height, width = grid.kernel
    n_positions = len(grid.top) * grid.n_columns
    near = np.empty(len(indices), np.int64)  # numbers of the codes that overlap a user
    z = values.copy()
    for k in range(len(atoms)):
        n_users = start[k + 1] - start[k]
        n_tried = min(n_users, most)
        for tried in range(n_tried):
            user = start[k] + tried * n_users // n_tried
            n = 0
            t = image[user]
            y, x = _corner(position[user], grid)
            left = residual[t]
            observed = mask[t]
            for f in range(starts[t], starts[t + 1]):
                _, y1, x1 = _locate(indices[f], atoms, grid)
                back, down = _shift(y, y1, grid)
                overlaps = (
                    abs(back) < depth and abs(down) < height and abs(x1 - x) < width
                )
                if overlaps and indices[f] // n_positions != k:
                    near[n] = f
                    n += 1
            slope = _slope(left, atoms[k], rows, y, x)
            curvature = _curvature(observed, atoms[k], rows, y, x)
            # remove the user, and add up the changes of the objective
            rise = _change(-value[user], value[user], slope, curvature, alpha)
            _subtract(-value[user], atoms[k], rows, y, x, observed, left)
            for s in range(n_sweeps * n):
                f = near[s % n]
                atom, y1, x1 = _locate(indices[f], atoms, grid)
                curvature = _curvature(observed, atom, rows, y1, x1)
                if curvature > 0.0:
                    slope = _slope(left, atom, rows, y1, x1)
                    target = _shrink(slope + curvature * z[f], alpha, positive)
                    step = target / curvature - z[f]
                    rise += _change(step, z[f], slope, curvature, alpha)
                    z[f] += step
                    _subtract(step, atom, rows, y1, x1, observed, left)
            # add the growth of the other codes, and restore the codes and the residual
            for f in near[:n]:
                changes[k, 1 + indices[f] // n_positions] += abs(z[f]) - abs(values[f])
                atom, y1, x1 = _locate(indices[f], atoms, grid)
                _subtract(values[f] - z[f], atom, rows, y1, x1, observed, left)
                z[f] = values[f]
            _subtract(value[user], atoms[k], rows, y, x, observed, left)
            changes[k, 0] += rise
        # `n_tried` users stand for `n_users`
        for i in range(1 + len(atoms)):
            changes[k, i] *= n_users / max(n_tried, 1)


loops = Loops(globals())
