"""Draw non-negative spectra of named groups of channels; see `skpudle.plotting`."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from skpudle._data.arrays import host_array
from skpudle._fitted.drawing import axes_to_draw_on
from skpudle._fitted.learners import find_learner

# opacity of bars whose interval holds 0
_FADED = 0.25
# height of the tallest bar, in distances of two spectra, and inches of a spectrum and of all
_HEIGHT, _INCHES, _WIDTH = 0.85, 0.9, 8.0


def _consecutive(groups):  # -> list of (label, first, last)
    """Return the runs of equal labels."""
    starts = [i for i, label in enumerate(groups) if i == 0 or label != groups[i - 1]]
    return [(groups[a], a, b) for a, b in zip(starts, [*starts[1:], len(groups)], strict=True)]


class SpectraDisplay:
    """Spectra as bars, one below the other, with a colour for each group of channels.

    Each spectrum is as high as its largest channel. Equal labels of neighbouring channels are a
    group, whose name stands above.

    Parameters
    ----------
    spectra : ndarray of shape (n_spectra, n_channels)
        Spectra, not negative.
    names : sequence of str of length n_spectra, default=None
        Names of the spectra; by default their numbers.
    groups : sequence of length n_channels, default=None
        The label of the group of each channel; by default all channels are one group without name.
    colors : dict or sequence, default=None
        Colours of groups by label, or in their order; by default matplotlib's cycle.
    lower, upper : ndarray of shape (n_spectra, n_channels), default=None
        Ends of intervals, drawn as error bars. Bars whose interval holds 0 fade.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    bars_ : list of matplotlib BarContainer
        The bars of each spectrum.
    """

    def __init__(
        self,
        spectra: np.ndarray,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        *,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
    ) -> None:
        self.spectra, self.names, self.groups, self.colors = spectra, names, groups, colors
        self.lower, self.upper = lower, upper

    @classmethod
    def from_spectra(
        cls,
        spectra: ArrayLike,
        *,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        ax: Any = None,
        **bar_kwargs: Any,
    ) -> Self:
        """Draw spectra.

        Parameters
        ----------
        spectra : array-like of shape (n_spectra, n_channels)
            Spectra, not negative.
        names, groups, colors
            As of the class.
        ax, **bar_kwargs
            As in `plot`.

        Returns
        -------
        SpectraDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there are negative numbers, or another number of names, of labels or of colours.
        """
        spectra = check_array(host_array(spectra), input_name="spectra", dtype=np.float64)
        return cls(spectra, names, groups, colors).plot(ax=ax, **bar_kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        ax: Any = None,
        **bar_kwargs: Any,
    ) -> Self:
        """Draw the atoms of a fitted learner.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_`` that are not negative, or a pipeline or search with one.
        names, groups, colors
            As of the class.
        ax, **bar_kwargs
            As in `plot`.

        Returns
        -------
        SpectraDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            As from `from_spectra`.
        """
        options = dict(names=names, groups=groups, colors=colors, ax=ax)
        return cls.from_spectra(find_learner(estimator).atoms(), **options, **bar_kwargs)

    @classmethod
    def from_intervals(
        cls,
        intervals: Any,
        *,
        names: Any = None,
        groups: Any = None,
        colors: Any = None,
        ax: Any = None,
        **bar_kwargs: Any,
    ) -> Self:
        """Draw atoms that are not negative with their intervals.

        Parameters
        ----------
        intervals : AtomIntervals
            The result of `skpudle.inspection.atom_intervals`.
        names, groups, colors
            As of the class.
        ax, **bar_kwargs
            As in `plot`.

        Returns
        -------
        SpectraDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            As from `from_spectra`.
        """
        ends = dict(lower=intervals.lower, upper=intervals.upper)
        display = cls(intervals.estimate, names, groups, colors, **ends)
        return display.plot(ax=ax, **bar_kwargs)

    def plot(self, *, ax: Any = None, **bar_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **bar_kwargs : dict
            Passed to `matplotlib.axes.Axes.bar`.

        Returns
        -------
        SpectraDisplay
            This object.

        Raises
        ------
        ValueError
            As from `from_spectra`.
        """
        n_spectra, n_channels = self.spectra.shape
        if self.spectra.min() < 0:
            raise ValueError(
                f"The least entry of spectra is {self.spectra.min():.3g}. Pass spectra that are "
                "not negative, or draw atoms by AtomsDisplay."
            )
        names = list(range(n_spectra)) if self.names is None else list(self.names)
        groups = [""] * n_channels if self.groups is None else list(self.groups)
        if (len(names), len(groups)) != self.spectra.shape:
            raise ValueError(
                f"Got {len(names)} names and {len(groups)} labels of groups for spectra of "
                f"shape {self.spectra.shape}. Pass a name for each row, a label for each column."
            )
        color_of = self._colors(list(dict.fromkeys(groups)))
        self.ax_, self.figure_ = axes_to_draw_on(ax, figsize=(_WIDTH, _INCHES * (n_spectra + 1)))
        style = {"width": 0.8, "color": [color_of[label] for label in groups]} | bar_kwargs
        largest = np.maximum(self.spectra.max(1, keepdims=True), np.finfo(float).tiny)
        bottoms = np.arange(n_spectra)[::-1]
        self.bars_ = [
            self.ax_.bar(np.arange(n_channels), heights, bottom=bottom, **style)
            for heights, bottom in zip(_HEIGHT * self.spectra / largest, bottoms, strict=True)
        ]
        if self.lower is not None and self.upper is not None:
            self._draw_ends(bottoms, _HEIGHT / largest)
        for bottom in bottoms:
            self.ax_.axhline(bottom, color="black", linewidth=0.5)
        for label, first, last in _consecutive(groups):
            middle, where = (first + last - 1) / 2, self.ax_.get_xaxis_transform()
            style = dict(ha="center", va="bottom", transform=where, color=color_of[label])
            self.ax_.text(middle, 1.01, label, **style)
        self.ax_.set_yticks(bottoms + _HEIGHT / 2, names)
        self.ax_.set(xlim=(-1, n_channels), ylim=(0, n_spectra), xlabel="Channel")
        self.ax_.tick_params(left=False)
        return self

    def _draw_ends(self, bottoms, unit):
        channels = np.arange(self.spectra.shape[1])
        parts = bottoms, self.bars_, self.lower * unit, self.upper * unit
        for bottom, bars, low, high in zip(*parts, strict=True):
            high = np.minimum(high, 1.0)  # stay below the next spectrum
            style = dict(color="0.3", linewidth=0.8)
            self.ax_.vlines(channels, bottom + np.maximum(low, 0), bottom + high, **style)
            for bar, end in zip(bars, low, strict=True):
                bar.set_alpha(1.0 if end > 0 else _FADED)

    def _colors(self, labels):  # -> dict
        if isinstance(self.colors, dict):
            given = self.colors
        else:
            cycle = [f"C{i % 10}" for i in range(len(labels))]
            given = dict(zip(labels, cycle if self.colors is None else self.colors, strict=False))
        missing = [label for label in labels if label not in given]
        if missing:
            raise ValueError(
                f"The group {missing[0]!r:.50} has no colour. Pass colours for all of "
                f"{labels!r:.200}."
            )
        return given
