"""Judge atoms and penalties: predict hidden entries of held-out data, and compare predictions.

*Held-out* rows or images take no part in training. Their entries are hidden in turn: in each *turn*
one group of features is hidden in rows, or a tenth of the pixels in images. Codes are computed from
the visible entries and predict the hidden entries. The prediction is bad if the penalty is too
large, if it is so small that codes follow the noise, if atoms are missing, and if atoms have fitted
the noise of the training data.

Penalties, numbers of atoms and units are chosen by `worse`: is one prediction worse than another,
by more than chance? The data are cut into *parts*, rows or tiles of images, and the standard error
of the difference of two predictions comes from the differences of their errors in each part.

The *index* of a penalty of codes is an integer: the penalty is ``2 ** (index / 2)`` times the
penalty of the search, ``HeldOut.alpha``. At each penalty the prediction may move from the lasso's
codes towards least squares on their supports, which are free of the lasso's bias. ``debias``, from
0 to 1, is the part of the way. The error is quadratic in ``debias``, so the best value has a
formula (`best_debias`).
"""

from dataclasses import replace
from math import ceil, prod

import numpy as np
import torch

from skpudle._compilation import blocks_of_rows, threads_for
from skpudle._rows import (
    N_GROUPS,
    gaps_in,
    hide_in_turn,
    match_equal_rows,
    own,
    spread_rows,
)
from skpudle._states import Prediction
from skpudle._units import LassoCoder
from skpudle.lasso._solve import lasso_path
from skpudle.search._conv_epoch import conv_path, conv_synthesis

# A difference between the errors of two predictions counts only above a number of its standard
# errors: above CHANCE where a search chooses a penalty, and above SURE where a search would begin
# again or where atoms have to predict better than zeros. With CHANCE = 0.5 the chosen penalty
# predicts 19 of 22 data sets (benchmarks/bench_learners.py) as well as the default penalty does,
# with 1.0 only 17 of 22. With 2.0 the error of new patches is 10 % larger (benchmarks/constants.py
# chance).
CHANCE = 0.5
SURE = 2.0
# With fewer rows than this no rows are held out: at most a quarter of the rows may be, and four
# rows cannot tell which of two penalties is better.
LEAST_ROWS = 20
# Largest number of atoms for which the matrix of the products of atoms is computed once, for all
# turns of a prediction. The limit saves memory: the matrix of 4,096 atoms takes 128 MiB.
_MOST_PRODUCTS = 4096


def loss_and_chance(one, other, total=own):  # Prediction, Prediction -> float, float
    """Compare the errors of two predictions: return their difference, and its standard error.

    Errors are compared in each part of the data (row, or tile of an image), and summed over the
    parts of all processes; ``total(sums)`` adds up sums over processes.
    """
    differences = one.errors - other.errors
    n_parts = torch.ones_like(differences).sum()
    sums = torch.stack([differences.sum(), differences.square().sum(), n_parts])
    (sums,) = total(sums)
    loss, square, n = sums.tolist()
    # the variance of the sum of the `n` differences: `n` times their own variance
    variance = square - loss**2 / max(n, 1.0)
    return loss, max(variance, 0.0) ** 0.5


def worse(one, other, errors=1.0, total=own):  # Prediction, Prediction -> bool
    """Return whether a prediction is worse than another by more than ``errors`` standard errors.

    Penalties, numbers of atoms and units are chosen by this comparison. ``one`` and ``other`` are
    predictions of the same hidden entries. The standard error is that of the difference of their
    total errors; it comes from the differences in each part of the data (row, or tile of an image).
    ``total(sums)`` adds up sums over processes; by default there is a single process.
    """
    loss, chance = loss_and_chance(one, other, total)
    return loss > errors * chance


def errors_at(sums, debias):  # (..., 3), (...) -> (...)
    """Return squared errors of a prediction that lies between two predictions.

    ``debias`` is the part of the way from the first to the second prediction, from 0 to 1. The last
    axis of ``sums`` has the inner products ``(e, e)``, ``(e, d)`` and ``(d, d)``, where ``e`` is
    the error of the first prediction, and ``d`` the second prediction minus the first.
    """
    square, product, step_square = sums.unbind(-1)
    return square - debias * (2 * product - debias * step_square)


