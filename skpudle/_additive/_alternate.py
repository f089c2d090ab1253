"""Alternate between codes and atoms of counts, each a convex problem, row by row.

Plain alternation is slow where spectra are alike: its steps are short and point in the same
direction. So atoms and codes are *extrapolated* along their last step before each sweep. A sweep
over the codes returns the objective; if the objective has risen, the sweep is repeated from the
point before the extrapolation, and the next extrapolations are half as long. So the objective never
rises.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.special import xlogy

from skpudle._additive._compiled import loops
from skpudle._compilation import in_parts
from skpudle.search._epoch import draw_rows

# Prunings of rows; the atoms adapt after each pruning.
_PRUNINGS = 4
# Most sweeps of coordinate descent, and the duality gap of a row's log-likelihood that ends them. A
# step of the alternation makes one sweep, since the atoms change as well.
_SWEEPS, _TOL = 2000, 1e-5
# The share of the mean spectrum in initial atoms: an entry of 0 could never explain an event
# without a prior.
_SHARE_OF_MEAN = 0.01
# Factor of the first extrapolation, its growth after each step, its largest value, and the least
# share of an atom's entry that an extrapolation keeps. For 300 rows of 8 flat spectra the
# likelihood is within 1 of its maximum after 68 steps (439 without extrapolation).
_FACTOR, _GROWTH, _LARGEST, _KEPT = 0.5, 1.05, 1.0, 1e-3
# `converge` ends after _STALLED steps without a relative improvement of _IMPROVED, or after _MOST.
_STALLED, _IMPROVED, _MOST = 3, 1e-6, 400
# the least rate of an entry, in mean rates
_LEAST_RATE = 1e-3
# share of nonzero entries from which on a dense product is faster
_DENSE = 0.1
# least number of rows that pays for a thread
_ROWS = 64


@dataclass(frozen=True)
class Events:
    """Counts by their nonzero entries.

    Weights of entries are those of the dispersion, and codes depend on them. Weights of rows are
    the user's: how often a row counts in sums over rows, those of the objective, of the events of
    atoms and of the errors of hidden entries. Codes do not depend on weights of rows.

    Parameters
    ----------
    counts : scipy.sparse.csr_array of shape (n_samples, n_features)
        Known counts, float64, times the weights of entries.
    missing : scipy.sparse.csr_array of shape (n_samples, n_features), default=None
        1 where entries are missing, else 1 minus the weights of entries.
    exposure : ndarray of shape (n_samples,), default=None
        Factors of the expectations.
    row_weight : ndarray of shape (n_samples,), default=None
        How often each row counts in sums over rows, above 0; None is once.
    plain : scipy.sparse.csr_array of shape (n_samples, n_features), default=None
        Counts without weights of entries, with the same entries; by default weights are 1.
    allowed : ndarray of shape (n_samples, n_components), default=None
        True for the atoms that a row may have; by default all.
    """

    counts: sparse.csr_array
    missing: sparse.csr_array | None = None
    exposure: np.ndarray | None = None
    row_weight: np.ndarray | None = None
    plain: sparse.csr_array | None = None
    allowed: np.ndarray | None = None

    @classmethod
    def of(cls, x, mask=None, exposure=None, row_weight=None):
        """Return the events of a dense array, with a mask of known entries, 1 or 0."""
        counts = sparse.csr_array(np.where(mask == 0, 0.0, x) if mask is not None else x)
        missing = None if mask is None else sparse.csr_array((mask == 0).astype(np.float64))
        return cls(counts.astype(np.float64), missing, exposure, row_weight)

    @classmethod
    def joined(cls, parts):
        """Return the events of several parts of rows."""
        parts = list(parts)
        counts = sparse.vstack([part.counts for part in parts], format="csr")
        missing = exposure = row_weight = None
        if any(part.missing is not None for part in parts):
            empty = [sparse.csr_array(part.counts.shape) for part in parts]
            gaps = [p.missing if p.missing is not None else e for p, e in zip(parts, empty)]
            missing = sparse.vstack(gaps, format="csr")
        if parts[0].exposure is not None:
            exposure = np.concatenate([part.exposure for part in parts])
        if parts[0].row_weight is not None:
            row_weight = np.concatenate([part.row_weight for part in parts])
        return cls(counts, missing, exposure, row_weight)

    @property
    def n_rows(self):  # -> number
        """The number of rows, the sum of their weights."""
        return self.counts.shape[0] if self.row_weight is None else float(self.row_weight.sum())

    @property
    def typical_weight(self):  # -> float
        """The mean weight of rows, weighted by itself; 1 without weights.

        Chance differences of sums over rows grow with it. So a number of events or nats that counts
        as chance is in its unit.
        """
        if self.row_weight is None:
            return 1.0
        return float(np.square(self.row_weight).sum() / self.row_weight.sum())

    def total(self, values):  # (n, ...) -> float
        """Return the sum over rows."""
        if self.row_weight is None:
            return float(values.sum())
        return float(self.row_weight @ values.reshape(len(values), -1).sum(1))

    def total_of_entries(self, values):  # (n_entries,) -> float
        """Return the sum over the nonzero counts."""
        if self.row_weight is None:
            return float(values.sum())
        return float(self.row_weight[_rows_of(self.counts)] @ values)

    @cached_property
    def repeated(self):  # -> CSR of shape (n_samples, n_features)
        """The counts of each row times its weight."""
        if self.row_weight is None:
            return self.counts
        counts = self.counts.copy()
        counts.data *= self.row_weight[_rows_of(counts)]
        return counts

    @cached_property
    def saturated(self):  # -> float
        """The log-likelihood of rates that equal the counts, with the exposures."""
        events, scale = self.counts.data, 1.0
        if self.exposure is not None:
            scale = self.exposure[_rows_of(self.counts)]
        return self.total_of_entries(xlogy(events, self._plain / scale) - events)

    @property
    def _plain(self):  # -> (n_entries,): counts without weights of entries
        return (self.counts if self.plain is None else self.plain).data

    @cached_property
    def by_feature(self):  # -> CSR of shape (n_features, n_samples)
        """The transpose of the repeated counts."""
        return sparse.csr_array(self.repeated.T)

    @cached_property
    def mean(self):  # -> (n_features,)
        """The mean spectrum, with half an event more in every feature; its sum is 1."""
        total = self.repeated.sum(0) + 0.5
        if self.missing is not None:
            weight, least = self.row_weight, 1.0
            if weight is None:
                n_missing = self.missing.sum(0)
            else:
                n_missing, least = self.missing.T @ weight, min(least, weight.min())
            total = total / np.maximum(self.n_rows - n_missing, least)
        return total / total.sum()

    def half_deviance(self, atoms, codes):  # -> float
        """Return half the deviance of all known entries."""
        counts, rates = self.counts, _rates(self.counts, atoms, codes)
        if self.exposure is not None:
            rates = rates * self.exposure[_rows_of(counts)]
        rates = np.maximum(rates, np.finfo(np.float64).tiny)
        entries = xlogy(counts.data, self._plain) - xlogy(counts.data, rates) - counts.data
        return self.total(self.loads(atoms) * codes) + self.total_of_entries(entries)

    def take(self, rows):  # -> Events
        """Return the events of some rows."""
        given = self.missing, self.exposure, self.row_weight, self.plain, self.allowed
        return Events(self.counts[rows], *(t if t is None else t[rows] for t in given))

    def sample(self, n_places):  # -> Events
        """Return rows from all parts of the rows; all rows if there are no more than places.

        Rows are drawn by their weights, and then count equally.
        """
        n, weight = self.counts.shape[0], self.row_weight
        rows, drawn = draw_rows(n, n_places, None if weight is None else torch.tensor(weight))
        some = self.take(np.asarray(rows))
        if weight is None or len(drawn) == n:
            return some
        return replace(some, row_weight=np.asarray(drawn) * weight.mean())

    def unexplained(self, atoms, codes):  # -> Events
        """Return the events beyond the expectations."""
        rates = _rates(self.counts, atoms, codes)
        if self.exposure is not None:
            rates = rates * self.exposure[_rows_of(self.counts)]
        counts = self.counts.copy()
        counts.data = np.maximum(counts.data - rates, 0.0)
        return Events(counts, self.missing, self.exposure, self.row_weight)

    def without(self, hidden):  # (n, n_features) CSR of 1 -> Events, Events
        """Hide entries; return the events of the visible entries, and the hidden entries."""
        hidden = hidden if self.missing is None else hidden - hidden.multiply(self.missing)
        hidden.eliminate_zeros()
        found = self.counts.multiply(hidden).tocsr()
        rest = (self.counts - found).tocsr()
        rest.eliminate_zeros()
        missing = hidden if self.missing is None else self.missing + hidden
        given = self.exposure, self.row_weight
        return Events(rest, missing, *given), Hidden(found, hidden, *given)

    def loads(self, atoms):  # (n_components, n_features) -> (n, n_components)
        """Return the events that a unit of each code is expected to show in each row."""
        loads = np.broadcast_to(atoms.sum(1), (self.counts.shape[0], len(atoms)))
        if self.missing is not None:
            loads = (loads - self.missing @ atoms.T).clip(0)
        if self.allowed is not None:
            loads = np.where(self.allowed, loads, 0.0)
        return loads if self.exposure is None else loads * self.exposure[:, None]

    def visible(self, codes):  # (n, n_components) -> (n_features, n_components)
        """Return the sum of each atom's codes, times exposures, over rows that know a feature."""
        codes = codes if self.exposure is None else codes * self.exposure[:, None]
        codes = codes if self.row_weight is None else codes * self.row_weight[:, None]
        total = np.broadcast_to(codes.sum(0), (self.counts.shape[1], codes.shape[1]))
        return total if self.missing is None else (total - self.missing.T @ codes).clip(0)


