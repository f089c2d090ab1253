"""Figures and axes; matplotlib is imported when one is asked for."""

__all__ = ["axes_to_draw_on", "new_figure"]


def _matplotlib():
    try:
        import matplotlib.figure
        import matplotlib.pyplot
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which is not installed. Install it with "
            "`pip install skpudle[plot]`."
        ) from error
    return matplotlib


def new_figure(**kwargs):
    """Return a figure that no window manager and no `show` knows."""
    return _matplotlib().figure.Figure(layout="constrained", **kwargs)


def axes_to_draw_on(ax, **kwargs):
    """Return the axes and their figure, new ones by `kwargs` if there are none."""
    if ax is None:
        ax = _matplotlib().pyplot.subplots(layout="constrained", **kwargs)[1]
    return ax, ax.figure
