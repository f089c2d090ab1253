"""The units of rows as a value: what converts rows to units of the noise, and codes back.

`Units` have a baseline, the limits of outliers, and the noise of features and of rows; the model is
explained in `skpudle.search.learn_units`, which learns them. Fitted learners keep them, so this
module needs the lasso alone.

.. [1] J. Chen and Z. Chen, "Extended Bayesian information criteria for model selection with large
   model spaces", Biometrika 95, 2008.
"""

from dataclasses import dataclass, replace
from math import inf, log, log2
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows
from skpudle._operators._atoms import atom_norms
from skpudle._rows import gaps_in, hide_in_turn
from skpudle.lasso._solve import lasso_path, solve_lasso

# Where noise is low, the error of an entry costs the lasso of `usual_entries` at least this factor
# times the penalty of a unit atom's code, so that atoms rather than errors explain a row. With the
# factor 1 rows without outliers are taken for outliers in three data sets, and fits have errors of
# 1.2 to 3.4 times the noise; with 1.5 they have 0.5 to 0.7 times the noise. With 3 atoms learn the
# planted spikes, large errors of single entries.
_DEARER = 1.5
# A row is long, and so a suspect, if its norm is more than 3 times the median norm. Few rows
# without outliers are as long: the norm of a row with k normal codes has a relative standard
# deviation of (2 k)**-0.5.
LONG = 3.0
# A long row is an outlier if atoms leave more than this fraction of the energy (sum of squares) of
# its hidden entries unpredicted. The fraction is 1.0 to 1.3 on average over planted outlying rows,
# but varies from row to row, so the limit is lower. For all suspects together the limit is nine
# tenths: the fraction of planted outliers is 0.80 to 2.0. The fraction of suspects is at most 0.88
# in 9 of 460 random data sets without outliers, in which leaving the suspects out would multiply
# the error of a fit by 1.1 to 490. With 0.75 instead of 0.5 outlying rows stay, and errors are 1.7
# to 3.2 times as large (benchmarks/constants.py unpredicted).
_UNPREDICTED = 0.5
# Factors on the penalty of codes whose residuals estimate the noise of a row; `noise_variances`
# chooses one factor for each row. With the factor 1 alone, codes of rows with a signal-to-noise
# ratio of 50 dB miss an atom, and the estimated noise of these rows is 17 times too large.
_PENALTIES_OF_ROWS = 1.0, 0.5, 0.25


