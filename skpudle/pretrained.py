"""Dictionaries that come with the package, ready to denoise."""

from importlib import resources
from pathlib import Path

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpudle._data.images import check_sizes, sizes
from skpudle._learners.conv_learner import restore
from skpudle._learners.convolutional import ConvPUDLEDictionaryLearning
from skpudle._training.archive import named_errors, read_arrays
from skpudle.shrinkage import SHRINKAGES

__all__ = ["load_denoiser", "save_denoiser"]

# What a file holds beside the arrays: the parameters that `denoise` depends on.
_PARAMETERS = ("atom_shape", "stride", "n_unfoldings", "shrinkage", "positive_code", "noise_std")
_OWN_ATOMS = ("analysis_components_", "decoder_components_")
_ARRAYS = ("components_", *_OWN_ATOMS, "alpha_")
_NUMBERS = ("step_size_", "lambda_decay_")
_RANGES = {
    "n_unfoldings": (1, np.inf),
    "noise_std": (0, np.inf),
    "positive_code": (0, 1),
    "step_size_": (np.finfo(float).tiny, np.inf),
    "lambda_decay_": (np.finfo(float).tiny, 1),
}
_KNOWN = {*_PARAMETERS, *_ARRAYS, *_NUMBERS}
_SEPARATE = {
    (): None,
    ("analysis",): "analysis",
    ("decoder",): "decoder",
    ("analysis", "decoder"): "both",
}


def _sizes(value):  # an array -> what it was as a parameter
    return tuple(value.tolist()) if value.ndim else int(value)


def _read(file):  # -> arrays by name
    opened = hasattr(file, "read")
    name = getattr(file, "name", file) if opened else file
    content = file.read() if opened else Path(file).read_bytes()
    with named_errors(name, "denoiser", "Pass a file that save_denoiser wrote."):
        values = read_arrays(content)
        _check(values)
    return values


def _check(values):
    """Raise ValueError if arrays, by name, are not those of a denoiser."""
    unknown, missing = values.keys() - _KNOWN, _KNOWN - set(_OWN_ATOMS) - values.keys()
    if unknown or missing:
        raise ValueError(f"it holds unknown {sorted(unknown)} and lacks {sorted(missing)}")
    if values["shrinkage"].tolist() not in list(SHRINKAGES):
        raise ValueError(f"shrinkage is {values['shrinkage'].tolist()!r:.50}")
    for name in sorted(values.keys() - {"shrinkage"}):
        value = values[name]
        if value.dtype.kind not in "bif" or not np.isfinite(value).all():
            raise ValueError(f"{name} is no finite number")
        least, largest = _RANGES.get(name, (-np.inf, np.inf))
        if (name in _RANGES and value.ndim) or not ((value >= least) & (value <= largest)).all():
            raise ValueError(f"{name} is no number from {least:.3g} to {largest}")
    kernel = sizes(_sizes(values["atom_shape"]), 1)
    check_sizes(kernel, sizes(_sizes(values["stride"]), len(kernel)), None)
    atoms = values["components_"]
    if not atoms.size or atoms.shape[1:] not in (kernel, (*kernel, *atoms.shape[-1:])):
        raise ValueError(f"components_ has shape {atoms.shape} for atoms of {kernel}")
    for name in values.keys() & set(_OWN_ATOMS):
        if values[name].shape != atoms.shape:
            raise ValueError(f"{name} has shape {values[name].shape}, components_ {atoms.shape}")
    alpha, rows = values["alpha_"], (int(values["n_unfoldings"]), len(atoms))
    if alpha.shape not in ((), rows[1:], rows) or (alpha < 0).any():
        raise ValueError(f"alpha_ is no threshold of shape (), {rows[1:]} or {rows}")


def save_denoiser(learner, file):
    """Write what `denoise` needs of a fitted learner to an npz file, without pickling.

    Parameters
    ----------
    learner : ConvPUDLEDictionaryLearning
        A fitted learner.
    file : str, path-like or file object
        Where to; ".npz" is appended to a name that does not end in it.

    Raises
    ------
    NotFittedError
        If the learner is not fitted.
    """
    check_is_fitted(learner)
    values = {name: np.asarray(getattr(learner, name)) for name in _PARAMETERS}
    for name in (*_ARRAYS, "step_size_", "lambda_decay_"):
        if getattr(learner, name, None) is not None:
            value = np.asarray(getattr(learner, name))
            values[name] = value.astype(np.float32) if value.ndim else value
    np.savez(file, **values)  # compressed they were 4 % smaller, and a file could swell


def load_denoiser(file=None, *, noise_std=None, shift_average=True, device="auto"):
    """Return a fitted learner that denoises images.

    The one that comes with the package has 64 atoms of 11 x 11 pixels every 6 pixels, atoms of
    their own for analysis and decoder, learned thresholds for each atom and unfolding, and a
    learned step. It is for grey images, and was trained on photographs with values from 0 to 1 and
    Gaussian noise of standard deviation 25 / 255. For other noise or other units, pass
    ``noise_std``: one factor for all thresholds does to an image what scaling it to the noise of
    training and back does.

    Parameters
    ----------
    file : str, path-like or file object, default=None
        A file that `save_denoiser` wrote; by default that of the package.
    noise_std : float, default=None
        Standard deviation of the noise, in the units of the images (25 for "sigma 25" and values
        from 0 to 255); by default that of the training.
    shift_average : bool, default=True
        Whether `denoise` averages over all grids of positions.
    device : str, default="auto"
        Where to compute.

    Returns
    -------
    ConvPUDLEDictionaryLearning
        The learner; it can be trained further by `partial_fit`.

    Raises
    ------
    ValueError
        If ``noise_std`` is not positive, or the file does not know that of its training; or if it
        is no file of `save_denoiser`: the message names it.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from skpudle.pretrained import load_denoiser
    >>> image = load_sample_image("china.jpg").mean(axis=2)[:64, :80] / 255
    >>> load_denoiser().denoise([image])[0].shape
    (64, 80)
    """
    if file is None:
        with (resources.files("skpudle._data") / "denoiser_gray_25.npz").open("rb") as packaged:
            options = dict(shift_average=shift_average, device=device)
            return load_denoiser(packaged, noise_std=noise_std, **options)
    values = _read(file)
    trained_for = float(values["noise_std"])
    if noise_std is None:
        noise_std = trained_for
    elif not (0 < noise_std < np.inf and trained_for > 0):
        raise ValueError(
            f"noise_std={noise_std!r}, and the denoiser was trained for {trained_for:g}; both have "
            "to be positive numbers for thresholds to be scaled. Leave noise_std out to take the "
            "denoiser as it is."
        )
    else:
        values["alpha_"] = values["alpha_"] * (noise_std / trained_for)
    atoms = values["components_"]
    separate = tuple(name for name in ("analysis", "decoder") if f"{name}_components_" in values)
    learner = ConvPUDLEDictionaryLearning(
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
        separate_atoms=_SEPARATE[separate],
        noise_std=float(noise_std),
        shift_average=shift_average,
        device=device,
    )
    return restore(learner, values)
