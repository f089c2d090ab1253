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
   turn. Signals are predicted. Otherwise atoms settle without the suspects, which are outliers if
   the usual entries are then predicted better.
2. The *baseline* is taken if it lowers the objective of the lasso and the number of codes. Where
   codes are not centred, rows minus their mean have no sparse codes: the objective may fall, since
   the mean costs no penalty, but codes get more.
3. An entry is an *outlier* if the lasso gives it an error of its own, as an atom beside the atoms:
   the minimum of :math:`\frac12 \|x - z D - o\|^2 + \alpha \|z\|_1 + \sum_j l_j |o_j|` is that of
   the loss of Huber with the limit :math:`l_j`, five deviations of the noise.
4. After the search, hidden entries tell whether the *noise of features* differs. It is taken into
   account if it hides signals, is no missed signal (which is large where signals are small), and if
   hidden entries are predicted better in units of the noise.

Variances of hidden entries need no degrees of freedom. Those of residuals do, and drift: each round
divides by them, and features of large weight are fitted better in the next round.
"""

from dataclasses import dataclass, replace
from math import inf, log, log2
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle._operators import atom_norms
from skpudle.lasso._solve import lasso_path, solve_lasso
from skpudle.search._descent import descend
from skpudle.search._epoch import draw_rows, spread_rows
from skpudle.search._held_out import hide_in_turn, match_equal_rows
from skpudle.search._search import Problem, advance, auto_alpha, begin

__all__ = ["CENTRED", "RowNoise", "Units", "learn_scales", "learn_units", "refine_units"]

# An entry is far from 5 standard deviations on: one in 2 million entries of normal noise.
_FAR = 5.0
# A row is long from 3 times the median norm on: norms of rows of k normal codes vary by a share of
# (2 k)**-0.5.
_LONG = 3.0
# At most a tenth are outliers, which is the breakdown point of the deviations; more are the data.
_MOST = 0.1
# Quantiles of |e| for normal noise: of a half, and of 1 - _MOST.
_HALF, _TENTH = 0.6745, 1.645
# The unpredicted share of the energy of outliers. It is .00 to .19 for signals, .94 to 1.3 for
# outliers.
_UNPREDICTED = 0.5
# The least gain that pays, of the logarithms of errors and of variances, and of the objective and the
# number of codes by a baseline: a tenth. Weights lower variances by exp(-variance of logarithms). In
# 70 random families of rows a baseline that is there takes off .13 to .8 of the codes in 63, and one
# that is not there in 2 of 67.
_WORTH = 0.1
# Standard errors of a gain: one in a thousand by chance.
_SURE = 3.0
# Noise hides signals if log(noise) correlates so with log(noise / signal): it differs 4 / 3 as much
# as signals do.
_HIDES = 0.8
# Squared standard errors of a mean that is no baseline.
_NEAR = 16.0
# Rows to learn from, or rows for each atom and feature, of up to so many entries, half of them for
# atoms to settle; rows for each atom that decide on a baseline; least rows for outliers; most atoms,
# since their number hardly changes residuals; rows that judge, and that screen.
_ROWS, _ROWS_PER_ATOM, _ENTRIES, _FEW = 4096, 32, 2**20, 8
_LEAST_ROWS, _ATOMS, _JUDGES, _SCREENED = 60, 256, 300, 100
# Epochs in which atoms settle, and settle again; rounds of outliers, of features and of rows; the
# change that ends rounds.
_SETTLES, _AGAIN, _ROBUST, _ROUNDS, _ROUNDS_OF_ROWS, _STILL = 100, 8, 4, 8, 3, 0.05
# Factors on the penalty of codes that predict hidden entries.
_PENALTIES = 4.0, 2.0, 1.0, 0.5, 0.25
# Rows to enter at a time, and the share of rows that are less noisy than the least scale of a row.
_ROWS_AT_A_TIME, _LEAST_SCALE = 4096, 0.02
# Share of the median variance below which a feature or row is constant.
_CONSTANT = 1e-9


class RowNoise(NamedTuple):
    """The distribution of the noise of rows, which shrinks the estimate of a new row.

    Attributes
    ----------
    mean, variance : float
        Mean and variance of the logarithms of variances.
    least : float
        Smallest scale of a row.
    """

    mean: float
    variance: float
    least: float


@dataclass(frozen=True, eq=False)
class Units:
    """A baseline, outliers, and how the noise of entries differs.

    Parameters
    ----------
    intercept : Tensor of shape (n_features,), default=None
        The baseline; None is zero.
    scale : Tensor of shape (n_features,), default=None
        Noise of features, of geometric mean 1; None if it is equal.
    rows : RowNoise, default=None
        Noise of rows; None if it is equal.
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
    rows: RowNoise | None = None
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

    @property
    def in_words(self):
        """What differs from equal noise around zero."""
        parts = {"a baseline": self.intercept, "outlying entries": self.limit}
        parts |= {"outlying rows": self.norm, "unequal features": self.scale}
        found = [
            name for name, part in (parts | {"unequal rows": self.rows}).items() if part is not None
        ]
        return ", ".join(found) or "equal noise around zero"

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
        parts = zip(x.split(_ROWS_AT_A_TIME), known.split(_ROWS_AT_A_TIME), strict=True)
        known, scale = map(torch.cat, zip(*(self._enter(*part) for part in parts), strict=True))
        known = None if mask is None and bool(known.all()) else known
        return (x, known, None) if self.rows is None else (x / scale, known, scale)

    def _enter(self, x, known):  # -> known, scale
        unit = 2.0 ** round(log2(self.alpha))  # no square overflows
        y, alpha = torch.where(known > 0, x, 0.0).double() / unit, self.alpha / unit
        atoms, counts = self.atoms.to(y), known.double()
        how, scale = dict(alpha=alpha, positive=self.positive_code), torch.ones_like(y[:, :1])
        if self.rows is not None:
            fitted, free = _fit_rows(atoms, y, counts, **how)
            logs = _log_variances((y - fitted) * counts, free) + 2 * log(unit) - self.rows.mean
            share = self.rows.variance / (self.rows.variance + 2 / free)
            found = (0.5 * share * logs).exp().clamp_min(self.rows.least)
            scale = torch.where(counts.any(1, keepdim=True), found[:, None], 1.0)
        if self.limit is not None:
            counts = _usual_entries(atoms, y, counts, self.limit.to(y) / unit, **how)
        if self.norm is not None:
            counts = counts * ~_outlying_rows(atoms, y, counts, self.norm / unit, **how)[:, None]
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

    def as_dict(self):
        """Return the fields that are not None, as plain values."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return known if self.rows is None else known | {"rows": self.rows._asdict()}

    @classmethod
    def from_dict(cls, values):
        """Return the units from the result of `as_dict`."""
        rows = {"rows": RowNoise(**values["rows"])} if "rows" in values else {}
        return cls(**values | rows)


CENTRED = Units()  # equal noise around zero


def _with_norms(atoms, others):
    norms = atom_norms(atoms)
    return atoms * torch.where(norms > 0, atom_norms(others) / norms, 1.0)


def _unit(atoms):
    norms = atom_norms(atoms)
    return atoms / torch.where(norms > 0, norms, 1.0)


def _given(known):
    return None if bool(known.all()) else known


# ------------------------------------------------------------------ rows and their atoms


def _fit_rows(atoms, x, known, *, alpha, positive):  # -> (n, m), (n,)
    """Return least squares on the lasso's supports, and degrees of freedom of residuals."""
    options = dict(positive=positive, mask=_given(known))
    _, (codes,) = lasso_path(atoms, x, [alpha], **options)
    return codes @ atoms, (known.sum(1) - (codes != 0).sum(1)).clamp_min(1)


