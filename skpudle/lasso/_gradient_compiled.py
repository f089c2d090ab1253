r"""Converged codes and the derivative of their loss, in one go, compiled by numba.

With the residual :math:`r = x - D z` and :math:`\delta = -D^T r` of `skpudle.lasso`, a sample adds

.. math:: \text{outer}(u - z, r) - \text{outer}(z, D u), \qquad u_S = G_{SS}^{-1} \delta_S,

to the derivative of :math:`\tfrac12 |r|^2` in the atoms if codes move with the atoms; else u is 0.
Where entries are missing, a mask multiplies r, D u and the terms of the sums in :math:`G_{SS}`.
By automatic differentiation 20 epochs of ae-ls take 1.65 to 1.85 times as long (1,000 and 1,797
rows of 64 features, 50 and 64 atoms; one core). The functions are plain Python until `loops`
compiles them.
"""

import numpy as np

from skpudle._compilation import Loops
from skpudle.lasso._batched import MOST_ROUNDS
from skpudle.lasso._compiled import solve
from skpudle.lasso._gap import known_entries

# Most multiplications for loops on one thread. With 6e7 (512 atoms of 144 features, 256 samples)
# torch takes 5 instead of 15 ms.
_MOST_WORK = 2 * 10**7
# Distance of a squared cosine from 1, and least pivot of a support, below which automatic
# differentiation takes over from the loops.
_NEARLY_PARALLEL = 1e-9


def are_distinct(gram, dependent):
    """Return whether all atoms are finite and not zero, and no two are parallel."""
    for j in range(len(gram)):
        if not 0.0 < gram[j, j] < np.inf:
            return False
        for k in range(j):
            if gram[j, k] ** 2 > (1.0 - dependent) * gram[j, j] * gram[k, k]:
                return False
    return True


def _gather(atoms, gram, mask, support, k, inner):
    """Set the lower half of ``inner = D_S diag(mask) D_S^T``; without a mask, copy it from Gram."""
    for i in range(k):
        for j in range(i + 1):
            if len(mask) == 0:
                inner[i, j] = gram[support[i], support[j]]
            else:
                total = 0.0
                for f in range(len(mask)):
                    total += mask[f] * atoms[support[i], f] * atoms[support[j], f]
                inner[i, j] = total


def _invert(inner, k, factor, u, dependent):
    """Turn ``u`` into ``inner^{-1} u``; return False where that is not well-defined."""
    for i in range(k):
        for j in range(i + 1):
            total = inner[i, j]
            for t in range(j):
                total -= factor[i, t] * factor[j, t]
            if j < i:
                factor[i, j] = total / factor[j, j]
        if not total > dependent * inner[i, i]:
            return False
        factor[i, i] = np.sqrt(total)
        for j in range(i):
            u[i] -= factor[i, j] * u[j]
        u[i] /= factor[i, i]
    for i in range(k - 1, -1, -1):
        u[i] /= factor[i, i]
        for j in range(i):
            u[j] -= factor[i, j] * u[i]
    return True


def differentiate(atoms, gram, x, mask, through_encoder, dependent, codes, losses, gradient):
    """Add the derivatives of all rows to ``gradient``; return whether they are well-defined."""
    n_components, n_features = atoms.shape
    support, factor = np.empty(n_components + 1, np.int64), np.empty((n_components, n_components))
    inner = np.empty((n_components, n_components))
    u, residual, image = np.empty(n_components), np.empty(n_features), np.zeros(n_features)
    for row in range(len(x)):
        known = mask[row]
        k = np.int64(0)
        for f in range(n_features):
            residual[f] = x[row, f]
        for j in range(n_components):  # without a branch, which would be mispredicted
            support[k] = j
            k += codes[row, j] != 0.0
        for i in range(k):
            j, z = support[i], codes[row, support[i]]
            for f in range(n_features):
                residual[f] -= z * atoms[j, f]
        for f in range(len(known)):
            residual[f] *= known[f]
        for f in range(n_features):
            losses[row] += 0.5 * residual[f] ** 2
            image[f] = 0.0
        for i in range(k):
            u[i] = 0.0
            if through_encoder:
                for f in range(n_features):
                    u[i] -= residual[f] * atoms[support[i], f]
        if through_encoder:
            _gather(atoms, gram, known, support, k, inner)
            if not _invert(inner, k, factor, u, dependent):
                return False
            for i in range(k):
                for f in range(n_features):
                    image[f] += u[i] * atoms[support[i], f]
            for f in range(len(known)):
                image[f] *= known[f]
        for i in range(k):
            j, z, direct = support[i], codes[row, support[i]], u[i] - codes[row, support[i]]
            for f in range(n_features):
                gradient[j, f] += direct * residual[f] - z * image[f]
    return True


loops = Loops(globals())


def lasso_gradient(atoms, x, alpha, *, positive=False, through_encoder, mask=None):
    r"""Solve the lasso, and differentiate its reconstruction loss in the atoms.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    x : Tensor of shape (n_samples, n_features)
        Data.
    alpha : float
        Penalty.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    through_encoder : bool
        Whether codes move with the atoms, or are held constant.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.

    Returns
    -------
    tuple of Tensor, or None
        Codes (n_samples, n_components), losses :math:`\frac12 |x - D z|^2` of the known entries
        (n_samples,), and the derivative of their mean in the atoms. None where automatic
        differentiation does better: for large batches, for tensors that are not on the CPU, and for
        atoms that depend on each other.
    """
    n_components, n_features = atoms.shape
    work = (len(x) + n_components) * n_components * n_features
    if atoms.device.type != "cpu" or x.device.type != "cpu" or not 0 < work <= _MOST_WORK:
        return None
    x, known = known_entries(x, mask)
    known = x.new_empty(len(x), 0) if known is None else known
    wide, rows, known = (t.detach().double().contiguous() for t in (atoms, x, known))
    gram, losses, gradient = wide @ wide.mT, rows.new_zeros(len(x)), wide.new_zeros(wide.shape)
    # the arrays share the memory of the tensors
    d, data, m, g = (np.asarray(t) for t in (wide, rows, known, gram))
    if not loops.are_distinct(g, _NEARLY_PARALLEL):
        return None
    how = dict(penalties=[alpha], positive=positive, max_iter=MOST_ROUNDS, mask=known)
    (codes,) = solve(wide, gram, rows, **how)
    z = np.asarray(codes)
    sums = np.asarray(losses), np.asarray(gradient)
    if not loops.differentiate(d, g, data, m, through_encoder, _NEARLY_PARALLEL, z, *sums):
        return None
    return codes.to(x.dtype), losses.to(x.dtype), gradient.div_(len(x)).to(x.dtype)
