r"""Sample the atoms of counts whose sources add from their posterior distribution, from a fit on.

Counts have the expectations :math:`\mu_i = e_i z_i D`, and the variances :math:`\mu_{ij} + \phi
\mu_{ij}^2` of Poisson's or a negative binomial distribution. Atoms and codes depend on sums over
many entries, so a sweep draws from normal distributions with the same mean and variance: codes
given atoms, and entries of atoms given codes, all non-negative. The prior of both is the
exponential distribution. Codes may be 0 if many codes of the fit are 0; otherwise entries of atoms
may be 0, which determines the extremes of mixtures. Variances follow a moving average of the rates.
"""

import numpy as np

from skpudle._compilation import in_parts
from skpudle.inspection._posterior import AtomPosterior
from skpudle.inspection._posterior_compiled import loops

# Sweeps before the first that counts, and sweeps that count.
_FIRST, _KEPT = 60, 150
# Weight of the last sweep in the moving average of rates, and least rate, in mean rates.
_SHARE, _LEAST = 0.1, 1e-3
# least number of rows that pays for a thread
_ROWS = 64


def _draw(x, weights, atoms, z, spike, rng):  # -> precisions; changes z
    n, used, size = len(z), (z > 0).sum(0), np.maximum(z.sum(0), 1e-300)
    prior = np.stack([used / size, np.log((used + 0.5) / (n - used + 0.5))])
    squares, states = np.empty_like(z), rng.integers(1, 2147483398, (n, 2))
    given = x, weights, np.ascontiguousarray(atoms), prior, spike, states, z, squares
    draw = loops.draw_rates
    in_parts(lambda first, last: draw(first, last, *given), n, _ROWS)
    return squares


def sample_rates(counts, known, exposure, atoms, codes, dispersion, spike, rng):
    """Sample atoms and codes of counts; the chain starts at the atoms and codes of a fit.

    Parameters
    ----------
    counts : ndarray of shape (n_samples, n_features)
        Counts; any number where they are missing.
    known : ndarray of shape (n_samples, n_features) or None
        False for missing entries.
    exposure : ndarray of shape (n_samples, 1)
        Factors of the expectations.
    atoms : ndarray of shape (n_components, n_features)
        Atoms of sum 1.
    codes : ndarray of shape (n_samples, n_components)
        Codes for an exposure of 1.
    dispersion : float
        The dispersion.
    spike : bool
        Whether rows may lack atoms; otherwise atoms may lack features.
    rng : numpy.random.Generator
        Draws.

    Returns
    -------
    AtomPosterior
        Atoms of sum 1. The variance of an entry that may be 0 is the least that an entry has, and
        the limit is for known sources of all events.
    """
    x, z = counts / exposure, codes + 1e-9 * codes.mean()
    rates, columns = z @ atoms, np.ascontiguousarray(atoms.T)
    transposed, chain, free, uses = np.ascontiguousarray(x.T), [], [], []
    for sweep in range(_FIRST + _KEPT):
        expected = np.maximum(rates, _LEAST * rates.mean()) * exposure
        weights = exposure**2 / (expected + dispersion * expected**2)
        weights = weights if known is None else weights * known
        _draw(x, weights, columns.T, z, spike, rng)
        rows = np.ascontiguousarray(z.T)
        squares = _draw(transposed, np.ascontiguousarray(weights.T), rows, columns, not spike, rng)
        sums = np.maximum(columns.sum(0), 1e-300)
        columns /= sums
        z *= sums
        rates = (1 - _SHARE) * rates + _SHARE * (z @ columns.T)
        if sweep >= _FIRST:
            chain.append(columns.T.copy())
            free.append(1 / np.maximum(squares.T * sums[:, None] ** 2, 1e-300))
            uses.append((z > 0).sum(0))
    chain, free = np.stack(chain), np.minimum(np.mean(free, 0), 1.0)
    variances = chain.var(0, ddof=1)
    # factor of variances of nonzero entries by which codes and an atom's other entries raise them
    added = np.ma.masked_array(variances / free, ~(chain > 0).all(0))
    added = np.maximum(np.ma.median(added, axis=1).filled(1.0), 1.0)
    variances = np.maximum(variances, added[:, None] * free)
    atoms, n_events = chain.mean(0), np.maximum((z * exposure).sum(0), 1.0)
    limit = (atoms * (1 - atoms)).sum(1) / n_events
    return AtomPosterior(atoms, variances, np.mean(uses, 0), limit)
