# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray
from scipy.sparse import csr_array

__all__ = [
    "Events",
    "Prior",
    "Progress",
    "SizePath",
    "advance",
    "atoms_of_events",
    "begin",
    "choose_prior",
    "choose_size",
    "converge",
    "converge_dispersed",
    "estimate_dispersion",
    "expected_events",
    "first_atoms",
    "limit_atoms",
    "negative_log",
    "prune_codes",
    "solve_codes",
    "solve_dispersed",
    "spectral_start",
    "start_from",
    "weigh",
]

class Events:
    missing: Any
    exposure: Any
    plain: Any
    allowed: Any
    saturated: Any
    by_feature: Any
    mean: Any
    def __init__(
        self,
        counts: csr_array,
        missing: csr_array | None = None,
        exposure: NDArray[Any] | None = None,
        plain: csr_array | None = None,
        allowed: NDArray[Any] | None = None,
    ) -> None: ...
    def half_deviance(self, atoms: Any, codes: Any) -> Any: ...
    @classmethod
    def joined(cls, parts: Any) -> Any: ...
    def loads(self, atoms: Any) -> Any: ...
    @classmethod
    def of(cls, x: Any, mask: Any = None, exposure: Any = None) -> Any: ...
    def parts(self, n_rows: Any) -> Any: ...
    def take(self, rows: Any) -> Any: ...
    def unexplained(self, atoms: Any, codes: Any) -> Any: ...
    def visible(self, codes: Any) -> Any: ...
    def without(self, hidden: Any) -> Any: ...

class Prior(NamedTuple):
    smoothing: float
    min_gain: float
    atoms: NDArray[Any]

class Progress(NamedTuple):
    atoms: NDArray[Any]
    codes: NDArray[Any]
    previous_atoms: NDArray[Any]
    previous_codes: NDArray[Any]
    factor: float = ...
    losses: tuple[float, ...] = ...
    objectives: tuple[float, ...] = ...
    n_fixed: int = ...
    def extrapolated(self) -> Any: ...

class SizePath(NamedTuple):
    n_components: NDArray[Any]
    score: NDArray[Any]
    objective: NDArray[Any]

def advance(events: Events, state: Progress, smoothing: float) -> Progress: ...
def atoms_of_events(found: Any, visible: Any, mean: Any, smoothing: Any) -> Any: ...
def begin(events: Any, atoms: Any, n_fixed: Any = 0) -> Any: ...
def choose_prior(
    events: Events,
    atoms: NDArray[Any],
    rng: Any,
    *,
    smoothing: float | Literal["auto"] = "auto",
    min_gain: float | Literal["auto"] = 0.0,
    n_fixed: int = 0,
    dispersion: float = 0.0,
) -> Prior: ...
def choose_size(
    events: Events,
    smoothing: float,
    rng: Any,
    dispersion: float | Literal["auto"] = 0.0,
    fixed: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], SizePath]: ...
def converge(
    events: Events, state: Progress, smoothing: float, n_steps: int = 400, tol: float = 1e-06
) -> Any: ...
def converge_dispersed(
    events: Events,
    weighted: Events,
    state: Progress,
    smoothing: float,
    dispersion: float | Literal["auto"],
    **options: Any,
) -> tuple[Progress, Events, float]: ...
def estimate_dispersion(events: Events, atoms: NDArray[Any], codes: NDArray[Any]) -> float: ...
def expected_events(events: Any, atoms: Any, codes: Any) -> Any: ...
def first_atoms(events: Any, n_components: Any, dispersion: Any = 0.0) -> Any: ...
def limit_atoms(
    events: Events, state: Progress, smoothing: float, min_gain: float, **options: Any
) -> tuple[Progress, Events]: ...
def negative_log(x: NDArray[Any], rates: NDArray[Any], dispersion: float) -> NDArray[Any]: ...
def prune_codes(
    events: Events, atoms: NDArray[Any], codes: NDArray[Any], min_gain: float, kept: Any = ...
) -> NDArray[Any]: ...
def solve_codes(
    events: Events, atoms: NDArray[Any], codes: NDArray[Any] | None = None, tol: float = 1e-05
) -> NDArray[Any]: ...
def solve_dispersed(
    events: Events,
    atoms: NDArray[Any],
    dispersion: float,
    codes: NDArray[Any] | None = None,
    **options: Any,
) -> tuple[NDArray[Any], Events]: ...
def spectral_start(
    x: NDArray[Any], n_components: int, mask: NDArray[Any] | None = None, dispersion: float = 0.0
) -> NDArray[Any]: ...
def start_from(events: Any, atoms: Any) -> Any: ...
def weigh(
    events: Events, atoms: NDArray[Any], codes: NDArray[Any], dispersion: float
) -> Events: ...
