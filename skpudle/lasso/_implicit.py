r"""The implicit derivative of converged codes, for autograd and in compiled loops.

`converged_codes` gives codes that autograd can differentiate, by the formulas of `skpudle.lasso`.
The atoms are the columns of D, and :math:`G_{SS}` is the Gram matrix of the atoms with nonzero
codes, the support S. `lasso_gradient` does the same for one loss, the squared error of the
reconstruction, but faster: numba compiles its loops. For these loops let :math:`r = x - D z` be the
residual of a sample, and :math:`\delta = -D^T r` the derivative of the loss :math:`\tfrac12 |r|^2`
in the codes. The sample adds

.. math:: \text{outer}(u - z, r) - \text{outer}(z, D u), \qquad u_S = G_{SS}^{-1} \delta_S,

to the derivative of the loss in the atoms, if this derivative takes into account that codes depend
on the atoms. If codes are treated as constants, u is 0. If entries are missing, the mask multiplies
r, D u and the terms of the sums in :math:`G_{SS}`.

With autograd instead of `lasso_gradient`, training by the rule ``ae-ls`` (see `skpudle._gradients`)
for 20 epochs takes 1.65 times as long for 1,000 rows of 64 features and 50 atoms, and 1.85 times
for 1,797 rows and 64 atoms (one core).
"""

from functools import partial

import numpy as np
import torch

from skpudle._compilation import Loops
from skpudle._precision import differentiable_once, kept_by_autograd
from skpudle.lasso._batched import parts, solve, supports_of
from skpudle.lasso._solve import known_entries, solve_lasso

# The pseudo-inverse of the Gram matrix of a support treats eigenvalues below this fraction of the
# largest one as zero. The eigenvalues are squares of the singular values of the matrix of the
# support's atoms. If atoms are in float32, singular values below 1e-6 of the largest (eight times
# the resolution of float32) may be rounding errors.
_ZERO_EIGENVALUE = 1e-12
# Up to this number of multiplications `lasso_gradient` computes in its compiled loops; beyond it,
# torch is faster, because the loops have one thread only. With 6e7 multiplications (512 atoms of
# 144 features, 256 samples) the loops take 15 ms, and torch takes 5 ms.
_MOST_WORK = 2 * 10**7
# The compiled loops have no pseudo-inverse. So `lasso_gradient` leaves the derivative to autograd
# if the squared cosine of two atoms differs from 1 by less than this, or if at most this fraction
# of an atom's squared norm is outside of the span of other atoms of its support.
_NEARLY_PARALLEL = 1e-9


