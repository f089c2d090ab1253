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

Every function releases the GIL and writes into its last arguments; `solve_rows` also overwrites
``residual``. A call works on a slice of rows or of atoms that no other call writes to, so bits do
not depend on the number of threads.
"""

import numpy as np

from skpudle._compilation import Loops


def _product(x, y):  # (n,), (n,) -> float: the inner product
    total = 0.0
    for f in range(len(x)):
        total += x[f] * y[f]
    return total


def _subtract(step, atom, mask, residual):  # number, then (n_features,) each
    """Subtract ``step * atom`` from the known entries of a row's residual, in place.

    ``mask`` is (0,) if all entries are known.
    """
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

    Before, ``residual`` (n, n_features) has the data. Its missing entries become 0. Row ``i`` has
    the codes from ``start[i]`` to ``start[i + 1] - 1``, each a ``value`` at the atom ``index``.
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
    """Return the sum of ``x * y``, both (n_features,), over the entries where ``mask`` is 1.

    If all entries are known, ``mask`` is (0,).
    """
    if len(mask) == 0:
        return _product(x, y)
    total = 0.0
    for f in range(len(x)):
        total += mask[f] * x[f] * y[f]
    return total


def _shrink(target, curvature, alpha, positive):  # -> float
    # Return the code of an atom that minimises the lasso while other codes stay. `target` is the
    # product of the atom with the residual without this code, `curvature` the atom's squared norm.
    if target > alpha:
        return (target - alpha) / curvature
    if target < -alpha and not positive:
        return (target + alpha) / curvature
    return 0.0


def _sweep_codes(
    w,
    gram,
    alpha,
    positive,
    tolerance,
    max_sweeps,
    slope,
    z,
):
    """Minimise the lasso over the codes of one row, by coordinate descent on products of atoms.

    Use it for a few atoms whose products are known: a step costs ``w`` operations, and no pass over
    the features. `_descend` does the same without products, on the residual.

    Parameters
    ----------
    w : int
        Number of atoms to minimise over.
    gram : ndarray of shape (w, w) or larger
        Products of the atoms with each other.
    alpha, positive
        The penalty, and whether codes are non-negative.
    tolerance, max_sweeps
        Sweeps end when no code changes by more than ``tolerance`` over the squared norm of its
        atom, or after ``max_sweeps``.
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
            if gram[i, i] == 0.0:
                continue
            new = _shrink(slope[i] + gram[i, i] * z[i], gram[i, i], alpha, positive)
            step = new - z[i]
            if step != 0.0:
                z[i] = new
                fall += step * (slope[i] - 0.5 * step * gram[i, i])
                for j in range(w):
                    slope[j] -= step * gram[i, j]
                change = abs(step) * gram[i, i]
                largest = change if change > largest else largest
        if largest <= tolerance:
            break
    return fall


def _descend(w, support, atoms, mask, alpha, positive, tolerance, max_sweeps, curvature, z,
             residual):  # fmt: skip
    """Minimise the lasso over the codes of one row, by coordinate descent on its residual.

    No products of atoms are needed; a step costs two passes over the features. `_sweep_codes` does
    the same on products of atoms.

    Parameters
    ----------
    w : int
        Number of atoms to minimise over.
    support : ndarray of shape (w,) or larger
        The numbers of these atoms.
    atoms : ndarray of shape (n_atoms, n_features)
        All atoms.
    mask : ndarray of shape (n_features,) or (0,)
        1 for known entries of the row, 0 for missing ones; (0,) if all entries are known.
    alpha, positive
        The penalty, and whether codes are non-negative.
    tolerance, max_sweeps
        Sweeps end when no code changes by more than ``tolerance`` over the squared norm of its
        atom, or after ``max_sweeps``.
    curvature : ndarray of shape (w,) or larger
        Memory to work in, for the squared norms of the atoms over known entries.
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
        The limits of moduli: a number, and a fraction of the largest modulus.
    k : int
        Number of atoms in the set.
    beyond : ndarray of shape (n_atoms,), int64
        Memory to work in, for the numbers of the atoms whose slopes are above ``level``.
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
    largest = 0.0
    n = 0
    for j in range(len(slope)):
        if abs(slope[j]) > level and (slope[j] > 0.0 or not positive):
            modulus = abs(slope[j])
            largest = modulus if modulus > largest else largest
            beyond[n] = j
            n += 1
    if min_fraction * largest > level:
        level = min_fraction * largest
    n_entering = len(support) + 1
    while k + n_entering > len(support):
        n_entering = 0
        for i in range(n):
            n_entering += abs(slope[beyond[i]]) >= level
        if k + n_entering > len(support):
            # Too many atoms: the level goes half of the way to the largest modulus, and a little
            # more, so that the loop ends if moduli are equal.
            level += 0.5 * (largest - level) + 1e-6 * largest
            if level > largest:
                return k
    for i in range(n):
        if abs(slope[beyond[i]]) >= level:
            support[k] = beyond[i]
            z[k] = 0.0
            k += 1
    return k


def _factorise(w, gram, dependent, factor):  # -> bool
    """Compute the Cholesky factor of ``gram`` (w, w), the products of atoms, for `_solve`.

    ``factor`` (w, w) is set to the factor, with reciprocals on the diagonal. Return False if an
    atom has at most the fraction ``dependent`` of its energy (squared norm) outside of the span of
    the atoms before it, and True otherwise.
    """
    for i in range(w):
        for j in range(i + 1):
            entry = gram[i, j]
            for k in range(j):
                entry -= factor[i, k] * factor[j, k]
            if j < i:
                factor[i, j] = entry * factor[j, j]
            elif entry > dependent * gram[i, i]:
                factor[i, i] = 1.0 / np.sqrt(entry)
            else:
                return False
    return True


def _solve(
    w,
    gram,
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
    gram : ndarray of shape (w, w) or larger
        Products of the atoms with each other.
    positive : bool
        Whether codes must be non-negative.
    dependent : float
        Atoms are nearly dependent if one has at most this fraction of its squared norm outside of
        the span of the atoms before it.
    factor : ndarray of shape (w, w) or larger
        Memory to work in, for the Cholesky factor.
    slope : ndarray of shape (w,) or larger
        Products of the atoms with the residual; overwritten by the step of the codes.
    z : ndarray of shape (w,) or larger
        The codes; updated.
    """
    if not _factorise(w, gram, dependent, factor):
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


