r"""Attribute an atom, a reconstruction or a code to samples, atoms and features.

A dictionary that minimises :math:`\frac12 \|X - D Z\|^2 + \frac\omega2 \|D\|^2` in ``D`` is a
combination of the training samples (the columns of ``X``, with codes ``Z``):

.. math:: D = X A^T, \quad A = (Z Z^T + \omega I)^{-1} Z.

``A[j, k]`` is the contribution of sample ``k`` to atom ``j``. A new sample with the code ``z`` is
reconstructed as :math:`D z = \sum_k \beta_k x_k`, :math:`\beta = A^T z`. A trained dictionary is
near the minimiser but not equal to it (its atoms have norm 1, its gradient may pass through the
encoder), so the distance is returned with the contributions.

References
----------
B. Tolooshams and D. Ba, "Stable and Interpretable Unrolled Dictionary Learning", TMLR 2022.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_scalar
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._data.sources import refuse_shuffled
from skpudle._fit.encoders import centre
from skpudle._fitted import check_learner_of_rows, encode_parts

# number of contributions in memory at a time, 64 MiB, and of samples to encode at a time
_ENTRIES = 2**23
_PART = 8192


class Contributions(NamedTuple):
    """Contributions of training samples to atoms or reconstructions, the largest first.

    Attributes
    ----------
    indices : ndarray of shape (n_targets, n_largest)
        Training samples with the largest contributions in modulus.
    values : ndarray of shape (n_targets, n_largest)
        Their contributions.
    estimates : ndarray of shape (n_targets, n_features)
        Sums over all training samples, weighted by contributions.
    distances : ndarray of shape (n_targets,)
        From estimate to atom or reconstruction, relative to the latter.
    distance : float
        The same for all targets together, in Frobenius norms.
    """

    indices: np.ndarray
    values: np.ndarray
    estimates: np.ndarray
    distances: np.ndarray
    distance: float


class Saliency(NamedTuple):
    """Derivatives of codes in the data.

    Attributes
    ----------
    indices : ndarray of shape (n_samples, n_codes)
        Atoms, of each sample.
    gradients : ndarray of shape (n_samples, n_codes, n_features)
        Derivatives of their codes in the features.
    """

    indices: np.ndarray
    gradients: np.ndarray


def _contributions(learner, X_train, X, ridge, n_largest):
    """Return the contributions to the atoms, or to the reconstructions of X if it is not None."""
    learner = check_learner_of_rows(learner)
    refuse_shuffled(X_train)
    refuse_shuffled(X)
    check_scalar(ridge, "ridge", (int, float, np.number), min_val=0)
    if n_largest is not None:
        check_scalar(n_largest, "n_largest", (int, np.integer), min_val=1)
    targets = learner.components_
    gram, pull = ridge * np.eye(len(targets)), np.zeros(targets.shape)
    for rows, codes in encode_parts(learner, X_train):
        gram += codes.T @ codes
        pull += codes.T @ centre(learner, rows)
    # the pseudo-inverse is zero for atoms that no sample uses
    weights = np.linalg.pinv(gram, hermitian=True)
    estimates = weights @ pull
    if X is not None:
        codes = np.concatenate([codes for _, codes in encode_parts(learner, X)])
        weights, targets, estimates = codes @ weights, codes @ targets, codes @ estimates

    # the largest entries in modulus of each row of ``weights @ codes.T``
    indices, values, start = np.zeros((len(weights), 0), int), np.zeros((len(weights), 0)), 0
    for rows, codes in encode_parts(learner, X_train, min(_PART, _ENTRIES // len(weights) + 1)):
        here = np.arange(start, start + len(rows))
        indices = np.hstack([indices, np.broadcast_to(here, (len(weights), len(rows)))])
        values = np.hstack([values, weights @ codes.T])
        if n_largest is not None and values.shape[1] > n_largest:
            kept = np.argpartition(-np.abs(values), n_largest - 1, axis=1)[:, :n_largest]
            indices, values = (np.take_along_axis(a, kept, 1) for a in (indices, values))
        start += len(rows)
    order = np.lexsort((indices, -np.abs(values)))  # ties in the order of the samples
    indices, values = (np.take_along_axis(array, order, 1) for array in (indices, values))
    errors = np.linalg.norm(targets - estimates, axis=1)
    norms = np.maximum(np.linalg.norm(targets, axis=1), np.finfo(float).tiny)
    distance = np.linalg.norm(errors) / np.linalg.norm(norms)
    return Contributions(indices, values, estimates, errors / norms, float(distance))


def atom_contributions(
    learner: Any, X: Any, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Contributions:
    r"""Return the training samples that make each atom.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of rows and ``transform``; of this package or another.
    X : array-like, memory map, dataset or iterable of batches
        The training samples, (n_samples, n_features). They are read and encoded twice, a part at a
        time.
    ridge : float, default=0.0
        :math:`\omega`, for the sum over all samples; an optimiser with ``weight_decay`` w has
        ``w * n_samples``. 0 gives the contributions of least squares.
    n_largest : int or None, default=10
        Number of samples to return for each atom; None returns all, n_components times n_samples
        numbers.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_components, n_largest), sorted by the modulus of
        the contribution; `estimates`, the atoms :math:`X A^T`; their `distances` from the learned
        atoms, relative to these; and the `distance` of the two dictionaries.

    Raises
    ------
    ValueError
        If atoms are not rows, or data are incomplete, or come from a loader that shuffles.

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
    learner: Any, X_train: Any, X: ArrayLike, *, ridge: float = 0.0, n_largest: int | None = 10
) -> Contributions:
    r"""Return the training samples that make the reconstruction of each sample.

    Parameters
    ----------
    learner
        As in `atom_contributions`.
    X_train : array-like, memory map, dataset or iterable of batches
        The training samples, (n_train, n_features).
    X : array-like of shape (n_samples, n_features)
        Samples to reconstruct.
    ridge, n_largest
        As in `atom_contributions`.

    Returns
    -------
    Contributions
        Named tuple of `indices` and `values`, (n_samples, n_largest): the largest :math:`\beta_k`
        of each sample; `estimates`, :math:`\sum_k \beta_k x_k` over all training samples; their
        `distances` from the reconstructions :math:`D z`, relative to these; and the `distance` of
        all together.

    Raises
    ------
    ValueError
        If atoms are not rows, or data are incomplete, or come from a loader that shuffles.
    """
    return _contributions(learner, X_train, X, ridge, n_largest)


