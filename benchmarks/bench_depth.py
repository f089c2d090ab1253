"""The distance to the generating dictionary over the number of unfoldings, for each gradient.

Data of a known dictionary, a start near it, and training by ``dec``, ``ae-lasso`` and ``ae-ls``,
each through the same encoder, at the defaults of training. Errors are relative to the norm of the
dictionary, after matching. Codes are those of the trained encoder; the explained share of the
variance is that of 1000 other rows. Rows of the JSON are means over seeds, with the smallest and
the largest error.

Usage: python benchmarks/bench_depth.py [--depths 1 2 3 5 10 25 50 100] [--seeds 5] [--out FILE]
"""

from itertools import product

import numpy as np
from common import Report, parse

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error

GRADIENTS = "dec", "ae-lasso", "ae-ls"
NOISES = None, 20  # dB
START = 0.5  # relative error of the first dictionary


def problem(seed, snr_db):
    """Return training rows, other rows, the generating dictionary, and a start near it."""
    X, truth, _ = make_dictionary_data(
        2000, 50, 80, 4, sign="sample", snr_db=snr_db, random_state=seed
    )
    return (
        X[:1000],
        X[1000:],
        truth,
        perturb_dictionary(truth, START, random_state=100 + seed),
    )


def run(seed, snr_db, depth, gradient):
    """Train once; return the error of the dictionary and the explained share of other rows."""
    X, others, truth, start = problem(seed, snr_db)
    learner = PUDLEDictionaryLearning(
        gradient=gradient,
        alpha=0.2,
        n_unfoldings=depth,
        dict_init=start,
        random_state=seed,
    ).fit(X)
    residual = others - learner.inverse_transform(learner.transform(others))
    return {
        "seed": seed,
        "snr_db": snr_db,
        "unfoldings": depth,
        "gradient": gradient,
        "error": dictionary_error(learner.components_, truth, match=True),
        "explained": 1 - (residual**2).sum() / (others**2).sum(),
    }


def summary(runs):
    """Return one row for each noise, depth and gradient."""
    rows, groups = [], {}
    for r in runs:
        key = r["snr_db"] or 0, r["unfoldings"], GRADIENTS.index(r["gradient"])
        groups.setdefault(key, []).append(r)
    for (noise, depth, rule), group in sorted(groups.items()):
        errors = [r["error"] for r in group]
        rows.append({
            "noise": f"{noise} dB" if noise else "none", "unfoldings": depth,
            "gradient": GRADIENTS[rule], "error": np.mean(errors), "smallest error": min(errors),
            "largest error": max(errors), "explained": np.mean([r["explained"] for r in group]),
            "seeds": len(errors),
        })  # fmt: skip
    return rows


def main():
    given = parse(__doc__, "depth.json", depths=[1, 2, 3, 5, 10, 25, 50, 100], seeds=5)
    keys = "seed", "snr_db", "unfoldings", "gradient"
    report = Report(
        given.out, *keys, rows="runs", title="Depth and the generating dictionary"
    )
    for case in product(range(given.seeds), NOISES, given.depths, GRADIENTS):
        report.measure(run, *case)
        report.write(results=summary(report.rows))


if __name__ == "__main__":
    main()
