"""The gate for users' data: `open_source` decides what X is, once, for `fit` and `transform`.

X is in memory, or it is read in parts from one of three sources: `Slices` of a table, `Positions`
of a dataset, or a `Stream` of batches. A table is whatever has a shape and slices without being an
array in memory: a memory map, a dataset of HDF5, an array of zarr or dask, a slice of a safetensors
file, a sparse array, or a dataset of Hugging Face with one column of arrays. Every source has
``parts``, raw rows to encode or to score; a `Reader` makes it a source of batches to learn from.

A fit begins with a sample of all rows: from places all over numbered rows, and by reservoir
sampling [1]_ of a stream, in one pass.

References
----------
.. [1] J. S. Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software
   11, 1985.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import islice
from math import isnan, prod

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import _check_feature_names, _check_n_features, _num_samples
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from skpudle._data.arrays import (
    check_rows,
    is_in_memory,
    refuse_texts,
    split_missing,
    to_numpy,
    to_tensor,
    unpacked,
    with_gaps,
)
from skpudle._data.batches import Indexed, Samples, check_end, once_only
from skpudle._data.names import users_level
from skpudle.search._epoch import spread_rows

# Largest table that is read at once, with the bits of its array.
IN_MEMORY_BYTES = 2**28

# Size of a window, in which rows of a table are shuffled: contiguous blocks from random places. Two
# windows are in memory, one in use and one that is read ahead.
_WINDOW_BYTES = 2**24
_BLOCK_BYTES = 2**20

# Sample size: 500 rows per atom (the search's polish uses each atom 2000 times, and a row has some
# four atoms), at least 2**14, at most what fits into 96 MiB with the search's copies, and never
# fewer than 8 rows per atom.
_ROWS_OF_AN_ATOM, _LEAST_ROWS_OF_AN_ATOM = 500, 8
_LEAST_SAMPLE, _SAMPLE_BYTES = 2**14, 3 * 2**25
# Number of places of a table that a sample comes from. A population of 1 % of sorted rows has 20 of
# them.
_PLACES = 2048
# Rows that begin `partial_fit` of a stream.
_FIRST_ROWS = 2**14


@contextmanager
def part_of(where):
    """Name a part of the user's input in errors about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"In {where} of X: {error}") from error


def _only_array(row, ndim):
    """Return the one array of this number of dimensions in a dictionary, and its name."""
    names = [name for name, value in row.items() if np.ndim(value) == ndim]
    if len(names) != 1:
        raise ValueError(
            f"A row of X is a dictionary with {len(names)} arrays, {names}; one is needed. Select "
            "a column, for example ds.with_format('numpy').select_columns(['embedding']) of a "
            "dataset of Hugging Face."
        )
    return names[0], row[names[0]]


def _without_labels(raw):
    """Return the rows of a batch: dense, without labels, or the one array of a dictionary."""
    if isinstance(raw, dict):
        return _only_array(raw, 2)[1]
    raw = raw[0] if isinstance(raw, tuple | list) and len(raw) and np.ndim(raw[0]) == 2 else raw
    return raw.toarray() if sparse.issparse(raw) else raw


