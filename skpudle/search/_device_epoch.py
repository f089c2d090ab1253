r"""An epoch of the search in batched torch, for a GPU; `_epoch` has the same epoch for a CPU.

The tests compare both epochs on a CPU. Shapes: ``n`` rows, ``m`` features, ``p`` atoms.

Codes: each row has a *support*, the atoms at which its codes may differ from zero. Supports are
padded to one length: padding is the number ``p`` of a zero atom, which is appended to the
dictionary as its last row and has a code of zero. Coordinate descent then steps through the columns
of the padded supports, one column for all rows at a time, with a Gram matrix for each support. Sums
over rows are products of dense codes, whose bits do not depend on the order of threads.

Atoms improve block by block. With the atoms outside of a block fixed, the objective lies below a
quadratic function with the curvatures :math:`c_j = \sum_k |A_{jk}|`, summed over the block, since
:math:`\mathrm{diag}(c) - A` is diagonally dominant. Both are equal at the present atoms. On the
sphere the quadratic function is smallest at the directions of :math:`c_j d_j + (B - A D)_j`. So the
objective never rises. (:math:`A = Z^T Z` and :math:`B = Z^T X` are sums over rows.)
"""

import torch
from torch.nn.functional import pad, softshrink

from skpudle._compilation import blocks_of_rows
from skpudle._operators._atoms import project_atoms
from skpudle._precision import in_own_precision
from skpudle.search import _epoch as rules

# _SWEEPS: the number of sweeps over the atoms in an epoch. _ATOMS_PER_ROW sets the size of the
# blocks in which atoms improve: a row has this number of nonzero codes at the atoms of a block on
# average, so few that the atoms of a block hardly affect each other. For 3,000 rows of 48 features
# and 256 atoms the objective after 30 epochs is 6541 with two sweeps over blocks, 6635 with one
# sweep over blocks, and 6579 with two sweeps over single atoms as in `_epoch`.
_SWEEPS = 2
_ATOMS_PER_ROW = 0.5