def best_debias(sums):  # (..., 3) -> errors (...), debias (...)
    """Return the least squared error on the way between two predictions, and the part of the way.

    The first prediction is that of the lasso's codes, the second that of least squares. The last
    axis of ``sums`` has the inner products ``(e, e)``, ``(e, d)`` and ``(d, d)``, where ``e`` is
    the error of the first prediction, and ``d`` the second prediction minus the first.
    """
    _, product, step_square = sums.unbind(-1)
    debias = (product / step_square).nan_to_num(0.0).clamp(0, 1)
    return errors_at(sums, debias), debias


def _inner_products(inner, error, step):  # -> (..., 3)
    """Return ``(e, e)``, ``(e, d)`` and ``(d, d)``, from which `best_debias` computes errors.

    ``error`` is ``e``, the error of the lasso's prediction. ``step`` is ``d``, the prediction of
    least squares minus that of the lasso. ``inner(a, b)`` returns the inner products.
    """
    return torch.stack([inner(error, error), inner(error, step), inner(step, step)], -1)


class HeldOut:
    """Held-out rows or images, whose hidden entries are predicted to judge atoms and penalties.

    A *turn* hides one group of features in some rows, or some pixels in all images. The data are
    cut into *parts*: rows, or tiles of images. The penalty of codes with the *index* i is
    ``2 ** (i / 2)`` times ``alpha``. ``debias``, from 0 to 1, is the part of the lasso's bias that
    is removed from codes. The method ``hide`` of a problem makes `HeldRows` or `HeldTiles`.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Rows or images, and the penalty of a search.

    Attributes
    ----------
    alpha : float
        The penalty of the search.
    total : callable
        ``total(*tensors)`` returns their sums over all processes.
    x, observed : Tensor of shape (n_samples, ...)
        The rows or crops of the images, in float64, and the mask of their known entries.
    zeros : Prediction
        The prediction that all hidden entries are zero. Its errors are the energies of the parts:
        the sums of squares of their hidden entries.
    index_range : tuple of int
        The indices of the smallest and of the largest penalty of codes.
    mean_square : float
        The mean square of known entries.
    n_hidden : float
        Number of hidden entries, added up over all turns.
    is_predictable : bool
        Whether there is more than one turn, so that hidden entries differ from visible ones.
    """

    is_predictable = True

    def __init__(self, problem):
        self.alpha = problem.alpha
        self.total = problem.total
        self._atoms = torch.empty(0)
        self._sums = {}  # results of `sums` for `_atoms`, by the index of the penalty
        energies = self._hide(problem)
        (energy,) = self.total(energies.sum())
        self.zeros = Prediction(energies, float(energy))

    def worse(self, one, other, errors=1.0):  # Prediction, Prediction -> bool
        """Return whether prediction ``one`` of these data is worse than ``other``.

        Worse means a larger error, by more than ``errors`` standard errors of the difference.
        Errors are summed over the parts of all processes.
        """
        return worse(one, other, errors, self.total)

    def penalty(self, index):  # int -> float
        """Return the penalty of codes that has this index, an integer that may be negative."""
        return self.alpha * 2 ** (0.5 * index)

    def sums(self, atoms, indices):  # -> list of (n_parts, 3)
        """Predict hidden entries at several penalties; return what gives the errors for any debias.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        indices : sequence of int
            Indices of penalties of codes, from large to small.

        Returns
        -------
        list of Tensor of shape (n_parts, 3)
            For each penalty the three inner products in each part from which `best_debias` and
            `errors_at` compute errors. They are cached as long as the atoms are the same.
        """
        if self._atoms.shape != atoms.shape or not torch.equal(self._atoms, atoms):
            self._atoms = atoms
            self._sums = {}
        new = [index for index in indices if index not in self._sums]
        if new:
            alphas = [self.penalty(index) for index in new]
            sums = self._sums_at(atoms.detach().to(self.x), alphas)
            self._sums |= zip(new, sums, strict=True)
        return [self._sums[index] for index in indices]

    def at(self, atoms, index, debias=None):  # -> Prediction
        """Predict the hidden entries by atoms (n_components, ...) at one penalty of codes.

        ``index`` is the index of the penalty. Codes move by ``debias``, from 0 to 1, from the
        lasso's codes towards least squares on their supports; None takes the value of the least
        error.
        """
        (sums,) = self.sums(atoms, [index])
        (total,) = self.total(sums.sum(0))
        # `best_debias` returns the least error, and then the part of the bias to remove for it
        debias = float(best_debias(total)[1] if debias is None else debias)
        error = float(errors_at(total, debias))
        return Prediction(errors_at(sums, debias), error, index, debias)

    def predict(
        self,
        atoms,
        index=None,
        steps=(1, -1),
        debias=None,
        patience=1,
    ):  # -> Prediction
        """Predict the hidden entries at the best penalty of codes, which a walk finds.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        index : int, default=None
            Index of the penalty to begin with. None: rows begin at ``alpha``. The errors of images
            have local minima along the penalties, so images begin at the last penalty before the
            error rises, on a walk from the largest penalty down.
        steps : tuple of int, default=(1, -1)
            Directions of the walk: 1 to larger penalties, -1 to smaller ones.
        debias : float, default=None
            The part of the lasso's bias to remove; None takes the best one at each penalty.
        patience : int, default=1
            The walk to smaller penalties ends when this number of penalties in succession predict
            no better than the best one so far. The walk to larger penalties ends at the first
            penalty that predicts no better.

        Returns
        -------
        Prediction
            The prediction with the least error.
        """
        least, most = self.index_range
        asked = self._first_index(atoms, debias) if index is None else index
        # At an end of the range of penalties a walk could go in one direction only. So it starts
        # one penalty further inside, and tries both directions.
        index = min(max(asked, least + 1), most - 1)
        if index != asked:
            steps = (1, -1)
        predictions = {}

        def try_all(indices):  # predict at the penalties -> index of the best so far
            self.sums(atoms, indices)  # one call fills the cache faster than many
            for each in indices:
                predictions[each] = self.at(atoms, each, debias)
            # of equal errors that of the largest penalty
            best = min(predictions.values(), key=lambda one: (one.total, -one.index))
            return best.index

        neighbours = {index + step for step in steps}
        best_index = try_all(sorted({index, *neighbours}, reverse=True))
        for step in steps:
            n_ahead = 1
            tried = best_index
            # how many penalties in succession may predict no better than the best one
            allowed = patience if step < 0 else 1
            while least <= tried + step <= most and abs(tried - best_index) < allowed:
                tried += step
                # One call predicts at several penalties ahead and fills the cache. It is faster
                # than single calls, since the codes at each penalty start from the codes at the
                # next larger penalty. Each call takes twice the number of the call before.
                if tried not in self._sums:
                    ahead = np.clip(tried + step * np.arange(n_ahead), least, most)
                    self.sums(atoms, sorted(set(ahead.tolist()), reverse=True))
                    n_ahead *= 2
                best_index = try_all([tried])
        return predictions[best_index]


