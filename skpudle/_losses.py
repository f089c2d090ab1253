r"""Losses of the exponential family: Gaussian, Poisson, binomial.

A dictionary models the natural parameter :math:`\eta = D z + \text{offset}` of every entry of the
data. An entry ``x`` with expectation :math:`\mu = g^{-1}(\eta)` has the negative log-likelihood
:math:`A(\eta) - x \eta`, up to terms in ``x`` alone. For every loss its derivative is
:math:`\mu - x`, and its curvature is the variance of the entry, a function of :math:`\mu`:

============  =====================  ==============================  ==================
name          data                   expectation                     variance
============  =====================  ==============================  ==================
``gaussian``  numbers                :math:`\eta`                    1
``poisson``   counts                 :math:`\exp \eta`               :math:`\mu`
``binomial``  successes of n trials  :math:`n / (1 + \exp(-\eta))`   :math:`\mu (1 - \mu / n)`
============  =====================  ==============================  ==================

So everywhere in this package the residual is ``x - mean(D z + offset)`` in place of ``x - D z``,
and the variance weights its derivative. Learners minimise and report half the deviance: the
negative log-likelihood minus its value at ``mean = x``. It is zero at best, and
:math:`\frac12 (x - \eta)^2` for ``gaussian``.

References
----------
B. Tolooshams, A. H. Song, S. Temereanca and D. Ba, "Convolutional dictionary learning based
auto-encoders for natural exponential-family distributions", ICML 2020.
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import xlogy


@dataclass(frozen=True)
class Gaussian:
    """Least squares.

    Attributes
    ----------
    curvature : float
        The largest variance, which bounds the second derivative; infinite if there is no bound.
    largest : float or None
        The largest value of data that start at 0; None if data may be any numbers.
    is_quadratic : bool
        Whether the loss is the squared error, for which the package has solvers.
    """

    curvature = 1.0
    largest = None
    is_quadratic = True

    def mean(self, natural):
        """Return the expectation, the inverse of the link."""
        return natural

    def natural(self, mean):
        """Return the natural parameter, the link."""
        return mean

    def variance(self, mean):
        """Return the variance at an expectation: the derivative of `mean`."""
        return torch.ones_like(mean)

    def half_deviance(self, natural, x):
        """Return the loss of each entry; differentiable in the natural parameter."""
        return 0.5 * (natural - x).square()


@dataclass(frozen=True)
class Poisson:
    """Counts. The curvature grows with the expectation, without bound."""

    curvature = float("inf")
    largest = float("inf")
    is_quadratic = False

    def mean(self, natural):
        """Return the expectation."""
        return natural.exp()

    def natural(self, mean):
        """Return the natural parameter."""
        return mean.log()

    def variance(self, mean):
        """Return the variance at an expectation."""
        return mean

    def half_deviance(self, natural, x):
        """Return the loss of each entry; differentiable in the natural parameter."""
        return natural.exp() - x * natural + self.saturated(x)

    def saturated(self, x):
        """Return the log-likelihood of entries that equal their expectation."""
        return xlogy(x, x) - x

    def response(self, x):
        """Stabilise the variance of counts to about 1, by Anscombe's transform."""
        return 2 * (x + 3 / 8).sqrt()

    def of_response(self, response):
        """Invert `response`; values below its range become zero."""
        return ((response / 2).clamp_min(0).square() - 3 / 8).clamp_min(0)


@dataclass(frozen=True)
class Binomial:
    """Numbers of successes in independent trials; with one trial also fractions.

    Parameters
    ----------
    n_trials : float, default=1
        The number of trials of each entry.
    """

    n_trials: float = 1

    is_quadratic = False

    @property
    def curvature(self):
        """The largest variance, at even odds."""
        return self.n_trials / 4

    @property
    def largest(self):
        """The largest value of data."""
        return float(self.n_trials)

    def mean(self, natural):
        """Return the expectation."""
        return self.n_trials * natural.sigmoid()

    def natural(self, mean):
        """Return the natural parameter."""
        return torch.logit(mean / self.n_trials)

    def variance(self, mean):
        """Return the variance at an expectation."""
        return mean * (1 - mean / self.n_trials)

    def half_deviance(self, natural, x):
        """Return the loss of each entry; differentiable in the natural parameter."""
        # from 20 on softplus would be rounded to its argument
        return self.saturated(x) - self.n_trials * logsigmoid(-natural) - x * natural

    def saturated(self, x):
        """Return the log-likelihood of entries that equal their expectation."""
        n = self.n_trials
        return xlogy(x, x / n) + xlogy(n - x, (n - x) / n)

    def response(self, x):
        """Stabilise the variance of successes to about 1, by Anscombe's transform."""
        n = self.n_trials
        return 2 * (n + 0.5) ** 0.5 * torch.asin(((x + 3 / 8) / (n + 3 / 4)).sqrt())


def loss_named(name, n_trials):
    """Return the loss of counts of this name; ``n_trials`` is for the binomial one."""
    return Binomial(float(n_trials)) if name == "binomial" else Poisson()


_LEAST_SQUARES = Gaussian()


class FromMeans(NamedTuple):
    """The deviance of columns of data from their means, or from their rates times exposures.

    Parts of the data add up: the deviance of all is that of the parts, and that of their means.

    Attributes
    ----------
    size : Tensor of shape (n_features,)
        Known entries or exposures.
    mean, deviance : Tensor of shape (n_features,)
        Their mean or rate, and the deviance from it.
    loss : object of this module
        The loss of the deviance.
    """

    size: Tensor
    mean: Tensor
    deviance: Tensor
    loss: object

    @classmethod
    def of(cls, samples, loss=_LEAST_SQUARES, exposure=1.0):
        """Return the deviance of the known entries of samples; exposures are factors."""
        known = torch.ones_like(samples.x) if samples.mask is None else samples.mask
        x, known = samples.x / exposure, samples.weigh(known) * exposure
        size = known.sum(0)
        # zero for constant columns, even with a rounded mean
        origin = x.masked_fill(known == 0, inf).amin(0)
        origin = origin.masked_fill(origin.isinf(), 0.0)
        mean = origin + (known * (x - origin)).sum(0) / torch.where(size > 0, size, 1.0)
        deviance = 2 * (known * loss.half_deviance(_natural(loss, mean), x)).sum(0)
        return cls(size.cpu(), mean.cpu(), deviance.cpu(), loss)

    def add(self, other):
        """Return the deviance of both parts together."""
        size = self.size + other.size
        share = other.size / torch.where(size > 0, size, 1.0)
        mean, deviance = self.mean + (other.mean - self.mean) * share, self.deviance
        for part in (self, other):
            between = self.loss.half_deviance(_natural(self.loss, mean), part.mean)
            deviance = deviance + 2 * torch.where(part.size > 0, part.size * between, 0.0)
        return FromMeans(size, mean, deviance + other.deviance, self.loss)

    def total(self):  # -> float
        """Return the sum over columns; rounding of constant columns is no deviance."""
        rounding = 0.0
        if not self.loss.is_quadratic:
            eps = torch.finfo(self.mean.dtype).eps
            rounding = self.size * eps * self.size.clamp_min(1).sqrt() * (1 + self.mean)
        return float(torch.where(self.deviance > rounding, self.deviance, 0.0).sum())


def _natural(loss, mean):
    """Return the natural parameter of a mean, a number at the ends of the range of means, too."""
    if loss.is_quadratic:
        return mean
    precision = torch.finfo(mean.dtype)
    return loss.natural(mean.clamp(precision.tiny, loss.largest * (1 - precision.eps)))
