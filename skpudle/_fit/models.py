"""The model of learners of rows: a dense dictionary, its encoder, and numbers from data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._fit.encoders import Encoder
from skpudle._fit.messages import warn_of_step
from skpudle._operators._atoms import DenseDictionary, atom_norms, project_atoms
from skpudle.encoding._unfold import default_step


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Return samples divided by their norms, their moduli if ``positive``; zero stays zero."""
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    return samples.abs() if positive else samples  # equal for x and -x


@dataclass(frozen=True)
class DenseModel:
    """The model that a learner of rows trains; see `skpudle._fit.train`.

    Rows of parameters are the atoms; of a subclass also what it learns beside them.

    Parameters
    ----------
    rule : callable
        One of `skpudle._gradients.GRADIENT_RULES`.
    encoder : Encoder
        The encoder.
    step_size : float or None
        The step; None follows the atoms.
    decay : callable
        The decay of penalties as a function of the update.
    positive : bool, default=False
        Whether atoms are non-negative.
    alpha : float, default=None
        The penalty or threshold; None before data are seen.
    data_scale : float, default=None
        Mean squared norm of a sample; None before data are seen.
    from_samples : bool, default=False
        Whether training began with samples as atoms instead of a search.
    curvature : float, default=1.0
        The mean curvature of the loss, 1 for least squares.
    """

    rule: Callable
    encoder: Encoder
    step_size: float | None
    decay: Callable
    positive: bool = False
    alpha: float | None = None
    data_scale: float | None = None
    from_samples: bool = False
    curvature: float = 1.0

    decided = "alpha", "curvature", "data_scale", "from_samples"  # by data
    name_of_baseline = "intercept_"

    def network(self, rows, update):
        """Return the dictionary, its encoder and the penalty of an update."""
        decay = self.decay(update)
        options = dict(alpha=self.alpha, step_size=self.step_size, lambda_decay=decay)
        encoder = self.encoder.at(**options)
        return DenseDictionary(rows), encoder, encoder.penalty

    def atoms(self, rows):  # -> (n_components, n_features)
        """Return the atoms in rows."""
        return rows

    @property
    def project(self):  # a function of rows; the surrogate compiles projections that it knows
        """Return the nearest rows that satisfy the constraints."""
        return partial(project_atoms, positive=self.positive)

    def replacements(self, rows, samples):
        """Return atoms for samples; missing entries, NaN, become zero."""
        return directions(samples.nan_to_num(), positive=self.positive)

    def step(self, atoms: Tensor):  # -> float
        """Return the step for these atoms."""
        if self.step_size is not None:
            return self.step_size
        return float(default_step(DenseDictionary(atoms)))

    def warn_of_step(self, rows):
        """Warn if the encoder may diverge with the step."""
        if self.step_size is not None:
            warn_of_step(self.step_size, DenseDictionary(self.atoms(rows)))

    def attributes(self, rows):
        """Return the fitted attributes, in the units of the rows."""
        atoms = self.atoms(rows)
        return {
            "components_": to_numpy(atoms),
            self.name_of_baseline: 0.0,
            "n_components_": len(atoms),
            "alpha_": self.alpha,
            "debias_": self.encoder.debias,
            "step_size_": self.step(atoms),
        }
