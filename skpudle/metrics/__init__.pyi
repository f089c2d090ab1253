# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

__all__ = [
    "AtomMatch",
    "CodeIntervals",
    "ComponentMatch",
    "atom_coherence",
    "atom_cosines",
    "atom_importance",
    "code_intervals",
    "dictionary_error",
    "dictionary_stability",
    "lasso_objective",
    "make_denoising_scorer",
    "make_dictionary_recovery_scorer",
    "make_lasso_objective_scorer",
    "match_atoms",
    "match_components",
    "mean_correlation",
    "reconstruction_r2_scorer",
    "recovery_rate",
    "support_recovery",
    "unexplained_variance",
]

class AtomMatch(NamedTuple):
    indices: Any
    reference_indices: Any
    signs: Any
    coherences: Any
    def align_code(self, code: Any) -> Any: ...
    def align_dictionary(self, dictionary: Any) -> Any: ...

class CodeIntervals(NamedTuple):
    codes: Any
    low: Any
    high: Any

class ComponentMatch(NamedTuple):
    nearest: Any
    cosine: Any
    shares: Any
    mixture_cosine: Any

def atom_coherence(dictionary: ArrayLike, reference: ArrayLike) -> NDArray[Any]: ...
def atom_cosines(dictionary: ArrayLike, reference: ArrayLike) -> NDArray[Any]: ...
def atom_importance(learner: Any, X: ArrayLike) -> Bunch: ...
def code_intervals(
    learner: Any,
    X: ArrayLike,
    *,
    n_draws: int = 100,
    level: float = 0.95,
    exposure: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> CodeIntervals: ...
def dictionary_error(
    dictionary: ArrayLike, reference: ArrayLike, *, relative: bool = True, match: bool = False
) -> float: ...
def dictionary_stability(dictionaries: Sequence[ArrayLike], *, threshold: float = 0.9) -> Bunch: ...
def lasso_objective(
    X: ArrayLike, code: ArrayLike, reconstruction: ArrayLike, alpha: float
) -> float: ...
def make_denoising_scorer(*, noise_std: float | None = None) -> Callable[..., Any]: ...
def make_dictionary_recovery_scorer(
    reference: ArrayLike,
    *,
    measure: Literal["recovery_rate", "coherence", "error"] = "recovery_rate",
    threshold: float = 0.9,
) -> Callable[..., Any]: ...
def make_lasso_objective_scorer(*, alpha: float | None = None) -> Callable[..., Any]: ...
def match_atoms(
    dictionary: ArrayLike,
    reference: ArrayLike,
    *,
    by: Literal["coherence", "distance"] = "coherence",
) -> AtomMatch: ...
def match_components(
    components: ArrayLike, reference: ArrayLike, names: Any = None, max_terms: int = 3
) -> Any: ...
def mean_correlation(code: ArrayLike, reference: ArrayLike) -> float: ...
def reconstruction_r2_scorer(estimator: Any, X: ArrayLike, y: Any = None) -> float: ...
def recovery_rate(
    dictionary: ArrayLike, reference: ArrayLike, *, threshold: float = 0.9
) -> float: ...
def support_recovery(
    code: ArrayLike, reference: ArrayLike, *, signed: bool = False, threshold: float = 0.0
) -> Bunch: ...
def unexplained_variance(X: ArrayLike, reconstruction: ArrayLike) -> float: ...
