r"""
Figure 2: convergence of codes
==============================

Once their support is found, codes converge at a linear rate.

The unfolded encoder first finds the atoms that a sample uses, in finitely many unfoldings
(proposition 3.1 of the PUDLE paper [1]_). From then on it is a linear recursion: the code error
falls by a constant factor per unfolding (theorem 3.1, figure 2), an eigenvalue of :math:`I - s
D_S^T D_S`. The Jacobian of the codes, which backpropagation uses, follows with a delay, as :math:`t
\rho^{t-1}` (theorem 3.2).
"""

# %%
# Samples of the paper's generative model, and a dictionary near the one that generated them.

import matplotlib.pyplot as plt
import numpy as np
from convergence import code_convergence

from skpudle.datasets import make_dictionary_data, perturb_dictionary

x, truth, code = make_dictionary_data(200, 50, 100, 5, sign="sample", random_state=0)
atoms = perturb_dictionary(truth, 0.14, random_state=1)
atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)

curves = code_convergence(
    x, atoms, alpha=0.2, step_size=0.2, n_unfoldings=200, random_state=0
)

# %%
# The errors fall at the rate that the eigenvalues predict:

known = np.isfinite(curves.observed_rate)
print(f"median support time: {np.median(curves.support_time):.0f} unfoldings")
print(f"median rate: {np.median(curves.observed_rate[known]):.4f} observed")
print(f"             {np.median(curves.rate[known]):.4f} predicted")

# %%
# Lines are medians over the samples, bands the 10th to 90th percentile.

figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
errors = {
    r"code, $|z_t - \hat z|$": curves.code_error,
    r"Jacobian, $|J_t - \hat J|_F$": curves.jacobian_error,
}
for label, error in errors.items():
    low, median, high = np.percentile(error, [10, 50, 90], axis=1)
    axis.semilogy(curves.n_unfoldings, median, label=label)
    axis.fill_between(curves.n_unfoldings, low, high, alpha=0.2)
axis.axvline(
    np.median(curves.support_time),
    color="gray",
    linestyle=":",
    label="support is found",
)
axis.set(
    xlabel="Unfolding $t$", ylabel="Error", title="Figure 2: codes and their Jacobian"
)
axis.legend()
plt.show()

# %%
# .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit acceleration of dictionary learning by
#    backpropagation", arXiv:2106.00058, 2021.
