"""Fit an estimator many times, and keep the dictionary that its replicates agree on.

The atoms of all replicates are matched one to one with a reference, which is the median of the
matched atoms and starts as the medoid replicate. Atoms that only one replicate found are outliers,
and left out of the median. This is consensus NMF, with an assignment instead of k-means: two atoms
of one replicate never fall into one cluster, and signs are free.
"""

import warnings
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from scipy.sparse import issparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MetaEstimatorMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import (
    _num_samples,
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from skpudle._data.arrays import check_rows, host_array, to_numpy, to_tensor
from skpudle._data.names import explain_names, fit_context, users_level
from skpudle._data.sources import open_source
from skpudle._data.weights import check_sample_weight, merge_copies
from skpudle._learners.units import baseline_of
from skpudle._losses import loss_named
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding._unfold import default_step
from skpudle.metrics._stability import recombine_atoms
from skpudle.search.held_out import hash_rows

# rows of a sparse array that are dense at a time
_PART = 8192

# Most rounds of matching and median; matches stop changing after two or three.
_MAX_ROUNDS = 20


def _unit(atoms):  # (..., n_features) -> (..., n_features)
    """Return rows of norm 1; zero stays zero."""
    norms = np.linalg.norm(atoms, axis=-1, keepdims=True)
    return atoms / np.where(norms > 0, norms, 1)


def _has(name):
    """Return a check that the wrapped estimator has a method."""
    return available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), name))


def seed_clone(estimator, random_state):
    """Return a clone with a new seed in each of its parameters ``random_state``."""
    estimator = clone(estimator)
    names = [
        name
        for name in sorted(estimator.get_params(deep=True))
        if name == "random_state" or name.endswith("__random_state")
    ]
    seeds = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=len(names))
    return estimator.set_params(**dict(zip(names, map(int, seeds), strict=True)))


def _fitted(estimator, X, weight, rows):
    """Fit a clone to all samples, or to the given rows."""
    if rows is not None:
        X = _safe_indexing(X, rows)
        weight = {name: values[rows] for name, values in weight.items()}
    return estimator.fit(X, **weight)


def _weights_for(estimator, X, sample_weight=None):  # -> dict of ndarray, keyword arguments of fit
    if sample_weight is None:
        return {}
    if not has_fit_parameter(estimator, "sample_weight"):
        raise ValueError(
            f"sample_weight is for estimators whose fit takes it, and {type(estimator).__name__} "
            "takes none. Pass another estimator, or no weights."
        )
    return {"sample_weight": to_numpy(check_sample_weight(sample_weight, open_source(X).n_rows))}


def _merge_rows(X, weight):  # -> rows that differ, keyword arguments of fit
    """Merge equal rows, so that a row of weight 2 is drawn like two equal rows."""
    parts = (check_rows(part, allow_nan=True) for _, part in open_source(X).parts(_PART))
    keys = torch.cat([hash_rows(to_tensor(part)) for part in parts])
    rows, sums, _ = merge_copies(keys, to_tensor(weight["sample_weight"]) if weight else None)
    if len(rows) == _num_samples(X) and not weight:
        return X, weight
    return _safe_indexing(X, to_numpy(rows)), {"sample_weight": to_numpy(sums)}


def _median_baseline(fitted):  # -> ndarray of shape (n_features,) or None
    """Return the median of the baselines of learners, None if one of them has none."""
    found = [baseline_of(one) if hasattr(one, "_training_state") else None for one in fitted]
    if any(baseline is None for baseline in found):
        return None
    return np.median(found, axis=0).astype(found[0].dtype)


