"""Plots of dictionaries, codes and training, by scikit-learn's Display convention.

A Display holds arrays, and its method ``plot`` draws them. The class method ``from_estimator``
computes the arrays from a fitted learner and draws them at once. Call ``plot`` again to draw on
other axes or in another style. matplotlib is imported on the first drawing.

======================  =======================================================================
`AtomsDisplay`          the atoms of a dictionary as images, lines, bars, or maps and waveforms
`ActivationsDisplay`    where in a signal or image the atoms of a convolutional learner are active
`LossCurveDisplay`      loss against epochs, one line per learner
`CodesDisplay`          how often each atom is used, how many atoms a sample uses, how strongly
`RecoveryDisplay`       coherences between learned and known atoms as a matrix
`ContributionsDisplay`  atoms or reconstructions next to the training samples that make them
`PathDisplay`           the numbers of atoms, or penalties, that were tried, and which was chosen
`StabilityDisplay`      how stable atoms are, of a consensus or of dictionaries of several sizes
======================  =======================================================================

The scale of an atom has no meaning, so images, lines and spectra of atoms are divided by the
largest modulus of each atom. Images and lines are drawn in a grid of cells, one atom in each, row
by row. The cell in row i and column j covers [j, j + 1] on the horizontal axis and [i, i + 1] on
the vertical axis, which points downwards. The modulus of the cosine of two atoms is their
coherence.
"""

import math
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import _safe_indexing, check_array

from skpudle._compilation import import_extra
from skpudle._data.arrays import dictionary_of, to_numpy, to_tensor
from skpudle._estimators import encode_samples, find_learner, read_samples
from skpudle._learners.convolutional.base import geometry_of
from skpudle._operators._atoms import factor_atoms
from skpudle.events import (
    check_rate,
    find_learner_of_signals,
    find_peaks,
)
from skpudle.inspection._contributions import (
    atom_contributions,
    reconstruction_contributions,
)
from skpudle.inspection._intervals import AtomIntervals
from skpudle.metrics import atom_cosines, dictionary_stability, match_atoms

__all__ = [
    "ActivationsDisplay",
    "AtomsDisplay",
    "CodesDisplay",
    "ContributionsDisplay",
    "LossCurveDisplay",
    "PathDisplay",
    "RecoveryDisplay",
    "StabilityDisplay",
]

# A grid of lines has a cell for each atom. This is the height of a cell over its width.
_FLATNESS = 0.5
# Fraction of the height, and of the width, of a cell that the line of its atom fills.
_FILLED = 0.9
# Empty margin on each side of a cell of a grid of lines, as a fraction of the cell's width.
_MARGIN = (1 - _FILLED) / 2
# Height of the tallest bar of a spectrum, as a fraction of the distance between two spectra.
_HEIGHT = 0.85
# Number of bins of the histogram of magnitudes of codes. The histogram of numbers of atoms, whose
# bins have integer widths, has up to twice this number of bins.
_BINS = 50


def check_kind(kind, *kinds):
    """Raise ValueError, which lists the allowed ``kinds``, if the user's ``kind`` is another."""
    if kind not in kinds:
        raise ValueError(
            f"kind={kind!r:.50} is unknown. Pass one of {', '.join(kinds)}."
        )


class Display:
    """Base class of all displays.

    A subclass is a dataclass of arrays. It draws them on ``self.ax_`` in ``_draw(**options)``, and
    may choose the size of a new figure in ``_size(**options)``. Both get the options of `plot`.
    """

    def plot(self, *, ax: Any = None, **options: Any) -> Self:
        """Draw the display.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default the axes of a new figure.
        **options : dict
            Options that the notes of the class describe. Further options are passed to the
            matplotlib function that the notes name.

        Returns
        -------
        Display
            This object, with the attributes ``ax_`` and ``figure_`` and the further attributes that
            the class describes.

        Raises
        ------
        ImportError
            If ``ax`` is None and matplotlib is not installed.
        """
        if ax is None:
            new = import_extra("plot", "matplotlib.pyplot").subplots
            ax = new(layout="constrained", figsize=self._size(**options))[1]
        self.ax_ = ax
        self.figure_ = ax.figure
        self._draw(**options)
        return self

    def _size(self, **options):
        """Return (width, height) of a new figure in inches, or None for matplotlib's default."""


def _as_pictures(atoms, kind="auto", image_shape=None):
    """Reshape atoms for drawing, and choose between images and lines.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, ...)
        Atoms; ``image_shape``, a tuple, replaces the shape of each atom if it is not None.
    kind : {"auto", "images", "lines", "bars", "spectra", "waveforms"}
        "auto" stands for images if an atom has two axes or more, else for lines.

    Returns
    -------
    kind : str
        The kind, never "auto".
    atoms : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        Images, or atoms of any other kind. The channels of an image are drawn side by side, along
        its width, unless there are 3 channels. Images of one axis become squares.
    """
    shape = atoms.shape[1:] if image_shape is None else tuple(image_shape)
    if math.prod(shape) != math.prod(atoms.shape[1:]):
        raise ValueError(
            f"Atoms have {math.prod(atoms.shape[1:])} features, and image_shape={shape} has "
            f"{math.prod(shape)}. Pass a shape with as many entries as features."
        )
    if kind == "auto":
        kind = "images" if len(shape) > 1 else "lines"
    if len(shape) == 1 and kind == "images":
        side = math.isqrt(shape[0])
        shape = (side, side)
    elif len(shape) == 1:
        shape = (shape[0], 1)
    if kind == "images" and len(shape) == 3 and shape[2] != 3:
        height, width, n_channels = shape
        atoms = atoms.reshape((-1, *shape)).swapaxes(2, 3)
        shape = (height, width * n_channels)
    return kind, atoms.reshape((len(atoms), *shape))


def _join_slices(
    atoms,
):  # (n, depth, height, width, ...) -> (n, height, depth * width, ...)
    """Put the slices of volumes, or the frames of films, side by side."""
    atoms = atoms.swapaxes(1, 2)
    return atoms.reshape((*atoms.shape[:2], -1, *atoms.shape[4:]))


def _most_used(codes):  # (n, n_components) -> (n_components,)
    """Return the indices of all atoms, the atom with the most nonzero codes first."""
    return np.argsort(-np.count_nonzero(codes, axis=0), kind="stable")


