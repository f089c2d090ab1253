"""Read rows from arrays, files and streams: `open_source` decides what a user's X is.

There are three kinds of source: `InMemory` for arrays, `Table` for numbered rows outside memory,
and `Stream` for batches without row numbers. A table is any object with a shape and slices that is
no array in memory: a memory map, a dataset of HDF5, an array of zarr or dask, a slice of a
safetensors file, a sparse array, or a dataset of Hugging Face with one column of arrays. A dataset
of torch is also a table, whose samples are read one by one. A small table is read at once, a large
table in blocks of rows.

The methods ``array`` and ``parts`` of a source give raw rows, unchecked and of the user's type.
After a call of ``read_for``, ``samples`` yields all rows as checked `Samples` in their order, to
encode or to score. Tables and streams also have ``sample``, which returns the random sample of all
rows from which a fit begins, and ``blocks``, which yields the batches of an epoch. (A fit in memory
takes batches from `Samples` that hold all rows.)

The sample of a table comes from positions all over the table. For the sample of a stream each row
draws a random number in one pass, and the rows with the smallest numbers are the sample.
"""

from copy import copy
from itertools import islice
from math import isnan, prod
from operator import length_hint
from os import PathLike

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_feature_names, _check_n_features, _num_samples
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from skpudle._compilation import blocks_of_rows
from skpudle._data import arrays, batches

# X is in memory if it has one of these attributes of arrays and data frames, or one of these types.
_OF_MEMORY = "__dataframe__", "iloc", "__array_namespace__"
_IN_MEMORY = np.ndarray | torch.Tensor | list | tuple

# A table of at most this number of bytes, in its own dtype, is read at once.
IN_MEMORY_BYTES = 2**28

# Rows of a table are shuffled within a window of this number of bytes, in float64, since single
# rows are slow to read. A window consists of contiguous blocks, of _BLOCK_BYTES each, from random
# positions of the table.
_WINDOW_BYTES = 2**24
_BLOCK_BYTES = 2**20

# Number of rows of the sample that a fit begins with: 500 rows per atom, at least 2**14, at most
# what fits into 96 MiB with the copies that a search makes, and never fewer than 8 rows per atom.
# 500 rows are about 2,000 uses of each atom if a row uses four atoms.
_ROWS_OF_AN_ATOM, _LEAST_ROWS_OF_AN_ATOM = 500, 8
_LEAST_SAMPLE = 2**14
# The sample of a table is read from at most this number of positions. A group of 1 % of the rows
# that are stored together still has 20 of these positions.
_PLACES = 2048
# For `partial_fit` the sample of a stream comes from its first batches, which together have at
# least this number of rows, or the size of the sample if that is smaller. So the stream is not read
# to its end before learning begins.
_FIRST_ROWS = 2**14


def refuse_texts(X):
    """Raise TypeError if X is a text or a list of texts, such as names of files."""
    first = X[0] if isinstance(X, list | tuple) and len(X) else X
    if isinstance(first, str | bytes | PathLike):
        raise TypeError(
            f"X holds the text {str(first)!r:.80}, and files are not opened here. Pass what they "
            "hold: numpy.load(path), pandas.read_csv(path), or PIL.Image.open(path)."
        )


def _neighbours_agree(x):  # (n, m) -> bool
    """Return whether entries of neighbouring rows correlate as strongly as pixels of pictures."""
    x = x - x.mean(axis=0)
    # The limit of 0.5 lies between pictures and samples. Neighbouring pixels of 13 pictures have
    # correlations of at least 0.69. The largest correlation found in rows of samples is 0.44, along
    # one axis of digits sorted by class.
    return (x[1:] * x[:-1]).sum() > 0.5 * np.linalg.norm(x[1:]) * np.linalg.norm(x[:-1])


