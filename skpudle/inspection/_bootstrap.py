"""Intervals of codes of counts that add, by the parametric bootstrap."""

import numpy as np

from skpudle._data.foreign import drop_names

__all__ = ["bootstrap_codes"]

# Draws of each row. Drawn rows that are encoded at a time.
_DRAWS, _ROWS = 100, 8192


def _draw(rng, rates, dispersion):  # -> float64, as rates
    """Draw counts of these expectations."""
    if dispersion:
        rates = rates * rng.gamma(1 / dispersion, dispersion, rates.shape)
    return rng.poisson(rates).astype(np.float64)


def bootstrap_codes(learner, codes, gaps, exposure, level, rng):  # -> low, high (n, n_components)
    """Return intervals of the codes of counts.

    Counts are drawn from the expectations of each row, of Poisson's distribution, or of a negative
    binomial one if the learner has a dispersion. Their codes vary about the codes of the row as the
    codes of the row do about the true ones. An interval holds the middle ``level`` of the drawn
    codes, moved so that their median is the code of the row: codes that cannot be negative take
    events from larger ones, in the row and once more in the draws.

    Parameters
    ----------
    learner : PoissonNMF
        Fitted, or made from given components.
    codes : ndarray of shape (n_samples, n_components)
        Codes of rows.
    gaps : ndarray of bool of shape (n_samples, n_features), or None
        Entries that are missing.
    exposure : ndarray of shape (n_samples,), or None
        Exposures of rows.
    level : float
        Share of intervals that are to hold the true code.
    rng : RandomState
        Draws counts.
    """
    coder, low, high = drop_names(learner), np.empty_like(codes), np.empty_like(codes)
    size = max(1, _ROWS // _DRAWS)
    for first in range(0, len(codes), size):
        part = slice(first, first + size)
        rates = np.asarray(learner.inverse_transform(codes[part]), dtype=np.float64)
        rates, of_rows = np.tile(rates, (_DRAWS, 1)), {}
        if exposure is not None:
            of_rows["exposure"] = np.tile(exposure[part], _DRAWS)
            rates = rates * of_rows["exposure"][:, None]
        drawn = _draw(rng, rates, learner.dispersion_)
        if gaps is not None:
            drawn[np.tile(gaps[part], (_DRAWS, 1))] = np.nan
        found = coder.transform(drawn, **of_rows).reshape(_DRAWS, -1, codes.shape[1])
        places = [0.5 - level / 2, 0.5, 0.5 + level / 2]
        ends = np.quantile(found, places, axis=0, method="weibull")
        low[part], _, high[part] = np.maximum(ends + codes[part] - ends[1], 0.0)
    return low, high
