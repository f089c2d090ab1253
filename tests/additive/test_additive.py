"""Alternation of codes and atoms of counts that add: optimality, priors, exposures, gaps."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.special import xlogy
from scipy.stats import nbinom
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from skpudle._additive._alternate import (
    Events,
    advance,
    begin,
    converge,
    limit_atoms,
    negative_log,
    prune_codes,
    solve_codes,
)
from skpudle._additive._dispersion import estimate_dispersion, solve_dispersed, weigh
from skpudle._additive._prior import choose_prior
from skpudle._additive._size import choose_size, first_atoms
from skpudle._additive._start import spectral_start

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


def objective(x, atoms, z, known, exposure):
    mu = exposure[:, None] * (z @ atoms)
    return (known * (mu - xlogy(x, np.maximum(mu, 1e-300)))).sum(1)


def by_multiplication(x, atoms, known, exposure, n_steps=30_000):
    """Solve by the steps of Lee and Seung, the oracle: slow, obvious and monotone."""
    z = np.full((len(x), len(atoms)), x.sum() / x.size)
    loads = (exposure[:, None] * known) @ atoms.T
    for _ in range(n_steps):
        ratio = known * x / np.maximum(z @ atoms, 1e-300)
        z *= ratio @ atoms.T / loads
    return z


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
def test_codes_are_the_most_likely(rng, gaps, exposed):
    x, _, atoms = planted(rng)
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else np.ones_like(x)
    exposure = rng.uniform(0.2, 3, len(x)) if exposed else np.ones(len(x))
    events = Events.of(x, known if gaps else None, exposure if exposed else None)
    codes = solve_codes(events, atoms)
    oracle = by_multiplication(x, atoms, known, exposure)
    found = objective(x, atoms, codes, known, exposure)
    expected = objective(x, atoms, oracle, known, exposure)
    assert (found <= expected + 1e-6).all()
    np.testing.assert_allclose(codes @ atoms, oracle @ atoms, rtol=0, atol=0.02)


def test_codes_satisfy_the_conditions_of_optimality(rng):
    """The slope is 0 where a code is positive, and not negative where it is 0."""
    x, _, atoms = planted(rng)
    codes = solve_codes(Events.of(x), atoms)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = 1 - np.nan_to_num(x / (codes @ atoms)) @ atoms.T
    assert np.abs(slopes[codes > 1e-3]).max() < 1e-3
    assert slopes[codes == 0].min() > -1e-6
    assert (codes == 0).mean() > 0.1


def test_codes_count_the_events(rng):
    """With atoms of sum 1, rates of a row have as many events as the row."""
    x, _, atoms = planted(rng)
    np.testing.assert_allclose(solve_codes(Events.of(x), atoms).sum(1), x.sum(1), atol=1e-3)


def test_an_l1_penalty_is_a_factor(rng):
    """Why there is none: all atoms have one load, so a penalty scales all codes alike."""
    x, _, atoms = planted(rng)
    plain = solve_codes(Events.of(x), atoms)
    penalised = by_multiplication(x, atoms, np.ones_like(x), np.full(len(x), 1.25))
    np.testing.assert_allclose(penalised @ atoms, plain @ atoms / 1.25, rtol=0, atol=0.02)


def test_a_row_does_not_depend_on_others(rng):
    x, _, atoms = planted(rng)
    codes = solve_codes(Events.of(x), atoms)
    np.testing.assert_array_equal(solve_codes(Events.of(x[7:8]), atoms)[0], codes[7])


@pytest.mark.uncompiled
def test_a_row_without_events_has_no_codes(rng):
    _, _, atoms = planted(rng)
    assert not solve_codes(Events.of(np.zeros((3, M))), atoms).any()


def test_a_fit_of_one_atom_is_the_mean_spectrum(rng):
    """The prior has its shape too, so any number of pseudo-events leaves it alone."""
    x, *_ = planted(rng)
    events = Events.of(x)
    state = begin(events, rng.random((1, M)))
    for _ in range(5):
        state = advance(events, state, 3.0)
    np.testing.assert_allclose(state.atoms[0], events.mean, rtol=0, atol=2e-3)
    np.testing.assert_allclose(state.codes[:, 0], x.sum(1), rtol=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_steps_lower_the_objective(rng, smoothing, factor, gaps):
    """With extrapolation and without; sweeps are exact to the last digits of Newton's method."""
    x, *_ = planted(rng)
    events = Events.of(x, (rng.random(x.shape) < 0.9).astype(float) if gaps else None)
    state = begin(events, spectral_start(x, P))._replace(factor=factor)
    for _ in range(60):
        state = advance(events, state, smoothing)
    objectives = np.array(state.objectives)
    assert (np.diff(objectives) <= 1e-5 * np.abs(objectives[0])).all()
    assert objectives[-1] < objectives[0]
    np.testing.assert_allclose(state.atoms.sum(1), 1)
    assert state.factor <= 1
    assert (state.factor == 0) == (factor == 0)


