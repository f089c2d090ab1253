r"""Compute intervals of atoms and codes, and the least error of atoms that is possible.

A *support* is the set of atoms with nonzero codes in a sample. An *interval* of level 0.9 holds the
true value with a probability of 0.9. The Markov chains are in `skpudle.inspection._posterior`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state, check_scalar

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
from skpudle._fit.encoders import units_of
from skpudle._learners.counts import CountDictionaryLearning, check_exposure
from skpudle._rows import hash_rows, spread_rows
from skpudle.inspection import _posterior


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
        `skpudle.inspection.atom_support` to test whether the data have such an atom at all.
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
        kept = self.supported
        sentence = f"The data determine {np.count_nonzero(kept)} of {len(kept)} atoms."
        if not kept.any():
            return sentence
        errors = np.square(self.standard_error[kept]).sum(1)
        error = (errors / np.square(self.estimate[kept]).sum(1)).mean()
        ratio = error / self.limit[kept].mean()
        return (
            f"{sentence} Their expected squared error is {error:.2g}, {ratio:.2f} times the limit "
            "of any method."
        )


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


def _check_inside(value, name, largest):
    """Raise an error unless the argument ``name`` is a number between 0 and ``largest``."""
    check_scalar(
        value,
        name,
        (int, float, np.number),
        min_val=0,
        max_val=largest,
        include_boundaries="neither",
    )


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
    _check_inside(level, "level", 1)
    refuse_shuffled(X)
    if isinstance(learner, CountDictionaryLearning):
        raise ValueError(
            "CountDictionaryLearning has no intervals: effects of its atoms multiply. Pass a "
            "PoissonNMF."
        )
    learner = check_learner_of_rows(learner)
    if exposure is not None:
        exposure = to_numpy(check_exposure(exposure, X, learner))[:, 0]
    parts = encode_parts(learner, X, exposure=exposure, allow_nan=True)
    rows, codes = zip(*parts, strict=True)
    exposure = 1.0 if exposure is None else exposure[:, None]
    return learner, np.concatenate(rows), np.concatenate(codes), exposure


def _generator(random_state):
    """Return a `numpy.random.Generator`, seeded by a ``random_state`` of scikit-learn's kinds."""
    return np.random.default_rng(check_random_state(random_state).randint(2**31))


