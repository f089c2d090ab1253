"""Test which atoms of a learner the samples support: `atom_support`.

A new learner is fitted to each half of the samples. Two tests tell atoms from noise: two fits to
noise agree by chance only, and the codes of atoms of noise are not sparse in the other half.
"""

import warnings
from math import exp, lgamma, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.utils import Bunch, check_random_state, check_scalar

from skpudle._data.arrays import (
    check_rows,
    host_array,
    split_missing,
    to_numpy,
    to_tensor,
)
from skpudle._estimators import check_learner_of_rows
from skpudle._learners.counts import CountDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.metrics import (
    chance_coherence,
    match_atoms,
    match_coherences,
    unit_atoms,
)

# In `_sparsity` singular values below this fraction of the largest singular value count as rounding
# errors, and standard deviations of Geary's ratio are raised to this number.
_ROUNDING = 1e-9
# Parameters that `atom_support` copies from the user's learner to the learners that it fits: the
# model of the data, without anything that depends on the number of atoms or the penalty.
_SHARED = (
    "loss",
    "n_trials",
    "positive_code",
    "positive_dict",
    "fit_intercept",
    "noise",
)


def fit_same_model(learner, X, seed, n_components="auto"):
    """Fit a new learner with the loss, constraints and noise of ``learner``, and return it.

    The new learner gets the parameters `_SHARED` of ``learner``, but learns its own atoms. ``X``
    are samples (n_samples, n_features), and ``seed`` is an int. By default the data choose the
    number of atoms. A learner with a parameter ``loss`` is a learner of counts.
    """
    params = {
        name: getattr(learner, name) for name in _SHARED if hasattr(learner, name)
    }
    kind = CountDictionaryLearning if "loss" in params else PUDLEDictionaryLearning
    return kind(n_components, random_state=seed).set_params(**params).fit(X)


def _without_any_feature(first, second):  # (n, n_features) twice -> (n,)
    """Return the coherence of each pair of unit atoms without the feature that supports it most.

    For each feature the modulus of the cosine of the two atoms is computed without this feature,
    and the least modulus is returned. Fits to noise with heavy tails find atoms that consist of a
    single feature, and two fits find the same atoms, so the cosine over all features would not
    expose the atoms as noise. The cosine without the single feature is near 0.
    """
    products = first * second
    rest = products.sum(axis=1, keepdims=True) - products
    squared_norms = (1 - np.square(first)).clip(0) * (1 - np.square(second)).clip(0)
    return np.abs(rest / np.maximum(np.sqrt(squared_norms), 1e-12)).min(axis=1)


def _geary(projections, lengths):  # (n, n_atoms), (n,) -> (n_atoms,)
    """Measure how sparse the projections of rows on each atom are, by Geary's ratio.

    The ratio is the mean modulus over the root mean square: 0.80 for normal projections, smaller
    for sparse ones. ``projections`` of each row are first divided by the length of the row,
    ``lengths``: rows of different lengths would look sparse otherwise.
    """
    projections = projections / np.where(lengths > 0, lengths, 1)[:, None]
    rms = np.sqrt(np.square(projections).mean(axis=0))
    return np.abs(projections).mean(axis=0) / np.where(rms > 0, rms, 1)


