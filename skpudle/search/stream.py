r"""Go on from block to block of rows: online dictionary learning that leaves local minima.

Codes of a block solve the lasso for the present atoms, and the atoms adapt to the block. Earlier
rows hold each atom in place, as strongly as their codes used it: the next atoms minimise

.. math:: \tfrac12 \|X - Z D\|^2 + \tfrac12 \sum_k a_k \|d_k - d_k^{\mathrm{before}}\|^2, \quad
          a_k \leftarrow \beta_t a_k + \sum_i z_{ik}^2, \quad \beta_t = (1 - n_t / N_t)^\rho,

with ``n_t`` rows in the block and ``N_t`` rows so far. A row that was seen after a share ``s`` of
the stream has the weight ``s^rho``. (The sums of [1]_ hold all atoms jointly, in a matrix of their
pairs.)

The first blocks, and a block that surprises, play rounds as the search: a round adds the directions
of residuals as atoms, adapts, and removes the atoms that cost least, in this block and in earlier
ones: a sum with the same weights remembers the cost of each atom. The round counts if it lowers the
objective, with the costs of removed atoms in earlier blocks. So a population that is new to the
stream takes spare atoms, and atoms of an earlier population stay.

References
----------
.. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Learning for Matrix Factorization and
   Sparse Coding", Journal of Machine Learning Research 11, 2010.
"""

from math import ceil, inf
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.search.descend import PROGRESS, SPLIT, descend, exhaust, remaining, solve_codes, split

# Epochs from zero codes on a new block: three leave the objective .02 % above its minimum.
_REPEATS = 3
# Most rounds of a block.
_MOST_ROUNDS = 8
# Factor by which the objective of a block that surprises exceeds the mean of earlier blocks.
_SURPRISE = 1.05
# Largest number of atoms that play rounds.
_MOST_ATOMS = 2048
# Exponent of forgetting in a stream: after an equal number of new rows, earlier rows have an eighth
# of their weight. A pass over all rows weights them equally, because their order carries no
# information.
FORGETTING = 3.0
# Least rows of a block, in which atoms have 120 uses on average, of at most 64 MiB.
_LEAST_ROWS_OF_BLOCK = 1024


