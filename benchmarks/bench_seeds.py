"""The consensus of ten fits, and that of ten others: do they agree?

Digits and 8 x 8 patches of two photographs, with 64 atoms. The cosine of all matched atoms, and of
those that the first one calls stable.

Usage: python benchmarks/bench_seeds.py [--replicates 10]
"""

from itertools import product

import numpy as np
from common import Report, parse
from sklearn.datasets import load_digits

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
from skpudle.datasets import load_image_patches
from skpudle.metrics import atom_coherence

N_COMPONENTS = 64
THRESHOLDS = 0.6, 0.9


def compare(X, n_replicates, resample):
    """Compare the consensus of some fits with the consensus of others."""
    learner = PUDLEDictionaryLearning(N_COMPONENTS)
    first, second = (
        ConsensusDictionary(
            learner, n_replicates, resample=resample, random_state=seed
        ).fit(X)
        for seed in range(2)
    )
    cosines = atom_coherence(second.components_, first.components_)
    found = {"cosine": cosines.mean()}
    for threshold in THRESHOLDS:
        stable = first.stability_ >= threshold
        found[f"share with stability of {threshold}"] = stable.mean()
        found[f"their cosine, {threshold}"] = cosines[stable].mean()
    return found


def main():
    given = parse(__doc__, "seeds_consensus.json", replicates=10)
    report = Report(given.out, "data", "resample")
    digits = load_digits().data
    rows = {
        "digits": digits[np.random.default_rng(0).permutation(len(digits))],
        "patches": load_image_patches(n_patches=20000, normalize=False, random_state=0),
    }
    for (name, X), resample in product(rows.items(), ("seeds", "bootstrap")):
        row = {
            "data": name,
            "n_components": N_COMPONENTS,
            "n_replicates": given.replicates,
        }
        found = compare(X, given.replicates, resample)
        report.add(row | {"resample": resample} | found)


if __name__ == "__main__":
    main()
