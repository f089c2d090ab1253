"""Parameters of convolutional learners, and their reading of images."""

from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, Options, StrOptions

from skpudle._data.arrays import to_tensor
from skpudle._data.images import check_axes, check_sizes, read_images, read_targets, sizes
from skpudle._data.noise import Noise, noise_of_channels
from skpudle._learners.base import GradientLearner
from skpudle._learners.convolutional.model import all_shifts
from skpudle._learners.models import Decay, Encoder, fixed
from skpudle._learners.plan import Plan
from skpudle._losses import LOSSES, loss_named
from skpudle._shrinkage import SHRINKAGES

__all__ = [
    "CONSTRAINTS",
    "ConvPlan",
    "as_images",
    "channel_noise_of",
    "depth_of",
    "images_of",
    "in_units_of",
    "largest_of",
    "searches",
    "start_of",
    "stride_of",
    "targets_of",
]

# Pixels between neighbouring copies of an atom in pictures.
_STRIDE = 4

_COUNT = Interval(Integral, 1, None, closed="left")

CONSTRAINTS = GradientLearner._parameter_constraints | {
    "n_components": [_COUNT, StrOptions({"auto"})],
    "atom_shape": [_COUNT, tuple, list],
    "stride": [_COUNT, tuple, list, StrOptions({"auto"})],
    "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
    "gradient": [StrOptions({"auto", "dec", "ae-lasso", "ae-ls"})],
    "loss": [StrOptions(set(LOSSES))],
    "n_trials": [Interval(Real, 1, None, closed="left")],
    "n_unfoldings": [_COUNT, StrOptions({"auto"}), None],
    "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple],
    "shrinkage": [StrOptions(set(SHRINKAGES))],
    "debias": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"}), "boolean"],
    "positive_code": ["boolean"],
    "rank": [Options(Integral, {1}), None],
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
    "channels_first": ["boolean"],
    "channel_noise": [StrOptions({"equal", "auto"}), "array-like"],
    "optimizer": [StrOptions({"adam", "sgd"}), callable],
    "max_iter": [_COUNT, StrOptions({"auto"})],
    "dict_init": [StrOptions({"auto", "search", "random", "data", "dct"}), "array-like"],
}

# n_unfoldings="auto" if codes are unfolded, as in the paper
_UNFOLDINGS = 15


def start_of(learner):  # -> str or array-like
    """Return ``dict_init``; "auto" becomes "search" for the codes that a search has."""
    if not isinstance(learner.dict_init, str) or learner.dict_init != "auto":
        return learner.dict_init
    return "search" if _encodes_as_the_search(learner) else "random"


def searches(learner):
    """Return whether the initial dictionary is searched for."""
    start = start_of(learner)
    return isinstance(start, str) and start == "search"


def _has_lasso(learner):  # whether the encoder minimises with a penalty
    learns = learner.learn_threshold or learner.learn_step or learner.separate_atoms
    lasso = learner.shrinkage == "soft" and learner.lambda_decay == 1 and learner.alpha != 0
    return lasso and not learns


def _encodes_as_the_search(learner):  # whether a search leaves nothing to train
    denoises = learner.noise_std != 0 or learner.n_train_shifts > 1
    return _has_lasso(learner) and learner.n_unfoldings in ("auto", None) and not denoises


def trains(learner):
    """Return whether fit trains: from an initial dictionary, for the encoder, or by name."""
    named = learner.gradient != "auto" or not _encodes_as_the_search(learner)
    return named or not searches(learner)


def gradient_of(learner):
    """Return the name of the gradient: converged codes are not differentiated."""
    if learner.gradient != "auto":
        return learner.gradient
    return "dec" if depth_of(learner) is None else "ae-ls"


def depth_of(learner):  # -> int or None
    """Return the requested number of unfoldings, None for converged codes."""
    if learner.n_unfoldings != "auto":
        return learner.n_unfoldings
    return _UNFOLDINGS if trains(learner) or learner.loss != "gaussian" else None


def stride_of(learner):  # -> tuple of int
    """Return the distance of neighbouring copies of an atom along each axis.

    Events of signals are at any sample. Copies at all places of pictures take 16 times as long as
    those at every fourth pixel of both axes.
    """
    kernel = sizes(learner.atom_shape, 1)
    if isinstance(learner.stride, str):
        return (1,) if len(kernel) == 1 else tuple(min(_STRIDE, k) for k in kernel)
    return sizes(learner.stride, len(kernel))


