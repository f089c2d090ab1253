"""Fit data outside memory: are all rows learned from, and how much memory does it take?

    python benchmarks/bench_streams.py sorted noise features online --out streams.json
    python benchmarks/bench_streams.py memory --gigabytes 2 --folder /tmp --out memory.json

Rows are sums of four random atoms with 20 dB of noise. A stream, a memory map and a file of HDF5
hold the same rows as the array. "found" is the share of atoms with a learned one at a cosine of
0.95 or more, "objective" the lasso's on other rows. Each fit of "memory" runs in a process of its
own; its figure is the growth of RssAnon and of shared pages of the process after imports and a tiny
fit, at its largest.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import anonymous_megabytes, circumstances, write_report

from skpudle import PUDLEDictionaryLearning
from skpudle._data import tables
from skpudle._operators._atoms import DenseDictionary
from skpudle.lasso._implicit import converged_codes

KINDS = "memory map", "HDF5", "zarr", "dask"


class Stream:
    """Batches of an array, without a length."""

    def __init__(self, X, size=1000):
        self.X, self.size = X, size

    def __iter__(self):
        return iter(np.split(self.X, range(self.size, len(self.X), self.size)))


def make_atoms(rng, n, n_features):
    D = rng.standard_normal((n, n_features))
    return D / np.linalg.norm(D, axis=1, keepdims=True)


def make_rows(rng, D, n, n_nonzero=4):
    codes = np.zeros((n, len(D)))
    places = np.argpartition(rng.random((n, len(D))), n_nonzero, axis=1)[:, :n_nonzero]
    values = rng.uniform(0.5, 1.5, places.shape) * rng.choice([-1, 1], places.shape)
    np.put_along_axis(codes, places, values, 1)
    X = codes @ D
    X += 0.1 * X.std() * rng.standard_normal(X.shape)
    return X.astype(np.float32)


def share_found(learner, D):
    return float((np.abs(D @ learner.components_.T).max(1) > 0.95).mean())


def objective(learner, X, alpha):
    atoms, x = (torch.as_tensor(a, dtype=torch.float64) for a in (learner.components_, X))
    codes, _ = converged_codes(DenseDictionary(atoms), x, alpha=alpha)
    return float(0.5 * (x - codes @ atoms).square().sum() + alpha * codes.abs().sum()) / len(X)


def stored(X, kind, folder, chunk=1000):
    """Write rows to a file and return what a user opens."""
    path = Path(folder) / "X"
    if kind == "array":
        return X
    if kind == "stream":
        return Stream(X)
    if kind == "memory map":
        np.save(path.with_suffix(".npy"), X)
        return np.load(path.with_suffix(".npy"), mmap_mode="r")
    import h5py

    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("X", data=X, chunks=(chunk, X.shape[1]))
    return h5py.File(path.with_suffix(".h5"))["X"]


def compared(X, held_out, populations, kinds, n_components):
    """Fit the same rows from several places, as if none of these were small."""
    tables.IN_MEMORY_BYTES, rows = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            data, start = stored(X, kind, folder), time.process_time()
            learner = PUDLEDictionaryLearning(n_components, random_state=0).fit(data)
            seconds = time.process_time() - start
            alpha = rows[0]["alpha"] if rows else learner.search_alpha_
            row = {"data": kind, "cpu_seconds": seconds, "n_samples_seen": learner.n_samples_seen_}
            row |= {f"found_{name}": share_found(learner, D) for name, D in populations.items()}
            row |= {"objective": objective(learner, held_out, alpha), "alpha": alpha}
            row["ratio"] = row["objective"] / (rows[0]["objective"] if rows else row["objective"])
            rows.append(row)
            print(row, flush=True)
    return rows


def sorted_rows(rng):
    A, B = make_atoms(rng, 60, 50), make_atoms(rng, 60, 50)
    X = np.concatenate([make_rows(rng, D, 30_000) for D in (A, B)])
    held_out = np.concatenate([make_rows(rng, D, 2000) for D in (A, B)])
    kinds = "array", "stream", "memory map", "HDF5"
    return compared(X, held_out, {"first": A, "second": B}, kinds, 120)


def noise(rng):
    """Rows after the first 17,000 are noise, as weak as in the others, or as strong as these."""
    A, rows = make_atoms(rng, 60, 50), []
    X, held_out = make_rows(rng, A, 60_000), make_rows(rng, A, 2000)
    for strength in (0.1, 1.0):
        X[17_000:] = strength * X[:17_000].std() * rng.standard_normal(X[17_000:].shape)
        kinds = "array", "stream", "memory map"
        found = compared(X, held_out, {"first": A}, kinds, 60)
        rows += [row | {"strength_of_noise": strength} for row in found]
    return rows


def features(rng):
    A = make_atoms(rng, 256, 4096)
    X, held_out = make_rows(rng, A, 20_000), make_rows(rng, A, 1000)
    return compared(X, held_out, {"all": A}, ("array", "stream", "memory map"), 256)


def online(rng):
    """`partial_fit` on one population, on another after it, and `fit` on the first."""
    A, B = make_atoms(rng, 60, 50), make_atoms(rng, 60, 50)
    first, second = make_rows(rng, A, 20_000), make_rows(rng, B, 20_000)
    held_out, rows = make_rows(rng, A, 2000), []
    fitted = PUDLEDictionaryLearning(60, random_state=0).fit(first)
    alpha = fitted.search_alpha_
    least = objective(fitted, held_out, alpha)
    for n_components, size, both in ((60, 1000, 0), (60, 100, 0), (120, 1000, 1), (60, 1000, 1)):
        learner = PUDLEDictionaryLearning(n_components, random_state=0)
        start = time.process_time()
        for X in (first, second)[: 1 + both]:
            for part in Stream(X, size):
                learner.partial_fit(part)
        row = {"n_components": n_components, "rows_of_a_call": size, "two_populations": bool(both)}
        row |= {"found_first": share_found(learner, A), "found_second": share_found(learner, B)}
        row["objective_over_fit"] = objective(learner, held_out, alpha) / least
        rows.append(row | {"cpu_seconds": time.process_time() - start})
        print(rows[-1], flush=True)
    return rows


def make_file(path, kind, gigabytes, n_features=512, n_rows=20_000):
    rng = np.random.default_rng(0)
    D, n = make_atoms(rng, 100, n_features), int(gigabytes * 2**30 / (4 * n_features))
    if kind == "memory map":
        shape = dict(dtype=np.float32, shape=(n, n_features))
        data = np.lib.format.open_memmap(path, mode="w+", **shape)
    elif kind == "HDF5":
        import h5py

        data = h5py.File(path, "w").create_dataset("X", (n, n_features), "f4", chunks=(1000, 512))
    else:
        import zarr

        shape = dict(shape=(n, n_features), chunks=(1000, n_features), dtype="f4")
        data = zarr.create_array(str(path), **shape)
    for start in range(0, n, n_rows):
        data[start : start + n_rows] = make_rows(rng, D, min(n_rows, n - start))


def opened(path, kind):
    if kind == "memory map":
        return np.load(path, mmap_mode="r")
    if kind == "HDF5":
        import h5py

        return h5py.File(path)["X"]
    import zarr

    X = zarr.open_array(str(path), mode="r")
    if kind == "zarr":
        return X
    import dask.array as da

    return da.from_array(X, chunks=(10_000, X.shape[1]))


def watched(call):
    """Return the largest growth of private memory during a call, in megabytes."""
    before, peak, done = anonymous_megabytes(), [0.0], threading.Event()

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_megabytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.process_time()
    try:
        result = call()
    finally:
        done.set()
        thread.join()
    return result, peak[0], time.process_time() - start


def one_fit(path, kind):
    rng = np.random.default_rng(0)
    tiny = make_rows(rng, make_atoms(rng, 8, 16), 600)
    opened(path, kind)[:10]
    learner = PUDLEDictionaryLearning(8, random_state=0).fit(tiny)
    learner.transform_sparse(tiny)
    X = opened(path, kind)
    fitted, of_fit, seconds = watched(partial(PUDLEDictionaryLearning(100, random_state=0).fit, X))
    codes, of_codes, more = watched(partial(fitted.transform_sparse, X))
    row = {"data": kind, "fit_mb": of_fit, "fit_cpu_seconds": seconds, "codes": int(codes.nnz)}
    row |= {"transform_sparse_mb": of_codes, "transform_sparse_cpu_seconds": more}
    np.save(f"{path}.atoms.npy", fitted.components_)
    return row | {"rows": X.shape[0], "n_samples_seen": fitted.n_samples_seen_}


def memory(gigabytes, folder, kinds):
    rows, first = [], None
    with tempfile.TemporaryDirectory(dir=folder) as folder:
        for kind in kinds:
            path = Path(folder) / {"memory map": "X.npy", "HDF5": "X.h5"}.get(kind, "X.zarr")
            if not path.exists():
                make_file(path, kind, gigabytes)
            command = [sys.executable, __file__, "one", "--path", str(path), "--kind", kind]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(output.splitlines()[-1])
            atoms = np.load(f"{path}.atoms.npy")
            first = atoms if first is None else first
            row["largest_difference_of_atoms"] = float(np.abs(atoms - first).max())
            rows.append(row)
            print(row, flush=True)
            if kind != "zarr":
                path.unlink() if path.is_file() else None
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = {"sorted": sorted_rows, "noise": noise, "features": features, "online": online}
    parser.add_argument("cases", nargs="+", choices=[*names, "memory", "one"])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--folder", type=Path, help="where files go for a while")
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.cases == ["one"]:
        print(json.dumps(one_fit(arguments.path, arguments.kind)))
        return
    report = {"title": "Data outside memory"} | circumstances() | {"results": {}}
    for case in arguments.cases:
        if case == "memory":
            found = memory(arguments.gigabytes, arguments.folder, arguments.kinds)
        else:
            found = names[case](np.random.default_rng(arguments.seed))
        report["results"][case] = found
        write_report(arguments.out, report)


if __name__ == "__main__":
    main()
