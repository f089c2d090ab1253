r"""Search: find a dictionary, and the penalty of its search, from the data alone.

The search is alternating minimisation over all samples at once. An *epoch* improves the codes of
every sample by coordinate descent on the lasso, from the codes of the last epoch, and then
minimises

.. math:: \tfrac12 \|X - Z D\|^2 + \alpha \|Z\|_1 = \tfrac12 \mathrm{tr}(D^T A D)
          - \mathrm{tr}(B^T D) + \dots, \qquad A = Z^T Z,\; B = Z^T X,

over the atoms, one by one, on the sphere of atoms of norm 1. (Learners may constrain atoms to the
sphere or to the ball, or not at all. Minimisers over the ball lie on the sphere. Without a
constraint the objective has no minimum.)

`find_atoms` is a generator of `Found`, one for each epoch. Its stages are:

1. Atoms *settle*: they descend on a sample of the rows, which grows. Then they leave local minima
   in *rounds* of split and remove (`skpudle.search.descend`). *Held-out* rows, about a tenth of all
   rows, are not trained on; they only judge atoms.
2. The search tries larger and smaller *penalties*. Larger ones are one *step* apart, a factor of
   ``2 ** 0.5``, and smaller ones two steps. A *trial* adapts the atoms to one penalty, and lets
   them predict hidden entries of the held-out rows (``skpudle.search.held_out``). The first trial
   has the penalty of the problem, ``problem.alpha``. Larger penalties follow while the prediction
   does not get worse. If the first larger penalty is worse, smaller penalties follow while they
   predict better. Of the trials that differ from the best prediction by chance only, the search
   takes the trial with the largest penalty. On planted data the differences due to chance are tiny,
   and the best prediction wins. On real data predictions hardly differ; then a larger penalty has
   sparser codes, and two searches from different initial atoms agree better on their atoms. Images
   have one trial, at the first penalty.
3. The *polish*: atoms descend on all rows or a larger sample, including the held-out rows.

If a larger penalty explains a fifth more of the hidden entries' energy (their sum of squares) than
the first, noise has hidden the atoms at the first penalty. Then stage 1 begins again, one step
below the best penalty. (The atoms so far are mixtures of atoms of the data, and mixtures predict
best at a penalty that is too large for the atoms themselves. Of 60 planted atoms in 20,000 rows
with twice as much noise as signal, 0.95 are found from one step below the best penalty, and 0.78
from the best penalty.)

All decisions depend only on sums over samples, which are added over processes. So processes with
different samples end with the same atoms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle.search import descend
from skpudle.search._epoch import own
from skpudle.search.held_out import (
    CHANCE,
    SURE,
    Prediction,
    hold_out,
    loss_and_chance,
    worse,
)

# Where noise has hidden atoms, a search begins again below the best penalty by this factor.
_LARGER = 2**0.5
# No more penalties are tried, and no noise of features is looked for, if atoms leave less than this
# fraction of the energy of hidden entries unexplained: then the data have no noise, and all
# penalties predict equally well. To try more penalties would double the time of searches of data
# without noise, for atoms that are no better, and to look for noise takes a quarter of a fit.
NOTHING_LEFT = 1e-7


def goes_on(found, errors=1.0, *, gains=False, patience=1, total=own):  # -> bool
    """Return whether to try one more penalty or number of atoms, after the predictions so far.

    ``found`` is the list of `Prediction` objects so far. The answer is True if fewer than
    ``patience`` of them in succession have failed, at the end of the list. A prediction fails if it
    is worse than the best one before it by more than ``errors`` standard errors. With ``gains`` it
    also fails if it is not better than the best one before it by more than ``errors`` standard
    errors. ``total`` adds up sums over processes.
    """
    best = found[0]
    failed = 0
    for one in found[1:]:
        fails = (
            not worse(best, one, errors, total)
            if gains
            else worse(one, best, errors, total)
        )
        failed = failed + 1 if fails else 0
        best = min(best, one, key=lambda each: each.total)
    return failed < patience


def walk(first, step, score, **rule):
    """Yield trials, each with its prediction, until `goes_on` ends them or none is left.

    Growth of the number of atoms (`skpudle.search.choose`) is such a walk.

    Parameters
    ----------
    first : object
        The first trial.
    step : callable
        ``step(trial)`` returns the next trial, or None if there is none.
    score : callable
        ``score(trial)`` returns the trial's `Prediction`.
    **rule : dict
        Arguments of `goes_on`, without ``found``.

    Yields
    ------
    tuple of (trial, Prediction)
        All trials, including trials whose predictions fail.
    """
    trial = first
    found = []
    while trial is not None:
        found.append(score(trial))
        yield trial, found[-1]
        trial = step(trial) if goes_on(found, **rule) else None


# ------------------------------------------------------------------ penalties


class PenaltyPath(NamedTuple):
    """The penalties that a search tried, in the order of the trials, for users to inspect.

    Attributes
    ----------
    alpha : Tensor of shape (n_trials,)
        Penalties.
    score : Tensor of shape (n_trials,)
        R^2 against zeros: the fraction of the energy (the sum of squares) of the hidden entries
        that the prediction explains.
    unbiased : Tensor of shape (n_trials,), bool
        Whether the prediction is by atoms that have been freed of the lasso's bias.
    tolerance : Tensor of shape (n_trials,)
        Two standard errors of the score. A smaller score may be due to chance.
    """

    alpha: Tensor
    score: Tensor
    unbiased: Tensor
    tolerance: Tensor


class Trial(NamedTuple):
    """Atoms of a search at one penalty, and how well they predict held-out data.

    Attributes
    ----------
    alpha : float
        Penalty of the search, in the units of its problem.
    unbiased : bool
        Whether the prediction is by atoms that have been freed of the lasso's bias.
    prediction : Prediction
        The prediction of held-out data by ``judged``.
    atoms : Tensor of shape (n_components, ...), default=None
        The atoms of the search, which minimise the lasso's objective.
    judged : Tensor of shape (n_components, ...), default=None
        The atoms that predict: ``atoms``, or ``atoms`` freed of the lasso's bias.
    """

    alpha: float
    unbiased: bool
    prediction: Prediction
    atoms: Tensor | None = None
    judged: Tensor | None = None


error_of = attrgetter(
    "prediction.total"
)  # trial -> its squared error, over all processes


def predicts(prediction, held_out, errors=SURE):  # -> bool
    """Return whether atoms predict anything: better than zeros by over ``errors`` standard errors.

    ``prediction`` is a `Prediction` of the hidden entries of ``held_out``, a `HeldOut`.
    """
    return worse(held_out.zeros, prediction, errors, held_out.total)


def next_penalty(trials, problem):  # -> float or None
    """Return the next penalty for a search to try; None if there is none.

    ``trials`` are the `Trial` objects so far, and ``problem`` has the held-out data. Penalties
    first grow from the first one, by factors of ``2 ** 0.5``, while predictions do not get worse;
    they grow to the largest penalty if nothing predicts better than zeros. Then they may fall from
    the first penalty, by factors of 2. `climb` depends on this order: up, then down.
    """
    first = trials[0]
    held = problem.held_out
    total = problem.total
    if min(map(error_of, trials)) <= NOTHING_LEFT * held.zeros.total:
        return None
    smallest = held.smallest * held.alpha
    largest = held.largest * held.alpha
    mixes = held.mixes
    ups = [trial.prediction for trial in trials if trial.alpha >= first.alpha]
    downs = [first.prediction, *(t.prediction for t in trials if t.alpha < first.alpha)]
    alpha = held.step * trials[-1].alpha
    smaller = 0.5 * min(trial.alpha for trial in trials)
    goes_up = goes_on(ups, total=total) or not predicts(
        min(ups, key=attrgetter("total")), held
    )
    if len(downs) == 1 and alpha <= largest and goes_up:
        return alpha
    # Penalties fall below the first one only if the first trial predicts best of at most two. Once
    # they have fallen they may fall further. For mixtures they may always fall.
    turns = (
        mixes
        or len(downs) > 1
        or (len(ups) <= 2 and min(trials, key=error_of) is first)
    )
    ends = not goes_on(downs, CHANCE, gains=not mixes, total=total)
    return smaller if turns and not ends and smaller >= smallest else None


def chosen_trial(trials, problem):  # -> Trial
    """Choose the trial whose atoms and penalty the search takes.

    ``trials`` are `Trial` objects, one for each penalty. The choice is the largest penalty among
    the trials whose predictions are worse than the best one by chance only. If no trial predicts
    held-out data better than zeros, it is the first trial.
    """
    best = min(trials, key=error_of)
    if not predicts(best.prediction, problem.held_out, CHANCE):
        return trials[0]
    good = (
        t
        for t in trials
        if not worse(t.prediction, best.prediction, CHANCE, problem.total)
    )
    return max(good, key=lambda trial: trial.alpha)


def finds_more(trials, problem, least=inf):  # -> bool
    """Return whether noise hid atoms at the first penalty, so that the search begins again.

    That is so if the best of the `Trial` objects ``trials`` has a larger penalty than the first
    one, and explains a fifth more energy (sum of squares) of the hidden entries than the first one
    and than all trials of earlier beginnings. ``least`` is the smallest error of these earlier
    trials.
    """
    first = trials[0]
    best = min(trials, key=error_of)
    energy = problem.held_out.zeros.total
    before = min(error_of(first), least)
    # The factor 1.2 separates data in which noise has hidden atoms from other data. From the first
    # to the best penalty the explained energy grows by a factor of 3 and more in planted data with
    # a signal-to-noise ratio of -3 dB, and by 1.5 at 2 dB. It grows by at most 1.07 at 5 dB, for
    # patches and for digits.
    found = energy - error_of(best) > 1.2 * max(energy - before, 0.0)
    return (
        best.alpha > first.alpha
        and found
        and predicts(best.prediction, problem.held_out)
    )


def penalty_above_noise(first, chosen, problem):  # -> float
    """Return the penalty at which a search begins again after atoms were hidden by noise.

    It is the penalty of the `Trial` ``chosen`` divided by ``2 ** 0.5``, but at least
    ``problem.alpha``. It is ``problem.alpha`` if ``chosen`` does not predict better than the trial
    ``first`` by over two standard errors.
    """
    if not worse(first.prediction, chosen.prediction, SURE, problem.total):
        return problem.alpha
    return max(chosen.alpha / _LARGER, problem.alpha)


def penalty_of_mixtures(problem, n_components):  # -> float
    """Return a first penalty for rows that mix few non-negative atoms, such as spectra.

    At the default penalty (`auto_alpha`) atoms of norm 1 move from the sources of the mixtures
    towards the rows, and do not move back when the penalty falls. So the first penalty is 0.3
    standard deviations of the noise, limited to 1/256 to 1 times ``problem.alpha``. The noise is
    what the leading ``n_components`` singular vectors leave of the rows. The rows must have no
    missing entries.
    """
    often = problem.weigh(problem.x.new_ones(len(problem.x), 1, dtype=torch.float64))
    x = problem.x.double() * often.sqrt()
    squares = torch.linalg.eigvalsh(x @ x.mT if len(x) < x.shape[1] else x.mT @ x)
    left = float(squares[:-n_components].clamp_min(0).sum())
    n_left = (len(x) - n_components) * (x.shape[1] - n_components)
    # In mixtures of eight kinds of spectra the mean angle between a true spectrum and its atom is
    # 1.8 degrees if a search begins at this penalty, and 4.2 degrees if a search begins at the
    # default penalty.
    penalty = 0.3 * (left / max(n_left, 1)) ** 0.5
    return min(max(penalty, problem.alpha / 256), problem.alpha)


# ------------------------------------------------------------------ the search


@dataclass(frozen=True, eq=False)
class Found:
    r"""The state of a search after an epoch, or its result.

    Attributes
    ----------
    stage : str
        Name of the present stage: "settle", "split and remove", "penalty", "polish" or "done".
    coded : Epoch, DeviceEpoch or ConvEpoch
        Data with codes from the last epoch that had ``n_components`` atoms. For a finished search:
        from the epoch of the polish with the least objective.
    atoms : Tensor of shape (n_components, ...)
        The atoms of ``coded``, of norm 1.
    alpha : float
        The penalty of the atoms, in the units of the problem.
    losses : tuple of float
        The mean over samples of :math:`\frac12 \|x - z D\|^2` in every epoch, in the user's units.
    path : PenaltyPath, default=None
        All penalties that were tried so far, in the user's units. None without trials.
    trial : Trial, default=None
        From the polish on: the trial of the chosen penalty. None without held-out rows.
    stride : int, default=1
        From the polish on: the atoms adapt to one in ``stride`` samples.
    problem : Problem or ConvProblem
        Data and objective of the search, with the held-out rows.
    """

    stage: str
    coded: Any
    atoms: Tensor
    alpha: float
    losses: tuple = ()
    path: PenaltyPath | None = None
    trial: Trial | None = None
    stride: int = 1
    problem: Any = None


class _Log:
    """Make the records that a search yields, `Found`, of the results of epochs and trials.

    ``coded`` is the result of the last epoch that had ``n_components`` atoms; epochs between a
    split and a removal have more. ``losses`` and ``path`` are the attributes of the next `Found`.
    """

    def __init__(self, problem, n_components):
        self.problem = problem
        self.n_components = n_components
        self.coded = None
        self.losses = ()
        self.path = None
        self._trials = []

    def stage(self, name, steps):  # yields Found
        """Yield a `Found` for each epoch of the generator ``steps``; return what ``steps`` returns.

        ``steps`` yields an `Epoch` (or `DeviceEpoch` or `ConvEpoch`) for each epoch, and ``name``
        is the name of the stage.
        """
        while True:
            try:
                coded = next(steps)
            except StopIteration as end:
                return end.value
            self.losses = (*self.losses, coded.loss * self.problem.unit**2)
            if self.coded is None or len(coded.atoms) == self.n_components:
                self.coded = coded
            known = self.coded.atoms, self.coded.problem.alpha, self.losses, self.path
            yield Found(name, self.coded, *known, problem=self.problem)

    def note(self, trial):  # Trial -> the same
        """Add a trial to ``path``, in the user's units, and return the trial unchanged."""
        zeros = self.problem.held_out.zeros
        unit = self.problem.unit
        gain, chance = loss_and_chance(zeros, trial.prediction, self.problem.total)
        energy = zeros.total or 1.0
        known = (
            trial.alpha * unit,
            gain / energy,
            trial.unbiased,
            SURE * chance / energy,
        )
        self._trials.append(known)
        alpha, score, unbiased, tolerance = torch.tensor(
            self._trials, dtype=torch.float64
        ).T
        self.path = PenaltyPath(alpha, score, unbiased > 0, tolerance)
        return trial


