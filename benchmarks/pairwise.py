"""Initial atoms from the data alone: the pairwise spectral initialisation of Arora et al.

Two samples ``u`` and ``v`` that share one atom point at it together. Weight every sample by how it
agrees with both, and take the second moment

    M_uv = mean_i <x_i, u> <x_i, v> x_i x_i^T.

Only samples that use the shared atom have weights that are large and of one sign, so the first
eigenvector of ``M_uv`` is near that atom and its eigenvalue stands alone. A pair that shares no
atom has no such eigenvalue, and a pair that shares two has two. So the ratio of the first two
eigenvalues tells good pairs from bad, without knowing codes, sparsity level or scale.

The theory is for the limit of many samples; four choices adapt it to few:

- *Cumulants instead of moments.* With the covariance S, ``M_uv`` contains
  ``(u^T S v) S + S u v^T S + S v u^T S`` for Gaussian data too, which tells nothing of atoms.
  Without these terms, independent codes with fourth cumulants ``k_j`` leave
  ``sum_j k_j <a_j, u> <a_j, v> a_j a_j^T``. Codes of one sign, or with one sign per sample, depend
  on each other through their mean, which is removed first.
- *No matrices.* ``M_uv`` is applied to a few vectors, as ``X^T (w * (X W))``, in one product for
  all pairs of a round. No matrix of shape (n_features, n_features) is built.
- *A found atom is its own best partner.* Power steps with ``M_aa``, the same operator for
  ``u = v = a``, polish each one.
- *Rounds.* Before the next pairs are drawn, the part that known atoms explain is subtracted from
  the samples, so that pairs meet in missing atoms. Chance alone would take very long to find the
  last ones.
"""

import torch

from skpudle._operators._atoms import project_atoms

PAIRS_PER_ROUND = 128
POOL_SIZE = 4096  # samples to make the pairs of a round from
PARTNERS = 0.02  # share of the pool, best correlated with a sample, to draw its partner from
MIN_RATIO = 2.0  # of the first two eigenvalues of a good pair
BLOCK_STEPS = 3  # start vectors are good, and the gap of a good pair is large
POLISHING_STEPS = 5
SAME_ATOM = 0.9  # polished candidates of a larger coherence are one atom
SAME_ROW = 1 - 1e-4  # samples of a larger coherence have one direction
STALE_ROUNDS = 3
PURSUIT_STEPS = 32


def _normal(shape, like, generator):
    """Draw on the CPU in float64, so that all devices and precisions see the same numbers."""
    drawn = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float64)
    return drawn.to(like.dtype).to(like.device)


def _new_directions(candidates, atoms, max_coherence):  # (k, m), (p, m) -> (at most k, m)
    """Return candidates that are near no atom and no earlier candidate; all have unit norm."""
    among = (candidates @ candidates.mT).abs().triu(diagonal=1)
    known = (candidates @ atoms.mT).abs()
    return candidates[~((among > max_coherence).any(0) | (known > max_coherence).any(1))]


def _without_common_sign(x, generator):  # (n, m) -> (n, m)
    """Remove the mean of the samples, up to their signs, if they have one.

    Positive codes, or codes with one sign per sample, add the same direction to every sample: its
    projections have two modes, or one far from zero. A sparse sum of independent signs has no
    such direction: its kurtosis is 3 or more. ``M_uv`` does not see the sign of a sample.
    """
    direction = _normal(x.shape[1], x, generator)
    for _ in range(20):
        (direction,) = project_atoms(((x @ direction) @ x)[None])
    projection = x @ direction
    variance = projection.square().mean()
    if projection.pow(4).mean() >= 2.5 * variance.square():
        return x
    x = x * projection.sign()[:, None]
    return x - x.mean(0)


def _residual(x, atoms):  # (n, m), (p, m) -> (n, m)
    """Subtract the atoms that matching pursuit finds, down to half the largest correlation."""
    gram = atoms @ atoms.mT
    correlation = x @ atoms.mT
    codes = torch.zeros_like(correlation)
    level = 0.5 * correlation.abs().amax(1, keepdim=True)
    for _ in range(PURSUIT_STEPS):
        best = correlation.abs().argmax(1, keepdim=True)
        value = correlation.gather(1, best)
        value = torch.where(value.abs() > level, value, 0)
        codes.scatter_add_(1, best, value)
        correlation = correlation - value * gram[best.squeeze(1)]
    return x - codes @ atoms


