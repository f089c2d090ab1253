"""Steps and choices of counts that add: optimality, priors, gaps, weights."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import nbinom
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from skpudle._nmf.alternate import (
    Events,
    advance,
    begin,
    converge,
    first_atoms,
    prune_codes,
    solve_codes,
    solve_dispersed,
)
from skpudle._nmf.choose import (
    Chosen,
    Hidden,
    choose_prior,
    choose_size,
    estimate_dispersion,
    negative_log,
)

N, M, P = 40, 25, 4


def planted(rng, n=N, m=M, p=P, counts=60.0, n_lines=3):
    """Return counts, rates and spectra of a few lines and a background."""
    axis = np.arange(m)
    places = rng.uniform(0, m, (p, n_lines, 1))
    atoms = np.exp(-((axis - places) ** 2) / 8).sum(1) + 0.02
    atoms /= atoms.sum(1, keepdims=True)
    codes = rng.gamma(1.0, 1.0, (n, p)) * (rng.random((n, p)) < 0.6)
    rates = counts * codes @ atoms
    return rng.poisson(rates).astype(float), rates, atoms


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gaps_of(rng, x, gaps):
    return (rng.random(x.shape) < 0.8).astype(float) if gaps else np.ones_like(x)


def objective(x, atoms, z, known):
    mu = z @ atoms
    return (known * (mu - xlogy(x, np.maximum(mu, 1e-300)))).sum(1)


def by_multiplication(x, atoms, known, n_steps=30_000):
    """Solve by the steps of Lee and Seung, the oracle: slow, obvious and monotone."""
    z = np.full((len(x), len(atoms)), x.sum() / x.size)
    loads = known @ atoms.T
    for _ in range(n_steps):
        ratio = known * x / np.maximum(z @ atoms, 1e-300)
        z *= ratio @ atoms.T / loads
    return z


# ---------------------------------------------------------------------------- codes


@pytest.mark.parametrize("gaps", [False, True])
def test_codes_are_the_most_likely(rng, gaps):
    """Their losses are half the deviance."""
    x, _, atoms = planted(rng)
    known = gaps_of(rng, x, gaps)
    codes, losses = solve_codes(Events.of(x, known), atoms)
    oracle = by_multiplication(x, atoms, known)
    found = objective(x, atoms, codes, known)
    assert (found <= objective(x, atoms, oracle, known) + 1e-6).all()
    np.testing.assert_allclose(codes @ atoms, oracle @ atoms, rtol=0, atol=0.02)
    np.testing.assert_allclose(losses, found + (known * (xlogy(x, x) - x)).sum(1))


@pytest.mark.uncompiled
def test_a_row_without_events_has_no_codes(rng):
    _, _, atoms = planted(rng)
    assert not solve_codes(Events.of(np.zeros((3, M))), atoms)[0].any()


def prune_one(x, atoms, min_gain, known):
    """Remove atoms of a row by solving every smaller set anew: slow and obvious."""
    events = Events.of(x, known)

    def best(some):
        codes, _ = solve_codes(events, atoms[some])
        return objective(x, atoms[some], codes, known)[0], codes[0]

    active = np.flatnonzero(solve_codes(events, atoms)[0])
    while len(active) > 1:
        costs = [
            best(np.delete(active, i))[0] - best(active)[0] for i in range(len(active))
        ]
        if min(costs) >= min_gain:
            break
        active = np.delete(active, np.argmin(costs))
    codes = np.zeros(len(atoms))
    codes[active] = best(active)[1]
    return codes


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("min_gain", [1.0, 6.0, 1e9])
def test_atoms_leave_rows_as_by_solving_all_smaller_sets(rng, min_gain, gaps):
    x, _, atoms = planted(rng, n=15, p=6, counts=100.0)
    x[0] = 0
    known = gaps_of(rng, x, gaps)
    events = Events.of(x, known)
    codes, _ = solve_codes(events, atoms)
    pruned = prune_codes(events, atoms, codes, min_gain)
    for i in range(len(x)):
        row = slice(i, i + 1)
        expected = prune_one(x[row], atoms, min_gain, known[row])
        np.testing.assert_array_equal(pruned[i] > 0, expected > 0)
        np.testing.assert_allclose(pruned[i], expected, rtol=0, atol=0.5)
    assert ((pruned > 0) <= (codes > 0)).all()
    assert (pruned > 0).sum() < (codes > 0).sum()


@pytest.mark.uncompiled
def test_the_only_atom_of_an_entry_stays():
    """No threshold removes it: without it the likelihood is 0."""
    atoms = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    events = Events.of(np.array([[1.0, 50.0, 0.0], [1.0, 50.0, 1.0]]))
    pruned = prune_codes(events, atoms, solve_codes(events, atoms)[0], 1e9)
    np.testing.assert_array_equal(pruned > 0, [[True, False], [True, True]])


# ---------------------------------------------------------------------------- steps


def test_a_fit_of_one_atom_is_the_mean_spectrum(rng):
    """The prior has its shape too, so any number of pseudo-events leaves it alone."""
    x, *_ = planted(rng)
    events = Events.of(x)
    state = converge(events, begin(events, rng.random((1, M))), 3.0)
    np.testing.assert_allclose(state.atoms[0], events.mean, rtol=0, atol=2e-3)
    np.testing.assert_allclose(state.codes[:, 0], x.sum(1), rtol=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_steps_lower_the_objective(rng, smoothing, factor, gaps):
    """With extrapolation and without; sweeps are exact to the last digits of Newton's method."""
    x, *_ = planted(rng)
    events = Events.of(x, gaps_of(rng, x, gaps))
    state = begin(events, first_atoms(events, P))._replace(factor=factor)
    for _ in range(60):
        state = advance(events, state, smoothing)
    objectives = np.array(state.objectives)
    assert (np.diff(objectives) <= 1e-5 * np.abs(objectives[0])).all()
    assert objectives[-1] < objectives[0]
    np.testing.assert_allclose(state.atoms.sum(1), 1)


