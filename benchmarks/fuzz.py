"""Random parameters and small random data through every method; report what is unclear.

    python benchmarks/fuzz.py --n-sets 2000 --seed 0

A valid set has to train, or to say in a ValueError that training diverged; what comes out has to
be finite, of the right shape, and the same after `clone` and pickle. An invalid one, in which a
parameter or the data were spoiled, has to be a ValueError or TypeError that this package or
scikit-learn raises, and never an error out of torch.
"""

import argparse
import pickle
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from common import circumstances, write_report
from sklearn.base import clone

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning

warnings.simplefilter("ignore")

SPOILED = {
    "n_components": [0, -1, 2.5, "many"],
    "alpha": [-1.0, "low", np.nan, None],
    "gradient": ["ls", None, 3],
    "n_unfoldings": [0, -3, 1.5, "all"],
    "step_size": [0.0, -0.1, "big", None],
    "lambda_decay": [0.0, 1.5, (1.0,), (1.0, 2.0), ("a", "b"), np.nan],
    "shrinkage": ["firm", None],
    "positive_code": ["no", 2.5],
    "atom_norm": ["l1", 2],
    "optimizer": ["lbfgs", 3, int],
    "learning_rate": [0.0, -1.0, "fast", None],
    "optimizer_params": ["momentum", [1]],
    "batch_size": [0, -5, "whole", 1.5],
    "max_iter": [0, -1, 2.5, None],
    "tol": [-1.0, "small"],
    "n_iter_no_change": [0, 1.5],
    "dict_init": ["nothing", np.zeros((3, 1)), np.ones(4), 5, [["a", "b"]]],
    "transform_algorithm": ["omp", None],
    "transform_alpha": [-1.0, "auto"],
    "split_sign": ["yes"],
    "device": ["gpu7", "cuda:99", 3, None],
    "random_state": ["seed", -1, 1.5],
}


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


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
        dict_init=pick(rng, "data", "data", "random", "svd", "pairwise"),
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
    """Put data through every method; raise AssertionError where something is wrong."""
    learner.fit(X)
    n_out = learner.n_components_ * (2 if learner.split_sign else 1)
    codes = learner.transform(X)
    if learner.step_size != "auto" and not np.isfinite(codes).all():
        return  # beyond 2 / L, as a warning says
    back = learner.inverse_transform(codes)
    assert codes.shape == (len(X), n_out), f"codes have shape {codes.shape}"
    assert back.shape == X.shape
    assert codes.dtype == (np.float32 if X.dtype == np.float32 else np.float64), codes.dtype
    assert np.isfinite(learner.components_).all(), "components are not finite"
    assert np.isfinite(codes).all(), "codes are not finite"
    assert np.isfinite(back).all(), "reconstructions are not finite"
    if learner.step_size == "auto":  # the score has dictionaries of its own
        assert np.isfinite(learner.score(X)), "the score is not finite"
    again = pickle.loads(pickle.dumps(learner)).transform(X)
    assert np.array_equal(again, codes, equal_nan=True), "codes changed by pickling"
    twin = clone(learner).fit(X)
    assert np.array_equal(twin.components_, learner.components_), "a clone learned something else"
    learner.partial_fit(X)
    assert np.isfinite(learner.components_).all(), "components are not finite after partial_fit"


def spoil(rng, learner, X):
    """Spoil one parameter or the data; return what, and the data."""
    if rng.random() < 0.7:
        names = sorted(SPOILED.keys() & learner.get_params())
        name = pick(rng, *names)
        value = pick(rng, *SPOILED[name])
        learner.set_params(**{name: value})
        return f"{name}={value!r}", X
    what = pick(
        rng, "infinity", "1-D", "3-D", "empty", "no features", "text", "complex", "features"
    )
    X = X.astype(float)
    if what == "infinity":
        X[0, 0] = np.inf
    return what, {
        "1-D": X[0],
        "3-D": X[None],
        "empty": X[:0],
        "no features": X[:, :0],
        "text": np.full(X.shape, "word"),
        "complex": X * 1j,
    }.get(what, X)


def is_clear(error):
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError | TypeError) and "/torch/" not in frames[-1].filename


def attempt(seed):
    """Return an outcome and, where it is unclear, a description."""
    rng = np.random.default_rng(seed)
    kind, X = random_data(rng)
    learner = random_learner(rng, X.shape[1])
    valid, spoiled = rng.random() < 0.7, ""
    try:
        if valid:
            use(learner, X)
            return "used", ""
        spoiled, X = spoil(rng, learner, X)
        learner.fit(X)
        if spoiled == "features":
            learner.transform(np.ones((2, X.shape[1] + 1)))
    except BaseException as error:
        if valid and isinstance(error, ValueError) and "stopped being finite" in str(error):
            return "diverged, and said so", ""
        if not valid and is_clear(error):
            return "refused", ""
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        what = f"{type(error).__name__}: {str(error)[:200]} ({where})"
    else:
        what = "taken without an error"
    return "UNCLEAR", f"seed {seed}, {kind} {X.dtype} {X.shape}, {spoiled}: {what}\n  {learner}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n-sets", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="sets have seeds from here on")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    outcomes, start = Counter(), time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.n_sets):
        outcome, description = attempt(seed)
        outcomes[outcome] += 1
        if description:
            print(description, flush=True)
    row = {"sets": arguments.n_sets, "UNCLEAR": 0} | outcomes
    row["seconds"] = round(time.monotonic() - start)
    print(row)
    report = {"title": "Random parameters and data", "first_seed": arguments.seed}
    write_report(arguments.out, report | circumstances() | {"results": [row]})
    sys.exit(bool(outcomes["UNCLEAR"]))


if __name__ == "__main__":
    main()
