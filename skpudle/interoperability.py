"""Dictionaries from other packages, and dictionaries for them.

Fitted learners of scikit-learn and SPORCO are taken by what they offer, so that neither package has
to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()`` with atoms as
columns.
"""

import numpy as np
import torch
from sklearn.decomposition import SparseCoder
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skpudle._arrays import to_numpy, to_tensor

__all__ = ["dictionary_of", "given_atoms", "make_sparse_coder"]


def dictionary_of(source):
    """Return the atoms of a fitted learner, or what is given if it is an array.

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
            f"dict_init is a {type(source).__name__} without atoms: it learns none or is not "
            "fitted. `clone`, and with it GridSearchCV and cross_validate, forgets what a "
            "parameter was fitted to: pass its components_, or wrap it in "
            "sklearn.frozen.FrozenEstimator."
        )
    return source


def given_atoms(dict_init, n_components, x):
    """Return an initial dictionary that somebody gives, checked.

    Parameters
    ----------
    dict_init : array-like or learner
        Atoms as rows, or what `dictionary_of` takes.
    n_components : int or None
        How many there have to be; None: as many as there are.
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
            f"{(n_components, x.shape[1])}: one atom per row."
        )
    atoms = to_tensor(atoms, x.device).to(x.dtype)
    bad = ~torch.isfinite(atoms).all(1) | (atoms == 0).all(1)
    if bad.any():
        raise ValueError(
            f"dict_init has zero or non-finite atoms, in rows {bad.nonzero()[:, 0].tolist()}; drop "
            "these rows or replace them, for example by samples."
        )
    return atoms


def thresholds_hard(learner):
    """Return whether the alpha of a learner is a threshold, and no penalty of a lasso."""
    return getattr(learner, "shrinkage", "soft") != "soft" or hasattr(learner, "threshold")


def make_sparse_coder(learner, transform_algorithm="lasso_cd", **params):
    """Return scikit-learn's coder with the atoms of a fitted learner.

    Parameters
    ----------
    learner : DictionaryTransformer
        A fitted learner.
    transform_algorithm : {"lasso_cd", "lasso_lars", "lars", "omp", "threshold"}, default="lasso_cd"
        How scikit-learn finds codes.
    **params : dict
        Further parameters of `~sklearn.decomposition.SparseCoder`. By default those of the learner:
        ``transform_alpha`` for the two algorithms that solve the lasso, ``split_sign`` and
        ``positive_code``.

    Returns
    -------
    SparseCoder
        Fitted. With the lasso its codes are those of ``transform_algorithm="lasso"``.

    Raises
    ------
    ValueError
        If the lasso is asked for and the learner thresholds hard, so that its alpha is no penalty;
        or if its atoms are convolved.
    """
    check_is_fitted(learner, "components_")
    if hasattr(learner, "atom_shape"):
        raise ValueError(
            "scikit-learn's coder knows no convolutions, which are what "
            f"{type(learner).__name__} learns: use its transform."
        )
    defaults = {name: getattr(learner, name, False) for name in ("split_sign", "positive_code")}
    if transform_algorithm.startswith("lasso_") and "transform_alpha" not in params:
        if thresholds_hard(learner):
            raise ValueError(
                f"{type(learner).__name__} thresholds hard: its alpha_ is no penalty of a lasso. "
                "Pass transform_alpha, or transform_algorithm='omp' with the number of atoms."
            )
        own = getattr(learner, "transform_alpha", None)
        defaults["transform_alpha"] = learner.alpha_ if own is None else own
    coder = SparseCoder(
        learner.components_.copy(), transform_algorithm=transform_algorithm, **(defaults | params)
    )
    return coder.fit(learner.components_)
