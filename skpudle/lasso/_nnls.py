r"""Non-negative least squares: check and scale the arguments of a user, and solve block by block.

Non-negative least squares are the lasso of non-negative codes with the penalty 0, so the active set
method of `skpudle.lasso._batched` solves both. An atom that is *free*, whose codes may have any
sign, becomes two atoms, one the negative of the other. Atoms are scaled to norm 1, and rows to a
largest modulus of 1, so that squares stay in the range of float64.
"""

import numpy as np
import torch
from torch import Tensor

from skpudle.lasso._batched import solve
from skpudle.lasso._solve import (
    descent_direction,
    gram_matrix,
    nonnegative_gap,
    rows_of_block,
    warn_about_gaps,
)


def _as_tensor(values):  # -> Tensor
    """Return a user's array or tensor as a tensor of floats of the same shape, for `solve_nnls`.

    The tensor may share the user's memory, so callers must not write to it. Raise TypeError for
    values that are not real numbers.
    """
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.double()
    values = np.asarray(values)
    if values.dtype.kind != "f":
        # complex numbers and texts are not safe to cast
        values = values.astype(np.float64, casting="safe")
    # `require` copies arrays with negative strides, which torch refuses, and read-only arrays, of
    # which torch warns
    return torch.as_tensor(np.require(values, requirements=["C", "W"]))


def _check_finite(values, name):
    """Raise ValueError, with the ``name`` of a user's argument, if a value is not finite."""
    if not values.isfinite().all():
        raise ValueError(
            f"The {name} contain NaN or infinite values. Pass finite numbers, and the weight 0 "
            "where data are missing."
        )


def _split_scale(rows):  # (n, m) -> (n, m), (n, 1)
    """Divide each row by the largest modulus of its entries, so that squares of entries are finite.

    Return the divided rows and the moduli. A row of zeros stays as it is and has the modulus 1.
    """
    largest = rows.abs().amax(1, keepdim=True)
    largest = largest.where(largest > 0, 1.0)
    return rows / largest, largest


@torch.no_grad()
def _solve_weighted(
    atoms,
    x,
    weights,
    free,
    max_iter,
):  # -> (n, n_components), (n,)
    """Do the work of `solve_nnls`, block by block, with tensors that `solve_nnls` has checked.

    ``weights`` are (n_features,), (n, n_features) or None; ``free`` is (n_components,), bool.
    Weights (n_features,) multiply atoms and data once, and all rows share a Gram matrix. Weights
    that differ between rows go to the solver as a mask. ``max_iter`` may be None. Return
    codes (n, n_components), and relative duality gaps (n,).
    """
    same_weights = weights is not None and weights.ndim == 1
    unit_atoms = atoms.double() * weights if same_weights else atoms.double()
    unit_atoms, moduli = _split_scale(unit_atoms)
    norms = torch.linalg.vector_norm(unit_atoms, dim=1, keepdim=True)
    norms = norms.where(norms > 0, 1.0)
    # the negatives of free atoms are additional atoms
    unit_atoms = torch.cat([unit_atoms / norms, -(unit_atoms / norms)[free]])
    norms_of_atoms = (moduli * norms).T
    max_iter = max(1000, 3 * len(unit_atoms)) if max_iter is None else max_iter
    gram = gram_matrix(unit_atoms, len(x))
    direction = descent_direction(unit_atoms, free)
    codes = x.new_empty(len(x), len(atoms))
    gaps = x.new_empty(len(x), dtype=torch.float64)
    n_rows = min(rows_of_block(x, len(unit_atoms)), len(x))
    memory = unit_atoms.new_empty(1, 1, n_rows, len(unit_atoms))
    for first in range(0, len(x), n_rows):
        rows = slice(first, first + n_rows)
        row_weights = None
        data = x[rows].double()
        data, scale = _split_scale(data * weights if same_weights else data)
        if weights is not None and not same_weights:
            row_weights, _ = _split_scale(weights[rows])
            data, weighted_scale = _split_scale(data * row_weights)
            scale = scale * weighted_scale
        z = solve(
            unit_atoms,
            gram,
            data,
            penalties=[0.0],
            positive=True,
            max_iter=max_iter,
            mask=row_weights,
            out=memory[:, :, : len(data)],
        )[0, 0]
        gaps[rows] = nonnegative_gap(unit_atoms, data, z, direction, row_weights)
        # a free atom was solved for as two atoms; its code is that of the atom minus that of the
        # negative
        z[:, : len(atoms)][:, free] -= z[:, len(atoms) :]
        codes[rows] = z[:, : len(atoms)] * (scale / norms_of_atoms)
    return codes, gaps.masked_fill_(~codes.isfinite().all(1), torch.inf)


