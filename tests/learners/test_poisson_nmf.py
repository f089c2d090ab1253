"""`PoissonNMF`: counts of sources that add."""

import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import xlogy
from sklearn.base import clone
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from small import assert_same_values

from skpudle import Checkpoint, PoissonNMF
from skpudle._nmf.estimator import KullbackLeibler
from skpudle.inspection import code_saliency
from skpudle.metrics import recovery_rate


def planted(seed, n=400, m=100, p=4, counts=200):
    """Return counts, rates and spectra of a few lines and a background."""
    rng = np.random.default_rng(seed)
    axis, atoms = np.arange(m), []
    for _ in range(p):
        places, widths = rng.uniform(5, m - 5, (3, 1)), rng.uniform(1.5, 5, (3, 1))
        atom = np.exp(-((axis - places) ** 2) / (2 * widths**2)).sum(0) + 0.05
        atoms.append(atom / atom.sum())
    codes = rng.gamma(1.0, 1.0, (n, p)) * (rng.random((n, p)) < 0.5)
    rates = counts * codes @ np.array(atoms)
    return rng.poisson(rates).astype(float), rates, np.array(atoms)


def make(n_components=4, **options):
    return PoissonNMF(n_components, **dict(random_state=0) | options)


def divergence(rates, found):
    found = np.maximum(found, 1e-12)
    return (xlogy(rates, rates / found) - rates + found).sum() / rates.sum()


@pytest.fixture(scope="module")
def data():
    return planted(0)


@pytest.fixture(scope="module")
def X(data):
    return data[0]


@pytest.fixture(scope="module")
def fitted(X):
    return make().fit(X)


def directions(atoms):
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


# ---------------------------------------------------------------------------- finding them


@pytest.mark.parametrize("counts", [50, 1000])
def test_rates_are_nearer_to_the_truth_than_those_of_nmf(counts):
    """At its best number of iterations, which a user does not know."""
    X, rates, atoms = planted(1, counts=counts)
    learner = make().fit(X)
    found = divergence(rates, learner.inverse_transform(learner.transform(X)))
    errors = []
    for max_iter in (20, 60, 200):
        nmf = NMF(4, beta_loss="kullback-leibler", solver="mu", init="nndsvda", tol=0,
                  max_iter=max_iter, random_state=0)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            errors.append(divergence(rates, nmf.fit_transform(X) @ nmf.components_))
    assert found < min(errors)
    assert (
        recovery_rate(
            directions(learner.components_), directions(atoms), threshold=0.95
        )
        == 1
    )


