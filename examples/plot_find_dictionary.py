"""
Finding a dictionary that nobody knows: ``dec`` first, then ``ae-ls``
=====================================================================

``ae-ls`` is the best gradient close to the dictionary that generated the data, and a bad guide far
from it. Here nobody knows where that is: atoms start as samples. ``dec`` with the surrogate
optimiser, which is online dictionary learning, finds all of them in a second or two; from there
``ae-ls`` or hard thresholding remove the bias of the lasso.
"""

import time

import matplotlib.pyplot as plt
from sklearn.decomposition import MiniBatchDictionaryLearning

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_error
from skpudle.plotting import RecoveryDisplay

# %%
# Samples are sums of 3 of 60 atoms with noise 30 dB below. An error is that of the dictionary after
# the best matching of atoms, relative to the truth; two unrelated dictionaries are at about 1.

X, truth, _ = make_dictionary_data(3000, 50, 60, n_nonzero=3, snr_db=30, random_state=0)
common = dict(alpha=0.2, tol=None, random_state=0)


def learn(name, learner):
    start = time.perf_counter()
    learner.fit(X)
    seconds = time.perf_counter() - start
    error = dictionary_error(learner.components_, truth, match=True)
    print(f"{name:26s} error {error:.3f} after {seconds:.1f} s")


first = PUDLEDictionaryLearning(
    60, gradient="dec", optimizer="surrogate", n_unfoldings=None, max_iter=20, **common
)
learn("dec from samples", first)
then = dict(dict_init=first, optimizer="surrogate", max_iter=10)
second = PUDLEDictionaryLearning(60, **common | then)
learn("then ae-ls", second)
hard = dict(shrinkage="hard", alpha=0.1, n_unfoldings=50)
learn("or then hard thresholding", PUDLEDictionaryLearning(60, **common | then | hard))
alone = PUDLEDictionaryLearning(60, optimizer="surrogate", max_iter=10, **common)
learn("ae-ls from samples", alone)
other = MiniBatchDictionaryLearning(60, alpha=0.2, max_iter=2, random_state=0)
learn("scikit-learn, two passes", other)

# %%
# The coherence of every learned atom with every true one, matched: ones on the diagonal are atoms
# that were found.

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, learner in zip(axes, (alone, second), strict=True):
    RecoveryDisplay.from_estimator(learner, truth, ax=ax)
axes[0].set_title("ae-ls from samples")
axes[1].set_title("dec, then ae-ls")
plt.show()
