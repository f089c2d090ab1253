"""Initial dictionaries: samples, random directions, leading singular vectors, or vertices.

*Vertices* are for samples that are sums of few atoms with non-negative codes. Such samples lie in a
cone, whose edges are the atoms. A vertex is a sample close to an edge, and so nearly a multiple of
one atom. The successive projection algorithm takes, one by one, the sample farthest from the span
of the samples taken before [1]_. Before that, samples are projected on their leading singular
vectors, which removes most of the noise, and divided by their brightness, the length of their
projection on the mean sample. Then all samples lie in the convex hull of the atoms, whatever their
brightness.

.. [1] N. Gillis and S. A. Vavasis, "Fast and robust recursive algorithms for separable nonnegative
   matrix factorization", IEEE TPAMI 36, 2014.
"""

import torch

from skpudle._compilation import threads_for
from skpudle._operators._atoms import project_atoms

# `vertices` stops when the distance of each sample from the span of the samples taken is at most
# this fraction of its brightness: up to rounding all samples are combinations of the samples taken.
# A brightness below this fraction of the norm of the sample is raised to the fraction.
_REPEATED_SAMPLE = 1e-6

INITIALIZATIONS = ("data", "random", "svd", "vertices")


def leading_directions(x, n):  # -> (at most n, n_features), float64
    """Return the ``n`` leading right singular vectors of ``x``, or fewer if its rank is smaller.

    For `vertices` and for initial atoms. The vectors are rows of norm 1, orthogonal to each other,
    the first for the largest singular value. They come from the Gram matrix of the rows or of the
    columns of ``x``, whichever is smaller.
    """
    eps = torch.finfo(x.dtype).eps
    x = x.double()
    is_wide = len(x) < x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.mT if is_wide else x.mT @ x)
    rank = int((values > values[-1] * x.shape[1] * eps).sum())
    vectors = vectors.flip(1)[:, : min(rank, n)]
    return torch.linalg.qr(x.mT @ vectors).Q.mT if is_wide else vectors.mT


def vertices(x, n_components, weight=None):
    """Return nearly pure samples, one for each atom, as the initial atoms of mixtures.

    The module docstring explains the algorithm and its terms. To remove noise, the returned samples
    are projected on the leading singular vectors of all samples.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms, at most the number of samples and of features.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in the singular vectors, the variance of the noise and the mean
        sample; None is once.

    Returns
    -------
    Tensor of shape (n, n_features)
        Atoms of any norm. There are fewer than ``n_components`` if other samples are combinations
        of the samples taken.
    """
    n, m = x.shape
    dtype = x.dtype
    x = x.double()
    weight = x.new_ones(n) if weight is None else weight.to(x)
    weight = weight / weight.mean()
    basis = leading_directions(weight[:, None].sqrt() * x, n_components)
    rows = x @ basis.mT
    squares = rows.square().sum(1)
    energy_outside = float(weight @ x.square().sum(1) - weight @ squares)
    # the expected squared norm of a projected sample's noise, by the variance of the noise outside
    # of the leading singular vectors
    n_outside = (n - n_components) * (m - n_components)
    noise = n_components * max(energy_outside, 0.0) / max(n_outside, 1)
    # Samples are divided by their brightness, because otherwise bright mixtures would be taken for
    # pure samples: if the brightness varies by 60 %, the mean angle of the vertices to the planted
    # atoms would be 7 degrees instead of 0.4. Ten times `noise` is added to the square of the
    # brightness, so that dim samples, which are mostly noise, stay short and are not chosen. With 1
    # or 1000 times `noise` the angle changes by 0.2 degrees.
    mean_sample = torch.nn.functional.normalize(weight @ rows, dim=0)
    brightness = (rows @ mean_sample).square() + 10 * noise
    brightness = torch.maximum(brightness, _REPEATED_SAMPLE**2 * squares).sqrt()
    # the samples, divided by their brightness, minus their projection on the span of the samples
    # taken so far
    residual = rows / brightness[:, None].clamp_min(torch.finfo(rows.dtype).tiny)
    taken = []
    while len(taken) < n_components:
        squares = (residual * residual).sum(1)
        best = int(squares.argmax())
        if squares[best] <= _REPEATED_SAMPLE**2:
            break
        taken.append(best)
        direction = residual[best] / squares[best] ** 0.5
        residual = residual - (residual @ direction)[:, None] * direction
    return (rows[taken] @ basis).to(dtype)


