r"""Solve non-negative least squares; see `solve_nnls`.

Non-negative least squares are the lasso of non-negative codes without a penalty, so the same active
set method applies. An atom whose codes may have any sign becomes two atoms, one the negative of the
other. Atoms have unit norm and rows of the data a largest modulus of 1 while they are solved, so
that squares stay in the range of float64.
"""

import numpy as np
import torch
from torch import Tensor

from skpudle._precision import check_tensors
from skpudle.lasso._batched import solver_on
from skpudle.lasso._solve import (
    descent_direction,
    gram_matrix,
    nonnegative_gap,
    rows_of_block,
    warn_about_gaps,
)


def _as_tensor(values):
    """Return an array or a tensor as a tensor, which may share its memory."""
    if isinstance(values, torch.Tensor):
        return values if values.is_floating_point() else values.double()
    values = np.asarray(values)
    if values.dtype.kind != "f":
        values = values.astype(np.float64, casting="safe")  # refuses complex numbers and texts
    # torch takes no read-only arrays, and no negative strides
    return torch.as_tensor(np.require(values, requirements=["C", "W"]))


def _check_finite(values, name):
    if not values.isfinite().all():
        raise ValueError(
            f"The {name} contain NaN or infinite values. Pass finite numbers, and the weight 0 "
            "where data are missing."
        )


def _checked_weights(weights, x):  # -> (n_samples, n_features) or (n_features,), in float64
    weights = _as_tensor(weights).to(x.device).double()
    _check_finite(weights, "weights")
    if weights.numel() and weights.min() < 0:
        raise ValueError(f"weights has the value {float(weights.min()):g}. Pass weights >= 0.")
    return weights if weights.ndim == 1 else weights.expand_as(x)


def _split_scale(rows):  # (n, m) -> (n, m), (n, 1)
    """Return rows with a largest modulus of 1, or 0, and their largest moduli, or 1."""
    largest = rows.abs().amax(1, keepdim=True)
    largest = largest.where(largest > 0, 1.0)
    return rows / largest, largest


class _Atoms:
    """Unit atoms: first of non-negative codes, then of free codes, then the latter's negatives."""

    def __init__(self, atoms, free):
        unit, moduli = _split_scale(atoms.double())
        norms = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
        norms = norms.where(norms > 0, 1.0)
        unit, self.lengths = unit / norms, (moduli * norms).T
        self.order, self.n_free = None, 0
        if free is not None:
            self.order = free.to(torch.int8).argsort(stable=True)
            self.n_free = int(free.sum())
            unit = unit[self.order]
            unit = torch.cat([unit, -unit[len(unit) - self.n_free :]])
        self.unit = unit

    def join(self, z):  # (n, len(unit)) -> (n, n_components)
        """Return codes of unit atoms, one for each atom."""
        if self.order is None:
            return z
        n_components = len(self.order)
        joined = z[:, :n_components].clone()
        joined[:, n_components - self.n_free :] -= z[:, n_components:]
        return torch.empty_like(joined).index_copy_(1, self.order, joined)


@torch.no_grad()
def _solve(atoms, x, weights, free, max_iter):
    same_weights = weights is not None and weights.ndim == 1
    atoms = _Atoms(atoms * weights if same_weights else atoms, free)
    unit = atoms.unit
    max_iter = max(1000, 3 * len(unit)) if max_iter is None else max_iter
    gram, direction = gram_matrix(unit, len(x)), descent_direction(unit, atoms.n_free)
    codes = x.new_empty(len(x), atoms.lengths.shape[1])
    gaps = x.new_empty(len(x), dtype=torch.float64)
    n_rows = min(rows_of_block(x, len(unit)), len(x))
    room = unit.new_empty(1, n_rows, len(unit))
    how = dict(penalties=[0.0], positive=True, max_iter=max_iter)
    for first in range(0, len(x), n_rows):
        rows, row_weights = slice(first, first + n_rows), None
        data = x[rows].double()
        data, scale = _split_scale(data * weights if same_weights else data)
        if weights is not None and not same_weights:
            row_weights, _ = _split_scale(weights[rows])
            data, again = _split_scale(data * row_weights)
            scale = scale * again
        how |= dict(mask=row_weights, out=room[:, : len(data)])
        (z,) = solver_on(x.device)(unit, gram, data, **how)
        codes[rows] = atoms.join(z) * (scale / atoms.lengths)
        gaps[rows] = nonnegative_gap(unit, data, z, direction, row_weights)
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
        Relative duality gaps in float64: bounds on :math:`(P(z) - \min P) / P(0)`. The bound is
        rigorous, up to rounding, if a vector has positive products with all atoms, as for
        non-negative or for linearly independent atoms, and if it is orthogonal to free atoms
        (which takes weights above 0 where weights differ between rows).
        Otherwise the gap assumes that the codes of the minimum sum to at most twice the sum of the
        codes found. Codes beyond the range of their dtype have an infinite gap.

    Raises
    ------
    TypeError
        If arrays do not hold real numbers.
    ValueError
        If shapes do not fit, if values are NaN or infinite (except for data of weight 0), or if
        weights are negative.

    Warns
    -----
    RuntimeWarning
        If a gap is above ``tol``.

    See Also
    --------
    solve_lasso : The same with a penalty, which leaves fewer codes.

    Notes
    -----
    Admitting several atoms at a time changes the algorithm of Lawson and Hanson [1]_, and so does a
    Gram matrix for all rows [2]_. With weights, an atom whose norm is below about 1e-14 of its norm
    elsewhere has the code 0.

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
    >>> solve_nnls(atoms, np.array([[2.0, 1.0, -1.0]]), free=np.array([False, True]))[0].round(6)
    array([[ 2., -1.]])
    """
    from_arrays = not isinstance(x, torch.Tensor)
    atoms, x = _as_tensor(atoms), _as_tensor(x)
    check_tensors(atoms, x)
    free = None if free is None else _as_tensor(free).to(atoms.device).expand(len(atoms)) > 0
    _check_finite(atoms, "atoms")
    if weights is not None:
        weights = _checked_weights(weights, x)
        x = x.where(weights > 0, 0.0)
    _check_finite(x, "data")
    if 0 in x.shape or 0 in atoms.shape:
        codes, gaps = x.new_zeros(len(x), len(atoms)), x.new_zeros(len(x), dtype=torch.float64)
    else:
        codes, gaps = _solve(atoms, x, weights, free, max_iter)
    warn_about_gaps(gaps, tol=tol, stacklevel=2, advice="float64 and a larger max_iter come closer")
    return (np.asarray(codes), np.asarray(gaps)) if from_arrays else (codes, gaps)
