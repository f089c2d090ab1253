"""Dictionaries that come with the package, ready to denoise."""

from importlib import resources

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpudle._learners.conv_learner import restore
from skpudle._learners.convolutional import ConvPUDLEDictionaryLearning

__all__ = ["load_denoiser", "save_denoiser"]

# What a file holds beside the arrays: the parameters that `denoise` depends on.
_PARAMETERS = ("atom_shape", "stride", "n_unfoldings", "shrinkage", "positive_code", "noise_std")
_ARRAYS = ("components_", "analysis_components_", "decoder_components_", "alpha_")
_SEPARATE = {
    (): None,
    ("analysis",): "analysis",
    ("decoder",): "decoder",
    ("analysis", "decoder"): "both",
}


def _sizes(value):  # an array -> what it was as a parameter
    return tuple(value.tolist()) if value.ndim else int(value)


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
    np.savez_compressed(file, **values)


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
        If ``noise_std`` is not positive, or the file does not know that of its training.

    Examples
    --------
    >>> from sklearn.datasets import load_sample_image
    >>> from skpudle.pretrained import load_denoiser
    >>> image = load_sample_image("china.jpg").mean(axis=2)[:64, :80] / 255
    >>> load_denoiser().denoise([image])[0].shape
    (64, 80)
    """
    if file is None:
        with (resources.files("skpudle") / "denoiser_gray_25.npz").open("rb") as packaged:
            options = dict(shift_average=shift_average, device=device)
            return load_denoiser(packaged, noise_std=noise_std, **options)
    with np.load(file, allow_pickle=False) as stored:
        values = dict(stored)
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
