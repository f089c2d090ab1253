r"""The loops of `skpudle.search` over samples and over atoms, compiled by numba.

The functions are plain Python until `loops` compiles them. With fewer than 1,024 atoms and no
missing entries, coordinate descent works on products: of atoms with atoms, and of a sample with all
atoms (`solve_products`). Otherwise coordinate descent works on the residual of a sample,
``x - D z`` (`solve_residuals`): a coordinate costs two passes over an atom, whatever the number of
atoms, and no matrix of atoms by atoms is needed. A BLAS computes the *slopes* ``D^T (x - D z)`` of
many samples at once. Large slopes select the atoms that enter a *working set*, the few atoms whose
codes a row minimises over.

Shapes: ``atoms`` (n_atoms, n_features), ``x`` and ``residual`` (n, n_features). Codes are sparse:
row ``i`` has the entries from ``start[i]`` to ``start[i + 1]``, with a ``value`` at the atom
``index``. Loops over atoms take the same entries sorted by atom: atom ``j`` has the entries from
``start[j]`` (or ``by_atom[j]``) to the next, each with a ``row`` and a ``value``. The rows with a
nonzero code at an atom are the *users* of the atom. A ``mask`` has the shape (n, n_features), with
1 for known and 0 for missing entries, or (n, 0) if all entries are known. Residuals are zero where
entries are missing.

Options: ``alpha`` is the penalty, and ``positive`` says whether codes are non-negative. Sweeps over
the codes of a row end when no code changes by more than ``tolerance`` over the squared norm of its
atom, or after ``max_sweeps``. For ``share`` see `_enter`, and for ``dependent`` see `_factorise`.
With ``refit_tolerance`` and ``refit_sweeps`` codes become least squares.

Every function releases the GIL and writes into its last arguments; `solve_residuals` overwrites
``residual``, too. A call works on a slice of rows or of atoms that no other call writes to, so bits
do not depend on the number of threads.
"""

import numpy as np

from skpudle._compilation import Loops


def _product(x, y):  # (n,), (n,) -> float
    total = 0.0
    for f in range(len(x)):
        total += x[f] * y[f]
    return total


def _subtract(step, atom, mask, residual):
    """Subtract ``step * atom`` from one row's residual (n_features,), in place, where known."""
    if len(mask) == 0:
        for f in range(len(atom)):
            residual[f] -= step * atom[f]
    else:
        for f in range(len(atom)):
            residual[f] -= step * mask[f] * atom[f]


def subtract_synthesis(start, index, value, atoms, mask, residual):
    """Subtract ``D z`` from the known entries of each row of ``residual``, in place."""
    for i in range(len(residual)):
        for e in range(start[i], start[i + 1]):
            _subtract(value[e], atoms[index[e]], mask[i], residual[i])


def _known_product(x, y, mask):  # -> float
    """Return the sum of ``x * y``, both (n_features,), over the entries known by ``mask``."""
    if len(mask) == 0:
        return _product(x, y)
    total = 0.0
    for f in range(len(x)):
        total += mask[f] * x[f] * y[f]
    return total


def _shrink(target, curvature, alpha, positive):  # floats -> the code that minimises the lasso
    if target > alpha:
        return (target - alpha) / curvature
    if target < -alpha and not positive:
        return (target + alpha) / curvature
    return 0.0


def _sweep_codes(w, inner, alpha, positive, tolerance, max_sweeps, slope, z):  # -> float
    """Minimise the lasso over the codes ``z`` of ``w`` atoms by coordinate descent on products.

    ``inner`` (w, w) holds the products of the atoms with each other, and ``slope`` (w,) the
    products of the atoms with the residual. Descent updates ``z`` and ``slope``. A step costs ``w``
    operations. Return by how much half of the squared residual falls.
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
    """Minimise the lasso over the codes ``z`` of ``w`` atoms by coordinate descent on the residual.

    ``support`` holds the numbers of the ``w`` atoms, and ``residual`` (n_features,) belongs to one
    row. Descent updates ``z`` and ``residual``. ``curvature`` (w,) is memory to work in. A
    coordinate costs two passes over the features.
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


def _enter(slope, positive, level, share, k, inside, beyond, support, z):  # -> int
    """Add atoms with large slopes to a working set of ``k`` atoms; return the new size of the set.

    ``slope`` (n_atoms,) has the slopes of all atoms. An atom enters if the modulus of its slope is
    above ``level`` and at least ``share`` times the largest modulus outside of the set. The set has
    room for ``len(support)`` atoms; if more atoms qualify, the least modulus rises until they fit.
    New atoms are appended to ``support``, with codes of 0 in ``z``. ``inside`` (n_atoms,), False
    before and after the call, and ``beyond`` (n_atoms,) are memory to work in.
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


def _factorise(w, inner, dependent, factor):  # -> bool
    """Set ``factor`` to the Cholesky factor of ``inner`` (w, w), with reciprocals on the diagonal.

    Return whether that succeeded: False if an atom has at most the share ``dependent`` of its
    energy outside of the span of the atoms before it.
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
    return True


