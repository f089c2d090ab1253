r"""Learn the *units* of rows: a baseline, outliers, and noise that differs between entries.

A row of data is taken to be

.. math:: x_{ij} = b_j + (z_i D)_j + o_{ij} + s_i t_j \varepsilon_{ij},

with a baseline :math:`b`, sparse outliers :math:`o` (entries, or whole rows), and noise of a
standard deviation (a *scale*) :math:`t_j` for each feature and :math:`s_i` for each row. In *units*
of the noise an entry becomes :math:`(x_{ij} - b_j) / (s_i t_j)`, and outliers *do not count*: they
are treated as missing. There the noise is equal, so one penalty is right for all entries, and
errors of different entries can be compared.

A search assumes equal noise. This module learns the units before the search, from a sample of the
rows, by the prediction of *hidden* entries: each group of features is predicted by codes of the
other features of the same row (`skpudle.search.held_out`). The atoms for that come from short
descents (`skpudle.search.descend.settle`) from initial atoms that are the same for all seeds, so
that all fits of the same data decide alike.

1. *Suspects* are entries far from the median of their column, and long rows. They are examined if
   their energy (sum of squares) exceeds that of the mean atom. Atoms are learned from half of the
   rows, with the suspects, and predict the hidden suspects of the other half. If more than a tenth
   of the suspects' energy is predicted, the suspects are signals. Otherwise atoms are learned
   without the suspects, too. The suspects are outliers if these atoms predict the entries that are
   not suspects better.
2. A *baseline*, the mean, is subtracted only if hidden entries of judged rows are then predicted
   better. It is subtracted if rows then have fewer nonzero codes, too: half a code less on average.
   (Without a baseline one atom in all rows has to stand for it.) Where codes do not have mean zero,
   subtracting the mean makes codes less sparse. Then errors of hidden entries have to fall by more
   than a tenth, and by more than chance.
3. An entry is an *outlier* if the lasso gives it an error of its own, as if each entry had an atom
   of its own. The minimum of :math:`\frac12 \|x - z D - o\|^2 + \alpha \|z\|_1 + \sum_j l_j |o_j|`
   is that of Huber's loss with the limit :math:`l_j`, five standard deviations of the noise.
4. After the search, errors of hidden entries show whether the *noise of features* differs. It is
   divided out under three conditions: the noise hides signals; visible entries have residuals, too
   (otherwise the errors come from missing structure rather than from noise); and hidden entries are
   predicted better in the new units.

The variance of errors of hidden entries needs no correction for degrees of freedom. Residuals of
visible entries would need one, and would drift: a feature that is divided by a small residual
weighs more, is fitted better, and has an even smaller residual in the next round.
"""

from dataclasses import replace
from math import inf, log

import torch

from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import project_atoms
from skpudle._rows import (
    MEDIAN_OF_NORMAL,
    draw_rows,
    gaps_in,
    match_equal_rows,
    spread_rows,
)
from skpudle._states import Prediction
from skpudle._units import LONG, LassoCoder, RowNoise, Units
from skpudle.encoding._unfold import encode
from skpudle.search.descend import SETTLES, exhaust, play_rounds, settle
from skpudle.search.held_out import SURE, worse
from skpudle.search.problem import auto_alpha

