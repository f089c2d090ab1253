"""Initial atoms from samples, random directions or singular vectors; all methods by name."""

import torch

from skpudle._compilation import threads_for
from skpudle._initialization._vertices import vertices
from skpudle._operators import project_atoms

__all__ = ["INITIALIZATIONS", "initial_atoms"]


def _random(x, n_components, generator, weight=None):
    directions = torch.randn(
        n_components, x.shape[1], generator=generator, device="cpu", dtype=torch.float64
    )
    return directions.to(x)


def _shuffle(n, generator, weight=None):  # -> (n,)
    """Draw an order; a row is drawn by its weight among the rows that are left [1]_.

    .. [1] P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir", Information
       Processing Letters 97, 2006.
    """
    if weight is None:
        return torch.randperm(n, generator=generator, device="cpu")
    waiting = torch.empty(n, dtype=torch.float64).exponential_(generator=generator)
    return (waiting / weight.double().cpu()).argsort()


def _data(x, n_components, generator, weight=None):  # (n, m) -> (n_components, m) of unit norm
    """Take samples in different directions, then random ones: atoms in one direction never part."""
    same = 1 - 16 * torch.finfo(x.dtype).eps
    rows = torch.linalg.vector_norm(x, dim=1).nonzero().squeeze(1)
    weight = weight if weight is None else weight[rows]
    rows = rows[_shuffle(len(rows), generator, weight).to(x.device)]
    atoms = x[:0]
    for block in rows.split(max(n_components, 1024)):
        if len(atoms) < n_components:
            new = project_atoms(x[block])
            among = (new @ new.mT).abs().triu(diagonal=1)
            known = (new @ atoms.mT).abs()
            new = new[~((among > same).any(0) | (known > same).any(1))]
            atoms = torch.cat([atoms, new])[:n_components]
    missing = n_components - len(atoms)
    return torch.cat([atoms, project_atoms(_random(x, missing, generator))])


def _svd(x, n_components, generator, weight=None):
    """Take the leading right singular vectors, then data."""
    rows, x = x, x if weight is None else x * weight.to(x)[:, None].sqrt()
    if len(x) < x.shape[1]:  # costs grow with the cube of the smaller side
        _, values, leading = torch.linalg.svd(x, full_matrices=False)
        values = values.square()
    else:
        values, vectors = torch.linalg.eigh(x.mT @ x)
        values, leading = values.flip(0), vectors.mT.flip(0)
    rank = int((values > values[0] * x.shape[1] * torch.finfo(x.dtype).eps).sum())
    leading = leading[: min(rank, n_components)]
    return torch.cat([leading, _data(rows, n_components - len(leading), generator, weight)])


def _vertices(x, n_components, generator, weight=None):
    """Take the purest samples of mixtures, then data."""
    found = vertices(x, min(n_components, *x.shape), weight)
    return torch.cat([found, _data(x, n_components - len(found), generator, weight)])


INITIALIZATIONS = {
    "data": _data,
    "random": _random,
    "svd": _svd,
    "vertices": _vertices,
}


def initial_atoms(x, n_components, method, generator, *, weight=None):
    """Return an initial dictionary.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms.
    method : {"data", "random", "svd", "vertices"}
        Samples, random directions, the leading right singular vectors (completed by samples), or
        the purest samples of mixtures, in their leading subspace (completed by samples).
    generator : torch.Generator
        Random numbers, on the CPU, so that all devices start from the same atoms.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts: samples are drawn by it, and singular vectors follow it. The
        purest samples do not depend on it.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm.
    """
    with threads_for(x[:n_components], x):
        return INITIALIZATIONS[method](x, n_components, generator, weight)