def _solve(counts, atoms, loads, prior, z, sweeps, tol):  # -> (n,), sum x log mu; changes z
    """Solve for rows; see `skpudle._additive._compiled.solve_rows`."""
    explained = np.empty(len(z))
    arrays = counts.indptr.astype(np.int64), counts.indices.astype(np.int64), counts.data
    given = np.ascontiguousarray(atoms.T), np.ascontiguousarray(loads), prior, sweeps, tol
    solve = loops().solve_rows
    in_parts(lambda a, b: solve(a, b, *arrays, *given, z, explained), len(z), _ROWS)
    return explained


def _first_codes(events, loads):  # -> (n, n_components)
    total = np.asarray(events.counts.sum(1), dtype=np.float64)[:, None]
    n_components = loads.shape[1]
    return np.where(loads > 0, total / np.where(loads > 0, loads, 1.0) / n_components, 0.0)


def solve_codes(events, atoms, codes=None, tol=_TOL):
    """Return the codes of most likely rates.

    Parameters
    ----------
    events : Events
        Counts.
    atoms : ndarray of shape (n_components, n_features)
        Atoms, not negative.
    codes : ndarray of shape (n_samples, n_components), default=None
        Codes to start from; the result does not depend on them where it is unique.
    tol : float, default=1e-5
        By how much the log-likelihood of a row may be below its maximum.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Codes: rates at exposure 1 are ``codes @ atoms``.
    """
    loads = events.loads(atoms)
    z = _first_codes(events, loads) if codes is None else codes.copy()
    _solve(events.counts, atoms, loads, np.zeros(len(z)), z, _SWEEPS, tol)
    return z


