r"""Find a dictionary from the data alone: alternating minimisation that leaves local minima.

Algorithm 1, done well, over all samples at once. An *epoch* solves the lasso for every sample by
coordinate descent, from the codes that it had, and then minimises

.. math:: \tfrac12 \|X - Z D\|^2 + \alpha \|Z\|_1 = \tfrac12 \mathrm{tr}(D^T A D)
          - \mathrm{tr}(B^T D) + \dots, \qquad A = Z^T Z,\; B = Z^T X,

over the atoms, one by one, on the sphere. (Unit atoms satisfy each of the learners' norms: the
ball's minimisers lie on its sphere, and without a norm the objective has no minimum.) Codes are
solved for atoms *extrapolated* along their last step, until the objective rises.

What is left are local minima in which one atom stands for two, and spare atoms for what others
say together. So the search goes in rounds: it *splits* the atoms whose users share the largest
common direction of residuals, adapts the larger dictionary, *removes* the atoms without which the
objective rises least, and adapts again. A round counts if the objective is lower after it;
otherwise the search goes back and tries fewer. So many atoms split as others cost less than the
energy along those directions. (A split takes half of it from the objective, and more once its
neighbours adapt: with half of it as the limit 0.966 of 500 atoms were found, with all 0.986.)

Where there are many samples for an atom, all this is done for some of the samples first.

The whole search is one value, `SearchState`, and `advance` a function from it to the next. All
decisions follow from sums over samples: several processes, each with its own, end with the same
atoms.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skpudle._search_compiled import (
    add_moments,
    add_second_moments,
    in_parts,
    refit_rows,
    removals,
    solve_rows,
    sort_by_atom,
    subtract_synthesis,
    sweep,
)
from skpudle.operators import project_atoms

__all__ = [
    "Problem",
    "SearchState",
    "advance",
    "auto_alpha",
    "begin",
    "debias",
    "is_done",
    "search",
]

# The penalty in units of the root mean square norm of a sample (benchmarks/choose_search.py): from
# 0.05 to 0.07 all atoms of six synthetic problems are found and at most 0.15 of the codes' entries
# are used on six sets of real data. A share of the median correlation with samples, which would
# not mind outliers, leaves 0.34 of them on patches, whose energy is in few samples, where it does
# no harm to others.
_ALPHA = 0.07

# Codes at D + 0.95 (D - D_before): 500 atoms of random data were found to 0.93 after 80 epochs;
# with 0.5 to 0.79, with 0.9 to 0.88, with 0.98 to 0.90.
_EXTRAPOLATION = 0.95

# Sweeps over the atoms an epoch; they cost a tenth of the codes.
_SWEEPS = 2

# Codes are solved until no coordinate moves the optimality condition by more than this share of
# alpha. They go on from there in the next epoch.
_TOLERANCE = 1e-2

# Atoms enter a working set if they come near to the largest violation, so that few enter in vain.
_SHARE = 0.6
_MAX_WORKING_SETS = 20
_MAX_SWEEPS = 100

# A round splits at most one atom of so many.
_SPLIT = 20
# The cost of an atom is estimated from so many samples that use it.
_USERS = 64
# So many samples for an atom (or a feature, if there are more) are enough to begin with.
_SAMPLES = 25
_POWER_ITERATIONS = 8
# The halves of an atom are d + h v and d - h v, with v of norm 1.
_HALF = 0.5
# Atoms that take over most from a removed one stay.
_HEIRS = 3

# A phase ends when the objective has fallen by less than this share an epoch, three in a row.
_STALL = {"settle": 3e-4, "larger": 3e-4, "smaller": 3e-4, "polish": 1e-5}
_MAX_EPOCHS = {"settle": 100, "larger": 8, "smaller": 30, "polish": 60}
_MIN_EPOCHS = 6
# A round counts if the objective falls by more than this share. Real data allow many rounds that
# gain less: with 1e-5 colour patches took 1.4 times as long for 0.0003 of the objective; with 3e-4
# a correlation of codes of 0.960 instead of 0.965 is reached for 500 concepts.
_PROGRESS = 1e-4
_MAX_ROUNDS = 8

# Without the bias of the lasso the atoms of random data are as near to the truth as they get after
# three epochs, without noise after ten.
_MAX_REFITS = 10
_REFIT_TOLERANCE = 1e-4
# Codes that get denser by more than this share are the sign that atoms only make up for the bias:
# they did on seven sets of real data, by 5 to 40 %, where all tried ways to go on from the lasso's
# atoms lose at equal sparsity; on random data with little noise they get sparser.
_DENSER = 0.01


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: row ``i`` has ``value[i, :count[i]]`` at the atoms ``index[i, :count[i]]``."""

    count: Tensor  # (n,) int64
    index: Tensor  # (n, longest) int32
    value: Tensor  # (n, longest) float64

    def arrays(self):
        """Return the memory of the tensors as arrays."""
        return np.asarray(self.count), np.asarray(self.index), np.asarray(self.value)

    def widened(self, room):
        """Return a copy with room for so many entries a row."""
        n, longest = self.index.shape
        index, value = self.index.new_empty(n, room), self.value.new_empty(n, room)
        index[:, :longest], value[:, :longest] = self.index, self.value
        return Codes(self.count.clone(), index, value)

    def trimmed(self):
        """Return the codes without the room that no row uses."""
        longest = int(self.count.max()) if len(self.count) else 0
        return Codes(self.count, self.index[:, :longest].clone(), self.value[:, :longest].clone())

    def restricted(self, kept):  # (p,) bool
        """Return the codes of the atoms that are kept, which are numbered anew."""
        used = torch.arange(self.index.shape[1]) < self.count[:, None]
        index = torch.where(used, self.index, 0).long()
        used &= kept[index]
        order = used.int().argsort(dim=1, descending=True, stable=True)
        number = (kept.cumsum(0) - 1).int()
        index, value = number[index].gather(1, order), self.value.gather(1, order)
        return Codes(used.sum(1), index, value).trimmed()


