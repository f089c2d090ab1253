"""Choose the penalty of codes and the number of atoms by the prediction of held-out data.

A *held-out* row or image takes no part in training. A *trial* is a dictionary or a penalty with its
prediction of the hidden entries of held-out data (`skpudle.search.held_out`). `worse` compares two
predictions: is one worse than the other by more than chance? ``debias``, from 0 to 1, is the part
of the lasso's bias that is removed: how far codes move from the lasso's codes towards least squares
on their support.

The penalty of *codes*, which `transform` uses, is chosen after a search. It differs from the
penalty of the search, which `skpudle.search.find` chooses: a search needs the penalty that finds
all atoms, and codes need the penalty that keeps least noise. Among penalties whose errors hardly
exceed the least error, the largest is chosen.

The *number of atoms* grows by half while held-out data are predicted better. Then atoms are
removed, and the remaining atoms adapt: a quarter of the atoms at a time until predictions are
worse, then fewer. The atoms that lower the objective least per use (row with a nonzero code) are
removed first. (An atom that is the sum of two atoms lowers the objective little per use and has
many uses. A rare atom of the data lowers it much, at few uses.) In rows of real data predictions
often gain with each atom, and no number is right. Growth then ends at the smallest number for which
twice the number of atoms explains hardly more. Choosing the number of atoms by growing and pruning
goes back to [1]_.

.. [1] M. Pali and K. Schnass, "Dictionary learning: from data to sparsity and beyond",
   arXiv:1804.07101.
"""

from dataclasses import replace
from functools import partial
from itertools import islice
from math import ceil, prod
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle._rows import match_equal_rows, spread_rows
from skpudle._states import Coding, Prediction, SizePath
from skpudle.lasso import solve_lasso
from skpudle.search.descend import descend, exhaust, refit_atoms, remaining, settle
from skpudle.search.find import error_of, find_atoms, noise_penalty, predicts, walk
from skpudle.search.held_out import (
    LEAST_ROWS,
)

# The bisection of `coding_of_l0` ends when the mean number of nonzero codes in a row differs from
# the wanted number by less than the fraction _CLOSE, or after _MOST_STEPS steps.
_CLOSE = 0.005
_MOST_STEPS = 30
# A smaller dictionary is good enough if it explains at most this fraction of the hidden entries'
# energy (sum of squares) less than the best dictionary. A smaller difference would mean nothing:
# training for more or fewer epochs changes the explained fraction by half of _NEGLIGIBLE. With 0
# instead, 4 of 8 data sets with 12 planted atoms and no noise get 14 or 15 atoms, and with 1e-3 two
# do (benchmarks/constants.py negligible).
_NEGLIGIBLE = 1e-3
# The number of atoms stops growing when this many larger numbers in succession predict no better,
# and removal ends when this many removals of a single atom in succession predict worse. Of 80
# planted atoms at 0 dB, 2 finds 5 more than 1 in 8,000 rows, 1 more in 5,000 rows, and 37 fewer in
# 3,000 rows (benchmarks/constants.py patience).
_PATIENCE = 2


# ------------------------------------------------------------------ penalty of codes


