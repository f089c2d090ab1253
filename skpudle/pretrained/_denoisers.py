"""Read and write denoisers, without pickling."""

import io
import os
from importlib import resources
from math import prod
from os import PathLike
from pathlib import Path
from typing import IO, Literal
from zlib import crc32

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import resolve_device
from skpudle._data.files import MOST_UNFOLDINGS, named_errors, replace_file
from skpudle._data.images import check_sizes, sizes
from skpudle._learners.base import KEPT
from skpudle._learners.convolutional.denoiser import ConvDenoiser
from skpudle._learners.convolutional.parameters import stride_of
from skpudle._shrinkage import SHRINKAGES
from skpudle._training.archive import read_arrays

# parameters of `denoise` that a file holds in addition to the arrays
_PARAMETERS = ("atom_shape", "n_unfoldings", "shrinkage", "positive_code")
_OWN_ATOMS = ("analysis_components_", "synthesis_components_")
_ARRAYS = ("components_", *_OWN_ATOMS, "alpha_", "alpha_slope_")
_OPTIONAL = {*_OWN_ATOMS, "alpha_slope_"}
_NUMBERS = ("step_size_", "lambda_decay_", "peak_")
# range of positive numbers, since computations may be in float32
_LEAST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_RANGES = {
    "n_unfoldings": (1, MOST_UNFOLDINGS),
    "noise_std": (0, _LARGEST),
    "positive_code": (0, 1),
    "step_size_": (_LEAST, _LARGEST),
    "lambda_decay_": (_LEAST, 1),
    "peak_": (_LEAST, _LARGEST),
}
_WHOLE = {"atom_shape", "stride", "n_unfoldings", "positive_code"}
_PACKAGED = {
    "gaussian": "denoiser_gray.npz",
    "gaussian-small": "denoiser_gray_small.npz",
    "poisson": "denoiser_photons.npz",
}
_KNOWN = {*_PARAMETERS, "stride", "noise_std", *_ARRAYS, *_NUMBERS}
_SEPARATE = {(): None, ("analysis", "synthesis"): "unfolding"}


def _sizes(value):  # an array -> an int, or a tuple
    return tuple(value.tolist()) if value.ndim else int(value)


def _check(values):
    """Raise ValueError unless the arrays, by name, make a denoiser."""
    unknown, missing = values.keys() - _KNOWN, _KNOWN - _OPTIONAL - values.keys()
    if unknown or missing:
        raise ValueError(f"it holds unknown {sorted(unknown)} and lacks {sorted(missing)}")
    if values["shrinkage"].tolist() not in list(SHRINKAGES):
        raise ValueError(f"shrinkage is {values['shrinkage'].tolist()!r:.50}")
    texts = {"shrinkage"} | ({"noise_std"} if values["noise_std"].tolist() == "poisson" else set())
    for name in sorted(values.keys() - texts):
        value = values[name]
        kinds = "bi" if name in _WHOLE else "f" if name in _ARRAYS else "if"
        if value.dtype.kind not in kinds:
            raise ValueError(f"{name} is of dtype {value.dtype}, expected kinds {kinds!r}")
        least, largest = _RANGES.get(name, (-_LARGEST, _LARGEST))
        one = value.ndim == 0 or (name == "noise_std" and value.shape == (2,))
        if (name in _RANGES and not one) or not ((value >= least) & (value <= largest)).all():
            raise ValueError(f"{name} is no number from {least:.6g} to {largest:.6g}")
    kernel = sizes(_sizes(values["atom_shape"]), 1)
    stride = sizes(_sizes(values["stride"]), len(kernel))
    check_sizes(kernel, stride)
    if any(s > k for s, k in zip(stride, kernel, strict=True)):
        raise ValueError(f"a stride of {stride} leaves gaps between atoms of {kernel}")
    atoms = values["components_"]
    if not atoms.size or atoms.shape[1:] not in (kernel, (*kernel, *atoms.shape[-1:])):
        raise ValueError(f"components_ has shape {atoms.shape} for atoms of {kernel}")
    depth = int(values["n_unfoldings"])
    expected = dict(
        analysis_components_=(depth, *atoms.shape),
        synthesis_components_=(depth - 1, *atoms.shape),
    )
    for name in values.keys() & set(_OWN_ATOMS):
        if values[name].shape != expected[name]:
            raise ValueError(f"{name} has shape {values[name].shape}, expected {expected[name]}")
    if _separate(values) not in _SEPARATE:
        raise ValueError(f"it holds atoms of {_separate(values)}, which do not belong together")
    for name in values.keys() & {"alpha_", "alpha_slope_"}:
        alpha, rows = values[name], (depth, len(atoms))
        if alpha.shape not in ((), rows[1:], rows) or (alpha < 0).any():
            raise ValueError(f"{name} is no threshold of shape (), {rows[1:]} or {rows}")
    if ("alpha_slope_" in values) != (values["noise_std"].ndim == 1):
        raise ValueError("thresholds follow the noise only where noise_std is a pair")


