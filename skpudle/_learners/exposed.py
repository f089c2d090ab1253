"""Encode and score counts, which may have exposures: factors of the expectations of rows.

Exposures are the ``target`` of samples, what a learner knows beside the counts. Counts of an
exposure ``e`` have the deviance of their rates, ``x / e``, times ``e``, whether effects add or
multiply.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import host_array, to_tensor, wide
from skpudle._data.sources import open_source, refuse_shuffled
from skpudle._fit.encoders import refuse
from skpudle._learners.transformer import DictionaryTransformer
from skpudle._losses import FromMeans

OfRows = ArrayLike | None  # one number for each row


def check_exposure(exposure, n_samples, learner):  # -> Tensor (n_samples, 1)
    """Check the exposures of samples, of this number.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each sample, or if the loss takes none.
    """
    refuse(
        getattr(learner, "loss", None) not in ("poisson", "kullback-leibler"),
        "exposure is for counts without a limit: loss='poisson', or PoissonNMF.",
    )
    exposure = host_array(exposure)
    values = check_array(exposure, ensure_2d=False, dtype=np.float64, input_name="exposure")
    refuse(
        values.shape != (n_samples,) or not (values > 0).all(),
        f"exposure of shape {values.shape} is no array of positive numbers. Pass one for each of "
        f"the {n_samples} rows of X, and leave out samples that were not observed.",
    )
    return to_tensor(values)[:, None]


def exposure_of(samples):  # -> Tensor of shape (n_samples, 1), or 1
    """Return the exposures of samples."""
    return 1.0 if samples.target is None else wide(samples.target)


def encode_rows(encoder, dictionary, samples, features=None):  # -> codes
    """Return codes of counts, of some features if they are not all."""
    encoder = encoder if features is None else encoder.of_features(features)
    return encoder(dictionary, samples.x, mask=samples.mask, exposure=samples.target)


def deviances(natural, samples, features, *, loss, intercept=None):  # -> (n, len(features))
    """Return the deviance of each entry of features from its prediction without the intercept."""
    exposure, natural = exposure_of(samples), wide(natural)
    natural = natural if intercept is None else natural + intercept.to(natural)[features]
    return 2 * exposure * loss.half_deviance(natural, wide(samples.x) / exposure)


class ExposedTransformer(DictionaryTransformer):
    """Encode counts that may have exposures; a subclass has a ``_loss`` and an encoder of counts.

    The encoder is called as ``encoder(dictionary, x, mask=None, exposure=None)``, and that of some
    features is ``encoder.of_features(features)``.
    """

    _intercept = None  # natural parameters of rows without codes
    _encode_rows = staticmethod(encode_rows)

    def _decode_rows(self, rows):
        rows = rows if self._intercept is None else rows.add_(self._intercept.to(rows))
        return self._loss.mean(rows)

    def _from_means(self, samples):
        return FromMeans.of(samples.map(wide), self._loss, exposure_of(samples))

    def _of_rows(self, X, exposure):  # -> dict of fields of samples
        if exposure is None:
            return {}
        return {"target": check_exposure(exposure, open_source(X, self).n_rows, self)}

    def transform(self, X: Any, exposure: OfRows = None) -> np.ndarray | Tensor:
        """Encode data with the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset, batches or a sparse array as for `fit`. NaN marks missing entries,
            and the codes of a row are inferred from its known ones; `inverse_transform` then fills
            the gaps.
        exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts. Of `PoissonNMF`
            they are numbers of events.

        Raises
        ------
        ValueError
            If the data are unfit, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform(X, **self._of_rows(X, exposure))

    def transform_sparse(self, X: Any, exposure: OfRows = None) -> csr_array:
        """Encode data part by part, and return only the codes that are not zero.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform` or, of any size, as for `fit`.
        exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        scipy.sparse.csr_array of shape (n_samples, n_features_out)
            Codes.

        Raises
        ------
        ValueError
            If the data are unfit, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform_sparse(X, **self._of_rows(X, exposure))

    def fit_transform(
        self, X: Any, y: Any = None, exposure: OfRows = None, sample_weight: OfRows = None
    ) -> np.ndarray | Tensor:
        """Learn atoms, and return the codes of the same data.

        Parameters
        ----------
        X, y, exposure, sample_weight
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, as of `transform`.
        """
        refuse_shuffled(X)
        return self.fit(X, y, exposure, sample_weight).transform(X, exposure)

    def score(
        self, X: Any, y: None = None, exposure: OfRows = None, sample_weight: OfRows = None
    ) -> float:
        """Return the explained share of the deviance of held-out features.

        The columns are cut into ten fixed groups. Each is held out once for all rows, the codes are
        inferred from the other columns, and predict the held-out entries. ``GridSearchCV`` compares
        penalties and numbers of atoms by it.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Counts, or a dataset, batches or a sparse array as for `fit`.
        y : None
            Ignored.
        exposure, sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        float
            Explained share of the deviance, pooled over all known entries, against the mean rates
            times exposures. At most 1, larger is better. 0 for constant data. Of a single feature
            the explained share of the reconstruction. `PoissonNMF` gives a row without any event
            outside of the held-out features half an event, since a rate of 0 would exclude any.
        """
        check_is_fitted(self)
        measure = partial(deviances, loss=self._loss, intercept=self._intercept)
        return self._score(X, sample_weight, measure, **self._of_rows(X, exposure))