def prune_codes(events, atoms, codes, min_gain):
    """Return codes of fewer atoms: an atom leaves a row if it raises the likelihood by too little.

    Rows are pruned independently. First leaves the atom whose removal lowers the row's largest
    likelihood least.

    Parameters
    ----------
    events : Events
        Counts.
    atoms : ndarray of shape (n_components, n_features)
        Atoms, not negative.
    codes : ndarray of shape (n_samples, n_components)
        Codes of most likely rates, of `solve_codes`.
    min_gain : float
        The least gain of log-likelihood, in nats, by which an atom stays.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Codes of most likely rates of the atoms that stay.
    """
    counts, z = events.counts, codes.copy()
    arrays = counts.indptr.astype(np.int64), counts.indices.astype(np.int64), counts.data
    loads = np.array(events.loads(atoms), order="C")
    given = np.ascontiguousarray(atoms.T), loads, float(min_gain), _SWEEPS, _TOL
    prune = loops().prune_rows
    in_parts(lambda a, b: prune(a, b, *arrays, *given, z), len(z), _ROWS)
    return z


def start_from(events, atoms):  # -> (n_components, n_features)
    """Return positive atoms of sum 1 near the given atoms; an atom of zeros becomes the mean."""
    mean, atoms = events.mean, np.maximum(atoms, 0.0)
    sums = atoms.sum(1, keepdims=True)
    atoms = np.where(sums > 0, atoms / np.where(sums > 0, sums, 1.0), mean)
    return (1 - _SHARE_OF_MEAN) * atoms + _SHARE_OF_MEAN * mean


