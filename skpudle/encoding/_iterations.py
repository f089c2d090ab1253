"""Iterations of the encoder one after the other, and their record for the backward pass."""

from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.shrinkage import shrinkage_function

__all__ = ["Iteration", "Iterations"]


class Iteration(NamedTuple):
    """Iteration ``t``, from the codes ``z`` to ``code``."""

    t: int
    z: Tensor | None
    code: Tensor
    residual: Tensor | None

    def pull(self, delta, sums, level_gradient, scratch):
        """Return the derivatives in the codes one iteration before those of ``delta``."""
        # [code != 0] in floating point, several times as fast as by a boolean mask
        u = torch.sign(self.code, out=scratch).abs_().mul_(delta)
        if level_gradient is not None:
            by_atom = (self.code.sign() * u).sum(0)
            level_gradient[self.t] -= by_atom.sum_to_size(level_gradient.shape[1:])
        return sums.pull(u, self.z, self.residual, out=delta)


class Iterations:
    """Steps and shrinkages in turn.

    Parameters
    ----------
    steps : Steps
        The steps.
    levels : Tensor of shape (n_unfoldings, ...)
        What each iteration shrinks by.
    shrinkage : str
        Its name.
    positive : bool
        Whether codes are non-negative.
    keep : bool
        Whether to keep `records` for a backward pass.
    """

    def __init__(self, steps, levels, shrinkage, positive, *, keep):
        self.steps, self.levels, self.positive, self.keep = steps, levels, positive, keep
        self.shrink_ = shrinkage_function(shrinkage, positive=positive)
        self.records, self._scratch = [], None

    def run(self, z, start, stop, *, pushed=None):
        """Return the codes after the iterations, where ``pushed`` is the first step if known."""
        given, spare = z, None
        for t in range(start, stop):
            v, residual = pushed or self.steps.push(z, out=spare)
            if self._scratch is None:  # memory that is new costs more than what is computed in it
                self._scratch = torch.empty_like(v)
            code = self.shrink_(v, self.levels[t], self._scratch)
            if self.keep:
                self.records.append(Iteration(t, z, code, residual))
            elif z is not given:  # two buffers in turn are enough
                spare = z
            z, pushed = code, None
        return z
