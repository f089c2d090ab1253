"""Encoders of learners of rows, and `Codes`, the parameters that decide how samples are coded.

An encoder is a callable: ``encoder(dictionary, x, mask=None)`` returns the codes of rows x. An
unfolding is one iteration of an encoder. The units of rows, `skpudle.search.units.Units`, are a
baseline to subtract and scales to divide by, so that noise is equal in all entries.
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
# Number of unfoldings with n_unfoldings="auto", where codes are unfolded: as in the paper.
_UNFOLDINGS = 100

# Converged codes with a relative duality gap above this cause a warning.
_GAP = 1e-6


def fixed(value):  # -> float or None
    """Return a parameter as a float; None for "auto", which atoms or data decide."""
    return float(value) if isinstance(value, Real | bool) else None


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
        how = dict(alpha=self.penalty, positive_code=self.positive_code, debias=self.debias)
        codes, gaps = converged_codes(dictionary, x, mask=mask, certify=self.warn, **how)
        if self.warn and not (gaps <= _GAP).all():
            level = users_level() - 1
            warn_about_gaps(gaps, tol=_GAP, category=ConvergenceWarning, stacklevel=level)
        return codes

    def gradient(self, atoms, x, mask=None, *, through_encoder):
        """Return codes, losses, and the derivative of the mean loss in the atoms.

        No graph of autograd is built, see `skpudle.lasso._implicit.lasso_gradient`. Return None
        where this is not possible.
        """
        if self.debias:
            return None
        options = dict(positive=self.positive_code, through_encoder=through_encoder, mask=mask)
        return lasso_gradient(atoms, x, self.penalty, **options)


def learned_encoder(learner, atoms):  # -> LearnedEncoder
    """Return the encoder in fitted attributes, in the dtype and on the device of the atoms.

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
    """Return the fitted attributes that hold a learned encoder."""
    if learned is None:
        return dict.fromkeys(OF_LEARNED)
    parts = [to_numpy(getattr(learned, name)) for name in LEARNED]
    if learned.shares_atoms:
        parts[:2] = parts[0][0], None
    return dict(zip(OF_LEARNED, parts, strict=True))


def train_encoder(plan, fitted, samples, interrupts, most, **options):  # -> Fitted
    """Train the encoder of ``separate_atoms`` in at most ``most`` epochs; return its record.

    ``samples`` are in units of their noise. After Ctrl-C no more updates are made.
    """
    given, n_made, batch_size = plan.given, 0, plan.batch_size(len(samples))
    n_batches = -(-len(samples) // batch_size)

    def stopped():  # called before each update: counts updates, and tells of Ctrl-C
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
    """Return the baseline to subtract from a learner's rows before they are coded, None if none.

    The baseline is ``intercept_``. A learner with weights, ``coef_``, has ``baseline_`` instead,
    since its ``intercept_`` belongs to its decisions. Learners of counts, which have a ``loss``,
    add the baseline to natural parameters and subtract nothing.
    """
    if hasattr(learner, "loss"):
        return None
    baseline = getattr(learner, "baseline_" if hasattr(learner, "coef_") else "intercept_", 0.0)
    return baseline if np.ndim(baseline) else None


def centre(learner, rows):  # (n, n_features) -> the same
    """Return rows without the learner's baseline."""
    baseline = baseline_of(learner)
    return rows if baseline is None else rows - baseline


def units_of(learner):  # -> Units
    """Return the units of a fitted learner's rows; equal noise if no noise was learned.

    New rows get their noise from codes of the learner's atoms.
    """
    record, baseline = vars(learner).get("_fitted"), baseline_of(learner)
    noise = CENTRED if record is None else record.noise  # of learners of other packages
    intercept = None if baseline is None else to_tensor(baseline)
    atoms = noise.from_user(to_tensor(learner.components_))
    return replace(noise, intercept=intercept, atoms=atoms)


@dataclass(frozen=True, eq=False)
class InUnits:
    """An encoder of rows in units of their noise, for a dictionary in the units of the data.

    Parameters
    ----------
    encoder : callable
        The encoder, ``encoder(dictionary, x, mask=None)``.
    noise : Units
        The units, without a baseline, which data have lost before.
    gains : Tensor of shape (n_components,)
        The factor from the user's code of each atom to the code in units of the noise.
    """

    encoder: object
    noise: Units
    gains: Tensor

    def __call__(self, dictionary, x, mask=None):
        """Return codes in the units of the data."""
        atoms, gains = dictionary.atoms, self.gains.to(dictionary.atoms)
        if self.noise.scale is not None:
            atoms = atoms / self.noise.scale.to(atoms) / gains[:, None]
        with torch.no_grad():
            x, mask, scale = replace(self.noise, atoms=atoms).enter(x, mask)
        codes = self.encoder(DenseDictionary(atoms), x, mask=mask) / gains
        return codes if scale is None else codes * scale

    def of_features(self, features):
        """Return the encoder for some of the features."""
        encoder = getattr(self.encoder, "of_features", lambda _: self.encoder)(features)
        return replace(self, encoder=encoder, noise=self.noise.of_features(features))


# ------------------------------------------------------------------ parameters

# Values for the parameters that a learner's class does not have.
_DEFAULTS = dict(
    n_components=None, alpha="auto", gradient="auto", fit_intercept="auto", noise="auto",
    n_unfoldings="auto", step_size="auto", lambda_decay=1.0, shrinkage="soft",
    initial_threshold=None, debias=0.0, separate_atoms=False, positive_code=False,
    positive_dict=False, optimizer="adam", learning_rate=1e-3, batch_size="auto",
    max_iter="auto", tol=1e-4, n_iter_no_change=5, dict_init="search",
    transform_algorithm="unfolded", transform_n_nonzero_coefs=None, transform_alpha=None,
)  # fmt: skip


def refuse(is_wrong, message):
    """Raise ValueError with the message if parameters contradict each other."""
    if is_wrong:
        raise ValueError(message)


class Codes:
    """How samples are coded: all that `transform` reads of the parameters.

    Parameters
    ----------
    learner : estimator
        The learner.
    **constants : dict
        Values of parameters that it lacks, instead of their defaults.

    Attributes
    ----------
    given : SimpleNamespace
        The parameters, with defaults for those that the learner lacks.
    decay : tuple (first, last)
        The decay of penalties at the beginning and at the end of training.
    debias, step_size : float or None
        Share of the lasso's bias to remove, None where data decide; and the step, None where it
        follows the atoms.
    of_lasso : bool
        Whether codes are those of the lasso.
    converges, solves : bool
        Whether `transform` is asked for converged codes, and whether codes are solved for.
    n_unfoldings : int
        Number of unfoldings where codes are not solved for.

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
        # 3 unfoldings of a learned encoder code as well as 20 with the dictionary's own matrices.
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
        """Return the encoder, `Converged` or `encode` with these numbers.

        ``solves`` asks for converged codes where the parameters leave the choice.
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
        """Return parameters without effect on codes, each with a setting that uses them."""
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
