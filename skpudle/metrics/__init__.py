"""How well a dictionary and its codes are recovered, and scorers made of that.

A dictionary is known up to the order and the signs of its atoms: permuting or flipping atoms
permutes or flips the codes and leaves the data as they are. So it is matched with the reference
first, by the best assignment of all atoms together. They lie on the first axis, in any shape.
"""

from skpudle.metrics._concepts import mean_correlation, unexplained_variance
from skpudle.metrics._dictionaries import (
    AtomMatch,
    atom_coherence,
    atom_cosines,
    dictionary_error,
    lasso_objective,
    make_denoising_scorer,
    make_dictionary_recovery_scorer,
    make_lasso_objective_scorer,
    match_atoms,
    reconstruction_r2_scorer,
    recovery_rate,
    support_recovery,
)
from skpudle.metrics._importance import atom_importance
from skpudle.metrics._stability import dictionary_stability

__all__ = [
    "AtomMatch",
    "atom_coherence",
    "atom_cosines",
    "atom_importance",
    "dictionary_error",
    "dictionary_stability",
    "lasso_objective",
    "make_denoising_scorer",
    "make_dictionary_recovery_scorer",
    "make_lasso_objective_scorer",
    "match_atoms",
    "mean_correlation",
    "reconstruction_r2_scorer",
    "recovery_rate",
    "support_recovery",
    "unexplained_variance",
]
