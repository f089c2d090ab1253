r"""Working sets: run the unfoldings of sparse codes on a few atoms, with the same result.

After a few unfoldings codes are sparse, and a dense iteration mostly computes zeros. So each sample
gets a *working set* ``C`` of atoms, and iterations compute the codes at these atoms only. A
*certificate* makes sure that all codes outside of ``C`` would be zero.

Iteration ``a`` starts from codes ``z_a`` and shrinks ``v(a) = z_a + s D^T (x - D z_a)``. While the
codes ``z_t`` of later iterations are nonzero only inside ``C``, the entry ``j`` outside of ``C`` is
shrunk from

.. math:: v_j(t) = v_j(a) - s \langle d_j, D (z_t - z_a) \rangle,

so it stays zero while :math:`|v_j(a)| + s |d_j| |D (z_t - z_a)| < \text{level}_t` (for non-negative
codes with ``v_j`` in place of its modulus). The distance is cheap to compute: :math:`|D e|^2 = e^T
G_{CC} e` for a vector ``e`` inside ``C``.

Where this bound is too coarse, a dense product at the end ``b`` of a block of iterations yields
``v(b)``, too. Let ``theta`` be any share of the chord from ``z_a`` to ``z_b``, and :math:`e = (z_t
- z_a) - \theta (z_b - z_a)`. Then :math:`|v_j(t)| \le \max(|v_j(a)|, |v_j(b)|) + s |d_j| |D e|`.
This bound is close, since iterations move slowly along nearly straight lines.

So the encoder iterates densely until codes are sparse. Then it alternates a dense product with a
block of iterations inside ``C``. A block ends with its last certified iteration. The next block is
one iteration longer, or twice as long if the whole block was certified. Nothing is approximated:
codes equal those of dense iterations up to rounding. The adjoint of an iteration inside ``C`` stays
inside ``C``, too, because derivatives are zero where codes are zero.

A `Run` iterates inside the working sets, with codes of shape (n, k) for the k atoms in each.
`WorkingSets` chooses the sets and certifies the blocks.

An update of figure 5 of the paper has 50 rows, 1500 atoms of 1000 features, 100 unfoldings and 20
nonzero codes in a row. On one core it takes .15 of the time of plain automatic differentiation, and
.23 with dense iterations alone; with hard thresholds .08 and .21.
"""

from itertools import pairwise
from math import ceil

import torch

from skpudle.encoding._steps import Iteration


