r"""An epoch of `skpudle.search` on a CPU: codes for given atoms, and sums that improve the atoms.

A *row* is a sample. The rows with a nonzero code at an atom are the *users* of the atom. Names:
``n`` rows, ``m`` features, ``p`` atoms. Decisions and new atoms depend only on sums over rows, and
the sums of all processes are added; so all processes take the same decisions.

This module also has what images and GPUs share: `Codes`, `Coded` and draws of rows.
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

# Sweeps over the atoms per epoch, for fewer than MANY atoms and from MANY atoms on. For few atoms
# sweeps take a tenth of the time of the codes. For 1,050 atoms two sweeps reach the same objective
# as one sweep, in 1.25 times the time.
SWEEPS = {"few": 2, "many": 1}

# Tolerance of codes in the optimality condition, as a share of alpha; and the largest numbers of
# sweeps over a working set, in an epoch and in the estimate of the cost of an atom. Codes need not
# converge in an epoch: on 8 x 8 patches unsolved codes reach the objective that 25 epochs of solved
# codes reach, in half of the time.
TOLERANCE = 1e-2
SWEEPS_OF_CODES = 3
SWEEPS_OF_COSTS = 5

# A working set has the atoms that a row minimises over. An atom enters if the modulus of its slope,
# the product with the residual, is at least this share of the largest slope outside of the set.
SHARE = 0.6

# Rows in a block, whose products with the atoms are computed at once and stay in a cache.
_ROWS = 256
# Atoms in a block, for which the sums of a sweep over atoms are computed at once.
_ATOMS = 64
# A row has at most this number of nonzero codes more than features.
ROOM = 8
# From this number of atoms on, coordinate descent works on residuals instead of the matrix of
# products of atoms. The matrix slows epochs of 1,000 atoms of 595 features down by a factor of 1.8,
# but reduces the time of a search for 1,000 atoms of 93 features to 0.77.
MANY = 1024
# Least work that pays for a thread: operations of a loop, and multiplications of a BLAS. With a
# fifth of both numbers two threads take 1.3 times as long as one thread, for 1,800 rows of 64
# features and 100 atoms.
_TASK, _PART = 2e7, 5e7

# Least squares on a support are solved directly if each atom has at least the share _DEPENDENT of
# its energy outside of the span of the support's earlier atoms. Otherwise coordinate descent starts
# from the lasso's codes and ends at _REFIT_TOLERANCE times alpha, or after SWEEPS_OF_REFITS sweeps.
_DEPENDENT, _REFIT_TOLERANCE = 1e-8, 1e-4
SWEEPS_OF_REFITS = 100

# Most rows that estimate the cost of an atom: by how much the objective rises without the atom.
# With 16 rows a search loses planted atoms.
USERS = 32
# The NEAR atoms most like a removed atom may take over its codes. The HEIRS atoms that take over
# most of them stay in the same removal.
NEAR, HEIRS = 64, 3
# Power iterations for the common direction of an atom's residuals.
POWER_ITERATIONS = 8


def _starts(counts):  # numbers of entries of rows (n,) -> place of the first entry (n + 1,)
    return pad(counts.cumsum(0), (1, 0))


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: row ``i`` has the entries from ``start[i]`` to ``start[i + 1]``."""

    start: Tensor  # (n + 1,) int64
    index: Tensor  # (n_entries,) int32: atoms; of images, atom * n_positions + position
    value: Tensor  # (n_entries,) float64; of a `DeviceEpoch` in the dtype of the data

    @classmethod
    def none(cls, n):  # -> Codes
        """Return zero codes of ``n`` rows."""
        return cls.of_dense(torch.zeros(n, 0, dtype=torch.float64))

    @classmethod
    def of_dense(cls, z):  # (n, p)
        """Return the sparse form of dense codes (n, p)."""
        return cls.of_places(torch.arange(z.shape[1], device=z.device).expand_as(z), z)

    @classmethod
    def of_places(cls, index, value):  # (n, longest) each
        """Return the codes ``value`` at the atoms ``index``, without zeros."""
        used = value != 0
        return cls(_starts(used.sum(1)), index[used].int(), value[used])

    @classmethod
    def joined(cls, parts):  # arrays (count, index, value) of successive rows
        """Return the codes of successive blocks of rows as one.

        A part has the number of codes of each row, and the atoms and values of all these codes.
        """
        parts = [(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0)), *parts]
        count, index, value = (torch.as_tensor(np.concatenate(of)) for of in zip(*parts))
        return cls(_starts(count), index, value)

    def __len__(self):
        """Return the number of rows."""
        return len(self.start) - 1

    @property
    def longest(self):  # -> int
        """The largest number of entries of a row."""
        return int(self.start.diff().max()) if len(self) else 0

    @property
    def rows(self):  # -> (n_entries,)
        """The number of the row that each entry belongs to."""
        rows = torch.arange(len(self), device=self.start.device)
        return rows.repeat_interleave(self.start.diff())

    def padded(self, none):  # -> (n, longest) int64, (n, longest)
        """Return atoms and values as dense arrays, a row for each row.

        Rows with fewer entries than the longest row end with the atom ``none`` and the value 0.
        """
        used = torch.arange(self.longest, device=self.start.device) < self.start.diff()[:, None]
        value = self.value.new_zeros(used.shape)
        index = torch.full_like(value, none, dtype=torch.int64)
        index[used], value[used] = self.index.long(), self.value
        return index, value

    def dense(self, n_atoms):  # -> (n, n_atoms)
        """Return the dense form of the codes, including zeros."""
        z = self.value.new_zeros(len(self), n_atoms)
        z[self.rows, self.index.long()] = self.value
        return z

    def arrays(self):  # -> (n + 1,), (n_entries,), (n_entries,)
        """Return start, index and value as arrays that share the memory of the tensors."""
        return np.asarray(self.start), np.asarray(self.index), np.asarray(self.value)

    def of_row(self, i):  # -> index (n_of_row,), value (n_of_row,)
        """Return index and value of row ``i`` as arrays that share the memory of the tensors."""
        start, *entries = self.arrays()
        return [array[start[i] : start[i + 1]] for array in entries]

    def like(self, x):  # -> Codes
        """Return the codes on the device and in the dtype of the tensor ``x``."""
        return Codes(self.start.to(x.device), self.index.to(x.device), self.value.to(x))

    def restrict(self, kept, n_positions=1):  # (p,) bool -> Codes
        """Return the codes at the atoms that ``kept`` marks; these atoms are numbered from 0.

        In images an atom has ``n_positions``, and an index is ``atom * n_positions + position``.
        """
        kept, index = kept.to(self.index.device), self.index.long()
        atom, place = index // n_positions, index % n_positions
        return self.renumbered((kept.cumsum(0) - 1)[atom] * n_positions + place, kept[atom])

    def renumbered(self, index, used):  # (n_entries,), (n_entries,) bool -> Codes
        """Return the codes at the entries that ``used`` marks, with ``index`` for their index."""
        return Codes(_starts(used)[self.start], index[used].int(), self.value[used])


