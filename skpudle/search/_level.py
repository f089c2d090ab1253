"""The penalty of signals whose noise is not white.

Differences of neighbours measure the level of white noise. Slow noise has small differences, and
large correlations with slow atoms. The universal threshold of such noise follows from the
correlations themselves: their median modulus, of atoms and the residual of least squares on the
supports. Where that threshold is above the penalty of a search, codes follow the noise, and hide
some of it from the residual. So a new search has the threshold for its penalty, until it is not
exceeded.
"""

from dataclasses import replace
from math import log, sqrt

from skpudle._operators._conv import ConvDictionary
from skpudle.search._descent import solve_codes
from skpudle.search._epoch import spread_rows
from skpudle.search._held_out import hold_out
from skpudle.search._search import search

# Number of samples that the residuals are taken from, and epochs that solve for their codes.
_SAMPLES, _EPOCHS = 2**17, 4
# A new search follows if the threshold is more than _EXCESS times the penalty, at most _MOST times.
# The threshold is .5 to 1.2 of the penalty in white noise, and 1.2 to 2.2 in autoregressive noise
# of coefficient 0.9; there it still rises after four searches, but a larger penalty loses atoms.
_EXCESS, _MOST = 1.25, 4
_MEDIAN_OF_NORMAL = 0.6745


def correlation_level(problem, atoms):
    """Return the universal threshold of the correlations of atoms and residuals.

    Parameters
    ----------
    problem : ConvProblem
        Data and objective.
    atoms : Tensor of shape (n_components, n_channels, height, width)
        Atoms.

    Returns
    -------
    float
        The threshold, in the units of the penalty.
    """
    n_rows = max(1, _SAMPLES // problem.x[0, 0].numel())
    rows = spread_rows(len(problem.x), n_rows)
    epoch = solve_codes(problem.of_rows(rows), atoms, _EPOCHS)
    correlations = ConvDictionary(atoms, problem.stride).analysis(epoch.refitted_residual())
    noise = float(correlations.abs().median()) / _MEDIAN_OF_NORMAL
    return noise * sqrt(2 * log(max(len(problem.x) * problem.n_positions, 2)))


def search_above_noise(problem, atoms, state):
    """Repeat a search with a penalty above the level of the noise, if its penalty was below.

    Parameters
    ----------
    problem : ConvProblem
        Data and objective of the search, with what it held out.
    atoms : Tensor of shape (n_components, n_channels, height, width)
        Initial atoms.
    state : SearchState
        Last state of that search.

    Returns
    -------
    ConvProblem
        Data and objective of the last search.
    SearchState
        Its last state.
    """
    for _ in range(_MOST):
        level = correlation_level(replace(problem, alpha=state.alpha), state.best_atoms)
        if level <= _EXCESS * state.alpha:
            break
        plain = replace(problem, alpha=level, held_out=None, held_rows=None)
        problem = hold_out(plain, fixed=True)
        state = search(problem, atoms)
    return problem, state