def _sparsity(atoms, rows, rng):  # (n_atoms, m), (n, m) -> (n_atoms,)
    """Test whether rows have sparse codes for each atom: return a z-score, large for true atoms.

    Products of whitened ``rows`` with ``atoms`` are compared with products of noise by Geary's
    ratio (`_geary`), which is small for sparse products. The score is the ratio of noise minus the
    ratio of the rows, in standard errors. There are two kinds of noise, and the smaller score is
    returned. The first kind is Gaussian noise of any covariance and any lengths of rows: rows of
    one length are uniform on the sphere after whitening. The second kind is independent between
    features: its distribution does not change if each feature is permuted over the rows. ``rng`` is
    a `numpy.random.Generator`, for the permutations.
    """
    centred = rows - rows.mean(axis=0)
    n = len(rows)
    deviations = centred.std(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    kept = values > values[0] * _ROUNDING
    whiten = vectors[kept].T / values[kept]  # (m, rank)
    # Rows times ``directions`` (m, n_atoms) are products of whitened rows with whitened atoms.
    directions = whiten @ (atoms @ whiten).T
    rank = int(kept.sum())
    if (
        rank == 0
    ):  # equal rows have no whitened projections, whose sparsity could be measured
        return np.zeros(len(atoms))
    # The first kind of noise: Gaussian noise has Geary's ratio of a coordinate of points that are
    # uniformly distributed on the unit sphere in ``rank`` dimensions.
    ratio_of_noise = sqrt(rank / pi) * exp(lgamma(rank / 2) - lgamma((rank + 1) / 2))
    ratios = _geary(centred @ directions, np.linalg.norm(centred @ whiten, axis=1))
    # The difference in standard errors: for n samples of Gaussian noise Geary's ratio has the
    # variance (1 - 3 / pi) / n.
    of_gaussian = (ratio_of_noise - ratios) / sqrt((1 - 3 / pi) / n)
    scales = np.where(deviations > 0, deviations, 1)

    def ratios_of(rows):  # (n, m) -> (n_atoms,)
        # Lengths of rows are in units of the features' deviations, so that all features count.
        return _geary(rows @ directions, np.linalg.norm(rows / scales, axis=1))

    # The second kind of noise, independent between features, comes from the rows themselves: each
    # feature is permuted over the rows. 30 permutations give the standard deviation of the ratio to
    # 13 %.
    permuted = [ratios_of(rng.permuted(centred, axis=0)) for _ in range(30)]
    spread = np.maximum(np.std(permuted, axis=0, ddof=1), _ROUNDING)
    of_features = (np.mean(permuted, axis=0) - ratios_of(centred)) / spread
    return np.minimum(of_gaussian, of_features)


def _found_twice(halves, fits, level, rng):  # -> (n_found, n_features)
    """Return the unit atoms that fits to both halves of the samples found, for `atom_support`.

    ``halves`` are the two halves of the samples, (n, n_features) each, and ``fits`` the unit atoms
    of a fit to each half, (n_atoms, n_features) each. Atoms of the fits are matched, and the mean
    of a pair is returned if the coherence of the pair is above chance and the codes of both atoms
    are sparser than codes of noise. The sparsity of each atom is measured in the half that the atom
    was not fitted to. ``level`` is the probability that any pair passes a test if the samples are
    noise, and ``rng`` a `numpy.random.Generator` for the permutations of the sparsity test.
    """
    one, other = fits
    match = match_atoms(one, other)
    first = match.align_dictionary(one)
    second = other[match.reference_indices]
    quantile = norm.ppf(1 - level / max(1, len(first)))
    # ``least`` is the coherence that a pair must exceed: the quantile of the coherences by chance.
    # The quantile is that of a normal distribution, so coherences are first transformed by arctanh
    # (Fisher's transform), after which they are nearly normal.
    chance = np.arctanh(np.minimum(chance_coherence(one, other), 1 - 1e-9))
    least = np.tanh(chance.mean() + quantile * chance.std())
    agree = _without_any_feature(first, second) > least
    scores = _sparsity(first, halves[1], rng) + _sparsity(second, halves[0], rng)
    # Each score has the standard deviation 1 for noise, and the sum of two independent scores has
    # sqrt(2): so the limit of the sum is sqrt(2) times the quantile of one score.
    return unit_atoms(first + second)[agree & (scores > sqrt(2) * quantile)]


def atom_support(
    learner: Any,
    X: ArrayLike,
    *,
    level: float = 0.05,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Test which atoms of a learner the samples support, by new fits to two halves of the samples.

    A new learner is fitted to each half of the samples. The two fits do not see the learner's atoms
    and choose their own numbers of atoms. An atom that both fits find counts if its two versions
    agree above chance, and if the codes of each version, for the half it was not fitted to, are
    sparser than codes of noise. Such an atom supports the one atom of the learner that it is
    matched with, if the modulus of their cosine is at least 0.8. Atoms of noise, of too few
    samples, and superfluous atoms of too large a dictionary are not supported. The function takes
    as long as a fit with ``n_components="auto"``.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features), as for
        `skpudle.metrics.atom_importance`. The new learners get its parameters ``loss``,
        ``n_trials``, ``positive_code``, ``positive_dict``, ``fit_intercept`` and ``noise``, as far
        as it has them.
    X : array-like of shape (n_samples, n_features)
        Samples: those of `fit`, or others; NaN for missing entries.
    level : float, default=0.05
        Probability, between 0 and 1, that any atom is supported although the samples are noise.
        Noise is Gaussian with any covariance and any lengths of rows, or independent between
        features.
    random_state : int, RandomState instance or None, default=None
        Determines the halves and the seeds of the fits.

    Returns
    -------
    Bunch
        With these entries:

        - ``supported``, bool ndarray of shape (n_components,);
        - ``found``, ndarray of shape (n_found, n_features): the unit atoms that both fits found,
          means of their two versions;
        - ``coherence``, ndarray of shape (n_components,): modulus of the cosine between an atom and
          its match in ``found``, 0 without a match. Supported atoms have 0.8 or more.

    Raises
    ------
    ValueError
        If the learner is convolutional or a `skpudle.PoissonNMF`, if the number of features
        differs, or if the level is not between 0 and 1.

    See Also
    --------
    skpudle.ConsensusDictionary : How far many fits agree on each atom.

    Examples
    --------
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.inspection import atom_support
    >>> X, _, _ = make_dictionary_data(
    ...     600, 20, 8, n_nonzero=2, snr_db=20, random_state=0
    ... )
    >>> learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    >>> int(atom_support(learner, X, random_state=0).supported.sum())
    8
    """
    learner = check_learner_of_rows(learner)
    check_scalar(
        level, "level", float, min_val=0, max_val=1, include_boundaries="neither"
    )
    X = check_rows(host_array(X), allow_nan=True)
    atoms = unit_atoms(np.asarray(host_array(learner.components_), dtype=np.float64))
    rng = np.random.default_rng(check_random_state(random_state).randint(2**31))
    found_atoms = np.zeros((0, atoms.shape[1]))
    rows = rng.permutation(len(X))
    halves = (X[rows[::2]], X[rows[1::2]])
    if all(len(half) > 1 for half in halves):
        # Warnings are hidden: fits to few samples or to noise warn, but here atoms without support
        # are a valid result.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            fits = [
                fit_same_model(learner, half, int(rng.integers(2**31)))
                for half in halves
            ]
        found_in_halves = [
            unit_atoms(fit.components_.astype(np.float64)) for fit in fits
        ]
        # ``filled`` are the halves with column means in the place of missing entries.
        filled = [to_numpy(split_missing(to_tensor(half))[0]) for half in halves]
        found_atoms = _found_twice(filled, found_in_halves, level, rng)
    coherence = match_coherences(atoms @ found_atoms.T)
    # An atom of the learner counts as found from a cosine of 0.8 on. The limit lies between two
    # cases: an atom and its sum with an orthogonal atom have the cosine 0.71, which must not count.
    # The true atoms of synthetic data with a signal-to-noise ratio of 10 dB and their matches in
    # fits with twice the number of atoms have at least 0.91, which must count.
    return Bunch(
        supported=coherence >= 0.8,
        found=found_atoms,
        coherence=coherence,
    )
