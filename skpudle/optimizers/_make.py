"""The optimiser that a learner's parameters ask for."""

import inspect
from contextlib import contextmanager
from functools import partial

import torch

from skpudle.optimizers._gradient import GradientOptimizer
from skpudle.optimizers._surrogate import SurrogateOptimizer

__all__ = ["make_optimizer"]

_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def _raise_interrupt(error):
    """Raise Ctrl-C again, of which torch makes other errors while it imports what it needs late."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


@contextmanager
def _named(name, params, asked):
    """Name what was asked for in the errors of whoever takes the parameters."""
    try:
        yield
    except Exception as error:  # of whoever wrote the optimiser
        _raise_interrupt(error)
        if asked == "auto":
            raise ValueError(
                f"optimizer='auto' is {name!r} here, which takes no such optimizer_params as "
                f"{params!r:.200}. Name the optimizer that they belong to, optimizer='sgd' for "
                "example."
            ) from error
        raise ValueError(
            f"optimizer={name!r} takes no such optimizer_params as {params!r:.200}, or no "
            f"gradients of atoms ({error}); pass keyword arguments that it has, its learning rate "
            "as learning_rate, or another optimiser, such as 'adam'."
        ) from error


def make_optimizer(
    name,
    atoms,
    project,
    *,
    learning_rate,
    data_scale,
    curvature=1.0,
    params=None,
    asked=None,
):
    """Return the optimiser for the given atoms.

    Parameters
    ----------
    name : {"adam", "sgd", "surrogate"} or type
        The optimiser, or a subclass of `torch.optim.Optimizer`.
    atoms : Tensor of shape (n_components, ...)
        Initial atoms.
    project : callable
        Returns the nearest atoms inside the constraints.
    learning_rate : float
        Learning rate; the surrogate has none.
    data_scale : float
        Mean squared norm of a sample. A gradient is proportional to it; Adam sees it in this unit,
        which makes training independent of the units of the data.
    curvature : float, default=1.0
        Of the loss in the reconstruction, for the surrogate.
    params : dict, default=None
        Keyword arguments of the optimiser. What Adam compares with gradients, its ``eps`` and
        ``weight_decay``, is in the units of these.
    asked : str or type, default=None
        What the user asked for, "auto" for example, if that is not the name.

    Returns
    -------
    GradientOptimizer or SurrogateOptimizer
        The optimiser.

    Raises
    ------
    ValueError
        If the optimiser is no such class, one whose step needs a closure, one without such
        parameters, or one that cannot make a step along a gradient.
    """
    params = dict(params or {})
    named = partial(_named, name, params, asked)
    if name == "surrogate":
        with named():
            return SurrogateOptimizer(atoms, project, **{"curvature": curvature} | params)
    optimizer_class = _NAMED.get(name, name)
    defaults = {}
    if optimizer_class is torch.optim.Adam:
        # squares of gradients as they come would leave the range of float32; fused is the fastest,
        # and torch refuses it beside foreach
        defaults = {"gradient_unit": data_scale or 1.0, "fused": "foreach" not in params}
        with named():
            for key in params.keys() & {"eps", "weight_decay"}:
                params[key] = params[key] / defaults["gradient_unit"]
    if not issubclass(optimizer_class, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer={optimizer_class.__name__} is no subclass of torch.optim.Optimizer; pass "
            "one, or 'adam', 'sgd' or 'surrogate'."
        )
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is not None:
        raise ValueError(
            f"optimizer={optimizer_class.__name__} evaluates the loss by itself (its step needs a "
            "closure); pass an optimiser that takes one gradient at a time, such as 'adam'."
        )
    with named():
        rest = defaults | params
        return GradientOptimizer(
            atoms, optimizer_class, project, learning_rate=learning_rate, **rest
        )
