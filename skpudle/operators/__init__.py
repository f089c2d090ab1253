r"""Dictionaries as trilinear forms.

A dictionary is the form ``<D z, x>``, linear in the atoms, in the codes ``z`` and in the data
``x``. Its three partial derivatives are all that an encoder, its adjoint and a gradient rule need:

* ``synthesis(z)``, the derivative in ``x``: codes to data, ``D z``;
* ``analysis(x)``, the derivative in ``z``: data to correlations, ``D^T x``;
* ``outer(z, x)``, the derivative in the atoms, summed over samples.

Atoms have the atom on axis 0 for every kind of dictionary, so whatever treats atoms one by one
(normalising, matching, resampling, plotting) is written once.
"""

from skpudle.operators._atoms import (
    DenseDictionary,
    atom_norms,
    largest_eigenvalue_bound,
    project_atoms,
)
from skpudle.operators._conv import ConvDictionary, ConvLayers, Phases

__all__ = [
    "ConvDictionary",
    "ConvLayers",
    "DenseDictionary",
    "Phases",
    "atom_norms",
    "largest_eigenvalue_bound",
    "project_atoms",
]
