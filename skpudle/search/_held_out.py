"""Predict hidden entries of held-out rows, to choose sizes and penalties.

The features are cut into groups, which are hidden in turn. A row is coded from its visible entries,
and its codes predict the hidden entries: badly if the penalty is too large, if the penalty is so
small that codes follow the noise, if atoms are missing, and if atoms have fitted the noise of the
training rows.

For each penalty of codes the prediction moves on a line from the lasso's codes to least squares on
their supports. The error is quadratic in the share of the way, and its minimum is known.
"""

from dataclasses import replace
from functools import cached_property
from itertools import tee
from math import ceil, inf
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle.lasso._solve import gram_matrix, lasso_path
from skpudle.search._conv_epoch import ConvProblem, conv_path, conv_synthesis
from skpudle.search._epoch import spread_rows

# Least number of rows for held-out rows: four held-out rows cannot order penalties.
LEAST_ROWS = 20
# One row in _HELD_OUT is held out, at most the number of codings; of few rows up to one in _FEW, to
# reach _WANTED rows.
_HELD_OUT, _FEW, _WANTED = 10, 4, 100
# Hidden entries to predict, and limits of the number of codings, each a row with one group hidden.
# Divided by the evenness of the rows' energy (0.1 to 0.25 for patches of photographs), codings are
# at most _MOST_CODINGS; with a third of them the penalty of patches varies by a factor of two
# between draws of the held-out rows.
_ENTRIES, _CODINGS, _MOST_CODINGS = 10_000, (400, 1000), 3000
# Groups of features.
_GROUPS = 10

# Halves of 64-bit numbers to hash at a time, whose products of 2 MiB stay in a cache: 20,000 rows
# of 64 features take 5 ms, and 24 ms with four times the number.
_NUMBERS_AT_A_TIME = 2**18

# Factor on the number of rows, for dense codes, in the decision to compute products of all atoms.
# With 4096 atoms and 100 rows products lower the time of codes with 370 entries from 7.8 to 2.9 s,
# and raise that of codes with 20 entries.
_DENSE_COST = 10

# Pixels and least number of images that predict, share of hidden pixels, and number of turns.
_PIXELS, _PICTURES, _SHARE, _TURNS = 2**14, 4, 0.1, 3

# Unexplained share of signals that counts as explained, since many more codes explain small changes
# of events: 6 codes a beat of a noisy electrocardiogram explain .98 of hidden samples, 21 codes
# .99.
_OF_SIGNALS = 0.02

