"""Compile functions by numba on first use, and choose the number of threads by the work."""

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from inspect import isfunction
from math import prod

import torch
from threadpoolctl import ThreadpoolController

# Entries in memory at a time, where the number only bounds the memory: 8 MiB in float64.
BLOCK = 2**20


class _Thread(threading.local):
    allowed = None  # the number of torch's threads before the outermost block of `threads_for`


_thread = _Thread()


def blocks_of_rows(n_rows, n_entries, most=BLOCK):
    """Yield slices of successive rows of ``n_entries`` entries each, at most ``most`` in all.

    A slice has at least one row. The only slice of no rows is empty.
    """
    length = max(1, most // max(1, n_entries))
    for first in range(0, max(n_rows, 1), length):
        yield slice(first, min(first + length, n_rows))


def entries_of_block():
    """Return the number of codes in a block, which torch multiplies and `in_parts` then solves.

    On one thread a block stays in the cache of the core: 4 MiB in float64. On several threads it is
    larger, because torch's threads keep their cores for some milliseconds after a product: on two
    cores 16,000 samples and 256 atoms take 83 ms in blocks of 2**20, and 61 ms in one of 2**22.
    """
    n_threads = _thread.allowed or torch.get_num_threads()
    return 2**19 if n_threads == 1 else 2**22


@contextmanager
def threads_for(atoms=None, x=None, stride=1):
    """Let torch use all allowed threads if a product of data with atoms has enough work for them.

    Otherwise, and without data, torch uses one thread. An inner block decides anew; the end of a
    block restores the earlier number. The number belongs to the calling thread; a new thread that
    first calls torch while a block is open in another thread begins with the number of that block.

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
    # So many multiplications in a call of torch pay for a second thread: 1.7e7 take 304 us on one
    # core and 172 on two. Entrywise calls of smaller problems gain no time, and on busy cores a
    # call on two threads may lose a time slice of some 3 ms.
    n_threads = _thread.allowed if work >= 1e7 else 1
    try:
        if n_threads != before:
            torch.set_num_threads(n_threads)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        _thread.allowed = outer


@cache
def _watch_compilation():
    """Log one line when the first function is compiled, not loaded from the cache.

    The garbage collector pauses meanwhile: it would walk through all objects of torch and numba,
    and free next to nothing, in a seventh of the time of the first fit.
    """
    from numba.core import event

    class Watch(event.Listener):  # numba compiles in one thread at a time
        said, pauses = False, []

        def on_start(self, event):
            is_own = event.data["dispatcher"].py_func.__module__.startswith("skpudle.")
            self.pauses.append(is_own and gc.isenabled())
            if self.pauses[-1]:
                gc.disable()
            if is_own and not self.said:
                self.said = True
                logging.getLogger("skpudle").warning(
                    "skpudle compiles its loops, once on this machine: the first calls take some "
                    "seconds more. If each process says so, no folder could keep them: set "
                    "NUMBA_CACHE_DIR to a writable one."
                )

        def on_end(self, event):
            if self.pauses.pop():
                gc.enable()

    event.register("numba:compile", Watch())


class Loops:
    """The functions that a module has defined so far, compiled when one is first used.

    They call each other compiled, and release the GIL. The disk keeps the result, and a later
    process loads it if the file of the module has not changed. So functions must take constants of
    other files as arguments. Python must not call those whose names begin with an underscore.

    Parameters
    ----------
    module : dict
        Its namespace, with functions in plain Python; a function comes before its callers. Division
        by zero does not raise.
    """

    def __init__(self, module):
        self._module, name = module, module["__name__"]
        self._functions = [f for f in module.values() if isfunction(f) and f.__module__ == name]

    def __getattr__(self, name):
        if name not in {function.__name__ for function in self._functions}:
            raise AttributeError(name)
        import numba

        _watch_compilation()
        # Not parallel: numba's own threads abort the process when two Python threads use them.
        # Inlined: otherwise a process that compiles and a process that loads from the cache call
        # different copies of the functions, and sum in different orders. Without errors of division
        # (``error_model``) the lasso takes 0.88 of the time.
        options = dict(nogil=True, forceinline=True, error_model="numpy", no_cfunc_wrapper=True)
        options["fastmath"] = {"reassoc", "contract", "nsz", "arcp"}
        for function in self._functions:
            # a door for Python takes a tenth of the time to compile a function
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
    """Call a function for all parts of a range, on all allowed threads.

    Parameters
    ----------
    function : callable
        Called with the first member of a part and the one after its last. It releases the GIL, and
        parts write to separate memory.
    n : int
        Length of the range.
    least : int
        Length of the shortest part that is worth a thread.
    """
    n_threads = _thread.allowed or torch.get_num_threads()
    length = max(least, -(-n // (8 * n_threads)))
    parts = [(first, min(first + length, n)) for first in range(0, n, length)]
    if min(n_threads, len(parts)) < 2:
        for part in parts:
            function(*part)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for part in [pool.submit(function, *part) for part in parts]:
            part.result()  # re-raises an error


class SharedSetting:
    """A setting of the process that differs while at least one block is open, in any thread.

    Blocks may be nested. The last one that ends restores the setting from before the first.

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

# NumPy's products take one thread each, for `in_parts` to share them among threads. A product then
# has the same bits on any number of threads, and threads of a BLAS do not wait for each other.
one_blas_thread = SharedSetting(
    lambda: _controller().limit(limits=1, user_api="blas").restore_original_limits
)
