# Written by `make stubs` from signatures and docstrings: change those.
from typing import Literal

from torch import Tensor

__all__ = ["solve_omp"]

def solve_omp(
    atoms: Tensor,
    x: Tensor,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    positive: bool = False,
    mask: Tensor | None = None,
    solver: Literal["auto", "batched", "compiled"] = "auto",
) -> Tensor: ...
