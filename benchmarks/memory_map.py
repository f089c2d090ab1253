"""Fit a memory map that is larger than the allowed memory, and measure the memory in use.

    python benchmarks/memory_map.py --gigabytes 20

The file is sparse: some random blocks hold numbers, the others are zeros without disk space. One
epoch reads all of it. RssAnon is the private memory of the process; pages of the map belong to the
kernel, which drops them on demand.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import anonymous_megabytes, circumstances, write_report

from skpudle import PUDLEDictionaryLearning

N_FEATURES = 1000


def make_file(path, gigabytes, n_blocks=400, block=256):
    rng = np.random.default_rng(0)
    n_samples = int(gigabytes * 2**30 / (4 * N_FEATURES))
    data = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(n_samples, N_FEATURES)
    )
    for start in rng.integers(0, n_samples - block, size=n_blocks):
        data[start : start + block] = rng.normal(size=(block, N_FEATURES))
    data.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--folder", type=Path, help="where the file goes for a while")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    peak, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_megabytes())

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "X.npy"
        make_file(path, arguments.gigabytes)
        X = np.load(path, mmap_mode="r")
        before = anonymous_megabytes()
        threading.Thread(target=watch, daemon=True).start()
        learner = PUDLEDictionaryLearning(
            16,
            n_unfoldings=5,
            gradient="dec",
            batch_size=arguments.batch_size,
            max_iter=1,
            tol=None,
            random_state=0,
        )
        start = time.monotonic()
        learner.fit(X)
        seconds = time.monotonic() - start
        done.set()
        row = {
            "gigabytes": X.nbytes / 2**30,
            "rows": len(X),
            "updates": learner.n_steps_,
            "seconds": seconds,
            "RssAnon_before_mb": before,
            "largest_RssAnon_mb": peak[0],
            "loss": float(learner.loss_curve_[-1]),
        }
    print(row)
    report = {"title": "A memory map larger than the memory used"} | circumstances()
    write_report(arguments.out, report | {"results": [row]})


if __name__ == "__main__":
    main()
