"""Choose the prior of atoms of counts by hidden entries."""

from scipy import sparse

from skpudle.additive._alternate import begin, converge, solve_codes
from skpudle.additive._dispersion import solve_dispersed

__all__ = ["choose_smoothing"]

# The share of hidden entries; the first value and the largest, in events of an entry of an atom;
# the least, in events; and by how much predictions are worse, in nats, that count as the best.
_HIDDEN, _FIRST, _LAST, _LEAST, _EQUAL = 0.1, 1e-3, 4.0, 0.1, 1.0
# By how much codes may miss the largest likelihood of a row, in nats, to weigh its entries.
_TOL = 0.01


def choose_smoothing(events, atoms, rng, n_fixed=0, dispersion=0.0):  # -> float, atoms
    """Choose the pseudo-events of the prior that predict held-out entries best.

    Parameters
    ----------
    events : Events
        Counts.
    atoms : ndarray of shape (n_components, n_features)
        Initial atoms.
    rng : numpy.random.Generator
        Chooses the entries.
    n_fixed : int, default=0
        The number of first atoms that stay as they are.
    dispersion : float, default=0.0
        As in `weigh`; rates of the initial atoms weigh the entries.

    Returns
    -------
    float, ndarray of shape (n_components, n_features)
        The number, see `advance`, and atoms for it.
    """
    hidden = sparse.random_array(events.counts.shape, density=_HIDDEN, rng=rng, format="csr")
    hidden.data[:] = 1.0
    seen, judge = events.without(hidden)
    _, seen = solve_dispersed(seen, atoms, dispersion, tol=_TOL)
    size = max(float(events.counts.sum()) / atoms.size, 1e-300)
    first, tried = _FIRST * size, {}  # by powers of 2
    least = min(_LEAST, first)

    def try_value(place, state):
        state = converge(seen, state, first * 2.0**place)
        codes = solve_codes(seen, state.atoms, state.codes)
        tried[place] = judge.negative_likelihood(state.atoms, codes, dispersion).sum(), state

    def walk(way, gain, patience):
        """Try values from the first on, until some in a row lower the error by no more than this.

        Errors are no smooth function of the value: alternations end in other local optima.
        """
        place, n_worse = 0, 0
        while n_worse < patience and least <= first * 2.0 ** (place + way) <= _LAST * size:
            best = min(error for error, _ in tried.values())
            place += way
            try_value(place, tried[place - way][1])
            n_worse = 0 if tried[place][0] < best - gain else n_worse + 1

    try_value(0, begin(seen, atoms, n_fixed))
    walk(1, 0.0, 2)
    if min(tried, key=lambda place: tried[place][0]) == 0:  # larger values predict worse
        walk(-1, _EQUAL, 1)
    best = min(error for error, _ in tried.values())
    chosen = max(place for place, (error, _) in tried.items() if error <= best + _EQUAL)
    return first * 2.0**chosen, tried[chosen][1].atoms
