# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["GRADIENT_RULES", "Evaluation", "ae_lasso", "ae_ls", "dec", "differentiate", "noodl"]
GRADIENT_RULES: dict[str, Any]

class Evaluation(NamedTuple):
    surrogate: Tensor
    objective: Tensor
    losses: Tensor
    codes: Tensor

def ae_lasso(
    dictionary: Any,
    x: Any,
    *,
    encoder: Any,
    penalty: Any,
    target: Any = None,
    mask: Any = None,
    loss: Any = ...,
    offset: Any = None,
) -> Any: ...
def ae_ls(
    dictionary: Any,
    x: Tensor,
    *,
    encoder: Callable[..., Any],
    penalty: float,
    target: Tensor | None = None,
    mask: Tensor | None = None,
    loss: Any = ...,
    offset: Tensor | None = None,
) -> Evaluation: ...
def dec(
    dictionary: Any,
    x: Any,
    *,
    encoder: Any,
    penalty: Any,
    target: Any = None,
    mask: Any = None,
    loss: Any = ...,
    offset: Any = None,
) -> Any: ...
def differentiate(
    rule: Callable[..., Any],
    dictionary: Any,
    atoms: Tensor,
    batch: Any,
    *,
    encoder: Callable[..., Any],
    part_size: int | None = None,
    **settings: Any,
) -> tuple[Tensor, Evaluation]: ...
def noodl(
    dictionary: Any,
    x: Any,
    *,
    encoder: Any,
    penalty: Any,
    target: Any = None,
    mask: Any = None,
    loss: Any = ...,
    offset: Any = None,
) -> Any: ...
