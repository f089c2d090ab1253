"""Compiled loops of the encoder: sparse products, iterations of a few rows, steps of likelihoods.

After a few unfoldings codes have few entries, and so have derivatives, which the support masks.
`multiply` lists the entries and adds up the rows that these select; with too many entries torch
computes the product. By torch alone, fits of 2,000 patches of 144 pixels with 256 atoms take 2.2
(15 unfoldings) to 3.7 times as long (100 unfoldings; one core).

A call of torch takes 4 microseconds even for few numbers, and an iteration makes five. `unfold_few`
makes the same iterations without derivatives, one row after the other. By torch, ``transform`` of a
row takes 4 times as long (100 unfoldings, 50 atoms of 64 features).

`judge` passes over the data once, which takes the time of a product with few atoms. It works on a
slice of samples, so that threads can share the work, and writes to its last arguments. With a mask
of zero rows all entries are known.
"""

import numpy as np
import torch

from skpudle._compilation import Loops


def count_entries(matrix):
    count = 0
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            count += matrix[i, j] != 0
    return count


def add_product(left, right, scale, out):
    """Add ``scale * left @ right`` to ``out``."""
    n, n_columns = out.shape
    n_inner = left.shape[1]
    listed = np.empty(n_inner, dtype=np.int64)
    values = np.empty(n_inner, dtype=left.dtype)
    for i in range(n):
        count = 0
        for j in range(n_inner):  # without a branch, which would be mispredicted
            listed[count] = j
            values[count] = scale * left[i, j]
            count += left[i, j] != 0
        k = 0
        while k + 7 < count:  # eight rows at a time: fewer passes over the result
            v0, v1, v2, v3 = values[k], values[k + 1], values[k + 2], values[k + 3]
            v4, v5, v6, v7 = values[k + 4], values[k + 5], values[k + 6], values[k + 7]
            j0, j1, j2, j3 = listed[k], listed[k + 1], listed[k + 2], listed[k + 3]
            j4, j5, j6, j7 = listed[k + 4], listed[k + 5], listed[k + 6], listed[k + 7]
            for c in range(n_columns):
                out[i, c] += (
                    (v0 * right[j0, c] + v1 * right[j1, c])
                    + (v2 * right[j2, c] + v3 * right[j3, c])
                ) + (
                    (v4 * right[j4, c] + v5 * right[j5, c])
                    + (v6 * right[j6, c] + v7 * right[j7, c])
                )
            k += 8
        while k < count:
            v0, j0 = values[k], listed[k]
            for c in range(n_columns):
                out[i, c] += v0 * right[j0, c]
            k += 1


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


loops = Loops(globals())


def is_recorded(*tensors):
    """Return whether autograd records what is done with tensors; some may be None."""
    tensors = (tensor for tensor in tensors if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def may_leave_out(tensor, n_multiplications):
    """Return whether looking for zeros of a factor may pay."""
    # a dense product of so many multiplications takes 30 microseconds, the time of the calls around
    # a sparse product
    return (
        n_multiplications >= 2**20
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
    )


def _is_sparse(tensor, n_multiplications):
    if not may_leave_out(tensor, n_multiplications):
        return False
    in_order = tensor if tensor.is_contiguous() else tensor.mT
    # Lists pay up to this share of nonzero entries: an update of 100 unfoldings with 40 entries of
    # 1500 in a code takes 0.8 of the time that it takes with 1/3 (one core, float32). Lists use one
    # thread, since torch's threads keep their cores while they wait: on two cores two threads of
    # lists make an update 1.1 to 1.6 times as long.
    most = 1 / 5 * tensor.numel() / torch.get_num_threads()
    return loops.count_entries(np.asarray(in_order)) < most


def multiply(plus, left, right, *, scale=1, out=None):
    """Return ``plus + scale * left @ right``; skipping zeros changes it by rounding only.

    Parameters
    ----------
    plus : Tensor of shape (n, n_columns) or None
        Term to add; may be ``out``.
    left : Tensor of shape (n, n_inner)
        The factor that may be mostly zero.
    right : Tensor of shape (n_inner, n_columns)
        The other factor.
    scale : float, default=1
        Number to multiply the product by; 1 without ``plus``.
    out : Tensor of shape (n, n_columns), default=None
        Memory for the result.

    Returns
    -------
    Tensor of shape (n, n_columns)
        The result.
    """
    n_multiplications = left.numel() * right.shape[1]
    has_graph = torch.compiler.is_compiling() or is_recorded(plus, left, right)
    if has_graph or not _is_sparse(left, n_multiplications):
        if plus is None:
            return torch.mm(left, right, out=out)
        return torch.addmm(plus, left, right, alpha=scale, out=out)
    if out is None:
        out = right.new_empty(len(left), right.shape[1])
    if plus is None:
        out.zero_()
    elif plus is not out:
        out.copy_(plus)
    left, right = (np.asarray(t.contiguous()) for t in (left, right))
    loops.add_product(left, right, left.dtype.type(scale), np.asarray(out))
    return out


def unfold_few(atoms, x, levels, step, initial, *, shrinkage, positive):
    """Return the codes of `encoding._unfold.unfold`, for tensors on the CPU without derivatives.

    It takes no mask and no loss; levels have the shape (n_unfoldings, 1 or n_components).
    """
    codes = x.new_zeros(len(x), len(atoms)) if initial is None else initial.detach().clone()
    given = (np.asarray(t.detach().resolve_neg().contiguous()) for t in (atoms, x, levels))
    loops.iterate(*given, float(step), shrinkage == "hard", bool(positive), np.asarray(codes))
    return codes
