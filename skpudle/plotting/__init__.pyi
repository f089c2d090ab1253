# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

__all__ = [
    "ActivationsDisplay",
    "AtomsDisplay",
    "CodesDisplay",
    "ConsensusDisplay",
    "ContributionsDisplay",
    "ConvergenceDisplay",
    "LossCurveDisplay",
    "PenaltyPathDisplay",
    "RecoveryDisplay",
    "SizePathDisplay",
    "SpectraDisplay",
    "StabilityDisplay",
]

class ActivationsDisplay:
    ax_: Any
    figure_: Any
    marks_: Any
    def __init__(
        self, sample: NDArray[Any], places: NDArray[Any], atoms: NDArray[Any], values: NDArray[Any]
    ) -> None: ...
    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        sample: ArrayLike,
        *,
        atom_shape: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        n_atoms: int = 10,
        ax: Any = None,
        **plot_params: Any,
    ) -> ActivationsDisplay: ...
    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike | Sequence[ArrayLike],
        *,
        index: int = 0,
        n_atoms: Any = 10,
        ax: Any = None,
        **plot_params: Any,
    ) -> ActivationsDisplay: ...
    def plot(
        self, *, ax: Any = None, sampling_rate: float | None = None, **mark_kwargs: Any
    ) -> ActivationsDisplay: ...

class AtomsDisplay:
    ax_: Any
    figure_: Any
    image_: Any
    lines_: Any
    def __init__(
        self, atoms: NDArray[Any], kind: Literal["images", "lines"] = "images"
    ) -> None: ...
    @classmethod
    def from_atoms(
        cls,
        atoms: ArrayLike,
        *,
        kind: Literal["auto", "images", "lines"] = "auto",
        image_shape: tuple[int, ...] | None = None,
        n_atoms: int | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> AtomsDisplay: ...
    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike | None = None,
        *,
        sort: Literal["usage", "energy", "r2_loss"] = "usage",
        kind: Any = "auto",
        image_shape: Any = None,
        n_atoms: Any = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> AtomsDisplay: ...
    def plot(
        self,
        *,
        ax: Any = None,
        n_columns: int | None = None,
        sampling_rate: float | None = None,
        **style: Any,
    ) -> AtomsDisplay: ...

class CodesDisplay:
    ax_: Any
    figure_: Any
    heights_: NDArray[Any]
    def __init__(self, codes: NDArray[Any]) -> None: ...
    @classmethod
    def from_codes(
        cls, codes: ArrayLike, *, kind: Any = "usage", ax: Any = None
    ) -> CodesDisplay: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, *, kind: Any = "usage", ax: Any = None
    ) -> CodesDisplay: ...
    def plot(
        self, *, kind: Literal["usage", "count", "magnitude"] = "usage", ax: Any = None
    ) -> CodesDisplay: ...

class ConsensusDisplay:
    ax_: Any
    figure_: Any
    line_: Any
    agreeing_line_: Any
    threshold_line_: Any
    order_: NDArray[Any]
    def __init__(
        self, stability: NDArray[Any], agreeing: NDArray[Any], threshold: float = 0.9
    ) -> None: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, *, threshold: float = 0.9, ax: Any = None, **line_kwargs: Any
    ) -> ConsensusDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> ConsensusDisplay: ...

class ContributionsDisplay:
    ax_: Any
    figure_: Any
    image_: Any
    lines_: Any
    def __init__(
        self,
        pictures: NDArray[Any],
        values: NDArray[Any],
        labels: list[str],
        kind: Literal["images", "lines"] = "images",
    ) -> None: ...
    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_train: ArrayLike,
        X: ArrayLike | None = None,
        *,
        atoms: Any = None,
        n_largest: int = 6,
        ridge: float = 0.0,
        kind: Any = "auto",
        image_shape: Any = None,
        ax: Any = None,
    ) -> ContributionsDisplay: ...
    def plot(self, *, ax: Any = None, **style: Any) -> ContributionsDisplay: ...

