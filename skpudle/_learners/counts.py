"""Dictionaries of counts and fractions: `CountDictionaryLearning`.

The expectation of a row of counts is its exposure times a rate for each feature. *Rates* are
``exp(D z + b)`` here, with atoms ``D``, codes ``z`` and the baseline ``b``, so effects of atoms
multiply; for the binomial loss the odds have this form. In `skpudle.PoissonNMF`, which shares the
methods of `ExposedTransformer`, rates are ``D z``, so effects add. *Natural parameters* are the
logarithms of rates or odds: ``D z + b``. Inside the package the ``target`` (n_samples, 1) of
samples (`skpudle._data.sources.Samples`) holds exposures. Counts ``x`` of an exposure ``e`` have
``e`` times the deviance of their rates, ``x / e``.

A fit has three parts. A search finds atoms in *stabilised counts*: transformed so that their
variance is about 1, less the transformed baseline. The lasso of stabilised counts is close to the
penalised likelihood of the counts unless counts are very small. Then the baseline is adapted to the
atoms. Last, training minimises the negative log-likelihood itself, over atoms and baseline.
"""

from collections.abc import Callable
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
from skpudle._fit.encoders import EncoderPlan
from skpudle._fit.messages import refuse
from skpudle._fit.plan import Plan
from skpudle._fit.run import Phase
from skpudle._gradients import dec
from skpudle._learners import transformer
from skpudle._learners.parameters import fits, sets_parameters
from skpudle._learners.rows import DenseLearner, RowPhases
from skpudle._losses import FromMeans, Poisson, loss_named
from skpudle._operators._atoms import DenseDictionary
from skpudle._rows import draw_rows, match_equal_rows
from skpudle._states import Coding
from skpudle.encoding import encode

# ------------------------------------------------------------------ exposures


OfRows = ArrayLike | None  # type of arguments with one number for each row


def check_exposure(exposure, X, learner):  # -> Tensor (n_samples, 1)
    """Check the user's exposures (n_samples,) of the rows of ``X``, and return them as a column.

    Raises
    ------
    ValueError
        If they are not positive numbers, one for each sample, or if the loss takes none.
    """
    refuse(
        getattr(learner, "loss", None) not in ("poisson", "kullback-leibler"),
        "exposure is for counts without a limit: loss='poisson', or PoissonNMF.",
    )
    n_rows = open_source(X).n_rows
    advice = "rows of X, and leave out rows that were not observed"
    numbers = check_numbers(exposure, "exposure", n_rows, positive=True, of=advice)
    return numbers[:, None]


