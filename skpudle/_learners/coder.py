"""What every dictionary learner of this package does once it is fitted.

`DictionaryTransformer` encodes, reconstructs and scores with ``components_``. How the dictionary
came about is none of its business.
"""

from functools import partial, reduce

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import (
    InvalidParameterError,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import (
    check_rows,
    shortened,
    to_tensor,
)
from skpudle._data.batches import Rows
from skpudle._data.sources import comes_in_parts
from skpudle._learners.by_parts import PART, TransformsByParts, in_chunks, in_one_piece
from skpudle._learners.hidden import deviance_of_means, hidden_deviance, sums_of, together
from skpudle._precision import own_precision
from skpudle.interoperability import make_sparse_coder
from skpudle.losses import Gaussian, loss_named

__all__ = ["DictionaryTransformer", "codes_with_gradient"]

# Rows encoded at a time: few enough for their codes to stay in the cache of a processor core, many
# enough to fill a GPU.
_CHUNK = {"cpu": 1024, "cuda": 65536}

# Arrays of codes that the encoder has at a time.
_N_COPIES = 8


class DictionaryTransformer(
    TransformsByParts, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Encode with a fitted dictionary; a subclass adds `fit` and `_transform_encoder`."""

    # The page that scikit-learn's HTML view of an estimator links to.
    _doc_link_module = "skpudle"
    _doc_link_template = (
        "https://skpudle.readthedocs.io/en/stable/generated/skpudle.{estimator_name}.html"
    )

    # What a learner without these parameters does.
    device = "auto"
    split_sign = False
    loss, n_trials = "gaussian", 1

    def _transform_encoder(self):
        """Return ``encoder(dictionary, x, mask=None)``, which maps rows of ``x`` to codes.

        It has to know of masks if `_allows_nan` says so.
        """
        raise NotImplementedError

    def _loss(self):  # -> object of `skpudle.losses`
        """Return what data are to the reconstruction."""
        return loss_named(self.loss, self.n_trials)

    def _offset(self, x, exposure=None):  # -> (n_features,) or (n, n_features) or None
        """Return what is added to the reconstruction of rows, where the loss has a baseline."""
        if isinstance(self._loss(), Gaussian):
            return None
        intercept = to_tensor(self.intercept_, x.device).to(x.dtype)
        return intercept if exposure is None else intercept + exposure

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
            Data, or a dataset or batches as for `fit`. NaN marks missing entries, and the codes of
            a row are inferred from its known ones; `inverse_transform` then fills the gaps. (Not
            with `SporcoDictionaryLearning`: impute first.)

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.
        """
        return self._transform(X)

    def _transform(self, X, exposure=None):
        if comes_in_parts(X, accept_sparse=self._loss().largest is not None):
            return np.concatenate(list(self._codes_by_parts(X, exposure)))
        rows, dictionary = self._check_new_data(X, exposure)
        encoder = self._transform_encoder()

        def encode(x, mask, exposure):
            offset = self._offset(x, exposure)
            given = {} if offset is None else {"offset": offset}
            codes = encoder(dictionary, x, mask=mask, **given)
            if self.split_sign:
                codes = torch.cat([codes.clamp_min(0), codes.neg().clamp_min(0)], dim=1)
            return codes

        device = dictionary.atoms.device
        chunks = in_chunks(encode, rows, device, self._chunk_size(rows.x, device))
        return in_one_piece(chunks, len(rows.x), X)

    def inverse_transform(self, X):
        """Return the data that codes stand for.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features_out)
            Codes, as `transform` returns them.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Reconstructed data: expectations, of exposure 1 if there are exposures.
        """
        check_is_fitted(self)
        codes = check_rows(X)
        codes = codes if isinstance(codes, torch.Tensor) else to_tensor(codes)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Codes have {codes.shape[1]} columns, but {type(self).__name__} returns "
                f"{self._n_features_out}; pass what transform returned."
            )
        atoms = to_tensor(self.components_, self._transform_device(X), codes.dtype)

        loss, offset = self._loss(), self._offset(atoms)

        def decode(rows, *_):
            if self.split_sign:
                rows = rows[:, : self.n_components_] - rows[:, self.n_components_ :]
            with own_precision():
                natural = rows @ atoms
            return loss.mean(natural if offset is None else natural.add_(offset))

        chunks = in_chunks(decode, Rows(codes), atoms.device, PART)
        return in_one_piece(chunks, len(codes), X)

    def score(self, X, y=None):
        """Return how well hidden features are predicted from the others, as R^2.

        As `skpudle.PUDLEDictionaryLearning.score` with ``loss="gaussian"``, which says more of it.

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
        return self._score(X)

    def _score(self, X, exposure=None):
        loss, error, sums = self._loss(), 0.0, []
        for rows, dictionary in self._checked_parts(X, exposure):
            device, encoder = dictionary.atoms.device, self._transform_encoder()
            deviance = hidden_deviance(loss, encoder, dictionary, self._offset)
            size = self._chunk_size(rows.x, device)
            error += sum(in_chunks(deviance, rows, device, size))
            sums += in_chunks(partial(sums_of, loss), rows, rows.x.device, PART)
        total = deviance_of_means(loss, reduce(partial(together, loss), sums))
        return 1 - error / total if total else 0.0

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

        Raises
        ------
        ValueError
            If the loss is not that of least squares, which those codes are for.
        """
        check_is_fitted(self)
        if not isinstance(self._loss(), Gaussian):
            raise ValueError(
                f"scikit-learn's coder minimises least squares, but loss={self.loss!r}; use "
                "`transform`."
            )
        return make_sparse_coder(self, transform_algorithm, **params)

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
        tags.input_tags.positive_only = tags.input_tags.sparse = self._loss().largest is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


@torch.enable_grad()
def codes_with_gradient(learner, X):  # -> x, codes
    """Return data as a tensor, and their signed codes, which can be differentiated in it."""
    rows, dictionary = learner._check_new_data(X)
    x = rows.x.to(dictionary.atoms.device, copy=True).requires_grad_()
    offset = learner._offset(x)
    given = {} if offset is None else {"offset": offset}
    return x, learner._transform_encoder()(dictionary, x, **given)
