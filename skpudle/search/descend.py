"""The steps of a search: alternate between codes and atoms, and leave local minima.

An *epoch* solves for the codes of given atoms, and then improves the atoms for these codes. To
converge faster, the atoms are *extrapolated* along their last step before codes are solved, unless
the objective has risen. *Coded data* are the result of the first half of an epoch, the data with
atoms and codes: an `Epoch`, a `DeviceEpoch` or a `ConvEpoch`. A *use* of an atom is a row with a
nonzero code at the atom. To *settle* is to descend on a sample of the rows that grows until atoms
have enough uses.

In a local minimum one atom mixes two atoms of the data, while spare atoms repeat combinations of
other atoms. A *round* of split and remove leaves the local minimum. The *cost* of an atom is the
rise of the objective without the atom. A round splits the atoms whose residuals have the most
energy (sum of squares) along one direction, removes the same number of atoms, those with the
smallest costs, and adapts the atoms. From 1,024 atoms on it also adapts the larger dictionary
before atoms are removed. (For 2,048 atoms of 128 features rounds then find all atoms; if splits and
removals come at once, they find 0.996 of the atoms in 1.5 times the time. For fewer than 1,024
atoms both at once take 15 % less time, and find the same number of atoms.)

Splits are worth their costs as long as the i-th largest energy of residuals exceeds the i-th
smallest cost of an atom. (A split lowers the objective by half of the energy, and by more once
other atoms adapt. With half of the energy as the limit 0.966 of 500 planted atoms were found, with
all of it 0.986.) Replacing atoms of a dictionary goes back to [1]_.

`descend`, `settle` and `play_rounds` are generators: they yield coded data after each epoch, and
return the result.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

import torch

from skpudle.search._epoch import MANY

# Descent *stalls*, and ends, when the objective has fallen by less than this fraction of itself per
# epoch, on average over the last three epochs. With 2e-4 instead, searches take 4 to 30 % more time
# for objectives that are at most 0.2 % lower (benchmarks/constants.py stall).
STALL = 5e-4

# A round splits at most 1 atom in 20 ("few" atoms), and 1 in 10 from 1,024 atoms on ("many"). With
# 1 in 5 for few atoms, searches take up to 40 % more time and do not find all of 200 planted atoms
# (benchmarks/constants.py splits). For 1,024 atoms of 595 features and 2,500 rows, rounds that
# split 1 in 10 end with an objective 0.1 to 0.3 % lower than rounds that split 1 in 20, and take
# less time.
SPLIT = {"few": 20, "many": 10}
# After a round that lowers the objective by less than this fraction of itself the next rounds split
# half the number of atoms. With 1e-4 instead of 1e-3 a search for atoms of colour patches takes 27
# % more time, for an objective that is 0.03 % lower (benchmarks/constants.py progress). If the next
# rounds split a third of the number instead of half, searches do not find all planted atoms.
PROGRESS = 1e-3
# Largest number of epochs in which atoms adapt: after a removal or a move of atoms, and at each new
# penalty of a search.
ADAPT = 30
# Largest number of epochs of descent on each sample of `settle`.
SETTLES = 100

# To save time rounds work on a sample of the rows, so large that atoms have this number of uses on
# average. With all rows a search for atoms of 20,000 colour patches takes 2.9 times as long, and
# its objective is 0.5 % lower (benchmarks/constants.py uses).
USES = 120


# ------------------------------------------------------------------ steps


def has_stalled(curve):  # -> bool
    """Return whether descent has converged, by the fall of the objective in the last three epochs.

    ``curve`` lists the objective of each epoch. The answer is True if the objective fell by less
    than the fraction `STALL` of itself per epoch, and False before four epochs.
    """
    return len(curve) >= 4 and curve[-4] - min(curve[-3:]) <= 3 * STALL * curve[-1]


def solve_codes(problem, atoms, n_epochs, *, refit=False):  # -> Epoch
    """Solve for the codes of fixed atoms, starting from zeros, for example to judge the atoms.

    ``atoms`` are (n_components, ...), and ``n_epochs``, at least 1, is the number of epochs: more
    make codes more exact. With ``refit`` the last epoch also computes least squares on the supports
    of the codes. Return the coded data, an `Epoch`, `DeviceEpoch` or `ConvEpoch`.
    """
    codes = problem.no_codes()
    for i in range(n_epochs):
        coded = problem.epoch(atoms, codes, refit=refit and i == n_epochs - 1)
        codes = coded.codes
    return coded


def refit_atoms(
    problem,
    atoms,
    codes,
    n_epochs=8,
    *,
    still=1e-6,
):
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
        Unit atoms without the bias.
    """
    for _ in range(n_epochs):
        coded = problem.epoch(atoms, codes, refit=True)
        step = coded.improved_atoms() - atoms
        codes = coded.codes
        # A step leaves about 0.13 of the distance to the end (planted atoms at 20 dB and without
        # noise), so longer steps by 1 / (1 - 0.13) get there in fewer epochs: three long steps
        # leave less of the bias than four plain ones.
        atoms = problem.project(atoms + 1.15 * step)
        if float(step.square().flatten(1).sum(1).mean()) < still**2:
            break
    return atoms


