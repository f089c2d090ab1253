"""Convolutional dictionaries of signals, pictures and volumes.

An *image* is a signal, a picture or a volume, and an entry of it is a *pixel*; the *kernel* is the
size of an atom in pixels. An image is a sum of copies of atoms. Each copy starts at a *position*.
Neighbouring positions are ``s`` pixels apart, where ``s`` is the stride. There is a code for each
atom and position. The *patch* at a position is the part of the image that a copy there covers.

The synthesis multiplies atoms by codes, which gives a patch for each position, and adds up patches
that overlap. The analysis multiplies atoms by the patches of an image. Both work on some positions
at a time, because the patches at all positions take the memory of the images times the size of an
atom. (Convolutions of torch, in float64 and for few channels, take twice the time of such products,
and transposed convolutions in float32 take six times as long.)
"""

from dataclasses import dataclass
from itertools import count
from math import ceil, cos, pi, prod

import torch
from torch.nn.functional import fold, pad

from skpudle._compilation import BLOCK, blocks_of_rows
from skpudle._operators._atoms import (
    Dictionary,
    largest_eigenvalue_bound,
    scaled,
    smaller_gram,
)
from skpudle._precision import in_own_precision


def as_volumes(x):  # (n, n_channels, *size) -> (n, n_channels, depth, height, width)
    """Return pictures as volumes of depth 1, and signals as volumes of depth and height 1.

    The result shares the memory of ``x``.
    """
    return x[(..., *[None] * (5 - x.ndim), *[slice(None)] * (x.ndim - 2))]


def cut_patches(
    x, kernel, stride
):  # (n, n_channels, *size) -> (n, n_entries, *positions)
    """Cut images into patches of the size ``kernel`` at every ``stride``-th pixel of each axis.

    ``kernel`` and ``stride`` have a number for each axis. ``n_entries`` counts the entries of a
    patch: channels times pixels.
    """
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        x = x.unfold(axis, k, s)
    n_axes = len(kernel)
    x = x.permute(0, 1, *range(2 + n_axes, 2 + 2 * n_axes), *range(2, 2 + n_axes))
    return x.flatten(1, 1 + n_axes)


