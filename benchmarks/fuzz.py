"""Random parameters and data through every method; report unclear outcomes.

    python benchmarks/fuzz.py --n-sets 2000 --seed 0
    python benchmarks/fuzz.py --minutes 30 --seed 100000
    python benchmarks/fuzz.py --n-sets 100 --kinds company orders

A set has a kind, see `KINDS`, and follows from its seed. Valid sets have to work: results are
finite, of the right shape, the same after `clone` and pickle, the same for a row alone and in
company; or a ValueError says that training diverged. Invalid data or an invalid parameter has to
raise a ValueError or TypeError of this package or of scikit-learn that names the fault, and never
an error out of torch, a crash, or a result. Random orders of calls are those of `orders`.
"""

import os
import pickle
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork has no threads but its own

import numpy as np
import torch
from common import Report, parse
from orders import is_clear, orders, pick
from sklearn.base import clone

from skpudle import (
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
)
from skpudle._learners import coder

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
    gaps = learner.__sklearn_tags__().input_tags.allow_nan and rng.random() < 0.5
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
        if learner.__sklearn_tags__().input_tags.allow_nan:
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


# ---------------------------------------------------------------------------- all of them

KINDS = {valid_rows: 6, spoiled_rows: 3, company: 4, orders: 4}  # and how often


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
    names = [kind.__name__ for kind in KINDS]
    given = parse(__doc__, choices={"kinds": names}, n_sets=2000, minutes=float, seed=0,
                  kinds=names)  # fmt: skip
    warnings.simplefilter("ignore")
    kinds = [kind for kind in KINDS if kind.__name__ in given.kinds]
    outcomes, found, start, n_sets = Counter(), Counter(), time.monotonic(), 0
    end = None if given.minutes is None else start + 60 * given.minutes
    while n_sets < given.n_sets if end is None else time.monotonic() < end:
        kind, outcome, description = attempt(given.seed + n_sets, kinds)
        n_sets += 1
        outcomes[outcome] += 1
        found[f"{kind}: {outcome}"] += 1
        if description:
            print(description, flush=True)
    title = "Random parameters and data"
    report = Report(given.out, title=title, first_seed=given.seed, kinds=dict(found))
    row = {"sets": n_sets, "UNCLEAR": 0} | outcomes
    report.add(row | {"seconds": round(time.monotonic() - start)})
    sys.exit(bool(outcomes["UNCLEAR"]))


if __name__ == "__main__":
    main()
