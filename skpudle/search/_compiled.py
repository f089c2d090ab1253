r"""The loops of `skpudle.search` over samples and over atoms, compiled by numba.

The functions are plain Python until `loops` compiles them. With few atoms and no missing entries,
coordinate descent works on products: of atoms with atoms, and of a sample with all atoms
(`solve_products`). Otherwise it works on the residual of a sample, ``x - D z``: a coordinate costs
two passes over an atom, whatever the number of atoms, and no matrix of atoms by atoms is needed. A
BLAS multiplies many samples with all atoms, which selects the atoms that enter a working set.

Codes are sparse: row ``i`` has the entries from ``start[i]`` to ``start[i + 1]``, with a ``value``
at the atom ``index``. Loops over atoms take the entries sorted by atom, with the ``row`` and the
``value`` of each. Every function writes into its last arguments, releases the GIL and works
on a slice of rows or of atoms that no other slice writes to, so bits do not depend on the number of
threads. A ``mask`` has a row for each sample, without entries if all entries are known; residuals
are zero where entries are missing.
"""

import numpy as np

from skpudle._compilation import Loops


def _product(x, y):
    total = 0.0
    for f in range(len(x)):
        total += x[f] * y[f]
    return total


def _subtract(step, atom, mask, residual):
    """Subtract a multiple of an atom where entries are known."""
    if len(mask) == 0:
        for f in range(len(atom)):
            residual[f] -= step * atom[f]
    else:
        for f in range(len(atom)):
            residual[f] -= step * mask[f] * atom[f]


def subtract_synthesis(start, index, value, atoms, mask, residual):
    """Subtract ``D z`` from the known entries of the rows of ``residual``."""
    for i in range(len(residual)):
        known, left = mask[i], residual[i]
        for e in range(start[i], start[i + 1]):
            z, atom = value[e], atoms[index[e]]
            for f in range(len(left)):
                left[f] -= z * atom[f]
        for f in range(len(known)):
            left[f] *= known[f]


def _known_product(x, y, mask):
    """Return the product over known entries."""
    if len(mask) == 0:
        return _product(x, y)
    total = 0.0
    for f in range(len(x)):
        total += mask[f] * x[f] * y[f]
    return total


def _shrink(target, curvature, alpha, positive):
    if target > alpha:
        return (target - alpha) / curvature
    if target < -alpha and not positive:
        return (target + alpha) / curvature
    return 0.0


def _sweep_codes(w, inner, alpha, positive, tolerance, max_sweeps, slope, z):
    """Minimise over ``w`` atoms by coordinate descent, given their products and slopes.

    A step costs ``w`` operations. Return by how much half of the squared residual falls.
    """
    fall = 0.0
    for _ in range(max_sweeps):
        largest = 0.0
        for i in range(w):
            if inner[i, i] == 0.0:
                continue
            new = _shrink(slope[i] + inner[i, i] * z[i], inner[i, i], alpha, positive)
            step = new - z[i]
            if step != 0.0:
                z[i] = new
                fall += step * (slope[i] - 0.5 * step * inner[i, i])
                for j in range(w):
                    slope[j] -= step * inner[i, j]
                largest = max(largest, abs(step) * inner[i, i])
        if largest <= tolerance:
            break
    return fall


def _descend(w, support, atoms, mask, alpha, positive, tolerance, max_sweeps, curvature, z,
             residual):  # fmt: skip
    """Minimise over a working set of ``w`` atoms by coordinate descent on the residual.

    A step costs one operation for each entry of the residual.
    """
    for i in range(w):
        curvature[i] = _known_product(atoms[support[i]], atoms[support[i]], mask)
    for _ in range(max_sweeps):
        largest = 0.0
        for i in range(w):
            if curvature[i] == 0.0:
                continue
            atom = atoms[support[i]]
            target = _product(atom, residual) + curvature[i] * z[i]
            new = _shrink(target, curvature[i], alpha, positive)
            step = new - z[i]
            if step != 0.0:
                z[i] = new
                _subtract(step, atom, mask, residual)
                largest = max(largest, abs(step) * curvature[i])
        if largest <= tolerance:
            break


