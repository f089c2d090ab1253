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
objective rises least, and adapts again. If the objective is lower then, the search goes on from
there, otherwise from where it was; if it is hardly lower, with fewer splits. So many atoms split as
others cost less than the energy along those directions. (A split takes half of it from the
objective, and more once its neighbours adapt: with half of it as the limit 0.966 of 500 atoms were
found, with all 0.986.)

Atoms of images that sit beside what they stand for are moved first, in rounds of their own.

All this takes place on so few samples as use each atom often enough. What it found is adapted to
all samples at the end, or to as many as make a difference.

The whole search is one value, `SearchState`, and `advance` a function from it to the next. All
decisions follow from sums over samples: several processes, each with its own, end with the same
atoms.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from skpudle.search._epoch import Codes, Problem

__all__ = [
    "Problem",
    "SearchState",
    "adapted",
    "advance",
    "auto_alpha",
    "begin",
    "debias",
    "is_done",
    "remaining",
    "search",
    "split",
    "without_rows",
]

# The halves of an atom are d + h v and d - h v, with v of norm 1.
_HALF = 0.5
# Atoms that take over most from a removed one stay.
_HEIRS = 3

# The penalty in units of the root mean square norm of a sample (benchmarks/choose_search.py): from
# 0.05 to 0.07 all atoms of six synthetic problems are found and at most 0.15 of the codes' entries
# are used on six sets of real data. A share of the median correlation with samples, which would
# not mind outliers, leaves 0.34 of them on patches, whose energy is in few samples, where it does
# no harm to others.
_ALPHA = 0.07

# Codes at D + 0.95 (D - D_before): 500 atoms of random data were found to 0.93 after 80 epochs;
# with 0.5 to 0.79, with 0.9 to 0.88, with 0.98 to 0.90.
_EXTRAPOLATION = 0.95

# A round splits at most one atom of so many.
_SPLIT = 20
# So many samples for an atom (or a feature, if there are more) are enough to begin with.
_SAMPLES = 8
# So many uses of an atom, on average, are enough for rounds: with 80 up to 3 of 100 concepts are
# lost, with all samples colour patches take twice as long for 0.003 of the objective.
_USES = 120
# So many are enough for the dictionary: of 178,000 patches, 256 atoms, a third is looked at, in 6
# instead of 18 s, for an objective of 0.2728 instead of 0.2722 on others; with 1000 0.2738, in 4 s.
_MOST_USES = 2000

# A phase ends when the objective has fallen by less than this share an epoch, three in a row. With
# half of it at the end 8 x 8 patches take a tenth longer for 0.002 of the objective.
_STALL = {"settle": 5e-4, "larger": 5e-4, "smaller": 5e-4, "polish": 2e-4}
_MAX_EPOCHS = {"settle": 100, "larger": 8, "smaller": 30, "polish": 60}
_MIN_EPOCHS = 6
# A round that lowers the objective by less than this share makes the next one try half as many
# splits. Real data allow many rounds that gain less: with 1e-4 colour patches take 1.4 times as
# long for nothing. A third instead of half loses one of 100 concepts in one problem of four.
_PROGRESS = 1e-3
_MAX_ROUNDS = 8

# Atoms without the lasso's bias move by 0.02 first, and by a fifth of that in each further epoch:
# six to eight epochs until they move less than this, with 20 dB of noise or none.
_STILL = 1e-6
_MAX_REFITS = 20
# Codes that get denser by more than this share are the sign that atoms only make up for the bias.
# The first epoch changes the number of entries by -3 to 1 % on random data with little noise, where
# atoms come nearer to the truth; by 3 % with 10 dB of noise and by 2 to 8 % on ten sets of real
# data, where they get worse and go on getting denser.
_DENSER = 0.01
# They may get denser once where the residual is bias: where least squares leave less than this
# share of it. Concepts (non-negative, ten to a sample, no noise) have 0.19 to 0.29 of it, and codes
# 0 to 4 % denser while atoms come nearer to the truth; real data 0.33 to 0.85, 10 dB of noise 0.61.
_BIASED = 0.3
# And where the second epoch adds less than this share of what the first one did: up to 0.37 there,
# 0.42 to 0.62 on real data.
_GOING_ON = 0.4