def test_codes_are_events(fitted, X):
    codes = fitted.transform(X)
    assert fitted.components_.shape == (4, 100)
    assert fitted.components_.min() > 0
    np.testing.assert_allclose(fitted.components_.sum(1), 1)
    assert codes.min() == 0
    np.testing.assert_allclose(codes.sum(1), X.sum(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        fitted.inverse_transform(codes), codes @ fitted.components_
    )
    np.testing.assert_array_equal(fitted.fit_transform(X), codes)


def test_the_loss_curve_holds_half_the_deviance(fitted, X):
    mu = torch.tensor(fitted.inverse_transform(fitted.transform(X)))
    expected = KullbackLeibler().half_deviance(mu, torch.tensor(X)).sum(1).mean()
    assert fitted.loss_curve_[-1] == pytest.approx(float(expected), rel=0.01)


def test_score_is_the_explained_deviance(fitted, X):
    """Written out: each group is predicted by the others' codes."""
    exposure = np.random.default_rng(0).uniform(0.5, 2, len(X))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for hidden in order.tensor_split(10):
        seen = np.setdiff1d(np.arange(100), hidden)
        part = PoissonNMF.from_components(fitted.components_[:, seen])
        codes = part.transform(X[:, seen], exposure=exposure)
        empty = ~codes.any(1)  # half an event, spread over the atoms
        loads = exposure[empty] * fitted.components_[:, seen].sum()
        codes[empty] = (0.5 / loads)[:, None]
        mu = exposure[:, None] * (codes @ fitted.components_[:, hidden])
        total += (xlogy(X[:, hidden], X[:, hidden] / mu) - X[:, hidden] + mu).sum()
    mean = exposure[:, None] * X.sum(0) / exposure.sum()
    baseline = (xlogy(X, X / mean) - X + mean).sum()
    expected = 1 - total / baseline
    assert fitted.score(X, exposure=exposure) == pytest.approx(expected, rel=1e-6)


def test_a_grid_finds_a_number_of_atoms(X):
    search = GridSearchCV(make(), {"n_components": [1, 4]}, cv=2).fit(X)
    assert search.best_params_ == {"n_components": 4}


def test_the_number_of_atoms_is_found(X, tmp_path):
    recording = Checkpoint(tmp_path / "fit.npz")
    learner = make("auto").set_callbacks(recording).fit(X[::2])
    assert learner.n_components_ == 4
    path = learner.size_path_
    assert {values.shape for values in path.values()} == {path.n_components.shape}
    loss = path.score.max() - path.score
    assert path.n_components[loss <= path.tolerance].min() == 4
    assert learner.get_feature_names_out().shape == (4,)
    again = make("auto").set_callbacks(recording).fit(X[::2])
    np.testing.assert_array_equal(again.components_, learner.components_)
    again.set_callbacks().set_params(n_components=2).fit(X)
    assert again.size_path_ is None


def test_a_number_needs_rows_that_differ_and_its_own_start(X):
    """Copies of a held-out row would reveal its noise."""
    with pytest.raises(ValueError, match="7 rows that differ. Pass .* 8 rows or more"):
        make("auto").fit(np.repeat(X[:7], 3, axis=0))
    with pytest.raises(ValueError, match=r"finds atoms itself, .* got dict_init=\[\["):
        make("auto", dict_init=X[:2].tolist()).fit(X)


def test_counts_without_structure_have_one_atom_and_a_warning():
    X = np.random.default_rng(0).poisson(3.0, (60, 12)).astype(float)
    with pytest.warns(
        UserWarning, match="'auto' is 1: .* no better than the mean spectrum"
    ):
        assert make("auto").fit(X).n_components_ == 1


# ---------------------------------------------------------------------------- dispersion


def overdispersed(seed, size, n=150, counts=1000):
    """Return counts of negative binomial distributions, and their expectations and spectra."""
    rng = np.random.default_rng(seed)
    _, rates, atoms = planted(seed, n=n, m=60, counts=counts)
    return (
        rng.poisson(rates * rng.gamma(size, 1 / size, rates.shape)).astype(float),
        rates,
        atoms,
    )


@pytest.mark.parametrize(("size", "gaps"), [(4.0, True), (20.0, False)])
def test_the_dispersion_is_estimated(size, gaps):
    X, rates, _ = overdispersed(0, size)
    X[np.random.default_rng(0).random(X.shape) < 0.1 * gaps] = np.nan
    learner = make().fit(X)
    assert learner.dispersion_ == pytest.approx(1 / size, rel=0.15)
    plain = make(dispersion=None).fit(X)
    ours, poissons = (
        divergence(rates, one.inverse_transform(one.transform(X)))
        for one in (learner, plain)
    )
    assert ours < poissons


def mixed_in_pairs(seed):
    """Return rows of two of six spectra that are alike, and the spectra."""
    rng = np.random.default_rng(seed)
    atoms = rng.dirichlet(np.full(60, 3.0)) * rng.lognormal(0, 0.6, (6, 60))
    atoms /= atoms.sum(1, keepdims=True)
    codes = np.zeros((150, 6))
    for row in codes:
        row[rng.choice(6, 2, replace=False)] = 10_000 * rng.dirichlet(np.ones(2))
    return rng.poisson(codes @ atoms).astype(float), atoms


def test_rows_of_few_atoms_have_better_atoms():
    """Codes by chance mix atoms; hidden entries see it, and choose rows of few atoms."""
    for seed in (0, 2):
        X, atoms = mixed_in_pairs(seed)
        errors = []
        for min_gain in ("auto", 0.0):
            learner = make(6, min_gain=min_gain).fit(X)
            assert (learner.min_gain_ > 0) == (min_gain == "auto")
            cosines = directions(atoms) @ directions(learner.components_).T
            errors.append((1 - cosines.max(1)).mean())
        assert errors[0] < 0.9 * errors[1]


def test_rows_of_all_atoms_keep_them():
    rng = np.random.default_rng(0)
    atoms = rng.dirichlet(np.full(40, 0.3), 4)
    X = rng.poisson(1000 * rng.dirichlet(np.ones(4), 150) @ atoms).astype(float)
    assert make().fit(X).min_gain_ == 0


@pytest.mark.parametrize("n_components", [5, "auto"])
def test_a_row_of_most_events_does_not_rule_the_atoms(n_components):
    """One row of twice the events of 100 rows, and an atom's worth of its own noise."""
    rng = np.random.default_rng(0)
    atoms = rng.dirichlet(np.full(96, 0.2), 5)
    codes = 2000 * rng.dirichlet(np.full(5, 0.5), 101)
    codes[0] *= 100
    rates = codes @ atoms
    X = rng.poisson(rates * rng.gamma(10, 0.1, rates.shape)).astype(float)
    learner = make(n_components).fit(X)
    assert learner.n_components_ == 5
    assert (
        recovery_rate(
            directions(learner.components_), directions(atoms), threshold=0.97
        )
        == 1
    )
    plain = make(5, dispersion=None).fit(X)
    assert (
        recovery_rate(directions(plain.components_), directions(atoms), threshold=0.97)
        < 1
    )


def test_codes_solve_the_equation_of_the_negative_binomial_distribution():
    X, _, atoms = overdispersed(1, 5.0, n=30)
    codes = PoissonNMF.from_components(atoms, dispersion=0.2).transform(X)
    mu = np.maximum(codes @ atoms, 1e-9)
    slopes = (X / mu - (X + 5) / (mu + 5)) @ atoms.T * codes
    assert np.abs(slopes).max() < 0.05 * X.sum(1).mean() ** 0.5
    alone = PoissonNMF.from_components(atoms, dispersion=0.2).transform(X[3:4])[0]
    np.testing.assert_allclose(alone, codes[3], rtol=1e-9)


# ---------------------------------------------------------------------------- kinds of data


def test_sparse_rows_are_rows(fitted, X):
    found = make().fit(sparse.csr_array(X))
    np.testing.assert_allclose(
        found.components_, fitted.components_, rtol=0, atol=1e-10
    )
    codes = found.transform(sparse.csr_array(X))
    np.testing.assert_allclose(codes, fitted.transform(X), rtol=0, atol=1e-6)


def test_exposures_are_factors(data):
    """They divide codes, and leave the atoms."""
    X, rates, _ = data
    exposure = np.random.default_rng(0).uniform(0.1, 3, len(X))
    learner, plain = make().fit(X, exposure=exposure), make().fit(X)
    np.testing.assert_array_equal(learner.components_, plain.components_)
    found = learner.transform(X, exposure=exposure)
    np.testing.assert_allclose(found * exposure[:, None], plain.transform(X))
    assert (
        divergence(rates, exposure[:, None] * learner.inverse_transform(found)) < 0.05
    )
    np.testing.assert_array_equal(
        learner.transform(X, exposure=np.ones(len(X))), plain.transform(X)
    )
    for wrong in (-exposure, exposure[:-1]):
        with pytest.raises(ValueError, match="positive numbers"):
            learner.fit(X, exposure=wrong)


def test_missing_entries_are_predicted(data):
    X, rates, _ = data
    missing = np.random.default_rng(0).random(X.shape) < 0.3
    gaps = np.where(missing, np.nan, X)
    learner = make().fit(gaps)
    filled = learner.inverse_transform(learner.transform(gaps))
    assert divergence(rates[missing], filled[missing]) < 0.05
    assert learner.score(gaps) > 0.3


def test_float32_and_tensors(fitted, X):
    learner = make().fit(X.astype(np.float32))
    assert learner.components_.dtype == np.float32
    np.testing.assert_allclose(
        learner.components_, fitted.components_, rtol=1e-3, atol=1e-5
    )
    codes = learner.transform(torch.tensor(X, dtype=torch.float32))
    assert codes.dtype == torch.float32
    with pytest.raises(ValueError, match="can be differentiated"):
        code_saliency(fitted, X[:3])


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((20, 5)),
        np.eye(20, 5),
        np.full((20, 5), 1e12),
        np.random.default_rng(0)
        .poisson(10.0 ** np.linspace(-3, 3, 8), (60, 8))
        .astype(float),
        np.random.default_rng(0).random((20, 5)) * 1e-9,
    ],
    ids=["zeros", "single events", "huge", "all sizes", "tiny"],
)
@pytest.mark.filterwarnings("ignore:All values of X are below 1")
@pytest.mark.parametrize("alpha", ["auto", 0.0])
def test_odd_data(X, alpha):
    learner = make(3, alpha=alpha).fit(X)
    assert np.isfinite(learner.components_).all()
    codes = learner.transform(X)
    assert np.isfinite(codes).all()
    np.testing.assert_allclose(codes.sum(1), X.sum(1), rtol=1e-2, atol=1e-3)
    assert np.isfinite(learner.score(X))


