r"""Solve the lasso for one penalty or a path, and certify its codes by duality gaps.

The functions here check and prepare arguments, cut the data into blocks, and call
`skpudle.lasso._batched.solve`, the active set method.
"""

import warnings
from math import prod

import torch
from torch import Tensor

from skpudle._compilation import entries_of_block, threads_for
from skpudle._precision import as_scalars
from skpudle.lasso._batched import BLOCK_ENTRIES, lasso_gaps, solve
from skpudle.lasso._compiled import MOST_ROUNDS

# Two atoms count as parallel if the cosine of their angle differs from 1 by at most this. Rounding
# errors would decide which of the two gets a code, so the solver leaves one of them out. Since the
# two atoms differ a little, this makes a relative duality gap of about 1e-8 at most.
_PARALLEL = 1e-15
# A warning gives the numbers of at most this number of samples, to stay short.
_WARNED_SAMPLES = 5
# Up to this value two numbers count as zero in `descent_direction`, because they may be rounding
# errors: the cosine of an atom and the direction, and the norm of the part of an atom of norm 1
# that is orthogonal to the free atoms.
_LEAST_COSINE = 1e-9


def checked_alpha(alpha, atoms, positive=False):  # -> float, or Tensor (n_components,)
    """Check a user's penalty, and return it in the form that the solvers take.

    ``alpha`` is a float or a Tensor of shape () or (n_components,). The result is a float if all
    atoms have one penalty, else a float64 tensor on the device of the atoms. Raise ValueError
    unless ``alpha`` is positive; with ``positive`` codes it may also be the single number 0.
    """
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    alpha = alpha.detach().double()
    least = float(alpha.min())
    if not (least > 0 or (positive and least == 0 and alpha.ndim == 0)):
        raise ValueError(
            f"alpha must be positive, got {least}: without a penalty codes are least squares, "
            "neither sparse nor certified by a duality gap. Pass alpha=0 with positive=True for "
            "non-negative codes, and for codes of both signs use torch.linalg.lstsq."
        )
    return least if alpha.ndim == 0 else alpha.to(atoms.device)


def known_entries(x, mask):  # (n, m), mask that broadcasts to (n, m) or None -> x, mask
    """Prepare data ``x`` (n, m) with missing entries for a solver; return data and mask (n, m).

    ``mask`` is zero for missing entries and nonzero for known ones, and broadcasts to (n, m). The
    returned data are 0 where missing, because the solvers multiply by the mask, and 0 times a
    missing NaN would be NaN. The returned mask is 1 for known entries and 0 for missing ones, or
    None if ``mask`` is None.
    """
    if mask is None:
        return x, None
    known = mask.expand_as(x) != 0
    return x.where(known, 0.0), known.to(x.dtype)


def descent_direction(atoms, free):
    """Return a vector that has positive inner products with all atoms, for `nonnegative_gap`.

    `nonnegative_gap` moves residuals against this vector until they are feasible for the dual
    problem. The vector depends on the atoms alone, so one vector serves all rows of the data.

    Parameters
    ----------
    atoms : Tensor of shape (n_components + n_free, n_features)
        Atoms, in float64, and after them the negatives of the free atoms.
    free : Tensor of shape (n_components,)
        True for free atoms, whose codes may have any sign. The vector is orthogonal to these atoms.

    Returns
    -------
    direction : Tensor of shape (n_features,)
        The mean of the atoms, if its products are positive, after each atom has been made
        orthogonal to the free atoms and scaled to norm 1. Otherwise the point of the convex hull of
        these scaled atoms that is nearest to 0 (P. Wolfe, "Finding the nearest point in a
        polytope", Mathematical Programming 11, 1976). Zero if no vector with positive products is
        found.
    products : Tensor of shape (n_components + n_free,)
        Inner products of the vector with the atoms; 0 for free atoms, for their negatives, and for
        zero atoms. All are 0 if the vector is zero.
    """
    no_direction = atoms.new_zeros(atoms.shape[1])
    products = atoms.new_zeros(len(atoms))
    norms = torch.linalg.vector_norm(atoms[: len(free)], dim=1)
    restricted = (~free & (norms > 0)).nonzero().squeeze(1)
    if len(restricted) == 0:
        return no_direction, products
    directions = atoms[restricted] / norms[restricted, None]
    if free.any():
        free_atoms = atoms[: len(free)][free]
        directions = (
            directions - directions @ torch.linalg.pinv(free_atoms) @ free_atoms
        )
        norms_left = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        directions = directions / norms_left.where(
            norms_left > _LEAST_COSINE, torch.inf
        )
    direction = directions.mean(0)
    if not (directions @ direction > 0).all():
        # Let D be the directions, one a row. For the z >= 0 that minimises |z D|^2 + (1 - sum(z))^2
        # the vector z D is a multiple of the point of their convex hull that is nearest to 0. This
        # is non-negative least squares for a sample of zeros, if the sample and all directions get
        # an additional feature that is 1.
        extended = torch.cat([directions, torch.ones_like(directions[:, :1])], 1)
        target = torch.zeros_like(extended[:1])
        target[0, -1] = 1.0
        z = solve(
            extended,
            None,
            target,
            penalties=[0.0],
            positive=True,
            max_iter=3 * len(extended),
        )
        direction = (z[0, 0] @ directions)[0]
    cosines = directions @ direction
    if not (cosines > _LEAST_COSINE * torch.linalg.vector_norm(direction)).all():
        return no_direction, products
    return direction, products.index_copy_(0, restricted, atoms[restricted] @ direction)


