"""Dictionaries in the place of sparse autoencoders: exact codes, and directions of features.

Features of activations may form a hierarchy: the feature "poodle" implies the feature "dog". A
sparse dictionary then has one atom for a feature together with all features that it implies. Such
an atom is called a path. The direction of the feature itself is the part of the path's atom that
other paths do not explain.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from skpudle._data.arrays import check_rows, to_numpy, to_tensor
from skpudle._fit.encoders import centre
from skpudle._fitted import check_learner_of_rows, encode_parts
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.metrics import unit_atoms
from skpudle.search._epoch import spread_rows
from skpudle.search.held_out import CHANCE, HeldOut, worse
from skpudle.search.problem import Problem, auto_alpha

__all__ = ["feature_directions", "from_sae"]


class FeatureDirections(NamedTuple):
    """Directions of features of a hierarchy; see `feature_directions`.

    Attributes
    ----------
    directions : ndarray of shape (n_components, n_features)
        The direction of each atom's feature, of norm 1.
    implied : sparse array of shape (n_components, n_components)
        Row i holds the weights of the atoms that are subtracted from atom i. The row is empty if
        direction i equals atom i.
    prominence : ndarray of shape (n_components,)
        How much the samples that use an atom stand out along the atom's residual (the atom minus
        the atoms near it): their mean minus the mean of all samples, in standard deviations of all
        samples. It is 0 for an atom without near atoms, or without uses.
    thresholds : ndarray of shape (n_components,)
        A nonzero code means that the feature is present if ``X @ directions.T`` is above the
        threshold. The threshold is -inf if the direction equals the atom.
    learner : estimator
        The learner of the atoms: the given learner, or the learner of the second search.
    """

    directions: np.ndarray
    implied: sparse.csr_array
    prominence: np.ndarray
    thresholds: np.ndarray
    learner: BaseEstimator


def _innovations(atoms, sizes):  # (p, m) of norm 1, (p,) -> (p, m), sparse (p, p)
    """Return what is left of each atom without the atoms near it, and the weights of these atoms.

    The weights are those of non-negative least squares. What is left has norm 1. ``sizes`` are the
    mean projections on each atom of the samples that use it. Only atoms with a size below 1.2 times
    the size of an atom are near it.
    """
    left, weights = atoms.copy(), sparse.lil_array((len(atoms), len(atoms)))
    # Atoms with cosines between these bounds belong to paths with a common part. The mean
    # correlation of directions and true features of a hierarchy (benchmarks/bench_synthsae.py) is
    # .774, .781 and .780 with the lower bounds .3, .4 and .5.
    low, high = 0.4, 0.97
    for i, atom in enumerate(atoms):
        cosines = atoms @ atom
        # A feature is smaller than a path through the feature. With a factor of 1.1, 1.2 and 1.4
        # the mean correlation is .769, .779 and .783. A large factor, however, would subtract the
        # paths of its children from the atom of a parent that occurs alone.
        near = np.flatnonzero((cosines > low) & (cosines < high) & (sizes < 1.2 * sizes[i]))
        if len(near):
            found = nnls(atoms[near].T, atom)[0]
            left[i] -= found @ atoms[near]
            # weights of at most 1e-9 are rounding errors of nnls
            kept = found > 1e-9
            weights[i, near[kept]] = found[kept]
    return unit_atoms(left), weights.tocsr()


def _refined(features, X, rows):
    """Return the directions of a second search if its atoms predict better, else ``features``.

    ``X`` are the samples to search, and ``rows`` (n, n_features) the part of them that judges the
    atoms by the prediction of hidden entries.
    """
    first, x = features.learner, to_tensor(rows)
    # The second search runs only if more than a tenth of the atoms imply other atoms.
    if (np.diff(features.implied.indptr) > 0).mean() <= 0.1:
        return features
    # The second search has three times the penalty at which an automatic search begins. An
    # automatic search ends at 0.25 to 4 times its first penalty. Three times its last penalty would
    # be too large, and lose paths, where the last penalty exceeds the first.
    alpha = 3 * auto_alpha(x)
    again = clone(first).set_params(alpha=alpha).fit(X).choose_alpha(X, criterion="support")
    again.alpha_ = max(again.alpha_, 2 * alpha)
    held_out = HeldOut(Problem(x, 2 * alpha, positive_code=True))
    atoms = (to_tensor(learner.components_).to(x) for learner in (first, again))
    one, two = (held_out.at(given, place=0, share=0.0) for given in atoms)
    return feature_directions(again, X) if worse(one, two, CHANCE) else features


def feature_directions(learner: Any, X: Any, *, refine: bool = False) -> FeatureDirections:
    r"""Return the direction of each atom's feature, where features imply others.

    Some features imply others: "poodle" implies "dog". The sparsest code of a sample then has one
    atom for a feature and all that it implies, a *path* in the hierarchy, instead of an atom for
    each (the field calls it absorption [1]_). The feature itself is what the path adds to other
    paths: the residual of the non-negative least squares of the atom on the atoms near it. Near
    atoms have cosines of 0.4 to 0.97 with the atom, and at most 1.2 times its size. The size of an
    atom is the mean projection on it of the samples that use it, minus the projection of the mean.

    The mean of the samples that use the atom has to stand out along the residual, by 3 standard
    deviations of all samples. Otherwise the direction is the atom itself, as in data without a
    hierarchy.

    Parameters
    ----------
    learner : estimator
        Fitted, with non-negative codes, ``components_`` of rows and ``transform``.
    X : array-like, memory map, dataset or iterable of batches
        Samples, (n_samples, n_features), such as the training samples, read a part at a time.
    refine : bool, default=False
        Whether to search once more if more than a tenth of the directions are not the atoms. The
        second search has three times the penalty that an automatic search begins with, since a
        larger penalty finds the paths of a hierarchy better. The new atoms replace the given ones
        if they predict hidden entries better, with codes of twice the second search's penalty.
        ``X`` has to be the training samples. The given learner is not changed.

    Returns
    -------
    FeatureDirections
        Named tuple of `directions`, `implied`, `prominence`, `thresholds` and `learner`. With
        ``refine`` the learner may be the learner of the second search. The penalty of its codes is
        the larger of two: the choice of ``choose_alpha(X, criterion="support")``, and twice the
        penalty of the second search.

    Raises
    ------
    ValueError
        If codes are negative, atoms are not rows, or data are incomplete.

    Notes
    -----
    Codes stay those of the paths: a nonzero code means that the feature is present, its direction
    is the row of `directions`, and reconstructions (``inverse_transform``) are sums of
    ``components_``. A sample of a path without an atom uses the atoms of sibling paths instead, and
    has at most half of the features of the siblings. ``codes * (X @ directions.T > thresholds)``
    sets codes of absent features to 0. Features that a sample has by implication have no codes of
    their own; `implied` leads to the atoms that share them.

    Where a parent with :math:`k` children never occurs alone, the data do not separate its part
    from its children's: directions of children of its size have the cosine :math:`\sqrt{k / (k +
    1)}` with their features.

    References
    ----------
    .. [1] D. Chanin et al., "A is for Absorption: Studying Feature Splitting and Absorption in
       Sparse Autoencoders", arXiv:2409.14507.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.sae import feature_directions
    >>> dog, poodle = np.eye(2)
    >>> atoms = np.array([dog, (dog + poodle) / 2**0.5])
    >>> learner = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1, positive_code=True)
    >>> X = np.repeat([np.zeros(2), dog, dog + poodle], [50, 10, 2], axis=0)
    >>> feature_directions(learner, X).directions
    array([[1., 0.],
           [0., 1.]])
    """
    learner = check_learner_of_rows(learner)
    atoms = unit_atoms(np.asarray(learner.components_, dtype=np.float64))
    n, uses, mean = 0, np.zeros(len(atoms)), np.zeros(atoms.shape[1])
    users, squares, judges = np.zeros(atoms.shape), np.zeros((atoms.shape[1],) * 2), []
    for rows, codes in encode_parts(learner, X):
        if codes.min(initial=0) < 0:
            raise ValueError(
                "Features are present or not, and some codes are negative. Fit with "
                "positive_code=True."
            )
        rows, used = centre(learner, rows), (codes > 0).astype(np.float64)
        n, uses, mean = n + len(rows), uses + used.sum(axis=0), mean + rows.sum(axis=0)
        users, squares = users + used.T @ rows, squares + rows.T @ rows
        if len(judges) < 8:  # 2,000 rows of each of the first eight parts are enough to judge
            judges.append(rows[spread_rows(len(rows), 2000)])
    mean /= n
    users = users / np.maximum(uses, 1)[:, None] - mean * (uses > 0)[:, None]
    left, weights = _innovations(atoms, (users * atoms).sum(axis=1))
    variances = ((left @ (squares / n - np.outer(mean, mean))) * left).sum(axis=1)
    spread = np.sqrt(np.maximum(variances, 0))
    implies = (np.diff(weights.indptr) > 0) & (uses > 0) & (spread > 0)
    prominence = np.where(implies, (users * left).sum(axis=1) / np.where(implies, spread, 1), 0.0)
    # In data with a hierarchy 95 % of the directions stand out by more than 2.9 standard
    # deviations. In data without a hierarchy 95 % of the directions stand out by less.
    taken = prominence >= 3.0
    implied = sparse.csr_array(weights.multiply(taken[:, None]))
    implied.eliminate_zeros()
    # The threshold is halfway between the mean of all samples and the mean of the samples that use
    # the atom. Samples without the feature may use the feature's path, if their own path has no
    # atom; the threshold removes such codes. F1 of the codes rises from .77 to .81
    # (benchmarks/bench_synthsae.py).
    middle = mean - centre(learner, np.zeros_like(mean)) + 0.5 * users
    thresholds = np.where(taken, (middle * left).sum(axis=1), -np.inf)
    directions = np.where(taken[:, None], left, atoms)
    found = FeatureDirections(directions, implied, prominence, thresholds, learner)
    return _refined(found, X, np.concatenate(judges)) if refine else found


def from_sae(
    decoder: ArrayLike | Tensor,
    X: ArrayLike | Tensor | None = None,
    *,
    bias: ArrayLike | Tensor | None = None,
    l0: float | None = None,
    **params: Any,
) -> PUDLEDictionaryLearning:
    """Return a learner with the decoder of a sparse autoencoder, for its exact codes.

    The autoencoder's encoder is not used: codes solve the non-negative lasso for rows minus
    the decoder's bias.

    Parameters
    ----------
    decoder : array-like or Tensor of shape (n_components, n_features)
        Rows of the decoder, one for each latent, as ``W_dec`` of SAELens and of sparsify.
    X : array-like or Tensor of shape (n_samples, n_features), default=None
        Activations that choose the penalty, by `choose_alpha` with ``criterion="support"`` (for
        ``positive_code=False`` with "prediction").
    bias : array-like or Tensor of shape (n_features,), default=None
        Bias of the decoder, ``b_dec``.
    l0 : float, default=None
        Mean number of nonzero codes in a row; needs ``X``.
    **params : dict
        Parameters of the learner; ``positive_code`` is True unless given. Without ``X``,
        ``alpha`` must be a number.

    Returns
    -------
    PUDLEDictionaryLearning
        ``components_`` are the decoder's rows, in their order, divided by their norms, so that
        codes are in units of the activations: the length of each concept's contribution. Divide
        them by the norms for the units of the autoencoder's latents. A zero row stays zero.
        ``intercept_`` is the decoder's bias.

    Raises
    ------
    ValueError
        If the decoder is no matrix of finite numbers, or if the penalty is missing, or given twice.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.sae import from_sae
    >>> from_sae(2 * np.eye(3), alpha=0.1).transform(np.array([[1.0, 0.0, -1.0]])).round(2)
    array([[0.9, 0. , 0. ]])
    """
    rows = to_numpy(to_tensor(check_rows(decoder)))
    largest = np.abs(rows).max(axis=1, keepdims=True)  # divided out, since squares may overflow
    atoms = unit_atoms(rows / np.where(largest > 0, largest, 1))
    params = {"positive_code": True, "alpha": "auto"} | params
    automatic = isinstance(params["alpha"], str) and params["alpha"] == "auto"
    if automatic == (X is None) or (X is None and l0 is not None):
        raise ValueError(
            f"alpha={params['alpha']!r:.50} and l0={l0!r:.50} came with{'out' * (X is None)} data. "
            "Pass activations as X, with or without l0, or a number as alpha and neither."
        )
    given = params if X is None else params | {"alpha": 1.0}
    learner = PUDLEDictionaryLearning.from_components(atoms, intercept=bias, **given)
    if X is None:
        return learner
    criterion = "support" if learner.positive_code else "prediction"
    return learner.set_params(alpha="auto").choose_alpha(X, l0=l0, criterion=criterion)
