"""
Choose a gradient
=================

``ae-ls`` ends several times nearer to the dictionary that made the data.

Data from a known dictionary, a start near it, and the three gradients of the paper. The lasso's
penalty biases codes and, with them, the dictionaries of ``dec`` and ``ae-lasso``.
"""

import matplotlib.pyplot as plt
import numpy as np

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error
from skpudle.plotting import ConvergenceDisplay, LossCurveDisplay, RecoveryDisplay

X, truth, _ = make_dictionary_data(1000, 50, 80, 4, sign="sample", random_state=0)
start = perturb_dictionary(truth, 0.5, random_state=1)

# %%

shared = dict(
    n_unfoldings=50,
    learning_rate=3e-3,
    dict_init=start,
    max_iter=25,
    tol=None,
    random_state=0,
)
learners = {
    "dec": PUDLEDictionaryLearning(alpha=0.2, gradient="dec", **shared),
    "ae-lasso": PUDLEDictionaryLearning(alpha=0.2, gradient="ae-lasso", **shared),
    "ae-ls": PUDLEDictionaryLearning(alpha=0.2, **shared),
}
print(f"{'start':<12}error {dictionary_error(start, truth, match=True):.4f}")
for name, learner in learners.items():
    learner.fit(X)
    error = dictionary_error(learner.components_, truth, match=True)
    print(f"{name:<12}error {error:.4f}")

# %%
# The loss is the same quantity for all of them, the error of reconstruction, so curves compare.

LossCurveDisplay.from_estimators(learners)
plt.show()

# %%
# Learned atoms against true ones: where an atom is recovered, the diagonal is 1.

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
RecoveryDisplay.from_dictionaries(start, truth, ax=axes[0])
axes[0].set_title("Start")
RecoveryDisplay.from_estimator(learners["ae-ls"], truth, ax=axes[1])
axes[1].set_title("ae-ls")
plt.show()

# %%
# How deep is deep enough? The codes of the learned dictionary converge at a linear rate. The
# gradient of ae-lasso, through the encoder, converges twice as fast as dec's; ae-ls tends to
# another limit.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
few = X[np.arange(100)]
ConvergenceDisplay.from_estimator(learners["dec"], few, n_unfoldings=100, ax=axes[0])
ConvergenceDisplay.from_estimator(
    learners["dec"], few, kind="gradient", n_unfoldings=100, ax=axes[1]
)
plt.show()