class Reader:
    """Turn batches into tensors, with the dtype, number and names of features of the first.

    Parameters
    ----------
    device : torch.device
        Device of the batches.
    learner : estimator, default=None
        The learner that reads; warnings name its class.
    known : bool, default=False
        Whether the learner is fitted, and batches have the names of its features.
    **checks : dict
        Keyword arguments of `skpudle._data.arrays.check_rows`.
    """

    def __init__(self, device, *, learner=None, known=False, **checks):
        self.device = torch.empty(0, device=device).device  # with an index, as in tensors
        self.checks, self.dtype, self._known = checks, None, known
        # the copy takes the names of the first batch, and the learner stays as it is
        self._named = BaseEstimator() if learner is None else copy(learner)

    @property
    def names(self):
        """The names of features, or None."""
        return getattr(self._named, "feature_names_in_", None)

    @property
    def n_features(self):
        """The number of features of the batches so far."""
        return self._named.n_features_in_

    def __call__(self, raw, where):  # -> (n, n_features) on the host, or the device if it was there
        is_first = self.dtype is None and not self._known
        with part_of(where):
            rows = _without_labels(raw)
            _check_feature_names(self._named, rows, reset=is_first)
            x = check_rows(rows, **self.checks)
            _check_n_features(self._named, x, reset=is_first)
        there = isinstance(x, torch.Tensor) and x.device == self.device
        x = x if there else to_tensor(x)
        self.dtype = self.dtype or x.dtype
        return x.to(self.dtype)

    def on_device(self, keys, x):  # -> Samples
        """Return rows as samples on the device; the host looks for gaps, without a wait."""
        x, mask = split_missing(x)
        if self.device.type == "cuda" and x.device.type == "cpu":
            x, mask = (t if t is None else t.pin_memory() for t in (x, mask))
        x, mask, keys = (
            t if t is None else t.to(self.device, non_blocking=True) for t in (x, mask, keys)
        )
        return Samples(x, mask, keys=with_gaps(x, mask) if keys is None else keys)


def _read_ahead(parts):
    """Yield parts; a thread reads the next one while this one is in use."""
    parts, end = iter(parts), object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, parts, end)
        while (part := following.result()) is not end:
            following = pool.submit(next, parts, end)
            yield part


def _regroup(parts, size):
    """Yield tuples of tensors of ``size`` rows, the last of fewer, from tuples of any sizes."""
    kept = None
    for part in parts:
        if kept is not None:
            n_missing = size - len(kept[0])
            kept = [torch.cat([one, more[:n_missing]]) for one, more in zip(kept, part)]
            part = [tensor[n_missing:] for tensor in part]
            if len(kept[0]) < size:
                continue
            yield kept
        *full, kept = zip(*(tensor.split(size) for tensor in part))
        yield from full
        kept = [tensor.clone() for tensor in kept]  # the part may be a buffer, and is large
    if kept is not None and len(kept[0]):
        yield kept


class InMemory:
    """Rows of an array-like, or of a small table, that is read at once."""

    in_parts = False  # whether it is read in parts, to bound the memory

    def __init__(self, data):
        self.data = data

    @property
    def n_rows(self):
        """The number of rows."""
        return _num_samples(self.data)

    def array(self):
        """Return all rows as an array-like."""
        return self.data

    def parts(self, n_rows):
        """Yield parts of the rows, each with the name of its place."""
        X = self.data if hasattr(self.data, "shape") else np.asarray(self.data)
        rows = getattr(X, "iloc", X)
        for first in range(0, max(len(X), 1), n_rows):  # one part of no rows, to be refused
            yield f"rows {first} to {first + n_rows}", rows[first : first + n_rows]


