"""Judge atoms and penalties: predict hidden entries of held-out data, and compare predictions.

*Held-out* rows or images take no part in training. Their entries are hidden in turn: in each *turn*
one group of features is hidden in rows, or a tenth of the pixels in images. Codes are computed from
the visible entries and predict the hidden entries. The prediction is bad if the penalty is too
large, if it is so small that codes follow the noise, if atoms are missing, and if atoms have fitted
the noise of the training data.

Penalties, numbers of atoms and units are chosen by `worse`: is one prediction worse than another,
by more than chance? The data are cut into *parts*, rows or tiles of images, and the standard error
of the difference of two predictions comes from the differences of their errors in each part.

A *place* is an integer that stands for a penalty of codes: ``2 ** (place / 2)`` times the penalty
of the search, ``HeldOut.alpha``. At each place the prediction may move from the lasso's codes
towards least squares on their supports, which are free of the lasso's bias, by a *share* from 0 to
1 of the way. The error is quadratic in the share, so the best share has a formula (`best_shares`).
"""

from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows, threads_for
from skpudle.lasso._solve import lasso_path
from skpudle.search._conv_epoch import ConvProblem, conv_path, conv_synthesis
from skpudle.search._epoch import own, spread_rows

# A difference between the errors of two predictions counts only above a number of its standard
# errors: above CHANCE where a search chooses a penalty, and above SURE where a search would begin
# again or where atoms have to predict better than zeros. With CHANCE = 0.5 the chosen penalty
# predicts 19 of 22 data sets (benchmarks/bench_learners.py) as well as the default penalty does,
# with 1.0 only 17 of 22.
CHANCE = 0.5
SURE = 2.0
# The median modulus of a standard normal variable: a median distance divided by this number is a
# standard deviation.
MEDIAN_OF_NORMAL = 0.6745
# With fewer rows than this no rows are held out: at most a quarter of the rows may be, and four
# rows cannot tell which of two penalties is better.
LEAST_ROWS = 20
# Largest number of atoms for which the matrix of the products of atoms is computed once, for all
# turns of a prediction. The limit saves memory: the matrix of 4,096 atoms takes 128 MiB.
_MOST_PRODUCTS = 4096
# Few rows are held out in up to three folds, as long as all folds have at most 400 rows. Of 37
# tables with 94 to 1,700 rows the penalties that two seeds choose then differ by at most a factor
# of 2 in 36 tables, with a single fold in 30. A fit takes 1.5 times as long.
_MOST_FOLDS = 3
_FEW_HELD = 400
# Features are cut into this number of groups, and each turn of a prediction hides one group. In
# images each turn hides one pixel in this number.
_TENTHS = 10


class Prediction(NamedTuple):
    """The errors of a prediction of hidden entries, from codes at one penalty and share.

    Attributes
    ----------
    errors : Tensor of shape (n_parts,)
        The sum of squared errors of the hidden entries in each part (row, or tile of an image) of
        the data of this process, times the weight of the row.
    total : float
        The sum of the errors over all parts of all processes.
    place : int
        The penalty of the codes: ``2 ** (place / 2)`` times ``HeldOut.alpha``.
    share : float
        The share of the lasso's bias that is removed from the codes, from 0 to 1.
    """

    errors: Tensor
    total: float
    place: int = 0
    share: float = 0.0


def loss_and_chance(one, other, total=own):  # Prediction, Prediction -> float, float
    """Compare the errors of two predictions: return their difference, and its standard error.

    Errors are compared in each part of the data (row, or tile of an image), and summed over the
    parts of all processes; ``total`` adds up sums over processes.
    """
    loss = one.errors - other.errors
    sums = loss.sum(), loss.square().sum(), torch.ones_like(loss).sum()
    (sums,) = total(torch.stack(sums))
    loss, square, n = sums.tolist()
    return loss, max(square - loss**2 / max(n, 1.0), 0.0) ** 0.5


def worse(one, other, errors=1.0, total=own):  # Prediction, Prediction -> bool
    """Return whether a prediction is worse than another by more than ``errors`` standard errors.

    Penalties, numbers of atoms and units are chosen by this comparison. ``one`` and ``other`` are
    predictions of the same hidden entries. The standard error is that of the difference of their
    errors, paired by parts of the data (rows, or tiles of images). ``total`` adds up sums over
    processes.
    """
    loss, chance = loss_and_chance(one, other, total)
    return loss > errors * chance


