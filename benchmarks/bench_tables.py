"""Compare learners on tables of numbers that come with packages: where nobody planted atoms.

    python benchmarks/bench_tables.py               # tables of the packages that are installed
    python benchmarks/bench_tables.py --data DIR    # and of unpacked packages: DIR/NAME/...
    python benchmarks/bench_tables.py --only scikit-learn:wine --seeds 0 --out tables.json

Tables of numbers are read from files of ISLP, statsmodels, vega_datasets, pydataset and aeon, and
some come with scikit-learn. A table has at least 120 complete rows (time series: 100) of at least 5
columns with more than 5 values each. At most 4,000 rows are read, two thirds of them to learn from,
at random. Tables are raw or standardised (each column less its mean, over its standard deviation,
both of the rows to learn from). Learners, with one atom per feature unless the number is given:

- `PUDLEDictionaryLearning` at its default, with ``fit_intercept=True``, and with False;
- `PCA` and `FactorAnalysis` of scikit-learn with ceil(m / 5) components for m columns;
- `MiniBatchDictionaryLearning` of scikit-learn on rows less their mean, with the penalty at which
  skpudle's search begins, 0.07 times the root mean square norm of a row.

"hidden" is R^2 of the other third of the rows when each tenth of the columns is hidden in turn, and
predicted from the other columns: by ``score`` of our learner, by the conditional mean of the
covariance of PCA or FactorAnalysis, or by codes of the lasso. "reconstruction" is R^2 of these rows
with ceil(m / 5) codes each, by orthogonal matching pursuit or by least squares on the components.
Both R^2 compare with column means. Seconds are CPU time of fits. A run that is interrupted goes on
where it ended. ``results`` in the file is a summary, over the tables and seeds.
"""

import io
import tarfile
import warnings
from importlib.util import find_spec
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import torch
from common import Report, parse, timed
from sklearn import datasets
from sklearn.decomposition import (
    PCA,
    FactorAnalysis,
    MiniBatchDictionaryLearning,
    sparse_encode,
)
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning
from skpudle.search.held_out import hide_in_turn

PACKAGES = "ISLP", "statsmodels", "vega_datasets", "pydataset", "aeon"
OF_SCIKIT_LEARN = "breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"
# Columns of these names, and columns that count the rows, hold no measurements.
NO_MEASUREMENTS = "index", "id", "rownames", "year", "obs", "case"
LEAST_ROWS, LEAST_SERIES, LEAST_COLUMNS, LEAST_VALUES = 120, 100, 5, 5
MOST_ROWS, MOST_COLUMNS = 4000, 300
# Two scores are level if they differ by at most this number.
LEVEL = 0.05
BASELINES = {
    "default": "auto",
    "with a baseline": True,
    "without a baseline": False,
}


# ---------------------------------------------------------------------------- tables


def columns_of_numbers(file):
    """Return the numbers of a CSV file, or None if there are too few rows or columns."""
    import pandas as pd

    try:
        table = pd.read_csv(file, low_memory=False)
    except (ValueError, OSError):
        return None
    names = [str(name).lower() for name in table.columns]
    kept = [
        not name.startswith("unnamed") and name not in NO_MEASUREMENTS for name in names
    ]
    table = table.loc[:, kept].select_dtypes("number")
    table = table.loc[:, table.notna().mean() > 0.8].dropna()
    X = table.loc[:, table.nunique() > LEAST_VALUES].to_numpy(float)
    X = X[:, (np.diff(X, axis=0) != 1).any(axis=0)] if len(X) > 1 else X
    enough = len(X) >= LEAST_ROWS and X.shape[1] >= LEAST_COLUMNS
    return X[:MOST_ROWS] if enough and np.isfinite(X).all() else None


