r"""Gibbs samplers of the posterior distribution of atoms, supports and codes, started at a fit.

`atom_intervals` calls `sample_atoms` for rows with normal noise and `sample_rates` for counts, and
`code_intervals` calls `sample_noise` for the noise of rows. The remaining functions are steps of
these three samplers. A *support* is the set of atoms with nonzero codes in a row. A *sweep* draws
every unknown once from its distribution given the other unknowns. The *chain* is the sequence of
sweeps.

Model of rows with normal noise: in units of their noise, :math:`x_i = z_i D + e_i`, where
:math:`e_i` has the variance :math:`t_j^2` in feature j. A code of atom k is zero, or normal around
:math:`\mu_k` or :math:`-\mu_k`, which includes codes of one modulus (with a small variance) and
normal codes of mean 0 (with :math:`\mu_k = 0`). A sweep draws

- missing entries, given codes and atoms;
- each code of a row, whether it is zero and its value, given the row's other codes [1]_;
- atoms, given codes: normal, with the covariance :math:`t_j^2 (Z^T Z)^{-1}` of the entries of all
  atoms in feature j; with weights W of rows :math:`t_j^2 (Z^T W Z)^{-1} Z^T W^2 Z (Z^T W Z)^{-1}`,
  since a row that counts twice has the noise of one row;

and sets the noise and the distribution of codes to their most likely values. So codes and supports
are averaged over instead of fixed: atoms that could replace each other get larger variances. With
known supports the covariance of atoms would be that of their profile likelihood.

The variance of an atom's entry is the mean over sweeps of its variance given the codes, which has a
formula, plus the variance over sweeps of its expectation given the codes (Rao and Blackwell). The
second part is small, 5 to 30 %, unless supports are uncertain, so a few sweeps are enough.

Model of counts: row i has the expectations :math:`\mu_i = e_i z_i D`, with the exposure
:math:`e_i`, and the variances :math:`\mu_{ij} + \phi \mu_{ij}^2` of Poisson's or a negative
binomial distribution. *Rates* are expectations for an exposure of 1. Atoms and codes depend on sums
over many entries, so a sweep draws them from normal distributions with the same mean and variance:
codes given atoms, and entries of atoms given codes, all non-negative. The prior of both is the
exponential distribution. If many codes of the fit are 0, codes may be 0. Otherwise entries of atoms
may be 0, because only zeros determine the extremes of mixtures. Variances are computed from a
moving average of the rates.

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
from skpudle._rows import MEDIAN_OF_NORMAL, spread_rows

# Markov chain of `sample_atoms`, in sweeps, each of which draws every unknown once: the number of
# first sweeps, and the numbers of further sweeps after which the chain may end. First sweeps are
# discarded, since they depend on the fit that the chain starts at. Results use the last two thirds
# of the further sweeps.
_FIRST_SWEEPS = 5
_ENDS = (21, 54, 108)
# Markov chain of `sample_rates`: the number of first sweeps, which are discarded, since they depend
# on the fit that the chain starts at, and the number of sweeps that the results use.
_UNSETTLED_SWEEPS = 60
_COUNTED_SWEEPS = 150


# ---------------------------------------------------------------------------- compiled loops


def _positive_normal(rng, mean, deviation):
    """Draw a positive code: a normal number of this mean and deviation, given that it is > 0."""
    # Codes are positive if standard normal numbers are above ``least``.
    least = -mean / deviation
    while least < 1:
        drawn = rng.standard_normal()
        if drawn > least:
            return mean + deviation * drawn
    # Here 0 lies at least one standard deviation above the mean, so most normal numbers would be
    # negative and rejected. Exponential numbers are drawn instead, and accepted with the
    # probability of Robert, "Simulation of truncated normal variables", 1995.
    while True:
        excess = rng.standard_exponential() / least
        # ``not <`` instead of ``>=``, so that NaN ends the loop instead of running forever
        if not rng.standard_exponential() < 0.5 * excess * excess:
            return deviation * excess


def _log_of_tail(x):
    """Return the logarithm of the probability P(n > -x) for a standard normal number n.

    `draw_codes` needs it to integrate normal densities over positive codes. For ``x`` below -30,
    where ``erfc`` comes near underflow, an asymptotic formula replaces the exact one. Its constant
    is sqrt(2 pi).
    """
    if x > -30:
        return np.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - np.log(-2.5066282746310002 * x)


def draw_codes(
    correlations,
    grams,
    prior,
    rng,
    z,
):
    """Draw every code of every row given the other codes of the row (Gibbs), in place in ``z``.

    In the prior a code z is 0, or has one of two densities, which are proportional to ``exp(pull *
    z - precision * z**2 / 2)`` and ``exp(-pull * z - precision * z**2 / 2)``: normal densities
    around +mean and -mean, with ``pull = precision * mean``. Non-negative codes have the first
    density only, restricted to z > 0; with the precision 0 and a negative pull it is exponential.

    Parameters
    ----------
    correlations : ndarray of shape (n, p)
        Inner products of the p atoms with the residuals of the n rows, that is, with the rows minus
        their reconstructions by ``z``, weighted by the inverse variances of the entries' noise.
    grams : ndarray of shape (1 or n, p, p)
        Inner products of atoms with the same weights, for all rows or for each row.
    prior : ndarray of shape (4, p)
        The prior of the codes of each atom: the precision; the pull; and for each of the two
        densities the logarithm of its odds against 0 times ``sqrt(2 pi)`` times the factor that
        gives the density the integral 1. Codes are non-negative if the last row is -inf.
    rng : numpy.random.Generator
        Random generator; compiled code and plain Python draw equal numbers from it.
    z : ndarray of shape (n, p)
        The codes of the last sweep. The new codes replace them.
    """
    n, n_components = z.shape
    for i in range(n):
        gram = grams[i % len(grams)]
        # products of atoms with the residual of row i by its present codes
        products = correlations[i].astype(np.float64)
        for k in range(n_components):
            old = z[i, k]
            precision = gram[k, k] + prior[0, k]
            pull = prior[1, k]
            if precision <= 0:  # the row has no known entry where atom k is not zero
                continue
            # Product of atom k with the residual without its code. Given the other codes, a nonzero
            # code is normal with one of two means, for the two densities of the prior.
            product = products[k] + gram[k, k] * old
            deviation = 1 / np.sqrt(precision)
            half_log = 0.5 * np.log(precision)
            upper_mean = (product + pull) / precision
            lower_mean = (product - pull) / precision
            # ``upper`` and ``lower`` belong to the densities with +pull and -pull: first logarithms
            # of their odds against a code of 0, then probabilities up to a common factor.
            upper = prior[2, k] - half_log + 0.5 * precision * upper_mean * upper_mean
            lower = prior[3, k] - half_log + 0.5 * precision * lower_mean * lower_mean
            positive = prior[3, k] == -np.inf
            if positive:
                upper += _log_of_tail(upper_mean / deviation)
            largest = max(upper, lower, 0.0)
            upper = np.exp(upper - largest)
            lower = np.exp(lower - largest)
            drawn = rng.random() * (upper + lower + np.exp(-largest))
            if drawn >= upper + lower:
                new = 0.0
            elif positive:
                new = _positive_normal(rng, upper_mean, deviation)
            else:
                new = (
                    upper_mean if drawn < upper else lower_mean
                ) + deviation * rng.standard_normal()
            if new != old:
                z[i, k] = new
                for j in range(n_components):
                    products[j] -= gram[k, j] * (new - old)


# Compiled versions of the functions above: ``loops.draw_codes`` is `draw_codes`, compiled.
loops = Loops(globals())


# ---------------------------------------------------------------------------- rows


class CodedRows(NamedTuple):
    """Rows in units of their noise with the codes of a fit: the data of the samplers.

    Attributes
    ----------
    x : ndarray of shape (n_samples, n_features)
        Rows, from which the learner's baseline has been subtracted.
    missing : ndarray of shape (n_samples, n_features), bool
        True for missing entries and for outliers. The samplers draw these entries and do not use
        their values in ``x``.
    codes : ndarray or CSR array of shape (n_samples, n_components)
        Codes of the rows for atoms of norm 1.
    weight : ndarray of shape (n_samples, 1)
        How often each row counts, divided by the mean over rows.
    has_baseline : bool
        Whether a baseline has been subtracted. It was estimated from rows, so the sampler treats it
        as uncertain.
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
        """Return some of the rows, selected by their indices ``numbers``, an integer array."""
        return self._replace(
            x=self.x[numbers],
            missing=self.missing[numbers],
            codes=self.codes[numbers],
            weight=self.weight[numbers],
        )


