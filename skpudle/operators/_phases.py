r"""Strided convolutions as products of matrices, in any number of dimensions.

Atoms of a convolution with stride ``s`` start at every ``s``-th pixel. Cut the image into blocks of
``s`` pixels and store each position inside a block, a phase, apart, block after block and image
after image in one line. Pixel ``a s + r`` of the patches at all positions is then phase ``r``,
``a`` blocks further on, and hence a few copies of long contiguous pieces make the matrix of all
patches, one column per block. Its product with the atoms is the convolution; the transpose of these
copies adds overlapping patches up. On a CPU this takes a small part of the time of the products,
which a library does at full speed, unlike strided convolutions with few channels.

There are a few more blocks than positions along each axis, since an atom is larger than a block.
Their columns mean nothing: codes are zero there. An encoder stays in this form from its first
iteration to its last.
"""

from itertools import product
from math import prod

import torch

__all__ = ["Phases"]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, phases):
        ctx.phases, ctx.n = phases, y.shape[1 + len(phases.kernel)]
        patches = phases.empty_patches(y)
        for patch, pixels in phases.pieces(patches, y):
            patch.copy_(pixels)
        return patches

    @staticmethod
    def backward(ctx, gradient):
        return _Add.apply(gradient, ctx.n, ctx.phases), None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, patches, n, phases):
        ctx.phases = phases
        n_channels = len(patches) // prod(phases.kernel)
        y = patches.new_zeros(n_channels, *phases.stride, n, *phases.blocks)
        for patch, pixels in phases.pieces(patches, y):
            pixels += patch
        return y

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient.contiguous(), ctx.phases), None, None


class Phases:
    """The geometry of a strided convolution.

    Parameters
    ----------
    kernel, stride, positions : tuple of int
        Size of an atom, distance of neighbours, and number of positions, along each axis.
    """

    def __init__(self, kernel, stride, positions):
        # a single position has no neighbour: the whole atom may be one block
        stride = tuple(
            k if h == 1 else s for k, s, h in zip(kernel, stride, positions, strict=True)
        )
        self.kernel, self.stride, self.positions = kernel, stride, positions
        axes = list(zip(kernel, stride, positions, strict=True))
        self.size = tuple(k + s * (h - 1) for k, s, h in axes)
        self.blocks = tuple(h - 1 + -(-k // s) for k, s, h in axes)
        strides = [prod(self.blocks[i + 1 :]) for i in range(len(axes))]
        self._slabs = []  # pixels of an atom, where they are in a block, and how many blocks on
        for shifts in product(*(range(-(-k // s)) for k, s, _ in axes)):
            pairs = [(a * s, min((a + 1) * s, k)) for a, (k, s, _) in zip(shifts, axes)]
            pixels = tuple(slice(*pair) for pair in pairs)
            phase = tuple(slice(stop - start) for start, stop in pairs)
            offset = sum(a * stride for a, stride in zip(shifts, strides, strict=True))
            self._slabs.append(((slice(None), *pixels), (slice(None), *phase), offset))
        self._reach = offset  # blocks from the first to the last pixel of an atom
        n_axes = len(axes)
        self._to_phases = [1, *range(3, 3 + 2 * n_axes, 2), 0, *range(2, 2 + 2 * n_axes, 2)]
        self._to_image = [1 + n_axes, 0]
        for axis in range(n_axes):
            self._to_image += [2 + n_axes + axis, 1 + axis]

    def split(self, x):  # (n, c, *size) -> (c, *stride, n, *blocks)
        """Return the phases of images, with zeros where blocks go beyond them."""
        padding = []
        for size, block, stride in zip(self.size, self.blocks, self.stride, strict=True):
            padding = [0, block * stride - size, *padding]  # the last axis comes first
        x = torch.nn.functional.pad(x, padding)
        axes = [n for pair in zip(self.blocks, self.stride, strict=True) for n in pair]
        return x.reshape(*x.shape[:2], *axes).permute(self._to_phases).contiguous()

    def join(self, y):  # (c, *stride, n, *blocks) -> (n, c, *size)
        """Return the images that phases stand for."""
        full = [block * stride for block, stride in zip(self.blocks, self.stride, strict=True)]
        x = y.permute(self._to_image)
        return x.reshape(*x.shape[:2], *full)[(..., *(slice(size) for size in self.size))]

    def gather(self, y):  # (c, *stride, n, *blocks) -> (c * prod(kernel), n_columns)
        """Return the patches at all positions, one per column."""
        return _Gather.apply(y, self)

    def add(self, patches, n):  # (c * prod(kernel), n_columns) -> (c, *stride, n, *blocks)
        """Return the sum of the patches of ``n`` images, the transpose of `gather`."""
        return _Add.apply(patches, n, self)

    def n_columns(self, n):
        """Return the number of columns for ``n`` images."""
        return n * prod(self.blocks) - self._reach

    def empty_patches(self, y):  # (c, *stride, n, *blocks) -> (c * prod(kernel), n_columns)
        """Return memory for the patches of these phases."""
        n = y.shape[1 + len(self.kernel)]
        return y.new_empty(len(y) * prod(self.kernel), self.n_columns(n))

    def pieces(self, patches, y):
        """Return pairs of views of ``patches`` and of ``y`` that hold the same pixels.

        Within patches they are disjoint and cover everything; within ``y`` they overlap, as patches
        do. So copying from ``y`` gathers, and adding one after another to ``y`` adds patches up.
        """
        n_columns = patches.shape[1]
        patches = patches.view(len(y), *self.kernel, n_columns)
        y = y.flatten(1 + len(self.kernel))
        return [
            (patches[pixels], y[(*phase, slice(offset, offset + n_columns))])
            for pixels, phase, offset in self._slabs
        ]

    def widen(self, z):  # (n, k, *positions) -> (n, k, *blocks), k outermost in memory
        """Return codes with zeros for the blocks that are no position."""
        padding = []
        for block, position in zip(self.blocks, self.positions, strict=True):
            padding = [0, block - position, *padding]
        return torch.nn.functional.pad(z.transpose(0, 1), padding).contiguous().transpose(0, 1)

    def narrow(self, z):  # (n, k, *blocks) -> (n, k, *positions)
        """Return codes at positions."""
        return z[(..., *(slice(n) for n in self.positions))]

    def wipe_(self, z):  # (n, k, *blocks)
        """Set codes to zero where there is no position."""
        for axis, n in enumerate(self.positions):
            z[(slice(None),) * (2 + axis) + (slice(n, None),)] = 0
        return z

    def columns(self, z):  # (n, k, *blocks) -> (k, n_columns)
        """Return codes as the matrix that goes with patches; a view of the same memory."""
        return z.transpose(0, 1).flatten(1)[:, : self.n_columns(len(z))]

    def maps(self, columns, n):  # (k, n_columns) -> (n, k, *positions)
        """Return the maps of ``n`` images that columns stand for."""
        line = torch.nn.functional.pad(columns, (0, self._reach))
        return self.narrow(line.view(len(line), n, *self.blocks).transpose(0, 1))
