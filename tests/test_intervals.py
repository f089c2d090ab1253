"""Intervals of atoms and codes, the bound of their errors, and the draws that they come from."""

from math import ceil

import numpy as np
import pytest
from scipy import stats

from skpudle import (
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    PoissonNMF,
    PUDLEDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data
from skpudle.inspection import atom_intervals, code_intervals, error_bound
from skpudle.inspection._posterior import loops


def planted(n=800, m=16, p=24, n_nonzero=2, snr_db=10, seed=0):
    return make_dictionary_data(n, m, p, n_nonzero, snr_db=snr_db, random_state=seed)


def known(atoms, alpha=0.5, **params):
    """Return a learner that has the true atoms."""
    return PUDLEDictionaryLearning.from_components(
        atoms, alpha=alpha, debias=1, **params
    )


def coverage(found, atoms):
    return ((found.lower <= atoms) & (atoms <= found.upper)).mean()


# ---------------------------------------------------------------------------- atoms


@pytest.mark.parametrize("snr_db", [20, 10, 5])
def test_intervals_of_90_percent_hold_90_percent_of_the_entries(snr_db):
    X, atoms, _ = planted(snr_db=snr_db, seed=1)
    found = atom_intervals(known(atoms), X, random_state=0)
    # 384 entries have a deviation of .015
    assert 0.86 <= coverage(found, atoms) <= 0.94
    assert found.supported.all()


def test_fitted_atoms_lose_their_bias_within_their_intervals():
    X, atoms, _ = planted(seed=2)
    learner = PUDLEDictionaryLearning(24, random_state=0).fit(X)
    found = atom_intervals(learner, X, random_state=0)
    cosines = found.estimate @ atoms.T
    order = np.abs(cosines).argmax(0)
    signs = np.sign(cosines[order, np.arange(24)])[:, None]
    errors = (found.estimate[order] * signs - atoms) / found.standard_error[order]
    assert 0.85 <= (np.abs(errors) < 1.645).mean() <= 0.95
    of_fit = np.square(learner.components_[order] * signs - atoms).sum()
    assert np.square(found.estimate[order] * signs - atoms).sum() < of_fit


def test_with_little_noise_errors_are_those_of_known_supports():
    """The Fisher information of one-sparse rows is sum(z^2) / sigma^2 on the tangent space."""
    X, atoms, codes = planted(n_nonzero=1, snr_db=26)
    found = atom_intervals(known(atoms, alpha=0.2), X, random_state=0)
    variance = np.square(X - codes @ atoms).mean()
    expected = (atoms.shape[1] - 1) * variance / np.square(codes).sum(0)
    np.testing.assert_allclose(
        np.square(found.standard_error).sum(1), expected, rtol=0.15
    )
    np.testing.assert_allclose(found.limit, expected, rtol=0.15)
    # the norm is known, and so an entry's variance is sigma^2 (1 - d^2) / sum(z^2)
    entries = variance * (1 - atoms**2) / np.square(codes).sum(0)[:, None]
    np.testing.assert_allclose(found.standard_error**2, entries, rtol=0.25)


def test_units_of_the_data_change_no_atom():
    X, atoms, _ = planted(n=300)
    one = atom_intervals(known(atoms), X, random_state=0)
    other = atom_intervals(known(atoms, alpha=4.0), 8 * X, random_state=0)
    for part, same in zip(one, other, strict=True):
        np.testing.assert_allclose(part, same, rtol=1e-9)


def test_copies_of_rows_are_one_row_with_a_weight():
    """Twice the rows have the noise of the rows; a weight of 0 is absence."""
    X, atoms, _ = planted(n=300)
    whole, twice = (
        atom_intervals(known(atoms), np.tile(X, (k, 1)), random_state=0) for k in (1, 2)
    )
    for part, same in zip(whole, twice, strict=True):
        np.testing.assert_array_equal(part, same)
    often = np.random.default_rng(0).integers(0, 4, len(X))
    copies = atom_intervals(known(atoms), np.repeat(X, often, axis=0), random_state=0)
    weighted = atom_intervals(known(atoms), X, sample_weight=often, random_state=0)
    for part, same in zip(copies, weighted, strict=True):
        np.testing.assert_allclose(part, same, rtol=1e-9)
    assert 0.86 <= coverage(weighted, atoms) <= 0.94
    assert weighted.standard_error.mean() > 1.1 * whole.standard_error.mean()


def test_missing_entries_widen_intervals():
    X, atoms, _ = planted()
    rng = np.random.default_rng(0)
    gaps = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    whole, found = (
        atom_intervals(known(atoms), data, random_state=0) for data in (X, gaps)
    )
    assert found.standard_error.mean() > 1.1 * whole.standard_error.mean()
    assert 0.85 <= coverage(found, atoms) <= 0.95


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fewer_rows_than_atoms_determine_an_atom_by_chance_only():
    X, _, _ = planted(n=60, m=20, p=80, n_nonzero=3, snr_db=15)
    found = atom_intervals(
        PUDLEDictionaryLearning(80, random_state=0).fit(X), X, random_state=0
    )
    assert np.isfinite(found.standard_error).all()
    assert found.supported.mean() <= 0.05


def test_outlying_rows_and_entries_have_no_say():
    X, atoms, _ = planted()
    spoiled = np.concatenate([X, 100 * X[:1]])
    spoiled[5, 3] = 1e4
    found = atom_intervals(known(atoms), spoiled, random_state=0)
    assert 0.85 <= coverage(found, atoms) <= 0.95


def test_a_baseline_that_is_not_known_widens_intervals():
    """Positive codes shift all atoms with the baseline, so that their errors are common."""
    X, atoms, _ = make_dictionary_data(
        800, 16, 24, 2, sign=None, snr_db=10, random_state=0
    )
    offset = np.random.default_rng(0).standard_normal(16)
    without = atom_intervals(known(atoms, positive_code=True), X, random_state=0)
    assert 0.85 <= coverage(without, atoms) <= 0.95
    learner = known(atoms, positive_code=True, intercept=offset)
    found = atom_intervals(learner, X + offset, random_state=0)
    assert coverage(found, atoms) >= 0.75
    assert found.standard_error.mean() > 1.1 * without.standard_error.mean()


def test_atoms_of_pure_noise_are_not_supported():
    X = np.random.default_rng(1).standard_normal((500, 16))
    learner = PUDLEDictionaryLearning(20, random_state=0).fit(X)
    with pytest.warns(UserWarning, match="may stand for each other.*Pass more rows"):
        found = atom_intervals(learner, X, random_state=0)
    assert found.supported.mean() <= 0.05


def test_the_same_seed_gives_the_same_intervals_in_words_too():
    X, atoms, _ = planted(n=200)
    one, other = (atom_intervals(known(atoms), X, random_state=5) for _ in range(2))
    for part, same in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, same)
    n = np.count_nonzero(one.supported)
    assert str(one).startswith(
        f"The data determine {n} of 24 atoms. Their expected squared error"
    )
    assert (
        str(one._replace(supported=np.zeros(24, bool)))
        == "The data determine 0 of 24 atoms."
    )


