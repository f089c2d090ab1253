"""Compare classifiers of small images and series: accuracy and time.

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

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
from common import Report, parse, timed
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
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

    rng, X = np.random.default_rng(0), []
    y, third = np.repeat(np.divmod(np.arange(9), 3), N_PATCHES, axis=1)
    for name, part in product(("brick", "grass", "gravel"), range(3)):
        image = getattr(data, name)() / 255
        width = image.shape[1] // 3
        strip = image[:, part * width : (part + 1) * width]
        places = [
            rng.integers(0, size - SIDE, N_PATCHES) for size in (len(strip), width)
        ]
        patches = (strip[i : i + SIDE, j : j + SIDE].ravel() for i, j in zip(*places))
        X.extend(patch - patch.mean() for patch in patches)
    folds = [
        (np.flatnonzero(third != part), np.flatnonzero(third == part))
        for part in range(3)
    ]
    return np.array(X), y, folds


def series(name, n_points=None):
    """Return the series of a set that aeon ships, both parts, each channel of n_points."""
    folder = Path(find_spec("aeon").origin).parent / "datasets" / "data" / name
    X, y = [], []
    for part in ("TRAIN", "TEST"):
        text = (folder / f"{name}_{part}.ts").read_text(encoding="utf-8")
        _, _, rows = text.partition("@data\n")
        for row in filter(None, map(str.strip, rows.splitlines())):
            *channels, label = row.split(":")
            channels = [
                np.array(channel.split(","), dtype=float) for channel in channels
            ]
            if n_points is not None:
                grid = np.linspace(0, 1, n_points)
                channels = [
                    np.interp(grid, np.linspace(0, 1, len(c)), c) for c in channels
                ]
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
        found[f"supervision=0, {k}"] = PUDLEClassifier(
            k, supervision=0.0, random_state=0
        )
        found[f"PUDLEClassifier, {k}"] = PUDLEClassifier(k, random_state=0)
    found |= {
        "SVC(rbf)": SVC(),
        "MLPClassifier": MLPClassifier(max_iter=1000, random_state=0),
        "HistGradientBoosting": HistGradientBoostingClassifier(random_state=0),
    }
    try:
        from dictlearn.classification import (
            DDLClassifier,
            DPLClassifier,
            LCDLClassifier,
        )
    except ImportError:
        return found
    k = atoms[-1]
    each = max(1, k // n_classes)  # the last two count atoms of a class
    return found | {
        f"dictlearn DDL, {k}": DDLClassifier(k, random_state=0),
        f"dictlearn LC-KSVD, {each} a class": LCDLClassifier(each, random_state=0),
        f"dictlearn DPL, {each} a class": DPLClassifier(each, random_state=0),
    }


def run(model, X, y, folds):
    right, seconds, times = [], [], []
    for train, test in folds:
        scale = X[train].std()
        seconds.append(timed(model.fit, X[train] / scale, y[train])[1])
        predicted, taken = timed(model.predict, X[test] / scale)
        right.append(float((predicted == y[test]).mean()))
        times.append(taken)
    return {
        "accuracy": float(np.mean(right)),
        "least": min(right),
        "fit_seconds": float(np.median(seconds)),
        "predict_seconds": float(np.median(times)),
    }


def main():
    given = parse(__doc__, "classifiers.json", choices={"sets": SETS}, sets=list(SETS),
                  atoms=[32, 64, 128], only="")  # fmt: skip
    report = Report(given.out, "set", "method", title="Classifiers, three folds")
    for name in given.sets:
        X, y, folds = SETS[name]()
        for method, model in methods(given.atoms, len(np.unique(y))).items():
            if given.only in method:
                report.add({"set": name, "method": method} | run(model, X, y, folds))


if __name__ == "__main__":
    main()
