r"""Learn the units in which noise is equal, as a search assumes: a baseline, and scales of noise.

A row is

.. math:: x_{ij} = b_j + (z_i D)_j + \sigma s_i t_j \varepsilon_{ij},

with a baseline :math:`b`, and noise of a scale :math:`t_j` for each feature and :math:`s_i` for
each row. In units of the noise, :math:`(x_{ij} - b_j) / (s_i t_j)`, noise is equal, and all methods
that assume equal noise are right: one penalty, exact codes, held-out errors. An entry that is far
from its prediction by the row's other entries is treated as missing.

Scales come from the residuals of least squares on the supports of codes. The variance of feature j
is the sum of its squared residuals over the sum of their degrees of freedom, 1 minus the leverage.
(Without leverages a feature of large weight, which is fitted better, would gain weight in each
round.) Logarithms of variances are shrunk to their mean by their own sampling error, by the method
of moments, so that equal noise stays equal.

Residuals of real data are unequal for another reason: atoms are missing in some rows and features.
So each change of units is *validated*: atoms that have settled in the new units replace the present
atoms if they predict hidden entries of held-out rows better. The mean logarithm of a row's error
has to be lower beyond chance, in which all rows count alike, and the sum of errors not higher.

*Rows of noise* are the few rows that atoms do not predict, with an error far above the median
row's. They are divided by their own noise, so that they hardly count for atoms and penalties.

`learn_noise` goes from what hides most to what hides least: the baseline, outliers (far entries,
long rows, columns in other units), rows of noise, noise of features, noise of rows. From outliers
on, sums of errors are of *trusted* entries. Long rows begin as shortened rows, since nothing is
found beside them otherwise; only their noise, or a gain of the usual rows, keeps them short.

Factor analysis is the same step from principal components for dense codes. Weights of rows are as
in HePPCAT [1]_, and a row's own noise is estimated as in the scaled lasso [2]_.

References
----------
.. [1] D. Hong et al., "HePPCAT: probabilistic PCA for data with heteroscedastic noise", IEEE
   Transactions on Signal Processing 69, 2021.
.. [2] T. Sun and C.-H. Zhang, "Scaled sparse linear regression", Biometrika 99, 2012.
"""

from dataclasses import dataclass, replace
from math import ceil, inf
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._initialization import initial_atoms
from skpudle._operators._atoms import atom_norms
from skpudle.lasso._solve import lasso_path
from skpudle.search._epoch import Codes, draw_rows, spread_rows
from skpudle.search.descend import refit_atoms, solve_codes
from skpudle.search.find import find_atoms
from skpudle.search.held_out import hide_in_turn, match_equal_rows
from skpudle.search.problem import Problem, auto_alpha

# Rows that noise is learned from: 2,048, or 16 for each atom and feature, of up to 2**22 entries;
# most atoms, since their number hardly changes residuals; the least number of rows, and the least
# number that may have a baseline without a validation, of which it takes a tenth.
_ROWS, _ROWS_PER_ATOM, _ENTRIES, _LEAST_ROWS, _FEW_ROWS = 2048, 16, 2**22, 60, 10
_ATOMS = 256
# Validation rows: one in _JUDGES, at most _MOST_JUDGES; up to half of the rows if the quarter has
# fewer than _JUDGED entries. Three of ten groups of their features are hidden in turn, or more, to
# hide 3,600 entries: the 125 hidden entries of 31 rows of 13 columns cannot decide.
_JUDGES, _MOST_JUDGES, _JUDGED = 4, 300, 1200
_TURNS, _HIDDEN = 3, 3600
# Number of hidden entries of a row that decide whether the row is noise.
_OF_A_ROW = 9
# Penalties of the validation, from 8 times the search's down to a sixteenth.
_PENALTIES = [2.0**k for k in range(3, -5, -1)]
# Standard errors by which errors have to fall on average, and by which their sum may rise. (If one
# row has nearly all of the sum, the sum may rise by 1 standard error whatever the remaining rows
# do.)
_SURE, _CHANCE = 3.0, 1.2
# Standard errors that are enough instead of _SURE, if the mean logarithm and the sum both fall by
# them.
_BOTH = 2.0
# The least fall of the mean logarithm of errors that pays for new units. It is .05 to 3 for unequal
# noise, and up to .04 for 20 sets of rows with equal noise and for real rows that units harm.
_LEAST_GAIN = 0.04
# Distance of a baseline from zero, in standard deviations, and its share of the energy, from which
# on it is kept unless predictions are worse beyond chance. (Codes find offsets of patches less well
# than a baseline does, and each patch has an offset of its own: the mean logarithm may rise.)
_FAR, _SUBSTANTIAL = 4.0, 0.002
# The variance of the logarithms of variances from which noise may be unequal. At 5 dB it is .03 for
# equal noise, as codes miss some atoms.
_UNEQUAL = {"features": 0.02, "rows": 0.1}
# Largest numbers of rounds, the rounds before features are judged (one round removes a tenth of the
# inequality, as dense codes follow the noise), and the change of scales that ends rounds.
_ROUNDS = {"features": 8, "rows": 5}
_ROUNDS_BEFORE, _STILL = 3, 0.05
# Least correlation over rows of log(noise) and log(noise / signal) from which on noise hides
# signals. It is .83 to .95 for unequal noise, at most .4 for patches, and .76 for sums of 512
# features that 128 atoms explain in part.
_HIDES = 0.8
# Phases of a search that find missing atoms.
_ROUNDS_OF_SEARCH = "settle", "larger", "smaller"
# Deviations from which on an entry is an outlier (one in two million entries of normal noise), and
# the largest share of outliers, of all entries and of a feature, of long rows and of rows of noise.
_DEVIATIONS, _MOST = 5.0, 0.1
# Multiple of the median norm from which on a row is long; least share of the energy of outliers
# that are left out before atoms have settled; ratio of spreads from which on columns may differ in
# unit, and from which on they do, unless predictions in raw units are better beyond chance: the
# column of the largest unit alone decides these, and no fit in raw units sees the smallest.
_LONG, _OUTLYING, _UNITS, _FOREIGN = 3.0, 0.2, 4.0, 1e3
# Share of the energy from which on long rows rule the penalty: the usual rows then have no codes. A
# few such rows are shortened unless predictions are worse beyond chance: without codes there is
# nothing to gain.
_RULING = 0.5
# Least fall of the mean logarithm of errors (to 0.78 of the errors) with which long rows stay
# shortened although their noise hides no signal. 20 of 2,000 rows of 15 times the size, baseline
# included, hid all of 16 atoms.
_MUCH = 0.25
# Rows of noise matter if they have at least this share of the errors of all rows. It is 0.6 for 30
# of 1,500 rows of the usual size, and 0.1 for the few rows of a rare atom that is not found.
_MATTER = 0.25
# Least unpredicted share of the energy of a row of noise, and shares from which on rows are set
# aside, in turn, before _UNPREDICTED decides. An atom that was learned from a row of noise predicts
# the row until atoms have settled without it. (The unpredicted share is 0.33 in a row where one of
# three atoms is missing.)
_UNPREDICTED, _SET_ASIDE = 0.5, (0.5, 0.25, 0.1)
# A row owns an atom if its code has more than this share of the energy of the atom's codes: the
# atom has adapted to the row. Rows that own atoms are predicted by the atoms that no row owns.
_OWNED = 0.5
# The median absolute deviation of normal noise, in standard deviations.
_MEDIAN = 0.6745
# Epochs that solve for codes, and in which atoms settle again, and rows whose leverages count.
_CODES, _AGAIN, _LEVERAGES = 4, 8, 512
# The penalty at which the noise of rows is estimated, in units of the penalty of codes. Atoms that
# codes miss make a row look noisy, while surplus atoms only take degrees of freedom: in units of
# the noise errors are .27, .27 and .35 of the noise, and .28, .29 and .60 without the factor.
_BELOW = 2**-0.5
# Number of rows whose noise is estimated at a time.
_ROWS_AT_A_TIME = 4096
# Share of the median variance below which a column or row is constant.
_CONSTANT = 1e-12
# The share of rows that are less noisy than the smallest scale of a new row.
_LEAST_SCALE = 0.02


