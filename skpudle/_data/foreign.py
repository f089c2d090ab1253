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
from sklearn.utils.validation import check_is_fitted

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
            f"{type(source).__name__} has no atoms: it learns none or is not fitted (`clone` "
            "unfits parameters, also in GridSearchCV and cross_validate). Fit it, pass its "
            "components_, or wrap it in sklearn.frozen.FrozenEstimator."
        )
    return source


def check_learner(learner, attribute="components_"):
    """Raise an error unless this is a fitted learner, with an attribute.

    Raises
    ------
    TypeError
        If it is no estimator, for example data.
    NotFittedError
        If it is not fitted.
    """
    if not hasattr(learner, "fit"):
        shape = f" of shape {np.shape(learner)}" if hasattr(learner, "shape") else ""
        raise TypeError(
            f"A fitted learner is expected, got a {type(learner).__name__}{shape}. Pass the "
            "learner first and the data second, as findings(learner, X)."
        )
    check_is_fitted(learner, attribute)


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
    options = {"dtype": np.float64, "ensure_all_finite": False, "input_name": name}
    atoms = check_array(dictionary_of(dict_init), **options)
    if n_components is None:
        n_components = len(atoms)
    if atoms.shape != (n_components, x.shape[1]):
        raise ValueError(
            f"{name} has shape {atoms.shape}, expected (n_components, n_features) = "
            f"{(n_components, x.shape[1])}. Pass one atom per row."
        )
    atoms = to_tensor(atoms, x.device, x.dtype)
    bad = ~torch.isfinite(atoms).all(1) | (atoms == 0).all(1)
    if bad.any():
        raise ValueError(
            f"{name} has zero or non-finite atoms, in rows {bad.nonzero()[:, 0].tolist()}. Drop "
            "these rows or replace them, for example by samples."
        )
    return atoms
