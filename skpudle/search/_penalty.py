"""The path of penalties of a search: which one to try next, and which one to choose.

A search begins at its usual penalty. Its atoms then adapt to larger penalties, a factor of ``2 **
0.5`` at a time, while the prediction of held-out rows does not get worse; if the first step is
worse, to smaller penalties, while it improves. At each penalty atoms predict with and without the
lasso's bias.

Among penalties whose errors differ from the least by less than half a standard error of the
difference, the largest is chosen. On planted data that error is tiny, and the best prediction wins.
On real data predictions hardly differ, and a larger penalty has sparser codes, and atoms on which
two starts agree better. If a larger penalty explains a fifth more than the first penalty, noise has
hidden the atoms at the first penalty: the rounds of the search begin again, one step below the best
penalty. (The atoms so far are mixtures, which predict best at a penalty that is too large for true
atoms. Of 60 atoms in 20,000 rows with twice as much noise as signal 0.95 are found from one step
below, and 0.78 from the best penalty.)
"""

from math import inf
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.search._held_out import Prediction

# Factors from one penalty to the next, in a path to larger and to smaller penalties.
_LARGER, _SMALLER = 2**0.5, 0.5
# The first penalty of mixtures in deviations of the noise, and the usual penalty in units of the
# smallest penalty. The mean angle between eight kinds of spectra and their atoms is 4.2 degrees
# with a path from the usual penalty, and 1.8 with a path from this penalty.
_OF_NOISE, _MOST_OF_MIXTURES = 0.3, 256
# Standard errors of a difference that counts as chance, and of a difference that is certain. With
# 0.5 the prediction of 19 of 22 sets of rows (benchmarks/bench_learners.py) is as good as with the
# usual penalty, with 1 of 17.
_CHANCE, _SURE = 0.5, 2.0
# Least number of held-out rows, or tiles of images, that may choose a larger penalty. 35 held-out
# rows of a table of wines chose four times the penalty, which was worse on unseen rows.
_FEW_PARTS = 60
# Least gain of explained energy with which the search begins again at a larger penalty. The gain is
# 3 and more at -3 dB, 1.5 at 2 dB, and at most 1.07 at 5 dB and for patches and digits.
_MORE = 1.2
# Least fall of the error of held-out entries, as a share, with which a smaller penalty follows.
_GAIN = 0.01
# Unexplained share of the energy at which a path ends, since the data have no noise. With 1e-4 rows
# with a noise of .003 keep an error of 1.5 times the noise, with 1e-8 of 0.4 times.
_NEARLY_PERFECT = 1e-8
# Growth of the number of codes, from the first penalty, at which smaller penalties end: they then
# add atoms to codes instead of removing bias. Codes of activations of a network grow fivefold, and
# two starts agree to .75 instead of .90.
_DENSER = 3