def test_extrapolation_converges_sooner(rng):
    """Where spectra are alike, plain alternation makes many short steps."""
    _, _, atoms = planted(rng)
    atoms = 0.2 * atoms + 0.8 * atoms.mean(0)
    events = Events.of(
        rng.poisson(2000 * rng.dirichlet(np.ones(P), 60) @ atoms).astype(float)
    )
    start = begin(events, atoms)
    slow = start._replace(factor=0.0)
    for _ in range(400):
        slow = advance(events, slow, 1.0)
    fast = converge(events, start, 1.0)
    assert len(fast.losses) < 200
    assert fast.objectives[-1] < min(slow.objectives[200], slow.objectives[-1] + 0.01)


def test_a_fit_goes_with_permuted_features_and_rows(rng):
    x, *_ = planted(rng)
    rows, columns = rng.permutation(N), rng.permutation(M)
    events, other = Events.of(x), Events.of(x[rows][:, columns])
    atoms = first_atoms(events, P)
    state = converge(events, begin(events, atoms), 1.0)
    other = converge(other, begin(other, atoms[:, columns]), 1.0)
    np.testing.assert_allclose(other.atoms, state.atoms[:, columns], rtol=0, atol=1e-6)
    np.testing.assert_allclose(other.codes, state.codes[rows], rtol=0, atol=1e-3)


def test_counts_and_pseudo_events_scale_together(rng):
    """A likelihood of c times the counts, and c times the pseudo-events, is c times as large.

    The half event that the mean spectrum has more of each feature is small beside the counts.
    """
    x, *_ = planted(rng)
    atoms = first_atoms(Events.of(x), P)
    state, other = (
        converge(Events.of(c * x), begin(Events.of(c * x), atoms), c * 1.0, 30)
        for c in (64, 4096)
    )
    np.testing.assert_allclose(other.codes, 64 * state.codes, rtol=0.02, atol=0.5)
    np.testing.assert_allclose(other.atoms, state.atoms, rtol=0, atol=2e-4)


