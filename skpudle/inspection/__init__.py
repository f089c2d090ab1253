"""Inspect a fit: its faults, what atoms are made of, and how uncertain atoms and codes are.

==============================  ===============================================================
`findings`                      the faults of a fit in words, each with a remedy
`atom_contributions`            the training samples that make each atom
`reconstruction_contributions`  the training samples that make the reconstruction of a sample
`code_saliency`                 the derivatives of codes with respect to the data
`atom_support`                  the atoms that fits to both halves of the data find again
`atom_intervals`                intervals that hold the true entries of atoms
`code_intervals`                intervals that hold the true codes
`error_bound`                   the least error of atoms that any method can have
==============================  ===============================================================
"""

from skpudle.inspection._contributions import (
    atom_contributions,
    reconstruction_contributions,
)
from skpudle.inspection._findings import findings
from skpudle.inspection._intervals import atom_intervals, code_intervals, error_bound
from skpudle.inspection._saliency import code_saliency
from skpudle.inspection._support import atom_support

__all__ = [
    "atom_contributions",
    "atom_intervals",
    "atom_support",
    "code_intervals",
    "code_saliency",
    "error_bound",
    "findings",
    "reconstruction_contributions",
]
