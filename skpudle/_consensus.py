"""Consensus of many fits: `ConsensusDictionary` keeps the dictionary on which the fits agree.

Each fit is called a replicate. The atoms of every replicate are matched one to one with the atoms
of a reference dictionary. The reference starts as the medoid, the replicate whose atoms are nearest
to the atoms of all replicates, and then becomes the median of the matched atoms. Atoms that are far
from the atoms of other replicates are outliers and left out of the median. The method is consensus
NMF with an assignment instead of k-means: two atoms of one replicate never fall into one cluster,
and atoms are compared up to sign.
"""

from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import (
    _safe_indexing,
    check_random_state,
    get_tags,
    indexable,
    resample,
)
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import (
    _check_method_params,
    _estimator_has,
    check_is_fitted,
)

from skpudle._data.arrays import host_array, refuse_text, warn
from skpudle._learners.parameters import fits, sets_parameters
from skpudle.metrics import match_atoms, recombine_atoms, unit_atoms


def seed_clone(estimator, random_state):
    """Return an unfitted clone with new seeds, for a replicate or for the `DictionaryImputer`.

    Every parameter ``random_state`` of the estimator, and of estimators inside it, gets a seed that
    is drawn from ``random_state``, a seed or RandomState.
    """
    estimator = clone(estimator)
    random_state = check_random_state(random_state)
    names = [
        name
        for name in estimator.get_params()
        if name.split("__")[-1] == "random_state"
    ]
    seeds = {
        name: random_state.randint(np.iinfo(np.int32).max) for name in sorted(names)
    }
    return estimator.set_params(**seeds)


def _fit_rows(estimator, X, params, rows):
    """Fit one replicate, ``estimator``, to the samples with the indices ``rows``, and return it.

    None as ``rows`` stands for all samples of ``X``. ``params`` are the user's keyword arguments of
    `fit`. If an argument has an entry for each sample, only the entries of ``rows`` are passed.
    """
    params = _check_method_params(X, params, indices=rows)
    return estimator.fit(_safe_indexing(X, rows), **params)


def _measure_isolation(replicates):  # -> list of (n_components,)
    """Return how isolated every atom is: its mean distance, up to sign, to its nearest neighbours.

    Atoms with large values are outliers. Neighbours are atoms of any replicate. ``replicates`` is a
    list of arrays (n_components, n_features) of unit atoms. The result has one array for each
    replicate, with values from 0 to 1.41.
    """
    # The number of neighbours, 0.3 times the number of replicates, is that of consensus NMF: an
    # atom that most replicates find has this many near neighbours.
    all_atoms = np.concatenate(replicates)
    n_nearest = max(1, int(0.3 * len(replicates)))
    distances = []
    for atoms in replicates:
        # The largest cosine is left out, since it is the cosine of the atom with itself. An atom of
        # zeros has the distance sqrt(2) to all atoms.
        cosines = np.sort(np.minimum(np.abs(atoms @ all_atoms.T), 1), axis=1)
        nearest = cosines[:, -1 - n_nearest : -1]
        distances.append(np.sqrt(2 - 2 * nearest).mean(axis=1))
    return distances


class _Consensus(NamedTuple):
    """Medians of matched atoms of replicates, and the agreement of the matches.

    Attributes
    ----------
    medoid : int
        Number of the replicate that the reference started as.
    components : ndarray of shape (n_components, n_features)
        Unit atoms of the consensus, in the order and with the signs of the medoid.
    indices : ndarray of shape (n_replicates, n_components)
        For each replicate the indices of its atoms that match the atoms of the consensus, -1 for
        none.
    agrees : ndarray of bool of shape (n_replicates, n_components)
        True for a matched atom that is not an outlier.
    stability : ndarray of shape (n_components,)
        Mean modulus of the cosine between matched atoms of two replicates, over all pairs of
        replicates; 0 for a pair in which a replicate has no match.
    """

    medoid: int
    components: np.ndarray
    indices: np.ndarray
    agrees: np.ndarray
    stability: np.ndarray


