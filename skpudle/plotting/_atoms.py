"""Displays of atoms, of their places in samples, and of the training samples behind them.

Atoms are defined up to scale: each is drawn scaled to its own largest modulus. The cell in row i
and column j of a grid covers [j, j + 1] and, downwards, [i, i + 1], for images and lines alike.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils._param_validation import StrOptions, validate_parameter_constraints

from skpudle._data.arrays import host_array, to_numpy, to_tensor
from skpudle._data.foreign import dictionary_of
from skpudle._learners.convolutional.base import stride_of
from skpudle._operators._atoms import factor_atoms
from skpudle.events import find_learner_of_signals, find_peaks
from skpudle.inspection import atom_contributions, reconstruction_contributions
from skpudle.inspection._intervals import AtomIntervals
from skpudle.inspection._learner import encode_samples, find_learner, read_samples
from skpudle.plotting._display import Display, matplotlib

_KINDS = [StrOptions({"auto", "images", "lines", "spectra", "waveforms"})]
# height over width of a cell of lines, the share of the cell that lines fill, and its margin
_FLATNESS, _FILLED = 0.5, 0.9
_MARGIN = (1 - _FILLED) / 2
# height of the tallest bar, in distances of two spectra
_HEIGHT = 0.85
# opacity of bands, of bars without support, and of what covers other atoms without support
_BAND, _FADED, _COVER = 0.3, 0.25, 0.75
# levels of a topography
_LEVELS = 15
# largest entry of an atom that its map times its waveform may miss, relative to the largest entry
# of all atoms: well above rounding in float32
_NOT_RANK_ONE = 1e-3
# the most atoms whose contributions are drawn without being asked for, and samples beside each
_N_TARGETS, _N_LARGEST = 6, 6
# height of the largest bar or wave, in distances of rows
_REACH = 0.45
# left and right end of the thumbnails of atoms, right of a signal, in widths of the axes
_THUMBNAIL = 1.02, 1.17


def _as_pictures(atoms, kind="auto", image_shape=None):
    """Return the kind of atoms, and atoms with the shape of pictures of this kind.

    Channels of images that are no colours become images side by side.
    """
    shape = atoms.shape[1:] if image_shape is None else tuple(image_shape)
    if kind == "auto":
        kind = "images" if len(shape) > 1 else "lines"
    if len(shape) == 1:
        shape = (math.isqrt(shape[0]),) * 2 if kind == "images" else (*shape, 1)
    if kind == "images" and len(shape) == 3 and shape[2] != 3:
        atoms = atoms.reshape(-1, *shape).swapaxes(2, 3)
        shape = shape[0], shape[1] * shape[2]
    return kind, atoms.reshape(len(atoms), *shape)


def _largest(pictures):  # -> (n_atoms, 1, 1[, 1])
    largest = np.abs(pictures).max(axis=tuple(range(1, pictures.ndim)), keepdims=True)
    return np.where(largest > 0, largest, 1)


@dataclass(eq=False, repr=False)
class AtomsDisplay(Display):
    """Atoms as images or lines in a grid, as bars, or as maps with waveforms.

    Every atom is scaled to its own largest modulus, since atoms are defined up to scale. Zero is
    mid-grey in images, and the thin line behind lines. Channels of a signal are lines of several
    colours. Spectra are bars, one spectrum below the other. Waveforms are of atoms of rank one, a
    row each: the map over the channels on the left, the waveform on the right.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        The atoms in the order of drawing, row by row.
    kind : {"images", "lines", "spectra", "waveforms"}, default="images"
        How atoms are drawn. Spectra are not negative and have one channel.
    lower, upper : ndarray of the shape of atoms, default=None
        Ends of intervals: bands around lines, error bars of spectra. Entries of images whose
        interval holds 0 are left out, and such bars fade.
    supported : ndarray of shape (n_atoms,), bool, default=None
        False for the atoms to fade.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    image_ : matplotlib AxesImage
        The grid of images.
    lines_ : list of matplotlib Line2D
        The lines, one object for each channel of all atoms, or the waveform of each atom.
    bands_ : list of matplotlib PolyCollection
        The bands, one object for each channel of all atoms.
    bars_ : matplotlib BarContainer
        The bars of the spectra, one spectrum after the other.
    axes_ : ndarray of shape (n_atoms, 2) of matplotlib Axes
        Axes of the maps and waveforms, in the place of ``ax_``.
    maps_ : list of matplotlib Artist
        The map of each atom, as bars or filled contours.

    Notes
    -----
    Options of `plot` are ``row_labels``, names of the rows of the grid, or of spectra and atoms;
    for images and lines ``n_columns``, the atoms in a row; for lines and waveforms
    ``sampling_rate``, the numbers in a second, which shows lengths of time; for spectra ``groups``,
    the label of the group of each channel, and ``colors``, a colour for each group, in their order;
    for waveforms ``positions`` of shape (n_channels, 2), places of channels in a plane, for
    topographies instead of bars. Further options go to `imshow`, `plot` or `bar` of
    `matplotlib.axes.Axes`.
    """

    atoms: np.ndarray
    kind: Literal["images", "lines", "spectra", "waveforms"] = "images"
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    supported: np.ndarray | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        *,
        kind: str = "auto",
        image_shape: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Self:
        """Draw the atoms of a fitted learner, or an array of atoms, or atoms with their intervals.

        Parameters
        ----------
        estimator : estimator, AtomIntervals or array-like
            Fitted learner, or a pipeline or search with one. Atoms of a pipeline are drawn in the
            features of its data if every step before the learner is affine and can be undone
            (centring, scaling, principal components), and else in the learner's features. Or the
            result of `skpudle.inspection.atom_intervals`: lines get bands, spectra get error bars,
            and atoms and entries without support by the data fade. Or atoms, (n_components,
            n_features), (n_components, height, width[, 3]) or (n_components, length, n_channels).
        X : array-like, default=None
            Samples, as `transform` takes them; if given, the atoms that most samples use come
            first.
        kind : {"auto", "images", "lines", "spectra", "waveforms"}, default="auto"
            "auto": rows are lines, unless ``image_shape`` says otherwise; arrays of more axes are
            images. "images": rows without ``image_shape`` become squares. Convolutional atoms have
            their shape already; atoms of signals are lines.
        image_shape : tuple of int, default=None
            Shape that the features of an atom are reshaped to: of images (height, width) or
            (height, width, 3), of lines and waveforms (length, n_channels). Channels of images that
            are no colours are drawn side by side.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        AtomsDisplay
            The display, drawn.
        """
        validate_parameter_constraints({"kind": _KINDS}, {"kind": kind}, "from_estimator")
        supported = None
        if isinstance(estimator, AtomIntervals):
            parts, supported = estimator[:3], estimator.supported
        elif not hasattr(estimator, "fit"):
            parts = [dictionary_of(estimator)]
        else:
            found = find_learner(estimator)
            parts = [found.atoms()]
            if X is not None:
                codes, _ = encode_samples(found.learner, found.prepare(X))
                most_used = np.argsort(-np.count_nonzero(codes, axis=0), kind="stable")
                parts = [parts[0][most_used]]
            if kind == "auto" and np.size(getattr(found.learner, "atom_shape", ())) == 1:
                kind = "lines"
        parts = [check_array(part, allow_nd=True, input_name="atoms") for part in parts]
        kinds, pictures = zip(*(_as_pictures(part, kind, image_shape) for part in parts))
        ends = dict(zip(("lower", "upper"), pictures[1:]))
        return cls(pictures[0], kinds[0], **ends, supported=supported).plot(**options)

    def _grid(self, n_columns):  # -> numbers of rows and columns, by default of about a square
        flatness = _FLATNESS if self.kind == "lines" else 1
        n_columns = n_columns or math.ceil(math.sqrt(len(self.atoms) * flatness))
        return math.ceil(len(self.atoms) / n_columns), n_columns

    def _size(self, n_columns=None, **_):
        if self.kind == "spectra":
            return 8.0, 0.9 * len(self.atoms) + 0.9
        if self.kind == "waveforms":
            return 6.4, 1.6 * len(self.atoms) + 0.4
        n_rows, n_columns = self._grid(n_columns)
        sides = n_columns, n_rows * _FLATNESS
        if self.kind == "images":
            height, width = self.atoms.shape[1:3]
            sides = n_columns * (width + 1) - 1, n_rows * (height + 1) - 1
        return [max(1.5, 6.4 * side / max(sides)) for side in sides]

    def _draw(self, **options):
        getattr(self, f"_draw_{self.kind}")(**options)

    def _finish_grid(self, n_rows, n_columns, row_labels):
        """Cover atoms without support, and name rows on their left, without ticks or a frame."""
        if self.supported is not None:
            row, column = np.divmod(np.flatnonzero(~self.supported), n_columns)
            self.ax_.autoscale(False)  # covers change no limits
            cover = dict(color="white", alpha=_COVER, linewidth=0, zorder=3)
            self.ax_.bar(column, 1, 1, row, align="edge", **cover)
        if row_labels is None:
            self.ax_.set_axis_off()
        else:
            self.ax_.set_yticks(np.arange(n_rows) + 0.5, row_labels)
            self.ax_.set_xticks([])
            self.ax_.tick_params(length=0)
            self.ax_.set_frame_on(False)

    def _draw_images(self, *, n_columns=None, row_labels=None, **style):
        n_atoms, height, width, *colours = self.atoms.shape
        n_rows, n_columns = self._grid(n_columns)
        images = self.atoms / _largest(self.atoms)
        if self.lower is not None:
            images = np.where((self.lower > 0) | (self.upper < 0), images, 0.0)
        grid = np.full((n_rows * n_columns, height + 1, width + 1, *colours), np.nan)
        grid[:n_atoms, :height, :width] = images
        grid = grid.reshape(n_rows, n_columns, *grid.shape[1:]).swapaxes(1, 2)
        grid = grid.reshape(n_rows * (height + 1), n_columns * (width + 1), *colours)
        grid = grid[:-1, :-1]  # no line after the last row and column
        if colours:  # colours from 0 to 1, with white lines between
            grid = np.nan_to_num(0.5 + 0.5 * grid, nan=1.0)
        right, bottom = n_columns - 1 / (width + 1), n_rows - 1 / (height + 1)
        greys = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
        cells = {"extent": (0, right, bottom, 0), "aspect": (height + 1) / (width + 1)}
        self.image_ = self.ax_.imshow(grid, **(greys | cells | style))
        self._finish_grid(n_rows, n_columns, row_labels)

    def _draw_lines(self, *, n_columns=None, row_labels=None, sampling_rate=None, **style):
        n_atoms, length, n_channels = self.atoms.shape
        n_rows, n_columns = self._grid(n_columns)
        row, column = np.divmod(np.arange(n_atoms), n_columns)
        ends = column + _MARGIN, column + 1 - _MARGIN
        self.ax_.hlines(row + 0.5, *ends, color="0.8", linewidth=0.5)
        gap = np.full((n_atoms, 1), np.nan)  # separates neighbouring atoms
        x = np.hstack([np.linspace(*ends, length, axis=1), gap]).ravel()
        largest = _largest(self.atoms)

        def heights(values, channel):  # -> ordinates, with gaps
            scaled = (values / largest)[:, :, channel]
            return np.hstack([row[:, None] + 0.5 - _FILLED / 2 * scaled, gap]).ravel()

        self.lines_, self.bands_ = [], []
        for channel in range(n_channels):
            own = {"linewidth": 1, "color": f"C{channel}", "label": f"channel {channel}"} | style
            self.lines_ += self.ax_.plot(x, heights(self.atoms, channel), **own)
            if self.lower is not None:
                low, high = (heights(end, channel) for end in (self.lower, self.upper))
                band = dict(color=own["color"], alpha=_BAND, linewidth=0)
                self.bands_.append(self.ax_.fill_between(x, low, high, **band))
        self.ax_.set(xlim=(0, n_columns), ylim=(n_rows, 0))
        if 1 < n_channels <= 10:  # matplotlib has ten colours
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
            self.ax_.legend(
                handles=self.lines_, ncols=min(n_channels, 5), fontsize="small", **place
            )
        if sampling_rate is not None:  # the length of an atom in seconds, below the first line
            bar = dict(color="0.3", linewidth=1.5, clip_on=False)
            self.ax_.plot([_MARGIN, 1 - _MARGIN], [n_rows, n_rows], **bar)
            place = {"ha": "center", "va": "top", "fontsize": "small", "linespacing": 0.3}
            self.ax_.text(0.5, n_rows, f"\n{(length - 1) / sampling_rate:.3g} s", **place)
        self._finish_grid(n_rows, n_columns, row_labels)

    def _draw_spectra(self, *, groups=None, colors=None, row_labels=None, **style):
        n_spectra, n_channels = self.atoms.shape[:2]
        groups = [""] * n_channels if groups is None else list(groups)
        labels = list(dict.fromkeys(groups))
        colors = [f"C{i % 10}" for i in range(len(labels))] if colors is None else colors
        colors = dict(zip(labels, matplotlib().colors.to_rgba_array(colors), strict=True))
        place = dict(ha="center", va="bottom", transform=self.ax_.get_xaxis_transform())
        of_channels = zip(groups, range(n_channels), strict=True)
        for label, run in groupby(of_channels, key=lambda pair: pair[0]):
            middle = np.mean([channel for _, channel in run])
            self.ax_.text(middle, 1.01, label, color=colors[label], **place)

        unit = _HEIGHT / np.maximum(self.atoms.max(axis=(1, 2)), np.finfo(float).tiny)[:, None]
        heights, bottoms = unit * self.atoms[:, :, 0], np.arange(n_spectra)[::-1]
        shades = np.tile([colors[label] for label in groups], (n_spectra, 1))
        if self.lower is not None:
            low, high = (np.clip(unit * end[:, :, 0], 0, 1) for end in (self.lower, self.upper))
            counts = (low > 0) & self.supported[:, None]
            shades[:, 3] = np.where(counts, 1.0, _FADED).ravel()
            ends = np.maximum([heights - low, high - heights], 0).reshape(2, -1)
            style = {"yerr": ends, "error_kw": {"ecolor": "0.3", "elinewidth": 0.8}} | style
        channels = np.tile(np.arange(n_channels), n_spectra)
        style = {"color": shades, "bottom": bottoms.repeat(n_channels)} | style
        self.bars_ = self.ax_.bar(channels, heights.ravel(), **style)
        self.ax_.hlines(bottoms, -1, n_channels, color="black", linewidth=0.5)
        names = range(n_spectra) if row_labels is None else row_labels
        self.ax_.set_yticks(bottoms + _HEIGHT / 2, names)
        self.ax_.set(xlim=(-1, n_channels), ylim=(0, n_spectra), xlabel="Channel")
        self.ax_.tick_params(left=False)

    def _draw_waveforms(self, *, positions=None, sampling_rate=None, row_labels=None, **style):
        maps, waves = map(to_numpy, factor_atoms(to_tensor(self.atoms.swapaxes(1, 2))))
        missed = np.abs(self.atoms - waves[:, :, None] * maps[:, None]).max()
        if missed > _NOT_RANK_ONE * np.abs(self.atoms).max():
            raise ValueError(
                "These atoms are no maps times waveforms. Pass a ConvPUDLEDictionaryLearning with "
                "rank=1, or draw lines."
            )
        self.axes_ = self.ax_.get_subplotspec().subgridspec(len(maps), 2).subplots(squeeze=False)
        self.ax_.set_axis_off()
        names = [f"atom {k}" for k in range(len(maps))] if row_labels is None else row_labels
        times = np.arange(waves.shape[1]) / (sampling_rate or 1)
        self.maps_, self.lines_ = [], []
        for (left, right), map_, wave, name in zip(self.axes_, maps, waves, names, strict=True):
            if positions is None:
                left.axhline(0, color="0.8", linewidth=0.5)
                self.maps_.append(left.bar(np.arange(len(map_)), map_))
            else:
                self.maps_.append(_draw_topography(left, map_, *np.transpose(positions)))
            left.set_title(name, fontsize="medium")
            self.lines_ += right.plot(times, wave, **({"color": "C0"} | style))
            right.axhline(0, color="0.8", linewidth=0.5)
        right.set_xlabel("Sample" if sampling_rate is None else "Seconds")


def _draw_topography(ax, map_, x, y):
    largest = np.abs(map_).max() or 1.0
    levels = np.linspace(-largest, largest, _LEVELS)
    contours = ax.tricontourf(x, y, map_, levels=levels, cmap="RdBu_r")
    ax.plot(x, y, "k.", markersize=2)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return contours


@dataclass(eq=False, repr=False)
class ContributionsDisplay(Display):
    """Atoms or reconstructions next to the training samples that make them, a row each.

    A row shows an atom or sample, its estimate from all contributions, and the six training samples
    with the largest contributions. A training sample is drawn with the sign of its contribution,
    which is written on it. All are images or lines, as in `AtomsDisplay`.

    Parameters
    ----------
    pictures : ndarray of shape (n_targets, 2 + n_largest, height, width[, 3]) or \
            (n_targets, 2 + n_largest, length, n_channels)
        Images or lines, row by row.
    values : ndarray of shape (n_targets, n_largest)
        The contributions.
    row_labels : list of str
        Names of the rows.
    kind : {"images", "lines"}, default="images"
        Whether pictures are images or lines.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    grid_ : AtomsDisplay
        The pictures.
    """

    pictures: np.ndarray
    values: np.ndarray
    row_labels: list[str]
    kind: Literal["images", "lines"] = "images"

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_train: ArrayLike,
        X: ArrayLike | None = None,
        *,
        image_shape: tuple[int, ...] | None = None,
        **options: Any,
    ) -> Self:
        """Draw the training samples behind a learner's atoms, or behind its reconstructions.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_`` of rows and ``transform``, or a pipeline or search with
            such a learner; samples are drawn as the learner gets them, in the features of the data.
        X_train : array-like of shape (n_train, n_features)
            The training samples.
        X : array-like of shape (n_samples, n_features), default=None
            Samples to draw the reconstructions of; by default the six atoms are drawn that training
            samples use most.
        image_shape : tuple of int, default=None
            As in `AtomsDisplay.from_estimator`; None: lines.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        ContributionsDisplay
            The display, drawn.
        """
        found = find_learner(estimator)
        X_train, learner = found.prepare(X_train), found.learner
        samples = check_array(host_array(X_train), input_name="X_train")
        n_largest = min(_N_LARGEST, len(samples))
        if X is None:
            name, targets = "atom", learner.components_
            made = atom_contributions(learner, X_train, n_largest=n_largest)
            n_uses = np.count_nonzero(encode_samples(learner, X_train)[0], axis=0)
            rows = np.argsort(-n_uses, kind="stable")[:_N_TARGETS]
        else:
            X = found.prepare(X)
            name, targets = "sample", check_array(host_array(X), input_name="X")
            made = reconstruction_contributions(learner, X_train, X, n_largest=n_largest)
            rows = np.arange(len(targets))
        values = made.values[rows]
        made_of = samples[made.indices[rows]] * np.sign(values)[:, :, None]
        firsts = targets[rows][:, None], made.estimates[rows][:, None]
        together = np.concatenate([*firsts, made_of], axis=1)
        flat = found.to_data(together.reshape(-1, together.shape[2]))
        kind, pictures = _as_pictures(flat, image_shape=image_shape)
        pictures = pictures.reshape(*together.shape[:2], *pictures.shape[1:])
        names = [f"{name} {row}" for row in rows]
        return cls(pictures, values, names, kind).plot(**options)

    def _size(self, **_):
        n_rows, n_columns = self.pictures.shape[:2]
        return 0.9 * n_columns + 0.7, 0.95 * n_rows + 0.3  # names included

    def _draw(self, **style):
        n_columns = self.pictures.shape[1]
        grid = AtomsDisplay(self.pictures.reshape(-1, *self.pictures.shape[2:]), self.kind)
        given = dict(ax=self.ax_, n_columns=n_columns, row_labels=self.row_labels)
        self.grid_ = grid.plot(**given, **style)
        names = ["target", "estimate", *range(1, n_columns - 1)]
        self.ax_.set_xticks(np.arange(n_columns) + 0.5, names)
        self.ax_.xaxis.tick_top()
        alpha = 0.8 if self.kind == "images" else 0  # keep lines visible
        box = {"facecolor": "white", "alpha": alpha, "pad": 1, "linewidth": 0}
        for (i, j), value in np.ndenumerate(self.values):
            self.ax_.text(j + 2, i, f"{value:+.2g}", size=7, va="top", ha="left", bbox=box)


@dataclass(eq=False, repr=False)
class ActivationsDisplay(Display):
    """Where in a signal the atoms of a convolutional learner are active.

    The signal is drawn in the first row, and each atom has a row below, with its waveform on the
    right. A bar marks the peak of each of its copies, where the waveform has its largest magnitude
    (with several channels, its largest norm), as in `skpudle.events.find_events`. The bar is as
    high as the code, downwards where the code is negative.

    Parameters
    ----------
    sample : ndarray of shape (length, n_channels)
        The signal.
    places : ndarray of shape (n_uses,)
        Peaks of the copies of atoms, in samples.
    atoms : ndarray of shape (n_uses,)
        The atom of each copy.
    values : ndarray of shape (n_uses,)
        Their codes.
    components : ndarray of shape (n_components, length[, n_channels])
        The atoms.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    marks_ : list of matplotlib LineCollection
        Bars, one object for each atom, in the order of their numbers.
    thumbnails_ : list of list of matplotlib Line2D
        The waveforms of these atoms, a line for each channel.

    Notes
    -----
    The option ``sampling_rate`` of `plot` is the number of samples in a second, and gives the axis
    seconds. Further options go to `matplotlib.axes.Axes.vlines`.
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
        """Draw where a fitted convolutional learner finds its atoms in one signal.

        Parameters
        ----------
        estimator : estimator
            Fitted `skpudle.ConvPUDLEDictionaryLearning` for signals, or a pipeline or search with
            one.
        X : array-like or list of signals
            Signals or rows, as `transform` takes them.
        index : int, default=0
            Number of the signal to draw.
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
        found = find_learner_of_signals(estimator)
        learner, X = found.learner, found.prepare(X)
        samples = read_samples(learner, X)
        given = X if len(samples) == 1 else _safe_indexing(X, [index])  # with names of features
        codes, _ = encode_samples(learner, given)
        sums = np.abs(codes).sum(axis=0)
        shown = np.isin(np.arange(len(sums)), np.argsort(-sums, kind="stable")[:n_atoms])
        rows, atoms = np.nonzero(codes * shown)
        places = rows * stride_of(learner)[0] + find_peaks(learner.components_)[atoms]
        given = samples[index].T, places, atoms, codes[rows, atoms], learner.components_
        return cls(*given).plot(**options)

    def _draw(self, *, sampling_rate=None, **style):
        names, values = np.unique(self.atoms), _scale(self.values)
        rate, name = (1, "Sample") if sampling_rate is None else (sampling_rate, "Seconds")
        times, self.marks_, self.thumbnails_ = np.arange(len(self.sample)) / rate, [], []
        self.ax_.plot(times, _scale(self.sample), color="0.3", linewidth=0.8)
        for row, atom in enumerate(names, start=1):
            own, color = self.atoms == atom, f"C{row - 1}"
            ends = self.places[own] / rate, -row, values[own] - row
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


def _scale(wave):  # -> the same, within the reach
    return _REACH * wave / (np.nanmax(np.abs(wave), initial=0) or 1.0)
