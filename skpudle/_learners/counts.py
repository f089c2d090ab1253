"""Dictionaries of counts and fractions: `CountDictionaryLearning`.

Counts may have exposures, factors of the expectations of rows. Inside the package the ``target`` of
samples (`skpudle._data.batches.Samples`) holds them. Counts ``x`` of an exposure ``e`` have ``e``
times the deviance of their rates, ``x / e``, whether effects multiply or, in `skpudle.PoissonNMF`,
add.

A fit has three parts. A search finds atoms in stabilised counts: transformed to a variance of about
1, less the transformed baseline. Its lasso is close to the penalised likelihood if counts are not
too small. Then the baseline is adapted to the atoms. Training minimises the likelihood itself, over
the atoms and the baseline.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import pad

from skpudle._data.arrays import check_numbers, to_numpy, to_tensor, wide
from skpudle._data.sources import open_source, refuse_shuffled
from skpudle._fit.encoders import refuse
from skpudle._fit.plan import Plan
from skpudle._fit.run import Phase
from skpudle._fit.team import refuse_several
from skpudle._gradients import dec
from skpudle._learners import transformer
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.rows import DenseLearner, RowPhases
from skpudle._losses import FromMeans, Poisson, loss_named
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode
from skpudle.search._epoch import draw_rows
from skpudle.search.held_out import match_equal_rows

# ------------------------------------------------------------------ exposures


OfRows = ArrayLike | None  # one number for each row


def check_exposure(exposure, X, learner):  # -> Tensor (n_samples, 1)
    """Return the exposures of the rows of ``X``, given as (n_samples,), if they are right.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each sample, or if the loss takes none.
    """
    refuse(
        getattr(learner, "loss", None) not in ("poisson", "kullback-leibler"),
        "exposure is for counts without a limit: loss='poisson', or PoissonNMF.",
    )
    how = dict(positive=True, of="rows of X, and leave out rows that were not observed")
    return check_numbers(exposure, "exposure", open_source(X).n_rows, **how)[:, None]


class ExposedTransformer(transformer.DictionaryTransformer):
    """What learners of counts share: methods that take exposures of rows.

    A subclass has a ``_loss``, and ``_transform_encoder()`` returns an encoder that is called as
    ``encoder(dictionary, x, mask=None, exposure=None)``. ``encoder.of_features(features)`` is the
    encoder for some of the features.
    """

    def _decode_rows(self, rows):
        rows = rows if self._intercept is None else rows.add_(self._intercept.to(rows))
        return self._loss.mean(rows)

    def _of_rows(self, X, exposure):  # -> dict of fields of `Samples`
        return {} if exposure is None else {"target": check_exposure(exposure, X, self)}

    @fits()
    def fit(
        self, X: Any, y: None = None, exposure: OfRows = None, sample_weight: OfRows = None
    ) -> Self:
        """Learn a dictionary of counts.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Numbers that are not negative, of shape (n_samples, n_features), as for
            `PUDLEDictionaryLearning`: counts, or successes of a binomial loss. NaN marks missing
            entries, which are ignored.
        y : None
            Ignored.
        exposure : array-like of shape (n_samples,), default=None
            Factors of the expectations of each sample, except of a binomial loss: times of
            observation, volumes, opportunities, or totals such as the lengths of texts,
            ``X.sum(axis=1)``. By default 1 for all. Atoms of `PoissonNMF` do not depend on
            exposures; its codes of `transform` are events over exposures.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; its codes do not depend on it. Weights
            equal repetitions, and a weight of zero equals absence. By default all rows count
            once. Next to the pseudo-events of ``alpha`` of `PoissonNMF` the unit of weights is one
            row: twice the weights and the same number are a smaller prior.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are unfit, which leaves the estimator unchanged; or if
            training diverges: the estimator then holds the last finite dictionary.
        TypeError
            If ``X`` can be iterated only once.

        Warns
        -----
        ConvergenceWarning
            If ``max_iter`` is a number, and the fit ended before the objective had stalled.
        UserWarning
            If there are fewer samples than atoms, or features without a known value; by
            `PoissonNMF` also of fractions instead of counts.
        """
        refuse_several(type(self).__name__)
        return self._fit(X, y, sample_weight=sample_weight, **self._of_rows(X, exposure))

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
        return self._score(X, sample_weight, **self._of_rows(X, exposure))


# ------------------------------------------------------------------ stabilised counts


def least_penalty(noise, n_entries, length):
    """Return the least penalty of a search, so that noise and single events get no codes.

    Parameters
    ----------
    noise : float
        The standard deviation of entries at the baseline.
    n_entries : float
        Number of known entries of a row.
    length : float
        The norm of a row's expected counts.
    """
    # Correlations of noise with a unit atom have the standard deviation of the noise, and twice of
    # it is the least penalty. From counts of mean 3.3 a search found 54 % of 50 atoms with 0.7
    # times the noise, and all with 1.4 and with 2.9.
    least = 2.0 * noise
    # Of rows with events, a share of N / (exp(N) - 1) has a single one, with N expected events:
    # 0.05 for 4.5 events. For rare events the variance is the mean. A row of a single event e_j has
    # a code of zero for any atoms if the penalty is at least |e_j - mu|, since this norm bounds the
    # correlation with a unit atom. With smaller penalties single events join features that are
    # unrelated: on counts of planted topics the explained share of held-out deviance fell from
    # -0.03 to -700.
    return max(least, (1 + length**2) ** 0.5) if noise**2 * n_entries < 4.5 else least


# ------------------------------------------------------------------ the likelihood


@dataclass(frozen=True, eq=False)
class CountCodes:
    """The encoder of counts: unfolded gradient descent on their penalised likelihood.

    Parameters
    ----------
    options : dict
        Arguments of `skpudle.encoding.encode`.
    intercept : Tensor of shape (n_features,)
        The baseline.
    """

    options: dict
    intercept: Tensor

    def of_features(self, features):
        """Return the encoder for some of the features, by their indices."""
        return replace(self, intercept=self.intercept[features])

    def offset(self, exposure):  # -> Tensor that broadcasts against the data
        """Return the natural parameters of rows without codes, for exposures (n, 1) or None."""
        known = self.intercept
        return known if exposure is None else known.to(exposure) + exposure.log()

    def __call__(self, dictionary, x, mask=None, exposure=None):
        """Return codes (n, n_components) of counts ``x`` (n, n_features); see `encode`."""
        offset = self.offset(exposure).to(x)
        return encode(dictionary, x, offset=offset, mask=mask, **self.options)


# ------------------------------------------------------------------ the fit


class CountPlan(Plan):
    """The plan of a fit of counts: a search, and training by the likelihood.

    Training updates the atoms, and the baseline as a last row next to them.
    """

    counts_events = True

    def __init__(self, learner):
        constants = dict(gradient="dec", optimizer="auto", n_unfoldings="auto")
        super().__init__(learner, noise="equal", fit_intercept=False, **constants)
        self.loss = loss_named(learner.loss, learner.n_trials)
        self.n_unfoldings, self.name = learner.n_unfoldings, "likelihood"

    def encoder(self, alpha, intercept):  # -> CountCodes
        """Return the encoder with this penalty and baseline (n_features,)."""
        how = dict(n_unfoldings=self.n_unfoldings, positive_code=bool(self.given.positive_code))
        return CountCodes(dict(loss=self.loss, alpha=alpha) | how, intercept)

    def enter(self, samples, noise):  # -> Samples, Fitted
        """Return stabilised counts for the search, and a record without atoms.

        The record has the first baseline, from mean rates, and the unit of the likelihood.
        """
        loss, x = self.loss, samples.x
        counts = samples.weigh(samples.known)  # how often each entry counts
        exposure = 1.0 if samples.target is None else wide(samples.target)
        n_known = counts.sum().clamp_min(1)
        # Half an event is added to each feature, so that the baseline is finite without events.
        rates = ((counts * x).sum(0) + 0.5) / ((counts * exposure).sum(0) + 1)
        intercept, expected = loss.natural(rates).to(x), (exposure * rates).to(x).expand_as(x)
        response = (loss.response(x) - loss.response(expected)) * (counts > 0)
        response = response - (counts * response).sum(0) / counts.sum(0).clamp_min(1)
        samples, fitted = super().enter(replace(samples, x=response), noise)
        # The standard deviation of counts at the baseline: the gradient of the likelihood is this
        # number times the gradient for stabilised counts.
        unit = float(((counts * loss.variance(expected)).sum() / n_known).sqrt())
        curvature = loss.curvature
        if not isfinite(curvature):
            # The mean of the curvatures of entries is weighted by these curvatures: with the plain
            # mean training raised the loss of widely varying counts.
            variance = loss.variance(x)
            sums = (counts * variance.square()).sum(), (counts * variance).sum()
            curvature = float((sums[0] / sums[1]).nan_to_num(1.0))
        sums = n_known, (counts * expected.square()).sum()
        n_entries, square = (float(part) / max(samples.total_weight, 1.0) for part in sums)
        least = least_penalty(unit, n_entries, square**0.5) / unit
        known = dict(unit=unit, curvature=curvature, more=intercept[None])
        known |= dict(data_scale=unit**2 * fitted.data_scale, penalty=max(fitted.penalty, least))
        return samples, replace(fitted, **known)

    def rule(self, dictionary, batch, *, encoder, penalty):  # -> Evaluation
        """Half the deviance, differentiated through the decoder; see `skpudle._gradients.dec`."""
        offset = encoder.offset(batch.target)

        def loss(natural, x):
            return self.loss.half_deviance(natural + offset, x)

        encoder = partial(encoder, exposure=batch.target)
        found = dec(dictionary, batch, encoder=encoder, penalty=penalty, loss=loss)
        return found._replace(codes=pad(found.codes, (0, 1), value=1.0))  # a 1 for the baseline

    def network(self, fitted, update=0):
        """Return what `Plan.network` returns: `rule`, the dictionary, encoder and penalty."""
        how = dict(encoder=self.encoder(fitted.alpha, fitted.more[0]), penalty=fitted.alpha)
        return self.rule, DenseDictionary(fitted.atoms), how

    def replacements(self, fitted, samples):
        """Return rows of parameters for samples that become atoms: their stabilised counts.

        Missing entries, NaN, become zero.
        """
        loss = self.loss
        samples = loss.response(samples) - loss.response(loss.mean(fitted.more[0]))
        return super().replacements(fitted, samples)

    def attributes(self, fitted):
        """Return the fitted attributes."""
        of_counts = {"intercept_": to_numpy(fitted.more[0]), "_fitted_family": self.loss}
        return super().attributes(fitted) | of_counts | {"step_size_": None}

    def adapts(self, n_components):
        """Return False: numbers of rows in a batch and of epochs are those of counts."""
        return False

    def n_updates(self, n_batches, batch_size, data):
        """Return the number of updates that training may take."""
        if self.searches and self.given.max_iter == "auto":
            # These updates raise the explained share of the deviance of thinned data
            # (benchmarks/bench_counts.py) from 0.406 to 0.433 for digits, and from 0.146 to 0.203
            # for words.
            return max(40, 6 * n_batches)
        return super().n_updates(n_batches, batch_size, data)

    def without_effect(self, data):  # yields names, setting
        """Yield pairs: parameters without effect in this fit, and a setting that uses them."""
        if isinstance(self.loss, Poisson):
            yield ("n_trials",), "loss='binomial'"


class _CountPhases(RowPhases):
    """The phases of a fit of counts, with a baseline and a penalty of codes by the likelihood."""

    def table(self, fitted):  # -> tuple of Phase
        """Return all phases: after the search the baseline, training and the penalty of codes."""
        of_rows = [one for one in super().table(fitted) if one.steps != self.choose_unseen_coding]
        *found, training, coding, _ = of_rows
        baseline = Phase("baseline", self.settle, self.plan.searches, ends_search=True)
        return *found, baseline, training, coding

    @torch.no_grad()
    def settle(self, fitted):
        """Find the best baseline for the atoms of the search.

        The first baseline, from mean rates, includes the part that codes explain later. With it
        0.060 of the deviance of heavy-tailed counts stayed unexplained, instead of 0.050. A step is
        the difference of the natural parameters of the means of counts and of expectations.
        Newton's step is the same near the solution; far below it is too long, and expectations
        overflow.
        """
        samples, loss = self.data.samples, self.plan.loss
        dictionary, intercept = DenseDictionary(fitted.atoms), fitted.more[0].clone()
        # the encoder shares the tensor of the baseline, and follows its changes
        encoder = self.plan.encoder(fitted.alpha, intercept)
        for _ in range(5):
            sums = intercept.new_zeros(3, len(intercept))
            for part in samples.blocks(1024):
                codes = transformer.encode_rows(encoder, dictionary, part)
                mean = loss.mean(dictionary.synthesis(codes) + encoder.offset(part.target))
                known = part.weigh(part.known)
                sums += torch.stack([known * part.x, known * mean, known]).sum(1)
            # half an event more keeps the baseline finite where a feature has no events
            counted, expected = loss.natural((sums[:2] + 0.5) / (sums[2] + 1))
            intercept += counted - expected
        yield replace(fitted, more=intercept[None])

    @torch.no_grad()
    def choose_coding(self, fitted):
        """Halve the penalty of codes as long as codes predict hidden entries of rows better."""
        samples, intercept = self.data.samples, fitted.more[0]
        drawn, weight = draw_rows(len(samples), 200, samples.weight)
        some = replace(samples[drawn], weight=weight)
        places = match_equal_rows(some.x.mT, None if some.mask is None else some.mask.mT)
        measure = partial(transformer.deviances, loss=self.plan.loss, intercept=intercept)
        dictionary, chosen, least = DenseDictionary(fitted.atoms), fitted.alpha, inf
        # Penalties above the penalty of the search were never better in tests.
        for penalty in [fitted.alpha * 0.5**i for i in range(5)]:
            encoder = self.plan.encoder(penalty, intercept)
            found = transformer.hidden_errors(some, dictionary, encoder, measure, places)
            if not found < 0.99 * least:
                break
            chosen, least = penalty, found
        yield replace(fitted, coding=(chosen, 0.0, None))


@sets_parameters()
class CountDictionaryLearning(ExposedTransformer, DenseLearner):
    r"""Dictionary learning of counts and fractions, whose effects multiply.

    Counts have the expectation :math:`\exp(D z + b)`, and successes in ``n_trials`` the odds
    :math:`\exp(D z + b)`. By default a search finds the atoms in stabilised counts. Then the
    baseline :math:`b` follows, and a few epochs of training by the likelihood: of the codes of
    unfolded gradient descent, through the decoder. `PoissonNMF` is for counts of sources that add,
    whose expectation is :math:`D z` itself. See :doc:`/guide/counts`.

    Parameters
    ----------
    n_components : int or "auto", default=None
        Number of atoms; by default the number in ``dict_init`` if it is an array or a learner, else
        the number of features. "auto" lets the search choose, as in `PUDLEDictionaryLearning`.

    loss : {"poisson", "binomial"}, default="poisson"
        Distribution of the data: counts, or successes in ``n_trials``. The objective has half the
        deviance.

    n_trials : float, default=1
        Number of trials of the binomial loss; with 1, data are binary or fractions.

    alpha : float or "auto", default="auto"
        Penalty of codes, in the units of the data. "auto" is at least twice the standard deviation
        of the noise, and at least 1 if events are rare. `transform` takes this penalty, or halves
        it as long as hidden features are predicted better.

    n_unfoldings : int, default=100
        Number of iterations of the encoder.

    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.

    positive_dict : bool, default=False
        Whether atoms are restricted to non-negative entries.

    batch_size : int or "auto", default="auto"
        Samples in an update; "auto" is ``min(256, n_samples)``.

    max_iter : int or "auto", default="auto"
        Largest number of epochs of training; "auto" is 6 after a search, and at least 40 updates.
        Without a search it is at most 100.

    tol : float or None, default=1e-4
        Training stops after five checks in a row without this relative improvement of its
        objective; None trains for ``max_iter`` epochs.

    dict_init : str, array-like or learner, default="search"
        Initial dictionary, as in `PUDLEDictionaryLearning`.

    split_sign : bool, default=False
        Whether `transform` returns positive and negative parts of the codes in separate columns.

    device, random_state, verbose
        As in `PUDLEDictionaryLearning`.

    Attributes
    ----------
    components_ : ndarray of shape (n_components, n_features)
        The dictionary, one atom of norm 1 per row.

    intercept_ : ndarray of shape (n_features,)
        The baseline: logarithms of rates, or of odds, of a row without codes.

    alpha_ : float
        The penalty of codes in `transform`.

    search_alpha_ : float
        The penalty of the search in stabilised counts, if there was a search.

    loss_curve_ : ndarray of shape (n_epochs,)
        Mean of half the deviance in each epoch; of the search in stabilised counts.

    n_components_, n_features_in_, feature_names_in_, n_iter_, n_steps_, n_samples_seen_
        As in `PUDLEDictionaryLearning`.

    size_path_, penalty_path_, ended_by_, phases_, fit_seconds_, device_
        As in `PUDLEDictionaryLearning`; ``phases_`` are "search" and "likelihood".

    See Also
    --------
    PoissonNMF : Counts of sources that add.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import CountDictionaryLearning
    >>> X = load_digits().data[:300]
    >>> learner = CountDictionaryLearning(16, random_state=0).fit(X)
    >>> expected = learner.inverse_transform(learner.transform(X))
    >>> bool((expected > 0).all())
    True
    """

    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        loss: Literal["poisson", "binomial"] = "poisson",
        n_trials: float = 1,
        alpha: float | Literal["auto"] = "auto",
        n_unfoldings: int = 100,
        positive_code: bool = False,
        positive_dict: bool = False,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-4,
        dict_init: Any = "search",
        split_sign: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Set the parameters."""

    n_iter_no_change, _phases = 5, _CountPhases

    @property
    def _largest(self):
        return loss_named(self.loss, self.n_trials).largest

    @property
    def _intercept(self):
        return to_tensor(self.intercept_)

    @property
    def _loss(self):
        now = loss_named(self.loss, self.n_trials)
        if getattr(self, "_fitted_family", now) != now:
            raise ValueError(
                f"loss={self.loss!r} and n_trials={self.n_trials} were set after fit, and the "
                f"atoms were learned for {self._fitted_family}. Set them back, or fit again."
            )
        return now

    def _intercept_of(self, atoms, intercept):
        if intercept is None:
            raise ValueError(
                "Counts have a baseline, and got none: pass it as intercept, or pass the atoms as "
                "dict_init and fit, which learns it from data."
            )
        intercept = check_numbers(intercept, "intercept", atoms.shape[1])
        return dict(more=intercept.to(atoms)[None])

    def _plan(self):
        return CountPlan(self)

    def _loss_of_baseline(self, fitted, data):
        means = FromMeans(self._loss).add(data.samples.map(wide))
        return 0.5 * means.total() / data.samples.total_weight + 1e-9

    def _resume(self, plan, data):
        fitted, plan.loss = super()._resume(plan, data), self._loss
        return replace(fitted, more=self._intercept.to(fitted.atoms)[None])

    def _transform_encoder(self):
        self._validate_params()
        plan = CountPlan(self)
        plan.loss = self._loss  # raises an error if it has changed
        return plan.encoder(self.alpha_, self._intercept)

    @fits()
    def partial_fit(
        self, X: Any, y: None = None, exposure: OfRows = None, sample_weight: OfRows = None
    ) -> Self:
        """Update dictionary and baseline by one pass over the data, in their order.

        The first call begins with samples as atoms, and chooses ``alpha_``. Each batch is an
        update; the state of the optimiser persists from call to call, and after `fit`.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.
        exposure, sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are unfit, or if ``loss``, ``n_trials`` or ``n_components`` was set to
            another value since, which leaves the estimator unchanged; or if training diverges.
        """
        return self._partial_fit(X, y, sample_weight=sample_weight, **self._of_rows(X, exposure))
