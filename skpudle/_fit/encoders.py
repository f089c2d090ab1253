"""Encoders of learners of rows, and `Codes`, which makes the encoder that the parameters ask for.

An encoder is a callable: ``encoder(dictionary, x, mask=None)`` returns the sparse codes
(n_samples, n_components) of rows ``x`` (n_samples, n_features) for the atoms of a
`DenseDictionary`. ``mask``, of the shape of ``x``, is 1 for known entries and 0 for missing ones.
Codes are either solved for (the lasso, to convergence) or unfolded (a fixed number of iterations,
the unfoldings). The units of rows, `skpudle.search.units.Units`, are a baseline to subtract and
scales to divide by, so that noise is equal in all entries.
"""

from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._data.foreign import users_level
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode, learn_encoder
from skpudle.encoding._learned import LEARNED, LearnedEncoder
from skpudle.lasso._implicit import converged_codes, lasso_gradient
from skpudle.lasso._solve import warn_about_gaps
from skpudle.search.units import CENTRED, Units

# Fitted attributes that hold the encoder of ``separate_atoms``.
OF_LEARNED = "analysis_components_", "synthesis_components_", "thresholds_"
# Number of unfoldings with n_unfoldings="auto" if codes are unfolded: as in the PUDLE paper.
_UNFOLDINGS = 100

# Converged codes with a relative duality gap above this cause a warning.
_GAP = 1e-6


def fixed(value):  # -> float or None
    """Return a number or flag that the user has set as a float; None for "auto"."""
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
        """Return the codes (n_samples, n_components) of rows, see the module."""
        how = dict(alpha=self.penalty, positive_code=self.positive_code, debias=self.debias)
        codes, gaps = converged_codes(dictionary, x, mask=mask, certify=self.warn, **how)
        if self.warn and not (gaps <= _GAP).all():
            level = users_level() - 1
            warn_about_gaps(gaps, tol=_GAP, category=ConvergenceWarning, stacklevel=level)
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
        options = dict(positive=self.positive_code, through_encoder=through_encoder, mask=mask)
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
    analysis, synthesis, thresholds = (getattr(learner, name, None) for name in OF_LEARNED)
    refuse(
        analysis is None
        or learner.n_unfoldings not in ("auto", len(thresholds))
        or analysis.shape[-2:] != atoms.shape,
        f"components_ has the shape {tuple(atoms.shape)}, and no encoder of separate_atoms was "
        f"trained for it with n_unfoldings={learner.n_unfoldings!r}. Set them back, or fit again.",
    )
    shares = analysis.ndim == 2
    if shares:
        analysis, synthesis = analysis[None], to_numpy(atoms)[None]
    parts = (to_tensor(part).to(atoms) for part in (analysis, synthesis, thresholds))
    return LearnedEncoder(*parts, bool(learner.positive_code), shares)


def arrays_of(learned):  # LearnedEncoder or None -> dict
    """Return the fitted attributes `OF_LEARNED` for a learned encoder; undoes `learned_encoder`.

    Without an encoder all are None, so that the learner gets no such attributes.
    """
    if learned is None:
        return dict.fromkeys(OF_LEARNED)
    parts = [to_numpy(getattr(learned, name)) for name in LEARNED]
    if learned.shares_atoms:
        parts[:2] = parts[0][0], None
    return dict(zip(OF_LEARNED, parts, strict=True))


