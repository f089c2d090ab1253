"""Rows of data: their masks and weights, samples of rows, copies, and groups of hidden features.

What a search, the reading of data and the encoders know of rows, without any of these modules.
"""

import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows

# Features are cut into this number of groups, and each turn of a prediction hides one group. In
# images each turn hides one pixel out of this number.
N_GROUPS = 10
# The median modulus of a standard normal variable: a median distance divided by this number is a
# standard deviation.
MEDIAN_OF_NORMAL = 0.6745


class Rows:
    """Base class of `Problem` and of samples in memory: what follows from data, mask and weights.

    Subclasses have three attributes, as in `Problem`: ``x`` (n_samples, ...), for rows, images or
    signals; ``mask``, of the shape of ``x`` or None; and ``weight``, (n_samples,) or None.
    """

    @property
    def observed(self) -> Tensor:  # of the shape of the data
        """The mask of the data: 1 for known entries and 0 for missing ones; ones without a mask."""
        return self.x.new_ones(()).expand_as(self.x) if self.mask is None else self.mask

    @property
    def total_weight(self) -> float:
        """The sum of the weights of this process's samples; their number without weights."""
        return float(len(self.x) if self.weight is None else self.weight.sum())

    def weigh(self, values: Tensor) -> Tensor:  # (n_samples, ...) -> the same
        """Return ``values``, one or more numbers for each sample, times the samples' weights."""
        if self.weight is None:
            return values
        return values * self.weight.to(values).view(-1, *[1] * (values.ndim - 1))


def _uniform(n):  # -> (n,) float64
    """Return ``n`` random numbers from 0 to 1, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")


def spread_rows(n_rows, n_drawn):  # -> (min(n_rows, n_drawn),)
    """Draw rows evenly from the data, the same rows in every call.

    The rows are cut into parts of equal size, and one row of each part is drawn at random. (Rows at
    equal distances would be biased where rows alternate, for example between channels.)

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_drawn : int
        Number of rows to draw. If there are fewer rows, all rows are taken.

    Returns
    -------
    Tensor of shape (min(n_rows, n_drawn),)
        The numbers of the rows drawn, in increasing order.
    """
    n_drawn = min(n_rows, n_drawn)
    edges = torch.arange(n_drawn + 1, device="cpu") * n_rows // max(n_drawn, 1)
    return edges[:-1] + (_uniform(n_drawn) * edges.diff()).long()


def draw_rows(n_rows, n_drawn, weight=None):  # -> (n_distinct,), (n_distinct,) or None
    """Draw rows with probabilities that grow with their weights, the same rows in every call.

    The sum of weights is cut into equal parts, and each part draws one row. A row that is drawn k
    times is returned once, with the weight k. Without weights the rows are those of `spread_rows`.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_drawn : int
        Number of draws. If it is at least ``n_rows``, all rows are returned with their own weights.
    weight : Tensor of shape (n_rows,), default=None
        Weights of the rows; None if they are equal.

    Returns
    -------
    rows : Tensor of shape (n_distinct,)
        The numbers of the rows drawn, in increasing order.
    weight : Tensor of shape (n_distinct,) or None
        Their weights; None without weights.
    """
    if weight is None or n_drawn >= n_rows:
        return spread_rows(n_rows, n_drawn), weight
    edges = weight.double().cpu().cumsum(0)
    parts = torch.arange(n_drawn, device="cpu") + _uniform(n_drawn)
    drawn = parts / n_drawn * edges[-1]
    rows = torch.searchsorted(edges, drawn, right=True).clamp_max(n_rows - 1)
    rows, counts = rows.unique_consecutive(return_counts=True)
    return rows, counts.to(weight)


def own(*tensors):  # -> the same tuple
    """Return the tensors unchanged: they are the sums over all processes if there is only one."""
    return tensors


def hash_rows(x, mask=None):  # -> (n,) int64, on the CPU
    """Return a hash of each row, by which equal rows are found.

    The hash depends only on the known entries of the row: the bits of the entries, 32 at a time,
    are multiplied by random odd numbers of 64 bits; in each product the upper half is combined with
    the lower half by exclusive or; and the products are summed modulo ``2**64``. Two rows that
    differ have the same hash with a probability of about ``2**-64``. ``x`` and ``mask`` are as in
    `match_equal_rows`.
    """
    x = x.flatten(1)
    # the 32-bit numbers in a row
    n_numbers = x.shape[1] * x.element_size() // 4
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(
        -(2**62), 2**62, (n_numbers,), generator=generator, device="cpu"
    )
    factors = (2 * factors + 1).to(x.device)
    sums = []
    # A block of rows has 2**18 products, 2 MiB, which fit into a cache: to hash 20,000 rows of 64
    # features takes 5 ms in such blocks, and 24 ms in blocks of four times the size.
    for part in blocks_of_rows(len(x), n_numbers, 2**18):
        rows = torch.empty(x[part].shape, dtype=x.dtype, device=x.device)
        rows.copy_(x[part])
        rows += 0.0  # turns -0.0 into 0.0: both are equal, but have different bits
        if mask is not None:
            rows.masked_fill_(mask.flatten(1)[part] == 0, torch.nan)
        products = rows.view(torch.int32) * factors
        sums.append(products.bitwise_xor_(products >> 32).sum(1).cpu())
    return torch.cat(sums)


def match_equal_rows(x, mask=None):  # -> (n,)
    """Return for each row the number of the first row with the same known entries.

    So a row is held out together with its copies: a copy among the training rows would reveal the
    noise of the row.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Rows, in float32 or float64.
    mask : Tensor of the shape of ``x``, default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples,)
        Numbers of rows, on the CPU. A row that equals no row before it has its own number.
    """
    _, number = hash_rows(x, mask).unique(return_inverse=True)
    rows = torch.arange(len(x), device="cpu")
    first = torch.full_like(rows, len(x)).scatter_reduce(0, number, rows, "amin")
    return first[number]


def hide_in_turn(first):  # (n_features,) -> list of (seen, hidden)
    """Cut features into random groups, each hidden in one turn; the same groups in every call.

    Features that are copies of each other are in one group: a visible copy would reveal the noise
    of a hidden copy. If there is a single group, its features are both visible and hidden.

    Parameters
    ----------
    first : Tensor of shape (n_features,)
        For each feature the number of the first feature with the same values, as `match_equal_rows`
        returns it for columns. Few features, or many copies, make fewer groups than ten.

    Returns
    -------
    list of tuple (seen, hidden)
        For each turn the numbers of the visible features, in increasing order, and the numbers of
        the hidden features.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(first), generator=generator, device="cpu")
    parts = order.tensor_split(max(1, min(N_GROUPS, len(order))))
    group = torch.empty_like(order)
    for number, part in enumerate(parts):
        group[part] = number
    group = group[first]  # copies of a feature join its group
    numbers = group.unique()
    turns = []
    for number in numbers:
        is_seen = (group != number) | (len(numbers) == 1)
        hidden = order[group[order] == number]
        turns.append((is_seen.nonzero().flatten(), hidden))
    return turns


def gaps_in(mask):  # -> mask or None
    """Return ``mask``, or None, which is faster, if all entries are known."""
    return None if bool(mask.all()) else mask
