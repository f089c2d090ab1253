"""Compiled loops of the encoder: sparse products, iterations of a few rows, steps of likelihoods.

* `multiply` skips zeros in a product of matrices. After a few unfoldings codes have few nonzero
  entries. Derivatives have zeros at the same places. `multiply` lists the nonzero entries of the
  left factor and adds up the rows of the right factor that they select. With too many nonzero
  entries torch computes the product. If torch computes all products, fits of 2,000 patches of 144
  pixels with 256 atoms take 2.2 times (15 unfoldings) to 3.7 times as long (100 unfoldings), on one
  core.
* `unfold_few` runs the iterations of the encoder without derivatives, one row after the other. A
  call of torch takes 4 microseconds even for few numbers, and an iteration makes five calls. By
  torch, ``transform`` of a single row takes 4 times as long (100 unfoldings, 50 atoms of 64
  features).
* `judge` decides for each sample whether an iteration on a likelihood is accepted; see
  `skpudle.encoding._likelihood`.
"""

import numpy as np
import torch

from skpudle._compilation import Loops


def count_entries(matrix):  # (n, m) -> int
    """Return the number of nonzero entries."""
    count = 0
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            count += matrix[i, j] != 0
    return count


def add_product(left, right, scale, out):
    """Add ``scale * left @ right`` to ``out`` (n, n_columns), without the zeros of ``left``."""
    n, n_columns = out.shape
    n_inner = left.shape[1]
    listed = np.empty(n_inner, dtype=np.int64)
    values = np.empty(n_inner, dtype=left.dtype)
    for i in range(n):
        count = 0
        # a branch for zeros would be mispredicted, so every entry is written, and zeros overwritten
        for j in range(n_inner):
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
    """Run one iteration of the encoder on ``codes`` for each row of ``levels``, in place.

    Shapes: ``atoms`` (n_components, n_features), ``x`` (n, n_features), ``levels`` (n_unfoldings, 1
    or n_components), ``codes`` (n, n_components). ``step`` is the step size; ``hard`` and
    ``positive`` choose the shrinkage.
    """
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
                    z[j] = size * 0.0  # 0, but NaN if the value is not finite


def judge(first, last, before, natural, mean, variance, new_variance, mask, growth,
          code, new_natural, new_mean, size, counts):  # fmt: skip
    """Accept or undo an iteration of the samples ``first:last``, and set their next step sizes.

    ``before`` and ``code`` (n, n_components) are the codes before and after the iteration. The
    arrays ``natural`` (natural parameters), ``mean`` and ``variance`` (n, n_features) belong to
    ``before``; the arrays with ``new_`` belong to ``code``. A ``mask`` (n, n_features) has 1 for
    known entries, or no rows if all entries are known. The last five arguments are updated in
    place: undone samples get their old values back, ``size`` (n,) becomes the next step size, and
    ``counts`` (n,) tells whether the iteration was accepted. After an accepted iteration the step
    size is multiplied by ``growth``, and otherwise halved.
    """
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
        counts[i] = curvature * size[i] <= length  # with NaN the iteration is undone
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


def is_recorded(*tensors):  # -> bool
    """Return whether autograd records operations on the given tensors; some may be None."""
    tensors = (tensor for tensor in tensors if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def may_leave_out(tensor, n_multiplications):  # -> bool
    """Return whether a product is so large that looking for zeros in its factor ``tensor`` may pay.

    Compiled loops multiply float32 and float64 on the CPU only.
    """
    # A dense product of 2**20 multiplications takes 30 microseconds, the same time as the calls
    # around a sparse product.
    return (
        n_multiplications >= 2**20
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
    )


def _is_sparse(tensor, n_multiplications):  # -> bool
    """Return whether the factor ``tensor`` has enough zeros that a sparse product is faster."""
    if not may_leave_out(tensor, n_multiplications):
        return False
    in_order = tensor if tensor.is_contiguous() else tensor.mT
    # Sparse products are taken up to a share of 1/5 of nonzero entries. With a limit of 1/3 an
    # update of 100 unfoldings, with codes of 40 nonzero entries among 1500, takes 1.25 times as
    # long (one core, float32). The limit is divided by the number of torch's threads, since a
    # sparse product runs on one thread. A sparse product on two threads would make an update 1.1
    # to 1.6 times as long on two cores, because torch's threads keep their cores while they wait.
    most = 1 / 5 * tensor.numel() / torch.get_num_threads()
    return loops.count_entries(np.asarray(in_order)) < most


def multiply(plus, left, right, *, scale=1, out=None):
    """Return ``plus + scale * left @ right``, by a loop that skips the zeros of ``left`` if faster.

    The result is that of a dense product up to rounding.

    Parameters
    ----------
    plus : Tensor of shape (n, n_columns) or None
        Term to add; may be ``out``.
    left : Tensor of shape (n, n_inner)
        The factor that may be mostly zero.
    right : Tensor of shape (n_inner, n_columns)
        The right factor.
    scale : float, default=1
        Number to multiply the product by. Without ``plus`` it has to be 1.
    out : Tensor of shape (n, n_columns), default=None
        Memory for the result, which is then returned.

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
    """Return the codes (n_samples, n_components) that `unfold` returns, for tensors on the CPU.

    The codes have no derivatives, and there is neither a mask nor a loss.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    x : Tensor of shape (n_samples, n_features)
        Data.
    levels : Tensor of shape (n_unfoldings, 1 or n_components)
        Level of the shrinkage in each iteration.
    step : Tensor of shape ()
        Step size.
    initial : Tensor of shape (n_samples, n_components) or None
        Codes to start from; None are zeros.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    positive : bool
        Whether codes are non-negative.
    """
    codes = x.new_zeros(len(x), len(atoms)) if initial is None else initial.detach().clone()
    given = (np.asarray(t.detach().resolve_neg().contiguous()) for t in (atoms, x, levels))
    loops.iterate(*given, float(step), shrinkage == "hard", bool(positive), np.asarray(codes))
    return codes