def train_encoder(plan, fitted, samples, interrupts, most, **options):  # -> Fitted
    """Train the encoder of ``separate_atoms`` for the atoms of a record, which stay as they are.

    `fit` calls it in its last phase, and `partial_fit` for one epoch.

    Parameters
    ----------
    plan : Plan
        The parameters.
    fitted : Fitted
        The record with the atoms and the penalty.
    samples : Samples
        The rows to encode, in units of their noise.
    interrupts : Interrupts
        After Ctrl-C, when its ``pending`` is true, no more updates are made.
    most : int or "auto"
        Largest number of epochs.
    **options : dict
        Further arguments of `learn_encoder`.

    Returns
    -------
    Fitted
        The record with the encoder in ``learned``. If updates were made, ``later`` has their number
        of epochs, rounded up, which ``phases_`` reports; otherwise ``later`` is empty.
    """
    given, n_made, batch_size = plan.given, 0, plan.batch_size(len(samples))
    n_batches = -(-len(samples) // batch_size)

    def stopped():  # `learn_encoder` asks it before each update, so that it counts updates, too
        nonlocal n_made
        n_made += not interrupts.pending
        return interrupts.pending

    options |= dict(separate=given.separate_atoms == "unfolding", n_unfoldings=plan.n_unfoldings)
    options |= dict(penalised=given.gradient != "ae-ls", positive_code=given.positive_code)
    options |= dict(n_updates=most if most == "auto" else most * n_batches, batch_size=batch_size)
    options |= dict(mask=samples.mask, weight=samples.weight, stopped=stopped)
    learned = learn_encoder(fitted.atoms, samples.x, float(fitted.alpha), **options)
    later = {"encoder": -(-n_made // n_batches)} if n_made else {}
    return replace(fitted, learned=learned, later=later)


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
    baseline = getattr(learner, "baseline_" if hasattr(learner, "coef_") else "intercept_", 0.0)
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows less the baseline of a fitted learner."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def units_of(learner):  # -> Units
    """Return the units in which a fitted learner codes new rows, from its fitted attributes.

    The baseline and the atoms of the units are those of the present attributes, which the user may
    have edited. Noise is equal if none was learned, and for learners of other packages.
    """
    record, baseline = vars(learner).get("_fitted"), baseline_of(learner)
    noise = CENTRED if record is None else record.noise
    intercept = None if baseline is None else to_tensor(baseline)
    atoms = noise.from_user(to_tensor(learner.components_))
    return replace(noise, intercept=intercept, atoms=atoms)


@dataclass(frozen=True, eq=False)
class InUnits:
    """An encoder that codes rows in units of their noise, and takes and returns the user's units.

    Parameters
    ----------
    encoder : callable
        The encoder of rows in units of their noise.
    noise : Units
        The units, without a baseline: callers subtract the baseline first.
    gains : Tensor of shape (n_components,)
        For each atom the factor from its code in the user's units to its code in units of the
        noise: the norm of the atom in units of the noise over its norm in the user's units.
    """

    encoder: object
    noise: Units
    gains: Tensor

    def __call__(self, dictionary, x, mask=None):
        """Return the codes (n_samples, n_components) of rows, in the units of the data.

        ``dictionary`` and ``x`` are in the units of the data, ``x`` less the baseline.
        """
        atoms, gains = dictionary.atoms, self.gains.to(dictionary.atoms)
        if self.noise.scale is not None:
            atoms = atoms / self.noise.scale.to(atoms) / gains[:, None]
        with torch.no_grad():
            x, mask, scale = replace(self.noise, atoms=atoms).enter(x, mask)
        codes = self.encoder(DenseDictionary(atoms), x, mask=mask) / gains
        return codes if scale is None else codes * scale

    def of_features(self, features):
        """Return the encoder for some of the features, given by their indices."""
        encoder = getattr(self.encoder, "of_features", lambda _: self.encoder)(features)
        return replace(self, encoder=encoder, noise=self.noise.of_features(features))


# ------------------------------------------------------------------ parameters

# Parameters that `Codes` and `Plan` read, and their values for learners that lack them.
_DEFAULTS = dict(
    n_components=None, alpha="auto", gradient="auto", fit_intercept="auto", noise="auto",
    n_unfoldings="auto", step_size="auto", lambda_decay=1.0, shrinkage="soft",
    initial_threshold=None, debias=0.0, separate_atoms=False, positive_code=False,
    positive_dict=False, optimizer="adam", learning_rate=1e-3, batch_size="auto",
    max_iter="auto", tol=1e-4, n_iter_no_change=5, dict_init="search",
    transform_algorithm="unfolded", transform_n_nonzero_coefs=None, transform_alpha=None,
)  # fmt: skip


def refuse(is_wrong, message):
    """Raise ValueError with the message if ``is_wrong``, as when parameters contradict."""
    if is_wrong:
        raise ValueError(message)


class Codes:
    """What the parameters say of codes: which encoder `transform` uses, and a fit after the search.

    `transform` makes one for each call, since the user may have set parameters after the fit. The
    subclass `Plan` adds what a fit needs.

    Parameters
    ----------
    learner : estimator
        The learner, fitted or not.
    **constants : dict
        Values that replace those of the learner's parameters and of `_DEFAULTS`.

    Attributes
    ----------
    given : SimpleNamespace
        All parameters in `_DEFAULTS` by name: the learner's, else the default.
    decay : tuple (first, last)
        ``lambda_decay`` at the beginning and at the end of training.
    debias : float or None
        Share of the lasso's bias to remove; None if the data decide.
    step_size : float or None
        The user's step of an unfolding; None if it follows from the atoms.
    of_lasso : bool
        Whether codes of a fit minimise the lasso, so that a search needs no training after it: soft
        thresholds, no number of unfoldings, no ``lambda_decay``, and a penalty other than 0.
    converges : bool
        Whether the user asks for converged codes in `transform`.
    solves : bool
        Whether codes of `transform` are solved for, for either reason.
    n_unfoldings : int
        Number of unfoldings if codes are not solved for.

    Raises
    ------
    ValueError
        If parameters of codes contradict each other.
    """

    def __init__(self, learner, **constants):
        named = {name: value for name, value in vars(learner).items() if name in _DEFAULTS}
        self.given = given = SimpleNamespace(**_DEFAULTS | named | constants)
        decay = given.lambda_decay
        self.decay = decay if isinstance(decay, tuple) else (decay, decay)
        is_pair = len(self.decay) == 2 and all(isinstance(beta, Real) for beta in self.decay)
        refuse(
            not (is_pair and all(0 < beta <= 1 for beta in self.decay)),
            f"lambda_decay={decay!r:.60} is no pair of numbers in (0, 1]. Pass (first, last).",
        )
        self.debias, self.step_size = fixed(given.debias), fixed(given.step_size)
        depth, learns = given.n_unfoldings, given.separate_atoms
        is_soft_lasso = given.shrinkage == "soft" and self.decay == (1, 1)
        self.converges = given.transform_algorithm == "lasso" or depth is None
        is_free = depth in ("auto", None) and not learns  # no number of unfoldings is asked for
        self.of_lasso = is_soft_lasso and given.alpha != 0 and is_free
        self.solves = self.of_lasso or self.converges
        # A learned encoder needs few unfoldings: with 3 it codes as well as 20 unfoldings with the
        # dictionary's own matrices.
        auto = 3 if learns and depth == "auto" else _UNFOLDINGS
        self.n_unfoldings = depth if isinstance(depth, Integral) else auto
        got = f"n_unfoldings={depth!r}, gradient={given.gradient!r}, shrinkage={given.shrinkage!r}"
        got = f"{got}, lambda_decay={given.lambda_decay!r}, alpha={given.alpha!r}"
        refuse(
            learns and (depth is None or given.gradient == "dec" or given.shrinkage != "soft"),
            f"separate_atoms={learns!r} does not go with {got}. Pass a number of unfoldings, "
            "gradient='ae-lasso' or 'auto', and shrinkage='soft'.",
        )
        refuse(
            self.converges and (not is_soft_lasso or 0 in (given.alpha, given.transform_alpha)),
            f"Converged codes do not go with {got}, transform_alpha={given.transform_alpha!r}. "
            "Pass shrinkage='soft', lambda_decay=1 and positive penalties, or a number of "
            "unfoldings and transform_algorithm='unfolded'.",
        )

    def encoder(
        self, alpha, *, step_size=None, lambda_decay=1.0, solves=False, debias=None, warn=False
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
        warn : bool, default=False
            Whether to warn of solved codes that have not converged.

        Returns
        -------
        callable
            The encoder, see the module.
        """
        given, depth = self.given, self.given.n_unfoldings
        if depth == "auto":
            depth, lasso = _UNFOLDINGS, given.shrinkage == "soft" and lambda_decay == 1
            solves = solves or (lasso and alpha > 0)
        if solves or depth is None or (given.separate_atoms and given.alpha):
            debias = self.debias or 0.0 if debias is None else debias
            return Converged(alpha, given.positive_code, debias, warn)
        names = "shrinkage", "positive_code", "initial_threshold"
        how = dict(alpha=alpha, step_size=step_size, lambda_decay=lambda_decay)
        how |= {name: getattr(given, name) for name in names}
        return partial(encode, n_unfoldings=depth, **how)

    def unused_by_codes(self):  # -> list of (names, setting)
        """Return parameters without effect on codes, each with a setting that would use them.

        `warn_of_unused` warns of those that the user has set.
        """
        given = self.given
        pursues, counted = given.transform_algorithm == "omp", ["transform_n_nonzero_coefs"]
        is_learned = given.separate_atoms and given.transform_algorithm == "unfolded"
        debias = ["debias"] if self.debias else []  # debias=0 asks for nothing
        rules = (
            (pursues, debias, "transform_algorithm='unfolded' or 'lasso'"),
            (pursues and given.transform_alpha is not None, counted, "transform_alpha=None"),
            (not pursues, counted, "transform_algorithm='omp'"),
            (is_learned, ["transform_alpha", *debias], "transform_algorithm='lasso'"),
        )
        return [rule for is_due, *rule in rules if is_due]