def _largest(pictures):  # (n_atoms, ...) -> (n_atoms, 1, ...)
    """Return the largest modulus of each picture, by which pictures are divided; 1 instead of 0.

    NaN is ignored.
    """
    axes = tuple(range(1, pictures.ndim))
    largest = np.nanmax(np.abs(pictures), axes, keepdims=True, initial=0)
    return np.where(largest > 0, largest, 1)


def _scale(wave):  # (length[, n_channels]) -> the same shape
    """Scale a signal to a largest modulus of 0.45, so that it fits into a row of height 1."""
    return _FILLED / 2 * wave / _largest(wave[None])[0]


@dataclass(eq=False, repr=False)
class AtomsDisplay(Display):
    """Atoms as images or lines in a grid, as bars, or as maps with waveforms.

    Atoms of a table whose columns have names are bars, one atom below the other, with the names of
    the columns. If codes may be negative, an atom and its negative are the same: the bars then show
    the sign for which the largest entry points up.

    Every atom is divided by its own largest modulus, since the scale of an atom has no meaning.
    Zero is mid-grey in images. Slices of a volume, or frames of a film, are side by side. In a grid
    of lines a thin grey line marks zero, and channels of a signal have different colours. Spectra
    are bars, one spectrum below the other. The kind "waveforms" is for atoms of rank one: an atom
    is the outer product of a map, with a number for each channel, and a waveform. Each atom has a
    row with the map on the left and the waveform on the right, both in their own scale. Atoms of
    one channel have no map.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        The atoms in the order of drawing, row by row: images, or atoms of another kind.
    kind : {"images", "lines", "bars", "spectra", "waveforms"}, default="images"
        How atoms are drawn. Spectra are non-negative and have n_channels = 1.
    lower, upper : ndarray of the shape of atoms, default=None
        Ends of intervals of the atoms' entries, drawn as bands around lines or error bars of
        spectra. An entry whose interval contains 0 is drawn as 0 in an image, and its bar is faint
        in a spectrum.
    supported : ndarray of shape (n_atoms,), bool, default=None
        False for atoms that the data do not support; they are drawn faint.
    feature_names : ndarray of shape (length,) of str, default=None
        Names of the features, written below "bars".

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    image_ : matplotlib AxesImage
        The grid of all atoms as one image (kind "images").
    lines_ : list of matplotlib Line2D
        For "lines" one line per channel, which runs through all atoms; for "waveforms" the waveform
        of each atom.
    bands_ : list of matplotlib PolyCollection
        The intervals of "lines", one object per channel for all atoms.
    bars_ : matplotlib BarContainer
        The bars of "bars" and "spectra", one atom after the other.
    axes_ : ndarray of shape (n_atoms, 2) of matplotlib Axes
        Axes of the maps and waveforms of "waveforms", which cover ``ax_``; for atoms of one channel
        (n_atoms, 1), of waveforms.
    maps_ : list of matplotlib Artist
        The map of each atom of "waveforms", as bars or filled contours.

    Notes
    -----
    Options of `plot` are ``row_labels``, names of the rows of the grid, or of the atoms of bars,
    spectra and "waveforms"; for images and lines ``n_columns``, the number of atoms in a row; for
    lines and waveforms ``sampling_rate``, the number of samples in a second, which adds ticks of
    time; for spectra ``groups``, a label for each channel, and ``colors``, a colour for each
    different label in the order of their first channels; for waveforms ``positions`` of shape
    (n_channels, 2), the positions of channels in a plane, which draws maps as topographies instead
    of bars. Further options go to `imshow`, `plot` or `bar` of `matplotlib.axes.Axes`.
    """

    atoms: np.ndarray
    kind: Literal["images", "lines", "bars", "spectra", "waveforms"] = "images"
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    supported: np.ndarray | None = None
    feature_names: np.ndarray | None = None

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
        """Draw the atoms of a fitted learner, an array of atoms, or atoms with their intervals.

        Parameters
        ----------
        estimator : estimator, AtomIntervals or array-like
            (1) A fitted learner, or a pipeline or search with one. Atoms of a pipeline are drawn in
            the features of its data if every step before the learner has an affine inverse
            (centring, scaling, principal components), and else in the learner's features. (2) The
            result of `skpudle.inspection.atom_intervals`: lines get bands, spectra get error bars,
            and atoms and entries that the data do not support are drawn faint. (3) An array of
            atoms, (n_components, n_features), (n_components, height, width[, 3]) or (n_components,
            length, n_channels).
        X : array-like, default=None
            Samples, as ``transform`` takes them. Atoms are then sorted by their number of nonzero
            codes, the largest number first.
        kind : {"auto", "images", "lines", "bars", "spectra", "waveforms"}, default="auto"
            "auto": lines for convolutional atoms of signals; for atoms of one axis without an
            ``image_shape`` bars if the features have names, else lines; images for all other atoms.
            "images": atoms of one axis without ``image_shape`` become squares. "spectra": bars of
            non-negative atoms. "waveforms": for each atom a map over channels and a waveform.
        image_shape : tuple of int, default=None
            Shape that the features of an atom are reshaped to: (height, width) or (height, width,
            n_channels) for images, (length, n_channels) for lines and waveforms. If an image does
            not have 3 channels, its channels are drawn side by side.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        AtomsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If ``kind`` is unknown, if an atom does not have as many entries as ``image_shape``, or
            if atoms for "waveforms" are not of rank one.
        """
        check_kind(kind, "auto", "images", "lines", "bars", "spectra", "waveforms")
        if isinstance(estimator, AtomIntervals):
            # the estimates, lower ends and upper ends of the intervals, reshaped together
            atoms = check_array(np.concatenate(estimator[:3]), input_name="atoms")
            kind, pictures = _as_pictures(atoms, kind, image_shape)
            estimate, lower, upper = np.split(pictures, 3)
            display = cls(estimate, kind, lower, upper, estimator.supported)
            return display.plot(**options)
        names = None
        is_signed = False
        if X is not None or hasattr(estimator, "fit"):
            found_learner = find_learner(estimator)
            learner = found_learner.learner
            atoms = found_learner.atoms()
            if X is not None:
                atoms = atoms[_most_used(found_learner.encode(X)[0])]
            n_axes = np.size(getattr(learner, "atom_shape", ()))
            if kind == "auto" and n_axes == 1:
                kind = "lines"
            elif n_axes == 3:
                atoms = _join_slices(atoms)
            names = getattr(estimator, "feature_names_in_", None)
            if names is not None and len(names) != atoms.shape[1]:
                names = None
            if kind == "auto" and names is not None and image_shape is None:
                kind = "bars"
            is_signed = not getattr(learner, "positive_code", False)
        else:
            atoms = dictionary_of(estimator)
        atoms = check_array(atoms, allow_nd=True, input_name="atoms")
        kind, pictures = _as_pictures(atoms, kind, image_shape)
        if kind == "bars" and is_signed:
            points_down = -pictures.min(axis=1) > pictures.max(axis=1)
            pictures = np.where(points_down[:, None], -pictures, pictures)
        return cls(pictures, kind, feature_names=names).plot(**options)

    def _grid(self, n_columns):  # -> n_rows, n_columns
        """Return the size of the grid of atoms; with ``n_columns`` None it is about square."""
        flatness = _FLATNESS if self.kind == "lines" else 1
        n_columns = n_columns or math.ceil(math.sqrt(len(self.atoms) * flatness))
        return math.ceil(len(self.atoms) / n_columns), n_columns

    def _size(self, n_columns=None, **_):  # -> width, height in inches
        # A row of bars or waveforms is 1.2 inches high. The longer side of a grid is 6.4 inches,
        # and the other side in proportion, but at least 1.5.
        if self.kind in ("bars", "spectra", "waveforms"):
            return 7.0, 1.2 * len(self.atoms) + 0.6
        cell = self.atoms.shape[1:3] if self.kind == "images" else (_FLATNESS, 1)
        height, width = np.multiply(self._grid(n_columns), cell)
        return np.maximum(1.5, np.array([width, height]) * 6.4 / max(width, height))

    def _draw(self, **options):  # by the method of the kind, such as `_draw_images`
        getattr(self, f"_draw_{self.kind}")(**options)

    def _set_grid(self, n_columns, row_labels):  # -> n_rows, n_columns
        """Set limits and row labels of the axes, and draw a pale cover over unsupported atoms.

        ``n_columns`` None makes the grid about square; ``row_labels`` None writes no labels.
        """
        n_rows, n_columns = self._grid(n_columns)
        middles = [] if row_labels is None else np.arange(n_rows) + 0.5
        self.ax_.set_yticks(middles, row_labels)
        self.ax_.set(
            xticks=[],
            xlim=(0, n_columns),
            ylim=(n_rows, 0),
            frame_on=False,
        )
        self.ax_.tick_params(length=0)
        if self.supported is not None:
            row, column = np.divmod(np.flatnonzero(~self.supported), n_columns)
            self.ax_.bar(
                column,
                height=1,
                width=1,
                bottom=row,
                align="edge",
                color="white",
                alpha=0.75,
                linewidth=0,
                zorder=3,
            )
        return n_rows, n_columns

    def _draw_images(self, *, n_columns=None, row_labels=None, **style):
        """Draw all atoms as one large image, the grid; ``style`` goes to ``imshow``."""
        height, width = self.atoms.shape[1:3]
        colours = self.atoms.shape[3:]
        n_rows, n_columns = self._set_grid(n_columns, row_labels)
        images = self.atoms / _largest(self.atoms)
        if self.lower is not None:
            images = np.where((self.lower > 0) | (self.upper < 0), images, 0.0)
        # Images are separated by a line of pixels below and to the right of each image. The line is
        # NaN, which matplotlib leaves blank.
        grid = np.full([n_rows, height + 1, n_columns, width + 1, *colours], np.nan)
        for image, (i, j) in zip(images, np.ndindex(n_rows, n_columns)):
            grid[i, :-1, j, :-1] = image
        size = (n_rows * (height + 1), n_columns * (width + 1), *colours)
        grid = grid.reshape(size)
        # matplotlib takes colours from 0 to 1, so zero becomes mid-grey. Colours must not be NaN,
        # so the lines between images become white.
        if colours:
            grid = np.nan_to_num(0.5 + 0.5 * grid, nan=1.0)
        style = {
            "cmap": "gray",
            "vmin": -1,
            "vmax": 1,
            "interpolation": "nearest",
            "extent": (0, n_columns, n_rows, 0),
            "aspect": (height + 1) / (width + 1),
        } | style
        self.image_ = self.ax_.imshow(grid, **style)

    def _draw_lines(
        self, *, n_columns=None, row_labels=None, sampling_rate=None, **style
    ):
        """Draw a line for each channel, through the cells of all atoms, and bands of intervals.

        One line for all atoms takes far fewer matplotlib objects than a line for each atom.
        ``style`` goes to ``plot``.
        """
        n_atoms, length, n_channels = self.atoms.shape
        _, n_columns = self._set_grid(n_columns, row_labels)
        row, column = np.divmod(np.arange(n_atoms), n_columns)
        left = column + _MARGIN
        right = column + 1 - _MARGIN
        self.ax_.hlines(row + 0.5, left, right, color="0.8", linewidth=0.5)
        # The vertical axis points down, so entries are subtracted from the middles of the cells.
        middles = row[:, None, None] + 0.5
        scale = _FILLED / 2 / _largest(self.atoms)

        def join(part):  # (n_atoms, length, k) -> (n_atoms * (length + 1), k)
            # One line runs through all atoms of a channel. NaN after each atom interrupts the line,
            # so that the end of an atom is not joined with the start of the next atom.
            gap = np.full_like(part[:, :1], np.nan)
            return np.concatenate([part, gap], axis=1).reshape(-1, part.shape[2])

        x = join(np.linspace(left, right, length, axis=1)[:, :, None])
        style = {
            "linewidth": 1,
            "label": [f"channel {k}" for k in range(n_channels)],
        } | style
        self.lines_ = self.ax_.plot(x, join(middles - scale * self.atoms), **style)
        self.bands_ = []
        if self.lower is not None:
            lower = join(middles - scale * self.lower)
            upper = join(middles - scale * self.upper)
            self.bands_ = [
                self.ax_.fill_between(
                    x[:, 0],
                    lower[:, k],
                    upper[:, k],
                    color=line.get_color(),
                    alpha=0.3,
                    linewidth=0,
                )
                for k, line in enumerate(self.lines_)
            ]
        # A legend names the channels by their colours, but not of more than ten channels, since
        # matplotlib repeats colours after ten.
        if 1 < n_channels <= 10:
            self.ax_.legend(
                ncols=5,
                fontsize="small",
                loc="upper center",
                bbox_to_anchor=(0.5, 0.0),
                frameon=False,
            )
        if sampling_rate is not None:
            seconds = (length - 1) / check_rate(sampling_rate)
            self.ax_.set_xticks([_MARGIN, 1 - _MARGIN], ["0", f"{seconds:.3g} s"])

    def _draw_bars(self, *, row_labels=None, **style):
        """Draw signed bars for each atom, one atom below the other; ``style`` goes to ``bar``."""
        n_atoms, n_features = self.atoms.shape[:2]
        heights = _FILLED / 2 * self.atoms / _largest(self.atoms)
        middles = np.arange(n_atoms)[::-1] + 0.5
        style = {"bottom": middles.repeat(n_features)} | style
        features = np.arange(n_features)
        self.bars_ = self.ax_.bar(np.tile(features, n_atoms), heights.ravel(), **style)
        self.ax_.hlines(middles, -1, n_features, color="black", linewidth=0.5)
        names = [f"atom {k}" for k in range(n_atoms)]
        self.ax_.set_yticks(middles, names if row_labels is None else row_labels)
        self.ax_.set(xlim=(-1, n_features), ylim=(0, n_atoms))
        self.ax_.tick_params(left=False)
        if self.feature_names is not None:
            self.ax_.set_xticks(features, self.feature_names, rotation=90)

    def _draw_spectra(self, *, groups=None, colors=None, row_labels=None, **style):
        """Draw atoms as spectra of bars, one below the other; ``style`` goes to ``bar``.

        ``groups`` has a label for each channel, and ``colors`` a colour for each different label.
        Channels with the same label get one colour, and the label is written above their middle.
        """
        n_spectra, n_channels = self.atoms.shape[:2]
        groups = [""] * n_channels if groups is None else list(groups)
        labels = list(dict.fromkeys(groups))
        colors = [f"C{i}" for i in range(len(labels))] if colors is None else colors
        colors = dict(zip(labels, colors, strict=True))
        for label, color in colors.items():
            middle = np.flatnonzero([group == label for group in groups]).mean()
            self.ax_.text(
                middle,
                1.01,
                label,
                color=color,
                ha="center",
                va="bottom",
                transform=self.ax_.get_xaxis_transform(),
            )
        scale = _HEIGHT / _largest(self.atoms)[:, 0]
        heights = scale * self.atoms[:, :, 0]
        bottoms = np.arange(n_spectra)[::-1]
        bar_colors = [
            colors[label] for _, label in zip(range(n_channels), groups, strict=True)
        ]
        channels = np.tile(np.arange(n_channels), n_spectra)
        bottom = bottoms.repeat(n_channels)
        style = {"color": bar_colors * n_spectra, "bottom": bottom} | style
        self.bars_ = self.ax_.bar(channels, heights.ravel(), **style)
        if self.lower is not None:
            low = np.clip(scale * self.lower[:, :, 0], 0, 1)
            high = np.clip(scale * self.upper[:, :, 0], 0, 1)
            lengths = np.maximum([heights - low, high - heights], 0).reshape(2, -1)
            self.ax_.errorbar(
                channels,
                bottom + heights.ravel(),
                lengths,
                fmt="none",
                ecolor="0.3",
                elinewidth=0.8,
            )
            # The data do not determine a bar if its interval contains 0, or if its atom is not
            # supported: it is drawn faint.
            is_faint = low <= 0
            if self.supported is not None:
                is_faint |= ~self.supported[:, None]
            for k in np.flatnonzero(is_faint):
                self.bars_[k].set_alpha(0.25)
        self.ax_.hlines(bottoms, -1, n_channels, color="black", linewidth=0.5)
        names = range(n_spectra) if row_labels is None else row_labels
        self.ax_.set_yticks(bottoms + _HEIGHT / 2, names)
        self.ax_.set(xlim=(-1, n_channels), ylim=(0, n_spectra), xlabel="Channel")
        self.ax_.tick_params(left=False)

    def _draw_waveforms(
        self, *, positions=None, sampling_rate=None, row_labels=None, **style
    ):
        """Draw each atom as a map over channels (left) and a waveform (right), on new axes.

        With ``positions`` of the channels, (n_channels, 2), maps are contours instead of bars.
        ``sampling_rate`` is in samples per second. ``style`` goes to ``plot`` for the waveforms.
        """
        maps, waves = map(to_numpy, factor_atoms(to_tensor(self.atoms.swapaxes(1, 2))))
        error = np.abs(self.atoms - waves[:, :, None] * maps[:, None]).max()
        # A map and a waveform show an atom only if their product equals the atom. Differences up to
        # a thousandth of the largest entry of all atoms are allowed, far above rounding errors of
        # float32.
        if error > 1e-3 * np.abs(self.atoms).max():
            raise ValueError(
                "Atoms are not maps times waveforms. Fit with rank=1, or draw lines."
            )
        has_maps = maps.shape[1] > 1
        if not has_maps:
            waves = self.atoms[:, :, 0]
        grid = self.ax_.get_subplotspec().subgridspec(len(maps), 1 + has_maps)
        self.axes_ = grid.subplots(squeeze=False)
        self.ax_.set_axis_off()
        names = [f"atom {k}" for k in range(len(maps))]
        names = names if row_labels is None else row_labels
        times = np.arange(waves.shape[1]) / check_rate(sampling_rate)
        style = {"color": "C0"} | style
        self.maps_ = []
        self.lines_ = []
        for axes, map_, wave, name in zip(self.axes_, maps, waves, names, strict=True):
            if has_maps:
                self.maps_.append(_draw_map(axes[0], map_, positions))
            axes[0].set_title(name, fontsize="medium")
            self.lines_ += axes[-1].plot(times, wave, **style)
            axes[-1].axhline(0, color="0.8", linewidth=0.5)
        axes[-1].set_xlabel("Sample" if sampling_rate is None else "Seconds")


