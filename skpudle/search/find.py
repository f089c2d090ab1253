r"""Search: find a dictionary, and the penalty of its search, from the data alone.

The search is alternating minimisation over all samples at once. An *epoch* improves the codes of
every sample by coordinate descent on the lasso, from the codes of the last epoch, and then
minimises

.. math:: \tfrac12 \|X - Z D\|^2 + \alpha \|Z\|_1 = \tfrac12 \mathrm{tr}(D^T A D)
          - \mathrm{tr}(B^T D) + \dots, \qquad A = Z^T Z,\; B = Z^T X,

over the atoms, one by one, on the sphere of atoms of norm 1. (Learners may constrain atoms to the
sphere or to the ball, or not at all. Minimisers over the ball lie on the sphere. Without a
constraint the objective has no minimum.)

`find_atoms` is a generator of `SearchState`, one for each epoch. Its stages are:

1. Atoms *settle*: they descend on a sample of the rows, which grows. Then they leave local minima
   in *rounds*: each round splits some atoms in two, and removes the same number of atoms
   (`skpudle.search.descend`). *Held-out* rows, about a tenth of all rows, are not trained on; they
   only judge atoms.
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
from dataclasses import replace
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle._states import PenaltyPath, SearchState, Trial
from skpudle.search import descend
from skpudle.search.held_out import (
    CHANCE,
    SURE,
    hold_out,
    hold_out_images,
    loss_and_chance,
    worse,
)

# The factor from one penalty that a search tries to the next larger one, called a step. With
# factors of 2 errors of new rows are 6 % larger for planted atoms at 5 dB, 10 % larger for patches,
# and 5 % smaller at 2 dB (benchmarks/constants.py penalty-steps).
_LARGER = 2**0.5
# No more penalties are tried, and no noise of features is looked for, if atoms leave less than this
# fraction of the energy of hidden entries unexplained: then the data have no noise, and all
# penalties predict equally well. With 0 fits of data without noise take twice the time, for atoms
# that are no better (benchmarks/constants.py nothing-left).
NOTHING_LEFT = 1e-7


def goes_on(
    predictions,
    errors=1.0,
    *,
    gains=False,
    patience=1,
    worse=worse,
):
    """Return whether to try one more penalty or number of atoms, after the predictions so far.

    The answer is False once the last ``patience`` predictions have all failed.

    Parameters
    ----------
    predictions : list of Prediction
        Predictions of the same hidden entries, in the order of the trials.
    errors : float, default=1.0
        How large a difference of two predictions has to be to count: more than this number of its
        standard errors. A smaller difference may be due to chance.
    gains : bool, default=False
        When a prediction fails. False: if it is worse than the best one before it, by a difference
        that counts. True: if it is not better than the best one before it by such a difference.
    patience : int, default=1
        The number of failures in succession that ends the trials.
    worse : callable
        ``worse(one, other, errors)`` returns whether prediction ``one`` is worse than ``other`` by
        more than ``errors`` standard errors. The default is for data in a single process.
    """
    best = predictions[0]
    n_failed = 0
    for prediction in predictions[1:]:
        if gains:
            fails = not worse(best, prediction, errors)
        else:
            fails = worse(prediction, best, errors)
        n_failed = n_failed + 1 if fails else 0
        best = min(best, prediction, key=attrgetter("total"))
    return n_failed < patience


def walk(
    first,
    step,
    score,
    *,
    errors=1.0,
    gains=False,
    patience=1,
):
    """Yield trials, each with its prediction, until predictions fail or no trial is left.

    A trial is any object with a prediction. In `skpudle.search.choose`, for example, trials are
    dictionaries with more and more atoms.

    Parameters
    ----------
    first : object
        The first trial.
    step : callable
        ``step(trial)`` returns the next trial, or None if there is none.
    score : callable
        ``score(trial)`` returns the trial's `Prediction`.
    errors, gains, patience
        The walk ends when ``patience`` predictions in succession have failed. A prediction fails
        if it is worse than the best one before it by more than ``errors`` standard errors of their
        difference; with ``gains``, if it is not better than the best one by as much.

    Yields
    ------
    tuple of (trial, Prediction)
        All trials, including trials whose predictions fail.
    """
    trial = first
    predictions = []
    while trial is not None:
        predictions.append(score(trial))
        yield trial, predictions[-1]
        if not goes_on(predictions, errors, gains=gains, patience=patience):
            return
        trial = step(trial)


# ------------------------------------------------------------------ penalties


class PenaltyRange(NamedTuple):
    """The penalties that a search may try, as multiples of its first penalty.

    Attributes
    ----------
    smallest, largest : float
        The smallest and the largest penalty. Smaller multiples than 1/16 give dense codes, which
        take long and predict no better. At a signal-to-noise ratio of -3 dB, the most noise in
        which a search finds planted atoms, the best penalty is 4 to 6 times the first one, so 12
        times the first one is enough.
    mixes : bool
        Whether rows mix few non-negative atoms, see `penalty_of_mixtures`. Then penalties below the
        first one are always tried, until predictions get worse.
    target : float or None
        Penalty that the search takes whatever atoms predict; not a multiple, but in the units of
        the problem's data. None: predictions decide.
    """

    smallest: float = 1 / 16
    largest: float = 12.0
    mixes: bool = False
    target: float | None = None


# The range of a search with a penalty set by the user, and of all searches of images. Held-out data
# then only decide whether atoms are freed of the lasso's bias.
ONE_PENALTY = PenaltyRange(1.0, 1.0)

# error_of(trial) is the squared error of the trial's prediction, summed over all processes
error_of = attrgetter("prediction.total")


def predicts(prediction, held_out):  # -> bool
    """Return whether atoms predict better than zeros, by over two standard errors (`SURE`).

    ``prediction`` is a `Prediction` of the hidden entries of ``held_out``, a `HeldOut`.
    """
    return held_out.worse(held_out.zeros, prediction, SURE)


def step_towards(target, alpha):  # -> float or None
    """Return the penalty after ``alpha`` on the way to the penalty ``target``; None at its end."""
    if alpha == target:
        return None
    return min(_LARGER * alpha, target) if alpha < target else max(0.5 * alpha, target)


def next_penalty(trials, held_out, penalties):  # -> float or None
    """Return the next penalty for a search to try; None if there is none.

    ``trials`` are the `Trial` objects so far, ``held_out`` is the `HeldOut` with the first penalty
    as its ``alpha``, and ``penalties`` the `PenaltyRange`. Penalties first grow from the first one,
    by factors of ``2 ** 0.5``, while predictions do not get worse; they grow to the largest penalty
    if nothing predicts better than zeros. Then they may fall from the first penalty, by factors of
    2. `climb` depends on this order: up, then down. If the range has a target, penalties go there
    by the same factors.
    """
    if penalties.target is not None:
        return step_towards(penalties.target, trials[-1].alpha)
    first = trials[0]
    least_error = min(map(error_of, trials))
    if least_error <= NOTHING_LEFT * held_out.zeros.total:
        return None
    ups = [trial.prediction for trial in trials if trial.alpha >= first.alpha]
    downs = [trial.prediction for trial in trials if trial.alpha < first.alpha]
    larger = _LARGER * trials[-1].alpha
    if not downs and larger <= penalties.largest * held_out.alpha:
        best = min(ups, key=attrgetter("total"))
        if goes_on(ups, worse=held_out.worse) or not predicts(best, held_out):
            return larger
    # Penalties begin to fall only if the first trial predicts best and at most one larger penalty
    # was tried; for mixtures they fall in any case. Once they have fallen they may fall further.
    is_first_best = len(ups) <= 2 and min(trials, key=error_of) is first
    if not (penalties.mixes or downs or is_first_best):
        return None
    smaller = 0.5 * min(trial.alpha for trial in trials)
    if smaller < penalties.smallest * held_out.alpha:
        return None
    # Each smaller penalty has to gain more than chance, since otherwise a larger one would be taken
    # (`chosen_trial`). For mixtures it is enough that predictions do not get worse.
    falls_on = goes_on(
        [first.prediction, *downs],
        CHANCE,
        gains=not penalties.mixes,
        worse=held_out.worse,
    )
    return smaller if falls_on else None


def chosen_trial(trials, held_out):  # -> Trial
    """Choose the trial whose atoms and penalty the search takes.

    ``trials`` are `Trial` objects, one for each penalty, with predictions of ``held_out``. The
    choice is the largest penalty, with the sparsest codes, among the trials whose predictions are
    worse than the best one by chance only: by at most half a standard error (`CHANCE`). If no trial
    predicts held-out data better than zeros, it is the first trial.
    """
    best = min(trials, key=error_of).prediction
    if not predicts(best, held_out):
        return trials[0]
    good = (t for t in trials if not held_out.worse(t.prediction, best, CHANCE))
    return max(good, key=attrgetter("alpha"))


def finds_more(trials, held_out, least_error=inf):  # -> bool
    """Return whether noise hid atoms at the first penalty, so that the search begins again.

    That is so if the best of the `Trial` objects ``trials`` has a larger penalty than the first
    one, and explains a fifth more energy (sum of squares) of the hidden entries of ``held_out``
    than the first one and than all trials of earlier beginnings of the search. ``least_error`` is
    the smallest error of these earlier trials.
    """
    first = trials[0]
    best = min(trials, key=error_of)
    energy = held_out.zeros.total
    explained = energy - error_of(best)
    explained_before = max(energy - min(error_of(first), least_error), 0.0)
    # The factor 1.2 separates data in which noise has hidden atoms from other data. From the first
    # to the best penalty the explained energy grows by a factor of 3 and more in planted data with
    # a signal-to-noise ratio of -3 dB, and by 1.5 at 2 dB. It grows by at most 1.07 at 5 dB, for
    # patches and for digits.
    return (
        best.alpha > first.alpha
        and explained > 1.2 * explained_before
        and predicts(best.prediction, held_out)
    )


def penalty_above_noise(first, chosen, held_out):  # -> float
    """Return the penalty at which a search begins again after atoms were hidden by noise.

    It is the penalty of the `Trial` ``chosen`` divided by ``2 ** 0.5``, since atoms that noise has
    mixed predict best at a penalty that is too large. But it is at least the first penalty,
    ``held_out.alpha``. It is the first penalty if ``chosen`` does not predict better than the trial
    ``first`` by over two standard errors (`SURE`).
    """
    if not held_out.worse(first.prediction, chosen.prediction, SURE):
        return held_out.alpha
    return max(chosen.alpha / _LARGER, held_out.alpha)


def penalty_of_mixtures(problem, n_components):  # -> float
    """Return a first penalty for rows that mix few non-negative atoms, such as spectra.

    At the default penalty (`auto_alpha`) atoms of norm 1 move from the sources of the mixtures
    towards the rows, and do not move back when the penalty falls. So the first penalty is 0.3
    standard deviations of the noise, but from 1/256 to 1 times ``problem.alpha``. The variance of
    the noise is the sum of squares that the leading ``n_components`` singular vectors leave of the
    rows, divided by its degrees of freedom. The rows must have no missing entries.
    """
    n, m = problem.x.shape
    weights = problem.weigh(problem.x.new_ones(n, 1, dtype=torch.float64))
    x = problem.x.double() * weights.sqrt()
    eigenvalues = torch.linalg.eigvalsh(x @ x.mT if n < m else x.mT @ x)
    unexplained = float(eigenvalues[:-n_components].clamp_min(0).sum())
    n_free = (n - n_components) * (m - n_components)
    # In mixtures of eight kinds of spectra the mean angle between a true spectrum and its atom is
    # 1.8 degrees if a search begins at this penalty, and 4.2 degrees if a search begins at the
    # default penalty.
    penalty = 0.3 * (unexplained / max(n_free, 1)) ** 0.5
    return min(max(penalty, problem.alpha / 256), problem.alpha)


# ------------------------------------------------------------------ the search


class _Log:
    """Make the records that a search yields, `SearchState`, of the results of epochs and trials.

    ``coded`` is the result of the last epoch that had ``n_components`` atoms; epochs between a
    split and a removal have more. ``losses`` and ``path`` are the attributes of the next
    `SearchState`, and ``_rows_of_path`` has a row of ``path`` for each trial.
    """

    def __init__(self, problem, n_components):
        self.problem = problem
        self.n_components = n_components
        self.coded = None
        self.losses = ()
        self.path = None
        self._rows_of_path = []

    def stage(self, name, steps):  # yields SearchState
        """Yield a `SearchState` for each epoch of a stage; return what ``steps`` returns.

        ``name`` is the name of the stage, such as "settle". ``steps`` is the generator that runs
        the stage: after each epoch it yields coded data, the data with atoms and codes (an `Epoch`,
        `DeviceEpoch` or `ConvEpoch`). An epoch between a split and a removal of atoms has more than
        ``n_components`` atoms; its state has the coded data of the last epoch before it.
        """
        while True:
            try:
                coded = next(steps)
            except StopIteration as end:
                return end.value
            self.losses = (*self.losses, coded.loss * self.problem.unit**2)
            if self.coded is None or len(coded.atoms) == self.n_components:
                self.coded = coded
            yield SearchState(
                name,
                self.coded,
                atoms=self.coded.atoms,
                alpha=self.coded.problem.alpha,
                losses=self.losses,
                path=self.path,
                problem=self.problem,
            )

    def note(self, trial):  # Trial -> the same
        """Add a trial to ``path``, in the user's units, and return the trial unchanged.

        Its score is the fraction of the energy of hidden entries that it explains, and the
        tolerance is two standard errors of the score.
        """
        held_out = self.problem.held_out
        zeros = held_out.zeros
        gain, chance = loss_and_chance(zeros, trial.prediction, held_out.total)
        energy = zeros.total or 1.0
        alpha = trial.alpha * self.problem.unit
        tolerance = SURE * chance / energy
        self._rows_of_path.append((alpha, gain / energy, trial.unbiased, tolerance))
        columns = torch.tensor(self._rows_of_path, dtype=torch.float64).T
        alphas, scores, unbiased, tolerances = columns
        self.path = PenaltyPath(alphas, scores, unbiased > 0, tolerances)
        return trial


def judge(problem, coded, trials=(), kinds=(False, True)):  # -> Trial
    """Predict held-out data by the atoms of an epoch, as they are and freed of the lasso's bias.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Problem of the search, with held-out data.
    coded : Epoch, DeviceEpoch or ConvEpoch
        The atoms with the training data's codes, from which three epochs free the atoms of bias.
    trials : sequence of Trial, default=()
        The trials before. They save time: the best penalty of codes is looked for near that of the
        last one.
    kinds : tuple of bool, default=(False, True)
        Which atoms predict: the atoms as they are (False), freed of bias (True), or both in turn.

    Returns
    -------
    Trial
        The trial of the first kind, unless that of the last kind predicts better by more than a
        standard error.
    """
    alpha = coded.problem.alpha
    atoms = coded.atoms
    index = None
    directions = (1, -1)
    # `index` is the number of a penalty of codes, 2 ** (index / 2) times the first penalty of the
    # search. To save time, the best one is looked for from that of the last trial on, and only
    # upwards (or downwards) if the penalty of the search has grown (or fallen): the best penalty of
    # codes moves in the same direction.
    if trials:
        last = trials[-1]
        index = last.prediction.index
        if alpha != last.alpha:
            directions = (1,) if alpha > last.alpha else (-1,)
    by_kind = []
    for unbiased in kinds:
        if unbiased:
            atoms = descend.refit_atoms(coded.problem, atoms, coded.codes, 3)
        prediction = problem.held_out.predict(atoms, index, directions)
        index = prediction.index
        by_kind.append(Trial(alpha, unbiased, prediction, coded.atoms, judged=atoms))
    first = by_kind[0]
    last = by_kind[-1]
    is_worse = problem.held_out.worse(first.prediction, last.prediction)
    return last if is_worse else first


def climb(
    problem,
    first,
    stride,
    penalties,
    note,
    leader=(),
):  # a generator of epochs
    """Try larger and smaller penalties: adapt the atoms to each penalty, and judge the atoms.

    At each penalty atoms start from the atoms of the penalty before. Where penalties begin to fall,
    atoms start from the best atoms so far. They adapt for at most 30 epochs (`descend.ADAPT`).

    Parameters
    ----------
    problem : Problem or ConvProblem
        Problem of the search, with held-out data.
    first : Epoch, DeviceEpoch or ConvEpoch
        Atoms at the first penalty, with codes of a sample of the data.
    stride : int
        The sample of ``first`` has one in ``stride`` of the training data.
    penalties : PenaltyRange
        The penalties that may be tried, as multiples of ``problem.held_out.alpha``.
    note : callable
        ``note(trial)`` is called with each new trial and returns it.
    leader : sequence of Trial, default=()
        Empty, or the best trial of the search before it began again. The first trial looks for its
        best penalty of codes near that of this trial.

    Yields
    ------
    Epoch, DeviceEpoch or ConvEpoch
        Atoms and codes after each epoch. The generator returns three values: the list of all
        trials; atoms with codes, from the last penalty that no penalty before it beats by more than
        a standard error; and the stride of the last sample.
    """
    held_out = problem.held_out
    trials = [note(judge(problem, first, leader))]
    best = first
    last = first
    while True:
        alpha = next_penalty(trials, held_out, penalties)
        if alpha is None:
            return trials, best, stride
        # Where the direction of the penalties turns, from up to down, atoms start from the best
        # ones, otherwise from the last ones.
        goes_down = alpha < trials[-1].alpha
        went_down = trials[-1].alpha < trials[0].alpha
        start = last if goes_down == went_down else best
        last, stride = yield from descend.settle(
            problem,
            start.atoms,
            stride,
            descend.ADAPT,
            alpha=alpha,
            codes=start.codes,
        )
        # all trials judge the kind of atoms that predicted better in the first one
        trial = note(judge(problem, last, trials, kinds=(trials[-1].unbiased,)))
        if not any(held_out.worse(trial.prediction, t.prediction) for t in trials):
            best = last
        trials.append(trial)


def _polish(
    problem,
    coded,
    stride,
    chosen,
    *,
    is_same_sample,
):  # generator of epochs
    """Descend on one in ``stride`` of all samples, held-out ones included, at the chosen penalty.

    The polish, the last stage of a search, takes at most 60 epochs. ``coded`` is the coded data
    before it, and ``chosen`` the `Trial` whose atoms and penalty are taken; None takes those of
    ``coded``. ``is_same_sample`` says whether ``coded`` has the sample of the same stride.
    """
    atoms = coded.atoms if chosen is None else chosen.atoms
    alpha = coded.problem.alpha if chosen is None else chosen.alpha
    part = problem.thinned(stride, alpha=alpha)
    # each epoch of the polish improves the baseline; zeros are what it has subtracted so far
    if problem.has_baseline:
        part = replace(part, baseline=torch.zeros_like(atoms[0]))
    # the codes so far belong to other atoms or samples unless all three conditions hold
    if chosen is None and is_same_sample and problem.held_rows is None:
        codes = coded.codes
    else:
        codes = part.first_codes(atoms)
    return descend.descend(part, atoms, codes, 60)


def find_atoms(problem, atoms, *, level=None, penalties=ONE_PENALTY):
    """Search for the atoms that minimise the objective, and for the penalty of the search.

    This generator is what fits of rows and images run; `search` runs it to its end. Atoms descend
    on a sample ("settle"), leave local minima by rounds that split atoms and remove as many others
    ("split and remove"), try penalties if data are held out ("penalty"), and descend on more data
    ("polish").

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective. Its penalty is the first one, ``problem.held_out`` its held-out data.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms of any norm in different directions, such as samples; the same in all
        processes.
    level : callable, default=None
        For signals: ``level(problem, atoms)`` returns a penalty above the correlations of atoms
        with the noise. If it is more than 1.25 times the penalty of the search, the search begins
        again at this level, at most four times.
    penalties : PenaltyRange, default=ONE_PENALTY
        The penalties that a search with held-out data may try; by default only that of the problem.

    Yields
    ------
    SearchState
        The search after each epoch. The last one has the stage "done".
    """
    unit_atoms = problem.project(atoms.detach().cpu().double())
    log = _Log(problem, len(atoms))
    start_atoms = unit_atoms
    stride = None
    alpha = problem.alpha
    trials = ()  # once the search begins again: the best trial before
    least_error = inf  # the least error of all trials of earlier beginnings
    chosen = None
    n_new_levels = 0
    while True:
        steps = descend.settle(problem, start_atoms, stride, alpha=alpha)
        coded, stride = yield from log.stage("settle", steps)
        coded = yield from log.stage("split and remove", descend.play_rounds(coded))
        noise_level = 0.0
        if level and n_new_levels < 4:
            noise_level = level(replace(problem, alpha=alpha), coded.atoms)
        # The search of a signal begins again only if the level of the noise is above 1.25 times the
        # penalty. In white noise the level is 0.5 to 1.2 times the penalty, so no search begins
        # again. In autoregressive noise with the coefficient 0.9 the level is 1.2 to 2.2 times the
        # penalty. After four new beginnings it may still be higher than the penalty, but at a
        # fifth, larger penalty a search would lose atoms.
        if noise_level > 1.25 * alpha:
            whole = replace(problem, alpha=noise_level, held_out=None, held_rows=None)
            problem = hold_out_images(whole)
            log.problem = problem
            alpha = noise_level
            start_atoms = unit_atoms
            n_new_levels += 1
            stride = None
            trials = ()
            continue
        held_out = problem.held_out
        if held_out is None:
            break
        steps = climb(problem, coded, stride, penalties, log.note, leader=trials)
        trials, coded, stride = yield from log.stage("penalty", steps)
        if not finds_more(trials, held_out, least_error):
            # the last trial has the target penalty, if there is one
            has_target = penalties.target is not None
            chosen = trials[-1] if has_target else chosen_trial(trials, held_out)
            break
        # Noise has hidden the atoms at the first penalty: begin again, one step below the best one.
        leader = min(trials, key=error_of)
        least_error = min(least_error, error_of(leader))
        alpha = penalty_above_noise(trials[0], leader, held_out)
        start_atoms = coded.atoms
        trials = (leader,)
    # The polish takes a sample in which an atom has 2,000 uses (rows with a nonzero code at the
    # atom) on average, because more rows hardly help. For 256 atoms and 178,000 patches the sample
    # is a third of the patches. A search takes 6 s if the polish takes the sample, and 18 s if it
    # takes all patches. The objective on held-out patches is 0.2728 and 0.2722, respectively.
    polish_stride = min(stride, descend.stride_of_uses(coded, stride, 2000))
    steps = _polish(
        problem, coded, polish_stride, chosen, is_same_sample=polish_stride == stride
    )
    # Each state is yielded one epoch late, since the last one gets the stage "done". `best` is the
    # coded data of the polish with the least objective, which the last state has.
    last = None
    best = None
    for state in log.stage("polish", steps):
        if last is not None:
            yield last
        if best is None or state.coded.objective < best.objective:
            best = state.coded
        last = replace(state, trial=chosen, stride=polish_stride)
    yield replace(last, stage="done", coded=best, atoms=best.atoms)


def find_atoms_of_few(problem, atoms, penalties):
    """Search in few rows, twice: once for the penalty, and once for the atoms at this penalty.

    The atoms found depend on the initial atoms, and in few rows so do the predictions and the
    chosen penalty. The first search therefore does not begin with ``atoms``, but with rows drawn
    with a fixed seed, so that all fits of the same rows have one penalty. It ends before its
    polish, whose first state has the chosen penalty. The second search begins with ``atoms`` at the
    first penalty and goes to the chosen one by steps, since atoms that begin at a large penalty
    stay in poor minima. A fit takes 1.4 times as long as with one search, in the median of ten data
    sets of up to 1,000 rows.

    The arguments and the yields are those of `find_atoms`. The states of the second search have the
    penalties that the first search tried as their ``path``.
    """
    x = problem.x.cpu().double()
    generator = torch.Generator().manual_seed(0)
    drawn = initial_atoms(x, len(atoms), "data", generator, weight=problem.weight)
    for first_search in find_atoms(problem, drawn, penalties=penalties):
        if first_search.stage == "polish":
            break
        yield first_search
    penalties = penalties._replace(target=first_search.alpha)
    for second_search in find_atoms(problem, atoms, penalties=penalties):
        yield replace(second_search, path=first_search.path)


def search(
    problem: Any, atoms: Tensor, *, on_epoch: Callable | None = None
) -> SearchState:
    """Search for the atoms that minimise the objective, and for the penalty of the search.

    Parameters
    ----------
    problem : Problem
        Data and objective. With held-out rows, see `held_out.hold_out`, the search tries several
        penalties.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any norm in different directions, such as samples.
    on_epoch : callable, default=None
        Called with a `SearchState` after every epoch; an exception that it raises ends the search.

    Returns
    -------
    SearchState
        The finished search. Its ``atoms``, of shape (n_components, n_features) and norm 1, are the
        result, and its ``alpha`` is their penalty.
    """
    for state in find_atoms(problem, atoms, penalties=PenaltyRange()):
        if on_epoch is not None:
            on_epoch(state)
    return state


def noise_penalty(problem, atoms):  # -> float
    """Return a penalty above the noise, at which searches for any number of atoms can begin.

    The penalty is the one at which the given atoms predict held-out rows best, divided by
    ``2 ** 0.5``, if that prediction beats the prediction at ``problem.alpha`` by over two standard
    errors. (If there are too few atoms, atoms are mixtures, which predict best at a penalty that is
    too large. In nine planted problems, with signal-to-noise ratios of 5, 2 and 0 dB, the number of
    atoms is found within 5 %: in eight problems from this penalty, in four from the best one.)

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
    held_out = problem.held_out
    if held_out is None:
        return problem.alpha
    atoms = problem.project(atoms.detach().cpu().double())
    best, stride = descend.exhaust(descend.settle(problem, atoms))
    steps = climb(problem, best, stride, PenaltyRange(), note=lambda trial: trial)
    trials, _, _ = descend.exhaust(steps)
    chosen = chosen_trial(trials, held_out)
    return penalty_above_noise(trials[0], chosen, held_out)
