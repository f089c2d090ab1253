"""Hostile data and parameters: a right result or a clear error, and nothing in between."""

import socket
import threading
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from small import assert_same, learner_of

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings(
        r"ignore:X has \d+ samples? with known values:UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:All codes of .* are zero:UserWarning"),
    pytest.mark.filterwarnings("ignore:Parameters of .* have no effect:UserWarning"),
]

RNG = np.random.default_rng(0)
PLAIN = RNG.normal(size=(30, 6))
COHERENT = np.ones((8, 6)) + 1e-6 * RNG.normal(size=(8, 6))
SMALL = dict(n_components=8, n_unfoldings=10, max_iter=3, tol=None, random_state=0)

USUAL = "search", "noise", "unfolded"
LEARNERS = {name: learner_of(name, 8) for name in (*USUAL, "hard", "dec", "lasso")}
LEARNERS |= {
    "surrogate": learner_of("surrogate", 8, gradient="ae-ls"),
    "more atoms than features": learner_of("unfolded", 60),
    "coherent atoms": PUDLEDictionaryLearning(dict_init=COHERENT, **SMALL),
    "no penalty": PUDLEDictionaryLearning(alpha=0.0, **SMALL),
    "penalty beyond its maximum": PUDLEDictionaryLearning(alpha=1e12, **SMALL),
    "noodl": learner_of("noodl", 8, learning_rate=1e-20),  # scales with 1 / the data
}

DATA = {
    "tiny": 1e-8 * PLAIN,
    "huge": 1e8 * PLAIN,
    "a constant column": np.c_[PLAIN, np.full(30, 7.0)],
    "duplicates": np.tile(PLAIN[:3], (10, 1)),
    "zero rows": PLAIN * (np.arange(30) % 2)[:, None],
    "zeros": np.zeros((30, 6)),
    "ones": np.ones((30, 6)),
    "fewer rows than atoms": PLAIN[:5],
    "one sample": PLAIN[:1],
    "one feature": PLAIN[:, :1],
    "one number": PLAIN[:1, :1],
    "float16": PLAIN.astype(np.float16),
    "integers": (10 * PLAIN).astype(int),
    "booleans": PLAIN > 0,
}


def combinations():
    """All data with three learners, all learners with data that are hard, and the rest weekly."""
    for name, data in product(LEARNERS, DATA):
        usual = name in USUAL or data in ("huge", "duplicates", "zero rows")
        yield pytest.param(name, data, marks=[] if usual else pytest.mark.slow)


@pytest.mark.parametrize(("name", "data"), [*combinations()])
def test_hostile_data_give_finite_results(name, data):
    X, learner = DATA[data], clone(LEARNERS[name])
    if isinstance(learner.dict_init, np.ndarray):
        learner.set_params(dict_init=np.resize(COHERENT, (8, X.shape[1])))
    codes = learner.fit(X).transform(X)
    np.testing.assert_allclose(np.linalg.norm(learner.components_, axis=1), 1)
    assert np.isfinite(learner.loss_curve_).all()
    assert np.isfinite(codes).all()
    assert codes.dtype == np.float64
    assert np.isfinite(learner.inverse_transform(codes)).all()
    assert np.isfinite(learner.score(X))
    if learner.get_params().get("alpha") == 1e12:
        assert not codes.any()


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


CONVOLUTION = ConvPUDLEDictionaryLearning(
    2, atom_shape=3, gradient="ae-ls", max_iter=2, tol=None
)


@pytest.mark.parametrize("name", [*LEARNERS, "convolution"])
def test_autocast_and_the_default_dtype_of_torch_change_nothing(name):
    """Products of float32 would be in bfloat16, and new tensors in float64."""
    X = PLAIN.astype(np.float32)

    def results():
        learner = (
            clone(LEARNERS.get(name, CONVOLUTION)).set_params(random_state=0).fit(X)
        )
        if hasattr(learner, "partial_fit"):
            learner.partial_fit(X)
        codes = learner.transform(X)
        return (
            learner.components_,
            codes,
            learner.inverse_transform(codes),
            learner.score(X),
        )

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(results(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(results(), expected)
    finally:
        torch.set_default_dtype(torch.float32)
