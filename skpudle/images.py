"""Patches of images, denoising, inpainting, and measures of image quality.

Any dictionary learner fitted on rows denoises images: it codes overlapping patches one by one, and
a pixel becomes the mean of its values in all patches that contain it. A denoiser also fills in
missing pixels, which NaN marks. Unsigned integers become fractions of their largest value, as for
convolutional learners: of 255 for uint8.
"""

from functools import cache
from numbers import Integral

import numpy as np
import torch
from scipy.fft import dct
from scipy.interpolate import griddata
from scipy.spatial import QhullError

from skpudle._data.arrays import host_array, like_input, to_tensor
from skpudle._data.images import extend, read_images, sizes
from skpudle._learners.pudle import PUDLEDictionaryLearning
from skpudle.operators import Phases

__all__ = ["denoise_patches", "extract", "inpaint", "psnr", "reconstruct", "ssim"]

# patches denoised at a time: few enough for their codes to stay in a cache
_PATCHES = {"cpu": 4096, "cuda": 2**17}

# Inpainting: the first noise level, in errors of interpolation; first over last level; and the
# threshold of cosines, in noise levels. All were chosen on photographs of the Berkeley data set
# and on the flower of the example.
_FIRST, _SMALLER, _THRESHOLD = 1.5, 20.0, 2.7


def _read(images, like):  # -> (n, c, height, width), on the device of `like`
    device = like.device if isinstance(like, torch.Tensor) else "cpu"
    return read_images(images, 2, device=device, allow_nan=True).tensors[0]


def _read_grey(image):  # -> (1, 1, height, width)
    x = _read([image], image)
    if x.shape[1] > 1:
        raise ValueError(
            f"One grey image is expected, (height, width), not the shape {tuple(np.shape(image))}. "
            "Pass channels, or images, one by one."
        )
    return x


@cache
def _phases(patch_shape, stride, positions):
    return Phases(patch_shape, (stride,) * len(positions), positions)


def _is_count(value):
    return isinstance(value, Integral) and value >= 1


def _patch_shape(value):  # an integer, or a pair -> a pair
    shape = sizes(value, 2) if isinstance(value, Integral | tuple | list) else ()
    if len(shape) != 2 or not all(map(_is_count, shape)):
        raise ValueError(
            f"patch_shape={value!r:.80} is no size of a patch. Pass one positive integer, or a "
            "pair (height, width)."
        )
    return tuple(map(int, shape))


