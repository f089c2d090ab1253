"""Time small problems: one row, and passes over the digits.

    python benchmarks/bench_small.py --out benchmarks/results/small.json

* ``one row``: `transform` of one sample of 64 features, by 100 atoms and by 50 components of a PCA;
  medians of 1000 calls in turn.
* ``passes over the digits``: 20 of them, in batches of 256, with codes of the lasso and the
  surrogate, and as many updates of `spams.trainDL` from the same 100 samples; the least CPU time of
  ``--repeats`` runs, taken in turn.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
from common import circumstances, write_report
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from skpudle import PUDLEDictionaryLearning

ALPHA, N_PASSES, BATCH = 0.1, 20, 256


def digits():  # -> rows of mean square norm 1, 100 of them as atoms
    X = load_digits().data
    X = X - X.mean(axis=0)
    X /= np.sqrt((X**2).sum(axis=1).mean())
    atoms = X[np.random.default_rng(0).permutation(len(X))[:100]]
    return X, atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def one_row(X, atoms):
    options = dict(alpha=ALPHA, dict_init=atoms, max_iter=1, tol=None)
    learners = {
        "PCA": PCA(50),
        "20 unfoldings": PUDLEDictionaryLearning(100, n_unfoldings=20, **options),
        "lasso": PUDLEDictionaryLearning(100, n_unfoldings=None, **options),
        "defaults": PUDLEDictionaryLearning(100, random_state=0),
    }
    seconds = {name: [] for name in learners}
    for learner in learners.values():
        learner.fit(X).transform(X[:1])  # do not time compilation
    for _ in range(1000):
        for name, learner in learners.items():
            start = time.perf_counter()
            learner.transform(X[:1])
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        yield {"task": "one row", "name": name, "milliseconds": 1e3 * statistics.median(values)}


def passes(X, atoms, repeats):
    import spams

    learner = PUDLEDictionaryLearning(
        100,
        alpha=ALPHA,
        gradient="dec",
        optimizer="surrogate",
        n_unfoldings=None,
        batch_size=BATCH,
        max_iter=N_PASSES,
        tol=None,
        dict_init=atoms,
        random_state=0,
    )
    columns, atom_columns = np.asfortranarray(X.T), np.asfortranarray(atoms.T)
    n_updates = N_PASSES * -(-len(X) // BATCH)
    how = dict(lambda1=ALPHA, iter=n_updates, batchsize=BATCH, verbose=False)
    runs = {
        "skpudle": lambda: learner.fit(X),
        "SPAMS": lambda: spams.trainDL(columns, D=atom_columns, numThreads=1, **how),
    }
    seconds = {name: [] for name in runs}
    for _ in range(repeats + 1):  # the first is not counted
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        milliseconds = 1e3 * min(values[1:])
        yield {"task": "passes over the digits", "name": name, "milliseconds": milliseconds}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    X, atoms = digits()
    report = {"title": "One row, and passes over the digits", **circumstances(), "results": []}
    for row in [*one_row(X, atoms), *passes(X, atoms, options.repeats)]:
        report["results"].append(row)
        print(row, flush=True)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
