"""The loops of `skpudle.search` over samples and over atoms, compiled by numba.

`skpudle.search._epoch.Epoch` calls them. The functions are plain Python until `loops` compiles
them, so a change can be tried in Python first.

A BLAS computes the *slopes* ``D^T (x - D z)`` of many samples at once. Large slopes select the
atoms that enter a *working set*, the few atoms whose codes a row minimises over by coordinate
descent. With fewer than 1,024 atoms and no missing entries descent works on products of the atoms
of the working set: a coordinate costs one operation for each of these atoms. Otherwise it works on
the residual of the sample: a coordinate costs two passes over an atom, and no matrix of atoms by
atoms is needed.

Shapes: ``atoms`` (n_atoms, n_features), ``x`` and ``residual`` (n, n_features). Codes are sparse:
row ``i`` has the entries from ``start[i]`` to ``start[i + 1] - 1``, with a ``value`` at the atom
``index``. Loops over atoms take the same entries sorted by atom: atom ``j`` has the entries from
``start[j]`` (or ``by_atom[j]``) on, each with a ``row`` and a ``value``. The rows with a nonzero
code at an atom are the *users* of the atom. A ``mask`` has the shape (n, n_features), with 1 for
known and 0 for missing entries, or (n, 0) if all entries are known. Residuals are zero where
entries are missing.

Options: ``alpha`` is the penalty, and ``positive`` says whether codes are non-negative. Sweeps over
the codes of a row end when no code changes by more than ``tolerance`` over the squared norm of its
atom, or after ``max_sweeps``. For ``min_fraction`` see `_enter`, and for ``dependent`` see
`_factorise`. With ``refit`` codes also become least squares on their supports; ``refit_tolerance``
and ``refit_sweeps`` are the tolerance and the largest number of sweeps for that.

Every function releases the GIL and writes into its last arguments; `solve_rows` overwrites
``residual``, too. A call works on a slice of rows or of atoms that no other call writes to, so bits
do not depend on the number of threads.
"""

import numpy as np

from skpudle._compilation import Loops


def _product(x, y):  # (n,), (n,) -> float: the inner product
    total = 0.0
    for f in range(len(x)):
        total += x[f] * y[f]
    return total


def _subtract(step, atom, mask, residual):  # number, then (n_features,) each
    """Subtract ``step * atom`` from the known entries of a row's residual, in place."""
    if len(mask) == 0:
        for f in range(len(atom)):
            residual[f] -= step * atom[f]
    else:
        for f in range(len(atom)):
            residual[f] -= step * mask[f] * atom[f]


def subtract_synthesis(
    start,
    index,
    value,
    atoms,
    mask,
    residual,
):
    """Subtract ``D z`` from the known entries of each row of ``residual``, in place.

    ``residual`` (n, n_features) has the data before. Its missing entries become 0.
    """
    for i in range(len(residual)):
        left = residual[i]
        e = start[i]
        last = start[i + 1]
        # four atoms at a time: the residual is written a quarter as often
        while e + 3 < last:
            z0 = value[e]
            z1 = value[e + 1]
            z2 = value[e + 2]
            z3 = value[e + 3]
            d0 = atoms[index[e]]
            d1 = atoms[index[e + 1]]
            d2 = atoms[index[e + 2]]
            d3 = atoms[index[e + 3]]
            for f in range(len(left)):
                left[f] -= z0 * d0[f] + z1 * d1[f] + z2 * d2[f] + z3 * d3[f]
            e += 4
        while e < last:
            z0 = value[e]
            d0 = atoms[index[e]]
            for f in range(len(left)):
                left[f] -= z0 * d0[f]
            e += 1
        for f in range(mask.shape[1]):
            left[f] *= mask[i, f]


def _known_product(x, y, mask):  # -> float
    """Return the sum of ``x * y``, both (n_features,), over the known entries of a row."""
    if len(mask) == 0:
        return _product(x, y)
    total = 0.0
    for f in range(len(x)):
        total += mask[f] * x[f] * y[f]
    return total


def _shrink(target, curvature, alpha, positive):  # -> float, code of least objective
    if target > alpha:
        return (target - alpha) / curvature
    if target < -alpha and not positive:
        return (target + alpha) / curvature
    return 0.0


