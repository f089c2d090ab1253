r"""Sample atoms, supports and codes from their posterior distribution, starting at a fit.

`atom_intervals` calls `sample_atoms` for rows with normal noise and `sample_rates` for counts, and
`code_intervals` calls `sample_noise`. The remaining functions are steps of these three. A support
is the set of atoms that a row uses. A sweep draws every unknown once from its distribution given
the other unknowns, and the chain is the sequence of sweeps.

Rows, in units of their noise, are :math:`x_i = z_i D + e_i` with normal noise of variance
:math:`t_j^2` in feature j. A code is zero, or normal around :math:`\mu_k` or :math:`-\mu_k`, which
covers codes of one size as well as normal ones. A sweep draws in turn

- missing entries, given codes and atoms;
- each code of a row, whether it is zero and its value, given the row's other codes [1]_;
- atoms, given codes: normal, of covariance :math:`(Z^T Z)^{-1}` between atoms, :math:`t_j^2` in a
  feature; with weights W of rows it is :math:`(Z^T W Z)^{-1} Z^T W^2 Z (Z^T W Z)^{-1}`, since a row
  that counts twice has the noise of one row;

and sets the noise and the distribution of codes to their most likely values. So codes and supports
are integrated out instead of fixed: where one atom can replace another, atoms vary more. With known
supports the covariance of atoms is that of their profile likelihood.

The variance of an atom's entry is the mean of its variance given codes, which is known, plus the
variance of its expectation given codes, which the chain estimates (Rao and Blackwell). The second
part is small, 5 to 30 %, unless supports are uncertain, so a few sweeps are enough.

Counts have the expectations :math:`\mu_i = e_i z_i D`, and the variances :math:`\mu_{ij} + \phi
\mu_{ij}^2` of Poisson's or a negative binomial distribution. Atoms and codes depend on sums over
many entries, so a sweep draws from normal distributions with the same mean and variance: codes
given atoms, and entries of atoms given codes, all non-negative. The prior of both is the
exponential distribution. Codes may be 0 if many codes of the fit are 0; otherwise entries of atoms
may be 0, which determines the extremes of mixtures. Variances follow a moving average of the rates.

References
----------
.. [1] E. I. George and R. E. McCulloch, "Variable selection via Gibbs sampling", Journal of the
   American Statistical Association 88, 1993.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from sklearn.preprocessing import normalize

from skpudle._compilation import Loops, blocks_of_rows
from skpudle.search._epoch import spread_rows
from skpudle.search.held_out import MEDIAN_OF_NORMAL

# Chain of `sample_atoms`: the number of first sweeps that are discarded, and the numbers of further
# sweeps after which the chain may end. The last two thirds of the further sweeps count.
_FIRST_SWEEPS, _ENDS = 5, (21, 54, 108)
# Chain of `sample_rates`: number of first sweeps that are discarded, and of sweeps that count.
_UNSETTLED_SWEEPS, _COUNTED_SWEEPS = 60, 150


# ---------------------------------------------------------------------------- compiled loops


def _positive_normal(rng, mean, deviation):
    """Draw a normal number with this mean and standard deviation, given that it is above 0."""
    least = -mean / deviation
    while least < 1:
        drawn = rng.standard_normal()
        if drawn > least:
            return mean + deviation * drawn
    # If 0 lies more than one deviation above the mean, numbers of an exponential distribution are
    # accepted by the rule of Robert, "Simulation of truncated normal variables", 1995.
    while True:
        excess = rng.standard_exponential() / least
        if not rng.standard_exponential() < 0.5 * excess * excess:  # so NaN ends the loop, too
            return deviation * excess


def _log_of_tail(x):
    """Return the logarithm of the probability that a standard normal number exceeds ``-x``."""
    if x > -30:
        return np.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - np.log(-2.5066282746310002 * x)


def draw_codes(correlations, grams, prior, rng, z):
    """Draw all codes one after the other, each given the other codes of its row; replace ``z``.

    A code is 0, or has a density proportional to ``exp(pull * z - precision * z**2 / 2)`` for
    positive codes and ``exp(-pull * z - precision * z**2 / 2)`` for negative codes. Arrays are in
    units of the noise, for n rows and p atoms:

    - ``correlations`` (n, p): products of atoms with the residuals that the codes ``z`` leave;
    - ``grams`` (1 or n, p, p): products of atoms, for all rows or for each row;
    - ``prior`` (4, p): precisions, pulls, and the logarithms of the odds of a positive and of a
      negative code against 0, without the integrals of the densities; codes whose odds of a
      negative code are 0 are non-negative;
    - ``rng``: a generator of NumPy, from which compiled loops draw as plain Python does;
    - ``z`` (n, p): the codes of the last sweep, which the new codes replace.
    """
    n, n_components = z.shape
    for i in range(n):
        gram, left = grams[i % len(grams)], correlations[i].astype(np.float64)
        for k in range(n_components):
            old, precision, pull = z[i, k], gram[k, k] + prior[0, k], prior[1, k]
            if precision <= 0:
                continue
            correlation = left[k] + gram[k, k] * old
            deviation, size = 1 / np.sqrt(precision), 0.5 * np.log(precision)
            above, below = (correlation + pull) / precision, (correlation - pull) / precision
            plus = prior[2, k] - size + 0.5 * precision * above * above
            minus = prior[3, k] - size + 0.5 * precision * below * below
            positive = prior[3, k] == -np.inf
            if positive:
                plus += _log_of_tail(above / deviation)
            largest = max(plus, minus, 0.0)
            plus, minus = np.exp(plus - largest), np.exp(minus - largest)
            drawn = rng.random() * (plus + minus + np.exp(-largest))
            if drawn >= plus + minus:
                new = 0.0
            elif positive:
                new = _positive_normal(rng, above, deviation)
            else:
                new = (above if drawn < plus else below) + deviation * rng.standard_normal()
            if new != old:
                z[i, k] = new
                for j in range(n_components):
                    left[j] -= gram[k, j] * (new - old)


loops = Loops(globals())


# ---------------------------------------------------------------------------- rows


class Rows(NamedTuple):
    """Rows in units of their noise, and the codes that a fit gives them.

    Attributes
    ----------
    x : ndarray of shape (n_samples, n_features)
        Rows without a baseline.
    missing : ndarray of shape (n_samples, n_features), bool
        True for missing entries and for outliers, which are drawn instead of read from ``x``.
    codes : ndarray or sparse array of shape (n_samples, n_components)
        Codes for unit atoms.
    weight : ndarray of shape (n_samples, 1)
        Weights, of mean 1.
    has_baseline : bool
        Whether the rows lost a baseline that was estimated from rows.
    positive : bool
        Whether codes are non-negative.
    """

    x: np.ndarray
    missing: np.ndarray
    codes: np.ndarray
    weight: np.ndarray
    has_baseline: bool
    positive: bool

    def take(self, numbers):
        """Return the rows with these numbers."""
        return Rows(*(part[numbers] for part in self[:4]), *self[4:])


class AtomPosterior(NamedTuple):
    """The posterior distribution of atoms.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        Posterior means, of norm 1 or of sum 1.
    variances : ndarray of shape (n_components, n_features)
        Posterior variances of the entries of atoms.
    uses : ndarray of shape (n_components,)
        Expected number of rows with a nonzero code of each atom.
    limit : ndarray of shape (n_components,)
        Expected squared error of each atom over its squared norm, if supports were known.
    hidden : float
        Share of the variance in changes slower than a quarter of the chain; a large share means
        that the chain is too short.
    has_enough : ndarray of shape (n_components,), bool, or True
        Whether the rows that use an atom are enough to determine its entries.
    """

    atoms: np.ndarray
    variances: np.ndarray
    uses: np.ndarray
    limit: np.ndarray
    hidden: float = 0.0
    has_enough: NDArray | bool = True


def keep_above_rounding(variances, x):
    """Raise variances of features (n_features,) to a least value that rounding cannot reach.

    The bounds are relative to the mean variance and to the mean square of the data ``x``.
    """
    # Without the first bound a constant feature, with the variance 0, would have infinite weight.
    # The second bound is for data without any noise.
    least = max(1e-3 * variances.mean(), 1e-10 * float(np.square(x).mean()))
    return np.maximum(variances, max(least, np.finfo(float).tiny))


def _without_outliers(rows, atoms):  # -> Rows, noise of features
    """Return the rows that a chain begins with, and a first estimate of the noise of features.

    Very long rows are removed. An entry becomes missing if it is far from the median of its feature
    and the codes do not explain it. Codes of at most 3 standard deviations of the noise become 0.
    ``atoms`` (n_components, n_features) have norm 1. Codes are dense in ``rows`` and a CSR array in
    the result.
    """
    x, missing, residual = rows.x, rows.missing, np.abs(rows.x - rows.codes @ atoms)
    noise = np.nanmedian(np.where(missing, np.nan, residual)) / MEDIAN_OF_NORMAL
    sizes = np.linalg.norm(x, axis=1)
    # A row longer than 5 times the 95 % quantile of lengths is an outlier: a fit may have given it
    # an atom of its own.
    kept = np.flatnonzero(sizes <= 5 * np.quantile(sizes, 0.95))
    away = np.abs(x - np.median(x, axis=0))
    deviations = np.maximum(np.median(away, axis=0) / MEDIAN_OF_NORMAL, noise)
    # An entry is an outlier if it is 8 standard deviations away from the median of its feature and
    # 8 standard deviations of the noise away from the fit.
    far = (away > 8 * deviations) & (residual > 8 * noise)
    rows = rows._replace(missing=missing | far).take(kept)
    n_known = (~rows.missing).sum(0)
    squares = np.where(rows.missing, 0.0, residual[kept] ** 2).sum(0)
    variances = np.where(n_known > 0, squares / np.maximum(n_known, 1), noise**2)
    # Each nonzero code takes one degree of freedom from the residuals.
    free = 1 - np.count_nonzero(rows.codes) / max(n_known.sum(), 1)
    variances = keep_above_rounding(variances / max(free, 0.1), rows.x)
    is_sure = np.abs(rows.codes) > 3 * np.sqrt(variances.mean())
    return rows._replace(codes=sparse.csr_array(np.where(is_sure, rows.codes, 0.0))), variances


def _prior(codes, positive):  # CSR (n, p) -> (4, p)
    """Return the argument ``prior`` of `draw_codes`, the most likely one for the codes of a sweep.

    Nonzero codes are normal around +mean or -mean, with a mean and a variance for each atom.
    """
    n, p = codes.shape
    atoms, values = codes.indices, codes.data
    used = np.bincount(atoms, minlength=p)
    right = np.bincount(atoms[values > 0], minlength=p)
    total = np.bincount(atoms, values**2, minlength=p)
    of_all = total.sum() / max(len(values), 1) or 1.0  # for atoms that no row uses
    squares = np.where(used > 0, total / np.maximum(used, 1), of_all)
    # A number that is normal around +mean or -mean has the kurtosis 3 - 2 alike**2, if ``alike`` is
    # the share of its mean square that is due to the mean. All atoms get the same share: the one
    # that fits the kurtosis of all codes, each divided by the root mean square of its atom's codes.
    relative = values**2 / squares[atoms]
    kurtosis = (relative @ relative) / max(len(values), 1)
    alike = min(np.sqrt(max(0.0, (3 - kurtosis) / 2)), 0.98)
    means, variances = np.sqrt(alike * squares), (1 - alike) * squares
    pull = means / variances
    # logarithms of the odds of a positive code and of a negative code, each against 0
    odds = np.log((np.stack([right, used - right]) + 0.5) / (n - used + 0.5))
    odds -= 0.5 * np.log(variances) + 0.5 * means * pull
    if positive:
        odds[0] -= stats.norm.logcdf(means / np.sqrt(variances))
        odds[1] = -np.inf
    return np.stack([1 / variances, pull, *odds])


def _summary(sweeps, n_rows):  # -> AtomPosterior
    """Return the posterior distribution of atoms from the sweeps of a chain.

    A sweep holds the unit atoms that are expected given the codes of the sweep, (p, m); the
    variances of their entries given these codes, (p, m); and how many of the ``n_rows`` rows use
    each atom, (p,). The variance of an entry is the mean of the variances plus the variance of the
    expectations. A short chain shows too little of the second variance: half the mean squared
    difference of two sweeps grows with their distance in the chain, and only in an infinitely long
    chain reaches it. It is extrapolated from distances of a quarter and of half of the chain.
    """
    atoms, within, uses = (np.stack(part) for part in zip(*sweeps, strict=True))
    n_features, within, n_uses = atoms.shape[2], within.mean(0), uses.mean(0)
    lag, tiny, between = max(1, len(atoms) // 4), np.finfo(float).tiny, atoms.var(0, ddof=1)
    near, far = (np.square(atoms[h:] - atoms[:-h]).mean((0, 2)) / 2 for h in (lag, 2 * lag))
    # ``kept`` is the correlation of sweeps at a distance of a quarter of the chain. In a chain that
    # still drifts it would be near 1 and the variance infinite, so at most 0.9 is allowed.
    kept = np.clip(far / np.maximum(near, tiny) - 1, 0.0, 0.9)
    between *= np.maximum(1.0, near / (1 - kept) / np.maximum(between.mean(1), tiny))[:, None]
    per_sweep = kept ** (1 / lag)
    error = (1 + per_sweep) / (1 - per_sweep) / len(atoms)  # of the chain's mean, in ``between``
    variances = within + between * (1 + error[:, None])
    # A row has ``taken`` codes on average. They have to be estimated from the entries of the row,
    # and leave n_features - taken of n_features shares of its information to the atoms.
    taken = min(n_uses.sum() / n_rows, n_features - 1)
    limit = within.sum(1) * (n_features - 1) / (n_features - taken)
    # The ``taken`` atoms of a row share the n_features - taken equations that its codes leave. An
    # atom has n_features - 1 unknowns, and needs twice as many equations from its rows: with fewer
    # it follows the noise, as an atom that is used by a single row equals that row.
    has_enough = n_uses * (n_features - taken) >= 2 * taken * (n_features - 1)
    hidden = float((between.sum(1) * kept).sum() / variances.sum())
    return AtomPosterior(normalize(atoms.mean(0)), variances, n_uses, limit, hidden, has_enough)


def _draw_rows(rows, fitted, codes, atoms, variances, rng):  # -> x, codes (CSR)
    """Draw the missing entries of rows, and then all codes; return the filled rows and the codes.

    ``fitted`` (n, n_features) is the prediction of ``rows`` by the ``codes`` of the last sweep, a
    CSR array (n, n_components), with the baseline if there is one. ``atoms`` are (n_components,
    n_features), and ``variances`` (n_features,) the noise of features.
    """
    x = rows.x
    if rows.missing.any():
        drawn = fitted + rng.standard_normal(x.shape) * np.sqrt(variances)
        x = np.where(rows.missing, drawn, x)
    weighted = atoms / variances
    gram = np.ascontiguousarray(weighted @ atoms.T)
    correlations = (x - fitted).astype(np.float32) @ weighted.T.astype(np.float32)
    z = codes.toarray()
    loops.draw_codes(correlations, gram[None], _prior(codes, rows.positive), rng, z)
    return x, sparse.csr_array(z)


def sample_noise(rows, atoms, rng):  # -> (n_features,)
    """Return the variances of the noise of features, for fixed unit atoms.

    ``atoms`` has the shape (n_components, n_features). Codes and missing entries of at most 2,000
    rows are drawn ten times.
    """
    rows, variances = _without_outliers(rows, atoms)
    if len(rows.x) < 200:  # too few rows for the variance of each feature
        return np.full(rows.x.shape[1], variances.mean())
    rows = rows.take(np.asarray(spread_rows(len(rows.x), 2000)))
    codes = rows.codes
    for _ in range(10):
        x, codes = _draw_rows(rows, codes @ atoms, codes, atoms, variances, rng)
        variances = keep_above_rounding(np.square(x - codes @ atoms).mean(0), x)
    return variances


def sample_atoms(rows, atoms, scale, rng):
    """Sample atoms and codes; the chain starts at the atoms and codes of a fit.

    Parameters
    ----------
    rows : Rows
        Rows without a baseline, in units of their noise, with codes.
    atoms : ndarray of shape (n_components, n_features)
        Unit atoms in these units.
    scale : float or ndarray of shape (n_features,)
        The units of features.
    rng : numpy.random.Generator
        Draws.

    Returns
    -------
    AtomPosterior
        The atoms in the units of the data.
    """
    rows, variances = _without_outliers(rows, atoms)
    (n, m), p = rows.x.shape, len(atoms)
    ones = sparse.csr_array(np.ones((n, int(rows.has_baseline))))
    # The baseline is drawn like an atom whose code is 1 in every row. It starts at 0.
    first = drawn = np.vstack([atoms, np.zeros((ones.shape[1], m))])
    # The prior of an atom's entries is normal around the atom of the fit, with the variance 1 / m
    # at the first noise. The baseline has no prior.
    prior = np.diag(variances.mean() * m * (np.arange(len(first)) < p))
    codes, sweeps = rows.codes, []
    for n_sweeps in range(1 - _FIRST_SWEEPS, _ENDS[-1] + 1):
        fitted = codes @ drawn[:p] + drawn[p:].sum(0)
        x, codes = _draw_rows(rows, fitted, codes, drawn[:p], variances, rng)
        regressors = sparse.hstack([codes, ones], format="csr")
        weighted = regressors.multiply(rows.weight).tocsr()
        inverse = np.linalg.inv((regressors.T @ weighted).toarray() + prior)
        means = inverse @ (weighted.T @ x + prior @ first)
        squares = (rows.weight * np.square(x - regressors @ means)).sum(0)
        variances = keep_above_rounding(squares / max(n - len(means), n / 2), x)
        # The covariance between atoms is root @ root.T: a row of weight 2 has the noise of one row,
        # not of two.
        root = inverse @ np.linalg.cholesky((weighted.T @ weighted).toarray() + prior)
        drawn = means + root @ (rng.standard_normal(means.shape) * np.sqrt(variances))
        norms = np.linalg.norm(drawn[:p], axis=1)
        drawn[:p] /= norms[:, None]
        codes.data *= norms[codes.indices]
        # In the units of the data the covariance of an atom's entries is ``inverse`` times the
        # diagonal matrix T of ``own``. For the unit atom d it becomes (I - d d^T) T (I - d d^T).
        units, own = means[:p] * scale, variances * scale**2
        norms = np.linalg.norm(units, axis=1, keepdims=True)
        squares = np.square(units / norms)
        tangent = own * (1 - 2 * squares) + squares * (squares @ own)[:, None]
        within = tangent * np.square(root[:p]).sum(1)[:, None] / norms**2
        sweeps.append((units / norms, within, np.bincount(codes.indices, minlength=p)))
        if n_sweeps in _ENDS:
            found = _summary(sweeps[_FIRST_SWEEPS + n_sweeps // 3 :], n)
            # The chain is long enough if less than a tenth of the variance is in changes slower
            # than a quarter of the chain.
            if found.hidden < 0.1:
                break
    return found


def _draw_rates(x, weights, atoms, z, spike, rng):  # -> precisions (n, p); changes z
    """Draw non-negative codes ``z`` (n, p) of rows ``x``, near ``z @ atoms``; replace ``z``.

    Return the precision of each code given all other codes, (n, p). ``weights`` (n, n_features) are
    the precisions of the entries of ``x``. The prior of a code is the exponential distribution;
    with a ``spike`` a code may also be 0. `sample_rates` calls this function with rows and codes,
    and then with columns and atoms in their place.
    """
    n, p = z.shape
    used, squares = (z > 0).sum(0), np.empty_like(z)
    rate = np.maximum(used, 1e-300) / np.maximum(z.sum(0), 1e-300)
    odds = np.log((used + 0.5) / (n - used + 0.5)) if spike else 1e9
    odds = odds + np.log(rate) + 0.5 * np.log(2 * np.pi)
    prior = np.stack([np.zeros(p), -rate, odds, np.full(p, -np.inf)])
    products = (atoms[:, None] * atoms).reshape(p * p, -1).T
    for rows in blocks_of_rows(n, p**2, 2**22):
        grams = (weights[rows] @ products).reshape(-1, p, p)
        correlations = (weights[rows] * (x[rows] - z[rows] @ atoms)) @ atoms.T
        loops.draw_codes(correlations, grams, prior, rng, z[rows])
        squares[rows] = grams.diagonal(axis1=1, axis2=2)
    return squares


def weigh_counts(rates, known, exposure, dispersion):  # -> (n_samples, n_features)
    """Return the precisions (inverse variances) of rates: of counts divided by their exposures.

    ``rates`` (n_samples, n_features) are the expectations for an exposure of 1, ``known`` tells
    which counts are not missing, and ``exposure`` is (n_samples, 1). Missing counts have the
    precision 0. So that no precision is infinite, a rate counts as at least a thousandth of the
    mean rate.
    """
    rates = np.maximum(rates, 1e-3 * rates.mean())
    return known * exposure / (rates + dispersion * exposure * rates**2)


def sample_rates(counts, exposure, atoms, codes, dispersion, rng):
    """Sample atoms and codes of counts; the chain starts at the atoms and codes of a fit.

    Parameters
    ----------
    counts : ndarray of shape (n_samples, n_features)
        Counts, NaN where they are missing.
    exposure : ndarray of shape (n_samples, 1)
        Factors of the expectations.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    codes : ndarray of shape (n_samples, n_components)
        Codes for an exposure of 1.
    dispersion : float
        A count of expectation ``mu`` has the variance ``mu + dispersion * mu**2``.
    rng : numpy.random.Generator
        Draws.

    Returns
    -------
    AtomPosterior
        Atoms of sum 1. The variances of entries are at least the variances with known codes, times
        a factor for unknown codes. The limit is for events whose atoms are known.
    """
    # Rows may lack atoms if more than a share of .24 of the codes is below a thousandth of the
    # atom's mean code. On simulated counts the share is .03 to .22 if all rows have all atoms, in
    # exponentially distributed amounts. It is .25 to .55 if each atom occurs in 70 % to 30 % of the
    # rows.
    spike = bool((codes < 1e-3 * codes.mean(0)).mean() > 0.24)
    x, z = np.nan_to_num(counts) / exposure, codes + 1e-9 * codes.mean()
    known, rates, columns, sweeps = ~np.isnan(counts), z @ atoms, np.ascontiguousarray(atoms.T), []
    for sweep in range(_UNSETTLED_SWEEPS + _COUNTED_SWEEPS):
        weights = weigh_counts(rates, known, exposure, dispersion)
        _draw_rates(x, weights, columns.T, z, spike, rng)
        squares = _draw_rates(x.T, weights.T, z.T, columns, not spike, rng)
        sums = np.maximum(columns.sum(0), 1e-300)
        columns /= sums
        z *= sums
        rates = 0.9 * rates + 0.1 * (z @ columns.T)
        if sweep >= _UNSETTLED_SWEEPS:
            free = 1 / np.maximum(squares.T * sums[:, None] ** 2, 1e-300)
            sweeps.append((columns.T.copy(), free, (z > 0).sum(0)))
    chain, free, uses = map(np.stack, zip(*sweeps, strict=True))
    free = np.minimum(free.mean(0), 1.0)
    variances = chain.var(0, ddof=1)
    # ``free`` is the variance of an entry if all codes and all other entries of the atom were
    # known. The variance in the chain is larger by a factor. The median of the factor over the
    # atom's entries that are positive in all sweeps gives the least variance of all its entries.
    added = np.ma.masked_array(variances / free, ~(chain > 0).all(0))
    added = np.maximum(np.ma.median(added, axis=1).filled(1.0), 1.0)
    variances = np.maximum(variances, added[:, None] * free)
    atoms, n_events = chain.mean(0), np.maximum((z * exposure).sum(0), 1.0)
    squares = np.maximum(np.square(atoms).sum(1), np.finfo(float).tiny)
    limit = (atoms * (1 - atoms)).sum(1) / n_events / squares
    return AtomPosterior(atoms, variances, uses.mean(0), limit)
