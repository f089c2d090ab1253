"""The learnable parameters of a convolutional network: initial values and fitted attributes."""

from math import log, prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import check_array
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._data.noise import estimate_noise
from skpudle._data.training_images import initial_kernels, patches_by_energy
from skpudle._operators._atoms import factor_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding._unfold import default_step

# alpha="auto": a fraction of the median over images of the largest correlation, or a multiple of
# the noise, as in the paper's denoiser (0.16 for 25 / 255)
_ALPHA, _NOISE = 0.1, 1.6

# Places of an atom, along the last axis of an image, with correlations in memory at a time.
_PLACES = 2**14

# attributes of separate atoms, in the order of `ConvParameters`
_SEPARATE_ATOMS = (
    "components_",
    "analysis_components_",
    "synthesis_components_",
)
# attributes of atoms of rank one
_FACTORS = "spatial_components_", "temporal_components_"


class ConvParameters(NamedTuple):
    """The learnable parameters of a network.

    Attributes
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        The dictionary.
    analysis_atoms : Tensor of shape (n_unfoldings, n_components, n_channels, *kernel), or None
        Atoms of analysis of each unfolding, if each has its own.
    synthesis_atoms : Tensor of shape (n_unfoldings - 1, n_components, ...), or None
        Atoms of synthesis of all unfoldings but the last, if each has its own.
    alpha : Tensor of shape (n_thresholds, n_components) or float
        Penalties (thresholds of hard shrinkage) of each unfolding, or one row for all.
    alpha_slope : Tensor of that shape or None
        Increase of ``alpha`` for each unit of the noise.
    step : float or None
        The step; None derives it from the atoms.
    """

    atoms: Tensor
    analysis_atoms: Tensor | None = None
    synthesis_atoms: Tensor | None = None
    alpha: Tensor | float = 0.0
    alpha_slope: Tensor | None = None
    step: float | None = None

    @property
    def separate(self):
        """The atoms of analysis and, without the last unfolding, of synthesis."""
        return self[1:3]


def _outside(atoms, n_axes, channel_axis, noise=None):  # -> the public attribute
    atoms = atoms if noise is None else atoms * noise.to(atoms).reshape(-1, *[1] * n_axes)
    atoms = atoms.movedim(-1 - n_axes, -1)
    return to_numpy(atoms if channel_axis else atoms[..., 0])


def _inside(atoms, n_axes, like, *, channel_axis, noise=None):  # -> (..., n_channels, *kernel)
    atoms = to_tensor(atoms).to(like)
    atoms = atoms if channel_axis else atoms[..., None]
    atoms = atoms if noise is None else atoms / to_tensor(noise).to(like)
    return atoms.movedim(-1, -1 - n_axes).contiguous()


def _n_unfoldings(attributes):  # -> the number that parameters were learned for, None: any
    if attributes.get("synthesis_components_") is not None:
        return len(attributes["analysis_components_"])
    return len(attributes["alpha_"]) if np.ndim(attributes["alpha_"]) == 2 else None


def _check_shapes(attributes):
    """Raise ValueError if parameters were learned for atoms of another shape."""
    shape = np.shape(attributes["components_"])
    for name in ("alpha_", "alpha_slope_"):
        found = np.shape(attributes.get(name))
        if found and found[-1] != shape[0]:
            raise _other_atoms(name, found, shape)
    for name in _SEPARATE_ATOMS[1:]:
        found = np.shape(attributes.get(name))
        if found and found[-len(shape) :] != shape:
            raise _other_atoms(name, found, shape)


def _other_atoms(name, found, shape):
    return ValueError(
        f"components_ has the shape {shape} now, and {name}, of shape {found}, was learned for "
        "atoms of another one. Put atoms of the same shape there, or fit again."
    )


def known_parameters(attributes, n_axes, like):
    """Return the parameters of fitted attributes, of the dtype and on the device of a tensor.

    Raises
    ------
    ValueError
        If they were learned for another number of unfoldings than the estimator has now, or for
        other atoms.
    """
    asked, learned = attributes["n_unfoldings"], _n_unfoldings(attributes)
    if learned not in (None, asked):
        raise ValueError(
            f"Thresholds or atoms were learned for {learned} unfoldings, each its own, and "
            f"n_unfoldings is {asked} now. Set it back, or fit again."
        )
    _check_shapes(attributes)
    n_components, n_dimensions = len(attributes["components_"]), attributes["components_"].ndim
    options = dict(n_axes=n_axes, like=like, channel_axis=n_dimensions == n_axes + 2)
    options["noise"] = attributes.get("channel_noise_")
    atoms, *separate = (
        None if value is None else _inside(value, **options)
        for value in map(attributes.get, _SEPARATE_ATOMS)
    )
    alpha, slope = (
        to_tensor(value).to(like).reshape(-1, n_components) if np.ndim(value) else value
        for value in (attributes["alpha_"], attributes.get("alpha_slope_"))
    )
    return ConvParameters(atoms, *separate, alpha, slope, attributes.get("step_size_"))


