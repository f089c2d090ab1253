"""Compute in the precision of the data: undo autocast, TF32 and inference mode of the caller.

Inside `torch.autocast` products of matrices come out in bfloat16 or float16, while all other
results stay in float32. Correlations then have three digits or fewer, from which an encoder finds
different codes, and a hand-written adjoint gets derivatives of two dtypes. TensorFloat-32, which
`torch.set_float32_matmul_precision` turns on, also leaves three digits. `torch.inference_mode`
forbids differentiation.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real
from typing import TypeVar

import torch

from skpudle._compilation import SharedSetting, threads_for

F = TypeVar("F", bound=Callable)

_AUTOCAST = [d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d)]

# Objects with the setting of the precision of products, one for each kind of device. They exist
# since torch 2.9, where the getter of the shared setting raises an error if they differ. Before 2.9
# all products share one setting, and the list is empty.
_all = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
_BACKENDS = [backend for backend in _all if hasattr(backend, "fp32_precision")]


def _set_precisions(values):
    """Set the precision of products on each kind of device, in the order of `_BACKENDS`."""
    for backend, value in zip(_BACKENDS, values, strict=True):
        if backend.fp32_precision != value:
            backend.fp32_precision = value


def _compute_in_full():
    """Switch reduced precision off, in the whole process; return a function that restores it."""
    if not _BACKENDS:
        shared = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(shared)
    before = [backend.fp32_precision for backend in _BACKENDS]
    _set_precisions(["ieee" if value in ("tf32", "bf16") else value for value in before])
    return lambda: _set_precisions(before)


# Inside ``with _full_products`` products of float32 have the precision of float32, in all threads.
_full_products = SharedSetting(_compute_in_full)


def as_scalars(value, like):  # number or tensor -> tensor of any shape
    """Return a number or a tensor of numbers with the dtype and on the device of ``like``.

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
        # computed on the device: the host would have to wait for a copy to it
        return like.new_ones(()) * float(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


@contextmanager
def own_precision():
    """Compute in the dtype of the data, even inside `torch.autocast` and with TF32."""
    with _full_products, ExitStack() as stack:
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


# A decorator: each call of the decorated function runs inside of ``with own_precision()``.
in_own_precision = own_precision()


@contextmanager
def training_mode():
    """Allow derivatives, and compute in the dtype of the data: the mode that every fit runs in.

    The caller's `torch.inference_mode` and `torch.autocast` have no effect inside. torch uses one
    thread, except where `threads_for` finds enough work for several.
    """
    with torch.inference_mode(False), own_precision(), threads_for():
        yield


def kept_by_autograd(x):
    """Return ``x``, or a copy if ``x`` was made in inference mode, which autograd cannot save."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def differentiable_once(backward):
    """Decorate the ``backward`` of an autograd function that can be differentiated once only.

    The backward pass computes in the dtype of the data. It raises RuntimeError if torch asks for
    its graph, as for a second derivative. That derivative would be wrong without an error, because
    autograd treats what was computed in the forward pass as constants.
    """

    @wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Codes can be differentiated once only. Pass create_graph=False, and no Hessian."
            )
        return backward(ctx, *gradients)

    return in_own_precision(checked)
