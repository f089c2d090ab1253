"""The lasso solved, certified and differentiated; see `skpudle.lasso`."""

import warnings
from functools import cache

import torch
from torch.autograd.function import once_differentiable

from skpudle._precision import own_precision
from skpudle.lasso._batched import solve as solve_batched
from skpudle.lasso._compiled import solve as solve_compiled

__all__ = ["GapWarning", "converged_codes", "duality_gap", "solve_lasso", "warn_about_gaps"]

# Codes of a block of rows: enough work for a device, little next to the data.
_BLOCK_ENTRIES = {"cpu": 2**20, "cuda": 2**24}
# A Gram matrix costs n_components products of data with the atoms, in one efficient call, and
# saves a few inefficient ones for every sample; above 10,000 atoms it takes gigabytes.
_GRAM_ATOMS_PER_SAMPLE = 32
_GRAM_ATOMS = 10_000
# Atoms that differ by less than this, relative to their length, are one.
_PARALLEL = 1e-13
# Eigenvalues of G_SS below this share of the largest are zero to the pseudo-inverse. It is the
# square of the relative distance of atoms that float32 barely tells apart.
_DEPENDENT = 1e-12
# Supports are padded to multiples of this.
_SUPPORT_STEP = 8
_WARNED_SAMPLES = 5


class GapWarning(RuntimeWarning):
    """Some codes are not certified to the tolerance that was asked for."""


@cache
def _numba_is_installed():
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def _solver(name, device):
    if name == "auto":
        name = "compiled" if device.type == "cpu" and _numba_is_installed() else "batched"
    solvers = {"batched": solve_batched, "compiled": solve_compiled}
    if name not in solvers:
        raise ValueError(f"Unknown solver {name!r}; pass 'auto' or one of {sorted(solvers)}.")
    if name == "compiled" and device.type != "cpu":
        raise ValueError(f"solver='compiled' is for the CPU, got data on {device}; use 'batched'.")
    return solvers[name]


def _checked_alpha(alpha, atoms):
    """Return alpha as a positive float, or as a float64 tensor of one entry per atom."""
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    alpha = alpha.detach().double()
    if alpha.shape not in [(), (len(atoms),)]:
        raise ValueError(
            f"alpha has shape {tuple(alpha.shape)}; pass a number, or one for each of the "
            f"{len(atoms)} atoms."
        )
    least = float(alpha.min())
    if not least > 0:
        raise ValueError(
            f"alpha must be positive, got {least}. Without a penalty codes are those of least "
            "squares, neither sparse nor certified by a duality gap: use torch.linalg.lstsq."
        )
    return least if alpha.ndim == 0 else alpha.to(atoms.device)


def _necessary_atoms(atoms, positive):  # -> (k,) indices
    """Return the atoms that are not zero and not parallel to a longer or an earlier one.

    An atom explains whatever a shorter parallel one does, for a smaller penalty. Without these the
    codes do not depend on how rounding breaks ties.
    """
    norms = torch.linalg.vector_norm(atoms, dim=1)
    needed = norms > 0
    directions = atoms / norms.where(needed, 1.0)[:, None]
    # Parallel atoms are next to each other in the order of their products with a generic vector.
    generic = torch.arange(1, atoms.shape[1] + 1, dtype=atoms.dtype, device=atoms.device)
    keys = directions @ generic.square().sin()
    if not positive:  # neither does the sign matter
        directions, keys = directions * keys.sign()[:, None], keys.abs()
    keys, order = keys.sort(stable=True)
    directions, norms, tolerance = directions[order], norms[order], _PARALLEL * len(generic)
    for shift in range(1, len(order)):
        near = (keys[shift:] - keys[:-shift] <= tolerance).nonzero().squeeze(1)
        if len(near) == 0:
            break
        far = near + shift
        parallel = (directions[near] - directions[far]).abs().amax(1) <= tolerance
        near, far = near[parallel], far[parallel]
        difference = norms[near] - norms[far]
        similar = difference.abs() <= tolerance * norms[near]
        near_wins = torch.where(similar, order[near] < order[far], difference > 0)
        needed[order[torch.where(near_wins, far, near)]] = False
    return needed.nonzero().squeeze(1)


@torch.no_grad()
def duality_gap(atoms, x, codes, alpha, *, positive=False, dual_codes=None):
    r"""Return a certified bound on how far codes are from the minimum of the lasso.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of any norm.
    x : Tensor of shape (n_samples, n_features)
        Data.
    codes : Tensor of shape (n_samples, n_components)
        Codes, wherever they come from.
    alpha : float or Tensor of shape (n_components,)
        Penalty, one for all atoms or one for each; positive.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    dual_codes : Tensor of shape (n_samples, n_components), default=None
        Codes whose residual is scaled to a dual feasible point; by default the codes themselves.
        Any certify, but where ``codes`` have been rounded, those from before give the better bound.

    Returns
    -------
    Tensor of shape (n_samples,)
        Relative gaps, in float64: a bound on :math:`(P(z) - \min P) / P(0)`, where
        :math:`P(0) = |x|^2 / 2`. Infinite for codes that are negative where they must not be.
    """
    alpha = torch.as_tensor(_checked_alpha(alpha, atoms), dtype=torch.float64, device=x.device)
    atoms, x, codes = atoms.double(), x.double(), codes.double()
    residual = x - codes @ atoms
    size = torch.linalg.vector_norm(codes if alpha.ndim == 0 else alpha * codes, ord=1, dim=1)
    primal = residual.square().sum(1) / 2 + (alpha * size if alpha.ndim == 0 else size)

    dual = residual if dual_codes is None else x - dual_codes.double() @ atoms
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


