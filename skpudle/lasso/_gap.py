"""Certify codes of the lasso by their duality gap; see `skpudle.lasso`."""

import warnings

import torch
from torch import Tensor

from skpudle._precision import as_scalars
from skpudle.lasso._batched import lasso_gaps
from skpudle.lasso._compiled import solver_on

# Least cosine with a descent direction that rounding cannot make positive.
_LEAST_COSINE = 1e-9


def checked_alpha(alpha, atoms, positive=False):
    """Return alpha as a float, or as a float64 tensor of one entry per atom.

    It is positive; with non-negative codes it may be the number 0.
    """
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    alpha = alpha.detach().double()
    if alpha.shape not in [(), (len(atoms),)]:
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}. Pass a number, or one for each of the "
            f"{len(atoms)} atoms."
        )
    least = float(alpha.min())
    if not (least > 0 or (positive and least == 0 and alpha.ndim == 0)):
        raise ValueError(
            f"alpha must be positive, got {least}: without a penalty codes are least squares, "
            "neither sparse nor certified by a duality gap. Pass alpha=0 with positive=True for "
            "non-negative codes, and for codes of both signs use torch.linalg.lstsq."
        )
    return least if alpha.ndim == 0 else alpha.to(atoms.device)


def known_entries(x, mask):  # (n, m), mask (n, m) or None -> x, mask
    """Return the data with 0 for missing entries, and a mask of 1 for known and 0 for missing ones.

    Raises
    ------
    ValueError
        If the mask has another shape than the data.
    """
    if mask is None:
        return x, None
    if mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, the data {tuple(x.shape)}. Pass a mask of the "
            "shape of the data."
        )
    known = mask != 0
    return x.where(known, 0.0), known.to(x.dtype)


def descent_direction(atoms, n_free=0):
    """Return a vector whose products with all atoms are positive, and these products.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, in float64.
    n_free : int, default=0
        The last ``2 * n_free`` atoms are free atoms and their negatives: the vector is orthogonal
        to these.

    Returns
    -------
    direction : Tensor of shape (n_features,)
        The mean of the atoms' directions or, where that does not do, the point of their convex hull
        that is nearest to 0 (P. Wolfe, "Finding the nearest point in a polytope", Mathematical
        Programming 11, 1976). Zero where no such vector is known.
    products : Tensor of shape (n_components,)
        Products with the atoms; 0 for free atoms and for zero atoms.
    """
    none = atoms.new_zeros(atoms.shape[1]), atoms.new_zeros(len(atoms))
    n_signed = len(atoms) - 2 * n_free
    norms = torch.linalg.vector_norm(atoms[:n_signed], dim=1)
    signed = norms.nonzero().squeeze(1)
    if len(signed) == 0:
        return none
    directions = atoms[signed] / norms[signed, None]
    if n_free:
        free = atoms[n_signed : n_signed + n_free]
        directions = directions - directions @ torch.linalg.pinv(free) @ free
        left = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        directions = directions / left.where(left > _LEAST_COSINE, torch.inf)
    direction = directions.mean(0)
    if not (directions @ direction > 0).all():
        # the minimum of |z D|^2 + (1 - sum(z))^2 is a multiple of the nearest point
        wide = torch.cat([directions, torch.ones_like(directions[:, :1])], 1)
        target = torch.zeros_like(wide[:1])
        target[0, -1] = 1.0
        solve = solver_on(atoms.device)
        z = solve(wide, None, target, penalties=[0.0], positive=True, max_iter=3 * len(wide))[0]
        direction = (z @ directions)[0]
    cosines = directions @ direction
    if not (cosines > _LEAST_COSINE * torch.linalg.vector_norm(direction)).all():
        return none
    return direction, none[1].index_copy(0, signed, atoms[signed] @ direction)


