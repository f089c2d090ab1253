"""Descend by turns over codes and atoms, and leave local minima in rounds of split and remove.

An *epoch* solves for the codes of given atoms, and then improves the atoms for these codes. To
converge faster, the atoms are *extrapolated* along their last step before codes are solved, unless
the objective has risen. *Coded data* are the data with atoms and codes after the first half of an
epoch (`Epoch`, `DeviceEpoch` or `ConvEpoch`). To *settle* is to descend on a sample of the rows
that grows until each atom has enough uses. A *use* of an atom is a row with a nonzero code at it.

In a local minimum one atom mixes two atoms of the data, while spare atoms repeat combinations of
other atoms. A *round* leaves it. It splits the atoms whose users share the largest common direction
of residuals, removes the same number of atoms with the smallest costs, and adapts the atoms. From
1,024 atoms on it also adapts the larger dictionary, before atoms are removed. (For 2,048 atoms of
128 features rounds find all atoms like this, and .996 of them in 1.5 times the time if splits and
removals come at once. For fewer atoms both at once take .85 of the time, and find as many.) The
*cost* of an atom is the rise of the objective without the atom. A split pays while the energy of
the residuals along its direction exceeds the smallest cost of an atom that has not been set against
another split. (A split lowers the objective by half of that energy, and by more once other atoms
adapt. With half of the energy as the limit 0.966 of 500 planted atoms were found, with all of it
0.986.) Replacing atoms of a dictionary goes back to [1]_.

`descend`, `settle` and `play_rounds` are generators: they yield coded data after each epoch, and
return the result.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

import torch

from skpudle.search._epoch import MANY

# Descent *stalls*, and ends, when the objective has fallen by less than this share per epoch, on
# average over the last three epochs.
STALL = 5e-4

# A round splits at most 1 atom in 20, and 1 in 10 from 1,024 atoms on. For 1,024 atoms of 595
# features and 2,500 samples, 1 in 10 reaches an objective .1 to .3 % lower than 1 in 20, in less
# time.
SPLIT = {"few": 20, "many": 10}
# After a round that lowers the objective by less than this share the next rounds have half the
# number of splits. With 1e-4 a search of colour patches takes 1.4 times as long and reaches no
# lower objective. With a third instead of half the number, planted atoms are lost.
PROGRESS = 1e-3
# Most epochs of descent after a removal or a move of atoms, and at a new penalty.
ADAPT = 30
# Most epochs of descent on each sample before rounds.
SETTLES = 100

# Rounds work on a sample of the rows in which an atom has this mean number of uses. With 80, up to
# 3 of 100 planted atoms are lost. With all rows, colour patches take twice as long, for an
# objective lower by a share of 0.003.
USES = 120


# ------------------------------------------------------------------ steps


def has_stalled(curve, share=STALL):  # -> bool
    """Return whether the objective fell by less than ``share`` per epoch in the last three epochs.

    ``curve`` has the objective of each epoch so far. Descent never stalls before six epochs.
    """
    return len(curve) >= 6 and curve[-4] - min(curve[-3:]) <= 3 * share * curve[-1]


def solve_codes(problem, atoms, n_epochs, *, refit=False):  # -> Epoch
    """Solve for the codes of fixed atoms in ``n_epochs``, from zero codes; return coded data.

    ``n_epochs`` is at least 1. With ``refit`` the last epoch also fits least squares on the
    supports of the codes.
    """
    codes = problem.no_codes()
    for i in range(n_epochs):
        coded = problem.epoch(atoms, codes, refit=refit and i == n_epochs - 1)
        codes = coded.codes
    return coded


def refit_atoms(problem, atoms, codes, n_epochs=8, *, still=1e-6):
    """Free atoms of the lasso's bias: its codes are too small, and atoms make up for it.

    In each epoch the lasso chooses the supports, the codes become least squares on these supports,
    and the atoms minimise the reconstruction error for these codes.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms of a search.
    codes : Codes
        The lasso's codes for these atoms, to begin with.
    n_epochs : int, default=8
        Largest number of epochs.
    still : float, default=1e-6
        Epochs end when the root mean square step of the atoms is below this number.

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


