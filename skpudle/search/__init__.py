"""Search for a dictionary of the lasso: descend, split, move and remove atoms.

The search steps from state to state by `begin`, `advance` and `is_done`; `search` runs it.
"""

from skpudle.search._coding import choose_coding, coding_of_l0, coding_of_support, judged_rows
from skpudle.search._conv_epoch import ConvProblem, conv_codes, conv_path
from skpudle.search._descent import refit_atoms
from skpudle.search._epoch import spread_rows
from skpudle.search._held_out import (
    HeldOut,
    HiddenPixels,
    best_shares,
    hide_in_turn,
    hold_out,
    match_equal_rows,
)
from skpudle.search._level import correlation_level, search_above_noise
from skpudle.search._maps import (
    combine_channels,
    map_directions,
    principal_directions,
    refine_products,
    spread_channels,
)
from skpudle.search._penalty import PenaltyPath, penalty_of_mixtures, penalty_path
from skpudle.search._search import (
    Problem,
    SearchState,
    advance,
    auto_alpha,
    begin,
    is_done,
    search,
    searched,
)
from skpudle.search._size import SizePath, SizeTrial, try_sizes
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
    "HeldOut",
    "HiddenPixels",
    "Memory",
    "PenaltyPath",
    "Problem",
    "SearchState",
    "SizePath",
    "SizeTrial",
    "StreamState",
    "advance",
    "advance_stream",
    "after_search",
    "auto_alpha",
    "begin",
    "begin_stream",
    "best_shares",
    "choose_coding",
    "coding_of_l0",
    "coding_of_support",
    "combine_channels",
    "conv_codes",
    "conv_path",
    "correlation_level",
    "hide_in_turn",
    "hold_out",
    "is_done",
    "judged_rows",
    "map_directions",
    "match_equal_rows",
    "objective",
    "penalty_of_mixtures",
    "penalty_path",
    "principal_directions",
    "refine_products",
    "refit_atoms",
    "search",
    "search_above_noise",
    "searched",
    "spread_channels",
    "spread_rows",
    "try_sizes",
    "with_atoms",
]
