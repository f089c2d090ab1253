"""Recover the concepts in activations of a network, from a known dictionary.

The data of "Stop Probing, Start Coding: Why Linear Probes and Sparse Autoencoders Fail at
Compositional Generalisation" (arXiv:2603.28744): k = 10 of p latents are active, with amplitudes
Uniform(0, 1), and mixed by Gaussian unit atoms in m = ceil(2 k ln(p / k)) dimensions, without
noise. In distribution latent 0 occurs with the first half of the others in half of the samples;
out of distribution it occurs with the second half only. The score (MCC) is the mean of the absolute
correlations of true and inferred codes, over latents that vary, matched by the Hungarian algorithm.
Codes solve the non-negative lasso with the penalty 0.1. The search learns with this penalty, or
with one of five that is chosen by ``score``: hidden entries of a tenth of the samples, predicted by
a dictionary of the others.

Usage: python benchmarks/bench_concepts.py [--sizes 100 500 1000] [--samples 2500] [--seeds 3]
"""

import time
from itertools import product
from math import ceil, log

import numpy as np
import torch
from common import Report, parse, spams_atoms, timed, unit

from skpudle import PUDLEDictionaryLearning
from skpudle._initialization import initial_atoms
from skpudle.lasso import solve_lasso
from skpudle.metrics import atom_coherence
from skpudle.search import Problem, search
from skpudle.search.descend import refit_atoms

ACTIVE = 10
ALPHA = 0.1
LEARNED_WITH = 0.1, 0.07, 0.05, 0.03, 0.02
# means of three seeds out of distribution, for 2500 training samples
PUBLISHED = {
    "true dictionary": {100: 0.986, 500: 0.992, 1000: 0.993, 5000: 0.992},
    "DL-FISTA": {100: 0.945, 500: 0.955, 1000: 0.475, 5000: 0.262},
    "TopK autoencoder": {100: 0.705, 500: 0.212, 1000: 0.191, 5000: 0.344},
    "ReLU autoencoder": {100: 0.413, 500: 0.218, 1000: 0.183, 5000: 0.225},
    "matching pursuit autoencoder": {100: 0.349, 500: 0.149, 1000: 0.143, 5000: 0.296},
}


def draw_latents(n, p, *, shifted, rng):
    """Return latents of shape (n, p), out of distribution if ``shifted``."""
    half = p - p // 2
    z = np.zeros((n, p))
    for row in z:
        if shifted:
            active = [0, *rng.choice(np.arange(half, p), ACTIVE - 1, replace=False)]
        elif rng.random() < 0.5:
            active = [0, *rng.choice(np.arange(1, half), ACTIVE - 1, replace=False)]
        else:
            active = rng.choice(np.arange(1, p), ACTIVE, replace=False)
        row[active] = rng.uniform(0, 1, ACTIVE)
    return z


def search_atoms(x, p, seed, *, alpha=ALPHA, debiased=False):
    generator = torch.Generator().manual_seed(seed)
    atoms = initial_atoms(torch.from_numpy(x), p, "data", generator)
    problem = Problem(torch.from_numpy(x), alpha, positive_code=True)
    coded = search(problem, atoms).coded
    return (
        refit_atoms(problem, coded.atoms, coded.codes) if debiased else coded.atoms
    ).numpy()


def search_by_score(x, p, seed):
    rest, hidden = x[len(x) // 10 :], x[: len(x) // 10]

    def score(alpha):
        atoms = search_atoms(rest, p, seed, alpha=alpha)
        learner = PUDLEDictionaryLearning.from_components(
            atoms, alpha=alpha, positive_code=True
        )
        return learner.score(hidden)

    return search_atoms(x, p, seed, alpha=max(LEARNED_WITH, key=score))


def run(p, n, seed, *, with_spams):
    rng = np.random.default_rng(seed)
    atoms = unit(rng.standard_normal((p, ceil(2 * ACTIVE * log(p / ACTIVE)))))
    x = draw_latents(n, p, shifted=False, rng=rng) @ atoms
    latents = draw_latents(2500, p, shifted=True, rng=rng)
    methods = {
        "true dictionary": lambda: atoms,
        "search": lambda: search_atoms(x, p, seed),
    }
    methods["search, debiased"] = lambda: search_atoms(x, p, seed, debiased=True)
    methods["search, penalty by score"] = lambda: search_by_score(x, p, seed)
    if with_spams:
        methods["SPAMS, 20 passes"] = lambda: spams_atoms(x, p, ALPHA, positive=True)
    for name, method in methods.items():
        start = time.perf_counter()
        found, cpu = timed(method)
        seconds = time.perf_counter() - start
        dictionary, rows = torch.from_numpy(found), torch.from_numpy(latents @ atoms)
        codes = solve_lasso(dictionary, rows, ALPHA, positive=True, certify=False)[
            0
        ].numpy()
        # columns without their means, whose cosines are correlations, of latents that vary
        varying = latents[:, np.ptp(latents, axis=0) > 0]
        columns = [(array - array.mean(0)).T for array in (codes, varying)]
        coherence = np.abs(found @ atoms.T).max(0)
        yield {
            "method": name, "p": p, "n": n, "seed": seed,
            "mcc_ood": round(atom_coherence(*columns).mean(), 4),
            "found": float((coherence > 0.95).mean()),
            "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
        }  # fmt: skip


def main():
    given = parse(__doc__, "concepts.json", sizes=[100, 500, 1000], samples=2500, seeds=3,
                  spams=False)  # fmt: skip
    search_atoms(np.random.default_rng(0).standard_normal((50, 5)), 6, 0)  # compiles
    report = Report(given.out, "method", "p", "n", "seed", published=PUBLISHED)
    for p, seed in product(given.sizes, range(given.seeds)):
        report.extend(run(p, given.samples, seed, with_spams=given.spams))


if __name__ == "__main__":
    main()
