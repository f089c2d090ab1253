r"""The active set method behind `skpudle.lasso`, for a batch of samples in torch.

A sample ``x`` has a support S, signs ``theta`` and correlations ``c = D^T (x - D z)``. A round

1. lets atoms in whose ``|c_j|`` exceeds the penalty, each with the sign of ``c_j``;
2. takes the Newton step ``G_SS^{-1} slope``, ``slope = c_S - penalty * theta``, up to the first
   code that reaches zero, leaves that code out, and repeats until a whole step keeps all signs;
3. computes the correlations anew.

Every round lowers the objective and ends at its minimum for a support and signs, so none of these
returns and the number of rounds is finite; in practice it is some 5 for supports of 15. The last
Newton step is the polish: on their support the codes are exact up to rounding.

Here supports are padded to one size. An empty place holds the index of an additional zero atom and
has ``theta = 0``. Samples leave the batch once they are solved.
`skpudle.lasso._compiled` is the same method for one sample at a time.
"""

import torch

# A round looks at the largest correlation in each run of so many atoms: one pass finds several
# candidates, and neighbours, often alike, do not crowd in together.
RUN = 32
CANDIDATES = 8
# Only candidates nearly as violating as the best: the others may be explained by it.
SHARE = 0.8
# An atom of which the others leave less than this share of its squared norm depends on them. It
# enters alone: its step runs along a direction that changes nothing but the penalty.
DEPENDENT = 1e-12
# Atoms exceed the penalty if they do by this share of it, and by this share of the sum of the
# moduli of the terms of c_j (rounding).
RESOLUTION = 1e-12
ROUNDING = 1e-15
# The first of the candidates of a run that are equal up to this share of it, so that codes do not
# depend on how rounding breaks ties.
TIE = 1e-10
# What is off by less than this share of the penalty is polished, this many times at most.
NEARLY = 1e-9
POLISHES = 4

# Added to the diagonal of G_SS, in units of its rounding, so that dependent atoms have a factor.
_RIDGE = 10


def _scatter(support, z, n_components):  # (n, k), (n, k) -> (n, n_components)
    return z.new_zeros(len(z), n_components).scatter_(1, support, z)


def _gather_inner(atoms, gram, support):  # -> (n, k, k), anything at empty places
    if gram is None:
        members = atoms[support]
        return members @ members.mT
    support = support.clamp_max(len(gram) - 1)
    return gram[support[:, :, None], support[:, None, :]]


def _candidates(c, least, positive, none):  # c: (n, p) -> (n, CANDIDATES), (n,)
    """Return atoms with correlations above ``least``, or ``none``; and the largest correlation."""
    excess = c if positive else c.abs()
    excess = excess.unflatten(1, (-1, RUN))  # (n, n_runs, RUN)
    peaks = excess.amax(2)
    best = peaks.amax(1)
    runs = peaks.topk(min(CANDIDATES, peaks.shape[1]), dim=1).indices.sort(dim=1).values
    values = peaks.gather(1, runs)
    in_runs = excess.gather(1, runs[:, :, None].expand(-1, -1, RUN))
    # argmax of a boolean tensor is its first True
    offsets = (in_runs >= (1 - TIE) * values[:, :, None]).to(torch.int8).argmax(2)
    accepted = (values > least[:, None]) & (values >= SHARE * best[:, None])
    return (runs * RUN + offsets).masked_fill(~accepted, none), best


def _factor(inner, theta):
    """Return Cholesky factors of ``inner`` on the support, and which of their pivots are small."""
    active = theta != 0
    matrix = inner * (active[:, :, None] & active[:, None, :])
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    scale = diagonal.clone()
    rounding = len(theta.T) * torch.finfo(inner.dtype).eps
    diagonal.mul_(1 + _RIDGE * rounding).add_(~active)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    return factor, active & ((pivots <= DEPENDENT * scale) | (failed > 0)[:, None])


def _reach(z, theta, step):
    """Return the share of the step after which a code has lost its sign, 2 for never."""
    share = torch.where(theta * step < 0, z / -step, torch.zeros_like(z))
    return share.masked_fill((theta * (z + step) > 0) | (theta == 0), 2)


