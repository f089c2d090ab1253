"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

`search` runs a whole search, and `find_atoms` in `skpudle.search.find` is the same as a generator
of records, one for each epoch. `Problem` holds the data and the objective, and `auto_alpha` returns
the default penalty.
"""

from skpudle.search.find import search
from skpudle.search.problem import Problem, auto_alpha

__all__ = ["Problem", "auto_alpha", "search"]
