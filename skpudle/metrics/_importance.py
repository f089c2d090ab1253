"""Importance of atoms: uses, energy, and the loss of R^2 without the atom."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch, check_array

from skpudle._data.arrays import host_array
from skpudle._data.foreign import drop_names
from skpudle.metrics._codes import FLOATS, check_learner_of_rows, code_and_reconstruction


def _codes_and_errors(learner, X, rows):  # -> codes (n, n_features_out), squared errors (n,)
    _, codes, reconstruction = code_and_reconstruction(learner, X)
    return codes, np.nansum(np.square(rows - reconstruction), axis=1, dtype=np.float64)


def _without(learner, atom):
    """Return a copy of a learner in which no code uses one of the atoms.

    The atom becomes zero. A learned encoder has an analysis of its own, so its thresholds for the
    atom become infinite.
    """
    other = drop_names(learner)
    other.components_ = np.array(learner.components_)
    other.components_[atom] = 0
    if hasattr(learner, "thresholds_"):
        other.thresholds_ = np.array(learner.thresholds_)
        other.thresholds_[:, atom] = np.inf
    return other


def atom_importance(learner: Any, X: ArrayLike) -> Bunch:
    r"""Return how much each atom contributes: its uses, its energy, and the loss of R^2 without it.

    The energies of atoms do not add up to the energy that all atoms explain, since atoms are not
    orthogonal: copies share their energy, and removing one copy costs little. So each atom is
    removed in turn, the samples that used it are encoded by the remaining atoms, and the loss of
    R^2 is measured.

    Parameters
    ----------
    learner : estimator
        Fitted, with ``components_`` of shape (n_components, n_features) and `transform`:
        of this package, or `~sklearn.decomposition.NMF`,
        `~sklearn.decomposition.MiniBatchDictionaryLearning` and the like.
    X : array-like of shape (n_samples, n_features)
        Data, as `transform` takes them; NaN if the learner takes them for missing.

    Returns
    -------
    Bunch
        With these arrays of shape (n_components,):

        - ``usage``, the share of the samples whose code of the atom is not zero;
        - ``energy``, the share of the sum of :math:`z_{ij}^2 \|d_j\|^2`;
        - ``r2_loss``, by how much R^2 of the reconstruction falls without the atom, pooled over all
          known entries and against the column means. Samples that did not use it keep their codes.

    Raises
    ------
    ValueError
        If atoms are convolved.

    Examples
    --------
    >>> import numpy as np
    >>> from skpudle import PUDLEDictionaryLearning
    >>> from skpudle.metrics import atom_importance
    >>> X = np.diag([2.0, 1.0]).repeat(5, axis=0)
    >>> learner = PUDLEDictionaryLearning.from_components(np.eye(2), alpha=1e-6)
    >>> atom_importance(learner, X).r2_loss.round(2)
    array([1.6, 0.4])
    """
    learner = check_learner_of_rows(learner)
    given = host_array(X)  # keeps names of columns
    X = check_array(given, dtype=FLOATS, ensure_all_finite="allow-nan", input_name="X")
    n_components = len(learner.components_)
    codes, errors = _codes_and_errors(learner, given, X)
    if codes.shape[1] == 2 * n_components:  # codes are split by sign
        codes = codes[:, :n_components] - codes[:, n_components:]
    energy = np.square(codes).sum(axis=0, dtype=np.float64)
    energy *= np.square(learner.components_).sum(axis=1)
    known = ~np.isnan(X)
    mean = np.nansum(X, axis=0) / np.maximum(known.sum(axis=0), 1)
    total = np.nansum(np.square(X - mean), dtype=np.float64)
    losses = np.zeros(n_components)
    for atom in range(n_components):
        users = np.flatnonzero(codes[:, atom])
        if len(users):
            _, left = _codes_and_errors(_without(learner, atom), X[users], X[users])
            losses[atom] = left.sum() - errors[users].sum()
    return Bunch(
        usage=(codes != 0).mean(axis=0),
        energy=energy / (energy.sum() or 1.0),
        r2_loss=losses / (total or 1.0),
    )
