"""Compile functions by numba on first use, and choose the number of threads by the work.

`Loops` compiles the functions of a module. `threads_for` sets the number of threads of torch, and
`in_parts` runs compiled loops on several threads. `blocks_of_rows` bounds memory. `import_extra`
imports packages that are no requirements.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from inspect import isfunction
from math import prod

import torch
from threadpoolctl import ThreadpoolController

# Numbers in memory at a time where blocks serve only to limit the memory: 8 MiB in float64.
BLOCK = 2**20


class _Thread(threading.local):
    allowed = None  # the number of torch's threads before the outermost block of `threads_for`


_thread = _Thread()


def import_extra(extra, name):
    """Return the module ``name``; raise ImportError that names the package's extra without it."""
    try:
        return import_module(name)
    except ImportError as error:
        words = f"{name} cannot be imported. Install it with `pip install skpudle[{extra}]`."
        raise ImportError(words) from error


def blocks_of_rows(n_rows, n_entries, most=BLOCK):
    """Yield slices of successive rows, with at most ``most`` entries in each slice.

    A row has ``n_entries`` entries. A slice has at least one row; without rows there is one slice,
    which is empty.
    """
    length = max(1, most // max(1, n_entries))
    for first in range(0, max(n_rows, 1), length):
        yield slice(first, min(first + length, n_rows))


def entries_of_block():
    """Return the number of codes in a block: torch multiplies a block, then loops solve it.

    On one thread a block stays in the cache of the core: 4 MiB in float64. On several threads
    blocks are larger, because torch's threads keep their cores for some milliseconds after each
    product. On two cores 16,000 samples with 256 atoms take 83 ms in blocks of 2**20 codes, and 61
    ms in a single block of 2**22.
    """
    return 2**19 if (_thread.allowed or torch.get_num_threads()) == 1 else 2**22


@contextmanager
def threads_for(atoms=None, x=None, stride=1):
    """Let torch use all allowed threads if a product of data with atoms has enough work for them.

    Otherwise, and without data, torch uses one thread. Blocks may be nested: an inner ``with``
    block chooses anew, and the end of each block restores the earlier number. The number belongs to
    the calling thread. A new thread that calls torch for the first time while a block is open in
    another thread begins with the number of that block.

    Parameters
    ----------
    atoms : Tensor of shape (..., n_components, n_channels, *kernel)
        Atoms.
    x : Tensor of shape (n_samples, n_channels, *size)
        Data.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions along each axis.
    """
    work = 0
    if x is not None:
        n_components, _, *kernel = atoms.shape[-x.ndim :]
        n_skipped = prod(stride) if isinstance(stride, tuple) else stride ** len(kernel)
        work = x.numel() * n_components * prod(kernel) // n_skipped
    outer, before = _thread.allowed, torch.get_num_threads()
    _thread.allowed = outer or before
    # A second thread pays from 1e7 multiplications in a product on: 1.7e7 take 304 us on one core
    # and 172 us on two. In smaller problems entrywise calls gain no time either, and on busy cores
    # a call on two threads may have to wait for a time slice of about 3 ms.
    n_threads = _thread.allowed if work >= 1e7 else 1
    try:
        torch.set_num_threads(n_threads)
        yield
    finally:
        torch.set_num_threads(before)
        _thread.allowed = outer


@cache
def _watch_compilation():
    """Log one line when numba first compiles a function of this package, instead of loading it."""
    from numba.core import event

    class Watch(event.Listener):
        said = False

        def on_start(self, event):
            is_own = event.data["dispatcher"].py_func.__module__.startswith("skpudle.")
            if is_own and not self.said:
                self.said = True
                logging.getLogger("skpudle").warning(
                    "skpudle compiles its loops, once on this machine: the first calls take some "
                    "seconds more. If each process says so, no folder could keep them: set "
                    "NUMBA_CACHE_DIR to a writable one."
                )

        def on_end(self, event):
            """Do nothing."""

    event.register("numba:compile", Watch())


class Loops:
    """The functions that a module has defined so far, compiled when one of them is first used.

    ``loops.name`` is the compiled function ``name``. Compiled functions call each other and release
    the GIL. Division by zero gives infinity or NaN and does not raise. The result is kept on the
    disk, and a later process loads it if the file of the module has not changed. So functions must
    take constants of other files as arguments. Functions whose names begin with an underscore can
    be called by compiled functions only.

    Parameters
    ----------
    module : dict
        The namespace of the module, ``globals()``, with functions in plain Python. A function must
        come before its callers.
    """

    def __init__(self, module):
        self._module, name = module, module["__name__"]
        self._functions = [f for f in module.values() if isfunction(f) and f.__module__ == name]

    def __getattr__(self, name):
        if name not in {function.__name__ for function in self._functions}:
            raise AttributeError(name)
        import numba

        _watch_compilation()
        # Without numba's option parallel: numba's threads abort the process if two Python threads
        # use them. With forceinline: otherwise a process that compiles and a process that loads
        # from the cache call different copies of the functions, and add up in different orders.
        # With error_model="numpy", without checks for division by zero, the lasso takes 0.88 of the
        # time.
        options = dict(nogil=True, forceinline=True, error_model="numpy", no_cfunc_wrapper=True)
        options["fastmath"] = {"reassoc", "contract", "nsz", "arcp"}
        for function in self._functions:
            # The wrapper through which Python calls a function takes a tenth of the time of
            # compilation, so functions with an underscore have none.
            options["no_cpython_wrapper"] = function.__name__.startswith("_")
            try:
                result = numba.njit(cache=True, **options)(function)
            except RuntimeError:  # no folder for the cache is writable
                result = numba.njit(**options)(function)
            # numba looks up the functions that a function calls in the namespace of its module
            self._module[function.__name__] = result
            setattr(self, function.__name__, result)
        return vars(self)[name]


def in_parts(function, n, least):
    """Cut the range from 0 to ``n`` into parts, and call a function for each, in threads.

    Parameters
    ----------
    function : callable
        ``function(first, last)`` works on the part from ``first`` to ``last - 1``. It should
        release the GIL, and must write to memory that no other part writes to.
    n : int
        Length of the range.
    least : int
        Least length of a part, below which a thread would not pay.
    """
    n_threads = _thread.allowed or torch.get_num_threads()
    length = max(least, -(-n // (8 * n_threads)))
    parts = [(first, min(first + length, n)) for first in range(0, n, length)]
    if min(n_threads, len(parts)) < 2:
        for part in parts:
            function(*part)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda part: function(*part), parts))  # raises the errors of parts


class SharedSetting:
    """A setting of the process that is changed while any ``with`` block of this object is open.

    Blocks may be nested, and open in several threads. The block that ends last restores the setting
    from before the first.

    Parameters
    ----------
    change : callable
        Changes the setting, and returns a callable that restores it.
    """

    def __init__(self, change):
        self._change, self._lock, self._n_blocks = change, threading.Lock(), 0

    def __enter__(self):
        with self._lock:
            if not self._n_blocks:
                self._restore = self._change()
            self._n_blocks += 1

    def __exit__(self, *error):
        with self._lock:
            self._n_blocks -= 1
            if not self._n_blocks:
                self._restore()


_controller = cache(ThreadpoolController)

# In a block of this setting each product of NumPy runs on one thread, and `in_parts` runs several
# products at once. So the bits of a product do not depend on the number of threads, and threads of
# a BLAS do not wait for each other.
one_blas_thread = SharedSetting(
    lambda: _controller().limit(limits=1, user_api="blas").restore_original_limits
)
