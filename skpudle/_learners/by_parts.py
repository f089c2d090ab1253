"""Codes of data of any size, part by part."""

import torch
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.reading import part_of
from skpudle._data.sources import is_stream, parts_of
from skpudle._learners.chunks import PART

__all__ = ["TransformsByParts"]


class TransformsByParts:
    """What a transformer does with data that need not fit into memory."""

    def transform_into(self, X, out):
        """Encode data part by part, and write the codes into an array.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform` or, of any size, as for `fit`.
        out : array-like of shape (n_samples, n_features_out)
            What takes codes by ``out[first:last] = codes``, such as an array or a memory map.

        Returns
        -------
        array-like
            ``out``.

        Raises
        ------
        TypeError, ValueError
            If ``out`` is no array, or of another shape than the codes.
        """
        if not hasattr(out, "shape"):
            raise TypeError(
                f"out is a {type(out).__name__}; pass an array or a memory map of shape "
                f"(n_samples, {self._n_features_out})."
            )
        start = 0
        for codes in self._codes_by_parts(X):
            if start + len(codes) > len(out) or codes.shape[1:] != out.shape[1:]:
                raise ValueError(
                    f"out has shape {tuple(out.shape)}, but rows {start} to {start + len(codes)} "
                    f"have codes of shape {codes.shape}; pass one of shape (n_samples, "
                    f"{self._n_features_out})."
                )
            out[start : start + len(codes)] = codes
            start += len(codes)
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

        def compress(codes):
            if codes.ndim != 2:
                raise ValueError(
                    f"The codes of images are maps, here of shape {codes.shape[1:]}, but a CSR "
                    "array has rows and columns only. Pass images as rows, with image_shape, or "
                    "use transform_into."
                )
            return sparse.csr_array(codes)

        return sparse.vstack([compress(codes) for codes in self._codes_by_parts(X)], format="csr")

    def _parts(self, X):  # yields where they are, and rows as X has them
        check_is_fitted(self)
        self._validate_params()  # parameters that are wrong are no error of a batch
        device = self._transform_device(X)  # what holds tensors decides, and not where these are
        for where, rows in parts_of(X, PART):
            yield where, rows.to(device) if isinstance(rows, torch.Tensor) else rows

    def _codes_by_parts(self, X):  # yields arrays of codes
        for where, rows in self._parts(X):
            with part_of(where):
                codes = to_numpy(to_tensor(self.transform(rows)))
            yield codes

    def _checked_parts(self, X):  # yields x, mask or None, dictionary on the device
        if not is_stream(X):
            yield self._check_new_data(X)
            return
        for where, rows in self._parts(X):
            with part_of(where):
                checked = self._check_new_data(rows)
            yield checked
