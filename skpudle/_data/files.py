"""Read files of unknown origin, and write files that are whole at every moment."""

import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path

# Most unfoldings in a file of unknown origin: each is a product of its arrays, so a few bytes could
# otherwise take any time and memory.
MOST_UNFOLDINGS = 1000


@contextmanager
def named_errors(file, what, advice):
    """Turn every error of reading a file of unknown origin into an error that names the file.

    Parameters
    ----------
    file : str or path-like
        The file's name.
    what : str
        Kind of file expected, after "is no".
    advice : str
        Sentence that says how to get such a file.
    """
    try:
        yield
    except Exception as error:  # errors of damaged archives are not documented
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no {what}: {reason.rstrip('.'):.500}. {advice}") from error


def _part(path):  # name of the file while it is written
    return f"{path.name}.{secrets.token_hex(4)}.part"


def remove_parts(path):
    """Remove parts left by processes that were killed while they wrote this file."""
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
        Path of the file. An older file is replaced at the very end, and its mode kept; a link is
        followed. Until then the content is in the same directory, under a name that ends in
        ``.part``.
    content : bytes-like
        Content of the file.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then stays.
    """
    path = Path(os.path.realpath(path))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    part = path.with_name(_part(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    # at no moment readable by more users than the old file; umask decides for new files
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
    """Force the new name to disk, if the directory can be synced.

    The file is whole already; a crash of the machine at this moment brings back the older one.
    """
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            directory = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
