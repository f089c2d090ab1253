r"""Gradient rules: ae-ls, ae-lasso, dec and noodl.

A rule is a scalar whose derivative in the atoms, averaged over samples, gives the update of the
atoms. With the codes :math:`z = z_T(D)` of the encoder, which depend on the atoms, and the data
``x``:

============  ==========================================================================
``ae-ls``     :math:`\frac12 |x - D z|^2`, through decoder and encoder
``ae-lasso``  the same plus the penalty :math:`\lambda |z|_1`, through decoder and encoder
``dec``       :math:`\frac12 |x - D z|^2` with ``z`` held constant
``noodl``     derivative :math:`(D z - x)\, \text{sign}(z)^T`, ``z`` held constant
============  ==========================================================================

The first three are Algorithm 2, eq. 8, of the PUDLE paper; Algorithm 1, alternating minimisation,
is ``dec`` with converged codes. The fourth is the update of NOODL.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from skpudle._losses import LEAST_SQUARES
from skpudle._precision import in_own_precision

_SQUARED = LEAST_SQUARES.half_deviance


class Evaluation(NamedTuple):
    r"""The value of a rule on a batch; all tensors but `surrogate` are detached from autograd.

    Attributes
    ----------
    surrogate : Tensor of shape ()
        The scalar to differentiate.
    objective : Tensor of shape ()
        The objective of the rule, by which training decides to stop: the mean reconstruction loss,
        plus the penalty for ``dec`` and ``ae-lasso``.
    losses : Tensor of shape (n_samples,)
        The reconstruction loss :math:`\frac12 |x - D z|^2` of every sample. It is the same for
        every rule, so that loss curves of different rules compare.
    codes : Tensor of shape (n_samples, n_components)
        The codes.
    """

    surrogate: Tensor
    objective: Tensor
    losses: Tensor
    codes: Tensor


def average(values, weight):  # (n,), weights (n,) or None -> scalar
    """Return the weighted mean of ``values``; 0 if all weights are 0."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(values.dtype).tiny)


def _penalties(z, penalty):  # codes, float -> (n,): the penalty of each sample's codes
    return penalty * z.abs().flatten(1).sum(1)


def _evaluate(dictionary, batch, encoder, loss=_SQUARED, through_encoder=True):  # -> codes, losses
    """Encode a batch; return codes and losses. Without ``through_encoder`` codes are constants."""
    with torch.set_grad_enabled(through_encoder and torch.is_grad_enabled()):
        z = encoder(dictionary, batch.x, mask=batch.mask)
    losses = loss(dictionary.synthesis(z), batch.x)
    return z, (losses if batch.mask is None else losses * batch.mask).flatten(1).sum(1)


@in_own_precision
def _rule_of_objective(
    dictionary, batch, *, encoder, penalty, through_encoder=True, penalised=True, loss=_SQUARED
):
    r"""Evaluate the rules that differentiate an objective (eq. 8).

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
    through_encoder, penalised : bool, default=True
        Whether codes depend on the atoms, and whether the objective has their penalty.
    loss : callable, default=squared error
        ``loss(decoded, x)`` returns the loss of each entry.

    Returns
    -------
    Evaluation
        The scalar to differentiate, objective, losses and codes.
    """
    z, losses = _evaluate(dictionary, batch, encoder, loss, through_encoder)
    surrogate = average(losses + _penalties(z, penalty) if penalised else losses, batch.weight)
    return Evaluation(surrogate, surrogate.detach(), losses.detach(), z.detach())


ae_ls, ae_lasso = partial(_rule_of_objective, penalised=False), partial(_rule_of_objective)
dec = partial(_rule_of_objective, through_encoder=False)  # the penalty is a constant


@in_own_precision
def noodl(dictionary, batch, *, encoder, penalty):  # -> Evaluation
    r"""Return the rule with the derivative :math:`(D z - x)\,\text{sign}(z)^T`, as the others."""
    with torch.no_grad():
        z, losses = _evaluate(dictionary, batch, encoder)
        residual = dictionary.synthesis(z) - batch.x
        residual = residual if batch.mask is None else residual * batch.mask
    entries = (residual * dictionary.synthesis(z.sign())).flatten(1).sum(1)
    weight = batch.weight
    return Evaluation(average(entries, weight), average(losses, weight), losses, z)


GRADIENT_RULES = {"dec": dec, "ae-lasso": ae_lasso, "ae-ls": ae_ls, "noodl": noodl}

# Whether the derivative of a rule has a part through the encoder, if the codes solve the lasso.
# With codes that solve the lasso, the derivative of ae-lasso is that of dec (theorem 3.3), which
# has no part through the encoder.
_THROUGH_LASSO = {dec: False, ae_lasso: False, ae_ls: True}


@in_own_precision
def differentiate(rule, dictionary, atoms, batch, *, encoder, **settings):
    """Evaluate a rule on a batch, and differentiate it in the atoms.

    Parameters
    ----------
    rule : callable
        One of `GRADIENT_RULES`.
    dictionary : DenseDictionary
        The dictionary that has ``atoms`` for atoms.
    atoms : Tensor of shape (n_components, ...)
        The atoms to differentiate in.
    batch : Samples
        The data, as in `_rule_of_objective`.
    encoder : callable
        As in `_rule_of_objective`. An encoder that solves the lasso may have a method
        ``gradient(atoms, x, mask, through_encoder=...)``, which returns codes, losses and the
        derivative of the mean loss, and replaces autograd. If the method returns None, autograd
        differentiates the codes that the encoder returns when it is called.
    **settings
        Further keyword arguments of the rule.

    Returns
    -------
    gradient : Tensor of shape (n_components, ...)
        The derivative of the rule in the atoms.
    evaluation : Evaluation
        The value of the rule, detached from autograd.
    """
    offered, through = getattr(encoder, "gradient", None), _THROUGH_LASSO.get(rule)
    if not (offered is None or through is None or batch.weight is not None):
        found = offered(atoms.detach(), batch.x, batch.mask, through_encoder=through)
        if found is not None:
            codes, losses, gradient = found
            penalties = 0.0 if rule is ae_ls else _penalties(codes, settings["penalty"])
            objective = (losses + penalties).mean()
            return gradient, Evaluation(objective, objective, losses, codes)
    evaluation = rule(dictionary, batch, encoder=encoder, **settings)
    (gradient,) = torch.autograd.grad(evaluation.surrogate, atoms)
    return gradient, evaluation._replace(surrogate=evaluation.surrogate.detach())