def nonnegative_gap(atoms, x, codes, direction, weights=None):
    """Return relative duality gaps of non-negative least squares.

    A residual ``r`` with correlations ``c`` is moved along a descent direction with products ``w``
    until it is feasible, by ``max(c / w)``. Positive correlations of atoms without a direction add
    at most ``max(c) * sum(z)`` to the gap, over codes of the minimum. These are taken to be twice
    the codes. Weights of a row change products: the direction is multiplied by the weights where
    its products keep their signs, and divided by them elsewhere, if no weight is 0.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms of norm 1 or 0, in float64.
    x : Tensor of shape (n_samples, n_features)
        Data, in float64, times the weights.
    codes : Tensor of shape (n_samples, n_components)
        Codes.
    direction : tuple of Tensor
        Results of `descent_direction`.
    weights : Tensor of shape (n_samples, n_features), default=None
        Weights, which multiply the residual.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64. Infinite for negative codes and for codes that are not finite.
    """
    v, w = direction

    def weighted(values):
        return values if weights is None else values * weights

    residual = x - weighted(codes @ atoms)
    primal = residual.square().sum(1) / 2
    c = weighted(residual) @ atoms.mT
    energy = x.square().sum(1)
    size = codes.sum(1).abs() + energy.sqrt()
    if weights is not None:
        own = weighted(weighted(v)) @ atoms.mT  # of the direction times the weights
        fits = ((own == 0) | (own > 0) & (w > 0)).all(1, keepdim=True)
        # the direction over the weights has the same products with weighted atoms as without
        usable = fits | (weights > 0).all(1, keepdim=True)
        v = torch.where(fits, weighted(v), v / weights).where(usable, 0.0)
        w = torch.where(fits, own, w).where(usable, 0.0)
        # smaller correlations of weighted rows count as 0: an atom may have next to no weight in a
        # row
        c -= 1e-14 * size[:, None] * fits
    inverse = torch.where(w > 0, 1 / w, 0.0)
    dual = residual - (c * inverse).amax(1, keepdim=True).clamp_min(0) * v
    # the best multiple of the dual point: all multiples of at least 0 are as feasible
    best = (x * dual).sum(1) - 2 * size * c.mul_(w == 0).amax(1).clamp_min(0)
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
    r"""Return a certified bound on the distance of codes from the minimum of the lasso.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    x : Tensor of shape (n_samples, n_features)
        Data.
    codes : Tensor of shape (n_samples, n_components)
        Codes of any origin.
    alpha : float or Tensor of shape (n_components,)
        Penalty, one for all atoms or one for each; positive. It may be 0 for non-negative codes.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known. The lasso is then the lasso of the known entries.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64: a bound on :math:`(P(z) - \min P) / P(0)`, where
        :math:`P(0) = |x|^2 / 2`. Infinite for codes that are negative where they must not be.
        With ``alpha=0`` see `solve_nnls`.
    """
    alpha = checked_alpha(alpha, atoms, positive)
    atoms, x, codes = atoms.double(), x.double(), codes.double()
    x, known = known_entries(x, mask)
    if not isinstance(alpha, torch.Tensor) and alpha == 0:
        norms = torch.linalg.vector_norm(atoms, dim=1)
        atoms, codes = atoms / norms.where(norms > 0, 1.0)[:, None], codes * norms
        return nonnegative_gap(atoms, x, codes, descent_direction(atoms), known)
    alpha = as_scalars(alpha, x)
    scaled = atoms / alpha.reshape(-1, 1), x, alpha * codes
    return lasso_gaps(*scaled, positive, known)


def warn_about_gaps(gaps, *, tol=1e-6, category=RuntimeWarning, stacklevel=1, advice=None):
    """Warn of samples with a relative duality gap above ``tol``, and name them.

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
        The end of the warning: how to come closer. A larger penalty and ``max_iter`` by default.
    """
    advice = advice or "float64 and a larger penalty come closer, and so does a larger max_iter"
    gaps = gaps.cpu()
    missed = (~(gaps <= tol)).nonzero().squeeze(1).tolist()  # a NaN counts as missed
    if not missed:
        return
    named = ", ".join(map(str, missed[:5]))
    # the first samples are named
    if len(missed) > 5:
        named += ", ..."
    warnings.warn(
        f"The codes of {len(missed)} of {len(gaps)} samples have a relative duality gap above "
        f"tol={tol:g}, up to {float(gaps[missed].max()):.3g} (samples {named}). Check these for "
        f"values that are huge or not finite; {advice}.",
        category,
        stacklevel=stacklevel + 1,
    )
