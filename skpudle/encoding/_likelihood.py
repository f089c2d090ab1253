r"""Iterations on the negative log-likelihood of a loss.

A step is :math:`z + s A^T M (x - \mu(D z + \text{offset}))`, and torch differentiates it.

With a step of 1 over ``|D|^2 w`` for the largest variance ``w`` of the data the penalised loss
never rises. Where ``w`` grows with the expectation without bound (Poisson), every sample searches
for its own step. An iteration is accepted if

.. math:: s \sum_j \max(w_j, w_j') (\eta_j' - \eta_j)^2 \leq |z' - z|^2 ,

and otherwise undone for this sample alone, with its step halved. Between two points of an entry
``w`` is largest at one of them, so the left-hand side bounds the difference of the loss from its
tangent: accepted iterations do not let the penalised loss rise either. Steps are constants to
differentiation, and undone iterations have the step 0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import in_parts
from skpudle._shrinkage import shrink
from skpudle.encoding._compiled import loops, multiply

# Growth of the step after an accepted iteration; 1 iteration in 20 is then undone. After 100
# iterations the objective was 7e-8 above the minimum, and 3e-7 with 1.5; 1.1 begins slowly.
_GROWTH_OF_STEP = 1.25


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The likelihood of data, and iterations on it.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary.
    x : Tensor of shape (n_samples, n_features)
        Data.
    loss : object of `skpudle._losses`
        The loss.
    offset : Tensor that broadcasts against the data
        Added to ``D z``.
    mask : Tensor that broadcasts against the data, or None
        1 where an entry of ``x`` is known, 0 where it is missing.
    shrinkage : str
        Name of the shrinkage.
    positive : bool
        Whether codes are non-negative.
    """

    dictionary: object
    x: Tensor
    loss: object
    offset: Tensor
    mask: Tensor | None
    shrinkage: str
    positive: bool

    def codes(self, z, levels, size):
        """Return the codes after an iteration for each level; torch differentiates them.

        Parameters
        ----------
        z : Tensor of shape (n_samples, n_components)
            Codes to begin with.
        levels : Tensor of shape (n_unfoldings, ...)
            Levels of the shrinkage.
        size : Tensor of shape () or None
            The step; None to search for steps, and levels of soft shrinkage are in units of them.
        """
        sizes = [size] * len(levels)
        if size is None:
            codes, sizes = self._search(z, levels)
            if not torch.is_grad_enabled():
                return codes
            levels = map(self._level, levels, sizes)
        for level, size in zip(levels, sizes, strict=True):
            z = self._step(z, self.loss.mean(self._natural(z)), size, level)
        return z

    def _hide(self, data):
        return data if self.mask is None else data * self.mask

    def _natural(self, z):
        return multiply(self.offset.expand_as(self.x), z, self.dictionary.atoms)

    def _step(self, z, mean, size, level):  # -> codes
        v = torch.addcmul(z, self.dictionary.analysis(self._hide(self.x - mean)), size)
        return shrink(v, level, self.shrinkage, positive=self.positive)

    def _level(self, level, size):
        return level * (size if self.shrinkage == "soft" else size > 0)

    @torch.no_grad()
    def _search(self, z, levels):  # -> codes, steps
        natural, sizes = self._natural(z), []
        mean = self.loss.mean(natural)
        largest = torch.maximum(self._hide(self.x), self._hide(mean)).amax(1, keepdim=True)
        # In units of 1 / (|D|^2 w) for the largest count or expectation. For Poisson counts the
        # mean objective after 10 iterations was 0.12 above the minimum, and 0.60 with a first step
        # of 1.
        bound = self.dictionary.squared_norm_bound() * largest / 4.0
        size = torch.where(bound > 0, 1 / bound, 1.0)
        for level in levels:
            code = self._step(z, mean, size, self._level(level, size))
            new = code, (new_natural := self._natural(code)), self.loss.mean(new_natural)
            (z, natural, mean), counts, after = self._judge(size, (z, natural, mean), new)
            sizes.append(size * counts)
            size = after
        return z, sizes

    def _judge(self, size, before, after):
        """Accept or undo an iteration of each sample: codes, natural parameters, expectations.

        Return what holds from here on, the samples with an accepted iteration, and the next steps.
        """
        variances = [self.loss.variance(mean) for *_, mean in (before, after)]
        if size.device.type == "cpu" and size.dtype in (torch.float32, torch.float64):
            size, counts = size.clone(), torch.empty_like(size, dtype=torch.bool)
            known = size.new_empty(0, 0) if self.mask is None else self.mask.expand_as(self.x)
            given = *map(np.asarray, (*before, *variances, known)), _GROWTH_OF_STEP
            given = *given, *map(np.asarray, (*after, size[:, 0], counts[:, 0]))
            # so many entries take half a millisecond, five times a thread's start
            least = max(1, 2**18 // max(1, self.x.shape[1]))
            in_parts(lambda a, b: loops.judge(a, b, *given), len(size), least)
            return after, counts, size
        weight = torch.maximum(*variances) * (after[1] - before[1]).square()
        length = (after[0] - before[0]).square().sum(1, keepdim=True)
        counts = size * self._hide(weight).sum(1, keepdim=True) <= length  # False for NaN
        larger = torch.where(length > 0, _GROWTH_OF_STEP * size, size)
        after = tuple(torch.where(counts, *pair) for pair in zip(after, before, strict=True))
        return after, counts, torch.where(counts, larger, size / 2)