def _threshold(alpha, *, shared):  # -> the fitted attribute ``alpha_``
    if not isinstance(alpha, Tensor):
        return alpha
    alpha = to_numpy(alpha[0] if len(alpha) == 1 else alpha)
    return float(alpha.flat[0]) if shared else alpha


def fitted_values(parameters, n_axes, geometry, *, shared_threshold, rank=None):
    """Return the fitted attributes of parameters, the inverse of `known_parameters`."""
    *atoms, alpha, slope, step = parameters
    _, *how = geometry  # axis and noise of channels
    outside = [None if stack is None else _outside(stack, n_axes, *how) for stack in atoms]
    factors, noise = (None, None), geometry.channel_noise
    if rank is not None:
        maps, waveforms = factor_atoms(atoms[0])
        factors = to_numpy(maps if noise is None else maps * noise.to(maps)), to_numpy(waveforms)
    return dict(zip((*_SEPARATE_ATOMS, *_FACTORS), (*outside, *factors))) | {
        "channel_noise_": None if noise is None else to_numpy(noise),
        "alpha_": _threshold(alpha, shared=shared_threshold),
        "alpha_slope_": _threshold(slope, shared=shared_threshold),
        "step_size_": None if step is None else float(step),
    }


def initial_atoms(images, dict_init, shape, generator):
    """Return the atoms that a search or training starts from.

    Parameters
    ----------
    images : TrainingImages
        The images.
    dict_init : str or array-like
        The parameter, or atoms of its shape.
    shape : tuple of int
        (n_components, n_channels, *kernel).
    generator : torch.Generator
        Random numbers.

    Returns
    -------
    Tensor of the shape
        The atoms.
    """
    n_components, n_channels, *kernel = shape
    channel_axis = images.geometry.channel_axis
    if isinstance(dict_init, str) and dict_init == "search":
        return patches_by_energy(images.images, shape[1:], n_components, generator)
    if isinstance(dict_init, str):
        return initial_kernels(images.images, shape[1:], n_components, dict_init, generator)
    options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
    atoms = check_array(dictionary_of(dict_init), **options)
    expected = (n_components, *kernel, *[n_channels][:channel_axis])
    if atoms.shape != expected:
        raise ValueError(
            f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
            f"{', n_channels' if channel_axis else ''}) = {expected}."
        )
    options = dict(like=images.images[0], channel_axis=channel_axis)
    options["noise"] = images.geometry.channel_noise
    return _inside(atoms, len(kernel), **options)


def universal_threshold(images, kernel):
    """Return the level that correlations of noise with atoms reach at one place in all images.

    Of n normal numbers the largest is about ``sqrt(2 log n)`` deviations [1]_.

    .. [1] D. Donoho and I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81, 1994.
    """
    if images.masks is not None:
        return 0.0
    noise = torch.cat([estimate_noise(image[None]) for image in images.images])
    axes = (zip(image.shape[1:], kernel, images.stride, strict=True) for image in images.images)
    n = sum(prod((size - k) // s + 1 for size, k, s in each) for each in axes)
    return float(noise.median()) * sqrt(2 * log(max(n, 2)))


def auto_penalty(images, atoms, noise_std):
    """Return the penalty of ``alpha="auto"``.

    Parameters
    ----------
    images : TrainingImages
        The images.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    noise_std : float
        The noise that training adds to images, 0 for none.

    Returns
    -------
    float
        The penalty, in the units of the images.
    """
    if noise_std:
        return _NOISE * noise_std
    dictionary = ConvDictionary(atoms, images.stride)
    k, s = atoms.shape[-1], images.stride[-1]

    reach = (_PLACES - 1) * s + k
    largest = torch.stack(
        [
            torch.stack(
                [
                    dictionary.analysis(image[None, ..., start : start + reach]).abs().max()
                    for start in range(0, max(image.shape[-1] - k + s, 1), _PLACES * s)
                ]
            ).max()
            for image in map(images.covered, images.images)
        ]
    )
    largest = largest[largest > 0]
    return _ALPHA * (float(largest.median()) if len(largest) else 1.0)


def initial_parameters(plan, atoms, alpha, *, noise_unit=None):
    """Return the parameters that training starts from; a step of None follows the atoms.

    Parameters
    ----------
    plan : ConvPlan
        The plan of the fit.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms, inside of the constraint.
    alpha : float
        The penalty, or the threshold of hard shrinkage.
    noise_unit : float, default=None
        Unit of the noise, if thresholds follow it.

    Returns
    -------
    ConvParameters
        The parameters.
    """
    given, step_size = plan.given, plan.step_size
    in_layers = given.separate_atoms == "unfolding"  # atoms of an unfolding include its step
    if step_size is None and in_layers:
        step_size = float(default_step(ConvDictionary(atoms, plan.stride)))
    if in_layers:  # root in both factors: entries of equal size
        alpha *= step_size**0.5 if given.shrinkage == "soft" else step_size**-0.5
        atoms, step_size = atoms * step_size**0.5, 1.0
    slope = None
    if noise_unit is not None:
        alpha, slope = 0.0, float(alpha) / noise_unit
    return ConvParameters(atoms, alpha=float(alpha), alpha_slope=slope, step=step_size)
