r"""Learn the units of rows: a baseline, outliers, and noise that differs.

A row is

.. math:: x_{ij} = b_j + (z_i D)_j + o_{ij} + s_i t_j \varepsilon_{ij},

with a baseline :math:`b`, sparse outliers :math:`o` (entries, or whole rows), and noise of a scale
:math:`t_j` for each feature and :math:`s_i` for each row. In units of the noise, :math:`(x_{ij} -
b_j) / (s_i t_j)`, without the outliers, all methods that assume equal noise are right: one penalty,
exact codes, errors of held-out entries.

A search assumes equal noise. What it gets is learned from a sample of rows, from atoms that settle
there from the same rows for all seeds, so that all fits of the same data decide alike:

1. *Suspects* are entries far from their column's median, and long rows. If they hold the energy of
   an atom, atoms of half of the rows predict the suspects of the other half, which are hidden in
   turn. Of signals more than a tenth is predicted. Otherwise atoms settle without the suspects,
   which are outliers if these atoms predict the usual entries better, from the usual entries alone.
2. The *baseline* is taken if it saves most rows a code, as an offset does, which is an atom in all
   rows. Where codes are not centred, rows minus their mean have no sparse codes.
3. An entry is an *outlier* if the lasso gives it an error of its own, as an atom beside the atoms:
   the minimum of :math:`\frac12 \|x - z D - o\|^2 + \alpha \|z\|_1 + \sum_j l_j |o_j|` is that of
   the loss of Huber with the limit :math:`l_j`, five deviations of the noise.
4. After the search, hidden entries tell whether the *noise of features* differs. It is taken into
   account if it hides signals, if entries that are seen have residuals, too (what atoms cannot
   predict is no noise), and if hidden entries are predicted better in units of the noise.

Variances of hidden entries need no degrees of freedom. Those of residuals do, and drift: each round
divides by them, and features of large weight are fitted better in the next round.

.. [1] J. Chen and Z. Chen, "Extended Bayesian information criteria for model selection with large
   model spaces", Biometrika 95, 2008.
"""

from dataclasses import dataclass, replace
from math import inf, log, log2

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows
from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import atom_norms, project_atoms
from skpudle.encoding._unfold import encode
from skpudle.lasso._solve import lasso_path, solve_lasso
from skpudle.search import held_out
from skpudle.search._epoch import draw_rows, spread_rows
from skpudle.search.descend import SETTLES, descend, exhaust, first_stride, play_rounds, settle
from skpudle.search.problem import auto_alpha

# An entry is far from 5 standard deviations on: one in 2 million entries of normal noise.
_FAR = 5.0
# An error of its own costs 1.5 times a code of a unit atom, where noise is low: atoms explain a row
# of many codes first. Rows of usual entries that 1 takes for outliers have errors of 1.2 to 3.4 of
# the noise in three sets, and .5 to .7 with 1.5; with 3 atoms learn the spikes of planted families.
_DEARER = 1.5
# A row is long from 3 times the median norm on: norms of rows of k normal codes vary by a share of
# (2 k)**-0.5.
_LONG = 3.0
# At most a tenth are outliers, which is the breakdown point of the deviations; more are the data.
_MOST = 0.1
# The quantile of 1 - _MOST of |e| for normal noise.
_TENTH = 1.645
# The least unpredicted share of the energy of an outlying row, which varies: it is 1.0 to 1.3 on
# average. Of all suspects together nine tenths are unpredicted: .80 to 2.0 in planted outliers, at
# most .88 in 9 of 460 random families of clean rows, whose fits without these suspects have 1.1 to
# 490 times the error.
_UNPREDICTED = 0.5
# The least gain that pays, of the logarithms of errors and of variances: a tenth.
_WORTH = 0.1
# Codes a row that a baseline saves, and the epochs after which it does: an offset is an atom in all
# rows, and costs each row a code; later atoms have grown into it.
_SAVED, _BRIEF = 0.5, 10
# Standard errors of a gain: one in a thousand by chance.
_SURE = 3.0
# Noise hides signals if log(noise) correlates so with log(noise / signal): it differs 4 / 3 as much
# as signals do.
_HIDES = 0.8
# Least energy of residuals as a share of that of errors of hidden entries. It is .05 to .98 where
# noise differs (15 of 16 draws of 12 to 60 features), 0 to .04 in clean rows of 6 to 10 features.
_RESIDUAL = 0.05
# Squared standard errors of a mean that is no baseline.
_NEAR = 16.0
# Rows to learn from, or rows for each atom and feature, of up to so many entries; half of them let
# atoms settle, and a quarter of the rows for each atom decide on a baseline. Most atoms, since
# their number hardly changes residuals, and rows that judge or screen.
_ROWS, _ROWS_PER_ATOM, _ENTRIES = 4096, 32, 2**19
_ATOMS, _JUDGES, _SCREENED = 256, 300, 100
# Least rows, and rows for each atom, that decide. Atoms of fewer rows do not predict, and all harm
# among 160 families of clean rows came from families with 0.7 to 2.5 rows for an atom.
_LEAST_ROWS, _FEW = 60, 4
# Epochs in which atoms settle again; rounds of outliers, of features and of rows; the
# change that ends rounds.
_AGAIN, _ROBUST, _ROUNDS, _ROUNDS_OF_ROWS, _STILL = 8, 4, 8, 3, 0.05
# Factors on the penalty of codes that predict hidden entries.
_PENALTIES = 2.0, 1.0, 0.5
# Factors on the penalty of codes whose residuals are the noise of a row. With the first alone quiet
# rows of 50 dB, in which a code is missed, have 17 times the error.
_PENALTIES_OF_ROWS = 1.0, 0.5, 0.25
# Share of rows that are less noisy than the least scale of a row.
_LEAST_SCALE = 0.02
# Share of the median variance below which a feature or row is constant.
_CONSTANT = 1e-9


