"""Initial dictionaries, from the data alone."""

from skpudle._initialization._samples import INITIALIZATIONS, initial_atoms
from skpudle._initialization._vertices import successive_projections

__all__ = ["INITIALIZATIONS", "initial_atoms", "successive_projections"]
