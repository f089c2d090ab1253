"""
Put sparse codes in a pipeline
==============================

Sparse codes of digits make a linear classifier better.

A dictionary learner is a transformer, so it fits in a pipeline before a classifier. With
``split_sign=True`` a pixel pattern and its negative are two features, as a linear classifier needs
them. The gain is small, two percent of the digits, on pixels that are easy already.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning
from skpudle.plotting import AtomsDisplay

X, y = load_digits(return_X_y=True)
X = X / 16

# %%
# The dictionary is overcomplete: 200 atoms for 64 pixels.

learner = PUDLEDictionaryLearning(200, split_sign=True, random_state=0)
with_codes = make_pipeline(
    StandardScaler(with_std=False), learner, LogisticRegression(max_iter=2000)
)
with_pixels = make_pipeline(
    StandardScaler(with_std=False), LogisticRegression(max_iter=2000)
)

splits = ShuffleSplit(3, test_size=0.5, random_state=0)
for name, pipeline in {"pixels": with_pixels, "codes": with_codes}.items():
    accuracy = cross_val_score(pipeline, X, y, cv=splits)
    print(
        f"{name}: {accuracy.mean():.1%} right, {accuracy.min():.1%} to {accuracy.max():.1%}"
    )

# %%
# The atoms, most used first: digits and parts of them.

AtomsDisplay.from_estimator(with_codes.fit(X, y), X, image_shape=(8, 8), n_columns=20)
plt.show()
