"""Which atoms the samples support: found again, alone, in both halves, and sparser than noise.

The samples are split into halves, and a search is fitted to each, from a start and with a number of
atoms of its own. An atom is supported if three things hold.

- Both halves *find* it: their atoms match above chance, even without any one feature. Noise
  with heavy tails has atoms of one feature in every fit, which do not describe common variation.
- It is *sparse*: the half that did not learn the atom has fewer and larger projections on it than
  noise. Noise is Gaussian, with the covariance of the samples and lengths of rows of any
  distribution, or any noise that is independent between features.
- It is the learner's *nearest* atom to the atom that was found. Copies of an atom, and sums of
  two atoms, in too large a dictionary, are near but not nearest.
"""

import warnings
from math import exp, lgamma, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.utils import Bunch, check_array, check_random_state, check_scalar

from skpudle._data.arrays import host_array, split_missing, to_numpy, to_tensor
from skpudle._learners.counts import CountDictionaryLearning
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.metrics._measures import (
    FLOATS,
    chance_coherence,
    check_learner_of_rows,
    match_atoms,
    unit_atoms,
)

# Least cosine of an atom of the learner and an atom that both halves found. Sums of two orthogonal
# atoms have .71; at 10 dB atoms of fits with twice the atoms have at least .91.
_SAME = 0.8

# Number of permutations of features, for a standard deviation of the measure that is exact to 13 %.
_PERMUTATIONS = 30

# Variance of Geary's ratio of mean modulus and standard deviation, times the number of samples, for
# Gaussian samples: 1 - 3 / pi.
_GEARY = 1 - 3 / pi

# Share of the largest singular value below which singular values are rounding errors.
_RANK = 1e-9

# Parameters of a learner that its search shares.
_SHARED = "loss", "n_trials", "positive_code", "positive_dict", "fit_intercept", "noise"


def _find_atoms(learner, X, seed):  # -> (n_found, n_features), unit atoms
    """Search for any number of atoms, with the constraints of a learner."""
    shared = {name: getattr(learner, name) for name in _SHARED if hasattr(learner, name)}
    kind = CountDictionaryLearning if "loss" in shared else PUDLEDictionaryLearning
    found = kind("auto", random_state=seed, **shared).fit(X)
    return unit_atoms(found.components_.astype(np.float64))


def _without_any_feature(first, second):  # (n, n_features) twice -> (n,)
    """Return moduli of cosines of pairs of unit atoms, the least over one feature left out."""
    rest = (first * second).sum(axis=1, keepdims=True) - first * second
    lengths = np.sqrt((1 - np.square(first)).clip(0) * (1 - np.square(second)).clip(0))
    return np.abs(rest / np.maximum(lengths, 1e-12)).min(axis=1)


def _geary(projections, lengths):  # (n, n_atoms), (n,) -> (n_atoms,)
    """Return mean modulus over root mean square of projections of rows, scaled to equal lengths."""
    projections = projections / np.where(lengths > 0, lengths, 1)[:, None]
    size = np.sqrt(np.square(projections).mean(axis=0))
    return np.abs(projections).mean(axis=0) / np.where(size > 0, size, 1)


def _sparsity(atoms, rows, rng):  # (n_atoms, m), (n, m) -> (n_atoms,)
    """Return the number of standard errors by which projections of rows are sparser than of noise.

    Projections are products of whitened rows with atoms. For Gaussian noise of any covariance and
    any lengths, whitened rows of one length are uniform on the sphere. Noise that is independent
    between features keeps its distribution if each feature is permuted. The result is the smaller
    of the standard errors from Gaussian and from independent noise.
    """
    centred = rows - rows.mean(axis=0)
    n, deviations = len(rows), centred.std(axis=0)
    _, values, vectors = np.linalg.svd(centred, full_matrices=False)
    kept = values > values[0] * _RANK
    whiten = vectors[kept].T / values[kept]  # (m, rank)
    directions, rank = whiten @ (atoms @ whiten).T, int(kept.sum())
    sphere = sqrt(rank / pi) * exp(lgamma(rank / 2) - lgamma((rank + 1) / 2))
    ratios = _geary(centred @ directions, np.linalg.norm(centred @ whiten, axis=1))
    of_gaussian = (sphere - ratios) / sqrt(_GEARY / n)

    scales = np.where(deviations > 0, deviations, 1)

    def measure(rows):
        return _geary(rows @ directions, np.linalg.norm(rows / scales, axis=1))

    drawn = [measure(rng.permuted(centred, axis=0)) for _ in range(_PERMUTATIONS)]
    spread = np.std(drawn, axis=0, ddof=1)
    of_features = (np.mean(drawn, axis=0) - measure(centred)) / np.maximum(spread, _RANK)
    return np.minimum(of_gaussian, of_features)


