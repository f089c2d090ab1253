"""Parameters of convolutional learners: what they may be, and what they mean together."""

from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from skpudle._data.images import check_sizes
from skpudle._data.noise import Noise
from skpudle._learners.base import GradientLearner
from skpudle._learners.conv_model import all_shifts
from skpudle._learners.models import Decay
from skpudle.losses import LOSSES
from skpudle.shrinkage import SHRINKAGES

__all__ = ["CONSTRAINTS", "check_conv_parameters", "depth_of", "searches", "start_of"]

_COUNT = Interval(Integral, 1, None, closed="left")

CONSTRAINTS = GradientLearner._parameter_constraints | {
    "n_components": [_COUNT],
    "atom_shape": [_COUNT, tuple, list],
    "stride": [_COUNT, tuple, list],
    "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
    "gradient": [StrOptions({"dec", "ae-lasso", "ae-ls"})],
    "loss": [StrOptions(set(LOSSES))],
    "n_trials": [Interval(Real, 1, None, closed="left")],
    "n_unfoldings": [_COUNT, StrOptions({"auto"}), None],
    "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
    "shrinkage": [StrOptions(set(SHRINKAGES))],
    "debias": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"}), "boolean"],
    "positive_code": ["boolean"],
    "atom_norm": [StrOptions({"unit", "ball"}), None],
    "learn_threshold": [StrOptions({"one", "atom", "unfolding"}), None],
    "learn_step": ["boolean"],
    "separate_atoms": [StrOptions({"analysis", "decoder", "both", "unfolding"}), None],
    "noise_std": [Interval(Real, 0, None, closed="left"), tuple, StrOptions({"poisson"})],
    "crop_size": [_COUNT, StrOptions({"auto"})],
    "flip": ["boolean"],
    "n_train_shifts": [_COUNT],
    "shift_average": ["boolean"],
    "image_shape": [tuple, list, None],
    "optimizer": [StrOptions({"adam", "sgd"}), type],
    "max_iter": [_COUNT, StrOptions({"auto"})],
    "dict_init": [StrOptions({"auto", "search", "random", "data", "dct"}), "array-like"],
}

# What n_unfoldings="auto" is where codes are unfolded, as the paper has it.
_UNFOLDINGS = 15


def start_of(learner):  # -> str or array-like
    """Return ``dict_init``, of which "auto" is a search wherever nothing asks for training."""
    if not isinstance(learner.dict_init, str) or learner.dict_init != "auto":
        return learner.dict_init
    trains = learner.max_iter != "auto" or learner.noise_std != 0 or learner.n_train_shifts > 1
    unfolds = learner.n_unfoldings not in ("auto", None)
    return "random" if trains or unfolds or not _has_lasso(learner) else "search"


def searches(learner):
    """Return whether the initial dictionary is searched for."""
    start = start_of(learner)
    return isinstance(start, str) and start == "search"


def _has_lasso(learner):  # an encoder that minimises with a penalty
    learns = learner.learn_threshold or learner.learn_step or learner.separate_atoms
    lasso = learner.shrinkage == "soft" and learner.lambda_decay == 1 and learner.alpha != 0
    return lasso and not learns


def _is_only_searched(learner):
    return searches(learner) and learner.max_iter == "auto"


def depth_of(learner):  # -> int or None
    """Return the number of unfoldings that parameters ask for, None where the lasso is solved."""
    if learner.n_unfoldings != "auto":
        return learner.n_unfoldings
    solved = _is_only_searched(learner) and _has_lasso(learner) and learner.loss == "gaussian"
    return None if solved else _UNFOLDINGS


def check_conv_parameters(learner, kernel, stride):
    """Raise ValueError if parameters contradict each other.

    Parameters
    ----------
    learner : ConvLearner
        Whose they are.
    kernel, stride : tuple of int
        Size and distance of atoms.
    """
    Decay.of(learner.lambda_decay)  # raises for what is none
    check_sizes(kernel, stride, learner.image_shape)
    own_analysis = learner.separate_atoms in ("analysis", "both", "unfolding")
    through = learner.learn_threshold or learner.learn_step or own_analysis
    if through and learner.gradient == "dec":
        raise ValueError(
            "gradient='dec' does not go through the encoder, so that it cannot learn "
            "thresholds, the step or atoms of analysis; pass gradient='ae-ls'."
        )
    if learner.learn_threshold and learner.shrinkage == "hard":
        raise ValueError(
            "A hard threshold has derivative 0 and cannot be learned; pass shrinkage='soft' or "
            "learn_threshold=None."
        )
    free = learner.atom_norm is None and not learner.learn_step
    if learner.separate_atoms == "unfolding" and not free:
        raise ValueError(
            "With separate_atoms='unfolding' the step is a part of the atoms, whose norms are "
            "free; pass learn_step=False and atom_norm=None."
        )
    if Noise.of(learner.noise_std).is_range and learner.learn_threshold is None:
        raise ValueError(
            "Thresholds follow the noise where noise_std is a pair, and have to be learned; "
            "pass learn_threshold='unfolding', for example."
        )
    if learner.loss != "gaussian":
        _check_likelihood(learner)
    if depth_of(learner) is None:
        _check_converged(learner)
    n_grids = len(all_shifts(stride))
    if learner.n_train_shifts > n_grids:
        raise ValueError(
            f"n_train_shifts={learner.n_train_shifts}, but stride={learner.stride!r} has {n_grids} "
            "grids of positions; pass at most that."
        )


def _check_likelihood(learner):
    loss = f"loss={learner.loss!r}"
    if learner.separate_atoms or learner.noise_std != 0:
        raise ValueError(
            f"{loss} is for one dictionary of noisy data: pass separate_atoms=None and "
            "noise_std=0. A denoiser of photons has noise_std='poisson', and no loss."
        )
    if learner.learn_step and learner.step_size == "auto":
        raise ValueError(f"{loss} and learn_step=True need a number for step_size to begin with.")
    if learner.n_unfoldings is None:
        raise ValueError(
            f"Codes are solved for (n_unfoldings=None) with loss='gaussian'; with {loss} pass "
            "n_unfoldings=15, for example."
        )


def _check_converged(learner):
    if not _has_lasso(learner):
        raise ValueError(
            "Converged codes (n_unfoldings=None) exist for soft shrinkage with alpha > 0 and "
            "lambda_decay=1, and without learned thresholds, steps or separate atoms; pass "
            "n_unfoldings=15, for example."
        )
    if learner.gradient != "dec" and not _is_only_searched(learner):
        raise ValueError(
            "Codes that are solved for (n_unfoldings=None) are not differentiated here; pass "
            "gradient='dec', or dict_init='search' with max_iter='auto'."
        )