class Hidden(NamedTuple):
    """Held-out entries.

    Attributes
    ----------
    counts : scipy.sparse.csr_array of shape (n_samples, n_features)
        Their counts.
    hidden : scipy.sparse.csr_array of shape (n_samples, n_features)
        1 for the entries.
    exposure : ndarray of shape (n_samples,) or None
        Factors of the expectations.
    row_weight : ndarray of shape (n_samples,) or None
        How often each row counts.
    """

    counts: sparse.csr_array
    hidden: sparse.csr_array
    exposure: np.ndarray | None
    row_weight: np.ndarray | None

    def negative_likelihood(self, atoms, codes, dispersion=0.0):  # -> (n_samples,)
        """Return the negative log-likelihood of the entries of rows, up to terms of the data.

        The numbers are not times the weights of rows. With a dispersion counts have the negative
        binomial distribution.
        """
        rates, entries = _rates(self.hidden, atoms, codes), self.counts
        if self.exposure is not None:
            rates = rates * self.exposure[_rows_of(self.hidden)]
        dense, weight = self.hidden.copy(), self.row_weight
        mean = np.average(rates, weights=None if weight is None else weight[_rows_of(dense)])
        dense.data = np.maximum(rates, _LEAST_RATE * mean)
        x = (entries + 2 * self.hidden).tocsr()  # in the order of the entries
        dense.sort_indices()
        x.sort_indices()
        entries = negative_log(x.data - 2, dense.data, dispersion)
        return np.bincount(_rows_of(dense), entries, minlength=dense.shape[0])


def negative_log(x, rates, dispersion):  # -> as x
    """Return negative log-likelihoods of counts, up to terms without the rates.

    Parameters
    ----------
    x : ndarray
        Counts.
    rates : ndarray
        Expectations, of the same shape.
    dispersion : float
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``, of Poisson's
        distribution (0) or a negative binomial one.

    Returns
    -------
    ndarray
        One number an entry.
    """
    if dispersion == 0:
        return rates - xlogy(x, rates)
    size = 1 / dispersion
    return (x + size) * np.log1p(dispersion * rates) - xlogy(x, rates)


def _rows_of(array):  # CSR -> (n_entries,)
    return np.repeat(np.arange(array.shape[0]), np.diff(array.indptr))


def _rates(array, atoms, codes):  # CSR -> (n_entries,): rates of its entries
    rows, columns = _rows_of(array), array.indices
    if array.nnz > _DENSE * array.shape[0] * array.shape[1]:
        return (codes @ atoms)[rows, columns]
    return sum(z[rows] * atom[columns] for z, atom in zip(codes.T, atoms))


class Progress(NamedTuple):
    """The state of the alternation.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        Atoms, each of sum 1.
    codes : ndarray of shape (n_samples, n_components)
        Codes.
    previous_atoms : ndarray of shape (n_components, n_features)
        Atoms before the last step.
    previous_codes : ndarray of shape (n_samples, n_components)
        Codes before the last step.
    factor : float
        Length of the next extrapolation, in steps; 0 is plain alternation.
    losses : tuple of float
        Half the deviance, mean over the samples, in each step, between its codes and its atoms.
    objectives : tuple of float
        The same with the prior of the atoms.
    n_fixed : int
        The number of first atoms that steps leave as they are.
    """

    atoms: np.ndarray
    codes: np.ndarray
    previous_atoms: np.ndarray
    previous_codes: np.ndarray
    factor: float = _FACTOR
    losses: tuple = ()
    objectives: tuple = ()
    n_fixed: int = 0

    def extrapolated(self):  # -> (n_components, n_features), (n, n_components)
        """Return atoms and codes, extrapolated by the factor times their last step."""
        atoms = self.atoms + self.factor * (self.atoms - self.previous_atoms)
        atoms = np.maximum(atoms, _KEPT * self.atoms)
        atoms /= atoms.sum(1, keepdims=True)
        atoms[: self.n_fixed] = self.atoms[: self.n_fixed]
        codes = self.codes + self.factor * (self.codes - self.previous_codes)
        return atoms, np.maximum(codes, 0.0)


def begin(events, atoms, n_fixed=0):  # -> Progress
    """Return the state before the first step; fixed atoms come first, and have the sum 1."""
    atoms = np.concatenate([atoms[:n_fixed], start_from(events, atoms[n_fixed:])])
    return _restart(atoms, _first_codes(events, events.loads(atoms)), n_fixed)


def _restart(atoms, codes, n_fixed):  # -> Progress, without memory of a last step
    return Progress(atoms, codes, atoms, codes, n_fixed=n_fixed)


