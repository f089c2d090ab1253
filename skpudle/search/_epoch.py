r"""An epoch of `skpudle.search`: codes for given atoms, and statistics to improve the atoms by.

Decisions and new atoms depend only on sums over samples, added over processes.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn.functional import pad

from skpudle._compilation import in_parts, one_blas_thread, threads_for
from skpudle._operators._atoms import project_atoms
from skpudle.search._compiled import loops

# Sweeps over the atoms per epoch. For few atoms they take a tenth of the time of the codes. For
# 1,050 atoms two sweeps end as low as one, in 1.25 times the time.
SWEEPS = {"few": 2, "many": 1}

# Tolerance of codes, as a share of alpha in the optimality condition, and the most sweeps over the
# working set of an epoch, and of the costs of atoms. Codes need not converge in an epoch: 8 x 8
# patches reach the objective of 25 epochs of solved codes in half of the time.
TOLERANCE = 1e-2
SWEEPS_OF_CODES = 3
SWEEPS_OF_COSTS = 5

# Least violation of the optimality condition with which an atom enters a working set, as a share of
# the largest violation.
SHARE = 0.6

# Rows to correlate at once, which stay in a cache.
_ROWS = 256
# Atoms to improve at once.
_ATOMS = 64
# Most entries of a code beyond the number of features.
ROOM = 8
# From this number of atoms on, descent is on residuals, without a matrix of atoms by atoms. With
# the matrix an epoch takes 1.8 times as long for 1,000 atoms of 595 features, but a search for
# 1,000 atoms of 93 features takes 0.77 of the time.
MANY = 1024
# Least work of a thread: operations of a loop, and multiplications of a BLAS. With a fifth of it
# two threads take 1.3 times as long as one for 1,800 x 64 with 100 atoms.
_TASK, _PART = 2e7, 5e7

# Least share of an atom's energy outside of the other atoms of a support for a direct solution of
# least squares; otherwise descent from the lasso's codes, to this tolerance in units of alpha.
_DEPENDENT, _REFIT_TOLERANCE = 1e-8, 1e-4
SWEEPS_OF_REFITS = 100

# Samples that estimate the cost of an atom; with 16, a search loses atoms.
USERS = 32
# Atoms most like a removed atom, which may take over its codes; the HEIRS take most of them.
NEAR, HEIRS = 64, 3
POWER_ITERATIONS = 8


def _starts(counts):  # (n,) -> (n + 1,)
    return pad(counts.cumsum(0), (1, 0))


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: row ``i`` has the entries from ``start[i]`` to ``start[i + 1]``."""

    start: Tensor  # (n + 1,) int64
    index: Tensor  # (n_entries,) int32, atoms
    value: Tensor  # (n_entries,) float64; of a `DeviceEpoch` in the dtype of the data

    @classmethod
    def none(cls, n):
        """Return zero codes of ``n`` rows."""
        return cls.of_dense(torch.zeros(n, 0, dtype=torch.float64))

    @classmethod
    def of_dense(cls, z):  # (n, p)
        """Return the nonzero entries of codes."""
        return cls.of_places(torch.arange(z.shape[1], device=z.device).expand_as(z), z)

    @classmethod
    def of_places(cls, index, value):  # (n, longest) each
        """Return the nonzero values at these atoms."""
        used = value != 0
        return cls(_starts(used.sum(1)), index[used].int(), value[used])

    @classmethod
    def joined(cls, parts):  # arrays (count, index, value) of successive rows
        """Return the codes of all parts."""
        parts = [(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)), *parts]
        count, index, value = (torch.as_tensor(np.concatenate(of)) for of in zip(*parts))
        return cls(_starts(count), index, value)

    def __len__(self):
        """Return the number of rows."""
        return len(self.start) - 1

    @property
    def longest(self):
        """The largest number of entries of a row."""
        return int(self.start.diff().max()) if len(self) else 0

    @property
    def rows(self):  # -> (n_entries,)
        """The rows of entries."""
        rows = torch.arange(len(self), device=self.start.device)
        return rows.repeat_interleave(self.start.diff())

    def padded(self, none):  # -> (n, longest) int64, (n, longest)
        """Return atoms and values, with the atom ``none`` and the value 0 at empty places."""
        used = torch.arange(self.longest, device=self.start.device) < self.start.diff()[:, None]
        value = self.value.new_zeros(used.shape)
        index = torch.full_like(value, none, dtype=torch.int64)
        index[used], value[used] = self.index.long(), self.value
        return index, value

    def dense(self, n_atoms):  # -> (n, n_atoms)
        """Return the codes with their zeros."""
        z = self.value.new_zeros(len(self), n_atoms)
        z[self.rows, self.index.long()] = self.value
        return z

    def arrays(self):
        """Return the memory of the tensors as arrays."""
        return np.asarray(self.start), np.asarray(self.index), np.asarray(self.value)

    def of_row(self, i):  # -> index, value
        """Return the memory of one row as arrays."""
        start, *entries = self.arrays()
        return [array[start[i] : start[i + 1]] for array in entries]

    def like(self, x):
        """Return the codes on the device and in the dtype of a tensor."""
        return Codes(self.start.to(x.device), self.index.to(x.device), self.value.to(x))

    def restrict(self, kept, n_positions=1):  # (p,) bool
        """Return the codes of the kept atoms, numbered anew.

        An index is ``atom * n_positions + position``.
        """
        kept, index = kept.to(self.index.device), self.index.long()
        atom, place = index // n_positions, index % n_positions
        index, used = (kept.cumsum(0) - 1)[atom] * n_positions + place, kept[atom]
        start = _starts(used)[self.start]
        return Codes(start, index[used].int(), self.value[used])


