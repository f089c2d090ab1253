"""Take dictionaries from arrays, and from fitted learners of this and other packages.

Learners of scikit-learn and SPORCO are recognised by their attributes, so that neither package has
to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()`` with atoms as
columns.
"""

from copy import copy

import numpy as np
import torch
from sklearn.decomposition import SparseCoder
from sklearn.utils import check_array

from skpudle._data.arrays import to_numpy, to_tensor


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
            f"{type(source).__name__} is not fitted: `clone` forgets the fit of a parameter. Pass "
            "its components_, or wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def drop_names(learner):
    """Return a copy of a fitted learner that takes arrays for frames, whose names were compared."""
    learner = copy(learner)
    vars(learner).pop("feature_names_in_", None)
    return learner


def given_atoms(dict_init, n_components, x, name="dict_init"):
    """Check an initial dictionary from the user.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or a learner that `dictionary_of` takes.
    n_components : int or None
        Required number of atoms; None for any.
    x : Tensor of shape (n_samples, n_features)
        The data.
    name : str, default="dict_init"
        The parameter.

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
