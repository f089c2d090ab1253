"""Displays of codes, of training, of choices by the data, and of atoms that are found again."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skpudle.inspection._learner import encode_samples, find_learner
from skpudle.metrics import dictionary_stability, match_atoms
from skpudle.metrics._measures import atom_cosines
from skpudle.plotting._display import Display, tick_whole_numbers

# approximate largest number of bins in a histogram of numbers of atoms
_BINS = 50
# dash styles of successive curves: a curve shows through the gaps of a curve drawn on it
_DASHES = "-", (0, (4, 4)), (0, (1, 3))


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
        used, ax = self.codes != 0, self.ax_
        if kind == "usage":
            self.heights_ = np.sort(used.sum(axis=0) / (self.samples[-1] + 1))[::-1]
            edges = np.arange(len(self.heights_) + 1) + 0.5
            ax.stairs(self.heights_, edges, **({"fill": True} | style))
            ax.set(xlabel="Atom, most used first", ylabel="Uses in a sample", ylim=(0, None))
            tick_whole_numbers(ax.xaxis)
            return
        if kind == "count":
            values = np.bincount(self.samples, used.sum(axis=1)).astype(int)
            step = max(1, values.max() // _BINS)
            bins = np.arange(0, values.max() + step + 1, step) - 0.5
            ax.set(xlabel="Atoms that a sample uses", ylabel="Samples")
            tick_whole_numbers(ax.xaxis)
        else:
            values, bins = np.abs(self.codes[used]), _BINS
            ax.set(xlabel="Modulus of a nonzero entry", ylabel="Entries")
        self.heights_, _, _ = ax.hist(values, **({"bins": bins} | style))
        tick_whole_numbers(ax.yaxis)


@dataclass(eq=False, repr=False)
class LossCurveDisplay(Display):
    """Loss against epochs, one line per learner.

    The loss of a search jumps when the search replaces atoms. Its line is the smallest loss so far,
    in front of a pale line of all losses.

    Parameters
    ----------
    curves : dict of str to ndarray of shape (n_epochs,)
        Losses of each learner.
    n_searched : dict of str to int
        Number of first epochs that were of a search, by the same labels.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    lines_ : list of matplotlib Line2D
        One per curve.

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
            Fitted, with ``loss_curve_``, or a pipeline or search with such a learner; or several by
            their labels. The label of one is the name of its class.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        LossCurveDisplay
            The display, drawn.
        """
        given = estimator if isinstance(estimator, dict) else {None: estimator}
        learners = [find_learner(one, "loss_curve_").learner for one in given.values()]
        names = [name or type(one).__name__ for name, one in zip(given, learners)]
        curves = {name: one.loss_curve_ for name, one in zip(names, learners)}
        searched = [getattr(one, "phases_", {}).get("search", 0) for one in learners]
        return cls(curves, dict(zip(names, searched))).plot(**options)

    def _draw(self, **style):
        self.lines_ = []
        for (name, curve), dashes in zip(self.curves.items(), cycle(_DASHES)):
            n, epochs = self.n_searched[name], np.arange(1, len(curve) + 1)
            best = np.concatenate([np.minimum.accumulate(curve[:n]), curve[n:]])
            own = {"linestyle": dashes, "label": name} | style
            self.lines_ += self.ax_.semilogy(epochs, best, **own)
            pale = dict(color=self.lines_[-1].get_color(), alpha=0.25, linewidth=1)
            self.ax_.semilogy(epochs[:n], curve[:n], label="_search", **pale)
        self.ax_.set(xlabel="Epoch", ylabel=r"Loss, mean of $\frac{1}{2} \|x - D z\|^2$")
        tick_whole_numbers(self.ax_.xaxis)
        self.ax_.legend()


@dataclass(eq=False, repr=False)
class PathDisplay(Display):
    """What a learner tried to choose its number of atoms or the penalty of its search.

    "size" is the loss of score against the best number of atoms. The choice is the smallest number
    whose loss counts as chance: it lies in the grey band of one standard error, within bounds.
    (Growth compares numbers on more samples than the score has, so that a smaller number
    occasionally lies in the band as well.) Losses have a linear scale inside the band and a
    logarithmic scale above, since the first atoms improve the score hundreds of times more.

    "penalty" is the energy of hidden entries that atoms explain, in the order of the trials: the
    rounds of a search may begin again at a penalty that was tried.

    Parameters
    ----------
    path : object
        ``size_path_`` or ``penalty_path_`` of a learner.
    chosen : float
        What was chosen.
    kind : {"size", "penalty"}
        Which path this is.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    line_, chosen_line_ : matplotlib Line2D
        The trials, and the choice.
    band_ : matplotlib PolyCollection
        The losses that count as chance.
    unbiased_line_ : matplotlib Line2D
        The scores of atoms without the lasso's bias.

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.plot` for the trials.
    """

    path: Any
    chosen: float
    kind: Literal["size", "penalty"]

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, kind: Literal["size", "penalty"] = "size", **options: Any
    ) -> Self:
        """Draw how a fitted learner chose.

        Parameters
        ----------
        estimator : estimator
            Fitted with ``n_components="auto"``, or with a search for its penalty, or a pipeline or
            search with such a learner.
        kind : {"size", "penalty"}, default="size"
            Draw the choice of the number of atoms, or of the penalty of the search.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        PathDisplay
            The display, drawn.
        """
        chosen = {"size": "n_components_", "penalty": "search_alpha_"}[kind]
        learner = find_learner(estimator, f"{kind}_path_").learner
        path = getattr(learner, f"{kind}_path_")
        return cls(path, getattr(learner, chosen), kind).plot(**options)

    def _draw(self, **style):
        draw = self._draw_sizes if self.kind == "size" else self._draw_penalties
        draw({"marker": ".", "zorder": 3} | style)
        self.chosen_line_ = self.ax_.axvline(self.chosen, color="grey", linestyle=":")
        self.ax_.set_title(f"Chosen: {self.chosen:.4g}")
        self.ax_.legend()

    def _draw_sizes(self, style):
        sizes, best, tolerance = self.path.n_components, self.path.score.max(), self.path.tolerance
        (self.line_,) = self.ax_.plot(sizes, best - self.path.score, **style)
        band = dict(color="0.85", label="counts as chance")
        self.band_ = self.ax_.fill_between(sizes, tolerance, **band)
        loss = f"Loss of score against the best, {best:.3g}"
        self.ax_.set(xlabel="Number of atoms", ylabel=loss)
        # with fewer than 20 samples the path has no scores, and exact scores have no tolerance
        self.ax_.set_yscale("symlog", linthresh=np.nanmax(tolerance, initial=1e-9))
        self.ax_.set_ylim(bottom=0)
        tick_whole_numbers(self.ax_.xaxis)

    def _draw_penalties(self, style):
        alpha, score, unbiased = self.path.alpha, self.path.score, self.path.unbiased
        (self.line_,) = self.ax_.semilogx(alpha, score, **style)
        ring = dict(color=self.line_.get_color(), fillstyle="none", label="without lasso's bias")
        (self.unbiased_line_,) = self.ax_.plot(alpha[unbiased], score[unbiased], "o", **ring)
        self.ax_.set(xlabel="Penalty of the search", ylabel="Explained share of hidden entries")


@dataclass(eq=False, repr=False)
class StabilityDisplay(Display):
    """Stability of the atoms of a consensus, or of dictionaries against their number of atoms.

    Parameters
    ----------
    x : ndarray of shape (n,)
        Places of the values: ranks of atoms, or numbers of atoms.
    stability : ndarray of shape (n,)
        Stability of each atom, or mean stability of dictionaries.
    second : ndarray of shape (n,)
        Values for the right axis.
    labels : tuple of str
        Names of both axes of values, and of the axis of their places.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes drawn on, and their figure.
    right_ax_ : matplotlib Axes
        The right axis.
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
            A fitted consensus: the stability of each atom, the most stable first, and the share of
            fits that agree on it. Or for every size independent fits, or their ``components_``.
        scores : array-like of shape (n_sizes,), default=None
            Score of held-out samples for every size, such as the mean of its fits, for the right
            axis in place of the number of stable atoms of `skpudle.metrics.dictionary_stability`.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        StabilityDisplay
            The display, drawn.
        """
        if hasattr(estimator, "fit"):
            check_is_fitted(estimator, "stability_")
            order = np.argsort(-estimator.stability_, kind="stable")
            agreeing = estimator.n_agreeing_[order] / len(estimator.replicates_)
            labels = "Stability", "Share of replicates that agree", "Atom, most stable first"
            values = np.arange(1, len(order) + 1), estimator.stability_[order], agreeing
            return cls(*values, labels).plot(**options)
        found = [dictionary_stability(fits) for fits in estimator]
        name = "Stable atoms" if scores is None else "Score of held-out samples"
        scores = [one.n_stable for one in found] if scores is None else scores
        rows = zip((one.atoms.shape[1] for one in found), found, scores, strict=True)
        values = np.array(sorted((n, one.stability, score) for n, one, score in rows)).T
        return cls(*values, ("Mean stability", name, "Number of atoms")).plot(**options)

    def _draw(self, **style):
        left, right, below = self.labels
        style = {"marker": "o", "color": "C0", "label": left} | style
        (self.line_,) = self.ax_.plot(self.x, self.stability, **style)
        self.right_ax_ = self.ax_.twinx()
        (self.right_line_,) = self.right_ax_.plot(self.x, self.second, "C1s-", label=right)
        self.right_ax_.set(ylabel=right)
        self.ax_.set(xlabel=below, ylabel=left, ylim=(None, 1.02))
        tick_whole_numbers(self.ax_.xaxis)
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 2, "frameon": False}
        self.ax_.legend(handles=[self.line_, self.right_line_], **place)


@dataclass(eq=False, repr=False)
class RecoveryDisplay(Display):
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

    Notes
    -----
    Options of `plot` go to `matplotlib.axes.Axes.imshow`.
    """

    coherences: np.ndarray

    @classmethod
    def from_estimator(cls, estimator: Any, reference: ArrayLike, **options: Any) -> Self:
        """Draw how the atoms of a fitted learner compare with known ones.

        Parameters
        ----------
        estimator : estimator or array-like of shape (n_components, ...)
            Fitted learner, or a pipeline or search with one, whose atoms are compared in the
            features of the data, as in `AtomsDisplay.from_estimator`; or atoms.
        reference : array-like of shape (n_reference, ...)
            Known atoms.
        **options : dict
            Passed to `plot`.

        Returns
        -------
        RecoveryDisplay
            The display, drawn; atoms without a match come last.
        """
        atoms = find_learner(estimator).atoms() if hasattr(estimator, "fit") else estimator
        match, cosines = match_atoms(atoms, reference), np.abs(atom_cosines(atoms, reference))
        orders = [
            np.concatenate([taken, np.setdiff1d(np.arange(size), taken)])
            for size, taken in zip(cosines.shape, (match.reference_indices, match.indices))
        ]
        return cls(cosines[np.ix_(*orders)]).plot(**options)

    def _draw(self, **style):
        matrix = {"cmap": "viridis", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
        self.image_ = self.ax_.imshow(self.coherences, **(matrix | style))
        self.figure_.colorbar(self.image_, ax=self.ax_, label="Coherence")
        self.ax_.set(xlabel="Learned atom", ylabel="Known atom")
        tick_whole_numbers(self.ax_.xaxis, self.ax_.yaxis)
