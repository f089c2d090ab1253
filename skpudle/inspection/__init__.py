r"""Inspect a fit: what atoms are made of, what codes depend on, and how uncertain both are.

==============================  ===============================================================
`atom_contributions`            the training samples that make each atom
`reconstruction_contributions`  the training samples that make the reconstruction of a sample
`code_saliency`                 the derivatives of codes with respect to the data
`atom_intervals`                intervals that hold the true entries of atoms
`code_intervals`                intervals that hold the true codes
`error_bound`                   the least error of atoms that any method can have
==============================  ===============================================================

*Contributions* express atoms as weighted sums of training samples. In the formulas below atoms are
the columns of ``D``, training samples without the learner's baseline the columns of ``X``, and
their codes the columns of ``Z``. The dictionary that minimises :math:`\frac12 \|X - D Z\|^2 +
\frac\omega2 \|D\|^2` is

.. math:: D = X A^T, \quad A = (Z Z^T + \omega I)^{-1} Z.

``A[j, k]`` is the contribution of sample ``k`` to atom ``j``. A new sample with the code ``z`` is
reconstructed as :math:`D z = \sum_k \beta_k x_k`, and :math:`\beta = A^T z` are the contributions
to the reconstruction. A trained dictionary is near the minimiser but not equal to it (its atoms
have norm 1, its gradient may pass through the encoder), so the distance between the two is returned
with the contributions.

A *support* is the set of atoms with nonzero codes in a sample. An *interval* of level 0.9 holds the
true value with a probability of 0.9.

References
----------
B. Tolooshams and D. Ba, "Stable and Interpretable Unrolled Dictionary Learning", TMLR 2022.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state, check_scalar
from torch import Tensor

from skpudle._compilation import blocks_of_rows
from skpudle._data.arrays import (
    check_sample_weight,
    split_missing,
    to_numpy,
    to_tensor,
    warn,
)
from skpudle._data.sources import merge_copies, refuse_shuffled
from skpudle._estimators import check_learner_of_rows, encode_parts
from skpudle._fit.encoders import centre, units_of
from skpudle._learners.counts import CountDictionaryLearning, check_exposure
from skpudle._rows import hash_rows, spread_rows
from skpudle.inspection import _posterior

__all__ = [
    "atom_contributions",
    "atom_intervals",
    "code_intervals",
    "code_saliency",
    "error_bound",
    "reconstruction_contributions",
]


class Contributions(NamedTuple):
    """Contributions of training samples to atoms or reconstructions, the largest first.

    Attributes
    ----------
    indices : ndarray of shape (n_targets, n_largest)
        For each target, an atom or a reconstruction, the numbers of the training samples whose
        contributions have the largest moduli.
    values : ndarray of shape (n_targets, n_largest)
        Contributions of the training samples in ``indices``, with their signs.
    estimates : ndarray of shape (n_targets, n_features)
        Sums over all training samples, weighted by their contributions. They approximate the
        targets.
    distances : ndarray of shape (n_targets,)
        Norm of each estimate minus its target, divided by the norm of the target.
    distance : float
        Frobenius norm of all estimates minus all targets, divided by the norm of all targets.
    """

    indices: np.ndarray
    values: np.ndarray
    estimates: np.ndarray
    distances: np.ndarray
    distance: float


class Saliency(NamedTuple):
    """Derivatives of codes with respect to the data; see `code_saliency`.

    Attributes
    ----------
    indices : ndarray of shape (n_samples, n_codes)
        For each sample the numbers of the atoms with the largest moduli of codes.
    gradients : ndarray of shape (n_samples, n_codes, n_features)
        Derivatives of the codes of these atoms with respect to the features of the sample.
    """

    indices: np.ndarray
    gradients: np.ndarray


def _contributions(learner, X_train, X, ridge, n_largest):
    """Find the training samples with the largest contributions to atoms or to reconstructions.

    This is the common code of `atom_contributions` (``X`` is None, and atoms are the targets) and
    `reconstruction_contributions` (reconstructions of ``X`` are the targets), with the arguments of
    the latter. The result is their `Contributions`, by the formulas of the module docstring.
    ``X_train`` is read a part at a time, so it need not fit into memory; its codes are kept as a
    sparse array.
    """
    learner = check_learner_of_rows(learner)
    refuse_shuffled(X_train)
    refuse_shuffled(X)
    check_scalar(ridge, "ridge", (int, float, np.number), min_val=0)
    targets = learner.components_
    parts = []
    # In the formulas of the module docstring ``gram`` is Z Z^T + omega I, and ``pull`` is Z X^T.
    # Both are sums over samples, so the parts of the data are added up one after the other.
    gram = ridge * np.eye(len(targets))
    pull = np.zeros(targets.shape)
    for rows, codes in encode_parts(learner, X_train):
        gram += codes.T @ codes
        pull += codes.T @ centre(learner, rows)
        parts.append(sparse.csr_array(codes))
    # A pseudo-inverse, since the Gram matrix may be singular: without a ridge an atom that no
    # sample uses has a row of zeros in it.
    weights = np.linalg.pinv(gram, hermitian=True)
    estimates = weights @ pull
    if X is not None:
        codes = np.concatenate([codes for _, codes in encode_parts(learner, X)])
        weights = codes @ weights
        targets = codes @ targets
        estimates = codes @ estimates

    codes = sparse.vstack(parts, format="csr")
    largest = []
    for block in blocks_of_rows(len(weights), codes.shape[0]):
        found = weights[block] @ codes.T
        order = np.argsort(-np.abs(found), axis=1, kind="stable")[:, :n_largest]
        largest.append((order, np.take_along_axis(found, order, 1)))
    indices, values = map(np.concatenate, zip(*largest, strict=True))
    errors = np.linalg.norm(targets - estimates, axis=1)
    norms = np.maximum(np.linalg.norm(targets, axis=1), np.finfo(float).tiny)
    distance = np.linalg.norm(errors) / np.linalg.norm(norms)
    return Contributions(indices, values, estimates, errors / norms, float(distance))


def atom_contributions(
    learner: Any, X: Any, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Contributions:
    r"""Return the training samples that contribute most to each atom.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``; of this
        package or another.
    X : array-like, memory map, dataset or iterable of batches
        The training samples, (n_samples, n_features). They are read and encoded a part at a time,
        and only their codes are kept, as a sparse array.
    ridge : float, default=0.0
        :math:`\omega`, the weight of the squared norm of the atoms in an objective that is summed
        over all samples. For a learner trained by an optimiser with ``weight_decay`` w it is
        ``w * n_samples``. 0 gives the contributions of least squares.
    n_largest : int or None, default=10
        Number of training samples to return for each atom. None returns all samples, that is,
        n_components times n_samples numbers.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_components, n_largest), sorted by the modulus of
        the contribution; `estimates`, (n_components, n_features), the atoms :math:`X A^T`;
        `distances`, (n_components,), of the estimates from the learned atoms, relative to the norms
        of the learned atoms; and `distance`, the relative distance of the two dictionaries.

    Raises
    ------
    ValueError
        If the learner is convolutional, or if data have missing entries or come from a loader that
        shuffles.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.inspection import atom_contributions
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    >>> atom_contributions(learner, X, n_largest=5).indices.shape
    (16, 5)
    """
    return _contributions(learner, X, None, ridge, n_largest)


def reconstruction_contributions(
    learner: Any,
    X_train: Any,
    X: ArrayLike,
    *,
    ridge: float = 0.0,
    n_largest: int | None = 10,
) -> Contributions:
    r"""Return the training samples that contribute most to the reconstruction of each sample.

    Parameters
    ----------
    learner : estimator
        As in `atom_contributions`.
    X_train : array-like, memory map, dataset or iterable of batches
        The training samples, (n_train, n_features).
    X : array-like of shape (n_samples, n_features)
        Samples to reconstruct.
    ridge : float, default=0.0
        As in `atom_contributions`.
    n_largest : int or None, default=10
        Number of training samples to return for each sample of ``X``; None returns all.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_samples, n_largest): the contributions
        :math:`\beta_k` of largest modulus; `estimates`, (n_samples, n_features), :math:`\sum_k
        \beta_k x_k` over all training samples; `distances`, (n_samples,), of the estimates from the
        reconstructions :math:`D z`, relative to the norms of the reconstructions; and `distance`,
        the relative distance of all reconstructions together.

    Raises
    ------
    ValueError
        If the learner is convolutional, or if data have missing entries or come from a loader that
        shuffles.
    """
    return _contributions(learner, X_train, X, ridge, n_largest)


def code_saliency(learner: Any, X: ArrayLike | Tensor, *, n_codes: int = 5) -> Saliency:
    r"""Return the derivatives of the largest codes of each sample with respect to its features.

    The derivatives show which features a code depends on. They are exact for the encoder that
    ``transform`` runs, and computed by backpropagation.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning, NOODLDictionaryLearning or PUDLEClassifier
        Fitted; or a `skpudle.ConsensusDictionary` of such a learner.
    X : array-like or Tensor of shape (n_samples, n_features)
        Samples.
    n_codes : int, default=5
        Number of codes of each sample to differentiate: the codes with the largest moduli. There is
        one signed code for each atom, also with ``split_sign``.

    Returns
    -------
    Saliency
        Named tuple of `indices`, (n_samples, n_codes), the numbers of the atoms with the largest
        moduli of codes, in falling order; and `gradients`, (n_samples, n_codes, n_features), the
        derivatives :math:`\partial z_j / \partial x`, which are zero for codes that are zero.

    Raises
    ------
    ValueError
        If the learner's encoder cannot be differentiated, such as the encoder of
        `skpudle.SporcoDictionaryLearning`.
    """
    learner = check_learner_of_rows(learner)
    differentiate = getattr(learner, "_codes_with_gradient", None)
    x, codes = (None, None) if differentiate is None else differentiate(X)
    if codes is None or not codes.requires_grad:
        raise ValueError(
            f"{type(learner).__name__} has no encoder of rows that can be differentiated; pass a "
            "PUDLEDictionaryLearning."
        )
    indices = codes.detach().abs().topk(min(n_codes, codes.shape[1]), dim=1).indices
    chosen = codes.gather(1, indices)
    # The codes of a sample depend on this sample alone. So one backward pass for the sum over all
    # samples gives the gradient of the code of sample i in row i.
    gradients = [
        torch.autograd.grad(c.sum(), x, retain_graph=True)[0] for c in chosen.unbind(1)
    ]
    return Saliency(to_numpy(indices), to_numpy(torch.stack(gradients, dim=1)))


class AtomIntervals(NamedTuple):
    """Intervals of the entries of atoms; see `atom_intervals`.

    Attributes
    ----------
    estimate : ndarray of shape (n_components, n_features)
        Posterior means of the atoms' entries, in the units of ``components_``.
    lower : ndarray of shape (n_components, n_features)
        Lower ends of the intervals.
    upper : ndarray of shape (n_components, n_features)
        Upper ends of the intervals.
    standard_error : ndarray of shape (n_components, n_features)
        Standard errors of the estimates.
    supported : ndarray of shape (n_components,), bool
        Whether the data determine the atom precisely, by the criteria of `atom_intervals`. Use
        `skpudle.metrics.atom_support` to test whether the data have such an atom at all.
    limit : ndarray of shape (n_components,)
        The least expected squared error of the unit atom that any method can have.
    """

    estimate: NDArray
    lower: NDArray
    upper: NDArray
    standard_error: NDArray
    supported: NDArray
    limit: NDArray

    def __str__(self) -> str:
        """Return in words how many atoms the data determine, and how precisely."""
        some = self.supported
        words = f"The data determine {np.count_nonzero(some)} of {len(some)} atoms."
        if not some.any():
            return words
        squares, norms = (np.square(part[some]).sum(1) for part in (self[3], self[0]))
        mean = (squares / norms).mean()
        limit = self.limit[some].mean()
        words += f" Their expected squared error is {mean:.2g}, "
        return words + f"{mean / limit:.2f} times the limit of any method."


class CodeIntervals(NamedTuple):
    """Intervals of codes; see `code_intervals`.

    Attributes
    ----------
    estimate : ndarray of shape (n_samples, n_components)
        Estimates of the codes, in the units of the codes of ``transform``.
    lower : ndarray of shape (n_samples, n_components)
        Lower ends of the intervals.
    upper : ndarray of shape (n_samples, n_components)
        Upper ends of the intervals.
    standard_error : ndarray of shape (n_samples, n_components)
        Standard errors of the estimates.
    supported : ndarray of shape (n_samples, n_components), bool
        True where ``transform`` gives a nonzero code.
    """

    estimate: NDArray
    lower: NDArray
    upper: NDArray
    standard_error: NDArray
    supported: NDArray


def _read(learner, X, level, exposure):
    """Check the arguments of `atom_intervals` and `code_intervals`, and read and encode the data.

    ValueError is raised for arguments that both functions refuse.

    Returns
    -------
    learner : estimator
        The user's learner or, if this is a `ConsensusDictionary`, the learner inside.
    rows : ndarray of shape (n_samples, n_features)
        The samples, NaN where entries are missing.
    codes : ndarray of shape (n_samples, n_components)
        Signed codes of the samples.
    exposure : ndarray of shape (n_samples, 1) or float
        The user's exposures, or 1.0 if the user passed none.
    """
    bounds = dict(min_val=0, max_val=1, include_boundaries="neither")
    check_scalar(level, "level", (float, np.floating), **bounds)
    refuse_shuffled(X)
    if isinstance(learner, CountDictionaryLearning):
        raise ValueError(
            "No intervals: effects of its atoms multiply. Pass a PoissonNMF."
        )
    learner = check_learner_of_rows(learner)
    if exposure is not None:
        exposure = to_numpy(check_exposure(exposure, X, learner))[:, 0]
    parts = encode_parts(learner, X, exposure=exposure, allow_nan=True)
    rows, codes = map(np.concatenate, zip(*parts, strict=True))
    return learner, rows, codes, 1.0 if exposure is None else exposure[:, None]


def _generator(random_state):
    """Return a `numpy.random.Generator`, seeded by a ``random_state`` of scikit-learn's kinds."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31))


