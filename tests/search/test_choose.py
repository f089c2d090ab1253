"""Choices of a search: its penalty, and the penalty of codes."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from planted import share_found

from skpudle import PUDLEDictionaryLearning
from skpudle._rows import own
from skpudle._states import Prediction, Trial
from skpudle.datasets import make_dictionary_data
from skpudle.search import Problem, auto_alpha
from skpudle.search.choose import best_coding
from skpudle.search.find import (
    PenaltyRange,
    chosen_trial,
    find_atoms,
    finds_more,
    next_penalty,
)
from skpudle.search.held_out import HeldOut, hold_out


def planted(n, m=20, p=25, n_nonzero=3, *, decibels, seed=0):
    """Return rows of random atoms with this ratio of signal to noise, and the atoms."""
    how = dict(amplitude=(0.5, 1.5), snr_db=decibels, random_state=seed)
    return tuple(
        map(torch.from_numpy, make_dictionary_data(n, m, p, n_nonzero, **how)[:2])
    )


# ---------------------------------------------------------------------------- trials made by hand

PARTS = 100
RANGE = PenaltyRange()


class MadeByHand(HeldOut):
    """What a path asks of held-out data; each part has the energy 4."""

    def __init__(self, n_parts=PARTS):
        energies = torch.full((n_parts,), 4.0, dtype=torch.float64)
        self.alpha = 1.0
        self.total = own
        self.zeros = Prediction(energies, float(energies.sum()))


def trial_of(alpha, error, n_parts=PARTS):
    """Return a trial whose errors differ from those of another by different amounts in all rows."""
    spread = torch.linspace(0.5, 1.5, n_parts, dtype=torch.float64)
    errors = error * spread
    return Trial(alpha, False, Prediction(errors, float(errors.sum())))


def path_of(error, penalties=RANGE):
    """Return the trials of a path where a penalty has this error, and the held-out data."""
    held_out = MadeByHand()
    alpha, trials = held_out.alpha, []
    while alpha is not None:
        trials.append(trial_of(alpha, error(alpha)))
        alpha = next_penalty(trials, held_out, penalties)
    return trials, held_out


UP = [*range(8)]  # indices of penalties, powers of the root of 2, up to the largest
# name: error of a penalty, whether rows are mixtures, indices tried, the one taken, more is found
PATHS = {
    "flat: the largest": (lambda alpha: 1.0, False, UP, 7, False),
    "rising on both sides": (lambda alpha: 1 + abs(np.log2(alpha)), False, [0, 1, -2], 0, False),
    "falling: the smallest": (lambda alpha: alpha, False, [0, 1, -2, -4, -6, -8], -8, False),
    "a valley at 4": (lambda alpha: 1 + abs(np.log2(alpha / 4)), False, UP[:6], 4, True),
    "a gain of less than a fifth": (
        lambda alpha: 2 + 0.1 * abs(np.log2(alpha / 4)), False, UP[:6], 4, False
    ),
    "smaller ones gain nothing": (
        lambda alpha: max(alpha, 0.25) + (alpha > 1), False, [0, 1, -2, -4, -6], -4, False
    ),
    "mixtures, flat below": (
        lambda alpha: 1 + max(alpha - 1, 0), True, [0, 1, -2, -4, -6, -8], 0, False
    ),
    "mixtures, flat above": (
        lambda alpha: 1 + max(0.3 - alpha, 0), True, [*UP, -2, -4], 7, False
    ),
    "nothing is predicted": (lambda alpha: 5.0, False, UP, 0, False),
    "hardly less than nothing": (lambda alpha: 5 - 0.01 * alpha, False, UP, 0, False),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_a_path_ends_where_penalties_get_worse_and_takes_the_best(name):
    error, mixes, indices, taken, is_more = PATHS[name]
    trials, held_out = path_of(error, PenaltyRange(mixes=mixes))
    assert [2 * np.log2(trial.alpha) for trial in trials] == pytest.approx(indices)
    assert 2 * np.log2(chosen_trial(trials, held_out).alpha) == pytest.approx(taken)
    assert finds_more(trials, held_out) == is_more  # a search from other atoms follows


def test_a_path_finds_no_more_than_earlier_paths():
    """Also where the first penalty explains nothing: rounds would begin again without an end."""
    trials, held_out = path_of(lambda alpha: 5 + 2 * abs(np.log2(alpha / 4)) - 2)
    energy = held_out.zeros.total
    explained = 1 - min(trial.prediction.total for trial in trials) / energy
    assert finds_more(trials, held_out)
    assert not finds_more(trials, held_out, (1 - explained) * energy)
    assert finds_more(trials, held_out, (1 - explained / 1.3) * energy)


@pytest.mark.parametrize("smallest", [1.0, 0.25])
def test_a_path_stays_within_its_limits(smallest):
    trials, _ = path_of(lambda alpha: alpha, PenaltyRange(smallest))
    assert min(trial.alpha for trial in trials) == smallest


@pytest.mark.parametrize(
    ("target", "indices"),
    [(1.0, [0]), (3.0, [0, 1, 2, 3, np.log2(9)]), (0.4, [0, -2, np.log2(0.16)])],
)
def test_a_path_steps_to_its_target_whatever_is_predicted(target, indices):
    trials, _ = path_of(lambda alpha: 1.0, PenaltyRange(target=target))
    assert [2 * np.log2(trial.alpha) for trial in trials] == pytest.approx(indices)


# ---------------------------------------------------------------------------- searches


@pytest.mark.parametrize("seed", range(4))
def test_few_rows_of_one_atom_each_keep_all_atoms(seed):
    """Their penalty is far above the first one, where atoms of random rows would stay apart."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((8, 20))
    codes = rng.uniform(1, 2, (80, 1)) * np.eye(8)[np.arange(80) % 8]
    X = codes @ atoms + 0.01 * rng.standard_normal((80, 20))
    learner = PUDLEDictionaryLearning(8, random_state=seed).fit(X)
    cosines = abs(learner.components_ @ atoms.T) / np.linalg.norm(atoms, axis=1)
    assert cosines.max(axis=0).min() > 0.99


