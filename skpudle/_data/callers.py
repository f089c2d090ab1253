"""Where a warning is to point: at the line of the user that led to it."""

import sys

__all__ = ["users_level"]

# What stands between a user's line and ours: this package and what wraps its methods.
_WRAPPERS = {"skpudle", "sklearn", "torch", "contextlib"}


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