class ExposedTransformer(transformer.DictionaryTransformer):
    """Base of `CountDictionaryLearning` and `PoissonNMF`: public methods that take exposures.

    A subclass has a loss of `skpudle._losses` in ``_loss``, and ``_transform_encoder()``, which
    returns an encoder. It is called as ``encoder(dictionary, x, mask=None, exposure=None)``, and
    ``encoder.of_features(features)`` is the encoder for some of the features.
    """

    # a sample weight of 2 means twice as many events, so `fit` does not rescale weights
    _counts_events = True

    def _targets(self, X, exposure):  # -> Tensor (n_samples, 1) or None
        return None if exposure is None else check_exposure(exposure, X, self)

    @fits()
    def fit(
        self,
        X: Any,
        y: None = None,
        sample_weight: OfRows = None,
        exposure: OfRows = None,
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
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row counts in sums over rows; the codes of a row do not depend on its
            weight. Weights equal repetitions, and a weight of zero equals absence. By default all
            rows count once. The unit of weights is one row, which matters if ``alpha`` of
            `PoissonNMF` is a number of pseudo-events: with all weights doubled the same number is a
            weaker prior.
        exposure : array-like of shape (n_samples,), default=None
            Factors of the expectations of each sample, except of a binomial loss: times of
            observation, volumes, opportunities, or totals such as the lengths of texts,
            ``X.sum(axis=1)``. By default 1 for all. Atoms of `PoissonNMF` do not depend on
            exposures; codes that its `transform` returns are events over exposures.

        Returns
        -------
        self
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or parameters are invalid, which leaves the estimator unchanged; or if
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
        target = self._targets(X, exposure)
        return self._fit(X, y, sample_weight=sample_weight, target=target)

    def transform(self, X: Any, exposure: OfRows = None) -> np.ndarray | Tensor:
        """Encode data: return codes of rows of counts for the learned dictionary.

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
        NotFittedError
            If the learner is not fitted.
        ValueError
            If the data are invalid, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform(X, self._targets(X, exposure))

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
        NotFittedError
            If the learner is not fitted.
        ValueError
            If the data are invalid, or ``X`` is a `torch.utils.data.DataLoader` that shuffles.
        """
        return self._transform_sparse(X, self._targets(X, exposure))

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: OfRows = None,
        exposure: OfRows = None,
    ) -> np.ndarray | Tensor:
        """Learn atoms, and return the codes of the same data.

        Parameters
        ----------
        X, y, sample_weight, exposure
            As for `fit`.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out)
            Codes, as of `transform`.

        Raises
        ------
        ValueError
            As `fit` and `transform` do.
        """
        refuse_shuffled(X)
        return self.fit(X, y, sample_weight, exposure).transform(X, exposure)

    def score(
        self,
        X: Any,
        y: None = None,
        sample_weight: OfRows = None,
        exposure: OfRows = None,
    ) -> float:
        """Return the fraction of the deviance of held-out features that the dictionary explains.

        The columns are cut into ten fixed groups. Each is held out once for all rows, the codes are
        inferred from the other columns, and predict the held-out entries. ``GridSearchCV`` compares
        penalties and numbers of atoms by it.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_samples, n_features)
            Counts, or a dataset, batches or a sparse array as for `fit`.
        y : None
            Ignored.
        sample_weight, exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        float
            1 minus the deviance of the predictions over the deviance of the mean rates times
            exposures, pooled over all known entries. At most 1, larger is better; 0 for constant
            data. A single feature is predicted from itself. `PoissonNMF` gives a row without an
            event in the visible features half an event, since a predicted rate of 0 would have an
            infinite deviance.

        Raises
        ------
        ValueError
            If the data are invalid.
        """
        return self._score(X, sample_weight, self._targets(X, exposure))


# ------------------------------------------------------------------ stabilised counts


def least_penalty(noise, n_entries):
    """Return the smallest penalty for a search in counts: noise and single events get no codes.

    Parameters
    ----------
    noise : float
        The standard deviation of counts at the baseline.
    n_entries : float
        Mean number of known entries of a row.

    Returns
    -------
    float
        The penalty of the likelihood, in units of counts.
    """
    # An atom of norm 1 enters a code if its correlation with the row exceeds the penalty. For pure
    # noise the correlation has the standard deviation of the noise, so a penalty of twice that
    # keeps most noise out of codes. From counts of mean 3.3 a search found 54 % of 50 atoms with a
    # penalty of 0.7 times the noise, and all atoms with 1.4 and with 2.9 times the noise.
    least = 2.0 * noise
    # Rare events need a larger penalty, since a row with a single event shows nothing that features
    # share. Let a row have N events on average: for rare events the variance of a count is its
    # mean, so N is noise**2 * n_entries. Of the rows with events the fraction N / (exp(N) - 1) has
    # a single event: 0.05 for N = 4.5, and more for smaller N. A row with one event, in feature j,
    # is e_j - mu after its expectation mu is subtracted. The norm of e_j - mu bounds its
    # correlation with a unit atom, and is about 1, so with a penalty of 1 the row hardly has codes.
    # With smaller penalties single events join unrelated features in atoms: on counts of planted
    # topics the explained fraction of held-out deviance fell from -0.03 to -700.
    return max(least, 1.0) if noise**2 * n_entries < 4.5 else least


# ------------------------------------------------------------------ the likelihood


