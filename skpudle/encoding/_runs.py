"""Iterations inside working sets: codes, how far they have moved, and derivatives.

A `Run` keeps codes of shape (n, k), of the k atoms in each working set. Of many iterations it keeps
some blocks, and computes the others again on the way back, which is cheap, so memory does not grow
with their number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Run"]

_KEPT = 256  # iterations of a run whose codes are kept: those of a few dense iterations


class _Block(NamedTuple):
    """Iterations of one call of `Run.iterate`: their codes, or none of them but the last."""

    codes: Tensor | None  # (n_iterations, n, k)
    last: Tensor  # (n, k)
    ascent: Tensor  # (n, k)
    levels: Tensor  # (n_iterations, 1) or (n_iterations, n_components)


class Run:
    """Iterations one after the other, inside the working sets of the samples.

    Parameters
    ----------
    steps : DenseSteps
        The dense steps.
    shrink_ : callable
        The shrinkage.
    indices : Tensor of shape (n, k)
        The working sets.
    start : int
        The first iteration.
    z : Tensor of shape (n, k)
        Codes before it.
    """

    def __init__(self, steps, shrink_, indices, start, z):
        self.steps, self.indices, self._shrink_ = steps, indices, shrink_
        self.matrix = steps.block(indices)  # - s G, (n, k, k)
        self._start, self._first, self._blocks = start, z, []

    def release(self):
        """Forget the matrices if they can be gathered again for the backward pass."""
        if self.steps.transition is not None:
            self.matrix = None

    def spread(self, values):  # (n, k) -> (n, n_components)
        """Return values in their places among those of all atoms."""
        return torch.zeros_like(self.steps.correlation).scatter_(1, self.indices, values)

    # ------------------------------------------------------------------ iterations

    def iterate(self, z, ascent, levels):  # (n, k) -> (len(levels), n, k)
        """Return the codes after each iteration from the codes ``z``, where ``ascent`` is the step.

        Products are with the distance from ``z``: next to codes their rounding would add up.
        """
        codes, move = z.new_empty(len(levels), *z.shape), torch.zeros_like(z)
        before = z
        for code, level in zip(codes.unbind(), levels.unbind(), strict=True):
            torch.baddbmm(ascent[:, None], move[:, None], self.matrix, out=code[:, None])
            level = level if len(level) == 1 else level[self.indices]
            before = self._shrink_(code.add_(before), level)
            torch.sub(before, z, out=move)
        return codes

    def climb(self, ascent, move):  # (n, k) -> (n, k)
        """Return the step after codes have moved."""
        return torch.baddbmm(ascent[:, None], move[:, None], self.matrix)[:, 0]

    def weigh(self, path):  # (n_iterations, n, k) -> the same
        """Return ``- s G_CC path``."""
        return torch.bmm(path.transpose(0, 1), self.matrix).transpose(0, 1)

    def reach(self, path):  # (n_iterations, n, k) -> (n_iterations, n)
        r"""Return :math:`\sqrt s |D e|` for every ``e`` of the path, rounded up."""
        square = (path * self.weigh(path)).sum(2).neg_().clamp_min_(0)
        rounding = 8 * path.shape[2] * torch.finfo(path.dtype).eps
        return square.add_(path.square().sum(2), alpha=rounding).sqrt_()

    def keep(self, codes, ascent, levels):
        """Remember a block of iterations for the backward pass."""
        is_kept = sum(len(block.levels) for block in self._blocks) < _KEPT
        last = codes[-1] if is_kept else codes[-1].clone()
        self._blocks.append(_Block(codes if is_kept else None, last, ascent, levels))

    # ------------------------------------------------------------------ derivatives

    def _pieces(self):
        """Yield where blocks end, codes before them and after each of their iterations.

        From the last to the first, as (n, k) and (n_iterations, n, k).
        """
        stop = self._start + sum(len(block.levels) for block in self._blocks)
        befores = [self._first, *(block.last for block in self._blocks)]
        for before, block in reversed(list(zip(befores, self._blocks, strict=False))):
            codes, _, *arguments = block
            yield stop, before, self.iterate(before, *arguments) if codes is None else codes
            stop -= len(block.levels)

    def pull(self, delta, sums, level_gradient, scratch):
        """Return the derivatives ``delta``, (n, n_components), before all iterations."""
        if not self._blocks:
            return delta
        steps, indices, last = self.steps, self.indices, self._blocks[-1].last
        if self.matrix is None:
            self.matrix = steps.block(indices)
        inner = delta.gather(1, indices)
        finfo = torch.finfo(inner.dtype)
        negligible = finfo.tiny / finfo.eps
        total, products = torch.zeros_like(inner), torch.zeros_like(self.matrix)
        for stop, before, after in self._pieces():
            # derivatives shrink with every iteration: next to those of later ones these are
            # nothing, and numbers yet smaller are slow
            inner = inner.masked_fill(inner.abs() < negligible, 0)
            if not inner.any():
                break
            signs = after.sign()
            u = signs.abs()
            for row in reversed(u.unbind()):
                row = row.mul_(inner)[:, None]
                inner = torch.baddbmm(row, row, self.matrix)[:, 0]
            total += u.sum(0)
            # products are with the distance from the last codes, which most codes are close to
            moves = torch.cat([before[None], after[:-1]]) - last
            products.baddbmm_(u.permute(1, 2, 0), moves.permute(1, 0, 2))
            if level_gradient is not None:
                by_entry = signs.mul_(u).flatten(1)
                by_level = level_gradient[stop - len(u) : stop]
                if by_level.shape[1] == 1:
                    by_level -= by_entry.sum(1, keepdim=True)
                else:
                    by_level.index_add_(1, indices.flatten(), by_entry, alpha=-1)
        total, last, inner = (self.spread(part) for part in (total, last, inner))
        residual = steps.x - last @ steps.atoms if steps.transition is None else None
        sums.add(total, last, residual)
        sums.add_block(products, indices, self.matrix)
        self.release()
        return inner
