r"""Choose the number of atoms: the smallest dictionary that predicts held-out data as well as any.

Rows are held out, and groups of their features hidden in turn. The error of a dictionary is the
error of the hidden entries, predicted by codes of the visible entries. It is smallest if the
dictionary has the atoms of the data and no more, since spare atoms fit the visible entries by
chance.

A search with too many atoms finds all atoms of the data; its spare atoms are copies, sums of two,
or noise. So the number first *grows* by half, until the error has twice not fallen. Then atoms are
*removed*, those first that lower the objective least per use (a sum of two saves little at many
uses, a rare atom of the data much at few), and the remaining atoms adapt for a few epochs: a
quarter of the atoms at a time until the error rises, then by bisection between the last two
numbers. Sizes from the data by growing and pruning go back to [1]_.

Rows that select the atoms to remove overestimate the score of the remaining atoms. So up to half of
the held-out rows select atoms, and the rest validate. The score of a number is R^2 of the hidden
entries of validation rows. The chosen number is the smallest with a score within one standard error
of the best; the standard error of the difference is bounded by 0.001 and 0.002.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle.lasso._solve import lasso_path
from skpudle.search._descent import refit_atoms, remaining, solve_codes
from skpudle.search._epoch import Codes
from skpudle.search._held_out import (
    LEAST_ROWS,
    HeldOut,
    HiddenPixels,
    match_equal_rows,
    measure_evenness,
)
from skpudle.search._search import SearchState, advance, begin, is_done, noise_penalty

# Held-out rows: a quarter, at most 2000. Of these 512, at most half, select the atoms to remove:
# with 256 rows an atom that no row uses was removed before nine copies, and 209 of 200 atoms were
# chosen.
_HELD_OUT, _MOST_HELD_OUT, _FEW_HELD_OUT = 4, 2000, 512
# The first number of atoms: 4 for images, which need few atoms, and half the number of features for
# rows; the factor of growth; the largest number, in numbers of features.
_FIRST_OF_IMAGES = 4
_FIRST, _GROWTH, _LARGEST = 0.5, 1.5, 16
# Epochs of a new dictionary, epochs after a removal, and the largest share of atoms that one
# removal takes.
_SETTLE, _ADAPT, _REMOVED = 12, 3, 0.25
# Single removals that may fail before the number is chosen, and the divisor of the number of
# removed atoms after a failure.
_PATIENCE, _FEWER = 1, 3
# Epochs of a new dictionary of images, enough for the rounds in which atoms move: with 12 epochs 8
# planted atoms were counted as 4 or 19.
_SEARCH = 60
# Numbers that may fail to lower the error before growth ends. With 0 failures 29 of 80 planted
# atoms are found at 2 dB, with 1 failure 80.
_FAILURES = 1
# Epochs without the lasso's bias before a dictionary predicts. Bias would dominate the errors of
# noiseless data: with 0 epochs 12 planted atoms were counted as 31.
_UNBIASED = 2
# Epochs that solve for the codes of held-out rows: the objective of digits with 100 atoms is then
# 0.4 % above its minimum (28 % after 2 epochs).
_CODE_EPOCHS = 8
# Up to _ONE_BY_ONE atoms are removed one by one, chosen among these and _CANDIDATES more of least
# cost.
_ONE_BY_ONE, _CANDIDATES = 8, 8
# Bounds of the score that a smaller dictionary may lose, which is the standard error of the
# difference. Epochs of adaptation change scores by half of the lower bound; one of 500 equal atoms
# is worth the upper bound.
_TOLERANCE = 1e-3, 2e-3


class SizePath(NamedTuple):
    """The numbers of atoms that were tried, increasing.

    Attributes
    ----------
    n_components : Tensor of shape (n_sizes,)
        Numbers of atoms.
    score : Tensor of shape (n_sizes,)
        R^2 of hidden entries of held-out rows, against the column means.
    objective : Tensor of shape (n_sizes,)
        Mean objective of the search, over held-out rows.
    tolerance : Tensor of shape (n_sizes,)
        The loss against the best score that counts as chance: the standard error of the difference
        over held-out rows, within the bounds of ``_TOLERANCE``.
    """

    n_components: Tensor
    score: Tensor
    objective: Tensor
    tolerance: Tensor


class SizeTrial(NamedTuple):
    """The best dictionary so far, while its number of atoms is chosen.

    Attributes
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, to begin a search with.
    path : SizePath
        The numbers that were tried.
    alpha : float
        Penalty of the search.
    is_last : bool
        Whether this number is chosen.
    """

    atoms: Tensor
    path: SizePath
    alpha: float
    is_last: bool


@dataclass(frozen=True, eq=False)
class _Tried:
    """A dictionary, the state of its search, and its errors on held-out rows."""

    atoms: Tensor  # (n_components, n_features)
    codes: Codes  # of the training samples of the last epoch
    state: SearchState
    epoch: object  # of the held-out rows
    errors: Tensor  # (n_validation,) of the validation rows
    selection_errors: Tensor | None  # (n_selection,) None once these rows have selected atoms

    @cached_property
    def error(self):
        """The error of the validation rows."""
        return float(self.errors.sum())


class _Validation:
    """Held-out data with hidden entries; a subclass predicts them.

    ``_some`` is a problem of the ``selecting`` rows, which select the atoms to remove. The rest of
    the held-out rows validates: ``selecting`` rows overestimate scores, by 0.015 for 1200 digits.
    ``energy`` is the energy of hidden entries of validation rows, ``selection_energy`` that of
    ``selecting`` rows.
    """

    def compare(self, one, other):  # -> gain, tolerance
        """Return the gain of one dictionary's predictions over another's, and its tolerance.

        Both are shares of the energy of the rows that compare the dictionaries. The tolerance is
        the standard error of the gain, within bounds.
        """
        gains, energy = other.errors - one.errors, self.energy
        if one.selection_errors is not None and other.selection_errors is not None:
            gains = torch.cat([gains, other.selection_errors - one.selection_errors])
            energy += self.selection_energy
        gains = gains / (energy or 1.0)
        chance = float(gains.std(correction=0)) * len(gains) ** 0.5
        least, most = _TOLERANCE
        return float(gains.sum()), min(max(chance, least), most)

    def predicts_better(self, one, other):  # -> bool
        """Return whether a dictionary predicts better than another, beyond chance."""
        gain, tolerance = self.compare(one, other)
        return gain > tolerance

    @property
    def n_few(self):
        """The number of samples of an `epoch`, a sum of weights."""
        return getattr(self._some, "total_weight", len(self._some.x))

    def without(self, atoms, epoch, n_removed):  # -> (n_components,) bool, False for those to go
        """Mark the atoms to keep; remove the atoms of least cost per use."""
        return remaining(epoch, n_removed, per_use=True)

    def epoch(self, atoms):
        """Return the epoch of given atoms, with codes that are solved for."""
        return solve_codes(self._some, atoms, _CODE_EPOCHS)


class _Pixels(_Validation):
    """Pixels that are hidden in images; a quarter of the images is held out if there are enough.

    Parameters
    ----------
    problem : ConvProblem
        The images.
    """

    def __init__(self, problem):
        self._some, self._hidden, self._place = problem, HiddenPixels(problem), 0
        self.energy, self.selection_energy = float(self._hidden.energies.sum()), 0.0
        self.selecting = torch.zeros(1, dtype=torch.bool)  # one validation error, of all pixels

    def errors(self, atoms):  # -> (1,)
        """Return the squared error of hidden pixels, predicted by the best codes."""
        found = self._hidden.predict(atoms, self._place)
        self._place = found.place
        return found.errors.sum()[None]


class _Rows(_Validation):
    """Rows that are held out, and the entries that are hidden in them."""

    def __init__(self, problem):
        self._held_out, self._found = HeldOut(problem), None
        number = torch.arange(len(problem.x))
        self.selecting = number % max(2, len(problem.x) // _FEW_HELD_OUT) == 0
        self._some = problem.of_rows(self.selecting).on_host()
        energy = self._held_out.deviations
        self.energy = float(energy[~self.selecting].sum())
        self.selection_energy = float(energy[self.selecting].sum())

    def errors(self, atoms):  # -> (n_rows,)
        """Return the squared errors of hidden entries, predicted by the best codes."""
        self._found = self._held_out.predict(atoms, self._found.place if self._found else 0)
        return self._found.errors

    def _code_rows(self, atoms, rows):  # -> codes (n, n_components), squared residuals (n,)
        """Code rows without hidden entries, at the penalty and bias that `errors` chose last."""
        problem, x = self._some, self._some.x.double()[rows]
        mask = None if problem.mask is None else problem.mask[rows]
        alphas = [self._held_out.alpha * 2 ** (0.5 * self._found.place)]
        options = dict(positive=problem.positive_code, mask=mask)
        (codes,), (refits,) = lasso_path(atoms, x, alphas, **options)
        codes = codes + self._found.share * (refits - codes)
        residual = x - codes @ atoms
        squares = (residual if mask is None else residual * mask).square().sum(1)
        return codes, squares if problem.weight is None else squares * problem.weight[rows]

    def without(self, atoms, epoch, n_removed):  # -> (n_components,) bool, False for those to go
        """Mark the atoms to keep; remove one by one the atoms whose loss raises residuals least."""
        if n_removed > _ONE_BY_ONE:
            return super().without(atoms, epoch, n_removed)
        cost, _ = epoch.costs()
        n_candidates = min(n_removed + _CANDIDATES, len(atoms))
        orders = [each.argsort(stable=True) for each in (cost, cost / epoch.uses.clamp_min(1))]
        candidates = {int(j) for order in orders for j in order[:n_candidates]}
        kept = torch.ones(len(atoms), dtype=torch.bool)
        codes, left = self._code_rows(atoms, slice(None))

        def loss(j):
            users = codes[:, j].nonzero().flatten()
            if not len(users):
                return 0.0
            others = kept.clone()
            others[j] = False
            return float((self._code_rows(atoms[others], users)[1] - left[users]).sum())

        losses = {j: loss(j) for j in sorted(candidates)}
        for _ in range(n_removed):
            known = set()
            while True:  # losses grow with removals: compute anew until the least is
                j = min(losses, key=losses.get)
                if j in known:
                    break
                known.add(j)
                losses[j] = loss(j) if (~kept).any() else losses[j]
            del losses[j]
            kept[j] = False
            part, left = self._code_rows(atoms[kept], slice(None))
            codes = torch.zeros_like(codes)
            codes[:, kept] = part
        return kept


def _samples_of(problem, n_components, generator):  # -> (n_components, n_features)
    """Return samples as initial atoms."""
    x, weight = problem.x.cpu().double(), problem.weight
    return initial_atoms(x, n_components, "data", generator, weight=weight)


class _Sizes:
    """Dictionaries of several sizes, validated on held-out rows."""

    def __init__(self, problem, generator, start=None):
        n = len(problem.x)
        chosen = torch.zeros(n, dtype=torch.bool)
        n_held_out = min(n // _HELD_OUT, _MOST_HELD_OUT)
        chosen[torch.randperm(n, generator=generator)[:n_held_out]] = True
        parts = (problem.of_rows(rows) for rows in (~chosen, chosen))
        self.training, held_out = parts if n_held_out else (problem, problem)
        self.held_out = (_Rows if start is None else _Pixels)(held_out)
        self._generator, self._start, self._best = generator, start, {}

    def _validate(self, atoms, codes, state, *, first=False):
        problem = self.training.thinned(state.stride)
        unbiased = refit_atoms(problem, atoms, codes, _UNBIASED, still=0.0)
        errors, selecting = self.held_out.errors(unbiased), self.held_out.selecting
        parts = errors[~selecting], errors[selecting] if first else None
        tried = _Tried(atoms, codes, state, self.held_out.epoch(atoms), *parts)
        same = self._best.get(len(atoms), tried)
        self._best[len(atoms)] = min(same, tried, key=lambda one: one.error)
        return tried

    def try_samples(self, n_components):
        """Try a dictionary that descends from samples."""
        if self._start is None:
            atoms = _samples_of(self.training, n_components, self._generator)
        else:
            atoms = self._start(n_components)
        state, rows = begin(self.training, atoms), self._start is None
        if rows and state.stride > 1:
            # Where few samples hold the energy, as in patches of photographs, the few samples that
            # a search of a small dictionary begins with would make it worse than large
            # dictionaries.
            _, evenness = measure_evenness(self.training)
            stride = max(1, int(evenness * state.stride))
            codes = self.training.thinned(stride).no_codes()
            state = replace(state, codes=codes, best_codes=codes, stride=stride)
        while not is_done(state) and state.epoch < (_SETTLE if rows else _SEARCH):
            if rows and state.phase != "settle":
                break
            state = advance(self.training, state)
        settles = state.phase == "settle"
        atoms, codes = (state.atoms, state.codes) if settles else state.found
        return self._validate(atoms, codes, state, first=True)

    def remove_atoms(self, larger, n_components):
        """Try a dictionary without the atoms whose removal costs held-out rows least."""
        n_removed = len(larger.atoms) - n_components
        kept = self.held_out.without(larger.atoms, larger.epoch, n_removed)
        codes = larger.codes.restrict(kept, self.training.n_positions)
        atoms = larger.atoms[kept]
        none = dict(best_atoms=atoms, best_codes=codes, best_objective=float("inf"))
        none |= dict(phase="smaller", curve=())
        state = replace(larger.state, atoms=atoms, previous=atoms, codes=codes, **none)
        for _ in range(_ADAPT):
            state = advance(self.training, state)
        return self._validate(state.atoms, state.codes, state)

    def is_too_small(self, one):
        """Return whether a dictionary is smaller than the best and predicts worse beyond chance."""
        best = min(self._best.values(), key=lambda tried: tried.error)
        return len(one.atoms) < len(best.atoms) and self.held_out.predicts_better(best, one)

    def path(self):  # -> SizePath
        """Return the scores of all numbers of atoms that were tried."""
        numbers = sorted(self._best)
        tried = [self._best[number] for number in numbers]
        errors = torch.tensor([one.error for one in tried], dtype=torch.float64)
        objectives = torch.tensor([one.epoch.objective for one in tried], dtype=torch.float64)
        energy, n = self.held_out.energy or 1.0, self.held_out.n_few
        best = tried[int(errors.argmin())]
        chance = [self.held_out.compare(best, one)[1] for one in tried]
        tolerance = torch.tensor(chance, dtype=torch.float64)
        return SizePath(torch.tensor(numbers), 1 - errors / energy, objectives / n, tolerance)


def _grow(sizes, first, largest):  # yields the best dictionary so far
    """Let the number grow while that lowers the error; return the last two dictionaries."""
    before = found = sizes.try_samples(first)
    yield found
    n_components, n_failed, last = first, 0, found
    while n_components < largest and n_failed <= _FAILURES:
        n_components = min(ceil(_GROWTH * n_components), largest)
        tried = sizes.try_samples(n_components)
        if sizes.held_out.predicts_better(tried, found):
            before, found, n_failed = found, tried, 0
        else:
            last, n_failed = tried, n_failed + 1
        yield found
    return (found, last) if n_failed else (before, found)


def _shrink(sizes, before, good):  # yields the best dictionary so far
    """Remove atoms; return the smallest dictionary that is as good as the best."""
    found, n_removed, n_failed, goes_well = good, len(good.atoms), 0, False
    while len(found.atoms) > 1 and n_failed <= _PATIENCE:
        n, n_before = len(found.atoms), len(before.atoms)
        n_removed = max(1, min(n_removed, int(_REMOVED * n)))
        if n - n_removed < n_before < n:  # growth has tried this number
            tried = min(before, sizes.remove_atoms(found, n_before), key=lambda one: one.error)
        else:
            tried = sizes.remove_atoms(found, n - n_removed)
        if not sizes.is_too_small(tried):
            good = found = tried
            n_removed, n_failed, goes_well = n_removed * (1 + goes_well), 0, True
        elif n_removed > 1:  # remove fewer: some may be spare
            n_removed, goes_well = n_removed // _FEWER, False
        else:  # try one atom fewer: errors are not monotone
            found, n_failed, goes_well = tried, n_failed + 1, False
        yield good
    return good


def _grow_and_shrink(sizes, first, largest):  # yields the best dictionary so far
    before, good = yield from _grow(sizes, first, largest)
    return (yield from _shrink(sizes, before, good))


def try_sizes(problem, generator, *, fixed=False, start=None):  # yields SizeTrial
    """Choose the number of atoms by the prediction of held-out data.

    Equal samples count as one. Otherwise copies of the held-out samples would be trained on, and
    atoms that fit the noise of the samples would predict them.

    Much noise hides the atoms of rows at the usual penalty, whatever their number. So a dictionary
    with one atom per feature chooses a larger penalty first, see `noise_penalty`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of a search.
    generator : torch.Generator
        Draws the rows that are held out, and initial atoms.
    fixed : bool, default=False
        Whether the penalty is given.
    start : callable, default=None
        For images: ``start(n_components)`` returns initial atoms. For rows, initial atoms are
        samples.

    Yields
    ------
    SizeTrial
        After each number that was tried, the best so far. The last one has the number that is
        chosen: with fewer than 20 samples the smaller of the numbers of features and samples.
    """
    if start is None and not fixed:
        begun = _samples_of(problem, problem.x.shape[1], generator)
        problem = replace(problem, alpha=noise_penalty(problem, begun))
    distinct = match_equal_rows(problem.x, problem.mask).unique()
    if len(distinct) < len(problem.x):
        problem = problem.of_rows(distinct)
    n, m = problem.n_samples, problem.x[0].numel() if start is None else prod(problem.kernel)
    unit, alpha = problem.unit, problem.alpha
    if n < LEAST_ROWS:
        number = max(1, min(n, m))
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        if start is None:
            atoms = _samples_of(problem, number, generator)
        else:
            atoms = start(number)
        path = SizePath(torch.tensor([number]), unknown, unknown, unknown)
        yield SizeTrial(atoms, path, alpha, True)
        return
    largest = min(n // 2, _LARGEST * m)
    first = int(_FIRST * m) if start is None else _FIRST_OF_IMAGES
    sizes = _Sizes(problem, generator, start)

    def trial(one, is_last=False):
        path = sizes.path()
        path = path._replace(objective=path.objective * unit**2)
        return SizeTrial(one.atoms, path, alpha, is_last)

    tries = _grow_and_shrink(sizes, max(1, min(first, largest)), largest)
    while True:
        try:
            yield trial(next(tries))
        except StopIteration as end:
            yield trial(end.value, is_last=True)
            return
