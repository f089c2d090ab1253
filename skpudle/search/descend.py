"""Descend: codes for atoms, atoms for codes; and rounds that leave local minima.

Codes minimise the objective for given atoms, and atoms for given codes. Codes come from atoms that
are *extrapolated* along their last step, until the objective rises.

In the remaining local minima one atom mixes two atoms of the data, while spare atoms repeat
combinations of other atoms. A round *splits* the atoms whose users share the largest common
direction of residuals, adapts the larger dictionary, *removes* the atoms that raise the objective
least, and adapts again. A split pays while another atom costs less than the energy along its
direction. (A split takes half of that energy from the objective, and more once its neighbours
adapt: with half as the limit 0.966 of 500 atoms were found, with all of it 0.986.) Replacing atoms
of a dictionary goes back to [1]_.

`descend`, `settle` and `play_rounds` are generators of coded data, one for each epoch; they return
the result.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

import torch

from skpudle.search._epoch import MANY

# Descent ends when the objective falls by less than this share per epoch, three epochs in a row.
STALL = 5e-4

# A round splits at most 1 atom in 20, and 1 in 10 from 1,024 atoms on. For 1,024 atoms in 595
# dimensions and 2,500 samples, 1 in 10 ends .1 to .3 % lower than 1 in 20, in less time.
SPLIT = {"few": 20, "many": 10}
# Least gain of a round, as a share of the objective: after a smaller gain the next round tries half
# the number of splits. With 1e-4 colour patches take 1.4 times as long and end no lower; a third
# instead of half the splits loses planted atoms.
PROGRESS = 1e-3
# Most epochs with the number of atoms that is wanted.
ADAPT = 30
# Most epochs on a sample before rounds.
SETTLES = 100

# Mean uses of an atom in the subsample of rounds. With 80, up to 3 of 100 planted atoms are lost;
# with all samples, colour patches take twice as long for 0.003 of the objective.
USES = 120


# ------------------------------------------------------------------ steps


def extrapolate(problem, atoms, previous):
    """Return the atoms extrapolated by 0.95 times their last step."""
    ahead = atoms - previous
    # In 80 epochs this extrapolation found 0.93 of 500 atoms of random data; 0.9 and 0.98 found
    # 0.88 and 0.90.
    return problem.project(ahead.mul_(0.95).add_(atoms))


def has_stalled(curve, share=STALL):
    """Return whether the objective falls by less than a share per epoch, after at least six."""
    return len(curve) >= 6 and curve[-4] - min(curve[-3:]) <= 3 * share * curve[-1]


def solve_codes(problem, atoms, n_epochs, *, refit=False):
    """Solve for the codes of given atoms, from zero; return the last of ``n_epochs``.

    With ``refit`` the last epoch refits the codes.
    """
    codes = problem.no_codes()
    for i in range(n_epochs):
        coded = problem.epoch(atoms, codes, refit=refit and i == n_epochs - 1)
        codes = coded.codes
    return coded


def refit_atoms(problem, atoms, codes, n_epochs=8, *, still=1e-6):
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
        coded = problem.epoch(atoms, codes, refit=True)
        before, atoms, codes = atoms, coded.improved_atoms(), coded.codes
        if float((atoms - before).square().flatten(1).sum(1).mean()) < still**2:
            break
    return atoms


def split(coded, n_splits, seed, *, costs=None, keep=False):  # -> (p + n, *shape), (n,) that split
    """Split atoms whose common direction of residuals has more energy than another atom costs.

    Return None if no atom has that energy. ``costs`` of atoms are by default those of the data.
    With ``keep`` the atoms stay as they are, and their directions are added as new atoms.
    """
    energy, direction = coded.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    costs = coded.costs()[0] if costs is None else costs
    n_worth = int((costs.sort().values < energy).cumprod(0).sum())
    n_splits = min(n_splits, max(coded.n_always_split, n_worth))
    if n_splits == 0:
        return None
    chosen = chosen[:n_splits]
    direction = direction[chosen]  # frees the array of all atoms
    # an atom splits into d + h v and d - h v, with v of norm 1
    half = 0.5 * direction
    atoms = torch.cat([coded.atoms, direction if keep else coded.atoms[chosen] - half])
    if not keep:
        atoms[chosen] += half
    return coded.problem.project(atoms), chosen


def remaining(
    coded, n_removed, *, per_use=False, earlier=0.0
):  # -> (p,) bool, False for those to remove
    """Mark the atoms to keep: removing the unmarked atoms costs least, in total or per use.

    ``earlier`` are costs in other data.
    """
    cost, heirs = coded.costs()
    cost = cost + earlier
    cost, heirs = cost / coded.uses.clamp_min(1) if per_use else cost, heirs.tolist()
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


def first_stride(problem, n_atoms):
    """Return the stride of a sample with enough rows for atoms to settle; see `thinned`."""
    (n,) = problem.total(torch.tensor([problem.n_samples], dtype=torch.float64))
    # samples per atom (or per feature, if features are more) that a search begins with
    return max(1, int(n) // (8 * max(n_atoms, problem.x[0].numel())))


def stride_of_uses(coded, stride, n_uses):
    """Return the stride at which samples use each atom ``n_uses`` times on average."""
    return max(1, int(stride * coded.n_entries / (n_uses * len(coded.atoms))))


# ------------------------------------------------------------------ generators of coded data


def descend(problem, atoms, codes, most, *, stall=STALL, earlier=None):
    """Yield coded data: codes for atoms, then atoms for codes; return the last.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms.
    codes : Codes
        Codes to begin with.
    most : int
        Largest number of epochs.
    stall : float, default=5e-4
        Descent ends when the objective falls by less than this share per epoch.
    earlier : Held, default=None
        What other samples know of the atoms, which holds them in place.
    """
    previous, curve = atoms, []
    while True:
        turn = len(curve) % 2 if len(curve) > 1 else None  # descent begins with all rows
        coded = problem.epoch(extrapolate(problem, atoms, previous), codes, turn=turn)
        curve.append(coded.objective)
        yield coded
        if len(curve) >= most or has_stalled(curve, stall):
            return coded
        if problem.baseline is not None:
            problem = problem.around(coded.mean_residual())
        previous, atoms, codes = atoms, coded.improved_atoms(earlier), coded.codes
        if len(curve) > 1 and curve[-1] > curve[-2]:
            previous = atoms


def settle(problem, atoms, stride, most=SETTLES, *, alpha=None, codes=None):
    """Descend on a sample that grows until each atom has enough uses.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms.
    stride : int
        One in ``stride`` samples begins.
    most : int, default=100
        Largest number of epochs on each sample.
    alpha : float, default=None
        The penalty; None is the problem's.
    codes : Codes, default=None
        Codes to begin with, if they are of this sample.

    Yields
    ------
    Epoch
        Coded data. The last are returned, with their stride.
    """
    while True:
        part = problem.thinned(stride, whole=False, alpha=alpha)
        if codes is None or len(codes) != len(part.x):
            codes = part.first_codes(atoms)
        coded = yield from descend(part, atoms, codes, most)
        if stride == 1 or coded.n_entries >= USES * len(atoms):
            return coded, stride
        stride = max(1, min(stride // 2, stride_of_uses(coded, stride, USES)))
        atoms, codes = coded.atoms, None


def play_rounds(best):
    """Play rounds from coded data, yield coded data, and return the best.

    A round of images moves shifted atoms first. Other rounds split atoms and remove the same
    number. After a round with little gain the next one splits half the number of atoms.
    """
    p, part = len(best.atoms), best.problem
    n_splits = max(1, p // SPLIT["few" if p < MANY else "many"])
    # With 1,024 atoms rounds of fewer splits take a tenth of the time and lower the objective by
    # less than .01 %.
    least, moves, n_rounds = max(1, n_splits // 8), True, 0
    while True:
        begun = best.move_atoms() if moves else None
        moves = begun is not None
        if not moves:
            # Digits, patches and planted atoms with enough samples end after 1 to 8 rounds. For
            # 1,000 concepts in 2,500 samples 18 rounds end 0.9 % lower than 8, in 1.6 times the
            # time.
            more = n_splits >= least and n_rounds < 20
            larger = split(best, n_splits, n_rounds) if more else None
            if larger is None:
                return best
            n_rounds += 1
            # at most 8 epochs with split atoms
            coded = yield from descend(part, larger[0], best.codes, 8)
            kept = remaining(coded, len(coded.atoms) - p)
            begun = coded.atoms[kept], coded.restrict(kept)
        coded = yield from descend(part, *begun, ADAPT)
        if coded.objective <= (1 - PROGRESS) * best.objective:
            moves = True
        elif moves:
            moves = False
        else:
            n_splits //= 2
        best = min(best, coded, key=lambda one: one.objective)


def exhaust(steps):
    """Run a generator to its end, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