class Run:
    """Record of successive iterations inside the working sets of the samples.

    Parameters
    ----------
    steps : DenseSteps
        The dense steps.
    shrink_ : callable
        The shrinkage.
    indices : Tensor of shape (n, k)
        The working sets.
    start : int
        The first iteration.
    z : Tensor of shape (n, k)
        Codes before the first iteration.
    """

    def __init__(self, steps, shrink_, indices, start, z):
        self.steps, self.indices, self._shrink_ = steps, indices, shrink_
        self.matrix = steps.block(indices)  # - s G, (n, k, k)
        # first the codes before the first iteration, then the codes of each block of iterations,
        # every tensor of shape (n_iterations, n, k)
        self._start, self.codes = start, [z[None]]

    def spread(self, values):  # (n, k) -> (n, n_components)
        """Return values of the working sets in their places among all atoms, 0 elsewhere."""
        return torch.zeros_like(self.steps.correlation).scatter_(1, self.indices, values)

    # ------------------------------------------------------------------ iterations

    def iterate(self, z, ascent, levels):  # (n, k) -> (len(levels), n, k)
        """Return the codes after each of the iterations that start from the codes ``z``.

        ``ascent`` is the first gradient step, without ``z``. The matrix multiplies the distance of
        codes from ``z``, since rounding errors would add up if it multiplied the codes.
        """
        codes, move = z.new_empty(len(levels), *z.shape), torch.zeros_like(z)
        before = z
        for code, level in zip(codes.unbind(), levels.unbind(), strict=True):
            torch.baddbmm(ascent[:, None], move[:, None], self.matrix, out=code[:, None])
            level = level if len(level) == 1 else level[self.indices]
            before = self._shrink_(code.add_(before), level)
            torch.sub(before, z, out=move)
        return codes

    def reach(self, path):  # (n_iterations, n, k) -> (n_iterations, n)
        r"""Return :math:`\sqrt s |D e|` for every vector ``e`` in ``path``, rounded up."""
        images = torch.bmm(path.transpose(0, 1), self.matrix).transpose(0, 1)
        square = (path * images).sum(2).neg_().clamp_min_(0)
        rounding = 8 * path.shape[2] * torch.finfo(path.dtype).eps
        return square.add_(path.square().sum(2), alpha=rounding).sqrt_()

    # ------------------------------------------------------------------ derivatives

    def pull(self, delta, sums, level_gradient, scratch):  # (n, n_components) -> the same
        """Return the derivatives in the codes before the first iteration of this record.

        ``delta`` are the derivatives in the codes after the last iteration. For ``sums`` and
        ``level_gradient`` see `Iteration.pull`; ``scratch`` has no effect.
        """
        if len(self.codes) == 1:
            return delta
        steps, indices, last = self.steps, self.indices, self.codes[-1][-1]
        inner = delta.gather(1, indices)
        finfo = torch.finfo(inner.dtype)
        negligible = finfo.tiny / finfo.eps
        total, products = torch.zeros_like(inner), torch.zeros_like(self.matrix)
        stop = self._start + sum(map(len, self.codes)) - 1
        for earlier, after in reversed(list(pairwise(self.codes))):
            # Derivatives shrink from the last iteration to the first. Tiny ones are set to zero:
            # they change nothing, and denormal numbers are slow.
            inner = inner.masked_fill(inner.abs() < negligible, 0)
            if not inner.any():
                break
            signs = after.sign()
            u = signs.abs()
            for row in reversed(u.unbind()):
                row = row.mul_(inner)[:, None]
                inner = torch.baddbmm(row, row, self.matrix)[:, 0]
            total += u.sum(0)
            # differences from the last codes are small, so their products round less
            moves = torch.cat([earlier[-1:], after[:-1]]) - last
            products.baddbmm_(u.permute(1, 2, 0), moves.permute(1, 0, 2))
            stop -= len(u)
            if level_gradient is not None:
                by_entry = signs.mul_(u).flatten(1)
                by_level = level_gradient[stop : stop + len(u)]
                if by_level.shape[1] == 1:
                    by_level -= by_entry.sum(1, keepdim=True)
                else:
                    by_level.index_add_(1, indices.flatten(), by_entry, alpha=-1)
        total, last, inner = (self.spread(part) for part in (total, last, inner))
        residual = steps.x - last @ steps.atoms if steps.transition is None else None
        sums.add(total, last, residual)
        sums.add_block(products, indices, self.matrix)
        return inner


