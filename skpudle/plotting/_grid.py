"""Draw pictures, which are images or lines, in the cells of a grid.

Atoms are defined up to scale: each is drawn scaled to its own largest modulus. The cell in row i
and column j of a grid covers [j, j + 1] and, downwards, [i, i + 1], for images and lines alike.
"""

import math

import numpy as np

# height over width of a cell of lines, the share of the cell that lines fill, and its margin
_FLATNESS, _FILLED = 0.5, 0.9
_MARGIN = (1 - _FILLED) / 2

# opacity of bands
_BAND = 0.3

# number of colours before matplotlib repeats them
_N_COLOURS = 10


def as_pictures(atoms, kind="auto", image_shape=None):
    """Return atoms as images if they have the shape of an image, else as lines.

    Parameters
    ----------
    atoms : ndarray of shape (n_atoms, ...)
        Rows, or atoms that have their shape.
    kind : str, default="auto"
        A kind of `AtomsDisplay`, or "auto": images if their shape, or ``image_shape``, has two axes
        or more, else lines.
    image_shape : tuple of int, default=None
        Shape to give to rows.

    Returns
    -------
    kind : str
        Kind of the pictures.
    pictures : ndarray of shape (n_atoms, height, width[, 3]) or (n_atoms, length, n_channels)
        The atoms; channels that are no colours are images side by side.
    """
    shape = atoms.shape[1:] if image_shape is None else tuple(image_shape)
    if kind == "auto":
        kind = "images" if len(shape) > 1 else "lines"
    if len(shape) == 1:
        shape = (math.isqrt(shape[0]),) * 2 if kind == "images" else (*shape, 1)
    if kind == "images" and len(shape) == 3 and shape[2] != 3:
        atoms = atoms.reshape(-1, *shape).swapaxes(2, 3)
        shape = shape[0], shape[1] * shape[2]
    return kind, atoms.reshape(len(atoms), *shape)


def measure_grid(kind, pictures, n_columns):  # -> numbers of rows and columns, inches
    """Return the numbers of rows and columns, by default of about a square, and a figure's size."""
    n_atoms, height, width = pictures.shape[:3]
    flatness = _FLATNESS if kind == "lines" else 1
    n_columns = n_columns or math.ceil(math.sqrt(n_atoms * flatness))
    n_rows = math.ceil(n_atoms / n_columns)
    sides = n_columns, n_rows * flatness
    if kind == "images":
        sides = n_columns * (width + 1) - 1, n_rows * (height + 1) - 1
    return n_rows, n_columns, [max(1.5, 6.4 * side / max(sides)) for side in sides]


def _largest(pictures):  # -> (n_atoms, 1, 1[, 1])
    largest = np.abs(pictures).max(axis=tuple(range(1, pictures.ndim)), keepdims=True)
    return np.where(largest > 0, largest, 1)


def draw_images(ax, images, n_columns, **style):  # -> AxesImage
    """Draw images row by row; `style` goes to `imshow`."""
    n_atoms, height, width, *colours = images.shape
    n_rows = math.ceil(n_atoms / n_columns)
    grid = np.full((n_rows * n_columns, height + 1, width + 1, *colours), np.nan)
    grid[:n_atoms, :height, :width] = images / _largest(images)
    grid = grid.reshape(n_rows, n_columns, *grid.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(n_rows * (height + 1), n_columns * (width + 1), *colours)
    grid = grid[:-1, :-1]  # no line after the last row and column
    if colours:  # colours from 0 to 1, with white lines between
        grid = np.nan_to_num(0.5 + 0.5 * grid, nan=1.0)
    right, bottom = n_columns - 1 / (width + 1), n_rows - 1 / (height + 1)
    greys = {"cmap": "gray", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
    cells = {"extent": (0, right, bottom, 0), "aspect": (height + 1) / (width + 1)}
    return ax.imshow(grid, **(greys | cells | style))


def draw_lines(ax, lines, n_columns, ends=None, **style):
    """Draw atoms of signals row by row, with bands between `ends`; `style` goes to `plot`.

    Returns
    -------
    drawn, bands : list of Line2D, list of FillBetweenPolyCollection
        An object for each channel; there are no bands without ends.
    """
    n_atoms, length, n_channels = lines.shape
    row, column = np.divmod(np.arange(n_atoms), n_columns)
    ax.hlines(row + 0.5, column + _MARGIN, column + 1 - _MARGIN, color="0.8", linewidth=0.5)
    gap = np.full((n_atoms, 1), np.nan)  # separates neighbouring atoms
    x = np.hstack([column[:, None] + np.linspace(_MARGIN, 1 - _MARGIN, length), gap]).ravel()

    def heights(values):  # (n_atoms, length) -> ordinates, with gaps
        return np.hstack([row[:, None] + 0.5 - _FILLED / 2 * values, gap]).ravel()

    drawn, bands, largest = [], [], _largest(lines)
    for channel in range(n_channels):
        own = {"linewidth": 1, "color": f"C{channel}", "label": f"channel {channel}"} | style
        drawn += ax.plot(x, heights((lines / largest)[:, :, channel]), **own)
        if ends is not None:
            low, high = (heights((end / largest)[:, :, channel]) for end in ends)
            band = dict(color=own["color"], alpha=_BAND, linewidth=0)
            bands.append(ax.fill_between(x, low, high, **band))
    ax.set(xlim=(0, n_columns), ylim=(math.ceil(n_atoms / n_columns), 0))
    if 1 < n_channels <= _N_COLOURS:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
        ax.legend(handles=drawn, ncols=min(n_channels, 5), fontsize="small", **place)
    return drawn, bands


def draw_seconds(ax, length, sampling_rate):
    """Write the length of an atom in seconds below the first line of a grid."""
    bottom, place = ax.get_ylim()[0], {"ha": "center", "va": "top", "fontsize": "small"}
    ax.plot([_MARGIN, 1 - _MARGIN], [bottom, bottom], color="0.3", linewidth=1.5, clip_on=False)
    ax.text(0.5, bottom, f"\n{(length - 1) / sampling_rate:.3g} s", linespacing=0.3, **place)


def label_rows(ax, n_rows, labels):
    """Name the rows of a grid on their left, without ticks or a frame."""
    ax.set_yticks(np.arange(n_rows) + 0.5, labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.set_frame_on(False)
