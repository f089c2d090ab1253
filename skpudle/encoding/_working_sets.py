r"""The exact active set: unfoldings of sparse codes for the price of their entries.

After a few unfoldings codes are sparse, and most of a dense iteration computes zeros. Let ``z_a``
be the codes that iteration ``a`` starts from and ``v(a) = z_a + s D^T (x - D z_a)`` what it
shrinks. As long as codes stay inside a working set ``C`` of their sample, an entry ``j`` outside is
shrunk from

.. math:: v_j(t) = v_j(a) - s \langle d_j, D (z_t - z_a) \rangle,

so it stays zero while :math:`|v_j(a)| + s |d_j| |D (z_t - z_a)| < \text{level}_t` (non-negative
codes: ``v_j`` instead of its modulus). Where that is too coarse, a second dense product, at the end
``b`` of a block of iterations, tells ``v(b)``, and for any ``theta``

.. math::
    v_j(t) = (1 - \theta) v_j(a) + \theta v_j(b) - s \langle d_j, D e_t \rangle, \qquad
    e_t = (z_t - z_a) - \theta (z_b - z_a).

Now only the distance ``D e_t`` of the codes from a chord of their path counts, which is small since
iterations move slowly along nearly straight lines. It costs little: :math:`|D e|^2 = e^T G_{CC} e`.

So the encoder iterates densely until codes are sparse, and then alternates a block of iterations
inside ``C`` with a dense product that certifies them; samples of a block that it does not certify
are done again, densely. Nothing is approximated: the iterations are those of the dense encoder up
to rounding. The adjoint of an iteration inside ``C`` stays there, because the support masks it.
"""

from functools import partial
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from skpudle._precision import own_precision
from skpudle.encoding._plan import Planner, expected_dense_iterations, pays
from skpudle.encoding._runs import Run
from skpudle.encoding._steps import ALL, Steps, StepSums
from skpudle.shrinkage import shrinkage_function

__all__ = ["ActiveUnfolding", "pays"]

_LOOK_BACK = 16  # dense iterations that the backward pass may do inside working sets
_PARTS = 8  # of a block, each certified as a whole


def _support(z):  # -> 1 where z is not 0, in its dtype: several times as fast as a boolean mask
    return z.sign().abs_()


class _DenseIteration(NamedTuple):
    """Iteration ``t`` of the given rows, from the codes ``z`` to ``code``."""

    rows: slice | Tensor
    t: int
    z: Tensor | None
    code: Tensor
    residual: Tensor | None

    def pull(self, delta, sums, level_gradient):
        """Go one iteration back in the derivatives ``delta``, (n_samples, n_components)."""
        # in memory that is used again
        u = torch.sign(self.code, out=sums.scratch[: len(self.code)]).abs_().mul_(delta[self.rows])
        if level_gradient is not None:
            by_atom = (self.code.sign() * u).sum(0)
            level_gradient[self.t] -= by_atom.sum_to_size(level_gradient.shape[1:])
        out = delta if self.rows is ALL else None
        pulled = sums.pull(u, self.z, self.residual, self.rows, out=out)
        if out is None and pulled is not None:
            delta[self.rows] = pulled


