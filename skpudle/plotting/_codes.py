"""Displays of codes: how many there are, and where they are in a signal or image."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing

from skpudle._data.images import covering_positions, sizes
from skpudle._learners.convolutional.base import stride_of
from skpudle.events import find_peaks
from skpudle.inspection._learner import encode_samples, find_learner, read_samples
from skpudle.plotting._display import Display, tick_whole_numbers

# approximate largest number of bins in a histogram of numbers of atoms
_BINS = 50
# area of the largest dot in points squared
_DOT = 120
# left and right end of the thumbnails of atoms, right of a signal, in widths of the axes
_THUMBNAIL = 1.02, 1.17


@dataclass(eq=False, repr=False)
class CodesDisplay(Display):
    """Which atoms samples use, how many, and how strongly.

    A sample of a convolutional learner, a signal or an image, has codes at many positions: copies
    of an atom are counted.

    Parameters
    ----------
    codes : ndarray of shape (n_codes, n_components)
        Codes.
    samples : ndarray of shape (n_codes,)
        The number of the sample of each row of codes.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    heights_ : ndarray
        Drawn values: for "usage" the number of uses of each atom in a sample, in falling order;
        for "count" and "magnitude" the number of samples, or of nonzero entries, in each bin.

    Notes
    -----
    The option ``kind`` of `plot` is "usage" by default: the mean number of uses of each atom in a
    sample, for rows the share of samples that use it. "count" is a histogram of the number of
    atoms, or copies, that a sample uses, and "magnitude" of the moduli of nonzero entries. Further
    options go to `matplotlib.axes.Axes.stairs` or `~matplotlib.axes.Axes.hist`.
    """

    codes: np.ndarray
    samples: np.ndarray

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, **options: Any) -> Self:
        """Draw a fitted learner's codes of samples.

        Parameters
        ----------
        estimator : estimator
            Fitted learner, with ``components_`` and ``transform``, or a pipeline or search with
            one.
        X : array-like
            Samples, as `transform` takes them.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        CodesDisplay
            The display, drawn.
        """
        found = find_learner(estimator)
        return cls(*encode_samples(found.learner, found.prepare(X))).plot(**options)

    def _draw(self, *, kind="usage", **style):
        used = self.codes != 0
        draw = {
            "usage": self._draw_usage,
            "count": self._draw_counts,
            "magnitude": self._draw_sizes,
        }
        draw[kind](used, style)
        tick_whole_numbers(self.ax_.yaxis if kind != "usage" else self.ax_.xaxis)

    def _draw_usage(self, used, style):
        self.heights_ = np.sort(used.sum(axis=0) / (self.samples[-1] + 1))[::-1]
        edges = np.arange(len(self.heights_) + 1) + 0.5
        self.ax_.stairs(self.heights_, edges, **({"fill": True} | style))
        self.ax_.set(xlabel="Atom, most used first", ylabel="Uses in a sample", ylim=(0, None))

    def _draw_counts(self, used, style):
        counts = np.bincount(self.samples, used.sum(axis=1)).astype(int)
        step = max(1, counts.max() // _BINS)
        bins = np.arange(0, counts.max() + step + 1, step) - 0.5
        self.heights_, _, _ = self.ax_.hist(counts, **({"bins": bins} | style))
        self.ax_.set(xlabel="Atoms that a sample uses", ylabel="Samples")
        tick_whole_numbers(self.ax_.xaxis)

    def _draw_sizes(self, used, style):
        moduli = np.abs(self.codes[used])
        self.heights_, _, _ = self.ax_.hist(moduli, **({"bins": _BINS} | style))
        self.ax_.set(xlabel="Modulus of a nonzero entry", ylabel="Entries")


@dataclass(eq=False, repr=False)
class ActivationsDisplay(Display):
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
    components : ndarray of shape (n_components, length[, n_channels])
        The atoms, which are drawn beside signals.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    marks_ : list of matplotlib Collection
        Bars or dots, one object for each atom, in the order of their numbers.
    thumbnails_ : list of list of matplotlib Line2D
        The waveforms of these atoms, a line for each channel; of signals only.

    Notes
    -----
    The option ``sampling_rate`` of `plot`, of signals only, is the number of samples in a second,
    and gives the axis seconds. Further options go to `matplotlib.axes.Axes.vlines` for signals, and
    to `~matplotlib.axes.Axes.scatter` for images.
    """

    sample: np.ndarray
    places: np.ndarray
    atoms: np.ndarray
    values: np.ndarray
    components: np.ndarray

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, *, index: int = 0, n_atoms: int = 10, **options: Any
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
        n_atoms : int, default=10
            Largest number of atoms to draw; the atoms with the largest sums of absolute codes are
            drawn.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        ActivationsDisplay
            The display, drawn.
        """
        found = find_learner(estimator)
        learner, X = found.learner, found.prepare(X)
        kernel, stride = sizes(learner.atom_shape, 1), stride_of(learner)
        samples = read_samples(learner, X)
        sample = samples[index]
        given = X if len(samples) == 1 else _safe_indexing(X, [index])  # with names of features
        codes, _ = encode_samples(learner, given)
        positions = covering_positions(sample.shape[1:], kernel, stride)
        sums = np.abs(codes).sum(axis=0)
        shown = np.isin(np.arange(len(sums)), np.argsort(-sums, kind="stable")[:n_atoms])
        rows, atoms = np.nonzero(codes * shown)
        places = np.stack(np.unravel_index(rows, positions), axis=1) * stride
        if len(kernel) == 1:
            places = places + find_peaks(learner.components_)[atoms, None]
        else:
            places = places + (np.asarray(kernel) - 1) / 2
        sample = np.moveaxis(sample, 0, -1)
        values = codes[rows, atoms]
        return cls(sample, places, atoms, values, learner.components_).plot(**options)

    def _draw(self, **options):
        values = self.values / (np.abs(self.values).max(initial=0) or 1.0)
        draw = self._draw_signal if self.places.shape[1] == 1 else self._draw_image
        self.marks_ = []
        draw(np.unique(self.atoms), values, **options)

    def _draw_signal(self, names, values, *, sampling_rate=None, **style):
        rate, name = (1, "Sample") if sampling_rate is None else (sampling_rate, "Seconds")
        times, self.thumbnails_ = np.arange(len(self.sample)) / rate, []
        signal = _scale(self.sample)
        self.ax_.plot(times, signal, color="0.3", linewidth=0.8)
        for row, atom in enumerate(names, start=1):
            own, color = self.atoms == atom, f"C{row - 1}"
            ends = self.places[own, 0] / rate, -row, 0.45 * values[own] - row
            bars = self.ax_.vlines(*ends, **({"color": color, "linewidth": 1.5} | style))
            self.marks_.append(bars)
            wave = _scale(self.components[atom]) - row
            beside = dict(transform=self.ax_.get_yaxis_transform(), clip_on=False)  # x in widths
            beside |= dict(color=color, linewidth=0.8, scalex=False, scaley=False)
            x = np.linspace(*_THUMBNAIL, len(wave))
            self.thumbnails_.append(self.ax_.plot(x, wave, **beside))
        ticks = -np.arange(len(names) + 1)
        self.ax_.hlines(ticks[1:], 0, times[-1], color="0.8", linewidth=0.5, zorder=0)
        self.ax_.set_yticks(ticks, ["signal", *(f"atom {k}" for k in names)])
        self.ax_.set(xlabel=name, xlim=(0, times[-1]), ylim=(-len(names) - 0.6, 0.6))

    def _draw_image(self, names, values, **style):
        self.ax_.imshow(self.sample, cmap="gray")
        for number, atom in enumerate(names):
            own = self.atoms == atom
            dots = {"color": f"C{number}", "alpha": 0.7, "linewidths": 0, "label": f"atom {atom}"}
            dots |= {"s": _DOT * np.abs(values[own])} | style
            row, column = self.places[own].T
            self.marks_.append(self.ax_.scatter(column, row, **dots))
        self.ax_.set_axis_off()
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        self.ax_.legend(handles=self.marks_, fontsize="small", **place)


def _scale(wave):  # -> the same, from -0.45 to 0.45
    return 0.45 * wave / (np.nanmax(np.abs(wave), initial=0) or 1.0)