def _find_consensus(replicates):  # -> _Consensus
    """Find the consensus of replicates: medians of matched atoms, and their agreement.

    ``replicates`` is a list of arrays (n_components, n_features) of unit atoms; numbers of atoms
    may differ.
    """
    isolation = _measure_isolation(replicates)
    medoid = int(np.argmin([distances.mean() for distances in isolation]))
    reference = replicates[medoid]
    indices = None
    # Atoms are matched with the reference, and the reference becomes the median of the matches,
    # until no match changes: usually after two or three iterations, and 20 are the limit.
    for _ in range(20):
        before = indices
        indices = np.full((len(replicates), len(reference)), -1)
        # ``aligned`` has the matched atoms of each replicate, with the order and the signs of the
        # reference, and zeros where an atom of the reference has no match.
        aligned = np.zeros((*indices.shape, reference.shape[1]))
        for i, atoms in enumerate(replicates):
            match = match_atoms(atoms, reference)
            indices[i, match.reference_indices] = match.indices
            aligned[i, match.reference_indices] = match.align_dictionary(atoms)
        distances = np.stack([
            of_atoms[matched]
            for of_atoms, matched in zip(isolation, indices, strict=True)
        ])  # fmt: skip
        # An atom is an outlier if its mean distance to its neighbours is above 0.5, the limit of
        # consensus NMF. For unit atoms this distance is a cosine of 0.875. Where a match is missing
        # (index -1), the distance belongs to another atom and is ignored.
        agrees = (indices >= 0) & (distances <= 0.5)
        if np.array_equal(before, indices):
            break
        medians = replicates[medoid].copy()
        for k, kept in enumerate(agrees.T):
            if kept.any():
                medians[k] = np.median(aligned[kept, k], axis=0)
        reference = unit_atoms(medians)
    # ``cosines`` are (n_components, n_replicates, n_replicates), and ``pairs`` the moduli for two
    # different replicates.
    cosines = np.einsum("rkf,skf->krs", aligned, aligned, optimize=True)
    pairs = np.abs(cosines[:, ~np.eye(len(aligned), dtype=bool)])
    stability = np.minimum(pairs.mean(axis=1), 1)
    return _Consensus(medoid, reference, indices, agrees, stability)


