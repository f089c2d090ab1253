"""Find the dictionary that generated the data, from samples as initial atoms.

    python benchmarks/bench_samples.py --out benchmarks/results/samples.json

Samples are sums of ``--n-nonzero`` unit-norm Gaussian atoms with noise. All learners start from the
same samples as atoms, make as many passes over the data, and have the same penalty. An atom counts
as found if some learned one has a coherence above 0.95 with it. The error is the Frobenius distance
of the matched dictionary, relative to the truth.
"""

import argparse
import time
import warnings
from functools import partial

import numpy as np
import torch
from common import circumstances, write_report
from sklearn.decomposition import MiniBatchDictionaryLearning

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.initialization import initial_atoms
from skpudle.metrics import dictionary_error

BATCH = 256


def skpudle(samples, atoms, alpha, n_passes, **params):
    common = dict(alpha=alpha, batch_size=BATCH, max_iter=n_passes, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(len(atoms), dict_init=atoms, **common, **params)
    return learner.fit(samples).components_


def scikit_learn(samples, atoms, alpha, n_passes):
    learner = MiniBatchDictionaryLearning(
        len(atoms),
        alpha=alpha,
        batch_size=BATCH,
        max_iter=n_passes,
        max_no_improvement=None,
        tol=0,
        dict_init=atoms,
        random_state=0,
    )
    return learner.fit(samples).components_


def spams(samples, atoms, alpha, n_passes):
    import spams

    columns, start = np.asfortranarray(samples.T), np.asfortranarray(atoms.T)
    options = dict(lambda1=alpha, batchsize=BATCH, iter=n_passes * -(-len(samples) // BATCH))
    threads = torch.get_num_threads()
    return spams.trainDL(columns, D=start, numThreads=threads, verbose=False, **options).T


DEC, SURROGATE = dict(gradient="dec"), dict(optimizer="surrogate")
LEARNERS = {
    "skpudle: dec, surrogate, lasso codes": partial(skpudle, n_unfoldings=None, **DEC | SURROGATE),
    "skpudle: dec, surrogate": partial(skpudle, **DEC | SURROGATE),
    "skpudle: ae-ls, surrogate": partial(skpudle, **SURROGATE),
    "skpudle: dec, adam": partial(skpudle, **DEC),
    "skpudle: ae-ls, adam (the defaults)": skpudle,
    "SPAMS trainDL": spams,
    "scikit-learn MiniBatchDictionaryLearning": scikit_learn,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=3000, help="samples")
    parser.add_argument("--m", type=int, default=50, help="features")
    parser.add_argument("--p", type=int, default=60, help="atoms")
    parser.add_argument("--n-nonzero", type=int, default=3)
    parser.add_argument("--snr-db", type=float, default=20)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="number of problems")
    parser.add_argument("--only", nargs="+", help="parts of the names of those to run")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()

    problems = []
    for seed in range(options.seeds):
        samples, truth, _ = make_dictionary_data(
            options.n,
            options.m,
            options.p,
            n_nonzero=options.n_nonzero,
            snr_db=options.snr_db,
            random_state=seed,
        )
        generator = torch.Generator().manual_seed(seed)
        atoms = initial_atoms(torch.from_numpy(samples), options.p, "data", generator)
        problems.append((samples, truth, atoms.numpy()))
    report = {
        "title": "Finding a dictionary from samples as atoms",
        "options": vars(options),
        **circumstances(),
        "results": [],
    }
    for name, learn in LEARNERS.items():
        if options.only and not any(part in name for part in options.only):
            continue
        for alpha in options.alphas:
            found, errors, seconds = [], [], []
            for samples, truth, atoms in problems:
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    learned = learn(samples, atoms, alpha, options.passes)
                seconds.append(time.perf_counter() - start)
                learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
                found.append(float((np.abs(truth @ learned.T).max(axis=1) > 0.95).mean()))
                errors.append(float(dictionary_error(learned, truth, match=True)))
            row = {"name": name, "alpha": alpha, "atoms found": np.mean(found).item()}
            row |= {"relative error": np.mean(errors).item(), "seconds": np.mean(seconds).item()}
            report["results"].append(row)
            print(row, flush=True)
            write_report(options.out, report)


if __name__ == "__main__":
    main()
