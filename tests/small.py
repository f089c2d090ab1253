"""Small learners and data, and how to compare what they hold."""

import signal
from dataclasses import is_dataclass
from functools import partial

import numpy as np
import pytest
import torch

from skpudle import (
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
)
from skpudle._fit.callbacks import FitCallback
from skpudle.encoding import encode

GRADIENTS = ["dec", "ae-lasso", "ae-ls"]
OPTIMIZERS = {
    "adam": dict(),
    "sgd": dict(optimizer=partial(torch.optim.SGD, momentum=0.9)),
    "AdamW": dict(optimizer=partial(torch.optim.AdamW, weight_decay=0.1)),
    "RMSprop": dict(optimizer=torch.optim.RMSprop),
}
VARIANTS = {
    "soft": dict(),
    "hard": dict(shrinkage="hard"),
    "positive": dict(positive_code=True, positive_dict=True),
    "decay": dict(lambda_decay=0.9),
    "split": dict(split_sign=True),
}

# a step that overflows, also half of it
ABSURD = dict(
    optimizer=partial(torch.optim.SGD, weight_decay=1e300), learning_rate=1e300
)


_TRAINED = dict(dict_init="data", n_unfoldings=10, max_iter=2, tol=None)
_TAUGHT = dict(max_iter=2, tol=None)
KINDS = {  # class, and parameters that make it small
    "search": (PUDLEDictionaryLearning, {}),
    "positive": (PUDLEDictionaryLearning, dict(positive_code=True)),
    "split signs": (PUDLEDictionaryLearning, dict(positive_code=True, split_sign=True)),
    "lasso": (PUDLEDictionaryLearning, _TRAINED | dict(gradient="ae-ls", n_unfoldings=None)),
    "lasso of unfolded": (PUDLEDictionaryLearning, _TRAINED | dict(transform_algorithm="lasso")),
    "unfolded": (PUDLEDictionaryLearning, _TRAINED | dict(gradient="ae-ls", split_sign=True)),
    "dec": (PUDLEDictionaryLearning, _TRAINED | dict(gradient="dec", batch_size=16)),
    "surrogate": (
        PUDLEDictionaryLearning, _TRAINED | dict(gradient="ae-lasso", optimizer="surrogate")
    ),
    "hard": (PUDLEDictionaryLearning, _TRAINED | dict(shrinkage="hard")),
    "decay": (PUDLEDictionaryLearning, _TRAINED | dict(lambda_decay=0.95)),
    "omp": (
        PUDLEDictionaryLearning, dict(transform_algorithm="omp", transform_n_nonzero_coefs=3)
    ),
    "omp to a tolerance": (
        PUDLEDictionaryLearning,
        dict(transform_algorithm="omp", transform_alpha=0.1, positive_code=True),
    ),
    "noise": (PUDLEDictionaryLearning, dict(noise="both", fit_intercept=True)),
    "noodl": (NOODLDictionaryLearning, _TRAINED | dict(initial_threshold=0.1)),
    "poisson": (CountDictionaryLearning, _TRAINED),
    "binomial": (CountDictionaryLearning, _TRAINED | dict(loss="binomial", n_trials=30)),
    "counts that add": (PoissonNMF, dict(max_iter=20, tol=None)),
    "encoder": (
        PUDLEDictionaryLearning, dict(separate_atoms="unfolding", n_unfoldings=3, max_iter=2)
    ),
    "encoder, one analysis": (
        PUDLEDictionaryLearning, dict(separate_atoms=True, split_sign=True, max_iter=2)
    ),
    "classifier": (PUDLEClassifier, _TAUGHT),
    "unsupervised classifier": (PUDLEClassifier, dict(supervision=0)),
    "regressor": (PUDLERegressor, _TAUGHT),
}  # fmt: skip


def learner_of(name, n_components=6, **params):
    """Return a small learner of a kind."""
    kind, own = KINDS[name]
    return kind(n_components, random_state=0, **own | params)


def make(**params):
    """Return a small learner that trains for a fixed number of epochs."""
    small = dict(n_components=6, n_unfoldings=8, max_iter=4, tol=None, random_state=0)
    small |= dict(dict_init="data", optimizer="adam")
    return PUDLEDictionaryLearning(**(small | params))


def make_data(seed=0, n_samples=60, n_features=8, n_components=6):
    """Return sparse combinations of a few atoms, and the atoms."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.normal(size=(n_samples, n_components))
    codes *= rng.random(codes.shape) < 0.4
    return codes @ atoms + 0.01 * rng.normal(size=(n_samples, n_features)), atoms


def weekly(first, *others):
    """Return choices of a parameter, of which the first runs always."""
    return [first, *(pytest.param(choice, marks=pytest.mark.slow) for choice in others)]


class Batches:
    """Batches that can be iterated again, and nothing else; rows are cut into them."""

    def __init__(self, X, batch_size=16):
        rows = getattr(X, "iloc", X)
        self.parts = [rows[i : i + batch_size] for i in range(0, len(X), batch_size)]

    def __iter__(self):
        return iter(self.parts)


class Table:
    """An array behind slices, as h5py and zarr have it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[rows]


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


class EndsTheFit(FitCallback):
    """A callback that acts after some tasks of a name, and keeps the atoms of each."""

    def __init__(self, name, n_tasks=1, act=lambda: True):
        self.name, self.n_tasks, self.act, self.seen = name, n_tasks, act, []

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        if context.task_name == self.name:
            self.seen.append(getattr(fitted_estimator, "components_", None))
            return len(self.seen) == self.n_tasks and self.act()


def perturbed(atoms, size=0.3, seed=1):
    return (
        atoms
        + size
        * np.random.default_rng(seed).normal(size=atoms.shape)
        / len(atoms) ** 0.5
    )


def numpy_codes(estimator, X, **options):
    """Return codes by the public encoder with what the estimator has learned."""
    options = {
        "alpha": estimator.alpha_,
        "n_unfoldings": estimator.n_unfoldings,
        "step_size": estimator.step_size_,
        "lambda_decay": estimator.lambda_decay_,
        "shrinkage": estimator.shrinkage,
        "positive_code": estimator.positive_code,
    } | options
    return encode(
        torch.tensor(estimator.components_), torch.tensor(X), **options
    ).numpy()


def assert_same(actual, expected):
    """Compare nested containers, bit for bit."""
    assert type(actual) is type(expected)
    if is_dataclass(expected):
        actual, expected = vars(actual), vars(expected)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected.keys() - {"fit_seconds_"}:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, tuple | list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert repr(actual) == repr(expected)  # where NaN is NaN


def assert_same_values(one, other, *names):
    """Compare the attributes of these names that there are, bit for bit."""
    for name in filter(partial(hasattr, one), names):
        np.testing.assert_equal(getattr(other, name), getattr(one, name))
