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
   no suspects better.
2. A *baseline*, the mean, is subtracted if rows then have fewer nonzero codes: half a code less on
   average. (Without a baseline one atom in all rows has to stand for it.) Where codes do not have
   mean zero, subtracting the mean makes codes less sparse, so there is no baseline.
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
from skpudle._units import (
    LONG,
    RowNoise,
    Units,
    noise_variances,
    predict_hidden,
    residuals_of,
    usual_entries,
)
from skpudle.encoding._unfold import encode
from skpudle.search import held_out
from skpudle.search.descend import SETTLES, exhaust, play_rounds, settle
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
# only at first: later all atoms contain parts of the baseline, and the saving cannot be seen.
_SAVED = 0.5
_BRIEF = 11
# A gain by new units has to exceed this number of its standard errors. If there is no gain, chance
# exceeds this number once in 1,000 decisions.
_SURE = 3.0
# The noise of features hides signals, and so has to be divided out, if the correlation of
# log(noise) with log(noise / signal), over the features, exceeds this number. For independent noise
# and signal the correlation exceeds 0.8 if the standard deviation of log(noise) is more than 4 / 3
# times the standard deviation of log(signal).
_HIDES = 0.8
# The noise of features is learned only if the energy of the residuals of visible entries is at
# least this fraction of the energy of the errors of hidden entries. A smaller fraction means that
# the errors come from missing structure rather than from noise. In 15 of 16 random data sets with
# unequal noise, of 12 to 60 features, the fraction is .05 to .98. In data sets without unequal
# noise, of 6 to 10 features, the fraction is 0 to .04.
_RESIDUAL = 0.05
# The mean of the rows is taken for zero, so that there is no baseline, if the sum of its squares is
# below this number times the sum of its squared standard errors: a mean within four standard errors
# of zero could be chance.
_NEAR = 16.0
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


def _quantile(
    x, share
):  # (n, m) with NaN for missing entries, number from 0 to 1 -> (m,)
    """Return the quantile at ``share`` of each column of ``x``; 0 for a column without entries."""
    last = ((~x.isnan()).sum(0) - 1).clamp_min(0)
    return x.sort(0).values.gather(0, (share * last).long()[None])[0].nan_to_num()


def _deviations(distances):  # (n, m) with NaN for missing entries -> (m,)
    """Estimate the standard deviation of each column from its entries' distances to its centre.

    The estimate is the 0.9 quantile of the distances over that of a standard normal variable, so
    that outliers, up to a tenth of the entries, do no harm. A column whose quantile is zero gets
    infinity, so that no entry divided by the result is far.
    """
    found = _quantile(distances, 1 - _MOST) / _QUANTILE_OF_NORMAL
    return torch.where(found > 0, found, inf)


def _limit(residuals, counts):  # -> (m,)
    """Return the limit of errors of each feature, beyond which an entry is an outlier.

    It is five standard deviations of the residuals of the feature or, if larger, of all residuals.
    ``residuals`` and the mask ``counts`` are (n, m).
    """
    distances = torch.where(counts > 0, residuals.abs(), torch.nan)
    of_each = _deviations(distances)
    of_each = torch.where(of_each < inf, of_each, 0.0)
    return _FAR * torch.maximum(of_each, _deviations(distances.view(-1, 1))).clamp_max(
        1e300
    )


def _median_size(size):  # (n,) -> scalar
    """Return the median of the positive sizes of rows; infinity if no size is positive."""
    return size[size > 0].median() if bool(size.any()) else size.new_tensor(inf)


def _suspects(x, known):  # -> (n, m) bool, (n,) bool
    """Mark suspects, which may be outliers: far entries (n, m), and long rows (n,).

    An entry is far if it lies more than 5 standard deviations from the median of its column; if
    more than half of the entries of a row are large, the limit grows with the row's median entry.
    If more than a tenth of the entries are far, no entry is marked, and if more than a tenth of the
    rows are long, no row. ``x`` and the mask ``known`` are (n, m).
    """
    y = torch.where(known > 0, x, torch.nan)
    y = y - _quantile(y, 0.5)
    distances = y.abs() / _deviations(y.abs())
    of_row = (_quantile(distances.mT, 0.5) / MEDIAN_OF_NORMAL).clamp_min(1)
    far = distances > _FAR * of_row[:, None]
    far &= bool(far.sum() <= _MOST * known.sum())
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
    error = 2 / n[usual]
    # Estimates with small sampling errors weigh more; 1e-3 limits the differences of weights.
    weights = 1 / (error + 1e-3)
    weights = weights / weights.sum()
    mean = (weights * logs).sum()
    variance = (weights * ((logs - mean).square() - error)).sum().clamp_min(0)
    scales[usual] = (0.5 * variance / (variance + error) * (logs - mean)).exp()
    return scales / scales.log().mean().exp(), float(mean), float(variance)