def split(coded, n_splits, seed, *, earlier=0.0):  # -> (n,), (n, *atom); or None
    """Choose the atoms that a round splits, and the direction in which each of them splits.

    The direction, of norm 1, is the one along which the residuals of the rows that use the atom
    have the most energy (sum of squares). The cost of an atom is the rise of the objective without
    the atom. As many atoms are removed as split, so atoms are chosen, at most ``n_splits``, while
    the i-th largest energy exceeds the i-th smallest cost. In images at least one is chosen.

    Parameters
    ----------
    coded : Epoch, DeviceEpoch or ConvEpoch
        Data with codes, for ``p`` atoms.
    n_splits : int
        Largest number of atoms to choose.
    seed : int
        Seed of the random directions from which power iterations start.
    earlier : Tensor of shape (p,), default=0.0
        In a stream: the costs of atoms for the rows of earlier blocks, which are added to the costs
        for this block.

    Returns
    -------
    chosen : Tensor of shape (n,)
        The numbers of the atoms, the largest energy first.
    direction : Tensor of shape (n, ...)
        Their directions. If no split is worth its cost, the function returns None instead of both.
    """
    energy, direction = coded.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    costs, _ = coded.costs()
    are_worth = (costs + earlier).sort().values < energy
    n_worth = int(are_worth.cumprod(0).sum())
    chosen = chosen[: min(n_splits, max(coded.n_always_split, n_worth))]
    return (chosen, direction[chosen]) if len(chosen) else None


def remaining(
    coded,
    n_removed,
    *,
    kept=(),
    per_use=False,
    earlier=0.0,
):  # -> (p,) bool
    """Choose the atoms that a round removes, the ones with the smallest costs; mark all others.

    The cost of an atom is the rise of the objective without the atom. The *heirs* of an atom are
    the three atoms that take over most of its codes. An atom and its heir are never removed
    together, because the cost of each holds only while the other is there. So fewer than
    ``n_removed`` atoms may go.

    Parameters
    ----------
    coded : Epoch, DeviceEpoch or ConvEpoch
        Data with codes, for ``p`` atoms.
    n_removed : int
        Number of atoms to remove, at least 1.
    kept : iterable of int, default=()
        Numbers of atoms that must stay.
    per_use : bool, default=False
        Whether the cost of an atom is divided by its number of uses (rows with a nonzero code).
    earlier : Tensor of shape (p,), default=0.0
        In a stream: the costs of atoms for the rows of earlier blocks, which are added.

    Returns
    -------
    Tensor of shape (p,), bool
        True for the atoms that stay.
    """
    cost, heirs = coded.costs()
    cost = cost + earlier
    if per_use:
        cost = cost / coded.uses.clamp_min(1)
    heirs = heirs.tolist()
    kept = set(kept)
    removed = set()
    for atom in cost.argsort(stable=True).tolist():
        if atom not in kept and removed.isdisjoint(heirs[atom]):
            removed.add(atom)
            kept.update(heirs[atom])
        if len(removed) == n_removed:
            break
    stays = torch.ones(len(cost), dtype=torch.bool)
    stays[list(removed)] = False
    return stays


