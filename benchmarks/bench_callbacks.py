"""Measure the cost of callbacks: fits with none, with a listener, and with scikit-learn's own.

The fits alternate, and each is compared with its neighbour without callbacks, since machines drift
by more than callbacks cost. Example::

    python benchmarks/bench_callbacks.py --out benchmarks/results/callbacks.json
"""

import argparse
import contextlib
import io
from pathlib import Path
from time import perf_counter

import numpy as np
from common import circumstances, write_report
from sklearn.callback import ProgressBar

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import load_image_patches


class Listener:
    """Record every epoch and request nothing."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        return False


def seconds(X, epochs, callbacks):
    learner = PUDLEDictionaryLearning(
        128, alpha=0.1, gradient="ae-ls", n_unfoldings=10, max_iter=epochs, tol=None, random_state=0
    )
    learner.set_callbacks(*callbacks)
    start = perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        learner.fit(X)
    return perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="patches of 8 x 8 pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = circumstances()
    X = load_image_patches(n_patches=options.n, random_state=0)
    callbacks = {"a listener": [Listener()], "ProgressBar": [ProgressBar()]}
    seconds(X, options.epochs, callbacks["ProgressBar"])  # warms up
    without, ratios = [], {name: [] for name in callbacks}
    for _ in range(options.repeats):
        for name, listeners in callbacks.items():
            before = seconds(X, options.epochs, [])
            during = seconds(X, options.epochs, listeners)
            after = seconds(X, options.epochs, [])
            without += [before, after]
            ratios[name].append(2 * during / (before + after))
    rows = []
    for name, values in ratios.items():
        # twice the standard error of the median of normal variables
        error = 2 * 1.2533 * np.std(values, ddof=1) / len(values) ** 0.5
        rows.append(
            {
                "callback": name,
                "cost": f"{np.median(values) - 1:+.2%}",
                "give or take": f"{error:.2%}",
                "fit without (s)": float(np.median(without)),
            }
        )
        print(rows[-1])
    settings = {"samples": options.n, "epochs": options.epochs, "repeats": options.repeats}
    write_report(options.out, {"title": "Callbacks", "results": rows} | settings | machine)


if __name__ == "__main__":
    main()