def _check_codes(learner):
    """Raise ValueError unless parameters fit each other and give finite pixels."""
    shape = learner.components_.shape[1:]
    image = np.linspace(0, 1, prod(shape), dtype=learner.components_.dtype).reshape(shape)
    with np.errstate(all="ignore"):
        (found,) = learner.inverse_transform(learner.transform([image]))
    if not np.isfinite(found).all():
        raise ValueError("its pixels are not finite")


def _separate(values):  # -> the names of atoms that are separate
    names = (name.removesuffix("_components_") for name in _OWN_ATOMS if name in values)
    return tuple(names)


def save_denoiser(learner: ConvDenoiser, file: str | PathLike[str] | IO[bytes]) -> None:
    """Write a fitted denoiser to an npz file, without pickling.

    Parameters
    ----------
    learner : ConvDenoiser
        A fitted denoiser.
    file : str, path-like or file object
        File to write; ".npz" is appended to a name without it. An older file of that name is
        replaced when the new one is complete.

    Raises
    ------
    TypeError
        If it is no `ConvDenoiser`.
    NotFittedError
        If the learner is not fitted.
    ValueError
        If it has more than 1000 unfoldings, a stride larger than its atoms, or numbers beyond
        float32.
    """
    if not isinstance(learner, ConvDenoiser):
        raise TypeError(
            f"Files hold denoisers, and this is a {type(learner).__name__}. Pass a ConvDenoiser, "
            "or write the learner by skops or pickle."
        )
    check_is_fitted(learner)
    values = {name: np.asarray(getattr(learner, name)) for name in _PARAMETERS}
    given = learner.noise_std
    values["noise_std"] = np.asarray(learner.training_noise_std_ if given == "auto" else given)
    stride = stride_of(learner) if learner.stride == "auto" else learner.stride
    values["stride"] = np.asarray(stride)
    for name in (*_ARRAYS, *_NUMBERS):
        if getattr(learner, name, None) is not None:
            value = np.asarray(getattr(learner, name))
            with np.errstate(over="ignore"):
                values[name] = value.astype(np.float32) if value.ndim else value
    try:
        _check(values)
    except ValueError as error:
        raise ValueError(f"{error}; this denoiser cannot be stored.") from error
    archive = io.BytesIO()
    np.savez(archive, **values)  # compression saves 4 %, and files could expand
    if hasattr(file, "write"):
        file.write(archive.getbuffer())
        return
    name = os.fspath(file)
    replace_file(name if name.endswith(".npz") else f"{name}.npz", archive.getbuffer())


