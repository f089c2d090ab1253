"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

A search is a generator of records, one for each epoch; `search` runs it.
"""

from skpudle.search.find import search
from skpudle.search.problem import Problem, auto_alpha

__all__ = ["Problem", "auto_alpha", "search"]
