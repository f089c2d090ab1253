"""Initial dictionaries, from the data alone."""

from skpudle.initialization._conv_epoch import ConvProblem, conv_codes, conv_path
from skpudle.initialization._pairwise import pairwise_atoms
from skpudle.initialization._samples import INITIALIZATIONS, initial_atoms
from skpudle.initialization._search import (
    Problem,
    SearchState,
    adapted,
    advance,
    auto_alpha,
    begin,
    debias,
    is_done,
    search,
    without_rows,
)

__all__ = [
    "INITIALIZATIONS",
    "ConvProblem",
    "Problem",
    "SearchState",
    "adapted",
    "advance",
    "auto_alpha",
    "begin",
    "conv_codes",
    "conv_path",
    "debias",
    "initial_atoms",
    "is_done",
    "pairwise_atoms",
    "search",
    "without_rows",
]
