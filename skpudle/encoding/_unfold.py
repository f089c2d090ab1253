"""The unfolded encoder, and its adjoint as a function of autograd; see `skpudle.encoding`."""

from functools import partial
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from skpudle._compilation import threads_for
from skpudle._losses import LEAST_SQUARES
from skpudle._operators._atoms import DenseDictionary
from skpudle._precision import (
    as_scalars,
    differentiable_once,
    in_own_precision,
    kept_by_autograd,
)
from skpudle._shrinkage import shrink
from skpudle.encoding._compiled import is_recorded
from skpudle.encoding._likelihood import Likelihood
from skpudle.encoding._steps import ConvSteps, DenseSteps, run_iterations


class _Unfolding(torch.autograd.Function):
    """The encoder for least squares, all iterations together, as a function of autograd.

    `unfold` calls it. The hand-written adjoint stores less than a graph of all operations, and
    takes less time.
    """

    @staticmethod
    def forward(ctx, make_steps, iterate, *tensors):
        """Return the codes (n_samples, n_components, ...) after one iteration for each level.

        ``make_steps(x, step)`` returns the `Steps` for data and a step size. ``iterate(steps, z,
        levels)`` is `run_iterations` with its other arguments set. ``tensors`` are the atoms, the
        atoms of the analysis or None, data, levels, step size, and initial codes or None, see
        `unfold`.
        """
        ctx.save_for_backward(*tensors)
        ctx.has_own_analysis = tensors[1] is not None
        ctx.shrinkage = iterate.keywords["shrinkage"]
        x, levels, step, z = (
            part if part is None else part.detach() for part in tensors[2:]
        )
        ctx.steps = make_steps(x, step)
        z, ctx.records = iterate(ctx.steps, z, levels)
        # The records hold the last codes, and the graph of the result holds the records. So the
        # result is a copy: otherwise it would refer to itself, and its memory would not be freed.
        return z.clone()

    @staticmethod
    @differentiable_once  # in a second derivative autograd would take the saved codes for constants
    def backward(ctx, delta):
        """Return the derivatives in the arguments of `forward`; None for the first two.

        ``delta`` has the shape of the codes, and holds the derivatives of the loss in the codes.
        """
        # `saved_tensors` raises an error if a tensor was changed in place since the forward pass;
        # the records would not show it
        _, _, _, levels, _, initial = ctx.saved_tensors
        # argument 5 of `forward` are the levels
        by_level = torch.zeros_like(levels) if ctx.needs_input_grad[5] else None
        # with hard shrinkage a small change of a level changes no code, so the derivative stays 0
        by_soft_level = by_level if ctx.shrinkage == "soft" else None
        delta = delta.clone(memory_format=torch.contiguous_format)
        scratch = torch.empty_like(delta)
        ctx.steps.clear()
        for record in reversed(ctx.records):
            delta = record.pull(ctx.steps, delta, by_soft_level, scratch)
        atoms, analysis, x, step = ctx.steps.gradients()
        # without an analysis of its own, the atoms get the derivatives of both of their roles
        if not ctx.has_own_analysis and analysis is not None:
            atoms = atoms + analysis
            analysis = None
        delta = None if initial is None else delta
        return None, None, atoms, analysis, x, by_level, step, delta