def halves(coded, kept, chosen, direction):  # -> (n_kept + n, *atom), Codes
    """Split and remove atoms at once: return the new atoms, and the codes to start from.

    Parameters
    ----------
    coded : Epoch, DeviceEpoch or ConvEpoch
        Data with codes, for ``p`` atoms.
    kept : Tensor of shape (p,), bool
        The atoms that are not removed.
    chosen : Tensor of shape (n,)
        The numbers of the atoms to split, all of them kept.
    direction : Tensor of shape (n, ...)
        The directions of the splits: an atom ``d`` becomes ``d + v / 2`` and ``d - v / 2``.

    Returns
    -------
    atoms : Tensor of shape (n_kept + n, ...)
        Unit atoms: the kept ones with the first halves, then the second halves.
    codes : Codes
        The codes at the kept atoms. Second halves have no codes yet.
    """
    atoms = coded.atoms.clone()
    half = 0.5 * direction
    atoms[chosen] += half
    second = coded.atoms[chosen] - half
    return coded.problem.project(torch.cat([atoms[kept], second])), coded.restrict(kept)


def stride_of_uses(coded, stride, n_uses):  # -> int
    """Choose a sample of rows in which atoms have ``n_uses`` uses on average; return its stride.

    A use is a row with a nonzero code at the atom, and the sample has one in "stride" rows. The
    estimate is from ``coded``, the coded data of a sample that has one in ``stride`` rows.
    """
    return max(1, int(stride * coded.n_entries / (n_uses * len(coded.atoms))))


# ------------------------------------------------------------------ generators of coded data


def descend(
    problem,
    atoms,
    codes,
    most,
    *,
    earlier=None,
):
    """Alternate between codes and atoms until the objective stalls.

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
    earlier : Held, default=None
        In a stream: the atoms before this block of rows, and a penalty on steps away from them.

    Yields
    ------
    Epoch, DeviceEpoch or ConvEpoch
        Coded data after each epoch. The generator returns the last one.
    """
    previous = atoms
    curve = []
    while True:
        # To save time, from the third epoch on new atoms enter the codes of only one half of the
        # rows in each epoch, and of the other half in the next, see `Problem.epoch`. On a GPU and
        # for images `turn` has no effect.
        turn = len(curve) % 2 if len(curve) > 1 else None
        # The atoms are extrapolated by 0.95 times their last step: on planted data of 500 atoms the
        # objective after 80 epochs is 0.2 to 0.7 % larger without extrapolation, and up to 0.4 %
        # larger with 0.9 or 0.98 (benchmarks/constants.py extrapolation).
        ahead = (atoms - previous).mul_(0.95).add_(atoms)
        coded = problem.epoch(problem.project(ahead), codes, turn=turn)
        curve.append(coded.objective)
        yield coded
        if len(curve) >= most or has_stalled(curve):
            return coded
        if problem.baseline is not None:
            problem = problem.around(coded.mean_residual())
        previous = atoms
        atoms = coded.improved_atoms(earlier)
        codes = coded.codes
        if len(curve) > 1 and curve[-1] > curve[-2]:
            # the objective has risen: the next epoch does not extrapolate
            previous = atoms