@pytest.mark.parametrize("used", [1.0, 0.4])
def test_intervals_of_counts_hold_spectra(used):
    rng = np.random.default_rng(1)
    spectra = rng.dirichlet(np.full(30, 0.5), size=3)
    codes = 100 * rng.gamma(1.0, 1.0, (300, 3)) * (rng.random((300, 3)) < used)
    X = rng.poisson(codes @ spectra)
    learner = PoissonNMF(3, random_state=0).fit(X)
    found = atom_intervals(learner, X, random_state=0)
    order = (found.estimate @ spectra.T).argmax(0)
    ends = found.lower[order], found.upper[order]
    assert 0.8 <= ((ends[0] <= spectra) & (spectra <= ends[1])).mean() <= 0.99
    np.testing.assert_allclose(found.estimate.sum(1), 1)
    assert (found.lower >= 0).all()
    assert found.supported.all()


# ---------------------------------------------------------------------------- codes


def test_codes_are_least_squares_on_their_supports():
    X, atoms, _ = planted(n=40)
    learner = known(atoms)
    found, codes = code_intervals(learner, X, random_state=0), learner.transform(X)
    np.testing.assert_array_equal(found.supported, codes != 0)
    for row, estimate, support in zip(X, found.estimate, found.supported, strict=True):
        expected = np.linalg.lstsq(atoms[support].T, row, rcond=None)[0]
        np.testing.assert_allclose(estimate[support], expected, atol=1e-10)
        assert not estimate[~support].any()
    assert not found.standard_error[~found.supported].any()


