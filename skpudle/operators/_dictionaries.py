"""Dense and convolutional dictionaries, and what holds for the atoms of both."""

from dataclasses import dataclass, replace
from math import ceil, cos, pi

import torch
from torch import Tensor

from skpudle.operators._phases import Phases

__all__ = [
    "ConvDictionary",
    "DenseDictionary",
    "atom_norms",
    "largest_eigenvalue_bound",
    "project_atoms",
]

# Powers by repeated squaring: the 2**8-th root of the number of eigenvalues is below 1.05 for up to
# 265,000 of them.
_SQUARINGS = 7

# Samples of the symbol of a convolution for each degree: bounds are 4 % an axis above the maximum.
_SAMPLES_PER_DEGREE = 8


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


def largest_eigenvalue_bound(gram):  # (..., k, k) Hermitian, positive semidefinite -> (...)
    r"""Bound the largest eigenvalue from above, by at most 5 %.

    With ``q = 2^8``, ``max <= (sum_i w_i^q)^(1/q) <= k^(1/q) max``, and the sum is the squared
    Frobenius norm of ``gram^(q/2)``. Unlike a power or Lanczos iteration this never errs low, has
    no start vector that an atom could be orthogonal to, and does not make a GPU wait for the host.
    """
    norm = torch.linalg.matrix_norm(gram)
    log_bound = norm.log()
    power = gram / norm[..., None, None]
    for squaring in range(1, _SQUARINGS + 1):
        power = power @ power
        norm = torch.linalg.matrix_norm(power)
        log_bound = log_bound + norm.log() / 2**squaring
        power = power / norm[..., None, None]
    # of the sums, and of the logarithms and the exponential, which count for small matrices
    rounding = 1 + (gram.shape[-1] + 16) * torch.finfo(gram.dtype).eps
    return torch.nan_to_num(
        log_bound.exp() * rounding, nan=0.0
    )  # the logarithm of 0 for zero atoms


def _scaled(atoms):  # -> atoms whose squares neither underflow nor overflow, squared scale
    largest = atoms.abs().max()
    return atoms / torch.where(largest > 0, largest, torch.ones_like(largest)), largest.square()


def _smaller_gram(a):  # (..., p, m) -> (..., min(p, m), min(p, m))
    return a @ a.mH if a.shape[-2] <= a.shape[-1] else a.mH @ a


@dataclass(frozen=True, eq=False)
class DenseDictionary:
    """The trilinear form ``<z @ atoms, x>`` and its three partial derivatives.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        One atom per row.
    """

    atoms: Tensor

    def synthesis(self, z):  # (n, n_components) -> (n, n_features)
        """Return the data that the codes ``z`` stand for, ``D z``."""
        return z @ self.atoms

    def analysis(self, x):  # (n, n_features) -> (n, n_components)
        """Return the correlations of the data with the atoms, ``D^T x``."""
        return x @ self.atoms.mT

    def outer(self, z, x):  # -> (n_components, n_features)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        return z.mT @ x

    def detach(self):
        """Return the same dictionary, cut off from automatic differentiation."""
        return replace(self, atoms=self.atoms.detach())

    def squared_norm_bound(self):  # -> scalar tensor
        """Bound the squared spectral norm from above, by at most 5 %."""
        atoms, scale = _scaled(self.atoms.detach())
        return largest_eigenvalue_bound(_smaller_gram(atoms)) * scale


