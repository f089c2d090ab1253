"""Intervals of codes of counts, by the parametric bootstrap."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import check_rows, host_array, split_missing, to_numpy, to_tensor
from skpudle._data.foreign import drop_names

__all__ = ["CodeIntervals", "code_intervals"]

# number of drawn rows to encode at a time
_ROWS = 8192


class CodeIntervals(NamedTuple):
    """Intervals of codes; see `code_intervals`."""

    codes: NDArray
    """The codes of `transform`, of shape (n_samples, n_components)."""
    low: NDArray
    """The lower ends, of the same shape."""
    high: NDArray
    """The upper ends."""


def _draw(rng, rates, dispersion):  # -> float64, as rates
    """Draw counts of these expectations."""
    if dispersion:
        rates = rates * rng.gamma(1 / dispersion, dispersion, rates.shape)
    return rng.poisson(rates).astype(np.float64)


def code_intervals(
    learner: Any,
    X: ArrayLike,
    *,
    n_draws: int = 100,
    level: float = 0.95,
    exposure: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> Any:
    """Return intervals of the codes of counts, by the parametric bootstrap.

    Counts are drawn from the expectations of each sample, of Poisson's distribution, or of a
    negative binomial one if the learner has a dispersion. Their codes vary about the codes of the
    sample as the codes of the sample vary about the true codes. An interval holds the middle
    ``level`` of the drawn codes, moved so that their median is the code of the sample: non-negative
    codes of absent atoms take events from larger codes, in the sample and again in the draws. Atoms
    are taken for known.

    Parameters
    ----------
    learner : PoissonNMF
        Fitted, or made from given components.
    X : array-like of shape (n_samples, n_features)
        Counts, as `transform` takes them; NaN marks missing entries.
    n_draws : int, default=100
        Number of draws for each sample.
    level : float, default=0.95
        Share of intervals that are to hold the true code, between 0 and 1.
    exposure : array-like of shape (n_samples,), default=None
        As for `transform`.
    random_state : int, RandomState instance or None, default=None
        Determines the draws.

    Returns
    -------
    CodeIntervals
        Arrays ``codes``, ``low`` and ``high`` of shape (n_samples, n_components).

    Raises
    ------
    ValueError
        If the learner is no `skpudle.PoissonNMF`, there are fewer than 2 draws, or the level is not
        between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PoissonNMF
    >>> from skpudle.metrics import code_intervals
    >>> learner = PoissonNMF.from_components([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    >>> codes, low, high = code_intervals(learner, np.array([[50.0, 60.0, 40.0]]), random_state=0)
    >>> bool((low < codes).all() and (codes < high).all())
    True
    """
    check_is_fitted(learner)
    if getattr(learner, "loss", None) != "kullback-leibler":
        raise ValueError(
            f"{type(learner).__name__} has no distribution of counts whose sources add. Pass a "
            "PoissonNMF."
        )
    if n_draws < 2 or not 0 < level < 1:
        raise ValueError(
            f"n_draws={n_draws} and level={level} give no intervals. Pass 2 draws or more, and a "
            "level between 0 and 1."
        )
    rng = check_random_state(random_state)
    given = {} if exposure is None else {"exposure": np.asarray(exposure, dtype=np.float64)}
    codes = np.asarray(host_array(learner.transform(X, **given)), dtype=np.float64)
    rows = host_array(X.toarray() if sparse.issparse(X) else X)
    _, known = split_missing(to_tensor(check_rows(rows, allow_nan=True)))
    gaps = None if known is None else to_numpy(known) == 0
    coder, low, high = drop_names(learner), np.empty_like(codes), np.empty_like(codes)
    size = max(1, _ROWS // n_draws)
    for first in range(0, len(codes), size):
        part = slice(first, first + size)
        again = {name: np.tile(values[part], n_draws) for name, values in given.items()}
        rates = np.asarray(learner.inverse_transform(codes[part]), dtype=np.float64)
        rates = np.tile(rates, (n_draws, 1)) * again.get("exposure", np.ones(1))[:, None]
        drawn = _draw(rng, rates, learner.dispersion_)
        if gaps is not None:
            drawn[np.tile(gaps[part], (n_draws, 1))] = np.nan
        found = coder.transform(drawn, **again).reshape(n_draws, -1, codes.shape[1])
        places = [0.5 - level / 2, 0.5, 0.5 + level / 2]
        ends = np.quantile(found, places, axis=0, method="weibull")
        low[part], _, high[part] = np.maximum(ends + codes[part] - ends[1], 0.0)
    return CodeIntervals(codes, low, high)
