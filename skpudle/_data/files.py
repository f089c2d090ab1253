"""Files that anybody may have written, and files that are whole at every moment."""

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["named_errors", "remove_parts", "replace_file"]


@contextmanager
def named_errors(file, what, advice):
    """Turn every error of reading a file that anybody can have made into one that names it.

    Parameters
    ----------
    file : str or path-like
        The file's name.
    what : str
        What it should be, after "is no".
    advice : str
        What to do.
    """
    try:
        yield
    except Exception as error:  # what a damaged archive provokes is nowhere written down
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no {what}: {reason.rstrip('.'):.500}. {advice}") from error


def _part(path):  # of a file that is being written
    return f"{path.name}.{secrets.token_hex(4)}.part"


def remove_parts(path):
    """Remove what processes left that were killed while they wrote this file."""
    path = Path(path)
    for name in os.listdir(path.parent):
        token = name.removeprefix(f"{path.name}.").removesuffix(".part")
        if len(name) == len(_part(path)) and name == f"{path.name}.{token}.part":
            (path.parent / name).unlink(missing_ok=True)


def replace_file(path, content):
    """Write a file atomically.

    Parameters
    ----------
    path : str or path-like
        Where to. A file of that name is replaced at the very end, and keeps its mode; a link is
        followed. Until then a file of another name, which ends in ``.part``, is beside it.
    content : bytes-like
        What it will hold.

    Raises
    ------
    OSError
        If the file cannot be written; an older one is then still there.
    """
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    part = path.with_name(_part(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # readable by others only if what it replaces is, at no moment else; umask rules what is new
    descriptor = os.open(part, flags, 0o666 if mode is None else 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            part.chmod(mode)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _force_name(path)


def _force_name(path):
    """Force the new name to disk, where that can be done: not every directory can be synced.

    The file is there and whole; a crash of the machine at this moment brings back the older one.
    """
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            directory = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
