# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "ConvProblem",
    "Memory",
    "Problem",
    "SearchState",
    "SizePath",
    "StreamState",
    "adapted",
    "advance",
    "advance_stream",
    "after_search",
    "auto_alpha",
    "begin",
    "begin_stream",
    "choose_size",
    "conv_codes",
    "conv_path",
    "debias",
    "group_features",
    "is_done",
    "match_equal_rows",
    "objective",
    "search",
    "spread_rows",
    "with_atoms",
    "without_rows",
]

class ConvProblem:
    positive_code: bool
    mask: Any
    unit: float
    positions: Any
    def __init__(
        self,
        x: Tensor,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        alpha: float,
        positive_code: bool = False,
        mask: Tensor | None = None,
        unit: float = 1.0,
    ) -> None: ...
    def epoch(self, atoms: Any, codes: Any, *, turn: Any = None, **effort: Any) -> Any: ...
    @property
    def n_positions(self) -> Any: ...
    @property
    def n_samples(self) -> Any: ...
    def no_codes(self) -> Any: ...
    @staticmethod
    def project(atoms: Any) -> Any: ...
    def thinned(self, stride: Any) -> Any: ...
    @staticmethod
    def total(*tensors: Any) -> Any: ...

class Memory(NamedTuple):
    a: Tensor
    b: Tensor
    cost: Tensor
    weight: Tensor
    rows: Tensor
    @property
    def energy(self) -> Any: ...
    def faded(self, factor: Any) -> Any: ...
    def grown(self, n: Any) -> Any: ...
    def inherited(self, heirs: Any, removed: Any) -> Any: ...
    @property
    def matrix(self) -> Any: ...
    def moved(self, before: Any, after: Any) -> Any: ...
    @classmethod
    def none(cls, atoms: Any) -> Any: ...
    @classmethod
    def of_energy(cls, atoms: Tensor, energy: Tensor, n_rows: float) -> Any: ...
    @property
    def pairs(self) -> Any: ...
    @property
    def rate(self) -> Any: ...
    def restricted(self, kept: Any) -> Any: ...
    def targets(self, atoms: Any, first: Any, last: Any) -> Any: ...
    def with_block(self, epoch: Any, n: Any) -> Any: ...
    def without(self, atoms: Any, which: Any) -> Any: ...

class Problem:
    positive_code: bool
    positive_atoms: bool
    mask: Any
    total: Callable[..., Any]
    unit: float
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
    ) -> None: ...
    def epoch(self, atoms: Any, codes: Any, *, refit: Any = False, turn: Any = None) -> Any: ...
    @property
    def n_samples(self) -> Any: ...
    def no_codes(self) -> Any: ...
    def of_rows(self, rows: Any) -> Any: ...
    def on_host(self) -> Any: ...
    def project(self, atoms: Any) -> Any: ...
    def squares(self) -> Any: ...
    def thinned(self, stride: Any) -> Any: ...

class SearchState:
    best_objective: Any
    epoch: int
    phase: Literal["settle", "larger", "smaller", "polish", "done"]
    curve: tuple[float, ...]
    n_splits: int
    n_rounds: int
    stride: int
    moves: bool
    losses: tuple[float, ...]
    stages: Any
    def __init__(
        self,
        atoms: Tensor,
        previous: Tensor,
        codes: Any,
        best_atoms: Any,
        best_codes: Any,
        best_objective: Any = ...,
        epoch: int = 0,
        phase: Literal["settle", "larger", "smaller", "polish", "done"] = "settle",
        curve: tuple[float, ...] = ...,
        n_splits: int = 1,
        n_rounds: int = 0,
        stride: int = 1,
        moves: bool = True,
        losses: tuple[float, ...] = ...,
    ) -> None: ...
    @property
    def activity(self) -> Any: ...
    def as_dict(self) -> dict[str, Any]: ...
    def check(self, problem: Problem, atoms: Tensor) -> None: ...
    @property
    def found(self) -> Any: ...
    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SearchState: ...
    @property
    def share_done(self) -> Any: ...

class SizePath(NamedTuple):
    n_components: Tensor
    score: Tensor
    objective: Tensor

class StreamState:
    n_rows: float
    n_splits: int
    mean: float
    loss: float
    n_blocks: int
    def __init__(
        self,
        atoms: Tensor,
        memory: Memory,
        forgetting: float,
        n_rows: float = 0.0,
        n_splits: int = 1,
        mean: float = ...,
        loss: float = 0.0,
        n_blocks: int = 0,
    ) -> None: ...

def adapted(
    problem: Problem | ConvProblem,
    state: SearchState,
    atoms: Tensor,
    *,
    unbiased: bool = True,
    stopped: Callable[..., Any] = ...,
) -> Any: ...
def advance(problem: Problem, state: SearchState) -> SearchState: ...
def advance_stream(
    problem: Problem, state: StreamState, *, final: bool = False
) -> tuple[StreamState, bool]: ...
def after_search(problem: Problem, state: SearchState) -> tuple[StreamState, float]: ...
def auto_alpha(
    x: Tensor, *, mask: Tensor | None = None, total: Callable[..., Any] = ...
) -> float: ...
def begin(problem: Problem, atoms: Tensor) -> SearchState: ...
def begin_stream(
    atoms: Tensor,
    memory: Memory | None = None,
    *,
    forgetting: float,
    n_rows: float = 0.0,
    mean: float = ...,
) -> StreamState: ...
def choose_size(
    problem: Problem | ConvProblem,
    generator: torch.Generator,
    *,
    largest: int | None = None,
    start: Callable[..., Any] | None = None,
    hidden: Callable[..., Any] | None = None,
    stopped: Callable[..., Any] = ...,
) -> tuple[Tensor, SizePath]: ...
def conv_codes(
    dictionary: Any,
    x: Tensor,
    *,
    alpha: float,
    positive_code: bool = False,
    debias: float = 0.0,
    mask: Tensor | None = None,
) -> tuple[Tensor, NDArray[Any]]: ...
def conv_path(problem: ConvProblem, atoms: Tensor, alphas: Iterable[float]) -> Any: ...
def debias(problem: Problem, state: SearchState) -> Tensor: ...
def group_features(places: Tensor, n_groups: int) -> Any: ...
def is_done(state: SearchState) -> bool: ...
def match_equal_rows(x: Tensor, mask: Tensor | None = None) -> Tensor: ...
def objective(problem: Problem, atoms: Tensor, *, unbiased: bool = False) -> float: ...
def search(
    problem: Problem,
    atoms: Tensor,
    *,
    state: SearchState | None = None,
    on_epoch: Callable[..., Any] | None = None,
) -> SearchState: ...
def spread_rows(n_rows: int, n_places: int) -> Tensor: ...
def with_atoms(problem: Problem, state: SearchState, atoms: Tensor) -> SearchState: ...
def without_rows(
    problem: Problem, atoms: Tensor, codes: Any, kept: Any, *, unbiased: bool
) -> Tensor: ...
