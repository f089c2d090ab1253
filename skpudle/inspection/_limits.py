r"""How exact atoms can be: a bound without data, and the number of rows for an error.

With known supports, and codes that are not known, the Fisher information of atom k is :math:`\sum_i
z_{ik}^2 P_i / \sigma^2`, where :math:`P_i` projects on the complement of the span of the atoms of
row i. Only the :math:`m - 1` directions that leave the norm alone are unknown, and :math:`P_i`
keeps :math:`m - s` of m. By the inequality of the harmonic and the arithmetic mean no unbiased
estimate has a smaller expected squared error of the atom than

.. math:: \frac{(m - 1)^2}{m - s} \frac{\sigma^2}{\sum_i z_{ik}^2}
          = \frac{(m - 1)^2}{m (m - s)} \frac{s}{\mathrm{SNR}\; n_k}

in :math:`n_k` rows with the atom, for codes of one mean square. The minimax bound of Jung, Eldar
and Goertz [1]_ has the same dependence on n, p, m and the signal-to-noise ratio, without known
supports, but a much smaller constant, so this bound is the tighter limit.

References
----------
.. [1] A. Jung, Y. C. Eldar and N. Goertz, "On the minimax risk of dictionary learning", IEEE
   Transactions on Information Theory 62, 2016 (arXiv:1507.05498).
"""

from sklearn.utils import check_scalar

__all__ = ["error_bound"]


def _check(n_features, n_components, n_nonzero, snr_db, relative_uses):
    check_scalar(n_features, "n_features", int, min_val=2)
    check_scalar(n_components, "n_components", int, min_val=1)
    number = (int, float)
    check_scalar(snr_db, "snr_db", number)
    positive = dict(min_val=0, include_boundaries="neither")
    check_scalar(relative_uses, "relative_uses", number, **positive)
    check_scalar(n_nonzero, "n_nonzero", number, **positive)
    if n_nonzero >= min(n_features, n_components + 1):
        raise ValueError(
            f"n_nonzero={n_nonzero} atoms in a row of {n_features} features, of {n_components} "
            "atoms, leave no information on atoms. Pass a smaller number."
        )


def error_bound(
    n_samples: int,
    n_features: int,
    n_components: int,
    *,
    n_nonzero: float,
    snr_db: float,
    relative_uses: float = 1.0,
) -> float:
    r"""Return the least expected squared error of an atom that any unbiased method can have.

    It is the Cramer-Rao bound for known supports, codes of one mean square and equal noise; see
    :doc:`/guide/how_sure`. An error of 0.02 is a cosine of 0.99 with the true atom.

    The bound falls as the inverse of the number of rows: for an error ``e`` an unbiased method
    needs at least ``error_bound(1, ...) / e`` rows. The learner needs up to twice that number at
    20 dB, more with more noise, and at least 10 rows per atom to find the atoms.

    Parameters
    ----------
    n_samples : int
        Number of rows.
    n_features : int
        Number of features, m.
    n_components : int
        Number of atoms.
    n_nonzero : float
        Mean number of atoms in a row, s, smaller than m.
    snr_db : float
        Signal-to-noise ratio in decibels: of all entries together, 20 for a tenth of the amplitude.
    relative_uses : float, default=1.0
        Uses of the atom by the mean over atoms: 0.1 for a rare one, with a tenth of the uses.

    Returns
    -------
    float
        Expected squared distance of the unit atoms.

    Raises
    ------
    ValueError
        If rows have as many atoms as features.

    Examples
    --------
    >>> from skpudle.inspection import error_bound
    >>> round(error_bound(1000, 20, 40, n_nonzero=3, snr_db=20), 4)
    0.0004

    The number of rows for an error of 0.02:

    >>> from math import ceil
    >>> ceil(error_bound(1, 64, 128, n_nonzero=4, snr_db=5) / 0.02)
    2092
    """
    _check(n_features, n_components, n_nonzero, snr_db, relative_uses)
    check_scalar(n_samples, "n_samples", int, min_val=1)
    n_uses = n_samples * n_nonzero / n_components * relative_uses
    share = (n_features - 1) ** 2 / (n_features * (n_features - n_nonzero))
    return share * n_nonzero / (10 ** (snr_db / 10) * n_uses)