def judge(problem, coded, trials=(), kinds=(False, True)):  # -> Trial
    """Predict held-out data by the atoms of an epoch, as they are and freed of the lasso's bias.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Problem of the search, with held-out data.
    coded : list of Epoch, DeviceEpoch or ConvEpoch
        For each fold the atoms with the training data's codes, from which the atoms are freed of
        bias.
    trials : sequence of Trial, default=()
        The trials before. They save time: the best penalty of codes is looked for near that of the
        last one.
    kinds : tuple of bool, default=(False, True)
        Which atoms to try: as they are (False), freed of bias (True), or both.

    Returns
    -------
    Trial
        The trial of the first kind, unless that of the last kind predicts better by more than a
        standard error.
    """
    alpha = coded[0].problem.alpha
    held = problem.held_out
    begin = ()
    judged = atoms = held.join([one.atoms for one in coded])
    found = []
    # To save time, the best penalty of codes is looked for from that of the last trial on, and only
    # upwards (or downwards) if the penalty of the search has grown (or fallen): the best penalty of
    # codes moves in the same direction.
    if trials:
        last = trials[-1]
        steps = (1, -1) if alpha == last.alpha else (1 if alpha > last.alpha else -1,)
        begin = last.prediction.place, steps
    for unbiased in kinds:
        if unbiased:
            pairs = zip(coded, held.split(judged), strict=True)
            judged = held.join(
                [descend.refit_atoms(one.problem, a, one.codes, 3) for one, a in pairs]
            )
        prediction = held.predict(judged, *begin)
        begin = prediction.place, *begin[1:]
        found.append(Trial(alpha, unbiased, prediction, atoms, judged))
    biased = found[0]
    last = found[-1]
    return (
        last
        if worse(biased.prediction, last.prediction, total=problem.total)
        else biased
    )