def nonnegative_gap(
    atoms,
    x,
    codes,
    direction,
    weights=None,
):
    """Return relative duality gaps, which certify codes of non-negative least squares.

    A residual is feasible for the dual problem if its correlations ``c`` with the atoms are not
    positive. So ``max(c / w)`` times the descent direction ``v``, which has the products ``w > 0``
    with the atoms, is subtracted from the residual. Atoms with ``w = 0`` may keep positive
    correlations, which add at most ``max(c) * sum(z)`` to the gap, where ``z`` are the codes of the
    minimum. The function takes ``sum(z)`` to be at most 2 (sum of ``codes`` + norm of the row).

    Weights of a row change the products. If the direction times the weights has positive products
    with the weighted atoms, it replaces the direction. Otherwise the direction is divided by the
    weights, if no weight is 0.

    Parameters
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Atoms of norm 1 or 0 in float64, with the negatives of free atoms, as `descent_direction`
        gets them.
    x : Tensor of shape (n_samples, n_features)
        Data, in float64, already multiplied by the weights.
    codes : Tensor of shape (n_samples, n_atoms)
        Codes of these atoms.
    direction : tuple of Tensor
        The vector ``v`` (n_features,) and its products ``w`` (n_atoms,) with the atoms, both from
        `descent_direction`.
    weights : Tensor of shape (n_samples, n_features), default=None
        Non-negative weights, which multiply the residuals; None stands for weights of 1.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64. Infinite for negative codes and for codes that are not finite.
    """
    v, w = direction

    def weighted(values):  # (n, m) -> the same
        return values if weights is None else values * weights

    residual = x - weighted(codes @ atoms)
    primal = residual.square().sum(1) / 2
    c = weighted(residual) @ atoms.mT
    energy = x.square().sum(1)
    # the codes of the minimum are taken to sum to at most twice this number
    half_bound = codes.sum(1).abs() + energy.sqrt()
    if weights is not None:
        # the products <weights * atom, weights * v> of each row, which replace `w` if they fit
        row_w = weighted(weighted(v)) @ atoms.mT
        fits = ((row_w == 0) | (row_w > 0) & (w > 0)).all(1, keepdim=True)
        # Rows where `fits` is False use v / weights as direction, unless a weight is 0: the
        # products with the weighted atoms are `w`, because the weights cancel. With a weight of 0
        # no direction is usable.
        usable = fits | (weights > 0).all(1, keepdim=True)
        v = torch.where(fits, weighted(v), v / weights).where(usable, 0.0)
        w = torch.where(fits, row_w, w).where(usable, 0.0)
        # If the weights of a row almost remove an atom, its `c` and its `w` are both close to zero,
        # and rounding errors would decide on the quotient c / w below. So in rows where `w` was
        # replaced by `row_w`, `c` is lowered by a bound of its rounding error.
        c -= 1e-14 * half_bound[:, None] * fits
    inverse = torch.where(w > 0, 1 / w, 0.0)
    dual = residual - (c * inverse).amax(1, keepdim=True).clamp_min(0) * v
    # Every non-negative multiple of `dual` is feasible for the dual problem, and gives a lower
    # bound of the minimum. `best` becomes the largest of these bounds.
    best = (x * dual).sum(1) - 2 * half_bound * c.mul_(w == 0).amax(1).clamp_min(0)
    best = (best.clamp_min(0).square() / dual.square().sum(1)).nan_to_num(0.0) / 2
    gap = primal - best
    gap = gap.masked_fill(~(codes.amin(1) >= 0) | ~gap.isfinite(), torch.inf)
    return torch.where((energy == 0) & (gap == 0), 0.0, gap / (energy / 2)).clamp_min(0)


