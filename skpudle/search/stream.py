r"""Learn from a stream of blocks of rows: online dictionary learning that leaves local minima.

`advance_stream` solves for the lasso's codes of a block of rows, and then adapts the atoms to the
block. A penalty on steps of the atoms stands for the earlier rows: the more energy the codes of
earlier rows have at an atom, the more a step of this atom costs. The next atoms minimise

.. math:: \tfrac12 \|X - Z D\|^2 + \tfrac12 \sum_k a_k \|d_k - d_k^{\mathrm{before}}\|^2, \quad
          a_k \leftarrow \beta_t a_k + \sum_i z_{ik}^2, \quad \beta_t = (1 - n_t / N_t)^\rho,

with ``n_t`` rows in the block and ``N_t`` rows so far, including the block. Of a stream of ``N``
rows, row number ``s N`` has the weight ``s^rho`` at the end. (Online dictionary learning [1]_ keeps
sums over earlier rows for each pair of atoms instead, a matrix.)

In the first blocks, *rounds* leave local minima, as in a search (`skpudle.search.descend`). A later
block has rounds if it *surprises*: its mean objective is more than 5 % above that of earlier
blocks. A round adds the common directions of residuals as new atoms, adapts all atoms, and removes
the same number of atoms, those with the smallest costs. The cost of an atom is the rise of the
objective without it: in this block, plus a weighted sum over earlier blocks. The result of a round
is kept if it lowers the objective, including the costs of the removed atoms in earlier blocks. So
if rows of a new kind appear in the stream, spare atoms adapt to them, and the atoms that earlier
rows need stay.

References
----------
.. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Learning for Matrix Factorization and
   Sparse Coding", Journal of Machine Learning Research 11, 2010.
"""

from math import ceil, inf

import torch

from skpudle._states import Held, StreamState
from skpudle.search.descend import (
    PROGRESS,
    SPLIT,
    descend,
    exhaust,
    remaining,
    solve_codes,
    split,
)

# Number of epochs that solve for the codes of a new block, from zero codes, before the atoms adapt.
# After three epochs the objective is 0.01 % above its minimum over the codes in planted rows of 60
# atoms, and 8 % in digits (benchmarks/constants.py repeats-of-codes).
_REPEATS = 3
_MOST_ROUNDS = 8  # largest number of rounds of split and remove in a block
# A block surprises if its mean objective of a row exceeds the mean of earlier rows by this factor.
# Chance does not reach the factor: in a stream of planted rows and in a stream of digits, of 9 and
# 18 blocks of 1,024 rows, the ratio of both means is at most 1.01, with a standard deviation of
# 0.003 and 0.005 (benchmarks/constants.py surprise).
_SURPRISE = 1.05
# Largest number of atoms for which a stream has rounds of split and remove, and estimates the costs
# of atoms for them. With more atoms a block only adapts the atoms.
_MOST_ATOMS = 2048
# The argument `forgetting` of `advance_stream`, for `partial_fit`: when the number of rows has
# doubled, earlier rows have an eighth of their weight, (1 / 2)**3. A pass over the rows of one data
# set takes 0 instead: the order of its rows carries no information, so all rows weigh the same.
FORGETTING = 3.0
# Least number of rows of a block. A block of rows with many features or codes may have fewer, since
# `block_rows` limits its memory to 64 MiB.
_LEAST_ROWS_OF_BLOCK = 1024