def solve_nnls(
    atoms: np.ndarray | Tensor,
    x: np.ndarray | Tensor,
    *,
    weights: np.ndarray | Tensor | None = None,
    free: np.ndarray | Tensor | None = None,
    tol: float = 1e-8,
    max_iter: int | None = None,
) -> tuple[np.ndarray | Tensor, np.ndarray | Tensor]:
    r"""Minimise :math:`\frac12 \sum_f w_f^2 (x - z D)_f^2` over :math:`z \ge 0` for every row.

    Codes are exact up to rounding (in float64, then rounded to the dtype of the data), and a gap
    certifies each row. If atoms are linearly dependent, several codes may have the minimum; the
    returned codes have linearly independent supports.

    Parameters
    ----------
    atoms : ndarray or Tensor of shape (n_components, n_features)
        Atoms, of any norm; zero, repeated and dependent atoms are allowed.
    x : ndarray or Tensor of shape (n_samples, n_features)
        Data; a tensor is on the device of the atoms.
    weights : ndarray or Tensor of shape (n_samples, n_features) or (n_features,), default=None
        Weights of the residuals, not negative: inverse standard deviations of the noise, or a mask.
        Data of weight 0 may have any value. Weights that differ between rows take a few times
        longer, since each row then has its own Gram matrix.
    free : ndarray or Tensor of shape (n_components,), default=None
        True for atoms that may have negative codes, such as a baseline.
    tol : float, default=1e-8
        The largest relative gap that needs no warning.
    max_iter : int, default=None
        Largest number of rounds of the active set method; 3 for each atom, at least 1000, by
        default.

    Returns
    -------
    codes : ndarray or Tensor of shape (n_samples, n_components)
        Codes, of the kind and dtype of the data (float64 for integers).
    gaps : ndarray or Tensor of shape (n_samples,)
        Relative duality gaps in float64: bounds on :math:`(P(z) - \min P) / P(0)` for the function
        :math:`P` that is minimised. The bound is
        rigorous, up to rounding, if there is a vector that has positive inner products with all
        atoms that are not free, and is orthogonal to the free atoms. There is one for linearly
        independent atoms, and for non-negative atoms of which none is free. If weights differ
        between rows, a bound with free atoms is rigorous only for rows without a weight of 0.
        Otherwise the gap assumes that the codes of the minimum sum to at most twice the sum of the
        codes found. Codes beyond the range of their dtype have an infinite gap.

    Raises
    ------
    TypeError
        If arrays do not hold real numbers.
    ValueError
        If values are NaN or infinite (except for data of weight 0), or if weights are negative.

    Warns
    -----
    RuntimeWarning
        If a gap is above ``tol``.

    See Also
    --------
    solve_lasso : The same with a penalty, which leaves fewer codes.

    Notes
    -----
    The algorithm is that of Lawson and Hanson [1]_, with two changes: a round may admit several
    atoms, and all rows share a Gram matrix [2]_ unless their weights differ. If the weights of a
    row reduce the norm of an atom to less than about 1e-14 of its norm, its code is 0.

    References
    ----------
    .. [1] C. L. Lawson and R. J. Hanson, "Solving least squares problems", chapter 23, SIAM, 1995.
    .. [2] R. Bro and S. De Jong, "A fast non-negativity-constrained least squares algorithm",
       Journal of Chemometrics 11, 1997.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle.lasso import solve_nnls
    >>> atoms = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    >>> codes, gaps = solve_nnls(atoms, np.array([[2.0, 5.0, 3.0], [2.0, 1.0, -1.0]]))
    >>> codes.round(6)
    array([[2. , 3. ],
           [1.5, 0. ]])
    >>> bool(gaps.max() <= 1e-12)
    True
    >>> solve_nnls(atoms, np.array([[2.0, 1.0, -1.0]]), free=np.array([False, True]))[
    ...     0
    ... ].round(6)
    array([[ 2., -1.]])
    """
    from_arrays = not isinstance(x, torch.Tensor)
    atoms = _as_tensor(atoms)
    x = _as_tensor(x)
    free = torch.zeros(()) if free is None else _as_tensor(free)
    free = free.to(atoms.device).expand(len(atoms)) > 0
    _check_finite(atoms, "atoms")
    if weights is not None:
        weights = _as_tensor(weights).to(x.device).double()
        _check_finite(weights, "weights")
        if (weights < 0).any():
            raise ValueError(
                f"weights has the value {float(weights.min()):g}. Pass weights >= 0."
            )
        weights = weights if weights.ndim == 1 else weights.expand_as(x)
        x = x.where(weights > 0, 0.0)
    _check_finite(x, "data")
    if 0 in x.shape or 0 in atoms.shape:
        codes = x.new_zeros(len(x), len(atoms))
        gaps = x.new_zeros(len(x), dtype=torch.float64)
    else:
        codes, gaps = _solve_weighted(atoms, x, weights, free, max_iter)
    warn_about_gaps(
        gaps, tol=tol, stacklevel=2, advice="float64 and a larger max_iter come closer"
    )
    return (np.asarray(codes), np.asarray(gaps)) if from_arrays else (codes, gaps)