@dataclass(frozen=True, eq=False)
class Units:
    """A baseline, outliers, and how the noise of entries differs.

    Parameters
    ----------
    intercept : Tensor of shape (n_features,), default=None
        The baseline; None is zero.
    scale : Tensor of shape (n_features,), default=None
        Noise of features, of geometric mean 1; None if it is equal.
    rows : tuple (mean, variance, least), default=None
        Mean and variance of the logarithms of the variances of rows, which shrink the estimate of a
        new row, and the smallest scale of a row; None if their noise is equal.
    limit : Tensor of shape (n_features,), default=None
        The largest error of an entry, in units of the features' noise. An entry with an error of
        its own is missing. None: all entries count.
    norm : float, default=None
        Root mean square entry of the median row. A fit leaves out longer rows that atoms do not
        predict; `transform` does not.
    atoms : Tensor of shape (n_components, n_features), default=None
        Unit atoms, in units of the noise, that explain rows.
    alpha : float, default=None
        Penalty of their codes.
    positive_code : bool, default=False
        Whether these codes are non-negative.
    """

    intercept: Tensor | None = None
    scale: Tensor | None = None
    rows: tuple | None = None
    limit: Tensor | None = None
    norm: float | None = None
    atoms: Tensor | None = None
    alpha: float | None = None
    positive_code: bool = False

    @property
    def looks_at_rows(self):
        """Whether the units of a row depend on its entries."""
        return not (self.rows is self.limit is self.norm is None)

    @property
    def is_equal(self):
        """Whether all entries count, with the same noise."""
        return self.scale is None and not self.looks_at_rows

    @property
    def changes_nothing(self):
        """Whether rows stay as they are."""
        return self.intercept is None and self.is_equal

    def of_new_rows(self):
        """Return the units of rows outside of a fit, where all rows count."""
        return replace(self, norm=None)

    def limit_in_data(self):  # -> (n_features,)
        """Return the limit in the units of the data."""
        return self.limit if self.scale is None else self.limit * self.scale.to(self.limit)

    def centre(self, x):  # (n, n_features) -> the same
        """Return rows without the baseline, in units of the features' noise."""
        x = x if self.intercept is None else x - self.intercept.to(x)
        return x if self.scale is None else x / self.scale.to(x)

    def enter(self, x, mask=None):  # -> x, mask, scales (n, 1) or None
        """Return rows in units of the noise, the entries that count, and the scale of each row.

        A row is taken alone: its scale and its outliers follow from its own entries.
        """
        x = self.centre(x)
        if not self.looks_at_rows:
            return x, mask, None
        known = torch.ones_like(x) if mask is None else mask
        parts = (self._enter(x[rows], known[rows]) for rows in blocks_of_rows(len(x), x.shape[1]))
        known, scale = map(torch.cat, zip(*parts, strict=True))
        known = None if mask is None and bool(known.all()) else known
        return (x, known, None) if self.rows is None else (x / scale, known, scale)

    def _enter(self, x, known):  # -> known, scale
        unit = 2.0 ** round(log2(self.alpha))  # no square overflows
        y, counts = torch.where(known > 0, x, 0.0).double() / unit, known.double()
        how = self.atoms.to(y), self.alpha / unit, self.positive_code
        scale = torch.ones_like(y[:, :1])
        if self.rows is not None:
            (mean, variance, least), (variances, free) = self.rows, _variances(y, counts, *how)
            logs = variances.clamp_min(1e-300).log() + 2 * log(unit) - mean
            scale = (0.5 * variance / (variance + 2 / free) * logs).exp().clamp_min(least)[:, None]
            scale = torch.where(counts.any(1, keepdim=True), scale, 1.0)
        if self.limit is not None:
            counts = _usual_entries(y, counts, *how, self.limit.to(y) / unit)
        if self.norm is not None:
            counts = counts * ~_outlying_rows(y, counts, *how, self.norm / unit)[:, None]
        return counts.to(known), scale.to(x)

    def of_features(self, features):
        """Return the units of some features."""
        parts = {name: getattr(self, name) for name in ("intercept", "scale", "limit")}
        known = {name: part[..., features] for name, part in parts.items() if part is not None}
        return replace(self, **known)

    def to_user(self, atoms):  # (p, n_features) -> the same
        """Return atoms in the units of the data, with the norms that they have in the noise's."""
        return atoms if self.scale is None else _with_norms(atoms * self.scale.to(atoms), atoms)

    def from_user(self, atoms):  # (p, n_features) -> the same
        """Return the inverse of `to_user`."""
        return atoms if self.scale is None else _with_norms(atoms / self.scale.to(atoms), atoms)

    def gains(self, atoms):  # (p, n_features) of `to_user` -> (p,)
        """Return the ratio of codes in units of the noise to codes in the user's units."""
        if self.scale is None:
            return atoms.new_ones(len(atoms))
        gains = atom_norms(atoms / self.scale.to(atoms)) / atom_norms(atoms)
        return gains.nan_to_num(1.0, 1.0).flatten()


