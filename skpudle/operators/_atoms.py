"""Matrices of atoms: norms and constraints, the spectral norm, and the dictionary that they are.

The functions are those of every dictionary, whatever the shape of its atoms.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skpudle._precision import in_own_precision

__all__ = [
    "DenseDictionary",
    "atom_norms",
    "largest_eigenvalue_bound",
    "project_atoms",
    "scaled",
    "smaller_gram",
]

# Powers by repeated squaring: the 2**8-th root of the number of eigenvalues is below 1.05 for up to
# 265,000 of them.
_SQUARINGS = 7

# From so many rows on a certified estimate takes less time than squaring (one CPU core): 0.7 and
# 2.7 ms for 256, 12 and 145 ms for 1000, but 0.4 and 0.4 ms for 128.
_LARGE = 256
# A Krylov space of so many blocks of so many vectors finds the largest eigenvalue of 1000 x 1000
# matrices without gaps in their spectrum up to 0.6 %; with 6 blocks it misses 2 %.
_BLOCK, _DEPTH = 4, 10
_MARGIN = 1.02

# ---------------------------------------------------------------------------- atoms


def atom_norms(atoms):  # (n_components, ...) -> (n_components, 1, ...)
    """Return the Euclidean norm of each atom, shaped to broadcast against the atoms."""
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (atoms.ndim - 1))


def project_atoms(atoms, *, atom_norm="unit", positive=False):
    """Return the nearest atoms that satisfy the constraints.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Atoms, one per entry of the first axis.
    atom_norm : {"unit", "ball", None}, default="unit"
        ``"unit"`` scales every atom to norm 1, ``"ball"`` only longer ones, ``None`` none.
        Atoms that are zero stay zero.
    positive : bool, default=False
        Whether atoms are restricted to non-negative entries.

    Returns
    -------
    Tensor of shape (n_components, ...)
        The projected atoms; projecting twice is projecting once.
    """
    free = atoms
    if positive:
        atoms = atoms.clamp_min(0)
    if atom_norm is None:
        return atoms
    norms = atom_norms(atoms)
    if atom_norm == "ball":
        return atoms / norms.clamp_min(1)
    if positive:
        # the nearest non-negative unit vector of an atom without positive entries is an axis
        axis = torch.zeros_like(atoms).flatten(1)
        axis.scatter_(1, free.flatten(1).argmax(1, keepdim=True), 1)
        vanished = (norms == 0) & (atom_norms(free) > 0)
        atoms = torch.where(vanished, axis.view_as(atoms), atoms)
        norms = torch.where(vanished, torch.ones_like(norms), norms)
    return torch.where(norms > 0, atoms / norms, atoms)


# ---------------------------------------------------------------------------- spectral norms


def _estimate(gram):  # (k, k) -> largest eigenvalue of a part of it, or None
    start = torch.arange(1, 1 + _BLOCK * len(gram), dtype=gram.dtype, device=gram.device)
    blocks = [start.square().sin().view(-1, _BLOCK)]
    for _ in range(_DEPTH):
        blocks.append(torch.linalg.qr(gram @ blocks[-1]).Q)
    basis = torch.linalg.qr(torch.cat(blocks[1:], dim=1)).Q
    part = basis.mH @ (gram @ basis)
    return torch.linalg.eigvalsh(part)[-1] if part.isfinite().all() else None


def _certified_estimate(gram):  # (k, k) -> scalar tensor or None
    """Return a bound by 2 % above an estimate, if a Cholesky factor proves that it is one."""
    estimate = _estimate(gram)
    if estimate is None:
        return None
    rest = -gram
    rest.diagonal().add_(_MARGIN * estimate)
    _, failed = torch.linalg.cholesky_ex(rest)
    return None if failed else _MARGIN * estimate


def _bound_by_squaring(gram):  # (..., k, k) -> (...)
    norms, power = [torch.linalg.matrix_norm(gram)], gram
    for _ in range(_SQUARINGS):
        power = power / norms[-1][..., None, None]
        power = power @ power
        norms.append(torch.linalg.matrix_norm(power))
    exponents = torch.arange(len(norms), dtype=gram.real.dtype, device=gram.device).neg_().exp2_()
    log_bound = (torch.stack(norms, dim=-1).log() * exponents).sum(-1)
    return torch.nan_to_num(log_bound.exp(), nan=0.0)  # the logarithm of 0 for zero atoms


def largest_eigenvalue_bound(gram):  # (..., k, k) Hermitian, positive semidefinite -> (...)
    r"""Bound the largest eigenvalue from above, by at most 5 %.

    With ``q = 2^8``, ``max <= (sum_i w_i^q)^(1/q) <= k^(1/q) max``, and the sum is the squared
    Frobenius norm of ``gram^(q/2)``. Unlike a power or Lanczos iteration this never errs low, has
    no start vector that an atom could be orthogonal to, and does not make a GPU wait for the host.

    On a CPU, where products of large matrices take their time, a number slightly above what a
    Krylov space finds is tried first: it is a bound if ``bound - gram`` has a Cholesky factor.
    """
    bound = None
    if gram.ndim == 2 and len(gram) >= _LARGE and gram.device.type == "cpu":
        bound = _certified_estimate(gram)
    if bound is None:
        bound = _bound_by_squaring(gram)
    # of the sums or factors, and of the logarithms and the exponential, which count for small ones
    return bound * (1 + (gram.shape[-1] + 16) * torch.finfo(gram.dtype).eps)


def scaled(atoms):  # -> (atoms, squared scale)
    """Return atoms whose squares neither underflow nor overflow, and what they are divided by."""
    largest = torch.linalg.vector_norm(atoms, ord=torch.inf)
    return atoms / torch.where(largest > 0, largest, 1.0), largest.square()


def smaller_gram(a):  # (..., p, m) -> (..., min(p, m), min(p, m))
    """Return the smaller of the Gram matrices of rows and of columns."""
    a = a if a.shape[-2] <= a.shape[-1] else a.mH
    if a.ndim > 2 or len(a) < _LARGE:
        return a @ a.mH
    gram, length = a.new_zeros(len(a), len(a)), -(-len(a) // 4)
    for first in range(0, len(a), length):  # five eighths of the product: it is Hermitian
        gram[first : first + length, : first + length] = (
            a[first : first + length] @ a[: first + length].mH
        )
    return gram.tril_().add_(gram.tril(-1).mH)


# ---------------------------------------------------------------------------- the dictionary


@dataclass(frozen=True, eq=False)
class DenseDictionary:
    """The trilinear form ``<z @ atoms, x>`` and its three partial derivatives.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        One atom per row.
    """

    atoms: Tensor

    @in_own_precision
    def synthesis(self, z):  # (n, n_components) -> (n, n_features)
        """Return the data that the codes ``z`` stand for, ``D z``."""
        return z @ self.atoms

    @in_own_precision
    def analysis(self, x):  # (n, n_features) -> (n, n_components)
        """Return the correlations of the data with the atoms, ``D^T x``."""
        return x @ self.atoms.mT

    @in_own_precision
    def outer(self, z, x):  # -> (n_components, n_features)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        return z.mT @ x

    def detach(self):
        """Return the same dictionary, cut off from automatic differentiation."""
        return replace(self, atoms=self.atoms.detach())

    @in_own_precision
    def squared_norm_bound(self):  # -> scalar tensor
        """Bound the squared spectral norm from above, by at most 5 %."""
        atoms, scale = scaled(self.atoms.detach())
        return largest_eigenvalue_bound(smaller_gram(atoms)) * scale
