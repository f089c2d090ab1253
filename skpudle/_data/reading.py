"""Read users' batches into tensors; errors name the batch."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names
from torch.utils.data import DataLoader

from skpudle._data.arrays import check_rows, split_missing, to_tensor, with_gaps
from skpudle._data.batches import Samples
from skpudle._data.tables import only_array


class Loader(DataLoader):
    """A loader on the host, whatever torch's default device is.

    Torch's loader draws a seed and makes batches of numbers on the default device. A new generator
    for that seed leaves the global one alone.
    """

    def __init__(self, data, **options):
        super().__init__(data, generator=torch.Generator(), **options)

    def __iter__(self):
        with torch.device("cpu"):
            return _drawn_on_the_host(super().__iter__())


def _drawn_on_the_host(batches):
    while True:
        with torch.device("cpu"):
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch  # outside the block, under the user's default device


def without_labels(raw):
    """Return the rows of a batch: dense, without labels, or the one array of a dictionary."""
    if sparse.issparse(raw):
        return raw.toarray()
    if isinstance(raw, dict):
        return only_array(raw, 2)[1]
    return raw[0] if isinstance(raw, tuple | list) and len(raw) and np.ndim(raw[0]) == 2 else raw


@contextmanager
def part_of(where):
    """Name a part of the user's input in errors about it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"In {where} of X: {error}") from error


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
        self.checks = checks
        self.dtype = self.n_features = None
        # the copy takes the names of the first batch, and the learner stays as it is
        self._named, self._known = BaseEstimator() if learner is None else copy(learner), known

    @property
    def names(self):
        """The names of features, or None."""
        return getattr(self._named, "feature_names_in_", None)

    def __call__(self, raw, where):  # -> (n, n_features) on the host, or the device if it was there
        is_first = self.n_features is None
        with part_of(where):
            rows = without_labels(raw)
            _check_feature_names(self._named, rows, reset=is_first and not self._known)
            x = check_rows(rows, **self.checks)
        there = isinstance(x, torch.Tensor) and x.device == self.device
        x = x if there else to_tensor(x)
        self.dtype, self.n_features = self.dtype or x.dtype, self.n_features or x.shape[1]
        if x.shape[1] != self.n_features:
            raise ValueError(
                f"{where.capitalize()} of X has {x.shape[1]} features, expected {self.n_features} "
                "as before. Pass batches with the same features."
            )
        return x.to(self.dtype)

    def on_device(self, pairs):
        """Yield batches from pairs of keys and rows; from the host a GPU gets them one ahead."""
        # the host looks for gaps; for a GPU to find them it would have to wait
        parts = ((keys, *split_missing(x)) for keys, x in pairs)
        if self.device.type == "cuda":
            parts = _copied_ahead(parts, self.device)
        for part in parts:
            keys, x, mask = (t if t is None else t.to(self.device) for t in part)
            yield Samples(x, mask, keys=with_gaps(x, mask) if keys is None else keys)


def read_ahead(parts):
    """Yield parts; a thread reads the next one while this one is in use."""
    parts, end = iter(parts), object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, parts, end)
        while (part := following.result()) is not end:
            following = pool.submit(next, parts, end)
            yield part


def _copied_ahead(parts, device):
    """Copy from pinned memory on a separate stream, while the batch before is in use."""
    stream, ahead = torch.cuda.Stream(device), None

    def copy_of(tensor):
        if tensor is None or tensor.device == device:
            return tensor
        return tensor.pin_memory().to(device, non_blocking=True)

    def ready(tensors, copied):
        present = torch.cuda.current_stream(device)
        present.wait_event(copied)
        for tensor in tensors:
            if tensor is not None:
                tensor.record_stream(present)
        return tensors

    for part in parts:
        with torch.cuda.stream(stream):
            following = [copy_of(tensor) for tensor in part], stream.record_event()
        if ahead is not None:
            yield ready(*ahead)
        ahead = following
    if ahead is not None:
        yield ready(*ahead)
