"""The slow, obvious encoders that others are compared with, and what they are given."""

import torch


def naive_shrink(v, level, shrinkage, positive_code):
    magnitude = v if positive_code else v.abs()
    if shrinkage == "hard":
        return torch.where(magnitude >= level, v, 0.0)
    return v.sign() * (magnitude - level).relu()


def naive_encode(
    atoms,
    x,
    *,
    alpha,
    n_unfoldings,
    step_size,
    lambda_decay=1.0,
    shrinkage="soft",
    positive_code=False,
    initial_threshold=None,
    mask=1.0,
):
    """Return codes of eq. 7, by one operation after the other."""
    z = x.new_zeros(len(x), len(atoms))
    if initial_threshold is not None:
        correlation = (mask * x) @ atoms.T
        z = naive_shrink(correlation, initial_threshold, "hard", positive_code)
    for t in range(n_unfoldings):
        level = alpha if shrinkage == "hard" else step_size * alpha * lambda_decay**t
        v = z + step_size * (mask * (x - z @ atoms)) @ atoms.T
        z = naive_shrink(v, level, shrinkage, positive_code)
    return z


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(generator, *shape):
    """Return rows, or atoms of more axes, of norm 1."""
    rows = normal(generator, *shape)
    return torch.nn.functional.normalize(rows.flatten(1)).view(shape)


def make_mask(generator, x):
    return (torch.rand(x.shape, generator=generator) < 0.7).to(x.dtype)


def torch_encode(
    atoms,
    x,
    *,
    stride,
    alpha,
    step_size,
    n_unfoldings=15,
    lambda_decay=1.0,
    shrinkage="soft",
    positive_code=False,
    mask=1.0,
):
    """Return codes of eq. 7 by the convolutions of torch."""
    n_axes = atoms.ndim - 2
    conv = [torch.nn.functional.conv1d, torch.nn.functional.conv2d][n_axes - 1]
    transposed = [torch.conv_transpose1d, torch.conv_transpose2d][n_axes - 1]
    z, alpha = conv(mask * x, atoms, stride=stride) * 0, alpha.reshape(-1, *[1] * n_axes)
    for t in range(n_unfoldings):
        residual = mask * (x - transposed(z, atoms, stride=stride))
        level = alpha if shrinkage == "hard" else step_size * alpha * lambda_decay**t
        v = z + step_size * conv(residual, atoms, stride=stride)
        z = naive_shrink(v, level, shrinkage, positive_code)
    return z


def ill_posed(atoms, kind, choice):
    """Return atoms of another kind, made of atoms of norm 1 and of numbers of some of them."""
    p, m = atoms.shape
    if kind == "lengths":
        return atoms * torch.logspace(-4, 4, p, dtype=torch.float64)[:, None]
    if kind == "repeated":
        return atoms[choice] * (1 - 2 * (choice % 2))[:, None]
    if kind == "signs":  # many atoms are combinations of few others
        return atoms.sign() / m**0.5
    if kind == "correlated":
        return torch.nn.functional.normalize(atoms + 3 * atoms[:1])
    return atoms[choice] + 1e-7 * atoms if kind == "near" else atoms
