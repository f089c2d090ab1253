"""Displays of atoms and codes."""

import math

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import host_array
from skpudle._drawing import as_images, axes_to_draw_on, shape_of_images, signed_codes
from skpudle.metrics import atom_cosines, match_atoms
from skpudle.plotting._curves import ConvergenceDisplay, LossCurveDisplay

__all__ = [
    "AtomsDisplay",
    "CodesDisplay",
    "ConvergenceDisplay",
    "LossCurveDisplay",
    "RecoveryDisplay",
]

GREYS = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}


class AtomsDisplay:
    """Atoms as a grid of images, drawn on one pair of axes.

    Every atom is scaled to its own largest modulus, since atoms are defined up to scale; zero is
    mid-grey.

    Parameters
    ----------
    images : ndarray of shape (n_atoms, height, width) or (n_atoms, height, width, 3)
        The atoms in the order of drawing, row by row.

    Attributes
    ----------
    ax_ : matplotlib Axes
        What was drawn on.
    figure_ : matplotlib Figure
        Its figure.
    image_ : matplotlib AxesImage
        The grid.
    """

    def __init__(self, images):
        self.images = images

    @classmethod
    def from_atoms(cls, atoms, *, image_shape=None, n_atoms=None, ax=None, **plot_params):
        """Draw an array of atoms.

        Parameters
        ----------
        atoms : array-like of shape (n_components, n_features) or (n_components, height, width[, 3])
            Atoms as rows, or as images.
        image_shape : tuple of int, default=None
            Shape that the features of an atom are reshaped to, (height, width) or
            (height, width, 3). By default rows become squares.
        n_atoms : int, default=None
            Draw the first so many; by default all.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **plot_params : dict
            Passed to `plot`.

        Returns
        -------
        AtomsDisplay
            What was drawn.

        Raises
        ------
        ValueError
            If the atoms do not have the shape of images.
        """
        atoms = check_array(host_array(atoms), allow_nd=True, input_name="atoms")
        images = as_images(atoms, image_shape)[:n_atoms]
        return cls(images).plot(ax=ax, **plot_params)

    @classmethod
    def from_estimator(
        cls, estimator, X=None, *, image_shape=None, n_atoms=None, ax=None, **plot_params
    ):
        """Draw the atoms of a fitted learner.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_``.
        X : array-like, default=None
            Samples, as `transform` takes them; if given, atoms come in the order of how many of
            them use each.
        image_shape, n_atoms, ax, **plot_params
            As in `from_atoms`; convolutional atoms have their shape already.

        Returns
        -------
        AtomsDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "components_")
        atoms = estimator.components_
        if X is not None:
            usage = np.count_nonzero(signed_codes(estimator, estimator.transform(X)), axis=0)
            atoms = atoms[np.argsort(-usage, kind="stable")]
        image_shape = shape_of_images(estimator, image_shape)
        return cls.from_atoms(atoms, image_shape=image_shape, n_atoms=n_atoms, ax=ax, **plot_params)

    def plot(self, *, ax=None, n_columns=None, **image_kwargs):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        n_columns : int, default=None
            Atoms in a row; by default about as many as rows.
        **image_kwargs : dict
            Passed to `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        AtomsDisplay
            This object.
        """
        n_atoms, height, width = self.images.shape[:3]
        n_columns = math.ceil(math.sqrt(n_atoms)) if n_columns is None else n_columns
        n_rows = math.ceil(n_atoms / n_columns)
        largest = np.abs(self.images).reshape(n_atoms, -1).max(axis=1)
        scale = np.where(largest > 0, largest, 1).reshape(-1, *[1] * (self.images.ndim - 1))
        grid = np.full((n_rows * n_columns, height + 1, width + 1, *self.images.shape[3:]), np.nan)
        grid[:n_atoms, :height, :width] = self.images / scale
        grid = grid.reshape(n_rows, n_columns, *grid.shape[1:]).swapaxes(1, 2)
        grid = grid.reshape(n_rows * (height + 1), n_columns * (width + 1), *self.images.shape[3:])
        grid = grid[:-1, :-1]  # no line after the last row and column
        if grid.ndim == 3:  # colours from 0 to 1, lines white
            grid = np.nan_to_num(0.5 + 0.5 * grid, nan=1.0)
        longest = max(grid.shape[:2])
        size = [max(1.5, 6.4 * side / longest) for side in (grid.shape[1], grid.shape[0])]
        self.ax_, self.figure_ = axes_to_draw_on(ax, figsize=size)
        self.image_ = self.ax_.imshow(grid, **(GREYS | image_kwargs))
        self.ax_.set_axis_off()
        return self