# An entry is far, and so a suspect, if it lies more than 5 standard deviations from the median of
# its column. In normal noise one entry in 2 million is far.
_FAR = 5.0
# Largest fraction of outliers among entries, or among rows. If more entries are far, or more rows
# long, they are taken for data, because standard deviations are estimated by the 1 - _MOST quantile
# (`_deviations`), which a larger fraction of outliers would change.
_MOST = 0.1
# The 0.9 quantile (1 - _MOST) of the modulus of a standard normal variable.
_QUANTILE_OF_NORMAL = 1.645
# The least gain that a change of units must bring, as a difference of the logarithms of errors or
# variances; 0.1 is a fall of errors by about a tenth.
_WORTH = 0.1
# A baseline is subtracted if rows then have _SAVED nonzero codes less on average, after _BRIEF
# epochs of descent. Epochs are few because a baseline that is not subtracted costs each row a code
# only at first: later all atoms contain parts of the baseline, and the saving cannot be seen. With
# 1.0 an offset of a tenth of the entries' deviation is not found, and errors of new rows double
# (benchmarks/constants.py saved).
_SAVED = 0.5
_BRIEF = 11
# A gain by new units has to exceed this number of its standard errors. If there is no gain, chance
# exceeds this number once in 1,000 decisions.
_SURE = 3.0
# The noise of features hides signals, and so has to be divided out, if the correlation of
# log(noise) with log(noise / signal), over the features, exceeds this number. For independent noise
# and signal the correlation exceeds 0.8 if the standard deviation of log(noise) is more than 4 / 3
# times the standard deviation of log(signal). With 1.0 errors of new rows are 4 to 60 % larger for
# 30 features whose log(noise) has the deviation 1 (benchmarks/constants.py hides).
_HIDES = 0.8
# The noise of features is learned only if the energy of the residuals of visible entries is at
# least this fraction of the energy of the errors of hidden entries. A smaller fraction means that
# the errors come from missing structure rather than from noise. In 15 of 16 random data sets with
# unequal noise, of 12 to 60 features, the fraction is 0.05 to 0.98. In data sets without unequal
# noise, of 6 to 10 features, the fraction is 0 to 0.04.
_RESIDUAL = 0.05
# A baseline is subtracted if it saves codes and lowers the errors of hidden entries. Otherwise it
# has to lower the errors by more than the fraction _WORTH, and by more than _LOWERED times the
# variance, while the variance is at most _SPARSE times the mean square. Among 240 random sets of
# clean rows, half of them non-negative sums of non-negative atoms, 2.9 % get a baseline, and 4.2 %
# if saved codes decide alone and _LOWERED is 0.25. Of 278 samples of raw tables of numbers, 0.91
# score within 0.05 of the better of both choices, and 0.93 would if all had a baseline. The last
# condition has a reason: if an atom is nonzero in a fraction q of the rows, the square of its mean
# code is at most q times the mean square of its codes, so the mean of sparse rows (q < 1/2) has
# less energy than the deviations from it.
_LOWERED = 0.02
_SPARSE = 0.5
# Units are learned from a sample of the rows: from _SAMPLED_ROWS rows, or from _ROWS_PER_ATOM rows
# for each atom or feature if these are more. Atoms descend on at most half of this number of rows,
# and on _ROWS_PER_ATOM / 4 rows for each atom or feature where they decide on a baseline. The
# sample has at most _ENTRIES entries, but 1,024 rows (or all) even if these have more entries.
_SAMPLED_ROWS = 4096
_ROWS_PER_ATOM = 32
_ENTRIES = 2**19
# _SAMPLED_ATOMS: the largest number of atoms that units are learned with, since more atoms hardly
# change residuals. _JUDGES: the largest number of rows whose hidden entries judge a decision.
# _SCREENED: the smaller number of rows by which `learn_scales` sees at little cost whether the
# noise of features may differ at all.
_SAMPLED_ATOMS = 256
_JUDGES = 300
_SCREENED = 100
# Least number of rows, and of rows for each atom, from which units are learned, because atoms
# learned from fewer rows do not predict: among 160 random data sets without outliers and without
# unequal noise, units made fits worse only in data sets with 0.7 to 2.5 rows for each atom.
_FEWEST_ROWS = 60
_FEW = 4
# _AGAIN: the largest number of epochs by which atoms descend after a change of units. _ROBUST,
# _ROUNDS, _ROUNDS_OF_ROWS: the numbers of rounds that learn outliers, the noise of features, and
# the noise of rows; each round learns the atoms in new units, then the units by the new atoms.
# _STILL: rounds on features end when log(scale) changes by less than this number in all features.
_AGAIN = 9
_ROBUST = 4
_ROUNDS = 8
_ROUNDS_OF_ROWS = 3
_STILL = 0.05
# Factors on the default penalty (`auto_alpha`) of codes that predict hidden entries. The factor
# with the least error is taken, so that a penalty far from the best one does not count as noise.
_PENALTIES = 2.0, 1.0, 0.5
# The same where baselines are compared: tables of numbers have little noise.
_PENALTIES_OF_MEANS = 2.0, 1.0, 0.5, 0.25
# The least noise of a row is this quantile of the noise of the rows that units were learned from.
# Rows are divided by their noise, so a noise near zero would give a row a huge norm.
_LEAST_SCALE = 0.02
# A feature or row counts as constant if its variance is below this fraction of the median variance.
# It is left out where logarithms of variances are averaged, since its logarithm is near -infinity.
_CONSTANT = 1e-9


def least_rows(n_components):  # -> int
    """Return the least number of rows from which units are learned for ``n_components`` atoms.

    With fewer rows `partial_fit` keeps the rows, and learns the units once there are enough.
    """
    return max(_FEWEST_ROWS, _FEW * n_components)


# ------------------------------------------------------------------ statistics


def _quantile(x, fraction):  # (n, m) with NaN for missing entries -> (m,)
    """Return the quantile at ``fraction``, from 0 to 1, of each column; 0 without entries."""
    # `sort` puts NaN after the entries of a column
    last = ((~x.isnan()).sum(0) - 1).clamp_min(0)
    place = (fraction * last).long()
    return x.sort(0).values.gather(0, place[None])[0].nan_to_num()


def _deviations(distances):  # (n, m) with NaN for missing entries -> (m,)
    """Estimate the standard deviation of each column from its entries' distances to its centre.

    The estimate is the 0.9 quantile of the distances over that of a standard normal variable, so
    that outliers, up to a tenth of the entries, do no harm. A column whose quantile is zero gets
    infinity, so that no entry divided by the result is far.
    """
    deviations = _quantile(distances, 1 - _MOST) / _QUANTILE_OF_NORMAL
    return torch.where(deviations > 0, deviations, inf)


def _limit(residuals, counts):  # -> (m,)
    """Return the limit of errors of each feature, beyond which an entry is an outlier.

    It is five standard deviations of the residuals of the feature or, if larger, of all residuals.
    (1e300 stands for an infinite deviation, that of residuals that are nearly all zero.)
    ``residuals`` and ``counts``, 1 for the entries that count, are (n, m).
    """
    distances = torch.where(counts > 0, residuals.abs(), torch.nan)
    of_each = _deviations(distances)
    of_each = torch.where(of_each < inf, of_each, 0.0)
    of_all = _deviations(distances.view(-1, 1))
    return _FAR * torch.maximum(of_each, of_all).clamp_max(1e300)


def _median_size(size):  # (n,) -> scalar
    """Return the median of the positive sizes of rows; infinity if no size is positive."""
    return size[size > 0].median() if bool(size.any()) else size.new_tensor(inf)


