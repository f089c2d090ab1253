"""The search for atoms of images: pieces of images as a problem, and initial patches."""

from math import ceil

import numpy as np
import torch

from skpudle._operators import atom_norms
from skpudle.search._conv_epoch import ConvProblem

__all__ = ["as_pictures", "patches_by_energy", "pieces_of", "search_problem"]

# pixels of a piece: its correlations with some atoms stay in a cache
_PIXELS = 2**14


def _piece(sizes, kernel, stride):  # -> tuple, the size of pieces of images of these sizes
    side = round(_PIXELS ** (1 / len(kernel)))
    smallest = (min(axis) for axis in zip(*sizes, strict=True))
    axes = zip(smallest, kernel, stride, strict=True)
    return tuple(k + s * ((max(k, min(n, max(side, 4 * k))) - k) // s) for n, k, s in axes)


def _pieces(images, size):  # -> (n, n_channels, *size)
    pieces = []
    for image in images:
        image = image[None]
        for axis, length in enumerate(size, start=2):
            last, n_parts = image.shape[axis] - length, ceil(image.shape[axis] / length)
            starts = [i * last // max(n_parts - 1, 1) for i in range(n_parts)]  # to the end
            image = torch.cat([image.narrow(axis, start, length) for start in starts])
        pieces.append(image)
    return torch.cat(pieces)


def as_pictures(x):  # (n, n_channels, [height,] width) -> with a height
    """Return signals as pictures of height 1; pictures are returned unchanged."""
    return x if x.ndim == 4 else x[:, :, None]


def pieces_of(images, masks, kernel, stride):
    """Cut images into pieces of one size, which overlap if an image is no multiple of them.

    Parameters
    ----------
    images, masks : list of Tensor of shape (n_channels, *size), masks or None
        Images of any sizes, and masks, 1 for known pixels.
    kernel, stride : tuple of int
        Size and distance of atoms, which cover a piece exactly.

    Returns
    -------
    Tensor, Tensor or None
        Pieces of shape (n, n_channels, *size), and their masks.
    """
    size = _piece([image.shape[1:] for image in images], kernel, stride)
    return _pieces(images, size), None if masks is None else _pieces(masks, size)


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
