"""Encode, reconstruct and score rows with a fitted dictionary.

`DictionaryTransformer` is the base of all learners of rows; it needs ``components_`` and an
encoder, a callable ``encoder(dictionary, x, mask=None)`` that returns codes (see
`skpudle._fit.encoders`). Data outside memory are read in parts of 8,192 rows. The rows of a part
are encoded in chunks, which fit into the cache of a core or into the memory of a GPU.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skpudle._data import arrays
from skpudle._data.sources import InMemory, Samples, open_source, refuse_shuffled
from skpudle._fit.encoders import baseline_of, units_of
from skpudle._fit.messages import refuse
from skpudle._learners.summary import describe_fit
from skpudle._losses import LEAST_SQUARES, FromMeans
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import own_precision
from skpudle._rows import hide_in_turn
from skpudle._shrinkage import join_signs, split_signs

# Number of rows of data outside memory that are read at a time, and of codes decoded at a time.
PART = 8192


def chunk_size(learner, x, device):
    """Return the number of rows that a fitted learner encodes at a time, for speed and memory.

    ``x`` (n, n_features) are some of the rows, and ``device`` is where codes are computed.
    """
    if device.type == "cuda":
        # bytes of GPU memory for a row: an encoder needs about 8 arrays of codes, and 2 of data
        row = (8 * learner.n_components_ + 2 * x.shape[1]) * x.element_size()
        free = torch.cuda.mem_get_info(device)[0]
        # memory that torch has reserved but not used counts as free, since torch will use it
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(1, min(65536, free // row))
    solved = getattr(learner, "n_unfoldings", None) in (None, "auto")
    solved = solved or getattr(learner, "transform_algorithm", "unfolded") != "unfolded"
    # A chunk has at least 1,024 rows, and about as many rows as have n_entries codes or features.
    # For unfolded codes 2**17 entries stay in the cache of a core. Solved codes need larger chunks,
    # since the Gram matrix of the atoms is computed once for each chunk: with 2,048 atoms, chunks
    # of 1,024 rows take 2.8 times as long as chunks of 8,192 rows. Short rows need more rows in a
    # chunk: for 218,567 rows of 3 features and 2 atoms chunks of 1,024 rows take twice as long.
    n_entries = 2**24 if solved else 2**17
    return max(1024, n_entries // max(learner.n_components_, *x.shape[1:]))


def encode_rows(encoder, dictionary, samples):  # -> (n_samples, n_components)
    """Return the codes of `Samples`, by an encoder of rows or of counts.

    Samples of counts have their exposures as targets, which only encoders of counts take.
    """
    if samples.target is None:
        return encoder(dictionary, samples.x, mask=samples.mask)
    exposure = samples.target
    return encoder(dictionary, samples.x, mask=samples.mask, exposure=exposure)


def hidden_errors(
    samples,
    dictionary,
    encoder,
    measure,
    first_equal=None,
):  # -> float
    """Return how badly codes of some features predict the other features, summed over all entries.

    Features are cut into groups. Each group is hidden once in all rows, and predicted by atoms and
    codes from the other groups; a single feature is predicted from itself.
    `DictionaryTransformer.score` is made of these errors, and learners of counts choose their
    penalty by them.

    Parameters
    ----------
    samples : Samples
        The rows.
    dictionary : DenseDictionary
        The dictionary.
    encoder : callable
        ``encoder(dictionary, x, mask=None)`` returns codes. An encoder that holds numbers of each
        feature has ``of_features(features)``, which returns the encoder for these features.
    measure : callable
        ``measure(predicted, samples, features)`` returns the error of each entry of the hidden
        features, of the shape of ``predicted`` (n_samples, n_hidden); see `deviances`.
    first_equal : Tensor of shape (n_features,), default=None
        For each feature the index of the first feature with the same entries, since equal features
        must be hidden together. By default all features count as distinct.

    Returns
    -------
    float
        The weighted sum of the errors of all known entries.
    """
    atoms = dictionary.atoms
    total = 0.0
    if first_equal is None:
        first_equal = torch.arange(atoms.shape[1], device="cpu")
    depends_on_features = hasattr(encoder, "of_features")
    for seen, hidden in hide_in_turn(first_equal):
        seen = seen.to(atoms.device)
        hidden = hidden.to(atoms.device)
        codes = encode_rows(
            encoder.of_features(seen) if depends_on_features else encoder,
            DenseDictionary(atoms[:, seen]),
            samples.of_features(seen),
        )
        with own_precision():
            predicted = codes @ atoms[:, hidden]
        part = samples.of_features(hidden)
        errors = part.weigh(measure(predicted, part, hidden))
        total = total + (errors if part.mask is None else errors * part.mask).sum()
    return float(total)  # a single wait for the GPU, until the sum is known


def deviances(
    predicted, samples, features, *, loss=LEAST_SQUARES, intercept=None, limit=None
):
    """Return the deviance of each entry from its prediction; for least squares the squared error.

    Parameters
    ----------
    predicted : Tensor of shape (n_samples, n_predicted)
        Predictions, before the intercept is added.
    samples : Samples
        The entries, of the same shape; their targets are exposures.
    features : Tensor of shape (n_predicted,)
        Indices of the predicted features among all features.
    loss : object of `skpudle._losses`, default=LEAST_SQUARES
        The loss whose deviance is returned.
    intercept : Tensor of shape (n_features,), default=None
        The baseline of rows, of counts in natural parameters.
    limit : Tensor of shape (n_features,), default=None
        The largest absolute error that counts, so that outliers do not decide the sum.

    Returns
    -------
    Tensor of shape (n_samples, n_predicted)
        Deviances, in float64.
    """
    # Counts of an exposure e have e times the deviance of their rates, the counts over e. Natural
    # parameters are the logarithms of rates or odds; of least squares, the predictions themselves.
    exposure = 1.0 if samples.target is None else arrays.wide(samples.target)
    x = arrays.wide(samples.x) / exposure
    natural = arrays.wide(predicted)
    if intercept is not None:
        natural = natural + intercept.to(natural)[features]
    if limit is not None:
        most = limit.to(natural)[features]
        x = natural + (x - natural).clamp(-most, most)
    return 2 * exposure * loss.half_deviance(natural, x)


def _join(chunks, source):
    """Concatenate results for chunks of rows, and return them in the type of the user's input.

    ``chunks`` yields tensors (n, ...), and ``source`` is the source of the user's rows. If the
    input is a tensor, the result is a tensor on the same device, else an array.
    """
    # Each chunk is moved off the encoder's device as soon as it is computed, since the memory of a
    # GPU may be too small for the codes of all rows.
    X = source.data
    device = X.device if isinstance(X, torch.Tensor) else "cpu"
    return arrays.like_input(torch.cat([chunk.to(device) for chunk in chunks]), X)


class DictionaryTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Base of all learners of rows: `transform`, `inverse_transform` and `score`.

    A subclass adds `fit`, and ``_transform_encoder()``, which returns the encoder. The encoder has
    to support masks if ``_allows_nan`` is true.
    """

    # defaults for subclasses without these parameters, such as `SporcoDictionaryLearning`
    device = "auto"
    split_sign = False

    _allows_nan = True  # whether NaN marks missing entries; if not, NaN is refused
    _loss = LEAST_SQUARES  # `score` returns the explained fraction of the deviance of this loss
    _largest = None  # for counts: entries must lie between 0 and this value; None allows any number

    # ------------------------------------------------------------------ for subclasses

    @property
    def _intercept(self):
        """The baseline that predictions add, a tensor (n_features,); None if there is none."""
        baseline = baseline_of(self)
        return None if baseline is None else arrays.to_tensor(baseline)

    def _decode_rows(self, rows):  # (n, n_features) -> the same, in place
        """Complete the decoding of ``rows``, which are codes times atoms: add the baseline.

        Of counts, codes times atoms plus the baseline are logarithms of rates or odds, and the
        results are expectations.
        """
        intercept = self._intercept
        if intercept is not None:
            rows += intercept.to(rows)
        return self._loss.mean(rows)

    # ------------------------------------------------------------------ codes and rows

    def transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Encode data: return sparse codes of rows for the learned dictionary.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset or batches as for `fit`. NaN marks missing entries: the codes of a
            row are inferred from its known entries, and `inverse_transform` then fills the gaps.
            (`SporcoDictionaryLearning` takes no NaN: impute first.)

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, in the dtype of ``X``; a tensor, on the same device, if ``X`` is one. With
            ``split_sign=True`` positive parts come first, then negative parts.

        Raises
        ------
        NotFittedError
            If the learner is not fitted.
        ValueError
            If the data are invalid, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform(X)

    # `transform` of all subclasses; ``target`` (n_samples, 1) has exposures of counts, or is None.
    def _transform(self, X, target=None):  # -> (n_samples, n_features_out)
        source = open_source(X)
        return _join(self._codes(source, target), source)

    def _codes(self, source, target):  # yields (n, n_features_out)
        """Yield the codes that `transform` returns, chunk by chunk, on the encoder's device.

        ``source`` is the source of the user's rows, and ``target`` (n_samples, 1) has exposures of
        counts, or is None.
        """
        check_is_fitted(self)
        refuse_shuffled(source.data)
        encoder = self._transform_encoder()
        for samples, dictionary in self._chunks(source, target):
            codes = encode_rows(encoder, dictionary, samples)
            yield split_signs(codes) if self.split_sign else codes

    def transform_sparse(self, X: Any) -> sparse.csr_array:
        """Encode data part by part, and return only the codes that are not zero.

        Parameters
        ----------
        X : array-like, Tensor, memory map, dataset or iterable of batches
            Data, as for `transform` or, of any size, as for `fit`.

        Returns
        -------
        scipy.sparse.csr_array of shape (n_samples, n_features_out)
            Codes, as `transform` returns them.

        Raises
        ------
        NotFittedError
            If the learner is not fitted.
        ValueError
            If the data are invalid, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform_sparse(X)

    # `transform_sparse` of all subclasses; ``target`` (n_samples, 1) has exposures of counts, or is
    # None. Codes become sparse chunk by chunk, to save memory.
    def _transform_sparse(self, X, target=None):  # -> (n_samples, n_features_out)
        codes = self._codes(open_source(X), target)
        parts = [sparse.csr_array(arrays.to_numpy(part)) for part in codes]
        return sparse.vstack(parts, format="csr")

    def inverse_transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Reconstruct data from codes: codes times atoms, plus the baseline.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features_out)
            Codes, as `transform` returns them, or a sparse array of `transform_sparse`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Reconstructed data; for learners of counts their expectations at an exposure of 1.

        Raises
        ------
        NotFittedError
            If the learner is not fitted.
        ValueError
            If ``X`` has another number of columns than the codes of `transform`.
        """
        check_is_fitted(self)
        source = open_source(X)
        n_columns = self._n_features_out
        device = arrays.resolve_device(self.device, X, fitted=True)

        def decoded():  # yields (n, n_features)
            for rows in source.parts(PART):
                codes = arrays.to_tensor(arrays.check_rows(rows), device)
                refuse(
                    codes.shape[1] != n_columns,
                    f"Codes have {codes.shape[1]} columns, but transform returns {n_columns}.",
                )
                if self.split_sign:
                    codes = join_signs(codes)
                atoms = arrays.to_tensor(self.components_, device, codes.dtype)
                with own_precision():
                    products = codes @ atoms
                yield self._decode_rows(products)

        return _join(decoded(), source)

    # ------------------------------------------------------------------ the score

    def score(
        self,
        X: ArrayLike | Tensor,
        y: None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Return the R^2 with which codes of visible features predict held-out features.

        The columns are cut into ten fixed groups. Each group is held out once for all rows; codes
        are inferred from the other columns, and predict the held-out entries. The error of
        reconstruction is always least for the smallest alpha. This score is best between too small
        and too large penalties, so that ``GridSearchCV`` needs no ``scoring``.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset, batches or a sparse array as for `fit`.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        float
            R^2 over all known entries together, each held out once, compared with the column means.
            At most 1, larger is better; 0 for constant data. Scores of different ``alpha``
            compare. With a single feature it is the R^2 of the reconstruction. If two columns are
            equal, one may be predicted from the other, noise included.

        Raises
        ------
        ValueError
            If the data are invalid.
        """
        return self._score(X, sample_weight)

    def _score(self, X, sample_weight, target=None):
        """Return the fraction of the deviance that predictions of hidden columns explain.

        It is 1 minus the deviance from the predictions over the deviance from the column means.
        This is `score` of all subclasses. ``X`` and ``sample_weight`` are the user's input, and
        ``target`` (n_samples, 1) has exposures of counts, or is None.
        """
        check_is_fitted(self)
        source = open_source(X)
        error = 0.0
        means = FromMeans(self._loss)
        weight = None
        if sample_weight is not None:
            weight = arrays.check_sample_weight(sample_weight, source.n_rows)
        # A fit leaves out very long rows, by ``median_norm``. A score counts them, so that only
        # outlying entries (``limit``) are left out below.
        units = replace(units_of(self), median_norm=None)
        limit = None if units.limit is None else units.limit_in_data()
        measure = partial(
            deviances, loss=self._loss, intercept=self._intercept, limit=limit
        )
        encoder = self._transform_encoder()
        for samples, dictionary in self._chunks(source, target, weight):
            error += hidden_errors(samples, dictionary, encoder, measure)
            # Outliers would move the column means, so they become missing entries here.
            if limit is not None:
                samples = replace(samples, mask=samples.in_units(units).mask)
            means.add(samples.map(arrays.wide))
        total = means.total()
        return 1 - error / total if total else 0.0

    # ------------------------------------------------------------------ the summary

    def summary(self, X: ArrayLike | Tensor | None = None) -> str:
        """Return some ten lines of text: what `fit` has decided, and which decisions were close.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features), default=None
            Rows to reconstruct: the summary then has the fraction of their variance, or of the
            deviance of counts, that is explained, and the mean number of nonzero codes.

        Returns
        -------
        str
            Lines: rows and features, the number of atoms, what a learner of this kind decides
            (baseline, outliers, noise, penalties), and the end of the fit.

        Raises
        ------
        NotFittedError
            If the learner is not fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skpudle import PUDLEDictionaryLearning
        >>> X = load_digits().data
        >>> learner = PUDLEDictionaryLearning(32, random_state=0).fit(X)
        >>> print(learner.summary())  # doctest: +ELLIPSIS
        PUDLEDictionaryLearning: 1797 rows of 64 features
          32 atoms, set by you
        ...
        """
        check_is_fitted(self, "components_")
        return describe_fit(self, X, self._loss)

    # ------------------------------------------------------------------ reading

    def _chunks(self, source, target=None, weight=None):
        """Yield pairs of checked `Samples` and the dictionary, on one device.

        The samples are successive rows of ``source``, as many as `chunk_size` says. ``target``
        (exposures of counts) and ``weight`` are what samples have beside their features, with an
        entry for each row of the source.
        """
        device = arrays.resolve_device(self.device, source.data, fitted=True)
        source.read_for(
            self,
            is_fitted=True,
            weight=weight,
            target=target,
            largest=self._largest,
            allow_nan=self._allows_nan,
        )
        # Rows go to the encoder's device chunk by chunk, since the memory of a GPU may be too small
        # for all of them.
        for samples in source.samples(PART):
            x = samples.x
            dictionary = DenseDictionary(
                arrays.to_tensor(self.components_, device, x.dtype)
            )
            for chunk in samples.blocks(chunk_size(self, x, device)):
                yield chunk.to(device), dictionary

    @torch.enable_grad()
    def _codes_with_gradient(self, X):  # -> x, codes
        """Return data in memory as a tensor (n, n_features), and their codes (n, n_components).

        Codes are differentiable in the tensor, for the gradients of `skpudle.inspection`. They are
        signed codes even with ``split_sign``.
        """
        chunks = [*self._chunks(InMemory(open_source(X).array()))]
        x = torch.cat([samples.x for samples, _ in chunks]).requires_grad_()
        _, dictionary = chunks[0]
        return x, encode_rows(self._transform_encoder(), dictionary, Samples(x))

    @property
    def _n_features_out(self):
        return len(self.components_) * (2 if self.split_sign else 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._allows_nan
        tags.input_tags.sparse = True
        tags.input_tags.positive_only = self._largest is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
