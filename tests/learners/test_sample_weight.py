"""Weights of samples: a weight of two is a repetition, and a weight of zero is absence."""

from itertools import cycle

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small import assert_same_values, learner_of
from torch.utils.data import TensorDataset

from skpudle import (
    ConsensusDictionary,
    DictionaryImputer,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
)
from skpudle._data import sources
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import recovery_rate

N, M, P = 90, 8, 6


def planted(seed=0, n=N, m=M, p=P):
    """Return rows with two planted atoms each, and the atoms."""
    how = dict(amplitude=(0.1, 3.0), snr_db=35, random_state=seed)
    return make_dictionary_data(n, m, p, 2, **how)[:2]


def weighted(seed=0, most=4, n=N):
    """Return numbers of repetitions, some of them zero, and an order."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, most, n), rng.permutation(n)


LEARNERS = {
    name: learner_of(name)
    for name in ("search", "positive", "lasso", "encoder", "noise")
}
LEARNERS |= {
    "size": learner_of("search", "auto"),
    "alpha": learner_of("search", alpha=0.1),
    "batches": learner_of("dec", dict_init="search"),
    "training": learner_of("surrogate", dict_init="search", n_unfoldings=None),
    "noodl": learner_of("noodl", dict_init="search"),
}


# ---------------------------------------------------------------------------- fit


@pytest.mark.parametrize(
    ("name", "gaps"), [*zip(LEARNERS, cycle([False, True])), ("search", True)]
)
def test_weights_are_repetitions_in_any_order(name, gaps):
    X, learner = planted()[0], LEARNERS[name]
    often, order = weighted()
    if gaps:
        X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    repeated = np.repeat(X, often, axis=0)
    repeated = repeated[np.random.default_rng(2).permutation(len(repeated))]
    one = clone(learner).fit(repeated)
    other = clone(learner).fit(X[order], sample_weight=often[order])
    names = (
        "components_",
        "alpha_",
        "intercept_",
        "noise_std_",
        "debias_",
        "loss_curve_",
    )
    assert_same_values(one, other, *names, "size_path_", "n_samples_seen_")


def test_the_unit_of_weights_does_not_matter():
    X, _ = planted()
    weight = np.random.default_rng(0).random(N)
    one, other = (
        learner_of("search").fit(X, sample_weight=w) for w in (weight, 8 * weight)
    )
    np.testing.assert_array_equal(one.components_, other.components_)
    assert one.alpha_ == other.alpha_


def test_outliers_are_at_all_copies_of_their_row():
    X, _ = planted(0, 600, 12, 8)
    spikes = np.random.default_rng(0).random(X.shape) < 0.01
    X = np.where(spikes, 30.0, X)
    often = np.random.default_rng(1).integers(0, 3, len(X))
    learner = PUDLEDictionaryLearning(8, random_state=0)
    repeated = clone(learner).fit(np.repeat(X, often, axis=0)).outliers_
    found = clone(learner).fit(X, sample_weight=often).outliers_
    assert found.shape == X.shape
    assert repeated.nnz > 0
    assert (np.repeat(found.toarray(), often, axis=0) == repeated.toarray()).all()
    assert not found.toarray()[often == 0].any()


# ---------------------------------------------------------------------------- parts


@pytest.mark.parametrize("name", ["search", "surrogate", "unfolded"])
def test_weights_of_partial_fit_are_repetitions(name):
    X, _ = planted(n=300)
    often, _ = weighted(n=300)
    given = {} if name == "search" else dict(batch_size=1000)
    one, other = (learner_of(name, **given).fit(X) for _ in range(2))
    for part in range(2):
        rows = slice(150 * part, 150 * (part + 1))
        one.partial_fit(np.repeat(X[rows], often[rows], axis=0))
        other.partial_fit(X[rows], sample_weight=often[rows])
    np.testing.assert_allclose(one.components_, other.components_, rtol=0, atol=1e-8)
    assert one.n_samples_seen_ == other.n_samples_seen_
    assert one.loss_curve_[-1] == pytest.approx(other.loss_curve_[-1])


def test_a_pass_over_weighted_rows_adapts_to_them(monkeypatch):
    """The search sees a sample of all rows, and the pass the rest."""
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(sources, "_sample_size", lambda *_: 400)
    (X, atoms), (Y, _) = planted(0, 1200, p=6), planted(1, 1200, p=6)
    rows = np.stack([X, Y], axis=1).reshape(-1, M)
    learner = PUDLEDictionaryLearning(
        6, noise="equal", fit_intercept=False, random_state=0
    )
    learner.fit(
        TensorDataset(torch.tensor(rows)), sample_weight=np.tile([1.0, 1e-3], 1200)
    )
    assert "pass" in learner.fit_seconds_
    assert recovery_rate(atoms, learner.components_) == 1


# ---------------------------------------------------------------------------- score


@pytest.mark.parametrize("name", ["search", "poisson", "counts that add"])
@pytest.mark.parametrize("gaps", [False, True])
def test_weights_of_a_score_are_repetitions(name, gaps):
    rng = np.random.default_rng(0)
    X = rng.poisson(3.0, (N, M)).astype(float)
    learner = learner_of(name, alpha=0.3).fit(X)
    if gaps:
        X[rng.random(X.shape) < 0.1] = np.nan
    often, _ = weighted()
    expected = learner.score(np.repeat(X, often, axis=0))
    assert learner.score(X, sample_weight=often) == pytest.approx(expected)
    assert learner.score(X, sample_weight=0.1 * often) == pytest.approx(expected)
    assert learner.score(X) != pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------------------- other estimators


def test_weights_of_an_imputer_are_repetitions():
    X, _ = planted()
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    X[0] = np.nan  # gets the means
    often, order = weighted()
    imputer = DictionaryImputer(PUDLEDictionaryLearning(P, random_state=0))
    one = imputer.fit(np.repeat(X, often, axis=0)).transform(X)
    other = imputer.fit(X[order], sample_weight=often[order]).transform(X)
    np.testing.assert_allclose(one, other, rtol=1e-12)
    scaler = DictionaryImputer().fit(X, sample_weight=often).estimator_[0]
    np.testing.assert_allclose(
        scaler.mean_, np.nanmean(np.repeat(X, often, axis=0), axis=0)
    )


def test_weights_reach_all_replicates():
    X, _ = planted()
    often, order = weighted()
    consensus = ConsensusDictionary(PUDLEDictionaryLearning(P), 3, random_state=0)
    one = clone(consensus).fit(np.repeat(X, often, axis=0))
    other = clone(consensus).fit(X[order], sample_weight=often[order])
    np.testing.assert_array_equal(one.components_, other.components_)
    expected = one.score(np.repeat(X, often, axis=0))
    assert other.score(X, sample_weight=often) == pytest.approx(expected)
    halves = ConsensusDictionary(
        PUDLEDictionaryLearning(P), 3, resample="halves", random_state=0
    )
    assert np.isfinite(clone(halves).fit(X, sample_weight=often + 1).components_).all()


@pytest.mark.parametrize("supervision", [0.0, 0.5])
@pytest.mark.parametrize("kind", [PUDLEClassifier, PUDLERegressor])
def test_weights_of_a_task_reach_its_dictionary(kind, supervision):
    """A population of hardly any weight has no atoms, whatever its task."""
    (X, atoms), (Y, _) = planted(0, 300, p=4), planted(1, 300, p=4)
    rows, targets = np.concatenate([X, Y]), np.random.default_rng(0).integers(0, 2, 600)
    params = dict(supervision=supervision, random_state=0)
    params |= dict(max_iter=1, tol=None) if supervision else {}
    weight = np.repeat([1.0, 1e-4], 300)
    found = kind(4, **params).fit(rows, targets, sample_weight=weight).components_
    assert recovery_rate(atoms, found) == 1


# ---------------------------------------------------------------------------- scikit-learn


@pytest.mark.parametrize(
    ("kind", "given", "requests"),
    [
        ("search", "sample_weight", ("fit", "score")),
        ("poisson", "exposure", ("fit", "score", "transform")),
    ],
)
def test_numbers_of_rows_are_routed(kind, given, requests):
    X = np.random.default_rng(0).poisson(3.0, (N, M)).astype(float)
    numbers = {given: weighted()[0] + 1.0}
    of_codes = numbers if "transform" in requests else {}
    expected = learner_of(kind).fit(X, **numbers).transform(X, **of_codes)
    np.testing.assert_array_equal(
        learner_of(kind).fit_transform(X, **numbers), expected
    )
    with config_context(enable_metadata_routing=True):
        learner = learner_of(kind)
        for request in requests:
            getattr(learner, f"set_{request}_request")(**{given: True})
        pipeline = make_pipeline(FunctionTransformer(), learner).fit(X, **numbers)
        np.testing.assert_array_equal(pipeline.transform(X, **of_codes), expected)
        search = GridSearchCV(learner, {"alpha": [0.1, 0.3]}, cv=2).fit(X, **numbers)
        assert np.isfinite(search.best_score_)


@pytest.mark.parametrize(
    ("value", "message"), [(-1, "[Nn]egative"), (0, "at least one non-zero")]
)
def test_weights_that_are_none_are_refused(value, message):
    X = np.abs(planted()[0])
    learner = PUDLEDictionaryLearning.from_components(np.eye(M), alpha=0.1)
    counts = PoissonNMF.from_components(np.eye(M))
    for call in (
        learner.fit,
        learner.partial_fit,
        learner.score,
        counts.fit,
        counts.score,
    ):
        with pytest.raises(ValueError, match=message):
            call(X, sample_weight=np.full(N, float(value)))
    for one in (learner, counts):
        np.testing.assert_array_equal(one.components_, np.eye(M))
