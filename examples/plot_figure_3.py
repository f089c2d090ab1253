r"""
Figure 3: convergence of gradients
==================================

Through the encoder, a gradient converges twice as fast.

Alternating minimisation needs converged codes; a gradient that goes through the encoder does not.
With codes after t unfoldings the error of ``dec``, which holds the codes constant, falls as
:math:`\rho^t`, and the error of ``ae-lasso`` as :math:`t \rho^{2t-1}`. ``ae-ls`` is a biased
estimate of the same gradient and levels off (theorem 3.3 and figure 3 of the PUDLE paper [1]_).
"""

# %%
# All gradients are compared with the gradient of converged codes, sample by sample.

import matplotlib.pyplot as plt
import numpy as np
from convergence import code_convergence, gradient_convergence

from skpudle.datasets import make_dictionary_data, perturb_dictionary

DEPTH = 150
x, truth, code = make_dictionary_data(30, 50, 100, 5, sign="sample", random_state=0)
atoms = perturb_dictionary(truth, 0.14, random_state=1)
atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)

settings = dict(alpha=0.2, step_size=0.2, n_unfoldings=DEPTH)
curves = gradient_convergence(x, atoms, per_sample=True, **settings)
support_time = code_convergence(x, atoms, n_directions=0, **settings).support_time

# %%
# The ratio of the exponents of ``ae-lasso`` and ``dec``, from the slopes of the logarithms 30 to
# 60 unfoldings after each sample's support was found. The theorem says 2.

ratios = []
for sample, start in enumerate(support_time):
    if start + 60 <= DEPTH:
        t = np.arange(start + 30, start + 60)
        errors = curves.local[:2, t - 1, sample]
        dec, ae_lasso = (np.polyfit(t, np.log(error), 1)[0] for error in errors)
        ratios.append(ae_lasso / dec)
print(
    f"median ratio of the slopes: {np.median(ratios):.3f}, over {len(ratios)} samples"
)

# %%

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
for name, error in zip(curves.gradient, curves.local):
    axis.semilogy(curves.n_unfoldings, np.median(error, axis=1), label=name)
axis.set(
    xlabel="Unfolding $t$",
    ylabel=r"$|g_t - \hat g|_F$, median over samples",
    title="Figure 3: distance to the gradient of converged codes",
)
axis.legend()
plt.show()

# %%
# .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
#    backpropagation", arXiv:2106.00058, 2021.
