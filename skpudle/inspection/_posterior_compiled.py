"""Gibbs sampling of sparse codes, compiled by numba.

`draw_codes` is the only function that other modules call, by ``loops.draw_codes``. The functions
are plain Python until `loops` compiles them. Compiled functions release the GIL. Each thread calls
`draw_codes` for its own slice of rows, and writes to these rows of ``z`` only.
"""

import math

import numpy as np

from skpudle._compilation import Loops


def _uniform(state):
    """Advance L'Ecuyer's combined generator in place; return a uniform number in (0, 1).

    ``state`` holds two integers. Products stay below 2**47, so that plain Python and compiled loops
    draw the same numbers.
    """
    state[0] = 40014 * state[0] % 2147483563
    state[1] = 40692 * state[1] % 2147483399
    return ((state[0] - state[1]) % 2147483562 + 0.5) / 2147483562


def _normal(state):
    radius = np.sqrt(-2 * np.log(_uniform(state)))
    return radius * np.cos(2 * np.pi * _uniform(state))


def _positive_normal(state, mean, deviation):
    """Draw a normal number with this mean and standard deviation, given that it is above 0.

    If 0 lies more than one deviation above the mean, an exponential distribution is drawn from, and
    draws are accepted by Robert's rule.
    """
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
    """Draw each code of the rows ``first`` to ``last - 1`` given the row's other codes, in ``z``.

    A code is 0, or has a density proportional to ``exp(pull * z - precision * z**2 / 2)`` for
    positive codes and ``exp(-pull * z - precision * z**2 / 2)`` for negative codes. Arrays are in
    units of the noise, for n rows and p atoms:

    - ``correlations`` (n, p): products of residuals and atoms at the codes ``z``;
    - ``grams`` (1 or n, p, p): products of atoms, for all rows or for each row;
    - ``prior`` (4, p): precisions, pulls, and the logarithms of the odds of a positive and of a
      negative code against 0, without the integrals of the densities;
    - ``limits`` (2, p): a code of 0 with a correlation between them stays 0 without a draw;
    - ``positive``: whether codes are non-negative;
    - ``states`` (n, 2): seeds of the random numbers of each row;
    - ``z`` (n, p): old codes, which the new codes replace.
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
