"""One score, and the only comparison: predict hidden entries of held-out data.

Entries are hidden in turn: groups of features in rows, random pixels in images. The codes of the
visible entries predict the hidden ones: badly if the penalty is too large, if it is so small that
codes follow the noise, if atoms are missing, and if atoms have fitted the noise of the training
data. The data are cut into parts, rows or tiles of images, whose errors are paired: `worse` tells
whether one prediction is worse than another, beyond chance.

For each penalty the prediction moves on a line from the lasso's codes to least squares on their
supports. The error is quadratic in the share of the way, and its minimum is known.
"""

from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows, one_blas_thread
from skpudle.lasso._solve import lasso_path, path_from_products
from skpudle.search._conv_epoch import ConvProblem, conv_path, conv_synthesis
from skpudle.search._epoch import own, spread_rows

# Standard errors of a difference that counts as chance, and of a difference that is certain. With
# 0.5 the prediction of 19 of 22 sets of rows (benchmarks/bench_learners.py) is as good as with the
# usual penalty, with 1 of 17.
CHANCE, SURE = 0.5, 2.0
# the median modulus of a standard normal variable
MEDIAN_OF_NORMAL = 0.6745
# Least number of rows for held-out rows: four held-out rows cannot order penalties.
LEAST_ROWS = 20
# Groups of features.
_TENTHS = 10
# Most atoms whose products are held.
_MOST_PRODUCTS = 4096


class Prediction(NamedTuple):
    """How well atoms predict the hidden entries, with the best codes.

    Attributes
    ----------
    errors : Tensor of shape (n_parts,)
        Squared errors of the hidden entries of each part of the data of this process.
    total : float
        Their sum over all processes.
    place : int
        The penalty of these codes, as a power of ``2 ** 0.5`` in units of the held-out data's.
    share : float
        The share of the lasso's bias that is removed from these codes.
    """

    errors: Tensor
    total: float
    place: int = 0
    share: float = 0.0


def loss_and_chance(one, other, total=own):  # Prediction, Prediction -> float, float
    """Return by how much the errors of one prediction are larger, and the standard error of that.

    ``total`` sums over processes that have other parts.
    """
    loss = one.errors - other.errors
    counts = loss.new_tensor([float(len(loss))])
    (sums,) = total(torch.cat([loss.sum()[None], loss.square().sum()[None], counts]))
    loss, square, n = sums.tolist()
    return loss, max(square - loss**2 / max(n, 1.0), 0.0) ** 0.5


def worse(one, other, errors=1.0, total=own):  # Prediction, Prediction -> bool
    """Return whether one prediction is worse than another, beyond chance.

    Chance makes a difference of up to ``errors`` standard errors of the paired difference.
    """
    loss, chance = loss_and_chance(one, other, total)
    return loss > errors * chance


def errors_at(sums, share):  # (..., 3), (...) -> (...)
    """Return the squared errors after a share of the step; see `best_shares`."""
    square, product, length = sums.unbind(-1)
    return square - share * (2 * product - share * length)


def best_shares(sums):  # (..., 3) -> errors (...), shares (...)
    """Return the smallest error between two predictions, and the share of the way to the second.

    ``sums`` holds the products ``(e, e)``, ``(e, d)`` and ``(d, d)`` of the error ``e`` of the
    first prediction, and the step ``d`` from it to the second.
    """
    _, product, length = sums.unbind(-1)
    share = (product / length).nan_to_num(0.0).clamp(0, 1)
    return errors_at(sums, share), share


