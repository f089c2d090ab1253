"""Norms and constraints of atoms, bounds of spectral norms, and the dense dictionary.

The functions of atoms take tensors of any shape, of which axis 0 counts the atoms.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from skpudle._precision import in_own_precision

# ---------------------------------------------------------------------------- atoms


def atom_norms(atoms):  # (n_components, ...) -> (n_components, 1, ...)
    """Return the Euclidean norm of each atom, in a shape that broadcasts against the atoms."""
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1)
    return norms.view([-1] + [1] * (atoms.ndim - 1))


def project_atoms(atoms, *, atom_norm="unit", positive=False, rank=None):
    """Return the nearest atoms that satisfy the constraints; training calls it after each update.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Atoms.
    atom_norm : {"unit", "ball", None}, default="unit"
        ``"unit"`` scales every atom to norm 1. ``"ball"`` scales atoms with a norm above 1 to norm
        1. ``None`` scales no atom. Atoms that are zero stay zero.
    positive : bool, default=False
        Whether atoms are restricted to non-negative entries.
    rank : {1, None}, default=None
        1: each atom, of shape (n_channels, *kernel), becomes the product of a map over the channels
        and one waveform, see `factor_atoms`. None: no restriction.

    Returns
    -------
    Tensor of shape (n_components, ...)
        The projected atoms. A second projection does not change them.
    """
    if rank == 1:
        maps, waveforms = factor_atoms(atoms)
        atoms = torch.einsum("kc,k...->kc...", maps, waveforms)
    unrestricted = atoms
    if positive:
        atoms = atoms.clamp_min(0)
    if atom_norm is None:
        return atoms
    norms = atom_norms(atoms)
    if atom_norm == "ball":
        return atoms / norms.clamp_min(1)
    if positive:
        # An atom without positive entries has become zero and cannot be scaled to norm 1. The
        # non-negative vector of norm 1 that is nearest to it is 1 at its largest entry, and 0
        # elsewhere.
        axis = torch.zeros_like(atoms).flatten(1)
        axis.scatter_(1, unrestricted.flatten(1).argmax(1, keepdim=True), 1)
        vanished = (norms == 0) & (atom_norms(unrestricted) > 0)
        atoms = torch.where(vanished, axis.view_as(atoms), atoms)
        norms = norms.masked_fill(vanished, 1)
    return torch.where(norms > 0, atoms / norms, atoms)


def factor_atoms(atoms):
    """Approximate each multichannel atom by a map over the channels times one waveform.

    The product is the nearest atom of rank one: the leading singular vectors of the atom as a
    matrix of channels times pixels.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Atoms.

    Returns
    -------
    maps : Tensor of shape (n_components, n_channels)
        The factor of the waveform in each channel. The norm of a map is the norm of the product.
    waveforms : Tensor of shape (n_components, *kernel)
        Waveforms of norm 1; that of a zero atom may be 0. The entry of largest modulus is
        positive.
    """
    matrices = atoms.flatten(2)
    if matrices.shape[1] <= matrices.shape[2]:
        leading = torch.linalg.eigh(matrices @ matrices.mT).eigenvectors[..., -1:]
        waveforms = (leading.mT @ matrices)[:, 0]
    else:
        waveforms = torch.linalg.eigh(matrices.mT @ matrices).eigenvectors[..., -1]
    extremes = waveforms.gather(1, waveforms.abs().argmax(1, keepdim=True))
    waveforms = torch.where(extremes < 0, -waveforms, waveforms)
    norms = torch.linalg.vector_norm(waveforms, dim=1, keepdim=True)
    waveforms = waveforms / torch.where(norms > 0, norms, 1.0)
    return (matrices @ waveforms[..., None])[..., 0], waveforms.view_as(atoms[:, 0])


# ---------------------------------------------------------------------------- spectral norms


def largest_eigenvalue_bound(gram):  # (..., k, k) -> (...)
    r"""Return a bound of the largest eigenvalue of each matrix, at most 5 % above it, never below.

    The matrices are Hermitian and positive semidefinite. Step sizes come from the bound, and an
    encoder with a bound that is too low might diverge.

    Let ``w_i`` be the ``k`` eigenvalues and ``q = 2^8``. Then ``max <= (sum_i w_i^q)^(1/q) <=
    k^(1/q) max``, and the sum is the squared Frobenius norm of ``gram^(q/2)``. Unlike a power or
    Lanczos iteration, this bound is never too low, needs no start vector (to which the leading
    eigenvector might be orthogonal), and does not make a GPU wait for the host.
    """
    norms = [torch.linalg.matrix_norm(gram)]
    power = gram
    # Seven squarings make gram^(2^7), so q is 2^8, and the bound is at most k^(1/q) times the
    # largest eigenvalue: less than 5 % above it for matrices of up to 265,000 rows. Before each
    # squaring the matrix is divided by its norm, so that no entry overflows.
    for _ in range(7):
        power = power / norms[-1][..., None, None]
        power = power @ power
        norms.append(torch.linalg.matrix_norm(power))
    norms = torch.stack(norms, dim=-1)
    exponents = -torch.arange(norms.shape[-1], dtype=norms.dtype, device=norms.device)
    # gram^(2^7) has the norm prod_i norms[i]^(2^(7 - i)), and its power 2^-7 is the bound
    log_bound = (norms.log() * exponents.exp2()).sum(-1)
    # a matrix of zeros gives NaN, from 0 / 0
    bound = torch.nan_to_num(log_bound.exp(), nan=0.0)
    # rounding errors of sums, logarithms and the exponential must not make the bound too low
    return bound * (1 + (gram.shape[-1] + 16) * torch.finfo(gram.dtype).eps)


def scaled(atoms):  # -> atoms of the same shape, scalar tensor
    """Divide atoms by the largest modulus of all their entries, so that squares stay in range.

    For the bounds of squared spectral norms. Return the divided atoms, and the square of the
    modulus, by which the caller multiplies a squared norm of the divided atoms to get that of the
    atoms. If all atoms are zero, they stay as they are.
    """
    largest = torch.linalg.vector_norm(atoms, ord=torch.inf)
    return atoms / torch.where(largest > 0, largest, 1.0), largest.square()


def smaller_gram(a):  # (..., p, m) -> (..., min(p, m), min(p, m))
    """Return the Gram matrix of the rows of ``a`` or of its columns, whichever is smaller.

    Both have the same eigenvalues, apart from zeros, and so the same largest one, which
    `largest_eigenvalue_bound` bounds.
    """
    a = a if a.shape[-2] <= a.shape[-1] else a.mH
    return a @ a.mH


# ---------------------------------------------------------------------------- the dictionary


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Base class of dictionaries; subclasses add ``synthesis``, ``analysis`` and ``outer``.

    The module `skpudle._operators` explains these methods. Atoms have axis 0 for the atoms.
    """

    atoms: Tensor

    def detach(self):
        """Return a dictionary of the same atoms without a graph of autograd."""
        return replace(self, atoms=self.atoms.detach())


