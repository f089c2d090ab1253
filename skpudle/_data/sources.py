"""Read rows from arrays, files and streams, and hold them as `Samples` for a fit.

A *source of samples* is an object with the number of rows ``n_samples``, and a method
``blocks(n_rows, generator)``, for the batches of an epoch. The method yields all samples once as
`Samples`, ``n_rows`` at a time, in a random order if there is a generator. `Samples`, which hold
rows in memory with their masks, targets and weights, are a source themselves.

`open_source` decides what a user's X is: `InMemory` for arrays, `Table` for numbered rows outside
memory, and `Stream` for batches without row numbers. A table is any object with a shape and slices
that is not a dense array in memory: a memory map, a dataset of HDF5, an array of zarr or dask, a
slice of a safetensors file, a sparse array, or a dataset of Hugging Face with one column of arrays.
A dataset of torch is also a table, whose samples are read one by one. A small table is read at
once, a large table in blocks of rows.

The methods ``array`` and ``parts`` of these three give raw rows, unchecked and of the user's type.
After a call of ``read_for``, ``samples`` yields all rows as checked `Samples` in their order, to
encode or to score. Tables and streams also have ``sample``, which returns the random sample of all
rows from which a fit begins, and are sources of samples. (For arrays the source is the `Samples`
that hold all rows.)

The sample of a table comes from positions all over the table. The sample of a stream is drawn in
one pass: each row gets a random number, and the rows with the smallest numbers are the sample.

A fit to a sample of weight 2 equals a fit to the same sample twice, and a sample of weight 0 equals
an absent sample, in any order of samples. For this a `fit` merges equal rows in memory into one row
with the sum of their weights. If the distinct rows then have different weights, the fit also sorts
them by their contents, so that random draws of rows are the same in both fits. Otherwise distinct
rows stay in their order.
"""

from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import isnan, prod
from operator import length_hint

import numpy as np
import torch
from scipy import sparse
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _num_samples,
)
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from skpudle._compilation import blocks_of_rows
from skpudle._data import arrays
from skpudle._data.arrays import split_missing, to_numpy, to_tensor, with_gaps
from skpudle._rows import Rows, hash_rows, own

# `open_source`: X is in memory if it has one of the attributes _OF_MEMORY, by which data frames and
# arrays of other libraries are recognised, or one of the types _IN_MEMORY.
_OF_MEMORY = "__dataframe__", "iloc", "__array_namespace__"
_IN_MEMORY = np.ndarray | torch.Tensor | list | tuple

# A table of at most this number of bytes, in its own dtype, is read as a whole, like an array. A
# larger table is read in parts, to bound the memory.
IN_MEMORY_BYTES = 2**28

# Reading single rows of a table in random order would be slow. So contiguous blocks of _BLOCK_BYTES
# are read from random positions of the table, and blocks of together _WINDOW_BYTES form a window,
# in which rows are shuffled. Both numbers are for rows in float64.
_WINDOW_BYTES = 2**24
_BLOCK_BYTES = 2**20

# Number of rows of the sample that a fit begins with: 500 rows per atom, at least 2**14 and 8 rows
# per feature, at most what fits into 96 MiB with the copies that a search makes, and never fewer
# than 8 rows per atom. 500 rows per atom use each atom about 2,000 times if a row uses four atoms.
_ROWS_OF_AN_ATOM = 500
_LEAST_ROWS_OF_AN_ATOM = 8
_LEAST_SAMPLE = 2**14
# The sample of a table is read from at most this number of positions: fewer reads are faster. It is
# large enough that even a group of 1 % of the rows, stored together, has 20 of these positions.
_POSITIONS = 2048
# For `partial_fit` the sample of a stream comes from its first batches, which together have at
# least this number of rows, or the size of the sample if that is smaller. So the stream is not read
# to its end before learning begins.
_FIRST_ROWS = 2**14

# `scale_weights` takes weights as equal if they differ from their mean 1 by at most this, which
# rounding explains.
_SAME = {torch.float64: 1e-12, torch.float32: 1e-6}


# ------------------------------------------------------------------ samples in memory


