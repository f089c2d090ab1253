"""Supports of codes, and rows grouped by the size of their supports."""

from bisect import bisect_right

import torch

__all__ = ["BLOCK_ENTRIES", "MOST_ROUNDS", "parts", "supports_of"]

# Entries of the codes of a block: enough work for a device, little memory compared with the data.
BLOCK_ENTRIES = {"cpu": 2**20, "cuda": 2**24}
# Largest number of rounds in which a solver admits atoms to supports, unless a user passes another.
MOST_ROUNDS = 1000

# Supports are padded to multiples of this.
_SUPPORT_STEP = 8


def supports_of(codes, width):  # (n, p), int -> (n, width), padded by p
    """Return the support of each row, which has at most ``width`` entries."""
    active = codes.abs() > 0  # and no NaN
    places = (active.cumsum(1) - 1).masked_fill_(~active, width)  # zeros write to an extra place
    supports = places.new_full((len(codes), width + 1), codes.shape[1])
    atoms = torch.arange(codes.shape[1], device=codes.device).expand_as(places)
    return supports.scatter_(1, places, atoms)[:, :width]


def parts(sizes, n_features, device):  # in ascending order -> first, last, width
    """Yield parts of rows with supports of similar size, for little padding; skip empty ones."""
    first, entries = bisect_right(sizes, 0), BLOCK_ENTRIES.get(device.type, 2**20)
    while first < len(sizes):
        width = -(-sizes[first] // _SUPPORT_STEP) * _SUPPORT_STEP
        n_rows = max(1, entries // (width * max(width, n_features)))
        last = min(first + n_rows, bisect_right(sizes, width))
        yield first, last, width
        first = last