@dataclass(frozen=True, eq=False)
class CountCodes:
    """The encoder of counts: unfolded proximal gradient steps on their penalised likelihood.

    Parameters
    ----------
    encode : callable
        `skpudle.encoding.encode` with the loss, the penalty and the number of unfoldings.
    intercept : Tensor of shape (n_features,)
        The baseline, in natural parameters (logarithms of rates or odds).
    """

    encode: Callable
    intercept: Tensor

    def of_features(self, features):
        """Return the encoder for some of the features, by their indices."""
        return replace(self, intercept=self.intercept[features])

    def offset(self, exposure):  # -> Tensor that broadcasts against the data
        """Return the natural parameters of rows whose codes are zero: baseline plus log-exposure.

        ``exposure`` is (n, 1), and the result (n, n_features); without exposures it is the baseline
        (n_features,).
        """
        if exposure is None:
            return self.intercept
        return self.intercept.to(exposure) + exposure.log()

    def __call__(
        self,
        dictionary,
        x,
        mask=None,
        exposure=None,
    ):
        """Return codes (n, n_components) of counts ``x`` (n, n_features); see `encode`."""
        offset = self.offset(exposure).to(x)
        return self.encode(dictionary, x, offset=offset, mask=mask)


# ------------------------------------------------------------------ the fit


def count_encoder(plan, loss, alpha, intercept):  # -> CountCodes
    """Return the encoder of counts: unfolded proximal gradient steps for the likelihood.

    ``plan``, an `EncoderPlan`, has the number of unfoldings and the sign of codes. ``loss`` is an
    object of `skpudle._losses`, ``alpha`` the penalty of codes, and ``intercept`` (n_features,) the
    baseline, in natural parameters (logarithms of rates or odds).
    """
    encode_counts = partial(
        encode,
        loss=loss,
        alpha=alpha,
        n_unfoldings=plan.n_unfoldings,
        positive_code=bool(plan.params.positive_code),
    )
    return CountCodes(encode_counts, intercept)