CENTRED = Units()  # equal noise around zero


def _with_norms(atoms, others):
    norms = atom_norms(atoms)
    return atoms * torch.where(norms > 0, atom_norms(others) / norms, 1.0)


# ------------------------------------------------------------------ rows and their atoms


def _variances(x, known, atoms, alpha, positive):  # -> (n,), (n,)
    """Return the variances of the noise of rows, and their degrees of freedom.

    A quiet row needs a smaller penalty: an atom that its codes miss would count as noise. Each row
    takes the support of the path with the least extended information criterion, which allows for
    the choice of ``k`` of ``p`` atoms [1]_, among those of at most half of the entries.
    """
    n, best = known.sum(1), torch.full_like(x[:, 0], inf)
    variances, free = torch.zeros_like(best), torch.zeros_like(best)
    for factor in _PENALTIES_OF_ROWS:
        residuals, k = held_out.residuals_of(x, known, atoms, factor * alpha, positive)
        squares = residuals.square().sum(1)
        cost = k * (n.clamp_min(1) * len(atoms) ** 2).log()
        criterion = n * squares.clamp_min(1e-300).log() + cost
        better = (criterion < best) & (k <= n / 2) | (free == 0)
        best = torch.where(better, criterion, best)
        free = torch.where(better, (n - k).clamp_min(1), free)
        variances = torch.where(better, squares / free, variances)
    return variances, free


def _usual_entries(x, known, atoms, alpha, positive, limit):  # -> (n, m)
    """Return the entries without an error of their own beyond the limit, see the module.

    Errors are free of the lasso's bias. Its penalty is at most a share of the least limit: where
    noise is low, codes would otherwise cost more than errors of all entries.
    """
    alpha = min(alpha, float(limit.min()) / _DEARER)
    own = torch.diag(alpha / limit)
    both = torch.cat([atoms, own, -own] if positive else [atoms, own])
    options = dict(positive=positive, mask=held_out.gaps_in(known), certify=False, debias=1.0)
    codes, _ = solve_lasso(both, x, alpha, **options)
    errors = codes[:, len(atoms) :].reshape(len(x), -1, len(own)).abs().amax(1)
    return known * (errors * alpha <= limit.square())


def _outlying_rows(x, known, atoms, alpha, positive, norm):  # -> (n,) bool
    """Mark long rows whose hidden entries are not predicted."""
    squares = (x * known).square().sum(1)
    found = squares > (_LONG * norm) ** 2 * known.sum(1)
    y, known = x[found], known[found]
    y = y * norm * (known.sum(1) / squares[found]).sqrt()[:, None]  # of the usual length
    errors, _ = _predict(y, known, atoms, alpha, positive, factors=(1.0,))
    found[found.clone()] = errors.sum(1) > _UNPREDICTED * (y * known).square().sum(1)
    return found


