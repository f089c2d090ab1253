"""Whether atoms are parallel, compiled by numba: ten calls of torch take longer than one row.

`are_close` is plain Python until `_compiled` compiles it.
"""

from functools import cache

import numpy as np

from skpudle._compilation import compile_together

__all__ = ["may_be_parallel"]


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


@cache
def _compiled():
    return compile_together((are_close,))["are_close"]


def may_be_parallel(atoms, generic, positive, tolerance):
    """Return whether an atom is zero or may be parallel to another one, in float64 on the CPU."""
    arrays = (np.asarray(t.contiguous()) for t in (atoms, generic))
    return _compiled()(*arrays, bool(positive), tolerance)
