"""Displays of the training samples behind each atom, and of the atoms that recur in other fits."""

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from skpudle._data.arrays import host_array
from skpudle._fitted.drawing import (
    as_pictures,
    axes_to_draw_on,
    draw_grid,
    label_rows,
    tick_whole_numbers,
)
from skpudle._fitted.learners import find_learner, signed_codes
from skpudle.inspection import atom_contributions, reconstruction_contributions
from skpudle.metrics import dictionary_stability


class ContributionsDisplay:
    """Atoms or reconstructions next to the training samples that make them, a row each.

    A row shows an atom or reconstruction, its estimate from all contributions, and the samples with
    the largest contributions. A sample is drawn with the sign of its contribution, which is written
    on it. All are images or lines, as in `AtomsDisplay`.

    Parameters
    ----------
    pictures : ndarray of shape (n_targets, 2 + n_largest, height, width[, 3]) or \
            (n_targets, 2 + n_largest, length, n_channels)
        Images or lines, row by row.
    values : ndarray of shape (n_targets, n_largest)
        The contributions.
    labels : list of str
        Names of the first two columns.
    row_labels : list of str
        Names of the rows.
    kind : {"images", "lines"}, default="images"
        Whether pictures are images or lines.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    image_, lines_
        As of `AtomsDisplay`.
    """

    def __init__(
        self,
        pictures: np.ndarray,
        values: np.ndarray,
        labels: list[str],
        row_labels: list[str],
        kind: Literal["images", "lines"] = "images",
    ) -> None:
        self.pictures, self.values, self.kind = pictures, values, kind
        self.labels, self.row_labels = labels, row_labels

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_train: ArrayLike,
        X: ArrayLike | None = None,
        *,
        atoms: ArrayLike | None = None,
        n_largest: int = 6,
        ridge: float = 0.0,
        kind: Any = "auto",
        image_shape: tuple[int, ...] | None = None,
        ax: Any = None,
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
            Samples to draw the reconstructions of; by default atoms are drawn.
        atoms : array-like of int, default=None
            Which atoms; by default the six that samples use most.
        n_largest : int, default=6
            How many samples to draw in a row.
        ridge : float, default=0.0
            As in `skpudle.inspection.atom_contributions`.
        kind, image_shape
            As in `AtomsDisplay.from_atoms`.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        ContributionsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If samples do not have `image_shape`, or not the shape that `kind` needs.
        """
        found = find_learner(estimator)
        X_train, learner = found.prepare(X_train), found.learner
        samples = check_array(host_array(X_train), input_name="X_train")
        options = dict(ridge=ridge, n_largest=min(n_largest, len(samples)))
        if X is None:
            if atoms is None:
                codes = signed_codes(learner, learner.transform(X_train))
                atoms = np.argsort(-np.count_nonzero(codes, axis=0), kind="stable")[:6]
            rows, labels = np.asarray(atoms), ["atom", "estimate"]
            made = atom_contributions(learner, X_train, **options)
            targets = learner.components_[rows]
        else:
            X = found.prepare(X)
            made = reconstruction_contributions(learner, X_train, X, **options)
            targets = check_array(host_array(X), input_name="X")
            rows, labels = np.arange(len(targets)), ["sample", "estimate"]
        values = made.values[rows]
        made_of = samples[made.indices[rows]] * np.sign(values)[:, :, None]
        together = np.concatenate([targets[:, None], made.estimates[rows][:, None], made_of], 1)
        flat = found.to_data(together.reshape(-1, together.shape[2]))
        kind, pictures = as_pictures(flat, kind=kind, image_shape=image_shape)
        pictures = pictures.reshape(*together.shape[:2], *pictures.shape[1:])
        row_labels = [f"{labels[0]} {row}" for row in rows]
        return cls(pictures, values, labels, row_labels, kind).plot(ax=ax)

    def plot(self, *, ax: Any = None, **style: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **style : dict
            Passed to `matplotlib.axes.Axes.imshow`, or `matplotlib.axes.Axes.plot` for lines.

        Returns
        -------
        ContributionsDisplay
            This object.
        """
        n_rows, n_columns = self.pictures.shape[:2]
        size = 0.9 * n_columns + 0.7, 0.95 * n_rows + 0.3  # inches, names included
        self.ax_, self.figure_ = axes_to_draw_on(ax, figsize=size)
        flat = self.pictures.reshape(-1, *self.pictures.shape[2:])
        drawn = draw_grid(self.ax_, self.kind, flat, n_columns, **style)
        setattr(self, "image_" if self.kind == "images" else "lines_", drawn)
        label_rows(self.ax_, self.row_labels)
        names = [*self.labels, *["largest", *map(str, range(2, n_columns - 1))][: n_columns - 2]]
        self.ax_.set_xticks(np.arange(n_columns) + 0.5, names)
        self.ax_.xaxis.tick_top()
        alpha = 0.8 if self.kind == "images" else 0  # keep lines visible
        box = {"facecolor": "white", "alpha": alpha, "pad": 1, "linewidth": 0}
        for (i, j), value in np.ndenumerate(self.values):
            place = j + 2, i
            self.ax_.text(*place, f"{value:+.2g}", size=7, va="top", ha="left", bbox=box)
        return self


