# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["denoise_patches", "extract", "inpaint", "psnr", "reconstruct", "ssim"]

def denoise_patches(
    learner: Any,
    image: ArrayLike | Tensor,
    patch_shape: int | tuple[int, ...] = ...,
    *,
    stride: int = 1,
    center: bool = True,
    weights: Literal["sparsity", "equal"] = "sparsity",
) -> NDArray[Any] | Tensor: ...
def extract(
    image: ArrayLike | Tensor, patch_shape: int | tuple[int, ...] = ..., *, stride: int = 1
) -> NDArray[Any] | Tensor: ...
def inpaint(
    image: ArrayLike | Tensor,
    denoise: Callable[..., Any] | None = None,
    *,
    mask: Any = None,
    n_iter: int = 20,
) -> NDArray[Any] | Tensor: ...
def psnr(
    image: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, peak: float | None = None
) -> float: ...
def reconstruct(
    patches: ArrayLike | Tensor,
    image_shape: tuple[int, ...],
    patch_shape: Any = ...,
    *,
    stride: Any = 1,
) -> NDArray[Any] | Tensor: ...
def ssim(
    image: ArrayLike | Tensor, reference: ArrayLike | Tensor, *, peak: float | None = None
) -> float: ...