def limit_atoms(events, state, smoothing, min_gain, **options):  # -> Progress, Events
    """Prune atoms from rows, and adapt atoms to the pruned codes, in turn.

    Codes of the largest likelihood have small entries by chance in most rows. Atoms that adapt to
    them become mixtures.

    Parameters
    ----------
    events : Events
        Counts.
    state : Progress
        The state of an alternation that has converged.
    smoothing : float
        As in `advance`.
    min_gain : float
        As in `prune_codes`.
    **options : dict
        Options of `converge`.

    Returns
    -------
    Progress
        The state.
    Events
        The events with the atoms that rows may have.
    """
    for _ in range(_PRUNINGS):
        codes = prune_codes(events, state.atoms, solve_codes(events, state.atoms), min_gain)
        limited = replace(events, allowed=codes > 0)
        state = _restart(state.atoms, codes, state.n_fixed)
        state = converge(limited, state, smoothing, **options)
    return state, limited


def _adapt_codes(events, atoms, codes, pseudo, n_fixed):  # -> codes, loss, objective
    """Make one sweep over the codes; return half the deviance, and the same with the prior."""
    codes, loads = codes.copy(), events.loads(atoms)
    explained = _solve(events.counts, atoms, loads, np.zeros(len(codes)), codes, 1, 0.0)
    loss = events.total(loads * codes) - events.total(explained) + events.saturated
    return codes, loss, loss - float(xlogy(pseudo, atoms[n_fixed:]).sum())


def advance(events, state, smoothing):
    r"""Make one step: codes for the atoms, then atoms for the codes, both extrapolated before.

    Minimises half the deviance minus the log-density of a Dirichlet prior,
    :math:`c m \sum_{kj} \bar d_j \log d_{kj}` with the mean spectrum :math:`\bar d`, over atoms of
    sum 1.

    Parameters
    ----------
    events : Events
        Counts.
    state : Progress
        The state.
    smoothing : float
        Pseudo-events of the prior, :math:`c`, on average over the features of an atom.

    Returns
    -------
    Progress
        The next state. Its objective is at most the one before.

    References
    ----------
    A. M. S. Ang and N. Gillis, "Accelerating nonnegative matrix factorization algorithms using
    extrapolation", Neural Computation 31, 2019.
    """
    n_rows, n_features = events.n_rows, events.counts.shape[1]
    pseudo = smoothing * n_features * events.mean
    atoms, codes = state.extrapolated() if state.factor else state[:2]
    n_fixed = state.n_fixed
    codes, loss, objective = _adapt_codes(events, atoms, codes, pseudo, n_fixed)
    factor = min(state.factor * _GROWTH, _LARGEST)
    if state.objectives and objective / n_rows > state.objectives[-1] and state.factor:
        atoms, factor = state.atoms, state.factor / 2
        codes, loss, objective = _adapt_codes(events, atoms, state.codes, pseudo, n_fixed)
    # With the Lagrange multiplier of the sum 1 an atom's entries are its events: the loads are the
    # atom's visible events and pseudo-events.
    loads = events.visible(codes) + smoothing * n_features
    loads[:, :n_fixed] = 0.0  # fixed atoms
    columns = np.ascontiguousarray(atoms.T)
    _solve(events.by_feature, codes.T, loads, pseudo, columns, 1, 0.0)
    sums = columns.sum(0)
    sums[:n_fixed] = 1.0
    used = sums > 0
    atoms = np.where(used[:, None], columns.T / np.where(used, sums, 1.0)[:, None], events.mean)
    return Progress(
        np.ascontiguousarray(atoms),  # sums then round as for arrays from a file
        codes * np.where(used, sums, 1.0),
        state.atoms,
        state.codes,
        factor,
        (*state.losses, loss / n_rows),
        (*state.objectives, objective / n_rows),
        n_fixed,
    )


def converge(events, state, smoothing, n_steps=_MOST, tol=_IMPROVED):  # -> Progress
    """Make steps until the objective stalls.

    Parameters
    ----------
    events : Events
        Counts.
    state : Progress
        The state to begin with; its curves and extrapolation are forgotten.
    smoothing : float
        As in `advance`.
    n_steps : int, default=400
        Largest number of steps.
    tol : float, default=1e-6
        Relative improvement of the objective that counts as one.
    """
    state, n_stalled = _restart(state.atoms, state.codes, state.n_fixed), 0
    while len(state.losses) < n_steps and n_stalled < _STALLED:
        state = advance(events, state, smoothing)
        (before, now), loss = (np.inf, *state.objectives)[-2:], state.losses[-1]
        n_stalled = n_stalled + 1 if before - now <= tol * abs(loss) else 0
    return state
