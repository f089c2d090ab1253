"""Fits of all kinds, small ones, and how two of them are compared."""

from functools import partial

import numpy as np
from small import Batches, Table, assert_same

from skpudle import (
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
)

# What these tests are about are optimisers; those of the search are in test_search.py.
FromData = partial(PUDLEDictionaryLearning, dict_init="data", optimizer="adam")


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def kill():
    raise Killed


def planted(n_samples=120, n_features=8, n_components=6, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_components, n_features))
    codes = rng.normal(size=(n_samples, n_components)) * (
        rng.random((n_samples, 1)) < 0.5
    )
    return codes @ atoms + noise * rng.normal(size=(n_samples, n_features))


def counts():
    return np.random.default_rng(0).poisson(2.0, size=(60, 5)).astype(float)


def labelled():
    X = planted(60)
    return X, X[:, 0] > 0


def signals(n_channels=1):
    """Return signals (n, length, n_channels) in which two waveforms come now and then."""
    rng = np.random.default_rng(0)
    waveforms = np.array([[1, 3, 3, 1, 0], [2, -3, 2, -1, 1]])[..., None] / 3
    waveforms = waveforms * rng.normal(size=(2, 1, n_channels))
    x = 0.05 * rng.normal(size=(8, 90, n_channels))
    for signal in x:
        for start in range(0, 90, 15):
            shift = start + rng.integers(10)
            signal[shift : shift + 5] += waveforms[rng.integers(2)]
    return x


SEED = dict(random_state=0)
ENCODED = dict(n_unfoldings=2, max_iter=2, **SEED)
Rows = partial(PUDLEDictionaryLearning, **SEED)
Signals = partial(ConvPUDLEDictionaryLearning, atom_shape=5, **SEED)
# The rows of the table of phases in the guide: name: learner, function of its data.
KINDS = {
    "rows": (Rows(6), lambda: (planted(),)),
    "number from the data": (Rows("auto"), lambda: (planted(),)),
    "gradient": (Rows(6, gradient="ae-ls", n_unfoldings=4, max_iter=3), lambda: (planted(),)),
    "unfoldings": (Rows(6, n_unfoldings=3, max_iter=3), lambda: (planted(),)),
    "encoder": (Rows(6, **ENCODED | dict(separate_atoms=True)), lambda: (planted(),)),
    "stream": (Rows(6), lambda: (Batches(planted(400), 50),)),
    "table": (Rows(6), lambda: (Table(planted(400)),)),
    "poisson": (CountDictionaryLearning(4, n_unfoldings=10, **SEED), lambda: (counts(),)),
    "spectra": (PoissonNMF(4, max_iter=8, **SEED), lambda: (counts(),)),
    "classifier": (PUDLEClassifier(6, max_iter=2, tol=None, **SEED), labelled),
    "signals": (Signals(2), lambda: (signals(),)),
    "signals of rank one": (Signals(2, rank=1), lambda: (signals(3),)),
    "signals, number from the data": (Signals("auto"), lambda: (signals(),)),
    "signals, unfoldings": (Signals(2, n_unfoldings=30, max_iter=5), lambda: (signals(),)),
}  # fmt: skip


def assert_equal(found, expected):
    """Compare all that `fit` left, private attributes too."""
    of_calls = {*expected.get_params(), "_skl_callbacks", "_parent_callback_ctx"}
    assert_same(
        *(
            {k: v for k, v in vars(one).items() if k not in of_calls}
            for one in (found, expected)
        )
    )
