"""Figures, and grids of atoms as images or lines. Matplotlib is imported on demand.

Atoms are defined up to scale: each is drawn scaled to its own largest modulus. The cell in row i
and column j of a grid covers [j, j + 1] and, downwards, [i, i + 1], for images and lines alike.
"""

import math

import numpy as np

KINDS = ("auto", "images", "lines")

GREYS = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}

# height over width of a cell of lines, and the share of the cell that lines fill
_FLATNESS, _FILLED = 0.5, 0.9

# opacity of bands, and of what covers atoms that the data do not support
_BAND, _COVER = 0.3, 0.75

# number of colours before matplotlib repeats them
_N_COLOURS = 10


def _matplotlib():
    try:
        import matplotlib.patches
        import matplotlib.pyplot
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib, which is not installed. Install it with "
            "`pip install skpudle[plot]`."
        ) from error
    return matplotlib


def axes_to_draw_on(ax, **kwargs):
    """Return the axes and their figure; without axes, new ones by `kwargs`."""
    if ax is None:
        ax = _matplotlib().pyplot.subplots(layout="constrained", **kwargs)[1]
    return ax, ax.figure


def new_grid(n_rows, n_columns, **kwargs):  # -> ndarray of Axes, Figure
    """Return new axes in rows and columns, and their figure."""
    subplots = _matplotlib().pyplot.subplots
    figure, axes = subplots(n_rows, n_columns, squeeze=False, layout="constrained", **kwargs)
    return axes, figure


def tick_whole_numbers(*axes):
    """Tick axes that count, of atoms or epochs, at whole numbers only."""
    for axis in axes:
        axis.set_major_locator(_matplotlib().ticker.MaxNLocator(integer=True, min_n_ticks=1))


def _as_images(atoms, image_shape):  # -> (n, height, width) or (n, height, width, 3)
    features = atoms.shape[1:]
    if image_shape is None and len(features) > 1:
        image_shape = features
    elif image_shape is None:
        side = math.isqrt(features[0])
        image_shape = (side, side)
    _check_size(
        features, image_shape, "images", "(height, width), or (height, width, 3) for colours"
    )
    if len(image_shape) not in (2, 3) or (*image_shape, 1)[2] not in (1, 3):
        raise ValueError(
            f"Atoms of shape {tuple(image_shape)} are neither grey nor colour images: expected "
            "(height, width) or (height, width, 3)."
        )
    images = atoms.reshape(-1, *image_shape)
    return images[..., 0] if images.shape[3:] == (1,) else images


def _as_lines(atoms, shape):  # -> (n, length, n_channels)
    features = atoms.shape[1:]
    shape = features if shape is None else shape
    _check_size(features, shape, "lines", "(length,), or (length, n_channels)")
    if len(shape) not in (1, 2):
        raise ValueError(
            f"Atoms of shape {tuple(shape)} are no lines: expected (length,) or (length, "
            "n_channels). Pass kind='images' to draw them as images."
        )
    return atoms.reshape(-1, *shape, *[1] * (2 - len(shape)))


def _check_size(features, shape, kind, expected):
    if math.prod(shape) != math.prod(features):
        raise ValueError(
            f"Atoms of {math.prod(features)} features are no {kind} of shape {tuple(shape)}; pass "
            f"image_shape={expected}."
        )


def as_pictures(atoms, *, kind="auto", image_shape=None):
    """Return atoms as images if they have the shape of an image, else as lines.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, ...)
        Rows, or atoms that have their shape.
    kind : {"auto", "images", "lines"}, default="auto"
        "auto": images if their shape, or ``image_shape``, has two axes or more, else lines.
    image_shape : tuple of int, default=None
        Shape to give to rows.

    Returns
    -------
    kind : {"images", "lines"}
        Kind of the pictures.
    pictures : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        The atoms.

    Raises
    ------
    ValueError
        If the atoms' shape does not fit `kind`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}.")
    if kind == "auto":
        shape = atoms.shape[1:] if image_shape is None else image_shape
        kind = "images" if len(shape) > 1 else "lines"
    return kind, (_as_images if kind == "images" else _as_lines)(atoms, image_shape)


def size_of_grid(kind, pictures, n_columns):  # -> number of columns, size of a figure in inches
    """Return a grid's number of columns, by default of a square grid, and its size in inches."""
    n_atoms, height, width = pictures.shape[:3]
    flatness = _FLATNESS if kind == "lines" else 1
    n_columns = math.ceil(math.sqrt(n_atoms * flatness)) if n_columns is None else n_columns
    n_rows = math.ceil(n_atoms / n_columns)
    sides = n_columns, n_rows * flatness
    if kind == "images":
        sides = n_columns * (width + 1) - 1, n_rows * (height + 1) - 1
    return n_columns, [max(1.5, 6.4 * side / max(sides)) for side in sides]


def draw_grid(ax, kind, pictures, n_columns, **style):  # -> AxesImage, or list of Line2D
    """Draw atoms row by row; `style` goes to `imshow` or `plot`."""
    n_atoms, axes = len(pictures), tuple(range(1, pictures.ndim))
    largest = np.abs(pictures).max(axis=axes, keepdims=True)
    scaled = pictures / np.where(largest > 0, largest, 1)
    return (_draw_images if kind == "images" else _draw_lines)(
        ax, scaled, math.ceil(n_atoms / n_columns), n_columns, style
    )


