r"""Search: find a dictionary, and its penalty, from the data alone.

This is Algorithm 1 over all samples at once. An *epoch* solves the lasso for every sample by
coordinate descent, from its last codes, and then minimises

.. math:: \tfrac12 \|X - Z D\|^2 + \alpha \|Z\|_1 = \tfrac12 \mathrm{tr}(D^T A D)
          - \mathrm{tr}(B^T D) + \dots, \qquad A = Z^T Z,\; B = Z^T X,

over the atoms, one by one, on the sphere. (Unit atoms satisfy each of the learners' norms: the
ball's minimisers lie on its sphere, and without a norm the objective has no minimum.)

`find_atoms` is a generator of `Found`, one for each epoch. Atoms *settle* on a sample of rows and
leave local minima in *rounds* (`skpudle.search.descend`), without the held-out rows. Held-out rows
then choose among larger and smaller *penalties*, at which the atoms adapt further. A search begins
at its usual penalty. Its atoms adapt to larger penalties while the prediction of held-out data does
not get worse; if the first is worse, to smaller penalties while they predict better. Of the trials
that differ from the best by chance the largest penalty is chosen: on planted data chance is tiny,
and the best prediction wins; on real data predictions hardly differ, and sparser codes have atoms
on which two starts agree better. At the end the atoms are *polished* on all samples, or on a larger
sample.

If a larger penalty explains a fifth more than the first, noise has hidden the atoms at the first
penalty: the rounds begin again, one step below the best penalty. (The atoms so far are mixtures,
which predict best at a penalty that is too large for true atoms. Of 60 atoms in 20,000 rows with
twice as much noise as signal 0.95 are found from one step below, and 0.78 from the best penalty.)

All decisions follow from sums over samples, so processes with different samples end with the same
atoms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skpudle.search import descend
from skpudle.search._epoch import own
from skpudle.search.held_out import CHANCE, SURE, Prediction, hold_out, loss_and_chance, worse

# Factor from one penalty to the next larger one.
_LARGER = 2**0.5


def goes_on(found, errors=1.0, *, gains=False, patience=1, total=own):  # -> bool
    """Return whether a walk goes on: fewer than ``patience`` predictions in a row have failed.

    A prediction fails if it is worse than the best one before it by more than ``errors`` standard
    errors. With ``gains`` it fails unless it is better by more than ``errors`` standard errors.
    """
    best, failed = found[0], 0
    for one in found[1:]:
        fails = not worse(best, one, errors, total) if gains else worse(one, best, errors, total)
        failed, best = failed + 1 if fails else 0, min(best, one, key=lambda each: each.total)
    return failed < patience


def walk(first, step, score, **rule):
    """Yield trials, each with its prediction, until predictions fail; see `goes_on`.

    Parameters
    ----------
    first : object
        The first trial.
    step : callable
        ``step(trial)`` returns the next trial, None at the end.
    score : callable
        ``score(trial)`` returns its prediction.
    **rule : dict
        Arguments of `goes_on`.

    Yields
    ------
    tuple of (trial, Prediction)
        All trials, those that fail included.
    """
    trial, found = first, []
    while trial is not None:
        found.append(score(trial))
        yield trial, found[-1]
        trial = step(trial) if goes_on(found, **rule) else None


# ------------------------------------------------------------------ penalties


class PenaltyPath(NamedTuple):
    """The penalties that a search tried, in its order.

    Attributes
    ----------
    alpha : Tensor of shape (n_trials,)
        Penalties.
    score : Tensor of shape (n_trials,)
        Share of the energy of hidden entries that the atoms explain.
    unbiased : Tensor of shape (n_trials,), bool
        Whether these are the atoms without the lasso's bias.
    tolerance : Tensor of shape (n_trials,)
        The score up to which atoms may predict nothing: two standard errors of it.
    """

    alpha: Tensor
    score: Tensor
    unbiased: Tensor
    tolerance: Tensor


class Trial(NamedTuple):
    """Atoms at a penalty, and how well they predict held-out data.

    Attributes
    ----------
    alpha : float
        Penalty.
    unbiased : bool
        Whether the atoms predict better without the lasso's bias.
    prediction : Prediction
        Errors of the better of both kinds of atoms.
    atoms, judged : Tensor of shape (n_components, ...), default=None
        The atoms of the search, and those that predict.
    """

    alpha: float
    unbiased: bool
    prediction: Prediction
    atoms: Tensor | None = None
    judged: Tensor | None = None


_total = attrgetter("total")
error_of = attrgetter("prediction.total")


def _energy(problem):  # -> float
    (energy,) = problem.total(problem.held_out.energies.sum())
    return float(energy)


def zeros(held_out):  # -> Prediction
    """Return the prediction of all hidden entries by zeros."""
    return Prediction(held_out.energies, inf)


def predicts(prediction, held_out):
    """Return whether a prediction of hidden entries is better than zeros, beyond chance."""
    return worse(zeros(held_out), prediction, SURE, held_out.total)


def next_penalty(trials, problem):  # -> float or None
    """Return the next penalty to try after some trials; None at the end of the path."""
    first, held, total = trials[0], problem.held_out, problem.total
    smallest, largest, mixes = held.smallest * held.alpha, held.largest * held.alpha, held.mixes
    ups = [trial.prediction for trial in trials if trial.alpha >= first.alpha]
    downs = [first.prediction, *(t.prediction for t in trials if t.alpha < first.alpha)]
    alpha, smaller = trials[-1].alpha * _LARGER, min(t.alpha for t in trials)
    smaller *= 0.5 if first.alpha <= problem.alpha else 1 / _LARGER
    goes_up = goes_on(ups, total=total) or not predicts(min(ups, key=_total), held)
    if len(downs) == 1 and alpha <= largest and goes_up:
        return alpha
    turns = mixes or len(downs) > 1 or (len(ups) <= 2 and min(trials, key=error_of) is first)
    ends = not goes_on(downs, CHANCE, gains=not mixes, total=total)
    return smaller if turns and not ends and smaller >= smallest else None


def chosen_trial(trials, problem):  # -> Trial
    """Return the trial with the largest penalty that predicts as well as the best, by chance.

    If no trial predicts held-out data better than zeros, it is the first trial.
    """
    best = min(trials, key=error_of)
    if not predicts(best.prediction, problem.held_out):
        return trials[0]
    good = (t for t in trials if not worse(t.prediction, best.prediction, CHANCE, problem.total))
    return max(good, key=lambda trial: trial.alpha)


def finds_more(trials, problem, least=inf):
    """Return whether a larger penalty predicts so much better that a search there finds new atoms.

    It has to explain a fifth more than the first penalty, and a fifth more than all earlier paths,
    whose smallest error is ``least``.
    """
    first, best = trials[0], min(trials, key=error_of)
    energy, before = _energy(problem), min(error_of(first), least)
    # A search begins again at a larger penalty from this gain of explained energy on. The gain is 3
    # and more at -3 dB, 1.5 at 2 dB, and at most 1.07 at 5 dB and for patches and digits.
    found = energy - error_of(best) > 1.2 * max(energy - before, 0.0)
    return best.alpha > first.alpha and found and predicts(best.prediction, problem.held_out)


def penalty_above_noise(first, chosen, problem):  # -> float
    """Return the penalty of a search above the noise, one step below the chosen trial's.

    If the chosen trial does not predict better than the first one beyond chance, return the usual
    penalty, which is the smallest.
    """
    if not worse(first.prediction, chosen.prediction, SURE, problem.total):
        return problem.alpha
    return max(chosen.alpha / _LARGER, problem.alpha)


def penalty_of_mixtures(problem, n_components):  # -> float
    """Return the first penalty for few non-negative atoms, from the level of the noise.

    The usual penalty, which is the largest one, pulls atoms of norm 1 towards the data, and atoms
    do not come back on a path from there. The noise is the residual of the leading singular
    vectors; all entries are known.
    """
    often = problem.weighted(problem.x.new_ones(len(problem.x), 1, dtype=torch.float64))
    x = problem.x.double() * often.sqrt()
    squares = torch.linalg.eigvalsh(x @ x.mT if len(x) < x.shape[1] else x.mT @ x)
    left = float(squares[:-n_components].clamp_min(0).sum())
    n_left = (len(x) - n_components) * (x.shape[1] - n_components)
    # The first penalty of mixtures, in deviations of the noise. The mean angle between eight kinds
    # of spectra and their atoms is 4.2 degrees with a path from the usual penalty, and 1.8 with a
    # path from this penalty.
    penalty = 0.3 * (left / max(n_left, 1)) ** 0.5
    return min(max(penalty, problem.alpha / 256), problem.alpha)


def penalty_path(problem, path, unit):  # -> PenaltyPath or None
    """Return the trials of a search, (alpha, gain, chance, unbiased), in the units of the data."""
    if not path:
        return None
    alpha, gain, chance, unbiased = torch.tensor(path, dtype=torch.float64).T
    energy = _energy(problem) or 1.0
    return PenaltyPath(alpha * unit, gain / energy, unbiased > 0, SURE * chance / energy)


# ------------------------------------------------------------------ the search


@dataclass(frozen=True, eq=False)
class Found:
    r"""A search so far, or its result.

    Attributes
    ----------
    stage : str
        Name of the present stage: "settle", "split and remove", "penalty", "polish" or "done".
    coded : Epoch or ConvEpoch
        The last data with codes for atoms of the wanted number; of a finished search, those with
        the least objective in the polish.
    atoms : Tensor of shape (n_components, ...)
        Its atoms.
    alpha : float
        The penalty of the atoms.
    n_atoms : int
        Number of atoms now, which includes split atoms.
    losses : tuple of float
        The mean over samples of :math:`\frac12 |x - D z|^2` in every epoch.
    path : tuple of (float, float, float, bool)
        All penalties that were tried, with the fall of the squared error of held-out entries, its
        standard error, and whether it is that of atoms without bias.
    trial : Trial, default=None
        The chosen penalty, from the polish on, in data with held-out rows.
    stride : int, default=1
        From the polish on: the atoms adapt to one in ``stride`` samples.
    problem : Problem or ConvProblem
        Data and objective of the search, with what it holds out.
    """

    stage: str
    coded: Any
    atoms: Tensor
    alpha: float
    n_atoms: int
    losses: tuple = ()
    path: tuple = ()
    trial: Trial | None = None
    stride: int = 1
    problem: Any = None

    @property
    def is_done(self):
        """Whether the search has ended."""
        return self.stage == "done"

    @property
    def is_unbiased(self):
        """Whether the atoms without the lasso's bias predict held-out data better."""
        return self.trial is not None and self.trial.unbiased


