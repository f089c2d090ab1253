r"""An epoch of ``skpudle.search`` on a GPU: the steps of ``_epoch``, for many rows at once.

A row has a support of its own. Supports are padded to one size: zero atoms fill the dictionary up,
and the last of them stands at empty places, which have no coordinate to move. Coordinate descent
then steps through the places, the same one of all rows at a time, in a Gram matrix for each
support.

Sums over rows are products of dense codes, whose bits do not depend on the order of threads.

Atoms improve by blocks. For the atoms of a block the objective, with all other atoms fixed, lies
below a quadratic with the curvatures :math:`c_j = \sum_k |A_{jk}|` over the block, and touches it
at the atoms as they are, because :math:`\mathrm{diag}(c) - A` is diagonally dominant. On the sphere
it is smallest at the directions of :math:`c_j d_j + (B - A D)_j`: the objective never rises.

A GPU computes ahead of the host until the host asks for a number. It asks once for a block of rows,
for the length of the longest support, and once more in a refit.
"""

import numpy as np
import torch
from torch.nn.functional import pad, softshrink

from skpudle._operators._atoms import project_atoms
from skpudle._precision import in_own_precision
from skpudle.search._epoch import (
    HEIRS,
    NEAR,
    POWER_ITERATIONS,
    ROOM,
    SHARE,
    SWEEPS_OF_CODES,
    SWEEPS_OF_COSTS,
    TOLERANCE,
    USERS,
    Codes,
)

# Numbers of the largest array of a block of rows. A block has some five arrays of this size: 0.7 GB
# in single precision.
_ENTRIES = 2**25
# Divisor of the number of atoms and zero atoms, for efficient products on a GPU.
_MULTIPLE = 32
# Sweeps over the atoms, and the mean number of other atoms of a block that a row uses. For 3,000 x
# 48 with 256 atoms the objective is 6541 after 30 epochs, 6635 with one sweep, and 6579 with the
# two sweeps of `_epoch`, atom by atom.
_SWEEPS, _OTHERS = 2, 0.5
# Halvings that find the level above which atoms enter, if the room is too small for all of them:
# each raises the level halfway to the largest slope.
_HALVINGS = 5
# Most sweeps of descent to least squares on a support. Descent replaces the direct solution if an
# atom has less than the root of the rounding of its energy outside of the other atoms.
_SWEEPS_OF_REFITS = 100


