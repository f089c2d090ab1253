r"""The loops of `skpudle.search` over samples and over atoms, compiled by numba.

The functions are plain Python until `loops` compiles them. Products of samples with atoms,
`correlate`, have the same bits on any number of threads. On one core they take 1.3 to 2 times as
long as a BLAS, but threads of a BLAS would wait for each other many times an epoch.

Codes are sparse: row ``i`` has ``count[i]`` entries, ``value[i, :count[i]]`` at the atoms
``index[i, :count[i]]``. Every function writes into its last arguments, releases the GIL and works
on a slice of rows or of atoms that no other slice writes to, so bits do not depend on the number
of threads. A ``mask`` without rows means that no entries are missing.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from skpudle._compilation import compile_together

__all__ = ["loops"]


def _slopes(atoms, gram, mask, start, k, support, z, residual, q):
    """Set ``q = D^T (x - D z)``; ``start`` is ``D^T x``."""
    n_components, n_features = atoms.shape
    for j in range(n_components):
        q[j] = start[j]
    if len(mask) == 0:
        for i in range(k):
            zi, s = z[i], support[i]
            for j in range(n_components):
                q[j] -= zi * gram[s, j]
        return
    for f in range(n_features):
        residual[f] = 0.0
    for i in range(k):
        for f in range(n_features):
            residual[f] += z[i] * atoms[support[i], f]
    for f in range(n_features):
        residual[f] *= mask[f]
    for j in range(n_components):
        total = 0.0
        for f in range(n_features):
            total += atoms[j, f] * residual[f]
        q[j] -= total


def _gather(atoms, gram, mask, w, support, inner):
    """Set ``inner = D_W^T D_W``."""
    for i in range(w):
        for j in range(i + 1):
            if len(mask) == 0:
                inner[i, j] = gram[support[i], support[j]]
            else:
                total = 0.0
                for f in range(atoms.shape[1]):
                    total += mask[f] * atoms[support[i], f] * atoms[support[j], f]
                inner[i, j] = total
            inner[j, i] = inner[i, j]


def _descend(w, inner, alpha, positive, tolerance, max_sweeps, slope, z):
    """Minimise over a working set of ``w`` atoms by coordinate descent; update ``slope``."""
    for _ in range(max_sweeps):
        largest = 0.0
        for i in range(w):
            curvature = inner[i, i]
            if curvature == 0.0:
                continue
            target = slope[i] + curvature * z[i]
            new = 0.0
            if target > alpha:
                new = (target - alpha) / curvature
            elif target < -alpha and not positive:
                new = (target + alpha) / curvature
            step = new - z[i]
            if step != 0.0:
                z[i] = new
                for j in range(w):
                    slope[j] -= step * inner[i, j]
                largest = max(largest, abs(step) * curvature)
        if largest <= tolerance:
            break


def _enlarge(q, positive, level, share, k, inside, support, z):
    """Add atoms beyond ``level`` and near the best to the working set; return its size."""
    best = 0.0
    for i in range(k):
        inside[support[i]] = True
    for j in range(len(q)):
        size = q[j] if positive else abs(q[j])
        if size > best and not inside[j]:
            best = size
    w = k
    if best > level:
        level = max(level, share * best)
        for j in range(len(q)):
            size = q[j] if positive else abs(q[j])
            if size >= level and w < len(support) and not inside[j]:
                support[w], z[w] = j, 0.0
                w += 1
    for i in range(k):
        inside[support[i]] = False
    return w


def solve_rows(atoms, gram, mask, correlation, alpha, positive, tolerance, share, max_rounds,
               max_sweeps, count, index, value, gain, size):  # fmt: skip
    """Solve for the codes of rows with ``correlation = D^T x``, starting from their codes.

    ``gain`` becomes the decrease from the objective of zero codes, ``|x|^2 / 2``, and ``size`` the
    sum of the moduli of the codes. A NaN correlation bans an atom.
    """
    n_components, room = len(atoms), index.shape[1]
    inner, slope, z = np.empty((room, room)), np.empty(room), np.empty(room)
    support, inside = np.empty(room, np.int64), np.zeros(n_components, np.bool_)
    q, residual = np.empty(n_components), np.empty(atoms.shape[1])
    for row in range(len(correlation)):
        known = mask[row] if len(mask) else atoms[0, :0]
        k = np.int64(count[row])
        for i in range(k):
            support[i], z[i] = index[row, i], value[row, i]
        for rounds in range(max_rounds):
            _slopes(atoms, gram, known, correlation[row], k, support, z, residual, q)
            for i in range(k):
                slope[i] = q[support[i]]
            w = _enlarge(q, positive, alpha + tolerance, share, k, inside, support, z)
            if rounds > 0 and w == k:
                break
            for i in range(k, w):
                slope[i] = q[support[i]]
            _gather(atoms, gram, known, w, support, inner)
            _descend(w, inner, alpha, positive, tolerance, max_sweeps, slope, z)
            k = np.int64(0)
            for i in range(w):
                if z[i] != 0.0:
                    support[k], z[k], slope[k] = support[i], z[i], slope[i]
                    k += 1
        product, length = 0.0, 0.0
        for i in range(k):
            index[row, i], value[row, i] = support[i], z[i]
            product += z[i] * (correlation[row, support[i]] + slope[i])
            length += abs(z[i])
        count[row], gain[row], size[row] = k, 0.5 * product - alpha * length, length


def _solve(w, inner, positive, dependent, factor, slope, z):
    """Go to the least squares of a support; return False, and stay, where descent has to.

    That is where atoms nearly depend on each other, or codes that may not turn negative would.
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