def test_fractions_are_no_counts(X):
    with pytest.warns(UserWarning, match="below 1: fractions are not counts"):
        make(max_iter=2, tol=None).fit(X[:30] / X.sum())


def test_given_atoms_encode_without_data(fitted, X):
    learner = PoissonNMF.from_components(fitted)
    np.testing.assert_array_equal(learner.transform(X), fitted.transform(X))
    with pytest.raises(
        ValueError, match="Negative values in data passed to components"
    ):
        PoissonNMF.from_components(-np.eye(3))


# ---------------------------------------------------------------------------- weights

WEIGHTED = {
    "default": make(3),
    "auto": make("auto"),
    "given": make(3, dict_init=planted(0, m=30)[2][:3]),
    "fixed": make(3, fixed_components=planted(0, m=30)[2][:1]),
}


def weighted(seed=0, n=60):
    """Return counts, numbers of repetitions, some of them zero, and an order."""
    rng = np.random.default_rng(seed)
    return (
        overdispersed(seed, 20.0, n, 300)[0][:, ::2],
        rng.integers(0, 4, n),
        rng.permutation(n),
    )


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("learner", WEIGHTED.values(), ids=WEIGHTED)
def test_weights_are_repetitions_in_any_order(learner, gaps):
    X, often, order = weighted()
    if gaps:
        X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    exposure = np.where(np.arange(len(X)) % 2, 0.5, 2.0) if gaps else np.ones(len(X))
    copies = np.random.default_rng(2).permutation(np.repeat(np.arange(len(X)), often))
    one = clone(learner).fit(X[copies], exposure=exposure[copies])
    given = dict(exposure=exposure[order], sample_weight=often[order])
    names = (
        "components_",
        "alpha_",
        "dispersion_",
        "min_gain_",
        "loss_curve_",
        "size_path_",
    )
    assert_same_values(one, clone(learner).fit(X[order], **given), *names)


