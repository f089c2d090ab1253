"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

The search steps from state to state by `begin`, `advance` and `is_done`; `search` runs it.
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
    group_features,
    is_done,
    match_equal_rows,
    search,
    spread_rows,
    without_rows,
)
from skpudle.search._size import SizePath, choose_size
from skpudle.search._stream import (
    Memory,
    StreamState,
    advance_stream,
    after_search,
    begin_stream,
    objective,
    with_atoms,
)

__all__ = [
    "ConvProblem",
    "Memory",
    "Problem",
    "SearchState",
    "SizePath",
    "StreamState",
    "adapted",
    "advance",
    "advance_stream",
    "after_search",
    "auto_alpha",
    "begin",
    "begin_stream",
    "choose_size",
    "conv_codes",
    "conv_path",
    "debias",
    "group_features",
    "is_done",
    "match_equal_rows",
    "objective",
    "search",
    "spread_rows",
    "with_atoms",
    "without_rows",
]
