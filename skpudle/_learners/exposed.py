"""Encode and score counts, which may have exposures: factors of the expectations of rows.

The logarithms of exposures are the ``target`` of samples, what a learner knows beside the counts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data.arrays import host_array, to_tensor, wide
from skpudle._data.sources import open_source, refuse_shuffled
from skpudle._learners.transformer import DictionaryTransformer
from skpudle._losses import FromMeans

OfRows = ArrayLike | None  # one number for each row


def check_exposure(exposure, n_samples, learner):  # -> Tensor (n_samples, 1), their logarithms
    """Check the exposures of samples, of this number.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each sample, or if the loss takes none.
    """
    if getattr(learner, "loss", None) not in ("poisson", "kullback-leibler"):
        raise ValueError("exposure is for counts without a limit: loss='poisson', or PoissonNMF.")
    options = dict(ensure_2d=False, dtype=np.float64, input_name="exposure")
    values = check_array(host_array(exposure), **options)
    if values.shape != (n_samples,) or not (values > 0).all():
        raise ValueError(
            f"exposure of shape {values.shape} is no array of positive numbers. Pass one for each "
            f"of the {n_samples} rows of X, and leave out samples that were not observed."
        )
    return to_tensor(values).log()[:, None]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of counts, with their exposures.

    Parameters
    ----------
    loss : object of `skpudle._losses`
        The loss.
    intercept : Tensor of shape (n_features,), default=None
        The natural parameters of a row without codes.
    """

    loss: object
    intercept: Tensor | None = None

    def offset(self, samples, features=slice(None)):  # -> like samples.x or its rows, or None
        """Return what is added to the natural parameters of samples, of some features."""
        exposure = samples.target
        if self.intercept is None:
            return None if exposure is None else exposure.expand_as(samples.x)
        intercept = self.intercept.to(samples.x)[features]
        return intercept if exposure is None else intercept + exposure

    def encode(self, encoder, dictionary, samples, features=None):
        """Return codes of samples, of some features if they are not all."""
        if features is not None and hasattr(encoder, "of_features"):
            encoder = encoder.of_features(features)
        offset = self.offset(samples, slice(None) if features is None else features)
        return encoder(dictionary, samples.x, mask=samples.mask, offset=offset)

    def deviances(self, natural, samples, features):  # -> (n, len(features))
        """Return the deviance of each entry of features from its prediction."""
        natural = self.loss.shifted(natural, self.offset(samples, features))
        return 2 * self.loss.half_deviance(wide(natural), wide(samples.x))


class ExposedTransformer(DictionaryTransformer):
    """Encode counts that may have exposures; a subclass has a `_likelihood`."""

    def _likelihood(self):  # -> Likelihood
        """Return the likelihood of the counts."""
        raise NotImplementedError

    def _encode_rows(self, encoder, dictionary, samples, features=None):
        return self._likelihood().encode(encoder, dictionary, samples, features)

    def _decode_rows(self, rows):
        found = self._likelihood()
        if found.intercept is not None:
            rows.add_(found.intercept.to(rows))
        return found.loss.mean(rows)

    def _from_means(self, samples):
        samples = samples.map(wide)
        return FromMeans.of(samples, self._likelihood().loss, samples.target)

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
        measure = self._likelihood().deviances
        return self._score(X, sample_weight, measure, **self._of_rows(X, exposure))
