"""Choose the penalty of codes, and the share of its bias to remove, by predicting held-out entries.

Finding atoms and coding rows are two jobs. A search needs a penalty that finds all atoms at any
level of noise; codes need the penalty with the smallest error. So features are held out a group at
a time, rows are coded from the others, and the codes predict the held-out entries: badly if the
penalty is too large, and badly if it is so small that they code noise.

At every penalty the prediction moves on a line from the lasso's codes to least squares on their
supports. The error is quadratic in the share of the way, ``debias``, and its minimum is known.

The rows for this are training data, whose noise the atoms have fitted: the atoms that predict them
are adapted to the other rows.

With little noise a penalty far below the search's predicts best. Then the atoms, which carry the
bias of the search's penalty, are adapted to a quarter of it, if codes stay about as sparse. With
much noise atoms fit the noise, and are adapted to twice the penalty.
"""

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice, tee
from math import ceil
from typing import NamedTuple

import torch

from skpudle._data.callers import users_level
from skpudle.lasso import gram_matrix, lasso_path, solve_lasso
from skpudle.operators import ConvDictionary
from skpudle.search import (
    ConvProblem,
    adapted,
    conv_path,
    group_features,
    match_equal_rows,
    spread_rows,
    without_rows,
)

__all__ = [
    "Coding",
    "adapt_atoms",
    "choose_coding",
    "coding_of_l0",
    "coding_of_support",
    "hidden_entries",
    "smaller_penalty",
]

# Held-out entries in all, or little more, the least and largest number of rows with them, and
# groups of features. There are fewer groups if there are ten features for each atom: codes then
# lose little information. Rows of wide data have some of their groups held out.
_ENTRIES, _FEWEST, _MOST, _GROUPS, _FEW_GROUPS, _MANY = 10_000, 100, 200, 10, 5, 10

# Codes of small penalties are dense: products of all atoms save as much time as for ten times as
# many rows. With 4096 atoms of 1200 features and 100 rows, codes with 370 entries take 2.9 s, not
# 7.8, with 690 12 s, not 25, and with 20 1.3 s, not 0.7.
_DENSE_COST = 10

# Nonzero codes are counted over at most so many rows, whose codes have at most so many entries. A
# bisection ends when their mean number is met to this share, or after so many steps.
_COUNTED, _COUNTED_ENTRIES, _CLOSE, _STEPS = 2000, 2**25, 0.005, 30
# Supports grow as penalties fall by a factor of 2**0.5, as long as at most this share of the new
# codes is wrong, and are judged by no fewer than so many new codes. F1 of the features of a
# benchmark (benchmarks/bench_synthsae.py, 20,000 samples), in brackets at the next larger and
# smaller penalty and with the penalty of the best prediction: with a hierarchy of features .736
# (.65, .70; .70) for the decoder of a BatchTopK autoencoder, .87 (.67, .81; .81) for the true
# atoms; without one .81 (.71, .67; .67) for atoms of a search, .86 (.76, .72; .72) for the true
# ones. Shares of wrong codes are .05 to .36 at the best penalties, .48 to 1.1 at the next.
_WRONG, _JUDGED = 0.4, 100

# the largest number of folds of rows, each with atoms that have not seen it
_FOLDS = 3

# pixels and images for the choice, the share of pixels that is held out, and the number of turns
_PIXELS, _PICTURES, _SHARE, _TURNS = 2**14, 4, 0.1, 3

# Penalties of a path fall by halves, to no less than this share of the search's.
_SMALLEST = 2.0**-9
# It does not end before rows have this many entries: empty codes all predict the same.
_SOME = 1.0

