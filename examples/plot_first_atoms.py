"""
Learn the atoms of photographs
==============================

Told only the number of atoms, a fit finds edges and gratings.

Patches of 12 x 12 pixels have 144 numbers, and each patch is a sum of a few of a hundred patterns:
:class:`~skpudle.PUDLEDictionaryLearning` finds them. scikit-learn's learner, with its defaults too,
sees the same patches.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode
from sklearn.metrics import r2_score

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import load_image_patches
from skpudle.plotting import AtomsDisplay

# %%
# Patches of scikit-learn's two photographs, without their means and in units of their standard
# deviation. 2000 of them are set aside to judge by.

patches = load_image_patches(
    patch_size=(12, 12), n_patches=12_000, normalize=False, random_state=0
)
patches /= patches.std()
train, test = patches[:10_000], patches[10_000:]

# %%
# The judge of atoms is the variance of held-out patches that 14 of them explain, a tenth of the
# number of pixels, chosen by orthogonal matching pursuit. Codes come from each learner's own
# ``transform``.

learners = {
    "skpudle": PUDLEDictionaryLearning(100, random_state=0),
    "scikit-learn": MiniBatchDictionaryLearning(100, random_state=0),
}
print(f"{'':<14}{'fit (s)':>8}{'R2':>8}{'not zero':>10}")
for name, learner in learners.items():
    start = perf_counter()
    learner.fit(train)
    seconds, atoms = perf_counter() - start, learner.components_
    few = sparse_encode(test, atoms, algorithm="omp", n_nonzero_coefs=14)
    r2 = r2_score(test, few @ atoms, multioutput="variance_weighted")
    share = np.mean(learner.transform(test) != 0)
    print(f"{name:<14}{seconds:>8.1f}{r2:>8.3f}{share:>10.1%}")

# %%
# The atoms of ``skpudle``, in the order of their use by the held-out patches.

AtomsDisplay.from_estimator(
    learners["skpudle"], test, image_shape=(12, 12), n_columns=20
)
plt.show()
