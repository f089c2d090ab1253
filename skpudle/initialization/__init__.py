"""Initial dictionaries, from the data alone."""

from skpudle.initialization._pairwise import pairwise_atoms
from skpudle.initialization._samples import INITIALIZATIONS, initial_atoms
from skpudle.initialization._search import (
    Problem,
    SearchState,
    advance,
    auto_alpha,
    begin,
    debias,
    is_done,
    search,
)

__all__ = [
    "INITIALIZATIONS",
    "Problem",
    "SearchState",
    "advance",
    "auto_alpha",
    "begin",
    "debias",
    "initial_atoms",
    "is_done",
    "pairwise_atoms",
    "search",
]
