r"""An epoch of `skpudle.search`: codes for given atoms, and statistics to improve the atoms by.

Decisions and new atoms depend only on sums over samples, and over processes with other samples.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import in_parts
from skpudle.operators import project_atoms
from skpudle.search._compiled import loops

__all__ = ["Codes", "Epoch", "Problem"]

# Sweeps over the atoms per epoch; they cost a tenth of the codes.
_SWEEPS = 2

# An epoch updates the codes of the epoch before by one working set and few sweeps, or fewer if no
# coordinate moves the optimality condition by more than this share of alpha. Descent for given
# atoms need not converge: 8 x 8 patches reach the objective of 25 epochs of solved codes in half of
# the time. The cost of an atom needs somewhat better codes.
_TOLERANCE = 1e-2
_EFFORT = 1, 3  # working sets, sweeps
_EFFORT_OF_COSTS = 2, 5

# Atoms enter a working set above this share of the largest violation, so that few enter in vain.
_SHARE = 0.6

# Rows to correlate at once, which stay in a cache; even, as they come in pairs.
_ROWS = 256
# Operations that take half a millisecond, five times the start of a thread.
_TASK = 4e6

# Least squares on the supports are solved for directly, unless an atom has less than this share of
# its energy outside of the others: then descent from the lasso's codes ends here, on that scale.
_DEPENDENT, _REFIT_TOLERANCE = 1e-8, 1e-4
_MAX_REFIT_SWEEPS = 100

# Samples that estimate the cost of an atom they use; with 16, atoms are lost.
_USERS = 32
_POWER_ITERATIONS = 8


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: row ``i`` has ``value[i, :count[i]]`` at the atoms ``index[i, :count[i]]``."""

    count: Tensor  # (n,) int64
    index: Tensor  # (n, longest) int32
    value: Tensor  # (n, longest) float64

    @classmethod
    def none(cls, n):
        """Return zero codes of ``n`` rows."""
        index = torch.zeros(n, 0, dtype=torch.int32)
        return cls(torch.zeros(n, dtype=torch.int64), index, index.double())

    def arrays(self):
        """Return the memory of the tensors as arrays."""
        return np.asarray(self.count), np.asarray(self.index), np.asarray(self.value)

    def check(self, n_rows, n_places):
        """Raise ValueError unless these are codes of ``n_rows`` rows at ``n_places`` places.

        A place is an atom at a position. Compiled loops trust the indices in codes.
        """
        count, index, value = self.count, self.index, self.value
        kinds = torch.int64, torch.int32, torch.float64
        if (count.dtype, index.dtype, value.dtype) != kinds:
            raise ValueError("its codes are of other dtypes")
        if count.shape != (n_rows,) or index.shape != value.shape or len(index) != n_rows:
            raise ValueError(f"its codes are not for {n_rows} samples")
        places = torch.arange(index.shape[1])
        used = places < count[:, None]
        if ((count < 0) | (count > len(places))).any():
            raise ValueError("its codes have other numbers of entries than they state")
        if (used & ((index < 0) | (index >= n_places))).any():
            raise ValueError(f"its codes are not for {n_places} places")
        if (torch.where(used, index, -1 - places).sort().values.diff() == 0).any():
            raise ValueError("its codes use an atom twice")
        if not torch.isfinite(torch.where(used, value, 0.0).square().sum()):
            raise ValueError("its codes are not finite")

    def size(self):  # -> scalar tensor
        """Return the sum of all moduli."""
        used = torch.arange(self.index.shape[1]) < self.count[:, None]
        return torch.where(used, self.value, 0.0).abs().sum()

    def _with_room(self, room):
        index, value = (t.new_empty(len(t), room) for t in (self.index, self.value))
        longest = min(room, self.index.shape[1])
        for old, new in ((self.index, index), (self.value, value)):
            np.asarray(new)[:, :longest] = np.asarray(old)[:, :longest]
        return Codes(self.count.clone(), index, value)

    def widened(self, room):
        """Return a copy with room for at least ``room`` entries per row."""
        return self._with_room(max(room, self.index.shape[1]))

    def trimmed(self):
        """Return a copy without room that no row uses."""
        return self._with_room(int(self.count.max()) if len(self.count) else 0)

    def of_rows(self, rows):  # (n,) bool
        """Return the codes of these rows."""
        return Codes(self.count[rows], self.index[rows], self.value[rows])

    def restricted(self, kept, n_positions=1):  # (p,) bool
        """Return the codes of the kept atoms, numbered anew.

        An index is ``atom * n_positions + position``.
        """
        used = torch.arange(self.index.shape[1]) < self.count[:, None]
        index = torch.where(used, self.index, 0).long()
        atom, place = index // n_positions, index % n_positions
        used &= kept[atom]
        order = used.int().argsort(dim=1, descending=True, stable=True)
        index = (kept.cumsum(0) - 1)[atom] * n_positions + place
        index, value = index.int().gather(1, order), self.value.gather(1, order)
        return Codes(used.sum(1), index, value).trimmed()


