"""Draw where atoms are active in a signal or image; see `skpudle.plotting`."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skpudle._data.arrays import host_array, to_numpy, to_tensor
from skpudle._data.images import covering_positions, sizes
from skpudle._fitted.drawing import axes_to_draw_on, refuse_sampling_rate
from skpudle._fitted.learners import as_samples, find_learner, find_peaks, look_at
from skpudle._learners.convolutional.transformer import stride_of

# area of the largest dot in points squared
_DOT = 120
# left and right end of the thumbnails of atoms, right of a signal, in widths of the axes
_THUMBNAIL = 1.02, 1.17


class ActivationsDisplay:
    """Where in a signal or image the atoms of a convolutional learner are active.

    A signal is drawn in the first row, and each atom has a row below, with its waveform on the
    right. A bar marks the peak of each of its copies, where the waveform has its largest magnitude
    (with several channels, its largest norm), as in `skpudle.events.find_events`. The bar is as
    high as the code, downwards where the code is negative. Over an image a dot in the colour of the
    atom marks the middle of each copy, with an area in proportion to the size of the code.

    Parameters
    ----------
    sample : ndarray of shape (length, n_channels), (height, width) or (height, width, 3)
        The signal or image.
    places : ndarray of shape (n_uses, n_axes)
        Peaks of the copies of atoms in a signal, middles of those in an image, in samples or
        pixels.
    atoms : ndarray of shape (n_uses,)
        The atom of each copy.
    values : ndarray of shape (n_uses,)
        Their codes.
    components : ndarray of shape (n_components, length[, n_channels]), default=None
        The atoms of signals, to draw their waveforms. None: they are not drawn.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    marks_ : list of matplotlib Collection
        Bars or dots, one object for each atom, in the order of their numbers.
    thumbnails_ : list of list of matplotlib Line2D
        The waveforms of these atoms, a line for each channel; of signals only.
    """

    def __init__(
        self,
        sample: np.ndarray,
        places: np.ndarray,
        atoms: np.ndarray,
        values: np.ndarray,
        components: np.ndarray | None = None,
    ) -> None:
        self.sample, self.places, self.atoms, self.values = sample, places, atoms, values
        self.components = components

    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        sample: ArrayLike,
        components: ArrayLike,
        *,
        stride: int | tuple[int, ...] = 1,
        n_atoms: int = 10,
        ax: Any = None,
        **plot_params: Any,
    ) -> Self:
        """Draw the code maps of one signal or image.

        Parameters
        ----------
        codes : array-like of shape (n_positions, n_components) or (n_rows, n_columns, n_components)
            Code maps, as the `transform` of a convolutional learner returns them for one image.
        sample : array-like of shape (length[, n_channels]) or (height, width[, 3])
            The signal or image.
        components : array-like of shape (n_components, length[, n_channels]) or \
                (n_components, height, width[, 3])
            The atoms, as ``components_`` of the learner.
        stride : int or tuple of int, default=1
            Distance of neighbouring positions, as of the learner.
        n_atoms : int, default=10
            Largest number of atoms to draw; the atoms with the largest sums of absolute codes are
            drawn.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        ActivationsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If codes, sample and atoms do not belong to one signal or image.
        """
        arrays = [np.asarray(host_array(array)) for array in (codes, sample, components)]
        codes, sample, components = arrays
        n_axes = codes.ndim - 1
        if (
            n_axes not in (1, 2)
            or not {sample.ndim, components.ndim - 1} <= {n_axes, n_axes + 1}
            or len(components) != codes.shape[-1]
        ):
            raise ValueError(
                f"Codes of shape {codes.shape}, a sample of shape {sample.shape} and atoms of "
                f"shape {components.shape} are not of one image. Pass transform([image])[0], the "
                "image, and components_."
            )
        kernel = components.shape[1 : n_axes + 1]
        stride = np.asarray(sizes(stride, n_axes))
        if n_axes == 1:
            sample = sample.reshape(len(sample), -1)
        sums = np.abs(codes).sum(axis=tuple(range(len(kernel))))
        shown = np.argsort(-sums, kind="stable")[:n_atoms]
        shown = shown[sums[shown] > 0]
        *positions, atoms = np.nonzero(codes * np.isin(np.arange(codes.shape[-1]), shown))
        places = np.stack(positions, axis=1) * stride
        if n_axes == 1:
            places = places + find_peaks(components)[atoms, None]
        else:
            places = places + (np.asarray(kernel) - 1) / 2
        display = cls(sample, places, atoms, codes[(*positions, atoms)], components)
        return display.plot(ax=ax, **plot_params)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike | Sequence[ArrayLike],
        *,
        index: int = 0,
        n_atoms: int = 10,
        ax: Any = None,
        **plot_params: Any,
    ) -> Self:
        """Draw where a fitted convolutional learner finds its atoms in one sample.

        Parameters
        ----------
        estimator : estimator
            Fitted convolutional learner, or a pipeline or search with one.
        X : array-like or list of images
            Signals, images or rows, as `transform` takes them.
        index : int, default=0
            Number of the sample to draw.
        n_atoms, ax, **plot_params
            As in `from_codes`.

        Returns
        -------
        ActivationsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the learner's atoms have no positions, or the sample does not exist.
        """
        learner = find_learner(estimator).learner
        if not hasattr(learner, "atom_shape"):
            raise ValueError(
                f"Atoms of {type(learner).__name__} have no positions in a sample. Pass a fitted "
                "ConvPUDLEDictionaryLearning, or draw its codes by CodesDisplay."
            )
        X = as_samples(learner, X)
        if len(np.shape(X)) == 1 and not isinstance(X, list | tuple):
            raise ValueError(
                f"X has one axis, of {len(X)} numbers, and its samples would be numbers. Pass a "
                "list of signals, [X]."
            )
        if not -len(X) <= index < len(X):
            raise ValueError(f"Got index={index} for {len(X)} samples. Pass a smaller index.")
        index %= len(X)
        look = look_at(estimator, X[index : index + 1])
        (sample,), kernel = look.samples, sizes(learner.atom_shape, 1)
        if sample.ndim == 1:  # a row
            line = (1,) * (len(kernel) - 1)
            sample = sample.reshape(*line, len(sample))
        stride = stride_of(learner)
        positions = covering_positions(sample.shape[: len(kernel)], kernel, stride)
        codes = to_numpy(to_tensor(look.raw[0])).reshape(*positions, -1)
        options = dict(stride=stride, n_atoms=n_atoms, ax=ax)
        return cls.from_codes(codes, sample, learner.components_, **options, **plot_params)

    def plot(
        self, *, ax: Any = None, sampling_rate: float | None = None, **mark_kwargs: Any
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        sampling_rate : float, default=None
            Samples in a second of a signal, which gives its axis seconds; by default samples.
        **mark_kwargs : dict
            Passed to `matplotlib.axes.Axes.vlines` for signals, to `~matplotlib.axes.Axes.scatter`
            for images.

        Returns
        -------
        ActivationsDisplay
            This object.

        Raises
        ------
        ValueError
            If images are given a sampling rate.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        largest = np.abs(self.values).max(initial=0) or 1.0
        if self.places.shape[1] == 1:
            self.marks_ = self._plot_signal(self.values / largest, sampling_rate, mark_kwargs)
        else:
            refuse_sampling_rate(sampling_rate)
            self.marks_ = self._plot_image(self.values / largest, mark_kwargs)
        return self

    def _plot_signal(self, values, sampling_rate, mark_kwargs):
        scale = np.nanmax(np.abs(self.sample), initial=0) or 1.0
        rate, name = (1, "Sample") if sampling_rate is None else (sampling_rate, "Seconds")
        times, places = np.arange(len(self.sample)) / rate, self.places[:, 0] / rate
        for channel in (0.45 * self.sample / scale).T:
            self.ax_.plot(times, channel, color="0.3", linewidth=0.8)
        names, marks, self.thumbnails_ = np.unique(self.atoms), [], []
        for row, atom in enumerate(names, start=1):
            own = self.atoms == atom
            heights = 0.45 * values[own] - row
            style = {"color": f"C{row - 1}", "linewidth": 1.5} | mark_kwargs
            self.ax_.axhline(-row, color="0.8", linewidth=0.5)
            marks.append(self.ax_.vlines(places[own], -row, heights, **style))
            if self.components is not None:
                self.thumbnails_.append(self._draw_waveform(atom, -row, f"C{row - 1}"))
        self.ax_.set_yticks(-np.arange(len(names) + 1), ["signal", *(f"atom {k}" for k in names)])
        self.ax_.set(xlabel=name, xlim=(0, times[-1]), ylim=(-len(names) - 0.6, 0.6))
        return marks

    def _draw_waveform(self, atom, height, color):  # -> list of Line2D
        wave = self.components[atom].reshape(self.components.shape[1], -1)
        wave = height + 0.4 * wave / (np.abs(wave).max() or 1.0)
        times = np.linspace(*_THUMBNAIL, len(wave))
        beside = self.ax_.get_yaxis_transform()  # x in widths of the axes
        style = {"color": color, "linewidth": 0.8, "transform": beside, "clip_on": False}
        return self.ax_.plot(times, wave, scalex=False, scaley=False, **style)

    def _plot_image(self, values, mark_kwargs):
        sample, marks = self.sample, []
        sample = sample[..., 0] if sample.shape[2:] == (1,) else sample
        self.ax_.imshow(sample, cmap="gray")
        for number, atom in enumerate(np.unique(self.atoms)):
            own = self.atoms == atom
            style = {"color": f"C{number}", "alpha": 0.7, "linewidths": 0, "label": f"atom {atom}"}
            style |= {"s": _DOT * np.abs(values[own])} | mark_kwargs
            row, column = self.places[own].T
            marks.append(self.ax_.scatter(column, row, **style))
        self.ax_.set_axis_off()
        if marks:
            place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
            self.ax_.legend(fontsize="small", **place)
        return marks
