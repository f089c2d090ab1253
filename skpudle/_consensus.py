"""Fit an estimator many times, and keep the dictionary that its replicates agree on.

Each fit is called a replicate. The atoms of every replicate are matched one to one with the atoms
of a reference. The reference starts as the medoid, the replicate nearest to all replicates, and
then becomes the median of the matched atoms. Atoms far from the atoms of other replicates are
outliers and left out of the median. This is consensus NMF with an assignment instead of k-means:
two atoms of one replicate never fall into one cluster, and atoms are compared up to sign.
"""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.metaestimators import available_if
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params, _estimator_has, check_is_fitted

from skpudle._data.arrays import host_array
from skpudle._fit.messages import warn
from skpudle._learners.parameters import fits, sets_parameters
from skpudle.metrics import match_atoms, recombine_atoms, unit_atoms


def seed_clone(estimator, random_state):
    """Return a clone with a new seed in each of its parameters ``random_state``."""
    estimator, random_state = clone(estimator), check_random_state(random_state)
    names = [name for name in estimator.get_params() if name.split("__")[-1] == "random_state"]
    seeds = {name: random_state.randint(np.iinfo(np.int32).max) for name in sorted(names)}
    return estimator.set_params(**seeds)


def _fit_rows(estimator, X, params, rows):
    """Return the estimator after a fit to the samples with the indices ``rows``, None for all.

    ``params`` are keyword arguments of `fit`; those with an entry for each sample are cut, too.
    """
    if rows is None:
        return estimator.fit(X, **params)
    params = _check_method_params(X, params, indices=rows)
    return estimator.fit(_safe_indexing(X, rows), **params)


def _measure_isolation(replicates):  # -> list of (n_components,)
    """Return the mean distance, up to sign, of every unit atom to its nearest neighbours.

    Neighbours are atoms of any replicate. ``replicates`` is a list of arrays (n_components,
    n_features).
    """
    # The number of neighbours is 0.3 times the number of replicates, as in consensus NMF.
    everything, n_nearest = np.concatenate(replicates), max(1, int(0.3 * len(replicates)))
    distances = []
    for atoms in replicates:
        # The last cosine in the order is the atom's cosine with itself, which is left out. An atom
        # of zeros has the distance sqrt(2) to all atoms.
        cosines = np.sort(np.minimum(np.abs(atoms @ everything.T), 1), axis=1)
        nearest = cosines[:, -1 - n_nearest : -1]
        distances.append(np.sqrt(2 - 2 * nearest).mean(axis=1))
    return distances


def _align_atoms(atoms, reference):  # -> (n_reference,), (n_reference, n_features)
    """Match atoms with a reference; return the match of each reference atom, and aligned atoms.

    A reference atom without a match has the index -1 and an aligned atom of zeros.
    """
    match = match_atoms(atoms, reference)
    indices, aligned = np.full(len(reference), -1), np.zeros_like(reference)
    indices[match.reference_indices] = match.indices
    aligned[match.reference_indices] = match.align_dictionary(atoms)
    return indices, aligned


def _measure_agreement(aligned):  # (n_replicates, n_components, n_features) -> (n_components,)
    """Return for each atom the mean modulus of the cosine over all pairs of replicates."""
    cosines = np.einsum("rkf,skf->krs", aligned, aligned, optimize=True)
    pairs = np.abs(cosines[:, ~np.eye(len(aligned), dtype=bool)])
    return np.minimum(pairs.mean(axis=1), 1)


def _find_consensus(replicates):
    """Match unit atoms of replicates; return medians of matched atoms, and their agreement.

    Parameters
    ----------
    replicates : list of ndarray of shape (n_components, n_features)
        Unit atoms of each replicate; numbers of atoms may differ.

    Returns
    -------
    medoid : int
        Number of the replicate that the reference started as.
    components : ndarray of shape (n_components, n_features)
        Unit atoms of the consensus, in the order and with the signs of the medoid.
    indices : ndarray of shape (n_replicates, n_components)
        The atom of each replicate that matches each atom of the consensus, -1 for none.
    dense : ndarray of bool of shape (n_replicates, n_components)
        True for a matched atom that is no outlier.
    stability : ndarray of shape (n_components,)
        Mean modulus of the cosine between matched atoms of two replicates.
    """
    isolation = _measure_isolation(replicates)
    medoid = int(np.argmin([distances.mean() for distances in isolation]))
    reference, indices = replicates[medoid], None
    # At most 20 rounds: matches usually stop changing after two or three.
    for _ in range(20):
        before = indices
        indices, aligned = map(np.stack, zip(*(_align_atoms(a, reference) for a in replicates)))
        distances = np.stack([d[i] for d, i in zip(isolation, indices, strict=True)])
        # An atom with a mean distance above 0.5 to its neighbours is an outlier, as in consensus
        # NMF. Distances of unit atoms up to sign lie between 0 and 1.41. The distance 0.5 is a
        # cosine of 0.875.
        dense = (indices >= 0) & (distances <= 0.5)
        if np.array_equal(before, indices):
            break
        reference = unit_atoms(np.stack([
            np.median(aligned[kept, k], axis=0) if kept.any() else replicates[medoid][k]
            for k, kept in enumerate(dense.T)
        ]))  # fmt: skip
    return medoid, reference, indices, dense, _measure_agreement(aligned)


