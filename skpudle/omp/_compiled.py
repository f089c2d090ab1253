r"""The pursuit of `skpudle.omp`, one sample at a time, compiled by numba.

The functions are plain Python until `loops` compiles them; they change their arguments in
place. For a support of ``k`` atoms, ``directions[:k]`` are the first rows of the pivoted Cholesky
factor of the whole Gram matrix, ``factor`` is its part inside the support, and ``amounts`` are the
products of the sample with the orthonormal directions. Loops replace slices, because numba takes
seconds to compile an assignment to a slice.
"""

import numpy as np

from skpudle._compilation import Loops, in_parts

# Length of a run of atoms: the largest correlation is found among runs, then inside one run.
_RUN = 32


def _largest(c, positive, tie, peaks):
    """Return the first atom with the largest correlation, up to a share ``tie``; -1 if it is 0.

    The length of ``c`` is a multiple of the length of a run. Four independent maxima take half the
    time of one (50 instead of 100 ns for 256 atoms).
    """
    best = 0.0
    for run in range(len(peaks)):
        peak0 = peak1 = peak2 = peak3 = 0.0
        for j in range(run * _RUN, (run + 1) * _RUN, 4):
            c0, c1, c2, c3 = c[j], c[j + 1], c[j + 2], c[j + 3]
            if not positive:
                c0, c1, c2, c3 = abs(c0), abs(c1), abs(c2), abs(c3)
            peak0, peak1 = max(peak0, c0), max(peak1, c1)
            peak2, peak3 = max(peak2, c2), max(peak3, c3)
        peaks[run] = max(max(peak0, peak1), max(peak2, peak3))
        best = max(best, peaks[run])
    if best == 0.0:
        return -1
    least = (1 - tie) * best
    run = 0
    while peaks[run] < least:
        run += 1
    j = run * _RUN
    while (c[j] if positive else abs(c[j])) < least:
        j += 1
    return j


def _correlate(atoms, gram, seen, new, row):
    """Set ``row`` to the products of all atoms with atom ``new``, over known features."""
    if len(gram) > 0:
        for j in range(len(row)):
            row[j] = gram[new, j]
        return
    for j in range(len(row)):
        total = 0.0
        if len(seen) == 0:
            for feature in range(atoms.shape[1]):
                total += atoms[new, feature] * atoms[j, feature]
        else:
            for feature in range(atoms.shape[1]):
                total += seen[feature] * atoms[new, feature] * atoms[j, feature]
        row[j] = total


def _enter(k, c, amount, directions, factor, support):
    """Make row ``k`` of ``directions`` orthogonal to earlier ones; take its part out of ``c``."""
    row = directions[k]
    i = 0
    while i + 3 < k:  # four rows at a time: fewer passes over the new one
        a0, a1, a2, a3 = factor[k, i], factor[k, i + 1], factor[k, i + 2], factor[k, i + 3]
        row0, row1 = directions[i], directions[i + 1]
        row2, row3 = directions[i + 2], directions[i + 3]
        for j in range(len(row)):
            row[j] -= a0 * row0[j] + a1 * row1[j] + a2 * row2[j] + a3 * row3[j]
        i += 4
    while i < k:
        a0, row0 = factor[k, i], directions[i]
        for j in range(len(row)):
            row[j] -= a0 * row0[j]
        i += 1
    scale = 1 / factor[k, k]
    for j in range(len(row)):
        row[j] *= scale
        c[j] -= amount * row[j]
    for i in range(k + 1):
        c[support[i]] = 0.0


def _least_squares(k, amounts, factor, z):
    """Set ``z`` to the codes of the support: ``factor.T @ z = amounts``."""
    for i in range(k):
        z[i] = amounts[i]
    for i in range(k - 1, -1, -1):
        z[i] /= factor[i, i]
        for j in range(i):
            z[j] -= factor[i, j] * z[i]


