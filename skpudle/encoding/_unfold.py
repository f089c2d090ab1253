"""The unfolded encoder and its adjoint; see `skpudle.encoding`."""

import torch
from torch.autograd.function import once_differentiable

from skpudle._precision import as_scalars, own_precision
from skpudle.encoding._normal_maps import normal_map
from skpudle.encoding._working_sets import ActiveUnfolding, pays
from skpudle.operators import DenseDictionary
from skpudle.shrinkage import shrinkage_function

__all__ = ["default_step", "encode", "threshold_levels", "unfold"]


class _Unfolding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dictionary, atoms, x, levels, step, initial, mask, shrinkage, positive):
        keep = any(ctx.needs_input_grad)
        shrink_ = shrinkage_function(shrinkage, positive=positive)
        normal = normal_map(dictionary, x, step, mask=mask, n_steps=len(levels), adjoint=keep)
        z = entered = None if initial is None else normal.enter(initial)
        codes, spare, scratch = [], None, None
        for level in levels:
            v = normal.push(z, out=spare)
            # memory that is new to the process costs more than what is computed in it
            scratch = torch.empty_like(v) if scratch is None else scratch
            z_next = shrink_(v, level, scratch)
            if keep:
                codes.append(z_next)
            elif z is not entered:  # two buffers in turn are enough
                spare = z
            z = z_next
        if keep:
            ctx.normal, ctx.shrinkage = normal, shrinkage
            ctx.save_for_backward(atoms, x, levels, step, entered, *codes)
        return normal.leave(z)

    @staticmethod
    @once_differentiable  # a second backward through the saved codes would be silently wrong
    @own_precision()
    def backward(ctx, delta):
        _, _, levels, _, entered, *codes = ctx.saved_tensors
        level_gradients = torch.zeros_like(levels) if ctx.needs_input_grad[3] else None
        normal = ctx.normal.adjoint()
        delta = normal.enter(delta)
        u = torch.empty_like(delta)
        for t in reversed(range(len(codes))):
            z = codes[t - 1] if t else entered
            # [z != 0] in floating point, several times as fast as by a boolean mask
            u = torch.sign(codes[t], out=u).abs_().mul_(delta)
            if level_gradients is not None and ctx.shrinkage == "soft":
                by_entry = (codes[t].sign() * u).sum(0)
                level_gradients[t] = -by_entry.sum_to_size(levels.shape[1:])
            delta = normal.pull(u, z)
        atoms, x, step = normal.gradients()
        delta = None if delta is None else normal.leave(delta)
        return None, atoms, x, level_gradients, step, delta, None, None, None


@own_precision()
def unfold(
    dictionary,
    x,
    levels,
    step,
    *,
    shrinkage="soft",
    positive_code=False,
    initial=None,
    mask=None,
    path="auto",
):
    """Run one iteration of the encoder for each of the given levels.

    Differentiable once in the atoms, the data, the levels (soft shrinkage; a hard threshold has
    derivative 0), the step and the initial codes.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary, or any object with the same methods.
    x : Tensor of shape (n_samples, n_features)
        Data.
    levels : Tensor of shape (n_unfoldings, 1) or (n_unfoldings, n_components)
        What each iteration shrinks by, in units of the codes.
    step : Tensor of shape ()
        Step size; converges when below 2 over the squared spectral norm of the dictionary.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial : Tensor of shape (n_samples, n_components), default=None
        Codes to start from; zero by default.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` must be finite).
    path : {"auto", "dense", "active"}, default="auto"
        Whether iterations of sparse codes are confined to working sets of atoms, which changes
        nothing but the speed (see `skpudle.encoding._working_sets`). By default they are
        where that pays; "active" is for a `DenseDictionary` without initial codes and mask.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        The codes after the last iteration.

    Raises
    ------
    ValueError
        If there are no levels, or if the path is unknown or not open to these arguments.
    """
    if path not in ("auto", "dense", "active"):
        raise ValueError(f"path is {path!r}; it must be 'auto', 'dense' or 'active'.")
    if not len(levels):
        raise ValueError("There are no unfoldings, and so no codes; there has to be one at least.")
    atoms = dictionary.atoms
    possible = isinstance(dictionary, DenseDictionary) and initial is None and mask is None
    if path == "active" and not possible:
        raise ValueError(
            "path='active' is for a DenseDictionary without initial codes and mask; use 'auto'."
        )
    if possible and path == "auto":
        possible = pays(len(x), *atoms.shape, len(levels), x.device)
    if possible and path != "dense":
        forced = path == "active"
        return ActiveUnfolding.apply(atoms, x, levels, step, shrinkage, positive_code, forced)
    return _Unfolding.apply(
        dictionary.detach(),
        atoms,
        x,
        levels,
        step,
        initial,
        mask,
        shrinkage,
        positive_code,
    )


