"""Compare regressions from small images, series and spectra: R^2 and CPU time.

Three folds, shuffled by a fixed seed, the same for all. Features are centred by the training
samples and divided by one common standard deviation, and otherwise unchanged. Ridge regression and
PLS choose their parameter by cross-validation within the training samples; all others have their
default parameters, except for the number of atoms and 1000 iterations of the perceptron.

diabetes      scikit-learn's, 442 patients, 10 features, one number
digits        scikit-learn's, 1797 images: the lower half (32 pixels) from the upper half
power         aeon's ItalyPowerDemand, 1096 days: the later twelve hours from the first twelve
fermentation  chemotools', 54 Raman spectra (950 to 1500 per cm) with a measured concentration of
              glucose, 21 of mixtures and 33 of a fermentation

aeon and chemotools are not imported: their files are read from their folders (pip
install --no-deps aeon chemotools).

Usage: python benchmarks/bench_regressors.py [--sets digits power] [--atoms 32 128]
"""

import argparse
import json
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from bench_classifiers import series
from common import RESULTS, circumstances, write_report
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning, PUDLERegressor

ALPHAS = np.logspace(-4, 4, 25)

# ---------------------------------------------------------------- data: X, y


def diabetes():
    return load_diabetes(return_X_y=True)


def digits():
    X = load_digits().data
    return X[:, :32], X[:, 32:]


def power():
    X, _, _ = series("ItalyPowerDemand")
    return X[:, :12], X[:, 12:]


def fermentation():
    folder = Path(find_spec("chemotools").origin).parent / "datasets" / "data"

    def read(name):
        return np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1, ndmin=2)

    # without the last measurement: its spectrum, at the end of the run, is unlike all others
    online, measured = read("fermentation_spectra"), read("fermentation_hplc")[:-1]
    # a spectrum every 1.25 minutes, and a measurement of glucose every hour or so
    at = np.rint(measured[:, 0] * 60 / 1.25).astype(int).clip(0, len(online) - 1)
    X = np.vstack([read("train_spectra"), online[at]])
    # outside of these wave numbers the detectors failed
    numbers = (folder / "train_spectra.csv").read_text().partition("\n")[0].split(",")
    fingerprint = [950 <= float(number) <= 1500 for number in numbers]
    return X[:, fingerprint], np.concatenate([read("train_hplc")[:, 0], measured[:, 1]])


SETS = {"diabetes": diabetes, "digits": digits, "power": power, "fermentation": fermentation}


# ---------------------------------------------------------------- methods


def methods(atoms, n_outputs):
    boosting = HistGradientBoostingRegressor(random_state=0)
    numbers = {"n_components": [1, 2, 3, 4, 6, 8, 10]}
    found = {
        "ridge regression": RidgeCV(ALPHAS),
        "PLSRegression": GridSearchCV(PLSRegression(scale=False), numbers, cv=5),
        "MLPRegressor": MLPRegressor(max_iter=1000, random_state=0),
        "HistGradientBoosting": boosting if n_outputs == 1 else MultiOutputRegressor(boosting),
    }
    for k in atoms:
        learner = PUDLEDictionaryLearning(k, random_state=0, split_sign=True)
        found[f"unsupervised codes, {k}"] = make_pipeline(
            learner, StandardScaler(), RidgeCV(ALPHAS)
        )
        found[f"supervision=0, {k}"] = PUDLERegressor(k, supervision=0.0, random_state=0)
        found[f"PUDLERegressor, {k}"] = PUDLERegressor(k, random_state=0)
    return found


def run(model, X, y):
    scores, seconds = [], []
    for train, test in KFold(3, shuffle=True, random_state=0).split(X):
        mean = X[train].mean(0)
        scale = (X[train] - mean).std()
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((X[train] - mean) / scale, y[train])
        seconds.append(time.process_time() - start)
        found = model.predict((X[test] - mean) / scale)
        scores.append(float(r2_score(y[test], found.reshape(y[test].shape))))
    return {
        "r2": float(np.mean(scores)),
        "least": min(scores),
        "fit_seconds": float(np.median(seconds)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--atoms", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--only", default="", help="methods whose name has this in it")
    parser.add_argument("--json", default=RESULTS / "regressors.json")
    options = parser.parse_args()
    path = Path(options.json)
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    for name in options.sets:
        X, y = SETS[name]()
        for method, model in methods(options.atoms, y.reshape(len(y), -1).shape[1]).items():
            if options.only not in method:
                continue
            row = {"set": name, "method": method} | run(model, X, y)
            print(
                f"{name:12} {method:26} {row['r2']:.4f}  least {row['least']:.4f}  "
                f"fit {row['fit_seconds']:7.2f} s",
                flush=True,
            )
            rows = [r for r in rows if (r["set"], r["method"]) != (name, method)] + [row]
            report = {"title": "Regression, three folds", "results": rows}
            write_report(path, report | {"machine": circumstances()})


if __name__ == "__main__":
    main()
