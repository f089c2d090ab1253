"""Products with a matrix that is mostly zero, which skip the zeros.

After a few unfoldings codes have few entries, and so have derivatives, which the support masks.
Skipping zeros needs no certificate, and samples may differ in their entries. So, on the CPU,
compiled loops list the entries and add up the rows that these select; with too many entries torch
computes the product.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
import torch

from skpudle._compilation import compile_together

__all__ = ["SumOfProducts", "may_leave_out", "multiply", "multiply_where"]

# Largest share of nonzero entries with which lists pay: both products take the same time at 0.3 to
# 0.5 (one core, float32). Lists use one thread, since torch's threads keep their cores while they
# wait: on two cores two threads of lists make an update 1.1 to 1.6 times as long.
_MOST = 1 / 3
# Least multiplications of a dense product that lists may replace: it takes 30 microseconds, the
# time of the calls around a sparse product.
_LEAST = 2**20
# Rows to collect before a product adds them to a sum. With fewer rows the pass over 1500 x 1500
# sums takes as long as the product.
_ROWS_PER_PRODUCT = 512


def count_entries(matrix):
    count = 0
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            count += matrix[i, j] != 0
    return count


def product(plus, left, right, scale, out):
    """Set ``out = plus + scale * left @ right``; ``plus`` may be ``out``, or empty for zero."""
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
        if len(plus):
            for c in range(n_columns):
                out[i, c] = plus[i, c]
        else:
            for c in range(n_columns):
                out[i, c] = 0
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


def product_where(plus, left, right, pattern, out):
    """Set ``out = plus + left @ right^T`` where the pattern is not zero, and zero elsewhere."""
    n, n_columns = out.shape
    n_inner = left.shape[1]
    listed = np.empty(n_columns, dtype=np.int64)
    for i in range(n):
        count = 0
        for c in range(n_columns):
            out[i, c] = 0
            listed[count] = c
            count += pattern[i, c] != 0
        k = 0
        while k + 3 < count:
            c0, c1, c2, c3 = listed[k], listed[k + 1], listed[k + 2], listed[k + 3]
            s0, s1, s2, s3 = plus[i, c0], plus[i, c1], plus[i, c2], plus[i, c3]
            for j in range(n_inner):
                value = left[i, j]
                s0 += value * right[c0, j]
                s1 += value * right[c1, j]
                s2 += value * right[c2, j]
                s3 += value * right[c3, j]
            out[i, c0], out[i, c1], out[i, c2], out[i, c3] = s0, s1, s2, s3
            k += 4
        while k < count:
            c0 = listed[k]
            s0 = plus[i, c0]
            for j in range(n_inner):
                s0 += left[i, j] * right[c0, j]
            out[i, c0] = s0
            k += 1


@cache
def _loops():
    return SimpleNamespace(**compile_together((count_entries, product, product_where)))


def may_leave_out(tensor, n_multiplications):
    """Return whether looking for zeros of a factor may pay."""
    return (
        n_multiplications >= _LEAST
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
    )


def _is_sparse(tensor, n_multiplications):
    if not may_leave_out(tensor, n_multiplications):
        return False
    in_order = tensor if tensor.is_contiguous() else tensor.mT
    most = _MOST * tensor.numel() / torch.get_num_threads()
    return _loops().count_entries(np.asarray(in_order)) < most


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
    if not _is_sparse(left, n_multiplications):
        if plus is None:
            return torch.mm(left, right, out=out)
        return torch.addmm(plus, left, right, alpha=scale, out=out)
    if out is None:
        out = right.new_empty(len(left), right.shape[1])
    if plus is None:
        plus = right.new_empty(0, right.shape[1])
    plus, left, right = (np.asarray(t.contiguous()) for t in (plus, left, right))
    _loops().product(plus, left, right, left.dtype.type(scale), np.asarray(out))
    return out


def multiply_where(pattern, plus, left, right, *, out=None):
    """Return ``plus + left @ right^T`` where the pattern is not zero, and any numbers elsewhere.

    Parameters
    ----------
    pattern : Tensor of shape (n, n_rows) or None
        Nonzero where the result is needed; None for everywhere.
    plus : Tensor of shape (n, n_rows)
        Term to add.
    left : Tensor of shape (n, n_inner)
        A factor.
    right : Tensor of shape (n_rows, n_inner)
        The other factor.
    out : Tensor of shape (n, n_rows), default=None
        Memory for the result; not ``plus``.

    Returns
    -------
    Tensor of shape (n, n_rows)
        The result.
    """
    n_multiplications = left.numel() * len(right)
    if pattern is None or not _is_sparse(pattern, n_multiplications):
        return torch.mm(left, right.mT, out=out).add_(plus)
    out = torch.empty_like(plus) if out is None else out
    plus, left, right, pattern = (np.asarray(t.contiguous()) for t in (plus, left, right, pattern))
    _loops().product_where(plus, left, right, pattern, np.asarray(out))
    return out


class SumOfProducts:
    """A sum of ``left^T right`` over pairs; pairs wait until many rows are worth a product.

    Waiting pairs are in memory that is reused.
    """

    def __init__(self, result):
        self.result, self._left, self._right, self._n_waiting = result, None, None, 0

    def add(self, left, right):  # (n, n_rows of the result), (n, n_columns of the result)
        """Add a pair, now or later."""
        if len(left) > _ROWS_PER_PRODUCT // 2:
            multiply(self.result, left.mT, right, out=self.result)
            return
        if self._left is None:
            n_left, n_right = self.result.shape
            self._left = self.result.new_empty(_ROWS_PER_PRODUCT, n_left)
            self._right = self.result.new_empty(_ROWS_PER_PRODUCT, n_right)
        if self._n_waiting + len(left) > _ROWS_PER_PRODUCT:
            self.finish()
        rows = slice(self._n_waiting, self._n_waiting + len(left))
        self._left[rows], self._right[rows] = left, right
        self._n_waiting = rows.stop

    def finish(self):  # -> the result
        """Add the waiting pairs, and return the result."""
        if self._n_waiting:
            left, right = self._left[: self._n_waiting], self._right[: self._n_waiting]
            multiply(self.result, left.mT, right, out=self.result)
            self._n_waiting = 0
        return self.result