@pytest.mark.parametrize("n_components", [4, "auto"])
def test_choices_leave_the_unit_of_weights_open(n_components):
    """The chosen number of pseudo-events grows with the weights, and atoms stay."""
    X, _, _ = overdispersed(0, 10.0)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(X))
    one, other = (
        make(n_components).fit(X, sample_weight=c * weight) for c in (1.0, 8.0)
    )
    assert one.n_components_ == other.n_components_ == 4
    assert other.alpha_ == pytest.approx(8 * one.alpha_)
    assert other.dispersion_ == pytest.approx(one.dispersion_, rel=1e-3)
    assert other.min_gain_ == one.min_gain_
    np.testing.assert_allclose(one.components_, other.components_, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("n_fixed", [1, 4])
@pytest.mark.parametrize("alpha", ["auto", 0.0])
def test_fixed_atoms_stay_and_the_others_are_found(n_fixed, alpha, data):
    """Also atoms with entries of 0, on which a prior would have an infinite penalty."""
    X, _, atoms = data
    fixed = 7 * np.where(atoms > 0.002, atoms, 0)[:n_fixed]
    learner = make(4, alpha=alpha, fixed_components=fixed).fit(X)
    kept = fixed / fixed.sum(1, keepdims=True)
    np.testing.assert_array_equal(learner.components_[:n_fixed], kept)
    assert np.isfinite(learner.loss_curve_).all()
    assert (
        recovery_rate(
            directions(learner.components_), directions(atoms), threshold=0.95
        )
        == 1
    )


@pytest.mark.parametrize("n_fixed", [1, 4])
def test_the_number_of_new_atoms_is_found(n_fixed, data):
    """None, where the fixed atoms explain all."""
    X, _, atoms = data
    learner = make("auto", fixed_components=atoms[:n_fixed]).fit(X[::2])
    assert learner.n_components_ == 4
    np.testing.assert_allclose(
        learner.components_[:n_fixed], atoms[:n_fixed], rtol=1e-12
    )
    assert (
        recovery_rate(
            directions(learner.components_), directions(atoms), threshold=0.95
        )
        == 1
    )
    assert learner.size_path_.n_components.min() >= n_fixed


@pytest.mark.parametrize(
    ("n", "fixed", "words"),
    [
        (
            1,
            np.ones((2, 100)),
            "n_components=1 counts the 2 fixed_components, too. Pass .* 2 on",
        ),
        (3, np.ones((2, 99)), r"fixed_components has shape \(2, 99\), expected"),
        (3, -np.eye(2, 100), "Negative values in data passed to fixed_components"),
        (3, np.zeros((2, 100)), "fixed_components has atoms of zeros"),
    ],
)
def test_wrong_fixed_atoms_are_refused(n, fixed, words, X):
    with pytest.raises(ValueError, match=words):
        make(n, fixed_components=fixed).fit(X)


def test_an_early_end_is_said(X):
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        make(max_iter=2).fit(X)


def test_a_checkpoint_of_other_exposures_is_refused(X, tmp_path):
    recording, exposure = Checkpoint(tmp_path / "fit.npz"), np.ones(len(X))
    make(max_iter=2, tol=None).set_callbacks(recording).fit(X, exposure=exposure)
    for other in (None, 2 * exposure):
        with pytest.raises(ValueError, match=r"belongs to another fit \(data"):
            make(max_iter=2, tol=None).set_callbacks(recording).fit(X, exposure=other)