@dataclass(frozen=True, eq=False)
class ConvDictionary(Dictionary):
    """The dictionary of images: copies of the atoms, ``stride`` pixels apart.

    A *position* is where a copy of an atom starts; each position has a code for each atom. Images
    and atoms have an axis for channels, and then one axis for signals, two for pictures or three
    for volumes. At each position the whole atom is inside of the image, so an axis of the image is
    as long as the atom plus a multiple of the stride. `skpudle._operators` explains the methods
    ``synthesis``, ``analysis`` and ``outer``.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        The atoms.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions in pixels, one for all axes or one for each.
    """

    stride: int | tuple[int, ...] = 1

    @in_own_precision
    def synthesis(self, z):  # (n, n_components, *positions) -> (n, n_channels, *size)
        """Return ``D z``, the images that the codes ``z`` stand for."""
        axes = zip(z.shape[2:], self.atoms.shape[2:], self.strides, strict=True)
        size_of_image = [k + s * (n - 1) for n, k, s in axes]
        atoms = self.atoms.flatten(1).mT
        x = z.new_zeros([len(z), self.atoms.shape[1], *size_of_image])
        kernel = as_volumes(self.atoms).shape[2:]
        stride = (1, 1, *self.strides)[-3:]
        # Torch folds pictures only. The copies at one position along the depth are pictures whose
        # channels are the channels and slices of the atoms.
        for block, pixels in self._blocks(len(z), z.shape[2:]):
            part = as_volumes(x[:, :, pixels])
            codes = as_volumes(z[:, :, block]).unbind(2)
            for first, codes_there in zip(count(0, stride[0]), codes, strict=False):
                patches = atoms @ codes_there.flatten(2)
                slab = part[:, :, first : first + kernel[0]]
                slab += fold(
                    patches, part.shape[3:], kernel[1:], stride=stride[1:]
                ).view_as(slab)
        return x

    @in_own_precision
    def analysis(self, x, out=None):  # -> (n, n_components, *positions)
        """Return the correlations of the images with the atoms at each position, ``D^T x``.

        The result may use the memory ``out``. Raise ValueError if copies of the atoms do not cover
        the images exactly, see `positions`.
        """
        self.positions(x.shape[2:])  # raises the error for images of unsuitable size
        return torch.cat(list(self.analysis_in_blocks(x)), 2, out=out)

    def analysis_in_blocks(self, x):  # yields (n, n_components, *positions)
        """Yield what `analysis` returns, for some positions along the first axis at a time.

        A caller that needs only a summary of the correlations saves memory so. If copies of the
        atoms do not cover an axis exactly, its last pixels are left out.
        """
        axes = zip(x.shape[2:], self.atoms.shape[2:], self.strides, strict=True)
        positions = [(n - k) // s + 1 for n, k, s in axes]
        for block, pixels in self._blocks(len(x), positions):
            z = self.atoms.flatten(1) @ self._patches(x[:, :, pixels])
            yield z.view([len(x), -1, block.stop - block.start, *positions[1:]])

    @in_own_precision
    def outer(self, z, x):  # -> (n_components, n_channels, *kernel)
        """Return the derivative of ``<D z, x>`` in the atoms, summed over samples.

        ``z`` are codes (n, n_components, *positions), and ``x`` images (n, n_channels, *size).
        """
        total = 0.0
        for block, pixels in self._blocks(len(z), z.shape[2:]):
            patches = self._patches(x[:, :, pixels])
            total = total + (z[:, :, block].flatten(2) @ patches.mT).sum(0)
        return total.view_as(self.atoms)

    def positions(self, size):  # -> tuple of int
        """Return the number of positions along each axis of images of the size ``size`` in pixels.

        Raises
        ------
        ValueError
            If copies of the atoms at these positions do not cover the image exactly.
        """
        axes = [*zip(size, self.atoms.shape[2:], self.strides, strict=True)]
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
        r"""Return a bound of the squared spectral norm, for step sizes with images of any size.

        On an infinite image ``D^T D`` multiplies every frequency by a matrix, its symbol. The
        entries of the symbol are trigonometric polynomials in the frequency, of degree
        ``ceil(kernel / stride) - 1`` along each axis. The largest eigenvalue over all frequencies
        bounds the squared norm for any image. It is computed at ``N`` equidistant frequencies along
        each axis. A non-negative polynomial of degree ``d`` is at most
        :math:`\frac12 (1 + 1 / \cos(\pi d / N))` times its maximum over these frequencies [1]_.
        This factor, for each axis, makes the result a bound.

        References
        ----------
        .. [1] H. Ehlich and K. Zeller, "Schwankung von Polynomen zwischen Gitterpunkten",
           Mathematische Zeitschrift 86, 1964.
        """
        atoms, scale = scaled(self.atoms.detach())
        stride = self.strides
        kernel = atoms.shape[2:]
        n_blocks = [ceil(k / s) for k, s in zip(kernel, stride, strict=True)]
        missing = [n * s - k for n, s, k in zip(n_blocks, stride, kernel, strict=True)]
        # The symbol of ``D^T D`` at a frequency is ``F F^H`` with a matrix F (n_components, entries
        # of a block), where a block is a piece of an atom of the size of the stride. A Fourier
        # transform over the blocks of the atoms gives F at all frequencies, which is called
        # `symbol` here.
        blocks = pad(atoms, [n for m in reversed(missing) for n in (0, m)])
        blocks = cut_patches(blocks, stride, stride)
        # with N = 8 d frequencies, where d is the degree, the factor of an axis is at most 1.04
        n_samples = [max(1, 8 * (n - 1)) for n in n_blocks]
        symbol = torch.fft.fftn(blocks, n_samples, [*range(2, blocks.ndim)]).flatten(2)
        eigenvalues = largest_eigenvalue_bound(smaller_gram(symbol.permute(2, 0, 1)))
        for n_blocks_of_axis, n in zip(n_blocks, n_samples, strict=True):
            scale = scale * (1 + 1 / cos(pi * (n_blocks_of_axis - 1) / n)) / 2
        return eigenvalues.max() * scale

    @property
    def strides(self):  # -> tuple of int
        """The distance of neighbouring positions along each axis, in pixels."""
        if isinstance(self.stride, int):
            return (self.stride,) * (self.atoms.ndim - 2)
        return tuple(self.stride)

    def _blocks(self, n, positions):  # yields slices of positions, slices of pixels
        """Cut positions along the first axis into blocks, to bound the memory for patches.

        ``positions`` has the number of positions along each axis. Yield a slice of positions along
        the first axis, and the slice of pixels that their patches cover. In a block the patches of
        ``n`` images take at most 1 MiB in float64, which stays in the processor's cache. With 16
        MiB, for which each product gets new memory, the encoder takes 1.3 times as long.
        """
        n_entries = n * self.atoms[0].numel()
        k = self.atoms.shape[2]
        s = self.strides[0]
        n_entries = n_entries * prod(positions[1:])
        for block in blocks_of_rows(positions[0], n_entries, BLOCK // 8):
            yield block, slice(block.start * s, block.stop * s - s + k)

    def _patches(self, x):  # -> (n, n_channels * kernel, n_positions)
        """Return the patch of each image at each position as a column, for products with atoms."""
        return cut_patches(x, self.atoms.shape[2:], self.strides).flatten(2)


@dataclass(frozen=True, eq=False)
class ConvLayers(Dictionary):
    """Convolutional dictionaries of one shape, one for each unfolding of an encoder.

    A denoiser is an encoder with such layers, see `skpudle.encoding._unfold.unfold`. The object has
    no ``synthesis``, ``analysis`` and ``outer``; its items, each a `ConvDictionary`, have them.

    Parameters
    ----------
    atoms : Tensor of shape (n_unfoldings, n_components, n_channels, *kernel)
        The atoms of each dictionary.
    stride : int or tuple of int, default=1
        Distance of neighbouring positions in pixels, one for all axes or one for each.
    """

    stride: int | tuple[int, ...] = 1

    def __getitem__(self, t):  # -> ConvDictionary
        """Return the dictionary of unfolding ``t``, without a copy of its atoms."""
        return ConvDictionary(self.atoms[t], self.stride)
