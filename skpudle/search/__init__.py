"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

The search steps from state to state by `begin`, `advance` and `is_done`; `search` runs it.
"""

from skpudle.search._search import Problem, auto_alpha, search

__all__ = ["Problem", "auto_alpha", "search"]
