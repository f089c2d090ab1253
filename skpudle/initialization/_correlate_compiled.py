"""Products of samples with atoms, compiled by numba: the same bits on any number of threads.

The functions are plain Python until `correlate` compiles them. On one core they take 1.3 to 2 times
as long as a BLAS, whose threads would wait for each other many times an epoch.
"""

from functools import cache

from skpudle._compilation import compile_together

__all__ = ["correlate"]


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


def _correlate(first, last, x, transposed, c):
    """Set the rows ``first:last`` of ``c = X D^T``."""
    n_features, n_components = transposed.shape
    if n_components <= 16:  # too short to loop over: atom by atom takes a fifth to a half of it
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


# Those that others call come first.
_FUNCTIONS = _correlate_one, _correlate_four, _correlate


@cache
def _compiled():
    return compile_together(_FUNCTIONS)["_correlate"]


def correlate(first, last, x, transposed, c):  # arrays (n, m), (m, p), (n, p)
    """Set the rows ``first:last`` of ``c = X D^T``, where ``transposed`` is ``D^T``."""
    _compiled()(first, last, x, transposed, c)
