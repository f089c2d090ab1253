"""Dictionaries instead of sparse autoencoders (SAE): exact codes, and directions of features.

`from_sae` computes exact sparse codes with the decoder of an autoencoder. `feature_directions`
finds the directions of features of neural activations that form a hierarchy: the feature "poodle"
implies the feature "dog". A sparse dictionary then has one atom for a feature together with all
features that it implies. Such an atom is called a *path*. The direction of the feature itself is
the part of the path's atom that the atoms of other paths do not explain.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from skpudle._data.arrays import check_rows, to_numpy, to_tensor
from skpudle._estimators import check_learner_of_rows, encode_parts
from skpudle._fit.encoders import centre
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle._rows import spread_rows
from skpudle.metrics import unit_atoms
from skpudle.search.held_out import CHANCE
from skpudle.search.problem import Problem, auto_alpha

__all__ = ["feature_directions", "from_sae"]


class FeatureDirections(NamedTuple):
    """Directions of features of a hierarchy; see `feature_directions`.

    Attributes
    ----------
    directions : ndarray of shape (n_components, n_features)
        The direction of each atom's feature, of norm 1: the atom minus weighted atoms of other
        paths, or the atom itself.
    implied : sparse array of shape (n_components, n_components)
        Row i holds the non-negative weights of the atoms that are subtracted from atom i, which is
        divided by its norm. The row is empty if direction i equals atom i.
    prominence : ndarray of shape (n_components,)
        How much the samples that use an atom stand out along the residual of the atom (the atom
        minus the atoms near it): the mean of these samples minus the mean of all samples, in
        standard deviations of all samples. It is 0 for an atom without near atoms, or without uses.
    thresholds : ndarray of shape (n_components,)
        Thresholds of the projections ``X @ directions.T``: the feature of atom i is present in a
        sample if its code is not zero and projection i is above threshold i. The threshold is -inf
        if the direction equals the atom.
    learner : estimator
        The learner whose atoms have these directions: the user's learner or, with ``refine``, maybe
        the learner of a second search.
    """

    directions: np.ndarray
    implied: sparse.csr_array
    prominence: np.ndarray
    thresholds: np.ndarray
    learner: BaseEstimator


def _innovations(atoms, sizes):  # (p, m), (p,) -> (p, m), sparse (p, p)
    """Subtract from each of p unit atoms its non-negative least squares fit by the atoms near it.

    Return the residuals, divided by their norms, and the weights of the fits: row i holds the
    weights of the atoms near atom i. The size of an atom, in ``sizes``, is the mean projection on
    it of the samples that use it. Atom j is near atom i if their cosine is between 0.4 and 0.97 and
    the size of j is below 1.2 times the size of i.
    """
    residuals = atoms.copy()
    weights = sparse.lil_array((len(atoms), len(atoms)))
    # An atom stands for a path: a feature and all features that it implies. Paths that have
    # features in common have cosines between these bounds; atoms with a larger cosine are almost
    # equal. The mean correlation of directions and true features of a hierarchy
    # (benchmarks/bench_synthsae.py) is 0.774, 0.781 and 0.780 with the lower bounds 0.3, 0.4 and
    # 0.5.
    low = 0.4
    high = 0.97
    for i, atom in enumerate(atoms):
        cosines = atoms @ atom
        # The path of a parent is smaller than the paths of its children, which contain it, and
        # paths of siblings have about one size; so near atoms of up to 1.2 times the size are
        # subtracted. With the factors 1.1, 1.2 and 1.4 the mean correlation is 0.769, 0.779 and
        # 0.783, in another run than that of the bounds above. The limit is for a parent that also
        # occurs alone: without it the paths of its few children would be subtracted from its own.
        near = np.flatnonzero(
            (cosines > low) & (cosines < high) & (sizes < 1.2 * sizes[i])
        )
        if len(near):
            fitted, _ = nnls(atoms[near].T, atom)
            residuals[i] -= fitted @ atoms[near]
            # Weights of at most 1e-9 are rounding errors of nnls, and would count as implied atoms.
            kept = fitted > 1e-9
            weights[i, near[kept]] = fitted[kept]
    return unit_atoms(residuals), weights.tocsr()


def _refined(features, X, rows):
    """Fit the learner a second time with a larger penalty, for ``refine`` of `feature_directions`.

    ``features`` are the `FeatureDirections` of the user's learner, ``X`` the training samples as
    the user passed them, and ``rows`` (n, n_features) some of the samples minus the baseline.
    Return the `FeatureDirections` of the new atoms if the new atoms predict hidden entries of
    ``rows`` better than the first atoms, else ``features``.
    """
    first = features.learner
    x = to_tensor(rows)
    # Only data with a hierarchy need the second search. Data count as a hierarchy if more than a
    # tenth of the atoms imply other atoms.
    if (np.diff(features.implied.indptr) > 0).mean() <= 0.1:
        return features
    # The second search has three times the penalty at which a search with alpha="auto" begins, not
    # three times the penalty at which such a search ends. The last penalty is 0.25 to 4 times the
    # first one, and three times a large last penalty would lose paths.
    alpha = 3 * auto_alpha(x)
    second = (
        clone(first).set_params(alpha=alpha).fit(X).choose_alpha(X, criterion="support")
    )
    # Its codes get at least the penalty 2 * alpha, at which the atoms are compared below.
    second.alpha_ = max(second.alpha_, 2 * alpha)
    # To compare the two sets of atoms, both predict hidden entries by the lasso's codes with the
    # penalty 2 * alpha, the penalty of the problem, which has the index 0. With debias=0.0 the
    # lasso's bias is not removed from codes. The first atoms have to be worse by more than CHANCE
    # standard errors.
    held_out = Problem(x, 2 * alpha, positive_code=True).hide()
    atoms = (to_tensor(learner.components_).to(x) for learner in (first, second))
    of_first, of_second = (held_out.at(part, index=0, debias=0.0) for part in atoms)
    is_better = held_out.worse(of_first, of_second, CHANCE)
    return feature_directions(second, X) if is_better else features


def feature_directions(
    learner: Any, X: Any, *, refine: bool = False
) -> FeatureDirections:
    r"""Return the direction of each atom's feature in data where some features imply others.

    For example, "poodle" implies "dog". The sparsest code of a sample then has one atom for a
    feature and all features that it implies, a *path* in the hierarchy, instead of an atom for each
    feature (called absorption [1]_). The direction of the feature is what its path adds to other
    paths: the residual of a non-negative least squares fit of the atom by the atoms near it. Near
    atoms have cosines of 0.4 to 0.97 with the atom, and at most 1.2 times its size. The size of an
    atom is the mean projection on it of the samples that use it, minus the projection of the mean.

    The mean of the samples that use the atom has to stand out along the residual, by 3 standard
    deviations of all samples. Otherwise the direction is the atom itself. In data without a
    hierarchy most directions are atoms.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and a ``transform`` that
        returns non-negative codes.
    X : array-like, memory map, dataset or iterable of batches
        Samples, (n_samples, n_features), such as the training samples. They are read a part at a
        time.
    refine : bool, default=False
        Whether to fit a copy of the learner once more if more than a tenth of the directions are
        not the atoms. The second fit has three times the penalty that a fit with ``alpha="auto"``
        begins with, since a larger penalty finds the paths of a hierarchy better. The new atoms are
        used if they predict hidden entries better, with codes of twice the penalty of the second
        fit. ``X`` has to be the training samples. ``learner`` itself is not changed.

    Returns
    -------
    FeatureDirections
        Named tuple of `directions`, (n_components, n_features); `implied`, sparse, (n_components,
        n_components); `prominence` and `thresholds`, (n_components,); and `learner`. With
        ``refine`` it may be the learner of the second fit. The penalty of its codes is then the
        larger of two: the choice of ``choose_alpha(X, criterion="support")``, and twice the penalty
        of the second fit.

    Raises
    ------
    ValueError
        If codes are negative, if the learner is convolutional, or if data have missing entries.

    Notes
    -----
    ``directions`` do not replace ``components_``: codes are still codes of the paths, and
    reconstructions (``inverse_transform``) are sums of ``components_``. A sample whose path has no
    atom uses the atoms of sibling paths instead, although it has at most half of the features of a
    sibling. ``codes * (X @ directions.T > thresholds)`` sets such codes of absent features to 0.
    Features that a sample has by implication have no codes of their own; `implied` leads to the
    atoms that share them.

    Where a parent with :math:`k` children never occurs without a child, the data do not separate
    the parent from the children: directions of children of the parent's size have the cosine
    :math:`\sqrt{k / (k + 1)}` with their features.

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
    >>> learner = PUDLEDictionaryLearning.from_components(
    ...     atoms, alpha=0.1, positive_code=True
    ... )
    >>> X = np.repeat([np.zeros(2), dog, dog + poodle], [50, 10, 2], axis=0)
    >>> feature_directions(learner, X).directions
    array([[1., 0.],
           [0., 1.]])
    """
    learner = check_learner_of_rows(learner)
    atoms = unit_atoms(np.asarray(learner.components_, dtype=np.float64))
    # Sums over samples, which are read a part at a time: for each atom the number of the samples
    # that use the atom (``uses``) and the sum of these samples (``users``); the sum of all samples
    # (``mean``), and the sum of the outer products of all samples with themselves (``squares``).
    n = 0
    uses = np.zeros(len(atoms))
    mean = np.zeros(atoms.shape[1])
    users = np.zeros(atoms.shape)
    squares = np.zeros((atoms.shape[1],) * 2)
    compared = []
    for rows, codes in encode_parts(learner, X):
        if codes.min(initial=0) < 0:
            raise ValueError("Some codes are negative. Fit with positive_code=True.")
        rows = centre(learner, rows)
        used = (codes > 0).astype(np.float64)
        n = n + len(rows)
        uses = uses + used.sum(axis=0)
        mean = mean + rows.sum(axis=0)
        users = users + used.T @ rows
        squares = squares + rows.T @ rows
        # `_refined` compares two sets of atoms on the rows ``compared``. It needs no more than
        # 2,000 rows of each of the first eight parts, and the parts are not kept.
        if len(compared) < 8:
            compared.append(rows[spread_rows(len(rows), 2000)])
    mean /= n
    # From here on ``users`` has for each atom the mean of the samples that use the atom, minus the
    # mean of all samples; zeros if no sample uses it.
    users = users / np.maximum(uses, 1)[:, None] - mean * (uses > 0)[:, None]
    # ``deviations`` has the standard deviation of all samples along each residual.
    residuals, weights = _innovations(atoms, (users * atoms).sum(axis=1))
    variances = ((residuals @ (squares / n - np.outer(mean, mean))) * residuals).sum(
        axis=1
    )
    deviations = np.sqrt(np.maximum(variances, 0))
    implies = (np.diff(weights.indptr) > 0) & (uses > 0) & (deviations > 0)
    prominence = np.where(
        implies, (users * residuals).sum(axis=1) / np.where(implies, deviations, 1), 0.0
    )
    # A residual becomes a direction from a prominence of 3 on, which tells data with a hierarchy
    # from data without: with a hierarchy 95 % of the residuals have a prominence above 2.9, and
    # without a hierarchy 95 % have less.
    is_residual = prominence >= 3.0
    implied = sparse.csr_array(weights.multiply(is_residual[:, None]))
    implied.eliminate_zeros()
    # A sample without the feature may use the atom of the feature's path if the sample's own path
    # has no atom. A threshold halfway between the projections of the mean of all samples and of the
    # mean of the samples that use the atom removes such codes: the mean F1 score of codes as
    # classifiers of features rises from 0.77 to 0.81 (benchmarks/bench_synthsae.py). ``middle`` has
    # the baseline of the learner added again, which ``mean`` lacks.
    middle = mean - centre(learner, np.zeros_like(mean)) + 0.5 * users
    thresholds = np.where(is_residual, (middle * residuals).sum(axis=1), -np.inf)
    directions = np.where(is_residual[:, None], residuals, atoms)
    features = FeatureDirections(directions, implied, prominence, thresholds, learner)
    return _refined(features, X, np.concatenate(compared)) if refine else features


def from_sae(
    decoder: ArrayLike | Tensor,
    X: ArrayLike | Tensor | None = None,
    *,
    bias: ArrayLike | Tensor | None = None,
    l0: float | None = None,
    **params: Any,
) -> PUDLEDictionaryLearning:
    """Return a fitted learner whose atoms are the decoder of a sparse autoencoder.

    Its ``transform`` replaces the autoencoder's encoder: codes solve the non-negative lasso exactly
    for rows minus the decoder's bias.

    Parameters
    ----------
    decoder : array-like or Tensor of shape (n_components, n_features)
        Rows of the decoder, one for each latent, as ``W_dec`` of SAELens and of sparsify.
    X : array-like or Tensor of shape (n_samples, n_features), default=None
        Activations from which the penalty is chosen, by the learner's ``choose_alpha`` with
        ``criterion="support"``, or "prediction" for ``positive_code=False``. None: pass ``alpha``.
    bias : array-like or Tensor of shape (n_features,), default=None
        Bias of the decoder, ``b_dec``.
    l0 : float, default=None
        Mean number of nonzero codes of a sample that the penalty is chosen for; needs ``X``.
    **params : dict
        Parameters of `skpudle.PUDLEDictionaryLearning`. The default of ``positive_code`` is True
        here. ``alpha`` is a number without ``X``, and must not be a number with ``X``.

    Returns
    -------
    PUDLEDictionaryLearning
        A fitted learner. ``components_`` are the rows of the decoder divided by their norms, in
        their order; a zero row stays zero. So a code is the norm of the latent's contribution, in
        units of the activations; divide codes by the norms of the rows to get units of the
        autoencoder's latents. ``intercept_`` is the decoder's bias.

    Raises
    ------
    ValueError
        If the decoder is not a matrix of finite numbers, if neither ``X`` nor a number as ``alpha``
        is passed, if both are, or if ``l0`` is passed without ``X``.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.sae import from_sae
    >>> from_sae(2 * np.eye(3), alpha=0.1).transform(
    ...     np.array([[1.0, 0.0, -1.0]])
    ... ).round(2)
    array([[0.9, 0. , 0. ]])
    """
    atoms = unit_atoms(to_numpy(to_tensor(check_rows(decoder))))
    params = {"positive_code": True, "alpha": "auto"} | params
    automatic = isinstance(params["alpha"], str) and params["alpha"] == "auto"
    if automatic == (X is None) or (X is None and l0 is not None):
        raise ValueError(
            f"alpha={params['alpha']!r:.50} and l0={l0!r:.50} came with{'out' * (X is None)} data. "
            "Pass activations as X, with or without l0, or a number as alpha and neither."
        )
    # With ``X`` the penalty 1.0 is a placeholder: `choose_alpha` below replaces it, but needs a
    # fitted learner.
    if X is not None:
        params["alpha"] = 1.0
    learner = PUDLEDictionaryLearning.from_components(atoms, intercept=bias, **params)
    if X is None:
        return learner
    criterion = "support" if learner.positive_code else "prediction"
    return learner.set_params(alpha="auto").choose_alpha(X, l0=l0, criterion=criterion)
