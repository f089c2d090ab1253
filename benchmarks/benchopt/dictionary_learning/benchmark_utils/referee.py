"""One coder for the dictionaries of all solvers, and the share of the true atoms that they have."""

import numpy as np
from sklearn.decomposition import sparse_encode


def unit(atoms):
    """Return atoms of norm 1: in the unit ball none has a lower objective."""
    norms = np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms / np.where(norms > 0, norms, 1)


def lasso_objective(X, atoms, alpha):
    """Return the mean of 1/2 |x - z D|^2 + alpha |z|_1, and the share of nonzero codes."""
    atoms = unit(atoms)
    codes = sparse_encode(X, atoms, algorithm="lasso_cd", alpha=alpha, max_iter=20_000)
    error = 0.5 * np.square(X - codes @ atoms).sum(1)
    return float((error + alpha * np.abs(codes).sum(1)).mean()), float(
        (codes != 0).mean()
    )


def recovery(atoms, truth, least=0.95):
    """Return the share of true atoms with a cosine of at least 0.95 with one that was found."""
    cosines = np.abs(unit(truth) @ unit(atoms).T)
    return float((cosines.max(1) >= least).mean())
