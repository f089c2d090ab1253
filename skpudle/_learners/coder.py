"""Encode, reconstruct and score with a fitted dictionary; large data part by part.

`DictionaryTransformer` needs ``components_`` and an encoder, from any source. Its memory is bounded
for data of any size.
"""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils._param_validation import (
    make_constraint,
    validate_parameter_constraints,
)
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_is_fitted
from torch import Tensor

from skpudle._data.arrays import (
    check_rows,
    like_input,
    resolve_device,
    split_missing,
    to_numpy,
    to_tensor,
    wide,
)
from skpudle._data.batches import Samples
from skpudle._data.sources import (
    InMemory,
    check_exposure,
    open_source,
    part_of,
    refuse_shuffled,
)
from skpudle._data.weights import check_sample_weight
from skpudle._fit.encoders import baseline_of, check_loss, in_units, units_of
from skpudle._fit.messages import wrong_atoms
from skpudle._losses import FromMeans, loss_named
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import own_precision
from skpudle.search._epoch import spread_rows
from skpudle.search.held_out import hide_in_turn

# rows of a part: data outside of memory to encode, or codes to decode
PART = 8192

# Rows encoded at a time: codes of a few stay in the cache of a core, and many fill a GPU.
_CHUNK, _CHUNK_OF_GPU = 1024, 65536
# Least entries of a chunk, of codes or features, 1 MiB in float64: short rows come in larger
# chunks. For 218,567 rows of 3 features and 2 atoms chunks of 1,024 rows take twice as long.
_CHUNK_ENTRIES = 2**17

# Rows of a fit that are checked for nonzero codes: first a few, and all of them if those have none.
_FEW, _ROWS = 16, 1024

# arrays of codes in the encoder at a time
_N_COPIES = 8