@torch.no_grad()
def best_coding(held_out, atoms, *, debias=None, index=None):  # -> Coding
    """Choose the penalty of codes, and the part of the lasso's bias to remove.

    Parameters
    ----------
    held_out : HeldOut
        Held-out data, whose hidden entries are predicted, and the penalty of the search.
    atoms : Tensor of shape (n_components, ...)
        Unit atoms of the search.
    debias : float, default=None
        The part of the lasso's bias to remove, from 0 to 1; None chooses the best part.
    index : int, default=None
        Where to begin: at the penalty ``2 ** (index / 2)`` times that of the search. None begins
        where `HeldOut.predict` does by default.

    Returns
    -------
    Coding
        The largest penalty whose error, after the noise is subtracted, exceeds the least error by
        at most 5 % (lasso) to 15 % (least squares), with its debiasing and the noise. If no
        entry can be predicted, as for one feature, zeros or independent features, the answer is the
        lasso at the penalty of the search.
    """
    best = held_out.zeros
    if held_out.is_predictable:
        # Where columns have different scales, the error falls in steps along the penalties: in a
        # raw table of 12 columns the atoms explain 0.05 of the hidden energy where a walk with
        # patience 1 ends, and 0.71 at a penalty 64 times smaller. Of 136 fits of raw tables with a
        # baseline, 4 lowers errors of new rows by over 0.05 variances in 5 and raises them in none.
        best = held_out.predict(atoms, index, debias=debias, patience=4)
    if not predicts(best, held_out):
        noise_std = held_out.mean_square**0.5
        return Coding(held_out.alpha, debias or 0.0, noise_std=noise_std)
    # the squared error of hidden entries that is due to their noise, estimated from its variance
    noise = held_out.noise(atoms, best) * held_out.n_hidden
    # To get sparse codes, the largest penalty is taken whose error, after the noise is subtracted,
    # is at most `factor` times the least error. With factors of 1 (the penalty of the least error)
    # rows of digits have 17 nonzero codes instead of 9, and rows of a table of wines 8 instead of
    # 4. The lasso has a smaller factor than least squares, since its error hardly changes with the
    # penalty: with 1.1 for both, reconstructions of planted data with a signal-to-noise ratio of
    # 0 dB keep an error of 0.39 instead of 0.35 of the noise.
    lasso = 1.05
    least_squares = 1.15
    factor = lasso + best.debias * (least_squares - lasso)
    largest_error = min(noise, best.total) + factor * max(best.total - noise, 0.0)
    # Errors of exact predictions differ by rounding errors, below 1e-12 of the data's mean square.
    largest_error += 1e-12 * held_out.mean_square * held_out.n_hidden
    chosen = best
    _, largest_index = held_out.index_range
    for index_above in range(best.index + 1, largest_index + 1):
        prediction = held_out.at(atoms, index_above, debias)
        if prediction.total > largest_error:
            break
        chosen = prediction
    return Coding(
        held_out.penalty(chosen.index),
        chosen.debias,
        noise_std=held_out.noise(atoms, chosen) ** 0.5,
    )


def judged(problem):  # Problem -> HeldOut
    """Return training rows as a `HeldOut`, to judge atoms and penalties where no rows are held out.

    Only the entries of the data are hidden in turn, although atoms have been trained on the same
    data. At most 200 rows are taken.
    """
    return problem.of_rows(spread_rows(len(problem.x), 200)).hide()


@torch.no_grad()
def coding_of_l0(problem, atoms, l0, *, debias=None):  # -> Coding, bool
    """Choose the penalty at which codes have ``l0`` nonzero entries in a row, on average.

    Bisection finds the penalty for the lasso. Then the part of the lasso's bias to remove is chosen
    by the prediction of hidden entries. Least squares have fewer nonzero codes, since a code whose
    sign they would turn becomes zero. So if all of the bias is removed, the penalty is found again.

    Parameters
    ----------
    problem : Problem
        Data. The penalty of the problem has no effect.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms.
    l0 : float
        The mean number of nonzero codes in a row, positive.
    debias : float, default=None
        The part of the lasso's bias to remove, from 0 to 1; None chooses the best part.

    Returns
    -------
    Coding
        Penalty, debiasing, and the mean number of codes reached.
    bool
        Whether the mean number of codes is ``l0``, to 0.5 % or one code in the sample of rows. The
        number may jump past ``l0`` from one penalty to the next.

    Raises
    ------
    ValueError
        If no penalty gives ``l0`` codes.
    """
    # `count` returns the mean numbers of positive and of negative codes in a row; at the penalty
    # `largest_alpha` all codes are zero
    count, largest_alpha, n_rows = _counter(problem, atoms)

    def find(debias):  # part of the bias to remove -> penalty, mean number of codes
        lower = largest_alpha
        n_codes = 0.0
        for _ in range(_MOST_STEPS):
            # halve the penalty until rows have at least `l0` codes
            if n_codes < l0 and lower > 0:
                upper = lower
                lower = lower / 2
                n_codes = sum(count(lower, debias))
        if n_codes < l0:
            raise ValueError(
                f"l0={l0:g} is more than the codes of these rows have for any penalty, "
                f"{n_codes:.4g}. Pass a smaller number, or rows that the atoms explain."
            )
        # then bisect between the last two penalties
        alpha = lower
        for _ in range(_MOST_STEPS):
            if abs(n_codes - l0) <= _CLOSE * l0:
                break
            alpha = (lower * upper) ** 0.5
            n_codes = sum(count(alpha, debias))
            if n_codes > l0:
                lower = alpha
            else:
                upper = alpha
        return alpha, n_codes

    alpha, n_codes = find(debias or 0.0)
    chosen_debias = _debias_at(alpha, problem, atoms, debias)
    if debias is None and chosen_debias == 1:
        alpha, n_codes = find(1.0)
    is_reached = abs(n_codes - l0) <= max(_CLOSE * l0, 1 / n_rows)
    return Coding(alpha, chosen_debias, n_codes), is_reached


