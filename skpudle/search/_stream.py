r"""Go on from block to block of rows: online dictionary learning that leaves local minima.

A block's codes solve the lasso for the present atoms. Sums over all blocks,

.. math:: A \leftarrow \beta_t A + Z^T Z, \quad B \leftarrow \beta_t B + Z^T X, \quad
          \beta_t = (1 - n_t / N_t)^\rho,

with ``n_t`` rows in the block and ``N_t`` rows so far, give the next atoms by block coordinate
descent, as in [1]_. A row that was seen after a share ``s`` of the stream has the weight
``s^rho``.

Rounds split and remove atoms as in the search. In a round a block splits atoms along the directions
of its residuals, adapts, and removes the atoms that cost least, in this block and in earlier ones:
a sum with the same weights remembers the cost of each atom. The round counts if it lowers the
objective, with the costs of removed atoms in earlier blocks. So a population that is new to the
stream takes spare atoms, and atoms of an earlier population stay. More than 2048 atoms do not
split: a block adapts them to its rows, and sums over earlier blocks hold them in place.

References
----------
.. [1] J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Learning for Matrix Factorization and
   Sparse Coding", Journal of Machine Learning Research 11, 2010.
"""

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle.search.descend import (
    PROGRESS,
    SPLIT,
    descend,
    exhaust,
    remaining,
    solve_codes,
    split,
)

# Epochs from zero codes on a new block, with and without moves. Three leave the objective .02 %
# above its minimum, two .1 %; without moves codes improve further in epochs that adapt atoms.
_REPEATS, _REPEATS_WITHOUT_MOVES = 3, 2
# Most epochs on a block: _SETTLE times the block's share of all rows so far; _LARGER in a round
# after the split, _SMALLER after the removal.
_SETTLE, _LARGER, _SMALLER = 40, 8, 15
_MAX_ROUNDS = 8
# Mean uses of an atom in a block that a round needs. Blocks of 1,000 rows found all of 60 atoms of
# a new population with 33 uses.
_USES = 30
# Factor by which the objective of a block that surprises exceeds the mean of earlier blocks.
_SURPRISE = 1.05
# Exponent of the weight cos(angle)**8 of an atom's earlier costs after it has moved by an angle: a
# half at 24 degrees.
_STEADY = 8
# Blocks from one measurement of costs to the next, while no round splits atoms. With 1 or 8 the
# same 0.90 of 60 atoms survive another population, at the same speed.
_COSTED = 2
# Largest number of atoms with products of all pairs: 32 MiB.
_MOST_PAIRED = 2048


def _matrix(diagonal):
    return torch.diag(diagonal) if len(diagonal) <= _MOST_PAIRED else diagonal


