r"""A convolutional denoiser: encoder and decoder with everything that they may learn.

What belongs to an atom is one row of numbers: the atom, those of the analysis and of the decoder
where they are separate, its thresholds, the step. So the trainer and the optimisers see one tensor,
as for any dictionary, and atoms are normalised, replaced and stored row by row.

Atoms at every ``s``-th pixel see the image on a grid, and there are ``s`` grids along each axis.
The mean of the reconstructions from several of them is better than any, and a network may be
trained on that mean.
"""

from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._learners.encoder import Encoder
from skpudle._precision import as_scalars, own_precision
from skpudle.operators import ConvDictionary, project_atoms

__all__ = ["ConvNetwork", "ConvParameters", "RowLayout", "all_shifts"]

# A row holds the step in this unit, so that a learning rate that suits atoms changes it slowly: an
# encoder whose step jumps diverges.
_STEP_UNIT = 0.03
_SMALLEST_STEP = 1e-6


class ConvParameters(NamedTuple):
    """What a network may learn.

    Attributes
    ----------
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        The dictionary.
    analysis_atoms, decoder_atoms : Tensor of that shape, or None
        Those of the analysis and of the last synthesis where they are separate.
    alpha : Tensor of shape (n_thresholds, n_components) or float
        Penalties (thresholds of hard shrinkage) of each unfolding, or one row for all.
    step : Tensor of shape () or float or None
        The step; None follows the atoms.
    """

    atoms: Tensor
    analysis_atoms: Tensor | None = None
    decoder_atoms: Tensor | None = None
    alpha: Tensor | float = 0.0
    step: Tensor | float | None = None


