# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any

from numpy.typing import NDArray

__all__ = ["find_events"]

def find_events(
    estimator: Any, X: Any, *, least: float = 0.3333333333333333, sampling_rate: float | None = None
) -> NDArray[Any]: ...
