"""The model of learners of rows: a dense dictionary, its encoder, and numbers from data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._fit.encoders import Encoder
from skpudle._fit.messages import warn_of_step
from skpudle._operators._atoms import DenseDictionary, atom_norms, project_atoms
from skpudle.encoding._unfold import default_step


def _beside_intercept(dictionary, x, *, encode, mask=None, offset=None):
    """Return codes for atoms and an intercept, the last row, an atom whose code is always 1.

    (Its share of the penalty is a constant.)
    """
    intercept = dictionary.atoms[-1]
    offset = intercept if offset is None else intercept + offset
    z = encode(DenseDictionary(dictionary.atoms[:-1]), x, mask=mask, offset=offset)
    return torch.cat([z, torch.ones_like(z[:, :1])], dim=1)


def _project_beside_intercept(rows, *, project):
    return torch.cat([project(rows[:-1]), rows[-1:]])


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Return samples divided by their norms, their moduli if ``positive``; zero stays zero."""
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    return samples.abs() if positive else samples  # equal for x and -x


@dataclass(frozen=True)
class DenseModel:
    """The model that a learner of rows trains; see `skpudle._fit.train`.

    Rows of parameters are the atoms and, for losses other than least squares, an intercept.

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
    atom_norm : {"unit", "ball", None}, default="unit"
        Whether atoms have norm 1, at most 1, or any.
    positive : bool, default=False
        Whether atoms are non-negative.
    alpha : float, default=None
        The penalty or threshold; None before data are seen.
    data_scale : float, default=None
        Mean squared norm of a sample; None before data are seen.
    from_samples : bool, default=False
        Whether training began with samples as atoms instead of a search.
    curvature : float, default=1.0
        The mean curvature of the loss.
    """

    rule: Callable
    encoder: Encoder
    step_size: float | None
    decay: Callable
    atom_norm: str | None = "unit"
    positive: bool = False
    alpha: float | None = None
    data_scale: float | None = None
    from_samples: bool = False
    curvature: float = 1.0

    decided = "alpha", "curvature", "data_scale", "from_samples"  # by data
    name_of_baseline = "intercept_"
    part_size = None

    def network(self, rows, update):
        """Return the dictionary, its encoder and the penalty of an update."""
        decay = self.decay(update)
        options = dict(alpha=self.alpha, step_size=self.step_size, lambda_decay=decay)
        encoder = self.encoder.at(**options)
        codes = encoder if not self.n_constant_codes else partial(_beside_intercept, encode=encoder)
        return DenseDictionary(rows), codes, encoder.penalty

    @property
    def n_constant_codes(self):
        """The number of rows with the constant code 1: one for an intercept."""
        return int(self.encoder.loss.has_baseline)

    def parts(self, rows):  # -> atoms (n_components, n_features), intercept (n_features,) or None
        """Return the atoms and the intercept in rows."""
        return (rows[:-1], rows[-1]) if self.n_constant_codes else (rows, None)

    @property
    def project(self):  # a function of rows; the surrogate compiles projections that it knows
        """Return the nearest rows that satisfy the constraints; an intercept has none."""
        function = partial(project_atoms, atom_norm=self.atom_norm, positive=self.positive)
        if not self.n_constant_codes:
            return function
        return partial(_project_beside_intercept, project=function)

    def replacements(self, rows, samples):
        """Return atoms for samples; missing entries, NaN, become zero."""
        _, intercept = self.parts(rows)
        if intercept is not None:
            samples = self.encoder.loss.response(samples) - self.encoder.loss.response(
                self.encoder.loss.mean(intercept)
            )
        return directions(samples.nan_to_num(), positive=self.positive)

    def step(self, atoms: Tensor):  # -> float or None
        """Return the step for these atoms; None if each sample searches for its own."""
        if self.step_size is not None:
            return self.step_size
        step = default_step(DenseDictionary(atoms), self.encoder.loss)
        return None if step is None else float(step)

    def warn_of_step(self, rows):
        """Warn if the encoder may diverge with the step."""
        if self.step_size is not None and isfinite(self.encoder.loss.curvature):
            dictionary = DenseDictionary(self.parts(rows)[0])
            warn_of_step(self.step_size, dictionary, self.encoder.loss.curvature)

    def attributes(self, rows):
        """Return the fitted attributes, in the units of the rows."""
        atoms, intercept = self.parts(rows)
        return {
            "components_": to_numpy(atoms),
            self.name_of_baseline: 0.0 if intercept is None else to_numpy(intercept),
            "n_components_": len(atoms),
            "alpha_": self.alpha,
            "debias_": self.encoder.debias,
            "step_size_": self.step(atoms),
        }
