"""The model of learners of rows: a dense dictionary and its encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._learners.encoder import Encoder
from skpudle._learners.notices import warn_of_step
from skpudle.encoding import default_step
from skpudle.operators import DenseDictionary, atom_norms, project_atoms

__all__ = ["Constraint", "DenseModel"]


class _DenseNetwork(NamedTuple):
    """A dictionary with the encoder of an update."""

    dictionary: DenseDictionary
    encoder: Encoder
    alpha: float
    step_size: float | None
    lambda_decay: float

    @property
    def penalty(self):
        return self.encoder.penalty(self.alpha, self.lambda_decay)

    def synthesis(self, z):
        return self.dictionary.synthesis(z)

    def encode(self, x, *, mask=None):
        return self.encoder.encode(
            self.dictionary,
            x,
            alpha=self.alpha,
            step_size=self.step_size,
            lambda_decay=self.lambda_decay,
            mask=mask,
        )


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
    """

    rule: Callable
    encoder: Encoder
    step_size: float | None
    decay: Callable
    constraint: Constraint = Constraint()
    alpha: float | None = None
    data_scale: float | None = None
    from_samples: bool = False

    part_size = None

    def network(self, rows, update):
        """Return what encodes and decodes with these atoms in an update."""
        decay = self.decay(update)
        return _DenseNetwork(DenseDictionary(rows), self.encoder, self.alpha, self.step_size, decay)

    def project(self, rows):
        """Return the nearest atoms that satisfy the constraints."""
        return self.constraint.project(rows)

    def replacements(self, rows, samples):
        """Return atoms for samples."""
        return self.constraint.directions(samples)

    def step(self, rows: Tensor):  # -> float
        """Return the step for these atoms."""
        if self.step_size is not None:
            return self.step_size
        return float(default_step(DenseDictionary(rows)))

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        if self.step_size is not None:
            warn_of_step(self.step_size, map(DenseDictionary, (initial, final)))

    def memory(self):
        """Return what a later `partial_fit` asks for beside what users see."""
        return {"alpha": self.alpha, "from_samples": self.from_samples}

    def attributes(self, rows):
        """Return what users see of it."""
        return {
            "components_": to_numpy(rows),
            "n_components_": len(rows),
            "alpha_": self.alpha,
            "step_size_": self.step(rows),
        }