def hash_rows(x, mask=None):  # -> (n,) int64, on the CPU
    """Return a number for each row that depends only on the known entries of the row.

    It is the sum of the bits of entries times random odd numbers, modulo ``2**64``, each product
    with its upper 32 bits combined with the lower 32 bits by exclusive or: rows that differ are
    equal with a probability of about ``2**-64``. See `match_equal_rows` for the parameters.
    """
    x = x.flatten(1)
    n_numbers = x.shape[1] * x.element_size() // 4
    generator, sums = torch.Generator().manual_seed(0), []
    factors = torch.randint(-(2**62), 2**62, (n_numbers,), generator=generator, device="cpu")
    factors = (2 * factors + 1).to(x.device)
    # Products of 2 MiB stay in a cache: 20,000 rows of 64 features take 5 ms, and 24 ms with four
    # times the number.
    for part in blocks_of_rows(len(x), n_numbers, 2**18):
        known = torch.empty(x[part].shape, dtype=x.dtype, device=x.device).copy_(x[part])
        known += 0.0  # a negative zero equals a positive one
        if mask is not None:
            known.masked_fill_(mask.flatten(1)[part] == 0, torch.nan)
        products = known.view(torch.int32) * factors
        sums.append(products.bitwise_xor_(products >> 32).sum(1).cpu())
    return torch.cat(sums)


def match_equal_rows(x, mask=None):  # -> (n,)
    """Return for each row the place of the first row with the same known entries.

    A held-out row is held out with its copies: a copy in training would reveal the noise of the
    row.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Rows, in float32 or float64.
    mask : Tensor of the shape of ``x``, default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples,)
        Places, on the CPU. A row that equals no row before it has its own place.
    """
    _, number = hash_rows(x, mask).unique(return_inverse=True)
    places = torch.arange(len(x), device="cpu")
    return torch.full_like(places, len(x)).scatter_reduce(0, number, places, "amin")[number]


def hide_in_turn(places, n_groups=_TENTHS):
    """Cut features into random groups, which are hidden in turn; the same in every call.

    Copies of a feature are in its group: a visible copy would reveal the noise of a hidden copy.
    The features of a single group predict themselves.

    Parameters
    ----------
    places : Tensor of shape (n_features,)
        For each feature the place of its first copy, as `match_equal_rows` returns it.
    n_groups : int, default=10
        Number of groups. Few features, or many copies, make fewer groups.

    Returns
    -------
    list of tuple (seen, hidden)
        For each group the features that are seen, in increasing order, and the hidden ones.
    """
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    parts, group = order.tensor_split(max(1, min(n_groups, len(order)))), torch.empty_like(order)
    for number, part in enumerate(parts):
        group[part] = number
    group, turns = group[places], []
    for number in (numbers := group.unique()):
        seen = (group != number) | (len(numbers) == 1)
        turns.append((seen.nonzero().flatten(), order[group[order] == number]))
    return turns


def gaps_in(known):
    """Return the mask of known entries, None if all are known."""
    return None if bool(known.all()) else known


def residuals_of(x, known, atoms, alpha, positive, share=1.0):  # -> residuals (n, m), counts (n,)
    """Return residuals of known entries, and the numbers of codes.

    Codes are a ``share`` of the way from the lasso's to least squares on their supports.
    """
    residuals, n_codes = torch.empty_like(x), torch.empty_like(x[:, 0])
    for rows in blocks_of_rows(len(x), len(atoms)):
        options = dict(positive=positive, mask=gaps_in(known[rows]))
        (codes,) = torch.lerp(*lasso_path(atoms, x[rows], [alpha], **options), share)
        residuals[rows] = (x[rows] - codes @ atoms) * known[rows]
        n_codes[rows] = (codes != 0).sum(1).to(x)
    return residuals, n_codes


