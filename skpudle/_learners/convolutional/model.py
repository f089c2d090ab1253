r"""The model of convolutional learners: encoder and decoder with all their learnable parameters.

The parameters of an atom are one row of numbers: the atom, those of analysis and synthesis in each
unfolding, its thresholds. The trainer and the optimisers see one tensor, as for any
dictionary, and atoms are normalised, replaced and stored row by row.

Atoms at every ``s``-th pixel see the image on a grid, and there are ``s`` grids along each axis.
The mean of the reconstructions from several grids is better than any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import Tensor

from skpudle._data.noise import Noise, estimate_noise
from skpudle._data.training_images import Geometry, TrainingImages
from skpudle._learners.convolutional.values import ConvParameters, fitted_values
from skpudle._learners.models import Encoder
from skpudle._operators._atoms import atom_norms, factor_atoms, project_atoms
from skpudle._operators._conv import ConvDictionary, ConvLayers
from skpudle._precision import as_scalars, in_own_precision
from skpudle._training.messages import warn_of_step
from skpudle.encoding._unfold import default_step, threshold_levels, unfold
from skpudle.search._maps import combine_channels, map_directions

# Numbers of the layout that follow from the data, or from the atoms of a search.
_FIXED = "fixed_alpha", "fixed_step", "threshold_unit"

# Noise standard deviations by which a pixel may exceed the largest clean pixel of training; the
# largest of a million normal numbers is about 5.
_OUTERMOST = 6


@dataclass(frozen=True)
class RowLayout:
    """The layout of a row of parameters, and the parameters that all atoms share.

    Parameters
    ----------
    shape : tuple of int
        (n_channels, *kernel).
    n_layers : int
        Number of unfoldings that have atoms of their own, 0 or all. They are free of constraints.
    n_thresholds : int
        Learned penalties of an atom: 0, 1, or the number of unfoldings.
    noise_unit : float or None
        Unit of the noise for the slopes in a row, if penalties follow the noise.
    shared_threshold : bool
        Whether all atoms share a learned penalty, the mean of their rows'.
    atom_norm : {"unit", "ball", None}
        The constraint of the atoms.
    fixed_alpha : float
        The penalty, if it is not learned.
    fixed_step : float or None
        The step; None derives it from the atoms.
    threshold_unit : float, default=1.0
        Unit of learned penalties in a row, a power of two. They are in units of the data, and a
        learning rate is not.
    rank : {1, None}, default=None
        Rank of the atoms; see `skpudle._operators._atoms.project_atoms`.
    """

    shape: tuple[int, ...]
    n_layers: int
    n_thresholds: int
    noise_unit: float | None
    shared_threshold: bool
    atom_norm: str | None
    fixed_alpha: float
    fixed_step: float | None
    threshold_unit: float = 1.0
    rank: int | None = None

    @cached_property
    def _sizes(self):  # numbers in each part of a row
        atom, slopes = prod(self.shape), self.n_thresholds * (self.noise_unit is not None)
        return [atom, *(atom * n for n in self._n_separate), self.n_thresholds, slopes]

    @property
    def _n_separate(self):  # -> atoms of analysis and, beside the last unfolding, of synthesis
        return self.n_layers, max(self.n_layers - 1, 0)

    def pack(self, parameters):  # ConvParameters -> (n_components, n_parameters)
        """Return one row for each atom."""
        atoms, *_, alpha, slope, _ = parameters
        parts = [atoms.flatten(1)]
        for n, separate in zip(self._n_separate, parameters.separate, strict=True):
            stack = atoms.expand(n, *atoms.shape) if separate is None else separate[:n]
            parts.append(stack.transpose(0, 1).flatten(1))
        if self.n_thresholds:
            parts.append(self._thresholds(alpha, atoms))
        if self.n_thresholds and self.noise_unit is not None:
            slope = 0.0 if slope is None else slope * self.noise_unit
            parts.append(self._thresholds(slope, atoms))
        return torch.cat(parts, dim=1)

    def _thresholds(self, alpha, atoms):  # -> (n_components, n_thresholds)
        alpha = as_scalars(alpha, atoms)
        if self.n_thresholds == 1 and alpha.ndim:  # one threshold for all unfoldings
            alpha = alpha.mean(0, keepdim=True)
        return alpha.expand(self.n_thresholds, len(atoms)).mT / self.threshold_unit

    def unpack(self, rows):  # (n_components, n_parameters) -> ConvParameters
        """Return the parameters in rows; differentiable."""
        atoms, *separate, alpha, slope = rows.split(self._sizes, dim=1)
        alpha, slope = (part.mT * self.threshold_unit for part in (alpha, slope))
        if self.shared_threshold:
            alpha, slope = (
                part.mean(1, keepdim=True).expand(-1, len(rows)) for part in (alpha, slope)
            )
        stacks = [
            part.unflatten(1, (n, *self.shape)).transpose(0, 1) if n else None
            for n, part in zip(self._n_separate, separate, strict=True)
        ]
        return ConvParameters(
            atoms.unflatten(1, self.shape),
            *stacks,
            alpha if self.n_thresholds else self.fixed_alpha,
            slope / self.noise_unit if len(slope) else None,
            self.fixed_step,
        )

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        atoms, *separate, alpha, slope = rows.split(self._sizes, dim=1)
        if self.rank is not None:
            atoms = project_atoms(atoms.unflatten(1, self.shape), atom_norm=None, rank=self.rank)
            atoms = atoms.flatten(1)
        atoms = project_atoms(atoms, atom_norm=self.atom_norm)  # separate atoms are free
        return torch.cat([atoms, *separate, alpha.clamp_min(0), slope.clamp_min(0)], dim=1)

    def replacements(self, rows, atoms):  # current rows, (k, n_channels, *kernel) -> (k, ...)
        """Return rows for new atoms, of any norm, with mean values of all other parameters."""
        parameters = self.unpack(rows)
        means = {
            name: value.mean(1, keepdim=True)
            for name in ("alpha", "alpha_slope")
            if isinstance(value := getattr(parameters, name), Tensor)
        }
        size = 1.0 if self.atom_norm else atom_norms(parameters.atoms).mean()
        atoms = project_atoms(atoms, atom_norm="unit", rank=self.rank) * size
        return self.pack(ConvParameters(atoms, **means))


def all_shifts(stride):  # -> list of tuples
    """Return every grid of positions, as the offset of its first position."""
    return list(product(*(range(n) for n in stride)))


@dataclass(frozen=True, eq=False)
class ConvNetwork:
    """Encoder and decoder, with the `synthesis` of a dictionary that gradient rules call.

    Parameters
    ----------
    parameters : ConvParameters
        Learned parameters.
    stride : tuple of int
        Distance of neighbouring positions along each axis.
    encoder : Encoder
        Unfoldings, shrinkage and signs.
    noise : Noise, default=None
        The noise of training.
    peak : float, default=1.0
        The largest magnitude of a pixel of the clean training images.
    lambda_decay : float, default=1.0
        Factor between the penalties of consecutive unfoldings.
    shift : tuple of int, default=None
        Offset of the first position. The reconstruction is then smaller than the image, by a margin
        in which some atoms that reach a pixel are missing. None: the first pixel, without margin.
    room : tuple of int, default=None
        The largest shift along each axis: images exceed the size that one grid covers by this.
    """

    parameters: ConvParameters
    stride: tuple[int, ...]
    encoder: Encoder
    noise: Noise | None = None
    peak: float = 1.0
    lambda_decay: float = 1.0
    shift: tuple[int, ...] | None = None
    room: tuple[int, ...] | None = None

    @property
    def atoms(self):
        """Atoms of the encoder."""
        return self.parameters.atoms

    @property
    def kernel(self):
        """Size of an atom."""
        return tuple(self.parameters.atoms.shape[2:])

    def with_grid(self, shift, room):
        """Return the same network for another grid."""
        return replace(self, shift=shift, room=room)

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
        return replace(self, parameters=self.parameters._replace(atoms=atoms)), directions

    def encode(self, x, *, mask=None, noise_std=None):
        """Return code maps, (n, n_components, *positions).

        ``noise_std``, (n,), is the noise of the images, replaced by the nearest level of training.
        None estimates it if thresholds follow it, and else takes the noise of training. The
        ``mask`` is 0 where pixels are missing; it needs the grid without a margin.
        """
        if noise_std is None:
            noise_std = self.noise_of(x)
        if noise_std is not None and self.noise is not None:
            noise_std = noise_std.clamp(self.noise.low, self.noise.high)
        if self.shift is None:
            return self._unfold(x, noise_std, mask)
        axes = zip(self.shift, x.shape[2:], self.room, strict=True)
        x = x[(..., *(slice(a, a + n - room) for a, n, room in axes))]
        return self._unfold(x, noise_std)

    @property
    def follows_noise(self):
        """Whether thresholds follow the noise."""
        return self.parameters.alpha_slope is not None

    def noise_of(self, x, extent=None):
        """Return the noise of images, (n,), by `estimate_noise` if thresholds follow it.

        Otherwise return the noise of training, or None without noise in training.
        """
        if self.follows_noise:
            return estimate_noise(x, extent)
        trained = self.noise is not None and self.noise.high
        return x.new_full((len(x),), self.noise.high) if trained else None

    def unit_of(self, x, noise_std):  # (n, ...), (n,) -> (n,)
        """Return divisors that make the pixels of images as large as in training.

        The divisor is 1 if an image and its noise are as in training. With more noise it is at
        least the ratio of the two levels. With less noise pixels are not enlarged further: a
        network with atoms for each unfolding is unstable for images unlike those in training.
        """
        low, high = self.noise.low, self.noise.high
        largest = x.abs().flatten(1).amax(1)
        same_noise = (noise_std >= low) & (noise_std <= high)
        same_units = ((largest - _OUTERMOST * noise_std) / self.peak).clamp_min(1)
        other_units = torch.maximum(noise_std / high, largest / self.peak)
        unit = torch.where(same_noise, same_units, other_units)
        return torch.where(unit == 0, 1.0, unit)

    @in_own_precision
    def synthesis(self, z):
        """Return reconstructions, (n, n_channels, *size)."""
        image = ConvDictionary(self.atoms, self.stride).synthesis(z)
        if self.shift is None:
            return image
        axes = zip(self.kernel, image.shape[2:], self.room, self.shift, strict=True)
        inside = (slice(k - 1 - a, n + room - (k - 1) - a) for k, n, room, a in axes)
        return image[(..., *inside)]

    def _unfold(self, x, noise_std, mask=None):
        atoms, analysis, synthesis, alpha, slope, step = self.parameters
        dictionary = ConvDictionary(atoms, self.stride)
        if synthesis is not None:
            analysis = ConvLayers(analysis, self.stride)
        encoder, decay = self.encoder, {"lambda_decay": self.lambda_decay}
        if synthesis is slope is None:
            unfold_or_solve = encoder.at(alpha, step_size=step, analysis=analysis, **decay)
            return unfold_or_solve(dictionary, x, mask)
        step = as_scalars(default_step(dictionary) if step is None else step, atoms)
        how = encoder.n_unfoldings, step
        levels = threshold_levels(dictionary, alpha, *how, shrinkage=encoder.shrinkage, **decay)
        if slope is not None:  # a level for each sample
            slopes = threshold_levels(dictionary, slope, *how, **decay)
            noise_std = noise_std.reshape(-1, *[1] * (x.ndim - 1))
            levels = levels[:, None] + noise_std * slopes[:, None]
        if synthesis is not None:
            dictionary = ConvLayers(torch.cat([synthesis, atoms[None]]), self.stride)
        options = dict(shrinkage=encoder.shrinkage, positive_code=encoder.positive_code)
        return unfold(dictionary, x, levels, step, analysis=analysis, mask=mask, **options)


@dataclass(frozen=True, kw_only=True)
class ConvModel:
    """The model that a convolutional learner trains; see `skpudle._training.loop`.

    `DenoiserModel` adds noise.

    Parameters
    ----------
    rule : callable
        One of `skpudle._gradients.GRADIENT_RULES`.
    encoder : Encoder
        The encoder.
    layout : RowLayout
        Layout of the rows of parameters.
    images : TrainingImages
        Training images, which draw crops and noise.
    geometry : Geometry
        Shape of the results.
    decay : callable
        The decay of penalties as a function of the update.
    alpha : float
        The penalty or threshold at the start of training.
    data_scale : float
        The mean squared norm of a crop.
    part_size : int
        Crops that are evaluated at a time.
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

    curvature = 1.0  # the curvature of least squares
    n_constant_codes = 0  # all rows are atoms

    def network(self, rows, update, **of_denoiser):
        """Return the network of an update, its encoder and the penalty."""
        options = {"lambda_decay": self.decay(update)}
        penalty = self.encoder.at(self.alpha, **options).penalty
        options |= of_denoiser
        network = ConvNetwork(self.layout.unpack(rows), self.images.stride, self.encoder, **options)
        return network, ConvNetwork.encode, penalty

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        return self.layout.project(rows)

    def replacements(self, rows, samples):
        """Return rows for patches."""
        return self.layout.replacements(rows, samples)

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        step = self.layout.fixed_step
        if step is None or self.layout.n_layers:
            return
        atoms = (self.layout.unpack(rows).atoms for rows in (initial, final))
        warn_of_step(step, (ConvDictionary(part, self.images.stride) for part in atoms))

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        return {
            "alpha": self.alpha,
            "image_size": self.geometry.image_size,
            "threshold_unit": self.layout.threshold_unit,
        }

    def pack(self):
        """Return the numbers that data have decided, for a checkpoint."""
        return {"alpha": self.alpha} | {name: getattr(self.layout, name) for name in _FIXED}

    def restore(self, values):
        """Return the model with the numbers of `pack`."""
        fixed = {name: values[name] for name in _FIXED}
        return replace(self, alpha=values["alpha"], layout=replace(self.layout, **fixed))

    def attributes(self, rows):
        """Return the fitted attributes."""
        values, stride = self.layout.unpack(rows), self.images.stride
        if values.step is None:
            step = default_step(ConvDictionary(values.atoms, stride))
            values = values._replace(step=step)
        options = dict(shared_threshold=self.layout.shared_threshold, rank=self.layout.rank)
        attributes = fitted_values(values, len(stride), self.geometry, **options)
        return attributes | {"n_components_": len(rows), "debias_": self.encoder.debias}


@dataclass(frozen=True, kw_only=True)
class DenoiserModel(ConvModel):
    """The model of a denoiser, which sees noisy crops.

    Parameters
    ----------
    peak : float
        The largest magnitude of a clean pixel, of earlier training too.
    """

    peak: float

    def network(self, rows, update):
        """Return the network of an update, its encoder and the penalty."""
        options = {"noise": Noise.of(self.images.noise_std)}
        if any(self.images.margin):
            first = (0,) * len(self.images.stride)
            options |= dict(shift=first, room=first)
        return super().network(rows, update, **options)

    def attributes(self, rows):
        """Return the fitted attributes."""
        return super().attributes(rows) | {
            "training_noise_std_": self.images.noise_std,
            "peak_": self.peak,
            "debias_": None,
        }