@pytest.mark.parametrize("seed", range(2))
def test_seeds_of_few_rows_take_one_penalty(seed):
    X, _ = planted(300, decibels=5, seed=seed)
    learners = [
        PUDLEDictionaryLearning(25, random_state=i).fit(X.numpy()) for i in range(3)
    ]
    penalties = [learner.search_alpha_ for learner in learners]
    assert max(penalties) < 1.05 * min(penalties)


@pytest.mark.parametrize("decibels", [3, 20])
def test_the_order_of_features_leaves_what_is_found(decibels):
    """Other groups of features are hidden."""
    x, truth = planted(4000, decibels=decibels)
    for order in (torch.arange(20), torch.arange(20).flip(0)):
        learner = PUDLEDictionaryLearning(25, random_state=0).fit(x[:, order].numpy())
        assert share_found(learner.components_, truth[:, order], 0.9) >= 0.95


@pytest.fixture(scope="module")
def records():
    """Return a problem with rows that are held out, and the records of its search."""
    x, _ = planted(300, 16, 20, decibels=-3)
    problem = hold_out(Problem(x, auto_alpha(x)))
    return problem, list(find_atoms(problem, x[:20], penalties=PenaltyRange()))


def test_the_path_holds_all_penalties_that_were_searched_with(records):
    problem, records = records
    *_, last = records
    assert {found.alpha for found in records} == {*last.path.alpha.tolist()}
    assert last.path.alpha[0] == problem.alpha
    assert last.alpha == last.trial.alpha
    seen = [
        [] if found.path is None else found.path.alpha.tolist() for found in records
    ]
    assert all(after[: len(before)] == before for before, after in pairwise(seen))
    assert [found.stage for found in records].index("penalty") > 0


def test_errors_of_the_path_are_predictions_of_held_out_rows(records):
    problem, (*_, last) = records
    prediction = last.trial.prediction
    found = problem.held_out.predict(last.trial.judged, prediction.index)
    assert found.total == pytest.approx(prediction.total, rel=0.01)
    (score,) = last.path.score[last.path.alpha == last.alpha].tolist()
    assert score == pytest.approx(1 - prediction.total / problem.held_out.zeros.total)


# ---------------------------------------------------------------------------- codes


@pytest.mark.parametrize("debias", [None, 0.0, 0.5])
@pytest.mark.parametrize("decibels", [0, 20])
def test_codes_have_the_largest_penalty_that_predicts_nearly_as_well(decibels, debias):
    """The same from all penalties, one by one, and the noise that the data have."""
    x, truth = planted(300, decibels=decibels)
    held_out = Problem(x, auto_alpha(x)).hide()
    found = best_coding(held_out, truth, debias=debias)
    least, most = held_out.index_range
    trials = [held_out.at(truth, index, debias) for index in range(most, least - 1, -1)]
    best = min(trials, key=lambda trial: trial.total)
    noise = held_out.noise(truth, best) * held_out.n_hidden
    factor = 1.05 + 0.1 * best.debias
    limit = (
        min(noise, best.total)
        + factor * max(best.total - noise, 0)
        + 1e-12 * best.total
    )
    chosen = next(trial for trial in trials if trial.total <= limit)
    assert found.alpha == held_out.alpha * 2 ** (chosen.index / 2)
    assert found.debias == (chosen.debias if debias is None else debias)
    clean_std = float(x.std()) / (1 + 10 ** (decibels / 10)) ** 0.5
    assert found.noise_std == pytest.approx(clean_std, rel=0.25)