class StabilityDisplay:
    """Stability of dictionaries of several sizes, against their number of atoms.

    Parameters
    ----------
    n_components : ndarray of shape (n_sizes,)
        Numbers of atoms.
    atoms : list of ndarray of shape (n_dictionaries, n_components)
        Stability of every atom, of each size.
    threshold : float, default=0.9
        Stability from which an atom counts as stable.
    scores : ndarray of shape (n_sizes,), default=None
        Scores of held-out samples, for the right axis. By default it has the number of stable
        atoms.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    line_ : matplotlib Line2D
        The mean stability.
    count_line_, score_line_ : matplotlib Line2D or None
        The number of stable atoms, or the scores, on the right axis; the other is None.
    right_ax_ : matplotlib Axes
        The right axis.
    """

    def __init__(
        self,
        n_components: np.ndarray,
        atoms: list[np.ndarray],
        threshold: float = 0.9,
        scores: np.ndarray | None = None,
    ) -> None:
        self.n_components, self.atoms, self.threshold = n_components, atoms, threshold
        self.scores = scores

    @classmethod
    def from_dictionaries(
        cls,
        dictionaries: Any,
        *,
        threshold: float = 0.9,
        scores: ArrayLike | None = None,
        ax: Any = None,
    ) -> Self:
        """Draw the stability of dictionaries of several sizes.

        Parameters
        ----------
        dictionaries : iterable of lists of array-like of shape (n_components, ...)
            For every size, the ``components_`` of independent fits.
        threshold : float, default=0.9
            As in `skpudle.metrics.dictionary_stability`.
        scores : array-like of shape (n_sizes,), default=None
            Score of held-out samples for every size, such as the mean of its fits.
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.

        Returns
        -------
        StabilityDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If there is not one score for every size.
        """
        atoms = [dictionary_stability(fits).atoms for fits in dictionaries]
        sizes = np.array([stability.shape[1] for stability in atoms])
        order = np.argsort(sizes, kind="stable")
        if scores is not None:
            scores = np.asarray(scores)
            if scores.shape != sizes.shape:
                raise ValueError(
                    f"scores has shape {scores.shape}, for {len(sizes)} sizes. Pass one score for "
                    "every size."
                )
            scores = scores[order]
        return cls(sizes[order], [atoms[i] for i in order], threshold, scores).plot(ax=ax)

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
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
        tick_whole_numbers(self.ax_.xaxis)
        self.ax_.set_ylim(top=1.02)
        self.right_ax_ = self.ax_.twinx()
        self.count_line_ = self.score_line_ = None
        if self.scores is None:
            right = self.count_line_ = self._draw_right(counts, "stable atoms")
            self.right_ax_.set_ylabel(f"Atoms of stability {self.threshold:g} or more")
            self.right_ax_.set_ylim(bottom=0)
        else:
            right = self.score_line_ = self._draw_right(self.scores, "score")
            self.right_ax_.set_ylabel("Score of held-out samples")
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "frameon": False}
        self.ax_.legend(handles=[self.line_, right], **place)
        return self

    def _draw_right(self, values, label):
        style = {"marker": "s", "color": "C1", "label": label}
        return self.right_ax_.plot(self.n_components, values, **style)[0]