def climb(problem, first, stride, note, leader=()):  # a generator of epochs
    """Try larger and smaller penalties: adapt the atoms to each penalty, and judge the atoms.

    At each penalty atoms start from the atoms of the penalty before. Where penalties begin to fall,
    atoms start from the best atoms so far.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Problem of the search, with held-out data.
    first : list of Epoch, DeviceEpoch or ConvEpoch
        For each fold the atoms at the first penalty, with codes of a sample of the data.
    stride : int
        The sample of ``first`` has one in ``stride`` of the training data.
    note : callable
        ``note(trial)`` is called with each new trial and returns it.
    leader : sequence of Trial, default=()
        Empty, or the best trial of the search before it began again.

    Yields
    ------
    Epoch, DeviceEpoch or ConvEpoch
        Atoms and codes after each epoch of the first fold. The generator returns three values: the
        list of all trials; atoms with codes of each fold, from the last penalty that no penalty
        before it beats by more than chance; and the stride of the last sample.
    """
    trials = [note(judge(problem, first, leader))]
    best = first
    last = first
    # With several folds atoms adapt for half the number of epochs, to save time.
    most = descend.ADAPT // (2 if problem.folds else 1)
    while (alpha := next_penalty(trials, problem)) is not None:
        turns = (alpha < trials[-1].alpha) != (trials[-1].alpha < trials[0].alpha)
        begin = best if turns else last
        folds = problem, *problem.folds
        steps = [
            descend.settle(p, b.atoms, stride, most, alpha=alpha, codes=b.codes)
            for p, b in zip(folds, begin, strict=True)
        ]
        one, stride = yield from steps[0]
        last = [one, *(descend.exhaust(step)[0] for step in steps[1:])]
        trial = note(judge(problem, last, trials, (trials[-1].unbiased,)))
        if not any(
            worse(trial.prediction, one.prediction, total=problem.total)
            for one in trials
        ):
            best = last
        trials.append(trial)
    return trials, best, stride


