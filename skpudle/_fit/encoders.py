"""What `transform` needs of a fit: what parameters decide about codes, encoders, units of rows.

An encoder is a callable: ``encoder(dictionary, x, mask=None)`` returns the sparse codes
(n_samples, n_components) of rows ``x`` (n_samples, n_features) for the atoms of a
`DenseDictionary`. ``mask``, of the shape of ``x``, is 1 for known entries and 0 for missing ones.
Codes are either solved for (the lasso, to convergence) or unfolded (a fixed number of iterations,
the unfoldings). The units of rows, `skpudle._units.Units`, are a baseline to subtract and
scales to divide by, so that the noise has the same standard deviation in all entries. `InUnits`
codes a user's rows.

`EncoderPlan` checks the parameters that decide about codes, and makes the encoder. A fit needs more
of the parameters: `skpudle._fit.plan.Plan` is the plan of a fit, and a subclass.
"""

from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skpudle._data import arrays
from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._fit.messages import refuse
from skpudle._fit.train import PATIENCE
from skpudle._operators._atoms import DenseDictionary
from skpudle._units import CENTRED, Units
from skpudle.encoding import encode
from skpudle.encoding._learned import LearnedEncoder
from skpudle.lasso._implicit import converged_codes, lasso_gradient
from skpudle.lasso._solve import warn_about_gaps

# Names of the fitted attributes that hold a learned encoder, trained with ``separate_atoms``: its
# matrices and thresholds.
OF_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"
# Number of unfoldings with n_unfoldings="auto" if codes are unfolded: as in the PUDLE paper.
_UNFOLDINGS = 100
# Number of unfoldings of a learned encoder with n_unfoldings="auto": it codes as well as 20
# unfoldings with the dictionary's own matrices.
_LEARNED_UNFOLDINGS = 3

# Codes of the lasso cause a warning if their relative duality gap is above this number. The gap
# bounds how far the objective of the codes is above its minimum.
_GAP = 1e-6

# Parameters that a plan reads, and their values for learners that have neither a parameter nor a
# constant of this name.
_DEFAULTS = dict(
    n_components=None, alpha="auto", gradient="auto", fit_intercept="auto", noise="auto",
    n_unfoldings="auto", step_size="auto", lambda_decay=1.0, shrinkage="soft",
    initial_threshold=None, debias=0.0, separate_atoms=False, positive_code=False,
    positive_dict=False, optimizer="adam", learning_rate=1e-3, batch_size="auto",
    max_iter="auto", tol=1e-4, n_iter_no_change=PATIENCE, dict_init="search",
    transform_algorithm="unfolded", transform_n_nonzero_coefs=None, transform_alpha=None,
)  # fmt: skip


