"""
Compare with scikit-learn and SPORCO
====================================

From the same patches, ``dec`` reaches a slightly lower objective.

scikit-learn's ``MiniBatchDictionaryLearning``, SPORCO's ``BPDNDictLearn`` and two settings of
:class:`~skpudle.PUDLEDictionaryLearning` learn 100 atoms from the same patches with the same
penalty. The lasso objective of held-out patches compares the dictionaries, with codes solved
exactly for all. Times belong to this build, on whichever machine made it; the tables of the page on
performance say more.
"""

import warnings
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

from skpudle import PUDLEDictionaryLearning, SporcoDictionaryLearning
from skpudle.datasets import load_image_patches
from skpudle.metrics import lasso_objective
from skpudle.plotting import AtomsDisplay

ALPHA, N_ATOMS = 0.15, 100
patches = load_image_patches(patch_size=(8, 8), n_patches=8_000, random_state=0)
train, test = patches[:6_000], patches[6_000:]

# %%
# ``dec`` with the surrogate optimiser minimises the same objective as the other packages.
# ``ae-ls`` minimises another one, the error of reconstruction of a network of ten layers, and
# pays for it in this comparison.

shared = dict(alpha=ALPHA, optimizer="surrogate", tol=None, random_state=0)
learners = {
    "skpudle, dec, 20 unfoldings": PUDLEDictionaryLearning(
        N_ATOMS, gradient="dec", n_unfoldings=20, max_iter=8, **shared
    ),
    "skpudle, ae-ls, 10 unfoldings": PUDLEDictionaryLearning(
        N_ATOMS, gradient="ae-ls", n_unfoldings=10, max_iter=8, **shared
    ),
    "scikit-learn": MiniBatchDictionaryLearning(
        N_ATOMS, alpha=ALPHA, fit_algorithm="cd", max_iter=3, random_state=0
    ),
    "SPORCO": SporcoDictionaryLearning(
        N_ATOMS, alpha=ALPHA, max_iter=30, random_state=0
    ),
}

# %%
# Lasso codes of the held-out patches, solved for each dictionary by a learner made of its atoms.


def exact(fitted):
    return PUDLEDictionaryLearning.from_components(fitted, alpha=ALPHA)


# of scikit-learn's coordinate descent
warnings.simplefilter("ignore", ConvergenceWarning)
fitted = {}
print(f"{'':<32}{'fit (s)':>8}{'objective':>11}{'not zero':>10}")
for name, learner in learners.items():
    start = perf_counter()
    learner.fit(train)
    seconds = perf_counter() - start
    coder = exact(learner)
    codes = coder.transform(test)
    objective = lasso_objective(test, codes, codes @ coder.components_, ALPHA)
    print(f"{name:<32}{seconds:>8.1f}{objective:>11.4f}{np.mean(codes != 0):>10.1%}")
    fitted[name] = coder

# %%
# The atoms that the held-out patches use most.

figure, axes = plt.subplots(2, 2, figsize=(9, 9.4), layout="constrained")
for ax, (name, coder) in zip(axes.flat, fitted.items()):
    AtomsDisplay.from_estimator(coder, test, image_shape=(8, 8), ax=ax)
    ax.set_title(name)
plt.show()