def test_extrapolation_converges_sooner(rng):
    """Where spectra are alike, plain alternation makes many short steps."""
    _, _, atoms = planted(rng)
    atoms = 0.2 * atoms + 0.8 * atoms.mean(0)
    events = Events.of(rng.poisson(2000 * rng.dirichlet(np.ones(P), 60) @ atoms).astype(float))
    start = begin(events, atoms)
    slow = start._replace(factor=0.0)
    for _ in range(400):
        slow = advance(events, slow, 1.0)
    fast = converge(events, start, 1.0)
    assert len(fast.losses) < 200
    assert fast.objectives[-1] < slow.objectives[200]
    assert fast.objectives[-1] < slow.objectives[-1] + 0.01


def test_a_fit_goes_with_permuted_features_and_rows(rng):
    x, *_ = planted(rng)
    rows, columns = rng.permutation(N), rng.permutation(M)
    atoms = spectral_start(x, P)
    state = converge(Events.of(x), begin(Events.of(x), atoms), 1.0)
    events = Events.of(x[rows][:, columns])
    other = converge(events, begin(events, atoms[:, columns]), 1.0)
    np.testing.assert_allclose(other.atoms, state.atoms[:, columns], rtol=0, atol=1e-6)
    np.testing.assert_allclose(other.codes, state.codes[rows], rtol=0, atol=1e-3)


def test_counts_and_pseudo_events_scale_together(rng):
    """A likelihood of c times the counts, and c times the pseudo-events, is c times as large."""
    x, *_ = planted(rng)
    atoms = spectral_start(x, P)
    state, other = (
        converge(Events.of(c * x), begin(Events.of(c * x), atoms), c * 1.0, 30) for c in (1, 64)
    )
    np.testing.assert_allclose(other.codes, 64 * state.codes, rtol=0.02, atol=0.5)
    np.testing.assert_allclose(other.atoms, state.atoms, rtol=0, atol=2e-4)