class _Encoder:
    """The forward pass: codes, and a record of the iterations that made them."""

    def __init__(self, steps, levels, shrinkage, positive, *, keep, forced):
        self.steps, self.levels, self.keep = steps, levels, keep
        self.shrinkage, self.positive = (shrinkage, positive), positive
        self.shrink_ = shrinkage_function(shrinkage, positive=positive)
        self.planner = Planner(steps, levels, forced=forced)
        self.z, self.t, self.records, self.run = None, 0, [], None
        self.scratch = torch.empty_like(steps.correlation)
        self.room = len(steps.atoms) ** 2  # for matrices of runs, until the backward pass
        # sqrt(s) |d_j|, and what rounding may add to the distance that a sample has moved
        root = steps.size.sqrt()
        self.norms = root * torch.linalg.vector_norm(steps.atoms, dim=1)
        rounding = 16 * torch.finfo(steps.x.dtype).eps * root
        self.rounding = rounding * torch.linalg.vector_norm(steps.x, dim=1)

    def encode(self):  # -> (n_samples, n_components)
        pushed = None
        while self.t < len(self.levels):
            v, step, residual = pushed or self._push(self.z)
            if self._has_working_sets(v):
                pushed = self._iterate_inside(v, step, residual)
            else:
                pushed, stop = None, max(self.t + 1, self.planner.next_look)
                stop = min(stop, len(self.levels))
                self.z = self._iterate_densely(ALL, self.z, v, residual, stop)
                self.t = stop
        return self.z

    def _push(self, z, rows=ALL):
        """Return what is shrunk, the step alone, and ``x - D z`` if it was computed."""
        step, residual = self.steps.push(z, rows, apart=True)
        return (step if z is None else step + z), step, residual

    def _iterate_densely(self, rows, z, v, residual, stop):
        for t in range(self.t, stop):
            if t > self.t:
                v, residual = self.steps.push(z, rows)
            # memory that is new to the process costs more than what is computed in it
            code = self.shrink_(v, self.levels[t], self.scratch[: len(v)])
            if self.keep:
                self.records.append(_DenseIteration(rows, t, z, code, residual))
            z = code
        return z

    def _iterate_inside(self, v, step, residual):
        """Do a block of iterations inside the working sets, and the other samples densely.

        The arguments are what `_push` gives for the first; those after the last are returned if
        they are known.
        """
        run, start = self.run, self.t
        origin = self.z[run.rows].gather(1, run.indices)
        ascent = step[run.rows].gather(1, run.indices)
        begin, codes, ascent = self._iterate_while_certified(origin, ascent, v[run.rows])
        certified, pushed = self._certificates(codes, begin, origin, v[run.rows])
        # as many iterations as are certified for all samples, or more of them for fewer samples
        need = _support(codes[-1]).sum(1).amax()[None].to(torch.int64)
        *counts, need = torch.cat([certified.cumprod(0).sum(1), need]).tolist()
        counts = [len(origin), *counts]
        if begin > start:  # the iterations before were for all samples
            length = counts.count(counts[0])
        else:
            length = self.planner.best_length(counts, run.indices.shape[1])
        entire, whole = counts[length - 1] == counts[0], length == len(codes)
        codes, certified, rows = codes[:length], certified[: length - 1], run.rows
        if not entire:
            good = certified.all(0).nonzero().squeeze(1)
            rows = good if rows is ALL else rows[good]
            codes, origin, ascent = codes[:, good], origin[good], ascent[good]  # begin == start
            run = run.select(good, start, origin[None])
            self._release()
            if self.keep:
                self.records.append(run)
        if self.keep:
            run.keep(codes, ascent, self.levels[begin : begin + length])
        inside = run.spread(codes[-1])
        if rows is ALL:
            z = inside
        else:
            rest = torch.ones(len(v), dtype=torch.bool, device=v.device)
            rest = rest.index_fill_(0, rows, False).nonzero().squeeze(1)
            residual = None if residual is None else residual[rest]
            z = torch.empty_like(self.z).index_copy_(0, rows, inside)
            z[rest] = self._iterate_densely(rest, self.z[rest], v[rest], residual, begin + length)
        self.z, self.t = z, begin + length
        entire &= whole
        if not self.planner.finish(
            self.t, self.t - start, entire, need, run.indices.shape[1], len(inside)
        ):
            self._release()
        return pushed if entire and rows is ALL else None

    # ------------------------------------------------------------------ certificates

    def _iterate_while_certified(self, origin, ascent, v):  # (n, k), (n, k), (n, n_components)
        """Iterate as long as the first bound holds for all samples, and once more.

        Returns where the last block of iterations begins, its codes, (n_iterations, n, k), and the
        step at its begin.
        """
        run, z, stop = self.run, origin, self.t
        while True:
            begin, stop = stop, min(len(self.levels), stop + self.planner.block_length)
            levels, later = self.levels[begin:stop], self.levels[begin + 1 : stop + 1]
            codes = run.iterate(z, ascent, levels)
            if stop == len(self.levels):
                return begin, codes, ascent
            if not self._certify(codes[: len(later)] - origin, later, v).all():
                return begin, codes, ascent
            self.planner.extend()
            if self.keep:
                run.keep(codes, ascent, levels)
            ascent = run.climb(ascent, codes[-1] - z)
            z = codes[-1]

    def _certificates(self, codes, begin, origin, v):
        """Return whether each iteration but the first is certified, (n_iterations - 1, n).

        And the dense step from the last codes if it was needed.
        """
        path, later = codes[:-1] - origin, self.levels[begin + 1 : begin + len(codes)]
        certified = self._certify(path, later, v)
        if len(path) == 0 or certified.all():
            return certified, None
        pushed = self._push(self.run.spread(codes[-1]), self.run.rows)
        by_chord = self._certify_by_chord(path, later, v, codes[-1] - origin, pushed[0])
        return certified | by_chord, pushed

    def _certify(self, path, levels, v):
        """Return for each iteration and sample whether all entries outside stay zero.

        The first bound, at once for all of the given iterations.

        Parameters
        ----------
        path : Tensor of shape (n_iterations, n, k)
            Codes that iterations start from, as distances from those of ``v``.
        levels : Tensor of shape (n_iterations, 1) or (n_iterations, n_components)
            Levels of the same iterations.
        v : Tensor of shape (n, n_components)
            What was shrunk when the path was zero.
        """
        if len(path) == 0:
            return path.new_ones(path.shape[:2], dtype=torch.bool)
        far = self._reach(path).amax(0)
        excess = torch.addcmul(self._magnitude(v), self.norms, far[:, None])
        excess.sub_(self._limits(levels.amin(0)))
        return (excess.amax(1) < 0).expand(path.shape[:2])

    def _certify_by_chord(self, path, levels, v, chord, end):
        """Do the same by the second bound, in several parts.

        ``chord`` is a distance (n, k), and ``end``, (n, n_components), what is shrunk there.
        """
        weight = self.run.weigh(chord[None])[0]
        share = (path * weight).sum(2) / (chord * weight).sum(1)  # theta: D e is orthogonal to it
        share = share.nan_to_num_(0, 0, 0).clamp_(0, 1)
        parts = partial(torch.split, split_size_or_sections=ceil(len(path) / _PARTS))
        reach = self._reach(path - share[..., None] * chord)
        far = torch.stack([part.amax(0) for part in parts(reach)])
        level = torch.stack([part.amin(0) for part in parts(levels)])
        # few entries come near their level at all, and only those are followed
        excess = torch.maximum(self._magnitude(v), self._magnitude(end))
        excess.addcmul_(self.norms, far.amax(0)[:, None]).sub_(self._limits(level.amin(0)))
        rows, atoms = (excess < 0).logical_not_().nonzero().unbind(1)
        v, end, value = v[rows, atoms], end[rows, atoms], -torch.inf
        for extreme in (torch.amin, torch.amax):  # v is linear in theta, its modulus convex
            theta = torch.stack([extreme(part, 0) for part in parts(share)])[:, rows]
            value = self._magnitude(torch.lerp(v, end, theta)).clamp_min_(value)
        value.addcmul_(self.norms[atoms], far[:, rows])
        limit = level if level.shape[1] == 1 else level[:, atoms]
        failures = torch.zeros_like(far).index_add_(1, rows, (value < limit).logical_not_().to(far))
        sizes = torch.tensor([len(part) for part in parts(share)], device=far.device)
        return (failures == 0).repeat_interleave(sizes, dim=0, output_size=len(path))

    def _reach(self, path):
        return self.run.reach(path) + self.rounding[self.run.rows]

    def _magnitude(self, v):
        return v if self.positive else v.abs()

    def _limits(self, level):  # -> (n, n_components), infinite inside the working sets
        limits = level.expand(len(self.run.indices), len(self.norms)).clone()
        return limits.scatter_(1, self.run.indices, torch.inf)

    # ------------------------------------------------------------------ working sets

    def _has_working_sets(self, v):
        run, look = self.run, self.t >= self.planner.next_look
        if run is not None and (run.rows is ALL or not look):
            share = self._magnitude(v[run.rows]) / self._limits(self.levels[self.t])
            # nothing outside becomes active, and not too soon either
            if share.amax() < 0.5 + 0.5 * run.share:
                return True
        if run is not None or look:
            self._release()
            self.run = self._choose_working_sets(v)
        return self.run is not None

    def _release(self):
        # the backward pass gathers the matrices again rather than keep more than a Gram matrix
        if self.run is not None:
            self.room -= self.run.matrix.numel()
            if not self.keep or self.room < 0:
                self.run.release()
        self.run = None

    def _choose_working_sets(self, v):  # -> Run or None
        used = _support(self.z)
        needs = used.sum(1)
        counts = sorted({ceil(len(v) * share) for share in (0.5, 0.75, 0.9, 1)})
        largest = needs.sort().values[[count - 1 for count in counts]].tolist()
        n_rows, size = self.planner.choose(counts, largest, self.t)
        if n_rows == 0:
            return None
        rows, past = ALL, []
        if n_rows < len(v):
            rows = (needs <= largest[counts.index(n_rows)]).nonzero().squeeze(1)
            v, used = v[rows], used[rows]
        code = self.shrink_(v.clone(), self.levels[self.t])
        used = torch.maximum(used, _support(code))
        size = max(size, int(used.sum(1).amax()))
        if n_rows == len(self.z) and self.keep:
            used, size, past = self._look_back(used, size)
        # the entries in use come first, then those that are closest to their level
        rank = (self._magnitude(v) / self.levels[self.t]).nan_to_num_(0, 1e20, -1e20)
        ranks, indices = rank.add_(used, alpha=1e30).topk(size, dim=1, sorted=False)
        indices = indices.sort(1).values  # gathers are faster in order
        codes = [record.z for record in past] + [self.z[rows]]
        stack = torch.stack([code.gather(1, indices) for code in codes])
        run = Run(self.steps, self.shrinkage, rows, indices, self.t - len(past), stack)
        run.share = ranks.amin(1).amax().clamp(0, 1)
        if self.keep:
            self.records[len(self.records) - len(past) :] = [run]
        return run

    def _look_back(self, used, size):
        """Extend working sets to dense iterations before, as far as that pays on the way back."""
        patterns, needs = [used], []
        for record in reversed(self.records[-_LOOK_BACK:]):
            if not isinstance(record, _DenseIteration) or record.rows is not ALL or record.t == 0:
                break
            patterns.append(torch.maximum(patterns[-1], _support(record.z)))
            needs.append(patterns[-1].sum(1).amax())
        needs = torch.stack(needs).tolist() if needs else []
        n_back, size = self.planner.look_back(needs, size, self.t)
        return patterns[n_back], size, self.records[len(self.records) - n_back :]