class Memory(NamedTuple):
    """Sums over earlier blocks, for each atom.

    Attributes
    ----------
    a : Tensor of shape (n_atoms, n_atoms) or (n_atoms,)
        Second moments of codes. For more than 2048 atoms it is the diagonal, and the rows of ``b``
        are the atoms times their energies.
    b : Tensor of shape (n_atoms, n_features)
        Products of codes and rows.
    cost : Tensor of shape (n_atoms,)
        Rise of the objective without each atom, in the blocks in which it was measured.
    weight : Tensor of shape (n_atoms,)
        Weight of the rows of the blocks in which ``cost`` was measured.
    rows : Tensor of shape ()
        Weight of all rows.
    """

    a: Tensor
    b: Tensor
    cost: Tensor
    weight: Tensor
    rows: Tensor

    @classmethod
    def none(cls, atoms):
        """Return an empty memory."""
        zeros = atoms.new_zeros(len(atoms))
        return cls(_matrix(zeros), torch.zeros_like(atoms), zeros, zeros, zeros.sum())

    @classmethod
    def of_energy(cls, atoms, energy, n_rows):
        """Return a memory whose sums hold atoms in place.

        Parameters
        ----------
        atoms : Tensor of shape (n_atoms, n_features)
            Atoms.
        energy : Tensor of shape (n_atoms,)
            Mean square of the codes of each atom, twice an estimate of its cost.
        n_rows : float
            Number of rows that the atoms were learned from.
        """
        sums = energy * n_rows
        weight = torch.full_like(sums, n_rows)
        return cls(_matrix(sums), sums[:, None] * atoms, sums / 2, weight, weight.mean())

    @property
    def pairs(self):
        """Whether the memory has products of all pairs of atoms."""
        return self.a.ndim == 2

    @property
    def energy(self):
        """The sum of squares of the codes of each atom."""
        return self.a.diag() if self.pairs else self.a

    @property
    def matrix(self):  # -> (n_atoms, n_atoms)
        """The second moments as a matrix, diagonal beyond 2048 atoms."""
        return self.a if self.pairs else torch.diag(self.a)

    def targets(self, atoms, first, last):  # -> (last - first, m), (last - first, last - first)
        """Return rows of ``B - A D`` for a block of atoms, and their block of ``A``."""
        b, a = (np.asarray(sums[first:last]) for sums in (self.b, self.a))
        if self.pairs:
            return b - a @ atoms, a[:, first:last]
        return b - a[:, None] * atoms[first:last], np.diag(a)

    def add_block(self, epoch, n):
        """Return the memory with a block of ``n`` rows added; costs stay as they are."""
        if self.pairs:
            a, b = (one + two for one, two in zip((self.a, self.b), epoch.statistics, strict=True))
        else:
            a = self.a + epoch.energies()
            b = a[:, None] * epoch.atoms
        return self._replace(a=a, b=b, rows=self.rows + n)

    def fade(self, factor):
        """Return the memory with smaller weights."""
        return Memory(*(factor * sums for sums in self))

    def without(self, atoms, which):
        """Remove some atoms, and their share of the rows from the targets of the other atoms."""
        a, b, others = self.a.clone(), self.b, torch.ones(len(atoms), dtype=torch.bool)
        others[which] = False
        a[which] = 0.0
        if self.pairs:
            a[:, which], b = 0.0, b - self.a[:, which] @ atoms[which]
        b = torch.where(others[:, None], b, 0.0)
        cost, weight = (torch.where(others, t, 0.0) for t in (self.cost, self.weight))
        return Memory(a, b, cost, weight, self.rows)

    def append_atoms(self, n):
        """Return the memory with ``n`` more atoms, of zero sums."""
        pad = torch.nn.functional.pad
        a, b = pad(self.a, (0, n) * self.a.ndim), pad(self.b, (0, 0, 0, n))
        return Memory(a, b, pad(self.cost, (0, n)), pad(self.weight, (0, n)), self.rows)

    def restrict(self, kept):
        """Return the memory of the kept atoms."""
        a, b = self.a[kept], self.b[kept]
        a = a[:, kept] if self.pairs else a
        return Memory(a, b, self.cost[kept], self.weight[kept], self.rows)

    def bequeath_costs(self, heirs, removed):
        """Return the memory where the costs of atoms include the work of removed atoms.

        Two atoms that do the same work cost little each, until one of them is removed.
        """
        heirs = heirs[removed]
        work = 0.5 * self.energy[removed] / self.rows.clamp_min(1) / max(heirs.shape[1], 1)
        more = torch.zeros_like(self.cost).index_add_(
            0, heirs.flatten(), work.repeat_interleave(heirs.shape[1])
        )
        return self._replace(cost=self.cost + self.weight * more)

    def discount_moved(self, before, after):
        """Return the memory with smaller costs for atoms that have moved."""
        near = (before * after).sum(1).clamp(0, 1) ** _STEADY
        return self._replace(cost=self.cost * near)

    @property
    def rate(self):
        """The mean cost of each atom per row."""
        return self.cost / self.weight.clamp_min(1)