def _predict(x, known, atoms, alpha, positive, *, judged=None, factors=_PENALTIES):
    """Return squared errors and predictions of entries that are hidden in turn, (n, m) each.

    They are those of the penalty, and of the lasso or of least squares, with the least error of the
    entries that are ``judged``.
    """
    found = x.new_zeros(2 * len(factors), *x.shape)
    for seen, hidden in held_out.hide_in_turn(torch.arange(x.shape[1])):
        options = dict(positive=positive, mask=held_out.gaps_in(known[:, seen]))
        alphas = [factor * alpha for factor in factors]
        codes = torch.cat(lasso_path(atoms[:, seen], x[:, seen], alphas, **options))
        found[:, :, hidden] = codes @ atoms[:, hidden]
    errors = (x - found).square() * (known if judged is None else judged)
    best = int(errors.sum((1, 2)).argmin())
    return errors[best], found[best] * known


# ------------------------------------------------------------------ statistics


def _quantiles(x, *shares):  # (n, m), with NaN for gaps -> (m,) each, 0 without entries
    ordered = np.sort(x, axis=0)
    last = np.maximum((~np.isnan(ordered)).sum(axis=0) - 1, 0)
    places = ((share * last).astype(int)[None] for share in shares)
    found = (np.take_along_axis(ordered, place, axis=0)[0] for place in places)
    return [torch.as_tensor(quantile).nan_to_num() for quantile in found]


def _deviations(distances):  # (n, m), with NaN for gaps -> (m,)
    """Return standard deviations by two quantiles of distances; infinite where most are zero."""
    half, outer = _quantiles(distances, 0.5, 1 - _MOST)
    found = torch.maximum(half / held_out.MEDIAN_OF_NORMAL, outer / _TENTH)
    return torch.where(found > 0, found, inf)


def _limit(residuals, counts):  # -> (m,)
    """Return the limit of errors of usual entries: deviations of each feature, or of all."""
    distances = torch.where(counts > 0, residuals.abs(), torch.nan)
    of_each = _deviations(distances)
    of_each = torch.where(of_each < inf, of_each, 0.0)
    return _FAR * torch.maximum(of_each, _deviations(distances.view(-1, 1))).clamp_max(1e300)


def _median_size(size):  # (n,) -> scalar
    return size[size > 0].median() if bool(size.any()) else size.new_tensor(inf)


def _suspects(x, known, *, centres):  # -> (n, m) bool, (n,) bool
    """Mark far entries, in deviations of their column and of their row, and long rows."""
    y = torch.where(known > 0, x, torch.nan)
    y = y - _quantiles(y, 0.5)[0] if centres else y
    distances = y.abs() / _deviations(y.abs())
    of_row = (_quantiles(distances.mT, 0.5)[0] / held_out.MEDIAN_OF_NORMAL).clamp_min(1)
    far = distances > _FAR * of_row[:, None]
    far &= bool(far.sum() <= _MOST * known.sum())
    size = torch.where(far, torch.nan, y).square().nanmean(1).sqrt().nan_to_num()
    long = size > _LONG * _median_size(size)
    return far, long & bool(long.double().mean() <= _MOST)


def _shrink(variances, n):  # (k,), (k,) -> deviations, mean and variance of logarithms
    """Return deviations of geometric mean 1; logarithms shrink by their sampling error, 2 / n."""
    usual = (n > 1) & (variances > _CONSTANT * variances.median())
    scales = torch.ones_like(variances)
    if int(usual.sum()) < 2:
        return scales, 0.0, 0.0
    logs, error = variances[usual].log(), 2 / n[usual]
    weights = 1 / (error + 1e-3)
    weights = weights / weights.sum()
    mean = (weights * logs).sum()
    variance = (weights * ((logs - mean).square() - error)).sum().clamp_min(0)
    scales[usual] = (0.5 * variance / (variance + error) * (logs - mean)).exp()
    return scales / scales.log().mean().exp(), float(mean), float(variance)


def _is_worse(one, other, least=_WORTH, errors=_SURE):
    """Return whether logarithms of errors are larger on average, by so much and beyond chance."""
    logs = [(squares + 1e-300).log() for squares in (one, other)]
    predictions = (held_out.Prediction(squares, float(squares.sum())) for squares in logs)
    return float((logs[0] - logs[1]).mean()) > least and held_out.worse(*predictions, errors)