@dataclass(frozen=True, eq=False)
class Problem:
    """The data, in the form of the compiled loops, and the objective.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, with any number in missing entries. The search runs on the CPU in float64, and
        converts data as it reads them.
    alpha : float
        Penalty.
    positive_code, positive_atoms : bool
        Whether codes and atoms are non-negative.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.
    team : Team, default=None
        Sums over processes that have other samples.
    unit : float, default=1.0
        Divisor of data and penalty. The losses of a search are in the units before this division.
    """

    x: Tensor
    alpha: float
    positive_code: bool = False
    positive_atoms: bool = False
    mask: Tensor | None = None
    team: object = None
    unit: float = 1.0

    n_positions = 1  # of an atom; rows have one

    def __post_init__(self):
        x = self.x.detach().cpu()
        x = x if x.dtype in (torch.float32, torch.float64) else x.double()
        if self.mask is not None:
            mask = self.mask.detach().to("cpu", torch.float64).contiguous()
            object.__setattr__(self, "mask", mask)
            x = torch.where(mask > 0, x, 0.0)
        object.__setattr__(self, "x", x.contiguous())

    def thinned(self, stride):
        """Return the problem with every ``stride``-th sample."""
        if stride == 1:
            return self
        if stride not in self._thinned:
            self._thinned.clear()
            mask = None if self.mask is None else self.mask[::stride]
            self._thinned[stride] = replace(self, x=self.x[::stride].double(), mask=mask)
        return self._thinned[stride]

    def of_rows(self, rows):  # (n,) bool
        """Return the problem for these samples."""
        mask = None if self.mask is None else self.mask[rows]
        return replace(self, x=self.x[rows], mask=mask)

    @cached_property
    def _thinned(self):
        return {}

    @property
    def n_samples(self):
        """The number of samples of this process."""
        return len(self.x)

    def no_codes(self):
        """Return zero codes."""
        return Codes.none(len(self.x))

    def epoch(self, atoms, codes, *, refit=False):
        """Return the epoch of these atoms, starting from codes of other atoms."""
        return Epoch(self, atoms, codes, refit=refit)

    def squares(self):  # -> (n_samples,)
        """Return the sum of squares of each sample."""
        return torch.linalg.vector_norm(self.x, dim=1, dtype=torch.float64).square()

    @cached_property
    def without_codes(self):
        """The objective of zero codes, over the samples of this process."""
        return 0.5 * float(self.squares().sum())

    def total(self, *tensors):
        """Return sums over all processes."""
        return tensors if self.team is None else self.team.sum(*tensors)

    def project(self, atoms):
        """Return the nearest atoms of the constraint set."""
        return project_atoms(atoms, positive=self.positive_atoms)


def _least(operations):
    """Return the number of members of a range that is worth a thread, given operations of each."""
    return max(1, int(_TASK / max(operations, 1)))


