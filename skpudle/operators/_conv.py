"""Convolutional dictionaries."""

from dataclasses import dataclass, replace
from math import ceil, cos, pi

import torch
from torch import Tensor

from skpudle._precision import own_precision
from skpudle.operators._norms import largest_eigenvalue_bound, scaled, smaller_gram
from skpudle.operators._phases import Phases

__all__ = ["ConvDictionary", "ConvLayers"]

# Samples of the symbol of a convolution for each degree: bounds are 4 % an axis above the maximum.
_SAMPLES_PER_DEGREE = 8


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

    @own_precision()
    def synthesis(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return the images that the code maps ``z`` stand for, ``D z``."""
        phases = self.phases(z.shape[2:])
        patches = self.atoms.flatten(1).mT @ phases.columns(phases.widen(z))
        return phases.join(phases.add(patches, len(z)))

    @own_precision()
    def analysis(self, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        """Return the correlations of the images with the atoms, ``D^T x``."""
        phases = self.phases(self.positions(x.shape[2:]))
        return phases.maps(self.atoms.flatten(1) @ phases.gather(phases.split(x)), len(x))

    @own_precision()
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

    @own_precision()
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
        atoms, scale = scaled(self.atoms.detach())
        kernel, strides = atoms.shape[2:], self._strides
        degrees = [ceil(k / s) - 1 for k, s in zip(kernel, strides, strict=True)]
        phases = Phases(strides, strides, tuple(degree + 1 for degree in degrees))
        missing = [n - k for n, k in zip(phases.size, kernel, strict=True)]
        atoms = torch.nn.functional.pad(atoms, [n for m in reversed(missing) for n in (0, m)])
        blocks = phases.split(atoms)  # (n_channels, *stride, n_components, *blocks)
        n_samples = [max(1, _SAMPLES_PER_DEGREE * degree) for degree in degrees]
        axes = range(-len(degrees), 0)
        symbol = torch.fft.fftn(blocks.flatten(0, len(degrees)), s=n_samples, dim=tuple(axes))
        eigenvalues = largest_eigenvalue_bound(smaller_gram(symbol.flatten(2).permute(2, 1, 0)))
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


@dataclass(frozen=True, eq=False)
class ConvLayers:
    """Convolutional dictionaries of one shape, one for each unfolding of an encoder.

    Parameters
    ----------
    atoms : Tensor of shape (n_unfoldings, n_components, n_channels, [height,] width)
        Their atoms.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions, the same or one for each axis.
    """

    atoms: Tensor
    stride: int | tuple[int, ...] = 1

    def __getitem__(self, t):
        """Return the dictionary of unfolding ``t``."""
        return ConvDictionary(self.atoms[t], self.stride)

    def detach(self):
        """Return the same dictionaries, cut off from automatic differentiation."""
        return replace(self, atoms=self.atoms.detach())
