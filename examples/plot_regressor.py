"""
Predict half of a digit
=======================

Atoms learned for the regression beat ridge regression on pixels.

`PUDLERegressor` starts from the dictionary found without targets and ridge regression on its codes.
Then it trains both for the regression, through the encoder. Here it predicts the lower half of a
digit, 32 numbers, from the upper one.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

from skpudle import PUDLERegressor
from skpudle.plotting import AtomsDisplay

X = load_digits().data
upper, upper_test, lower, lower_test = train_test_split(
    X[:, :32], X[:, 32:], random_state=0
)

# %%
# ``supervision=0`` is the unsupervised dictionary, to the bit, with ridge regression on its codes.

models = {"ridge, pixels": Ridge(alpha=100)}
for supervision in (0.0, 0.5):
    name = f"supervision {supervision}"
    models[name] = PUDLERegressor(48, supervision=supervision, random_state=0)
for name, model in models.items():
    model.fit(upper, lower)
    print(
        f"{name}: {model.score(upper_test, lower_test):.3f} of the variance predicted"
    )

# %%
# Nine digits, and their lower halves as predicted: the truth, ridge regression, and codes without
# and with supervision.

shown = slice(0, 9)
halves = [
    lower_test[shown],
    *(model.predict(upper_test[shown]) for model in models.values()),
]
images = np.concatenate([np.hstack([upper_test[shown], half]) for half in halves])
row_labels = ["truth", *models]
AtomsDisplay.from_estimator(
    images - 8, image_shape=(8, 8), n_columns=9, row_labels=row_labels
)
plt.show()

# %%
# An atom is a pattern of the upper half, and its weights are the pattern of the lower half that
# goes with it, both for a positive code. Here are the twelve atoms with the largest weights: the
# atom above, its weights below.

regressor = models["supervision 0.5"]
weights = regressor.coef_[:, :48].T
largest = np.argsort(-np.linalg.norm(weights, axis=1))[:12]
parts = regressor.components_[largest], weights[largest]
together = np.hstack([part / np.abs(part).max(axis=1, keepdims=True) for part in parts])
row_labels = ["atoms 1-6", "atoms 7-12"]
AtomsDisplay.from_estimator(
    together, image_shape=(8, 8), n_columns=6, row_labels=row_labels
)
plt.show()
