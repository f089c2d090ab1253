r"""Gradient rules: ae-ls, ae-lasso, dec and noodl.

A gradient rule says which derivative in the atoms training descends. Most rules are a scalar, the
mean over samples of a term that autograd differentiates. With the codes :math:`z = z_T(D)` of the
encoder, which depend on the atoms, and the data ``x``, the terms are:

============  ==========================================================================
``ae-ls``     :math:`\frac12 |x - D z|^2`, through decoder and encoder
``ae-lasso``  the same plus the penalty :math:`\lambda |z|_1`, through decoder and encoder
``dec``       :math:`\frac12 |x - D z|^2`, with ``z`` as a constant
``noodl``     none; the derivative is :math:`(D z - x)\, \text{sign}(z)^T`
============  ==========================================================================

"Through the encoder" means that the derivative takes into account that ``z`` depends on the atoms.
The first three are Algorithm 2, eq. 8, of the PUDLE paper, arXiv:2106.00058; Algorithm 1 of the
paper, alternating minimisation, is ``dec`` with codes that solve the lasso. The fourth is the
update of NOODL. Training calls `differentiate`.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._losses import LEAST_SQUARES
from skpudle._precision import in_own_precision

_SQUARED = LEAST_SQUARES.half_deviance


class Evaluation(NamedTuple):
    r"""What a rule returns for a batch. All tensors but `surrogate` have no graph of autograd.

    Attributes
    ----------
    surrogate : Tensor of shape ()
        The scalar whose derivative in the atoms is the gradient of the rule.
    objective : Tensor of shape ()
        The objective of the rule, by which training decides to stop: the mean reconstruction loss,
        plus the mean penalty for ``dec`` and ``ae-lasso``.
    losses : Tensor of shape (n_samples,)
        The reconstruction loss of every sample, :math:`\frac12 |x - D z|^2` for least squares. All
        rules define it alike, so that their loss curves can be compared.
    codes : Tensor of shape (n_samples, n_components)
        The codes.
    """

    surrogate: Tensor
    objective: Tensor
    losses: Tensor
    codes: Tensor


def average(values, weight):  # (n,), weights (n,) or None -> scalar
    """Return the mean of ``values`` over samples, with their weights; 0 if all weights are 0."""
    if weight is None:
        return values.mean()
    total = weight.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return (values * weight).sum() / total


# ``penalty`` times |z|_1, for each sample's codes z (n, n_components, ...), as a tensor (n,)
def _penalties(z, penalty):
    return penalty * z.abs().flatten(1).sum(1)


def _evaluate(
    dictionary,
    batch,
    encoder,
    loss=_SQUARED,
    through_encoder=True,
):
    """Encode a batch; return the codes (n, n_components) and the loss of each sample (n,).

    All rules use it. ``batch`` has data and mask (`Samples`), ``encoder(dictionary, x, mask=mask)``
    returns codes, and ``loss(decoded, x)`` the loss of each entry. Without ``through_encoder`` the
    codes are constants for autograd. Losses are sums over the known entries of a sample.
    """
    with torch.set_grad_enabled(through_encoder and torch.is_grad_enabled()):
        z = encoder(dictionary, batch.x, mask=batch.mask)
    losses = loss(dictionary.synthesis(z), batch.x)
    losses = losses if batch.mask is None else losses * batch.mask
    return z, losses.flatten(1).sum(1)


@in_own_precision
def _rule_of_objective(
    dictionary,
    batch,
    *,
    encoder,
    penalty,
    through_encoder=True,
    penalised=True,
    loss=_SQUARED,
):
    r"""Evaluate a rule that differentiates an objective: ``ae-ls``, ``ae-lasso`` or ``dec``.

    Parameters
    ----------
    dictionary : DenseDictionary
        The dictionary; its atoms may require a gradient.
    batch : Samples
        Data ``x`` to encode, their ``mask``, and the ``weight`` of samples. The mask is 1 where
        data are known and 0 where they are missing. The weight is how often each sample counts in
        means over samples. Mask and weight may be None.
    encoder : callable
        ``encoder(dictionary, x, mask=mask)`` returns codes.
    penalty : float
        The penalty :math:`\lambda` of the last unfolding; 0 for hard thresholding, because its
        penalty has derivative 0.
    through_encoder : bool, default=True
        Whether the derivative takes into account that codes depend on the atoms.
    penalised : bool, default=True
        Whether the objective has the penalty of the codes.
    loss : callable, default=squared error
        ``loss(decoded, x)`` returns the loss of each entry.

    Returns
    -------
    Evaluation
        The scalar to differentiate, the objective, the losses and the codes.
    """
    z, losses = _evaluate(dictionary, batch, encoder, loss, through_encoder)
    terms = losses + _penalties(z, penalty) if penalised else losses
    surrogate = average(terms, batch.weight)
    return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())


ae_ls = partial(_rule_of_objective, penalised=False)
ae_lasso = partial(_rule_of_objective)
# `dec` keeps the penalty, so that its objective is that of the lasso; the gradient has no term of
# the penalty, since the codes are constants
dec = partial(_rule_of_objective, through_encoder=False)


@in_own_precision
def noodl(dictionary, batch, *, encoder, penalty):  # -> Evaluation
    r"""Evaluate the rule of NOODL, with the derivative :math:`(D z - x)\,\text{sign}(z)^T`.

    ``batch`` and ``encoder`` are those of `_rule_of_objective`: `Samples`, and a function that
    returns their codes. ``penalty`` has no effect. The surrogate has this derivative, but its value
    means nothing.
    """
    with torch.no_grad():
        z, losses = _evaluate(dictionary, batch, encoder)
        residual = dictionary.synthesis(z) - batch.x
        residual = residual if batch.mask is None else residual * batch.mask
    terms = (residual * dictionary.synthesis(z.sign())).flatten(1).sum(1)
    weight = batch.weight
    return Evaluation(average(terms, weight), average(losses, weight), losses, z)


GRADIENT_RULES = {"dec": dec, "ae-lasso": ae_lasso, "ae-ls": ae_ls, "noodl": noodl}

# The argument `through_encoder` of `lasso_gradient` for each rule: whether the derivative in the
# atoms has to take into account that codes depend on the atoms, if the codes solve the lasso. For
# ae-lasso it is False, although the rule goes through the encoder: such codes minimise its
# objective, so its derivative is that of dec (theorem 3.3 of the PUDLE paper). Rules that are not
# here use autograd.
_THROUGH_LASSO = {dec: False, ae_lasso: False, ae_ls: True}


@in_own_precision
def differentiate(rule, dictionary, atoms, batch, *, encoder, **params):
    """Return the gradient that an optimiser descends: evaluate a rule, and differentiate it.

    Parameters
    ----------
    rule : callable
        A value of `GRADIENT_RULES`, or a function with the same arguments and result.
    dictionary : DenseDictionary
        The dictionary, whose atoms are ``atoms``.
    atoms : Tensor of shape (n_components, ...)
        The atoms to differentiate in.
    batch : Samples
        Data, mask and weights, as in `_rule_of_objective`.
    encoder : callable
        ``encoder(dictionary, x, mask=mask)`` returns codes. An encoder that solves the lasso may
        have a method ``gradient(atoms, x, mask, through_encoder=...)``, which returns codes, losses
        and the derivative of the mean loss, and replaces autograd, see
        `skpudle.lasso._implicit.lasso_gradient`. If the method returns None, autograd
        differentiates the codes that the encoder returns when it is called.
    **params
        Further keyword arguments of the rule, such as ``penalty``.

    Returns
    -------
    gradient : Tensor of shape (n_components, ...)
        The derivative of the rule in the atoms.
    evaluation : Evaluation
        Objective, losses and codes, without a graph of autograd.
    """
    solve_and_differentiate = getattr(encoder, "gradient", None)
    through_encoder = _THROUGH_LASSO.get(rule)
    # the method `gradient` takes no weights of samples
    if solve_and_differentiate and through_encoder is not None and batch.weight is None:
        solution = solve_and_differentiate(
            atoms.detach(), batch.x, batch.mask, through_encoder=through_encoder
        )
        if solution is not None:
            codes, losses, gradient = solution
            penalties = 0.0 if rule is ae_ls else _penalties(codes, params["penalty"])
            objective = (losses + penalties).mean()
            return gradient, Evaluation(objective, objective, losses, codes)
    evaluation = rule(dictionary, batch, encoder=encoder, **params)
    (gradient,) = torch.autograd.grad(evaluation.surrogate, atoms)
    return gradient, evaluation._replace(surrogate=evaluation.surrogate.detach())