# Epochs in which atoms adapt to another penalty: of the lasso, of least squares on its supports
# that are extrapolated, and of those that are not. Eight spectra of 120 channels lose as much of
# the noise as with 17, 0 and 20 of them, which take half as long again.
_ADAPTING, _UNBIASED_EXTRAPOLATION = (14, 4, 6), 0.8

# Epochs after which atoms are as if some samples had never been there: of the lasso, and of least
# squares on its supports.
_LEAVING = 4, 2

_ROUNDING = 1e-6  # of the norm of an atom

_CODES = "codes", "best_codes"


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


def remaining(epoch, n_removed):  # -> (p,) bool, False for those to remove
    """Choose the atoms without which the objective rises least."""
    cost, taken_over = epoch.costs()
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


@dataclass(frozen=True, eq=False)
class SearchState:
    r"""Where a search stands; from here it goes on to the same bits.

    Parameters
    ----------
    atoms, previous : Tensor of shape (n_atoms, n_features)
        Atoms, and those of the epoch before. In the middle of a round there are more atoms than
        the dictionary has.
    codes : Codes
        Codes of the last epoch.
    best_atoms, best_codes, best_objective
        The best dictionary of the wanted size, with its codes and objective.
    epoch : int
        Epochs so far.
    phase : {"settle", "larger", "smaller", "polish", "done"}
        What the search is at.
    curve : tuple of float
        Objective of the epochs of this phase.
    n_splits : int
        How many atoms the next round splits at most.
    n_rounds : int
        Rounds so far.
    stride : int
        Distance of the samples that are looked at.
    moves : bool
        Whether atoms are to be moved before others split.
    losses : tuple of float
        The mean over samples of :math:`\frac12 |x - D z|^2` in every epoch.
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
    moves: bool = True
    losses: tuple = ()

    @property
    def found(self):
        """The atoms of the wanted size that the search has come to, and their codes.

        The present ones, before there are best ones: then there are no more of them.
        """
        if self.best_objective < float("inf"):
            return self.best_atoms, self.best_codes
        return self.atoms, self.codes

    def as_dict(self):
        """Return the state as plain values.

        Returns
        -------
        dict
            Names, numbers, tensors, and dictionaries of them.
        """
        return vars(self) | {name: vars(getattr(self, name)) for name in _CODES}

    @classmethod
    def from_dict(cls, state):
        """Return the state that `as_dict` was made of.

        Parameters
        ----------
        state : dict
            What `as_dict` returned; a tuple may have become a list.

        Returns
        -------
        SearchState
            The state.

        Raises
        ------
        ValueError
            If a value is missing, or there is one more.
        """
        names = {field.name for field in fields(cls)}
        if state.keys() != names:
            raise ValueError(f"it holds {sorted(state)} of a search, expected {sorted(names)}")
        codes = {name: Codes(**state[name]) for name in _CODES}
        curves = {name: tuple(state[name]) for name in ("curve", "losses")}
        return cls(**state | codes | curves)

    def check(self, problem, atoms):
        """Check that a search in these data, for so many atoms, can be here.

        Parameters
        ----------
        problem : Problem
            Data and objective.
        atoms : Tensor of shape (n_components, n_features)
            Initial atoms of that search.

        Raises
        ------
        ValueError
            If it is the state of no such search: by a file that somebody made, for example.
        """
        shape, n = self.best_atoms.shape, len(self.atoms)
        if shape != atoms.shape or self.atoms.shape[1:] != shape[1:]:
            raise ValueError(f"its atoms have shape {tuple(shape)}, expected {tuple(atoms.shape)}")
        if self.phase not in {*_STALL, "done"}:
            raise ValueError(f"its search is in no phase {self.phase!r:.50}")
        if not (len(atoms) <= n <= (2 if self.phase in ("larger", "smaller") else 1) * len(atoms)):
            raise ValueError(f"its search has {n} atoms in the phase {self.phase!r}")
        if self.previous.shape != self.atoms.shape:
            raise ValueError("its atoms and those of the epoch before differ in shape")
        for found in (self.atoms, self.previous, self.best_atoms):
            if found.dtype != torch.float64:
                raise ValueError(f"its atoms are of {found.dtype}")
            if not (torch.linalg.vector_norm(found.flatten(1), dim=1) <= 1 + _ROUNDING).all():
                raise ValueError("its atoms are not finite ones of norm 1")
        counters = self.epoch, self.n_splits, self.n_rounds, self.stride - 1
        if not all(type(number) is int and 0 <= number < 2**63 for number in counters):
            raise ValueError(f"its counters {counters} are not all natural numbers")
        if not torch.isfinite(torch.tensor([*self.curve, *self.losses])).all():
            raise ValueError("its objectives are not finite")
        if len(self.losses) != self.epoch or not self.best_objective > -float("inf"):
            raise ValueError("its objectives are not those of its epochs")
        n_rows = -(-len(problem.x) // self.stride)
        self.codes.check(n_rows, n * problem.n_positions)
        self.best_codes.check(n_rows, len(atoms) * problem.n_positions)


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
    squares = problem.squares()
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
    (n,) = problem.total(torch.tensor([problem.n_samples], dtype=torch.float64))
    stride = max(1, int(n) // (_SAMPLES * max(len(atoms), atoms[0].numel())))
    codes = problem.thinned(stride).no_codes()
    n_splits = max(1, len(atoms) // _SPLIT)
    return SearchState(atoms, atoms, codes, atoms, codes, n_splits=n_splits, stride=stride)


def is_done(state):
    """Return whether the search has ended.

    Parameters
    ----------
    state : SearchState
        Where it stands.

    Returns
    -------
    bool
        Whether `advance` has nothing left to do.
    """
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
    moved = epoch.moved() if state.moves else None
    if moved is not None:
        atoms, codes = moved
        return _restart(state, "smaller", atoms=atoms, codes=codes)
    state = replace(state, moves=False)
    if state.n_splits > 0 and state.n_rounds < _MAX_ROUNDS:
        atoms = split(epoch, state.n_splits, seed=state.epoch)
        if atoms is not None:
            n_rounds = state.n_rounds + 1
            return _restart(state, "larger", atoms=atoms, codes=epoch.codes, n_rounds=n_rounds)
    best = dict(atoms=state.best_atoms, codes=state.best_codes)
    stride = _stride(state, epoch, _MOST_USES)
    if stride < state.stride:
        codes = problem.thinned(stride).no_codes()
        best |= dict(codes=codes, best_codes=codes, best_objective=float("inf"), stride=stride)
    return _restart(state, "polish", **best)


def _stride(state, epoch, n_uses):
    """Return the distance of samples that use each atom so often on average."""
    n_uses *= len(epoch.atoms)
    return max(1, int(state.stride * epoch.n_entries / n_uses))


def _finer(problem, state, epoch):
    """Settle once more, for enough samples to have each atom used often."""
    stride = max(1, min(state.stride // 2, _stride(state, epoch, _USES)))
    codes = problem.thinned(stride).no_codes()
    best = dict(best_atoms=epoch.atoms, best_codes=codes)
    return _restart(state, "settle", atoms=epoch.atoms, codes=codes, **best, stride=stride)


def _next_phase(problem, state, epoch):
    p = len(state.best_atoms)
    if state.phase == "polish":
        return replace(state, phase="done")
    if state.phase == "settle" and state.stride > 1 and epoch.n_entries < _USES * p:
        return _finer(problem, state, epoch)
    if len(epoch.atoms) > p:
        kept = remaining(epoch, len(epoch.atoms) - p)
        atoms, codes = epoch.atoms[kept], epoch.restricted(kept)
        return _restart(state, "smaller", atoms=atoms, codes=codes)
    if epoch.objective <= (1 - _PROGRESS) * state.best_objective:
        state = replace(state, moves=True)
    elif state.moves:
        state = replace(state, moves=False)
    else:
        state = replace(state, n_splits=state.n_splits // 2)
    if epoch.objective < state.best_objective:
        best = dict(best_atoms=epoch.atoms, best_codes=epoch.codes)
        state = replace(state, **best, best_objective=epoch.objective)
    else:
        epoch = epoch.problem.epoch(state.best_atoms, state.best_codes)
    return _round(problem, state, epoch)


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
    epoch = problem.thinned(state.stride).epoch(atoms, state.codes)
    rises = len(state.curve) > 0 and epoch.objective > state.curve[-1]
    loss = epoch.loss * problem.unit**2
    curve, losses = (*state.curve, epoch.objective), (*state.losses, loss)
    state = replace(state, codes=epoch.codes, epoch=state.epoch + 1, curve=curve, losses=losses)
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
    if state is None:
        state = begin(problem, atoms)
    else:
        state.check(problem, state.best_atoms)
    while not is_done(state):
        state = advance(problem, state)
        if on_epoch is not None:
            on_epoch(state)
    return state


def _gets_denser(counts, may_once):
    """Return whether codes do, by their numbers of entries; twice, if they may once."""
    if may_once and len(counts) < 3:
        return False
    if may_once and len(counts) == 3:
        first, second = counts[1] - counts[0], counts[2] - counts[1]
        return second > _GOING_ON * max(first, _DENSER * counts[0])
    before = counts[1:-1] if may_once else counts[:-1]
    return counts[-1] > (1 + _DENSER) * min(before, default=counts[-1])


def debias(problem, state):
    """Return the atoms that a search has found, adapted to codes without the lasso's bias.

    The lasso chooses the supports, least squares the codes on these, and the atoms minimise the
    reconstruction error, as long as the lasso's codes do not go on getting denser.

    Parameters
    ----------
    problem : Problem
        Data and objective of the search.
    state : SearchState
        Where the search ended, by itself or not.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Unit atoms: those of the search where they make codes denser.
    """
    (atoms, codes), counts = state.found, []
    problem, found, kept = problem.thinned(state.stride), atoms, atoms
    for _ in range(_MAX_REFITS + 1):
        epoch = problem.epoch(atoms, codes, refit=True)
        if not counts:
            may_once = epoch.unbiased_loss < _BIASED * epoch.loss
        counts.append(epoch.n_entries)
        if _gets_denser(counts, may_once):
            return found if may_once and len(counts) == 3 else kept
        kept, atoms, codes = atoms, epoch.improved_atoms(), epoch.codes
        if float((atoms - kept).square().sum(1).mean()) < _STILL**2:
            break
    return kept


def adapted(problem, state, atoms, *, unbiased=True, stopped=lambda: False):
    """Return atoms adapted to the codes of another penalty.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective, with the other penalty.
    state : SearchState
        The search that found the atoms, which is done.
    atoms : Tensor of shape (n_components, ...)
        The atoms.
    unbiased : bool, default=True
        Whether codes are least squares on the supports of the lasso's.
    stopped : callable, default=never
        Whether to leave the atoms as they are by now.

    Returns
    -------
    Tensor of shape (n_components, ...), Codes
        Unit atoms, and the lasso's codes of the samples that the search ended with.
    """
    problem = problem.thinned(state.stride)
    codes, previous, objective = problem.no_codes(), atoms, float("inf")
    factors = _EXTRAPOLATION, _UNBIASED_EXTRAPOLATION, 0.0
    for phase in range(3 if unbiased else 1):
        for i in range(_ADAPTING[phase]):
            if stopped():
                return atoms, codes
            step = factors[phase] * (atoms - previous)
            epoch = problem.epoch(problem.project(atoms + step), codes, refit=phase > 0)
            now = epoch.unbiased_loss if phase else epoch.objective
            rises, objective = now > objective and i > 0, now
            codes, improved = epoch.codes, epoch.improved_atoms()
            previous, atoms = improved if rises else atoms, improved
    return atoms, codes


def without_rows(problem, atoms, codes, kept, *, unbiased):
    """Return atoms as they would be without some of the samples, or nearly so.

    Least squares forget these in a few epochs. The lasso's codes have to start from zero: from
    those that there were, the noise of the samples that are gone stays in the atoms for 30 epochs.

    Parameters
    ----------
    problem : Problem
        Data and objective that the atoms are adapted to.
    atoms : Tensor of shape (n_components, n_features)
        The atoms.
    codes : Codes
        The lasso's codes of the data.
    kept : Tensor of shape (n_samples,), bool
        The samples to go on with.
    unbiased : bool
        Whether atoms are adapted to least squares on the supports of the lasso's codes.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Unit atoms.
    """
    problem, previous = problem.of_rows(kept), atoms
    codes = codes.of_rows(kept) if unbiased else problem.no_codes()
    for _ in range(_LEAVING[unbiased]):
        step = 0.0 if unbiased else _EXTRAPOLATION * (atoms - previous)
        epoch = problem.epoch(problem.project(atoms + step), codes, refit=unbiased)
        previous, atoms, codes = atoms, epoch.improved_atoms(), epoch.codes
    return atoms
