"""Descend: the steps that a search, the choice of its size and a stream of blocks share.

Codes minimise the objective for given atoms, and atoms for given codes. Codes come from atoms that
are *extrapolated* along their last step, until the objective rises. Atoms that miss a direction of
their users' residuals *split*, and the atoms that cost least are *removed*.
"""

import torch

# Factor of extrapolation, D + 0.95 (D - D_before). In 80 epochs it found 0.93 of 500 atoms of
# random data; 0.9 and 0.98 found 0.88 and 0.90.
_EXTRAPOLATION = 0.95

# Descent ends when the objective falls by less than this share per epoch, three epochs in a row.
STALL = 5e-4
_MIN_EPOCHS = 6

# An atom splits into d + h v and d - h v, with v of norm 1.
_HALF = 0.5
# A round splits at most 1 atom in 20, and 1 in 10 from 1,024 atoms on. For 1,024 atoms in 595
# dimensions and 2,500 samples, 1 in 10 ends .1 to .3 % lower than 1 in 20, in less time.
SPLIT = {"few": 20, "many": 10}
# Least gain of a round, as a share of the objective: after a smaller gain the next round tries half
# the number of splits. With 1e-4 colour patches take 1.4 times as long and end no lower; a third
# instead of half the splits loses planted atoms.
PROGRESS = 1e-3

# Most epochs in which atoms lose the lasso's bias, and the mean square step that ends them. Each
# step is about a fifth of the step before.
_MAX_REFITS, _STILL = 8, 1e-6


def extrapolate(problem, atoms, previous):
    """Return the atoms extrapolated by 0.95 times their last step."""
    ahead = atoms - previous
    return problem.project(ahead.mul_(_EXTRAPOLATION).add_(atoms))


def has_stalled(curve, share=STALL):
    """Return whether the objective falls by less than a share per epoch, after at least six."""
    return len(curve) >= _MIN_EPOCHS and curve[-4] - min(curve[-3:]) <= 3 * share * curve[-1]


def solve_codes(problem, atoms, n_epochs, *, refit=False):
    """Solve for the codes of given atoms, from zero; return the last of ``n_epochs``.

    With ``refit`` the last epoch refits the codes.
    """
    codes = problem.no_codes()
    for i in range(n_epochs):
        epoch = problem.epoch(atoms, codes, refit=refit and i == n_epochs - 1)
        codes = epoch.codes
    return epoch


def descend(epoch, n_epochs, earlier=None):
    """Return the epoch after ``n_epochs`` more, or fewer if the objective stalls.

    Atoms of the last epoch are not extrapolated. ``earlier`` has sums over other samples, to which
    the atoms adapt as well; see `_stream.Memory`.
    """
    problem, atoms, curve = epoch.problem, epoch.atoms, [epoch.objective]
    for number in range(1, n_epochs + 1):
        if has_stalled(curve):
            break
        rises = len(curve) > 1 and curve[-1] > curve[-2]
        previous, atoms = atoms, epoch.improved_atoms(earlier)
        previous = atoms if rises or number == n_epochs else previous
        epoch = problem.epoch(extrapolate(problem, atoms, previous), epoch.codes)
        curve.append(epoch.objective)
    return epoch


def refit_atoms(problem, atoms, codes, n_epochs=_MAX_REFITS, *, still=_STILL):
    """Free atoms of the lasso's bias.

    The lasso chooses the supports, least squares the codes on them, and the atoms minimise the
    reconstruction error.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms of a search.
    codes : Codes
        The lasso's codes for them.
    n_epochs : int, default=8
        Largest number of epochs.
    still : float, default=1e-6
        Epochs end when the root mean square step of atoms is less.

    Returns
    -------
    Tensor of shape (n_components, ...)
        Unit atoms.
    """
    for _ in range(n_epochs):
        epoch = problem.epoch(atoms, codes, refit=True)
        before, atoms, codes = atoms, epoch.improved_atoms(), epoch.codes
        if float((atoms - before).square().flatten(1).sum(1).mean()) < still**2:
            break
    return atoms


def split(epoch, n_splits, seed, *, costs=None, keep=False):  # -> (p + n, *shape), (n,) that split
    """Split atoms whose common direction of residuals has more energy than another atom costs.

    Return None if no atom has that energy. ``costs`` of atoms are by default the epoch's. With
    ``keep`` the atoms stay as they are, and their directions are added as new atoms.
    """
    energy, direction = epoch.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    costs = epoch.costs()[0] if costs is None else costs
    n_worth = int((costs.sort().values < energy).cumprod(0).sum())
    n_splits = min(n_splits, max(epoch.n_always_split, n_worth))
    if n_splits == 0:
        return None
    chosen = chosen[:n_splits]
    direction = direction[chosen]  # frees the array of all atoms
    half = _HALF * direction
    atoms = torch.cat([epoch.atoms, direction if keep else epoch.atoms[chosen] - half])
    if not keep:
        atoms[chosen] += half
    return epoch.problem.project(atoms), chosen


def remaining(epoch, n_removed, *, per_use=False):  # -> (p,) bool, False for those to remove
    """Mark the atoms to keep: removing the unmarked atoms costs least, in total or per use."""
    cost, heirs = epoch.costs()
    cost, heirs = cost / epoch.uses.clamp_min(1) if per_use else cost, heirs.tolist()
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
