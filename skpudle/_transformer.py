"""What every dictionary learner of this package does once it is fitted.

`DictionaryTransformer` encodes, reconstructs and scores with ``components_``. How the dictionary
came about is none of its business.
"""

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from skpudle._arrays import check_rows, like_input, resolve_device, to_tensor
from skpudle.operators import DenseDictionary

__all__ = ["DictionaryTransformer"]

# Rows encoded at a time: few enough for their codes to stay in the cache of a processor core, many
# enough to fill a GPU.
_CHUNK = {"cpu": 1024, "cuda": 65536}

_SCORE_GROUPS = 10


class DictionaryTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encode with a fitted dictionary; a subclass adds `fit` and `_transform_encoder`."""

    # What a learner without these parameters does.
    device = "auto"
    split_sign = False

    def _transform_encoder(self):
        """Return ``encoder(dictionary, x)``, which maps rows of ``x`` to codes."""
        raise NotImplementedError

    def transform(self, X):
        """Encode data with the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.
        """
        x, dictionary = self._check_new_data(X)
        encoder = self._transform_encoder()
        codes = torch.cat([encoder(dictionary, rows) for rows in self._chunks(x)])
        if self.split_sign:
            codes = torch.cat([codes.clamp_min(0), codes.neg().clamp_min_(0)], dim=1)
        return like_input(codes, X)

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
        return like_input(codes @ to_tensor(self.components_, codes.device).to(codes.dtype), X)

    def score(self, X, y=None):
        """Return how well hidden features are predicted from the others, as R^2.

        The columns are cut into ten fixed groups; each is hidden once for all rows, the codes are
        inferred from the remaining columns, and the hidden entries are compared with their
        predictions. Unlike the error of reconstruction, which always prefers the smallest alpha,
        this is best near the alpha that denoises best, so that ``GridSearchCV`` needs no
        ``scoring``.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data.
        y : None
            Ignored.

        Returns
        -------
        float
            R^2 pooled over all hidden entries, against the column means; at most 1, larger is
            better, comparable across alpha. 0 for constant data. With one feature, where nothing
            is left to infer from, the R^2 of the reconstruction.
        """
        x, dictionary = self._check_new_data(X)
        n_features = x.shape[1]
        order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0))
        groups = order.tensor_split(min(_SCORE_GROUPS, n_features))
        centred = x - x[0]  # exactly zero for constant columns, whose mean may be rounded
        total = float((centred - centred.mean(0)).square().sum())
        if total == 0:
            return 0.0
        encoder, error = self._transform_encoder(), 0.0
        for hidden in groups:
            seen = torch.ones(n_features, dtype=torch.bool)
            seen[hidden] = n_features == 1
            visible = DenseDictionary(dictionary.atoms[:, seen.to(x.device)])
            for rows in self._chunks(x):
                codes = encoder(visible, rows[:, seen.to(x.device)])
                predicted = codes @ dictionary.atoms[:, hidden.to(x.device)]
                error += float((predicted - rows[:, hidden.to(x.device)]).square().sum())
        return 1 - error / total

    def _check_new_data(self, X):  # -> x, dictionary
        check_is_fitted(self)
        # names, values, number of features: the order in which scikit-learn complains
        _check_feature_names(self, X, reset=False)
        x = to_tensor(check_rows(X, estimator=self), self._transform_device(X))
        validate_data(self, X, reset=False, skip_check_array=True)
        return x, DenseDictionary(to_tensor(self.components_, x.device).to(x.dtype))

    def _transform_device(self, X):
        try:
            return resolve_device(self.device, X)
        except ValueError:  # fitted on a machine that had this device
            return torch.device("cpu")

    def _chunks(self, x):
        return x.split(_CHUNK.get(x.device.type, 4096))

    @property
    def _n_features_out(self):
        return self.n_components_ * (2 if self.split_sign else 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
