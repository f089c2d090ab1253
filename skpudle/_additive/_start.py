"""Initial atoms of counts: samples of different shapes, with the noise of the leading subspace."""

import numpy as np

from skpudle._initialization import successive_projections
from skpudle.search._epoch import spread_rows

# most samples to choose from; the cost grows with the cube of the smaller side
_SAMPLES = 2000


def _leading(x, n):  # -> projection of the rows on their n leading directions
    if x.shape[0] <= x.shape[1]:
        _, vectors = np.linalg.eigh(x @ x.T)
        basis = vectors[:, -n:]
        return basis @ (basis.T @ x)
    _, vectors = np.linalg.eigh(x.T @ x)
    basis = vectors[:, -n:]
    return x @ basis @ basis.T


def spectral_start(x, n_components, mask=None, dispersion=0.0, row_weight=None):
    """Return samples of different shapes, without most of their noise.

    Counts are divided by the roots of the means of rows and columns, which makes their noise even.
    In the subspace of the leading singular vectors the successive projection algorithm takes, one
    by one, the row farthest from the span of the rows taken before. Rows with many events come
    first, since they are precise.

    Parameters
    ----------
    x : ndarray of shape (n_samples, n_features)
        Counts.
    n_components : int
        Number of atoms.
    mask : ndarray of shape (n_samples, n_features), default=None
        1 where counts are known.
    dispersion : float, default=0.0
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``; rows of many
        events then are less precise.
    row_weight : ndarray of shape (n_samples,), default=None
        How often each row counts in the means of columns and in the subspace; None is once.

    Returns
    -------
    ndarray of shape (n_components, n_features)
        Atoms, not negative. Where no more shapes differ, they are single features.

    References
    ----------
    N. Gillis and S. A. Vavasis, "Fast and robust recursive algorithms for separable nonnegative
    matrix factorization", IEEE TPAMI 36, 2014.
    M. R. Keenan and P. G. Kotula, "Accounting for Poisson noise in the multivariate analysis of
    ToF-SIMS spectrum images", Surface and Interface Analysis 36, 2004.
    """
    some = np.asarray(spread_rows(len(x), _SAMPLES))
    x, often = x[some], 1.0 if row_weight is None else row_weight[some, None]
    known = np.ones_like(x) if mask is None else mask[some]
    x = np.where(known > 0, x, 0.0)
    of_rows = (x.sum(1, keepdims=True) + 0.5) / (known.sum(1, keepdims=True) + 1)
    of_columns = ((often * x).sum(0) + 0.5) / ((often * known * of_rows).sum(0) + 0.5)
    x = np.where(known > 0, x, of_rows * of_columns)  # fill gaps by the product of means
    roots = np.sqrt(of_columns)
    precision = of_rows / (1 + dispersion * of_rows)
    repeated = x / roots / of_rows * np.sqrt(precision) * np.sqrt(often)
    shapes = (_leading(repeated, n_components) / np.sqrt(often)).clip(0)
    norms = np.linalg.norm(shapes, axis=1, keepdims=True)
    taken = successive_projections(
        shapes / np.where(norms > 0, norms, 1.0), n_components, precision[:, 0] ** 0.5
    )
    atoms = shapes[taken] * roots
    others = np.arange(n_components - len(taken)) % x.shape[1]
    return np.concatenate([atoms, np.eye(x.shape[1])[others]])
