"""Whether atoms are parallel, compiled by numba: ten calls of torch take longer than one row.

`are_close` is plain Python until `_compiled` compiles it.
"""

from functools import cache

import numpy as np

from skpudle._compilation import compile_together

__all__ = ["may_be_parallel"]


def are_close(atoms, generic, positive, distance):
    """Return whether an atom is zero or not finite, or nearly parallel to another one.

    Parallel atoms are next to each other in the order of their products with a generic vector.
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
            if nearest <= (2 * distance) ** 2:  # who asks decides what is beside rounding
                return True
            k += 1
    return False


@cache
def _compiled():
    return compile_together((are_close,))["are_close"]


def may_be_parallel(atoms, generic, positive, distance):
    """Return whether an atom is none or may be parallel to another one, in float64 on the CPU."""
    arrays = (np.asarray(t.contiguous()) for t in (atoms, generic))
    return _compiled()(*arrays, bool(positive), distance)