def code_saliency(learner: Any, X: ArrayLike | Tensor, *, n_codes: int = 5) -> Saliency:
    r"""Return the derivatives of each sample's largest codes in its features.

    The derivatives are exact for the encoder that `transform` runs, by its adjoint.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning, NOODLDictionaryLearning or PUDLEClassifier
        Fitted; or a `skpudle.ConsensusDictionary` of one.
    X : array-like or Tensor of shape (n_samples, n_features)
        Samples.
    n_codes : int, default=5
        Number of codes, the largest in modulus, to differentiate; without sign, also with
        ``split_sign``.

    Returns
    -------
    Saliency
        Named tuple of `indices`, (n_samples, n_codes), atoms in the order of their codes' modulus,
        and `gradients` :math:`\partial z_j / \partial x`, (n_samples, n_codes, n_features); zero
        for codes that are zero.

    Raises
    ------
    ValueError
        If the learner's encoder has no derivative, like SPORCO's.
    """
    learner = check_learner_of_rows(learner)
    check_scalar(n_codes, "n_codes", (int, np.integer), min_val=1)
    differentiate = getattr(learner, "_codes_with_gradient", None)
    x, codes = (None, None) if differentiate is None else differentiate(X)
    if codes is None or not codes.requires_grad or codes.ndim != 2:
        raise ValueError(
            f"{type(learner).__name__} has no encoder of rows that can be differentiated; pass a "
            "PUDLEDictionaryLearning."
        )
    indices = codes.detach().abs().topk(min(n_codes, codes.shape[1]), dim=1).indices
    chosen = codes.gather(1, indices)
    # samples are independent: the gradient of the sum holds the gradient of each
    gradients = [torch.autograd.grad(c.sum(), x, retain_graph=True)[0] for c in chosen.unbind(1)]
    return Saliency(to_numpy(indices), to_numpy(torch.stack(gradients, dim=1)))
