"""Optimisers of torch inside constraints."""

from copy import deepcopy
from functools import partial

import torch


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
