r"""Counts of events from sources that add: the Poisson loss with the identity link.

Every entry is a count with expectation :math:`\mu_{ij} = e_i \sum_k z_{ik} d_{kj}`, of codes and
atoms that are not negative. The negative log-likelihood is the Kullback-Leibler divergence of
:math:`\mu` from the data. Atoms sum to 1, so that codes count events.
"""

from skpudle._additive._alternate import (
    Events,
    Progress,
    advance,
    atoms_of_events,
    begin,
    converge,
    expected_events,
    limit_atoms,
    negative_log,
    prune_codes,
    solve_codes,
    start_from,
)
from skpudle._additive._dispersion import (
    converge_dispersed,
    estimate_dispersion,
    solve_dispersed,
    weigh,
)
from skpudle._additive._prior import Prior, choose_prior
from skpudle._additive._size import SizePath, choose_size, first_atoms
from skpudle._additive._start import spectral_start

__all__ = [
    "Events",
    "Prior",
    "Progress",
    "SizePath",
    "advance",
    "atoms_of_events",
    "begin",
    "choose_prior",
    "choose_size",
    "converge",
    "converge_dispersed",
    "estimate_dispersion",
    "expected_events",
    "first_atoms",
    "limit_atoms",
    "negative_log",
    "prune_codes",
    "solve_codes",
    "solve_dispersed",
    "spectral_start",
    "start_from",
    "weigh",
]