def split(coded, n_splits, seed, *, earlier=0.0):  # -> (n,), (n, *shape); or None
    """Return the atoms to split, by number, and the common direction of each one's residuals.

    They are the atoms whose users share the largest energy of residuals along a direction of norm
    1. Splits end after ``n_splits``, or where the energy is no longer larger than the cost: the
    i-th largest energy is compared with the i-th smallest cost. ``earlier`` (p,) is added to the
    costs: the costs in earlier blocks of a stream. ``seed`` draws the first directions.
    """
    energy, direction = coded.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    n_worth = int(((coded.costs()[0] + earlier).sort().values < energy).cumprod(0).sum())
    chosen = chosen[: min(n_splits, max(coded.n_always_split, n_worth))]
    return (chosen, direction[chosen]) if len(chosen) else None


def remaining(coded, n_removed, *, kept=(), per_use=False, earlier=0.0):  # -> (p,) bool
    """Mark the atoms that stay after ``n_removed`` atoms with the smallest costs are removed.

    The atoms with the numbers ``kept`` stay, whatever their costs.

    With ``per_use`` costs are divided by the numbers of uses. The heirs of an atom are the three
    atoms that take over most of its codes. An atom stays if it is an heir of a removed atom, or if
    an heir of its own is removed. So fewer than ``n_removed`` (at least 1) may go. ``earlier`` (p,)
    is added to the costs: the costs in earlier blocks of a stream.
    """
    cost, heirs = coded.costs()
    cost, heirs = (cost + earlier) / (coded.uses.clamp_min(1) if per_use else 1.0), heirs.tolist()
    kept, removed = set(kept), set()
    for j in cost.argsort(stable=True).tolist():
        if j not in kept and removed.isdisjoint(heirs[j]):
            removed.add(j)
            kept.update(heirs[j])
        if len(removed) == n_removed:
            break
    remaining = torch.ones(len(cost), dtype=torch.bool)
    remaining[list(removed)] = False
    return remaining


def halves(coded, kept, chosen, direction):  # -> atoms (n_kept + n, *shape), Codes
    """Split the atoms ``chosen`` (n,), and drop the atoms that ``kept`` (p,) does not mark.

    An atom ``d`` splits into ``d + v / 2`` and ``d - v / 2``, where ``v`` is its ``direction``. The
    second halves follow the kept atoms, and have no codes yet.
    """
    atoms, half = coded.atoms.clone(), 0.5 * direction
    atoms[chosen] += half
    more = coded.atoms[chosen] - half
    return coded.problem.project(torch.cat([atoms[kept], more])), coded.restrict(kept)


def stride_of_uses(coded, stride, n_uses):  # -> int
    """Return the stride of a sample in which atoms have ``n_uses`` uses on average.

    The estimate comes from ``coded``, coded data of a sample with the stride ``stride``.
    """
    return max(1, int(stride * coded.n_entries / (n_uses * len(coded.atoms))))


# ------------------------------------------------------------------ generators of coded data


def descend(problem, atoms, codes, most, *, stall=STALL, earlier=None):
    """Yield coded data of epochs until the objective stalls; return the last.

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
        In a stream: atoms before this block of rows, and how strongly earlier rows hold them there.

    Yields
    ------
    Epoch
        Coded data after each epoch. The generator returns the last.
    """
    previous, curve = atoms, []
    while True:
        # New atoms enter the codes of one half of the rows by turns, see `Problem.epoch`. In the
        # first two epochs they enter the codes of all rows.
        turn = len(curve) % 2 if len(curve) > 1 else None
        # In 80 epochs on planted data the factor 0.95 found 0.93 of 500 atoms, 0.9 found 0.88, and
        # 0.98 found 0.90.
        ahead = (atoms - previous).mul_(0.95).add_(atoms)
        coded = problem.epoch(problem.project(ahead), codes, turn=turn)
        curve.append(coded.objective)
        yield coded
        if len(curve) >= most or has_stalled(curve, stall):
            return coded
        if problem.baseline is not None:
            problem = problem.around(coded.mean_residual())
        previous, atoms, codes = atoms, coded.improved_atoms(earlier), coded.codes
        if len(curve) > 1 and curve[-1] > curve[-2]:
            previous = atoms