def _log_variances(residuals, free):  # (n, m), (n,) -> (n,)
    return (residuals.square().sum(1) / free).clamp_min(1e-300).log()


def _usual_entries(atoms, x, known, limit, *, alpha, positive):  # -> (n, m)
    """Return the entries without an error of their own beyond the limit, see the module.

    Errors are free of the lasso's bias. Its penalty is at most that of a unit atom at the least
    limit: where noise is low, codes would otherwise cost more than errors of all entries.
    """
    alpha = min(alpha, float(limit.min()))
    own = torch.diag(alpha / limit)
    both = torch.cat([atoms, own, -own] if positive else [atoms, own])
    options = dict(positive=positive, mask=_given(known), certify=False, debias=1.0)
    codes, _ = solve_lasso(both, x, alpha, **options)
    errors = codes[:, len(atoms) :].reshape(len(x), -1, len(own)).abs().amax(1)
    return known * (errors * alpha <= limit.square())


def _outlying_rows(atoms, x, known, norm, *, alpha, positive):  # -> (n,) bool
    """Mark long rows whose hidden entries are not predicted."""
    squares = (x * known).square().sum(1)
    found = squares > (_LONG * norm) ** 2 * known.sum(1)
    y, k = x[found], known[found]
    y = y * norm * (k.sum(1) / squares[found]).sqrt()[:, None]  # of the usual length
    errors, _ = _predict(atoms, y, k, alphas=[alpha], positive=positive)
    found[found.clone()] = errors.sum(1) > _UNPREDICTED * (y * k).square().sum(1)
    return found


