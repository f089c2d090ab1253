"""Talk to the user: name counterparts of unknown names, and place warnings at the user's line."""

import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import TypeVar
from weakref import WeakKeyDictionary

from sklearn.base import _fit_context

# Least number of letters of a name to look for inside of other names.
_LEAST_WORD = 5

F = TypeVar("F", bound=Callable)

_PAGE = "https://skpudle.readthedocs.io/en/stable/coming_from.html"

_CODED = "gradient, optimizer and n_unfoldings of PUDLEDictionaryLearning"
_RATE = "sampling_rate of displays, and atom_shape counts samples"
_NONE = "none: torch uses the cores"

# Parameters of other packages, and their counterparts, which begin with our parameter's name.
COUNTERPARTS = {
    # scikit-learn, and dictlearn
    "callback": "set_callbacks, a method",
    "code_init": "none: codes follow from the atoms",
    "dictionary": "dict_init",
    "fit_algorithm": _CODED,
    "init": "dict_init",
    "max_no_improvement": "n_iter_no_change",
    "n_jobs": _NONE,
    "n_nonzero_coefs": "transform_n_nonzero_coefs of PUDLEDictionaryLearning",
    "shuffle": "none: fit shuffles, partial_fit does not",
    "transform_max_iter": "none: transform_algorithm='lasso' iterates to its gap",
    # SPAMS
    "D": "dict_init",
    "K": "n_components",
    "L": "transform_n_nonzero_coefs of PUDLEDictionaryLearning",
    "batchsize": "batch_size",
    "iter": "max_iter",
    "lambda1": "alpha",
    "modeD": "atom_norm",
    "numThreads": _NONE,
    "posAlpha": "positive_code",
    "posD": "positive_dict",
    # SPORCO
    "D0": "dict_init",
    "lmbda": "alpha",
    "opt": "options of SporcoDictionaryLearning",
    # alphacsc
    "D_init": "dict_init",
    "eps": "tol",
    "lmbd_max": "alpha",
    "n_atoms": "n_components",
    "n_iter": "max_iter",
    "n_times_atom": "atom_shape of ConvPUDLEDictionaryLearning",
    "rank1": "rank of ConvPUDLEDictionaryLearning",
    "reg": "alpha",
    "unbiased_z_hat": "shrinkage",
    # sparse autoencoders
    "d_sae": "n_components",
    "l1_coefficient": "alpha",
    # signals, and networks
    "epochs": "max_iter",
    "fs": _RATE,
    "kernel_size": "atom_shape of ConvPUDLEDictionaryLearning",
    "lr": "learning_rate",
    "patch_size": "atom_shape of ConvPUDLEDictionaryLearning",
    "seed": "random_state",
    "sfreq": _RATE,
}


def _unknown(owner, name, known):
    counterpart = COUNTERPARTS.get(name)
    ours = re.match(r"\w+", counterpart)[0] if counterpart else None
    if ours is None:
        (ours,) = get_close_matches(name, known, n=1) or [None]
    if ours in known:
        mend = f"Pass {ours}; the page"
    elif ours == "none":
        mend = f"Leave it out, since {counterpart.removeprefix('none: ')}; the page"
    elif counterpart:
        mend = f"Its counterpart is {counterpart}; the page"
    else:
        mend = "The page"
    return TypeError(
        f"{owner} has no parameter {name!r}. {mend} 'Coming from another package' has the "
        f"counterparts of other names, {_PAGE}."
    )


def explain_names(init: F) -> F:
    """Let a constructor answer unknown names of parameters by similar names of its own."""
    known = [*signature(init).parameters][1:]

    @wraps(init)
    def checked(self, *args, **kwargs):
        for name in kwargs:
            if name not in known:
                raise _unknown(type(self).__name__, name, known)
        init(self, *args, **kwargs)

    return checked


def place_of(name, modules):
    """Return where a name is, or names like it, in public modules; "" if nowhere.

    Parameters
    ----------
    name : str
        The name that was asked for.
    modules : iterable of str
        Names of modules.
    """
    places = {}
    for module in modules:
        for public in import_module(module).__all__:
            places.setdefault(public, f"{module}.{public}")
    if name in places:
        return f"It is {places[name]}."
    alike = [
        public
        for public in places
        if min(len(public), len(name)) >= _LEAST_WORD
        and (name.lower() in public.lower() or public.lower() in name.lower())
    ] or get_close_matches(name, places)
    return f"There is {', '.join(places[public] for public in alike[:4])}." if alike else ""


F = TypeVar("F", bound=Callable)


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[F], F]:
    """Return scikit-learn's decorator of methods that fit; its own has no type."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)


# Packages whose frames are not the user's: this package, and packages that wrap its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}

# Warnings already issued, by search or cross-validation, and in this process as a worker.
# (scikit-learn clears Python's own record for every fit.)
_TOLD_IN_RUNS, _TOLD_TO_WORKER = WeakKeyDictionary(), set()


def _package(frame):  # code that was compiled from text may have no name
    return frame.f_globals.get("__name__", "").partition(".")[0]


def users_level():
    """Return the ``stacklevel`` of the user's line.

    Call ``warnings.warn(message, stacklevel=users_level())``.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _package(frame) in _WRAPPERS:
        frame, level = frame.f_back, level + 1
    return level


def _told():  # -> set; None outside scikit-learn's runs
    frame, run, in_run = sys._getframe(1), None, False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        in_run |= name == "sklearn.utils.parallel"
        if name.startswith("sklearn."):  # the outermost search, cross-validation or the like
            run = frame.f_locals.get("parallel", run)
        frame = frame.f_back
    if run is None:
        return _TOLD_TO_WORKER if in_run else None
    return _TOLD_IN_RUNS.setdefault(run, set())


def is_news(text):
    """Return whether to give a warning: always, but only once in a search or cross-validation.

    Each worker of a search in other processes gives it once.
    """
    told = _told()
    if told is None:
        return True
    is_new = text not in told
    told.add(text)
    return is_new
