"""How well hidden features are predicted from the others: the score of dictionary learners."""

from functools import reduce

import torch

from skpudle._data.arrays import wide
from skpudle._precision import own_precision
from skpudle.operators import DenseDictionary

__all__ = ["hidden_error", "moments", "total_variation"]

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


def hidden_error(encoder, dictionary):
    """Return a function of rows and mask: the squared error of all features, each hidden once.

    Codes are inferred from the features of the other groups; with one feature, where nothing is
    left to infer from, they are those of the feature itself.
    """
    n_features, device = dictionary.atoms.shape[1], dictionary.atoms.device
    order = torch.randperm(n_features, generator=torch.Generator().manual_seed(0), device="cpu")
    sizes = [len(part) for part in order.tensor_split(min(_SCORE_GROUPS, n_features))]
    groups = order.to(device).split(sizes)

    def squared_error(rows, known):
        total = 0.0
        for i, hidden in enumerate(groups):
            others = [*groups[:i], *groups[i + 1 :]] or [hidden]
            seen = torch.cat(others).sort().values
            visible = DenseDictionary(dictionary.atoms[:, seen])
            known_seen = None if known is None else known[:, seen]
            codes = encoder(visible, rows[:, seen], mask=known_seen)
            with own_precision():
                residual = codes @ dictionary.atoms[:, hidden] - rows[:, hidden]
            residual = residual if known is None else residual * known[:, hidden]
            total = total + wide(residual).square().sum()
        return float(total)  # of all groups at once: here the host waits for a device

    return squared_error
