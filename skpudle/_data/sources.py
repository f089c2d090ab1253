"""The gate for users' data: `open_source` decides what X is, once, for `fit` and `transform`.

X is in memory, or it is a table, numbered samples, a sparse array or a stream of batches. Each has
``parts``, raw rows to encode or to score. What is not in memory can be read by a
`skpudle._data.reading.Reader`, which makes it a source of batches to learn from (see
`skpudle._data.batches`), `Indexed` except for streams.

A fit begins with a sample of all rows: from places all over numbered rows, and by reservoir
sampling [1]_ of a stream, in one pass.

References
----------
.. [1] J. S. Vitter, "Random Sampling with a Reservoir", ACM Transactions on Mathematical Software
   11, 1985.
"""

import warnings
from copy import copy
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import get_tags
from sklearn.utils.validation import _num_samples
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from skpudle._data import tables
from skpudle._data.arrays import (
    host_array,
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
from skpudle._data.reading import Loader, part_of, read_ahead, without_labels
from skpudle._data.tables import only_array, table_of
from skpudle.search._epoch import spread_rows

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
# Rows that begin `partial_fit`.
_FIRST_ROWS = 2**14


def _cut(n_samples, n_rows):  # yields (first, last) of parts; one of no samples, to be refused
    for first in range(0, max(n_samples, 1), n_rows):
        yield first, min(first + n_rows, n_samples)


def _unnumbered(X):
    return ValueError(
        "sample_weight and exposure are for numbered rows, but X is a "
        f"{type(X).__name__}. Pass its batches to partial_fit, each with its numbers, or an array, "
        "a table or a dataset."
    )


class InMemory:
    """Rows of an array-like, or of a table that is read at once.

    Parameters
    ----------
    data : array-like
        What the user passed.
    table : Table, default=None
        The table, if it is one.
    """

    in_parts = False  # whether it is read in parts, to bound the memory

    def __init__(self, data, table=None):
        self.data, self.table = data, table
        self.is_lazy = table is not None and table.is_lazy  # as results may be, too

    @property
    def n_rows(self):
        """The number of rows."""
        if self.table is not None:
            return len(self.table)
        try:
            return _num_samples(self.data)
        except TypeError:
            raise _unnumbered(self.data) from None

    def array(self):
        """Return all rows as an array-like; a table with other axes than two is refused later."""
        table = self.table
        if table is None or isinstance(self.data, np.memmap) or _is_large(table):
            return self.data
        return table.rows(0, len(table))

    def parts(self, n_rows):
        """Yield parts of the rows, each with the name of its place."""
        X, table = self.data, self.table
        if table is None and not (hasattr(X, "shape") or isinstance(X, list | tuple)):
            X = np.asarray(X)
        rows = getattr(X, "iloc", X)
        for first, last in _cut(_num_samples(X) if table is None else len(table), n_rows):
            part = rows[first:last] if table is None else table.rows(first, last)
            yield f"rows {first} to {last}", part


class _Source(Indexed):
    """Samples that are read in parts, and by a reader."""

    in_parts, is_lazy = True, False
    first_batch = None  # size of a stream's first batch, by which a checkpoint recognises it

    def __init__(self, data, reader=None):
        super().__init__()
        self.data, self.reader, self._seen = data, reader, {"n": 0}  # copies count together
        # Tensors (n_samples,) and (n_samples, 1): how often each sample counts, and what is added
        # to its natural parameter
        self.weight = self.offset = None

    def read_by(self, reader, batch_size):
        """Return this source of batches; the size is for samples that come one by one."""
        self.reader = reader
        return self

    def parts(self, n_rows):
        """Yield raw parts of the samples, each with the name of its place."""
        raise NotImplementedError

    def array(self):
        """Return all rows as an array-like.

        Raises
        ------
        TypeError
            If they come in batches, or one by one.
        """
        raise TypeError(
            f"X is a {type(self.data).__name__}, which is read in batches, and rows in memory are "
            "required. Pass an array."
        )

    @property
    def n_rows(self):
        """The number of rows, which weights and exposures have to match."""
        return len(self)

    def to(self, dtype):
        """Return this source; its next batches have another dtype."""
        self.reader.dtype = dtype
        return self

    @property
    def n_samples(self):
        """The number of samples; None before a stream was read."""
        return len(self)

    @property
    def n_seen(self):
        """The number of samples that were read at least once, in the longest of all passes."""
        return self._seen["n"]

    def count(self, n_seen):
        """Count samples that an earlier process has read."""
        self._seen["n"] = max(self._seen["n"], n_seen)

    def _note(self, batches):
        """Yield batches, and count their samples."""
        n_rows = 0
        for batch in batches:
            n_rows += len(batch.x)
            self._seen["n"] = max(self._seen["n"], n_rows)
            for name in ("weight", "offset"):
                if (numbers := getattr(self, name)) is not None:
                    batch = replace(batch, **{name: numbers[batch.keys.cpu()].to(batch.x)})
            yield batch

    def sample(self, n_components, seed):  # -> (n, n_features) on the device
        """Return a sample of all rows, to search in, or all of them if they are few.

        Parameters
        ----------
        n_components : int or None
            Number of atoms; None for the number of features.
        seed : int
            Seed of random places.
        """
        raise NotImplementedError

    def first(self, n_components):  # -> (n, n_features) on the device
        """Return rows that begin `partial_fit`: a sample, or the first batches of a stream."""
        return self.sample(n_components, 0)

    def _n_sampled(self, n_components):  # needs n_features, so after the first row
        m = self.reader.n_features
        p = n_components or m
        itemsize = torch.empty(0, dtype=self.reader.dtype).element_size()
        # the row, a copy in float64, two copies of codes with room, and correlations with atoms
        row = (itemsize + 8) * m + 24 * min(p, m + 8) + 8 * p
        wanted = max(_ROWS_OF_AN_ATOM * p, _LEAST_ROWS_OF_AN_ATOM * m, _LEAST_SAMPLE)
        return max(_LEAST_ROWS_OF_AN_ATOM * p, min(wanted, _SAMPLE_BYTES // row))


class TableRows(_Source):
    """Rows of a table (n_samples, n_features), read by contiguous blocks.

    Blocks are whole chunks of the table, if it has chunks. In an epoch they come in random order.
    Some 16 MiB of them make a window, and the rows of a window are shuffled.
    """

    def __init__(self, table, reader=None):
        super().__init__(table, reader)
        self.is_lazy = table.is_lazy
        row_bytes = 8 * table.shape[1]  # integers become floats
        self._most = max(1, _WINDOW_BYTES // row_bytes)
        n_chunks = max(1, _BLOCK_BYTES // row_bytes // table.chunk)
        self._block = min(table.chunk * n_chunks, self._most)
        self._n_in_window = max(1, self._most // self._block)

    def __len__(self):
        return len(self.data)

    def array(self):
        """Return all rows."""
        return self.data.rows(0, len(self))

    def parts(self, n_rows):
        """Yield parts of the rows, each with the name of its place."""
        for first, last in _cut(len(self), n_rows):
            yield f"rows {first} to {last}", self.data.rows(first, last)

    def sampled_positions(self, n_components, seed):  # -> (n,)
        """Return random places of equal parts of the table."""
        self._read(0, 1)
        n_rows = min(self._n_sampled(n_components), len(self))
        wanted = np.arange(n_rows)
        if n_rows < len(self):
            length = -(-n_rows // min(_PLACES, n_rows))  # of a place
            edges = np.linspace(0, len(self), -(-n_rows // length) + 1).astype(int)
            free = np.maximum(edges[1:] - edges[:-1] - length, 0)
            starts = edges[:-1] + np.random.default_rng(seed).integers(free + 1)
            wanted = np.unique(starts[:, None] + np.arange(length))[:n_rows]
        return to_tensor(wanted)

    def sample(self, n_components, seed):
        """Return the rows at `sampled_positions`."""
        wanted = to_numpy(self.sampled_positions(n_components, seed))
        together = min(self.data.chunk, self._most) if self.data.chunk > 1 else self._block
        sample, at = None, 0
        cuts = np.flatnonzero((np.diff(wanted) > 1) & (self.data.chunk == 1)) + 1
        cuts = np.union1d(cuts, np.flatnonzero(np.diff(wanted // together)) + 1)
        for rows in np.split(wanted, cuts):
            read = self._read(rows[0], rows[-1] + 1)[(rows - rows[0]).tolist()]
            if sample is None:
                sample = read.new_empty(len(wanted), read.shape[1])
            sample[at : at + len(read)] = read
            at += len(read)
        self._seen["n"] = max(self._seen["n"], len(sample))
        return sample.to(self.reader.device)

    def _order(self):  # -> first rows of the blocks (n_blocks,), seed of the order in windows
        starts = torch.arange(0, len(self), self._block, device="cpu")
        if self.generator is None:
            return starts, None
        order = torch.randperm(len(starts), generator=self.generator, device="cpu")
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        return starts[order], seed

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        return self._note(self.reader.on_device(self._cut(*self._order())))

    def samples(self, keys):
        """Return the rows at the given positions."""
        rows = [self._read(row, row + 1) for row in keys.tolist()]
        return torch.cat(rows).to(self.reader.device)

    def _read(self, first, last):  # -> (n, n_features)
        first, last = int(first), min(int(last), len(self))
        return self.reader(self.data.rows(first, last), f"rows {first} to {last}")

    def _windows(self, starts, seed):  # yields positions (n,) and rows (n, n_features)
        for number, window in enumerate(starts.split(self._n_in_window)):
            sizes = (len(self) - window).clamp_max(self._block)
            n_rows = int(sizes.sum())
            places = torch.arange(n_rows, device="cpu")  # places of rows in the order of reading
            if seed is not None:
                generator = torch.Generator().manual_seed(seed + number)
                order = torch.randperm(n_rows, generator=generator, device="cpu")
                places[order] = torch.arange(n_rows, device="cpu")
            found, rows = torch.empty_like(places), None
            for a, part in zip(window.tolist(), places.split(sizes.tolist())):
                read = self._read(a, a + len(part))
                if rows is None:
                    rows = read.new_empty(n_rows, read.shape[1])
                found[part], rows[part] = torch.arange(a, a + len(part), device="cpu"), read
            yield found, rows

    def _cut(self, starts, seed):  # yields positions (n,) and rows (n, n_features)
        keys = rows = None
        for found, read in read_ahead(self._windows(starts, seed)):
            if rows is not None and len(rows):
                n_missing = self.batch_size - len(rows)
                keys = torch.cat([keys, found[:n_missing]])
                rows = torch.cat([rows, read[:n_missing]])
                found, read = found[n_missing:], read[n_missing:]
                if len(rows) < self.batch_size:
                    continue
                yield keys, rows
            n_full = len(read) // self.batch_size * self.batch_size
            for first in range(0, n_full, self.batch_size):
                batch = slice(first, first + self.batch_size)
                yield found[batch], read[batch]
            keys, rows = found[n_full:].clone(), read[n_full:].clone()
        if rows is not None and len(rows):
            yield keys, rows


class NumberedSamples(_Source):
    """A dataset that returns samples by their positions."""

    def __len__(self):
        return len(self.data)

    def read_by(self, reader, batch_size):
        """Return this source of batches."""
        if len(self) and isinstance(row := self.data[0], dict):
            only_array(row, 1)  # raises before further samples are read
        return super().read_by(reader, batch_size)

    def parts(self, n_rows):
        """Yield parts of the samples, each with the name of its place."""
        yield from _named_batches(Loader(self.data, batch_size=n_rows))

    def sample(self, n_components, seed):
        """Return samples at random places of equal parts."""
        sample = self._rows(self.sampled_positions(n_components, seed))
        self._seen["n"] = max(self._seen["n"], len(sample))
        return sample.to(self.reader.device)

    def sampled_positions(self, n_components, seed):  # -> (n,)
        """Return the positions of the samples of `sample`, for any seed."""
        if not len(self):
            raise ValueError("X has no samples, its length is 0. Pass a dataset with samples.")
        self._rows(torch.zeros(1, dtype=torch.long, device="cpu"))
        return spread_rows(len(self), self._n_sampled(n_components))

    def batches(self):
        """Draw the order of an epoch, and return an iterator over its batches."""
        return self._note(super().batches())

    def read(self, parts):
        """Yield the samples with the numbers of each part."""
        return self.reader.on_device(zip(parts, self._read(parts)))

    def samples(self, keys):
        """Return the samples at the given positions."""
        return self._rows(keys).to(self.reader.device)

    def _rows(self, positions):  # (n,) -> (n, n_features)
        return torch.cat(list(self._read(positions.split(256))))

    def _read(self, batches):  # yields (n, n_features)
        sampler = [positions.tolist() for positions in batches]
        for positions, raw in zip(sampler, Loader(self.data, batch_sampler=sampler)):
            yield self.reader(raw, f"samples {positions[0]} ... {positions[-1]}")


class SparseRows(NumberedSamples):
    """Rows of a sparse array, of shape (n_samples, n_features), made dense one batch at a time."""

    def __len__(self):
        return self.data.shape[0]

    def array(self):
        """Return the sparse array, which is refused where a dense one is required."""
        return self.data

    def parts(self, n_rows):
        """Yield parts of the rows, each with the name of its place."""
        for first, last in _cut(len(self), n_rows):
            yield f"rows {first} to {last}", self.data[first:last].toarray()

    def _read(self, batches):
        for positions in batches:
            rows = self.data[np.asarray(positions)].toarray()
            yield self.reader(rows, f"rows {int(positions[0])} ... {int(positions[-1])}")


def _named_batches(batches):
    """Yield the rows of batches, each with the name of its batch."""
    number = None
    for number, raw in enumerate(batches):
        with part_of(where := f"batch {number}"):
            rows = without_labels(raw)
        yield where, rows
    if number is None:
        raise ValueError("X yields no batch, so there is nothing to encode. Pass at least one.")


class Stream(_Source):
    """Batches of an object that can be iterated again; samples are their own keys.

    A `DataLoader` shuffles by its own generator; other streams are not shuffled. A stream may yield
    one buffer again and again: its reader copies.
    """

    n_counted = None  # number of batches in a pass to the end

    def read_by(self, reader, batch_size):
        """Return this source of batches.

        Raises
        ------
        TypeError
            If the stream can be iterated only once.
        """
        if hasattr(self.data, "__next__"):
            raise once_only(f"X is a {type(self.data).__name__}, which")
        if isinstance(self.data, IterableDataset):  # it yields single samples
            self.data = Loader(self.data, batch_size=batch_size)
        reader.checks["copy"] = True
        return super().read_by(reader, batch_size)

    def parts(self, n_rows):
        """Yield the stream's own batches, each with its name."""
        X = self.data
        is_single = isinstance(X, IterableDataset)
        yield from _named_batches(Loader(X, batch_size=n_rows) if is_single else X)

    @property
    def n_rows(self):
        """Refuse weights and exposures of rows, since the number of rows is unknown."""
        raise _unnumbered(self.data)

    def for_training(self, batch_size, generator, *, shuffle):
        """Return this source; it has its own batches and its own order."""
        source = copy(self)
        source.batch_size, source.generator = batch_size, getattr(self.data, "generator", None)
        return source

    @property
    def n_batches(self):
        try:
            return len(self.data) or None  # it has yielded batches before
        except TypeError:  # its length is unknown before the end
            return None

    n_samples = None

    def _tensors(self):  # yields (n, n_features)
        batches, most, number = iter(self.data), self.n_batches, -1
        for number, raw in enumerate(islice(batches, most)):
            check_end(number)
            rows = self.reader(raw, f"batch {number}")
            self.first_batch = self.first_batch or len(rows)
            yield rows
        if self.first_batch is None:
            raise ValueError(
                "X yields no batch. Pass an object with an __iter__ that yields batches anew for "
                "every epoch."
            )
        self.n_counted = number + 1
        if self.n_counted == most and next(batches, self) is not self:
            warnings.warn(
                f"X has the length {most} and yields more batches: an epoch is the first {most}. "
                "Let __len__ return the number of all batches, or leave it out, to use all of a "
                "stream with an end.",
                stacklevel=users_level(),
            )

    def sample(self, n_components, seed):
        """Return rows of a reservoir: each row of the stream is in it with the same probability."""
        random, self.first_batch, kept, n_rows = np.random.default_rng(seed), None, [], 0
        reservoir = None
        for rows in self._tensors():
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
        self.n_samples, self._seen["n"] = n_rows, max(n_rows, self._seen["n"])
        sample = torch.cat(kept) if reservoir is None else reservoir
        return sample.to(self.reader.device)

    def first(self, n_components):
        """Return the first batches."""
        rows, n_rows, self.first_batch = [], 0, None
        for batch in self._tensors():
            rows.append(batch)
            n_rows += len(batch)
            if n_rows >= min(self._n_sampled(n_components), _FIRST_ROWS):
                break
        return torch.cat(rows).to(self.reader.device)

    def blocks(self, n_rows, generator):
        """Yield all samples once, some rows at a time, in their order."""
        waiting, n_waiting = [], 0
        for batch in self.batches():
            waiting.append(with_gaps(batch.x, batch.mask))
            n_waiting += len(batch.x)
            if n_waiting >= n_rows:
                *full, rest = torch.cat(waiting).split(n_rows)
                full, rest = ([*full, rest], rest[:0]) if len(rest) == n_rows else (full, rest)
                yield from (_as_block(x) for x in full)
                waiting, n_waiting = [rest.clone()], len(rest)
        if n_waiting:
            yield _as_block(torch.cat(waiting))

    def batches(self):
        """Return an iterator over the batches of an epoch."""
        numbered = enumerate(self.data)  # begins now: a loader may draw random numbers
        pairs = ((None, self.reader(raw, f"batch {i}")) for i, raw in numbered)
        return self._note(self.reader.on_device(pairs))

    def samples(self, keys):
        """Return the keys, which are the samples."""
        return keys


def _as_block(rows):
    return Samples(*split_missing(rows))


def is_stream(X):
    """Return whether X is an object of batches or of numbered samples, and no array."""
    if isinstance(X, Dataset | DataLoader):
        return True
    return (
        not isinstance(X, type)
        and hasattr(X, "__iter__")
        and not any(
            hasattr(X, name) for name in ("__array__", "__getitem__", "shape", "__dataframe__")
        )
    )


def _is_large(table):
    return not table.n_bytes <= tables.IN_MEMORY_BYTES


def check_exposure(exposure, n_samples, loss):  # -> (n_samples,) float64
    """Check the exposures of samples, of this number.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each sample, or if the loss takes none.
    """
    if loss not in ("poisson", "kullback-leibler"):
        raise ValueError(
            f"exposure is for loss='poisson' and for PoissonNMF, but loss={loss!r}. Pass no "
            "exposure."
        )
    try:
        values = np.asarray(host_array(exposure), dtype=np.float64)
    except (TypeError, ValueError):  # not numbers
        values = np.empty(0)
    if values.shape != (n_samples,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"exposure={' '.join(f'{exposure!r:.60}'.split())} is not an array of {n_samples} "
            f"positive numbers. Pass a positive number for each of the {n_samples} rows of X, and "
            "leave out samples that were not observed."
        )
    return values


def refuse_shuffled(X):
    """Raise ValueError for a loader that shuffles, for results with a row for each sample."""
    if not isinstance(X, DataLoader):
        return
    sampler = getattr(X.batch_sampler, "sampler", X.sampler)
    random = RandomSampler | SubsetRandomSampler | WeightedRandomSampler
    if isinstance(sampler, random) or getattr(sampler, "shuffle", False) is True:
        raise ValueError(
            f"X is a DataLoader that draws samples in random order, by a {type(sampler).__name__}, "
            "so that no row of the result belongs to a known sample. Pass one with shuffle=False, "
            "or its dataset."
        )


def _is_dataset(X):
    """Return whether X numbers its samples and is no sequence of Python."""
    if isinstance(X, Dataset):
        return not isinstance(X, IterableDataset)
    others = "shape", "keys", "index", "__array__"
    numbered = hasattr(X, "__len__") and hasattr(X, "__getitem__")
    return numbered and not any(hasattr(X, name) for name in others)


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
    InMemory, TableRows, SparseRows, NumberedSamples or Stream
        What X is.

    Raises
    ------
    TypeError, ValueError
        If it is no data: a text, a dictionary, a function, a list of batches.
    """
    refuse_texts(X)
    X = unpacked(X)
    if is_in_memory(X):
        return InMemory(X)
    if sparse.issparse(X):
        if learner is None or get_tags(learner).input_tags.sparse:
            return SparseRows(sparse.csr_array(X))
        return InMemory(X)
    if (table := table_of(X)) is not None:
        two_axes = len(table.shape) == 2
        return TableRows(table) if two_axes and _is_large(table) else InMemory(X, table)
    if _is_dataset(X):
        return NumberedSamples(X)
    return Stream(X) if is_stream(X) else InMemory(X)