def _enter(slope, positive, level, share, k, inside, beyond, support, z):
    """Add atoms with large slopes, above ``level``, to a working set of ``k``; return its size.

    If the room is too small for all of these atoms, the atoms with the largest slopes enter.
    """
    for i in range(k):
        inside[support[i]] = True
    best, n = 0.0, 0
    for j in range(len(slope)):
        if abs(slope[j]) > level and (slope[j] > 0.0 or not positive) and not inside[j]:
            best = max(best, abs(slope[j]))
            beyond[n] = j
            n += 1
    for i in range(k):
        inside[support[i]] = False
    level, n_near = max(level, share * best), len(support) + 1
    while k + n_near > len(support):
        n_near = 0
        for i in range(n):
            n_near += abs(slope[beyond[i]]) >= level
        if k + n_near > len(support):
            level += 0.5 * (best - level) + 1e-6 * best
            if level > best:
                return k
    for i in range(n):
        if abs(slope[beyond[i]]) >= level:
            support[k], z[k] = beyond[i], 0.0
            k += 1
    return k


def _solve(w, inner, positive, dependent, factor, slope, z):
    """Set codes to least squares on a support, or return False with unchanged codes.

    It returns False where atoms nearly depend on each other, or non-negative codes would turn
    negative; coordinate descent has to replace it there.
    """
    for i in range(w):
        for j in range(i + 1):
            entry = inner[i, j]
            for k in range(j):
                entry -= factor[i, k] * factor[j, k]
            if j < i:
                factor[i, j] = entry * factor[j, j]
            elif entry > dependent * inner[i, i]:
                factor[i, i] = 1.0 / np.sqrt(entry)
            else:
                return False
    for i in range(w):
        total = slope[i]
        for j in range(i):
            total -= factor[i, j] * slope[j]
        slope[i] = total * factor[i, i]
    for i in range(w - 1, -1, -1):
        slope[i] *= factor[i, i]
        for j in range(i):
            slope[j] -= factor[i, j] * slope[i]
    for i in range(w):
        if positive and z[i] + slope[i] < 0.0:
            return False
    for i in range(w):
        z[i] += slope[i]
    return True


def solve_residuals(atoms, mask, residual, slope, alpha, positive, tolerance, share, max_sweeps,
                    refit, dependent, refit_tolerance, refit_sweeps, start, index, value,
                    count, atom, code, fitted, loss, size, unbiased):  # fmt: skip
    """Improve the codes of rows on one working set each, from ``slope = D^T (x - D z)``.

    Row ``i`` gets ``count[i]`` codes ``code[i]`` at the atoms ``atom[i]``. ``residual`` has
    ``x - D z`` and is updated with the codes. ``loss`` becomes half of its square, and ``size`` the
    sum of the moduli of the codes.

    With ``refit`` the rows of ``fitted`` become least squares on the supports, ``residual`` is
    theirs, and ``unbiased`` half of its square. (Coordinate descent takes ten times as long for
    five correlated atoms.)
    """
    room = atom.shape[1]
    support, inside = np.empty(room, np.int64), np.zeros(len(atoms), np.bool_)
    z, beyond, work = np.empty(room), np.empty(len(atoms), np.int64), np.empty(room)
    inner, factor = np.empty((room if refit else 0, room)), np.empty((room if refit else 0, room))
    for row in range(len(residual)):
        known, left = mask[row], residual[row]
        k = start[row + 1] - start[row]
        for i in range(k):
            support[i], z[i] = index[start[row] + i], value[start[row] + i]
        w = _enter(slope[row], positive, alpha + tolerance, share, k, inside, beyond, support, z)
        _descend(w, support, atoms, known, alpha, positive, tolerance, max_sweeps, work, z, left)
        k, length = np.int64(0), 0.0
        for i in range(w):
            if z[i] != 0.0:
                atom[row, k], code[row, k] = support[i], z[i]
                length += abs(z[i])
                support[k], z[k] = support[i], z[i]
                k += 1
        count[row], size[row], loss[row] = k, length, 0.5 * _product(left, left)
        if refit:
            for i in range(k):
                work[i] = _product(atoms[support[i]], left)
                for j in range(i + 1):
                    inner[i, j] = _known_product(atoms[support[i]], atoms[support[j]], known)
            if _solve(k, inner, positive, dependent, factor, work, z):
                for i in range(k):
                    _subtract(z[i] - code[row, i], atoms[support[i]], known, left)
            else:  # descent on the support alone, without a penalty
                _descend(
                    k, support, atoms, known, 0.0, positive, refit_tolerance, refit_sweeps, work, z,
                    left,
                )  # fmt: skip
            for i in range(k):
                fitted[row, i] = z[i]
            unbiased[row] = 0.5 * _product(left, left)


