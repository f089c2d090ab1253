"""Choose the penalty of codes, and the share of its bias to remove, by predicting held-out entries.

Finding atoms and coding rows need different penalties: a search a penalty that finds all atoms at
any level of noise, codes the penalty with the smallest error. So features are hidden a group at a
time, rows are coded from the visible features, and the codes predict the hidden entries: badly if
the penalty is too large, and badly if it is so small that codes follow the noise.

At every penalty the prediction moves on a line from the lasso's codes to least squares on their
supports. The error is quadratic in the share of the way, ``debias``, and its minimum is known.

After a search the rows are its held-out rows, independent of the atoms. Otherwise they are some of
the given rows.
"""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch

from skpudle._operators._conv import ConvDictionary
from skpudle.lasso import solve_lasso
from skpudle.search._conv_epoch import ConvProblem, conv_path
from skpudle.search._epoch import spread_rows
from skpudle.search._held_out import HeldOut, HiddenPixels, best_shares, errors_at

# Hidden entries of training data that choose a penalty, about, and the least and most rows that
# have them.
_ENTRIES, _FEWEST, _MOST = 10_000, 100, 200

# Most rows, and most entries of their codes, to count nonzero codes in; the relative error of the
# mean number at which a bisection ends, and its most steps.
_COUNTED, _COUNTED_ENTRIES, _CLOSE, _STEPS = 2000, 2**25, 0.005, 30
# The penalty falls by a factor of 2**0.5 while at most this share of the new codes is false,
# estimated from at least this number of new codes. In benchmarks/bench_synthsae.py F1 of features
# is .86 for the true atoms, and .76 and .72 at the next larger and smaller penalty; shares of false
# codes are .05 to .36 at the best penalties, and .48 to 1.1 at the next.
_WRONG, _JUDGED = 0.4, 100

# Number of neighbours of the expected penalty, on each side, that a choice begins with.
_AHEAD = 2
# The least penalty that decoys may choose, in units of the search's.
_SMALLEST = 2.0**-10

# Factors on the smallest error within which the sparsest codes are chosen, for codes of the lasso
# and for least squares; errors are without the noise. The lasso's error hardly changes with the
# penalty: with 1.1 noisy patches keep a third more noise. Least squares on some of the features
# prefer more atoms: with 1.03, 60 atoms in 30 dimensions keep twice the noise.
_SPARER = 1.05, 1.15

