"""Displays of what atoms are made of, and of how many of them come back."""

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from skpudle._data.arrays import host_array
from skpudle._drawing import as_images, axes_to_draw_on, signed_codes
from skpudle.inspection import atom_contributions, reconstruction_contributions
from skpudle.metrics import dictionary_stability

__all__ = ["ContributionsDisplay", "StabilityDisplay"]


class ContributionsDisplay:
    """Atoms or reconstructions beside the training samples that make them, a row each.

    A row shows what is made, what all contributions together make of it, and the samples with the
    largest ones, with the sign of the contribution, which is written on them. Every image is scaled
    to its own largest modulus; zero is mid-grey.

    Parameters
    ----------
    images : ndarray of shape (n_targets, 2 + n_largest, height, width)
        The images, row by row.
    values : ndarray of shape (n_targets, n_largest)
        The contributions.
    labels : list of str
        What the first two columns are.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    image_ : matplotlib AxesImage
        The grid.
    """

    def __init__(self, images, values, labels):
        self.images, self.values, self.labels = images, values, labels

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X_train,
        X=None,
        *,
        atoms=None,
        n_largest=6,
        ridge=0.0,
        image_shape=None,
        ax=None,
    ):
        """Draw what a fitted learner's atoms, or its reconstructions of samples, are made of.

        Parameters
        ----------
        estimator : estimator
            Fitted, with ``components_`` of rows and ``transform``.
        X_train : array-like of shape (n_train, n_features)
            The training samples.
        X : array-like of shape (n_samples, n_features), default=None
            Samples whose reconstructions to draw; by default atoms are drawn.
        atoms : array-like of int, default=None
            Which atoms; by default the six that samples use most.
        n_largest : int, default=6
            How many samples to draw in a row.
        ridge : float, default=0.0
            As in `skpudle.inspection.atom_contributions`.
        image_shape : tuple of int, default=None
            (height, width), that the features are reshaped to. By default they become squares.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        ContributionsDisplay
            What was drawn.

        Raises
        ------
        ValueError
            If samples are no grey images of this shape.
        """
        check_is_fitted(estimator, "components_")
        X_train = check_array(host_array(X_train), input_name="X_train")
        options = dict(ridge=ridge, n_largest=min(n_largest, len(X_train)))
        if X is None:
            if atoms is None:
                codes = signed_codes(estimator, estimator.transform(X_train))
                atoms = np.argsort(-np.count_nonzero(codes, axis=0), kind="stable")[:6]
            rows, labels = np.asarray(atoms), ["atom", "estimate"]
            found = atom_contributions(estimator, X_train, **options)
            targets = estimator.components_[rows]
        else:
            found = reconstruction_contributions(estimator, X_train, X, **options)
            rows, labels = slice(None), ["sample", "estimate"]
            targets = check_array(host_array(X), input_name="X")
        values = found.values[rows]
        made_of = X_train[found.indices[rows]] * np.sign(values)[:, :, None]
        together = np.concatenate([targets[:, None], found.estimates[rows][:, None], made_of], 1)
        images = as_images(together.reshape(-1, together.shape[2]), image_shape)
        if images.ndim != 3:
            raise ValueError(
                f"Contributions are drawn as grey images, got image_shape={image_shape}; pass "
                "(height, width)."
            )
        images = images.reshape(*together.shape[:2], *images.shape[1:])
        return cls(images, values, labels).plot(ax=ax)

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
        ContributionsDisplay
            This object.
        """
        n_rows, n_columns, height, width = self.images.shape
        largest = np.abs(self.images).max(axis=(2, 3), keepdims=True)
        grid = np.full((n_rows, n_columns, height + 1, width + 1), np.nan)
        grid[:, :, :height, :width] = self.images / np.where(largest > 0, largest, 1)
        grid = grid.swapaxes(1, 2).reshape(n_rows * (height + 1), n_columns * (width + 1))
        self.ax_, self.figure_ = axes_to_draw_on(ax, figsize=(0.9 * n_columns, 0.95 * n_rows + 0.3))
        defaults = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
        self.image_ = self.ax_.imshow(grid[:-1, :-1], **(defaults | image_kwargs))
        middles = np.arange(n_columns) * (width + 1) + (width - 1) / 2
        names = [*self.labels, *map(str, range(1, n_columns - 1))]
        self.ax_.set_xticks(middles, names)
        self.ax_.xaxis.tick_top()
        self.ax_.tick_params(length=0)
        self.ax_.set_yticks([])
        for i, values in enumerate(self.values):
            for j, value in enumerate(values):
                place = (j + 2) * (width + 1), i * (height + 1)
                box = {"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0}
                text = f"{value:+.2g}"
                self.ax_.text(*place, text, size=7, va="top", ha="left", bbox=box)
        return self


class StabilityDisplay:
    """How well dictionaries of several sizes come back, against their number of atoms.

    Parameters
    ----------
    n_components : ndarray of shape (n_sizes,)
        Numbers of atoms.
    atoms : list of ndarray of shape (n_dictionaries, n_components)
        Stability of every atom, of each size.
    threshold : float, default=0.9
        From which an atom counts as stable.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    line_, count_line_ : matplotlib Line2D
        The mean stability, and the number of stable atoms, which has the axis on the right.
    count_ax_ : matplotlib Axes
        The axes of the latter.
    """

    def __init__(self, n_components, atoms, threshold=0.9):
        self.n_components, self.atoms, self.threshold = n_components, atoms, threshold

    @classmethod
    def from_dictionaries(cls, dictionaries, *, threshold=0.9, ax=None):
        """Draw the stability of dictionaries of several sizes.

        Parameters
        ----------
        dictionaries : iterable of lists of array-like of shape (n_components, ...)
            For every size the ``components_`` of fits that are independent of each other.
        threshold : float, default=0.9
            As in `skpudle.metrics.dictionary_stability`.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        StabilityDisplay
            What was drawn.
        """
        atoms = [dictionary_stability(fits).atoms for fits in dictionaries]
        atoms.sort(key=lambda stability: stability.shape[1])
        sizes = np.array([stability.shape[1] for stability in atoms])
        return cls(sizes, atoms, threshold).plot(ax=ax)

    def plot(self, *, ax=None, **line_kwargs):
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.plot` for the mean.

        Returns
        -------
        StabilityDisplay
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        means = [stability.mean() for stability in self.atoms]
        counts = [(s >= self.threshold).sum(axis=1).mean() for s in self.atoms]
        style = {"marker": "o", "color": "C0", "label": "mean stability"} | line_kwargs
        (self.line_,) = self.ax_.plot(self.n_components, means, **style)
        self.ax_.set(xlabel="Number of atoms", ylabel="Mean stability")
        self.ax_.set_ylim(top=1.02)
        self.count_ax_ = self.ax_.twinx()
        (self.count_line_,) = self.count_ax_.plot(
            self.n_components, counts, marker="s", color="C1", label="stable atoms"
        )
        self.count_ax_.set_ylabel(f"Atoms of stability {self.threshold:g} or more")
        self.count_ax_.set_ylim(bottom=0)
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "frameon": False}
        self.ax_.legend(handles=[self.line_, self.count_line_], **place)
        return self