class DenseDictionary(Dictionary):
    """The dictionary of rows of data: ``<z @ atoms, x>`` for codes ``z``, and its derivatives.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        One atom per row.
    """

    @in_own_precision
    def synthesis(self, z):  # (n, n_components) -> (n, n_features)
        """Return ``D z``, the data that the codes ``z`` stand for."""
        return z @ self.atoms

    @in_own_precision
    def analysis(self, x):  # (n, n_features) -> (n, n_components)
        """Return the correlations of the data with the atoms, ``D^T x``."""
        return x @ self.atoms.mT

    @in_own_precision
    def outer(self, z, x):  # -> (n_components, n_features)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        return z.mT @ x

    @in_own_precision
    def squared_norm_bound(self):  # -> scalar tensor
        """Return a bound of the squared spectral norm of the dictionary, at most 5 % above it.

        On a CPU, with at least 256 atoms and 256 features, the result is no strict bound, but 4.9 %
        above an estimate by Lanczos iterations. For a step size of 1 over the result that is safe:
        every step lowers the objective with any step size below 2 over the squared norm.
        """
        atoms, scale = scaled(self.atoms.detach())
        # 8 Lanczos iterations for large dictionaries. For 1500 atoms of 1000 features they take 4
        # ms, and `largest_eigenvalue_bound`, which squares matrices, takes 80 times as long
        # (float32, one core). The estimate is at most 5.1 % below the squared norm in 48
        # dictionaries (Gaussian, coherent, non-negative, with a third of zeros, with features of
        # falling power, of rank 1), and 3.1 % after 16 iterations, which take 7 ms.
        # `scale` is 0 for atoms of zeros, and infinite if its square overflows.
        is_large = min(atoms.shape) >= 256 and atoms.device.type == "cpu"
        if is_large and 0 < scale < torch.inf:
            k = atoms.shape[1]
            # torch multiplies, with the number of threads that is set for torch
            gram = LinearOperator(
                (k, k),
                lambda v: np.asarray(atoms.mT @ (atoms @ torch.as_tensor(v))),
                dtype=np.asarray(atoms).dtype,
            )
            start = np.random.default_rng(0).standard_normal(k)
            eigenvalues = eigsh(
                gram, k=1, ncv=8, tol=0.2, v0=start, return_eigenvectors=False
            )
            return 1.049 * atoms.new_tensor(eigenvalues[0]) * scale
        return largest_eigenvalue_bound(smaller_gram(atoms)) * scale
