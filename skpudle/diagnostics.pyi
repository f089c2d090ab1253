# Written by `make stubs` from signatures and docstrings: change those.
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

__all__ = ["code_convergence", "gradient_convergence", "lasso_dictionary", "training_convergence"]

def code_convergence(
    X: ArrayLike,
    components: ArrayLike,
    *,
    alpha: float,
    n_unfoldings: int = 100,
    step_size: float | Literal["auto"] = "auto",
    n_directions: int | None = 8,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch: ...
def gradient_convergence(
    X: ArrayLike,
    components: ArrayLike,
    *,
    alpha: float,
    n_unfoldings: Any = 100,
    step_size: float | Literal["auto"] = "auto",
    code: ArrayLike | None = None,
    minimizer: ArrayLike | None = None,
    per_sample: bool = False,
) -> Bunch: ...
def lasso_dictionary(
    X: ArrayLike, components: ArrayLike, *, alpha: float, max_iter: int = 1000, tol: float = 1e-06
) -> Bunch: ...
def training_convergence(
    learner: Any, X: ArrayLike, *, n_epochs: int, references: Any
) -> Bunch: ...
