"""Compute in the precision of the data: undo autocast, TF32 and inference mode of the caller.

Inside `torch.autocast` products of matrices come out in bfloat16 or float16, while everything else
stays in float32. With correlations of three digits an encoder finds different codes, and an adjoint
written by hand gets derivatives of two dtypes. TensorFloat-32, which
`torch.set_float32_matmul_precision` turns on, has the same effect. And `torch.inference_mode`
forbids differentiation.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real
from threading import local
from typing import TypeVar

import torch

from skpudle._compilation import SharedSetting, threads_for

F = TypeVar("F", bound=Callable)

_AUTOCAST = [d for d in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(d)]

# Settings of the precision of products, one for each kind of device since torch 2.9: the shared
# getter then raises if the settings differ. Before 2.9 all products share one setting.
_BACKENDS = [
    backend
    for backend in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    if hasattr(backend, "fp32_precision")
]
_REDUCED = {"tf32", "bf16"} if _BACKENDS else {"high", "medium"}
_FULL = "ieee" if _BACKENDS else "highest"


def _product_precision():  # -> list of str
    if not _BACKENDS:
        return [torch.get_float32_matmul_precision()]
    return [backend.fp32_precision for backend in _BACKENDS]


def _set_product_precision(values):
    if not _BACKENDS:
        torch.set_float32_matmul_precision(*values)
        return
    for backend, value in zip(_BACKENDS, values, strict=True):
        if backend.fp32_precision != value:
            backend.fp32_precision = value


def _compute_in_full():  # -> callable that restores the setting
    before = _product_precision()
    if not _REDUCED.isdisjoint(before):
        _set_product_precision([_FULL if p in _REDUCED else p for p in before])
    return lambda: _set_product_precision(before)


# Products of float32 are in float32 while a block is open, in all threads of the process.
_full_products = SharedSetting(_compute_in_full)
_thread = local()  # `is_inside`: inside `in_own_precision`


def as_scalars(value, like):  # number or tensor -> tensor of any shape
    """Return numbers as a tensor with the dtype and device of another one.

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
        # computed on the device, since the host would wait for a copy
        return like.new_ones(()) * float(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def check_tensors(atoms, x):
    """Check that atoms and data are tensors of shapes that fit.

    Parameters
    ----------
    atoms, x : Tensor of shape (n_components, ...), (n_samples, ...)
        Arguments of a caller.

    Raises
    ------
    TypeError
        If one is no tensor.
    ValueError
        If their shapes do not fit.
    """
    for name, value in (("atoms", atoms), ("data", x)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"The {name} must be a torch tensor, got {type(value).__name__}. Pass "
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
    """Compute in the dtype of the data, even inside `torch.autocast` and with TF32."""
    was_inside = getattr(_thread, "is_inside", False)
    with _full_products, ExitStack() as stack:
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        _thread.is_inside = True
        try:
            yield
        finally:
            _thread.is_inside = was_inside


def in_own_precision(function: F) -> F:
    """Decorate a function to run inside `own_precision`, which it enters unless already inside."""

    @wraps(function)
    def checked(*args, **kwargs):
        inside = getattr(_thread, "is_inside", False)
        if inside and not any(map(torch.is_autocast_enabled, _AUTOCAST)):
            return function(*args, **kwargs)
        with own_precision():
            return function(*args, **kwargs)

    return checked


@contextmanager
def training_mode():
    """Compute with derivatives and in the dtype of the data, in any mode of the caller.

    Calls of torch use one thread, except inside `threads_for` with enough work.
    """
    with torch.inference_mode(False), own_precision(), threads_for():
        yield


def kept_by_autograd(x):
    """Return a tensor that autograd can save: a copy if it was made in inference mode."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def differentiable_once(backward):
    """Decorate the ``backward`` of a function that can be differentiated once only.

    It computes in the dtype of the data. It raises RuntimeError if torch asks for a graph of it,
    which would be silently wrong, because torch treats results computed from saved tensors as
    constants.
    """

    @wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Codes can be differentiated once only. Pass create_graph=False, and no Hessian."
            )
        return backward(ctx, *gradients)

    return in_own_precision(checked)
