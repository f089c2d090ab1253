"""`DictionaryImputer`: fill missing values by the reconstruction of a learner, or by factors."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn import config_context
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data

from skpudle._consensus import seed_clone
from skpudle._data.arrays import (
    check_rows,
    check_sample_weight,
    host_array,
    split_missing,
    to_numpy,
    to_tensor,
)
from skpudle._data.sources import Samples
from skpudle._fit.messages import listed
from skpudle._learners.factors import fit_factors
from skpudle._learners.parameters import sets_parameters
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.search.problem import Problem


def _fit_weighted(estimator, X, weight):
    """Fit an estimator with sample weights, (n_samples,) or None, and return it.

    In a pipeline the weights go to all steps whose `fit` takes weights (``takers``), if the last
    step is one of them. Otherwise they go to the estimator's own `fit`, which raises an error if it
    takes none, instead of learning a dictionary that ignores the weights.
    """
    if weight is None:
        return estimator.fit(X)
    steps = getattr(estimator, "steps", [])
    takers = [name for name, step in steps if has_fit_parameter(step, "sample_weight")]
    if not takers or takers[-1] != steps[-1][0]:
        return estimator.fit(X, sample_weight=weight)
    return estimator.fit(X, **{f"{name}__sample_weight": weight for name in takers})


def _best_model(learner):  # fitted default learner -> "atoms", "factors" or "means"
    """Return what predicts hidden entries best: the atoms of a learner, factors, or means.

    Scores are R^2 of hidden entries. The means have the score 0, since the features are
    standardised. Factor analysis counts with one factor for two features (``dense_score``). Atoms
    are useless if their score exceeds 0 by no more than chance (``tolerance``), for all numbers of
    atoms or for all penalties that the search tried. Scores are NaN for few samples: then the atoms
    fill the gaps.
    """
    factors = learner.factor_score_
    paths = [learner.size_path_, learner.penalty_path_]
    is_useless = any(
        path is not None and np.max(path.score - path.tolerance) <= 0 for path in paths
    )
    if factors is not None and factors.dense_score > max(factors.atoms_score, 0.0):
        return "factors"
    return "means" if is_useless else "atoms"


def _samples_of(rows):  # (n_samples, n_features), NaN where missing -> Samples
    # Gaps of ``x`` are filled by column means, and marked by 0 in ``mask``.
    x, mask = split_missing(to_tensor(rows.astype(np.float64)))
    return Samples(x, mask)


def _fit_factors(rows, weight):  # -> FactorModel
    """Fit factor analysis to standardised rows, with one factor for two features.

    This number of factors fills gaps better than one factor for each atom: in tables that factors
    predict better than atoms, there are fewer atoms than half the features. ``rows`` are
    (n_samples, n_features), NaN where missing, and ``weight`` (n_samples,) is the user's, or None.
    """
    samples = _samples_of(rows)
    if weight is not None:
        weight = check_sample_weight(weight, len(rows))
    # `Problem` asks for a penalty of codes, 1.0, which factor analysis does not use.
    problem = Problem(samples.x, 1.0, mask=samples.mask, weight=weight)
    return fit_factors(problem, rows.shape[1] // 2)


@sets_parameters(
    estimator=[HasMethods(["fit", "transform", "inverse_transform"]), None]
)
class DictionaryImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fill missing values by patterns that samples share.

    By default a dictionary is learned from the known values, in units of the features' standard
    deviations, and the data choose its number of atoms. The codes of a sample are computed from its
    known values, and the reconstruction, ``inverse_transform(transform(X))``, fills the gaps. Known
    values stay as they are. A sample without known values gets the means of the features.

    By default hidden values of held-out samples are predicted by the dictionary, by factor analysis
    and by the means, and the best of the three fills the gaps (``model_``): factor analysis in many
    tables of up to 128 features, and the means in a table of independent columns.

    Parameters
    ----------
    estimator : estimator, default=None
        Its ``fit`` and ``transform`` take NaN for missing values, and ``inverse_transform`` has a
        value everywhere: a `PUDLEDictionaryLearning`, or a pipeline with one. By default features
        are put in units of their standard deviation, and data choose the number of atoms:
        ``make_pipeline(StandardScaler(), PUDLEDictionaryLearning("auto", random_state=0))``.
    random_state : int, RandomState instance or None, default=None
        Seeds every ``random_state`` of the estimator. None leaves them as they are.

    Attributes
    ----------
    estimator_ : estimator
        The fitted estimator.
    model_ : {"atoms", "factors", "means"}
        What fills the gaps; "atoms" if ``estimator`` is set.
    means_ : ndarray of shape (n_features,)
        Means of the known values, which samples without known values get.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if the data of `fit` had them.

    See Also
    --------
    sklearn.impute.KNNImputer : Better for tables of a few features.
    sklearn.impute.IterativeImputer : A regression for each feature, with about the same errors.
    skpudle.images.inpaint : Fill the gaps of pictures.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import DictionaryImputer
    >>> X = load_digits().data
    >>> hidden = np.random.default_rng(0).random(X.shape) < 0.2
    >>> filled = DictionaryImputer().fit_transform(np.where(hidden, np.nan, X))
    >>> bool(np.isnan(filled).any())
    False
    >>> bool((filled == X)[~hidden].all())
    True
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    def _read(self, X, *, reset):  # -> (n_samples, n_features)
        """Return checked samples as an array, with NaN where values are missing.

        With ``reset``, as in `fit`, number and names of features are stored; without it they are
        compared with the stored ones.

        Raises
        ------
        ValueError
            If the samples are invalid or have other features than in `fit`.
        """
        rows = check_rows(host_array(X), estimator=self, allow_nan=True)
        validate_data(self, X, reset=reset, skip_check_array=True)
        return rows

    def fit(
        self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn the dictionary.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, NaN where a value is missing.
        y : object
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each sample counts, in the scales of features and in the dictionary. A weight
            of zero equals absence.

        Returns
        -------
        self
            The fitted imputer.

        Raises
        ------
        ValueError
            If a feature has no known value, or data or parameters are invalid.
        """
        self._validate_params()
        X = self._read(X, reset=True)
        empty = np.flatnonzero(np.isnan(X).all(axis=0))
        if len(empty):
            listing = listed(empty.tolist(), getattr(self, "feature_names_in_", None))
            raise ValueError(f"Features {listing} have no known value. Leave them out.")
        default = make_pipeline(
            StandardScaler(), PUDLEDictionaryLearning("auto", random_state=0)
        )
        learner = clone(default if self.estimator is None else self.estimator)
        if self.random_state is not None:
            learner = seed_clone(learner, self.random_state)
        # Metadata routing is off for the fit: if a user has enabled it, a pipeline refuses keyword
        # arguments such as ``standardscaler__sample_weight``.
        with config_context(enable_metadata_routing=False):
            self.estimator_ = _fit_weighted(learner, X, sample_weight)
        self.model_ = (
            "atoms" if self.estimator is not None else _best_model(learner[-1])
        )
        if self.model_ == "factors":
            # the rows of the default pipeline after its scaler, in units of standard deviations
            rows = learner[:-1].transform(X)
            self._factors = _fit_factors(rows, sample_weight)
        scaler = StandardScaler(with_std=False).fit(X, sample_weight=sample_weight)
        self.means_ = scaler.mean_
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Fill the gaps of samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples, NaN where a value is missing.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The samples with all gaps filled.

        Raises
        ------
        NotFittedError
            If the imputer is not fitted.
        ValueError
            If the samples are invalid or have other features than in `fit`.
        """
        check_is_fitted(self, "means_")  # the attribute that `fit` sets last
        X = self._read(X, reset=False)
        filled = X.copy()
        gaps = np.isnan(X)
        rows = gaps.any(axis=1)  # complete rows are not coded, to save time
        if rows.any():
            restored = self._restore(X[rows])
            restored[gaps[rows].all(axis=1)] = self.means_
            filled[rows] = np.where(gaps[rows], restored, X[rows])
        return filled

    def _restore(self, X):  # (n, n_features) -> the same, without gaps
        """Return the prediction of all values of samples by ``model_``."""
        if self.model_ == "means":
            return np.broadcast_to(self.means_, X.shape).astype(X.dtype)
        if self.model_ == "atoms":
            codes = self.estimator_.transform(X)
            return np.array(self.estimator_.inverse_transform(codes))
        scaler = self.estimator_[:-1]
        samples = _samples_of(scaler.transform(X))
        predicted = self._factors.predict(samples.x, samples.observed)
        return scaler.inverse_transform(to_numpy(predicted)).astype(X.dtype)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