def _solve(w, inner, positive, dependent, factor, slope, z):  # -> bool
    """Set the codes ``z`` of ``w`` atoms to least squares; return whether that succeeded.

    ``factor``, of at least (w, w), is memory to work in. ``inner`` (w, w) holds the products of the
    atoms with each other, and ``slope`` (w,) the products of the atoms with the residual; ``slope``
    is overwritten. The function returns False, with unchanged codes, if the atoms are nearly
    linearly dependent, or if a code that must be non-negative would turn negative. The caller then
    uses coordinate descent.
    """
    if not _factorise(w, inner, dependent, factor):
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
                    count, atom, code, fitted, loss, size):  # fmt: skip
    """Improve the codes of rows, each on one working set, by descent on residuals.

    ``start``, ``index`` and ``value`` are the codes to begin with, ``residual`` is ``x - D z`` for
    these codes, and ``slope`` (n, n_atoms) is ``D^T (x - D z)``. An empty ``slope`` (n, 0) lets no
    atom enter a working set.

    Row ``i`` gets ``count[i]`` new codes, ``code[i]``, at the atoms ``atom[i]``; both arrays have
    the shape (n, room). ``loss`` (n,) becomes half of the squared residual of the new codes, and
    ``size`` (n,) the sum of their moduli. ``residual`` is overwritten.

    With ``refit`` the rows of ``fitted`` (n, room) become least squares on the supports of the new
    codes. A Cholesky factor solves them, because coordinate descent takes ten times as long for
    five correlated atoms.
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
            if not _solve(k, inner, positive, dependent, factor, work, z):
                how = 0.0, positive, refit_tolerance, refit_sweeps  # no penalty
                _descend(k, support, atoms, known, *how, work, z, left)
            for i in range(k):
                fitted[row, i] = z[i]


def _gather(w, support, gram, inner):
    """Set ``inner`` (w, w) to the products of the ``w`` atoms of a support with each other."""
    for i in range(w):
        for j in range(w):
            inner[i, j] = gram[support[i], support[j]]


def solve_products(gram, square, c, alpha, positive, tolerance, share, max_sweeps,
                   refit, dependent, refit_tolerance, refit_sweeps, start, index, value,
                   count, atom, code, fitted, loss, size):  # fmt: skip
    """Improve the codes of rows, each on one working set, by descent on products.

    ``gram`` (n_atoms, n_atoms) has the products of the atoms with each other, ``c`` (n, n_atoms)
    the products ``D^T x``, and ``square`` (n,) the squared norms of the rows. The slopes of a row
    cost ``n_atoms`` operations for each nonzero code of the row. No operation runs over features:
    the squared residual is ``|x|^2 - z^T (c + slope)``.

    The outputs are those of `solve_residuals`, without the residual.
    """
    n_atoms, room = len(gram), atom.shape[1]
    support, inside = np.empty(room, np.int64), np.zeros(n_atoms, np.bool_)
    z, beyond, slopes = np.empty(room), np.empty(n_atoms, np.int64), np.empty(n_atoms)
    slope, inner, step = np.empty(room), np.empty((room, room)), np.empty(room)
    factor = np.empty((room if refit else 0, room))
    for row in range(len(c)):
        k = start[row + 1] - start[row]
        for i in range(k):
            support[i], z[i] = index[start[row] + i], value[start[row] + i]
        for j in range(n_atoms):
            slopes[j] = c[row, j]
        i = np.int64(0)
        while i + 3 < k:  # four atoms at a time: each slope is written a quarter as often
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
        _gather(w, support, gram, inner)
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
            _gather(k, support, gram, inner)
            if not _solve(k, inner, positive, dependent, factor, step, z):
                how = 0.0, positive, refit_tolerance, refit_sweeps  # no penalty
                _sweep_codes(k, inner, *how, slope, z)
            for i in range(k):
                fitted[row, i] = z[i]


def add_statistics(start, index, value, weight, x, a, b):
    """Add ``Z^T W Z`` to ``a`` and ``Z^T W X`` to ``b``; ``W`` is diagonal, the weights of rows.

    In each row the product of the codes of two atoms is added to only one of the two entries of
    ``a`` (n_atoms, n_atoms) for these atoms. So off the diagonal ``Z^T W Z`` is ``a + a^T``. ``b``
    has the shape (n_atoms, n_features).
    """
    for i in range(len(x)):
        for e in range(start[i], start[i + 1]):
            z, j = weight[i] * value[e], index[e]
            for f in range(x.shape[1]):
                b[j, f] += z * x[i, f]
            for k in range(start[i], e + 1):
                a[j, index[k]] += z * value[k]


def removals(first, last, by_atom, row, most, near, atoms, gram, mask, weight, alpha, positive,
             tolerance, share, max_sweeps, x, start, index, value, changes):  # fmt: skip
    """Estimate by how much the objective rises, and other codes grow, if an atom is removed.

    The estimates for the atoms ``first:last`` are added to ``changes`` (last - first, 1 + n_near):
    the rise of the objective, then the growth of the moduli of codes at the atoms near the removed
    atom, whose numbers are in ``near`` (n_atoms, n_near). ``by_atom`` and ``row`` are the codes
    sorted by atom; ``start``, ``index`` and ``value`` are the codes sorted by row. At most ``most``
    users of an atom, at regular distances, stand for all users. In each of these rows coordinate
    descent minimises over the atoms that the row uses beside the removed atom, and over the near
    atoms that violate the optimality condition. It works on products of atoms, or on residuals if
    ``gram`` is None. numba compiles both cases on their own, each when it is first used.
    """
    n_atoms, room = len(atoms), len(index) + near.shape[1]  # unused pages of memory cost nothing
    support, inside = np.empty(room, np.int64), np.zeros(n_atoms, np.bool_)
    z, beyond, slope = np.empty(room), np.empty(n_atoms, np.int64), np.empty(room)
    slopes, growth, left = np.zeros(n_atoms), np.zeros(n_atoms), np.empty(atoms.shape[1])
    if gram is not None:
        inner = np.empty((n_atoms, n_atoms))
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
            # `left` is the residual without the atom. Add half of its square, and subtract half of
            # the squared residual with the atom.
            rise += own * _product(atoms[j], left) - alpha * abs(own)
            rise -= 0.5 * own**2 * _known_product(atoms[j], atoms[j], known)
            for c in range(near.shape[1]):
                slopes[near[j, c]] = _product(atoms[near[j, c]], left)
            w = _enter(slopes, positive, alpha + tolerance, share, k, inside, beyond, support, z)
            if gram is None:
                rise -= 0.5 * _product(left, left)
                _descend(
                    w, support, atoms, known, alpha, positive, tolerance, max_sweeps, slope, z, left
                )
                rise += 0.5 * _product(left, left)
            else:
                for a in range(w):
                    slope[a] = _product(atoms[support[a]], left)
                _gather(w, support, gram, inner)
                rise -= _sweep_codes(w, inner, alpha, positive, tolerance, max_sweeps, slope, z)
            for e in range(w):
                rise += alpha * abs(z[e])
                growth[support[e]] += abs(z[e])
            changes[j - first, 0] += weight[i] * rise * n_users / n_asked
            for c in range(near.shape[1]):
                changes[j - first, 1 + c] += weight[i] * growth[near[j, c]] * n_users / n_asked
                slopes[near[j, c]] = 0.0
            for e in range(w):
                growth[support[e]] = 0.0


def add_moments(first, last, start, row, value, x, b):
    """Add the rows ``first:last`` of ``Z^T X`` to ``b`` (last - first, n_features)."""
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i, z = row[e], value[e]
            for f in range(x.shape[1]):
                b[j - first, f] += z * x[i, f]


def subtract_changes(low, high, first, start, row, value, change, residual):
    """Update the rows ``low:high`` of ``residual``, in place, after a block of atoms has changed.

    ``change`` (n_changed, n_features) holds new minus old atoms, from the atom ``first`` on.
    """
    for j in range(first, first + len(change)):
        begin = start[j] + np.searchsorted(row[start[j] : start[j + 1]], low)
        while begin < start[j + 1] and row[begin] < high:
            i, z = row[begin], value[begin]
            for f in range(residual.shape[1]):
                residual[i, f] -= z * change[j - first, f]
            begin += 1


def add_products(first, last, low, by_atom, row, code, start, index, value, a):
    """Add a block of ``Z^T Z`` to ``a``: the rows ``first:last``, and the columns from ``low`` on.

    ``a`` is (last - first, n_columns). ``by_atom``, ``row`` and ``code`` are the entries sorted by
    atom; ``start``, ``index`` and ``value`` are the entries sorted by row.
    """
    for j in range(first, last):
        for e in range(by_atom[j], by_atom[j + 1]):
            i, z = row[e], code[e]
            for k in range(start[i], start[i + 1]):
                column = index[k] - low
                if 0 <= column < a.shape[1]:
                    a[j - first, column] += z * value[k]


def add_second_moments(first, last, start, row, residual, direction, image):
    """Add ``sum_i r_i (r_i . v)`` to ``image[j - first]`` for each atom ``j`` of ``first:last``.

    The sum is over the users ``i`` of the atom, ``r_i`` is the residual of row ``i``, and ``v`` is
    ``direction[j]``, of the shape (n_features,).
    """
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            length = _product(residual[i], direction[j])
            for f in range(residual.shape[1]):
                image[j - first, f] += length * residual[i, f]


def sweep(a, positive, target, atoms):
    """Minimise ``tr(D^T A D) / 2 - tr(B^T D)`` over a block of atoms, one by one, on the sphere.

    ``atoms`` (n_block, n_features) is the block, which is updated in place. ``a`` (n_block,
    n_block) holds the entries of ``A`` between atoms of the block. ``target`` (n_block, n_features)
    holds the block's rows of ``B - A D`` and is overwritten.
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