def first_of_folds(problem, atoms):  # -> list of Tensors of the shape of atoms
    """Return initial atoms for all folds of a problem but the first: samples, or ``atoms``.

    Samples are the same for all ``atoms``, so that the choice of the penalty depends on the data
    more than on the seed that has drawn ``atoms``. Mixtures begin with ``atoms`` in all folds,
    because pure rows make good initial atoms there, and samples do not.
    """
    starts = []
    for number in range(len(problem.folds)):
        generator = torch.Generator().manual_seed(number)
        x = problem.x.cpu().double()
        start = initial_atoms(x, len(atoms), "data", generator, weight=problem.weight)
        starts.append(atoms if problem.held_out.mixes else problem.project(start))
    return starts


def settle_folds(problem, firsts, alpha):  # -> list of coded data
    """Settle the atoms of all folds of a problem but the first, and play the rounds.

    ``firsts`` are the initial atoms of each of these folds, and ``alpha`` is the penalty. Their
    epochs are not reported.
    """
    settled = []
    for fold, atoms in zip(problem.folds, firsts, strict=True):
        steps = descend.settle(fold, atoms, None, descend.ADAPT, alpha=alpha)
        coded, _ = descend.exhaust(steps)
        settled.append(descend.exhaust(descend.play_rounds(coded)))
    return settled