def threshold_levels(dictionary, alpha, n_unfoldings, step, *, lambda_decay=1.0, shrinkage="soft"):
    r"""Return the levels of the paper's encoders, one per unfolding.

    Soft shrinkage: ``level_t = step * alpha * lambda_decay**t``, the proximal map of a lasso whose
    penalty decays. Hard shrinkage: ``level_t = alpha``, the threshold itself (``HT_b`` in
    section 4 of the paper), which neither the step nor the decay scales.

    Parameters
    ----------
    dictionary : DenseDictionary
        Gives the shape that levels take.
    alpha : float or Tensor of shape () or (n_components,)
        Penalty or threshold, one or one per atom.
    n_unfoldings : int
        Number of iterations.
    step : Tensor of shape ()
        Step size.
    lambda_decay : float, default=1.0
        Factor between the penalties of consecutive iterations.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage that the levels are for.

    Returns
    -------
    Tensor of shape (n_unfoldings, 1, ...) or (n_unfoldings, n_components, ...)
        The levels, with as many trailing axes of length 1 as codes have positions.
    """
    atoms = dictionary.atoms
    positions = [1] * (atoms.ndim - 2)
    alpha = as_scalars(alpha, atoms).reshape(-1, *positions)
    if shrinkage == "hard":
        return alpha.expand(n_unfoldings, *alpha.shape)
    unfolding = torch.arange(n_unfoldings, dtype=atoms.dtype, device=atoms.device)
    decay = torch.pow(lambda_decay, unfolding).reshape(-1, *[1] * alpha.ndim)
    return decay * (alpha * step)


@own_precision()
def default_step(dictionary):  # -> scalar tensor
    """Return 1 over the bound of the squared spectral norm; 1 if every atom is zero.

    Parameters
    ----------
    dictionary : DenseDictionary or ConvDictionary
        With ``squared_norm_bound``.

    Returns
    -------
    Tensor
        A scalar. Where the square overflows there is no such step: NaN lets training notice.
    """
    bound = dictionary.squared_norm_bound()
    step = torch.where(bound > 0, 1 / bound, torch.ones_like(bound))
    return step.masked_fill(bound.isinf(), torch.nan)


@own_precision()
def encode(
    dictionary,
    x,
    *,
    alpha,
    n_unfoldings=100,
    step_size=None,
    lambda_decay=1.0,
    shrinkage="soft",
    positive_code=False,
    initial_threshold=None,
    mask=None,
):
    r"""Encode data by an unfolded sparse encoder (eq. 7 of the paper).

    Differentiable once in ``dictionary.atoms``, ``x`` and, where they are tensors, ``alpha`` and
    ``step_size``; memory is that of the codes of the unfoldings.

    Parameters
    ----------
    dictionary : DenseDictionary or Tensor of shape (n_components, n_features)
        The dictionary, or its atoms.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alpha : float or Tensor of shape () or (n_components,)
        Soft shrinkage: the penalty :math:`\lambda` of the lasso, in units of the data times the
        atoms. Hard shrinkage: the threshold :math:`b`, in units of the codes.
    n_unfoldings : int, default=100
        Number of iterations, :math:`T`.
    step_size : float or Tensor of shape (), default=None
        Step of one iteration; by default 1 over a bound of the squared spectral norm, which is a
        constant to differentiation.
    lambda_decay : float, default=1.0
        Iteration t has the penalty ``alpha * lambda_decay**t`` (soft shrinkage only).
    shrinkage : {"soft", "hard"}, default="soft"
        Soft thresholding (lasso) or hard thresholding.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial_threshold : float, default=None
        Start from the correlations ``D^T x`` hard-thresholded at this value, as NOODL does; by
        default start from zero.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` must be finite).

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        Sparse codes.

    Examples
    --------
    >>> import torch
    >>> from skpudle.encoding import encode
    >>> atoms = torch.eye(3)
    >>> encode(atoms, torch.tensor([[1.0, -0.25, 0.0]]), alpha=0.5)
    tensor([[0.5000, 0.0000, 0.0000]])
    """
    if isinstance(dictionary, torch.Tensor):
        dictionary = DenseDictionary(dictionary)
    if step_size is None:
        step_size = default_step(dictionary)
    step = as_scalars(step_size, x)
    levels = threshold_levels(
        dictionary, alpha, n_unfoldings, step, lambda_decay=lambda_decay, shrinkage=shrinkage
    )
    initial = None
    if initial_threshold is not None:
        correlation = dictionary.analysis(x if mask is None else x * mask)
        small = correlation.detach().abs() < initial_threshold
        if positive_code:
            small |= correlation.detach() < 0
        initial = correlation.masked_fill(small, 0)
    return unfold(
        dictionary,
        x,
        levels,
        step,
        shrinkage=shrinkage,
        positive_code=positive_code,
        initial=initial,
        mask=mask,
    )
