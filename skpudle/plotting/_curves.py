"""Draw curves of training; see `skpudle.plotting`."""

from itertools import cycle
from typing import Any, Self

import numpy as np

from skpudle._fitted.drawing import axes_to_draw_on, tick_whole_numbers
from skpudle._fitted.learners import find_learner

# dash styles of successive curves: a curve shows through the gaps of a curve drawn on it
_DASHES = "-", (0, (4, 4)), (0, (1, 3))


class _CurvesDisplay:
    """Labelled curves on a logarithmic scale; a subclass names the axes."""

    _axes = {}

    def _curves(self):  # -> iterable of label, abscissae (n,), ordinates (n,) or (n, n_samples)
        raise NotImplementedError

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.semilogy`.

        Returns
        -------
        Display
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        self.lines_ = []
        for (label, x, y), dashes in zip(self._curves(), cycle(_DASHES)):
            low, median, high = np.percentile(y.reshape(len(y), -1), [10, 50, 90], axis=1)
            style = {"linestyle": dashes, "label": label} | line_kwargs
            (line,) = self.ax_.semilogy(x, median, **style)
            self.lines_.append(line)
            if y.ndim > 1:
                band = dict(color=line.get_color(), alpha=0.2, linewidth=0)
                self.ax_.fill_between(x, low, high, **band)
        self.ax_.set(**self._axes)
        tick_whole_numbers(self.ax_.xaxis)
        self.ax_.legend()
        return self


class LossCurveDisplay(_CurvesDisplay):
    """Loss against epochs, one line per learner.

    The loss of a search jumps when the search replaces atoms. Its line is the smallest loss so far,
    in front of a pale line of all losses.

    Parameters
    ----------
    curves : dict of str to ndarray of shape (n_epochs,)
        Losses of each learner.
    n_searched : dict of str to int, default=None
        Number of first epochs that were of a search, by the same labels; by default 0.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    lines_ : list of matplotlib Line2D
        One per curve.
    """

    _axes = {"xlabel": "Epoch", "ylabel": r"Loss, mean of $\frac{1}{2} \|x - D z\|^2$"}

    def __init__(
        self, curves: dict[str, np.ndarray], n_searched: dict[str, int] | None = None
    ) -> None:
        self.curves, self.n_searched = curves, n_searched

    def _curves(self):
        for name, curve in self.curves.items():
            n = (self.n_searched or {}).get(name, 0)
            best = np.concatenate([np.minimum.accumulate(curve[:n]), curve[n:]])
            yield name, np.arange(1, len(curve) + 1), best

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.semilogy`.

        Returns
        -------
        LossCurveDisplay
            This object.
        """
        super().plot(ax=ax, **line_kwargs)
        for line, (name, curve) in zip(self.lines_, self.curves.items(), strict=True):
            if (n := (self.n_searched or {}).get(name, 0)) > 1:
                pale = dict(color=line.get_color(), alpha=0.25, linewidth=1, label="_search")
                self.ax_.semilogy(np.arange(1, n + 1), curve[:n], **pale)
        return self

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **line_kwargs: Any
    ) -> Self:
        """Draw ``loss_curve_`` of a fitted learner.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``loss_curve_``, or a pipeline or search with such a learner.
        name : str, default=None
            Label; by default the name of the learner's class.
        ax, **line_kwargs
            As in `plot`.

        Returns
        -------
        LossCurveDisplay
            The display, drawn.
        """
        if name is None:
            name = type(find_learner(estimator, "loss_curve_").learner).__name__
        return cls.from_estimators({name: estimator}, ax=ax, **line_kwargs)

    @classmethod
    def from_estimators(
        cls, estimators: dict[str, Any], *, ax: Any = None, **line_kwargs: Any
    ) -> Self:
        """Draw ``loss_curve_`` of several fitted learners.

        Parameters
        ----------
        estimators : dict of str to estimator
            Fitted learners by their labels.
        ax, **line_kwargs
            As in `plot`.

        Returns
        -------
        LossCurveDisplay
            The display, drawn.
        """
        learners = {
            name: find_learner(estimator, "loss_curve_").learner
            for name, estimator in estimators.items()
        }
        curves = {name: learner.loss_curve_ for name, learner in learners.items()}
        n_searched = {
            name: getattr(learner, "phases_", {}).get("search", 0)
            for name, learner in learners.items()
        }
        return cls(curves, n_searched).plot(ax=ax, **line_kwargs)