def _is_worse(one, other, least=_WORTH):  # -> bool
    """Return whether errors ``one`` are larger than ``other``, beyond chance and beyond ``least``.

    Each change of units is decided by this test. Both errors are squared errors or variances, of
    shape (n,) for ``n`` rows or features, compared pair by pair: the mean difference of their
    logarithms must exceed ``least`` and three of its standard errors.
    """
    logs = [(squares + 1e-300).log() for squares in (one, other)]
    predictions = (
        held_out.Prediction(squares, float(squares.sum())) for squares in logs
    )
    return float((logs[0] - logs[1]).mean()) > least and held_out.worse(
        *predictions, _SURE
    )


def _differs(noise, signal, n):  # (m,) each -> bool
    """Return whether the noise of features differs so much that it hides signals.

    Then features should be divided by their noise. Two conditions: the variance of log(noise)
    exceeds sampling errors by more than `_WORTH`, and log(noise) is correlated with log(noise /
    signal), see `_HIDES`. ``noise`` and ``signal`` are variances, estimated from ``n`` entries.
    """
    usual = (noise > _CONSTANT * noise.median()) & (
        signal > _CONSTANT * signal.median()
    )
    if int(usual.sum()) < 3 or not _shrink(noise, n)[2] > _WORTH:
        return False
    noise = noise[usual].log()
    signal = signal[usual].log()
    return float(torch.corrcoef(torch.stack([noise, noise - signal]))[0, 1]) > _HIDES


# ------------------------------------------------------------------ learning


