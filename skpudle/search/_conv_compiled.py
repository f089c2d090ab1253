r"""The loops of the convolutional search over images and over atoms, compiled by numba.

The functions are plain Python until `loops` compiles them.

An image ``x`` has the shape (n_channels, height, width); a signal has height 1. Codes of an image
are sparse, ``value[e]`` at ``index[e] = atom * n_positions + position``, in ascending order. The
loops keep the residual ``x - D z`` (times the ``mask``, without channels if nothing is missing),
so a coordinate costs one pass over the pixels of an atom, whatever overlaps it. ``grid`` holds the
distance of neighbouring positions along both axes, then the number of positions along both.
"""

import numpy as np

from skpudle._compilation import Loops

_POSITIONS_AT_A_TIME = 512  # neighbouring positions whose correlations fit into the fastest cache


def _corner(place, grid):
    """Return the first pixel of an atom at a position."""
    return place // grid[3] * grid[0], place % grid[3] * grid[1]


def _slope(residual, atom, y, x):
    """Return the product of an atom with a patch of the residual."""
    total = 0.0
    for c in range(atom.shape[0]):
        for i in range(atom.shape[1]):
            for j in range(atom.shape[2]):
                total += atom[c, i, j] * residual[c, y + i, x + j]
    return total


def _curvature(mask, atom, y, x):
    """Return the squared norm of the known pixels of an atom."""
    total = 0.0
    for c in range(atom.shape[0]):
        for i in range(atom.shape[1]):
            for j in range(atom.shape[2]):
                d = atom[c, i, j]
                total += mask[c, y + i, x + j] * d * d if mask.size else d * d
    return total


def _subtract(step, atom, y, x, mask, residual):
    """Subtract an atom times a number from a patch."""
    for c in range(atom.shape[0]):
        for i in range(atom.shape[1]):
            for j in range(atom.shape[2]):
                d = step * atom[c, i, j]
                residual[c, y + i, x + j] -= d * mask[c, y + i, x + j] if mask.size else d


def _add_patch(factor, residual, y, x, total):
    """Add a multiple of a patch of one image to an atom-sized array."""
    for c in range(total.shape[0]):
        for i in range(total.shape[1]):
            for j in range(total.shape[2]):
                total[c, i, j] += factor * residual[c, y + i, x + j]


def _shrink(target, alpha, positive):
    if target > alpha:
        return target - alpha
    if target < -alpha and not positive:
        return target + alpha
    return 0.0


def _correlate(residual, atoms, grid, q):
    """Set ``q = D^T residual``, four pixels of a row of an atom at a time."""
    p, n_channels, height, width = atoms.shape
    step, rows, columns = grid[1], grid[2], grid[3]
    for start in range(0, columns, _POSITIONS_AT_A_TIME):
        n = min(_POSITIONS_AT_A_TIME, columns - start)
        for k in range(p):
            for y in range(rows):
                first = (k * rows + y) * columns + start
                out = q[first : first + n]
                out[:] = 0.0
                for c in range(n_channels):
                    for i in range(height):
                        row, d = residual[c, y * grid[0] + i, start * step :], atoms[k, c, i]
                        j = 0
                        while step == 1 and j + 3 < width:
                            d0, d1, d2, d3 = d[j], d[j + 1], d[j + 2], d[j + 3]
                            for x in range(n):
                                pair = d0 * row[x + j] + d1 * row[x + j + 1]
                                out[x] += pair + d2 * row[x + j + 2] + d3 * row[x + j + 3]
                            j += 4
                        while j < width:
                            for x in range(n):
                                out[x] += d[j] * row[x * step + j]
                            j += 1