class HeldRows(HeldOut):
    """Held-out rows; each row is a part, and groups of features are hidden in turn.

    A *turn* is a prediction of the features of one group, in some of the rows, from the features of
    the other groups. To save time a row takes part in a few turns only: the least number that gives
    ``n_codings`` codings of rows in all.

    Parameters
    ----------
    problem : Problem
        The rows, and the penalty of a search.
    n_codings : int, default=None
        How many codings a prediction takes at least, in all processes. A coding is a row with one
        group of features hidden. By default 400 to 3,000, see `count_codings`.
    """

    index_range = (-20, 6)

    def __init__(self, problem, n_codings=None):
        problem = replace(problem, x=problem.x.cpu())
        self._n_codings = n_codings or count_codings(problem)
        super().__init__(problem)

    def _first_index(self, atoms, debias):  # -> int: a walk begins with `alpha`
        return 0

    def _hide(self, problem):  # -> (n_rows,)
        """Choose which features are hidden in which rows in each turn, when the object is made.

        Groups of features are drawn at random, and each turn hides one group in some rows. The
        number of turns of a row is the least that gives ``n_codings`` codings of rows in all
        processes. The turns, the data and their counts are set as attributes. Return the energy
        (sum of squares) of the hidden entries of each row, over its turns.
        """
        self.problem = problem
        self.x = problem.x.double()
        self.observed = problem.observed.double()
        n = len(self.x)
        self._weights = problem.weigh(self.x.new_ones(n))
        groups = []
        if n:
            columns = match_equal_rows(self.x.mT, gaps_in(self.observed.mT))
            groups = hide_in_turn(columns)
        # Both numbers are summed over processes, because all processes must take the same decision:
        # even a process without held-out rows has to take part in the sums of predictions.
        (counts,) = self.total(self.x.new_tensor([n, len(groups) > 1]))
        n_rows, n_predictable = counts.tolist()
        self.is_predictable = bool(n_predictable)
        n_turns = ceil(self._n_codings / max(n_rows, 1))
        n_turns = max(1, min(len(groups), n_turns))
        self._turns = []
        are_hidden = torch.zeros_like(self.x)
        for number, (seen, hidden) in enumerate(groups):
            # a row takes part in `n_turns` turns in succession, and neighbours begin one turn apart
            takes_part = (torch.arange(n) + number) % len(groups) < n_turns
            rows = takes_part.nonzero().flatten()
            self._turns.append((rows, seen, hidden))
            are_hidden[rows[:, None], hidden] = self.observed[rows[:, None], hidden]
        squares = self.x.square()
        entries = (self.observed, squares, are_hidden)
        sums_of_rows = torch.stack([part.sum(1) for part in entries], 1)
        (sums,) = self.total(self._weights @ sums_of_rows)
        n_known, square, self.n_hidden = sums.tolist()
        self.mean_square = square / max(n_known, 1.0)
        return (squares * are_hidden).sum(1) * self._weights

    def _sums_at(self, atoms, alphas):  # -> (n_alphas, n_rows, 3)
        """Predict hidden entries in all turns at the penalties ``alphas``, for `HeldOut.sums`.

        ``atoms`` are (n_components, n_features), and ``alphas`` fall. In each turn some rows,
        ``turn``, get codes from their features ``seen``, which predict their features ``hidden``.
        The result has the three inner products of `best_debias` for each row, times the weight of
        the row.
        """
        sums = self.x.new_zeros(len(alphas), len(self.x), 3)
        is_complete = self.problem.mask is None
        has_products = is_complete and len(atoms) <= _MOST_PRODUCTS
        with threads_for():
            products = atoms @ atoms.mT if has_products else None
            for turn, seen, hidden in self._turns:
                hidden_part = atoms[:, hidden]
                # products of atoms over the visible features: over all features less hidden ones
                gram = products - hidden_part @ hidden_part.mT if has_products else None
                for block in blocks_of_rows(len(turn), len(alphas) * len(atoms), 2**18):
                    rows = turn[block]
                    x = self.x[rows]
                    known = self.observed[rows]
                    # With zeros at hidden features the products of rows with whole atoms are over
                    # the visible features alone, as in `gram`, so the atoms need not be cut.
                    codes, refits = lasso_path(
                        atoms if has_products else atoms[:, seen],
                        x.index_fill(1, hidden, 0.0) if has_products else x[:, seen],
                        alphas,
                        positive=self.problem.positive_code,
                        gram=gram,
                        mask=None if has_products else gaps_in(known[:, seen]),
                    )
                    error = x[:, hidden] - codes @ hidden_part
                    step = refits.sub_(codes) @ hidden_part
                    if not is_complete:
                        error = error * known[:, hidden]
                        step = step * known[:, hidden]
                    sums[:, rows] += _inner_products(torch.linalg.vecdot, error, step)
        return sums * self._weights[:, None]

    def judge(self, predict):  # -> Prediction
        """Predict the hidden entries by any model of rows.

        ``predict(x, visible)`` returns the expected entries (n, n_features) of rows ``x``. Of ``x``
        it uses only the entries where ``visible`` (n, n_features) is 1.
        """
        errors = torch.zeros_like(self._weights)
        for rows, _, hidden in self._turns:
            x = self.x[rows]
            observed = self.observed[rows]
            visible = observed.index_fill(1, hidden, 0.0)
            error = ((x - predict(x, visible)) * observed)[:, hidden]
            errors[rows] += error.square().sum(1)
        errors = errors * self._weights
        (total,) = self.total(errors.sum())
        return Prediction(errors, float(total))

    def noise(self, atoms, prediction):  # -> float
        """Return the variance of the noise, by which `best_coding` tells noise from signal.

        It is the sum of squared residuals divided by the degrees of freedom, the number of known
        entries minus the number of nonzero codes, at the penalty and debiasing of ``prediction``.
        No entries are hidden, and rows without a degree of freedom are left out. ``atoms`` are
        (n_components, n_features).
        """
        coder = LassoCoder(
            atoms.detach().to(self.x),
            self.penalty(prediction.index),
            self.problem.positive_code,
        )
        residual, n_codes = coder.residuals(self.x, self.observed, prediction.debias)
        n_free = (self.observed.sum(1) - n_codes).clamp_min(0)
        squares = residual.square().sum(1) * (n_free > 0)
        (sums,) = self.total(self._weights @ torch.stack([squares, n_free], 1))
        square, n_free = sums.tolist()
        return square / n_free if n_free > 0 else 0.0


