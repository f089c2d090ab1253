"""
Classify digits with few atoms
==============================

With 16 atoms, labels save a quarter of the errors.

`PUDLEClassifier` starts from the dictionary found without labels and a logistic regression on its
codes. Then it trains both for the classification, through the encoder. For ten digits and 16 atoms
it makes a quarter fewer errors than unsupervised codes.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skpudle import PUDLEClassifier
from skpudle.plotting import AtomsDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, random_state=0)

# %%
# ``supervision=0`` is the unsupervised dictionary, to the bit, with logistic regression on its
# codes. At 1 only the labels count.

classifiers = {}
for n_components, supervision in [(16, 0.0), (32, 0.0), (16, 0.5), (16, 1.0)]:
    classifier = PUDLEClassifier(n_components, supervision=supervision, random_state=0)
    classifier.fit(X_train, y_train)
    classifiers[n_components, supervision] = classifier
    right = classifier.score(X_test, y_test)
    print(f"{n_components} atoms, supervision {supervision}: {right:.1%} right")

# %%
# Labels turn atoms from parts of digits into differences between digits. At 0.5, between the
# ends, they still reconstruct.

figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), layout="constrained")
for ax, supervision in zip(axes, (0.0, 0.5, 1.0)):
    classifier = classifiers[16, supervision]
    AtomsDisplay.from_estimator(classifier, image_shape=(8, 8), ax=ax)
    ax.set_title(f"supervision {supervision}")
figure.get_layout_engine().set(wspace=0.15)
plt.show()