def find_atoms(problem, atoms, level=None):
    """Search for the atoms that minimise the objective, and for the penalty of the search.

    This generator is what fits of rows and images run; `search` runs it to its end.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms of any norm in different directions, such as samples; the same in all
        processes.
    level : callable, default=None
        For signals: ``level(problem, atoms)`` returns a penalty above the correlations of atoms
        with the noise. If it is more than 1.25 times the penalty of the search, the search begins
        again at this level, at most four times.

    Yields
    ------
    Found
        The search after each epoch. The last one has the stage "done".
    """
    best_atoms = begin = problem.project(atoms.detach().cpu().double())
    firsts = first_of_folds(problem, begin)
    stride = None
    alpha = problem.alpha
    trials = ()
    least = inf
    log = _Log(problem, len(atoms))
    chosen = None
    n_raises = 0
    while True:
        steps = descend.settle(problem, best_atoms, stride, alpha=alpha)
        best, stride = yield from log.stage("settle", steps)
        best = yield from log.stage("split and remove", descend.play_rounds(best))
        others = settle_folds(problem, firsts, alpha)
        noise = (
            level(replace(problem, alpha=alpha), best.atoms)
            if level and n_raises < 4
            else 0.0
        )
        # The search of a signal begins again only if the level of the noise is above 1.25 times the
        # penalty. In white noise the level is .5 to 1.2 times the penalty, so no search begins
        # again. In autoregressive noise with the coefficient 0.9 the level is 1.2 to 2.2 times the
        # penalty. After four new beginnings it may still be higher than the penalty, but at a
        # fifth, larger penalty a search would lose atoms.
        if noise > 1.25 * alpha:
            plain = replace(
                problem, alpha=noise, held_out=None, held_rows=None, folds=()
            )
            problem = log.problem = hold_out(plain)
            alpha = noise
            best_atoms = begin
            n_raises = n_raises + 1
            stride = None
            trials = ()
            continue
        if problem.held_out is None:
            break
        steps = climb(problem, [best, *others], stride, log.note, trials)
        trials, (best, *others), stride = yield from log.stage("penalty", steps)
        firsts = [one.atoms for one in others]
        if not finds_more(trials, problem, least):
            chosen = chosen_trial(trials, problem)
            break
        leader = min(trials, key=error_of)
        least = min(least, *(trial.prediction.total for trial in trials))
        alpha = penalty_above_noise(trials[0], leader, problem)
        best_atoms = best.atoms
        trials = (leader,)
    candidates = (
        [best.atoms] if chosen is None else problem.held_out.split(chosen.atoms)
    )
    alpha = best.problem.alpha if chosen is None else chosen.alpha
    # The polish takes a sample in which an atom has 2,000 uses (rows with a nonzero code at the
    # atom) on average, because more rows hardly help. For 256 atoms and 178,000 patches the sample
    # is a third of the patches. A search takes 6 s if the polish takes the sample, and 18 s if it
    # takes all patches. The objective on held-out patches is 0.2728 and 0.2722, respectively.
    wanted = min(stride, descend.stride_of_uses(best, stride, 2000))
    whole = problem.thinned(wanted, alpha=alpha)
    if problem.has_baseline:
        whole = replace(whole, baseline=torch.zeros_like(candidates[0][0]))
    # The polish begins with the atoms of the fold that have the least objective in all rows.
    atoms = candidates[0]
    if len(candidates) > 1:
        atoms = min(
            candidates, key=lambda one: descend.solve_codes(whole, one, 4).objective
        )
    is_same = chosen is None and wanted == stride and problem.held_rows is None
    codes = best.codes if is_same else whole.first_codes(atoms)
    steps = descend.descend(whole, atoms, codes, 60)
    last = None
    best = None
    for found in log.stage("polish", steps):
        if last is not None:
            yield last
        best = min(best or found.coded, found.coded, key=lambda coded: coded.objective)
        last = replace(found, trial=chosen, stride=wanted)
    yield replace(last, stage="done", coded=best, atoms=best.atoms)