def _predict(atoms, x, known, *, alphas, positive, judged=None):  # -> (n, m), (n, m)
    """Return squared errors and predictions of entries that are hidden in turn.

    They are those of the penalty, and of the lasso or of least squares, with the least error of the
    entries that are ``judged``.
    """
    judged, known = known if judged is None else judged, known.to(x)
    found = x.new_zeros(2 * len(alphas), *x.shape)
    for seen, hidden in hide_in_turn(torch.arange(x.shape[1])):
        options = dict(positive=positive, mask=_given(known[:, seen]))
        codes = torch.cat(lasso_path(atoms[:, seen], x[:, seen], alphas, **options))
        found[:, :, hidden] = codes @ atoms[:, hidden]
    errors = (x - found).square() * judged
    best = int(errors.sum((1, 2)).argmin())
    return errors[best], found[best] * known


# ------------------------------------------------------------------ statistics


def _deviations(distances, axis=0):  # with NaN for gaps
    """Return standard deviations by two quantiles of distances; infinite where most are zero."""
    middle = distances.nanmedian(axis).values.nan_to_num() / _HALF
    outer = distances.nanquantile(1 - _MOST, axis).nan_to_num() / _TENTH
    found = torch.maximum(middle, outer)
    return torch.where(found > 0, found, inf)


def _suspects(x, known, *, centres):  # -> (n, m) bool, (n,) bool
    """Mark far entries, in deviations of their column and of their row, and long rows."""
    y = torch.where(known > 0, x, torch.nan)
    y = y - y.nanmedian(0).values if centres else y
    distances = y.abs()
    distances = distances / _deviations(distances)
    of_row = (distances.nanmedian(1).values.nan_to_num(1.0) / _HALF).clamp_min(1)
    far = distances > _FAR * of_row[:, None]
    far &= bool(far.sum() <= _MOST * known.sum())
    size = torch.where(far, torch.nan, y).square().nanmean(1).sqrt().nan_to_num()
    long = size > _LONG * _median_size(size)
    return far, long & bool(long.double().mean() <= _MOST)


def _median_size(size):  # (n,) -> scalar
    return size[size > 0].median() if bool(size.any()) else size.new_tensor(inf)


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


def _is_worse(one, other):
    """Return whether positive errors are larger by a tenth, and beyond chance."""
    gain = (one + 1e-300).log() - (other + 1e-300).log()
    error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else inf
    return float(gain.mean()) > max(_WORTH, _SURE * error)