def errors_at(sums, share):  # (..., 3), (...) -> (...)
    """Return squared errors of a prediction that lies between two predictions.

    ``share`` is the part of the way from the first to the second prediction, from 0 to 1. ``sums``
    are the three inner products that `best_shares` explains.
    """
    square, product, length = sums.unbind(-1)
    return square - share * (2 * product - share * length)


def best_shares(sums):  # (..., 3) -> errors (...), shares (...)
    """Return the least squared error on the way between two predictions, and the share of the way.

    The first prediction is that of the lasso's codes, the second that of least squares. The last
    axis of ``sums`` has the inner products ``(e, e)``, ``(e, d)`` and ``(d, d)``, where ``e`` is
    the error of the first prediction, and ``d`` the second prediction minus the first.
    """
    _, product, length = sums.unbind(-1)
    share = (product / length).nan_to_num(0.0).clamp(0, 1)
    return errors_at(sums, share), share


def hash_rows(x, mask=None):  # -> (n,) int64, on the CPU
    """Return a hash of each row, by which equal rows are found.

    The hash depends only on the known entries of the row: the bits of the entries, 32 at a time,
    are multiplied by random odd numbers of 64 bits; in each product the upper half is combined with
    the lower half by exclusive or; and the products are summed modulo ``2**64``. Two rows that
    differ have the same hash with a probability of about ``2**-64``. ``x`` and ``mask`` are as in
    `match_equal_rows`.
    """
    x = x.flatten(1)
    n_numbers = x.shape[1] * x.element_size() // 4
    generator = torch.Generator().manual_seed(0)
    sums = []
    factors = torch.randint(
        -(2**62), 2**62, (n_numbers,), generator=generator, device="cpu"
    )
    factors = (2 * factors + 1).to(x.device)
    # A block of rows has 2**18 products, 2 MiB, which fit into a cache: to hash 20,000 rows of 64
    # features takes 5 ms in such blocks, and 24 ms in blocks of four times the size.
    for part in blocks_of_rows(len(x), n_numbers, 2**18):
        known = torch.empty(x[part].shape, dtype=x.dtype, device=x.device).copy_(
            x[part]
        )
        known += 0.0  # turns -0.0 into 0.0: both are equal, but have different bits
        if mask is not None:
            known.masked_fill_(mask.flatten(1)[part] == 0, torch.nan)
        products = known.view(torch.int32) * factors
        sums.append(products.bitwise_xor_(products >> 32).sum(1).cpu())
    return torch.cat(sums)


def match_equal_rows(x, mask=None):  # -> (n,)
    """Return for each row the number of the first row with the same known entries.

    So a row is held out together with its copies: a copy among the training rows would reveal the
    noise of the row.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Rows, in float32 or float64.
    mask : Tensor of the shape of ``x``, default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples,)
        Numbers of rows, on the CPU. A row that equals no row before it has its own number.
    """
    _, number = hash_rows(x, mask).unique(return_inverse=True)
    places = torch.arange(len(x), device="cpu")
    return torch.full_like(places, len(x)).scatter_reduce(0, number, places, "amin")[
        number
    ]


def hide_in_turn(places, n_groups=_TENTHS):  # (n_features,) -> list of (seen, hidden)
    """Cut features into random groups, each hidden in one turn; the same groups in every call.

    Features that are copies of each other are in one group: a visible copy would reveal the noise
    of a hidden copy. If there is a single group, its features are both visible and hidden.

    Parameters
    ----------
    places : Tensor of shape (n_features,)
        For each feature the number of the first feature with the same values, as `match_equal_rows`
        returns it for columns.
    n_groups : int, default=10
        Largest number of groups. Few features, or many copies, make fewer groups.

    Returns
    -------
    list of tuple (seen, hidden)
        For each turn the numbers of the visible features, in increasing order, and the numbers of
        the hidden features.
    """
    order = torch.randperm(
        len(places), generator=torch.Generator().manual_seed(0), device="cpu"
    )
    parts = order.tensor_split(max(1, min(n_groups, len(order))))
    group = torch.empty_like(order)
    for number, part in enumerate(parts):
        group[part] = number
    group = group[places]
    turns = []
    for number in (numbers := group.unique()):
        seen = (group != number) | (len(numbers) == 1)
        turns.append((seen.nonzero().flatten(), order[group[order] == number]))
    return turns