class DeviceEpoch(rules.Coded):
    """Rows on a GPU with codes for given atoms, and sums that improve the atoms.

    The class has the members of `_epoch.Coded`, and `energies`, `residuals` and `improved_atoms` of
    `_epoch.Epoch`. Results per atom are on the CPU in float64, as in an `Epoch`. Data and codes
    stay on the device, in the dtype of the data.

    Parameters
    ----------
    problem : Problem
        The rows, on the device, and the objective.
    atoms : Tensor of shape (p, m), float64, on the CPU
        Atoms of norm 1.
    codes : Codes
        Codes to begin with.
    refit : bool, default=False
        Whether atoms adapt to least squares on the supports of the codes, instead of to the codes.
    """

    @in_own_precision
    def __init__(
        self,
        problem,
        atoms,
        codes,
        *,
        refit=False,
    ):
        self.problem = problem
        self.atoms = atoms
        x = problem.x
        n = len(x)
        p, m = atoms.shape
        self._dictionary = pad(atoms.to(x.dtype), (0, 0, 0, 1)).to(x.device)
        self._support, self._z = codes.like(x).padded(p)
        self._weight = problem.weigh(x.new_ones(n))
        # columns: half of the squared residual, the sum of the moduli of codes, their number, and 1
        of_rows = x.new_ones(n, 4)
        self._roots = self._weight.sqrt()[:, None]
        # `value` and `index` are the new codes, padded. `a` is Z^T Z, and `b` is at first Z^T R for
        # the residuals R, both with a last row for the padding atom.
        value = x.new_zeros(n, self._z.shape[1] + min(p, m + rules.ROOM))
        self._residual = torch.empty_like(x)
        index = value.int()
        uses = x.new_zeros(p + 1)
        a = x.new_zeros(p + 1, p + 1)
        b = x.new_zeros(p + 1, m)
        for rows in self._blocks(n):
            support, z, slope, gram = self._solve(
                rows, self._support[rows], self._z[rows], rules.SWEEPS_OF_CODES
            )
            index[rows, : z.shape[1]] = support.int()
            value[rows, : z.shape[1]] = z
            fitted, residual, loss = self._residuals_of(rows, support, z)
            of_rows[rows, :3] = torch.stack([loss, z.abs().sum(1), (z != 0).sum(1)], 1)
            uses += self._weight[rows] @ (fitted != 0).to(x.dtype)
            if refit:
                z = self._refit(gram, slope, z)
                fitted, residual, _ = self._residuals_of(rows, support, z)
            weighted = fitted * self._weight[rows, None]
            self._residual[rows] = residual
            a += weighted.mT @ fitted
            b += weighted.mT @ residual
        self.codes = rules.Codes.of_padded(index, value)
        self._support, self._z = self.codes.padded(p)
        # Here `b` is Z^T (X - Z D), with zero residuals at missing entries. Adding Z^T Z D gives
        # Z^T X, where missing entries of X are filled in by Z D. The atoms then minimise the
        # objective of the filled-in data. It bounds the objective of the known entries from above
        # and is equal to it at the present atoms, so the objective of the known entries falls, too.
        b += a @ self._dictionary
        self._a, self._b = problem.total(a[:p, :p], b[:p])
        self.uses = uses[:p].cpu().double()
        self._objectives = of_rows[:, 0] + problem.alpha * of_rows[:, 1]
        self._measure((self._weight @ of_rows).cpu().double())

    # ------------------------------------------------------------------ codes

    def _blocks(self, n):  # -> list of Tensor (n_block,)
        # Return the numbers of the rows 0 to n - 1, cut into blocks to limit memory; without rows
        # there is no block. The atoms of the support of a row have `width` features together.
        width = (self._z.shape[1] + rules.ROOM) * self.atoms.shape[1]
        # 2**25 numbers, because a block allocates about five arrays of this size: 0.7 GB in float32
        blocks = blocks_of_rows(n, max(len(self._dictionary), width), 2**25)
        return [torch.arange(n, device=self._z.device)[rows] for rows in blocks if n]

    def _dense(self, support, z):  # (n, longest) each -> (n, p + 1)
        # Return padded codes in dense form. The last column, of the padding atom, is zero.
        return z.new_zeros(len(z), len(self._dictionary)).scatter_(1, support, z)

    def _residuals_of(self, rows, support, z):  # -> (n, p + 1), (n, m), (n,)
        # Return dense codes, residuals, and half the sum of squared residuals of the rows with the
        # numbers `rows` (n,), for their padded codes `support` and `z`, both (n, longest).
        dense = self._dense(support, z)
        mask = self.problem.mask
        residual = self.problem.x[rows] - dense @ self._dictionary
        residual = residual if mask is None else residual * mask[rows].to(residual)
        return dense, residual, residual.square().sum(1) / 2

    def _solve(
        self,
        rows,
        support,
        z,
        n_sweeps,
        near=None,
    ):
        """Improve the codes of rows by coordinate descent, each on its support and new atoms.

        Atoms enter a support if the modulus of their slope (product with the residual) violates the
        optimality condition and is at least 0.6 of the largest modulus outside of the support.

        Parameters
        ----------
        rows : Tensor of shape (n,)
            Numbers of the rows.
        support, z : Tensor of shape (n, longest)
            Padded supports and codes to begin with.
        n_sweeps : int
            Number of sweeps over the supports.
        near : Tensor of shape (n, n_near), default=None
            The atoms that may enter the support of each row; None is all atoms.

        Returns
        -------
        support, z, slope : Tensor of shape (n, longest)
            New supports, codes, and the slopes at the atoms of the supports; ``longest`` is the
            size of the largest new support.
        gram : Tensor of shape (n, longest, longest)
            The products of the atoms of each support with each other, over known entries.
        """
        p, m = self.atoms.shape
        mask = self.problem.mask
        alpha = self.problem.alpha
        slope = self._residuals_of(rows, support, z)[1] @ self._dictionary.mT
        modulus = slope if self.problem.positive_code else slope.abs()
        modulus = modulus.scatter(1, support, 0.0)
        if near is not None:
            modulus = torch.zeros_like(modulus).scatter_(
                1, near, modulus.gather(1, near)
            )
        level = rules.MIN_FRACTION * modulus.amax(1, keepdim=True)
        n_old = (support != p).sum(1)
        # the largest number of atoms in a support; `p` is the number of the padding atom
        room = min(p, m + rules.ROOM) + (0 if near is None else near.shape[1])
        # Atoms whose slopes violate the optimality condition and reach the fraction `MIN_FRACTION`
        # of the largest slope enter a support, the largest slope first, as far as there is room.
        enters = modulus >= level.clamp_min((1 + rules.TOLERANCE) * alpha)
        n_new = enters.sum(1).minimum((room - n_old).clamp_min(0))
        most, longest = torch.stack([n_new.amax(), (n_old + n_new).amax()]).tolist()
        empty = torch.arange(most, device=z.device) >= n_new[:, None]
        new = modulus.topk(most).indices.masked_fill(empty, p).sort(1).values
        support = torch.cat([support, new], 1)
        # padding moves to the end of each support
        order = (support == p).byte().argsort(dim=1, stable=True)[:, :longest]
        support = support.gather(1, order)
        z = pad(z, (0, most)).gather(1, order)
        slope = slope.gather(1, support)
        of_support = self._dictionary[support]
        known_part = of_support if mask is None else of_support * mask[rows, None].to(z)
        gram = of_support @ known_part.mT
        z = self._descend(gram, slope, z, alpha, n_sweeps)
        return support, z, slope, gram

    def _descend(
        self,
        gram,
        slope,
        z,
        alpha,
        n_sweeps,
    ):  # -> z
        """Minimise the lasso over the codes of all rows at once, by coordinate descent in place.

        ``gram`` (n, longest, longest) has the products of the atoms of each support with each
        other, and ``slope`` (n, longest) the products of these atoms with the row's residual.
        ``slope`` and the codes ``z`` (n, longest) are updated. Return ``z``.
        """
        curvature = gram.diagonal(dim1=1, dim2=2)
        positive = self.problem.positive_code
        inverse = torch.where(curvature > 0, 1 / curvature, 0.0)
        for i in [*range(z.shape[1])] * n_sweeps:
            # slopes as if this code were zero
            slope.addcmul_(gram[:, i], z[:, i : i + 1])
            if positive:
                target = (slope[:, i] - alpha).relu()
            else:
                target = softshrink(slope[:, i], alpha)
            torch.mul(target, inverse[:, i], out=z[:, i])
            slope.addcmul_(gram[:, i], z[:, i : i + 1], value=-1)
        return z

    def _refit(self, gram, slope, z):  # -> (n, longest)
        """Return least squares on the supports of codes ``z``, non-negative if codes have to be.

        ``gram`` (n, longest, longest) has the products of the atoms of each support with each
        other, and ``slope`` (n, longest) their products with the row's residual. A Cholesky factor
        solves for all rows at once; rows for which it fails get the result of coordinate descent.
        ``z`` is overwritten.
        """
        used = z != 0
        gram = gram * (used[:, :, None] & used[:, None])
        slope = slope * used
        # ones on the diagonal for atoms without a code, so that the matrix can be factorised
        unused = torch.diag_embed((~used).to(z))
        factor, failed = torch.linalg.cholesky_ex(gram + unused)
        exact = z + torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
        # The diagonal of a factor has for each atom the norm of its component orthogonal to the
        # atoms before it in the support. Where the least norm is near zero, the atoms are nearly
        # collinear, and rounding errors make the solution useless.
        least = factor.diagonal(dim1=1, dim2=2).amin(1)
        solved = (least > torch.finfo(z.dtype).eps ** 0.25) & (failed == 0)
        solved &= (exact >= (0.0 if self.problem.positive_code else -torch.inf)).all(1)
        descended = self._descend(gram, slope, z, 0.0, rules.SWEEPS_OF_REFITS)
        return torch.where(solved[:, None], exact, descended)

    # ------------------------------------------------------------------ atoms

    def energies(self):  # -> (p,)
        """Return the sum of the squared codes of each atom, over the rows of all processes."""
        return self._a.diagonal().cpu().double()

    @in_own_precision
    def improved_atoms(self, earlier=None):  # -> (p, m) of norm 1, float64, on the CPU
        """Return better atoms for the codes, the second half of an epoch.

        Two sweeps over blocks of atoms take steps that never raise the objective: each step goes to
        the minimum of a quadratic bound of the objective on the sphere. In a stream ``earlier``, a
        `_states.Held`, adds a penalty on steps of the atoms away from the atoms of earlier rows.
        """
        a = self._a
        b = self._b
        atoms = self._dictionary[:-1].clone()
        if earlier is not None:
            # the penalty is half of `energy` times the squared step of each atom
            energy = earlier.energy.to(a)
            a = a + energy.diag()
            b = b + energy[:, None] * earlier.atoms.to(b)
        # Of this number of atoms a row uses one on average; `size` is the number in a block.
        n_atoms_per_code = len(atoms) * self._n / max(self.n_entries, 1)
        size = max(1, int(_ATOMS_PER_ROW * n_atoms_per_code))
        for first in [*range(0, len(atoms), size)] * _SWEEPS:
            part = slice(first, first + size)
            curvature = a[part, part].abs().sum(1, keepdim=True)
            target = b[part] - a[part] @ atoms + curvature * atoms[part]
            if self.problem.positive_atoms:
                target = target.clamp_min(0.0)
            norm = torch.linalg.vector_norm(target, dim=1, keepdim=True)
            atoms[part] = torch.where(norm > 0, target / norm, atoms[part])
        return project_atoms(atoms.cpu().double())

    @in_own_precision
    def _second_moments(self, residuals, direction):  # (n, m), (p, m) -> (p, m)
        """Return for each atom the sum of ``r_i (r_i . v)`` over the rows ``i`` that use the atom.

        It is one power iteration of `common_directions`. ``r_i`` is the residual of row ``i``, and
        ``v`` the row of ``direction`` for the atom. The result is on the CPU in float64.
        """
        direction = direction.to(self._dictionary)
        moments = torch.zeros_like(direction)
        for rows in self._blocks(len(self._z)):
            of_rows = residuals[rows]
            users = self._dense(self._support[rows], torch.ones_like(self._z[rows]))
            products = users[:, :-1] * (of_rows @ direction.mT)
            moments += products.mT @ of_rows
        return moments.cpu().double()

    def residuals(self):  # -> (n, m)
        """Return the residuals for the codes that atoms adapt to, times the roots of weights."""
        return self._residual * self._roots

    @in_own_precision
    def _removals(self):  # -> (p, 1 + n), (p, n)
        """Estimate for `costs` what would change without each atom, in the rows of this process.

        At most 32 evenly spaced users of an atom (rows with a nonzero code at the atom) stand for
        all its users. The first result has for each atom the rise of the objective without it, then
        the growth of the moduli of codes at the ``n`` atoms most like it. The second result has the
        numbers of these ``n`` atoms.
        """
        atoms = self._dictionary[:-1]
        # numbers of the users that stand for all users of an atom
        tried = torch.arange(rules.USERS, device=self._z.device)
        # Sort the entries of all padded supports by atom: entry e belongs to the row e // longest.
        # The users of an atom are then a slice of `order`, and evenly spaced users are drawn,
        # at the places `place` in `order`.
        order = pad(self._support.flatten().argsort(stable=True), (0, 1))
        n_users = self._support.flatten().bincount(minlength=len(self._dictionary))
        n_users = n_users[:-1, None]
        n_tried = n_users.clamp(1, rules.USERS)
        place = n_users.cumsum(0) - n_users + tried * n_users // n_tried
        entries = order[place.clamp_max(len(order) - 1)].flatten()
        users = entries // max(self._z.shape[1], 1)
        weights = ((tried < n_users) * n_users / n_tried).flatten().to(atoms)
        weights *= pad(self._weight, (0, 1))[users]
        cosine = atoms @ atoms.mT
        if not self.problem.positive_code:
            cosine = cosine.abs()
        cosine.fill_diagonal_(-torch.inf)
        near = cosine.topk(min(len(atoms) - 1, rules.NEAR)).indices
        removed = torch.arange(len(near), device=near.device).repeat_interleave(
            rules.USERS
        )
        # `change` has a row for each pair of a removed atom and one of its users. Columns: the rise
        # of the objective of the user without the atom, then the growth of the moduli of the user's
        # codes at the atoms in `near`.
        change = atoms.new_zeros(len(removed), 1 + near.shape[1])
        # no blocks in a process without rows, where `users` has no valid numbers
        for part in self._blocks(len(removed) if len(self._z) else 0):
            rows = users[part]
            nearest = near[removed[part]]
            support = self._support[rows]
            z = self._z[rows]
            before = self._dense(support, z.abs())
            is_removed = support == removed[part, None]
            support, z, _, _ = self._solve(
                rows,
                support.masked_fill(is_removed, len(near)),
                z.masked_fill(is_removed, 0.0),
                rules.SWEEPS_OF_COSTS,
                nearest,
            )
            after, _, loss = self._residuals_of(rows, support, z)
            objectives = loss + self.problem.alpha * z.abs().sum(1)
            change[part, 0] = objectives - self._objectives[rows]
            change[part, 1:] = (after.abs() - before).gather(1, nearest)
        change = (weights[:, None] * change).view(len(near), rules.USERS, -1).sum(1)
        return change.cpu().double(), near.cpu()