# The squared error of hidden entries of a trial, of all processes.
error_of = attrgetter("prediction.total")


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
    """

    alpha: Tensor
    score: Tensor
    unbiased: Tensor


class Trial(NamedTuple):
    """Atoms at a penalty, and how well they predict held-out rows.

    Attributes
    ----------
    alpha : float
        Penalty.
    unbiased : bool
        Whether the atoms predict better without the lasso's bias.
    prediction : Prediction
        Errors of the better of both kinds of atoms.
    n_entries : float
        Nonzero codes of all samples.
    """

    alpha: float
    unbiased: bool
    prediction: Prediction
    n_entries: float


def is_worse(one, other, total, n_errors=1.0):
    """Return whether a trial predicts worse than another, beyond chance.

    Parameters
    ----------
    one, other : Trial
        The trials.
    total : callable
        ``total(tensor)`` returns its sum over processes that have other rows.
    n_errors : float, default=1.0
        Chance makes a difference of this many standard errors.
    """
    loss = one.prediction.errors - other.prediction.errors
    counts = loss.new_tensor([float(len(loss))])
    (sums,) = total(torch.cat([loss.sum()[None], loss.square().sum()[None], counts]))
    loss, square, n = sums.tolist()
    return loss > n_errors * max(square - loss**2 / max(n, 1.0), 0.0) ** 0.5


def _explained(error, problem):  # -> float
    """Return the energy of hidden entries that is not in the error, as a share."""
    (energy,) = problem.total(problem.held_out.energies.sum())
    return 1 - error / float(energy) if energy > 0 else 0.0


def _predicts(trial, problem):
    """Return whether a trial predicts hidden entries better than zeros, beyond chance."""
    zeros = trial.prediction._replace(errors=problem.held_out.energies)
    return is_worse(trial._replace(prediction=zeros), trial, problem.total, _SURE)


def chosen_trial(trials, problem):  # -> Trial
    """Return the trial with the largest penalty that predicts as well as the best.

    If no trial predicts held-out entries better than zeros, it is the first trial.
    """
    best = min(trials, key=error_of)
    if not _predicts(best, problem):
        return trials[0]
    return max(
        (trial for trial in trials if not is_worse(trial, best, problem.total, _CHANCE)),
        key=lambda trial: trial.alpha,
    )


def finds_more(trials, problem, least=inf):
    """Return whether a larger penalty predicts so much better that a search there finds new atoms.

    It has to explain more than the first penalty, and more than the ``least`` error of earlier
    paths; rounds without a gain are the last rounds.
    """
    first, best = trials[0], min(trials, key=error_of)
    before = max(_explained(min(error_of(first), least), problem), 0.0)
    found = _explained(error_of(best), problem) > _MORE * before
    return best.alpha > first.alpha and found and _predicts(best, problem)


def penalty_of_mixtures(problem, n_components):  # -> float
    """Return the first penalty for few non-negative atoms, from the level of the noise.

    The usual penalty pulls atoms of norm 1 towards the data, and atoms do not come back on a path
    from there. The noise is the residual of the leading singular vectors.

    Parameters
    ----------
    problem : Problem
        Mixtures without missing entries, and the usual penalty, which is the largest one.
    n_components : int
        Number of atoms.

    Returns
    -------
    float
        The penalty.
    """
    x = problem.x.double()
    x = x if problem.weight is None else x * problem.weight.to(x)[:, None].sqrt()
    squares = torch.linalg.eigvalsh(x @ x.mT if len(x) < x.shape[1] else x.mT @ x)
    left = float(squares[:-n_components].clamp_min(0).sum())
    n_left = (len(x) - n_components) * (x.shape[1] - n_components)
    penalty = _OF_NOISE * (left / max(n_left, 1)) ** 0.5
    return min(max(penalty, problem.alpha / _MOST_OF_MIXTURES), problem.alpha)


def penalty_path(problem, path, unit):  # -> PenaltyPath or None
    """Return the trials of a search, with penalties in the units of the data.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of the search.
    path : tuple of (float, float, bool)
        The trials, see `SearchState`.
    unit : float
        One of the problem's units.

    Returns
    -------
    PenaltyPath or None
        The trials; None without trials.
    """
    if not path:
        return None
    alpha, error, unbiased = zip(*path, strict=True)
    (energy,) = problem.total(problem.held_out.energies.sum())
    score = 1 - torch.tensor(error, dtype=torch.float64) / (float(energy) or 1.0)
    alpha = torch.tensor(alpha, dtype=torch.float64) * unit
    return PenaltyPath(alpha, score, torch.tensor(unbiased))


def limits_of_path(problem):  # -> the smallest and the largest penalty
    """Return the least and largest penalty of a search; a given penalty is both."""
    held_out = problem.held_out
    if held_out is None or held_out.fixed:
        return problem.alpha, problem.alpha
    return problem.alpha * held_out.smallest, problem.alpha * held_out.largest


def penalty_above_noise(first, chosen, problem):  # -> float
    """Return the penalty of a search above the noise, one step below the chosen trial's.

    If the chosen trial does not predict better than the first one beyond chance, return the usual
    penalty, which is the smallest.
    """
    if not is_worse(first, chosen, problem.total, _SURE):
        return problem.alpha
    return max(chosen.alpha / _LARGER, problem.alpha)


def next_penalty(trials, problem):  # -> float or None
    """Return the next penalty to try after some trials; None at the end of the path.

    Mixtures of few non-negative atoms have dense codes at any penalty. Their path goes on to
    smaller penalties until predictions are worse, since atoms still change where errors hardly do.
    """
    first, last, best = trials[0], trials[-1], min(trials, key=error_of)
    smallest, largest = limits_of_path(problem)
    factor = _SMALLER if first.alpha <= problem.alpha else 1 / _LARGER
    if _explained(error_of(best), problem) > 1 - _NEARLY_PERFECT:
        return None
    (n_parts,) = problem.total(torch.tensor([float(len(problem.held_out.energies))]))
    if last.alpha >= first.alpha and n_parts >= _FEW_PARTS:
        goes_on = not is_worse(last, best, problem.total) or not _predicts(best, problem)
        if goes_on and last.alpha * _LARGER <= largest:
            return last.alpha * _LARGER
    if last.alpha >= first.alpha:
        smaller = first.alpha * factor
        turns = problem.held_out.mixes or (best is first and len(trials) <= 2)
        return smaller if turns and smaller >= smallest else None
    before = min(error_of(trial) for trial in trials[:-1])
    if problem.held_out.mixes:
        goes_on = not is_worse(last, best, problem.total, _CHANCE)
    else:
        is_dense = last.n_entries > _DENSER * first.n_entries
        goes_on = error_of(last) < (1 - _GAIN) * before and not is_dense
    smaller = last.alpha * factor
    return smaller if goes_on and smaller >= smallest else None
