"""Random parameters, data and damage through every method; report unclear outcomes.

    python benchmarks/fuzz.py --n-sets 2000 --seed 0
    python benchmarks/fuzz.py --minutes 30 --seed 100000
    python benchmarks/fuzz.py --n-sets 100 --kinds company counts

A set has a kind, see `KINDS`, and follows from its seed. Valid sets have to work: results are
finite, of the right shape, the same after `clone` and pickle, the same for a row alone and in
company, in any unit, and no worse than the baseline; or a ValueError says that training diverged.
An invalid parameter, argument or spoiled file has to raise a ValueError or TypeError of this
package or of scikit-learn that names the fault, and never an error out of torch, a crash, or a
result. Spoiled files are read in a child process. Of a fit with a checkpoint, killed at any task or
complete, every later opening has to have the bits of an undisturbed fit.
"""

import argparse
import json
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork has no threads but its own

import numpy as np
import pandas as pd
import torch
from common import circumstances, write_report
from orders import is_clear, orders, pick
from sklearn.base import clone
from sklearn.callback import FitCallback
from sklearn.datasets import load_sample_image
from sklearn.ensemble import BaggingClassifier

from skpudle import (
    Checkpoint,
    ConsensusDictionary,
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
)
from skpudle._data import sources, tables
from skpudle._learners import coder
from skpudle._losses import loss_named
from skpudle.images import denoise_patches, inpaint
from skpudle.lasso import solve_lasso
from skpudle.metrics import atom_importance
from skpudle.omp import solve_omp
from skpudle.pretrained import load_denoiser, save_denoiser
from skpudle.reporting import findings

warnings.simplefilter("ignore")

SPOILED = {
    "n_components": [0, -1, 2.5, "many"],
    "alpha": [-1.0, "low", np.nan, None],
    "gradient": ["ls", None, 3],
    "loss": ["hinge", None],
    "n_trials": [0, -1, "all", None],
    "n_unfoldings": [0, -3, 1.5, "all"],
    "step_size": [0.0, -0.1, "big", None],
    "lambda_decay": [0.0, 1.5, (1.0,), (1.0, 2.0), ("a", "b"), np.nan],
    "shrinkage": ["firm", None],
    "positive_code": ["no", 2.5],
    "positive_dict": ["no", None],
    "atom_norm": ["l1", 2],
    "optimizer": ["lbfgs", 3, int, partial(torch.optim.Adam, nonsense=1)],
    "learning_rate": [0.0, -1.0, "fast", None],
    "batch_size": [0, -5, "whole", 1.5],
    "max_iter": [0, -1, 2.5, None],
    "tol": [-1.0, "small"],
    "n_iter_no_change": [0, 1.5],
    "dict_init": ["nothing", np.zeros((3, 1)), np.ones(4), 5, [["a", "b"]]],
    "transform_algorithm": ["lars", None],
    "transform_alpha": [-1.0, "auto"],
    "split_sign": ["yes"],
    "device": ["gpu7", "cuda:99", 3, None],
    "random_state": ["seed", -1, 1.5],
}


class Unclear(AssertionError):
    """A set found a fault."""


def expect(right, what):
    if not right:
        raise Unclear(what)


@contextmanager
def refused(what):
    """Expect a clear error inside the block."""
    try:
        yield
    except Exception as error:
        if not is_clear(error):
            raise
    else:
        raise Unclear(f"{what}: taken without an error")


def diverged(error):
    return isinstance(error, ValueError) and "stopped being finite" in str(error)


# ---------------------------------------------------------------------------- learners of rows


def random_data(rng):
    n, m = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    X = rng.normal(size=(n, m)) * pick(rng, 1e-8, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e8)
    kind = pick(
        rng, *["plain"] * 6, "zeros", "rows", "columns", "equal", "sparse", "tiny", "offset"
    )
    if kind == "zeros":
        X[:] = 0
    elif kind == "rows":
        X[rng.random(n) < 0.5] = 0
    elif kind == "columns":
        X[:, rng.random(m) < 0.5] = 3.0
    elif kind == "equal":
        X[:] = X[0]
    elif kind == "sparse":
        X[rng.random(X.shape) < 0.8] = 0
    elif kind == "tiny":
        X[:] = 5e-324 * rng.integers(0, 3, size=X.shape)
    elif kind == "offset":
        X += 1e3
    dtype = pick(rng, np.float64, np.float64, np.float32, np.float16, np.int32, np.uint8, bool)
    largest = {np.uint8: 200, np.int32: 1e9, np.float16: 6e4}.get(dtype, np.inf)
    return kind, X.clip(0 if dtype is np.uint8 else -largest, largest).astype(dtype)


def random_learner(rng, m):
    common = dict(
        n_components=pick(rng, None, 1, 2, 5, 20),
        n_unfoldings=int(rng.integers(1, 12)),
        step_size=pick(rng, "auto", "auto", "auto", 0.01, 1.0),
        batch_size=pick(rng, "auto", 1, 3, 100),
        max_iter=int(rng.integers(1, 4)),
        tol=pick(rng, None, 1e-4, 0.5),
        n_iter_no_change=int(rng.integers(1, 4)),
        dict_init=pick(rng, "search", "data", "data", "random", "svd"),
        random_state=int(rng.integers(100)),
    )
    if rng.random() < 0.15:
        threshold = pick(rng, "auto", 0.0, 0.1, 1e6)
        initial = pick(rng, None, None, 0.1)
        rate = pick(rng, 1e-3, 0.1)
        extra = dict(threshold=threshold, initial_threshold=initial, learning_rate=rate)
        return NOODLDictionaryLearning(**common | extra)
    shrinkage = pick(rng, "soft", "soft", "hard")
    converged = shrinkage == "soft" and rng.random() < 0.2
    extra = dict(
        alpha=pick(rng, "auto", "auto", *([] if converged else [0.0]), 1e-3, 0.1, 1.0, 1e9),
        gradient=pick(rng, "dec", "ae-lasso", "ae-ls"),
        lambda_decay=1.0 if converged else pick(rng, 1.0, 0.9, (1.0, 0.8)),
        shrinkage=shrinkage,
        positive_code=bool(rng.integers(2)),
        positive_dict=bool(rng.integers(2)),
        atom_norm=pick(rng, "unit", "ball", None),
        optimizer=pick(rng, "adam", "adam", "sgd", "surrogate"),
        learning_rate=pick(rng, 1e-4, 1e-3, 0.1, 1.0),
        transform_alpha=pick(rng, None, None, 0.05),
        split_sign=bool(rng.integers(2)),
    )
    if converged and rng.random() < 0.5:
        common["n_unfoldings"] = None
    elif converged:
        extra["transform_algorithm"] = "lasso"
    return PUDLEDictionaryLearning(**common | extra)


