r"""Express atoms and reconstructions as weighted sums of training samples.

In the formulas atoms are the columns of ``D``, training samples without the learner's baseline the
columns of ``X``, and their codes the columns of ``Z``. The dictionary that minimises
:math:`\frac12 \|X - D Z\|^2 + \frac\omega2 \|D\|^2` is

.. math:: D = X A^T, \quad A = (Z Z^T + \omega I)^{-1} Z.

``A[j, k]`` is the contribution of sample ``k`` to atom ``j``. A new sample with the code ``z`` is
reconstructed as :math:`D z = \sum_k \beta_k x_k`, and :math:`\beta = A^T z` are the contributions
to the reconstruction. A trained dictionary is near the minimiser but not equal to it (its atoms
have norm 1, its gradient may pass through the encoder), so the distance between the two is returned
with the contributions.

References
----------
B. Tolooshams and D. Ba, "Stable and Interpretable Unrolled Dictionary Learning", TMLR 2022.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils import check_scalar

from skpudle._compilation import blocks_of_rows
from skpudle._data.sources import refuse_shuffled
from skpudle._estimators import check_learner_of_rows, encode_parts
from skpudle._fit.encoders import centre


class Contributions(NamedTuple):
    """Contributions of training samples to atoms or reconstructions, the largest first.

    Attributes
    ----------
    indices : ndarray of shape (n_targets, n_largest)
        For each target, an atom or a reconstruction, the numbers of the training samples whose
        contributions have the largest moduli.
    values : ndarray of shape (n_targets, n_largest)
        Contributions of the training samples in ``indices``, with their signs.
    estimates : ndarray of shape (n_targets, n_features)
        Sums over all training samples, weighted by their contributions. They approximate the
        targets.
    distances : ndarray of shape (n_targets,)
        Norm of each estimate minus its target, divided by the norm of the target.
    distance : float
        Frobenius norm of all estimates minus all targets, divided by the norm of all targets.
    """

    indices: np.ndarray
    values: np.ndarray
    estimates: np.ndarray
    distances: np.ndarray
    distance: float


def _contributions(
    learner,
    X_train,
    X,
    ridge,
    n_largest,
):
    """Find the training samples with the largest contributions to atoms or to reconstructions.

    The targets are the atoms of ``learner`` if ``X`` is None (`atom_contributions`), else the
    reconstructions of the samples ``X`` (`reconstruction_contributions`). A least squares fit of
    atoms to the training samples and their codes, with the penalty ``ridge`` on the squared norm of
    the atoms, expresses each target as a weighted sum of training samples: these weights are the
    contributions. ``n_largest`` is the number of training samples to return for each target.
    ``X_train`` is read a part at a time, so it need not fit into memory; its codes are kept as a
    sparse array.
    """
    learner = check_learner_of_rows(learner)
    refuse_shuffled(X_train)
    refuse_shuffled(X)
    check_scalar(ridge, "ridge", (int, float, np.number), min_val=0)
    targets = learner.components_
    train_codes = []
    # The atoms of the least squares fit are pinv(gram) @ products: ``gram`` has the products of
    # codes with codes, plus the ridge, and ``products`` the products of codes with samples. Both
    # are sums over training samples, so the parts of the data are added up one after the other.
    gram = ridge * np.eye(len(targets))
    products = np.zeros(targets.shape)
    for rows, codes in encode_parts(learner, X_train):
        gram += codes.T @ codes
        products += codes.T @ centre(learner, rows)
        train_codes.append(sparse.csr_array(codes))
    # A pseudo-inverse, since the Gram matrix may be singular: without a ridge an atom that no
    # sample uses has a row of zeros in it.
    weights = np.linalg.pinv(gram, hermitian=True)
    estimates = weights @ products
    if X is not None:
        codes = np.concatenate([codes for _, codes in encode_parts(learner, X)])
        weights = codes @ weights
        targets = codes @ targets
        estimates = codes @ estimates

    # The contributions of the training samples with these codes are ``weights @ codes.T``.
    codes = sparse.vstack(train_codes, format="csr")
    indices = []
    values = []
    for block in blocks_of_rows(len(weights), codes.shape[0]):
        contributions = weights[block] @ codes.T
        order = np.argsort(-np.abs(contributions), axis=1, kind="stable")
        order = order[:, :n_largest]
        indices.append(order)
        values.append(np.take_along_axis(contributions, order, 1))
    errors = np.linalg.norm(targets - estimates, axis=1)
    norms = np.maximum(np.linalg.norm(targets, axis=1), np.finfo(float).tiny)
    return Contributions(
        indices=np.concatenate(indices),
        values=np.concatenate(values),
        estimates=estimates,
        distances=errors / norms,
        distance=float(np.linalg.norm(errors) / np.linalg.norm(norms)),
    )


def atom_contributions(
    learner: Any, X: Any, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Contributions:
    r"""Return the training samples that contribute most to each atom.

    A least squares fit of atoms to given codes makes each atom a weighted sum of training samples.
    The weight of a sample is its contribution to the atom.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``; of this
        package or another.
    X : array-like, memory map, dataset or iterable of batches
        The training samples, (n_samples, n_features). They are read and encoded a part at a time,
        and only their codes are kept, as a sparse array.
    ridge : float, default=0.0
        :math:`\omega`, the weight of the squared norm of the atoms in an objective that is summed
        over all samples. For a learner trained by an optimiser with ``weight_decay`` w it is
        ``w * n_samples``. 0 gives the contributions of least squares.
    n_largest : int or None, default=10
        Number of training samples to return for each atom. None returns all samples, that is,
        n_components times n_samples numbers.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_components, n_largest), sorted by the modulus of
        the contribution; `estimates`, (n_components, n_features), the atoms of least squares, sums
        over all samples; `distances`, (n_components,), of the estimates from the learned atoms,
        relative to the norms of the learned atoms; and `distance`, the relative distance of the two
        dictionaries.

    Raises
    ------
    ValueError
        If the learner is convolutional, or if data have missing entries or come from a loader that
        shuffles.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.inspection import atom_contributions
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    >>> atom_contributions(learner, X, n_largest=5).indices.shape
    (16, 5)
    """
    return _contributions(learner, X, None, ridge, n_largest)


def reconstruction_contributions(
    learner: Any,
    X_train: Any,
    X: ArrayLike,
    *,
    ridge: float = 0.0,
    n_largest: int | None = 10,
) -> Contributions:
    r"""Return the training samples that contribute most to the reconstruction of each sample.

    If atoms come from a least squares fit to given codes, each reconstruction is a weighted sum of
    training samples. The weight of a sample is its contribution to the reconstruction.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and ``transform``; of this
        package or another.
    X_train : array-like, memory map, dataset or iterable of batches
        The training samples, (n_train, n_features).
    X : array-like of shape (n_samples, n_features)
        Samples to reconstruct.
    ridge : float, default=0.0
        Weight of the squared norm of the atoms in the least squares fit, as in
        `atom_contributions`. 0 is without this penalty.
    n_largest : int or None, default=10
        Number of training samples to return for each sample of ``X``; None returns all.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_samples, n_largest): the contributions
        :math:`\beta_k` of largest modulus; `estimates`, (n_samples, n_features), :math:`\sum_k
        \beta_k x_k` over all training samples :math:`x_k`; `distances`, (n_samples,), of the
        estimates from the learner's reconstructions, relative to the norms of the reconstructions;
        and `distance`, the relative distance of all reconstructions together.

    Raises
    ------
    ValueError
        If the learner is convolutional, or if data have missing entries or come from a loader that
        shuffles.
    """
    return _contributions(learner, X_train, X, ridge, n_largest)
