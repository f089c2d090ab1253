"""Choose the prior of atoms of counts, and whether rows have few atoms, by hidden entries."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from skpudle._additive._alternate import begin, converge, limit_atoms, solve_codes
from skpudle._additive._dispersion import solve_dispersed

# Share of hidden entries; first and largest smoothing, in mean events of an entry of an atom; least
# smoothing, in events, and loss of prediction that counts as equal, in nats, for rows that count
# once.
_HIDDEN, _FIRST, _LAST, _LEAST, _EQUAL = 0.1, 1e-3, 4.0, 0.1, 1.0
# Tolerance of the likelihood of a row, in nats, for the weights of its entries.
_TOL = 0.01
# Least gain of an atom in a row, in nats, if rows have few atoms.
_GAIN = 3.0


class Prior(NamedTuple):
    """The prior of atoms and codes, and atoms for it.

    Attributes
    ----------
    smoothing : float
        Pseudo-events of the prior of the atoms, see `advance`.
    min_gain : float
        The least gain of log-likelihood, in nats, by which an atom stays in a row; 0 if rows may
        have all atoms.
    atoms : ndarray of shape (n_components, n_features)
        Atoms that have adapted to the known entries.
    """

    smoothing: float
    min_gain: float
    atoms: np.ndarray


def _try_values(judged, state, size, unit):  # -> float, error, Progress
    """Try smoothings over powers of 2; return the best, its error and its state.

    ``judged(smoothing, state)`` returns the error and the state of a fit; ``size`` is the mean
    number of events of an entry of an atom, ``unit`` the typical weight of a row.
    """
    first, tried, equal = _FIRST * size, {}, _EQUAL * unit
    least = min(_LEAST * unit, first)
    tried[0] = judged(first, state)

    def walk(way, gain, patience):
        """Try values from the first on, until ``patience`` in a row gain no more than ``gain``.

        The error is not smooth in the value, since alternations end in different local optima.
        """
        place, n_worse = 0, 0
        while n_worse < patience and least <= first * 2.0 ** (place + way) <= _LAST * size:
            best = min(error for error, _ in tried.values())
            place += way
            tried[place] = judged(first * 2.0**place, tried[place - way][1])
            n_worse = 0 if tried[place][0] < best - gain else n_worse + 1

    walk(1, 0.0, 2)
    if min(tried, key=lambda place: tried[place][0]) == 0:  # larger values predict worse
        walk(-1, equal, 1)
    best = min(error for error, _ in tried.values())
    chosen = max(place for place, (error, _) in tried.items() if error <= best + equal)
    return first * 2.0**chosen, *tried[chosen]


def choose_prior(
    events, atoms, rng, *, smoothing="auto", min_gain=0.0, n_fixed=0, dispersion=0.0
):  # -> Prior
    """Choose the pseudo-events of the prior, and the atoms of rows, by hidden entries.

    Parameters
    ----------
    events : Events
        Counts without weights.
    atoms : ndarray of shape (n_components, n_features)
        Initial atoms.
    rng : numpy.random.Generator
        Chooses the entries.
    smoothing : float or "auto", default="auto"
        Pseudo-events of the prior; "auto" chooses them.
    min_gain : float or "auto", default=0.0
        The least gain of an atom in a row; "auto" chooses between 0 and 3.
    n_fixed : int, default=0
        The number of first atoms that stay as they are.
    dispersion : float, default=0.0
        As in `weigh`; rates of the initial atoms weigh the entries.

    Returns
    -------
    Prior
        The numbers, and atoms for them.
    """
    if "auto" not in (smoothing, min_gain):
        return Prior(smoothing, min_gain, atoms)
    shape, unit = events.counts.shape, events.typical_weight
    density = max(_HIDDEN, 1 / (shape[0] * shape[1]))  # at least one entry
    hidden = sparse.random_array(shape, density=density, rng=rng, format="csr")
    hidden.data[:] = 1.0
    seen, judge = events.without(hidden)
    _, seen = solve_dispersed(seen, atoms, dispersion, tol=_TOL)
    size = max(float(events.repeated.sum()) / atoms.size, 1e-300)

    def best(events, state):  # -> smoothing, error, Progress
        def judged(value, state):
            state = converge(events, state, value)
            codes = solve_codes(seen, state.atoms, state.codes)  # codes without pruning validate
            errors = judge.negative_likelihood(state.atoms, codes, dispersion)
            return events.total(errors), state

        if smoothing == "auto":
            return _try_values(judged, state, size, unit)
        return smoothing, *judged(smoothing, state)

    value, error, state = best(seen, begin(seen, atoms, n_fixed))
    gain = _GAIN if min_gain == "auto" else min_gain
    if gain:
        few, limited = limit_atoms(seen, state, value, gain)
        found = best(limited, few)
        if min_gain != "auto" or found[1] <= error + _EQUAL * unit:
            return Prior(found[0], gain, found[2].atoms)
    return Prior(value, 0.0, state.atoms)
