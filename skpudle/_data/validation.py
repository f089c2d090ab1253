"""Check parameters before a fit as scikit-learn does, and keep the type of `fit`."""

from collections.abc import Callable
from typing import TypeVar

from sklearn.base import _fit_context

__all__ = ["fit_context"]

F = TypeVar("F", bound=Callable)


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[F], F]:
    """Return scikit-learn's decorator of methods that fit; its own has no type."""
    return _fit_context(prefer_skip_nested_validation=prefer_skip_nested_validation)
