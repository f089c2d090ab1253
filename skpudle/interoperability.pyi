# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import Any, Literal

from numpy.typing import ArrayLike
from sklearn.decomposition import SparseCoder
from sklearn.utils import Bunch

__all__ = ["dictionary_of", "load_atoms", "make_sparse_coder", "save_atoms", "save_sae"]

def dictionary_of(source: Any) -> ArrayLike: ...
def load_atoms(file: str | str | PathLike[str]) -> Bunch: ...
def make_sparse_coder(
    learner: Any,
    transform_algorithm: Literal["lasso_cd", "lasso_lars", "lars", "omp", "threshold"] = "lasso_cd",
    **params: Any,
) -> SparseCoder: ...
def save_atoms(
    learner: Any,
    file: str | str | PathLike[str],
    *,
    mean: ArrayLike | None = None,
    notes: dict[str, Any] | None = None,
) -> None: ...
def save_sae(learner: Any, folder: str | str | PathLike[str]) -> None: ...
