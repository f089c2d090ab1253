"""Statistics of images from which penalties follow: white noise, and correlations with atoms.

`estimate_noise` measures the white noise of each image. `penalty_of_correlations` is a first
penalty of codes. Searches for atoms of images need both, and so do denoisers, which search nothing.
Images have the shape (n, n_channels, *size), with ``size`` (length,) for signals, (height, width)
for pictures and (depth, height, width) for volumes.
"""

from itertools import chain
from math import comb, prod

import torch

from skpudle._compilation import blocks_of_rows
from skpudle._operators._conv import ConvDictionary
from skpudle._rows import MEDIAN_OF_NORMAL

# ---------------------------------------------------------------------------- white noise


def _shifted_sum(x, axis, lag, sign):  # (n, n_channels, *size) -> shorter by lag
    """Return sums or, with the sign -1, differences of pixels ``lag`` apart along an axis.

    `_variance_of_details` makes its differences of images by it.
    """
    n = x.shape[axis] - lag
    return x.narrow(axis, lag, n) + sign * x.narrow(axis, 0, n)


def _variance_of_details(x, scale):  # (n, n_channels, *size) -> (n,), int
    """Estimate the variance of white noise in each image, from fourth differences of its pixels.

    Details are the fourth differences along each axis: of pixels if ``scale`` is 1, of sums of two
    neighbouring pixels if it is 2. They are scaled so that white noise keeps its variance. The
    estimate follows from the median magnitude of details in blocks of about 256 details. Return the
    estimate of each image, and the number of details of an image.
    """
    n_axes = x.ndim - 2
    details = x
    for axis, n in enumerate(x.shape[2:], start=2):
        if scale == 2 and n > 1:
            details = _shifted_sum(details, axis, 1, 1) / 2**0.5
        # Fourth differences, with the weights 1, -4, 6, -4, 1, multiply the variance of white noise
        # by their squared norm 70, the binomial coefficient by which they are divided below. An
        # axis of few pixels has differences of a lower order.
        order = min(4, n // (2 * scale))
        for _ in range(order):
            details = _shifted_sum(details, axis, scale, -1)
        details = details / comb(2 * order, order) ** 0.5
    side = round(256 ** (1 / max(1, sum(n > 1 for n in x.shape[2:]))))
    for axis in range(2, x.ndim):
        n = details.shape[axis]
        length = n // max(1, n // side)
        details = details.unfold(axis, length, length)
    medians = details.abs().flatten(-n_axes).median(-1).values.flatten(1)
    # Noise is estimated from the lower quartile of the medians of blocks, which in white noise is
    # below their mean: by 8.5 % with many blocks, by less with few. ``quartile_ratio`` is the
    # quartile over the mean. MEDIAN_OF_NORMAL is the median magnitude at a standard deviation of 1.
    quartile_ratio = 1 - 0.085 * (1 - 1 / medians.shape[1])
    deviation = medians.quantile(0.25, dim=1) / (MEDIAN_OF_NORMAL * quartile_ratio)
    return deviation.square(), details[0].numel()


def extent_of(x):  # (n, ...) -> (n,)
    """Return the range of the pixels of each image: the largest minus the smallest."""
    return x.flatten(1).amax(1) - x.flatten(1).amin(1)


def estimate_noise(x, extent=None):  # (n, n_channels, *size), (n,) -> (n,)
    """Estimate the standard deviation of white noise in each image, rather too low than too high.

    Too high an estimate does more harm than too low an estimate, since a denoiser then removes
    texture. ``extent`` (n,) is the range of the pixels of each image, by default `extent_of`. Where
    images are differences of colours it is the range of the colours. The estimate for a tiny image
    is 0.

    Fourth differences along each axis remove most of a photograph except noise. (Second differences
    are used by J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image
    Understanding 64, 1996.)
    The estimate takes their median magnitude in each block, and the lower quartile of blocks: noise
    is the same everywhere, and texture is not. Differences of sums of two pixels have the same
    noise and, in photographs, some four times the texture or more. So a part of the excess of
    their variance is subtracted as texture, and a part of the range of the image.

    The estimated variance is at most twice the variance that is left if as much as possible counts
    as texture. An estimate of up to twice the true variance does little harm: a weighted mean of
    a noisy image and its denoised image is then still better than the noisy image. Texture as white
    as noise counts as noise: 1 in 16 noise-free parts of 24 to 80 pixels, from a photograph of
    roofs and leaves, seems noisy.
    """
    fine, _ = _variance_of_details(x, 1)
    coarse, n_details = _variance_of_details(x, 2)
    # Fewer than 32 details are too few to tell noise from texture, so the estimate is 0.
    if n_details < 32:
        return torch.zeros_like(fine)
    # The relative standard error of the variance estimated from ``n_details`` of white noise. The
    # factor 6 was measured, since neighbouring details are correlated.
    error = 6.0 / n_details**0.5
    # Fine details are differences of single pixels, coarse details of sums of two pixels. In white
    # noise both have the same variance. If fine details have more, beyond chance, the rest is not
    # white noise.
    fine = torch.minimum(fine, coarse * (1 + error))
    # Some texture is assumed in every image: a standard deviation of 0.008 times the image's range.
    least_texture = 0.008 * (extent_of(x) if extent is None else extent)

    # Return the variance of fine details without texture. Texture has the variance least_texture**2
    # plus ``fraction`` times the excess variance of coarse details over fine details. The fraction
    # ``doubt`` of the variance of coarse details may be chance, and is left out of the excess.
    def without_texture(fraction, doubt):  # float, float -> (n,)
        excess = (coarse * max(0.0, 1 - doubt) - fine).clamp_min(0)
        return (fine - least_texture.square() - fraction * excess).clamp_min(0)

    # In photographs without noise coarse details have some 4 times the variance of fine details, an
    # excess of 3 times. So a third of the excess estimates the variance of fine texture: of 1,500
    # noise-free parts of a photograph 95 then seem noisy, and 217 with a half instead of a third.
    # At the most all of the excess is texture. Twice the variance that this would leave is the
    # largest estimate, since up to twice the true variance does little harm.
    usual = without_texture(1 / 3, error / 2)
    return torch.minimum(usual, 2 * without_texture(1.0, error)).sqrt()


def estimate_noise_of_known(x, mask):  # (n, n_channels, *size) twice -> float
    """Estimate the standard deviation of white noise in images with missing pixels.

    ``mask`` is 0 where pixels are missing. Fourth differences along all axes, as in
    `estimate_noise`, would need up to 5 known pixels along each axis, 125 in a volume. So the
    estimate is the median magnitude of second differences, of three known neighbours along one
    axis: the smallest of all axes, since structure adds to differences. It is 0 if no axis has 32
    such differences.
    """
    deviations = []
    for axis in range(2, x.ndim):
        n = max(x.shape[axis] - 2, 0)
        before, here, after = (x.narrow(axis, lag, n) for lag in range(3))
        is_known = torch.stack([mask.narrow(axis, lag, n) != 0 for lag in range(3)])
        # The weights 1, -2, 1 multiply the variance of white noise by their squared norm, 6.
        details = (before - 2 * here + after)[is_known.all(0)].abs() / 6**0.5
        if len(details) >= 32:
            deviations.append(float(details.median()) / MEDIAN_OF_NORMAL)
    return min(deviations, default=0.0)


# ---------------------------------------------------------------------------- correlations


def parts_of_images(x):  # (n, n_channels, *size) -> list of (m, n_channels, *size)
    """Cut images, or code maps, into parts of a few images each, which are computed one by one."""
    # A part has at most 2**17 pixels, so that its codes stay in the cache, but at least one image.
    return [x[rows] for rows in blocks_of_rows(len(x), prod(x.shape[2:]), 2**17)]


def largest_correlations(x, dictionary):  # (n, n_channels, *size) -> (n,)
    """Return each image's largest correlation with an atom, in modulus: the largest useful penalty.

    At this penalty all codes of the image are zero. ``dictionary`` is a `ConvDictionary`, and
    copies of an atom lie inside the image.
    """
    blocks = dictionary.analysis_in_blocks(x)
    return torch.stack([z.abs().flatten(1).amax(1) for z in blocks]).amax(0)


def penalty_of_correlations(tensors, atoms, stride):
    """Return the penalty that a search with ``alpha="auto"`` begins with, in units of the images.

    Parameters
    ----------
    tensors : list of Tensor of shape (n, n_channels, *size)
        Images.
    atoms : Tensor of shape (n_components, n_channels, *kernel)
        Initial atoms.
    stride : tuple of int
        Distance of neighbouring copies of an atom.

    Returns
    -------
    float
        The penalty.
    """
    dictionary = ConvDictionary(atoms, stride)
    parts = chain(*map(parts_of_images, tensors))
    largest = torch.cat([largest_correlations(x, dictionary) for x in parts])
    # The penalty is a tenth of the median, over images, of an image's largest correlation. If all
    # data are zero, no penalty matters, and it is 0.1.
    return 0.1 * float(largest[largest > 0].median()) if largest.any() else 0.1
