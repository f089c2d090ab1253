r"""The active set method of `skpudle.lasso._batched`, one sample at a time, compiled by numba.

The functions are plain Python until `solver_of_rows` compiles them; they change their arguments in
place. ``inner`` is ``G_SS``. ``factor`` is its Cholesky factor with reciprocals on the diagonal
(divisions took a tenth of the time), bordered as atoms enter and rotated as they leave. ``slope``
is the residual of the optimality condition, ``c_S - penalty * theta``. Loops replace slices,
because numba takes seconds to compile an assignment to a slice. `may_be_parallel` is compiled too,
because ten calls of torch take longer than one row.
"""

from functools import cache

import numpy as np
import torch

from skpudle._compilation import compile_together, in_parts
from skpudle.lasso._batched import (
    CANDIDATES,
    DEPENDENT,
    NEARLY,
    POLISHES,
    RESOLUTION,
    ROUNDING,
    RUN,
    SHARE,
    TIE,
)

__all__ = ["RULES", "may_be_parallel", "solve", "solver_of_rows"]

# An argument of the compiled functions: numba compiles a module anew when its own file changes, and
# would keep old constants of another file.
RULES = (RUN, CANDIDATES, SHARE, TIE, DEPENDENT, RESOLUTION, ROUNDING, NEARLY, POLISHES)

# Below this many rows a thread costs more than it saves.
_ROWS_PER_TASK = 16


