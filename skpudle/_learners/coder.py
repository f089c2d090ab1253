"""What every dictionary learner of this package does once it is fitted.

`DictionaryTransformer` encodes, reconstructs and scores with ``components_``. How the dictionary
came about is none of its business.
"""

from functools import reduce

import numpy as np
import torch
from scipy import sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import (
    InvalidParameterError,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted

from skpudle._data.arrays import (
    check_rows,
    handed_over,
    resolve_device,
    shortened,
    split_missing,
    to_numpy,
    to_tensor,
    wide,
)
from skpudle._data.sources import is_stream, part_of, parts_of
from skpudle._precision import own_precision
from skpudle.interoperability import make_sparse_coder
from skpudle.operators import DenseDictionary

__all__ = ["DictionaryTransformer", "codes_with_gradient"]

# Rows encoded at a time: few enough for their codes to stay in the cache of a processor core, many
# enough to fill a GPU.
_CHUNK = {"cpu": 1024, "cuda": 65536}

# Arrays of codes that the encoder has at a time.
_N_COPIES = 8

# Rows of data that are not in memory that are encoded at a time, and of codes that are decoded.
_PART = 8192

_SCORE_GROUPS = 10


def _is_out_of_memory(error):
    kinds = MemoryError | torch.cuda.OutOfMemoryError
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _moments(x, mask):  # -> of each column its number, mean and sum of squared deviations
    """Return moments of what is known, on the host, where those of all parts meet."""
    x = wide(x)
    if mask is None:
        mask, origin = torch.ones_like(x[:1]), x[0]
        n_known = len(x) * mask[0]
    else:
        mask = wide(mask)
        origin = x.masked_fill(mask == 0, torch.inf).amin(0)
        origin, n_known = origin.masked_fill(origin.isinf(), 0), mask.sum(0)
    centred = (x - origin) * mask  # exactly zero for constant columns, whose mean may be rounded
    mean = centred.sum(0) / n_known.clamp_min(1)
    squares = ((centred - mean) * mask).square().sum(0)
    return n_known.cpu(), (origin + mean).cpu(), squares.cpu()


def _together(one, other):
    """Return the moments of two parts: their means differ, which is variation too."""
    (n, mean, squares), (n_other, mean_other, squares_other) = one, other
    share = n_other / (n + n_other).clamp_min(1)
    apart = mean_other - mean
    squares = squares + squares_other + apart.square() * n * share
    return n + n_other, mean + apart * share, squares


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

    def _validate_params(self, *names):
        """Check parameters as scikit-learn does, those of the given names or all."""
        try:
            if not names:
                return super()._validate_params()
            values = {name: getattr(self, name) for name in names}
            name = type(self).__name__
            return validate_parameter_constraints(self._parameter_constraints, values, name)
        except InvalidParameterError as error:
            raise InvalidParameterError(shortened(str(error))) from None

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
            return np.concatenate(list(self._codes_by_parts(X)))
        x, mask, dictionary = self._check_new_data(X)
        encoder = self._transform_encoder()

        def encode(rows, known):
            codes = encoder(dictionary, rows, mask=known)
            if self.split_sign:
                codes = torch.cat([codes.clamp_min(0), codes.neg().clamp_min(0)], dim=1)
            return codes

        chunks = self._in_chunks(encode, x, mask, dictionary.atoms.device)
        return self._in_one_piece(chunks, len(x), X)

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
        for where, rows in parts_of(X, _PART):
            yield where, rows.to(device) if isinstance(rows, torch.Tensor) else rows

    def _codes_by_parts(self, X):  # yields arrays of codes
        for where, rows in self._parts(X):
            with part_of(where):
                codes = to_numpy(to_tensor(self.transform(rows)))
            yield codes

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
        codes = check_rows(X)
        codes = codes if isinstance(codes, torch.Tensor) else to_tensor(codes)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Codes have {codes.shape[1]} columns, but {type(self).__name__} returns "
                f"{self._n_features_out}; pass what transform returned."
            )
        atoms = to_tensor(self.components_, self._transform_device(X)).to(codes.dtype)

        def decode(rows, known):
            if self.split_sign:
                rows = rows[:, : self.n_components_] - rows[:, self.n_components_ :]
            with own_precision():
                return rows @ atoms

        chunks = self._in_chunks(decode, codes, None, atoms.device, size=_PART)
        return self._in_one_piece(chunks, len(codes), X)

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
            Data, or a dataset or batches as for `fit`.
        y : None
            Ignored.

        Returns
        -------
        float
            R^2 pooled over all hidden entries that are known, against the column means; at most 1,
            larger is better, comparable across alpha. 0 for constant data. With one feature, where
            nothing is left to infer from, the R^2 of the reconstruction.
        """
        error, moments = 0.0, []
        for x, mask, dictionary in self._checked_parts(X):
            error += self._error_of_hidden(x, mask, dictionary)
            moments += self._in_chunks(_moments, x, mask, x.device, size=_PART)
        total = float(reduce(_together, moments)[2].sum())
        return 1 - error / total if total else 0.0

    def _error_of_hidden(self, x, mask, dictionary):  # -> sum of squares
        n_features, device = x.shape[1], dictionary.atoms.device
        order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0), device="cpu")
        groups = order.tensor_split(min(_SCORE_GROUPS, n_features))
        encoder, error = self._transform_encoder(), 0.0
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
                return float(wide(residual).square().sum())

            error += sum(self._in_chunks(squared_error, x, mask, device))
        return error

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
        _check_n_features(self, X, reset=False)
        atoms = to_tensor(self.components_, self._transform_device(X))
        return x, mask, DenseDictionary(atoms.to(x.dtype))

    def _checked_parts(self, X):  # yields x, mask or None, dictionary on the device
        if not is_stream(X):
            yield self._check_new_data(X)
            return
        for where, rows in self._parts(X):
            with part_of(where):
                checked = self._check_new_data(rows)
            yield checked

    def _transform_device(self, X):
        try:
            return resolve_device(self.device, X)
        except ValueError:  # fitted on a machine that had this device
            return torch.device("cpu")

    def _in_chunks(self, function, x, mask, device, *, size=None):
        """Yield ``function(rows, mask)`` of some rows at a time, of half as many out of memory."""
        start, size = 0, min(size or self._chunk_size(x, device), len(x))
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

    def _in_one_piece(self, chunks, n_rows, X):
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


@torch.enable_grad()
def codes_with_gradient(learner, X):  # -> x, codes
    """Return data as a tensor, and their signed codes, which can be differentiated in it."""
    x, _, dictionary = learner._check_new_data(X)
    x = x.to(dictionary.atoms.device, copy=True).requires_grad_()
    return x, learner._transform_encoder()(dictionary, x)
