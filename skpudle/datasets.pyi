# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "extract_patches",
    "load_gray_images",
    "load_image_patches",
    "make_dictionary_data",
    "perturb_dictionary",
]

def extract_patches(
    images: Sequence[ArrayLike],
    patch_size: tuple[int, ...] = ...,
    n_patches: int | None = 10000,
    *,
    center: bool = True,
    normalize: bool = True,
    dtype: DTypeLike = ...,
    random_state: int | np.random.RandomState | None = None,
) -> NDArray[Any]: ...
def load_gray_images(folder: str | str | PathLike[str] | None = None) -> list[NDArray[Any]]: ...
def load_image_patches(
    folder: str | str | PathLike[str] | None = None,
    patch_size: tuple[int, ...] = ...,
    n_patches: int | None = 10000,
    *,
    center: bool = True,
    normalize: bool = True,
    dtype: DTypeLike = ...,
    random_state: int | np.random.RandomState | None = None,
) -> NDArray[Any]: ...
def make_dictionary_data(
    n_samples: int = 1000,
    n_features: int | None = None,
    n_components: int | None = None,
    n_nonzero: int = 5,
    *,
    amplitude: tuple[float, ...] = ...,
    sign: Literal["entry", "sample", None] = "entry",
    snr_db: float | None = None,
    dictionary: ArrayLike | None = None,
    dtype: DTypeLike = ...,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def perturb_dictionary(
    dictionary: ArrayLike, tau: float, *, random_state: int | np.random.RandomState | None = None
) -> NDArray[Any]: ...