@sets_parameters(estimator=[HasMethods(["fit", "transform"])])
class ConsensusDictionary(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """The dictionary on which many fits of an estimator agree, and how stable each atom is.

    Fits of a dictionary end in local minima, so some atoms are accidents of the seed or of the
    samples. By default `fit` makes 20 fits (the replicates) from different seeds, matches their
    atoms up to order and sign, and takes the median of every set of matched atoms, without
    outliers. The estimator's own `transform` computes codes.

    Parameters
    ----------
    estimator : estimator
        Any estimator whose `fit` leaves ``components_``:
        `skpudle.PUDLEDictionaryLearning`, `~sklearn.decomposition.NMF`,
        `~sklearn.decomposition.FastICA`, `~sklearn.decomposition.MiniBatchDictionaryLearning` ...

    n_replicates : int, default=20
        Number of fits.

    resample : {"seeds", "bootstrap", "halves"}, default="seeds"
        Samples of a replicate: with "seeds" all samples, as in consensus NMF [1]_, so that only
        seeds differ; with "bootstrap" samples drawn with replacement; with "halves" a random half.
        "seeds" measures sensitivity to initialisation, "bootstrap" and "halves" also measure
        sensitivity to sampling.

    n_jobs : int, default=None
        Number of processes (or threads, by `joblib.parallel_config`) that fit replicates.

    random_state : int, RandomState instance or None, default=None
        Determines the seeds of the replicates and their samples.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, ...)
        The consensus: medians of matched atoms, with the median of the norms of the matched atoms.
        If all matches of an atom are outliers, it is the atom of the medoid (see Notes).

    stability_ : ndarray of shape (n_components,)
        Mean modulus of the cosine between the matched atoms of two replicates, from 0 to 1.

    chance_stability_ : float
        Mean of ``stability_`` for replicates whose atoms are replaced by random atoms with the same
        mean and second moments. A positive ``stability_ - chance_stability_`` is
        agreement above chance. Fits of different seeds to the same samples agree above chance even
        if the samples are noise; `skpudle.inspection.atom_support` tests which atoms are real.

    n_agreeing_ : ndarray of shape (n_components,)
        Number of replicates in the median of an atom, that is, with a match that is not an outlier.

    replicates_ : list of ndarray of shape (n_components, ...)
        ``components_`` of every replicate.

    matches_ : ndarray of shape (n_replicates, n_components)
        For each replicate the indices of its atoms that match the atoms in ``components_``, -1 for
        none.

    estimator_ : estimator
        The fitted estimator that `transform` uses: the medoid, with the consensus as
        ``components_``. An estimator whose encoder has matrices of its own (``separate_atoms``) is
        fitted to all samples again, with the consensus as ``dict_init``.

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, where ``X`` has names.

    See Also
    --------
    skpudle.metrics.dictionary_stability : Agreement of dictionaries without a consensus.
    skpudle.inspection.atom_support : Which atoms the samples support.
    skpudle.plotting.StabilityDisplay : Stability of each atom, as a picture.

    Notes
    -----
    The reference starts as the medoid, the replicate whose atoms are nearest to the atoms of all
    replicates. Every replicate is matched with it by the best assignment of all atoms together, and
    the reference becomes the median of the matches without outliers, until no match changes.
    Consensus NMF [1]_ clusters by k-means instead, which may put two atoms of one replicate into
    one cluster.

    Replicates may have different numbers of atoms; the consensus has the number of the medoid.
    Atoms of convolutional learners are compared as they are, without shifts.

    References
    ----------
    .. [1] D. Kotliar et al., "Identifying gene expression programs of cell-type identity and
       cellular activity with single-cell RNA-Seq", eLife 8:e43803, 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(16)
    >>> consensus = ConsensusDictionary(learner, n_replicates=5, random_state=0).fit(X)
    >>> consensus.transform(X).shape, consensus.stability_.shape
    ((1797, 16), (16,))
    """

    def __init__(
        self,
        estimator: Any,
        n_replicates: int = 20,
        *,
        resample: Literal["seeds", "bootstrap", "halves"] = "seeds",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    @fits(validates_nested=True)
    def fit(self, X: ArrayLike, y: None = None, **fit_params: Any) -> Self:
        """Fit the replicates, and match their atoms.

        Parameters
        ----------
        X : array-like
            What `fit` of the estimator takes. With ``resample="bootstrap"`` and "halves" it has to
            be an array, a data frame, a sparse array or a list, of shape (n_samples, ...).
        y : None
            Ignored.
        **fit_params : dict
            Further arguments of the estimator's `fit`, such as ``sample_weight``. With
            ``resample="bootstrap"`` and "halves" samples are drawn without regard to weights, and
            each replicate gets the weights of the samples that were drawn.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If parameters are invalid, the estimator refuses the data, or its fit has no
            ``components_``.

        Warns
        -----
        UserWarning
            If all replicates are the same, so that their agreement has no meaning.
        """
        refuse_text(X)
        random_state = check_random_state(self.random_state)
        # For each replicate the indices of its samples, None for all samples.
        samples = [None] * self.n_replicates
        if self.resample != "seeds":
            (X,) = indexable(X if issparse(X) else host_array(X))
            n = np.shape(X)[0]
            is_half = self.resample == "halves"
            samples = [
                resample(
                    np.arange(n),
                    replace=not is_half,
                    n_samples=(n + 1) // 2 if is_half else n,
                    random_state=random_state,
                )
                for _ in samples
            ]
        fitted = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit_rows)(
                seed_clone(self.estimator, random_state), X, fit_params, rows
            )
            for rows in samples
        )
        if not hasattr(fitted[0], "components_"):
            raise ValueError(
                f"{type(self.estimator).__name__} has no components_ after fit. Pass an estimator "
                "that learns atoms, such as PUDLEDictionaryLearning, NMF or FastICA."
            )
        self.replicates_ = [np.asarray(host_array(one.components_)) for one in fitted]
        first = self.replicates_[0]
        if all(np.array_equal(atoms, first) for atoms in self.replicates_[1:]):
            warn(
                "All replicates are equal, whatever their seeds. Pass resample='bootstrap'."
            )
        flat = [
            atoms.reshape(len(atoms), -1).astype(np.float64)
            for atoms in self.replicates_
        ]
        replicates = [unit_atoms(atoms) for atoms in flat]
        consensus = _find_consensus(replicates)
        # Stability by chance comes from the same computation with random atoms instead of the atoms
        # of each replicate. Its seed is fixed, so that the replicates alone determine the result.
        rng = np.random.RandomState(0)
        by_chance = _find_consensus(
            [recombine_atoms(atoms, rng) for atoms in replicates]
        )
        self.matches_ = consensus.indices
        self.stability_ = consensus.stability
        self.chance_stability_ = float(by_chance.stability.mean())
        self.n_agreeing_ = consensus.agrees.sum(axis=0)
        # Atoms of the consensus have norm 1. Each gets the median of the norms of its matches; an
        # atom without a match in a replicate has NaN there.
        norms = [
            np.where(matched < 0, np.nan, np.linalg.norm(atoms, axis=1)[matched])
            for atoms, matched in zip(flat, self.matches_, strict=True)
        ]
        components = consensus.components * np.nanmedian(norms, axis=0)[:, None]
        components = components.reshape(self.replicates_[consensus.medoid].shape)
        self.estimator_ = self._with_components(
            fitted[consensus.medoid], components.astype(first.dtype), X, fit_params
        )
        self.components_ = self.estimator_.components_
        return self

    def _with_components(
        self,
        medoid,
        components,
        X,
        fit_params,
    ):
        """Return the fitted medoid with new components, (n_components, ...), for ``estimator_``.

        A learner with a learned encoder is fitted to ``X`` again, with the components as
        ``dict_init`` and the keyword arguments ``fit_params``, since an encoder that was learned
        for the old atoms does not fit the new ones.
        """
        if getattr(medoid, "analysis_components_", None) is not None:
            learner = clone(medoid)
            learner.set_params(dict_init=components, n_components=len(components))
            # The learner adds an intercept for fit_intercept="auto" only if it searches for atoms,
            # and with an array as dict_init it does not. So True keeps the medoid's intercept.
            if np.ndim(getattr(medoid, "intercept_", 0.0)):
                learner.set_params(fit_intercept=True)
            return learner.fit(X, **fit_params)
        medoid.components_ = components
        # `inverse_transform` of FastICA uses ``mixing_`` instead of the components.
        if hasattr(medoid, "mixing_"):
            medoid.mixing_ = np.linalg.pinv(components)
        return medoid

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Encode data with the consensus, by the estimator's own `transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            What `transform` of the estimator takes.

        Returns
        -------
        array of shape (n_samples, n_features_out)
            Codes, as the estimator returns them.

        Raises
        ------
        NotFittedError
            If the consensus is not fitted.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.transform(X)

    @available_if(_estimator_has("inverse_transform"))
    def inverse_transform(self, X: ArrayLike) -> np.ndarray:
        """Reconstruct data from codes, by the estimator's own `inverse_transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features_out)
            Codes, as `transform` returns them.

        Returns
        -------
        array of shape (n_samples, n_features)
            Reconstructed data.

        Raises
        ------
        NotFittedError
            If the consensus is not fitted.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.inverse_transform(X)

    @available_if(_estimator_has("score"))
    def score(self, X: ArrayLike, y: None = None, **score_params: Any) -> float:
        """Score data with the consensus, by the estimator's own `score`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : None
            Ignored.
        **score_params : dict
            Further arguments of the estimator's `score`, such as ``sample_weight``.

        Returns
        -------
        float
            The score, in the estimator's own measure.

        Raises
        ------
        NotFittedError
            If the consensus is not fitted.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.score(X, **score_params)

    @property
    def n_features_in_(self):
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self):
        return self.estimator_.feature_names_in_

    @property
    def _n_features_out(self):
        return len(self.estimator_.get_feature_names_out())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        own = get_tags(self.estimator)
        tags.input_tags = own.input_tags
        tags.transformer_tags = own.transformer_tags
        tags.non_deterministic = own.non_deterministic
        return tags
