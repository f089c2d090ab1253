"""
Trace atoms to training samples
===============================

An atom is a sum of training samples, and so is a reconstruction.

At a minimum of the reconstruction error a dictionary is a combination of its training data. Every
sample has a share in every atom, and so in the reconstruction of every new sample. The samples with
the largest shares are the most direct answer to the meaning of an atom.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity

from skpudle import PUDLEDictionaryLearning
from skpudle.inspection import (
    atom_contributions,
    code_saliency,
    reconstruction_contributions,
)
from skpudle.plotting import AtomsDisplay, ContributionsDisplay

X, y = load_digits(return_X_y=True)
X_train, X_new = X[:1500], X[1500:]
learner = PUDLEDictionaryLearning(64, positive_code=True, random_state=0).fit(X_train)

# %%
# Atoms, the formula's sums of all samples, and the samples with the largest contributions. The
# learned atoms have norm 1, and the formula knows of no norm: a number says how far both are
# apart.

found = atom_contributions(learner, X_train)
print(f"learned and estimated dictionary differ by {found.distance:.1%}")
ContributionsDisplay.from_estimator(learner, X_train, image_shape=(8, 8))
plt.show()

# %%
# New digits, and their reconstructions as sums of training samples. The samples with the largest
# shares are mostly the same digit, though the learner saw no labels. So are the samples whose
# codes have the largest cosines with the new one's.

ContributionsDisplay.from_estimator(learner, X_train, X_new[:4], image_shape=(8, 8))
plt.show()
found = reconstruction_contributions(learner, X_train, X_new, n_largest=5)
similar = cosine_similarity(learner.transform(X_new), learner.transform(X_train))
nearest = np.argsort(-similar, axis=1)[:, :5]
samples = {"largest contributions": found.indices, "most similar codes": nearest}
for name, indices in samples.items():
    same = (y[:1500][indices] == y[1500:, None]).mean()
    print(f"{same:.0%} of the samples with the five {name} are of the same digit")

# %%
# Saliency, the derivative of the encoder: which pixels would change the largest code of a sample.

saliency = code_saliency(learner, X_new[:6], n_codes=1)
pixels = np.concatenate([X_new[:6], saliency.gradients[:, 0]])
row_labels = ["sample", "saliency"]
AtomsDisplay.from_estimator(
    pixels, image_shape=(8, 8), n_columns=6, row_labels=row_labels
)
plt.show()