@dataclass(frozen=True, eq=False)
class Problem:
    """The data, as the compiled loops want them, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, with any number in missing entries. It is searched on the CPU and in float64.
    alpha : float
        Penalty.
    positive_code, positive_atoms : bool
        Whether codes and atoms are non-negative.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    team : Team, default=None
        What sums over processes that have other samples.
    """

    x: Tensor
    alpha: float
    positive_code: bool = False
    positive_atoms: bool = False
    mask: Tensor | None = None
    team: object = None

    def __post_init__(self):
        x = self.x.detach().to("cpu", torch.float64)
        if self.mask is not None:
            mask = self.mask.detach().to("cpu", torch.float64).contiguous()
            object.__setattr__(self, "mask", mask)
            x = torch.where(mask > 0, x, 0.0)
        object.__setattr__(self, "x", x.contiguous())

    def thinned(self, stride):
        """Return the problem for the samples at this distance from each other."""
        if stride == 1:
            return self
        mask = None if self.mask is None else self.mask[::stride]
        return replace(self, x=self.x[::stride], mask=mask)

    def total(self, *tensors):
        """Return sums over all processes."""
        return tensors if self.team is None else self.team.sum(*tensors)

    def project(self, atoms):
        """Return the nearest atoms of the constraint set."""
        return project_atoms(atoms, positive=self.positive_atoms)


@dataclass(frozen=True, eq=False)
class SearchState:
    """Where a search stands; from here it goes on to the same bits.

    Parameters
    ----------
    atoms, previous : Tensor of shape (n_atoms, n_features)
        Atoms, and those of the epoch before. In the middle of a round there are more atoms than
        the dictionary has.
    codes : Codes
        Codes of the last epoch.
    epoch : int
        Epochs so far.
    phase : {"settle", "larger", "smaller", "polish", "done"}
        What the search is at.
    curve : tuple of float
        Objective of the epochs of this phase.
    best_atoms, best_codes, best_objective
        The best dictionary of the wanted size, with its codes and objective.
    n_splits : int
        How many atoms the next round splits at most.
    n_rounds : int
        Rounds so far.
    stride : int
        Distance of the samples that are looked at.
    """

    atoms: Tensor
    previous: Tensor
    codes: Codes
    best_atoms: Tensor
    best_codes: Codes
    best_objective: float = float("inf")
    epoch: int = 0
    phase: str = "settle"
    curve: tuple = ()
    n_splits: int = 1
    n_rounds: int = 0
    stride: int = 1


