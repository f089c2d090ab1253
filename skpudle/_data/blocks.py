"""Arrays of dask: functions of rows are applied block by block, when their result is needed.

Dask itself is not imported: an array brings its methods.
"""

from functools import partial

import numpy as np

__all__ = ["map_rows"]


def _of_block(function, nothing, of_rows, rows, block_info=None):
    if not len(rows):  # a filter may leave blocks empty, which scikit-learn refuses
        return nothing
    start, stop = block_info[0]["array-location"][0]
    return function(rows, **{name: values[start:stop] for name, values in of_rows.items()})


def map_rows(function, X, **of_rows):
    """Return a function of rows as an array of dask, with the blocks of rows of X.

    Parameters
    ----------
    function : callable
        Maps an array (n, n_features) to an array (n, n_results), each row alone.
    X : dask.array.Array of shape (n_samples, n_features)
        The rows; without keyword arguments their number may be unknown. Blocks of some features
        are joined.
    **of_rows : ndarray of shape (n_samples,)
        Keyword arguments of the function with a number for each row.

    Returns
    -------
    dask.array.Array of shape (n_samples, n_results)
        The result for one row of zeros, which is computed at once, has the dtype and the number of
        columns of all results, and raises what the function raises for all rows.
    """
    one = {name: np.ones(1) for name in of_rows}
    result = function(np.zeros((1, *X.shape[1:]), X.dtype), **one)
    X = X.rechunk({1: X.shape[1]})
    block = partial(_of_block, function, result[:0], of_rows)
    chunks = X.chunks[0], (result.shape[1],)
    return X.map_blocks(block, dtype=result.dtype, chunks=chunks, meta=result[:0])
