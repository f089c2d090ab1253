"""Functions of plain Python as machine code, by numba where it is installed.

Modules whose names end in ``_compiled`` are written as loops over numbers, on arrays that share the
memory of tensors on the CPU. They are compiled when they are first needed, which takes seconds
once: numba keeps the result in a folder where it can.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

__all__ = ["compile_in", "in_slices", "numba_is_installed"]


@cache
def numba_is_installed():
    """Return whether numba can be imported."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def compile_in(namespace, functions):
    """Replace functions of a module, ``globals()``, by compiled ones; return the last.

    Those that others call come first. Raises ImportError without numba.
    """
    import numba

    # Not parallel: numba's own threads abort the process when two Python threads use them.
    options = dict(nogil=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
    for function in functions:
        # numba looks up the functions that a function calls in the namespace of its module
        try:
            compiled = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache is writable
            compiled = numba.njit(**options)(function)
        namespace[function.__name__] = compiled
    return compiled


def in_slices(task, n_rows, least):
    """Call ``task(first, stop)`` for slices of the rows, on as many threads as torch has.

    No slice but the last has fewer than ``least`` rows: below, a thread costs more than it saves.
    """
    n_threads = torch.get_num_threads()
    length = max(least, n_rows // (8 * n_threads))
    bounds = [(first, min(first + length, n_rows)) for first in range(0, n_rows, length)]
    if n_threads == 1 or len(bounds) == 1:
        for first, stop in bounds:
            task(first, stop)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(task, *zip(*bounds, strict=True)))  # the list raises what a slice raised