@sets_parameters(estimator=[HasMethods(["fit", "transform"])])
class ConsensusDictionary(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The dictionary that many fits of an estimator agree on, and how stable each atom is.

    By default `fit` makes 20 replicates from different seeds, matches their atoms up to order and
    sign, and takes the median of every set of matched atoms, without outliers. The estimator's
    own `transform` computes codes. Fits end in local minima, so that some atoms are accidents of
    the seed or of the samples.

    Parameters
    ----------
    estimator : estimator
        Any estimator whose `fit` leaves ``components_``:
        `skpudle.PUDLEDictionaryLearning`, `~sklearn.decomposition.NMF`,
        `~sklearn.decomposition.FastICA`, `~sklearn.decomposition.MiniBatchDictionaryLearning` ...

    n_replicates : int, default=20
        Number of fits.

    resample : {"seeds", "bootstrap", "halves"}, default="seeds"
        What replicates differ by, besides their seeds: "seeds" fits all of them to all samples, as
        consensus NMF [1]_ does; "bootstrap" to samples drawn with replacement; "halves" to random
        halves. "seeds" measures sensitivity to initialisation, "bootstrap" and "halves" sensitivity
        to sampling.

    n_jobs : int, default=None
        Number of processes (or threads, by `joblib.parallel_config`) that fit replicates.

    random_state : int, RandomState instance or None, default=None
        Determines the seeds of the replicates and their samples.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, ...)
        Medians of matched atoms, with the median of their norms. If all matches of an atom are
        outliers, the medoid replicate's atom is kept.

    stability_ : ndarray of shape (n_components,)
        Mean modulus of the cosine between the matched atoms of two replicates, from 0 to 1.

    chance_stability_ : float
        Mean of ``stability_`` for random replicates, whose atoms are random with the mean and the
        second moments of the replicate's atoms. A positive ``stability_ - chance_stability_`` is
        agreement above chance. Fits of different seeds to the same samples agree above chance even
        if the samples are noise; `skpudle.metrics.atom_support` tests which atoms are real.

    n_agreeing_ : ndarray of shape (n_components,)
        Number of replicates in the median of an atom: the replicates whose atom is no outlier.

    replicates_ : list of ndarray of shape (n_components, ...)
        ``components_`` of every replicate.

    matches_ : ndarray of shape (n_replicates, n_components)
        The atom of each replicate that matches each atom, -1 for none.

    estimator_ : estimator
        What `transform` uses: the medoid replicate, with ``components_`` replaced. An encoder that
        learns matrices and thresholds for each atom (``separate_atoms``) is trained on all samples
        with the consensus as ``dict_init``.

    n_features_in_ : int
        Number of features seen in `fit`.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of features seen in `fit`, where ``X`` has names.

    See Also
    --------
    skpudle.metrics.dictionary_stability : Agreement of dictionaries without a consensus.
    skpudle.metrics.atom_support : Which atoms the samples support.
    skpudle.plotting.StabilityDisplay : Stability of each atom, as a picture.

    Notes
    -----
    The reference starts as the medoid, the replicate whose atoms are nearest to the atoms of all
    replicates. Every replicate is matched with it by the best assignment of all atoms together, and
    the reference becomes the median of the matches that are no outliers, until no match changes.
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
        """Set the parameters."""

    @fits(validates_nested=True)
    def fit(self, X: ArrayLike, y: None = None, **fit_params: Any) -> Self:
        """Fit the replicates, and match their atoms.

        Parameters
        ----------
        X : array-like
            What `fit` of the estimator takes; to draw from samples it has to be an array, a data
            frame, a sparse array or a list.
        y : None
            Ignored.
        **fit_params : dict
            What `fit` of the estimator takes beside, such as ``sample_weight``. With
            ``resample="bootstrap"`` and "halves" samples are drawn without regard to it, and a
            replicate fits the values of the samples that were drawn.

        Returns
        -------
        self
            The fitted estimator.

        Warns
        -----
        UserWarning
            If all replicates are the same, so that their agreement has no meaning.
        """
        random_state = check_random_state(self.random_state)
        if self.resample != "seeds":
            (X,) = indexable(X if issparse(X) else host_array(X))
        fitted = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit_rows)(seed_clone(self.estimator, random_state), X, fit_params, rows)
            for rows in [self._draw_rows(X, random_state) for _ in range(self.n_replicates)]
        )
        self.replicates_ = [np.asarray(host_array(one.components_)) for one in fitted]
        first = self.replicates_[0]
        if all(np.array_equal(atoms, first) for atoms in self.replicates_[1:]):
            warn(
                f"All replicates of {type(self.estimator).__name__} are the same, so their "
                "agreement means little: its fit does not depend on random_state. Pass "
                "resample='bootstrap'."
            )
        flat = [atoms.reshape(len(atoms), -1).astype(np.float64) for atoms in self.replicates_]
        replicates = [unit_atoms(atoms) for atoms in flat]
        found, rng = _find_consensus(replicates), np.random.RandomState(0)
        medoid, units, self.matches_, dense, self.stability_ = found
        *_, by_chance = _find_consensus([recombine_atoms(atoms, rng) for atoms in replicates])
        self.chance_stability_, self.n_agreeing_ = float(by_chance.mean()), dense.sum(axis=0)
        norms = [
            np.where(i < 0, np.nan, np.linalg.norm(atoms, axis=1)[i])
            for atoms, i in zip(flat, self.matches_, strict=True)
        ]
        components = units * np.nanmedian(norms, axis=0)[:, None]
        components = components.reshape(self.replicates_[medoid].shape).astype(first.dtype)
        self.estimator_ = self._with_components(fitted[medoid], components, X, fit_params)
        self.components_ = self.estimator_.components_
        return self

    def _draw_rows(self, X, random_state):  # -> (n_drawn,) or None
        """Return the indices of the samples that a replicate is fitted to, None for all."""
        if self.resample == "seeds":
            return None
        n = np.shape(X)[0]
        if self.resample == "bootstrap":
            return random_state.randint(n, size=n)
        return random_state.permutation(n)[: (n + 1) // 2]

    def _with_components(self, medoid, components, X, fit_params):
        """Return the medoid replicate with new components, (n_components, ...).

        A learner with a learned encoder is fitted to ``X`` again with the components as its start,
        since an encoder learned for the old atoms does not fit the new ones.
        """
        if getattr(medoid, "analysis_components_", None) is not None:
            given = dict(dict_init=components, n_components=len(components))
            # a fit from given atoms has no intercept unless it is told
            if np.ndim(getattr(medoid, "intercept_", 0.0)):
                given["fit_intercept"] = True
            return clone(medoid).set_params(**given).fit(X, **fit_params)
        medoid.components_ = components
        if hasattr(medoid, "mixing_"):  # FastICA, whose inverse_transform uses it
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
        array of shape (n_samples, n_components)
            Codes.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.transform(X)

    @available_if(_estimator_has("inverse_transform"))
    def inverse_transform(self, X: ArrayLike) -> np.ndarray:
        """Return the data that codes stand for, by the estimator's own `inverse_transform`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_components)
            Codes, as `transform` returns them.

        Returns
        -------
        array of shape (n_samples, n_features)
            Reconstructed data.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.inverse_transform(X)

    @available_if(_estimator_has("score"))
    def score(self, X: ArrayLike, y: None = None, **of_samples: Any) -> float:
        """Score data with the consensus, by the estimator's own `score`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : None
            Ignored.
        **of_samples : dict
            What `score` of the estimator takes for samples, such as ``sample_weight``.

        Returns
        -------
        float
            The score.
        """
        check_is_fitted(self, "estimator_")
        return self.estimator_.score(X, **of_samples)

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
        tags, own = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags, tags.transformer_tags = own.input_tags, own.transformer_tags
        tags.non_deterministic = own.non_deterministic
        return tags