@dataclass(frozen=True, eq=False)
class StreamState:
    """State between two blocks.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms, float64.
    memory : Memory
        Sums over earlier blocks.
    forgetting : float
        The exponent rho.
    n_rows : float
        Rows of all processes so far, a sum of weights.
    n_splits : int
        Largest number of splits in the next round.
    mean : float
        Mean objective of a row, when it was new.
    loss : float
        Mean of half the squared residual of a row of the last block.
    n_blocks : int
        Blocks so far.
    """

    atoms: Tensor
    memory: Memory
    forgetting: float
    n_rows: float = 0.0
    n_splits: int = 1
    mean: float = inf
    loss: float = 0.0
    n_blocks: int = 0


class _CostsInStream:
    """Atoms with costs in all blocks, in the form of an epoch that `remaining` takes."""

    def __init__(self, epoch, memory, n):
        measured, self._heirs = epoch.costs()
        earlier = torch.where(memory.weight > 0, n * memory.rate, 0.0)
        self._costs, self.uses = measured + earlier, epoch.uses

    def costs(self):
        """Return the cost of each atom in this block and ``n`` mean earlier rows, and its heirs."""
        return self._costs, self._heirs


def _total(problem, value):
    return float(problem.total(torch.tensor([float(value)], dtype=torch.float64))[0])


def objective(problem, atoms, *, unbiased=False):
    """Return the objective of a row, for atoms and their codes.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms.
    unbiased : bool, default=False
        Whether to return half the squared residual of least squares on the supports of codes
        instead.

    Returns
    -------
    float
        The mean over the rows of all processes.
    """
    if unbiased:
        return solve_codes(problem, atoms, _REPEATS, refit=True).unbiased_loss
    epoch = solve_codes(problem, atoms, _REPEATS)
    n = _total(problem, problem.total_weight)
    return epoch.objective / n if n else 0.0