class ConvergenceDisplay:
    ax_: Any
    figure_: Any
    lines_: Any
    def __init__(self, n_unfoldings: NDArray[Any], errors: dict[str, NDArray[Any]]) -> None: ...
    @classmethod
    def from_codes(
        cls, curves: Bunch, *, ax: Any = None, **line_kwargs: Any
    ) -> ConvergenceDisplay: ...
    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        kind: Literal["code", "gradient"] = "code",
        n_unfoldings: int = 200,
        ax: Any = None,
        **line_kwargs: Any,
    ) -> ConvergenceDisplay: ...
    @classmethod
    def from_gradients(
        cls,
        curves: Bunch,
        *,
        reference: Literal["local", "minimizer", "truth"] = "local",
        ax: Any = None,
        **line_kwargs: Any,
    ) -> ConvergenceDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Any: ...

class LossCurveDisplay:
    ax_: Any
    figure_: Any
    lines_: Any
    def __init__(
        self, curves: dict[str, NDArray[Any]], n_searched: dict[str, int] | None = None
    ) -> None: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **line_kwargs: Any
    ) -> LossCurveDisplay: ...
    @classmethod
    def from_estimators(
        cls, estimators: Any, *, ax: Any = None, **line_kwargs: Any
    ) -> LossCurveDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> LossCurveDisplay: ...

class PenaltyPathDisplay:
    ax_: Any
    figure_: Any
    lines_: Any
    unbiased_line_: Any
    chosen_line_: Any
    def __init__(
        self, alpha: NDArray[Any], score: NDArray[Any], unbiased: Any, chosen: float
    ) -> None: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, *, ax: Any = None, **line_kwargs: Any
    ) -> PenaltyPathDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> PenaltyPathDisplay: ...

class RecoveryDisplay:
    ax_: Any
    figure_: Any
    image_: Any
    def __init__(self, coherences: NDArray[Any]) -> None: ...
    @classmethod
    def from_dictionaries(
        cls, dictionary: ArrayLike, reference: ArrayLike, *, ax: Any = None, **image_kwargs: Any
    ) -> RecoveryDisplay: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, reference: ArrayLike, *, ax: Any = None, **image_kwargs: Any
    ) -> RecoveryDisplay: ...
    def plot(self, *, ax: Any = None, **image_kwargs: Any) -> RecoveryDisplay: ...

class SizePathDisplay:
    ax_: Any
    figure_: Any
    line_: Any
    chosen_line_: Any
    def __init__(self, n_components: NDArray[Any], score: NDArray[Any], chosen: int) -> None: ...
    @classmethod
    def from_estimator(
        cls, estimator: Any, *, ax: Any = None, **line_kwargs: Any
    ) -> SizePathDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> SizePathDisplay: ...

class SpectraDisplay:
    ax_: Any
    figure_: Any
    bars_: Any
    def __init__(
        self, spectra: NDArray[Any], names: Any = None, groups: Any = None, colors: Any = None
    ) -> None: ...
    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        ax: Any = None,
        **bar_kwargs: Any,
    ) -> SpectraDisplay: ...
    @classmethod
    def from_spectra(
        cls,
        spectra: ArrayLike,
        *,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        ax: Any = None,
        **bar_kwargs: Any,
    ) -> SpectraDisplay: ...
    def plot(self, *, ax: Any = None, **bar_kwargs: Any) -> SpectraDisplay: ...

class StabilityDisplay:
    ax_: Any
    figure_: Any
    line_: Any
    count_line_: Any
    score_line_: Any
    right_ax_: Any
    def __init__(
        self,
        n_components: NDArray[Any],
        atoms: list[NDArray[Any]],
        threshold: float = 0.9,
        scores: NDArray[Any] | None = None,
    ) -> None: ...
    @classmethod
    def from_dictionaries(
        cls,
        dictionaries: Any,
        *,
        threshold: float = 0.9,
        scores: ArrayLike | None = None,
        ax: Any = None,
    ) -> StabilityDisplay: ...
    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> StabilityDisplay: ...