def _adds_counts(learner):
    """Return whether the learner is a `PoissonNMF`, with codes @ atoms as expected counts."""
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
    scale : ndarray of shape (n_features,) or float
        The noise scale of each feature, 1.0 if all are equal: atoms times ``scale`` are in the
        units of the data.
    gains : ndarray of shape (1 or n, n_components)
        Factors that turn codes of the learner into codes of ``atoms``.
    """
    units = units_of(learner)
    x, mask = split_missing(to_tensor(rows))
    x, mask, row_scale = units.enter(x, mask)
    missing = np.zeros(rows.shape, bool) if mask is None else to_numpy(mask) == 0
    scale = 1.0 if units.scale is None else to_numpy(units.scale)
    atoms = np.asarray(learner.components_, dtype=np.float64) / scale
    # Atoms are divided by their norms below. An atom of zeros has the norm 0, so it is replaced by
    # an atom of ones.
    atoms = np.where(atoms.any(axis=1, keepdims=True), atoms, 1.0)
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    gains = norms.T if row_scale is None else norms.T / to_numpy(row_scale)
    weight = weight / weight.mean()
    coded = _posterior.CodedRows(
        x=to_numpy(x),
        missing=missing,
        codes=codes * gains,
        weight=weight[:, None],
        has_baseline=units.intercept is not None,
        positive=bool(getattr(learner, "positive_code", False)),
    )
    return coded, atoms / norms, scale, gains


def _bound(estimate, standard_error, level, positive):
    """Return estimates with the lower and upper ends of their intervals, three arrays of one shape.

    The intervals are those of a normal distribution for the probability ``level``. ``positive`` is
    whether true values are known to be non-negative; negative estimates and ends then become 0.
    """
    half_width = stats.norm.ppf(0.5 + level / 2) * standard_error
    lower = estimate - half_width
    upper = estimate + half_width
    if positive:
        estimate = np.maximum(estimate, 0.0)
        lower = np.maximum(lower, 0.0)
        upper = np.maximum(upper, 0.0)
    return estimate, lower, upper


def _least_squares(supports, x, atoms, precisions):  # -> codes, variances
    """Return weighted least squares codes of rows, restricted to supports, and their variances.

    ``supports`` (n, n_components) is True for the codes that may be nonzero; the other codes and
    their variances are 0. Both results have this shape. ``precisions`` are the weights of the
    entries of the rows ``x``, (n, n_features) both: inverse variances of the noise, and 0 for
    missing entries. ``atoms`` are (n_components, n_features). Rows whose supports have equal sizes
    are solved in one batch.
    """
    values = np.zeros(supports.shape)
    variances = np.zeros(supports.shape)
    sizes = supports.sum(axis=1)
    for size in np.unique(sizes[sizes > 0]):
        of_size = np.flatnonzero(sizes == size)
        for block in blocks_of_rows(len(of_size), size * max(size, atoms.shape[1])):
            rows = of_size[block]
            chosen = np.nonzero(supports[rows])[1].reshape(-1, size)
            weighted = atoms[chosen] * precisions[rows, None]
            # The inverse of the weighted Gram matrix of a support is the covariance of its codes.
            covariance = np.linalg.pinv(weighted @ atoms[chosen].mT, hermitian=True)
            codes = covariance @ (weighted @ x[rows, :, None])
            values[rows[:, None], chosen] = codes[:, :, 0]
            variances[rows[:, None], chosen] = covariance.diagonal(axis1=1, axis2=2)
    return values, variances


def _noise_variance(
    learner, rows, atoms, scale, random_state
):  # -> (n_features,) or ()
    """Return the variance of the noise of each feature for `code_intervals`, in units of ``rows``.

    ``rows`` are a `_posterior.CodedRows`, divided by ``scale``, the noise of features in the fit,
    and ``atoms`` the unit atoms for its codes. The variances are estimated from the rows. Fewer
    than 200 rows are too few to estimate a variance for each feature, so the fit's ``noise_std_``
    is used for them, if there is one; it may be one number for all features. ``random_state`` is
    the seed of the draws by which `sample_noise` estimates variances. ValueError is raised if the
    rows have no more known entries than nonzero codes.
    """
    noise_std = getattr(learner, "noise_std_", None)
    if len(rows.x) < 200 and noise_std is not None:
        return _posterior.keep_above_rounding(np.square(noise_std / scale), rows.x)
    n_observed = np.count_nonzero(~rows.missing)
    n_codes = np.count_nonzero(rows.codes)
    if n_observed <= n_codes:
        raise ValueError(
            f"The fit did not estimate the noise, and X has {n_observed} known entries for "
            f"{n_codes} codes. Pass more rows, or fit with alpha='auto'."
        )
    return _posterior.sample_noise(rows, atoms, _generator(random_state))


def _atoms_of_rows(
    learner,
    rows,
    codes,
    weight,
    rng,
):  # -> AtomPosterior
    """Sample the posterior distribution of atoms with normal noise, for `atom_intervals`.

    ``rows`` (n, n_features) are the user's samples, with NaN where entries are missing, ``codes``
    (n, n_components) their signed codes, ``weight`` is the user's ``sample_weight`` or None, and
    ``rng`` a `numpy.random.Generator`. Equal rows become one row with the sum of their weights,
    since copies share their noise. The user gets a warning if the atoms still change at the end of
    the Markov chain.
    """
    weight = check_sample_weight(1.0 if weight is None else weight, len(rows))
    x, mask = split_missing(to_tensor(rows))
    distinct, weight, _ = merge_copies(hash_rows(x, mask), weight)
    # The sampler needs memory for the rows, (n, n_features), and their codes, (n, n_components). Of
    # many rows a part is used, for which each of these arrays has at most 2**23 numbers, 64 MiB.
    most = max(1, 2**23 // max(learner.components_.shape))
    spread = np.asarray(spread_rows(len(distinct), most))
    distinct = to_numpy(distinct)[spread]
    coded, atoms, scale, _ = _in_units(
        learner, rows[distinct], codes[distinct], to_numpy(weight)[spread]
    )
    posterior = _posterior.sample_atoms(coded, atoms, scale, rng)
    # ``slow_fraction`` is the fraction of the variance that comes from slow changes. While it is
    # above 0.1, `sample_atoms` prolongs the chain up to a largest length. So a chain with 0.15 has
    # the largest length, and was still too short.
    if posterior.slow_fraction > 0.15:
        warn(
            f"Atoms still change ({posterior.slow_fraction:.0%} of their variance is slow): they "
            "may stand for each other, and intervals be too narrow. Pass more rows, or fit fewer "
            "atoms."
        )
    return posterior


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
        many equations as the atom has unknowns: each row has as many as entries minus nonzero
        codes, shared among its atoms. The limit is the least expected squared error of the unit
        atom if supports were known (see `error_bound`) or, for counts, if it were known which atom
        each event comes from. ``str`` of the result compares the expected squared errors with the
        limits.

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
    >>> intervals = atom_intervals(learner, X, random_state=0)
    >>> bool(intervals.supported.all())
    True
    """
    learner, rows, codes, exposure = _read(learner, X, level, exposure)
    atoms = np.asarray(learner.components_, dtype=np.float64)
    adds_counts = _adds_counts(learner)
    if adds_counts and sample_weight is not None:
        raise ValueError(
            "Intervals of counts take no sample_weight. Pass rows that repeat."
        )
    rng = _generator(random_state)
    if adds_counts:
        posterior = _posterior.sample_rates(
            rows, exposure, atoms, codes, learner.dispersion_, rng
        )
        sizes = atoms.sum(1, keepdims=True)
    else:
        posterior = _atoms_of_rows(learner, rows, codes, sample_weight, rng)
        sizes = np.linalg.norm(atoms, axis=1, keepdims=True)
    # Atoms of ``posterior`` have norm 1, or sum 1 for counts. ``sizes`` are the norms, or sums, of
    # the learner's atoms, and turn results into the units of ``components_``.
    # Two unit atoms count as equal if their distance, up to sign, is at most twice the standard
    # error of the distance. Of two equal atoms only the one that more rows use is supported, so
    # ``order`` ranks atoms by their uses. ``distances`` and ``errors`` are squared.
    unit_atoms = normalize(posterior.atoms)
    squares = np.square(posterior.atoms).sum(1)
    errors = posterior.variances.sum(1) / np.where(squares > 0, squares, 1)
    distances = 2 - 2 * np.abs(unit_atoms @ unit_atoms.T)
    are_equal = distances <= 4 * (errors[:, None] + errors)
    order = np.lexsort((np.arange(len(errors)), -posterior.uses)).argsort()
    is_repeated = (are_equal & (order < order[:, None])).any(1)
    standard_error = np.sqrt(posterior.variances) * sizes
    positive = adds_counts or getattr(learner, "positive_dict", False)
    estimate, lower, upper = _bound(
        posterior.atoms * sizes, standard_error, level, positive
    )
    # The limit of the expected squared error, 0.1, is a cosine of 0.95 with the true atom. It
    # excludes noise: atoms that were fitted to pure noise have 0.16 and more.
    supported = posterior.has_enough & (errors <= 0.1) & ~is_repeated
    return AtomIntervals(
        estimate, lower, upper, standard_error, supported, posterior.limit
    )


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
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``, of this
        package or another.
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
    >>> counts = np.array([[50.0, 60.0, 40.0]])
    >>> intervals = code_intervals(learner, counts, random_state=0)
    >>> bool((intervals.lower < intervals.estimate).all())
    True
    """
    learner, rows, codes, exposure = _read(learner, X, level, exposure)
    adds_counts = _adds_counts(learner)
    if adds_counts:
        atoms = np.asarray(learner.components_, dtype=np.float64)
        values = codes
        gains = 1.0
        rates = codes @ atoms
        precisions = _posterior.weigh_counts(
            rates, ~np.isnan(rows), exposure, learner.dispersion_
        )
        # Estimates are the codes of ``transform``. Least squares with the precisions of the counts
        # as weights only gives variances, the diagonal of the inverse Fisher information.
        all_codes = np.ones(codes.shape, bool)
        _, variances = _least_squares(all_codes, rates, atoms, precisions)
    else:
        # Codes are computed in units of the noise, for unit atoms; ``gains`` are the factors from
        # the learner's codes to these codes.
        coded, atoms, scale, gains = _in_units(learner, rows, codes, np.ones(len(rows)))
        noise_variance = _noise_variance(learner, coded, atoms, scale, random_state)
        precisions = ~coded.missing / noise_variance
        values, variances = _least_squares(codes != 0, coded.x, atoms, precisions)
    standard_error = np.sqrt(variances) / gains
    positive = adds_counts or getattr(learner, "positive_code", False)
    estimate, lower, upper = _bound(values / gains, standard_error, level, positive)
    return CodeIntervals(estimate, lower, upper, standard_error, codes != 0)


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
    dependence on the numbers of samples, atoms and features and on the signal-to-noise ratio,
    without known supports, but a much smaller constant, so this bound is the tighter limit.

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
    _check_inside(n_nonzero, "n_nonzero", n_features)
    snr = 10 ** (snr_db / 10)
    n_uses = n_samples * n_nonzero / n_components * relative_uses
    ratio = (n_features - 1) ** 2 / (n_features * (n_features - n_nonzero))
    return ratio * n_nonzero / (snr * n_uses)