class DeviceEpoch:
    """Codes for the atoms of an epoch, and statistics of both; see `_epoch.Epoch`.

    Atoms, and numbers per atom, are on the host in float64, as in an `Epoch`; data and codes stay
    on the device, in the dtype of the data.
    """

    n_always_split = 0

    @in_own_precision
    def __init__(self, problem, atoms, codes, *, refit=False):
        self.problem, self.atoms, x = problem, atoms, problem.x
        n, p, m = len(x), *atoms.shape
        n_zero = _MULTIPLE - p % _MULTIPLE
        self._none = p + n_zero - 1
        self._dictionary = pad(atoms.to(x.dtype), (0, 0, 0, n_zero)).to(x.device)
        self._room = min(p, m + ROOM)
        self._objectives = x.new_zeros(n)
        self._weight = problem.weighted(x.new_ones(n))
        self._users = torch.zeros(len(self._dictionary), dtype=torch.int64, device=x.device)
        self._uses = x.new_zeros(len(self._dictionary))
        a, b = x.new_zeros(len(self._dictionary), len(self._dictionary)), x.new_zeros(p + n_zero, m)
        sums, found = x.new_zeros(5), []
        for rows in self._blocks(n, codes.index.shape[1]):
            data, known, *places = self._at(rows, codes)
            support, z, slope, inner = self._solved(data, known, *places, SWEEPS_OF_CODES)
            fitted = self._dense(support, z)
            used, weight = fitted != 0, self._weight[rows]
            self._users += used.sum(0)
            self._uses += weight @ used.to(x.dtype)
            loss = self._losses(data, known, fitted)
            size = z.abs().sum(1)
            self._objectives[rows] = loss + problem.alpha * size
            found.append(_packed(support, z))
            unbiased = torch.zeros_like(loss)
            if refit:
                fitted = self._dense(support, self._refit(inner, slope, z))
                unbiased = self._losses(data, known, fitted)
            of_rows = loss, size, unbiased, used.sum(1).to(x.dtype), torch.ones_like(loss)
            sums += torch.stack([weight @ part for part in of_rows])
            if known is not None:  # filled by D z: majorises the masked objective
                data = torch.where(known > 0, data, fitted @ self._dictionary)
            weighted = fitted if problem.weight is None else fitted * weight[:, None]
            a.addmm_(weighted.mT, fitted)
            b.addmm_(weighted.mT, data)
        self.codes = _joined(found, x)
        self._a, self._b = problem.total(a[:p, :p], b[:p])
        sums = torch.tensor(sums.tolist(), dtype=torch.float64)
        loss, size, unbiased, self.n_entries, self._n = problem.total(sums)[0].tolist()
        self.objective = loss + problem.alpha * size
        self.loss, self.unbiased_loss = loss / self._n, unbiased / self._n

    # ------------------------------------------------------------------ codes

    def _blocks(self, n, longest):  # yields slices
        m = self.atoms.shape[1]
        step = max(1, _ENTRIES // max(len(self._dictionary), (longest + ROOM) * m))
        for first in range(0, n, step):
            yield slice(first, min(first + step, n))

    def _at(self, rows, codes):  # -> data, mask, supports and codes, (n, longest)
        problem, codes = self.problem, codes.of_rows(rows).like(self.problem.x)
        places = torch.arange(codes.index.shape[1], device=codes.index.device)
        empty = places >= codes.count[:, None]
        known = None if problem.mask is None else problem.mask[rows].to(problem.x)
        support = codes.index.long().masked_fill(empty, self._none)
        return problem.x[rows], known, support, codes.value.masked_fill(empty, 0.0)

    def _dense(self, support, z):  # (n, longest) -> (n, atoms and zero atoms)
        return z.new_zeros(len(z), len(self._dictionary)).scatter_(1, support, z)

    def _residuals(self, x, known, dense):  # -> (n, m)
        residuals = torch.addmm(x, dense, self._dictionary, alpha=-1)
        return residuals if known is None else residuals * known

    def _losses(self, x, known, dense):  # -> (n,)
        return 0.5 * self._residuals(x, known, dense).square().sum(1)

    def _solved(self, x, known, support, z, n_sweeps, near=None):
        """Improve codes on one working set each; return supports, codes, slopes, Gram matrices.

        If ``near``, (n, n_near), is given, only these atoms enter.
        """
        alpha, none = self.problem.alpha, self._none
        slope = self._residuals(x, known, self._dense(support, z)) @ self._dictionary.mT
        excess = slope.clone() if self.problem.positive_code else slope.abs()
        excess.scatter_(1, support, 0.0)
        if near is not None:
            excess = torch.zeros_like(excess).scatter_(1, near, excess.gather(1, near))
        best, n_old = excess.amax(1, keepdim=True), (support != none).sum(1)
        level = (SHARE * best).clamp_min((1 + TOLERANCE) * alpha)
        room = self._room + (0 if near is None else near.shape[1]) - n_old
        for _ in range(_HALVINGS):  # the room is too small for all near the best
            n_new = (excess >= level).sum(1)
            level = torch.where((n_new > room)[:, None], (level + best) / 2, level)
        n_new = n_new.minimum(room.clamp_min(0))
        most, longest = torch.stack([n_new.amax(), (n_old + n_new).amax()]).tolist()
        new = excess.topk(most).indices
        places = torch.arange(most, device=x.device)
        new = new.masked_fill(places >= n_new[:, None], none).sort(1).values
        support = torch.cat([support, new], 1)
        order = (support == none).byte().argsort(dim=1, stable=True)[:, :longest]
        support, z = support.gather(1, order), pad(z, (0, most)).gather(1, order)
        slope, members = slope.gather(1, support), self._dictionary[support]
        inner = members @ (members if known is None else members * known[:, None]).mT
        self._descend(inner, slope, z, alpha, n_sweeps)
        return support, z, slope, inner

    def _descend(self, inner, slope, z, alpha, n_sweeps):
        """Minimise by coordinate descent, in place; ``slope`` is updated with the residuals."""
        curvature = inner.diagonal(dim1=1, dim2=2)
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        positive = self.problem.positive_code
        slope -= alpha * positive
        for _ in range(n_sweeps):
            for i in range(z.shape[1]):
                slope.addcmul_(inner[:, i], z[:, i : i + 1])  # leaves the coordinate out
                target = slope[:, i].relu() if positive else softshrink(slope[:, i], alpha)
                torch.mul(target, inverse[:, i], out=z[:, i])
                slope.addcmul_(inner[:, i], z[:, i : i + 1], value=-1)
        slope += alpha * positive

    def _refit(self, inner, slope, z):  # -> (n, longest)
        """Return least squares on the supports of codes, non-negative if they are."""
        used = z != 0
        inner, slope = inner * (used[:, :, None] & used[:, None]), slope * used
        energy = inner.diagonal(dim1=1, dim2=2)
        factor, failed = torch.linalg.cholesky_ex(inner + torch.diag_embed((~used).to(z)))
        solution = z + torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
        least = torch.finfo(z.dtype).eps ** 0.5 * energy
        solved = (factor.diagonal(dim1=1, dim2=2).square() > least).all(1) & (failed == 0)
        if self.problem.positive_code:
            solved &= (solution >= 0).all(1)
        (rest,) = (~solved).nonzero(as_tuple=True)  # waits for the device, to sweep few rows
        z = z[rest]
        self._descend(inner[rest], slope[rest], z, 0.0, _SWEEPS_OF_REFITS)
        solution[rest] = z
        return solution

    def restrict(self, kept):  # (p,) bool -> Codes
        """Return the codes of the kept atoms."""
        return self.codes.restrict(kept)

    # ------------------------------------------------------------------ atoms

    @property
    def b(self):  # -> (p, m)
        """``Z^T X``, of all processes."""
        return self._b.cpu().double()

    def products(self, first, last):  # -> (last - first, p)
        """Return rows of ``A = Z^T Z``."""
        return np.asarray(self._a[first:last].cpu().double())

    def energies(self):  # -> (p,)
        """Return the sum of squares of the codes of each atom, of all processes."""
        return self._a.diagonal().cpu().double()

    @property
    def uses(self):  # -> (p,)
        """The number of samples that use each atom, of this process; a sum of weights."""
        return self._uses[: len(self.atoms)].cpu().double()

    @in_own_precision
    def improved_atoms(self, earlier=None):
        """Return the atoms after sweeps over blocks; see `_epoch.Epoch.improved_atoms`."""
        a, b, p = self._a, self._b, len(self.atoms)
        if earlier is not None:
            a = a + earlier.matrix.to(a.dtype).to(a.device)
            b = b + earlier.b.to(b.dtype).to(b.device)
        atoms = self._dictionary[:p].clone()
        size = max(1, int(_OTHERS * p * self._n / max(self.n_entries, 1)))
        for first in [*range(0, p, size)] * _SWEEPS:
            part = slice(first, first + size)
            curvature = a[part, part].abs().sum(1, keepdim=True)
            target = torch.addmm(b[part], a[part], atoms, alpha=-1).addcmul_(curvature, atoms[part])
            if self.problem.positive_atoms:
                target.clamp_min_(0)
            norm = torch.linalg.vector_norm(target, dim=1, keepdim=True)
            atoms[part] = torch.where(norm > 0, target / norm, atoms[part])
        return project_atoms(atoms.cpu().double())

    def move_atoms(self):
        """Return None: rows have no neighbours that an atom could move to."""
        return None

    @in_own_precision
    def common_directions(self, seed):  # -> (p,), (p, m)
        """Return for each atom the largest energy of its users' residuals, and its direction."""
        atoms, blocks = self._dictionary, []
        for rows in self._blocks(len(self.problem.x), self.codes.index.shape[1]):
            data, known, support, z = self._at(rows, self.codes)
            residuals = self._residuals(data, known, self._dense(support, z))
            if self.problem.weight is not None:
                residuals = residuals * self._weight[rows, None].sqrt()
            blocks.append((support, residuals))
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(self.atoms.shape, generator=generator, dtype=torch.float64)
        image = pad(image.to(atoms.dtype), (0, 0, 0, len(atoms) - len(image))).to(atoms.device)
        for _ in range(POWER_ITERATIONS):
            direction = project_atoms(image)
            image = torch.zeros_like(image)
            for support, residuals in blocks:
                users = self._dense(support, torch.ones_like(support, dtype=image.dtype))
                image.addmm_((users * (residuals @ direction.mT)).mT, residuals)
            (image,) = self.problem.total(image)
            image = image - (image * atoms).sum(1, keepdim=True) * atoms
        p = len(self.atoms)
        energy = (image * direction).sum(1)[:p].cpu().double()
        return energy, project_atoms(image[:p].cpu().double())

    def _near(self):  # -> (p, n)
        """Return the atoms most like each."""
        p, near = len(self.atoms), []
        for part in self._blocks(p, 0):
            cosine = self._dictionary[:p][part] @ self._dictionary[:p].mT
            order = cosine if self.problem.positive_code else cosine.abs()
            order.diagonal(part.start).fill_(-torch.inf)
            near.append(order.topk(min(p - 1, NEAR)).indices)
        return torch.cat(near)

    def _draw_users(self):  # -> (p * USERS,) rows, and their weights
        """Return evenly spaced users of each atom, with weight zero where an atom has too few."""
        _, _, support, z = self._at(slice(None), self.codes)
        p, longest = len(self.atoms), max(support.shape[1], 1)
        order = pad(support.flatten().argsort(stable=True), (0, 1))
        n_users = self._users[:p, None]
        n_asked = n_users.clamp_max(USERS)
        number = torch.arange(USERS, device=order.device)
        place = n_users.cumsum(0) - n_users + number * n_users // n_asked.clamp_min(1)
        rows = order[place.clamp_max(len(order) - 1)] // longest
        weights = (number < n_asked) * (n_users.to(z.dtype) / n_asked.clamp_min(1))
        rows = rows.flatten()
        return rows, weights.flatten() * pad(self._weight, (0, 1))[rows]

    @in_own_precision
    def costs(self):  # -> (p,), (p, n)
        """Return the rise of the objective without each atom, and the atoms that take over most."""
        near, (users, weights), x = self._near(), self._draw_users(), self.problem.x
        who = torch.arange(len(near), device=x.device).repeat_interleave(USERS)
        rise, growth = x.new_zeros(len(who)), x.new_zeros(len(who), near.shape[1])
        n_pairs = len(who) if len(x) else 0  # a process may have no rows
        for part in self._blocks(n_pairs, self.codes.index.shape[1]):
            data, known, support, z = self._at(users[part], self.codes)
            before, out = self._dense(support, z.abs()), support == who[part, None]
            places = support.masked_fill(out, self._none), z.masked_fill(out, 0.0)
            nearest = near[who[part]]
            support, z, *_ = self._solved(data, known, *places, SWEEPS_OF_COSTS, nearest)
            loss = self._losses(data, known, self._dense(support, z))
            after = self._dense(support, z.abs())
            objective = loss + self.problem.alpha * z.abs().sum(1)
            rise[part] = objective - self._objectives[users[part]]
            growth[part] = (after - before).gather(1, nearest)
        cost = (weights * rise).view(-1, USERS).sum(1)
        taken_over = (weights[:, None] * growth).view(len(near), USERS, -1).sum(1)
        cost, taken_over = self.problem.total(cost, taken_over)
        best = taken_over.topk(min(HEIRS, near.shape[1])).indices
        return cost.cpu().double(), near.gather(1, best).cpu()


def _packed(support, z):  # -> count, index and value, with the entries first
    order = (z == 0).byte().argsort(dim=1, stable=True)
    return (z != 0).sum(1), support.gather(1, order).int(), z.gather(1, order)


def _joined(blocks, x):  # of (count, index, value) -> Codes
    if not blocks:
        return Codes.none(len(x)).like(x)
    longest = max(index.shape[1] for _, index, _ in blocks)
    count, index, value = zip(*blocks, strict=True)
    wide = ([pad(t, (0, longest - t.shape[1])) for t in parts] for parts in (index, value))
    return Codes(torch.cat(count), *map(torch.cat, wide))
