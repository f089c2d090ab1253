"""Callbacks on every learner, alone, in a pipeline and in a search, and what ended a fit."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small import EndsTheFit, make, make_data

from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import reconstruction_r2_scorer

N_EPOCHS = 3
SHARED = dict(n_unfoldings=5, max_iter=N_EPOCHS, tol=None, random_state=0)
LEARNERS = [
    PUDLEDictionaryLearning(6, dict_init="data", **SHARED),
    NOODLDictionaryLearning(6, dict_init="data", **SHARED),
    SporcoDictionaryLearning(6, max_iter=N_EPOCHS, random_state=0),
]


@pytest.fixture(params=LEARNERS, ids=lambda learner: type(learner).__name__)
def learner(request):
    """Return each learner in turn, without callbacks of the test before."""
    if isinstance(request.param, SporcoDictionaryLearning):
        pytest.importorskip("sporco")
    return request.param.set_callbacks()


@pytest.fixture(scope="module")
def X():
    return make_dictionary_data(40, 9, 6, 2, random_state=0)[0]


def alone(learner):
    return learner


def in_a_pipeline(learner):
    return make_pipeline(StandardScaler(with_std=False), learner)


def in_a_search(learner):
    return GridSearchCV(
        learner, {"max_iter": [2, N_EPOCHS]}, cv=2, scoring=reconstruction_r2_scorer
    )


def make_monitor():
    """Return a callback of scikit-learn that scores every epoch."""
    callbacks = pytest.importorskip(
        "sklearn.callback", reason="scikit-learn before 1.9"
    )
    return callbacks.ScoringMonitor(scoring={"r2": reconstruction_r2_scorer})


@pytest.mark.parametrize("place", [alone, in_a_pipeline, in_a_search])
def test_the_scoring_monitor_has_a_score_for_every_epoch(place, learner, X):
    monitor = make_monitor()
    learner.set_callbacks(monitor)
    fitted = place(learner).fit(X, np.zeros(len(X)))
    rows = monitor.get_logs().data
    scores = [row["r2"] for row in rows if row["task_name"] == "epoch"]
    if (
        place is in_a_search
    ):  # two values in two folds, and the best again on all samples
        assert len(scores) == 2 * (2 + N_EPOCHS) + fitted.best_params_["max_iter"]
    else:
        assert len(scores) == N_EPOCHS
    if place is alone:
        assert scores[-1] == reconstruction_r2_scorer(learner, X)


def test_the_scoring_monitor_follows_all_phases_of_a_search(X):
    monitor = make_monitor()
    learner = PUDLEDictionaryLearning(6, random_state=0).set_callbacks(monitor)
    learner.fit(X, np.zeros(len(X)))
    assert monitor.get_logs().data[-1]["r2"] == reconstruction_r2_scorer(learner, X)


def test_a_callback_can_stop_any_training(learner, X):
    """It sees the learner as if training had ended there."""
    stop = EndsTheFit("epoch", 2)
    learner.set_callbacks(stop).fit(X)
    assert learner.n_iter_ == len(learner.loss_curve_) == 2
    np.testing.assert_array_equal(stop.seen[-1], learner.components_)
    ended = clone(learner).set_callbacks().set_params(max_iter=2).fit(X)
    np.testing.assert_array_equal(ended.components_, learner.components_)
    np.testing.assert_array_equal(ended.transform(X), learner.transform(X))


def test_a_callback_that_stops_is_no_lack_of_convergence(X):
    """The decay is that of the stage that training had come to."""
    learner = clone(LEARNERS[0]).set_params(
        max_iter=10, tol=1e-9, lambda_decay=(1.0, 0.9)
    )
    learner.set_callbacks(EndsTheFit("epoch", 2)).fit(X)
    assert learner.n_iter_ == 2
    assert learner.lambda_decay_ == pytest.approx(1.0 - 0.1 / 9)


# ---------------------------------------------------------------------------- what ended a fit

ROWS, _ = make_data()
STOPS_SEARCH = EndsTheFit("epoch of the search")
CONV = ConvPUDLEDictionaryLearning(2, atom_shape=4, random_state=0)
DENOISER = ConvDenoiser(
    2, atom_shape=4, stride=1, n_unfoldings=2, tol=None, random_state=0
)
SPORCO = SporcoDictionaryLearning(6, max_iter=2, random_state=0)


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (PUDLEDictionaryLearning(6, random_state=0), "search"),
        (make(tol=None), "max_iter"),
        (make(tol=0.9, max_iter=12), "tol"),
        (make().set_callbacks(EndsTheFit("epoch")), "callback"),
        (
            PUDLEDictionaryLearning(6, random_state=0).set_callbacks(STOPS_SEARCH),
            "callback",
        ),
        (NOODLDictionaryLearning(6, max_iter=2, tol=None, random_state=0), "max_iter"),
        (CONV.set_callbacks(EndsTheFit("epoch of the search")), "callback"),
        (PUDLEClassifier(6, max_iter=2, tol=None, random_state=0), "max_iter"),
        (PUDLEClassifier(6, supervision=0, random_state=0), "search"),
        (DENOISER.set_callbacks(EndsTheFit("epoch")), "callback"),
        (SPORCO, "max_iter"),
        (clone(SPORCO).set_callbacks(EndsTheFit("epoch")), "callback"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_fit_that_ends_says_by_what(learner, expected):
    if isinstance(learner, SporcoDictionaryLearning):
        pytest.importorskip("sporco")
    learner.fit(ROWS, np.arange(len(ROWS)) % 2)
    assert learner.ended_by_ == expected
    assert pickle.loads(pickle.dumps(learner.set_callbacks())).ended_by_ == expected


def test_what_goes_on_has_not_ended():
    learner = make().fit(ROWS)
    assert learner.partial_fit(ROWS).ended_by_ is None
    atoms = learner.components_
    learner = PUDLEDictionaryLearning.from_components(atoms, alpha=1)
    assert learner.ended_by_ is None
