"""Changes of a dictionary that descent does not make: atoms that split, and those that go.

An epoch tells what they depend on: `common_directions` and `costs`.
"""

import torch

__all__ = ["remaining", "split"]

# The halves of an atom are d + h v and d - h v, with v of norm 1.
_HALF = 0.5
# Atoms that take over most from a removed one stay.
_HEIRS = 3


def split(epoch, n_splits, seed):  # -> (p + n, *shape)
    """Return the atoms with two halves for each that is worth splitting, or None."""
    energy, direction = epoch.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    cost, _ = epoch.costs()
    n_worth = int((cost.sort().values < energy).cumprod(0).sum())
    n_splits = min(n_splits, max(epoch.n_always_split, n_worth))
    if n_splits == 0:
        return None
    chosen = chosen[:n_splits]
    half, atoms = _HALF * direction[chosen], epoch.atoms.clone()
    atoms[chosen] += half
    return epoch.problem.project(torch.cat([atoms, epoch.atoms[chosen] - half]))


def remaining(epoch, n_removed, *, per_use=False):  # -> (p,) bool, False for those to remove
    """Choose the atoms without which the objective rises least, in all or for each use."""
    cost, taken_over = epoch.costs()
    cost = cost / epoch.uses.clamp_min(1) if per_use else cost
    heirs = taken_over.topk(min(_HEIRS, len(cost))).indices.tolist()
    kept, removed = set(), set()
    for j in cost.argsort(stable=True).tolist():
        if j not in kept and removed.isdisjoint(heirs[j]):
            removed.add(j)
            kept.update(heirs[j])
        if len(removed) == n_removed:
            break
    remaining = torch.ones(len(cost), dtype=torch.bool)
    remaining[list(removed)] = False
    return remaining
