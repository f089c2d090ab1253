"""Initial atoms from samples, random directions or singular vectors; all methods by name."""

import torch

from skpudle._compilation import threads_for
from skpudle._initialization._pairwise import fill_up, pairwise_atoms
from skpudle._initialization._vertices import vertices

__all__ = ["INITIALIZATIONS", "initial_atoms"]


def _random(x, n_components, generator):
    directions = torch.randn(
        n_components, x.shape[1], generator=generator, device="cpu", dtype=torch.float64
    )
    return directions.to(x)


def _data(x, n_components, generator):
    """Take samples in different directions: atoms that start in one direction never part."""
    same = 1 - 16 * torch.finfo(x.dtype).eps
    return fill_up(x[:0], x, n_components, generator, max_coherence=same)


def _svd(x, n_components, generator):
    """Take the leading right singular vectors, then data."""
    if len(x) < x.shape[1]:  # costs grow with the cube of the smaller side
        _, values, leading = torch.linalg.svd(x, full_matrices=False)
        values = values.square()
    else:
        values, vectors = torch.linalg.eigh(x.mT @ x)
        values, leading = values.flip(0), vectors.mT.flip(0)
    rank = int((values > values[0] * x.shape[1] * torch.finfo(x.dtype).eps).sum())
    leading = leading[: min(rank, n_components)]
    return torch.cat([leading, _data(x, n_components - len(leading), generator)])


def _pairwise(x, n_components, generator):
    return pairwise_atoms(x, n_components, generator=generator)


def _vertices(x, n_components, generator):
    """Take the purest samples of mixtures, then data."""
    found = vertices(x, min(n_components, *x.shape))
    return torch.cat([found, _data(x, n_components - len(found), generator)])


INITIALIZATIONS = {
    "data": _data,
    "random": _random,
    "svd": _svd,
    "pairwise": _pairwise,
    "vertices": _vertices,
}


def initial_atoms(x, n_components, method, generator):
    """Return an initial dictionary.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms.
    method : {"data", "random", "svd", "pairwise", "vertices"}
        Samples, random directions, the leading right singular vectors (completed by samples), the
        spectral initialisation of Arora et al. (see `skpudle._initialization._pairwise`), or the
        purest samples of mixtures, in their leading subspace (completed by samples).
    generator : torch.Generator
        Random numbers, on the CPU, so that all devices start from the same atoms.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm.
    """
    with threads_for(x[:n_components], x):
        return INITIALIZATIONS[method](x, n_components, generator)