def looks_like_picture(X):
    """Return whether an array or tensor X looks like one grey picture, not like rows of samples.

    A matrix looks like a picture if its longer side is at most 4 times its shorter side, if it
    holds unsigned integers or numbers from 0 to 1, and if neighbouring entries are similar along
    both axes. Samples in random order are not similar to their neighbours.
    """
    in_memory = isinstance(X, np.ndarray | torch.Tensor) and not isinstance(X, np.memmap)
    shape = tuple(X.shape) if in_memory else ()
    if len(shape) != 2 or min(shape) < 16 or max(shape) > 4 * min(shape):
        return False
    corner = arrays.host_array(X[:512, :512])
    kind, corner = corner.dtype.kind, corner.astype(np.float64)
    in_units = kind == "u" or (kind == "f" and corner.min() >= 0 and corner.max() <= 1)
    return bool(in_units and _neighbours_agree(corner) and _neighbours_agree(corner.T))


def warn_or_refuse(text, *, surely):
    """Report probably wrong input: raise ValueError if it is ``surely`` wrong, else warn."""
    if surely:
        raise ValueError(text)
    arrays.warn(text)


def check_no_picture(X):
    """Refuse X, the input of a learner of rows, if it looks like one grey picture.

    Raises
    ------
    ValueError
        If X looks like a picture and holds unsigned integers.

    Warns
    -----
    UserWarning
        If X looks like a picture and holds numbers from 0 to 1.
    """
    if not looks_like_picture(X):
        return
    rows, columns = X.shape
    warn_or_refuse(
        f"X looks like one grey picture, and each of its {rows} rows would be a sample of "
        f"{columns} features. Pass its patches, skpudle.images.extract(X); if rows are samples, "
        "pass X.astype(float) instead of integers, or sklearn.utils.shuffle(X).",
        surely="uint" in str(X.dtype),
    )


def _only_array(row, ndim):
    """Return the name and the array of a dict's only array with ``ndim`` dimensions.

    Datasets of Hugging Face have rows that are dicts, one entry for each column.

    Raises
    ------
    ValueError
        If the dict has no such array, or more than one.
    """
    names = [name for name, value in row.items() if np.ndim(value) == ndim]
    if len(names) != 1:
        raise ValueError(
            f"A row of X is a dictionary with {len(names)} arrays, {names}. Select one of them, as "
            "ds.with_format('numpy').select_columns(['embedding']) of a dataset of Hugging Face."
        )
    return names[0], row[names[0]]


def _without_labels(raw):
    """Return the rows (n, n_features) of a batch from a stream or table, without labels.

    The rows are the batch itself, its first entry if it is a pair of rows and labels, or the only
    matrix of a dict. A sparse matrix becomes dense.
    """
    if isinstance(raw, dict):
        return _only_array(raw, 2)[1]
    raw = raw[0] if isinstance(raw, tuple | list) and len(raw) and np.ndim(raw[0]) == 2 else raw
    return raw.toarray() if sparse.issparse(raw) else raw


def _collate(samples):
    """Stack single samples of a torch dataset into one batch, or return None without samples.

    The batch is on the CPU, where rows of other sources are, and not on torch's default device.
    """
    with torch.device("cpu"):
        samples = list(samples)
        return default_collate(samples) if samples else None


def _regroup(parts, size):
    """Cut and join `Samples` with any numbers of rows into batches of ``size`` rows each.

    ``parts`` is an iterable of `Samples`. Batches are `Samples`, with the rows in the same order;
    the last batch may have fewer rows.
    """
    rest = None
    for part in parts:
        part = part if rest is None else part.after(rest)
        ends = range(size, len(part), size)
        for end in ends:
            yield part[end - size : end]
        rest = part[size * len(ends) :].map(torch.clone)  # a view would keep all of part in memory
    if rest is not None:
        yield rest


