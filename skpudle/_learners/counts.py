"""Variance-stabilised counts, for the search, initial atoms and the automatic alpha.

The search works on stabilised counts, which have a variance of about 1, less the stabilised
baseline. Their lasso is close to the penalised likelihood if counts are not too small.
"""

from math import exp, expm1, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

# Least penalty, in standard deviations of the noise of a correlation with a unit atom, which is 1
# for stabilised counts. From counts of mean 3.3 a search found 54 % of 50 atoms with a penalty of
# 0.7, and all with 1.4 and with 2.9.
_DEVIATIONS = 2.0
# Least penalty with which a row of one rare event has no code, for any atoms: the event changes the
# correlation with a unit atom by at most 1, |D^T (e_j - mu)| <= |e_j - mu|_2 <= 1. Smaller
# penalties join features by single events: the explained share of held-out deviance fell from -0.03
# to -700 (planted topics).
_ONE_EVENT = 1.0
# Share of rows with a single event, among rows with events, above which _ONE_EVENT bounds the
# penalty. With N expected events it is N / (exp(N) - 1): 0.05 for 4.5 events.
_TAIL = 0.05

# Least fall of the deviance, as a share, for another halving of the search's penalty, and most
# halvings. Penalties above the search's were never better.
_LOWER, _HALVES = 0.01, 4

# steps for the baseline, and samples encoded at a time
_STEPS, _SAMPLES = 5, 1024


def least_penalty(noise, n_entries):
    """Return the least penalty at which noise and single events have no codes.

    Parameters
    ----------
    noise : float
        The standard deviation of entries at the baseline.
    n_entries : float
        Number of entries of a sample.
    """
    n_events = noise**2 * n_entries  # rare events: variance = mean
    alone = n_events * exp(-n_events) / -expm1(-n_events) if n_events else 1.0
    least = _DEVIATIONS * noise
    return max(least, _ONE_EVENT) if alone > _TAIL else least


def smaller_penalty(deviance, alpha):  # -> float
    """Return the penalty whose codes predict best: the search's, or a half, a quarter, ... of it.

    Parameters
    ----------
    deviance : callable
        The deviance of held-out entries for a penalty.
    alpha : float
        Penalty of the search.
    """
    least = deviance(alpha)
    for i in range(1, _HALVES + 1):
        found = deviance(alpha * 0.5**i)
        if not found < (1 - _LOWER) * least:
            return alpha * 0.5 ** (i - 1)
        least = found
    return alpha * 0.5**_HALVES


class Stabilised(NamedTuple):
    """Data for least squares.

    Attributes
    ----------
    x : Tensor of shape (n, n_features)
        Stabilised counts, centred.
    intercept : Tensor of shape (n_features,) or None
        The natural parameters of the mean rates; None for least squares, which leaves data
        unchanged.
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


def stabilised(loss, samples):
    """Stabilise the variance of counts, for least squares; return other data unchanged.

    Parameters
    ----------
    loss : object of `skpudle._losses`
        The loss.
    samples : Samples
        Data; their ``offset`` holds the logarithms of exposures.
    """
    x, mask, offset = samples.x, samples.mask, samples.offset
    if not loss.has_baseline:
        return Stabilised(x, None, 1.0, 0.0, loss.curvature)
    known = torch.ones_like(x) if mask is None else mask
    counts = samples.weigh(known)
    size = counts if offset is None else counts * offset.exp()
    # half an event more keeps the parameter finite where a feature has no events
    intercept = loss.natural(((counts * x).sum(0) + 0.5) / (size.sum(0) + 1))
    natural = intercept if offset is None else intercept + offset
    expected = loss.mean(natural).expand_as(x)
    response = known * (loss.response(x) - loss.response(expected))
    response = response - samples.weigh(response).sum(0) / counts.sum(0).clamp_min(1)
    n_known = counts.sum().clamp_min(1)
    noise = float(((counts * loss.variance(expected)).sum() / n_known).sqrt())
    curvature = loss.curvature
    if not isfinite(curvature):
        # Weigh entries by their curvature: with the plain mean training raised the loss of widely
        # varying counts.
        variance = loss.variance(x)
        sums = (counts * variance.square()).sum(), (counts * variance).sum()
        curvature = float((sums[0] / sums[1]).nan_to_num(1.0))
    least = least_penalty(noise, float(n_known) / max(samples.total_weight, 1.0))
    return Stabilised(response, intercept, noise, least, curvature)


def _step_of_baseline(loss, counted, expected, n_known):
    """Return the step of the baseline from expectations towards counts, for given codes.

    It is the difference of the natural parameters of the means, exact for counts. Newton's step is
    the same near the solution; far below it is too long, and expectations overflow. Half an event
    more keeps the parameter finite where a feature has no events.
    """
    mean, other = ((total + 0.5) / (n_known + 1) for total in (counted, expected))
    return loss.natural(mean) - loss.natural(other)


@torch.no_grad()
def settle(model, rows, samples, team):
    """Return rows with the best baseline for the atoms.

    The initial baseline, from the mean, includes the part that codes explain later.

    Parameters
    ----------
    model : DenseModel
        The model.
    rows : Tensor of shape (n_components + 1, n_features)
        Atoms, and the intercept.
    samples : Samples
        The samples that the atoms were found in.
    team : Team
        Processes with other samples, to sum over.
    """
    loss, rows = model.encoder.loss, rows.clone()
    parts = [samples[i : i + _SAMPLES] for i in range(0, len(samples), _SAMPLES)]
    for _ in range(_STEPS):
        (dictionary, encoder, _), counted, expected, n_known = model.network(rows, 0), 0.0, 0.0, 0.0
        for part in parts:
            x, mask, offset = part.x, part.mask, part.offset
            known = torch.ones_like(x) if mask is None else mask
            natural = dictionary.synthesis(encoder(dictionary, x, mask=mask, offset=offset))
            mean = loss.mean(natural if offset is None else natural + offset)
            known = part.weigh(known)
            counted = counted + (known * x).sum(0)
            expected = expected + (known * mean).sum(0)
            n_known = n_known + known.sum(0)
        counted, expected, n_known = team.sum(counted, expected, n_known)
        rows[-1] += _step_of_baseline(loss, counted, expected, n_known)
    return rows