@torch.no_grad()
def duality_gap(
    atoms: Tensor,
    x: Tensor,
    codes: Tensor,
    alpha: float | Tensor,
    *,
    positive: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return a certified bound on how far the objective of codes is above the lasso's minimum.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    x : Tensor of shape (n_samples, n_features)
        Data.
    codes : Tensor of shape (n_samples, n_components)
        Codes of any origin.
    alpha : float or Tensor of shape (n_components,)
        Penalty, one for all atoms or one for each; positive. With ``positive`` it may be 0.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    mask : Tensor that broadcasts to (n_samples, n_features), default=None
        Nonzero where data are known. The objective is then that of the known entries.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64: bounds on :math:`(P(z) - \min P) / P(0)`, where
        :math:`P(z) = \frac12 |x - D z|^2 + \sum_j \alpha_j |z_j|` is the objective. Infinite for
        negative codes with ``positive``. With ``alpha=0`` the bound is rigorous under the
        conditions that `solve_nnls` describes.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive (with ``positive``: if it is negative).
    """
    alpha = checked_alpha(alpha, atoms, positive)
    atoms = atoms.double()
    x = x.double()
    codes = codes.double()
    x, mask = known_entries(x, mask)
    if not isinstance(alpha, torch.Tensor) and alpha == 0:
        norms = torch.linalg.vector_norm(atoms, dim=1)
        atoms = atoms / norms.where(norms > 0, 1.0)[:, None]
        codes = codes * norms
        direction = descent_direction(atoms, norms < 0)  # no atom is free
        return nonnegative_gap(atoms, x, codes, direction, mask)
    alpha = as_scalars(alpha, x)
    return lasso_gaps(atoms / alpha.reshape(-1, 1), x, alpha * codes, positive, mask)


def warn_about_gaps(
    gaps, *, tol=1e-6, category=RuntimeWarning, stacklevel=1, advice=None
):
    """Warn the user of codes that miss the minimum, with the numbers of their samples.

    Parameters
    ----------
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps.
    tol : float, default=1e-6
        The largest gap that needs no warning.
    category : type, default=RuntimeWarning
        Category of the warning.
    stacklevel : int, default=1
        As in `warnings.warn`: 1 names the line that calls this function, 2 the line that calls the
        caller.
    advice : str, default=None
        The end of the warning: how to reach a smaller gap. By default it recommends float64, a
        larger penalty and a larger ``max_iter``.
    """
    if advice is None:
        advice = "use float64, a larger penalty or a larger max_iter to come closer"
    gaps = gaps.cpu()
    missed = (~(gaps <= tol)).nonzero().squeeze(1).tolist()  # a NaN counts as missed
    if not missed:
        return
    named = ", ".join(map(str, missed[:_WARNED_SAMPLES]))
    if len(missed) > _WARNED_SAMPLES:
        named += ", ..."
    warnings.warn(
        f"The codes of {len(missed)} of {len(gaps)} samples have a relative duality gap above "
        f"tol={tol:g}, up to {float(gaps[missed].max()):.3g} (samples {named}). Check these for "
        f"values that are huge or not finite; {advice}.",
        category,
        stacklevel=stacklevel + 1,
    )


def _without_parallels(atoms, positive):  # -> (n_components, n_features), bool
    """Set atoms that the lasso does not need to zero, so that no two parallel atoms remain.

    The active set method needs atoms that are not parallel, see `_PARALLEL`. An atom is not needed
    if it is zero or not finite, or if another atom is parallel to it and longer (or equally long,
    with a smaller number): the longer atom explains the same data for a smaller penalty. With
    ``positive`` codes an atom and its negative are not parallel. Return the atoms (n_components,
    n_features), and whether any atom is not needed.
    """
    n_components, n_features = atoms.shape
    norms = torch.linalg.vector_norm(atoms, dim=1)
    needed = (norms > 0) & (norms < torch.inf)
    directions = atoms / norms.where(needed, 1.0)[:, None]
    # This test spares most calls the matrix of the cosines of all pairs of atoms. Parallel atoms
    # have the same product with `generic`, up to sign and rounding, and other atoms almost surely
    # have different ones. So if no two sorted products are close, no atoms are parallel.
    # (Directions of parallel atoms differ by at most (2 * _PARALLEL) ** 0.5 in norm, and the norm
    # of `generic` is at most n_features ** 0.5.)
    numbers = torch.arange(1, n_features + 1, dtype=atoms.dtype, device=atoms.device)
    generic = numbers.square().sin()
    products = (directions @ generic).abs().sort().values
    are_close = (products.diff() <= (2 * n_features * _PARALLEL) ** 0.5).any()
    if not torch.logical_or(are_close, ~needed.all()):
        return atoms, False
    number = torch.arange(n_components, device=atoms.device)
    cosines = directions @ directions.mT
    are_parallel = (cosines if positive else cosines.abs()) > 1 - _PARALLEL
    # Entry [i, j] of `are_better` says whether atom j is better than atom i: longer, or equally
    # long with a smaller number. Norms count as equal if they differ by rounding, which grows with
    # the number of features.
    similar = (norms - norms[:, None]).abs() <= 1e-13 * n_features * norms
    are_better = torch.where(similar, number < number[:, None], norms > norms[:, None])
    needed &= ~(are_parallel & are_better).any(1)
    return atoms.where(needed[:, None], 0.0), not needed.all()


def rows_of_block(x, n_components):  # -> int
    """Return how many rows of the data ``x`` (n, m) a solver takes at a time, to bound its memory.

    `solve_lasso` and `solve_nnls` cut their data into blocks of this number of rows.
    """
    on_host = x.device.type == "cpu"
    entries = entries_of_block() if on_host else BLOCK_ENTRIES.get(x.device.type, 2**20)
    return max(1, entries // n_components)


def gram_matrix(atoms, n_samples):
    """Return the Gram matrix of the atoms for a solver, if it saves time with ``n_samples`` rows.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    n_samples : int
        Number of samples to solve for.

    Returns
    -------
    Tensor of shape (n_components, n_components) or None
        Inner products of the atoms with each other; None where they cost more than they save.
    """
    # A Gram matrix costs a product of each atom with all atoms, in one efficient call, and saves
    # each sample a few products of a vector with all atoms, in separate calls. So it pays up to 32
    # atoms per sample. With more than 10,000 atoms it would take gigabytes. With up to 128 atoms it
    # costs nearly nothing, and spares users of a few rows the seconds in which numba would compile
    # the loops without a Gram matrix.
    few = len(atoms) <= max(128, min(10_000, 32 * n_samples))
    with threads_for(atoms, atoms):
        return atoms @ atoms.mT if few else None


@torch.no_grad()
def solve_lasso(
    atoms: Tensor,
    x: Tensor,
    alpha: float | Tensor,
    *,
    positive: bool = False,
    debias: float = 0.0,
    max_iter: int = MOST_ROUNDS,
    certify: bool = True,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Minimise :math:`\frac12 |x - D z|^2 + \alpha |z|_1` for every row of the data.

    Codes are exact up to rounding (in float64, then rounded to the dtype of the data). The solver
    needs no tolerance, and a row has the same codes alone and among other rows, up to rounding
    times the condition number of its support. If several codes have the minimum, the atoms with
    nonzero codes are linearly independent in the returned codes. Of parallel atoms, whose cosine
    is 1 to rounding, only the longest gets codes, or the first of the longest; this costs a gap of
    at most about 1e-8. If the norm of an atom is not finite, codes and gaps are NaN.

    The penalty chooses the atoms and shrinks their codes, by :math:`\alpha` where atoms are
    orthogonal. ``debias`` removes that bias (the relaxed lasso [1]_).

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of any norm; zero and repeated atoms are allowed.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alpha : float or Tensor of shape () or (n_components,)
        Penalty, in units of the data times the atoms; positive. With ``positive`` it may be 0, a
        problem for which `solve_nnls` has more options.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    debias : float, default=0.0
        The fraction, from 0 to 1, of the bias to remove: codes are ``1 - debias`` times the codes
        of the lasso plus ``debias`` times the least squares codes on their support. If least
        squares would change the sign of a code, that code leaves the support first.
    max_iter : int, default=1000
        Largest number of rounds of the active set method for a sample. It needs about one round for
        every third nonzero code. Samples that need more rounds get codes with a large gap.
    certify : bool, default=True
        Whether to compute the duality gaps.
    mask : Tensor that broadcasts to (n_samples, n_features), default=None
        Nonzero where data are known; missing data may have any value. The codes of a row depend on
        its known entries alone. A row without known entries has the code zero.

    Returns
    -------
    codes : Tensor of shape (n_samples, n_components)
        Codes, of the dtype of the data.
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps, in float64, of the codes before ``debias`` and before they are
        rounded to the dtype of the data: they certify the support, see `duality_gap`. NaN without
        ``certify``.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive (with ``positive``: if it is negative), or if ``debias`` is not
        from 0 to 1.

    References
    ----------
    .. [1] N. Meinshausen, "Relaxed Lasso", Computational Statistics & Data Analysis 52, 2007.

    Examples
    --------
    >>> import torch
    >>> from skpudle.lasso import solve_lasso
    >>> codes, gaps = solve_lasso(torch.eye(3), torch.tensor([[1.0, -0.25, 0.0]]), 0.5)
    >>> codes
    tensor([[0.5000, 0.0000, 0.0000]])
    >>> bool(gaps.max() <= 1e-12)
    True
    >>> solve_lasso(torch.eye(3), torch.tensor([[1.0, -0.25, 0.0]]), 0.5, debias=1)[0]
    tensor([[1., 0., 0.]])
    """
    if not 0 <= debias <= 1:
        raise ValueError(f"debias is {debias!r}. Pass a number from 0 to 1.")
    x, mask = known_entries(x, mask)
    penalty = checked_alpha(alpha, atoms, positive)
    atoms = atoms.double()
    scale = None
    # One penalty for each atom: the atoms divided by the penalties have codes for the penalty 1,
    # and these codes divided by the penalties are the codes sought.
    if isinstance(penalty, torch.Tensor):
        scale = penalty
        penalty = 1.0
        atoms = atoms / scale[:, None]
    codes = x.new_empty(len(x), len(atoms))
    gaps = x.new_full((len(x),), torch.nan, dtype=torch.float64)
    if not (torch.linalg.vector_norm(atoms, dim=1) < torch.inf).all():
        return codes.fill_(torch.nan), gaps
    kept, is_reduced = _without_parallels(atoms, positive)
    gram = gram_matrix(kept, len(x))
    # `solve` computes gaps at little cost, but only with a penalty. And a gap has to count all
    # atoms, but `solve` gets zeros instead of atoms that are not needed (`_without_parallels`).
    is_certified = certify and penalty > 0 and not is_reduced
    n_rows = rows_of_block(x, len(atoms))
    # All blocks write their codes to this memory: if each block allocated its own, allocations
    # would take a quarter of the time.
    memory = x.new_empty(
        1 + (debias > 0), min(n_rows, len(x)) * len(atoms), dtype=torch.float64
    )
    for first in range(0, len(x), n_rows):
        rows = slice(first, first + n_rows)
        data = x[rows].double()
        mask_of_rows = None if mask is None else mask[rows].double()
        # index 0 of the first axis gets the lasso's codes, index 1 the least squares codes
        shape = len(memory), 1, len(data), len(atoms)
        solutions = memory.flatten()[: prod(shape)].view(shape)
        solve(
            kept,
            gram,
            data,
            penalties=[penalty],
            positive=positive,
            max_iter=max_iter,
            mask=mask_of_rows,
            out=solutions,
            gaps=gaps[rows] if is_certified else None,
        )
        z = solutions[0, 0]
        if certify and not is_certified:
            gaps[rows] = duality_gap(
                atoms, data, z, penalty, positive=positive, mask=mask_of_rows
            )
        z = z.lerp(solutions[1, 0], debias) if debias else z
        codes[rows] = z if scale is None else z / scale
    return codes, gaps


@torch.no_grad()
def lasso_path(
    atoms,
    x,
    alphas,
    *,
    positive=False,
    mask=None,
    gram=None,
):
    r"""Return codes of the lasso and least squares refits for several penalties, to compare them.

    A search for the best penalty calls this function. Penalties fall, because the solver on the CPU
    starts each from the codes of the penalty before, which takes fewer rounds than a start from
    zero.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, as in `solve_lasso`.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alphas : sequence of float
        Penalties, from the largest to the smallest; positive. With non-negative codes the last may
        be 0.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    mask : Tensor that broadcasts to (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.
    gram : Tensor of shape (n_components, n_components), default=None
        The Gram matrix of the atoms, in float64, if the caller has it. The caller then vouches that
        no two atoms are parallel; nothing checks it.

    Returns
    -------
    codes : Tensor of shape (n_alphas, n_samples, n_components)
        Codes of the lasso, in float64.
    refits : Tensor of shape (n_alphas, n_samples, n_components)
        Least squares codes on the supports of ``codes``, in float64, as with ``debias=1`` in
        `solve_lasso`.

    Raises
    ------
    ValueError
        If a penalty is not positive (with ``positive``: if it is negative).
    """
    x, mask = known_entries(x.double(), mask)
    atoms = atoms.double()
    if gram is None:
        atoms, _ = _without_parallels(atoms, positive)
        gram = gram_matrix(atoms, len(x))
    penalties = [float(alpha) for alpha in alphas]
    checked_alpha(min(penalties), atoms, positive)
    return solve(
        atoms, gram, x, penalties=penalties, positive=positive, mask=mask, refit=True
    ).unbind()