@torch.no_grad()
def coding_of_support(problem, atoms, *, debias=None):  # -> Coding
    """Choose the penalty that tells best which atoms are present in a row, for non-negative codes.

    The lasso is solved for codes of both signs, although atoms are present with positive codes
    only: a negative code is false, and noise makes negative and positive codes with equal
    frequency. So the number of negative codes estimates the number of false positive codes. The
    penalty falls while at most 0.4 negative codes are new for each new positive code. (Proteomics
    counts false discoveries by decoys [1]_; knockoffs [2]_ are similar.)

    Parameters
    ----------
    problem : Problem
        Data with non-negative codes, and the penalty of a search.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms.
    debias : float, default=None
        The part of the lasso's bias to remove, from 0 to 1; None chooses the best part.

    Returns
    -------
    Coding
        The smallest penalty at which few of the new codes are false.

    Raises
    ------
    ValueError
        If already the first 100 codes, at the largest penalties, have more than 0.4 negative codes
        for each positive code, or if rows have fewer codes in all.

    References
    ----------
    .. [1] J. Elias and S. Gygi, "Target-decoy search strategy for increased confidence in
       large-scale protein identifications by mass spectrometry", Nature Methods 4, 2007.
    .. [2] R. Barber and E. Candes, "Controlling the false discovery rate via knockoffs", Annals of
       Statistics 43, 2015.
    """
    count, alpha, n_rows = _counter(problem, atoms)
    chosen = None
    n_positive = 0.0
    n_negative = 0.0
    while alpha > problem.alpha * 2.0**-10:
        positive, negative = count(alpha, 0.0, positive=False)
        new_positive = (positive - n_positive) * n_rows
        new_negative = (negative - n_negative) * n_rows
        if new_positive + new_negative >= 100:
            # Codes are new since the last accepted penalty, and fewer than 100 new codes are too
            # few for a decision. The limit of 0.4 is from benchmarks/bench_synthsae.py: there the
            # ratio is 0.05 to 0.36 at the penalties with the best F1 score of detected features,
            # and 0.48 to 1.1 at the next smaller penalties. With the true atoms the F1 score is
            # 0.86 at the best penalty, 0.76 at the next larger and 0.72 at the next smaller one.
            if new_negative > 0.4 * new_positive:
                break
            n_positive = positive
            n_negative = negative
            chosen = alpha
        alpha *= 2**-0.5
    if chosen is None:
        raise ValueError(
            "No penalty tells atoms that are present from others: codes of both signs are as "
            "frequent, or there are few rows. Pass more rows, or criterion='prediction' or l0."
        )
    return Coding(chosen, _debias_at(chosen, problem, atoms, debias))


