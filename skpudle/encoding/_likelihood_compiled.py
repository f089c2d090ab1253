"""The entrywise loops of `skpudle.encoding._likelihood`, compiled by numba.

A likelihood has more of them than least squares, and where atoms are few each pass over the data
takes as long as a product. Functions work on a slice of samples, so that threads may share it; what
they write to are their last arguments. A mask without rows hides nothing.
"""

from functools import cache
from types import SimpleNamespace

from skpudle._compilation import compile_together

__all__ = ["loops"]


def judge(first, last, before, natural, mean, variance, new_variance, mask, growth,
          code, new_natural, new_mean, size, counts):  # fmt: skip
    """Undo iterations that do not count, and set the steps to follow."""
    for i in range(first, last):
        curvature, length = 0.0, 0.0
        for f in range(natural.shape[1]):
            weight = max(variance[i, f], new_variance[i, f])
            change = new_natural[i, f] - natural[i, f]
            term = weight * change * change
            curvature += term * mask[i, f] if len(mask) else term
        for j in range(code.shape[1]):
            moved = code[i, j] - before[i, j]
            length += moved * moved
        counts[i] = curvature * size[i] <= length  # not where it is NaN
        if counts[i]:
            if length > 0.0:
                size[i] *= growth
        else:
            size[i] /= 2
            for j in range(code.shape[1]):
                code[i, j] = before[i, j]
            for f in range(natural.shape[1]):
                new_natural[i, f], new_mean[i, f] = natural[i, f], mean[i, f]


def weigh(first, last, x, mean, variance, mask, residual, image, of_x, of_offset, slope):
    """Turn an image into what it weighs, negative, and add up what it contributes."""
    for i in range(first, last):
        total = 0.0
        for f in range(x.shape[1]):
            known = mask[i, f] if len(mask) else 1
            residual[i, f] = (x[i, f] - mean[i, f]) * known
            seen = image[i, f] * known
            of_x[i, f] += seen
            total += seen * residual[i, f]
            image[i, f] = -seen * variance[i, f]
            of_offset[i, f] += image[i, f]
        slope[i] += total


@cache
def loops():
    """Return the functions, compiled."""
    return SimpleNamespace(**compile_together((judge, weigh)))
