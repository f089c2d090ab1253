"""What all pictures share: axes to draw on, atoms as images, codes as arrays."""

import math

import numpy as np

from skpudle._arrays import check_rows, to_numpy, to_tensor

__all__ = ["as_images", "axes_to_draw_on", "new_figure", "signed_codes"]


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


def axes_to_draw_on(ax):
    """Return the axes and their figure, new ones if there are none."""
    if ax is None:
        ax = _matplotlib().pyplot.subplots(layout="constrained")[1]
    return ax, ax.figure


def signed_codes(estimator, codes):
    """Return what `transform` returned as an array, one column per atom."""
    codes = to_numpy(to_tensor(check_rows(codes)))
    n_components = len(estimator.components_)
    if codes.shape[1] == 2 * n_components:
        return codes[:, :n_components] - codes[:, n_components:]
    return codes


def as_images(atoms, image_shape):  # -> (n, height, width) or (n, height, width, 3)
    """Reshape atoms to images, or raise ValueError if they are none."""
    if atoms.ndim == 4:  # (n_components, n_channels, height, width)
        atoms = np.moveaxis(atoms, 1, -1)
        atoms = atoms[..., 0] if atoms.shape[-1] == 1 else atoms
    else:
        atoms = atoms.reshape(len(atoms), -1)
        if image_shape is None:
            side = math.isqrt(atoms.shape[1])
            image_shape = (side, side)
        if math.prod(image_shape) != atoms.shape[1]:
            raise ValueError(
                f"Atoms of {atoms.shape[1]} features are no images of shape "
                f"{tuple(image_shape)}; pass image_shape=(height, width), or (height, width, 3) "
                "for colours."
            )
        atoms = atoms.reshape(-1, *image_shape)
    if atoms.ndim != 3 and not (atoms.ndim == 4 and atoms.shape[-1] == 3):
        raise ValueError(
            f"Atoms of shape {atoms.shape[1:]} are neither grey nor colour images: expected "
            "(height, width) or (height, width, 3)."
        )
    return atoms
