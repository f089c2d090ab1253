"""Baseline and noise: units that change nothing, and data that need them."""

import pickle
from itertools import cycle

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_wine
from sklearn.linear_model import LinearRegression
from small import weekly

from skpudle import PUDLEClassifier, PUDLEDictionaryLearning, PUDLERegressor
from skpudle.datasets import make_dictionary_data

N_ATOMS, N_FEATURES = 30, 24
pytestmark = pytest.mark.filterwarnings("ignore:30 atoms, more than 24 features")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def planted():
    """Return clean rows, three atoms in each, and these atoms."""
    how = dict(amplitude=(0.5, 1.5), random_state=0)
    return make_dictionary_data(1000, N_FEATURES, N_ATOMS, 3, **how)[:2]


def noise_of(clean, scale=0.03, seed=1):
    return clean + scale * np.random.default_rng(seed).standard_normal(clean.shape)


def learner(**params):
    return PUDLEDictionaryLearning(N_ATOMS, random_state=0, **params)


def found(fitted, atoms, least=0.99):
    return (np.abs(atoms @ unit(fitted.components_).T).max(axis=1) > least).mean()


OFFSET = 3 * np.cos(np.arange(N_FEATURES))
SCALES = np.geomspace(0.1, 10, N_FEATURES)


@pytest.mark.parametrize("size", [None, 1e2, 1e5])
def test_an_offset_becomes_the_baseline(planted, size):
    """Also beside one huge row."""
    clean, atoms = planted
    X = noise_of(clean) + OFFSET
    if size is not None:
        X[7] = size * np.random.default_rng(2).standard_normal(N_FEATURES)
    fitted = learner().fit(X)
    assert found(fitted, atoms) == 1
    np.testing.assert_allclose(fitted.intercept_, OFFSET, atol=0.03)
    np.testing.assert_allclose(
        fitted.inverse_transform(np.zeros((1, N_ATOMS)))[0], OFFSET, atol=0.03
    )


@pytest.mark.parametrize("noise", ["rows", "both"])
def test_quiet_rows_keep_their_atoms(noise):
    """In units of each row's noise, errors are less than the noise."""
    random = np.random.default_rng(0)
    codes = random.uniform(0.5, 1.5, (1500, 45)) * random.choice([-1, 1], (1500, 45))
    codes *= random.random(codes.shape).argsort(1) < 4
    clean = codes @ unit(random.standard_normal((45, N_FEATURES)))
    scale = clean.std() * 10 ** -random.uniform(1, 2.5, (len(clean), 1))
    X = clean + scale * random.standard_normal(clean.shape)
    fitted = PUDLEDictionaryLearning(45, noise=noise, random_state=0).fit(X[:1000])
    left = fitted.inverse_transform(fitted.transform(X[1000:])) - clean[1000:]
    assert np.square(left / scale[1000:]).mean() < 1


def test_outlying_entries_are_missing(planted):
    clean, atoms = planted
    X, random = noise_of(clean), np.random.default_rng(2)
    spikes = random.random(X.shape) < 0.01
    X[spikes] += 10 * random.choice([-1, 1], spikes.sum())
    fitted = learner().fit(X)
    assert found(fitted, atoms) == 1
    assert fitted.outliers_.shape == X.shape
    marked = fitted.outliers_.toarray()
    assert marked[spikes].mean() > 0.95
    assert marked[~spikes].mean() < 0.01


@pytest.mark.parametrize(("share", "size"), [(0.05, 4), (0.02, 30)])
def test_outlying_rows_do_not_rule(planted, share, size):
    """They are left out of the fit, and coded as all rows are."""
    clean, atoms = planted
    X, random = noise_of(clean), np.random.default_rng(2)
    rows = random.choice(len(X), int(share * len(X)), replace=False)
    X[rows] = size * random.standard_normal((len(rows), N_FEATURES))
    fitted = learner().fit(X)
    assert found(fitted, atoms) == 1
    scores = fitted.score_samples(X)
    usual = np.delete(scores, rows)
    assert np.median(scores[rows]) < np.quantile(usual, 0.01)