class HeldOut:
    """Held-out data with entries that are hidden in turn.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Rows or images, and the penalty of a search.
    fixed : bool, default=False
        Whether the user gave this penalty.
    mixes : bool, default=False
        Whether the rows mix few non-negative atoms.
    n_codings : int, default=None
        Rows, each with one group of features hidden, that a prediction codes; None takes the number
        for these rows.

    Attributes
    ----------
    energies : Tensor of shape (n_parts,)
        The sum of squares of the hidden entries of each part: the errors of zeros.
    places : tuple of int
        The smallest and largest penalty of codes, as powers of ``2 ** 0.5`` in units of ``alpha``.
    smallest, largest : float
        The smallest and largest penalty of a search, in units of ``alpha``; 1 if it is given.
    mean_square : float
        The mean square of known entries.
    n_known, n_hidden : float
        Known entries, and hidden entries in all turns.
    is_predictable : bool
        Whether some entries are visible while the hidden ones are predicted.
    """

    is_predictable = True

    def __new__(cls, problem, **options):
        """Return held-out rows or tiles."""
        return super().__new__(_Tiles if isinstance(problem, ConvProblem) else _Rows)

    def __init__(self, problem, *, fixed=False, mixes=False, n_codings=None):
        self.alpha, self.total, self.fixed, self.mixes = problem.alpha, problem.total, fixed, mixes
        if fixed:
            self.smallest = self.largest = 1.0
        self._of, self._sums = torch.empty(0), {}
        self._hide(problem, n_codings)

    @property
    def deviations(self):
        """The errors of column means; of images, which have none, of zeros."""
        return self.energies

    def sums(self, atoms, places):  # -> tuples (n_parts, 3), (2,)
        """Return products of errors of each part, and mean numbers of codes, for falling penalties.

        The products are those of `best_shares`; the numbers are of the lasso and of least squares.
        Sums for the last atoms are remembered.
        """
        if self._of.shape != atoms.shape or not torch.equal(self._of, atoms):
            self._of, self._sums = atoms, {}
        if new := [place for place in places if place not in self._sums]:
            alphas = [self.alpha * 2 ** (0.5 * place) for place in new]
            sums, entries = self._sums_at(atoms.detach().to(self.x), alphas)
            self._sums |= zip(new, zip(sums, entries, strict=True), strict=True)
        return [self._sums[place] for place in places]

    def at(self, atoms, place, share=None):  # -> Prediction
        """Predict the hidden entries at a penalty; None chooses the share."""
        ((sums, _),) = self.sums(atoms, [place])
        (total,) = self.total(sums.sum(0))
        share = best_shares(total)[1] if share is None else share
        error = float(errors_at(total, share))
        return Prediction(errors_at(sums, share), error, place, float(share))

    def predict(self, atoms, place=None, steps=(1, -1), share=None):  # -> Prediction
        """Predict the hidden entries with the best penalty of codes.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        place : int, default=None
            The penalty to begin with, see `Prediction`; None is ``alpha`` for rows. Few places of
            images fit their noise, so errors have local minima, and None falls from the largest.
        steps : tuple of int, default=(1, -1)
            Directions in which penalties follow, as long as the error falls.
        share : float, default=None
            The share of the lasso's bias to remove; None chooses it.
        """
        (least, most), found = self.places, {}
        place = self._locate(atoms, share) if place is None else place
        inside = min(max(place, least + 1), most - 1)
        place, steps = inside, steps if inside == place else (1, -1)  # at an end codes are dense

        def best(*places):
            self.sums(atoms, places)  # at once, each from the larger penalty
            found.update((place, self.at(atoms, place, share)) for place in places)
            return min(found.values(), key=lambda one: (one.total, -one.place)).place

        top = best(*sorted({place, *(place + step for step in steps)}, reverse=True))
        for step in steps:
            n_ahead = 1
            while least <= top + step <= most and top + step not in found:
                if top + step not in self._sums:  # each from the larger penalty, twice as many
                    ahead = np.clip(top + step * np.arange(1, n_ahead + 1), least, most)
                    self.sums(atoms, sorted(set(ahead.tolist()), reverse=True))
                    n_ahead *= 2
                top = best(top + step)
        return found[top]


