"""Codes of data of any size, part by part, so that what they need fits into memory."""

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from skpudle._data.arrays import (
    check_rows,
    handed_over,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
)
from skpudle._data.batches import Rows
from skpudle._data.reading import part_of
from skpudle._data.sources import check_exposure, comes_in_parts, parts_of
from skpudle.operators import DenseDictionary

__all__ = ["PART", "TransformsByParts", "in_chunks", "in_one_piece"]

# Rows of data that are not in memory that are encoded at a time, and of codes that are decoded.
PART = 8192


def _is_out_of_memory(error):
    kinds = MemoryError | torch.cuda.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def in_chunks(function, rows, device, size):
    """Yield ``function(x, mask, offset)`` of some `Rows`, of half as many out of memory."""
    given = rows.x, rows.mask, rows.offset
    start, size = 0, min(size, len(rows.x))
    while start < len(rows.x):
        part = slice(start, start + size)
        try:
            result = function(*(t if t is None else t[part].to(device) for t in given))
        except (MemoryError, RuntimeError) as error:
            if size == 1 or not _is_out_of_memory(error):
                raise
            size //= 2
            continue
        yield result
        start += size


def in_one_piece(chunks, n_rows, X):
    """Return results for chunks of rows as one array or tensor, where X is."""
    result, start = None, 0
    for chunk in chunks:
        if result is None:
            # once for all, where a list of parts would need the memory twice; and for an array
            # on the host, since all may not fit where a part of them does
            device = X.device if isinstance(X, torch.Tensor) else "cpu"
            result = chunk.new_empty(n_rows, chunk.shape[1], device=device)
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return handed_over(result, X)


def _wrong_shape(out, rows, codes):
    sizes = ", ".join(map(str, codes.shape[1:]))
    return ValueError(
        f"out has shape {tuple(out.shape)}, but {rows} have codes of shape {codes.shape}; pass "
        f"one of shape (n_samples, {sizes})."
    )


def _check_holds_codes(out, codes):
    if isinstance(out, torch.Tensor):
        holds = out.dtype.is_floating_point
    else:
        holds = np.can_cast(codes.dtype, getattr(out, "dtype", codes.dtype), "same_kind")
    if not holds:
        raise TypeError(
            f"out holds {out.dtype}, which would cut codes off; pass an array of floating-point "
            "numbers."
        )


class TransformsByParts:
    """What a transformer does with data that need not fit into memory."""

    def transform_into(self, X, out):
        """Encode data part by part, and write the codes into an array.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform` or, of any size, as for `fit`.
        out : array or Tensor of shape (n_samples, n_features_out)
            Takes codes by ``out[first:last] = codes``: an array, a memory map or a tensor of
            floating-point numbers.

        Returns
        -------
        array or Tensor
            ``out``.

        Raises
        ------
        TypeError
            If ``out`` is no array of floating-point numbers.
        ValueError
            If it has another shape than the codes.
        """
        return self._transform_into(X, out)

    def _transform_into(self, X, out, exposure=None):
        if not hasattr(out, "shape"):
            raise TypeError(
                f"out is a {type(out).__name__}; pass an array, a memory map or a tensor of shape "
                f"(n_samples, {self._n_features_out})."
            )
        start = 0
        for codes in self._codes_by_parts(X, exposure):
            rows = slice(start, start + len(codes))
            if codes.shape[1:] != tuple(out.shape[1:]) or rows.stop > out.shape[0]:
                raise _wrong_shape(out, f"rows {start} to {rows.stop}", codes)
            _check_holds_codes(out, codes)
            if isinstance(out, torch.Tensor):
                out.detach()[rows] = to_tensor(codes).to(out)
            else:
                out[rows] = codes
            start = rows.stop
        if start < out.shape[0]:
            raise _wrong_shape(out, f"X has {start} rows, which", codes)
        return out

    def transform_sparse(self, X):
        """Encode data part by part, and return only the codes that are not zero.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform` or, of any size, as for `fit`.

        Returns
        -------
        scipy.sparse.csr_array of shape (n_samples, n_features_out)
            Codes.

        Raises
        ------
        ValueError
            If codes are maps: a sparse array has rows and columns only.
        """
        return self._transform_sparse(X)

    def _transform_sparse(self, X, exposure=None):
        def compress(codes):
            if codes.ndim != 2:
                raise ValueError(
                    f"The codes of images are maps, here of shape {codes.shape[1:]}, but a CSR "
                    "array has rows and columns only. Pass images as rows, with image_shape, or "
                    "use transform_into."
                )
            return sparse.csr_array(codes)

        parts = self._codes_by_parts(X, exposure)
        return sparse.vstack([compress(codes) for codes in parts], format="csr")

    def _parts(self, X, exposure=None):  # yields where they are, rows as X has them, exposures
        check_is_fitted(self)
        self._validate_params()  # parameters that are wrong are no error of a batch
        device = self._transform_device(X)  # what holds tensors decides, and not where these are
        left = check_exposure(exposure, X, self.loss)
        for where, rows in parts_of(X, PART):
            here, left = (None, None) if left is None else np.split(left, [len(rows)])
            given = {} if here is None else {"exposure": here}
            yield where, rows.to(device) if isinstance(rows, torch.Tensor) else rows, given

    def _codes_by_parts(self, X, exposure=None):  # yields arrays of codes
        for where, rows, given in self._parts(X, exposure):
            with part_of(where):
                codes = to_numpy(to_tensor(self.transform(rows, **given)))
            yield codes

    def _checked_parts(self, X, exposure=None):  # yields Rows, dictionary on the device
        if not comes_in_parts(X, accept_sparse=self._loss().largest is not None):
            yield self._check_new_data(X, exposure)
            return
        for where, rows, given in self._parts(X, exposure):
            with part_of(where):
                checked = self._check_new_data(rows, **given)
            yield checked

    def _check_new_data(self, X, exposure=None):  # -> Rows, dictionary on the device
        check_is_fitted(self)
        # names, values, number of features: the order in which scikit-learn complains
        _check_feature_names(self, X, reset=False)
        options = dict(allow_nan=self._allows_nan(), largest=self._loss().largest)
        x = check_rows(X, estimator=self, **options)
        # rows stay where they are: all of them may not fit where a part of them does
        x, mask = split_missing(x if isinstance(x, torch.Tensor) else to_tensor(x))
        _check_n_features(self, X, reset=False)
        atoms = to_tensor(self.components_, self._transform_device(X), x.dtype)
        exposure = check_exposure(exposure, X, self.loss)
        offset = None if exposure is None else to_tensor(exposure).log().to(x)[:, None]
        return Rows(x, mask=mask, offset=offset), DenseDictionary(atoms)

    def _transform_device(self, X):
        try:
            return resolve_device(self.device, X)
        except ValueError:  # fitted on a machine that had this device
            return torch.device("cpu")