def gaps_in(known):  # -> mask or None
    """Return the mask ``known``, or None, which is faster, if all entries are known."""
    return None if bool(known.all()) else known


def residuals_of(x, known, atoms, alpha, positive, share=1.0):  # -> (n, m), (n,)
    """Solve for codes of rows, and return their residuals (n, m) and numbers of nonzero codes (n,).

    Noise is estimated from both. Residuals are 0 at missing entries. Codes are a ``share`` of the
    way from the lasso's codes, at the penalty ``alpha``, to least squares on their supports. ``x``
    and the mask ``known`` are (n, m), and ``atoms`` (p, m).
    """
    residuals = torch.empty_like(x)
    n_codes = torch.empty_like(x[:, 0])
    for rows in blocks_of_rows(len(x), len(atoms)):
        options = dict(positive=positive, mask=gaps_in(known[rows]))
        (codes,) = torch.lerp(*lasso_path(atoms, x[rows], [alpha], **options), share)
        residuals[rows] = (x[rows] - codes @ atoms) * known[rows]
        n_codes[rows] = (codes != 0).sum(1).to(x)
    return residuals, n_codes


class HeldOut:
    """Held-out rows or images, whose hidden entries are predicted to judge atoms and penalties.

    A *turn* hides one group of features in some rows, or some pixels in all images; see the module
    for *parts*, *places* and *shares*. Rows are a `_Rows` and images a `_Tiles`, which `__new__`
    chooses.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Rows or images, and the penalty of a search.
    fixed : bool, default=False
        Whether the search tries no other penalty than ``alpha``, as in all searches of images.
    mixes : bool, default=False
        Whether the rows mix few non-negative atoms, see `find.penalty_of_mixtures`.
    n_codings : int, default=None
        How many codings a prediction takes at least, in all processes. A coding is a row with one
        group of features hidden. By default `count_codings` of these rows.
    fold : tuple (number, n_folds), default=(0, 1)
        For one of several folds, see `Folds`: every ``n_folds``-th group of features is hidden,
        from the group ``number`` on. So predictions of all folds take the time of one.

    Attributes
    ----------
    x, known : Tensor of shape (n_samples, ...)
        The rows or crops of the images, in float64, and the mask of their known entries.
    zeros : Prediction
        The prediction that all hidden entries are zero. Its errors are the energies of the parts:
        the sums of squares of their hidden entries.
    step : float
        The factor from one penalty that a search tries to the next larger one.
    places : tuple of int
        The smallest and largest penalty of codes, as powers of ``2 ** 0.5`` in units of ``alpha``.
    smallest, largest : float
        The smallest and largest penalty of a search, in units of ``alpha``; 1 with ``fixed``.
    mean_square : float
        The mean square of known entries.
    n_hidden : float
        Number of hidden entries, added up over all turns.
    is_predictable : bool
        Whether there is more than one turn, so that hidden entries differ from visible ones.
    """

    is_predictable = True
    # With factors of 2 a search takes 0.94 of the time, and errors are up to .03 larger (planted
    # atoms in few rows, or with missing entries).
    step = 2**0.5

    def __new__(cls, problem, **options):
        """Return an instance of `_Rows` or, for images, of `_Tiles`."""
        return super().__new__(_Tiles if isinstance(problem, ConvProblem) else _Rows)

    def __init__(
        self, problem, *, fixed=False, mixes=False, n_codings=None, fold=(0, 1)
    ):
        self.alpha = problem.alpha
        self.total = problem.total
        self.mixes = mixes
        self.fold = fold
        if fixed:
            self.smallest = self.largest = 1.0
        self._of = torch.empty(0)
        self._sums = {}
        energies = self._hide(problem, n_codings)
        self.zeros = Prediction(energies, float(*self.total(energies.sum())))

    def join(self, parts):  # -> (n_components, ...)
        """Return the atoms of the only fold; `Folds` joins the atoms of several."""
        (atoms,) = parts
        return atoms

    def split(self, atoms):  # -> a tensor (n_components, ...)
        """Return a list of the atoms of each fold, here of the only one."""
        return [atoms]

    def sums(self, atoms, places):  # -> list of (n_parts, 3)
        """Predict hidden entries at several penalties; return what gives the errors for any share.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        places : sequence of int
            Penalties of codes from large to small, as places: ``2 ** (place / 2)`` times ``alpha``.

        Returns
        -------
        list of Tensor of shape (n_parts, 3)
            For each penalty the three inner products of `best_shares` in each part. They are cached
            as long as the atoms are the same.
        """
        if self._of.shape != atoms.shape or not torch.equal(self._of, atoms):
            self._of = atoms
            self._sums = {}
        if new := [place for place in places if place not in self._sums]:
            alphas = [self.alpha * 2 ** (0.5 * place) for place in new]
            self._sums |= zip(
                new, self.sums_at(atoms.detach().to(self.x), alphas), strict=True
            )
        return [self._sums[place] for place in places]

    def at(self, atoms, place, share=None):  # -> Prediction
        """Predict the hidden entries by atoms (n_components, ...) at one penalty of codes.

        The penalty is ``2 ** (place / 2)`` times ``alpha``. Codes move by ``share``, from 0 to 1,
        from the lasso's codes towards least squares on their supports; None takes the share of the
        least error.
        """
        (sums,) = self.sums(atoms, [place])
        (total,) = self.total(sums.sum(0))
        share = float(best_shares(total)[1] if share is None else share)
        return Prediction(
            errors_at(sums, share), float(errors_at(total, share)), place, share
        )

    def predict(self, atoms, place=None, steps=(1, -1), share=None):  # -> Prediction
        """Predict the hidden entries at the best penalty of codes, which a walk finds.

        Parameters
        ----------
        atoms : Tensor of shape (n_components, ...)
            Atoms.
        place : int, default=None
            The penalty to begin with, see `Prediction`. None: rows begin at ``alpha``. The errors
            of images have local minima along the penalties, so images begin at the last place
            before the error rises, on a walk from the largest penalty down.
        steps : tuple of int, default=(1, -1)
            Directions of the walk: 1 to larger penalties, -1 to smaller ones. The walk goes on in
            each direction as long as the error falls.
        share : float, default=None
            The share of the lasso's bias to remove; None takes the best share at each penalty.

        Returns
        -------
        Prediction
            The prediction with the least error.
        """
        (least, most), found = self.places, {}
        place = self._locate(atoms, share) if place is None else place
        inside = min(max(place, least + 1), most - 1)
        # At an end of the range of penalties a walk could go in one direction only. So it starts
        # one place further inside, and tries both directions.
        place, steps = inside, steps if inside == place else (1, -1)

        def best(*places):  # predict at the places -> the best place so far
            self.sums(
                atoms, places
            )  # fills the cache in one call, faster than a call for each
            found.update((place, self.at(atoms, place, share)) for place in places)
            return min(found.values(), key=lambda one: (one.total, -one.place)).place

        top = best(*sorted({place, *(place + step for step in steps)}, reverse=True))
        for step in steps:
            n_ahead = 1
            while least <= top + step <= most and top + step not in found:
                # One call predicts at several places ahead and fills the cache. It is faster than
                # single calls, since the codes at each penalty start from the codes at the next
                # larger penalty. Each call takes twice the number of places of the call before.
                if top + step not in self._sums:
                    ahead = np.clip(top + step * np.arange(1, n_ahead + 1), least, most)
                    self.sums(atoms, sorted(set(ahead.tolist()), reverse=True))
                    n_ahead *= 2
                top = best(top + step)
        return found[top]


