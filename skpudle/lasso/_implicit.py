r"""The implicit derivative of converged codes, for autograd and in compiled loops.

`converged_codes` gives codes that autograd can differentiate, by the formulas of `skpudle.lasso`.
`lasso_gradient` computes codes, their losses and the derivative of the losses in one call, by loops
that numba compiles. For these loops let :math:`r = x - D z` be the residual of a sample, and
:math:`\delta = -D^T r` the derivative of the loss :math:`\tfrac12 |r|^2` in the codes. The sample
adds

.. math:: \text{outer}(u - z, r) - \text{outer}(z, D u), \qquad u_S = G_{SS}^{-1} \delta_S,

to the derivative of the loss in the atoms, if codes depend on the atoms. If codes are held
constant, u is 0. Where entries are missing, a mask multiplies r, D u and the terms of the sums in
:math:`G_{SS}`.

With autograd instead of `lasso_gradient` 20 epochs of ae-ls take 1.65 times as long for 1,000 rows
of 64 features and 50 atoms, and 1.85 times for 1,797 rows and 64 atoms (one core).
"""

import numpy as np
import torch

from skpudle._compilation import Loops
from skpudle._precision import differentiable_once, kept_by_autograd
from skpudle.lasso._batched import parts, solve, supports_of
from skpudle.lasso._solve import known_entries, solve_lasso

# The pseudo-inverse takes an eigenvalue of G_SS for zero if it is below this share of the largest
# eigenvalue. The share is the square of 1e-6, eight times the relative resolution of float32.
_ZERO_EIGENVALUE = 1e-12
# Largest number of multiplications for the loops, which run on one thread. With 6e7 multiplications
# (512 atoms of 144 features, 256 samples) the loops take 15 ms, and torch takes 5 ms.
_MOST_WORK = 2 * 10**7
# The loops give way to automatic differentiation if the squared cosine of two atoms is closer to 1
# than this, or if a relative pivot of a support is below this.
_NEARLY_PARALLEL = 1e-9


def _gather(atoms, gram, mask, support, k, inner):
    """Set the lower half of ``inner`` to ``D_S^T diag(mask) D_S`` (k, k).

    With an empty mask the entries are copied from the Gram matrix ``gram``.
    """
    for i in range(k):
        for j in range(i + 1):
            if len(mask) == 0:
                inner[i, j] = gram[support[i], support[j]]
            else:
                total = 0.0
                for f in range(len(mask)):
                    total += mask[f] * atoms[support[i], f] * atoms[support[j], f]
                inner[i, j] = total


def _invert(inner, k, factor, u):  # -> bool
    """Replace ``u`` (k,) by ``inner^{-1} u``; return False if ``inner`` is nearly singular.

    ``factor``, of at least (k, k), is memory to work in.
    """
    for i in range(k):
        for j in range(i + 1):
            total = inner[i, j]
            for t in range(j):
                total -= factor[i, t] * factor[j, t]
            if j < i:
                factor[i, j] = total / factor[j, j]
        if not total > _NEARLY_PARALLEL * inner[i, i]:
            return False
        factor[i, i] = np.sqrt(total)
        for j in range(i):
            u[i] -= factor[i, j] * u[j]
        u[i] /= factor[i, i]
    for i in range(k - 1, -1, -1):
        u[i] /= factor[i, i]
        for j in range(i):
            u[j] -= factor[i, j] * u[i]
    return True


def differentiate(atoms, gram, x, mask, through_encoder, codes, losses, gradient):  # -> bool
    """Add the derivatives of all rows' losses to ``gradient`` (n_components, n_features).

    The losses are added to ``losses`` (n,). ``through_encoder`` tells whether ``codes`` (n,
    n_components) depend on the atoms. Return whether the derivative of every row is well-defined;
    the sums are incomplete if not.
    """
    n_components, n_features = atoms.shape
    support, factor = np.empty(n_components + 1, np.int64), np.empty((n_components, n_components))
    inner = np.empty((n_components, n_components))
    u, residual, image = np.empty(n_components), np.empty(n_features), np.zeros(n_features)
    for row in range(len(x)):
        known = mask[row]
        k = np.int64(0)
        for f in range(n_features):
            residual[f] = x[row, f]
        # a branch for zeros would be mispredicted, so every entry is written, and zeros overwritten
        for j in range(n_components):
            support[k] = j
            k += codes[row, j] != 0.0
        for i in range(k):
            j, z = support[i], codes[row, support[i]]
            for f in range(n_features):
                residual[f] -= z * atoms[j, f]
        for f in range(len(known)):
            residual[f] *= known[f]
        for f in range(n_features):
            losses[row] += 0.5 * residual[f] ** 2
            image[f] = 0.0
        for i in range(k):
            u[i] = 0.0
            if through_encoder:
                for f in range(n_features):
                    u[i] -= residual[f] * atoms[support[i], f]
        if through_encoder:
            _gather(atoms, gram, known, support, k, inner)
            if not _invert(inner, k, factor, u):
                return False
            for i in range(k):
                for f in range(n_features):
                    image[f] += u[i] * atoms[support[i], f]
            for f in range(len(known)):
                image[f] *= known[f]
        for i in range(k):
            j, z, direct = support[i], codes[row, support[i]], u[i] - codes[row, support[i]]
            for f in range(n_features):
                gradient[j, f] += direct * residual[f] - z * image[f]
    return True


