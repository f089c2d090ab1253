"""Differentiate codes with respect to the features of their samples."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from skpudle._data.arrays import to_numpy
from skpudle._estimators import check_learner_of_rows


class Saliency(NamedTuple):
    """Derivatives of the largest codes of samples with respect to their features.

    Attributes
    ----------
    indices : ndarray of shape (n_samples, n_codes)
        For each sample the numbers of the atoms with the largest moduli of codes.
    gradients : ndarray of shape (n_samples, n_codes, n_features)
        Derivatives of the codes of these atoms with respect to the features of the sample.
    """

    indices: np.ndarray
    gradients: np.ndarray


def code_saliency(learner: Any, X: ArrayLike | Tensor, *, n_codes: int = 5) -> Saliency:
    r"""Return the derivatives of the largest codes of each sample with respect to its features.

    The derivatives show which features a code depends on. They are exact for the encoder that
    ``transform`` runs, and computed by backpropagation.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning, NOODLDictionaryLearning or PUDLEClassifier
        Fitted; or a `skpudle.ConsensusDictionary` of such a learner.
    X : array-like or Tensor of shape (n_samples, n_features)
        Samples.
    n_codes : int, default=5
        Number of codes of each sample to differentiate: the codes with the largest moduli. There is
        one signed code for each atom, even if ``transform`` splits codes by sign (``split_sign``).

    Returns
    -------
    Saliency
        Named tuple of `indices`, (n_samples, n_codes), the numbers of the atoms with the largest
        moduli of codes, in falling order; and `gradients`, (n_samples, n_codes, n_features), the
        derivatives :math:`\partial z_j / \partial x`, which are zero for codes that are zero.

    Raises
    ------
    ValueError
        If the learner's encoder cannot be differentiated, such as the encoder of
        `skpudle.SporcoDictionaryLearning`.
    """
    learner = check_learner_of_rows(learner)
    # ``x`` are the samples as a tensor, and ``codes`` (n_samples, n_components) depend on it.
    encode = getattr(learner, "_codes_with_gradient", lambda X: (X, None))
    x, codes = encode(X)
    if codes is None or not codes.requires_grad:
        raise ValueError(
            f"{type(learner).__name__} has no encoder of rows that can be differentiated. Pass a "
            "PUDLEDictionaryLearning."
        )
    indices = codes.detach().abs().topk(min(n_codes, codes.shape[1]), dim=1).indices
    chosen = codes.gather(1, indices)
    # The codes of a sample depend on this sample alone. So one backward pass for the sum over all
    # samples gives the gradient of the code of sample i in row i.
    gradients = [
        torch.autograd.grad(code.sum(), x, retain_graph=True)[0]
        for code in chosen.unbind(1)
    ]
    return Saliency(to_numpy(indices), to_numpy(torch.stack(gradients, dim=1)))
