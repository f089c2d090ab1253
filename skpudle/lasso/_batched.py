r"""The active set method behind `skpudle.lasso`, for a batch of samples in torch.

The entry point is `solve`. On the CPU `solve` hands the samples to the compiled loops of
`skpudle.lasso._compiled`, which apply the same method to one sample at a time. On other devices the
functions of this file solve for all samples of a batch together.

A sample ``x`` with the codes ``z`` has a *support* S, the atoms with nonzero codes; the signs
``theta`` of these codes, 1 or -1; and correlations ``c = D^T (x - D z)`` of the residual with all
atoms, the columns of D. ``G_SS`` is the Gram matrix of the support's atoms. A *round*

1. admits atoms with ``|c_j|`` above the penalty to the support, each with the sign of ``c_j``;
2. takes the Newton step ``G_SS^{-1} slope``, where ``slope = c_S - penalty * theta`` is the
   residual of the optimality condition. The step ends at the first code that reaches zero, and this
   code leaves the support. Newton steps repeat until a whole step keeps all signs;
3. computes the correlations anew.

Every round lowers the objective and ends at its minimum for one support with its signs. So no
support returns with the same signs, and the number of rounds is finite: about 5 in practice, for
supports of 15 atoms. The last rounds *polish* the codes: the support hardly ever changes, and
Newton steps remove what rounding errors have left of the slope.

In this file n is the number of samples in a batch, and arrays of the shape (n, k) have a row for
each sample and an entry for each atom of its support. Supports are padded to one size k: the
*padding* of ``support`` holds the number of an additional zero atom, and that of ``theta`` is 0.

A GPU works ahead of the host until the host needs a number from it, such as the number of solved
samples; the host then has to wait. So the host counts solved samples only every few rounds, and
solved samples stay as they are until the next count. A sample whose support still changes after two
Newton steps admits no atoms in the next round.
"""

from bisect import bisect_right
from functools import partial

import torch

from skpudle._compilation import blocks_of_rows, threads_for
from skpudle.lasso import _compiled

# Largest number of entries in an array of a batch, such as the codes of the samples or the Gram
# matrices of their supports, for each kind of device: enough work to keep the device busy, in
# little memory.
BLOCK_ENTRIES = {"cpu": 2**20, "cuda": 2**24}

# `parts` pads supports to a multiple of this number of atoms, so that samples whose supports differ
# little in size come into one batch.
_SUPPORT_STEP = 8


def supports_of(codes, width):  # (n, p), int -> (n, width), padded by p
    """Return the atoms with nonzero codes of each row, padded to ``width``, for a batch of `parts`.

    ``codes`` are (n, p), and no row may have more than ``width`` nonzero codes. The result has the
    numbers of the atoms in ascending order, and then the number ``p``, which no atom has.
    """
    active = codes.abs() > 0  # not `codes != 0`, which is True for NaN
    # inactive atoms go to the column `width`, which is cut off below
    columns = (active.cumsum(1) - 1).masked_fill_(~active, width)
    supports = columns.new_full((len(codes), width + 1), codes.shape[1])
    atoms = torch.arange(codes.shape[1], device=codes.device).expand_as(columns)
    return supports.scatter_(1, columns, atoms)[:, :width]


