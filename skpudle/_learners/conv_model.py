"""The model of convolutional learners: a network, its rows of parameters, and where both begin."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from sklearn.utils import check_array

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._data.training_images import Geometry, TrainingImages, initial_kernels
from skpudle._learners.conv_search import patches_by_energy
from skpudle._learners.models import Encoder
from skpudle._learners.network import ConvNetwork, ConvParameters, RowLayout, all_shifts
from skpudle._learners.notices import warn_of_step
from skpudle._learners.working import LEAST_PENALTY
from skpudle.encoding import default_step
from skpudle.losses import Gaussian
from skpudle.operators import ConvDictionary

__all__ = [
    "SEPARATE_ATOMS",
    "ConvModel",
    "auto_penalty",
    "baseline",
    "initial_atoms",
    "initial_parameters",
    "known_parameters",
]

# alpha="auto" is this fraction of the median over images of the largest correlation, or that many
# times the noise, with which the denoiser of the paper was trained: 0.16 for 25 / 255. Losses that
# know the noise of a correlation have at least so many deviations of it, as for rows.
_ALPHA, _NOISE, _DEVIATIONS = 0.1, 1.6, LEAST_PENALTY

# Separate atoms by the name of the attribute that holds them, in the order of `ConvParameters`.
SEPARATE_ATOMS = (
    "components_",
    "analysis_components_",
    "decoder_components_",
    "synthesis_components_",
)


def _outside(atoms, n_axes, channel_axis):  # (..., n_channels, *kernel) -> as users see them
    atoms = atoms.movedim(-1 - n_axes, -1)
    return to_numpy(atoms if channel_axis else atoms[..., 0])


def _inside(atoms, n_axes, like, *, channel_axis):  # of users -> (..., n_channels, *kernel)
    atoms = to_tensor(atoms).to(like)
    atoms = atoms if channel_axis else atoms[..., None]
    return atoms.movedim(-1, -1 - n_axes).contiguous()


def _n_unfoldings(attributes):  # that parameters are for, None where they are for any
    if attributes.get("synthesis_components_") is not None:
        return len(attributes["analysis_components_"])
    return len(attributes["alpha_"]) if np.ndim(attributes["alpha_"]) == 2 else None


def known_parameters(attributes, n_axes, like):
    """Return the parameters of fitted attributes, of the dtype and on the device of a tensor.

    Raises
    ------
    ValueError
        If they belong to another number of unfoldings than the estimator has now.
    """
    asked, learned = attributes["n_unfoldings"], _n_unfoldings(attributes)
    if learned not in (None, asked):
        raise ValueError(
            f"Thresholds or atoms were learned for {learned} unfoldings, each its own, and "
            f"n_unfoldings is {asked} now. Set it back, or fit again."
        )
    n_components, n_dimensions = len(attributes["components_"]), attributes["components_"].ndim
    options = dict(n_axes=n_axes, like=like, channel_axis=n_dimensions == n_axes + 2)
    atoms, *separate = (
        None if value is None else _inside(value, **options)
        for value in map(attributes.get, SEPARATE_ATOMS)
    )
    separate = (
        stack[None] if stack is not None and stack.ndim == atoms.ndim else stack
        for stack in separate
    )
    alpha, slope = (
        to_tensor(value).to(like).reshape(-1, n_components) if np.ndim(value) else value
        for value in (attributes["alpha_"], attributes.get("alpha_slope_"))
    )
    intercept = attributes.get("intercept_")
    intercept = None if intercept is None else to_tensor(intercept).to(like)
    return ConvParameters(atoms, *separate, alpha, slope, attributes.get("step_size_"), intercept)


def baseline(loss, images):
    """Return the intercept of which the expectations are the means of the known pixels.

    Parameters
    ----------
    loss : object of `skpudle.losses`
        What images are to a reconstruction.
    images : TrainingImages
        The images.

    Returns
    -------
    Tensor of shape (n_channels,) or None
        None for least squares, which have no intercept.
    """
    if isinstance(loss, Gaussian):
        return None
    masks = images.masks or [torch.ones_like(image) for image in images.images]
    known = (x * mask for x, mask in zip(images.images, masks, strict=True))
    total, n_known = (sum(x.flatten(1).sum(1) for x in parts) for parts in (known, masks))
    return loss.natural((total + 0.5) / (n_known + 1))


def _as_atoms(loss, images, intercept):  # counts -> what is linear in natural parameters, nearly
    if intercept is None:
        return images
    base = loss.response(loss.mean(intercept))
    return [loss.response(x) - base.reshape(-1, *[1] * (x.ndim - 1)) for x in images]


def initial_atoms(images, dict_init, shape, generator, loss, intercept):
    """Return the atoms that a search or training starts from.

    Parameters
    ----------
    images : TrainingImages
        The images.
    dict_init : str or array-like
        How atoms begin, or atoms as users see them.
    shape : tuple of int
        (n_components, n_channels, *kernel).
    generator : torch.Generator
        Random numbers.
    loss : object of `skpudle.losses`
        What images are to a reconstruction.
    intercept : Tensor of shape (n_channels,) or None
        Its `baseline`.

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
        seen = _as_atoms(loss, images.images, intercept)
        return initial_kernels(seen, shape[1:], n_components, dict_init, generator)
    options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
    atoms = check_array(dictionary_of(dict_init), **options)
    expected = (n_components, *kernel, *[n_channels][:channel_axis])
    if atoms.shape != expected:
        raise ValueError(
            f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
            f"{', n_channels' if channel_axis else ''}) = {expected}."
        )
    options = dict(like=images.images[0], channel_axis=channel_axis)
    return _inside(atoms, len(kernel), **options)