def _isolation(replicates, share):  # -> list of (n_components,)
    """Return the mean distance of every unit atom to its nearest atoms, up to sign.

    The number of nearest atoms is ``share`` times the number of replicates.
    """
    everything = np.concatenate(replicates)
    n_nearest = max(1, int(share * len(replicates)))
    found = []
    for atoms in replicates:
        # rows of zeros are at distance sqrt(2) from all; the nearest atom is the atom itself
        cosines = np.sort(np.minimum(np.abs(atoms @ everything.T), 1), axis=1)[:, ::-1]
        nearest = cosines[:, 1 : 1 + n_nearest]
        found.append(np.sqrt(2 - 2 * nearest).mean(axis=1))
    return found


def _matched(replicates, reference):  # -> (n_replicates, n_reference), -1 for no match
    indices = np.full((len(replicates), len(reference)), -1)
    for row, atoms in zip(indices, replicates, strict=True):
        rows, columns = linear_sum_assignment(np.abs(reference @ atoms.T), maximize=True)
        row[rows] = columns
    return indices


def _aligned(replicates, indices, reference):  # -> (n_replicates, n_reference, n_features)
    """Return the matched atoms with the signs of the reference's; zero where there is no match."""
    atoms = np.stack([a[i] for a, i in zip(replicates, indices, strict=True)])
    atoms[indices < 0] = 0
    products = np.einsum("rkf,kf->rk", atoms, reference)
    return atoms * np.where(products < 0, -1, 1)[:, :, None]


def _agreement(aligned):  # (n_replicates, n_components, n_features) -> (n_components,)
    """Return the mean modulus of the cosine over pairs of replicates."""
    n = len(aligned)
    cosines = np.einsum("rkf,skf->krs", aligned, aligned, optimize=True)
    pairs = np.abs(cosines[:, ~np.eye(n, dtype=bool)])
    return np.minimum(pairs.mean(axis=1), 1)


def _consensus(replicates, *, density_threshold, neighborhood):
    """Match unit atoms of replicates; return medians of matched atoms, and their agreement.

    Returns
    -------
    medoid : int
        The replicate that the reference started as.
    components : ndarray of shape (n_components, n_features)
        Unit atoms, with the order and the signs of that replicate.
    indices : ndarray of shape (n_replicates, n_components)
        Matched atoms, -1 for none.
    dense : ndarray of bool of shape (n_replicates, n_components)
        Whether they are no outliers.
    stability : ndarray of shape (n_components,)
        Mean similarity of the matched atoms.
    """
    isolation = _isolation(replicates, neighborhood)
    medoid = int(np.argmin([distances.mean() for distances in isolation]))
    reference = start = replicates[medoid]
    indices = None
    for _ in range(_MAX_ROUNDS):
        before, indices = indices, _matched(replicates, reference)
        dense = indices >= 0
        if density_threshold is not None:
            distances = [d[i] for d, i in zip(isolation, indices, strict=True)]
            dense &= np.stack(distances) <= density_threshold
        aligned = _aligned(replicates, indices, reference)
        if before is not None and (before == indices).all():
            break
        reference = _unit(np.stack([
            np.median(atoms[kept], axis=0) if kept.any() else start[k]
            for k, (atoms, kept) in enumerate(zip(aligned.swapaxes(0, 1), dense.T, strict=True))
        ]))  # fmt: skip
    return medoid, reference, indices, dense, _agreement(aligned)