def send(tensor, device):
    """Copy a tensor of any shape to a device, without waiting until a GPU has its copy.

    From the CPU to a GPU the tensor is first copied to pinned memory, since only from there the
    copy to the GPU runs while Python goes on.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Batches:
    """The batches of every epoch of training by gradients, in a new random order for each epoch.

    Parameters
    ----------
    source : Samples, Table or Stream
        All samples; any source of samples, in the sense of the module.
    batch_size : int, default=1
        Number of samples in a batch; the last batch of an epoch may be smaller.
    generator : torch.Generator, default=None
        Draws the orders; by default samples come in their own order. For a stream the attribute
        ``generator`` is that of the user's `DataLoader` instead, or None.
    """

    def __init__(self, source, batch_size=1, generator=None):
        self.source = source
        # Checkpoints save the state of ``self.generator``, so that a resumed fit gets the same
        # batches. It must be the DataLoader's own generator if X is one, since that one shuffles.
        self.generator = getattr(source, "generator", generator)
        self.batch_size = min(batch_size, source.n_samples or batch_size)

    @property
    def n_batches(self):
        """The number of batches of an epoch; None for a stream that has not been read before."""
        n_samples = self.source.n_samples
        return n_samples and -(-n_samples // self.batch_size)

    def batches(self):
        """Return an iterator over the batches of an epoch, which are `Samples`."""
        return self.source.blocks(self.batch_size, self.generator)


@dataclass(frozen=True, eq=False)
class Samples(Rows):
    """Rows, images or signals in memory, with the mask, target and weight of each.

    ``samples[rows]`` selects samples, by an index, mask or slice of all four tensors. ``x`` may
    share the memory of the user's data, so no code may change ``x`` in place.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    mask : Tensor of the shape of ``x``, default=None
        1 where data are known, 0 where they are missing.
    target : Tensor of shape (n_samples, ...), default=None
        What a learner knows of each sample beside its features, such as a label or an exposure.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in sums over samples; None is once. In a `fit` weights are
        divided by their mean (`scale_weights`).
    """

    x: Tensor
    mask: Tensor | None = None
    target: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self):
        return len(self.x)

    n_samples = property(__len__)

    def map(self, function):
        """Return `Samples` with a function applied to each tensor: data, mask, target and weight.

        Tensors that are None stay None.
        """
        parts = vars(self).values()
        return Samples(*(None if part is None else function(part) for part in parts))

    def __getitem__(self, rows):
        return self.map(lambda part: part[rows])

    def after(self, earlier):  # -> Samples
        """Concatenate the `Samples` ``earlier`` and these samples, on the device of these samples.

        Missing entries of ``x`` get the column means of all rows of the result. If only one of the
        two has weights, samples of the other have weight 1. Both must have targets, or neither.
        """
        earlier = earlier.to(self.x.device)
        target = None
        weight = None
        x, mask = split_missing(
            torch.cat(
                [with_gaps(earlier.x, earlier.mask), with_gaps(self.x, self.mask)]
            )
        )
        if self.target is not None:
            target = torch.cat([earlier.target, self.target])
        if earlier.weight is not None or self.weight is not None:
            weight = torch.cat([earlier.each_weight(), self.each_weight()])
        return Samples(x, mask, target, weight)

    def each_weight(self):  # -> (n_samples,)
        """Return the weights, which are ones if there are none, in the dtype of the data."""
        return self.weigh(self.x.new_ones(len(self)))

    def of_features(self, features):
        """Return the same rows with some of their features, chosen by the indices (k,).

        Targets and weights of the rows stay as they are.
        """
        mask = None if self.mask is None else self.mask[:, features]
        return replace(self, x=self.x[:, features], mask=mask)

    def in_units(self, units):
        """Convert rows to units of their noise, in which a fit computes.

        The baseline is subtracted, the difference is divided by the noise, and outliers become
        missing entries. ``units`` is an object of `skpudle._units.Units`.
        """
        if units.changes_nothing:
            return self
        x, mask, _ = units.enter(self.x, self.mask)
        return replace(self, x=x, mask=mask)

    def to(self, target):  # -> Samples
        """Return the samples in another dtype or on another device: `Tensor.to` of all tensors."""
        return self.map(lambda part: part.to(target))

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in random order if there is a generator.

        If all samples fit into one block, they come in their order, and nothing is drawn.
        """
        order = torch.arange(len(self), device="cpu")
        if generator is not None and n_rows < len(self):
            order = torch.randperm(len(self), generator=generator, device="cpu")
        for rows in send(order, self.x.device).split(n_rows):
            yield self.map(lambda part, rows=rows: part.index_select(0, rows))