def auto_penalty(images, atoms, noise_std, loss, intercept):
    """Return the penalty that ``alpha="auto"`` stands for.

    Parameters
    ----------
    images : TrainingImages
        The images.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    noise_std : float
        The noise that images get, 0 if they get none.
    loss : object of `skpudle.losses`
        What images are to a reconstruction.
    intercept : Tensor of shape (n_channels,) or None
        Its `baseline`.

    Returns
    -------
    float
        In the units of the images.
    """
    if noise_std:
        return _NOISE * noise_std
    mean, noise = 0.0, 0.0
    if intercept is not None:
        mean = loss.mean(intercept).reshape(-1, *[1] * len(images.stride))
        noise = float(loss.variance(mean).mean().sqrt())
    dictionary = ConvDictionary(atoms, images.stride)
    covered = (images.covered(image)[None] - mean for image in images.images)
    largest = torch.stack([dictionary.analysis(part).abs().max() for part in covered])
    largest = largest[largest > 0]
    alpha = _ALPHA * (float(largest.median()) if len(largest) else 1.0)
    return max(alpha, _DEVIATIONS * noise)


def initial_parameters(
    atoms, stride, *, alpha, step_size, shrinkage, learn_step, in_layers, noise_unit, intercept
):
    """Return the parameters that training starts from.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms, inside of the constraint.
    stride : tuple of int
        Distance of their positions.
    alpha : float
        The penalty, or the threshold of hard shrinkage.
    step_size : float or None
        The parameter; None follows the atoms.
    shrinkage : {"soft", "hard"}
        The parameter.
    learn_step : bool
        Whether the step is learned, from a number on.
    in_layers : bool
        Whether every unfolding has atoms of its own, which its step is a part of.
    noise_unit : float or None
        The noise that ``alpha`` is for, where thresholds follow it.
    intercept : Tensor of shape (n_channels,) or None
        The `baseline`.

    Returns
    -------
    ConvParameters
        With a step of None where it follows the atoms.
    """
    if step_size is None and (learn_step or in_layers):
        step_size = float(default_step(ConvDictionary(atoms, stride)))
    if in_layers:  # half of the step goes into either side, whose numbers are then as large
        alpha *= step_size**0.5 if shrinkage == "soft" else step_size**-0.5
        atoms, step_size = atoms * step_size**0.5, 1.0
    slope = None
    if noise_unit is not None:
        alpha, slope = 0.0, float(alpha) / noise_unit
    return ConvParameters(
        atoms, alpha=float(alpha), alpha_slope=slope, step=step_size, intercept=intercept
    )