def use(learner, X):
    """Put data through every method."""
    learner.fit(X)
    n_out = learner.n_components_ * (2 if learner.split_sign else 1)
    codes = learner.transform(X)
    diverges = learner.step_size != "auto"  # beyond 2 / L, as a warning says
    if diverges and not np.isfinite(codes).all():
        return
    back = learner.inverse_transform(codes)
    if diverges and not np.isfinite(back).all():
        return
    expect(codes.shape == (len(X), n_out), f"codes have shape {codes.shape}")
    expect(back.shape == X.shape, f"reconstructions have shape {back.shape}")
    dtype = np.float32 if X.dtype == np.float32 else np.float64
    expect(codes.dtype == dtype, f"codes are {codes.dtype}")
    expect(np.isfinite(learner.components_).all(), "components are not finite")
    expect(np.isfinite(codes).all(), "codes are not finite")
    expect(np.isfinite(back).all(), "reconstructions are not finite")
    if learner.step_size == "auto":  # the score fits its own dictionaries
        expect(np.isfinite(learner.score(X)), "the score is not finite")
    again = pickle.loads(pickle.dumps(learner)).transform(X)
    expect(np.array_equal(again, codes, equal_nan=True), "codes changed by pickling")
    twin = clone(learner).fit(X)
    same = np.array_equal(twin.components_, learner.components_)
    expect(same, "a clone learned something else")
    learner.partial_fit(X)
    expect(np.isfinite(learner.components_).all(), "components are not finite after partial_fit")


def valid_rows(rng):
    kind, X = random_data(rng)
    learner = random_learner(rng, X.shape[1])
    yield f"{kind} {X.dtype} {X.shape}\n  {learner}"
    try:
        use(learner, X)
    except ValueError as error:
        if "scale the data" not in str(error):  # their squares are zero
            raise


def spoiled_rows(rng):
    kind, X = random_data(rng)
    learner = random_learner(rng, X.shape[1])
    what = pick(rng, "infinity", "1-D", "3-D", "empty", "no features", "text", "complex", "width")
    spoiled = X.astype(float)
    if rng.random() < 0.7:
        name = pick(rng, *sorted(SPOILED.keys() & learner.get_params()))
        value = pick(rng, *SPOILED[name])
        learner.set_params(**{name: value})
        what = f"{name}={value!r}"
    elif what == "infinity":
        spoiled[0, 0] = np.inf
    yield f"{kind} {X.dtype} {X.shape}, {what}\n  {learner}"
    spoiled = {
        "1-D": spoiled[0],
        "3-D": spoiled[None],
        "empty": spoiled[:0],
        "no features": spoiled[:, :0],
        "text": np.full(X.shape, "word"),
        "complex": spoiled * 1j,
    }.get(what, spoiled)
    if what == "width":
        learner.fit(spoiled)
    with refused(what):
        if what == "width":
            learner.transform(np.ones((2, X.shape[1] + 1)))
        else:
            learner.fit(spoiled)


# ---------------------------------------------------------------------------- losses


def random_counts(rng, loss):
    """Return data in the domain of a loss, at its odd corners, and a description."""
    n, m, p = int(rng.integers(50, 300)), int(rng.integers(3, 12)), int(rng.integers(2, 7))
    atoms = rng.normal(size=(p, m))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    natural = (2 * rng.normal(size=(n, p)) * (rng.random((n, p)) < 0.3)) @ atoms
    n_trials, kind = 1, pick(rng, "clipped", "clipped", "rare", "rare", "often", "constant", "zero")
    if loss == "gaussian":
        X = natural + rng.normal(size=(n, m)) * 0.05
        kind = pick(rng, "plain", "offset", "zero")
        X = X + (1e3 if kind == "offset" else 0)
    elif loss == "binomial":
        n_trials = 1 if kind in ("clipped", "rare") else int(rng.integers(1, 30))
        shift = {"rare": -pick(rng, 2.0, 4.0, 6.0), "often": 6.0}.get(kind, 0.0)
        X = rng.binomial(n_trials, 1 / (1 + np.exp(-natural - shift))).astype(float)
        if kind == "clipped":
            edge = 10.0 ** rng.uniform(-7, -1)
            X = X.clip(edge, 1 - edge)
    else:
        shift = {"rare": np.log(10 ** rng.uniform(-2.5, -1)), "often": rng.uniform(5, 12)}
        X = rng.poisson(np.exp(natural + shift.get(kind, 0.5))).astype(float)
        if kind == "clipped":
            X = X.clip(10.0 ** rng.uniform(-7, -1), None)
    if kind == "constant":
        X[:] = X[0]
    if kind == "zero":
        X[:, rng.random(m) < 0.5] = 0
    return kind, X, n_trials


def objective(learner, natural, X, codes, *, penalised):
    """Return the mean loss of samples, with or without the penalty of their codes."""
    loss = loss_named(learner.loss, learner.n_trials)
    losses = loss.half_deviance(torch.as_tensor(natural), torch.as_tensor(X)).sum(1)
    size = np.abs(codes).sum(1).mean() if penalised else 0.0
    return float(losses.mean()) + learner.alpha_ * float(size)


def counts(rng):
    """Check that a fit does no worse than the baseline, or warns."""
    loss = pick(rng, "poisson", "poisson", "binomial", "binomial", "gaussian")
    kind, X, n_trials = random_counts(rng, loss)
    learner = PUDLEDictionaryLearning(
        int(rng.integers(2, 8)),
        loss=loss,
        n_trials=n_trials,
        gradient=pick(rng, "auto", "auto", "auto", "dec", "ae-ls"),
        alpha=pick(rng, "auto", "auto", "auto", 0.1, 1.0),
        dict_init=pick(rng, "search", "search", "data"),
        max_iter="auto",
        positive_code=bool(rng.integers(2)),
        random_state=int(rng.integers(100)),
    )
    if learner.dict_init == "data" or learner.gradient == "ae-ls":
        learner.set_params(max_iter=5, tol=None)
    exposed = loss == "poisson" and rng.random() < 0.3
    exposure = rng.uniform(0.5, 2, len(X)) if exposed else None
    yield f"{kind} {X.shape}, mean {X.mean():.3g}, {n_trials} trials, {exposed=}\n  {learner}"
    given = {"exposure": exposure} if exposed else {}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        learner.fit(X, **given)
    codes = learner.transform(X, **given)
    expect(np.isfinite(learner.components_).all(), "components are not finite")
    expect(np.isfinite(codes).all(), "codes are not finite")
    log_exposure = np.log(exposure)[:, None] if exposed else 0.0
    size = np.exp(log_exposure) * np.ones_like(X)
    baseline = np.zeros(X.shape[1])
    if loss != "gaussian":
        mean = torch.as_tensor((X.sum(0) + 0.5) / (size.sum(0) + 1))
        baseline = loss_named(loss, n_trials).natural(mean).numpy()
    intercept = getattr(learner, "intercept_", 0.0)
    unbiased = learner.gradient == "ae-ls" or learner.dict_init == "data" or learner.debias_
    penalised = not unbiased
    fitted = codes @ learner.components_ + intercept + log_exposure
    after = objective(learner, fitted, X, codes, penalised=penalised)
    natural = baseline + log_exposure + np.zeros_like(X)
    before = objective(learner, natural, X, 0 * codes, penalised=penalised)
    said = any("baseline" in str(warning.message) for warning in warned)
    worse = f"the objective is {after:.6g}, that of the baseline {before:.6g}"
    expect(said or after <= before * (1 + 1e-3) + 1e-6, worse)
    score = learner.score(X, **given)
    chosen = {learner.alpha, learner.gradient, learner.dict_init} == {"auto", "search"}
    least = -0.05 if kind == "rare" and len(X) > 150 else -0.5
    low = score < least and (kind == "constant" or (chosen and loss != "gaussian"))
    said = said or (low and any("baseline" in text for text in findings(learner, X)))
    expect(np.isfinite(score) and (said or not low), f"the score of {kind} data is {score:.4g}")


