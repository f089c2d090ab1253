# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["EncoderModule", "encode", "learn_encoder"]

class EncoderModule(torch.nn.Module):
    def __init__(self, encoder: Any, atoms: Tensor, *, split_sign: bool = False) -> None: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def forward(self, x: Tensor) -> Tensor: ...

def encode(
    dictionary: Any,
    x: Tensor,
    *,
    alpha: float | Tensor,
    n_unfoldings: int = 100,
    step_size: float | Tensor | None = None,
    lambda_decay: float = 1.0,
    shrinkage: Literal["soft", "hard"] = "soft",
    positive_code: bool = False,
    initial_threshold: float | None = None,
    mask: Tensor | None = None,
    analysis: Any = None,
    loss: Any = None,
    offset: Any = None,
) -> Tensor: ...
def learn_encoder(
    atoms: Tensor,
    x: Tensor,
    alpha: float,
    *,
    n_unfoldings: int = 3,
    separate: bool = True,
    penalised: bool = True,
    positive_code: bool = False,
    mask: Tensor | None = None,
    start: Any = None,
    n_updates: int | Literal["auto"] = "auto",
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    stopped: Callable[..., Any] = ...,
) -> Any: ...
