"""Metrics of codes: objective and reconstruction; and their scorers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import r2_score
from sklearn.utils import Bunch, check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import host_array
from skpudle._data.foreign import dictionary_of, drop_names
from skpudle._data.images import as_fractions

FLOATS = [np.float64, np.float32]


def check_pair(first, second, *, same_length=False):
    """Return two arrays, or the atoms of learners, checked to have rows of one shape."""
    first, second = (
        check_array(host_array(dictionary_of(given)), dtype=FLOATS, allow_nd=True)
        for given in (first, second)
    )
    start = 0 if same_length else 1
    if first.shape[start:] != second.shape[start:]:
        raise ValueError(
            f"Arrays of the shapes {first.shape} and {second.shape} cannot be compared. Pass atoms "
            "or samples of one shape, along the first axis."
        )
    return first, second


def check_learner_of_rows(learner):
    """Return a fitted learner, or the one of a consensus; its atoms have to be rows."""
    check_is_fitted(learner, "components_")
    learner = getattr(learner, "estimator_", learner)
    if np.ndim(learner.components_) != 2 or hasattr(learner, "atom_shape"):
        raise ValueError(
            f"Atoms of {type(learner).__name__} have positions, and its samples are images; pass a "
            "learner of rows."
        )
    return learner


def lasso_objective(
    X: ArrayLike, code: ArrayLike, reconstruction: ArrayLike, alpha: float
) -> float:
    r"""Return the mean over samples of the lasso objective.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    code : array-like of shape (n_samples, ...)
        Codes of the samples.
    reconstruction : array-like of the shape of X
        Data that the dictionary makes of the codes, such as ``code @ components``.
    alpha : float
        Sparsity penalty, in units of the data for atoms of unit norm.

    Returns
    -------
    float
        :math:`\frac{1}{n} \sum_i \frac{1}{2} \|x_i - D z_i\|_2^2 + \alpha \|z_i\|_1`: the objective
        of equation 1 of [1]_, averaged over the samples.

    Raises
    ------
    ValueError
        If `X` and `reconstruction` differ in shape or `code` in the number of samples.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
       backpropagation", arXiv:2106.00058.
    """
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    code = np.asarray(host_array(code))
    check_consistent_length(X, code)
    residual = np.square(X - reconstruction).sum(dtype=np.float64)
    return float((0.5 * residual + alpha * np.abs(code).sum(dtype=np.float64)) / len(X))


def code_and_reconstruct(estimator, X):
    """Return the codes of data, and what they stand for: arrays, or tensors for a tensor."""
    code = estimator.transform(X)
    if hasattr(estimator, "inverse_transform"):
        return code, estimator.inverse_transform(code)
    return code, code @ estimator.components_


def code_and_compare(estimator, X):
    """Return data in the units of the codes, the codes, and their reconstructions, as arrays."""
    code, reconstruction = map(host_array, code_and_reconstruct(estimator, X))
    X = host_array(X if np.ndim(X) == 2 else as_fractions(X))
    return X, np.asarray(code), np.asarray(reconstruction)


def reconstruction_r2_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float:
    """Return the share of the variance of new data that codes and dictionary explain.

    Parameters
    ----------
    estimator : estimator
        Fitted, with ``transform`` and either ``inverse_transform`` or ``components_``.
    X : array-like of shape (n_samples, ...)
        Data.
    y : object, default=None
        Ignored; here for scikit-learn's interface of a scorer.

    Returns
    -------
    float
        :math:`R^2`, features weighted by their variance: 1 for a perfect reconstruction, 0 for the
        mean of the data. It does not reward sparsity.
    """
    X, _, reconstruction = code_and_compare(estimator, X)
    pair = (np.asarray(array).reshape(len(array), -1) for array in (X, reconstruction))
    return float(r2_score(*pair, multioutput="variance_weighted"))


def _denoising_score(estimator, X, y=None, *, noise_std):
    X, code, reconstruction = code_and_compare(estimator, X)
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    residual = float(np.square(X - reconstruction).mean(dtype=np.float64))
    n_entries = X[0].size
    n_used = np.count_nonzero(code.reshape(len(X), -1), axis=1)
    share = float(np.minimum(n_used, n_entries).mean()) / n_entries
    if noise_std is not None:
        return noise_std**2 * (1 - 2 * share) - residual
    # codes with one entry per entry of the data fit any data: their score is that of the mean
    return -residual / (1 - share) ** 2 if share < 1 else -float(X.var(axis=0).mean())


def make_denoising_scorer(*, noise_std: float | None = None) -> Callable:
    r"""Return a scorer that estimates how far codes of noisy data are from the clean data.

    A search over ``alpha`` by this scorer finds the best denoising. The default score of a learner
    measures the prediction of held-out features, which favours larger penalties.

    Parameters
    ----------
    noise_std : float, default=None
        Standard deviation of the noise, in units of the data, if known: the scorer is then minus
        Stein's unbiased estimate of the risk (SURE). None: generalised cross-validation (GCV),
        which needs the data alone and fails where no dictionary explains them.

    Returns
    -------
    callable
        ``scorer(estimator, X, y=None)``, which can be pickled: minus the estimated mean squared
        error of an entry (for GCV, up to a constant), by ``transform`` and either
        ``inverse_transform`` or ``components_``.

    Notes
    -----
    With :math:`r` the mean square of the residual of :math:`m` entries, and :math:`k` nonzero
    entries of the codes, the estimates are :math:`r - \sigma^2 + 2 \sigma^2 k / m` and
    :math:`r / (1 - k / m)^2`. :math:`k` is the number of degrees of freedom of the lasso [1]_ for
    data that the dictionary was not learned from, such as the held-out part of a search. For hard
    thresholding it is too small, because its choice of entries adapts to the noise.

    References
    ----------
    .. [1] H. Zou, T. Hastie and R. Tibshirani, "On the 'degrees of freedom' of the lasso", Annals
       of Statistics 35, 2007.
    .. [2] G. Golub, M. Heath and G. Wahba, "Generalized cross-validation as a method for choosing
       a good ridge parameter", Technometrics 21, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.metrics import make_denoising_scorer
    >>> X, _, _ = make_dictionary_data(300, 16, 20, n_nonzero=2, random_state=0)
    >>> X += np.random.default_rng(0).normal(scale=0.1, size=X.shape)
    >>> learner = PUDLEDictionaryLearning(20, random_state=0)
    >>> scorer = make_denoising_scorer(noise_std=0.1)
    >>> search = GridSearchCV(learner, {"alpha": [0.05, 0.2]}, scoring=scorer).fit(X)
    """
    return partial(_denoising_score, noise_std=noise_std)


def unexplained_variance(X: ArrayLike, reconstruction: ArrayLike) -> float:
    """Return the fraction of the variance of data that a reconstruction leaves unexplained (FVU).

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    reconstruction : array-like of the shape of X
        Data that a dictionary makes of their codes.

    Returns
    -------
    float
        Sum of squared residuals over the sum of squared deviations from the mean of the samples: 0
        for a perfect reconstruction, 1 for the mean, NaN if all samples are equal. It is 1 minus
        the R^2 of `reconstruction_r2_scorer`.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    X, reconstruction = check_pair(X, reconstruction, same_length=True)
    variance = np.square(X - X.mean(axis=0, dtype=np.float64)).sum()
    return float(np.square(X - reconstruction).sum(dtype=np.float64) / variance)


