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
)
from skpudle.initialization._size import SizePath, choose_size

__all__ = [
    "INITIALIZATIONS",
    "ConvProblem",
    "Problem",
    "SearchState",
    "SizePath",
    "adapted",
    "advance",
    "auto_alpha",
    "begin",
    "choose_size",
    "conv_codes",
    "conv_path",
    "debias",
    "initial_atoms",
    "is_done",
    "pairwise_atoms",
    "search",
]
