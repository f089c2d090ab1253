"""Take dictionaries from arrays, and from fitted learners of this and other packages."""

from copy import copy

import numpy as np
import torch
from sklearn.decomposition import SparseCoder
from sklearn.utils import check_array

from skpudle._data.arrays import to_numpy, to_tensor

__all__ = ["dictionary_of", "drop_names", "given_atoms"]


def dictionary_of(source):
    """Return the atoms of a fitted learner; an array is returned unchanged.

    Parameters
    ----------
    source : estimator, SPORCO learner, array-like or Tensor
        A fitted learner of this package or of scikit-learn (with ``components_``), a
        `~sklearn.decomposition.SparseCoder`, a learner of SPORCO (with ``getdict``), or atoms.

    Returns
    -------
    array-like of shape (n_components, n_features)
        Atoms as rows.

    Raises
    ------
    ValueError
        If a learner is not fitted; clones, such as those of a grid search, are not.
    """
    if isinstance(source, torch.Tensor):
        return to_numpy(source)
    if hasattr(source, "getdict"):
        atoms = np.asarray(source.getdict())
        return (np.squeeze(atoms) if atoms.ndim > 2 else atoms).T
    if hasattr(source, "components_"):
        return source.components_
    if isinstance(source, SparseCoder):
        return source.dictionary
    if hasattr(source, "fit"):
        raise ValueError(
            f"{type(source).__name__} has no atoms: it learns none or is not fitted (`clone` "
            "unfits parameters, also in GridSearchCV and cross_validate). Pass its components_, or "
            "wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def drop_names(learner):
    """Return a copy of a fitted learner that takes arrays for frames, whose names were compared."""
    learner = copy(learner)
    vars(learner).pop("feature_names_in_", None)
    return learner


def given_atoms(dict_init, n_components, x):
    """Check an initial dictionary from the user.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or a learner that `dictionary_of` takes.
    n_components : int or None
        Required number of atoms; None for any.
    x : Tensor of shape (n_samples, n_features)
        The data.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm, of the dtype and on the device of ``x``.

    Raises
    ------
    ValueError
        If the shape is wrong, or an atom is zero or not finite.
    """
    options = {"dtype": np.float64, "ensure_all_finite": False, "input_name": "dict_init"}
    atoms = check_array(dictionary_of(dict_init), **options)
    if n_components is None:
        n_components = len(atoms)
    if atoms.shape != (n_components, x.shape[1]):
        raise ValueError(
            f"dict_init has shape {atoms.shape}, expected (n_components, n_features) = "
            f"{(n_components, x.shape[1])}. Pass one atom per row."
        )
    atoms = to_tensor(atoms, x.device, x.dtype)
    bad = ~torch.isfinite(atoms).all(1) | (atoms == 0).all(1)
    if bad.any():
        raise ValueError(
            f"dict_init has zero or non-finite atoms, in rows {bad.nonzero()[:, 0].tolist()}. Drop "
            "these rows or replace them, for example by samples."
        )
    return atoms
