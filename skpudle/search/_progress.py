"""Progress of a search: its phases in words, and the share of it that is done."""

from skpudle.search._search import MAX_EPOCHS, MAX_ROUNDS, is_done

__all__ = ["IN_WORDS", "MOST_AFTERWARDS", "MOST_SETTLING", "share_done"]

# Largest numbers of epochs: of one phase that settles, and after these. A search settles once more
# each time that it at least halves its stride.
MOST_SETTLING = MAX_EPOCHS["settle"]
MOST_AFTERWARDS = MAX_EPOCHS["polish"] + MAX_ROUNDS * (
    MAX_EPOCHS["larger"] + MAX_EPOCHS["smaller"]
)

IN_WORDS = {
    "settle": "settling",
    "larger": "with split atoms",
    "smaller": "without spare atoms",
    "polish": "polishing",
    "done": "done",
}


def share_done(state):
    """Return the epochs so far as a share of those that there are at most, from 0 to 1.

    Phases end as soon as their objective stalls, so the share jumps from phase to phase. It falls
    where a search settles again on more samples.

    Parameters
    ----------
    state : SearchState
        State of a search.
    """
    if is_done(state):
        return 1.0
    left = MAX_EPOCHS[state.phase] - len(state.curve)
    n_rounds = 0
    if state.phase != "polish":
        left += MAX_EPOCHS["polish"]
        n_rounds = MAX_ROUNDS - state.n_rounds if state.n_splits > 0 else 0
    left += n_rounds * (MAX_EPOCHS["larger"] + MAX_EPOCHS["smaller"])
    left += MAX_EPOCHS["smaller"] if state.phase == "larger" else 0
    return state.epoch / (state.epoch + max(left, 1))
