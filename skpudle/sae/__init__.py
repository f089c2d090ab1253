"""Dictionaries in the place of sparse autoencoders: exact codes, files, directions of features."""

from skpudle.sae._directions import feature_directions
from skpudle.sae._files import save
from skpudle.sae._learner import from_sae

__all__ = ["feature_directions", "from_sae", "save"]
