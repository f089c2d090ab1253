"""How a learner encodes: what its parameters say, apart from what data and training decide."""

import warnings
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skpudle._data.callers import users_level
from skpudle.encoding import encode
from skpudle.initialization import conv_codes
from skpudle.lasso import converged_codes, warn_about_gaps
from skpudle.losses import Gaussian
from skpudle.operators import ConvDictionary

__all__ = ["Decay", "Encoder"]


# As the paper has them.
_UNFOLDINGS = 100


class Decay(NamedTuple):
    """``lambda_decay`` over training: a staircase of ten equal parts (figure 5)."""

    first: float
    last: float

    @classmethod
    def of(cls, lambda_decay):
        """Return that of the parameter, which is one number or a pair.

        Raises
        ------
        ValueError
            If a pair is none, or holds what one number must not be.
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


@dataclass(frozen=True)
class Encoder:
    """An encoder but for the dictionary, alpha, the step and the decay.

    Parameters
    ----------
    n_unfoldings : int, None or "auto"
        Iterations; None solves the lasso; "auto" does where that is defined, and otherwise makes
        100 iterations.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial_threshold : float, default=None
        Start from thresholded correlations, as NOODL does.
    loss : object of `skpudle.losses`, default=Gaussian()
        What data are to the reconstruction.
    """

    n_unfoldings: int | str | None
    shrinkage: str = "soft"
    positive_code: bool = False
    initial_threshold: float | None = None
    loss: object = Gaussian()

    def depth(self, alpha, lambda_decay, mask=None):
        """Return the number of iterations, None where the lasso is solved."""
        if self.n_unfoldings != "auto":
            return self.n_unfoldings
        lasso = self.shrinkage == "soft" and lambda_decay == 1 and alpha > 0
        lasso = lasso and isinstance(self.loss, Gaussian)
        return None if lasso and mask is None else _UNFOLDINGS

    def encode(
        self,
        dictionary,
        x,
        *,
        alpha,
        step_size=None,
        lambda_decay=1.0,
        analysis=None,
        mask=None,
        offset=None,
        warn=False,
    ):
        """Return codes; ``warn`` names those of the lasso that have not converged.

        The others are arguments of `skpudle.encoding.encode`.
        """
        n_unfoldings = self.depth(alpha, lambda_decay, mask)
        if n_unfoldings is None and isinstance(dictionary, ConvDictionary):
            options = dict(alpha=alpha, positive_code=self.positive_code, mask=mask)
            codes, solved = conv_codes(dictionary, x, **options)
            if not solved.all():
                warnings.warn(
                    f"The codes of {(~solved).sum()} of {len(solved)} images have not converged; "
                    f"raise alpha, which is {alpha:.3g}, or pass a number of n_unfoldings.",
                    ConvergenceWarning,
                    stacklevel=users_level(),
                )
            return codes
        if n_unfoldings is None:
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
            n_unfoldings=n_unfoldings,
            step_size=step_size,
            lambda_decay=lambda_decay,
            shrinkage=self.shrinkage,
            positive_code=self.positive_code,
            initial_threshold=self.initial_threshold,
            analysis=analysis,
            mask=mask,
            loss=self.loss,
            offset=offset,
        )

    def penalty(self, alpha, lambda_decay):
        """Return the penalty of the last unfolding; a hard threshold has none to differentiate."""
        if self.shrinkage == "hard":
            return 0.0
        n_unfoldings = self.depth(alpha, lambda_decay)
        return alpha if n_unfoldings is None else alpha * lambda_decay ** (n_unfoldings - 1)
