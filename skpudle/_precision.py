"""Compute in the precision of the data, whatever precision the caller has set in torch.

Inside `torch.autocast` products of matrices come out in bfloat16 or float16, while all other
results stay in float32. Correlations then have three digits or fewer, from which an encoder finds
different codes, and a hand-written adjoint gets derivatives of two dtypes. TensorFloat-32, which
`torch.set_float32_matmul_precision` turns on, also leaves three digits. `own_precision` switches
autocast and TensorFloat-32 off for a while. `torch.inference_mode` forbids differentiation, so
`training_mode` switches it off, too.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real
from typing import TypeVar

import torch

from skpudle._compilation import SharedSetting, threads_for

F = TypeVar("F", bound=Callable)

# the kinds of device for which this torch has autocast
_AUTOCAST = [
    d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d)
]

# The objects of torch that hold the setting ``fp32_precision`` of products of matrices, for CUDA
# and for the CPU. They have it since torch 2.9; before, all products share one setting, and the
# list is empty. Since 2.9 the getter of the shared setting raises an error if the objects differ,
# so `_compute_in_full` does not use it then.
_matmuls = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
_BACKENDS = [backend for backend in _matmuls if hasattr(backend, "fp32_precision")]


def _compute_in_full():
    """Let products of float32 have full precision, in the whole process; return the undo function.

    The undo function takes no arguments.
    """
    if not _BACKENDS:
        shared = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(shared)
    reduced = {
        backend: backend.fp32_precision
        for backend in _BACKENDS
        if backend.fp32_precision in ("tf32", "bf16")
    }
    for backend in reduced:
        backend.fp32_precision = "ieee"
    return lambda: [
        setattr(backend, "fp32_precision", value) for backend, value in reduced.items()
    ]


# inside ``with _full_products`` products of float32 matrices have full precision, in all threads
_full_products = SharedSetting(_compute_in_full)


def as_scalars(value, like):  # number or tensor -> tensor of any shape
    """Return a parameter, such as a penalty or a step size, in the dtype and on the device of data.

    Parameters
    ----------
    value : float or Tensor
        A number, or a tensor, which stays differentiable.
    like : Tensor
        A tensor, of any shape, with the dtype and the device of the result.

    Returns
    -------
    Tensor of the shape of ``value``, or of shape () for a number
        The parameter.
    """
    if isinstance(value, Real):
        # not `torch.tensor`, which copies the number to a GPU while the host waits: here the device
        # fills in the number itself
        return like.new_ones(()) * float(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


@contextmanager
def own_precision():
    """In a ``with`` block, compute in the dtype of the data, even inside `torch.autocast`.

    TF32 is off for the whole process until the block ends, autocast for the calling thread alone.
    """
    with _full_products, ExitStack() as stack:
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


# A decorator, since context managers of `contextlib` are decorators, too: each call of the
# decorated function runs inside of a new ``with own_precision()``.
in_own_precision = own_precision()


@contextmanager
def training_mode():
    """In a ``with`` block, allow derivatives, and compute in the dtype of the data: for every fit.

    The caller's `torch.inference_mode` and `torch.autocast` have no effect inside. Torch uses one
    thread, unless an inner block of `threads_for` finds enough work for several.
    """
    with torch.inference_mode(False), own_precision(), threads_for():
        yield


def kept_by_autograd(x):
    """Return the tensor ``x``, or a copy if it was made in inference mode.

    Autograd raises an error if it has to save a tensor that was made in inference mode.
    """
    return (
        x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x
    )


def differentiable_once(backward):
    """Decorate the ``backward`` of an autograd function that can be differentiated once only.

    The decorated ``backward(ctx, *gradients)`` computes in the dtype of the data. It raises
    RuntimeError if torch asks for a graph of the backward pass, as for a second derivative: without
    the error that derivative would be wrong, because autograd treats what ``forward`` has computed
    as constants.
    """

    @wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Codes can be differentiated once only. Pass create_graph=False, and no Hessian."
            )
        return backward(ctx, *gradients)

    return in_own_precision(checked)