class _Epoch:
    """Codes for the atoms of an epoch, and what they tell about these."""

    def __init__(self, problem, atoms, codes, *, refit=False):
        self.problem, self.atoms = problem, atoms
        n, p, m = len(problem.x), len(atoms), atoms.shape[1]
        codes = codes.widened(max(codes.index.shape[1], min(p, m + 8)))
        correlation = np.asarray(problem.x @ atoms.mT)
        mask = np.empty((0, m)) if problem.mask is None else np.asarray(problem.mask)
        gain = np.zeros(n)
        self._dictionary = np.asarray(atoms), np.asarray(atoms @ atoms.mT)
        self._options = (problem.alpha, problem.positive_code, _TOLERANCE * problem.alpha, _SHARE,
                         _MAX_WORKING_SETS, _MAX_SWEEPS)  # fmt: skip
        arrays = codes.arrays()

        def solve(first, last):
            part = slice(first, last)
            solve_rows(*self._dictionary, mask[part], correlation[part], *self._options,
                       *(array[part] for array in arrays), gain[part])  # fmt: skip

        in_parts(solve, n, 32)
        self._rows = mask, correlation, gain
        self.codes = codes.trimmed()
        self._entries = self._by_atom()
        a, b, squares = self._moments(self._refitted() if refit else self.codes)
        objective = (squares - gain.sum()).reshape(1)
        self.a, self.b, objective = problem.total(a, b, objective)
        self.objective = float(objective)

    def _by_atom(self):
        count, index, _ = self.codes.arrays()
        n_entries = int(count.sum())
        start = np.zeros(len(self.atoms) + 1, np.int64)
        row, place = np.empty(n_entries, np.int32), np.empty(n_entries, np.int32)
        sort_by_atom(count, index, start, row, place)
        return start, row, place

    def _refitted(self):  # -> least squares on the supports of the codes
        mask, correlation, _ = self._rows
        codes = self.codes.widened(self.codes.index.shape[1])
        arrays = codes.arrays()

        def refit(first, last):
            part = slice(first, last)
            refit_rows(*self._dictionary, mask[part], correlation[part],
                       self.problem.positive_code, _REFIT_TOLERANCE * self.problem.alpha, _MAX_SWEEPS,
                       *(array[part] for array in arrays))  # fmt: skip

        in_parts(refit, len(correlation), 32)
        return codes

    def _residual(self, codes):
        residual = self.problem.x.clone()
        subtract_synthesis(*codes.arrays(), np.asarray(self.atoms), np.asarray(residual))
        return residual

    def _moments(self, codes):
        x, mask = self.problem.x, self.problem.mask
        squares = 0.5 * x.square().sum()
        if mask is not None:
            # The objective with entries completed by D z touches the masked one from above.
            x = torch.where(mask > 0, x, x - self._residual(codes))
        p, m = self.atoms.shape
        a, b = x.new_zeros(p, p), x.new_zeros(p, m)
        arrays = *self._entries, *codes.arrays(), np.asarray(x), np.asarray(a), np.asarray(b)
        in_parts(lambda first, last: add_moments(first, last, *arrays), p, 4)
        return a, b, squares

    def improved_atoms(self):
        """Return the atoms after sweeps of block coordinate descent."""
        atoms = self.atoms.clone()
        a, b = np.asarray(self.a), np.asarray(self.b)
        for _ in range(_SWEEPS):
            sweep(a, b, self.problem.positive_atoms, np.asarray(atoms))
        return atoms

    def common_directions(self, seed):  # -> (p,), (p, m)
        """Return the largest energy of the users' residuals along a direction, and that."""
        residual = self._residual(self.codes)
        if self.problem.mask is not None:
            residual *= self.problem.mask
        p, m = self.atoms.shape
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(p, m, generator=generator, dtype=torch.float64)
        for _ in range(_POWER_ITERATIONS):
            direction = torch.nn.functional.normalize(image, dim=1)
            image = torch.zeros_like(image)
            arrays = (*self._entries[:2], np.asarray(residual), np.asarray(direction),
                      np.asarray(image))  # fmt: skip
            in_parts(lambda first, last: add_second_moments(first, last, *arrays), p, 4)  # noqa: B023
            (image,) = self.problem.total(image)
            image -= (image * self.atoms).sum(1, keepdim=True) * self.atoms
        return (image * direction).sum(1), torch.nn.functional.normalize(image, dim=1)

    def costs(self):  # -> (p,), (p, p)
        """Return what the objective loses without each atom, and which other codes then grow."""
        p = len(self.atoms)
        mask, correlation, gain = self._rows
        cost, taken_over = self.a.new_zeros(p), self.a.new_zeros(p, p)
        codes = self.codes.widened(max(self.codes.index.shape[1], min(p, self.atoms.shape[1] + 8)))
        arrays = (*self._dictionary, mask, correlation, *self._options, _USERS, *self._entries,
                  *codes.arrays(), gain, np.asarray(cost), np.asarray(taken_over))  # fmt: skip
        in_parts(lambda first, last: removals(first, last, *arrays), p, 1)
        return self.problem.total(cost, taken_over)

    def split(self, n_splits, seed):
        """Return the atoms with two halves for each that is worth splitting, or None."""
        energy, direction = self.common_directions(seed)
        energy, chosen = energy.sort(descending=True, stable=True)
        cost, _ = self.costs()
        n_splits = min(n_splits, int((cost.sort().values < energy).cumprod(0).sum()))
        if n_splits == 0:
            return None
        chosen = chosen[:n_splits]
        half, atoms = _HALF * direction[chosen], self.atoms.clone()
        atoms[chosen] += half
        return self.problem.project(torch.cat([atoms, self.atoms[chosen] - half]))

    def without(self, n_removed):  # -> (p,) bool, False for those to remove
        """Choose the atoms without which the objective rises least."""
        cost, taken_over = self.costs()
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


