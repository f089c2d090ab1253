r"""Shrinkages: the part of an encoder's iteration that makes codes sparse.

The unfolded encoder alternates a gradient step with an entrywise shrinkage ``S`` at a level ``l``,
a threshold in units of the codes. The four variants are the proximal maps of these penalties:

========  ============  ==================================  =========================
name      codes         ``S(v)``                            penalty
========  ============  ==================================  =========================
``soft``  signed        ``v - clip(v, -l, l)``              ``l |z|``
``soft``  non-negative  ``max(v - l, 0)``                   ``l z``, ``z >= 0``
``hard``  signed        ``v`` where ``|v| >= l``, else 0    ``l^2 / 2`` per non-zero
``hard``  non-negative  ``v`` where ``v >= l``, else 0      the same, ``z >= 0``
========  ============  ==================================  =========================

Almost everywhere all four have the same derivative in ``v``: 1 where the result is not zero, and 0
elsewhere. So the backward pass of an encoder needs only the support of the result.
"""

from functools import partial

import torch


def _number(level):  # -> float or None
    """Return the tensor ``level`` as a number, for which torch's functions are faster.

    Return None for several levels, and for a level on a GPU, since the host would have to wait for
    the number.
    """
    return level.item() if level.numel() == 1 and level.device.type == "cpu" else None


# `_soft_` and `_hard_` overwrite the tensor v with its shrunk values and return it. `scratch` is
# memory of the shape of v that they may overwrite, see `shrinkage_function`.
def _soft_(v, level, scratch=None, *, positive):
    number = _number(level)
    if positive:
        return v.sub_(level if number is None else number).clamp_min_(0)
    if number is not None:
        return v.sub_(torch.clamp(v, -number, number, out=scratch))
    # two calls, because they are faster than `torch.clamp` with two tensors as limits
    clipped = torch.minimum(v, level, out=scratch)
    return v.sub_(torch.maximum(clipped, -level, out=clipped))


def _hard_(v, level, scratch=None, *, positive):
    number = _number(level)
    if number is not None:
        # torch's functions keep only values above their limit, but a value equal to the level has
        # to stay: so the limit is the next smaller float
        below = torch.nextafter(level, torch.zeros_like(level)).item()
        if positive:
            return torch.nn.functional.threshold_(v, below, 0)
        return torch.hardshrink(v, below, out=v)
    magnitude = v if positive else torch.abs(v, out=scratch)
    return v.masked_fill_(magnitude < level, 0)


SHRINKAGES = {"soft": _soft_, "hard": _hard_}


def shrink(v, level, name, *, positive=False):
    """Return ``v`` after a shrinkage, so that autograd can differentiate it in ``v`` and ``level``.

    ``v`` is a tensor of any shape, and the tensor ``level`` broadcasts against it. ``name`` and
    ``positive`` are those of `shrinkage_function`. If autograd is switched off, the result
    overwrites ``v``, which the caller must not need any more.
    """
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return SHRINKAGES[name](v, level, positive=positive)
    v = (
        torch.where(v.abs() < level, 0.0, v)
        if name == "hard"
        else v - v.clamp(-level, level)
    )
    return v.clamp_min(0) if positive else v


def shrinkage_function(name, *, positive=False):
    """Return the in-place shrinkage called ``name``, for encoders with a hand-written adjoint.

    Parameters
    ----------
    name : {"soft", "hard"}
        Name of the shrinkage.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.

    Returns
    -------
    callable
        ``shrink_(v, level, scratch=None)`` overwrites the tensor ``v`` with its shrunk values and
        returns it. The tensor ``level`` broadcasts against ``v``; ``scratch`` is memory of the
        shape of ``v`` to overwrite.

    Raises
    ------
    ValueError
        If ``name`` is not a known shrinkage.
    """
    if name not in SHRINKAGES:
        raise ValueError(
            f"Unknown shrinkage {name!r}. Pass one of {sorted(SHRINKAGES)}."
        )
    return partial(SHRINKAGES[name], positive=positive)
