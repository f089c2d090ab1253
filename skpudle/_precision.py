"""Numbers and products in the precision of the data, whatever mode of torch a caller is in.

Inside of `torch.autocast` products of matrices come out in bfloat16 or float16, while all else
stays in float32. An encoder whose correlations have three digits finds other codes, and an adjoint
written by hand meets derivatives of two dtypes. And inside of `torch.inference_mode` nothing can be
differentiated.
"""

from contextlib import ExitStack, contextmanager
from numbers import Real

import torch

__all__ = ["as_scalars", "own_precision", "training_mode"]

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
