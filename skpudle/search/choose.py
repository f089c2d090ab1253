"""Choose penalties and the number of atoms: walks along trials, compared by `worse`.

A search begins at its usual penalty. Its atoms adapt to larger penalties while the prediction of
held-out data does not get worse; if the first is worse, to smaller penalties while they predict
better. Codes take the penalty with the least error of their own; it is another one, since a search
needs the penalty that finds all atoms, and codes the one that keeps least noise.

Of the trials that differ from the best by chance, the sparsest is chosen: the largest penalty, the
fewest atoms. On planted data chance is tiny, and the best prediction wins. On real data predictions
hardly differ, and sparser codes have atoms on which two starts agree better.

If a larger penalty explains a fifth more than the first, noise has hidden the atoms at the first
penalty: the rounds of the search begin again, one step below the best penalty. (The atoms so far
are mixtures, which predict best at a penalty that is too large for true atoms. Of 60 atoms in
20,000 rows with twice as much noise as signal 0.95 are found from one step below, and 0.78 from the
best penalty.)

The number of atoms *grows* by half while held-out data are predicted better. Then atoms are
*removed*, those first that lower the objective least per use (a sum of two saves little at many
uses, a rare atom of the data much at few), and the remaining atoms adapt: a quarter of the atoms at
a time until predictions are worse, then fewer. Rows of real data often have no such number, since
predictions gain with each atom: growth then ends at the smallest number from which twice as many
atoms explain hardly more. Sizes from the data by growing and pruning go back to [1]_.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

from dataclasses import replace
from itertools import islice
from math import ceil, prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle.lasso import solve_lasso
from skpudle.search._conv_epoch import ConvProblem
from skpudle.search._epoch import spread_rows
from skpudle.search.descend import descend, exhaust, first_stride, refit_atoms, remaining, settle
from skpudle.search.find import error_of, find_atoms, noise_penalty, predicts, walk
from skpudle.search.held_out import LEAST_ROWS, HeldOut, Prediction, match_equal_rows, worse

# Relative error of the mean number of codes at which a bisection ends, and its most steps.
_CLOSE, _MOST_STEPS = 0.005, 30
# Share of the energy that a smaller dictionary may lose without noise. Epochs of adaptation change
# scores by half of it; with 0, 12 planted atoms were counted as 14.
_NEGLIGIBLE = 1e-3
# Numbers in a row that may fail. With one, 29 of 80 planted atoms are found at 2 dB, with two 80.
_PATIENCE = 2


# ------------------------------------------------------------------ penalty of codes


class Coding(NamedTuple):
    """A penalty for codes, and how well they predict.

    Attributes
    ----------
    alpha : float
        Penalty.
    debias : float
        Share of the lasso's bias to remove.
    n_entries : float
        Mean number of nonzero codes in a row.
    noise_std : float
        Standard deviation of the noise, estimated from residuals.
    """

    alpha: float
    debias: float
    n_entries: float = float("nan")
    noise_std: float = float("nan")

    def in_units(self, unit):  # -> penalty, share of the bias to remove, deviation of the noise
        """Return the values for a learner, of data before the division by ``unit``."""
        return self.alpha * unit, self.debias, self.noise_std * unit


@torch.no_grad()
def best_coding(held_out, atoms, *, debias=None, place=None):  # -> Coding
    """Choose the penalty of codes, and the share of its bias to remove.

    Parameters
    ----------
    held_out : HeldOut
        Entries to predict, and the penalty of the search.
    atoms : Tensor of shape (n_components, ...)
        Atoms.
    debias : float, default=None
        The share; None chooses it.
    place : int, default=None
        A penalty to begin with, see `HeldOut.predict`.

    Returns
    -------
    Coding
        The largest penalty whose error, without the noise, is nearly that of the best. If no entry
        can be predicted, as for one feature, zeros or independent features, it is the lasso with
        the penalty of the search.
    """
    atoms = atoms.detach()
    unchosen = Coding(held_out.alpha, debias or 0.0, 0.0, held_out.mean_square**0.5)
    if held_out.mean_square == 0 or not held_out.is_predictable:
        return unchosen
    best = held_out.predict(atoms, place, share=debias)
    if not predicts(best, held_out):
        return unchosen
    noise = held_out.noise(atoms, best) * held_out.n_hidden
    # Factors on the smallest error, without the noise. Chance alone would give digits 17 codes a
    # row instead of 9, and tables of wines 8 instead of 4. The lasso's error hardly changes with
    # the penalty: with 1.1 for both, data at 0 dB keep an error of .39 instead of .35 of the noise.
    lasso, least_squares = 1.05, 1.15
    factor = lasso + best.share * (least_squares - lasso)
    limit = min(noise, best.total) + factor * max(best.total - noise, 0.0)
    # smaller shares of the mean square are rounding
    limit += 1e-12 * held_out.mean_square * held_out.n_hidden
    chosen = best
    for one in range(best.place + 1, held_out.places[1] + 1):
        trial = held_out.at(atoms, one, debias)
        if trial.total > limit:
            break
        chosen = trial
    ((_, entries),) = held_out.sums(atoms, [chosen.place])
    alpha, share = held_out.alpha * 2 ** (0.5 * chosen.place), chosen.share
    n_entries = float(entries[1 if share == 1 else 0])
    return Coding(alpha, share, n_entries, held_out.noise(atoms, chosen) ** 0.5)


def judged(problem):  # -> HeldOut
    """Return some of the training data to judge codes by, of atoms that have seen these data."""
    if isinstance(problem, ConvProblem):
        return HeldOut(problem)
    # rows that judge codes of training data
    return HeldOut(problem.of_rows(spread_rows(len(problem.x), 200)))


@torch.no_grad()
def coding_of_l0(problem, atoms, l0, *, debias=None):
    """Return the coding with ``l0`` nonzero codes in a row, on average.

    The penalty is found by bisection. The share of its bias to remove is chosen as in
    `best_coding`, at the penalty for the lasso's codes. If the share is 1, least squares leave out
    codes that would turn their sign, and the remaining codes are counted.

    Parameters
    ----------
    problem : Problem
        Data; the penalty has no effect.
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    l0 : float
        The number, positive.
    debias : float, default=None
        The share; None chooses it.

    Returns
    -------
    Coding
        The coding.
    bool
        Whether rows have that number of codes. It may jump from one penalty to the next.

    Raises
    ------
    ValueError
        If no penalty gives ``l0`` codes.
    """
    count, most, n_rows = _counter(problem, atoms)

    def find(share):  # -> penalty, number of codes
        lower, found = most, 0.0
        for _ in range(_MOST_STEPS):
            if found < l0 and lower > 0:
                lower, upper = lower / 2, lower
                found = sum(count(lower, share))
        if found < l0:
            raise ValueError(
                f"l0={l0:g} is more than the codes of these rows have for any penalty, {found:.4g}."
                " Pass a smaller number, or rows that the atoms explain."
            )
        alpha = lower
        for _ in range(_MOST_STEPS):
            if abs(found - l0) <= _CLOSE * l0:
                break
            alpha = (lower * upper) ** 0.5
            found = sum(count(alpha, share))
            lower, upper = (alpha, upper) if found > l0 else (lower, alpha)
        return alpha, found

    alpha, n_entries = find(debias or 0.0)
    share = _share_at(alpha, problem, atoms, debias)
    if debias is None and share == 1:
        alpha, n_entries = find(1.0)
    return Coding(alpha, share, n_entries), abs(n_entries - l0) <= max(_CLOSE * l0, 1 / n_rows)


@torch.no_grad()
def coding_of_support(problem, atoms, *, debias=None):  # -> Coding
    """Return the coding with most of the true codes, and few false codes.

    Negative codes of the signed lasso are decoys: no atom is present with a negative sign, so their
    number estimates the number of false positive codes. The penalty falls while few of the new
    codes are false. (Proteomics counts false discoveries by decoys [1]_; knockoffs [2]_ are decoys,
    too.)

    Parameters
    ----------
    problem : Problem
        Data with positive codes, and the penalty of a search.
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    debias : float, default=None
        As in `best_coding`.

    Raises
    ------
    ValueError
        If negative codes are as frequent as positive ones from the largest penalty on.

    References
    ----------
    .. [1] J. Elias and S. Gygi, "Target-decoy search strategy for increased confidence in
       large-scale protein identifications by mass spectrometry", Nature Methods 4, 2007.
    .. [2] R. Barber and E. Candes, "Controlling the false discovery rate via knockoffs", Annals of
       Statistics 43, 2015.
    """
    count, alpha, n_rows = _counter(problem, atoms)
    chosen, before = None, (0.0, 0.0)
    while alpha > problem.alpha * 2.0**-10:
        here = count(alpha, 0.0, positive=False)
        right, wrong = ((now - then) * n_rows for now, then in zip(here, before, strict=True))
        if right + wrong >= 100:
            # The penalty falls while at least 100 new codes have at most .4 false ones for each
            # right one. In benchmarks/bench_synthsae.py this share is .05 to .36 at the best
            # penalties, and .48 to 1.1 at the next smaller ones. With the true atoms F1 of features
            # is .86 at the best penalty, .76 at the next larger and .72 at the next smaller one.
            if wrong > 0.4 * right:
                break
            before, chosen = here, alpha
        alpha *= 2**-0.5
    if chosen is None:
        raise ValueError(
            "No penalty tells atoms that are present from others: codes of both signs are as "
            "frequent, or there are few rows. Pass more rows, or criterion='prediction' or l0."
        )
    return Coding(chosen, _share_at(chosen, problem, atoms, debias))


def _share_at(alpha, problem, atoms, debias):  # -> float
    held_out = judged(replace(problem, alpha=alpha))
    if debias is not None or not held_out.is_predictable:
        return debias or 0.0
    return held_out.at(atoms, 0).share


def _counter(problem, atoms):
    """Return ``count(alpha, share)`` of codes, the least penalty without codes, the number of rows.

    The counts are mean numbers of positive and of negative codes.
    """
    # most rows, and entries of their codes, to count nonzero codes in
    n_rows = max(1, min(2000, 2**25 // len(atoms)))
    problem = problem.of_rows(spread_rows(len(problem.x), n_rows))
    x, mask, atoms = problem.x, problem.mask, atoms.to(problem.x)
    known = x if mask is None else x * mask
    correlations, n_rows = known @ atoms.mT, len(x)
    most = correlations.max() if problem.positive_code else correlations.abs().max()

    def count(alpha, share, positive=problem.positive_code):
        how = dict(positive=positive, debias=share, certify=False, mask=mask)
        z, _ = solve_lasso(atoms, x, alpha, **how)
        return float((z > 0).sum()) / n_rows, float((z < 0).sum()) / n_rows

    return count, float(most), n_rows


# ------------------------------------------------------------------ number of atoms


class SizePath(NamedTuple):
    """The numbers of atoms that were tried, increasing.

    Attributes
    ----------
    n_components : Tensor of shape (n_sizes,)
        Numbers of atoms.
    score : Tensor of shape (n_sizes,)
        R^2 of hidden entries of held-out data, against the column means of rows.
    objective : Tensor of shape (n_sizes,)
        Mean objective of the search.
    tolerance : Tensor of shape (n_sizes,)
        The loss against the best score that counts as chance: the standard error of the difference,
        at least 0.001.
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