def _codes_and_errors(learner, X, rows):  # -> codes (n, n_features_out), squared errors (n,)
    _, codes, reconstruction = code_and_compare(learner, X)
    return codes, np.nansum(np.square(rows - reconstruction), axis=1, dtype=np.float64)


def _without(learner, atom):
    """Return a copy of a learner in which no code uses one of the atoms.

    The atom becomes zero. A learned encoder has an analysis of its own, so its thresholds for the
    atom become infinite.
    """
    other = drop_names(learner)
    other.components_ = np.array(learner.components_)
    other.components_[atom] = 0
    if hasattr(learner, "thresholds_"):
        other.thresholds_ = np.array(learner.thresholds_)
        other.thresholds_[:, atom] = np.inf
    return other


def atom_importance(learner: Any, X: ArrayLike) -> Bunch:
    r"""Return how much each atom contributes: its uses, its energy, and the loss of R^2 without it.

    The energies of atoms do not add up to the energy that all atoms explain, since atoms are not
    orthogonal: copies share their energy, and removing one copy costs little. So each atom is
    removed in turn, the samples that used it are encoded by the remaining atoms, and the loss of
    R^2 is measured.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and `transform`:
        of this package, or `~sklearn.decomposition.NMF`,
        `~sklearn.decomposition.MiniBatchDictionaryLearning` and the like.
    X : array-like of shape (n_samples, n_features)
        Data, as `transform` takes them; NaN if the learner takes them for missing.

    Returns
    -------
    Bunch
        With these arrays of shape (n_components,):

        - ``usage``, the share of the samples whose code of the atom is not zero;
        - ``energy``, the share of the sum of :math:`z_{ij}^2 \|d_j\|^2`;
        - ``r2_loss``, by how much R^2 of the reconstruction falls without the atom, pooled over all
          known entries and against the column means. Samples that did not use it keep their codes.

    Raises
    ------
    ValueError
        If atoms are convolved.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.metrics import atom_importance
    >>> X = np.diag([2.0, 1.0]).repeat(5, axis=0)
    >>> learner = PUDLEDictionaryLearning.from_components(np.eye(2), alpha=1e-6)
    >>> atom_importance(learner, X).r2_loss.round(2)
    array([1.6, 0.4])
    """
    learner = check_learner_of_rows(learner)
    given = host_array(X)  # keeps names of columns
    X = check_array(given, dtype=FLOATS, ensure_all_finite="allow-nan", input_name="X")
    n_components = len(learner.components_)
    codes, errors = _codes_and_errors(learner, given, X)
    if codes.shape[1] == 2 * n_components:  # codes are split by sign
        codes = codes[:, :n_components] - codes[:, n_components:]
    energy = np.square(codes).sum(axis=0, dtype=np.float64)
    energy *= np.square(learner.components_).sum(axis=1)
    known = ~np.isnan(X)
    mean = np.nansum(X, axis=0) / np.maximum(known.sum(axis=0), 1)
    total = np.nansum(np.square(X - mean), dtype=np.float64)
    losses = np.zeros(n_components)
    for atom in range(n_components):
        users = np.flatnonzero(codes[:, atom])
        if len(users):
            _, left = _codes_and_errors(_without(learner, atom), X[users], X[users])
            losses[atom] = left.sum() - errors[users].sum()
    return Bunch(
        usage=(codes != 0).mean(axis=0),
        energy=energy / (energy.sum() or 1.0),
        r2_loss=losses / (total or 1.0),
    )
