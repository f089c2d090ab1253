# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "EncoderModule",
    "LearnedEncoder",
    "default_step",
    "default_updates",
    "encode",
    "learn_encoder",
    "threshold_levels",
    "unfold",
]

class EncoderModule(torch.nn.Module):
    def __init__(
        self, encoder: LearnedEncoder, atoms: Tensor, *, split_sign: bool = False
    ) -> None: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def forward(self, x: Tensor) -> Tensor: ...

class LearnedEncoder:
    positive_code: bool
    shares_atoms: bool
    shrinkage: Literal["soft", "hard"]
    def __init__(
        self,
        analysis: Tensor,
        synthesis: Tensor,
        thresholds: Tensor,
        positive_code: bool = False,
        shares_atoms: bool = False,
        shrinkage: Literal["soft", "hard"] = "soft",
    ) -> None: ...
    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor: ...
    def of_features(self, features: Tensor) -> LearnedEncoder: ...

def default_step(dictionary: Any, loss: Any = None) -> Tensor | None: ...
def default_updates(
    n_samples: int, n_components: int, n_features: int, n_unfoldings: int, batch_size: int
) -> int: ...
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
    start: LearnedEncoder | None = None,
    n_updates: int | Literal["auto"] = "auto",
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    stopped: Callable[..., Any] = ...,
) -> LearnedEncoder: ...
def threshold_levels(
    dictionary: Any,
    alpha: float | Tensor,
    n_unfoldings: int,
    step: Tensor | None,
    *,
    lambda_decay: float = 1.0,
    shrinkage: Literal["soft", "hard"] = "soft",
) -> Tensor: ...
def unfold(
    dictionary: Any,
    x: Tensor,
    levels: Tensor,
    step: Tensor | None,
    *,
    shrinkage: Literal["soft", "hard"] = "soft",
    positive_code: bool = False,
    initial: Tensor | None = None,
    mask: Tensor | None = None,
    analysis: Any = None,
    loss: Any = None,
    offset: Any = None,
    path: Literal["auto", "dense", "active"] = "auto",
) -> Tensor: ...