def test_features_in_other_units_are_a_noise_array(planted):
    """Weights that are known are the change of units that users would make by hand."""
    X = noise_of(planted[0])[:400]
    fitted = learner(noise=SCALES, fit_intercept=False).fit(X)
    scale = SCALES / np.exp(np.log(SCALES).mean())
    by_hand = learner(noise="equal", fit_intercept=False).fit(X / scale)
    np.testing.assert_allclose(
        unit(by_hand.components_ * scale), fitted.components_, atol=1e-9
    )
    expected = by_hand.inverse_transform(by_hand.transform(X / scale)) * scale
    np.testing.assert_allclose(
        fitted.inverse_transform(fitted.transform(X)), expected, atol=1e-8
    )


PARAMS = [
    {},
    {"n_unfoldings": 3, "max_iter": 2, "tol": None},
    {"gradient": "ae-lasso", "max_iter": 2, "tol": None},
    {"n_unfoldings": 2, "separate_atoms": True, "max_iter": 2},
    {"n_components": "auto"},
    {"transform_algorithm": "omp"},
]


@pytest.mark.parametrize("params", PARAMS, ids=lambda p: "-".join(p) or "default")
def test_baseline_and_noise_go_everywhere(planted, params):
    X = (noise_of(planted[0])[:300] + OFFSET).astype(np.float32)
    params = {"n_components": N_ATOMS, "noise": "both", "fit_intercept": True} | params
    fitted = PUDLEDictionaryLearning(random_state=0, **params).fit(X)
    codes = fitted.transform(X)
    assert (
        codes.dtype == fitted.components_.dtype == fitted.intercept_.dtype == np.float32
    )
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(X), codes)
    assert np.isfinite(fitted.score(X))
    tensor = torch.from_numpy(X)
    np.testing.assert_allclose(fitted.transform(tensor).numpy(), codes, atol=1e-5)
    before = np.square(X - X.mean(axis=0)).sum()
    assert np.square(fitted.inverse_transform(codes) - X).sum() < before


@pytest.mark.parametrize(
    ("params", "noise"),
    [({}, "both"), ({"gradient": "ae-ls", "max_iter": 2, "tol": None}, "features")],
)
def test_partial_fit_goes_on_in_the_same_units(planted, params, noise):
    X = noise_of(planted[0]) + OFFSET
    fitted = learner(noise=noise, fit_intercept=True, **params).fit(X)
    baseline, noise_std = fitted.intercept_, fitted.noise_std_
    fitted.partial_fit(X)
    np.testing.assert_array_equal(fitted.intercept_, baseline)
    np.testing.assert_allclose(fitted.noise_std_, noise_std)
    assert found(fitted, planted[1]) == 1
    first = learner(noise=noise, fit_intercept=True, **params).partial_fit(X)
    np.testing.assert_allclose(first.intercept_, OFFSET, atol=0.1)


def test_missing_entries_keep_the_baseline(planted):
    X = noise_of(planted[0]) + OFFSET
    X[np.random.default_rng(3).random(X.shape) < 0.2] = np.nan
    fitted = learner().fit(X)
    assert found(fitted, planted[1]) == 1
    filled = fitted.inverse_transform(fitted.transform(X))
    np.testing.assert_allclose(
        filled[np.isnan(X)], (planted[0] + OFFSET)[np.isnan(X)], atol=1.5
    )


def test_atoms_take_the_intercept_of_a_learner_without_a_baseline():
    without = PUDLEDictionaryLearning.from_components(np.eye(3), alpha=0.5)
    again = without.from_components(np.eye(3), intercept=without.intercept_, alpha=0.5)
    assert again.intercept_ == without.intercept_ == 0


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (
            {"noise": np.ones(N_FEATURES + 1)},
            "shape \\(25,\\) .* one for each of the 24",
        ),
        ({"noise": np.zeros(N_FEATURES)}, "not an array of positive numbers"),
        ({"noise": [1.0, np.nan]}, "Input noise contains NaN"),
    ],
)
def test_wrong_noise_is_refused(planted, params, match):
    with pytest.raises(ValueError, match=match):
        learner(**params).fit(np.abs(planted[0]))


