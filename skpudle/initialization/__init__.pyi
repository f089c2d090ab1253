# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["INITIALIZATIONS", "initial_atoms", "pairwise_atoms", "successive_projections"]
INITIALIZATIONS: dict[str, Any]

def initial_atoms(
    x: Tensor,
    n_components: int,
    method: Literal["data", "random", "svd", "pairwise", "vertices"],
    generator: torch.Generator,
) -> Tensor: ...
def pairwise_atoms(
    x: Tensor,
    n_components: int,
    *,
    generator: torch.Generator,
    max_pairs: int | None = None,
    max_samples: int = 65536,
) -> Tensor: ...
def successive_projections(
    rows: NDArray[Any] | Tensor, n: int, weights: NDArray[Any] | Tensor
) -> Any: ...