class InMemory:
    """The source of an array-like in memory, and the base of `Table` and `Stream`.

    After `read_for`, rows are checked and become tensors. All get the dtype of the first rows.
    Number and names of features have to agree with the first rows, or with a fitted learner.
    """

    in_parts = False  # whether a fit reads the source in parts, to bound the memory

    def __init__(self, data):
        self.data = data

    @property
    def n_rows(self):
        """The number of rows, which weights and exposures have to match."""
        return _num_samples(self.data)

    def array(self):
        """Return all rows, unchecked and in the user's container."""
        return self.data

    def _raw(self, first, last):
        return _safe_indexing(self.data, slice(first, last))

    def parts(self, n_rows):
        """Yield all rows, unchecked and in the user's container, at most ``n_rows`` at a time."""
        # Data without rows give one empty part, so that the caller's checks see and refuse it.
        for rows in blocks_of_rows(self.n_rows, 1, n_rows):
            yield self._raw(rows.start, rows.stop)

    def read_for(
        self, learner, device=None, *, known=False, dtype=None, weight=None, target=None, **checks
    ):
        """Set what a learner requires of rows; call it before all methods that check rows.

        Parameters
        ----------
        learner : estimator
            The learner; errors and warnings name its class.
        device : torch.device, default=None
            Device of samples. By default samples stay where their rows are, arrays on the CPU.
        known : bool, default=False
            Whether the learner is fitted, so that rows must have its number and names of features.
        dtype : torch.dtype, default=None
            The dtype of all rows; None is that of the first rows.
        weight : Tensor of shape (n_samples,), default=None
            How often each sample counts; None is once.
        target : Tensor of shape (n_samples, ...), default=None
            What the learner knows of each sample beside its features, such as labels.
        **checks : dict
            Keyword arguments of `skpudle._data.arrays.check_rows`.

        Returns
        -------
        InMemory, Table or Stream
            This source.
        """
        self.device, self.dtype, self._known = device, dtype, known
        self.weight, self.target = weight, target
        self._checks = checks | {"estimator": learner}
        # The first rows set names of features in a copy of an unfitted learner, so that a fit that
        # fails leaves the learner unchanged.
        self._named = learner if known else copy(learner)
        return self

    @property
    def attributes(self):
        """``n_features_in_`` and ``feature_names_in_`` as a dict, None where unknown."""
        names = "n_features_in_", "feature_names_in_"
        return {name: getattr(self._named, name, None) for name in names}

    def convert(self, rows):  # -> Tensor (n, n_features); arrays go to the CPU
        """Check raw rows (n, n_features) and convert them; the first rows set the dtype of all.

        Raises
        ------
        ValueError, TypeError
            As in `check_rows`, or if the features differ from the first rows or from the learner.
        """
        is_first = self.dtype is None and not self._known
        _check_feature_names(self._named, rows, reset=is_first)
        x = arrays.check_rows(rows, **self._checks)
        _check_n_features(self._named, x, reset=is_first)
        if self._known and np.shape(self._named.components_)[1:] != x.shape[1:]:
            # A user may have set components_ since the fit. Without an error, scores would silently
            # compare only the columns that both X and components_ have.
            raise ValueError(
                f"components_ has the shape {np.shape(self._named.components_)}, and X has "
                f"{x.shape[1]} features. Set components_ back, or fit again."
            )
        x = arrays.to_tensor(x, x.device, self.dtype)
        self.dtype = x.dtype
        return x

    def converted(self, n_rows):  # yields (n, n_features)
        """Yield all rows in their order, checked.

        Rows in memory and small tables come in one tensor, large tables ``n_rows`` at a time.
        """
        yield from map(self.convert, self.parts(n_rows) if self.in_parts else [self.array()])

    def samples(self, n_rows):  # yields Samples
        """Yield all rows in their order, as `converted` does, with their weights and targets."""
        first = 0
        for x in self.converted(n_rows):
            yield self.make_samples(x, slice(first, first := first + len(x)))

    def make_samples(self, x, keys=slice(None)):  # -> Samples
        """Return checked rows ``x`` (n, n_features) as `Samples`, on the device set by `read_for`.

        ``keys``, a slice or an array (n,), are the numbers of the rows in X: the indices of their
        targets and weights.
        """
        given = (self.target, self.weight)
        of_rows = (None if part is None else part[keys].to(x) for part in given)
        # Missing entries are found before the copy to a GPU, because after the copy the host would
        # have to wait for the GPU's answer.
        x, mask = arrays.split_missing(x)
        samples = batches.Samples(x, mask, *of_rows)
        if self.device is None:
            return samples
        return samples.map(lambda part: batches.send(part, self.device))


