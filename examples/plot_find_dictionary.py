"""
Find an unknown dictionary
==========================

The defaults find a dictionary that nobody knows.

``ae-ls`` is the best gradient close to the dictionary that generated the data, and a bad guide far
from it. So a fit begins by a search: alternating minimisation of the lasso over all samples. It
splits atoms that do the work of two, removes atoms that others make superfluous, and in the end
takes codes without the lasso's bias.
"""

import time

import matplotlib.pyplot as plt
from sklearn.decomposition import MiniBatchDictionaryLearning

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_error
from skpudle.plotting import RecoveryDisplay

# %%
# Samples are sums of 3 of 60 atoms with noise 30 dB below. The error of a dictionary is relative
# to the truth, after the best matching of atoms; two unrelated dictionaries are at about 1.

X, truth, _ = make_dictionary_data(3000, 50, 60, n_nonzero=3, snr_db=30, random_state=0)


def learn(name, learner):
    start = time.perf_counter()
    learner.fit(X)
    seconds = time.perf_counter() - start
    error = dictionary_error(learner.components_, truth, match=True)
    print(f"{name:32s} error {error:.3f} after {seconds:.1f} s")


found = PUDLEDictionaryLearning(60, random_state=0)
learn("defaults", found)

# %%
# Without a search, from samples as atoms and with a penalty that suits these data: ``dec`` with
# converged codes is online dictionary learning, as in scikit-learn; ``ae-ls`` stays lost.

samples = dict(
    dict_init="data", alpha=0.2, optimizer="surrogate", tol=None, random_state=0
)
online = dict(gradient="dec", n_unfoldings=None, max_iter=20)
learn("dec from samples", PUDLEDictionaryLearning(60, **samples, **online))
lost = PUDLEDictionaryLearning(60, n_unfoldings=100, max_iter=10, **samples)
learn("ae-ls from samples", lost)
other = MiniBatchDictionaryLearning(
    60, alpha=0.2, max_iter=2, fit_algorithm="cd", random_state=0
)
learn("scikit-learn, two passes", other)

# %%
# The coherence of every learned atom with every true one, matched: ones on the diagonal are atoms
# that were found.

fig, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for ax, learner in zip(axes, (lost, found), strict=True):
    RecoveryDisplay.from_estimator(learner, truth, ax=ax)
axes[0].set_title("ae-ls from samples")
axes[1].set_title("defaults")
plt.show()