def _adds_counts(learner):
    """Return whether the learner is a `skpudle.PoissonNMF`: codes @ atoms are expected counts."""
    return getattr(learner, "loss", None) == "kullback-leibler"


def _in_units(learner, rows, codes, weight):
    """Convert data, atoms and codes to units in which all entries have about equal noise.

    The samplers in `_posterior` assume these units. The learner's baseline is subtracted from
    ``rows`` (n, n_features), and the result is divided by the learner's noise scales of features
    and of rows. ``codes`` (n, n_components) are the learner's codes, and ``weight`` (n,) is how
    often each row counts.

    Returns
    -------
    rows : _posterior.CodedRows
        The converted rows with their codes. Outliers of the learner count as missing.
    atoms : ndarray of shape (n_components, n_features)
        The learner's atoms in these units, divided by their norms.
    units : ndarray of shape (n_features,) or float
        The noise scale of each feature, 1.0 if all are equal: atoms times ``units`` are in the
        units of the data.
    gains : ndarray of shape (1 or n, n_components)
        Factors that turn codes of the learner into codes of ``atoms``.
    """
    own = units_of(learner)
    x, known, scale = own.enter(*split_missing(to_tensor(rows)))
    missing = np.zeros(rows.shape, bool) if known is None else to_numpy(known) == 0
    units = 1.0 if own.scale is None else to_numpy(own.scale)
    atoms = np.asarray(learner.components_, dtype=np.float64) / units
    # Atoms are divided by their norms below. An atom of zeros has the norm 0, so it is replaced by
    # an atom of ones.
    atoms = np.where(atoms.any(axis=1, keepdims=True), atoms, 1.0)
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    gains = norms.T if scale is None else norms.T / to_numpy(scale)
    weight = weight / weight.mean()
    what = own.intercept is not None, bool(getattr(learner, "positive_code", False))
    rows = _posterior.CodedRows(
        to_numpy(x), missing, codes * gains, weight[:, None], *what
    )
    return rows, atoms / norms, units, gains