class AtomPosterior(NamedTuple):
    """The posterior distribution of atoms, the result of `sample_atoms` and `sample_rates`.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        Posterior means of the atoms, of norm 1, or for counts of sum 1.
    variances : ndarray of shape (n_components, n_features)
        Posterior variances of the entries of atoms.
    uses : ndarray of shape (n_components,)
        Expected number of rows with a nonzero code of each atom.
    limit : ndarray of shape (n_components,)
        Expected squared error of each atom over its squared norm, if supports were known; for
        counts, if the atom of each event were known.
    slow_fraction : float
        Fraction of the variance that comes from changes slower than a quarter of the chain. The
        chain is too short if it is large.
    has_enough : ndarray of shape (n_components,), bool, or True
        Whether the rows that use an atom are enough to determine its entries.
    """

    atoms: np.ndarray
    variances: np.ndarray
    uses: np.ndarray
    limit: np.ndarray
    slow_fraction: float = 0.0
    has_enough: NDArray | bool = True


def keep_above_rounding(variances, x):
    """Raise small variances of the noise of features, (n_features,), to a lower bound above 0.

    Samplers divide by these variances. The bound is relative to the mean variance and to the mean
    square of the data ``x`` (n, n_features).
    """
    # A constant feature has the variance 0, and without the first bound it would have infinite
    # weight. The second bound is for data without noise, whose residuals are rounding errors.
    least = max(1e-3 * variances.mean(), 1e-10 * float(np.square(x).mean()))
    return np.maximum(variances, max(least, np.finfo(float).tiny))


