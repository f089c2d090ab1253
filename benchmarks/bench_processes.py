"""Time a search in one process and in each of two, which share its sums, and compare their atoms.

    python benchmarks/bench_processes.py --out processes.json

Each process computes on one thread. ``--quick`` tries that all runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import numpy as np
from common import circumstances, write_report

from skpudle import PUDLEDictionaryLearning, data_parallel


def planted(quick):
    """Return sums of ten of the planted atoms, and these atoms."""
    n, m, p = (600, 16, 24) if quick else (32768, 128, 1024)
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(p, m)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((n, p), np.float32)
    places = rng.random((n, p), np.float32).argpartition(3 if quick else 10, axis=1)
    np.put_along_axis(codes, places[:, : 3 if quick else 10], 1.0, 1)
    codes *= rng.normal(size=codes.shape).astype(np.float32)
    return codes @ atoms + 0.02 * rng.normal(size=(n, m)).astype(np.float32), atoms


def fit(folder, quick):
    """Fit this process's share, and store its atoms and its seconds of a processor."""
    (X, _), several = planted(quick), int(os.environ.get("WORLD_SIZE", 1)) > 1
    PUDLEDictionaryLearning(4, alpha=0.2).fit(X[:100])  # compiles
    with data_parallel(timeout=600) if several else nullcontext() as team:
        rank, size = (team.rank, team.size) if several else (0, 1)
        learner = PUDLEDictionaryLearning(24 if quick else 1024, alpha=0.2, random_state=0)
        start = time.process_time()
        learner.fit(np.array_split(X, size)[rank])
        seconds = time.process_time() - start
    np.savez(f"{folder}/{size}-{rank}.npz", atoms=learner.components_, seconds=seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a tiny problem")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit, options.quick)
        return
    rows, truth = [], planted(options.quick)[1]
    with tempfile.TemporaryDirectory() as folder:
        own = [__file__, "--fit", folder, *["--quick"] * options.quick]
        for n in (1, 2):
            many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] * (n > 1)
            subprocess.run([sys.executable, *many, *own], check=True)
            found = [np.load(f"{folder}/{n}-{rank}.npz") for rank in range(n)]
            cosines = np.abs(truth @ found[0]["atoms"].T).max(1)
            rows.append({
                "processes": n,
                "cpu_seconds_of_each": [round(float(one["seconds"]), 2) for one in found],
                "atoms_found": round(float((cosines > 0.95).mean()), 4),
            })  # fmt: skip
            print(rows[-1], flush=True)
    report = {"title": "A search in one process and in two"} | circumstances() | {"results": rows}
    write_report(options.out, report)


if __name__ == "__main__":
    main()