def _gather(w, support, of_all, gram):
    """Set ``gram`` (w, w) to the products of the ``w`` atoms of a support with each other.

    ``support`` has the numbers of these atoms, and ``of_all`` the products of all atoms.
    """
    for i in range(w):
        for j in range(w):
            gram[i, j] = of_all[support[i], support[j]]


def solve_rows(atoms, gram, mask, residual, slope, alpha, positive, tolerance, min_fraction,
               max_sweeps, refit, dependent, refit_tolerance, refit_sweeps, room, start, index,
               value, count, atom, code, fitted, loss, size):  # fmt: skip
    """Improve the codes of rows, each on one working set, by coordinate descent.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, n_features)
        Atoms of any norm.
    mask : ndarray of shape (n, n_features) or (n, 0)
        1 for known entries, 0 for missing ones; (n, 0) if all entries are known.
    gram : ndarray of shape (n_atoms, n_atoms), or None
        Products of atoms. None: descent works on residuals. numba compiles both cases on their own,
        each when it is first used.
    residual : ndarray of shape (n, n_features)
        ``x - D z`` for the codes to begin with; overwritten.
    slope : ndarray of shape (n, n_atoms), or (n, 0) to let no atom enter a working set
        ``D^T (x - D z)`` for the codes to begin with; overwritten.
    alpha, positive
        The penalty, and whether codes are non-negative.
    tolerance, min_fraction
        An atom enters the working set if the modulus of its slope is above ``alpha + tolerance``
        and at least ``min_fraction`` of the largest modulus outside of the set.
    max_sweeps
        Sweeps over the codes of a row end after this number, or when no code changes by more than
        ``tolerance`` over the squared norm of its atom.
    refit, dependent, refit_tolerance, refit_sweeps
        Whether codes also become least squares on their supports; the limit of dependence as in
        `_factorise`; tolerance and largest number of sweeps where coordinate descent solves them.
    room : int
        Largest size of a working set.
    start, index, value
        The codes to begin with: row ``i`` has the entries ``start[i]`` to ``start[i + 1] - 1``.
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
    # `work` has the slopes or the curvatures of the `w` atoms in a row's working set, and
    # `gram_of_set` their products; `end` is the number of nonzero codes of all rows so far.
    z = np.empty(room)
    work = np.empty(room)
    end = np.int64(0)
    copied = np.empty(room)
    gram_of_set = np.empty((room, room))
    factor = np.empty((room, room))
    for row in range(len(residual)):
        observed = mask[row]
        left = residual[row]  # what the codes of the row leave
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
            _gather(w, support, gram, gram_of_set)
            fall = _sweep_codes(
                w, gram_of_set, alpha, positive, tolerance, max_sweeps, work, z
            )
            loss[row] = 0.5 * _product(left, left) - fall
        # keep the nonzero codes, and move them to the front for least squares
        k = np.int64(0)
        sum_of_moduli = 0.0
        for i in range(w):
            if z[i] != 0.0:
                atom[end + k] = support[i]
                code[end + k] = z[i]
                sum_of_moduli += abs(z[i])
                support[k] = support[i]
                z[k] = z[i]
                work[k] = work[i]
                k += 1
        count[row] = k
        size[row] = sum_of_moduli
        if refit:  # least squares: penalty 0
            if gram is None:
                for i in range(k):
                    work[i] = _product(atoms[support[i]], left)
                    for j in range(i + 1):
                        gram_of_set[i, j] = _known_product(
                            atoms[support[i]], atoms[support[j]], observed
                        )
                if not _solve(k, gram_of_set, positive, dependent, factor, work, z):
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
                _gather(k, support, gram, gram_of_set)
                # `_solve` overwrites slopes, and if it fails coordinate descent needs them
                for i in range(k):
                    copied[i] = work[i]
                if not _solve(k, gram_of_set, positive, dependent, factor, copied, z):
                    _sweep_codes(
                        k,
                        gram_of_set,
                        0.0,
                        positive,
                        refit_tolerance,
                        refit_sweeps,
                        work,
                        z,
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
        The users of atom ``j`` are the rows ``row[by_atom[j] : by_atom[j + 1]]``.
    most : int
        Largest number of users of an atom that are tried.
    near : ndarray of shape (n_atoms, n_near)
        The numbers of the atoms near each atom.
    atoms : ndarray of shape (n_atoms, n_features)
        All atoms.
    gram : ndarray of shape (n_atoms, n_atoms), or None
        Products of atoms. None: descent works on residuals. numba compiles both cases on their own,
        each when it is first used.
    weight : ndarray of shape (n,)
        Weights of rows.
    mask, x : ndarray of shape (n, n_features)
        The mask of known entries, (n, 0) if all are known, and the data.
    alpha, positive
        The penalty, and whether codes are non-negative.
    tolerance, min_fraction, max_sweeps
        A near atom enters if its slope is above ``alpha + tolerance`` and at least ``min_fraction``
        of the largest slope; descent ends at ``tolerance`` or after ``max_sweeps``.
    start, index, value
        The codes sorted by row: row ``i`` has the entries ``start[i]`` to ``start[i + 1] - 1``.
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
    # of one row: slopes of near atoms, and growth of the moduli of codes; other atoms have zeros
    slopes = np.zeros(n_atoms)
    growth = np.zeros(n_atoms)
    left = np.empty(atoms.shape[1])
    if gram is not None:
        gram_of_set = np.empty((n_atoms, n_atoms))
    for j in range(first, last):
        n_users = by_atom[j + 1] - by_atom[j]
        n_tried = n_users if n_users < most else most
        for tried in range(n_tried):
            i = row[by_atom[j] + tried * n_users // n_tried]
            k = np.int64(0)
            own_code = 0.0
            observed = mask[i]
            rise = 0.0
            for f in range(len(left)):
                left[f] = x[i, f]
            for e in range(start[i], start[i + 1]):
                if index[e] == j:
                    own_code = value[e]
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
            rise += own_code * _product(atoms[j], left) - alpha * abs(own_code)
            rise -= 0.5 * own_code**2 * _known_product(atoms[j], atoms[j], observed)
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
                _gather(w, support, gram, gram_of_set)
                rise -= _sweep_codes(
                    w, gram_of_set, alpha, positive, tolerance, max_sweeps, slope, z
                )
            for e in range(w):
                rise += alpha * abs(z[e])
                growth[support[e]] += abs(z[e])
            changes[j - first, 0] += weight[i] * rise * n_users / n_tried
            for c in range(near.shape[1]):
                changes[j - first, 1 + c] += (
                    weight[i] * growth[near[j, c]] * n_users / n_tried
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
    `Epoch.improved_atoms` needs the residuals for the next block. Threads take different rows.
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
    moments,
):
    """Add one power iteration for the common direction of residuals, for the atoms ``first:last``.

    ``sum_i r_i (r_i . v)`` is added to ``moments[j - first]`` for each atom ``j``. The sum is over
    the users ``i`` of the atom, ``r_i`` is the residual of row ``i``, and ``v`` is ``direction[j]``
    (n_features,). ``start`` and ``row`` are the codes sorted by atom.
    """
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            product = _product(residual[i], direction[j])
            for f in range(residual.shape[1]):
                moments[j - first, f] += product * residual[i, f]


def sweep(a, positive, target, atoms):
    """Minimise ``tr(D^T A D) / 2 - tr(B^T D)`` over a block of atoms, one by one, on the sphere.

    ``A = Z^T Z`` and ``B = Z^T X`` are sums over rows ``X`` with codes ``Z``, for atoms ``D``.

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
            # `target[j]` becomes the step of the atom, which changes `B - A D` at later atoms
            for f in range(n_features):
                target[j, f] = target[j, f] / norm - atoms[j, f]
                atoms[j, f] += target[j, f]
            for k in range(j + 1, n_atoms):
                if a[k, j] != 0.0:
                    for f in range(n_features):
                        target[k, f] -= a[k, j] * target[j, f]


loops = Loops(globals())