def _no_codes(problem):
    n = len(problem.x)
    return Codes(
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n, 0, dtype=torch.int32),
        torch.zeros(n, 0, dtype=torch.float64),
    )


def auto_alpha(x, *, mask=None, team=None):
    """Return a penalty that gives sparse codes and loses no atoms.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    team : Team, default=None
        What sums over processes that have other samples.

    Returns
    -------
    float
        0.07 times the root mean square norm of the samples that are not zero; 1 if all are, where
        any penalty does.
    """
    problem = Problem(x, 0.0, mask=mask, team=team)
    squares = problem.x.square().sum(1)
    squares, n = problem.total(squares.sum().reshape(1), (squares > 0).double().sum().reshape(1))
    return _ALPHA * float(squares / n) ** 0.5 if n > 0 else 1.0


def begin(problem, atoms):
    """Return the state of a search that starts from the given atoms.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any norm, in different directions: samples, for example. The same in all
        processes.

    Returns
    -------
    SearchState
        The state before the first epoch.
    """
    atoms = problem.project(atoms.detach().to("cpu", torch.float64))
    (n,) = problem.total(torch.tensor([len(problem.x)], dtype=torch.float64))
    stride = max(1, int(n) // (_SAMPLES * max(atoms.shape)))
    codes = _no_codes(problem.thinned(stride))
    n_splits = max(1, len(atoms) // _SPLIT)
    return SearchState(atoms, atoms, codes, atoms, codes, n_splits=n_splits, stride=stride)


def is_done(state):
    """Return whether the search has ended."""
    return state.phase == "done"


def _stalled(phase, curve):
    if len(curve) >= _MAX_EPOCHS[phase]:
        return True
    if len(curve) < _MIN_EPOCHS:
        return False
    return curve[-4] - min(curve[-3:]) <= 3 * _STALL[phase] * curve[-1]


def _restart(state, phase, **changes):
    """Return the state at the begin of a phase, without memory of the last step."""
    state = replace(state, phase=phase, curve=(), **changes)
    return replace(state, previous=state.atoms)


def _round(problem, state, epoch):
    """Start a round, or what comes after the last one."""
    if state.n_splits > 0 and state.n_rounds < _MAX_ROUNDS:
        atoms = epoch.split(state.n_splits, seed=state.epoch)
        if atoms is not None:
            n_rounds = state.n_rounds + 1
            return _restart(state, "larger", atoms=atoms, codes=epoch.codes, n_rounds=n_rounds)
    best = dict(atoms=state.best_atoms, codes=state.best_codes)
    if state.stride == 1:
        return _restart(state, "polish", **best)
    codes = _no_codes(problem)
    best = dict(atoms=state.best_atoms, codes=codes, best_codes=codes, best_objective=float("inf"))
    n_splits = max(1, len(state.best_atoms) // _SPLIT)
    return _restart(state, "settle", **best, n_splits=n_splits, stride=1)


def _next_phase(problem, state, epoch):
    p = len(state.best_atoms)
    if state.phase == "polish":
        return replace(state, phase="done")
    if len(epoch.atoms) > p:
        kept = epoch.without(len(epoch.atoms) - p)
        atoms, codes = epoch.atoms[kept], epoch.codes.restricted(kept)
        return _restart(state, "smaller", atoms=atoms, codes=codes)
    if epoch.objective < (1 - _PROGRESS) * state.best_objective:
        best = dict(best_atoms=epoch.atoms, best_codes=epoch.codes)
        state = replace(state, **best, best_objective=epoch.objective)
        return _round(problem, state, epoch)
    state = replace(state, n_splits=state.n_splits // 3)
    return _round(problem, state, _Epoch(epoch.problem, state.best_atoms, state.best_codes))


def advance(problem, state):
    """Return the state after one more epoch.

    Parameters
    ----------
    problem : Problem
        Data and objective, the same in all epochs.
    state : SearchState
        A state that is not done. It stays as it is.

    Returns
    -------
    SearchState
        The next state.
    """
    step = _EXTRAPOLATION * (state.atoms - state.previous)
    atoms = problem.project(state.atoms + step)
    epoch = _Epoch(problem.thinned(state.stride), atoms, state.codes)
    rises = len(state.curve) > 0 and epoch.objective > state.curve[-1]
    curve = (*state.curve, epoch.objective)
    state = replace(state, codes=epoch.codes, epoch=state.epoch + 1, curve=curve)
    if state.phase == "polish" and epoch.objective < state.best_objective:
        best = dict(best_atoms=epoch.atoms, best_codes=epoch.codes)
        state = replace(state, **best, best_objective=epoch.objective)
    if _stalled(state.phase, curve):
        return _next_phase(problem, state, epoch)
    atoms = epoch.improved_atoms()
    return replace(state, atoms=atoms, previous=atoms if rises else state.atoms)


def search(problem, atoms, *, state=None, on_epoch=None):
    """Search for the atoms that minimise the objective.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms, see `begin`.
    state : SearchState, default=None
        Where an earlier search stopped.
    on_epoch : callable, default=None
        Called with the state after every epoch; what it raises ends the search.

    Returns
    -------
    SearchState
        The last state: ``best_atoms`` are what was found.
    """
    state = begin(problem, atoms) if state is None else state
    while not is_done(state):
        state = advance(problem, state)
        if on_epoch is not None:
            on_epoch(state)
    return state


def debias(problem, state):
    """Return the atoms that a search has found, adapted to codes without the lasso's bias.

    The lasso chooses the supports, least squares the codes on these, and the atoms minimise the
    reconstruction error, as long as the lasso's codes do not get denser.

    Parameters
    ----------
    problem : Problem
        Data and objective of the search.
    state : SearchState
        A search that is done.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Unit atoms: those of the search where they make codes denser.
    """
    atoms, codes, most = state.best_atoms, state.best_codes, float("inf")
    kept = atoms
    for _ in range(_MAX_REFITS + 1):
        epoch = _Epoch(problem, atoms, codes, refit=True)
        (n_entries,) = problem.total(epoch.codes.count.sum().double().reshape(1))
        if n_entries > most:
            break
        most = min(most, (1 + _DENSER) * float(n_entries))
        kept, atoms, codes = atoms, epoch.improved_atoms(), epoch.codes
    return kept
