# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Problem", "auto_alpha", "search"]

class Problem:
    positive_code: bool
    positive_atoms: bool
    mask: Any
    total: Callable[..., Any]
    unit: float
    held_out: Any
    held_rows: Any
    n_positions: Any
    def __init__(
        self,
        x: Tensor,
        alpha: float,
        positive_code: bool = False,
        positive_atoms: bool = False,
        mask: Tensor | None = None,
        total: Callable[..., Any] = ...,
        unit: float = 1.0,
        held_out: Any = None,
        held_rows: Any = None,
    ) -> None: ...
    def epoch(self, atoms: Any, codes: Any, *, refit: Any = False, turn: Any = None) -> Any: ...
    def first_codes(self, atoms: Any) -> Any: ...
    @property
    def n_samples(self) -> Any: ...
    def no_codes(self) -> Any: ...
    def of_rows(self, rows: Any) -> Any: ...
    def on_host(self) -> Any: ...
    def project(self, atoms: Any) -> Any: ...
    def squares(self) -> Any: ...
    def thinned(self, stride: Any, *, whole: Any = True, alpha: Any = None) -> Any: ...

def auto_alpha(
    x: Tensor, *, mask: Tensor | None = None, total: Callable[..., Any] = ...
) -> float: ...
def search(
    problem: Problem,
    atoms: Tensor,
    *,
    state: Any = None,
    on_epoch: Callable[..., Any] | None = None,
) -> Any: ...
