r"""Find a dictionary from the data alone: alternating minimisation that leaves local minima.

This is Algorithm 1 over all samples at once. An *epoch* solves the lasso for every sample by
coordinate descent, from its last codes, and then minimises

.. math:: \tfrac12 \|X - Z D\|^2 + \alpha \|Z\|_1 = \tfrac12 \mathrm{tr}(D^T A D)
          - \mathrm{tr}(B^T D) + \dots, \qquad A = Z^T Z,\; B = Z^T X,

over the atoms, one by one, on the sphere. (Unit atoms satisfy each of the learners' norms: the
ball's minimisers lie on its sphere, and without a norm the objective has no minimum.) An epoch
*extrapolates* atoms along their last step before it solves for codes, until the objective rises.

In the local minima that are left one atom mixes two, while spare atoms repeat combinations of
others. So the search goes in rounds. A round *splits* atoms with users that share the largest
common direction of residuals, adapts the larger dictionary, *removes* the atoms without which the
objective rises least, and adapts again. If the objective is lower, the search goes on from there,
otherwise from its best dictionary; if it is hardly lower, with fewer splits. A split is worth it as
long as another atom costs less than the energy along its direction. (A split takes half of that
energy from the objective, and more once its neighbours adapt: with half as the limit 0.966 of 500
atoms were found, with all of it 0.986.)

Shifted atoms of images move first, in rounds of their own.

All this uses a subsample in which each atom has enough users. At the end the dictionary adapts to
all samples, or to as many as make a difference.

The whole search is one value, `SearchState`, and `advance` maps it to the next. All decisions
follow from sums over samples, so several processes, each with its own samples, end with the same
atoms.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from skpudle.operators import project_atoms
from skpudle.search._device_epoch import DeviceEpoch
from skpudle.search._epoch import MANY, Codes, Epoch, own

__all__ = [
    "Problem",
    "SearchState",
    "adapted",
    "advance",
    "auto_alpha",
    "begin",
    "debias",
    "group_features",
    "is_done",
    "match_equal_rows",
    "remaining",
    "search",
    "split",
    "spread_rows",
    "without_rows",
]

# An atom splits into d + h v and d - h v, with v of norm 1.
_HALF = 0.5

# The penalty in units of the root mean square norm of a sample (benchmarks/choose_search.py). From
# 0.05 to 0.07 the search finds all atoms of six synthetic problems, and at most 0.15 of the entries
# of codes are nonzero on six sets of real data. A share of the median correlation with samples
# would tolerate outliers, and does no harm to other data, but leaves 0.34 of the entries on
# patches, where few samples hold the energy.
_ALPHA = 0.07

# Extrapolate to D + 0.95 (D - D_before): this found 0.93 of 500 atoms of random data in 80 epochs;
# 0.5 found 0.79, 0.9 found 0.88, 0.98 found 0.90.
_EXTRAPOLATION = 0.95

# A round splits at most one atom in so many. One in 10 of 1024 atoms in 595 dimensions, with 2,500
# samples, ends .1 to .3 % lower than one in 20, in 0.87 to 0.93 of the time.
_SPLIT = {"few": 20, "many": 10}
# The last round splits at least an eighth of these: with 1024 atoms fewer lower the objective by
# less than .01 %, and cost a tenth of the time.
_FEWEST_SPLITS = 8
# Begin with this many samples per atom (or per feature, if there are more features).
_SAMPLES = 8
# Subsample until atoms are used 120 times on average in rounds. With 80, up to 3 of 100 planted
# atoms are lost; with all samples, colour patches take twice as long for 0.003 of the objective.
_USES = 120
# The final dictionary needs this many uses. Of 178,000 patches, with 256 atoms, that is a third, in
# 6 instead of 18 s, for an objective of 0.2728 instead of 0.2722 on other patches; with 1000 it is
# 0.2738, in 4 s.
_MOST_USES = 2000

# A phase ends when the objective falls by less than this share per epoch, three epochs in a row.
# With half of it in the polish 8 x 8 patches take a tenth longer for 0.002 of the objective.
_STALL = {"settle": 5e-4, "larger": 5e-4, "smaller": 5e-4, "polish": 2e-4}
_MAX_EPOCHS = {"settle": 100, "larger": 8, "smaller": 30, "polish": 60}
_MIN_EPOCHS = 6
# If a round lowers the objective by less than this share, the next one tries half as many splits.
# Real data allow many rounds that gain less: with 1e-4 colour patches take 1.4 times as long for
# nothing. A third instead of half loses one of 100 planted atoms in one problem of four.
_PROGRESS = 1e-3
# Digits, patches and planted atoms with enough samples end after 1 to 8 rounds. With 2500 samples
# of 1000 concepts 18 rounds lower the objective by 0.9 % more than 8, in 1.6 times the time. Where
# samples are too few to find anything (1000 of 512 atoms), there are 10.
_MAX_ROUNDS = 20

# Name and most epochs of the stage of a phase, without moves of positions. Settling may take as
# many once more each time that it at least halves its stride.
_ROUNDS = "split and remove", (1 + _MAX_ROUNDS) * (_MAX_EPOCHS["larger"] + _MAX_EPOCHS["smaller"])
_STAGES = {
    "settle": ("settle", _MAX_EPOCHS["settle"]),
    "larger": _ROUNDS,
    "smaller": _ROUNDS,
    "polish": ("polish", _MAX_EPOCHS["polish"]),
}

_IN_WORDS = {
    "settle": "settling",
    "larger": "with split atoms",
    "smaller": "without spare atoms",
    "polish": "polishing",
    "done": "done",
}

# Without the lasso's bias atoms first move by 0.02, then by a fifth as much in each epoch. They
# move less than this after six to eight epochs, with 20 dB of noise or none.
_STILL = 1e-6
_MAX_REFITS = 20
# Codes that get denser by more than this share show that atoms only make up for the bias. The first
# epoch changes the number of entries by -3 to 1 % on random data with little noise, where atoms
# approach the truth; by 3 % with 10 dB of noise and by 2 to 8 % on ten sets of real data, where
# atoms get worse and codes denser still.
_DENSER = 0.01
# Codes may get denser once if the residual is bias: if least squares leave less than this share of
# it. Planted concepts (non-negative, ten per sample, no noise) leave 0.19 to 0.29, with codes 0 to
# 4 % denser while atoms approach the truth; real data leave 0.33 to 0.85, 10 dB of noise 0.61.
_BIASED = 0.3
# And only if the second epoch adds less than this share of the increase in the first: up to 0.37 on
# those concepts, 0.42 to 0.62 on real data.
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

# Halves of 64-bit numbers to compare at a time, 8 MiB.
_NUMBERS_AT_A_TIME = 2**20

# Devices with all operations of a `DeviceEpoch`. "cuda" is ROCm too; MPS solves no batches.
_DEVICES = {"cuda"}


def spread_rows(n_rows, n_places):  # -> (min(n_rows, n_places),), increasing
    """Draw places of rows, one in each of equal parts of all rows; the same in every call.

    Rows at equal distances would be of one channel where channels are interleaved.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of places. If there are no more rows, all rows are taken.

    Returns
    -------
    Tensor of shape (min(n_rows, n_places),)
        The places, in increasing order.
    """
    n_places = min(n_rows, n_places)
    edges = torch.arange(n_places + 1, device="cpu") * n_rows // max(n_places, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(n_places, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:-1] + (drawn * edges.diff()).long()


def match_equal_rows(x, mask=None):  # -> (n,)
    """Return for each row the place of the first row with the same known entries.

    What holds rows out holds out their copies, too: a copy among the other rows would tell the
    noise of the row. Rows are compared by sums of their bits times random odd numbers, modulo
    ``2**64``, in which rows that differ are equal with probability ``2**-32`` at most.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Rows, in float32 or float64.
    mask : Tensor of the shape of ``x``, default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples,)
        Places, on the CPU. A row that equals no row before it has its own place.
    """
    x = x.flatten(1)
    n_numbers = x.shape[1] * x.element_size() // 4
    generator, sums = torch.Generator().manual_seed(0), []
    factors = torch.randint(-(2**62), 2**62, (n_numbers,), generator=generator, device="cpu")
    factors = (2 * factors + 1).to(x.device)
    rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // max(n_numbers, 1))
    for start in range(0, len(x), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        known = x[part] + 0.0  # a negative zero equals a positive one
        if mask is not None:
            known = known.masked_fill(mask.flatten(1)[part] == 0, torch.nan)
        halves = known.reshape(-1).view(torch.int32).reshape(len(known), n_numbers)
        sums.append((halves * factors).sum(1).cpu())
    if not sums:
        return torch.arange(0, device="cpu")
    _, number = torch.cat(sums).unique(return_inverse=True)
    places = torch.arange(len(x), device="cpu")
    return torch.full_like(places, len(x)).scatter_reduce(0, number, places, "amin")[number]


def group_features(places, n_groups):  # -> groups, each of shape (n,)
    """Cut features into random groups, which are hidden in turn; the same in every call.

    Copies of a feature are in its group: a visible copy would tell the noise of a hidden one.

    Parameters
    ----------
    places : Tensor of shape (n_features,)
        For each feature the place of its first copy, as `match_equal_rows` returns it.
    n_groups : int
        Number of groups. There are fewer if there are fewer features, or many copies.

    Returns
    -------
    list of Tensor
        Features of each group.
    """
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    parts, group = order.tensor_split(max(1, min(n_groups, len(order)))), torch.empty_like(order)
    for number, part in enumerate(parts):
        group[part] = number
    of_order = group[places[order]]
    groups = (order[of_order == number] for number in range(len(parts)))
    return [features for features in groups if len(features)]


@dataclass(frozen=True, eq=False)
class Problem:
    """The data, in the form that epochs compute with, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, with any number in missing entries. Data on a CUDA device are searched there, in their
        own dtype. All others are on the CPU, where compiled loops compute in float64 and convert
        data as they read them.
    alpha : float
        Penalty.
    positive_code, positive_atoms : bool
        Whether codes and atoms are non-negative.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over processes that have other samples.
    unit : float, default=1.0
        Divisor of data and penalty. The losses of a search are in the units before this division.
    """

    x: Tensor
    alpha: float
    positive_code: bool = False
    positive_atoms: bool = False
    mask: Tensor | None = None
    total: Callable = own
    unit: float = 1.0

    n_positions = 1  # of an atom; rows have one

    def __post_init__(self):
        x = self.x.detach()
        x = x if x.device.type in _DEVICES else x.cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        if self.mask is not None:
            dtype = torch.float64 if x.device.type == "cpu" else x.dtype
            mask = self.mask.detach().to(x.device).to(dtype).contiguous()
            object.__setattr__(self, "mask", mask)
            x = torch.where(mask > 0, x, 0.0)
        object.__setattr__(self, "x", x.contiguous())

    def thinned(self, stride):
        """Return the problem with one of ``stride`` samples, at the places of `spread_rows`."""
        if stride == 1:
            return self
        if stride not in self._thinned:
            self._thinned.clear()
            places = spread_rows(len(self.x), -(-len(self.x) // stride))
            self._thinned[stride] = self.of_rows(places)
        return self._thinned[stride]

    def of_rows(self, rows):  # (n,) bool, or places
        """Return the problem for these samples."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, x=self.x[rows], mask=mask)

    @cached_property
    def _thinned(self):
        return {}

    @property
    def n_samples(self):
        """The number of samples of this process."""
        return len(self.x)

    def no_codes(self):
        """Return zero codes."""
        return Codes.none(len(self.x))

    def on_host(self):
        """Return the problem with its data on the CPU."""
        return replace(self, x=self.x.cpu())

    def epoch(self, atoms, codes, *, refit=False, turn=None):
        """Return the epoch of these atoms, starting from codes of other atoms.

        With a ``turn`` of 0 or 1 many atoms enter the codes of one half of the rows on a CPU. The
        product that tells them is half of an epoch: 2048 atoms of 128 features are found in 0.84 of
        the time, by as many epochs.
        """
        if self.x.device.type != "cpu":
            return DeviceEpoch(self, atoms, codes, refit=refit)
        return Epoch(self, atoms, codes, refit=refit, turn=turn if len(atoms) >= MANY else None)

    def squares(self):  # -> (n_samples,)
        """Return the sum of squares of each sample."""
        dtype = torch.float64 if self.x.device.type == "cpu" else self.x.dtype
        return torch.linalg.vector_norm(self.x, dim=1, dtype=dtype).cpu().double().square()

    def project(self, atoms):
        """Return the nearest atoms of the constraint set."""
        return project_atoms(atoms, positive=self.positive_atoms)


