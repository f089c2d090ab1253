"""The slow, obvious encoders that others are compared with, and what they are given."""

import torch


def naive_shrink(v, level, shrinkage, positive_code):
    magnitude = v if positive_code else v.abs()
    if shrinkage == "hard":
        return torch.where(magnitude >= level, v, 0.0)
    return v.sign() * (magnitude - level).relu()


def naive_unfold(
    analysis, synthesis, x, z, *, alpha, n_unfoldings, step_size, lambda_decay=1.0,
    shrinkage="soft", positive_code=False, mask=1.0,
):  # fmt: skip
    """Return codes of eq. 7 from first ones, by one operation after the other."""
    for t in range(n_unfoldings):
        level = alpha if shrinkage == "hard" else step_size * alpha * lambda_decay**t
        v = z + step_size * analysis(mask * (x - synthesis(z)))
        z = naive_shrink(v, level, shrinkage, positive_code)
    return z


def naive_encode(
    atoms, x, *, initial_threshold=None, positive_code=False, mask=1.0, **options
):
    """Return codes of rows."""
    z = x.new_zeros(len(x), len(atoms))
    if initial_threshold is not None:
        z = naive_shrink((mask * x) @ atoms.T, initial_threshold, "hard", positive_code)
    maps = lambda residual: residual @ atoms.T, lambda z: z @ atoms
    return naive_unfold(*maps, x, z, positive_code=positive_code, mask=mask, **options)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(generator, *shape):
    """Return rows, or atoms of more axes, of norm 1."""
    rows = normal(generator, *shape)
    return torch.nn.functional.normalize(rows.flatten(1)).view(shape)


def make_mask(generator, x):
    return (torch.rand(x.shape, generator=generator) < 0.7).to(x.dtype)


def torch_maps(atoms, stride):  # -> analysis, synthesis
    """Return convolutions of torch with atoms."""
    axes = atoms.ndim - 3
    conv = [torch.conv1d, torch.conv2d, torch.conv3d][axes]
    transposed = [
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
    ][axes]
    return lambda x: conv(x, atoms, stride=stride), lambda z: transposed(
        z, atoms, stride=stride
    )


def torch_encode(atoms, x, *, stride, alpha, **options):
    """Return codes of images or signals."""
    maps = torch_maps(atoms, stride)
    alpha = alpha.reshape(-1, *[1] * (atoms.ndim - 2))
    return naive_unfold(*maps, x, 0 * maps[0](x).detach(), alpha=alpha, **options)


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