def refit_rows(atoms, gram, mask, correlation, positive, tolerance, dependent, max_sweeps,
               count, index, value):  # fmt: skip
    """Turn codes into least squares on their supports, non-negative if they are.

    Solve directly where possible: descent takes ten times as long for five correlated atoms.
    """
    room = index.shape[1]
    inner, slope, z = np.empty((room, room)), np.empty(room), np.empty(room)
    factor, step = np.empty((room, room)), np.empty(room)
    support = np.empty(room, np.int64)
    for row in range(len(correlation)):
        known = mask[row] if len(mask) else atoms[0, :0]
        w = count[row]
        for i in range(w):
            support[i], z[i] = index[row, i], value[row, i]
        _gather(atoms, gram, known, w, support, inner)
        for i in range(w):
            slope[i] = correlation[row, support[i]]
            for j in range(w):
                slope[i] -= inner[i, j] * z[j]
            step[i] = slope[i]
        if not _solve(w, inner, positive, dependent, factor, step, z):
            _descend(w, inner, 0.0, positive, tolerance, max_sweeps, slope, z)
        for i in range(w):
            value[row, i] = z[i]


def removals(first, last, atoms, gram, mask, correlation, alpha, positive, tolerance, share,
             max_rounds, max_sweeps, most, start, row, place, count, index, value, gain,
             cost, taken_over):  # fmt: skip
    """Estimate the rise of the objective without each atom, and the growth of other codes then.

    The estimates use at most ``most`` users of an atom, at regular distances.
    """
    n_components, room = len(atoms), index.shape[1]
    n, others, codes = np.empty(1, np.int64), np.empty((1, room), np.int32), np.empty((1, room))
    without, size, q = np.empty(1), np.empty(1), np.empty((1, n_components))
    for j in range(first, last):
        n_users = start[j + 1] - start[j]
        n_asked = min(n_users, most)
        for asked in range(n_asked):
            e = start[j] + asked * n_users // n_asked
            i = row[e]
            known = mask[i : i + 1] if len(mask) else mask
            for k in range(n_components):
                q[0, k] = correlation[i, k]
            q[0, j] = np.nan  # exceeds no level, with either sign
            n[0] = 0
            for k in range(count[i]):
                if k != place[e]:
                    others[0, n[0]], codes[0, n[0]] = index[i, k], value[i, k]
                    taken_over[j, index[i, k]] -= abs(value[i, k])
                    n[0] += 1
            solve_rows(atoms, gram, known, q, alpha, positive, tolerance, share, max_rounds,
                       max_sweeps, n, others, codes, without, size)  # fmt: skip
            cost[j] += gain[i] - without[0]
            for k in range(n[0]):
                taken_over[j, others[0, k]] += abs(codes[0, k])
        for k in range(n_components):
            taken_over[j, k] *= n_users / max(n_asked, 1)
        cost[j] *= n_users / max(n_asked, 1)


def sort_by_atom(count, index, start, row, place):
    """Sort the entries of codes by atom: atom ``j`` has ``start[j]`` up to ``start[j + 1]``."""
    for i in range(len(count)):
        for e in range(count[i]):
            start[index[i, e] + 1] += 1
    for j in range(len(start) - 1):
        start[j + 1] += start[j]
    fill = start.copy()
    for i in range(len(count)):
        for e in range(count[i]):
            j = index[i, e]
            row[fill[j]], place[fill[j]] = i, e
            fill[j] += 1


def add_moments(first, last, start, row, place, count, index, value, x, a, b):
    """Add to the rows ``first:last`` of ``a = Z^T Z`` and ``b = Z^T X``."""
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            z = value[i, place[e]]
            for f in range(x.shape[1]):
                b[j, f] += z * x[i, f]
            for k in range(count[i]):
                a[j, index[i, k]] += z * value[i, k]