class _Rows(HeldOut):
    """Held-out rows; each row is a part, and groups of features are hidden in turn.

    A *turn* is a prediction of the features of one group, in some of the rows, from the features of
    the other groups. To save time a row takes part in a few turns only: the least number that gives
    ``n_codings`` codings of rows in all.
    """

    # `places`: the smallest and largest penalty of codes, as numbers that the module explains.
    # `smallest`, `largest`: the smallest and largest penalty of a search, as multiples of its first
    # penalty `alpha`. In a search smaller multiples than 1/16 give dense codes, which take long and
    # predict no better. At a signal-to-noise ratio of -3 dB, the most noise in which a search finds
    # planted atoms, the best penalty is 4 to 6 times the first one, so a multiple of 12 is enough.
    places = (-20, 6)
    smallest = 1 / 16
    largest = 12.0

    def _locate(
        self, atoms, share
    ):  # -> int: the place (penalty) that a walk begins with, `alpha`
        return 0

    def _hide(self, problem, n_codings):  # -> (n_rows,)
        """Choose which features are hidden in which rows in each turn, when the object is made.

        Groups of features are drawn at random, and each turn hides one group in some rows. The
        number of turns of a row is the least that gives ``n_codings`` codings of rows in all
        processes. The turns, the data and their counts are set as attributes. Return the energy
        (sum of squares) of the hidden entries of each row, over its turns.
        """
        self.problem = problem = replace(problem, x=problem.x.cpu())
        self.x = problem.x.double()
        self.known = problem.known.double()
        n = len(problem.x)
        self._often = problem.weigh(self.x.new_ones(n))
        groups = (
            hide_in_turn(match_equal_rows(self.x.mT, gaps_in(self.known.mT)))
            if n
            else []
        )
        # Both numbers are summed over processes, because all processes must take the same decision:
        # a process without held-out rows, too, has to take part in the sums of predictions.
        n_rows, n_predictable = self.total(self.x.new_tensor([n, len(groups) > 1]))[0]
        self.is_predictable = bool(n_predictable)
        groups = groups[self.fold[0] :: self.fold[1]]
        n_codings = n_codings or count_codings(problem)
        n_turns = max(1, min(len(groups), ceil(n_codings / max(float(n_rows), 1))))
        self._turns = []
        are_hidden = torch.zeros_like(self.x)
        for i, (seen, hidden) in enumerate(groups):
            rows = ((torch.arange(n) + i) % len(groups) < n_turns).nonzero().flatten()
            self._turns.append((rows, seen, hidden))
            are_hidden[rows[:, None], hidden] = self.known[rows[:, None], hidden]
        of_rows = self.known, self.x.square(), are_hidden
        (sums,) = self.total(
            self._often @ torch.stack([part.sum(1) for part in of_rows], 1)
        )
        n_known, square, self.n_hidden = sums.tolist()
        self.mean_square = square / max(n_known, 1.0)
        return (self.x.square() * are_hidden).sum(1) * self._often

    def sums_at(self, atoms, alphas):  # -> (n_alphas, n_rows, 3)
        """Predict hidden entries in all turns at the penalties ``alphas``, for `HeldOut.sums`.

        ``atoms`` are (n_components, n_features), and ``alphas`` fall. The result has the three
        inner products of `best_shares` for each row, times the weight of the row.
        """
        sums = self.x.new_zeros(len(alphas), len(self.x), 3)
        is_whole = self.problem.mask is None
        has_products = is_whole and len(atoms) <= _MOST_PRODUCTS
        how = dict(positive=self.problem.positive_code)
        with threads_for():
            products = atoms @ atoms.mT if has_products else None
            for turn, seen, hidden in self._turns:
                part = atoms[:, hidden]
                # products of atoms over the visible features: over all features less hidden ones
                if has_products:
                    how["gram"] = products - part @ part.mT
                for block in blocks_of_rows(len(turn), len(alphas) * len(atoms), 2**18):
                    x = self.x[turn[block]]
                    known = self.known[turn[block]]
                    # With zeros at hidden features the products of rows with atoms, too, are over
                    # the visible features alone, so the atoms need not be cut.
                    if has_products:
                        given = atoms, x.index_fill(1, hidden, 0.0)
                    else:
                        given = (atoms[:, seen], x[:, seen])
                        how["mask"] = gaps_in(known[:, seen])
                    codes, refits = lasso_path(*given, alphas, **how)
                    error = x[:, hidden] - codes @ part
                    step = refits.sub_(codes) @ part
                    if not is_whole:
                        error = error * known[:, hidden]
                        step = step * known[:, hidden]
                    pairs = (error, error), (error, step), (step, step)
                    inner = [torch.linalg.vecdot(*pair) for pair in pairs]
                    sums[:, turn[block]] += torch.stack(inner, 2)
        return sums * self._often[:, None]

    def noise(self, atoms, found):  # -> float
        """Return the variance of the noise, by which `best_coding` tells noise from signal.

        It is the sum of squared residuals over the degrees of freedom, the number of known entries
        minus the number of nonzero codes, at the penalty and share of the `Prediction` ``found``.
        No entries are hidden. ``atoms`` are (n_components, n_features).
        """
        alpha = self.alpha * 2 ** (0.5 * found.place)
        positive = self.problem.positive_code
        how = atoms.detach().to(self.x), alpha, positive, found.share
        residual, n_codes = residuals_of(self.x, self.known, *how)
        left = (self.known.sum(1) - n_codes).clamp_min(0)
        sums = torch.stack([residual.square().sum(1) * (left > 0), left], 1)
        (sums,) = self.total(self._often @ sums)
        squares, left = sums.tolist()
        return squares / left if left > 0 else 0.0