def series(path):
    """Return the series of a file of aeon, one in a row, or None if their lengths differ."""
    rows = []
    for line in path.read_text(errors="ignore").splitlines():
        if line.strip() and line[0] not in "@#":
            try:
                rows.append([float(part) for part in line.split(":")[0].split(",")])
            except ValueError:
                return None
    lengths = {len(row) for row in rows}
    enough = len(rows) >= LEAST_SERIES and len(lengths) == 1
    return np.array(rows) if enough else None


def files_of(folder):
    """Yield the name and the content, a file or a path, of each CSV file in a package."""
    for path in sorted(folder.rglob("*.csv")):
        place = str(path.relative_to(folder)).lower()
        if "test" not in place and "result" not in place:
            yield path.stem, path
    for path in sorted(folder.rglob("resources.tar.gz")):  # of pydataset
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                place = Path(member.name)
                if place.suffix == ".csv" and not place.name.startswith("."):
                    yield place.stem, io.BytesIO(archive.extractfile(member).read())


def folders(data):
    """Map packages to folders with their files, unpacked in ``data`` or installed."""
    found = {}
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None:
            found[name] = Path(spec.submodule_search_locations[0])
        for folder in Path(data).iterdir() if data else ():
            if folder.name.lower() == name.lower():
                found[name] = folder
    return found


def read_tables(data):
    """Map names of tables to arrays, each table once."""
    tables = {
        f"scikit-learn:{name}": getattr(datasets, f"load_{name}")().data
        for name in OF_SCIKIT_LEARN
    }
    for package, folder in folders(data).items():
        for name, file in files_of(folder):
            tables.setdefault(f"{package}:{name}", columns_of_numbers(file))
        for path in sorted(folder.rglob("*_T*.ts")):
            tables[f"{package}:{path.stem}"] = series(path)
    read = {}
    distinct = set()
    for name, X in tables.items():
        if X is None or not LEAST_COLUMNS <= X.shape[1] <= MOST_COLUMNS:
            continue
        key = X.shape, round(float(X[:, 0].sum()), 3)
        if key not in distinct and len(X) >= LEAST_SERIES:
            read[name] = X
        distinct.add(key)
    return read


# ---------------------------------------------------------------------------- scores


def r2(errors, test):
    return 1 - np.square(errors).sum() / np.square(test - test.mean(axis=0)).sum()


def hidden_errors(test, predict):
    """Hide each tenth of the columns in turn; ``predict(rows, seen, hidden)`` returns them."""
    errors = np.empty_like(test)
    for turn in hide_in_turn(torch.arange(test.shape[1])):
        seen, hidden = (part.numpy() for part in turn)
        errors[:, hidden] = test[:, hidden] - predict(test[:, seen], seen, hidden)
    return errors


def of_pudle(train, test, n_codes, baseline, seed):
    learner = PUDLEDictionaryLearning(fit_intercept=baseline, random_state=seed)
    _, seconds = timed(learner.fit, train)
    rows = test - learner.intercept_
    codes = sparse_encode(
        rows, learner.components_, algorithm="omp", n_nonzero_coefs=n_codes
    )
    return {
        "hidden": learner.score(test),
        "reconstruction": r2(rows - codes @ learner.components_, test),
        "baseline": bool(np.any(learner.intercept_)),
        "seconds": seconds,
    }


def of_covariance(train, test, n_codes, model, seed):
    """Judge `PCA` or `FactorAnalysis`, with as many components as a row has codes."""
    model = model(n_codes, random_state=seed)
    _, seconds = timed(model.fit, train)
    covariance = model.get_covariance()

    def predict(rows, seen, hidden):
        of_seen = covariance[np.ix_(seen, seen)]
        of_both = covariance[np.ix_(seen, hidden)]
        weights = np.linalg.lstsq(of_seen, of_both, rcond=None)[0]
        return model.mean_[hidden] + (rows - model.mean_[seen]) @ weights

    rows = test - model.mean_
    codes = np.linalg.lstsq(model.components_.T, rows.T, rcond=None)[0].T
    return {
        "hidden": r2(hidden_errors(test, predict), test),
        "reconstruction": r2(rows - codes @ model.components_, test),
        "seconds": seconds,
    }


