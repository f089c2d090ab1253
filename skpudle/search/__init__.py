"""Search for a dictionary of the lasso: descent, and atoms that split, move and go.

`begin`, `advance` and `is_done` make the search, from state to state; `search` runs it.
"""

from skpudle.search._conv_epoch import ConvProblem, conv_codes, conv_path
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

__all__ = [
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
    "is_done",
    "search",
    "without_rows",
]
