"""Compiled loops of the encoder: all iterations of a few rows, entrywise steps of likelihoods.

A call of torch takes 4 microseconds even for few numbers, and an iteration makes five. `unfold_few`
makes the same iterations without derivatives, one row after the other. By torch, ``transform`` of a
row takes 4 times as long (100 unfoldings, 50 atoms of 64 features).

A likelihood has more entrywise loops than least squares. With few atoms a pass over the data takes
the time of a product: by torch a fit of 1,000 rows, 8 atoms of 500 features, takes 1.6 times as
long. `judge` and `weigh` work on a slice of samples, so that threads can share the work, and write
to their last arguments. With a mask of zero rows all entries are known.
"""

import numpy as np

from skpudle._compilation import Loops


def iterate(atoms, x, levels, step, hard, positive, codes):
    """Run one iteration on the codes for each row of levels, in place."""
    n_components, n_features = atoms.shape
    residual = np.empty(n_features)
    for row in range(len(x)):
        z = codes[row]
        for t in range(len(levels)):
            for f in range(n_features):
                residual[f] = x[row, f]
            for j in range(n_components):
                if z[j] != 0.0:
                    for f in range(n_features):
                        residual[f] -= z[j] * atoms[j, f]
            for j in range(n_components):
                v = 0.0
                for f in range(n_features):
                    v += atoms[j, f] * residual[f]
                v = z[j] + step * v
                level = levels[t, j % levels.shape[1]]
                size = v if positive else abs(v)
                if hard:
                    z[j] = 0.0 if size < level else v
                elif size > level:
                    z[j] = v - level if v > 0.0 else v + level
                else:
                    z[j] = size * 0.0  # keeps values that are not finite


def judge(first, last, before, natural, mean, variance, new_variance, mask, growth,
          code, new_natural, new_mean, size, counts):  # fmt: skip
    """Accept or undo an iteration of each sample, and set the next steps."""
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
        counts[i] = curvature * size[i] <= length  # False for NaN
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
    """Weight an image by the negative variance, and add its terms to the sums of derivatives."""
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


loops = Loops(globals())


def unfold_few(atoms, x, levels, step, initial, *, shrinkage, positive):
    """Return the codes of `encoding._unfold.unfold`, for tensors on the CPU without derivatives.

    It takes no mask and no loss; levels have the shape (n_unfoldings, 1 or n_components).
    """
    codes = x.new_zeros(len(x), len(atoms)) if initial is None else initial.detach().clone()
    given = (np.asarray(t.detach().resolve_neg().contiguous()) for t in (atoms, x, levels))
    loops.iterate(*given, float(step), shrinkage == "hard", bool(positive), np.asarray(codes))
    return codes