# ------------------------------------------------------------------ weights


def merge_copies(keys, weight, heights=None):  # -> (k,), (k,), (n,)
    """Merge rows with equal keys, and drop rows of weight 0.

    A fit with weights must equal a fit with repeated rows, so it must draw the same random rows. It
    draws rows by their index. So the order of the result must not depend on how often a row is
    repeated.

    Parameters
    ----------
    keys : Tensor of shape (n_samples,)
        Numbers that depend on the contents of rows alone, equal for equal rows; see `hash_rows`.
    weight : Tensor of shape (n_samples,)
        Weights, not negative.
    heights : Tensor of shape (n_samples,), default=None
        Numbers by which distinct rows are sorted if their weights differ; by default the keys.

    Returns
    -------
    rows : Tensor of shape (k,)
        Index of the first copy of each distinct row. The indices are in the order of heights, or in
        increasing order if all distinct rows have the same weight.
    weight : Tensor of shape (k,)
        For each distinct row the sum of the weights of its copies.
    merged_index : Tensor of shape (n_samples,)
        For each row the index into ``rows`` of the distinct row that equals it, and -1 for a row of
        weight 0.
    """
    weight = to_numpy(weight)
    present = np.flatnonzero(weight > 0)
    _, first, inverse = np.unique(
        to_numpy(keys)[present], return_index=True, return_inverse=True
    )
    rows = present[first]
    sums = np.bincount(inverse, weight[present])
    if (sums == sums[:1]).all():
        order = rows.argsort()
    else:
        heights = to_numpy(keys if heights is None else heights)
        order = heights[rows].argsort(kind="stable")
    merged_index = np.full(len(keys), -1)
    merged_index[present] = order.argsort()[inverse]
    return to_tensor(rows[order]), to_tensor(sums[order]), to_tensor(merged_index)


def merge_samples(samples):  # -> Samples, (n,)
    """Merge equal samples into one sample with the sum of their weights, for a fit in memory.

    Samples are equal if their known entries, their missing entries and their targets are equal.

    Returns
    -------
    samples : Samples
        Distinct samples with a weight above 0, in the order of `merge_copies`.
    merged_index : Tensor of shape (n_samples,)
        For each sample the index of its distinct sample, and -1 for a sample of weight 0.
    """
    keys = hash_rows(samples.x, samples.mask)
    if samples.target is not None:
        # Equal data with different targets must not merge, so a hash of the targets is added to the
        # hash of the data. The factor makes the sum change if the two hashes are swapped; it is
        # odd, so that no bits of the hash are lost modulo 2**64.
        hashes = hash_rows(samples.target.to(samples.x.dtype))
        keys = -0x61C8864680B583EB * keys + hashes
    weight = samples.each_weight().cpu().double()
    # A change of the data's unit must not change the order of rows. It changes hashes arbitrarily,
    # so rows are sorted by a linear combination of their entries instead. Its factors are roots of
    # 2, 3, 4 and so on: with these factors different rows seldom have equal sums, even if entries
    # are integers.
    x = samples.x if samples.mask is None else samples.x * samples.mask
    factors = torch.arange(2, 2 + x.shape[1], dtype=torch.float64, device="cpu").sqrt()
    heights = x.cpu().double() @ factors
    rows, weight, merged_index = merge_copies(keys, weight, heights)
    if len(rows) == len(samples) and samples.weight is None:
        return samples, merged_index
    samples = replace(samples[rows.to(samples.x.device)], weight=weight.to(samples.x))
    # Missing entries hold the column means of all rows, which depend on how often rows are
    # repeated. So they get the means of the distinct rows.
    if samples.mask is not None:
        x, mask = split_missing(with_gaps(samples.x, samples.mask))
        samples = replace(samples, x=x, mask=mask)
    return samples, merged_index