def _gather(
    atoms,
    gram,
    mask,
    support,
    k,
    inner,
):
    """Set the lower half of ``inner`` (k, k) to the Gram matrix of a support, D_S^T diag(mask) D_S.

    The first ``k`` entries of ``support`` are the numbers of its atoms. ``mask`` (n_features,) is 1
    for known entries of a row and 0 for missing ones. If ``mask`` is empty, no entry is missing,
    and ``inner`` is a part of ``gram``, the Gram matrix (n_components, n_components) of all atoms.
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

    Only the lower half of ``inner`` (k, k) is read. Its Cholesky factor is written to ``factor``,
    memory of at least (k, k). If the result is False, ``u`` has no meaning.
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


def differentiate(
    atoms,
    gram,
    x,
    mask,
    through_encoder,
    codes,
    losses,
    gradient,
):
    """Add up losses of all rows and their derivatives in the atoms: the loop of `lasso_gradient`.

    The derivatives are added to ``gradient`` (n_components, n_features), and the losses to
    ``losses`` (n,). A row with the codes z and the residual r = x - D z adds ``outer(u - z, r) -
    outer(z, image)``, where ``image`` is D u; the module explains u. ``codes`` (n, n_components)
    are constants in the derivative, so that u is 0, unless ``through_encoder``. ``mask`` is (n,
    n_features), or (n, 0) if no entry is missing; ``gram`` is the Gram matrix of the atoms. Return
    False if the Gram matrix of a support is nearly singular; ``gradient`` and ``losses`` are then
    incomplete.
    """
    n_components, n_features = atoms.shape
    support = np.empty(n_components + 1, np.int64)
    factor = np.empty((n_components, n_components))
    inner = np.empty((n_components, n_components))
    u = np.empty(n_components)
    residual = np.empty(n_features)
    image = np.zeros(n_features)
    for row in range(len(x)):
        known = mask[row]
        k = np.int64(0)
        for f in range(n_features):
            residual[f] = x[row, f]
        # The loop has no `if`, because the processor would often mispredict it, which takes longer.
        # Instead every index is written, and the next index overwrites that of a zero code.
        for j in range(n_components):
            support[k] = j
            k += codes[row, j] != 0.0
        for i in range(k):
            j = support[i]
            z = codes[row, support[i]]
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
            j = support[i]
            z = codes[row, support[i]]
            u_less_z = u[i] - codes[row, support[i]]
            for f in range(n_features):
                gradient[j, f] += u_less_z * residual[f] - z * image[f]
    return True


loops = Loops(globals())


def lasso_gradient(
    atoms,
    x,
    alpha,
    *,
    positive=False,
    through_encoder,
    mask=None,
):
    r"""Solve the lasso, and differentiate the mean reconstruction loss of the codes in the atoms.

    Encoders that solve the lasso offer this function to `skpudle._gradients.differentiate`, as a
    fast way to the derivative.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    x : Tensor of shape (n_samples, n_features)
        Data.
    alpha : float
        Penalty, positive.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    through_encoder : bool
        Whether the derivative takes into account that codes depend on the atoms. Otherwise it
        treats codes as constants.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.

    Returns
    -------
    tuple of Tensor, or None
        Codes (n_samples, n_components), losses :math:`\frac12 |x - D z|^2` of the known entries
        (n_samples,), and the derivative of the mean loss in the atoms (n_components, n_features).
        None if the caller should use autograd instead: for large batches, for tensors that are not
        on the CPU, and if atoms, or the atoms of a support, are nearly dependent.
    """
    n_components, n_features = atoms.shape
    work = (len(x) + n_components) * n_components * n_features
    if (
        atoms.device.type != "cpu"
        or x.device.type != "cpu"
        or not 0 < work <= _MOST_WORK
    ):
        return None
    dtype = x.dtype
    x, mask = known_entries(x.detach().double().contiguous(), mask)
    atoms = atoms.detach().double().contiguous()
    gram = atoms @ atoms.mT
    losses = x.new_zeros(len(x))
    gradient = torch.zeros_like(atoms)
    squares = gram.diagonal()
    least_parallel = (1.0 - _NEARLY_PARALLEL) * torch.outer(squares, squares)
    are_parallel = gram.square() > least_parallel
    if not torch.equal(are_parallel, torch.eye(n_components, dtype=torch.bool)):
        return None  # some atoms are parallel, zero or not finite
    codes = solve(atoms, gram, x, penalties=[alpha], positive=positive, mask=mask)[0, 0]
    mask = x.new_empty(len(x), 0) if mask is None else mask
    # the arrays share the memory of the tensors, so that the loops add to `losses` and `gradient`
    is_done = loops.differentiate(
        np.asarray(atoms),
        np.asarray(gram),
        np.asarray(x),
        np.asarray(mask),
        through_encoder,
        np.asarray(codes),
        np.asarray(losses),
        np.asarray(gradient),
    )
    if not is_done:
        return None
    return codes.to(dtype), losses.to(dtype), gradient.div_(len(x)).to(dtype)


def _apply_inverse(inner, delta):  # (n, k, k), (n, k) -> (n, k), (n,)
    """Return ``inner^{-1} delta`` (n, k) for each sample, and True (n,) where it is unreliable.

    ``inner`` (n, k, k) has the Gram matrices of supports that are padded to k atoms; padding has
    rows and columns of zeros. A nearly singular matrix makes the result of its sample unreliable,
    and the caller has to replace this result, see `_apply_pseudo_inverse`.
    """
    diagonal = inner.diagonal(dim1=1, dim2=2)
    padding = torch.diag_embed((diagonal == 0) * 1.0)
    factor, failed = torch.linalg.cholesky_ex(inner + padding)
    u = torch.cholesky_solve(delta[:, :, None], factor)[:, :, 0]
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    # A matrix is nearly singular if its smallest eigenvalue is close to 0. The pivots, which the
    # factor shows, may be much larger than this eigenvalue, so their limit is 100 times the limit
    # of eigenvalues.
    small = (pivots < 100 * inner.shape[1] * _ZERO_EIGENVALUE * diagonal).any(1)
    return u, (failed > 0) | small


def _apply_pseudo_inverse(inner, delta):  # (n, k, k), (n, k) -> (n, k), None
    """Return ``pinv(inner) delta`` (n, k) for each sample, and None: every result is reliable.

    The function has the arguments of `_apply_inverse`, takes longer, and is for the matrices that
    are nearly singular.
    """
    inverse = torch.linalg.pinv(inner, hermitian=True, rtol=_ZERO_EIGENVALUE)
    return (inverse @ delta[:, :, None])[:, :, 0], None


def _implicit_adjoint(atoms, codes, delta, mask=None):
    """Return ``u``, from which the derivatives in data, atoms and penalty follow.

    The formulas are those of `skpudle.lasso`. On the support S of each row ``u_S = pinv(G_SS)
    delta_S``, and outside of S ``u`` is 0.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms.
    codes, delta : Tensor of shape (n_samples, n_components)
        Codes, and the derivatives of the loss in the codes.
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
    codes = codes[order]
    delta = torch.cat([delta, delta.new_zeros(len(delta), 1)], 1)
    delta = delta.double()[order]
    mask = mask if mask is None else mask[order].double()
    u = torch.zeros_like(delta)
    singular = torch.zeros_like(order, dtype=torch.bool)

    # Set `u` in the given rows, whose supports have at most `width` atoms. `apply` is one of the
    # two functions above; return its second result, which marks unreliable rows.
    def solve(rows, width, apply):
        support = supports_of(codes[rows], width)
        chosen = atoms[support]
        known = chosen if mask is None else chosen * mask[rows, None]
        solution, unreliable = apply(known @ chosen.mT, delta[rows].gather(1, support))
        solution = solution.masked_fill(support == n_components, 0)
        u[rows] = u[rows].scatter(1, support, solution)
        return unreliable

    # The host waits for the device in each `tolist`. So there are only two: of all sizes here, and
    # of `singular`, the mark of unreliable rows, once all batches are computed.
    sizes = sizes.tolist()
    for first, last, width in parts(sizes, n_features, codes.device):
        rows = slice(first, last)
        singular[rows] = solve(rows, width, _apply_inverse)
    rest = [row for row, flag in enumerate(singular.tolist()) if flag]
    sizes = [sizes[row] for row in rest]
    for first, last, width in parts(sizes, n_features, codes.device):
        rows = torch.as_tensor(rest[first:last], device=codes.device)
        solve(rows, width, _apply_pseudo_inverse)
    return torch.zeros_like(u).index_copy_(0, order, u)[:, :n_components]