# Least predictable share of the mean square: below, as for independent features, the search's
# penalty stays. The share is 0.08 for patches that are mostly noise.
_PREDICTABLE = 0.03
# Least predictable share with few entries, divided by the square root of their number; independent
# numbers are predicted by chance up to about 1 divided by it.
_OF_CHANCE = 2.0
# errors below this share of the mean square are rounding
_ROUNDING = 1e-12


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
    error : float
        Mean squared error of held-out entries.
    """

    alpha: float
    debias: float
    n_entries: float
    error: float


@dataclass(frozen=True)
class CodingPath:
    """Codings from the largest penalty on.

    Parameters
    ----------
    codings : list of Coding
        The codings.
    noise : float
        Variance of the noise, estimated from the residuals of the best coding.
    rounding : float
        Rounding error.
    noise_std : float, default=None
        Standard deviation of the noise, estimated from the residuals of the chosen coding; None if
        the path is not complete.
    margin : float, default=0.0
        An error that sparser codes may add.
    """

    codings: list
    noise: float
    rounding: float
    noise_std: float | None = None
    margin: float = 0.0

    @cached_property
    def best(self):
        """The coding with the smallest error."""
        return min(self.codings, key=lambda coding: coding.error)

    @cached_property
    def limit(self):
        """The largest error that is nearly as good as the smallest."""
        lasso, least_squares = _SPARER
        factor = lasso + self.best.debias * (least_squares - lasso)
        excess = max(self.best.error - self.noise, 0.0)
        nearly = min(self.noise, self.best.error) + factor * excess + self.rounding
        return max(nearly, self.best.error + self.margin)

    def summary(self, unit):  # -> penalty, share of the bias to remove, deviation of the noise
        """Return the values for a learner, in the units before the division by ``unit``."""
        return self.chosen.alpha * unit, self.chosen.debias, self.noise_std * unit

    @cached_property
    def chosen(self):
        """The sparsest coding that is nearly as good as the best."""
        return next(coding for coding in self.codings if coding.error <= self.limit)


def _codings(held_out, atoms, alphas, debias):  # -> list of Coding, for falling penalties
    sums, entries, n_hidden = held_out.sums(atoms, alphas)
    (sums,) = held_out.total(sums.sum(1) / max(n_hidden, 1.0))
    codings = []
    for alpha, each, n_entries in zip(alphas, sums, entries, strict=True):
        share = float(best_shares(each)[1]) if debias is None else debias
        error = float(errors_at(each, share))
        codings.append(Coding(alpha, share, float(n_entries[1 if share == 1 else 0]), error))
    return codings


@torch.no_grad()
def choose_coding(held_out, atoms, *, debias=None, place=0):
    """Choose the penalty of codes, and the share of its bias to remove.

    Parameters
    ----------
    held_out : HeldOut or HiddenPixels
        Entries to predict, and the penalty of the search.
    atoms : Tensor of shape (n_components, ...)
        Atoms.
    debias : float, default=None
        The share; None chooses it.
    place : int, default=0
        A penalty to begin with, as a power of ``2 ** 0.5`` in units of the search's.

    Returns
    -------
    CodingPath
        Codings; ``chosen`` is the result. If no entry can be predicted, as for one feature, zeros
        or independent features, it is the lasso with the penalty of the search.
    """
    alpha, square = held_out.alpha, held_out.mean_square
    unchosen = CodingPath([Coding(alpha, debias or 0.0, 0.0, 0.0)], 0.0, 0.0, square**0.5)
    if square == 0 or not held_out.is_predictable:
        return unchosen
    atoms = atoms.detach().to(held_out.x)

    def code(first, n):
        alphas = [alpha * 2 ** (0.5 * (first - i)) for i in range(n)]
        return _codings(held_out, atoms, alphas, debias)

    def path():
        best = min(codings, key=lambda coding: coding.error)
        noise = held_out.noise(atoms, best.alpha, best.debias)
        margin = held_out.margin * max(square - best.error, 0.0)
        return CodingPath(codings, noise, _ROUNDING * square, margin=margin)

    def still_falls():
        (before, last), least = codings[-2:], held_out.margin * square
        return last is path().best and last.error < before.error - least

    least, most = held_out.coding_places
    smallest, largest = max(place - _AHEAD, least), min(place + _AHEAD, most)
    codings = code(largest, largest - smallest + 1)
    while smallest > least and still_falls():
        smallest -= 1
        codings += code(smallest, 1)
    while (found := path()).chosen is codings[0] and largest < most and codings[0].n_entries > 0:
        largest += 1
        codings[:0] = code(largest, 1)
    predictable = max(_PREDICTABLE, _OF_CHANCE / max(held_out.n_known, 1.0) ** 0.5)
    if found.best.error > (1 - predictable) * square:
        return unchosen
    noise = held_out.noise(atoms, found.chosen.alpha, found.chosen.debias)
    return replace(found, noise_std=noise**0.5)


def judged_rows(problem):  # -> HeldOut or HiddenPixels
    """Return entries of training data to predict, for atoms that have seen these data."""
    if isinstance(problem, ConvProblem):
        return HiddenPixels(problem)
    n_rows = min(_MOST, max(_FEWEST, _ENTRIES // problem.x.shape[1]))
    return HeldOut(problem.of_rows(spread_rows(len(problem.x), n_rows)))


def _penalty_of_count(count, l0, most):  # -> penalty, its count
    """Return the penalty, below ``most``, at which rows have ``l0`` nonzero codes on average."""
    upper = lower = most
    found, steps = 0.0, 0
    while upper > 0 and found < l0 and steps < _STEPS:
        upper, lower, steps = lower, lower / 2, steps + 1
        found = count(lower)
    if found < l0:
        raise ValueError(
            f"l0={l0:g} is more than the codes of these rows have for any penalty, {found:.4g}. "
            "Pass a smaller number, or rows that the atoms explain."
        )
    alpha = lower
    for _ in range(_STEPS):
        if abs(found - l0) <= _CLOSE * l0:
            break
        alpha = (lower * upper) ** 0.5
        found = count(alpha)
        lower, upper = (alpha, upper) if found > l0 else (lower, alpha)
    return alpha, found


@torch.no_grad()
def coding_of_l0(problem, atoms, l0, *, debias=None, n_images=None):
    """Return the coding with ``l0`` nonzero codes in a row or image, on average.

    The penalty is found by bisection. The share of its bias to remove is chosen as in
    `choose_coding`, at the penalty for the lasso's codes. If the share is 1, least squares leave
    out codes that would turn their sign, and the remaining codes are counted.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data; the penalty has no effect.
    atoms : Tensor of shape (n_components, ...)
        Atoms.
    l0 : float
        The number, positive.
    debias : float, default=None
        The share; None chooses it.
    n_images : float, default=None
        Number of images whose pieces the problem has.

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
    if isinstance(problem, ConvProblem):
        count_at, most, n_rows = _countable_images(problem, atoms, n_images)
    else:
        solve, most, n_rows = _countable(problem, atoms)

        def count_at(alpha, share):
            codes = solve(alpha, positive=problem.positive_code, debias=share)
            return float((codes != 0).sum()) / n_rows

    def found(share):  # -> penalty, its count
        return _penalty_of_count(partial(count_at, share=share), l0, most)

    alpha, n_entries = found(debias or 0.0)
    coding = _coding_at(alpha, problem, atoms, debias)
    if debias is None and coding.debias == 1:
        alpha, n_entries = found(1.0)
    is_met = abs(n_entries - l0) <= max(_CLOSE * l0, 1 / n_rows)
    return coding._replace(alpha=alpha, n_entries=n_entries), is_met


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
        As in `choose_coding`.

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
    solve, alpha, _ = _countable(problem, atoms)
    least, chosen, before = problem.alpha * _SMALLEST, None, (0, 0)
    while alpha > least:
        codes = solve(alpha, positive=False)
        here = int((codes > 0).sum()), int((codes < 0).sum())
        right, wrong = (now - then for now, then in zip(here, before, strict=True))
        if right + wrong >= _JUDGED:
            if wrong > _WRONG * right:
                break
            before, chosen = here, alpha
        alpha *= 2**-0.5
    if chosen is None:
        raise ValueError(
            "No penalty tells atoms that are present from others: codes of both signs are as "
            "frequent, or there are few rows. Pass more rows, or criterion='prediction' or l0."
        )
    return _coding_at(chosen, problem, atoms, debias)


