"""Krylov estimate of a spectral norm, compiled by numba: one pass over the atoms per dimension.

The functions are plain Python until `_compiled` compiles them.
"""

from functools import cache

import numpy as np
import torch

from skpudle._compilation import compile_together

__all__ = ["krylov_estimate"]


def add_images(matrix, direction, scale, vector):
    """Set ``vector += scale A^T A direction``; the second read of a row comes from the cache."""
    m, row, zero = len(vector), 0, direction[0] - direction[0]  # zero of the dtype
    while row + 3 < len(matrix):  # four rows at a time: fewer passes over both vectors
        a, b, c, d = matrix[row], matrix[row + 1], matrix[row + 2], matrix[row + 3]
        of_a, of_b, of_c, of_d = zero, zero, zero, zero
        for f in range(m):
            of_a += a[f] * direction[f]
            of_b += b[f] * direction[f]
            of_c += c[f] * direction[f]
            of_d += d[f] * direction[f]
        of_a, of_b, of_c, of_d = scale * of_a, scale * of_b, scale * of_c, scale * of_d
        for f in range(m):
            vector[f] += (of_a * a[f] + of_b * b[f]) + (of_c * c[f] + of_d * d[f])
        row += 4
    while row < len(matrix):
        of_a = zero
        for f in range(m):
            of_a += matrix[row, f] * direction[f]
        of_a *= scale
        for f in range(m):
            vector[f] += of_a * matrix[row, f]
        row += 1


def fill(matrix, inverse_scale, tiny, basis, products):
    """Fill ``products = B^T A^T A B`` for a basis ``B`` of the space of its first row.

    ``A`` is the matrix times the inverse scale. Return the dimension of the space, which may be
    less than the number of rows of ``B``.
    """
    depth, m = basis.shape
    vector, direction = np.empty(m), np.empty(m, matrix.dtype)
    image = np.empty(m, matrix.dtype)
    for i in range(depth):
        for f in range(m):
            direction[f] = basis[i, f] * inverse_scale
            image[f] = 0.0
        add_images(matrix, direction, matrix.dtype.type(inverse_scale), image)
        size = 0.0
        for f in range(m):
            vector[f] = image[f]
            size += vector[f] ** 2
        for turn in range(2):  # the second turn removes the rounding of the first
            for j in range(i + 1):
                inner = 0.0
                for f in range(m):
                    inner += vector[f] * basis[j, f]
                if turn == 0:
                    products[i, j] = products[j, i] = inner
                for f in range(m):
                    vector[f] -= inner * basis[j, f]
        rest = 0.0
        for f in range(m):
            rest += vector[f] ** 2
        if not rest > tiny * size or i + 1 == depth:  # the space is exhausted
            return i + 1
        for f in range(m):
            basis[i + 1, f] = vector[f] / np.sqrt(rest)
    return depth


@cache
def _compiled():
    return compile_together((add_images, fill))["fill"]


def krylov_estimate(atoms, largest, depth):
    """Return the largest eigenvalue of the Gram matrix in a Krylov space.

    The space starts from a random combination of the atoms, ``A^T w``. Its largest eigenvalue is at
    least that of ``A A^T`` in the Krylov space of ``w``.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, on the CPU.
    largest : float
        Largest modulus of their entries, positive.
    depth : int
        Dimension of the space.

    Returns
    -------
    Tensor of shape () or None
        The eigenvalue, in units of the square of ``largest``; None if it is not finite.

    References
    ----------
    J. Kuczyński and H. Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", SIAM J. Matrix Anal. Appl. 13, 1992: the estimate is below half
    of the true one with a probability of at most 1.65 sqrt(p) exp(-1.41 depth + 0.71), which is
    8e-11 for 1500 atoms and 20 dimensions.
    """
    p, m = atoms.shape
    combination = torch.randn(p, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = (combination.to(atoms) @ atoms).double()
    basis, products = np.empty((depth, m)), np.zeros((depth, depth))
    basis[0] = np.asarray(start / start.norm())
    # share of its squared norm below which the rest of a vector is rounding
    tiny = (100 * torch.finfo(atoms.dtype).eps) ** 2
    n = _compiled()(np.asarray(atoms.contiguous()), 1 / largest, tiny, basis, products)
    products = products[:n, :n]
    if not np.isfinite(products).all():
        return None
    return atoms.new_tensor(np.linalg.eigvalsh(products)[-1])