class _ConvergedCodes(torch.autograd.Function):
    """The lasso's codes, whose bias may be removed in part, as a function of autograd.

    The codes are ``1 - debias`` times the lasso's codes plus ``debias`` times the least squares
    codes on their support. The code below calls these two terms *ends*. Both ends have the same
    formula for the derivatives in ``x`` and in the atoms, each with its own codes and residual. The
    least squares codes do not depend on ``alpha``.
    """

    @staticmethod
    def forward(
        ctx,
        dictionary,
        atoms,
        x,
        alpha,
        debias,
        solve_end,
        mask,
    ):
        """Return codes (n, n_components) and gaps (n,), as `converged_codes` does.

        ``dictionary`` has the values of ``atoms``, without a graph, for `backward`. ``solve_end``
        is `solve_lasso` with the arguments ``positive``, ``certify`` and ``mask``.
        """
        # for each end of weight above 0 its `debias`, an argument of `solve_lasso`, and its weight
        ctx.ends = [(end, w) for end, w in ((0.0, 1 - debias), (1.0, debias)) if w]
        ctx.dictionary = dictionary
        ctx.mask = mask
        solutions = [solve_end(atoms, x, alpha, debias=end) for end, _ in ctx.ends]
        codes_of_ends = [codes for codes, _ in solutions]
        codes, gaps = solutions[0]
        ctx.save_for_backward(atoms, x, alpha, *codes_of_ends)
        ctx.mark_non_differentiable(gaps)
        if len(codes_of_ends) == 1:
            return codes, gaps
        ends = zip(ctx.ends, codes_of_ends, strict=True)
        return sum(weight * codes for (_, weight), codes in ends), gaps

    @staticmethod
    @differentiable_once  # in a second derivative autograd would take the saved codes for constants
    def backward(ctx, delta, _):
        """Return the derivatives in atoms, data and alpha; None for other arguments of `forward`.

        ``delta`` (n, n_components) holds the derivatives of the loss in the codes.
        """
        atoms, x, alpha, *codes_of_ends = ctx.saved_tensors
        dictionary = ctx.dictionary
        x, mask = known_entries(x, ctx.mask)
        x_gradient = 0
        atoms_gradient = 0
        gradient_by_atom = 0
        for (end_debias, weight), codes in zip(ctx.ends, codes_of_ends, strict=True):
            u = _implicit_adjoint(atoms, codes, weight * delta, mask).to(x.dtype)
            image = dictionary.synthesis(u)
            image = image if mask is None else image * mask
            x_gradient = x_gradient + image
            if ctx.needs_input_grad[1]:
                residual = x - dictionary.synthesis(codes)
                residual = residual if mask is None else residual * mask
                # outer(u, residual) - outer(codes, image), as one product instead of two
                atoms_gradient = atoms_gradient + dictionary.outer(
                    torch.cat([u, codes]), torch.cat([residual, image.neg()])
                )
            if ctx.needs_input_grad[3]:
                # the least squares codes, with the factor 0 here, do not depend on alpha
                gradient_by_atom = gradient_by_atom - (1 - end_debias) * (
                    codes.sign() * u
                ).sum(0)
        atoms_gradient = atoms_gradient if ctx.needs_input_grad[1] else None
        alpha_gradient = None
        if ctx.needs_input_grad[3]:
            alpha_gradient = gradient_by_atom.sum_to_size(alpha.shape).to(alpha)
        return None, atoms_gradient, x_gradient, alpha_gradient, *[None] * 3


