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

    alpha: float  # pseudo-events per feature, over ``weight_unit`` as weights of rows
    dispersion: float
    min_gain: float
    # The sum of squared weights of the distinct rows, over the sum of the weights.
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
    entries of their rows. Call `weigh` before any other method: it sets the attributes below.

    Parameters
    ----------
    events : Events
        Counts of n_samples rows, without weights of entries.
    masks : list of ndarray of bool of shape (n_samples, n_features)
        Each is True for the entries that it hides.

    Attributes
    ----------
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
        known = events.lost.toarray() < 1
        self.counts = events.counts.toarray()
        self.often = events.often[:, 0]
        self.plain = [
            events,
            *(Events.of(self.counts, known & ~m, self.often) for m in masks),
        ]
        self.entries = [np.nonzero(mask & known) for mask in masks]
        size = events.visible(np.ones((len(self.often), 1)))[:, 0]
        self.mean = events.by_feature.sum(1) / np.maximum(size, 1e-300)

    def weigh(self, atoms, dispersion):
        """Prepare predictions by these atoms: weights of entries, first codes, price of an atom.

        The weights of visible entries follow from ``dispersion``, a number, and from the rates of
        ``atoms`` (n_components, n_features), not negative.
        """
        self.dispersion = dispersion
        found = [
            alternate.solve_dispersed(part, atoms, dispersion, _NATS)
            for part in self.plain
        ]
        (_, *self.codes), (self.events, *self.seen) = zip(*found, strict=True)
        self.saturated = self.judge([self.counts] * len(self.seen)).sum()
        mean = np.tile(self.mean, (len(self.often), 1))
        null_error = self.judge([mean] * len(self.seen)).sum()
        self.null_deviance = null_error - self.saturated
        # Atoms in excess of the true number still predict a little better, since they correct the
        # bias of the prior: of noiseless data with 8 atoms, 22 atoms were chosen. So each atom
        # adds a penalty to the error. Its sum over all rows is 0.0005 times the null deviance.
        weights = self.often / self.often.sum()
        self.atom_penalty = 5e-4 * self.null_deviance * weights

    def judge(self, rates):  # list of (n, n_features) -> (n,)
        """Return the error of each row: the negative log-likelihood of its hidden entries.

        ``rates`` has for each mask an array of the expectations of all entries, of which only the
        entries that the mask hides are judged. Errors are multiplied by the weights of rows.
        """
        total = 0.0
        for (rows, columns), mu in zip(self.entries, rates, strict=True):
            mu = mu[rows, columns]
            often = self.often[rows]
            # At a rate of 0 a single event would make the error infinite. So rates are at least a
            # thousandth of the mean rate of the hidden entries.
            mu = np.maximum(mu, 1e-3 * (often @ mu) / max(often.sum(), 1e-300))
            entries = negative_log(self.counts[rows, columns], mu, self.dispersion)
            total = total + np.bincount(rows, entries, minlength=len(self.often))
        return self.often * total

    def predict(self, atoms):  # (n_components, n_features) -> Prediction
        """Predict hidden entries from visible entries, and return the errors of all rows.

        The errors of the `Prediction`, (n_samples,), are the errors of `judge` plus the price of
        all atoms. Codes start from ``self.codes``, which must have a column for each atom, and
        which the new codes replace.
        """
        pairs = zip(self.seen, self.codes, strict=True)
        self.codes = [
            solve_codes(part, atoms, start, _NATS)[0] for part, start in pairs
        ]
        errors = (
            self.judge([codes @ atoms for codes in self.codes])
            + len(atoms) * self.atom_penalty
        )
        return Prediction(to_tensor(errors), float(errors.sum()))

    def costs(self, atoms):  # -> (n_components,)
        """Return how much the log-likelihood of all rows falls if each atom in turn is removed.

        `choose_size` removes the atoms of least cost. ``atoms`` is (n_components, n_features). No
        entries are hidden here. After a removal codes are solved to 0.1 nats a row.
        """
        codes, losses = solve_codes(self.events, atoms, tol=_NATS)
        found = alternate.removals(self.events, atoms, codes, losses, 0.1)
        return np.array([self.often[rows] @ costs for rows, _, costs in found])


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
    known = (mu > 0) & (events.lost.toarray() == 0)
    parts = (
        mu,
        np.square(events.counts.toarray() - mu),
        np.broadcast_to(events.often, mu.shape),
    )
    mu, squares, often = (part[known] for part in parts)
    unit = np.square(events.often).sum() / events.often.sum()
    n_fitted = (events.often * (codes > 0)).sum() + (atoms.size - len(atoms)) * unit
    n_known = often.sum()
    if n_fitted >= n_known:
        return 0.0
    excess = often * (n_known / (n_known - n_fitted) * squares - mu)
    # Test the excess of the variance over that of Poisson counts, in standard errors: for Poisson
    # counts x of mean mu, (x - mu)^2 - mu has the mean 0 and the variance mu (2 mu + 1). Weights
    # 1 / (2 mu + 1) keep large rates from dominating the sum.
    errors = (excess / (2 * mu + 1)).sum() / (often**2 * mu / (2 * mu + 1)).sum() ** 0.5
    # An excess of at most 5 standard errors counts as chance.
    if errors <= 5.0:
        return 0.0
    found = 1.0
    for _ in range(10):
        weights = 1 / np.square(1 + found * mu)
        found = max(
            float((weights * excess).sum() / (weights * often * mu**2).sum()), 0.0
        )
    return found