@dataclass(frozen=True, eq=False)
class ConvDictionary:
    """The trilinear form of a convolution: atoms at every ``stride``-th position of an image.

    Images and atoms have their channels before their axes, of which there may be any number: one
    for signals, two for pictures. Every position holds a whole atom, so an axis of the image is
    as long as an atom plus a multiple of the stride.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, [height,] width)
        The atoms.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions, the same or one for each axis.
    """

    atoms: Tensor
    stride: int | tuple[int, ...] = 1

    def synthesis(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return the images that the code maps ``z`` stand for, ``D z``."""
        phases = self.phases(z.shape[2:])
        patches = self.atoms.flatten(1).mT @ phases.columns(phases.widen(z))
        return phases.join(phases.add(patches, len(z)))

    def analysis(self, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        """Return the correlations of the images with the atoms, ``D^T x``."""
        phases = self.phases(self.positions(x.shape[2:]))
        return phases.maps(self.atoms.flatten(1) @ phases.gather(phases.split(x)), len(x))

    def outer(self, z, x):  # -> (n_components, n_channels, *kernel)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        phases = self.phases(z.shape[2:])
        patches = phases.gather(phases.split(x))
        return (phases.columns(phases.widen(z)) @ patches.mT).view_as(self.atoms)

    def positions(self, size):  # -> tuple of int
        """Return the number of positions along each axis of images of the given size.

        Raises
        ------
        ValueError
            If atoms at these positions do not cover the image exactly.
        """
        axes = list(zip(size, self.atoms.shape[2:], self._strides, strict=True))
        if any(n < k or (n - k) % s for n, k, s in axes):
            covered = tuple(k + s * ceil(max(n - k, 0) / s) for n, k, s in axes)
            raise ValueError(
                f"Atoms of size {tuple(self.atoms.shape[2:])} at every {self._strides} pixels do "
                f"not cover an image of size {tuple(size)} exactly. Pad it to {covered}, for "
                "example, or pass another stride."
            )
        return tuple((n - k) // s + 1 for n, k, s in axes)

    def detach(self):
        """Return the same dictionary, cut off from automatic differentiation."""
        return replace(self, atoms=self.atoms.detach())

    def squared_norm_bound(self):  # -> scalar tensor
        r"""Bound the squared spectral norm from above, for images of any size.

        On an infinite image ``D^T D`` multiplies, at every frequency, by a matrix whose entries are
        trigonometric polynomials, of degree ``ceil(kernel / stride) - 1`` along each axis; the
        squared norm for any image is at most their largest eigenvalue. A non-negative polynomial of
        degree ``d`` is at most :math:`\frac12 (1 + 1 / \cos(\pi d / N))` times its maximum over
        ``N`` equidistant points [1]_, so that sampling never errs low.

        References
        ----------
        .. [1] H. Ehlich and K. Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
           Mathematische Zeitschrift 86, 1964.
        """
        atoms, scale = _scaled(self.atoms.detach())
        kernel, strides = atoms.shape[2:], self._strides
        degrees = [ceil(k / s) - 1 for k, s in zip(kernel, strides, strict=True)]
        phases = Phases(strides, strides, tuple(degree + 1 for degree in degrees))
        missing = [n - k for n, k in zip(phases.size, kernel, strict=True)]
        atoms = torch.nn.functional.pad(atoms, [n for m in reversed(missing) for n in (0, m)])
        blocks = phases.split(atoms)  # (n_channels, *stride, n_components, *blocks)
        n_samples = [max(1, _SAMPLES_PER_DEGREE * degree) for degree in degrees]
        axes = range(-len(degrees), 0)
        symbol = torch.fft.fftn(blocks.flatten(0, len(degrees)), s=n_samples, dim=tuple(axes))
        eigenvalues = largest_eigenvalue_bound(_smaller_gram(symbol.flatten(2).permute(2, 1, 0)))
        for degree, n in zip(degrees, n_samples, strict=True):
            scale = scale * (1 + 1 / cos(pi * degree / n)) / 2
        return eigenvalues.max() * scale

    @property
    def _strides(self):
        n_axes = self.atoms.ndim - 2
        return (self.stride,) * n_axes if isinstance(self.stride, int) else tuple(self.stride)

    def phases(self, positions):  # tuple of int -> Phases
        """Return the geometry of so many positions."""
        return Phases(tuple(self.atoms.shape[2:]), self._strides, tuple(positions))
