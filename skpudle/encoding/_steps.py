r"""What gradient steps of the encoder share, and iterations of them.

A step is ``z + s A^T M (x - D z)``, where ``A`` is ``D`` unless the atoms of the analysis are
separate, and the mask ``M`` hides missing entries. Backwards it adds ``outer(u, M (x - D z))`` to
the derivative in ``A`` and ``- outer(z, M A u)`` to the derivative in ``D``, both times ``s``. An
iteration is a step and a shrinkage; its record holds all that the backward pass needs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._shrinkage import shrinkage_function


class Steps:
    """Steps of an operator.

    A subclass has two methods. ``push(z, out=None)`` returns the codes after a step, and ``M (x - D
    z)`` if it was computed on the way; for None the step starts from zero, and ``out`` is memory
    that the result may use. ``sums()`` returns the adjoint, with new sums, because a graph may be
    differentiated twice. Its ``pull(u, z, residual, out=None)`` returns the transpose of a step at
    ``u`` that started from ``z``, None if it started from zero, and adds the step to the sums. Its
    ``gradients(of_x=True, of_step=True)`` returns the derivatives in the atoms, the atoms of the
    analysis, the data and the step.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Data.
    size : Tensor of shape ()
        Step size.
    mask : Tensor that broadcasts against the data, default=None
        1 where an entry of ``x`` is known, 0 where it is missing.
    """

    t = 0  # the current iteration, which selects a layer

    def __init__(self, x, size, *, mask=None):
        self.size, self._mask = size, mask
        self.x = self.hide(x)

    def hide(self, data):
        """Return the data with zeros for missing entries."""
        return data if self._mask is None else data * self._mask

    def enter(self, z):
        """Return codes in the form that steps take."""
        return z

    def leave(self, z):
        """Return codes in the form of the caller, the inverse of `enter`."""
        return z


def mask_by(code, delta, out):
    """Set ``out`` to ``[code != 0] * delta`` in one pass, the derivative of a hard shrinkage."""
    return torch.ops.aten.hardshrink_backward.grad_input(delta, code, 0.0, grad_input=out)


class Iteration(NamedTuple):
    """Iteration ``t``, from the codes ``z`` to ``code``."""

    t: int
    z: Tensor | None
    code: Tensor
    residual: Tensor | None

    def pull(self, delta, sums, level_gradient, scratch):
        """Return the derivatives in the codes before this iteration, from ``delta`` after it."""
        u = mask_by(self.code, delta, scratch)
        if level_gradient is not None:
            by_entry = self.code.sign() * u
            level_gradient[self.t] -= by_entry.sum_to_size(level_gradient.shape[1:])
        sums.steps.t = self.t
        return sums.pull(u, self.z, self.residual, out=delta)


class Iterations:
    """Steps and shrinkages in turn.

    Parameters
    ----------
    steps : Steps
        The steps.
    levels : Tensor of shape (n_unfoldings, ...)
        Level of the shrinkage in each iteration.
    shrinkage : str
        Name of the shrinkage.
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
        """Return the codes after the iterations; ``pushed`` is the first step, if known."""
        given, spare = z, None
        for t in range(start, stop):
            self.steps.t = t
            v, residual = pushed or self.steps.push(z, out=spare)
            if self._scratch is None:  # reused, since allocating is slow
                self._scratch = torch.empty_like(v)
            code = self.shrink_(v, self.levels[t], self._scratch)
            if self.keep:
                self.records.append(Iteration(t, z, code, residual))
            elif z is not given:  # two buffers in turn are enough
                spare = z
            z, pushed = code, None
        return z
