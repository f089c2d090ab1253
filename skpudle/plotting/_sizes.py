"""Displays of the stability of atoms, and of how their number and the penalty were chosen."""

from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpudle._fitted.drawing import axes_to_draw_on, tick_whole_numbers


class ConsensusDisplay:
    """The stability of each atom of a consensus, most stable first.

    Parameters
    ----------
    stability : ndarray of shape (n_components,)
        Mean similarity of the matched atoms of replicates.
    agreeing : ndarray of shape (n_components,)
        Share of the replicates whose atom is no outlier.
    threshold : float, default=0.9
        Stability from which an atom counts as stable.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    line_, agreeing_line_, threshold_line_ : matplotlib Line2D
        The stability, the share of replicates that agree, and the threshold.
    order_ : ndarray of shape (n_components,)
        Atoms in the order of drawing.
    """

    def __init__(self, stability: np.ndarray, agreeing: np.ndarray, threshold: float = 0.9) -> None:
        self.stability, self.agreeing, self.threshold = stability, agreeing, threshold

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, threshold: float = 0.9, ax: Any = None, **line_kwargs: Any
    ) -> Self:
        """Draw the stability of a fitted consensus.

        Parameters
        ----------
        estimator : ConsensusDictionary
            Fitted.
        threshold : float, default=0.9
            Stability from which an atom counts as stable.
        ax, **line_kwargs
            As in `plot`.

        Returns
        -------
        ConsensusDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "stability_")
        agreeing = estimator.n_agreeing_ / len(estimator.replicates_)
        return cls(estimator.stability_, agreeing, threshold).plot(ax=ax, **line_kwargs)

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.plot` for the stability.

        Returns
        -------
        ConsensusDisplay
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        self.order_ = np.argsort(-self.stability, kind="stable")
        places = np.arange(1, len(self.order_) + 1)
        style = {"marker": ".", "color": "C0", "label": "stability"} | line_kwargs
        (self.line_,) = self.ax_.plot(places, self.stability[self.order_], **style)
        (self.agreeing_line_,) = self.ax_.plot(
            places,
            self.agreeing[self.order_],
            color="C1",
            linestyle="none",
            marker="x",
            label="share of replicates that agree",
        )
        n_stable = int((self.stability >= self.threshold).sum())
        self.threshold_line_ = self.ax_.axhline(self.threshold, color="grey", linestyle=":")
        self.ax_.set(
            xlabel="Atom, most stable first",
            ylabel="Stability",
            title=f"{n_stable} of {len(places)} atoms with {self.threshold:g} or more",
        )
        tick_whole_numbers(self.ax_.xaxis)
        self.ax_.set_ylim(0, 1.02)
        self.ax_.legend()
        return self


class SizePathDisplay:
    """The loss of score against the best number of atoms, and the number that was chosen.

    The choice is the smallest number whose loss counts as chance: it lies in the grey band of one
    standard error, within bounds. (Growth compares numbers on more samples than the score has, so
    that a smaller number occasionally lies in the band as well.) Losses have a linear scale inside
    the band and a logarithmic scale above, since the first atoms improve the score hundreds of
    times more.

    Parameters
    ----------
    n_components : ndarray of shape (n_sizes,)
        Numbers of atoms that were tried, increasing.
    score : ndarray of shape (n_sizes,)
        Scores of held-out samples, as in ``size_path_``.
    tolerance : ndarray of shape (n_sizes,)
        The loss against the best score that counts as chance, as in ``size_path_``.
    chosen : int
        The number that was chosen.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    line_, chosen_line_ : matplotlib Line2D
        The losses, and the chosen number.
    band_ : matplotlib PolyCollection
        The losses that count as chance.
    """

    def __init__(
        self, n_components: np.ndarray, score: np.ndarray, tolerance: np.ndarray, chosen: int
    ) -> None:
        self.n_components, self.score, self.chosen = n_components, score, chosen
        self.tolerance = tolerance

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw how a fitted learner chose its number of atoms.

        Parameters
        ----------
        estimator : estimator
            Fitted with ``n_components="auto"``.
        ax, **line_kwargs
            As in `plot`.

        Returns
        -------
        SizePathDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "size_path_")
        path, chosen = estimator.size_path_, estimator.n_components_
        display = cls(path.n_components, path.score, path.tolerance, chosen)
        return display.plot(ax=ax, **line_kwargs)

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.plot` for the losses.

        Returns
        -------
        SizePathDisplay
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        best = self.score.max()
        style = {"marker": ".", "zorder": 3} | line_kwargs
        (self.line_,) = self.ax_.plot(self.n_components, best - self.score, **style)
        self.band_ = self.ax_.fill_between(
            self.n_components, self.tolerance, color="0.85", label="counts as chance"
        )
        self.chosen_line_ = self.ax_.axvline(self.chosen, color="grey", linestyle=":")
        self.ax_.set(
            xlabel="Number of atoms",
            ylabel=f"Loss of score against the best, {best:.3g}",
            title=f"{self.chosen} atoms",
        )
        # with fewer than 20 samples the path has no scores, and exact scores have no tolerance
        self.ax_.set_yscale("symlog", linthresh=np.nanmax(self.tolerance, initial=1e-9))
        self.ax_.set_ylim(bottom=0)
        self.ax_.legend()
        tick_whole_numbers(self.ax_.xaxis)
        return self


class PenaltyPathDisplay:
    """The energy of hidden entries that atoms explain against the penalty of their search.

    Parameters
    ----------
    alpha : ndarray of shape (n_trials,)
        Penalties that were tried, in the order of the search.
    score : ndarray of shape (n_trials,)
        Share of the energy of hidden entries of held-out samples that the atoms explain.
    unbiased : ndarray of shape (n_trials,), bool
        Whether these are atoms without the lasso's bias.
    chosen : float
        The penalty that was chosen.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        What was drawn on.
    lines_ : list of matplotlib Line2D
        The scores of each path: the rounds of a search may begin again at a penalty that was tried.
        The last line is the path of the result.
    unbiased_line_, chosen_line_ : matplotlib Line2D
        The scores of atoms without bias, and the chosen penalty.
    """

    def __init__(
        self, alpha: np.ndarray, score: np.ndarray, unbiased: np.ndarray, chosen: float
    ) -> None:
        self.alpha, self.score, self.unbiased, self.chosen = alpha, score, unbiased, chosen

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw how the search of a fitted learner chose its penalty.

        Parameters
        ----------
        estimator : estimator
            Fitted with a search.
        ax, **line_kwargs
            As in `plot`.

        Returns
        -------
        PenaltyPathDisplay
            What was drawn.
        """
        check_is_fitted(estimator, "penalty_path_")
        path, chosen = estimator.penalty_path_, estimator.search_alpha_
        display = cls(path.alpha, path.score, path.unbiased, chosen)
        return display.plot(ax=ax, **line_kwargs)

    def plot(self, *, ax: Any = None, **line_kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **line_kwargs : dict
            Passed to `matplotlib.axes.Axes.plot` for the scores.

        Returns
        -------
        PenaltyPathDisplay
            This object.
        """
        self.ax_, self.figure_ = axes_to_draw_on(ax)
        style = {"marker": "."} | line_kwargs
        self.lines_ = []
        for part in _paths(self.alpha):
            (line,) = self.ax_.semilogx(self.alpha[part], self.score[part], **style)
            self.lines_.append(line)
            style = style | {"color": line.get_color()}
        for line in self.lines_[:-1]:  # all paths but the last, whose atoms were replaced
            line.set_alpha(0.4)
        (self.unbiased_line_,) = self.ax_.plot(
            self.alpha[self.unbiased],
            self.score[self.unbiased],
            color=self.lines_[-1].get_color(),
            linestyle="none",
            marker="o",
            fillstyle="none",
            label="without the lasso's bias",
        )
        self.chosen_line_ = self.ax_.axvline(self.chosen, color="grey", linestyle=":")
        self.ax_.set(
            xlabel="Penalty of the search",
            ylabel="Explained share of hidden entries",
            title=f"Penalty {self.chosen:.3g}",
        )
        ends = np.log10([self.alpha.min(), self.alpha.max()])
        self.ax_.set_xticks(
            10 ** np.linspace(*ends, 4),
            labels=[f"{alpha:.2g}" for alpha in 10 ** np.linspace(*ends, 4)],
        )
        self.ax_.minorticks_off()
        self.ax_.legend()
        return self


def _paths(alpha):  # -> index arrays, in increasing order of penalties
    """Cut trials into paths, each of which tries a penalty once."""
    paths = [[]]
    for place, value in enumerate(alpha):
        if paths[-1] and np.isclose(alpha[paths[-1]], value).any():
            paths.append([])
        paths[-1].append(place)
    return [np.array(path)[np.argsort(alpha[path], kind="stable")] for path in paths]
