"""Choose what `skpudle.PoissonNMF` leaves open: number of atoms, prior, sparse rows, dispersion.

The prior is a Dirichlet prior of atoms; its strength, in pseudo-events per feature, is the
parameter ``alpha``, called smoothing here. In sparse rows each row has only few of the atoms
(``min_gain``). The dispersion is the variation beyond Poisson's, and follows from residuals. The
other choices minimise the error of hidden entries, which are predicted from the remaining entries
of their rows.

*Number of atoms.* A quarter of the rows is held out, and groups of their features are hidden in
turn. (Thinning, to hide events instead, fails where counts vary more than Poisson's: the atoms that
explain this variation predict the other events of an entry.) The number grows by half while the
prediction of held-out rows improves. Then the atoms that cost the held-out rows least are removed,
and the remaining atoms adapt from where they are. The result is the smallest number within a
standard error of the best.

*Prior and sparse rows.* A tenth of the entries of all rows is hidden, from the atoms too.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaln, xlogy

from skpudle._data.arrays import to_tensor
from skpudle._nmf import alternate
from skpudle._nmf.alternate import Events, Progress, begin, converge, solve_codes
from skpudle.search.choose import SizePath
from skpudle.search.find import walk
from skpudle.search.held_out import CHANCE, Prediction, loss_and_chance, worse

# While the number of atoms is chosen, features are cut into this number of groups, and each group
# is hidden in turn.
_GROUPS = 5
# While the number of atoms is chosen, a step that lowers the objective by less than this share
# counts as no improvement.
_IMPROVED = 1e-5
# Codes for predictions are solved until a row's log-likelihood is at most this number of nats below
# its maximum.
_NATS = 0.01


class Chosen(NamedTuple):
    """The model of a fit: values of the parameters of `skpudle.PoissonNMF` that may be "auto"."""

    alpha: float  # in units of ``unit``
    dispersion: float
    min_gain: float
    unit: float = 1.0  # the mean weight of rows

    def without_data(self):  # -> Chosen
        """Return the parameters with a default in place of each "auto", where no data choose."""
        # The default of alpha is 0.5. For planted spectra (benchmarks/bench_additive.py) the best
        # alpha is between 0.4 and 13, and 0.5 is never worse than 0.
        pairs = zip(self, (0.5, 0.0, 0.0, 1.0), strict=True)
        return Chosen(*(default if value == "auto" else value for value, default in pairs))


def negative_log(x, rates, dispersion):  # -> as x
    """Return negative log-likelihoods of counts, up to terms of the counts alone.

    Counts of expectation ``mu`` have the variance ``mu + dispersion * mu**2``, of Poisson's
    distribution (0) or a negative binomial one.
    """
    if dispersion == 0:
        return rates - xlogy(x, rates)
    size = 1 / dispersion
    constant = gammaln(size) - gammaln(x + size)
    return (x + size) * np.log1p(rates / size) - xlogy(x, rates / size) + constant


class Hidden:
    """Hidden entries of rows: they judge atoms by how well atoms predict them.

    Each mask hides some entries, and the codes that predict these entries follow from all other
    entries of their rows. Call `weigh` before the first prediction.

    Parameters
    ----------
    events : Events
        Rows, without weights of entries.
    masks : list of ndarray of bool of shape (n_samples, n_features)
        Each is True for the entries that it hides.

    Attributes
    ----------
    seen : list of Events
        The visible entries for each mask, with weights of entries.
    codes : list of ndarray of shape (n_samples, n_components)
        For each mask the codes of the last prediction, from which the next prediction begins.
    perfect, range : float
        The error if all rates equal their counts, and how much larger the error of mean rates is.
    """

    def __init__(self, events, masks):
        known = events.lost.toarray() < 1
        self.counts, self.often = events.counts.toarray(), events.often[:, 0]
        self.plain = [events, *(Events.of(self.counts, known & ~m, self.often) for m in masks)]
        self.entries = [np.nonzero(mask & known) for mask in masks]
        size = events.visible(np.ones((len(self.often), 1)))[:, 0]
        self.mean = events.by_feature.sum(1) / np.maximum(size, 1e-300)

    def weigh(self, atoms, dispersion):
        """Set the dispersion of predictions, and the weights of visible entries that follow.

        ``atoms`` (n_components, n_features) give the rates for the weights.
        """
        self.dispersion = dispersion
        found = [alternate.solve_dispersed(part, atoms, dispersion, _NATS) for part in self.plain]
        (_, *self.codes), (self.events, *self.seen) = zip(*found, strict=True)
        self.perfect = self.judge([self.counts] * len(self.seen)).sum()
        mean = np.tile(self.mean, (len(self.often), 1))
        self.range = self.judge([mean] * len(self.seen)).sum() - self.perfect
        # The price of an atom in each row, which is added to errors: in all rows together 0.0005 of
        # the deviance of mean rates. Without it noiseless data of 8 atoms got 22 atoms, since
        # further atoms repair the bias of the prior.
        self.floor = 5e-4 * self.range / self.often.sum() * self.often

    def judge(self, rates):  # list of (n, n_features) -> (n,)
        """Return the negative log-likelihood of each row's hidden entries, times ``often``.

        ``rates`` has an array for each mask.
        """
        total = 0.0
        for (rows, columns), mu in zip(self.entries, rates, strict=True):
            mu, often = mu[rows, columns], self.often[rows]
            # A rate of 0 would exclude events: the least rate is a thousandth of the mean rate.
            mu = np.maximum(mu, 1e-3 * (often @ mu) / max(often.sum(), 1e-300))
            entries = negative_log(self.counts[rows, columns], mu, self.dispersion)
            total = total + np.bincount(rows, entries, minlength=len(self.often))
        return self.often * total

    def predict(self, atoms):  # -> Prediction
        """Return the error of each row (n,) in predicting hidden entries from visible entries."""
        pairs = zip(self.seen, self.codes, strict=True)
        self.codes = [solve_codes(part, atoms, start, _NATS)[0] for part, start in pairs]
        errors = self.judge([codes @ atoms for codes in self.codes]) + len(atoms) * self.floor
        return Prediction(to_tensor(errors), float(errors.sum()))

    def costs(self, atoms):  # -> (n_components,)
        """Return how much the log-likelihood falls without each atom, to 0.1 nats a row.

        All entries are visible.
        """
        codes, losses = solve_codes(self.events, atoms, tol=_NATS)
        found = alternate.removals(self.events, atoms, codes, losses, 0.1)
        return np.array([self.often[rows] @ costs for rows, _, costs in found])


def estimate_dispersion(events, atoms, codes):  # -> float
    """Estimate the dispersion of counts from their residuals.

    First a test finds whether squared residuals are larger than Poisson's variance. If so, weighted
    moments give the dispersion: large rates get small weights. Squared residuals are enlarged for
    the number of fitted parameters.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    atoms : ndarray of shape (n_components, n_features)
        Atoms.
    codes : ndarray of shape (n_samples, n_components)
        Codes.

    Returns
    -------
    float
        The dispersion; 0 if the counts vary no more than Poisson's.
    """
    mu = codes @ atoms
    known = (mu > 0) & (events.lost.toarray() == 0)  # entries whose residuals count
    parts = mu, np.square(events.counts.toarray() - mu), np.broadcast_to(events.often, mu.shape)
    mu, squares, often = (part[known] for part in parts)
    unit = np.square(events.often).sum() / events.often.sum()
    n_fitted = (events.often * (codes > 0)).sum() + (atoms.size - len(atoms)) * unit
    n_known = often.sum()
    if n_fitted >= n_known:
        return 0.0
    excess = often * (n_known / (n_known - n_fitted) * squares - mu)
    # (x - mu)^2 - mu has the variance 2 mu^2 + mu for Poisson's counts
    errors = (excess / (2 * mu + 1)).sum() / (often**2 * mu / (2 * mu + 1)).sum() ** 0.5
    # an excess of at most 5 standard errors counts as chance
    if errors <= 5.0:
        return 0.0
    found = 1.0
    for _ in range(10):
        weights = 1 / np.square(1 + found * mu)
        found = max(float((weights * excess).sum() / (weights * often * mu**2).sum()), 0.0)
    return found


def converge_dispersed(events, state, smoothing, dispersion, *options):
    """Fit atoms of counts with a dispersion: steps and weights of entries alternate three times.

    Each time steps are made until the objective stalls, and then the weights follow the new rates.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    state : Progress
        The state to begin with.
    smoothing : float
        As in `skpudle._nmf.alternate.advance`.
    dispersion : float or "auto"
        The dispersion; "auto" estimates it.
    *options : int, float
        The largest number of steps and the tolerance of `skpudle._nmf.alternate.converge`.

    Returns
    -------
    tuple of (Progress, Events, float)
        The last state, the events with the weights of its rates, and the dispersion.
    """
    weighted = events
    for _ in range(3):
        state = converge(weighted, state, smoothing, *options)
        found = estimate_dispersion(events, *state[:2]) if dispersion == "auto" else dispersion
        weighted = events.weighed(state.atoms, state.codes, found)
        if found == 0:
            break
    return state, weighted, float(found)


def _sizing_prior(events, alpha):  # -> float
    """Return the smoothing that is used while the number of atoms is chosen.

    It is positive, since without a prior entries of 0 in atoms would exclude held-out events.
    """
    if alpha not in ("auto", 0):
        return alpha
    # 2 pseudo-events, but at most a thousandth of the mean number of events of a feature. In 22
    # fits to counts with a known number of atoms, 1 number is then wrong; if alpha is chosen for 4
    # atoms first, 3 numbers are wrong.
    return min(2.0, 1e-3 * float(events.by_feature.sum()) / events.counts.shape[1])


def choose_size(events, given, rng, fixed):  # -> atoms, SizePath
    """Choose the smallest number of atoms that predicts held-out rows nearly best, see the module.

    Parameters
    ----------
    events : Events
        Counts of at least 8 rows.
    given : Chosen
        The parameters, with "auto" for the open ones.
    rng : numpy.random.Generator
        Chooses rows and features.
    fixed : ndarray of shape (n_fixed, n_features)
        Known atoms, of sum 1, which come first, stay as they are, and count.

    Returns
    -------
    ndarray of shape (n_components, n_features)
        Atoms of that number.
    SizePath
        The numbers of atoms that were tried while atoms were removed, increasing.
    """
    (n, m), n_fixed, smoothing = events.counts.shape, len(fixed), _sizing_prior(events, given.alpha)
    order, n_held = rng.permutation(n), min(int(0.25 * n), 2000)
    group, held = rng.permutation(m) % _GROUPS, events.take(np.sort(order[:n_held]))
    hidden = Hidden(held, [np.tile(group == i, (n_held, 1)) for i in range(min(_GROUPS, m))])
    events, most = events.take(np.sort(order[n_held:])), min(m, n - n_held, 256)

    def grown(n):  # -> Progress, weighted Events, dispersion
        new = alternate.first_atoms(events, n, fixed)
        state = begin(events, np.concatenate([fixed, new]), n_fixed)
        # At most 60 steps for each larger number of atoms; `smaller` makes at most 40.
        how = smoothing, given.dispersion, 60, _IMPROVED
        return converge_dispersed(events, state, *how)

    def larger(size):  # result of `grown` -> the same of more atoms
        n = len(size[0].atoms) - n_fixed
        return grown(min(n + max(n // 2, 1), most)) if n < most else None

    def score(size):  # result of `grown` -> Prediction
        hidden.weigh(size[0].atoms, size[2])
        return hidden.predict(size[0].atoms)

    def smaller(state):  # Progress -> Progress of fewer atoms, or None
        if len(state.atoms) <= max(1, n_fixed):
            return None
        order = np.argsort(hidden.costs(state.atoms))
        gone = order[order >= n_fixed][: max(1, (len(state.atoms) - number) // 2)]
        hidden.codes = [np.delete(codes, gone, 1) for codes in hidden.codes]
        atoms, codes = np.delete(state.atoms, gone, 0), np.delete(state.codes, gone, 1)
        return converge(weighted, Progress.at(atoms, codes, n_fixed), smoothing, 40, _IMPROVED)

    # Growth ends after two numbers in a row without an improvement. A single one may be an error:
    # with too few atoms a large dispersion explains what the missing atoms would.
    sizes = list(walk(grown(min(4, most)), larger, score, gains=True, patience=2))
    place = int(np.argmin([found.total for _, found in sizes]))
    number = len(sizes[place][0][0].atoms)  # the number that predicts best
    # Removal begins with the next larger number, and ends at an error of over 4 standard errors
    # above the best error.
    state, weighted, dispersion = sizes[place : place + 2][-1][0]
    hidden.weigh(state.atoms, dispersion)
    trials = list(walk(state, smaller, lambda one: hidden.predict(one.atoms), errors=4.0))
    scale = 1 / (hidden.range or 1.0)
    best, rows = min((found for _, found in trials), key=lambda found: found.total), []
    for state, found in trials[::-1]:
        score, chance = hidden.perfect - found.total, loss_and_chance(found, best)[1]
        rows.append((len(state.atoms), 1 + scale * score, state.objectives[-1], scale * chance))
    numbers, *parts = torch.tensor(rows, dtype=torch.float64).T
    return _last_as_good(trials)[0].atoms, SizePath(numbers.long(), *parts)


def _last_as_good(trials, errors=1.0):  # of `walk` -> trial, Prediction
    """Return the last trial whose error is at most ``errors`` standard errors above the best."""
    best = min((found for _, found in trials), key=lambda found: found.total)
    return [trial for trial in trials if not worse(trial[1], best, errors)][-1]


def choose_prior(events, given, rng, atoms, n_fixed=0):  # -> Chosen, atoms
    """Choose the dispersion, the prior of atoms, and whether rows have few atoms.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    given : Chosen
        The parameters, with "auto" for the open ones.
    rng : numpy.random.Generator
        Chooses the entries.
    atoms : ndarray of shape (n_components, n_features)
        Initial atoms.
    n_fixed : int, default=0
        The number of first atoms that stay as they are.

    Returns
    -------
    Chosen
        The parameters.
    ndarray of shape (n_components, n_features)
        Atoms that have adapted to the parameters.
    """
    if not events.counts.nnz:
        return given.without_data(), atoms
    events, (alpha, dispersion, min_gain, unit) = events.sample(4096), given
    # Without a prior an atom of few rows gets entries of 0, which exclude events in other rows.
    if alpha == 0 and min_gain == "auto":
        min_gain = 0.0
    if dispersion:
        now = begin(events, atoms, n_fixed), _sizing_prior(events, alpha), dispersion
        (atoms, *_), _, dispersion = converge_dispersed(events, *now)
    if "auto" not in (alpha, min_gain):
        return Chosen(alpha, dispersion, min_gain, unit), atoms
    known = np.flatnonzero(events.lost.toarray() < 1)
    mask = rng.random(events.counts.shape) < 0.1
    mask.flat[rng.choice(known)] = True  # at least one entry
    hidden = Hidden(events, [mask])
    hidden.weigh(atoms, dispersion)
    (seen,), size = hidden.seen, max(float(events.by_feature.sum()) / atoms.size, 1e-300)
    # The smoothings to try: from 0.001 times (but at most 0.1) to 4 times the mean number of events
    # per entry of an atom.
    first, last = (min(0.1, 1e-3 * size), 4.0 * size) if alpha == "auto" else (alpha, 0.0)

    def smoothest(events, state):  # -> (smoothing, Progress), Prediction
        """Return the largest smoothing whose prediction is as good as the best, up to chance."""

        def larger(trial):
            value = 2 * trial[0]
            return (value, converge(events, trial[1], value)) if value <= last else None

        def score(trial):  # codes of hidden rows are not pruned
            hidden.codes = [trial[1].codes]
            return hidden.predict(trial[1].atoms)

        begun = first, converge(events, state, first)
        return _last_as_good(list(walk(begun, larger, score, errors=0.0, patience=2)), CHANCE)

    (value, state), found = smoothest(seen, begin(seen, atoms, n_fixed))
    # "auto" compares codes of all atoms with rows where an atom has to gain 3 nats
    gain = 3.0 if min_gain == "auto" else min_gain
    if gain:
        codes, _ = solve_codes(seen, state.atoms)
        codes = alternate.prune_codes(seen, state.atoms, codes, gain)
        few = replace(seen, allowed=codes > 0), Progress.at(state.atoms, codes, n_fixed)
        (other, few), others = smoothest(*few)
        # rows of few atoms may predict worse than rows of all atoms by the price of one atom
        allowed = found._replace(errors=found.errors + to_tensor(hidden.floor))
        if min_gain != "auto" or not worse(others, allowed, CHANCE):
            return Chosen(other, dispersion, gain, unit), few.atoms
    return Chosen(value, dispersion, 0.0, unit), state.atoms
