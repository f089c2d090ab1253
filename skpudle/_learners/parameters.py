"""Decorators of estimators: parameters and their checks are declared once, in a signature.

The constructor of an estimator has a signature with types and an empty body. `sets_parameters`
replaces it by one that sets all attributes, and turns the types, with the intervals in `_RANGES`,
into the constraints of scikit-learn. `fits` decorates `fit` and `partial_fit`, and checks the
parameters by these constraints.
"""

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from numpy.random import RandomState
from sklearn.base import _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions

from skpudle._fit.callbacks import manage_callbacks
from skpudle._initialization import INITIALIZATIONS
from skpudle._precision import F, training_mode

_DOCS = "https://skpudle.readthedocs.io/en/stable/"
# what scikit-learn's HTML view reads from a class
_DOC_LINK = {
    "_doc_link_module": "skpudle",
    "_doc_link_template": _DOCS + "generated/skpudle.{estimator_name}.html",
}

# For the error of an unknown parameter, which names the right one: our parameters, and their names
# in scikit-learn, SPAMS, SPORCO, alphacsc and sparse autoencoders.
COUNTERPARTS = {
    theirs: ours
    for ours, names in {
        "alpha": "l1_coefficient lambda1 lmbd_max lmbda reg",
        "atom_shape": "kernel_size n_times_atom patch_size",
        "batch_size": "batchsize",
        "dict_init": "D D0 D_init dictionary init",
        "learning_rate": "lr",
        "max_iter": "epochs iter n_iter",
        "n_components": "K d_sae n_atoms",
        "fit_intercept": "center with_mean",
        "positive_code": "positive posAlpha",
        "positive_dict": "posD",
        "random_state": "seed",
        "transform_n_nonzero_coefs": "n_nonzero_coefs",
    }.items()
    for theirs in names.split()
}

# For the same error: names in other packages that have no counterpart here, several in a text, and
# what the user shall do instead.
REMEDIES = {
    "algorithm fit_algorithm method": "There is one search: leave it out",
    "fs sfreq": "A fit counts in samples, and displays take sampling_rate: leave it out",
    "l0 n_nonzero sparsity target_sparsity": "Pass alpha, or fit a PUDLEDictionaryLearning and "
    "call choose_alpha(X, l0=5)",
    "l1_ratio": "The penalty is the lasso's alone: leave it out",
    "missing_values": "Missing entries are NaN: pass np.where(X == value, np.nan, X)",
    "n_jobs numThreads": "Threads are torch's: call torch.set_num_threads(n)",
}

# What users may pass as atoms, see `skpudle._data.arrays.dictionary_of`.
ATOMS = ["array-like", HasMethods("transform"), HasMethods("getdict")]
_COUNT = Interval(Integral, 1, None, closed="left")
POSITIVE = Interval(Real, 0, None, closed="neither")
_SHARE = Interval(Real, 0, 1, closed="both")
_SIZES = [_COUNT, tuple, list]
# Constraints by the name of the parameter, where its type does not say which values are valid. One
# entry serves all learners, since a name means the same in all of them.
_RANGES = {
    "atom_shape": _SIZES, "C": [POSITIVE], "debias": [_SHARE, "boolean"], "device": [str],
    "dict_init": [StrOptions({"search", *INITIALIZATIONS}), *ATOMS], "learning_rate": [POSITIVE],
    "lambda_decay": [Interval(Real, 0, 1, closed="right"), tuple], "n_jobs": [Integral],
    "n_replicates": [Interval(Integral, 2, None, closed="left")], "step_size": [POSITIVE],
    "n_trials": [Interval(Real, 1, None, closed="left")],
    "random_state": [Interval(Integral, 0, 2**32 - 1, closed="both"), RandomState],
    "stride": _SIZES, "supervision": [_SHARE], "verbose": ["verbose"],
}  # fmt: skip
_NUMBER = Interval(Real, 0, None, closed="left")
# The constraint of a parameter without an entry in `_RANGES`, by the type of its annotation.
_OF_TYPES = {
    bool: "boolean",
    int: _COUNT,
    float: _NUMBER,
    Callable: callable,
    NoneType: None,
}


