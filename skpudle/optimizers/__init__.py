"""Optimisers: how a gradient changes the atoms.

An optimiser owns the atoms while they are trained. It offers `update`, which takes the gradient
of a rule and the codes of its batch, and `replace`, which puts new atoms in the place of old ones
and forgets what it remembered of those; both leave the atoms inside their constraints.
"""

from skpudle.optimizers._gradient import GradientOptimizer
from skpudle.optimizers._make import make_optimizer
from skpudle.optimizers._surrogate import SurrogateOptimizer

__all__ = ["GradientOptimizer", "SurrogateOptimizer", "make_optimizer"]
