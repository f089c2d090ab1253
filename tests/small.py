"""Small learners and data, and how to compare what they hold."""

from functools import partial

import numpy as np
import torch

from skpudle import PUDLEDictionaryLearning
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
ABSURD = dict(optimizer=partial(torch.optim.SGD, weight_decay=1e300), learning_rate=1e300)


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


def perturbed(atoms, size=0.3, seed=1):
    return atoms + size * np.random.default_rng(seed).normal(size=atoms.shape) / len(atoms) ** 0.5


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
    return encode(torch.tensor(estimator.components_), torch.tensor(X), **options).numpy()


def assert_same(actual, expected):
    """Compare nested containers, bit for bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected.keys() - {"fit_seconds_"}:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert repr(actual) == repr(expected)  # where NaN is NaN


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value