class RowNoise(NamedTuple):
    """The distribution of the noise of rows, which shrinks the estimate of a new row.

    Attributes
    ----------
    mean, variance : float
        Mean and variance of the logarithms of variances.
    norm : float
        Root mean square entry of the median row.
    least : float
        Smallest scale of a row.
    """

    mean: float
    variance: float
    norm: float
    least: float

    def begin(self, x, known):  # -> (n, 1)
        """Return scales to begin with: long rows are shortened to the median norm."""
        return _shorten(x, known, self.norm)

    def update(self, scale, squares, free):  # (n, 1), (n,), (n,) -> (n, 1)
        """Return scales for the squared residuals at present scales, by degrees of freedom."""
        logs = (squares / free.clamp_min(1)).clamp_min(1e-300).log() + 2 * scale[:, 0].log()
        weight = self.variance / (self.variance + 2 / free.clamp_min(1))
        found = (0.5 * weight * (logs - self.mean)).exp().clamp_min(self.least)[:, None]
        return torch.where(free[:, None] > 0, found, scale)


@dataclass(frozen=True, eq=False)
class Noise:
    """A baseline, and how the noise of entries differs.

    Parameters
    ----------
    intercept : Tensor of shape (n_features,), default=None
        The baseline; None is zero.
    scale : Tensor of shape (n_features,), default=None
        Noise of features, of geometric mean 1; None if it is equal.
    rows : RowNoise, default=None
        Noise of rows; None if it is equal.
    spread : Tensor of shape (2, n_features), default=None
        Median and robust deviation of the columns, without which no entry is an outlier.
    limit : Tensor of shape (n_features,), default=None
        The residual of an outlier, in units of the noise; None without ``spread``.
    norm : float, default=None
        Root mean square entry of the median row, to which a fit shortens long rows whose noise is
        equal. `transform` does not.
    usual : float, default=None
        The usual row's error: the median over rows of the mean square error of hidden entries, in
        units of the noise. A fit compares rows with it to find rows of noise, and divides these
        rows by their own noise; `transform` does not.
    unit : float, default=1.0
        Divisor of centred rows. ``rows``, ``spread``, ``limit`` and ``alpha`` are in this unit.
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
    spread: Tensor | None = None
    limit: Tensor | None = None
    norm: float | None = None
    usual: float | None = None
    unit: float = 1.0
    atoms: Tensor | None = None
    alpha: float | None = None
    positive_code: bool = False

    @property
    def changes_nothing(self):
        """Whether rows stay as they are."""
        return self.intercept is None and self.is_equal and not self.looks_at_rows

    @property
    def is_equal(self):
        """Whether all entries have the same noise."""
        return self.scale is None and self.rows is None

    @property
    def looks_at_rows(self):
        """Whether the units of a row depend on its entries."""
        return not (self.rows is self.spread is self.norm is self.usual is None)

    def centre(self, x):  # (n, n_features) -> the same
        """Return rows without the baseline, in units of the features' noise."""
        x = x if self.intercept is None else x - self.intercept.to(x)
        return x if self.scale is None else x / self.scale.to(x)

    def enter(self, x, mask=None):  # -> x, mask, scales (n, 1) or None
        """Return rows in units of the noise, the entries that count, and the scale of each row.

        A row is taken alone: its scale follows from its own residuals.
        """
        x = self.centre(x)
        if not self.looks_at_rows:
            return x, mask, None
        parts = range(0, len(x), _ROWS_AT_A_TIME)
        masks = [None if mask is None else mask[i : i + _ROWS_AT_A_TIME] for i in parts]
        given = ((x[i : i + _ROWS_AT_A_TIME], part) for i, part in zip(parts, masks, strict=True))
        found = [self._enter(part, known) for part, known in given] or [self._enter(x, mask)]
        x, known, scale = (torch.cat(part) for part in zip(*found, strict=True))
        return x, None if mask is None and bool(known.all()) else known, scale

    def _enter(self, x, mask):
        x, dtype = x.double() / self.unit, x.dtype
        known = torch.ones_like(x) if mask is None else mask.double()
        counts = known if self.spread is None else _screen(x, known, self.spread.to(x))[0]
        scale = torch.ones_like(x[:, :1])
        if self.rows is not None:
            scale = self.rows.begin(x, counts)
        elif self.norm is not None:
            scale = _shorten(x, counts, self.norm)
        if self.rows is None and self.usual is not None:
            fit = dict(atoms=self.atoms.to(x), alpha=self.alpha, positive=self.positive_code)
            far, errors, usual = _find_noise(x, counts, scale, self.usual, **fit)
            scale = torch.where(far[:, None], (errors / usual).sqrt()[:, None], scale)
        if self.rows is self.spread is None:
            return (x / scale * self.unit).to(dtype), known.to(dtype), scale.to(dtype)
        # One turn only: codes for the estimated noise would miss more atoms of a noisy row, and its
        # noise would grow. After one, two and three turns rows of unequal noise have errors of .42,
        # .50 and .53 of the noise.
        within = None if bool(counts.all()) else counts
        options = dict(positive=self.positive_code, mask=within)
        atoms = self.atoms.to(x)
        _, (codes,) = lasso_path(atoms, x / scale, [self.alpha], **options)
        residual = x - scale * (codes @ atoms)
        if self.rows is not None:
            free = counts.sum(1) - (codes != 0).sum(1)
            squares = (residual / scale * counts).square().sum(1)
            scale = self.rows.update(scale, squares, free)
        if self.spread is not None:
            counts = known * ((residual / scale).abs() <= self.limit.to(x))
        x = x / scale * self.unit
        return x.to(dtype), counts.to(dtype), scale.to(dtype)

    def finds_noise(self, given, entered):  # (n, n_features), (n, n_features) -> (n,) bool
        """Mark the rows that `enter` has divided by their noise; missing entries are zeros."""
        if self.usual is None:
            return torch.zeros_like(given[:, 0], dtype=torch.bool)
        known = given != 0
        before, after = ((x * known).square().sum(1) for x in (self.centre(given), entered))
        return before > 0.9 * _DEVIATIONS**2 * after  # a margin for rounding errors

    def of_features(self, features):
        """Return the noise of some features."""
        parts = {name: getattr(self, name) for name in ("intercept", "scale", "spread", "limit")}
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
        """Return the noise from the result of `as_dict`."""
        rows = {"rows": RowNoise(**values["rows"])} if "rows" in values else {}
        return cls(**values | rows)