def _differs(noise, signal, n):  # (m,) each -> bool
    """Return whether noise differs, hides signals, and is no missed signal."""
    usual = (noise > _CONSTANT * noise.median()) & (signal > _CONSTANT * signal.median())
    if int(usual.sum()) < 3 or not _shrink(noise, n)[2] > _WORTH:
        return False
    noise, signal = noise[usual].log(), signal[usual].log()
    hides = float(torch.corrcoef(torch.stack([noise, noise - signal]))[0, 1]) > _HIDES
    return hides and float(torch.cov(torch.stack([noise, signal]))[0, 1]) > 0


# ------------------------------------------------------------------ learning


def _settle(problem, n_components, atoms=None, n_epochs=_SETTLES):  # -> Epoch
    """Return the epoch of atoms that have settled, by default from the same rows for all seeds."""
    if atoms is None:
        given = problem.x, n_components, "data", torch.Generator().manual_seed(0)
        atoms = problem.project(_unit(initial_atoms(*given, weight=problem.weight)))
    return descend(problem.epoch(atoms, problem.first_codes(atoms)), n_epochs)


def _find_missing(problem, n_components):  # -> atoms
    """Return settled atoms after the rounds of a search, which find missing ones."""
    state = begin(problem, _settle(problem, n_components).atoms)
    while state.phase in ("settle", "larger", "smaller"):
        state = advance(problem, state)
    return state.found[0]


