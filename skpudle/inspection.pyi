# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, NamedTuple

from numpy.typing import ArrayLike
from torch import Tensor

__all__ = [
    "Contributions",
    "FeatureDirections",
    "Saliency",
    "atom_contributions",
    "code_saliency",
    "feature_directions",
    "reconstruction_contributions",
]

class Contributions(NamedTuple):
    indices: Any
    values: Any
    estimates: Any
    distances: Any
    distance: Any

class FeatureDirections(NamedTuple):
    directions: Any
    implied: Any
    prominence: Any
    thresholds: Any
    learner: Any

class Saliency(NamedTuple):
    indices: Any
    gradients: Any

def atom_contributions(
    learner: Any, X: Any, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Contributions: ...
def code_saliency(learner: Any, X: ArrayLike | Tensor, *, n_codes: int = 5) -> Saliency: ...
def feature_directions(learner: Any, X: Any, *, refine: bool = False) -> FeatureDirections: ...
def reconstruction_contributions(
    learner: Any, X_train: Any, X: ArrayLike, *, ridge: Any = 0.0, n_largest: Any = 10
) -> Contributions: ...
