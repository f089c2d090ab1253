"""Dictionaries in the place of sparse autoencoders: exact codes, and directions of features.

In a hierarchy an atom codes a path of features, and the direction of each feature is what the path
adds to other paths.
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
        Row i holds the weights of the atoms that are subtracted from atom i; it is empty if the
        direction is the atom.
    prominence : ndarray of shape (n_components,)
        Mean of the samples that use an atom, above the mean of all, along what is left of it, in
        standard deviations; 0 without near atoms, or uses.
    thresholds : ndarray of shape (n_components,)
        A code is the feature's where ``X @ directions.T`` is above; -inf if the direction is the
        atom.
    learner : estimator
        The learner of the atoms: the given one, or of the second search.
    """

    directions: np.ndarray
    implied: sparse.csr_array
    prominence: np.ndarray
    thresholds: np.ndarray
    learner: BaseEstimator


def _innovations(atoms, sizes):  # (p, m) of norm 1, (p,) -> rests of norm 1, weights (p, p)
    """Subtract from each atom its non-negative least squares on near atoms of about its size."""
    left, weights = atoms.copy(), sparse.lil_array((len(atoms), len(atoms)))
    # Near atoms belong to paths with a common part. Mean correlation of directions and features of
    # a hierarchy (benchmarks/bench_synthsae.py) with .3, .4 and .5 as the lower bound: .774, .781,
    # .780.
    low, high = 0.4, 0.97
    for i, atom in enumerate(atoms):
        cosines = atoms @ atom
        # A feature is smaller than a path through it. With 1.1, 1.2 and 1.4 the correlation is
        # .769, .779 and .783; a parent that occurs alone and has few children needs the bound.
        near = np.flatnonzero((cosines > low) & (cosines < high) & (sizes < 1.2 * sizes[i]))
        if len(near):
            found = nnls(atoms[near].T, atom)[0]
            left[i] -= found @ atoms[near]
            # smaller weights are rounding
            kept = found > 1e-9
            weights[i, near[kept]] = found[kept]
    return unit_atoms(left), weights.tocsr()


def _refined(features, X, rows):
    """Return the features of a second search if its atoms predict better, else the given ones."""
    first, x = features.learner, to_tensor(rows)
    # a second search runs if more than a tenth of the atoms imply other atoms
    if (np.diff(features.implied.indptr) > 0).mean() <= 0.1:
        return features
    # Three times the penalty that a search begins with. A search follows a path from there, and
    # ends at 0.25 to 4 times this penalty: three times its end loses paths where it is larger.
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
    paths: the residual of the non-negative least squares of the atom on the atoms near it, with
    cosines of 0.4 to 0.97, whose samples have no larger parts along them.

    Samples that use the atom have to stand out along that direction, by 3 standard deviations of
    all samples. Otherwise the direction is the atom: data without a hierarchy keep theirs.

    Parameters
    ----------
    learner : estimator
        Fitted, with non-negative codes, ``components_`` of rows and ``transform``.
    X : array-like, memory map, dataset or iterable of batches
        Samples, (n_samples, n_features), such as the training samples, read a part at a time.
    refine : bool, default=False
        Search once more, with three times the penalty that a search begins with, where more than a
        tenth of the directions are not the atoms: a larger penalty finds the paths of a hierarchy
        better. Its atoms are kept if they predict hidden entries better than the given ones, both
        with codes of twice this penalty. ``X`` are then the training samples. The learner stays as
        it is.

    Returns
    -------
    FeatureDirections
        Named tuple of `directions`, `implied`, `prominence`, `thresholds` and `learner`. With
        ``refine`` the learner may be that of the second search, whose codes have the penalty of
        ``choose_alpha(X, criterion="support")``, or twice the penalty of that search if this is
        larger.

    Raises
    ------
    ValueError
        If codes are negative, atoms are not rows, or data are incomplete.

    Notes
    -----
    Codes stay those of the paths: a nonzero code means that the feature is present, its direction
    is the row of `directions`, and reconstructions (``inverse_transform``) are sums of
    ``components_``. Samples of a path that has no atom use its siblings instead, and have half of
    their features at most: ``codes * (X @ directions.T > thresholds)`` leaves these out. Features
    that a sample has by implication have no codes of their own; `implied` leads to the atoms that
    share them.

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
        if len(judges) < 8:  # at most 16,000 rows
            judges.append(rows[spread_rows(len(rows), 2000)])
    mean /= n
    users = users / np.maximum(uses, 1)[:, None] - mean * (uses > 0)[:, None]
    left, weights = _innovations(atoms, (users * atoms).sum(axis=1))
    variances = ((left @ (squares / n - np.outer(mean, mean))) * left).sum(axis=1)
    spread = np.sqrt(np.maximum(variances, 0))
    implies = (np.diff(weights.indptr) > 0) & (uses > 0) & (spread > 0)
    prominence = np.where(implies, (users * left).sum(axis=1) / np.where(implies, spread, 1), 0.0)
    # in hierarchies all but 5 % of the directions stand out by more than 2.9 standard deviations;
    # in data without one, all but 5 % by less
    taken = prominence >= 3.0
    implied = sparse.csr_array(weights.multiply(taken[:, None]))
    implied.eliminate_zeros()
    # The threshold is half of the way from the mean of all samples to the mean of the users.
    # Samples without the feature may use its path in the place of a path without an atom; it raises
    # F1 of codes from .77 to .81.
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
    largest = np.abs(rows).max(axis=1, keepdims=True)  # squares of rows may overflow
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