@in_own_precision
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
    analysis=None,
    loss=LEAST_SQUARES,
    offset=None,
):
    """Encode data by one iteration, a gradient step and a shrinkage, for each of the given levels.

    Every unfolded encoder of the package calls this function. `threshold_levels` makes the levels
    for a penalty. The codes are differentiable once in the atoms, the data, the levels, the step
    size, the initial codes and the offset. The derivative in the levels of hard shrinkage is 0.

    Parameters
    ----------
    dictionary : DenseDictionary, ConvDictionary or ConvLayers
        The dictionary. With layers, unfolding ``t`` computes codes for layer ``t``, and unfolding
        ``t + 1`` subtracts the synthesis of layer ``t`` from the data.
    x : Tensor of shape (n_samples, n_features)
        Data; for convolutions (n_samples, n_channels, *size).
    levels : Tensor of shape (n_unfoldings, 1) or (n_unfoldings, n_components)
        Level of the shrinkage in each iteration, in units of the codes. ``levels[t]`` may have any
        shape that broadcasts against codes, such as (n_samples, 1).
    step : Tensor of shape () or None
        Step size. The encoder converges for steps below 2 over the squared spectral norm of the
        dictionary times the curvature of the loss. None is for a loss of unbounded curvature: each
        sample then searches for step sizes such that the penalised loss never rises. Derivatives
        treat the step sizes that the search finds as constants, and the levels of soft shrinkage
        are multiplied by them.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial : Tensor of shape (n_samples, n_components), default=None
        Codes to start from; None are zeros.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` must be finite).
    analysis : ConvDictionary or ConvLayers, default=None
        For convolutions: a separate dictionary ``A`` that correlates with the residual. A step is
        then ``z + s A^T (x - D z)``, which is not the gradient step of a lasso. By default
        ``dictionary``.
    loss : object of `skpudle._losses`, default=LEAST_SQUARES
        The loss, for a `DenseDictionary`: the residual is ``x - loss.mean(D z + offset)``.
    offset : Tensor that broadcasts against the data, default=None
        Added to ``D z``.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        The codes after the last iteration; for convolutions (n_samples, n_components, *positions).

    Raises
    ------
    ValueError
        If there are no levels.
    RuntimeError
        If autograd asks for a second derivative of codes for least squares.
    """
    if loss.is_quadratic and offset is not None:  # the residual is x - (D z + offset)
        x = x - offset
    if not len(levels):
        raise ValueError("There are no levels. Pass one level for each unfolding.")
    x = kept_by_autograd(x)
    atoms = dictionary.atoms
    threads = threads_for(atoms, x, getattr(dictionary, "stride", 1))
    if not loss.is_quadratic:
        offset = x.new_zeros(()) if offset is None else offset
        z = x.new_zeros(len(x), len(atoms)) if initial is None else initial
        encoder = Likelihood(
            dictionary, x, loss, offset, mask, shrinkage, positive_code
        )
        has_graph = is_recorded(atoms, x, levels, step, z, offset)
        with threads, torch.set_grad_enabled(has_graph):
            return encoder.codes(z, levels, step)
    atoms_of_analysis = None if analysis is None else analysis.atoms
    iterate = partial(
        run_iterations,
        shrinkage=shrinkage,
        positive=positive_code,
        keep=is_recorded(atoms, atoms_of_analysis, x, levels, step, initial),
    )
    detached = dictionary.detach()

    def make_steps(x, step):  # -> Steps
        if isinstance(dictionary, DenseDictionary):
            return DenseSteps(detached, x, step, mask=mask, n_steps=len(levels))
        detached_analysis = detached if analysis is None else analysis.detach()
        return ConvSteps(detached, detached_analysis, x, step, mask=mask)

    with threads:
        return _Unfolding.apply(
            make_steps, iterate, atoms, atoms_of_analysis, x, levels, step, initial
        )


def threshold_levels(
    dictionary, alpha, n_unfoldings, step, *, lambda_decay=1.0, shrinkage="soft"
):
    r"""Return the level of the shrinkage in each unfolding for a penalty, as `unfold` takes them.

    Soft shrinkage has the level ``step * alpha * lambda_decay**t`` in unfolding t: the proximal map
    of the lasso's penalty, which decays from unfolding to unfolding. Hard shrinkage has the level
    ``alpha`` in each unfolding, without ``step`` and decay (``HT_b`` in section 4 of
    arXiv:2106.00058).

    Parameters
    ----------
    dictionary : DenseDictionary or ConvDictionary
        Dictionary whose atoms determine the axes of the levels, their dtype and their device.
    alpha : float or Tensor of shape (), (n_components,) or (n_unfoldings, n_components)
        Penalty of soft shrinkage, in units of the data times the atoms, or threshold of hard
        shrinkage, in units of the codes: one, one per atom, or one per unfolding and atom.
    n_unfoldings : int
        Number of iterations.
    step : Tensor of shape () or None
        Step size. None: levels are not multiplied by a step size, since `unfold` with ``step=None``
        multiplies them.
    lambda_decay : float, default=1.0
        Factor between the penalties of consecutive iterations.
    shrinkage : {"soft", "hard"}, default="soft"
        The shrinkage that uses the levels.

    Returns
    -------
    Tensor of shape (n_unfoldings, 1, ...) or (n_unfoldings, n_components, ...)
        The levels, in units of the codes, with a trailing axis of length 1 for each axis of a
        convolution.
    """
    atoms = dictionary.atoms
    alpha = as_scalars(alpha, atoms)
    n_levels = alpha.shape[-1] if alpha.ndim else 1
    levels = alpha.reshape([-1, n_levels] + [1] * (atoms.ndim - 2))
    levels = levels.expand([int(n_unfoldings), *levels.shape[1:]])
    if shrinkage == "hard":
        return levels
    unfolding = torch.arange(n_unfoldings, dtype=atoms.dtype, device=atoms.device)
    decay = torch.pow(float(lambda_decay), unfolding)
    levels = levels if step is None else levels * step
    return decay.reshape([-1] + [1] * (levels.ndim - 1)) * levels