def test_without_a_prior_the_likelihood_is_the_maximum_of_nmf(rng):
    """From one start multiplicative updates reach the same likelihood, in many more steps."""
    x, *_ = planted(rng)
    events = Events.of(x)
    start = begin(events, first_atoms(events, P))
    found = converge(events, start, 0.0, 2000)
    nmf = NMF(
        P,
        beta_loss="kullback-leibler",
        solver="mu",
        init="custom",
        tol=0,
        max_iter=3000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes = nmf.fit_transform(x, W=start.codes.copy(), H=start.atoms.copy())
    theirs = solve_codes(events, nmf.components_, codes)[1].sum()
    ours = solve_codes(events, found.atoms)[1].sum()
    assert ours == pytest.approx(theirs, abs=0.5)


def test_atoms_are_the_expected_events_with_the_prior(rng):
    """A fixed point of expectation and maximisation."""
    x, *_ = planted(rng)
    events = Events.of(x)
    state = begin(events, first_atoms(events, P))
    for _ in range(2000):
        state = advance(events, state, 1.0)
    codes, _ = solve_codes(events, state.atoms)
    found = state.atoms * (codes.T @ (x / (codes @ state.atoms))) + M * events.mean
    np.testing.assert_allclose(
        found / found.sum(1, keepdims=True), state.atoms, atol=1e-4
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_rows_have_the_codes_of_their_atoms_alone(rng, gaps):
    """Atoms that a row may not have are as if there were none; the objective still falls."""
    x, _, atoms = planted(rng, n=20)
    known, allowed = gaps_of(rng, x, gaps), rng.random((20, P)) < 0.6
    allowed[:, 0] |= ~allowed.any(1)
    events = replace(Events.of(x, known), allowed=allowed)
    codes, _ = solve_codes(events, atoms)
    assert not codes[~allowed].any()
    for i in range(20):
        one = Events.of(x[i : i + 1], known[i : i + 1])
        expected = solve_codes(one, atoms[allowed[i]])[0][0]
        np.testing.assert_allclose(codes[i, allowed[i]], expected, rtol=0, atol=1e-2)
    state = converge(events, begin(events, atoms), 1.0, 20)
    assert not state.codes[~allowed].any()
    assert (np.diff(state.objectives) <= 1e-5 * abs(state.objectives[0])).all()


def test_the_start_finds_pure_rows(rng):
    """Rows of a single source without noise, and of most events, are exact."""
    _, _, atoms = planted(rng)
    codes = np.concatenate([10 * np.eye(P), rng.random((30, P))])
    found = first_atoms(Events.of(1e9 * codes @ atoms), P)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    assert (found @ atoms.T).max(0).min() > 1 - 1e-6


# ---------------------------------------------------------------------------- dispersion


def dispersed(rng, size, **options):
    _, rates, atoms = planted(rng, **options)
    return (
        rng.poisson(rates * rng.gamma(size, 1 / size, rates.shape)).astype(float),
        rates,
        atoms,
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_weights_multiply_known_entries(rng, gaps):
    """Loads, visible events and the deviance are sums over weighted entries."""
    x, _, atoms = dispersed(rng, 3.0, counts=500.0)
    known = gaps_of(rng, x, gaps)
    events = Events.of(x, known)
    codes = rng.random((N, P)) * x.sum(1, keepdims=True)
    weighted = events.weighed(atoms, codes, 0.3)
    mu = codes @ atoms
    w = known / (1 + 0.3 * mu)
    np.testing.assert_allclose(weighted.counts.toarray(), w * x, rtol=0.021)
    w = 1 - weighted.missing.toarray()  # the smallest corrections are left out
    np.testing.assert_allclose(w * x, weighted.counts.toarray())
    np.testing.assert_allclose(weighted.loads(atoms), w @ atoms.T)
    np.testing.assert_allclose(weighted.visible(codes), w.T @ codes)
    expected = (w * (mu - xlogy(x, mu) + xlogy(x, x) - x)).sum(1)
    np.testing.assert_allclose(
        solve_codes(weighted, atoms, codes, sweeps=0)[1], expected
    )
    rows = np.arange(5)
    some = solve_codes(weighted.take(rows), atoms, codes[rows], sweeps=0)[1]
    np.testing.assert_allclose(some, expected[:5])


def test_the_negative_binomial_likelihood_is_scipys(rng):
    """Up to terms of the counts alone; with a tiny dispersion it is Poisson's."""
    x, mu = rng.poisson(20.0, 50), rng.uniform(1, 40, 50)
    differences = [
        negative_log(x, mu, 1 / size) + nbinom.logpmf(x, size, size / (size + mu))
        for size in (3.0, 10.0)
    ]
    np.testing.assert_allclose(*differences, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        negative_log(x, mu, 1e-7), negative_log(x, mu, 0.0), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("counts", [2.0, 60.0, 2000.0])
def test_poissons_counts_have_no_dispersion(counts):
    for seed in range(5):
        x, _, atoms = planted(np.random.default_rng(seed), n=100, counts=counts)
        events = Events.of(x)
        assert estimate_dispersion(events, atoms, solve_codes(events, atoms)[0]) == 0


# ---------------------------------------------------------------------------- choices

OPEN = Chosen("auto", 0.0, 0.0)


def test_hidden_entries_are_judged_by_the_likelihood(rng):
    """Each is predicted by the codes of known entries that are not hidden."""
    x, _, atoms = planted(rng)
    masks, known = rng.random((2, *x.shape)) < 0.2, gaps_of(rng, x, True)
    hidden = Hidden(Events.of(x, known), list(masks))
    hidden.weigh(atoms, 0.0)
    hidden.atom_penalty, expected, hidden.codes = 0.0, 0.0, []
    for mask in masks:
        codes, _ = solve_codes(Events.of(x, known * ~mask), atoms)
        hidden.codes.append(codes)  # exact ones to begin with
        mu, judged = codes @ atoms, known * mask
        mu = np.maximum(mu, 1e-3 * mu[judged == 1].mean())
        expected = expected + (judged * (mu - xlogy(x, mu))).sum(1)
    np.testing.assert_allclose(
        hidden.predict(atoms).errors, expected, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("counts", [20.0, 300.0, 3000.0])
def test_the_prior_is_an_optimum_of_held_out_entries(counts):
    """It is inside of the grid, and far from it other entries are predicted worse."""
    rng = np.random.default_rng(1)
    x, *_ = planted(rng, n=80, counts=counts)
    events = Events.of(x)
    start = first_atoms(events, P)
    chosen = choose_prior(events, OPEN, np.random.default_rng(0), start)[0].alpha
    assert 0.1 < chosen < 4 * x.sum() / start.size
    hidden = Hidden(events, [rng.random(x.shape) < 0.1])
    hidden.weigh(start, 0.0)

    def error(smoothing):
        (seen,) = hidden.seen
        return hidden.predict(converge(seen, begin(seen, start), smoothing).atoms).total

    assert error(chosen) < min(error(32 * chosen), error(chosen / 32)) + 1


def signatures(rng, p, n, counts):
    """Return counts of spiky spectra, some of them in a row, and the spectra."""
    atoms = rng.dirichlet(np.full(40, 0.15), p)
    codes = rng.gamma(1.0, 1.0, (n, p)) * (rng.random((n, p)) < 0.5)
    return rng.poisson(counts * codes @ atoms).astype(float), atoms


def sized(events, **given):
    """Choose a number of atoms."""
    given = Chosen(1.0, 0.0, 0.0)._replace(**given)
    none = np.empty((0, events.counts.shape[1]))
    return choose_size(events, given, np.random.default_rng(0), none)


@pytest.mark.parametrize("p", [1, 3, 6])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_number_of_atoms_is_found(rng, p, gaps):
    x, atoms = signatures(rng, p, 80, 500.0)
    found, path = sized(Events.of(x, gaps_of(rng, x, gaps)))
    assert len(found) == p
    assert (path.n_components.diff() > 0).all()
    assert path.score.max() <= 1
    assert path.score[path.n_components == p] > path.score.max() - 0.01
    found, atoms = (
        a / np.linalg.norm(a, axis=1, keepdims=True) for a in (found, atoms)
    )
    assert (found @ atoms.T).max(0).min() > 0.95


def test_variation_beyond_poissons_adds_no_atoms(rng):
    """Hidden features are not predicted by atoms that explain the errors of single entries."""
    _, atoms = signatures(rng, 4, 1, 1.0)
    codes = rng.gamma(1.0, 1.0, (120, 4)) * (rng.random((120, 4)) < 0.6)
    rates = 2000 * codes @ atoms * rng.lognormal(0, 0.2, (120, 40))
    assert len(sized(Events.of(rng.poisson(rates).astype(float)))[0]) == 4


def test_growth_goes_on_after_a_number_that_predicts_no_better():
    """With few atoms rows of tissues seem dispersed, and some more atoms do not help."""
    rng = np.random.default_rng(3)
    atoms, codes = rng.dirichlet(np.full(40, 0.15), 14), np.zeros((6, 20, 14))
    for tissue, own in zip(
        codes, rng.permutation(np.arange(2, 14)).reshape(6, 2), strict=True
    ):
        events = np.exp(rng.uniform(np.log(1e3), np.log(1e5)))
        for row in tissue:
            row[[0, 1, *own]] = (
                events * rng.lognormal(0, 0.7) * rng.dirichlet(np.ones(4))
            )
    shares = codes.reshape(-1, 14, 1) * atoms
    x = rng.poisson(shares * rng.gamma(30, 1 / 30, shares.shape)).sum(1).astype(float)
    assert len(sized(Events.of(x), dispersion="auto")[0]) == 14


# ---------------------------------------------------------------------------- weights of rows


def test_the_dispersion_is_that_of_heavy_rows(rng):
    """Rows of another dispersion hardly count; the unit of weights does not matter."""
    _, rates, atoms = planted(rng, n=600, counts=1500.0)
    x = rng.poisson(rates * rng.gamma(10.0, 0.1, rates.shape)).astype(float)
    x[::2] = rng.poisson(rates[::2] * rng.gamma(2.0, 0.5, rates[::2].shape))
    for light, expected in ((1, 0.5), (0, 0.1)):
        weight = np.where(np.arange(600) % 2 == light, 1e-4, 1.0)
        events, scaled = (
            Events.of(x, row_weights=unit * weight) for unit in (1.0, 7.0)
        )
        codes, _ = solve_dispersed(events, atoms, 0.2)
        found = estimate_dispersion(events, atoms, codes)
        assert found == pytest.approx(expected, rel=0.15)
        assert estimate_dispersion(scaled, atoms, codes) == pytest.approx(found)


def test_the_number_of_atoms_is_that_of_heavy_rows(rng):
    """Errors of rows that hardly count are no reason for atoms, and no chance."""
    x, _ = signatures(rng, 4, 80, 500.0)
    y, _ = signatures(rng, 5, 80, 2000.0)
    rows, weight = np.stack([x, y], 1).reshape(160, -1), np.tile([2.0, 2e-6], 80)
    assert len(sized(Events.of(rows, row_weights=weight))[0]) == 4


def test_growth_that_takes_long_ends_with_a_warning(rng, monkeypatch):
    x, _, _ = planted(rng, 200, 40, 12, counts=400.0)
    monkeypatch.setattr("skpudle._nmf.choose._MOST_PRODUCT", 0)
    with pytest.warns(UserWarning, match="ended at 8 atoms"):
        atoms, path = choose_size(Events.of(x), OPEN, np.random.default_rng(0), x[:0])
    assert len(atoms) <= path.n_components.max() <= 8
