r"""Convolutional dictionaries, as products of matrices in any number of dimensions.

In a convolution with stride ``s`` atoms start at every ``s``-th pixel. Cut the image into *blocks*
of ``s`` pixels. A *phase* is a position inside a block. Store the pixels of each phase apart: block
after block and image after image in one line. Pixel ``a s + r`` of an atom at block ``b`` lies on
the pixel of phase ``r`` in block ``b + a``. So for each pixel of an atom one copy of a long
contiguous piece gathers the pixels of the image below it at all positions. Together the copies make
the matrix of all *patches*, one column per block. Its product with the atoms is the convolution.
The transposed copies add up overlapping patches. On a CPU the copies take a small part of the time
of the products. A BLAS computes the products at full speed, which torch's strided convolutions of
few channels do not reach.

Each axis has a few more blocks than positions, since an atom is larger than a block. Codes are zero
at blocks without a position. An encoder stays in this form from its first iteration to its last.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, cos, pi, prod
from operator import mul

import torch

from skpudle._compilation import BLOCK
from skpudle._operators._atoms import Dictionary, largest_eigenvalue_bound, scaled, smaller_gram
from skpudle._precision import in_own_precision

# ---------------------------------------------------------------------------- geometry


class _Copies(torch.autograd.Function):
    """Gather patches of phases or, given ``n``, add up patches to the phases of ``n`` images.

    Phases are (c, *stride, n, *blocks) and patches (c * prod(kernel), n_columns). The two linear
    maps are transposes of each other, so the backward pass of each is the other.
    """

    @staticmethod
    def forward(ctx, values, phases, n=None):
        """Return the patches of phases or, given ``n``, the phases of patches."""
        ctx.phases = phases
        ctx.n = values.shape[1 + len(phases.kernel)] if n is None else None
        if n is None:
            patches = phases.empty_patches(values)
            for patch, pixels in phases.pieces(patches, values):
                patch.copy_(pixels)
            return patches
        n_channels = len(values) // prod(phases.kernel)
        y = values.new_zeros(n_channels, *phases.stride, n, *phases.blocks)
        for patch, pixels in phases.pieces(values, y):
            pixels += patch
        return y

    @staticmethod
    def backward(ctx, gradient):
        """Return the derivative in ``values``, and None for the geometry and ``n``."""
        return _Copies.apply(gradient.contiguous(), ctx.phases, ctx.n), None, None


class Phases:
    """The geometry of a strided convolution, and the maps from images to phases and patches.

    Parameters
    ----------
    kernel, stride, positions : tuple of int
        Size of an atom, distance of neighbouring positions, and number of positions along each
        axis.
    """

    def __init__(self, kernel, stride, positions):
        # along an axis with a single position the whole atom is one block
        axes = zip(kernel, stride, positions, strict=True)
        axes = [(k, k if h == 1 else s, h) for k, s, h in axes]
        stride = tuple(s for _, s, _ in axes)
        self.kernel, self.stride, self.positions = kernel, stride, positions
        self.size = tuple(k + s * (h - 1) for k, s, h in axes)
        self.blocks = tuple(h - 1 + -(-k // s) for k, s, h in axes)
        strides = [prod(self.blocks[i + 1 :]) for i in range(len(axes))]
        self._slabs = []  # pixels of an atom, their phases, and their offset in blocks
        for shifts in product(*(range(-(-k // s)) for k, s, _ in axes)):
            pairs = [(a * s, min((a + 1) * s, k)) for a, (k, s, _) in zip(shifts, axes)]
            pixels = tuple(slice(*pair) for pair in pairs)
            phase = tuple(slice(stop - start) for start, stop in pairs)
            offset = sum(a * stride for a, stride in zip(shifts, strides, strict=True))
            self._slabs.append(((slice(None), *pixels), (slice(None), *phase), offset))
        self._reach = offset  # blocks from the first to the last pixel of an atom
        n_axes = len(axes)
        self._to_phases = [1, *range(3, 3 + 2 * n_axes, 2), 0, *range(2, 2 + 2 * n_axes, 2)]
        self._to_image = sorted(range(2 + 2 * n_axes), key=self._to_phases.__getitem__)
        self._in_blocks = [n for pair in zip(self.blocks, stride) for n in pair]
        ends = list(zip(self.blocks, stride, self.size, positions))
        ends.reverse()  # `pad` takes the last axis first
        self._beyond_image = [n for b, s, size, _ in ends for n in (0, b * s - size)]
        self._beyond_positions = [n for b, _, _, h in ends for n in (0, b - h)]
        self._image = (..., *map(slice, self.size))
        self._at_positions = (..., *map(slice, positions))

    def split(self, x):  # (n, c, *size) -> (c, *stride, n, *blocks)
        """Return the phases of images, with zeros where blocks go beyond the images."""
        x = torch.nn.functional.pad(x, self._beyond_image)
        x = x.reshape(*x.shape[:2], *self._in_blocks)
        return x.permute(self._to_phases).contiguous()

    def join(self, y):  # (c, *stride, n, *blocks) -> (n, c, *size)
        """Return the images of phases: the inverse of `split`."""
        x = y.permute(self._to_image)
        full = map(mul, self.blocks, self.stride)
        return x.reshape(*x.shape[:2], *full)[self._image]

    def patches(self, x):  # (n, c, *size) -> (c * prod(kernel), n_columns)
        """Return the patches of images at all positions, one per column."""
        return _Copies.apply(self.split(x), self)

    def n_columns(self, n):  # -> int
        """Return the number of columns of the matrix of patches of ``n`` images."""
        return n * prod(self.blocks) - self._reach

    def empty_patches(self, y):  # (c, *stride, n, *blocks) -> (c * prod(kernel), n_columns)
        """Return memory, not initialised, for the matrix of patches of the phases ``y``."""
        n = y.shape[1 + len(self.kernel)]
        return y.new_empty(len(y) * prod(self.kernel), self.n_columns(n))

    def pieces(self, patches, y):  # -> list of (view of patches, view of y)
        """Return pairs of views of ``patches`` and of ``y`` that hold the same pixels.

        The views of ``patches`` are disjoint and cover it; the views of ``y`` overlap, as patches
        do. So copying from ``y`` gathers patches, and adding to ``y``, view by view, sums
        overlapping patches.
        """
        n_columns = patches.shape[1]
        patches = patches.view(len(y), *self.kernel, n_columns)
        y = y.flatten(1 + len(self.kernel))
        return [
            (patches[pixels], y[(*phase, slice(offset, offset + n_columns))])
            for pixels, phase, offset in self._slabs
        ]

    def widen(self, z):  # (n, k, *positions) -> (n, k, *blocks), k outermost in memory
        """Return codes with zeros for the blocks without a position."""
        wide = torch.nn.functional.pad(z.transpose(0, 1), self._beyond_positions)
        return wide.contiguous().transpose(0, 1)

    def narrow(self, z):  # (n, k, *blocks) -> (n, k, *positions)
        """Return the codes of blocks with a position, the inverse of `widen`."""
        return z[self._at_positions]

    def wipe_(self, z):  # (n, k, *blocks) -> z
        """Set codes to zero, in place, where there is no position."""
        for axis, n in enumerate(self.positions):
            z[(slice(None),) * (2 + axis) + (slice(n, None),)] = 0
        return z

    def columns(self, z):  # (n, k, *blocks) -> (k, n_columns)
        """Return codes as the matrix to multiply with patches; a view of the same memory."""
        return z.transpose(0, 1).flatten(1)[:, : self.n_columns(len(z))]

    def maps(self, columns, n):  # (k, n_columns) -> (n, k, *positions)
        """Return the code maps of ``n`` images, the inverse of `columns`."""
        line = torch.nn.functional.pad(columns, (0, self._reach))
        return self.narrow(line.view(len(line), n, *self.blocks).transpose(0, 1))


_phases = lru_cache(maxsize=256)(Phases)


@lru_cache(maxsize=256)
def _sampling(kernel, strides):  # -> Phases, padding, and of each axis samples and a factor
    """Return how to sample the symbol of a convolution, see `ConvDictionary.squared_norm_bound`.

    The results are the phases of an atom, the padding of atoms to whole blocks, and for each axis
    the number of frequencies and twice the factor of the bound.
    """
    degrees = [ceil(k / s) - 1 for k, s in zip(kernel, strides, strict=True)]
    phases = _phases(strides, strides, tuple(degree + 1 for degree in degrees))
    missing = [n - k for n, k in zip(phases.size, kernel, strict=True)]
    padding = [n for m in reversed(missing) for n in (0, m)]
    # with 8 frequencies per degree the factor of an axis is at most 1.04
    n_samples = [max(1, 8 * degree) for degree in degrees]
    pairs = zip(degrees, n_samples, strict=True)
    return phases, padding, n_samples, [1 + 1 / cos(pi * degree / n) for degree, n in pairs]


# ---------------------------------------------------------------------------- dictionaries


@dataclass(frozen=True, eq=False)
class ConvDictionary(Dictionary):
    """The trilinear form of a convolution: atoms at every ``stride``-th position of an image.

    Images and atoms have their channels before their axes, one for signals, two for pictures, or
    more. Every position holds a whole atom, so an axis of the image is as long as an atom plus a
    multiple of the stride.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, [height,] width)
        The atoms.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions, one for all axes or one for each.
    """

    stride: int | tuple[int, ...] = 1

    @in_own_precision
    def synthesis(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return the images ``D z`` of the codes ``z``."""
        phases = self.phases(z.shape[2:])
        patches = self.atoms.flatten(1).mT @ phases.columns(phases.widen(z))
        return phases.join(_Copies.apply(patches, phases, len(z)))

    @in_own_precision
    def analysis(self, x):  # (n, n_channels, *size) -> (n, n_components, *positions)
        """Return the correlations of the images with the atoms, ``D^T x``."""
        phases = self.phases(self.positions(x.shape[2:]))
        return phases.maps(self.atoms.flatten(1) @ phases.patches(x), len(x))

    def analysis_in_blocks(self, x):  # yields (n, n_components, *positions)
        """Yield the correlations with the atoms, for some positions along the last axis at a time.

        The patches at all positions would take the memory of the data times the length of an atom.
        The last pixels of an axis are left out if atoms do not cover it exactly.
        """
        axes = list(zip(x.shape[2:], self.atoms.shape[2:], self.strides, strict=True))
        x, (_, k, s) = x[(..., *(slice(n - (n - k) % s) for n, k, s in axes))], axes[-1]
        # entries of the patches at one position along the last axis
        entries = len(x) * self.atoms[0].numel() * prod(x.shape[2:-1])
        step = max(1, BLOCK // max(1, entries)) * s
        for start in range(0, max(x.shape[-1] - k + s, 1), step):
            yield self.analysis(x[..., start : start + step - s + k])

    @in_own_precision
    def outer(self, z, x):  # -> (n_components, n_channels, *kernel)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples."""
        phases = self.phases(z.shape[2:])
        return (phases.columns(phases.widen(z)) @ phases.patches(x).mT).view_as(self.atoms)

    def positions(self, size):  # -> tuple of int
        """Return the number of positions along each axis of images of the given size.

        Raises
        ------
        ValueError
            If atoms at these positions do not cover the image exactly.
        """
        axes = list(zip(size, self.atoms.shape[2:], self.strides, strict=True))
        if any(n < k or (n - k) % s for n, k, s in axes):
            covered = tuple(k + s * ceil(max(n - k, 0) / s) for n, k, s in axes)
            raise ValueError(
                f"Atoms of size {tuple(self.atoms.shape[2:])} at every {self.strides} pixels do "
                f"not cover an image of size {tuple(size)} exactly. Pad it to {covered}, for "
                "example, or pass another stride."
            )
        return tuple((n - k) // s + 1 for n, k, s in axes)

    @in_own_precision
    def squared_norm_bound(self):  # -> scalar tensor
        r"""Bound the squared spectral norm from above, for images of any size.

        On an infinite image ``D^T D`` multiplies every frequency by a matrix, its symbol. The
        entries of the symbol are trigonometric polynomials in the frequency, of degree
        ``ceil(kernel / stride) - 1`` along each axis. The largest eigenvalue over all frequencies
        bounds the squared norm for any image. It is computed at ``N`` equidistant frequencies along
        each axis. A non-negative polynomial of degree ``d`` is at most
        :math:`\frac12 (1 + 1 / \cos(\pi d / N))` times its maximum over these frequencies [1]_.
        This factor makes the result a bound.

        References
        ----------
        .. [1] H. Ehlich and K. Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
           Mathematische Zeitschrift 86, 1964.
        """
        atoms, scale = scaled(self.atoms.detach())
        phases, padding, n_samples, factors = _sampling(tuple(atoms.shape[2:]), self.strides)
        blocks = phases.split(torch.nn.functional.pad(atoms, padding))
        # (n_channels, *stride, n_components, *blocks); the transform is along the axes of blocks
        symbol = torch.fft.fftn(blocks.flatten(0, len(n_samples)), s=n_samples)
        eigenvalues = largest_eigenvalue_bound(smaller_gram(symbol.flatten(2).permute(2, 1, 0)))
        for factor in factors:
            scale = scale * factor / 2
        return eigenvalues.max() * scale

    @property
    def strides(self):  # -> tuple of int
        """The distance of neighbouring positions along each axis."""
        n_axes = self.atoms.ndim - 2
        return (self.stride,) * n_axes if isinstance(self.stride, int) else tuple(self.stride)

    def phases(self, positions):  # tuple of int -> Phases
        """Return the geometry for these numbers of positions along each axis."""
        return _phases(tuple(self.atoms.shape[2:]), self.strides, tuple(positions))


@dataclass(frozen=True, eq=False)
class ConvLayers(Dictionary):
    """Convolutional dictionaries of one shape, one for each unfolding of an encoder.

    Parameters
    ----------
    atoms : Tensor of shape (n_unfoldings, n_components, n_channels, [height,] width)
        The atoms of each dictionary.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions, one for all axes or one for each.
    """

    stride: int | tuple[int, ...] = 1

    def __getitem__(self, t):  # -> ConvDictionary
        """Return the dictionary of unfolding ``t``."""
        return ConvDictionary(self.atoms[t], self.stride)
