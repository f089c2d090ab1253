"""Places of rows that represent all rows, and copies of rows and features."""

import torch

__all__ = ["group_features", "match_equal_rows", "spread_rows"]

# Halves of 64-bit numbers to compare at a time, 8 MiB.
_NUMBERS_AT_A_TIME = 2**20


def spread_rows(n_rows, n_places):  # -> (min(n_rows, n_places),), increasing
    """Draw places of rows, one in each of equal parts of all rows; the same in every call.

    Rows at equal distances would be of one channel where channels are interleaved.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of places. If there are no more rows, all rows are taken.

    Returns
    -------
    Tensor of shape (min(n_rows, n_places),)
        The places, in increasing order.
    """
    n_places = min(n_rows, n_places)
    edges = torch.arange(n_places + 1, device="cpu") * n_rows // max(n_places, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(n_places, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:-1] + (drawn * edges.diff()).long()


def match_equal_rows(x, mask=None):  # -> (n,)
    """Return for each row the place of the first row with the same known entries.

    What holds rows out holds out their copies, too: a copy among the other rows would tell the
    noise of the row. Rows are compared by sums of their bits times random odd numbers, modulo
    ``2**64``, in which rows that differ are equal with probability ``2**-32`` at most.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Rows, in float32 or float64.
    mask : Tensor of the shape of ``x``, default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples,)
        Places, on the CPU. A row that equals no row before it has its own place.
    """
    x = x.flatten(1)
    n_numbers = x.shape[1] * x.element_size() // 4
    generator, sums = torch.Generator().manual_seed(0), []
    factors = torch.randint(-(2**62), 2**62, (n_numbers,), generator=generator, device="cpu")
    factors = (2 * factors + 1).to(x.device)
    rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // max(n_numbers, 1))
    for start in range(0, len(x), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        known = torch.empty(x[part].shape, dtype=x.dtype, device=x.device).copy_(x[part])
        known += 0.0  # a negative zero equals a positive one
        if mask is not None:
            known.masked_fill_(mask.flatten(1)[part] == 0, torch.nan)
        sums.append((known.view(torch.int32) * factors).sum(1).cpu())
    if not sums:
        return torch.arange(0, device="cpu")
    _, number = torch.cat(sums).unique(return_inverse=True)
    places = torch.arange(len(x), device="cpu")
    return torch.full_like(places, len(x)).scatter_reduce(0, number, places, "amin")[number]


def group_features(places, n_groups):  # -> groups, each of shape (n,)
    """Cut features into random groups, which are hidden in turn; the same in every call.

    Copies of a feature are in its group: a visible copy would tell the noise of a hidden one.

    Parameters
    ----------
    places : Tensor of shape (n_features,)
        For each feature the place of its first copy, as `match_equal_rows` returns it.
    n_groups : int
        Number of groups. There are fewer if there are fewer features, or many copies.

    Returns
    -------
    list of Tensor
        Features of each group.
    """
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    parts, group = order.tensor_split(max(1, min(n_groups, len(order)))), torch.empty_like(order)
    for number, part in enumerate(parts):
        group[part] = number
    of_order = group[places[order]]
    groups = (order[of_order == number] for number in range(len(parts)))
    return [features for features in groups if len(features)]