def _without_outliers(rows, atoms):  # -> CodedRows, noise of features
    """Prepare `CodedRows` for a chain: remove outliers and tiny codes, and estimate the noise.

    Very long rows are removed. An entry becomes missing if it is far from what codes explain. Codes
    of at most 3 standard deviations of the noise become 0, since they may be noise.

    Parameters
    ----------
    rows : CodedRows
        The rows of a fit, with codes as a dense array.
    atoms : ndarray of shape (n_components, n_features)
        The atoms of the fit, of norm 1.

    Returns
    -------
    rows : CodedRows
        The remaining rows, with codes as a CSR array.
    variances : ndarray of shape (n_features,)
        A first estimate of the variances of the noise of features.
    """
    residual = np.abs(rows.x - rows.codes @ atoms)
    observed = np.where(rows.missing, np.nan, residual)
    deviation = np.nanmedian(observed) / MEDIAN_OF_NORMAL
    sizes = np.linalg.norm(rows.x, axis=1)
    # A row is an outlier if its norm is above 5 times the 95 % quantile of the norms of all rows.
    # Norms are compared and not residuals, because a fit may have given such a row an atom of its
    # own, so that its residual is small.
    kept = np.flatnonzero(sizes <= 5 * np.quantile(sizes, 0.95))
    # An entry is an outlier if its residual is above 8 standard deviations of the noise of its
    # feature. ``usual`` is this standard deviation, from the median residual of the feature. It is
    # at least the standard deviation over all features, since the median may be 0, and each entry
    # with another residual would be an outlier.
    usual = np.maximum(np.median(residual, axis=0) / MEDIAN_OF_NORMAL, deviation)
    is_outlier = residual > 8 * usual
    rows = rows._replace(missing=rows.missing | is_outlier).take(kept)
    n_observed = (~rows.missing).sum(0)
    squares = np.where(rows.missing, 0.0, residual[kept] ** 2).sum(0)
    variances = np.where(
        n_observed > 0, squares / np.maximum(n_observed, 1), deviation**2
    )
    # Residuals are smaller than the noise, since each nonzero code was fitted and takes one degree
    # of freedom. So variances are divided by ``free``, the fraction that remains of all degrees of
    # freedom.
    free = 1 - np.count_nonzero(rows.codes) / max(n_observed.sum(), 1)
    variances = keep_above_rounding(variances / max(free, 0.1), rows.x)
    is_sure = np.abs(rows.codes) > 3 * np.sqrt(variances.mean())
    codes = sparse.csr_array(np.where(is_sure, rows.codes, 0.0))
    return rows._replace(codes=codes), variances


