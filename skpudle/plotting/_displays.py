"""Displays of atoms and codes."""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from skpudle._data.arrays import host_array
from skpudle._data.foreign import dictionary_of
from skpudle._fitted.drawing import (
    as_pictures,
    axes_to_draw_on,
    cover_atoms,
    draw_bands,
    draw_grid,
    draw_seconds,
    draw_steps,
    label_rows,
    refuse_sampling_rate,
    size_of_grid,
    tick_whole_numbers,
)
from skpudle._fitted.learners import as_samples, find_learner, sample_numbers, signed_codes
from skpudle.metrics import atom_importance, match_atoms
from skpudle.metrics._dictionaries import atom_cosines


class AtomsDisplay:
    """Atoms as a grid of images or of lines, drawn on one pair of axes.

    Every atom is scaled to its own largest modulus, since atoms are defined up to scale. Zero is
    mid-grey in images, and the thin line behind lines. Channels of a signal are lines of several
    colours.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        The atoms in the order of drawing, row by row.
    kind : {"images", "lines"}, default="images"
        Whether atoms are drawn as images or as lines.
    lower, upper : ndarray of the shape of atoms, default=None
        Ends of intervals: bands around lines, and images lose entries whose interval holds 0.
    supported : ndarray of shape (n_atoms,), bool, default=None
        False for the atoms to fade.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes drawn on, and their figure.
    figure_ : matplotlib Figure
        Its figure.
    image_ : matplotlib AxesImage
        The grid of images.
    lines_ : list of matplotlib Line2D
        The lines, one object for each channel of all atoms.
    bands_ : list of matplotlib PolyCollection
        The bands, one for each atom and channel.
    """

    def __init__(
        self,
        atoms: np.ndarray,
        kind: Literal["images", "lines"] = "images",
        *,
        lower: np.ndarray | None = None,
        upper: np.ndarray | None = None,
        supported: np.ndarray | None = None,
    ) -> None:
        self.atoms, self.kind = atoms, kind
        self.lower, self.upper, self.supported = lower, upper, supported

    @classmethod
    def from_atoms(
        cls,
        atoms: ArrayLike,
        *,
        kind: Literal["auto", "images", "lines"] = "auto",
        image_shape: tuple[int, ...] | None = None,
        n_atoms: int | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> Self:
        """Draw an array of atoms.

        Parameters
        ----------
        atoms : array-like of shape (n_components, n_features), (n_components, height, width[, 3]) \
                or (n_components, length, n_channels), or learner
            Atoms as rows, or with their shape, or a fitted learner.
        kind : {"auto", "images", "lines"}, default="auto"
            "auto": rows are lines, unless ``image_shape`` says otherwise; arrays of more axes are
            images. "images": rows without ``image_shape`` become squares.
        image_shape : tuple of int, default=None
            Shape that the features of an atom are reshaped to: of images (height, width) or
            (height, width, 3), of lines (length, n_channels).
        n_atoms : int, default=None
            Draw the first `n_atoms`; by default all.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        AtomsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the atoms' shape does not fit `kind`.
        """
        atoms = check_array(dictionary_of(atoms), allow_nd=True, input_name="atoms")
        kind, pictures = as_pictures(atoms, kind=kind, image_shape=image_shape)
        return cls(pictures[:n_atoms], kind).plot(ax=ax, **plot_params)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike | None = None,
        *,
        sort: Literal["usage", "energy", "r2_loss"] = "usage",
        kind: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        n_atoms: int | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> Self:
        """Draw the atoms of a fitted learner.

        Parameters
        ----------
        estimator : estimator
            Fitted learner, or a pipeline or search with one. Atoms of a pipeline are drawn in the
            features of its data if every step before the learner is affine and can be undone
            (centring, scaling, principal components), and else in the learner's features.
        X : array-like, default=None
            Samples, as `transform` takes them; if given, atoms are sorted by ``sort``.
        sort : {"usage", "energy", "r2_loss"}, default="usage"
            Key by which to sort atoms, the largest first: how many samples use them, or the share
            of the energy or the loss of R^2 of `skpudle.metrics.atom_importance`.
        kind, image_shape, n_atoms, ax, **plot_params
            As in `from_atoms`. Convolutional atoms have their shape already; atoms of signals are
            lines, and channels of images that are no colours are drawn side by side.

        Returns
        -------
        AtomsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If ``sort`` is none of these, or atoms do not have a shape of that kind.
        """
        if sort not in ("usage", "energy", "r2_loss"):
            raise ValueError(f"sort is {sort!r}; it must be 'usage', 'energy' or 'r2_loss'.")
        found = find_learner(estimator)
        atoms = found.atoms()
        if X is not None and sort == "usage":
            usage = np.count_nonzero(found.codes(X), axis=0)
            atoms = atoms[np.argsort(-usage, kind="stable")]
        elif X is not None:
            importance = atom_importance(found.learner, found.prepare(X))
            atoms = atoms[np.argsort(-importance[sort], kind="stable")]
        kind, pictures = found.pictures(atoms, kind=kind, image_shape=image_shape)
        return cls(pictures[:n_atoms], kind).plot(ax=ax, **plot_params)

    @classmethod
    def from_intervals(
        cls,
        intervals: Any,
        *,
        kind: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        n_atoms: int | None = None,
        ax: Any = None,
        **plot_params: Any,
    ) -> Self:
        """Draw atoms with their intervals; atoms and entries without support by the data fade.

        Lines have bands. In images, entries fade if their interval holds 0.

        Parameters
        ----------
        intervals : AtomIntervals
            The result of `skpudle.inspection.atom_intervals`.
        kind, image_shape, n_atoms, ax, **plot_params
            As in `from_atoms`.

        Returns
        -------
        AtomsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If the atoms' shape does not fit `kind`.
        """
        pictures = []
        for part in (intervals.estimate, intervals.lower, intervals.upper):
            how, picture = as_pictures(part, kind=kind, image_shape=image_shape)
            pictures.append(picture[:n_atoms])
        atoms, lower, upper = pictures
        ends = dict(lower=lower, upper=upper, supported=intervals.supported[:n_atoms])
        return cls(atoms, how, **ends).plot(ax=ax, **plot_params)

    def plot(
        self,
        *,
        ax: Any = None,
        n_columns: int | None = None,
        sampling_rate: float | None = None,
        row_labels: Sequence[str] | None = None,
        **style: Any,
    ) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        n_columns : int, default=None
            Atoms in a row; by default the grid is about a square.
        sampling_rate : float, default=None
            Numbers in a second of an atom, of lines: a bar below them then shows a length of time.
        row_labels : sequence of str, default=None
            Names of the rows of the grid, on their left.
        **style : dict
            Passed to `matplotlib.axes.Axes.imshow`, or `matplotlib.axes.Axes.plot` for lines.

        Returns
        -------
        AtomsDisplay
            This object.

        Raises
        ------
        ValueError
            If pictures are given a sampling rate, or there is not one label for every row.
        """
        if self.kind != "lines":
            refuse_sampling_rate(sampling_rate)
        n_columns, size = size_of_grid(self.kind, self.atoms, n_columns)
        n_rows = math.ceil(len(self.atoms) / n_columns)
        if row_labels is not None and len(row_labels) != n_rows:
            raise ValueError(
                f"{len(row_labels)} row_labels for {n_rows} rows of atoms. Pass one label for "
                "every row, or another n_columns."
            )
        self.ax_, self.figure_ = axes_to_draw_on(ax, figsize=size)
        atoms, has_ends = self.atoms, self.lower is not None and self.upper is not None
        if has_ends and self.kind == "images":
            atoms = np.where((self.lower > 0) | (self.upper < 0), atoms, 0.0)
        drawn = draw_grid(self.ax_, self.kind, atoms, n_columns, **style)
        if has_ends and self.kind == "lines":
            self.bands_ = draw_bands(self.ax_, self.lower, self.upper, self.atoms, n_columns)
        if self.supported is not None:
            cover_atoms(self.ax_, np.flatnonzero(~self.supported), n_columns)
        if sampling_rate is not None and self.atoms.shape[1] > 1:
            draw_seconds(self.ax_, self.atoms.shape[1], sampling_rate)
        setattr(self, "image_" if self.kind == "images" else "lines_", drawn)
        if row_labels is None:
            self.ax_.set_axis_off()
        else:
            label_rows(self.ax_, row_labels)
        return self


# approximate largest number of bins in a histogram of numbers of atoms
_BINS = 50


class CodesDisplay:
    """Which atoms samples use, how many, and how strongly.

    A sample of a convolutional learner, a signal or an image, has codes at many positions: copies
    of an atom are counted.

    Parameters
    ----------
    codes : ndarray of shape (n_codes, n_components)
        Codes.
    samples : ndarray of shape (n_codes,), default=None
        The number of the sample of each row of codes, if samples have several. None: every row is
        a sample.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    heights_ : ndarray
        Drawn values: for "usage" the share of samples that use each atom, or its mean number of
        copies in a sample, in falling order; for "count" and "magnitude" the number of samples, or
        of nonzero entries, in each bin.
    """

    def __init__(self, codes: np.ndarray, samples: np.ndarray | None = None) -> None:
        self.codes, self.samples = codes, samples

    @classmethod
    def from_codes(cls, codes: ArrayLike, *, kind: Any = "usage", ax: Any = None) -> Self:
        """Draw codes.

        Parameters
        ----------
        codes : array-like of shape (n_samples, n_components)
            Codes.
        kind, ax
            As in `plot`.

        Returns
        -------
        CodesDisplay
            The display, drawn.
        """
        return cls(check_array(host_array(codes), input_name="codes")).plot(kind=kind, ax=ax)

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, *, kind: Any = "usage", ax: Any = None
    ) -> Self:
        """Draw a fitted learner's codes of samples.

        Parameters
        ----------
        estimator : estimator
            Fitted learner, with ``components_`` and ``transform``, or a pipeline or search with
            one.
        X : array-like
            Samples, as `transform` takes them.
        kind, ax
            As in `plot`.

        Returns
        -------
        CodesDisplay
            The display, drawn.
        """
        found = find_learner(estimator)
        raw = found.learner.transform(as_samples(found.learner, found.prepare(X)))
        codes = signed_codes(found.learner, raw)
        return cls(codes, sample_numbers(found.learner, raw)).plot(kind=kind, ax=ax)

    def plot(
        self, *, kind: Literal["usage", "count", "magnitude"] = "usage", ax: Any = None
    ) -> Self:
        """Draw.

        Parameters
        ----------
        kind : {"usage", "count", "magnitude"}, default="usage"
            The share of samples that use each atom, or its mean number of copies in a sample; a
            histogram of the number of atoms, or copies, that a sample uses; or a histogram of the
            moduli of nonzero entries.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        CodesDisplay
            This object.

        Raises
        ------
        ValueError
            If `kind` is unknown.
        """
        kinds = ("usage", "count", "magnitude")
        if kind not in kinds:
            raise ValueError(f"kind is {kind!r}; it must be one of {kinds}.")
        used, own = self.codes != 0, self.samples is None
        samples = np.arange(len(used)) if own else self.samples
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        if kind == "usage":
            self.heights_ = np.sort(used.sum(axis=0) / (samples[-1] + 1))[::-1]
            draw_steps(self.ax_, self.heights_)
            name = "Share of samples that use it" if own else "Mean number of copies in a sample"
            self.ax_.set(xlabel="Atom, most used first", ylabel=name)
            self.ax_.set_ylim(bottom=0)
        elif kind == "count":
            counts = np.bincount(samples, used.sum(axis=1)).astype(int)
            step = max(1, counts.max() // _BINS)
            bins = np.arange(0, counts.max() + step + 1, step) - 0.5
            self.heights_, _, _ = self.ax_.hist(counts, bins=bins)
            name = "Atoms that a sample uses" if own else "Copies of atoms in a sample"
            self.ax_.set(xlabel=name, ylabel="Samples")
            tick_whole_numbers(self.ax_.xaxis, self.ax_.yaxis)
        else:
            self.heights_, _, _ = self.ax_.hist(np.abs(self.codes[used]), bins=_BINS)
            self.ax_.set(xlabel="Modulus of a nonzero entry", ylabel="Entries")
            tick_whole_numbers(self.ax_.yaxis)
        return self


class RecoveryDisplay:
    """Coherences between learned and known atoms, matched pairs on the diagonal.

    Parameters
    ----------
    coherences : ndarray of shape (n_reference, n_components)
        Moduli of cosines; columns in the order of drawing.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    image_ : matplotlib AxesImage
        The matrix.
    """

    def __init__(self, coherences: np.ndarray) -> None:
        self.coherences = coherences

    @classmethod
    def from_dictionaries(
        cls, dictionary: ArrayLike, reference: ArrayLike, *, ax: Any = None, **image_kwargs: Any
    ) -> Self:
        """Draw how a dictionary compares with a known one.

        Parameters
        ----------
        dictionary, reference : array-like of shape (n_components, ...) and (n_reference, ...)
            Atoms of the same shape.
        ax, **image_kwargs
            As in `plot`.

        Returns
        -------
        RecoveryDisplay
            The display, drawn; atoms without a match come last.
        """
        match = match_atoms(dictionary, reference)
        cosines = np.abs(atom_cosines(dictionary, reference))
        rest = [
            np.setdiff1d(np.arange(size), taken)
            for size, taken in zip(cosines.shape, (match.reference_indices, match.indices))
        ]
        rows = np.concatenate([match.reference_indices, rest[0]])
        columns = np.concatenate([match.indices, rest[1]])
        return cls(cosines[np.ix_(rows, columns)]).plot(ax=ax, **image_kwargs)

    @classmethod
    def from_estimator(
        cls, estimator: Any, reference: ArrayLike, *, ax: Any = None, **image_kwargs: Any
    ) -> Self:
        """Draw how the atoms of a fitted learner compare with known ones.

        Parameters
        ----------
        estimator : estimator
            Fitted learner, or a pipeline or search with one; atoms are compared in the features of
            the data, as in `AtomsDisplay.from_estimator`.
        reference : array-like of shape (n_reference, ...)
            Known atoms.
        ax, **image_kwargs
            As in `plot`.

        Returns
        -------
        RecoveryDisplay
            The display, drawn.
        """
        atoms = find_learner(estimator).atoms()
        return cls.from_dictionaries(atoms, reference, ax=ax, **image_kwargs)

    def plot(self, *, ax: Any = None, **image_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **image_kwargs : dict
            Passed to `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        RecoveryDisplay
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        defaults = {"cmap": "viridis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        self.image_ = self.ax_.imshow(self.coherences, **(defaults | image_kwargs))
        self.figure_.colorbar(self.image_, ax=self.ax_, label="Coherence")
        self.ax_.set(xlabel="Learned atom", ylabel="Known atom")
        tick_whole_numbers(self.ax_.xaxis, self.ax_.yaxis)
        return self
