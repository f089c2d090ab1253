r"""Iterations inside working sets, one sample at a time, compiled by numba.

The same as the methods of `skpudle._runs.Run` that call these: a sample's matrix stays in a cache
of the processor from one iteration to the next, only its rows of entries that move are read, and
samples do not wait for each other. ``block`` is :math:`- s\, G_{CC}`, (n, k, k), ``indices`` the
working sets, (n, k); results are written to the last array arguments.
"""

from functools import cache

import numpy as np
import torch

from skpudle._compiled import compile_in, in_slices

__all__ = ["gather", "iterate", "pull", "scatter"]

_ROWS_PER_TASK = 8


def _add_product(matrix, vector, out):
    """Add ``vector @ matrix`` to ``out``."""
    for i in range(len(vector)):
        factor = vector[i]
        if factor != 0:
            row = matrix[i]
            for j in range(len(out)):
                out[j] += factor * row[j]


def _shrink(v, levels, at, hard, positive, code):
    for j in range(len(v)):
        level, value = levels[at[j]], v[j]
        if hard:
            magnitude = value if positive else abs(value)
            code[j] = 0 if magnitude < level else value
        elif positive:
            shrunk = value - level
            code[j] = 0 if shrunk < 0 else shrunk
        else:
            code[j] = value - min(max(value, -level), level)


def _iterate_rows(block, start, origin, ascent, levels, indices, hard, positive, first, stop,
                  codes, energies):  # fmt: skip
    n_iterations, _, size = codes.shape
    move, push = np.empty(size, codes.dtype), np.empty(size, codes.dtype)
    at = np.zeros(size, np.int64)
    for row in range(first, stop):
        code = start[row]
        if levels.shape[1] > 1:
            at = indices[row]
        for t in range(n_iterations + 1):
            for j in range(size):
                move[j] = code[j] - origin[row, j]
                push[j] = 0
            _add_product(block[row], move, push)
            if t > 0:
                energy, square = 0.0, 0.0
                for j in range(size):
                    energy -= move[j] * push[j]
                    square += move[j] * move[j]
                energies[0, t - 1, row], energies[1, t - 1, row] = energy, square
            if t < n_iterations:
                for j in range(size):
                    push[j] += ascent[row, j] + code[j]
                code = codes[t, row]
                _shrink(push, levels[t], at, hard, positive, code)


def _pull_rows(block, before, after, last, first, stop, inner, total, products, by_level):
    n_iterations, _, size = after.shape
    u, move = np.empty(size, inner.dtype), np.empty(size, inner.dtype)
    for row in range(first, stop):
        for t in range(n_iterations - 1, -1, -1):
            code = after[t, row]
            previous = before[row] if t == 0 else after[t - 1, row]
            signed = 0.0
            for j in range(size):
                u[j] = 0 if code[j] == 0 else inner[row, j]
                signed += u[j] if code[j] > 0 else -u[j]
                move[j] = previous[j] - last[row, j]
                inner[row, j] = u[j]
                total[row, j] += u[j]
            by_level[t, row] = signed
            _add_product(block[row], u, inner[row])
            for i in range(size):
                if u[i] != 0:
                    for j in range(size):
                        products[row, i, j] += u[i] * move[j]


def _gather_rows(matrix, indices, first, stop, block):
    size = indices.shape[1]
    for row in range(first, stop):
        for i in range(size):
            source = matrix[indices[row, i]]
            for j in range(size):
                block[row, i, j] = source[indices[row, j]]


def _scatter_rows(block, indices, lane, n_lanes, matrix):
    n_samples, size = indices.shape
    for row in range(n_samples):
        for i in range(size):
            if indices[row, i] % n_lanes == lane:
                target = matrix[indices[row, i]]
                for j in range(size):
                    target[indices[row, j]] += block[row, i, j]


@cache
def _compile():
    compile_in(globals(), [_add_product, _shrink, _iterate_rows, _pull_rows, _gather_rows,
                           _scatter_rows])  # fmt: skip


def _arrays(*tensors):
    return [np.asarray(t.contiguous()) for t in tensors]


def iterate(block, start, origin, ascent, levels, indices, shrinkage, positive, codes, energies):
    r"""Set the codes after each iteration, and what they have moved.

    Parameters
    ----------
    block, start, origin, ascent, levels, indices : Tensor
        ``block``; codes (n, k) to start from and those at the origin; what is shrunk there less the
        codes there; levels (n_iterations, 1) or (n_iterations, n_components); the working sets.
    shrinkage : {"soft", "hard"}
        The shrinkage.
    positive : bool
        Whether codes are restricted to non-negative values.
    codes : Tensor of shape (n_iterations, n, k)
        Codes.
    energies : Tensor of shape (2, n_iterations, n)
        :math:`s |D e|^2` and :math:`|e|^2` for the distances ``e`` of the codes from the origin.
    """
    _compile()
    inputs, outputs = (
        _arrays(block, start, origin, ascent, levels, indices),
        _arrays(codes, energies),
    )
    hard = shrinkage == "hard"
    in_slices(
        lambda first, stop: _iterate_rows(*inputs, hard, positive, first, stop, *outputs),
        len(indices),
        _ROWS_PER_TASK,
    )


def pull(block, before, after, last, inner, total, products, by_level):
    """Go back through the iterations that end at ``after``, (n_iterations, n, k).

    ``inner`` are derivatives in the codes, and become those in the codes ``before``; ``u`` and the
    products of ``u`` with the distance of codes from ``last`` are added to ``total`` and
    ``products``; ``by_level``, (n_iterations, n), are set to sums of ``sign(z) u``.
    """
    _compile()
    arrays, sums = _arrays(block, before, after, last), _arrays(inner, total, products, by_level)
    in_slices(
        lambda first, stop: _pull_rows(*arrays, first, stop, *sums), len(inner), _ROWS_PER_TASK
    )


def gather(matrix, indices, block):
    """Set ``block`` to the entries of the matrix between the chosen atoms of each sample."""
    _compile()
    arrays = _arrays(matrix, indices)
    (out,) = _arrays(block)
    in_slices(lambda first, stop: _gather_rows(*arrays, first, stop, out), len(indices), 8)


def scatter(block, indices, matrix):
    """Add ``block`` to the entries of the matrix between the chosen atoms of each sample."""
    _compile()
    arrays = _arrays(block, indices)
    (out,) = _arrays(matrix)
    # every task has rows of the matrix of its own
    n_lanes = torch.get_num_threads()
    in_slices(lambda lane, _: _scatter_rows(*arrays, lane, n_lanes, out), n_lanes, 1)
