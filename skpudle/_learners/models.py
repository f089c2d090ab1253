"""The model of learners of rows: a dense dictionary and its encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._learners.encoder import Encoder
from skpudle._learners.notices import warn_of_step
from skpudle.encoding import default_step
from skpudle.losses import Gaussian
from skpudle.operators import DenseDictionary, atom_norms, project_atoms

__all__ = ["Constraint", "DenseModel"]


class _DenseNetwork(NamedTuple):
    """A dictionary with the encoder of an update, and the intercept of a loss that has one.

    That is then the last of the rows, an atom whose code is always 1. (Its share of the penalty is
    a constant.)
    """

    rows: Tensor
    intercept: Tensor | None
    encoder: Encoder
    alpha: float
    step_size: float | None
    lambda_decay: float

    @property
    def penalty(self):
        return self.encoder.penalty(self.alpha, self.lambda_decay)

    def synthesis(self, z):
        return DenseDictionary(self.rows).synthesis(z)

    def encode(self, x, *, mask=None, offset=None):
        options = dict(alpha=self.alpha, step_size=self.step_size, lambda_decay=self.lambda_decay)
        if self.intercept is None:
            return self.encoder.encode(DenseDictionary(self.rows), x, mask=mask, **options)
        options["offset"] = self.intercept if offset is None else self.intercept + offset
        z = self.encoder.encode(DenseDictionary(self.rows[:-1]), x, mask=mask, **options)
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)


@dataclass(frozen=True)
class Constraint:
    """What atoms have to be: of norm 1, of at most that or of any, and non-negative or not."""

    atom_norm: str | None = "unit"
    positive: bool = False

    def project(self, atoms):
        """Return the nearest atoms inside."""
        return project_atoms(atoms, atom_norm=self.atom_norm, positive=self.positive)

    def directions(self, samples):  # (n, n_features) -> the same
        """Return samples as atoms: their norm, which has units, is no measure for that of atoms."""
        samples = samples / atom_norms(samples)
        return samples.abs() if self.positive else samples  # as good a direction of a line


@dataclass(frozen=True)
class DenseModel:
    """What is trained by learners of rows; see `skpudle._training.loop`.

    Rows of parameters are the atoms and, for losses other than least squares, an intercept.

    Parameters
    ----------
    rule : callable
        One of `skpudle.gradients.GRADIENT_RULES`.
    encoder : Encoder
        How to encode.
    step_size : float or None
        The step; None follows the atoms.
    decay : callable
        The decay of penalties as a function of the update.
    constraint : Constraint, default=Constraint()
        Of the atoms.
    alpha : float, default=None
        The penalty or threshold, once it is known.
    data_scale : float, default=None
        Mean squared norm of a sample, once it is known.
    from_samples : bool, default=False
        Whether the atoms were samples, where a search would have found better ones.
    curvature : float, default=1.0
        The mean curvature of the loss.
    """

    rule: Callable
    encoder: Encoder
    step_size: float | None
    decay: Callable
    constraint: Constraint = Constraint()
    alpha: float | None = None
    data_scale: float | None = None
    from_samples: bool = False
    curvature: float = 1.0

    part_size = None

    def network(self, rows, update):
        """Return what encodes and decodes with these atoms in an update."""
        decay, intercept = self.decay(update), self.parts(rows)[1]
        return _DenseNetwork(rows, intercept, self.encoder, self.alpha, self.step_size, decay)

    def parts(self, rows):  # -> atoms (n_components, n_features), intercept (n_features,) or None
        """Return what rows are."""
        return (rows, None) if isinstance(self.encoder.loss, Gaussian) else (rows[:-1], rows[-1])

    def project(self, rows):
        """Return the nearest rows that satisfy the constraints; an intercept has none."""
        atoms, intercept = self.parts(rows)
        atoms = self.constraint.project(atoms)
        return atoms if intercept is None else torch.cat([atoms, intercept[None]])

    def replacements(self, rows, samples):
        """Return atoms for samples."""
        _, intercept = self.parts(rows)
        if intercept is not None:
            samples = self.encoder.loss.response(samples) - self.encoder.loss.response(
                self.encoder.loss.mean(intercept)
            )
        return self.constraint.directions(samples)

    def step(self, atoms: Tensor):  # -> float or None
        """Return the step for these atoms, None where each sample looks for its own."""
        if self.step_size is not None:
            return self.step_size
        step = default_step(DenseDictionary(atoms), self.encoder.loss)
        return None if step is None else float(step)

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        if self.step_size is not None and isfinite(self.encoder.loss.curvature):
            both = (DenseDictionary(self.parts(rows)[0]) for rows in (initial, final))
            warn_of_step(self.step_size, both, self.encoder.loss.curvature)

    def memory(self):
        """Return what a later `partial_fit` asks for beside what users see."""
        names = "alpha", "from_samples", "curvature"
        return {name: getattr(self, name) for name in names}

    def attributes(self, rows):
        """Return what users see of it."""
        atoms, intercept = self.parts(rows)
        return {
            "components_": to_numpy(atoms),
            "intercept_": None if intercept is None else to_numpy(intercept),
            "n_components_": len(atoms),
            "alpha_": self.alpha,
            "step_size_": self.step(atoms),
        }