def _differs(noise, signal, n):  # (m,) each -> bool
    """Return whether noise differs, and hides signals."""
    usual = (noise > _CONSTANT * noise.median()) & (signal > _CONSTANT * signal.median())
    if int(usual.sum()) < 3 or not _shrink(noise, n)[2] > _WORTH:
        return False
    noise, signal = noise[usual].log(), signal[usual].log()
    return float(torch.corrcoef(torch.stack([noise, noise - signal]))[0, 1]) > _HIDES


# ------------------------------------------------------------------ learning


def _settle(problem, n_components, atoms=None, n_epochs=SETTLES):  # -> Epoch
    """Return the epoch of atoms that have settled, by default from the same rows for all seeds."""
    if atoms is None:  # in some of the rows, and then in all of them
        n = _ROWS_PER_ATOM // 4 * max(n_components, problem.x.shape[1])
        part = problem.thinned(max(1, len(problem.x) // n))
        given = part.x, n_components, "data", torch.Generator().manual_seed(0)
        atoms = problem.project(project_atoms(initial_atoms(*given, weight=part.weight)))
        if part is not problem:
            atoms = _settle(part, n_components, atoms).atoms
    return exhaust(descend(problem, atoms, problem.first_codes(atoms), 1 + n_epochs))


def _find_missing(problem, atoms):  # -> atoms
    """Return atoms after the rounds of a search, which find missing ones."""
    settled, _ = exhaust(settle(problem, atoms, first_stride(problem, len(atoms))))
    return exhaust(play_rounds(settled)).atoms


class _Sample:
    """Rows that units are learned from, divided by the unit of a problem.

    ``counts`` marks the entries that count, and ``centre``, ``scale`` and ``row_scale`` are the
    present units.
    """

    def __init__(self, problem, n_components):
        n_rows, m = problem.x.shape
        n = max(_ROWS, _ROWS_PER_ATOM * max(min(n_components, _ATOMS), m))
        n_drawn = min(n, max(_ENTRIES // m, 1024))
        rows, weight = draw_rows(n_rows, n_drawn, problem.weight)
        part = replace(problem.of_rows(rows), weight=weight)
        distinct = held_out.match_equal_rows(part.x, part.mask).unique()  # judges have no copies
        part = part.of_rows(distinct)
        self._part = part = replace(part, x=part.x.cpu().double())
        self.x, self.unit, self.positive = part.x, part.unit, part.positive_code
        self.weighted = part.weighted
        self.known = part.known
        self.is_large = len(distinct) >= max(_LEAST_ROWS, _FEW * n_components)
        self.n_components = max(1, min(n_components, len(distinct) // (2 * _FEW), _ATOMS))
        self.counts, self.row_scale = self.known, torch.ones_like(part.x[:, :1])
        self.centre, self.scale = torch.zeros_like(part.x[0]), torch.ones_like(part.x[0])
        self._n_settle = n // 2

    def in_units(self, rows=slice(None)):
        """Return some rows in the present units."""
        return (self.x[rows] - self.centre) / (self.scale * self.row_scale[rows])

    def rows(self, n, among=None):
        """Return the numbers of some rows with entries that count."""
        used = self.counts.any(1) if among is None else among & self.counts.any(1)
        used = used.nonzero().flatten()
        return used[spread_rows(len(used), n)]

    def problem(self, among=None, n=None):
        """Return the problem of some rows with entries that count."""
        rows = self.rows(n or self._n_settle, among)
        x, mask = self.in_units(rows), held_out.gaps_in(self.counts[rows])
        part = replace(self._part.of_rows(rows), x=x, mask=mask)
        return replace(part, alpha=auto_alpha(x, mask=mask, weight=part.weight))

    def mean(self):  # -> (m,), bool
        """Return the mean of the entries that count, and whether it is far from zero."""
        weight = self.weighted(self.counts)
        n = weight.sum(0).clamp_min(1e-300)
        mean = (weight * self.x).sum(0) / n
        errors = (weight * (self.x - mean).square()).sum(0) / n / self.counts.sum(0).clamp_min(1)
        return mean, float(mean.square().sum()) > _NEAR * float(errors.sum())

    def take_mean(self, asked, n_unfoldings):
        """Take the mean as the baseline if it is asked for, saves codes, or halves the residuals.

        Residuals are those of a number of unfoldings, which may not reach the codes of a mean.
        """
        mean, is_far = self.mean()
        if asked == "auto" and is_far and not self.positive and self.is_large:
            n, alpha = _ROWS_PER_ATOM // 4 * max(self.n_components, len(mean)), None
            n_codes, left = [], []
            for self.centre in (mean, 0 * mean):
                problem = self.problem(n=n)
                alpha = problem.alpha if alpha is None else alpha
                problem = replace(problem, alpha=alpha)
                epoch = _settle(problem, self.n_components, n_epochs=_BRIEF)
                n_codes.append(epoch.n_entries / problem.total_weight)
                if n_unfoldings:
                    how = dict(alpha=alpha, n_unfoldings=n_unfoldings, mask=problem.mask)
                    residual = problem.x - encode(epoch.atoms, problem.x, **how) @ epoch.atoms
                    left.append((residual * self.counts[self.rows(n)]).square().sum(1))
            asked = n_codes[1] - n_codes[0] > _SAVED
            if n_unfoldings and not asked:
                # Three unfoldings leave .34 of the variance of digits without a baseline, .12 with
                # it, and equal shares of sums of positive codes, whose atoms a baseline bends.
                asked = _is_worse(left[1], left[0], log(2))
        self.centre = mean if asked is True else 0 * mean

    def hidden(self, atoms, n_rows=_JUDGES, alpha=None, among=None):  # -> three of (m,)
        """Return the noise and the signal of hidden entries, and the number of rows behind each.

        They are mean squares of errors and of predictions. A mean square of errors with heavy tails
        varies as that of fewer normal errors.
        """
        rows = self.rows(n_rows, among)
        x, known = self.in_units(rows), self.counts[rows]
        factors = _PENALTIES if alpha is None else (1.0,)
        alpha = auto_alpha(x, mask=held_out.gaps_in(known)) if alpha is None else alpha
        errors, found = _predict(x, known, atoms, alpha, self.positive, factors=factors)
        n, sums = known.sum(0).clamp_min(1), (errors.sum(0), found.square().sum(0))
        n_normal = 3 * sums[0].square() / errors.square().sum(0).clamp_min(1e-300)
        return *(self.scale.square() * part / n for part in sums), n_normal

    # -------------------------------------------------------------- outliers

    def find_suspects(self, n_components, *, centres):  # -> far entries, long rows; or None
        """Mark suspects and let the other entries count, if suspects hold the energy of an atom."""
        far, long = _suspects(self.x, self.known, centres=centres)
        self.counts = self.known * ~(far | long[:, None])
        squares = self.weighted((self.x - self.mean()[0] * centres).square())
        of_suspects = float((squares * (self.known - self.counts)).sum())
        if of_suspects * n_components > float((squares * self.known).sum()):
            return far, long
        self.counts = self.known

    def are_outliers(self, far, long):
        """Return whether suspects are not predicted, and usual entries are predicted better.

        Atoms of each half of the rows predict rows of the other half. The first half decides alone
        if it predicts half of the suspects, or gains twice as surely as both halves have to.
        """
        usual = self.known * ~(far | long[:, None])
        suspected, sums, errors = self.known - usual, 0.0, []
        half = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0)) % 2 == 0

        def learn(rows, counts):  # -> atoms, penalty
            self.counts = counts
            problem = self.problem(rows)
            return _settle(problem, self.n_components).atoms, problem.alpha

        def judge(atoms, known, judged, rows):  # -> errors and energies of rows
            rows = self.rows(_JUDGES, rows)
            x, given = self.in_units(rows), dict(judged=judged[rows])
            found, _ = _predict(x, known[rows], *atoms, self.positive, **given)
            return torch.stack([found, x.square() * judged[rows]]).sum(2)

        for rows, least in ((half, _UNPREDICTED), (~half, 1 - _WORTH)):
            before = learn(rows, self.known)
            sums = sums + judge(before, self.known, suspected, ~rows & suspected.any(1)).sum(1)
            if sums[0] < least * sums[1]:
                return False
            after = learn(rows, usual)
            errors.append([judge(one, usual, usual, ~rows & ~long)[0] for one in (before, after)])
            gain = [torch.cat(of_halves) for of_halves in zip(*errors, strict=True)]
            if sums[0] > (1 - _WORTH) * sums[1] and _is_worse(*gain, errors=2 * _SURE):
                return True
        return _is_worse(*gain)

    def separate(self, far, long):  # -> Units, or None if more than a tenth are outliers
        """Let outliers follow from atoms of the usual entries, in units of the features."""
        atoms, first = _settle(self.problem(), self.n_components).atoms, None
        for i in range(_ROBUST + 1):
            problem = self.problem()
            how = problem.alpha, self.positive
            if i:
                atoms = _settle(problem, len(atoms), atoms, _AGAIN).atoms
            else:  # long rows come back if they are predicted
                atoms, known = _find_missing(problem, atoms), self.known.clone()
                x, usual = self.in_units(long), known[long] * ~far[long]
                errors = _predict(x, usual, atoms, *how)[0].sum(1)
                energies = (x.square() * usual).sum(1)
                known[long] *= (errors <= _UNPREDICTED * energies)[:, None]
            x = self.in_units()
            limit = _limit(held_out.residuals_of(x, self.counts, atoms, *how)[0], self.counts)
            self.counts = _usual_entries(x, known, atoms, *how, limit)
            if i < _ROBUST:
                noise, signal, n = self.hidden(atoms)
                first = noise if first is None else first
                scale = self.scale * _shrink(noise / self.scale**2, n)[0]
                if i + 1 == _ROBUST and not (
                    _differs(noise, signal, n) and _is_worse(first, noise)
                ):
                    scale = torch.ones_like(scale)
                atoms, self.scale = project_atoms(atoms * self.scale / scale), scale
        if float(self.counts.sum()) < (1 - _MOST) * float(self.known.sum()):
            return None
        squares = self.weighted(x.square() * known)
        are_entries = float((squares * (1 - self.counts)).sum()) * self.n_components
        norm = float(_median_size((x * self.counts).square().mean(1).sqrt()))
        return replace(
            self.units(atoms, problem.alpha),
            limit=limit * self.unit if are_entries > float(squares.sum()) else None,
            norm=norm * self.unit if bool((known < self.known).any()) else None,
        )

    def units(self, atoms=None, alpha=None):
        """Return the present units, with atoms and their penalty if rows are looked at."""
        centred, equal = bool(self.centre.any()), bool((self.scale == 1).all())
        return Units(
            intercept=self.centre * self.unit if centred else None,
            scale=None if equal else self.scale,
            atoms=atoms,
            alpha=None if alpha is None else alpha * self.unit,
            positive_code=self.positive,
        )

    def enter(self, units):
        """Take units that have been learned."""
        if units.intercept is not None:
            self.centre = units.intercept.to(self.x) / self.unit
        self.scale = self.scale if units.scale is None else units.scale.to(self.x)
        _, self.counts, scale = units.enter(self.x * self.unit, self.known)
        self.row_scale = self.row_scale if scale is None else scale

    # -------------------------------------------------------------- noise that differs

    def learn_features(self, atoms, *, asked=False):  # -> atoms, or None if noise stays equal
        """Take the noise of features from hidden entries, while atoms settle in its units.

        Half of the rows tell the noise. Its units have to predict the other half better by the same
        atoms: atoms that settle longer predict better in any units.
        """
        half = torch.arange(len(self.x)) % 2 == 0
        # all rows if asked: a column may differ from zero in a single row
        told = dict(n_rows=len(self.x)) if asked else dict(among=half)
        noise, signal, n = self.hidden(atoms, **told)
        if not (asked or _differs(noise, signal, n)):
            return None
        before = None if asked else self.hidden(atoms, among=~half)[0]
        for _ in range(_ROUNDS):
            scale = self.scale * _shrink(noise / self.scale**2, n)[0]
            if float((scale / self.scale).log().abs().max()) < _STILL:
                break
            atoms, self.scale = project_atoms(atoms * self.scale / scale), scale
            if before is not None and not _is_worse(before, self.hidden(atoms, among=~half)[0]):
                return None
            atoms, before = _settle(self.problem(), len(atoms), atoms, _AGAIN).atoms, None
            noise, _, n = self.hidden(atoms, **told)
        return atoms

    def learn_noise(self, noise):  # -> Units
        """Learn the noise of "features", "rows", or "both", whether or not it differs."""
        problem = self.problem()
        atoms = _find_missing(problem, _settle(problem, self.n_components).atoms)
        if noise != "rows":
            atoms = self.learn_features(atoms, asked=True)
        if noise == "features":
            return self.units()
        alpha = self.problem().alpha
        for _ in range(_ROUNDS_OF_ROWS):
            units = replace(self.units(atoms, alpha), rows=self.noise_of_rows(atoms, alpha))
            self.enter(units)
            atoms = _settle(self.problem(), len(atoms), atoms, _AGAIN).atoms
        return units

    def noise_of_rows(self, atoms, alpha):  # -> mean, variance, least
        """Return the distribution of the noise of rows, which are coded as new rows are."""
        self.row_scale = torch.ones_like(self.row_scale)
        variances = _variances(self.in_units(), self.counts, atoms, alpha, self.positive)
        scales, mean, variance = _shrink(*variances)
        return mean + 2 * log(self.unit), variance, float(scales.quantile(_LEAST_SCALE))


def learn_units(problem, n_components, *, intercept="auto", noise="auto", n_unfoldings=None):
    """Learn the baseline, outliers, and the noise that is named, before a search.

    Parameters
    ----------
    problem : Problem
        Rows of all processes, divided by its unit, and the signs of codes and atoms.
    n_components : int
        Number of atoms of the search.
    intercept : bool or "auto", default="auto"
        Whether there is a baseline; "auto" decides, and non-negative codes then have none.
    noise : str or Tensor, default="auto"
        "equal", "features", "rows" or "both": which noise is unequal. "auto" and "outliers" look
        for outliers; with "auto" `learn_scales` decides on the noise of features after the search.
        A tensor of shape (n_features,) is the noise of features, of geometric mean 1.
    n_unfoldings : int, default=None
        Number of unfoldings of the codes, if they do not converge.
    """
    sample, named = _Sample(problem, n_components), noise if isinstance(noise, str) else None
    if named is None:
        sample.scale = noise.cpu().double()
    suspects = None
    if named in ("auto", "outliers") and len(sample.x) >= _LEAST_ROWS and bool(sample.x.any()):
        centres = intercept is True or (intercept == "auto" and not sample.positive)
        suspects = sample.find_suspects(n_components, centres=centres)
    sample.take_mean(intercept, n_unfoldings)
    if suspects is not None:
        units = sample.separate(*suspects) if sample.are_outliers(*suspects) else None
        if units is not None:
            return units
        sample.scale, sample.counts = torch.ones_like(sample.scale), sample.known
        sample.take_mean(intercept, n_unfoldings)
    if named in ("features", "rows", "both") and len(sample.x) > 1:
        return sample.learn_noise(noise)
    return sample.units()


def learn_scales(units, problem, atoms, alpha):  # -> Units, the same if noise is equal
    """Learn the noise of features, after a search.

    Parameters
    ----------
    units : Units
        The units of the search.
    problem : Problem
        As in `learn_units`.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms of the search, in its units.
    alpha : float
        Penalty of codes that predict hidden entries, in the units of the data.
    """
    sample = _Sample(problem, len(atoms))
    if units.scale is not None or units.looks_at_rows or not sample.is_large:
        return units
    sample.enter(units)
    atoms, alpha, rows = atoms.cpu().double(), alpha / sample.unit, sample.rows(_SCREENED)
    noise, signal, n = sample.hidden(atoms, _SCREENED, alpha)
    given = sample.in_units(rows), sample.counts[rows], atoms, alpha, sample.positive
    squares = held_out.residuals_of(*given)[0].square().sum(0)
    residual = squares / sample.counts[rows].sum(0).clamp_min(1)
    if residual.sum() < _RESIDUAL * noise.sum() or not _differs(noise, signal, n):
        return units
    return units if sample.learn_features(atoms) is None else sample.units()


def refine_units(units, problem, atoms, alpha):  # -> Units
    """Return the units with the baseline, the limits and the noise of rows that atoms leave.

    Parameters
    ----------
    units : Units
        The units that the atoms were found in.
    problem, atoms, alpha
        As in `learn_scales`, with the penalty of the codes of `transform`.
    """
    sample, atoms = _Sample(problem, len(atoms)), atoms.cpu().double()
    sample.enter(units)
    unit, counts = sample.unit, sample.counts
    given = sample.in_units(), counts, atoms, alpha / unit, sample.positive
    residuals, _ = held_out.residuals_of(*given)
    changes = dict(atoms=atoms)
    if units.intercept is not None:
        weights = sample.weighted(counts / sample.row_scale.square())
        errors = (weights * residuals * sample.row_scale * sample.scale).sum(0) * unit
        changes["intercept"] = units.intercept + errors / weights.sum(0).clamp_min(1e-300)
    if units.limit is not None:
        changes["limit"] = _limit(residuals, counts) * unit
    if units.rows is not None:
        changes["rows"] = sample.noise_of_rows(atoms, units.alpha / unit)
    return replace(units, **changes)