def _data(x, n_components, generator, weight):  # (n, m) -> (n_components, m) of norm 1
    """Return samples, drawn at random without replacement and scaled to norm 1, as initial atoms.

    Samples of zeros are left out. No two atoms have the same direction, up to sign, since they
    would get the same updates and stay equal. If there are too few directions, random directions
    complete the atoms. ``weight`` is (n,) or None; with weights each sample is drawn from the
    remaining samples with probabilities in proportion to weights, by the method of [1]_.

    .. [1] P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir", Information
       Processing Letters 97, 2006.
    """
    # two atoms of norm 1 have the same direction, up to sign, if |cosine| is above this number
    same_cosine = 1 - 16 * torch.finfo(x.dtype).eps
    rows = torch.linalg.vector_norm(x, dim=1).nonzero().squeeze(1)
    if weight is None:
        order = torch.randperm(len(rows), generator=generator, device="cpu")
    else:
        # a row waits for a random time of mean 1 / weight, and rows are drawn in order of time
        waiting = torch.empty(len(rows), dtype=torch.float64)
        waiting.exponential_(generator=generator)
        order = (waiting / weight[rows].double().cpu()).argsort()
    rows = rows[order.to(rows.device)]
    atoms = x[:0]
    for block in rows.split(max(2 * int(n_components), 64)):
        if len(atoms) < n_components:
            new = project_atoms(x[block])
            repeats_new = (new @ new.mT).abs().triu(diagonal=1) > same_cosine
            repeats_atom = (new @ atoms.mT).abs() > same_cosine
            new = new[~(repeats_new.any(0) | repeats_atom.any(1))]
            atoms = torch.cat([atoms, new])[:n_components]
    rest = _random(x, n_components - len(atoms), generator)
    return torch.cat([atoms, project_atoms(rest)])


# random directions as initial atoms (n_components, m): normal numbers in the dtype and on the
# device of x (n, m), but drawn on the CPU in float64, so that all dtypes and devices get the same
# numbers
def _random(x, n_components, generator):
    atoms = torch.empty(n_components, x.shape[1], device="cpu", dtype=torch.float64)
    return atoms.normal_(generator=generator).to(x)


def initial_atoms(
    x,
    n_components,
    method,
    generator,
    *,
    weight=None,
):
    """Return the atoms from which training or a search starts, by one of `INITIALIZATIONS`.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms.
    method : {"data", "random", "svd", "vertices"}
        ``"data"``: samples. ``"random"``: random directions. ``"svd"``: the leading right singular
        vectors. ``"vertices"``: nearly pure samples, see `vertices`. If there are too few singular
        vectors or vertices, samples complete the atoms.
    generator : torch.Generator
        Generator of random numbers, on the CPU, so that all devices start from the same atoms.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in draws, in singular vectors and in `vertices`; None is once.
        ``"random"`` does not use it.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm.
    """
    with threads_for(x[:n_components], x):
        if method == "random":
            return _random(x, n_components, generator)
        atoms = x[:0]
        if method == "svd":
            scaled = x if weight is None else x * weight.to(x)[:, None].sqrt()
            atoms = leading_directions(scaled, n_components).to(x)
        elif method == "vertices":
            atoms = vertices(x, min([n_components, *x.shape]), weight)
        rest = _data(x, n_components - len(atoms), generator, weight)
        return torch.cat([atoms, rest])
