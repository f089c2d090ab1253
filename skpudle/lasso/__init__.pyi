# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "GapWarning",
    "converged_codes",
    "duality_gap",
    "gram_matrix",
    "lasso_gradient",
    "lasso_path",
    "solve_lasso",
    "solve_nnls",
    "warn_about_gaps",
]

class GapWarning(RuntimeWarning):
    args: Any

def converged_codes(
    dictionary: Any,
    x: Tensor,
    *,
    alpha: float | Tensor,
    positive_code: bool = False,
    debias: float = 0.0,
    max_iter: int = 1000,
    certify: bool = True,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
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
def gram_matrix(atoms: Tensor, n_samples: int) -> Tensor | None: ...
def lasso_gradient(
    atoms: Tensor,
    x: Tensor,
    alpha: float,
    *,
    positive: bool = False,
    through_encoder: bool,
    max_iter: int = 1000,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...] | None: ...
def lasso_path(
    atoms: Tensor,
    x: Tensor,
    alphas: Sequence[float],
    *,
    positive: bool = False,
    max_iter: Any = 1000,
    solver: Any = "auto",
    mask: Any = None,
    gram: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
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
def warn_about_gaps(
    gaps: Tensor,
    *,
    tol: float = 1e-06,
    category: Any = ...,
    stacklevel: int = 1,
    advice: str | None = None,
) -> None: ...
