# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import IO, Any, Literal

import torch
from torch import Tensor

__all__ = ["DenoiserModule", "load_denoiser", "save_denoiser"]

class DenoiserModule(torch.nn.Module):
    def __init__(self, network: Any, shift_average: bool) -> None: ...
    def forward(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor: ...

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