class _Sample:
    """The rows that units are learned from, with the baseline and the noise as learned so far.

    `learn_units`, `learn_scales` and `refine_units` make one sample each, and its methods change
    the units: ``counts``, ``centre``, ``scale`` and ``row_scale``. An entry *counts* if it is known
    and no outlier. Shapes: ``n`` rows in the sample, ``m`` features.

    Parameters
    ----------
    problem : Problem
        All rows. A sample of the rows is drawn, and copies of rows are left out.
    n_components : int
        Number of atoms of the search.

    Attributes
    ----------
    x, known : Tensor of shape (n, m)
        The rows, divided by ``unit``, and the mask of their known entries.
    counts : Tensor of shape (n, m)
        1 for entries that count, 0 for outliers and missing entries.
    centre : Tensor of shape (m,)
        The baseline so far, divided by ``unit``; zeros at first.
    scale : Tensor of shape (m,)
        The noise of features so far; ones at first.
    row_scale : Tensor of shape (n, 1)
        The noise of rows so far; ones at first.
    unit : float
        The unit of the problem: user's data have been divided by it.
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
        n = max(
            _SAMPLED_ROWS, _ROWS_PER_ATOM * max(min(n_components, _SAMPLED_ATOMS), m)
        )
        n_drawn = min(n, max(_ENTRIES // m, 1024))
        rows, weight = draw_rows(n_rows, n_drawn, problem.weight)
        part = replace(problem.of_rows(rows), weight=weight)
        # Copies of rows are left out: an atom can fit the noise of a row that it is learned from,
        # and would seem to predict a copy of this row among the rows that judge atoms.
        distinct = match_equal_rows(part.x, part.mask).unique()
        part = part.of_rows(distinct)
        self._part = part = replace(part, x=part.x.cpu().double())
        self.x = part.x
        self.unit = part.unit
        self.positive = part.positive_code
        self.weigh = part.weigh
        self.observed = part.observed
        self.is_large = len(distinct) >= least_rows(n_components)
        self.n_components = max(
            1, min(n_components, len(distinct) // (2 * _FEW), _SAMPLED_ATOMS)
        )
        self.counts = self.observed
        self.row_scale = torch.ones_like(part.x[:, :1])
        self.centre = torch.zeros_like(part.x[0])
        self.scale = torch.ones_like(part.x[0])
        self._n_settle = n // 2

    def in_units(self, rows=slice(None)):  # -> (n_rows, m)
        """Return rows less the baseline and divided by the noise so far.

        Outliers are included: callers mask them with ``counts``. ``rows`` are numbers of rows.
        """
        return (self.x[rows] - self.centre) / (self.scale * self.row_scale[rows])

    def rows(self, n, among=None):  # -> (at most n,)
        """Choose at most ``n`` rows, to learn from or to judge; return their increasing numbers.

        Each row has an entry that counts. ``among``, a mask of all rows of the sample, marks the
        rows to choose from; None is all rows.
        """
        used = self.counts.any(1) if among is None else among & self.counts.any(1)
        used = used.nonzero().flatten()
        return used[spread_rows(len(used), n)]

    def settle(
        self, atoms=None, most=SETTLES, *, among=None, n=None, alpha=None
    ):  # -> Epoch
        """Learn atoms from rows in the units so far, to judge these units.

        Outliers are treated as missing entries.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, m), default=None
            Unit atoms to start from. None: rows, the same for all seeds.
        most : int, default=100
            Largest number of epochs on each sample of `descend.settle`.
        among : Tensor of shape (n,), bool, default=None
            Marks the rows to learn from; None is all rows.
        n : int, default=None
            Largest number of rows to learn from; None is at least 2,048, see ``_SAMPLED_ROWS``.
        alpha : float, default=None
            Penalty; None is the default penalty, `auto_alpha`.

        Returns
        -------
        Epoch
            The atoms, the rows (its ``problem``) and their codes, after the last epoch.
        """
        rows = self.rows(n or self._n_settle, among)
        x = self.in_units(rows)
        mask = gaps_in(self.counts[rows])
        part = replace(self._part.of_rows(rows), x=x, mask=mask)
        alpha = auto_alpha(x, mask=mask, weight=part.weight) if alpha is None else alpha
        if atoms is None:
            given = part.x, self.n_components, "data", torch.Generator().manual_seed(0)
            atoms = part.project(initial_atoms(*given, weight=part.weight))
        return exhaust(settle(part, atoms, most=most, alpha=alpha))[0]

    def mean(self):  # -> (m,)
        """Return the candidate for a baseline: the weighted mean of the entries that count."""
        weight = self.weigh(self.counts)
        return (weight * self.x).sum(0) / weight.sum(0).clamp_min(1e-300)

    def take_mean(self, asked, n_unfoldings):
        """Decide whether to subtract a baseline: set ``centre`` to the mean of the rows or to 0.

        ``asked`` is True, False or "auto". With "auto" ``centre`` is the mean if rows then have
        half a nonzero code less, or if an encoder of ``n_unfoldings`` iterations (None for no such
        encoder) then leaves at most half of the squared residual. (Few iterations cannot reach the
        large code of an atom that stands for the mean.) With "auto" there is no baseline for few
        rows, for non-negative codes, or if the mean is near zero.
        """
        mean = self.mean()
        alpha = None
        n_codes = []
        left = []
        weight = self.weigh(self.counts)
        n_known = self.counts.sum(0).clamp_min(1)
        variances = (weight * (self.x - mean).square()).sum(0) / weight.sum(
            0
        ).clamp_min(1e-300)
        is_far = float(mean.square().sum()) > _NEAR * float((variances / n_known).sum())
        if asked == "auto" and is_far and self.is_large and not self.positive:
            n = _ROWS_PER_ATOM // 4 * max(self.n_components, len(mean))
            for self.centre in (mean, 0 * mean):
                coded = self.settle(most=_BRIEF, n=n, alpha=alpha)
                problem = coded.problem
                atoms = coded.atoms
                alpha = problem.alpha
                x = problem.x
                known = problem.observed
                n_codes.append(coded.n_entries / problem.total_weight)
                if n_unfoldings:
                    how = dict(
                        alpha=alpha, n_unfoldings=n_unfoldings, mask=problem.mask
                    )
                    residual = x - encode(atoms, x, **how) @ atoms
                    left.append((residual * known).square().sum(1))
            asked = n_codes[1] - n_codes[0] > _SAVED
            if n_unfoldings and not asked:
                # An encoder of three iterations leaves .34 of the variance of digits without a
                # baseline, and .12 with one. In planted data with positive codes, where subtracting
                # the mean would make atoms worse, it leaves equal fractions with and without.
                asked = _is_worse(left[1], left[0], log(2))
        self.centre = mean if asked is True else 0 * mean

    def hidden(self, atoms, n_rows=_JUDGES, alpha=None, among=None):  # -> (m,) each
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
            is smaller than the number of rows if errors have heavy tails.
        """
        rows = self.rows(n_rows, among)
        x = self.in_units(rows)
        known = self.counts[rows]
        usual = auto_alpha(x, mask=gaps_in(known))
        alphas = [factor * usual for factor in _PENALTIES] if alpha is None else [alpha]
        errors, found = predict_hidden(x, known, atoms, alphas, self.positive)
        n = known.sum(0).clamp_min(1)
        sums = (errors.sum(0), found.square().sum(0))
        # The mean fourth power of normal errors is 3 times the square of their mean square, so this
        # is the number of errors if they are normal, and less if their tails are heavier.
        n_normal = 3 * sums[0].square() / errors.square().sum(0).clamp_min(1e-300)
        return *(self.scale.square() * part / n for part in sums), n_normal

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

        # Groups of features are hidden in turn. The atoms of the Epoch `coded` predict them by
        # codes of the row's other entries, of those that `known` (n, m) marks. This is done for at
        # most _JUDGES rows: those of the second half that `among` (n,) marks. Returned (2, n_rows):
        # for each row the squared error and the energy of its entries that `judged` (n, m) marks.
        def errors_of(coded, known, judged, among):
            rows = self.rows(_JUDGES, ~half & among)
            alpha = coded.problem.alpha
            x = self.in_units(rows)
            of_rows = judged[rows]
            alphas = [f * alpha for f in _PENALTIES]
            errors, _ = predict_hidden(
                x, known[rows], coded.atoms, alphas, self.positive, of_rows
            )
            return torch.stack([errors, x.square() * of_rows]).sum(2)

        self.counts = self.observed
        before = self.settle(among=half)
        unpredicted, energy = errors_of(
            before, self.observed, suspected, suspected.any(1)
        ).sum(1)
        if unpredicted < (1 - _WORTH) * energy:
            return False
        self.counts = usual
        after = self.settle(among=half)
        return _is_worse(
            *(errors_of(one, usual, usual, ~long)[0] for one in (before, after))
        )

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
        first = None
        known = self.observed * ~long[:, None]
        for i in range(_ROBUST + 1):
            coded = self.settle(atoms, _AGAIN)
            atoms = coded.atoms
            x = self.in_units()
            how = (coded.problem.alpha, self.positive)
            limit = _limit(residuals_of(x, self.counts, atoms, *how)[0], self.counts)
            self.counts = usual_entries(x, known, atoms, *how, limit)
            if i < _ROBUST:
                noise, signal, n = self.hidden(atoms)
                first = noise if first is None else first
                scale = self.scale * _shrink(noise / self.scale**2, n)[0]
                if i + 1 == _ROBUST and not (
                    _differs(noise, signal, n) and _is_worse(first, noise)
                ):
                    scale = torch.ones_like(scale)
                atoms = project_atoms(atoms * self.scale / scale)
                self.scale = scale
        if float(self.counts.sum()) < (1 - _MOST) * float(self.observed.sum()):
            return None
        # As in `find_suspects`: outliers among entries get a limit only if their energy exceeds the
        # energy of the mean atom. Otherwise no single entries are outliers, at most long rows.
        squares = self.weigh(x.square() * known)
        are_entries = float((squares * (1 - self.counts)).sum()) * self.n_components
        norm = float(_median_size((x * self.counts).square().mean(1).sqrt()))
        return replace(
            self.units(atoms, coded.problem.alpha),
            limit=limit * self.unit if are_entries > float(squares.sum()) else None,
            median_norm=norm * self.unit if bool(long.any()) else None,
        )

    def units(self, atoms=None, alpha=None):  # -> Units
        """Return the baseline and the noise of features so far as `Units`, in units of the data.

        ``atoms`` (n_components, m) and the penalty ``alpha`` of their codes are needed only for
        `Units` whose `enter` codes each row, to find its noise or its outliers.
        """
        centred = bool(self.centre.any())
        equal = bool((self.scale == 1).all())
        return Units(
            intercept=self.centre * self.unit if centred else None,
            scale=None if equal else self.scale,
            atoms=atoms,
            alpha=None if alpha is None else alpha * self.unit,
            positive_code=self.positive,
        )

    def enter(self, units):
        """Take the baseline and the noise of ``units``, a `Units`, and mark their outliers.

        ``centre``, ``scale``, ``row_scale`` and ``counts`` change.
        """
        if units.intercept is not None:
            self.centre = units.intercept.to(self.x) / self.unit
        self.scale = self.scale if units.scale is None else units.scale.to(self.x)
        _, self.counts, scale = units.enter(self.x * self.unit, self.observed)
        self.row_scale = self.row_scale if scale is None else scale

    # -------------------------------------------------------------- noise that differs

    def learn_features(
        self, atoms, *, asked=False
    ):  # -> atoms, or None if noise stays equal
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
        told = dict(n_rows=len(self.x)) if asked else dict(among=half)
        noise, signal, n = self.hidden(atoms, **told)
        if not (asked or _differs(noise, signal, n)):
            return None
        before = None if asked else self.hidden(atoms, among=~half)[0]
        for _ in range(_ROUNDS):
            scale = self.scale * _shrink(noise / self.scale**2, n)[0]
            if float((scale / self.scale).log().abs().max()) < _STILL:
                break
            atoms = project_atoms(atoms * self.scale / scale)
            self.scale = scale
            if before is not None and not _is_worse(
                before, self.hidden(atoms, among=~half)[0]
            ):
                return None
            atoms = self.settle(atoms, _AGAIN).atoms
            before = None
            noise, _, n = self.hidden(atoms, **told)
        return atoms

    def learn_noise(self, noise):  # -> Units
        """Learn the noise that a user asks for, even if it turns out equal; return the units.

        ``noise`` is "features", "rows" or "both". The noise of rows is learned in rounds: each
        round estimates it from the codes of the atoms, and lets the atoms descend in the new units.
        """
        coded = exhaust(play_rounds(self.settle()))
        if noise != "rows":
            coded = self.settle(self.learn_features(coded.atoms, asked=True), _AGAIN)
        if noise == "features":
            return self.units()
        atoms = coded.atoms
        alpha = coded.problem.alpha
        for _ in range(_ROUNDS_OF_ROWS):
            units = replace(
                self.units(atoms, alpha), row_noise=self.noise_of_rows(atoms, alpha)
            )
            self.enter(units)
            atoms = self.settle(atoms, _AGAIN).atoms
        return units

    def noise_of_rows(self, atoms, alpha):  # -> RowNoise
        """Estimate how the noise of rows is distributed, for `Units.row_noise`.

        ``atoms`` are (n_components, m), and ``alpha`` is the penalty of their codes. The noise of
        each row is estimated as `Units.enter` estimates the noise of a new row. ``row_scale`` is
        reset to ones, because `in_units` would otherwise divide rows by their noise already. Return
        mean and variance of the logarithms of noise variances, in the units of the data, and the
        smallest noise, which is the 0.02 quantile.
        """
        self.row_scale = torch.ones_like(self.row_scale)
        variances = noise_variances(
            self.in_units(), self.counts, atoms, alpha, self.positive
        )
        scales, mean, variance = _shrink(*variances)
        least = float(scales.quantile(_LEAST_SCALE))
        return RowNoise(mean + 2 * log(self.unit), variance, least)


