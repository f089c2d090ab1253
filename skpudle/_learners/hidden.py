"""How well hidden features are predicted from the others: the score of dictionary learners."""

from functools import reduce

import torch

from skpudle._data.arrays import wide
from skpudle._precision import own_precision
from skpudle.operators import DenseDictionary

__all__ = ["hidden_errors", "moments", "total_variation"]

_SCORE_GROUPS = 10


def moments(x, mask):  # -> of each column its number, mean and sum of squared deviations
    """Return moments of what is known, on the host, where those of all parts meet."""
    x = wide(x)
    if mask is None:
        mask, origin = torch.ones_like(x[:1]), x[0]
        n_known = len(x) * mask[0]
    else:
        mask = wide(mask)
        origin = x.masked_fill(mask == 0, torch.inf).amin(0)
        origin, n_known = origin.masked_fill(origin.isinf(), 0), mask.sum(0)
    centred = (x - origin) * mask  # exactly zero for constant columns, whose mean may be rounded
    mean = centred.sum(0) / n_known.clamp_min(1)
    squares = ((centred - mean) * mask).square().sum(0)
    return n_known.cpu(), (origin + mean).cpu(), squares.cpu()


def _together(one, other):
    """Return the moments of two parts: their means differ, which is variation too."""
    (n, mean, squares), (n_other, mean_other, squares_other) = one, other
    share = n_other / (n + n_other).clamp_min(1)
    apart = mean_other - mean
    squares = squares + squares_other + apart.square() * n * share
    return n + n_other, mean + apart * share, squares


def total_variation(parts):
    """Return the sum of squared deviations of all, given the moments of parts."""
    return float(reduce(_together, parts)[2].sum())


def hidden_errors(encoder, dictionary):
    """Yield, for each group of features, a function of rows and mask: their squared error.

    Codes are inferred from the other features; with one feature, where nothing is left to infer
    from, they are those of the feature itself.
    """
    n_features, device = dictionary.atoms.shape[1], dictionary.atoms.device
    order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0), device="cpu")
    for hidden in order.tensor_split(min(_SCORE_GROUPS, n_features)):
        seen = torch.ones(n_features, dtype=torch.bool, device="cpu")
        seen[hidden] = n_features == 1
        seen, hidden = seen.to(device), hidden.to(device)
        visible = DenseDictionary(dictionary.atoms[:, seen])

        def squared_error(rows, known, seen=seen, hidden=hidden, visible=visible):
            known_seen = None if known is None else known[:, seen]
            codes = encoder(visible, rows[:, seen], mask=known_seen)
            with own_precision():
                residual = codes @ dictionary.atoms[:, hidden] - rows[:, hidden]
            residual = residual if known is None else residual * known[:, hidden]
            return float(wide(residual).square().sum())

        yield squared_error