def _sample_size(x, n_components):  # (n, n_features) -> int
    """Return the number of rows of the sample that a fit from a table or stream begins with.

    ``x`` are any rows of the data, of which only the number of features and the dtype matter.
    ``n_components`` is the number of atoms; None stands for the number of features.
    """
    m, p = x.shape[1], n_components or x.shape[1]
    # Bytes per row in a search: the row, a copy in float64, two copies of its sparse code with
    # spare room, and its correlations with all atoms.
    row = (x.element_size() + 8) * m + 24 * min(p, m + 8) + 8 * p
    wanted = max(_ROWS_OF_AN_ATOM * p, _LEAST_ROWS_OF_AN_ATOM * m, _LEAST_SAMPLE)
    return max(_LEAST_ROWS_OF_AN_ATOM * p, min(wanted, 3 * 2**25 // row))


class Table(InMemory):
    """A source of numbered rows outside memory, which are read in contiguous blocks.

    A block consists of whole chunks of the table, if the table is stored in chunks. In an epoch the
    blocks come in random order. About 16 MiB of blocks form a window, and the rows within a window
    are shuffled.

    Parameters
    ----------
    data : object
        The table, or a dataset of torch or Hugging Face.
    shape : tuple of int
        Shape of the table, (n_samples, n_features); n_samples is NaN where dask does not know it.
    itemsize : int, default=8
        Bytes of one number of the table.
    """

    def __init__(self, data, shape, itemsize=8):
        super().__init__(data)
        self.shape = shape
        # Dask may not know its number of rows. The product is then NaN, and since comparisons with
        # NaN are false, in_parts is True.
        self.in_parts = len(shape) == 2 and not prod(shape) * itemsize <= IN_MEMORY_BYTES
        # The shape of a stored chunk is called shards in zarr, chunksize in dask, chunks in HDF5.
        stored = (getattr(data, name, None) for name in ("shards", "chunksize", "chunks"))
        stored = (one[0] for one in stored if isinstance(one, tuple) and len(one))
        self._chunk = max(1, next((n for n in stored if isinstance(n, int)), 1))
        row_bytes = max(1, 8 * prod(shape[1:]))  # in float64, which integers become
        self._most = max(1, _WINDOW_BYTES // row_bytes)
        n_chunks = max(1, _BLOCK_BYTES // row_bytes // self._chunk)
        self._block = min(self._chunk * n_chunks, self._most)

    @property
    def n_rows(self):
        """The number of rows, which weights and exposures have to match."""
        # if dask does not know the number of rows, len raises dask's error, which says what to do
        return len(self.data) if isnan(self.shape[0]) else self.shape[0]

    n_samples = property(lambda self: self.n_rows)

    def array(self):
        """Return all rows, unchecked and in the table's type."""
        return self._raw(0, self.n_rows)

    def _raw(self, first, last):
        """Return the rows from ``first`` to ``last - 1``, unchecked and in the table's type."""
        if isinstance(self.data, Dataset):  # of torch: it returns single samples
            found = _collate(self.data[number] for number in range(first, last))
        else:
            found = self.data[first:last]
        found = _without_labels(found)
        if len(found) != last - first:
            raise ValueError(
                f"Rows {first} to {last} of X, a {type(self.data).__name__}, are {len(found)} "
                "rows. Pass a table that has the number of rows of its shape until it is read."
            )
        return found

    def _read(self, keys):  # (n,) ascending -> (n, n_features)
        """Return checked rows by their numbers ``keys``.

        Rows in neighbouring chunks of one block are read at once, with the rows between them.
        """
        ends = (np.diff(keys // self._chunk) > 1) | (np.diff(keys // self._block) > 0)
        start, x = 0, None
        for run in np.split(keys, np.flatnonzero(ends) + 1):
            read = self.convert(self._raw(int(run[0]), int(run[-1]) + 1))
            x = read.new_empty(len(keys), read.shape[1]) if x is None else x
            x[start : (start := start + len(run))] = read[run - run[0]]
        return x

    def sample(self, n_components, seed, *, whole=True):  # -> Samples
        """Return the random sample of rows that a fit begins with; all rows if they are few.

        The table is cut into equal parts, and the sample has a run of neighbouring rows from a
        random position of each part. `_sample_size` gives the size for ``n_components`` atoms, and
        ``seed`` is an int. ``whole`` matters for streams only.
        """
        n_rows = min(_sample_size(self._read(np.arange(1)), n_components), self.n_rows)
        keys = np.arange(n_rows)
        if n_rows < self.n_rows:
            length = -(-n_rows // min(_PLACES, n_rows))
            edges = np.linspace(0, self.n_rows, -(-n_rows // length) + 1).astype(int)
            free = np.maximum(edges[1:] - edges[:-1] - length, 0)
            starts = edges[:-1] + np.random.default_rng(seed).integers(free + 1)
            keys = np.unique(starts[:, None] + np.arange(length))[:n_rows]
        return self.make_samples(self._read(keys), keys)

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in random order if there is a generator."""
        order = np.arange
        # One draw from the generator seeds a whole epoch: its state does not depend on whether the
        # epoch ends early.
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
            order = np.random.default_rng(seed).permutation
        return _regroup(self._windows(order), n_rows)

    def _windows(self, order):  # yields Samples
        """Yield all rows as samples, one window of blocks after the other.

        ``order(n)`` returns the numbers 0 to n - 1 in any order. It determines the order of the
        blocks, and then the order of the rows in each window.
        """
        starts = order(-(-self.n_rows // self._block)) * self._block
        n_blocks = max(1, self._most // self._block)
        for window in np.split(starts, range(n_blocks, len(starts), n_blocks)):
            keys = (np.sort(window)[:, None] + np.arange(self._block)).ravel()
            keys = keys[keys < self.n_rows]
            places = order(len(keys))
            yield self.make_samples(self._read(keys)[places], keys[places])


def _with_smallest(size, parts, draws):  # -> [Tensor (size, n_features)], (size,)
    """Keep the ``size`` rows with the smallest random numbers, for the sample of a stream.

    ``parts`` is a list of tensors (n, n_features), and ``draws`` an array with a random number for
    each of their rows. Return the kept rows, in their order, in a list of one tensor, and their
    random numbers.
    """
    rows = torch.cat(parts)
    chosen = np.sort(np.argpartition(draws, size)[:size]) if size < len(draws) else slice(None)
    return [rows[chosen]], draws[chosen]


class Stream(InMemory):
    """A source of batches without row numbers, from an object that is iterated anew for each epoch.

    The rows come in the order of the object: a `DataLoader` shuffles by its own generator, and
    other streams are not shuffled. If the object has a length, an epoch ends after this number of
    batches, or earlier if the iteration ends.
    """

    in_parts = True
    n_samples = None  # the number of rows of the longest pass so far, None before the first batch

    def array(self):
        """Raise TypeError: a stream has neither all rows at once nor a known number of rows."""
        raise TypeError(
            f"X is a {type(self.data).__name__}, and numbered rows are required, as for y, "
            "sample_weight and exposure. Pass an array, or each batch with its own to partial_fit."
        )

    n_rows = property(array)

    @property
    def generator(self):
        """The torch generator by which a `DataLoader` shuffles, or None."""
        return getattr(self.data, "generator", None)

    def parts(self, n_rows):
        """Yield the rows (n, n_features) of each batch of the stream, unchecked.

        The stream decides on the size of its batches. Only an `IterableDataset`, which yields
        single samples, gets batches of ``n_rows`` samples.

        Raises
        ------
        ValueError
            If the stream yields no batch.

        Warns
        -----
        UserWarning
            If the stream yields more batches than its length.
        """
        given = samples = iter(self.data)
        if isinstance(self.data, IterableDataset):
            given = iter(lambda: _collate(islice(samples, n_rows)), None)
        length, n_batches = length_hint(self.data) or None, 0
        for raw in islice(given, length):
            n_batches += 1
            yield _without_labels(raw)
        if not n_batches:
            raise ValueError(
                "X yields no batch. Pass data with samples, which start anew in every iteration."
            )
        if n_batches == length and next(given, self) is not self:
            arrays.warn(
                f"X has the length {length} and yields more batches, which are left out. Let "
                "__len__ return the number of all batches of a stream with an end."
            )

    def converted(self, n_rows=256):  # yields (n, n_features)
        """Yield the checked rows of each batch.

        Errors are those of `convert`, with a note that has the number of the batch.
        """
        n_read = 0
        for number, rows in enumerate(self.parts(n_rows)):
            try:
                x = self.convert(rows)
            except (TypeError, ValueError) as error:
                error.add_note(f"In batch {number} of X, counted from 0.")
                raise
            n_read += len(x)
            self.n_samples = max(self.n_samples or 0, n_read)
            yield x

    def sample(self, n_components, seed, *, whole=True):  # -> Samples
        """Return the random sample of rows that a fit begins with, all rows equally probable.

        Each row draws a random number, and the rows with the smallest numbers are kept, so that one
        pass suffices. `_sample_size` gives the size for ``n_components`` atoms, and ``seed`` is an
        int. Without ``whole``, for `partial_fit`, the sample comes from the first batches.

        Raises
        ------
        TypeError
            If the stream can be iterated only once.
        """
        if hasattr(self.data, "__next__"):
            raise TypeError(
                f"X is a {type(self.data).__name__}, which can be iterated only once. Pass one "
                "whose __iter__ starts anew each time, or call partial_fit for every batch."
            )
        self._checks["copy"] = True  # a stream may overwrite the batch that it has yielded
        random, kept, draws = np.random.default_rng(seed), [], np.empty(0)
        for rows in self.converted():
            size = _sample_size(rows, n_components)
            kept.append(rows)
            draws = np.append(draws, random.random(len(rows)))
            if len(draws) > 2 * size:
                kept, draws = _with_smallest(size, kept, draws)
            if not whole and len(draws) >= min(size, _FIRST_ROWS):
                break
        kept, _ = _with_smallest(size, kept, draws)
        return self.make_samples(kept[0])

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in the order of the stream."""
        return _regroup(map(self.make_samples, self.converted()), n_rows)


def refuse_shuffled(X):
    """Raise ValueError if X is a `DataLoader` that shuffles.

    Call it where results have a row for each sample of X: after shuffling, nobody could say which
    row belongs to which sample.
    """
    if isinstance(X, DataLoader):
        sampler = getattr(X.batch_sampler, "sampler", X.sampler)
        kind = type(sampler).__name__
        if "Random" in kind or getattr(sampler, "shuffle", False) is True:
            raise ValueError(
                f"X is a DataLoader that draws samples in random order, by a {kind}. Pass one with "
                "shuffle=False, or its dataset."
            )


def open_source(X):  # -> InMemory, Table or Stream
    """Decide from which kind of source a user's X is read.

    Nothing is read here but the first sample of a dataset, for its shape.

    Raises
    ------
    TypeError, ValueError
        If X is a text, an image with a palette, or a dataset without exactly one column of arrays.
    """
    refuse_texts(X)
    X = sparse.csr_array(X) if sparse.issparse(X) else arrays.unpacked(X)
    is_array = isinstance(X, _IN_MEMORY) or any(hasattr(X, name) for name in _OF_MEMORY)
    if is_array and not isinstance(X, np.memmap):
        return InMemory(X)
    if isinstance(getattr(X, "column_names", None), list):  # Hugging Face
        name, first = _only_array(X[0], 1)
        X = X.select_columns([name]) if hasattr(X, "select_columns") else X
        return Table(X, (len(X), len(first)), np.asarray(first).itemsize)
    if hasattr(X, "get_shape"):  # safetensors
        return Table(X, tuple(X.get_shape()))
    if all(hasattr(X, name) for name in ("__getitem__", "shape", "dtype")) and len(X.shape):
        return Table(X, tuple(X.shape), getattr(X.dtype, "itemsize", 8))
    if isinstance(X, Dataset) and not isinstance(X, IterableDataset):
        first = _without_labels(_collate([X[0]]))
        return Table(X, (len(X), *np.shape(first)[1:]))
    has_rows = any(hasattr(X, name) for name in ("__getitem__", "__array__", "shape"))
    is_stream = hasattr(X, "__iter__") and not has_rows
    return Stream(X) if is_stream or isinstance(X, IterableDataset) else InMemory(X)
