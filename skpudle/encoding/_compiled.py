"""Compiled loops of the encoder: sparse products, and iterations on sparse codes.

* `multiply` skips zeros in a product of matrices. After a few unfoldings most codes are zero, and
  so are the derivatives in these codes. For each row of the left factor `multiply` lists the
  nonzero entries, and adds up the rows of the right factor with the same indices. If too many
  entries are nonzero, torch computes the product.
* `iterate` runs iterations of the encoder row by row, and `pull` their adjoint, for
  `skpudle.encoding._steps.SparseIterations`.

The functions are plain Python until `loops` compiles them, and write results to their arguments.
"""

import numpy as np
import torch

from skpudle._compilation import Loops

# A sparse product is faster than a dense one if less than this fraction of the entries of its left
# factor is nonzero. With 1/3 instead of 1/5 an update of the atoms with 100 unfoldings, whose
# codes have 40 nonzero entries among 1500, takes 25 % longer (one core, float32).
SPARSE = 1 / 5


def _list(z, listed):  # (n,), (n,) -> int
    """Write the indices of the nonzero entries of ``z`` to the beginning of ``listed``.

    Return the number of nonzero entries. Later entries of ``listed`` have no meaning.
    """
    count = np.int64(0)  # a literal 0 would make numba compile every function twice
    # The loop has no `if`, because the processor would often mispredict it, which takes longer.
    # Instead every index is written, and the next index overwrites that of a zero entry.
    for j in range(len(z)):
        listed[count] = j
        count += z[j] != 0
    return count


def _add_rows(
    count,
    listed,
    values,
    matrix,
    out,
):
    """Add the product of a sparse row and a matrix to ``out`` (n_columns,).

    The sparse row has the entries ``values[:count]`` at the indices ``listed[:count]``; ``matrix``
    is (n, n_columns).
    """
    k = 0
    # eight rows of `matrix` at a time, to read and write `out` less often
    while k + 7 < count:
        v0 = values[k]
        v1 = values[k + 1]
        v2 = values[k + 2]
        v3 = values[k + 3]
        v4 = values[k + 4]
        v5 = values[k + 5]
        v6 = values[k + 6]
        v7 = values[k + 7]
        j0 = listed[k]
        j1 = listed[k + 1]
        j2 = listed[k + 2]
        j3 = listed[k + 3]
        j4 = listed[k + 4]
        j5 = listed[k + 5]
        j6 = listed[k + 6]
        j7 = listed[k + 7]
        for c in range(len(out)):
            out[c] += (
                (v0 * matrix[j0, c] + v1 * matrix[j1, c])
                + (v2 * matrix[j2, c] + v3 * matrix[j3, c])
            ) + (
                (v4 * matrix[j4, c] + v5 * matrix[j5, c])
                + (v6 * matrix[j6, c] + v7 * matrix[j7, c])
            )
        k += 8
    while k < count:
        v0 = values[k]
        j0 = listed[k]
        for c in range(len(out)):
            out[c] += v0 * matrix[j0, c]
        k += 1


def add_product(left, right, scale, out):
    """Add ``scale * left @ right`` to ``out``, without the zeros of ``left``; for `multiply`.

    ``left`` is (n, n_inner), ``right`` (n_inner, n_columns) and ``out`` (n, n_columns).
    """
    listed = np.empty(left.shape[1], dtype=np.int64)
    values = np.empty(left.shape[1], dtype=left.dtype)
    for i in range(len(out)):
        count = _list(left[i], listed)
        for k in range(count):
            values[k] = scale * left[i, listed[k]]
        _add_rows(count, listed, values, right, out[i])


def iterate(
    first,
    last,
    transition,
    correlation,
    levels,
    codes,
    hard,
    positive,
    keep,
):
    """Run iterations ``z <- S(c + H z)`` of the encoder for the rows ``first:last`` of the data.

    ``transition`` is the matrix ``H`` (n_components, n_components), the unit matrix minus ``s D^T
    D`` with the step size s, and ``correlation`` is ``c = s D^T x`` (n, n_components). ``levels``
    (n_iterations, n_components) are the levels of the shrinkage S; ``hard`` and ``positive``, both
    bool, choose the shrinkage, see `skpudle._shrinkage`. On entry ``codes[0]`` (n, n_components)
    has the codes to begin with. If ``keep`` is 1, ``codes`` (n_iterations + 1, n, n_components)
    gets the codes after ``t`` iterations in ``codes[t]``, which `pull` needs. If ``keep`` is 0,
    ``codes`` (1, n, n_components) gets the last codes.
    """
    n_components = len(transition)
    listed = np.empty(n_components, np.int64)
    values = np.empty(n_components, codes.dtype)
    for row in range(first, last):
        for t in range(len(levels)):
            # if `keep` is 0, `before` and `z` are the same memory, so `values` holds a copy
            before = codes[t * keep, row]
            z = codes[(t + 1) * keep, row]
            count = _list(before, listed)
            for k in range(count):
                values[k] = before[listed[k]]
            for j in range(n_components):
                z[j] = correlation[row, j]
            _add_rows(count, listed, values, transition, z)
            for j in range(n_components):
                v = z[j]
                level = levels[t, j]
                magnitude = v if positive else abs(v)
                if hard:
                    z[j] = 0.0 if magnitude < level else v
                else:  # `0.0 * magnitude` is 0, but NaN for a NaN
                    shrunk = v - level if v > 0.0 else v + level
                    z[j] = shrunk if magnitude > level else 0.0 * magnitude