def _found_twice(halves, fits, level, rng):  # -> (n_found, n_features)
    """Return the unit atoms that both fits found, and that are sparse in the other half."""
    match = match_atoms(*fits)
    first, second = match.align_dictionary(fits[0]), fits[1][match.reference_indices]
    quantile = norm.ppf(1 - level / max(1, len(first)))
    chance = np.arctanh(np.minimum(chance_coherence(*fits), 1 - 1e-9))
    least = np.tanh(chance.mean() + quantile * chance.std())
    agree = _without_any_feature(first, second) > least
    sparse = _sparsity(first, halves[1], rng) + _sparsity(second, halves[0], rng)
    return unit_atoms(first + second)[agree & (sparse > sqrt(2) * quantile)]


def atom_support(
    learner: Any,
    X: ArrayLike,
    *,
    level: float = 0.05,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Return which atoms of a dictionary the samples support.

    Two searches, each for one half of the samples, choose their numbers of atoms independently of
    the learner's atoms. An atom is supported if both searches find it above chance, if it is
    sparser in the other half than noise, and if it is the learner's nearest atom to the atom found.
    Atoms of noise, of too few samples, and superfluous atoms of too large a dictionary are not
    supported. It takes as long as a fit with ``n_components="auto"``.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features), as for `atom_importance`.
        The searches have its ``loss``, ``positive_code``, ``positive_dict``, ``fit_intercept`` and
        ``noise``, where it has them.
    X : array-like of shape (n_samples, n_features)
        Samples: those of `fit`, or others; NaN for missing entries.
    level : float, default=0.05
        Probability that any atom is supported if the samples are noise, between 0 and 1: Gaussian
        with any covariance and any lengths of rows, or independent between features.
    random_state : int, RandomState instance or None, default=0
        Determines the halves and the searches.

    Returns
    -------
    Bunch
        With these entries:

        - ``supported``, bool of shape (n_components,);
        - ``found``, (n_found, n_features): unit atoms that both halves found, the means of both;
        - ``coherence``, (n_components,): modulus of the cosine between an atom and its match in
          ``found``, 0 without a match. Supported atoms have 0.8 or more.

    Raises
    ------
    ValueError
        If atoms are convolved, counts add, features differ, or the level is not in (0, 1).

    See Also
    --------
    skpudle.ConsensusDictionary : How far many fits agree on each atom.

    Examples
    --------
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.metrics import atom_support
    >>> X, _, _ = make_dictionary_data(600, 20, 8, n_nonzero=2, snr_db=20, random_state=0)
    >>> learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    >>> int(atom_support(learner, X).supported.sum())
    8
    """
    learner = check_learner_of_rows(learner)
    if getattr(learner, "loss", None) == "kullback-leibler":
        raise ValueError(
            f"Codes of {type(learner).__name__} need not be sparse, by which atoms are told from "
            "noise here. Compare halves, by ConsensusDictionary(learner, resample='halves')."
        )
    bounds = dict(min_val=0, max_val=1, include_boundaries="neither")
    check_scalar(level, "level", float, **bounds)
    X = check_array(host_array(X), dtype=FLOATS, ensure_all_finite="allow-nan", input_name="X")
    atoms = unit_atoms(np.asarray(host_array(learner.components_), dtype=np.float64))
    rng = np.random.default_rng(check_random_state(random_state).randint(2**31))
    coherence, found = np.zeros(len(atoms)), np.zeros((0, atoms.shape[1]))
    rows = rng.permutation(len(X))
    halves = X[rows[::2]], X[rows[1::2]]
    if all(len(half) > 1 for half in halves):
        with warnings.catch_warnings():  # poor fits of halves are expected
            warnings.simplefilter("ignore", UserWarning)
            fits = [_find_atoms(learner, half, int(rng.integers(2**31))) for half in halves]
        filled = [to_numpy(split_missing(to_tensor(half))[0]) for half in halves]
        found = _found_twice(filled, fits, level, rng)
    if len(found):
        match = match_atoms(found, atoms)
        coherence[match.reference_indices] = match.coherences
    return Bunch(supported=coherence >= _SAME, found=found, coherence=coherence)
