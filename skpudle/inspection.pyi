# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "atom_contributions",
    "code_saliency",
    "feature_directions",
    "reconstruction_contributions",
]

def atom_contributions(
    learner: Any, X: Any, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Any: ...
def code_saliency(learner: Any, X: ArrayLike | Tensor, *, n_codes: int = 5) -> Any: ...
def feature_directions(learner: Any, X: Any, *, refine: bool = False) -> Any: ...
def reconstruction_contributions(
    learner: Any, X_train: Any, X: ArrayLike, *, ridge: Any = 0.0, n_largest: Any = 10
) -> Any: ...
