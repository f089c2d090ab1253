"""
Sparse features of digits make a linear classifier better
=========================================================

A dictionary learner is a transformer: it stands in a pipeline in front of a classifier. With
``split_sign=True`` a pixel pattern and its negative are two features, as a linear classifier needs
them.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning
from skpudle.plotting import AtomsDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.5, random_state=0)

# %%
# The dictionary is overcomplete: 200 atoms for 64 pixels.

learner = PUDLEDictionaryLearning(
    200,
    alpha=0.15,
    n_unfoldings=20,
    optimizer="surrogate",
    max_iter=30,
    tol=None,
    split_sign=True,
    random_state=0,
)
with_codes = make_pipeline(
    StandardScaler(with_std=False), learner, LogisticRegression(max_iter=2000)
)
with_pixels = make_pipeline(StandardScaler(with_std=False), LogisticRegression(max_iter=2000))

for name, pipeline in {"pixels": with_pixels, "codes": with_codes}.items():
    accuracy = pipeline.fit(X_train, y_train).score(X_test, y_test)
    print(f"logistic regression of {name}: {accuracy:.1%} of {len(y_test)} digits are right")

# %%
# What it learned, the most used first: strokes and parts of them.

centred = with_codes[0].transform(X_test)
AtomsDisplay.from_estimator(with_codes[1], centred, n_columns=20)
plt.show()
