"""Where a warning is to point, and whether it was given: the frames that led to a call of fit."""

import sys
from weakref import WeakKeyDictionary

__all__ = ["is_news", "users_level"]

# What stands between a user's line and ours: this package and what wraps its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}

# Texts that a run of many fits was told, by the run, and those that this process was told as a
# worker of runs elsewhere. Python's own record of warnings does not serve: scikit-learn clears it
# for every fit.
_TOLD_IN_RUNS, _TOLD_TO_WORKER = WeakKeyDictionary(), set()


def _package(frame):  # code that was compiled from text may have no name
    return frame.f_globals.get("__name__", "").partition(".")[0]


def users_level():
    """Return the ``stacklevel`` that makes a warning name the user's line.

    For a call such as ``warnings.warn(message, stacklevel=users_level())``.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _package(frame) in _WRAPPERS:
        frame, level = frame.f_back, level + 1
    return level


def _told():  # -> set, None outside of scikit-learn's runs
    frame, run, in_run = sys._getframe(1), None, False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        in_run |= name == "sklearn.utils.parallel"
        if name.startswith("sklearn."):  # a search, cross-validation and the like, the outermost
            run = frame.f_locals.get("parallel", run)
        frame = frame.f_back
    if run is None:
        return _TOLD_TO_WORKER if in_run else None
    return _TOLD_IN_RUNS.setdefault(run, set())


def is_news(text):
    """Return whether a text is to be told: always, but once in a search or a cross-validation.

    Workers of a search in other processes tell it once each.
    """
    told = _told()
    if told is None:
        return True
    is_new = text not in told
    told.add(text)
    return is_new