def block_rows(n_used, n_components, n_features):
    """Return the number of rows of a block, given the number of atoms that a row uses."""
    row = 20 * n_features + 24 * min(n_components, n_features + 8)
    wanted = max(_LEAST_ROWS_OF_BLOCK, ceil(120 * n_components / max(n_used, 1.0)))
    # of fewer rows per atom sweeps over the atoms take longer than codes
    least = max(_LEAST_ROWS_OF_BLOCK // 4, 2 * n_components)
    return max(least, min(wanted, 2**26 // row))


class Held(NamedTuple):
    """What earlier rows know of each atom.

    Attributes
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Unit atoms.
    energy : Tensor of shape (n_atoms,)
        Sums of squares of their codes.
    cost : Tensor of shape (n_atoms,)
        Rise of the objective without each atom.
    """

    atoms: Tensor
    energy: Tensor
    cost: Tensor

    def pull(self, atoms, part):  # -> (n, n_features), (n, n)
        """Return what a slice of the atoms adds to targets and products of a sweep."""
        energy = self.energy[part]
        return energy[:, None] * (self.atoms[part] - torch.as_tensor(atoms[part])), energy.diag()

    def strain(self, atoms):  # -> float
        """Return by how much moved atoms raise the objective of earlier rows."""
        return float(0.5 * (self.energy * (atoms - self.atoms).square().sum(1)).sum())

    def extended(self, atoms):
        """Return the same with more atoms, which earlier rows have not used."""
        zeros = self.energy.new_zeros(len(atoms))
        return Held(*(torch.cat(pair) for pair in zip(self, (atoms, zeros, zeros), strict=True)))


class Stream(NamedTuple):
    """State between two blocks.

    Attributes
    ----------
    held : Held
        The atoms, and what earlier rows know of them.
    weight : float
        Rows so far, by their present weights.
    n_rows : float
        Rows of all processes so far, a sum of weights.
    mean : float
        Mean objective of a row, when it was new.
    n_splits : int
        Largest number of new directions in the next round.
    n_blocks : int
        Blocks so far.
    loss : float
        Mean of half the squared residual of a row of the last block.
    """

    held: Held
    weight: float = 0.0
    n_rows: float = 0.0
    mean: float = inf
    n_splits: int = 1
    n_blocks: int = 0
    loss: float = 0.0

    @property
    def atoms(self):
        """The atoms."""
        return self.held.atoms


def begin_stream(atoms, energy=None, *, weight=0.0, n_rows=0.0, mean=inf):
    """Start with the given atoms.

    Parameters
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Unit atoms, float64.
    energy : Tensor of shape (n_atoms,), default=None
        Mean square of their codes in earlier rows; twice an estimate of their costs.
    weight, n_rows : float, default=0.0
        Weight and number of the earlier rows.
    mean : float, default=inf
        Mean objective of an earlier row.
    """
    sums = atoms.new_zeros(len(atoms)) if energy is None else energy * weight
    n_splits = max(1, len(atoms) // SPLIT["few"])
    return Stream(Held(atoms, sums, sums / 2), weight, n_rows, mean, n_splits)


def _total(problem):
    return float(problem.total(torch.tensor([problem.total_weight], dtype=torch.float64))[0])


def objective(problem, atoms, *, unbiased=False):  # -> float
    """Return the mean objective of a row, in all processes, for atoms and their codes.

    ``unbiased`` returns half the squared residual of least squares on the supports of codes.
    """
    if unbiased:
        return solve_codes(problem, atoms, _REPEATS, refit=True).unbiased_loss
    n = _total(problem)
    return solve_codes(problem, atoms, _REPEATS).objective / n if n else 0.0


def after_search(coded, n_rows=None):  # -> Stream
    """Start with the atoms of a search and its coded data.

    By default its rows count as they are, for a pass over more rows. Otherwise ``n_rows`` in all
    weigh as those of a stream so far: by the integral of ``s**FORGETTING``.
    """
    n = _total(coded.problem)
    weight = n if n_rows is None else n_rows / (FORGETTING + 1)
    known = dict(weight=weight, n_rows=n if n_rows is None else n_rows, mean=coded.objective / n)
    return begin_stream(coded.atoms, coded.energies() / n, **known)


def _adapt(coded, held, most):  # -> coded data
    if most == 0:
        return coded
    given = coded.problem, coded.improved_atoms(held), coded.codes, most
    return exhaust(descend(*given, earlier=held))


def _play_round(coded, held, n_splits, seed):
    """Return coded data, what holds them, and the fall of the objective; None without a round."""
    costs = coded.costs()[0] + held.cost
    found = split(coded, n_splits, seed, costs=costs, keep=True)
    if found is None:
        return None
    more = held.extended(found[0][len(coded.atoms) :])
    # a first epoch of codes, and at most 8 with more atoms
    larger = exhaust(descend(coded.problem, found[0], coded.codes, 1 + 8, earlier=more))
    kept = remaining(larger, len(found[1]), earlier=more.cost)
    if int(kept.sum()) != len(held.energy):  # removed atoms have each other as heirs
        return None
    less, codes = Held(*(part[kept] for part in more)), larger.restrict(kept)
    steps = descend(coded.problem, larger.atoms[kept], codes, 1 + 15, earlier=less)
    last = exhaust(steps)
    ended = last.objective + less.strain(last.atoms) + float(more.cost[~kept].sum())
    return last, less, coded.objective + held.strain(coded.atoms) - ended


def advance_stream(problem, state, *, forgetting=0.0, final=False):
    """Adapt the atoms to a block of rows.

    Parameters
    ----------
    problem : Problem
        The block, and the objective.
    state : Stream
        State before the block; it is not changed.
    forgetting : float, default=0.0
        The exponent rho; with 0 all rows count the same.
    final : bool, default=False
        Whether the block is over, although it is too small for rounds.

    Returns
    -------
    Stream
        State after the block.
    bool
        Whether the block is over. If not, only the atoms of the state are new, and the rows have to
        come again, together with more rows.
    """
    n, p = _total(problem), len(state.atoms)
    n_rows = state.n_rows + n
    fade = (1 - n / n_rows) ** forgetting
    weight, energy, cost = (fade * sums for sums in (state.weight, *state.held[1:]))
    held = Held(state.atoms, energy, cost * n / max(weight, 1.0))  # the cost of as many rows
    coded, n_epochs = solve_codes(problem, state.atoms, _REPEATS), ceil(40 * n / n_rows)
    new = coded.objective / n
    surprises = new > _SURPRISE * state.mean
    if not surprises:
        coded = _adapt(coded, held, n_epochs)
    # blocks of 1,000 rows found all of 60 atoms of a new population with 33 uses
    is_large = coded.n_entries >= 30 * p
    if not (is_large or final):
        coded = _adapt(coded, held, n_epochs) if surprises else coded
        known = state.held._replace(atoms=coded.atoms)
        return state._replace(held=known, loss=coded.loss), False
    n_splits = max(1, p // SPLIT["few"]) if surprises else state.n_splits
    for number in range(_MOST_ROUNDS * (is_large and p <= _MOST_ATOMS)):
        if n_splits == 0:
            break
        found = _play_round(coded, held, n_splits, _MOST_ROUNDS * state.n_blocks + number)
        if found is None or found[2] <= PROGRESS * coded.objective:
            n_splits = 0 if found is None else n_splits // 2
        if found is not None and found[2] > 0:
            coded, held, _ = found
    if surprises:
        if coded.objective / n > _SURPRISE * state.mean:  # too few atoms: follow the new rows
            less = (state.mean * n / coded.objective) ** 2
            held, weight = held._replace(energy=less * held.energy), less * weight
        coded = _adapt(coded, held, n_epochs)
    cost = held.cost * max(weight, 1.0) / n
    if p <= _MOST_ATOMS:
        cost = cost + coded.costs()[0]
    mean = new if state.mean == inf else state.mean + (new - state.mean) * n / n_rows
    held = Held(coded.atoms, held.energy + coded.energies(), cost)
    n_blocks = state.n_blocks + 1
    return Stream(held, weight + n, n_rows, mean, n_splits, n_blocks, coded.loss), True
