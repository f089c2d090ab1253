"""Functions that numba compiles when they are first used, and threads that share their work."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["are_few", "compile_together", "entries_of_block", "in_parts"]

# Multiplications of a product of data and atoms below which compiled loops take less time than the
# calls of torch around it: 0.4 to 0.8 at 16 to 64 rows of 64 x 16 or 100 x 64 atoms in float64 and
# float32 (a tenth at a tenth of it). With one row they always do, where memory is the limit: 0.5 to
# 0.6 with 1500 x 1000 atoms.
_MOST_WORK_OF_FEW = 2**16


def are_few(x, atoms):
    """Return whether rows of data are so few that compiled loops are faster than torch.

    Parameters
    ----------
    x, atoms : Tensor of shape (n_samples, n_features), (n_components, n_features)
        Data and atoms, detached or not.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return len(x) == 1 or len(x) * atoms.numel() <= _MOST_WORK_OF_FEW


def entries_of_block():
    """Return how many codes `in_parts` is to begin with after a product of torch.

    Few stay in the cache of a processor core: 4 MiB in float64. But torch's threads wait for the
    next product for some milliseconds, in the way of others: 16,000 samples and 256 atoms take 83
    ms in blocks of 2**20 on two cores, and 61 ms in one of 2**22.
    """
    return 2**19 if torch.get_num_threads() == 1 else 2**22


def compile_together(functions):
    """Compile functions of a module, which then call each other compiled.

    The result is kept on disk. A later process loads it without a compilation if the file of the
    module has not changed; what a function needs from other files is an argument, therefore.

    Parameters
    ----------
    functions : iterable of callable
        Plain Python, those first that others call.

    Returns
    -------
    dict of str to callable
        The compiled functions, by name. They release the GIL.
    """
    import numba

    # Not parallel: numba's own threads abort the process when two Python threads use them.
    # Inlined: else a process that compiles calls other copies of the functions than one that loads
    # from the cache, and sums in another order.
    options = dict(nogil=True, forceinline=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
    compiled = {}
    for function in functions:
        try:
            result = numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache is writable
            result = numba.njit(**options)(function)
        # numba looks up the functions that a function calls in the namespace of its module
        function.__globals__[function.__name__] = compiled[function.__name__] = result
    return compiled


def in_parts(function, n, least):
    """Call a function for all parts of a range, on as many threads as torch uses.

    Parameters
    ----------
    function : callable
        Called with the first member of a part and the one after its last. It releases the GIL, and
        writes to nothing that another part writes to.
    n : int
        Length of the range.
    least : int
        Length of the shortest part for which a thread does not cost more than it saves.
    """
    n_threads = torch.get_num_threads()
    length = max(least, -(-n // (8 * n_threads)))
    parts = deque((first, min(first + length, n)) for first in range(0, n, length))

    def work():
        while parts:
            try:
                part = parts.popleft()
            except IndexError:  # another thread was faster
                return
            function(*part)

    n_helpers = min(n_threads, len(parts)) - 1
    if n_helpers < 1:
        work()
        return
    with ThreadPoolExecutor(n_helpers) as pool:
        helpers = [pool.submit(work) for _ in range(n_helpers)]
        work()
        for helper in helpers:
            helper.result()  # raises what a part raised