def block_rows(n_used, n_components, n_features):  # -> int
    """Choose the number of rows of a block of a stream: enough for 120 uses of an atom on average.

    ``n_used`` is the mean number of nonzero codes in a row; each of them is a use of an atom.
    ``n_components`` and ``n_features`` are the numbers of atoms and of features. A block has at
    least 1,024 rows. But if its rows and codes take more than 64 MiB it has fewer rows, though at
    least 256 rows and two rows for each atom.
    """
    # The bytes that a row takes: 20 for each feature, and 24 for each nonzero code. A row may have
    # 8 nonzero codes more than features (`ROOM` of `skpudle.search._epoch`).
    row_bytes = 20 * n_features + 24 * min(n_components, n_features + 8)
    wanted = max(_LEAST_ROWS_OF_BLOCK, ceil(120 * n_components / max(n_used, 1.0)))
    # With fewer than two rows for each atom the sweeps that improve the atoms would take longer
    # than solving for the codes.
    least = max(_LEAST_ROWS_OF_BLOCK // 4, 2 * n_components)
    return max(least, min(wanted, 2**26 // row_bytes))


def begin_stream(
    atoms,
    energy=None,
    *,
    weight=0.0,
    n_rows=0.0,
    mean=inf,
):
    """Return the state of a stream before its first block.

    Parameters
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Unit atoms, float64.
    energy : Tensor of shape (n_atoms,), default=None
        For each atom the mean square of its codes in earlier rows. Half of the mean square
        estimates the cost of the atom for a row: the rise of the objective without the atom. None:
        no earlier rows.
    weight : float, default=0.0
        Sum of the weights that earlier rows have after forgetting.
    n_rows : float, default=0.0
        Number of the earlier rows.
    mean : float, default=inf
        Mean objective of an earlier row.

    Returns
    -------
    StreamState
        The state, with the initial ``atoms``.
    """
    sums = atoms.new_zeros(len(atoms)) if energy is None else energy * weight
    n_splits = max(1, len(atoms) // SPLIT["few"])
    return StreamState(Held(atoms, sums, sums / 2), weight, n_rows, mean, n_splits)


def _total(problem):  # -> float
    """Return the number of rows of a problem in all processes, the sum of their sample weights."""
    own_weight = torch.tensor([problem.total_weight], dtype=torch.float64)
    (total,) = problem.total(own_weight)
    return float(total)


def objective(problem, atoms, *, unbiased=False):  # -> float
    """Return the mean of the lasso's objective over the rows of all processes, to judge atoms.

    ``atoms`` are (n_atoms, n_features); the codes are solved for them. With ``unbiased`` return the
    mean of half the squared residual instead, for codes that are least squares on the supports of
    the lasso's codes.
    """
    if unbiased:
        return solve_codes(problem, atoms, _REPEATS, refit=True).unbiased_loss
    n = _total(problem)
    return solve_codes(problem, atoms, _REPEATS).objective / n if n else 0.0


def after_search(coded, n_rows=None):  # -> StreamState
    """Return the state of a stream that begins with the result of a search.

    Parameters
    ----------
    coded : Epoch
        The atoms of the search, with the codes of its rows.
    n_rows : float, default=None
        None: each row of ``coded`` has the weight 1, for a pass over more rows of the same data. A
        number: the search counts as a stream of this number of rows, for `partial_fit` after a fit.
        The weights of such a stream sum up to ``n_rows / (FORGETTING + 1)``.

    Returns
    -------
    StreamState
        The state, with the atoms of the search.
    """
    n = _total(coded.problem)
    return begin_stream(
        coded.atoms,
        coded.energies() / n,
        weight=n if n_rows is None else n_rows / (FORGETTING + 1),
        n_rows=n if n_rows is None else n_rows,
        mean=coded.objective / n,
    )


def _adapt(coded, held, most):  # -> Epoch
    """Adapt the atoms to a block: improve them once, then descend for at most ``most`` epochs.

    ``coded`` is the `Epoch` of the block, its rows with codes. ``held``, a `Held`, is a penalty on
    steps of the atoms, which stands for earlier rows. With ``most`` = 0, for an empty block,
    ``coded`` is returned unchanged.
    """
    if most == 0:
        return coded
    atoms = coded.improved_atoms(held)
    return exhaust(descend(coded.problem, atoms, coded.codes, most, earlier=held))


def _play_round(coded, held, n_splits, seed):  # -> (Epoch, Held, float) or None
    """Add new atoms, adapt all atoms, remove the same number of atoms, and adapt the rest.

    Parameters
    ----------
    coded : Epoch
        The block with its codes.
    held : Held
        What stands for earlier rows: the penalty on steps of the atoms, and the costs of atoms.
    n_splits : int
        Largest number of atoms to add.
    seed : int
        Seed of the directions of new atoms, see `split`.

    Returns
    -------
    last : Epoch
        The block after the round, with the same number of atoms as before.
    of_kept : Held
        The entries of ``held`` for the atoms that remain.
    fall : float
        The fall of the objective, less the rise that the round costs earlier rows; negative if the
        round does harm. The function returns None if no atom can be added, or too few removed.
    """
    splits = split(coded, n_splits, seed, earlier=held.cost)
    if splits is None:
        return None
    _, directions = splits
    problem = coded.problem
    new = problem.project(directions)
    with_new = held.extended(new)
    atoms = torch.cat([coded.atoms, new])
    # one epoch solves for the codes at the new atoms, then at most 8 epochs adapt all atoms
    larger = exhaust(descend(problem, atoms, coded.codes, 1 + 8, earlier=with_new))
    kept = remaining(larger, len(new), earlier=with_new.cost)
    # `remaining` may remove too few atoms, since an atom is not removed together with its heirs, to
    # which its codes would go.
    if int(kept.sum()) != len(held.energy):
        return None
    of_kept = with_new.of_atoms(kept)
    codes = larger.restrict(kept)
    last = exhaust(descend(problem, larger.atoms[kept], codes, 1 + 15, earlier=of_kept))
    cost_of_removed = float(with_new.cost[~kept].sum())
    after = last.objective + of_kept.penalty_of_step(last.atoms) + cost_of_removed
    before = coded.objective + held.penalty_of_step(coded.atoms)
    return last, of_kept, before - after


def advance_stream(problem, state, *, forgetting=0.0, final=False):
    """Adapt the atoms to a block of rows.

    Parameters
    ----------
    problem : Problem
        The rows of the block, and the objective.
    state : StreamState
        State before the block; it is not changed.
    forgetting : float, default=0.0
        The weights of earlier rows are multiplied by the power ``forgetting`` of their fraction of
        all rows so far; with 0 all rows keep the same weight.
    final : bool, default=False
        Whether no more rows will join this block. Otherwise a block is too small if atoms have
        fewer than 30 uses (nonzero codes) on average.

    Returns
    -------
    StreamState
        State after the block.
    bool
        False if the block is too small and not final. Of the state only the atoms and the loss are
        then new, and the caller has to pass the rows again, together with more rows.
    """
    n = _total(problem)
    n_atoms = len(state.atoms)
    n_rows = state.n_rows + n
    fade = (1 - n / n_rows) ** forgetting
    weight = fade * state.weight
    # Costs in earlier blocks are sums over rows with the sum of weights `weight`. They are scaled
    # to the number of rows of this block, so that a round can add them to the costs in this block.
    held = Held(
        state.atoms,
        energy=fade * state.held.energy,
        cost=fade * state.held.cost * n / max(weight, 1.0),
    )
    # The first block adapts the atoms for at most 40 epochs, and a later block for at most 40 times
    # its share of all rows so far, since the atoms have adapted to the earlier rows already.
    coded = solve_codes(problem, state.atoms, _REPEATS)
    n_epochs = ceil(40 * n / n_rows)
    per_row = coded.objective / n
    surprises = per_row > _SURPRISE * state.mean
    if not surprises:
        coded = _adapt(coded, held, n_epochs)
    # A block is large enough for rounds if atoms have 30 uses (nonzero codes) on average. In a
    # stream in which rows of 60 new planted atoms appeared, blocks of 1,000 rows, in which an atom
    # had 33 uses, found all of these atoms.
    has_enough_uses = coded.n_entries >= 30 * n_atoms
    if not (has_enough_uses or final):
        if surprises:
            coded = _adapt(coded, held, n_epochs)
        held = state.held._replace(atoms=coded.atoms)
        return state._replace(held=held, loss=coded.loss), False
    # A block that surprises begins with 1 new atom for 20 atoms; other blocks go on with the number
    # at which the last block ended.
    n_splits = max(1, n_atoms // SPLIT["few"]) if surprises else state.n_splits
    for number in range(_MOST_ROUNDS * (has_enough_uses and n_atoms <= _MOST_ATOMS)):
        if n_splits == 0:
            break
        seed = _MOST_ROUNDS * state.n_blocks + number
        result = _play_round(coded, held, n_splits, seed)
        if result is None:
            n_splits = 0
            break
        after_round, of_kept, fall = result
        if fall <= PROGRESS * coded.objective:
            n_splits //= 2
        if fall > 0:
            coded = after_round
            held = of_kept
    if surprises:
        # If the objective is still high after the rounds, the atoms are too few for earlier and new
        # rows together. Then earlier rows lose weight, so that the atoms adapt to the new rows.
        if coded.objective / n > _SURPRISE * state.mean:
            fraction = (state.mean * n / coded.objective) ** 2
            held = held._replace(energy=fraction * held.energy)
            weight = fraction * weight
        coded = _adapt(coded, held, n_epochs)
    # from the number of rows of this block back to the weights of earlier rows
    cost = held.cost * max(weight, 1.0) / n
    if n_atoms <= _MOST_ATOMS:
        cost = cost + coded.costs()[0]
    mean = (
        per_row
        if state.mean == inf
        else state.mean + (per_row - state.mean) * n / n_rows
    )
    state = StreamState(
        Held(coded.atoms, held.energy + coded.energies(), cost),
        weight=weight + n,
        n_rows=n_rows,
        mean=mean,
        n_splits=n_splits,
        n_blocks=state.n_blocks + 1,
        loss=coded.loss,
    )
    return state, True
