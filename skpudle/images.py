"""Patches of images and back, denoising by patches, and measures of image quality.

Any dictionary learner that is fitted on rows denoises images: overlapping patches are coded one by
one, and every pixel becomes the mean of what the patches that contain it say. Unsigned integers are
fractions of their largest value, as for convolutional learners: of 255 for uint8.
"""

import numpy as np
import torch

from skpudle._data.arrays import host_array, like_input
from skpudle._data.images import extend, read_images
from skpudle.operators import Phases

__all__ = ["denoise_patches", "extract", "psnr", "reconstruct", "ssim"]


def _read(images, like):  # -> (n, c, height, width), on the device of what is like them
    device = like.device if isinstance(like, torch.Tensor) else "cpu"
    return read_images(images, 2, device=device).tensors[0]


def _geometry(size, patch_shape, stride):
    """Return the patches that cover an image, and how many pixels are missing at its ends."""
    if min(*patch_shape, stride) < 1 or stride > min(patch_shape):
        raise ValueError(
            f"Patches of {tuple(patch_shape)} pixels every {stride} do not cover an image; pass "
            "positive sizes and a stride of at most the smaller one."
        )
    axes = list(zip(size, patch_shape, strict=True))
    positions = tuple(1 + max(0, -(-(n - k) // stride)) for n, k in axes)
    phases = Phases(tuple(patch_shape), (stride,) * len(axes), positions)
    return phases, [total - n for total, n in zip(phases.size, size, strict=True)]


def _extract(x, patch_shape, stride):  # (1, c, height, width) -> (n_patches, c * n_pixels)
    phases, missing = _geometry(x.shape[2:], patch_shape, stride)
    x = extend(x, [0, 0], missing)
    return phases.maps(phases.gather(phases.split(x)), 1)[0].flatten(1).mT


def _reconstruct(patches, size, patch_shape, stride):  # -> (1, c, height, width)
    phases, _ = _geometry(size, patch_shape, stride)
    maps = patches.mT.reshape(1, -1, *phases.positions)
    total, count = (
        phases.join(phases.add(phases.columns(phases.widen(values)), 1))
        for values in (maps, torch.ones_like(maps))
    )
    return (total / count)[..., : size[0], : size[1]]


def extract(image, patch_shape=(8, 8), *, stride=1):
    """Return the overlapping patches that cover an image.

    Parameters
    ----------
    image : array-like or Tensor of shape (height, width)
        A grey image; it is continued by reflection where patches go beyond its ends. Unsigned
        integers become fractions of their largest value.
    patch_shape : tuple of int, default=(8, 8)
        Size of a patch.
    stride : int, default=1
        Distance of neighbouring patches.

    Returns
    -------
    ndarray or Tensor of shape (n_patches, n_pixels)
        One patch per row, position by position.
    """
    x = _read([image], image)
    return like_input(_extract(x, patch_shape, stride), image)


def reconstruct(patches, image_shape, patch_shape=(8, 8), *, stride=1):
    """Return the image whose pixels are the means of overlapping patches.

    Parameters
    ----------
    patches : array-like or Tensor of shape (n_patches, n_pixels)
        Patches, as `extract` returns them.
    image_shape : tuple of int
        (height, width).
    patch_shape, stride
        As in `extract`.

    Returns
    -------
    ndarray or Tensor of shape (height, width)
        The image; of unchanged patches, the one that they were extracted from, in fractions if it
        was one of unsigned integers.

    Raises
    ------
    ValueError
        If the patches are not as many as cover the image, or of another size.
    """
    rows = _read(patches, patches)[:, 0, 0]
    phases, _ = _geometry(image_shape, patch_shape, stride)
    expected = (phases.positions[0] * phases.positions[1], patch_shape[0] * patch_shape[1])
    if tuple(rows.shape) != expected:
        raise ValueError(
            f"Patches have the shape {tuple(rows.shape)}, but an image of {tuple(image_shape)} "
            f"pixels has {expected}; pass what extract returned for the same sizes and stride."
        )
    return like_input(_reconstruct(rows, image_shape, patch_shape, stride)[0, 0], patches)


def denoise_patches(learner, image, patch_shape=(8, 8), *, stride=1):
    """Denoise a grey image by a dictionary of patches.

    The mean of each patch, which is hardly noisy, is left out of coding and added again.

    Parameters
    ----------
    learner : transformer
        Fitted on patches without their means, with ``transform`` and ``inverse_transform``.
    image : array-like or Tensor of shape (height, width)
        The noisy image. Unsigned integers become fractions of their largest value, and so are what
        the learner has to be fitted on.
    patch_shape : tuple of int, default=(8, 8)
        Size of a patch.
    stride : int, default=1
        Distance of neighbouring patches: 1 is best, larger ones faster.

    Returns
    -------
    ndarray or Tensor of shape (height, width)
        The denoised image, on the device of the input.
    """
    patches = extract(image, patch_shape, stride=stride)
    means = patches.mean(1)[:, None]
    denoised = learner.inverse_transform(learner.transform(patches - means)) + means
    return reconstruct(denoised, np.shape(image), patch_shape, stride=stride)


def _metrics():
    try:
        from skimage import metrics
    except ImportError as error:
        raise ImportError(
            "Measures of image quality need scikit-image, which is not installed. Install it with "
            "`pip install skpudle[images]`."
        ) from error
    return metrics


def psnr(image, reference, *, peak=1.0):
    """Return the peak signal-to-noise ratio in dB, by scikit-image.

    Parameters
    ----------
    image, reference : array-like or Tensor of one shape
        The image to judge, and the clean one.
    peak : float, default=1.0
        The largest value that pixels may have.

    Returns
    -------
    float
        ``10 log10(peak^2 / mean squared error)``.
    """
    images = map(host_array, (reference, image))
    return float(_metrics().peak_signal_noise_ratio(*images, data_range=peak))


def ssim(image, reference, *, peak=1.0):
    """Return the structural similarity of grey images, by scikit-image.

    Parameters
    ----------
    image, reference : array-like or Tensor of shape (height, width)
        The image to judge, and the clean one.
    peak : float, default=1.0
        The largest value that pixels may have.

    Returns
    -------
    float
        At most 1, for equal images.
    """
    images = map(host_array, (reference, image))
    return float(_metrics().structural_similarity(*images, data_range=peak))