# Number of rows that locate the best penalty of codes, to a factor of two.
_ROWS_TO_LOCATE = 100


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
    rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // max(n_numbers, 1))
    for start in range(0, len(x), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        known = torch.empty(x[part].shape, dtype=x.dtype, device=x.device).copy_(x[part])
        known += 0.0  # a negative zero equals a positive one
        if mask is not None:
            known.masked_fill_(mask.flatten(1)[part] == 0, torch.nan)
        products = known.view(torch.int32) * factors
        sums.append(products.bitwise_xor_(products >> 32).sum(1).cpu())
    return torch.cat(sums) if sums else torch.arange(0, device="cpu")


def hide_in_turn(places, n_groups=_GROUPS):
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


class Prediction(NamedTuple):
    """How well atoms predict the hidden entries, with the best codes.

    Attributes
    ----------
    errors : Tensor of shape (n_rows,)
        Sum of the squared errors of each row of this process.
    total : float
        Their sum over all processes.
    place : int
        The penalty of these codes, as a power of ``2 ** 0.5`` in units of the search's.
    share : float
        The share of the lasso's bias that is removed from these codes.
    """

    errors: Tensor
    total: float
    place: int
    share: float


def errors_at(sums, share):  # (..., 3), (...) -> (...)
    """Return the squared errors after a share of the step; see `best_shares`."""
    square, product, length = sums.unbind(-1)
    return square - share * (2 * product - share * length)


def best_shares(sums):  # (..., 3) -> errors (...), shares (...)
    """Return the smallest error between two predictions, and the share of the way to the second.

    Parameters
    ----------
    sums : Tensor of shape (..., 3)
        Inner products ``(e, e)``, ``(e, d)`` and ``(d, d)`` of the error ``e`` of the first
        prediction, and the step ``d`` from it to the second.

    Returns
    -------
    errors, shares : Tensor of shape (...)
        The smallest squared error, and the share from 0 to 1.
    """
    _, product, length = sums.unbind(-1)
    share = (product / length).nan_to_num(0.0).clamp(0, 1)
    return errors_at(sums, share), share


class _Hidden:
    """Entries that are hidden in turn; a subclass makes their sums.

    Attributes
    ----------
    alpha : float
        Penalty of the search.
    fixed : bool
        Whether the user gave this penalty.
    mixes : bool
        Whether the data mix few non-negative atoms.
    smallest, largest : float
        The smallest and largest penalty of a search, in units of its first penalty.
    places, coding_places : tuple of int
        The smallest and largest penalty of codes that predict, and of codes of a learner, as powers
        of ``2 ** 0.5`` in units of the search's.
    margin : float
        Share of the explained energy that sparser codes may lose.
    n_known, n_rows : float
        Known entries and rows, of all processes.
    mean_square : float
        The mean square of known entries.
    is_predictable : bool
        Whether some entries are visible while the hidden ones are predicted.
    """

    margin, mixes = 0.0, False

    def sums(self, atoms, alphas):  # -> (n_alphas, n_parts, 3), (n_alphas, 2), float
        """Sum products of errors of hidden entries for each penalty, and count entries.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        alphas : sequence of float
            Penalties, from the largest to the smallest.

        Returns
        -------
        sums : Tensor of shape (n_alphas, n_parts, 3)
            Inner products for each part of the data of this process; see `best_shares`.
        entries : Tensor of shape (n_alphas, 2)
            Mean number of nonzero codes in a row, of the lasso and of least squares, of all
            processes.
        n_hidden : float
            Hidden entries of all processes.
        """
        raise NotImplementedError

    def locate(self, atoms):  # -> int
        """Return about the best penalty of codes, as a power of ``2 ** 0.5``; see `Prediction`."""
        raise NotImplementedError

    def predict(self, atoms, place=None, steps=(1, -1)):  # -> Prediction
        """Predict the hidden entries with the best penalty of codes.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        place : int, default=None
            The penalty to begin with, see `Prediction`; None finds one.
        steps : tuple of int, default=(1, -1)
            Directions in which penalties follow, as long as the error falls.
        """
        found, place = {}, self.locate(atoms) if place is None else place
        (energy,) = self.total(self.energies.sum())

        def try_places(places):
            sums, _, _ = self.sums(atoms, [self.alpha * 2 ** (0.5 * i) for i in places])
            (totals,) = self.total(sums.sum(1))
            errors, shares = best_shares(totals)
            for i, one, total, share in zip(places, sums, errors, shares, strict=True):
                found[i] = float(total), one, float(share)

        def best():  # the sparsest codes within the margin
            least = min(error for error, *_ in found.values())
            most = least + self.margin * max(float(energy) - least, 0.0)
            return max(place for place, (error, *_) in found.items() if error <= most)

        inside = min(max(place, self.places[0] + 1), self.places[1] - 1)
        if inside != place:  # at an end codes are all zero, or dense
            place, steps = inside, (1, -1)
        try_places(sorted((place, *(place + step for step in steps)), reverse=True))
        for step in steps:
            while best() + step not in found and self.places[0] <= best() + step <= self.places[1]:
                try_places([best() + step])
        total, sums, share = found[best()]
        return Prediction(errors_at(sums, share), total, best(), share)


class HeldOut(_Hidden):
    """Rows that a search does not see, and the groups of their entries that are hidden in turn.

    Parameters
    ----------
    problem : Problem
        The rows, and the penalty of the search.
    fixed : bool, default=False
        Whether the user gave this penalty.
    mixes : bool, default=False
        Whether the rows mix few non-negative atoms.
    n_codings : int, default=None
        Codings of a prediction; None takes the number for these rows.
    """

    # Places of penalties, as powers of 2 ** 0.5. Above four times the search's penalty atoms that
    # do not predict would go unnoticed; below these places codes are dense, which takes long and
    # changes little.
    places, coding_places = (-10, 4), (-20, 6)
    # Smallest and largest penalty of a search, in units of its first penalty: at -3 dB, the most
    # noise with which atoms are found, the best penalty is 4 to 6 times the first.
    smallest, largest = 1 / 16, 12.0

    def __init__(self, problem, *, fixed=False, mixes=False, n_codings=None):
        self.problem, self.fixed, self.mixes = problem.on_host(), fixed, mixes
        self._n_codings = _n_codings(self.problem) if n_codings is None else n_codings
        self.alpha, self.total = problem.alpha, problem.total
        self.x, self.known = self.problem.x.double(), self.problem.mask
        ones = self.x.new_ones(len(self.x))
        n_of_rows = ones * self.x.shape[1] if self.known is None else self.known.sum(1)
        self._weight = self.problem.weighted(ones)
        counts = torch.stack([self._weight @ n_of_rows, ones.sum()])
        square, counts = self.total(self._weight @ self.x.square().sum(1), counts)
        self.n_known, self.n_rows = counts.tolist()
        self.mean_square = float(square) / max(self.n_known, 1.0)
        known = None if self.known is None else self.known.mT
        self._features = hide_in_turn(match_equal_rows(self.x.mT, known))
        self.is_predictable = len(self._features) > 1

    def _turns(self):  # yields rows, seen and hidden features
        n = len(self.x)
        features = self._features if n else ()  # without rows all features are equal
        n_turns = ceil(self._n_codings / max(self.n_rows, 1))
        n_turns = max(1, min(len(features), n_turns))
        for i, (seen, hidden) in enumerate(features):
            rows = ((torch.arange(n) + i) % len(features) < n_turns).nonzero().flatten()
            if len(rows):
                yield rows, seen, hidden

    def locate(self, atoms):  # -> int
        """Return about the best penalty of codes, from few rows."""
        rows = spread_rows(len(self.x), _ROWS_TO_LOCATE)
        few = HeldOut(self.problem.of_rows(rows), n_codings=_ROWS_TO_LOCATE)
        places = range(self.places[1], self.places[0] - 1, -2)
        sums, _, _ = few.sums(atoms, [self.alpha * 2 ** (0.5 * i) for i in places])
        (totals,) = self.total(sums.sum(1))
        return places[int(best_shares(totals)[0].argmin())]

    def sums(self, atoms, alphas):  # -> (n_alphas, n_rows, 3), (n_alphas, 2), float
        """Sum products of errors of each row; see `_Hidden.sums`."""
        sums = self.x.new_zeros(len(alphas), len(self.x), 3)
        entries, counted = self.x.new_zeros(len(alphas), 2), self.x.new_zeros(2)
        atoms = atoms.to(self.x)
        gram = gram_matrix(atoms, _DENSE_COST * len(self.x))
        for rows, seen, hidden in self._turns():
            x, part = self.x[rows], atoms[:, hidden]
            known = None if self.known is None else self.known[rows]
            options = dict(positive=self.problem.positive_code)
            options["mask"] = None if known is None else known[:, seen]
            if gram is not None:  # without the hidden features, for a time
                options["gram"] = gram.addmm_(part, part.mT, alpha=-1)
            codes, refits = lasso_path(atoms[:, seen], x[:, seen], alphas, **options)
            if gram is not None:
                gram.addmm_(part, part.mT)
            counts = torch.ones_like(x[:, hidden]) if known is None else known[:, hidden]
            error = (x[:, hidden] - codes @ part) * counts
            step = (refits - codes) @ part * counts
            pairs, weight = ((error, error), (error, step), (step, step)), self._weight[rows]
            products = torch.stack([(a * b).sum(2) for a, b in pairs], 2)
            sums[:, rows] += products * weight[:, None]
            entries += torch.stack([(z != 0).double().sum(2) @ weight for z in (codes, refits)], 1)
            counted += torch.stack([weight @ counts.sum(1), weight.sum()])
        entries, counted = self.total(entries, counted)
        n_hidden, n_codings = counted.tolist()
        return sums, entries / max(n_codings, 1.0), n_hidden

    @cached_property
    def energies(self):  # -> (n_rows,)
        """The sum of squares of the hidden entries of each row."""
        return self._of_hidden(self.x.square())

    @cached_property
    def deviations(self):  # -> (n_rows,)
        """The sum of squares of the hidden entries of each row, less the column means."""
        known = torch.ones_like(self.x) if self.known is None else self.known
        sums, counts = self.total(self._weight @ (known * self.x), self._weight @ known)
        return self._of_hidden(known * (self.x - sums / counts.clamp_min(1)).square())

    def _of_hidden(self, squares):
        sums = self.x.new_zeros(len(self.x))
        for rows, _, hidden in self._turns():
            sums[rows] += squares[rows][:, hidden].sum(1)
        return sums * self._weight

    def noise(self, atoms, alpha, debias):  # -> float
        """Return the variance of residuals, for each known entry without a code."""
        atoms, x = atoms.to(self.x), self.x
        options = dict(positive=self.problem.positive_code, mask=self.known)
        options["gram"] = gram_matrix(atoms, _DENSE_COST * len(x))
        codes, refits = lasso_path(atoms, x, [alpha], **options)
        (codes,) = torch.lerp(codes, refits, debias)
        residual = x - codes @ atoms
        residual = residual if self.known is None else residual * self.known
        n_known = x.shape[1] if self.known is None else self.known.sum(1)
        left = (n_known - (codes != 0).sum(1)).clamp_min(0).to(x)
        counted = residual.square().sum(1) * (left > 0), left
        sums = torch.stack([self._weight @ part for part in counted])
        (sums,) = self.total(sums)
        squares, left = sums.tolist()
        return squares / left if left > 0 else 0.0


class HiddenPixels(_Hidden):
    """Crops of images, and their pixels that are hidden in turn.

    Parameters
    ----------
    problem : ConvProblem
        Images, and the penalty of the search.
    fixed : bool, default=False
        Whether the user gave this penalty.
    """

    # Codes of smaller penalties are dense, as atoms overlap at all places, and take minutes: codes
    # of an electrocardiogram have 3,965 entries for 48 beats.
    places, coding_places = (-4, 4), (-4, 6)
    # Smallest and largest penalty of a search, in units of its first penalty. The first penalty is
    # at the level of the noise, so at most one larger penalty follows. For signals of counts, whose
    # noise grows with them, three to ten times the first penalty predict equally well, but atoms
    # correlate with the truth by 0.8 instead of 0.95.
    smallest, largest, is_predictable = 1.0, 1.5, True

    def __init__(self, problem, *, fixed=False):
        self.alpha, self.total, self.fixed = problem.alpha, problem.total, fixed
        self.margin = _OF_SIGNALS if problem.x.shape[2] == 1 else 0.0
        n_pixels = _n_pixels(problem)
        n = min(max(_PICTURES, n_pixels // max(problem.x[0, 0].numel(), 1)), len(problem.x))
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
        self.known = torch.ones_like(self.problem.x) if mask is None else self.problem.mask
        self.x = self.problem.x
        self.mean_square = float(self.x.square().sum() / self.known.sum().clamp_min(1))
        self.n_rows = float(n)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(self.x.shape[2:], generator=generator, dtype=self.x.dtype)
        turn = torch.floor(drawn / _SHARE)
        self._hidden = [self.known * (turn == i) for i in range(_TURNS)]
        self.n_known = float(sum(hidden.sum() for hidden in self._hidden))

    def _predictions(self, atoms, alphas, mask):  # yields codes and images for each penalty
        problem = replace(self.problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [conv_synthesis(problem, atoms, z) for z in codes]

    def _of_tiles(self, values):  # (n, n_channels, height, width) -> (n_tiles,)
        """Sum over tiles of the size of atoms."""
        height, width = (ceil(n / k) * k for n, k in zip(values.shape[2:], self.problem.kernel))
        values = torch.nn.functional.pad(
            values.sum(1), (0, width - values.shape[3], 0, height - values.shape[2])
        )
        tiles = values.unfold(1, self.problem.kernel[0], self.problem.kernel[0])
        return tiles.unfold(2, self.problem.kernel[1], self.problem.kernel[1]).sum((3, 4)).flatten()

    def locate(self, atoms):  # -> int
        """Return about the best penalty of codes, from falling penalties until errors rise."""
        best, least, energy = 0, inf, float(self.energies.sum())
        places = range(self.places[1], self.places[0] - 1, -2)
        alphas = (self.alpha * 2 ** (0.5 * i) for i in places)
        for place, (sums, _) in zip(places, self._by_penalty(atoms, alphas)):
            error = float(best_shares(sums.sum(0))[0])
            if error > least - self.margin * max(energy - least, 0.0):
                break
            best, least = place, error
        return best

    def sums(self, atoms, alphas):  # -> (n_alphas, n_tiles, 3), (n_alphas, 2), float
        """Sum products of errors of each tile; see `_Hidden.sums`."""
        found = zip(*self._by_penalty(atoms, alphas), strict=True)
        sums, entries = (torch.stack(each) for each in found)
        return sums, entries, self.n_known

    def _by_penalty(self, atoms, alphas):  # yields (n_tiles, 3), (2,)
        atoms = atoms.to(self.x)
        alphas = tee(alphas, len(self._hidden))
        turns = [
            self._predictions(atoms, falling, self.known - hidden)
            for falling, hidden in zip(alphas, self._hidden, strict=True)
        ]
        for found in zip(*turns, strict=True):
            sums, entries = 0.0, self.x.new_zeros(2)
            for hidden, (codes, (lasso, refit)) in zip(self._hidden, found, strict=True):
                error, step = (self.x - lasso) * hidden, (refit - lasso) * hidden
                pairs = (error, error), (error, step), (step, step)
                sums = sums + torch.stack([self._of_tiles(a * b) for a, b in pairs], 1)
                entries += torch.stack([z.count.sum() for z in codes]) / len(self._hidden)
            yield sums, entries / self.n_rows

    @cached_property
    def energies(self):  # -> (n_tiles,)
        """The sum of squares of the hidden pixels of each tile."""
        return sum(self._of_tiles(self.x.square() * hidden) for hidden in self._hidden)

    def noise(self, atoms, alpha, debias):  # -> float
        """Return the variance of residuals, for each known pixel without a code."""
        ((codes, images),) = self._predictions(atoms.to(self.x), [alpha], self.known)
        image = torch.lerp(*images, debias)
        left = float(self.known.sum() - codes[debias == 1].count.sum())
        residual = (self.x - image) * self.known
        return float(residual.square().sum()) / left if left > 0 else 0.0


def _n_pixels(problem):
    return min(_PIXELS, 2 * _PIXELS // problem.x.shape[1])


def measure_evenness(problem):  # -> float, float
    """Return the number of rows and their evenness.

    The evenness is the share of rows of equal energy that would have the same information.
    """
    squares = problem.weighted(problem.squares())
    (sums,) = problem.total(torch.stack([squares.sum(), squares.square().sum()]))
    (n,) = problem.total(squares.new_tensor([float(len(squares))]))
    n, (energy, fourth) = float(n), sums.tolist()
    return n, energy**2 / (n * fourth) if fourth > 0 else 1.0


def _n_codings(problem):
    """Return the number of rows, each with one group of features hidden, that choose a penalty."""
    (n, evenness), (least, most) = measure_evenness(problem), _CODINGS
    n_codings = min(max(ceil(_ENTRIES * _GROUPS / problem.x.shape[1]), least), most)
    return min(max(ceil(n_codings / evenness), int(n) // _HELD_OUT), _MOST_CODINGS)


def hold_out(problem, *, fixed=False, mixes=False, learn=True):  # -> Problem
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

    Returns
    -------
    Problem
        With rows or images that are held out. It is unchanged for fewer than 20 rows, one feature
        or copies of it; of fewer than four images pixels are hidden, and no image is held out.
        Copies of rows do not count.
    """
    first = match_equal_rows(problem.x, problem.mask)
    distinct = first.unique()
    n, n_features = len(distinct), problem.x.shape[1:].numel()
    (n_all,) = problem.total(torch.tensor([float(n)], dtype=torch.float64))
    if isinstance(problem, ConvProblem):
        n_held = min(ceil(_n_pixels(problem) / max(problem.x[0, 0].numel(), 1)), n // _FEW)
        if n_held == 0:  # one image, whose noise few atoms cannot fit
            return replace(problem, held_out=HiddenPixels(problem, fixed=fixed))
    elif n_all < LEAST_ROWS or n_features == 1:
        return problem
    else:
        share, n_codings = n / float(n_all), _n_codings(problem)
        n_held = max(n // _HELD_OUT, min(n // _FEW, ceil(_WANTED * share)))
        n_held = min(n_held, ceil(n_codings * share))
    rows = torch.isin(first, distinct[spread_rows(n, n_held)])  # with all copies of these rows
    if isinstance(problem, ConvProblem):
        held_out = HiddenPixels(problem.of_rows(rows), fixed=fixed)
    else:
        held_out = HeldOut(problem.of_rows(rows), fixed=fixed, mixes=mixes, n_codings=n_codings)
        (n_predictable,) = problem.total(torch.tensor([float(held_out.is_predictable)]))
        if n_predictable == 0:
            return problem
    if learn:
        return replace(problem, held_out=held_out, held_rows=rows)
    return replace(problem.of_rows(~rows), held_out=held_out)