def settle(
    problem,
    atoms,
    stride=None,
    most=SETTLES,
    *,
    alpha=None,
    codes=None,
):
    """Descend on small samples of the rows first, until atoms have 120 uses on average.

    Searches begin like this, because early epochs need few rows. A use of an atom is a row with a
    nonzero code at the atom.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms.
    stride : int, default=None
        The first sample has one in ``stride`` rows. None: the stride that gives 8 rows for each
        atom, or for each feature if there are more features than atoms.
    most : int, default=100
        Largest number of epochs on each sample.
    alpha : float, default=None
        The penalty; None is the problem's.
    codes : Codes, default=None
        Codes to begin with. They are ignored unless they have the number of rows of the first
        sample.

    Yields
    ------
    Epoch, DeviceEpoch or ConvEpoch
        Coded data after each epoch. The generator returns the last one, and the stride of its
        sample.
    """
    if stride is None:
        # in images: the number of disjoint patches
        n_rows = problem.x.numel() // atoms[0].numel()
        (n_rows,) = problem.total(torch.tensor([n_rows], dtype=torch.float64))
        n_wanted = 8 * max(len(atoms), problem.x[0].numel())
        stride = max(1, int(n_rows) // n_wanted)
    while True:
        part = problem.thinned(stride, with_held_rows=False, alpha=alpha)
        if codes is None or len(codes) != len(part.x):
            codes = part.first_codes(atoms)
        coded = yield from descend(part, atoms, codes, most)
        if stride == 1 or coded.n_entries >= USES * len(atoms):
            return coded, stride
        stride = max(1, min(stride // 2, stride_of_uses(coded, stride, USES)))
        atoms = coded.atoms
        codes = None


def play_rounds(best):  # coded data -> generator of coded data
    """Leave the local minimum of the coded data ``best`` in rounds of split and remove.

    ``best`` is an `Epoch`, `DeviceEpoch` or `ConvEpoch`. The generator yields coded data after each
    epoch, and returns the coded data with the least objective. A round splits atoms and removes the
    same number of atoms. After a round of splits that lowers the objective by less than the
    fraction `PROGRESS` the next round splits half the number. In images the first round, and each
    round after one that gains more, moves atoms to better windows instead, if any atom moves (see
    `ConvEpoch.move_atoms`).
    """
    n_atoms = len(best.atoms)
    part = best.problem
    n_splits = max(1, n_atoms // SPLIT["few" if n_atoms < MANY else "many"])
    # Rounds end when a round would split less than an eighth of the number of atoms that the first
    # round splits, because further rounds gain little: for 1,024 atoms they would take a tenth more
    # time and lower the objective by less than 0.01 %.
    least_splits = max(1, n_splits // 8)
    moves = True
    n_rounds = 0
    while True:
        moved = best.move_atoms() if moves else None
        moves = moved is not None
        if moves:
            atoms, codes = moved
        else:
            # At most 20 rounds split atoms. The limit only matters for few rows: searches for atoms
            # of digits, of patches, and for planted atoms in enough rows end after 1 to 8 rounds.
            # For 1,000 atoms in 2,500 rows the objective after 18 rounds is 0.9 % lower than after
            # 8 rounds, and the search takes 1.6 times the time.
            if n_splits < least_splits or n_rounds == 20:
                return best
            splits = split(best, n_splits, n_rounds)
            if splits is None:
                return best
            n_rounds += 1
            atoms, codes = yield from _replace_atoms(best, splits)
        coded = yield from descend(part, atoms, codes, ADAPT)
        gains = coded.objective <= (1 - PROGRESS) * best.objective
        if not (gains or moves):
            n_splits //= 2
        moves = gains
        best = min(best, coded, key=lambda one: one.objective)


def _replace_atoms(best, splits):  # generator of coded data
    """Split atoms and remove the same number of atoms; return atoms, and codes to start from.

    ``best`` is the coded data. ``splits`` is the result of `split` for them: the numbers of the
    atoms to split, and the directions. The generator yields coded data after each epoch of a
    dictionary with more atoms, if atoms adapt between splits and removals.
    """
    chosen, direction = splits
    p = len(best.atoms)
    # In rows, fewer than 1,024 atoms split and are removed at once, which saves time and finds the
    # same number of planted atoms. In images atoms split before atoms are removed: with both at
    # once the choice of the number of atoms (`choose.try_sizes`) ended with an atom too many for
    # images of four planted atoms.
    if p < MANY and best.problem.n_positions == 1:
        kept = remaining(best, len(chosen), kept=chosen.tolist())
        # fewer atoms may be removed than asked for, and then as many are split
        n = p - int(kept.sum())
        return halves(best, kept, chosen[:n], direction[:n])
    atoms, codes = halves(best, torch.ones(p, dtype=torch.bool), chosen, direction)
    # adapt the larger dictionary first
    larger = yield from descend(best.problem, atoms, codes, 8)
    kept = remaining(larger, len(chosen))
    return larger.atoms[kept], larger.restrict(kept)


def exhaust(steps):  # generator -> its return value
    """Run the generator ``steps``, such as `descend`, to its end; return what it returns.

    It is for callers that do not need the coded data of each epoch.
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