def _products(x, atoms):  # (n, m), (p, m) -> (n, p)
    """Return ``x @ atoms.T``, with the same bits on any number of threads.

    torch's threads would wait for each other many times an epoch, which takes twenty times as long
    next to busy processes.
    """
    result, transposed = np.empty((len(x), len(atoms))), np.ascontiguousarray(atoms.T)

    def part(first, last):
        loops().correlate(first * _ROWS, min(last * _ROWS, len(x)), x, transposed, result)

    in_parts(part, -(-len(x) // _ROWS), _least(_ROWS * atoms.size))
    return result


class Epoch:
    """Codes for the atoms of an epoch, and statistics of both."""

    n_always_split = 0  # least number of atoms to split, whatever the costs of others

    def __init__(self, problem, atoms, codes, *, refit=False):
        self.problem, self.atoms = problem, atoms
        n, p, m = len(problem.x), len(atoms), atoms.shape[1]
        self._mask = np.empty((0, m)) if problem.mask is None else np.asarray(problem.mask)
        self._dictionary = np.asarray(atoms), _products(np.asarray(atoms), np.asarray(atoms))
        self._options = (problem.alpha, problem.positive_code, _TOLERANCE * problem.alpha, _SHARE)
        self._gain, size = np.zeros(n), np.zeros(n)
        codes = codes.widened(min(p, m + 8))
        arrays = *codes.arrays(), self._gain, size
        self._by_rows(loops().solve_rows, self._options, _EFFORT, arrays)
        self.codes = codes.trimmed()
        self._entries = self._by_atom()
        codes = self._refitted() if refit else self.codes
        a, b = self._moments(codes)
        left = 0.5 * float(self._known_residual(codes).square().sum()) if refit else 0.0
        gain, counts = float(self._gain.sum()), (float(self.codes.count.sum()), float(n))
        sums = a.new_tensor([problem.without_codes - gain, float(size.sum()), left, *counts])
        self.a, self.b, sums = problem.total(a, b, sums)
        self.objective, size, left, self.n_entries, n = sums.tolist()
        # means of |x - D z|^2 / 2, before and after a refit
        self.loss, self.unbiased_loss = (self.objective - problem.alpha * size) / n, left / n

    def _by_rows(self, function, options, effort, arrays):
        """Call a loop over samples that changes the rows of arrays."""
        x = np.asarray(self.problem.x)
        transposed = np.ascontiguousarray(self._dictionary[0].T)

        def solve(first, last):
            correlation = np.empty((_ROWS, transposed.shape[1]))
            for block in range(first, last):
                part = slice(block * _ROWS, min((block + 1) * _ROWS, len(x)))
                n = part.stop - part.start
                loops().correlate(0, n, x[part], transposed, correlation)
                function(*self._dictionary, self._mask[part], correlation[:n], *options, *effort,
                         *(array[part] for array in arrays))  # fmt: skip

        # working sets, sweeps and slopes make some sixteen passes over the atoms
        operations = _ROWS * (self.atoms.numel() + 16 * len(self.atoms))
        in_parts(solve, -(-len(x) // _ROWS), _least(operations))

    def _gathered(self, length):
        """Return the operations of an atom on ``length`` entries of each user, 4 times as slow."""
        return 4 * length * len(self._entries[1]) / len(self.atoms)

    def _by_atom(self):
        count, index, _ = self.codes.arrays()
        n_entries = int(count.sum())
        start = np.zeros(len(self.atoms) + 1, np.int64)
        row, place = np.empty(n_entries, np.int32), np.empty(n_entries, np.int32)
        loops().sort_by_atom(count, index, start, row, place)
        return start, row, place

    def _refitted(self):  # -> least squares on the supports of the codes
        codes = self.codes.widened(0)
        options = self.problem.positive_code, _REFIT_TOLERANCE * self.problem.alpha, _DEPENDENT
        self._by_rows(loops().refit_rows, options, (_MAX_REFIT_SWEEPS,), codes.arrays())
        return codes

    def _residual(self, codes):  # in missing entries, minus the prediction
        residual = self.problem.x.to(torch.float64, copy=True)
        loops().subtract_synthesis(*codes.arrays(), np.asarray(self.atoms), np.asarray(residual))
        return residual

    def _known_residual(self, codes):
        residual, mask = self._residual(codes), self.problem.mask
        return residual if mask is None else residual * mask

    def _moments(self, codes):
        x, mask = self.problem.x, self.problem.mask
        if mask is not None:
            # With missing entries completed by D z the objective touches the masked one from above.
            x = torch.where(mask > 0, x, x - self._residual(codes))
        p, m = self.atoms.shape
        a, b = self.atoms.new_zeros(p, p), self.atoms.new_zeros(p, m)
        arrays = *self._entries, *codes.arrays(), np.asarray(x), np.asarray(a), np.asarray(b)
        least = _least(self._gathered(m + len(self._entries[1]) / max(len(x), 1)))
        in_parts(lambda first, last: loops().add_moments(first, last, *arrays), p, least)
        return a, b

    @property
    def uses(self):  # -> (p,)
        """The number of samples that use each atom, of this process."""
        return torch.as_tensor(np.diff(self._entries[0]))

    def improved_atoms(self):
        """Return the atoms after sweeps of block coordinate descent."""
        atoms = self.atoms.clone()
        a, b = np.asarray(self.a), np.asarray(self.b)
        for _ in range(_SWEEPS):
            loops().sweep(a, b, self.problem.positive_atoms, np.asarray(atoms))
        return atoms

    def restricted(self, kept):  # (p,) bool -> Codes
        """Return the codes of the kept atoms."""
        return self.codes.restricted(kept)

    def moved(self):
        """Return None: rows have no neighbours that an atom could move to."""
        return None

    def common_directions(self, seed):  # -> (p,), (p, m)
        """Return for each atom the largest energy of its users' residuals, and its direction."""
        residual = self._known_residual(self.codes)
        p, m = self.atoms.shape
        least = _least(self._gathered(2 * m))
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(p, m, generator=generator, dtype=torch.float64)
        for _ in range(_POWER_ITERATIONS):
            direction = project_atoms(image)
            image = torch.zeros_like(image)
            arrays = (*self._entries[:2], np.asarray(residual), np.asarray(direction),
                      np.asarray(image))  # fmt: skip
            # in_parts returns when all parts are done, so arrays are still of this round
            in_parts(lambda first, last: loops().add_second_moments(first, last, *arrays), p, least)  # noqa: B023
            (image,) = self.problem.total(image)
            image -= (image * self.atoms).sum(1, keepdim=True) * self.atoms
        return (image * direction).sum(1), project_atoms(image)

    def costs(self):  # -> (p,), (p, p)
        """Return the rise of the objective without each atom, and how other codes then grow."""
        p = len(self.atoms)
        cost, taken_over = self.a.new_zeros(p), self.a.new_zeros(p, p)
        correlation = _products(np.asarray(self.problem.x), self._dictionary[0])
        codes = self.codes.widened(min(p, self.atoms.shape[1] + 8))
        arrays = (*self._dictionary, self._mask, correlation, *self._options, *_EFFORT_OF_COSTS,
                  _USERS, *self._entries, *codes.arrays(), self._gain, np.asarray(cost),
                  np.asarray(taken_over))  # fmt: skip
        least = _least(256 * p * min(_USERS, len(self._entries[1]) / p))
        in_parts(lambda first, last: loops().removals(first, last, *arrays), p, least)
        return self.problem.total(cost, taken_over)
