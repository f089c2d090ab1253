"""Learn spectra that add from Poisson counts: `skpudle.PoissonNMF` against NMF.

    python benchmarks/bench_additive.py

Planted spectra have two to four lines of random widths and a background; their amounts are sparse.
For each problem: the Kullback-Leibler divergence of the rates from the true rates, a share of all
events; the mean cosine of atoms and true spectra; seconds of CPU time for `fit_transform`. NMF,
``solver="mu"``, is at its best for each figure over 20 to 600 iterations and two initialisations,
which a user cannot choose; its time is for 200 iterations.
"""

from itertools import product

import numpy as np
from common import Report, matched, parse, timed
from scipy.special import xlogy
from sklearn.decomposition import NMF

from skpudle import PoissonNMF

SIZES = [(200, 100, 4), (200, 400, 8), (500, 300, 8), (2000, 200, 6)]


def planted(seed, n, m, p, counts, density=0.4):
    """Return counts, rates and spectra."""
    rng = np.random.default_rng(seed)
    axis, atoms = np.arange(m), []
    for _ in range(p):
        atom = 0.2 / m + 0.1 * np.exp(-axis / 80)
        for _ in range(rng.integers(2, 5)):
            place, width = rng.uniform(5, m - 5), rng.uniform(1.5, 5)
            atom += rng.uniform(0.3, 1) * np.exp(
                -((axis - place) ** 2) / (2 * width**2)
            )
        atoms.append(atom / atom.sum())
    codes = rng.gamma(1.0, 1.0, (n, p)) * (rng.random((n, p)) < density)
    codes[codes.sum(1) == 0, 0] = 0.5
    rates = codes * counts / codes.sum(1).mean() @ np.array(atoms)
    return rng.poisson(rates).astype(float), rates, np.array(atoms)


def divergence(rates, found):
    found = np.maximum(found, 1e-12)
    return float((xlogy(rates, rates / found) - rates + found).sum() / rates.sum())


def cosine(atoms, found):
    return float(matched(found, atoms)[1].mean())


def of_nmf(X, rates, atoms):
    errors, cosines, taken = [], [], 0.0
    for init in ("nndsvda", "random"):
        for max_iter in (20, 50, 200, 600):
            nmf = NMF(len(atoms), beta_loss="kullback-leibler", solver="mu", init=init, tol=0,
                      max_iter=max_iter, random_state=0)  # fmt: skip
            codes, seconds = timed(nmf.fit_transform, X)
            taken = seconds if max_iter == 200 else taken
            errors.append(divergence(rates, codes @ nmf.components_))
            cosines.append(cosine(atoms, nmf.components_))
    return min(errors), max(cosines), taken


def of_ours(X, rates, atoms, **params):
    learner = PoissonNMF(len(atoms), random_state=0, **params)
    codes, seconds = timed(learner.fit_transform, X)
    found = divergence(rates, learner.inverse_transform(codes))
    return found, cosine(atoms, learner.components_), seconds


def main():
    report = Report(parse(__doc__).out, title="Spectra that add")
    of_ours(*planted(0, 50, 30, 2, 50))  # compiles
    for (n, m, p), counts, seed in product(SIZES, (50, 200, 1000), (0, 1, 2)):
        row = {"rows": n, "channels": m, "spectra": p, "counts": counts, "seed": seed}
        problem = planted(seed, n, m, p, counts)
        for name, learn in (("ours", of_ours), ("NMF", of_nmf)):
            figures = zip(("divergence", "cosine", "seconds"), learn(*problem))
            row |= {f"{figure}, {name}": value for figure, value in figures}
        report.add(row)


if __name__ == "__main__":
    main()