def parts(sizes, n_features, device):  # yields first, last, width
    """Cut samples into batches with supports of similar size, which need little padding and memory.

    ``sizes`` are the numbers of atoms in the samples' supports, a list in ascending order. A batch
    has the samples ``first:last`` in this order, and each of their supports has at most ``width``
    atoms. Samples with empty supports are in no batch.
    """
    first = bisect_right(sizes, 0)
    entries = BLOCK_ENTRIES.get(device.type, 2**20)
    while first < len(sizes):
        width = -(-sizes[first] // _SUPPORT_STEP) * _SUPPORT_STEP
        n_rows = max(1, entries // (width * max(width, n_features)))
        last = min(first + n_rows, bisect_right(sizes, width))
        yield first, last, width
        first = last


# After every LOOK rounds `_solve_penalty` counts the solved samples, and drops them and needless
# padding from the batch. Most samples are solved after about 5 rounds. With 6 instead of 4 more
# padding accumulates, and on a CPU the Cholesky factors of large supports take twice the time.
LOOK = 4


def _gather_grams(atoms, gram, support, mask):  # -> (n, k, k)
    """Return the Gram matrix of the atoms of each sample's ``support`` (n, k), for `_minimise`.

    The entries are copied from ``gram``, the Gram matrix of all atoms. If ``gram`` is None, they
    are computed from the atoms, multiplied by ``mask`` (n, n_features) unless it is None. Entries
    for padding may have any value.
    """
    if gram is None:
        n, k = support.shape
        grams = atoms.new_empty(n, k, k)
        for rows in blocks_of_rows(n, k * atoms.shape[1], 2**24):
            chosen = atoms[support[rows]]
            known = chosen if mask is None else chosen * mask[rows, None]
            torch.matmul(known, known.mT, out=grams[rows])
        return grams
    support = support.clamp_max(len(gram) - 1)
    return gram[support[:, :, None], support[:, None, :]]


def _candidates(c, least, positive, padding):  # c: (n, p) -> (n, CANDIDATES), (n,)
    """Choose the atoms that each sample admits to its support in a round, `CANDIDATES` at most.

    The constants are those of `skpudle.lasso._compiled`. ``c`` (n, p) are the correlations of the
    residuals with ``p`` atoms, a multiple of `RUN`. A candidate has the largest correlation, in
    modulus unless codes are ``positive``, in its run of `RUN` neighbouring atoms. This correlation
    is above ``least`` (n,), and at least `LEAST_SHARE` times the sample's largest. Return the
    numbers of the candidates, filled up with the number ``padding``, and the largest correlation of
    each sample.
    """
    sizes = c if positive else c.abs()
    sizes = sizes.unflatten(1, (-1, _compiled.RUN))  # (n, n_runs, RUN)
    peaks = sizes.amax(2)
    best = peaks.amax(1)
    n_candidates = min(_compiled.CANDIDATES, peaks.shape[1])
    runs = peaks.topk(n_candidates, dim=1).indices.sort(dim=1).values
    peaks_of_runs = peaks.gather(1, runs)
    in_runs = sizes.gather(1, runs[:, :, None].expand(-1, -1, _compiled.RUN))
    # `argmax` of zeros and ones finds the first 1, which is the first of the atoms in a run whose
    # correlations differ from the largest one by no more than rounding (`TIE`)
    is_tied = in_runs >= (1 - _compiled.TIE) * peaks_of_runs[:, :, None]
    offsets = is_tied.to(torch.int8).argmax(2)
    is_large = peaks_of_runs >= _compiled.LEAST_SHARE * best[:, None]
    accepted = is_large & (peaks_of_runs > least[:, None])
    return (runs * _compiled.RUN + offsets).masked_fill(~accepted, padding), best


def _factor(grams, theta):  # (n, k, k), (n, k) -> (n, k, k), (n, k) bool
    """Return the Cholesky factors of the supports' Gram matrices ``grams``, for a Newton step.

    Atoms whose sign ``theta`` is 0, such as padding, get the row and column of a unit matrix. Also
    return True for each atom that depends linearly on the atoms before it in the support, which a
    small pivot shows (`DEPENDENT`), and for all atoms of a sample whose factorisation failed.
    """
    active = theta != 0
    matrix = grams * (active[:, :, None] & active[:, None, :])
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    squared_norms = diagonal.clone()
    rounding = len(theta.T) * torch.finfo(grams.dtype).eps
    # the Cholesky factorisation of linearly dependent atoms fails unless the diagonal is a little
    # larger, here by a few rounding errors
    diagonal.mul_(1 + 10 * rounding).add_(~active)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    dependent = (pivots <= _compiled.DEPENDENT * squared_norms) | (failed > 0)[:, None]
    return factor, active & dependent


def _minimise(
    grams,
    slope,
    z,
    theta,
    fresh,
    done,
):  # -> (n,) bool
    """Minimise the objective for fixed supports and signs, by two Newton steps, in place.

    A code that reaches zero leaves its support: its ``z`` and ``theta`` become 0.

    Parameters
    ----------
    grams : Tensor of shape (n, k, k)
        Gram matrices of the supports.
    slope, z, theta : Tensor of shape (n, k)
        ``z`` are the codes of the supports' atoms, and ``theta`` their signs, 1 or -1, or 0 for
        padding. ``slope`` are the correlations of these atoms with the residual, less the penalty
        times ``theta``: 0 at the minimum. ``slope`` is not changed.
    fresh : Tensor of shape (n, k)
        True for atoms that entered in this round, with a code of zero. In the first step all
        fresh atoms but the first of a sample leave again if they depend on the support.
    done : Tensor of shape (n,)
        True for samples to leave as they are.

    Returns
    -------
    Tensor of shape (n,)
        True for samples at the minimum. The other samples go on from their codes in the next call.
    """
    # Two steps bring most samples to the minimum, and the caller calls again for the other samples.
    # A third step would factor the matrices of all samples for the sake of a few.
    for step_number in range(2):
        factor, dependent = _factor(grams, theta)
        stays = done
        # in the first step a sample with dependent atoms only drops them, and does not move
        if step_number == 0:
            dependent &= fresh & (fresh.cumsum(1) > 1)
            theta.masked_fill_(dependent, 0)
            stays = done | dependent.any(1)
        slope = slope * (theta != 0)
        step = torch.cholesky_solve(slope[:, :, None], factor)[:, :, 0]
        # the fraction of the step at which each code reaches zero; 2 if the code keeps its sign
        fraction = torch.where(theta * step < 0, z / -step, 0.0)
        fraction.masked_fill_((theta * (z + step) > 0) | (theta == 0), 2)
        length = fraction.amin(1, keepdim=True).clamp_max(1)
        length.masked_fill_(stays[:, None], 0)
        stops = (fraction <= length) & ~stays[:, None]
        # `where`, because codes of samples that stay must not change: their length is 0, but their
        # step may be NaN, and 0 times NaN is NaN
        moved = torch.where(length > 0, z + length * step, z)
        z.copy_(moved.masked_fill_(stops, 0))
        theta.masked_fill_(stops, 0)
        # after the fraction `length` of the step the slope has lost this part; 0 instead of NaN
        fall = length * (grams @ step[:, :, None])[:, :, 0]
        slope = slope - torch.where(length > 0, fall, 0.0)
        done = done | ~(stays | stops.any(1))
    return done


class _Batch:
    """The state of the active set method for the samples that are not solved yet.

    `_solve_penalty` makes one, and calls its methods in each round. ``atoms`` end with zero atoms,
    which ``gram``, the Gram matrix of the other atoms or None, leaves out. ``x`` and ``mask`` are
    (n, n_features), and ``mask`` may be None. ``penalty`` is a single number.

    ``support`` (n, k) are the numbers of the supports' atoms, ``z`` (n, k) their codes and
    ``theta`` (n, k) the signs of these codes; `_minimise` explains ``slope`` and ``fresh``, (n, k).
    ``rows`` are the numbers of the samples in the data. ``scale`` is the largest correlation of
    each sample so far, and ``polished`` the number of rounds in which the sample's codes met the
    optimality condition nearly (`NEARLY`). `shrink` relies on two rules: attributes without an
    underscore have one row per sample, and attributes with two axes, except ``x`` and ``mask``, are
    (n, k).
    """

    def __init__(
        self,
        atoms,
        gram,
        x,
        mask,
        penalty,
        positive,
    ):
        self._atoms = atoms
        self._gram = gram
        self._penalty = penalty
        self._positive = positive
        self._squared_norms = atoms.square().sum(1)
        self.x = x
        self.mask = mask
        self.rows = torch.arange(len(x), device=x.device)
        self.support = self.rows.new_zeros(len(x), 0)
        self.z = self.theta = self.slope = x.new_zeros(len(x), 0)
        self.fresh = self.support.bool()
        self.scale = x.new_zeros(len(x))
        self.polished = torch.zeros_like(self.rows)
        # two marks of samples, True or False: `settled` samples are at the minimum for their
        # support and signs, and may admit atoms; `solved` samples are at the minimum of the lasso
        self.settled = torch.ones_like(self.rows, dtype=torch.bool)
        self.solved = torch.zeros_like(self.settled)

    def codes(self):  # -> (n, n_components), with zeros outside of the supports
        codes = self.z.new_zeros(len(self.z), len(self._atoms))
        return codes.scatter_(1, self.support, self.z)

    def _hide(self, data):  # -> the same shape, with zeros where entries are missing
        return data if self.mask is None else data * self.mask

    def look_for_atoms(self):
        """Begin a round: compute correlations, mark solved samples, and admit atoms to supports.

        Only settled samples admit atoms. Arrays of the shape (n, k) get columns for new atoms; the
        new entries of samples that admit fewer atoms are padding.
        """
        penalty = self._penalty
        padding = len(self._atoms) - 1
        residual = self.x - self._hide(self.codes() @ self._atoms)
        c = self._hide(residual) @ self._atoms.mT
        self.slope = c.gather(1, self.support) - penalty * self.theta
        c.scatter_(1, self.support, 0)  # atoms of the support do not enter again

        self.scale = torch.maximum(self.scale, c.abs().amax(1))
        size = self.scale + (self.z.abs() * self._squared_norms[self.support]).sum(1)
        margin = _compiled.RESOLUTION * penalty + _compiled.ROUNDING * size
        # Without a penalty, correlations with atoms of the support should be 0; their largest
        # modulus, `rounding`, is a rounding error. Atoms outside of the support enter only with a
        # larger correlation: the step of an atom that a rounding error admits may have no bound.
        rounding = torch.cat([torch.zeros_like(c[:, :1]), self.slope.abs()], 1).amax(1)
        least = penalty + margin if penalty > 0 else torch.maximum(margin, rounding)
        least = least.where(self.settled & ~self.solved, torch.inf)
        new, best = _candidates(c, least, self._positive, padding)
        # `miss` is by how much codes miss the optimality condition. Rounding errors may keep codes
        # from ever meeting it. So codes that nearly meet it get only `POLISHES` more rounds.
        miss = torch.maximum(best - penalty, rounding)
        if penalty > 0:
            nearly = miss <= _compiled.NEARLY * penalty
        else:
            nearly = miss <= 0.01 * _compiled.NEARLY * self.scale
            nearly |= self.settled & (best <= rounding)
        self.polished = self.polished + nearly
        goes_on = (miss > margin) & (self.polished <= _compiled.POLISHES)
        self.solved = self.solved | ~goes_on

        new = new.masked_fill(self.solved[:, None], padding)
        c = c.gather(1, new)
        theta = c.sign()
        self.fresh = torch.cat([torch.zeros_like(self.fresh), c != 0], 1)
        self.support = torch.cat([self.support, new], 1)
        self.theta = torch.cat([self.theta, theta], 1)
        self.z = torch.cat([self.z, torch.zeros_like(c)], 1)
        self.slope = torch.cat([self.slope, c - penalty * theta], 1)

    def shrink(self):  # -> int
        """Drop solved samples and needless padding; return the number of samples remaining.

        The caller has to save the codes of solved samples first.
        """
        used = self.theta != 0
        sizes = used.sum(1).masked_fill(self.solved, 0)
        n_remaining, width = torch.stack([(~self.solved).sum(), sizes.amax()]).tolist()
        # stable sorts bring unsolved samples, and used entries of supports, to the front in order
        remaining = self.solved.to(torch.int8).argsort(stable=True)[:n_remaining]
        order = (~used[remaining]).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        for name, value in vars(self).items():
            if name.startswith("_") or value is None:
                continue
            value = value[remaining]
            # columns of `x` and `mask` are features; columns of arrays (n, k) may be padding
            if value.ndim == 2 and name not in {"x", "mask"}:
                value = value.gather(1, order)
            setattr(self, name, value)
        return n_remaining

    def minimise(self):
        """End a round: minimise for the present supports, and drop atoms that leave the supports.

        Samples that reach the minimum for their support and signs become settled.
        """
        grams = _gather_grams(self._atoms, self._gram, self.support, self.mask)
        self.settled = _minimise(
            grams, self.slope, self.z, self.theta, self.fresh, self.solved
        )
        self.support = self.support.masked_fill(self.theta == 0, len(self._atoms) - 1)


def _solve_penalty(
    atoms,
    gram,
    x,
    mask,
    penalty,
    positive,
    max_iter,
    codes,
):
    """Set ``codes`` (n, n_components) to the lasso's codes at one penalty, for `solve_alike`.

    The other arguments are those of `solve_alike`. A sample that is not solved after ``max_iter``
    rounds gets the codes that it has then.
    """
    n_components = len(atoms)
    # `_candidates` needs whole runs of `RUN` atoms, so zero atoms are appended, at least one. The
    # last of them has the number `padding`, which fills up supports.
    padding = -(-(n_components + 1) // _compiled.RUN) * _compiled.RUN - 1
    atoms = torch.cat(
        [atoms, atoms.new_zeros(padding + 1 - n_components, atoms.shape[1])]
    )
    batch = _Batch(atoms, gram, x, mask, penalty, positive)
    for n_rounds in range(max_iter):
        batch.look_for_atoms()
        if n_rounds % LOOK == LOOK - 1:
            codes[batch.rows] = batch.codes()[:, :n_components]
            if not batch.shrink():
                return
        batch.minimise()
    codes[batch.rows] = batch.codes()[:, :n_components]


def _refit(atoms, x, codes, mask=None):
    """Remove the bias of the lasso's codes: return least squares codes on the same supports.

    Codes move straight towards least squares. A code that reaches zero on the way leaves the
    support, and the remaining codes go on from there. So no code changes its sign.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, in float64.
    x : Tensor of shape (n_samples, n_features)
        Data, in float64; 0 where missing.
    codes : Tensor of shape (n_samples, n_components)
        Codes; the atoms of each support are linearly independent.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        The least squares codes.
    """
    n_components, n_features = atoms.shape
    atoms = torch.cat([atoms, atoms.new_zeros(1, n_features)])
    sizes, order = (codes != 0).sum(1).sort(stable=True)
    refitted = torch.zeros_like(codes)
    for first, last, width in parts(sizes.tolist(), n_features, codes.device):
        rows = order[first:last]
        support = supports_of(codes[rows], width)
        padded = torch.cat([codes[rows], codes.new_zeros(len(rows), 1)], 1)
        z = padded.gather(1, support)
        chosen = known = atoms[support]
        if mask is not None:
            known = chosen * mask[rows, None]
        grams = known @ chosen.mT
        theta = z.sign()
        fresh = torch.zeros_like(theta, dtype=torch.bool)
        done = torch.zeros_like(rows).bool()
        while not done.all():
            residual = x[rows] - (z[:, None] @ chosen)[:, 0]
            slope = (known @ residual[:, :, None])[:, :, 0]
            done = _minimise(grams, slope, z, theta, fresh, done)
        # padding has a number that no column of `codes` has; its code, 0, is added to the last
        # column
        support = support.clamp_max(n_components - 1)
        refitted[rows] = refitted[rows].scatter_add(1, support, z)
    return refitted


def lasso_gaps(
    atoms,
    x,
    codes,
    positive,
    mask=None,
):  # codes (n, n_components) -> (n,)
    """Certify codes of the lasso with the penalty 1: return their relative duality gaps (n,).

    A gap is a bound on how far the objective is above its minimum, divided by the objective of zero
    codes; `skpudle.lasso.duality_gap` calls this function. For another penalty pass atoms divided
    by the penalty, and codes multiplied by the penalty. ``atoms`` are (n_components, n_features).
    ``x`` (n, n_features) is 0 where ``mask`` is 0; ``mask`` has the shape of ``x``, or is None.
    With ``positive`` negative codes get an infinite gap.
    """
    residual = x - codes @ atoms
    residual = residual if mask is None else residual * mask
    least, largest = (residual @ atoms.mT).aminmax(dim=1)
    if not positive:
        largest = torch.maximum(largest, -least)
    product = (x * residual).sum(1)
    square = residual.square().sum(1)
    # of the multiples of the residual that are feasible for the dual problem, the one with the
    # largest lower bound
    largest_multiple = torch.where(largest > 0, 1 / largest, torch.inf)
    multiple = torch.minimum(product / square, largest_multiple)
    multiple = multiple.clamp_min(0).nan_to_num()  # a residual of zero gives 0 / 0
    gap = square / 2 + codes.abs().sum(1) - multiple * (product - multiple * square / 2)
    if positive:
        gap = gap.masked_fill((codes < 0).any(1), torch.inf)
    at_zero = x.square().sum(1) / 2  # the objective of zero codes
    return torch.where((at_zero == 0) & (gap == 0), 0.0, gap / at_zero).clamp_min(0)


def solve_alike(
    atoms,
    gram,
    x,
    mask,
    penalties,
    positive,
    max_iter,
    out,
    gaps,
):
    """Solve the lasso in torch; `solve` calls this function for tensors that are not on the CPU.

    The arguments before ``out`` are those that `solve` describes, but either ``gram`` or ``mask``
    is None, or both. ``out`` (1 or 2, n_penalties, n_samples, n_components) gets the lasso's codes
    in ``out[0]``, and least squares codes on their supports in ``out[1]``, if it exists. ``gaps``
    (n_samples,) gets the relative duality gaps of the lasso's codes at the last penalty; it may be
    None.
    """
    for codes, penalty in zip(out[0], penalties, strict=True):
        _solve_penalty(atoms, gram, x, mask, penalty, positive, max_iter, codes)
    if gaps is not None:
        gaps.copy_(lasso_gaps(atoms / penalty, x, codes * penalty, positive, mask))
    if len(out) > 1:
        torch.stack([_refit(atoms, x, codes, mask) for codes in out[0]], out=out[1])


def solve(
    atoms, gram, x, *, penalties, positive, max_iter=_compiled.MOST_ROUNDS, mask=None, refit=False,
    out=None, gaps=None,
):  # fmt: skip
    """Solve the lasso for all rows of ``x`` and each penalty, by the active set method.

    Loops that numba has compiled solve on the CPU, and torch solves batches on other devices.
    `solve_lasso`, `lasso_path`, `solve_nnls` and `lasso_gradient` check and prepare the arguments.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, no two of them parallel, in float64.
    gram : Tensor of shape (n_components, n_components) or None
        Products of the atoms with each other; None to compute products for each support instead.
    x : Tensor of shape (n_samples, n_features)
        Data, in float64, times the mask.
    penalties : sequence of float
        Penalties in falling order, positive; the last may be 0 for non-negative codes.
    positive : bool
        Whether codes are restricted to non-negative values.
    max_iter : int, default=1000
        Largest number of rounds for a sample at one penalty.
    mask : Tensor of shape (n_samples, n_features), default=None
        1 for known entries, 0 for missing ones; or weights, which multiply the residual. The solver
        uses the Gram matrix for rows whose mask is 1 everywhere, and not for other rows.
    refit : bool, default=False
        Whether to compute also the least squares codes on the supports of the lasso's codes. With
        ``out`` the length of its first axis decides instead.
    out : Tensor of shape (1 + refit, n_penalties, n_samples, n_components), default=None
        Memory for the codes, in float64; by default new memory.
    gaps : Tensor of shape (n_samples,), default=None
        Memory for the relative duality gaps of the lasso's codes at the last penalty, which must
        then be positive. None: no gaps are computed.

    Returns
    -------
    Tensor of shape (1 + refit, n_penalties, n_samples, n_components)
        Codes of the lasso at index 0 of the first axis, and of least squares at index 1. The result
        is ``out`` unless ``out`` is None.
    """
    if out is None:
        out = x.new_empty(1 + refit, len(penalties), len(x), len(atoms))
    on_host = x.device.type == "cpu"
    solve_on_device = partial(
        _compiled.solve_alike if on_host else solve_alike,
        atoms,
        penalties=penalties,
        positive=positive,
        max_iter=max_iter,
    )
    # The compiled loops read ``D^T x`` from ``out[0, -1]``, and later write codes there. The last
    # bits of a product depend on its number of rows. So one product serves all rows, although rows
    # with missing entries do not need it: masks of some rows then change no codes of other rows.
    if on_host and gram is not None and out.numel():
        with threads_for(atoms, x):
            torch.mm(x, atoms.mT, out=out[0, -1])
    if mask is None and out.numel():
        solve_on_device(gram, x, None, out=out, gaps=gaps)
    elif out.numel():
        complete = (mask == 1).all(1)
        for is_complete in (True, False):
            rows = (complete == is_complete).nonzero().squeeze(1)
            if len(rows):
                products = gram if is_complete else None
                codes = out[:, :, rows]
                gaps_of_rows = None if gaps is None else gaps[rows]
                solve_on_device(
                    products,
                    x[rows],
                    mask[rows] if products is None else None,
                    out=codes,
                    gaps=gaps_of_rows,
                )
                out[:, :, rows] = codes
                if gaps is not None:
                    gaps[rows] = gaps_of_rows
    return out
