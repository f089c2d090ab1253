"""Answer names of other packages' parameters, and place warnings at the user's line."""

import sys
from collections.abc import Callable
from functools import wraps
from inspect import signature

from sklearn.base import _fit_context

from skpudle._precision import F

_PAGE = "https://skpudle.readthedocs.io/en/stable/coming_from.html"

# Our parameters, and their names in scikit-learn, SPAMS, SPORCO, alphacsc and networks.
_NAMES = {
    "alpha": "l1_coefficient lambda1 lmbd_max lmbda reg",
    "atom_shape": "kernel_size n_times_atom patch_size",
    "batch_size": "batchsize",
    "dict_init": "D D0 D_init dictionary init",
    "learning_rate": "lr",
    "max_iter": "epochs iter n_iter",
    "n_components": "K d_sae n_atoms",
    "positive_code": "posAlpha",
    "positive_dict": "posD",
    "random_state": "seed",
    "transform_n_nonzero_coefs": "n_nonzero_coefs",
}
COUNTERPARTS = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}

# Packages whose frames are not the user's: this package, and packages that wrap its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}


def explain_names(init: F) -> F:
    """Let a constructor set its parameters as attributes, and answer unknown names by its own."""
    taken = signature(init)
    known = [*taken.parameters][1:]

    @wraps(init)
    def checked(self, *args, **kwargs):
        for name in kwargs.keys() - known:
            mend = f" Pass {COUNTERPARTS[name]}." if COUNTERPARTS.get(name) in known else ""
            raise TypeError(
                f"{type(self).__name__} has no parameter {name!r}.{mend} The page {_PAGE} lists "
                "names of other packages and their counterparts."
            )
        init(self, *args, **kwargs)
        given = taken.bind(self, *args, **kwargs)
        given.apply_defaults()
        vars(self).update({name: given.arguments[name] for name in known})

    return checked


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[F], F]:
    """Return scikit-learn's decorator of methods that fit; its own has no type."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


def users_level():
    """Return the ``stacklevel`` of the user's line.

    Call ``warnings.warn(message, stacklevel=users_level())``.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] in _WRAPPERS
    ):
        frame, level = frame.f_back, level + 1
    return level
