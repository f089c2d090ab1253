# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import IO, Any, Literal

__all__ = ["load_denoiser", "save_denoiser"]

def load_denoiser(
    file: Literal["gaussian", "gaussian-small", "poisson"]
    | str
    | PathLike[str]
    | IO[bytes] = "gaussian",
    *,
    shift_average: bool = True,
    device: str = "auto",
) -> Any: ...
def save_denoiser(learner: Any, file: str | str | PathLike[str] | IO[bytes]) -> None: ...
