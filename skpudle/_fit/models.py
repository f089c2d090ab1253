"""The model of learners of rows: a dense dictionary and its encoder.

Convolutional learners share `Encoder` and `Decay`, the parameters of an encoder without the numbers
that data and training decide.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._data.names import users_level
from skpudle._fit.messages import warn_of_step
from skpudle._operators._atoms import DenseDictionary, atom_norms, project_atoms
from skpudle._operators._conv import ConvDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step
from skpudle.lasso._gap import warn_about_gaps
from skpudle.lasso._gradient_compiled import lasso_gradient
from skpudle.lasso._implicit import converged_codes
from skpudle.omp import solve_omp
from skpudle.search._conv_epoch import conv_codes

# as in the paper
_UNFOLDINGS = 100

# Largest relative duality gap of codes that needs no warning.
_GAP = 1e-6


class Decay(NamedTuple):
    """``lambda_decay`` over training: a staircase of ten equal parts (figure 5)."""

    first: float
    last: float

    @classmethod
    def of(cls, lambda_decay):
        """Return the decay of a parameter, one number or a pair.

        Raises
        ------
        ValueError
            If a tuple is no pair of numbers in (0, 1].
        """
        pair = lambda_decay if isinstance(lambda_decay, tuple) else (lambda_decay,) * 2
        if len(pair) != 2 or not all(isinstance(beta, Real) and 0 < beta <= 1 for beta in pair):
            raise ValueError(
                f"lambda_decay={lambda_decay!r:.80} is not a pair (first, last) of numbers in "
                "(0, 1]; pass such a pair, or one number."
            )
        return cls(*map(float, pair))

    def over(self, n_updates):
        """Return the value as a function of the update, counted from 0."""
        n_updates = max(n_updates, 1)
        decays = np.linspace(self.last, self.first, min(10, n_updates))[::-1]
        return lambda update: float(decays[min(len(decays) * update // n_updates, len(decays) - 1)])

    def at_last(self, update):
        """Return the last value, whatever the update."""
        return self.last


def fixed(value):  # -> float or None
    """Return the number of a parameter; None for "auto", which follows atoms or data."""
    return float(value) if isinstance(value, Real | bool) else None


@dataclass(frozen=True)
class Encoder:
    """The choice of an encoder, without dictionary, alpha, step and decay.

    Parameters
    ----------
    n_unfoldings : int, None or "auto"
        Iterations; None solves the lasso; "auto" solves it if the encoder is a lasso's, and
        otherwise makes 100 iterations.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial_threshold : float, default=None
        Start from thresholded correlations, as NOODL does.
    debias : float, default=0.0
        Share of the lasso's bias to remove.
    """

    n_unfoldings: int | str | None
    shrinkage: str = "soft"
    positive_code: bool = False
    initial_threshold: float | None = None
    debias: float = 0.0

    def at(self, alpha, *, step_size=None, lambda_decay=1.0, warn=False):
        """Return the encoder, `Converged` or `Unfolded`, with these numbers."""
        n_unfoldings = self.n_unfoldings
        if n_unfoldings == "auto":
            lasso = self.shrinkage == "soft" and lambda_decay == 1 and alpha > 0
            n_unfoldings = None if lasso else _UNFOLDINGS
        if n_unfoldings is None:
            return Converged(alpha, self.positive_code, self.debias, warn)
        return Unfolded(self, alpha, n_unfoldings, step_size, lambda_decay)


@dataclass(frozen=True, eq=False)
class Converged:
    """Codes that solve the lasso, or the relaxed lasso.

    Parameters
    ----------
    penalty : float
        The penalty.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    debias : float, default=0.0
        Share of the lasso's bias to remove.
    warn : bool, default=False
        Whether to certify codes, and warn of codes that have not converged.
    """

    penalty: float
    positive_code: bool = False
    debias: float = 0.0
    warn: bool = False

    def __call__(self, dictionary, x, mask=None):
        """Return codes."""
        options = dict(positive_code=self.positive_code, debias=self.debias, mask=mask)
        if isinstance(dictionary, ConvDictionary):
            codes, solved = conv_codes(dictionary, x, alpha=self.penalty, **options)
            if not solved.all():
                warnings.warn(
                    f"The codes of {(~solved).sum()} of {len(solved)} images or signals have not "
                    "converged. Take an offset or a slow background off first, raise alpha, which "
                    f"is {self.penalty:.3g}, or pass a number of n_unfoldings.",
                    ConvergenceWarning,
                    stacklevel=users_level(),
                )
            return codes
        options |= dict(alpha=self.penalty, certify=self.warn)
        codes, gaps = converged_codes(dictionary, x, **options)
        if self.warn and not (gaps <= _GAP).all():
            level = users_level() - 1
            warn_about_gaps(gaps, tol=_GAP, category=ConvergenceWarning, stacklevel=level)
        return codes

    def gradient(self, atoms, x, mask=None, *, through_encoder):
        """Return codes, losses and the derivative of their mean without a graph.

        None where this is not possible; see `skpudle.lasso._gradient_compiled.lasso_gradient`.
        """
        if self.debias:
            return None
        options = dict(positive=self.positive_code, through_encoder=through_encoder, mask=mask)
        return lasso_gradient(atoms, x, self.penalty, **options)


@dataclass(frozen=True, eq=False)
class Unfolded:
    """Codes after some iterations.

    Parameters
    ----------
    choice : Encoder
        Shrinkage, sign and start.
    alpha : float or Tensor
        Penalty or threshold.
    n_unfoldings : int
        Number of iterations.
    step_size : float or Tensor, default=None
        The step; None follows the dictionary.
    lambda_decay : float, default=1.0
        Factor of the penalty from one iteration to the next.
    """

    choice: Encoder
    alpha: float
    n_unfoldings: int
    step_size: float | None = None
    lambda_decay: float = 1.0

    def __call__(self, dictionary, x, mask=None):
        """Return codes."""
        return encode(
            dictionary,
            x,
            alpha=self.alpha,
            n_unfoldings=self.n_unfoldings,
            step_size=self.step_size,
            lambda_decay=self.lambda_decay,
            shrinkage=self.choice.shrinkage,
            positive_code=self.choice.positive_code,
            initial_threshold=self.choice.initial_threshold,
            mask=mask,
        )

    @property
    def penalty(self):
        """The penalty of the last unfolding; 0 for hard thresholds, which have no derivative."""
        if self.choice.shrinkage == "hard":
            return 0.0
        return self.alpha * self.lambda_decay ** (self.n_unfoldings - 1)


@dataclass(frozen=True, eq=False)
class Pursuit:
    """Codes of orthogonal matching pursuit.

    Parameters
    ----------
    n_nonzero_coefs : int or None
        Number of atoms for a sample; None is a tenth of the features.
    tol : float or None
        Squared norm of the residual at which to stop instead.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    """

    n_nonzero_coefs: int | None
    tol: float | None
    positive_code: bool = False

    def __call__(self, dictionary, x, mask=None):
        """Return codes."""
        return solve_omp(
            dictionary.atoms,
            x,
            n_nonzero_coefs=self.n_nonzero_coefs,
            tol=self.tol,
            positive=self.positive_code,
            mask=mask,
        )


@dataclass(frozen=True, eq=False)
class Learned:
    """Codes of an encoder with a fixed graph.

    Parameters
    ----------
    graph : LearnedEncoder
        The encoder, of rows in units of the noise.
    """

    graph: object

    def __call__(self, dictionary, x, mask=None):
        """Return codes."""
        return self.graph.to(x).encode(x, mask)

    def of_features(self, features):
        """Return the encoder for some of the features."""
        return Learned(self.graph.of_features(features))


def directions(samples, *, positive):  # (n, n_features) -> the same
    """Return samples divided by their norms, their moduli if ``positive``; zero stays zero."""
    norms = atom_norms(samples)
    samples = samples / torch.where(norms > 0, norms, 1.0)
    return samples.abs() if positive else samples  # equal for x and -x


def half_squares(batch):  # -> (n_samples,)
    """Return the losses of samples without any code."""
    known = 1.0 if batch.mask is None else batch.mask
    return (known * 0.5 * batch.x.square()).flatten(1).sum(1)


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
        The mean curvature of the loss, 1 for least squares.
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

    decided = "alpha", "curvature", "data_scale"  # by data
    name_of_baseline = "intercept_"
    part_size, without_codes = None, staticmethod(half_squares)

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
        return partial(project_atoms, atom_norm=self.atom_norm, positive=self.positive)

    def replacements(self, rows, samples):
        """Return atoms for samples; missing entries, NaN, become zero."""
        return directions(samples.nan_to_num(), positive=self.positive)

    def step(self, atoms: Tensor):  # -> float
        """Return the step for these atoms."""
        if self.step_size is not None:
            return self.step_size
        return float(default_step(DenseDictionary(atoms)))

    def warn_of_step(self, initial, final):
        """Warn if the encoder may diverge with the step, once."""
        if self.step_size is not None:
            warn_of_step(self.step_size, map(DenseDictionary, map(self.atoms, (initial, final))))

    def memory(self):
        """Return the private attributes that a later `partial_fit` needs."""
        names = "alpha", "from_samples", "curvature"
        return {name: value for name in names if (value := getattr(self, name)) is not None}

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
