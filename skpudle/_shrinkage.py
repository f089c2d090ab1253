r"""Shrinkages, the part of an encoder's iteration that makes codes sparse, and signs of codes.

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

import torch


def _number(level):  # -> float or None
    """Return the tensor ``level`` as a number, for which torch's functions are faster.

    Return None for several levels, and for a level on a GPU, since the host would have to wait for
    the number: the callers then compute with the tensor.
    """
    return level.item() if level.numel() == 1 and level.device.type == "cpu" else None


# `_soft_` and `_hard_` overwrite the tensor v with its shrunk values and return it. `level` is a
# tensor that broadcasts against v. `scratch` is memory of the shape of v that they may overwrite,
# or None. With `positive` the results are at least 0.
def _soft_(v, level, scratch, *, positive):
    if positive:
        return v.sub_(level).clamp_min_(0)
    number = _number(level)
    if number is not None:
        return v.sub_(torch.clamp(v, -number, number, out=scratch))
    # two calls, because they are faster than `torch.clamp` with two tensors as limits
    clipped = torch.minimum(v, level, out=scratch)
    return v.sub_(torch.maximum(clipped, -level, out=clipped))


def _hard_(v, level, scratch, *, positive):
    if not positive and _number(level) is not None:
        # torch's function keeps only values above its limit, but a value equal to the level has to
        # stay: so the limit is the next smaller float
        below = torch.nextafter(level, torch.zeros_like(level)).item()
        return torch.hardshrink(v, below, out=v)
    magnitude = v if positive else torch.abs(v, out=scratch)
    return v.masked_fill_(magnitude < level, 0)


SHRINKAGES = {"soft": _soft_, "hard": _hard_}


def split_signs(z):  # (n, n_components) -> (n, 2 * n_components)
    """Return the positive parts of all codes, and after them the negative parts; none is negative.

    `join_signs` is the inverse.
    """
    return torch.cat([z.clamp_min(0), z.neg().clamp_min(0)], dim=1)


def join_signs(parts):  # (n, 2 * n_components) -> (n, n_components)
    """Return signed codes from their positive and negative parts, a tensor or an array."""
    n_components = parts.shape[1] // 2
    return parts[:, :n_components] - parts[:, n_components:]


def shrink(
    v,
    level,
    name,
    *,
    positive=False,
    scratch=None,
):
    """Return ``v`` after a shrinkage, so that autograd can differentiate it in ``v`` and ``level``.

    If autograd is switched off, the result overwrites ``v``, which the caller must not need any
    more.

    Parameters
    ----------
    v : Tensor
        Values of any shape.
    level : Tensor
        Levels, of a shape that broadcasts against ``v``.
    name : {"soft", "hard"}
        Name of the shrinkage.
    positive : bool, default=False
        Whether codes are restricted to non-negative values.
    scratch : Tensor, default=None
        Memory of the shape of ``v`` that may be overwritten.

    Returns
    -------
    Tensor
        The shrunk values.

    Raises
    ------
    ValueError
        If ``name`` is not the name of a shrinkage.
    """
    if name not in SHRINKAGES:
        raise ValueError(
            f"Unknown shrinkage {name!r}. Pass one of {sorted(SHRINKAGES)}."
        )
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        return SHRINKAGES[name](v, level, scratch, positive=positive)
    if name == "hard":
        v = torch.where(v.abs() < level, 0.0, v)
    else:
        v = v - v.clamp(-level, level)
    return v.clamp_min(0) if positive else v