@dataclass(frozen=True)
class ConvModel:
    """What is trained by a convolutional learner; see `skpudle._training.loop`.

    Parameters
    ----------
    rule : callable
        One of `skpudle.gradients.GRADIENT_RULES`.
    encoder : Encoder
        How to encode.
    layout : RowLayout
        What rows of parameters hold.
    images : TrainingImages
        How they are cut into crops, and what is drawn for them.
    geometry : Geometry
        What results look like.
    decay : callable
        The decay of penalties as a function of the update.
    alpha : float
        The penalty or threshold that training started from.
    data_scale : float
        The mean squared norm of a crop.
    part_size : int
        Crops that are evaluated at a time.
    n_train_shifts : int, default=1
        Grids that an update draws.
    generator : torch.Generator, default=None
        What draws them.
    """

    rule: Callable
    encoder: Encoder
    layout: RowLayout
    images: TrainingImages
    geometry: Geometry
    decay: Callable
    alpha: float
    data_scale: float
    part_size: int
    n_train_shifts: int = 1
    generator: torch.Generator | None = None

    curvature = 1.0  # of least squares

    def network(self, rows, update):
        """Return the network of an update, on grids that it draws, its encoder and the penalty."""
        decay, stride = self.decay(update), self.images.stride
        penalty, options = self.encoder.penalty(self.alpha, decay), {"lambda_decay": decay}
        if any(self.images.margin):
            grids = [(0,) * len(stride)]
            if self.n_train_shifts > 1:
                grids = all_shifts(stride)
                order = torch.randperm(len(grids), generator=self.generator, device="cpu")
                grids = [grids[i] for i in order[: self.n_train_shifts].tolist()]
                penalty /= len(grids)  # of the mean over grids
            options |= dict(shifts=grids, room=self.images.room)
        network = ConvNetwork(self.layout.unpack(rows), stride, self.encoder, **options)
        return network, ConvNetwork.encode, penalty

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        return self.layout.project(rows)

    def replacements(self, rows, samples):
        """Return rows for patches."""
        intercept = self.layout.unpack(rows).intercept
        samples = torch.stack([*_as_atoms(self.encoder.loss, samples, intercept)])
        return self.layout.replacements(rows, samples)

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        step, (analysis, *_) = self.layout.fixed_step, self.layout.separate
        curvature = self.encoder.loss.curvature
        if step is None or self.layout.learn_step or analysis or not isfinite(curvature):
            return
        atoms = (self.layout.unpack(rows).atoms for rows in (initial, final))
        warn_of_step(step, (ConvDictionary(part, self.images.stride) for part in atoms), curvature)

    def memory(self):
        """Return what a later `partial_fit` asks for beside what users see."""
        return {"alpha": self.alpha, "image_size": self.geometry.image_size}

    def attributes(self, rows):
        """Return what users see of it."""
        *atoms, alpha, slope, step, intercept = self.layout.unpack(rows)
        if step is None:  # it stays so where samples look for theirs
            step = default_step(ConvDictionary(atoms[0], self.images.stride), self.encoder.loss)
        n_axes, in_layers = len(self.images.stride), atoms[-1] is not None
        outside = [_outside(atoms[0], n_axes, self.geometry.channel_axis)]
        for stack in atoms[1:]:
            part = stack if stack is None or in_layers else stack[0]
            outside.append(
                None if part is None else _outside(part, n_axes, self.geometry.channel_axis)
            )
        return dict(zip(SEPARATE_ATOMS, outside)) | {
            "n_components_": len(rows),
            "alpha_": self._threshold(alpha),
            "alpha_slope_": self._threshold(slope),
            "step_size_": None if step is None else float(step),
            "intercept_": None if intercept is None else to_numpy(intercept),
        }

    def _threshold(self, alpha):  # as users see it
        if not isinstance(alpha, torch.Tensor):
            return alpha
        alpha = to_numpy(alpha[0] if len(alpha) == 1 else alpha)
        return float(alpha.flat[0]) if self.layout.shared_threshold else alpha