def settle(problem, atoms, stride=None, most=SETTLES, *, alpha=None, codes=None):
    """Descend on a sample of the rows that grows until atoms have 120 uses on average.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms.
    stride : int, default=None
        The first sample has one in ``stride`` rows. None: 8 rows for each atom, or for each feature
        if there are more features than atoms.
    most : int, default=100
        Largest number of epochs on each sample.
    alpha : float, default=None
        The penalty; None is the problem's.
    codes : Codes, default=None
        Codes to begin with. They have no effect unless they have as many rows as the first sample.

    Yields
    ------
    Epoch
        Coded data after each epoch. The generator returns the last, with the stride of its sample.
    """
    if stride is None:
        n = problem.x.numel() // atoms[0].numel()  # rows, or disjoint patches of images
        (n,) = problem.total(torch.tensor([n], dtype=torch.float64))
        stride = max(1, int(n) // (8 * max(len(atoms), problem.x[0].numel())))
    while True:
        part = problem.thinned(stride, whole=False, alpha=alpha)
        if codes is None or len(codes) != len(part.x):
            codes = part.first_codes(atoms)
        coded = yield from descend(part, atoms, codes, most)
        if stride == 1 or coded.n_entries >= USES * len(atoms):
            return coded, stride
        stride = max(1, min(stride // 2, stride_of_uses(coded, stride, USES)))
        atoms, codes = coded.atoms, None


def play_rounds(best):  # coded data -> generator of coded data
    """Leave the local minimum of the coded data ``best`` in rounds; yield coded data of epochs.

    The generator returns the coded data of the least objective. A round of images moves atoms to
    better windows, if any atom moves. Otherwise a round splits atoms and removes the same
    number. After a round of splits with a gain below `PROGRESS` the next round splits half the
    number.
    """
    p, part = len(best.atoms), best.problem
    n_splits = max(1, p // SPLIT["few" if p < MANY else "many"])
    # Rounds end when their number of splits falls below an eighth of the first number. With 1,024
    # atoms further rounds would take a tenth more time and lower the objective by less than .01 %.
    least, moves, n_rounds = max(1, n_splits // 8), True, 0
    while True:
        begun = best.move_atoms() if moves else None
        moves = begun is not None
        if not moves:
            # At most 20 rounds split atoms. Searches of digits, of patches, and of planted atoms
            # with enough samples end after 1 to 8 rounds. For 1,000 atoms in 2,500 samples the
            # objective after 18 rounds is 0.9 % lower than after 8, in 1.6 times the time.
            more = n_splits >= least and n_rounds < 20
            found = split(best, n_splits, n_rounds) if more else None
            if found is None:
                return best
            n_rounds += 1
            if p < MANY:  # split and remove at once
                kept = remaining(best, len(found[0]), kept=found[0].tolist())
                n = p - int(kept.sum())
                begun = halves(best, kept, *(each[:n] for each in found))
            else:
                larger = halves(best, torch.ones(p, dtype=torch.bool), *found)
                coded = yield from descend(part, *larger, 8)  # at most 8 epochs with split atoms
                kept = remaining(coded, len(found[0]))
                begun = coded.atoms[kept], coded.restrict(kept)
        coded = yield from descend(part, *begun, ADAPT)
        gains = coded.objective <= (1 - PROGRESS) * best.objective
        if not (gains or moves):
            n_splits //= 2
        moves = gains
        best = min(best, coded, key=lambda one: one.objective)


def exhaust(steps):  # generator -> its return value
    """Run the generator ``steps`` to its end, and return the value of its return statement."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