class LassoCoder(NamedTuple):
    """What codes rows by the lasso: atoms of norm 1 (p, m), and the penalty ``alpha``.

    ``positive`` is whether codes are non-negative. Rows are (n, m).
    """

    atoms: Tensor
    alpha: float
    positive: bool = False

    def residuals(self, x, mask, debias=1.0):  # -> (n, m), (n,)
        """Return the residuals (n, m) of rows, and their numbers of nonzero codes (n,).

        Noise is estimated from both. Residuals are 0 at missing entries. Codes are moved by
        ``debias``, from 0 to 1, from the lasso's codes to least squares on their supports. ``x``
        and ``mask`` are (n, m).
        """
        residuals = torch.empty_like(x)
        n_codes = torch.empty_like(x[:, 0])
        for rows in blocks_of_rows(len(x), len(self.atoms)):
            lasso, least_squares = lasso_path(
                self.atoms,
                x[rows],
                [self.alpha],
                positive=self.positive,
                mask=gaps_in(mask[rows]),
            )
            codes = torch.lerp(lasso[0], least_squares[0], debias)
            residuals[rows] = (x[rows] - codes @ self.atoms) * mask[rows]
            n_codes[rows] = (codes != 0).sum(1).to(x)
        return residuals, n_codes

    def noise_variances(self, x, mask):  # -> (n,), (n,)
        """Estimate the variance of the noise of each row from the residuals of its codes.

        A row with little noise needs a smaller penalty, since an atom that its codes miss would
        count as noise. So each row is coded at the three penalties of ``_PENALTIES_OF_ROWS``. Its
        codes are the ones with the least extended Bayesian information criterion (reference [1] of
        the module), which allows for the choice of a few nonzero codes among all atoms. At the
        two smaller penalties codes are excluded if the number of nonzero codes exceeds half of the
        number of known entries of the row.

        Parameters
        ----------
        x, mask : Tensor of shape (n, n_features)
            Rows and the mask of the entries that count.

        Returns
        -------
        variances : Tensor of shape (n,)
            Sum of squared residuals over degrees of freedom.
        n_free : Tensor of shape (n,)
            Degrees of freedom: entries that count minus nonzero codes, at least 1.
        """
        n_known = mask.sum(1)
        least = torch.full_like(x[:, 0], inf)
        variances = torch.zeros_like(least)
        n_free = torch.zeros_like(least)
        # what each nonzero code adds to the criterion
        cost = (n_known.clamp_min(1) * len(self.atoms) ** 2).log()
        for factor in _PENALTIES_OF_ROWS:
            coder = self._replace(alpha=factor * self.alpha)
            residuals, n_codes = coder.residuals(x, mask)
            squares = residuals.square().sum(1)
            criterion = n_known * squares.clamp_min(1e-300).log() + n_codes * cost
            # ``n_free`` is 0 before the first penalty, whose codes are taken in any case
            is_better = (criterion < least) & (n_codes <= n_known / 2) | (n_free == 0)
            least = torch.where(is_better, criterion, least)
            n_free = torch.where(is_better, (n_known - n_codes).clamp_min(1), n_free)
            variances = torch.where(is_better, squares / n_free, variances)
        return variances, n_free

    def usual_entries(self, x, mask, limit):  # -> (n, m)
        """Mark the known entries that are not outliers: with errors up to ``limit`` (m,).

        The lasso of the rows ``x`` (n, m), with their ``mask`` (n, m), solves for codes of the
        atoms and for an error of each entry. The penalty of an error is its limit. Then codes and
        errors are freed of the lasso's bias. The penalty of codes is ``alpha``, but at most the
        least limit over 1.5: where noise is low, a code would otherwise cost more than errors of
        all entries.
        """
        alpha = min(self.alpha, float(limit.min()) / _DEARER)
        # The error of entry j is the code of an atom of its own, `alpha / limit[j]` at entry j and
        # zero elsewhere. So the penalty alpha of the code costs `limit[j]` times the error.
        own = torch.diag(alpha / limit)
        signs = [own, -own] if self.positive else [own]
        codes, _ = solve_lasso(
            torch.cat([self.atoms, *signs]),
            x,
            alpha,
            positive=self.positive,
            mask=gaps_in(mask),
            certify=False,
            debias=1.0,
        )
        codes = codes[:, len(self.atoms) :].reshape(len(x), -1, len(own))
        # (n, m): an entry has one code, or one for each sign, of which the larger counts
        error_codes = codes.abs().amax(1)
        # an error is its code times alpha / limit
        return mask * (error_codes * alpha <= limit.square())

    def outlying_rows(self, x, mask, median_norm):  # -> (n,) bool
        """Mark outlying rows, which a fit leaves out: long, and not predicted by the atoms.

        Such a row is over 3 times as long as the median row, and the atoms leave more than half of
        the energy of its hidden entries unpredicted. The rows ``x`` and their ``mask`` are (n, m),
        and ``median_norm`` is the root mean square entry of the median row.
        """
        squares = (x * mask).square().sum(1)
        is_long = squares > (LONG * median_norm) ** 2 * mask.sum(1)
        long = x[is_long]
        mask = mask[is_long]
        # Long rows are scaled to the median length, because the penalty suits rows of this length.
        factors = (mask.sum(1) / squares[is_long]).sqrt()
        long = long * median_norm * factors[:, None]
        errors, _ = self.predict_hidden(long, mask)
        energies = (long * mask).square().sum(1)
        is_outlier = torch.zeros_like(is_long)
        is_outlier[is_long] = errors.sum(1) > _UNPREDICTED * energies
        return is_outlier

    def predict_hidden(
        self,
        x,
        mask,
        *,
        factors=(1.0,),
        judged=None,
    ):
        """Predict entries that are hidden in turn, to judge atoms and units.

        Codes are the lasso's or least squares on its supports, at one of the penalties: the
        combination with the least error in all judged entries.

        Parameters
        ----------
        x, mask : Tensor of shape (n, m)
            Rows and the mask of their known entries.
        factors : sequence of float, default=(1.0,)
            The penalties that are tried, from large to small, in units of ``alpha``.
        judged : Tensor of shape (n, m), default=None
            1 for entries whose errors are returned; all known entries by default.

        Returns
        -------
        errors : Tensor of shape (n, m)
            Squared errors, 0 for entries that are not judged.
        predictions : Tensor of shape (n, m)
            Predicted values, 0 for missing entries.
        """
        alphas = [factor * self.alpha for factor in factors]
        predictions = x.new_zeros(2 * len(alphas), *x.shape)
        for seen, hidden in hide_in_turn(torch.arange(x.shape[1])):
            paths = lasso_path(
                self.atoms[:, seen],
                x[:, seen],
                alphas,
                positive=self.positive,
                mask=gaps_in(mask[:, seen]),
            )
            # first the lasso's codes at all penalties, then least squares on their supports
            predictions[:, :, hidden] = torch.cat(paths) @ self.atoms[:, hidden]
        errors = (x - predictions).square() * (mask if judged is None else judged)
        best = int(errors.sum((1, 2)).argmin())
        return errors[best], predictions[best] * mask