@pytest.mark.parametrize("params", [{}, {"split_sign": True}, {"noise": "features"}])
def test_scores_are_the_information_criterion_of_each_row(planted, params):
    X = noise_of(planted[0])[:600]
    X[np.random.default_rng(3).random(X.shape) < 0.05] = np.nan
    fitted = learner(**params).fit(X)
    codes, scores = fitted.transform(X), fitted.score_samples(X)
    model = norm(fitted.inverse_transform(codes), fitted.noise_std_)
    for i in range(20):
        known = np.isfinite(X[i])
        n_codes, n_known = np.count_nonzero(codes[i]), known.sum()
        likelihood = model.logpdf(X)[i, known].sum()
        expected = (likelihood - n_codes * np.log(n_known) / 2) / n_known
        np.testing.assert_allclose(scores[i], expected)


def test_scores_need_the_noise(planted):
    assert not hasattr(learner(alpha=0.1), "score_samples")
    fitted = learner().partial_fit(planted[0])
    with pytest.raises(AttributeError, match="noise_std_"):
        fitted.score_samples(planted[0])


def test_rows_of_rare_atoms_are_no_noise(planted):
    """One atom is in one row of a hundred, alone, and the row is as long as a row of noise."""
    clean, atoms = planted
    X, random = clean.copy(), np.random.default_rng(2)
    rare = np.linalg.qr(
        np.vstack([atoms[:5], random.standard_normal((1, N_FEATURES))]).T
    )[0][:, -1]
    X[::100] = 3 * clean.std() * N_FEATURES**0.5 * rare
    X = noise_of(X)
    fitted = PUDLEDictionaryLearning(N_ATOMS + 1, random_state=0).fit(X)
    assert fitted.outliers_ is None
    assert found(fitted, np.vstack([atoms, rare]), 0.95) == 1


# ---------------------------------------------------------------- learners with other codes


@pytest.mark.parametrize("n_unfoldings", ["auto", 5])
def test_decisions_are_the_best_ones_for_codes_around_a_baseline(planted, n_unfoldings):
    """Without supervision and penalty the head is least squares on the codes of `transform`."""
    X = noise_of(planted[0]) + OFFSET
    y = X @ np.random.default_rng(3).standard_normal((N_FEATURES, 2))
    options = dict(supervision=0.0, C=1e12, n_unfoldings=n_unfoldings, random_state=0)
    regressor = PUDLERegressor(N_ATOMS, **options).fit(X, y)
    assert np.ndim(regressor.baseline_) == 1
    codes = regressor.transform(X)
    expected = LinearRegression().fit(codes, y).predict(codes)
    np.testing.assert_allclose(regressor.predict(X), expected, atol=1e-5 * np.ptp(y))


@pytest.mark.parametrize("kind", [PUDLEClassifier, PUDLERegressor])
def test_learning_a_task_goes_on_in_the_units_of_the_fit(planted, kind):
    """`partial_fit` begins with the decisions that `fit` has made."""
    X = noise_of(planted[0]) + OFFSET
    y = (X[:, 0] > np.median(X[:, 0])).astype(int)
    fitted = kind(
        N_ATOMS, random_state=0, max_iter=3, tol=None, learning_rate=1e-12
    ).fit(X, y)
    before = fitted.predict(X)
    copy = pickle.loads(pickle.dumps(fitted)).partial_fit(X, y)
    np.testing.assert_allclose(copy.predict(X), before, atol=1e-5)
    np.testing.assert_allclose(copy.components_, fitted.components_, atol=1e-9)


@pytest.mark.parametrize("constant", [1.0, 100.0])
def test_a_constant_column_hides_no_baseline(constant):
    """A table without it needs no baseline, and its codes stay as they are."""
    X = load_diabetes().data
    without = PUDLEDictionaryLearning(10, random_state=0).fit(X)
    table = np.column_stack([X, np.full(len(X), constant)])
    fitted = PUDLEDictionaryLearning(10, random_state=0).fit(table)
    assert fitted.intercept_[-1] == pytest.approx(constant)
    assert fitted.score(table) == pytest.approx(without.score(X), abs=0.05)