def _sweep(active, n, atoms, curvatures, grid, mask, alpha, positive, residual, z):
    """Minimise over each of ``n`` coordinates; return the largest change and the number left."""
    largest, kept, n_positions = 0.0, 0, grid[2] * grid[3]
    for e in range(n):
        index = active[e]
        atom = atoms[index // n_positions]
        y, x = _corner(index % n_positions, grid)
        curvature, new = curvatures[index], 0.0
        if curvature > 0.0:
            target = _slope(residual, atom, y, x) + curvature * z[index]
            new = _shrink(target, alpha, positive) / curvature
        step = new - z[index]
        if step != 0.0:
            z[index] = new
            _subtract(step, atom, y, x, mask, residual)
            largest = max(largest, abs(step) * curvature)
        if new != 0.0:
            active[kept] = index
            kept += 1
    return largest, kept


def solve_image(x, mask, atoms, grid, alpha, positive, tolerance, max_rounds, max_sweeps,
                index, value, residual):  # fmt: skip
    """Return the codes of an image, starting from given ones, and whether they reach the tolerance.

    A round admits all coordinates that violate the optimality condition, the worst first. The part
    that a coordinate explains leaves the residual before its neighbours are admitted.
    """
    n_positions = grid[2] * grid[3]
    z, q = np.zeros(len(atoms) * n_positions), np.empty(len(atoms) * n_positions)
    active, n, solved, largest = np.empty(len(q), np.int32), len(index), False, 0.0
    curvatures = np.empty(len(q))  # of active coordinates
    residual[:] = x
    for e in range(n):
        active[e], z[index[e]] = index[e], value[e]
        atom, (y, x0) = atoms[index[e] // n_positions], _corner(index[e] % n_positions, grid)
        _subtract(value[e], atom, y, x0, mask, residual)
        curvatures[index[e]] = _curvature(mask, atom, y, x0)
    options = atoms, curvatures, grid, mask, alpha, positive, residual, z
    if n > 0:
        _, n = _sweep(active, n, *options)
    for _ in range(max_rounds):
        _correlate(residual, atoms, grid, q)
        m = n
        for i in range(len(q)):
            size = q[i] if positive else abs(q[i])
            if size > alpha + tolerance and z[i] == 0.0:
                active[m] = i
                m += 1
                y, x0 = _corner(i % n_positions, grid)
                curvatures[i] = _curvature(mask, atoms[i // n_positions], y, x0)
        active[n:m] = active[n:m][np.argsort(-np.abs(q[active[n:m]]))]
        entered, n = m > n, m
        for _ in range(max_sweeps):
            largest, n = _sweep(active, n, *options)
            if largest <= tolerance:
                break
        solved = not entered and largest <= tolerance
        if solved:
            break
    index = np.sort(active[:n])
    return index, z[index], solved


def refit_image(mask, atoms, grid, tolerance, max_sweeps, index, value, residual):
    """Turn codes into least squares on their support, by coordinate descent that keeps signs."""
    n_positions, sign, curvatures = grid[2] * grid[3], value.copy(), np.empty(len(index))
    for e in range(len(index)):
        y, x = _corner(index[e] % n_positions, grid)
        curvatures[e] = _curvature(mask, atoms[index[e] // n_positions], y, x)
    for _ in range(max_sweeps):
        largest = 0.0
        for e in np.flatnonzero(curvatures):
            atom, curvature = atoms[index[e] // n_positions], curvatures[e]
            y, x = _corner(index[e] % n_positions, grid)
            new = value[e] + _slope(residual, atom, y, x) / curvature
            new = max(new, 0.0) if sign[e] > 0.0 else min(new, 0.0)
            step = new - value[e]
            value[e] = new
            _subtract(step, atom, y, x, mask, residual)
            largest = max(largest, abs(step) * curvature)
        if largest <= tolerance:
            break


def synthesise(atoms, grid, index, value, image):
    """Add the atoms of codes to an image."""
    n_positions, everywhere = grid[2] * grid[3], image[:, :0]
    for e in range(len(index)):
        y, x = _corner(index[e] % n_positions, grid)
        _subtract(-value[e], atoms[index[e] // n_positions], y, x, everywhere, image)


def _self_overlap(start, stop, image, place, value, grid, overlap):
    """Set the autocorrelation of the codes of one atom."""
    height, width = overlap.shape[0] // 2 + 1, overlap.shape[1] // 2 + 1
    overlap[:] = 0.0
    for e in range(start, stop):
        y, x = _corner(place[e], grid)
        overlap[height - 1, width - 1] += value[e] ** 2
        for f in range(e + 1, stop):  # entries are sorted by row
            y1, x1 = _corner(place[f], grid)
            if image[f] != image[e] or y1 - y >= height:
                break
            if abs(x1 - x) < width:
                product = value[e] * value[f]
                overlap[height - 1 + y1 - y, width - 1 + x1 - x] += product
                overlap[height - 1 + y - y1, width - 1 + x - x1] += product


def _descend_atom(pull, overlap, n_steps, atom):
    """Minimise over one atom on the sphere, with steps from a bound of the curvature."""
    n_channels, height, width = atom.shape
    old, moved, bound = atom.copy(), np.empty_like(atom), np.abs(overlap).sum()
    for _ in range(n_steps):
        norm = 0.0
        for c in range(n_channels):
            for i in range(height):
                out = moved[c, i]
                for j in range(width):
                    out[j] = pull[c, i, j] + bound * atom[c, i, j]
                for i1 in range(height):
                    row = overlap[height - 1 + i - i1]
                    for j1 in range(width):
                        change = atom[c, i1, j1] - old[c, i1, j1]
                        for j in range(width):
                            out[j] -= change * row[width - 1 + j - j1]
                for j in range(width):
                    norm += out[j] ** 2
        if norm == 0.0:
            break
        atom[:] = moved / np.sqrt(norm)


def sweep_atoms(start, image, place, value, grid, mask, n_steps, atoms, residual):
    """Minimise over the atoms on the sphere, one by one; ``start`` splits the codes by atom.

    Missing pixels count as if the dictionary explained them, which bounds the objective from above.
    """
    p, _, height, width = atoms.shape
    overlap, pull = np.empty((2 * height - 1, 2 * width - 1)), np.empty(atoms.shape[1:])
    for k in range(p):
        _self_overlap(start[k], start[k + 1], image, place, value, grid, overlap)
        pull[:] = 0.0
        for e in range(start[k], start[k + 1]):
            y, x = _corner(place[e], grid)
            _add_patch(value[e], residual[image[e]], y, x, pull)
        old = atoms[k].copy()
        _descend_atom(pull, overlap, n_steps, atoms[k])
        change = atoms[k] - old
        for e in range(start[k], start[k + 1]):
            y, x = _corner(place[e], grid)
            _subtract(value[e], change, y, x, mask[image[e]], residual[image[e]])


def add_second_moments(start, image, place, grid, residual, direction, moments):
    """Add for each atom the second moments of its users' residuals times its direction."""
    for k in range(len(direction)):
        for e in range(start[k], start[k + 1]):
            y, x = _corner(place[e], grid)
            length = _slope(residual[image[e]], direction[k], y, x)
            _add_patch(length, residual[image[e]], y, x, moments[k])


def add_surroundings(start, image, place, value, grid, residual, total, weight):
    """Add for each atom its users' residuals around it, and the squares of their codes.

    The surroundings extend by the size of an atom minus one pixel on each side.
    """
    n_atoms, n_channels, height, width = total.shape
    for k in range(n_atoms):
        for e in range(start[k], start[k + 1]):
            y, x = _corner(place[e], grid)
            y, x = y - (height - 1) // 3, x - (width - 1) // 3
            patches = residual[image[e]]
            for i in range(max(0, -y), min(height, patches.shape[1] - y)):
                for j in range(max(0, -x), min(width, patches.shape[2] - x)):
                    weight[k, i, j] += value[e] ** 2
                    for c in range(n_channels):
                        total[k, c, i, j] += value[e] * patches[c, y + i, x + j]


def _change(step, z, slope, curvature, alpha):
    """Return the change of the objective by a step of one coordinate."""
    return step * (0.5 * curvature * step - slope) + alpha * (abs(z + step) - abs(z))


def _neighbours(own, y, x, atoms, grid, index, value, who, where, z):
    """List the codes of other atoms that overlap a position of atom ``own``; count them."""
    n, n_positions = 0, grid[2] * grid[3]
    for e in range(len(index)):
        y1, x1 = _corner(index[e] % n_positions, grid)
        near = abs(y1 - y) < atoms.shape[2] and abs(x1 - x) < atoms.shape[3]
        if near and index[e] // n_positions != own:
            who[n], z[n] = index[e] // n_positions, value[e]
            where[n, 0], where[n, 1] = y1, x1
            n += 1
    return n


def _with_rivals(n, y, x, rivals, atoms, shape, who, where, z):
    """Add the coordinates most like an atom at a position to the list; return its new length."""
    n_known = n
    for r in range(len(rivals)):
        k, y1, x1 = rivals[r, 0], y + rivals[r, 1], x + rivals[r, 2]
        if y1 < 0 or x1 < 0 or y1 + atoms.shape[2] > shape[1] or x1 + atoms.shape[3] > shape[2]:
            continue
        new = True
        for e in range(n_known):
            new &= who[e] != k or where[e, 0] != y1 or where[e, 1] != x1
        if new:
            who[n], where[n, 0], where[n, 1], z[n] = k, y1, x1, 0.0
            n += 1
    return n


def removals(start, image, place, value, rivals, most, n_sweeps, mask, atoms, grid, alpha, positive,
             starts, indices, values, residual, cost, taken_over):  # fmt: skip
    """Estimate the rise of the objective without each atom, and the growth of other codes then.

    The estimates use at most ``most`` users of an atom, at regular distances. Neighbouring codes
    and the ``rivals`` of the atom replace a code; ``rivals`` are (atom, row, column) of the shifted
    atoms most like the atom. The residual is restored at the end.
    """
    room = len(indices) + rivals.shape[1]
    who, where = np.empty(room, np.int64), np.empty((room, 2), np.int64)
    z, before = np.empty(room), np.empty(room)
    for k in range(len(atoms)):
        n_users = start[k + 1] - start[k]
        n_asked = min(n_users, most)
        for asked in range(n_asked):
            e = start[k] + asked * n_users // n_asked
            t, (y, x) = image[e], _corner(place[e], grid)
            patches, known = residual[t], mask[t]
            codes = indices[starts[t] : starts[t + 1]], values[starts[t] : starts[t + 1]]
            n = _neighbours(k, y, x, atoms, grid, *codes, who, where, z)
            n = _with_rivals(n, y, x, rivals[k], atoms, patches.shape, who, where, z)
            before[:n] = z[:n]
            slope, curvature = _slope(patches, atoms[k], y, x), _curvature(known, atoms[k], y, x)
            rise = _change(-value[e], value[e], slope, curvature, alpha)
            _subtract(-value[e], atoms[k], y, x, known, patches)
            for s in range(n_sweeps * n):
                i = s % n
                atom, y1, x1 = atoms[who[i]], where[i, 0], where[i, 1]
                curvature = _curvature(known, atom, y1, x1)
                if curvature > 0.0:
                    slope = _slope(patches, atom, y1, x1)
                    target = _shrink(slope + curvature * z[i], alpha, positive)
                    step = target / curvature - z[i]
                    rise += _change(step, z[i], slope, curvature, alpha)
                    z[i] += step
                    _subtract(step, atom, y1, x1, known, patches)
            for i in range(n):
                taken_over[k, who[i]] += abs(z[i]) - abs(before[i])
                _subtract(before[i] - z[i], atoms[who[i]], where[i, 0], where[i, 1], known, patches)
            _subtract(value[e], atoms[k], y, x, known, patches)
            cost[k] += rise
        for i in range(len(atoms)):
            taken_over[k, i] *= n_users / max(n_asked, 1)
        cost[k] *= n_users / max(n_asked, 1)


loops = Loops(globals())
