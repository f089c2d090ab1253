"""Coordinate descent for non-negative Poisson regressions, compiled by numba.

A regression explains the counts x of one row by its codes z, not negative, times fixed atoms a. The
rate mu of a count is the sum over atoms of code times entry of the atom. The load of a code is its
factor in the objective: the share of its atom's events that fall on known entries of the row.

`skpudle._nmf.alternate` calls ``loops.solve_rows`` for many rows. The functions are plain Python
until `loops` compiles them. Compiled functions release the GIL: each thread calls ``solve_rows``
for rows of its own, from ``first`` to ``last - 1``, and writes to these rows only.
"""

import numpy as np

from skpudle._compilation import Loops


def _slope(n, x, column, base, z):
    """Return ``g = sum_t x_t a_t / (base_t + a_t z)`` and minus its derivative, for `_move`.

    ``g``, less the load of the code, is the derivative of the log-likelihood of the first ``n``
    counts ``x`` in the code ``z`` of one atom. ``column`` has the atom's entries a at these counts,
    and ``base`` the rates by all other atoms; the three arrays have ``n`` or more entries.
    """
    g, h = 0.0, 0.0
    for t in range(n):
        # 1e-140 keeps the square of the quotient finite, also when multiplied by counts
        part = column[t] / max(base[t] + column[t] * z, 1e-140)
        g += x[t] * part
        h += x[t] * part * part
    return g, h


def _move(n, x, column, base, load, z):
    """Minimise ``load z - sum_t x_t log(base_t + a_t z)`` over one code ``z >= 0``.

    Arguments are those of `_slope`, the load, and the ``z`` to start from. Return the minimiser,
    and ``g`` of `_slope` at the start.

    The derivative is ``load - g(z)``, where ``1 / g`` is concave. So Newton's method for ``1 / g(z)
    = 1 / load`` increases monotonically towards the minimiser from below, and is exact for a single
    term. A step downwards can be too long; the next step then goes up again. Events that only this
    atom can explain (base 0) make ``g`` huge at ``z = 0``, and the step from there goes to about
    their number divided by the load.
    """
    g, h = _slope(n, x, column, base, z)
    first = g
    for _ in range(20):
        if h <= 0:
            return 0.0, first
        before = z
        z = max(z + g / h * (g / load - 1), 0.0)
        if abs(z - before) <= 0.03 * before:
            break
        g, h = _slope(n, x, column, base, z)
    return z, first


def solve_rows(first, last, start, index, value, atoms, loads, prior, sweeps, tol, z, explained):
    """Solve the regressions of rows ``first`` to ``last - 1``; ``last`` is above ``first``.

    The codes ``z_i >= 0`` of row i minimise ``loads_i z_i - sum_j x_ij log(z_i a_j) - prior_i sum_k
    log z_ik``.

    ``value[start[i]:start[i + 1]]`` are the nonzero counts x of row ``i``, and ``index`` their
    columns. ``atoms``, (n_features, n_components), is the transpose of the atoms. ``loads`` and the
    codes ``z``, which change in place, have the shape (n, n_components). ``prior``, (n,), has
    pseudo-events of each code of a row. ``explained``, (n,), is filled with ``sum_j x_ij log(z_i
    a_j)``.

    A row gets at most ``sweeps`` sweeps over its codes; with 0 sweeps codes stay as they are. The
    sweeps end earlier if a bound on the row's distance from its minimum, the duality gap, is at
    most ``tol``. If codes ``z`` explain all ``n`` events of the row, so that ``loads z = n``, then
    any codes ``y`` satisfy by Jensen's inequality, with the slopes ``g`` at ``z``, ``sum_j x_j
    log(y a_j / z a_j) <= n log(sum_k y_k g_k / n) <= n log(max_k g_k / load_k)``.
    """
    n_components, longest = z.shape[1], np.diff(start[first : last + 1]).max()
    columns, mu = np.empty((n_components, longest + 1)), np.empty(longest)
    x, base = np.empty(longest + 1), np.empty(longest + 1)
    for i in range(first, last):
        n = start[i + 1] - start[i]
        x[:n] = value[start[i] : start[i + 1]]
        # The prior is one more count, of prior[i] events that only the present atom can explain.
        x[n], base[n], columns[:, n] = prior[i], 0.0, 1.0
        n_terms = n + (prior[i] > 0)
        for t in range(n):
            entry = index[start[i] + t]
            mu[t] = 0.0
            for k in range(n_components):
                columns[k, t] = atoms[entry, k]
                mu[t] += z[i, k] * atoms[entry, k]
        n_events = x[:n].sum()
        for _ in range(sweeps):
            largest = 0.0
            for k in range(n_components):
                column, load, old = columns[k], loads[i, k], z[i, k]
                if load <= 0:  # the atom is not allowed, or 0 in all known entries of the row
                    continue
                # The rest, the rate by other atoms, is 0 if it is a rounding error: then only this
                # atom can explain the events, and its code must not become 0.
                for t in range(n):
                    rest = mu[t] - column[t] * old
                    base[t] = rest if rest > 1e-13 * mu[t] else 0.0
                new, slope = _move(n_terms, x, column, base, load, old)
                largest = max(largest, slope / load)
                if new != old:
                    z[i, k] = new
                    for t in range(n):
                        mu[t] = base[t] + column[t] * new
            if n_events * (largest - 1) <= tol:
                break
        total = 0.0
        for t in range(n):
            # an event at a rate of 0 is impossible: -1e30 stands for minus infinity
            total += x[t] * (np.log(mu[t]) if mu[t] > 0 else -1e30)
        explained[i] = total


loops = Loops(globals())
