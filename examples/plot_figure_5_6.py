"""
Figures 5 and 6: recovery without shrinkage
===========================================

Codes that are not shrunk recover the true dictionary.

A lasso with a fixed penalty shrinks its codes, and training ends near the true dictionary but not
at it. If the penalty decays from unfolding to unfolding, more and more in the course of training,
or hard thresholding replaces it, the bias vanishes and so does the error (figures 5 and 6 of the
PUDLE paper [1]_). NOODL has the codes of hard thresholding too, but no gradient through the
encoder; its learning rate is not comparable with Adam's, and neither is its speed.

Here the problem is a seventh of the paper's; ``benchmarks/reproduce_paper.py`` runs it at full
size.
"""

# %%
# Every method sees the same batches of 50 samples, once.

import matplotlib.pyplot as plt
import numpy as np

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary

N_UPDATES, BATCH = 200, 50
x, truth, _ = make_dictionary_data(
    N_UPDATES * BATCH, 144, 216, 3, sign="sample", random_state=0
)
x = x.astype(np.float32)
start = perturb_dictionary(truth, 0.15, random_state=1)

shared = dict(
    n_unfoldings=60, step_size=0.2, batch_size=BATCH, dict_init=start, random_state=0
)
adam = dict(learning_rate=2e-3, **shared)
learners = {
    "ae-ls": PUDLEDictionaryLearning(alpha=0.2, **adam),
    "ae-ls, decay": PUDLEDictionaryLearning(alpha=0.2, **adam),
    "ae-ls, hard threshold": PUDLEDictionaryLearning(
        alpha=0.1, shrinkage="hard", **adam
    ),
    "NOODL": NOODLDictionaryLearning(threshold=0.1, learning_rate=3, **shared),
}

# %%
# The penalty of unfolding t is :math:`\lambda \beta^t`; in the course of training
# :math:`\beta` falls from 1 to 0.92.

updates = np.arange(10, N_UPDATES + 1, 10)
decays = np.linspace(1, 0.92, len(updates))
errors = {}
for name, learner in learners.items():
    errors[name] = []
    for samples, decay in zip(np.split(x, len(updates)), decays):
        if name == "ae-ls, decay":
            learner.set_params(lambda_decay=float(decay))
        learner.partial_fit(samples)
        distance = np.linalg.norm(learner.components_ - truth) / np.linalg.norm(truth)
        errors[name].append(distance)

# %%

figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
for name, error in errors.items():
    axis.semilogy(updates, error, label=name)
axis.set(
    xlabel="Update",
    ylabel=r"$|D - \tilde D|_F \, / \, |\tilde D|_F$",
    title="Figures 5 and 6, at a seventh of the size",
)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %%
# .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
#    backpropagation", arXiv:2106.00058, 2021.
