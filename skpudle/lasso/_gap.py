"""Certify codes of the lasso by their duality gap; see `skpudle.lasso`."""

import warnings

import torch

from skpudle._precision import as_scalars

__all__ = ["GapWarning", "checked_alpha", "duality_gap", "known_entries", "warn_about_gaps"]

_WARNED_SAMPLES = 5


class GapWarning(RuntimeWarning):
    """Some codes have a duality gap above the tolerance."""


def checked_alpha(alpha, atoms):
    """Return alpha as a positive float, or as a float64 tensor of one entry per atom."""
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    alpha = alpha.detach().double()
    if alpha.shape not in [(), (len(atoms),)]:
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}. Pass a number, or one for each of the "
            f"{len(atoms)} atoms."
        )
    least = float(alpha.min())
    if not least > 0:
        raise ValueError(
            f"alpha must be positive, got {least}: without a penalty codes are least squares, "
            "neither sparse nor certified by a duality gap. For these use torch.linalg.lstsq."
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


@torch.no_grad()
def duality_gap(atoms, x, codes, alpha, *, positive=False, dual_codes=None, mask=None):
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
        Penalty, one for all atoms or one for each; positive.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    dual_codes : Tensor of shape (n_samples, n_components), default=None
        Codes to take the dual feasible point from, by scaling their residual; by default the codes
        themselves. Any codes certify; if ``codes`` are rounded, unrounded ones give a better bound.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known. The lasso is then the lasso of the known entries.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64: a bound on :math:`(P(z) - \min P) / P(0)`, where
        :math:`P(0) = |x|^2 / 2`. Infinite for codes that are negative where they must not be.
    """
    alpha = as_scalars(checked_alpha(alpha, atoms), x.new_empty(0, dtype=torch.float64))
    atoms, x, codes = atoms.double(), x.double(), codes.double()
    x, known = known_entries(x, mask)

    def residual_of(codes):
        residual = x - codes @ atoms
        return residual if known is None else residual * known

    residual = residual_of(codes)
    size = torch.linalg.vector_norm(codes if alpha.ndim == 0 else alpha * codes, ord=1, dim=1)
    primal = residual.square().sum(1) / 2 + (alpha * size if alpha.ndim == 0 else size)

    dual = residual if dual_codes is None else residual_of(dual_codes.double())
    correlations = dual @ (atoms / alpha.reshape(-1, 1)).mT
    least, largest = correlations.aminmax(dim=1)
    if not positive:
        largest = torch.maximum(largest, -least)
    # the best multiple of the residual among the feasible ones
    best = (x * dual).sum(1) / dual.square().sum(1)
    multiple = torch.minimum(best, torch.where(largest > 0, 1 / largest, torch.inf)).clamp_min(0)
    dual = multiple.nan_to_num()[:, None] * dual
    gap = primal - ((x * dual).sum(1) - dual.square().sum(1) / 2)

    if positive:
        gap = gap.masked_fill((codes < 0).any(1), torch.inf)
    at_zero = x.square().sum(1) / 2
    return torch.where((at_zero == 0) & (gap == 0), 0.0, gap / at_zero).clamp_min(0)


def warn_about_gaps(gaps, *, tol=1e-6, category=GapWarning, stacklevel=1):
    """Warn of samples with a relative duality gap above ``tol``, and name them.

    Parameters
    ----------
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps.
    tol : float, default=1e-6
        The largest gap that needs no warning.
    category : type, default=GapWarning
        Category of the warning.
    stacklevel : int, default=1
        As in `warnings.warn`: 1 names the line that calls this function, 2 the line that calls the
        caller.
    """
    gaps = gaps.cpu()
    missed = (~(gaps <= tol)).nonzero().squeeze(1).tolist()  # a NaN misses as well
    if not missed:
        return
    named = ", ".join(map(str, missed[:_WARNED_SAMPLES]))
    if len(missed) > _WARNED_SAMPLES:
        named += ", ..."
    warnings.warn(
        f"The codes of {len(missed)} of {len(gaps)} samples have a relative duality gap above "
        f"tol={tol:g}, up to {float(gaps[missed].max()):.3g} (samples {named}). Check these for "
        "values that are huge or not finite; float64 and a larger penalty come closer, and so does "
        "solve_lasso with a larger max_iter.",
        category,
        stacklevel=stacklevel + 1,
    )
