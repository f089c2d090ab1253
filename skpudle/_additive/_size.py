"""Choose the number of atoms of counts by hidden entries of held-out rows.

A quarter of the rows is held out. Groups of their features are hidden in turn, and predicted from
codes of the other features. (Thinning, to hide events instead, fails where counts vary more than
Poisson's: the atoms that explain this variation predict the other events of an entry.) The number
grows by half while the prediction of held-out rows improves. Then the atoms that cost the held-out
rows least are removed, and the remaining atoms adapt from where they are. The result is the
smallest number within a standard error of the best.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from skpudle._additive._alternate import Progress, begin, converge, negative_log, solve_codes
from skpudle._additive._dispersion import converge_dispersed, solve_dispersed, weigh
from skpudle._additive._start import spectral_start

# Groups of features; share and largest number of held-out rows; first number of atoms, numbers in a
# row that may fail to predict better, and largest number.
_GROUPS, _HELD, _MOST_HELD, _FIRST, _FAILURES, _MOST = 5, 0.25, 2000, 4, 2, 256
# Steps after growth and after a removal, least relative improvement of a step, and standard errors
# above the best error at which removal ends.
_STEPS, _POLISH, _IMPROVED, _WORSE = 60, 40, 1e-5, 4.0
# Least share of the deviance that an atom explains. Without this bound 8 atoms of noiseless data
# were counted as 22, since spare atoms repair the bias of the prior.
_EXPLAINED = 5e-4
# Tolerances of the likelihood of a row, in nats, for predictions and for costs of atoms; share of a
# removed atom's events that each of the other atoms begins with.
_TOL, _ROUGH, _SHARE = 0.01, 0.1, 1e-3
# rows that initial atoms are made from
_ROWS = 2000


class SizePath(NamedTuple):
    """The numbers of atoms of the removal, increasing.

    Attributes
    ----------
    n_components : ndarray of shape (n_sizes,)
        Numbers of atoms.
    score : ndarray of shape (n_sizes,)
        Explained share of the deviance of hidden entries of held-out rows, against mean rates.
    objective : ndarray of shape (n_sizes,)
        Objective of the alternation, mean over the rows to learn from.
    tolerance : ndarray of shape (n_sizes,)
        The loss against the best score that counts as chance: the standard error of the difference
        over held-out rows, and at least ``_EXPLAINED``.
    """

    n_components: np.ndarray
    score: np.ndarray
    objective: np.ndarray
    tolerance: np.ndarray


class _HeldOut:
    """Rows with each feature hidden once."""

    def __init__(self, events, rng):
        n, m = events.counts.shape
        group = rng.permutation(m) % _GROUPS
        hidden = (np.tile(group == i, (n, 1)).astype(np.float64) for i in range(min(_GROUPS, m)))
        parts = [events.without(sparse.csr_array(entries)) for entries in hidden]
        self.plain = events, [seen for seen, _ in parts]
        self.events, self.seen = self.plain  # weighted, once `weigh` is called
        self.judges, self.dispersion = [judge for _, judge in parts], 0.0

    def weigh(self, atoms, dispersion):
        """Weight all entries, hidden or known, by their rates."""
        if dispersion or self.dispersion:
            events, seen = self.plain
            codes, self.events = solve_dispersed(events, atoms, dispersion, tol=_TOL)
            self.seen = [weigh(part, atoms, codes, dispersion) for part in seen]
            self.dispersion = dispersion

    def predict(self, atoms, codes=None):  # -> (n,) negative log-likelihood, codes of each group
        """Return the errors of rows, and codes; there may be codes of each group to start from."""
        parts = zip(self.seen, codes or [None] * len(self.seen), strict=True)
        codes = [solve_codes(seen, atoms, start, _TOL) for seen, start in parts]
        return self._judged((atoms, code) for code in codes), codes

    def _judged(self, rates):  # (atoms, codes) of each group -> (n,)
        pairs = zip(self.judges, rates, strict=True)
        return sum(judge.negative_likelihood(*pair, self.dispersion) for judge, pair in pairs)

    def costs(self, atoms):  # -> (n_components,)
        """Return the loss of likelihood without each atom, from some sweeps over the codes."""
        codes, costs = solve_codes(self.events, atoms, tol=_TOL), np.zeros(len(atoms))
        for j in range(len(atoms)):
            rows = np.flatnonzero(codes[:, j])  # codes of the atom's users only
            if len(rows):
                some, others = self.events.take(rows), np.delete(atoms, j, 0)
                new = solve_codes(some, others, _without(codes[rows], [j]), _ROUGH)
                before = some.half_deviance(atoms, codes[rows])
                costs[j] = some.half_deviance(others, new) - before
        return costs

    @property
    def least_gain(self):  # -> float
        """The least mean gain of a row by an atom."""
        least, most = self.range
        return _EXPLAINED * (most - least) / self.plain[0].n_rows

    @property
    def range(self):  # -> float, float
        """The errors of perfect rates, and of mean rates."""
        events, ones = self.plain[0], np.ones((self.plain[0].counts.shape[0], 1))
        size, counts = events.visible(ones)[:, 0], events.counts.data
        atom = (events.repeated.sum(0) / np.maximum(size, 1e-300))[None]
        saturated = events.total_of_entries(negative_log(counts, counts, self.dispersion))
        return saturated, self.total(self._judged([(atom, ones)] * len(self.judges)))

    def total(self, errors):  # (n,) -> float
        """Return the sum of the errors of rows."""
        return self.plain[0].total(errors)

    def tolerance(self, errors, best, n_errors, least=0.0):
        """Return the mean loss of rows that counts as chance: standard errors, bounded below."""
        loss, n, weight = errors - best, len(best), self.plain[0].row_weight
        if weight is None:
            return max(n_errors * loss.std(ddof=1) / n**0.5, least)
        squares = np.square(weight * (loss - np.average(loss, weights=weight))).sum()
        return max(n_errors * (n / (n - 1) * squares) ** 0.5 / weight.sum(), least)

    def is_worse(self, errors, best, n_errors, least=0.0):
        """Return whether rows are worse than in the best beyond chance."""
        loss = np.average(errors - best, weights=self.plain[0].row_weight)
        return loss > self.tolerance(errors, best, n_errors, least)


def _without(codes, gone):
    """Return codes without some columns, with a few events added to the remaining codes."""
    left = np.delete(codes, gone, 1)
    return left + _SHARE * codes.sum(1, keepdims=True) / max(left.shape[1], 1)


def first_atoms(events, n_components, dispersion=0.0):  # -> (n_components, n_features)
    """Return the spectral start of events."""
    some = events.sample(_ROWS)
    mask = None if some.missing is None else 1 - some.missing.toarray()
    given = mask, dispersion, some.row_weight
    return spectral_start(some.counts.toarray(), n_components, *given)


def _grow(events, held_out, smoothing, most, dispersion, fixed):  # -> Progress, Events, number
    """Return the state with spare atoms, weighted events, and the number that predicts best."""
    n, n_failed, best, spare, weighted, found = min(_FIRST, most), 0, None, None, events, 0.0
    options, n_fixed = dict(n_steps=_STEPS, tol=_IMPROVED), len(fixed)
    rest = events.unexplained(fixed, solve_codes(events, fixed)) if n_fixed else events
    while True:
        atoms = np.concatenate([fixed, first_atoms(rest, n, found)])
        state = begin(events, atoms, n_fixed)
        state, weighted, now = converge_dispersed(
            events, weighted, state, smoothing, dispersion, **options
        )
        held_out.weigh(state.atoms, now)
        if best is not None and now != found:
            least, _ = held_out.predict(best.atoms)
        found = now
        errors, _ = held_out.predict(state.atoms)
        if best is None or held_out.is_worse(least, errors, 1.0, held_out.least_gain):
            n_failed, least, number, best = 0, errors, n_fixed + n, state
        else:
            n_failed += 1
        spare = state if n_failed <= 1 else spare
        if n_failed == _FAILURES or n == most:
            return spare, weighted, number
        n = min(n + max(n // 2, 1), most)


def choose_size(events, smoothing, rng, dispersion=0.0, fixed=None):  # -> atoms, SizePath
    """Choose the smallest number of atoms that predicts held-out rows nearly best.

    Parameters
    ----------
    events : Events
        Counts of at least 8 rows.
    smoothing : float
        Pseudo-events of the prior, see `advance`.
    rng : numpy.random.Generator
        Chooses rows and features.
    dispersion : float or "auto", default=0.0
        As in `converge_dispersed`.
    fixed : ndarray of shape (n_fixed, n_features), default=None
        First atoms, of sum 1, that stay as they are and count.

    Returns
    -------
    ndarray of shape (n_components, n_features)
        Atoms of that number.
    SizePath
        The numbers that were tried.
    """
    n, m = events.counts.shape
    order, n_held = rng.permutation(n), min(int(_HELD * n), _MOST_HELD)
    held_out = _HeldOut(events.take(np.sort(order[:n_held])), rng)
    events, most = events.take(np.sort(order[n_held:])), min(m, n - n_held, _MOST)
    fixed = np.empty((0, m)) if fixed is None else fixed
    state, events, number = _grow(events, held_out, smoothing, most, dispersion, fixed)
    tried, codes, best = {}, None, None
    while True:
        errors, codes = held_out.predict(state.atoms, codes)
        size = len(state.atoms)
        tried[size] = errors, state
        if best is None or held_out.total(errors) < held_out.total(tried[best][0]):
            best = size
        if size == max(1, len(fixed)) or (
            size < best - 1 and held_out.is_worse(errors, tried[best][0], _WORSE)
        ):
            break
        order = np.argsort(held_out.costs(state.atoms))
        gone = order[order >= len(fixed)][: max(1, (size - number) // 2)]
        atoms, codes = np.delete(state.atoms, gone, 0), [_without(c, gone) for c in codes]
        state = Progress(atoms, _without(state.codes, gone), atoms, codes, n_fixed=len(fixed))
        state = converge(events, state, smoothing, _POLISH, _IMPROVED)
    sizes, (least, most) = sorted(tried), held_out.range
    limits = tried[best][0], 1.0, held_out.least_gain
    chosen = next(s for s in sizes if not held_out.is_worse(tried[s][0], *limits))
    errors = np.array([held_out.total(tried[size][0]) for size in sizes])
    chance = np.array([held_out.tolerance(tried[size][0], *limits) for size in sizes])
    chance = chance * held_out.plain[0].n_rows
    tolerance = chance / (most - least) if most > least else np.zeros(len(sizes))
    score = 1 - (errors - least) / (most - least) if most > least else np.zeros(len(sizes))
    objectives = np.array([tried[size][1].objectives[-1] for size in sizes])
    return tried[chosen][1].atoms, SizePath(np.array(sizes), score, objectives, tolerance)
