"""An epoch of `skpudle.search` on a CPU: codes for given atoms, and sums that improve the atoms.

Making an `Epoch` solves for the codes. Its methods then improve the atoms for these codes, and say
which atoms a round of the search splits and removes. A *row* is a sample. A row with a nonzero code
at an atom is a *user* of the atom. The *slope* of an atom in a row is its product with the residual
of the row. Shapes: ``n`` rows, ``m`` features, ``p`` atoms. The rows ``X`` (n, m), their codes
``Z`` (n, p) and the atoms ``D`` (p, m) have the residuals ``X - Z D``.

Decisions and new atoms depend only on sums over rows, and the sums of all processes are added; so
all processes take the same decisions.

Epochs of images and of GPUs also use this module: `Codes`, `Coded` and draws of rows.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from skpudle._compilation import in_parts, one_blas_thread, threads_for
from skpudle._operators._atoms import project_atoms
from skpudle.search._compiled import loops

# Number of sweeps over the atoms in an epoch, for fewer than MANY atoms ("few") and from MANY atoms
# on ("many"). For few atoms two sweeps cost little: a tenth of the time of the codes. For 1,050
# atoms two sweeps reach the same objective as one sweep, in 1.25 times the time. For 80 atoms of
# digits one sweep reaches a 0.15 % larger objective in 15 % less time (benchmarks/constants.py
# sweeps).
SWEEPS = {"few": 2, "many": 1}

# TOLERANCE: the violation of the optimality condition that codes may keep, as a fraction of alpha.
# SWEEPS_OF_CODES and SWEEPS_OF_COSTS: the largest numbers of sweeps over the codes of a row, in an
# epoch and in the estimate of the cost of an atom. Codes need not converge in an epoch, since the
# next epoch starts from them: searches with at most 100 sweeps take up to 30 % more time, for
# objectives that differ by at most 0.1 % (benchmarks/constants.py sweeps-of-codes).
TOLERANCE = 1e-2
SWEEPS_OF_CODES = 3
SWEEPS_OF_COSTS = 5

# The working set of a row has the atoms whose codes descent minimises over. An atom enters the set
# if its slope violates the optimality condition and has at least this fraction of the largest
# modulus of a slope outside of the set. With 0.3 or 0.9 objectives differ by at most 0.2 %
# (benchmarks/constants.py share-of-slopes).
MIN_FRACTION = 0.6

# Number of rows whose products with all atoms are computed at once, so few that the products stay
# in a cache until the codes of these rows are solved.
_ROWS = 256
# A sweep over the atoms takes blocks of this number of atoms: sums over rows are computed for a
# whole block at once, which threads can share, before the atoms of the block improve one by one.
_ATOMS = 64
# The working set of a row may have this number of atoms more than the row has features. The lasso
# needs no more than one code for each feature, but atoms enter before other codes become zero.
ROOM = 8
# From this number of atoms on, coordinate descent on codes works on residuals instead of the matrix
# of products of atoms. With the matrix five epochs of 1,000 atoms take 1.7 times as long for 595
# features, and 1.1 times for 93 features (benchmarks/constants.py many).
MANY = 1024
# Least work for which it pays to start a thread: _TASK operations of a compiled loop, or _PART
# multiplications of a BLAS. With a fifth of both numbers two threads take 1.3 times as long as one
# thread for an epoch of 1,800 rows of 64 features and 100 atoms.
_TASK = 2e7
_PART = 5e7

# Least squares on a support are solved by a Cholesky factor if each atom has at least the fraction
# _DEPENDENT of its energy (sum of squares) outside of the span of the support's earlier atoms; with
# less, rounding errors spoil the factor. Then coordinate descent starts from the lasso's codes and
# ends at the tolerance _REFIT_TOLERANCE times alpha, or after SWEEPS_OF_REFITS sweeps.
_DEPENDENT = 1e-8
_REFIT_TOLERANCE = 1e-4
SWEEPS_OF_REFITS = 100

# Largest number of rows by which the cost of an atom is estimated: by how much the objective rises
# without the atom. With 8 rows a search finds 99.1 % of 150 planted atoms at 8 dB, with 32 rows
# 99.8 % (benchmarks/constants.py users).
USERS = 32
# When the cost of an atom is estimated, the NEAR atoms most like the atom may take over its codes.
# The HEIRS atoms that take over most stay in a round that removes the atom, because the estimate
# of its cost relies on them.
NEAR = 64
HEIRS = 3
# Number of power iterations that find the direction in which an atom splits.
POWER_ITERATIONS = 8


def _starts(counts):  # (n,) -> (n + 1,)
    """Return the number of each row's first entry, and last the number of all entries.

    ``counts`` has the number of entries of each row.
    """
    starts = counts.new_zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=starts[1:])
    return starts


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes of ``n`` rows or images: what epochs start from, and what epochs improve.

    Row ``i`` has the entries ``start[i] : start[i + 1]``, one for each nonzero code.
    """

    start: Tensor  # (n + 1,) int64
    index: Tensor  # (n_entries,) int32: atom; in images atom * n_positions + position
    value: Tensor  # (n_entries,) float64; on a GPU in the dtype of the data

    @classmethod
    def none(cls, n):  # -> Codes
        """Return zero codes of ``n`` rows."""
        return cls.of_dense(torch.zeros(n, 0, dtype=torch.float64))

    @classmethod
    def of_dense(cls, z):  # (n, p) -> Codes
        """Return the sparse form of the dense codes ``z``."""
        return cls.of_padded(torch.arange(z.shape[1], device=z.device).expand_as(z), z)

    @classmethod
    def of_padded(cls, index, value):  # (n, longest) each -> Codes
        """Return the codes ``value`` at the atoms ``index``, without the zeros that pad rows."""
        used = value != 0
        return cls(_starts(used.sum(1)), index[used].int(), value[used])

    @classmethod
    def joined(cls, parts):  # triples of arrays -> Codes
        """Return the codes of successive blocks of rows as one object.

        ``parts`` yields for each block three arrays: the number of codes of each row (n_block,),
        and the atoms and values of all codes of the block (n_entries,). The codes of a single block
        share the memory of its arrays.
        """
        no_block = (np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0))
        parts = [*parts] or [no_block]
        count, index, value = parts[0]
        if len(parts) > 1:
            count = np.concatenate([part[0] for part in parts])
            index = np.concatenate([part[1] for part in parts])
            value = np.concatenate([part[2] for part in parts])
        starts = _starts(torch.as_tensor(count))
        return cls(starts, torch.as_tensor(index), torch.as_tensor(value))

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

    def padded(self, padding):  # -> (n, longest) int64, (n, longest)
        """Return atoms and values as two dense arrays, by which a GPU treats all rows at once.

        Rows with fewer entries than the longest row end with the atom number ``padding`` and the
        value 0.
        """
        column = torch.arange(self.longest, device=self.start.device)
        used = column < self.start.diff()[:, None]
        value = self.value.new_zeros(used.shape)
        index = torch.full_like(value, padding, dtype=torch.int64)
        index[used] = self.index.long()
        value[used] = self.value
        return index, value

    def dense(self, n_atoms):  # -> (n, n_atoms)
        """Return the dense form of the codes, including zeros."""
        z = self.value.new_zeros(len(self), n_atoms)
        z[self.rows, self.index.long()] = self.value
        return z

    def arrays(self):  # -> (n + 1,), (n_entries,), (n_entries,)
        """Return ``start``, ``index`` and ``value`` as NumPy arrays that share their memory."""
        return np.asarray(self.start), np.asarray(self.index), np.asarray(self.value)

    def of_row(self, i):  # -> index (n_of_row,), value (n_of_row,)
        """Return index and value of row ``i`` as arrays that share the memory of the codes."""
        start, index, value = self.arrays()
        entries = slice(start[i], start[i + 1])
        return index[entries], value[entries]

    def like(self, x):  # -> Codes
        """Return the codes on the device and in the dtype of the tensor ``x``."""
        return Codes(self.start.to(x.device), self.index.to(x.device), self.value.to(x))

    def restrict(self, kept, n_positions=1):  # (p,) bool -> Codes
        """Return the codes at the atoms that ``kept`` marks, for a dictionary of these atoms alone.

        In images an atom has ``n_positions``, and an index is ``atom * n_positions + position``.
        """
        kept = kept.to(self.index.device)
        index = self.index.long()
        atom = index // n_positions
        new_atom = (kept.cumsum(0) - 1)[atom]  # its number among the kept atoms
        return self.renumbered(new_atom * n_positions + index % n_positions, kept[atom])

    def renumbered(self, index, kept):  # (n_entries,), (n_entries,) bool -> Codes
        """Return the entries that ``kept`` marks, each at its new atom (or position) ``index``."""
        # `_starts(kept)` has the number of kept entries before each entry
        return Codes(_starts(kept)[self.start], index[kept].int(), self.value[kept])