def _ends(estimate, standard_error, level, positive):
    """Compute the ends of intervals from estimates and their standard errors.

    Return the first four fields of `AtomIntervals` and `CodeIntervals`, in their order: estimates,
    lower ends, upper ends and standard errors, each in the shape of ``estimate``. The intervals
    are those of a normal distribution for the probability ``level``. ``positive`` is whether true
    values are known to be non-negative; negative estimates and ends then become 0.
    """
    reach = stats.norm.ppf(0.5 + level / 2) * standard_error
    least = 0.0 if positive else -np.inf
    ends = (
        np.maximum(end, least) for end in (estimate, estimate - reach, estimate + reach)
    )
    return *ends, standard_error


def _least_squares(
    supports, x, atoms, precisions
):  # -> codes, variances, like supports
    """Return weighted least squares codes of rows, restricted to supports, and their variances.

    ``supports`` (n, n_components) is True for the codes that may be nonzero; the other codes and
    their variances are 0. ``precisions`` are the weights of the entries of the rows ``x``, (n,
    n_features) both: inverse variances of the noise, and 0 for missing entries. ``atoms`` are
    (n_components, n_features). Rows whose supports have equal sizes are solved in one batch.
    """
    values = np.zeros(supports.shape)
    variances = np.zeros(supports.shape)
    sizes = supports.sum(axis=1)
    for size in np.unique(sizes[sizes > 0]):
        same = np.flatnonzero(sizes == size)
        for block in blocks_of_rows(len(same), size * max(size, atoms.shape[1])):
            rows = same[block]
            chosen = np.nonzero(supports[rows])[1].reshape(-1, size)
            weighted = atoms[chosen] * precisions[rows, None]
            inverse = np.linalg.pinv(weighted @ atoms[chosen].mT, hermitian=True)
            found = inverse @ (weighted @ x[rows, :, None])
            values[rows[:, None], chosen] = found[:, :, 0]
            variances[rows[:, None], chosen] = inverse.diagonal(axis1=1, axis2=2)
    return values, variances