@pytest.mark.slow
def test_one_row_of_a_large_constant_leaves_codes_to_all_rows():
    """On average over seeds, whose held-out rows are other ones; its size does not matter."""
    X, scores = load_diabetes().data, []
    small, large = (
        np.vstack([X, np.full((1, X.shape[1]), value)]) for value in (1e3, 1e6)
    )
    for seed in range(3):
        learner = PUDLEDictionaryLearning(10, random_state=seed)
        without = learner.fit(X).score(X)
        scores.append([learner.fit(small).score(X), without])
        assert set(learner.outliers_.nonzero()[0]) == {len(X)}
    found, expected = np.mean(scores, axis=0)
    assert found == pytest.approx(expected, abs=0.05)
    np.testing.assert_array_equal(
        clone(learner).fit(large).components_, learner.components_
    )


@pytest.mark.parametrize("spread", [0.0, 1.0, 1.5])
def test_equal_noise_changes_nothing(planted, spread):
    """Also in rows of all sizes, as of photographs: a tenth or more is long, and all is signal."""
    clean, _ = planted
    sizes = np.exp(spread * np.random.default_rng(6).standard_normal((len(clean), 1)))
    X = noise_of(sizes * clean)
    auto, plain = learner().fit(X), learner(noise="equal", fit_intercept=False).fit(X)
    np.testing.assert_array_equal(auto.components_, plain.components_)
    np.testing.assert_array_equal(auto.transform(X), plain.transform(X))
    assert auto.intercept_ == 0.0
    assert auto.outliers_ is None


# ---------------------------------------------------------------- clean data are left alone


def concepts(random):
    """Return non-negative sums of atoms, one of them in half of the rows."""
    atoms = unit(random.standard_normal((40, 24)))
    shares = np.concatenate([[0.5], np.full(39, 0.06)])
    codes = random.exponential(size=(800, 40)) * (random.random((800, 40)) < shares)
    return codes @ atoms


def peaks(random):
    """Return sparse rows of peaks over a floor that is lower by six orders of magnitude."""
    centres = random.uniform(0, 20, 20)
    atoms = unit(np.exp(-0.5 * ((np.arange(20) - centres[:, None]) / 0.8) ** 2))
    codes = random.exponential(size=(400, 20)) * (
        random.random((400, 20)).argsort(1) < 2
    )
    return codes @ atoms + 1e-6 * random.standard_normal((400, 20))


def dust(random):
    """Return rows of few features, and three columns of rounding errors."""
    X = random.exponential(size=(300, 20)) * (random.random((300, 20)) < 0.15)
    X[:, -3:] = 1e-9 * random.standard_normal((300, 3))
    return X


def edges(random):
    """Return rows of zeros and ones with one edge."""
    return (np.arange(32) > random.integers(0, 32, (300, 1))) * 1.0


@pytest.mark.parametrize(
    ("draw", "positive_code"),
    [*zip([concepts, peaks, dust, edges], cycle([True, False]))],
)
def test_clean_data_are_left_alone(draw, positive_code):
    """Signals are no outliers, small columns are no features of little noise."""
    X = draw(np.random.default_rng(3))
    params = dict(
        n_components=20,
        positive_code=positive_code,
        random_state=0,
        fit_intercept=False,
    )
    auto = PUDLEDictionaryLearning(**params).fit(X)
    plain = PUDLEDictionaryLearning(noise="equal", **params).fit(X)
    np.testing.assert_array_equal(auto.components_, plain.components_)
    np.testing.assert_array_equal(auto.transform(X), plain.transform(X))


@pytest.mark.parametrize("seed", weekly(3, 35))
def test_signal_that_atoms_miss_is_no_noise(seed):
    """Errors of six non-negative atoms in six features are large where signals are large."""
    random = np.random.default_rng(seed)
    atoms = unit(random.standard_normal((6, 6)) * random.choice([1.0, 0.2], (6, 6)))
    codes = random.exponential(size=(1000, 6))
    codes *= random.random((1000, 6)).argsort(1) < random.integers(1, 7, (1000, 1))
    X = codes @ atoms
    auto = PUDLEDictionaryLearning(6, random_state=0, positive_code=True).fit(X)
    assert np.ndim(auto.noise_std_) == 0