class CodesDisplay:
    """Which atoms samples use, how many, and how strongly.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, n_components)
        Codes.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    heights_ : ndarray
        What was drawn: for "usage" the share of samples that use each atom, in falling order; for
        "count" and "magnitude" the number of samples, or of nonzero entries, in each bin.
    """

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def from_codes(cls, codes, *, kind="usage", ax=None):
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
            What was drawn.
        """
        return cls(check_array(host_array(codes), input_name="codes")).plot(kind=kind, ax=ax)

    @classmethod
    def from_estimator(cls, estimator, X, *, kind="usage", ax=None):
        """Draw the codes that a fitted learner gives samples.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_`` and ``transform``.
        X : array-like
            Samples, as `transform` takes them. Codes of a convolutional learner count position by
            position.
        kind, ax
            As in `plot`.

        Returns
        -------
        CodesDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "components_")
        return cls.from_codes(signed_codes(estimator, estimator.transform(X)), kind=kind, ax=ax)

    def plot(self, *, kind="usage", ax=None):
        """Draw.

        Parameters
        ----------
        kind : {"usage", "count", "magnitude"}, default="usage"
            The share of samples that use each atom; a histogram of the number of atoms that a
            sample uses; or one of the moduli of nonzero entries.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        CodesDisplay
            This object.

        Raises
        ------
        ValueError
            If `kind` is none of these.
        """
        kinds = ("usage", "count", "magnitude")
        if kind not in kinds:
            raise ValueError(f"kind is {kind!r}; it must be one of {kinds}.")
        used = self.codes != 0
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        if kind == "usage":
            self.heights_ = np.sort(used.mean(axis=0))[::-1]
            self.ax_.fill_between(np.arange(1, len(self.heights_) + 1), self.heights_, step="mid")
            self.ax_.set(xlabel="Atom, most used first", ylabel="Share of samples that use it")
            self.ax_.set_ylim(bottom=0)
            return self
        values = used.sum(axis=1) if kind == "count" else np.abs(self.codes[used])
        bins = np.arange(values.max() + 2) - 0.5 if kind == "count" else 50
        self.heights_, _, _ = self.ax_.hist(values, bins=bins)
        labels = {
            "count": ("Atoms that a sample uses", "Samples"),
            "magnitude": ("Modulus of a nonzero entry", "Entries"),
        }
        self.ax_.set(**dict(zip(("xlabel", "ylabel"), labels[kind])))
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
        What was drawn on.
    image_ : matplotlib AxesImage
        The matrix.
    """

    def __init__(self, coherences):
        self.coherences = coherences

    @classmethod
    def from_dictionaries(cls, dictionary, reference, *, ax=None, **image_kwargs):
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
            What was drawn; atoms without a match come last.
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
    def from_estimator(cls, estimator, reference, *, ax=None, **image_kwargs):
        """Draw how the atoms of a fitted learner compare with known ones.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_``.
        reference : array-like of shape (n_reference, ...)
            Known atoms.
        ax, **image_kwargs
            As in `plot`.

        Returns
        -------
        RecoveryDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "components_")
        return cls.from_dictionaries(estimator.components_, reference, ax=ax, **image_kwargs)

    def plot(self, *, ax=None, **image_kwargs):
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
        return self
