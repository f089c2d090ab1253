"""Choose the parameters of `skpudle.PoissonNMF` that are "auto", from the data.

They are the number of atoms, the prior of atoms, whether rows are sparse, and the dispersion. The
prior is a Dirichlet prior; its strength, in pseudo-events per feature, is the parameter ``alpha``,
called *smoothing* here. In *sparse rows* an atom has a code only if the code raises the
log-likelihood of the row by ``min_gain``. The *dispersion* is the variation beyond that of Poisson
counts, and follows from residuals. The other choices minimise the *error*, the negative
log-likelihood, of hidden entries: codes are computed from the visible entries of a row, and predict
its hidden entries.

*Number of atoms.* A quarter of the rows is held out: atoms do not learn from these rows. Five
groups of features are hidden in the held-out rows, one group after the other. (Thinning, to hide
events instead of entries, fails where counts vary more than Poisson counts: the atoms that explain
this variation predict the other events of an entry.) The number grows by half from trial to trial
while the prediction of held-out rows improves. Then the atoms that cost the held-out rows least are
removed, and the remaining atoms adapt, without new initial atoms. The result is the smallest number
within a standard error of the best.

*Prior and sparse rows.* A tenth of the entries is hidden, in a sample of the rows. Neither atoms
nor codes learn from these entries.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaln, xlogy

from skpudle._data.arrays import to_tensor
from skpudle._fit import messages
from skpudle._nmf import alternate
from skpudle._nmf.alternate import Events, Progress, begin, converge, solve_codes
from skpudle._states import Prediction, SizePath
from skpudle.search.find import walk
from skpudle.search.held_out import CHANCE, loss_and_chance, worse

# While the number of atoms is chosen, features are cut into this number of groups, and one group
# after the other is hidden.
_GROUPS = 5
# While the number of atoms is chosen, fits end after three steps in a row that each lower the
# objective by less than this share of the loss (``tol`` of `converge`).
_IMPROVED = 1e-5
# Parameters are chosen in a sample of the rows with about this number of nonzero counts (but at
# least 256 rows), and growth ends at the number of atoms whose product with the nonzero counts
# exceeds _MOST_PRODUCT, about the work of a sweep over all codes. Without both limits growth in
# 2,000 rows of 500 features in which each atom predicts more does not end in ten minutes.
_MOST_COUNTS = 250_000
_MOST_PRODUCT = 5_000_000
# The tolerance of codes that predict hidden entries: with them the log-likelihood of a row may be
# this number of nats below its maximum.
_NATS = 0.01


class Chosen(NamedTuple):
    """The parameters of `skpudle.PoissonNMF` that a fit may choose.

    The first three are numbers, or "auto" before the choice. ``Fitted.coding`` is a `Chosen`.
    """

    # pseudo-events per feature, divided by ``weight_unit``
    alpha: float
    # the variance of a count of expectation mu is mu + dispersion * mu**2
    dispersion: float
    # nats by which a code has to raise the log-likelihood of its row
    min_gain: float
    # The weights of rows are divided by this number. A fit sets it to a mean weight: the sum of
    # squared weights of the distinct rows, over the sum of the weights.
    weight_unit: float = 1.0

    def without_data(self):  # -> Chosen
        """Replace each "auto" by a default, for a learner without data or before its choices."""
        # The default of alpha is 0.5, at the lower end of what suits data: for planted spectra
        # (benchmarks/bench_additive.py) the best alpha is between 0.4 and 13, and 0.5 is never
        # worse than 0.
        return self._replace(
            alpha=0.5 if self.alpha == "auto" else self.alpha,
            dispersion=0.0 if self.dispersion == "auto" else self.dispersion,
            min_gain=0.0 if self.min_gain == "auto" else self.min_gain,
        )


torch.serialization.add_safe_globals([Chosen])  # checkpoints hold it


def negative_log(x, rates, dispersion):  # -> array of the shape of x
    """Return the negative log-likelihood of each count, up to terms that depend on counts alone.

    `Hidden.judge` sums it over hidden entries. ``x`` and ``rates`` are arrays of one shape: counts,
    and their expectations. The distribution is the Poisson distribution if ``dispersion`` is 0,
    else the negative binomial distribution with the variance ``rate + dispersion * rate**2``.
    """
    if dispersion == 0:
        return rates - xlogy(x, rates)
    size = 1 / dispersion
    constant = gammaln(size) - gammaln(x + size)
    return (x + size) * np.log1p(rates / size) - xlogy(x, rates / size) + constant


class Hidden:
    """Judge atoms by how well they predict hidden entries of rows.

    Each mask hides some entries, and the codes that predict these entries follow from all other
    entries of their rows. Call `weigh` before any other method: it sets most attributes below.

    Parameters
    ----------
    events : Events
        Counts of n_samples rows, without weights of entries.
    masks : list of ndarray of bool of shape (n_samples, n_features)
        Each is True for the entries that it hides.

    Attributes
    ----------
    entries : list of tuple of ndarray
        For each mask the rows and the columns of the hidden entries that are known.
    mean : ndarray of shape (n_features,)
        The mean known count of each feature, with weights of rows.
    events : Events
        All entries, hidden or not, with weights of entries.
    seen : list of Events
        The visible entries for each mask, with weights of entries.
    codes : list of ndarray of shape (n_samples, n_components)
        For each mask the codes of the last prediction, from which the next prediction begins. A
        caller who removes atoms must remove the columns of these atoms here.
    saturated : float
        The least possible error of all hidden entries: that of rates which equal the counts.
    null_deviance : float
        The error of rates that are the mean counts of features, minus ``saturated``.
    atom_penalty : ndarray of shape (n_samples,)
        The penalty of an atom in each row: `predict` adds it to errors once for each atom.
    """

    def __init__(self, events, masks):
        observed = events.missing.toarray() < 1
        self.counts = events.counts.toarray()
        self.row_weights = events.row_weights[:, 0]
        self.complete = events
        self.visible = [
            Events.of(self.counts, observed & ~mask, self.row_weights) for mask in masks
        ]
        self.entries = [np.nonzero(mask & observed) for mask in masks]
        n_known = events.visible(np.ones((len(self.row_weights), 1)))[:, 0]
        self.mean = events.by_feature.sum(1) / np.maximum(n_known, 1e-300)

    def weigh(self, atoms, dispersion):
        """Prepare predictions by these atoms: weights of entries, first codes, penalty of an atom.

        The weights of visible entries follow from ``dispersion``, a number, and from the rates of
        ``atoms`` (n_components, n_features), not negative.
        """

        def solve(
            events,
        ):  # Events without weights of entries -> codes, weighted Events
            return alternate.solve_dispersed(events, atoms, dispersion, _NATS)

        self.dispersion = dispersion
        _, self.events = solve(self.complete)
        solved = [solve(events) for events in self.visible]
        self.codes = [codes for codes, _ in solved]
        self.seen = [weighted for _, weighted in solved]
        self.saturated = self.judge([self.counts] * len(self.seen)).sum()
        mean = np.tile(self.mean, (len(self.row_weights), 1))
        null_error = self.judge([mean] * len(self.seen)).sum()
        self.null_deviance = null_error - self.saturated
        # Atoms in excess of the true number still predict a little better, since they correct the
        # bias of the prior: of noiseless data with 8 atoms, 22 atoms were chosen. So each atom
        # adds a penalty to the error. Its sum over all rows is 0.0005 times the null deviance.
        weights = self.row_weights / self.row_weights.sum()
        self.atom_penalty = 5e-4 * self.null_deviance * weights

    def judge(self, rates):  # list of (n, n_features) -> (n,)
        """Return the error of each row: the negative log-likelihood of its hidden entries.

        ``rates`` has for each mask an array of the expectations of all entries, of which only the
        entries that the mask hides are judged. Errors are multiplied by the weights of rows.
        """
        total = 0.0
        for (rows, columns), mu in zip(self.entries, rates, strict=True):
            mu = mu[rows, columns]
            weights = self.row_weights[rows]
            # At a rate of 0 a single event would make the error infinite. So rates are at least a
            # thousandth of the mean rate of the hidden entries.
            mu = np.maximum(mu, 1e-3 * (weights @ mu) / max(weights.sum(), 1e-300))
            entries = negative_log(self.counts[rows, columns], mu, self.dispersion)
            total = total + np.bincount(rows, entries, minlength=len(self.row_weights))
        return self.row_weights * total

    def predict(self, atoms):  # (n_components, n_features) -> Prediction
        """Predict hidden entries from visible entries, and return the errors of all rows.

        The errors of the `Prediction`, (n_samples,), are the errors of `judge` plus the penalty of
        each atom. Codes start from ``self.codes``, which must have a column for each atom, and
        which the new codes replace.
        """
        self.codes = [
            solve_codes(events, atoms, start, _NATS)[0]
            for events, start in zip(self.seen, self.codes, strict=True)
        ]
        errors = self.judge([codes @ atoms for codes in self.codes])
        errors = errors + len(atoms) * self.atom_penalty
        return Prediction(to_tensor(errors), float(errors.sum()))

    def costs(self, atoms):  # -> (n_components,)
        """Return how much the log-likelihood of all rows falls if each atom in turn is removed.

        `choose_size` removes the atoms of least cost. ``atoms`` is (n_components, n_features). No
        entries are hidden here. After a removal codes are solved to 0.1 nats a row.
        """
        codes, losses = solve_codes(self.events, atoms, tol=_NATS)
        removals = alternate.removals(self.events, atoms, codes, losses, 0.1)
        return np.array([self.row_weights[rows] @ rises for rows, _, rises in removals])


def estimate_dispersion(events, atoms, codes):  # -> float
    """Estimate the dispersion of counts from their residuals, after a fit of atoms and codes.

    First a test decides whether squared residuals are larger than the variance of Poisson counts.
    If so, the dispersion follows from the method of moments, in which large rates get small
    weights. Squared residuals are multiplied by a factor that corrects for the number of fitted
    parameters. An entry counts if it is known and its rate is positive.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    codes : ndarray of shape (n_samples, n_components)
        Most likely codes.

    Returns
    -------
    float
        The dispersion: the variance of a count of expectation ``mu`` is ``mu + dispersion *
        mu**2``. 0 if chance explains how much the counts vary more than Poisson counts.
    """
    mu = codes @ atoms
    judged = (mu > 0) & (events.missing.toarray() == 0)
    squares = np.square(events.counts.toarray() - mu)[judged]
    weights = np.broadcast_to(events.row_weights, mu.shape)[judged]
    mu = mu[judged]
    # Entries count by the weights of their rows, and fitted parameters likewise: a code by the
    # weight of its row, and an entry of an atom by a mean weight. One entry of each atom is not
    # fitted, since atoms have the sum 1.
    mean_weight = np.square(events.row_weights).sum() / events.row_weights.sum()
    n_codes = (events.row_weights * (codes > 0)).sum()
    n_fitted = n_codes + (atoms.size - len(atoms)) * mean_weight
    n_judged = weights.sum()
    if n_fitted >= n_judged:
        return 0.0
    excess = weights * (n_judged / (n_judged - n_fitted) * squares - mu)
    # Test the excess of the variance over that of Poisson counts, in standard errors: for Poisson
    # counts x of mean mu, (x - mu)^2 - mu has the mean 0 and the variance mu (2 mu + 1). Weights
    # 1 / (2 mu + 1) keep large rates from dominating the sum.
    variance = (weights**2 * mu / (2 * mu + 1)).sum()
    # An excess of at most 5 standard errors counts as chance.
    if (excess / (2 * mu + 1)).sum() / variance**0.5 <= 5.0:
        return 0.0
    # The precision of a squared residual depends on the dispersion, so the two alternate.
    dispersion = 1.0
    for _ in range(10):
        precision = 1 / np.square(1 + dispersion * mu)
        moment = (precision * weights * mu**2).sum()
        dispersion = max(float((precision * excess).sum() / moment), 0.0)
    return dispersion


class DispersedFit(NamedTuple):
    """Atoms and codes that are fitted to counts which may vary more than Poisson counts.

    Attributes
    ----------
    state : Progress
        The atoms and codes.
    events : Events
        The counts, with weights of entries that follow from the rates of ``state``.
    dispersion : float
        The dispersion.
    """

    state: Progress
    events: Events
    dispersion: float


def converge_dispersed(events, state, smoothing, dispersion, **stop):
    """Fit atoms and codes to counts that vary more than Poisson counts.

    A fit until the objective stalls, and new weights of entries from the fitted rates, alternate
    three times. Without dispersion all weights are 1, and one fit is enough.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    state : Progress
        The state to begin with.
    smoothing : float
        The strength of the prior of atoms: pseudo-events per feature of an atom.
    dispersion : float or "auto"
        The dispersion; "auto" estimates it after each of the three fits.
    **stop : int, float
        ``n_steps`` and ``tol`` of `skpudle._nmf.alternate.converge`, for each of the three fits.

    Returns
    -------
    DispersedFit
        The last state, with the weights of entries and the dispersion that follow from it.
    """
    weighted = events
    for _ in range(3):
        state = converge(weighted, state, smoothing, **stop)
        estimate = dispersion
        if dispersion == "auto":
            estimate = estimate_dispersion(events, state.atoms, state.codes)
        weighted = events.weighed(state.atoms, state.codes, estimate)
        if estimate == 0:
            break
    return DispersedFit(state, weighted, float(estimate))


def _sizing_prior(events, alpha):  # -> float
    """Return the smoothing of fits that come before the choice of ``alpha``.

    The number of atoms and the dispersion are chosen with this smoothing. ``alpha`` is the user's
    parameter, a float or "auto". The smoothing is positive, also for an ``alpha`` of 0: without a
    prior, atoms have entries of 0, where held-out events are impossible.
    """
    if alpha not in ("auto", 0):
        return alpha
    # 2 pseudo-events, but at most a thousandth of the mean number of events of a feature, so that
    # the prior is weak. Tested in 22 fits with n_components="auto" to counts with a known number of
    # atoms: the chosen number is wrong in 1 fit with this smoothing, and in 3 fits if alpha is
    # chosen for 4 atoms first.
    return min(2.0, 1e-3 * float(events.by_feature.sum()) / events.counts.shape[1])


def _sample(events):  # -> Events
    """Return a sample of at most 4,096 rows with about `_MOST_COUNTS` nonzero counts or fewer."""
    share = _MOST_COUNTS / max(events.counts.nnz, 1)
    return events.sample(min(4096, max(256, int(share * len(events.row_weights)))))


class _Sizes:
    """Fits of different numbers of atoms, which hidden entries of held-out rows compare.

    Parameters are those of `choose_size`: the data, the user's parameters, the generator of random
    numbers, and the known atoms.

    Attributes
    ----------
    events : Events
        The rows that are not held out, which atoms are fitted to.
    hidden : Hidden
        The held-out rows, with each group of features hidden once.
    n_fixed, most : int
        The number of known atoms, and the largest number of new atoms to try.
    fixed : ndarray of shape (n_fixed, n_features)
        The known atoms.
    smoothing, dispersion : float
        The strength of the prior of atoms, and the dispersion, a number or "auto", of all fits.
    is_limited : bool
        Whether the time that a fit takes, and not the data, sets ``most``.
    """

    def __init__(self, events, params, rng, fixed):
        events = _sample(events)
        n_rows, n_features = events.counts.shape
        order = rng.permutation(n_rows)
        n_held = min(int(0.25 * n_rows), 2000)
        group = rng.permutation(n_features) % _GROUPS
        groups = range(min(_GROUPS, n_features))
        self.hidden = Hidden(
            events.take(np.sort(order[:n_held])),
            [np.tile(group == i, (n_held, 1)) for i in groups],
        )
        self.events = events.take(np.sort(order[n_held:]))
        self.fixed = fixed
        self.n_fixed = len(fixed)
        self.smoothing = _sizing_prior(events, params.alpha)
        self.dispersion = params.dispersion
        affordable = max(8, _MOST_PRODUCT // max(self.events.counts.nnz, 1))
        self.most = min(n_features, n_rows - n_held, 256, affordable)
        self.is_limited = self.most == affordable

    def fit(self, n_new):  # int -> DispersedFit
        """Fit ``n_new`` new atoms, beside the fixed atoms, to the rows that are not held out."""
        new = alternate.first_atoms(self.events, n_new, self.fixed)
        atoms = np.concatenate([self.fixed, new])
        # At most 60 steps between two updates of the weights of entries, since these atoms are only
        # compared; after the choice the phase "training" fits atoms to all rows.
        return converge_dispersed(
            self.events,
            begin(self.events, atoms, self.n_fixed),
            self.smoothing,
            self.dispersion,
            n_steps=60,
            tol=_IMPROVED,
        )

    def grow(self, fit):  # DispersedFit -> DispersedFit or None
        """Return a fit with half as many new atoms more, or None if there are ``most`` already."""
        n_new = len(fit.state.atoms) - self.n_fixed
        if n_new >= self.most:
            return None
        return self.fit(min(n_new + max(n_new // 2, 1), self.most))

    def judge(self, fit):  # DispersedFit -> Prediction
        """Predict the hidden entries by the atoms and with the dispersion of a fit."""
        self.hidden.weigh(fit.state.atoms, fit.dispersion)
        return self.hidden.predict(fit.state.atoms)

    def shrink_from(self, fit, n_best):
        """Yield fits of fewer and fewer atoms, each with its prediction; the first is ``fit``.

        The atoms that held-out rows need least leave, and the remaining atoms adapt. Half of the
        atoms in excess of ``n_best``, the number that predicted best during growth, leave at once,
        and at least one atom. Fixed atoms stay. Fits and predictions come in pairs (Progress,
        Prediction), which end at an error of more than 4 standard errors above the best error.
        """
        hidden = self.hidden

        def remove(state):  # Progress -> Progress of fewer atoms, or None
            n_atoms = len(state.atoms)
            if n_atoms <= max(1, self.n_fixed):
                return None
            by_cost = np.argsort(hidden.costs(state.atoms))
            n_removed = max(1, (n_atoms - n_best) // 2)
            gone = by_cost[by_cost >= self.n_fixed][:n_removed]
            hidden.codes = [np.delete(codes, gone, 1) for codes in hidden.codes]
            fewer = Progress.at(
                np.delete(state.atoms, gone, 0),
                np.delete(state.codes, gone, 1),
                self.n_fixed,
            )
            return converge(fit.events, fewer, self.smoothing, 40, _IMPROVED)

        def judge(state):  # Progress -> Prediction
            return hidden.predict(state.atoms)

        hidden.weigh(fit.state.atoms, fit.dispersion)
        return walk(fit.state, remove, judge, errors=4.0)


def choose_size(events, params, rng, fixed):  # -> atoms, SizePath
    """Choose the number of atoms: the smallest that predicts held-out rows nearly best.

    The module describes how the number grows, and how atoms are then removed.

    Parameters
    ----------
    events : Events
        Counts of at least 8 rows, without weights of entries.
    params : Chosen
        The user's parameters; "auto" where a fit chooses.
    rng : numpy.random.Generator
        Draws the held-out rows, and the groups of features.
    fixed : ndarray of shape (n_fixed, n_features)
        Known atoms, of sum 1, which come first and stay as they are. The number of atoms counts
        them.

    Returns
    -------
    ndarray of shape (n_components, n_features)
        Atoms of the chosen number, fitted to the rows that are not held out.
    SizePath
        The numbers of atoms that were tried while atoms were removed, in increasing order, with the
        explained share of the deviance of hidden entries, less the penalty of the atoms, as score.
    """
    sizes = _Sizes(events, params, rng, fixed)
    # Growth ends after two numbers in a row without an improvement. After a single one it might end
    # too early: with too few atoms a large dispersion explains what the missing atoms would.
    first = sizes.fit(min(4, sizes.most))
    grown = list(walk(first, sizes.grow, sizes.judge, gains=True, patience=2))
    best = int(np.argmin([prediction.total for _, prediction in grown]))
    if sizes.is_limited and best == len(grown) - 1 and best:
        messages.warn(
            f"n_components='auto' has ended at {sizes.most} atoms: more atoms still predict "
            "hidden counts better, but take long. Pass a number to fit more atoms."
        )
    # Growth skips numbers (from 4 to 6, 9, 13 and so on). So removal begins from the next larger
    # number that was tried, if any, and also reaches numbers between.
    larger, _ = grown[min(best + 1, len(grown) - 1)]
    n_best = len(grown[best][0].state.atoms)
    trials = list(sizes.shrink_from(larger, n_best))
    atoms = _last_as_good(trials)[0].atoms
    return atoms, _size_path(trials, sizes.hidden)


def _size_path(trials, hidden):  # -> SizePath
    """Return the numbers of atoms that removal tried, in increasing order.

    ``trials`` are pairs (Progress, Prediction) in the order of removal, judged by ``hidden``. The
    score is 1 minus the error, as a share of the error of mean counts; both are measured from the
    least possible error. The tolerance is the standard error of the difference from the best error.
    """
    scale = 1 / (hidden.null_deviance or 1.0)
    best = _least_error(trials)
    rows = []
    for state, prediction in trials[::-1]:
        score = 1 + scale * (hidden.saturated - prediction.total)
        # the second result of `loss_and_chance` is the standard error
        tolerance = scale * loss_and_chance(prediction, best)[1]
        rows.append((len(state.atoms), score, state.objectives[-1], tolerance))
    numbers, *columns = torch.tensor(rows, dtype=torch.float64).T
    return SizePath(numbers.long(), *columns)


def _least_error(trials):  # list of (trial, Prediction) -> Prediction
    """Return the prediction of least error."""
    return min((prediction for _, prediction in trials), key=lambda one: one.total)


def _last_as_good(trials, errors=1.0):  # -> (trial, Prediction)
    """Return the last trial whose prediction is as good as the best prediction, up to chance.

    ``trials`` is a list of pairs, a trial and its `Prediction`, in the order in which `walk` tried
    them; the last trial has the fewest atoms, or the largest smoothing. A prediction is as good if
    its error is at most ``errors`` standard errors above the least error.
    """
    best = _least_error(trials)
    return [trial for trial in trials if not worse(trial[1], best, errors)][-1]


def choose_prior(events, params, rng, atoms, n_fixed=0):  # -> Chosen, atoms
    """Choose the dispersion, the prior of atoms, and whether rows are sparse, from given atoms.

    Without any event nothing can be chosen, and the result has default parameters.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    params : Chosen
        The user's parameters; "auto" where a fit chooses.
    rng : numpy.random.Generator
        Draws the hidden entries.
    atoms : ndarray of shape (n_components, n_features)
        Initial atoms.
    n_fixed : int, default=0
        The first ``n_fixed`` atoms are known, and stay as they are.

    Returns
    -------
    Chosen
        The parameters, all numbers.
    ndarray of shape (n_components, n_features)
        Atoms fitted with these parameters to a sample of the rows, from which the fit of all rows
        begins.
    """
    if not events.counts.nnz:
        return params.without_data(), atoms
    events = _sample(events)
    # Sparse rows need a prior, so with alpha=0 rows are not sparse. Without a prior an atom that
    # few rows use gets entries of 0 at features where these rows have no events, and events of
    # other rows at these features become impossible.
    if params.alpha == 0 and params.min_gain == "auto":
        params = params._replace(min_gain=0.0)
    if params.dispersion:
        smoothing = _sizing_prior(events, params.alpha)
        start = begin(events, atoms, n_fixed)
        fit = converge_dispersed(events, start, smoothing, params.dispersion)
        atoms = fit.state.atoms
        params = params._replace(dispersion=fit.dispersion)
    if "auto" not in (params.alpha, params.min_gain):
        return params, atoms
    hidden = Hidden(events, [_draw_mask(events, rng)])
    hidden.weigh(atoms, params.dispersion)
    (visible,) = hidden.seen
    path = _smoothings(params.alpha, float(events.by_feature.sum()) / atoms.size)
    smooth = _smoothest(hidden, visible, begin(visible, atoms, n_fixed), path)
    # "auto" compares rows that may use all atoms (a gain of 0) with sparse rows, where a code has
    # to raise the log-likelihood of its row by 3 nats.
    min_gain = 3.0 if params.min_gain == "auto" else params.min_gain
    if min_gain:
        atoms = smooth.state.atoms
        codes, _ = solve_codes(visible, atoms)
        codes = alternate.prune_codes(visible, atoms, codes, min_gain)
        restricted = replace(visible, allowed=codes > 0)
        start_of_sparse = Progress.at(atoms, codes, n_fixed)
        sparse_rows = _smoothest(hidden, restricted, start_of_sparse, path)
        # Sparse rows are preferred, since their atoms are not mixtures (see `prune_codes`). So they
        # may predict worse than rows that use all atoms, by up to the penalty of one atom.
        penalty = to_tensor(hidden.atom_penalty)
        dense = smooth.prediction
        worst_allowed = dense._replace(errors=dense.errors + penalty)
        if params.min_gain != "auto" or not worse(
            sparse_rows.prediction, worst_allowed, CHANCE
        ):
            return sparse_rows.chosen(params, min_gain)
    return smooth.chosen(params, 0.0)


def _draw_mask(events, rng):  # -> (n_samples, n_features)
    """Draw the entries to hide: a tenth, and at least one known entry, also in tiny tables."""
    observed = np.flatnonzero(events.missing.toarray() < 1)
    mask = rng.random(events.counts.shape) < 0.1
    mask.flat[rng.choice(observed)] = True
    return mask


def _smoothings(alpha, n_events):  # -> list of float
    """Return the smoothings to try; if the user has passed ``alpha``, only this one.

    Each is twice the one before. The first is 0.001 times ``n_events``, the mean number of events
    per entry of an atom, but at most 0.1; the last is at most 4 times ``n_events``.
    """
    if alpha != "auto":
        return [alpha]
    n_events = max(n_events, 1e-300)
    path = [min(0.1, 1e-3 * n_events)]
    while 2 * path[-1] <= 4.0 * n_events:
        path.append(2 * path[-1])
    return path


class _Smoothed(NamedTuple):
    """A fit with one smoothing, and its prediction of hidden entries."""

    smoothing: float
    state: Progress
    prediction: Prediction

    def chosen(self, params, min_gain):  # -> Chosen, atoms
        """Return the results of `choose_prior` for this smoothing and a ``min_gain``."""
        params = params._replace(alpha=self.smoothing, min_gain=min_gain)
        return params, self.state.atoms


def _smoothest(hidden, visible, state, path):  # -> _Smoothed
    """Return the fit of the largest smoothing that predicts as well as the best, up to chance.

    ``visible`` are the visible entries of ``hidden``, ``state`` has the atoms and codes to begin
    with, and ``path`` is the list of smoothings. Each fit begins from the fit before, so all fits
    but the first get few steps.
    """

    def fit(state, place):  # -> place in the path, Progress
        if place == 0:
            return place, converge(visible, state, path[place])
        return place, converge(visible, state, path[place], 60, _IMPROVED)

    def larger(trial):
        place, state = trial
        return fit(state, place + 1) if place + 1 < len(path) else None

    def judge(trial):  # -> Prediction
        # the codes from which the prediction begins
        hidden.codes = [trial[1].codes]
        return hidden.predict(trial[1].atoms)

    trials = list(walk(fit(state, 0), larger, judge, errors=0.0, patience=2))
    (place, state), prediction = _last_as_good(trials, CHANCE)
    return _Smoothed(path[place], state, prediction)
