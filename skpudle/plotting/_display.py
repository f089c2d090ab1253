"""What all displays share: arrays, and axes to draw them on. Matplotlib is imported on demand."""

from typing import Any, Self


def matplotlib():
    """Import what displays use of matplotlib."""
    try:
        import matplotlib.colors
        import matplotlib.pyplot
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which is not installed. Install it with "
            "`pip install skpudle[plot]`."
        ) from error
    return matplotlib


def tick_whole_numbers(*axes):
    """Tick axes that count, of atoms or epochs, at whole numbers only."""
    for axis in axes:
        axis.set_major_locator(matplotlib().ticker.MaxNLocator(integer=True, min_n_ticks=1))


class Display:
    """Arrays, which `plot` draws; a subclass says how in ``_draw``."""

    def plot(self, *, ax: Any = None, **options: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; by default a new figure.
        **options : dict
            Options that the class describes, and those of the function of matplotlib that draws.

        Returns
        -------
        Display
            This object.
        """
        if ax is None:
            new = matplotlib().pyplot.subplots
            ax = new(layout="constrained", figsize=self._size(**options))[1]
        self.ax_, self.figure_ = ax, ax.figure
        self._draw(**options)
        return self

    def _size(self, **options):
        """Return width and height of a new figure in inches; None is matplotlib's default."""

    def _draw(self, **options):
        raise NotImplementedError
