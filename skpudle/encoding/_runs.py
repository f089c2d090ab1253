"""Iterations inside working sets: codes, how far they have moved, and derivatives.

A `Run` keeps codes of shape (n, k), of the k atoms in each working set. Of many iterations it keeps
some blocks, and computes the others again on the way back, which is cheap, so memory does not grow
with their number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.encoding._steps import ALL
from skpudle.shrinkage import shrinkage_function

__all__ = ["Run"]

_KEPT = 256  # iterations of a run whose codes are kept


class _Block(NamedTuple):
    """Iterations of one call of `Run.iterate`: their codes, or none of them but the last."""

    codes: Tensor | None  # (n_iterations, n, k)
    last: Tensor  # (n, k)
    ascent: Tensor  # (n, k)
    levels: Tensor  # (n_iterations, 1) or (n_iterations, n_components)


class Run:
    """Iterations of some samples, one after the other, inside their working sets.

    Parameters
    ----------
    steps : Steps
        The dense steps.
    shrinkage : tuple
        The name of the shrinkage, and whether codes are non-negative.
    rows : slice or Tensor of shape (n,)
        The samples.
    indices : Tensor of shape (n, k)
        Their working sets.
    start : int
        The first iteration.
    codes : Tensor of shape (1 + n_done, n, k)
        Codes before it and after those iterations that were done elsewhere.
    """

    def __init__(self, steps, shrinkage, rows, indices, start, codes, *, matrix=None):
        self.steps, self.shrinkage = steps, shrinkage
        self.rows, self.indices = rows, indices
        self.matrix = steps.block(indices) if matrix is None else matrix  # - s G, (n, k, k)
        self.start, self._first, self._blocks = start, codes, []

    def select(self, good, start, codes):
        """Return a run of the given ones of its samples, that starts anew."""
        rows = good if self.rows is ALL else self.rows[good]
        return Run(self.steps, self.shrinkage, rows, self.indices[good], start, codes,
                   matrix=self.matrix[good])  # fmt: skip

    def release(self):
        """Forget the matrices if they can be gathered again for the backward pass."""
        if self.steps.transition is not None:
            self.matrix = None

    def spread(self, values):  # (n, k) -> (n, n_components)
        zeros = values.new_zeros(len(values), len(self.steps.atoms))
        return zeros.scatter_(1, self.indices, values)

    # ------------------------------------------------------------------ iterations

    def iterate(self, z, ascent, levels):  # (n, k) -> (len(levels), n, k)
        """Return the codes after each iteration from the codes ``z``, where ``ascent`` is the step.

        Products are with the distance from ``z``: next to codes their rounding would add up.
        """
        codes, move = z.new_empty(len(levels), *z.shape), torch.zeros_like(z)
        name, positive = self.shrinkage
        shrink_ = shrinkage_function(name, positive=positive)
        before = z
        for code, level in zip(codes.unbind(), levels.unbind(), strict=True):
            torch.baddbmm(ascent[:, None], move[:, None], self.matrix, out=code[:, None])
            before = shrink_(code.add_(before), level if len(level) == 1 else level[self.indices])
            torch.sub(before, z, out=move)
        return codes

    def climb(self, ascent, move):  # (n, k) -> (n, k)
        """Return the step after codes have moved."""
        return torch.baddbmm(ascent[:, None], move[:, None], self.matrix)[:, 0]

    def weigh(self, path):  # (n_iterations, n, k) -> - s G_CC path
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
        """Yield codes before iterations and after each of them, (n, k) and (n_iterations, n, k).

        From the last to the first.
        """
        befores = [self._first[-1], *(block.last for block in self._blocks)]
        for before, block in reversed(list(zip(befores, self._blocks, strict=False))):
            codes, _, *arguments = block
            yield before, self.iterate(before, *arguments) if codes is None else codes
        if len(self._first) > 1:
            yield self._first[0], self._first[1:]

    def pull(self, delta, sums, level_gradient):
        """Go all iterations back in the derivatives ``delta``, (n_samples, n_components)."""
        stop = self.start + len(self._first) - 1 + sum(len(b.levels) for b in self._blocks)
        if stop == self.start:
            return
        steps, indices = sums.steps, self.indices
        if self.matrix is None:
            self.matrix = steps.block(indices)
        inner = delta[self.rows].gather(1, indices)
        # products are with the distance from the last codes, which most codes are close to
        last = self._blocks[-1].last if self._blocks else self._first[-1]
        finfo = torch.finfo(inner.dtype)
        negligible = finfo.tiny / finfo.eps
        total, products = torch.zeros_like(inner), torch.zeros_like(self.matrix)
        for before, after in self._pieces():
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
            moves = torch.cat([before[None], after[:-1]]) - last
            products.baddbmm_(u.permute(1, 2, 0), moves.permute(1, 0, 2))
            if level_gradient is not None:
                by_entry = signs.mul_(u).flatten(1)
                by_level = level_gradient[stop - len(u) : stop]
                if by_level.shape[1] == 1:
                    by_level -= by_entry.sum(1, keepdim=True)
                else:
                    by_level.index_add_(1, indices.flatten(), by_entry, alpha=-1)
            stop -= len(u)
        total, last, inner = (self.spread(part) for part in (total, last, inner))
        residual = steps.x[self.rows] - last @ steps.atoms if steps.transition is None else None
        sums.add(total, last, residual, self.rows)
        sums.add_block(products, indices, self.matrix)
        self.release()
        delta[self.rows] = inner
