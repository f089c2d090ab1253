"""Hostile data and parameters: a right result or a clear error, and nothing in between."""

import copy
import pickle
import socket
import threading
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings(r"ignore:X has \d+ samples? with known values:UserWarning"),
    pytest.mark.filterwarnings("ignore:All codes of .* are zero:UserWarning"),
    pytest.mark.filterwarnings("ignore:Parameters of .* have no effect:UserWarning"),
]

RNG = np.random.default_rng(0)
PLAIN = RNG.normal(size=(30, 6))
COHERENT = np.ones((8, 6)) + 1e-6 * RNG.normal(size=(8, 6))
FromData = partial(PUDLEDictionaryLearning, dict_init="data", optimizer="adam")
SMALL = dict(n_components=8, n_unfoldings=10, max_iter=3, tol=None, random_state=0)

LEARNERS = {
    "soft": PUDLEDictionaryLearning(gradient="ae-ls", **SMALL),
    "hard": PUDLEDictionaryLearning(gradient="ae-ls", shrinkage="hard", **SMALL),
    "dec": PUDLEDictionaryLearning(gradient="dec", **SMALL),
    "surrogate": PUDLEDictionaryLearning(gradient="ae-ls", optimizer="surrogate", **SMALL),
    "lasso": PUDLEDictionaryLearning(gradient="ae-ls", **SMALL | {"n_unfoldings": None}),
    "more atoms than features": PUDLEDictionaryLearning(
        gradient="ae-ls", **SMALL | {"n_components": 60}
    ),
    "coherent atoms": PUDLEDictionaryLearning(dict_init=COHERENT, **SMALL),
    "no penalty": PUDLEDictionaryLearning(alpha=0.0, **SMALL),
    "penalty beyond its maximum": PUDLEDictionaryLearning(alpha=1e12, **SMALL),
    "noodl": NOODLDictionaryLearning(**SMALL, learning_rate=1e-20),  # scales with 1 / the data
}

DATA = {
    "tiny": 1e-8 * PLAIN,
    "huge": 1e8 * PLAIN,
    "a constant column": np.c_[PLAIN, np.full(30, 7.0)],
    "duplicates": np.tile(PLAIN[:3], (10, 1)),
    "zero rows": PLAIN * (np.arange(30) % 2)[:, None],
    "zeros": np.zeros((30, 6)),
    "one sample": PLAIN[:1],
    "one feature": PLAIN[:, :1],
    "one number": PLAIN[:1, :1],
    "float16": PLAIN.astype(np.float16),
    "integers": (10 * PLAIN).astype(int),
    "booleans": PLAIN > 0,
}


def combinations():
    """All data with one learner, all learners with data that are hard, and the rest weekly."""
    for name, data in product(LEARNERS, DATA):
        usual = name == "soft" or data in ("huge", "duplicates", "zero rows")
        yield pytest.param(name, data, marks=[] if usual else pytest.mark.slow)


@pytest.mark.parametrize(("name", "data"), [*combinations()])
def test_hostile_data_give_finite_results(name, data):
    X, learner = DATA[data], clone(LEARNERS[name])
    if isinstance(learner.dict_init, np.ndarray):
        learner.set_params(dict_init=np.resize(COHERENT, (8, X.shape[1])))
    codes = learner.fit(X).transform(X)
    assert np.isfinite(learner.components_).all()
    assert np.isfinite(learner.loss_curve_).all()
    assert np.isfinite(codes).all()
    assert codes.dtype == np.float64
    assert np.isfinite(learner.inverse_transform(codes)).all()
    assert np.isfinite(learner.score(X))
    if learner.get_params().get("alpha") == 1e12:
        assert not codes.any()


def test_other_kinds_of_numbers_are_converted_as_scikit_learn_does():
    for name in ("float16", "integers", "booleans"):
        learner = LEARNERS["soft"]
        found, expected = (clone(learner).fit(X) for X in (DATA[name], DATA[name].astype(float)))
        assert_array_equal(found.components_, expected.components_)


# ---------------------------------------------------------------------------- properties

