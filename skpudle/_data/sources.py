"""Data outside memory: memory maps, datasets of torch, sparse arrays, and streams of batches.

Each is a source of batches (see `skpudle._data.batches`), `Indexed` except for streams.
`open_source` chooses the source for a user's input, and `skpudle._data.reading` makes tensors of
its batches.
"""

from copy import copy

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.validation import _num_samples
from torch.utils.data import DataLoader, Dataset, IterableDataset

from skpudle._data.arrays import host_array, refuse_batches
from skpudle._data.batches import Indexed, once_only
from skpudle._data.reading import Loader, Reader, part_of, without_labels

__all__ = [
    "MappedRows",
    "SparseRows",
    "check_exposure",
    "comes_in_parts",
    "is_stream",
    "open_source",
    "parts_of",
]

# A smaller memory map is read at once, and gives the same bits as an array.
_IN_MEMORY_BYTES = 2**28
# A memory map is shuffled in windows of contiguous blocks from random places.
_WINDOW_BYTES = 2**26
_BLOCK_BYTES = 2**20
# Size of the head, to choose initial atoms and alpha from.
_HEAD_BYTES = 2**26
_HEAD_ROWS = 2**14


class _Source(Indexed):
    """Samples behind a reader."""

    first_batch = None  # size of a stream's first batch, by which a checkpoint recognises it

    def __init__(self, data, reader):
        super().__init__()
        self.data, self.reader = data, reader

    def to(self, dtype):
        """Return this source; its next batches have another dtype."""
        self.reader.dtype = dtype
        return self

    def head(self, least):  # -> (n, n_features) on the device
        """Return rows to choose initial atoms and alpha from, at least ``least`` if there are."""
        raise NotImplementedError

    def _head_rows(self, least):  # needs n_features, so one row must have been read
        return max(least, min(_HEAD_ROWS, _HEAD_BYTES // (8 * self.reader.n_features)))


class MappedRows(_Source):
    """Rows of a memory map (n_samples, n_features), read by contiguous blocks.

    In an epoch blocks come in random order. Some 64 MiB of them make a window, and the rows of a
    window are shuffled.
    """

    def __init__(self, data, reader):
        super().__init__(data, reader)
        row_bytes = max(data.strides[0], 8 * data.shape[1])  # integers become floats
        self._block = max(1, _BLOCK_BYTES // row_bytes)
        self._n_in_window = max(1, _WINDOW_BYTES // (row_bytes * self._block))

    def __len__(self):
        return len(self.data)

    def head(self, least):
        """Return blocks at regular distances."""
        self._read(0, 1)
        n_rows = min(self._head_rows(least), len(self))
        n_blocks = -(-n_rows // self._block)
        starts = np.linspace(0, max(len(self) - self._block, 0), n_blocks).astype(int)
        size = min(self._block, n_rows)
        return torch.cat([self._read(a, a + size) for a in starts.tolist()]).to(self.reader.device)

    def plan(self):  # -> first rows of the blocks (n_blocks,), seed of the order in windows
        starts = torch.arange(0, len(self), self._block, device="cpu")
        if self.generator is None:
            return starts, None
        order = torch.randperm(len(starts), generator=self.generator, device="cpu")
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        return starts[order], seed

    def batches(self, plan, start=0):
        """Yield the batches of an epoch."""
        return self.reader.on_device(self._cut(*plan, start * self.batch_size))

    def samples(self, keys):
        """Return the rows at the given positions."""
        rows = [self._read(row, row + 1) for row in keys.tolist()]
        return torch.cat(rows).to(self.reader.device)

    def _read(self, first, last):  # -> (n, n_features)
        return self.reader(np.array(self.data[first:last]), f"rows {first} to {last}")

    def _cut(self, starts, seed, skip):  # yields positions (n,) and rows (n, n_features)
        keys = rows = None
        for number, window in enumerate(starts.split(self._n_in_window)):
            sizes = (len(self) - window).clamp_max(self._block)
            n_rows = int(sizes.sum())
            if skip >= n_rows:
                skip -= n_rows
                continue
            found = [
                torch.arange(a, a + n, device="cpu")
                for a, n in zip(window.tolist(), sizes.tolist())
            ]
            found = torch.cat(found)
            read = [self._read(a, a + self._block) for a in window.tolist()]
            read = torch.cat(read)
            if seed is not None:
                generator = torch.Generator().manual_seed(seed + number)
                order = torch.randperm(n_rows, generator=generator, device="cpu")
                found, read = found[order], read[order]
            found, read, skip = found[skip:], read[skip:], 0
            if rows is not None:
                found, read = torch.cat([keys, found]), torch.cat([rows, read])
            n_full = len(read) // self.batch_size * self.batch_size
            for first in range(0, n_full, self.batch_size):
                batch = slice(first, first + self.batch_size)
                yield found[batch], read[batch]
            keys, rows = found[n_full:].clone(), read[n_full:].clone()
        if rows is not None and len(rows):
            yield keys, rows


class _Samples(_Source):
    """A dataset of torch that returns samples by their positions."""

    def __len__(self):
        return len(self.data)

    def head(self, least):
        """Return samples at regular distances."""
        return self._rows(self.head_positions(least)).to(self.reader.device)

    def head_positions(self, least):  # -> (n,)
        """Return the positions of the samples of the head."""
        if not len(self):
            raise ValueError("X has no samples, its length is 0. Pass a dataset with samples.")
        self._rows(torch.zeros(1, dtype=torch.long, device="cpu"))
        n_rows = min(self._head_rows(least), len(self))
        ends = 0, len(self) - 1
        return torch.linspace(*ends, n_rows, dtype=torch.float64, device="cpu").round().long()

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


class SparseRows(_Samples):
    """Rows of a sparse array, made dense one batch at a time.

    Parameters
    ----------
    data : scipy.sparse.csr_array of shape (n_samples, n_features)
        Data.
    reader : Reader
        Makes tensors.
    offset : Tensor of shape (n_samples, 1), default=None
        As in `Rows`.
    """

    def __init__(self, data, reader, *, offset=None):
        super().__init__(data, reader)
        self.offset = offset

    def __len__(self):
        return self.data.shape[0]

    def read(self, parts):
        """Yield the samples with the numbers of each part."""
        for batch in super().read(parts):
            offset = None if self.offset is None else self.offset.to(batch.x)[batch.keys]
            yield batch._replace(offset=offset)

    def _read(self, batches):
        for positions in batches:
            rows = self.data[np.asarray(positions)].toarray()
            yield self.reader(rows, f"rows {int(positions[0])} ... {int(positions[-1])}")


class _Stream(_Source):
    """Batches of an object that can be iterated again; samples are their own keys.

    A `DataLoader` shuffles by its own generator; other streams are not shuffled.
    """

    def for_training(self, batch_size, generator, *, shuffle):
        """Return this source; it has its own batches and its own order."""
        source = copy(self)
        source.batch_size, source.generator = batch_size, getattr(self.data, "generator", None)
        return source

    def plan(self):
        """Return None: there is no order to draw."""

    @property
    def n_batches(self):
        try:
            return len(self.data) or None  # it has yielded batches before
        except TypeError:  # only the end tells
            return None

    def head(self, least):
        """Return the first batches."""
        rows, n_rows = [], 0
        for number, raw in enumerate(self.data):
            rows.append(self.reader(raw, f"batch {number}"))
            self.first_batch = len(rows[0])
            n_rows += len(rows[-1])
            if n_rows >= self._head_rows(least):
                break
        if not rows:
            raise ValueError(
                "X yields no batch. Pass an object with an __iter__ that yields batches anew for "
                "every epoch."
            )
        return torch.cat(rows).to(self.reader.device)

    def batches(self, plan, start=0):
        """Return an iterator over the batches of an epoch."""
        batches = iter(self.data)
        for _ in range(start):  # now, not lazily with the next batch: it may draw numbers
            next(batches, None)
        numbered = enumerate(batches, start)
        return self.reader.on_device((None, self.reader(raw, f"batch {i}")) for i, raw in numbered)

    def has(self, keys):
        """Return whether these are rows of finite numbers."""
        return keys.shape[1:] == (self.reader.n_features,) and bool(torch.isfinite(keys).all())

    def samples(self, keys):
        """Return the keys, which are the samples."""
        return keys


def is_stream(X):
    """Return whether X yields batches, or numbered samples, and is no array."""
    if isinstance(X, Dataset | DataLoader):
        return True
    return (
        not isinstance(X, type)
        and hasattr(X, "__iter__")
        and not any(
            hasattr(X, name) for name in ("__array__", "__getitem__", "shape", "__dataframe__")
        )
    )


def comes_in_parts(X, *, accept_sparse):
    """Return whether X is a stream, or sparse if accepted, and so never dense as a whole."""
    return is_stream(X) or (accept_sparse and sparse.issparse(X))


def check_exposure(exposure, X, loss):  # -> (n_samples,) float64, or None
    """Check the exposures of samples.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each row of an array, or if the loss takes none.
    """
    if exposure is None:
        return None
    if loss != "poisson":
        raise ValueError(f"exposure is for loss='poisson', but loss={loss!r}. Pass no exposure.")
    if is_stream(X):
        raise ValueError("exposure is for arrays of rows, but X is a stream. Pass it in parts.")
    n_samples = _num_samples(X)
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


def parts_of(X, n_rows):
    """Yield parts of X, each with the name of its place; a stream yields its own batches."""
    if sparse.issparse(X):
        X = sparse.csr_array(X)
        for start in range(0, max(X.shape[0], 1), n_rows):
            stop = min(start + n_rows, X.shape[0])
            yield f"rows {start} to {stop}", X[start:stop].toarray()
        return
    if not is_stream(X):
        refuse_batches(X)
        X = X if hasattr(X, "shape") or isinstance(X, list | tuple) else np.asarray(X)
        rows, n_samples = getattr(X, "iloc", X), _num_samples(X)
        for start in range(0, max(n_samples, 1), n_rows):  # yields an empty X too, to be refused
            stop = min(start + n_rows, n_samples)
            yield f"rows {start} to {stop}", rows[start:stop]
        return
    if isinstance(X, Dataset):
        X = Loader(X, batch_size=n_rows)
    number = None
    for number, raw in enumerate(X):
        with part_of(where := f"batch {number}"):
            rows = without_labels(raw)
        yield where, rows
    if number is None:
        raise ValueError("X yields no batch, so there is nothing to encode. Pass at least one.")


def open_source(X, device, *, batch_size, accept_sparse=False, offset=None, **checks):
    """Return a source for ``X``, or None if it is an array-like.

    Parameters
    ----------
    X : object
        The user's input.
    device : torch.device
        Device of the batches.
    batch_size : int
        For a `torch.utils.data.IterableDataset`, which yields single samples.
    accept_sparse : bool, default=False
        Whether a sparse array is a source.
    offset : Tensor of shape (n_samples, 1), default=None
        Added to the natural parameter of samples of a sparse array.
    **checks : dict
        Keyword arguments of `skpudle._data.arrays.check_rows`.

    Raises
    ------
    TypeError
        If ``X`` can be iterated only once.
    """
    reader = Reader(device, **checks)
    if sparse.issparse(X) and accept_sparse:
        return SparseRows(sparse.csr_array(X), reader, offset=offset)
    if isinstance(X, np.memmap):
        large = X.ndim == 2 and X.size * X.itemsize > _IN_MEMORY_BYTES
        return MappedRows(X, reader) if large else None
    if isinstance(X, IterableDataset):
        X = Loader(X, batch_size=batch_size)
    if isinstance(X, DataLoader):
        return _Stream(X, reader)
    if isinstance(X, Dataset):
        return _Samples(X, reader)
    if not is_stream(X):
        return None
    if hasattr(X, "__next__"):
        raise once_only(f"X is a {type(X).__name__}, which")
    return _Stream(X, reader)
