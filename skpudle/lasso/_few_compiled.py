"""What is asked about atoms and about the codes of a few rows, compiled by numba.

A solver of one row takes less time than thirty calls of torch. The functions are plain Python until
`_compiled` compiles them.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from skpudle._compilation import compile_together

__all__ = ["gaps_of_few", "may_be_parallel"]


def are_close(atoms, generic, positive, tolerance):
    """Return whether an atom is zero, or may be parallel to another one.

    Parallel atoms are next to each other in the order of their products with a generic vector.
    """
    keys = np.empty(len(atoms))
    for j in range(len(atoms)):
        key, square = 0.0, 0.0
        for f in range(len(generic)):
            key += atoms[j, f] * generic[f]
            square += atoms[j, f] ** 2
        if not square > 0.0:
            return True
        keys[j] = (key if positive else abs(key)) / np.sqrt(square)
    keys.sort()
    closest = np.inf
    for j in range(len(keys) - 1):
        closest = min(closest, keys[j + 1] - keys[j])
    return closest <= tolerance


def find_gaps(atoms, x, codes, dual_codes, alpha, positive, gaps):
    """Set the gaps that `skpudle.lasso.duality_gap` returns; alpha is a vector, often of one."""
    n_features = x.shape[1]
    residual, dual = np.empty(n_features), np.empty(n_features)
    for row in range(len(x)):
        for f in range(n_features):
            residual[f] = dual[f] = x[row, f]
        penalty, negative = 0.0, False
        for j in range(len(atoms)):
            z, better = codes[row, j], dual_codes[row, j]
            if z != 0.0 or better != 0.0:
                penalty += alpha[j % len(alpha)] * abs(z)
                negative = negative or z < 0.0
                for f in range(n_features):
                    residual[f] -= z * atoms[j, f]
                    dual[f] -= better * atoms[j, f]
        largest = 0.0  # what the residual exceeds alpha by
        for j in range(len(atoms)):
            correlation = 0.0
            for f in range(n_features):
                correlation += atoms[j, f] * dual[f]
            correlation = (correlation if positive else abs(correlation)) / alpha[j % len(alpha)]
            largest = max(largest, correlation)
        error, energy, inner, square = 0.0, 0.0, 0.0, 0.0
        for f in range(n_features):
            error += residual[f] * residual[f]
            energy += x[row, f] * x[row, f]
            inner += x[row, f] * dual[f]
            square += dual[f] * dual[f]
        multiple = 0.0  # of the residual, the best among the feasible ones
        if inner > 0.0 and square > 0.0:
            multiple = inner / square if largest * inner <= square else 1 / largest
        gap = error / 2 + penalty - multiple * (inner - multiple * square / 2)
        if positive and negative:
            gap = np.inf
        if gap <= 0.0:
            gap = 0.0
        elif energy == 0.0:
            gap = np.inf
        else:  # or NaN
            gap /= energy / 2
        gaps[row] = gap


@cache
def _compiled():
    return SimpleNamespace(**compile_together((are_close, find_gaps)))


def may_be_parallel(atoms, generic, positive, tolerance):
    """Return whether an atom is zero or may be parallel to another one, in float64 on the CPU."""
    arrays = (np.asarray(t.contiguous()) for t in (atoms, generic))
    return _compiled().are_close(*arrays, bool(positive), tolerance)


def gaps_of_few(atoms, x, codes, dual_codes, alpha, positive):  # -> (n_samples,)
    """Return what `skpudle.lasso.duality_gap` does, in float64 on the CPU."""
    gaps = x.new_empty(len(x))
    tensors = atoms, x, codes, codes if dual_codes is None else dual_codes, alpha.reshape(-1)
    arrays = (np.asarray(t.double().contiguous()) for t in tensors)
    _compiled().find_gaps(*arrays, bool(positive), np.asarray(gaps))
    return gaps