def test_intervals_of_codes_hold_them_where_the_support_is_right():
    X, atoms, codes = planted(n=2000, n_nonzero=2, snr_db=15)
    found = code_intervals(known(atoms, alpha=0.3), X, random_state=0)
    right = (found.supported == (codes != 0)).all(1)
    assert right.mean() > 0.3
    inside = (found.lower <= codes) & (codes <= found.upper)
    assert 0.87 <= inside[right][codes[right] != 0].mean() <= 0.93


def test_few_rows_have_the_noise_of_the_fit():
    X, _, _ = planted()
    learner = PUDLEDictionaryLearning(24, random_state=0).fit(X)
    one = code_intervals(learner, X[:1])
    gram = learner.components_[one.supported[0]]
    expected = learner.noise_std_ * np.sqrt(np.diag(np.linalg.inv(gram @ gram.T)))
    np.testing.assert_allclose(
        one.standard_error[0][one.supported[0]], expected, rtol=1e-9
    )


def counts_of_known_atoms(dispersion=0.0):
    """Return counts of six known atoms, of which a row has some, their codes, and a coder."""
    rng = np.random.default_rng(0)
    atoms = rng.dirichlet(np.full(40, 0.3), 6)
    codes = 400 * rng.gamma(2.0, 1.0, (120, 6)) * (rng.random((120, 6)) < 0.5)
    rates = codes @ atoms
    if dispersion:
        rates = rates * rng.gamma(1 / dispersion, dispersion, rates.shape)
    coder = PoissonNMF.from_components(atoms, dispersion=dispersion or None)
    return rng.poisson(rates).astype(float), codes, coder


@pytest.mark.parametrize("dispersion", [0.0, 0.1])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_intervals_hold_the_true_codes_as_often_as_they_say(dispersion, level):
    X, codes, coder = counts_of_known_atoms(dispersion)
    found, low, high, errors, support = code_intervals(coder, X, level, random_state=0)
    np.testing.assert_array_equal(found, coder.transform(X))
    np.testing.assert_array_equal(support, found > 0)
    reach = stats.norm.ppf(0.5 + level / 2) * errors
    np.testing.assert_allclose(high, found + reach)
    np.testing.assert_allclose(low, np.maximum(found - reach, 0))
    held = ((low <= codes) & (codes <= high))[codes > 0].mean()
    assert abs(held - level) < 0.05


# ---------------------------------------------------------------------------- refusals


def test_what_has_no_intervals_is_refused():
    X, atoms, _ = planted(n=100)
    learner = known(atoms)
    with pytest.raises(ValueError, match="level == 1.0, must be < 1"):
        atom_intervals(learner, X, 1.0)
    with pytest.raises(ValueError, match="exposure is for .*PoissonNMF"):
        code_intervals(learner, X, exposure=np.ones(100))
    counts = PoissonNMF.from_components(np.eye(16))
    with pytest.raises(ValueError, match="Intervals of counts take no sample_weight"):
        atom_intervals(counts, np.abs(X), sample_weight=np.ones(100))
    how = dict(alpha=1.0, intercept=np.zeros(16))
    log_rates = CountDictionaryLearning.from_components(atoms, **how)
    with pytest.raises(ValueError, match="effects of .* multiply.*PoissonNMF"):
        code_intervals(log_rates, np.round(np.abs(X)))
    conv = ConvPUDLEDictionaryLearning(2, atom_shape=4, random_state=0).fit(X[:4])
    with pytest.raises(ValueError, match="have positions.*Pass a learner of rows"):
        atom_intervals(conv, X)
    with pytest.raises(ValueError, match="did not estimate the noise.*Pass more rows"):
        code_intervals(known(np.eye(3), alpha=1e-3), np.ones((2, 3)))
    with pytest.raises(ValueError, match="n_nonzero == 5, must be < 5"):
        error_bound(100, 5, 20, n_nonzero=5, snr_db=10)


