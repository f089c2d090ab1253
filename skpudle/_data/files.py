"""Read files of unknown origin, and write files that are whole at every moment."""

import os
from contextlib import contextmanager
from pathlib import Path


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


def replace_file(path, content):
    """Write a file atomically: its content is in ``path.part`` until it is whole.

    Parameters
    ----------
    path : str or path-like
        Path of the file. An older file is replaced at the very end; a link is followed.
    content : bytes-like
        Content of the file.

    Raises
    ------
    OSError
        If the file cannot be written; an older one then stays.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
