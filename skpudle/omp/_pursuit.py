"""Orthogonal matching pursuit in torch, and the solver for a device; see `skpudle.omp`."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from skpudle._compilation import entries_of_block, threads_for
from skpudle._precision import check_tensors
from skpudle.omp._compiled import solve as solve_compiled

# Entries of the correlations, and of the directions, of a block of rows in torch.
_BLOCK_ENTRIES = {"cpu": 2**19, "cuda": 2**24}
_DIRECTION_ENTRIES = {"cpu": 2**22, "cuda": 2**26}
# Places for atoms at the start of a batch; doubled whenever they are full.
_PLACES = 8
# Most atoms per round, summed over samples, with which a Gram matrix pays. It costs n_components
# products with all atoms in one efficient call, and saves an inefficient product per round. Above
# 10,000 atoms it takes gigabytes.
_GRAM_ATOMS_PER_ROUND = 1
_GRAM_ATOMS = 10_000
# Relative difference of tied correlations. The first of tied atoms enters, so that codes do not
# depend on rounding.
_TIE = 1e-10
# Squared cosine of the sample and the best atom at which a pursuit ends, and least share of an atom
# outside of the support: the epsilon of float64, as in scikit-learn for data and atoms of unit
# norm.
_RESOLUTION = 2.0**-52
# Most rounds of a non-negative pursuit per place of the support, as customary for Lawson and
# Hanson's method. Each round lowers the error, so the number of rounds is finite anyway.
_ROUNDS_PER_PLACE = 3


class _Pursuit:
    """A batch of samples in pursuit of atoms. Every attribute has one row per sample.

    An empty place of the support holds the index of an additional zero atom, the last of the codes.
    One place more than atoms may enter: samples that find no atom write to it.

    Parameters
    ----------
    correlations : Tensor of shape (n, n_components + 1)
        Products of samples and atoms.
    energy, tol : Tensor of shape (n,)
        The squared norm of each sample, and the squared error to reach.
    mask : Tensor of shape (n, n_features) or None
        1 for known entries, 0 for missing ones.
    places : int
        Number of atoms to make room for.
    """

    def __init__(self, correlations, energy, tol, mask, places):
        n, width = correlations.shape
        self.rows = torch.arange(n, device=energy.device)
        self.c = correlations
        self.energy, self.tol, self.left = energy, tol, energy.clone()
        self.mask = energy.new_empty(n, 0) if mask is None else mask
        self.sizes = self.rows.new_zeros(n)
        self.support = self.rows.new_full((n, places + 1), width - 1)
        self.z, self.amounts = energy.new_zeros(2, n, places + 1)
        self.directions = energy.new_zeros(n, places + 1, width)
        self.factor = energy.new_zeros(n, places + 1, places + 1)
        self.factor.diagonal(dim1=1, dim2=2).fill_(1.0)

    def take(self, rows):
        """Return the pursuit of these rows."""
        part = object.__new__(_Pursuit)
        for name, value in vars(self).items():
            setattr(part, name, value[rows])
        return part

    def put(self, rows, part):
        """Replace these rows by another pursuit."""
        for name, value in vars(self).items():
            value[rows] = getattr(part, name)

    @property
    def places(self):
        """Return the number of atoms that may enter."""
        return self.support.shape[1] - 1

    def grow(self, places):
        """Make room for ``places`` atoms."""
        more, n_old = places - self.places, self.places + 1
        self.support = pad(self.support, (0, more), value=self.c.shape[1] - 1)
        self.z, self.amounts = pad(self.z, (0, more)), pad(self.amounts, (0, more))
        self.directions = pad(self.directions, (0, 0, 0, more))
        self.factor = pad(self.factor, (0, more, 0, more))
        self.factor.diagonal(dim1=1, dim2=2)[:, n_old:] = 1.0

    def codes(self):  # -> (n, places + 1), least squares on the support, zero at empty places
        amounts = self.amounts[:, :, None]
        return torch.linalg.solve_triangular(self.factor.mT, amounts, upper=True)[:, :, 0]

    def enter(self, atoms, gram, *, n_used, positive):
        """Admit an atom to every row that needs one; return a mask (n,) of these rows.

        At most ``n_used`` places of a row are taken before.
        """
        none = self.c.shape[1] - 1
        key = self.c if positive else self.c.abs()
        best = key.amax(1)
        # argmax of a boolean tensor is its first True
        new = (key >= (1 - _TIE) * best[:, None]).to(torch.int8).argmax(1)
        if gram is not None:
            column = gram[new]
        else:
            column = (atoms[new] * self.mask if self.mask.shape[1] else atoms[new]) @ atoms.mT
        square = column.gather(1, new[:, None])[:, 0]
        before = self.directions[:, :n_used]
        inner = before.gather(2, new[:, None, None].expand(-1, n_used, 1))[:, :, 0]
        pivot = square - inner.square().sum(1)
        found = (best.square() > _RESOLUTION * square * self.energy) & (best > 0)
        found &= (pivot > _RESOLUTION * square) & (self.left > self.tol)
        found &= self.sizes < self.places

        root = pivot.where(found, 1.0).sqrt()
        amount = (self.c.gather(1, new[:, None])[:, 0] / root).where(found, 0.0)
        direction = (column - (inner[:, None] @ before)[:, 0]) / root[:, None]
        direction = direction.where(found[:, None], 0.0)
        rows, places = torch.arange(len(new), device=new.device), self.sizes
        self.support[rows, places] = new.where(found, none)
        self.amounts[rows, places] = amount
        self.directions[rows, places] = direction
        self.factor[rows, places, :n_used] = inner.where(found[:, None], 0.0)
        self.factor[rows, places, places] = root
        self.c -= amount[:, None] * direction
        self.c.scatter_(1, self.support, 0.0)
        self.left -= amount.square()
        self.sizes = self.sizes + found
        return found

    def advance(self):
        """Move ``z`` towards the least squares codes, up to the first that reaches zero.

        Return a mask (n, places + 1) of codes that reached zero; a row without one has arrived.
        """
        trial = self.codes()
        falls = (trial <= 0) & (self.support < self.c.shape[1] - 1)
        reach = torch.where(self.z > 0, self.z / (self.z - trial), 0.0)
        share = reach.where(falls, 2.0).amin(1, keepdim=True)
        self.z = torch.where(share == 2, trial, self.z + share * (trial - self.z))
        return falls & (reach <= share)

    def remove(self, leave):  # (n, places + 1) booleans
        """Take atoms from the support, and make the rest of the factor triangular again."""
        none = self.c.shape[1] - 1
        gone = leave | (self.support == none)
        order = gone.to(torch.int8).argsort(dim=1, stable=True)
        self.support = self.support.masked_fill(gone, none).gather(1, order)
        self.z = self.z.masked_fill(gone, 0.0).gather(1, order)
        self.sizes = (~gone).sum(1)
        remaining = self.factor.masked_fill(gone[:, :, None], 0.0)
        remaining = remaining.gather(1, order[:, :, None].expand_as(remaining))
        rotation, upper = torch.linalg.qr(remaining.mT)

        empty = self.support == none
        self.factor = upper.mT.masked_fill(empty[:, :, None], 0.0) + torch.diag_embed(empty * 1.0)
        rotation = rotation.masked_fill(empty[:, None, :], 0.0)
        amounts = (self.amounts[:, None] @ rotation)[:, 0]
        # the part of the sample along directions that are no longer spanned
        lost = self.amounts - (rotation @ amounts[:, :, None])[:, :, 0]
        self.c = self.c + (lost[:, None] @ self.directions)[:, 0]
        self.c.scatter_(1, self.support, 0.0)
        self.left = self.left + lost.square().sum(1)
        self.amounts, self.directions = amounts, rotation.mT @ self.directions

    def keep_positive(self):
        """Set ``z`` to the non-negative least squares codes; drop atoms with code zero."""
        leave = self.advance()
        rows = leave.any(1).nonzero().squeeze(1)
        leave = leave[rows]
        while len(rows):
            part = self.take(rows)
            part.remove(leave)
            leave = part.advance()
            self.put(rows, part)
            again = leave.any(1).nonzero().squeeze(1)
            rows, leave = rows[again], leave[again]


def _pursue(atoms, gram, mask, energy, tol, codes, *, room, max_iter, positive, ends_early):
    """Turn ``codes``, (n, n_components), from ``D^T x`` into the codes of a batch."""
    atoms, gram = pad(atoms, (0, 0, 0, 1)), None if gram is None else pad(gram, (0, 1, 0, 1))
    n_most = _DIRECTION_ENTRIES.get(codes.device.type, 2**22) // len(atoms)
    correlations = pad(codes, (0, 1))

    def write(part):
        z = part.z if positive else part.codes()
        rows = correlations.new_zeros(part.c.shape).scatter_(1, part.support, z)
        # make the codes of samples with values that are not finite NaN
        codes[part.rows] = (rows + 0.0 * part.energy[:, None])[:, :-1]

    waiting = [(0, _Pursuit(correlations, energy, tol, mask, min(room, _PLACES)))]
    while waiting:
        step, pursuit = waiting.pop()
        if step == pursuit.places < room:
            pursuit.grow(min(room, 2 * step))
        n = len(pursuit.rows)
        if n > 1 and n * pursuit.places > n_most:
            halves = torch.arange(n, device=codes.device).chunk(2)
            waiting += [(step, pursuit.take(half)) for half in halves]
            continue
        found = pursuit.enter(atoms, gram, n_used=min(step, room), positive=positive)
        if positive:
            pursuit.keep_positive()
        searching = found.nonzero().squeeze(1) if ends_early else pursuit.sizes
        if step + 1 >= max_iter or len(searching) == 0:
            write(pursuit)
            continue
        if 2 * len(searching) < n:
            write(pursuit)
            pursuit = pursuit.take(searching)
        waiting.append((step + 1, pursuit))


def _checked_stop(atoms, n_nonzero_coefs, tol):  # -> places, squared error
    """Return the largest number of atoms of a support, and the squared error to reach."""
    n_components, n_features = atoms.shape
    most = min(n_components, n_features)  # more atoms depend on each other
    if tol is not None:
        if not tol >= 0:
            raise ValueError(f"tol is a squared norm, got {tol}. Pass 0 or a positive number.")
        return most, float(tol)
    if n_nonzero_coefs is None:
        n_nonzero_coefs = min(max(n_features // 10, 1), n_components)
    if not 1 <= n_nonzero_coefs <= n_components:
        raise ValueError(
            f"n_nonzero_coefs is {n_nonzero_coefs}. Pass an integer between 1 and the number of "
            f"atoms, {n_components}."
        )
    return min(int(n_nonzero_coefs), most), 0.0


def _solver(name, device):
    if name == "auto":
        name = "compiled" if device.type == "cpu" else "batched"
    if name not in {"batched", "compiled"}:
        raise ValueError(f"Unknown solver {name!r}. Pass 'auto', 'batched' or 'compiled'.")
    if name == "compiled" and device.type != "cpu":
        raise ValueError(f"solver='compiled' is for the CPU, got data on {device}. Use 'batched'.")
    if name == "batched":
        return _pursue
    return partial(solve_compiled, resolution=_RESOLUTION, tie=_TIE)


@torch.no_grad()
def solve_omp(
    atoms: Tensor,
    x: Tensor,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    positive: bool = False,
    mask: Tensor | None = None,
    solver: Literal["auto", "batched", "compiled"] = "auto",
) -> Tensor:
    """Encode every row of the data by orthogonal matching pursuit.

    A row has the same codes alone and among other rows. The first of tied atoms is chosen.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, of unit norm as a rule: a pursuit compares products with the atoms as they are, so it
        prefers longer ones. Zero and repeated atoms are allowed. If a value is not finite, all
        codes are NaN.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms. If a value of a row is not finite, its
        codes are NaN.
    n_nonzero_coefs : int, default=None
        Number of atoms of each code; a tenth of ``n_features``, at least one, if neither this nor
        ``tol`` is given. A code has fewer if they explain the row: if the residual is orthogonal to
        all atoms up to a cosine of 1.5e-8.
    tol : float, default=None
        Squared norm of the residual to stop at, in squared units of the data; overrides
        ``n_nonzero_coefs``. A row of at most this squared norm has a zero code. A squared error
        below the rounding of float64, 2.2e-16 times the squared norm of the row, is not reached.
    positive : bool, default=False
        Whether codes are restricted to non-negative values. They are then the non-negative least
        squares codes on their support.
    mask : Tensor of shape (n_samples, n_features), default=None
        Nonzero where a value is known. The pursuit of a row uses its known features alone, of the
        atoms too: their norms are the norms of their known parts.
    solver : {"auto", "batched", "compiled"}, default="auto"
        ``"compiled"`` is the fastest on the CPU and needs numba; ``"batched"`` is torch, on any
        device; ``"auto"`` chooses.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        Codes, of the dtype of the data.

    Raises
    ------
    ValueError
        If ``n_nonzero_coefs`` is not between 1 and ``n_components``, if ``tol`` is negative, if the
        mask has another shape than the data, or if ``solver="compiled"`` gets data that are not on
        the CPU.
    ImportError
        If ``solver="compiled"`` and numba is not installed.

    Notes
    -----
    Codes are the same as by scikit-learn's `sklearn.linear_model.orthogonal_mp_gram` where that is
    well defined, for atoms of any norm. There a row of at most ``tol`` still gets one atom; the
    last rule under ``n_nonzero_coefs`` is in absolute units, and warns; of atoms that tie any is
    chosen.

    References
    ----------
    R. Rubinstein, M. Zibulevsky and M. Elad, "Efficient implementation of the K-SVD algorithm using
    batch orthogonal matching pursuit", Technical report CS-2008-08, Technion, 2008, section 2.

    A. M. Bruckstein, M. Elad and M. Zibulevsky, "On the uniqueness of nonnegative sparse solutions
    to underdetermined systems of equations", IEEE Transactions on Information Theory, 2008.

    T. T. Nguyen, J. Idier, C. Soussen and E.-H. Djermoune, "Non-negative orthogonal greedy
    algorithms", IEEE Transactions on Signal Processing, 2019, algorithm 1 (NNOMP).

    Examples
    --------
    >>> import torch
    >>> from skpudle.omp import solve_omp
    >>> x = torch.tensor([[1.0, -0.5, 0.25]])
    >>> solve_omp(torch.eye(3), x, n_nonzero_coefs=2)
    tensor([[ 1.0000, -0.5000,  0.0000]])
    >>> solve_omp(torch.eye(3), x, n_nonzero_coefs=2, positive=True)
    tensor([[1.0000, 0.0000, 0.2500]])
    >>> solve_omp(torch.eye(3), x, tol=0.4)
    tensor([[1., 0., 0.]])
    """
    check_tensors(atoms, x)
    room, tol = _checked_stop(atoms, n_nonzero_coefs, tol)
    solve = _solver(solver, x.device)
    if mask is not None and mask.shape != x.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, the data {tuple(x.shape)}. Pass a mask of the "
            "shape of the data."
        )
    if not atoms.isfinite().all():
        return x.new_full((len(x), len(atoms)), torch.nan)
    codes = x.new_empty(len(x), len(atoms))
    atoms = atoms.double().contiguous()
    gram = None
    if mask is None and len(atoms) <= min(_GRAM_ATOMS, _GRAM_ATOMS_PER_ROUND * room * len(x)):
        with threads_for(atoms, atoms):
            gram = atoms @ atoms.mT
    in_loops = solve is not _pursue
    if not in_loops:
        # With a fixed number of atoms few samples end early, and a look for them waits for the
        # device.
        solve = partial(_pursue, ends_early=positive or tol > 0)
    entries = entries_of_block() if in_loops else _BLOCK_ENTRIES.get(x.device.type, 2**19)
    n_rows = max(1, min(entries // len(atoms), len(x)))
    exact = codes
    if codes.dtype != torch.float64:  # in blocks, to save memory
        exact = codes.new_empty(n_rows, len(atoms), dtype=torch.float64)
    for first in range(0, len(x), n_rows):
        rows = slice(first, first + n_rows)
        data, known = x[rows].double(), None
        if mask is not None:
            known = (mask[rows] != 0).double()
            data = data.where(known != 0, 0.0)
        # dividing by a power of two is exact, and squares then stay in the range of float64
        exponent = torch.frexp(data.abs().amax(1)).exponent - 1
        unit = torch.ldexp(torch.ones_like(data[:, 0]), exponent)
        data, tolerance = data / unit[:, None], tol / unit / unit
        block = exact[rows] if exact is codes else exact[: len(data)]
        with threads_for(atoms, data):
            torch.mm(data, atoms.mT, out=block)
        solve(
            atoms, gram, known, data.square().sum(1), tolerance, block, room=room,
            positive=positive, max_iter=room * (_ROUNDS_PER_PLACE if positive else 1),
        )  # fmt: skip
        block *= unit[:, None]
        if exact is not codes:
            codes[rows] = block
    return codes