def _noise(learner, rows, atoms, units, random_state):  # -> (n_features,) or ()
    """Return the variance of the noise of each feature for `code_intervals`, in units of ``rows``.

    ``rows``, ``atoms`` and ``units`` are results of `_in_units`. The variances are estimated from
    the rows. Fewer than 200 rows are too few to estimate a variance for each feature, so the fit's
    ``noise_std_`` is used for them, if there is one; it may be one number for all features.
    ValueError is raised if the rows have no more known entries than nonzero codes.
    """
    if len(rows.x) < 200 and getattr(learner, "noise_std_", None) is not None:
        return _posterior.keep_above_rounding(
            np.square(learner.noise_std_ / units), rows.x
        )
    n_known = np.count_nonzero(~rows.missing)
    n_codes = np.count_nonzero(rows.codes)
    if n_known <= n_codes:
        raise ValueError(
            f"The fit did not estimate the noise, and X has {n_known} entries for {n_codes} codes. "
            "Pass more rows, or fit with alpha='auto'."
        )
    return _posterior.sample_noise(rows, atoms, _generator(random_state))


def _atoms_of_rows(learner, rows, codes, weight, rng):  # -> AtomPosterior
    """Sample the posterior distribution of atoms with normal noise, for `atom_intervals`.

    ``rows`` (n, n_features) and ``codes`` (n, n_components) are results of `_read`, ``weight`` is
    the user's ``sample_weight`` or None, and ``rng`` a `numpy.random.Generator`. Equal rows become
    one row with the sum of their weights. The user gets a warning if the atoms still change at the
    end of the Markov chain.
    """
    weight = check_sample_weight(1.0 if weight is None else weight, len(rows))
    first, weight, _ = merge_copies(hash_rows(*split_missing(to_tensor(rows))), weight)
    # The sampler needs memory for the rows, (n, n_features), and their codes, (n, n_components). Of
    # many rows only so many are used that each of these arrays has at most 2**23 numbers, 64 MiB.
    wanted = max(1, 2**23 // max(learner.components_.shape))
    spread = np.asarray(spread_rows(len(first), wanted))
    first = to_numpy(first)[spread]
    given = rows[first], codes[first], to_numpy(weight)[spread]
    rows, atoms, units, _ = _in_units(learner, *given)
    found = _posterior.sample_atoms(rows, atoms, units, rng)
    # `sample_atoms` prolongs the chain up to its largest length while ``hidden`` is above 0.1. So a
    # chain with 0.15 has the largest length, and was still too short.
    if found.hidden > 0.15:
        warn(
            f"Atoms still change ({found.hidden:.0%} of their variance is slow): they may stand "
            "for each other, and intervals be too narrow. Pass more rows, or fit fewer atoms."
        )
    return found


def atom_intervals(
    learner: Any,
    X: Any,
    level: float = 0.9,
    *,
    exposure: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> AtomIntervals:
    r"""Return intervals that hold the true entries of atoms, from one fit and its data.

    Atoms, supports (which codes are nonzero) and codes are drawn from their posterior distribution
    by a Markov chain that starts at the fit. An interval holds the true entry of an atom with the
    probability `level`, if the data are sparse combinations of atoms with normal noise, or counts
    of a `skpudle.PoissonNMF`, and if the fit has found the atom. The estimate is the posterior
    mean. It has no bias of penalties, and is more exact than ``components_``. See
    :doc:`/guide/how_many`.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``, of this
        package or another.
    X : array-like, memory map, dataset or iterable of batches
        The training samples, (n_samples, n_features); NaN marks missing entries. Rows times atoms,
        and rows times features, are limited to 8 million, for example to 80,000 rows with 100
        atoms: of more rows a part is used that is spread over all rows. A `skpudle.PoissonNMF`
        uses all rows.
    level : float, default=0.9
        Probability that an interval holds the true entry, between 0 and 1.
    exposure : array-like of shape (n_samples,), default=None
        Factor of the expected counts of each sample, as for `fit` of a `skpudle.PoissonNMF`.
    sample_weight : array-like of shape (n_samples,), default=None
        How often each row counts, as for `fit`. Equal rows are merged to one row with the sum of
        their weights, since copies of a row share its noise. A `skpudle.PoissonNMF` takes no
        weights here, and its equal rows are not merged.
    random_state : int, RandomState instance or None, default=None
        Determines the draws.

    Returns
    -------
    AtomIntervals
        Named tuple of `estimate`, `lower`, `upper` and `standard_error`, in the shape and units of
        ``components_``, and `supported` and `limit`, (n_components,). An atom is supported if the
        expected squared error of the unit atom is at most 0.1, if it does not equal an atom with
        more uses within the standard errors of both, and if the rows that use it leave twice as
        many equations as the atom has unknowns. The limit is the least expected squared error of
        the unit atom if supports were known (see `error_bound`) or, for counts, if it were known
        which atom each event comes from. ``str`` of the result compares the expected squared errors
        with the limits.

    Raises
    ------
    ValueError
        If the learner is convolutional or a `CountDictionaryLearning`, if X comes from a loader
        that shuffles, or if a `skpudle.PoissonNMF` gets ``sample_weight``.

    Warns
    -----
    UserWarning
        If atoms still change slowly at the end of the Markov chain: intervals may be too narrow.

    Examples
    --------
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.datasets import make_dictionary_data
    >>> from skpudle.inspection import atom_intervals
    >>> X, atoms, codes = make_dictionary_data(
    ...     1000, 16, 24, 2, snr_db=10, random_state=0
    ... )
    >>> learner = PUDLEDictionaryLearning(24, random_state=0).fit(X)
    >>> found = atom_intervals(learner, X, random_state=0)
    >>> bool(found.supported.all())
    True
    """
    learner, rows, codes, exposure = _read(learner, X, level, exposure)
    atoms = np.asarray(learner.components_, dtype=np.float64)
    positive = _adds_counts(learner) or getattr(learner, "positive_dict", False)
    if not _adds_counts(learner):
        found = _atoms_of_rows(
            learner, rows, codes, sample_weight, _generator(random_state)
        )
        sizes = np.linalg.norm(atoms, axis=1, keepdims=True)
    elif sample_weight is None:
        given = exposure, atoms, codes, learner.dispersion_, _generator(random_state)
        found = _posterior.sample_rates(rows, *given)
        sizes = atoms.sum(1, keepdims=True)
    else:
        raise ValueError(
            "Intervals of counts take no sample_weight. Pass rows that repeat."
        )
    # Two unit atoms count as equal if their distance, up to sign, is at most twice the standard
    # error of the distance. Of two equal atoms only the one that more rows use is supported, so
    # ``order`` ranks atoms by their uses. ``distances`` and ``errors`` are squared.
    units = normalize(found.atoms)
    squares = np.square(found.atoms).sum(1)
    errors = found.variances.sum(1) / np.where(squares > 0, squares, 1)
    distances = 2 - 2 * np.abs(units @ units.T)
    repeats = distances <= 4 * (errors[:, None] + errors)
    order = np.lexsort((np.arange(len(errors)), -found.uses)).argsort()
    # The limit of the expected squared error, 0.1, is a cosine of .95 with the true atom. It
    # excludes noise: atoms that were fitted to pure noise have .16 and more.
    supported = (
        found.has_enough
        & (errors <= 0.1)
        & ~(repeats & (order < order[:, None])).any(1)
    )
    ends = _ends(found.atoms * sizes, np.sqrt(found.variances) * sizes, level, positive)
    return AtomIntervals(*ends, supported, found.limit)


def code_intervals(
    learner: Any,
    X: ArrayLike,
    level: float = 0.9,
    *,
    exposure: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> CodeIntervals:
    r"""Return intervals that hold the true codes of samples, if atoms and supports are right.

    The support of a sample is the set of its nonzero codes in ``transform``. The estimates are
    weighted least squares on the supports, with the inverse variances of the noise of features as
    weights, and have no bias of penalties. The covariance of the codes of a sample is the inverse
    of the weighted Gram matrix of the atoms in its support. For a `skpudle.PoissonNMF` the
    estimates are the codes of ``transform``. Their covariance is the inverse of the Fisher
    information of the counts of the sample, with the learner's dispersion, for the codes of all
    atoms. Errors of the atoms are not taken into account.

    Parameters
    ----------
    learner : estimator
        As in `atom_intervals`.
    X : array-like of shape (n_samples, n_features)
        Samples, as ``transform`` takes them; NaN marks missing entries.
    level : float, default=0.9
        Probability that an interval holds the true code, between 0 and 1.
    exposure : array-like of shape (n_samples,), default=None
        Factor of the expected counts of each sample, as for ``transform`` of a
        `skpudle.PoissonNMF`.
    random_state : int, RandomState instance or None, default=None
        Determines the random draws by which the noise is estimated from 200 samples or more.

    Returns
    -------
    CodeIntervals
        Named tuple of `estimate`, `lower`, `upper`, `standard_error` and `supported`, the support,
        each of shape (n_samples, n_components). Outside of the support estimates and standard
        errors are 0; for counts the standard errors there are positive. Intervals do not measure
        whether the support is right.

    Raises
    ------
    ValueError
        If the learner is convolutional or a `CountDictionaryLearning`; or if the noise is known
        neither from the fit nor from X, which has no more known entries than nonzero codes.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PoissonNMF
    >>> from skpudle.inspection import code_intervals
    >>> learner = PoissonNMF.from_components([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    >>> found = code_intervals(learner, np.array([[50.0, 60.0, 40.0]]), random_state=0)
    >>> bool(
    ...     (found.lower < found.estimate).all()
    ...     and (found.estimate < found.upper).all()
    ... )
    True
    """
    learner, rows, codes, exposure = _read(learner, X, level, exposure)
    if _adds_counts(learner):
        atoms = np.asarray(learner.components_, dtype=np.float64)
        values = codes
        gains = 1.0
        rates = codes @ atoms
        known = ~np.isnan(rows)
        precisions = _posterior.weigh_counts(
            rates, known, exposure, learner.dispersion_
        )
        # Estimates are the codes of ``transform``. Least squares with the precisions of the counts
        # as weights only gives variances, the diagonal of the inverse Fisher information.
        _, variances = _least_squares(
            np.ones(codes.shape, bool), rates, atoms, precisions
        )
    else:
        rows, atoms, units, gains = _in_units(learner, rows, codes, np.ones(len(rows)))
        precisions = ~rows.missing / _noise(learner, rows, atoms, units, random_state)
        values, variances = _least_squares(codes != 0, rows.x, atoms, precisions)
    positive = _adds_counts(learner) or getattr(learner, "positive_code", False)
    ends = _ends(values / gains, np.sqrt(variances) / gains, level, positive)
    return CodeIntervals(*ends, codes != 0)


def error_bound(
    n_samples: int,
    n_features: int,
    n_components: int,
    *,
    n_nonzero: float,
    snr_db: float,
    relative_uses: float = 1.0,
) -> float:
    r"""Return the least expected squared error of a unit atom that any unbiased method can have.

    It is the Cramer-Rao bound if it were known which atoms each sample uses, for codes of all atoms
    with one mean square and equal noise of all entries; see :doc:`/guide/how_many`. An error of
    0.02 is a cosine of 0.99 with the true atom.

    The bound is inversely proportional to the number of samples: for an error ``e`` an unbiased
    method needs at least ``error_bound(1, ...) / e`` samples. A `skpudle.PUDLEDictionaryLearning`
    needs up to twice this number at 20 dB, more with more noise, and at least 10 samples per atom
    to find the atoms.

    Parameters
    ----------
    n_samples : int
        Number of samples.
    n_features : int
        Number of features, m.
    n_components : int
        Number of atoms.
    n_nonzero : float
        Mean number of atoms in a sample, s, between 0 and m.
    snr_db : float
        Signal-to-noise ratio of all entries together in decibels: with 20 dB the noise has a tenth
        of the amplitude of the signal.
    relative_uses : float, default=1.0
        Number of samples that use the atom, divided by the mean of this number over all atoms: 0.1
        for a rare atom with a tenth of the uses.

    Returns
    -------
    float
        Expected squared distance between the estimated and the true unit atom.

    Raises
    ------
    ValueError
        If ``n_nonzero`` is not between 0 and ``n_features``.

    Notes
    -----
    With known supports, and codes that are not known, the Fisher information of atom k is
    :math:`\sum_i z_{ik}^2 P_i / \sigma^2`, where :math:`P_i` projects on the complement of the span
    of the atoms of row i. Only the :math:`m - 1` directions that leave the norm alone are unknown,
    and :math:`P_i` keeps :math:`m - s` of m. By the inequality of the harmonic and the arithmetic
    mean no unbiased estimate has a smaller expected squared error of the atom than

    .. math:: \frac{(m - 1)^2}{m - s} \frac{\sigma^2}{\sum_i z_{ik}^2}
              = \frac{(m - 1)^2}{m (m - s)} \frac{s}{\mathrm{SNR}\; n_k}

    in :math:`n_k` rows with the atom. The minimax bound of Jung, Eldar and Goertz [1]_ has the same
    dependence on n, p, m and the signal-to-noise ratio, without known supports, but a much smaller
    constant, so this bound is the tighter limit.

    References
    ----------
    .. [1] A. Jung, Y. C. Eldar and N. Goertz, "On the minimax risk of dictionary learning", IEEE
       Transactions on Information Theory 62, 2016 (arXiv:1507.05498).

    Examples
    --------
    >>> from skpudle.inspection import error_bound
    >>> round(error_bound(1000, 20, 40, n_nonzero=3, snr_db=20), 4)
    0.0004

    The number of rows for an error of 0.02:

    >>> from math import ceil
    >>> ceil(error_bound(1, 64, 128, n_nonzero=4, snr_db=5) / 0.02)
    2092
    """
    bounds = dict(min_val=0, max_val=n_features, include_boundaries="neither")
    check_scalar(n_nonzero, "n_nonzero", (int, float, np.number), **bounds)
    n_uses = n_samples * n_nonzero / n_components * relative_uses
    share = (n_features - 1) ** 2 / (n_features * (n_features - n_nonzero))
    return share * n_nonzero / (10 ** (snr_db / 10) * n_uses)