def spread_rows(n_rows, n_places):  # -> (min(n_rows, n_places),), increasing
    """Draw places of rows, one in each of equal parts of all rows; the same in every call.

    Rows at equal distances would be of one channel where channels are interleaved.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of places. If there are no more rows, all rows are taken.

    Returns
    -------
    Tensor of shape (min(n_rows, n_places),)
        The places, in increasing order.
    """
    n_places = min(n_rows, n_places)
    edges = torch.arange(n_places + 1, device="cpu") * n_rows // max(n_places, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(n_places, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:-1] + (drawn * edges.diff()).long()


def draw_rows(n_rows, n_places, weight=None):  # -> rows (k,), increasing; weights (k,) or None
    """Draw rows by their weights, one in each of equal parts of the sum of weights.

    A row that is drawn k times is returned once, with the weight k. Without weights the rows are
    those of `spread_rows`. If there are no more rows than places, all rows keep their weights.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of draws.
    weight : Tensor of shape (n_rows,), default=None
        Weights; None if they are equal.
    """
    if weight is None or n_places >= n_rows:
        return spread_rows(n_rows, n_places), weight
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(n_places, generator=generator, dtype=torch.float64, device="cpu")
    edges = weight.double().cpu().cumsum(0)
    places = (torch.arange(n_places, device="cpu") + drawn) / n_places * edges[-1]
    rows = torch.searchsorted(edges, places, right=True).clamp_max(n_rows - 1)
    rows, counts = rows.unique_consecutive(return_counts=True)
    return rows, counts.to(weight)


def own(*tensors):
    """Return sums over one process, as they are: the default of ``total``."""
    return tensors


@cache
def _has_bfloat16():
    """Return whether PyTorch reports a processor that multiplies in bfloat16.

    Products of 256 rows of 128 to 2381 features with 1024 to 16,384 atoms then take 0.27 to 0.30 of
    the time of float32, and epochs of 4096 atoms 0.6 to 0.7. Slopes are wrong by thousandths, less
    than the tolerance of codes.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return capabilities().get("avx512_bf16", False)


def _least(operations, task=_TASK):
    """Return the least length of a range that pays for a thread, given operations per member."""
    return max(1, int(task / max(operations, 1)))


class Coded:
    """What data with codes for given atoms have in common: rows, on all devices, and images."""

    n_always_split = 0  # least number of atoms to split, whatever it costs
    _costs = None

    def restrict(self, kept):  # (p,) bool -> Codes
        """Return the codes of the kept atoms."""
        return self.codes.restrict(kept, self.problem.n_positions)

    def move_atoms(self):
        """Return None: rows have no neighbours that an atom could move to."""
        return None

    def common_directions(self, seed):  # -> (p,), (p, *shape)
        """Return for each atom the largest energy of its users' residuals, and its direction."""
        generator, atoms = torch.Generator().manual_seed(seed), self.atoms.flatten(1)
        image = torch.randn(atoms.shape, generator=generator, dtype=torch.float64)
        residuals = self.residuals()
        for _ in range(POWER_ITERATIONS):
            direction = project_atoms(image)
            (image,) = self.problem.total(self._second_moments(residuals, direction))
            along = torch.einsum("jf,jf->j", image, atoms)
            image.addcmul_(along[:, None], atoms, value=-1)  # in place, to save memory
        energy = torch.einsum("jf,jf->j", image, direction)
        return energy, project_atoms(image).view_as(self.atoms)

    def costs(self):  # -> (p,), (p, n)
        """Return the rise of the objective without each atom, and the atoms that take over most."""
        if self._costs is None:
            cost, taken_over, near = self._removals()
            cost, taken_over = self.problem.total(cost, taken_over)
            best = taken_over.topk(min(HEIRS, near.shape[1])).indices
            self._costs = cost, near.gather(1, best)
        return self._costs

    def _measure(self, sums):  # of half squared residuals, moduli, ... and rows
        loss, size, unbiased, self.n_entries, self._n = sums.tolist()
        self.objective = loss + self.problem.alpha * size
        # means of |x - D z|^2 / 2, before and after a refit
        self.loss, self.unbiased_loss = loss / self._n, unbiased / self._n

    def mean_residual(self):  # -> (m,)
        """Return the mean residual of known entries: the step of the best baseline."""
        problem, total = self.problem, self._sum_of_residuals()
        total, counts = problem.total(total, problem.weighted(problem.known).sum(0).to(total))
        return (total / counts.clamp_min(1e-300)).cpu().double()


