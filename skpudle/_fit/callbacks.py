"""Callbacks of a fit: scikit-learn's own from 1.9 on, and a stand-in for them before.

A callback is any object with the four methods of `FitCallback`. A fit is a tree of tasks: the fit,
its phases, and their epochs. The fit makes a context for each task, and tells its callbacks when
the task begins and ends; a callback that returns True ends the phase. scikit-learn 1.9 added
`sklearn.callback`, whose callbacks, such as `ProgressBar` and `ScoringMonitor`, follow learners of
this package. Before 1.9 this module has the part of that package that a fit needs: callbacks of
one's own, such as `skpudle.Checkpoint`, set by ``learner.set_callbacks``. They do not follow clones
of a learner, as in `GridSearchCV`.
"""

from copy import copy
from functools import wraps
from inspect import signature
from typing import Any, Protocol, Self, runtime_checkable

try:
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import FitCallback as FitCallback

    def manage_callbacks(fit):
        """Return ``fit`` itself: scikit-learn's `_fit_context` ends the callbacks of a fit."""
        return fit

except ModuleNotFoundError:  # scikit-learn 1.6 to 1.8

    @runtime_checkable
    class FitCallback(Protocol):
        """The methods of a callback.

        Hooks take any of the keyword arguments ``X``, ``y`` and ``fitted_estimator``: the user's
        input, and a copy of the learner as if the fit had ended at this moment.
        """

        def setup(self, estimator: Any, context: Any) -> None:
            """Begin to follow a fit, whose first task is ``context``."""

        def teardown(self, estimator: Any, context: Any) -> None:
            """End, after the fit, also where an error ended the fit."""

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
            """Follow the begin of a task."""

        def on_fit_task_end(self, estimator: Any, context: Any) -> bool | None:
            """Follow the end of a task; a true result after an epoch ends its phase."""

    class _Context:
        """One task of a fit, with the attributes that callbacks read.

        Attributes
        ----------
        estimator_name, task_name : str
            The learner's class, and the task: "fit", a phase or an epoch.
        task_id : int
            The number of the task among the tasks of its parent, from 0.
        max_subtasks : int or None
            Largest number of tasks below this one; None if it is unknown.
        parent : _Context or None
            The task above; None for the whole fit.
        """

        def __init__(
            self,
            callbacks,
            estimator_name,
            task_name,
            max_subtasks,
        ):
            self._callbacks = callbacks
            self._n_subtasks = 0
            self.estimator_name = estimator_name
            self.task_name = task_name
            self.task_id = 0
            self.max_subtasks = max_subtasks
            self.parent = None

        def subcontext(self, task_name="", max_subtasks=0):  # -> _Context
            """Return the context of a new task below this one."""
            context = _Context(
                self._callbacks, self.estimator_name, task_name, max_subtasks
            )
            context.task_id = self._n_subtasks
            context.parent = self
            self._n_subtasks += 1
            return context

        def call_on_fit_task_begin(self, *, estimator, X=None, y=None):
            """Tell the callbacks that the task begins."""
            for callback in self._callbacks:
                _call(callback.on_fit_task_begin, estimator, self, X=X, y=y)

        def call_on_fit_task_end(
            self, *, estimator, X=None, y=None, reconstruction_attributes
        ):  # -> bool
            """Tell the callbacks that the task has ended; return whether one of them stops.

            ``reconstruction_attributes()`` returns the fitted attributes at this moment.
            """

            def fitted():
                learner = copy(estimator)
                vars(learner).update(reconstruction_attributes())
                return learner

            ends = [
                _call(
                    callback.on_fit_task_end,
                    estimator,
                    self,
                    X=X,
                    y=y,
                    fitted_estimator=fitted,
                )
                for callback in self._callbacks
            ]
            return any(ends)

    def _call(hook, estimator, context, **values):  # -> what the hook returns
        """Call a hook with those of the keyword arguments ``values`` that it takes.

        A value that is a function, as for ``fitted_estimator``, is replaced by its result.
        """
        taken = signature(hook).parameters.keys() & values.keys()
        arguments = {
            name: values[name]() if callable(values[name]) else values[name]
            for name in taken
        }
        return hook(estimator, context, **arguments)

    class CallbackSupportMixin:
        """The methods of a learner that has callbacks."""

        def set_callbacks(self, *callbacks: Any) -> Self:
            """Set the callbacks of later fits, in place of earlier ones; return the learner.

            Raises
            ------
            TypeError
                If one is not an object with the methods of `FitCallback`.
            """
            for callback in callbacks:
                if isinstance(callback, type) or not isinstance(callback, FitCallback):
                    raise TypeError(
                        f"{callback!r} is not a callback. Pass objects with the methods setup, "
                        "teardown, on_fit_task_begin and on_fit_task_end."
                    )
            vars(self).pop("_skl_callbacks", None)
            if callbacks:
                self._skl_callbacks = list(callbacks)
            return self

        def _init_callback_context(self, max_subtasks=0):  # -> _Context
            """Return the context of a new fit, after its callbacks have been set up."""
            callbacks = getattr(self, "_skl_callbacks", [])
            context = _Context(callbacks, type(self).__name__, "fit", max_subtasks)
            self._callback_fit_ctx = context
            for callback in callbacks:
                callback.setup(estimator=self, context=context)
            return context

    def manage_callbacks(fit):
        """Decorate `fit` so that callbacks are torn down at its end, also after an error."""

        @wraps(fit)
        def managed(learner, *args, **kwargs):
            try:
                return fit(learner, *args, **kwargs)
            finally:
                context = vars(learner).pop("_callback_fit_ctx", None)
                if context is not None:
                    for callback in getattr(learner, "_skl_callbacks", []):
                        callback.teardown(estimator=learner, context=context)

        return managed