def _with_norms(atoms, models):  # (p, m), (p, m) -> (p, m)
    """Return ``atoms`` scaled to the norms of the atoms ``models``; zero atoms stay zero."""
    norms = atom_norms(atoms)
    return atoms * torch.where(norms > 0, atom_norms(models) / norms, 1.0)


class RowNoise(NamedTuple):
    """The distribution of the noise of rows, by which `Units.enter` estimates a new row's noise.

    Attributes
    ----------
    mean, variance : float
        Mean and variance, over rows, of the logarithm of a row's noise variance, to which the
        estimate for a new row is shrunk.
    least : float
        The smallest noise of a row, divided by the geometric mean of the noise of rows. The noise
        of a new row is not estimated below it.
    """

    mean: float
    variance: float
    least: float


@dataclass(frozen=True, eq=False)
class Units:
    """The units of rows: a baseline, the limits of outliers, and the noise of features and rows.

    `learn_units` makes them, `enter` converts rows to them, and fitted learners keep them. The
    *noise* of a feature or row is its standard deviation, see the module.

    Parameters
    ----------
    intercept : Tensor of shape (n_features,), default=None
        The baseline; None is zero.
    scale : Tensor of shape (n_features,), default=None
        Standard deviations of the noise of features, divided by their geometric mean; None if all
        are equal.
    row_noise : RowNoise, default=None
        How the noise of rows is distributed. None if all rows have equal noise.
    limit : Tensor of shape (n_features,), default=None
        The largest error of an entry, in units of the noise of features. An entry with a larger
        error is an outlier and is treated as missing. None: there are no such outliers.
    median_norm : float, default=None
        Root mean square entry of the median row. A fit leaves out rows that are more than 3 times
        as long and that atoms do not predict; `transform` codes them. None: no row is left out.
    atoms : Tensor of shape (n_components, n_features), default=None
        Atoms of norm 1, in units of the noise. Their codes decide on the noise of a row and on
        outliers.
    alpha : float, default=None
        Penalty of the codes of ``atoms``, for rows in units of the noise of features.
    positive_code : bool, default=False
        Whether the codes of ``atoms`` are non-negative.
    """

    intercept: Tensor | None = None
    scale: Tensor | None = None
    row_noise: RowNoise | None = None
    limit: Tensor | None = None
    median_norm: float | None = None
    atoms: Tensor | None = None
    alpha: float | None = None
    positive_code: bool = False

    @property
    def looks_at_rows(self):
        """Whether `enter` codes each row, to find its noise or its outliers.

        Then ``atoms`` and ``alpha`` must not be None.
        """
        return not (self.row_noise is self.limit is self.median_norm is None)

    @property
    def changes_nothing(self):
        """Whether `enter` returns the data unchanged."""
        return self.intercept is self.scale is None and not self.looks_at_rows

    def limit_in_data(self):  # -> (n_features,)
        """Return ``limit``, the largest error of an entry, in the units of the data.

        Scores treat larger errors as outliers. Call it only if ``limit`` is not None.
        """
        if self.scale is None:
            return self.limit
        return self.limit * self.scale.to(self.limit)

    def enter(self, x, mask=None):  # -> x, mask, scales (n, 1) or None
        """Convert rows to units of the noise, before a search or a code.

        The noise and the outliers of a row depend on the entries of this row alone, so rows may be
        converted in any batches.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
            Rows in the units of the data.
        mask : Tensor of shape (n, n_features), default=None
            1 for known entries, 0 for missing ones.

        Returns
        -------
        x : Tensor of shape (n, n_features)
            The rows in units of the noise.
        mask : Tensor of shape (n, n_features) or None
            1 for known entries that are not outliers; None if ``mask`` is None and no entry is an
            outlier.
        scale : Tensor of shape (n, 1) or None
            The noise of each row, by which the row was divided; None if all rows have equal noise.
        """
        if self.intercept is not None:
            x = x - self.intercept.to(x)
        if self.scale is not None:
            x = x / self.scale.to(x)
        if not self.looks_at_rows:
            return x, mask, None
        observed = torch.ones_like(x) if mask is None else mask
        masks = []
        scales = []
        for rows in blocks_of_rows(len(x), x.shape[1]):
            usual, scale = self._look_at(x[rows], observed[rows])
            masks.append(usual)
            scales.append(scale)
        usual = torch.cat(masks)
        if mask is None:
            usual = gaps_in(usual)
        if self.row_noise is None:
            return x, usual, None
        scale = torch.cat(scales)
        return x / scale, usual, scale

    def _look_at(self, x, mask):  # -> mask, scale
        """Find the outliers and the noise of rows by the codes of ``atoms``, for `enter`.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
            Rows without the baseline, divided by the noise of features.
        mask : Tensor of shape (n, n_features)
            1 for known entries, 0 for missing ones.

        Returns
        -------
        mask : Tensor of shape (n, n_features)
            1 for known entries that are not outliers.
        scale : Tensor of shape (n, 1)
            The noise of each row.
        """
        unit = 2.0 ** round(log2(self.alpha))  # divisor, so that no square overflows
        y = torch.where(mask > 0, x, 0.0).double() / unit
        usual = mask.double()
        coder = LassoCoder(self.atoms.to(y), self.alpha / unit, self.positive_code)
        scale = torch.ones_like(y[:, :1])
        if self.row_noise is not None:
            mean, variance, least = self.row_noise
            variances, n_free = coder.noise_variances(y, usual)
            logs = variances.clamp_min(1e-300).log() + 2 * log(unit) - mean
            # The noise is the root of the variance, so its logarithm is half as large. The
            # difference from the mean over rows shrinks the more, the larger the sampling variance
            # of the logarithm, 2 / n_free, is.
            logs = 0.5 * variance / (variance + 2 / n_free) * logs
            scale = logs.exp().clamp_min(least)[:, None]
            # nothing is known of the noise of a row without known entries
            scale = torch.where(usual.any(1, keepdim=True), scale, 1.0)
        if self.limit is not None:
            usual = coder.usual_entries(y, usual, self.limit.to(y) / unit)
        if self.median_norm is not None:
            outliers = coder.outlying_rows(y, usual, self.median_norm / unit)
            usual = usual * ~outliers[:, None]
        return usual.to(mask), scale.to(x)

    def of_features(self, features):  # numbers of features or a mask -> Units
        """Return the units of the chosen features: their baselines, noise and limits.

        With them rows are coded by their visible features alone, when scores hide features in turn.
        ``atoms`` are not cut; callers set them.
        """

        def cut(tensor):
            return None if tensor is None else tensor[..., features]

        return replace(
            self,
            intercept=cut(self.intercept),
            scale=cut(self.scale),
            limit=cut(self.limit),
        )

    def to_user(self, atoms):  # (p, n_features) -> the same
        """Return atoms in the units of the data, for users: multiplied by the noise of features.

        Each atom is scaled to the norm that it has in ``atoms``.
        """
        if self.scale is None:
            return atoms
        return _with_norms(atoms * self.scale.to(atoms), atoms)

    def from_user(self, atoms):  # (p, n_features) -> the same
        """Return atoms in units of the noise, for a search: divided by the noise of features.

        Each atom is scaled to the norm that it has in ``atoms``. This is the inverse of `to_user`.
        """
        if self.scale is None:
            return atoms
        return _with_norms(atoms / self.scale.to(atoms), atoms)

    def gains(self, atoms):  # (p, n_features) in the user's units -> (p,)
        """Return for each atom the factor from its code in the user's units to units of the noise.

        A code and its atom change together: `to_user` keeps the norm of an atom while features are
        rescaled, so the code must change by the ratio of the norms.
        """
        if self.scale is None:
            return atoms.new_ones(len(atoms))
        # an atom of zeros has the factor 1
        gains = atom_norms(atoms / self.scale.to(atoms)) / atom_norms(atoms)
        return gains.nan_to_num(1.0, 1.0).flatten()


# the units of data whose noise has one standard deviation, without baseline and outliers
CENTRED = Units()
