"""Rows with a few planted atoms each, and what a search has found of them."""

import torch

from skpudle._operators._atoms import project_atoms


def planted(n=600, m=16, p=20, n_nonzero=3, *, noise=0.02, positive=False, seed=0):
    """Return rows (n, m) and their atoms (p, m)."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(generator=generator, dtype=torch.float64)
    truth = torch.randn(p, m, **options)
    truth = project_atoms(truth.abs() if positive else truth)
    values = torch.rand(n, n_nonzero, **options) + 0.5
    if not positive:
        values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    supports = torch.rand(n, p, generator=generator).topk(n_nonzero).indices
    codes = torch.zeros(n, p, dtype=torch.float64).scatter_(1, supports, values)
    return codes @ truth + noise * torch.randn(n, m, **options), truth


def gaps_in(x, share=0.2):
    return (
        torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= share
    ).double()


def share_found(atoms, truth, cosine=0.95):
    cosines = torch.as_tensor(atoms).double() @ truth.mT
    return float((cosines.abs().amax(0) > cosine).double().mean())
