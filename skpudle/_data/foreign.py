"""Exchange dictionaries with arrays, and with fitted learners of this and other packages.

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

__all__ = [
    "check_learner",
    "dictionary_of",
    "drop_names",
    "given_atoms",
    "make_sparse_coder",
    "penalty_of",
    "thresholds_hard",
]

# algorithms of scikit-learn's coder
_ALGORITHMS = ("lasso_cd", "lasso_lars", "lars", "omp", "threshold")


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
            "learner first and the data second, as report(learner, X)."
        )
    check_is_fitted(learner, attribute)


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


def thresholds_hard(learner):
    """Return whether a learner's alpha is a hard threshold, not a penalty of the lasso."""
    return getattr(learner, "shrinkage", "soft") != "soft" or hasattr(learner, "threshold")


def penalty_of(learner):
    """Return the penalty or threshold that a learner encodes with.

    Raises
    ------
    ValueError
        If the learner was made from atoms alone: "auto" had no data to choose a penalty from.
    """
    if getattr(learner, "transform_alpha", None) is not None:
        return learner.transform_alpha
    if not hasattr(learner, "alpha_"):
        raise ValueError(
            "alpha='auto' is chosen from data, and atoms alone came without. Pass transform_alpha, "
            "or data to partial_fit."
        )
    return learner.alpha_


def baseline_of(learner):  # -> ndarray of shape (n_features,) or None
    """Return the baseline that is subtracted from rows before coding, None without a baseline.

    A learner with ``coef_`` has the intercept of its decisions in ``intercept_``, and its baseline
    in ``baseline_``.
    """
    if getattr(learner, "loss", "gaussian") != "gaussian":
        return None
    baseline = getattr(learner, "baseline_" if hasattr(learner, "coef_") else "intercept_", 0.0)
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows without the learner's baseline."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def make_sparse_coder(learner, transform_algorithm="lasso_cd", **params):
    """Return scikit-learn's coder with the atoms of a fitted learner.

    Parameters
    ----------
    learner : DictionaryTransformer
        A fitted learner.
    transform_algorithm : {"lasso_cd", "lasso_lars", "lars", "omp", "threshold"}, default="lasso_cd"
        Algorithm of scikit-learn that finds codes.
    **params : dict
        Further parameters of `~sklearn.decomposition.SparseCoder`. Defaults are the learner's:
        ``transform_alpha`` for the two algorithms that solve the lasso, ``split_sign`` and
        ``positive_code``.

    Returns
    -------
    SparseCoder
        Fitted. With the lasso its codes are those of ``transform_algorithm="lasso"``.

    Raises
    ------
    ValueError
        If scikit-learn has no such algorithm; if the lasso is requested of a learner with hard
        thresholds, whose alpha is no penalty; or if atoms are convolved.
    """
    check_is_fitted(learner, "components_")
    if hasattr(learner, "atom_shape"):
        raise ValueError(
            "scikit-learn's coder knows no convolutions, and "
            f"{type(learner).__name__} learns convolved atoms. Use its transform."
        )
    if not isinstance(transform_algorithm, str) or transform_algorithm not in _ALGORITHMS:
        raise ValueError(
            f"transform_algorithm={transform_algorithm!r:.50} is none of scikit-learn's; pass one "
            f"of {_ALGORITHMS}."
        )
    if baseline_of(learner) is not None:
        raise ValueError(
            "scikit-learn's coder subtracts no baseline, and this learner has an intercept_. Pass "
            "its components_ to sklearn.decomposition.SparseCoder, and rows minus intercept_."
        )
    noise = getattr(learner, "_training_state", {}).get("noise") or {}
    if noise.get("scale") is not None or noise.get("rows") is not None:
        raise ValueError(
            "scikit-learn's coder supposes equal noise, and this learner found unequal noise. Use "
            "its transform, or pass noise='equal', and fit again."
        )
    defaults = {name: getattr(learner, name, False) for name in ("split_sign", "positive_code")}
    if transform_algorithm.startswith("lasso_") and "transform_alpha" not in params:
        if thresholds_hard(learner):
            raise ValueError(
                f"{type(learner).__name__} thresholds hard: its alpha_ is no penalty of a lasso. "
                "Pass transform_alpha, or transform_algorithm='omp' with the number of atoms."
            )
        defaults["transform_alpha"] = penalty_of(learner)
    coder = SparseCoder(
        learner.components_.copy(), transform_algorithm=transform_algorithm, **(defaults | params)
    )
    return coder.fit(learner.components_)
