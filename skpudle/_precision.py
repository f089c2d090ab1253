"""Numbers and products in the precision of the data, whatever mode of torch a caller is in.

Inside of `torch.autocast` products of matrices come out in bfloat16 or float16, while all else
stays in float32. An encoder whose correlations have three digits finds other codes, and an adjoint
written by hand meets derivatives of two dtypes. And inside of `torch.inference_mode` nothing can be
differentiated.
"""

from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real

import torch

__all__ = [
    "as_scalars",
    "check_tensors",
    "differentiable_once",
    "own_precision",
    "training_mode",
]

_DEVICES = [d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d)]


def as_scalars(value, like):  # number or tensor -> tensor of any shape
    """Return a number or numbers as a tensor, of the dtype and on the device of another one.

    Parameters
    ----------
    value : float or Tensor
        A number, or a tensor, which stays differentiable.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor
        Of the shape of ``value``; of shape () for a number.
    """
    if isinstance(value, Real):
        # computed where it is needed: for a copy of it the host would wait for a GPU
        return like.new_ones(()) * float(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def check_tensors(atoms, x):
    """Raise TypeError or ValueError unless these are tensors of atoms and of data for them.

    Parameters
    ----------
    atoms, x : Tensor of shape (n_components, ...), (n_samples, ...)
        What a caller passed.
    """
    for name, value in (("atoms", atoms), ("data", x)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"The {name} must be a torch tensor, got {type(value).__name__}: pass "
                "torch.as_tensor(...)."
            )
    if x.ndim != atoms.ndim or x.shape[1] != atoms.shape[1]:
        raise ValueError(
            f"Atoms of shape {tuple(atoms.shape)} do not fit data of shape {tuple(x.shape)}. Pass "
            "(atoms, X), one atom and one sample a row: the dictionary comes first, unlike in "
            "scikit-learn."
        )


@contextmanager
def own_precision():
    """Compute in the dtype of the data, inside of `torch.autocast` too."""
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def training_mode():
    """Compute with derivatives and in the dtype of the data, in whatever mode the caller is."""
    with torch.inference_mode(False), own_precision():
        yield


def differentiable_once(backward):
    """Decorate the ``backward`` of a function whose derivative has no derivative.

    It computes in the dtype of the data, and raises where a graph of it is asked for, which would
    be silently wrong: what it makes of saved tensors is a constant to torch.
    """

    @wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Codes can be differentiated once only: use create_graph=False, and no Hessian."
            )
        with own_precision():
            return backward(ctx, *gradients)

    return checked