class ActiveUnfolding(torch.autograd.Function):
    """The encoder of `skpudle.encoding.unfold` from zero codes, by working sets."""

    @staticmethod
    def forward(ctx, atoms, x, levels, step, shrinkage, positive, forced):
        """Return the codes after the last level."""
        keep = any(ctx.needs_input_grad)
        ctx.save_for_backward(atoms, x, levels, step)
        n_dense = expected_dense_iterations(levels)
        ctx.steps = Steps(atoms.detach(), x.detach(), step.detach(), n_dense, adjoint=keep)
        encoder = _Encoder(
            ctx.steps,
            levels.detach(),
            shrinkage,
            positive,
            keep=keep,
            forced=forced,
        )
        z = encoder.encode()
        ctx.records, ctx.shrinkage = encoder.records, shrinkage
        return z.clone() if keep else z  # a record of the result itself would keep the graph alive

    @staticmethod
    @once_differentiable
    @own_precision()
    def backward(ctx, delta):
        """Return the derivatives in the atoms, the data, the levels and the step."""
        _, _, levels, _ = ctx.saved_tensors  # raises if one of them was changed in place
        level_gradient = torch.zeros_like(levels) if ctx.needs_input_grad[2] else None
        by_level = (
            level_gradient if ctx.shrinkage == "soft" else None
        )  # hard: constant in the levels
        delta, sums = delta.clone(memory_format=torch.contiguous_format), StepSums(ctx.steps)
        for record in reversed(ctx.records):
            record.pull(delta, sums, by_level)
            if isinstance(record, Run) and not delta.any():
                break
        atoms, x, step = sums.gradients()
        return atoms, x, level_gradient, step, None, None, None
