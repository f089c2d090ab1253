"""Draw atoms of rank one, maps over channels and waveforms; see `skpudle.plotting`."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skpudle._data.arrays import host_array
from skpudle._fitted.drawing import new_grid
from skpudle._fitted.learners import find_learner

# Levels of a topography, and the height of a row in inches.
_LEVELS, _HEIGHT = 15, 1.6


def _check_channels(values, n_channels, name):
    if values is not None and len(values) != n_channels:
        raise ValueError(
            f"{name} has {len(values)} entries, but maps have {n_channels} channels. Pass one for "
            "each channel, in the order of the data."
        )


class WaveformsDisplay:
    """The maps and waveforms of atoms of rank one, a row for each atom.

    A map is drawn as bars, one for each channel, or as a topography where positions of the channels
    are given.

    Parameters
    ----------
    maps : ndarray of shape (n_atoms, n_channels)
        Maps over the channels.
    waveforms : ndarray of shape (n_atoms, length)
        Waveforms.
    names : sequence of str, default=None
        Titles of the atoms, by default their numbers.

    Attributes
    ----------
    axes_ : ndarray of shape (n_atoms, 2) of matplotlib Axes
        Axes of the maps and of the waveforms.
    figure_ : matplotlib Figure
        Their figure.
    maps_ : list of matplotlib Artist
        Bars or filled contours of each atom.
    lines_ : list of matplotlib Line2D
        The waveform of each atom.
    """

    def __init__(self, maps: np.ndarray, waveforms: np.ndarray, names: Any = None) -> None:
        self.maps, self.waveforms, self.names = maps, waveforms, names

    @classmethod
    def from_factors(
        cls, maps: ArrayLike, waveforms: ArrayLike, *, names: Any = None, **plot_params: Any
    ) -> Self:
        """Draw maps and waveforms.

        Parameters
        ----------
        maps : array-like of shape (n_atoms, n_channels)
            Maps over the channels.
        waveforms : array-like of shape (n_atoms, length)
            Waveforms.
        names : sequence of str, default=None
            Titles of the atoms, by default their numbers.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        WaveformsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the numbers of maps and waveforms differ.
        """
        maps, waveforms = (np.asarray(host_array(part)) for part in (maps, waveforms))
        if maps.ndim != 2 or waveforms.ndim != 2 or len(maps) != len(waveforms):
            raise ValueError(
                f"Maps of shape {maps.shape} and waveforms of shape {waveforms.shape} do not "
                "belong together. Pass spatial_components_ and temporal_components_ of signals."
            )
        return cls(maps, waveforms, names).plot(**plot_params)

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, atoms: ArrayLike | None = None, **plot_params: Any
    ) -> Self:
        """Draw the atoms of a learner with ``rank=1``.

        Parameters
        ----------
        estimator : estimator
            Fitted convolutional learner, or a pipeline or search with one.
        atoms : array-like of int, default=None
            Numbers of the atoms to draw; by default all.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        WaveformsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the learner has no maps.
        """
        learner = find_learner(estimator).learner
        maps = getattr(learner, "spatial_components_", None)
        if maps is None:
            raise ValueError(
                f"Atoms of this {type(learner).__name__} have no maps. Pass a "
                "ConvPUDLEDictionaryLearning with rank=1, or draw atoms by AtomsDisplay."
            )
        chosen = np.arange(len(maps)) if atoms is None else np.asarray(atoms)
        names = [f"atom {k}" for k in chosen.tolist()]
        waveforms = learner.temporal_components_[chosen]
        return cls.from_factors(maps[chosen], waveforms, names=names, **plot_params)

    def plot(
        self,
        *,
        channel_names: Any = None,
        positions: ArrayLike | None = None,
        sampling_rate: float | None = None,
        **line_kwargs: Any,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        channel_names : sequence of str, default=None
            Names of the channels, at the bars.
        positions : array-like of shape (n_channels, 2), default=None
            Places of the channels in a plane, for topographies; three of them not in a line.
        sampling_rate : float, default=None
            Samples in a second, which gives waveforms an axis of seconds; by default samples.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`, for the waveforms.

        Returns
        -------
        WaveformsDisplay
            This object.

        Raises
        ------
        ValueError
            If the number of names or positions is not that of the channels.
        """
        n_atoms, n_channels = self.maps.shape
        _check_channels(channel_names, n_channels, "channel_names")
        _check_channels(positions, n_channels, "positions")
        self.axes_, self.figure_ = new_grid(n_atoms, 2, figsize=(6.4, _HEIGHT * n_atoms + 0.4))
        times = np.arange(self.waveforms.shape[1]) / (sampling_rate or 1)
        self.maps_, self.lines_ = [], []
        names = self.names or [f"atom {k}" for k in range(n_atoms)]
        for (left, right), map_, wave, name in zip(self.axes_, self.maps, self.waveforms, names):
            draw = self._bars if positions is None else self._topography
            self.maps_.append(draw(left, map_, positions, channel_names))
            left.set_title(name, fontsize="medium")
            style = {"color": "C0"} | line_kwargs
            self.lines_ += right.plot(times, wave, **style)
            right.axhline(0, color="0.8", linewidth=0.5)
        self.axes_[-1, 1].set_xlabel("Sample" if sampling_rate is None else "Seconds")
        return self

    @staticmethod
    def _bars(ax, map_, _, channel_names):
        bars = ax.bar(np.arange(len(map_)), map_)
        ax.axhline(0, color="0.8", linewidth=0.5)
        if channel_names is not None:
            ax.set_xticks(np.arange(len(map_)), channel_names, rotation=90, fontsize="small")
        return bars

    @staticmethod
    def _topography(ax, map_, positions, channel_names):
        x, y = np.asarray(positions, dtype=float).T
        largest = np.abs(map_).max() or 1.0
        levels = np.linspace(-largest, largest, _LEVELS)
        contours = ax.tricontourf(x, y, map_, levels=levels, cmap="RdBu_r")
        ax.plot(x, y, "k.", markersize=2)
        for place, name in zip(positions, channel_names or ()):
            ax.annotate(name, place, fontsize="x-small")
        ax.set_aspect("equal")
        ax.set_axis_off()
        return contours