# What cannot be squared is refused: test_arrays.py.
numbers = st.floats(-1e6, 1e6).map(lambda number: number if abs(number) > 1e-100 else 0.0)
shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
learners = st.builds(
    PUDLEDictionaryLearning,
    n_components=st.integers(1, 10) | st.none(),
    alpha=st.just("auto") | st.floats(0, 10),
    gradient=st.sampled_from(["dec", "ae-lasso", "ae-ls"]),
    n_unfoldings=st.integers(1, 6),
    lambda_decay=st.floats(0.5, 1) | st.just((1.0, 0.9)),
    shrinkage=st.sampled_from(["soft", "hard"]),
    positive_code=st.booleans(),
    atom_norm=st.sampled_from(["unit", "ball"]),
    optimizer=st.sampled_from(["adam", "surrogate"]),
    batch_size=st.integers(1, 12) | st.just("auto"),
    max_iter=st.integers(1, 2),
    tol=st.none(),
    dict_init=st.sampled_from(["data", "random", "svd"]),
    split_sign=st.booleans(),
    random_state=st.integers(0, 10),
)
small = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@small
@given(learner=learners, X=shapes.flatmap(lambda shape: arrays(float, shape, elements=numbers)))
def test_a_fit_survives_cloning_and_pickling(learner, X):
    codes = learner.fit(X).transform(X)
    assert np.isfinite(codes).all()
    assert codes.shape == (len(X), len(learner.get_feature_names_out()))
    assert learner.inverse_transform(codes).shape == X.shape
    assert np.isfinite(learner.score(X))
    assert_array_equal(pickle.loads(pickle.dumps(learner)).transform(X), codes)
    assert_array_equal(clone(learner).fit(X).components_, learner.components_)
    learner.partial_fit(X)
    assert np.isfinite(learner.components_).all()


@small
@given(learner=learners, X=shapes.flatmap(lambda shape: arrays(float, shape, elements=numbers)))
def test_codes_of_a_row_do_not_depend_on_the_others(learner, X):
    codes = learner.fit(X).transform(X)
    alone = np.concatenate([learner.transform(row[None]) for row in X])
    scale = max(np.abs(codes).max(), 1e-300)
    if learner.shrinkage == "soft":  # a hard threshold is a jump
        assert_allclose(alone, codes, atol=1e-7 * scale)


# ---------------------------------------------------------------------------- changed by hand


def with_atoms(learner, atoms):
    learner = copy.deepcopy(learner)
    learner.components_ = atoms
    return learner


SAME = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    torch.optim.Rprop: partial(torch.optim.Rprop),
    "surrogate": None,
}


@pytest.mark.parametrize("optimizer", SAME)
@pytest.mark.parametrize("change", ["more", "fewer", "float32"])
def test_after_other_atoms_were_given_training_goes_on_without_a_memory(optimizer, change):
    """As for another optimiser, which one is that has the same parameters by other words."""
    learner = FromData(**SMALL, optimizer=optimizer).fit(PLAIN)
    atoms = {
        "more": np.vstack([learner.components_, PLAIN]),
        "fewer": learner.components_[:5],
        "float32": learner.components_.astype(np.float32),
    }[change]
    found = with_atoms(learner, atoms).partial_fit(PLAIN).components_
    other = with_atoms(learner, atoms).set_params(optimizer=SAME[optimizer])
    if optimizer == "surrogate":  # whose memory has no words
        other = FromData(**SMALL).fit(PLAIN)
        other = with_atoms(other, atoms).set_params(optimizer="surrogate", alpha=learner.alpha_)
    assert_array_equal(found, other.partial_fit(PLAIN).components_)
    assert found.shape == atoms.shape
    assert found.dtype == atoms.dtype


# ---------------------------------------------------------------------------- threads, processes


def fit(seed):
    learner = PUDLEDictionaryLearning(**SMALL | {"random_state": seed, "batch_size": 8})
    return learner.fit(PLAIN).components_


def test_fits_in_two_threads_give_what_they_give_alone():
    found = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: fit(seed)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert_array_equal(found[seed], fit(seed))


def test_no_file_is_opened_and_no_connection_made(monkeypatch, tmp_path):
    fit(0)  # what is imported late is imported now

    def refuse(*arguments, **options):
        raise AssertionError(f"Something was opened: {arguments}")

    monkeypatch.chdir(tmp_path)
    for target, name in [(socket, "socket"), (Path, "open"), (Path, "write_bytes")]:
        monkeypatch.setattr(target, name, refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = PUDLEDictionaryLearning(**SMALL).fit(PLAIN)
        learner.inverse_transform(learner.transform(PLAIN))
        learner.score(PLAIN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("learner", LEARNERS.values(), ids=LEARNERS)
def test_autocast_changes_nothing(learner):
    """Products of float32 would be in bfloat16."""
    X = PLAIN.astype(np.float32)

    def results():
        fitted = clone(learner).fit(X).partial_fit(X)
        codes = fitted.transform(X)
        return fitted.components_, codes, fitted.inverse_transform(codes), fitted.score(X)

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
    for one, other in zip(found, expected, strict=True):
        assert_array_equal(one, other)
