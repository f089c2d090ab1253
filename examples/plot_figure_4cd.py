"""
Figures 4c and 4d: recovery by each gradient
============================================

Training with ``ae-ls`` recovers the dictionary that the lasso misses.

``dec`` and ``ae-lasso`` are drawn to the minimiser of the lasso risk, which is not the dictionary
that generated the data; ``ae-ls`` ends closer to the truth. With few unfoldings (left) ``ae-lasso``
is ahead of ``dec``, because its gradient has converged where the codes have not; with many (right)
the two are nearly the same (figures 4c and 4d of the PUDLE paper [1]_).
"""

# %%

import matplotlib.pyplot as plt
from convergence import training_convergence

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary

x, truth, _ = make_dictionary_data(500, 25, 40, 3, sign="sample", random_state=0)
start = perturb_dictionary(truth, 0.35, random_state=1)

DEPTHS, GRADIENTS = (25, 60), ("dec", "ae-lasso", "ae-ls")
curves = {}
for depth in DEPTHS:
    for gradient in GRADIENTS:
        learner = PUDLEDictionaryLearning(
            alpha=0.2,
            gradient=gradient,
            n_unfoldings=depth,
            step_size=0.2,
            learning_rate=6e-3,
            batch_size=len(x),
            dict_init=start,
            random_state=0,
        )
        curves[depth, gradient] = training_convergence(
            learner, x, n_epochs=80, references={"truth": (truth, None)}
        )

# %%

figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
for axis, depth in zip(axes, DEPTHS):
    for gradient in GRADIENTS:
        curve = curves[depth, gradient]
        axis.semilogy(
            curve.epoch, curve.truth, label=f"{gradient}, ends at {curve.truth[-1]:.2f}"
        )
    axis.set(xlabel="Epoch", title=f"$T = {depth}$")
    axis.legend()
axes[0].set_ylabel(r"$|D - \tilde D|_F$")
plt.show()

# %%
# .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
#    backpropagation", arXiv:2106.00058, 2021.
