# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

__all__ = ["dict_learning_online", "load_atoms", "load_sae", "save_atoms", "save_sae"]

def dict_learning_online(
    X: ArrayLike,
    n_components: int | None = 2,
    *,
    alpha: float | Literal["auto"] = 1,
    return_code: bool = True,
    dict_init: ArrayLike | None = None,
    random_state: int | np.random.RandomState | None = None,
    **params: Any,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def load_atoms(file: str | str | PathLike[str]) -> Bunch: ...
def load_sae(folder: str | str | PathLike[str]) -> Bunch: ...
def save_atoms(
    learner: Any,
    file: str | str | PathLike[str],
    *,
    mean: ArrayLike | None = None,
    notes: dict[str, Any] | None = None,
) -> None: ...
def save_sae(learner: Any, folder: str | str | PathLike[str]) -> None: ...
