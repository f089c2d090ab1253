"""What all pictures share: axes to draw on, atoms as images, codes as arrays."""

import math

import numpy as np

from skpudle._data.arrays import to_numpy, to_tensor

__all__ = ["as_images", "axes_to_draw_on", "new_figure", "shape_of_images", "signed_codes"]


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


def signed_codes(estimator, codes):  # -> (n_codes, n_components)
    """Return what `transform` returned as an array, a row per sample or per position of atoms."""
    if isinstance(codes, list):  # of images of different sizes
        return np.concatenate([signed_codes(estimator, maps) for maps in codes])
    codes, n_components = to_numpy(to_tensor(codes)), len(estimator.components_)
    if getattr(estimator, "split_sign", False):
        return codes[:, :n_components] - codes[:, n_components:]
    return codes.reshape(-1, n_components)


def shape_of_images(estimator, image_shape):
    """Return the shape of the atoms as images: convolutional ones have it already."""
    return estimator.components_.shape[1:] if hasattr(estimator, "atom_shape") else image_shape


def as_images(atoms, image_shape):  # -> (n, height, width) or (n, height, width, 3)
    """Reshape atoms to images, or raise ValueError if they are none."""
    features = atoms.shape[1:]
    if image_shape is None and len(features) > 1:
        image_shape = features
    elif image_shape is None:
        side = math.isqrt(features[0])
        image_shape = (side, side)
    if math.prod(image_shape) != math.prod(features):
        raise ValueError(
            f"Atoms of {math.prod(features)} features are no images of shape "
            f"{tuple(image_shape)}; pass image_shape=(height, width), or (height, width, 3) "
            "for colours."
        )
    if len(image_shape) not in (2, 3) or (*image_shape, 1)[2] not in (1, 3):
        raise ValueError(
            f"Atoms of shape {tuple(image_shape)} are neither grey nor colour images: expected "
            "(height, width) or (height, width, 3)."
        )
    images = atoms.reshape(-1, *image_shape)
    return images[..., 0] if images.shape[3:] == (1,) else images
