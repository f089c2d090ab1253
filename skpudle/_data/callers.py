"""Point warnings at the user's line, and give each once per search: walk the calling frames."""

import sys
from weakref import WeakKeyDictionary

__all__ = ["is_news", "users_level"]

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
