"""Dictionaries from other packages, and dictionaries for them.

Fitted learners of scikit-learn and SPORCO are taken by what they offer, so that neither package has
to be imported: ``components_`` or ``dictionary`` with atoms as rows, or ``getdict()`` with atoms as
columns.
"""

from sklearn.decomposition import SparseCoder
from sklearn.utils.validation import check_is_fitted

from skpudle._data.foreign import dictionary_of

__all__ = ["dictionary_of", "make_sparse_coder"]


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