def split(epoch, n_splits, seed):  # -> (p + n, *shape)
    """Split atoms where it is worth it; None if it is worth it for none."""
    energy, direction = epoch.common_directions(seed)
    energy, chosen = energy.sort(descending=True, stable=True)
    cost, _ = epoch.costs()
    n_worth = int((cost.sort().values < energy).cumprod(0).sum())
    n_splits = min(n_splits, max(epoch.n_always_split, n_worth))
    if n_splits == 0:
        return None
    chosen = chosen[:n_splits]
    half = _HALF * direction[chosen]
    del direction  # arrays of all atoms are what a search has most of
    atoms = torch.cat([epoch.atoms, epoch.atoms[chosen] - half])
    atoms[chosen] += half
    return epoch.problem.project(atoms)


def remaining(epoch, n_removed, *, per_use=False):  # -> (p,) bool, False for those to remove
    """Mark the atoms to keep; without the others the objective rises least, in all or per use."""
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


@dataclass(frozen=True, eq=False)
class SearchState:
    r"""State of a search, which determines all later bits.

    Parameters
    ----------
    atoms, previous : Tensor of shape (n_atoms, n_features)
        Atoms now and in the epoch before. In the middle of a round there are more atoms than in the
        dictionary.
    codes : Codes
        Codes of the last epoch.
    best_atoms, best_codes, best_objective
        The best dictionary of the wanted size, with its codes and objective.
    epoch : int
        Epochs so far.
    phase : {"settle", "larger", "smaller", "polish", "done"}
        Phase of the search.
    curve : tuple of float
        Objective of the epochs of this phase.
    n_splits : int
        Largest number of splits in the next round.
    n_rounds : int
        Rounds so far.
    stride : int
        The search uses one of ``stride`` samples.
    moves : bool
        Whether the next round tries to move atoms before it splits any.
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

    stages = _STAGES

    @property
    def found(self):
        """The best dictionary of the wanted size so far, and its codes.

        Before the first best one, the present dictionary, which has that size then.
        """
        if self.best_objective < float("inf"):
            return self.best_atoms, self.best_codes
        return self.atoms, self.codes

    @property
    def activity(self):
        """The phase in words."""
        return _IN_WORDS[self.phase]

    @property
    def share_done(self):
        """The epochs so far as a share of all, from 0 to 1, if no further round pays.

        Phases end as soon as their objective stalls, so the share jumps from phase to phase. It
        falls where a round pays, and where a search settles again on more samples.
        """
        if self.phase == "done":
            return 1.0
        left, n_rounds = _MAX_EPOCHS[self.phase] - len(self.curve), 0
        if self.phase != "polish":
            left += _MAX_EPOCHS["polish"]
            least, _ = _splits(len(self.best_atoms))
            n_rounds = min(_MAX_ROUNDS - self.n_rounds, (self.n_splits // least).bit_length())
        left += n_rounds * (_MAX_EPOCHS["larger"] + _MAX_EPOCHS["smaller"])
        left += _MAX_EPOCHS["smaller"] if self.phase == "larger" else 0
        return self.epoch / (self.epoch + max(left, 1))

    def as_dict(self):
        """Return the state as plain values.

        Returns
        -------
        dict
            Names, numbers, tensors, and dictionaries of them.
        """
        return vars(self) | {name: vars(getattr(self, name).on_host()) for name in _CODES}

    @classmethod
    def from_dict(cls, state):
        """Return the state from the result of `as_dict`.

        Parameters
        ----------
        state : dict
            Result of `as_dict`; a tuple may have become a list.

        Returns
        -------
        SearchState
            The state.

        Raises
        ------
        ValueError
            If a value is missing, or one is unknown.
        """
        names = {field.name for field in fields(cls)}
        if state.keys() != names:
            raise ValueError(f"it holds {sorted(state)} of a search, expected {sorted(names)}")
        codes = {name: Codes(**state[name]) for name in _CODES}
        curves = {name: tuple(state[name]) for name in ("curve", "losses")}
        return cls(**state | codes | curves)

    def check(self, problem, atoms):
        """Check that a search in these data, with these initial atoms, can have this state.

        Parameters
        ----------
        problem : Problem
            Data and objective.
        atoms : Tensor of shape (n_components, n_features)
            Initial atoms of the search.

        Raises
        ------
        ValueError
            If no such search can have it, for example in a file that was made by hand.
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
            raise ValueError("its objectives do not belong to its epochs")
        n_rows = -(-len(problem.x) // self.stride)
        for codes, n_atoms in ((self.codes, n), (self.best_codes, len(atoms))):
            codes = codes if codes.value.device.type == "cpu" else codes.on_host()
            codes.check(n_rows, n_atoms * problem.n_positions)


def auto_alpha(x, *, mask=None, total=own):
    """Return a penalty that gives sparse codes and loses no atoms.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    total : callable, default=own
        ``total(*tensors)`` returns their sums over processes that have other samples.

    Returns
    -------
    float
        0.07 times the root mean square norm of the samples that are not zero; 1 if all are zero,
        where any penalty will do.
    """
    squares = Problem(x, 0.0, mask=mask).squares()
    squares, n = total(squares.sum().reshape(1), (squares > 0).double().sum().reshape(1))
    return _ALPHA * float(squares / n) ** 0.5 if n > 0 else 1.0


def _splits(n_atoms):
    """Return the least and the largest number of splits of a round."""
    most = max(1, n_atoms // _SPLIT["few" if n_atoms < MANY else "many"])
    return max(1, most // _FEWEST_SPLITS), most


def begin(problem, atoms):
    """Start a search from the given atoms.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms of any norm in different directions, such as samples; the same in all
        processes.

    Returns
    -------
    SearchState
        The state before the first epoch.
    """
    atoms = problem.project(atoms.detach().cpu().double())
    (n,) = problem.total(torch.tensor([problem.n_samples], dtype=torch.float64))
    stride = max(1, int(n) // (_SAMPLES * max(len(atoms), atoms[0].numel())))
    codes = problem.thinned(stride).no_codes()
    _, n_splits = _splits(len(atoms))
    return SearchState(atoms, atoms, codes, atoms, codes, n_splits=n_splits, stride=stride)


def is_done(state):
    """Return whether the search has ended.

    Parameters
    ----------
    state : SearchState
        State of the search.

    Returns
    -------
    bool
        Whether `advance` has nothing left to do.
    """
    return state.phase == "done"


def extrapolated(problem, atoms, previous, factor=_EXTRAPOLATION):
    """Return the atoms after another step like the last one, times the factor."""
    ahead = atoms - previous
    return problem.project(ahead.mul_(factor).add_(atoms))


def _stalled(phase, curve):
    if len(curve) >= _MAX_EPOCHS[phase]:
        return True
    if len(curve) < _MIN_EPOCHS:
        return False
    return curve[-4] - min(curve[-3:]) <= 3 * _STALL[phase] * curve[-1]


def _restart(state, phase, **changes):
    """Begin a phase, without memory of the last step."""
    state = replace(state, phase=phase, curve=(), **changes)
    return replace(state, previous=state.atoms)


def _round(problem, state, epoch):
    """Start a round, or polish after the last one."""
    moved = epoch.moved() if state.moves else None
    if moved is not None:
        atoms, codes = moved
        return _restart(state, "smaller", atoms=atoms, codes=codes)
    state = replace(state, moves=False)
    least, _ = _splits(len(state.best_atoms))
    if state.n_splits >= least and state.n_rounds < _MAX_ROUNDS:
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
    """Return the stride at which samples use each atom ``n_uses`` times on average."""
    n_uses *= len(epoch.atoms)
    return max(1, int(state.stride * epoch.n_entries / n_uses))


def _finer(problem, state, epoch):
    """Settle again on more samples, so that each atom has enough uses."""
    stride = max(1, min(state.stride // 2, _stride(state, epoch, _USES)))
    codes = problem.thinned(stride).no_codes()
    best = dict(best_atoms=epoch.atoms, best_codes=codes)
    return _restart(state, "settle", atoms=epoch.atoms, codes=codes, **best, stride=stride)


def _next_phase(problem, state, epoch):
    p = len(state.best_atoms)
    if state.phase == "polish":
        best = dict(atoms=state.best_atoms, codes=state.best_codes)
        return _restart(state, "done", **best)
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
        A state that is not done; it is not changed.

    Returns
    -------
    SearchState
        The next state.
    """
    atoms = extrapolated(problem, state.atoms, state.previous)
    turn = state.epoch % 2 if len(state.curve) > 1 else None  # a phase begins with all rows
    epoch = problem.thinned(state.stride).epoch(atoms, state.codes, turn=turn)
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
        State of an earlier search, to resume it.
    on_epoch : callable, default=None
        Called with the state after every epoch; an exception from it ends the search.

    Returns
    -------
    SearchState
        The last state; its ``best_atoms`` are the result.
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
    """Return whether codes get denser, by their numbers of entries; if they may once, twice."""
    if may_once and len(counts) < 3:
        return False
    if may_once and len(counts) == 3:
        first, second = counts[1] - counts[0], counts[2] - counts[1]
        return second > _GOING_ON * max(first, _DENSER * counts[0])
    before = counts[1:-1] if may_once else counts[:-1]
    return counts[-1] > (1 + _DENSER) * min(before, default=counts[-1])


def debias(problem, state):
    """Adapt the atoms of a search to codes without the lasso's bias.

    The lasso chooses the supports, least squares the codes on them, and the atoms minimise the
    reconstruction error, as long as the lasso's codes do not keep getting denser.

    Parameters
    ----------
    problem : Problem
        Data and objective of the search.
    state : SearchState
        Last state of the search, done or interrupted.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Unit atoms; the search's own where adapted ones make codes denser.
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
    """Adapt atoms to the codes of another penalty.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective, with the other penalty.
    state : SearchState
        Last state of the search that found the atoms; it is done.
    atoms : Tensor of shape (n_components, ...)
        The atoms.
    unbiased : bool, default=True
        Whether codes are least squares on the supports of the lasso's.
    stopped : callable, default=never
        Returns whether to stop with the present atoms.

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
            ahead = extrapolated(problem, atoms, previous, factors[phase])
            epoch = problem.epoch(ahead, codes, refit=phase > 0)
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
        ahead = extrapolated(problem, atoms, previous, 0.0 if unbiased else _EXTRAPOLATION)
        epoch = problem.epoch(ahead, codes, refit=unbiased)
        previous, atoms, codes = atoms, epoch.improved_atoms(), epoch.codes
    return atoms