def _prior(codes, positive):  # CSR (n, p) -> (4, p)
    """Fit the prior of `draw_codes` to the codes of n rows and p atoms of the last sweep.

    Nonzero codes are normal around +mean or -mean. Each atom gets its own mean, variance and odds
    of nonzero codes. The result is the argument ``prior`` of `draw_codes`. ``positive`` is whether
    codes are non-negative.
    """
    n, p = codes.shape
    atom_of_code = codes.indices
    values = codes.data
    n_used = np.bincount(atom_of_code, minlength=p)
    n_positive = np.bincount(atom_of_code[values > 0], minlength=p)
    energies = np.bincount(atom_of_code, values**2, minlength=p)
    # Atoms that no row uses get the mean square of all codes.
    mean_square = energies.sum() / max(len(values), 1) or 1.0
    squares = np.where(n_used > 0, energies / np.maximum(n_used, 1), mean_square)
    # ``alike`` is mean**2 over the mean square of the nonzero codes of an atom: 1 for codes of one
    # modulus, 0 for normal codes of mean 0. Codes that are normal around +mean and -mean have the
    # kurtosis 3 - 2 alike**2, from which ``alike`` is estimated. All atoms share one value, from
    # the kurtosis of all codes, each divided by the root mean square of the codes of its atom. The
    # limit 0.98 keeps variances above 0.
    relative = values**2 / squares[atom_of_code]
    kurtosis = (relative @ relative) / max(len(values), 1)
    alike = min(np.sqrt(max(0.0, (3 - kurtosis) / 2)), 0.98)
    means = np.sqrt(alike * squares)
    variances = (1 - alike) * squares
    pull = means / variances
    # Logarithms of the odds of a positive and of a negative code against 0. The added 0.5 keeps
    # them finite if no row or every row uses an atom.
    odds = np.log(
        (np.stack([n_positive, n_used - n_positive]) + 0.5) / (n - n_used + 0.5)
    )
    # `draw_codes` takes odds times sqrt(2 pi) times the factor that gives a density the integral 1.
    # For normal densities the two factors are exp(-means * pull / 2) / sqrt(variances) together;
    # positive codes have a part of the integral only, which is divided out below.
    odds -= 0.5 * np.log(variances) + 0.5 * means * pull
    if positive:
        odds[0] -= stats.norm.logcdf(means / np.sqrt(variances))
        odds[1] = -np.inf
    return np.stack([1 / variances, pull, *odds])


class Sweep(NamedTuple):
    """The distribution of atoms given the codes of a sweep; results average it over sweeps.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        The expected atoms, of norm 1; for counts drawn atoms, of sum 1.
    variances : ndarray of shape (n_components, n_features)
        Variances of the atoms' entries given the codes; for counts also given all other entries.
    uses : ndarray of shape (n_components,)
        Number of rows that use each atom.
    """

    atoms: np.ndarray
    variances: np.ndarray
    uses: np.ndarray


