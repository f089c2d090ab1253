"""Gibbs sampling of sparse codes, compiled by numba.

The functions are plain Python until `loops` compiles them. They release the GIL and work on a slice
of rows that no other slice writes to.
"""

import math

import numpy as np

from skpudle._compilation import Loops


def _uniform(state):
    """Advance the two states of L'Ecuyer's combined generator; return a number in (0, 1).

    Integers stay below 2**47, so that plain Python and compiled loops draw the same.
    """
    state[0] = 40014 * state[0] % 2147483563
    state[1] = 40692 * state[1] % 2147483399
    return ((state[0] - state[1]) % 2147483562 + 0.5) / 2147483562


def _normal(state):
    radius = np.sqrt(-2 * np.log(_uniform(state)))
    return radius * np.cos(2 * np.pi * _uniform(state))


def _positive_normal(state, mean, deviation):
    """Draw a normal number above 0; far in the tail by the exponential distribution."""
    least = -mean / deviation
    for _ in range(200):
        if least < 1:
            drawn = _normal(state)
            if drawn > least:
                return mean + deviation * drawn
        else:  # Robert, "Simulation of truncated normal variables", 1995
            excess = -np.log(_uniform(state)) / least
            if np.log(_uniform(state)) <= -0.5 * excess * excess:
                return deviation * excess
    return deviation / max(least, 1.0)


def _log_of_tail(x):
    """Return the logarithm of the probability that a normal number exceeds ``-x``."""
    if x > -30:
        return np.log(0.5 * math.erfc(-x / math.sqrt(2)))
    return -0.5 * x * x - np.log(-2.5066282746310002 * x)


def draw_codes(first, last, correlations, grams, prior, limits, positive, states, z):
    """Draw each code of rows given the row's other codes, one atom after the other.

    ``correlations`` are of residuals and atoms, and ``grams`` of atoms, for all rows or for each
    row, in units of the noise. A code is 0, or has a density proportional to ``exp(pull * z -
    precision * z**2 / 2)`` or the mirrored one. ``prior`` has four rows: these precisions and
    pulls, and the logarithms of the odds of both signs against 0, but for the integral of the
    density. A code of 0 whose correlation is within the ``limits`` stays 0, since its odds are
    negligible.
    """
    n_components = z.shape[1]
    left, state = np.empty(n_components), np.empty(2, np.int64)
    for i in range(first, last):
        gram = grams[i % len(grams)]
        state[0], state[1] = states[i, 0], states[i, 1]
        for k in range(n_components):
            left[k] = correlations[i, k]
        for k in range(n_components):
            old, precision, pull = z[i, k], gram[k, k] + prior[0, k], prior[1, k]
            if precision <= 0 or (old == 0 and limits[0, k] < left[k] < limits[1, k]):
                continue
            correlation = left[k] + gram[k, k] * old
            deviation, size = 1 / np.sqrt(precision), 0.5 * np.log(precision)
            above, below = (correlation + pull) / precision, (correlation - pull) / precision
            plus = prior[2, k] - size + 0.5 * precision * above * above
            minus = prior[3, k] - size + 0.5 * precision * below * below
            if positive:
                plus += _log_of_tail(above / deviation)
            largest = max(plus, minus, 0.0)
            plus, minus = np.exp(plus - largest), np.exp(minus - largest)
            drawn = _uniform(state) * (plus + minus + np.exp(-largest))
            if drawn >= plus + minus:
                new = 0.0
            elif positive:
                new = _positive_normal(state, above, deviation)
            else:
                new = (above if drawn < plus else below) + deviation * _normal(state)
            if new != old:
                z[i, k] = new
                for j in range(n_components):
                    left[j] -= gram[k, j] * (new - old)


loops = Loops(globals())