class _Log:
    """Turn coded data into records of a search: `Found`."""

    def __init__(self, problem, n_components):
        self.problem, self.n_components = problem, n_components
        self.coded, self.losses, self.path = None, (), ()

    def stage(self, name, steps):
        """Yield a record for each epoch of a stage, and return its result."""
        while True:
            try:
                coded = next(steps)
            except StopIteration as end:
                return end.value
            self.losses = (*self.losses, coded.loss * self.problem.unit**2)
            if self.coded is None or len(coded.atoms) == self.n_components:
                self.coded = coded
            known = self.coded.atoms, self.coded.problem.alpha, len(coded.atoms)
            found = self.losses, self.path
            yield Found(name, self.coded, *known, *found, problem=self.problem)

    def note(self, trial):
        """Add a trial to the path."""
        gain = loss_and_chance(zeros(self.problem.held_out), trial.prediction, self.problem.total)
        self.path = *self.path, (trial.alpha, *gain, trial.unbiased)
        return trial


def judge(problem, coded, trials=(), kinds=(False, True)):  # -> Trial
    """Predict held-out data by atoms with and without the lasso's bias; return the better."""
    alpha, begin, judged, found = coded.problem.alpha, (), coded.atoms, []
    if trials:  # start the path of codes where it ended at the last penalty
        last = trials[-1]
        steps = (1, -1) if alpha == last.alpha else (1 if alpha > last.alpha else -1,)
        begin = last.prediction.place, steps
    for unbiased in kinds:
        # four epochs without the lasso's bias
        judged = descend.refit_atoms(coded.problem, judged, coded.codes, 4) if unbiased else judged
        prediction = problem.held_out.predict(judged, *begin)
        begin = prediction.place, *begin[1:]
        found.append(Trial(alpha, unbiased, prediction, coded.atoms, judged))
    biased, last = found[0], found[-1]
    is_better = last is biased or worse(biased.prediction, last.prediction, total=problem.total)
    return last if is_better else biased


