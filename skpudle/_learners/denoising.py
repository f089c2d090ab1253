"""Denoising of images of any size: borders, grids and tiles."""

from itertools import product

import torch

from skpudle._data.images import cut_tiles, extend
from skpudle._learners.conv_model import all_shifts

__all__ = ["denoise_images"]

# Pixels along an axis that are denoised at once, beside the overlap.
_TILE = 768

# What three channels are to a network for one: their mean, a grey image, and differences of equal
# noise, whose rows are orthogonal.
_OPPONENT = (
    (1 / 3, 1 / 3, 1 / 3),
    (2**-0.5, 0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


def _round_up(n, stride, remainder):
    return n + (remainder - n) % stride


def _each(values, x):  # (n,) -> as they go with images
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _denoise_opponents(network, x, noise_std, **options):
    mixing = x.new_tensor(_OPPONENT)
    channels = torch.einsum("oc,nc...->on...", mixing, x)
    if noise_std is None:
        levels = [None] * len(mixing)
    else:
        levels = noise_std * mixing.norm(dim=1)[:, None]
    denoised = [
        denoise_images(network, channel[:, None], noise_std=level, **options)
        for channel, level in zip(channels, levels, strict=True)
    ]
    return torch.einsum("co,no...->nc...", torch.linalg.inv(mixing), torch.cat(denoised, 1))


@torch.no_grad()
def denoise_images(network, x, *, noise_std=None, shift_average, tile=_TILE):
    """Return the images that a network reconstructs, of the size that went in.

    Of three channels a network for one gets the mean, in which there is the least noise, and two
    differences, in which there is little else.

    Images are continued by reflection, so that as many atoms reach a pixel at the border as one
    inside. An iteration carries information by less than an atom, so tiles that overlap by one atom
    for every iteration give the result of the whole image up to rounding.

    Parameters
    ----------
    network : ConvNetwork
        The network.
    x : Tensor of shape (n, n_channels, *size)
        Noisy images.
    noise_std : Tensor of shape (n,), default=None
        Their noise; by default estimated where the network follows it.
    shift_average : bool
        Whether to average over all grids of positions.
    tile : int, default=768
        Size of a tile, without its overlap.

    Returns
    -------
    Tensor of shape (n, n_channels, *size)
        Denoised images.
    """
    if x.shape[1] == len(_OPPONENT) > network.parameters.atoms.shape[1]:
        return _denoise_opponents(network, x, noise_std, shift_average=shift_average, tile=tile)
    if noise_std is None:
        noise_std = network.noise_of(x)  # of the whole image, and not of each tile
    unit = None
    if noise_std is not None:
        unit = network.unit_of(x, noise_std)
        x, noise_std = x / _each(unit, x), noise_std / unit
    kernel, stride, size = network.kernel, network.stride, x.shape[2:]
    room = tuple(s - 1 if shift_average else 0 for s in stride)
    axes = list(zip(size, kernel, stride, room, strict=True))
    totals = [_round_up(n + 2 * (k - 1), s, k + r) for n, k, s, r in axes]
    before = [k - 1 for k in kernel]
    after = [total - n - b for total, n, b in zip(totals, size, before, strict=True)]
    canvas, result = extend(x, before, after), torch.empty_like(x)
    shifts = all_shifts(stride) if shift_average else [(0,) * len(stride)]

    def denoise_tile(tile):
        cut, source, place = [], [], []
        for (start, stop), total, (_, k, s, r) in zip(tile, totals, axes, strict=True):
            depth = network.encoder.n_unfoldings
            # what is solved for depends on the whole image
            reach = _round_up(total if depth is None else depth * (k - 1), s, 0)
            first = max(0, start - reach)
            last = min(total, _round_up(stop + 2 * (k - 1) + reach, s, k + r))
            cut.append(slice(first, last))
            source.append(slice(start - first, stop - first))
            place.append(slice(start, stop))
        total = 0
        for shift in shifts:  # one after the other: what they need fits into a cache
            one = network.with_grids([shift], room)
            codes = one.encode(canvas[(..., *cut)], noise_std=noise_std)
            total = total + one.synthesis(codes)[(..., *source)]
        result[(..., *place)] = total / len(shifts)

    tiles = [cut_tiles(n, tile, s) for n, _, s, _ in axes]
    for corner in product(*tiles):
        denoise_tile(corner)
    return result if unit is None else result * _each(unit, x)