def converge_dispersed(events, state, smoothing, dispersion, *options):
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
        As in `skpudle._nmf.alternate.advance`.
    dispersion : float or "auto"
        The dispersion; "auto" estimates it after each of the three fits.
    *options : int, float
        ``n_steps`` and ``tol`` of `skpudle._nmf.alternate.converge`, for each of the three fits.

    Returns
    -------
    tuple of (Progress, Events, float)
        The last state, the events with weights of entries that follow from its rates, and the
        dispersion.
    """
    weighted = events
    for _ in range(3):
        state = converge(weighted, state, smoothing, *options)
        found = (
            estimate_dispersion(events, *state[:2])
            if dispersion == "auto"
            else dispersion
        )
        weighted = events.weighed(state.atoms, state.codes, found)
        if found == 0:
            break
    return state, weighted, float(found)


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
    return events.sample(min(4096, max(256, int(share * len(events.often)))))


def choose_size(events, given, rng, fixed):  # -> atoms, SizePath
    """Choose the number of atoms: the smallest that predicts held-out rows nearly best.

    The module describes how the number grows, and how atoms are then removed.

    Parameters
    ----------
    events : Events
        Counts of at least 8 rows, without weights of entries.
    given : Chosen
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
        explained share of the deviance of hidden entries, less the price of the atoms, as score.
    """
    events = _sample(events)
    (n, m), n_fixed, smoothing = (
        events.counts.shape,
        len(fixed),
        _sizing_prior(events, given.alpha),
    )
    order = rng.permutation(n)
    n_held = min(int(0.25 * n), 2000)
    group = rng.permutation(m) % _GROUPS
    held = events.take(np.sort(order[:n_held]))
    hidden = Hidden(
        held, [np.tile(group == i, (n_held, 1)) for i in range(min(_GROUPS, m))]
    )
    # From here on ``events`` are the rows that are not held out. ``most`` is the largest number of
    # new atoms to try, and ``affordable`` the largest number that takes limited time.
    events = events.take(np.sort(order[n_held:]))
    affordable = max(8, _MOST_PRODUCT // max(events.counts.nnz, 1))
    most = min(m, n - n_held, 256, affordable)

    # Fit n new atoms, beside the fixed atoms, to the rows that are not held out.
    def grown(n):  # int -> Progress, Events with weights of entries, dispersion
        new = alternate.first_atoms(events, n, fixed)
        state = begin(events, np.concatenate([fixed, new]), n_fixed)
        # At most 60 steps between two updates of the weights of entries, since these atoms are only
        # compared; after the choice the phase "training" fits atoms to all rows.
        how = smoothing, given.dispersion, 60, _IMPROVED
        return converge_dispersed(events, state, *how)

    def larger(
        size,
    ):  # result of `grown` -> result for half as many atoms more, or None
        n = len(size[0].atoms) - n_fixed
        return grown(min(n + max(n // 2, 1), most)) if n < most else None

    def score(size):  # result of `grown` -> Prediction
        hidden.weigh(size[0].atoms, size[2])
        return hidden.predict(size[0].atoms)

    # Remove the atoms that held-out rows need least, and let the remaining atoms adapt. Half of the
    # atoms in excess of ``number``, the number that predicted best during growth, are removed, and
    # at least one atom. Fixed atoms stay.
    def smaller(state):  # Progress -> Progress of fewer atoms, or None
        if len(state.atoms) <= max(1, n_fixed):
            return None
        order = np.argsort(hidden.costs(state.atoms))
        gone = order[order >= n_fixed][: max(1, (len(state.atoms) - number) // 2)]
        hidden.codes = [np.delete(codes, gone, 1) for codes in hidden.codes]
        atoms = np.delete(state.atoms, gone, 0)
        codes = np.delete(state.codes, gone, 1)
        return converge(
            weighted, Progress.at(atoms, codes, n_fixed), smoothing, 40, _IMPROVED
        )

    # Growth ends after two numbers in a row without an improvement. After a single one it might end
    # too early: with too few atoms a large dispersion explains what the missing atoms would.
    sizes = list(walk(grown(min(4, most)), larger, score, gains=True, patience=2))
    place = int(np.argmin([found.total for _, found in sizes]))
    if most == affordable and place == len(sizes) - 1 and place:
        messages.warn(
            f"n_components='auto' has ended at {most} atoms: more atoms still predict hidden "
            "counts better, but take long. Pass a number to fit more atoms."
        )
    number = len(sizes[place][0][0].atoms)  # the number that predicts best
    # Growth skips numbers (from 4 to 6, 9, 13 and so on). So removal begins from the next larger
    # number that was tried, if any, and also reaches numbers between. Removal ends at an error of
    # more than 4 standard errors above the best error.
    state, weighted, dispersion = sizes[place : place + 2][-1][0]
    hidden.weigh(state.atoms, dispersion)
    trials = list(
        walk(state, smaller, lambda one: hidden.predict(one.atoms), errors=4.0)
    )
    scale = 1 / (hidden.null_deviance or 1.0)
    best = min((found for _, found in trials), key=lambda found: found.total)
    rows = []
    for state, found in trials[::-1]:
        score = hidden.saturated - found.total
        chance = loss_and_chance(found, best)[1]
        rows.append(
            (len(state.atoms), 1 + scale * score, state.objectives[-1], scale * chance)
        )
    numbers, *parts = torch.tensor(rows, dtype=torch.float64).T
    return _last_as_good(trials)[0].atoms, SizePath(numbers.long(), *parts)


def _last_as_good(
    trials, errors=1.0
):  # list of (trial, Prediction) -> (trial, Prediction)
    """Return the last trial whose prediction is as good as the best prediction, up to chance.

    ``trials`` is a list of pairs, a trial and its `Prediction`, in the order in which `walk` tried
    them; the last trial has the fewest atoms, or the largest smoothing. A prediction is as good if
    its error is at most ``errors`` standard errors above the least error.
    """
    best = min((found for _, found in trials), key=lambda found: found.total)
    return [trial for trial in trials if not worse(trial[1], best, errors)][-1]


def choose_prior(
    events,
    given,
    rng,
    atoms,
    n_fixed=0,
):  # -> Chosen, atoms
    """Choose the dispersion, the prior of atoms, and whether rows are sparse, from given atoms.

    Without any event nothing can be chosen, and the result has default parameters.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    given : Chosen
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
        return given.without_data(), atoms
    events, (alpha, dispersion, min_gain, unit) = _sample(events), given
    # Sparse rows need a prior, so with alpha=0 rows are not sparse. Without a prior an atom that
    # few rows use gets entries of 0 at features where these rows have no events, and events of
    # other rows at these features become impossible.
    if alpha == 0 and min_gain == "auto":
        min_gain = 0.0
    if dispersion:
        now = begin(events, atoms, n_fixed), _sizing_prior(events, alpha), dispersion
        (atoms, *_), _, dispersion = converge_dispersed(events, *now)
    if "auto" not in (alpha, min_gain):
        return Chosen(alpha, dispersion, min_gain, unit), atoms
    known = np.flatnonzero(events.lost.toarray() < 1)
    mask = rng.random(events.counts.shape) < 0.1
    mask.flat[rng.choice(known)] = (
        True  # at least one known entry is hidden, also in tiny tables
    )
    hidden = Hidden(events, [mask])
    hidden.weigh(atoms, dispersion)
    (seen,), size = (
        hidden.seen,
        max(float(events.by_feature.sum()) / atoms.size, 1e-300),
    )
    # The smoothings to try: each is twice the one before, from 0.001 times the mean number of
    # events per entry of an atom (but at most 0.1) to 4 times this mean. If the user has passed
    # alpha, only this smoothing is tried.
    first, last = (
        (min(0.1, 1e-3 * size), 4.0 * size) if alpha == "auto" else (alpha, 0.0)
    )

    def smoothest(events, state):  # -> (smoothing, Progress), Prediction
        """Return the largest smoothing that predicts as well as the best, up to chance.

        ``events`` are the visible entries, and ``state`` has the atoms and codes to begin with.
        Return also the state fitted with this smoothing, and its prediction.
        """

        def larger(trial):
            value = 2 * trial[0]
            if value > last:
                return None
            return value, converge(events, trial[1], value, 60, _IMPROVED)

        def score(trial):  # (smoothing, Progress) -> Prediction
            # from which the codes of the prediction begin
            hidden.codes = [trial[1].codes]
            return hidden.predict(trial[1].atoms)

        begun = first, converge(events, state, first)
        return _last_as_good(
            list(walk(begun, larger, score, errors=0.0, patience=2)), CHANCE
        )

    (value, state), found = smoothest(seen, begin(seen, atoms, n_fixed))
    # "auto" compares rows that may use all atoms (a gain of 0) with sparse rows, where a code has
    # to raise the log-likelihood of its row by 3 nats.
    gain = 3.0 if min_gain == "auto" else min_gain
    if gain:
        codes, _ = solve_codes(seen, state.atoms)
        codes = alternate.prune_codes(seen, state.atoms, codes, gain)
        few = replace(seen, allowed=codes > 0), Progress.at(state.atoms, codes, n_fixed)
        (other, few), others = smoothest(*few)
        # Sparse rows are preferred, since their atoms are not mixtures (see `prune_codes`). So they
        # may predict worse than rows that use all atoms, by up to the price of one atom.
        allowed = found._replace(errors=found.errors + to_tensor(hidden.atom_penalty))
        if min_gain != "auto" or not worse(others, allowed, CHANCE):
            return Chosen(other, dispersion, gain, unit), few.atoms
    return Chosen(value, dispersion, 0.0, unit), state.atoms