def draw_bands(ax, lower, upper, pictures, n_columns):  # -> list of FillBetweenPolyCollection
    """Draw bands around the lines of `draw_grid`; ends have the shape of pictures."""
    n_atoms, length, _ = pictures.shape
    largest = np.abs(pictures).max(axis=(1, 2), keepdims=True)
    largest = np.where(largest > 0, largest, 1)
    margin, drawn = (1 - _FILLED) / 2, []
    for atom in range(n_atoms):
        row, column = divmod(atom, n_columns)
        x = column + np.linspace(margin, 1 - margin, length)
        ends = (row + 0.5 - _FILLED / 2 * part[atom] / largest[atom] for part in (lower, upper))
        for channel, (low, high) in enumerate(zip(*(part.T for part in ends), strict=True)):
            style = dict(color=f"C{channel}", alpha=_BAND, linewidth=0)
            drawn.append(ax.fill_between(x, low, high, **style))
    return drawn


def cover_atoms(ax, numbers, n_columns):
    """Fade atoms in a grid of `draw_grid`."""
    for row, column in zip(*np.divmod(np.asarray(numbers, int), n_columns), strict=True):
        patch = _matplotlib().patches.Rectangle
        style = dict(facecolor="white", alpha=_COVER, linewidth=0, zorder=3)
        ax.add_patch(patch((column, row), 1, 1, **style))


def refuse_sampling_rate(sampling_rate):
    """Raise ValueError if pictures, which have no axis of time, are given a rate."""
    if sampling_rate is not None:
        raise ValueError(
            f"sampling_rate={sampling_rate:g}, but these are pictures, without an axis of time. "
            "Leave it out."
        )


def draw_seconds(ax, length, sampling_rate):
    """Draw a bar of a round number of seconds below the first line of a grid of `draw_grid`."""
    seconds = (length - 1) / sampling_rate
    power = 10.0 ** math.floor(math.log10(seconds / 2))
    bar = power * max((step for step in (1, 2, 5) if 2 * step * power <= seconds), default=1)
    bottom, margin = ax.get_ylim()[0], (1 - _FILLED) / 2
    ends = margin, margin + _FILLED * bar / seconds
    ax.plot(ends, (bottom, bottom), color="0.3", linewidth=1.5, clip_on=False)
    place = {"xytext": (0, -4), "textcoords": "offset points", "va": "top", "fontsize": "small"}
    ax.annotate(f"{bar:g} s", (margin, bottom), annotation_clip=False, **place)


def draw_steps(ax, heights):
    """Draw a step for each atom, from number 1."""
    ax.stairs(heights, np.arange(len(heights) + 1) + 0.5, fill=True)
    tick_whole_numbers(ax.xaxis)


def label_rows(ax, labels):
    """Name the rows of a grid of `draw_grid` on their left, without ticks or a frame."""
    ax.set_yticks(np.arange(len(labels)) + 0.5, labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.set_frame_on(False)


def _draw_images(ax, images, n_rows, n_columns, style):  # -> AxesImage
    n_atoms, height, width, *colours = images.shape
    grid = np.full((n_rows * n_columns, height + 1, width + 1, *colours), np.nan)
    grid[:n_atoms, :height, :width] = images
    grid = grid.reshape(n_rows, n_columns, *grid.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(n_rows * (height + 1), n_columns * (width + 1), *colours)
    grid = grid[:-1, :-1]  # no line after the last row and column
    if colours:  # colours from 0 to 1, with white lines between
        grid = np.nan_to_num(0.5 + 0.5 * grid, nan=1.0)
    right, bottom = n_columns - 1 / (width + 1), n_rows - 1 / (height + 1)
    cells = {"extent": (0, right, bottom, 0), "aspect": (height + 1) / (width + 1)}
    return ax.imshow(grid, **(GREYS | cells | style))


def _draw_lines(ax, lines, n_rows, n_columns, style):  # -> list of Line2D, one for each channel
    n_atoms, length, n_channels = lines.shape
    margin = (1 - _FILLED) / 2
    row, column = np.divmod(np.arange(n_atoms), n_columns)
    ax.hlines(row + 0.5, column + margin, column + 1 - margin, color="0.8", linewidth=0.5)
    gap = np.full((n_atoms, 1), np.nan)  # separates neighbouring atoms
    x = np.hstack([column[:, None] + np.linspace(margin, 1 - margin, length), gap])
    drawn = []
    for channel in range(n_channels):
        y = np.hstack([row[:, None] + 0.5 - _FILLED / 2 * lines[:, :, channel], gap])
        own = {"linewidth": 1, "color": f"C{channel}", "label": f"channel {channel}"}
        drawn += ax.plot(x.ravel(), y.ravel(), **(own | style))
    ax.set(xlim=(0, n_columns), ylim=(n_rows, 0))
    if 1 < n_channels <= _N_COLOURS:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
        ax.legend(ncols=min(n_channels, 5), fontsize="small", **place)
    return drawn