class CountPlan(Plan):
    """The plan of a fit of counts: a search in stabilised counts, then training by the likelihood.

    The module explains the terms. Training updates the atoms and the baseline; a record has the
    baseline as ``extra`` (1, n_features), which `Plan.join` appends to the atoms as a last row.
    """

    def __init__(self, learner):
        super().__init__(learner)
        self.loss = loss_named(learner.loss, learner.n_trials)
        # whether the data choose the penalty of the codes of `transform`
        self.codes_follow_data = self.params.alpha == "auto"
        self.name = "likelihood"  # what ``phases_`` calls training

    def encoder(self, alpha, intercept):  # -> CountCodes
        """Return the encoder with the penalty ``alpha`` and the baseline (n_features,)."""
        return count_encoder(self, self.loss, alpha, intercept)

    def _expect(self, samples):  # -> (n_features,), (n, n_features), (n, n_features)
        """Return the first baseline, from mean rates; the expectations; and weights of entries.

        ``samples`` are counts. The weight of a missing entry is 0.
        """
        x = samples.x
        weights = samples.weigh(samples.observed)
        exposure = 1.0 if samples.target is None else wide(samples.target)
        # Half an event is added for each feature, since the baseline of a feature without events,
        # the logarithm of its rate, would be infinite.
        rates = ((weights * x).sum(0) + 0.5) / ((weights * exposure).sum(0) + 1)
        expected = (exposure * rates).to(x).expand_as(x)
        return self.loss.natural(rates).to(x), expected, weights

    def enter(self, samples, units):  # -> Samples
        """Return counts transformed to a variance of about 1, in which the search finds atoms.

        The results are the stabilised counts (n, n_features): Anscombe's transform of counts
        (``loss.response``), less that of their expectations, less the mean of each feature.
        """
        _, expected, weights = self._expect(samples)
        loss = self.loss
        response = (loss.response(samples.x) - loss.response(expected)) * (weights > 0)
        mean = (weights * response).sum(0) / weights.sum(0).clamp_min(1)
        return super().enter(replace(samples, x=response - mean), units)

    def first_record(self, samples, rows, units):  # -> Fitted
        """Return a record without atoms, with the first baseline, from mean rates, in ``extra``.

        ``samples`` are the counts, and ``rows`` the stabilised counts. The record has in
        ``penalty_factor`` the factor from penalties of stabilised counts to penalties of the
        likelihood, and in ``penalty`` a penalty of the search that is not below `least_penalty`.
        """
        loss = self.loss
        x = samples.x
        intercept, expected, weights = self._expect(samples)
        n_known = weights.sum().clamp_min(1)
        # The factor is the standard deviation of counts at the baseline, since the gradient of the
        # likelihood is this number times the gradient of the squared error of stabilised counts.
        factor = float(((weights * loss.variance(expected)).sum() / n_known).sqrt())
        curvature = loss.curvature
        if not isfinite(curvature):
            # The curvature (second derivative) of the Poisson loss is the variance of the count,
            # which has no bound. So a mean over the entries is taken, in which each curvature is
            # its own weight: with the plain mean, which is smaller, training raised the loss of
            # widely varying counts.
            weight = weights * loss.variance(x)
            mean = (weight * loss.variance(x)).sum() / weight.sum()
            curvature = float(mean.nan_to_num(1.0))
        n_entries = float(n_known) / max(samples.total_weight, 1.0)
        least = least_penalty(factor, n_entries) / factor
        fitted = super().first_record(samples, rows, units)
        return replace(
            fitted,
            penalty_factor=factor,
            curvature=curvature,
            extra=intercept[None],
            data_scale=factor**2 * fitted.data_scale,
            penalty=max(fitted.penalty, least),
        )

    def rule(
        self,
        dictionary,
        batch,
        *,
        encoder,
        penalty,
    ):  # -> Evaluation
        """Evaluate the gradient rule of training: half the deviance, through the decoder alone.

        So the derivative takes the codes as constants, as the rule "dec" does. ``batch`` are
        `Samples`, whose ``target`` has exposures, ``encoder`` is a `CountCodes`, and ``penalty``
        that of codes. The optimiser needs a column of codes for each row that it updates. So the
        codes get a last column of ones, for the baseline, which is the row after the atoms.
        """
        offset = encoder.offset(batch.target)

        def loss(natural, x):
            return self.loss.half_deviance(natural + offset, x)

        encoder = partial(encoder, exposure=batch.target)
        evaluation = dec(dictionary, batch, encoder=encoder, penalty=penalty, loss=loss)
        codes = pad(evaluation.codes, (0, 1), value=1.0)
        return evaluation._replace(codes=codes)

    def network(self, fitted, update=0):
        """Return the gradient rule, the dictionary, and a dict of encoder and penalty of a record.

        `Trainer` calls it for each update, as `Plan.network`; the update makes no difference.
        """
        encoder = self.encoder(fitted.alpha, fitted.extra[0])
        settings = {"encoder": encoder, "penalty": fitted.alpha}
        return self.rule, DenseDictionary(fitted.atoms), settings

    def replacements(self, fitted, samples):
        """Make atoms of samples, to replace atoms that no code uses: of their stabilised counts.

        ``samples`` are counts (n, n_features), with NaN in missing entries, which become zero. The
        atoms are (n, n_features), of norm 1.
        """
        loss = self.loss
        samples = loss.response(samples) - loss.response(loss.mean(fitted.extra[0]))
        return super().replacements(fitted, samples)

    def attributes(self, fitted):
        """Return the fitted attributes of a record as a dict.

        ``_fitted_family`` is the loss of the fit; `transform` compares it with later parameters.
        """
        attributes = super().attributes(fitted)
        del attributes["step_size_"]  # the encoder of counts has a step of its own
        return attributes | {
            "intercept_": to_numpy(fitted.extra[0]),
            "_fitted_family": self.loss,
        }

    def adapts(self, n_components):
        """Return False: `batch_size` and `n_updates` shall not follow the rule for least squares.

        That rule chooses both after a search, from the numbers of samples and of atoms.
        """
        return False

    def n_updates(self, n_batches, batch_size, data):
        """Return the largest number of updates of training.

        ``n_batches`` is the number of batches of an epoch, and ``data`` is what the fit has read.
        """
        if self.searches and self.params.max_iter == "auto":
            # After a search six epochs, but at least 40 updates, are enough: they raise the
            # explained fraction of the deviance of held-out events from 0.406 to 0.433 for digits,
            # and from 0.146 to 0.203 for words (benchmarks/bench_counts.py).
            return max(40, 6 * n_batches)
        return super().n_updates(n_batches, batch_size, data)

    def without_effect(self, data):  # yields names, setting
        """Yield pairs: parameters without effect in this fit, and a setting that would use them."""
        if isinstance(self.loss, Poisson):
            yield ("n_trials",), "loss='binomial'"


