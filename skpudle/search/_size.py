r"""Choose the number of atoms: the smallest dictionary that predicts held-out data as well as any.

Rows are held out, and groups of their features hidden in turn. The error of a dictionary is that of
the hidden entries, predicted by codes of the others. It is smallest where the dictionary has the
atoms of the data and no more, since spare atoms take over what others say better.

The search finds all atoms of the data where it has too many, and then the spare ones are copies,
sums of two, or noise. So the number first *grows* by half, until that twice does not lower the
error. Then atoms
are *removed*, first those without which the objective rises least each time that they are used (a
sum of two saves little at many uses, a rare atom of the data much at few), and the others adapt for
a few epochs: a quarter of the atoms at a time until the error rises, then by bisection between the
last two numbers. Sizes from the data by growing and pruning go back to [1]_.

Rows that are asked which atoms to remove say too much for those that stay. So up to half of the
held-out rows are asked, and the others judge. The score of a number is R^2 of their hidden entries.
The number is the smallest whose score is as large as the largest within the standard error of their
difference, which counts as 0.001 at least and 0.002 at most.

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

__all__ = ["SizePath", "SizeTrial", "try_sizes"]

# A quarter of the rows is held out, but no more than 2000; 512 of them, and no more than half, tell
# which atoms to remove. Of 256 rows none may use an atom of 200 that five atoms make: such an atom
# went before nine copies of others, and 209 were chosen.
_HELD_OUT, _MOST_HELD_OUT, _FEW_HELD_OUT = 4, 2000, 512
# The first number in units of that of features, by what it grows, and the largest one. Atoms of
# images are at all places, and few.
_FIRST_OF_IMAGES = 4
_FIRST, _GROWTH, _LARGEST = 0.5, 1.5, 16
# Epochs of a dictionary that grows, and those after atoms were removed, a share of them at most.
_SETTLE, _ADAPT, _REMOVED = 12, 3, 0.25
# After a failure a third of them are removed; of one, it is tried again without another.
_PATIENCE, _FEWER = 1, 3
# Epochs of atoms of images, which have to be moved, as the search does in rounds: after 12 of them
# 8 planted atoms were called 4 or 19.
_SEARCH = 60
# Numbers that may fail to pay before growth ends. With none 25, 31 and 29 atoms are found of 60, 40
# and 80 at 2 dB, and with one 60, 39 and 80.
_FAILURES = 1
# Epochs without the lasso's bias, which the errors of a dictionary would otherwise consist of where
# there is no noise: with none of them 12 planted atoms were called 31.
_UNBIASED = 2
# Epochs that solve for the codes of held-out rows. With 100 atoms the objective of digits is 28 %
# too large after 2 of them, 5 % after 4, and 0.4 % after 8.
_CODE_EPOCHS = 8
# Up to so many atoms are removed one by one, chosen among so many more that cost least.
_ONE_BY_ONE, _CANDIDATES = 8, 8
# The score that a smaller dictionary may lose: the standard error of the difference, between these.
# Epochs of adaptation change scores by half of the first; an atom of the data that is used as often
# as one of 500 is worth twice as much.
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
    """A dictionary, how it came about, and what held-out rows say of it."""

    atoms: Tensor  # (n_components, n_features)
    codes: Codes  # of the samples that were looked at
    state: SearchState
    epoch: object  # of the held-out rows
    errors: Tensor  # (n_rows,) of the rows that are never asked which atoms to remove
    asked_errors: Tensor | None  # (n_asked,) of the rows that are, unless they were

    @cached_property
    def error(self):
        """The error of all rows that are never asked."""
        return float(self.errors.sum())


class _Judge:
    """What is held out, and the entries that are hidden in it; a subclass says the errors.

    ``_some`` is a problem for the samples that epochs look at. Rows that are ``asked`` which atoms
    to remove are no judges of the rest: of 1200 digits a score was 0.784 that was 0.769 for others.
    ``energy`` is that of hidden entries of the judges, ``asked_energy`` that of the rows asked.
    """

    def compare(self, one, other):  # -> gain, tolerance
        """Return what one dictionary predicts better than another, and how much is chance.

        Both are shares of the energy of the rows that compare them.
        """
        gains, energy = other.errors - one.errors, self.energy
        if one.asked_errors is not None and other.asked_errors is not None:
            gains = torch.cat([gains, other.asked_errors - one.asked_errors])
            energy += self.asked_energy
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
        """The number of samples that epochs look at, a sum of weights."""
        return getattr(self._some, "total_weight", len(self._some.x))

    def without(self, atoms, epoch, n_removed):  # -> (n_components,) bool, False for those to go
        """Choose the atoms that are missed least each time that they are used."""
        return remaining(epoch, n_removed, per_use=True)

    def epoch(self, atoms):
        """Return the epoch of given atoms, with codes that are solved for."""
        return solve_codes(self._some, atoms, _CODE_EPOCHS)


class _Pixels(_Judge):
    """Pixels that are hidden in images; a quarter of the images is held out if there are enough.

    Parameters
    ----------
    problem : ConvProblem
        The images.
    """

    def __init__(self, problem):
        self._some, self._hidden, self._place = problem, HiddenPixels(problem), 0
        self.energy, self.asked_energy = float(self._hidden.energies.sum()), 0.0
        self.asked = torch.zeros(1, dtype=torch.bool)  # the pixels of all images are one error

    def errors(self, atoms):  # -> (1,)
        """Return the squared error of hidden pixels, predicted by the best codes."""
        found = self._hidden.predict(atoms, self._place)
        self._place = found.place
        return found.errors.sum()[None]


class _Rows(_Judge):
    """Rows that are held out, and the entries that are hidden in them."""

    def __init__(self, problem):
        self._held_out, self._found = HeldOut(problem), None
        number = torch.arange(len(problem.x))
        self.asked = number % max(2, len(problem.x) // _FEW_HELD_OUT) == 0
        self._some = problem.of_rows(self.asked).on_host()
        energy = self._held_out.deviations
        self.energy = float(energy[~self.asked].sum())
        self.asked_energy = float(energy[self.asked].sum())

    def errors(self, atoms):  # -> (n_rows,)
        """Return the squared errors of hidden entries, predicted by the best codes."""
        self._found = self._held_out.predict(atoms, self._found.place if self._found else 0)
        return self._found.errors

    def _left(self, atoms, rows):  # -> codes (n, n_components), squared residuals (n,)
        """Code rows of which nothing is hidden, as `errors` did last."""
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
        """Remove the atoms whose removal leaves the least of the rows unexplained, one by one."""
        if n_removed > _ONE_BY_ONE:
            return super().without(atoms, epoch, n_removed)
        cost, _ = epoch.costs()
        n_candidates = min(n_removed + _CANDIDATES, len(atoms))
        orders = [each.argsort(stable=True) for each in (cost, cost / epoch.uses.clamp_min(1))]
        candidates = {int(j) for order in orders for j in order[:n_candidates]}
        kept = torch.ones(len(atoms), dtype=torch.bool)
        codes, left = self._left(atoms, slice(None))

        def loss(j):
            users = codes[:, j].nonzero().flatten()
            if not len(users):
                return 0.0
            others = kept.clone()
            others[j] = False
            return float((self._left(atoms[others], users)[1] - left[users]).sum())

        losses = {j: loss(j) for j in sorted(candidates)}
        for _ in range(n_removed):
            known = set()
            while True:  # a loss only grows as others go: those that are still the least are known
                j = min(losses, key=losses.get)
                if j in known:
                    break
                known.add(j)
                losses[j] = loss(j) if (~kept).any() else losses[j]
            del losses[j]
            kept[j] = False
            part, left = self._left(atoms[kept], slice(None))
            codes = torch.zeros_like(codes)
            codes[:, kept] = part
        return kept


def _samples_of(problem, n_components, generator):  # -> (n_components, n_features)
    """Return samples as initial atoms."""
    x, weight = problem.x.cpu().double(), problem.weight
    return initial_atoms(x, n_components, "data", generator, weight=weight)


class _Sizes:
    """Dictionaries of several sizes, and what held-out rows say of them."""

    def __init__(self, problem, generator, start=None):
        n = len(problem.x)
        chosen = torch.zeros(n, dtype=torch.bool)
        n_held_out = min(n // _HELD_OUT, _MOST_HELD_OUT)
        chosen[torch.randperm(n, generator=generator)[:n_held_out]] = True
        parts = (problem.of_rows(rows) for rows in (~chosen, chosen))
        self.training, held_out = parts if n_held_out else (problem, problem)
        self.held_out = (_Rows if start is None else _Pixels)(held_out)
        self._generator, self._start, self._best = generator, start, {}

    def _judge(self, atoms, codes, state, *, first=False):
        problem = self.training.thinned(state.stride)
        unbiased = refit_atoms(problem, atoms, codes, _UNBIASED, still=0.0)
        errors, asked = self.held_out.errors(unbiased), self.held_out.asked
        parts = errors[~asked], errors[asked] if first else None
        tried = _Tried(atoms, codes, state, self.held_out.epoch(atoms), *parts)
        same = self._best.get(len(atoms), tried)
        self._best[len(atoms)] = min(same, tried, key=lambda one: one.error)
        return tried

    def settled(self, n_components):
        """Try what descent makes of samples."""
        if self._start is None:
            atoms = _samples_of(self.training, n_components, self._generator)
        else:
            atoms = self._start(n_components)
        state, rows = begin(self.training, atoms), self._start is None
        if rows and state.stride > 1:
            # Few patches of photographs hold the energy. From fewer samples small dictionaries,
            # which a search begins with, are worse than large ones for that alone.
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
        return self._judge(atoms, codes, state, first=True)

    def smaller(self, larger, n_components):
        """Try a dictionary without the atoms that held-out rows miss least."""
        n_removed = len(larger.atoms) - n_components
        kept = self.held_out.without(larger.atoms, larger.epoch, n_removed)
        codes = larger.codes.restricted(kept, self.training.n_positions)
        atoms = larger.atoms[kept]
        none = dict(best_atoms=atoms, best_codes=codes, best_objective=float("inf"))
        none |= dict(phase="smaller", curve=())
        state = replace(larger.state, atoms=atoms, previous=atoms, codes=codes, **none)
        for _ in range(_ADAPT):
            state = advance(self.training, state)
        return self._judge(state.atoms, state.codes, state)

    def is_too_small(self, one):
        """Return whether a dictionary loses against the best, which is larger."""
        best = min(self._best.values(), key=lambda tried: tried.error)
        return len(one.atoms) < len(best.atoms) and self.held_out.predicts_better(best, one)

    def path(self):  # -> SizePath
        """Return all that was tried."""
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
    before = found = sizes.settled(first)
    yield found
    n_components, n_failed, last = first, 0, found
    while n_components < largest and n_failed <= _FAILURES:
        n_components = min(ceil(_GROWTH * n_components), largest)
        tried = sizes.settled(n_components)
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
        if n - n_removed < n_before < n:  # one that samples have led to
            tried = min(before, sizes.smaller(found, n_before), key=lambda one: one.error)
        else:
            tried = sizes.smaller(found, n - n_removed)
        if not sizes.is_too_small(tried):
            good = found = tried
            n_removed, n_failed, goes_well = n_removed * (1 + goes_well), 0, True
        elif n_removed > 1:  # others may be spare
            n_removed, goes_well = n_removed // _FEWER, False
        else:  # errors are not monotone
            found, n_failed, goes_well = tried, n_failed + 1, False
        yield good
    return good


def _grow_and_shrink(sizes, first, largest):  # yields the best dictionary so far
    before, good = yield from _grow(sizes, first, largest)
    return (yield from _shrink(sizes, before, good))


def try_sizes(problem, generator, *, fixed=False, largest=None, start=None):  # yields SizeTrial
    """Choose the number of atoms by the prediction of held-out data.

    Equal samples count as one. Otherwise copies of the held-out samples would be trained on, and
    atoms that fit the noise of the samples would predict them.

    Much noise hides the atoms of rows at the usual penalty, whatever their number: as many atoms as
    features then choose a larger penalty first, see `noise_penalty`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of a search.
    generator : torch.Generator
        Draws the rows that are held out, and initial atoms.
    fixed : bool, default=False
        Whether the penalty is given.
    largest : int, default=None
        The largest number; by default half the number of samples, or 16 times that of features.
    start : callable, default=None
        For images: ``start(n_components)`` returns initial atoms. Those of rows are samples.

    Yields
    ------
    SizeTrial
        After each number that was tried, the best so far. The last one has the number that is
        chosen: of fewer than 20 samples as many as there are features or samples.
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
        number = max(1, min(n, m, largest or m))
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        if start is None:
            atoms = _samples_of(problem, number, generator)
        else:
            atoms = start(number)
        path = SizePath(torch.tensor([number]), unknown, unknown, unknown)
        yield SizeTrial(atoms, path, alpha, True)
        return
    largest = min(n // 2, _LARGEST * m) if largest is None else largest
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