def solve_products(gram, square, c, alpha, positive, tolerance, share, max_sweeps,
                   refit, dependent, refit_tolerance, refit_sweeps, start, index, value,
                   count, atom, code, fitted, loss, size, unbiased):  # fmt: skip
    """Improve the codes of rows on one working set each, from products alone.

    ``gram`` has the products of atoms, ``c = D^T x`` those of rows with atoms, and ``square`` the
    squared norms of rows. A row costs ``count * n_atoms`` operations for its slopes, and none on
    features: the squared residual is ``|x|^2 - z^T (c + slope)``.

    With ``refit`` the rows of ``fitted`` become least squares on the supports, and ``unbiased``
    half of its squared residual.
    """
    n_atoms, room = len(gram), atom.shape[1]
    support, inside = np.empty(room, np.int64), np.zeros(n_atoms, np.bool_)
    z, beyond, slopes = np.empty(room), np.empty(n_atoms, np.int64), np.empty(n_atoms)
    slope, inner, step = np.empty(room), np.empty((room, room)), np.empty(room)
    factor = np.empty((room if refit else 0, room))
    for row in range(len(c)):
        k = start[row + 1] - start[row]
        for j in range(n_atoms):
            slopes[j] = c[row, j]
        for i in range(k):
            support[i], z[i] = index[start[row] + i], value[start[row] + i]
        i = np.int64(0)
        while i + 3 < k:  # four atoms at a time: slopes are written a quarter as often
            z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
            g0, g1 = gram[support[i]], gram[support[i + 1]]
            g2, g3 = gram[support[i + 2]], gram[support[i + 3]]
            for j in range(n_atoms):
                slopes[j] -= z0 * g0[j] + z1 * g1[j] + z2 * g2[j] + z3 * g3[j]
            i += 4
        while i < k:
            z0, g0 = z[i], gram[support[i]]
            for j in range(n_atoms):
                slopes[j] -= z0 * g0[j]
            i += 1
        w = _enter(slopes, positive, alpha + tolerance, share, k, inside, beyond, support, z)
        for i in range(w):
            slope[i] = slopes[support[i]]
            for j in range(w):
                inner[i, j] = gram[support[i], support[j]]
        _sweep_codes(w, inner, alpha, positive, tolerance, max_sweeps, slope, z)
        k, length, left = np.int64(0), 0.0, square[row]
        for i in range(w):
            if z[i] != 0.0:
                atom[row, k], code[row, k] = support[i], z[i]
                length += abs(z[i])
                left -= z[i] * (c[row, support[i]] + slope[i])
                support[k], z[k], slope[k] = support[i], z[i], slope[i]
                k += 1
        count[row], size[row], loss[row] = k, length, 0.5 * max(left, 0.0)
        if refit:
            for i in range(k):
                step[i] = slope[i]
                for j in range(k):
                    inner[i, j] = gram[support[i], support[j]]
            if _solve(k, inner, positive, dependent, factor, step, z):
                fall = 0.0
                for i in range(k):
                    fall += 0.5 * (z[i] - code[row, i]) * slope[i]
            else:  # descent on the support alone, without a penalty
                fall = _sweep_codes(
                    k, inner, 0.0, positive, refit_tolerance, refit_sweeps, slope, z
                )
            for i in range(k):
                fitted[row, i] = z[i]
            unbiased[row] = max(loss[row] - fall, 0.0)


def add_statistics(start, index, value, weight, x, a, b):
    """Add ``Z^T W Z``, of each pair one of both entries, and ``Z^T W X``, with weights of rows."""
    for i in range(len(x)):
        for e in range(start[i], start[i + 1]):
            z, j = weight[i] * value[e], index[e]
            for f in range(x.shape[1]):
                b[j, f] += z * x[i, f]
            for k in range(start[i], e + 1):
                a[j, index[k]] += z * value[k]