CENTRED = Noise()  # equal noise around zero


def _shorten(x, known, norm):  # -> (n, 1)
    """Return the scales that shorten long rows to a norm."""
    size = _root_mean_square(x, known)
    return torch.where(size > _LONG * norm, size / norm, 1.0)[:, None]


def _errors_of_hidden(x, known, n_hidden, *, atoms, alpha, positive):  # -> (n,), (n,)
    """Return for each row the mean square error of its hidden entries, and their mean square.

    At least ``n_hidden`` entries of a row are hidden in turn, and predicted by the lasso's codes or
    by least squares on their support, whichever is better.
    """
    sums = x.new_zeros(3, len(x))
    turns = hide_in_turn(torch.arange(x.shape[1]))
    n_turns = max(_TURNS, ceil(len(turns) * n_hidden / x.shape[1]))
    for seen, hidden in turns[:n_turns]:
        mask = None if bool(known[:, seen].all()) else known[:, seen]
        options = dict(positive=positive, mask=mask)
        codes = torch.cat(lasso_path(atoms[:, seen], x[:, seen], [alpha], **options))
        values, counts = x[:, hidden] * known[:, hidden], known[:, hidden]
        errors = (values - counts * (codes @ atoms[:, hidden])).square().sum(2).amin(0)
        sums += torch.stack([errors, values.square().sum(1), counts.sum(1)])
    errors, squares, counts = sums
    return errors / counts.clamp_min(1), squares / counts.clamp_min(1)


def _find_noise(x, known, scale, usual, *, share=_UNPREDICTED, **fit):  # -> (n,), (n,), float
    """Mark rows of noise; also return the errors of all rows, and the usual row's error.

    The error of a row of noise is far above the usual row's, and most of its energy stays
    unpredicted. A few groups of features are hidden in all rows, and then all groups in the rows
    with errors far above the usual row's.

    Parameters
    ----------
    x, known : Tensor of shape (n, n_features)
        Rows, and 1 for known entries.
    scale : Tensor of shape (n, 1)
        Divisors of long rows; rows are coded after the division.
    usual : float or Tensor of shape (n,)
        The usual row's error; or weights of rows, whose weighted median error it then is.
    share : float
        The least unpredicted share of the energy of a row of noise.
    **fit : dict
        Atoms, penalty and sign of the codes.
    """
    squares = scale[:, 0].square()
    errors = _errors_of_hidden(x / scale, known, _OF_A_ROW, **fit)[0] * squares
    if isinstance(usual, Tensor):
        usual = float(_median(errors[:, None], usual[:, None]))
    far = errors > _DEVIATIONS**2 * usual
    hidden = _errors_of_hidden(x[far] / scale[far], known[far], x.shape[1], **fit)
    errors[far], energies = (part * squares[far] for part in hidden)
    far[far.clone()] = errors[far] > (share * energies).clamp_min(_DEVIATIONS**2 * usual)
    return far, errors, usual


def _with_norms(atoms, others):
    norms = atom_norms(atoms)
    return atoms * torch.where(norms > 0, atom_norms(others) / norms, 1.0)


class NoiseTrial(NamedTuple):
    """The noise so far, while it is learned.

    Attributes
    ----------
    noise : Noise
        Baseline and scales.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms that settled in its units.
    alpha : float
        Penalty of their codes.
    is_last : bool
        Whether it is final.
    """

    noise: Noise
    atoms: Tensor
    alpha: float
    is_last: bool = False


class _Units(NamedTuple):
    """A baseline, scales and the entries that count, of given rows."""

    intercept: Tensor  # (n_features,)
    features: Tensor  # (n_features,)
    rows: Tensor  # (n, 1)
    counts: Tensor  # (n, n_features), 1 for entries that count
    noise: RowNoise | None = None  # prior of the rows' scales


class _Residuals(NamedTuple):
    """Least squares on supports: codes, residuals in units of the noise, degrees of freedom."""

    codes: Codes
    values: Tensor  # (n, n_features), 0 for missing entries
    of_rows: Tensor  # (n,), degrees of freedom
    of_features: Tensor  # (n_features,), degrees of freedom


def _root_mean_square(x, known):  # -> (n,)
    return ((x * known).square().sum(1) / known.sum(1).clamp_min(1)).sqrt()


def _quantiles(x, counts, share):  # (n, k), weights (n, k) -> (k,)
    """Return the least value that at least a share of the weight does not exceed; 0 without any."""
    order = torch.where(counts > 0, x, torch.inf).argsort(0)
    sums = counts.gather(0, order).cumsum(0)
    places = (sums < sums[-1] * share).sum(0).clamp_max(len(x) - 1)
    values = x.gather(0, order).gather(0, places[None])[0]
    return torch.where(sums[-1] > 0, values, 0.0)


def _median(x, counts):  # (n, k), weights (n, k) -> (k,)
    """Return `_quantiles` of a half."""
    if bool(((counts == 0) | (counts == 1)).all()):
        medians = torch.where(counts > 0, x, torch.nan).nanmedian(0).values
        return medians.nan_to_num()
    return _quantiles(x, counts, 0.5)


def _screen(x, known, spread):  # -> (n, n_features), (n, 1)
    """Return entries within some deviations of their column, and by what rows are larger than 1.

    An entry of a long row is compared with the row's other entries, too.
    """
    middle, deviation = spread
    distance = (x - middle).abs() / deviation
    size = _median(distance.mT, known.mT)[:, None].clamp_min(_MEDIAN) / _MEDIAN
    return known * (distance <= _DEVIATIONS * size), size


def _quantile(values, often, share):  # (n,), weights (n,) -> float
    """Return the weighted quantile, interpolated between values; see `torch.quantile`."""
    values, order = values.sort()
    places = often[order].cumsum(0) - often[order]
    return float(np.interp(share * float(places[-1]), places, values))


def _spread_of(x, counts):  # (n, n_features), weights of entries -> (2, n_features)
    """Return medians of columns, and robust deviations: infinite where most values are equal.

    At most a tenth of a column is outliers: half of the values of a column may be noise, and a
    third of them signal.
    """
    middle = _median(x, counts)
    distance = (x - middle).abs()
    most = _quantiles(distance, counts, 1 - _MOST) / _DEVIATIONS
    deviation = torch.maximum(_median(distance, counts) / _MEDIAN, most)
    return torch.stack([middle, torch.where(deviation > 0, deviation, torch.inf)])


