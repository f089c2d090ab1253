"""Make an optimiser from a learner's parameters."""

from contextlib import contextmanager
from functools import partial

import torch

from skpudle._optimizers._gradient import GradientOptimizer
from skpudle._optimizers._surrogate import SurrogateOptimizer

_NAMED = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


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
