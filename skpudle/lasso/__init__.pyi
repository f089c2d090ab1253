# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

__all__ = ["GapWarning", "duality_gap", "solve_lasso", "solve_nnls"]

class GapWarning(RuntimeWarning):
    args: Any

def duality_gap(
    atoms: Tensor,
    x: Tensor,
    codes: Tensor,
    alpha: float | Tensor,
    *,
    positive: bool = False,
    dual_codes: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor: ...
def solve_lasso(
    atoms: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    *,
    positive: bool = False,
    debias: float = 0.0,
    max_iter: int = 1000,
    solver: Literal["auto", "batched", "compiled"] = "auto",
    certify: bool = True,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def solve_nnls(
    atoms: NDArray[Any] | Tensor,
    x: NDArray[Any] | Tensor,
    *,
    weights: NDArray[Any] | Tensor | None = None,
    free: NDArray[Any] | Tensor | None = None,
    tol: float = 1e-08,
    max_iter: int | None = None,
    solver: Literal["auto", "batched", "compiled"] = "auto",
) -> tuple[NDArray[Any] | Tensor, NDArray[Any] | Tensor]: ...