def load_denoiser(
    file: Literal["gaussian", "gaussian-small", "poisson"] | PathLike[str] | IO[bytes] = "gaussian",
    *,
    shift_average: bool = False,
    device: str = "auto",
) -> ConvDenoiser:
    """Return a fitted denoiser of images.

    Three come with the package. They are for grey images and have atoms of 7 x 7 pixels every 2
    pixels; every unfolding has its own atoms for analysis and for synthesis.

    - "gaussian": 64 atoms, 10 unfoldings, and thresholds that follow the noise. Trained on
      photographs with values from 0 to 1 and Gaussian noise of standard deviations from 5 / 255 to
      55 / 255. ``denoise`` estimates the noise unless it is given. It scales images with more
      noise, or in other units; it mixes its result with images that have less noise.
    - "gaussian-small": the same with 40 atoms and 6 unfoldings, three times as fast.
    - "poisson": 26 atoms and 8 unfoldings, trained on photographs with 1 to 4 expected photons in
      the brightest pixel. Counts go in, expected counts come out.

    Their data, licence, metrics and limits are on the page "Model cards" of the user guide.

    Parameters
    ----------
    file : {"gaussian", "gaussian-small", "poisson"}, path-like or file, default="gaussian"
        One of these, or a file of `save_denoiser`.
    shift_average : bool, default=False
        Whether `denoise` averages over all grids of positions: at most 0.1 dB better on 68
        photographs, in two to four times the time.
    device : str, default="auto"
        Device to compute on.

    Returns
    -------
    ConvDenoiser
        The denoiser; it can be trained further by `partial_fit`.

    Raises
    ------
    ValueError
        If the file, which the message names, is not one of `save_denoiser`.
    FileNotFoundError
        If there is neither such a file nor such a name.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from skpudle.pretrained import load_denoiser
    >>> image = load_sample_image("china.jpg").mean(axis=2)[:64, :80] / 255
    >>> load_denoiser().denoise([image], noise_std=15 / 255)[0].shape
    (64, 80)
    """
    if isinstance(file, str) and file in _PACKAGED:
        with (resources.files("skpudle.pretrained") / _PACKAGED[file]).open("rb") as packaged:
            return load_denoiser(packaged, shift_average=shift_average, device=device)
    opened = hasattr(file, "read")
    if not opened and not Path(file).exists():
        raise FileNotFoundError(
            f"{str(file)!r:.80} is neither a packaged denoiser nor a file. Pass one of "
            f"{[*_PACKAGED]}, or a file of save_denoiser."
        )
    content = file.read() if opened else Path(file).read_bytes()
    name = getattr(file, "name", file) if opened else file
    with named_errors(name, "denoiser", "Pass a file that save_denoiser wrote."):
        values = read_arrays(content)
        _check(values)
        learner = _learner_of(values, shift_average, device)
        _check_codes(learner)
    return learner


def _learner_of(values, shift_average, device):
    """Return the fitted learner of arrays by name."""
    atoms, noise_std = values["components_"], values["noise_std"].tolist()
    learner = ConvDenoiser(
        len(atoms),
        atom_shape=_sizes(values["atom_shape"]),
        stride=_sizes(values["stride"]),
        alpha=float(np.mean(values["alpha_"])),
        n_unfoldings=int(values["n_unfoldings"]),
        step_size=float(values["step_size_"]),
        lambda_decay=float(values["lambda_decay_"]),
        shrinkage=str(values["shrinkage"]),
        positive_code=bool(values["positive_code"]),
        atom_norm=None,
        learn_threshold={0: None, 1: "atom", 2: "unfolding"}[values["alpha_"].ndim],
        separate_atoms=_SEPARATE[_separate(values)],
        noise_std=tuple(noise_std) if isinstance(noise_std, list) else noise_std,
        shift_average=shift_average,
        device=device,
    )
    alpha = values["alpha_"]
    vars(learner).update({name: values[name] for name in _ARRAYS if name in values})
    vars(learner).update(
        alpha_=alpha if alpha.ndim else float(alpha),
        training_noise_std_=learner.noise_std,
        **{name: float(values[name]) for name in _NUMBERS},
        n_components_=len(values["components_"]),
        device_=str(resolve_device(learner.device, None)),
        n_iter_=1,
        n_steps_=0,
        loss_curve_=np.zeros(0),
        _training_state={
            "atoms": crc32(np.ascontiguousarray(atoms)),
            "given": {name: getattr(learner, name) for name in KEPT},
            "is_open": False,
            "alpha": float(np.mean(alpha)),
            "data_scale": 1.0,
            "threshold_unit": None,  # unit of the images of the fit, unknown here
            "image_size": None,
            "optimizer_name": "",
            "optimizer": {},
            "idle": np.zeros(len(values["components_"])),
        },
    )
    return learner
