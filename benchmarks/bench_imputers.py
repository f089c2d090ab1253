"""Compare imputers on tables of numbers that come with packages.

    python benchmarks/bench_imputers.py               # tables of the packages that are installed
    python benchmarks/bench_imputers.py --data DIR    # and of unpacked packages, as bench_tables.py
    python benchmarks/bench_imputers.py --every 11 --first 5 --seeds 0 1

Tables are those of `bench_tables` with 5 to 100 columns and at least 200 rows, each ``--every``-th
of them from the ``--first``-th on, and at most 2,000 rows of each. A tenth or three tenths of the
entries are hidden, at random. The error is the root mean square error of the hidden entries, each
in standard deviations of its column: 1 for column means. Imputers are at their defaults, of skpudle
and of scikit-learn. Seconds are CPU time. A run that is interrupted goes on where it ended.
``results`` in the file are means over tables and seeds, and in how many tables the mean error of
each imputer is at most 0.02 above that of IterativeImputer.
"""

import warnings
from itertools import product

import numpy as np
from bench_tables import read_tables
from common import Report, parse, timed
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from skpudle import DictionaryImputer

LEAST_COLUMNS, MOST_COLUMNS, LEAST_ROWS, MOST_ROWS = 5, 100, 200, 2000
GAPS = 0.1, 0.3
# Two errors are level if they differ by at most this number of standard deviations.
LEVEL = 0.02
IMPUTERS = {
    "DictionaryImputer": DictionaryImputer,
    "IterativeImputer": IterativeImputer,
    "KNNImputer": lambda random_state: KNNImputer(),
}


def measure(name, fraction, seed, X):
    """Return the row of one table with a fraction of its entries hidden."""
    rng = np.random.default_rng(seed)
    X = X[rng.permutation(len(X))[:MOST_ROWS]]
    X = X[:, X.std(axis=0) > 0]
    hidden = rng.random(X.shape) < fraction
    row = {"table": name, "gaps": fraction, "seed": seed}
    row |= {"rows": len(X), "columns": X.shape[1]}
    for imputer, make in IMPUTERS.items():
        learner = make(random_state=seed)
        filled, seconds = timed(learner.fit_transform, np.where(hidden, np.nan, X))
        errors = ((filled - X) / X.std(axis=0))[hidden]
        row[imputer] = {"error": float(np.mean(errors**2) ** 0.5), "seconds": seconds}
    return row


def summarise(rows):
    """Return a row for each imputer and fraction of gaps, over tables and seeds."""
    summary = []
    for fraction, imputer in product(GAPS, IMPUTERS):
        errors = {}
        seconds = []
        for row in rows:
            if row["gaps"] == fraction:
                pair = [row[name]["error"] for name in (imputer, "IterativeImputer")]
                errors.setdefault(row["table"], []).append(pair)
                seconds.append(row[imputer]["seconds"])
        means = np.array([np.mean(pairs, axis=0) for pairs in errors.values()])
        summary.append(
            {
                "gaps": fraction,
                "imputer": imputer,
                "error, mean": means[:, 0].mean(),
                "tables": len(means),
                "tables level with IterativeImputer": int(
                    (means[:, 0] <= means[:, 1] + LEVEL).sum()
                ),
                "seconds, median": float(np.median(seconds)),
            }
        )
    return summary


def main():
    given = parse(__doc__, "imputers.json", data=str, every=11, first=2, seeds=[0])
    warnings.simplefilter("ignore")
    report = Report(given.out, "table", "gaps", "seed", rows="tables", title="Imputers")
    DictionaryImputer(random_state=0).fit(
        np.random.default_rng(0).random((200, 8))
    )  # compiles
    tables = {
        name: X
        for name, X in read_tables(given.data).items()
        if LEAST_COLUMNS <= X.shape[1] <= MOST_COLUMNS and len(X) >= LEAST_ROWS
    }
    for name in sorted(tables)[given.first :: given.every]:
        for fraction, seed in product(GAPS, given.seeds):
            report.measure(
                lambda *values, X=tables[name]: measure(*values, X),
                name,
                fraction,
                seed,
            )
    report.write(results=summarise(report.rows))


if __name__ == "__main__":
    main()
