# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import SparseCoder
from sklearn.utils import Bunch
from torch import Tensor

from skpudle import additive as additive
from skpudle import checkpoint as checkpoint
from skpudle import datasets as datasets
from skpudle import diagnostics as diagnostics
from skpudle import encoding as encoding
from skpudle import gradients as gradients
from skpudle import images as images
from skpudle import initialization as initialization
from skpudle import inspection as inspection
from skpudle import interoperability as interoperability
from skpudle import lasso as lasso
from skpudle import losses as losses
from skpudle import metrics as metrics
from skpudle import omp as omp
from skpudle import operators as operators
from skpudle import optimizers as optimizers
from skpudle import plotting as plotting
from skpudle import pretrained as pretrained
from skpudle import reporting as reporting
from skpudle import search as search
from skpudle import shrinkage as shrinkage
from skpudle.checkpoint import Checkpoint as Checkpoint
from skpudle.reporting import report as report

__all__ = [
    "Checkpoint",
    "ConsensusDictionary",
    "ConvPUDLEDictionaryLearning",
    "DictionaryImputer",
    "NOODLDictionaryLearning",
    "PUDLEClassifier",
    "PUDLEDictionaryLearning",
    "PUDLERegressor",
    "PoissonNMF",
    "SporcoDictionaryLearning",
    "__version__",
    "data_parallel",
    "report",
]

class ConsensusDictionary(BaseEstimator, TransformerMixin):
    components_: NDArray[Any]
    stability_: NDArray[Any]
    n_agreeing_: NDArray[Any]
    replicates_: list[NDArray[Any]]
    matches_: NDArray[Any]
    estimator_: Any
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    def __init__(
        self,
        estimator: Any,
        n_replicates: int = 20,
        *,
        resample: Literal["seeds", "bootstrap", "halves"] = "seeds",
        density_threshold: float | None = 0.5,
        neighborhood: float = 0.3,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None: ...
    def fit(self, X: ArrayLike, y: None = None) -> Self: ...
    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]: ...
    def score(self, X: ArrayLike, y: None = None) -> float: ...
    def transform(self, X: ArrayLike) -> NDArray[Any]: ...

