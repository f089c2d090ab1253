r"""Choose the number of atoms: the smallest dictionary that predicts held-out data as well as any.

Rows are held out, and groups of their features hidden in turn. The error of a dictionary is that of
the hidden entries, predicted by codes of the others. It is smallest where the dictionary has the
atoms of the data and no more, since spare atoms take over what others say better.

The search finds all atoms of the data where it has too many, and then the spare ones are copies,
sums of two, or noise. So the number first *grows* by half while that lowers the error. Then atoms
are *removed*, first those without which the objective rises least each time that they are used (a
sum of two saves little at many uses, a rare atom of the data much at few), and the others adapt for
a few epochs: a quarter of the atoms at a time until the error rises, then by bisection between the
last two numbers. Sizes from the data by growing and pruning go back to [1]_.

A size is as good as the best where the sum of the differences of their errors, row by row, is at
most its standard error, within bounds given below.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.initialization._epoch import Codes, Problem
from skpudle.initialization._moves import remaining
from skpudle.initialization._samples import initial_atoms
from skpudle.initialization._search import SearchState, advance, begin
from skpudle.lasso import lasso_path

__all__ = ["SizePath", "choose_size"]

# With fewer rows nothing is decided. Of others a quarter is held out, but no more than this.
_LEAST_ROWS, _HELD_OUT, _MOST_HELD_OUT = 20, 4, 600
# Groups of features that are hidden in turn, and in how many of the turns a row takes part.
_GROUPS, _TURNS = 10, 5
# Penalties of codes, in units of the search's. The best and its neighbours are tried again.
_PENALTIES = 4.0, 2.0**1.5, 2.0, 2.0**0.5, 1.0, 0.5, 0.25

# The first number in units of that of features, by what it grows, and the largest one.
_FIRST, _GROWTH, _LARGEST = 0.5, 1.5, 16
# Epochs of a dictionary that grows, and those after atoms were removed, of which it keeps a share.
_SETTLE, _ADAPT, _KEPT = 15, 5, 0.75
# Epochs without the lasso's bias, which the errors of a dictionary would otherwise consist of where
# there is no noise: with none of them 12 planted atoms were called 31.
_UNBIASED = 3
# Epochs that solve for the codes of held-out rows.
_CODE_EPOCHS = 3
# Shares of the energy between which the standard error counts. Less is that of a few epochs more;
# more would lose what users see in the second digit of a score.
_LEAST, _MOST = 1e-4, 1e-3


class SizePath(NamedTuple):
    """The numbers of atoms that were tried, increasing.

    Attributes
    ----------
    n_components : Tensor of shape (n_sizes,)
        Numbers of atoms.
    score : Tensor of shape (n_sizes,)
        Share of the energy of hidden entries of held-out rows that is predicted.
    objective : Tensor of shape (n_sizes,)
        Mean objective of the search, over held-out rows.
    """

    n_components: Tensor
    score: Tensor
    objective: Tensor


@dataclass(frozen=True, eq=False)
class _Tried:
    """A dictionary, how it came about, and its errors of held-out rows."""

    atoms: Tensor  # (n_components, n_features)
    codes: Codes  # of the samples that were looked at
    state: SearchState
    epoch: object  # of the held-out rows
    errors: Tensor  # (n_rows,)

    @cached_property
    def error(self):
        return float(self.errors.sum())

    def loses(self, other, energy):  # -> bool
        """Return whether the errors are larger than those of another, beyond chance."""
        difference = self.errors - other.errors
        chance = float(difference.std(correction=0)) * len(difference) ** 0.5
        return self.error - other.error > min(max(chance, _LEAST * energy), _MOST * energy)


class _HeldOut:
    """Rows that are held out, and the entries that are hidden in them."""

    def __init__(self, problem):
        self.problem, self._x = problem, problem.x.double()
        self._near = range(len(_PENALTIES))
        m = self._x.shape[1]
        order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
        self._groups = order.tensor_split(min(_GROUPS, m))
        n_hidden = self._x.new_zeros(self._x.shape)
        for rows, hidden in self._turns():
            n_hidden[rows[:, None], hidden] += 1
        self.energy = float((self._known(slice(None)) * n_hidden * self._x.square()).sum())

    def _known(self, rows):
        mask = self.problem.mask
        return self._x.new_ones(()) if mask is None else mask[rows]

    def _turns(self):  # yields rows, features
        n, number = len(self._groups), torch.arange(len(self._x))
        for i, hidden in enumerate(self._groups):
            rows = ((number + i) % n < min(_TURNS, n)).nonzero().flatten()
            if len(rows):
                yield rows, hidden

    def errors(self, atoms):  # -> (n_rows,)
        """Return the squared errors of hidden entries, of the codes that predict them best.

        As `lasso.lasso_path` makes them, with the best of a few penalties and the best share of
        the bias removed, which are the same for all rows.
        """
        alphas = [self.problem.alpha * _PENALTIES[i] for i in self._near]
        sums = self._x.new_zeros(len(alphas), len(self._x), 3)
        for rows, hidden in self._turns():
            x, known = self._x[rows], self._known(rows)
            seen = torch.ones(x.shape[1], dtype=torch.bool)
            if len(self._groups) > 1:  # from one feature nothing could be predicted
                seen[hidden] = False
            mask = None if self.problem.mask is None else known[:, seen]
            options = dict(positive=self.problem.positive_code, mask=mask)
            codes, refits = lasso_path(atoms[:, seen], x[:, seen], alphas, **options)
            counts = known if known.ndim == 0 else known[:, hidden]
            error = (x[:, hidden] - codes @ atoms[:, hidden]) * counts
            step = (refits - codes) @ atoms[:, hidden] * counts
            pairs = (error, error), (error, step), (step, step)
            sums[:, rows] += torch.stack([(a * b).sum(2) for a, b in pairs], 2)
        square, product, length = sums.sum(1).unbind(1)
        shares = (product / length).nan_to_num(0.0).clamp(0, 1)
        best = int((square - shares * (2 * product - shares * length)).argmin())
        square, product, length = sums[best].unbind(1)
        errors = square - shares[best] * (2 * product - shares[best] * length)
        best = self._near[best]
        self._near = range(max(best - 1, 0), min(best + 2, len(_PENALTIES)))
        return errors

    def epoch(self, atoms):
        """Return the epoch of given atoms, with codes that are solved for."""
        codes = self.problem.no_codes()
        for _ in range(_CODE_EPOCHS):
            epoch = self.problem.epoch(atoms, codes)
            codes = epoch.codes
        return epoch


class _Sizes:
    """Dictionaries of several sizes, and what held-out rows say of them."""

    def __init__(self, problem, generator):
        n = len(problem.x)
        chosen = torch.zeros(n, dtype=torch.bool)
        n_held_out = min(n // _HELD_OUT, _MOST_HELD_OUT)
        chosen[torch.randperm(n, generator=generator)[:n_held_out]] = True
        self.training, held_out = (self._part(problem, rows) for rows in (~chosen, chosen))
        self.held_out, self._generator, self._best = _HeldOut(held_out), generator, {}

    @staticmethod
    def _part(problem, rows):
        mask = None if problem.mask is None else problem.mask[rows]
        return replace(problem, x=problem.x[rows], mask=mask)

    def _judge(self, atoms, codes, state):
        problem, unbiased, unbiased_codes = self.training.thinned(state.stride), atoms, codes
        for _ in range(_UNBIASED):
            epoch = problem.epoch(unbiased, unbiased_codes, refit=True)
            unbiased, unbiased_codes = epoch.improved_atoms(), epoch.codes
        errors = self.held_out.errors(unbiased)
        tried = _Tried(atoms, codes, state, self.held_out.epoch(atoms), errors)
        same = self._best.get(len(atoms), tried)
        self._best[len(atoms)] = min(same, tried, key=lambda one: one.error)
        return tried

    def settled(self, n_components):
        """Try what descent makes of samples."""
        atoms = initial_atoms(self.training.x.double(), n_components, "data", self._generator)
        state = begin(self.training, atoms)
        while state.phase == "settle" and state.epoch < _SETTLE:
            state = advance(self.training, state)
        settles = state.phase == "settle"
        atoms, codes = (state.atoms, state.codes) if settles else state.found
        return self._judge(atoms, codes, state)

    def smaller(self, larger, n_components):
        """Try a dictionary without the atoms that held-out rows miss least."""
        kept = remaining(larger.epoch, len(larger.atoms) - n_components, per_use=True)
        atoms, codes = larger.atoms[kept], larger.codes.restricted(kept)
        none = dict(best_atoms=atoms, best_codes=codes, best_objective=float("inf"))
        none |= dict(phase="smaller", curve=())
        state = replace(larger.state, atoms=atoms, previous=atoms, codes=codes, **none)
        for _ in range(_ADAPT):
            state = advance(self.training, state)
        return self._judge(state.atoms, state.codes, state)

    def is_too_small(self, one):
        """Return whether a dictionary loses against the best, which is larger."""
        best = min(self._best.values(), key=lambda tried: tried.error)
        return len(one.atoms) < len(best.atoms) and one.loses(best, self.held_out.energy)

    def path(self):  # -> SizePath
        """Return all that was tried."""
        numbers = sorted(self._best)
        tried = [self._best[number] for number in numbers]
        errors = torch.tensor([one.error for one in tried], dtype=torch.float64)
        objectives = torch.tensor([one.epoch.objective for one in tried], dtype=torch.float64)
        energy, n = self.held_out.energy, len(self.held_out.problem.x)
        return SizePath(torch.tensor(numbers), 1 - errors / (energy or 1.0), objectives / n)


def _grown(sizes, first, largest, stopped):
    """Return the last two dictionaries of a number that grows while that lowers the error."""
    before = found = sizes.settled(first)
    while len(found.atoms) < largest and not stopped():
        n_components = min(ceil(_GROWTH * len(found.atoms)), largest)
        before, found = found, sizes.settled(n_components)
        if not before.loses(found, sizes.held_out.energy):
            break
    return before, found


def choose_size(problem: Problem, generator, *, largest=None, stopped=lambda: False):
    """Choose the number of atoms by the prediction of held-out data.

    Parameters
    ----------
    problem : Problem
        Data and objective of a search.
    generator : torch.Generator
        Draws the rows that are held out, and initial atoms.
    largest : int, default=None
        The largest number; by default half the number of samples, or 16 times that of features.
    stopped : callable, default=never
        Whether to return the best so far by now.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of that number, to begin a search with. Of fewer than 20 samples as many as there are
        features or samples.
    SizePath
        The numbers that were tried.
    """
    n, m = problem.x.shape
    if n < _LEAST_ROWS:
        number = max(1, min(n, m, largest or m))
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        atoms = initial_atoms(problem.x.double(), number, "data", generator)
        return atoms, SizePath(torch.tensor([number]), unknown, unknown)
    largest = min(n // 2, _LARGEST * m) if largest is None else largest
    sizes = _Sizes(problem, generator)
    before, good = _grown(sizes, max(1, min(int(_FIRST * m), largest)), largest, stopped)
    bad = 0
    while len(good.atoms) > 1 and not bad and not stopped():
        n_components, n_before = int(_KEPT * len(good.atoms)), len(before.atoms)
        if n_components < n_before < len(good.atoms):  # one that samples have led to
            found = min(before, sizes.smaller(good, n_before), key=lambda one: one.error)
        else:
            found = sizes.smaller(good, max(1, n_components))
        if sizes.is_too_small(found):
            bad = len(found.atoms)
        else:
            good = found
    while len(good.atoms) - bad > 1 and not stopped():
        found = sizes.smaller(good, (len(good.atoms) + bad) // 2)
        if sizes.is_too_small(found):
            bad = len(found.atoms)
        else:
            good = found
    return good.atoms, sizes.path()