class _Rows(HeldOut):
    """Rows, each a part, and groups of features; rows are coded for the next groups in turn."""

    # Below, codes are dense, which takes long and changes little. At -3 dB, the most noise with
    # which atoms are found, the best penalty of a search is 4 to 6 times its first one.
    places, smallest, largest = (-20, 6), 1 / 16, 12.0

    def _locate(self, atoms, share):
        return 0

    def _hide(self, problem, n_codings):
        self.problem = problem = replace(problem, x=problem.x.cpu())
        self.x, self.known, n = problem.x.double(), problem.known.double(), len(problem.x)
        self._often = np.asarray(problem.weighted(self.x.new_ones(n)))
        gaps = gaps_in(self.known.mT)
        features = hide_in_turn(match_equal_rows(self.x.mT, gaps)) if n else []
        self.is_predictable = len(features) > 1
        (n_rows,) = self.total(self.x.new_tensor([float(n)]))
        n_codings = n_codings or count_codings(problem)
        n_turns = max(1, min(len(features), ceil(n_codings / max(float(n_rows), 1))))
        x, known, self._turns = np.asarray(self.x), np.asarray(self.known), []
        for i, (seen, hidden) in enumerate(features):
            rows = np.flatnonzero((np.arange(n) + i) % len(features) < n_turns)
            at = np.ix_(rows, np.asarray(hidden))
            self._turns.append((rows, np.asarray(seen), np.asarray(hidden), x[at], known[at]))
        counts = [[self._often @ known.sum(1), self._often @ (x**2).sum(1), 0, 0]] + [
            [0, 0, self._often[rows] @ counts.sum(1), self._often[rows].sum()]
            for rows, *_, counts in self._turns
        ]
        (counts,) = self.total(torch.tensor(counts, dtype=torch.float64).sum(0))
        self.n_known, square, self.n_hidden, self._n_codings = counts.tolist()
        self.mean_square = square / max(self.n_known, 1.0)

    def _sums_at(self, atoms, alphas):  # -> (n_alphas, n_rows, 3), (n_alphas, 2)
        """Code visible entries; a hidden group leaves by products, where all entries are known."""
        d, k, options = np.asarray(atoms), len(alphas), dict(positive=self.problem.positive_code)
        sums, entries, gram = np.zeros((k, len(self.x), 3)), np.zeros((k, 2)), None
        with one_blas_thread:
            if self.problem.mask is None and len(d) <= _MOST_PRODUCTS:
                gram = atoms @ atoms.mT
            for rows, seen, hidden, x, counts in self._turns:
                part = np.ascontiguousarray(d[:, hidden])
                if gram is not None:  # without the hidden features, for a time
                    gram.addmm_(atoms[:, hidden], atoms[:, hidden].mT, alpha=-1)
                for some in blocks_of_rows(len(rows), k * len(d), 2**18):
                    row, given = rows[some], x[some]
                    if gram is not None:
                        start = torch.as_tensor(np.asarray(self.x)[row] @ d.T - given @ part.T)
                        codes, refits = path_from_products(gram, start, alphas, **options)
                    else:
                        mask = gaps_in(self.known[row][:, seen])
                        what = atoms[:, seen], self.x[row][:, seen], alphas
                        codes, refits = lasso_path(*what, mask=mask, **options)
                    for i, z in enumerate((codes, refits)):
                        entries[:, i] += (np.asarray(z) != 0).sum(2) @ self._often[row]
                    error = (given - np.asarray(codes) @ part) * counts[some]
                    step = np.asarray(refits.sub_(codes)) @ part * counts[some]
                    for i, (a, b) in enumerate(((error, error), (error, step), (step, step))):
                        sums[:, row, i] += np.einsum("krf,krf->kr", a, b) * self._often[row]
                if gram is not None:
                    gram.addmm_(atoms[:, hidden], atoms[:, hidden].mT)
        (entries,) = self.total(torch.as_tensor(entries))
        return torch.as_tensor(sums), entries / max(self._n_codings, 1.0)

    @cached_property
    def energies(self):
        return self._of_hidden(0.0)

    @cached_property
    def deviations(self):
        often = torch.as_tensor(self._often)
        sums, counts = self.total(often @ self.x, often @ self.known)
        return self._of_hidden(np.asarray(sums / counts.clamp_min(1)))

    def _of_hidden(self, centre):  # -> (n_rows,)
        sums, centre = np.zeros(len(self.x)), centre + np.zeros(self.x.shape[1])
        for rows, _, hidden, x, counts in self._turns:
            sums[rows] += ((x - centre[hidden]) ** 2 * counts).sum(1)
        return torch.as_tensor(sums * self._often)

    def noise(self, atoms, found):  # -> float
        """Return the variance of residuals of codes like a prediction's.

        It is the mean square for each known entry without a code.
        """
        alpha, positive = self.alpha * 2 ** (0.5 * found.place), self.problem.positive_code
        how = atoms.detach().to(self.x), alpha, positive, found.share
        residual, n_codes = residuals_of(self.x, self.known, *how)
        left = (self.known.sum(1) - n_codes).clamp_min(0)
        sums = torch.stack([residual.square().sum(1) * (left > 0), left], 1)
        (sums,) = self.total(torch.as_tensor(self._often) @ sums)
        squares, left = sums.tolist()
        return squares / left if left > 0 else 0.0


