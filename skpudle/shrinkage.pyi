# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any, Literal

__all__ = ["SHRINKAGES", "shrinkage_function"]
SHRINKAGES: dict[str, Any]

def shrinkage_function(
    name: Literal["soft", "hard"], *, positive: bool = False
) -> Callable[..., Any]: ...