def _minimise(inner, slope, z, theta, fresh):
    """Minimise over supports and signs in place: ``z`` and ``theta`` are set to 0 where left out.

    Parameters
    ----------
    inner : Tensor of shape (n, k, k)
        Gram matrices of the supports.
    slope, z, theta : Tensor of shape (n, k)
        What is left of the optimality condition, codes and signs.
    fresh : Tensor of shape (n, k)
        Which places have just been filled, with a code of zero.
    """
    factor, dependent = _factor(inner, theta)
    dependent &= fresh & (fresh.cumsum(1) > 1)
    if dependent.any():
        theta[dependent] = 0
        factor, _ = _factor(inner, theta)
    rows, z_rows, theta_rows = torch.arange(len(z), device=z.device), z, theta
    while True:
        slope = slope * (theta_rows != 0)
        step = torch.cholesky_solve(slope[:, :, None], factor)
        share = _reach(z_rows, theta_rows, step[:, :, 0])
        length = share.amin(1, keepdim=True).clamp_max(1)
        stops = share <= length
        z_rows = (z_rows + length * step[:, :, 0]).masked_fill(stops, 0)
        theta_rows = theta_rows.masked_fill(stops, 0)
        z[rows], theta[rows] = z_rows, theta_rows
        left = stops.any(1).nonzero().squeeze(1)
        if len(left) == 0:
            return
        slope = (slope - length * (inner @ step)[:, :, 0])[left]
        rows, inner, z_rows, theta_rows = (t[left] for t in (rows, inner, z_rows, theta_rows))
        factor, _ = _factor(inner, theta_rows)


def solve(atoms, gram, x, *, penalty, positive, max_iter):
    """Return lasso codes of the rows of ``x``.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, no two of them parallel, in float64.
    gram : Tensor of shape (n_components, n_components) or None
        Their Gram matrix, if it is worth its price.
    x : Tensor of shape (n_samples, n_features)
        Data, in float64.
    penalty : float
        The penalty, positive.
    positive : bool
        Whether codes are restricted to non-negative values.
    max_iter : int
        Largest number of rounds for a sample.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        Codes.
    """
    n_components = len(atoms)
    none = -(-(n_components + 1) // RUN) * RUN - 1  # the last of the zero atoms that fill a run
    atoms = torch.cat([atoms, atoms.new_zeros(none + 1 - n_components, atoms.shape[1])])
    squared_norms = atoms.square().sum(1)

    codes = x.new_zeros(len(x), n_components)
    rows = torch.arange(len(x), device=x.device)  # not solved yet
    support, polished = rows.new_zeros(len(x), 0), torch.zeros_like(rows)
    z, theta = x.new_zeros(len(x), 0), x.new_zeros(len(x), 0)
    scale = x.new_zeros(len(x))
    for _ in range(max_iter):
        dense = _scatter(support, z, none + 1)
        c = (x - dense @ atoms) @ atoms.mT
        slope = c.gather(1, support) - penalty * theta
        c.scatter_(1, support, 0)

        scale = torch.maximum(scale, c.abs().amax(1))
        slack = RESOLUTION * penalty + ROUNDING * (
            scale + (z.abs() * squared_norms[support]).sum(1)
        )
        fresh, best = _candidates(c, penalty + slack, positive, none)
        off = torch.cat([(best - penalty)[:, None], slope.abs()], 1).amax(1)
        polished = polished + (off <= NEARLY * penalty)
        is_open = (off > slack) & (polished <= POLISHES)
        if not is_open.all():
            codes[rows[~is_open]] = dense[~is_open, :n_components]
            x, rows, support, polished, z, theta, scale, c, slope, fresh = (
                t[is_open] for t in (x, rows, support, polished, z, theta, scale, c, slope, fresh)
            )
        if len(rows) == 0:
            return codes

        found = c.gather(1, fresh)
        n_old = support.shape[1]
        support = torch.cat([support, fresh], 1)
        theta = torch.cat([theta, found.sign()], 1)
        z = torch.cat([z, torch.zeros_like(found)], 1)
        slope = torch.cat([slope, found - penalty * found.sign()], 1)
        empty = theta == 0
        order = empty.to(torch.int8).argsort(dim=1, stable=True)
        order = order[:, : int((~empty).sum(1).max())]
        support, theta, z, slope = (t.gather(1, order) for t in (support, theta, z, slope))
        _minimise(_gather_inner(atoms, gram, support), slope, z, theta, order >= n_old)
        support = support.masked_fill(theta == 0, none)
    codes[rows] = _scatter(support, z, none + 1)[:, :n_components]
    return codes
