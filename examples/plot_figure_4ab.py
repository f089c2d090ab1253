r"""
Figures 4a and 4b: targets of the gradients
===========================================

``ae-lasso`` points to the lasso's dictionary, ``ae-ls`` to the true one.

The lasso shrinks codes, so the dictionary :math:`D^*` that minimises its risk is not the dictionary
:math:`\tilde D` that generated the data. The gradients ``dec`` and ``ae-lasso`` end close to the
gradient :math:`g^*` that leads to :math:`D^*`. ``ae-ls``, biased there, ends closer than they do to
the gradient :math:`\tilde g` of the true codes (theorem 3.4, figures 4a and 4b of the PUDLE paper
[1]_).
"""

# %%

import matplotlib.pyplot as plt
import numpy as np
from convergence import gradient_convergence, lasso_dictionary

from skpudle.datasets import make_dictionary_data, perturb_dictionary

x, truth, code = make_dictionary_data(1000, 50, 100, 5, sign="sample", random_state=0)
atoms = perturb_dictionary(truth, 0.14, random_state=1)
atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)

best = lasso_dictionary(x, truth, alpha=0.2, tol=1e-3)
curves = gradient_convergence(
    x,
    atoms,
    alpha=0.2,
    step_size=0.2,
    n_unfoldings=[1, 2, 3, 5, 8, 13, 20, 30, 45, 70, 100, 150],
    code=code,
    minimizer=best.components,
)

# %%
# Distances at the last depth:

for name, minimizer, true in zip(curves.gradient, curves.minimizer, curves.truth):
    print(
        f"{name:9} to g*: {minimizer[-1]:.4f}   to the gradient of true codes: {true[-1]:.4f}"
    )

# %%

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
panels = {
    r"(a) $|g_t - g^*|_F$": curves.minimizer,
    r"(b) $|g_t - \tilde g|_F$": curves.truth,
}
for axis, (title, distances) in zip(axes, panels.items()):
    for name, distance in zip(curves.gradient, distances):
        axis.loglog(curves.n_unfoldings, distance, marker=".", label=name)
    axis.set(xlabel="Unfolding $t$", title=title)
axes[0].legend()
plt.show()

# %%
# .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
#    backpropagation", arXiv:2106.00058, 2021.