class _Source(Indexed):
    """Rows that are read in parts, and by a reader."""

    in_parts = True
    reader = None
    # Tensors (n_samples,) and (n_samples, ...): how often each sample counts, and what a learner
    # knows of it beside its numbers
    weight = target = None

    def __init__(self, data):
        super().__init__()
        self.data = data

    def read_by(self, reader, batch_size):
        """Return this source of batches; the size is for samples that come one by one."""
        self.reader = reader
        return self

    def array(self):
        """Refuse rows that come in batches, or one by one, where an array is required."""
        raise TypeError(
            f"X is a {type(self.data).__name__}, which is read in batches, and rows in memory are "
            "required. Pass an array."
        )

    @property
    def n_rows(self):
        """The number of rows, which weights and exposures have to match."""
        return len(self)

    n_samples = n_seen = n_rows

    def parts(self, n_rows):
        """Yield raw parts of the rows, each with the name of its place."""
        for first in range(0, max(len(self), 1), n_rows):
            last = min(first + n_rows, len(self))
            yield f"rows {first} to {last}", self._raw(first, last)

    def to(self, dtype):
        """Return this source; its next batches have another dtype."""
        self.reader.dtype = dtype
        return self

    def first(self, n_components):  # -> (n, n_features) on the device
        """Return rows that begin `partial_fit`: a sample, or the first batches of a stream."""
        return self.sample(n_components, 0)

    def sample(self, n_components, seed):  # -> (n, n_features) on the device
        """Return a sample of all rows, to search in, or all of them if they are few."""
        return self.samples(self.sampled_positions(n_components, seed))

    def _weighed(self, batch):
        given = {name: getattr(self, name) for name in ("weight", "target")}
        given = {name: all_[batch.keys.cpu()] for name, all_ in given.items() if all_ is not None}
        return replace(batch, **{name: values.to(batch.x) for name, values in given.items()})

    def _n_sampled(self, n_components):  # needs n_features, so after the first row
        m = self.reader.n_features
        p = n_components or m
        itemsize = torch.empty(0, dtype=self.reader.dtype).element_size()
        # the row, a copy in float64, two copies of codes with room, and correlations with atoms
        row = (itemsize + 8) * m + 24 * min(p, m + 8) + 8 * p
        wanted = max(_ROWS_OF_AN_ATOM * p, _LEAST_ROWS_OF_AN_ATOM * m, _LEAST_SAMPLE)
        return max(_LEAST_ROWS_OF_AN_ATOM * p, min(wanted, _SAMPLE_BYTES // row))


class Slices(_Source):
    """Rows of a table, read by contiguous blocks.

    Blocks are whole chunks of the table, if it has chunks. In an epoch they come in random order.
    Some 16 MiB of them make a window, and the rows of a window are shuffled.

    Parameters
    ----------
    data : object
        The table.
    shape : tuple
        Its shape, (n_samples, ...).
    itemsize : int, default=8
        Bytes of a number.
    column : str, default=None
        The column of a dataset of Hugging Face.
    """

    def __init__(self, data, shape, itemsize=8, column=None):
        super().__init__(data)
        self.shape, self._column, self._chunk = shape, column, 1
        # a product is NaN if dask does not know the number of rows
        self.in_parts = len(shape) == 2 and not prod(shape) * itemsize <= IN_MEMORY_BYTES
        for name in ("shards", "chunksize", "chunks"):  # names in zarr; dask; HDF5 and zarr
            rows = getattr(data, name, None)
            if isinstance(rows, tuple) and len(rows) and isinstance(rows[0], int):
                self._chunk = max(1, rows[0])
                break
        row_bytes = 8 * prod(shape[1:])  # integers become floats
        self._most = max(1, _WINDOW_BYTES // max(row_bytes, 1))
        n_chunks = max(1, _BLOCK_BYTES // max(row_bytes, 1) // self._chunk)
        self._block = min(self._chunk * n_chunks, self._most)

    def __len__(self):
        if isnan(self.shape[0]):
            raise ValueError("X does not know its number of rows. Call its compute_chunk_sizes().")
        return self.shape[0]

    def array(self):
        """Return all rows."""
        return self._raw(0, len(self))

    def _raw(self, first, last):  # -> array or tensor that nobody else holds
        found = self.data[first:last]
        found = found if self._column is None else found[self._column]
        found = found.toarray() if sparse.issparse(found) else found
        found = found.clone() if isinstance(found, torch.Tensor) else np.array(found)
        if len(found) != last - first:
            raise ValueError(
                f"Rows {first} to {last} of X, a {type(self.data).__name__}, are {len(found)} "
                "rows: it became shorter while it was read, or its shape is wrong. Pass a table "
                "with the number of rows of its shape."
            )
        return found

    def _read(self, first, last):  # -> (n, n_features)
        first, last = int(first), min(int(last), len(self))
        return self.reader(self._raw(first, last), f"rows {first} to {last}")

    def sampled_positions(self, n_components, seed):  # -> (n,)
        """Return random places of equal parts of the table."""
        self._read(0, 1)
        n_rows = min(self._n_sampled(n_components), len(self))
        if n_rows == len(self):
            return torch.arange(n_rows, device="cpu")
        length = -(-n_rows // min(_PLACES, n_rows))  # of a place
        edges = np.linspace(0, len(self), -(-n_rows // length) + 1).astype(int)
        free = np.maximum(edges[1:] - edges[:-1] - length, 0)
        starts = edges[:-1] + np.random.default_rng(seed).integers(free + 1)
        return to_tensor(np.unique(starts[:, None] + np.arange(length))[:n_rows])

    def samples(self, keys):
        """Return the rows at the given positions; rows that are stored together are read once."""
        wanted, places = np.unique(to_numpy(keys), return_inverse=True)
        together = min(self._chunk, self._most) if self._chunk > 1 else self._block
        cuts = np.flatnonzero((np.diff(wanted) > 1) & (self._chunk == 1)) + 1
        cuts = np.union1d(cuts, np.flatnonzero(np.diff(wanted // together)) + 1)
        rows = None
        for at, part in zip([0, *cuts], np.split(wanted, cuts)):
            read = self._read(part[0], part[-1] + 1)[(part - part[0]).tolist()]
            rows = read.new_empty(len(wanted), read.shape[1]) if rows is None else rows
            rows[at : at + len(read)] = read
        in_order = np.array_equal(places, np.arange(len(wanted)))
        return (rows if in_order else rows[places.tolist()]).to(self.reader.device)

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        starts, seed = torch.arange(0, len(self), self._block, device="cpu"), None
        if self.generator is not None:
            starts = starts[torch.randperm(len(starts), generator=self.generator, device="cpu")]
            seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        windows = _read_ahead(self._windows(starts, seed))
        return (
            self._weighed(self.reader.on_device(keys, x))
            for keys, x in _regroup(windows, self.batch_size)
        )

    def _windows(self, starts, seed):  # yields positions (n,) and rows (n, n_features)
        for number, window in enumerate(starts.split(max(1, self._most // self._block))):
            blocks = [(a, min(a + self._block, len(self))) for a in window.tolist()]
            keys = torch.cat([torch.arange(*block, device="cpu") for block in blocks])
            places, rows = torch.arange(len(keys), device="cpu"), None
            if seed is not None:
                generator = torch.Generator().manual_seed(seed + number)
                order = torch.randperm(len(keys), generator=generator, device="cpu")
                keys, places = keys[order], order.argsort()
            for block, at in zip(blocks, places.split([b - a for a, b in blocks])):
                read = self._read(*block)
                rows = read.new_empty(len(keys), read.shape[1]) if rows is None else rows
                rows[at] = read
            yield keys, rows


def _collate(data, positions):
    """Return samples of a dataset as one batch, on the host whatever torch's default device is."""
    if not len(positions):
        raise ValueError("X has no samples, its length is 0. Pass a dataset with samples.")
    with torch.device("cpu"):
        return default_collate([data[position] for position in positions])


class Positions(_Source):
    """Samples of a dataset, read by their positions."""

    def __len__(self):
        return len(self.data)

    def _raw(self, first, last):
        return _without_labels(_collate(self.data, range(first, last)))

    def _read(self, keys):  # (n,) -> (n, n_features)
        raw = _collate(self.data, keys.tolist())
        return self.reader(raw, f"samples {int(keys[0])} ... {int(keys[-1])}")

    def sampled_positions(self, n_components, seed):  # -> (n,)
        """Return the positions of the samples of `sample`, for any seed."""
        self._read(torch.zeros(min(len(self), 1), dtype=torch.long, device="cpu"))
        return spread_rows(len(self), self._n_sampled(n_components))

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        return map(self._weighed, super().batches())

    def read(self, parts):
        """Yield the samples with the numbers of each part."""
        return (self.reader.on_device(keys, self._read(keys)) for keys in parts)

    def samples(self, keys):
        """Return the samples at the given positions."""
        rows = [self._read(part) for part in keys.cpu().split(256)]
        return torch.cat(rows).to(self.reader.device)


def _collate_singles(samples, n_rows):
    samples = iter(samples)
    while True:
        with torch.device("cpu"):  # not while the batch is in use
            if not (part := list(islice(samples, n_rows))):
                return
            batch = default_collate(part)
        yield batch


def _no_batch():
    return ValueError("X yields no batch. Pass an object whose __iter__ yields some, every time.")


class Stream(_Source):
    """Batches of an object that can be iterated again; samples are their own keys.

    A `DataLoader` shuffles by its own generator; other streams are not shuffled. If the stream has
    a length, an epoch is this number of batches, or fewer if it ends before.
    """

    n_samples = None  # known after a pass to the end
    _n_counted = None  # the number of batches of this pass

    def __init__(self, data):
        super().__init__(data)
        self._seen = {"n": 0}  # copies count together

    def read_by(self, reader, batch_size):
        """Return this source of batches; the batch size is for a stream of single samples."""
        if hasattr(self.data, "__next__"):
            raise once_only(f"X is a {type(self.data).__name__}, which")
        reader.checks["copy"] = True  # a stream may yield one buffer again and again
        self.batch_size = batch_size
        return super().read_by(reader, batch_size)

    def for_training(self, batch_size, generator, *, shuffle):
        """Return this source; it has its own batches and its own order."""
        source = copy(self)
        source.generator = getattr(self.data, "generator", None)
        return source

    @property
    def n_rows(self):
        """Refuse weights and exposures of rows, since the number of rows is unknown."""
        raise ValueError(
            f"sample_weight and exposure are for numbered rows, but X is a "
            f"{type(self.data).__name__}. Pass its batches to partial_fit, each with its numbers, "
            "or an array, a table or a dataset."
        )

    @property
    def n_seen(self):
        """The number of rows in the longest of all passes."""
        return self._seen["n"]

    @property
    def _length(self):
        try:
            return len(self.data) or None
        except TypeError:  # its length is unknown before the end
            return None

    @property
    def n_batches(self):
        return self._n_counted or self._length

    def _raw_batches(self, n_rows):
        singles = isinstance(self.data, IterableDataset)
        return _collate_singles(self.data, n_rows) if singles else iter(self.data)

    def parts(self, n_rows):
        """Yield the stream's own batches, each with its name."""
        number = None
        for number, raw in enumerate(self._raw_batches(n_rows)):
            with part_of(where := f"batch {number}"):
                rows = _without_labels(raw)
            yield where, rows
        if number is None:
            raise _no_batch()

    def _read(self, raw_batches):  # yields (n, n_features)
        n_rows = 0
        for number, raw in enumerate(islice(raw_batches, self._length)):
            rows = self.reader(raw, f"batch {number}")
            n_rows += len(rows)
            self._seen["n"] = max(self._seen["n"], n_rows)
            yield rows

    def sample(self, n_components, seed):
        """Return rows of a reservoir: each row of the stream is in it with the same probability."""
        random, kept, n_rows = np.random.default_rng(seed), [], 0
        reservoir, batches, number = None, self._raw_batches(self.batch_size), -1
        for number, rows in enumerate(self._read(batches)):
            check_end(number)
            size = self._n_sampled(n_components)
            if n_rows < size:
                kept.append(rows[: size - n_rows])
                n_rows, rows = n_rows + len(kept[-1]), rows[size - n_rows :]
            if len(rows):
                reservoir = torch.cat(kept).cpu() if reservoir is None else reservoir
                places = random.random(len(rows)) * np.arange(n_rows + 1, n_rows + len(rows) + 1)
                places = places.astype(np.int64)
                last = {place: row for row, place in enumerate(places.tolist()) if place < size}
                reservoir[list(last)] = rows[list(last.values())].cpu()
                n_rows += len(rows)
        if not kept:
            raise _no_batch()
        self.n_samples, self._n_counted = n_rows, number + 1
        if self._n_counted == self._length and next(batches, self) is not self:
            warnings.warn(
                f"X has the length {self._length} and yields more batches, which are left out. Let "
                "__len__ return the number of all batches of a stream with an end.",
                stacklevel=users_level(),
            )
        sample = torch.cat(kept) if reservoir is None else reservoir
        return sample.to(self.reader.device)

    def first(self, n_components):
        """Return the first batches."""
        rows, n_rows = [], 0
        for batch in self._read(self._raw_batches(self.batch_size)):
            rows.append(batch)
            n_rows += len(batch)
            if n_rows >= min(self._n_sampled(n_components), _FIRST_ROWS):
                break
        if not rows:
            raise _no_batch()
        return torch.cat(rows).to(self.reader.device)

    def blocks(self, n_rows, generator):
        """Yield all samples once, some rows at a time, in their order."""
        rows = self._read(self._raw_batches(self.batch_size))
        for (block,) in _regroup(((x,) for x in rows), n_rows):
            yield self.reader.on_device(None, block)

    def batches(self):
        """Return an iterator over the batches of an epoch."""
        raw = self._raw_batches(self.batch_size)  # begins now: a loader may draw random numbers
        return (self.reader.on_device(None, rows) for rows in self._read(raw))

    def samples(self, keys):
        """Return the keys, which are the samples."""
        return keys


def refuse_shuffled(X):
    """Raise ValueError for a loader that shuffles, for results with a row for each sample."""
    if isinstance(X, DataLoader):
        sampler = getattr(X.batch_sampler, "sampler", X.sampler)
        kind = type(sampler).__name__
        if "Random" in kind or getattr(sampler, "shuffle", False) is True:
            raise ValueError(
                f"X is a DataLoader that draws samples in random order, by a {kind}, so that no "
                "row of the result belongs to a known sample. Pass one with shuffle=False, or its "
                "dataset."
            )


def _table_of(X):  # -> Slices or None
    """Return a table of rows outside memory, None if X is none."""
    numbered = hasattr(X, "__getitem__")
    if numbered and isinstance(getattr(X, "column_names", None), list):  # Hugging Face
        name, first = _only_array(X[0], 1)
        X = X.select_columns([name]) if hasattr(X, "select_columns") else X
        dtype = getattr(first, "dtype", None)
        return Slices(X, (len(X), len(first)), getattr(dtype, "itemsize", 8), name)
    if numbered and hasattr(X, "get_shape"):  # safetensors
        return Slices(X, tuple(X.get_shape()))
    if numbered and hasattr(X, "shape") and hasattr(X, "dtype") and len(X.shape):
        return Slices(X, tuple(X.shape), getattr(X.dtype, "itemsize", 8))
    return None


def open_source(X, learner=None):
    """Decide what a user's X is.

    Parameters
    ----------
    X : object
        The user's input.
    learner : estimator, default=None
        If it accepts no sparse arrays, they are in memory, where its checks refuse them.

    Returns
    -------
    InMemory, Slices, Positions or Stream
        What X is.
    """
    refuse_texts(X)
    X = unpacked(X)
    if is_in_memory(X):
        return InMemory(X)
    if sparse.issparse(X):
        accepted = learner is None or get_tags(learner).input_tags.sparse
        return _table_of(sparse.csr_array(X)) if accepted else InMemory(X)
    if (table := _table_of(X)) is not None:
        return table
    has = {name for name in dir(X) if not isinstance(X, type)}
    if isinstance(X, Dataset | DataLoader):
        numbered = not isinstance(X, DataLoader | IterableDataset)
        return Positions(X) if numbered else Stream(X)
    if {"__len__", "__getitem__"} <= has and not {"shape", "keys", "index", "__array__"} & has:
        return Positions(X)
    arrays = {"__array__", "__getitem__", "shape", "__dataframe__"}
    return Stream(X) if "__iter__" in has and not arrays & has else InMemory(X)