def _suspects(x, mask):  # -> (n, m) bool, (n,) bool
    """Mark suspects, which may be outliers: far entries (n, m), and long rows (n,).

    An entry is far if it lies more than 5 standard deviations from the median of its column; if
    more than half of the entries of a row are large, the limit grows with the row's median entry.
    A row is long if the root mean square of its entries that are not far is over 3 times that of
    the median row. If more than a tenth of the entries are far, no entry is marked, and if more
    than a tenth of the rows are long, no row. ``x`` and ``mask`` are (n, m).
    """
    y = torch.where(mask > 0, x, torch.nan)
    y = y - _quantile(y, 0.5)
    distances = y.abs() / _deviations(y.abs())
    # of each row, for the limit: its median distance over that of normal entries, at least 1
    factor = (_quantile(distances.mT, 0.5) / MEDIAN_OF_NORMAL).clamp_min(1)
    far = distances > _FAR * factor[:, None]
    far &= bool(far.sum() <= _MOST * mask.sum())
    size = torch.where(far, torch.nan, y).square().nanmean(1).sqrt().nan_to_num()
    long = size > LONG * _median_size(size)
    return far, long & bool(long.double().mean() <= _MOST)


def _shrink(variances, n):  # (k,), (k,) -> (k,), float, float
    """Shrink variances of features or rows to their mean, as far as sampling errors explain them.

    Parameters
    ----------
    variances : Tensor of shape (k,)
        Estimated variances; zero and nearly constant ones are left out and get the result 1.
    n : Tensor of shape (k,)
        The number of normal values behind each estimate: its logarithm has the sampling variance
        ``2 / n``.

    Returns
    -------
    scales : Tensor of shape (k,)
        Shrunk standard deviations, divided by their geometric mean.
    mean, variance : float
        Mean of the logarithms of ``variances``, and their variance less the sampling variance.
    """
    usual = (n > 1) & (variances > _CONSTANT * variances.median())
    scales = torch.ones_like(variances)
    if int(usual.sum()) < 2:
        return scales, 0.0, 0.0
    logs = variances[usual].log()
    sampling = 2 / n[usual]
    # Estimates with small sampling errors weigh more; 1e-3 limits the differences of weights.
    weights = 1 / (sampling + 1e-3)
    weights = weights / weights.sum()
    mean = (weights * logs).sum()
    variance = (weights * ((logs - mean).square() - sampling)).sum().clamp_min(0)
    # half of the logarithm of a variance is that of the standard deviation
    scales[usual] = (0.5 * variance / (variance + sampling) * (logs - mean)).exp()
    return scales / scales.log().mean().exp(), float(mean), float(variance)


def _is_worse(one, other, least=_WORTH):  # -> bool
    """Return whether errors ``one`` are larger than ``other``, beyond chance and beyond ``least``.

    Each change of units is decided by this test. Both errors are squared errors or variances, of
    shape (n,) for ``n`` rows or features, compared pair by pair: the mean difference of their
    logarithms must exceed ``least`` and three of its standard errors.
    """
    one = (one + 1e-300).log()
    other = (other + 1e-300).log()
    exceeds = float((one - other).mean()) > least
    one = Prediction(one, float(one.sum()))
    other = Prediction(other, float(other.sum()))
    return exceeds and worse(one, other, _SURE)


def _differs(noise, signal, n):  # (m,) each -> bool
    """Return whether the noise of features differs so much that it hides signals.

    Then features should be divided by their noise. Two conditions: the variance of log(noise)
    exceeds sampling errors by more than 0.1, and the correlation of log(noise) with log(noise /
    signal) exceeds 0.8, see `_HIDES`. ``noise`` and ``signal`` are variances, estimated from ``n``
    entries.
    """
    usual = noise > _CONSTANT * noise.median()
    usual &= signal > _CONSTANT * signal.median()
    _, _, variance = _shrink(noise, n)
    if int(usual.sum()) < 3 or not variance > _WORTH:
        return False
    noise = noise[usual].log()
    signal = signal[usual].log()
    correlations = torch.corrcoef(torch.stack([noise, noise - signal]))
    return float(correlations[0, 1]) > _HIDES


def _n_codes(coded):  # Epoch -> float
    """Return the mean number of nonzero codes in a row."""
    return coded.n_entries / coded.problem.total_weight


def _unfolded_errors(coded, n_unfoldings):  # Epoch, int -> (n,)
    """Return the squared residual of each row, for codes by ``n_unfoldings`` encoder iterations."""
    problem = coded.problem
    codes = encode(
        coded.atoms,
        problem.x,
        alpha=problem.alpha,
        n_unfoldings=n_unfoldings,
        mask=problem.mask,
    )
    residual = problem.x - codes @ coded.atoms
    return (residual * problem.observed).square().sum(1)


# ------------------------------------------------------------------ learning