def test_without_a_prior_the_likelihood_is_the_maximum_of_nmf(rng):
    """From one start multiplicative updates reach the same likelihood, in many more steps."""
    x, *_ = planted(rng)
    events = Events.of(x)
    start = begin(events, spectral_start(x, P))
    found = converge(events, start, 0.0, 2000)
    nmf = NMF(P, beta_loss="kullback-leibler", solver="mu", init="custom", tol=0, max_iter=3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        codes = nmf.fit_transform(x, W=start.codes.copy(), H=start.atoms.copy())
    theirs = objective(x, nmf.components_, codes, np.ones_like(x), np.ones(N)).sum()
    codes = solve_codes(events, found.atoms)
    ours = objective(x, found.atoms, codes, np.ones_like(x), np.ones(N)).sum()
    assert ours == pytest.approx(theirs, abs=0.5)


def test_the_loss_is_half_the_deviance(rng):
    x, *_ = planted(rng)
    exposure = rng.uniform(0.5, 2, N)
    events = Events.of(x, None, exposure)
    state = advance(events, begin(events, spectral_start(x, P)), 1.0)
    codes = solve_codes(events, begin(events, spectral_start(x, P)).atoms)
    mu = exposure[:, None] * (codes @ begin(events, spectral_start(x, P)).atoms)
    expected = (mu - xlogy(x, mu) + xlogy(x, x) - x).sum()
    atoms = begin(events, spectral_start(x, P)).atoms
    assert events.half_deviance(atoms, codes) == pytest.approx(expected, rel=1e-9)
    assert state.losses[0] == pytest.approx(expected / N, rel=0.5)  # after one sweep


def test_parts_join(rng):
    x, *_ = planted(rng)
    mask = (rng.random(x.shape) < 0.9).astype(float)
    exposure = rng.uniform(0.5, 2, N)
    events = Events.of(x, mask, exposure)
    joined = Events.joined([events.take(slice(i, i + 7)) for i in range(0, N, 7)])
    for name in ("counts", "missing"):
        assert abs(getattr(joined, name) - getattr(events, name)).sum() == 0
    np.testing.assert_array_equal(joined.exposure, exposure)


def test_hidden_entries_are_judged_by_the_likelihood(rng):
    x, _, atoms = planted(rng)
    hidden = (rng.random(x.shape) < 0.2).astype(float)
    mask = (rng.random(x.shape) < 0.9).astype(float)
    seen, judge = Events.of(x, mask).without(sparse.csr_array(hidden))
    codes = solve_codes(seen, atoms)
    np.testing.assert_allclose(codes, solve_codes(Events.of(x, mask * (1 - hidden)), atoms))
    mu, judged = codes @ atoms, hidden * mask
    mu = np.maximum(mu, 1e-3 * mu[judged == 1].mean())
    expected = (judged * (mu - xlogy(x, mu))).sum()
    assert judge.negative_likelihood(atoms, codes).sum() == pytest.approx(expected, rel=1e-9)


def test_the_start_finds_pure_rows(rng):
    """Rows of a single source without noise, and of most events, are exact."""
    _, _, atoms = planted(rng)
    codes = np.concatenate([10 * np.eye(P), rng.random((30, P))])
    found = spectral_start(1e9 * codes @ atoms, P)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    assert (found @ atoms.T).max(0).min() > 1 - 1e-6


@pytest.mark.parametrize("counts", [20.0, 300.0, 3000.0])
def test_the_prior_is_an_optimum_of_held_out_entries(rng, counts):
    """An eighth of the number and eight times the number predict worse, or no better."""
    x, *_ = planted(rng, n=80, counts=counts)
    events, start = Events.of(x), spectral_start(x, P)
    chosen = choose_prior(events, start, np.random.default_rng(0)).smoothing
    assert 0.1 < chosen < 4 * x.sum() / start.size
    hidden = sparse.random_array(x.shape, density=0.1, rng=np.random.default_rng(0), format="csr")
    hidden.data[:] = 1.0
    seen, judge = events.without(hidden)

    def error(smoothing):
        state = converge(seen, begin(seen, start), smoothing)
        return judge.negative_likelihood(state.atoms, solve_codes(seen, state.atoms)).sum()

    assert error(chosen) < error(8 * chosen) + 1
    assert error(chosen) < error(chosen / 8) + 1


def test_a_prior_is_chosen_that_beats_none(rng):
    """Closer to the true rates, by the divergence; a maximum of likelihood has rates of 0."""
    x, rates, _ = planted(rng, n=300, counts=40.0)
    events = Events.of(x)

    def error(smoothing, atoms):
        state = begin(events, atoms)
        for _ in range(40):
            state = advance(events, state, smoothing)
        mu = np.maximum(solve_codes(events, state.atoms) @ state.atoms, 1e-12)
        return (xlogy(rates, rates / mu) - rates + mu).sum()

    chosen, _, atoms = choose_prior(events, spectral_start(x, P), np.random.default_rng(0))
    assert 0.1 < chosen < 20
    assert error(chosen, atoms) < 0.8 * error(0.0, spectral_start(x, P))


# ---------------------------------------------------------------------------- dispersion


def dispersed(rng, size, **options):
    _, rates, atoms = planted(rng, **options)
    return rng.poisson(rates * rng.gamma(size, 1 / size, rates.shape)).astype(float), rates, atoms


@pytest.mark.parametrize("gaps", [False, True])
def test_weights_multiply_known_entries(rng, gaps):
    """Loads, visible events and the deviance are sums over weighted entries."""
    x, _, atoms = dispersed(rng, 3.0, counts=500.0)
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else np.ones_like(x)
    exposure = rng.uniform(0.5, 2, N)
    events = Events.of(x, known if gaps else None, exposure)
    codes = rng.random((N, P)) * x.sum(1, keepdims=True)
    weighted = weigh(events, atoms, codes, 0.3)
    mu = exposure[:, None] * (codes @ atoms)
    w = known / (1 + 0.3 * mu)
    np.testing.assert_allclose(weighted.counts.toarray(), w * x, rtol=0.021)
    w = known - weighted.missing.toarray() * known  # the smallest corrections are left out
    np.testing.assert_allclose(w * x, weighted.counts.toarray())
    np.testing.assert_allclose(weighted.loads(atoms), exposure[:, None] * (w @ atoms.T))
    np.testing.assert_allclose(weighted.visible(codes), w.T @ (exposure[:, None] * codes))
    expected = w * (mu - xlogy(x, mu) + xlogy(x, x) - x)
    assert weighted.half_deviance(atoms, codes) == pytest.approx(expected.sum(), rel=1e-9)
    some = weighted.take(np.arange(5))
    assert some.half_deviance(atoms, codes[:5]) == pytest.approx(expected[:5].sum(), rel=1e-9)
    assert weigh(events, atoms, codes, 0.0) is events


def test_weighted_codes_are_at_the_maximum_of_the_likelihood(rng):
    """The slope of the negative binomial likelihood is 0 where codes are positive."""
    x, _, atoms = dispersed(rng, 5.0, counts=1000.0)
    codes, _ = solve_dispersed(Events.of(x), atoms, 0.2)
    mu = codes @ atoms

    def loss(mu):
        return negative_log(x, mu, 0.2).sum(1)

    for k in range(P):
        for factor in (0.97, 1.03):
            other = codes.copy()
            other[:, k] *= factor
            assert (loss(other @ atoms) >= loss(mu) - 2e-3).all()


def test_the_negative_binomial_likelihood_is_scipys(rng):
    """Up to terms without the rates; with a tiny dispersion it is Poisson's."""
    x, one, other = rng.poisson(20.0, 50), rng.uniform(1, 40, 50), rng.uniform(1, 40, 50)
    ours = negative_log(x, one, 0.1) - negative_log(x, other, 0.1)
    theirs = nbinom.logpmf(x, 10, 10 / (10 + other)) - nbinom.logpmf(x, 10, 10 / (10 + one))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    for size in (0.0, 1e-9):
        difference = negative_log(x, one, size) - negative_log(x, other, size)
        np.testing.assert_allclose(difference, one - other - xlogy(x, one / other), atol=1e-5)


@pytest.mark.parametrize("size", [2.0, 20.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_dispersion_is_that_of_the_residuals(rng, size, gaps):
    x, _, atoms = dispersed(rng, size, n=300, counts=1500.0)
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else None
    events = Events.of(x, known)
    codes, _ = solve_dispersed(events, atoms, 1 / size)
    assert estimate_dispersion(events, atoms, codes) == pytest.approx(1 / size, rel=0.15)


@pytest.mark.parametrize("counts", [2.0, 60.0, 2000.0])
def test_poissons_counts_have_no_dispersion(counts):
    for seed in range(5):
        x, _, atoms = planted(np.random.default_rng(seed), n=100, counts=counts)
        events = Events.of(x)
        assert estimate_dispersion(events, atoms, solve_codes(events, atoms)) == 0


def signatures(rng, p, n, counts):
    """Return counts of spiky spectra, some of them in a row, and the spectra."""
    atoms = rng.dirichlet(np.full(40, 0.15), p)
    codes = rng.gamma(1.0, 1.0, (n, p)) * (rng.random((n, p)) < 0.5)
    return rng.poisson(counts * codes @ atoms).astype(float), atoms


@pytest.mark.parametrize("p", [1, 3, 6])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_number_of_atoms_is_found(rng, p, gaps):
    x, atoms = signatures(rng, p, 80, 500.0)
    known = (rng.random(x.shape) < 0.9).astype(float) if gaps else None
    exposure = rng.uniform(0.5, 2, len(x)) if gaps else None
    found, path = choose_size(Events.of(x, known, exposure), 1.0, np.random.default_rng(0))
    assert len(found) == p
    assert (np.diff(path.n_components) > 0).all()
    assert path.score.max() <= 1
    assert path.score[path.n_components == p] > path.score.max() - 0.01
    found, atoms = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (found, atoms))
    assert (found @ atoms.T).max(0).min() > 0.95


def test_variation_beyond_poissons_adds_no_atoms(rng):
    """Hidden features are not predicted by atoms that explain the errors of single entries."""
    _, atoms = signatures(rng, 4, 1, 1.0)
    codes = rng.gamma(1.0, 1.0, (120, 4)) * (rng.random((120, 4)) < 0.6)
    rates = 2000 * codes @ atoms * rng.lognormal(0, 0.2, (120, 40))
    found, _ = choose_size(Events.of(rng.poisson(rates).astype(float)), 1.0, rng)
    assert len(found) == 4


def test_the_score_of_a_size_is_the_explained_deviance(rng):
    """Written out for one atom: every feature is predicted from the other groups' features."""
    x, _ = signatures(rng, 1, 40, 200.0)
    _, path = choose_size(Events.of(x), 0.5, np.random.default_rng(0))
    order = np.random.default_rng(0).permutation(40)
    held = x[np.sort(order[:10])]
    mean = np.broadcast_to(held.mean(0), held.shape)
    total = (xlogy(held, held) - xlogy(held, mean) - held + mean).sum()
    assert path.n_components[0] == 1
    rest = x[np.sort(order[10:])].sum(0) + 0.5  # the mean spectrum of `Events`
    atom = rest / rest.sum()
    rng = np.random.default_rng(0)
    rng.permutation(40)
    group, left = rng.permutation(40) % 5, 0.0
    for i in range(5):
        seen = group != i
        codes = held[:, seen].sum(1) / atom[seen].sum()
        mu = np.maximum(codes[:, None] * atom[~seen], 1e-300)
        y = held[:, ~seen]
        mu = np.maximum(mu, 1e-3 * mu.mean())
        left += (xlogy(y, y) - xlogy(y, mu) - y + mu).sum()
    assert path.score[0] == pytest.approx(1 - left / total, abs=2e-3)


def prune_one(x, atoms, min_gain, known, exposure):
    """Remove atoms of a row by solving every smaller set anew: slow and obvious."""
    active = np.flatnonzero(solve_codes(Events.of(x, known, exposure), atoms)[0])

    def best(some):
        codes = solve_codes(Events.of(x, known, exposure), atoms[some])
        seen = np.ones_like(x) if known is None else known
        size = np.ones(1) if exposure is None else exposure
        return objective(x, atoms[some], codes, seen, size)[0], codes[0]

    while len(active) > 1:
        now = best(active)[0]
        costs = [best(np.delete(active, i))[0] - now for i in range(len(active))]
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
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else None
    exposure = rng.uniform(0.5, 2, len(x)) if gaps else None
    events = Events.of(x, known, exposure)
    codes = solve_codes(events, atoms)
    pruned = prune_codes(events, atoms, codes, min_gain)
    for i in range(len(x)):
        given = (None if t is None else t[i : i + 1] for t in (known, exposure))
        expected = prune_one(x[i : i + 1], atoms, min_gain, *given)
        np.testing.assert_array_equal(pruned[i] > 0, expected > 0)
        np.testing.assert_allclose(pruned[i], expected, rtol=0, atol=0.5)
    assert ((pruned > 0) <= (codes > 0)).all()
    assert (pruned > 0).sum() < (codes > 0).sum()


@pytest.mark.parametrize("gaps", [False, True])
def test_rows_have_the_codes_of_their_atoms_alone(rng, gaps):
    """Atoms that a row may not have are as if there were none; the objective still falls."""
    x, _, atoms = planted(rng, n=20)
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else None
    allowed = rng.random((20, P)) < 0.6
    allowed[:, 0] |= ~allowed.any(1)
    events = replace(Events.of(x, known), allowed=allowed)
    codes = solve_codes(events, atoms)
    assert not codes[~allowed].any()
    for i in range(20):
        one = Events.of(x[i : i + 1], None if known is None else known[i : i + 1])
        expected = solve_codes(one, atoms[allowed[i]])[0]
        np.testing.assert_allclose(codes[i, allowed[i]], expected, rtol=0, atol=1e-2)
    state = begin(events, atoms)
    for _ in range(20):
        state = advance(events, state, 1.0)
    assert not state.codes[~allowed].any()
    assert (np.diff(state.objectives) <= 1e-5 * abs(state.objectives[0])).all()


def test_atoms_that_are_limited_have_gains(rng):
    """Each atom of a row is worth its gain, before the atoms adapt to the others' absence."""
    x, _, atoms = planted(rng, counts=300.0)
    events = Events.of(x)
    state, limited = limit_atoms(events, converge(events, begin(events, atoms), 1.0), 1.0, 4.0)
    assert limited.allowed.mean() < (solve_codes(events, state.atoms) > 0).mean()
    assert ((state.codes > 0) <= limited.allowed).all()
    free = converge(events, begin(events, atoms), 1.0)
    assert limit_atoms(events, free, 1.0, 0.0)[0].objectives[-1] <= free.objectives[-1] + 0.01


def test_a_row_is_pruned_alone(rng):
    x, _, atoms = planted(rng)
    alone, all_rows = (
        prune_codes(events, atoms, solve_codes(events, atoms), 3.0)
        for events in (Events.of(x[7:8]), Events.of(x))
    )
    np.testing.assert_array_equal(alone[0], all_rows[7])


@pytest.mark.uncompiled
def test_the_only_atom_of_an_entry_stays():
    """No threshold removes it: without it the likelihood is 0."""
    atoms = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    events = Events.of(np.array([[1.0, 50.0, 0.0], [1.0, 50.0, 1.0]]))
    pruned = prune_codes(events, atoms, solve_codes(events, atoms), 300.0)
    np.testing.assert_array_equal(pruned > 0, [[True, False], [True, True]])


# ---------------------------------------------------------------------------- weights of rows


def repeated_and_weighted(rng, gaps=False, **options):
    """Return events with weights of rows, and the same with repeated rows, and their atoms."""
    x, _, atoms = planted(rng, **options)
    known = (rng.random(x.shape) < 0.8).astype(float) if gaps else None
    exposure, often = rng.uniform(0.5, 2, len(x)), rng.integers(1, 4, len(x))
    repeated = (None if t is None else np.repeat(t, often, axis=0) for t in (x, known, exposure))
    weighted = Events.of(x, known, exposure, often.astype(float))
    return weighted, Events.of(*repeated), often, atoms


@pytest.mark.parametrize("gaps", [False, True])
def test_sums_over_weighted_rows_are_sums_over_repeated_rows(rng, gaps):
    weighted, repeated, often, atoms = repeated_and_weighted(rng, gaps)
    codes = rng.random((N, P)) * 100
    copies = np.repeat(codes, often, axis=0)
    assert weighted.n_rows == repeated.n_rows == often.sum()
    for name in ("mean", "saturated"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name))
    np.testing.assert_allclose(weighted.visible(codes), repeated.visible(copies))
    one, other = weighted.half_deviance(atoms, codes), repeated.half_deviance(atoms, copies)
    assert one == pytest.approx(other)
    joined = Events.joined([weighted.take(slice(i, i + 7)) for i in range(0, N, 7)])
    np.testing.assert_array_equal(joined.row_weight, weighted.row_weight)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("dispersion", [0.0, 0.3])
def test_steps_with_weights_are_steps_with_repeated_rows(rng, gaps, dispersion):
    weighted, repeated, often, atoms = repeated_and_weighted(rng, gaps)
    begun = begin(weighted, atoms + 0.05)
    weighted = weigh(weighted, atoms, begun.codes, dispersion)
    repeated = weigh(repeated, atoms, np.repeat(begun.codes, often, axis=0), dispersion)
    one, other = (begin(events, atoms + 0.05) for events in (weighted, repeated))
    for _ in range(20):
        one, other = advance(weighted, one, 2.0), advance(repeated, other, 2.0)
    np.testing.assert_allclose(one.objectives, other.objectives)
    np.testing.assert_allclose(one.losses, other.losses)
    np.testing.assert_allclose(one.atoms, other.atoms, atol=1e-9)
    np.testing.assert_allclose(np.repeat(one.codes, often, axis=0), other.codes, atol=1e-6)


def test_codes_do_not_depend_on_weights(rng):
    weighted, _, _, atoms = repeated_and_weighted(rng)
    plain = replace(weighted, row_weight=None)
    codes = solve_codes(weighted, atoms)
    np.testing.assert_array_equal(codes, solve_codes(plain, atoms))
    pruned = [prune_codes(events, atoms, codes, 3.0) for events in (weighted, plain)]
    np.testing.assert_array_equal(*pruned)
    dispersed = [solve_dispersed(events, atoms, 0.2)[0] for events in (weighted, plain)]
    np.testing.assert_array_equal(*dispersed)


def test_hidden_entries_of_weighted_rows_are_those_of_repeated_rows(rng):
    weighted, repeated, often, atoms = repeated_and_weighted(rng, gaps=True, counts=3.0)
    hidden = (rng.random(weighted.counts.shape) < 0.2).astype(float)
    codes = rng.random((N, P)) * (rng.random((N, P)) < 0.3)
    _, judge = weighted.without(sparse.csr_array(hidden))
    _, other = repeated.without(sparse.csr_array(np.repeat(hidden, often, axis=0)))
    errors = judge.negative_likelihood(atoms, codes)
    expected = other.negative_likelihood(atoms, np.repeat(codes, often, axis=0))
    np.testing.assert_allclose(np.repeat(errors, often), expected)
    assert weighted.total(errors) == pytest.approx(expected.sum())


def test_first_atoms_of_weighted_rows_are_those_of_repeated_rows(rng):
    weighted, repeated, _, _ = repeated_and_weighted(rng, gaps=True)
    found = first_atoms(weighted, P)
    np.testing.assert_allclose(found, first_atoms(repeated, P), atol=1e-9)
    plain = first_atoms(replace(weighted, row_weight=None), P)
    assert np.abs(plain - found).max() > 1e-3


def test_some_of_many_weighted_rows_stand_for_all(rng):
    """Drawn rows count equally, and their sums are near those of all rows."""
    events = Events.of(rng.poisson(9.0, (4000, 3)).astype(float), None, None, rng.random(4000))
    some = events.sample(1000)
    assert some.n_rows == pytest.approx(1000 * events.row_weight.mean())
    np.testing.assert_allclose(some.mean, events.mean, rtol=0.03)


def test_the_dispersion_is_that_of_heavy_rows(rng):
    """Rows of another dispersion hardly count; the unit of weights does not matter."""
    _, rates, atoms = planted(rng, n=600, counts=1500.0)
    x = rng.poisson(rates * rng.gamma(10.0, 0.1, rates.shape))
    x[::2] = rng.poisson(rates[::2] * rng.gamma(2.0, 0.5, rates[::2].shape))
    for light, expected in ((1, 0.5), (0, 0.1)):
        weight = np.where(np.arange(600) % 2 == light, 1e-4, 1.0)
        events = Events.of(x.astype(float), None, None, weight)
        codes, _ = solve_dispersed(events, atoms, 0.2)
        found = estimate_dispersion(events, atoms, codes)
        assert found == pytest.approx(expected, rel=0.15)
        scaled = replace(events, row_weight=7 * weight)
        assert estimate_dispersion(scaled, atoms, codes) == pytest.approx(found)
    for counts in (2.0, 60.0):
        x, _, atoms = planted(rng, n=100, counts=counts)
        events = Events.of(x, None, None, np.repeat([1.0, 30.0], [95, 5]))
        assert estimate_dispersion(events, atoms, solve_codes(events, atoms)) == 0


@pytest.mark.parametrize("counts", [600.0, 20_000.0])
@pytest.mark.parametrize("unit", [7.0, 0.02])
def test_the_chosen_prior_grows_with_the_weights(rng, unit, counts):
    x, *_ = planted(rng, n=80, counts=counts)
    weight, start = rng.uniform(0.5, 2, 80), spectral_start(x, P)
    one, other = (
        choose_prior(
            Events.of(x, None, None, c * weight), start, np.random.default_rng(0), min_gain="auto"
        )
        for c in (1.0, unit)
    )
    assert other.smoothing == pytest.approx(unit * one.smoothing)
    assert other.min_gain == one.min_gain


def test_the_path_of_sizes_does_not_depend_on_the_unit_of_weights(rng):
    """If the prior has the unit of the weights, too."""
    x, _ = signatures(rng, 3, 80, 50_000.0)
    weight = rng.uniform(0.5, 2, 80)
    paths = [
        choose_size(Events.of(x, None, None, c * weight), c, np.random.default_rng(0))[1]
        for c in (1.0, 9.0)
    ]
    for one, other in zip(*paths, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.01)


def test_the_number_of_atoms_is_that_of_heavy_rows(rng):
    """Errors of rows that hardly count are no reason for atoms, and no chance."""
    x, _ = signatures(rng, 4, 80, 500.0)
    y, _ = signatures(rng, 5, 80, 2000.0)
    rows, weight = np.stack([x, y], 1).reshape(160, -1), np.tile([1.0, 1e-6], 80)
    found, _ = choose_size(Events.of(rows, None, None, weight), 1.0, np.random.default_rng(0))
    assert len(found) == 4
