"""Time non-negative least squares against scipy.optimize.nnls.

    python benchmarks/bench_nnls.py --out benchmarks/results/nnls.json

Mixtures of non-negative spectra, whose common part sets the cosine of two spectra, and Gaussian
atoms and data. Times are processor time of one thread, medians over parts of the rows in turn, so
that other work on the machine affects all alike. SciPy solves a few rows of each part. All rows
have a certificate, which is part of the time. "lasso" is `solve_lasso` with a tiny penalty. "excess
over SciPy" is the largest difference of objectives, relative to the squared data.
"""

import numpy as np
import torch
from common import Report, parse, timed, unit
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
            atom += rng.uniform(0.3, 1) * np.exp(
                -0.5 * ((channels - centre) / width) ** 2
            )
    atoms = unit((1 - cosine) ** 0.5 * unit(atoms) + (cosine / N_CHANNELS) ** 0.5)
    x = (rng.gamma(1.5, size=(n, N_ATOMS)) * (rng.random((n, N_ATOMS)) < 0.1)) @ atoms
    return atoms, x + noise * x.std() * rng.standard_normal(x.shape)


def gaussian(n, *, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N_ATOMS, N_CHANNELS)), rng.standard_normal(
        (n, N_CHANNELS)
    )


PROBLEMS = {
    "spectra": lambda n: spectra(n, cosine=0.0, noise=0.01, seed=0),
    "spectra, cosine 0.9": lambda n: spectra(n, cosine=0.9, noise=0.01, seed=0),
    "spectra, cosine 0.99": lambda n: spectra(n, cosine=0.99, noise=0.01, seed=0),
    "spectra, cosine 0.99, noisy": lambda n: spectra(n, cosine=0.99, noise=0.3, seed=0),
    "Gaussian": lambda n: gaussian(n, seed=0),
}


def milliseconds(solve, rows, **options):
    """Return milliseconds a row, and the result."""
    found, seconds = timed(solve, rows, **options)
    return seconds / len(rows) * 1e3, found


def excess(atoms, x, codes, other):
    """Return how much larger objectives are than of other codes, relative to the data."""
    found, best = (np.square(x - z @ atoms).sum(1) for z in (codes, other))
    return float(((found - best) / np.square(x).sum(1)).max())


def measured(name, n, n_parts, n_scipy):
    atoms, x = PROBLEMS[name](n)
    penalty = 1e-9 * float(np.abs(x @ atoms.T).max())
    rng, times, gaps, sizes, worst = np.random.default_rng(0), [], [], [], -np.inf
    solve_nnls(atoms, x[:100])  # compiles

    def ours(rows, weights=None):
        return solve_nnls(atoms, rows, weights=weights)

    def by_scipy(rows):
        return np.stack([nnls(atoms.T, row)[0] for row in rows])

    def lasso(rows):
        return solve_lasso(torch.from_numpy(atoms), rows, penalty, positive=True)

    for part in np.array_split(x, n_parts):
        few, some = part[:n_scipy], part[:2000]
        weights = rng.uniform(0.5, 1, some.shape)
        own, (codes, gap) = milliseconds(ours, part)
        others, expected = milliseconds(by_scipy, few)
        weighted, (_, weighted_gap) = milliseconds(ours, some, weights=weights)
        of_lasso, _ = milliseconds(lasso, torch.from_numpy(some))
        times.append([own, others, others / own, of_lasso, weighted])
        gaps.append([gap.max(), weighted_gap.max()])
        sizes.append((codes > 0).sum(1).mean())
        worst = max(worst, excess(atoms, few, codes[: len(few)], expected))
    keys = (
        "ms a row",
        "SciPy ms a row",
        "SciPy over ours",
        "lasso ms a row",
        "weighted ms a row",
    )
    largest = zip(("largest gap", "largest gap, weighted"), np.max(gaps, axis=0))
    row = {"name": name, "rows": n, "atoms in a code": float(np.mean(sizes))}
    return (
        row
        | dict(zip(keys, np.median(times, axis=0)))
        | dict(largest)
        | {"excess over SciPy": worst}
    )


def main():
    given = parse(__doc__, rows=100_000, parts=10, scipy_rows=60)
    title = f"Non-negative least squares: {N_ATOMS} atoms of {N_CHANNELS} channels"
    report = Report(given.out, title=title)
    for name in PROBLEMS:
        report.add(measured(name, given.rows, given.parts, given.scipy_rows))


if __name__ == "__main__":
    main()