def add_second_moments(first, last, start, row, residual, direction, image):
    """Add for each atom the second moments of its users' residuals times its direction."""
    for j in range(first, last):
        for e in range(start[j], start[j + 1]):
            i = row[e]
            length = 0.0
            for f in range(residual.shape[1]):
                length += residual[i, f] * direction[j, f]
            for f in range(residual.shape[1]):
                image[j, f] += length * residual[i, f]


def subtract_synthesis(count, index, value, atoms, residual):
    """Subtract ``D z`` from the rows of ``residual``."""
    for i in range(len(count)):
        for e in range(count[i]):
            z, j = value[i, e], index[i, e]
            for f in range(atoms.shape[1]):
                residual[i, f] -= z * atoms[j, f]


def sweep(a, b, positive, atoms):
    """Minimise ``tr(D^T A D) / 2 - tr(B^T D)`` over the atoms, one by one, on the sphere."""
    n_components, n_features = atoms.shape
    target = np.empty(n_features)
    for j in range(n_components):
        for f in range(n_features):
            target[f] = b[j, f] + a[j, j] * atoms[j, f]
        for k in range(n_components):
            weight = a[j, k]
            if weight != 0.0:
                for f in range(n_features):
                    target[f] -= weight * atoms[k, f]
        norm = 0.0
        for f in range(n_features):
            if positive:
                target[f] = max(target[f], 0.0)
            norm += target[f] ** 2
        norm = np.sqrt(norm)
        if norm > 0.0:
            for f in range(n_features):
                atoms[j, f] = target[f] / norm


def _correlate_one(first, last, x, atom, column):
    """Set ``column = X d`` for one atom."""
    for i in range(first, last):
        total = 0.0
        for f in range(len(atom)):
            total += x[i, f] * atom[f]
        column[i] = total


def _correlate_four(rows, transposed, c):
    """Set ``c = X D^T`` for four rows, four features at a time: sixteen products for nine reads."""
    n_features, n_components = transposed.shape
    x0, x1, x2, x3 = rows[0], rows[1], rows[2], rows[3]
    c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
    for j in range(n_components):
        c0[j] = c1[j] = c2[j] = c3[j] = 0.0
    f = 0
    while f + 3 < n_features:
        t0, t1, t2, t3 = transposed[f], transposed[f + 1], transposed[f + 2], transposed[f + 3]
        p0, p1, p2, p3 = x0[f], x0[f + 1], x0[f + 2], x0[f + 3]
        q0, q1, q2, q3 = x1[f], x1[f + 1], x1[f + 2], x1[f + 3]
        r0, r1, r2, r3 = x2[f], x2[f + 1], x2[f + 2], x2[f + 3]
        s0, s1, s2, s3 = x3[f], x3[f + 1], x3[f + 2], x3[f + 3]
        for j in range(n_components):
            c0[j] += (p0 * t0[j] + p1 * t1[j]) + (p2 * t2[j] + p3 * t3[j])
            c1[j] += (q0 * t0[j] + q1 * t1[j]) + (q2 * t2[j] + q3 * t3[j])
            c2[j] += (r0 * t0[j] + r1 * t1[j]) + (r2 * t2[j] + r3 * t3[j])
            c3[j] += (s0 * t0[j] + s1 * t1[j]) + (s2 * t2[j] + s3 * t3[j])
        f += 4
    while f < n_features:
        t0, p0, q0, r0, s0 = transposed[f], x0[f], x1[f], x2[f], x3[f]
        for j in range(n_components):
            c0[j] += p0 * t0[j]
            c1[j] += q0 * t0[j]
            c2[j] += r0 * t0[j]
            c3[j] += s0 * t0[j]
        f += 1


def correlate(first, last, x, transposed, c):
    """Set the rows ``first:last`` of ``c = X D^T``, where ``transposed`` is ``D^T``."""
    n_features, n_components = transposed.shape
    if n_components <= 16:  # for loops this short, atom by atom takes a fifth to a half as long
        for j in range(n_components):
            _correlate_one(first, last, x, transposed[:, j].copy(), c[:, j])
        return
    i = first
    while i + 3 < last:
        _correlate_four(x[i : i + 4], transposed, c[i : i + 4])
        i += 4
    for row in range(i, last):
        result = c[row]
        for j in range(n_components):
            result[j] = 0.0
        for f in range(n_features):
            value, t = x[row, f], transposed[f]
            for j in range(n_components):
                result[j] += value * t[j]


# A function comes before its callers.
_FUNCTIONS = (_correlate_one, _correlate_four, correlate, _slopes, _gather, _descend, _enlarge,
              solve_rows, _solve, refit_rows, removals, sort_by_atom, add_moments,
              add_second_moments, subtract_synthesis, sweep)  # fmt: skip


@cache
def loops():
    """Return the functions, compiled."""
    return SimpleNamespace(**compile_together(_FUNCTIONS))
