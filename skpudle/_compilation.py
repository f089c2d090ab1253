"""Compile functions by numba on first use, and choose the number of threads by the work.

`Loops` compiles the functions of a module. `threads_for` sets the number of threads of torch, and
`in_parts` runs compiled loops on several threads. `blocks_of_rows` bounds memory. `import_extra`
imports optional packages. `SharedSetting` changes a setting of the process for a while.
"""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from inspect import isfunction
from math import prod
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController

# Default limit of the numbers that `blocks_of_rows` lets a block take: 8 MiB in float64.
BLOCK = 2**20


class _Thread(threading.local):
    # torch's number of threads before the outermost `with threads_for` of this thread: the number
    # that the user allows; None outside of such a block
    allowed = None


_thread = _Thread()


def import_extra(extra, name):
    """Import and return the optional module ``name``.

    Raise ImportError, with the ``extra`` of skpudle that installs it, if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} cannot be imported. Install it with `pip install skpudle[{extra}]`."
        ) from error


def blocks_of_rows(n_rows, n_entries, most=BLOCK):
    """Cut rows into blocks, to bound the memory for intermediate results; yield slices of rows.

    A row takes ``n_entries`` numbers of memory, and a block at most ``most`` numbers, but each
    block has at least one row. Without rows there is one empty block, so that callers get results
    of the right shape.
    """
    length = max(1, most // max(1, n_entries))
    for first in range(0, max(n_rows, 1), length):
        yield slice(first, min(first + length, n_rows))


def entries_of_block():
    """Return how many codes (samples times atoms) a solver on the CPU computes at a time.

    Torch multiplies the block by the atoms, then compiled loops solve for its codes. On one thread
    a block stays in the cache of the core: 4 MiB in float64. On several threads blocks are larger,
    because torch's threads keep their cores busy for some milliseconds after each product. On two
    cores 16,000 samples with 256 atoms take 83 ms in blocks of 2**20 codes, and 61 ms in a single
    block of 2**22.
    """
    return 2**19 if (_thread.allowed or torch.get_num_threads()) == 1 else 2**22


@contextmanager
def threads_for(atoms=None, x=None, stride=1):
    """Choose torch's number of threads in a ``with`` block by the size of the data and the atoms.

    Torch uses all threads that the user allows if a product of data and atoms has enough work for
    them; otherwise, and without data, torch uses one thread. Blocks may be nested: an inner block
    chooses anew, and the end of each block restores the number before it. The number belongs to the
    calling thread. But a new thread that calls torch for the first time while a block is open in
    another thread begins with the number of that block.

    Parameters
    ----------
    atoms : Tensor of shape (..., n_components, n_channels, *kernel)
        Atoms.
    x : Tensor of shape (n_samples, n_channels, *size)
        Data. For rows of features ``n_channels`` is the number of features, and there are no axes
        *size* and *kernel*.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions along each axis, for convolutions.
    """
    work = 0
    if x is not None:
        n_components, _, *kernel = atoms.shape[-x.ndim :]
        # one of `n_skipped` positions has codes; the kernel has one axis for each axis of positions
        n_skipped = prod(stride) if isinstance(stride, tuple) else stride ** len(kernel)
        work = x.numel() * n_components * prod(kernel) // n_skipped
    outer = _thread.allowed
    before = torch.get_num_threads()
    _thread.allowed = outer or before
    # With less than 1e7 multiplications in a product a second thread saves no time; 1.7e7 take 304
    # us on one core and 172 us on two. Entrywise functions of the smaller tensors gain no time
    # either, and on busy cores a call on two threads may wait for a time slice of about 3 ms.
    n_threads = _thread.allowed if work >= 1e7 else 1
    try:
        torch.set_num_threads(n_threads)
        yield
    finally:
        torch.set_num_threads(before)
        _thread.allowed = outer


def _is_announced():
    """Return whether compilation was announced on this machine before, and note that it is.

    The note is an empty file with the version in its name, in the folder where numba keeps the
    machine code of this module. Without a writable folder each process compiles, and announces it.
    """
    from numba.core.caching import FunctionCache

    try:
        folder = Path(FunctionCache(_is_announced).cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"announced-{version('skpudle')}").touch(exist_ok=False)
    except FileExistsError:
        return True
    except (OSError, RuntimeError):  # numba raises RuntimeError if it finds no folder
        return False
    return False


@cache
def _watch_compilation():
    """Tell users why a first call takes long: log a line when numba first compiles a function.

    Only functions of this package count, and not those that numba loads from its cache. The line
    appears once for each version on a machine, in the first process that compiles.
    """
    from numba.core import event

    class Watch(event.Listener):
        was_told = False

        def on_start(self, event):  # numba calls it before it compiles a function
            module = event.data["dispatcher"].py_func.__module__
            if module.startswith("skpudle.") and not self.was_told:
                self.was_told = True
                if _is_announced():
                    return
                logging.getLogger("skpudle").warning(
                    "skpudle compiles its loops at the first use of each kind of learner on this "
                    "machine, which takes some seconds. If each process says so, no folder could "
                    "keep them: set NUMBA_CACHE_DIR to a writable one."
                )

        def on_end(self, event):
            """Do nothing: numba requires this method."""

    event.register("numba:compile", Watch())


class Loops:
    """Compiled versions of the functions that a module has defined before ``Loops(globals())``.

    ``loops.name`` is the compiled function ``name``; numba is imported and the functions are
    compiled when one of them is first used. Compiled functions call each other and release the GIL.
    Division by zero gives infinity or NaN and does not raise. Machine code is kept on the disk, and
    a later process loads it if the file of the module has not changed. So a function must not use
    constants that other files define, since their changes would go unnoticed: pass them as
    arguments. Functions whose names begin with an underscore can be called by compiled functions
    only.

    Parameters
    ----------
    module : dict
        The namespace of the module, ``globals()``, with functions in plain Python. A function must
        come before its callers.
    """

    def __init__(self, module):
        self._module = module
        name = module["__name__"]
        functions = filter(isfunction, module.values())
        self._functions = [f for f in functions if f.__module__ == name]

    # Python calls it for the first function that is used. It compiles all functions of the module
    # and sets them as attributes, so that later uses do not call it.
    def __getattr__(self, name):
        if name not in {function.__name__ for function in self._functions}:
            raise AttributeError(name)
        import numba

        _watch_compilation()
        # `parallel` stays off, because numba's threads abort the process if two Python threads use
        # them. Without `forceinline` a process that compiles and a process that loads from the
        # cache call different copies of the functions, which add up in different orders, and
        # results differ. error_model="numpy" leaves out checks for division by zero; the lasso then
        # takes 12 % less time.
        compile_ = partial(
            numba.njit,
            nogil=True,
            forceinline=True,
            error_model="numpy",
            no_cfunc_wrapper=True,
            fastmath={"reassoc", "contract", "nsz", "arcp"},
        )
        for function in self._functions:
            # The wrapper through which Python calls a function takes a tenth of the time of
            # compilation, so functions with an underscore, which Python does not call, have none.
            is_private = function.__name__.startswith("_")
            try:
                result = compile_(function, cache=True, no_cpython_wrapper=is_private)
            except RuntimeError:  # numba finds no writable folder for its cache
                result = compile_(function, no_cpython_wrapper=is_private)
            # Numba finds the functions that a function calls in the namespace of the module, so
            # compiled functions have to replace the plain ones there.
            self._module[function.__name__] = result
            setattr(self, function.__name__, result)
        return vars(self)[name]


def in_parts(function, n, least):
    """Run a function over ``n`` rows on several threads, each with some successive rows at a time.

    The number of threads decides where rows are cut, so results must not depend on the cuts. Errors
    of ``function`` are raised.

    Parameters
    ----------
    function : callable
        ``function(first, last)`` works on the rows from ``first`` to ``last - 1``. It should
        release the GIL, and must write to memory that no other call writes to.
    n : int
        Number of rows.
    least : int
        Least number of rows in a part. With fewer rows a thread would cost more time than it saves.
    """
    n_threads = _thread.allowed or torch.get_num_threads()
    # about 8 parts for each thread: a thread that is done early takes another part
    length = max(least, -(-n // (8 * n_threads)))
    starts = range(0, n, length)
    ends = [min(first + length, n) for first in starts]
    if min(n_threads, len(starts)) < 2:
        list(map(function, starts, ends))
        return
    with ThreadPoolExecutor(n_threads) as pool:
        # errors of `function` are raised only when results are read, so `list` reads all of them
        list(pool.map(function, starts, ends))


class SharedSetting:
    """A setting of the whole process that is changed while any ``with`` block of it is open.

    Blocks may be nested, and open in several threads at a time. The block that ends last restores
    the setting as it was before the first block.

    Parameters
    ----------
    change : callable
        Changes the setting, and returns a callable that restores it.
    """

    def __init__(self, change):
        self._change = change
        self._lock = threading.Lock()
        self._n_blocks = 0

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

# Inside ``with one_blas_thread`` each product of NumPy runs on one thread, so its bits do not
# depend on the number of threads. `in_parts` can then run several products at once, whose BLAS
# threads would otherwise wait for each other.
one_blas_thread = SharedSetting(
    lambda: _controller().limit(limits=1, user_api="blas").restore_original_limits
)