@pytest.mark.parametrize("seed", weekly(18, 20))
def test_a_mean_of_mixtures_is_no_baseline(seed):
    """Pairs of one group, all with codes of 1: the mean saves less than half a code in each row."""
    random = np.random.default_rng(seed)
    atoms = unit(
        np.eye(17)[random.integers(0, 17, 21)] + 0.3 * (random.random((21, 17)) < 0.1)
    )
    group, codes = random.integers(0, 4, 21), np.zeros((300, 21))
    for row in codes:
        members = np.flatnonzero(group == random.integers(0, 4))
        row[random.permutation(members)[:2]] = 1.0
    X = codes @ atoms
    X += 0.05 * np.sqrt((X**2).mean()) * random.standard_normal(X.shape)
    assert PUDLEDictionaryLearning(21, random_state=0).fit(X).intercept_ == 0.0


def test_a_column_that_is_rarely_used_does_not_rule(planted):
    """Its noise is judged in all rows: those that hold nothing tell nothing of it."""
    X = noise_of(planted[0])[:800]
    X[:, :5] = 0.0
    X[[3, 77, 150, 400, 790], range(5)] = 1.0
    fitted = learner(noise="features").fit(X)
    assert fitted.score(X) > 0.9


@pytest.mark.parametrize("seed", weekly(1, 2))
def test_seeds_take_the_same_baseline(planted, seed):
    """Decisions come from rows and atoms that all seeds share."""
    X = noise_of(planted[0]) + OFFSET
    one, other = (learner().set_params(random_state=s).fit(X) for s in (0, seed))
    np.testing.assert_allclose(one.intercept_, other.intercept_, atol=0.01)


def table(n=300):
    """Return columns of large means that hardly depend on each other: nothing is planted."""
    random = np.random.default_rng(5)
    return np.array([50.0, 3.0, 20.0, 8.0, 30.0, 1.0]) + random.exponential(
        [5.0, 1.0, 8.0, 2.0, 4.0, 1.0], (n, 6)
    )


def test_tables_have_a_baseline_where_no_atom_predicts():
    """A column that no other column tells is predicted best by its mean."""
    X = table()
    fitted = PUDLEDictionaryLearning(random_state=0).fit(X[:200])
    assert np.ndim(fitted.intercept_) == 1
    plain = PUDLEDictionaryLearning(random_state=0, fit_intercept=False).fit(X[:200])
    assert fitted.score(X[200:]) > plain.score(X[200:])


@pytest.mark.parametrize("draw", [table, lambda: concepts(np.random.default_rng(3))])
def test_the_baseline_is_the_same_for_all_numbers_of_atoms(draw):
    X = draw()
    fits = [PUDLEDictionaryLearning(p, random_state=0).fit(X) for p in (2, 5, "auto")]
    assert len({np.ndim(fitted.intercept_) for fitted in fits}) == 1


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_baseline_does_not_depend_on_units(factor):
    five = PUDLEDictionaryLearning(5, random_state=0)
    one, other = (clone(five).fit(c * table()) for c in (1.0, factor))
    assert np.ndim(one.intercept_) == np.ndim(other.intercept_) == 1


@pytest.mark.parametrize("seed", weekly(0, 20))
def test_non_negative_sums_of_non_negative_atoms_have_no_baseline(seed):
    """Also if a learner may use codes of any sign: the mean of these rows mixes the atoms."""
    random = np.random.default_rng(seed)
    atoms = unit(np.abs(random.standard_normal((24, 24))))
    codes = random.gamma(2, 0.5, (600, 24)) * (random.random((600, 24)) < 0.12)
    X = noise_of(codes @ atoms)
    assert PUDLEDictionaryLearning(24, random_state=0).fit(X).intercept_ == 0.0


def test_non_negative_codes_have_a_baseline_if_it_is_asked_for(planted):
    X = np.abs(planted[0][:400]) + 1
    assert learner(positive_code=True).fit(X).intercept_ == 0.0
    assert (
        np.ndim(learner(positive_code=True, fit_intercept=True).fit(X).intercept_) == 1
    )


def test_columns_of_other_units_are_named():
    with pytest.warns(UserWarning, match="StandardScaler"):
        PUDLEDictionaryLearning(5, random_state=0).fit(load_wine().data)
    X = np.random.default_rng(0).normal(size=(100, 8))
    X[3, 2] = 100  # a single entry is no unit: a warning would be an error
    PUDLEDictionaryLearning(5, random_state=0).fit(X)


# ---------------------------------------------------------------- after a fit with outlying entries


