"""Messages of a fit: warnings where silence would give a wrong result, and errors of data."""

import warnings
from inspect import signature
from pickle import PicklingError

import joblib
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skpudle._data.arrays import to_numpy, with_gaps
from skpudle._data.foreign import users_level
from skpudle._operators._atoms import DenseDictionary


def warn(message, category=UserWarning):
    """Warn at the user's line."""
    warnings.warn(message, category, stacklevel=users_level())


def describe(value):  # -> str
    """Return a parameter as a short text: the same for equal values, whatever their order."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    try:
        return joblib.hash(to_numpy(value) if isinstance(value, torch.Tensor) else value)
    except PicklingError:  # a function without a name
        return getattr(value, "__qualname__", type(value).__qualname__)


def nothing_known(learner):
    """Return the error for data that are all missing."""
    return ValueError(f"All values of X are NaN. Pass {type(learner).__name__} known values.")


def listed(features, names=None):
    """Return a list of features in words: their names, or their numbers without names."""
    features = features if names is None else [str(names[i]) for i in features]
    return f"{features[:10]}{' ...' if len(features) > 10 else ''}"


def warn_of_unknown_features(features, names=None):
    """Warn of features, by number, without a known value in any sample; name them."""
    if features:
        warn(
            f"Features {listed(features, names)} of X have no known value in any sample, so that "
            "atoms learn nothing there. Leave these features out."
        )


def warn_of_few_samples(n_samples, n_atoms):
    """Warn of more atoms than samples."""
    if n_samples < n_atoms:
        warn(
            f"X has {n_samples} samples with known values for {n_atoms} atoms. Pass "
            f"n_components={n_samples} or less, or more samples."
        )


def warn_of_units(samples):
    """Warn of a column that has nearly all of the variance: its unit differs from the others'."""
    x = with_gaps(samples.x, samples.mask).double()
    low, high = x.nanquantile(x.new_tensor([0.1, 0.9]), 0)
    parts = (x - x.nanmean(0)).square().nanmean(0).nan_to_num(), (high - low).square().nan_to_num()
    column = int(parts[0].argmax())
    share, usual = (float(part[column] / part.sum()) for part in parts)
    # The share is .72 and .998 for raw cancer and wine, at most .68 for iris, digits, patches and
    # diabetes. A single entry can have the variance of a column, so that the share of the squared
    # distances of the 10 % and 90 % quantiles counts, too: it is .998 and .69 for wine and cancer,
    # .17 for normal columns with one entry of 100 deviations in 100 rows.
    if x.shape[1] >= 4 and share > 0.7 and usual > 0.5:
        warn(
            f"Column {column} has {share:.1%} of the variance of X. Put columns of different units "
            "through StandardScaler, or pass noise='features', or 'equal' to take them as they are."
        )


def warn_of_step(step_size, atoms):
    """Warn if the encoder may diverge with this step and atoms."""
    bound = float(DenseDictionary(atoms).squared_norm_bound())
    if step_size * bound > 2:
        warn(
            f"step_size={step_size} is beyond 2 / L = {2 / bound:.3g}, where L bounds the squared "
            "spectral norm of the dictionary. Pass a smaller step_size, or 'auto' for 1 / L.",
            RuntimeWarning,
        )


def warn_of_early_end(learner, ended_by):
    """Warn if training ended too early to have converged; "auto" is the expected end."""
    if ended_by == "max_iter" and learner.tol is not None and learner.max_iter != "auto":
        warn(
            f"Training of {type(learner).__name__} ended after max_iter={learner.max_iter!r} "
            f"epochs, before it converged. Raise max_iter, or tol (now {learner.tol}, or None).",
            ConvergenceWarning,
        )


def any_named(learner, names):
    """Return whether any of some parameters differs from the constructor's default."""
    parameters = signature(type(learner)).parameters
    pairs = ((getattr(learner, name), parameters[name].default) for name in names)
    # arrays have no truth value, and no default is an array
    return any(not (a is b or (np.ndim(a) == 0 and a == b)) for a, b in pairs)


def warn_of_unused(learner, unused, where="in this fit"):
    """Warn of parameters that are set but have no effect.

    Parameters
    ----------
    learner : estimator
        The learner with these parameters.
    unused : iterable of (tuple of str, str)
        Names of parameters without effect in this fit, and the setting that would use them; names
        that the learner lacks are ignored.
    where : str, default="in this fit"
        The end of the sentence about their effect.
    """
    own = learner.get_params(deep=False)
    for names, remedy in unused:
        named = [name for name in names if name in own and any_named(learner, [name])]
        if named:
            warn(
                f"Parameters of {type(learner).__name__} have no effect {where}: "
                f"{', '.join(named)}. Leave them at their defaults, or pass {remedy}."
            )


def warn_of_zero_codes(learner):
    """Warn that a fitted learner has no codes for its own data."""
    name = getattr(learner, "_penalty", "alpha")
    warn(
        f"All codes of {type(learner).__name__} are zero with alpha_={np.max(learner.alpha_):.3g}. "
        f"Pass a smaller number as {name} (now {getattr(learner, name)!r:.50}), or 'auto', or more "
        "samples."
    )


def warn_of_rise(learner, began, ended, baseline):
    """Warn if training has raised its objective above the value without a dictionary."""
    # a rise of a hundredth counts as chance: stochastic gradients end with noisy steps
    if not ended <= max(began, baseline) * (1 + 1e-2):
        warn(
            f"Training of {type(learner).__name__} raised its objective to {ended:.4g} a sample, "
            f"above {baseline:.4g} without a dictionary. Pass a smaller learning_rate or "
            "step_size, or scale the data.",
            ConvergenceWarning,
        )