def chunk_size(learner, x, device):
    """Return the number of rows that a learner encodes at a time."""
    if device.type == "cuda":
        row = (_N_COPIES * learner.n_components_ + 2 * x.shape[1]) * x.element_size()
        free = torch.cuda.mem_get_info(device)[0]
        # add the memory that torch has reserved but does not use
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return max(1, min(_CHUNK_OF_GPU, free // row))
    solved = getattr(learner, "n_unfoldings", "auto") is None
    if solved or getattr(learner, "transform_algorithm", "unfolded") != "unfolded":
        return len(x)  # solvers have blocks of their own
    return max(_CHUNK, _CHUNK_ENTRIES // max(learner.n_components_, *x.shape[1:]))


def hidden_deviance(loss, encoder_of, dictionary, offset_of, places=None, limit=None):
    """Return a function of samples: the deviance of all features, each held out once.

    Codes are inferred from the features of all other groups; a single feature is predicted from
    itself.

    Parameters
    ----------
    loss : object of `skpudle._losses`
        The loss.
    encoder_of : callable
        Returns the encoder of some features: ``encoder(dictionary, x, mask=mask, offset=offset)``.
    dictionary : DenseDictionary
        The dictionary.
    offset_of : callable
        ``offset_of(samples)`` returns the offset of their reconstruction, or None.
    places : Tensor of shape (n_features,), default=None
        For each feature the place of its first copy, with which it is held out; by default features
        are distinct, so that a score depends on its own samples alone.
    limit : Tensor of shape (n_features,), default=None
        What the error of an entry counts at most.
    """
    atoms = dictionary.atoms
    places = torch.arange(atoms.shape[1], device="cpu") if places is None else places
    turns = [[part.to(atoms.device) for part in turn] for turn in hide_in_turn(places)]

    def deviance(samples):
        x, mask, offset, total = samples.x, samples.mask, offset_of(samples), 0.0
        for seen, hidden in turns:
            visible = DenseDictionary(dictionary.atoms[:, seen])
            codes = encoder_of(seen)(
                visible,
                x[:, seen],
                mask=None if mask is None else mask[:, seen],
                offset=None if offset is None else offset[..., seen],
            )
            with own_precision():
                natural = codes @ dictionary.atoms[:, hidden]
            natural = loss.shifted(natural, None if offset is None else offset[..., hidden])
            values = x[:, hidden]
            if limit is not None:
                most = limit[hidden]
                values = natural + torch.maximum(torch.minimum(values - natural, most), -most)
            entries = 2 * loss.half_deviance(wide(natural), wide(values))
            entries = samples.weigh(entries)
            total = total + (entries if mask is None else entries * mask[:, hidden]).sum()
        return float(total)  # one wait for the device

    return deviance


def _from_means(loss, samples):
    return FromMeans.of(samples.map(wide), loss)


def in_chunks(function, samples, device, size):
    """Yield ``function(samples)`` for chunks of samples on a device."""
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        yield function(samples.map(lambda given, part=part: given[part].to(device)))


def _join(chunks, given):
    """Return results for chunks of rows as one array, or as a tensor on the device of X."""
    X, result, start = given.data, None, 0
    if given.in_parts:
        return np.concatenate([to_numpy(chunk) for chunk in chunks])
    for chunk in chunks:
        if result is None:
            # allocated at once, since a list of parts would need the memory twice; on the host for
            # an array, since the device may be too small
            device = X.device if isinstance(X, torch.Tensor) else "cpu"
            result = chunk.new_empty(given.n_rows, chunk.shape[1], device=device)
        result[start : start + len(chunk)] = chunk
        start += len(chunk)
    return like_input(result, X)


def penalty_of(learner):
    """Return the penalty or threshold that a learner encodes with.

    Raises
    ------
    ValueError
        If the learner was made from atoms alone: "auto" had no data to choose a penalty from.
    """
    if getattr(learner, "transform_alpha", None) is not None:
        return learner.transform_alpha
    if not hasattr(learner, "alpha_"):
        raise ValueError(
            "alpha='auto' is chosen from data, and atoms alone came without. Pass transform_alpha, "
            "or data to partial_fit."
        )
    return learner.alpha_


@cache
def _constraints_of(kind):
    """Return the constraints of the parameters of a class, by name.

    Scikit-learn makes them in every check, which is an eighth of the time of one row's codes.
    """
    return {n: [*map(make_constraint, given)] for n, given in kind._parameter_constraints.items()}


class DictionaryTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Encode with a fitted dictionary; a subclass adds `fit` and `_transform_encoder`."""

    # the page that scikit-learn's HTML view of an estimator links to
    _doc_link_module = "skpudle"
    _doc_link_template = (
        "https://skpudle.readthedocs.io/en/stable/generated/skpudle.{estimator_name}.html"
    )

    # defaults for learners without the parameters
    device = "auto"
    split_sign = False
    loss, n_trials = "gaussian", 1

    _allows_nan = True  # whether NaN marks missing entries

    def _transform_encoder(self):
        """Return the encoder, ``encoder(dictionary, x, mask=None, offset=None)``.

        It has to support masks if `_allows_nan` is true.
        """
        raise NotImplementedError

    def _loss(self):  # -> object of `skpudle._losses`
        """Return the loss of the reconstruction."""
        return loss_named(self.loss, self.n_trials)

    def _offset(self, samples):  # -> (n_features,) or (n, n_features) or None
        """Return the offset of the reconstruction of samples, if the loss has a baseline."""
        x, exposure = samples.x, samples.offset
        if not self._loss().has_baseline:
            return None if exposure is None else exposure.expand(-1, x.shape[1])
        intercept = to_tensor(self.intercept_, x.device).to(x.dtype)
        return intercept if exposure is None else intercept + exposure

    def _validate_params(self, *names):
        """Check parameters as scikit-learn does, the given ones or all."""
        if not names:
            return super()._validate_params()
        constraints = _constraints_of(type(self))
        for name in names:
            value = getattr(self, name)
            if not any(constraint.is_satisfied_by(value) for constraint in constraints[name]):
                given = type(self)._parameter_constraints, {name: value}, type(self).__name__
                validate_parameter_constraints(*given)

    def _take(self, attributes):
        """Set fitted attributes; None removes an attribute that this fit does not have."""
        vars(self).update(attributes)
        for name, value in attributes.items():
            if value is None:
                delattr(self, name)

    def transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
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

        Raises
        ------
        ValueError
            If the data are unfit, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform(X)

    def _transform(self, X, exposure=None):
        refuse_shuffled(X)
        given = open_source(X, self)
        return _join(self._codes(given, exposure), given)

    def _codes(self, given, exposure=None, most=None):  # yields (n, n_features_out)
        check_is_fitted(self)
        encoder = self._transform_encoder()
        for samples, dictionary in self._read_parts(given, exposure):

            def encode(samples, dictionary=dictionary):
                offset = self._offset(samples)
                codes = encoder(dictionary, samples.x, mask=samples.mask, offset=offset)
                if self.split_sign:
                    codes = torch.cat([codes.clamp_min(0), codes.neg().clamp_min(0)], dim=1)
                return codes

            device = dictionary.atoms.device
            size = chunk_size(self, samples.x, device)
            yield from in_chunks(encode, samples, device, min(size, most or size))

    def _has_codes(self, data):  # -> bool
        """Return whether some rows of a fit have nonzero codes, or all rows are constant."""
        samples, baseline = data.samples[spread_rows(len(data.samples), _ROWS)], baseline_of(self)
        x = samples.x
        constant = not x.any() or (len(x) > 1 and (x == x[0]).all())
        if constant or getattr(self, "transform_algorithm", None) == "omp":
            return True  # a baseline explains constant rows, and a pursuit has no penalty
        if baseline is not None:
            samples = replace(samples, x=x - to_tensor(baseline, x.device, x.dtype))
        dictionary = DenseDictionary(to_tensor(self.components_, x.device, x.dtype))
        with warnings.catch_warnings():  # `fit` has named parameters without effect
            warnings.simplefilter("ignore", UserWarning)
            encoder = self._transform_encoder()
        parts = (samples[:_FEW], samples)
        return any(
            encoder(dictionary, part.x, mask=part.mask, offset=self._offset(part)).any()
            for part in parts
        )

    def transform_sparse(self, X: Any) -> csr_array:
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
            If codes are maps, which a sparse array, of rows and columns, cannot hold; or if ``X``
            is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform_sparse(X)

    def _transform_sparse(self, X, exposure=None):
        check_is_fitted(self)
        if hasattr(self, "atom_shape"):
            raise ValueError(
                "The codes of images are maps, but a CSR array has rows and columns only. Use "
                "transform."
            )
        refuse_shuffled(X)
        parts = map(to_numpy, self._codes(open_source(X, self), exposure, PART))
        return sparse.vstack([*map(sparse.csr_array, parts)], format="csr")

    def inverse_transform(self, X: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """Return the data that codes decode to.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features_out)
            Codes, as `transform` returns them, or a sparse array of `transform_sparse`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features)
            Reconstructed data: expectations, of exposure 1 if there are exposures.
        """
        check_is_fitted(self)
        check_loss(self)
        given = open_source(X)
        if given.in_parts:
            parts = given.parts(PART)
            return np.concatenate([self.inverse_transform(rows) for _, rows in parts])
        codes = check_rows(given.array())
        codes = codes if isinstance(codes, torch.Tensor) else to_tensor(codes)
        if codes.shape[1] != self._n_features_out:
            raise ValueError(
                f"Codes have {codes.shape[1]} columns, but {type(self).__name__} returns "
                f"{self._n_features_out}; pass codes as transform returns them."
            )
        atoms = to_tensor(self.components_, self._transform_device(X), codes.dtype)

        loss, offset = self._loss(), self._offset(Samples(atoms))
        if (baseline := baseline_of(self)) is not None:
            offset = to_tensor(baseline, atoms.device, atoms.dtype)

        def decode(samples):
            rows = samples.x
            if self.split_sign:
                rows = rows[:, : len(atoms)] - rows[:, len(atoms) :]
            with own_precision():
                natural = rows @ atoms
            return loss.mean(natural if offset is None else natural.add_(offset))

        return _join(in_chunks(decode, Samples(codes), atoms.device, PART), given)

    def score(
        self, X: ArrayLike | Tensor, y: None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Return R^2 of predicting held-out features from visible features.

        See `skpudle.PUDLEDictionaryLearning.score` with ``loss="gaussian"``.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Data, or a dataset or batches as for `fit`.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts.

        Returns
        -------
        float
            R^2 pooled over all known entries, each held out once, against the column means; at
            most 1, larger is better, comparable across alpha. 0 for constant data. With a single
            feature, the R^2 of the reconstruction.
        """
        return self._score(X, None, sample_weight)

    def _score(self, X, exposure=None, sample_weight=None):
        loss, error, sums = self._loss(), 0.0, []
        for samples, dictionary in self._read_parts(open_source(X, self), exposure, sample_weight):
            device, encoder = dictionary.atoms.device, self._transform_encoder()
            of_features = getattr(encoder, "of_features", lambda _, encoder=encoder: encoder)
            units, limit = units_of(self).of_new_rows(), None
            if units.limit is not None:
                limit = units.limit_in_data().to(dictionary.atoms)
            deviance = hidden_deviance(loss, of_features, dictionary, self._offset, limit=limit)
            size = chunk_size(self, samples.x, device)
            error += sum(in_chunks(deviance, samples, device, size))
            if limit is not None:  # outlying entries do not count in the deviance from the means
                samples = replace(samples, mask=in_units(units, samples).mask)
            sums += in_chunks(partial(_from_means, loss), samples, samples.x.device, PART)
        total = reduce(lambda one, part: one.add(part, loss), sums).total(loss)
        return 1 - error / total if total else 0.0

    def _read_parts(self, given, exposure=None, sample_weight=None):
        """Yield checked samples and the dictionary on the device; data in memory are one part."""
        check_is_fitted(self)
        check_loss(self)
        first, of_rows = 0, {}
        if exposure is not None:
            exposure = check_exposure(exposure, given.n_rows, self.loss)
            of_rows["offset"] = to_tensor(exposure).log()[:, None]
        if sample_weight is not None:
            of_rows["weight"] = check_sample_weight(sample_weight, given.n_rows)
        device = self._transform_device(given.data)  # X itself decides, before its parts do
        parts = given.parts(PART) if given.in_parts else [(None, given.array())]
        for where, rows in parts:
            with part_of(where) if where else nullcontext():
                x, mask = split_missing(self._check_rows(rows))
            part = slice(first, first := first + len(x))
            known = {name: values[part].to(x) for name, values in of_rows.items()}
            atoms = to_tensor(self.components_, device, x.dtype)
            if atoms.ndim != 2 or atoms.shape[1] != x.shape[1]:
                raise wrong_atoms(self, x.shape[1])
            yield Samples(x, mask, **known), DenseDictionary(atoms)

    def _check_rows(self, X):  # -> Tensor (n, n_features) around the baseline
        # names, values, number of features: scikit-learn's order of errors
        _check_feature_names(self, X, reset=False)
        options = dict(allow_nan=self._allows_nan, largest=self._loss().largest)
        x = check_rows(X, estimator=self, **options)
        # rows stay on their device, since another device may be too small for all of them
        x = x if isinstance(x, torch.Tensor) else to_tensor(x)
        _check_n_features(self, X, reset=False)
        baseline = baseline_of(self)
        return x if baseline is None else x - to_tensor(baseline, x.device, x.dtype)

    @torch.enable_grad()
    def _codes_with_gradient(self, X):  # -> x, codes
        """Return data as a tensor, and their signed codes, differentiable in the data."""
        ((samples, dictionary),) = self._read_parts(InMemory(open_source(X, self).array()))
        x = samples.x.to(dictionary.atoms.device, copy=True).requires_grad_()
        return x, self._transform_encoder()(dictionary, x, offset=self._offset(Samples(x)))

    def _transform_device(self, X):
        try:
            return resolve_device(self.device, X)
        except ValueError:  # this machine lacks the device of the fit
            return torch.device("cpu")

    @property
    def _n_features_out(self):
        return len(self.components_) * (2 if self.split_sign else 1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan, tags.input_tags.sparse = self._allows_nan, True
        tags.input_tags.positive_only = self._loss().largest is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class ExposedTransformer(DictionaryTransformer):
    """Encode samples that may have exposures, factors of their expectations."""

    def transform(
        self, X: ArrayLike | Tensor, exposure: ArrayLike | None = None
    ) -> np.ndarray | Tensor:
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
        return self._transform(X, exposure)

    def transform_sparse(self, X: Any, exposure: ArrayLike | None = None) -> csr_array:
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
        return self._transform_sparse(X, exposure)

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        exposure: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
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
        given = {} if exposure is None else {"exposure": exposure}
        weight = {} if sample_weight is None else {"sample_weight": sample_weight}
        return self.fit(X, y, **given, **weight).transform(X, **given)
