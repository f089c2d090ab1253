r"""Losses of the exponential family: Gaussian, Poisson, binomial.

A dictionary models the *natural parameter* :math:`\eta = D z + \text{offset}` of every entry of the
data, and :math:`\eta` determines the expectation :math:`\mu` of the entry; the *link* is the
function from :math:`\mu` to :math:`\eta`. An entry ``x`` has the negative log-likelihood
:math:`A(\eta) - x \eta`, up to terms in ``x`` alone, with a function A of the loss. The first
derivative of the negative log-likelihood in :math:`\eta` is :math:`\mu - x`. The second derivative
is the variance of the entry, a function of :math:`\mu`:

============  =====================  ==============================  ==================
name          data                   expectation                     variance
============  =====================  ==============================  ==================
``gaussian``  numbers                :math:`\eta`                    1
``poisson``   counts                 :math:`\exp \eta`               :math:`\mu`
``binomial``  successes of n trials  :math:`n / (1 + \exp(-\eta))`   :math:`\mu (1 - \mu / n)`
============  =====================  ==============================  ==================

So with another loss than ``gaussian`` the residual is ``x - mean(D z + offset)`` in place of
``x - D z``. Learners minimise and report half the *deviance*: the negative log-likelihood minus its
value for an expectation equal to ``x``. Half the deviance is at least zero. For ``gaussian`` it is
:math:`\frac12 (x - \eta)^2`.

References
----------
B. Tolooshams, A. H. Song, S. Temereanca and D. Ba, "Convolutional dictionary learning based
auto-encoders for natural exponential-family distributions", ICML 2020.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch.nn.functional import logsigmoid
from torch.special import xlogy


@dataclass(frozen=True)
class Gaussian:
    """Least squares: the loss of data with normal noise of variance 1.

    `Poisson` and `Binomial` have the same attributes and methods, and some more. Methods work entry
    by entry, on tensors of any shape, and return tensors of the same shape. The terms are those of
    the module `skpudle._losses`.

    Attributes
    ----------
    curvature : float
        The largest variance, which is the largest second derivative of the loss; infinite if
        variances have no bound.
    largest : float or None
        The largest possible value of the data, whose least is 0; None if data may be any numbers.
    is_quadratic : bool
        Whether the loss is the squared error, for which the package has exact solvers.
    """

    curvature = 1.0
    largest = None
    is_quadratic = True

    def mean(self, natural):
        """Return the expectation for each natural parameter: the inverse of the link."""
        return natural

    def natural(self, mean):
        """Return the natural parameter for each expectation: the link."""
        return mean

    def variance(self, mean):
        """Return the variance for each expectation: the derivative of `mean` in ``natural``."""
        return torch.ones_like(mean)

    def half_deviance(self, natural, x):
        """Return half the deviance of each entry of ``x``: the loss, differentiable by autograd."""
        return 0.5 * (natural - x).square()


@dataclass(frozen=True)
class Poisson:
    """The loss of counts. Its curvature grows with the expectation, without a bound.

    `Gaussian` explains the attributes and methods that the losses share.
    """

    curvature = inf
    largest = inf
    is_quadratic = False

    def mean(self, natural):
        """Return the expectation for each natural parameter, ``exp(natural)``."""
        return natural.exp()

    def natural(self, mean):
        """Return the natural parameter for each expectation, ``log(mean)``."""
        return mean.log()

    def variance(self, mean):
        """Return the variance for each expectation, which is the expectation."""
        return mean

    def half_deviance(self, natural, x):
        """Return half the deviance of each entry of ``x``: the loss, differentiable by autograd."""
        return natural.exp() - x * natural + self.saturated(x)

    def saturated(self, x):
        """Return the log-likelihood of each entry if its expectation is the entry: the largest."""
        return xlogy(x, x) - x

    def response(self, x):
        """Return Anscombe's transform of counts, whose variance is about 1.

        Methods for data with noise of variance 1 can take the transformed counts.
        """
        return 2 * (x + 3 / 8).sqrt()

    def of_response(self, response):
        """Return the counts, at least 0, from which `response` makes the values ``response``."""
        return ((response / 2).clamp_min(0).square() - 3 / 8).clamp_min(0)


@dataclass(frozen=True)
class Binomial:
    """The loss of numbers of successes in independent trials; with one trial, also of fractions.

    `Gaussian` explains the attributes and methods that the losses share.

    Parameters
    ----------
    n_trials : float, default=1
        The number of trials of each entry.
    """

    n_trials: float = 1

    is_quadratic = False

    @property
    def curvature(self):
        """The largest variance: that of a success probability of one half."""
        return self.n_trials / 4

    @property
    def largest(self):
        """The largest possible value of data: the number of trials."""
        return float(self.n_trials)

    def mean(self, natural):
        """Return the expectation for each natural parameter, from 0 to the number of trials."""
        return self.n_trials * natural.sigmoid()

    def natural(self, mean):
        """Return the natural parameter for each expectation: the log odds of success."""
        return torch.logit(mean / self.n_trials)

    def variance(self, mean):
        """Return the variance for each expectation; 0 at 0 and at the number of trials."""
        return mean * (1 - mean / self.n_trials)

    def half_deviance(self, natural, x):
        """Return half the deviance of each entry of ``x``: the loss, differentiable by autograd."""
        # The term is n_trials * softplus(natural), written by `logsigmoid`, because torch's
        # softplus loses precision: it returns the argument itself from 20 on.
        return self.saturated(x) - self.n_trials * logsigmoid(-natural) - x * natural

    def saturated(self, x):
        """Return the log-likelihood of each entry if its expectation is the entry: the largest."""
        n = self.n_trials
        return xlogy(x, x / n) + xlogy(n - x, (n - x) / n)

    def response(self, x):
        """Return Anscombe's transform of successes, whose variance is about 1.

        Methods for data with noise of variance 1 can take the transformed successes.
        """
        n = self.n_trials
        return 2 * (n + 0.5) ** 0.5 * torch.asin(((x + 3 / 8) / (n + 3 / 4)).sqrt())


def loss_named(name, n_trials):  # -> Binomial or Poisson
    """Return the loss for a learner's parameter: "binomial", with ``n_trials``, or "poisson"."""
    return Binomial(float(n_trials)) if name == "binomial" else Poisson()


