"""How a learner encodes: what its parameters say, apart from what data and training decide."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skpudle._data.callers import users_level
from skpudle.encoding import encode
from skpudle.lasso import converged_codes, warn_about_gaps

__all__ = ["AUTO_ALPHA", "Decay", "Encoder", "automatic_alpha", "correlations"]

# alpha="auto" is this fraction of the median over samples of the alpha that would silence a sample.
AUTO_ALPHA = 0.1


def correlations(x, atoms):  # (n, n_features), (n_components, n_features) -> (n,)
    """Return the largest modulus of each sample's correlations with atoms."""
    return torch.cat([(rows @ atoms.mT).abs().amax(1) for rows in x.split(4096)])


def automatic_alpha(largest):  # (n,) -> float
    """Return a penalty for samples, or for images, with these largest correlations."""
    largest = largest[largest >= torch.finfo(largest.dtype).tiny]  # below it alpha may underflow
    # any will do for zeros
    return AUTO_ALPHA * (float(largest.median()) if len(largest) else 1.0)


class Decay(NamedTuple):
    """``lambda_decay`` over training: a staircase of ten equal parts (figure 5)."""

    first: float
    last: float

    @classmethod
    def of(cls, lambda_decay):
        """Return that of the parameter, which is a pair or one number."""
        first, last = lambda_decay if isinstance(lambda_decay, tuple) else (lambda_decay,) * 2
        return cls(float(first), float(last))

    def over(self, n_updates):
        """Return the value as a function of the update, counted from 0."""
        decays = np.linspace(self.last, self.first, min(10, n_updates))[::-1]
        return lambda update: float(decays[min(len(decays) * update // n_updates, len(decays) - 1)])

    def at_last(self, update):
        """Return the last value, whatever the update."""
        return self.last


@dataclass(frozen=True)
class Encoder:
    """An encoder but for the dictionary, alpha, the step and the decay.

    Parameters
    ----------
    n_unfoldings : int or None
        Iterations; None solves the lasso.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial_threshold : float, default=None
        Start from thresholded correlations, as NOODL does.
    """

    n_unfoldings: int | None
    shrinkage: str = "soft"
    positive_code: bool = False
    initial_threshold: float | None = None

    def encode(
        self, dictionary, x, *, alpha, step_size=None, lambda_decay=1.0, mask=None, warn=False
    ):
        """Return codes; ``warn`` names those of the lasso that have not converged."""
        if self.n_unfoldings is None:
            codes, gaps = converged_codes(
                dictionary, x, alpha=alpha, positive_code=self.positive_code, certify=warn
            )
            if warn:
                warn_about_gaps(gaps, category=ConvergenceWarning, stacklevel=users_level() - 1)
            return codes
        return encode(
            dictionary,
            x,
            alpha=alpha,
            n_unfoldings=self.n_unfoldings,
            step_size=step_size,
            lambda_decay=lambda_decay,
            shrinkage=self.shrinkage,
            positive_code=self.positive_code,
            initial_threshold=self.initial_threshold,
            mask=mask,
        )

    def penalty(self, alpha, lambda_decay):
        """Return the penalty of the last unfolding; a hard threshold has none to differentiate."""
        if self.shrinkage == "hard":
            return 0.0
        if self.n_unfoldings is None:
            return alpha
        return alpha * lambda_decay ** (self.n_unfoldings - 1)

    def automatic_alpha(self, largest, step_size):  # (n,), float -> float
        """Return alpha for samples with these largest correlations."""
        return automatic_alpha(largest) * (step_size if self.shrinkage == "hard" else 1.0)