def _draw_pairs(x, atoms, generator):  # (n, m), (p, m) -> two of (n_pairs, m)
    """Pair samples by the agreement of their residuals, and return these in pairs."""
    pool = torch.randperm(len(x), generator=generator, device="cpu")[:POOL_SIZE].to(x.device)
    pool = x[pool]
    residual = _residual(pool, atoms) if len(atoms) else pool
    norms = torch.linalg.vector_norm(pool, dim=1)
    unexplained = torch.linalg.vector_norm(residual, dim=1) / torch.where(norms > 0, norms, 1)
    # The fourth power prefers samples that lack a whole atom to slightly inexact codes.
    chances = unexplained.cpu().double().pow(4) + torch.finfo(torch.float64).tiny
    n_pairs = min(PAIRS_PER_ROUND, len(pool))
    first = torch.multinomial(chances, n_pairs, generator=generator).to(x.device)
    agreement = (residual[first] @ residual.mT).abs()
    agreement.scatter_(1, first[:, None], -1)  # no sample is its own partner
    n_partners = max(1, int(PARTNERS * len(pool)))
    partners = agreement.topk(n_partners, dim=1).indices
    choice = torch.randint(n_partners, (n_pairs, 1), generator=generator, device="cpu").to(x.device)
    second = partners.gather(1, choice).squeeze(1)
    return project_atoms(residual[first]), project_atoms(residual[second])


def _first_eigenvectors(x, u, v, generator):  # (n, m), (b, m), (b, m) -> (b, m), (b,)
    """Return the first eigenvector of each ``M_uv`` and the ratio of its first two eigenvalues.

    Block power iteration on three vectors. The first is the sum of the two samples: shared atoms
    add up in it, so it starts much nearer to them than a random vector.
    """
    n_samples, n_features = x.shape
    n_pairs, width = len(u), min(3, n_features)
    u_scores, v_scores = x @ u.mT, x @ v.mT  # (n, b)
    weights = u_scores * v_scores
    weights -= weights.mean(0)  # the mean of the weights is u^T S v
    u_image, v_image = (u_scores.mT @ x) / n_samples, (v_scores.mT @ x) / n_samples  # S u, S v

    def apply(block):  # (b, k, m) -> (b, k, m)
        scores = (x @ block.reshape(-1, n_features).mT).reshape(n_samples, n_pairs, width)
        image = (scores * weights[:, :, None]).reshape(n_samples, -1).mT @ x / n_samples
        image = image.reshape(block.shape)
        image -= torch.einsum("bkm,bm,bf->bkf", block, u_image, v_image)
        return image - torch.einsum("bkm,bm,bf->bkf", block, v_image, u_image)

    v = v * (u * v).sum(1, keepdim=True).sign()
    image = torch.stack([u + v, u - v, _normal(u.shape, u, generator)], dim=1)[:, :width]
    for _ in range(BLOCK_STEPS):
        block = torch.linalg.qr(image.mT).Q.mT
        image = apply(block)
    projected = block @ image.mT
    values, vectors = torch.linalg.eigh((projected + projected.mT) / 2)
    order = values.abs().argsort(dim=1, descending=True)
    values = values.gather(1, order).abs()
    first = vectors.gather(2, order[:, None, :1].expand(-1, width, 1))
    return project_atoms((first.mT @ image).squeeze(1)), values[:, 0] / values[:, 1]


def _polish(x, atoms):  # (n, m), (k, m) -> (at most k, m)
    """Take power steps ``a <- M_aa a``, along the gradient of the fourth cumulant of ``<x, a>``."""
    for _ in range(POLISHING_STEPS):
        scores = x @ atoms.mT
        weights = scores.pow(3) - 3 * scores.square().mean(0) * scores
        atoms = project_atoms(weights.mT @ x)
    return atoms[atoms.any(dim=1)]  # M_aa vanishes where the data are constant


