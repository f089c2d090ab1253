r"""Sample atoms, supports and codes from their posterior distribution, from a fit on.

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

References
----------
.. [1] E. I. George and R. E. McCulloch, "Variable selection via Gibbs sampling", Journal of the
   American Statistical Association 88, 1993.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

from skpudle._compilation import in_parts
from skpudle.inspection._posterior_compiled import loops

# Sweeps before the first that counts, and numbers of sweeps after which the chain may end; the last
# two thirds of the chain count.
_FIRST, _ENDS = 5, (21, 54, 108)
# Sweeps that estimate the noise for given atoms.
_OF_NOISE = 10
# Largest share of the variance in changes slower than a quarter of the chain with which the chain
# ends, and largest correlation at that distance, which caps the estimate of a drifting chain.
_HIDDEN, _MOST_KEPT = 0.1, 0.9
# Logarithm of the odds below which an atom stays out of a row without a draw.
_NEGLIGIBLE = -10.0
# Deviations of the noise above which a code is nonzero in the first sweep.
_SURE = 3.0
# Largest share of the squared mean in the mean square of the sizes of codes.
_ALIKE = 0.98
# Least variance of the noise of a feature, in mean variances, since a constant feature would
# otherwise dominate; and in mean squares of the data, for data without noise.
_LEAST, _ROUNDING = 1e-3, 1e-10
# least number of rows that pays for a thread
_ROWS = 64


class Rows(NamedTuple):
    """Rows in units of their noise.

    Attributes
    ----------
    x : ndarray of shape (n_samples, n_features)
        Rows without a baseline.
    missing : ndarray of shape (n_samples, n_features), bool, or None
        Entries that do not count.
    scale : ndarray of shape (n_samples, 1) or None
        Noise of rows, by which they were divided.
    has_baseline : bool
        Whether the rows lost a baseline that was estimated from rows.
    weight : ndarray of shape (n_samples, 1)
        Weights, of mean 1.
    """

    x: np.ndarray
    missing: np.ndarray | None
    scale: np.ndarray | None
    has_baseline: bool
    weight: np.ndarray


class AtomPosterior(NamedTuple):
    """The posterior distribution of atoms.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        Posterior means, of norm 1.
    variances : ndarray of shape (n_components, n_features)
        Variances of their entries.
    uses : ndarray of shape (n_components,)
        Expected number of rows with a code of each atom.
    limit : ndarray of shape (n_components,)
        Squared error of each atom for known supports.
    hidden : float
        Share of the variance in changes slower than a quarter of the chain.
    """

    atoms: np.ndarray
    variances: np.ndarray
    uses: np.ndarray
    limit: np.ndarray
    hidden: float = 0.0


def keep_above_rounding(variances, x):
    """Raise variances that are negligible compared with their mean, or with the data."""
    least = max(_LEAST * variances.mean(), _ROUNDING * float(np.square(x).mean()))
    return np.maximum(variances, max(least, np.finfo(float).tiny))


def _strong(codes, variances):  # -> CSR
    """Return the codes of the first sweep, well above the noise."""
    return sparse.csr_array(np.where(np.abs(codes) > _SURE * np.sqrt(variances.mean()), codes, 0.0))


def _distribution(codes):  # CSR -> means and variances (2, p), logarithms of odds (2, p)
    """Estimate moments of the sizes of codes, and log odds that a code is nonzero, by sign."""
    n, p = codes.shape
    atoms, values = codes.indices, codes.data
    used = np.bincount(atoms, minlength=p)
    right = np.bincount(atoms[values > 0], minlength=p)
    total = np.bincount(atoms, values**2, minlength=p)
    usual = total.sum() / max(len(values), 1) or 1.0
    squares = np.where(used > 0, total / np.maximum(used, 1), usual)
    # kurtosis of normal variables around two opposite means: 3 - 2 (mean / root mean square)**4
    relative = values**2 / squares[atoms]
    kurtosis = (relative @ relative) / max(len(values), 1)
    alike = min(np.sqrt(max(0.0, (3 - kurtosis) / 2)), _ALIKE)
    counts = np.stack([right, used - right]) + 0.5
    odds = np.log(counts / (n - used + 0.5))
    return np.stack([np.sqrt(alike * squares), (1 - alike) * squares]), odds


def _prior(codes, energies, positive):  # -> (5, p), limits (2, p); see `draw_codes`
    (means, variances), odds = _distribution(codes)
    precision, pull = energies + 1 / variances, means / variances
    constant = odds - 0.5 * np.log(variances * precision) - 0.5 * means * pull
    tail = stats.norm.logcdf(means / np.sqrt(variances)) if positive else np.zeros_like(means)
    room = 2 * precision * (_NEGLIGIBLE - constant + tail)
    reach = np.where(room > 0, np.sqrt(np.maximum(room, 0)) - pull, -np.inf)
    least = np.full_like(pull, -np.inf) if positive else -reach[1]
    return np.stack([precision, pull, *constant, tail]), np.stack([least, reach[0]])


def _draw_codes(residual, codes, atoms, variances, positive, rng):  # -> CSR
    """Draw the codes of all rows, given earlier codes, atoms and residuals."""
    weighted = atoms / variances
    gram = np.ascontiguousarray(weighted @ atoms.T)
    prior, limits = _prior(codes, np.diag(gram), positive)
    states = rng.integers(1, 2147483398, (len(residual), 2))
    correlations, z = residual @ weighted.T.astype(residual.dtype), codes.toarray()
    given = correlations, gram, prior, limits, positive, states, z
    draw = loops.draw_codes
    in_parts(lambda first, last: draw(first, last, *given), len(z), _ROWS)
    used = np.flatnonzero(z != 0)
    starts = np.searchsorted(used, np.arange(len(z) + 1) * z.shape[1])
    return sparse.csr_array((z.ravel()[used], used % z.shape[1], starts), shape=z.shape)


def _in_units(means, inverse, variances, scale):
    """Return unit atoms in the units of the data, and the variances of their entries."""
    atoms = means * scale
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    atoms, own = atoms / norms, variances * scale**2
    along = atoms**2 @ own
    # (I - d d^T) T (I - d d^T), on the diagonal
    tangent = own * (1 - 2 * atoms**2) + atoms**2 * along[:, None]
    return atoms, tangent * inverse[:, None] / norms**2


def _between(chain):  # (K, p, m) -> (p, m), (p,), (p,)
    """Return the variance of a stationary chain, and each atom's correlation at a distance.

    Half the mean squared difference of sweeps grows with their distance towards the variance;
    distances of a quarter and a half of the chain extrapolate it. Also return the variance of the
    chain's mean, in variances.
    """
    lag, tiny = max(1, len(chain) // 4), np.finfo(float).tiny
    near, far = (np.square(chain[h:] - chain[:-h]).mean((0, 2)) / 2 for h in (lag, 2 * lag))
    kept = np.clip(far / np.maximum(near, tiny) - 1, 0.0, _MOST_KEPT)
    found = chain.var(0, ddof=1)
    factor = np.maximum(1.0, near / (1 - kept) / np.maximum(found.mean(1), tiny))
    per_sweep = kept ** (1 / lag)
    error = (1 + per_sweep) / (1 - per_sweep) / len(chain)
    return factor[:, None] * found, kept, error


def _summary(sweeps, n_rows):  # -> AtomPosterior
    atoms, within, uses = (np.stack(part) for part in zip(*sweeps, strict=True))
    within = within.mean(0)
    between, kept, error = _between(atoms)
    mean = atoms.mean(0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    variances = within + between * (1 + error[:, None])
    n_uses, n_features = uses.mean(0), atoms.shape[2]
    # fitted codes reduce the information by the share of a row's atoms in its features
    taken = min(n_uses.sum() / n_rows, n_features - 1)
    limit = within.sum(1) * (n_features - 1) / (n_features - taken)
    hidden = float((between.sum(1) * kept).sum() / variances.sum())
    return AtomPosterior(mean, variances, n_uses, limit, hidden)


def _draw_rows(rows, fitted, codes, atoms, variances, positive, rng):  # -> x, codes
    """Draw missing entries, given what codes and a baseline make of rows, and then the codes."""
    x = rows.x
    if rows.missing is not None:
        drawn = fitted + rng.standard_normal(x.shape) * np.sqrt(variances)
        x = np.where(rows.missing, drawn, x)
    residual = (x - fitted).astype(np.float32)
    return x, _draw_codes(residual, codes, atoms, variances, positive, rng)


def sample_noise(rows, atoms, codes, variances, rng, positive):
    """Return the variances of the noise of features for given atoms; see `sample_atoms`."""
    codes = _strong(codes, variances)
    for _ in range(_OF_NOISE):
        given = rows, codes @ atoms, codes, atoms, variances
        x, codes = _draw_rows(*given, positive, rng)
        variances = keep_above_rounding(np.square(x - codes @ atoms).mean(0), x)
    return variances


def sample_atoms(rows, atoms, codes, variances, rng, *, scale=1.0, positive=False):
    """Sample atoms and codes; the chain starts at the atoms and codes of a fit.

    Parameters
    ----------
    rows : Rows
        Rows without a baseline, in units of their noise.
    atoms : ndarray of shape (n_components, n_features)
        Unit atoms in these units.
    codes : ndarray of shape (n_samples, n_components)
        Their codes.
    variances : ndarray of shape (n_features,)
        First estimate of the noise of features.
    rng : numpy.random.Generator
        Draws.
    scale : float or ndarray of shape (n_features,), default=1.0
        The units of features.
    positive : bool, default=False
        Whether codes are non-negative.

    Returns
    -------
    AtomPosterior
        The atoms in the units of the data.
    """
    weight, (n, m) = rows.weight, rows.x.shape
    p, ones = len(atoms), np.ones((n, int(rows.has_baseline)))
    baseline, first, sweeps = np.zeros((ones.shape[1], m)), atoms, []
    codes = _strong(codes, variances)
    while True:
        fitted = codes @ atoms + ones @ baseline
        x, codes = _draw_rows(rows, fitted, codes, atoms, variances, positive, rng)
        # the prior of a unit atom's entries has the variance 1 / m, around the atoms of the fit
        prior = m * variances.mean() * (np.arange(p + ones.shape[1]) < p)
        regressors = sparse.hstack([codes, ones], format="csr") if rows.has_baseline else codes
        weighted = regressors.multiply(weight).tocsr()
        gram, pull = (regressors.T @ weighted).toarray(), weighted.T @ x
        inverse = np.linalg.inv(gram + np.diag(prior))
        # a row of weight 2 has the noise of one row, not of two
        covariance = inverse + inverse @ ((weighted.T @ weighted).toarray() - gram) @ inverse
        centre = pull.copy()
        centre[:p] += prior[:p, None] * first
        means = inverse @ centre
        # Sums of squared residuals x - z D, without another pass over the rows.
        squares = np.einsum("ij,ij->j", weight * x, x) + ((gram @ means - 2 * pull) * means).sum(0)
        variances = keep_above_rounding(squares / max(n - len(means), n / 2), x)
        drawn = rng.standard_normal(means.shape) * np.sqrt(variances)
        drawn = means + np.linalg.cholesky(covariance) @ drawn
        atoms, baseline = drawn[:p], drawn[p:]
        norms = np.linalg.norm(atoms, axis=1)
        atoms = atoms / norms[:, None]
        codes.data *= norms[codes.indices]
        given = means[:p], np.diag(covariance)[:p], variances, scale
        sweeps.append((*_in_units(*given), np.bincount(codes.indices, minlength=p)))
        n_sweeps = len(sweeps) - _FIRST
        if n_sweeps in _ENDS:
            found = _summary(sweeps[_FIRST + n_sweeps // 3 :], n)
            if found.hidden < _HIDDEN or n_sweeps == _ENDS[-1]:
                return found