class ConvPUDLEDictionaryLearning(BaseEstimator, TransformerMixin):
    set_score_request: Any
    device: str
    split_sign: Any
    loss: Literal["gaussian", "poisson", "binomial"]
    n_trials: float
    components_: NDArray[Any]
    analysis_components_: NDArray[Any]
    decoder_components_: NDArray[Any]
    synthesis_components_: NDArray[Any]
    alpha_: float | NDArray[Any]
    alpha_slope_: float | NDArray[Any]
    debias_: float
    noise_std_: float
    search_alpha_: float
    step_size_: float
    peak_: float
    intercept_: NDArray[Any]
    n_components_: Any
    size_path_: Any
    penalty_path_: Any
    lambda_decay_: Any
    device_: Any
    n_iter_: Any
    n_steps_: Any
    loss_curve_: Any
    ended_by_: Any
    phases_: Any
    fit_seconds_: Any
    n_features_in_: int
    def __init__(
        self,
        n_components: int | Literal["auto"] = 64,
        *,
        atom_shape: int | tuple[int, ...] = ...,
        stride: int | tuple[int, ...] | Literal["auto"] = "auto",
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        loss: Literal["gaussian", "poisson", "binomial"] = "gaussian",
        n_trials: float = 1,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        step_size: float | Literal["auto"] = "auto",
        lambda_decay: Any = 1.0,
        shrinkage: Literal["soft", "hard"] = "soft",
        debias: float | Literal["auto"] = "auto",
        positive_code: bool = False,
        atom_norm: Literal["unit", "ball", None] = "unit",
        learn_threshold: Literal["one", "atom", "unfolding"] | None = None,
        learn_step: bool = False,
        separate_atoms: Literal["analysis", "decoder", "both", "unfolding"] | None = None,
        noise_std: Any = 0.0,
        crop_size: int | Literal["auto"] = "auto",
        flip: bool = True,
        n_train_shifts: int = 1,
        shift_average: bool = False,
        image_shape: tuple[int, ...] | None = None,
        optimizer: Any = "adam",
        learning_rate: float = 0.001,
        optimizer_params: dict[str, Any] | None = None,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: Any = 0.0001,
        n_iter_no_change: Any = 5,
        dict_init: Literal["auto", "search", "random", "data", "dct"] | ArrayLike = "auto",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def choose_alpha(
        self, X: ArrayLike | Tensor | Sequence[ArrayLike], *, l0: float | None = None
    ) -> Self: ...
    def denoise(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        *,
        noise_std: float | ArrayLike | None = None,
    ) -> Any: ...
    def fit(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        y: ArrayLike | Tensor | Sequence[ArrayLike] | None = None,
    ) -> Self: ...
    def inverse_transform(self, X: Any) -> Any: ...
    def partial_fit(self, X: Any, y: Any = None) -> Self: ...
    def score(
        self,
        X: ArrayLike | Tensor | Sequence[ArrayLike],
        y: ArrayLike | Tensor | Sequence[ArrayLike] | None = None,
        *,
        peak: float = 1.0,
    ) -> float: ...
    def to_module(self) -> Any: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(self, X: ArrayLike | Tensor | Sequence[ArrayLike]) -> Any: ...
    def transform_into(self, X: Any, out: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any) -> csr_array: ...

class DictionaryImputer(BaseEstimator, TransformerMixin):
    estimator_: Any
    means_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    def __init__(self, estimator: Any = None) -> None: ...
    def fit(self, X: ArrayLike, y: Any = None) -> Self: ...
    def transform(self, X: ArrayLike) -> NDArray[Any]: ...

class NOODLDictionaryLearning(BaseEstimator, TransformerMixin):
    device: Any
    split_sign: Any
    loss: Any
    n_trials: Any
    components_: NDArray[Any]
    alpha_: float
    n_components_: Any
    n_features_in_: Any
    n_iter_: Any
    n_steps_: Any
    loss_curve_: Any
    ended_by_: Any
    phases_: Any
    fit_seconds_: Any
    step_size_: Any
    device_: Any
    def __init__(
        self,
        n_components: int | None = None,
        *,
        threshold: float | Literal["auto"] = "auto",
        initial_threshold: float | None = None,
        n_unfoldings: int = 100,
        step_size: float | Literal["auto"] = "auto",
        learning_rate: float = 0.1,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        tol: Any = 0.0001,
        n_iter_no_change: Any = 5,
        dict_init: Any = "search",
        device: Any = "auto",
        random_state: Any = None,
        verbose: Any = 0,
    ) -> None: ...
    def fit(self, X: Any, y: None = None) -> Self: ...
    @classmethod
    def from_components(
        cls,
        components: Any,
        *,
        intercept: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        **params: Any,
    ) -> Any: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def partial_fit(self, X: Any, y: None = None) -> Self: ...
    def score(self, X: ArrayLike | Tensor, y: None = None) -> float: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_into(self, X: Any, out: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any) -> csr_array: ...

class PUDLEClassifier(BaseEstimator, TransformerMixin):
    set_fit_request: Any
    set_partial_fit_request: Any
    set_score_request: Any
    device: str
    split_sign: bool
    loss: Any
    n_trials: Any
    classes_: NDArray[Any]
    coef_: Any
    intercept_: NDArray[Any]
    validation_scores_: NDArray[Any]
    components_: Any
    alpha_: Any
    step_size_: Any
    loss_curve_: Any
    n_iter_: Any
    n_steps_: Any
    ended_by_: Any
    phases_: Any
    device_: Any
    fit_seconds_: Any
    n_components_: Any
    n_features_in_: Any
    feature_names_in_: Any
    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        supervision: float = 0.5,
        C: float = 1.0,
        class_weight: dict[str, Any] | Literal["balanced"] | None = None,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        positive_code: bool = False,
        split_sign: bool = True,
        learning_rate: float = 0.001,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 0.0001,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        dict_init: Any = "search",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def decision_function(self, X: ArrayLike | Tensor) -> Any: ...
    def fit(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | None = None
    ) -> Self: ...
    def fit_transform(self, X: Any, y: Any, sample_weight: Any = None) -> NDArray[Any] | Tensor: ...
    @classmethod
    def from_components(cls, components: Any, **params: Any) -> None: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def partial_fit(
        self,
        X: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self: ...
    def predict(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def predict_log_proba(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def predict_proba(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def score(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | None = None
    ) -> float: ...
    def to_module(self) -> Any: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_into(self, X: Any, out: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any) -> csr_array: ...

class PUDLEDictionaryLearning(BaseEstimator, TransformerMixin):
    set_fit_request: Any
    set_partial_fit_request: Any
    set_score_request: Any
    set_transform_request: Any
    device: str
    split_sign: bool
    loss: Literal["gaussian", "poisson", "binomial"]
    n_trials: float
    components_: NDArray[Any]
    n_components_: int
    size_path_: Bunch
    penalty_path_: Bunch
    intercept_: NDArray[Any]
    mean_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    n_iter_: int
    n_steps_: int
    n_samples_seen_: int
    loss_curve_: NDArray[Any]
    ended_by_: str
    phases_: dict[str, int]
    fit_seconds_: Any
    alpha_: float
    analysis_components_: NDArray[Any]
    synthesis_components_: NDArray[Any]
    thresholds_: NDArray[Any]
    debias_: float
    noise_std_: float
    search_alpha_: float
    step_size_: float
    lambda_decay_: float
    device_: str
    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        gradient: Literal["auto", "ae-ls", "ae-lasso", "dec"] = "auto",
        loss: Literal["gaussian", "poisson", "binomial"] = "gaussian",
        n_trials: float = 1,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        step_size: float | Literal["auto"] = "auto",
        lambda_decay: Any = 1.0,
        shrinkage: Literal["soft", "hard"] = "soft",
        debias: float | Literal["auto"] = "auto",
        separate_atoms: bool | Literal["unfolding"] = False,
        positive_code: bool = False,
        positive_dict: bool = False,
        atom_norm: Literal["unit", "ball", None] = "unit",
        optimizer: Any = "auto",
        learning_rate: float = 0.001,
        optimizer_params: dict[str, Any] | None = None,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 0.0001,
        n_iter_no_change: int = 5,
        dict_init: Any = "search",
        transform_algorithm: Literal["unfolded", "lasso", "omp"] = "unfolded",
        transform_n_nonzero_coefs: int | None = None,
        transform_tol: float | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def choose_alpha(
        self,
        X: ArrayLike | Tensor,
        *,
        l0: float | None = None,
        criterion: Literal["prediction", "support"] = "prediction",
    ) -> Self: ...
    def fit(self, X: Any, y: None = None, exposure: ArrayLike | None = None) -> Self: ...
    def fit_transform(
        self, X: Any, y: Any = None, exposure: Any = None
    ) -> NDArray[Any] | Tensor: ...
    @classmethod
    def from_components(
        cls,
        components: Any,
        *,
        intercept: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        **params: Any,
    ) -> Any: ...
    @classmethod
    def from_sae(
        cls,
        folder: str | str | PathLike[str],
        X: ArrayLike | Tensor | None = None,
        *,
        l0: float | None = None,
        **params: Any,
    ) -> PUDLEDictionaryLearning: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def partial_fit(self, X: Any, y: None = None, exposure: ArrayLike | None = None) -> Self: ...
    def score(
        self, X: ArrayLike | Tensor, y: None = None, exposure: ArrayLike | None = None
    ) -> float: ...
    def to_module(self) -> Any: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(
        self, X: ArrayLike | Tensor, exposure: ArrayLike | None = None
    ) -> NDArray[Any] | Tensor: ...
    def transform_into(
        self, X: Any, out: NDArray[Any] | Tensor, exposure: ArrayLike | None = None
    ) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any, exposure: ArrayLike | None = None) -> csr_array: ...

class PUDLERegressor(BaseEstimator, TransformerMixin):
    set_fit_request: Any
    set_partial_fit_request: Any
    set_score_request: Any
    device: str
    split_sign: bool
    loss: Any
    n_trials: Any
    coef_: NDArray[Any]
    intercept_: float | NDArray[Any]
    validation_scores_: NDArray[Any]
    components_: Any
    alpha_: Any
    step_size_: Any
    loss_curve_: Any
    n_iter_: Any
    n_steps_: Any
    ended_by_: Any
    phases_: Any
    device_: Any
    fit_seconds_: Any
    n_components_: Any
    n_features_in_: Any
    feature_names_in_: Any
    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        supervision: float = 0.5,
        C: float = 0.1,
        n_unfoldings: int | Literal["auto"] | None = "auto",
        positive_code: bool = False,
        split_sign: bool = True,
        learning_rate: float = 0.001,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 0.0001,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        dict_init: Any = "search",
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def fit(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | None = None
    ) -> Self: ...
    def fit_transform(self, X: Any, y: Any, sample_weight: Any = None) -> NDArray[Any] | Tensor: ...
    @classmethod
    def from_components(cls, components: Any, **params: Any) -> None: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def partial_fit(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | None = None
    ) -> Self: ...
    def predict(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def score(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | None = None
    ) -> float: ...
    def to_module(self) -> Any: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_into(self, X: Any, out: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any) -> csr_array: ...

class PoissonNMF(BaseEstimator, TransformerMixin):
    loss: Any
    device: Any
    set_fit_request: Any
    set_partial_fit_request: Any
    set_score_request: Any
    set_transform_request: Any
    split_sign: Any
    n_trials: Any
    components_: NDArray[Any]
    n_components_: int
    alpha_: float
    dispersion_: float
    min_gain_: float
    size_path_: Bunch
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    n_iter_: int
    n_steps_: int
    loss_curve_: NDArray[Any]
    ended_by_: str
    phases_: dict[str, int]
    fit_seconds_: Any
    def __init__(
        self,
        n_components: int | Literal["auto"] | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        dispersion: float | Literal["auto"] | None = "auto",
        min_gain: float | Literal["auto"] = "auto",
        batch_size: int = 256,
        max_iter: int | Literal["auto"] = "auto",
        tol: float | None = 1e-06,
        n_iter_no_change: int = 5,
        dict_init: Any = "search",
        fixed_components: ArrayLike | None = None,
        transform_min_gain: float = 0.0,
        transform_kept: Any = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def fit(self, X: Any, y: None = None, exposure: ArrayLike | None = None) -> Self: ...
    def fit_transform(
        self, X: Any, y: Any = None, exposure: Any = None
    ) -> NDArray[Any] | Tensor: ...
    @classmethod
    def from_components(cls, components: Any, **params: Any) -> PoissonNMF: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def partial_fit(self, X: Any, y: None = None, exposure: ArrayLike | None = None) -> Self: ...
    def score(
        self, X: ArrayLike | Tensor, y: None = None, exposure: ArrayLike | None = None
    ) -> float: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(
        self, X: ArrayLike | Tensor, exposure: ArrayLike | None = None
    ) -> NDArray[Any] | Tensor: ...
    def transform_into(
        self, X: Any, out: NDArray[Any] | Tensor, exposure: ArrayLike | None = None
    ) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any, exposure: ArrayLike | None = None) -> csr_array: ...

class SporcoDictionaryLearning(BaseEstimator, TransformerMixin):
    device: Any
    split_sign: Any
    loss: Any
    n_trials: Any
    components_: NDArray[Any]
    n_components_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    n_iter_: int
    loss_curve_: NDArray[Any]
    ended_by_: str
    alpha_: float
    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float | Literal["auto"] = "auto",
        max_iter: int = 200,
        dict_init: Literal["data", "random", "svd", "pairwise"] | ArrayLike = "data",
        options: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None: ...
    def fit(self, X: ArrayLike | Tensor, y: None = None) -> Self: ...
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def score(self, X: ArrayLike | Tensor, y: None = None) -> float: ...
    def to_sparse_coder(
        self,
        transform_algorithm: Literal[
            "lasso_cd", "lasso_lars", "lars", "omp", "threshold"
        ] = "lasso_cd",
        **params: Any,
    ) -> SparseCoder: ...
    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_into(self, X: Any, out: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor: ...
    def transform_sparse(self, X: Any) -> csr_array: ...

__version__: str

def data_parallel(group: Any = None, *, timeout: float = 60.0) -> Any: ...
