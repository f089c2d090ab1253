"""Every public method of every learner takes each of its arguments, or refuses it in words.

Whatever is passed, a call returns, or raises an error where it was checked: not one from where a
value that nobody has checked meets an operation that it does not have.
"""

import copy
import re
import traceback
import warnings
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone

import skpudle
from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
    SporcoDictionaryLearning,
)

N = 24
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(N, 6)) * (RNG.random((N, 6)) < 0.5)
COUNTS = RNG.poisson(2.0, (N, 6)).astype(float)
IMAGES = RNG.normal(size=(3, 9, 9))
LABELS, NUMBERS, TIMES = np.arange(N) % 3, ROWS @ RNG.normal(size=6), RNG.uniform(1, 2, N)

SHORT = dict(n_unfoldings=2, max_iter=1, tol=None, random_state=0)
TASK = dict(max_iter=1, tol=None, random_state=0)
CONV = dict(atom_shape=(3, 3), stride=2, **SHORT)

# Learners with what a fit takes.
LEARNERS = {
    "rows": (PUDLEDictionaryLearning(4, random_state=0), dict(X=ROWS)),
    "pursuit": (
        PUDLEDictionaryLearning(4, transform_algorithm="omp", random_state=0),
        dict(X=ROWS),
    ),
    "hard": (PUDLEDictionaryLearning(4, shrinkage="hard", split_sign=True, **SHORT), dict(X=ROWS)),
    "counts": (
        PUDLEDictionaryLearning(4, loss="poisson", **SHORT),
        dict(X=COUNTS, exposure=TIMES),
    ),
    "fractions": (
        PUDLEDictionaryLearning(4, loss="binomial", n_trials=20, **SHORT),
        dict(X=COUNTS),
    ),
    "classifier": (PUDLEClassifier(4, **TASK), dict(X=ROWS, y=LABELS, sample_weight=TIMES)),
    "regressor": (PUDLERegressor(4, **TASK), dict(X=ROWS, y=NUMBERS, sample_weight=TIMES)),
    "NOODL": (NOODLDictionaryLearning(4, **SHORT), dict(X=ROWS)),
    "images": (ConvPUDLEDictionaryLearning(3, atom_shape=(3, 3), random_state=0), dict(X=IMAGES)),
    "lines": (
        ConvPUDLEDictionaryLearning(3, atom_shape=3, random_state=0),
        dict(X=ROWS),
    ),
    "denoiser": (ConvDenoiser(3, noise_std=0.1, **CONV), dict(X=IMAGES)),
}
try:
    import sporco.dictlrn.bpdndl  # noqa: F401 (it changes global state, which every test watches)
except ImportError:
    pass
else:
    LEARNERS["SPORCO"] = SporcoDictionaryLearning(4, max_iter=2, random_state=0), dict(X=ROWS)

METHODS = [
    "choose_alpha",
    "decision_function",
    "denoise",
    "fit",
    "fit_transform",
    "get_feature_names_out",
    "inverse_transform",
    "partial_fit",
    "predict",
    "predict_log_proba",
    "predict_proba",
    "score",
    "score_samples",
    "summary",
    "to_module",
    "transform",
    "transform_sparse",
]

# Of the wrong type, shape, range or length for almost all.
ODD = {
    "None": None,
    "number": 2.0,
    "negative": -1,
    "NaN": float("nan"),
    "text": "a",
    "list": [1, 2],
    "dictionary": {"a": 1},
    "object": object(),
    "ones": np.ones(N),
    "zeros": np.zeros(N),
    "NaNs": np.full(N, np.nan),
    "texts": np.full(N, "a"),
    "one less": np.ones(N - 1),
    "column": np.ones((N, 1)),
    "no rows": np.ones((0, 6)),
    "huge": np.full((N, 6), 1e200),
    "complex": np.ones((N, 6)) * 1j,
    "integers": np.ones((N, 6), dtype=np.uint8),
    "tensor": torch.ones(N),
    "sparse tensor": torch.eye(6).to_sparse(),
    "sparse array": sparse.csr_array(np.eye(6)),
}

FEW = [ODD[name] for name in ("None", "negative", "NaN", "text", "dictionary")]

PACKAGE, FITTED = str(Path(skpudle.__file__).parent), {}


def is_meant(error):
    """Return whether an error was raised by this package, or by scikit-learn's checks."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(PACKAGE):
            return frame.line.startswith("raise ")
        if "sklearn" in frame.filename:
            return True
    return False


def fitted(name):
    """Return a learner, fitted once, and what it was fitted on."""
    learner, given = LEARNERS[name]
    if name not in FITTED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FITTED[name] = clone(learner).fit(**given)
    return FITTED[name], given


def use(method, given):
    """Call a method; an error has to be one for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            method(**given)
        except (ValueError, TypeError) as error:
            if not is_meant(error):
                raise


def arguments(learner, method, given):
    """Return an argument of each name that a method has."""
    known = given | {"classes": LABELS}
    names = signature(getattr(learner, method)).parameters
    named = {name: known[name] for name in names if name in known}
    codes = {"X": learner.transform(given["X"])} if method == "inverse_transform" else {}
    return named | codes


def test_all_methods_are_known():
    """A new one is to be in the list above."""
    scikit_learns = {"get_params", "set_params", "get_metadata_routing", "set_callbacks"}
    scikit_learns |= {"set_output", "from_components", "from_network"}
    for learner, _ in LEARNERS.values():
        names = {n for n in dir(learner) if not n.startswith("_") and callable(getattr(learner, n))}
        requests = {name for name in names if re.fullmatch("set_.*_request", name)}
        assert names - requests - scikit_learns <= set(METHODS)


@pytest.mark.parametrize("values", [FEW, pytest.param([*ODD.values()], marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*LEARNERS])
def test_each_argument_is_taken_or_refused_in_words(name, values):
    learner, given = fitted(name)
    for method in (method for method in METHODS if hasattr(learner, method)):
        usual = arguments(learner, method, given)
        changes = method in ("fit", "fit_transform", "partial_fit")
        for argument, parameter in signature(getattr(learner, method)).parameters.items():
            if parameter.kind == parameter.VAR_KEYWORD:
                continue
            for value in values:
                one = copy.deepcopy(learner) if changes else learner
                use(getattr(one, method), usual | {argument: value})


@pytest.mark.parametrize("name", [*LEARNERS])
def test_what_is_not_fitted_says_so(name):
    learner, given = LEARNERS[name]
    known = fitted(name)[0]
    for method in METHODS:
        if not hasattr(learner, method) or "fit" in method:
            continue
        with pytest.raises(ValueError, match="not fitted yet"):
            getattr(clone(learner), method)(**arguments(known, method, given))