def spread_rows(n_rows, n_places):  # -> (min(n_rows, n_places),), increasing
    """Cut the rows into equal parts and draw the number of one row in each; the same in each call.

    Rows at equal distances would be biased where rows alternate, for example between channels.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of rows to draw. If there are fewer rows, all rows are taken.

    Returns
    -------
    Tensor of shape (min(n_rows, n_places),)
        The numbers of the rows drawn, in increasing order.
    """
    n_places = min(n_rows, n_places)
    edges = torch.arange(n_places + 1, device="cpu") * n_rows // max(n_places, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(n_places, generator=generator, dtype=torch.float64, device="cpu")
    return edges[:-1] + (drawn * edges.diff()).long()


def draw_rows(n_rows, n_places, weight=None):  # -> rows (k,), increasing; weights (k,) or None
    """Draw rows with probabilities that grow with their weights; the same in every call.

    The sum of weights is cut into equal parts, and each part draws one row. A row that is drawn k
    times is returned once, with the weight k. Without weights the rows are those of `spread_rows`.
    If at least ``n_rows`` draws are wanted, the answer is all rows with their weights.

    Parameters
    ----------
    n_rows : int
        Number of rows.
    n_places : int
        Number of draws.
    weight : Tensor of shape (n_rows,), default=None
        Weights of the rows; None if they are equal.

    Returns
    -------
    rows : Tensor of shape (n_drawn,)
        The numbers of the rows drawn, in increasing order.
    weight : Tensor of shape (n_drawn,) or None
        Their weights; None without weights.
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


def own(*tensors):  # -> the same tuple
    """Return the tensors unchanged: the ``total`` over processes of sums of a single process."""
    return tensors


@cache
def _has_bfloat16():  # -> bool
    """Return whether PyTorch reports a processor that multiplies in bfloat16.

    There, products of 256 rows of 128 to 2381 features with 1024 to 16,384 atoms take 0.27 to 0.30
    of the time of float32, and epochs of 4096 atoms 0.6 to 0.7. The relative error of slopes, the
    products of atoms with residuals, is some thousandths, less than the tolerance of codes.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return capabilities().get("avx512_bf16", False)