def _remove(out, k, c, amounts, directions, factor, support, z):
    """Take entry ``out`` from the support of size ``k``.

    Rotations of neighbouring directions mend the factor, and the last direction leaves. Return the
    increase of the squared norm of the residual.
    """
    for i in range(out, k - 1):
        support[i], z[i] = support[i + 1], z[i + 1]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for j in range(out, k - 1):  # rows moved up, so row j has an extra entry in column j + 1
        radius = np.sqrt(factor[j, j] ** 2 + factor[j, j + 1] ** 2)
        cosine, sine = factor[j, j] / radius, factor[j, j + 1] / radius
        for i in range(j, k - 1):
            left, right = factor[i, j], factor[i, j + 1]
            factor[i, j] = cosine * left + sine * right
            factor[i, j + 1] = cosine * right - sine * left
        left, right = amounts[j], amounts[j + 1]
        amounts[j] = cosine * left + sine * right
        amounts[j + 1] = cosine * right - sine * left
        row, after = directions[j], directions[j + 1]
        for i in range(len(row)):
            left, right = row[i], after[i]
            row[i] = cosine * left + sine * right
            after[i] = cosine * right - sine * left
    amount, row = amounts[k - 1], directions[k - 1]
    for i in range(len(row)):
        c[i] += amount * row[i]
    for i in range(k - 1):
        c[support[i]] = 0.0
    return amount * amount


def _keep_positive(k, c, amounts, directions, factor, support, z, trial):
    """Move ``z`` to the non-negative least squares codes of the support.

    Return the size that is left of it, and the increase of the squared norm of the residual.
    """
    returned = 0.0
    while k > 0:
        _least_squares(k, amounts, factor, trial)
        share = 2.0
        for i in range(k):
            if trial[i] <= 0:
                share = min(share, z[i] / (z[i] - trial[i]) if z[i] > 0 else 0.0)
        if share == 2.0:
            for i in range(k):
                z[i] = trial[i]
            break
        for i in range(k - 1, -1, -1):
            reach = z[i] / (z[i] - trial[i]) if z[i] > 0 else 0.0
            stops = trial[i] <= 0 and reach <= share
            z[i] += share * (trial[i] - z[i])
            if stops:
                returned += _remove(i, k, c, amounts, directions, factor, support, z)
                k -= 1
    return k, returned


def solve_rows(atoms, gram, mask, energy, tol, room, max_iter, positive, resolution, tie, codes):
    """Turn ``codes`` from ``D^T x`` into the codes of the rows of ``x``."""
    n_components = codes.shape[1]
    peaks = np.empty((n_components + _RUN - 1) // _RUN)
    c = np.zeros(len(peaks) * _RUN)
    directions, factor = np.empty((room, n_components)), np.empty((room, room))
    support = np.empty(room, np.int64)
    amounts, z, trial = np.empty(room), np.empty(room), np.empty(room)
    for row in range(len(codes)):
        for j in range(n_components):
            c[j] = codes[row, j]
            codes[row, j] = 0.0 if energy[row] < np.inf else np.nan
        left = energy[row]
        k = np.int64(0)  # a literal 0 would have every function compiled twice
        for _ in range(max_iter):
            if k == room or not left > tol[row] or not left < np.inf:
                break
            new = _largest(c, positive, tie, peaks)
            if new < 0:
                break
            _correlate(atoms, gram, mask[row], new, directions[k])
            square = directions[k, new]
            if not (c[new] * c[new] > resolution * square * energy[row]):
                break
            pivot = square
            for i in range(k):
                factor[k, i] = directions[i, new]
                pivot -= factor[k, i] ** 2
            if pivot <= resolution * square:
                break
            factor[k, k] = np.sqrt(pivot)
            support[k], amounts[k], z[k] = new, c[new] / factor[k, k], 0.0
            left -= amounts[k] ** 2
            if positive or k + 1 < room:
                _enter(k, c, amounts[k], directions, factor, support)
            k += 1
            if positive:
                k, returned = _keep_positive(k, c, amounts, directions, factor, support, z, trial)
                left += returned
        if not positive:
            _least_squares(k, amounts, factor, z)
        for i in range(k):
            codes[row, support[i]] = z[i]


loops = Loops(globals())


def solve(atoms, gram, mask, energy, tol, codes, *, room, max_iter, positive, resolution, tie):
    """Turn correlations into codes in place, as `skpudle.omp` does for a batch.

    All tensors are on the CPU and of dtype float64.
    """
    gram = energy.new_empty(0, 0) if gram is None else gram
    mask = energy.new_empty(len(energy), 0) if mask is None else mask
    given = atoms, gram, mask, energy, tol, codes
    # the arrays share the memory of the tensors, so codes are solved in place
    atoms, gram, mask, energy, tol, rows = (np.asarray(t.contiguous()) for t in given)

    def solve_part(first, last):
        part = slice(first, last)
        loops.solve_rows(
            atoms, gram, mask[part], energy[part], tol[part], room, max_iter, positive, resolution,
            tie, rows[part],
        )  # fmt: skip

    # the least number of rows that pays for a thread
    in_parts(solve_part, len(rows), 16)