def _least(operations, task=_TASK):  # -> int
    """Return the least number of items for which `in_parts` should use another thread.

    One item takes ``operations`` operations, and a thread is worth its start from ``task``
    operations on.
    """
    return max(1, int(task / max(operations, 1)))


class Coded:
    """Data with codes for given atoms; the base of `Epoch`, `DeviceEpoch` and `ConvEpoch`.

    Other modules call such an object *coded data*. They rely on the attributes below, on the
    methods of this class, and on ``improved_atoms`` and ``residuals`` of the subclasses.

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
        The mean over the rows of all processes of half the squared residual.
    n_entries : float
        The number of nonzero codes, summed over the rows of all processes.
    uses : Tensor of shape (n_atoms,)
        The number of nonzero codes of each atom in this process's data.

    In all sums rows have their weights.
    """

    n_always_split = 0  # atoms that a round splits even if their gain is small
    _costs = None  # the result of `costs`, once it has been computed

    def restrict(self, kept):  # (p,) bool -> Codes
        """Return the codes at the atoms that ``kept`` marks, for a dictionary of these atoms."""
        return self.codes.restrict(kept, self.problem.n_positions)

    def move_atoms(self):
        """Return None: only atoms of images can move, see `ConvEpoch.move_atoms`."""
        return None

    def common_directions(self, seed):  # -> (p,), (p, *atom)
        """Find for each atom the direction along which the residuals of its users have most energy.

        A user of an atom is a row, or a position in an image, with a nonzero code at the atom. A
        round of the search splits atoms along these directions. ``seed`` draws the directions from
        which power iterations start.

        Returns
        -------
        energy : Tensor of shape (p,)
            The sum of squares of the residuals of the atom's users along the direction.
        direction : Tensor of the shape of the atoms
            Directions of norm 1, orthogonal to the atoms.
        """
        generator = torch.Generator().manual_seed(seed)
        atoms = self.atoms.flatten(1)
        product = torch.randn(atoms.shape, generator=generator, dtype=torch.float64)
        residuals = self.residuals()
        for _ in range(POWER_ITERATIONS):
            direction = project_atoms(product)
            (product,) = self.problem.total(self._second_moments(residuals, direction))
            along = torch.einsum("jf,jf->j", product, atoms)
            # Make products orthogonal to their atoms, because a split of an atom along itself would
            # only repeat the atom. In place, to save memory.
            product.addcmul_(along[:, None], atoms, value=-1)
        energy = torch.einsum("jf,jf->j", product, direction)
        return energy, project_atoms(product).view_as(self.atoms)

    def costs(self):  # -> (p,), (p, n) int64
        """Return the cost of each atom, by which rounds choose atoms to remove, and its heirs.

        Returns
        -------
        cost : Tensor of shape (p,)
            By how much the objective would rise without the atom, estimated in each process from at
            most 32 of the rows (or positions in images) that use the atom.
        heirs : Tensor of shape (p, n), int64
            The numbers of the atoms, at most three, whose codes would grow most without the atom.
        """
        if self._costs is None:
            # columns: the rise of the objective, then the growth of codes at the atoms `near`
            changes, near = self._removals()
            (changes,) = self.problem.total(changes)
            largest = changes[:, 1:].topk(min(HEIRS, near.shape[1])).indices
            self._costs = changes[:, 0], near.gather(1, largest)
        return self._costs

    def _measure(self, sums):  # (4,)
        """Set ``objective``, ``loss`` and ``n_entries``, when a subclass has solved its codes.

        ``sums`` are weighted sums over the rows of this process: of half the squared residuals, of
        the moduli of codes, of the numbers of nonzero codes, and of ones. ``problem.total`` adds
        the sums of all processes.
        """
        (sums,) = self.problem.total(sums)
        loss, size, self.n_entries, self._n = sums.tolist()
        self.objective = loss + self.problem.alpha * size
        self.loss = loss / self._n

    @property
    def unbiased_loss(self):  # -> float
        """The mean over rows of half the squared residual, for the codes that atoms adapt to.

        With ``refit`` these codes are least squares, free of the lasso's bias.
        """
        squares = torch.as_tensor(self.residuals()).double().square().sum()
        (square,) = self.problem.total(squares)
        return float(square) / (2 * self._n)

    def mean_residual(self):  # -> (m,)
        """Return the mean residual of each feature's known entries, over the rows of all processes.

        For these codes it is the step of the baseline, which is subtracted from all rows, to its
        best value.
        """
        problem = self.problem
        # `residuals` have the roots of the weights as factors; times the roots again, the weights
        sums = torch.as_tensor(self._roots[:, 0] @ self.residuals())
        counts = problem.weigh(problem.observed).sum(0).to(sums)
        sums, counts = problem.total(sums, counts)
        return (sums / counts.clamp_min(1e-300)).cpu().double()


