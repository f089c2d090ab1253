"""Measure small fits with one thread of torch, two, and as they come, in turn.

With ``--busy 2`` two other processes compute meanwhile. Wall times need an otherwise idle machine.
"""

import argparse
import multiprocessing
import statistics
import time

import numpy as np
import torch
from common import circumstances, write_report
from sklearn.datasets import load_digits

from skpudle import ConvPUDLEDictionaryLearning, PUDLEClassifier, PUDLEDictionaryLearning


def fits():
    """Return six small fits by name."""
    rng = np.random.default_rng(0)
    X, y = load_digits(return_X_y=True)
    codes = rng.poisson(0.3, (6000, 12)) * rng.gamma(2.0, size=(6000, 12))
    counts = rng.poisson(codes @ rng.gamma(0.5, size=(12, 40)))
    images = rng.standard_normal((20, 48, 48))
    rows = {"n_components": 100, "random_state": 0}
    brief = {"max_iter": 5, "tol": None}
    return {
        "default": lambda: PUDLEDictionaryLearning(**rows).fit(X),
        "ae-ls, 20 unfoldings": lambda: PUDLEDictionaryLearning(
            **rows, **brief, n_unfoldings=20, dict_init="data"
        ).fit(X),
        "lasso": lambda: PUDLEDictionaryLearning(
            **rows, **brief, n_unfoldings=None, gradient="ae-lasso", dict_init="data"
        ).fit(X),
        "counts": lambda: PUDLEDictionaryLearning(12, loss="poisson", random_state=0).fit(counts),
        "classifier": lambda: PUDLEClassifier(n_components=16, random_state=0).fit(X, y),
        "convolution": lambda: ConvPUDLEDictionaryLearning(
            8, atom_shape=(8, 8), stride=4, n_unfoldings=10, max_iter=5, tol=None, random_state=0
        ).fit(images),
    }


def _spin():
    while True:
        pass


def measure(fit, n_repeats, default):
    """Return seconds by number of threads, each the median of fits in turn."""
    settings = {"1": 1, "2": 2, "as they come": default}
    seconds = {name: [] for name in settings}
    for _ in range(n_repeats):
        for name, n_threads in settings.items():
            torch.set_num_threads(n_threads)
            start = time.perf_counter()
            fit()
            seconds[name].append(time.perf_counter() - start)
    torch.set_num_threads(default)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0, help="number of busy processes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of fits")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    report = {"circumstances": circumstances(), "busy": options.busy, "seconds": {}}
    default = torch.get_num_threads()
    chosen = {name: fit for name, fit in fits().items() if name in (options.only or fits())}
    for fit in chosen.values():
        fit()  # compiles
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_spin, daemon=True) for _ in range(options.busy)]
    for other in others:
        other.start()
    try:
        for name, fit in chosen.items():
            report["seconds"][name] = found = measure(fit, options.repeats, default)
            print(name, {key: round(value, 3) for key, value in found.items()}, flush=True)
    finally:
        for other in others:
            other.terminate()
    write_report(options.out, report)


if __name__ == "__main__":
    main()
