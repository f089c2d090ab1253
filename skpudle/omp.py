r"""Orthogonal matching pursuit: choose atoms one by one, with least squares codes.

A pursuit starts from the residual ``r = x`` and an empty support. A round

1. admits the atom with the correlation ``c_j = <d_j, r>`` of largest modulus;
2. takes the least squares codes on the support, and their residual.

It ends at the requested number of atoms, or squared norm of the residual.

A pursuit needs no more than inner products with atoms (batch OMP, Rubinstein, Zibulevsky and Elad,
2008). Let ``q_1, ..., q_k`` be the atoms of the support, made orthonormal in the order in which
they were chosen. With ``Q_i = D^T q_i`` and ``y_i = <q_i, x>``, a round with the new atom j is

.. math::
    \ell_i = Q_{i j}, \qquad \pi = G_{jj} - |\ell|^2, \qquad
    Q_k = (G_j - \sum_{i<k} \ell_i Q_i) / \sqrt\pi, \qquad y_k = c_j / \sqrt\pi,

.. math:: c \leftarrow c - y_k Q_k, \qquad |r|^2 \leftarrow |r|^2 - y_k^2,

where G is the Gram matrix ``D^T D``. So the ``Q_i`` are rows of a Cholesky factor of G, with pivots
in the order of the choices. Their entries on the support S make the factor L of ``G_SS``, and the
codes solve ``L^T z_S = y``, once, at the end. A round needs one row of G. If samples miss different
features, there is no common G, and the row is computed from the atoms.

Non-negative codes come from non-negative orthogonal matching pursuit (Bruckstein, Elad and
Zibulevsky, 2008; "NNOMP" in Nguyen, Idier, Soussen and Djermoune, 2019). It chooses the largest
*positive* correlation and takes the non-negative least squares codes on the support, which an
active set method finds from the codes of the previous round. An atom whose code reaches zero leaves
the support, so there can be more rounds than atoms. The factor is then made anew: the remaining
atoms enter again, one by one, in the order in which they were chosen.

The pursuit computes in float64, then rounds codes to the dtype of the data. In float32 a round
takes two thirds of the time. But of 10,000 natural patches of unit norm, coded to a squared error
of 0.005 (45 atoms each), 11 patches had another support in float32, and 2 a larger error.

The functions before `solve_omp` are plain Python until `loops` compiles them, and change their
arguments in place.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from skpudle._compilation import (
    Loops,
    blocks_of_rows,
    entries_of_block,
    in_parts,
    threads_for,
)

__all__ = ["solve_omp"]

# Largest number of atoms for which `solve_omp` makes a Gram matrix, which would take gigabytes for
# more atoms. The Gram matrix costs a product of each atom with all atoms, in one efficient call,
# and saves such a product, in a slow loop, in each round of each sample. So `solve_omp` makes it
# unless there are more atoms than rounds of all samples together.
_GRAM_ATOMS = 10_000
# Correlations count as equal if they differ by less than this fraction. The first atom with the
# largest correlation enters, so that rounding errors do not decide on the support.
_TIE = 1e-10
# A pursuit ends if what it would fit next may be a rounding error: if the squared correlation of
# the residual with the best atom is below this fraction of the squared norm of the sample times
# that of the atom, or if at most this fraction of the atom's squared norm is outside of the span of
# the support. The fraction is the epsilon of float64. scikit-learn uses it, too, but without regard
# to the norms of sample and atom.
_RESOLUTION = 2.0**-52
# Least number of rows of a thread: a thread with fewer rows costs more time than it saves.
_ROWS_OF_THREAD = 16


def _largest(c, positive):
    """Choose the atom to admit: return the number of the atom with the largest correlation.

    ``c`` (n_components,) are correlations with the residual. Their moduli are compared, unless
    codes are ``positive``. If several correlations are equal up to `_TIE`, the first atom is
    chosen. Return -1 if no correlation is above 0.
    """
    largest = 0.0
    first = 0
    for j in range(len(c)):
        largest = max(largest, c[j] if positive else abs(c[j]))
    if largest == 0:
        return -1
    while (c[first] if positive else abs(c[first])) < (1 - _TIE) * largest:
        first += 1
    return first


def _gram_row(
    atoms,
    gram,
    new,
    masked,
    row,
):
    """Set ``row`` (n_components,) to the row of the Gram matrix for the atom ``new``.

    The row is copied from ``gram`` (n_components, n_components) or, if ``gram`` is empty, computed
    from ``atoms`` (n_components, n_features) and ``masked`` (n_features,). ``masked`` is the atom
    ``new``, with zeros for the features that the sample misses.
    """
    for j in range(len(row)):
        if len(gram) > 0:
            row[j] = gram[new, j]
            continue
        total = 0.0
        for feature in range(len(masked)):
            total += masked[feature] * atoms[j, feature]
        row[j] = total


def _enter(
    k,
    c,
    amount,
    directions,
    factor,
    support,
):
    """Admit an atom as number ``k`` of the support, from 0 on, and update correlations ``c``.

    The module docstring explains the method. Row i of ``directions`` (room, n_components) is
    ``Q_i`` for i < k: the inner products of all atoms with atom i of the support, made orthonormal.
    Row k holds the new atom's row of the Gram matrix and becomes ``Q_k``. ``factor`` (room, room)
    is the Cholesky factor of the support's Gram matrix, with row k, and ``amount`` is the inner
    product of the sample with the new atom, made orthonormal. ``room`` is the largest size of a
    support. Correlations with atoms of the ``support`` become exactly 0, so that no atom is chosen
    twice.
    """
    row = directions[k]
    for i in range(k):
        for j in range(len(row)):
            row[j] -= factor[k, i] * directions[i, j]
    scale = 1 / factor[k, k]
    for j in range(len(row)):
        row[j] *= scale
        c[j] -= amount * row[j]
    for i in range(k + 1):
        c[support[i]] = 0.0


def _least_squares(k, amounts, factor, z):
    """Set ``z[:k]`` to the least squares codes on the support of ``k`` atoms.

    The codes solve ``L^T z = y``. L is the Cholesky factor of the support's Gram matrix, in
    ``factor`` (room, room), and y, in ``amounts`` (room,), are the inner products of the sample
    with the support's atoms after these are made orthonormal. ``room`` is at least ``k``.
    """
    for i in range(k):
        z[i] = amounts[i]
    for i in range(k - 1, -1, -1):
        z[i] /= factor[i, i]
        for j in range(i):
            z[j] -= factor[i, j] * z[i]


def _keep_positive(
    k,
    amounts,
    factor,
    support,
    z,
    trial,
):
    """Take an active set step of the non-negative pursuit; return the number of remaining atoms.

    The codes ``z`` move straight towards the least squares codes on the support of ``k`` atoms,
    until the first code is zero. Atoms whose codes reach zero leave ``support`` and ``z``. From
    ``amounts`` and ``factor`` `_least_squares` computes those codes; ``trial`` (room,) is memory to
    work in.
    """
    _least_squares(k, amounts, factor, trial)
    length = 1.0  # the fraction of the way
    for i in range(k):
        if trial[i] <= 0:
            length = min(length, z[i] / (z[i] - trial[i]) if z[i] > 0 else 0.0)
    n_kept = 0
    for i in range(k):
        if trial[i] > 0 or (z[i] > 0 and z[i] / (z[i] - trial[i]) > length):
            support[n_kept] = support[i]
            z[n_kept] = (1 - length) * z[i] + length * trial[i]
            n_kept += 1
    return n_kept


def solve_rows(
    first,
    last,
    atoms,
    gram,
    mask,
    energy,
    tol,
    codes,
    room,
    positive,
):
    """Run the whole pursuit for the rows ``first:last``, and write their codes to ``codes``.

    On entry ``codes`` (n, n_components) has to hold ``D^T x``. ``gram`` is the Gram matrix of the
    ``atoms`` (n_components, n_features), or empty. ``mask`` (n, n_features) is 1 for known features
    and 0 for missing ones. ``energy`` (n,) has the squared norms of rows, and ``tol`` (n,) the
    squared norms of residuals at which a pursuit stops. A support has at most ``room`` atoms. With
    ``positive`` codes are not negative.
    """
    n_components = codes.shape[1]
    c = np.empty(n_components)
    directions = np.empty((room, n_components))
    factor = np.empty((room, room))
    support = np.empty(room, np.int64)
    masked = np.empty(atoms.shape[1])
    amounts = np.empty(room)
    z = np.empty(room)
    trial = np.empty(room)
    for row in range(first, last):
        # Largest number of rounds: with codes of both signs each round adds an atom. In a pursuit
        # of non-negative codes atoms may also leave, so it gets three rounds for each atom of the
        # largest support, the usual limit of Lawson and Hanson's method.
        n_rounds = room * (3 if positive else 1)
        # The support has `n_kept` atoms, and the factor has rows for the first `k` of them. (For a
        # literal 0 numba would compile every function a second time.)
        k = n_kept = np.int64(0)
        while True:
            if k == 0:
                for j in range(n_components):
                    c[j] = codes[row, j]
            # the least squared correlation over the squared norm of an atom; an atom that enters
            # the factor again may have any correlation
            least_square = 0.0
            if k == n_kept:  # the factor is complete: choose a new atom
                # the squared norm of the residual: that of the row less all squared amounts
                energy_left = energy[row]
                for i in range(k):
                    energy_left -= amounts[i] ** 2
                if k == room or n_rounds == 0 or not tol[row] < energy_left < np.inf:
                    break
                new = _largest(c, positive)
                if new < 0:
                    break
                support[k] = new
                z[k] = 0.0
                least_square = _RESOLUTION * energy[row]
                n_kept = k + 1
                n_rounds = n_rounds - 1
            new = support[k]
            for feature in range(len(masked)):
                masked[feature] = mask[row, feature] * atoms[new, feature]
            _gram_row(atoms, gram, new, masked, directions[k])
            square = pivot = directions[k, new]
            for i in range(k):
                factor[k, i] = directions[i, new]
                pivot -= factor[k, i] ** 2
            if pivot <= _RESOLUTION * square or c[new] * c[new] < least_square * square:
                break
            factor[k, k] = np.sqrt(pivot)
            amounts[k] = c[new] / factor[k, k]
            # after the last atom nothing reads the correlations
            if positive or k + 1 < room:
                _enter(k, c, amounts[k], directions, factor, support)
            k += 1
            if positive and k == n_kept:
                n_kept = _keep_positive(k, amounts, factor, support, z, trial)
                # if an atom has left, make the factor anew from the remaining atoms
                k = k if n_kept == k else np.int64(0)
        if not positive:
            _least_squares(k, amounts, factor, z)
        for j in range(n_components):
            codes[row, j] = 0.0 if energy[row] < np.inf else np.nan
        for i in range(k):
            codes[row, support[i]] = z[i]


loops = Loops(globals())


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
    """Encode every row of the data by orthogonal matching pursuit: few atoms, one after the other.

    A row has the same codes alone and among other rows. The first of tied atoms is chosen.

    Parameters
    ----------
    atoms : Tensor of shape (n_components, n_features)
        Atoms, usually of unit norm: a pursuit compares inner products with the atoms, so it prefers
        longer atoms. Zero and repeated atoms are allowed. If a value is not finite, all codes are
        NaN.
    x : Tensor of shape (n_samples, n_features)
        Data, of the dtype and on the device of the atoms. Codes are computed on the CPU, whatever
        the device. If a value of a row is not finite, the codes of the row are NaN.
    n_nonzero_coefs : int, default=None
        Number of nonzero codes of each row. By default a tenth of ``n_features``, at least one,
        unless ``tol`` is given. A row has fewer nonzero codes if they explain it: if the residual
        is orthogonal to all atoms, up to a product of 1.5e-8 times the norms of row and atom.
    tol : float, default=None
        Squared norm of the residual to stop at, in squared units of the data; overrides
        ``n_nonzero_coefs``. A row of at most this squared norm has a zero code. A squared error
        below the rounding of float64, 2.2e-16 times the squared norm of the row, is not reached.
    positive : bool, default=False
        Whether codes are restricted to non-negative values. They are then the non-negative least
        squares codes on their support.
    mask : Tensor that broadcasts to (n_samples, n_features), default=None
        Nonzero where a value is known. The pursuit of a row uses only the features that are known
        in the row, of the row and of the atoms, also for norms of atoms.

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
    Codes are the same as those of `sklearn.linear_model.orthogonal_mp_gram`, for atoms of any norm,
    except in three cases. In scikit-learn a row with a squared norm of at most ``tol`` still gets
    one atom; a pursuit ends, with a warning, when all correlations are below 1.5e-8 in absolute
    units; and any of several tied atoms may be chosen.

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
    if n_nonzero_coefs is None:
        n_nonzero_coefs = min(max(x.shape[1] // 10, 1), len(atoms))
    stop_energy = 0.0 if tol is None else float(tol)
    if not (1 <= n_nonzero_coefs <= len(atoms) and stop_energy >= 0):
        raise ValueError(
            f"n_nonzero_coefs is {n_nonzero_coefs} and tol is {tol}. Pass an integer between 1 and "
            f"the number of atoms, {len(atoms)}, or a squared norm that is not negative."
        )
    # the atoms of a support are linearly independent, so they are not more than the features
    room = min(*atoms.shape, n_nonzero_coefs if tol is None else len(atoms))
    codes = x.new_empty(len(x), len(atoms))
    if not atoms.isfinite().all():
        return codes.fill_(torch.nan)
    atoms = atoms.to("cpu", torch.float64).contiguous()
    gram = atoms.new_empty(0, 0)
    if mask is None and len(atoms) <= min(_GRAM_ATOMS, room * len(x)):
        with threads_for(atoms, atoms):
            gram = atoms @ atoms.mT
    for rows in blocks_of_rows(len(x), len(atoms), entries_of_block()):
        data = x[rows].to("cpu", torch.float64)
        mask_of_rows = torch.ones_like(data)
        if mask is not None:
            mask_of_rows = (mask.expand_as(x)[rows] != 0).to(data)
            data = data.where(mask_of_rows != 0, 0.0)
        # Each row is divided by a power of two near its largest modulus, so that squares stay in
        # the range of float64. Division by a power of two has no rounding error.
        exponent = torch.frexp(data.abs().amax(1)).exponent - 1
        # `torch.ldexp` computes powers in float32 in older versions of torch.
        powers = torch.as_tensor(np.ldexp(1.0, np.asarray(exponent)))
        data = data / powers[:, None]
        with threads_for(atoms, data):
            block = data @ atoms.mT
        # the arrays share the memory of the tensors, so that the loops write codes into `block`
        solve_part = partial(
            loops.solve_rows,
            atoms=np.asarray(atoms),
            gram=np.asarray(gram),
            mask=np.asarray(mask_of_rows),
            energy=np.asarray(data.square().sum(1)),
            tol=np.asarray(stop_energy / powers / powers),
            codes=np.asarray(block),
            room=room,
            positive=positive,
        )
        in_parts(solve_part, len(block), _ROWS_OF_THREAD)
        codes[rows] = block * powers[:, None]
    return codes