# ---------------------------------------------------------------------------- company


def company_learner(rng, X, y):
    """Return a fitted learner, and whether it takes gaps."""
    seed = dict(random_state=int(rng.integers(100)))
    kind = pick(rng, "unfolded", "auto", "lasso", "omp", "hard", "noodl", "counts", "task", "twins")
    p = int(rng.integers(3, 20))
    if kind == "noodl":
        return NOODLDictionaryLearning(p, n_unfoldings=9, max_iter=2, **seed).fit(X)
    if kind == "task":
        task = pick(rng, PUDLEClassifier, PUDLERegressor)
        return task(p, n_unfoldings=pick(rng, 9, "auto"), max_iter=3, **seed).fit(X, y)
    if kind == "twins":  # nearly, or exactly
        atoms = rng.normal(size=(p, X.shape[1]))
        atoms[p // 2] = atoms[0] + pick(rng, 0.0, 1e-16, 1e-12, 1e-9) * rng.normal(size=X.shape[1])
        atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
        return PUDLEDictionaryLearning.from_components(atoms, alpha=0.3)
    options = {
        "unfolded": dict(n_unfoldings=int(rng.integers(1, 30))),
        "auto": dict(),
        "lasso": dict(transform_algorithm="lasso"),
        "omp": dict(transform_algorithm="omp", transform_n_nonzero_coefs=2),
        "hard": dict(shrinkage="hard", n_unfoldings=9),
        "counts": dict(loss=pick(rng, "poisson", "binomial"), n_trials=50),
    }[kind]
    positive = bool(rng.integers(2))
    split = bool(rng.integers(2))
    learner = PUDLEDictionaryLearning(
        p, positive_code=positive, split_sign=split, **options, **seed
    )
    return learner.fit(X)


def close(found, expected, size, what):
    expect(found.shape == expected.shape, f"{what}: shape {found.shape}")
    if found.size == 0:
        return
    far = float(np.abs(np.asarray(found, float) - np.asarray(expected, float)).max())
    expect(far <= 1e-6 * size, f"{what}: {far / size:.3g} of the largest")


def company(rng):
    """Check that results for a row depend on that row alone."""
    n, m = int(rng.integers(10, 60)), int(rng.integers(4, 12))
    X = np.rint(rng.gamma(1.0, 4.0, size=(n, m))).clip(0, 50)
    y = np.arange(n) % 3
    learner = company_learner(rng, X, y)
    gaps = learner._allows_nan() and rng.random() < 0.5
    if gaps:
        rows = rng.random(n) < 0.2
        X[rows, rng.integers(m)] = np.nan
    sparse_too = bool(rng.integers(2))
    yield f"{X.shape}, {gaps=}\n  {learner}"
    methods = ["transform", "predict", "decision_function", "predict_proba"]
    for name in methods:
        function = getattr(learner, name, None)
        if function is None:
            continue
        whole = function(X)
        size = max(float(np.abs(whole).max()), 1e-12)
        order = rng.permutation(n)
        close(function(X[order]), whole[order], size, f"{name}, permuted")
        for i in rng.integers(n, size=5).tolist():
            close(function(X[i : i + 1]), whole[i : i + 1], size, f"{name}, alone")
        cuts = np.sort(rng.integers(1, n, size=3))
        parts = [function(part) for part in np.split(X, cuts) if len(part)]
        close(np.concatenate(parts), whole, size, f"{name}, in parts")
        if learner._allows_nan():
            other = X.copy()
            j = int(rng.integers(n))
            other[j, int(rng.integers(m))] = np.nan
            rest = np.arange(n) != j
            close(function(other)[rest], whole[rest], size, f"{name}, beside a gap")
    whole = learner.transform(X)
    size = max(float(np.abs(whole).max()), 1e-12)
    before, coder.PART = coder.PART, int(rng.integers(1, n))
    try:
        if sparse_too:
            close(learner.transform_sparse(X).toarray(), whole, size, "transform_sparse")
    finally:
        coder.PART = before


def datasets(rng):
    """Check that a dataset gives the results of its array, with gaps or without."""
    n, m = int(rng.integers(60, 200)), int(rng.integers(4, 10))
    X = rng.normal(size=(n, m))
    X[rng.random(X.shape) < pick(rng, 0.0, 0.05, 0.3)] = np.nan
    X[np.isnan(X).all(1), 0] = 1.0
    learner = PUDLEDictionaryLearning(
        int(rng.integers(5, 40)),
        dict_init=pick(rng, "data", "search"),
        gradient="ae-ls",
        alpha=pick(rng, 0.1, 1.0, 3.0),
        n_unfoldings=5,
        batch_size=int(rng.integers(8, 64)),
        max_iter=3,
        tol=None,
        random_state=int(rng.integers(100)),
    )
    yield f"{X.shape}, {np.isnan(X).mean():.2f} missing\n  {learner}"
    expected = clone(learner).fit(X).components_
    data = torch.utils.data.TensorDataset(torch.as_tensor(X))
    found = learner.fit(data).components_
    close(found, expected, 1.0, "atoms")


# ---------------------------------------------------------------------------- streams and names


class Buffered:
    """Batches in one buffer, each written over the one before."""

    def __init__(self, X, size, *, as_batch):
        self.X, self.size, self.as_batch = X, size, as_batch

    def __iter__(self):
        buffer = np.empty((self.size, self.X.shape[1]), self.X.dtype)
        for number, start in enumerate(range(0, len(self.X), self.size)):
            rows = self.X[start : start + self.size]
            buffer[: len(rows)] = rows
            yield self.as_batch(buffer[: len(rows)], number)
        buffer[:] = np.nan


def ways_to_fit(learner):
    """Return the names of the methods by which a learner learns."""
    return [name for name in ("fit", "partial_fit") if hasattr(learner, name)]


def streamed_learner(rng):
    """Return a learner that takes streams, and whether it takes counts only."""
    seed = dict(random_state=int(rng.integers(100)))
    p, kind = int(rng.integers(2, 10)), pick(rng, "search", "search", "auto", "training", "noodl",
                                             "encoder", "poisson", "counts that add")  # fmt: skip
    short = dict(n_unfoldings=3, max_iter=2, tol=None, batch_size=16, **seed)
    if kind == "noodl":
        return NOODLDictionaryLearning(p, **short), False
    if kind == "counts that add":
        return PoissonNMF(p, max_iter=4, **seed), True
    options = {
        "search": seed,
        "auto": seed,
        "training": short | dict(gradient="ae-ls", dict_init=pick(rng, "data", "search")),
        "encoder": dict(separate_atoms=pick(rng, True, "unfolding"), max_iter=2, **seed),
        "poisson": dict(loss="poisson", **short),
    }[kind]
    learner = PUDLEDictionaryLearning("auto" if kind == "auto" else p, **options)
    return learner, kind == "poisson"


def buffers(rng):
    """Check that a stream in one buffer gives the bits of a stream of copies."""
    n, m = int(rng.integers(60, 200)), int(rng.integers(3, 10))
    learner, counts = streamed_learner(rng)
    X = rng.poisson(2.0, (n, m)).astype(float) if counts else rng.normal(size=(n, m))
    X = X.astype(pick(rng, np.float64, np.float32))
    if rng.random() < 0.3:
        X[rng.random(X.shape) < 0.1] = np.nan
        X[np.isnan(X).all(1), 0] = 1.0
    size, method = (
        int(rng.integers(5, 40)),
        pick(rng, "fit", *["partial_fit"] * hasattr(learner, "partial_fit")),
    )
    yield f"{X.shape} {X.dtype} by {size}, {method}\n  {learner}"
    given = pick(rng, lambda rows, _: rows, lambda rows, _: torch.from_numpy(rows))
    found = getattr(clone(learner), method)(Buffered(X, size, as_batch=given))
    copied = Buffered(X, size, as_batch=lambda rows, _: rows.copy())
    expected = getattr(clone(learner), method)(copied)
    for one in (found, expected):
        vars(one).pop("size_path_", None)  # a Bunch of arrays
    names = other_attributes(found, expected)
    expect(not names, f"other bits of {names}")
    codes = expected.transform(copied)
    same = np.array_equal(found.transform(Buffered(X, size, as_batch=given)), codes)
    expect(same, "other codes")


def frames(rng):
    """Check that frames and batches of them have to have the columns of `fit` in its order."""
    n, m = int(rng.integers(60, 120)), int(rng.integers(3, 8))
    learner, counts = streamed_learner(rng)
    X = rng.poisson(2.0, (n, m)).astype(float) if counts else rng.normal(size=(n, m))
    names = [f"feature {i}" for i in range(m)]
    order = rng.permutation(m)
    order = order[::-1] if (order == np.arange(m)).all() else order
    wrong, size = int(rng.integers(1, 3)), int(rng.integers(10, 25))
    method = pick(rng, *ways_to_fit(learner))
    yield f"{X.shape} by {size}, {method}, batch {wrong} in the order {order}\n  {learner}"

    def named(rows, number):
        return pd.DataFrame(rows, columns=names)

    def mixed(rows, number):
        frame = named(rows, number)
        return frame.iloc[:, order] if number == wrong else frame

    right, spoiled = (Buffered(X, size, as_batch=one) for one in (named, mixed))
    getattr(learner, method)(right)
    expect(learner.feature_names_in_.tolist() == names, "the names are not those of the batches")
    for data in (spoiled, named(X, 0).iloc[:, order]):
        for name in ("transform", "score", method, "transform_sparse"):
            with refused(f"{name} of columns in another order"):
                getattr(learner, name)(data)
    with refused(f"{method} of columns in another order"):
        getattr(clone(learner), method)(spoiled)
    whole = named(X, 0)
    size_of_codes = max(float(np.abs(learner.transform(X)).max()), 1e-12)
    close(learner.transform(right), learner.transform(whole), size_of_codes, "batches of frames")


# ---------------------------------------------------------------------------- units and weights


def units(rng):
    """Check that a power of two in the data is one in the codes."""
    n, m = int(rng.integers(30, 100)), int(rng.integers(4, 12))
    X, power = rng.normal(size=(n, m)), int(rng.integers(-500, 500))
    rounds = pick(rng, None, 5)
    learner = PUDLEDictionaryLearning(
        int(rng.integers(3, 12)),
        n_unfoldings=pick(rng, "auto", 7),
        transform_algorithm=pick(rng, "unfolded", "unfolded", "omp"),
        **(
            {} if rounds is None else dict(gradient="ae-ls", max_iter=rounds, optimizer="surrogate")
        ),
        random_state=int(rng.integers(100)),
    )
    dtype = pick(rng, np.float64, np.float64, np.float32)
    power = power if dtype is np.float64 else power // 10
    yield f"{X.shape} {np.dtype(dtype)} times 2**{power}\n  {learner}"
    X = X.astype(dtype)
    expected = clone(learner).fit(X)
    with np.errstate(all="ignore"):
        large = np.ldexp(X, power)
    try:
        learner.fit(large)
        codes = learner.transform(large)
    except ValueError as error:  # their squares overflow
        expect(is_clear(error), f"{error}")
        return
    rounding = 1e-6 if dtype is np.float64 else 1e-2
    far = float(np.abs(learner.components_ - expected.components_).max())
    expect(far <= rounding, f"atoms are {far:.3g} apart")
    before = expected.transform(X)
    far = float(np.abs(np.ldexp(codes, -power) - before).max() / max(np.abs(before).max(), 1e-12))
    expect(far <= 10 * rounding, f"codes are {far:.3g} of the largest apart")


def outliers(rng):
    """Check data with one row much larger than the others."""
    n, m = int(rng.integers(100, 300)), int(rng.integers(5, 20))
    X = rng.normal(size=(n, m))
    X[int(rng.integers(n))] *= 10 ** rng.uniform(4, 6)
    learner = PUDLEDictionaryLearning(
        int(rng.integers(5, 30)),
        gradient=pick(rng, "ae-ls", "ae-ls", "ae-ls", "dec"),
        optimizer=pick(rng, "auto", "auto", "surrogate", "adam"),
        dict_init=pick(rng, "data", "search", "search", "search"),
        n_unfoldings=pick(rng, 20, 20, 20, "auto"),
        alpha=pick(rng, "auto", "auto", "auto", 0.1),
        batch_size=pick(rng, "auto", 32, 32, 32),
        max_iter=8,
        tol=None,
        random_state=int(rng.integers(100)),
    )
    yield f"{X.shape}, largest {np.abs(X).max():.3g}\n  {learner}"
    try:
        learner.fit(X)
    except ValueError as error:
        ignored = learner.optimizer != "adam" and "learning_rate" in str(error)
        expect(diverged(error) and not ignored, f"{error}")
        return
    expect(np.isfinite(learner.components_).all(), "components are not finite")
    expect(np.isfinite(learner.transform(X)).all(), "codes are not finite")


def weights(rng):
    """Check classes without weight, without samples, and invalid weights."""
    n, m, n_classes = int(rng.integers(20, 80)), int(rng.integers(3, 8)), int(rng.integers(2, 5))
    X, y = rng.normal(size=(n, m)), rng.integers(n_classes, size=n)
    y[:n_classes] = np.arange(n_classes)
    rare = rng.random() < 0.4
    if rare:
        y[n_classes:] %= n_classes - 1
    names = np.array(["a", "b", "c", "d", "e"]) if rng.integers(2) else np.arange(5)
    y, classes = names[y], names[:n_classes]
    kind = pick(rng, "none", "zero", "zeros of samples", "negative", "nan", "text", "early", "bag")
    value = {"zero": 0, "negative": -1.0, "nan": np.nan, "text": "much"}.get(kind)
    weight = None if value is None else {classes[-1].item(): value}
    sample_weight = None
    if kind == "zeros of samples":
        sample_weight = np.where(y == classes[-1], 0.0, 1.0)
    classifier = PUDLEClassifier(
        int(rng.integers(2, 8)),
        class_weight=pick(rng, None, "balanced") if weight is None else weight,
        supervision=pick(rng, 0.0, 0.5, 1.0),
        early_stopping=kind == "early" or rng.random() < 0.2,
        max_iter=2,
        tol=None,
        random_state=int(rng.integers(100)),
    )
    yield f"{X.shape}, {n_classes} classes, {kind}, {rare=}\n  {classifier}"
    if kind in ("negative", "nan", "text"):
        with refused(f"class_weight={weight}"):
            classifier.fit(X, y)
        return
    if kind == "bag":
        bag = BaggingClassifier(classifier, n_estimators=3, max_samples=0.3, random_state=0)
        classifier = bag
    try:
        classifier.fit(X, y, sample_weight) if kind != "bag" else classifier.fit(X, y)
    except ValueError as error:
        # one class is left, or too few samples to hold any out
        expect(is_clear(error) and re.search("class|early_stopping|validation", str(error)), error)
        return
    predicted = classifier.predict(X)
    expect(set(predicted) <= set(classes.tolist()), "predictions are no classes")
    shares = classifier.predict_proba(X)
    expect(np.isfinite(shares).all(), "probabilities are not finite")
    expect(np.allclose(shares.sum(1), 1), "probabilities do not add up")
    if kind in ("zero", "zeros of samples") and n_classes > 2:
        expect(classes[-1] not in predicted, "a class without weight is predicted")


def poor_data(rng):
    """Check that data with little to learn cause a warning."""
    kind = pick(rng, "all missing", "a column missing", "one sample", "few samples")
    n = {"one sample": 1, "few samples": 10}.get(kind, int(rng.integers(30, 80)))
    X = rng.normal(size=(n, int(rng.integers(3, 12))))
    X[:, 0] = np.nan if kind == "a column missing" else X[:, 0]
    X = np.full_like(X, np.nan) if kind == "all missing" else X
    learner = PUDLEDictionaryLearning(16, n_unfoldings=pick(rng, "auto", 7), random_state=0)
    yield f"{kind} {X.shape}\n  {learner}"
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            learner.fit(X)
    except ValueError as error:
        expect(is_clear(error), f"{error}")
        return
    expect(np.isfinite(learner.components_).all(), "components are not finite")
    about = [str(warning.message) for warning in warned] + findings(learner, X)
    said = any(re.search("sample|row|missing|column|feature", text) for text in about)
    expect(said, f"no warning that little can be learned, but {about}")


# ---------------------------------------------------------------------------- files


class Killed(BaseException):
    """Act like SIGKILL."""


class KillsAtTask(FitCallback):
    """Count the tasks of a fit, and end it at the end of one of them."""

    def __init__(self, number=None):
        self.number, self.count = number, 0

    def on_fit_task_end(self, estimator, context):
        self.count += 1
        if self.count == self.number:
            raise Killed


class Table:
    """An array behind slices, as h5py and zarr have it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        return self.array[rows]


class Batches:
    """A stream that can be read again."""

    def __init__(self, array, size):
        self.parts = np.split(array, range(size, len(array), size))

    def __iter__(self):
        return iter(self.parts)


class Kills(FitCallback):
    """End a fit after some epochs of the search and of training."""

    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_fit_task_end(self, estimator, context):
        if context.task_name.startswith("epoch"):
            self.n_epochs -= 1
            if self.n_epochs <= 0:
                raise Killed


def checkpointed(rng):
    """Return a learner with a checkpoint, for a fit of some epochs, and its data."""
    common = dict(tol=None, random_state=int(rng.integers(100)))
    kind = pick(rng, "search", "counts", "training", "training", "convolution", "classifier")
    if kind == "convolution":
        X = rng.normal(size=(6, 12, 12))
        X[rng.random(X.shape) < pick(rng, 0.0, 0.1)] = np.nan
        X[rng.random(6) < 0.2] = 1.0
        common |= dict(atom_shape=(3, 3), stride=2, n_unfoldings=4, batch_size=2, max_iter=4)
        common |= dict(alpha=pick(rng, 0.1, 3.0))
        n_components = int(rng.integers(3, 12))
        if np.isnan(X).any() or rng.integers(2):
            start = pick(rng, "data", "search")
            return ConvPUDLEDictionaryLearning(n_components, dict_init=start, **common), (X,)
        return ConvPUDLEDictionaryLearning(n_components, dict_init="random", **common), (X,)
    X = rng.normal(size=(80, 6))
    if kind == "classifier":
        early = bool(rng.integers(2))
        common |= dict(early_stopping=early, max_iter=4, n_unfoldings=5, batch_size=16)
        return PUDLEClassifier(6, **common), (X, np.arange(80) % 2)
    if kind == "counts":
        return PUDLEDictionaryLearning(6, loss="poisson", **common), (rng.poisson(3, X.shape),)
    X[rng.random(X.shape) < pick(rng, 0.0, 0.05)] = np.nan
    if kind == "search":
        return PUDLEDictionaryLearning(8, **common), (X,)
    return PUDLEDictionaryLearning(
        int(rng.integers(6, 40)),
        dict_init="data",
        n_unfoldings=5,
        alpha=pick(rng, 0.1, 3.0),
        optimizer=pick(rng, "adam", "sgd", "surrogate"),
        batch_size=16,
        max_iter=4,
        **common,
    ), (X,)


def opened(rng):
    """Return a learner for fits with a checkpoint, and its data; more kinds than `checkpointed`."""
    if rng.random() < 0.3:
        return checkpointed(rng)
    common = dict(random_state=int(rng.integers(100)))
    number = pick(rng, 5, 8, "auto")
    if rng.random() < 0.2:
        X = rng.normal(size=(4, 12, 12)) * (rng.random((4, 12, 12)) < 0.1)
        X = X + np.roll(X, 1, axis=2) + pick(rng, 0.02, 0.3) * rng.normal(size=X.shape)
        common |= dict(atom_shape=(3, 3), stride=pick(rng, 1, 2))
        common |= pick(rng, dict(), dict(n_unfoldings=2, max_iter=2, dict_init="search"))
        return ConvPUDLEDictionaryLearning(pick(rng, 3, "auto"), **common), (X,)
    codes = rng.normal(size=(400, 6)) * (rng.random((400, 6)) < 0.4)
    X = codes @ rng.normal(size=(6, 8))
    X = X + pick(rng, 0.02, 0.3, 1.0) * rng.normal(size=X.shape)
    kind = pick(rng, "array", "array", "table", "stream", "counts", "task", "noodl")
    if kind == "counts":
        loss = pick(rng, "poisson", "binomial", "counts that add")
        options = dict(gradient=pick(rng, "auto", "dec"), max_iter=pick(rng, "auto", 2))
        if loss == "counts that add":
            learner = PoissonNMF(5, max_iter=options["max_iter"], **common)
            return learner, (np.abs(X).round().clip(0, 9)[:100],)
        learner = PUDLEDictionaryLearning(number, loss=loss, n_trials=9, **options, **common)
        return learner, (np.abs(X).round().clip(0, 9)[:100],)
    if kind == "task":
        task, supervision = pick(rng, PUDLEClassifier, PUDLERegressor), pick(rng, 0.0, 0.5)
        return task(number, supervision=supervision, max_iter=2, **common), (X, X[:, 0] > 0)
    if kind == "noodl":
        return NOODLDictionaryLearning(5, n_unfoldings=4, max_iter=2, **common), (X,)
    options = pick(
        rng,
        dict(),
        dict(),
        dict(positive_code=True, debias=pick(rng, "auto", 0.5)),
        dict(gradient="ae-ls", n_unfoldings=3, max_iter=2),
        dict(gradient="ae-ls", max_iter=1),
        dict(shrinkage="hard", n_unfoldings=3, max_iter=2),
        dict(lambda_decay=0.9, n_unfoldings=3, max_iter=2),
        dict(separate_atoms=True, n_unfoldings=2, max_iter=2),
        dict(separate_atoms="unfolding", n_unfoldings=2, max_iter=2),
        dict(dict_init="data", n_unfoldings=3, max_iter=2),
    )
    if "dict_init" in options and number == "auto":
        number = 6
    X = {"table": Table, "stream": lambda X: Batches(X, 60)}.get(kind, np.asarray)(X)
    return PUDLEDictionaryLearning(number, **options, **common), (X,)


@contextmanager
def small_samples():
    """Let searches look at 300 rows of a table or stream."""
    places = [
        (sources, "_LEAST_SAMPLE"),
        (sources, "_ROWS_OF_AN_ATOM"),
        (tables, "IN_MEMORY_BYTES"),
    ]
    before = [getattr(*place) for place in places]
    for place, value in zip(places, (300, 1, 0), strict=True):
        setattr(*place, value)
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(*place, value)


def openings(rng):
    """Check files of complete fits, and of fits that were killed at one of their last tasks."""
    learner, data = opened(rng)
    n_left, counter = int(rng.integers(4)), KillsAtTask()
    yield f"{n_left} tasks before the end, {type(data[0]).__name__}\n  {learner}"
    with tempfile.TemporaryDirectory() as folder, small_samples():
        file = Path(folder) / "fit.npz"
        expected = clone(learner).set_callbacks(counter).fit(*data)
        kills = KillsAtTask(max(counter.count - n_left, 1))
        with suppress(Killed):
            checkpoint = Checkpoint(file, every_seconds=0)
            clone(learner).set_callbacks(kills, checkpoint).fit(*data)
        for time_opened in ("killed", "complete", "complete and opened again"):
            found = clone(learner).set_callbacks(Checkpoint(file)).fit(*data)
            names = other_attributes(found, expected)
            expect(not names, f"other bits of {names}, {time_opened}")


def attributes(learner):
    others = "n_features_in_", "fit_seconds_"
    known = {n: v for n, v in vars(learner).items() if n.endswith("_") and n not in others}
    return known | learner._training_state


def other_attributes(one, other):
    """Return the names of fitted attributes with different bits."""
    one, other = attributes(one), attributes(other)
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [
        name for name in one if pickle.dumps(plain(one[name])) != pickle.dumps(plain(other[name]))
    ]


def plain(value):
    """Return arrays as bytes, and dictionaries and tuples as lists of such values."""
    if isinstance(value, dict):
        return [(name, plain(value[name])) for name in sorted(value)]
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    value = np.asarray(value)
    return (
        value.dtype.str,
        value.shape,
        value.tolist() if value.dtype == object else value.tobytes(),
    )


def resumed(rng):
    """Check that a killed or extended fit ends with the bits of an undisturbed one."""
    learner, data = checkpointed(rng)
    n_epochs, longer = int(rng.integers(1, 12)), bool(rng.integers(2))
    yield f"after {n_epochs} epochs, {longer=}\n  {learner}"
    expected = clone(learner).fit(*data)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fit.npz"
        if longer and learner.max_iter != "auto":
            for _ in range(int(rng.integers(1, 3))):
                short = clone(learner).set_params(max_iter=2)
                short.set_callbacks(Checkpoint(file)).fit(*data)
        else:
            checkpoint = Checkpoint(file, every_seconds=0)
            with suppress(Killed):
                clone(learner).set_callbacks(Kills(n_epochs), checkpoint).fit(*data)
        found = clone(learner).set_callbacks(Checkpoint(file)).fit(*data)
    names = other_attributes(found, expected)
    expect(not names, f"other bits of {names}")


def damaged_checkpoints(rng):
    """Check that a file of a killed fit with one other byte, or without its end, is refused."""
    learner, data = checkpointed(rng)
    n_epochs = int(rng.integers(1, 12))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fit.npz"
        checkpoint = Checkpoint(file, every_seconds=0)
        with suppress(Killed):
            clone(learner).set_callbacks(Kills(n_epochs), checkpoint).fit(*data)
        if not file.exists():
            yield "killed before the first checkpoint"
            return
        content = bytearray(file.read_bytes())
        place = int(rng.integers(len(content)))
        is_cut = rng.random() < 0.5
        if is_cut:
            del content[place:]
        else:
            content[place] ^= int(rng.integers(1, 256))
        what = "cut off at" if is_cut else "with another byte at"
        yield f"after {n_epochs} epochs, {what} {place}\n  {learner}"
        file.write_bytes(content)
        try:
            clone(learner).set_callbacks(Checkpoint(file)).fit(*data)
        except ValueError as error:
            expect(str(error).startswith(f"{file} is no whole checkpoint"), str(error)[:200])
        else:
            expect(False, "the file was taken")


# ---------------------------------------------------------------------------- learned encoders


def random_encoder(rng):
    """Return a learner with an encoder of its own."""
    one = rng.random() < 0.3  # a sparse autoencoder
    return PUDLEDictionaryLearning(
        pick(rng, None, 1, 2, 5, 20),
        separate_atoms=pick(rng, True, "unfolding"),
        n_unfoldings=1 if one else pick(rng, "auto", 2, 5),
        alpha=pick(rng, "auto", "auto", "auto", 0.0, 0.1),
        gradient=pick(rng, "auto", "auto", "ae-ls"),
        positive_code=bool(rng.integers(2)),
        split_sign=bool(rng.integers(2)),
        positive_dict=bool(rng.integers(2)),
        dict_init=pick(rng, "search", "search", "data", "random"),
        batch_size=pick(rng, "auto", 1, 7),
        max_iter=int(rng.integers(1, 4)),
        random_state=int(rng.integers(100)),
    )


def check_module(learner, X, codes, size):
    """Compare codes with those of the module."""
    module, x = learner.to_module(), torch.as_tensor(np.asarray(X, codes.dtype))
    with torch.no_grad():
        close(module(x).numpy(), codes, size, "codes of the module")


def check_without(learner, X):
    """Check that an atom that is forbidden has no code, and that nothing else is needed."""
    found = atom_importance(learner, X)
    for name, values in found.items():
        expect(values.shape == (len(learner.components_),), f"{name} has shape {values.shape}")
        expect(np.isfinite(values).all(), f"{name} is not finite")
    expect((found.r2_loss[found.usage == 0] == 0).all(), "unused atoms are missed")


def learned_encoders(rng):
    """Check codes of learned encoders: every method, alone, as modules and files, interrupted."""
    kind, X = random_data(rng)
    learner = random_encoder(rng)
    what = pick(rng, "module", "module", "alone", "without", "interrupt", "consensus")
    yield f"{kind} {X.dtype} {X.shape}, {what}\n  {learner}"
    try:
        use(learner, X)
    except ValueError as error:
        if "scale the data" not in str(error):  # their squares are zero
            raise
        return
    codes = learner.transform(X)
    # latents of float32 in data with an offset lose digits of the data, not of the codes
    size = max(float(np.abs(codes).max()), float(np.abs(X.astype(float)).max()), 1e-300)
    size *= 100 if codes.dtype == np.float32 else 1
    if what == "module":
        check_module(learner, X, codes, size)
    elif what == "alone":
        row = int(rng.integers(len(X)))
        close(learner.transform(X[row : row + 1])[0], codes[row], size, "a row alone")
    elif what == "without":
        check_without(learner, X)
    elif what == "interrupt":
        again, ends = clone(learner), Interrupts(int(rng.integers(1, 6)))
        with suppress(KeyboardInterrupt):
            again.set_callbacks(ends).fit(X)
        expect(np.isfinite(again.transform(X)).all(), "codes after Ctrl-C are not finite")
        expect(again.ended_by_ in ("search", "interrupt"), f"it was ended by {again.ended_by_}")
    elif len(X) > 3:
        resample = pick(rng, "seeds", "halves", "bootstrap")
        consensus = ConsensusDictionary(learner, 2, resample=resample, random_state=0).fit(X)
        expect(np.isfinite(consensus.transform(X)).all(), "codes of the consensus")


class Interrupts(FitCallback):
    """Ctrl-C at the end of a task, which ends the fit."""

    def __init__(self, n_tasks):
        self.n_left = n_tasks

    def on_fit_task_end(self, estimator, context):
        self.n_left -= 1
        if self.n_left == 0:
            signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------------------- images


@cache
def photograph():
    return load_sample_image("china.jpg") / 255.0


@cache
def denoiser(name):
    return load_denoiser(name)


def denoising(rng):
    """Check that a packaged denoiser makes nothing worse."""
    name = pick(rng, "gaussian", "gaussian-small", "gaussian-small", "poisson")
    told = bool(rng.integers(2))
    # small parts of texture alone cannot be told from noise: leave the noise of large ones unknown
    side = int(rng.integers(24, 80) if told else rng.integers(128, 256))
    y, x = int(rng.integers(400 - side)), int(rng.integers(600 - side))
    clean = photograph()[y : y + side, x : x + side]
    colour = name != "poisson" and bool(rng.integers(2))
    clean = clean if colour else clean.mean(2)
    if name == "poisson":
        peak = float(10 ** rng.uniform(0, 1.5))
        noisy, clean = rng.poisson(clean * peak).astype(float), clean * peak
        told, noise, unit = {}, None, peak
    else:
        noise = float(pick(rng, 0.0, 60 / 255 * rng.random(), 0.02 * rng.random()))
        unit = float(pick(rng, 1.0, 1.0, 255.0))
        noisy = unit * (clean + noise * rng.normal(size=clean.shape))
        clean = unit * clean
        told = dict(noise_std=unit * noise) if told else {}
    yield f"{name}, {clean.shape} at {y}, {x}, noise {noise}, unit {unit}, told {told}"
    denoised = denoiser(name).denoise([noisy], **told)[0]
    expect(denoised.shape == noisy.shape, f"shape {denoised.shape}")
    expect(np.isfinite(denoised).all(), "pixels are not finite")
    before, after = (float(np.sqrt(np.mean((v - clean) ** 2))) for v in (noisy, denoised))
    worse = f"root mean square error {after / unit:.5f} after, {before / unit:.5f} before"
    expect(after <= 1.02 * before + 1e-3 * unit, worse)


def convolutions(rng):
    """Check the methods of a convolutional learner."""
    signals = bool(rng.integers(2))
    shape = (int(rng.integers(2, 6)), 30) if signals else (int(rng.integers(2, 6)), 13, 11)
    X = rng.normal(size=shape) * pick(rng, 1e-8, 1.0, 1.0, 1e8)
    missing = rng.random() < 0.3
    if missing:
        X[rng.random(shape) < 0.1] = np.nan
    learner = ConvPUDLEDictionaryLearning(
        int(rng.integers(1, 7)),
        atom_shape=5 if signals else (3, 4),
        stride=pick(rng, 1, 2),
        alpha=pick(rng, "auto", "auto", 0.1, 1e6),
        n_unfoldings=pick(rng, "auto", 3),
        positive_code=bool(rng.integers(2)),
        max_iter=int(rng.integers(1, 3)),
        tol=None,
        random_state=int(rng.integers(100)),
    )
    if missing and rng.integers(2):
        learner.set_params(n_unfoldings=3)
    yield f"{X.shape}, {missing=}\n  {learner}"
    data = X[..., None] if signals else X
    learner.fit(data)
    expect(np.isfinite(learner.components_).all(), "components are not finite")
    codes = learner.transform(data)
    expect(np.isfinite(np.asarray(codes)).all(), "codes are not finite")
    alone = learner.transform(data[:1])
    size = max(float(np.abs(codes).max()), 1e-300)
    close(np.asarray(alone)[0], np.asarray(codes)[0], size, "an image alone")
    again = pickle.loads(pickle.dumps(learner)).transform(data)
    expect(np.array_equal(again, codes), "codes changed by pickling")
    if not missing:
        expect(np.isfinite(learner.score(data)), "the score is not finite")


# ---------------------------------------------------------------------------- arguments


@cache
def rows():
    rng = np.random.default_rng(0)
    return rng.poisson(3.0, size=(40, 6)).astype(float)


@cache
def fitted(kind):
    small = dict(n_components=4, random_state=0)
    y = np.arange(40) % 3
    if kind == "poisson":
        return PUDLEDictionaryLearning(loss="poisson", **small).fit(rows())
    if kind == "classifier":
        return PUDLEClassifier(max_iter=1, tol=None, **small).fit(rows(), y)
    if kind == "convolution":
        learner = ConvPUDLEDictionaryLearning(4, atom_shape=(4, 4), random_state=0)
        return learner.fit(photograph()[:40, :40].mean(2)[None])
    if kind == "patches":
        patches = np.random.default_rng(0).normal(size=(60, 64))
        return PUDLEDictionaryLearning(n_unfoldings=3, dict_init="data", max_iter=1, **small).fit(
            patches
        )
    return PUDLEDictionaryLearning(**small).fit(rows())


def grey(*gaps):
    image = photograph()[:24, :24].mean(2).copy()
    image[3:6, 4:7] = np.nan if gaps else image[3:6, 4:7]
    return image


def no_number(result):
    """Raise ValueError for NaN: a caller who passed NaN sees it."""
    if not torch.isfinite(result).all():
        raise ValueError("the result is no number")


def certified(atoms, x):
    codes, gaps = solve_lasso(atoms, x, 0.1)
    no_number(torch.cat([codes.flatten(), gaps.flatten()]))


ARGUMENTS = {
    "exposure=2.0": lambda: fitted("poisson").transform(rows(), exposure=2.0),
    "exposure in fit": lambda: clone(fitted("poisson")).fit(rows(), exposure=2.0),
    "exposure of text": lambda: fitted("poisson").transform(rows(), exposure="long"),
    "exposure of some": lambda: fitted("poisson").transform(rows(), exposure=[1.0, 2.0]),
    "exposure of NaN": lambda: fitted("poisson").score(rows(), exposure=np.full(40, np.nan)),
    "exposure of least squares": lambda: fitted("rows").transform(rows(), exposure=np.ones(40)),
    "exposure of a classifier": lambda: (
        clone(fitted("classifier")).fit_transform(rows(), np.arange(40) % 3, exposure=np.ones(40))
    ),
    "Checkpoint(3)": lambda: Checkpoint(3),
    "every_seconds='a'": lambda: Checkpoint("fit.npz", every_seconds="a"),
    "every_seconds=-1": lambda: Checkpoint("fit.npz", every_seconds=-1),
    "Checkpoint of a directory": lambda: (
        clone(fitted("rows")).set_callbacks(Checkpoint(".")).fit(rows())
    ),
    "two checkpoints": lambda: (
        clone(fitted("rows")).set_callbacks(Checkpoint("a.npz"), Checkpoint("b.npz")).fit(rows())
    ),
    "an argument of another optimizer": lambda: (
        PUDLEDictionaryLearning(4, optimizer=partial(torch.optim.Adam, momentum=0.9)).fit(rows())
    ),
    "patch_shape=8": lambda: denoise_patches(fitted("patches"), grey(), (8, "a")),
    "patch_shape of zero": lambda: denoise_patches(fitted("patches"), grey(), (0, 8)),
    "stride=-1": lambda: denoise_patches(fitted("patches"), grey(), (8, 8), stride=-1),
    "n_iter=-1": lambda: inpaint(grey(1), n_iter=-1),
    "n_iter='a'": lambda: inpaint(grey(1), n_iter="a"),
    "noise_std='a'": lambda: denoiser("gaussian-small").denoise([grey()], noise_std="a"),
    "noise_std=inf": lambda: denoiser("gaussian-small").denoise([grey()], noise_std=np.inf),
    "noise_std=nan": lambda: denoiser("gaussian-small").denoise([grey()], noise_std=np.nan),
    "noise_std=-1": lambda: denoiser("gaussian-small").denoise([grey()], noise_std=-1.0),
    "noise_std of a learner": lambda: (
        clone(fitted("convolution")).set_params(noise_std="a").fit(grey()[None])
    ),
    "atoms of NaN": lambda: certified(torch.full((3, 4), torch.nan), torch.ones(2, 4)),
    "data of NaN": lambda: certified(torch.eye(4), torch.full((2, 4), torch.nan)),
    "alpha of NaN": lambda: solve_lasso(torch.eye(4), torch.ones(2, 4), float("nan")),
    "pursuit in NaN": lambda: no_number(solve_omp(torch.full((3, 4), torch.nan), torch.ones(2, 4))),
    "from_components without alpha": lambda: PUDLEDictionaryLearning.from_components(np.eye(3)),
    "from_components of NaN": lambda: (
        PUDLEDictionaryLearning.from_components(np.full((3, 3), np.nan), alpha=1.0)
    ),
    "counts without a baseline": lambda: (
        PUDLEDictionaryLearning.from_components(np.eye(3), alpha=1.0, loss="poisson")
    ),
    "a classifier from components": lambda: PUDLEClassifier.from_components(np.eye(6), alpha=1.0),
    "a regressor from components": lambda: PUDLERegressor.from_components(np.eye(6), alpha=1.0),
    "early stopping of few": lambda: (
        PUDLEClassifier(3, early_stopping=True, validation_fraction=0.01).fit(rows()[:2], [0, 1])
    ),
    "save_denoiser of codes": lambda: save_denoiser(fitted("convolution"), "denoiser"),
}  # fmt: skip

# valid calls, to check the results of
RIGHT = {
    "a sign less": lambda: (
        clone(fitted("classifier")).fit(rows(), np.arange(40) % 3).set_params(split_sign=False)
        .predict(rows())
    ),
    "a large row for the pursuit": lambda: (
        solve_omp(torch.eye(4).double(), 1e200 * torch.ones(1, 4).double(), n_nonzero_coefs=2)
    ),
    "square patches": lambda: denoise_patches(fitted("patches"), grey(), 8),
    "inpainting of bytes": lambda: inpaint((255 * grey()).astype(np.uint8), np.isnan(grey(1))),
    "counts by parts": lambda: fitted("poisson").transform_sparse(rows()).toarray(),
}  # fmt: skip


def arguments(rng):
    """Check that odd arguments are refused, and valid ones give finite results."""
    name = pick(rng, *ARGUMENTS, *RIGHT)
    yield name
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            if name in ARGUMENTS:
                with refused(name):
                    ARGUMENTS[name]()
                return
            try:
                found = RIGHT[name]()
            except (ValueError, TypeError) as error:
                expect(is_clear(error), f"{type(error).__name__}: {error}")
                return
        finally:
            os.chdir(before)
    expect(np.isfinite(np.asarray(found, float)).all(), "the result is not finite")


# ---------------------------------------------------------------------------- all of them

KINDS = {
    valid_rows: 6,
    spoiled_rows: 3,
    counts: 4,
    company: 4,
    datasets: 1,
    buffers: 2,
    frames: 2,
    units: 2,
    outliers: 2,
    weights: 3,
    poor_data: 1,
    resumed: 2,
    openings: 4,
    orders: 4,
    damaged_checkpoints: 4,
    learned_encoders: 3,
    denoising: 3,
    convolutions: 2,
    arguments: 3,
}  # and how often


def attempt(seed, kinds):
    """Return a kind, an outcome and, if it is unclear, a description."""
    rng = np.random.default_rng(seed)
    kind = pick(rng, *[kind for kind in kinds for _ in range(KINDS[kind])])
    description, steps = "", kind(rng)
    try:
        for said in steps:
            description = said
        return kind.__name__, "clear", ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if diverged(error) and kind is valid_rows:
            return kind.__name__, "diverged, and said so", ""
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(last.filename).name}:{last.lineno})"
        what = f"{type(error).__name__}: {str(error)[:300]}{where}"
    return kind.__name__, "UNCLEAR", f"seed {seed}, {kind.__name__}: {what}\n  {description}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n-sets", type=int, default=2000)
    parser.add_argument("--minutes", type=float, help="so long, whatever the number of sets")
    parser.add_argument("--seed", type=int, default=0, help="sets have seeds from here on")
    parser.add_argument("--kinds", nargs="+", default=[kind.__name__ for kind in KINDS])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.__name__ in arguments.kinds]
    outcomes, found, start, n_sets = Counter(), Counter(), time.monotonic(), 0

    def is_left():
        if arguments.minutes is None:
            return n_sets < arguments.n_sets
        return time.monotonic() - start < 60 * arguments.minutes

    while is_left():
        kind, outcome, description = attempt(arguments.seed + n_sets, kinds)
        n_sets += 1
        outcomes[outcome] += 1
        found[f"{kind}: {outcome}"] += 1
        if description:
            print(description, flush=True)
    row = {"sets": n_sets, "UNCLEAR": 0} | outcomes
    row["seconds"] = round(time.monotonic() - start)
    print(json.dumps(dict(sorted(found.items())), indent=1))
    print(row)
    title = "Random parameters, data, files and arguments"
    report = {"title": title, "first_seed": arguments.seed}
    report |= circumstances() | {"kinds": dict(sorted(found.items())), "results": [row]}
    write_report(arguments.out, report)
    sys.exit(bool(outcomes["UNCLEAR"]))


if __name__ == "__main__":
    main()
