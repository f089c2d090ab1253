"""The model of convolutional learners: a network, its rows of parameters, and where both begin."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.utils import check_array

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._data.training_images import Geometry, TrainingImages, initial_kernels
from skpudle._learners.encoder import Encoder
from skpudle._learners.network import ConvNetwork, ConvParameters, RowLayout, all_shifts
from skpudle._learners.notices import warn_of_step
from skpudle.encoding import default_step
from skpudle.operators import ConvDictionary, project_atoms

__all__ = ["SEPARATE_ATOMS", "ConvModel", "initial_parameters", "known_parameters"]

# alpha="auto" is this fraction of the median over images of the largest correlation.
_ALPHA = 0.1

# Separate atoms by the name of the attribute that holds them, in the order of `ConvParameters`.
SEPARATE_ATOMS = ("components_", "analysis_components_", "decoder_components_")


def _outside(atoms, channel_axis):  # (n_components, n_channels, *kernel) -> as users see them
    if atoms is None:
        return None
    return to_numpy(atoms.movedim(1, -1) if channel_axis else atoms[:, 0])


def _inside(atoms, n_axes, like):  # of users -> (n_components, n_channels, *kernel)
    atoms = to_tensor(atoms).to(like)
    channels = atoms.ndim == n_axes + 2
    return (atoms.movedim(-1, 1) if channels else atoms[:, None]).contiguous()


def known_parameters(attributes, n_axes, like):
    """Return the parameters of fitted attributes, of the dtype and on the device of a tensor."""
    separate = (attributes.get(name) for name in SEPARATE_ATOMS)
    alpha = attributes["alpha_"]
    if np.ndim(alpha):
        alpha = to_tensor(alpha).to(like).reshape(-1, len(attributes["components_"]))
    return ConvParameters(
        *(None if atoms is None else _inside(atoms, n_axes, like) for atoms in separate),
        alpha=alpha,
        step=attributes["step_size_"],
    )


def initial_parameters(
    images, dict_init, shape, encoder, *, alpha, step_size, learn_step, atom_norm, generator
):
    """Return the parameters that training starts from.

    Parameters
    ----------
    images : TrainingImages
        The images.
    dict_init : str or array-like
        How atoms begin, or atoms as users see them.
    shape : tuple of int
        (n_components, n_channels, *kernel).
    encoder : Encoder
        How to encode.
    alpha : float or "auto"
        The parameter.
    step_size : float or None
        The parameter; None follows the atoms.
    learn_step : bool
        Whether the step is learned, from a number on.
    atom_norm : {"unit", "ball", None}
        The parameter.
    generator : torch.Generator
        Random numbers.

    Returns
    -------
    ConvParameters
        With a step of None where it follows the atoms.
    """
    n_components, n_channels, *kernel = shape
    channel_axis = images.geometry.channel_axis
    if isinstance(dict_init, str):
        atoms = initial_kernels(images.images, shape[1:], n_components, dict_init, generator)
    else:
        options = dict(dtype=np.float64, ensure_2d=False, allow_nd=True, input_name="dict_init")
        atoms = check_array(dictionary_of(dict_init), **options)
        expected = (n_components, *kernel, *[n_channels][:channel_axis])
        if atoms.shape != expected:
            raise ValueError(
                f"dict_init has shape {atoms.shape}, expected (n_components, *atom_shape"
                f"{', n_channels' if channel_axis else ''}) = {expected}."
            )
        atoms = _inside(atoms, len(kernel), images.images[0])
    atoms = project_atoms(atoms.contiguous(), atom_norm=atom_norm)
    dictionary = ConvDictionary(atoms, images.stride)
    if step_size is None and learn_step:
        step_size = float(default_step(dictionary))
    if alpha == "auto":
        covered = (images.covered(image)[None] for image in images.images)
        largest = torch.stack([dictionary.analysis(part).abs().max() for part in covered])
        step = float(default_step(dictionary)) if step_size is None else step_size
        largest = largest[largest > 0]
        alpha = _ALPHA * (float(largest.median()) if len(largest) else 1.0)
        alpha *= step if encoder.shrinkage == "hard" else 1.0
    return ConvParameters(atoms, alpha=float(alpha), step=step_size)


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
        """Return what encodes and decodes with these rows in an update, on grids that it draws."""
        decay, stride = self.decay(update), self.images.stride
        penalty = self.encoder.penalty(self.alpha, decay)
        network = ConvNetwork(self.layout.unpack(rows), stride, self.encoder, decay, penalty)
        if self.n_train_shifts == 1:
            return network
        grids = all_shifts(stride)
        order = torch.randperm(len(grids), generator=self.generator, device="cpu")
        chosen = [grids[i] for i in order[: self.n_train_shifts].tolist()]
        network = replace(network, penalty=penalty / len(chosen))  # of the mean over grids
        return network.with_grids(chosen, self.images.room)

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        return self.layout.project(rows)

    def replacements(self, rows, samples):
        """Return rows for patches."""
        return self.layout.replacements(rows, samples)

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        step = self.layout.fixed_step
        if step is None or self.layout.learn_step or self.layout.separate_analysis:
            return
        atoms = (self.layout.unpack(rows).atoms for rows in (initial, final))
        warn_of_step(step, (ConvDictionary(part, self.images.stride) for part in atoms))

    def memory(self):
        """Return what a later `partial_fit` asks for beside what users see."""
        return {"alpha": self.alpha, "image_size": self.geometry.image_size}

    def attributes(self, rows):
        """Return what users see of it."""
        *atoms, alpha, step = self.layout.unpack(rows)
        if step is None:
            step = default_step(ConvDictionary(atoms[0], self.images.stride))
        if isinstance(alpha, torch.Tensor):
            alpha = to_numpy(alpha[0] if len(alpha) == 1 else alpha)
            alpha = float(alpha[0]) if self.layout.shared_threshold else alpha
        outside = (_outside(part, self.geometry.channel_axis) for part in atoms)
        return dict(zip(SEPARATE_ATOMS, outside)) | {
            "n_components_": len(rows),
            "alpha_": alpha,
            "step_size_": float(step),
        }