def climb(problem, first, stride, note, leader=()):
    """Yield coded data at other penalties; return trials, coded data to go on from, and stride.

    The next penalty starts from the atoms of the last one, unless the path turns.
    """
    trials, best, last = [note(judge(problem, first, leader))], first, first
    while (alpha := next_penalty(trials, problem)) is not None:
        turns = (alpha < trials[-1].alpha) != (trials[-1].alpha < trials[0].alpha)
        begin = best if turns else last
        given = dict(alpha=alpha, codes=begin.codes)
        steps = descend.settle(problem, begin.atoms, stride, descend.ADAPT, **given)
        last, stride = yield from steps
        trial = note(judge(problem, last, trials, (trials[-1].unbiased,)))
        if not any(worse(trial.prediction, one.prediction, total=problem.total) for one in trials):
            best = last
        trials.append(trial)
    return trials, best, stride


def find_atoms(problem, atoms, level=None):
    """Search for the atoms that minimise the objective, and for their penalty.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms of any norm in different directions, such as samples; the same in all
        processes.
    level : callable, default=None
        ``level(problem, atoms)`` returns a penalty at the level of the noise, at which a search of
        signals begins again if its own is smaller. It does so at most four times.

    Yields
    ------
    Found
        The search after each epoch; the last one is done.
    """
    best_atoms = begin = problem.project(atoms.detach().cpu().double())
    stride, alpha, trials, least = descend.first_stride(problem, len(atoms)), problem.alpha, (), inf
    log, chosen, n_raises = _Log(problem, len(atoms)), None, 0
    while True:
        steps = descend.settle(problem, best_atoms, stride, alpha=alpha)
        best, stride = yield from log.stage("settle", steps)
        best = yield from log.stage("split and remove", descend.play_rounds(best))
        noise = level(replace(problem, alpha=alpha), best.atoms) if level and n_raises < 4 else 0.0
        # The level is .5 to 1.2 of the penalty in white noise, and 1.2 to 2.2 in autoregressive
        # noise of coefficient 0.9; there it still rises after four searches, but a larger penalty
        # loses atoms.
        if noise > 1.25 * alpha:
            plain = replace(problem, alpha=noise, held_out=None, held_rows=None)
            problem = log.problem = hold_out(plain, fixed=True)
            alpha, best_atoms, n_raises = noise, begin, n_raises + 1
            stride, trials = descend.first_stride(problem, len(atoms)), ()
            continue
        if problem.held_out is None:
            break
        steps = climb(problem, best, stride, log.note, trials)
        trials, best, stride = yield from log.stage("penalty", steps)
        if problem.held_out.fixed or not finds_more(trials, problem, least):
            chosen = trials[0] if problem.held_out.fixed else chosen_trial(trials, problem)
            break
        leader = min(trials, key=error_of)
        least = min(least, *(trial.prediction.total for trial in trials))
        alpha, best_atoms = penalty_above_noise(trials[0], leader, problem), best.atoms
        trials = (leader,)
    atoms = best.atoms if chosen is None else chosen.atoms
    alpha = best.problem.alpha if chosen is None else chosen.alpha
    # For 256 atoms of 178,000 patches a third of the patches has so many uses of an atom, in 6
    # instead of 18 s, with an objective of 0.2728 instead of 0.2722 on held-out patches.
    wanted = min(stride, descend.stride_of_uses(best, stride, 2000))
    whole = problem.thinned(wanted, alpha=alpha)
    if problem.has_baseline:
        whole = replace(whole, baseline=torch.zeros_like(atoms[0]))
    is_same = chosen is None and wanted == stride and problem.held_rows is None
    codes = best.codes if is_same else whole.first_codes(atoms)
    # with half of this share 8 x 8 patches take a tenth longer for 0.002 of the objective
    steps, last, best = descend.descend(whole, atoms, codes, 60, stall=2e-4), None, None
    for found in log.stage("polish", steps):
        if last is not None:
            yield last
        best = min(best or found.coded, found.coded, key=lambda coded: coded.objective)
        last = replace(found, trial=chosen, stride=wanted)
    yield replace(last, stage="done", coded=best, atoms=best.atoms)


