"""Optimisers: change atoms along a gradient, inside their constraints.

An optimiser owns the atoms while they are trained. `update` takes the gradient of a rule and the
codes of its batch. `replace` puts new atoms in place of old ones, and forgets its memory of the old
ones. Both leave the atoms inside their constraints.
"""
