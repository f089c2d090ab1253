"""Codes that are too dense for l1: 3,200 features in 100 dimensions, some 20 of them active.

The setting of "Sanity checks for sparse autoencoders" (arXiv:2602.14111): features are random
directions, each active with a constant probability (or unequal ones, falling with the root of the
rank), with log-normal strengths; there is no noise. A feature is found if an atom has a cosine of
.8 with it. Random atoms find none.

Method: iterative thresholding and K residual means (ITKrM, Schnass, arXiv:1503.07027). Each
row chooses the 20 atoms of the largest products, and is projected on them; each atom moves to the
mean of its rows' residuals, with its own part put back. Atoms begin as rows. Every row is new: rows
are seen once, and an update has 65,536 of them.

Usage: python benchmarks/bench_chance.py [--updates 1 5 20 34 56 90 114] [--unequal]
"""

import numpy as np
import torch
from common import Report, parse, timed
from scipy import sparse

from skpudle.metrics._dictionaries import chance_coherence

N_FEATURES, N_DIMENSIONS, N_ACTIVE = 3200, 100, 20
BATCH, UPDATE = 4096, 65_536
FOUND, SPREAD, RIDGE = 0.8, 0.25, 1e-3


class World:
    """Features, and rows that are sums of some of them, without their mean."""

    def __init__(self, *, unequal):
        self._rng = np.random.default_rng(0)
        features = self._rng.standard_normal((N_FEATURES, N_DIMENSIONS)).astype(np.float32)
        self.features = features / np.linalg.norm(features, axis=1, keepdims=True)
        rates = np.arange(1, N_FEATURES + 1) ** -0.5 if unequal else np.ones(N_FEATURES)
        self.rates = rates * (N_ACTIVE / rates.sum())
        mean = (self.rates * np.exp(SPREAD**2 / 2)) @ self.features
        self.mean = torch.from_numpy(mean).float()

    def draw(self, n):  # -> (n, N_DIMENSIONS)
        counts = self._rng.binomial(n, self.rates)
        features = np.repeat(np.arange(N_FEATURES), counts)
        rows = self._rng.integers(0, n, len(features))
        strengths = np.exp(SPREAD * self._rng.standard_normal(len(features))).astype(np.float32)
        codes = sparse.csr_matrix((strengths, (rows, features)), shape=(n, N_FEATURES))
        return torch.from_numpy(np.asarray(codes @ self.features, dtype=np.float32)) - self.mean


def sums(atoms, x):  # (n_components, m), (n, m) -> sums of residuals, sums of products
    """Threshold and project a batch; sum residuals and products, weighted by products, by atom."""
    products, chosen = (x @ atoms.T).topk(N_ACTIVE, dim=1)
    own = atoms[chosen]
    gram = own @ own.mT + RIDGE * torch.eye(N_ACTIVE)
    codes = torch.linalg.solve(gram, products[:, :, None])[:, :, 0]
    residual = x - torch.einsum("nk,nkm->nm", codes, own)
    weights = products.clamp_min(0)
    rows = torch.arange(len(x)).repeat_interleave(N_ACTIVE)
    places = torch.stack([chosen.reshape(-1), rows])
    shape = len(atoms), len(x)
    moved = torch.sparse.mm(torch.sparse_coo_tensor(places, weights.reshape(-1), shape), residual)
    uses = torch.zeros(len(atoms))
    return moved, uses.index_add_(0, chosen.reshape(-1), (weights * products).reshape(-1))


def run(updates, *, unequal):
    world = World(unequal=unequal)
    atoms, seconds = world.draw(N_FEATURES), 0.0
    atoms /= atoms.norm(dim=1, keepdim=True)
    for update in range(1, max(updates) + 1):
        moved, uses = torch.zeros_like(atoms), torch.zeros(len(atoms))
        for _ in range(UPDATE // BATCH):
            x = world.draw(BATCH)
            of_batch, taken = timed(sums, atoms, x)
            moved, uses = moved + of_batch[0], uses + of_batch[1]
            seconds += taken
        moved = moved + uses[:, None] * atoms
        norms = moved.norm(dim=1, keepdim=True)
        atoms = torch.where(norms > 1e-6, moved / norms, atoms)
        if update in updates:
            cosines = (torch.from_numpy(world.features) @ atoms.T).amax(1)
            yield {
                "frequencies": "unequal" if unequal else "constant",
                "rows, each seen once": update * UPDATE,
                "found": round(float((cosines > FOUND).float().mean()), 3),
                "median cosine": round(float(cosines.median()), 3),
                "CPU seconds": round(seconds),
            }
    by_chance = chance_coherence(atoms.numpy()[:500], world.features[:500])
    print("found by chance, of 500:", float((by_chance > FOUND).mean()))


def main():
    given = parse(__doc__, "chance.json", updates=[1, 5, 20, 34, 56, 90, 114], unequal=False)
    Report(given.out, "frequencies", "rows, each seen once").extend(
        run(given.updates, unequal=given.unequal)
    )


if __name__ == "__main__":
    main()
