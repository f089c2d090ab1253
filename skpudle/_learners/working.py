"""What data of a loss are to least squares: where search, initial atoms and alpha come from.

A response of variance about 1, minus that of the baseline, is what a search works on, whose lasso
is close to the penalised likelihood where counts are not too small.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.losses import Gaussian

__all__ = ["LEAST_PENALTY", "Working", "settle", "settled_baseline", "working_data"]

# The noise of a correlation with a unit atom has variance 1, and a penalty of less than twice its
# deviation leaves codes of noise: of 50 atoms of counts of mean 3.3 a search found 0.54 with 0.7,
# and all with 1.4 and with 2.9.
LEAST_PENALTY = 2.0

# Newton's steps for the baseline, and samples or pixels that are encoded at a time.
_STEPS, _SAMPLES, _PIXELS = 5, 1024, 2**17


class Working(NamedTuple):
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
    curvature : float
        The curvature of the loss, for a quadratic model of it.
    """

    x: Tensor
    intercept: Tensor | None
    noise: float
    curvature: float


def working_data(loss, x, mask=None, offset=None):
    """Return data as least squares see them.

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
        return Working(x, None, 1.0, 1.0)
    known = torch.ones_like(x) if mask is None else mask
    size = known if offset is None else known * offset.exp()
    # half an event more, so that the parameter of none is finite
    intercept = loss.natural(((known * x).sum(0) + 0.5) / (size.sum(0) + 1))
    natural = intercept if offset is None else intercept + offset
    expected = loss.mean(natural).expand_as(x)
    response = known * (loss.response(x) - loss.response(expected))
    response = response - response.sum(0) / known.sum(0).clamp_min(1)
    noise = ((known * loss.variance(expected)).sum() / known.sum().clamp_min(1)).sqrt()
    # a mean in which the entries weigh more that are curved more: with the mean itself training
    # raised the loss of counts that vary much
    variance = known * loss.variance(x)
    curvature = variance.square().sum() / variance.sum()
    return Working(response, intercept, float(noise), float(curvature.nan_to_num(1.0)))


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
        (dictionary, encoder, _), slope, curvature = model.network(rows, 0), 0.0, 0.0
        for x, mask, offset in zip(*given):
            known = torch.ones_like(x) if mask is None else mask
            natural = dictionary.synthesis(encoder(dictionary, x, mask=mask, offset=offset))
            mean = loss.mean(natural if offset is None else natural + offset)
            slope = slope + (known * (x - mean)).sum(0)
            curvature = curvature + (known * loss.variance(mean)).sum(0)
        if team is not None:
            slope, curvature = team.sum(slope, curvature)
        # where nothing was counted Newton goes down by 1 a step
        rows[-1] += slope / curvature.clamp_min(torch.finfo(x.dtype).tiny)
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
        slope, curvature = torch.zeros_like(intercept), torch.zeros_like(intercept)
        network = replace(network, parameters=network.parameters._replace(intercept=intercept))
        for part, seen in zip(x.split(parts), known.split(parts), strict=True):
            mean = loss.mean(network.synthesis(network.encode(part, mask=seen)))
            slope += (seen * (part - mean)).transpose(0, 1).flatten(1).sum(1)
            curvature += (seen * loss.variance(mean)).transpose(0, 1).flatten(1).sum(1)
        intercept = intercept + slope / curvature.clamp_min(torch.finfo(x.dtype).tiny)
    return intercept
