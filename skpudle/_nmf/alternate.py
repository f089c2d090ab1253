r"""Alternate between codes and atoms of counts: each is a convex problem if the other is fixed.

Words of this module: an *atom* is a non-negative spectrum over features, with the sum 1. A *code*
is the number of events that a row has from an atom. The *rate*, or expectation, of a count is the
sum over atoms of the row's code times the atom's entry at the feature. The *load* of a code is the
share of its atom's events that fall on known entries of the row: 1 if no entry is missing. The
*loss* of a row is half its deviance: the log-likelihood of rates that equal the counts, minus the
log-likelihood of the model's rates, in nats.

Plain alternation is slow where atoms are alike: its steps are short and point in the same
direction. So each step first *extrapolates* atoms and codes along their last change. Then a *sweep*
updates each code of a row in turn and computes the objective. If the objective has risen, the sweep
is repeated from the point before the extrapolation, and the next extrapolation is half as long. So
the objective never rises.

Counts may vary more than Poisson counts. With the variance :math:`\mu + \phi \mu^2`, where
:math:`\phi` is the *dispersion*, the slope of the log-likelihood in :math:`\mu` is :math:`w (x -
\mu) / \mu` with :math:`w = 1 / (1 + \phi \mu)`: the slope of Poisson counts times a *weight of the
entry*. Weighted counts of weighted entries are a Poisson problem again, in which an entry with a
weight below 1 is missing in part. Rates and weights alternate (iteratively reweighted least
squares). Entries of large rates get small weights, so that no row of many events dominates the
atoms.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import xlogy

from skpudle._compilation import Loops, blocks_of_rows, in_parts
from skpudle._data.arrays import to_numpy, to_tensor
from skpudle._initialization import vertices
from skpudle._rows import spread_rows

# Defaults of `solve_codes`: the largest number of sweeps over the codes of a row, and the distance
# of the row's log-likelihood from its maximum (an upper bound, in nats) at which sweeps end.
_MOST_SWEEPS = 2000
_TOL = 1e-5
# Initial atoms are mixed with this share of the mean spectrum, so that no entry begins at 0. An
# entry of 0 can lock itself in: rows with events at its feature get no code of the atom, and
# without such codes the entry stays 0.
_SHARE_OF_MEAN = 0.01
# A thread solves at least this number of rows: fewer rows take less time than starting a thread.
_LEAST_ROWS_OF_THREAD = 64


# ------------------------------------------------------------------ compiled loops

# Coordinate descent for non-negative Poisson regressions: for each row the codes z >= 0, which
# multiply fixed atoms a, are fitted to the counts x of the row. The functions up to `loops` are
# written in plain Python, and numba compiles them when `loops` is first used. Compiled functions
# release the GIL, so several threads call ``solve_rows`` at once. Each thread writes to rows of its
# own only, from ``first`` to ``last - 1``.


def _slope(
    n,
    x,
    column,
    base,
    z,
):
    """Compute the two sums over counts that a Newton step of `_move` for one code ``z`` needs.

    Return ``g = sum_t x_t a_t / (base_t + a_t z)`` and ``h``, minus the derivative of ``g`` in
    ``z``, as two floats. ``g`` less the load of the code is the derivative of the row's
    log-likelihood in ``z``. ``x`` are the counts of the row, ``column`` the atom's entries a at
    these counts, and ``base`` the rates by all other atoms. Only the first ``n`` entries of the
    three arrays count.
    """
    g = 0.0
    h = 0.0
    for t in range(n):
        # Where the rate is 0, the floor 1e-140 avoids a division by zero. It is so large that the
        # square of the quotient, times a count, does not overflow.
        part = column[t] / max(base[t] + column[t] * z, 1e-140)
        g += x[t] * part
        h += x[t] * part * part
    return g, h


def _move(
    n,
    x,
    column,
    base,
    load,
    z,
):
    """Minimise ``load z - sum_t x_t log(base_t + a_t z)`` over one code ``z >= 0``.

    This is the update of one code in a sweep of `solve_rows`. Arguments are those of `_slope`, the
    ``load`` of the code (above 0), and the ``z`` to start from. Return the new ``z``, and ``g`` of
    `_slope` at the start, for the duality gap. Steps end when one changes ``z`` by at most 3 %: the
    next sweep refines the code.

    The derivative is ``load - g(z)``, where ``1 / g`` is concave. So Newton's method for ``1 / g(z)
    = 1 / load`` increases monotonically towards the minimiser from below, and is exact for a single
    count. A step downwards can be too long; the next step then goes up again. Events that only this
    atom can explain (base 0) make ``g`` huge at ``z = 0``, and the step from there goes to about
    the number of these events divided by the load.
    """
    g, h = _slope(n, x, column, base, z)
    g_at_start = g
    for _ in range(20):
        if h <= 0:
            return 0.0, g_at_start
        before = z
        z = max(z + g / h * (g / load - 1), 0.0)
        if abs(z - before) <= 0.03 * before:
            break
        g, h = _slope(n, x, column, base, z)
    return z, g_at_start


def solve_rows(
    first, last, start, index, value, atoms, loads, prior, sweeps, tol, z, explained
):
    """Find the most likely codes of rows ``first`` to ``last - 1``, each row on its own.

    The codes ``z_i >= 0`` of row i minimise ``loads_i z_i - sum_j x_ij log(z_i a_j) - prior_i sum_k
    log z_ik``. In a step of the atoms features take the part of rows, see `advance`.

    The counts are a sparse matrix in CSR form: ``value[start[i]:start[i + 1]]`` are the nonzero
    counts x of row ``i``, and ``index`` their columns. ``atoms``, (n_features, n_components), is
    the transpose of the atoms. ``loads`` and the codes ``z``, which change in place, have the shape
    (n, n_components). ``prior``, (n,), has the pseudo-events of each code of a row. ``explained``,
    (n,), is filled with ``sum_j x_ij log(z_i a_j)``. ``last`` must be above ``first``.

    A row gets at most ``sweeps`` sweeps over its codes; with 0 sweeps codes stay as they are. The
    sweeps end earlier if the duality gap, a bound on the row's distance from its minimum, is at
    most ``tol``. The bound: if codes ``z`` explain all ``n`` events of the row, so that ``loads z =
    n``, then any codes ``y`` satisfy by Jensen's inequality, with the slopes ``g`` at ``z``,
    ``sum_j x_j log(y a_j / z a_j) <= n log(sum_k y_k g_k / n) <= n log(max_k g_k / load_k)``.
    """
    n_components = z.shape[1]
    longest = np.diff(start[first : last + 1]).max()
    columns = np.empty((n_components, longest + 1))
    mu = np.empty(longest)
    x = np.empty(longest + 1)
    base = np.empty(longest + 1)
    for i in range(first, last):
        n = start[i + 1] - start[i]
        x[:n] = value[start[i] : start[i + 1]]
        # The prior's term -prior[i] log z has the form of one more count, of prior[i] events that
        # only the atom of z can explain: the rate by other atoms is 0, and the atom's entry is 1.
        x[n] = prior[i]
        base[n] = 0.0
        columns[:, n] = 1.0
        n_terms = n + (prior[i] > 0)
        for t in range(n):
            feature = index[start[i] + t]
            mu[t] = 0.0
            for k in range(n_components):
                columns[k, t] = atoms[feature, k]
                mu[t] += z[i, k] * atoms[feature, k]
        n_events = x[:n].sum()
        for _ in range(sweeps):
            largest_quotient = 0.0
            for k in range(n_components):
                column = columns[k]
                load = loads[i, k]
                old = z[i, k]
                if (
                    load <= 0
                ):  # atom not allowed, or 0 in all entries that are known in the row
                    continue
                # If only this atom has a rate here, the difference may be a rounding error above 0,
                # and the code could become 0 and leave events without a rate. So a tiny difference
                # counts as 0.
                for t in range(n):
                    by_others = mu[t] - column[t] * old
                    base[t] = by_others if by_others > 1e-13 * mu[t] else 0.0
                new, slope = _move(n_terms, x, column, base, load, old)
                largest_quotient = max(largest_quotient, slope / load)
                if new != old:
                    z[i, k] = new
                    for t in range(n):
                        mu[t] = base[t] + column[t] * new
            if n_events * (largest_quotient - 1) <= tol:
                break
        total = 0.0
        for t in range(n):
            # An event at a rate of 0 is impossible, with a log-likelihood of minus infinity. -1e30
            # stands for it, because infinite losses would give NaN in differences.
            total += x[t] * (np.log(mu[t]) if mu[t] > 0 else -1e30)
        explained[i] = total


loops = Loops(globals())


# ------------------------------------------------------------------ counts


@dataclass(frozen=True)
class Events:
    """The data of a fit of `PoissonNMF`: sparse counts, with weights of entries and of rows.

    The weight of an entry follows from the dispersion, see the module, and changes the codes of its
    row. The weight of a row, in ``row_weights``, is the number of times that the row counts in sums
    over rows: in the objective, in the events of atoms, and in errors of hidden entries. Weights of
    rows do not change codes. Exposures of rows have no effect here: `_Encoder` divides codes by
    exposures. Instances must not be changed in place, because `by_feature` and `mean` are computed
    once and kept.

    Parameters
    ----------
    counts : scipy.sparse.csr_array of shape (n_samples, n_features)
        Known counts, float64, times the weights of entries; 0 where an entry is missing.
    missing : scipy.sparse.csr_array of shape (n_samples, n_features)
        1 minus the weight of each entry: 1 where an entry is missing, and 0 for a known entry
        without dispersion.
    row_weights : ndarray of shape (n_samples, 1)
        How often each row counts, above 0.
    saturated : ndarray of shape (n_samples,)
        The log-likelihood of each row, with weights of entries, if rates equal counts: the largest
        possible value, from which deviances are measured.
    allowed : ndarray of bool of shape (n_samples, 1) or (n_samples, n_components)
        Whether a row may have a code of each atom; a single column holds for all atoms.
    """

    counts: sparse.csr_array
    missing: sparse.csr_array
    row_weights: np.ndarray
    saturated: np.ndarray
    allowed: np.ndarray

    @classmethod
    def of(cls, x, mask=None, row_weights=None):
        """Return the `Events` of a dense array of counts ``x`` (n_samples, n_features).

        ``mask`` has the same shape, and is 1 for known entries and 0 for missing entries.
        ``row_weights`` (n_samples,) are weights of rows. By default all entries are known, and each
        row counts once. Every row may use every atom.
        """
        if mask is None:
            mask = np.ones_like(x)
        if row_weights is None:
            row_weights = np.ones(len(x))
        counts = sparse.csr_array(np.where(mask > 0, x, 0.0).astype(np.float64))
        return cls(
            counts=counts,
            missing=sparse.csr_array(1.0 - mask),
            row_weights=np.reshape(row_weights, (-1, 1)) * 1.0,
            saturated=_saturated(counts),
            allowed=np.full((len(x), 1), True),
        )

    @classmethod
    def joined(cls, parts):
        """Concatenate the rows of the `Events` in the list ``parts``, in the order of the list."""
        stacked = {}
        for field in fields(cls):
            blocks = [getattr(part, field.name) for part in parts]
            is_dense = isinstance(blocks[0], np.ndarray)
            stacked[field.name] = (np.concatenate if is_dense else sparse.vstack)(
                blocks
            )
        return cls(**stacked)

    def take(self, rows):  # -> Events
        """Return some of the rows, by indices (n,), a mask (n_samples,) or a slice."""
        return Events(*(getattr(self, f.name)[rows] for f in fields(self)))

    def sample(self, n_rows):  # -> Events
        """Return a random sample of ``n_rows`` rows, or all rows if there are fewer.

        One row is drawn from each of ``n_rows`` equal parts of the rows, the same in every call.
        """
        return self.take(np.asarray(spread_rows(len(self.row_weights), n_rows)))

    @cached_property
    def by_feature(self):  # -> CSR of shape (n_features, n_samples)
        """Counts times weights of rows, transposed: a step of the atoms solves by feature."""
        return sparse.csr_array(self.counts.multiply(self.row_weights).T)

    @cached_property
    def mean(self):  # -> (n_features,)
        """The *mean spectrum*: the mean known count of each feature, scaled to the sum 1.

        It is the shape of the Dirichlet prior of atoms. Half an event is added to each feature, so
        that no entry is 0. A feature that no row knows is divided by the least weight of a row, or
        by 1 if that is less, instead of by 0.
        """
        n_known = self.row_weights.sum() - self.missing.T @ self.row_weights[:, 0]
        total = (self.by_feature.sum(1) + 0.5) / np.maximum(
            n_known, min(1.0, self.row_weights.min())
        )
        return total / total.sum()

    def loads(self, atoms):  # (n_components, n_features) -> (n, n_components)
        """Return the loads of all codes: the shares of each atom on the known entries of each row.

        An entry with a weight counts by its weight. Where a row may not use an atom (``allowed``),
        the load is 0, which tells `solve_rows` to skip the code.
        """
        return (atoms.sum(1) - self.missing @ atoms.T).clip(0) * self.allowed

    def visible(self, codes):  # (n, n_components) -> (n_features, n_components)
        """Return the loads for a step of the atoms, in which features are rows and atoms are codes.

        For each feature and atom it is the sum of the atom's codes over rows in which the feature
        is known. Rows count by ``row_weights``, and entries by their weights.
        """
        codes = codes * self.row_weights
        return (codes.sum(0) - self.missing.T @ codes).clip(0)

    def weighed(self, atoms, codes, dispersion):  # -> Events
        """Return the events with weights of entries that allow for the dispersion, see the module.

        A weight is ``1 / (1 + dispersion * rate)``, with the rates ``codes @ atoms`` of ``codes``
        (n_samples, n_components) and ``atoms`` (n_components, n_features). Call this method only
        for events without weights of entries: old and new weights would multiply.
        """
        if dispersion == 0:
            return self
        parts = []
        for rows in blocks_of_rows(
            len(codes), atoms.shape[1]
        ):  # dense rates would fill the memory
            part = self.take(rows)
            weights = 1 / (1 + dispersion * (codes[rows] @ atoms))
            # ``missing``, 1 minus the weights, must stay sparse, so weights above 0.98 become 1:
            # most entries have small rates, and weights just below 1. Weights that are 2 % wrong
            # raise the variance of a least squares estimate by only 0.04 %.
            weights[weights > 1 - 0.02] = 1.0
            missing = sparse.csr_array(1 - (1 - part.missing.toarray()) * weights)
            counts = part.counts.copy()
            entries = part.counts.tocoo()
            count_weights = weights[entries.row, entries.col]
            counts.data *= count_weights
            saturated = _saturated(part.counts, count_weights)
            parts.append(
                replace(part, counts=counts, missing=missing, saturated=saturated)
            )
        return Events.joined(parts)


def _saturated(counts, weights=1.0):  # -> (n,)
    """Return the largest possible log-likelihood of each row, that of rates equal to the counts.

    ``counts`` (n, n_features) is a CSR array without weights of entries. ``weights`` are the
    weights of its nonzero entries, in the order of ``counts.data``.
    """
    entries = weights * (xlogy(counts.data, counts.data) - counts.data)
    return sparse.csr_array((entries, counts.indices, counts.indptr), counts.shape).sum(
        1
    )


def _solve_rows(
    counts,
    atoms,
    loads,
    z,
    *,
    prior,
    sweeps,
    tol,
):  # -> (n,)
    """Run the compiled loop `solve_rows` for all rows, on several threads.

    ``counts`` (n, n_features) is a CSR array, and ``atoms`` has the shape (n_components,
    n_features). The codes ``z`` (n, n_components) change in place. `solve_rows` explains their
    ``loads`` (n, n_components), the ``prior`` (n,), the largest number of ``sweeps`` and ``tol``.
    Return ``explained``, the sums of ``x log(rate)`` over the counts x of each row.
    """
    start = counts.indptr.astype(np.int64)
    index = counts.indices.astype(np.int64)
    columns = np.ascontiguousarray(atoms.T)
    loads = np.ascontiguousarray(loads)
    explained = np.empty(len(z))

    def solve(first, last):
        loops.solve_rows(
            first, last, start, index, counts.data, columns, loads, prior, sweeps, tol, z, explained
        )  # fmt: skip

    in_parts(solve, counts.shape[0], _LEAST_ROWS_OF_THREAD)
    return explained


def solve_codes(
    events,
    atoms,
    codes=None,
    tol=_TOL,
    sweeps=_MOST_SWEEPS,
):
    """Return the codes that make the counts most likely, for given atoms, each row on its own.

    Parameters
    ----------
    events : Events
        Counts of n_samples rows, with or without weights of entries.
    atoms : ndarray of shape (n_components, n_features)
        Atoms, not negative.
    codes : ndarray of shape (n_samples, n_components), default=None
        Codes to start from; by default the events of a row are divided equally between the atoms.
        Where the most likely codes are unique, the result does not depend on the start.
    tol : float, default=1e-5
        By how much the log-likelihood of a row may be below its maximum, in nats.
    sweeps : int, default=2000
        The largest number of sweeps over the codes of a row; 0 keeps the codes, to compute losses.

    Returns
    -------
    codes : ndarray of shape (n_samples, n_components)
        Codes: expectations are ``codes @ atoms``.
    losses : ndarray of shape (n_samples,)
        Half the deviance of each row, in nats.
    """
    loads = events.loads(atoms)
    if codes is None:
        total = events.counts.sum(1)[:, None] / max(loads.shape[1], 1)
        codes = np.where(loads > 0, total / np.where(loads > 0, loads, 1.0), 0.0)
    z = codes.copy()
    no_prior = np.zeros(len(z))
    explained = _solve_rows(
        events.counts, atoms, loads, z, prior=no_prior, sweeps=sweeps, tol=tol
    )
    return z, (loads * z).sum(1) - explained + events.saturated


def solve_dispersed(events, atoms, dispersion, tol=_TOL):
    """Return the most likely codes of counts that vary more than Poisson's, for given atoms.

    Codes and weights of entries alternate, see the module. With a dispersion of 0 the codes are
    those of `solve_codes`. `_Encoder` calls this function for `PoissonNMF.transform`.

    Parameters
    ----------
    events : Events
        Counts without weights of entries.
    atoms : ndarray of shape (n_components, n_features)
        Atoms, not negative.
    dispersion : float
        The variance of a count of expectation ``mu`` is ``mu + dispersion * mu**2``.
    tol : float, default=1e-5
        By how much the log-likelihood of a row may be below its maximum, in nats.

    Returns
    -------
    codes : ndarray of shape (n_samples, n_components)
        The most likely codes.
    weighted : Events
        The events with the weights of entries for which the codes were solved.
    """
    codes, _ = solve_codes(events, atoms, tol=tol)
    weighted = events
    for _ in range(4 if dispersion else 0):
        weighted = events.weighed(atoms, codes, dispersion)
        codes, _ = solve_codes(weighted, atoms, codes, tol)
    return codes, weighted


def removals(
    events,
    atoms,
    codes,
    losses,
    tol,
):
    """Measure how much rows need each atom: remove each in turn, and let the other codes adapt.

    The atoms are (n_components, n_features). ``codes`` (n_samples, n_components) and ``losses``
    (n_samples,) are the results of `solve_codes` for ``events`` and all atoms. ``tol``, in nats, is
    the tolerance of `solve_codes` for the codes without an atom.

    Yields
    ------
    tuple of ndarray
        For each atom: the indices (n,) of the rows with a code of the atom, new codes (n,
        n_components) of these rows without the atom, and the rise of each row's loss (n,).
    """
    for k in range(len(atoms)):
        rows = np.flatnonzero(codes[:, k])
        part = events.take(rows)
        allowed = part.allowed & (np.arange(len(atoms)) != k)
        part = replace(part, allowed=allowed)
        start = codes[rows] * allowed
        reduced, losses_without = solve_codes(part, atoms, start, tol)
        yield rows, reduced, losses_without - losses[rows]


def prune_codes(events, atoms, codes, min_gain):
    """Set codes to 0 where they raise the likelihood of their row by too little.

    Codes of the largest likelihood have small entries by chance in most rows, and atoms that adapt
    to these entries become mixtures of the true atoms. Each row is pruned on its own: the atom
    whose removal lowers the likelihood of the row least leaves first, and the other codes adapt.

    Parameters
    ----------
    events : Events
        Counts of n_samples rows, with or without weights of entries.
    atoms : ndarray of shape (n_components, n_features)
        Atoms, not negative.
    codes : ndarray of shape (n_samples, n_components)
        Most likely codes, from `solve_codes`.
    min_gain : float
        An atom stays in a row if it raises the log-likelihood of the row by at least this number of
        nats.

    Returns
    -------
    ndarray of shape (n_samples, n_components)
        Most likely codes with the atoms that stay in each row.
    """
    z, losses = solve_codes(events, atoms, codes, sweeps=0)
    # indices of the rows that may still lose an atom; at first all rows
    rows = np.arange(len(z))
    while len(rows):
        part = replace(events.take(rows), allowed=z[rows] > 0)
        best = z[rows]
        # `least` is the least cost of a removal in each of these rows; `best` has the codes after
        # it. For each atom `users` are the indices of rows with a code of the atom.
        least = np.full(len(rows), float(min_gain))
        for users, reduced, costs in removals(part, atoms, z[rows], losses[rows], 0.01):
            cheaper = costs < least[users]
            least[users[cheaper]] = costs[cheaper]
            best[users[cheaper]] = reduced[cheaper]
        has_lost = least < min_gain
        rows = rows[has_lost]
        z[rows] = best[has_lost]
        losses[rows] = losses[rows] + least[has_lost]
    return solve_codes(replace(events, allowed=z > 0), atoms, z)[0]


def first_atoms(events, n_components, fixed=()):  # -> (n_components, n_features)
    """Find initial atoms, of any sum, for a fit: the purest rows, without most of their noise.

    A pure row has events of one atom only. Pure rows lie at the edges of the cone of all rows,
    where `skpudle._initialization.vertices` finds them. The events that ``fixed`` atoms (n_fixed,
    n_features) explain are subtracted first. Then counts are divided by the roots of the means of
    rows and columns, so that all entries have about equal noise. If the rows yield fewer than
    ``n_components`` atoms, the remaining atoms are single features.

    References
    ----------
    M. R. Keenan and P. G. Kotula, "Accounting for Poisson noise in the multivariate analysis of
    ToF-SIMS spectrum images", Surface and Interface Analysis 36, 2004.
    """
    # `vertices` computes singular vectors, whose cost grows with the cube of the smaller of the
    # numbers of rows and features. So at most 2,000 rows are used.
    sampled = events.sample(2000)
    x = sampled.counts.toarray()
    observed = sampled.missing.toarray() == 0
    weights = sampled.row_weights
    if len(fixed):
        x = (x - solve_codes(sampled, fixed)[0] @ fixed).clip(0)
    # The expectation of an entry is the mean of its row times the relative mean of its feature.
    row_means = (x.sum(1, keepdims=True) + 0.5) / (observed.sum(1, keepdims=True) + 1)
    expected = (weights * observed * row_means).sum(0)
    relative_means = ((weights * x).sum(0) + 0.5) / (expected + 0.5)
    # `vertices` takes no mask, so missing entries are filled in, as if all rows had the same
    # spectrum.
    x = np.where(observed, x, row_means * relative_means)
    column_scales = np.sqrt(relative_means)
    scaled = to_tensor(x / column_scales / np.sqrt(row_means))
    n_pure = min(n_components, *x.shape)
    pure = to_numpy(vertices(scaled, n_pure, to_tensor(weights[:, 0]))) * column_scales
    single = np.eye(x.shape[1])[np.arange(n_components - len(pure)) % x.shape[1]]
    return np.concatenate([pure.clip(0), single])


class Progress(NamedTuple):
    """The state of the alternation between two steps.

    Attributes
    ----------
    atoms : ndarray of shape (n_components, n_features)
        Atoms, each of sum 1.
    codes : ndarray of shape (n_samples, n_components)
        Codes of the rows of the fit.
    previous_atoms : ndarray of shape (n_components, n_features)
        Atoms before the last step, for the extrapolation.
    previous_codes : ndarray of shape (n_samples, n_components)
        Codes before the last step, for the extrapolation.
    n_fixed : int
        The first ``n_fixed`` atoms are known, and steps leave these atoms as they are.
    factor : float
        The next extrapolation is this factor times the last change of atoms and codes; 0 is plain
        alternation.
    losses : tuple of float
        For each step the mean loss of a row (half its deviance), after the step has changed the
        codes, and before it changes the atoms.
    objectives : tuple of float
        For each step the sum of the losses of all rows and the negative log-density of the prior
        of atoms, divided by the number of rows (the sum of their weights). Computed at the same
        point of the step as the losses.
    """

    atoms: np.ndarray
    codes: np.ndarray
    previous_atoms: np.ndarray
    previous_codes: np.ndarray
    n_fixed: int = 0
    # 0.5 for the first extrapolation; then `advance` adapts the factor. Measured: in a fit to 300
    # rows, mixtures of 8 flat spectra, the log-likelihood is within 1 nat of its maximum after 68
    # steps, and without extrapolation after 439 steps.
    factor: float = 0.5
    losses: tuple = ()
    objectives: tuple = ()

    @classmethod
    def at(cls, atoms, codes, n_fixed):
        """Return a state without earlier steps: its first step does not extrapolate.

        ``atoms`` (n_components, n_features), each of sum 1, and ``codes`` (n_samples, n_components)
        are arrays. The first ``n_fixed`` atoms are known, and steps leave these atoms as they are.
        """
        return cls(atoms, codes, atoms, codes, n_fixed)

    def has_stalled(self, tol, n_steps):
        """Return whether the alternation may end, because its last ``n_steps`` steps gained little.

        A step gained little if it lowered the objective by at most ``tol`` times the loss. With
        ``tol=None``, or before ``n_steps`` differences of objectives are known, the answer is
        False.
        """
        gains = -np.diff(self.objectives)
        least = (tol or 0.0) * np.abs(self.losses[1:])
        enough = tol is not None and len(gains) >= n_steps
        return enough and not (gains > least)[-n_steps:].any()


def begin(events, atoms, n_fixed=0):  # -> Progress
    """Return the state before the first step of `advance`, from any initial atoms.

    ``atoms`` is (n_components, n_features). The first ``n_fixed`` atoms must have the sum 1, and
    stay as they are. The remaining atoms become positive with the sum 1, by a small share of the
    mean spectrum; an atom of zeros becomes the mean spectrum. Codes begin with the events of a row
    divided equally between the atoms.
    """
    new = np.maximum(atoms[n_fixed:], 0.0)
    new /= np.maximum(new.sum(1, keepdims=True), 1e-300)
    new = (1 - _SHARE_OF_MEAN) * new + _SHARE_OF_MEAN * events.mean
    new /= new.sum(1, keepdims=True)
    atoms = np.concatenate([atoms[:n_fixed], new])
    return Progress.at(atoms, solve_codes(events, atoms, sweeps=0)[0], n_fixed)


def advance(events, state, smoothing):
    r"""Make one step of a fit: extrapolate atoms and codes, then improve the codes, then the atoms.

    Steps minimise half the deviance minus the log-density of a Dirichlet prior of the atoms that
    are not fixed, :math:`c m \sum_{kj} \bar d_j \log d_{kj}`, over atoms of sum 1. Here :math:`\bar
    d` is the mean spectrum and :math:`m` the number of features.

    Parameters
    ----------
    events : Events
        Counts, with or without weights of entries.
    state : Progress
        The state before the step.
    smoothing : float
        The strength :math:`c` of the prior: pseudo-events per feature of an atom, on average.

    Returns
    -------
    Progress
        The next state. Its last objective is at most that of ``state``.

    References
    ----------
    A. M. S. Ang and N. Gillis, "Accelerating nonnegative matrix factorization algorithms using
    extrapolation", Neural Computation 31, 2019.
    """
    n_rows = float(events.row_weights.sum())
    n_fixed = state.n_fixed
    n_pseudo_events = smoothing * len(events.mean)
    pseudo_events = n_pseudo_events * events.mean

    # Make one sweep over the codes; return new codes (n_samples, n_components), and the mean loss
    # and the objective for ``atoms`` and the new codes.
    def adapt_codes(atoms, codes):
        codes, losses = solve_codes(events, atoms, codes, tol=0.0, sweeps=1)
        loss = float(events.row_weights[:, 0] @ losses)
        prior = float(xlogy(pseudo_events, atoms[n_fixed:]).sum())
        return codes, loss / n_rows, (loss - prior) / n_rows

    atoms = state.atoms + state.factor * (state.atoms - state.previous_atoms)
    # Extrapolation could make entries negative, and entries clipped to 0 may stay 0 in all further
    # steps (see _SHARE_OF_MEAN). So an entry falls to a thousandth at most.
    atoms = np.maximum(atoms, 1e-3 * state.atoms)
    atoms /= atoms.sum(1, keepdims=True)
    atoms[:n_fixed] = state.atoms[:n_fixed]
    codes = state.codes + state.factor * (state.codes - state.previous_codes)
    codes, loss, objective = adapt_codes(atoms, codes.clip(0))
    factor = min(state.factor * 1.05, 1.0)
    # If the objective has risen, repeat the sweep without extrapolation, so that it never rises.
    if state.objectives and objective > state.objectives[-1] and state.factor:
        atoms = state.atoms
        factor = state.factor / 2
        codes, loss, objective = adapt_codes(atoms, state.codes)
    # Now the atoms: the same regression, with swapped roles. A row is now a feature with its counts
    # in all samples, and its codes, which are sought, are the entries of the atoms at the feature.
    # The codes of the samples take the part of atoms. Adding ``n_pseudo_events`` to the loads
    # accounts for the constraint that an atom has the sum 1: ``n_pseudo_events`` is its Lagrange
    # multiplier.
    loads = events.visible(codes) + n_pseudo_events
    # `solve_rows` skips loads of 0, so fixed atoms stay as they are.
    loads[:, :n_fixed] = 0.0
    columns = np.ascontiguousarray(atoms.T)
    _solve_rows(
        events.by_feature,
        codes.T,
        loads,
        columns,
        prior=pseudo_events,
        sweeps=1,
        tol=0.0,
    )
    sums = columns.sum(0)
    sums[:n_fixed] = 1.0
    scales = np.where(sums > 0, sums, 1.0)
    atoms = np.where(sums[:, None] > 0, columns.T / scales[:, None], events.mean)
    # A fit that resumes from a checkpoint must give the same numbers as one that was not
    # interrupted. The atoms of a checkpoint are contiguous, and sums over arrays of another memory
    # layout round differently.
    atoms = np.ascontiguousarray(atoms)
    return Progress(
        atoms=atoms,
        codes=codes * scales,
        previous_atoms=state.atoms,
        previous_codes=state.codes,
        n_fixed=n_fixed,
        factor=factor,
        losses=(*state.losses, loss),
        objectives=(*state.objectives, objective),
    )


def converge(
    events,
    state,
    smoothing,
    n_steps=400,
    tol=1e-6,
):  # -> Progress
    """Make steps until the objective stalls, for the many fits that `choose` compares.

    Parameters
    ----------
    events : Events
        Counts, with or without weights of entries.
    state : Progress
        The state to begin with; only its atoms, codes and ``n_fixed`` matter.
    smoothing : float
        Pseudo-events per feature of the prior, as in `advance`.
    n_steps : int, default=400
        Largest number of steps.
    tol : float, default=1e-6
        A step counts as an improvement if it lowers the objective by more than this share of the
        loss. Three steps in a row without an improvement are the end.

    Returns
    -------
    Progress
        The last state.
    """
    state = Progress.at(state.atoms, state.codes, state.n_fixed)
    while len(state.losses) < n_steps and not state.has_stalled(tol, 3):
        state = advance(events, state, smoothing)
    return state