loops = Loops(globals())


def lasso_gradient(atoms, x, alpha, *, positive=False, through_encoder, mask=None):
    r"""Solve the lasso, and differentiate its reconstruction loss in the atoms.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    x : Tensor of shape (n_samples, n_features)
        Data.
    alpha : float
        Penalty.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    through_encoder : bool
        Whether codes depend on the atoms. Otherwise codes are held constant in the derivative.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.

    Returns
    -------
    tuple of Tensor, or None
        Codes (n_samples, n_components), losses :math:`\frac12 |x - D z|^2` of the known entries
        (n_samples,), and the derivative of their mean in the atoms (n_components, n_features). None
        where automatic differentiation does better: for large batches, for tensors that are not on
        the CPU, and for atoms that depend on each other.
    """
    n_components, n_features = atoms.shape
    work = (len(x) + n_components) * n_components * n_features
    if atoms.device.type != "cpu" or x.device.type != "cpu" or not 0 < work <= _MOST_WORK:
        return None
    x, known = known_entries(x, mask)
    known = x.new_empty(len(x), 0) if known is None else known
    wide, rows, known = (t.detach().double().contiguous() for t in (atoms, x, known))
    gram, losses, gradient = wide @ wide.mT, rows.new_zeros(len(x)), wide.new_zeros(wide.shape)
    squares = gram.diagonal()
    are_parallel = gram.square() > (1.0 - _NEARLY_PARALLEL) * torch.outer(squares, squares)
    if not torch.equal(are_parallel, torch.eye(n_components, dtype=torch.bool)):
        return None  # atoms are parallel, zero or not finite
    how = dict(penalties=[alpha], positive=positive, mask=None if mask is None else known)
    codes = solve(wide, gram, rows, **how)[0, 0]
    # the arrays share the memory of the tensors
    d, g, data, m, z, *sums = map(np.asarray, (wide, gram, rows, known, codes, losses, gradient))
    if not loops.differentiate(d, g, data, m, through_encoder, z, *sums):
        return None
    return codes.to(x.dtype), losses.to(x.dtype), gradient.div_(len(x)).to(x.dtype)


def _apply_inverse(inner, delta):  # (n, k, k), (n, k) -> (n, k), (n,)
    """Return the product of each inverse matrix with ``delta``, and mark nearly singular matrices.

    Empty places of a support have zero rows and columns.
    """
    diagonal = inner.diagonal(dim1=1, dim2=2)
    factor, failed = torch.linalg.cholesky_ex(inner + torch.diag_embed((diagonal == 0) * 1.0))
    u = torch.cholesky_solve(delta[:, :, None], factor)[:, :, 0]
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    # pivots only bound the smallest eigenvalue from above, so the limit has a factor of 100
    small = (pivots < 100 * inner.shape[1] * _ZERO_EIGENVALUE * diagonal).any(1)
    return u, (failed > 0) | small


def _apply_pseudo_inverse(inner, delta):  # (n, k, k), (n, k) -> (n, k), None
    """Return the product of each pseudo-inverse with ``delta``; it needs no mark of singularity."""
    inverse = torch.linalg.pinv(inner, hermitian=True, rtol=_ZERO_EIGENVALUE)
    return (inverse @ delta[:, :, None])[:, :, 0], None


def _implicit_adjoint(atoms, codes, delta, mask=None):
    """Return ``u``, from which all derivatives of converged codes follow, see `skpudle.lasso`.

    On the support of each row ``u_S = pinv(G_SS) delta_S``; elsewhere ``u`` is 0.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    codes, delta : Tensor of shape (n_samples, n_components)
        Codes, and the derivatives in them.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones: ``G_SS = D_S^T diag(mask) D_S`` in each row.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        ``u``, in float64.
    """
    n_components, n_features = atoms.shape
    atoms = torch.cat([atoms, atoms.new_zeros(1, n_features)]).double()
    sizes, order = (codes.abs() > 0).sum(1).sort(stable=True)
    codes, delta = codes[order], torch.cat([delta, delta.new_zeros(len(delta), 1)], 1)
    delta, mask = delta.double()[order], mask if mask is None else mask[order].double()
    u, singular = torch.zeros_like(delta), torch.zeros_like(order, dtype=torch.bool)

    def solve(rows, width, apply):  # -> (n_rows,) bool: singular rows; sets `u` in the rows
        support = supports_of(codes[rows], width)
        members = atoms[support]
        seen = members if mask is None else members * mask[rows, None]
        solution, failed = apply(seen @ members.mT, delta[rows].gather(1, support))
        solution = solution.masked_fill(support == n_components, 0)
        u[rows] = u[rows].scatter(1, support, solution)
        return failed

    # the host waits for a device here, and at `singular.tolist()`
    sizes = sizes.tolist()
    for first, last, width in parts(sizes, n_features, codes.device):
        rows = slice(first, last)
        singular[rows] = solve(rows, width, _apply_inverse)
    rest = [row for row, flag in enumerate(singular.tolist()) if flag]
    for first, last, width in parts([sizes[row] for row in rest], n_features, codes.device):
        rows = torch.as_tensor(rest[first:last], device=codes.device)
        solve(rows, width, _apply_pseudo_inverse)
    return torch.zeros_like(u).index_copy_(0, order, u)[:, :n_components]