def _debias_at(alpha, problem, atoms, debias):  # -> float
    """Return the part of the lasso's bias to remove at a penalty: ``debias`` unless it is None.

    For None it is the part that predicts the hidden entries of the training data ``problem`` best,
    or 0 if no entry can be predicted. (Index 0 of the penalties is the penalty ``alpha`` itself.)
    """
    held_out = judged(replace(problem, alpha=alpha))
    if debias is not None or not held_out.is_predictable:
        return debias or 0.0
    return held_out.at(atoms, 0).debias


def _counter(problem, atoms):  # -> callable, float, int
    """Prepare the choice of a penalty by the numbers of nonzero codes, in a sample of the rows.

    ``problem`` has the rows, and ``atoms`` are (n_components, n_features). Return three values: a
    function ``count``; the least penalty at which all codes are zero; and the number of rows in the
    sample. ``count(alpha, debias)`` returns the mean numbers of positive and of negative codes in a
    row, for the lasso with this part of its bias removed.
    """
    # The sample is limited to 2,000 rows to save time, and to 2**25 codes, including zeros, to save
    # memory (256 MiB).
    n_rows = max(1, min(2000, 2**25 // len(atoms)))
    problem = problem.of_rows(spread_rows(len(problem.x), n_rows))
    x = problem.x
    mask = problem.mask
    atoms = atoms.to(x)
    observed = x if mask is None else x * mask
    correlations = observed @ atoms.mT
    n_rows = len(x)
    most = correlations.max() if problem.positive_code else correlations.abs().max()

    def count(alpha, debias, positive=problem.positive_code):  # -> float, float
        z, _ = solve_lasso(
            atoms,
            x,
            alpha,
            positive=positive,
            debias=debias,
            certify=False,
            mask=mask,
        )
        return float((z > 0).sum()) / n_rows, float((z < 0).sum()) / n_rows

    return count, float(most), n_rows


# ------------------------------------------------------------------ number of atoms


class SizeTrial(NamedTuple):
    """The best dictionary so far, while its number of atoms is chosen.

    Attributes
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms, with which a search can begin.
    path : SizePath
        The numbers of atoms that were tried so far.
    is_last : bool
        Whether the choice has ended; ``atoms`` then have the chosen number.
    """

    atoms: Tensor
    path: SizePath
    is_last: bool


class _Dictionary(NamedTuple):
    """A dictionary that was trained and judged, while the number of atoms is chosen.

    ``coded``, an `Epoch` or `ConvEpoch`, has the atoms, and the codes of one in ``stride`` training
    samples. ``prediction`` is the prediction of the held-out data by these atoms, freed of the
    lasso's bias (`_Sizes._judge`). ``n_initial`` is the number of atoms that training began with,
    before atoms were removed.
    """

    n_components: int
    n_initial: int
    coded: object
    stride: int
    prediction: Prediction


class _Sizes:
    """Train dictionaries of several sizes, judge them by held-out data, and keep the best of each.

    `try_sizes` makes one object, and `_grow_and_shrink` calls its methods. A quarter of the rows or
    images, but at most 2,000, is held out. With fewer than four none is, and entries of the
    training data are hidden instead.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    generator : torch.Generator
        Draws the samples that are held out.
    start : callable
        ``start(n_components)`` returns initial atoms.

    Attributes
    ----------
    best : dict of int to _Dictionary
        For each number of atoms the dictionary that predicts best. The number that was tried last
        is the last key.
    settles : bool
        True for rows, whose dictionaries are trained by `descend.settle`, and False for images.
    energy : float
        The squared error of a prediction without atoms: by column means for rows, by zeros for
        images.
    """

    def __init__(
        self,
        problem,
        generator,
        start,
        *,
        settles,
    ):
        n = len(problem.x)
        n_held = min(n // 4, 2000)
        is_held = torch.zeros(n, dtype=torch.bool)
        is_held[torch.randperm(n, generator=generator)[:n_held]] = True
        self.training = problem
        judges = problem
        if n_held:
            self.training = problem.of_rows(~is_held)
            judges = problem.of_rows(is_held)
        self.held_out = judges.hide()
        self._start = start
        self.best = {}
        self.settles = settles
        if settles:
            # The score of rows compares errors with those of column means: the means of the judging
            # rows are subtracted, and then the errors are those of zeros.
            weights = judges.weigh(torch.ones(len(judges.x), dtype=torch.float64))
            n_observed = (weights @ judges.observed.double()).clamp_min(1)
            judges = judges.around(weights @ judges.x.double() / n_observed)
        self.energy = judges.hide().zeros.total or 1.0

    def _judge(self, coded, stride, n_initial):  # -> _Dictionary
        """Predict held-out data by a dictionary, and keep it if it is the best of its size.

        ``coded`` is an `Epoch` or `ConvEpoch`: the atoms, with the codes of one in ``stride``
        training samples. Training began with ``n_initial`` atoms.
        """
        # To save time, the best penalty of codes is looked for from that of the last dictionary on;
        # `index` is the number of this penalty, see `Prediction`.
        index = None
        if self.best:
            index = next(reversed(self.best.values())).prediction.index
        # Two epochs (with `still` = 0 none is left out) free the atoms of the lasso's bias, which
        # would dominate the errors in data without noise: without these epochs data with 12 planted
        # atoms were found to have 31.
        unbiased = refit_atoms(coded.problem, coded.atoms, coded.codes, 2, still=0.0)
        prediction = self.held_out.predict(unbiased, index)
        new = _Dictionary(len(coded.atoms), n_initial, coded, stride, prediction)
        # `pop`, because a key that is set again keeps its place, and the number that was tried last
        # has to be the last key
        same = self.best.pop(new.n_components, new)
        self.best[new.n_components] = min(same, new, key=error_of)
        return new

    def begin(self, n_components):  # -> _Dictionary
        """Train a new dictionary of ``n_components`` atoms from initial atoms, and judge it."""
        atoms = self._start(n_components)
        if self.settles:
            steps = settle(self.training, self.training.project(atoms), most=12)
            coded, stride = exhaust(steps)
            return self._judge(coded, stride, n_components)
        # Images take 60 epochs of a search, since only rounds of a search move atoms to the right
        # windows: with 12 epochs images with 8 planted atoms were found to have 4 or 19.
        *_, state = islice(find_atoms(self.training, atoms), 60)
        return self._judge(state.coded, 1, n_components)

    def remove(self, larger, n_components):  # _Dictionary, int -> _Dictionary
        """Make a dictionary of ``n_components`` atoms, or a few more, by removing atoms of another.

        The atoms of ``larger`` that lower the objective least per use (row with a nonzero code) are
        removed, and the rest adapts for three epochs and is judged. More atoms may remain, because
        an atom is not removed together with atoms that take over its codes, see `remaining`.
        """
        coded = larger.coded
        kept = remaining(coded, larger.n_components - n_components, per_use=True)
        steps = descend(coded.problem, coded.atoms[kept], coded.restrict(kept), 3)
        return self._judge(exhaust(steps), larger.stride, larger.n_initial)

    def begin_again(self, one, start):  # _Dictionary, callable -> _Dictionary
        """Train a dictionary of the size of ``one`` from initial atoms of another ``start``.

        So the atoms depend on the user's seed, although their number does not. Training begins with
        as many atoms as the training of ``one``, and removes as many. Return ``one`` itself if it
        predicts better than the new dictionary by more than a standard error.
        """
        self._start = start
        again = self.begin(one.n_initial)
        while again.n_components > one.n_components:
            n_kept = max(one.n_components, ceil(0.75 * again.n_components))
            again = self.remove(again, n_kept)
        return one if self.held_out.worse(again.prediction, one.prediction) else again

    def is_too_small(self, one):  # _Dictionary -> bool
        """Return whether ``one`` has too few atoms, compared with the best dictionary of all.

        The answer is True if the best dictionary has more atoms and predicts better than ``one``,
        by more than a standard error and by more than `_NEGLIGIBLE` of ``self.energy``.
        """
        best = min(self.best.values(), key=error_of)
        excess = (error_of(one) - error_of(best)) / self.energy
        return (
            one.n_components < best.n_components
            and excess > _NEGLIGIBLE
            and self.held_out.worse(one.prediction, best.prediction)
        )

    def find_enough(self, grown):  # list of _Dictionary -> _Dictionary or None
        """Choose the dictionary at which growth ends: twice its atoms explain hardly more.

        ``grown`` are the dictionaries so far, of growing size. Return the smallest dictionary for
        which this holds, or None if there is none yet. Scores between the sizes tried are
        interpolated. Also return None if the last dictionary does not predict better than the one
        before: then `walk` decides whether growth ends.
        """
        if len(grown) < 2:
            return None
        if not self.held_out.worse(grown[-2].prediction, grown[-1].prediction):
            return None
        log_sizes = np.log([one.n_components for one in grown])
        scores = np.array([1 - error_of(one) / self.energy for one in grown])
        for one, log_size, score in zip(grown, log_sizes, scores, strict=True):
            log_twice = log_size + np.log(2)
            # Growth ends if twice the number of atoms explains less than 0.02 of the hidden
            # entries' energy more. Otherwise growth would hardly end in data whose predictions gain
            # with each atom: digits take 72 atoms with this rule, and 400 to 700 atoms without; an
            # electrocardiogram in 1, 8 or 24 pieces takes 4 atoms with the rule, 8 to 21 without.
            if (
                log_twice <= log_sizes[-1]
                and np.interp(log_twice, log_sizes, scores) < score + 0.02
            ):
                return one
        return None

    def path(self):  # -> SizePath
        """Return the numbers of atoms tried so far, with scores of the best dictionary of each."""
        dictionaries = [self.best[number] for number in sorted(self.best)]
        best_errors = min(dictionaries, key=error_of).prediction.errors
        rows = []
        for one in dictionaries:
            part = one.coded.problem
            excess = one.prediction.errors - best_errors
            # the standard error of the sum of `excess`, which has a number for each row or tile
            chance = float(excess.std(correction=0)) * len(excess) ** 0.5 / self.energy
            objective = one.coded.objective * part.unit**2 / max(part.total_weight, 1)
            score = 1 - error_of(one) / self.energy
            rows.append((one.n_components, score, objective, max(chance, _NEGLIGIBLE)))
        columns = torch.tensor(rows, dtype=torch.float64).T
        numbers, scores, objectives, tolerances = columns
        return SizePath(numbers.long(), scores, objectives, tolerances)


def _grow_and_shrink(sizes, first, largest):  # yields _Dictionary
    """Increase the number of atoms while predictions gain; then remove atoms while none gets worse.

    The number grows from ``first`` to at most ``largest``. ``sizes``, a `_Sizes`, trains, judges
    and keeps dictionaries. Yield the dictionary that would be chosen so far, after each dictionary
    that was tried; the last one is the result.
    """

    def grow(tried):  # _Dictionary -> _Dictionary with half as many atoms more, or None
        n = min(ceil(1.5 * tried.n_components), largest)
        return sizes.begin(n) if n > tried.n_components else None

    grown = []
    # growth ends when `_PATIENCE` numbers in succession predict no better than the best one before,
    # by more than one standard error
    steps = walk(
        sizes.begin(first),
        grow,
        attrgetter("prediction"),
        gains=True,
        patience=_PATIENCE,
    )
    for tried, _ in steps:
        grown.append(tried)
        good = tried
        yield min(sizes.best.values(), key=error_of)
        enough = sizes.find_enough(grown)
        if enough is not None:
            yield enough
            if sizes.settles:
                return
            # Images grow to 4, 6, 9, ... atoms, so removal of atoms refines this coarse number.
            good = enough
            break
    larger = good
    n_removed = larger.n_components
    n_failed = 0
    while larger.n_components > 1 and n_failed < _PATIENCE:
        # Atoms are removed from `larger`. To save trials a removal takes up to a quarter of its
        # atoms. If predictions then are worse it is undone, and the next one takes a third as many.
        n_removed = max(1, min(n_removed, int(0.25 * larger.n_components)))
        tried = sizes.remove(larger, larger.n_components - n_removed)
        if not sizes.is_too_small(tried):
            good = tried
            larger = tried
            n_failed = 0
        elif n_removed > 1:  # begin again from `larger`, and remove fewer atoms at once
            n_removed //= 3
        else:  # go on from the failed trial: the error may fall again with another atom less
            larger = tried
            n_failed += 1
        yield good
    # A smaller dictionary, tried before growth or removal ended, may be good enough as well.
    enough = [one for one in sizes.best.values() if not sizes.is_too_small(one)]
    yield min([good, *enough], key=attrgetter("n_components"))


def try_sizes(problem, generator, *, fixed=False, start=None):  # yields SizeTrial
    """Choose the number of atoms by the prediction of held-out data.

    Equal samples count as one. Otherwise training would see copies of held-out samples, and atoms
    that fit the noise of these samples would seem to predict them.

    The number of atoms of rows does not depend on the user's seed: held-out rows, and the initial
    atoms of each number, come from a generator of their own with a fixed seed. The atoms of the
    chosen number are then trained again, from initial atoms of the user's generator.

    In rows with much noise a search at the default penalty (`auto_alpha`) finds no atoms, whatever
    their number. So a dictionary with one atom per feature first chooses a larger penalty, see
    `noise_penalty`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of a search.
    generator : torch.Generator
        Draws initial atoms. For images it also draws the images that are held out.
    fixed : bool, default=False
        Whether the user has set the penalty; it then stays.
    start : callable, default=None
        For images: ``start(n_components)`` returns initial atoms. For rows, initial atoms are
        samples.

    Yields
    ------
    SizeTrial
        The best dictionary so far, after each number that was tried. The last one has the chosen
        number. With fewer than 20 samples no number is tried, and the answer is the number of
        features or of samples, the smaller of both.
    """
    is_rows = start is None
    # For rows, `generator` first is the user's, and then one with a fixed seed.
    if is_rows:
        # Default arguments keep all samples, with copies, which `problem` loses below, and the
        # user's generator.
        def draw(n, of=problem, generator=generator):  # -> (n, n_features): samples
            x = of.x.cpu().double()
            return initial_atoms(x, n, "data", generator, weight=of.weight)

        start = draw
        # With the user's seed instead, four seeds take 153, 30, 45 and 17 atoms for digits, whose
        # codes explain 0.36 to 0.63 of new rows.
        generator = torch.Generator().manual_seed(0)
        if not fixed:
            atoms = draw(problem.x.shape[1], generator=generator)
            problem = replace(problem, alpha=noise_penalty(problem, atoms))
    distinct = match_equal_rows(problem.x, problem.mask).unique()
    if len(distinct) < len(problem.x):
        problem = problem.of_rows(distinct)
    atom_size = problem.x.shape[1] if is_rows else prod(problem.kernel)
    n = problem.x[:, :1].numel()
    if not is_rows:
        n //= atom_size  # number of disjoint patches
    if n < LEAST_ROWS:
        number = max(1, min(n, atom_size))
        unknown = torch.full((1,), torch.nan, dtype=torch.float64)
        path = SizePath(torch.tensor([number]), unknown, unknown, unknown)
        yield SizeTrial(start(number), path, True)
        return
    if is_rows:
        start = partial(draw, generator=generator)
    sizes = _Sizes(problem, generator, start, settles=is_rows)
    # At most 16 atoms for each feature, and at most one atom for two rows (or disjoint patches).
    largest = min(n // 2, 16 * atom_size)
    # Growth begins with one atom for two features of rows, or with 4 atoms of images.
    first = max(1, min(atom_size // 2 if is_rows else 4, largest))
    for good in _grow_and_shrink(sizes, first, largest):
        yield SizeTrial(good.coded.atoms, sizes.path(), False)
    path = sizes.path()
    if is_rows:
        good = sizes.begin_again(good, draw)
    yield SizeTrial(good.coded.atoms, path, True)
