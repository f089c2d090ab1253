"""Variance-stabilised counts, for the search, initial atoms and the automatic alpha.

A response of variance about 1, minus that of the baseline, is what a search works on, whose lasso
is close to the penalised likelihood where counts are not too small.
"""

from dataclasses import replace
from functools import partial
from math import exp, expm1, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.losses import Gaussian

__all__ = ["Stabilised", "least_penalty", "objectives", "settle", "settled_baseline", "stabilised"]

# The noise of a correlation with a unit atom has variance 1, and a penalty of less than twice its
# deviation leaves codes of noise: of 50 atoms of counts of mean 3.3 a search found 0.54 with 0.7,
# and all with 1.4 and with 2.9.
_DEVIATIONS = 2.0
# One event moves one entry of the residual x - mu by 1, and its correlation with an atom of norm 1
# by |d_j| <= 1. Since the penalised likelihood is convex, a row of one event, x = e_j, has no code
# if and only if |D^T (e_j - mu)| <= alpha, and |e_j - mu|_2 <= 1 where events are rare, |mu|^2 <=
# 2 mu_j. So from a penalty of 1 on it takes two events in a row to say that features belong
# together, whatever the atoms. Of twice the deviation, 0.2 where the mean is 0.01, one is enough:
# then the share of hidden deviance that was explained fell from -0.03 to -700 (planted topics).
_ONE_EVENT = 1.0
# That matters where such rows are more than two deviations let through. Of N expected events there
# are N / (exp(N) - 1) rows of one among those of any: 0.05 from 4.5 events on.
_TAIL = 0.05

# Steps for the baseline, and samples or pixels that are encoded at a time.
_STEPS, _SAMPLES, _PIXELS = 5, 1024, 2**17


def least_penalty(noise, n_entries):
    """Return the least penalty that leaves neither noise nor single events a code.

    Parameters
    ----------
    noise : float
        The standard deviation of entries at the baseline.
    n_entries : float
        Number of entries of a sample.
    """
    n_events = noise**2 * n_entries  # rare events have the variance of their number
    alone = n_events * exp(-n_events) / -expm1(-n_events) if n_events else 1.0
    least = _DEVIATIONS * noise
    return max(least, _ONE_EVENT) if alone > _TAIL else least


class Stabilised(NamedTuple):
    """Data for least squares.

    Attributes
    ----------
    x : Tensor of shape (n, n_features)
        Responses, centred.
    intercept : Tensor of shape (n_features,) or None
        The natural parameters of the mean rates; None for least squares, whose data are as they
        are.
    noise : float
        The standard deviation of the data at the intercept.
    least : float
        The least penalty for the data.
    curvature : float
        The curvature of the loss, for a quadratic model of it.
    """

    x: Tensor
    intercept: Tensor | None
    noise: float
    least: float
    curvature: float


def stabilised(loss, x, mask=None, offset=None):
    """Stabilise the variance of counts, so that least squares fit them; others stay as they are.

    Parameters
    ----------
    loss : object of `skpudle.losses`
        The loss.
    x : Tensor of shape (n, n_features)
        Data.
    mask : Tensor of shape (n, n_features), default=None
        1 where they are known.
    offset : Tensor of shape (n, 1), default=None
        The logarithms of exposures.
    """
    if isinstance(loss, Gaussian):
        return Stabilised(x, None, 1.0, 0.0, loss.curvature)
    known = torch.ones_like(x) if mask is None else mask
    size = known if offset is None else known * offset.exp()
    # half an event more, so that the parameter of none is finite
    intercept = loss.natural(((known * x).sum(0) + 0.5) / (size.sum(0) + 1))
    natural = intercept if offset is None else intercept + offset
    expected = loss.mean(natural).expand_as(x)
    response = known * (loss.response(x) - loss.response(expected))
    response = response - response.sum(0) / known.sum(0).clamp_min(1)
    n_known = known.sum().clamp_min(1)
    noise = float(((known * loss.variance(expected)).sum() / n_known).sqrt())
    curvature = loss.curvature
    if not isfinite(curvature):
        # a mean in which the entries weigh more that are curved more: with the mean itself training
        # raised the loss of counts that vary much
        variance = known * loss.variance(x)
        curvature = float((variance.square().sum() / variance.sum()).nan_to_num(1.0))
    least = least_penalty(noise, float(n_known) / max(len(x), 1))
    return Stabilised(response, intercept, noise, least, curvature)


def _step_of_baseline(loss, counted, expected, n_known):
    """Return what moves expectations towards what was counted, for given codes.

    The difference of natural parameters of the means, the solution for counts. Newton's step is
    the same near it, and far below it so much too long that expectations overflow. Half an event
    more keeps that of none finite.
    """
    mean, other = ((total + 0.5) / (n_known + 1) for total in (counted, expected))
    return loss.natural(mean) - loss.natural(other)


