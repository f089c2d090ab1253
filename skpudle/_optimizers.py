"""Optimisers: change atoms along a gradient, inside their constraints.

An optimiser owns the atoms while they are trained. `update` takes the gradient of a rule and the
codes of its batch. `replace` puts new atoms in place of old ones, and forgets its memory of the old
ones. Both leave the atoms inside their constraints.
"""

from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import torch

_ATOMS_AT_ONCE = 128  # atoms to move at once
_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def copy_of(state):  # dict of tensors and further objects
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else deepcopy(value)
        for name, value in state.items()
    }


def _kinds(state):  # -> dict of dtypes and shapes; the dtype of numbers follows torch's default
    tensors = {name: v for name, v in state.items() if isinstance(v, torch.Tensor)}
    return {name: (v.dtype if v.ndim else None, v.shape) for name, v in tensors.items()}


class Optimizer:
    """Resume from a state that may belong to another optimiser."""

    def resume(self, atoms, state):
        """Go on from the given atoms and `state`, or without memory if the state does not fit.

        What is fused trusts that moments are as large as the atoms.
        """
        fits = _kinds(self.fresh_state()).items() <= _kinds(state).items()
        self.load(atoms, state if fits else {})


def row_major(atoms):  # -> a copy
    # fused optimisers of torch walk through memory and ignore the strides of gradient and state
    return atoms.clone(memory_format=torch.contiguous_format)


class GradientOptimizer(Optimizer):
    """A `torch.optim` optimiser followed by a projection on the constraints.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Initial atoms; they are projected and copied.
    make : callable
        Takes a list of parameters, ``lr`` and ``params``, and returns an optimiser of torch with a
        ``step`` that needs no closure.
    project : callable
        Returns the nearest atoms inside the constraints.
    learning_rate : float
        The optimiser's ``lr``.
    gradient_unit : float, default=1.0
        Unit of the gradients: the optimiser sees them divided by it.
    **params
        Further keyword arguments of the optimiser.
    """

    def __init__(self, atoms, make, project, *, learning_rate, gradient_unit=1.0, **params):
        self.atoms = torch.nn.Parameter(row_major(project(atoms.contiguous())))
        self._project, self._gradient_unit = project, gradient_unit
        self._make = partial(make, **params)
        self._optimizer = self._make([self.atoms], lr=learning_rate)
        self._initial_state = self.state()  # most optimisers leave it empty until their first step
        # some optimisers count steps on the host; a count on a device would make every step wait
        fresh = self.fresh_state().items()
        self._devices = {n: v.device for n, v in fresh if isinstance(v, torch.Tensor)}

    @torch.no_grad()
    def update(self, gradient, *_, **of_surrogates):
        """Take one step along the gradient."""
        self.atoms.grad = (gradient / self._gradient_unit).contiguous()
        self._optimizer.step()
        self.atoms.grad = None
        self.atoms.copy_(self._project(self.atoms))

    @torch.no_grad()
    def replace(self, rows, atoms):  # (n_rows,) integers, (n_rows, ...)
        """Put new atoms in the given rows, and reset the optimiser's state for them."""
        self.atoms[rows] = self._project(atoms)
        state = self._optimizer.state[self.atoms]
        fresh = self.fresh_state() if state else {}
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == self.atoms.shape:
                # dividing by the norm of a zero gradient makes NaN in some optimisers
                value[rows] = fresh[name][rows].nan_to_num(0.0) if name in fresh else 0

    def halve_learning_rate(self):
        """Halve the learning rate after training has diverged."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def state(self):
        """Return copies of all that the next update depends on, except the atoms."""
        return copy_of(self._optimizer.state[self.atoms])

    @torch.no_grad()
    def fresh_state(self):
        """Return the state after one step along a zero gradient.

        Most optimisers make their state at their first step. Atoms are zero too, so weight decay
        changes nothing.
        """
        atoms = torch.zeros_like(self.atoms).requires_grad_()
        (group,) = self._optimizer.param_groups
        optimizer = self._make([atoms], lr=group["lr"])
        atoms.grad = torch.zeros_like(atoms)
        optimizer.step()
        return dict(optimizer.state[atoms])

    @torch.no_grad()
    def load(self, atoms, state):
        """Go back to the given atoms and `state`; an empty state has no memory."""
        self.atoms.copy_(atoms)
        # not by load_state_dict, which changes the precision of some tensors
        state = copy_of(state or self._initial_state)
        for name in self._devices.keys() & state.keys():
            state[name] = state[name].to(self._devices[name])
        self._optimizer.state[self.atoms] = state


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


def _raise_interrupt(error):
    """Raise Ctrl-C again, which torch turns into other errors during its late imports."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


@contextmanager
def _named(name, learning_rate):
    """Name the optimiser in errors about it."""
    own = "" if learning_rate is None else ", with its learning rate as learning_rate"
    try:
        yield
    except Exception as error:  # any class: users pass optimisers of their own
        _raise_interrupt(error)
        raise ValueError(
            f"optimizer={name!r:.200} makes no steps along gradients of atoms ({error}). Pass a "
            "callable that takes parameters and lr, such as partial(torch.optim.Adam, "
            f"betas=(0.5, 0.9)){own}, or 'adam'."
        ) from error


def make_optimizer(name, atoms, project, *, learning_rate, data_scale, curvature=1.0):
    """Return the optimiser for the given atoms.

    Parameters
    ----------
    name : {"adam", "sgd", "surrogate"} or callable
        The optimiser, a subclass of `torch.optim.Optimizer`, or a callable that takes a list of
        parameters and ``lr`` and returns one. Adam's ``eps`` and ``weight_decay`` in a `partial`
        are in the units of the gradients.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    project : callable
        Returns the nearest atoms inside the constraints.
    learning_rate : float or None
        Learning rate; the surrogate has none. None is that of the callable, or else 1e-3.
    data_scale : float
        Mean squared norm of a sample. Gradients are proportional to it. Adam sees them in this
        unit, so training does not depend on the units of the data.
    curvature : float, default=1.0
        Second derivative of the loss in the reconstruction, for the surrogate.

    Returns
    -------
    GradientOptimizer or SurrogateOptimizer
        The optimiser.

    Raises
    ------
    ValueError
        If the optimiser does not take these parameters, or makes no step along a gradient, as one
        that needs a closure.
    """
    if name == "surrogate":
        return SurrogateOptimizer(atoms, project, curvature=curvature)
    make = _NAMED[name] if isinstance(name, str) else name
    kind, given = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    extra = {}
    with _named(name, learning_rate):
        rate = learning_rate
        if rate is None:
            # of learners without this parameter; a callable may have its own
            rate = given.get("lr", 1e-3)
        elif "lr" in given:
            raise TypeError("its lr is the learner's learning_rate")
        if kind is torch.optim.Adam:
            # squares of gradients in the units of the data would leave the range of float32; fused
            # is the fastest, and torch refuses it together with foreach
            unit = data_scale or 1.0
            extra = {"gradient_unit": unit}
            extra |= {key: given[key] / unit for key in given.keys() & {"eps", "weight_decay"}}
            extra |= {} if "fused" in given else {"fused": "foreach" not in given}
        return GradientOptimizer(atoms, make, project, learning_rate=rate, **extra)
