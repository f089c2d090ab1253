"""Fits of all kinds, small ones, and how two of them are compared."""

from functools import partial

import numpy as np
from small import Batches, Table, assert_same

from skpudle import (
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


SEED = dict(random_state=0)
ENCODED = dict(n_unfoldings=2, max_iter=2, **SEED)
Rows = partial(PUDLEDictionaryLearning, **SEED)
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