class Folds(HeldOut):
    """Rows held out in several folds, each predicted by atoms that were trained without its rows.

    Few held-out rows would choose another penalty if other rows were held out, or if atoms began
    from other samples. The atoms of all folds are one tensor (n_folds, n_components, n_features),
    and parts are the rows of all folds, so that predictions are compared as if all these rows had
    been held out at once.

    Parameters
    ----------
    folds : list of HeldOut
        The held-out rows of each fold.
    """

    # Larger steps save the time that several folds take.
    step = 2.0
    places = _Rows.places

    def __new__(cls, folds):
        """Return an instance, of this class."""
        return object.__new__(cls)

    def __init__(self, folds):
        self.folds = folds
        first = folds[0]
        self.alpha = first.alpha
        self.total = first.total
        self.mixes = first.mixes
        self.smallest = first.smallest
        self.largest = first.largest
        self.x = first.x  # for its dtype
        self.problem = first.problem
        self._of = torch.empty(0)
        self._sums = {}
        self.n_hidden = sum(fold.n_hidden for fold in folds)
        self.mean_square = sum(fold.mean_square for fold in folds) / len(folds)
        energies = torch.cat([fold.zeros.errors for fold in folds])
        self.zeros = Prediction(energies, sum(fold.zeros.total for fold in folds))

    def join(self, parts):  # -> (n_folds, n_components, n_features)
        """Return the atoms of all folds as one tensor."""
        return torch.stack(parts)

    def split(self, atoms):  # -> n_folds tensors (n_components, n_features)
        """Return the atoms of each fold."""
        return [*atoms]

    def _locate(self, atoms, share):  # -> int
        return 0

    def sums_at(self, atoms, alphas):  # -> (n_alphas, n_rows, 3)
        """Predict the hidden entries of each fold by its atoms, as `_Rows.sums_at` does."""
        pairs = zip(self.folds, atoms, strict=True)
        return torch.cat([fold.sums_at(part, alphas) for fold, part in pairs], 1)

    def noise(self, atoms, found):  # -> float
        """Return the variance of the noise, the mean of all folds, as `_Rows.noise` does."""
        pairs = zip(self.folds, atoms, strict=True)
        return sum(fold.noise(part, found) for fold, part in pairs) / len(self.folds)