@torch.no_grad()
def solve_lasso(atoms, x, alpha, *, positive=False, max_iter=1000, solver="auto", certify=True):
    r"""Minimise :math:`\frac12 |x - D z|^2 + \alpha |z|_1` for every row of the data.

    Codes are exact up to rounding (in float64, then rounded to the dtype of the data): there is no
    tolerance to choose, and a row has the same codes alone and among others. Where they are not
    unique, they are those of a support without linear dependences, and without atoms that are
    parallel to a longer or an earlier one.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of any norm; zero and repeated atoms are allowed.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alpha : float or Tensor of shape () or (n_components,)
        Penalty, in units of the data times the atoms; positive.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    max_iter : int, default=1000
        Largest number of rounds of the active set method. It takes one for about every third
        entry of the codes; samples that need more have codes with a large gap.
    solver : {"auto", "batched", "compiled"}, default="auto"
        ``"compiled"`` is the fastest on the CPU and needs numba; ``"batched"`` is torch, on any
        device; ``"auto"`` chooses.
    certify : bool, default=True
        Whether to compute the duality gaps, which takes up to a third of the time.

    Returns
    -------
    codes : Tensor of shape (n_samples, n_components)
        Codes, of the dtype of the data.
    gaps : Tensor of shape (n_samples,)
        Their relative duality gaps in float64, see `duality_gap`; NaN without ``certify``.

    Raises
    ------
    ValueError
        If alpha is not positive, or if ``solver="compiled"`` gets data that are not on the CPU.
    ImportError
        If ``solver="compiled"`` and numba is not installed.

    Examples
    --------
    >>> import torch
    >>> from skpudle.lasso import solve_lasso
    >>> codes, gaps = solve_lasso(torch.eye(3), torch.tensor([[1.0, -0.25, 0.0]]), 0.5)
    >>> codes
    tensor([[0.5000, 0.0000, 0.0000]])
    >>> bool(gaps.max() <= 1e-12)
    True
    """
    solve = _solver(solver, x.device)
    penalty = _checked_alpha(alpha, atoms)
    scaled_atoms = atoms.double()
    scale = None
    if isinstance(penalty, torch.Tensor):  # alpha z are codes for atoms / alpha and penalty 1
        penalty, scale = 1.0, penalty
        scaled_atoms = scaled_atoms / scale[:, None]
    needed = _necessary_atoms(scaled_atoms, positive)
    scaled_atoms = scaled_atoms[needed]
    gram = None
    if len(needed) <= min(_GRAM_ATOMS, _GRAM_ATOMS_PER_SAMPLE * len(x)):
        gram = scaled_atoms @ scaled_atoms.mT

    codes = x.new_empty(len(x), len(atoms))
    gaps = x.new_full((len(x),), torch.nan, dtype=torch.float64)
    n_rows = max(1, _BLOCK_ENTRIES.get(x.device.type, 2**20) // len(atoms))
    for first in range(0, len(x), n_rows):
        rows = slice(first, first + n_rows)
        data = x[rows].double()
        solution = solve(
            scaled_atoms, gram, data, penalty=penalty, positive=positive, max_iter=max_iter
        )
        exact = solution
        if len(needed) < len(atoms):
            exact = data.new_zeros(len(data), len(atoms)).index_copy_(1, needed, solution)
        if scale is not None:
            exact /= scale
        codes[rows] = exact
        if certify:
            gaps[rows] = duality_gap(
                atoms, data, codes[rows], alpha, positive=positive, dual_codes=exact
            )
    return codes, gaps


def _supports(codes):  # (n, p) -> (n, k), padded by p
    """Return the support of each row and its size."""
    active = codes != 0
    sizes = active.sum(1)
    rows, atoms = active.nonzero(as_tuple=True)
    places = torch.arange(len(rows), device=codes.device) - (sizes.cumsum(0) - sizes)[rows]
    width = int(sizes.max()) if len(sizes) else 0
    supports = rows.new_full((len(codes), width), codes.shape[1])
    supports[rows, places] = atoms
    return supports, sizes


def _apply_inverse(inner, delta):  # (n, k, k), (n, k) -> (n, k)
    """Apply the pseudo-inverse of each matrix; zero rows and columns stand for empty places."""
    diagonal = inner.diagonal(dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(inner + torch.diag_embed((diagonal == 0) * 1.0))
    u = torch.cholesky_solve(delta[:, :, None], factor)[:, :, 0]
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    # pivots bound the smallest eigenvalue from above only: leave a margin
    small = (pivots < 100 * inner.shape[1] * _DEPENDENT * diagonal).any(1)
    singular = ((failed > 0) | small).nonzero().squeeze(1)
    if len(singular):
        inverse = torch.linalg.pinv(inner[singular], hermitian=True, rtol=_DEPENDENT)
        u[singular] = (inverse @ delta[singular][:, :, None])[:, :, 0]
    return u


def _implicit_adjoint(atoms, codes, delta):  # (p, m), (n, p), (n, p) -> (n, p)
    """Return ``u`` with ``u_S = pinv(G_SS) delta_S`` on the support of each row, else 0."""
    n_components, n_features = atoms.shape
    atoms = torch.cat([atoms, atoms.new_zeros(1, n_features)]).double()
    supports, sizes = _supports(codes)
    delta = torch.cat([delta, delta.new_zeros(len(delta), 1)], 1).double()
    u = torch.zeros_like(delta)
    # rows of similar size share a batch, so little of it is padding
    order = sizes.argsort()
    entries = _BLOCK_ENTRIES.get(codes.device.type, 2**20)
    first = int((sizes == 0).sum())
    while first < len(order):
        smallest = int(sizes[order[first]])
        width = min(-(-smallest // _SUPPORT_STEP) * _SUPPORT_STEP, supports.shape[1])
        n_rows = max(1, entries // (width * max(width, n_features)))
        rows = order[first : first + n_rows]
        rows = rows[sizes[rows] <= width]
        support = supports[rows, :width]
        members = atoms[support]
        solution = _apply_inverse(members @ members.mT, delta[rows].gather(1, support))
        u[rows] = u[rows].scatter(1, support, solution.masked_fill(support == n_components, 0))
        first += len(rows)
    return u[:, :n_components]


class _ConvergedCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dictionary, atoms, x, alpha, positive, max_iter, certify):
        codes, gaps = solve_lasso(
            atoms, x, alpha, positive=positive, max_iter=max_iter, certify=certify
        )
        ctx.dictionary = dictionary
        ctx.save_for_backward(atoms, x, alpha, codes)
        ctx.mark_non_differentiable(gaps)
        return codes, gaps

    @staticmethod
    @once_differentiable  # a second backward would take the support's derivative for zero
    @own_precision()
    def backward(ctx, delta, _):
        atoms, x, alpha, codes = ctx.saved_tensors
        dictionary = ctx.dictionary
        u = _implicit_adjoint(atoms, codes, delta).to(x.dtype)
        image = dictionary.synthesis(u)
        atoms_gradient = alpha_gradient = None
        if ctx.needs_input_grad[1]:
            residual = x - dictionary.synthesis(codes)
            # outer(u, residual) - outer(codes, image) in one product
            atoms_gradient = dictionary.outer(
                torch.cat([u, codes]), torch.cat([residual, image.neg()])
            )
        if ctx.needs_input_grad[3]:
            by_atom = -(codes.sign() * u).sum(0)
            alpha_gradient = by_atom.sum_to_size(alpha.shape).to(alpha)
        return None, atoms_gradient, image, alpha_gradient, None, None, None


def converged_codes(dictionary, x, *, alpha, positive_code=False, max_iter=1000, certify=True):
    """Encode data by the solution of the lasso.

    Differentiable once in ``dictionary.atoms``, ``x`` and, where it is a tensor, ``alpha``.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alpha : float or Tensor of shape () or (n_components,)
        Penalty, in units of the data times the atoms; positive.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    max_iter : int, default=1000
        Largest number of rounds of the solver, see `solve_lasso`.
    certify : bool, default=True
        Whether to compute the duality gaps.

    Returns
    -------
    codes : Tensor of shape (n_samples, n_components)
        Codes.
    gaps : Tensor of shape (n_samples,)
        Their relative duality gaps in float64: see `duality_gap`, and `warn_about_gaps` for what to
        do with them; NaN without ``certify``.

    Examples
    --------
    >>> import torch
    >>> from skpudle.lasso import converged_codes
    >>> from skpudle.operators import DenseDictionary
    >>> x = torch.tensor([[1.0, -0.25]], requires_grad=True)
    >>> codes, gaps = converged_codes(DenseDictionary(torch.eye(2)), x, alpha=0.5)
    >>> codes.sum().backward()
    >>> x.grad
    tensor([[1., 0.]])
    """
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    return _ConvergedCodes.apply(
        dictionary.detach(), dictionary.atoms, x, alpha, positive_code, max_iter, certify
    )


def warn_about_gaps(gaps, *, tol=1e-6, category=GapWarning, stacklevel=1):
    """Warn if samples have a larger relative duality gap than ``tol``, and name them.

    Parameters
    ----------
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps.
    tol : float, default=1e-6
        The largest gap that needs no warning.
    category : type, default=GapWarning
        Category of the warning.
    stacklevel : int, default=1
        As in `warnings.warn`: 1 names the line that calls this function, 2 the caller of that.
    """
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