def _draw_map(ax, values, positions):
    """Draw a value for each channel: bars or, if ``positions`` (n_channels, 2) is given, contours.

    ``values`` are (n_channels,). Return the drawn object of matplotlib.
    """
    if positions is None:
        ax.axhline(0, color="0.8", linewidth=0.5)
        return ax.bar(np.arange(len(values)), values)
    x, y = np.transpose(positions)
    levels = np.linspace(-1, 1, 15) * (np.abs(values).max() or 1.0)
    contours = ax.tricontourf(x, y, values, levels=levels, cmap="RdBu_r")
    ax.plot(x, y, "k.", markersize=2)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return contours


@dataclass(eq=False, repr=False)
class ContributionsDisplay(Display):
    """Atoms or reconstructions next to the training samples that contribute most to them.

    Each row of the grid shows one target, an atom or a sample; its estimate, the sum of all
    training samples weighted by their contributions; and the training samples with the largest
    contributions, with the sign of the contribution, which is written on them. Contributions are
    those of `skpudle.inspection.atom_contributions` or, for samples, of
    `skpudle.inspection.reconstruction_contributions`.

    Parameters
    ----------
    pictures : ndarray of shape (n_targets, 2 + n_largest, height, width[, 3]) or \
            (n_targets, 2 + n_largest, length, n_channels)
        Images or lines, as in `AtomsDisplay`. Along the second axis are the target, its estimate
        and the training samples.
    values : ndarray of shape (n_targets, n_largest)
        The contribution of each of these training samples to its target.
    row_labels : list of str
        Names of the rows.
    kind : {"images", "lines"}, default="images"
        Whether pictures are images or lines.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    grid_ : AtomsDisplay
        The display that draws the pictures.

    Notes
    -----
    Options of `plot` are those of `AtomsDisplay` for images or lines, without ``n_columns`` and
    ``row_labels``.
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
            Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``, or a
            pipeline or search with such a learner. Samples of a pipeline are drawn as the learner
            gets them, mapped back to the features of the data if the steps have an affine inverse.
        X_train : array-like of shape (n_train, n_features)
            The training samples.
        X : array-like of shape (n_samples, n_features), default=None
            Samples whose reconstructions are the targets. By default the targets are the six atoms
            with the most nonzero codes of training samples.
        image_shape : tuple of int, default=None
            Shape of images, (height, width) or (height, width, n_channels). None draws lines.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        ContributionsDisplay
            The display, drawn.
        """
        found_learner = find_learner(estimator)
        learner = found_learner.learner
        X_train = found_learner.prepare(X_train)
        if X is None:
            name = "atom"
            targets = learner.components_
            contributions = atom_contributions(learner, X_train, n_largest=6)
            rows = _most_used(encode_samples(learner, X_train)[0])[:6]
        else:
            X = found_learner.prepare(X)
            name = "sample"
            targets = read_samples(learner, X)
            rows = np.arange(len(X))
            contributions = reconstruction_contributions(
                learner, X_train, X, n_largest=6
            )
        signs = np.sign(contributions.values)[:, :, None]
        samples = signs * read_samples(learner, X_train)[contributions.indices]
        parts = [targets[:, None], contributions.estimates[:, None], samples]
        drawn = np.concatenate(parts, axis=1)[rows]
        flat = found_learner.to_data(drawn.reshape(-1, drawn.shape[2]))
        kind, pictures = _as_pictures(flat, image_shape=image_shape)
        pictures = pictures.reshape(drawn.shape[:2] + pictures.shape[1:])
        labels = [f"{name} {row}" for row in rows]
        return cls(pictures, contributions.values[rows], labels, kind).plot(**options)

    def _size(self, **_):  # -> width, height in inches
        # The size of all cells, and 0.7 inches for the labels of rows and 0.3 for those of columns.
        return 0.9 * self.pictures.shape[1] + 0.7, 0.95 * len(self.pictures) + 0.3

    def _draw(self, **style):
        # Draw the grid of pictures by an `AtomsDisplay`, write the names of columns above it, and
        # write the contribution of each training sample on the cell of the sample.
        n_columns = self.pictures.shape[1]
        grid = AtomsDisplay(np.concatenate(self.pictures), self.kind)
        style = {"n_columns": n_columns, "row_labels": self.row_labels} | style
        self.grid_ = grid.plot(ax=self.ax_, **style)
        names = ["target", "estimate", *range(1, n_columns - 1)]
        self.ax_.set_xticks(np.arange(n_columns) + 0.5, names)
        self.ax_.xaxis.tick_top()
        # On images a white box behind each number makes the number legible. On lines the box is
        # transparent, since it would hide the lines.
        alpha = 0.8 if self.kind == "images" else 0
        box = {"facecolor": "white", "alpha": alpha, "pad": 1, "linewidth": 0}
        for (i, j), value in np.ndenumerate(self.values):
            self.ax_.text(
                j + 2, i, f"{value:+.2g}", size=7, va="top", ha="left", bbox=box
            )