def _least(operations, task=_TASK):  # -> int
    """Return the least number of items that pays for a thread.

    One item takes ``operations`` operations, and a thread pays from ``task`` operations on.
    """
    return max(1, int(task / max(operations, 1)))


class Coded:
    """Data with codes for given atoms: what rows on a CPU, rows on a GPU, and images share.

    Attributes
    ----------
    problem : Problem or ConvProblem
        The data and the objective.
    atoms : Tensor of shape (n_atoms, ...)
        The given atoms, which do not change.
    codes : Codes
        The codes of this process's data.
    objective : float
        The lasso's objective, summed over the rows of all processes.
    loss : float
        The mean over rows of half the squared residual.
    n_entries : float
        The number of nonzero codes, summed over the rows of all processes.
    uses : Tensor of shape (n_atoms,)
        The number of nonzero codes of each atom in this process's data.

    The sums have the weights of rows.
    """

    n_always_split = 0  # least number of atoms that a round splits, whatever a split costs
    _costs = None

    def restrict(self, kept):  # (p,) bool -> Codes
        """Return the codes at the atoms that ``kept`` marks; see `Codes.restrict`."""
        return self.codes.restrict(kept, self.problem.n_positions)

    def move_atoms(self):
        """Return None: atoms of rows do not move; see `ConvEpoch.move_atoms` for images."""
        return None

    def common_directions(self, seed):  # -> (p,), (p, *shape)
        """Return for each atom an energy, and the direction that residuals of its users share most.

        The energy is the sum of squares of the residuals along the direction. Power iterations find
        the direction, of norm 1 and orthogonal to the atom. ``seed`` draws the first direction.
        """
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

    def costs(self):  # -> (p,), (p, n) int64
        """Return by how much the objective rises without each atom, and the numbers of its heirs.

        Heirs are the atoms, at most three, whose codes grow most if the atom is removed.
        """
        if self._costs is None:
            changes, near = self._removals()
            (changes,) = self.problem.total(changes)
            best = changes[:, 1:].topk(min(HEIRS, near.shape[1])).indices
            self._costs = changes[:, 0], near.gather(1, best)
        return self._costs

    def _measure(self, sums):
        """Set the objective, the mean loss and the number of codes from four sums over rows.

        They are the sums of half the squared residuals, of the moduli of codes, of the numbers of
        nonzero codes, and of ones.
        """
        loss, size, self.n_entries, self._n = sums.tolist()
        self.objective = loss + self.problem.alpha * size
        self.loss = loss / self._n

    @property
    def unbiased_loss(self):  # -> float
        """The mean over rows of half the squared residual of the codes that atoms adapt to."""
        squares = torch.as_tensor(self.residuals()).double().square().sum()
        return float(*self.problem.total(squares)) / (2 * self._n)

    def mean_residual(self):  # -> (m,)
        """Return the mean residual of each feature's known entries, over rows of all processes.

        A baseline is subtracted from all rows. It moves to its best value, for these codes, by the
        mean residual.
        """
        problem, total = self.problem, torch.as_tensor(self._roots[:, 0] @ self.residuals())
        total, counts = problem.total(total, problem.weighted(problem.known).sum(0).to(total))
        return (total / counts.clamp_min(1e-300)).cpu().double()


