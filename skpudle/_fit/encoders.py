"""What `transform` needs of a fit: encoders of rows, and rows in units of their noise.

An encoder is a callable: ``encoder(dictionary, x, mask=None)`` returns the sparse codes
(n_samples, n_components) of rows ``x`` (n_samples, n_features) for the atoms of a
`DenseDictionary`. ``mask``, of the shape of ``x``, is 1 for known entries and 0 for missing ones.
Codes are either solved for (the lasso, to convergence) or unfolded (a fixed number of iterations,
the unfoldings). The units of rows, `skpudle._units.Units`, are a baseline to subtract and scales to
divide by, so that noise is equal in all entries. `InUnits` codes rows of the user in these units.
"""

from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skpudle._data import arrays
from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.messages import refuse
from skpudle._operators._atoms import DenseDictionary
from skpudle._units import CENTRED, Units
from skpudle.encoding._learned import LearnedEncoder
from skpudle.lasso._implicit import converged_codes, lasso_gradient
from skpudle.lasso._solve import warn_about_gaps

# Names of the fitted attributes that hold a learned encoder, trained with ``separate_atoms``: its
# matrices and thresholds.
OF_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"
# Codes of the lasso cause a warning if their relative duality gap is above this number. The gap
# bounds how far the objective of the codes is above its minimum.
_GAP = 1e-6


def fixed(value):  # -> float or None
    """Return a parameter such as ``debias`` as a float, or None if the user has set "auto"."""
    return float(value) if isinstance(value, Real | bool) else None


@dataclass(frozen=True, eq=False)
class Converged:
    """The encoder whose codes solve the lasso, or are moved from it towards least squares.

    Parameters
    ----------
    penalty : float
        The penalty of the lasso.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    debias : float, default=0.0
        Share of the lasso's bias to remove, from 0 (the lasso) to 1 (least squares on its support).
    warn : bool, default=False
        Whether to warn of codes whose duality gap shows that they have not converged.
    """

    penalty: float
    positive_code: bool = False
    debias: float = 0.0
    warn: bool = False

    def __call__(self, dictionary, x, mask=None):
        """Return the codes (n_samples, n_components) of rows ``x`` (n_samples, n_features).

        ``dictionary`` is a `DenseDictionary`, and ``mask`` is 1 for known entries of ``x``, 0 for
        missing ones.
        """
        how = dict(
            alpha=self.penalty, positive_code=self.positive_code, debias=self.debias
        )
        codes, gaps = converged_codes(
            dictionary, x, mask=mask, certify=self.warn, **how
        )
        if self.warn and not (gaps <= _GAP).all():
            level = arrays.users_level() - 1
            warn_about_gaps(
                gaps, tol=_GAP, category=ConvergenceWarning, stacklevel=level
            )
        return codes

    def gradient(self, atoms, x, mask=None, *, through_encoder):
        """Return codes, losses (n_samples,), and the derivative of the mean loss in the atoms.

        `skpudle._gradients.differentiate` calls it instead of autograd, since the derivative has a
        formula, see `skpudle.lasso._implicit.lasso_gradient`. ``through_encoder`` is whether codes
        depend on the atoms. Return None with ``debias``: the formula does not hold there, and
        autograd is used.
        """
        if self.debias:
            return None
        options = dict(
            positive=self.positive_code, through_encoder=through_encoder, mask=mask
        )
        return lasso_gradient(atoms, x, self.penalty, **options)


def learned_encoder(learner, atoms):  # -> LearnedEncoder
    """Return the encoder of ``separate_atoms`` that a fitted learner has in its attributes.

    The encoder has the dtype and the device of ``atoms`` (n_components, n_features), which are the
    learner's, in units of the noise.

    Raises
    ------
    ValueError
        If the learner has no learned encoder, or if it is for another number of unfoldings or for
        atoms of another shape.
    """
    analysis, synthesis, thresholds = (
        getattr(learner, name, None) for name in OF_LEARNED
    )
    refuse(
        analysis is None
        or learner.n_unfoldings not in ("auto", len(thresholds))
        or analysis.shape[-2:] != atoms.shape,
        f"components_ has the shape {tuple(atoms.shape)}, and no encoder of separate_atoms was "
        f"trained for it with n_unfoldings={learner.n_unfoldings!r}. Set them back, or fit again.",
    )
    shares = analysis.ndim == 2
    if shares:
        analysis = analysis[None]
        synthesis = to_numpy(atoms)[None]
    parts = (to_tensor(part).to(atoms) for part in (analysis, synthesis, thresholds))
    return LearnedEncoder(*parts, bool(learner.positive_code), shares)


# ------------------------------------------------------------------ rows in units of their noise


def baseline_of(learner):  # -> ndarray of shape (n_features,) or None
    """Return the baseline that is subtracted from a fitted learner's rows before they are coded.

    The baseline is ``intercept_``. A learner with weights, ``coef_``, has ``baseline_`` instead,
    since its ``intercept_`` belongs to its decisions. None if there is no baseline, and for
    learners of counts, recognised by their parameter ``loss``: their encoders add the baseline to
    natural parameters.
    """
    if hasattr(learner, "loss"):
        return None
    baseline = getattr(
        learner, "baseline_" if hasattr(learner, "coef_") else "intercept_", 0.0
    )
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows less the baseline of a fitted learner, as its encoder takes them."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def units_of(learner):  # -> Units
    """Return the units in which a fitted learner codes new rows, from its fitted attributes.

    The baseline and the atoms of the units are those of the present attributes, which the user may
    have edited. Noise is equal if none was learned, and for learners of other packages.
    """
    record = vars(learner).get("_fitted")
    baseline = baseline_of(learner)
    units = CENTRED if record is None else record.units
    intercept = None if baseline is None else to_tensor(baseline)
    atoms = units.from_user(to_tensor(learner.components_))
    return replace(units, intercept=intercept, atoms=atoms)


@dataclass(frozen=True, eq=False)
class InUnits:
    """An encoder that codes rows in units of their noise, and takes and returns the user's units.

    Parameters
    ----------
    encoder : callable
        The encoder of rows in units of their noise.
    units : Units
        The units, without a baseline: callers subtract the baseline first.
    gains : Tensor of shape (n_components,)
        For each atom the factor from its code in the user's units to its code in units of the
        noise: the norm of the atom in units of the noise over its norm in the user's units.
    """

    encoder: object
    units: Units
    gains: Tensor

    def __call__(self, dictionary, x, mask=None):
        """Return the codes (n_samples, n_components) of rows, in the units of the data.

        ``dictionary`` and ``x`` are in the units of the data, ``x`` less the baseline.
        """
        atoms = dictionary.atoms
        gains = self.gains.to(dictionary.atoms)
        if self.units.scale is not None:
            atoms = atoms / self.units.scale.to(atoms) / gains[:, None]
        with torch.no_grad():
            x, mask, scale = replace(self.units, atoms=atoms).enter(x, mask)
        codes = self.encoder(DenseDictionary(atoms), x, mask=mask) / gains
        return codes if scale is None else codes * scale

    def of_features(self, features):
        """Return the encoder for some of the features, given by their indices (k,).

        A score codes visible features by it, to predict hidden ones.
        """
        encoder = getattr(self.encoder, "of_features", lambda _: self.encoder)(features)
        return replace(self, encoder=encoder, units=self.units.of_features(features))
