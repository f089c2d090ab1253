"""
Find anomalous rows
===================

Rows with two wrong pixels are unlikely; the mean of two usual rows is not.

``score_samples`` is the log-likelihood of each row, less the cost of its codes: low where few
atoms, and the noise of the features, do not explain it. The learner is fitted to usual rows, and
asked for new ones. Detectors of scikit-learn are fitted to the same rows, at their defaults.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import FactorAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skpudle import PUDLEDictionaryLearning

# %%
# Three kinds of anomalies: digits with two or four pixels from the scale's other end, the mean of
# two digits, and malignant tumours among benign ones. Rows are as they come, in mixed units.

rng = np.random.default_rng(0)
digits = rng.permutation(load_digits().data)
train, usual, damaged = digits[:1400], digits[1400:1600], digits[1600:].copy()


def damage(rows, n_pixels):
    rows = rows.copy()
    for row in rows:
        pixels = rng.choice(64, n_pixels, replace=False)
        row[pixels] = 16 - row[pixels]
    return rows


cancer = load_breast_cancer()
benign = rng.permutation(cancer.data[cancer.target == 1])
scaler = StandardScaler().fit(benign[:250])  # columns have units of their own
benign, malignant = (
    scaler.transform(benign),
    scaler.transform(cancer.data[cancer.target == 0]),
)
sets = {
    "digits,\ntwo wrong pixels": (train, usual, damage(damaged, 2)),
    "digits,\nfour wrong pixels": (train, usual, damage(damaged, 4)),
    "means of\ntwo digits": (train, usual, (damaged[:-1] + damaged[1:]) / 2),
    "malignant\ntumours": (benign[:250], benign[250:], malignant),
}
detectors = {
    "score_samples": lambda m: PUDLEDictionaryLearning(m, random_state=0),
    "FactorAnalysis": lambda m: FactorAnalysis(min(20, m // 2)),
    "LocalOutlierFactor": lambda m: make_pipeline(
        StandardScaler(), LocalOutlierFactor(novelty=True)
    ),
    "OneClassSVM": lambda m: make_pipeline(StandardScaler(), OneClassSVM()),
    "IsolationForest": lambda m: IsolationForest(random_state=0),
}

# %%
# The measure is the area under the ROC curve: the chance that an anomalous row has a lower score
# than a usual one. The number of atoms is the number of features.

areas = np.zeros((len(detectors), len(sets)))
for column, (known, usual_rows, odd_rows) in enumerate(sets.values()):
    usual_or_not = np.repeat([1, 0], [len(usual_rows), len(odd_rows)])
    for row, make in enumerate(detectors.values()):
        detector = make(known.shape[1]).fit(known)
        scores = detector.score_samples(np.concatenate([usual_rows, odd_rows]))
        areas[row, column] = roc_auc_score(usual_or_not, scores)

figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
ax.imshow(areas, vmin=0.5, vmax=1.2, cmap="Greys", aspect="auto")
for (row, column), area in np.ndenumerate(areas):
    best = area == areas[:, column].max()
    ax.text(
        column,
        row,
        f"{area:.3f}",
        ha="center",
        va="center",
        weight="bold" if best else None,
    )
ax.set_xticks(range(len(sets)), sets)
ax.set_yticks(range(len(detectors)), detectors)
ax.set_title("Area under the ROC curve")
plt.show()

# %%
# A wrong pixel is in no atom. The mean of two digits is a sum of atoms like any other, and smaller
# than a digit: to a dictionary it looks more usual than the usual rows. Take neighbours
# (``LocalOutlierFactor``) where odd sums of usual patterns are what you look for. Tumours differ in
# all features at once: there the dictionary is behind, and factor analysis best.
