"""What is named happens: every parameter of every learner acts, or a warning names it."""

import warnings
from inspect import signature

import numpy as np
import pytest
import torch
from small import make_data

from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
    SporcoDictionaryLearning,
)

X, ATOMS = make_data(n_samples=90)
X[0] += 2  # of other norm than the rest
LABELS, NUMBERS = (X[:, 0] > 0).astype(int), X @ np.arange(8.0)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 9))

# Say where and how loudly to compute, which the results must not depend on.
_EXEMPT = {"device", "verbose"}

# A value of each parameter that is not its default.
SHARED = {
    "alpha": 0.5,
    "batch_size": 30,
    "debias": 0.5,
    "dict_init": "data",
    "gradient": "dec",
    "lambda_decay": 0.9,
    "learning_rate": 0.05,
    "loss": "binomial",
    "max_iter": 1,
    "n_components": 5,
    "n_iter_no_change": 1,
    "n_trials": 30,
    "n_unfoldings": 4,
    "optimizer": "sgd",
    "positive_code": True,
    "positive_dict": True,
    "random_state": 5,
    "shrinkage": "hard",
    "split_sign": True,
    "step_size": 0.05,
    "tol": 0.5,
}
OF_TASKS = {"C": 0.01, "dict_init": "search", "split_sign": False, "supervision": 0.9}
OWN = {
    PUDLEDictionaryLearning: {
        "fit_intercept": True,
        "noise": "rows",
        "separate_atoms": "unfolding",
        "transform_algorithm": "omp",
        "transform_alpha": 0.1,
        "transform_n_nonzero_coefs": 3,
    },
    PUDLEClassifier: OF_TASKS | {"class_weight": {1: 3.0}},
    PUDLERegressor: OF_TASKS | {"tol": 5e-4},
    NOODLDictionaryLearning: {
        "dict_init": "search",
        "initial_threshold": 0.5,
        "threshold": 0.1,
    },
    ConvPUDLEDictionaryLearning: {
        "atom_shape": (3, 2),
        "channel_noise": "auto",
        "dict_init": np.eye(9)[:2].reshape(2, 3, 3),
        "channels_first": True,  # one image with the channels that were images
        "detrend": "slow",
        **dict.fromkeys(("rank", "stride"), 1),
    },
    ConvDenoiser: {
        "atom_shape": (3, 2),
        "channels_first": True,
        "crop_size": 5,
        "noise_std": 0.1,
        "optimizer": torch.optim.SGD,
        "shift_average": True,
        "stride": 1,
        "tol": None,
    },
    CountDictionaryLearning: {"dict_init": "search", "tol": None},
    PoissonNMF: {
        "alpha": 0.0,
        "dict_init": np.eye(6, 8) + 0.1,
        "dispersion": 0.1,
        "fixed_components": np.ones((1, 8)),
        "min_gain": 50.0,
        "transform_min_gain": 6.0,
    },
    SporcoDictionaryLearning: {
        "dict_init": "random",
        "options": {"BPDN": {"rho": 3.0}},
    },
}
FROM_DATA = {"n_components": 6, "dict_init": "data"}
# What makes defaults small enough for a test. It is no change that is tested.
SMALL = {
    PUDLEDictionaryLearning: {"n_components": 6},
    CountDictionaryLearning: FROM_DATA
    | {"n_unfoldings": 10, "max_iter": 20, "tol": 1e-2},
    PUDLEClassifier: FROM_DATA | {"tol": 1e-2},
    PUDLERegressor: FROM_DATA | {"tol": 1e-2},
    NOODLDictionaryLearning: FROM_DATA,
    PoissonNMF: {"n_components": 6},
    ConvPUDLEDictionaryLearning: {"n_components": 2, "atom_shape": (3, 3), "stride": 2},
    ConvDenoiser: {
        "n_components": 2,
        "atom_shape": (3, 3),
        "stride": 2,
        "n_unfoldings": 3,
        "noise_std": 0.5,
        "batch_size": 64,
        "max_iter": 28,  # seven checks, of 256 crops each
        "tol": 0.5,
    },
    SporcoDictionaryLearning: {"n_components": 6, "max_iter": 5},
}