class _CountPhases(RowPhases):
    """The phases of a fit of counts: as for rows, but with `settle` and another `choose_coding`."""

    # A pass over all rows after a search in a sample would minimise the squared error of counts.
    makes_pass = False

    def table(self, fitted):  # -> tuple of Phase
        """Return the phases of `RowPhases.table` with changes for counts.

        The phase "baseline" is added before training. The penalty of codes is chosen after training
        only, by the likelihood.
        """
        phases = super().table(fitted)
        names = [phase.name for phase in phases]
        at = names.index("training")
        baseline = Phase("baseline", self.settle, self.plan.searches, ends_search=True)
        return *phases[:at], baseline, *phases[at:]

    # Held-out rows of the search do not choose the penalty of codes: see `table`.
    def _is_judged(self, fitted):  # -> bool
        return False

    def loss_of_baseline(self, fitted):  # -> float
        """Return half the deviance of a sample from mean rates, to compare training with.

        It is 1e-9 more, so that rounding errors cause no warning.
        """
        samples = self.data.samples
        means = FromMeans(self.plan.loss).add(samples.map(wide))
        return 0.5 * means.total() / samples.total_weight + 1e-9

    @torch.no_grad()
    def settle(self, fitted):
        """Adapt the baseline to the atoms of the search: a phase, which yields one `Fitted`.

        The record has the baseline in ``extra``, of shape (1, n_features).

        The first baseline, from mean rates, includes what codes explain. With the first baseline
        0.060 of the deviance of heavy-tailed counts stayed unexplained, and 0.050 after this phase.
        Each of five steps adds to the baseline of a feature the natural parameter of its mean count
        minus the natural parameter of its mean expectation. Near the solution this is Newton's
        step. Newton's own step is not used, since it is too long where expectations are far too
        small, and expectations then overflow.
        """
        samples = self.data.samples
        loss = self.plan.loss
        dictionary = DenseDictionary(fitted.atoms)
        intercept = fitted.extra[0].clone()
        # The encoder holds the tensor ``intercept`` itself, which the steps below change in place,
        # so each step codes with the present baseline.
        encoder = self.plan.encoder(fitted.alpha, intercept)
        for _ in range(5):
            # for each feature the weighted sums of counts, of expectations, and of the weights
            sums = intercept.new_zeros(3, len(intercept))
            for part in samples.blocks(1024):
                codes = transformer.encode_rows(encoder, dictionary, part)
                mean = loss.mean(
                    dictionary.synthesis(codes) + encoder.offset(part.target)
                )
                weights = part.weigh(part.observed)
                sums += torch.stack([weights * part.x, weights * mean, weights]).sum(1)
            # half an event is added, since a feature without events would have the baseline -inf
            counted, expected = loss.natural((sums[:2] + 0.5) / (sums[2] + 1))
            intercept += counted - expected
        yield replace(fitted, extra=intercept[None])

    @torch.no_grad()
    def choose_coding(self, fitted):
        """Choose the penalty of the codes of `transform`: a phase, which yields one `Fitted`.

        The penalty is halved, up to four times, as long as the error of hidden entries of up to 200
        rows falls by more than 1 %.
        """
        samples = self.data.samples
        intercept = fitted.extra[0]
        indices, weight = draw_rows(len(samples), 200, samples.weight)
        some = replace(samples[indices], weight=weight)
        known = None if some.mask is None else some.mask.mT
        # for each feature the first feature with equal entries, since both must be hidden together
        first_equal = match_equal_rows(some.x.mT, known)
        measure = partial(
            transformer.deviances, loss=self.plan.loss, intercept=intercept
        )
        dictionary = DenseDictionary(fitted.atoms)
        best = fitted.alpha
        least_error = inf
        # Only the penalty of the search and smaller ones are tried: no larger one was better in
        # any test.
        for penalty in [fitted.alpha * 0.5**i for i in range(5)]:
            error = transformer.hidden_errors(
                some,
                dictionary,
                self.plan.encoder(penalty, intercept),
                measure,
                first_equal,
            )
            if not error < 0.99 * least_error:
                break
            best = penalty
            least_error = error
        # 0.0: none of the bias of the penalty is removed from codes
        yield replace(fitted, coding=Coding(best, 0.0))


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
        Training ends when its objective has improved by less than this fraction in five successive
        checks; None trains for ``max_iter`` epochs.

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
        Loss of each epoch: in the search the mean of half the squared error of stabilised counts,
        in training the mean of half the deviance.

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
        """Declare the parameters; `sets_parameters` writes the constructor from this signature."""

    # Parameters of other learners, which are constants here. With "dec" training differentiates the
    # loss through the decoder, and takes the codes as constants.
    gradient = "dec"
    optimizer = "auto"
    noise = "equal"
    fit_intercept = False
    _phases = _CountPhases

    # the largest valid entry, which input must not exceed: ``n_trials``, or infinity for Poisson
    @property
    def _largest(self):
        return loss_named(self.loss, self.n_trials).largest

    @property
    def _intercept(self):
        return to_tensor(self.intercept_)

    # the loss of the fit; raises ValueError if the user has changed its parameters since
    @property
    def _loss(self):
        now = loss_named(self.loss, self.n_trials)
        before = getattr(self, "_fitted_family", now)
        refuse(
            now != before,
            f"loss={self.loss!r} and n_trials={self.n_trials} were set after fit, which was for "
            f"{before}. Set them back, or fit again.",
        )
        return now

    # For `from_components`: the fields of `Fitted` that hold the user's baseline (n_features,).
    # Counts must have a baseline; None raises ValueError.
    def _baseline_fields(self, atoms, intercept):  # -> dict
        refuse(
            intercept is None,
            "Counts have a baseline: pass it as intercept, or fit to data.",
        )
        intercept = check_numbers(intercept, "intercept", atoms.shape[1])
        return {"extra": intercept.to(atoms)[None]}

    def _plan(self):  # -> CountPlan
        return CountPlan(self)

    # Return the record that a later `partial_fit` updates. Its baseline is ``intercept_``, which
    # users may edit. `_loss` raises ValueError if the user has changed the loss.
    def _resume(self, plan, data):  # -> Fitted
        fitted = super()._resume(plan, data)
        plan.loss = self._loss
        return replace(fitted, extra=self._intercept.to(fitted.atoms)[None])

    def _transform_encoder(self):  # -> CountCodes
        self._validate_params()
        # `_loss` raises ValueError if the user has changed the loss
        return count_encoder(
            EncoderPlan(self), self._loss, self.alpha_, self._intercept
        )

    @fits()
    def partial_fit(
        self,
        X: Any,
        y: None = None,
        sample_weight: OfRows = None,
        exposure: OfRows = None,
    ) -> Self:
        """Update dictionary and baseline by one pass over the data, in their order.

        The first call begins with samples as atoms, and chooses ``alpha_``. Each batch is an
        update; the state of the optimiser persists from call to call, and from a `fit` before.

        Parameters
        ----------
        X : array-like, Tensor, memory map, Dataset or iterable of batches
            Data of shape (n_samples, n_features) as for `fit`, cut into batches of ``batch_size``.
        y : None
            Ignored.
        sample_weight, exposure : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        self
            The estimator.

        Raises
        ------
        ValueError
            If the data are invalid, or if ``loss``, ``n_trials`` or ``n_components`` was set to
            another value since, which leaves the estimator unchanged; or if training diverges.
        """
        target = self._targets(X, exposure)
        return self._partial_fit(X, y, sample_weight=sample_weight, target=target)
