r"""Iterations of the encoder on the negative log-likelihood of counts.

An iteration is a gradient step :math:`z + s D^T M (x - \mu(\eta))` and a shrinkage. Here
:math:`\eta = D z + \text{offset}` is the natural parameter of each entry, :math:`\mu(\eta)` its
expectation (see `skpudle._losses`), ``s`` the step size and ``M`` the mask of known entries.
Autograd differentiates the iterations.

Let ``w`` be the variance of an entry, a function of its expectation. If ``w`` has a bound, the
penalised loss never rises with the step size 1 over ``|D|^2 w`` for the largest ``w``. If ``w``
grows without bound (Poisson), every sample searches for step sizes of its own. An iteration from
``z`` to ``z'`` is accepted if

.. math:: s \sum_j \max(w_j, w_j') (\eta_j' - \eta_j)^2 \leq |z' - z|^2 ,

where j counts the entries of the sample, and :math:`w_j', \eta_j'` belong to ``z'``. Otherwise the
iteration is undone for this sample alone, and the step size is halved. Between two natural
parameters of an entry ``w`` is largest at one of the two. So half of the sum bounds the difference
of the loss from its tangent, and accepted iterations never raise the penalised loss. Derivatives
treat step sizes as constants. An iteration that is undone has the step size 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skpudle._shrinkage import shrink
from skpudle.encoding._compiled import multiply

# After an iteration that meets the inequality of the module docstring, the step size of the sample
# is multiplied by this factor. About 1 iteration in 20 is then undone, because its step size is too
# large. After 100 iterations on Poisson counts the objective was 7e-8 above the minimum, and with
# the factor 1.5 it was 3e-7 above. With 1.1 the step sizes grow too slowly at first.
_GROWTH_OF_STEP = 1.25


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The encoder of counts: iterations on their negative log-likelihood, which a loss defines.

    `skpudle.encoding._unfold.unfold` makes one for each call with a loss that is not quadratic.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary.
    x : Tensor of shape (n_samples, n_features)
        Data.
    loss : object of `skpudle._losses`
        The loss, whose ``mean`` and ``variance`` are functions of natural parameters and of means.
    offset : Tensor that broadcasts against the data
        Added to ``D z``.
    mask : Tensor that broadcasts against the data, or None
        1 where an entry of ``x`` is known, 0 where it is missing.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    positive : bool
        Whether codes are restricted to non-negative values.
    """

    dictionary: object
    x: Tensor
    loss: object
    offset: Tensor
    mask: Tensor | None
    shrinkage: str
    positive: bool

    def codes(self, z, levels, size):  # -> (n_samples, n_components)
        """Return the codes after one iteration for each level, so that autograd can differentiate.

        Parameters
        ----------
        z : Tensor of shape (n_samples, n_components)
            Codes to begin with.
        levels : Tensor of shape (n_unfoldings, ...)
            Level of the shrinkage in each iteration, which broadcasts against codes.
        size : Tensor of shape () or None
            The step size. None: each sample searches for step sizes, and each level of soft
            shrinkage is multiplied by the step size of its iteration.
        """
        sizes = [size] * len(levels)
        if size is None:
            codes, sizes = self._search(z, levels)
            if not torch.is_grad_enabled():
                return codes
            # autograd follows the same iterations below, with the step sizes found
            levels = map(self._level, levels, sizes)
        for level, size in zip(levels, sizes, strict=True):
            z = self._step(z, self.loss.mean(self._natural(z)), size, level)
        return z

    def _hide(self, data):  # -> data with 0 at missing entries
        return data if self.mask is None else data * self.mask

    def _natural(self, z):  # codes -> natural parameters (n_samples, n_features)
        return multiply(self.offset.expand_as(self.x), z, self.dictionary.atoms)

    def _step(
        self,
        z,
        mean,
        size,
        level,
    ):  # -> codes
        """Return the codes after one iteration from the codes ``z``.

        ``mean`` (n_samples, n_features) are the expectations for ``z``, and ``size`` is the step
        size, of shape () or (n_samples, 1).
        """
        v = torch.addcmul(z, self.dictionary.analysis(self._hide(self.x - mean)), size)
        return shrink(v, level, self.shrinkage, positive=self.positive)

    # Return the level of the shrinkage for an iteration with the step sizes `size` (n_samples, 1).
    # Where an iteration is undone its step size is 0. The level is then 0 as well, so that the
    # shrinkage leaves the codes of the sample as they are. Otherwise a level of hard shrinkage does
    # not depend on the step size.
    def _level(self, level, size):
        return level * (size if self.shrinkage == "soft" else size > 0)

    @torch.no_grad()
    def _search(self, z, levels):  # -> codes, list of step sizes (n_samples, 1)
        """Run the iterations from ``z``, and search for step sizes; without a graph of autograd.

        Return the last codes and, for each iteration, the step sizes of the samples: 0 where the
        iteration was undone. `codes` repeats the iterations with these step sizes if it needs a
        graph.
        """
        natural = self._natural(z)
        sizes = []
        mean = self.loss.mean(natural)
        largest = torch.maximum(self._hide(self.x), self._hide(mean))
        # The search starts from the step size 4 / (|D|^2 w), where w is the largest count or
        # expectation of the sample; step sizes that are too large are halved. After 10 iterations
        # on Poisson counts the mean objective was 0.12 above the minimum, and 0.60 above it if the
        # search started from 1 / (|D|^2 w), which is more often small enough.
        bound = (
            self.dictionary.squared_norm_bound() * largest.amax(1, keepdim=True) / 4.0
        )
        size = torch.where(bound > 0, 1 / bound, 1.0)
        for level in levels:
            code = self._step(z, mean, size, self._level(level, size))
            new_natural = self._natural(code)
            after = code, new_natural, self.loss.mean(new_natural)
            accepted, next_size = self._judge(size, (z, natural, mean), after)
            sizes.append(size * accepted)
            z, natural, mean = after
            size = next_size
        return z, sizes

    def _judge(self, size, before, after):
        """Accept or undo an iteration, sample by sample, and return the next step sizes.

        With the step size ``s`` an iteration from the codes ``z`` to ``z'`` is accepted if
        ``s sum_j max(w_j, w_j') (eta_j' - eta_j)^2 <= |z' - z|^2``, where eta are the natural
        parameters and w the variances of the sample's entries j; the module explains it.

        Parameters
        ----------
        size : Tensor of shape (n_samples, 1)
            Step sizes of the iteration.
        before, after : tuple of Tensor
            Codes (n_samples, n_components), natural parameters and expectations, both (n_samples,
            n_features), before and after the iteration. Where the iteration is undone, ``after``
            gets the values of ``before``.

        Returns
        -------
        accepted : Tensor of shape (n_samples, 1), bool
            Whether the iteration of each sample was accepted.
        size : Tensor of shape (n_samples, 1)
            The next step sizes.
        """
        codes, natural, mean = before
        new_codes, new_natural, new_mean = after
        variance = self.loss.variance
        largest = torch.maximum(variance(mean), variance(new_mean))
        change = new_natural - natural
        weighted = self._hide(largest.mul_(change).mul_(change)).sum(1, keepdim=True)
        moved = (new_codes - codes).square_().sum(1, keepdim=True)
        # the comparison is False for NaN, so that the iteration is undone
        accepted = size * weighted <= moved
        # about 1 iteration in 20 is undone, so a copy by index moves few rows
        undone = (~accepted[:, 0]).nonzero()[:, 0]
        for new, old in zip(after, before, strict=True):
            new[undone] = old[undone]
        # an iteration that moved no code would be accepted with any step size, and so is no reason
        # for a larger one
        larger = torch.where(moved > 0, _GROWTH_OF_STEP * size, size)
        return accepted, torch.where(accepted, larger, size / 2)