def learn_units(
    problem, n_components, *, intercept="auto", noise="auto", n_unfoldings=None
):
    """Learn units before a search: the baseline, outliers, and the noise that a user asks for.

    Parameters
    ----------
    problem : Problem
        Rows of all processes, divided by a unit, and the signs of codes and atoms.
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
    named = noise if isinstance(noise, str) else None
    if named is None:
        sample.scale = noise.cpu().double()
    seeks = (
        named in ("auto", "outliers")
        and len(sample.x) >= _FEWEST_ROWS
        and bool(sample.x.any())
    )
    suspects = sample.find_suspects(n_components) if seeks else None
    sample.take_mean(intercept, n_unfoldings)
    if suspects is not None:
        units = sample.separate(suspects[1]) if sample.are_outliers(*suspects) else None
        if units is not None:
            return units
        sample.scale = torch.ones_like(sample.scale)
        sample.counts = sample.observed
        sample.take_mean(intercept, n_unfoldings)
    if named in ("features", "rows", "both") and len(sample.x) > 1:
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
    alpha = alpha / sample.unit
    rows = sample.rows(_SCREENED)
    noise, signal, n = sample.hidden(atoms, _SCREENED, alpha)
    x = sample.in_units(rows)
    known = sample.counts[rows]
    residuals, _ = residuals_of(x, known, atoms, alpha, sample.positive)
    squares = residuals.square().sum(0) / known.sum(0).clamp_min(1)
    if squares.sum() < _RESIDUAL * noise.sum() or not _differs(noise, signal, n):
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
    unit = sample.unit
    counts = sample.counts
    given = sample.in_units(), counts, atoms, alpha / unit, sample.positive
    residuals, _ = residuals_of(*given)
    changes = dict(atoms=atoms)
    if units.intercept is not None:
        weights = sample.weigh(counts / sample.row_scale.square())
        errors = (weights * residuals * sample.row_scale * sample.scale).sum(0) * unit
        changes["intercept"] = units.intercept + errors / weights.sum(0).clamp_min(
            1e-300
        )
    if units.limit is not None:
        changes["limit"] = _limit(residuals, counts) * unit
    if units.row_noise is not None:
        changes["row_noise"] = sample.noise_of_rows(atoms, units.alpha / unit)
    return replace(units, **changes)
