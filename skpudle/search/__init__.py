"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

The search steps from state to state by `begin`, `advance` and `is_done`; `search` runs it.
"""

from skpudle.search._conv_epoch import ConvProblem, conv_codes, conv_path
from skpudle.search._progress import IN_WORDS, MOST_AFTERWARDS, MOST_SETTLING, share_done
from skpudle.search._search import (
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
from skpudle.search._size import SizePath, choose_size

__all__ = [
    "IN_WORDS",
    "MOST_AFTERWARDS",
    "MOST_SETTLING",
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
    "is_done",
    "search",
    "share_done",
    "without_rows",
]
