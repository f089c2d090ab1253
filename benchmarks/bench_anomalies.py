"""Compare the scores of rows with detectors of anomalies, on raw columns.

    python benchmarks/bench_anomalies.py            # a minute, to benchmarks/results/anomalies.json

The anomalies are a class of wine and malignant tumours. Half of the usual rows are fitted, alone or
with anomalies as a tenth of the rows. The measure is the area under the ROC curve of the scores of
all other rows, the mean of ten draws, and the smallest. Detectors of scikit-learn have their
defaults; "scaled" is after `StandardScaler`.
"""

import warnings
from itertools import product

import numpy as np
from common import Report, parse
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import FactorAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning

DRAWS = 10


def planted_rows():
    """Return 1,500 sums of 3 of 30 atoms with noise, and 300 rows of noise as long as the sums."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((30, 24))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.standard_normal((1500, 30)) * (rng.random((1500, 30)).argsort(1) < 3)
    rows = codes @ atoms
    noise = rows.std() * rng.standard_normal((300, 24))
    return rows + 0.1 * rows.std() * rng.standard_normal(rows.shape), noise


def classes(loaded, anomalous):
    return loaded.data[loaded.target != anomalous], loaded.data[loaded.target == anomalous]


SETS = {
    "wine": lambda: classes(load_wine(), 2),
    "tumours": lambda: classes(load_breast_cancer(), 0),
    "rows of noise": planted_rows,
}
DETECTORS = {
    "score_samples": lambda m: PUDLEDictionaryLearning(m, random_state=0),
    "score_samples, three atoms": lambda m: PUDLEDictionaryLearning(3, random_state=0),
    "FactorAnalysis, scaled": lambda m: make_pipeline(StandardScaler(), FactorAnalysis(m // 3)),
    "LocalOutlierFactor, scaled": lambda m: make_pipeline(
        StandardScaler(), LocalOutlierFactor(novelty=True)
    ),
    "IsolationForest": lambda m: IsolationForest(random_state=0),
}


def area(make, usual, odd, share, seed):
    """Return the area under the curve of one draw, with this share of anomalies in the fit."""
    rng = np.random.default_rng(seed)
    usual, odd = rng.permutation(usual), rng.permutation(odd)
    n, n_odd = len(usual) // 2, round(share / (1 - share) * (len(usual) // 2))
    detector = make(usual.shape[1]).fit(np.concatenate([usual[:n], odd[:n_odd]]))
    rows = np.concatenate([usual[n:], odd[n_odd:]])
    is_usual = np.repeat([1, 0], [len(usual) - n, len(odd) - n_odd])
    return roc_auc_score(is_usual, detector.score_samples(rows))


def main():
    report = Report(parse(__doc__, "anomalies.json").out, rows="rows")
    warnings.simplefilter("ignore")
    for (data, load), share in product(SETS.items(), (0.0, 0.1)):
        row = {"data": data, "anomalous": share}
        for name, make in DETECTORS.items():
            areas = [area(make, *load(), share, seed) for seed in range(DRAWS)]
            row[name] = {"mean": np.mean(areas), "smallest": min(areas)}
        report.add(row)


if __name__ == "__main__":
    main()
