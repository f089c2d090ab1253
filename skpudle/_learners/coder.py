"""What every dictionary learner of this package does once it is fitted.

`DictionaryTransformer` encodes, reconstructs and scores with ``components_``. How the dictionary
came about is none of its business.
"""

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from skpudle._data.arrays import (
    check_rows,
    handed_over,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
)
from skpudle._data.sources import is_stream, parts_of
from skpudle._precision import own_precision
from skpudle.interoperability import make_sparse_coder
from skpudle.operators import DenseDictionary

__all__ = ["DictionaryTransformer"]

# Rows encoded at a time: few enough for their codes to stay in the cache of a processor core, many
# enough to fill a GPU.
_CHUNK = {"cpu": 1024, "cuda": 65536}

# Arrays of codes that the encoder has at a time.
_N_COPIES = 8

# Rows of data that are not in memory that are encoded at a time.
_PART = 8192

_SCORE_GROUPS = 10


def _is_out_of_memory(error):
    kinds = MemoryError | torch.cuda.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _sum_of_squares(x, mask):
    """Return the sum of squared deviations from column means, over what is known."""
    if mask is None:
        centred = x - x[0]  # exactly zero for constant columns, whose mean may be rounded
        return (centred - centred.mean(0)).square().sum()
    least = x.masked_fill(mask == 0, torch.inf).amin(0)
    centred = (x - least.masked_fill(least.isinf(), 0)) * mask
    mean = centred.sum(0) / mask.sum(0).clamp_min(1)
    return ((centred - mean) * mask).square().sum()


class DictionaryTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encode with a fitted dictionary; a subclass adds `fit` and `_transform_encoder`."""

    # The page that scikit-learn's HTML view of an estimator links to.
    _doc_link_module = "skpudle"
    _doc_link_template = (
        "https://skpudle.readthedocs.io/en/stable/generated/skpudle.{estimator_name}.html"
    )

    # What a learner without these parameters does.
    device = "auto"
    split_sign = False

    def _transform_encoder(self):
        """Return ``encoder(dictionary, x, mask=None)``, which maps rows of ``x`` to codes.

        It has to know of masks if `_allows_nan` says so.
        """
        raise NotImplementedError

    def _allows_nan(self):
        """Return whether NaN marks missing entries."""
        return False

    def _take(self, attributes):
        """Take fitted attributes; None stands for one that only other fits have."""
        vars(self).update(attributes)
        for name, value in attributes.items():
            if value is None:
                delattr(self, name)

    def transform(self, X):
        """Encode data with the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset or batches as for `fit`. NaN marks missing entries, and codes are
            those of the known ones; `inverse_transform` then fills the gaps. (Not with codes of the
            lasso, nor with `SporcoDictionaryLearning`: impute first.)

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.
        """
        if is_stream(X):
            check_is_fitted(self)
            parts = [self.transform(rows) for rows in parts_of(X, _PART)]
            return np.concatenate([to_numpy(to_tensor(part)) for part in parts])
        x, mask, dictionary = self._check_new_data(X)
        encoder, codes, start = self._transform_encoder(), None, 0

        def encode(rows, known):
            return encoder(dictionary, rows, mask=known)

        for part in self._in_chunks(encode, x, mask, dictionary.atoms.device):
            if self.split_sign:
                part = torch.cat([part.clamp_min(0), part.neg().clamp_min(0)], dim=1)
            if codes is None:
                # once for all, where a list of parts would need the memory twice; and for an array
                # on the host, since all codes may not fit where a part of them does
                device = X.device if isinstance(X, torch.Tensor) else "cpu"
                codes = part.new_empty(len(x), self._n_features_out, device=device)
            codes[start : start + len(part)] = part
            start += len(part)
        return handed_over(codes, X)

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
        """
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

    def _codes_by_parts(self, X):  # yields arrays of codes
        check_is_fitted(self)
        for rows in parts_of(X, _PART):
            yield to_numpy(to_tensor(self.transform(rows)))

    def inverse_transform(self, X):
        """Return the data that codes stand for.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features_out)
            Codes, as `transform` returns them.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Reconstructed data.
        """
        check_is_fitted(self)
        codes = to_tensor(check_rows(X), self._transform_device(X))
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Codes have {codes.shape[1]} columns, but {type(self).__name__} returns "
                f"{self._n_features_out}; pass what transform returned."
            )
        if self.split_sign:
            codes = codes[:, : self.n_components_] - codes[:, self.n_components_ :]
        atoms = to_tensor(self.components_, codes.device).to(codes.dtype)
        with own_precision():
            return handed_over(codes @ atoms, X)

    def score(self, X, y=None):
        """Return how well hidden features are predicted from the others, as R^2.

        The columns are cut into ten fixed groups; each is hidden once for all rows, the codes are
        inferred from the remaining columns, and the hidden entries are compared with their
        predictions. The error of reconstruction always prefers the smallest alpha; this has a
        largest value between too little and too much, so that ``GridSearchCV`` needs no
        ``scoring``. Where the dictionary can be found it picks an alpha near the best for
        denoising; with little noise it picks too large a one (up to 2 dB worse in our
        measurements): see `skpudle.metrics.make_denoising_scorer`.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data.
        y : None
            Ignored.

        Returns
        -------
        float
            R^2 pooled over all hidden entries that are known, against the column means; at most 1,
            larger is better, comparable across alpha. 0 for constant data. With one feature, where
            nothing is left to infer from, the R^2 of the reconstruction.
        """
        x, mask, dictionary = self._check_new_data(X)
        n_features = x.shape[1]
        order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0), device="cpu")
        groups = order.tensor_split(min(_SCORE_GROUPS, n_features))
        total = float(_sum_of_squares(x, mask))
        if total == 0:
            return 0.0
        encoder, error, device = self._transform_encoder(), 0.0, dictionary.atoms.device
        for hidden in groups:
            seen = torch.ones(n_features, dtype=torch.bool, device="cpu")
            seen[hidden] = n_features == 1
            seen, hidden = seen.to(device), hidden.to(device)
            visible = DenseDictionary(dictionary.atoms[:, seen])

            def squared_error(rows, known, seen=seen, hidden=hidden, visible=visible):
                known_seen = None if known is None else known[:, seen]
                codes = encoder(visible, rows[:, seen], mask=known_seen)
                with own_precision():
                    residual = codes @ dictionary.atoms[:, hidden] - rows[:, hidden]
                residual = residual if known is None else residual * known[:, hidden]
                return float(residual.square().sum())

            error += sum(self._in_chunks(squared_error, x, mask, device))
        return 1 - error / total

    def to_sparse_coder(self, transform_algorithm="lasso_cd", **params):
        """Return scikit-learn's coder with the learned atoms.

        Parameters
        ----------
        transform_algorithm : {"lasso_cd", "lasso_lars", "lars", "omp", "threshold"}, \
                default="lasso_cd"
            How scikit-learn finds codes.
        **params : dict
            Further parameters of `~sklearn.decomposition.SparseCoder`; see
            `skpudle.interoperability.make_sparse_coder`.

        Returns
        -------
        SparseCoder
            Fitted; it needs neither this package nor torch.
        """
        return make_sparse_coder(self, transform_algorithm, **params)

    def _check_new_data(self, X):  # -> x, mask or None, dictionary on the device
        check_is_fitted(self)
        # names, values, number of features: the order in which scikit-learn complains
        _check_feature_names(self, X, reset=False)
        x = check_rows(X, estimator=self, allow_nan=self._allows_nan())
        # rows stay where they are: all of them may not fit where a part of them does
        x, mask = split_missing(x if isinstance(x, torch.Tensor) else to_tensor(x))
        validate_data(self, X, reset=False, skip_check_array=True)
        atoms = to_tensor(self.components_, self._transform_device(X))
        return x, mask, DenseDictionary(atoms.to(x.dtype))

    def _transform_device(self, X):
        try:
            return resolve_device(self.device, X)
        except ValueError:  # fitted on a machine that had this device
            return torch.device("cpu")

    def _in_chunks(self, function, x, mask, device):
        """Yield ``function(rows, mask)`` of some rows at a time, of half as many out of memory."""
        start, size = 0, min(self._chunk_size(x, device), len(x))
        while start < len(x):
            part = slice(start, start + size)
            try:
                rows, known = (None if t is None else t[part].to(device) for t in (x, mask))
                result = function(rows, known)
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not _is_out_of_memory(error):
                    raise
                size //= 2
                continue
            yield result
            start += size

    def _chunk_size(self, x, device):
        size = _CHUNK.get(device.type, 4096)
        if device.type == "cuda":
            row = (_N_COPIES * self.n_components_ + 2 * x.shape[1]) * x.element_size()
            free = torch.cuda.mem_get_info(device)[0]
            # of what the driver calls taken, torch keeps some for itself
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            size = max(1, min(size, free // row))
        return size

    @property
    def _n_features_out(self):
        return self.n_components_ * (2 if self.split_sign else 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