class _Plan:
    """Decide when to use working sets, and of what size, to save time; codes do not depend on it.

    Parameters
    ----------
    n_components, n_features : int
        Shape of the dictionary.
    forced : bool
        Whether to use working sets wherever possible, even small ones that often fail.
    """

    def __init__(self, n_components, n_features, *, forced):
        self._n_components, self._forced = n_components, forced
        # Largest working set. For p atoms of m features a dense iteration of a sample and its
        # adjoint take 6 p^2 operations; an iteration in a working set of k atoms takes the time of
        # 24 k^2 operations, and its matrix 4 m k^2 operations once. With 50 samples, m = 1000, p =
        # 1500 and 100 unfoldings an update takes 185 ms with a limit of p / 12 (219 with p / 8, 174
        # with p / 30), and with hard shrinkage 122 ms (122 with p / 8, 177 with p / 30). A set has
        # at most m / 2 atoms: Gram matrices of more atoms are nearly singular, and rounding errors
        # add up along directions of small eigenvalues, which products with the atoms avoid.
        self._most = n_components if forced else min(n_features / 2, n_components / 12)
        self.next_look = 1 if forced else 2
        self.block_length = 4

    def size(self, need):  # -> int
        """Return the size of working sets for samples with up to ``need`` nonzero codes."""
        room = 2 if self._forced else 16
        step = 1 if self._forced else 16
        # Atoms that become active later have room: a factor of 1.25, and 16 places. For 50
        # samples, 1500 atoms of 1000 features and 100 unfoldings an update takes 1.5 times as long
        # with 1.1 and 8 places, and 1.1 times with 1.5 and 16 places.
        return min(self._n_components, step * ceil((1.25 * need + room) / step))

    def enters(self, need, t):  # -> bool
        """Return whether to use working sets from iteration ``t`` on, for ``need`` nonzero codes.

        Also set ``next_look``, the iteration at which to ask again.
        """
        self.next_look = t + 1 if self._forced else t + max(1, t // 4)
        return self.size(need) <= self._most

    def goes_on(self, t, length, whole, need, size):  # -> bool
        """Set the length of the next block; return whether to go on with the same working sets.

        Parameters
        ----------
        t : int
            The iteration after the block.
        length : int
            Number of iterations in the block.
        whole : bool
            Whether all iterations of the block were certified.
        need, size : int
            Largest number of nonzero codes of a sample now, and the size of the working sets.
        """
        self.block_length = min(2 * length, 64) if whole else length + 1
        self.next_look = t
        return size < 2 * self.size(need)  # or choose smaller sets


class WorkingSets:
    """Run all iterations, densely or inside working sets as `_Plan` decides.

    Parameters
    ----------
    iterations : Iterations
        Dense iterations of `DenseSteps`; their records are continued.
    forced : bool
        Whether to use working sets wherever possible.
    """

    def __init__(self, iterations, *, forced):
        self._iterations, self._steps = iterations, iterations.steps
        self._levels, self._positive = iterations.levels, iterations.positive
        self._plan, self._run = _Plan(*self._steps.atoms.shape, forced=forced), None
        # sqrt(s) |d_j|, and a bound on the rounding of the distance that a sample has moved
        root = self._steps.size.sqrt()
        self._norms = root * torch.linalg.vector_norm(self._steps.atoms, dim=1)
        rounding = 16 * torch.finfo(self._steps.x.dtype).eps * root
        self._rounding = rounding * torch.linalg.vector_norm(self._steps.x, dim=1)

    def encode(self, z):  # (n, n_components) or None -> (n, n_components)
        """Return the codes after all iterations, which start from ``z`` (None: zeros)."""
        t, pushed = 0, None
        while t < len(self._levels):
            step, residual = pushed or self._steps.push(z, apart=True)
            v, pushed = step if z is None else step + z, None
            if self._has_sets(z, v, t):
                z, t, pushed = self._iterate_inside(z, v, step, t)
            else:
                stop = min(max(t + 1, self._plan.next_look), len(self._levels))
                z, t = self._iterations.run(z, t, stop, pushed=(v, residual)), stop
        return z

    def _iterate_inside(self, z, v, step, t):  # -> codes, int, (step, residual) or None
        """Run a block of iterations inside the working sets, from iteration ``t`` on.

        ``z`` are the codes before the block, ``step`` the gradient step from them, and ``v`` the
        sum of both, each (n, n_components). Return the codes after the block, the number of the
        next iteration, and the gradient step and residual from these codes if they are known.
        """
        run, levels = self._run, self._levels[t : t + self._plan.block_length]
        origin, ascent = z.gather(1, run.indices), step.gather(1, run.indices)
        codes, pushed = run.iterate(origin, ascent, levels), None
        path, size = codes[:-1] - origin, self._magnitude(v)
        length = 1 + self._n_certified(path, levels[1:], size)
        if length < len(codes):
            z = run.spread(codes[-1])
            pushed, chord = self._steps.push(z, apart=True), codes[-1] - origin
            image = torch.bmm(chord[:, None], run.matrix)[:, 0]
            share = (path * image).sum(2) / (chord * image).sum(1)
            # codes at the start of each iteration, from the nearest place of the chord
            path = path - share.nan_to_num_(0, 0, 0).clamp_(0, 1)[..., None] * chord
            size = torch.maximum(size, self._magnitude(pushed[0] + z))
            length = max(length, 1 + self._n_certified(path, levels[1:], size))
        whole, codes = length == len(codes), codes[:length]
        if self._iterations.keep:
            run.codes.append(codes)
        need = int((codes[-1] != 0).sum(1).amax())
        if not self._plan.goes_on(t + length, length, whole, need, run.indices.shape[1]):
            self._run = None
        return run.spread(codes[-1]), t + length, pushed if whole else None

    # ------------------------------------------------------------------ certificates

    def _n_certified(self, path, levels, size):  # -> int
        """Return how many iterations, the first ones, surely leave codes outside of the sets zero.

        Parameters
        ----------
        path : Tensor of shape (n_iterations, n, k)
            For each iteration the codes before it minus the codes that ``size`` belongs to.
        levels : Tensor of shape (n_iterations, 1) or (n_iterations, n_components)
            Levels of these iterations.
        size : Tensor of shape (n, n_components)
            Bound of the moduli of codes before shrinkage, for a path of zero.
        """
        if not len(path):
            return 0
        allowed = self._limits(levels.amin(0)).sub_(size).div_(self._norms).amin(1)
        reach = self._run.reach(path) + self._rounding
        return int((reach < allowed).all(1).cumprod(0).sum())

    def _magnitude(self, v):  # -> what shrinkage compares with levels
        return v if self._positive else v.abs()

    def _limits(self, level):  # -> (n, n_components), infinite inside the working sets
        limits = level.expand(self._steps.correlation.shape).clone()
        return limits.scatter_(1, self._run.indices, torch.inf)

    # ------------------------------------------------------------------ working sets

    def _has_sets(self, z, v, t):  # -> bool
        """Return whether iteration ``t`` runs inside working sets; keep, drop or choose the sets.

        ``z`` are the codes before the iteration, and ``v`` the values that it will shrink.
        """
        if self._run is not None:
            share = self._magnitude(v) / self._limits(self._levels[t])
            # keep the working sets unless an entry outside of them is close to its level
            if share.amax() < 0.5 + 0.5 * self._share:
                return True
            self._run = None
        elif t < self._plan.next_look or z is None:
            return False
        return self._choose(z, v, t)

    def _choose(self, z, v, t):  # -> bool
        """Choose working sets if codes are sparse before and after iteration ``t``.

        Return whether sets were chosen.
        """
        level = self._levels[t]
        if not self._plan.enters(int((z != 0).sum(1).amax()), t):
            return False
        used = (z != 0) | (self._iterations.shrink_(v.clone(), level) != 0)
        need = int(used.sum(1).amax())
        if not self._plan.enters(need, t):
            return False
        size = self._plan.size(need)
        used, past = self._look_back(used, size)
        # entries in use rank first, then entries closest to their level
        rank = (self._magnitude(v) / level).nan_to_num_(0, 1e20, -1e20).add_(used, alpha=1e30)
        ranks, indices = rank.topk(size, dim=1, sorted=False)
        indices = indices.sort(1).values  # gathers are faster in order
        self._share = ranks.amin(1).amax().clamp(0, 1)
        path = [code.gather(1, indices) for code in [*(record.z for record in past), z]]
        start = t - len(past)
        self._run = Run(self._steps, self._iterations.shrink_, indices, start, path[0])
        if self._iterations.keep:
            self._iterations.records.append(self._run)
        if past:
            self._run.codes.append(torch.stack(path[1:]))
        return True

    def _look_back(self, used, size):  # (n, n_components) bool -> the same, list of Iteration
        """Take the last dense iterations off the records, as far as working sets can hold them.

        Return ``used`` together with the atoms that the iterations taken use, and the records of
        these iterations. The backward pass takes twice the time of the forward pass. That it runs
        these iterations inside the working sets saves 7 to 20 % of an update. The first iteration
        stays dense, since all entries of given initial codes have derivatives.
        """
        past, records = [], self._iterations.records
        while records and isinstance(records[-1], Iteration) and records[-1].t > 0:
            wider = used | (records[-1].z != 0)
            if wider.sum(1).amax() > size:
                break
            used, past = wider, [records.pop(), *past]
        return used, past
