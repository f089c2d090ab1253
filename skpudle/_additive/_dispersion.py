r"""Counts that vary more than Poisson's: weights of the negative binomial distribution.

With the variance :math:`\mu + \phi \mu^2` the slope of the log-likelihood in :math:`\mu` is
:math:`w (x - \mu) / \mu` with :math:`w = 1 / (1 + \phi \mu)`, Poisson's times a weight. Weighted
counts of weighted entries are a Poisson problem again, so all its solvers apply: a weight below 1
is an entry that is missing in part. Rates and weights alternate (iteratively reweighted least
squares). Large expectations lose weight, so that no row of many events rules the atoms.
"""

import numpy as np
from scipy import sparse

from skpudle._additive._alternate import Events, converge, solve_codes

# Weights above 1 - _FULL are set to 1, so that sparse counts have sparse weights. Weights that are
# 2 % wrong raise the variance of least squares by 0.04 %.
_FULL = 0.02
# Repetitions of weights and codes, of weights and fits, and of the estimate of the dispersion
_TURNS, _FITS, _ROUNDS = 4, 2, 30
# Least dispersion that counts: standard errors above 0, and share of the mean variance of events.
_ERRORS, _SHARE = 5.0, 0.05
# rows whose rates are dense at a time
_ROWS = 4096


def _blocks(events, atoms, codes):  # yields rows, dense rates with the exposures
    for first in range(0, len(codes), _ROWS):
        rows = slice(first, first + _ROWS)
        rates = codes[rows] @ atoms
        if events.exposure is not None:
            rates *= events.exposure[rows, None]
        yield rows, rates


def weigh(events, atoms, codes, dispersion):
    """Return the events with the weights of their rates.

    Parameters
    ----------
    events : Events
        Counts without weights.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    codes : ndarray of shape (n_samples, n_components)
        Codes.
    dispersion : float
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``.

    Returns
    -------
    Events
        Counts times weights; ``missing`` holds 1 minus the weights.
    """
    if dispersion == 0:
        return events
    lost, counts = [], events.counts.copy()
    for rows, rates in _blocks(events, atoms, codes):
        share = 1 - 1 / (1 + dispersion * rates)
        share[share < _FULL] = 0.0
        part = slice(counts.indptr[rows.start], counts.indptr[min(rows.stop, len(codes))])
        row = np.repeat(np.arange(len(share)), np.diff(counts.indptr[rows.start : rows.stop + 1]))
        counts.data[part] *= 1 - share[row, counts.indices[part]]
        lost.append(sparse.csr_array(share))
    lost = sparse.vstack(lost, format="csr")
    if events.missing is not None:
        lost = (events.missing + lost - lost.multiply(events.missing)).tocsr()
    return Events(counts, lost, events.exposure, events.row_weight, events.counts)


def solve_dispersed(events, atoms, dispersion, **options):
    """Return codes, and the events with the weights of their rates.

    Parameters
    ----------
    events : Events
        Counts without weights.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    dispersion : float
        As in `weigh`.
    **options : dict
        Options of `solve_codes`.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Codes.
    Events
        The weighted events for which these codes are the most likely.
    """
    codes, weighted = solve_codes(events, atoms, **options), events
    for _ in range(_TURNS if dispersion else 0):
        weighted = weigh(events, atoms, codes, dispersion)
        codes = solve_codes(weighted, atoms, codes, **options)
    return codes, weighted


def estimate_dispersion(events, atoms, codes):  # -> float
    """Estimate the dispersion from residuals, by weighted moments.

    Residuals are corrected for fitted parameters. A test comes first that weights all entries of
    rows of one weight equally, so that rows of many events do not decide it.

    Parameters
    ----------
    events : Events
        Counts without weights.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    codes : ndarray of shape (n_samples, n_components)
        Codes.

    Returns
    -------
    float
        The dispersion; 0 if the counts vary no more than Poisson's.
    """
    errors, rates, n_of_rows = [], [], []
    for rows, mu in _blocks(events, atoms, codes):
        known = mu > 0
        if events.missing is not None:
            known &= events.missing[rows].toarray() == 0
        rates.append(mu[known])
        errors.append(np.square(events.counts[rows].toarray() - mu)[known])
        n_of_rows.append(known.sum(1))
    mu, squares, often = np.concatenate(rates), np.concatenate(errors), 1.0
    n_of_rows = np.concatenate(n_of_rows)
    if events.row_weight is not None:
        often = np.repeat(events.row_weight, n_of_rows)
    n_fitted = events.total(codes > 0) + (atoms.size - len(atoms)) * events.typical_weight
    n_known = events.total(n_of_rows)
    if not len(mu) or n_fitted >= n_known:
        return 0.0
    excess = often * (n_known / (n_known - n_fitted) * squares - mu)
    # (x - mu)^2 - mu has the variance 2 mu^2 + mu for Poisson's counts
    errors = (excess / (2 * mu + 1)).sum() / (often**2 * mu / (2 * mu + 1)).sum() ** 0.5
    if errors <= _ERRORS:
        return 0.0
    found = 1.0
    for _ in range(_ROUNDS):
        weights = 1 / np.square(1 + found * mu)
        total, size = (weights * excess).sum(), (weights * often * mu**2).sum()
        before, found = found, max(float(total / size), 0.0)
        if abs(before - found) <= 1e-3 * found:
            break
    least = _SHARE * (often * mu).sum()
    return found if found * (often * np.square(mu)).sum() > least else 0.0


def converge_dispersed(events, weighted, state, smoothing, dispersion, **options):
    """Make steps until the objective stalls, then with the weights of the rates, in turn.

    Parameters
    ----------
    events : Events
        Counts without weights.
    weighted : Events
        The same with weights to begin with, or without.
    state : Progress
        The state to begin with.
    smoothing : float
        As in `skpudle._additive._alternate.advance`.
    dispersion : float or "auto"
        The dispersion; "auto" estimates it.
    **options : dict
        Options of `skpudle._additive._alternate.converge`.

    Returns
    -------
    Progress
        The state.
    Events
        Events with the weights of its rates, or without if the dispersion is 0.
    float
        The dispersion.
    """
    state = converge(weighted, state, smoothing, **options)
    for _ in range(_FITS):
        found = dispersion
        if dispersion == "auto":
            found = estimate_dispersion(events, state.atoms, state.codes)
        if found == 0:
            return state, events, 0.0
        weighted = weigh(events, state.atoms, state.codes, found)
        state = converge(weighted, state, smoothing, **options)
    return state, weighted, float(found)
