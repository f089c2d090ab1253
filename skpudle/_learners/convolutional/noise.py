"""Estimate the white noise of images and signals, and the penalty at the level of this noise."""

from math import comb, log, sqrt

import torch

from skpudle._data.arrays import to_tensor
from skpudle._operators._conv import ConvDictionary
from skpudle.search import descend
from skpudle.search._epoch import spread_rows
from skpudle.search.held_out import MEDIAN_OF_NORMAL


def _shifted_sum(x, axis, lag, sign):  # (n, n_channels, *size) -> shorter by lag along the axis
    """Return the sum or, with the sign -1, the difference of pixels ``lag`` apart along an axis."""
    n = x.shape[axis] - lag
    return x.narrow(axis, lag, n) + sign * x.narrow(axis, 0, n)


def _variance_of_details(x, scale):  # (n, n_channels, *size) -> (n,), int
    """Estimate the variance of white noise in each image, from fourth differences of its pixels.

    Details are the fourth differences along each axis: of pixels if ``scale`` is 1, of sums of two
    neighbouring pixels if it is 2. They are scaled so that white noise keeps its variance. The
    estimate follows from the median magnitude of details in blocks of about 256. Return it with the
    number of details of an image.
    """
    n_axes, details = x.ndim - 2, x
    for axis, n in enumerate(x.shape[2:], start=2):
        if scale == 2 and n > 1:
            details = _shifted_sum(details, axis, 1, 1) / 2**0.5
        # The weights 1, -4, 6, -4, 1 of pixels in a fourth difference have the squared norm 70, the
        # binomial coefficient below. Axes of few pixels have differences of a lower order.
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
    # The lower quartile of blocks is corrected to the mean: in white noise the quartile is 8.5 %
    # below the mean of the medians of many blocks, and nearer to the mean of few blocks.
    smooth = 1 - 0.085 * (1 - 1 / medians.shape[1])
    deviation = medians.quantile(0.25, dim=1) / (MEDIAN_OF_NORMAL * smooth)
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
    noise and, in photographs, some four times the texture or more. So a share of the excess of
    their variance is subtracted as texture, and a part of the range of the image.

    The estimated variance is at most twice the variance that is left after the most possible
    texture: up to twice the true variance, a weighted mean of a noisy image and its denoised image
    is better than the noisy image. Texture as white as noise counts as noise: 1 in 16 noise-free
    parts of 24 to 80 pixels, from a photograph of roofs and leaves, seems noisy.
    """
    (fine, _), (coarse, n_details) = (_variance_of_details(x, scale) for scale in (1, 2))
    # Fewer than 32 details are too few to separate noise from texture.
    if n_details < 32:
        return torch.zeros_like(fine)
    # The relative standard error of the variance of n details of white noise. The 6 was measured,
    # since neighbouring details correlate.
    error = 6.0 / n_details**0.5
    # In white noise fine details, of single pixels, have the variance of coarse details, of sums of
    # two pixels. More variance than this, beyond chance, is not from white noise.
    fine = torch.minimum(fine, coarse * (1 + error))
    # A little texture is subtracted always: its standard deviation is 0.008 of the image's range.
    least = 0.008 * (extent_of(x) if extent is None else extent)

    # Return the variance of fine details without texture. Texture has a ``share`` of the excess
    # variance of coarse details, of whose variance a share ``doubt`` may be chance.
    def without(share, doubt):  # float, float -> (n,)
        more = (coarse * max(0.0, 1 - doubt) - fine).clamp_min(0)
        return (fine - least.square() - share * more).clamp_min(0)

    # Coarse details of photographs have some 4 times the variance of fine details, so a third of
    # the excess variance of coarse details is the usual variance of fine texture. At most it is all
    # of the excess. Of 1,500 noise-free parts of a photograph 95 then seem noisy, and 217 with a
    # half instead of a third.
    return torch.minimum(without(1 / 3, error / 2), 2 * without(1.0, error)).sqrt()


def noise_level(problem, atoms):  # -> float
    """Return a penalty above almost all correlations of the atoms with the noise of signals.

    The penalty is the universal threshold, ``s sqrt(2 log N)``: ``s`` is the standard deviation of
    the correlations of residuals with atoms, and ``N`` is the number of positions of one atom in
    all signals. ``problem`` is a `ConvProblem` of signals, in whose units the penalty is, and
    ``atoms`` has the shape (n_components, n_channels, 1, length).

    `find_atoms` begins the search again at this level if the penalty of the search is much smaller.
    The first penalty of a search comes from differences of neighbouring samples. It is too small
    for slow noise, whose differences are small and whose correlations with slow atoms are large.
    The level may be too small, too: codes at a penalty below the level explain a part of the noise,
    which the residual then lacks.
    """
    # At most 2**17 samples of signals measure the noise, to save time.
    rows = spread_rows(len(problem.x), max(1, 2**17 // problem.x[0, 0].numel()))
    x = to_tensor(descend.solve_codes(problem.of_rows(rows), atoms, 4, refit=True).residuals())
    # Without the axis of height, of length 1: blocks are cut along the first axis.
    dictionary = ConvDictionary(atoms[:, :, 0], problem.stride[1:])
    blocks = dictionary.analysis_in_blocks(x[:, :, 0])
    correlations = torch.cat([block.abs().flatten() for block in blocks])
    noise = float(correlations.median()) / MEDIAN_OF_NORMAL
    return noise * sqrt(2 * log(max(len(problem.x) * problem.n_positions, 2)))