class ConsensusDictionary(
    ClassNamePrefixFeaturesOutMixin, MetaEstimatorMixin, TransformerMixin, BaseEstimator
):
    """The dictionary that many fits of an estimator agree on, and how stable each atom is.

    By default `fit` makes 20 replicates from different seeds, matches their atoms up to order and
    sign, and takes the median of every set of matched atoms. The estimator's own `transform`
    computes codes. Fits end in local minima, so that some atoms are accidents of the seed or of the
    samples.

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

    density_threshold : float or None, default=0.5
        Atoms whose mean distance to their nearest neighbours among the atoms of all replicates is
        larger are outliers, and count for stability only. Atoms are compared with norm 1 and up to
        sign, so that distances lie between 0 and 1.41; a distance of 0.5 is a cosine of 0.875. None
        keeps all.

    neighborhood : float, default=0.3
        Number of nearest neighbours, as a share of ``n_replicates``.

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
        Mean of ``stability_`` if the atoms of each replicate were random, with the second moments
        of its atoms. ``stability_ - chance_stability_`` is above chance. Seeds on the same samples
        agree above chance on noise too; `skpudle.metrics.atom_support` tests which atoms are real.

    n_agreeing_ : ndarray of shape (n_components,)
        Number of replicates in the median of an atom: the replicates whose atom is no outlier.

    replicates_ : list of ndarray of shape (n_components, ...)
        ``components_`` of every replicate.

    matches_ : ndarray of shape (n_replicates, n_components)
        The atom of each replicate that matches each atom, -1 for none.

    estimator_ : estimator
        What `transform` uses: the estimator, fitted to all samples, with ``components_`` replaced.
        An encoder that learns matrices or thresholds for each atom (``separate_atoms``,
        ``learn_threshold``) is trained with the consensus as ``dict_init``, and a convolutional
        learner then trains the atoms too.

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

    @explain_names
    def __init__(
        self,
        estimator: Any,
        n_replicates: int = 20,
        *,
        resample: Literal["seeds", "bootstrap", "halves"] = "seeds",
        density_threshold: float | None = 0.5,
        neighborhood: float = 0.3,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.n_replicates = n_replicates
        self.resample = resample
        self.density_threshold = density_threshold
        self.neighborhood = neighborhood
        self.n_jobs = n_jobs
        self.random_state = random_state

    _parameter_constraints = {
        "estimator": [HasMethods(["fit", "transform"])],
        "n_replicates": [Interval(Integral, 2, None, closed="left")],
        "resample": [StrOptions({"seeds", "bootstrap", "halves"})],
        "density_threshold": [Interval(Real, 0, None, closed="neither"), None],
        "neighborhood": [Interval(Real, 0, 1, closed="right")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: ArrayLike, y: None = None, **of_samples: Any) -> Self:
        """Fit the replicates, and match their atoms.

        Parameters
        ----------
        X : array-like
            What `fit` of the estimator takes; to draw from samples it has to be an array, a data
            frame, a sparse array or a list.
        y : None
            Ignored.
        **of_samples : dict
            ``sample_weight``, how often each sample counts, for estimators whose `fit` takes it.
            With ``resample="bootstrap"`` and "halves" samples that differ are drawn without regard
            to it, and a replicate fits the weights of the samples that were drawn.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        TypeError
            If a fitted estimator has no ``components_``.
        ValueError
            If weights are passed, and the estimator takes no weights.

        Warns
        -----
        UserWarning
            If all replicates are the same, so that their agreement has no meaning.
        """
        random_state = check_random_state(self.random_state)
        weight = _weights_for(self.estimator, X, **of_samples)
        if self.resample != "seeds":
            (X,) = indexable(X if issparse(X) else host_array(X))
            if has_fit_parameter(self.estimator, "sample_weight"):
                X, weight = _merge_rows(X, weight)
        fitted = Parallel(n_jobs=self.n_jobs)(
            delayed(_fitted)(seed_clone(self.estimator, random_state), X, weight, rows)
            for rows in self._samples(X, random_state)
        )
        name = type(self.estimator).__name__
        if not all(hasattr(estimator, "components_") for estimator in fitted):
            raise TypeError(
                f"{name} has no components_ after fit, which ConsensusDictionary compares. Pass a "
                "dictionary learner, or another decomposition into components."
            )
        self.replicates_ = [np.asarray(host_array(one.components_)) for one in fitted]
        first = self.replicates_[0]
        if all(np.array_equal(atoms, first) for atoms in self.replicates_[1:]):
            warnings.warn(
                f"All replicates of {name} are the same, so their agreement means little: its fit "
                "does not depend on random_state. Pass resample='bootstrap'.",
                stacklevel=users_level(),
            )
        flat = [atoms.reshape(len(atoms), -1).astype(np.float64) for atoms in self.replicates_]
        units_of_fits = [_unit(atoms) for atoms in flat]
        options = dict(density_threshold=self.density_threshold, neighborhood=self.neighborhood)
        medoid, units, self.matches_, dense, self.stability_ = _consensus(units_of_fits, **options)
        rng = check_random_state(0)  # so that replicates depend on random_state alone
        drawn = [recombine_atoms(atoms, rng) for atoms in units_of_fits]
        *_, by_chance = _consensus(drawn, **options)
        self.chance_stability_ = float(by_chance.mean())
        self.n_agreeing_ = dense.sum(axis=0)
        norms = [
            np.where(i < 0, np.nan, np.linalg.norm(atoms, axis=1)[i])
            for atoms, i in zip(flat, self.matches_, strict=True)
        ]
        components = units * np.nanmedian(norms, axis=0)[:, None]
        components = components.reshape(self.replicates_[medoid].shape).astype(first.dtype)
        given = _median_baseline(fitted), X, weight, random_state
        self.estimator_ = self._with_components(fitted[medoid], components, *given)
        self.components_ = self.estimator_.components_
        validate_data(self, X, skip_check_array=True)
        return self

    def _samples(self, X, random_state):  # yields rows of each replicate, None for all
        for _ in range(self.n_replicates):
            if self.resample == "seeds":
                yield None
            elif self.resample == "bootstrap":
                n = _num_samples(X)
                yield random_state.randint(n, size=n)
            else:
                n = _num_samples(X)
                yield random_state.permutation(n)[: (n + 1) // 2]

    def _with_components(self, estimator, components, baseline, X, weight, random_state):
        """Return an estimator that was fitted to all samples, with other components."""
        learned = getattr(estimator, "analysis_components_", None) is not None
        if learned or hasattr(estimator, "network_"):  # a learned encoder
            given = dict(dict_init=components, n_components=len(components))
            if baseline is not None:  # given atoms have none by default
                given["fit_intercept"] = True
            return seed_clone(self.estimator, random_state).set_params(**given).fit(X, **weight)
        if self.resample != "seeds":
            estimator = seed_clone(self.estimator, random_state).fit(X, **weight)
            if len(estimator.components_) != len(components):
                estimator = clone(estimator).set_params(n_components=len(components))
                estimator = estimator.fit(X, **weight)
        estimator.components_ = components
        if baseline is not None and baseline_of(estimator) is not None:
            name = "baseline_" if hasattr(estimator, "coef_") else "intercept_"
            setattr(estimator, name, baseline)
        if hasattr(estimator, "mixing_"):  # of FastICA
            estimator.mixing_ = np.linalg.pinv(components)
        follows = getattr(estimator, "step_size", None) == "auto" and components.ndim == 2
        if follows and hasattr(estimator, "step_size_"):
            names = dict(loss="gaussian", n_trials=1)
            loss = loss_named(*(getattr(estimator, name, names[name]) for name in names))
            step_size = default_step(DenseDictionary(to_tensor(components)), loss)
            estimator.step_size_ = float(step_size)
        return estimator

    def _checked(self, X):
        check_is_fitted(self, "estimator_")
        if getattr(X, "ndim", 2) != 1:  # the estimator raises for one axis
            validate_data(self, X, reset=False, skip_check_array=True)
        return X

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
        X = self._checked(X)
        return self.estimator_.transform(X)

    @_has("inverse_transform")
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

    @_has("score")
    def score(self, X: ArrayLike, y: None = None, **of_samples: Any) -> float:
        """Return the score of data by the consensus, which is the estimator's own.

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
        X = self._checked(X)
        return self.estimator_.score(X, **of_samples)

    @property
    def _n_features_out(self):
        return len(self.estimator_.get_feature_names_out())

    def __sklearn_tags__(self):
        tags, own = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags, tags.transformer_tags = own.input_tags, own.transformer_tags
        tags.non_deterministic = own.non_deterministic
        return tags
