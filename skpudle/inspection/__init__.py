"""Look into a fit: what atoms are made of, what codes depend on, and how sure both are.

==============================  ===============================================================
`atom_contributions`            the training samples that make each atom
`reconstruction_contributions`  the training samples that make the reconstruction of a sample
`code_saliency`                 the derivatives of codes in the data
`atom_intervals`                intervals of the entries of atoms
`code_intervals`                intervals of codes
`error_bound`                   the least error of atoms that any method can have
==============================  ===============================================================
"""

from skpudle.inspection._contributions import (
    atom_contributions,
    code_saliency,
    reconstruction_contributions,
)
from skpudle.inspection._intervals import atom_intervals, code_intervals, error_bound

__all__ = [
    "atom_contributions",
    "atom_intervals",
    "code_intervals",
    "code_saliency",
    "error_bound",
    "reconstruction_contributions",
]
