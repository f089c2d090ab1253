"""Initial dictionaries: samples, random directions, leading singular vectors, or vertices.

*Vertices* are for samples that mix few non-negative atoms. These samples lie in a cone, whose edges
are the atoms. A vertex is a sample at an edge: a nearly pure sample of one atom. The successive
projection algorithm takes, one by one, the sample farthest from the span of the samples taken
before [1]_. Before that, samples are projected on their leading singular vectors, which removes
most of the noise, and divided by their projection on the mean sample. Then all mixtures lie in the
convex hull of the atoms, whatever their brightness.

.. [1] N. Gillis and S. A. Vavasis, "Fast and robust recursive algorithms for separable nonnegative
   matrix factorization", IEEE TPAMI 36, 2014.
"""

import torch

from skpudle._compilation import threads_for
from skpudle._operators._atoms import project_atoms

# A sample is not taken if its distance from the span of the samples taken is at most this share of
# its norm: it would repeat a combination of these samples.
_REPEATED_SAMPLE = 1e-6

INITIALIZATIONS = "data", "random", "svd", "vertices"


def leading_directions(x, n):  # (n_samples, n_features) -> (at most n, n_features), float64
    """Return the ``n`` leading right singular vectors of ``x``, or fewer if its rank is smaller.

    They come from the Gram matrix of the rows or of the columns, whichever is smaller.
    """
    x, is_wide, eps = x.double(), len(x) < x.shape[1], torch.finfo(x.dtype).eps
    values, vectors = torch.linalg.eigh(x @ x.mT if is_wide else x.mT @ x)
    rank = int((values > values[-1] * x.shape[1] * eps).sum())
    vectors = vectors.flip(1)[:, : min(rank, n)]
    return torch.linalg.qr(x.mT @ vectors).Q.mT if is_wide else vectors.mT


def vertices(x, n_components, weight=None):
    """Return samples at the edges of the cone of all samples, projected to remove noise.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms, at most the number of samples and of features.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts in the subspace, the noise and the mean sample; None is once.

    Returns
    -------
    Tensor of shape (n, n_features)
        Atoms of any norm, up to ``n_components`` of them.
    """
    (n, m), given = x.shape, x.double()
    weight = given.new_ones(n) if weight is None else weight.to(given) / weight.to(given).mean()
    basis = leading_directions(weight[:, None].sqrt() * given, n_components)
    rows = given @ basis.mT
    squares = rows.square().sum(1)
    outside = float(weight @ given.square().sum(1) - weight @ squares)
    noise = n_components * max(outside, 0.0) / max((n - n_components) * (m - n_components), 1)
    # Samples are divided by their brightness, the projection on the mean sample. Without the
    # division bright mixtures would be taken for pure samples: in mixtures whose brightness varies
    # by 60 % the mean angle to the planted atoms is 7 degrees instead of 0.4. Ten variances of the
    # noise are added to the square, so that dim samples, mostly noise, stay short and are not
    # chosen. With 1 or 1000 variances the angle changes by 0.2 degrees.
    along = (rows @ torch.nn.functional.normalize(weight @ rows, dim=0)).square() + 10 * noise
    along = torch.maximum(along, _REPEATED_SAMPLE**2 * squares)
    seen = rows / along.sqrt()[:, None].clamp_min(torch.finfo(rows.dtype).tiny)
    taken = []
    while len(taken) < n_components:  # `seen` is what the span of the taken samples leaves
        squares = (seen * seen).sum(1)
        best = int(squares.argmax())
        if squares[best] <= _REPEATED_SAMPLE**2:
            break
        taken.append(best)
        direction = seen[best] / squares[best] ** 0.5
        seen = seen - (seen @ direction)[:, None] * direction
    return (rows[taken] @ basis).to(x)


def _data(x, n_components, generator, weight):  # (n, m) -> (n_components, m) of norm 1
    """Return samples as atoms: drawn at random, no two of one direction, scaled to norm 1.

    Two atoms of one direction would get the same updates and stay equal. If there are too few
    directions, random ones complete them. With a ``weight`` for each sample, the next sample is
    drawn from the rest with probabilities in proportion to weights, by the method of [1]_.

    .. [1] P. Efraimidis and P. Spirakis, "Weighted random sampling with a reservoir", Information
       Processing Letters 97, 2006.
    """
    same = 1 - 16 * torch.finfo(x.dtype).eps
    rows = torch.linalg.vector_norm(x, dim=1).nonzero().squeeze(1)
    if weight is None:
        order = torch.randperm(len(rows), generator=generator, device="cpu")
    else:
        waiting = torch.empty(len(rows), dtype=torch.float64).exponential_(generator=generator)
        order = (waiting / weight[rows].double().cpu()).argsort()
    rows, atoms = rows[order.to(rows.device)], x[:0]
    for block in rows.split(max(n_components, 1024)):
        if len(atoms) < n_components:
            new = project_atoms(x[block])
            among = (new @ new.mT).abs().triu(diagonal=1)
            known = (new @ atoms.mT).abs()
            new = new[~((among > same).any(0) | (known > same).any(1))]
            atoms = torch.cat([atoms, new])[:n_components]
    return torch.cat([atoms, project_atoms(_random(x, n_components - len(atoms), generator))])


def _random(x, n_components, generator):  # (n, m) -> (n_components, m): normal, in x's dtype
    options = dict(generator=generator, device="cpu", dtype=torch.float64)
    return torch.randn(n_components, x.shape[1], **options).to(x)


def initial_atoms(x, n_components, method, generator, *, weight=None):
    """Return an initial dictionary.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data.
    n_components : int
        Number of atoms.
    method : {"data", "random", "svd", "vertices"}
        Samples, random directions, the leading right singular vectors (completed by samples), or
        the purest samples of mixtures, in their leading subspace (completed by samples).
    generator : torch.Generator
        Random numbers, on the CPU, so that all devices start from the same atoms.
    weight : Tensor of shape (n_samples,), default=None
        How often each sample counts, where samples are drawn, in singular vectors, and in the
        subspace, the noise and the mean sample of ``"vertices"``.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of any norm.
    """
    with threads_for(x[:n_components], x):
        if method == "random":
            return _random(x, n_components, generator)
        found = x[:0]
        if method == "svd":
            scaled = x if weight is None else x * weight.to(x)[:, None].sqrt()
            found = leading_directions(scaled, n_components).to(x)
        elif method == "vertices":
            found = vertices(x, min(n_components, *x.shape), weight)
        return torch.cat([found, _data(x, n_components - len(found), generator, weight)])