class _Tried(NamedTuple):
    """A dictionary, its training data with their codes, and how well it predicts."""

    coded: object
    stride: int
    prediction: Prediction

    @property
    def n_components(self):
        return len(self.coded.atoms)


class _Sizes:
    """Dictionaries of several sizes, judged by held-out data."""

    def __init__(self, problem, generator, start):
        n, chosen = len(problem.x), torch.zeros(len(problem.x), dtype=torch.bool)
        # a quarter of the rows, at most 2000
        n_held = min(n // 4, 2000)
        chosen[torch.randperm(n, generator=generator)[:n_held]] = True
        self.training, held_out = problem, problem
        if n_held:
            self.training, held_out = problem.of_rows(~chosen), problem.of_rows(chosen)
        self.held_out, self._start, self.best = HeldOut(held_out), start, {}
        self.energy = float(self.held_out.deviations.sum()) or 1.0
        self._settles = not isinstance(problem, ConvProblem)

    def _judge(self, coded, stride):
        place = None
        for tried in self.best.values():
            place = tried.prediction.place
        # Epochs without the lasso's bias, which would dominate the errors of noiseless data: with 0
        # epochs 12 planted atoms were counted as 31.
        unbiased = refit_atoms(coded.problem, coded.atoms, coded.codes, 2, still=0.0)
        tried = _Tried(coded, stride, self.held_out.predict(unbiased, place))
        same = self.best.pop(tried.n_components, tried)  # the last one is the last key
        self.best[tried.n_components] = min(same, tried, key=error_of)
        return tried

    def begin(self, n_components):
        """Try a dictionary that descends from samples."""
        atoms = self._start(n_components)
        if self._settles:
            atoms, stride = self.training.project(atoms), first_stride(self.training, n_components)
            # epochs of a new dictionary of rows
            return self._judge(*exhaust(settle(self.training, atoms, stride, 12)))
        # epochs of a new dictionary of images, whose atoms move in rounds: with 12 epochs 8 planted
        # atoms were counted as 4 or 19
        *_, found = islice(find_atoms(self.training, atoms), 60)
        return self._judge(found.coded, 1)

    def remove(self, larger, n_components):
        """Try a dictionary without the atoms that save least per use."""
        coded = larger.coded
        kept = remaining(coded, larger.n_components - n_components, per_use=True)
        # epochs after a removal
        steps = descend(coded.problem, coded.atoms[kept], coded.restrict(kept), 3)
        return self._judge(exhaust(steps), larger.stride)

    def is_too_small(self, one):
        """Return whether a dictionary is smaller than the best and predicts worse beyond chance."""
        best = min(self.best.values(), key=error_of)
        if one.n_components >= best.n_components:
            return False
        lost = (error_of(one) - error_of(best)) / self.energy
        return lost > _NEGLIGIBLE and worse(one.prediction, best.prediction)

    def find_enough(self, grown):
        """Return the smallest dictionary of rows of which twice as many atoms hardly explain more.

        None if there is none yet, or if predictions have stopped to gain, so that there is a number
        of atoms.
        """
        if not (self._settles and len(grown) > 1 and worse(*(o.prediction for o in grown[-2:]))):
            return None
        numbers = np.log([one.n_components for one in grown])
        scores = np.array([1 - error_of(one) / self.energy for one in grown])
        for one, number, score in zip(grown, numbers, scores, strict=True):
            twice = number + np.log(2)
            # Growth ends if twice as many atoms explain less of the hidden energy than this share.
            # Where rows have no number of atoms, predictions gain with each: 72 atoms for digits,
            # where growth would go on to 400 to 700.
            if twice <= numbers[-1] and np.interp(twice, numbers, scores) < score + 0.02:
                return one
        return None

    def path(self):  # -> SizePath
        tried = [self.best[number] for number in sorted(self.best)]
        best, rows = min(tried, key=error_of).prediction.errors, []
        for one in tried:
            part, loss = one.coded.problem, one.prediction.errors - best
            chance = float(loss.std(correction=0)) * len(loss) ** 0.5 / self.energy
            objective = one.coded.objective / max(getattr(part, "total_weight", len(part.x)), 1)
            score = 1 - error_of(one) / self.energy
            rows.append((one.n_components, score, objective, max(chance, _NEGLIGIBLE)))
        numbers, *parts = torch.tensor(rows, dtype=torch.float64).T
        return SizePath(numbers.long(), *parts)


def _grow_and_shrink(sizes, first, largest):  # yields the best dictionary so far
    """Let the number grow while predictions gain; then remove atoms while they are no worse."""

    def grow(tried):
        n = min(ceil(1.5 * tried.n_components), largest)
        return sizes.begin(n) if n > tried.n_components else None

    rule, path = dict(gains=True, patience=_PATIENCE), []
    for tried, _ in walk(sizes.begin(first), grow, lambda one: one.prediction, **rule):
        path.append(tried)
        good = found = tried
        yield min(sizes.best.values(), key=error_of)
        if (enough := sizes.find_enough(path)) is not None:
            yield enough
            return
    n_removed, n_failed = found.n_components, 0
    while found.n_components > 1 and n_failed < _PATIENCE:
        # one removal takes at most a quarter of the atoms, and after it fails a third of their
        # number
        n_removed = max(1, min(n_removed, int(0.25 * found.n_components)))
        tried = sizes.remove(found, found.n_components - n_removed)
        if not sizes.is_too_small(tried):
            good = found = tried
            n_failed = 0
        elif n_removed > 1:  # remove fewer: some may be spare
            n_removed //= 3
        else:  # one atom fewer: errors are not monotone
            found, n_failed = tried, n_failed + 1
        yield good


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
    is_rows = start is None
    if is_rows:

        def start(n, of=problem):
            x = of.x.cpu().double()
            return initial_atoms(x, n, "data", generator, weight=of.weight)

        if not fixed:
            begun = start(problem.x.shape[1])
            problem = replace(problem, alpha=noise_penalty(problem, begun))
    distinct = match_equal_rows(problem.x, problem.mask).unique()
    if len(distinct) < len(problem.x):
        problem = problem.of_rows(distinct)
    n, m = problem.n_samples, problem.x[0].numel() if is_rows else prod(problem.kernel)
    if n < LEAST_ROWS:
        number = max(1, min(n, m))
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        path = SizePath(torch.tensor([number]), unknown, unknown, unknown)
        yield SizeTrial(start(number), path, problem.alpha, True)
        return
    sizes = _Sizes(problem, generator, start)

    def trial(one, is_last=False):
        path = sizes.path()
        path = path._replace(objective=path.objective * problem.unit**2)
        return SizeTrial(one.coded.atoms, path, problem.alpha, is_last)

    # at most 16 atoms per feature
    largest = min(n // 2, 16 * m)
    # images need few atoms
    first = max(1, min(m // 2 if is_rows else 4, largest))
    for good in _grow_and_shrink(sizes, first, largest):
        yield trial(good)
    yield trial(good, is_last=True)
