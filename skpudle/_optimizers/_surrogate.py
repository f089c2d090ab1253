"""The surrogate optimiser: minimise a quadratic model of the loss."""

import torch

from skpudle._optimizers._gradient import Optimizer, copy_of, row_major

_ATOMS_AT_ONCE = 128  # atoms to move at once


class SurrogateOptimizer(Optimizer):
    r"""Minimise a quadratic model of the loss that every batch refines.

    A batch of n samples with codes ``z`` and mean gradient ``g`` at the current atoms adds
    :math:`A_b = z^T z`, the curvature of the decoder, and :math:`B_b = A_b D - n g` to
    exponentially forgotten sums ``A`` and ``B``; the new atoms minimise
    :math:`\frac12 \text{tr}(D^T A D) - \text{tr}(B^T D) + \frac\rho2 |D - D_\text{now}|^2` inside
    the constraints. For the gradient ``dec`` :math:`B_b = z^T x`, and with converged codes this
    is online dictionary learning.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Initial atoms; they are projected and copied.
    project : callable
        Returns the nearest atoms inside the constraints.
    forgetting : float, default=15.0
        In the long run update k keeps the share ``(1 - 1/k)**forgetting`` of the sums, about the
        last 7 % of all samples. Older codes belong to worse atoms and would hold the atoms back.
        Too few samples tell too little, so the exponent is the number of samples so far over four
        times the number of atoms, from 3 up to this. While the loss falls, less is kept: when it
        has fallen to a quarter, older sums have half the weight.
    anchor : float, default=0.5
        Weight of the current atoms, :math:`\rho`, as a number of samples that use an atom: atoms
        with fewer uses so far move little. A use weighs its mean energy in the model.
    n_inner : int, default=3
        Projected gradient steps on the model for each block of 128 atoms in an update. They cost
        little next to the one product with the curvature that all blocks share.
    curvature : float, default=1.0
        Second derivative of the loss in the reconstruction; 1 for least squares.

    References
    ----------
    J. Mairal, F. Bach, J. Ponce and G. Sapiro, "Online Dictionary Learning for Sparse Coding", ICML
    2009, section 3.4 for the forgetting.
    """

    def __init__(self, atoms, project, *, forgetting=15.0, anchor=0.5, n_inner=3, curvature=1.0):
        self.atoms = torch.nn.Parameter(row_major(project(atoms.contiguous())))
        self._project, self._forgetting, self._anchor = project, forgetting, anchor
        self._n_inner, self._per_curvature = n_inner, 1 / curvature
        self._state = self.fresh_state()

    @torch.no_grad()
    def update(self, gradient, codes, *, weight=None, loss=None, total=None):
        """Refine the model by a batch, then minimise it, starting at the current atoms.

        The gradient is a mean over the samples of the batch, which may have weights. Processes that
        share a batch pass ``total``, a function that sums tensors over all of them.
        """
        atoms, state = self.atoms, self._state
        n_samples, n_used = codes.new_full((), len(codes)), (codes != 0).sum()
        if weight is not None:
            n_samples, n_used = weight.sum(), (weight[:, None] * (codes != 0)).sum()
            codes = codes * weight[:, None].sqrt()
        energy = codes.square().sum()
        curvature = None
        if total is not None:
            n_samples, n_used, energy, curvature = total(
                n_samples, n_used, energy, codes.mT @ codes
            )
        keep = self._age(n_samples, loss)
        state["uses"] = keep * state["uses"] + torch.stack([energy, n_used.to(energy)])
        state["curvature"].mul_(keep)
        state["pull"].mul_(keep).sub_(n_samples * gradient, alpha=self._per_curvature)
        if curvature is None:
            state["curvature"].addmm_(codes.mT, codes)
            state["pull"].addmm_(codes.mT, codes @ atoms)
        else:
            state["curvature"] += curvature
            state["pull"].addmm_(curvature, atoms)
        one_use = (state["uses"][0] / state["uses"][1]).nan_to_num(0.0)  # NaN without uses
        atoms.copy_(self._minimize(atoms, self._anchor * one_use))

    def _age(self, n_samples, loss):
        """Return the share of the sums to keep; small batches keep more."""
        state = self._state
        state["n_updates"] += 1
        state["n_samples"] = state["n_samples"] + n_samples
        n_updates = int(state["n_updates"])
        share = n_samples * n_updates / state["n_samples"]
        # least samples per atom in the model, up to a third of all samples
        exponent = state["n_samples"] / (4 * len(self.atoms))
        exponent = exponent.clamp_min(3.0).clamp_max(self._forgetting)
        keep = (1 - 1 / n_updates) ** (share * exponent)
        if loss is None:
            return keep
        loss = loss.clamp_min(0)  # rounding may leave a zero deviance negative
        before = torch.where(state["trend"].isnan(), loss, state["trend"])
        # weight of the latest batch in the running mean of the loss
        mean = torch.lerp(before[0], loss, 0.3)
        state["trend"] = torch.stack([mean, torch.minimum(mean, before[1])])
        # sums from codes of a larger loss weigh less, by the root of the ratio of losses
        return keep * (state["trend"][1] / before[1]).nan_to_num(1.0).sqrt()

    def _minimize(self, now, weight):
        """Minimise over the blocks of atoms once, each with the new values of earlier blocks."""
        atoms, curvature, pull = now.clone(), self._state["curvature"], self._state["pull"]
        for first in range(0, len(atoms), _ATOMS_AT_ONCE):
            rows = slice(first, first + _ATOMS_AT_ONCE)
            inner = curvature[rows, rows].clone()
            inner.diagonal().add_(weight)
            slope = torch.addmm(pull[rows], curvature[rows], atoms, alpha=-1)
            # A <= c diag(A) for c at least the largest eigenvalue of A scaled to unit diagonal,
            # which row sums and the Frobenius norm bound. So every atom has its own step, and a
            # scalar per atom leaves its projection exact.
            diagonal = inner.diagonal().clamp_min(torch.finfo(now.dtype).tiny)
            scale = diagonal.rsqrt()
            scaled = (scale[:, None] * inner * scale).abs()
            bound = torch.minimum(scaled.sum(1).max(), torch.linalg.matrix_norm(scaled))
            bound = bound.clamp_min(1)  # the diagonal has 1, except without codes
            steps = (1 / (bound * diagonal))[:, None]
            block = before = atoms[rows]
            for i in range(self._n_inner):
                if i:
                    slope.addmm_(inner, block - before, alpha=-1)
                before, block = block, self._project(torch.addcmul(block, steps, slope))
            atoms[rows] = block
        return atoms

    @torch.no_grad()
    def replace(self, rows, atoms):  # (n_rows,) integers, (n_rows, n_features)
        """Put new atoms in the given rows and clear the model of the old ones."""
        self.atoms[rows] = self._project(atoms)
        self._state["curvature"][rows] = 0
        self._state["curvature"][:, rows] = 0
        self._state["pull"][rows] = 0

    def halve_learning_rate(self):
        """Double the weight of the current atoms after training has diverged."""
        self._anchor *= 2

    def state(self):
        """Return copies of all tensors that the next update depends on, except the atoms."""
        return copy_of(self._state)

    def fresh_state(self):
        """Return the state of an optimiser with an empty model."""
        atoms = self.atoms.detach()
        return {
            "curvature": atoms.new_zeros(len(atoms), len(atoms)),
            "pull": torch.zeros_like(atoms),
            "n_updates": torch.tensor(0, device="cpu"),
            "n_samples": atoms.new_zeros(()),
            # energy and number of all uses in the model: with the latest batch alone, a batch of
            # small codes would release atoms that a batch of large codes had pulled at
            "uses": atoms.new_zeros(2),
            "trend": atoms.new_full((2,), torch.nan),  # running mean of the loss, and its least
        }

    @torch.no_grad()
    def load(self, atoms, state):
        """Go back to the given atoms and `state`; an empty state has no memory."""
        self.atoms.copy_(atoms)
        fresh = self.fresh_state()
        given = {name: state[name].to(value).clone() for name, value in fresh.items() if state}
        self._state = fresh | given
