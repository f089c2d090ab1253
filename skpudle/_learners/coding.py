"""Choose the penalty of codes, and the share of its bias to remove, by predicting hidden entries.

Finding atoms and coding rows are two jobs. A search wants a penalty that finds all atoms whatever
the noise; codes want the one with the smallest error. So features are hidden a group at a time,
rows are coded from the others, and the hidden entries are predicted from the codes: too large a
penalty predicts badly, and so does one that codes noise.

At every penalty the prediction moves on a line from the lasso's codes to least squares on their
supports. The error is quadratic in the share of the way, ``debias``, and its minimum is known.

Where there is little noise, a penalty far below the search's predicts best, and then the atoms
themselves carry the bias of the search's penalty: they are adapted to smaller ones, by quarters.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch

from skpudle.initialization import ConvProblem, adapted, conv_path
from skpudle.lasso import lasso_path
from skpudle.operators import ConvDictionary

__all__ = ["Coding", "adapt_atoms", "choose_coding", "hidden_entries"]

# Entries that are hidden in all, rows that they are hidden in, and groups of features.
_ENTRIES, _FEWEST, _MOST, _GROUPS = 10_000, 100, 200, 10

# Pixels that are looked at, and shares of them that are hidden, each in so many turns.
_PIXELS, _PICTURES, _SHARE, _TURNS = 2**14, 4, 0.1, 3

# A path has no penalties below this share of the search's, and ends when so many smaller ones have
# larger errors.
_SMALLEST, _PATIENCE = 2.0**-9, 2

# The error of codes is that of the prediction without the noise, which nothing predicts. The
# sparsest codes are chosen whose error is at most so much larger than the smallest one.
_SPARER = 1.1
# Atoms are adapted to penalties that fall by this factor, as long as the error falls to this share.
_ADAPTED, _BETTER = 0.25, 0.95
# Features of which less than this share of the mean square can be predicted, such as independent
# ones, say nothing of a penalty: the search's stays. It is 0.3 for patches that are mostly noise.
_PREDICTABLE = 0.1
# Errors below this share of the mean square are rounding.
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
        Mean number of codes of a row that are not zero.
    error : float
        Mean squared error of hidden entries.
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
        Variance that nothing predicts, as the best coding leaves it.
    rounding : float
        Error that is rounding.
    noise_std : float, default=0.0
        Standard deviation of the noise, as the chosen coding leaves it.
    """

    codings: list
    noise: float
    rounding: float
    noise_std: float = 0.0

    @cached_property
    def best(self):
        """The coding with the smallest error."""
        return min(self.codings, key=lambda coding: coding.error)

    @cached_property
    def excess(self):
        """The smallest error, without the noise."""
        return max(self.best.error - self.noise, 0.0)

    @cached_property
    def limit(self):
        """The largest error that is nearly as good as the smallest."""
        return min(self.noise, self.best.error) + _SPARER * self.excess + self.rounding

    def summary(self, unit):  # -> penalty, share of the bias to remove, deviation of the noise
        """Return what a learner keeps of it; data were divided by ``unit`` before."""
        return self.chosen.alpha * unit, self.chosen.debias, self.noise_std * unit

    @cached_property
    def chosen(self):
        """The sparsest coding that is nearly as good as the best."""
        return next(coding for coding in self.codings if coding.error <= self.limit)