class _Tiles(HeldOut):
    """Crops of images, whose tiles of the size of atoms are parts, and random pixels."""

    # Codes of smaller penalties are dense, as atoms overlap at all places, and take minutes: codes
    # of an electrocardiogram have 3,965 entries for 48 beats. The first penalty of a search is at
    # the level of the noise, so at most one larger penalty follows. For signals of counts, whose
    # noise grows with them, three to ten times the first penalty predict equally well, but atoms
    # correlate with the truth by 0.8 instead of 0.95.
    places, smallest, largest = (-4, 6), 1.0, 1.5

    def _hide(self, problem, n_codings):
        n_pixels = _n_pixels(problem)
        # at least four images predict
        n = min(max(4, n_pixels // max(problem.x[0, 0].numel(), 1)), len(problem.x))
        chosen = spread_rows(len(problem.x), n)
        area, crop = n_pixels // n, []
        axes = zip(problem.x.shape[2:], problem.kernel, problem.stride, strict=True)
        for size, kernel, stride in axes:  # a signal has one row, whose crop has the whole area
            side = min(size, max(2 * kernel, int(area**0.5) if problem.x.shape[2] > 1 else area))
            side = kernel + (side - kernel) // stride * stride
            crop.append(slice((size - side) // 2, (size - side) // 2 + side))
        window = (chosen, slice(None), *crop)
        mask = None if problem.mask is None else problem.mask[window]
        self.problem = replace(problem, x=problem.x[window], mask=mask, held_out=None)
        self.x = x = self.problem.x
        self.known = self.problem.known
        self.mean_square = float(x.square().sum() / self.known.sum().clamp_min(1))
        drawn = torch.rand(x.shape[2:], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        turn = torch.floor(drawn * _TENTHS)
        # turns that each hide a tenth
        self._hidden = [self.known * (turn == i) for i in range(3)]
        self.n_known = self.n_hidden = float(sum(hidden.sum() for hidden in self._hidden))

    def _locate(self, atoms, share):
        """Return about the best place, from falling penalties until errors rise."""
        best = self.at(atoms, self.places[1], share)
        for place in range(self.places[1] - 2, self.places[0] - 1, -2):
            one = self.at(atoms, place, share)
            if one.total > best.total:
                break
            best = one
        return best.place

    def _code(self, atoms, alphas, mask):  # yields codes and images for each penalty
        problem = replace(self.problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [conv_synthesis(problem, atoms, z) for z in codes]

    def _of_tiles(self, values):  # (n, n_channels, height, width) -> (n_tiles,)
        height, width = (-n % k for n, k in zip(values.shape[2:], self.problem.kernel, strict=True))
        tiles = torch.nn.functional.pad(values.sum(1), (0, width, 0, height))
        for axis, kernel in enumerate(self.problem.kernel, 1):
            tiles = tiles.unfold(axis, kernel, kernel)
        return tiles.sum((3, 4)).flatten()

    def _sums_at(self, atoms, alphas):  # -> (n_alphas, n_tiles, 3), (n_alphas, 2)
        sums, entries = 0.0, self.x.new_zeros(len(alphas), 2)
        for hidden in self._hidden:
            products = []
            for i, (codes, (lasso, refit)) in enumerate(
                self._code(atoms, alphas, self.known - hidden)
            ):
                error, step = (self.x - lasso) * hidden, (refit - lasso) * hidden
                pairs = (error, error), (error, step), (step, step)
                products.append(torch.stack([self._of_tiles(a * b) for a, b in pairs], 1))
                entries[i] += torch.tensor([float(len(z.value)) for z in codes])
            sums = sums + torch.stack(products)
        return sums, entries / (len(self._hidden) * len(self.x))

    @cached_property
    def energies(self):
        return sum(self._of_tiles(self.x.square() * hidden) for hidden in self._hidden)

    def noise(self, atoms, found):  # -> float
        alpha, debias = self.alpha * 2 ** (0.5 * found.place), found.share
        ((codes, images),) = self._code(atoms.to(self.x), [alpha], self.known)
        left = float(self.known.sum()) - len(codes[debias == 1].value)
        residual = (self.x - torch.lerp(*images, debias)) * self.known
        return float(residual.square().sum()) / left if left > 0 else 0.0


def _n_pixels(problem):
    return min(2**14, 2 * 2**14 // problem.x.shape[1])


def count_codings(problem):
    """Return the number of rows, each with one group of features hidden, that choose a penalty."""
    squares = problem.weighted(problem.squares)
    sums = torch.stack([squares.sum(), squares.square().sum(), torch.ones_like(squares).sum()])
    (sums,) = problem.total(sums)
    energy, fourth, n = sums.tolist()
    # 400 to 1000, to predict 10,000 entries. A coding is a row with one group hidden.
    n_codings = min(max(ceil(10_000 * _TENTHS / problem.x.shape[1]), 400), 1000)
    # The evenness is the share of rows of equal energy that would have the same information: 0.1 to
    # 0.25 for patches of photographs. With a third of the codings the penalty of patches varies by
    # a factor of two between draws of the held-out rows.
    evenness = energy**2 / (n * fourth) if fourth > 0 else 1.0
    return min(max(ceil(n_codings / evenness), int(n) // 10), 3000)


def hold_out(problem, *, fixed=False, mixes=False, learn=True, largest=None):  # -> Problem
    """Hold out rows of a problem, which choose the penalty of its search.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    fixed : bool, default=False
        Whether the penalty is given, so that the rows only judge its bias.
    mixes : bool, default=False
        Whether rows mix few non-negative atoms, see `next_penalty`.
    learn : bool, default=True
        Whether the atoms adapt to the held-out rows in the end. Otherwise the problem goes on
        without them.
    largest : float, default=None
        Largest mean square of the known entries of a row that is held out.

    Returns
    -------
    Problem
        With rows or images that are held out. It is unchanged for fewer than 20 rows, one feature
        or copies of it; of fewer than four images pixels are hidden, and no image is held out.
        Copies of rows do not count.
    """
    first = match_equal_rows(problem.x, problem.mask)
    distinct = first.unique()
    if largest is not None:
        n_known = problem.x.shape[1] if problem.mask is None else problem.mask.sum(1)
        distinct = distinct[(problem.squares <= largest * n_known)[distinct]]
    n, n_features = len(distinct), problem.x.shape[1:].numel()
    (n_all,) = problem.total(torch.tensor([float(n)], dtype=torch.float64))
    n_codings = None
    if isinstance(problem, ConvProblem):
        n_held = min(ceil(_n_pixels(problem) / max(problem.x[0, 0].numel(), 1)), n // 4)
        if n_held == 0:  # one image, whose noise few atoms cannot fit
            return replace(problem, held_out=HeldOut(problem, fixed=fixed))
    elif n_all < LEAST_ROWS or n_features == 1:
        return problem
    else:
        share, n_codings = n / float(n_all), count_codings(problem)
        # one row in ten is held out, of few rows up to one in four, to reach 100 rows
        n_held = max(n // 10, min(n // 4, ceil(100 * share)))
        n_held = min(n_held, ceil(n_codings * share))
    rows = torch.isin(first, distinct[spread_rows(n, n_held)])  # with all copies of these rows
    held_out = HeldOut(problem.of_rows(rows), fixed=fixed, mixes=mixes, n_codings=n_codings)
    (n_predictable,) = problem.total(torch.tensor([float(held_out.is_predictable)]))
    if n_predictable == 0:
        return problem
    if learn:
        return replace(problem, held_out=held_out, held_rows=rows)
    return replace(problem.of_rows(~rows), held_out=held_out)