@dataclass(eq=False, repr=False)
class ActivationsDisplay(Display):
    """Where in a signal the atoms of a convolutional learner are active.

    The signal is drawn in the first row. Each atom has a row below, with the atom's waveform on the
    right. A nonzero code is a copy of the atom in the signal. A bar in the atom's row marks the
    peak of each copy, the sample at which the waveform has its largest magnitude (with several
    channels, its largest norm), as in `skpudle.events.find_events`. The height of the bar is the
    code, downwards for a negative code, relative to the largest code drawn.

    Parameters
    ----------
    sample : ndarray of shape (length, n_channels)
        The signal.
    places : ndarray of shape (n_uses,)
        The sample at which each copy of an atom has its peak.
    atoms : ndarray of shape (n_uses,)
        The number of the atom of each copy.
    values : ndarray of shape (n_uses,)
        The code of each copy.
    components : ndarray of shape (n_components, length[, n_channels])
        The atoms.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    marks_ : list of matplotlib LineCollection
        The bars, one object for each atom that is drawn, in the order of the atoms' numbers.
    thumbnails_ : list of list of matplotlib Line2D
        The waveforms of the same atoms: for each atom a line for each channel.

    Notes
    -----
    The option ``sampling_rate`` of `plot` is the number of samples in a second; the horizontal axis
    is then in seconds instead of samples. Further options go to `matplotlib.axes.Axes.vlines`.
    """

    sample: np.ndarray
    places: np.ndarray
    atoms: np.ndarray
    values: np.ndarray
    components: np.ndarray

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        index: int = 0,
        n_atoms: int = 10,
        **options: Any,
    ) -> Self:
        """Draw where a fitted convolutional learner finds its atoms in one signal.

        Parameters
        ----------
        estimator : estimator
            Fitted `skpudle.ConvPUDLEDictionaryLearning` for signals, or a pipeline or search with
            one.
        X : array-like or list of signals
            Signals, or rows of samples, as ``transform`` takes them.
        index : int, default=0
            Number of the signal to draw.
        n_atoms : int, default=10
            Largest number of atoms to draw: the atoms with the largest sums of absolute codes in
            the signal.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        ActivationsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the learner is not a convolutional learner of signals.
        """
        found_learner = find_learner_of_signals(estimator)
        learner = found_learner.learner
        X = found_learner.prepare(X)
        samples = read_samples(learner, X)
        # The signal is taken from X and not from ``samples``, which are arrays: a data frame keeps
        # the names of its columns, which the learner checks.
        signal = X if len(samples) == 1 else _safe_indexing(X, [index])
        codes, _ = encode_samples(learner, signal)
        order = np.argsort(-np.abs(codes).sum(axis=0), kind="stable")
        codes[:, order[n_atoms:]] = 0  # so that only n_atoms atoms are drawn
        rows, atoms = np.nonzero(codes)
        _, (stride,) = geometry_of(learner)
        display = cls(
            sample=samples[index].T,
            places=rows * stride + find_peaks(learner.components_)[atoms],
            atoms=atoms,
            values=codes[rows, atoms],
            components=learner.components_,
        )
        return display.plot(**options)

    def _draw(self, *, sampling_rate=None, **style):
        # Draw the signal at the height 0, and below the signal a row with the bars and the waveform
        # of each atom: the k-th atom, k = 1, 2, ..., at the height -k.
        numbers = np.unique(self.atoms)
        values = _scale(self.values)
        rate = check_rate(sampling_rate)
        times = np.arange(len(self.sample)) / rate
        style = {"linewidth": 1.5} | style
        self.marks_ = []
        self.thumbnails_ = []
        self.ax_.plot(times, _scale(self.sample), color="0.3", linewidth=0.8)
        for row, atom in enumerate(numbers, start=1):
            is_own = self.atoms == atom
            color = f"C{row - 1}"
            bars = self.ax_.vlines(
                self.places[is_own] / rate,
                -row,
                values[is_own] - row,
                **({"color": color} | style),
            )
            self.marks_.append(bars)
            # The waveform is drawn to the right of the axes: x is in units of the width of the
            # axes, which end at x = 1.
            wave = _scale(self.components[atom])
            lines = self.ax_.plot(
                np.linspace(1.02, 1.17, len(wave)),
                wave - row,
                color=color,
                transform=self.ax_.get_yaxis_transform(),
                clip_on=False,
                linewidth=0.8,
            )
            self.thumbnails_.append(lines)
        ticks = -np.arange(len(numbers) + 1)
        self.ax_.hlines(ticks[1:], 0, times[-1], color="0.8", linewidth=0.5, zorder=0)
        self.ax_.set_yticks(ticks, ["signal", *(f"atom {k}" for k in numbers)])
        self.ax_.set(
            xlabel="Sample" if sampling_rate is None else "Seconds",
            xlim=(0, times[-1]),
            ylim=(-len(numbers) - 0.6, 0.6),
        )