def pull(
    transition,
    codes,
    delta,
    total,
    products,
    by_level,
    least,
):
    """Run the adjoint of `iterate`: replace derivatives in the last codes by those in the first.

    The derivatives of a loss are ``delta`` (n, n_components). ``transition`` is the matrix ``H`` of
    `iterate`, and ``codes`` (n_iterations + 1, n, n_components) are the codes that it has kept. Let
    ``u`` (n, n_components) be the derivatives in the values that the shrinkage of an iteration
    gets, and ``z`` the codes before the iteration. The sum of ``u`` over iterations is added to
    ``total`` (n, n_components). A matrix with the same symmetric part as the sum of ``u^T z`` is
    added to ``products`` (n_components, n_components); only this part is needed. Derivatives
    in the levels are added to ``by_level`` (n_iterations, n_components). Derivatives with a modulus
    of at most ``least`` count as zero, because processors are slow with denormal numbers, which are
    too small to matter.
    """
    n_components = len(transition)
    dtype = codes.dtype
    n_nonzero = np.empty(n_components)
    listed = np.empty(n_components, np.int64)
    for row in range(len(delta)):
        for j in range(n_components):
            n_nonzero[j] = 0.0
        for t in range(len(codes)):
            for j in range(n_components):
                n_nonzero[j] += codes[t, row, j] != 0.0
        # Atoms whose code is zero before and after all iterations add nothing to the derivatives of
        # the row. So the loops below run over the other n atoms, whose numbers are in `listed`.
        n = _list(n_nonzero, listed)
        z = np.empty((len(codes), n), dtype)
        u = np.empty(n, dtype)
        # derivatives in the codes after an iteration, and then in those before it
        by_code = np.empty(n, dtype)
        sub_transition = np.empty((n, n), dtype)
        sums = np.zeros((n, n), dtype)  # sum of u^T z over iterations
        for i in range(n):
            by_code[i] = delta[row, listed[i]]
            for t in range(len(codes)):
                z[t, i] = codes[t, row, listed[i]]
            for k in range(i + 1):
                sub_transition[i, k] = transition[listed[i], listed[k]]
                sub_transition[k, i] = sub_transition[i, k]
        for t in range(len(codes) - 2, -1, -1):
            for i in range(n):
                is_kept = z[t + 1, i] != 0.0 and abs(by_code[i]) > least
                u[i] = by_code[i] if is_kept else 0.0
                by_code[i] = 0.0
                total[row, listed[i]] += u[i]
                by_level[t, listed[i]] -= u[i] if z[t + 1, i] > 0.0 else -u[i]
            for i in range(n):
                if u[i] != 0.0:
                    for k in range(n):
                        sums[i, k] += u[i] * z[t, k]
                        by_code[k] += u[i] * sub_transition[i, k]
        for i in range(n):
            # entries (i, k) and (k, i) are added up in one of them; both are the same if i is k
            sums[i, i] /= 2
            for k in range(i + 1):
                products[listed[i], listed[k]] += sums[i, k] + sums[k, i]
        for j in range(n_components):
            delta[row, j] = 0.0
        # the derivatives in the first codes of all atoms, by `u` of the first iteration
        _add_rows(n, listed, u, transition, delta[row])


loops = Loops(globals())


def is_recorded(*tensors):  # -> bool
    """Return whether autograd records operations on one of the tensors; skip None."""
    tensors = (tensor for tensor in tensors if tensor is not None)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_compiled(tensor):  # -> bool
    """Return whether the compiled loops can take a tensor: float32 or float64, on the CPU."""
    has_dtype = tensor.dtype in (torch.float32, torch.float64)
    return has_dtype and tensor.device.type == "cpu"


def _is_sparse(tensor, n_multiplications):  # -> bool
    """Return whether the left factor ``tensor`` has so many zeros that a sparse product is faster.

    ``n_multiplications`` is the number of multiplications of the dense product.
    """
    # With fewer than 2**20 multiplications a dense product takes less than 30 microseconds, the
    # time of the calls around a sparse product alone. A sparse product runs on one thread, and a
    # dense one on all threads of torch, so the limit is divided by the number of threads.
    if not is_compiled(tensor) or n_multiplications < 2**20:
        return False
    most_nonzero = SPARSE * tensor.numel() / torch.get_num_threads()
    return np.count_nonzero(np.asarray(tensor) != 0) < most_nonzero


def multiply(
    plus,
    left,
    right,
    *,
    scale=1,
    in_place=False,
):
    """Return ``plus + scale * left @ right``, without the zeros of ``left`` if that is faster.

    It replaces `torch.addmm` where codes or their derivatives are sparse. The result is that of a
    dense product up to rounding. If autograd records one of the tensors, `torch.addmm` computes the
    product.

    Parameters
    ----------
    plus : Tensor of shape (n, n_columns)
        Term to add.
    left : Tensor of shape (n, n_inner)
        The factor that may be mostly zero.
    right : Tensor of shape (n_inner, n_columns)
        The right factor.
    scale : float, default=1
        Number to multiply the product by.
    in_place : bool, default=False
        Whether the result overwrites ``plus``.

    Returns
    -------
    Tensor of shape (n, n_columns)
        The sum: ``plus`` itself with ``in_place``, otherwise a new tensor.
    """
    has_graph = torch.compiler.is_compiling() or is_recorded(plus, left, right)
    if has_graph or not _is_sparse(left, left.numel() * right.shape[1]):
        return torch.addmm(
            plus, left, right, alpha=scale, out=plus if in_place else None
        )
    out = plus if in_place else plus.clone(memory_format=torch.contiguous_format)
    left = np.asarray(left.contiguous())
    right = np.asarray(right.contiguous())
    loops.add_product(left, right, left.dtype.type(scale), np.asarray(out))
    return out