class _Tiles(HeldOut):
    """Crops of held-out images; tiles of an atom's size are parts, and random pixels are hidden."""

    # The limits are as in `_Rows`. A search begins at a penalty at the level of the noise, `alpha`,
    # and tries no other. Codes may have 1 to 8 times `alpha` (places 0 to 6). Smaller penalties
    # give dense codes, because atoms overlap at all positions: an electrocardiogram has 4 to 7
    # nonzero codes a beat with 1 times `alpha`, and 30 with 1/4; errors of planted signals are .134
    # and .143 of the noise. In signals of counts, whose noise grows with the counts, searches at 3
    # to 10 times `alpha` predict equally well, but their atoms correlate with the planted atoms by
    # 0.8 instead of 0.95.
    places = (0, 6)
    smallest = 1.0
    largest = 1.0

    def _hide(self, problem, n_codings):  # -> (n_tiles,)
        """Crop the images and draw the pixels that each turn hides, when the object is made.

        The crops, their known pixels and the hidden pixels of each turn are set as attributes.
        ``n_codings`` has no effect. Return the energy of the hidden pixels of each tile, over all
        turns.
        """
        n_pixels = _n_pixels(problem)
        # The crops have about `n_pixels` pixels together, to limit time, and come from 4 images or
        # more (or all), to represent the data.
        n = min(max(4, n_pixels // max(problem.x[0, 0].numel(), 1)), len(problem.x))
        chosen = spread_rows(len(problem.x), n)
        area = n_pixels // n
        crop = []
        axes = zip(problem.x.shape[2:], problem.kernel, problem.stride, strict=True)
        for (
            size,
            kernel,
            stride,
        ) in axes:  # a signal of height 1 is cropped along its width only
            side = min(
                size,
                max(2 * kernel, int(area**0.5) if problem.x.shape[2] > 1 else area),
            )
            side = kernel + (side - kernel) // stride * stride
            crop.append(slice((size - side) // 2, (size - side) // 2 + side))
        window = (chosen, slice(None), *crop)
        mask = None if problem.mask is None else problem.mask[window]
        self.problem = replace(problem, x=problem.x[window], mask=mask, held_out=None)
        self.x = x = self.problem.x
        self.known = self.problem.known
        self.mean_square = float(x.square().sum() / self.known.sum().clamp_min(1))
        drawn = torch.rand(
            x.shape[2:], generator=torch.Generator().manual_seed(0), dtype=x.dtype
        )
        turn = torch.floor(drawn * _TENTHS)
        # Three turns hide a different tenth of the pixels each. Ten turns would take longer.
        self._hidden = [self.known * (turn == i) for i in range(3)]
        self.n_hidden = float(sum(hidden.sum() for hidden in self._hidden))
        return sum(self._of_tiles(x.square() * hidden) for hidden in self._hidden)

    def _locate(self, atoms, share):  # -> int
        """Return the place (number of a penalty, see the module) to begin a walk of `predict` with.

        It is the last place before the error rises, in steps of two places down from the largest
        penalty. ``share`` is as in `HeldOut.predict`.
        """
        best = self.at(atoms, self.places[1], share)
        for place in range(self.places[1] - 2, self.places[0] - 1, -2):
            one = self.at(atoms, place, share)
            if one.total > best.total:
                break
            best = one
        return best.place

    def _code(self, atoms, alphas, mask):  # yields (Codes, Codes), (Tensor, Tensor)
        """Predict images at each of the penalties ``alphas``: yield codes and images (n, ...).

        Both are pairs: first for the lasso, then for least squares on its supports. Codes are
        computed from the pixels that ``mask`` (n, ...) marks.
        """
        problem = replace(self.problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [conv_synthesis(problem, atoms, z) for z in codes]

    def _of_tiles(self, values):  # (n, n_channels, height, width) -> (n_tiles,)
        """Return the sum of the values in each tile of all images, over channels.

        Tiles, of the size of an atom, are the parts whose errors `worse` compares.
        """
        height, width = (
            -n % k for n, k in zip(values.shape[2:], self.problem.kernel, strict=True)
        )
        tiles = torch.nn.functional.pad(values.sum(1), (0, width, 0, height))
        for axis, kernel in enumerate(self.problem.kernel, 1):
            tiles = tiles.unfold(axis, kernel, kernel)
        return tiles.sum((3, 4)).flatten()

    def sums_at(self, atoms, alphas):  # -> (n_alphas, n_tiles, 3)
        """Predict hidden pixels in all turns at the penalties ``alphas``, for `HeldOut.sums`.

        The result has the three inner products of `best_shares` for each tile.
        """
        sums = 0.0
        for hidden in self._hidden:
            products = []
            for _, (lasso, refit) in self._code(atoms, alphas, self.known - hidden):
                error = (self.x - lasso) * hidden
                step = (refit - lasso) * hidden
                pairs = (error, error), (error, step), (step, step)
                products.append(
                    torch.stack([self._of_tiles(a * b) for a, b in pairs], 1)
                )
            sums = sums + torch.stack(products)
        return sums

    def noise(self, atoms, found):  # -> float
        """Return the variance of the noise, as `_Rows.noise` does.

        ``atoms`` are (n_components, n_channels, height, width), and the `Prediction` ``found`` has
        the penalty and the share of the codes.
        """
        alpha = self.alpha * 2 ** (0.5 * found.place)
        debias = found.share
        ((codes, images),) = self._code(atoms.to(self.x), [alpha], self.known)
        left = float(self.known.sum()) - len(codes[debias == 1].value)
        residual = (self.x - torch.lerp(*images, debias)) * self.known
        return float(residual.square().sum()) / left if left > 0 else 0.0


# The number of pixels of all crops of images together: 2**14, or fewer for more than two channels,
# so that predictions take limited time.
def _n_pixels(problem):  # -> int
    return min(2**14, 2 * 2**14 // problem.x.shape[1])


def count_codings(problem):  # -> int
    """Return the number of codings by which a penalty is chosen, from the energies of rows.

    A coding is a row with one group of features hidden. More codings choose more reliably, and take
    longer.
    """
    squares = problem.weigh(problem.squares)
    sums = torch.stack(
        [squares.sum(), squares.square().sum(), torch.ones_like(squares).sum()]
    )
    (sums,) = problem.total(sums)
    energy, fourth, n = sums.tolist()
    # A coding predicts a tenth of a row's entries. The codings predict 10,000 hidden entries, but
    # are at least 400 and at most 1000.
    n_codings = min(max(ceil(10_000 * _TENTHS / problem.x.shape[1]), 400), 1000)
    # If few rows have most of the energy (sum of squares), these rows decide alone, so more codings
    # are needed: the number is divided by the evenness, (sum of energies)^2 / (n * sum of squared
    # energies), which is 1 for equal energies and 0.1 to 0.25 for patches of photographs. With a
    # third of these codings the chosen penalty of patches varies by a factor of two, depending on
    # the rows that are held out.
    evenness = energy**2 / (n * fourth) if fourth > 0 else 1.0
    return min(max(ceil(n_codings / evenness), int(n) // 10), 3000)


def hold_out(
    problem, *, fixed=False, mixes=False, learn=True, largest=None
):  # -> Problem
    """Hold out rows or images of a problem, by which a search chooses its penalty.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective.
    fixed : bool, default=False
        Whether the user has set the penalty. The held-out data then only decide whether atoms are
        freed of the lasso's bias.
    mixes : bool, default=False
        Whether rows mix few non-negative atoms, see `find.penalty_of_mixtures`.
    learn : bool, default=True
        Whether the held-out rows stay in the problem, so that the atoms adapt to them in the
        polish, the last stage of a search. Otherwise the rows are removed from the problem.
    largest : float, default=None
        Rows whose known entries have a larger mean square than this are not held out.

    Returns
    -------
    Problem
        The problem with held-out rows or images. It is ``problem`` itself with fewer than 20
        different rows, with one feature, or if all features are copies of one. With fewer than four
        images no image is held out; pixels of all images are hidden instead. A row is held out
        together with its copies, which count as one row.
    """
    first = match_equal_rows(problem.x, problem.mask)
    distinct = first.unique()
    if largest is not None:
        n_known = problem.x.shape[1] if problem.mask is None else problem.mask.sum(1)
        distinct = distinct[(problem.squares <= largest * n_known)[distinct]]
    n = len(distinct)
    n_codings = None
    (n_all,) = problem.total(torch.tensor([float(n)], dtype=torch.float64))
    if isinstance(problem, ConvProblem):
        n_held = min(ceil(_n_pixels(problem) / max(problem.x[0, 0].numel(), 1)), n // 4)
        # Training images can judge the atoms that they have trained, because the few parameters of
        # atoms cannot fit the noise of an image.
        if n_held == 0:
            return replace(problem, held_out=HeldOut(problem))
    elif n_all < LEAST_ROWS:
        return problem
    else:
        share = n / float(n_all)
        n_codings = count_codings(problem)
        # One row in ten is held out. With fewer than 1,000 rows 100 rows are held out, but at most
        # one row in four. Never are more rows held out than codings are needed, since each row is
        # coded at least once, and more codings would only take time. `share` is this process's part
        # of the rows of all processes.
        n_held = min(
            max(n // 10, min(n // 4, ceil(100 * share))), ceil(n_codings * share)
        )
    # Several processes have many rows, and a single fold. The user's penalty needs no choice.
    n_folds = 1
    if (
        problem.total is own
        and learn
        and not (fixed or isinstance(problem, ConvProblem))
    ):
        n_folds = max(1, min(_MOST_FOLDS, _FEW_HELD // n_held))
        n_codings = ceil(n_codings / n_folds)
    folds = []
    left = distinct
    while len(folds) < n_folds:
        # the rows drawn, and all copies of these rows
        rows = torch.isin(first, left[spread_rows(len(left), n_held)])
        left = left[~rows[left]]
        held_out = HeldOut(
            problem.of_rows(rows),
            fixed=fixed,
            mixes=mixes,
            n_codings=n_codings,
            fold=(len(folds), n_folds),
        )
        if not held_out.is_predictable:
            return problem
        if not learn:
            return replace(problem.of_rows(~rows), held_out=held_out)
        folds.append(replace(problem, held_out=held_out, held_rows=rows))
    if n_folds == 1:
        return folds[0]
    together = Folds([fold.held_out for fold in folds])
    return replace(folds[0], held_out=together, folds=tuple(folds[1:]))