class Epoch(Coded):
    """Codes for the atoms of an epoch, and statistics of both.

    Fewer than 1,024 atoms and rows without missing entries are coded from products of atoms with
    atoms and with rows; otherwise residuals are kept. With a ``turn`` of 0 or 1 new atoms enter the
    codes of every second block of rows only.
    """

    def __init__(self, problem, atoms, codes, *, refit=False, turn=None):
        self.problem, self.atoms, self._atoms = problem, atoms, np.asarray(atoms)
        self._x, n = np.asarray(problem.x), len(problem.x)
        self._few = len(atoms) < MANY and problem.mask is None
        self._known = np.empty((n, 0)) if problem.mask is None else np.asarray(problem.mask)
        self._screen = (
            atoms.float() if len(atoms) < MANY or not _has_bfloat16() else atoms.bfloat16()
        )
        self._weight = np.ones(n) if problem.weight is None else np.asarray(problem.weight)
        # products of rows, or codes, times the roots of weights are weighted
        self._roots = np.sqrt(self._weight)[:, None]
        self._options = problem.alpha, problem.positive_code, TOLERANCE * problem.alpha, SHARE
        self._loss, self._size, self._unbiased = np.zeros((3, n))
        self._code(codes, refit, turn)
        of_rows = self._loss, self._size, self._unbiased, np.diff(self.codes.start), np.ones(n)
        sums = self.atoms.new_tensor([self._weight @ part for part in of_rows])
        self._measure(*problem.total(sums))

    def _code(self, codes, refit, turn):
        """Solve for all codes, block by block.

        A block of few atoms is a cache of products of rows with atoms. With a ``turn`` every second
        block has no slopes.
        """
        (p, m), n, (begin, *given) = self.atoms.shape, len(self._x), codes.arrays()
        room = max(min(p, m + ROOM), codes.longest)
        n_rows = min(max(_ROWS, 2**16 // p), max(n, 1)) if self._few else _ROWS
        found = [None] * -(-n // n_rows)
        tolerance = _REFIT_TOLERANCE * self.problem.alpha
        options = *self._options, SWEEPS_OF_CODES, refit, _DEPENDENT, tolerance, SWEEPS_OF_REFITS

        def work(first, last):
            c = np.empty((n_rows, p), np.float64 if self._few else np.float32)
            index, (value, fitted) = np.empty((n_rows, room), np.int32), np.empty((2, n_rows, room))
            for block in range(first, last):
                part = slice(block * n_rows, min((block + 1) * n_rows, n))
                k, x = part.stop - part.start, self._x[part]
                count, sparse = np.empty(k, np.int64), (begin[part.start : part.stop + 1], *given)
                arrays = self._loss[part], self._size[part], self._unbiased[part]
                arrays = *sparse, count, index, value, fitted, *arrays
                if self._few:
                    np.matmul(x.astype(np.float64, copy=False), self._atoms.T, out=c[:k])
                    loops.solve_products(self._gram, squares[part], c[:k], *options, *arrays)
                else:
                    residual, known = x.astype(np.float64), self._known[part]
                    loops.subtract_synthesis(*sparse, self._atoms, known, residual)
                    is_skipped = turn is not None and block % 2 != turn
                    slope = c[:k, :0] if is_skipped else self._slopes(residual, c[:k])
                    loops.solve_residuals(self._atoms, known, residual, slope, *options, *arrays)
                used = np.arange(room) < count[:, None]
                found[block] = count, *(v[:k][used] for v in (index, value, fitted)[: 2 + refit])

        with one_blas_thread, threads_for():
            squares = np.asarray(self.problem.squares) if self._few else None
            in_parts(work, len(found), _least(n_rows * self._atoms.size, _PART))
        self.codes = self.fitting = Codes.joined(block[:3] for block in found)
        if refit:  # atoms adapt to these codes
            self.fitting = Codes.joined((*block[:2], block[3]) for block in found)

    @cached_property
    def _gram(self):  # (p, p), empty if there are many atoms
        atoms = self._atoms if self._few else self._atoms[:0]
        return atoms @ atoms.T

    def _slopes(self, residual, out):
        """Return products with all atoms; they have few digits, since they only select atoms."""
        if self._screen.dtype == torch.float32:
            return np.matmul(residual.astype(np.float32), np.asarray(self._screen).T, out=out)
        torch.as_tensor(out).copy_(torch.as_tensor(residual).bfloat16() @ self._screen.T)
        return out

    @cached_property
    def _values(self):  # (n_entries,)
        """The codes that atoms adapt to, times the roots of weights."""
        start, _, value = self.fitting.arrays()
        weighted = self.problem.weight is not None
        return value * np.repeat(self._roots[:, 0], np.diff(start)) if weighted else value

    @cached_property
    def _entries(self):  # starts (p + 1,), rows and values (n_entries,)
        """The entries of codes, sorted by atom, then by row; values have the roots of weights."""
        start, index, _ = self.fitting.arrays()
        shape = len(self._x), len(self.atoms)
        by_atom = csr_array((self._values, index, start.astype(np.int32)), shape=shape).tocsc()
        return by_atom.indptr.astype(np.int64), by_atom.indices, by_atom.data

    @property
    def _gathering(self):
        """The number of operations of an atom to gather its users."""
        return 4 * len(self._entries[1]) / len(self.atoms)

    def _sums(self, loop, first, last, width, work, *arrays):  # -> (last - first, width)
        """Return sums over users of atoms and over processes; ``work`` is operations per user."""
        sums = np.zeros((last - first, width))

        def add(start, stop):
            loop(first + start, first + stop, *arrays, sums[start:stop])

        in_parts(add, len(sums), _least(work * self._gathering))
        return np.asarray(*self.problem.total(torch.as_tensor(sums)))

    def _moments(self, x, first, last):  # -> (last - first, m)
        """Return rows of ``Z^T X``; codes and ``x`` have the roots of the weights."""
        m = x.shape[1]
        return self._sums(loops.add_moments, first, last, m, m, *self._entries, x)

    @property
    def statistics(self):  # -> (p, p), (p, m) float64
        """``A = Z^T Z`` and ``B = Z^T X``, of all processes, if all entries are known."""
        p, m = self.atoms.shape
        n, (start, *entries) = len(self._x), self.fitting.arrays()
        # parts do not depend on the number of threads, and neither do sums
        # each part has a matrix of its own
        n_parts = min(8, 1 + int(start[-1] * m / _TASK))
        ends = np.arange(n_parts + 1) * n // n_parts
        sums = [(np.zeros((p, p)), np.zeros((p, m))) for _ in range(n_parts)]

        def add(first, last):
            for part in range(first, last):
                rows, known = slice(*ends[part : part + 2]), start[ends[part] : ends[part + 1] + 1]
                given = known, *entries, self._weight[rows], self._x[rows]
                loops.add_statistics(*given, *sums[part])

        in_parts(add, n_parts, 1)
        a, b = map(sum, zip(*sums, strict=True))
        a = a + a.T
        np.fill_diagonal(a, a.diagonal() / 2)
        return self.problem.total(torch.as_tensor(a), torch.as_tensor(b))

    def products(self, first, last):  # -> (last - first, last - first)
        """Return a block of ``A = Z^T Z``, of all processes."""
        arrays = first, *self._entries, *self.fitting.arrays()[:2], self._values
        n_used = len(self._entries[1]) / max(len(self._x), 1)  # mean number of atoms in a row
        return self._sums(loops.add_products, first, last, last - first, n_used, *arrays)

    def energies(self):  # -> (p,)
        """Return the sum of squares of the codes of each atom, of all processes."""
        _, index, _ = self.fitting.arrays()
        sums = np.bincount(index, np.square(self._values), minlength=len(self.atoms))
        return self.problem.total(torch.as_tensor(sums))[0]

    @property
    def uses(self):  # -> (p,)
        """The number of samples that use each atom, of this process; a sum of weights."""
        start, index, _ = self.fitting.arrays()
        weight = np.repeat(self._weight, np.diff(start))
        return torch.as_tensor(np.bincount(index, weight, minlength=len(self.atoms)))

    def residuals(self):  # -> (n, m)
        """Return the residuals of the codes that atoms adapt to, times the roots of weights."""
        residuals, (begin, *entries) = np.empty_like(self._x), self.fitting.arrays()

        def subtract(first, last):
            for start in range(first, last, _ROWS):
                part = slice(start, min(start + _ROWS, last))
                residual, sparse = self._x[part].astype(np.float64), begin[start : part.stop + 1]
                how = self._atoms, self._known[part], residual
                loops.subtract_synthesis(sparse, *entries, *how)
                residuals[part] = residual * self._roots[part]

        in_parts(subtract, len(residuals), max(_ROWS, _least(self._atoms.size)))
        return residuals

    def _sum_of_residuals(self):  # -> (m,), times weights
        return torch.as_tensor(self._roots[:, 0] @ self.residuals())

    def improved_atoms(self, earlier=None):
        """Return the atoms after sweeps of block coordinate descent.

        Few atoms descend on products of all codes (``p * p * m`` operations), many atoms, and rows
        with missing entries, on the residuals of users (``n_entries * m`` operations).

        ``earlier`` has sums over other samples; see `stream.Held`.
        """
        p, atoms = len(self.atoms), self._atoms.copy()
        if self._few:
            a, b = (np.asarray(sums) for sums in self.statistics)
        else:
            residual = self.residuals()
        with one_blas_thread:
            for _ in range(SWEEPS["few" if p < MANY else "many"]):
                for first in range(0, p, _ATOMS):
                    last = min(first + _ATOMS, p)
                    part = slice(first, last)
                    if self._few:
                        target, own = b[part] - a[part] @ atoms, a[part, part].copy()
                    else:
                        target = self._moments(residual, first, last)
                        own = self.products(first, last)
                    if earlier is not None:
                        pulled = map(np.asarray, earlier.pull(atoms, part))
                        target, own = map(np.add, (target, own), pulled)
                    change = -atoms[part]
                    loops.sweep(own, self.problem.positive_atoms, target, atoms[part])
                    if not self._few:
                        change += atoms[part]
                        self._follow(first, change.astype(residual.dtype), residual)
        vars(self).pop("_entries", None)  # descent keeps an epoch for its codes
        return torch.as_tensor(atoms)

    def _follow(self, first, change, residual):
        """Subtract from residuals what the atoms from ``first`` on have changed."""
        arrays = *self._entries, change, residual

        def subtract(low, high):
            loops.subtract_changes(low, high, first, *arrays)

        of_row = change.size * self._gathering / max(len(residual), 1)
        in_parts(subtract, len(residual), _least(of_row))

    def _second_moments(self, residuals, direction):  # (p, m) -> the same
        moments, m = torch.zeros_like(direction), self._x.shape[1]
        given = *self._entries[:2], residuals, np.asarray(direction), np.asarray(moments)

        def add(first, last):
            loops.add_second_moments(first, last, *given)

        in_parts(add, len(moments), _least(2 * m * self._gathering))
        return moments

    def _near(self):  # -> (p, n) int32
        """Return the atoms most like each."""
        p = len(self.atoms)
        n = min(p - 1, NEAR)
        near, atoms = np.empty((p, n), np.int32), self._atoms.astype(np.float32)

        def compare(first, last):
            for start in range(first * _ROWS, min(last * _ROWS, p), _ROWS):
                part = slice(start, min(start + _ROWS, p))
                order = atoms[part] @ atoms.T
                order = order if self.problem.positive_code else np.abs(order)
                order[np.arange(len(order)), np.arange(part.start, part.stop)] = -np.inf
                near[part] = np.argpartition(-order, n, axis=1)[:, :n]

        with one_blas_thread:
            in_parts(compare, -(-p // _ROWS), _least(_ROWS * self.atoms.numel(), _PART))
        return near

    def _removals(self):  # -> (p,), (p, n), (p, n)
        (p, m), (start, row, _), near = self.atoms.shape, self._entries, self._near()
        cost, taken_over = np.zeros(p), np.zeros(near.shape)
        given = start, row, USERS, near, self._atoms, self._gram, self._known, self._weight
        given = *given, *self._options, SWEEPS_OF_COSTS, self._x, *self.codes.arrays()

        def remove(first, last):
            loops.removals(first, last, *given, cost, taken_over)

        in_parts(remove, p, _least(2 * USERS * NEAR * m))
        return torch.as_tensor(cost), torch.as_tensor(taken_over), torch.as_tensor(near).long()
