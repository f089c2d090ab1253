"""Dictionaries from other packages, and dictionaries for them.

Fitted learners of scikit-learn and SPORCO are taken by what they offer, so that neither package has
to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()`` with atoms as
columns. What leaves Python goes into a safetensors file, which executes nothing when it is read,
with JSON beside it.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.decomposition import SparseCoder
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skpudle._data.foreign import dictionary_of

__all__ = ["dictionary_of", "load_atoms", "make_sparse_coder", "save_atoms"]

# What codes depend on beside the atoms, and all that begins with "transform_".
_CODING = ("shrinkage", "positive_code", "n_unfoldings", "step_size", "atom_norm")


# What scikit-learn's coder finds codes by.
_ALGORITHMS = ("lasso_cd", "lasso_lars", "lars", "omp", "threshold")


def thresholds_hard(learner):
    """Return whether the alpha of a learner is a threshold, and no penalty of a lasso."""
    return getattr(learner, "shrinkage", "soft") != "soft" or hasattr(learner, "threshold")


def penalty_of(learner):
    """Return the penalty or threshold that a learner encodes with.

    Raises
    ------
    ValueError
        If it was made of atoms alone, for which "auto" had no data to choose one from.
    """
    if getattr(learner, "transform_alpha", None) is not None:
        return learner.transform_alpha
    if not hasattr(learner, "alpha_"):
        raise ValueError(
            "alpha='auto' is chosen from data, and atoms alone came without. Pass transform_alpha, "
            "or data to partial_fit."
        )
    return learner.alpha_


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
        If scikit-learn has no such algorithm; if the lasso is asked for and the learner thresholds
        hard, so that its alpha is no penalty; or if its atoms are convolved.
    """
    check_is_fitted(learner, "components_")
    if hasattr(learner, "atom_shape"):
        raise ValueError(
            "scikit-learn's coder knows no convolutions, which are what "
            f"{type(learner).__name__} learns: use its transform."
        )
    if not isinstance(transform_algorithm, str) or transform_algorithm not in _ALGORITHMS:
        raise ValueError(
            f"transform_algorithm={transform_algorithm!r:.50} is none of scikit-learn's; pass one "
            f"of {_ALGORITHMS}."
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


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Atoms are stored by safetensors, which is not installed. Install it with `pip install "
            "skpudle[safetensors]`, or use numpy.savez."
        ) from error
    return safetensors.numpy


def _paths(file):
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ValueError(f"The file is {str(file)!r}; its name has to end in .safetensors.")
    return path, path.with_suffix(".json")


def save_atoms(learner, file, *, mean=None, notes=None):
    """Write the atoms of a fitted learner as safetensors, and what codes need as JSON beside it.

    Parameters
    ----------
    learner : DictionaryTransformer
        A fitted learner with atoms as rows.
    file : str or path-like
        Where to: a name that ends in ".safetensors". The JSON has the same name with ".json".
    mean : array-like of shape (n_features,), default=None
        What was subtracted from the data before `fit`, to be kept with the atoms.
    notes : dict, default=None
        Whatever else JSON can say, such as the name of the network and of the layer.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    ValueError
        If the name ends otherwise, or the atoms are convolved; for those is
        `skpudle.pretrained.save_denoiser`.
    ImportError
        If safetensors is not installed.
    """
    check_is_fitted(learner, "components_")
    path, beside = _paths(file)
    if learner.components_.ndim != 2:
        raise ValueError(
            f"{type(learner).__name__} has atoms of shape {learner.components_.shape[1:]}, which "
            "are convolved; use skpudle.pretrained.save_denoiser."
        )
    params = {
        name: value
        for name, value in learner.get_params(deep=False).items()
        if name in _CODING or name.startswith("transform_")
    }
    params |= {
        name: float(getattr(learner, f"{name}_"))
        for name in ("alpha", "lambda_decay")
        if hasattr(learner, f"{name}_")
    }
    arrays = {"components": np.ascontiguousarray(learner.components_)}
    if mean is not None:
        arrays["mean"] = np.ascontiguousarray(mean)
    said = {"class": type(learner).__name__, "params": params, "notes": notes or {}}
    text = json.dumps(said, indent=1)
    _safetensors().save_file(arrays, path)
    beside.write_text(text + "\n", encoding="utf-8")


def load_atoms(file):
    """Read what `save_atoms` wrote.

    Parameters
    ----------
    file : str or path-like
        The file of the atoms; the JSON is expected beside it.

    Returns
    -------
    Bunch
        With these attributes:

        components : ndarray of shape (n_components, n_features), one atom per row
        mean : ndarray of shape (n_features,) or None
        params : dict of the parameters that codes depend on, for a learner of that class
        notes : dict

    Raises
    ------
    ValueError
        If the name ends otherwise.
    FileNotFoundError
        If one of the two files is missing.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.interoperability import load_atoms
    >>> stored = load_atoms("concepts.safetensors")  # doctest: +SKIP
    >>> learner = PUDLEDictionaryLearning(
    ...     dict_init=stored.components, **stored.params
    ... )  # doctest: +SKIP
    """
    path, beside = _paths(file)
    said = json.loads(beside.read_text(encoding="utf-8"))
    arrays = _safetensors().load_file(path)
    return Bunch(
        components=arrays["components"],
        mean=arrays.get("mean"),
        params=said["params"],
        notes=said["notes"],
    )