@dataclass(eq=False, repr=False)
class CodesDisplay(Display):
    """Statistics of codes: which atoms samples use, how many atoms, and how strongly.

    Every nonzero code counts as one use of an atom. A sample of a convolutional learner, a signal
    or an image, has codes at many positions, and so may use an atom several times.

    Parameters
    ----------
    codes : ndarray of shape (n_codes, n_components)
        Signed codes: a row for each sample, or for each position in an image or signal.
    samples : ndarray of shape (n_codes,)
        The number of the sample that each row of codes belongs to.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    heights_ : ndarray of shape (n_components,) or (n_bins,)
        The values that are drawn: for "usage" the mean number of uses of each atom in a sample, in
        falling order; for "count" the number of samples in each bin; for "magnitude" the number of
        nonzero codes in each bin.

    Notes
    -----
    The option ``kind`` of `plot` is "usage" by default: the mean number of uses of each atom in a
    sample, which for learners of rows is the fraction of samples that use the atom. "count" is a
    histogram of the number of uses in a sample, and "magnitude" a histogram of the moduli of
    nonzero codes. Further options go to `matplotlib.axes.Axes.stairs`.
    """

    codes: np.ndarray
    samples: np.ndarray

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, **options: Any) -> Self:
        """Draw statistics of the codes that a fitted learner gives to samples.

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
        codes, samples = find_learner(estimator).encode(X)
        return cls(codes, samples).plot(**options)

    def _draw(self, *, kind="usage", **style):  # sets ``heights_``
        # Compute and draw the bars of a ``kind`` of statistic; ``style`` goes to ``stairs``. Bar i
        # has the height heights_[i], and lies between edges[i] and edges[i + 1].
        check_kind(kind, "usage", "count", "magnitude")
        used = self.codes != 0
        ax = self.ax_
        n_used = np.bincount(self.samples, used.sum(axis=1)).astype(int)
        if kind == "usage":
            self.heights_ = np.sort(used.sum(axis=0) / len(n_used))[::-1]
            edges = np.arange(len(self.heights_) + 1) + 0.5
            ax.set(xlabel="Atom, most used first", ylabel="Uses in a sample")
        elif kind == "count":
            step = max(1, n_used.max() // _BINS)
            edges = np.arange(0, n_used.max() + step + 1, step) - 0.5
            self.heights_, _ = np.histogram(n_used, edges)
            ax.set(xlabel="Atoms that a sample uses", ylabel="Samples")
        else:
            self.heights_, edges = np.histogram(np.abs(self.codes[used]), _BINS)
            ax.set(xlabel="Modulus of a nonzero entry", ylabel="Entries")
        style = {"fill": True} | style
        ax.stairs(self.heights_, edges, **style)
        ax.locator_params("x", integer=kind != "magnitude", min_n_ticks=1)
        ax.locator_params("y", integer=kind != "usage", min_n_ticks=1)


@dataclass(eq=False, repr=False)
class LossCurveDisplay(Display):
    """Loss against epochs, one line per learner.

    A fit that begins with a search for atoms has losses that jump whenever the search replaces
    atoms. For the epochs of the search the line shows the smallest loss so far, and a pale line
    behind it shows all losses.

    Parameters
    ----------
    curves : dict of str to ndarray of shape (n_epochs,)
        Losses of each learner, by the learner's label.
    n_searched : dict of str to int
        For the same labels the number of epochs of the search, which come first in a curve.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    lines_ : list of matplotlib Line2D
        The line of each curve.

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.semilogy`.
    """

    curves: dict[str, np.ndarray]
    n_searched: dict[str, int]

    @classmethod
    def from_estimator(cls, estimator: Any, **options: Any) -> Self:
        """Draw ``loss_curve_`` of a fitted learner, or of several.

        Parameters
        ----------
        estimator : estimator or dict of str to estimator
            Fitted learner with ``loss_curve_``, or a pipeline or search with such a learner; or a
            dict of such estimators by their labels. The label of a single learner is its class.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        LossCurveDisplay
            The display, drawn.
        """
        estimators = estimator if isinstance(estimator, dict) else {None: estimator}
        curves = {}
        n_searched = {}
        for name, one in estimators.items():
            learner = find_learner(one, "loss_curve_").learner
            label = name or type(learner).__name__
            curves[label] = learner.loss_curve_
            n_searched[label] = (getattr(learner, "phases_", None) or {}).get(
                "search", 0
            )
        return cls(curves, n_searched).plot(**options)

    def _draw(self, **style):
        # Draw a line for each learner, and a pale line of its search, which the label "_search"
        # keeps out of the legend; ``style`` goes to ``semilogy``. Successive curves have different
        # dashes, so that of two equal curves both can be seen.
        self.lines_ = []
        styles = cycle(["-", (0, (4, 4)), (0, (1, 3))])
        for (name, curve), dashes in zip(self.curves.items(), styles):
            n_searched = self.n_searched[name]
            epochs = np.arange(1, len(curve) + 1)
            best = np.concatenate(
                [np.minimum.accumulate(curve[:n_searched]), curve[n_searched:]]
            )
            line_style = {"linestyle": dashes, "label": name} | style
            (line,) = self.ax_.semilogy(epochs, best, **line_style)
            self.lines_.append(line)
            self.ax_.semilogy(
                epochs[:n_searched],
                curve[:n_searched],
                label="_search",
                color=line.get_color(),
                alpha=0.25,
                linewidth=1,
            )
        self.ax_.set(
            xlabel="Epoch", ylabel=r"Loss, mean of $\frac{1}{2} \|x - D z\|^2$"
        )
        self.ax_.locator_params("x", integer=True, min_n_ticks=1)
        self.ax_.legend()


@dataclass(eq=False, repr=False)
class PathDisplay(Display):
    """How a learner chose its number of atoms, or its penalty: all values it tried, with scores.

    The score is the fraction of the energy of hidden entries that a prediction explains (R^2), or
    of their deviance for a `skpudle.PoissonNMF`. For the kind "size" the plot shows, for each
    number of atoms, the best score minus the score of this number. The learner chose the smallest
    number for which the difference counts as chance, that is, lies in the grey band (one standard
    error, but at least 0.001 unless the learner is a `skpudle.PoissonNMF`). Occasionally a smaller
    number lies in the band as well, since the fit compares numbers on more samples than the score
    has. The vertical scale is linear inside the band and logarithmic above, since the first atoms
    improve the score hundreds of times more.

    For the kind "penalty" the plot shows the score of each penalty of the search. A line joins the
    penalties in the order of the trials, in which a penalty may occur more than once.

    Parameters
    ----------
    path : Bunch of ndarray of shape (n_trials,)
        ``size_path_`` or ``penalty_path_`` of a learner, such as a
        `skpudle.PUDLEDictionaryLearning`: for each trial ``n_components`` or ``alpha``, ``score``
        and ``tolerance``, and for penalties ``unbiased``, True for atoms without the lasso's bias.
    chosen : float
        The number of atoms, or the penalty, that the learner chose.
    kind : {"size", "penalty"}
        Whether ``path`` has numbers of atoms or penalties.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    line_, chosen_line_ : matplotlib Line2D
        The line of all trials, and the vertical line at the choice.
    band_ : matplotlib PolyCollection
        The differences of scores that count as chance (kind "size").
    unbiased_line_ : matplotlib Line2D
        Rings around the scores of atoms without the lasso's bias (kind "penalty").

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.plot` for the trials.
    """

    path: Any
    chosen: float
    kind: Literal["size", "penalty"]

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, kind: str = "size", **options: Any
    ) -> Self:
        """Draw how a fitted learner chose its number of atoms, or the penalty of its search.

        Parameters
        ----------
        estimator : estimator
            Fitted learner with ``size_path_`` (of ``n_components="auto"``) or ``penalty_path_`` (of
            an automatic penalty), or a pipeline or search with such a learner.
        kind : {"size", "penalty"}, default="size"
            Draw the choice of the number of atoms, or of the penalty of the search.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        PathDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the fit did not choose the number of atoms, or the penalty.
        """
        check_kind(kind, "size", "penalty")
        learner = find_learner(estimator).learner
        path = getattr(learner, f"{kind}_path_", None)
        if path is None:
            parameter = {"size": "n_components", "penalty": "alpha"}[kind]
            values = {"size": "sizes", "penalty": "penalties"}[kind]
            raise ValueError(
                f"{type(learner).__name__} is fitted, but has no path of {values}, since the fit "
                f"did not choose {parameter}. Fit with {parameter}='auto'."
            )
        chosen = learner.n_components_ if kind == "size" else learner.search_alpha_
        return cls(path, chosen, kind).plot(**options)

    def _draw(self, **style):  # ``style`` goes to the line of the trials
        # Draw scores of numbers of atoms with their band, or scores of penalties, and the choice.
        path = self.path
        ax = self.ax_
        style = {"marker": ".", "zorder": 3} | style
        if self.kind == "size":
            sizes = path.n_components
            best = path.score.max()
            (self.line_,) = ax.plot(sizes, best - path.score, **style)
            self.band_ = ax.fill_between(
                sizes, path.tolerance, color="0.85", label="counts as chance"
            )
            ax.set(
                xlabel="Number of atoms",
                ylabel=f"Loss of score against the best, {best:.3g}",
            )
            ax.locator_params("x", integer=True, min_n_ticks=1)
            # The scale is linear up to the largest tolerance (the difference that counts as
            # chance), but at least up to 1e-9, since matplotlib needs a positive number. Tolerances
            # may be 0, and are NaN for fits to fewer than 20 samples, which have no scores.
            ax.set_yscale("symlog", linthresh=np.nanmax(path.tolerance, initial=1e-9))
            ax.set_ylim(bottom=0)
        else:
            (self.line_,) = ax.semilogx(path.alpha, path.score, **style)
            (self.unbiased_line_,) = ax.plot(
                path.alpha[path.unbiased],
                path.score[path.unbiased],
                "o",
                color=self.line_.get_color(),
                fillstyle="none",
                label="without lasso's bias",
            )
            ax.set(
                xlabel="Penalty of the search",
                ylabel="Explained share of hidden entries",
            )
        self.chosen_line_ = ax.axvline(self.chosen, color="grey", linestyle=":")
        ax.set_title(f"Chosen: {self.chosen:.4g}")
        ax.legend()


@dataclass(eq=False, repr=False)
class StabilityDisplay(Display):
    """Stability: of each atom of a consensus, or of dictionaries against their number of atoms.

    Stability is the agreement of independent fits, from 0 to 1: the mean coherence between an atom
    and its matches in the other fits, see `skpudle.metrics.dictionary_stability`.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Positions on the horizontal axis: ranks of the atoms of a consensus, most stable first, or
        numbers of atoms of dictionaries.
    stability : ndarray of shape (n,)
        Stability of each atom, or mean stability of the dictionaries of each size, for the left
        axis.
    second : ndarray of shape (n,)
        Values for the right axis.
    labels : tuple of three str
        Labels of the left, the right and the horizontal axis.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    right_ax_ : matplotlib Axes
        Axes of the values on the right.
    line_, right_line_ : matplotlib Line2D
        The stability, and the values of the right axis.

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.plot` for the stability.
    """

    x: np.ndarray
    stability: np.ndarray
    second: np.ndarray
    labels: tuple[str, str, str]

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, scores: ArrayLike | None = None, **options: Any
    ) -> Self:
        """Draw the stability of a consensus, or of dictionaries of several sizes.

        Parameters
        ----------
        estimator : ConsensusDictionary, or iterable of lists of learners or array-likes
            (1) A fitted consensus, or a pipeline or search with one: the stability of each atom,
            the most stable first, and on the right the fraction of fits that agree on the atom.
            (2) For each number of atoms a list of independent fits, or of their ``components_``:
            the mean stability of each number.
        scores : array-like of shape (n_sizes,), default=None
            For (2), a score of held-out samples for each number of atoms, such as the mean of its
            fits, for the right axis. By default the right axis shows the number of stable atoms,
            ``n_stable`` of `skpudle.metrics.dictionary_stability`.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        StabilityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is not one score for each number of atoms.
        """
        if scores is None and hasattr(estimator, "fit"):
            consensus = find_learner(estimator, "stability_").learner
            order = np.argsort(-consensus.stability_, kind="stable")
            display = cls(
                x=np.arange(1, len(order) + 1),
                stability=consensus.stability_[order],
                second=consensus.n_agreeing_[order] / len(consensus.replicates_),
                labels=(
                    "Stability",
                    "Share of replicates that agree",
                    "Atom, most stable first",
                ),
            )
            return display.plot(**options)
        agreements = [dictionary_stability(fits) for fits in estimator]
        name = "Score of held-out samples"
        if scores is None:
            name = "Stable atoms"
            scores = [agreement.n_stable for agreement in agreements]
        rows = sorted(
            (agreement.atoms.shape[1], agreement.stability, score)
            for agreement, score in zip(agreements, scores, strict=True)
        )
        sizes, stability, second = np.transpose(rows)
        labels = ("Mean stability", name, "Number of atoms")
        return cls(sizes, stability, second, labels).plot(**options)

    def _draw(self, **style):  # ``style`` goes to the line of the stability
        # Draw the stability for the left axis, ``second`` for the right axis, and a legend above.
        left, right, below = self.labels
        style = {"marker": "o", "color": "C0", "label": left} | style
        (self.line_,) = self.ax_.plot(self.x, self.stability, **style)
        self.right_ax_ = self.ax_.twinx()
        (self.right_line_,) = self.right_ax_.plot(
            self.x, self.second, "C1s-", label=right
        )
        self.right_ax_.set(ylabel=right)
        self.ax_.set(xlabel=below, ylabel=left, ylim=(None, 1.02))
        self.ax_.locator_params("x", integer=True, min_n_ticks=1)
        self.ax_.legend(
            handles=[self.line_, self.right_line_],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2,
            frameon=False,
        )


@dataclass(eq=False, repr=False)
class RecoveryDisplay(Display):
    """Coherences between learned and known atoms, with matched pairs on the diagonal.

    Parameters
    ----------
    coherences : ndarray of shape (n_reference, n_components)
        Moduli of the cosines of known atoms (rows) with learned atoms (columns), both in the order
        of drawing.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    image_ : matplotlib AxesImage
        The image of the matrix.

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.imshow`.
    """

    coherences: np.ndarray

    @classmethod
    def from_estimator(
        cls, estimator: Any, reference: ArrayLike, **options: Any
    ) -> Self:
        """Draw how the atoms of a fitted learner compare with known ones.

        Parameters
        ----------
        estimator : estimator or array-like of shape (n_components, ...)
            Atoms, a fitted learner, or a pipeline or search with one. Atoms of a pipeline are
            compared in the features of the data, as in `AtomsDisplay.from_estimator`. Atoms of a
            convolutional learner are compared at the shifts with the largest coherences.
        reference : array-like of shape (n_reference, ...)
            Known atoms, with the shape of the learned atoms.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        RecoveryDisplay
            The display, drawn. Pairs that `skpudle.metrics.match_atoms` finds are on the diagonal,
            and atoms without a match come last.

        Raises
        ------
        ValueError
            If learned and known atoms have different shapes.
        """
        atoms = estimator
        if hasattr(estimator, "fit"):
            found_learner = find_learner(estimator)
            atoms = found_learner.atoms()
            if hasattr(found_learner.learner, "atom_shape"):
                atoms = found_learner.learner
        match = match_atoms(atoms, reference)
        cosines = np.abs(atom_cosines(atoms, reference))
        for axis, matched in enumerate((match.reference_indices, match.indices)):
            unmatched = np.setdiff1d(np.arange(cosines.shape[axis]), matched)
            cosines = cosines.take(np.append(matched, unmatched), axis)
        return cls(cosines).plot(**options)

    def _draw(self, **style):  # ``style`` goes to ``imshow``
        # Draw the matrix of coherences as an image, with a colour bar.
        style = {
            "cmap": "viridis",
            "vmin": 0,
            "vmax": 1,
            "interpolation": "nearest",
        } | style
        self.image_ = self.ax_.imshow(self.coherences, **style)
        self.figure_.colorbar(self.image_, ax=self.ax_, label="Coherence")
        self.ax_.set(xlabel="Learned atom", ylabel="Known atom")
        self.ax_.locator_params(integer=True, min_n_ticks=1)