# ---------------------------------------------------------------------------- limits


def test_the_bound_is_the_inverse_of_the_information():
    """For one-sparse rows the information of the tangent space is a multiple of the identity."""
    m, p, n, snr_db = 12, 5, 1000, 7.0
    energy, noise = n / p, 1 / m / 10 ** (snr_db / 10)  # codes of modulus 1
    found = error_bound(n, m, p, n_nonzero=1, snr_db=snr_db)
    np.testing.assert_allclose(found, (m - 1) * noise / energy)


def test_twice_the_rows_halve_the_error_and_rare_atoms_need_more():
    options = dict(n_nonzero=3, snr_db=10)
    one, two = (error_bound(n, 20, 40, **options) for n in (1000, 2000))
    np.testing.assert_allclose(one, 2 * two)
    assert error_bound(1000, 20, 40, relative_uses=0.1, **options) == pytest.approx(
        10 * one
    )
    n = ceil(error_bound(1, 20, 40, **options) / 0.001)
    assert (
        error_bound(n, 20, 40, **options)
        <= 0.001
        < error_bound(n - 1, 20, 40, **options)
    )


# ---------------------------------------------------------------------------- draws


@pytest.mark.uncompiled
@pytest.mark.parametrize("kind", ["signed", "positive", "exponential"])
def test_one_code_has_its_posterior_distribution(kind):
    """A code of 0, or normal around +-mu, or exponential, seen with noise of variance 1."""
    n, seen, mean, variance, rate, odds = (
        3000,
        1.2,
        1.0,
        0.5,
        1.5,
        np.array([-0.5, -1.0]),
    )
    positive, grid = kind != "signed", np.linspace(-12, 12, 20001)
    if kind == "exponential":
        prior = np.array(
            [0.0, -rate, odds[0] + np.log(rate) + 0.5 * np.log(2 * np.pi), -np.inf]
        )
        density = np.exp(odds[0]) * stats.expon.pdf(grid, scale=1 / rate)
    else:
        constant = odds - 0.5 * np.log(variance) - 0.5 * mean**2 / variance
        prior = np.array([1 / variance, mean / variance, *constant])
        density = sum(
            np.exp(odd) * stats.norm.pdf(grid, sign * mean, np.sqrt(variance))
            for odd, sign in zip(odds, (1, -1), strict=True)
        )
    if kind == "positive":
        prior[2:] = constant[0] - stats.norm.logcdf(mean / np.sqrt(variance)), -np.inf
        density = stats.truncnorm.pdf(
            grid, -mean / variance**0.5, np.inf, mean, variance**0.5
        )
        density *= np.exp(odds[0])
    given, z = (
        (np.full((n, 1), seen), np.ones((1, 1, 1)), prior[:, None]),
        np.zeros((n, 1)),
    )
    loops.draw_codes(*given, np.random.default_rng(0), z)
    density *= np.exp(seen * grid - 0.5 * grid**2)
    total = density.sum() * (grid[1] - grid[0])
    share = total / (1 + total)
    assert abs((z != 0).mean() - share) < 4 * np.sqrt(share * (1 - share) / n)
    expected = (density * grid).sum() / density.sum()
    spread = np.sqrt((density * grid**2).sum() / density.sum() - expected**2)
    drawn = z[z != 0]
    assert abs(drawn.mean() - expected) < 4 * spread / np.sqrt(len(drawn))
    np.testing.assert_allclose(drawn.std(), spread, rtol=0.1)
    assert not positive or (drawn > 0).all()
