"""Measure the cost of gaps: fit and transform of data with and without NaN.

Example::

    python benchmarks/bench_missing.py --out benchmarks/results/missing_values.json
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
from common import circumstances, write_report

from skpudle import PUDLEDictionaryLearning
from skpudle._data.arrays import check_rows, split_missing, to_tensor
from skpudle.datasets import load_image_patches

SHAPES = {"8 x 8 patches, 128 atoms": (8, 128), "16 x 16 patches, 512 atoms": (16, 512)}


def seconds(run, repeats):
    """Return the median CPU time, which other processes hardly change."""
    run()
    times = []
    for _ in range(repeats):
        start = process_time()
        run()
        times.append(process_time() - start)
    return median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = circumstances()
    rows = []
    for name, (size, n_components) in SHAPES.items():
        X = load_image_patches(patch_size=(size, size), n_patches=options.n, random_state=0)
        gaps = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
        learner = PUDLEDictionaryLearning(
            n_components,
            alpha=0.1,
            gradient="ae-ls",
            n_unfoldings=20,
            max_iter=1,
            tol=None,
            random_state=0,
        )
        row = {"data": name}
        for label, data in {"complete": X, "30 % missing": gaps}.items():
            row[f"fit, {label} (s)"] = seconds(partial(learner.fit, data), options.repeats)
            row[f"transform, {label} (s)"] = seconds(
                partial(learner.transform, data), options.repeats
            )
        x = to_tensor(check_rows(X))
        row["looking for NaN (s)"] = seconds(partial(split_missing, x), 5 * options.repeats)
        rows.append(row)
        print(row, flush=True)
    settings = {
        "samples": options.n,
        "unfoldings": 20,
        "time": "of the processor, median",
        "repeats": options.repeats,
    }
    write_report(options.out, {"title": "Missing values", "results": rows} | settings | machine)


if __name__ == "__main__":
    main()