class _ConvergedCodes(torch.autograd.Function):
    """Codes on the way from the lasso's codes to least squares on their support.

    The codes are a weighted sum of both ends: ``1 - debias`` times the lasso's codes and ``debias``
    times least squares. Both ends have the same formula for the derivatives in ``x`` and in the
    atoms, each with its own codes and residual. Least squares do not depend on ``alpha``.
    """

    @staticmethod
    def forward(ctx, dictionary, atoms, x, alpha, debias, certify, options):
        """Return codes and gaps; ``options`` are further arguments of `solve_lasso`."""
        ends, gaps = [], None
        for share, weight in ((0.0, 1 - debias), (1.0, debias)):
            if weight:
                certified = certify and gaps is None
                codes, found = solve_lasso(
                    atoms, x, alpha, debias=share, certify=certified, **options
                )
                gaps = found if gaps is None else gaps
                ends.append((share, weight, codes))
        ctx.dictionary, ctx.mask = dictionary, options["mask"]
        ctx.ends = [(share, weight) for share, weight, _ in ends]
        ctx.save_for_backward(atoms, x, alpha, *(codes for *_, codes in ends))
        ctx.mark_non_differentiable(gaps)
        if len(ends) == 1:
            return codes, gaps
        return sum(weight * codes for _, weight, codes in ends), gaps

    @staticmethod
    @differentiable_once  # a second derivative would need how codes change inside this function
    def backward(ctx, delta, _):
        """Return the derivatives in atoms, data and alpha; None for the remaining arguments."""
        atoms, x, alpha, *codes_of_ends = ctx.saved_tensors
        dictionary = ctx.dictionary
        x, known = known_entries(x, ctx.mask)
        x_gradient, atoms_gradient, by_atom = 0, 0, 0
        for (share, weight), codes in zip(ctx.ends, codes_of_ends, strict=True):
            u = _implicit_adjoint(atoms, codes, weight * delta, known).to(x.dtype)
            image = dictionary.synthesis(u)
            image = image if known is None else image * known
            x_gradient = x_gradient + image
            if ctx.needs_input_grad[1]:
                residual = x - dictionary.synthesis(codes)
                residual = residual if known is None else residual * known
                # outer(u, residual) - outer(codes, image) in one product
                pairs = torch.cat([u, codes]), torch.cat([residual, image.neg()])
                atoms_gradient = atoms_gradient + dictionary.outer(*pairs)
            if ctx.needs_input_grad[3]:
                by_atom = by_atom - (1 - share) * (codes.sign() * u).sum(0)
        atoms_gradient = atoms_gradient if ctx.needs_input_grad[1] else None
        alpha_gradient = None
        if ctx.needs_input_grad[3]:
            alpha_gradient = by_atom.sum_to_size(alpha.shape).to(alpha)
        return None, atoms_gradient, x_gradient, alpha_gradient, *[None] * 3


def converged_codes(
    dictionary, x, *, alpha, positive_code=False, debias=0.0, certify=True, mask=None
):
    """Encode data by the solution of the lasso.

    The codes are differentiable once in ``dictionary.atoms``, ``x`` and, if it is a tensor,
    ``alpha``.

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
    debias : float, default=0.0
        The share of the lasso's bias to remove, from 0 to 1, as in `solve_lasso`.
    certify : bool, default=True
        Whether to compute the duality gaps.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.

    Returns
    -------
    codes : Tensor of shape (n_samples, n_components)
        Codes.
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps of the codes in float64, see `duality_gap`; NaN without ``certify``.

    Examples
    --------
    >>> import torch
    >>> from skpudle.lasso._implicit import converged_codes
    >>> from skpudle._operators._atoms import DenseDictionary
    >>> x = torch.tensor([[1.0, -0.25]], requires_grad=True)
    >>> codes, gaps = converged_codes(DenseDictionary(torch.eye(2)), x, alpha=0.5)
    >>> codes.sum().backward()
    >>> x.grad
    tensor([[1., 0.]])
    """
    if not isinstance(alpha, torch.Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")
    arguments = dictionary.atoms, kept_by_autograd(x), alpha
    options = dict(positive=positive_code, mask=mask)
    if not any(t.requires_grad for t in arguments) or not torch.is_grad_enabled():
        return solve_lasso(*arguments, debias=debias, certify=certify, **options)
    how = float(debias), certify, options
    return _ConvergedCodes.apply(dictionary.detach(), *arguments, *how)