def removals(first, last, by_atom, row, most, near, atoms, gram, mask, weight, alpha, positive,
             tolerance, share, max_sweeps, x, start, index, value, cost, taken_over):  # fmt: skip
    """Estimate the rise of the objective without each atom, and the growth of other codes then.

    At most ``most`` users of an atom, at regular distances, stand for all of them. Their other
    atoms, and the atoms ``near`` the removed one, replace it, by coordinate descent: on products
    of atoms, or on residuals if ``gram`` is empty.
    """
    n_atoms, room = len(atoms), len(index) + near.shape[1]  # pages that are not used cost nothing
    support, inside = np.empty(room, np.int64), np.zeros(n_atoms, np.bool_)
    z, beyond, slope = np.empty(room), np.empty(n_atoms, np.int64), np.empty(room)
    slopes, growth, left = np.zeros(n_atoms), np.zeros(n_atoms), np.empty(atoms.shape[1])
    inner = np.empty((len(gram), len(gram)))
    for j in range(first, last):
        n_users = by_atom[j + 1] - by_atom[j]
        n_asked = min(n_users, most)
        for asked in range(n_asked):
            i, k, own = row[by_atom[j] + asked * n_users // n_asked], np.int64(0), 0.0
            known, rise = mask[i], 0.0
            for f in range(len(left)):
                left[f] = x[i, f]
            for e in range(start[i], start[i + 1]):
                if index[e] == j:
                    own = value[e]
                else:
                    support[k], z[k] = index[e], value[e]
                    growth[support[k]] = -abs(z[k])
                    rise += alpha * growth[support[k]]
                    _subtract(z[k], atoms[support[k]], known, left)
                    k += 1
            # half of the squared residual without the atom, less that with it
            rise += own * _product(atoms[j], left) - alpha * abs(own)
            rise -= 0.5 * own**2 * _known_product(atoms[j], atoms[j], known)
            for c in range(near.shape[1]):
                slopes[near[j, c]] = _product(atoms[near[j, c]], left)
            w = _enter(slopes, positive, alpha + tolerance, share, k, inside, beyond, support, z)
            if len(gram) > 0:
                for a in range(w):
                    slope[a] = slopes[support[a]] if a >= k else _product(atoms[support[a]], left)
                    for b in range(w):
                        inner[a, b] = gram[support[a], support[b]]
                rise -= _sweep_codes(w, inner, alpha, positive, tolerance, max_sweeps, slope, z)
            else:
                rise -= 0.5 * _product(left, left)
                _descend(
                    w, support, atoms, known, alpha, positive, tolerance, max_sweeps, slope, z, left
                )
                rise += 0.5 * _product(left, left)
            for e in range(w):
                rise += alpha * abs(z[e])
                growth[support[e]] += abs(z[e])
            cost[j] += weight[i] * rise * n_users / n_asked
            for c in range(near.shape[1]):
                taken_over[j, c] += weight[i] * growth[near[j, c]] * n_users / n_asked
                slopes[near[j, c]] = 0.0
            for e in range(w):
                growth[support[e]] = 0.0


def add_moments(first, last, start, row, value, x, b):
    """Add the rows ``first:last`` of ``Z^T X`` to ``b``."""
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i, z = row[e], value[e]
            for f in range(x.shape[1]):
                b[j - first, f] += z * x[i, f]


def subtract_changes(low, high, first, start, row, value, change, residual):
    """Subtract ``Z`` times the change of the atoms from ``first`` on, in the rows ``low:high``."""
    for j in range(first, first + len(change)):
        begin, end = start[j], start[j + 1]
        while begin < end:  # bisection: the rows of an atom are sorted
            middle = (begin + end) // 2
            if row[middle] < low:
                begin = middle + 1
            else:
                end = middle
        while begin < start[j + 1] and row[begin] < high:
            i, z = row[begin], value[begin]
            for f in range(residual.shape[1]):
                residual[i, f] -= z * change[j - first, f]
            begin += 1


def add_products(first, last, low, by_atom, row, code, start, index, value, a):
    """Add the rows ``first:last`` of ``Z^T Z`` to ``a``, whose columns begin at ``low``."""
    for j in range(first, last):
        for e in range(by_atom[j], by_atom[j + 1]):
            i, z = row[e], code[e]
            for k in range(start[i], start[i + 1]):
                column = index[k] - low
                if 0 <= column < a.shape[1]:
                    a[j - first, column] += z * value[k]


def add_second_moments(first, last, start, row, residual, direction, image):
    """Add for each atom the second moments of its users' residuals times its direction."""
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            length = _product(residual[i], direction[j])
            for f in range(residual.shape[1]):
                image[j, f] += length * residual[i, f]


def sweep(a, positive, target, atoms):
    """Minimise ``tr(D^T A D) / 2 - tr(B^T D)`` over a block of atoms, one by one, on the sphere.

    ``a`` holds the block of ``A``, and ``target`` the block's rows of ``B - A D``.
    """
    n_atoms, n_features = atoms.shape
    for j in range(n_atoms):
        norm = 0.0
        for f in range(n_features):
            target[j, f] += a[j, j] * atoms[j, f]
            if positive:
                target[j, f] = max(target[j, f], 0.0)
            norm += target[j, f] ** 2
        norm = np.sqrt(norm)
        if norm > 0.0:
            for f in range(n_features):
                target[j, f] = target[j, f] / norm - atoms[j, f]
                atoms[j, f] += target[j, f]
            for k in range(j + 1, n_atoms):
                if a[k, j] != 0.0:
                    for f in range(n_features):
                        target[k, f] -= a[k, j] * target[j, f]


loops = Loops(globals())