def scale_weights(weight, n, total=own):  # -> Tensor (n,) or None, float or None
    """Divide weights of samples by their mean, so that a fit does not depend on their unit.

    Parameters
    ----------
    weight : Tensor of shape (n,) or None
        Weights; None if all are 1.
    n : int
        Number of samples of this process.
    total : callable, default=own
        ``total(*tensors)`` returns the sums of tensors over all processes that train together, each
        on its own samples.

    Returns
    -------
    weight : Tensor of shape (n,) or None
        Weights of mean 1 over all processes; None if all are equal up to rounding.
    mean : float or None
        The mean that the weights were divided by; None if no process has weights.
    """
    host_tensor = partial(torch.tensor, dtype=torch.float64, device="cpu")
    if not any(total(host_tensor(float(weight is not None)))):
        return None, None
    if weight is None:
        weight = torch.ones(n, dtype=torch.float64, device="cpu")
    (sums,) = total(host_tensor([float(weight.double().sum()), float(n)]))
    total_weight, n_samples = sums.tolist()
    weight = weight * (n_samples / total_weight)
    differ = ((weight - 1).abs() > _SAME[weight.dtype]).any()
    (any_differ,) = total(differ.cpu().double())
    return weight if any_differ else None, total_weight / n_samples


def drop_absent(samples):  # -> Samples
    """Drop samples of weight 0, which count as absent, and drop the weights if all are then 1."""
    if samples.weight is None:
        return samples
    samples = samples[samples.weight > 0]
    has_weights = bool((samples.weight != 1).any())
    return samples if has_weights else replace(samples, weight=None)


# ------------------------------------------------------------------ pictures instead of rows


def _neighbours_agree(x):  # (n, m) -> bool
    """Return whether entries of neighbouring rows correlate as strongly as pixels of pictures.

    `looks_like_picture` calls this function for the rows and for the columns of X.
    """
    x = x - x.mean(axis=0)
    # The limit of 0.5 lies between the correlations measured in pictures and in samples: of
    # neighbouring pixels at least 0.69 in 13 pictures, and of rows of samples at most 0.44, along
    # one axis of images of digits that were sorted by class.
    return (x[1:] * x[:-1]).sum() > 0.5 * np.linalg.norm(x[1:]) * np.linalg.norm(x[:-1])


