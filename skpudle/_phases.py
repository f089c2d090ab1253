r"""Strided convolutions as products of matrices, in any number of dimensions.

Atoms of a convolution with stride ``s`` start at every ``s``-th pixel. Cut the image into blocks of
``s`` pixels and store each position inside a block, a phase, apart: pixel ``a s + r`` of the
patches at all positions is then phase ``r`` of the blocks, moved by ``a`` blocks, and hence a few
copies of large contiguous pieces make the matrix of all patches. Its product with the atoms is the
convolution; the transpose of these copies adds overlapping patches up. On a CPU this takes a small
part of the time of the products, which a library does at full speed, unlike strided convolutions
with few channels. An encoder stays in this form from its first iteration to its last.
"""

from itertools import product

import torch

__all__ = ["Phases"]


def _slabs(kernel, stride, positions):
    """Return slices of patches, of phases and of blocks that hold the same pixels."""
    slabs = []
    for offsets in product(*(range(-(-k // s)) for k, s in zip(kernel, stride, strict=True))):
        axes = list(zip(offsets, kernel, stride, positions, strict=True))
        inside = tuple(slice(a * s, min((a + 1) * s, k)) for a, k, s, _ in axes)
        phase = tuple(slice(0, min(s, k - a * s)) for a, k, s, _ in axes)
        blocks = tuple(slice(a, a + h) for a, _, _, h in axes)
        slabs.append(((..., *inside, *(slice(None) for _ in axes)), (..., *phase, *blocks)))
    return slabs


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, phases):
        ctx.phases = phases
        patches = y.new_empty(*y.shape[:2], *phases.kernel, *phases.positions)
        for inside, blocks in phases.slabs:
            patches[inside] = y[blocks]
        return patches.flatten(2 + len(phases.kernel)).flatten(1, -2)

    @staticmethod
    def backward(ctx, gradient):
        return _Add.apply(gradient, ctx.phases), None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, patches, phases):
        ctx.phases = phases
        n = len(patches)
        patches = patches.reshape(n, -1, *phases.kernel, *phases.positions)
        y = patches.new_zeros(n, patches.shape[1], *phases.stride, *phases.blocks)
        for inside, blocks in phases.slabs:
            y[blocks] += patches[inside]
        return y

    @staticmethod
    def backward(ctx, gradient):
        return _Gather.apply(gradient, ctx.phases), None


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
        self.slabs = _slabs(kernel, stride, positions)
        n_axes = len(axes)
        self._to_phases = [0, 1, *range(3, 3 + 2 * n_axes, 2), *range(2, 2 + 2 * n_axes, 2)]
        self._to_image = [0, 1]
        for axis in range(n_axes):
            self._to_image += [2 + n_axes + axis, 2 + axis]

    def split(self, x):  # (n, c, *size) -> (n, c, *stride, *blocks)
        """Return the phases of images, with zeros where blocks go beyond them."""
        padding = []
        for size, block, stride in zip(self.size, self.blocks, self.stride, strict=True):
            padding = [0, block * stride - size, *padding]  # the last axis comes first
        x = torch.nn.functional.pad(x, padding)
        axes = [n for pair in zip(self.blocks, self.stride, strict=True) for n in pair]
        return x.reshape(*x.shape[:2], *axes).permute(self._to_phases).contiguous()

    def join(self, y):  # (n, c, *stride, *blocks) -> (n, c, *size)
        """Return the images that phases stand for."""
        full = [block * stride for block, stride in zip(self.blocks, self.stride, strict=True)]
        x = y.permute(self._to_image).reshape(*y.shape[:2], *full)
        return x[(..., *(slice(size) for size in self.size))]

    def gather(self, y):  # (n, c, *stride, *blocks) -> (n, c * prod(kernel), prod(positions))
        """Return the patches at all positions."""
        return _Gather.apply(y, self)

    def add(self, patches):  # (n, c * prod(kernel), prod(positions)) -> (n, c, *stride, *blocks)
        """Return the sum of patches at all positions, the transpose of `gather`."""
        return _Add.apply(patches, self)

    def unflatten(self, z):  # (n, k, prod(positions)) -> (n, k, *positions)
        """Return values at positions with an axis for each axis of the image."""
        return z.reshape(*z.shape[:2], *self.positions)