class Epoch(Coded):
    """Rows on a CPU with codes for given atoms, and sums that improve the atoms.

    With fewer than 1,024 atoms and no missing entries, codes come from the products of atoms with
    atoms and with rows; otherwise from residuals. From residuals, a ``turn`` of 0 or 1 lets new
    atoms enter the codes of every second block of 256 rows only: the even or the odd blocks. Codes
    start from ``codes``. With ``refit`` atoms adapt to least squares on the supports of the codes.
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
        # Products of two arrays of rows are weighted if both have been multiplied by the square
        # roots of the weights.
        self._roots = np.sqrt(self._weight)[:, None]
        self._options = problem.alpha, problem.positive_code, TOLERANCE * problem.alpha, SHARE
        self._loss, self._size = np.zeros((2, n))
        self._code(codes, refit, turn)
        of_rows = self._loss, self._size, np.diff(self.codes.start), np.ones(n)
        sums = self.atoms.new_tensor([self._weight @ part for part in of_rows])
        self._measure(*problem.total(sums))

    def _code(self, codes, refit, turn):
        """Set the codes and the losses of all rows, block by block, starting from ``codes``.

        For codes from products a block has the number of rows whose products stay in a cache. For
        codes from residuals a ``turn`` leaves every second block without slopes, so that no new
        atom enters its codes. Atoms adapt to ``fitting``: the codes, or with ``refit`` least
        squares on their supports.
        """
        (p, m), n, (begin, *given) = self.atoms.shape, len(self._x), codes.arrays()
        room = max(min(p, m + ROOM), codes.longest)
        n_rows = min(max(_ROWS, 2**16 // p), max(n, 1)) if self._few else _ROWS
        found = [None] * -(-n // n_rows)
        tolerance = _REFIT_TOLERANCE * self.problem.alpha
        options = *self._options, SWEEPS_OF_CODES, refit, _DEPENDENT, tolerance, SWEEPS_OF_REFITS

        def work(first, last):  # solve the blocks `first:last`; set `found` and the losses
            c = np.empty((n_rows, p), np.float64 if self._few else np.float32)
            index, (value, fitted) = np.empty((n_rows, room), np.int32), np.empty((2, n_rows, room))
            for block in range(first, last):
                part = slice(block * n_rows, min((block + 1) * n_rows, n))
                k, x = part.stop - part.start, self._x[part]
                count, sparse = np.empty(k, np.int64), (begin[part.start : part.stop + 1], *given)
                arrays = *sparse, count, index, value, fitted, self._loss[part], self._size[part]
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
        if refit:  # atoms adapt to least squares on the supports
            self.fitting = Codes.joined((*block[:2], block[3]) for block in found)

    @cached_property
    def _gram(self):  # (p, p) products of atoms; None where codes come from residuals
        return self._atoms @ self._atoms.T if self._few else None

    def _slopes(self, residual, out):  # (n, m), (n, p) float32 -> (n, p)
        """Return ``out``, which is set to the products of residuals with all atoms.

        The products only select the atoms that enter a working set, so bfloat16 or float32 is
        enough.
        """
        if self._screen.dtype == torch.float32:
            return np.matmul(residual.astype(np.float32), np.asarray(self._screen).T, out=out)
        torch.as_tensor(out).copy_(torch.as_tensor(residual).bfloat16() @ self._screen.T)
        return out

    @cached_property
    def _values(self):  # (n_entries,)
        """The codes that atoms adapt to, times the square root of the row's weight."""
        value = np.asarray(self.fitting.value)
        if self.problem.weight is None:  # the usual case, once in each epoch
            return value
        return value * self._roots[np.asarray(self.fitting.rows), 0]

    @cached_property
    def _entries(self):  # starts (p + 1,), rows and values (n_entries,)
        """The entries of `_values`, sorted by atom, then by row."""
        start, index, _ = self.fitting.arrays()
        shape = len(self._x), len(self.atoms)
        by_atom = csr_array((self._values, index, start.astype(np.int32)), shape=shape).tocsc()
        return by_atom.indptr.astype(np.int64), by_atom.indices, by_atom.data

    @property
    def _gathering(self):  # -> float
        """The operations that gather the users of an atom on average: 4 for each user."""
        return 4 * len(self._entries[1]) / len(self.atoms)

    def _sums(self, loop, first, last, width, work, *arrays):  # -> (last - first, width)
        """Return this process's sums of a compiled loop over the atoms ``first:last``, in threads.

        The loop gets ``arrays`` and adds ``width`` sums for each atom, in ``work`` operations.
        """
        sums = np.zeros((last - first, width))

        def add(start, stop):  # add to the sums of the atoms first + start to first + stop
            loop(first + start, first + stop, *arrays, sums[start:stop])

        in_parts(add, len(sums), _least(work))
        return torch.as_tensor(sums)

    @property
    def statistics(self):  # -> (p, p), (p, m) float64
        """``A = Z^T Z`` and ``B = Z^T X`` with weighted rows, summed over processes.

        They are right only if no entry is missing.
        """
        p, m = self.atoms.shape
        n, (start, *entries) = len(self._x), self.fitting.arrays()
        # The rows are cut into parts, each with sums of its own. The parts do not depend on the
        # number of threads, so the bits of the sums do not, either.
        n_parts = min(8, 1 + int(start[-1] * m / _TASK))
        ends = np.arange(n_parts + 1) * n // n_parts
        sums = [(np.zeros((p, p)), np.zeros((p, m))) for _ in range(n_parts)]

        def add(first, last):  # add up the rows of the parts `first:last`
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
        """Return the block ``first:last`` of ``A = Z^T Z``, summed over rows of this process."""
        arrays = first, *self._entries, *self.fitting.arrays()[:2], self._values
        n_used = len(self._entries[1]) / max(len(self._x), 1)  # mean number of codes of a row
        work = n_used * self._gathering
        return self._sums(loops.add_products, first, last, last - first, work, *arrays)

    def energies(self):  # -> (p,)
        """Return for each atom the sum of its squared codes, over rows of all processes."""
        index, squares = np.asarray(self.fitting.index), np.square(self._values)
        sums = np.bincount(index, squares, minlength=len(self.atoms))
        return self.problem.total(torch.as_tensor(sums))[0]

    @property
    def uses(self):  # -> (p,)
        """For each atom the sum of the weights of the rows of this process that use it."""
        index, weight = np.asarray(self.fitting.index), self._weight[np.asarray(self.fitting.rows)]
        return torch.as_tensor(np.bincount(index, weight, minlength=len(self.atoms)))

    def residuals(self):  # -> (n, m)
        """Return the residuals for the codes that atoms adapt to, times the roots of weights.

        They are an array of the dtype of the data, with zeros at missing entries.
        """
        residuals, (begin, *entries) = np.empty_like(self._x), self.fitting.arrays()

        def subtract(first, last):  # set the residuals of the rows `first:last`
            for start in range(first, last, _ROWS):
                part = slice(start, min(start + _ROWS, last))
                residual, sparse = self._x[part].astype(np.float64), begin[start : part.stop + 1]
                how = self._atoms, self._known[part], residual
                loops.subtract_synthesis(sparse, *entries, *how)
                residuals[part] = residual * self._roots[part]

        in_parts(subtract, len(residuals), max(_ROWS, _least(self._atoms.size)))
        return residuals

    def improved_atoms(self, earlier=None):  # -> (p, m) of norm 1, float64
        """Return the atoms after sweeps of coordinate descent, an atom at a time.

        Fewer than 1,024 atoms, without missing entries, descend on the products ``A`` and ``B`` of
        all codes (``p * p * m`` operations). Otherwise atoms descend on the residuals of their
        users (``n_entries * m`` operations).

        In a stream ``earlier`` holds each atom near its earlier place; see `stream.Held`.
        """
        (p, m), atoms = self.atoms.shape, self._atoms.copy()
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
                        given = m, m * self._gathering, *self._entries, residual
                        moments = self._sums(loops.add_moments, first, last, *given)
                        sums = self.problem.total(moments, self.products(first, last))
                        target, own = map(np.asarray, sums)
                    if earlier is not None:
                        pulled = map(np.asarray, earlier.pull(atoms, part))
                        target, own = map(np.add, (target, own), pulled)
                    change = -atoms[part]
                    loops.sweep(own, self.problem.positive_atoms, target, atoms[part])
                    if not self._few:
                        change += atoms[part]
                        self._follow(first, change.astype(residual.dtype), residual)
        vars(self).pop("_entries", None)  # saves memory: callers keep an epoch only for its codes
        return torch.as_tensor(atoms)

    def _follow(self, first, change, residual):
        """Update ``residual`` (n, m) in place: atoms from ``first`` on changed by ``change``."""
        arrays = *self._entries, change, residual

        def subtract(low, high):  # update the rows `low:high`
            loops.subtract_changes(low, high, first, *arrays)

        of_row = change.size * self._gathering / max(len(residual), 1)
        in_parts(subtract, len(residual), _least(of_row))

    def _second_moments(self, residuals, direction):  # residuals (n, m), direction (p, m) -> (p, m)
        """Return for each atom the sum of ``r_i (r_i . v)`` over its users ``i`` in this process.

        ``r_i`` is the residual of row ``i``, and ``v`` the direction of the atom.
        """
        (p, m), given = direction.shape, (*self._entries[:2], residuals, np.asarray(direction))
        return self._sums(loops.add_second_moments, 0, p, m, 2 * m * self._gathering, *given)

    def _near(self):  # -> (p, n) int32
        """Return for each atom the numbers of the 64 atoms (or all) most like it, by cosines."""
        p = len(self.atoms)
        n = min(p - 1, NEAR)
        near, atoms = np.empty((p, n), np.int32), self._atoms.astype(np.float32)

        def compare(first, last):  # set `near` in the blocks `first:last` of atoms
            for start in range(first * _ROWS, min(last * _ROWS, p), _ROWS):
                part = slice(start, min(start + _ROWS, p))
                order = atoms[part] @ atoms.T
                order = order if self.problem.positive_code else np.abs(order)
                order[np.arange(len(order)), np.arange(part.start, part.stop)] = -np.inf
                near[part] = np.argpartition(-order, n, axis=1)[:, :n]

        with one_blas_thread:
            in_parts(compare, -(-p // _ROWS), _least(_ROWS * self.atoms.numel(), _PART))
        return near

    def _removals(self):  # -> (p, 1 + n), (p, n)
        """Return this process's estimates of what the removal of each atom changes.

        The first column has the rise of the objective. Then come the growths of the moduli of codes
        at the ``n`` atoms most like the removed atom. The second result has the numbers of the
        ``n`` atoms.
        """
        (p, m), near = self.atoms.shape, self._near()
        given = *self._entries[:2], USERS, near, self._atoms, self._gram, self._known, self._weight
        given = *given, *self._options, SWEEPS_OF_COSTS, self._x, *self.codes.arrays()
        work, width = 2 * USERS * NEAR * m, 1 + near.shape[1]
        changes = self._sums(loops.removals, 0, p, width, work, *given)
        return changes, torch.as_tensor(near).long()
