"""Make an optimiser from a learner's parameters."""

import inspect
from contextlib import contextmanager
from functools import partial

import torch

from skpudle._optimizers._gradient import GradientOptimizer
from skpudle._optimizers._surrogate import SurrogateOptimizer

__all__ = ["make_optimizer"]

_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def _raise_interrupt(error):
    """Raise Ctrl-C again, which torch turns into other errors during its late imports."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            raise error
        error = error.__cause__ or error.__context__


@contextmanager
def _named(name, params, asked):
    """Name the optimiser and its parameters in errors about them."""
    try:
        yield
    except Exception as error:  # any class: users pass optimisers of their own
        _raise_interrupt(error)
        if asked == "auto":
            raise ValueError(
                f"optimizer='auto' is {name!r} here, which takes no such optimizer_params as "
                f"{params!r:.200}. Name the optimizer that they belong to, optimizer='sgd' for "
                "example."
            ) from error
        raise ValueError(
            f"optimizer={name!r} takes no such optimizer_params as {params!r:.200}, or no "
            f"gradients of atoms ({error}). Pass keyword arguments that it has, its learning rate "
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
        Mean squared norm of a sample. Gradients are proportional to it. Adam sees them in this
        unit, so training does not depend on the units of the data.
    curvature : float, default=1.0
        Second derivative of the loss in the reconstruction, for the surrogate.
    params : dict, default=None
        Keyword arguments of the optimiser. Adam's ``eps`` and ``weight_decay`` are in the units of
        the gradients.
    asked : str or type, default=None
        The user's choice, such as "auto", if it is not the name.

    Returns
    -------
    GradientOptimizer or SurrogateOptimizer
        The optimiser.

    Raises
    ------
    ValueError
        If the optimiser is no such class, if its step needs a closure, if it does not take these
        parameters, or if it cannot make a step along a gradient.
    """
    params = dict(params or {})
    named = partial(_named, name, params, asked)
    if name == "surrogate":
        with named():
            return SurrogateOptimizer(atoms, project, **{"curvature": curvature} | params)
    optimizer_class = _NAMED.get(name, name)
    defaults = {}
    if optimizer_class is torch.optim.Adam:
        # in their own units squares of gradients would leave the range of float32; fused is the
        # fastest, and torch refuses it together with foreach
        defaults = {"gradient_unit": data_scale or 1.0, "fused": "foreach" not in params}
        with named():
            for key in params.keys() & {"eps", "weight_decay"}:
                params[key] = params[key] / defaults["gradient_unit"]
    if not issubclass(optimizer_class, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer={optimizer_class.__name__} is no subclass of torch.optim.Optimizer. Pass "
            "one, or 'adam', 'sgd' or 'surrogate'."
        )
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is not None:
        raise ValueError(
            f"optimizer={optimizer_class.__name__} evaluates the loss by itself (its step needs a "
            "closure). Pass an optimiser that takes one gradient at a time, such as 'adam'."
        )
    with named():
        rest = defaults | params
        return GradientOptimizer(
            atoms, optimizer_class, project, learning_rate=learning_rate, **rest
        )
