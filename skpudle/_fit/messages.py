"""Messages of training: progress, warnings, errors."""

import warnings
from inspect import signature

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skpudle._data.names import users_level
from skpudle._optimizers._surrogate import SurrogateOptimizer

# relative rise of the objective that counts as chance: stochastic gradients end with noisy steps
_CHANCE = 1e-2


def nothing_known(learner):
    """Return the error for data that are all missing."""
    return ValueError(
        f"All values of X are NaN, so that {type(learner).__name__} has nothing to learn from. "
        "Pass data with known values."
    )


def wrong_atoms(learner, n_features):
    """Return the error for atoms that replace learned atoms and have another number of features."""
    return ValueError(
        f"components_ has the shape {np.shape(learner.components_)}, and X has {n_features} "
        f"features, as in fit. Put atoms of shape (n_components, {n_features}) there, or fit again."
    )


def listed(features, names=None):
    """Return a list of features in words: their names, or their numbers without names."""
    features = features if names is None else [str(names[i]) for i in features]
    return f"{features[:10]}{' ...' if len(features) > 10 else ''}"


def warn_of_units(column, share):
    """Warn of a column in another unit."""
    warnings.warn(
        f"Column {column} has {share:.1%} of the variance of X, and decides on the atoms. Put "
        "columns of different units through sklearn.preprocessing.StandardScaler first, or pass "
        "noise='features'; noise='equal' takes them as they are.",
        UserWarning,
        stacklevel=users_level(),
    )


def warn_of_unknown_features(features, names=None):
    """Warn of features, by number, without a known value in any sample; name them."""
    if features:
        warnings.warn(
            f"Features {listed(features, names)} of X have no known value in any sample, so that "
            "atoms learn nothing there. Leave these features out.",
            stacklevel=users_level(),
        )


def warn_of_few_samples(n_samples, n_atoms):
    """Warn of more atoms than samples."""
    if n_samples < n_atoms:
        warnings.warn(
            f"X has {n_samples} sample{'s' if n_samples > 1 else ''} with known values for "
            f"{n_atoms} atoms: some of these become single samples, others stay as initialised. "
            f"Pass n_components={n_samples} or less, or more samples.",
            stacklevel=users_level(),
        )


def warn_of_l0(n_entries, l0):
    """Warn if the mean number of codes of rows differs from the requested number."""
    warnings.warn(
        f"Rows have {n_entries:.4g} codes on average instead of l0={l0:g}: their number jumps "
        "from one penalty to the next, as where rows are alike. Pass a number of codes that "
        "rows can have.",
        stacklevel=users_level(),
    )


def warn_of_step(step_size, dictionaries):
    """Warn once if the encoder may diverge with this step and one of the dictionaries."""
    bound = max(float(dictionary.squared_norm_bound()) for dictionary in dictionaries)
    if step_size * bound > 2:
        warnings.warn(
            f"step_size={step_size} is beyond 2 / L = {2 / bound:.3g}, where L = {bound:.4g} is a "
            "bound of the squared spectral norm of the dictionary: the encoder may diverge. Pass a "
            "smaller step_size, or 'auto' for 1 / L.",
            RuntimeWarning,
            stacklevel=users_level(),
        )


def warn_of_early_end(learner, *, has_rate):
    """Warn that training, with a learning rate or without, ended too early to have converged."""
    rate = "learning_rate" if hasattr(learner, "learning_rate") else "lr in optimizer"
    more = f"max_iter or {rate}" if has_rate else "max_iter"
    warnings.warn(
        f"Training of {type(learner).__name__} ended after {learner.n_steps_} updates "
        f"(max_iter={learner.max_iter!r}), before its objective had stalled for "
        f"{learner.n_iter_no_change} checks in a row. Increase {more}, or "
        f"raise tol (now {learner.tol}); tol=None trains as long without this warning.",
        ConvergenceWarning,
        stacklevel=users_level(),
    )


def _is_named(learner, name):
    """Return whether a parameter differs from the constructor's default."""
    value, default = getattr(learner, name), signature(type(learner)).parameters[name].default
    # arrays have no truth value, and no default is an array
    return not (value is default or (np.ndim(value) == 0 and value == default))


def any_named(learner, names):
    """Return whether any of some parameters differs from its default."""
    return any(_is_named(learner, name) for name in names)


def warn_of_unused(learner, unused, where="in this fit"):
    """Warn, once, of parameters that are set but have no effect.

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
    found = {}
    for names, remedy in unused:
        for name in names:
            if name in learner.get_params(deep=False) and _is_named(learner, name):
                found.setdefault(name, remedy)
    if not found:
        return
    remedies = "; ".join(
        f"{remedy} ({', '.join(name for name in found if found[name] == remedy)})"
        for remedy in dict.fromkeys(found.values())
    )
    text = (
        f"Parameters of {type(learner).__name__} have no effect {where}: {', '.join(found)}. "
        f"Leave them at their defaults, or pass what uses them: {remedies}."
    )
    warnings.warn(text, UserWarning, stacklevel=users_level())


def warn_of_zero_codes(learner):
    """Warn that a fitted learner has no codes for its own data."""
    name = getattr(learner, "_penalty", "alpha")
    given, used = getattr(learner, name), float(np.max(learner.alpha_))
    mend = f"a number below it as {name}, or more samples"
    if given != "auto":
        mend = f"a smaller {name} (now {given!r:.50}), or 'auto', which follows the data"
    warnings.warn(
        f"All codes of {type(learner).__name__} are zero: alpha_={used:.3g} leaves nothing of "
        f"these data, or they are noise alone. Pass {mend}.",
        UserWarning,
        stacklevel=users_level(),
    )


def _smaller_steps(learner, has_rate):
    """Name the parameter in use that makes updates smaller."""
    if not has_rate:
        return "larger batch_size"
    rate = getattr(learner, "learning_rate", None)
    return "lower lr in optimizer" if rate is None else f"lower learning_rate (now {rate})"


def _lower_step(learner):
    """Name the step of the encoder, if it is a parameter."""
    step = getattr(learner, "step_size", None)
    return "" if step is None else f", a lower step_size (now {step})"


def divergence(learner, update, optimizer):
    """Return the error for training that diverged."""
    smaller_steps = _smaller_steps(learner, not isinstance(optimizer, SurrogateOptimizer))
    return ValueError(
        f"Training of {type(learner).__name__} stopped being finite at update {update}, "
        "also after a second try with smaller steps; the last finite dictionary is in "
        f"components_. Try a {smaller_steps}{_lower_step(learner)}, or scale the data."
    )


def warn_of_rise(learner, began, ended, baseline, *, has_rate):
    """Warn if training has raised its objective above the value without a dictionary."""
    if not ended <= max(began, baseline) * (1 + _CHANCE):
        warnings.warn(
            f"Training of {type(learner).__name__} raised its objective above that of no "
            f"dictionary at all: {ended:.4g} a sample, and {baseline:.4g} with the baseline "
            f"alone. Try a {_smaller_steps(learner, has_rate)}{_lower_step(learner)}, or scale the "
            "data.",
            ConvergenceWarning,
            stacklevel=users_level(),
        )