def _sweep_codes(
    w,
    inner,
    alpha,
    positive,
    tolerance,
    max_sweeps,
    slope,
    z,
):
    """Minimise the lasso over the codes of one row, by coordinate descent on products of atoms.

    Use it for a few atoms whose products are known: a step costs ``w`` operations, and no pass over
    the features. The other form is `_descend`.

    Parameters
    ----------
    w : int
        Number of atoms to minimise over.
    inner : ndarray of shape (w, w) or larger
        Products of the atoms with each other.
    alpha, positive, tolerance, max_sweeps
        See the module.
    slope : ndarray of shape (w,) or larger
        Products of the atoms with the residual; updated.
    z : ndarray of shape (w,) or larger
        The codes; updated.

    Returns
    -------
    float
        By how much half of the squared residual falls.
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
                change = abs(step) * inner[i, i]
                largest = change if change > largest else largest
        if largest <= tolerance:
            break
    return fall


def _descend(w, support, atoms, mask, alpha, positive, tolerance, max_sweeps, curvature, z,
             residual):  # fmt: skip
    """Minimise the lasso over the codes of one row, by coordinate descent on its residual.

    No products of atoms are needed; a step costs two passes over the features. The other form is
    `_sweep_codes`.

    Parameters
    ----------
    w : int
        Number of atoms to minimise over.
    support : ndarray of shape (w,) or larger
        The numbers of these atoms.
    atoms : ndarray of shape (n_atoms, n_features)
        All atoms.
    mask : ndarray of shape (n_features,) or (0,)
        Mask of the row.
    alpha, positive, tolerance, max_sweeps
        See the module.
    curvature : ndarray of shape (w,) or larger
        Memory to work in.
    z : ndarray of shape (w,) or larger
        The codes; updated.
    residual : ndarray of shape (n_features,)
        The residual of the row; updated.
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
                change = abs(step) * curvature[i]
                largest = change if change > largest else largest
        if largest <= tolerance:
            break


def _enter(
    slope,
    positive,
    level,
    min_fraction,
    k,
    beyond,
    support,
    z,
):  # -> int
    """Add atoms with large slopes to the working set of one row; return the new size of the set.

    An atom enters if the modulus of its slope is above ``level`` and at least ``min_fraction`` of
    the largest modulus outside of the set. The set has room for ``len(support)`` atoms; if more
    atoms qualify, the least modulus rises until they fit.

    Parameters
    ----------
    slope : ndarray of shape (n_atoms,), or (0,) if no atom may enter
        Products of all atoms with the residual; set to 0 at the atoms of the set.
    positive : bool
        Whether only positive slopes count.
    level, min_fraction : float
        The limits of moduli.
    k : int
        Number of atoms in the set.
    beyond : ndarray of shape (n_atoms,), int64
        Memory to work in.
    support, z : ndarray of shape (room,)
        The atoms of the set and their codes. New atoms are appended, with codes of 0.
    """
    if len(slope) == 0:
        return k
    for i in range(k):
        slope[support[i]] = 0.0
    n = 0
    # In most rows no slope is above `level`. This pass has no branches, so it finds that out fast.
    for j in range(len(slope)):
        n += (slope[j] > level) | ((slope[j] < -level) & (not positive))
    if n == 0:
        return k
    best = 0.0
    n = 0
    for j in range(len(slope)):
        if abs(slope[j]) > level and (slope[j] > 0.0 or not positive):
            size = abs(slope[j])
            best = size if size > best else best
            beyond[n] = j
            n += 1
    if min_fraction * best > level:
        level = min_fraction * best
    n_near = len(support) + 1
    while k + n_near > len(support):
        n_near = 0
        for i in range(n):
            n_near += abs(slope[beyond[i]]) >= level
        if k + n_near > len(support):
            # too many atoms: the level goes half of the way to the largest modulus
            level += 0.5 * (best - level) + 1e-6 * best
            if level > best:
                return k
    for i in range(n):
        if abs(slope[beyond[i]]) >= level:
            support[k] = beyond[i]
            z[k] = 0.0
            k += 1
    return k


def _factorise(w, inner, dependent, factor):  # -> bool
    """Compute the Cholesky factor of ``inner`` (w, w), the products of atoms, for `_solve`.

    ``factor`` (w, w) is set to it, with reciprocals on the diagonal. Return False if an atom has at
    most the fraction ``dependent`` of its energy (squared norm) outside of the span of the atoms
    before it, and True otherwise.
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


def _solve(
    w,
    inner,
    positive,
    dependent,
    factor,
    slope,
    z,
):  # -> bool
    """Set the codes of one row to least squares on their support; return whether that succeeded.

    It returns False, with unchanged codes, if the atoms are nearly linearly dependent, or if a code
    that must be non-negative would turn negative. The caller then uses coordinate descent.

    Parameters
    ----------
    w : int
        Number of atoms of the support.
    inner : ndarray of shape (w, w) or larger
        Products of the atoms with each other.
    positive, dependent
        See the module.
    factor : ndarray of shape (w, w) or larger
        Memory to work in.
    slope : ndarray of shape (w,) or larger
        Products of the atoms with the residual; overwritten.
    z : ndarray of shape (w,) or larger
        The codes; updated.
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


