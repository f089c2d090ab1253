"""Metrics of dictionaries and codes, and scorers.

A dictionary is known up to the order and the signs of its atoms: permuting or flipping atoms
permutes or flips the codes and leaves the data as they are. The metrics therefore first match its
atoms with the reference, by the best assignment of all together. Atoms lie on the first axis, in
any shape.
"""

from skpudle.metrics._measures import (
    atom_coherence,
    atom_importance,
    dictionary_error,
    dictionary_stability,
    lasso_objective,
    make_denoising_scorer,
    match_atoms,
    match_components,
    reconstruction_r2_scorer,
    recovery_rate,
    unexplained_variance,
)
from skpudle.metrics._support import atom_support

__all__ = [
    "atom_coherence",
    "atom_importance",
    "atom_support",
    "dictionary_error",
    "dictionary_stability",
    "lasso_objective",
    "make_denoising_scorer",
    "match_atoms",
    "match_components",
    "reconstruction_r2_scorer",
    "recovery_rate",
    "unexplained_variance",
]