@torch.no_grad()
def objectives(model, rows, batch, update):  # -> float, float
    """Return what the rule of a model minimises, and what it is of the baseline alone.

    The baseline has no codes and, where the loss has an intercept, the mean rates of the batch.

    Parameters
    ----------
    model : object
        The model, see `skpudle._training.loop`.
    rows : Tensor of shape (n_rows, n_parameters)
        Its rows of parameters.
    batch : Batch
        Samples.
    update : int
        The update, counted from 0, whose decay counts.
    """
    loss, x = model.encoder.loss, batch.x if batch.target is None else batch.target
    dictionary, encoder, penalty = model.network(rows, update)
    given = dict(target=batch.target, mask=batch.mask)
    given |= {} if batch.offset is None else {"offset": batch.offset}
    if batch.noise_std is not None:
        encoder = partial(encoder, noise_std=batch.noise_std)
    fitted = model.rule(dictionary, batch.x, encoder=encoder, penalty=penalty, **given)
    # what the rule adds to the loss, if anything; an intercept has no penalty
    penalties = fitted.objective - fitted.losses.mean()
    penalties = (penalties - penalty * model.n_constant_codes).clamp_min(0)
    known = torch.ones_like(x) if batch.mask is None else batch.mask
    natural = x.new_zeros(())
    if not isinstance(loss, Gaussian):
        rest = [i for i in range(x.ndim) if i != 1]
        size = known if batch.offset is None else known * batch.offset.exp()
        rates = ((known * x).sum(rest, keepdim=True) + 0.5) / (size.sum(rest, keepdim=True) + 1)
        natural = loss.natural(rates)
        natural = natural if batch.offset is None else natural + batch.offset
    baseline = (known * loss.half_deviance(natural, x)).sum() / len(x)
    return float(fitted.losses.mean() + penalties), float(baseline)


@torch.no_grad()
def settle(model, rows, data, team=None):
    """Return rows with the baseline that belongs to the atoms.

    Before there are codes, that of the mean stands for what codes explain later.

    Parameters
    ----------
    model : DenseModel
        The model.
    rows : Tensor of shape (n_components + 1, n_features)
        Atoms, and the intercept.
    data : Data
        With the sample that the atoms were found in.
    team : Team, default=None
        What sums over processes that have other samples.
    """
    loss, rows = model.encoder.loss, rows.clone()
    given = [
        [None] * len(data.sample) if t is None else t.split(_SAMPLES)
        for t in (data.sample, data.mask, data.offset)
    ]
    for _ in range(_STEPS):
        (dictionary, encoder, _), counted, expected, n_known = model.network(rows, 0), 0.0, 0.0, 0.0
        for x, mask, offset in zip(*given):
            known = torch.ones_like(x) if mask is None else mask
            natural = dictionary.synthesis(encoder(dictionary, x, mask=mask, offset=offset))
            mean = loss.mean(natural if offset is None else natural + offset)
            counted = counted + (known * x).sum(0)
            expected = expected + (known * mean).sum(0)
            n_known = n_known + known.sum(0)
        if team is not None:
            counted, expected, n_known = team.sum(counted, expected, n_known)
        rows[-1] += _step_of_baseline(loss, counted, expected, n_known)
    return rows


@torch.no_grad()
def settled_baseline(network, x, mask=None):
    """Return the baseline that belongs to the atoms of images, as `settle` does.

    Parameters
    ----------
    network : ConvNetwork
        What encodes and decodes.
    x, mask : Tensor of shape (n, n_channels, *size), mask or None
        Images, and 1 where they are known.

    Returns
    -------
    Tensor of shape (n_channels,)
        The baseline.
    """
    loss, parts = network.encoder.loss, max(1, _PIXELS // x[0, 0].numel())
    intercept, known = network.parameters.intercept, torch.ones_like(x) if mask is None else mask
    for _ in range(_STEPS):
        counted, expected, n_known = (torch.zeros_like(intercept) for _ in range(3))
        network = replace(network, parameters=network.parameters._replace(intercept=intercept))
        for part, seen in zip(x.split(parts), known.split(parts), strict=True):
            mean = loss.mean(network.synthesis(network.encode(part, mask=seen)))
            sums = (
                entries.transpose(0, 1).flatten(1).sum(1)
                for entries in (seen * part, seen * mean, seen)
            )
            for total, value in zip((counted, expected, n_known), sums, strict=True):
                total += value
        intercept = intercept + _step_of_baseline(loss, counted, expected, n_known)
    return intercept