def _gather(w, support, gram, inner):
    """Set ``inner`` (w, w) to the products of the atoms of a support, out of ``gram``."""
    for i in range(w):
        for j in range(w):
            inner[i, j] = gram[support[i], support[j]]


def solve_rows(atoms, gram, mask, residual, slope, alpha, positive, tolerance, min_fraction,
               max_sweeps, refit, dependent, refit_tolerance, refit_sweeps, room, start, index,
               value, count, atom, code, fitted, loss, size):  # fmt: skip
    """Improve the codes of rows, each on one working set, by coordinate descent.

    Parameters
    ----------
    atoms, mask
        See the module.
    gram : ndarray of shape (n_atoms, n_atoms), or None
        Products of atoms. None: descent works on residuals. numba compiles both cases on their own,
        each when it is first used.
    residual : ndarray of shape (n, n_features)
        ``x - D z`` for the codes to begin with; overwritten.
    slope : ndarray of shape (n, n_atoms), or (n, 0) to let no atom enter a working set
        ``D^T (x - D z)`` for the codes to begin with; overwritten.
    alpha, positive, tolerance, min_fraction, max_sweeps
        See the module.
    refit, dependent, refit_tolerance, refit_sweeps
        See the module.
    room : int
        Largest size of a working set.
    start, index, value
        The sparse codes to begin with.
    count : ndarray of shape (n,)
        Output: the number of nonzero codes of each row.
    atom, code : ndarray of shape (n * room,) or larger
        Output: the nonzero codes of all rows, one row after the other, and their atoms.
    fitted : ndarray of shape (n * room,) or larger
        Output with ``refit``: least squares on the supports of the codes, at the same atoms. A
        Cholesky factor solves them, because coordinate descent takes ten times as long for five
        correlated atoms.
    loss : ndarray of shape (n,)
        Output: half of the squared residual of the codes.
    size : ndarray of shape (n,)
        Output: the sum of the moduli of the codes.
    """
    support = np.empty(room, np.int64)
    beyond = np.empty(len(atoms), np.int64)
    # `work` has the slopes or the curvatures of the atoms in a row's working set; `end` is the
    # number of nonzero codes of all rows so far.
    z = np.empty(room)
    work = np.empty(room)
    end = np.int64(0)
    step = np.empty(room)
    inner = np.empty((room, room))
    factor = np.empty((room, room))
    for row in range(len(residual)):
        observed = mask[row]
        left = residual[row]
        k = start[row + 1] - start[row]
        for i in range(k):
            support[i] = index[start[row] + i]
            z[i] = value[start[row] + i]
        w = _enter(
            slope[row], positive, alpha + tolerance, min_fraction, k, beyond, support, z
        )
        if gram is None:
            _descend(
                w,
                support,
                atoms,
                observed,
                alpha,
                positive,
                tolerance,
                max_sweeps,
                work,
                z,
                left,
            )
            loss[row] = 0.5 * _product(left, left)
        else:
            for i in range(w):
                work[i] = _product(atoms[support[i]], left)
            _gather(w, support, gram, inner)
            fall = _sweep_codes(
                w, inner, alpha, positive, tolerance, max_sweeps, work, z
            )
            loss[row] = 0.5 * _product(left, left) - fall
        # keep the nonzero codes, and move them to the front for least squares
        k = np.int64(0)
        length = 0.0
        for i in range(w):
            if z[i] != 0.0:
                atom[end + k] = support[i]
                code[end + k] = z[i]
                length += abs(z[i])
                support[k] = support[i]
                z[k] = z[i]
                work[k] = work[i]
                k += 1
        count[row] = k
        size[row] = length
        if refit:  # least squares: penalty 0
            if gram is None:
                for i in range(k):
                    work[i] = _product(atoms[support[i]], left)
                    for j in range(i + 1):
                        inner[i, j] = _known_product(
                            atoms[support[i]], atoms[support[j]], observed
                        )
                if not _solve(k, inner, positive, dependent, factor, work, z):
                    _descend(
                        k,
                        support,
                        atoms,
                        observed,
                        0.0,
                        positive,
                        refit_tolerance,
                        refit_sweeps,
                        work,
                        z,
                        left,
                    )
            else:
                _gather(k, support, gram, inner)
                # `_solve` overwrites slopes, and if it fails coordinate descent needs them
                for i in range(k):
                    step[i] = work[i]
                if not _solve(k, inner, positive, dependent, factor, step, z):
                    _sweep_codes(
                        k, inner, 0.0, positive, refit_tolerance, refit_sweeps, work, z
                    )
            for i in range(k):
                fitted[end + i] = z[i]
        end += k