@pytest.fixture(scope="module")
def spiked(planted):
    """Return rows with spikes, the spikes, and the default fit of a half of the rows."""
    X, random = noise_of(planted[0]), np.random.default_rng(2)
    spikes = (random.random(X.shape) < 0.02) * 10 * random.choice([-1, 1], X.shape)
    return X + spikes, spikes != 0, learner().fit((X + spikes)[:750])


def test_spikes_of_new_rows_have_no_codes(planted, spiked):
    (clean, _), (X, spikes, fitted) = planted, spiked
    left = fitted.inverse_transform(fitted.transform(X)) - clean
    for rows in slice(750), slice(750, None):
        usual = ~spikes[rows]
        share = np.square(left[rows][usual]).sum() / np.square(clean[rows][usual]).sum()
        assert share < 0.02


def test_a_spike_counts_at_most_its_limit(spiked):
    """Codes do not depend on the size of a spike, and the score hardly does."""
    X, spikes, fitted = spiked
    larger = np.where(spikes, 100 * X, X)[750:]
    np.testing.assert_allclose(
        fitted.transform(larger), fitted.transform(X[750:]), atol=1e-8
    )
    without = np.where(spikes, np.nan, X)[750:]
    assert fitted.score(larger) == pytest.approx(fitted.score(without), abs=0.05)


def test_the_evidence_of_a_row_falls_by_the_size_of_its_spikes(spiked):
    """Beyond the limit the loss of Huber is a line."""
    X, spikes, fitted = spiked
    one, two, three = (
        fitted.score_samples(np.where(spikes, k * X, X)[750:]) for k in (1, 2, 3)
    )
    np.testing.assert_allclose(one - two, two - three, atol=1e-6)
    has_spikes = spikes[750:].any(1)
    assert two[has_spikes].max() < np.median(one[~has_spikes])


@pytest.mark.parametrize("seed", weekly(0, 1, 2))
def test_strange_rows_are_found_though_each_atom_has_few_rows(seed):
    """Five rows for an atom, three times as many atoms as features."""
    random = np.random.default_rng(seed)
    codes = random.standard_normal((300, 30)) * (
        random.random((300, 30)).argsort(1) < 3
    )
    X = codes @ unit(random.standard_normal((30, 20))) + 0.05 * random.standard_normal(
        (300, 20)
    )
    strange = random.random(300) < 0.05
    X[strange] = 5 * X.std() * random.standard_normal((strange.sum(), 20))
    with pytest.warns(UserWarning, match="60 atoms, more than 20 features"):
        scores = PUDLEDictionaryLearning(60, random_state=0).fit(X).score_samples(X)
    assert scores[strange].max() < np.median(scores[~strange])


@pytest.mark.parametrize("seed", weekly(0, 3, 4))
def test_noise_of_features_is_found_where_it_does_not_grow_with_signals(seed):
    """By chance signals are larger or smaller where noise is large, and weights gain less."""
    rng = np.random.default_rng(seed)
    clean, *_ = make_dictionary_data(1500, 30, 40, 3, random_state=0)
    noise = (
        0.1
        * clean.std()
        * rng.standard_normal(clean.shape)
        * np.exp(rng.normal(size=30))
    )
    learner = PUDLEDictionaryLearning(40, random_state=0).fit(clean + noise)
    assert np.corrcoef(np.log(learner.noise_std_), np.log(noise.std(0)))[0, 1] > 0.9
    error = learner.inverse_transform(learner.transform(clean + noise)) - clean
    assert np.square(error).mean() < 0.12 * np.square(noise).mean()


@pytest.mark.parametrize("seed", weekly(4, 10, 11))
def test_equal_noise_of_few_features_stays_equal(seed):
    """Atoms that are missed at first leave errors that differ, and more epochs gain."""
    rng = np.random.default_rng(seed)
    codes = rng.uniform(1, 2, (300, 20)) * rng.choice([-1, 1], (300, 20))
    X = (
        codes
        * (rng.random((300, 20)).argsort(1) < 3)
        @ unit(rng.standard_normal((20, 16)))
    )
    X += 0.05 * X.std() * rng.standard_normal(X.shape)
    assert np.ndim(PUDLEDictionaryLearning(20, random_state=0).fit(X).noise_std_) == 0