def looks_like_picture(X):
    """Return whether a user's X looks like one grey picture, not like rows of samples.

    A matrix in memory looks like a picture if both sides are at least 16, the longer side at most 4
    times the shorter, if it holds unsigned integers or the few different floats from 0 to 1 that
    they give, and if neighbouring entries are similar along both axes. Samples in random order are
    not similar to their neighbours, and spectra in the order of time have many different floats.
    The result is False for X of any other form.
    """
    if not isinstance(X, np.ndarray | torch.Tensor) or isinstance(X, np.memmap):
        return False
    shape = X.shape
    if len(shape) != 2 or min(shape) < 16 or max(shape) > 4 * min(shape):
        return False
    # a part is enough, and takes less time
    corner = arrays.host_array(X[:512, :512])
    kind = corner.dtype.kind
    corner = corner.astype(np.float64)
    is_grey = kind == "u"
    if kind == "f" and corner.min() >= 0 and corner.max() <= 1:
        # The mean of three colours of 8 bits has 766 different values.
        is_grey = len(np.unique(corner)) <= min(766, corner.size // 4)
    return bool(is_grey and _neighbours_agree(corner) and _neighbours_agree(corner.T))


def warn_or_refuse(text, *, surely):
    """Report input that is probably wrong: raise ValueError if ``surely`` is True, else warn.

    ``text`` is the message.
    """
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
    has_integers = "uint" in str(X.dtype)
    advice = "X.astype(float)" if has_integers else "sklearn.utils.shuffle(X)"
    warn_or_refuse(
        f"X looks like one grey picture, and each of its {rows} rows would be a sample of "
        f"{columns} features. Pass its patches, skpudle.images.extract(X); if rows are samples, "
        f"pass {advice}.",
        surely=has_integers,
    )


# ------------------------------------------------------------------ sources


def _only_array(row, ndim):
    """Return the name and the array of a dict's only array with ``ndim`` dimensions.

    Rows and batches of datasets of Hugging Face are dicts ``row``, with an entry for each column.

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
    """Return the rows (n, n_features) of ``raw``, a batch from a stream or table, without labels.

    The rows are the batch itself; or the first entry of a pair of rows and labels; or the only
    matrix of a dict. A sparse matrix becomes dense.
    """
    if isinstance(raw, dict):
        return _only_array(raw, 2)[1]
    if isinstance(raw, tuple | list) and len(raw) and np.ndim(raw[0]) == 2:
        raw = raw[0]
    return raw.toarray() if sparse.issparse(raw) else raw


def _collate(samples):
    """Stack an iterable of single samples of a torch dataset into one batch.

    Return None if there are no samples. The batch is on the CPU, where rows of other sources are,
    and not on the default device that a user may have set in torch.
    """
    with torch.device("cpu"):
        samples = list(samples)
        return default_collate(samples) if samples else None


def _regroup(parts, size):
    """Cut and join `Samples` with any numbers of rows into batches of ``size`` rows each.

    ``parts`` is an iterable of `Samples`. Yield `Samples` with the rows in the same order; the last
    batch may have fewer rows.
    """
    rest = None
    for part in parts:
        part = part if rest is None else part.after(rest)
        ends = range(size, len(part), size)
        for end in ends:
            yield part[end - size : end]
        # a view would keep all of part in memory
        rest = part[size * len(ends) :].map(torch.clone)
    if rest is not None:
        yield rest


class InMemory:
    """The rows of a user's array-like in memory, and the base of `Table` and `Stream`.

    Call `read_for` first: it says what a learner requires. The methods `convert`, `converted` and
    `samples` then check rows and convert them to tensors. All rows get the dtype of the first rows.
    The number and names of features have to agree with the first rows, or with a fitted learner.
    """

    in_parts = (
        False  # whether rows are read and processed in parts, to bound the memory
    )
    _must_copy = False  # whether checked rows must not share the memory of the user's

    def __init__(self, data):
        self.data = data

    @property
    def n_rows(self):
        """The number of rows, which weights and exposures have to match."""
        return _num_samples(self.data)

    def array(self):
        """Return all rows, unchecked and in the user's container."""
        return self.data

    def _raw(self, first, last):  # -> rows first to last - 1, in the user's container
        return _safe_indexing(self.data, slice(first, last))

    def parts(self, n_rows):
        """Yield all rows, unchecked and in the user's container, at most ``n_rows`` at a time."""
        # Data without rows give one empty part, so that the caller's checks see and refuse it.
        for rows in blocks_of_rows(self.n_rows, 1, n_rows):
            yield self._raw(rows.start, rows.stop)

    def read_for(
        self,
        learner,
        device=None,
        *,
        is_fitted=False,
        dtype=None,
        weight=None,
        target=None,
        largest=None,
        allow_nan=True,
    ):
        """Set what a learner requires of rows; call this method before all that check rows.

        Parameters
        ----------
        learner : estimator
            The learner; messages of errors and warnings have the name of its class.
        device : torch.device, default=None
            Device of samples. By default samples stay where their rows are, arrays on the CPU.
        is_fitted : bool, default=False
            Whether the learner is fitted, so that rows must have its number and names of features.
        dtype : torch.dtype, default=None
            The dtype of all rows; None is that of the first rows.
        weight : Tensor of shape (n_samples,), default=None
            How often each sample counts; None is once.
        target : Tensor of shape (n_samples, ...), default=None
            What the learner knows of each sample beside its features, such as labels.
        largest : float, default=None
            If not None, numbers in rows must be from 0 to this number.
        allow_nan : bool, default=True
            Whether rows may have NaN, for missing entries.

        Returns
        -------
        InMemory, Table or Stream
            This source.
        """
        self.device = device
        self.dtype = dtype
        self._is_fitted = is_fitted
        self.weight = weight
        self.target = target
        self._learner = learner
        self._largest = largest
        self._allow_nan = allow_nan
        # The first rows set names of features in a copy of an unfitted learner, so that a fit that
        # fails leaves the learner unchanged.
        self._named = learner if is_fitted else copy(learner)
        return self

    @property
    def attributes(self):
        """The fitted attributes ``n_features_in_`` and ``feature_names_in_``, as a dict.

        A value is None as long as no rows have been checked, or if the rows have no names.
        """
        names = "n_features_in_", "feature_names_in_"
        return {name: getattr(self._named, name, None) for name in names}

    def convert(self, rows):  # -> Tensor (n, n_features); arrays go to the CPU
        """Check raw rows (n, n_features) and convert them; the first rows set the dtype of all.

        Raises
        ------
        ValueError, TypeError
            If the rows are no matrix of finite numbers, or not what `read_for` requires, or if
            their features differ from those of the first rows or of the learner.
        """
        is_first = self.dtype is None and not self._is_fitted
        _check_feature_names(self._named, rows, reset=is_first)
        x = arrays.check_rows(
            rows,
            estimator=self._learner,
            largest=self._largest,
            copy=self._must_copy,
            allow_nan=self._allow_nan,
        )
        _check_n_features(self._named, x, reset=is_first)
        if self._is_fitted and np.shape(self._named.components_)[1:] != x.shape[1:]:
            # A user may have set components_ since the fit. Without an error, scores would silently
            # compare only the columns that both X and components_ have.
            raise ValueError(
                f"components_ has the shape {np.shape(self._named.components_)}, and X has "
                f"{x.shape[1]} features. Set components_ back, or fit again."
            )
        x = to_tensor(x, x.device, self.dtype)
        self.dtype = x.dtype
        return x

    def converted(self, n_rows):  # yields (n, n_features)
        """Yield all rows in their order, checked.

        Rows in memory and small tables come in one tensor, large tables ``n_rows`` at a time.
        """
        yield from map(
            self.convert, self.parts(n_rows) if self.in_parts else [self.array()]
        )

    def samples(self, n_rows):  # yields Samples
        """Yield all rows in their order, as `converted` does, with their weights and targets."""
        first = 0
        for x in self.converted(n_rows):
            yield self.make_samples(x, slice(first, first := first + len(x)))

    def make_samples(self, x, keys=slice(None)):  # -> Samples
        """Return checked rows ``x`` (n, n_features) as `Samples`, on the device set by `read_for`.

        ``keys``, a slice or an array (n,), are the numbers of the rows in the user's X. They select
        the targets and weights that belong to ``x``.
        """
        target = None if self.target is None else self.target[keys].to(x)
        weight = None if self.weight is None else self.weight[keys].to(x)
        # Missing entries are found before the copy to a GPU: on a GPU the test for NaN would make
        # the CPU wait until the copy and the test are done.
        x, mask = split_missing(x)
        samples = Samples(x, mask, target, weight)
        if self.device is None:
            return samples
        return samples.map(lambda part: send(part, self.device))


def _sample_size(x, n_components):  # (n, n_features) -> int
    """Return the number of rows of the sample that a fit from a table or stream begins with.

    ``x`` are any rows of the data, of which only the number of features and the dtype matter.
    ``n_components`` is the number of atoms; None stands for the number of features.
    """
    m = x.shape[1]
    p = n_components or x.shape[1]
    # The bytes that a search needs for a row: the row and a copy in float64, two copies of its
    # sparse code (with room for 8 codes more than features), and its products with all atoms.
    row_bytes = (x.element_size() + 8) * m + 24 * min(p, m + 8) + 8 * p
    wanted = max(_ROWS_OF_AN_ATOM * p, _LEAST_ROWS_OF_AN_ATOM * m, _LEAST_SAMPLE)
    return max(_LEAST_ROWS_OF_AN_ATOM * p, min(wanted, 3 * 2**25 // row_bytes))


class Table(InMemory):
    """A source of numbered rows outside memory, which are read in contiguous blocks.

    A block consists of whole chunks, if the table is stored in chunks (as in HDF5 or zarr). In an
    epoch the blocks come in random order. About 16 MiB of blocks form a *window*, and the rows
    within a window are shuffled.

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
        # A table that is not known to be small must be read in parts. Dask may not know its number
        # of rows; the product is then NaN, the comparison False, and in_parts True.
        self.in_parts = (
            len(shape) == 2 and not prod(shape) * itemsize <= IN_MEMORY_BYTES
        )
        # The shape of the chunks in which the table is stored: an attribute ``shards`` in zarr,
        # ``chunksize`` in dask, ``chunks`` in HDF5. The first number is that of rows.
        self._chunk_rows = 1
        for name in ("shards", "chunksize", "chunks"):
            stored = getattr(data, name, None)
            if isinstance(stored, tuple) and stored and isinstance(stored[0], int):
                self._chunk_rows = max(1, stored[0])
                break
        # 8 bytes a number, since integers become float64
        row_bytes = max(1, 8 * prod(shape[1:]))
        self._window_rows = max(1, _WINDOW_BYTES // row_bytes)
        n_chunks = max(1, _BLOCK_BYTES // row_bytes // self._chunk_rows)
        self._block_rows = min(self._chunk_rows * n_chunks, self._window_rows)

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
        if isinstance(self.data, Dataset):  # a dataset of torch, which has no slices
            rows = _collate(self.data[number] for number in range(first, last))
        else:
            rows = self.data[first:last]
        rows = _without_labels(rows)
        if len(rows) != last - first:
            raise ValueError(
                f"Rows {first} to {last} of X, a {type(self.data).__name__}, are {len(rows)} "
                "rows. Pass a table that has the number of rows of its shape until it is read."
            )
        return rows

    def _read(self, keys):  # (n,) ascending -> (n, n_features)
        """Return checked rows by their numbers ``keys``.

        Few large reads are faster than many small ones. So rows of a block that lie in the same
        chunk or in neighbouring chunks are read at once, together with the rows between them, which
        are dropped.
        """
        ends = (np.diff(keys // self._chunk_rows) > 1) | (
            np.diff(keys // self._block_rows) > 0
        )
        start = 0
        x = None
        for run in np.split(keys, np.flatnonzero(ends) + 1):
            read = self.convert(self._raw(int(run[0]), int(run[-1]) + 1))
            x = read.new_empty(len(keys), read.shape[1]) if x is None else x
            x[start : (start := start + len(run))] = read[run - run[0]]
        return x

    def sample(self, n_components, seed, *, whole=True):  # -> Samples
        """Return the random sample of rows that a fit begins with; all rows if they are few.

        The table is cut into equal parts, and the sample has a run of neighbouring rows from a
        random position of each part. `_sample_size` gives the number of rows for ``n_components``
        atoms (an int, or None), and ``seed`` is an int. ``whole`` has an effect for streams only.
        """
        n_rows = min(_sample_size(self._read(np.arange(1)), n_components), self.n_rows)
        keys = np.arange(n_rows)
        if n_rows < self.n_rows:
            length = -(-n_rows // min(_POSITIONS, n_rows))  # rows of a run
            edges = np.linspace(0, self.n_rows, -(-n_rows // length) + 1).astype(int)
            slack = np.maximum(edges[1:] - edges[:-1] - length, 0)
            starts = edges[:-1] + np.random.default_rng(seed).integers(slack + 1)
            keys = np.unique(starts[:, None] + np.arange(length))[:n_rows]
        return self.make_samples(self._read(keys), keys)

    def blocks(self, n_rows, generator=None):
        """Yield all samples once, ``n_rows`` at a time, in random order if there is a generator."""
        order = np.arange
        # A single draw from the generator seeds the order of the whole epoch. So the state of the
        # generator, which checkpoints save, is the same at every batch of the epoch.
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
            order = np.random.default_rng(seed).permutation
        return _regroup(self._windows(order), n_rows)

    def _windows(self, order):  # yields Samples
        """Yield all rows as samples, one window of blocks after the other.

        ``order(n)`` returns an array of the numbers 0 to n - 1, ascending or in random order. It is
        called for the order of the blocks, and then for the order of the rows in each window.
        """
        starts = order(-(-self.n_rows // self._block_rows)) * self._block_rows
        n_blocks = max(1, self._window_rows // self._block_rows)
        for window in np.split(starts, range(n_blocks, len(starts), n_blocks)):
            keys = (np.sort(window)[:, None] + np.arange(self._block_rows)).ravel()
            keys = keys[keys < self.n_rows]
            shuffled = order(len(keys))
            yield self.make_samples(self._read(keys)[shuffled], keys[shuffled])


def _with_smallest(size, parts, draws):  # -> [Tensor (size, n_features)], (size,)
    """Keep the ``size`` rows with the smallest random numbers, for the sample of a stream.

    ``parts`` is a list of tensors (n, n_features), and ``draws`` an array with a random number for
    each row of all parts. Return the kept rows, in their order, in a list of one tensor, and the
    random numbers of the kept rows. If there are no more than ``size`` rows, all are kept.
    """
    rows = torch.cat(parts)
    if size >= len(draws):
        return [rows], draws
    chosen = np.sort(np.argpartition(draws, size)[:size])
    return [rows[chosen]], draws[chosen]


class Stream(InMemory):
    """A source of batches without row numbers, from an object that is iterated anew for each epoch.

    The rows come in the order of the object: a `DataLoader` shuffles by its own generator, and
    other streams are not shuffled. If the object has a length, an epoch ends after this number of
    batches, or earlier if the iteration ends.
    """

    in_parts = True
    n_samples = None  # largest number of rows read in a pass so far; None before the first batch

    def array(self):
        """Raise TypeError: a stream has neither all rows at once nor a known number of rows."""
        raise TypeError(
            f"X is a {type(self.data).__name__}, and numbered rows are required, as for y, "
            "sample_weight and exposure. Pass an array, or each batch with its own to partial_fit."
        )

    n_rows = property(array)  # raises the same TypeError

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
        samples = iter(self.data)
        batches = samples
        if isinstance(self.data, IterableDataset):
            batches = iter(lambda: _collate(islice(samples, n_rows)), None)
        length = length_hint(self.data) or None
        n_batches = 0
        for raw in islice(batches, length):
            n_batches += 1
            yield _without_labels(raw)
        if not n_batches:
            raise ValueError(
                "X yields no batch. Pass data with samples, which start anew in every iteration."
            )
        if n_batches == length and next(batches, self) is not self:
            arrays.warn(
                f"X has the length {length} and yields more batches, which are left out. Let "
                "__len__ return the number of all batches of a stream with an end."
            )

    def converted(self, n_rows=256):  # yields (n, n_features)
        """Yield the checked rows of each batch of the stream, and count rows in ``n_samples``.

        ``n_rows`` is the size of batches for streams that yield single samples, see `parts`. Errors
        are those of `convert`, with a note that has the number of the batch.
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
        pass suffices. `_sample_size` gives the number of rows for ``n_components`` atoms (an int,
        or None), and ``seed`` is an int. Without ``whole``, for `partial_fit`, the sample comes
        from the first batches, and the rest of the stream is not read.

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
        # kept rows must not change if the stream reuses its memory
        self._must_copy = True
        random = np.random.default_rng(seed)
        kept = []
        draws = np.empty(0)
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
        """Yield all samples once, ``n_rows`` at a time, in the order of the stream.

        ``generator`` has no effect: a stream decides on its own order.
        """
        return _regroup(map(self.make_samples, self.converted()), n_rows)


def refuse_shuffled(X):
    """Raise ValueError if X is a `DataLoader` that shuffles.

    Call this function where results have a row for each sample of X, as codes do: after shuffling,
    nobody could say which row belongs to which sample.
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
    """Choose the class that reads a user's X: as an array, a table or a stream, see the module.

    Nothing is read here but the first sample of a dataset, for its shape. Any other X, a text for
    example, becomes an `InMemory`, whose checks of rows then raise an error.

    Raises
    ------
    TypeError
        If X is a dataset of torch whose samples cannot be stacked.
    ValueError
        If X is an image with a palette, or a dataset without exactly one column of arrays.
    """
    X = sparse.csr_array(X) if sparse.issparse(X) else arrays.unpacked(X)
    is_array = isinstance(X, _IN_MEMORY) or any(hasattr(X, name) for name in _OF_MEMORY)
    if is_array and not isinstance(X, np.memmap):
        return InMemory(X)
    if isinstance(getattr(X, "column_names", None), list):  # a dataset of Hugging Face
        name, first = _only_array(X[0], 1)
        X = X.select_columns([name]) if hasattr(X, "select_columns") else X
        return Table(X, (len(X), len(first)), np.asarray(first).itemsize)
    if hasattr(X, "get_shape"):  # a slice of a safetensors file
        return Table(X, tuple(X.get_shape()))
    is_table = all(hasattr(X, name) for name in ("__getitem__", "shape", "dtype"))
    if is_table and len(X.shape):
        return Table(X, tuple(X.shape), getattr(X.dtype, "itemsize", 8))
    if isinstance(X, Dataset) and not isinstance(X, IterableDataset):
        first = _without_labels(_collate([X[0]]))
        return Table(X, (len(X), *np.shape(first)[1:]))
    has_rows = any(hasattr(X, name) for name in ("__getitem__", "__array__", "shape"))
    is_stream = hasattr(X, "__iter__") and not has_rows
    return Stream(X) if is_stream or isinstance(X, IterableDataset) else InMemory(X)