def begin_stream(atoms, memory=None, *, forgetting, n_rows=0.0, mean=inf):
    """Start with the given atoms.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms, float64.
    memory : Memory, default=None
        Sums over rows that the atoms were learned from.
    forgetting : float
        The exponent rho; with 0 all rows count the same.
    n_rows : float, default=0.0
        Number of rows that the atoms were learned from.
    mean : float, default=inf
        Mean objective of the rows that the atoms were learned from.

    Returns
    -------
    StreamState
        The state before the first block.
    """
    memory = Memory.none(atoms) if memory is None else memory
    n_splits = max(1, len(atoms) // SPLIT["few"])
    return StreamState(atoms, memory, forgetting, n_rows, n_splits, mean)


def after_search(epoch):
    """Start with the atoms of a search, and sums over the samples that it ended with.

    Parameters
    ----------
    epoch : Epoch
        The samples, with codes of the atoms.

    Returns
    -------
    StreamState
        A state with the weight 1 for all earlier rows.
    float
        Mean number of atoms that a row uses.
    """
    problem = epoch.problem
    n = _total(problem, problem.total_weight)
    memory = Memory.none(epoch.atoms).add_block(epoch, n)
    if memory.pairs:
        cost = epoch.costs()[0]
        memory = memory._replace(cost=cost, weight=torch.full_like(cost, n))
    options = dict(forgetting=0.0, n_rows=n, mean=epoch.objective / n)
    return begin_stream(epoch.atoms, memory, **options), epoch.n_entries / n


def _adapt(coded, n_epochs, memory):  # -> Epoch
    """Return the data after some epochs in which atoms adapt to earlier blocks, too."""
    if n_epochs == 0:
        return coded
    given = coded.problem, coded.improved_atoms(memory), coded.codes, n_epochs
    return exhaust(descend(*given, earlier=memory))


def _round(epoch, memory, n_splits, n, seed, *, keep):
    """Return the epoch and the memory after a round, and the fall of the objective; or None.

    Parameters
    ----------
    epoch : Epoch
        Codes of the block.
    memory : Memory
        Of earlier blocks.
    n_splits : int
        Largest number of splits.
    n : float
        Rows of the block, in all processes.
    seed : int
        For random directions.
    keep : bool
        Whether atoms that split stay as they are, next to the direction of their residuals.
    """
    problem, atoms = epoch.problem, epoch.atoms
    costs, _ = _CostsInStream(epoch, memory, n).costs()
    found = split(epoch, n_splits, seed, costs=costs, keep=keep)
    if found is None:
        return None
    larger, chosen = found
    n_splits = len(chosen)
    more = (memory if keep else memory.without(atoms, chosen)).append_atoms(n_splits)
    found = exhaust(descend(problem, larger, epoch.codes, 1 + _LARGER, earlier=more))
    judged = _CostsInStream(found, more, n)
    kept = remaining(judged, n_splits)
    if int(kept.sum()) != len(atoms):  # removed atoms have each other as heirs
        return None
    lost = float((n * more.rate)[~kept].sum())
    less = more.bequeath_costs(judged.costs()[1], ~kept)
    less, atoms = less.without(found.atoms, ~kept).restrict(kept), found.atoms[kept]
    found = exhaust(descend(problem, atoms, found.restrict(kept), 1 + _SMALLER, earlier=less))
    return found, less.discount_moved(atoms, found.atoms), epoch.objective - found.objective - lost


def advance_stream(problem, state, *, final=False):
    """Adapt the atoms to a block of rows.

    Parameters
    ----------
    problem : Problem
        The block, and the objective.
    state : StreamState
        State before the block; it is not changed.
    final : bool, default=False
        Whether the block is over, although it is too small for moves.

    Returns
    -------
    StreamState
        State after the block.
    bool
        Whether the block is over. If not, only the atoms of the state are new, and the rows have to
        come again, together with more rows.
    """
    p, n = len(state.atoms), _total(problem, problem.total_weight)
    n_rows = state.n_rows + n
    memory = state.memory.fade((1 - n / n_rows) ** state.forgetting)
    n_epochs = _REPEATS if memory.pairs else _REPEATS_WITHOUT_MOVES
    epoch = solve_codes(problem, state.atoms, n_epochs)
    new, n_splits = epoch.objective / n, state.n_splits
    surprised = new > _SURPRISE * state.mean
    n_settling = ceil(_SETTLE * n / n_rows)
    if surprised:
        n_splits = max(1, p // SPLIT["few"])
    else:
        epoch = _adapt(epoch, n_settling, memory)
        memory = memory.discount_moved(state.atoms, epoch.atoms)
    is_large = epoch.n_entries >= _USES * p
    moves = is_large and memory.pairs
    if not (is_large or final):
        epoch = _adapt(epoch, n_settling, memory) if surprised else epoch
        return replace(state, atoms=epoch.atoms, loss=epoch.loss), False
    for number in range(_MAX_ROUNDS * moves):
        if n_splits == 0:
            break
        seed = _MAX_ROUNDS * state.n_blocks + number
        found = _round(epoch, memory, n_splits, n, seed, keep=surprised)
        if found is None or found[2] <= PROGRESS * epoch.objective:
            n_splits = 0 if found is None else n_splits // 2
        if found is not None and found[2] > 0:
            epoch, memory, _ = found
    if surprised:
        if epoch.objective / n > _SURPRISE * state.mean:  # too few atoms: follow the new rows
            memory = memory.fade((state.mean * n / epoch.objective) ** 2)
        before = epoch.atoms
        epoch = _adapt(epoch, n_settling, memory)
        memory = memory.discount_moved(before, epoch.atoms)
    if memory.pairs and (n_splits > 0 or surprised or state.n_blocks % _COSTED == 0):
        cost, weight = memory.cost + epoch.costs()[0], memory.weight + n
        memory = memory._replace(cost=cost, weight=weight)
    mean = new if state.mean == inf else state.mean + (new - state.mean) * n / n_rows
    state = replace(
        state,
        atoms=epoch.atoms,
        memory=memory.add_block(epoch, n),
        n_rows=n_rows,
        n_splits=n_splits,
        mean=mean,
        loss=epoch.loss,
        n_blocks=state.n_blocks + 1,
    )
    return state, True