def search(problem: Any, atoms: Tensor, *, on_epoch: Callable | None = None) -> Found:
    """Search for the atoms that minimise the objective, and for the penalty of the search.

    Parameters
    ----------
    problem : Problem
        Data and objective. With held-out rows, see `hold_out`, the search tries several penalties.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any norm in different directions, such as samples.
    on_epoch : callable, default=None
        Called with a `Found` after every epoch; an exception that it raises ends the search.

    Returns
    -------
    Found
        The finished search. Its ``atoms``, of shape (n_components, n_features) and norm 1, are the
        result, and its ``alpha`` is their penalty.
    """
    for found in find_atoms(problem, atoms):
        if on_epoch is not None:
            on_epoch(found)
    return found


def noise_penalty(problem, atoms):  # -> float
    """Return a penalty above the noise, at which searches for any number of atoms can begin.

    The penalty is one step below the one at which the given atoms predict held-out rows best, if
    that prediction beats the prediction at ``problem.alpha`` beyond chance. (If there are too
    few atoms, atoms are mixtures, which predict best at a penalty that is too large. In nine
    planted problems, with signal-to-noise ratios of 5, 2 and 0 dB, the number of atoms is found
    within 5 %: in eight problems from this penalty, in four from the best one.)

    Parameters
    ----------
    problem : Problem
        Data and objective, with the default penalty.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms; their number need not be that of the search.

    Returns
    -------
    float
        The penalty, at least ``problem.alpha``. With too few rows to hold any out it is
        ``problem.alpha``.
    """
    problem = hold_out(problem)
    if problem.held_out is None:
        return problem.alpha
    atoms = problem.project(atoms.detach().cpu().double())
    best, stride = descend.exhaust(descend.settle(problem, atoms))
    others = settle_folds(problem, first_of_folds(problem, atoms), problem.alpha)
    steps = climb(problem, [best, *others], stride, lambda trial: trial)
    trials, *_ = descend.exhaust(steps)
    more = finds_more(trials, problem)
    leader = min(trials, key=error_of) if more else chosen_trial(trials, problem)
    return penalty_above_noise(trials[0], leader, problem)
