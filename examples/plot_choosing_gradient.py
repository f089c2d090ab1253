"""
Choose a gradient
=================

``ae-ls`` ends several times nearer to the dictionary that made the data.

Data from a known dictionary, a start near it, and the three gradients of the paper. The lasso's
penalty biases codes and, with them, the dictionaries of ``dec`` and ``ae-lasso``.
"""

import matplotlib.pyplot as plt
import numpy as np
from convergence import code_convergence, gradient_convergence

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary
from skpudle.metrics import dictionary_error
from skpudle.plotting import LossCurveDisplay, RecoveryDisplay

X, truth, _ = make_dictionary_data(1000, 50, 80, 4, sign="sample", random_state=0)
start = perturb_dictionary(truth, 0.5, random_state=1)

# %%

shared = dict(
    n_unfoldings=50,
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
# Those of ``dec`` and ``ae-lasso`` lie on each other.

LossCurveDisplay.from_estimator(learners)
plt.show()

# %%
# Learned atoms against true ones: where an atom is recovered, the diagonal is 1.

figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
RecoveryDisplay.from_estimator(start, truth, ax=axes[0])
axes[0].set_title("Start")
RecoveryDisplay.from_estimator(learners["ae-ls"], truth, ax=axes[1])
axes[1].set_title("ae-ls")
plt.show()

# %%
# How deep is deep enough? The codes of the learned dictionary converge at a linear rate. The
# gradient of ae-lasso, through the encoder, converges twice as fast as dec's; ae-ls tends to
# another limit.

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
learned = learners["dec"]
problem = X[:100], learned.components_
settings = dict(alpha=learned.alpha_, step_size=learned.step_size_, n_unfoldings=100)
codes = code_convergence(*problem, n_directions=0, **settings)
axes[0].semilogy(codes.n_unfoldings, np.median(codes.code_error, axis=1))
axes[0].set(xlabel="Unfolding $t$", ylabel="Error", title="Codes, median of samples")
gradients = gradient_convergence(*problem, **settings)
for name, error in zip(gradients.gradient, gradients.local):
    axes[1].semilogy(gradients.n_unfoldings, error, label=name)
axes[1].set(xlabel="Unfolding $t$", title="Gradients")
axes[1].legend()
plt.show()