def _constraint(kind):
    """Return scikit-learn's constraint for one type of an annotation, such as int or a Literal."""
    if get_origin(kind) is not Literal:
        return _OF_TYPES.get(kind, get_origin(kind) or kind)
    first, *_ = values = get_args(kind)
    return (
        StrOptions({*values})
        if isinstance(first, str)
        else Options(Integral, {*values})
    )


def constraints_of(taken: Signature, **ranges: list) -> dict[str, list]:
    """Return scikit-learn's ``_parameter_constraints`` for a signature, from its annotations.

    Parameters
    ----------
    taken : Signature
        Parameters with types.
    **ranges : list
        Constraints by name, which replace the ones of `_RANGES` and of the types. The texts of a
        Literal, and None, stay allowed.

    Returns
    -------
    dict of str to list
        For each parameter its constraints, one of which a value has to satisfy.
    """
    constraints = {}
    ranges = _RANGES | ranges
    for name, parameter in taken.parameters.items():
        kind = parameter.annotation
        kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        stay_allowed = [
            kind for kind in kinds if get_origin(kind) is Literal or kind is NoneType
        ]
        of_types = [_constraint(kind) for kind in kinds if kind not in stay_allowed]
        constraints[name] = [
            *ranges.get(name, of_types),
            *map(_constraint, stay_allowed),
        ]
    return constraints


def sets_parameters(**ranges: list) -> Callable[[F], F]:
    """Return a class decorator that writes the constructor of an estimator, from its signature.

    The constructor sets every parameter as an attribute, as scikit-learn requires; the body in the
    class never runs. It raises TypeError for an unknown parameter, and names our counterpart if the
    parameter is one of another package. `fit` checks the values by their types and by ``ranges``,
    see `constraints_of`. The HTML view of an estimator links to its page in the documentation.
    """

    def decorate(estimator):
        # `checked` replaces the constructor. `wraps` keeps the signature, from which scikit-learn
        # reads the names of the parameters.
        taken = signature(estimator)
        init = estimator.__init__
        parameters = taken.parameters

        @wraps(init)
        def checked(self, *args, **kwargs):
            for name in kwargs.keys() - parameters.keys():
                counterpart = COUNTERPARTS.get(name)
                advice = next(
                    (
                        f" {text}."
                        for names, text in REMEDIES.items()
                        if name in names.split()
                    ),
                    "",
                )
                if counterpart in parameters:
                    advice = f" Pass {counterpart}."
                raise TypeError(
                    f"{type(self).__name__} has no parameter {name!r}.{advice} The page "
                    f"{_DOCS}coming_from.html "
                    "lists names of other packages and their counterparts."
                )
            bound = taken.bind(*args, **kwargs)
            bound.apply_defaults()
            vars(self).update(bound.arguments)

        # scikit-learn reads the signature in each `transform`; it is kept, since making it from the
        # code would take 0.1 ms each time.
        checked.__signature__ = signature(init)
        estimator.__init__ = checked
        estimator._parameter_constraints = constraints_of(taken, **ranges)
        for name, value in _DOC_LINK.items():
            setattr(estimator, name, value)
        return estimator

    return decorate


def fits(*, validates_nested: bool = False) -> Callable[[F], F]:
    """Return a decorator for `fit` and `partial_fit`: check parameters first, then fit.

    Invalid parameters raise scikit-learn's InvalidParameterError, a ValueError. The method runs in
    `training_mode`, the settings of torch for a fit, and callbacks are ended when it returns. If a
    parameter is an estimator, ``validates_nested`` is whether that estimator checks its own
    parameters, too, when it is fitted.
    """
    decorate = _fit_context(prefer_skip_nested_validation=not validates_nested)
    return lambda method: decorate(manage_callbacks(training_mode()(method)))
