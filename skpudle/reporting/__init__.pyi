# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import Any, Literal

from numpy.typing import ArrayLike

__all__ = ["Report", "findings", "report"]

class Report:
    def __init__(
        self, page: str, facts: dict[str, Any] | None = None, findings: list[str] | None = None
    ) -> None: ...
    def save(self, path: str | str | PathLike[str]) -> None: ...

def findings(estimator: Any, X: ArrayLike) -> list[str]: ...
def report(
    estimator: Any,
    X: ArrayLike,
    *,
    kind: Literal["auto", "images", "lines"] = "auto",
    image_shape: tuple[int, ...] | None = None,
    n_atoms: int = 100,
    n_worst: int = 8,
) -> Report: ...
