"""Measure memory over many fits and transforms of one process, which should not grow.

python benchmarks/leaks.py --out benchmarks/results/reliability/leaks.json
"""

import argparse
import gc
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import anonymous_megabytes, circumstances, write_report

from skpudle import PUDLEDictionaryLearning

WARM_UP = 20  # caches of torch and of the system fill up first


def growth(task, n_calls):
    for seed in range(WARM_UP):
        task(seed)
    gc.collect()
    before = anonymous_megabytes()
    for seed in range(n_calls):
        task(seed)
    gc.collect()
    return anonymous_megabytes() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--transforms", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    X = np.random.default_rng(0).normal(size=(500, 16))

    def learner(seed):
        optimizer = ("adam", "surrogate")[seed % 2]
        params = dict(gradient="ae-ls", n_unfoldings=20, max_iter=2, tol=None)
        params["optimizer"] = optimizer
        return PUDLEDictionaryLearning(24, **params, random_state=seed)

    fitted = learner(0).fit(X)
    row = {"fits": options.fits}
    row["growth over fits (MB)"] = growth(lambda seed: learner(seed).fit(X), options.fits)
    row["transforms"] = options.transforms
    row["growth over transforms (MB)"] = growth(lambda _: fitted.transform(X), options.transforms)
    row["anonymous memory (MB)"] = anonymous_megabytes()
    print(row)
    title = "Memory over many fits and transforms"
    write_report(options.out, {"title": title, **circumstances(), "results": [row]})


if __name__ == "__main__":
    main()