def of_scikit_learn(train, test, n_codes, seed):
    mean = train.mean(axis=0)
    rows = train - mean
    alpha = 0.07 * np.sqrt(np.square(rows).sum(axis=1).mean())
    learner = MiniBatchDictionaryLearning(
        train.shape[1], alpha=alpha, fit_algorithm="cd", random_state=seed
    )
    _, seconds = timed(learner.fit, rows)
    atoms = learner.components_
    atoms = atoms[np.linalg.norm(atoms, axis=1) > 0]

    def predict(rows, seen, hidden):
        of_seen = np.ascontiguousarray(atoms[:, seen])
        codes = sparse_encode(
            rows - mean[seen], of_seen, algorithm="lasso_cd", alpha=alpha
        )
        return mean[hidden] + codes @ atoms[:, hidden]

    rows = test - mean
    codes = sparse_encode(rows, atoms, algorithm="omp", n_nonzero_coefs=n_codes)
    return {
        "hidden": r2(hidden_errors(test, predict), test),
        "reconstruction": r2(rows - codes @ atoms, test),
        "seconds": seconds,
    }


def measure(name, scaling, seed, X):
    """Return the row of one table, raw or standardised."""
    X = X[np.random.default_rng(seed).permutation(len(X))]
    train, test = np.split(X, [2 * len(X) // 3])
    varies = train.std(axis=0) > 0
    train, test = train[:, varies], test[:, varies]
    if scaling == "standardised":
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    given = train, test, ceil(train.shape[1] / 5)
    row = {"table": name, "scaling": scaling, "seed": seed}
    row |= {"rows": len(X), "columns": train.shape[1]}
    for learner, baseline in BASELINES.items():
        row[learner] = of_pudle(*given, baseline, seed)
    row["PCA"] = of_covariance(*given, PCA, seed)
    row["FactorAnalysis"] = of_covariance(*given, FactorAnalysis, seed)
    row["scikit-learn"] = of_scikit_learn(*given, seed)
    return row


def summarise(rows):
    """Return a row for each scaling and learner: scores of all tables, against the default."""
    summary = []
    for scaling, learner in product(
        ("raw", "standardised"), (*BASELINES, "PCA", "FactorAnalysis", "scikit-learn")
    ):
        of_scaling = [row for row in rows if row["scaling"] == scaling]
        if not of_scaling:
            continue
        hidden, reconstruction, default, best = np.transpose(
            [
                (
                    row[learner]["hidden"],
                    row[learner]["reconstruction"],
                    row["default"]["hidden"],
                    max(row[name]["hidden"] for name in list(BASELINES)[1:]),
                )
                for row in of_scaling
            ]
        )
        summary.append(
            {
                "tables": scaling,
                "learner": learner,
                "hidden, quartile": np.quantile(hidden, 0.25),
                "hidden, median": np.median(hidden),
                "reconstruction, median": np.median(reconstruction),
                "share level with the better baseline": (hidden >= best - LEVEL).mean(),
                "share above the default": (hidden > default + LEVEL).mean(),
                "share below the default": (hidden < default - LEVEL).mean(),
                "seconds, median": np.median(
                    [row[learner]["seconds"] for row in of_scaling]
                ),
            }
        )
    return summary


def main():
    given = parse(__doc__, "tables.json", data=str, only=[], seeds=[0])
    warnings.simplefilter("ignore")
    keys = "table", "scaling", "seed"
    report = Report(given.out, *keys, rows="tables", title="Tables of packages")
    PUDLEDictionaryLearning(5, random_state=0).fit(
        np.random.default_rng(0).random((200, 8))
    )
    for name, X in read_tables(given.data).items():
        if not given.only or name in given.only:
            for scaling, seed in product(("raw", "standardised"), given.seeds):
                report.measure(
                    lambda *values, X=X: measure(*values, X), name, scaling, seed
                )
    report.write(results=summarise(report.rows))


if __name__ == "__main__":
    main()
