"""Compare classifiers of small images and series: accuracy, time, and size of the model.

Three stratified folds, shuffled by a fixed seed, the same for all. Inputs are divided by their
standard deviation, and otherwise unchanged. Every method has its default parameters, except for the
number of atoms and 1000 iterations for logistic regression and the perceptron, so that they
converge.

digits       scikit-learn's, 1797 of 64 pixels, 10 classes
textures     scikit-image's brick, grass and gravel, 1000 patches each of 12 x 12 pixels without
             their mean, from halves of the images that do not overlap for training and testing
vowels       aeon's JapaneseVowels, 640 of 12 channels, resampled to 12 points each, 9 speakers
power        aeon's ItalyPowerDemand, 1096 days of 24 hours, 2 seasons

aeon is not imported: its files are read from its folder (pip install --no-deps aeon).

Usage: python benchmarks/bench_classifiers.py [--sets digits textures] [--atoms 32 64 128]
"""

import argparse
import json
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common import RESULTS, circumstances, write_report
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skpudle import PUDLEClassifier, PUDLEDictionaryLearning

SIDE = 12
N_PATCHES = 500  # of each texture and half
POINTS = 12


# ---------------------------------------------------------------- data: X, y, folds


def folds_of(X, y):
    return list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, y))


def digits():
    X, y = load_digits(return_X_y=True)
    return X, y, folds_of(X, y)


def textures():
    """Thirds of the images, from left to right, are tested on in turn."""
    from skimage import data

    rng = np.random.default_rng(0)
    X, y, third = [], [], []
    for label, name in enumerate(("brick", "grass", "gravel")):
        image = getattr(data, name)() / 255
        width = image.shape[1] // 3
        for part in range(3):
            strip = image[:, part * width : (part + 1) * width]
            rows = rng.integers(0, strip.shape[0] - SIDE, N_PATCHES)
            columns = rng.integers(0, strip.shape[1] - SIDE, N_PATCHES)
            for i, j in zip(rows, columns):
                patch = strip[i : i + SIDE, j : j + SIDE].ravel()
                X.append(patch - patch.mean())
                y.append(label)
                third.append(part)
    third = np.array(third)
    folds = [(np.flatnonzero(third != part), np.flatnonzero(third == part)) for part in range(3)]
    return np.array(X), np.array(y), folds


def series(name, n_points=None):
    """Return the series of a set that aeon ships, both parts, each channel of n_points."""
    folder = Path(find_spec("aeon").origin).parent / "datasets" / "data" / name
    X, y = [], []
    for part in ("TRAIN", "TEST"):
        text = (folder / f"{name}_{part}.ts").read_text(encoding="utf-8")
        _, _, rows = text.partition("@data\n")
        for row in filter(None, map(str.strip, rows.splitlines())):
            *channels, label = row.split(":")
            channels = [np.array(channel.split(","), dtype=float) for channel in channels]
            if n_points is not None:
                grid = np.linspace(0, 1, n_points)
                channels = [np.interp(grid, np.linspace(0, 1, len(c)), c) for c in channels]
            X.append(np.concatenate(channels))
            y.append(label)
    X, y = np.array(X), np.array(y)
    return X, y, folds_of(X, y)


SETS = {
    "digits": digits,
    "textures": textures,
    "vowels": lambda: series("JapaneseVowels", POINTS),
    "power": lambda: series("ItalyPowerDemand"),
}


# ---------------------------------------------------------------- methods, size of their models


def linear():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def unsupervised(n_atoms):
    learner = PUDLEDictionaryLearning(n_atoms, random_state=0)
    return make_pipeline(learner, StandardScaler(), LogisticRegression(max_iter=1000))


def methods(atoms, n_classes):
    found = {"logistic regression": linear()}
    for k in atoms:
        found[f"unsupervised codes, {k}"] = unsupervised(k)
        found[f"supervision=0, {k}"] = PUDLEClassifier(k, supervision=0.0, random_state=0)
        found[f"PUDLEClassifier, {k}"] = PUDLEClassifier(k, random_state=0)
    found |= {
        "SVC(rbf)": SVC(),
        "MLPClassifier": MLPClassifier(max_iter=1000, random_state=0),
        "HistGradientBoosting": HistGradientBoostingClassifier(random_state=0),
    }
    try:
        from dictlearn.classification import DDLClassifier, DPLClassifier, LCDLClassifier
    except ImportError:
        return found
    k = atoms[-1]
    each = max(1, k // n_classes)  # the last two count atoms of a class
    return found | {
        f"dictlearn DDL, {k}": DDLClassifier(k, random_state=0),
        f"dictlearn LC-KSVD, {each} a class": LCDLClassifier(each, random_state=0),
        f"dictlearn DPL, {each} a class": DPLClassifier(each, random_state=0),
    }


def n_numbers(model):
    """Return the number of numbers that a fitted model predicts from, None if unknown."""
    if hasattr(model, "steps"):
        counts = [n_numbers(step) for _, step in model.steps]
        return sum(counts)
    if isinstance(model, SVC):
        return model.support_vectors_.size + model.dual_coef_.size
    if isinstance(model, MLPClassifier):
        return sum(part.size for part in [*model.coefs_, *model.intercepts_])
    if isinstance(model, HistGradientBoostingClassifier):
        return 2 * sum(tree.get_n_leaf_nodes() * 2 - 1 for row in model._predictors for tree in row)
    names = (
        "components_",
        "coef_",
        "intercept_",
        "scale_",
        "mean_",
        "dictionary_",
        "classifier_",
        "encoders_",
        "dictionaries_",
    )
    arrays = [getattr(model, name, None) for name in names]
    sizes = [np.size(array) for array in arrays if array is not None]
    return sum(sizes) or None


def run(model, X, y, folds):
    right, seconds, times, numbers = [], [], [], None
    for train, test in folds:
        scale = X[train].std()
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X[train] / scale, y[train])
        seconds.append(time.process_time() - start)
        start = time.process_time()
        right.append(float((model.predict(X[test] / scale) == y[test]).mean()))
        times.append(time.process_time() - start)
        numbers = n_numbers(model)
    return {
        "accuracy": float(np.mean(right)),
        "least": min(right),
        "fit_seconds": float(np.median(seconds)),
        "predict_seconds": float(np.median(times)),
        "numbers": numbers,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--atoms", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--only", default="", help="methods whose name has this in it")
    parser.add_argument("--json", default=RESULTS / "classifiers.json")
    options = parser.parse_args()
    path = Path(options.json)
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    for name in options.sets:
        X, y, folds = SETS[name]()
        for method, model in methods(options.atoms, len(np.unique(y))).items():
            if options.only not in method:
                continue
            row = {"set": name, "method": method} | run(model, X, y, folds)
            print(
                f"{name:9} {method:28} {row['accuracy']:.4f}  fit {row['fit_seconds']:7.2f} s  "
                f"predict {row['predict_seconds']:.3f} s  {row['numbers']} numbers",
                flush=True,
            )
            rows = [r for r in rows if (r["set"], r["method"]) != (name, method)] + [row]
            report = {"title": "Classifiers, three folds", "results": rows}
            write_report(path, report | {"machine": circumstances()})


if __name__ == "__main__":
    main()