def _countable(problem, atoms):  # -> solve(alpha, **options), largest penalty, number of rows
    """Return a solver for some rows, and the least penalty with which all their codes are zero."""
    n_rows = max(1, min(_COUNTED, _COUNTED_ENTRIES // len(atoms)))
    part = spread_rows(len(problem.x), n_rows)
    x, atoms = problem.x[part], atoms.to(problem.x)
    mask = None if problem.mask is None else problem.mask[part]
    correlations = (x if mask is None else x * mask) @ atoms.mT
    most = correlations.max() if problem.positive_code else correlations.abs().max()

    def solve(alpha, **options):
        return solve_lasso(atoms, x, alpha, certify=False, mask=mask, **options)[0]

    return solve, float(most), len(x)


def _countable_images(problem, atoms, n_images):  # -> count(alpha, share), largest penalty, number
    """Return a function that counts codes of an image, on average, and the largest penalty."""
    atoms = atoms.to(problem.x)
    x = problem.x if problem.mask is None else problem.x * problem.mask
    correlations = ConvDictionary(atoms, problem.stride).analysis(x)
    most = correlations.max() if problem.positive_code else correlations.abs().max()

    def count(alpha, share):
        ((codes, refits),) = conv_path(problem, atoms, [alpha])
        return float((refits if share == 1 else codes).count.sum()) / n_images

    return count, float(most), n_images


def _coding_at(alpha, problem, atoms, debias):  # -> Coding
    held_out = judged_rows(problem)
    if debias is None and held_out.is_predictable:
        (coding,) = _codings(held_out, atoms.to(held_out.x), [alpha], debias)
        return coding
    return Coding(alpha, debias or 0.0, float("nan"), float("nan"))
