"""Fit data outside memory: are all rows learned from?

    python benchmarks/bench_streams.py sorted --out streams.json
    python benchmarks/bench_streams.py features --out streams.json  # adds to the file

Rows are sums of four random atoms with 20 dB of noise. A stream, a memory map and a file of HDF5
hold the same rows as the array. "found" is the share of atoms with a learned one at a cosine of
0.95 or more, "objective" the lasso's on other rows.
"""

import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import circumstances, parse, share_found, timed, unit, write_report

from skpudle import PUDLEDictionaryLearning
from skpudle._data import sources
from skpudle._operators._atoms import DenseDictionary
from skpudle.lasso._implicit import converged_codes


class Stream:
    """Batches of an array, without a length."""

    def __init__(self, X, size=1000):
        self.X, self.size = X, size

    def __iter__(self):
        return iter(np.split(self.X, range(self.size, len(self.X), self.size)))


def make_atoms(rng, n, n_features):
    return unit(rng.standard_normal((n, n_features)))


def make_rows(rng, D, n, n_nonzero=4):
    codes = np.zeros((n, len(D)))
    places = np.argpartition(rng.random((n, len(D))), n_nonzero, axis=1)[:, :n_nonzero]
    values = rng.uniform(0.5, 1.5, places.shape) * rng.choice([-1, 1], places.shape)
    np.put_along_axis(codes, places, values, 1)
    X = codes @ D
    X += 0.1 * X.std() * rng.standard_normal(X.shape)
    return X.astype(np.float32)


def objective(learner, X, alpha):
    atoms, x = (
        torch.as_tensor(a, dtype=torch.float64) for a in (learner.components_, X)
    )
    codes, _ = converged_codes(DenseDictionary(atoms), x, alpha=alpha)
    return float(
        0.5 * (x - codes @ atoms).square().sum() + alpha * codes.abs().sum()
    ) / len(X)


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
    sources.IN_MEMORY_BYTES, rows = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            learner = PUDLEDictionaryLearning(n_components, random_state=0)
            _, seconds = timed(learner.fit, stored(X, kind, folder))
            alpha = rows[0]["alpha"] if rows else learner.search_alpha_
            row = {
                "data": kind,
                "cpu_seconds": seconds,
                "n_samples_seen": learner.n_samples_seen_,
            }
            for name, D in populations.items():
                row[f"found_{name}"] = share_found(learner.components_, D)
            row |= {"objective": objective(learner, held_out, alpha), "alpha": alpha}
            row["ratio"] = row["objective"] / (
                rows[0]["objective"] if rows else row["objective"]
            )
            rows.append(row)
    return rows


def sorted_rows(rng):
    A, B = make_atoms(rng, 60, 50), make_atoms(rng, 60, 50)
    X = np.concatenate([make_rows(rng, D, 30_000) for D in (A, B)])
    held_out = np.concatenate([make_rows(rng, D, 2000) for D in (A, B)])
    kinds = "array", "stream", "memory map", "HDF5"
    return compared(X, held_out, {"first": A, "second": B}, kinds, 120)


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
    for n_components, size, both in (
        (60, 1000, 0),
        (60, 100, 0),
        (120, 1000, 1),
        (60, 1000, 1),
    ):
        learner = PUDLEDictionaryLearning(n_components, random_state=0)
        parts = [part for X in (first, second)[: 1 + both] for part in Stream(X, size)]
        _, seconds = timed(
            lambda learn, all_: [learn(x) for x in all_], learner.partial_fit, parts
        )
        row = {
            "n_components": n_components,
            "rows_of_a_call": size,
            "two_populations": bool(both),
        }
        for name, D in (("first", A), ("second", B)):
            row[f"found_{name}"] = share_found(learner.components_, D)
        row["objective_over_fit"] = objective(learner, held_out, alpha) / least
        rows.append(row | {"cpu_seconds": seconds})
    return rows


CASES = {"sorted": sorted_rows, "features": features, "online": online}


def main():
    given = parse(__doc__, names=["case"], choices={"case": CASES}, seed=7)
    rows = CASES[given.case](np.random.default_rng(given.seed))
    print(json.dumps(rows, indent=1))
    stored = (
        json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    )
    results = stored.get("results", {}) | {given.case: rows}
    report = {"title": "Data outside memory"} | circumstances() | {"results": results}
    write_report(given.out, report)


if __name__ == "__main__":
    main()