def _varies(variances, often):  # (n,), weights (n,) -> (n,) bool
    """Return whether variances are no rounding errors of constants."""
    usual = _median(variances[:, None], (often * (variances > 0))[:, None])
    return variances > _CONSTANT * usual


def _pool(variances, free, often=None):
    """Shrink the logarithms of variances to their mean by their sampling error.

    Parameters
    ----------
    variances, free : Tensor of shape (n,)
        Variances, and their degrees of freedom.
    often : Tensor of shape (n,), default=None
        How often each variance counts; None is once.

    Returns
    -------
    scales, mean, variance
        Relative deviations, of geometric mean 1; mean and variance of the logarithms of variances.
    """
    often = torch.ones_like(variances) if often is None else often
    usual = (free > 1) & _varies(variances, often)
    scales = torch.ones_like(variances)
    if int(usual.sum()) < 2:
        return scales, 0.0, 0.0
    logs, error, often = variances[usual].log(), 2 / free[usual], often[usual]
    weights = often / (error + 1e-3)
    weights = weights / weights.sum()
    mean = (weights * logs).sum()
    variance = (weights * ((logs - mean).square() - error)).sum().clamp_min(0)
    found = 0.5 * variance / (variance + error) * (logs - mean)
    scales[usual] = (found - (often * found).sum() / often.sum()).exp()
    return scales, float(mean), float(variance)


