# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, Literal

from numpy.typing import ArrayLike

__all__ = ["findings", "report"]

def findings(estimator: Any, X: ArrayLike) -> list[str]: ...
def report(
    estimator: Any,
    X: ArrayLike,
    *,
    kind: Literal["auto", "images", "lines"] = "auto",
    image_shape: tuple[int, ...] | None = None,
    n_atoms: int = 100,
    n_worst: int = 8,
) -> Any: ...