class _Sample:
    """The rows that units are learned from, with the baseline and the noise as learned so far.

    `learn_units`, `learn_scales` and `refine_units` make one sample each, and its methods change
    the units: ``counts``, ``centre``, ``scale`` and ``row_scale``. An entry *counts* if it is known
    and not an outlier. Shapes: ``n`` rows in the sample, ``m`` features.

    Parameters
    ----------
    problem : Problem
        All rows. A sample of the rows is drawn, and copies of rows are left out.
    n_components : int
        Number of atoms of the search.

    Attributes
    ----------
    x, observed : Tensor of shape (n, m)
        The rows, divided by ``divisor``, and the mask of their known entries.
    counts : Tensor of shape (n, m)
        1 for entries that count, 0 for outliers and missing entries.
    centre : Tensor of shape (m,)
        The baseline so far, divided by ``divisor``; zeros at first.
    scale : Tensor of shape (m,)
        The noise of features so far; ones at first.
    row_scale : Tensor of shape (n, 1)
        The noise of rows so far; ones at first.
    divisor : float
        The number by which the user's data have been divided, `Problem.unit`.
    weigh : callable
        ``weigh(values)`` multiplies values (n, ...) by the weights of rows.
    positive : bool
        Whether codes are non-negative.
    n_components : int
        Number of atoms to learn from the sample: at most 256, and at most one for 8 rows.
    is_large : bool
        Whether there are enough rows to decide on units.
    """

    def __init__(self, problem, n_components):
        n_rows, m = problem.x.shape
        n_wanted = _ROWS_PER_ATOM * max(min(n_components, _SAMPLED_ATOMS), m)
        n_wanted = max(_SAMPLED_ROWS, n_wanted)
        n_drawn = min(n_wanted, max(_ENTRIES // m, 1024))
        rows, weight = draw_rows(n_rows, n_drawn, problem.weight)
        part = replace(problem.of_rows(rows), weight=weight)
        # Copies of rows are left out: an atom can fit the noise of a row that it is learned from,
        # and would seem to predict a copy of this row among the rows that judge atoms.
        distinct = match_equal_rows(part.x, part.mask).unique()
        part = part.of_rows(distinct)
        part = replace(part, x=part.x.cpu().double())
        self._problem = part  # the rows of the sample, as a `Problem`
        self.x = part.x
        self.divisor = part.unit
        self.positive = part.positive_code
        self.weigh = part.weigh
        self.observed = part.observed
        self.is_large = len(distinct) >= least_rows(n_components)
        most_atoms = min(len(distinct) // (2 * _FEW), _SAMPLED_ATOMS)
        self.n_components = max(1, min(n_components, most_atoms))
        self.counts = self.observed
        self.row_scale = torch.ones_like(part.x[:, :1])
        self.centre = torch.zeros_like(part.x[0])
        self.scale = torch.ones_like(part.x[0])
        # the largest number of rows from which `settle` learns atoms, by default
        self._n_training_rows = n_wanted // 2

    def in_units(self, rows=slice(None)):  # -> (n_rows, m)
        """Return rows less the baseline and divided by the noise so far.

        Outliers are included: callers mask them with ``counts``. ``rows`` are numbers of rows.
        """
        return (self.x[rows] - self.centre) / (self.scale * self.row_scale[rows])

    def rows(self, n, among=None):  # -> (at most n,)
        """Choose at most ``n`` rows, to learn from or to judge; return their increasing numbers.

        Only rows with an entry that counts are chosen. ``among``, a mask of all rows of the sample,
        marks the rows to choose from; None is all rows.
        """
        used = self.counts.any(1)
        if among is not None:
            used = used & among
        used = used.nonzero().flatten()
        return used[spread_rows(len(used), n)]

    def coder(self, coded):  # Epoch -> LassoCoder
        """Return the coder of rows of the sample by the atoms and the penalty of ``coded``."""
        return LassoCoder(coded.atoms, coded.problem.alpha, self.positive)

    def settle(
        self,
        atoms=None,
        most=SETTLES,
        *,
        among=None,
        n=None,
        alpha=None,
        n_components=None,
    ):  # -> Epoch
        """Learn atoms from rows in the units so far, to judge these units.

        Outliers are treated as missing entries.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, m), default=None
            Unit atoms to start from. None: rows of the sample, the same rows for all seeds.
        most : int, default=100
            Largest number of epochs on each sample of `descend.settle`.
        among : Tensor of shape (n,), bool, default=None
            Marks the rows to learn from; None is all rows.
        n : int, default=None
            Largest number of rows to learn from; None is at least 2,048, see ``_SAMPLED_ROWS``.
        alpha : float, default=None
            Penalty; None is the default penalty, `auto_alpha`.
        n_components : int, default=None
            Number of atoms to start from if ``atoms`` is None; None is that of the sample.

        Returns
        -------
        Epoch
            The atoms, the rows (its ``problem``) and their codes, after the last epoch.
        """
        rows = self.rows(n or self._n_training_rows, among)
        x = self.in_units(rows)
        mask = gaps_in(self.counts[rows])
        part = replace(self._problem.of_rows(rows), x=x, mask=mask)
        if alpha is None:
            alpha = auto_alpha(x, mask=mask, weight=part.weight)
        if atoms is None:
            atoms = initial_atoms(
                part.x,
                n_components or self.n_components,
                "data",
                torch.Generator().manual_seed(0),
                weight=part.weight,
            )
            atoms = part.project(atoms)
        coded, _ = exhaust(settle(part, atoms, most=most, alpha=alpha))
        return coded

    def mean(self):  # -> (m,)
        """Return the candidate for a baseline: the weighted mean of the entries that count."""
        weight = self.weigh(self.counts)
        return (weight * self.x).sum(0) / weight.sum(0).clamp_min(1e-300)

    def take_mean(self, asked, n_unfoldings):
        """Decide whether to subtract a baseline: set ``centre`` to the mean of the rows or to 0.

        ``asked`` is True, False or "auto". With "auto" ``centre`` is the mean if atoms then predict
        hidden entries better and rows have half a nonzero code less, or if the errors of hidden
        entries then fall by a tenth, see ``_LOWERED``. It is the mean, too, if an encoder of
        ``n_unfoldings`` iterations (None for no such encoder) then leaves at most half of the
        squared residual that it leaves without the mean. (Few iterations cannot reach the large
        code of an atom that stands for the mean.) With "auto" there is no baseline for fewer than
        60 rows, for non-negative codes, or if the mean alone does not predict rows better than
        zeros.
        """
        mean = self.mean()
        if asked == "auto":
            can_decide = len(self.x) >= _FEWEST_ROWS and not self.positive
            asked = can_decide and self._needs(mean, n_unfoldings)
        self.centre = mean if asked else 0 * mean

    def _needs(self, mean, n_unfoldings):  # (m,), int or None -> bool
        """Return whether to subtract ``mean``, by atoms that are learned with it and without it.

        `take_mean` explains the conditions. ``centre`` changes. The number of atoms does not depend
        on the number that a search will learn, so that all numbers of atoms have the same baseline.
        """
        judges = self.rows(min(_JUDGES, len(self.x) // 2))
        # predictions by zeros and by the mean, without any atoms
        by_zeros = self._judged(judges, self.x[judges].square())
        by_mean = self._judged(judges, (self.x[judges] - mean).square())
        if not worse(by_zeros, by_mean, _SURE):
            return False
        n_components = min(len(mean), len(self.x) // (2 * _FEW), _SAMPLED_ATOMS)
        n_rows = _ROWS_PER_ATOM // 4 * len(mean)
        self.centre = mean
        around_mean = self._predict_judges(judges, n_components)
        with_mean = self.settle(most=_BRIEF, n=n_rows, n_components=n_components)
        self.centre = 0 * mean
        # at the same penalty, so that numbers of codes can be compared
        without_mean = self.settle(
            most=_BRIEF,
            n=n_rows,
            alpha=with_mean.problem.alpha,
            n_components=n_components,
        )
        if n_unfoldings:
            # An encoder of three iterations leaves 0.34 of the variance of digits without a
            # baseline, and 0.12 with one. In planted data with positive codes, where subtracting
            # the mean would make atoms worse, it leaves equal fractions with and without.
            left_without_mean = _unfolded_errors(without_mean, n_unfoldings)
            left_with_mean = _unfolded_errors(with_mean, n_unfoldings)
            if _is_worse(left_without_mean, left_with_mean, log(2)):
                return True
        around_zero = self._predict_judges(judges, n_components)
        # by how much the baseline lowers the errors of hidden entries
        lowered = around_zero.total - around_mean.total
        if _n_codes(without_mean) - _n_codes(with_mean) > _SAVED:
            return lowered > 0
        return (
            by_mean.total <= _SPARSE * by_zeros.total
            and lowered > _LOWERED * by_mean.total
            and lowered > _WORTH * around_zero.total
            and worse(around_zero, around_mean, SURE)
        )

    def _judged(self, judges, errors):  # (n_judges,), (n_judges, m) -> Prediction
        """Return squared errors of the rows ``judges``, of entries that count, as `Prediction`."""
        of_rows = (errors * self.counts[judges]).sum(1)
        of_rows = self._problem.of_rows(judges).weigh(of_rows)
        return Prediction(of_rows, float(of_rows.sum()))

    def _predict_judges(self, judges, n_components):  # (n_judges,), int -> Prediction
        """Predict hidden entries of the rows ``judges`` by ``n_components`` atoms of other rows.

        Errors are in the units of ``x``, not of the noise.
        """
        among = torch.ones(len(self.x), dtype=torch.bool)
        among[judges] = False
        coded = self.settle(
            among=among,
            n=_ROWS_PER_ATOM // 2 * self.x.shape[1],
            n_components=n_components,
        )
        coder = LassoCoder(coded.atoms, coded.problem.alpha, self.positive)
        errors, _ = coder.predict_hidden(
            self.in_units(judges), self.counts[judges], factors=_PENALTIES_OF_MEANS
        )
        return self._judged(judges, self.scale.square() * errors)

    def hidden(
        self,
        atoms,
        n_rows=_JUDGES,
        alpha=None,
        among=None,
    ):  # -> (m,) each
        """Estimate noise and signal of each feature, from the prediction of hidden entries.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, m)
            Unit atoms, in the units so far.
        n_rows : int, default=300
            Largest number of rows to predict.
        alpha : float, default=None
            Penalty of the codes; None tries three penalties around the default one.
        among : Tensor of shape (n,), bool, default=None
            Marks the rows to choose from; None is all rows.

        Returns
        -------
        noise : Tensor of shape (m,)
            Mean square of the prediction errors, times the square of ``scale``.
        signal : Tensor of shape (m,)
            Mean square of the predictions, times the square of ``scale``.
        n : Tensor of shape (m,)
            The number of normal errors whose mean square varies as much as that of the errors. It
            is smaller than the number of rows if errors have heavy tails. It tells `_shrink` how
            exact ``noise`` is.
        """
        rows = self.rows(n_rows, among)
        x = self.in_units(rows)
        counts = self.counts[rows]
        factors = (1.0,)
        if alpha is None:
            alpha = auto_alpha(x, mask=gaps_in(counts))
            factors = _PENALTIES
        coder = LassoCoder(atoms, alpha, self.positive)
        errors, predictions = coder.predict_hidden(x, counts, factors=factors)
        n = counts.sum(0).clamp_min(1)
        sum_of_squares = errors.sum(0)
        noise = self.scale.square() * sum_of_squares / n
        signal = self.scale.square() * predictions.square().sum(0) / n
        # The mean fourth power of normal errors is 3 times the square of their mean square, so this
        # is the number of errors if they are normal, and less if their tails are heavier.
        fourth_powers = errors.square().sum(0).clamp_min(1e-300)
        return noise, signal, 3 * sum_of_squares.square() / fourth_powers

    # -------------------------------------------------------------- outliers

    def find_suspects(self, n_components):  # -> (n, m), (n,); or None
        """Find suspects, entries and rows that may be outliers, and treat them as missing.

        Return the masks of far entries (n, m) and of long rows (n,) if the suspects have more
        energy (sum of squares) than the mean one of ``n_components`` atoms. Otherwise return None,
        and all known entries count. `are_outliers` then decides on the suspects.
        """
        far, long = _suspects(self.x, self.observed)
        self.counts = self.observed * ~(far | long[:, None])
        squares = self.weigh((self.x - self.mean()).square())
        of_suspects = float((squares * (self.observed - self.counts)).sum())
        if of_suspects * n_components > float((squares * self.observed).sum()):
            return far, long
        self.counts = self.observed
        return None

    def are_outliers(self, far, long):  # (n, m) bool, (n,) bool -> bool
        """Return whether suspects are outliers: not predicted by atoms, and harmful in training.

        Atoms are learned from half of the rows, with and without suspects, and predict the other
        half. The row with the largest suspects is in the first half, where it affects the atoms,
        the next row in the other half, and so on by turns. The answer is True if at least nine
        tenths of the energy of suspects is not predicted, and the other entries are predicted
        better by the atoms learned without suspects. ``counts`` is changed.
        """
        usual = self.observed * ~(far | long[:, None])
        suspected = self.observed - usual
        half = torch.zeros(len(self.x), dtype=torch.bool)
        sizes = (self.in_units().square() * suspected).sum(1)
        half[sizes.argsort(descending=True, stable=True)[::2]] = True

        # coded data (atoms with codes of rows) with suspects, and below without
        self.counts = self.observed
        with_suspects = self.settle(among=half)
        has_suspects = ~half & suspected.any(1)
        errors, energies = self._errors(
            with_suspects, self.observed, suspected, has_suspects
        )
        if errors.sum() < (1 - _WORTH) * energies.sum():
            return False
        self.counts = usual
        without_suspects = self.settle(among=half)
        others = ~half & ~long  # the other half of the rows, without long rows
        errors_with, _ = self._errors(with_suspects, usual, usual, others)
        errors_without, _ = self._errors(without_suspects, usual, usual, others)
        return _is_worse(errors_with, errors_without)

    def _errors(
        self,
        coded,
        mask,
        judged,
        among,
    ):  # -> (n_rows,), (n_rows,)
        """Predict hidden entries of at most 300 rows by the atoms of ``coded``, an `Epoch`.

        Groups of features are hidden in turn. Codes follow from the row's other entries, as far as
        ``mask`` (n, m) marks them. ``among`` (n,) marks the rows to choose from. Return for each
        row the squared error and the energy of its entries that ``judged`` (n, m) marks.
        """
        rows = self.rows(_JUDGES, among)
        x = self.in_units(rows)
        errors, _ = self.coder(coded).predict_hidden(
            x, mask[rows], factors=_PENALTIES, judged=judged[rows]
        )
        return errors.sum(1), (x.square() * judged[rows]).sum(1)

    def separate(self, long):  # (n,) bool -> Units or None
        """Learn the limits of outliers, and the units, once `are_outliers` has found outliers.

        Each round learns atoms in the units so far, codes all rows but those that ``long`` marks,
        finds the limit of errors of each feature, and marks entries with larger errors as outliers.
        All rounds but the last also learn the noise of features. The last of these sets the noise
        back to equal noise unless it differs and hidden entries are predicted better with it. So
        the last round finds the limits in the final units. ``counts`` and ``scale`` change.

        Return the units, with ``median_norm`` only if ``long`` marks a row. Return None if more
        than a tenth of the known entries would be outliers: then they are taken for data.
        """
        atoms = exhaust(play_rounds(self.settle())).atoms
        first_noise = None
        usual_rows = self.observed * ~long[:, None]
        for i in range(_ROBUST + 1):
            coded = self.settle(atoms, _AGAIN)
            atoms = coded.atoms
            coder = self.coder(coded)
            x = self.in_units()
            residuals, _ = coder.residuals(x, self.counts)
            limit = _limit(residuals, self.counts)
            self.counts = coder.usual_entries(x, usual_rows, limit)
            if i == _ROBUST:
                break
            noise, signal, n = self.hidden(atoms)
            if first_noise is None:
                first_noise = noise
            scale = self._shrunk_scale(noise, n)
            if i + 1 == _ROBUST:
                differs = _differs(noise, signal, n) and _is_worse(first_noise, noise)
                scale = scale if differs else torch.ones_like(scale)
            atoms = project_atoms(atoms * self.scale / scale)
            self.scale = scale
        if float(self.counts.sum()) < (1 - _MOST) * float(self.observed.sum()):
            return None
        # Outliers among entries get a limit only if their energy exceeds the energy of the mean
        # atom. Otherwise no single entries are outliers, at most long rows.
        squares = self.weigh(x.square() * usual_rows)
        of_outliers = float((squares * (1 - self.counts)).sum())
        has_limit = of_outliers * self.n_components > float(squares.sum())
        norms = (x * self.counts).square().mean(1).sqrt()
        # root mean square entry of the median row, in units of the user's data
        median_norm = float(_median_size(norms)) * self.divisor
        return replace(
            self.units(atoms, coder.alpha),
            limit=limit * self.divisor if has_limit else None,
            median_norm=median_norm if bool(long.any()) else None,
        )

    def _shrunk_scale(self, noise, n):  # (m,), (m,) -> (m,)
        """Return the new ``scale``: the noise of features, shrunk towards the present ``scale``.

        The part of the difference that sampling errors explain is left out, see `_shrink`.
        ``noise`` has variances of features, and ``n`` the numbers of errors behind them, as
        `hidden` returns them.
        """
        ratios, _, _ = _shrink(noise / self.scale**2, n)
        return self.scale * ratios

    def units(self, atoms=None, alpha=None):  # -> Units
        """Return the baseline and the noise of features so far as `Units`, in units of the data.

        ``atoms`` (n_components, m) and the penalty ``alpha`` of their codes are needed only for
        `Units` whose `enter` codes each row, to find its noise or its outliers.
        """
        has_baseline = bool(self.centre.any())
        is_equal = bool((self.scale == 1).all())
        return Units(
            intercept=self.centre * self.divisor if has_baseline else None,
            scale=None if is_equal else self.scale,
            atoms=atoms,
            alpha=None if alpha is None else alpha * self.divisor,
            positive_code=self.positive,
        )

    def enter(self, units):
        """Take the baseline and the noise of ``units``, a `Units`, and mark their outliers.

        ``centre``, ``scale``, ``row_scale`` and ``counts`` change.
        """
        if units.intercept is not None:
            self.centre = units.intercept.to(self.x) / self.divisor
        if units.scale is not None:
            self.scale = units.scale.to(self.x)
        _, self.counts, row_scale = units.enter(self.x * self.divisor, self.observed)
        if row_scale is not None:
            self.row_scale = row_scale

    # -------------------------------------------------------------- noise that differs

    def learn_features(self, atoms, *, asked=False):  # -> atoms or None
        """Learn the noise of features from errors of hidden entries, in rounds.

        In each round atoms descend in units of the noise so far, and the noise is estimated anew.
        Unless ``asked``, the noise is learned from half of the rows, and has to differ between
        features (`_differs`). In the first round the new units also have to predict the other half
        of the rows better than the old units, by the same atoms: atoms that descend longer would
        predict better in any units.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, m)
            Unit atoms, in the units so far.
        asked : bool, default=False
            Whether a user asks for the noise of features, even if it is equal.

        Returns
        -------
        Tensor of shape (n_components, m), or None
            The atoms in the new units; ``scale`` has the noise. None if the noise stays equal.
        """
        half = torch.arange(len(self.x)) % 2 == 0
        # If a user asks for the noise of features, the noise is learned from all rows, because a
        # feature may be nonzero in a single row, which half of the rows would miss.
        n_rows = len(self.x) if asked else _JUDGES
        learned_from = None if asked else half
        noise, signal, n = self.hidden(atoms, n_rows, among=learned_from)
        # errors of the other half in the old units; None unless the first round has to judge
        errors_before = None
        if not asked:
            if not _differs(noise, signal, n):
                return None
            errors_before, _, _ = self.hidden(atoms, among=~half)
        for _ in range(_ROUNDS):
            scale = self._shrunk_scale(noise, n)
            if float((scale / self.scale).log().abs().max()) < _STILL:
                break
            atoms = project_atoms(atoms * self.scale / scale)
            self.scale = scale
            if errors_before is not None:
                errors_after, _, _ = self.hidden(atoms, among=~half)
                if not _is_worse(errors_before, errors_after):
                    return None
                errors_before = None
            atoms = self.settle(atoms, _AGAIN).atoms
            noise, _, n = self.hidden(atoms, n_rows, among=learned_from)
        return atoms

    def learn_noise(self, noise):  # -> Units
        """Learn the noise that a user asks for, even if it turns out equal; return the units.

        ``noise`` is "features", "rows" or "both". The noise of rows is learned in rounds: each
        round estimates it from the codes of the atoms, and lets the atoms descend in the new units.
        """
        coded = exhaust(play_rounds(self.settle()))
        if noise != "rows":
            atoms = self.learn_features(coded.atoms, asked=True)
            coded = self.settle(atoms, _AGAIN)
        if noise == "features":
            return self.units()
        coder = self.coder(coded)
        for _ in range(_ROUNDS_OF_ROWS):
            units = replace(
                self.units(coder.atoms, coder.alpha),
                row_noise=self.noise_of_rows(coder),
            )
            self.enter(units)
            atoms = self.settle(coder.atoms, _AGAIN).atoms
            coder = coder._replace(atoms=atoms)
        return units

    def noise_of_rows(self, coder):  # LassoCoder -> RowNoise
        """Estimate how the noise of rows is distributed, for `Units.row_noise`.

        The noise of each row is estimated as `Units.enter` estimates the noise of a new row.
        ``row_scale`` is reset to ones, because `in_units` would otherwise divide rows by their
        noise already. The smallest noise is the 0.02 quantile.
        """
        self.row_scale = torch.ones_like(self.row_scale)
        variances, n_free = coder.noise_variances(self.in_units(), self.counts)
        scales, mean, variance = _shrink(variances, n_free)
        least = float(scales.quantile(_LEAST_SCALE))
        # variances are in units divided by `divisor`; the mean logarithm is in the user's units
        return RowNoise(mean + 2 * log(self.divisor), variance, least)


def learn_units(
    problem, n_components, *, intercept="auto", noise="auto", n_unfoldings=None
):
    """Learn units before a search: the baseline, outliers, and the noise that a user asks for.

    Parameters
    ----------
    problem : Problem
        Rows of all processes, divided by ``problem.unit``, and the signs of codes and atoms.
    n_components : int
        Number of atoms of the search.
    intercept : bool or "auto", default="auto"
        Whether to subtract a baseline; "auto" decides by the data, and never subtracts one from
        data with non-negative codes.
    noise : str or Tensor, default="auto"
        "equal", "features", "rows" or "both": what the noise differs between. "auto" and "outliers"
        look for outliers; with "auto" the caller calls `learn_scales` after the search, which
        decides on the noise of features. A tensor of shape (n_features,) is the noise of features,
        of geometric mean 1.
    n_unfoldings : int, default=None
        Number of iterations of the encoder that will code rows; None if codes converge.

    Returns
    -------
    Units
        The units; equal to ``Units()`` if the data have equal noise and neither baseline nor
        outliers.
    """
    sample = _Sample(problem, n_components)
    if not isinstance(noise, str):
        sample.scale = noise.cpu().double()
        noise = "given"
    suspects = None
    has_enough = len(sample.x) >= _FEWEST_ROWS and bool(sample.x.any())
    if noise in ("auto", "outliers") and has_enough:
        suspects = sample.find_suspects(n_components)
    sample.take_mean(intercept, n_unfoldings)
    if suspects is not None:
        far, long = suspects
        units = sample.separate(long) if sample.are_outliers(far, long) else None
        if units is not None:
            return units
        sample.scale = torch.ones_like(sample.scale)
        sample.counts = sample.observed
        # Suspects that are data change the mean, which is computed anew. But they do not decide
        # whether it is subtracted: their errors are so large that no other difference would exceed
        # chance. In raw tables of numbers 9 of 278 decisions would be wrong.
        sample.take_mean(bool(sample.centre.any()), n_unfoldings)
    if noise in ("features", "rows", "both") and len(sample.x) > 1:
        return sample.learn_noise(noise)
    return sample.units()


def learn_scales(units, problem, atoms, alpha):  # -> Units, the same if noise is equal
    """Decide after a search whether the noise of features differs, and learn it.

    If new units are returned, the caller has to search again in these units.

    Parameters
    ----------
    units : Units
        The units of the search.
    problem : Problem
        Rows of all processes, as in `learn_units`.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms of the search, in its units.
    alpha : float
        Penalty of codes that predict hidden entries, in the units of the data.

    Returns
    -------
    Units
        New units with the noise of features. Or the object ``units`` itself, if the noise does not
        differ, if there are few rows, or if ``units`` have unequal noise or outliers already.
    """
    sample = _Sample(problem, len(atoms))
    if units.scale is not None or units.looks_at_rows or not sample.is_large:
        return units
    sample.enter(units)
    atoms = atoms.cpu().double()
    alpha = alpha / sample.divisor
    rows = sample.rows(_SCREENED)
    noise, signal, n = sample.hidden(atoms, _SCREENED, alpha)
    counts = sample.counts[rows]
    coder = LassoCoder(atoms, alpha, sample.positive)
    residuals, _ = coder.residuals(sample.in_units(rows), counts)
    # If visible entries have hardly any residuals, the errors come from missing structure.
    variances = residuals.square().sum(0) / counts.sum(0).clamp_min(1)
    if variances.sum() < _RESIDUAL * noise.sum() or not _differs(noise, signal, n):
        return units
    return units if sample.learn_features(atoms) is None else sample.units()


def refine_units(units, problem, atoms, alpha):  # -> Units
    """Estimate units anew from the residuals of the final atoms, after a search.

    Only what ``units`` already have changes: the baseline, the limits of outliers and the noise of
    rows.

    Parameters
    ----------
    units : Units
        The units that the atoms were found in.
    problem : Problem
        Rows of all processes, as in `learn_units`.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms of the search, in its units.
    alpha : float
        Penalty of the codes of `transform`, in the units of the data.

    Returns
    -------
    Units
        The new units, with ``atoms``.
    """
    sample = _Sample(problem, len(atoms))
    atoms = atoms.cpu().double()
    sample.enter(units)
    divisor = sample.divisor
    counts = sample.counts
    coder = LassoCoder(atoms, alpha / divisor, sample.positive)
    residuals, _ = coder.residuals(sample.in_units(), counts)
    changes = {"atoms": atoms}
    if units.intercept is not None:
        # The baseline moves by the mean residual of rows, which are weighted by the inverse of the
        # variance of their noise.
        weights = sample.weigh(counts / sample.row_scale.square())
        errors = weights * residuals * sample.row_scale * sample.scale
        mean_errors = errors.sum(0) * divisor / weights.sum(0).clamp_min(1e-300)
        changes["intercept"] = units.intercept + mean_errors
    if units.limit is not None:
        changes["limit"] = _limit(residuals, counts) * divisor
    if units.row_noise is not None:
        coder = coder._replace(alpha=units.alpha / divisor)
        changes["row_noise"] = sample.noise_of_rows(coder)
    return replace(units, **changes)