def search(problem: Any, atoms: Tensor, *, on_epoch: Callable | None = None) -> Found:
    """Search for the atoms that minimise the objective.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any norm in different directions, such as samples.
    on_epoch : callable, default=None
        Called with the search after every epoch; an exception from it ends the search.

    Returns
    -------
    Found
        The finished search; its ``atoms`` are the result.
    """
    for found in find_atoms(problem, atoms):
        if on_epoch is not None:
            on_epoch(found)
    return found


def noise_penalty(problem, atoms):  # -> float
    """Return a penalty above the noise for a search of any number of atoms.

    It is one step below the penalty that predicts held-out rows best with the given atoms, if that
    beats chance, and otherwise the usual penalty. (Too few atoms mix, and mixtures predict best at
    larger penalties. In nine problems of 5, 2 and 0 dB the number of atoms is found within 5 % in
    eight with one step below, in four with the best penalty.)

    Parameters
    ----------
    problem : Problem
        Data and objective, with the usual penalty.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any number.

    Returns
    -------
    float
        The penalty.
    """
    problem = hold_out(problem)
    if problem.held_out is None:
        return problem.alpha
    atoms = problem.project(atoms.detach().cpu().double())
    steps = descend.settle(problem, atoms, descend.first_stride(problem, len(atoms)))
    best, stride = descend.exhaust(steps)
    trials, *_ = descend.exhaust(climb(problem, best, stride, lambda trial: trial))
    more = finds_more(trials, problem)
    leader = min(trials, key=error_of) if more else chosen_trial(trials, problem)
    return penalty_above_noise(trials[0], leader, problem)