LEAST_SQUARES = Gaussian()


class FromMeans:
    r"""The total deviance of data from their column means, added up batch by batch.

    The score of a learner compares the deviance of its model with this total, as :math:`R^2`
    compares squared errors with the variance. If samples have exposures, the expectation of an
    entry is a rate of its column times the exposure of its sample, instead of the column mean. Call
    `add` for each batch, then `total`.

    One pass over the data is enough, for this reason. Let :math:`r` be a fixed reference value of a
    column, and :math:`m` the mean of its :math:`n` entries :math:`x`. For each loss with the
    deviance :math:`d` the deviance of the column from :math:`m` is :math:`\sum_x d(x, r) - n d(m,
    r)`.

    Parameters
    ----------
    loss : Gaussian, Poisson or Binomial
        The loss.
    """

    def __init__(self, loss):
        self._loss = loss
        self._reference = None
        self._sums = 0.0

    def add(self, samples):  # Samples -> FromMeans
        """Add the known entries of a batch, with the weights of samples; return this object.

        ``samples.x`` are the data (n, n_features), and ``samples.target`` is the exposure of the
        samples, of a shape that broadcasts against the data; None stands for 1. A count ``x`` of
        exposure ``e`` has ``e`` times the deviance of ``x / e``, so it enters as ``x / e`` of
        weight ``e``.
        """
        x = samples.x
        exposure = 1.0 if samples.target is None else samples.target
        mask = torch.ones_like(x) if samples.mask is None else samples.mask
        x = x / exposure
        weight = samples.weigh(mask) * exposure
        # The reference of a column is its least entry in the first batch. A constant column then
        # has a deviance of exactly zero, because all its entries equal the reference.
        if self._reference is None:
            least = x.masked_fill(weight == 0, inf).amin(0)
            self._reference = least.masked_fill(least.isinf(), 0.0)
        above = weight * (x - self._reference)
        deviance = weight * self._from_reference(x)
        self._sums += torch.stack([weight.sum(0), above.sum(0), deviance.sum(0)])
        return self

    def _from_reference(self, x):  # (n, m) or (m,) -> the same
        """Return the deviance of each entry of ``x`` from the reference value of its column."""
        natural = self._reference
        # the link of counts is infinite at 0 and at their largest value, so `clamp` moves these
        # values inwards
        if not self._loss.is_quadratic:
            precision = torch.finfo(natural.dtype)
            largest = self._loss.largest * (1 - precision.eps)
            natural = self._loss.natural(natural.clamp(precision.tiny, largest))
        return 2 * self._loss.half_deviance(natural, x)

    def total(self):  # -> float
        """Return the total deviance of all batches.

        A deviance of a column that is below its rounding error counts as zero. The error is
        estimated by the machine precision times the square root of the number of entries times
        their sum of deviances; for counts, whose deviance is a difference of terms of the size of
        the mean, 1 plus the mean is added to the deviance of each entry.
        """
        # weighted sums over entries: of 1, of x - reference and of the deviance from the reference
        size, above, deviance = self._sums
        mean = self._reference + above / torch.where(size > 0, size, 1.0)
        rounding = deviance + (0.0 if self._loss.is_quadratic else size * (1 + mean))
        rounding = torch.finfo(mean.dtype).eps * size.clamp_min(1).sqrt() * rounding
        deviance = deviance - size * self._from_reference(mean)
        return float(torch.where(deviance > rounding, deviance, 0.0).sum())
