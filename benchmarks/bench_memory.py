"""Memory: over many fits of one process, and of a fit to a memory map larger than the memory used.

    python benchmarks/bench_memory.py leaks --out benchmarks/results/leaks.json
    python benchmarks/bench_memory.py map --gigabytes 20 --out memory_map.json

"leaks": the memory of the process should not grow over fits and transforms.

"map": the file is sparse: some random blocks hold numbers, the others are zeros without disk space.
One epoch reads all of it. RssAnon is the private memory of the process; pages of the map belong to
the kernel, which drops them on demand.
"""

import gc
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import Growth, Report, anonymous_megabytes, parse, timed

from skpudle import PUDLEDictionaryLearning

WARM_UP = 20  # caches of torch and of the system fill up first
N_FEATURES = 1000


def growth(task, n_calls):
    for seed in range(WARM_UP):
        task(seed)
    gc.collect()
    before = anonymous_megabytes()
    for seed in range(n_calls):
        task(seed)
    gc.collect()
    return anonymous_megabytes() - before


def leaks(given):
    X = np.random.default_rng(0).normal(size=(500, 16))

    def learner(seed):
        params = dict(
            gradient="ae-ls", n_unfoldings=20, max_iter=2, tol=None, random_state=seed
        )
        return PUDLEDictionaryLearning(
            24, optimizer=("adam", "surrogate")[seed % 2], **params
        )

    fitted = learner(0).fit(X)
    row = {"fits": given.fits, "transforms": given.transforms}
    row["growth over fits (MB)"] = growth(lambda seed: learner(seed).fit(X), given.fits)
    row["growth over transforms (MB)"] = growth(
        lambda _: fitted.transform(X), given.transforms
    )
    return row | {"anonymous memory (MB)": anonymous_megabytes()}


def make_file(path, gigabytes, n_blocks=400, block=256):
    rng = np.random.default_rng(0)
    shape = int(gigabytes * 2**30 / (4 * N_FEATURES)), N_FEATURES
    data = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in rng.integers(0, len(data) - block, size=n_blocks):
        data[start : start + block] = rng.normal(size=(block, N_FEATURES))
    data.flush()


def memory_map(given):
    how = dict(n_unfoldings=5, gradient="dec", batch_size=16384, max_iter=1, tol=None)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "X.npy"
        make_file(path, given.gigabytes)
        X, before = np.load(path, mmap_mode="r"), anonymous_megabytes()
        with Growth() as grown:
            fit = PUDLEDictionaryLearning(16, random_state=0, **how).fit
            learner, seconds = timed(fit, X, clock=time.monotonic)
    return {
        "gigabytes": X.nbytes / 2**30,
        "rows": len(X),
        "updates": learner.n_steps_,
        "seconds": seconds,
        "RssAnon_before_mb": before,
        "largest_RssAnon_mb": before + grown.most,
        "loss": float(learner.loss_curve_[-1]),
    }


WHAT = {
    "leaks": ("Memory over many fits and transforms", leaks),
    "map": ("A memory map larger than the memory used", memory_map),
}


def main():
    given = parse(__doc__, names=["what"], choices={"what": WHAT}, fits=200, transforms=2000,
                  gigabytes=20.0, folder=str)  # fmt: skip
    title, measure = WHAT[given.what]
    Report(given.out, title=title).add(measure(given))


if __name__ == "__main__":
    main()