def converged_codes(
    dictionary, x, *, alpha, positive_code=False, debias=0.0, certify=True, mask=None
):
    """Encode data by the solution of the lasso, so that autograd can differentiate the codes.

    The codes are differentiable once in ``dictionary.atoms``, in ``x`` and, if ``alpha`` is a
    tensor, in ``alpha``.

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
        The fraction of the lasso's bias to remove, from 0 to 1, as in `solve_lasso`.
    certify : bool, default=True
        Whether to compute the duality gaps.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where data are known, as in `solve_lasso`.

    Returns
    -------
    codes : Tensor of shape (n_samples, n_components)
        Codes.
    gaps : Tensor of shape (n_samples,)
        Relative duality gaps of the codes before ``debias``, in float64, see `duality_gap`; NaN
        without ``certify``.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive, or if ``debias`` is not from 0 to 1.
    RuntimeError
        If autograd asks for a second derivative.

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
    atoms = dictionary.atoms
    x = kept_by_autograd(x)
    solve_end = partial(solve_lasso, positive=positive_code, certify=certify, mask=mask)
    has_graph = any(tensor.requires_grad for tensor in (atoms, x, alpha))
    if not (has_graph and torch.is_grad_enabled()):
        return solve_end(atoms, x, alpha, debias=debias)
    return _ConvergedCodes.apply(
        dictionary.detach(), atoms, x, alpha, float(debias), solve_end, mask
    )