def _leverages(atoms, codes, known):  # -> (n, n_features)
    """Return the leverage of each entry: 1 if the fit of the row follows it entirely."""
    found, width = torch.zeros_like(known), codes.index.shape[1]
    if width == 0:
        return found
    places = torch.arange(width)
    step = max(1, _ENTRIES // (width * atoms.shape[1]))
    for first in range(0, len(known), step):
        rows = slice(first, first + step)
        used = places < codes.count[rows, None]
        chosen = atoms[torch.where(used, codes.index[rows].long(), 0)]
        chosen = chosen * used[..., None] * known[rows, None]
        gram = chosen @ chosen.mT + torch.diag_embed(torch.where(used, 1e-9, 1.0).to(atoms))
        factor, failed = torch.linalg.cholesky_ex(gram)
        squares = torch.linalg.solve_triangular(factor, chosen, upper=False).square().sum(1)
        found[rows] = torch.where(failed[:, None] > 0, 0.0, squares.clamp(max=1))
    return found


def _residuals(problem, atoms, x, counts, known):  # -> _Residuals
    weighted = problem.weighted(counts)
    codes = solve_codes(problem, atoms, _CODES, refit=True).fitting
    fitted = codes.dense(len(atoms)) @ atoms
    some = spread_rows(len(x), _LEVERAGES)
    fits = _leverages(atoms, codes.of_rows(some), counts[some])
    fits = fits.sum(0) if problem.weight is None else problem.weight[some] @ fits
    of_features = weighted.sum(0)
    fits *= of_features / weighted[some].sum(0).clamp_min(1e-300)
    free = counts.sum(1) - codes.count, of_features - fits
    return _Residuals(codes, (x - fitted) * known, *free)


def _pool_rows(residuals, counts, rows, often):  # -> (n, 1), mean, variance
    squares, free = (residuals.values.square() * counts).sum(1), residuals.of_rows
    variances = squares / free.clamp_min(1) * rows[:, 0].square()
    scales, mean, variance = _pool(variances, free, often)
    return scales[:, None], mean, variance


def _standard_errors(differences, often):  # (n,), weights (n,) -> float
    """Return a weighted mean in units of its standard error."""
    n, mean = len(differences), (often * differences).sum() / often.sum()
    squares = (often * (differences - mean)).square().sum() * n / max(n - 1, 1)
    return float(mean / (squares.sqrt() / often.sum()).clamp_min(1e-300))


class _Judged:
    """Training and validation rows, and present units with the atoms that have settled in them.

    Validation rows have the numbers ``judges``; ``often`` are weights of rows, ``known`` is 1 for
    known entries, and ``trusted`` for known entries that are no outliers. `take` replaces units
    and atoms, and `improves` does so if they predict better.
    """

    def __init__(self, x, mask, often, n_components, problem, generator):
        self.x = x.double()
        self.often, self._weight = torch.ones_like(self.x[:, 0]) if often is None else often, often
        self.known = torch.ones_like(self.x) if mask is None else mask.double()
        self.x = torch.where(self.known > 0, self.x, 0.0)
        self._signs = dict(
            positive_code=problem.positive_code, positive_atoms=problem.positive_atoms
        )
        self._n_components, self._generator, self.unit = n_components, generator, problem.unit
        wanted = max(len(x) // _JUDGES, min(len(x) // 2, _JUDGED // x.shape[1]))
        self.judges = spread_rows(len(x), min(_MOST_JUDGES, wanted))
        learning = torch.ones(len(x), dtype=torch.bool)
        learning[self.judges] = False
        self._learning = learning.nonzero().flatten()
        ones, zeros = torch.ones_like(self.x[0]), torch.zeros_like(self.x[0])
        self.units = _Units(zeros, ones, torch.ones_like(self.x[:, :1]), self.known)
        self.trusted = self.known
        self.atoms = self._errors = self._residuals = None  # for the present units
        self.norm = None  # norm to which a fit shortens long rows
        self.usual = None  # error of the usual row, if rows of noise were found

    def trial(self, noise=None):
        """Return the last trial, with ``noise``, or an earlier one, with the scales of features."""
        so_far = Noise(**_of_features(self.units, self.unit)) if noise is None else noise
        alpha = self.problem(self.units).alpha * self.unit
        return NoiseTrial(so_far, self.atoms, alpha, is_last=noise is not None)

    def problem(self, units):
        """Return the problem in other units."""
        x = (self.x - units.intercept) / (units.features * units.rows)
        mask = None if bool(units.counts.all()) else units.counts
        given = dict(mask=mask, weight=self._weight)
        return Problem(x, auto_alpha(x, **given), **given, **self._signs)

    def settle(self, units, atoms=None, n_epochs=inf, *, phases=("settle",), unbiased=False):
        """Return atoms that have settled in some units, from given atoms or from rows.

        With more ``phases`` of the search atoms split and are removed, too. If ``unbiased``, they
        lose the lasso's bias in the end.
        """
        problem = self.problem(units).of_rows(self._learning)
        if atoms is None:
            generator = torch.Generator().manual_seed(self._generator.initial_seed())
            given = problem.x, self._n_components, "data", generator
            atoms = initial_atoms(*given, weight=problem.weight)
            norms = atom_norms(atoms)
            atoms = problem.project(atoms / torch.where(norms > 0, norms, 1.0))
        for k, found in enumerate(find_atoms(problem, atoms)):
            if k + 1 >= n_epochs or found.stage not in ("settle", "split and remove"):
                break
        coded = found.coded
        return refit_atoms(problem, coded.atoms, coded.codes) if unbiased else coded.atoms

    def hides_signals(self, residuals):
        """Return whether rows with larger residuals have a smaller share of signal.

        In a row of a photograph with strong contrast residuals are larger, since atoms are missing,
        and explain a larger share.
        """
        units = self.units
        left = (residuals.values * units.counts).square().sum(1)
        x = (self.x - units.intercept) / (units.features * units.rows)
        fitted = ((x * units.counts).square().sum(1) - left).clamp_min(0)
        usual = (left > 0) & _varies(fitted, self.often)
        if int(usual.sum()) < _LEAST_ROWS // 2:
            return False
        scale = 2 * units.rows[usual, 0].log()
        noise = (left / residuals.of_rows.clamp_min(1))[usual].log() + scale
        signal = fitted[usual].log() + scale
        hidden, often = noise - signal, self.often[usual]
        (one, both), (_, other) = torch.cov(torch.stack([noise, hidden]), aweights=often)
        return bool(both > _HIDES * (one * other).sqrt())

    def forget_outliers(self):
        """Take all known entries as they are."""
        ones, self.trusted, self.norm = torch.ones_like, self.known, None
        units = self.units._replace(rows=ones(self.units.rows), counts=self.known)
        self.take(units._replace(features=ones(units.features)), self.atoms)

    @property
    def shortens(self):
        """Whether scales of rows shorten long rows, and are not estimates of noise."""
        rows_differ = bool((self.units.rows != 1).any())
        return rows_differ and self.units.noise is self.usual is None

    def rows_of_noise(self, rows, share=_UNPREDICTED):  # -> (n,) bool, (n, 1), float; or None
        """Mark rows of noise; also return the scales of rows, and the error of the usual row.

        None if no row is noise, if more than a tenth of the rows are, or if their errors matter
        little. A row that owns an atom (see `_OWNED`) is predicted without the owned atoms.

        Parameters
        ----------
        rows : Tensor of shape (n, 1)
            Divisors of all rows before they are coded; rows that are not noise keep them.
        share : float
            See `_find_noise`.
        """
        units, problem = self.units, self.problem(self.units)
        x = (self.x - units.intercept) / units.features
        options = dict(alpha=problem.alpha, positive=problem.positive_code, share=share)
        given = x, units.counts, rows, self.often
        far, errors, usual = _find_noise(*given, atoms=self.atoms, **options)
        squares = self.residuals().codes.dense(len(self.atoms)).square()
        most, places = squares.max(0)
        owned = most > _OWNED * squares.sum(0)
        if bool(owned.any()):
            alone = places[owned].unique()
            given = x[alone], units.counts[alone], rows[alone], usual
            far[alone], errors[alone], _ = _find_noise(*given, atoms=self.atoms[~owned], **options)
        matters = float(self.mean(far * errors)) > _MATTER * float(self.mean(errors))
        if not (matters and self.are_few(far[:, None])):
            return None
        return far, torch.where(far[:, None], (errors / usual).sqrt()[:, None], rows), usual

    def find_missing(self):
        """Find atoms that have not settled; their rows and entries would look like outliers."""
        atoms = self.settle(self.units, self.atoms, phases=_ROUNDS_OF_SEARCH)
        self.take(self.units, atoms)

    def residuals(self):
        """Return the residuals in the present units."""
        if self._residuals is None:
            problem, units = self.problem(self.units), self.units
            x = (self.x - units.intercept) / (units.features * units.rows)
            self._residuals = _residuals(problem, self.atoms, x, units.counts, self.known)
        return self._residuals

    def scales_of_features(self, residuals):  # -> (n_features,), variance
        """Return the scales of features, and the variance of their logarithms."""
        squares = self.weigh(residuals.values.square() * self.units.counts).sum(0)
        free = residuals.of_features
        variances = squares / free.clamp_min(1) * self.units.features.square()
        scales, _, variance = _pool(variances, free)
        return scales, variance

    def scales_of_rows(self, residuals):  # -> (n, 1), mean, variance
        """Return the scales of rows, and mean and variance of the logarithms of variances."""
        return _pool_rows(residuals, self.units.counts, self.units.rows, self.often)

    def weigh(self, entries):  # (n, n_features) -> the same
        """Return entries times the weights of their rows."""
        return entries if self._weight is None else entries * self.often[:, None]

    def usual_size(self, x, counts):  # (n, n_features), (n, n_features) -> float
        """Return the median root mean square entry of rows that are not zero; 1 if all are."""
        size = _root_mean_square(x, counts)[:, None]
        return float(_median(size, self.often[:, None] * (size > 0))) or 1.0

    def are_few(self, rows):  # (n, 1) bool -> bool
        """Return whether some rows are a tenth at most; more long rows would be the data."""
        return float(self.mean(rows[:, 0].double())) <= _MOST

    def mean_row(self, counts):  # (n, n_features) -> (n_features,), bool
        """Return the mean of entries that count, and whether it is far from zero."""
        weights = self.weigh(counts).sum(0)
        mean = self.weigh(self.x * counts).sum(0) / weights.clamp_min(1e-300)
        return mean, _is_far(mean, (self.x - mean) * counts, weights, self.often)

    def mean(self, values):  # (n,) -> scalar
        """Return the weighted mean of values of rows."""
        return (self.often * values).sum() / self.often.sum()

    def limit(self, residuals, rows):  # -> (n_features,)
        """Return the residual of an outlier in each feature, if rows have these scales.

        At most a tenth of a feature is outliers: where a missing atom leaves more, it would never
        be found without them.
        """
        values = (residuals.values * self.units.rows / rows).abs()
        counts = self.weigh(self.known).flatten()[:, None]
        middle = float(_median(values.flatten()[:, None], counts))
        return values.quantile(1 - _MOST, dim=0).clamp_min(_DEVIATIONS * middle / _MEDIAN)

    def errors(self, units, atoms, trusted=None):  # -> (n_judges,), (n_judges,)
        """Return log errors and errors of validation rows, each at the penalty of the least mean.

        Errors are sums of squared errors of hidden entries that are trusted so far; those of the
        second result may be trusted otherwise.
        """
        x = (self.x[self.judges] - units.intercept) / units.features
        x = torch.where(self.known[self.judges] > 0, x, 0.0)
        counts, positive = units.counts[self.judges], self._signs["positive_code"]
        alpha = self.problem(units).alpha
        alphas = [alpha * factor for factor in _PENALTIES]
        trusted = [self.trusted, self.trusted if trusted is None else trusted]
        trusted = torch.stack([part[self.judges] for part in trusted])
        sums = x.new_zeros(2, 2 * len(alphas), len(x))
        turns = hide_in_turn(torch.arange(x.shape[1]))
        n_turns = max(_TURNS, ceil(len(turns) * _HIDDEN / max(x.numel(), 1)))
        for seen, hidden in turns[:n_turns]:
            given, part, rows = x[:, seen], atoms[:, seen], units.rows[self.judges]
            mask = None if bool(counts[:, seen].all()) else counts[:, seen]
            if units.noise is not None:  # noise of a row without its hidden entries
                noise = Noise(rows=units.noise, atoms=part, alpha=alpha, positive_code=positive)
                _, _, rows = noise.enter(given, mask)
            options = dict(positive=positive, mask=mask)
            codes, refits = lasso_path(part, given / rows, alphas, **options)
            counts_of_sums = trusted[:, :, hidden] * units.features[hidden]
            for i, found in enumerate((*codes, *refits)):
                error = x[:, hidden] - rows * (found @ atoms[:, hidden])
                sums[:, i] += (error * counts_of_sums).square().sum(2)
        logs, often = (sums[0] + torch.finfo(x.dtype).tiny).log(), self.often[self.judges]
        return logs[int((logs @ often).argmin())], sums[1, int((sums[1] @ often).argmin())]

    def take(self, units, atoms):
        """Replace the present units, and the atoms by the atoms that settled in the new units."""
        self.units, self.atoms = units, atoms
        self._errors = self._residuals = None

    def keeps(self, before, n_settles):
        """Return whether present units predict better than earlier units; else restore the earlier.

        Earlier atoms settle again for the same number of epochs, since settling alone improves
        atoms.
        """
        units, atoms = self.units, self.atoms
        self.take(*before)
        for _ in range(n_settles):
            self.take(self.units, self.settle(self.units, self.atoms, _AGAIN))
        return self.improves(units, atoms)

    def improves(self, units, atoms, *, gains=True, in_sum=False, trusted=None):
        """Take new units if they predict better, or no worse in sum; return whether.

        Parameters
        ----------
        units : _Units
            The new units.
        atoms : Tensor of shape (n_components, n_features)
            Atoms that have settled there.
        gains : bool, default=True
            Whether errors have to fall.
        in_sum : bool, default=False
            Whether it suffices that the sum of errors falls.
        trusted : Tensor of shape (n, n_features), default=None
            Entries of the sum, and of all errors from now on if the units are taken; None changes
            nothing.
        """
        present = self._errors if trusted is None else None
        present = self.errors(self.units, self.atoms, trusted) if present is None else present
        errors = self.errors(units, atoms, trusted)
        (logs, sums), (logs_before, sums_before) = errors, present
        often, gain = self.often[self.judges], logs_before - logs
        loss = _standard_errors(sums - sums_before, often)
        mean, n_errors = float(often @ gain / often.sum()), _standard_errors(gain, often)
        is_sure = n_errors > _SURE or (n_errors > _BOTH and loss < -_BOTH)
        is_sure &= mean > _LEAST_GAIN
        is_sure |= in_sum and loss < -_BOTH and n_errors > -_CHANCE
        is_taken = is_sure and loss < _CHANCE if gains else loss < _SURE
        if is_taken:
            self.take(units, atoms)
            self.gain = mean
            self.trusted = self.trusted if trusted is None else trusted
            present = errors
        self._errors = present if trusted is None else None
        return is_taken


def _is_far(mean, deviations, counts, often):
    """Return whether a mean is far from zero, given that features correlate.

    ``counts`` (n_features,) are sums of weights, and ``often`` (n,) has the weights of rows.
    """
    squares = often @ deviations.square()
    variances = squares / counts.clamp_min(1e-300)
    usual = _varies(variances, (counts > 0).to(variances))
    energies = mean.square() * counts
    least = _SUBSTANTIAL * (energies + squares).sum()
    if not energies.sum() > least:
        return False
    if energies[~usual].sum() > least:  # of constants
        return True
    # Rows of unequal weight have the information of fewer rows of equal weight.
    n_equal = counts * (often.sum() / often.square().sum())
    statistic = (n_equal * mean.square() / variances)[usual].sum()
    standard = deviations[:, usual] / variances[usual].sqrt() * often[:, None].sqrt()
    correlations = standard.mT @ standard / often.sum()
    spread = (2 * correlations.square().sum()).sqrt()
    return bool(statistic > usual.sum() + _FAR * spread)


def _learn_baseline(judged, asked, *, gains, again=False):  # a generator
    """Take the mean as the baseline, if it is far from zero.

    The mean of non-negative codes is far from zero without a baseline, which then has to bring
    ``gains``. Their atoms settle late, and the penalty biases them: a baseline that seems to gain
    is compared again once no atom is missing, with unbiased atoms. If it is asked for ``again``,
    after outliers were found, it is compared in this way only.
    """
    usual = judged.units.counts * (judged.units.rows == 1)
    mean, is_far = judged.mean_row(usual)
    if not is_far and asked is not True:  # one long row may hide it
        x = judged.x - _median(judged.x, judged.weigh(usual))
        rows = _shorten(x, usual, judged.usual_size(x, usual))
        if judged.are_few(rows > 1):
            mean, is_far = judged.mean_row(usual * (rows == 1))
        if not is_far:
            return
    units = judged.units._replace(intercept=mean)
    atoms = judged.settle(units)
    yield judged.trial()
    if asked is True:
        judged.take(units, atoms)
        return
    before = judged.units, judged.atoms
    is_taken = not again and judged.improves(units, atoms, gains=gains, in_sum=True)
    if not (gains and (is_taken or again)):
        return
    found = []
    for tried, begun in before, (units, atoms):
        judged.take(tried, judged.settle(tried, begun, phases=_ROUNDS_OF_SEARCH, unbiased=True))
        found.append((tried, judged.atoms))
        yield judged.trial()
    judged.take(*found[0])
    judged.improves(*found[1], gains=again)


def _units_of_usual_entries(judged):  # -> _Units, norm of shortened rows, energy of long rows
    """Return units from medians: without far entries, long rows, and columns of other units.

    Entries are left out, and columns scaled, where it matters. The energy of long rows is a share.
    """
    units, known, weigh = judged.units, judged.known, judged.weigh
    spread = _spread_of(judged.x, weigh(known))
    counts, size = _screen(judged.x, known, spread)
    if float(weigh(known - counts).sum()) > _MOST * float(weigh(known).sum()):
        counts = known
    deviation = torch.where(spread[1].isinf() | (spread[1] == 0), torch.nan, spread[1])
    squares = weigh(((judged.x - spread[0]) * counts).square()).sum(0)
    root = (squares / weigh(counts).sum(0).clamp_min(1e-300)).sqrt()
    columns = torch.where(deviation.isnan(), root, deviation)
    columns = torch.where(columns > 0, columns, 1.0)
    if columns.max() > _UNITS * columns.min():
        units = units._replace(features=columns / columns.log().mean().exp())
    if bool(units.intercept.any()):
        usual = weigh(counts * (size <= _LONG))
        mean = (judged.x * usual).sum(0) / usual.sum(0).clamp_min(1e-300)
        units = units._replace(intercept=mean)
    x = (judged.x - units.intercept) / units.features
    norm = judged.usual_size(x, counts)
    rows = _shorten(x, counts, norm)
    squares = weigh(((judged.x - spread[0]) * known / (units.features * rows)).square())
    if float((squares * (1 - counts)).sum()) <= _OUTLYING * float(squares.sum()):
        counts = known
    squares = weigh((x * counts).square())
    of_long = float((squares * (rows > 1)).sum() / squares.sum().clamp_min(1e-300))
    return units._replace(rows=rows, counts=counts), norm, of_long


def _learn_outliers(judged):  # a generator, which returns whether entries are screened
    """Treat entries that are far off as missing, shorten long rows, and scale columns, if any.

    Each may hide what the next one gains: so screening is judged with long rows shortened, and then
    all of it together.
    """
    before, known = (judged.units, judged.atoms), judged.known
    screened, norm, of_long = _units_of_usual_entries(judged)
    units = screened._replace(counts=known)
    screens, differ = (bool((screened.counts != known).any()), bool((units.features != 1).any()))
    if not (screens or of_long > _OUTLYING or differ):
        return False
    atoms = judged.settle(units)
    yield judged.trial()
    usual = units.rows == 1  # long rows are unpredictable, and would dominate the sum
    if screens:
        judged.take(units, atoms)
        atoms = judged.settle(screened)
        yield judged.trial()
        screens = judged.improves(screened, atoms, trusted=screened.counts * usual)
        units, atoms = judged.units, judged.atoms
        judged.take(*before)
    few = judged.are_few(~usual)
    must = units.features.max() > _FOREIGN * units.features.min() or (few and of_long > _RULING)
    options = dict(trusted=units.counts * usual, in_sum=of_long > _RULING or differ)
    if not judged.improves(units, atoms, gains=not must, **options):
        judged.trusted = known
        return False
    if few and judged.shortens and (must or judged.gain > _MUCH):
        judged.norm = norm
    if screens:
        judged.find_missing()
        yield judged.trial()
    return screens


def _learn_rows_of_noise(judged):  # a generator
    """Divide unpredictable rows by their noise, so that they hardly count for atoms.

    Rows of missing atoms are unpredictable, too, so missing atoms are found first. Rows are then
    set aside in turn, at each share of `_SET_ASIDE`, and atoms settle without them. The last atoms
    decide which rows are noise. The earlier units return if no row is noise, or if the other rows
    are predicted worse.
    """
    shorter = judged.units.rows if judged.norm is not None else torch.ones_like(judged.units.rows)
    if judged.rows_of_noise(shorter) is None:
        return
    judged.find_missing()
    yield judged.trial()
    before = judged.units, judged.atoms
    for share in (*_SET_ASIDE, _UNPREDICTED):
        found = judged.rows_of_noise(shorter, share)
        if found is None:
            judged.take(*before)
            return
        far, rows, usual = found
        units = judged.units._replace(rows=rows)
        judged.take(units, judged.settle(units, judged.atoms, phases=_ROUNDS_OF_SEARCH))
        yield judged.trial()
    atoms = judged.atoms
    judged.take(*before)
    if judged.improves(units, atoms, gains=False, trusted=judged.trusted * ~far[:, None]):
        judged.usual = usual


def _learn_features(judged, asked):  # a generator
    """Take the noise of features into account, if it is unequal."""
    scales, variance = judged.scales_of_features(judged.residuals())
    if not asked and variance < _UNEQUAL["features"]:
        return
    before = judged.units, judged.atoms
    for i in range(_ROUNDS["features"]):
        if float(_change(scales, judged.units.features).max()) < _STILL:
            break
        atoms = judged.atoms * judged.units.features / scales
        units = judged.units._replace(features=scales)
        n_epochs = _AGAIN if i < _ROUNDS_BEFORE else inf
        judged.take(units, judged.settle(units, atoms / atom_norms(atoms), n_epochs))
        yield judged.trial()
        scales, _ = judged.scales_of_features(judged.residuals())
        if i + 1 == _ROUNDS_BEFORE and not asked and not judged.keeps(before, i + 1):
            return
    if not asked and 0 < i < _ROUNDS_BEFORE:
        judged.keeps(before, i)


def _change(scales, before):  # -> Tensor of the shape of scales
    return (scales / before).log().abs()


def _learn_rows(judged, asked, screens):  # a generator, which returns whether rows differ
    """Take the noise of rows into account, if it is unequal."""
    residuals = judged.residuals()
    scales, _, variance = judged.scales_of_rows(residuals)
    if not asked:
        if variance < _UNEQUAL["rows"] or not judged.hides_signals(residuals):
            return False
        judged.find_missing()
        yield judged.trial()
        residuals = judged.residuals()
        scales, _, variance = judged.scales_of_rows(residuals)
        if variance < _UNEQUAL["rows"] or not judged.hides_signals(residuals):
            return False
    first = judged.units, judged.atoms
    for i in range(_ROUNDS["rows"]):
        change = float(judged.mean(_change(scales, judged.units.rows)[:, 0]))
        if change < _STILL and (i or not asked):
            break
        units = judged.units._replace(rows=scales, noise=_rows_of(judged, residuals, scales))
        if screens:
            far = (residuals.values * judged.units.rows / scales).abs()
            far = far > judged.limit(residuals, scales)
            units = units._replace(counts=judged.known * ~far)
        before = judged.units, judged.atoms
        judged.take(units, judged.settle(units, judged.atoms, inf if i or asked else _AGAIN))
        yield judged.trial()
        if not (i or asked or judged.keeps(before, 1)):
            return False
        if i == 0:
            judged.find_missing()
            yield judged.trial()
        residuals = judged.residuals()
        scales, _, _ = judged.scales_of_rows(residuals)
    # with too few atoms, rows of missing atoms lose weight in each round
    return i > 0 and (asked or judged.keeps(first, 1))


def _sample(problem, n_components):  # -> x, mask, weights of mean 1 or None
    m = problem.x.shape[1]
    wanted = min(max(_ROWS, _ROWS_PER_ATOM * max(n_components, m)), max(_ENTRIES // m, 1024))
    distinct = match_equal_rows(problem.x, problem.mask).unique()  # validation rows have no copies
    weight = None if problem.weight is None else problem.weight[distinct].cpu().double()
    drawn, weight = draw_rows(len(distinct), wanted, weight)
    rows = distinct[drawn]
    mask = None if problem.mask is None else problem.mask[rows].cpu()
    return problem.x[rows].cpu(), mask, weight if weight is None else weight / weight.mean()


def refine_noise(noise, problem, atoms, alpha):  # -> Noise
    """Return the noise with the baseline and the distribution of rows that atoms leave.

    Parameters
    ----------
    noise : Noise
        The noise that the atoms were found in.
    problem : Problem
        Rows as they are, of all processes, divided by its unit, and the signs of codes and atoms.
    atoms : Tensor of shape (n_components, n_features)
        Unit atoms, in units of the noise.
    alpha : float
        Penalty of the codes of `transform`, in the units of the data.

    Returns
    -------
    Noise
        The noise; scales of features stay.
    """
    if noise.intercept is None and noise.rows is None:
        return noise
    atoms = atoms.cpu().double()
    given, mask, often = _sample(problem, len(atoms))
    x, counts, rows = noise.enter(given.double() * problem.unit, mask)
    x, alpha = x / problem.unit, alpha / problem.unit
    alpha *= 1 if noise.rows is None else _BELOW
    changed = dict(x=x, alpha=alpha, mask=counts, weight=often)
    problem = replace(problem, **changed, held_out=None, held_rows=None)
    counts = torch.ones_like(x) if counts is None else counts
    rows = torch.ones_like(x[:, :1]) if rows is None else rows
    residuals = _residuals(problem, atoms, x, counts, counts)
    scale = torch.ones_like(x[0]) if noise.scale is None else noise.scale
    changes = {}
    if noise.intercept is not None:
        weights = problem.weighted(counts) / rows.square()
        errors = (weights * residuals.values * rows * scale).sum(0) * problem.unit
        changes["intercept"] = noise.intercept + errors / weights.sum(0).clamp_min(1e-300)
    if noise.rows is not None:
        _, mean, variance = _pool_rows(residuals, counts, rows, often)
        changes["rows"] = noise.rows._replace(mean=mean, variance=variance)
        changes |= dict(atoms=atoms, alpha=alpha)
    return replace(noise, **changes)


def _screen_residuals(judged):  # a generator
    """Treat entries as missing that are far from the fit of their row."""
    residuals, units = judged.residuals(), judged.units
    far = residuals.values.abs() > judged.limit(residuals, units.rows)
    if float(judged.weigh(far).sum()) < _MOST * float(judged.weigh(judged.known).sum()):
        units = units._replace(counts=judged.known * ~far)
        judged.take(units, judged.settle(units, judged.atoms, _AGAIN))
        yield judged.trial()


def learn_noise(problem, n_components, generator, *, intercept="auto", noise="auto"):
    """Learn the baseline and the noise of rows, step by step.

    Parameters
    ----------
    problem : Problem
        Rows of all processes, divided by its unit, and the signs of codes and atoms.
    n_components : int
        Number of atoms of the search.
    generator : torch.Generator
        Its seed draws the first atoms; it is not used up.
    intercept : bool or "auto", default="auto"
        Whether there is a baseline; "auto" judges.
    noise : {"auto", "equal", "columns", "features", "rows", "both"} or Tensor, default="auto"
        Which noise is unequal; "auto" judges, and treats outliers as well. "columns" does the same
        without residuals: it judges outliers, rows of noise, and whether columns have units of
        their own. A tensor of shape (n_features,) is the noise of features, of geometric mean 1.

    Yields
    ------
    NoiseTrial
        The last one has the noise.
    """
    x, mask, often = _sample(problem, n_components)
    n, m = x.shape
    scale, noise = (None, noise) if isinstance(noise, str) else (noise.cpu(), "equal")
    if n < _LEAST_ROWS or m < 2 or not bool(x.any()):
        noise = _of_few_rows(problem, x.double(), mask, often, intercept, scale)
        yield NoiseTrial(noise, x[: min(n_components, n)].double(), 1.0, is_last=True)
        return
    judged = _Judged(x, mask, often, min(n_components, _ATOMS), problem, generator)
    if scale is not None:
        judged.units = judged.units._replace(features=scale)
    judged.take(judged.units, judged.settle(judged.units))
    yield judged.trial()
    if intercept is not False:
        yield from _learn_baseline(judged, intercept, gains=problem.positive_code)
    auto, screens = noise == "auto", False
    if auto or noise == "columns":
        screens = yield from _learn_outliers(judged)
        found, units = judged.trusted is not judged.known, judged.units
        may_be_hidden = intercept == "auto" and problem.positive_code and not units.intercept.any()
        if found and may_be_hidden:
            yield from _learn_baseline(judged, intercept, gains=True, again=True)
            if judged.units is not units:  # outliers are other ones with the baseline
                judged.forget_outliers()
                screens = yield from _learn_outliers(judged)
        if screens:
            yield from _screen_residuals(judged)
        yield from _learn_rows_of_noise(judged)
    differ = False
    if judged.shortens and judged.norm is None:  # rows that only their noise may shorten
        differ = auto and (yield from _learn_rows(judged, False, screens))
        if not differ:
            units = judged.units._replace(rows=torch.ones_like(judged.units.rows))
            judged.take(units, judged.settle(units, judged.atoms))
            yield judged.trial()
    if auto or noise in ("features", "both"):
        yield from _learn_features(judged, not auto)
    if not differ and (auto or noise in ("rows", "both")):
        differ = yield from _learn_rows(judged, not auto, screens)
    if screens and not differ:
        yield from _screen_residuals(judged)
    yield judged.trial(_found(judged, differ, screens, problem.positive_code))


def _of_few_rows(problem, x, mask, often, intercept, scale):  # -> Noise
    """Return the noise of too few rows for a validation: a baseline and what is named.

    With non-negative codes only a validation tells a baseline from the mean of codes.
    """
    often = x.new_ones(len(x)) if often is None else often.to(x)
    known = torch.ones_like(x) if mask is None else mask.to(x)
    counts, x = often @ known, torch.where(known > 0, x, 0.0) * problem.unit
    mean = often @ x / counts.clamp_min(1e-300)
    judges = intercept == "auto" and len(x) >= _FEW_ROWS and not problem.positive_code
    if intercept is True or (judges and _is_far(mean, (x - mean) * known, counts, often)):
        return Noise(intercept=mean, scale=scale)
    return CENTRED if scale is None else Noise(scale=scale)


def _of_features(units, unit):  # -> dict
    parts = {"intercept": units.intercept * unit, "scale": units.features}
    usual = {"intercept": 0.0, "scale": 1.0}
    return {name: part for name, part in parts.items() if bool((part != usual[name]).any())}


def _found(judged, differ, screens, positive_code):  # -> Noise
    """Return the noise of the present units."""
    units = judged.units
    parts = _of_features(units, judged.unit)
    if not differ and judged.norm is not None:
        centred = (judged.x - units.intercept) / units.features
        parts |= dict(norm=judged.usual_size(centred, units.counts), unit=judged.unit)
    if not differ and judged.usual is not None:
        parts["usual"] = judged.usual
    if not (differ or screens or judged.usual is not None):
        return Noise(**parts)
    residuals = judged.residuals()
    problem = judged.problem(units)
    parts |= dict(unit=judged.unit, atoms=judged.atoms, alpha=problem.alpha)
    parts["positive_code"] = positive_code
    if screens:
        centred = (judged.x - units.intercept) / units.features
        parts["spread"] = _spread_of(centred, judged.weigh(judged.known))
        parts["limit"] = judged.limit(residuals, units.rows)
    noise = Noise(**parts)
    return noise if not differ else replace(noise, rows=_rows_of(judged, residuals, units.rows))


def _rows_of(judged, residuals, scales):  # -> RowNoise
    units = judged.units
    _, mean, variance = judged.scales_of_rows(residuals)
    norm = judged.usual_size((judged.x - units.intercept) / units.features, units.counts)
    least = _quantile(scales[:, 0], judged.often, _LEAST_SCALE)
    return RowNoise(mean, variance, norm, least)
