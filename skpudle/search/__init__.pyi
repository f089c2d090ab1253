# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "ConvProblem",
    "HeldOut",
    "HiddenPixels",
    "Memory",
    "PenaltyPath",
    "Problem",
    "SearchState",
    "SizePath",
    "SizeTrial",
    "StreamState",
    "advance",
    "advance_stream",
    "after_search",
    "auto_alpha",
    "begin",
    "begin_stream",
    "best_shares",
    "choose_coding",
    "coding_of_l0",
    "coding_of_support",
    "combine_channels",
    "conv_codes",
    "conv_path",
    "correlation_level",
    "hide_in_turn",
    "hold_out",
    "is_done",
    "judged_rows",
    "map_directions",
    "match_equal_rows",
    "objective",
    "penalty_of_mixtures",
    "penalty_path",
    "principal_directions",
    "refine_products",
    "refit_atoms",
    "search",
    "search_above_noise",
    "searched",
    "spread_channels",
    "spread_rows",
    "try_sizes",
    "with_atoms",
]

class ConvProblem:
    positive_code: bool
    mask: Any
    unit: float
    held_out: Any
    held_rows: Any
    rank: Any
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
        held_out: Any = None,
        held_rows: Any = None,
        rank: Literal[1, None] | None = None,
    ) -> None: ...
    def epoch(self, atoms: Any, codes: Any, *, turn: Any = None, **effort: Any) -> Any: ...
    def first_codes(self, atoms: Any) -> Any: ...
    @property
    def n_positions(self) -> Any: ...
    @property
    def n_samples(self) -> Any: ...
    def no_codes(self) -> Any: ...
    def of_rows(self, rows: Any) -> Any: ...
    def project(self, atoms: Any) -> Any: ...
    def thinned(self, stride: Any, *, whole: Any = True, alpha: Any = None) -> Any: ...
    @staticmethod
    def total(*tensors: Any) -> Any: ...

class HeldOut:
    places: Any
    coding_places: Any
    smallest: Any
    largest: Any
    energies: Any
    deviations: Any
    margin: Any
    mixes: bool
    def __init__(
        self,
        problem: Problem,
        *,
        fixed: bool = False,
        mixes: bool = False,
        n_codings: int | None = None,
    ) -> None: ...
    def locate(self, atoms: Any) -> Any: ...
    def noise(self, atoms: Any, alpha: Any, debias: Any) -> Any: ...
    def predict(
        self, atoms: Tensor, place: int | None = None, steps: tuple[int, ...] = ...
    ) -> Any: ...
    def sums(self, atoms: Any, alphas: Any) -> Any: ...

class HiddenPixels:
    places: Any
    coding_places: Any
    smallest: Any
    largest: Any
    is_predictable: Any
    energies: Any
    margin: Any
    mixes: Any
    def __init__(self, problem: ConvProblem, *, fixed: bool = False) -> None: ...
    def locate(self, atoms: Any) -> Any: ...
    def noise(self, atoms: Any, alpha: Any, debias: Any) -> Any: ...
    def predict(
        self, atoms: Tensor, place: int | None = None, steps: tuple[int, ...] = ...
    ) -> Any: ...
    def sums(self, atoms: Any, alphas: Any) -> Any: ...

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

class PenaltyPath(NamedTuple):
    alpha: Tensor
    score: Tensor
    unbiased: Any

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
        held_out: HeldOut | None = None,
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

class SearchState:
    best_objective: Any
    epoch: int
    phase: Literal["settle", "larger", "smaller", "climb", "return", "polish", "done"]
    curve: tuple[float, ...]
    n_splits: int
    n_rounds: int
    stride: int
    moves: bool
    losses: tuple[float, ...]
    alpha: float
    best_alpha: float
    trials: Any
    path: Any
    unseen: Any
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
        phase: Literal[
            "settle", "larger", "smaller", "climb", "return", "polish", "done"
        ] = "settle",
        curve: tuple[float, ...] = ...,
        n_splits: int = 1,
        n_rounds: int = 0,
        stride: int = 1,
        moves: bool = True,
        losses: tuple[float, ...] = ...,
        alpha: float = 0.0,
        best_alpha: float = 0.0,
        trials: Any = ...,
        path: Any = ...,
        unseen: Tensor | None = None,
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
    def is_unbiased(self) -> Any: ...
    @property
    def share_done(self) -> Any: ...
    @property
    def stage(self) -> Any: ...

class SizePath(NamedTuple):
    n_components: Tensor
    score: Tensor
    objective: Tensor

class SizeTrial(NamedTuple):
    atoms: Tensor
    path: SizePath
    alpha: float
    is_last: bool

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
def best_shares(sums: Tensor) -> Tensor: ...
def choose_coding(
    held_out: HeldOut | HiddenPixels, atoms: Tensor, *, debias: float | None = None, place: int = 0
) -> Any: ...
def coding_of_l0(
    problem: Problem | ConvProblem,
    atoms: Tensor,
    l0: float,
    *,
    debias: float | None = None,
    n_images: float | None = None,
) -> tuple[Any, bool]: ...
def coding_of_support(problem: Problem, atoms: Tensor, *, debias: float | None = None) -> Any: ...
def combine_channels(x: Tensor, directions: Tensor) -> Tensor: ...
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
def correlation_level(problem: ConvProblem, atoms: Tensor) -> float: ...
def hide_in_turn(places: Tensor, n_groups: int = 10) -> Any: ...
def hold_out(
    problem: Problem | ConvProblem, *, fixed: bool = False, mixes: bool = False, learn: bool = True
) -> Problem: ...
def is_done(state: SearchState) -> bool: ...
def judged_rows(problem: Any) -> Any: ...
def map_directions(maps: Tensor) -> Tensor: ...
def match_equal_rows(x: Tensor, mask: Tensor | None = None) -> Tensor: ...
def objective(problem: Problem, atoms: Tensor, *, unbiased: bool = False) -> float: ...
def penalty_of_mixtures(problem: Problem, n_components: int) -> float: ...
def penalty_path(problem: Problem | ConvProblem, path: Any, unit: float) -> PenaltyPath | None: ...
def principal_directions(moments: Tensor, n_directions: int) -> Tensor: ...
def refine_products(
    problem: ConvProblem, atoms: Tensor, pieces: Any = None, directions: Tensor | None = None
) -> Tensor: ...
def refit_atoms(
    problem: Problem | ConvProblem,
    atoms: Tensor,
    codes: Any,
    n_epochs: int = 8,
    *,
    still: float = 1e-06,
) -> Tensor: ...
def search(
    problem: Problem,
    atoms: Tensor,
    *,
    state: SearchState | None = None,
    on_epoch: Callable[..., Any] | None = None,
) -> SearchState: ...
def search_above_noise(
    problem: ConvProblem, atoms: Tensor, state: SearchState
) -> tuple[ConvProblem, SearchState]: ...
def searched(problem: Problem | ConvProblem, state: SearchState) -> Problem | ConvProblem: ...
def spread_channels(atoms: Tensor, directions: Tensor | None) -> Tensor: ...
def spread_rows(n_rows: int, n_places: int) -> Tensor: ...
def try_sizes(
    problem: Problem | ConvProblem,
    generator: torch.Generator,
    *,
    fixed: bool = False,
    largest: int | None = None,
    start: Callable[..., Any] | None = None,
) -> Any: ...
def with_atoms(problem: Problem, state: SearchState, atoms: Tensor) -> SearchState: ...