@dataclass(frozen=True)
class RowLayout:
    """What a row of parameters holds, in this order, and what is the same for all atoms.

    Parameters
    ----------
    shape : tuple of int
        (n_channels, *kernel).
    separate_analysis, separate_decoder : bool
        Whether there are atoms of the analysis and of the decoder, which are free of constraints.
    n_thresholds : int
        Learned penalties of an atom: 0, 1, or the number of unfoldings.
    shared_threshold : bool
        Whether a learned penalty is one for all atoms, the mean of theirs.
    learn_step : bool
        Whether the step is learned, as the mean over atoms.
    atom_norm : {"unit", "ball", None}
        The constraint of the atoms.
    fixed_alpha : float
        The penalty, where it is not learned.
    fixed_step : float or None
        The step, where it is not learned; None follows the atoms.
    """

    shape: tuple[int, ...]
    separate_analysis: bool
    separate_decoder: bool
    n_thresholds: int
    shared_threshold: bool
    learn_step: bool
    atom_norm: str | None
    fixed_alpha: float
    fixed_step: float | None

    def _sizes(self):
        atom = prod(self.shape)
        return [
            atom,
            atom * self.separate_analysis,
            atom * self.separate_decoder,
            self.n_thresholds,
            int(self.learn_step),
        ]

    def pack(self, parameters):  # ConvParameters -> (n_components, n_parameters)
        """Return one row for each atom."""
        atoms, analysis, decoder, alpha, step = parameters
        parts = [atoms.flatten(1)]
        if self.separate_analysis:
            parts.append((atoms if analysis is None else analysis).flatten(1))
        if self.separate_decoder:
            parts.append((atoms if decoder is None else decoder).flatten(1))
        if self.n_thresholds:
            alpha = as_scalars(alpha, atoms)
            if self.n_thresholds == 1 and alpha.ndim:  # those of all unfoldings become one
                alpha = alpha.mean(0, keepdim=True)
            parts.append(alpha.expand(self.n_thresholds, len(atoms)).mT)
        if self.learn_step:
            parts.append(atoms.new_tensor(float(step) / _STEP_UNIT).expand(len(atoms), 1))
        return torch.cat(parts, dim=1)

    def unpack(self, rows):  # (n_components, n_parameters) -> ConvParameters
        """Return the parameters that rows hold; differentiable."""
        atoms, analysis, decoder, alpha, step = rows.split(self._sizes(), dim=1)
        alpha = alpha.mT
        if self.shared_threshold:
            alpha = alpha.mean(1, keepdim=True).expand(-1, len(rows))
        return ConvParameters(
            atoms.unflatten(1, self.shape),
            analysis.unflatten(1, self.shape) if self.separate_analysis else None,
            decoder.unflatten(1, self.shape) if self.separate_decoder else None,
            alpha if self.n_thresholds else self.fixed_alpha,
            step.mean() * _STEP_UNIT if self.learn_step else self.fixed_step,
        )

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints."""
        atoms, analysis, decoder, alpha, step = rows.split(self._sizes(), dim=1)
        atoms = project_atoms(atoms, atom_norm=self.atom_norm)  # separate ones are free
        parts = [atoms, analysis, decoder, alpha.clamp_min(0), step.clamp_min(_SMALLEST_STEP)]
        return torch.cat(parts, dim=1)

    def replacements(self, rows, atoms):  # current rows, (k, n_channels, *kernel) -> (k, ...)
        """Return rows for new atoms, with the mean thresholds and the step of the others."""
        parameters = self.unpack(rows)
        alpha = parameters.alpha.mean(1, keepdim=True) if self.n_thresholds else 0.0
        atoms = project_atoms(atoms, atom_norm="unit")
        return self.pack(ConvParameters(atoms, alpha=alpha, step=parameters.step))


def all_shifts(stride):  # -> list of tuples
    """Return every grid of positions, as the offset of its first one."""
    return list(product(*(range(n) for n in stride)))


@dataclass(frozen=True, eq=False)
class ConvNetwork:
    """Encoder and decoder, with the `synthesis` that a gradient rule asks a dictionary for.

    Parameters
    ----------
    parameters : ConvParameters
        What was learned.
    stride : tuple of int
        Distance of neighbouring positions along each axis.
    encoder : Encoder
        Unfoldings, shrinkage and signs.
    lambda_decay : float, default=1.0
        Factor between the penalties of consecutive unfoldings.
    penalty : float, default=0.0
        What a gradient rule weighs codes with.
    shifts : list of tuple, default=None
        Grids whose reconstructions are averaged. What is reconstructed is then smaller than the
        image, by a margin in which not all atoms that reach a pixel are there. None: one grid that
        starts at the first pixel, no margin.
    room : tuple of int, default=None
        The largest shift along each axis: images are that much larger than what one grid covers.
    """

    parameters: ConvParameters
    stride: tuple[int, ...]
    encoder: Encoder
    lambda_decay: float = 1.0
    penalty: float = 0.0
    shifts: list | None = None
    room: tuple[int, ...] | None = None

    @property
    def kernel(self):
        """Size of an atom."""
        return tuple(self.parameters.atoms.shape[2:])

    def with_grids(self, shifts, room):
        """Return the same network for other grids."""
        return replace(self, shifts=shifts, room=room)

    def encode(self, x, *, mask=None):  # of images nothing is missing
        """Return code maps, (n, n_components, *positions).

        Of several grids they are (n, n_components, n_shifts, *positions).
        """
        if self.shifts is None:
            return self._unfold(x)
        sizes = [n - room for n, room in zip(x.shape[2:], self.room, strict=True)]
        windows = [
            x[(..., *(slice(a, a + n) for a, n in zip(shift, sizes, strict=True)))]
            for shift in self.shifts
        ]
        z = self._unfold(torch.cat(windows))
        return z.unflatten(0, (len(windows), len(x))).movedim(0, 2)

    @own_precision()
    def synthesis(self, z):
        """Return the mean reconstruction of all grids, (n, n_channels, *size)."""
        atoms, _, decoder_atoms, *_ = self.parameters
        decoder = ConvDictionary(atoms if decoder_atoms is None else decoder_atoms, self.stride)
        if self.shifts is None:
            return decoder.synthesis(z)
        images = decoder.synthesis(z.movedim(2, 0).flatten(0, 1)).unflatten(0, (z.shape[2], len(z)))
        margins = [k - 1 for k in self.kernel]
        sizes = [n + room for n, room in zip(images.shape[3:], self.room, strict=True)]
        ends = [n - m for n, m in zip(sizes, margins, strict=True)]
        total = 0
        for image, shift in zip(images, self.shifts, strict=True):
            axes = zip(margins, ends, shift, strict=True)
            total = total + image[(..., *(slice(m - a, end - a) for m, end, a in axes))]
        return total / len(self.shifts)

    def _unfold(self, x):
        atoms, analysis_atoms, _, alpha, step = self.parameters
        analysis = None if analysis_atoms is None else ConvDictionary(analysis_atoms, self.stride)
        return self.encoder.encode(
            ConvDictionary(atoms, self.stride),
            x,
            alpha=alpha,
            step_size=step,
            lambda_decay=self.lambda_decay,
            analysis=analysis,
        )