def _geometry(size, patch_shape, stride):
    """Return the patches that cover an image, and how many pixels they exceed its ends by."""
    if not _is_count(stride) or stride > min(patch_shape):
        raise ValueError(
            f"Patches of {patch_shape} pixels every {stride!r:.80} do not cover an image. Pass a "
            "positive integer as stride, at most the smaller side of a patch."
        )
    axes = list(zip(size, patch_shape, strict=True))
    positions = tuple(1 + max(0, -(-(n - k) // stride)) for n, k in axes)
    phases = _phases(patch_shape, stride, positions)
    return phases, [total - n for total, n in zip(phases.size, size, strict=True)]


def _extract(x, patch_shape, stride):  # (1, c, height, width) -> (n_patches, c * n_pixels)
    phases, missing = _geometry(x.shape[2:], patch_shape, stride)
    x = extend(x, [0, 0], missing)
    return phases.maps(phases.gather(phases.split(x)), 1)[0].flatten(1).mT


def _add_up(patches, size, patch_shape, stride):  # -> sum and number of patches at each pixel
    phases, _ = _geometry(size, patch_shape, stride)
    maps = patches.mT.reshape(1, -1, *phases.positions)
    return phases.join(phases.add(phases.columns(phases.widen(maps)), 1))


def extract(image, patch_shape=(8, 8), *, stride=1):
    """Return the overlapping patches that cover an image.

    Parameters
    ----------
    image : array-like or Tensor of shape (height, width)
        A grey image, extended by reflection where patches exceed its ends. Unsigned integers
        become fractions of their largest value. NaN stays in the patches.
    patch_shape : int or tuple of int, default=(8, 8)
        Height and width of a patch; one number for a square.
    stride : int, default=1
        Distance of neighbouring patches, in pixels.

    Returns
    -------
    ndarray or Tensor of shape (n_patches, n_pixels)
        One patch per row, position by position.
    """
    patch_shape = _patch_shape(patch_shape)
    return like_input(_extract(_read_grey(image), patch_shape, stride), image)


def reconstruct(patches, image_shape, patch_shape=(8, 8), *, stride=1):
    """Return an image from overlapping patches: each pixel is the mean of its values in them.

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
        The image. Patches straight from `extract` give back their image, as fractions if it held
        unsigned integers.

    Raises
    ------
    ValueError
        If the number or the size of the patches does not fit the image.
    """
    patch_shape = _patch_shape(patch_shape)
    if not isinstance(image_shape, tuple | list) or [*map(_is_count, image_shape)] != [True] * 2:
        raise ValueError(
            f"image_shape={image_shape!r:.80} is no size of an image. Pass (height, width)."
        )
    rows = _read(patches, patches)[:, 0, 0]
    phases, _ = _geometry(image_shape, patch_shape, stride)
    expected = (phases.positions[0] * phases.positions[1], patch_shape[0] * patch_shape[1])
    if tuple(rows.shape) != expected:
        raise ValueError(
            f"Patches have the shape {tuple(rows.shape)}, but an image of {tuple(image_shape)} "
            f"pixels has {expected}; pass what extract returned for the same sizes and stride."
        )
    sums = (_add_up(x, image_shape, patch_shape, stride) for x in (rows, torch.ones_like(rows)))
    total, count = sums
    image = (total / count)[0, 0, : image_shape[0], : image_shape[1]]
    return like_input(image, patches)


def _decode(learner, patches):  # (n, n_pixels) -> decoded (n, n_pixels), numbers of non-zeros (n,)
    codes = learner.transform(patches)
    n_nonzeros = to_tensor((codes != 0).sum(1))
    if hasattr(learner, "inverse_transform"):
        return to_tensor(learner.inverse_transform(codes)), n_nonzeros
    return to_tensor(codes @ learner.components_), n_nonzeros


def _denoise_rows(learner, patches, like, *, center, weights):
    """Return denoised patches times their weights, and weights; 0 where no pixel is known."""
    known = ~patches.isnan().all(1)
    denoised, weight = torch.zeros_like(patches), patches.new_zeros(len(patches), 1)
    if known.any():
        rows = patches if known.all() else patches[known]
        means = rows.nanmean(1, keepdim=True) if center else 0.0
        decoded, n_nonzeros = _decode(learner, like_input(rows - means, like))
        n_counted = n_nonzeros if weights == "sparsity" else torch.zeros_like(n_nonzeros)
        weight[known] = 1 / (1 + n_counted.to(rows)[:, None])
        denoised[known] = (decoded.to(rows) + means) * weight[known]
    return denoised, weight.expand_as(patches)


def denoise_patches(
    learner, image, patch_shape=(8, 8), *, stride=1, center=True, weights="sparsity"
):
    """Denoise a grey image by a dictionary of patches.

    The mean of each patch, which is hardly noisy, is subtracted before coding and added again.
    Patches are coded a few thousand at a time: memory is proportional to the image.

    Parameters
    ----------
    learner : transformer
        Fitted on patches without their means, with ``transform``, and ``inverse_transform`` or
        ``components_``: a learner of this package, or any of scikit-learn's, such as
        `~sklearn.decomposition.MiniBatchDictionaryLearning`. K-SVD codes up to the error that the
        noise explains: ``transform_algorithm="omp"`` with ``transform_tol = n_pixels *
        (1.1 * noise_std) ** 2``; an encoder with hard thresholds is faster.
    image : array-like or Tensor of shape (height, width)
        The noisy image. Unsigned integers become fractions of their largest value: fit the learner
        on such fractions. NaN marks missing pixels, for learners that take it; the result has
        values there, except in patches without a known pixel.
    patch_shape : int or tuple of int, default=(8, 8)
        Height and width of a patch; one number for a square.
    stride : int, default=1
        Distance of neighbouring patches, in pixels: 1 is best, larger ones are faster.
    center : bool, default=True
        Whether to subtract means. False is for learners of non-negative patches, such as
        `~sklearn.decomposition.NMF`.
    weights : {"sparsity", "equal"}, default="sparsity"
        Weights of overlapping patches: "sparsity" is ``1 / (1 + n_nonzeros)`` of the code, as the
        more atoms a patch uses, the more noise it contains ([1]_, [2]_).

    Returns
    -------
    ndarray or Tensor of shape (height, width)
        The denoised image, on the device of the input.

    Raises
    ------
    ValueError
        If the image is not grey, patches do not cover it, or ``weights`` are unknown.

    References
    ----------
    .. [1] O. G. Guleryuz, "Weighted averaging for denoising with overcomplete dictionaries", IEEE
       Transactions on Image Processing, 2007.
    .. [2] K. Dabov, A. Foi, V. Katkovnik and K. Egiazarian, "Image denoising by sparse 3-D
       transform-domain collaborative filtering", IEEE Transactions on Image Processing, 2007,
       eq. 10.
    """
    if weights not in ("sparsity", "equal"):
        raise ValueError(f"Unknown weights {weights!r:.80}; pass 'sparsity' or 'equal'.")
    patch_shape = _patch_shape(patch_shape)
    x = _read_grey(image)
    height, width = x.shape[2:]
    phases, missing = _geometry((height, width), patch_shape, stride)
    x = extend(x, [0, 0], missing)
    total, count = torch.zeros_like(x), torch.zeros_like(x)
    n_rows = max(1, _PATCHES.get(x.device.type, 4096) // phases.positions[1])
    for first in range(0, phases.positions[0], n_rows):
        last = min(first + n_rows, phases.positions[0]) - 1
        strip = (..., slice(first * stride, last * stride + patch_shape[0]), slice(None))
        patches = _extract(x[strip], patch_shape, stride)
        sums = _denoise_rows(learner, patches, image, center=center, weights=weights)
        for whole, part in zip((total, count), sums, strict=True):
            whole[strip] += _add_up(part, x[strip].shape[2:], patch_shape, stride)
    return like_input((total / count)[0, 0, :height, :width], image)


def _interpolate(x, known):  # (height, width) -> linear between known pixels, else nearest
    places, values, gaps = np.argwhere(known), x[known], np.argwhere(~known)
    filled = x.copy()
    try:
        filled[~known] = griddata(places, values, gaps, method="linear")
    except (QhullError, ValueError):  # few known pixels, or all of them in one line
        filled[~known] = np.nan
    gaps = np.argwhere(np.isnan(filled))
    filled[np.isnan(filled)] = griddata(places, values, gaps, method="nearest")
    return filled


def _error_of_interpolation(x, known):  # -> root mean square, over a tenth of the known pixels
    hidden = np.zeros_like(known)
    hidden.flat[np.flatnonzero(known)[5::10]] = True
    if not hidden.any():
        return 0.0
    filled = _interpolate(np.where(hidden, np.nan, x), known & ~hidden)
    return float(np.sqrt(np.mean((filled - x)[hidden] ** 2)))


def _denoise_by_cosines(image, noise_std, side=8):
    waves = dct(np.eye(side), norm="ortho", axis=0)
    threshold = dict(alpha=_THRESHOLD * noise_std, shrinkage="hard", n_unfoldings=1, step_size=1.0)
    learner = PUDLEDictionaryLearning.from_components(np.kron(waves, waves), **threshold)
    ends = [side - 1] * 2  # border and inner pixels are in as many patches
    larger = extend(_read_grey(image), ends, ends)[0, 0]
    denoised = to_tensor(denoise_patches(learner, larger, (side, side), weights="equal"))
    return denoised[side - 1 : 1 - side, side - 1 : 1 - side]


def inpaint(image, denoise=None, *, n_iter=20):
    """Fill in the missing pixels of a grey image.

    Missing pixels are interpolated linearly. The image is then denoised ``n_iter`` times at falling
    noise levels, and known pixels get their values back each time ([1]_, [2]_). The first level is
    1.5 times the error of interpolation, measured on a tenth of the known pixels, left out for
    this; the last is a twentieth of the first.

    Parameters
    ----------
    image : array-like or Tensor of shape (height, width)
        The image, NaN where a pixel is missing, or a masked array. Unsigned integers become
        fractions of their largest value, also in the result.
    denoise : callable, default=None
        ``denoise(image, noise_std)`` removes noise of this standard deviation from an image. The
        default codes patches of 8 x 8 pixels by cosines with a hard threshold, without learning.
        The examples have others.
    n_iter : int, default=20
        Number of times to denoise; 0 is linear interpolation.

    Returns
    -------
    ndarray or Tensor of shape (height, width)
        The image, complete; known pixels are unchanged (fractions, of unsigned integers).

    Raises
    ------
    ValueError
        If the image is not grey, no pixel is known, ``n_iter`` is not a number of iterations, or
        ``denoise`` returns an image of another shape.

    References
    ----------
    .. [1] O. G. Guleryuz, "Nonlinear approximation based image recovery using adaptive sparse
       reconstructions and iterated denoising - part I: theory", IEEE Transactions on Image
       Processing, 2006.
    .. [2] S. V. Venkatakrishnan, C. A. Bouman and B. Wohlberg, "Plug-and-play priors for model
       based reconstruction", IEEE GlobalSIP, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.images import inpaint
    >>> image = np.add.outer(np.arange(16.0), np.arange(16.0))
    >>> damaged = image.copy()
    >>> damaged[4:8, 6:9] = np.nan
    >>> bool(np.allclose(inpaint(damaged), image, atol=0.1))
    True
    """
    if not isinstance(n_iter, Integral) or n_iter < 0:
        raise ValueError(f"n_iter={n_iter!r:.80} is no number of iterations. Pass 0 or more.")
    x = host_array(_read_grey(image)[0, 0])
    known = ~np.isnan(x)
    if not known.any():
        raise ValueError("No pixel is known: every one is NaN; pass an image with some values.")
    largest = _FIRST * _error_of_interpolation(x, known)
    filled = to_tensor(x if known.all() else _interpolate(x, known))
    if known.all() or largest == 0:
        return like_input(filled, image)
    known, x = to_tensor(known), to_tensor(x)
    for noise_std in np.geomspace(largest, largest / _SMALLER, n_iter):
        denoised = (denoise or _denoise_by_cosines)(like_input(filled, image), float(noise_std))
        denoised = to_tensor(denoised)
        if denoised.shape != x.shape:
            raise ValueError(
                f"denoise returned the shape {tuple(denoised.shape)} for an image of "
                f"{tuple(x.shape)} pixels. Pass a function that returns an image of the same shape."
            )
        filled = torch.where(known, x, denoised.to(x))
    return like_input(filled, image)


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
        The image to assess, and the clean one.
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
        The image to assess, and the clean one.
    peak : float, default=1.0
        The largest value that pixels may have.

    Returns
    -------
    float
        1 for equal images, else less.
    """
    images = map(host_array, (reference, image))
    return float(_metrics().structural_similarity(*images, data_range=peak))
