"""n_components="auto" on data of known dictionaries: the number, the atoms, and the time.

Twelve problems, of 12 to 200 atoms: no noise to 10 dB, missing entries, non-negative codes and
atoms, counts, and atoms whose use falls by Zipf's law with exponents of 0.5 to 1. Times are those
of one processor core, with "auto" and with the number that it chose.

Usage: python benchmarks/bench_sizes.py [--seeds 2]
"""

from functools import partial
from itertools import product

import numpy as np
from common import Report, parse, timed

from skpudle import CountDictionaryLearning, PUDLEDictionaryLearning
from skpudle.metrics import atom_coherence

# atoms, features, atoms in a sample, samples, decibels of noise
PROBLEMS = {
    "no noise": (12, 20, 2, 600, None, {}),
    "10 dB": (20, 30, 3, 1500, 10, {}),
    "few atoms": (12, 64, 2, 1000, 15, {}),
    "20 dB": (60, 50, 4, 3000, 20, {}),
    "100 atoms": (100, 64, 4, 4000, 20, {}),
    "200 atoms": (200, 100, 5, 8000, 15, {}),
    "Zipf 0.5, 10 dB": (100, 64, 4, 6000, 10, {"zipf": 0.5}),
    "Zipf 0.7, no noise": (48, 64, 3, 4000, None, {"zipf": 0.7}),
    "Zipf 1": (40, 64, 3, 3000, 20, {"zipf": 1.0}),
    "a fifth is missing": (60, 50, 4, 3000, 20, {"missing": 0.2}),
    "non-negative": (30, 40, 3, 2000, 20, {"positive": True}),
    "counts": (20, 40, 2, 3000, None, {"counts": True}),
}


def draw(n_atoms, n_features, n_nonzero, n, decibels, kind, *, seed):
    """Return samples and atoms."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n_atoms, n_features))
    if kind.get("positive"):
        atoms = np.abs(atoms) * (rng.random(atoms.shape) < 0.3) + 1e-3
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.uniform(1, 2, (n, n_atoms))
    codes *= 1 if kind.get("positive") else rng.choice([-1, 1], codes.shape)
    luck = rng.gumbel(size=codes.shape) - kind.get("zipf", 0) * np.log(
        np.arange(1, n_atoms + 1)
    )
    codes[(-luck).argsort(axis=1).argsort(axis=1) >= n_nonzero] = 0
    X = codes @ atoms
    if decibels is not None:
        X += X.std() * 10 ** (-decibels / 20) * rng.standard_normal(X.shape)
    if "missing" in kind:
        X[rng.random(X.shape) < kind["missing"]] = np.nan
    if "counts" in kind:
        X = rng.poisson(np.exp(X + 3)).astype(float)
    return X, atoms


def main():
    given = parse(__doc__, "sizes.json", seeds=2)
    report = Report(given.out, title="Numbers of atoms that are chosen")
    PUDLEDictionaryLearning("auto").fit(
        np.random.default_rng(0).standard_normal((50, 5))
    )
    for (name, problem), seed in product(PROBLEMS.items(), range(given.seeds)):
        X, atoms = draw(*problem, seed=seed)
        kind = problem[-1]
        options = dict.fromkeys(
            ("positive_code", "positive_dict"), kind.get("positive", False)
        )
        make = CountDictionaryLearning if "counts" in kind else PUDLEDictionaryLearning
        make = partial(make, random_state=seed, **options)
        learner, seconds = timed(make("auto").fit, X)
        fixed = make(learner.n_components_)
        coherences = atom_coherence(learner.components_, atoms)
        row = {"problem": name, "seed": seed, "planted": len(atoms)}
        row |= {"chosen": learner.n_components_, "found": (coherences > 0.95).mean()}
        row |= {"mean_coherence": coherences.mean(), "seconds": seconds}
        report.add(row | {"seconds_of_that_number": timed(fixed.fit, X)[1]})


if __name__ == "__main__":
    main()