def _product(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


def _correlate(atoms, gram, x, start, support, z, k, residual, c):
    """Set ``c = D^T (x - D z)``; ``start`` is ``D^T x``."""
    n_components, n_features = atoms.shape
    if len(gram) == 0:
        for feature in range(n_features):
            residual[feature] = x[feature]
        for i in range(k):
            code, atom = z[i], atoms[support[i]]
            for feature in range(n_features):
                residual[feature] -= code * atom[feature]
        for j in range(n_components):
            c[j] = _product(atoms[j], residual)
        return
    for j in range(n_components):
        c[j] = start[j]
    i = 0
    while i + 3 < k:  # four rows at a time: fewer passes over c
        z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
        row0, row1 = gram[support[i]], gram[support[i + 1]]
        row2, row3 = gram[support[i + 2]], gram[support[i + 3]]
        for j in range(n_components):
            c[j] -= z0 * row0[j] + z1 * row1[j] + z2 * row2[j] + z3 * row3[j]
        i += 4
    while i < k:
        z0, row0 = z[i], gram[support[i]]
        for j in range(n_components):
            c[j] -= z0 * row0[j]
        i += 1


def _border(atoms, gram, support, k, inner, factor, dependent):
    """Extend ``inner = G_SS`` and its Cholesky factor by ``support[k]``; return the pivot."""
    new = support[k]
    for i in range(k + 1):
        if len(gram) == 0:
            inner[k, i] = _product(atoms[new], atoms[support[i]])
        else:
            inner[k, i] = gram[new, support[i]]
        inner[i, k] = inner[k, i]
    pivot = inner[k, k]
    for i in range(k):
        entry = (inner[k, i] - _product(factor[k, :i], factor[i, :i])) * factor[i, i]
        factor[k, i] = entry
        pivot -= entry**2
    # An atom that depends on the support takes a long step along the direction that changes nothing
    # but the penalty, up to the first code that reaches zero.
    factor[k, k] = 1 / np.sqrt(max(pivot, 0.1 * dependent * inner[k, k]))
    return pivot


def _remove(out, k, support, z, theta, slope, step, inner, factor):
    """Take entry ``out`` from the support of size ``k``; rotations mend the Cholesky factor."""
    for i in range(out, k - 1):
        support[i], z[i], theta[i] = support[i + 1], z[i + 1], theta[i + 1]
        slope[i], step[i] = slope[i + 1], step[i + 1]
        for j in range(k):
            inner[i, j] = inner[i + 1, j]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for i in range(k - 1):
        for j in range(out, k - 1):
            inner[i, j] = inner[i, j + 1]
    for j in range(out, k - 1):  # rows moved up, so row j has an extra entry in column j + 1
        last = 1 / factor[j, j + 1]
        inverse = 1 / np.sqrt(factor[j, j] ** 2 + last**2)
        cosine, sine = factor[j, j] * inverse, last * inverse
        factor[j, j] = inverse
        for i in range(j + 1, k - 1):
            left, right = factor[i, j], factor[i, j + 1]
            factor[i, j] = cosine * left + sine * right
            factor[i, j + 1] = cosine * right - sine * left


def _newton(k, slope, step, factor):
    """Set ``step = G_SS^{-1} slope``."""
    for i in range(k):
        total = slope[i]
        for j in range(i):
            total -= factor[i, j] * step[j]
        step[i] = total * factor[i, i]
    for i in range(k - 1, -1, -1):
        step[i] *= factor[i, i]
        found = step[i]  # else numba loads it in every turn of the loop
        for j in range(i):
            step[j] -= factor[i, j] * found


def _reach(z, theta, step):
    """Return the share of the step after which the code has lost its sign; 2 for never."""
    if theta * (z + step) > 0:
        return 2.0
    return z / -step if theta * step < 0 else 0.0


def _minimise(k, support, z, theta, slope, step, inner, factor):
    """Minimise over the support; return the size that is left of it."""
    while k > 0:
        _newton(k, slope, step, factor)
        length = 2.0
        for i in range(k):
            length = min(length, _reach(z[i], theta[i], step[i]))
        if length > 1.0:
            for i in range(k):
                z[i] += step[i]
            break
        for i in range(k):
            change = 0.0
            for j in range(k):
                change += inner[i, j] * step[j]
            slope[i] -= length * change
        remaining = k
        for i in range(k - 1, -1, -1):
            stops = _reach(z[i], theta[i], step[i]) <= length
            z[i] += length * step[i]
            if stops:
                _remove(i, remaining, support, z, theta, slope, step, inner, factor)
                remaining -= 1
        k = remaining
    return k


def _peaks(c, positive, peaks, length):
    """Set the largest correlation of every run of atoms; return the largest of all."""
    best = 0.0
    for run in range(len(peaks)):
        peak = 0.0
        for j in range(run * length, min((run + 1) * length, len(c))):
            peak = max(peak, c[j] if positive else abs(c[j]))
        peaks[run] = peak
        best = max(best, peak)
    return best


def _grown(vector):
    larger = np.empty(2 * len(vector), vector.dtype)
    for i in range(len(vector)):
        larger[i] = vector[i]
    return larger


def _grown_square(matrix):
    n = len(matrix)
    larger = np.empty((2 * n, 2 * n))
    for i in range(n):
        for j in range(n):
            larger[i, j] = matrix[i, j]
    return larger


def _admit(
    atoms, gram, c, penalty, positive, peaks, run_length, weakest, tie, n_candidates, dependent,
    k, support, z, theta, slope, inner, factor,
):  # fmt: skip
    """Admit the largest of each run if above ``weakest``; return the size of the support."""
    n_old = k
    for run in range(len(peaks)):
        if peaks[run] < weakest or k == n_old + n_candidates:
            continue
        j = run * run_length
        while (c[j] if positive else abs(c[j])) < (1 - tie) * peaks[run]:
            j += 1
        support[k] = j
        pivot = _border(atoms, gram, support, k, inner, factor, dependent)
        if k == n_old or pivot > dependent * inner[k, k]:
            z[k], theta[k] = 0.0, np.sign(c[j])
            slope[k] = c[j] - penalty * theta[k]
            k += 1
    return k


def _gap(atoms, x, support, z, k, c, penalty, positive, single, residual):
    """Return the gap of `skpudle.lasso.duality_gap`, from known correlations ``c``.

    With ``single`` codes are rounded to float32, except for the dual point.
    """
    largest = 0.0
    for j in range(len(c)):
        largest = max(largest, c[j] if positive else abs(c[j]))
    energy, error, inner, square, size = 0.0, 0.0, 0.0, 0.0, 0.0
    for rounded in range(2 if single else 1):
        for feature in range(len(x)):
            residual[feature] = x[feature]
        size = 0.0
        for i in range(k):
            code, atom = np.float64(np.float32(z[i])) if rounded else z[i], atoms[support[i]]
            size += abs(code)
            for feature in range(len(x)):
                residual[feature] -= code * atom[feature]
        error = _product(residual, residual)
        if not rounded:
            energy, inner, square = _product(x, x), _product(x, residual), error
    multiple = 0.0  # of the residual, the best among the feasible ones
    if inner > 0.0 and square > 0.0:
        best = inner / square  # has no units: products of more data may leave the range
        multiple = best if largest * best <= penalty else penalty / largest
    gap = error / 2 + penalty * size - multiple * (inner - multiple * square / 2)
    if gap <= 0.0:
        return 0.0
    return np.inf if energy == 0.0 else gap / (energy / 2)  # or NaN


def _hide(atoms, mask, seen):
    """Set ``seen`` to the atoms times the mask of a row; return whether anything is missing."""
    missing = False
    for feature in range(len(mask)):
        missing |= mask[feature] == 0.0
    if missing:
        for j in range(len(atoms)):
            for feature in range(len(mask)):
                seen[j, feature] = mask[feature] * atoms[j, feature]
    return missing


def _solve_rows(
    whole_atoms, whole_gram, x, mask, penalties, positive, max_iter, debias, codes, refits, gaps,
    single, rules,
):  # fmt: skip
    """Set ``codes[i]`` to the codes of the rows of ``x`` for each of the falling ``penalties``.

    On entry ``codes[-1]`` holds ``D^T x``. Codes are the lasso's, moved by the share ``debias`` of
    the way to least squares on their supports; ``refits`` gets the least squares codes. ``gaps``
    gets the relative duality gaps of the last penalty. Either may be empty.

    A row with missing entries, which are 0 in ``x``, uses the atoms times its mask and no Gram
    matrix. Its codes have the same bits whatever the other rows are.
    """
    run_length, n_candidates, share, tie, dependent, resolution, rounding, nearly, polishes = rules
    n_components, n_features = whole_atoms.shape
    n_penalties = len(penalties)
    room = 4 * n_candidates
    support = np.empty(room, np.int64)
    z, theta, slope, step = np.empty(room), np.empty(room), np.empty(room), np.empty(room)
    inner, factor = np.empty((room, room)), np.empty((room, room))
    c, residual = np.empty(n_components), np.empty(n_features)
    peaks = np.empty((n_components + run_length - 1) // run_length)
    seen = np.empty((n_components if len(mask) else 0, n_features))
    for row in range(len(x)):
        k = np.int64(0)  # a literal 0 would have every function compiled twice
        start, atoms, gram = codes[n_penalties - 1, row], whole_atoms, whole_gram
        if len(mask) and _hide(whole_atoms, mask[row], seen):
            atoms, gram = seen, whole_gram[:0]
            _correlate(atoms, gram, x[row], start, support, z, k, residual, start)
        for j in range(n_components):
            c[j] = start[j]
        scale = 0.0  # of the correlations: rounding is relative to it
        for p in range(n_penalties):
            penalty, polished = penalties[p], 0
            for _ in range(max_iter):
                if k + n_candidates > room:
                    room *= 2
                    support, z, theta = _grown(support), _grown(z), _grown(theta)
                    slope, step = _grown(slope), _grown(step)
                    inner, factor = _grown_square(inner), _grown_square(factor)
                off, size = 0.0, 0.0
                for i in range(k):
                    slope[i] = c[support[i]] - penalty * theta[i]
                    c[support[i]] = 0.0
                    off = max(off, abs(slope[i]))
                    size += abs(z[i]) * inner[i, i]
                best = _peaks(c, positive, peaks, run_length)
                scale = max(scale, best)
                slack = resolution * penalty + rounding * (scale + size)
                off = max(off, best - penalty)
                if off <= nearly * penalty:
                    polished += 1
                if off <= slack or polished > polishes:
                    for i in range(k):
                        c[support[i]] = slope[i] + penalty * theta[i]
                    break

                weakest = max(penalty + slack, share * best)
                k = _admit(
                    atoms, gram, c, penalty, positive, peaks, run_length, weakest, tie,
                    n_candidates, dependent, k, support, z, theta, slope, inner, factor,
                )  # fmt: skip
                k = _minimise(k, support, z, theta, slope, step, inner, factor)
                _correlate(atoms, gram, x[row], start, support, z, k, residual, c)
            last = p == n_penalties - 1
            if last and len(gaps):
                known = support, z, k, c, penalty, positive, single, residual
                gaps[row] = _gap(atoms, x[row], *known)
            for j in range(n_components):
                codes[p, row, j] = 0.0
            for i in range(k):
                codes[p, row, support[i]] = (1.0 - debias) * z[i]
            if debias == 0.0 and len(refits) == 0:
                continue
            for i in range(k):  # minimise again, without a penalty
                slope[i] = c[support[i]]
            k = _minimise(k, support, z, theta, slope, step, inner, factor)
            for i in range(k):
                codes[p, row, support[i]] += debias * z[i]
            if len(refits):
                for j in range(n_components):
                    refits[p, row, j] = 0.0
                for i in range(k):
                    refits[p, row, support[i]] = z[i]
            if not last:  # the next penalty may start from any codes, so from these
                _correlate(atoms, gram, x[row], start, support, z, k, residual, c)


# A function comes before its callers.
_FUNCTIONS = (_product, _correlate, _border, _remove, _newton, _reach, _minimise, _peaks, _admit,
              _grown, _grown_square, _gap, _hide, _solve_rows)  # fmt: skip


@cache
def solver_of_rows():
    """Return `_solve_rows`, compiled."""
    return compile_together(_FUNCTIONS)["_solve_rows"]


def solve(
    atoms, gram, x, *, penalties, positive, max_iter, mask=None, debias=0.0, out=None, refits=None,
    gaps=None, single=False,
):  # fmt: skip
    """Return codes of the rows of ``x`` for each penalty, as `skpudle.lasso._batched.solve` does.

    All tensors are on the CPU. ``out``, of shape (n_penalties, n_samples, n_components), gets the
    codes; ``refits`` and ``gaps``, if given, get the codes without bias and the relative duality
    gaps of the last penalty. With ``single`` the gaps are for codes rounded to float32. They use
    the correlations of the last round of the solver.
    """
    solve_rows = solver_of_rows()
    out = x.new_empty(len(penalties), len(x), len(atoms)) if out is None else out
    torch.mm(x, atoms.mT, out=out[-1])
    gram = atoms.new_empty(0, 0) if gram is None else gram
    gaps = x.new_empty(0) if gaps is None else gaps
    refits = x.new_empty(0, len(x), len(atoms)) if refits is None else refits
    mask = x.new_empty(0, x.shape[1]) if mask is None else mask
    # the arrays share the memory of the tensors, so codes are solved in place
    given = (np.asarray(t.contiguous()) for t in (atoms, gram, x, mask))
    atoms, gram, data, known = given
    codes, refits, gaps = np.asarray(out), np.asarray(refits), np.asarray(gaps)
    how = np.asarray(penalties, dtype=np.float64), positive, max_iter, debias

    def solve_part(first, last):
        part = slice(first, last)
        results = codes[:, part], refits[:, part], gaps[part]
        solve_rows(atoms, gram, data[part], known[part], *how, *results, single, RULES)

    in_parts(solve_part, len(x), _ROWS_PER_TASK)
    return out


def are_close(atoms, generic, positive, distance):
    """Return whether an atom is zero or not finite, or nearly parallel to another one.

    Products with a generic vector sort parallel atoms next to each other.
    """
    n, n_features = atoms.shape
    keys, norms, length = np.empty(n), np.empty(n), 0.0
    for f in range(n_features):
        length += generic[f] ** 2
    for j in range(n):
        key, square = 0.0, 0.0
        for f in range(n_features):
            key += atoms[j, f] * generic[f]
            square += atoms[j, f] ** 2
        if not 0.0 < square < np.inf:
            return True
        norms[j] = np.sqrt(square)
        keys[j] = (key if positive else abs(key)) / norms[j]
    order = np.argsort(keys)
    for i in range(n):
        one, k = order[i], i + 1
        while k < n and keys[order[k]] - keys[one] <= 2 * distance * np.sqrt(length):
            other, same, opposite = order[k], 0.0, 0.0
            for f in range(n_features):
                left, right = atoms[one, f] / norms[one], atoms[other, f] / norms[other]
                same += (left - right) ** 2
                opposite += (left + right) ** 2
            nearest = same if positive else min(same, opposite)
            if nearest <= (2 * distance) ** 2:  # with a margin for rounding; the caller decides
                return True
            k += 1
    return False


@cache
def _comparison():
    return compile_together((are_close,))["are_close"]


def may_be_parallel(atoms, generic, positive, distance):
    """Return whether an atom is zero, not finite, or maybe parallel to another (float64, CPU)."""
    arrays = (np.asarray(t.contiguous()) for t in (atoms, generic))
    return _comparison()(*arrays, bool(positive), distance)
