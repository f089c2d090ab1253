r"""Iterations on the negative log-likelihood of a loss, and their adjoint.

A step is :math:`z + s A^T M (x - \mu(D z + \text{offset}))`. Backwards, the derivative of
:math:`\mu`, which is the variance ``w`` of the data, is a weight: with ``A = D``

.. math:: \delta_t = u_t - s D^T M w_t D u_t, \qquad
    s \sum_t \text{outer}(u_t, M (x - \mu_t)) - \text{outer}(z_t, M w_t D u_t).

With a step of 1 over ``|D|^2 w`` for the largest ``w`` the penalised loss never rises. Where ``w``
grows with the expectation without bound (Poisson), every sample searches for its own step. An
iteration is accepted if

.. math:: s \sum_j \max(w_j, w_j') (\eta_j' - \eta_j)^2 \leq |z' - z|^2 ,

and otherwise undone for this sample alone, with its step halved. Between two points of an entry
``w`` is largest at one of them, so the left-hand side bounds the difference of the loss from its
tangent: accepted iterations do not let the penalised loss rise either. Steps are constants to
differentiation, and undone iterations have the step 0.

Products of a dense dictionary skip zeros, and on the CPU entrywise loops over data are compiled.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import in_parts
from skpudle._shrinkage import shrinkage_function
from skpudle.encoding._compiled import loops, multiply
from skpudle.encoding._steps import Steps, mask_by

# Growth of the step after an accepted iteration; 1 iteration in 20 is then undone. After 100
# iterations the objective was 7e-8 above the minimum, and 3e-7 with 1.5; 1.1 begins slowly.
_GROWTH_OF_STEP = 1.25


def _are_compiled(x):
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _by_samples(loop, x, *arguments):
    """Call a compiled loop over samples."""
    # so many entries take half a millisecond in a compiled loop, five times a thread's start
    least = max(1, 2**18 // max(1, x[:1].numel()))
    in_parts(lambda first, last: loop(first, last, *arguments), len(x), least)


class LikelihoodSteps(Steps):
    """`Steps` along the derivative of a loss.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary, detached.
    x, mask
        As in `Steps`.
    size : Tensor of shape () or None
        Step size; None to search for one.
    loss : object of `skpudle._losses`
        The loss.
    offset : Tensor that broadcasts against the data, or None
        Added to ``D z``.
    """

    def __init__(self, dictionary, x, size, *, mask=None, loss, offset=None):
        super().__init__(x, size, mask=mask)
        self.x, self.loss, self.dictionary = self.x.contiguous(), loss, dictionary
        self.offset = x.new_zeros(()) if offset is None else offset
        self._offsets = self.offset.expand_as(x).contiguous()
        hidden = x.new_empty(0, 0) if mask is None else mask.expand_as(x).contiguous()
        self.hidden = np.asarray(hidden) if _are_compiled(x) else None

    def natural(self, z):
        """Return the natural parameter; None means zero codes."""
        if z is None:
            return self._offsets
        return multiply(self._offsets, z, self.dictionary.atoms)

    def ascend(self, mean):
        """Return the derivative of the log-likelihood in the codes."""
        return self.dictionary.analysis(self.hide(self.x - mean))

    def first_size(self, mean):
        """Return the first step; one for each sample if steps are searched for."""
        if self.size is not None:
            return self.size
        largest = torch.maximum(self.x, self.hide(mean)).amax(1, keepdim=True)
        # In units of 1 / (|D|^2 w) for the largest count or expectation. For Poisson counts the
        # mean objective after 10 iterations was 0.12 above the minimum, and 0.60 with a first step
        # of 1.
        bound = self.dictionary.squared_norm_bound() * largest / 4.0
        return torch.where(bound > 0, 1 / bound, torch.ones_like(bound))

    def judge(self, size, before, after):
        """Accept or undo an iteration of each sample, and choose the next steps.

        Parameters
        ----------
        size : Tensor
            Steps of the iteration.
        before, after : tuple of Tensor
            Codes, natural parameters and expectations before and after it; overwrites ``after``.

        Returns
        -------
        tuple of Tensor, Tensor, Tensor
            Codes, natural parameters and expectations from here on; the next steps; and a mask of
            the samples with an accepted iteration.
        """
        variances = [self.loss.variance(mean) for *_, mean in (before, after)]
        if self.hidden is not None:
            size, counts = size.clone(), torch.empty_like(size, dtype=torch.bool)
            given = *map(np.asarray, (*before, *variances)), self.hidden, _GROWTH_OF_STEP
            new = (*map(np.asarray, (*after, size[:, 0], counts[:, 0])),)
            _by_samples(loops.judge, self.x, *given, *new)
            return after, size, counts
        moved, change = after[0] - before[0], after[1] - before[1]
        weight = torch.maximum(*variances)
        curvature = self.hide(weight.mul_(change.square_())).sum(1, keepdim=True)
        length = moved.square_().sum(1, keepdim=True)
        counts = curvature * size <= length  # False for NaN
        larger = torch.where(length > 0, _GROWTH_OF_STEP * size, size)
        after = tuple(torch.where(counts, *pair) for pair in zip(after, before, strict=True))
        return after, torch.where(counts, larger, size / 2), counts

    def sums(self):
        return LikelihoodSums(self)


class LikelihoodSums:
    """`Sums` of steps of any size."""

    def __init__(self, steps):
        self.steps, self._atoms = steps, torch.zeros_like(steps.dictionary.atoms)
        self._x, self._offset = torch.zeros_like(steps.x), torch.zeros_like(steps.x)
        self._slope = steps.x.new_zeros(len(steps.x))

    def pull(self, u, z, mean, size, *, out):
        """Return the transpose of a step at ``u``, and add the step to the sums.

        The result may be in ``out``.
        """
        scaled, atoms = u * size, self.steps.dictionary.atoms
        image = multiply(None, scaled, atoms)
        residual = self._weigh(image, mean)
        multiply(self._atoms, scaled.mT, residual, out=self._atoms)
        if z is None:
            return None
        multiply(self._atoms, z.mT, image, out=self._atoms)
        return torch.mm(image, atoms.mT, out=out).add_(u)

    def _weigh(self, image, mean):  # -> the residual; weights the image in place
        steps, variance = self.steps, self.steps.loss.variance(mean)
        if steps.hidden is not None:
            residual = torch.empty_like(image)
            given = *map(np.asarray, (steps.x, mean, variance)), steps.hidden
            sums = map(np.asarray, (residual, image, self._x, self._offset, self._slope))
            _by_samples(loops.weigh, image, *given, *sums)
            return residual
        residual, seen = steps.hide(steps.x - mean), steps.hide(image)
        self._x += seen
        self._slope += (seen * residual).sum(1)
        torch.mul(seen, variance, out=image).neg_()
        self._offset += image
        return residual

    def gradients(self, *, of_x=True, of_step=True):
        """Return the derivatives in the atoms, the atoms of the analysis, the data and the step."""
        size = self.steps.size
        return self._atoms, None, self._x, None if size is None else self._slope.sum() / size

    def offset_gradient(self):
        """Return the derivative in the offset."""
        return self._offset.sum_to_size(self.steps.offset.shape)


class _Iteration(NamedTuple):
    """Iteration ``t``, from the codes ``z`` to ``code``; ``size`` is 0 where it was undone."""

    t: int
    z: Tensor | None
    code: Tensor
    mean: Tensor
    size: Tensor

    def pull(self, delta, sums, level_gradient, scratch):
        """Return the derivatives in the codes before this iteration, from ``delta`` after it."""
        u = mask_by(self.code, delta, scratch)
        if level_gradient is not None:
            by_entry = self.code.sign() * u
            if sums.steps.size is None:
                by_entry *= self.size
            level_gradient[self.t] -= by_entry.sum(0).sum_to_size(level_gradient.shape[1:])
        before = sums.pull(u, self.z, self.mean, self.size, out=delta)
        return delta if before is None else before


class LikelihoodIterations:
    """Steps and shrinkages in turn, with the parameters of `Iterations`.

    If the step is searched for, levels of soft shrinkage are in units of the step.
    """

    def __init__(self, steps, levels, shrinkage, positive, *, keep):
        self.steps, self.levels, self.keep, self.records = steps, levels, keep, []
        self.shrink_ = shrinkage_function(shrinkage, positive=positive)
        self._scaled = steps.size is None and shrinkage == "soft"

    def run(self, z, start, stop):
        """Return the codes after the iterations."""
        z = None if z is None else z.contiguous()
        steps, natural = self.steps, self.steps.natural(z)
        mean = steps.loss.mean(natural)
        size, scratch = steps.first_size(mean), None
        for t in range(start, stop):
            v = steps.ascend(mean).contiguous().mul_(size)
            v = v if z is None else v.add_(z)
            scratch = torch.empty_like(v) if scratch is None else scratch
            level = self.levels[t] * size if self._scaled else self.levels[t]
            code, used, old = self.shrink_(v, level, scratch), size, mean
            if steps.size is None:
                before = torch.zeros_like(code) if z is None else z
                new_natural = steps.natural(code)
                after = code, new_natural, steps.loss.mean(new_natural)
                after, size, counts = steps.judge(size, (before, natural, mean), after)
                (code, natural, mean), used = after, used * counts
            elif t + 1 < stop:
                mean = steps.loss.mean(steps.natural(code))
            if self.keep:
                self.records.append(_Iteration(t, z, code, old, used))
            z = code
        return z