class HeldTiles(HeldOut):
    """Crops of held-out images; tiles of an atom's size are parts, and random pixels are hidden."""

    # A search begins at a penalty at the level of the noise, `alpha`, and tries no other. Codes may
    # have 1 to 8 times `alpha` (indices 0 to 6). Smaller penalties give dense codes, because atoms
    # overlap at all positions: an electrocardiogram has 4 to 7 nonzero codes a beat with 1 times
    # `alpha`, and 30 with 1/4; errors of planted signals are 0.134 and 0.143 of the noise. In
    # signals of counts, whose noise grows with the counts, searches at 3 to 10 times `alpha`
    # predict equally well, but their atoms correlate with the planted atoms by 0.8 instead of 0.95.
    index_range = (0, 6)

    def _hide(self, problem):  # -> (n_tiles,)
        """Crop the images and draw the pixels that each turn hides, when the object is made.

        The crops, their known pixels and the hidden pixels of each turn are set as attributes.
        Return the energy of the hidden pixels of each tile, over all turns.
        """
        window = _choose_window(problem)
        mask = None if problem.mask is None else problem.mask[window]
        self.problem = replace(problem, x=problem.x[window], mask=mask, held_out=None)
        self.x = x = self.problem.x
        self.observed = self.problem.observed
        self.mean_square = float(x.square().sum() / self.observed.sum().clamp_min(1))
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(x.shape[2:], generator=generator, dtype=x.dtype)
        turn = torch.floor(drawn * N_GROUPS)
        # Three turns hide a different tenth of the pixels each. Ten turns would take longer.
        self._hidden = [self.observed * (turn == i) for i in range(3)]
        self.n_hidden = float(sum(hidden.sum() for hidden in self._hidden))
        return sum(self._of_tiles(x.square() * hidden) for hidden in self._hidden)

    def _first_index(self, atoms, debias):  # -> int
        """Return the index of the penalty that a walk of `predict` begins with.

        It is the last penalty before the error rises, in factors of 2 (two indices) down from the
        largest penalty. ``debias`` is the part of the lasso's bias to remove; None takes the best
        part at each penalty.
        """
        least, most = self.index_range
        best = self.at(atoms, most, debias)
        for index in range(most - 2, least - 1, -2):
            prediction = self.at(atoms, index, debias)
            if prediction.total > best.total:
                break
            best = prediction
        return best.index

    def _code(self, atoms, alphas, mask):  # yields (Codes, Codes), (Tensor, Tensor)
        """Predict images at each of the penalties ``alphas``: yield codes and images (n, ...).

        Both are pairs: first for the lasso, then for least squares on its supports. Codes are
        computed from the pixels that ``mask`` (n, ...) marks.
        """
        problem = replace(self.problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [conv_synthesis(problem, atoms, z) for z in codes]

    def _of_tiles(self, values):  # (n, n_channels, *size) -> (n_tiles,)
        """Return the sum of the values in each tile of all images, over channels.

        Tiles, of the size of an atom, are the parts whose errors `worse` compares.
        """
        kernel = self.problem.kernel
        axes = zip(values.shape[2:], kernel, strict=True)
        # zeros at the end of each axis make its length a multiple of the tile's
        ends = [n for size, k in reversed([*axes]) for n in (0, -size % k)]
        tiles = torch.nn.functional.pad(values.sum(1), ends)
        for axis, k in enumerate(kernel, 1):
            tiles = tiles.unfold(axis, k, k)
        return tiles.sum([*range(-len(kernel), 0)]).flatten()

    def _sums_at(self, atoms, alphas):  # -> (n_alphas, n_tiles, 3)
        """Predict hidden pixels in all turns at the penalties ``alphas``, for `HeldOut.sums`.

        The result has the three inner products of `best_debias` for each tile.
        """

        def inner(a, b):  # (n, ...), (n, ...) -> (n_tiles,)
            return self._of_tiles(a * b)

        sums = 0.0
        for hidden in self._hidden:
            of_turn = []
            for _, (lasso, refit) in self._code(atoms, alphas, self.observed - hidden):
                error = (self.x - lasso) * hidden
                step = (refit - lasso) * hidden
                of_turn.append(_inner_products(inner, error, step))
            sums = sums + torch.stack(of_turn)
        return sums

    def noise(self, atoms, prediction):  # -> float
        """Return the variance of the noise, by which `best_coding` tells noise from signal.

        It is the sum of squared residuals divided by the number of known pixels minus the number of
        nonzero codes; no pixels are hidden. ``atoms`` are (n_components, n_channels, *kernel), and
        ``prediction`` has the penalty and the debiasing of the codes.
        """
        alphas = [self.penalty(prediction.index)]
        ((codes, images),) = self._code(atoms.to(self.x), alphas, self.observed)
        lasso, refit = images
        residual = (
            self.x - torch.lerp(lasso, refit, prediction.debias)
        ) * self.observed
        n_codes = len(codes[prediction.debias == 1].value)
        n_free = float(self.observed.sum()) - n_codes
        return float(residual.square().sum()) / n_free if n_free > 0 else 0.0


# Return the number of pixels of all crops of images together: 2**14, or for more than two channels
# so few that the crops have 2**15 entries. So predictions take limited time.
def _n_pixels(problem):  # -> int
    return min(2**14, 2 * 2**14 // problem.x.shape[1])


def _choose_window(problem):  # -> tuple that indexes the images of a problem
    """Choose the images that are predicted, and the pixels of their crops along each axis.

    The crops have about `_n_pixels` pixels together, to limit time, and come from 4 images or more
    (or all), to represent the data. Copies of an atom cover a crop exactly.
    """
    n_images, _, *sizes = problem.x.shape
    n_pixels = _n_pixels(problem)
    n = min(max(4, n_pixels // max(prod(sizes), 1)), n_images)
    area = n_pixels // n
    # axes of a single pixel are not cropped
    side = int(area ** (1 / max(1, sum(size > 1 for size in sizes))))
    crop = []
    axes = zip(sizes, problem.kernel, problem.stride, strict=True)
    for size, kernel, stride in axes:
        length = min(size, max(2 * kernel, side))
        length = kernel + (length - kernel) // stride * stride
        first = (size - length) // 2
        crop.append(slice(first, first + length))
    return (spread_rows(n_images, n), slice(None), *crop)


def count_codings(problem):  # -> int
    """Return the number of codings by which a penalty is chosen, from the energies of rows.

    A coding is a row with one group of features hidden. More codings choose more reliably, and take
    longer. The number is 400 to 3,000, and a tenth of the rows if that is more and below 3,000.
    """
    squares = problem.weigh(problem.squares)
    n_rows = torch.ones_like(squares).sum()
    sums = torch.stack([squares.sum(), squares.square().sum(), n_rows])
    (sums,) = problem.total(sums)
    energy, squared_energies, n = sums.tolist()
    # A coding predicts a tenth of a row's entries. The codings predict 10,000 hidden entries, but
    # are at least 400 and at most 1000.
    n_codings = ceil(10_000 * N_GROUPS / problem.x.shape[1])
    n_codings = min(max(n_codings, 400), 1000)
    # If few rows have most of the energy (sum of squares), these rows decide alone, so more codings
    # are needed: the number is divided by the evenness, (sum of energies)^2 / (n * sum of squared
    # energies), which is 1 for equal energies and 0.1 to 0.25 for patches of photographs. With a
    # third of these codings the chosen penalty of patches varies by a factor of two, depending on
    # the rows that are held out.
    evenness = energy**2 / (n * squared_energies) if squared_energies > 0 else 1.0
    return min(max(ceil(n_codings / evenness), int(n) // 10), 3000)


def hold_out(problem, *, learn=True, largest=None):  # -> Problem
    """Hold out rows of a problem, by which a search chooses its penalty.

    Parameters
    ----------
    problem : Problem
        Data and objective.
    learn : bool, default=True
        Whether the held-out rows stay in the problem, so that the atoms adapt to them in the
        polish, the last stage of a search. Otherwise the rows are removed from the problem.
    largest : float, default=None
        Rows whose known entries have a larger mean square than this are not held out: they may be
        outliers, and would have most of the held-out error.

    Returns
    -------
    Problem
        The problem with held-out rows. It is ``problem`` itself with fewer than 20 different rows,
        with one feature, or if all features are copies of one. A row is held out together with its
        copies, which count as one row.
    """
    first = match_equal_rows(problem.x, problem.mask)
    distinct = first.unique()
    if largest is not None:
        n_known = problem.x.shape[1] if problem.mask is None else problem.mask.sum(1)
        distinct = distinct[(problem.squares <= largest * n_known)[distinct]]
    n = len(distinct)
    (n_all,) = problem.total(torch.tensor([float(n)], dtype=torch.float64))
    if n_all < LEAST_ROWS:
        return problem
    n_codings = count_codings(problem)
    # One row in ten is held out. With fewer than 1,000 rows 100 rows are held out, but at most one
    # row in four. Never are more rows held out than codings are needed, since each row is coded at
    # least once, and more codings would only take time. `fraction` is this process's part of the
    # rows of all processes.
    fraction = n / float(n_all)
    n_held = max(n // 10, min(n // 4, ceil(100 * fraction)))
    n_held = min(n_held, ceil(n_codings * fraction))
    # the rows drawn, and all copies of these rows
    rows = torch.isin(first, distinct[spread_rows(n, n_held)])
    held_out = problem.of_rows(rows).hide(n_codings)
    if not held_out.is_predictable:
        return problem
    if learn:
        return replace(problem, held_out=held_out, held_rows=rows)
    return replace(problem.of_rows(~rows), held_out=held_out)


def hold_out_images(problem):  # ConvProblem -> ConvProblem
    """Hold out images of a problem, by which a search judges its atoms.

    With fewer than four images no image is held out; pixels of all images are hidden instead. An
    image is held out together with its copies, which count as one image.
    """
    first = match_equal_rows(problem.x, problem.mask)
    distinct = first.unique()
    n = len(distinct)
    n_held = ceil(_n_pixels(problem) / max(problem.x[0, 0].numel(), 1))
    n_held = min(n_held, n // 4)
    # Training images can judge the atoms that they have trained, because the few parameters of
    # atoms cannot fit the noise of an image.
    if n_held == 0:
        return replace(problem, held_out=problem.hide())
    images = torch.isin(first, distinct[spread_rows(n, n_held)])
    held_out = problem.of_rows(images).hide()
    return replace(problem, held_out=held_out, held_rows=images)
