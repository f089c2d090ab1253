r"""Converged codes: the lasso, solved to rounding and certified by its duality gap.

For every row ``x`` of the data the codes minimise

.. math:: P(z) = \tfrac12 |x - D z|^2 + \sum_j \alpha_j |z_j|, \qquad (z \ge 0 \text{ if positive}),

to which the codes of the unfolded encoder converge as its depth grows. In formulas the atoms are
the columns ``d_j`` of ``D``; in code ``atoms`` has one atom a row, so ``D z`` is ``codes @ atoms``.

An active set method (in torch, or compiled by numba on the CPU) finds the support S of each row,
which is the set of atoms with nonzero codes, and the exact codes on it. The certificate does not
depend on the method: any dual point ``v`` with :math:`|\langle d_j, v \rangle| \le \alpha_j` bounds
the minimum from below by :math:`\tfrac12 |x|^2 - \tfrac12 |x - v|^2`, and the residual ``x - D z``
times a suitable number is such a ``v``. The *duality gap* is :math:`P(z)` minus this bound.

Near a solution the codes are a smooth function of data, atoms and penalty, so their derivatives
follow from the optimality conditions. Let :math:`\delta = dL/dz` be the derivative of a loss L in
the codes of one row, and :math:`G_{SS} = D_S^T D_S` the Gram matrix of the support. With a vector
u that has an entry for each atom, 0 outside of S,

.. math::
    u_S &= G_{SS}^+ \delta_S, \qquad \frac{dL}{dx} = D u, \qquad
    \frac{dL}{d\alpha_j} = - \operatorname{sign}(z_j)\, u_j, \\
    \frac{dL}{d\,\text{atoms}} &= \text{outer}(u, x - D z) - \text{outer}(z, D u).

If entries of a row are missing, the mask :math:`m` of the row, 1 for known entries and 0 for
missing ones, multiplies :math:`x - D z` and :math:`D u`, and :math:`G_{SS}` is
:math:`D_S^T \operatorname{diag}(m) D_S`. So the known entries alone decide the codes of the row.

With the pseudo-inverse :math:`G_{SS}^+` the derivative is defined for repeated atoms, and for
supports larger than the number of features. The solvers compute in float64, because float32 does
not resolve a gap of 1e-6.

Without a penalty, the lasso of non-negative codes is non-negative least squares, which `solve_nnls`
solves and certifies: any ``v`` with :math:`\langle d_j, v \rangle \le 0` bounds the minimum from
below by :math:`\langle x, v \rangle - \tfrac12 |v|^2`.
"""

from skpudle.lasso._nnls import solve_nnls
from skpudle.lasso._solve import duality_gap, solve_lasso

__all__ = ["duality_gap", "solve_lasso", "solve_nnls"]
