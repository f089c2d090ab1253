"""
An atom is a sum of training samples, and so is a reconstruction
================================================================

At a minimum of the reconstruction error a dictionary is a combination of the data that it was
learned from: every sample has a share in every atom, and so in the reconstruction of every new
sample. Which samples these are is the most direct answer to what an atom means.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skpudle import PUDLEDictionaryLearning
from skpudle.inspection import atom_contributions, code_saliency, reconstruction_contributions
from skpudle.plotting import AtomsDisplay, ContributionsDisplay

X, y = load_digits(return_X_y=True)
X_train, X_new = X[:1500], X[1500:]
learner = PUDLEDictionaryLearning(64, positive_code=True, random_state=0).fit(X_train)

# %%
# Atoms beside what the formula makes of all samples together, and the samples with the largest
# contributions. The learned atoms have norm 1, and the formula knows of no norm: how far both are
# apart stands beside the contributions.

found = atom_contributions(learner, X_train)
print(f"learned and estimated dictionary differ by {found.distance:.1%}")
ContributionsDisplay.from_estimator(learner, X_train, image_shape=(8, 8))
plt.show()

# %%
# New digits beside their reconstruction as a sum of training samples. The samples with the largest
# shares are mostly of the same digit, though nobody told the learner of labels.

ContributionsDisplay.from_estimator(learner, X_train, X_new[:4], image_shape=(8, 8))
plt.show()
found = reconstruction_contributions(learner, X_train, X_new, n_largest=5)
same = (y[:1500][found.indices] == y[1500:, None]).mean()
print(f"{same:.0%} of the five largest contributions to new digits are of the same digit")

# %%
# Saliency, the derivative of the encoder: which pixels would change the largest code of a sample.

saliency = code_saliency(learner, X_new[:6], n_codes=1)
pixels = np.concatenate([X_new[:6], saliency.gradients[:, 0]])
AtomsDisplay.from_atoms(pixels, image_shape=(8, 8), n_columns=6)
plt.show()