def _summarise(sweeps, n_rows):  # -> AtomPosterior
    """Compute the posterior means and variances of p atoms of m features from a chain.

    ``sweeps`` is a list of `Sweep`, one for each sweep of the chain over the ``n_rows`` rows.

    The posterior variance of an entry is the mean of its variances in sweeps plus the variance of
    the expected entry over sweeps. In a short chain successive sweeps are similar, and the second
    variance would be too small. Half the mean squared difference of two sweeps grows with their
    distance in the chain towards this variance. So the variance is extrapolated from the
    differences at distances of a quarter and of half of the chain.
    """
    atoms = np.stack([sweep.atoms for sweep in sweeps])
    within = np.stack([sweep.variances for sweep in sweeps]).mean(0)
    uses = np.stack([sweep.uses for sweep in sweeps]).mean(0)
    n_sweeps, _, n_features = atoms.shape
    lag = max(1, n_sweeps // 4)
    tiny = np.finfo(float).tiny

    def half_square(
        distance,
    ):  # -> (p,), half the mean squared difference of two sweeps
        differences = atoms[distance:] - atoms[:-distance]
        return np.square(differences).mean((0, 2)) / 2

    near = half_square(lag)
    far = half_square(2 * lag)
    # ``correlation`` (p,) is that of sweeps a quarter of the chain apart: if correlations fall
    # geometrically, squared differences at twice this distance are 1 + correlation times as large.
    # It is at most 0.9, since in a drifting chain it would be near 1 and the extrapolated variance,
    # ``near / (1 - correlation)``, infinite.
    correlation = np.clip(far / np.maximum(near, tiny) - 1, 0.0, 0.9)
    between = atoms.var(0, ddof=1)
    growth = near / (1 - correlation) / np.maximum(between.mean(1), tiny)
    between *= np.maximum(1.0, growth)[:, None]
    of_neighbours = correlation ** (1 / lag)  # the correlation of successive sweeps
    # ``mean_error`` is the variance of the mean over the chain, as a fraction of ``between``.
    # Correlated sweeps count as fewer independent sweeps, so it is larger than 1 / n_sweeps.
    mean_error = (1 + of_neighbours) / (1 - of_neighbours) / n_sweeps
    variances = within + between * (1 + mean_error[:, None])
    # ``within`` are variances for known codes. A row has ``taken`` nonzero codes on average, which
    # are estimated from its n_features entries, so only n_features - taken equations of a row are
    # left to determine atoms. ``limit`` is the squared error of an atom for known codes, times a
    # factor for the equations that codes take.
    taken = min(uses.sum() / n_rows, n_features - 1)
    limit = within.sum(1) * (n_features - 1) / (n_features - taken)
    # The equations that are left in a row are divided among the ``taken`` atoms of the row. A unit
    # atom has n_features - 1 unknowns. With fewer than 2 (n_features - 1) equations from all of its
    # rows the atom follows the noise: for example, an atom that only one row uses equals this row.
    has_enough = uses * (n_features - taken) >= 2 * taken * (n_features - 1)
    # the part of the variance that is still correlated after a quarter of the chain
    slow = (between.sum(1) * correlation).sum()
    return AtomPosterior(
        atoms=normalize(atoms.mean(0)),
        variances=variances,
        uses=uses,
        limit=limit,
        slow_fraction=float(slow / variances.sum()),
        has_enough=has_enough,
    )


def _draw_rows(
    rows,
    prediction,
    codes,
    atoms,
    variances,
    rng,
):  # -> x, codes (CSR)
    """Draw the missing entries of rows and then all codes: the first half of a sweep.

    Parameters
    ----------
    rows : CodedRows
        The rows; their codes are not used.
    prediction : ndarray of shape (n, n_features)
        The prediction of the rows by ``codes``, with the drawn baseline if there is one.
    codes : CSR array of shape (n, n_components)
        The codes of the last sweep.
    atoms : ndarray of shape (n_components, n_features)
        The atoms of the last sweep.
    variances : ndarray of shape (n_features,)
        Variances of the noise of features.
    rng : numpy.random.Generator
        Random numbers.

    Returns
    -------
    x : ndarray of shape (n, n_features)
        The rows with drawn values in the place of missing ones.
    codes : CSR array of shape (n, n_components)
        The new codes.
    """
    x = rows.x
    if rows.missing.any():
        noise = rng.standard_normal(x.shape) * np.sqrt(variances)
        x = np.where(rows.missing, prediction + noise, x)
    weighted = atoms / variances
    gram = np.ascontiguousarray(weighted @ atoms.T)
    correlations = (x - prediction).astype(np.float32) @ weighted.T.astype(np.float32)
    z = codes.toarray()
    loops.draw_codes(correlations, gram[None], _prior(codes, rows.positive), rng, z)
    return x, sparse.csr_array(z)


def sample_noise(rows, atoms, rng):  # -> (n_features,)
    """Estimate the variances of the noise of features for known atoms, for `code_intervals`.

    ``rows`` are `CodedRows`, ``atoms`` (n_components, n_features) have norm 1, and ``rng`` is a
    `numpy.random.Generator`. Codes and missing entries of at most 2,000 rows are drawn from their
    posterior ten times, each time with the variances of the last residuals. With fewer than 200
    rows nothing is drawn, and all features get one variance, the mean of the first estimate.
    """
    rows, variances = _without_outliers(rows, atoms)
    if len(rows.x) < 200:  # too few rows to estimate a variance for each feature
        return np.full(rows.x.shape[1], variances.mean())
    rows = rows.take(np.asarray(spread_rows(len(rows.x), 2000)))
    codes = rows.codes
    for _ in range(10):
        x, codes = _draw_rows(rows, codes @ atoms, codes, atoms, variances, rng)
        variances = keep_above_rounding(np.square(x - codes @ atoms).mean(0), x)
    return variances


def sample_atoms(rows, atoms, scale, rng):
    """Sample the posterior distribution of atoms for rows with normal noise.

    The chain starts at the atoms and codes of a fit. It is prolonged until slow changes make less
    than a tenth of the variance, or until its largest length.

    Parameters
    ----------
    rows : CodedRows
        Rows in units of their noise, with the codes of the fit.
    atoms : ndarray of shape (n_components, n_features)
        Atoms of the fit, of norm 1 in these units.
    scale : float or ndarray of shape (n_features,)
        Factors of features that turn these units into the units of the data.
    rng : numpy.random.Generator
        Random numbers.

    Returns
    -------
    AtomPosterior
        The distribution of unit atoms in the units of the data.
    """
    rows, variances = _without_outliers(rows, atoms)
    n, m = rows.x.shape
    p = len(atoms)
    ones = sparse.csr_array(np.ones((n, int(rows.has_baseline))))
    # The estimated baseline is also uncertain: it is drawn like an atom whose code is 1 in every
    # row (``ones`` has no column without a baseline). It starts at 0, since the estimate has been
    # subtracted from the rows.
    start = np.vstack([atoms, np.zeros((ones.shape[1], m))])
    drawn = start
    # The prior of an atom's entries is normal around the atom of the fit. Its variance is 1 / m,
    # the mean square of the m entries of a unit atom. Without this prior the Gram matrix of the
    # codes, to which ``prior`` is added, would be singular if no row used an atom. The baseline,
    # which all rows use, needs no prior.
    prior = np.diag(variances.mean() * m * (np.arange(len(start)) < p))
    codes = rows.codes
    sweeps = []
    # ``n_sweeps`` is the number of sweeps after the first ones, which have numbers up to 0.
    for n_sweeps in range(1 - _FIRST_SWEEPS, _ENDS[-1] + 1):
        prediction = codes @ drawn[:p] + drawn[p:].sum(0)
        x, codes = _draw_rows(rows, prediction, codes, drawn[:p], variances, rng)
        regressors = sparse.hstack([codes, ones], format="csr")
        weighted = regressors.multiply(rows.weight).tocsr()
        inverse = np.linalg.inv((regressors.T @ weighted).toarray() + prior)
        means = inverse @ (weighted.T @ x + prior @ start)
        squares = (rows.weight * np.square(x - regressors @ means)).sum(0)
        variances = keep_above_rounding(squares / max(n - len(means), n / 2), x)
        # The covariance of atoms is root @ root.T times the variance of the noise. It has squared
        # weights, since a row of weight 2 has the noise of one row and not the independent noise of
        # two rows.
        root = inverse @ np.linalg.cholesky((weighted.T @ weighted).toarray() + prior)
        drawn = means + root @ (rng.standard_normal(means.shape) * np.sqrt(variances))
        # Atoms get norm 1, and codes take over the norms, so that codes times atoms stay the same.
        norms = np.linalg.norm(drawn[:p], axis=1)
        drawn[:p] /= norms[:, None]
        codes.data *= norms[codes.indices]
        # In the units of the data the entries of an atom have a covariance proportional to the
        # diagonal matrix T of the noise variances ``of_noise``. Division by the norm, which gives
        # the unit atom d, turns T into (I - d d^T) T (I - d d^T), whose diagonal is
        # ``tangent``.
        scaled = means[:p] * scale
        of_noise = variances * scale**2
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        expected = scaled / norms
        squares = np.square(expected)
        tangent = of_noise * (1 - 2 * squares) + squares * (squares @ of_noise)[:, None]
        within = tangent * np.square(root[:p]).sum(1)[:, None] / norms**2
        uses = np.bincount(codes.indices, minlength=p)
        sweeps.append(Sweep(expected, within, uses))
        if n_sweeps in _ENDS:
            posterior = _summarise(sweeps[_FIRST_SWEEPS + n_sweeps // 3 :], n)
            if posterior.slow_fraction < 0.1:
                break
    return posterior


def _draw_rates(
    x,
    weights,
    atoms,
    z,
    spike,
    rng,
):  # -> precisions (n, p); changes z
    """Draw the non-negative codes of rows ``x`` given the atoms, in place in ``z``.

    `sample_rates` calls this function for codes, and then for atoms: with the transposed data as
    ``x``, the transposed codes as ``atoms`` and the transposed atoms as ``z``.

    Parameters
    ----------
    x : ndarray of shape (n, n_features)
        Rows, counts divided by exposures.
    weights : ndarray of shape (n, n_features)
        Precisions of the entries of ``x``, 0 for missing entries.
    atoms : ndarray of shape (p, n_features)
        Atoms.
    z : ndarray of shape (n, p)
        The codes of the last sweep, which the new codes replace.
    spike : bool
        Whether a code may be 0. The prior of a positive code is the exponential distribution.
    rng : numpy.random.Generator
        Random numbers.

    Returns
    -------
    ndarray of shape (n, p)
        The precision of each code given all other codes.
    """
    n, p = z.shape
    # Each atom has its own prior of codes. Positive codes have an exponential density, with the
    # rate of maximum likelihood for the codes of the last sweep. ``odds`` has the logarithms of the
    # odds of a positive code against 0. Without a spike they are so large that no code becomes 0.
    used = (z > 0).sum(0)
    precisions = np.empty_like(z)
    rate = np.maximum(used, 1e-300) / np.maximum(z.sum(0), 1e-300)
    odds = np.log((used + 0.5) / (n - used + 0.5)) if spike else 1e9
    # `draw_codes` takes odds times sqrt(2 pi) times the factor that gives the density the integral
    # 1, which is the rate.
    odds = odds + np.log(rate) + 0.5 * np.log(2 * np.pi)
    prior = np.stack([np.zeros(p), -rate, odds, np.full(p, -np.inf)])
    # Each row has weights of its own and so a Gram matrix of its own: a row of ``weights`` times
    # ``products`` (n_features, p * p) is the flat Gram matrix of the atoms with these weights.
    products = (atoms[:, None] * atoms).reshape(p * p, -1).T
    for rows in blocks_of_rows(n, p**2, 2**22):
        grams = (weights[rows] @ products).reshape(-1, p, p)
        correlations = (weights[rows] * (x[rows] - z[rows] @ atoms)) @ atoms.T
        loops.draw_codes(correlations, grams, prior, rng, z[rows])
        precisions[rows] = grams.diagonal(axis1=1, axis2=2)
    return precisions


def weigh_counts(rates, observed, exposure, dispersion):  # -> (n_samples, n_features)
    """Return the precisions (inverse variances) of counts divided by their exposures.

    ``rates`` (n_samples, n_features) are the expectations of counts for an exposure of 1.
    ``observed``, bool of the same shape, is False for missing counts, which get the precision 0.
    ``exposure`` is (n_samples, 1) or a number. Rates below a thousandth of the mean rate are raised
    to this value, so that no precision is infinite.
    """
    rates = np.maximum(rates, 1e-3 * rates.mean())
    return observed * exposure / (rates + dispersion * exposure * rates**2)


def sample_rates(
    counts,
    exposure,
    atoms,
    codes,
    dispersion,
    rng,
):
    """Sample the posterior distribution of atoms for counts, from the atoms and codes of a fit.

    Parameters
    ----------
    counts : ndarray of shape (n_samples, n_features)
        Counts, NaN where they are missing.
    exposure : float or ndarray of shape (n_samples, 1)
        Factors of the expectations of rows.
    atoms : ndarray of shape (n_components, n_features)
        Non-negative atoms of the fit.
    codes : ndarray of shape (n_samples, n_components)
        Codes of the fit; ``codes @ atoms`` are the expectations for an exposure of 1.
    dispersion : float
        A count of expectation ``mu`` has the variance ``mu + dispersion * mu**2``.
    rng : numpy.random.Generator
        Random numbers.

    Returns
    -------
    AtomPosterior
        The distribution of atoms of sum 1. Its ``limit`` is the least expected squared error if it
        were known which atom each event comes from.
    """
    # Codes may be 0 if more than 24 % of the codes of the fit are tiny, below a thousandth of the
    # mean code of their atom. The limit separates two kinds of simulated counts: 3 % to 22 % of the
    # codes are tiny if all rows have all atoms, in exponentially distributed amounts, and 25 % to
    # 55 % if each atom occurs in 70 % to 30 % of the rows.
    spike = bool((codes < 1e-3 * codes.mean(0)).mean() > 0.24)
    # The chain changes in place: in each sweep the first call of `_draw_rates` draws the codes
    # ``z``, and the second the atoms, which are the columns of ``columns`` (made below).
    # The chain starts with all codes positive.
    x = np.nan_to_num(counts) / exposure
    z = codes + 1e-9 * codes.mean()
    observed = ~np.isnan(counts)
    rates = z @ atoms
    columns = np.ascontiguousarray(atoms.T)
    sweeps = []
    for sweep in range(_UNSETTLED_SWEEPS + _COUNTED_SWEEPS):
        weights = weigh_counts(rates, observed, exposure, dispersion)
        _draw_rates(x, weights, columns.T, z, spike, rng)
        precisions = _draw_rates(x.T, weights.T, z.T, columns, not spike, rng)
        # Atoms get sum 1, and codes take over the sums, so that codes times atoms stay the same.
        sums = np.maximum(columns.sum(0), 1e-300)
        columns /= sums
        z *= sums
        # A moving average, from which variances are computed, varies less than drawn rates.
        rates = 0.9 * rates + 0.1 * (z @ columns.T)
        if sweep >= _UNSETTLED_SWEEPS:
            conditional = 1 / np.maximum(precisions.T * sums[:, None] ** 2, 1e-300)
            sweeps.append(Sweep(columns.T.copy(), conditional, (z > 0).sum(0)))
    chain = np.stack([sweep.atoms for sweep in sweeps])
    conditional = np.stack([sweep.variances for sweep in sweeps])
    conditional = np.minimum(conditional.mean(0), 1.0)
    uses = np.stack([sweep.uses for sweep in sweeps])
    variances = chain.var(0, ddof=1)
    # An entry that is 0 in all sweeps has the variance 0 in the chain, which is too small. So each
    # entry gets at least ``conditional`` times ``factor``. ``conditional`` is the variance of an
    # entry if all codes and all other entries were known. ``factor`` is the factor by which
    # variances in the chain exceed ``conditional``: the median over the atom's entries that are
    # positive in all sweeps.
    factor = np.ma.masked_array(variances / conditional, ~(chain > 0).all(0))
    factor = np.maximum(np.ma.median(factor, axis=1).filled(1.0), 1.0)
    variances = np.maximum(variances, factor[:, None] * conditional)
    atoms = chain.mean(0)
    n_events = np.maximum((z * exposure).sum(0), 1.0)
    squares = np.maximum(np.square(atoms).sum(1), np.finfo(float).tiny)
    # If the atom of each event were known, the events of an atom would be a multinomial sample, and
    # an entry d of the atom would have the variance d (1 - d) / n_events.
    limit = (atoms * (1 - atoms)).sum(1) / n_events / squares
    return AtomPosterior(atoms, variances, uses.mean(0), limit)
