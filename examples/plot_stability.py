"""
Choose the number of atoms
==========================

As many atoms as come back.

Fit several bootstrap samples and see which atoms come back. Too few atoms have to merge different
patterns, each fit in another way; with too many, some are made up. The stability is largest in
between, and the score stops growing there.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_stability
from skpudle.plotting import StabilityDisplay

N_ATOMS = 20
rng = np.random.default_rng(0)
X, _, _ = make_dictionary_data(1000, 16, N_ATOMS, n_nonzero=3, random_state=0)
X += 0.1 * X.std() * rng.standard_normal(X.shape)
train, rest = X[:800], X[800:]

# %%
# Three bootstrap samples for each number of atoms.

sizes = [14, 17, 19, 20, 21, 23, 26]
samples = [train[rng.integers(0, 800, 800)] for _ in range(3)]
fits = {
    size: [
        PUDLEDictionaryLearning(size, random_state=0).fit(sample) for sample in samples
    ]
    for size in sizes
}
stability = {
    size: dictionary_stability([fit.components_ for fit in fits[size]]).stability
    for size in sizes
}
print(
    f"The data have {N_ATOMS} atoms; stability is largest with {max(stability, key=stability.get)}."
)

# %%
# Stability has a peak where the score of held-out data has an elbow.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
dictionaries = [[fit.components_ for fit in fits[size]] for size in sizes]
scores = [np.mean([fit.score(rest) for fit in fits[size]]) for size in sizes]
StabilityDisplay.from_estimator(dictionaries, scores=scores, ax=left)
StabilityDisplay.from_estimator(dictionaries, ax=right)
for ax in (left, right):
    ax.axvline(N_ATOMS, color="grey", linestyle=":")
plt.show()