# The error of codes is the error of the prediction without the noise, which nothing predicts. The
# sparsest codes are chosen whose error is at most the smallest times a factor, one for codes of the
# lasso and one for least squares. The lasso's error hardly changes from a penalty to its double:
# with 1.1 noisy patches keep a third more noise. Least squares on some of the features prefer more
# atoms: with 1.03, 60 atoms in 30 dimensions keep twice the noise.
_SPARER = 1.05, 1.15
# Atoms are adapted to penalties that fall by _ADAPTED: atoms of the search if codes prefer less
# than _FAR of its penalty; adapted ones, which have no bias of their own, if codes prefer less than
# _FARTHER of theirs; and as long as the error falls to _BETTER.
_ADAPTED, _FAR, _FARTHER, _BETTER = 0.25, 0.4, 0.05, 0.95
# But not if their codes have this many times the entries of codes with the search's penalty. Then a
# smaller penalty adds atoms to codes instead of removing bias, and adapted atoms suit sparse codes
# less. Activations of a network have five times as many; 16 adapted atoms leave .169 of variance
# instead of .129, and seeds agree to .75 instead of .90. Planted codes and spectra have 1.1 to 1.3
# times as many, powers of Gaussians 1.5 to 2.4, and adapted atoms lower their error by up to 2/3.
_DENSER = 3
# Atoms are also adapted to a penalty that is larger by this factor, if codes prefer it.
_LARGER = 2.0
# Atoms of images carry the bias of the search's penalty. If codes are better without more than this
# share of it, atoms without it are tried.
_UNBIASED = 0.5
# For counts and binary data each half of the search's penalty has to lower the deviance by _LOWER;
# there are at most _HALVES. A larger penalty was never better.
_LOWER, _HALVES = 0.01, 4

