"""Optimisers: how a gradient changes the atoms.

An optimiser owns the atoms while they are trained. It offers `update`, which takes the gradient
of a rule and the codes of its batch, and `replace`, which puts new atoms in the place of old ones and
forgets what it remembered of those; both leave the atoms inside their constraints.
"""

import torch

__all__ = ["GradientOptimizer", "make_optimizer"]

_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class GradientOptimizer:
    """A `torch.optim` optimiser followed by a projection on the constraints.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, ...)
        Initial atoms; they are copied.
    optimizer_class : type
        A subclass of `torch.optim.Optimizer` whose ``step`` needs no closure.
    project : callable
        Returns the nearest atoms inside the constraints.
    learning_rate : float
        The optimiser's ``lr``.
    **params
        Further keyword arguments of the optimiser.
    """

    def __init__(self, atoms, optimizer_class, project, *, learning_rate, **params):
        self.atoms = torch.nn.Parameter(project(atoms).clone())
        self._project = project
        self._optimizer = optimizer_class([self.atoms], lr=learning_rate, **params)

    @torch.no_grad()
    def update(self, gradient, codes):  # codes are for optimisers that model the curvature
        """Take one step along the gradient."""
        self.atoms.grad = gradient
        self._optimizer.step()
        self.atoms.grad = None
        self.atoms.copy_(self._project(self.atoms))

    @torch.no_grad()
    def replace(self, rows, atoms):  # (n_rows,) integers, (n_rows, ...)
        """Put new atoms in the given rows and reset their moments."""
        self.atoms[rows] = self._project(atoms)
        for value in self._optimizer.state[self.atoms].values():
            if isinstance(value, torch.Tensor) and value.shape == self.atoms.shape:
                value[rows] = 0

    def halve_learning_rate(self):
        """Halve the learning rate, after training has diverged."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    def state(self):
        """Return copies of all tensors that the next update depends on, the atoms apart."""
        state = self._optimizer.state[self.atoms].items()
        return {name: value.clone() for name, value in state if isinstance(value, torch.Tensor)}

    @torch.no_grad()
    def load(self, atoms, state):
        """Go back to the given atoms and `state`."""
        self.atoms.copy_(atoms)
        groups = self._optimizer.state_dict()["param_groups"]
        # load_state_dict keeps tensors of the right kind as they are, and training writes into them
        copies = {name: value.clone() for name, value in state.items()}
        self._optimizer.load_state_dict({"state": {0: copies}, "param_groups": groups})


def make_optimizer(name, atoms, project, *, learning_rate, data_scale, params=None):
    """Return the optimiser for the given atoms.

    Parameters
    ----------
    name : {"adam", "sgd"} or type
        The optimiser, or a subclass of `torch.optim.Optimizer`.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    project : callable
        Returns the nearest atoms inside the constraints.
    learning_rate : float
        Learning rate.
    data_scale : float
        Mean squared norm of a sample. A gradient is proportional to it, and so is Adam's default
        ``eps`` here, which makes training independent of the units of the data.
    params : dict, default=None
        Keyword arguments that go to the optimiser as they are.

    Returns
    -------
    GradientOptimizer
        The optimiser.
    """
    params = dict(params or {})
    optimizer_class = _NAMED.get(name, name)
    if optimizer_class is torch.optim.Adam:
        params = {"eps": 1e-8 * data_scale or 1e-8, "fused": True} | params
    return GradientOptimizer(atoms, optimizer_class, project, learning_rate=learning_rate, **params)
