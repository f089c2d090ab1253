"""Tables: rows that are read by slices, wherever they lie.

A table is whatever has a shape, a dtype and slices without being an array in memory: a memory map,
a dataset of HDF5, an array of zarr or dask, a slice of a safetensors file, or a dataset of Hugging
Face with one column of arrays.

Functions of the rows of dask's arrays are applied block by block, when their result is needed; dask
itself is not imported, since an array brings its methods.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isnan, prod

import numpy as np
import torch
from scipy import sparse

# Largest table that is read at once, with the bits of its array.
IN_MEMORY_BYTES = 2**28


@dataclass(frozen=True)
class Table:
    """Rows that are read by slices.

    Parameters
    ----------
    shape : tuple of int
        Shape of all rows, (n_samples, ...).
    itemsize : int
        Bytes of a number.
    chunk : int
        Number of rows that are stored together.
    rows : callable
        ``rows(first, last)`` returns an array or tensor of these rows, which nobody else holds.
    is_lazy : bool, default=False
        Whether rows are computed when they are read, by dask, and so may be their codes.
    """

    shape: tuple
    itemsize: int
    chunk: int
    rows: Callable
    is_lazy: bool = False

    def __len__(self):
        if isnan(self.shape[0]):
            raise ValueError(
                "X does not know its number of rows. Call its compute_chunk_sizes() before."
            )
        return self.shape[0]

    @property
    def n_bytes(self):
        """Return the size of all rows, NaN if their number is not known."""
        return prod(self.shape) * self.itemsize


def only_array(row, ndim):
    """Return the one array of this number of dimensions in a dictionary, and its name.

    Raises
    ------
    ValueError
        If there is no such array, or more than one.
    """
    names = [name for name, value in row.items() if np.ndim(value) == ndim]
    if len(names) != 1:
        found = f"{len(names)} arrays, {names}" if names else f"no array among {list(row)}"
        raise ValueError(
            f"A row of X is a dictionary with {found}; one is needed. Select a column of arrays, "
            "for example ds.with_format('numpy').select_columns(['embedding']) of a dataset of "
            "Hugging Face."
        )
    return names[0], row[names[0]]


def _is_numbered(X):
    return hasattr(X, "__len__") and hasattr(X, "__getitem__")


def _has_columns(X):  # a dataset of Hugging Face
    return _is_numbered(X) and hasattr(X, "column_names") and not isinstance(X.column_names, dict)


def _of_columns(X):
    if not len(X):
        raise ValueError("X has no samples, its length is 0. Pass a dataset with samples.")
    name, first = only_array(X[0], 1)
    X = X.select_columns([name]) if hasattr(X, "select_columns") else X
    shape, itemsize = (len(X), len(first)), getattr(getattr(first, "dtype", None), "itemsize", 8)
    return Table(shape, itemsize, 1, _reader_of(X, name))


def _reader_of(data, column=...):
    """Return ``rows`` of a table; the slices of ``data``, or of its column, hold its rows."""

    def rows(first, last):
        found = data[first:last] if column is ... else data[first:last][column]
        if sparse.issparse(found):
            found = found.toarray()
        found = found.clone() if isinstance(found, torch.Tensor) else np.array(found)
        if len(found) != last - first:
            raise ValueError(
                f"Rows {first} to {last} of X, a {type(data).__name__}, are {len(found)} rows: it "
                "became shorter while it was read, or its shape is wrong. Pass a table with the "
                "number of rows of its shape."
            )
        return found

    return rows


def _rows_of_a_chunk(X):
    """Return the number of rows that are stored, or computed, together."""
    for name in ("shards", "chunksize", "chunks"):  # names in zarr; dask; HDF5 and zarr
        rows = getattr(X, name, None)
        if isinstance(rows, tuple) and len(rows) and isinstance(rows[0], int):
            return max(1, rows[0])
    return 1


def table_of(X):
    """Return a table for ``X``, which is not in memory, or None if it is none.

    Raises
    ------
    ValueError
        If a row has no array or several.
    """
    if _has_columns(X):
        return _of_columns(X)
    if hasattr(X, "get_shape") and hasattr(X, "__getitem__"):  # safetensors
        shape = tuple(X.get_shape())
        return Table(shape, 8, 1, _reader_of(X)) if shape else None
    if not all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__")):
        return None
    if not (shape := tuple(X.shape)):
        return None
    itemsize = getattr(X.dtype, "itemsize", 8)
    is_lazy = hasattr(X, "map_blocks") and hasattr(X, "__dask_graph__")
    return Table(shape, itemsize, _rows_of_a_chunk(X), _reader_of(X), is_lazy)


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