def _search(x, n_components, max_pairs, generator):  # (n, m) -> (at most n_components, m)
    """Draw pairs, and keep candidates with a large eigenvalue ratio, until atoms are enough."""
    atoms = x[:0]
    stale = 0
    for _ in range(0, max_pairs, PAIRS_PER_ROUND):
        u, v = _draw_pairs(x, atoms, generator)
        candidates, ratios = _first_eigenvectors(x, u, v, generator)
        order = ratios.argsort(descending=True, stable=True)
        candidates = candidates[order][ratios[order] > MIN_RATIO]
        found = _new_directions(_polish(x, candidates), atoms, SAME_ATOM)
        atoms = torch.cat([atoms, found])[:n_components]
        stale = 0 if len(found) else stale + 1
        if len(atoms) == n_components or stale == STALE_ROUNDS:
            break
    return atoms


def fill_up(atoms, x, n_components, generator, *, max_coherence=SAME_ROW):
    """Complete unit-norm atoms by samples in new directions, then by random directions.

    Parameters
    ----------
    atoms : Tensor of shape (n_atoms, n_features)
        Atoms of unit norm.
    x : Tensor of shape (n_samples, n_features)
        Samples.
    n_components : int
        Number of atoms to return.
    generator : torch.Generator
        Random numbers, on the CPU.
    max_coherence : float
        Directions of a larger coherence are the same.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Atoms of unit norm; the given ones come first.
    """
    rows = torch.linalg.vector_norm(x, dim=1).nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator, device="cpu").to(x.device)]
    for block in rows.split(max(n_components, 1024)):
        if len(atoms) < n_components:
            new = _new_directions(project_atoms(x[block]), atoms, max_coherence)
            atoms = torch.cat([atoms, new])[:n_components]
    missing = (n_components - len(atoms), x.shape[1])
    return torch.cat([atoms, project_atoms(_normal(missing, x, generator))])


@torch.no_grad()
def pairwise_atoms(x, n_components, *, generator, max_pairs=None, max_samples=65_536):
    """Estimate atoms from pairs of samples that share one.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Data, finite and in float32 or float64, on any device. It need not be centred.
    n_components : int
        Number of atoms.
    generator : torch.Generator
        Random numbers, on the CPU, so that every device draws the same pairs.
    max_pairs : int, default=None
        Largest number of pairs; ``8 * n_components + 1024`` if None. The search ends much earlier
        on data with ``n_components`` atoms.
    max_samples : int, default=65536
        Largest number of samples to use; from more they are drawn at random.

    Returns
    -------
    Tensor of shape (n_components, n_features)
        Unit-norm atoms, in the order in which they were found. If the pairs show fewer than
        `n_components`, distinct samples follow, then random directions. Samples lean to the
        positive side of an atom, so that it suits positive codes.

    Raises
    ------
    ValueError
        If `x` is not two-dimensional or `n_components` is not positive.

    Notes
    -----
    The atoms are the same for ``c * x``. A round of 128 pairs costs about as much as 3000
    products of `x` and a vector.

    The pairs need samples in which an atom stands out. Fourth moments take some hundred uses of
    each atom, and more where samples use more atoms than the square root of the number of features.
    On other data, such as patches of natural images, few pairs pass and nearly all atoms are
    samples.

    References
    ----------
    .. [1] S. Arora, R. Ge, T. Ma and A. Moitra, "Simple, efficient, and neural algorithms for
       sparse coding", COLT 2015, Algorithm 3 (pairwise initialisation).
    """
    if x.ndim != 2:
        raise ValueError(
            f"Expected a tensor of shape (n_samples, n_features), got shape {tuple(x.shape)}. "
            "Flatten each sample into one row."
        )
    if n_components < 1:
        raise ValueError(f"n_components is {n_components}. Pass at least 1.")
    if len(x) > max_samples:
        x = x[torch.randperm(len(x), generator=generator, device="cpu")[:max_samples].to(x.device)]
    largest = x.abs().amax() if x.numel() else x.new_zeros(())
    x = x / torch.where(largest > 0, largest, 1)  # fourth powers must not under- or overflow
    atoms = x[:0]
    if len(x) > 1 and x.shape[1] > 1 and largest > 0:
        x = x / x.square().sum(1).mean().sqrt()
        if max_pairs is None:
            max_pairs = 8 * n_components + 1024
        atoms = _search(_without_common_sign(x, generator), n_components, max_pairs, generator)
        leaning = (x @ atoms.mT).pow(3).sum(0)
        atoms = torch.where(leaning < 0, -1, 1)[:, None] * atoms
    return fill_up(atoms, x, n_components, generator)
