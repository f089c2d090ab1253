"""Orthogonal matching pursuit of rows, block by block; see `skpudle.omp`."""

import torch
from torch import Tensor

from skpudle._compilation import blocks_of_rows, entries_of_block, threads_for
from skpudle._precision import check_tensors
from skpudle.omp._compiled import solve

# A Gram matrix pays if it has at most one row for each atom that enters a code. It costs
# n_components products with all atoms in one efficient call, and saves an inefficient product per
# round. Above 10,000 atoms it takes gigabytes.
_GRAM_ATOMS = 10_000
# Relative difference of tied correlations. The first of tied atoms enters, so that codes do not
# depend on rounding.
_TIE = 1e-10
# Squared cosine of the sample and the best atom at which a pursuit ends, and least share of an atom
# outside of the support: the epsilon of float64, as in scikit-learn for data and atoms of unit
# norm.
_RESOLUTION = 2.0**-52


@torch.no_grad()
def solve_omp(
    atoms: Tensor,
    x: Tensor,
    *,
    n_nonzero_coefs: int | None = None,
    tol: float | None = None,
    positive: bool = False,
    mask: Tensor | None = None,
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
        Data, of the dtype and on the device of the atoms. Every device is computed on the CPU. If
        a value of a row is not finite, its codes are NaN.
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
    mask : Tensor that broadcasts to (n_samples, n_features), default=None
        Nonzero where a value is known. The pursuit of a row uses its known features alone, of the
        atoms too: their norms are the norms of their known parts.

    Returns
    -------
    Tensor of shape (n_samples, n_components)
        Codes, of the dtype of the data.

    Raises
    ------
    ValueError
        If ``n_nonzero_coefs`` is not between 1 and ``n_components``, or ``tol`` is negative.

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
    if n_nonzero_coefs is None:
        n_nonzero_coefs = min(max(x.shape[1] // 10, 1), len(atoms))
    stop = 0.0 if tol is None else float(tol)
    if not (1 <= n_nonzero_coefs <= len(atoms) and stop >= 0):
        raise ValueError(
            f"n_nonzero_coefs is {n_nonzero_coefs} and tol is {tol}. Pass an integer between 1 and "
            f"the number of atoms, {len(atoms)}, or a squared norm that is not negative."
        )
    # more atoms than features depend on each other
    room = min(*atoms.shape, n_nonzero_coefs if tol is None else len(atoms))
    codes = x.new_empty(len(x), len(atoms))
    if not atoms.isfinite().all():
        return codes.fill_(torch.nan)
    atoms, gram = atoms.to("cpu", torch.float64).contiguous(), None
    if mask is not None:
        mask = mask.expand_as(x)
    elif len(atoms) <= min(_GRAM_ATOMS, room * len(x)):
        with threads_for(atoms, atoms):
            gram = atoms @ atoms.mT
    in_place = codes.dtype == torch.float64 and codes.device.type == "cpu"
    for rows in blocks_of_rows(len(x), len(atoms), entries_of_block()):
        known, data = None, x[rows].to("cpu", torch.float64)
        if mask is not None:
            known = (mask[rows] != 0).to(data)
            data = data.where(known != 0, 0.0)
        # dividing by a power of two is exact, and squares then stay in the range of float64
        exponent = torch.frexp(data.abs().amax(1)).exponent - 1
        unit = torch.ldexp(torch.ones_like(data[:, 0]), exponent)
        data = data / unit[:, None]
        block = codes[rows] if in_place else torch.empty(len(data), len(atoms), dtype=torch.float64)
        with threads_for(atoms, data):
            torch.mm(data, atoms.mT, out=block)
        # As customary for Lawson and Hanson's method. Each round lowers the error, so the number of
        # rounds is finite anyway.
        solve(
            atoms, gram, known, data.square().sum(1), stop / unit / unit, block, room=room,
            max_iter=room * (3 if positive else 1), positive=positive,
            resolution=_RESOLUTION, tie=_TIE,
        )  # fmt: skip
        block *= unit[:, None]
        if not in_place:
            codes[rows] = block
    return codes
