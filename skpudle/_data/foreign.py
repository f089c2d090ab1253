"""Deal with what is outside the package: learners of other packages, users' code, and files.

Learners of scikit-learn and SPORCO are recognised by their attributes: ``components_`` or
``dictionary`` with atoms as rows, or ``getdict()`` with atoms as columns. So SPORCO need not be
imported.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import check_array

from skpudle._data.arrays import to_numpy, to_tensor

# Packages that are not the user's code: this package, and packages that call or wrap its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}


def users_level():
    """Return the ``stacklevel`` (int) that makes a warning point at the line of the user's code.

    Write ``warnings.warn(message, stacklevel=users_level())``: the level is that of the caller.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS
    ):
        frame, level = frame.f_back, level + 1
    return level


def dictionary_of(source):
    """Return the atoms of a fitted learner, for functions that take a learner or an array of atoms.

    Parameters
    ----------
    source : estimator, SPORCO learner, array-like or Tensor
        A fitted learner of this package or of scikit-learn (with ``components_``), a
        `~sklearn.decomposition.SparseCoder`, a learner of SPORCO (with ``getdict``), or atoms.

    Returns
    -------
    array-like of shape (n_components, n_features)
        Atoms as rows: an array for a tensor or a learner of SPORCO, otherwise as they are stored or
        given. Atoms of images have the shape of the learner's ``components_``.

    Raises
    ------
    ValueError
        If a learner is not fitted. A clone of a fitted learner, as a grid search makes, is not.
    """
    if isinstance(source, torch.Tensor):
        return to_numpy(source)
    if hasattr(source, "getdict"):
        atoms = np.asarray(source.getdict())
        return (np.squeeze(atoms) if atoms.ndim > 2 else atoms).T
    for name in ("components_", "dictionary"):
        if hasattr(source, name):
            return getattr(source, name)
    if hasattr(source, "fit"):
        raise ValueError(
            f"{type(source).__name__} is not fitted: `clone` forgets the fit of a parameter. Pass "
            "its components_, or wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def given_atoms(dict_init, n_components, x, name="dict_init"):
    """Check the atoms that a user gives as initial dictionary, and convert them to a tensor.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or a learner that `dictionary_of` takes.
    n_components : int or None
        Required number of atoms; None for any.
    x : Tensor of shape (n_samples, n_features)
        The data; only the number of features, the dtype and the device matter.
    name : str, default="dict_init"
        The parameter's name, for error messages.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm, of the dtype and on the device of ``x``.

    Raises
    ------
    ValueError
        If the shape is wrong, or an atom is zero or not finite.
    """
    atoms = check_array(dictionary_of(dict_init), dtype=np.float64, input_name=name)
    atoms = to_tensor(atoms, x.device, x.dtype)
    if atoms.shape != (n_components or len(atoms), x.shape[1]):
        raise ValueError(
            f"{name} has shape {tuple(atoms.shape)}, expected (n_components, n_features) = "
            f"{(n_components, x.shape[1])}. Pass one atom per row."
        )
    if not atoms.any(1).all():
        raise ValueError(f"{name} has atoms of zeros. Drop or replace these rows.")
    return atoms


@contextmanager
def named_errors(file, what, advice):
    """Turn every error in a ``with`` block, of reading a file of unknown origin, into a ValueError.

    Parameters
    ----------
    file : str or path-like
        The file's name.
    what : str
        Kind of file expected: the message says that the file "is no" such kind.
    advice : str
        Sentence that says how to get a file of this kind.

    Raises
    ------
    ValueError
        If the block raises any `Exception`. The message has the name of the file and the advice.
    """
    try:
        yield
    except Exception as error:  # no documentation says which errors damaged archives raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{file} is no {what}: {reason.rstrip('.'):.500}. {advice}") from error


def replace_file(path, content):
    """Write a file atomically, so that no reader and no crash finds half of its content.

    The content goes to the file ``path.part``, which then takes the name ``path``.

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