def check_conv_parameters(learner, kernel, stride):
    """Raise ValueError if parameters contradict each other.

    Parameters
    ----------
    learner : ConvLearner
        The learner with these parameters.
    kernel, stride : tuple of int
        Size and distance of atoms.
    """
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
            "With separate_atoms='unfolding' the step is a part of the atoms, and their norms are "
            "free; pass learn_step=False and atom_norm=None."
        )
    if learner.rank is not None and learner.separate_atoms:
        raise ValueError(
            f"separate_atoms={learner.separate_atoms!r} are free of constraints, but rank=1 asks "
            "for atoms that are maps times waveforms. Pass separate_atoms=None or rank=None."
        )
    if Noise.of(learner.noise_std).is_range and learner.learn_threshold is None:
        raise ValueError(
            "Thresholds follow the noise where noise_std is a pair, and have to be learned; "
            "pass learn_threshold='unfolding', for example."
        )
    equal_channels = np.array_equal(learner.channel_noise, "equal")
    if not equal_channels and (learner.loss != "gaussian" or learner.noise_std != 0):
        raise ValueError(
            f"channel_noise={learner.channel_noise!r:.50}, but channels of counts, and of a "
            "denoiser, have equal units. Pass channel_noise='equal', or loss='gaussian' and "
            "noise_std=0."
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
    if gradient_of(learner) != "dec":
        raise ValueError(
            f"Codes that are solved for (n_unfoldings=None) are not differentiated here, but "
            f"gradient={learner.gradient!r}. Pass gradient='dec' or 'auto', or a number of "
            "unfoldings."
        )


def largest_of(learner):  # -> float or None
    """Return the largest value of images that are counts, None for any numbers."""
    if Noise.of(learner.noise_std).of_photons:
        return inf
    return loss_named(learner.loss, learner.n_trials).largest


def _reading(learner):
    options = dict(image_shape=learner.image_shape, largest=largest_of(learner))
    options |= dict(channels_first=learner.channels_first)
    return options | {"estimator": learner}


def images_of(learner, X, device, **options):  # -> Images
    """Read images for the network of a learner; options go to `read_images`."""
    known = _reading(learner) | dict(device=device) | options
    images = read_images(X, len(sizes(learner.atom_shape, 1)), **known)
    check_axes(images)
    return images.map(Noise.of(learner.noise_std).enter)


def targets_of(learner, y, images):  # -> list of (n_channels, *size), or None
    """Read the clean images for the network of a learner."""
    targets = read_targets(y, images, **_reading(learner))
    return None if targets is None else list(map(Noise.of(learner.noise_std).enter, targets))


def as_images(learner, x):  # (..., n_channels, *size) -> the same
    """Return expected images from the network's units."""
    x = loss_named(learner.loss, learner.n_trials).mean(x)
    x, noise = Noise.of(learner.noise_std).leave(x), getattr(learner, "channel_noise_", None)
    return x if noise is None else x / in_units_of(noise, torch.ones_like(x), learner)


def in_units_of(noise, x, learner):  # (n_channels,), (..., n_channels, *size) -> the same
    """Return images in units of the noise of their channels."""
    return x / to_tensor(noise).to(x).reshape(-1, *[1] * len(sizes(learner.atom_shape, 1)))


def channel_noise_of(learner, images):  # Images -> Tensor of shape (n_channels,)
    """Return the noise of the channels of new images.

    Raises
    ------
    ValueError
        If the parameter is not one positive number for each channel.
    """
    given, n_channels = learner.channel_noise, images.n_channels
    if isinstance(given, str):
        return noise_of_channels(images.tensors)
    noise = np.asarray(given)
    positive = noise.dtype.kind in "iuf" and (noise > 0).all() and np.isfinite(noise).all()
    if noise.shape != (n_channels,) or not positive:
        raise ValueError(
            f"channel_noise={given!r:.80} is not one positive number for each of {n_channels} "
            "channels. Pass their standard deviations of the noise, 'auto' or 'equal'."
        )
    return to_tensor(noise.astype(np.float64)).to(images.tensors[0])


@dataclass(frozen=True, kw_only=True)
class ConvPlan(Plan):
    """The plan of a fit of a convolutional dictionary."""

    @classmethod
    def of(cls, learner):
        """Return the plan for the parameters of a learner.

        Raises
        ------
        ValueError
            If parameters contradict each other.
        """
        kernel = sizes(learner.atom_shape, 1)
        check_conv_parameters(learner, kernel, stride_of(learner))
        depth, gradient = depth_of(learner), gradient_of(learner)
        loss, debias = loss_named(learner.loss, learner.n_trials), fixed(learner.debias)
        options = dict(loss=loss, debias=debias or 0.0)
        return cls(
            given=SimpleNamespace(**learner.get_params(deep=False)),
            encoder=Encoder(depth, learner.shrinkage, learner.positive_code, **options),
            gradient=gradient,
            name=gradient,
            searches=searches(learner),
            trains=trains(learner),
            decay=Decay.of(learner.lambda_decay),
            step_size=fixed(learner.step_size),
            debias=debias,
            codes_follow_data=learner.alpha == "auto" and depth is None,
            auto_batch_size=16,
        )

    def without_effect(self, data):  # yields names, setting
        """Yield parameters that have no effect in this fit, and a setting that would use them."""
        yield from super().without_effect(data)
        given = self.given
        if not self.trains:
            yield ("crop_size", "flip", "atom_norm"), self.asks_for_training
        if given.noise_std == 0:
            yield ("flip",), "noise_std"
        elif len(sizes(given.atom_shape, 1)) == 1:
            yield ("flip",), "two numbers for atom_shape"
        if self.encoder.n_unfoldings is None:
            yield ("step_size",), "a number for n_unfoldings"
        elif given.debias not in ("auto", 0):
            yield ("debias",), "codes of the lasso, n_unfoldings=None"
        if given.shrinkage == "hard":
            yield ("lambda_decay",), "shrinkage='soft'"
        elif given.alpha == 0 and not given.learn_threshold:
            yield ("lambda_decay",), "a positive alpha"
        if len(data.samples.images[0]) == 1:
            yield ("rank",), "signals with more than one channel"
        if given.loss != "binomial":
            yield ("n_trials",), "loss='binomial'"
        if max(stride_of(given)) == 1:
            yield ("shift_average",), "a stride of more than 1"
