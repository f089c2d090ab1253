"""What callbacks cost: the same fit without any, with one that listens, and with scikit-learn's.

Example::

    python benchmarks/bench_callbacks.py --out benchmarks/results/callbacks.json
"""

import argparse
import contextlib
import io
import json
import platform
from pathlib import Path
from statistics import median
from time import process_time

import torch
from sklearn.callback import ProgressBar

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import load_image_patches


class Listener:
    """Takes note of every epoch and asks for nothing."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    X = load_image_patches(n_patches=options.n, random_state=0)
    callbacks = {"none": [], "a listener": [Listener()], "ProgressBar": [ProgressBar()]}
    times = {name: [] for name in callbacks}
    for repeat in range(options.repeats + 1):  # the first warms up; in turn, since machines drift
        for name, listeners in callbacks.items():
            learner = PUDLEDictionaryLearning(
                128, alpha=0.1, n_unfoldings=10, max_iter=options.epochs, tol=None, random_state=0
            )
            learner.set_callbacks(*listeners)
            start = process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                learner.fit(X)
            if repeat:
                times[name].append(process_time() - start)
    rows = [
        {
            "callback": name,
            "fit (s)": median(seconds),
            "smallest (s)": min(seconds),
            "over none": f"{median(seconds) / median(times['none']) - 1:+.1%}",
        }
        for name, seconds in times.items()
    ]
    for row in rows:
        print(row)
    report = {
        "title": "Callbacks",
        "results": rows,
        "samples": options.n,
        "epochs": options.epochs,
        "runs": options.repeats,
        "time": "of the processor, median",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    report = json.loads(json.dumps(report), parse_float=lambda t: float(f"{float(t):.4g}"))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
