"""Count planted atoms that are found, against the noise and against the number of rows.

    python benchmarks/bench_found.py                   # resumes where it was interrupted
    python benchmarks/bench_found.py --seeds 0 --part noise --out found.json

Rows of 40 features are sums of 4 of 60 atoms, with moduli of 1 to 2 and random signs, and Gaussian
noise. An atom is found if a learned one has a cosine with it above 0.95 in absolute value. The
noise varies with 12,000 rows, and the rows vary at 20 dB and at 0 dB. The learners:

- the default `PUDLEDictionaryLearning(60)`, which is told nothing more;
- the same with the penalty at which its search begins, 0.07 times the root mean square norm of a
  row;
- `spams.trainDL` with its authors' usual penalty, 1.2 / sqrt(n_features) for rows of norm one, here
  times the root mean square norm, in 1000 batches of 256 rows, or in 20 passes if that is longer;
- the best of four fits by SPAMS, with a quarter, a half, one and two times that penalty. The best
  one is chosen by the true atoms, which no user knows; the seconds are those of all four;
- approximate K-SVD of dictlearn with its defaults, which is told that 4 atoms make a row.

Seconds are CPU time.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, circumstances, write_report

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import recovery_rate

N_FEATURES, N_ATOMS, N_NONZERO, THRESHOLD = 40, 60, 4, 0.95
N_ROWS = 12_000
CASES = {  # part: (dB, rows)
    "noise": [(snr_db, N_ROWS) for snr_db in (20, 10, 5, 2, 0, -3, -6)],
    "rows": [(snr_db, n) for snr_db in (20, 0) for n in (300, 1000, 3000, 10_000, 30_000)],
}
MULTIPLES = (0.25, 0.5, 1.0, 2.0)
BATCH, N_BATCHES, N_PASSES = 256, 1000, 20


def norm_of_rows(X):
    return float(np.sqrt(np.square(X).sum(axis=1).mean()))


def learn_by_default(X, seed):
    """Return the atoms, and the penalty as a share of the norm of rows."""
    learner = PUDLEDictionaryLearning(N_ATOMS, random_state=seed).fit(X)
    return learner.components_, learner.search_alpha_ / norm_of_rows(X)


def learn_at_first_penalty(X, seed):
    alpha = 0.07 * norm_of_rows(X)
    learner = PUDLEDictionaryLearning(N_ATOMS, alpha=alpha, random_state=seed).fit(X)
    return learner.components_, 0.07


def learn_by_spams(X, seed, multiple=1.0):
    import spams

    start = np.random.default_rng(seed).choice(X, N_ATOMS, replace=False)
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    size = min(BATCH, len(X))
    share = multiple * 1.2 / np.sqrt(N_FEATURES)
    atoms = spams.trainDL(
        np.asfortranarray(X.T),
        D=np.asfortranarray(start.T),
        lambda1=share * norm_of_rows(X),
        batchsize=size,
        iter=max(N_BATCHES, N_PASSES * -(-len(X) // size)),
        numThreads=1,
        verbose=False,
    )
    return np.ascontiguousarray(atoms.T), share


def learn_by_ksvd(X, seed):
    from dictlearn import DictionaryLearning

    learner = DictionaryLearning(N_ATOMS, n_nonzero_coefs=N_NONZERO, random_state=seed).fit(X)
    return learner.components_, None


def timed_row(learn, X, truth, seed, **options):
    """Return the share of atoms found, the penalty and the seconds."""
    start = time.process_time()
    atoms, penalty = learn(X, seed, **options)
    seconds = time.process_time() - start
    found = recovery_rate(atoms, truth, threshold=THRESHOLD)
    return {"found": found, "penalty": penalty, "seconds": seconds}


OURS, USUAL, BEST = "skpudle", "SPAMS, usual penalty", "SPAMS, best of four"
METHODS = {
    OURS: learn_by_default,
    "skpudle, first penalty": learn_at_first_penalty,
    USUAL: learn_by_spams,
    "K-SVD, told the sparsity": learn_by_ksvd,
}


def rows_of(snr_db, n, seed):
    """Yield the figures of each learner on a data set."""
    X, truth, _ = make_dictionary_data(
        n, N_FEATURES, N_ATOMS, N_NONZERO, snr_db=snr_db, random_state=seed
    )
    case = {"dB": snr_db, "rows": n, "seed": seed}
    for method, learn in METHODS.items():
        try:
            row = timed_row(learn, X, truth, seed)
        except ImportError as error:
            print(f"{method} left out: {error}", flush=True)
            continue
        yield case | {"method": method} | row
        if method == USUAL:
            others = [
                timed_row(learn, X, truth, seed, multiple=multiple)
                for multiple in MULTIPLES
                if multiple != 1
            ]
            best = max([row, *others], key=lambda each: each["found"])
            seconds = sum(each["seconds"] for each in [row, *others])
            yield case | {"method": BEST} | best | {"seconds": seconds}


def print_means(rows):
    """Print the mean share and seconds of all seeds for each case and learner."""
    for snr_db, n in dict.fromkeys((r["dB"], r["rows"]) for r in rows):
        cells = []
        for method in dict.fromkeys(r["method"] for r in rows):
            key = snr_db, n, method
            own = [r for r in rows if (r["dB"], r["rows"], r["method"]) == key]
            found, seconds = (np.mean([r[name] for r in own]) for name in ("found", "seconds"))
            cells.append(f"{method} {found:.0%} ({seconds:.1f} s)")
        print(f"{snr_db} dB, {n} rows: {', '.join(cells)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=RESULTS / "found.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of convergence: the atoms are judged anyway
    report = {"title": "Planted atoms that are found", "results": []}
    if options.out.exists():
        report = json.loads(options.out.read_text())
    report |= circumstances()
    done = {(r["dB"], r["rows"], r["seed"]) for r in report["results"]}
    learn_by_default(
        make_dictionary_data(500, N_FEATURES, N_ATOMS, random_state=0)[0], 0
    )  # compiles
    for seed in options.seeds:
        for snr_db, n in (case for part in options.part for case in CASES[part]):
            if (snr_db, n, seed) in done:
                continue
            rows = []
            for row in rows_of(snr_db, n, seed):
                rows.append(row)
                print(row, flush=True)
            report["results"] += rows
            write_report(options.out, report)
    print_means(report["results"])


if __name__ == "__main__":
    main()
