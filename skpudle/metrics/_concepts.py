"""What people who look for concepts in the activations of a network measure."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.utils import check_array

from skpudle._data.arrays import host_array
from skpudle.metrics._codes import FLOATS, check_pair

__all__ = ["mean_correlation", "unexplained_variance"]


def _standardized(code, name):  # (n, k) -> (n, k), columns of mean 0 and of norm 1, or 0
    code = check_array(host_array(code), dtype=FLOATS, input_name=name)
    centred = code - code.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=0)
    # of a constant column only rounding is left
    varies = norms > 10 * np.finfo(code.dtype).eps * np.linalg.norm(code, axis=0)
    return np.where(varies, centred / np.where(varies, norms, 1), 0), varies


def mean_correlation(code, reference):
    """Return the mean correlation coefficient (MCC) of codes with known ones.

    Parameters
    ----------
    code : array-like of shape (n_samples, n_components)
        Codes, such as those of a learned dictionary.
    reference : array-like of shape (n_samples, n_reference)
        Known codes of the same samples; there may be more or fewer columns.

    Returns
    -------
    float
        Mean, over the columns of `reference` that vary, of the modulus of Pearson's correlation
        with the column of `code` that the best matching of all columns (by the Hungarian method)
        gives it; from 0 to 1. What stays without a partner counts as 0.

    Raises
    ------
    ValueError
        If there are not as many codes in both, or no column of `reference` varies.

    Notes
    -----
    The score of identifiability in nonlinear independent component analysis [1]_. Scales, signs
    and the order of columns do not change it.

    References
    ----------
    .. [1] A. Hyvärinen and H. Morioka, "Unsupervised feature extraction by time-contrastive
       learning and nonlinear ICA", NeurIPS 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.metrics import mean_correlation
    >>> code = np.random.default_rng(0).random((20, 3))
    >>> round(mean_correlation(-2 * code[:, ::-1], code), 6)
    1.0
    """
    code, _ = _standardized(code, "code")
    reference, varies = _standardized(reference, "reference")
    if len(code) != len(reference):
        raise ValueError(
            f"There are {len(code)} codes and {len(reference)} known ones; pass those of the same "
            "samples."
        )
    if not varies.any():
        raise ValueError(
            "No column of the known codes varies, so that nothing correlates with them; pass more "
            "samples."
        )
    correlations = np.abs(reference[:, varies].T @ code)
    matched = correlations[linear_sum_assignment(correlations, maximize=True)]
    return float(np.minimum(matched, 1).sum() / varies.sum())


def unexplained_variance(X, reconstruction):
    """Return the fraction of the variance of data that a reconstruction leaves unexplained (FVU).

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Data.
    reconstruction : array-like of the shape of X
        What a dictionary makes of their codes.

    Returns
    -------
    float
        Sum of squared residuals over the sum of squared deviations from the mean of the samples: 0
        for a perfect reconstruction, 1 for that by the mean; 1 minus the R^2 of
        `reconstruction_r2_scorer`.

    Raises
    ------
    ValueError
        If the shapes differ, or all samples are equal.
    """
    names = ("X", "reconstruction")
    X, reconstruction = check_pair(X, reconstruction, names=names, same_length=True)
    variance = np.square(X - X.mean(axis=0, dtype=np.float64)).sum()
    if variance == 0:
        raise ValueError("All samples are equal: there is no variance to explain.")
    return float(np.square(X - reconstruction).sum(dtype=np.float64) / variance)
