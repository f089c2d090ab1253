"""
Fill missing values
===================

The patterns that rows share fill gaps of digits and tumours.

NaN marks a missing value. Codes are inferred from the known ones, and their reconstruction fills
the gaps. A fifth of the entries of five data sets is hidden, and filled at the defaults. Errors are
in units of the features' standard deviations; pixels have one unit.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from skpudle import DictionaryImputer, PUDLEDictionaryLearning

SETS = {
    "digits": (load_digits, 100),
    "breast cancer": (load_breast_cancer, 20),
    "wine": (load_wine, 10),
    "diabetes": (load_diabetes, 8),
    "iris": (load_iris, 4),
}
fillers = {
    "means": lambda X, k: np.where(np.isnan(X), np.nanmean(X, axis=0), X),
    "KNNImputer": lambda X, k: KNNImputer().fit_transform(X),
    "IterativeImputer": lambda X, k: IterativeImputer(
        random_state=0, max_iter=200
    ).fit_transform(X),
    "DictionaryImputer": lambda X, k: DictionaryImputer().fit_transform(X),
    "DictionaryImputer, k atoms": lambda X, k: DictionaryImputer(
        PUDLEDictionaryLearning(k, random_state=0)
    ).fit_transform(X),
}

# %%
# ``DictionaryImputer()`` scales features and chooses the number of atoms. With a learner it takes
# a named number of atoms, and pixels as they are. Of the digits, which have 64 features, the
# IterativeImputer would take minutes: it is left out there.

errors = {name: [] for name in fillers}
for name, (load, n_components) in SETS.items():
    X = load().data
    X = X[:, X.std(axis=0) > 0]
    unit = X.std() if name == "digits" else X.std(axis=0)
    X = (X - X.mean(axis=0)) / unit
    hidden = np.random.default_rng(0).uniform(size=X.shape) < 0.2
    seen = np.where(hidden, np.nan, X)
    for filler, function in fillers.items():
        slow = name == "digits" and filler == "IterativeImputer"
        filled = np.full(X.shape, np.nan) if slow else function(seen, n_components)
        errors[filler].append(np.sqrt(((filled - X)[hidden] ** 2).mean()))
    print(
        name, {filler: round(float(values[-1]), 3) for filler, values in errors.items()}
    )

# %%
# The dictionary fills digits nearly as well as neighbours do, and tumours nearly as well as a
# regression of each feature on the others. Where features are few (wine, diabetes, iris), the
# regression is better.

fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
places = np.arange(len(SETS))
for i, (filler, values) in enumerate(errors.items()):
    ax.bar(places + 0.16 * (i - 2), values, 0.16, label=filler)
ax.set_xticks(places, SETS)
ax.set(ylabel="Error of hidden entries (rms)", ylim=(0, 1.6))
ax.legend(ncols=2, fontsize="small")
plt.show()
