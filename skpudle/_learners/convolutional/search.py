"""The search for atoms of images: pieces of images as a problem, and initial patches."""

from dataclasses import replace
from itertools import product
from math import ceil

import numpy as np
import torch

from skpudle._operators import atom_norms
from skpudle.search._conv_epoch import ConvProblem
from skpudle.search._epoch import spread_rows
from skpudle.search._maps import combine_channels, principal_directions, refine_products

__all__ = [
    "Pieces",
    "as_pictures",
    "patches_by_energy",
    "products_of",
    "search_problem",
    "windows_of",
]

# pixels of a piece: its correlations with some atoms stay in a cache
_PIXELS = 2**14


def windows_of(images, kernel, stride):  # -> list of (number of an image, slices of its axes)
    """Return pieces of one size, which atoms cover exactly, and which cover all images."""
    side = round(_PIXELS ** (1 / len(kernel)))
    smallest = (min(axis) for axis in zip(*(image.shape[1:] for image in images), strict=True))
    axes = zip(smallest, kernel, stride, strict=True)
    size = [k + s * ((max(k, min(n, max(side, 4 * k))) - k) // s) for n, k, s in axes]
    windows = []
    for number, image in enumerate(images):
        axes = []
        for n, length in zip(image.shape[1:], size, strict=True):
            last, n_parts = n - length, ceil(n / length)
            starts = (i * last // max(n_parts - 1, 1) for i in range(n_parts))  # to the end
            axes.append([slice(start, start + length) for start in starts])
        windows += [(number, corner[::-1]) for corner in product(*reversed(axes))]
    return windows


class Pieces:
    """Pieces of one size of images of any sizes, which overlap if an image is no multiple of them.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images; no piece is copied before it is used.
    windows : list of (int, tuple of slice)
        The number of an image and a part of it, for each piece.
    unit : float, default=1.0
        Divisor of combinations and products.
    """

    def __init__(self, images, windows, unit=1.0):
        self._images, self._windows, self._unit = images, windows, unit

    def __iter__(self):
        """Yield the pieces, of shape (n_channels, *size)."""
        return (self._images[i][(..., *window)] for i, window in self._windows)

    def part(self, rows, unit):
        """Return the pieces with these numbers, divided by a unit."""
        return Pieces(self._images, [self._windows[i] for i in rows.tolist()], unit)

    def stacked(self, images=None):  # -> (n, n_channels, *size)
        """Return the pieces of the images, or of ``images`` of the same sizes."""
        images = self._images if images is None else images
        return torch.stack([images[i][(..., *window)] for i, window in self._windows])

    def principal_directions(self, n):  # -> (n_channels, n), or None if there are no more channels
        """Return the combinations of channels with the most energy."""
        if len(self._images[0]) <= n:
            return None
        flat = (piece.double().flatten(1).cpu() for piece in self)
        return principal_directions(sum(x @ x.mT for x in flat), n)

    def combined(self, directions):  # -> (n, n_directions, height, width)
        """Return the pieces as pictures with combinations of their channels."""
        pieces = (piece[None].double().cpu() for piece in self)
        combined = torch.cat([combine_channels(piece, directions) for piece in pieces])
        return as_pictures(combined) / self._unit

    def products(self, sources):  # (n, k, height, width) -> (k, n_channels)
        """Return products of sources and pieces, summed over places and pieces."""
        pairs = zip(sources, self, strict=True)
        sums = sum(s.flatten(1) @ x.double().cpu().flatten(1).mT for s, x in pairs)
        return sums / self._unit


def as_pictures(x):  # (n, n_channels, [height,] width) -> with a height
    """Return signals as pictures of height 1; pictures are returned unchanged."""
    return x if x.ndim == 4 else x[:, :, None]


def search_problem(x, mask, kernel, stride, *, alpha, positive_code, unit):
    """Return the problem of a search for atoms of images.

    Parameters
    ----------
    x, mask : Tensor of shape (n, n_channels, *size), mask or None
        Pieces of images, and masks, 1 for known pixels.
    kernel, stride : tuple of int
        Size and distance of atoms.
    alpha : float
        Penalty.
    positive_code : bool
        Whether codes are non-negative.
    unit : float
        A power of two, which divides data and penalty in the search.

    Returns
    -------
    ConvProblem
        The problem.
    """
    flat = (1,) * (2 - len(kernel))
    return ConvProblem(
        as_pictures(x.double() / unit),
        (*flat, *kernel),
        (*flat, *stride),
        alpha / unit,
        positive_code,
        mask=None if mask is None else as_pictures(mask),
        unit=unit,
    )


def products_of(problem, state, pieces, directions):  # -> (n_components, n_channels, h, w)
    """Return the atoms of rank one next to the atoms of a search.

    Parameters
    ----------
    problem : ConvProblem
        The problem of the search.
    state : SearchState
        Its last state.
    pieces : Pieces
        The images in all channels.
    directions : Tensor of shape (n_channels, n_directions) or None
        The combinations of channels that the problem has.
    """
    rows = spread_rows(len(problem.x), -(-len(problem.x) // state.stride))
    part = replace(problem.of_rows(rows), alpha=state.alpha)
    return refine_products(part, state.found[0], pieces.part(rows, problem.unit), directions)


def patches_by_energy(images, shape, n_components, generator):
    """Return random patches of norm 1, more often those of more energy.

    Parameters
    ----------
    images : list of Tensor of shape (n_channels, *size)
        Images at least as large as an atom.
    shape : tuple of int
        (n_channels, *kernel).
    n_components : int
        Number of patches; if too few are not zero, random directions complete it.
    generator : torch.Generator
        Random numbers, on the CPU.

    Returns
    -------
    Tensor of shape (n_components, *shape)
        The patches, of the dtype and on the device of the images.
    """
    kernel, energies = shape[1:], []
    for image in images:
        squares = image.detach().double().square().sum(0)
        for axis, k in enumerate(kernel):
            squares = squares.unfold(axis, k, 1).sum(-1)
        energies.append(squares.cpu())
    options = dict(generator=generator, dtype=torch.float64, device="cpu")
    atoms = torch.randn(n_components, *shape, **options).to(images[0])
    total = torch.cat([energy.flatten() for energy in energies]).cumsum(0)
    drawn = torch.rand(4 * n_components, **options) * total[-1]
    places = torch.searchsorted(total, drawn, right=True).clamp_max(len(total) - 1)
    places = list(dict.fromkeys(places.tolist()))[:n_components] if total[-1] > 0 else []
    for k, place in enumerate(places):
        i = 0
        while place >= energies[i].numel():
            place, i = place - energies[i].numel(), i + 1
        starts = np.unravel_index(place, energies[i].shape)
        window = (slice(a, a + n) for a, n in zip(starts, kernel, strict=True))
        atoms[k] = images[i][(..., *window)]
    norms = atom_norms(atoms)
    return atoms / torch.where(norms > 0, norms, 1.0)
