"""The model that training of a convolutional dictionary changes: atoms, and their encoder."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.encoders import Converged, Encoder, Unfolded
from skpudle._learners.convolutional.crops import Geometry, TrainingImages
from skpudle._operators._atoms import atom_norms, factor_atoms, project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import in_own_precision
from skpudle.encoding._unfold import default_step
from skpudle.search._maps import combine_channels, map_directions


def atoms_outside(atoms, geometry):  # (n, n_channels, *kernel) -> components_
    """Return atoms in the units of the data, with channels last, or without an axis of them."""
    noise, n_axes = geometry.channel_noise, atoms.ndim - 2
    atoms = atoms if noise is None else atoms * noise.to(atoms).reshape(-1, *[1] * n_axes)
    return to_numpy(atoms.movedim(1, -1) if geometry.channel_axis else atoms[:, 0])


def atoms_inside(atoms, geometry, like):  # components_ -> (n, n_channels, *kernel)
    """Return atoms of the dtype and on the device of a tensor, the inverse of `atoms_outside`."""
    atoms, noise = to_tensor(atoms).to(like), geometry.channel_noise
    atoms = atoms if geometry.channel_axis else atoms[..., None]
    atoms = atoms if noise is None else atoms / to_tensor(noise).to(like)
    return atoms.movedim(-1, 1).contiguous()


@dataclass(frozen=True, eq=False)
class ConvNetwork:
    """Encoder and decoder, with the `synthesis` of a dictionary that gradient rules call.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        The dictionary.
    stride : tuple of int
        Distance of neighbouring positions along each axis.
    encoder : Converged or Unfolded
        Encoder of images that atoms cover exactly.
    """

    atoms: Tensor
    stride: tuple[int, ...]
    encoder: Converged | Unfolded

    def of_maps(self):  # -> ConvNetwork, (n_channels, k) or None
        """Return the same network for combinations of channels by the maps of atoms of rank one.

        Correlations with such atoms, and so codes, are equal. None: the atoms use all channels.
        """
        maps, _ = factor_atoms(self.atoms)
        directions = map_directions(maps)
        atoms = combine_channels(self.atoms, directions)
        if directions.shape[1] == len(directions) or not torch.allclose(
            atom_norms(atoms).flatten(), atom_norms(self.atoms).flatten()
        ):
            return self, None
        return replace(self, atoms=atoms), directions

    def encode(self, x, *, mask=None):
        """Return code maps, (n, n_components, *positions); the ``mask`` is 0 where pixels miss."""
        return self.encoder(ConvDictionary(self.atoms, self.stride), x, mask)

    @in_own_precision
    def decode(self, z):
        """Return reconstructions, (n, n_channels, *size)."""
        return ConvDictionary(self.atoms, self.stride).synthesis(z)

    synthesis = decode


@dataclass(frozen=True, kw_only=True)
class ConvModel:
    """The model that a convolutional learner trains; see `skpudle._fit.train`.

    Rows of parameters are atoms.

    Parameters
    ----------
    rule : callable
        One of `skpudle._gradients.GRADIENT_RULES`.
    encoder : Encoder
        The encoder.
    rank : {1, None}
        Rank of the atoms; see `skpudle._operators._atoms.project_atoms`.
    images : TrainingImages
        Training images, which draw crops.
    geometry : Geometry
        Shape of the results.
    decay : callable
        The decay of penalties as a function of the update.
    alpha : float
        The penalty.
    data_scale : float
        The mean squared norm of a crop.
    part_size : int
        Crops that are evaluated at a time.
    """

    rule: Callable
    encoder: Encoder
    rank: int | None
    images: TrainingImages
    geometry: Geometry
    decay: Callable
    alpha: float
    data_scale: float
    part_size: int

    decided = "alpha", "data_scale"  # by data
    curvature = 1.0  # the curvature of least squares

    def atoms(self, rows):  # (n_components, n_numbers) -> (n_components, n_channels, *kernel)
        """Return the atoms in rows."""
        return rows.unflatten(1, (len(self.images.images[0]), *self.images.kernel))

    def network(self, rows, update):
        """Return the network of an update, its encoder and the penalty."""
        encoder = self.encoder.at(self.alpha, lambda_decay=self.decay(update))
        network = ConvNetwork(self.atoms(rows), self.images.stride, encoder)
        return network, ConvNetwork.encode, encoder.penalty

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        if self.rank is not None:
            rows = project_atoms(self.atoms(rows), atom_norm=None, rank=self.rank).flatten(1)
        return project_atoms(rows)

    def replacements(self, rows, samples):
        """Return rows for patches."""
        return project_atoms(samples, rank=self.rank).flatten(1)

    def warn_of_step(self, rows):
        """Do not warn: the step follows the atoms."""

    def attributes(self, rows):
        """Return the fitted attributes."""
        atoms, noise, factors = self.atoms(rows), self.geometry.channel_noise, (None, None)
        if self.rank is not None:
            maps, waveforms = factor_atoms(atoms)
            maps = maps if noise is None else maps * noise.to(maps)
            factors = to_numpy(maps), to_numpy(waveforms)
        return {
            "components_": atoms_outside(atoms, self.geometry),
            "spatial_components_": factors[0],
            "temporal_components_": factors[1],
            "channel_noise_": None if noise is None else to_numpy(noise),
            "alpha_": self.alpha,
            "step_size_": float(default_step(ConvDictionary(atoms, self.images.stride))),
            "n_components_": len(rows),
            "debias_": self.encoder.debias,
            "_image_size": self.geometry.image_size,
        }