def add_statistics(
    start,
    index,
    value,
    weight,
    x,
    a,
    b,
):
    """Add ``Z^T W Z`` and ``Z^T W X`` of some rows to ``a`` and ``b``; they improve the atoms.

    ``W`` is the diagonal matrix of the weights ``weight`` (n,) of rows; ``b`` is (n_atoms,
    n_features). In each row the product of the codes of two atoms is added to only one of the two
    entries of ``a`` (n_atoms, n_atoms) for these atoms. So the caller takes ``a + a^T``, except on
    the diagonal.
    """
    for i in range(len(x)):
        for e in range(start[i], start[i + 1]):
            z = weight[i] * value[e]
            j = index[e]
            for f in range(x.shape[1]):
                b[j, f] += z * x[i, f]
            for k in range(start[i], e + 1):
                a[j, index[k]] += z * value[k]


def removals(first, last, by_atom, row, most, near, atoms, gram, mask, weight, alpha, positive,
             tolerance, min_fraction, max_sweeps, x, start, index, value, changes):  # fmt: skip
    """Estimate by how much the objective rises, and other codes grow, if an atom is removed.

    At most ``most`` users of an atom, at regular distances, stand for all its users. In each of
    these rows coordinate descent minimises over the atoms that the row uses beside the removed
    atom, and over the *near* atoms, the ones most like the removed atom, that violate the
    optimality condition.

    Parameters
    ----------
    first, last : int
        The atoms to remove, one at a time: ``first`` to ``last - 1``.
    by_atom, row
        The codes sorted by atom, without values.
    most : int
        Largest number of users of an atom that are tried.
    near : ndarray of shape (n_atoms, n_near)
        The numbers of the atoms near each atom.
    atoms, mask, x
        See the module.
    gram : ndarray of shape (n_atoms, n_atoms), or None
        Products of atoms. None: descent works on residuals. numba compiles both cases on their own,
        each when it is first used.
    weight : ndarray of shape (n,)
        Weights of rows.
    alpha, positive, tolerance, min_fraction, max_sweeps
        See the module.
    start, index, value
        The codes sorted by row.
    changes : ndarray of shape (last - first, 1 + n_near)
        Output, added to: for each removed atom the rise of the objective, then the growth of the
        moduli of codes at the near atoms.
    """
    # `room` bounds the number of codes of any row by that of all rows. Arrays of this size cost
    # little, because the system provides memory only where a loop writes.
    n_atoms = len(atoms)
    room = len(index) + near.shape[1]
    support = np.empty(room, np.int64)
    beyond = np.empty(n_atoms, np.int64)
    z = np.empty(room)
    slope = np.empty(room)
    slopes = np.zeros(n_atoms)
    growth = np.zeros(n_atoms)
    left = np.empty(atoms.shape[1])
    if gram is not None:
        inner = np.empty((n_atoms, n_atoms))
    for j in range(first, last):
        n_users = by_atom[j + 1] - by_atom[j]
        n_asked = n_users if n_users < most else most
        for asked in range(n_asked):
            i = row[by_atom[j] + asked * n_users // n_asked]
            k = np.int64(0)
            own = 0.0
            observed = mask[i]
            rise = 0.0
            for f in range(len(left)):
                left[f] = x[i, f]
            for e in range(start[i], start[i + 1]):
                if index[e] == j:
                    own = value[e]
                else:
                    support[k] = index[e]
                    z[k] = value[e]
                    growth[support[k]] = -abs(z[k])
                    rise += alpha * growth[support[k]]
                    _subtract(z[k], atoms[support[k]], observed, left)
                    k += 1
            # `left` is the residual of the row without the code of the removed atom. The next two
            # lines add half of the square of `left`, and subtract the terms of the code in the
            # objective: half of the squared residual with the code, and the code's penalty.
            rise += own * _product(atoms[j], left) - alpha * abs(own)
            rise -= 0.5 * own**2 * _known_product(atoms[j], atoms[j], observed)
            for c in range(near.shape[1]):
                slopes[near[j, c]] = _product(atoms[near[j, c]], left)
            w = _enter(
                slopes, positive, alpha + tolerance, min_fraction, k, beyond, support, z
            )
            if gram is None:
                rise -= 0.5 * _product(left, left)
                _descend(
                    w,
                    support,
                    atoms,
                    observed,
                    alpha,
                    positive,
                    tolerance,
                    max_sweeps,
                    slope,
                    z,
                    left,
                )
                rise += 0.5 * _product(left, left)
            else:
                for a in range(w):
                    slope[a] = _product(atoms[support[a]], left)
                _gather(w, support, gram, inner)
                rise -= _sweep_codes(
                    w, inner, alpha, positive, tolerance, max_sweeps, slope, z
                )
            for e in range(w):
                rise += alpha * abs(z[e])
                growth[support[e]] += abs(z[e])
            changes[j - first, 0] += weight[i] * rise * n_users / n_asked
            for c in range(near.shape[1]):
                changes[j - first, 1 + c] += (
                    weight[i] * growth[near[j, c]] * n_users / n_asked
                )
                slopes[near[j, c]] = 0.0
            for e in range(w):
                growth[support[e]] = 0.0


def add_moments(
    first,
    last,
    start,
    row,
    value,
    x,
    b,
):
    """Add the rows of ``Z^T X`` for the atoms ``first:last`` to ``b`` (last - first, n_features).

    ``start``, ``row`` and ``value`` are the codes sorted by atom. `Epoch.improved_atoms` calls it
    with residuals for ``x``, and so gets the rows of ``B - A D`` that `sweep` takes.
    """
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            z = value[e]
            for f in range(x.shape[1]):
                b[j - first, f] += z * x[i, f]


def subtract_changes(
    low,
    high,
    first,
    start,
    row,
    value,
    change,
    residual,
):
    """Update the rows ``low:high`` of ``residual`` after a block of atoms has changed, in place.

    ``change`` (n_changed, n_features) holds new minus old atoms, from the atom ``first`` on.
    ``start``, ``row`` and ``value`` are the codes sorted by atom, then by row.
    `Epoch.improved_atoms` needs the residuals for the next block.
    """
    for j in range(first, first + len(change)):
        begin = start[j] + np.searchsorted(row[start[j] : start[j + 1]], low)
        while begin < start[j + 1] and row[begin] < high:
            i = row[begin]
            z = value[begin]
            for f in range(residual.shape[1]):
                residual[i, f] -= z * change[j - first, f]
            begin += 1


def add_products(
    first,
    last,
    low,
    by_atom,
    row,
    code,
    start,
    index,
    value,
    a,
):
    """Add a block of ``Z^T Z`` to ``a``: the rows ``first:last``, and the columns from ``low`` on.

    `Epoch.products` calls it, for `sweep` to improve a block of atoms. ``a`` is (last - first,
    n_columns). ``by_atom``, ``row`` and ``code`` are the codes sorted by atom; ``start``, ``index``
    and ``value`` are the same codes sorted by row.
    """
    for j in range(first, last):
        for e in range(by_atom[j], by_atom[j + 1]):
            i = row[e]
            z = code[e]
            for k in range(start[i], start[i + 1]):
                column = index[k] - low
                if 0 <= column < a.shape[1]:
                    a[j - first, column] += z * value[k]


def add_second_moments(
    first,
    last,
    start,
    row,
    residual,
    direction,
    image,
):
    """Add one power iteration for the common direction of residuals, for the atoms ``first:last``.

    ``sum_i r_i (r_i . v)`` is added to ``image[j - first]`` for each atom ``j``. The sum is over
    the users ``i`` of the atom, ``r_i`` is the residual of row ``i``, and ``v`` is ``direction[j]``
    (n_features,). ``start`` and ``row`` are the codes sorted by atom.
    """
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            length = _product(residual[i], direction[j])
            for f in range(residual.shape[1]):
                image[j - first, f] += length * residual[i, f]


def sweep(a, positive, target, atoms):
    """Minimise ``tr(D^T A D) / 2 - tr(B^T D)`` over a block of atoms, one by one, on the sphere.

    Parameters
    ----------
    a : ndarray of shape (n_block, n_block)
        The entries of ``A`` between atoms of the block.
    positive : bool
        Whether atoms are non-negative.
    target : ndarray of shape (n_block, n_features)
        The rows of ``B - A D`` for the block; overwritten.
    atoms : ndarray of shape (n_block, n_features)
        The block, of norm 1; updated.
    """
    n_atoms, n_features = atoms.shape
    for j in range(n_atoms):
        norm = 0.0
        for f in range(n_features):
            target[j, f] += a[j, j] * atoms[j, f]
            if positive and target[j, f] < 0.0:
                target[j, f] = 0.0
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