@pytest.mark.parametrize("seed", weekly(0, 1, 2))
def test_rows_of_many_codes_have_no_outliers(seed):
    """In 16 columns rows of five of 20 atoms are nearly as dense as rows of outliers."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((20, 16)) / 4
    codes = rng.standard_normal((1000, 20)) * (rng.random((1000, 20)) < 0.1)
    clean, noise = codes @ atoms + 3, 0.02
    X, spikes = (
        clean + noise * rng.standard_normal(clean.shape),
        rng.random(clean.shape) < 0.01,
    )
    X[spikes] += 10
    learner = PUDLEDictionaryLearning(20, random_state=0).fit(X)
    assert (learner.outliers_.toarray()[spikes] != 0).all()
    error = learner.inverse_transform(learner.transform(X)) - clean
    assert np.square(error[~spikes.any(1)]).mean() < noise**2


def test_a_module_limits_residuals(spiked):
    X, _, _ = spiked
    fitted = learner(n_unfoldings=5, max_iter=2, tol=None).fit(X[:750])
    codes = fitted.to_module()(torch.from_numpy(X[750:])).detach().numpy()
    np.testing.assert_allclose(codes, fitted.transform(X[750:]), atol=1e-8)


def test_many_unfoldings_minimise_the_loss_of_huber(spiked):
    """The limit is that of the gradient, and the objective is lower than at other codes."""
    X, _, fitted = spiked
    unfolded = (
        clone(fitted)
        .set_params(n_unfoldings=1000, alpha=0.1, max_iter=1, tol=None)
        .fit(X[:300])
    )
    limit = unfolded.to_module().limit.numpy()
    atoms, codes = unfolded.components_, unfolded.transform(X[750:])
    slope = np.clip(X[750:] - codes @ atoms, -limit, limit) @ atoms.T
    np.testing.assert_allclose(
        slope[codes != 0], 0.1 * np.sign(codes[codes != 0]), atol=1e-3
    )
    assert np.abs(slope).max() < 0.1 + 1e-3


def test_few_unfoldings_of_digits_have_a_baseline_that_converged_codes_need_not():
    X = load_digits().data
    train, test = X[:1000], X[1000:]
    few = dict(n_unfoldings=3, max_iter=5, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(30, **few).fit(train)
    assert np.ndim(learner.intercept_) == 1
    # .34 without a baseline
    residual = test - learner.inverse_transform(learner.transform(test))
    assert np.square(residual).sum() < 0.2 * np.square(test - train.mean(0)).sum()
    assert PUDLEDictionaryLearning(30, random_state=0).fit(train).intercept_ == 0.0


def test_rows_that_are_outlying_by_half_choose_no_penalty():
    rng = np.random.default_rng(1006)
    atoms = rng.standard_normal((30, 20))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((4000, 30))
    for code in codes:
        code[rng.choice(30, 2, replace=False)] = rng.standard_normal(2)
    clean = codes @ atoms
    noise = 0.1 * clean.std()
    X = clean + noise * rng.standard_normal(clean.shape)
    outlying = rng.random(2666) < 0.05
    spread = 3.5 * np.sqrt(np.square(X[:2666]).mean())
    X[:2666][outlying] = spread * rng.standard_normal((outlying.sum(), 20))
    learner = PUDLEDictionaryLearning(30, random_state=6).fit(X[:2666])
    residual = learner.inverse_transform(learner.transform(X[2666:])) - clean[2666:]
    assert np.square(residual / noise).mean() < 0.35  # 1.2 if all rows choose


def test_the_score_subtracts_the_baseline_once():
    """Rows and baseline that are shifted together have the same score, outliers or not."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((20, 16)) / 4
    codes = rng.standard_normal((600, 20)) * (rng.random((600, 20)) < 0.1)
    X = codes @ atoms + 3 + 0.02 * rng.standard_normal((600, 16))
    X[rng.random(X.shape) < 0.01] += 10
    learner = PUDLEDictionaryLearning(20, random_state=0).fit(X)
    assert learner.outliers_ is not None
    score = learner.score(X)
    learner.intercept_ = learner.intercept_ + 40
    assert learner.score(X + 40) == pytest.approx(score, rel=1e-9)