# If less than this share of the mean square can be predicted, as of independent features, the
# search's penalty stays. The share is 0.08 for patches that are mostly noise.
_PREDICTABLE = 0.03
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
    """

    codings: list
    noise: float
    rounding: float
    noise_std: float | None = None

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
        return min(self.noise, self.best.error) + factor * excess + self.rounding

    def summary(self, unit):  # -> penalty, share of the bias to remove, deviation of the noise
        """Return the values for a learner, in the units before the division by ``unit``."""
        return self.chosen.alpha * unit, self.chosen.debias, self.noise_std * unit

    @cached_property
    def chosen(self):
        """The sparsest coding that is nearly as good as the best."""
        return next(coding for coding in self.codings if coding.error <= self.limit)


class _Rows:
    """Rows of data on the CPU, in float64, and which entries are known.

    A path begins at ``largest`` times the search's penalty, and ends when ``patience`` smaller ones
    predict worse. A ``refined`` path includes penalties between halves. Atoms are ``biased`` if
    they still have the bias of the search's penalty.
    """

    biased = False

    largest, patience, refined = 8.0, 1, True
    _first = 4  # penalties that are solved for together; then one by one: smaller ones are dense

    def __init__(self, x, mask, *, positive, total):
        n_rows = min(_MOST, max(_FEWEST, _ENTRIES // x.shape[1]))
        self.places = spread_rows(len(x), len(x) // max(1, len(x) // n_rows))
        self.x = x[self.places].detach().cpu().double()
        self.known = None if mask is None else mask[self.places].to(self.x)
        if mask is not None:
            self.x = torch.where(self.known > 0, self.x, 0.0)
        self.copies = match_equal_rows(self.x.mT, None if mask is None else self.known.mT)
        self.positive, self.total = positive, total
        n_known = self.x.numel() if mask is None else float(self.known.sum())
        sums = total(self.x.square().sum(), self.x.new_tensor([n_known, len(self.x)]))
        self.n_known, self.n_rows = sums[1].tolist()
        self.mean_square = float(sums[0]) / max(self.n_known, 1.0)

    def hidden_sums(self, atoms, alphas):  # yields (3,), (2,) for each penalty
        """Sum |e|^2, <e, d>, |d|^2 over all entries, and entries of codes, for each penalty.

        Entries that are not held out count as those that are. Here e is the error of the lasso's
        prediction, and d leads from it to the prediction of least squares; entries are counted for
        both.
        """
        alphas, n = iter(alphas), self._first
        while part := list(islice(alphas, n)):
            yield from zip(*self._sums_of(atoms, part), strict=True)
            n = 1

    def _folds(self, atoms):  # yields atoms, and the data and mask of rows to predict
        atoms = atoms if atoms.ndim == 3 else atoms[None]
        for i, fold in enumerate(atoms):
            part = slice(i, None, len(atoms))
            yield fold, self.x[part], None if self.known is None else self.known[part]

    def _sums_of(self, atoms, alphas):  # -> (n_alphas, 3), (n_alphas, 2)
        sums, entries = self.x.new_zeros(len(alphas), 3), self.x.new_zeros(len(alphas), 2)
        n_hidden, wide = self.x.new_zeros(()), self.x.shape[1] >= _MANY * atoms.shape[-2]
        groups = group_features(self.copies, _FEW_GROUPS if wide else _GROUPS)
        share = _ENTRIES / (self.n_rows * self.x.shape[1])
        n_turns = max(1, min(len(groups), ceil(share * len(groups))))
        for fold, data, mask in self._folds(atoms):
            gram, number = gram_matrix(fold, _DENSE_COST * len(data)), torch.arange(len(data))
            for i, hidden in enumerate(groups):
                seen = torch.ones(data.shape[1], dtype=torch.bool)
                seen[hidden] = False
                rows, part = (number + i) % len(groups) < n_turns, fold[:, hidden]
                x, known = data[rows], None if mask is None else mask[rows]
                options = dict(positive=self.positive)
                options["mask"] = None if known is None else known[:, seen]
                if gram is not None:  # without the hidden features, for a time
                    options["gram"] = gram.addmm_(part, part.mT, alpha=-1)
                codes, refits = lasso_path(fold[:, seen], x[:, seen], alphas, **options)
                if gram is not None:
                    gram.addmm_(part, part.mT)
                counts = torch.ones_like(x[:, hidden]) if known is None else known[:, hidden]
                error = (x[:, hidden] - codes @ part) * counts
                step = (refits - codes) @ part * counts
                pairs = (error, error), (error, step), (step, step)
                sums += torch.stack([(a * b).sum((1, 2)) for a, b in pairs], 1)
                entries += torch.stack([(z != 0).double().sum((1, 2)) for z in (codes, refits)], 1)
                n_hidden += counts.sum()
        sums, entries, n_hidden = self.total(sums, entries / n_turns, n_hidden)
        return sums * (self.n_known / n_hidden.clamp_min(1)), entries

    def noise(self, atoms, coding):  # -> float
        """Return the variance of residuals, for each known entry without a code."""
        sums = self.x.new_zeros(2)
        for fold, x, known in self._folds(atoms):
            options = dict(positive=self.positive, mask=known)
            options["gram"] = gram_matrix(fold, _DENSE_COST * len(x))
            codes, refits = lasso_path(fold, x, [coding.alpha], **options)
            (codes,) = torch.lerp(codes, refits, coding.debias)
            residual = x - codes @ fold
            residual = residual if known is None else residual * known
            n_known = x.shape[1] if known is None else known.sum(1)
            left = (n_known - (codes != 0).sum(1)).clamp_min(0).to(x)
            sums += torch.stack([(residual.square().sum(1) * (left > 0)).sum(), left.sum()])
        squares, left = self.total(*sums)
        return float(squares / left) if left > 0 else 0.0

    def unseen(self, problem, stride, atoms, codes, *, unbiased):  # -> (n_folds, p, m)
        """Return atoms that are adapted to data without the rows of the choice.

        Atoms fit the noise of their own rows, so that small penalties seem to predict these rows.
        A few rows are one fold; many are cut into folds, each with atoms of the other rows.
        """
        thinned, first = problem.thinned(stride), match_equal_rows(problem.x, problem.mask)
        of_search = first[spread_rows(len(first), len(thinned.x))]
        here = torch.isin(of_search, first[self.places]).sum()
        n, n_judges = self.total(torch.tensor([len(of_search), here], dtype=torch.float64))[0]
        if n < 2:
            return atoms
        n_folds = max(1, min(_FOLDS, ceil(_FOLDS * float(n_judges / n))))
        folds = []
        for i in range(n_folds):
            kept = ~torch.isin(of_search, first[self.places[i::n_folds]])  # nor copies of these
            (n_left_out,) = self.total((~kept).sum())
            if 0 < n_left_out < n:
                options = dict(unbiased=unbiased)
                folds.append(without_rows(thinned, atoms, codes, kept, **options))
            else:
                folds.append(atoms)
        return torch.stack(folds)


class _Pictures:
    """Crops of images on the CPU, in float64, and masks of known pixels; see `_Rows`.

    Parameters
    ----------
    problem : ConvProblem
        Images.
    """

    largest, patience, refined, biased = 4.0, 1, False, True

    def __init__(self, problem):
        chosen = spread_rows(len(problem.x), _PICTURES)
        n = len(chosen)
        area, crop = _PIXELS // n, []
        axes = zip(problem.x.shape[2:], problem.kernel, problem.stride, strict=True)
        for size, kernel, stride in axes:  # a signal has one row, whose crop has the whole area
            side = min(size, max(2 * kernel, int(area**0.5) if problem.x.shape[2] > 1 else area))
            side = kernel + (side - kernel) // stride * stride
            crop.append(slice((size - side) // 2, (size - side) // 2 + side))
        window = (chosen, slice(None), *crop)
        mask = None if problem.mask is None else problem.mask[window]
        self._problem = replace(problem, x=problem.x[window], mask=mask)
        self.known = torch.ones_like(self._problem.x) if mask is None else self._problem.mask
        self.x = self._problem.x
        self.mean_square = float(self.x.square().sum() / self.known.sum().clamp_min(1))
        self.n_rows = float(n)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(self.x.shape[2:], generator=generator, dtype=self.x.dtype)
        turn = torch.floor(drawn / _SHARE)
        self._hidden = [self.known * (turn == i) for i in range(_TURNS)]
        self.n_known = float(sum(hidden.sum() for hidden in self._hidden))

    def _predictions(self, atoms, alphas, mask):  # yields codes and predictions for each penalty
        dictionary = ConvDictionary(atoms, self._problem.stride)
        problem = replace(self._problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [dictionary.synthesis(z) for z in codes]

    @staticmethod
    def unseen(problem, stride, atoms, codes, *, unbiased):
        """Return the atoms: few atoms do not fit the noise of many pixels."""
        return atoms

    def hidden_sums(self, atoms, alphas):  # yields (3,), (2,) for each penalty
        """Sum products of errors, and entries of codes, for each penalty, as for rows."""
        alphas = tee(alphas, len(self._hidden))
        turns = [
            self._predictions(atoms, falling, self.known - hidden)
            for falling, hidden in zip(alphas, self._hidden, strict=True)
        ]
        for found in zip(*turns, strict=True):
            sums, entries = self.x.new_zeros(3), self.x.new_zeros(2)
            for hidden, (codes, (lasso, refit)) in zip(self._hidden, found, strict=True):
                error, step = (self.x - lasso) * hidden, (refit - lasso) * hidden
                pairs = (error, error), (error, step), (step, step)
                sums += torch.stack([(a * b).sum() for a, b in pairs])
                entries += torch.stack([(z != 0).sum() for z in codes]) / len(self._hidden)
            yield sums, entries

    def noise(self, atoms, coding):  # -> float
        """Return the variance of residuals, for each known pixel without a code."""
        ((codes, images),) = self._predictions(atoms, [coding.alpha], self.known)
        codes, image = (torch.lerp(*pair, coding.debias) for pair in (codes, images))
        left = float(self.known.sum() - (codes != 0).sum())
        residual = (self.x - image) * self.known
        return float(residual.square().sum()) / left if left > 0 else 0.0


def _codings(atoms, rows, alphas, debias):  # yields Coding for each penalty
    alphas, asked = tee(alphas)  # they may be endless
    for alpha, (sums, entries) in zip(alphas, rows.hidden_sums(atoms, asked)):
        square, product, length = (sums / rows.n_known).tolist()
        share = debias
        if share is None:
            share = min(max(product / length, 0.0), 1.0) if length > 0 else 0.0
        error = square - share * (2 * product - share * length)
        n_entries = float(entries[1 if share == 1 else 0]) / rows.n_rows
        yield Coding(alpha, share, n_entries, error)


def _path(atoms, rows, alpha, debias, *, largest=None, far=0.0):
    """Return the codings for falling penalties, until smaller ones predict worse.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Atoms.
    rows : _Rows or _Pictures
        Data.
    alpha : float
        Penalty of the search.
    debias : float or None
        The share of the bias to remove; None chooses it.
    largest : float, default=None
        The first penalty, in units of ``alpha``; None takes the value for the data.
    far : float, default=0.0
        The path also ends, without a ``noise_std``, when it would choose less than this, and codes
        about as sparse as with the search's penalty.
    """
    unchosen = CodingPath([Coding(alpha, debias or 0.0, 0.0, 0.0)], 0.0, 0.0, rows.mean_square**0.5)
    if rows.mean_square == 0 or rows.x.shape[1:].numel() == 1:
        return unchosen
    atoms = atoms.detach().to(rows.x)
    first, codings, best = alpha * (largest or rows.largest), [], 0

    def path():
        return CodingPath(list(codings), rows.noise(atoms, codings[best]), rounding)

    rounding = _ROUNDING * rows.mean_square
    for coding in _codings(atoms, rows, (first * 0.5**i for i in count()), debias):
        codings.append(coding)
        best = min(range(len(codings)), key=lambda i: codings[i].error)
        if codings[best].alpha < far and (found := path()).chosen.alpha < far:
            before = next(coding.n_entries for coding in codings if coding.alpha == alpha)
            if found.chosen.n_entries <= _DENSER * max(before, _SOME):
                return found
            far = 0.0
        worse = best < len(codings) - rows.patience and coding.n_entries >= _SOME
        if worse or coding.alpha < _SMALLEST * alpha:
            break
    if codings[best].error > (1 - _PREDICTABLE) * rows.mean_square:
        return unchosen
    found = path()
    if rows.refined:
        between = {found.chosen.alpha * 2**0.5} | {found.best.alpha * 2**e for e in (0.5, -0.5)}
        codings += _codings(atoms, rows, sorted(between, reverse=True), debias)
        codings.sort(reverse=True)
        found = replace(found, codings=codings)
    return replace(found, noise_std=rows.noise(atoms, found.chosen) ** 0.5)


def hidden_entries(problem):
    """Return the entries of a problem that are hidden in turn; see `_Rows` and `_Pictures`."""
    if isinstance(problem, ConvProblem):
        return _Pictures(problem)
    options = dict(positive=problem.positive_code, total=problem.total)
    return _Rows(problem.x, problem.mask, **options)


@torch.no_grad()
def choose_coding(problem, atoms, *, debias=None):
    """Choose the penalty of codes, and the share of its bias to remove.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data, and the penalty of the search.
    atoms : Tensor of shape (n_components, *shape)
        Atoms.
    debias : float, default=None
        The share; None chooses it.

    Returns
    -------
    CodingPath
        Codings; ``chosen`` is the result. If nothing can be predicted, as for one feature, zeros
        or independent features, it is the lasso with the penalty of the search.
    """
    return _path(atoms, hidden_entries(problem), problem.alpha, debias)


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
def coding_of_l0(problem, atoms, l0, *, debias=None):  # -> Coding
    """Return the coding with ``l0`` nonzero codes in a row, on average over the rows.

    The penalty is found by bisection. The share of its bias to remove is chosen as in
    `choose_coding`, at the penalty for the lasso's codes. Least squares, a share of 1, leave out
    codes that would turn their sign, and then their own number counts.

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

    Raises
    ------
    ValueError
        If no penalty gives as many codes.
    """
    solve, most, n_rows = _countable(problem, atoms)

    def found(share):  # -> penalty, its count
        def count(alpha):
            codes = solve(alpha, positive=problem.positive_code, debias=share)
            return float((codes != 0).sum()) / n_rows

        return _penalty_of_count(count, l0, most)

    alpha, n_entries = found(debias or 0.0)
    coding = _coding_at(alpha, problem, atoms, debias)
    if debias is None and coding.debias == 1:
        alpha, n_entries = found(1.0)
    if abs(n_entries - l0) > max(_CLOSE * l0, 1 / n_rows):
        warnings.warn(
            f"Rows have {n_entries:.4g} codes on average instead of l0={l0:g}: their number jumps "
            "from one penalty to the next, as where rows are alike. Pass a number of codes that "
            "rows can have.",
            stacklevel=users_level(),
        )
    return coding._replace(alpha=alpha, n_entries=n_entries)


@torch.no_grad()
def coding_of_support(problem, atoms, *, debias=None):  # -> Coding
    """Return the coding with most of the codes whose atoms are present, and few others.

    Atoms that are present have positive codes. The signed lasso has the negative atoms, too, which
    never are, and correlate with rows as often by mistake: as many of the positive codes are
    mistakes as there are negative ones. The penalty falls as long as few of the new codes are.
    (False discoveries are counted by such decoys in proteomics [1]_; knockoffs [2]_ are others.)

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
    least, chosen, before = _SMALLEST * problem.alpha, None, (0, 0)
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
    """Return a solver for some rows, and the penalty from which on all their codes are zero."""
    n_rows = max(1, min(_COUNTED, _COUNTED_ENTRIES // len(atoms)))
    part = spread_rows(len(problem.x), n_rows)
    x, atoms = problem.x[part], atoms.to(problem.x)
    mask = None if problem.mask is None else problem.mask[part]
    correlations = (x if mask is None else x * mask) @ atoms.mT
    most = correlations.max() if problem.positive_code else correlations.abs().max()

    def solve(alpha, **options):
        return solve_lasso(atoms, x, alpha, certify=False, mask=mask, **options)[0]

    return solve, float(most), len(x)


def _coding_at(alpha, problem, atoms, debias):  # -> Coding
    if debias is None and problem.x.shape[1] > 1:
        (coding,) = _codings(atoms.double(), hidden_entries(problem), [alpha], debias)
        return coding
    return Coding(alpha, debias or 0.0, float("nan"), float("nan"))


def smaller_penalty(deviance, alpha):  # -> float
    """Return the penalty whose codes predict best, among the search's and its halves.

    Parameters
    ----------
    deviance : callable
        The deviance of held-out entries for a penalty.
    alpha : float
        Penalty of the search.
    """
    least = deviance(alpha)
    for i in range(1, _HALVES + 1):
        found = deviance(alpha * 0.5**i)
        if not found < (1 - _LOWER) * least:
            return alpha * 0.5 ** (i - 1)
        least = found
    return alpha * 0.5**_HALVES


@torch.no_grad()
def adapt_atoms(problem, state, atoms, *, debias=None, stopped=lambda: False):
    """Adapt the atoms of a search to the penalty of their codes, if it is far from the search's.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of the search.
    state : SearchState
        A search that is done.
    atoms : Tensor of shape (n_components, *shape)
        The atoms that it found, in the dtype of the result.
    debias : float, default=None
        As in `choose_coding`.
    stopped : callable, default=never
        Returns whether to stop with the present atoms.

    Returns
    -------
    Tensor of shape (n_components, *shape), CodingPath
        The atoms with the sparsest codes that predict nearly best, and their codings.
    """
    rows, alpha = hidden_entries(problem), problem.alpha

    def judged(atoms, codes, *, unbiased=True, **options):  # -> atoms, CodingPath, folds that judge
        seen = problem, state.stride, atoms.double(), codes
        folds = rows.unseen(*seen, unbiased=unbiased)
        return atoms, _path(folds, rows, alpha, debias, **options), folds

    plain, codes = state.found
    far, unbiased = _FAR * alpha, not torch.equal(atoms, plain.to(atoms))
    tried = [judged(atoms, codes, unbiased=unbiased, far=far)]
    chosen = tried[0][1].chosen
    noisy = chosen.debias < _UNBIASED or not rows.biased
    if chosen.alpha > 0.99 * _LARGER * alpha and noisy and not stopped():
        problem = replace(problem, alpha=alpha * _LARGER)
        found, codes = adapted(problem, state, atoms.double(), unbiased=False, stopped=stopped)
        tried.append(judged(found.to(atoms), codes, unbiased=False))
    elif chosen.alpha >= far and chosen.debias > _UNBIASED and rows.biased and not stopped():
        found, codes = adapted(problem, state, atoms.double(), stopped=stopped)
        tried.append(judged(found.to(atoms), codes, largest=2.0, far=far))
    while tried[-1][1].noise_std is None and not stopped():
        problem = replace(problem, alpha=problem.alpha * _ADAPTED)
        found, codes = adapted(problem, state, tried[-1][0].double(), stopped=stopped)
        far = _FARTHER * problem.alpha
        tried.append(judged(found.to(atoms), codes, largest=2.0, far=far))
        noise = min(path.noise for _, path, _ in tried)  # errors of atoms look like noise
        before, now = (path.best.error - noise for _, path, _ in tried[-2:])
        if now > _BETTER * before:
            break
    best = min((path for _, path, _ in tried), key=lambda path: path.best.error)
    good = [found for found in tried if found[1].best.error <= best.limit]
    atoms, path, folds = min(good, key=lambda found: found[1].chosen.n_entries)
    return atoms, _path(folds, rows, alpha, debias) if path.noise_std is None else path
