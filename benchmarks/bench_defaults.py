"""Fit unscaled data of any size by default parameters: time, and explained variance.

Each kind of data is fitted by the defaults and by the surrogate optimiser. Example::

    python benchmarks/bench_defaults.py --out benchmarks/results/defaults.json
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
from common import circumstances, write_report
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data

LARGE = (100_000, 200)


def few(rng):
    return rng.normal(size=(30, 3))


def white(rng):
    return rng.normal(size=LARGE)


def low_rank(rng):
    n, m = LARGE
    return rng.normal(size=(n, 30)) @ rng.normal(size=(30, m)) + 0.3 * rng.normal(size=LARGE) + 5


def sparse(rng):
    seed = int(rng.integers(2**31))
    return make_dictionary_data(LARGE[0], LARGE[1], 200, 10, snr_db=20, random_state=seed)[0]


DATA = {
    "normal": few,
    "wine": lambda rng: load_wine().data,
    "breast cancer": lambda rng: load_breast_cancer().data,
    "digits": lambda rng: load_digits().data,
    "white noise": white,
    "low rank plus noise": low_rank,
    "sparse, 20 dB": sparse,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = {"title": "Default parameters", "seed": options.seed, **circumstances()}
    report["results"] = rows = []
    PUDLEDictionaryLearning(max_iter=1).fit(np.eye(3))  # do not time torch's first call
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name in options.only:
        X = DATA[name](np.random.default_rng(options.seed))
        for optimizer in ("adam", "surrogate"):
            learner = PUDLEDictionaryLearning(optimizer=optimizer, random_state=options.seed)
            start = perf_counter()
            learner.fit(X)
            fitted = perf_counter()
            codes = learner.transform(X)
            row = {"data": name, "size": " x ".join(map(str, X.shape)), "optimizer": optimizer}
            row |= {"updates": learner.n_steps_, "fit (s)": fitted - start}
            row["transform (s)"] = perf_counter() - fitted
            row["non-zero codes"] = float(np.mean(codes != 0))
            approximation = learner.inverse_transform(codes)
            row["R2"] = r2_score(X, approximation, multioutput="variance_weighted")
            row["score"] = learner.score(X[:5000])
            rows.append(row)
            print(row, flush=True)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