class Epoch(Coded):
    """Rows on a CPU with codes for given atoms, and sums that improve the atoms; see `Coded`.

    Making the object solves for the codes, by coordinate descent on a few atoms for each row: with
    fewer than 1,024 atoms and no missing entries on products of these atoms, otherwise on the
    residual of the row.

    Parameters
    ----------
    problem : Problem
        The rows and the objective.
    atoms : Tensor of shape (p, m), float64
        Atoms of norm 1.
    codes : Codes
        Codes to begin with.
    refit : bool, default=False
        Whether atoms adapt to least squares on the supports of the codes, instead of to the codes.
    turn : int, default=None
        0 or 1: to save time, new atoms enter the codes of every second block of rows only, of the
        even or the odd blocks, see `Problem.epoch`. A single block always gets new atoms.

    Attributes
    ----------
    fitting : Codes
        The codes that atoms adapt to: ``codes``, or with ``refit`` least squares on their supports.
    """

    def __init__(
        self,
        problem,
        atoms,
        codes,
        *,
        refit=False,
        turn=None,
    ):
        self.problem = problem
        self.atoms = atoms
        self._atoms = np.asarray(atoms)
        self._x = np.asarray(problem.x)
        n = len(problem.x)
        # whether descent works on products of atoms, instead of on residuals
        self._uses_gram = len(atoms) < MANY and problem.mask is None
        self._mask = np.empty((n, 0))
        if problem.mask is not None:
            self._mask = np.asarray(problem.mask)
        self._weight = np.ones(n)
        if problem.weight is not None:
            self._weight = np.asarray(problem.weight)
        # Rows are multiplied by the square roots of their weights, so that in a product of two
        # arrays of rows, as Z^T X, each row counts with its weight.
        self._roots = np.sqrt(self._weight)[:, None]
        # of each row: half of the squared residual, and the sum of the moduli of the codes
        self._loss, self._size = np.zeros((2, n))
        self._code(codes, refit, turn)
        n_entries = np.diff(self.codes.arrays()[0])
        of_rows = (self._loss, self._size, n_entries, np.ones(n))
        self._measure(atoms.new_tensor([self._weight @ part for part in of_rows]))

    def _code(self, codes, refit, turn):
        """Solve for the codes of all rows, block by block in threads.

        Set ``codes``, ``fitting``, and the loss and the sum of the codes' moduli of each row.
        Descent starts from ``codes``; ``refit`` and ``turn`` are as in the class. A block has so
        few rows that their slopes stay in a cache. With a ``turn`` every second block gets no
        slopes, so that no new atom enters its codes. The bits of the result do not depend on the
        number of threads, because blocks do not.
        """
        p, m = self.atoms.shape
        n = len(self._x)
        start, index, value = codes.arrays()
        # largest number of codes of a row, and number of rows of a block
        room = max(min(p, m + ROOM), codes.longest)
        n_rows = min(max(_ROWS, 2**16 // p), max(n, 1))
        n_blocks = -(-n // n_rows)
        alpha = self.problem.alpha
        # for each block the numbers of codes of its rows, then the atoms and values of all codes,
        # and with `refit` the values of least squares at the same atoms
        solved = [None] * n_blocks

        def solve(first, last):  # the blocks `first:last`: set `solved` and the losses
            slopes = np.empty((n_rows, p), np.float32)
            atom = np.empty(n_rows * room, np.int32)
            code, fitted = np.empty((2, n_rows * room))
            for block in range(first, last):
                rows = slice(block * n_rows, min((block + 1) * n_rows, n))
                residual = self._x[rows].astype(np.float64)
                k = len(residual)
                starts = start[rows.start : rows.stop + 1]
                loops.subtract_synthesis(
                    starts, index, value, self._atoms, self._mask[rows], residual
                )
                slope = slopes[:k, :0]  # without slopes no new atom enters
                if turn in (None, block % 2) or n_blocks == 1:
                    slope = self._slopes(residual, slopes[:k])
                count = np.empty(k, np.int64)
                loops.solve_rows(
                    atoms=self._atoms,
                    gram=self._gram,
                    mask=self._mask[rows],
                    residual=residual,
                    slope=slope,
                    alpha=alpha,
                    positive=self.problem.positive_code,
                    tolerance=TOLERANCE * alpha,
                    min_fraction=MIN_FRACTION,
                    max_sweeps=SWEEPS_OF_CODES,
                    refit=refit,
                    dependent=_DEPENDENT,
                    refit_tolerance=_REFIT_TOLERANCE * alpha,
                    refit_sweeps=SWEEPS_OF_REFITS,
                    room=room,
                    start=starts,
                    index=index,
                    value=value,
                    count=count,
                    atom=atom,
                    code=code,
                    fitted=fitted,
                    loss=self._loss[rows],
                    size=self._size[rows],
                )
                end = count.sum()
                refits = fitted[:end].copy() if refit else None
                solved[block] = (count, atom[:end].copy(), code[:end].copy(), refits)

        with one_blas_thread, threads_for():
            in_parts(solve, n_blocks, _least(n_rows * self._atoms.size, _PART))
        self.codes = Codes.joined(block[:3] for block in solved)
        self.fitting = self.codes
        if refit:  # atoms adapt to least squares on the supports
            refits = ((count, atom, fitted) for count, atom, _, fitted in solved)
            self.fitting = Codes.joined(refits)

    @cached_property
    def _gram(self):  # -> (p, p) products of atoms; None if descent works on residuals
        return self._atoms @ self._atoms.T if self._uses_gram else None

    @cached_property
    def _screen(self):  # -> (p, m): atoms in the low precision of `_slopes`
        # On processors with bfloat16, products of the residuals of 256 rows of 128 to 2381 features
        # with 1024 to 16,384 atoms take 0.27 to 0.30 of the time that float32 takes, and epochs of
        # 4096 atoms 0.6 to 0.7. The relative error of these products is some thousandths, less than
        # the tolerance of codes.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        has_bfloat16 = capabilities.get("avx512_bf16", False)
        is_faster = has_bfloat16 and len(self.atoms) >= MANY
        return self.atoms.bfloat16() if is_faster else self.atoms.float()

    def _slopes(self, residual, out):  # (n, m), (n, p) float32 -> (n, p)
        """Set ``out`` to the products of residuals (n, m) with all atoms, and return it.

        The products only select the atoms that enter a working set, so bfloat16 or float32 is
        enough.
        """
        if self._screen.dtype == torch.float32:
            return np.matmul(
                residual.astype(np.float32), np.asarray(self._screen).T, out=out
            )
        torch.as_tensor(out).copy_(
            torch.as_tensor(residual).bfloat16() @ self._screen.T
        )
        return out

    @cached_property
    def _values(self):  # (n_entries,)
        """The values of ``fitting``, times the square roots of their rows' weights."""
        value = np.asarray(self.fitting.value)
        if self.problem.weight is None:  # all roots are 1: no copy is needed
            return value
        return value * self._roots[np.asarray(self.fitting.rows), 0]

    @cached_property
    def _entries(self):  # -> start (p + 1,), rows and values (n_entries,)
        """The entries of ``fitting`` sorted by atom, then by row, for loops over atoms.

        Values are `_values`. Atom ``j`` has the entries from ``start[j]`` to ``start[j + 1] - 1``.
        """
        start, index, _ = self.fitting.arrays()
        shape = (len(self._x), len(self.atoms))
        by_row = csr_array((self._values, index, start.astype(np.int32)), shape=shape)
        by_atom = by_row.tocsc()
        return by_atom.indptr.astype(np.int64), by_atom.indices, by_atom.data

    @property
    def _visit_work(self):  # -> float
        """An estimate of the operations that visit the users of an atom: 4 for each user.

        It is the mean over atoms; from it methods tell for how many atoms another thread pays.
        """
        return 4 * len(self._entries[1]) / len(self.atoms)

    def _sums(
        self,
        first,
        last,
        width,
        work,
        add,
    ):  # -> (last - first, width)
        """Return what a compiled loop sums up for each of the atoms ``first:last``, in threads.

        ``add(start, stop, sums)`` adds ``width`` sums for each of the atoms ``start:stop``, in
        ``work`` operations for an atom, to the array ``sums``. The sums are over the rows of this
        process alone.
        """
        sums = np.zeros((last - first, width))

        def add_part(start, stop):  # atoms first + start to first + stop
            add(first + start, first + stop, sums[start:stop])

        in_parts(add_part, len(sums), _least(work))
        return torch.as_tensor(sums)

    @property
    def statistics(self):  # -> (p, p), (p, m) float64
        """``A = Z^T Z`` and ``B = Z^T X`` with weighted rows, summed over processes.

        The atoms are improved by these sums where no entry is missing; with missing entries the
        objective is not a function of these sums.
        """
        p, m = self.atoms.shape
        n = len(self._x)
        start, index, value = self.fitting.arrays()
        # The rows are cut into parts, each with sums of its own. The number of parts must not
        # depend on the number of threads, or else the bits of the sums would.
        n_parts = min(8, 1 + int(start[-1] * m / _TASK))
        ends = np.arange(n_parts + 1) * n // n_parts
        gram = [np.zeros((p, p)) for _ in range(n_parts)]
        products = [np.zeros((p, m)) for _ in range(n_parts)]

        def add(first, last):  # add up the rows of the parts `first:last`
            for part in range(first, last):
                rows = slice(ends[part], ends[part + 1])
                loops.add_statistics(
                    start[rows.start : rows.stop + 1],
                    index,
                    value,
                    self._weight[rows],
                    self._x[rows],
                    a=gram[part],
                    b=products[part],
                )

        in_parts(add, n_parts, 1)
        a = sum(gram)
        b = sum(products)
        # The loop has set one of the two entries for each pair of atoms, so `a + a.T` has both, and
        # the diagonal twice.
        a = a + a.T
        np.fill_diagonal(a, a.diagonal() / 2)
        return self.problem.total(torch.as_tensor(a), torch.as_tensor(b))

    def products(self, first, last):  # -> (last - first, last - first)
        """Return the block ``first:last`` of rows and columns of ``A = Z^T Z``, of this process."""
        start, row, code = self._entries
        start_of_row, index, _ = self.fitting.arrays()

        def add(begin, end, sums):
            loops.add_products(
                begin,
                end,
                low=first,
                by_atom=start,
                row=row,
                code=code,
                start=start_of_row,
                index=index,
                value=self._values,
                a=sums,
            )

        # operations for an atom: the loop visits its users, and all codes of each of these rows
        work = self._visit_work * len(row) / max(len(self._x), 1)
        return self._sums(first, last, last - first, work, add)

    def energies(self):  # -> (p,)
        """Return the sum of the squared codes of each atom, over the rows of all processes."""
        index = np.asarray(self.fitting.index)
        squares = np.square(self._values)
        sums = np.bincount(index, squares, minlength=len(self.atoms))
        return self.problem.total(torch.as_tensor(sums))[0]

    @property
    def uses(self):  # -> (p,)
        """The sum of the weights of the rows of this process that use each atom."""
        index = np.asarray(self.fitting.index)
        weight = self._weight[np.asarray(self.fitting.rows)]
        return torch.as_tensor(np.bincount(index, weight, minlength=len(self.atoms)))

    def residuals(self):  # -> (n, m)
        """Return the residuals for the codes that atoms adapt to, times the roots of the weights.

        They are a NumPy array of the dtype of the data, with zeros at missing entries.
        """
        residuals = np.empty_like(self._x)
        start, index, value = self.fitting.arrays()

        def subtract(first, last):  # set the residuals of the rows `first:last`
            for low in range(first, last, _ROWS):
                rows = slice(low, min(low + _ROWS, last))
                residual = self._x[rows].astype(np.float64)
                starts = start[low : rows.stop + 1]
                loops.subtract_synthesis(
                    starts, index, value, self._atoms, self._mask[rows], residual
                )
                residuals[rows] = residual * self._roots[rows]

        in_parts(subtract, len(residuals), max(_ROWS, _least(self._atoms.size)))
        return residuals

    def improved_atoms(self, earlier=None):  # -> (p, m) of norm 1, float64
        """Return better atoms for the codes, the second half of an epoch.

        One or two sweeps of coordinate descent minimise the objective over one atom at a time, on
        the sphere of norm 1. Fewer than 1,024 atoms, without missing entries, descend on the sums
        ``A`` and ``B`` of `statistics` (``p * p * m`` operations). Otherwise atoms descend on the
        residuals of their users (``n_entries * m`` operations). In a stream ``earlier``, a
        `_states.Held`, adds a penalty on steps of the atoms away from the atoms of earlier rows.
        """
        p, _ = self.atoms.shape
        atoms = self._atoms.copy()
        if self._uses_gram:
            a, b = (np.asarray(sums) for sums in self.statistics)
        else:
            residual = self.residuals()
        with one_blas_thread:
            for _ in range(SWEEPS["few" if p < MANY else "many"]):
                for first in range(0, p, _ATOMS):
                    part = slice(first, min(first + _ATOMS, p))
                    # for the block of atoms: the rows of `B - A D`, and the block of `A`
                    if self._uses_gram:
                        target = b[part] - a[part] @ atoms
                        gram = a[part, part].copy()
                    else:
                        moments = self._moments(part, residual)
                        products = self.products(part.start, part.stop)
                        sums = self.problem.total(moments, products)
                        target, gram = (np.asarray(each) for each in sums)
                    if earlier is not None:
                        pull, curvature = earlier.penalty_sums(atoms, part)
                        target = target + np.asarray(pull)
                        gram = gram + np.asarray(curvature)
                    # `change` is minus the old atoms, and plus the new ones after the sweep
                    change = -atoms[part]
                    loops.sweep(gram, self.problem.positive_atoms, target, atoms[part])
                    if not self._uses_gram:
                        change += atoms[part]
                        self._follow(first, change.astype(residual.dtype), residual)
        # saves memory; the property would make it again
        vars(self).pop("_entries", None)
        return torch.as_tensor(atoms)

    def _moments(self, part, residual):  # slice, (n, m) -> (n_part, m)
        """Return the rows of ``Z^T R`` for the block ``part`` of atoms and residuals ``R``."""
        start, row, value = self._entries
        m = residual.shape[1]

        def add(begin, end, sums):
            loops.add_moments(begin, end, start, row, value, x=residual, b=sums)

        return self._sums(part.start, part.stop, m, m * self._visit_work, add)

    def _follow(self, first, change, residual):
        """Update the residuals in place after a block of atoms has changed.

        ``change`` (n_block, m) holds new minus old atoms, from the atom ``first`` on; ``residual``
        is (n, m), and changes at the users of these atoms.
        """
        start, row, value = self._entries

        def subtract(low, high):  # update the rows `low:high`
            loops.subtract_changes(
                low, high, first, start, row, value, change=change, residual=residual
            )

        work_of_row = change.size * self._visit_work / max(len(residual), 1)
        in_parts(subtract, len(residual), _least(work_of_row))

    def _second_moments(self, residuals, direction):  # (n, m), (p, m) -> (p, m)
        """Return for each atom the sum of ``r_i (r_i . v)`` over the rows ``i`` that use the atom.

        It is one power iteration of `common_directions`. ``r_i`` is the residual of row ``i``, and
        ``v`` the row of ``direction`` for the atom. The sum is that of this process alone.
        """
        p, m = direction.shape
        direction = np.asarray(direction)
        start, row, _ = self._entries

        def add(begin, end, sums):
            loops.add_second_moments(
                begin, end, start, row, residuals, direction, moments=sums
            )

        return self._sums(0, p, m, 2 * m * self._visit_work, add)

    def _near(self):  # -> (p, n) int32
        """Return for each atom the numbers of the 64 atoms (or all) most like it, by cosines.

        They are the atoms that may take over its codes when its cost is estimated.
        """
        p = len(self.atoms)
        n = min(p - 1, NEAR)
        near = np.empty((p, n), np.int32)
        atoms = self._atoms.astype(np.float32)

        def compare(first, last):  # set `near` in the blocks `first:last` of atoms
            for start in range(first * _ROWS, min(last * _ROWS, p), _ROWS):
                part = slice(start, min(start + _ROWS, p))
                cos = atoms[part] @ atoms.T
                cos = cos if self.problem.positive_code else np.abs(cos)
                cos[np.arange(len(cos)), np.arange(part.start, part.stop)] = -np.inf
                near[part] = np.argpartition(-cos, n, axis=1)[:, :n]

        with one_blas_thread:
            in_parts(compare, -(-p // _ROWS), _least(_ROWS * self.atoms.numel(), _PART))
        return near

    def _removals(self):  # -> (p, 1 + n), (p, n)
        """Estimate for `costs` what would change without each atom, in the rows of this process.

        Returns
        -------
        changes : Tensor of shape (p, 1 + n)
            For each atom the rise of the objective without it, then the growth of the moduli of
            codes at the ``n`` atoms most like it.
        near : Tensor of shape (p, n), int64
            The numbers of these ``n`` atoms.
        """
        p, m = self.atoms.shape
        near = self._near()
        alpha = self.problem.alpha
        by_atom, row, _ = self._entries
        start, index, value = self.codes.arrays()

        def add(begin, end, changes):
            loops.removals(
                begin,
                end,
                by_atom=by_atom,
                row=row,
                most=USERS,
                near=near,
                atoms=self._atoms,
                gram=self._gram,
                mask=self._mask,
                weight=self._weight,
                alpha=alpha,
                positive=self.problem.positive_code,
                tolerance=TOLERANCE * alpha,
                min_fraction=MIN_FRACTION,
                max_sweeps=SWEEPS_OF_COSTS,
                x=self._x,
                start=start,
                index=index,
                value=value,
                changes=changes,
            )

        changes = self._sums(0, p, 1 + near.shape[1], 2 * USERS * NEAR * m, add)
        return changes, torch.as_tensor(near).long()
