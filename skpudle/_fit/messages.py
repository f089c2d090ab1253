"""Messages to the user of a fit: warnings of results that may be wrong, and texts of errors."""

from inspect import signature
from pickle import PicklingError

import joblib
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skpudle._data.arrays import to_numpy, warn, with_gaps
from skpudle._fit.train import current_team
from skpudle._operators._atoms import DenseDictionary


def describe(value):  # -> str
    """Return a parameter as a short text that is equal for equal values, to notice changes.

    Arrays, tensors and other objects become a hash of their contents; a function that cannot be
    pickled becomes its name. Checkpoints and `partial_fit` compare these texts with stored ones, so
    other texts for the same values would make older files useless.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    try:
        return joblib.hash(
            to_numpy(value) if isinstance(value, torch.Tensor) else value
        )
    except PicklingError:  # a lambda or local function, for example
        return getattr(value, "__qualname__", type(value).__qualname__)


def refuse(is_wrong, message):
    """Raise ValueError with the message if ``is_wrong``, as when parameters contradict."""
    if is_wrong:
        raise ValueError(message)


def refuse_several(task):
    """Raise ValueError in `data_parallel`, if it has several processes, but ``task`` runs in one.

    ``task``, such as the name of a method, begins the message.
    """
    is_alone = current_team().is_alone
    refuse(
        not is_alone, f"{task} runs in one process. Call it outside of data_parallel."
    )


def refuse_unknown(learner, is_known):
    """Raise ValueError unless ``is_known``: whether the data have any value that is not NaN.

    The message has the name of the class of the ``learner``.
    """
    refuse(
        not is_known,
        f"All values of X are NaN. Pass {type(learner).__name__} known values.",
    )


def listed(features, names=None):
    """Return the first ten features as text for a message: names if there are any, else numbers.

    ``features`` are indices, and ``names`` are the names of all features of the data.
    """
    features = features if names is None else [str(names[i]) for i in features]
    return f"{features[:10]}{' ...' if len(features) > 10 else ''}"


def warn_of_unknown_features(features, names=None):
    """Warn of features in which every sample has NaN; ``features`` are their indices."""
    if features:
        warn(
            f"Features {listed(features, names)} of X have no known value in any sample, so that "
            "atoms learn nothing there. Leave these features out."
        )


def warn_of_few_samples(n_samples, n_atoms):
    """Warn if there are fewer samples than atoms, some of which then cannot be learned."""
    if n_samples < n_atoms:
        warn(
            f"X has {n_samples} samples with known values for {n_atoms} atoms. Pass "
            f"n_components={n_samples} or less, or more samples."
        )


def warn_of_units(samples):
    """Warn if one column of `Samples` has nearly all of the variance: atoms would learn only it.

    Usually its unit is smaller than the units of the other columns.
    """
    x = with_gaps(samples.x, samples.mask).double()
    low, high = x.nanquantile(x.new_tensor([0.1, 0.9]), 0)
    spreads = (
        (x - x.nanmean(0)).square().nanmean(0).nan_to_num(),
        (high - low).square().nan_to_num(),
    )
    column = int(spreads[0].argmax())
    share, usual = (float(spread[column] / spread.sum()) for spread in spreads)
    # ``share`` is the fraction of the total variance that one column has: 0.72 and 0.998 in the
    # tables of cancer and wine of scikit-learn, whose columns have mixed units, and at most 0.68 in
    # iris, digits, patches and diabetes. But a single outlying entry can cause such a fraction. So
    # ``usual``, the same fraction for squared distances between the 10 % and 90 % quantiles, must
    # be large, too: it is 0.69 for cancer and 0.998 for wine, and 0.17 for normal columns of 100
    # rows with one entry of 100 standard deviations.
    if x.shape[1] >= 4 and share > 0.7 and usual > 0.5:
        warn(
            f"Column {column} has {share:.1%} of the variance of X. Put columns of different units "
            "through StandardScaler, or pass noise='features', or 'equal' to take them as they are."
        )


def warn_of_step(step_size, atoms):
    """Warn if the user's step is so large that unfoldings may diverge with these atoms.

    Iterations of the encoder converge for steps below 2 / L, where L bounds the squared spectral
    norm of the ``atoms`` (n_components, n_features).
    """
    bound = float(DenseDictionary(atoms).squared_norm_bound())
    if step_size * bound > 2:
        warn(
            f"step_size={step_size} is beyond 2 / L = {2 / bound:.3g}, where L bounds the squared "
            "spectral norm of the dictionary. Pass a smaller step_size, or 'auto' for 1 / L.",
            RuntimeWarning,
        )


def warn_of_early_end(learner, ended_by):
    """Warn if training ended at a ``max_iter`` that the user has set, before it converged.

    ``ended_by`` is the cause of the end. With max_iter="auto" the limit is the expected end, and
    with tol=None the user has asked for all epochs.
    """
    if (
        ended_by == "max_iter"
        and learner.tol is not None
        and learner.max_iter != "auto"
    ):
        warn(
            f"Training of {type(learner).__name__} ended after max_iter={learner.max_iter!r} "
            f"epochs, before it converged. Raise max_iter, or tol (now {learner.tol}, or None).",
            ConvergenceWarning,
        )


def any_named(learner, names):
    """Return whether the user has set any of the parameters ``names`` to a non-default value.

    ``learner`` is the estimator that has these parameters.
    """
    parameters = signature(type(learner).__init__).parameters
    # the value and the default of each parameter
    pairs = ((getattr(learner, name), parameters[name].default) for name in names)
    # An array always differs, because no default is an array. It is not compared by ``==``, which
    # would return an array instead of one truth value.
    return any(not (a is b or (np.ndim(a) == 0 and a == b)) for a, b in pairs)


def warn_of_unused(learner, unused, where="in this fit"):
    """Warn of parameters that the user has set but that have no effect.

    Parameters
    ----------
    learner : estimator
        The learner with these parameters.
    unused : iterable of (tuple of str, str)
        Pairs: names of parameters without effect in this fit, and the setting that would use them.
        Names that the learner lacks are ignored.
    where : str, default="in this fit"
        The end of the sentence "Parameters have no effect ...".
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
    """Warn that a fitted learner has only zero codes for its own data: its penalty is too large.

    If codes and atoms have to be non-negative, the cause may also be negative data.
    """
    # the name of the parameter that sets the penalty
    name = getattr(learner, "_penalty", "alpha")
    own = learner.get_params(deep=False)
    if own.get("positive_code") and own.get("positive_dict"):
        warn(
            f"All codes of {type(learner).__name__} are zero: non-negative codes and atoms explain "
            "no negative entries. Pass positive_code=False, non-negative data, or a smaller number "
            f"as {name} (now {getattr(learner, name)!r:.50})."
        )
        return
    warn(
        f"All codes of {type(learner).__name__} are zero with alpha_={np.max(learner.alpha_):.3g}. "
        f"Pass a smaller number as {name} (now {getattr(learner, name)!r:.50}), or 'auto', or more "
        "samples."
    )


def warn_of_rise(learner, began, ended, baseline):
    """Warn if training has made the loss larger than at its start and without a dictionary.

    ``began`` and ``ended`` are the mean losses of the first and last epoch, and ``baseline`` is the
    loss of a sample whose codes are zero.
    """
    # The last steps of stochastic gradients are noisy, so a rise of up to 1 % counts as chance.
    if not ended <= max(began, baseline) * (1 + 1e-2):
        warn(
            f"Training of {type(learner).__name__} raised its objective to {ended:.4g} a sample, "
            f"above {baseline:.4g} without a dictionary. Pass a smaller learning_rate or "
            "step_size, or scale the data.",
            ConvergenceWarning,
        )