class _Sample:
    """Rows that units are learned from, divided by the unit of a problem.

    ``counts`` marks the entries that count, and ``centre`` and ``scale`` are the present units.
    """

    def __init__(self, problem, n_components):
        m = problem.x.shape[1]
        distinct = match_equal_rows(problem.x, problem.mask).unique()  # judges have no copies
        self.n_components = min(n_components, len(distinct), _ATOMS)
        n = max(_ROWS, _ROWS_PER_ATOM * max(self.n_components, m))
        weight = None if problem.weight is None else problem.weight[distinct].cpu().double()
        drawn, self.weight = draw_rows(len(distinct), min(n, max(_ENTRIES // m, 1024)), weight)
        rows, self.unit = distinct[drawn], problem.unit
        x = problem.x[rows].cpu().double()
        self.known = torch.ones_like(x) if problem.mask is None else problem.mask[rows].cpu()
        self.x = torch.where(self.known > 0, x, 0.0)
        self.positive = problem.positive_code
        self._signs = dict(positive_code=self.positive, positive_atoms=problem.positive_atoms)
        self.counts, self.row_scale = self.known, torch.ones_like(x[:, :1])
        self.centre, self.scale = torch.zeros_like(x[0]), torch.ones_like(x[0])

    def in_units(self, rows=slice(None)):
        """Return some rows in the present units."""
        return (self.x[rows] - self.centre) / (self.scale * self.row_scale[rows])

    def problem(self, among=None, n=None):
        """Return the problem of some rows with entries that count."""
        n = (
            max(_ROWS, _ROWS_PER_ATOM * max(self.n_components, len(self.scale))) // 2
            if n is None
            else n
        )
        rows = self.rows(n, among)
        weight = None if self.weight is None else self.weight[rows]
        x, given = self.in_units(rows), dict(mask=_given(self.counts[rows]), weight=weight)
        return Problem(x, auto_alpha(x, **given), **given, **self._signs)

    def rows(self, n, among=None):
        """Return the numbers of some rows with entries that count."""
        used = self.counts.any(1) if among is None else among & self.counts.any(1)
        used = used.nonzero().flatten()
        return used[spread_rows(len(used), n)]

    def weigh(self, entries):  # (n, m) -> the same
        """Return entries times the weights of their rows."""
        return entries if self.weight is None else entries * self.weight[:, None]

    def take_mean(self, asked):
        """Take the mean of the entries that count as the baseline, if it is one."""
        weight = self.weigh(self.counts)
        n = weight.sum(0).clamp_min(1e-300)
        mean = (weight * self.x).sum(0) / n
        self.centre = mean if asked is True else torch.zeros_like(mean)
        if asked != "auto" or self.positive:
            return
        variances = (weight * (self.x - mean).square()).sum(0) / n
        errors = variances / self.counts.sum(0).clamp_min(1)
        if float(mean.square().sum()) > _NEAR * float(errors.sum()) and self._is_baseline(mean):
            self.centre = mean

    def _is_baseline(self, mean):
        n, alpha, epochs = _FEW * max(self.n_components, len(mean)), None, []
        for self.centre in (mean, torch.zeros_like(mean)):
            problem = self.problem(n=n)
            alpha = problem.alpha if alpha is None else alpha
            epochs.append(_settle(replace(problem, alpha=alpha), self.n_components))
        within, without = epochs
        fewer = within.n_entries < (1 - _WORTH) * without.n_entries
        return fewer and within.objective < (1 - _WORTH) * without.objective

    def hidden(self, atoms, n_rows=2 * _JUDGES, alphas=None):  # -> noise, signal, n: (m,) each
        """Return mean squares of errors and of predictions of hidden entries, and their numbers."""
        rows = self.rows(n_rows)
        x, known = self.in_units(rows), self.counts[rows]
        if alphas is None:
            alphas = _penalties(auto_alpha(x, mask=_given(known)))
        found = _predict(atoms, x, known, alphas=alphas, positive=self.positive)
        n = known.sum(0).clamp_min(1)
        return *(self.scale.square() * part.sum(0) / n for part in (found[0], found[1] ** 2)), n

    # -------------------------------------------------------------- outliers

    def find_suspects(self, n_components, *, centres):  # -> far entries, long rows; or None
        """Mark suspects and let the other entries count, if suspects hold the energy of an atom."""
        far, long = _suspects(self.x, self.known, centres=centres)
        usual = self.known * ~(far | long[:, None])
        weight = self.weigh(usual)
        mean = (weight * self.x).sum(0) / weight.sum(0).clamp_min(1e-300) * centres
        squares = self.weigh((self.x - mean).square())
        of_suspects = float((squares * (self.known - usual)).sum())
        if of_suspects * n_components <= float((squares * self.known).sum()):
            return None
        self.counts = usual
        return far, long

    def are_outliers(self, long):
        """Return whether suspects are not predicted, and usual entries are predicted better."""
        usual, suspected = self.counts, self.known - self.counts
        half = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0)) % 2 == 0
        n, self.counts = self.n_components, self.known
        problem = self.problem(half)
        atoms, alpha = _settle(problem, n).atoms, problem.alpha
        rows = self.rows(_JUDGES, ~half & suspected.any(1))
        x, how = self.in_units(rows), dict(alphas=_penalties(alpha), positive=self.positive)
        errors, _ = _predict(atoms, x, self.known[rows], judged=suspected[rows], **how)
        energy, self.counts = (x.square() * suspected[rows]).sum(), usual
        if not float(errors.sum()) > _UNPREDICTED * float(energy):
            return False
        rows = self.rows(_JUDGES, ~half & ~long)
        x, judged = self.in_units(rows), usual[rows]
        before, _ = _predict(atoms, x, self.known[rows], judged=judged, **how)
        problem = self.problem(half)
        atoms, how["alphas"] = _settle(problem, n).atoms, _penalties(problem.alpha)
        after, _ = _predict(atoms, x, judged, **how)
        return _is_worse(before.sum(1), after.sum(1))

    def separate(self, far, long):  # -> Units
        """Let outliers follow from atoms of the usual entries, in units of the features."""
        outlying, atoms = long.clone(), None
        for i in range(_ROBUST + 1):
            problem = self.problem()
            how = dict(alpha=problem.alpha, positive=self.positive)
            if i:
                atoms = _settle(problem, self.n_components, atoms, _AGAIN).atoms
            else:
                atoms = _find_missing(problem, self.n_components)
                x, known = self.in_units(long), self.known[long] * ~far[long]
                options = dict(alphas=_penalties(problem.alpha), positive=self.positive)
                errors = _predict(atoms, x, known, **options)[0].sum(1)  # long rows may come back
                outlying[long] = errors > _UNPREDICTED * (x.square() * known).sum(1)
            x, known = self.in_units(), self.known * ~outlying[:, None]
            fitted, _ = _fit_rows(atoms, x, self.counts, **how)
            limit = _limit(x - fitted, self.counts)
            self.counts = _usual_entries(atoms, x, known, limit, **how)
            if i == _ROBUST:
                break
            *both, n = self.hidden(atoms)
            scale = self.scale * _shrink(both[0] / self.scale**2, n)[0]
            if i + 1 == _ROBUST and not _differs(*both, n):
                scale = torch.ones_like(scale)
            atoms, self.scale = _unit(atoms * self.scale / scale), scale
        norm = _median_size(((x * self.counts).square().sum(1) / n.max()).sqrt())
        squares = self.weigh(x.square() * known)
        of_entries = float((squares * (1 - self.counts)).sum()) * self.n_components
        units = dict(atoms=atoms, alpha=problem.alpha * self.unit, positive_code=self.positive)
        units["limit"] = limit * self.unit if of_entries > float(squares.sum()) else None
        units["norm"] = float(norm) * self.unit if bool(outlying.any()) else None
        return self.units(**units)

    def units(self, **parts):
        """Return the present units."""
        centred, equal = bool(self.centre.any()), bool((self.scale == 1).all())
        parts |= dict(intercept=self.centre * self.unit if centred else None)
        return Units(scale=None if equal else self.scale, **parts)

    def enter(self, units):
        """Take units that have been learned."""
        if units.intercept is not None:
            self.centre = units.intercept.to(self.x) / self.unit
        self.scale = self.scale if units.scale is None else units.scale.to(self.x)
        _, counts, scale = units.enter(self.x * self.unit, self.known)
        self.counts, self.row_scale = counts, self.row_scale if scale is None else scale

    # -------------------------------------------------------------- noise that differs

    def learn_features(self, atoms, *, asked=False):  # -> atoms, or None if noise stays equal
        """Take the noise of features from hidden entries, while atoms settle in its units."""
        first = noise, _, n = self.hidden(atoms)
        if not (asked or _differs(*first)):
            return None
        for _ in range(_ROUNDS):
            scale = self.scale * _shrink(noise / self.scale**2, n)[0]
            if float((scale / self.scale).log().abs().max()) < _STILL:
                break
            atoms, self.scale = _unit(atoms * self.scale / scale), scale
            atoms = _settle(self.problem(), len(atoms), atoms, _AGAIN).atoms
            noise, _, n = self.hidden(atoms)
        return atoms if asked or _is_worse(first[0], noise) else None

    def learn_noise(self, noise):  # -> Units
        """Learn the noise of "features", "rows", or "both", whether or not it differs."""
        atoms = _find_missing(self.problem(), self.n_components)
        if noise != "rows":
            atoms = self.learn_features(atoms, asked=True)
        units, alpha = self.units(), self.problem().alpha
        for _ in range(_ROUNDS_OF_ROWS if noise != "features" else 0):
            given = dict(atoms=atoms, alpha=alpha * self.unit, positive_code=self.positive)
            units = replace(units, rows=self.noise_of_rows(atoms, alpha), **given)
            self.enter(units)
            atoms = _settle(self.problem(), len(atoms), atoms, _AGAIN).atoms
        return units

    def noise_of_rows(self, atoms, alpha):  # -> RowNoise
        """Return the distribution of the noise of rows, which are coded as new rows are."""
        self.row_scale = torch.ones_like(self.row_scale)
        x = self.in_units()
        fitted, free = _fit_rows(atoms, x, self.counts, alpha=alpha, positive=self.positive)
        variances = _log_variances((x - fitted) * self.counts, free).exp()
        scales, mean, variance = _shrink(variances, free)
        mean += 2 * log(self.unit)
        return RowNoise(mean, variance, float(scales.quantile(_LEAST_SCALE)))


def _penalties(alpha):
    return [factor * alpha for factor in _PENALTIES]


def _limit(residuals, counts):  # -> (m,)
    """Return the limit of errors of usual entries: deviations of each feature, or of all."""
    distances = torch.where(counts > 0, residuals.abs(), torch.nan)
    of_all = _deviations(distances.flatten())
    of_each = _deviations(distances)
    return _FAR * torch.maximum(torch.where(of_each < inf, of_each, 0.0), of_all).clamp_max(1e300)


def learn_units(problem, n_components, *, intercept="auto", noise="auto"):  # -> Units
    """Learn the baseline and outliers, before a search.

    Parameters
    ----------
    problem : Problem
        Rows of all processes, divided by its unit, and the signs of codes and atoms.
    n_components : int
        Number of atoms of the search.
    intercept : bool or "auto", default="auto"
        Whether there is a baseline; "auto" decides, and non-negative codes then have none.
    noise : {"auto", "outliers", "equal", "features", "rows", "both"} or Tensor, default="auto"
        Which noise is unequal. Only "auto" and "outliers" look for outliers. A tensor of shape (n_features,) is
        the noise of features, of geometric mean 1.

    Returns
    -------
    Units
        The units. If noise is "auto", `learn_scales` learns the noise of features after the search.
    """
    sample = _Sample(problem, n_components)
    if not isinstance(noise, str):
        sample.scale = noise.cpu().double()
    suspects = None
    if (
        isinstance(noise, str)
        and noise in ("auto", "outliers")
        and len(sample.x) >= _LEAST_ROWS
        and bool(sample.x.any())
    ):
        centres = intercept is True or (intercept == "auto" and not sample.positive)
        suspects = sample.find_suspects(n_components, centres=centres)
    sample.take_mean(intercept)
    if suspects is not None:
        if sample.are_outliers(suspects[1]):
            return sample.separate(*suspects)
        sample.counts = sample.known
        sample.take_mean(intercept)
    named = isinstance(noise, str) and noise in ("features", "rows", "both")
    return sample.learn_noise(noise) if named and len(sample.x) > 1 else sample.units()


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
    if units.scale is not None or units.looks_at_rows or len(sample.x) < _LEAST_ROWS:
        return units
    sample.enter(units)
    if not _differs(*sample.hidden(atoms.cpu().double(), _SCREENED, [alpha / sample.unit])):
        return units
    atoms = _settle(sample.problem(), sample.n_components).atoms
    return units if sample.learn_features(atoms) is None else sample.units()


def refine_units(units, problem, atoms, alpha):  # -> Units
    """Return the units with the baseline, the limits and the noise of rows that atoms leave.

    Parameters
    ----------
    units : Units
        The units that the atoms were found in.
    problem : Problem
        As in `learn_units`.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms, in these units.
    alpha : float
        Penalty of the codes of `transform`, in the units of the data.
    """
    if units.intercept is None and not units.looks_at_rows:
        return units
    sample, atoms = _Sample(problem, len(atoms)), atoms.cpu().double()
    sample.enter(units)
    x, counts, unit = sample.in_units(), sample.counts, sample.unit
    fitted, _ = _fit_rows(atoms, x, counts, alpha=alpha / unit, positive=sample.positive)
    changes, residuals = dict(atoms=atoms), (x - fitted) * counts
    if units.intercept is not None:
        weights = sample.weigh(counts / sample.row_scale.square())
        errors = (weights * residuals * sample.row_scale * sample.scale).sum(0) * unit
        changes["intercept"] = units.intercept + errors / weights.sum(0).clamp_min(1e-300)
    if units.limit is not None:
        changes["limit"] = _limit(residuals, counts) * unit
    if units.rows is not None:
        changes["rows"] = sample.noise_of_rows(atoms, units.alpha / unit)
    return replace(units, **changes)