# ------------------------------------------------------------------ encoders


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
    warns : bool, default=False
        Whether to warn of codes whose duality gap shows that they have not converged.
    """

    penalty: float
    positive_code: bool = False
    debias: float = 0.0
    warns: bool = False

    def __call__(self, dictionary, x, mask=None):
        """Return the codes (n_samples, n_components) of rows ``x`` (n_samples, n_features).

        ``dictionary`` is a `DenseDictionary`, and ``mask`` is 1 for known entries of ``x``, 0 for
        missing ones.
        """
        codes, gaps = converged_codes(
            dictionary,
            x,
            alpha=self.penalty,
            positive_code=self.positive_code,
            debias=self.debias,
            certify=self.warns,
            mask=mask,
        )
        if self.warns and not (gaps <= _GAP).all():
            level = arrays.users_level()
            warn_about_gaps(
                gaps, tol=_GAP, category=ConvergenceWarning, stacklevel=level
            )
        return codes

    def gradient(
        self,
        atoms,
        x,
        mask=None,
        *,
        through_encoder,
    ):
        """Return codes, losses (n_samples,), and the derivative of the mean loss in the atoms.

        `skpudle._gradients.differentiate` calls it instead of autograd, since the derivative has a
        formula, see `skpudle.lasso._implicit.lasso_gradient`. ``through_encoder`` is whether the
        derivative takes into account that codes depend on the atoms. Return None with ``debias``:
        the formula does not hold there, and autograd is used.
        """
        if self.debias:
            return None
        return lasso_gradient(
            atoms,
            x,
            self.penalty,
            positive=self.positive_code,
            through_encoder=through_encoder,
            mask=mask,
        )


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
    # one matrix for all unfoldings, with the atoms in place of synthesis matrices
    shares_atoms = analysis.ndim == 2
    if shares_atoms:
        analysis = analysis[None]
        synthesis = to_numpy(atoms)[None]
    return LearnedEncoder(
        to_tensor(analysis).to(atoms),
        to_tensor(synthesis).to(atoms),
        to_tensor(thresholds).to(atoms),
        bool(learner.positive_code),
        shares_atoms,
    )


# ------------------------------------------------------------------ what parameters decide


class EncoderPlan:
    """What the parameters of a learner of rows decide about codes.

    A parameter that the learner lacks is a constant of its class, such as ``gradient = "noodl"``,
    or has its value in `_DEFAULTS`. `transform` makes a plan for each call, since the user may have
    set parameters after the fit.

    Attributes
    ----------
    params : SimpleNamespace
        The values of all parameters in `_DEFAULTS`.
    decay : tuple (first, last)
        ``lambda_decay`` at the beginning and at the end of training.
    debias : float or None
        Share of the lasso's bias to remove from codes, from 0 (the lasso) to 1 (least squares on
        its support); None if the data decide.
    of_lasso : bool
        Whether codes of a fit minimise the lasso, so that a search needs no training after it: soft
        thresholds, no number of unfoldings, no ``lambda_decay``, and a penalty other than 0.
    converges : bool
        Whether the user asks for converged codes in `transform`.
    solves : bool
        Whether codes of `transform` are solutions of the lasso: with ``of_lasso`` or ``converges``.
    n_unfoldings : int
        Number of unfoldings if codes are not solved for.

    Raises
    ------
    ValueError
        If parameters contradict each other.
    """

    def __init__(self, learner):
        values = {
            name: getattr(learner, name, value) for name, value in _DEFAULTS.items()
        }
        params = SimpleNamespace(**values)
        self.params = params
        decay = params.lambda_decay
        self.decay = decay if isinstance(decay, tuple) else (decay, decay)
        is_pair = len(self.decay) == 2 and all(
            isinstance(factor, Real) for factor in self.decay
        )
        refuse(
            not (is_pair and all(0 < factor <= 1 for factor in self.decay)),
            f"lambda_decay={decay!r:.60} is not a pair of numbers in (0, 1]. Pass (first, last).",
        )
        self.debias = fixed(params.debias)  # None if the user has set "auto"
        # `depth` is the number of unfoldings, "auto", or None for converged codes. `learns` tells
        # whether the user asks for a learned encoder.
        depth = params.n_unfoldings
        learns = params.separate_atoms
        is_soft_lasso = params.shrinkage == "soft" and self.decay == (1, 1)
        self.converges = params.transform_algorithm == "lasso" or depth is None
        has_no_number = depth in ("auto", None) and not learns
        self.of_lasso = is_soft_lasso and params.alpha != 0 and has_no_number
        self.solves = self.of_lasso or self.converges
        usual = _LEARNED_UNFOLDINGS if learns and depth == "auto" else _UNFOLDINGS
        self.n_unfoldings = depth if isinstance(depth, Integral) else usual
        got = (
            f"n_unfoldings={depth!r}, gradient={params.gradient!r}, "
            f"shrinkage={params.shrinkage!r}, lambda_decay={decay!r}, alpha={params.alpha!r}"
        )
        refuse(
            learns
            and (
                depth is None or params.gradient == "dec" or params.shrinkage != "soft"
            ),
            f"separate_atoms={learns!r} does not go with {got}. Pass a number of unfoldings, "
            "gradient='ae-lasso' or 'auto', and shrinkage='soft'.",
        )
        refuse(
            self.converges
            and (not is_soft_lasso or 0 in (params.alpha, params.transform_alpha)),
            f"Converged codes do not go with {got}, transform_alpha={params.transform_alpha!r}. "
            "Pass shrinkage='soft', lambda_decay=1 and positive penalties, or a number of "
            "unfoldings and transform_algorithm='unfolded'.",
        )

    def encoder(
        self, alpha, *, step_size=None, lambda_decay=1.0, solves=False, debias=None
    ):
        """Return the encoder that the parameters ask for: `Converged`, or unfoldings (`encode`).

        Parameters
        ----------
        alpha : float
            Penalty of soft thresholds, or threshold of hard ones.
        step_size : float, default=None
            Step of an unfolding; None follows from the dictionary.
        lambda_decay : float, default=1.0
            Factor between the penalties of successive unfoldings.
        solves : bool, default=False
            Whether to solve for codes even if a number of unfoldings is set.
        debias : float, default=None
            Share of the lasso's bias to remove from solved codes; None takes the parameter's, or 0
            if that is "auto".

        Returns
        -------
        callable
            The encoder, see the module.
        """
        params = self.params
        n_unfoldings = params.n_unfoldings
        if n_unfoldings == "auto":
            n_unfoldings = _UNFOLDINGS
            is_lasso = params.shrinkage == "soft" and lambda_decay == 1
            solves = solves or (is_lasso and alpha > 0)
        # with separate_atoms atoms learn from codes of the lasso, and the encoder is learned later
        if solves or n_unfoldings is None or (params.separate_atoms and params.alpha):
            debias = self.debias or 0.0 if debias is None else debias
            return Converged(alpha, params.positive_code, debias)
        return partial(
            encode,
            n_unfoldings=n_unfoldings,
            alpha=alpha,
            step_size=step_size,
            lambda_decay=lambda_decay,
            shrinkage=params.shrinkage,
            positive_code=params.positive_code,
            initial_threshold=params.initial_threshold,
        )

    def without_effect(self):  # -> list of (names, setting)
        """Return parameters without effect on codes, each with a setting that would use them.

        `warn_of_unused` warns of the ones that the user has set. The names are a sequence, and the
        setting ends the sentence "pass ...".
        """
        params = self.params
        debias = ["debias"] if self.debias else []  # 0 asks for nothing
        n_nonzero = ["transform_n_nonzero_coefs"]
        if params.transform_algorithm != "omp":
            rules = [(n_nonzero, "transform_algorithm='omp'")]
            if params.separate_atoms and params.transform_algorithm == "unfolded":
                unused = ["transform_alpha", *debias]
                rules.append((unused, "transform_algorithm='lasso'"))
            return rules
        rules = [(debias, "transform_algorithm='unfolded' or 'lasso'")]
        if params.transform_alpha is not None:
            rules.append((n_nonzero, "transform_alpha=None"))
        return rules


# ------------------------------------------------------------------ rows in units of their noise


def baseline_of(learner):  # -> ndarray of shape (n_features,) or None
    """Return the baseline that is subtracted from a fitted learner's rows before they are coded.

    The baseline is ``intercept_``. A learner with weights, ``coef_``, has ``baseline_`` instead,
    since its ``intercept_`` belongs to its decisions. Return None without a baseline, and for
    learners of counts, recognised by their parameter ``loss``: their encoders add the baseline to
    natural parameters.
    """
    if hasattr(learner, "loss"):
        return None
    name = "baseline_" if hasattr(learner, "coef_") else "intercept_"
    baseline = getattr(learner, name, 0.0)
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows less the baseline of a fitted learner."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def units_of(learner):  # -> Units
    """Return the units in which a fitted learner codes new rows, from its fitted attributes.

    Their baseline and their atoms come from the present ``intercept_`` and ``components_``, which
    the user may have edited. The noise of all entries has the same standard deviation if the fit
    has learned no other, and for learners of other packages.
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
        The units, with the baseline, which is subtracted here and nowhere else.
    gains : Tensor of shape (n_components,)
        For each atom the factor from its code in the user's units to its code in units of the
        noise: the norm of the atom in units of the noise over its norm in the user's units.
    """

    encoder: object
    units: Units
    gains: Tensor

    def __call__(self, dictionary, x, mask=None):
        """Return the codes (n_samples, n_components) of rows, in the units of the data.

        ``dictionary`` and ``x`` are in the units of the data. Codes are not differentiable in ``x``
        if the noise or the outliers of a row depend on it.
        """
        atoms = dictionary.atoms
        gains = self.gains.to(atoms)
        # the atoms in units of the noise, with the norms that they have in the user's units
        if self.units.scale is not None:
            atoms = atoms / self.units.scale.to(atoms) / gains[:, None]
        units = replace(self.units, atoms=atoms)
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and not units.looks_at_rows
        ):
            x, mask, scale = units.enter(x, mask)
        codes = self.encoder(DenseDictionary(atoms), x, mask=mask) / gains
        return codes if scale is None else codes * scale

    def of_features(self, features):
        """Return the encoder for some of the features, given by their indices (k,).

        A score codes visible features by it, to predict hidden ones.
        """
        encoder = self.encoder
        if hasattr(encoder, "of_features"):
            encoder = encoder.of_features(features)
        return replace(self, encoder=encoder, units=self.units.of_features(features))