@in_own_precision
def default_step(dictionary, loss=LEAST_SQUARES):  # -> scalar tensor, or None
    """Return a step size with which the encoder converges, for learners without one of their own.

    It is 1 over a bound of the dictionary's squared spectral norm times the curvature of the loss.

    Parameters
    ----------
    dictionary : DenseDictionary or ConvDictionary
        The dictionary, or any object with ``squared_norm_bound``.
    loss : object of `skpudle._losses`, default=LEAST_SQUARES
        The loss.

    Returns
    -------
    Tensor or None
        The step size, of shape (). It is 1 if every atom is zero, and NaN if the bound overflows;
        training then reports that it has diverged. None if the curvature of the loss has no bound:
        `unfold` then searches for step sizes.
    """
    if not isfinite(loss.curvature):
        return None
    bound = dictionary.squared_norm_bound() * loss.curvature
    step = torch.where(bound > 0, 1 / bound, 1.0)
    return step.masked_fill(bound.isinf(), torch.nan)


@in_own_precision
def encode(
    dictionary: Any,
    x: Tensor,
    *,
    alpha: float | Tensor,
    n_unfoldings: int = 100,
    step_size: float | Tensor | None = None,
    lambda_decay: float = 1.0,
    shrinkage: Literal["soft", "hard"] = "soft",
    positive_code: bool = False,
    initial_threshold: float | None = None,
    mask: Tensor | None = None,
    loss: Any = None,
    offset: Tensor | None = None,
) -> Tensor:
    r"""Encode data by an unfolded sparse encoder (eq. 7 of the PUDLE paper [1]_).

    The codes are differentiable once in ``dictionary.atoms`` and ``x``, and in ``alpha`` and
    ``step_size`` if these are tensors. For a backward pass the codes of all unfoldings stay in
    memory.

    Parameters
    ----------
    dictionary : DenseDictionary or Tensor of shape (n_components, n_features)
        The dictionary, or its atoms.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms.
    alpha : float or Tensor of shape (), (n_components,) or (n_unfoldings, n_components)
        Soft shrinkage: the penalty :math:`\lambda` of the lasso, in units of the data times the
        atoms. Hard shrinkage: the threshold :math:`b`, in units of the codes.
    n_unfoldings : int, default=100
        Number of iterations, :math:`T`.
    step_size : float or Tensor of shape (), default=None
        Step size of an iteration. By default 1 over a bound of the squared spectral norm of the
        dictionary times the curvature of the loss; if the curvature has no bound, each sample
        searches for step sizes.
    lambda_decay : float, default=1.0
        Iteration t, from 0 on, has the penalty ``alpha * lambda_decay**t`` (soft shrinkage only).
    shrinkage : {"soft", "hard"}, default="soft"
        Soft thresholding (lasso) or hard thresholding.
    positive_code : bool, default=False
        Whether codes are restricted to non-negative values.
    initial_threshold : float, default=None
        Start from the correlations ``D^T x``, hard-thresholded at this value, as NOODL does; by
        default start from zero.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 where an entry of ``x`` is known, 0 where it is missing (and then ``x`` must be finite).
    loss : object, default=None
        A loss of `skpudle._losses`; by default least squares.
    offset : Tensor that broadcasts against the data, default=None
        Added to ``D z``: the residual is ``x - loss.mean(D z + offset)``.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        Sparse codes.

    Raises
    ------
    ValueError
        If there are no unfoldings.
    RuntimeError
        If autograd asks for a second derivative of codes for least squares.

    References
    ----------
    .. [1] B. Tolooshams and D. Ba, "PUDLE: Implicit Acceleration of Dictionary Learning by
       Backpropagation", arXiv:2106.00058, 2021.

    Examples
    --------
    >>> import torch
    >>> from skpudle.encoding import encode
    >>> atoms = torch.eye(3)
    >>> encode(atoms, torch.tensor([[1.0, -0.25, 0.0]]), alpha=0.5)
    tensor([[0.5000, 0.0000, 0.0000]])
    """
    if not hasattr(dictionary, "atoms"):
        dictionary = DenseDictionary(dictionary)
    loss = LEAST_SQUARES if loss is None else loss
    initial = None
    if step_size is None:
        step_size = default_step(dictionary, loss)
    step = None if step_size is None else as_scalars(step_size, x)
    levels = threshold_levels(
        dictionary,
        alpha,
        n_unfoldings,
        step,
        lambda_decay=lambda_decay,
        shrinkage=shrinkage,
    )
    if initial_threshold is not None:
        residual = x if offset is None else x - loss.mean(offset)
        residual = residual if mask is None else residual * mask
        level = as_scalars(initial_threshold, x)
        correlation = dictionary.analysis(residual)
        initial = shrink(correlation, level, "hard", positive=positive_code)
    return unfold(
        dictionary,
        x,
        levels,
        step,
        shrinkage=shrinkage,
        positive_code=positive_code,
        initial=initial,
        mask=mask,
        loss=loss,
        offset=offset,
    )