def data_for(learner):
    if isinstance(learner, ConvDenoiser):
        return np.tile(IMAGES, (16, 1, 1)), None
    if isinstance(learner, ConvPUDLEDictionaryLearning):
        return IMAGES, None
    rows = (
        np.abs(X).round().clip(0, 1)
        if isinstance(learner, CountDictionaryLearning)
        else X
    )
    rows = np.abs(20 * X).round() if isinstance(learner, PoissonNMF) else rows
    y = {PUDLEClassifier: LABELS, PUDLERegressor: NUMBERS}.get(type(learner))
    return rows, y


def outcome(learner):
    """Return what there is to see of a learner that has been fitted."""
    rows, y = data_for(learner)
    learner.fit(rows, y)
    numbers = (getattr(learner, name, None) for name in ("alpha_", "step_size_"))
    assert {type(number) for number in numbers if number is not None} <= {float}
    if isinstance(learner, ConvDenoiser):
        return [
            learner.network_.synthesis.detach().numpy(),
            learner.denoise(rows),
            learner.n_iter_,
        ]
    seen = [learner.components_, learner.transform(rows), learner.n_iter_]
    return [*seen, getattr(learner, "coef_", None)]


def differ(one, other):
    pairs = zip(one, other, strict=True)
    return any(
        np.shape(a) != np.shape(b) or np.any(np.asarray(a) != b) for a, b in pairs
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:Two-dimensional input means rows:UserWarning")
@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_parameters_act_or_a_warning_names_them(kind):
    if kind is SporcoDictionaryLearning:
        pytest.importorskip("sporco")
    default = outcome(kind(**SMALL[kind], random_state=0))
    for name in signature(kind).parameters.keys() - _EXEMPT:
        value = (SHARED | OWN[kind])[name]
        if isinstance(
            value, int | float
        ):  # as it comes out of np.linspace in a grid of a search
            value = np.asarray(value)[()]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            changed = outcome(kind(**SMALL[kind] | {"random_state": 0, name: value}))
        texts = [
            str(w.message) for w in caught if "no effect in this fit" in str(w.message)
        ]
        if texts:
            assert name in texts[0].partition("fit: ")[2].partition(".")[0].split(", ")
        else:
            assert differ(changed, default), name


# ---------------------------------------------------------------------------- what is said


def told(learner, X=X, y=None):
    names = {"random_state", "estimator__random_state"} & {*learner.get_params()}
    learner.set_params(**dict.fromkeys(names, 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.fit(X, y)
    return [str(w.message) for w in caught if w.category is UserWarning]


OF_OMP = dict(transform_algorithm="omp", transform_n_nonzero_coefs=3)
OF_TRAINING = "optimizer", "learning_rate", "batch_size", "max_iter", "tol"


@pytest.mark.parametrize(
    ("named", "unused", "remedy"),
    [
        ({name: SHARED[name] for name in OF_TRAINING}, OF_TRAINING, "gradient='ae-ls'"),
        (
            dict(gradient="dec", learning_rate=0.1),
            ["learning_rate"],
            "optimizer='adam'",
        ),
        (dict(step_size=0.1), ["step_size"], "n_unfoldings"),
        (
            dict(shrinkage="hard", lambda_decay=0.9),
            ["lambda_decay"],
            "shrinkage='soft'",
        ),
        (dict(transform_n_nonzero_coefs=3), [*OF_OMP][1:], "='omp'"),
        (OF_OMP | dict(transform_alpha=1.0), [*OF_OMP][1:], "transform_alpha=None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_warning_names_parameters_and_what_uses_them(named, unused, remedy):
    (text,) = told(PUDLEDictionaryLearning(6, **named))
    assert f"no effect in this fit: {', '.join(unused)}. " in text
    assert remedy in text
