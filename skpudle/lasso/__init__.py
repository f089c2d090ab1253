r"""Converged codes: the lasso, solved to rounding and certified by its duality gap.

For every row ``x`` of the data the codes minimise

.. math:: P(z) = \tfrac12 |x - D z|^2 + \sum_j \alpha_j |z_j|, \qquad (z \ge 0 \text{ if positive}),

the limit of the unfolded encoder with its depth. An active set method (in torch, or compiled by
numba on the CPU) ends with the exact solution on a support. The certificate does not depend on the
method: any ``u`` with :math:`|\langle d_j, u \rangle| \le \alpha_j` bounds the minimum from below
by :math:`\tfrac12 |x|^2 - \tfrac12 |x - u|^2`, and a scaled residual is such a ``u``. (The compiled
solver has the correlations of that residual, and certifies in passing.)

Near a solution with support S the codes are a smooth function of all arguments, so the derivative
is implicit: from ``delta = dLoss/dz``,

.. math::
    u_S &= G_{SS}^+ \delta_S, \qquad \frac{dL}{dx} = D u, \qquad
    \frac{dL}{d\alpha_j} = - \operatorname{sign}(z_j)\, u_j, \\
    \frac{dL}{d\,\text{atoms}} &= \text{outer}(u, x - D z) - \text{outer}(z, D u).

Where a row misses entries, its mask :math:`m` multiplies :math:`x - D z`, :math:`D u` and the terms
of :math:`G_{SS} = D_S^T \operatorname{diag}(m) D_S`, so the known entries alone decide its codes.

With the pseudo-inverse the derivative is defined for repeated atoms, and for supports larger than
the number of features. Everything here is computed in float64, because float32 does not resolve a
gap of 1e-6.

Without a penalty, non-negative codes are non-negative least squares, which `solve_nnls` solves and
certifies: any ``u`` with :math:`\langle d_j, u \rangle \le 0` bounds the minimum from below by
:math:`\langle x, u \rangle - \tfrac12 |u|^2`.
"""

from skpudle.lasso._solve import duality_gap, solve_lasso, solve_nnls

__all__ = ["duality_gap", "solve_lasso", "solve_nnls"]
