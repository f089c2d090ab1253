"""Time non-negative least squares against scipy.optimize.nnls, and compare random problems.

    python benchmarks/bench_nnls.py --out benchmarks/results/nnls.json

Mixtures of non-negative spectra, whose common part sets the cosine of two spectra, and Gaussian
atoms and data. Times are processor time of one thread, medians over parts of the rows in turn, so
that other work on the machine affects all alike. SciPy solves a few rows of each part. All rows
have a certificate, which is part of the time. "lasso" is `solve_lasso` with a tiny penalty.

Random problems have all shapes, and a third is reached exactly. "excess over SciPy" is the largest
difference of objectives, relative to the squared data; the difference of codes is the largest where
they are unique.
"""

import argparse
from pathlib import Path
from time import process_time

import numpy as np
import torch
from common import circumstances, write_report
from scipy.optimize import nnls

from skpudle.lasso import solve_lasso, solve_nnls

N_CHANNELS, N_ATOMS = 96, 101


def spectra(n, *, cosine, noise, seed):
    """Return sums of three lines each, with a common part, and mixtures of a tenth of them."""
    rng = np.random.default_rng(seed)
    channels, atoms = np.arange(N_CHANNELS), np.zeros((N_ATOMS, N_CHANNELS))
    for atom in atoms:
        for _ in range(3):
            centre, width = rng.uniform(0, N_CHANNELS), rng.uniform(2, 8)
            atom += rng.uniform(0.3, 1) * np.exp(-0.5 * ((channels - centre) / width) ** 2)
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    atoms = (1 - cosine) ** 0.5 * atoms + (cosine / N_CHANNELS) ** 0.5
    atoms /= np.linalg.norm(atoms, axis=1)[:, None]
    x = (rng.gamma(1.5, size=(n, N_ATOMS)) * (rng.random((n, N_ATOMS)) < 0.1)) @ atoms
    return atoms, x + noise * x.std() * rng.standard_normal(x.shape)


def gaussian(n, *, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N_ATOMS, N_CHANNELS)), rng.standard_normal((n, N_CHANNELS))


PROBLEMS = {
    "spectra": lambda n: spectra(n, cosine=0.0, noise=0.01, seed=0),
    "spectra, cosine 0.9": lambda n: spectra(n, cosine=0.9, noise=0.01, seed=0),
    "spectra, cosine 0.99": lambda n: spectra(n, cosine=0.99, noise=0.01, seed=0),
    "spectra, cosine 0.99, noisy": lambda n: spectra(n, cosine=0.99, noise=0.3, seed=0),
    "Gaussian": lambda n: gaussian(n, seed=0),
}


def timed(solve, n):
    """Return milliseconds a row, and the result."""
    start = process_time()
    found = solve()
    return (process_time() - start) / n * 1e3, found


def excess(atoms, x, codes, other):
    """Return how much larger objectives are than of other codes, relative to the data."""
    found, best = (np.square(x - z @ atoms).sum(1) for z in (codes, other))
    return float(((found - best) / np.square(x).sum(1)).max())


def measured(name, n, n_parts, n_scipy):
    atoms, x = PROBLEMS[name](n)
    penalty = 1e-9 * float(np.abs(x @ atoms.T).max())
    rng, first = np.random.default_rng(0), True
    times, gaps, weighted_gaps, sizes, worst = [], [], [], [], -np.inf
    for part in np.array_split(x, n_parts):
        few, weights = part[:n_scipy], rng.uniform(0.5, 1, part[:2000].shape)
        tensors = torch.from_numpy(atoms), torch.from_numpy(part[:2000])
        if first:  # numba compiles
            solve_nnls(atoms, part[:100])
            first = False
        ours, (codes, gap) = timed(lambda p=part: solve_nnls(atoms, p), len(part))
        by_scipy, expected = timed(
            lambda f=few: np.stack([nnls(atoms.T, row)[0] for row in f]), len(few)
        )
        weighted, (_, weighted_gap) = timed(
            lambda p=part, w=weights: solve_nnls(atoms, p[: len(w)], weights=w), len(weights)
        )
        lasso, _ = timed(lambda t=tensors: solve_lasso(*t, penalty, positive=True), len(tensors[1]))
        times.append([ours, by_scipy, by_scipy / ours, lasso, weighted])
        gaps.append(gap.max())
        weighted_gaps.append(weighted_gap.max())
        sizes.append((codes > 0).sum(1).mean())
        worst = max(worst, excess(atoms, few, codes[: len(few)], expected))
    keys = "ms a row", "SciPy ms a row", "SciPy over ours", "lasso ms a row", "weighted ms a row"
    medians = map(float, np.median(times, axis=0))
    return (
        {"rows": n, "atoms in a code": float(np.mean(sizes))}
        | dict(zip(keys, medians, strict=True))
        | {
            "largest gap": float(max(gaps)),
            "largest gap, weighted": float(max(weighted_gaps)),
            "excess over SciPy": worst,
        }
    )


def compared(n_problems):
    rng = np.random.default_rng(0)
    worst, different, largest, failures = -np.inf, 0.0, 0.0, 0
    for _ in range(n_problems):
        n_features, n_atoms = rng.integers(1, 60, 2)
        draw = rng.choice([rng.standard_normal, rng.random])
        atoms, x = draw((n_atoms, n_features)), rng.standard_normal((1, n_features))
        if rng.random() < 1 / 3:
            x = rng.random((1, n_atoms)) @ atoms
        codes, gaps = solve_nnls(atoms, x)
        largest = max(largest, float(gaps.max()))
        try:
            expected = nnls(atoms.T, x[0])[0][None]
        except RuntimeError:  # out of iterations
            failures += 1
            continue
        worst = max(worst, excess(atoms, x, codes, expected))
        if n_atoms <= n_features and np.linalg.cond(atoms) < 1e4:
            difference = np.abs(codes - expected).max() / max(1e-300, expected.max(initial=0.0))
            different = max(different, float(difference) if expected.any() else codes.max())
    return {
        "problems": n_problems,
        "largest gap": largest,
        "excess over SciPy": worst,
        "largest difference of codes": different,
        "SciPy out of iterations": failures,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=10, help="parts that are timed in turn")
    parser.add_argument("--scipy-rows", type=int, default=60, help="rows of a part for SciPy")
    parser.add_argument("--problems", type=int, default=1000, help="random problems")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in PROBLEMS:
        results[name] = measured(name, options.rows, options.parts, options.scipy_rows)
        print(name, results[name], flush=True)
    results["random problems"] = compared(options.problems)
    print(results["random problems"])
    title = f"Non-negative least squares: {N_ATOMS} atoms of {N_CHANNELS} channels"
    write_report(options.out, {"title": title, "results": results} | circumstances())


if __name__ == "__main__":
    main()