class _Rows:
    """Rows of data on the CPU, in float64, and which entries are known.

    A path begins at ``largest`` times the search's penalty and falls by ``step``; the errors of so
    many penalties as make a ``part`` are looked at together.
    """

    largest, step, part = 8.0, 2**-0.5, 9

    def __init__(self, x, mask, *, positive, total):
        n_rows = min(_MOST, max(_FEWEST, _ENTRIES // x.shape[1]))
        stride = max(1, len(x) // n_rows)
        part = slice(stride // 2, None, stride)
        self.x = x[part].detach().to("cpu", torch.float64)
        self.known = None if mask is None else mask[part].to(self.x)
        if mask is not None:
            self.x = torch.where(self.known > 0, self.x, 0.0)
        self.positive, self.total = positive, total
        n_known = self.x.numel() if mask is None else float(self.known.sum())
        sums = total(self.x.square().sum(), self.x.new_tensor([n_known, len(self.x)]))
        self.n_known, self.n_rows = sums[1].tolist()
        self.mean_square = float(sums[0]) / max(self.n_known, 1.0)

    @property
    def groups(self):
        """The features that are hidden together."""
        n_features = self.x.shape[1]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(n_features, generator=generator, device="cpu")
        return order.tensor_split(min(_GROUPS, n_features))

    def hidden_sums(self, atoms, alphas):  # -> (n_alphas, 3), (n_alphas, 2)
        """Sum |e|^2, <e, d>, |d|^2 over hidden entries, and entries of codes, for each penalty.

        Here e is the error of the lasso's prediction, and d leads from it to the one of least
        squares; entries are the lasso's and those of least squares.
        """
        sums, entries = self.x.new_zeros(len(alphas), 3), self.x.new_zeros(len(alphas), 2)
        for hidden in self.groups:
            seen = torch.ones(self.x.shape[1], dtype=torch.bool)
            seen[hidden] = False
            mask = None if self.known is None else self.known[:, seen]
            options = dict(positive=self.positive, mask=mask)
            codes, refits = lasso_path(atoms[:, seen], self.x[:, seen], alphas, **options)
            counts = 1 if self.known is None else self.known[:, hidden]
            error = (self.x[:, hidden] - codes @ atoms[:, hidden]) * counts
            step = (refits - codes) @ atoms[:, hidden] * counts
            pairs = (error, error), (error, step), (step, step)
            sums += torch.stack([(a * b).sum((1, 2)) for a, b in pairs], 1)
            entries += torch.stack([(z != 0).double().sum((1, 2)) for z in (codes, refits)], 1)
        return self.total(sums, entries / len(self.groups))

    def noise(self, atoms, alpha):  # -> float
        """Return the variance that least squares leave, for each known entry without a code."""
        options = dict(positive=self.positive, mask=self.known)
        _, (refits,) = lasso_path(atoms, self.x, [alpha], **options)
        residual = self.x - refits @ atoms
        residual = residual if self.known is None else residual * self.known
        n_known = self.x.shape[1] if self.known is None else self.known.sum(1)
        left = (n_known - (refits != 0).sum(1)).clamp_min(0).to(self.x)
        squares, left = self.total((residual.square().sum(1) * (left > 0)).sum(), left.sum())
        return float(squares / left) if left > 0 else 0.0


class _Pictures:
    """Crops of images on the CPU, in float64, and which pixels are known; see `_Rows`.

    Parameters
    ----------
    problem : ConvProblem
        Images.
    """

    largest, step, part = 4.0, 0.5, 4

    def __init__(self, problem):
        n = min(_PICTURES, len(problem.x))
        chosen = torch.arange(n) * len(problem.x) // n
        area, crop = _PIXELS // n, []
        axes = zip(problem.x.shape[2:], problem.kernel, problem.stride, strict=True)
        for size, kernel, stride in axes:  # a signal has one row, and the crop all its length
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

    def _predictions(self, atoms, alphas, mask):  # -> codes and what they predict, of each penalty
        dictionary = ConvDictionary(atoms, self._problem.stride)
        problem = replace(self._problem, mask=mask)
        for codes in conv_path(problem, atoms, alphas):
            yield codes, [dictionary.synthesis(z) for z in codes]

    def hidden_sums(self, atoms, alphas):  # -> (n_alphas, 3), (n_alphas, 2)
        """Sum products of errors, and entries of codes, for each penalty, as for rows."""
        sums, entries = self.x.new_zeros(len(alphas), 3), self.x.new_zeros(len(alphas), 2)
        for hidden in self._hidden:
            seen = self.known - hidden
            for i, (codes, (lasso, refit)) in enumerate(self._predictions(atoms, alphas, seen)):
                error, step = (self.x - lasso) * hidden, (refit - lasso) * hidden
                pairs = (error, error), (error, step), (step, step)
                sums[i] += torch.stack([(a * b).sum() for a, b in pairs])
                entries[i] += torch.stack([(z != 0).sum() for z in codes]) / len(self._hidden)
        return sums, entries

    def noise(self, atoms, alpha):  # -> float
        """Return the variance that least squares leave, for each known pixel without a code."""
        (((_, codes), (_, image)),) = self._predictions(atoms, [alpha], self.known)
        left = float(self.known.sum() - (codes != 0).sum())
        residual = (self.x - image) * self.known
        return float(residual.square().sum()) / left if left > 0 else 0.0


def _path(atoms, rows, alpha, debias):
    """Return the codings of falling penalties, until smaller ones predict worse."""
    unchosen = CodingPath([Coding(alpha, debias or 0.0, 0.0, 0.0)], 0.0, 0.0, rows.mean_square**0.5)
    if rows.mean_square == 0 or rows.x.shape[1:].numel() == 1:
        return unchosen
    atoms = atoms.detach().to(rows.x)
    codings = []
    while True:
        first = codings[-1].alpha * rows.step if codings else alpha * rows.largest
        alphas = [first * rows.step**i for i in range(rows.part)]
        sums, entries = rows.hidden_sums(atoms, alphas)
        square, product, length = (sums / rows.n_known).unbind(1)
        if debias is None:
            shares = (product / length).nan_to_num(0.0).clamp(0, 1)
        else:
            shares = torch.full_like(square, debias)
        errors = square - shares * (2 * product - shares * length)
        counts = torch.where(shares == 1, entries[:, 1], entries[:, 0]) / rows.n_rows
        codings += map(Coding, alphas, *(t.tolist() for t in (shares, counts, errors)))
        best = min(range(len(codings)), key=lambda i: codings[i].error)
        if best < len(codings) - _PATIENCE or alphas[-1] < _SMALLEST * alpha:
            break
    if codings[best].error > (1 - _PREDICTABLE) * rows.mean_square:
        return unchosen
    rounding = _ROUNDING * rows.mean_square
    path = CodingPath(codings, rows.noise(atoms, codings[best].alpha), rounding)
    return replace(path, noise_std=rows.noise(atoms, path.chosen.alpha) ** 0.5)


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
        Data, with the penalty that the atoms were found with.
    atoms : Tensor of shape (n_components, *shape)
        Atoms.
    debias : float, default=None
        The share, if it is not to be chosen.

    Returns
    -------
    CodingPath
        Whose ``chosen`` coding it is. Where nothing can be predicted, from one feature, zeros or
        independent features, codes are the lasso's for the penalty of the search.
    """
    return _path(atoms, hidden_entries(problem), problem.alpha, debias)


@torch.no_grad()
def adapt_atoms(problem, state, atoms, *, debias=None, stopped=lambda: False):
    """Adapt the atoms of a search to the penalty of their codes, where it is far smaller.

    Parameters
    ----------
    problem : Problem or ConvProblem
        Data and objective of the search.
    state : SearchState
        A search that is done.
    atoms : Tensor of shape (n_components, *shape)
        The atoms that it found, of the dtype that they are to have.
    debias : float, default=None
        As of `choose_coding`.
    stopped : callable, default=never
        Whether to leave it at the atoms so far.

    Returns
    -------
    Tensor of shape (n_components, *shape), CodingPath
        The atoms whose codes predict best, or nearly so and are sparser; and how they predict.
    """
    rows, alpha = hidden_entries(problem), problem.alpha
    tried = [(atoms, _path(atoms, rows, alpha, debias))]
    while tried[-1][1].chosen.alpha < alpha and not stopped():
        problem = replace(problem, alpha=problem.alpha * _ADAPTED)
        found = adapted(problem, state, tried[-1][0].double(), stopped=stopped).to(atoms)
        tried.append((found, _path(found, rows, alpha, debias)))
        noise = min(path.noise for _, path in tried)  # what atoms are wrong by looks like noise
        before, now = (path.best.error - noise for _, path in tried[-2:])
        if now > _BETTER * before:
            break
    best = min((path for _, path in tried), key=lambda path: path.best.error)
    good = [pair for pair in tried if pair[1].best.error <= best.limit]
    return min(good, key=lambda pair: pair[1].chosen.n_entries)
