"""One process at a time on one file.

The lock is one of the operating system, on an empty file beside: it ends with its process, however
that ends, and so a process that was killed never blocks the next. Processes in other containers,
and in the same one, share it where they share the file. Over NFS it holds between machines too,
where the server keeps locks; those of a machine that died end with its lease there.
"""

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

__all__ = ["FileLock"]

# What a file system says that knows no locks. Nothing can be kept out there.
_UNKNOWN = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

_HELD = weakref.WeakSet()


def _take(descriptor):  # -> whether nobody else has it
    try:
        if fcntl is None:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            # not lockf: that is no obstacle to another fit of the same process
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _UNKNOWN
    return True


class FileLock:
    """A lock that belongs to a path; ``.lock`` is added to the name of the file beside it."""

    def __init__(self, path):
        self._path, self._descriptor = Path(f"{path}.lock"), None

    def acquire(self):
        """Return whether the lock is ours now, at once.

        Raises
        ------
        OSError
            If no file can be made there.
        """
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _take(descriptor):
                os.close(descriptor)
                return False
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    break
            os.close(descriptor)  # it was removed by who had it, since it was opened
        self._descriptor = descriptor
        _HELD.add(self)
        return True

    def release(self):
        """Let the lock go, and remove its file; do nothing if it is not ours."""
        if self._descriptor is not None:
            with suppress(OSError):  # Windows removes no open file
                self._path.unlink()
            self._let_go()

    def _let_go(self):
        os.close(self._descriptor)
        self._descriptor = None
        _HELD.discard(self)


def _in_a_child():
    # A fork has copies of all descriptors, which would keep the lock of a parent that died.
    for lock in list(_HELD):
        lock._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_child)
