"""The optimum of a search from seed to seed, the best of five, and two dictionaries merged to one.

Digits and 8 x 8 patches of two photographs, with 64 and 100 atoms; a quarter of the rows is held
out. Spreads and gains are shares of the mean objective of held-out rows. "Best of five" is the fit
with the lowest objective of its own rows, which is all that a user could choose by. "Merged"
searches with the atoms of two fits, removes half of them in three steps, and polishes; "merged,
searched" runs a whole search from these atoms, and "from twice as many" one from twice as many
samples, half of which are removed in the same way.

The consensus of ten fits is compared with that of ten others: the cosine of all matched atoms, and
of those that the first one calls stable.

Usage: python benchmarks/bench_seeds.py spread [--fits 6]
       python benchmarks/bench_seeds.py consensus [--replicates 10]
"""

import argparse
import json
import time
from itertools import combinations

import numpy as np
import torch
from common import RESULTS
from sklearn.datasets import load_digits

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
from skpudle._initialization import initial_atoms
from skpudle.datasets import load_image_patches
from skpudle.metrics import atom_coherence
from skpudle.search import Problem, auto_alpha, search
from skpudle.search.descend import descend, exhaust, first_stride, remaining, settle

SIZES = 64, 100
STEPS, ADAPT = 3, 6  # steps of pruning, and epochs before each
# epochs to solve for codes; after 3 of them the objective of digits is a tenth too large
SOLVE = 15
THRESHOLDS = 0.6, 0.9


def digits():
    """Return 1797 images of 64 pixels."""
    X = load_digits().data
    return X[np.random.default_rng(0).permutation(len(X))]


def parts_of(X):
    """Return the problems of the rows of fits, and of those that are held out."""
    X, n = torch.from_numpy(X), 3 * len(X) // 4
    alpha = auto_alpha(X[:n])
    return Problem(X[:n], alpha), Problem(X[n:], alpha)


def objective(problem, atoms):
    """Return the mean objective of given atoms."""
    codes = problem.no_codes()
    for _ in range(SOLVE):
        epoch = problem.epoch(atoms, codes)
        codes = epoch.codes
    return epoch.objective / len(problem.x)


def pruned(problem, atoms, n_components):
    """Adapt the atoms, and remove those that cost least, in a few steps."""
    codes, share = problem.no_codes(), (n_components / len(atoms)) ** (1 / STEPS)
    for step in range(STEPS):
        for _ in range(ADAPT):
            epoch = problem.epoch(atoms, codes)
            atoms, codes = epoch.improved_atoms(), epoch.codes
        wanted = n_components if step == STEPS - 1 else int(share * len(atoms))
        while len(atoms) > wanted:  # one that took over from another stays
            epoch = problem.epoch(atoms, codes)
            kept = remaining(epoch, len(atoms) - wanted)
            atoms, codes = epoch.atoms[kept], epoch.restrict(kept)
    return atoms


def settled(problem, atoms):
    """Descend to where a search would begin with rounds."""
    atoms = problem.project(atoms)
    coded, _ = exhaust(settle(problem, atoms, first_stride(problem, len(atoms)), 100))
    return coded.atoms


def polished(problem, atoms):
    """Descend on all samples, without rounds."""
    return exhaust(descend(problem, atoms, problem.first_codes(atoms), 60, stall=2e-4)).atoms


def first_atoms(problem, n_components, seed):
    """Draw samples as atoms."""
    return initial_atoms(problem.x, n_components, "data", torch.Generator().manual_seed(seed))


def ways(problem, n_components, fits):
    """Return functions of a number that make a dictionary of two fits, or of twice as many."""

    def both(i):
        return torch.cat([fits[2 * i], fits[2 * i + 1]])

    def twice(i):
        return settled(problem, first_atoms(problem, 2 * n_components, 100 + i))

    return {
        "merged": lambda i: polished(problem, pruned(problem, both(i), n_components)),
        "merged, searched": lambda i: searched(problem, pruned(problem, both(i), n_components)),
        "from twice as many": lambda i: searched(problem, pruned(problem, twice(i), n_components)),
    }


def searched(problem, atoms):
    """Search from given atoms."""
    return search(problem, atoms).atoms


def timed(function, *args):
    """Return a result, and the seconds of the processor."""
    start = time.process_time()
    return function(*args), time.process_time() - start


def agreement(dictionaries):
    """Return the mean cosine of matched atoms."""
    pairs = combinations([atoms.numpy() for atoms in dictionaries], 2)
    return np.mean([atom_coherence(*pair).mean() for pair in pairs])


def spread(name, X, n_components, n_fits):
    """Compare fits from seeds, and what is made of two of them."""
    problem, held_out = parts_of(X)
    fits, seconds = zip(*(
        timed(lambda seed=seed: searched(problem, first_atoms(problem, n_components, seed)))
        for seed in range(n_fits)
    ), strict=True)  # fmt: skip
    own, others = (np.array([objective(p, a) for a in fits]) for p in (problem, held_out))
    fives = [list(five) for five in combinations(range(n_fits), 5)]
    best = np.mean([others[five][own[five].argmin()] for five in fives])
    row = {
        "data": name,
        "n_components": n_components,
        "n_fits": n_fits,
        "spread": others.std() / others.mean(),
        "range": np.ptp(others) / others.mean(),
        "gain_of_best_of_five": 1 - best / others.mean(),
        "cosine": agreement(fits),
        "seconds": np.median(seconds),
    }
    for way, make in ways(problem, n_components, fits).items():
        made, times = zip(*(timed(make, i) for i in range(n_fits // 2)), strict=True)
        values = np.array([objective(held_out, atoms) for atoms in made])
        before = 2 * np.median(seconds) if way.startswith("merged") else 0.0
        row[way] = {
            "gain": 1 - values.mean() / others.mean(),
            "gain_of_own_rows": 1 - np.mean([objective(problem, a) for a in made]) / own.mean(),
            "spread": values.std() / values.mean(),
            "cosine": agreement(made),
            "seconds": before + np.median(times),
        }
    return row


def consensus(name, X, n_components, n_replicates):
    """Compare the consensus of some fits with the consensus of others."""
    row = {"data": name, "n_components": n_components, "n_replicates": n_replicates}
    for resample in ("seeds", "bootstrap"):
        first, second = (
            ConsensusDictionary(
                PUDLEDictionaryLearning(n_components),
                n_replicates,
                resample=resample,
                random_state=seed,
            ).fit(X)
            for seed in range(2)
        )
        cosines = atom_coherence(second.components_, first.components_)
        row[resample] = {"cosine": cosines.mean()}
        for threshold in THRESHOLDS:
            stable = first.stability_ >= threshold
            found = {"share": stable.mean(), "cosine": cosines[stable].mean()}
            row[resample][f"stability of {threshold}"] = found
    return row


def rounded(value):
    """Round the numbers of a nested dictionary."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return value if isinstance(value, str | int) else round(float(value), 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["spread", "consensus"])
    parser.add_argument("--fits", type=int, default=6)
    parser.add_argument("--replicates", type=int, default=10)
    args, found = parser.parse_args(), []
    patches = load_image_patches(n_patches=20000, normalize=False, random_state=0)
    for name, X in {"digits": digits(), "patches": patches}.items():
        for n_components in SIZES if args.part == "spread" else SIZES[:1]:
            if args.part == "spread":
                row = spread(name, X, n_components, args.fits)
            else:
                row = consensus(name, X, n_components, args.replicates)
            found.append(rounded(row))
            print(found[-1], flush=True)
            file = RESULTS / f"seeds_{args.part}.json"
            file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
