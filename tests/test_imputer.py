"""Gaps are filled by the reconstruction, and nothing else changes."""

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import ConsensusDictionary, DictionaryImputer, PUDLEDictionaryLearning

pytestmark = [
    pytest.mark.draws_from_numpy,
    pytest.mark.filterwarnings(
        r"ignore:X has \d+ samples? with known values:UserWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:X (has|does not have valid) feature names:UserWarning"
    ),
]


@pytest.fixture
def damaged():
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((300, 4)) * (rng.random((300, 4)) < 0.5)
    X = 5.0 + (codes @ rng.standard_normal((4, 12))) * np.geomspace(1, 1e3, 12)
    return X, np.where(rng.random(X.shape) < 0.2, np.nan, X)


def test_gaps_are_the_reconstruction_and_known_values_stay(damaged):
    _, X = damaged
    learner = PUDLEDictionaryLearning(4, random_state=0)
    imputer = DictionaryImputer(learner)
    with pytest.warns(UserWarning, match="Column 11 has .* of the variance"):
        filled = imputer.fit_transform(X)
    assert not hasattr(learner, "components_")  # a clone is fitted
    with pytest.warns(UserWarning, match="Column 11 has .* of the variance"):
        learner.fit(X)
    naive = np.where(np.isnan(X), learner.inverse_transform(learner.transform(X)), X)
    np.testing.assert_allclose(filled, naive, rtol=1e-9)
    np.testing.assert_array_equal(imputer.transform(filled), filled)
    assert imputer.transform(X[:5].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize(
    "make", [DictionaryImputer, partial(ConsensusDictionary, n_replicates=2)]
)
def test_an_interrupted_fit_leaves_it_unfitted(make, damaged, monkeypatch):
    """Names and numbers of features are known before a fit ends, and say nothing of its end."""

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    clean, _ = damaged
    estimator = make(PUDLEDictionaryLearning(2))
    monkeypatch.setattr(PUDLEDictionaryLearning, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(clean)
    with pytest.raises(NotFittedError):
        estimator.transform(clean)


def test_by_default_units_of_features_do_not_matter(damaged):
    clean, X = damaged
    filled, gaps = DictionaryImputer().fit_transform(X), np.isnan(X)
    units = np.random.default_rng(1).uniform(0.1, 9, size=X.shape[1])
    np.testing.assert_allclose(
        DictionaryImputer().fit_transform(units * X), units * filled, rtol=1e-6
    )
    means = SimpleImputer().fit_transform(X)
    error, of_means = (
        np.mean(((x - clean) / clean.std(axis=0))[gaps] ** 2) for x in (filled, means)
    )
    assert error < 0.3 * of_means


def test_its_seed_is_that_of_the_estimator(damaged):
    X = damaged[1][:40]
    learner = PUDLEDictionaryLearning(4, alpha=0.5, noise="equal")
    for estimator in (None, make_pipeline(StandardScaler(), learner)):
        one, same, other = (
            DictionaryImputer(estimator, random_state=k).fit(X) for k in (1, 1, 2)
        )
        np.testing.assert_array_equal(one.transform(X), same.transform(X))
        seeds = [imputer.estimator_[-1].random_state for imputer in (one, same, other)]
        assert seeds[0] == seeds[1] != seeds[2]
    assert DictionaryImputer().fit(X).estimator_[-1].random_state == 0


def test_an_estimator_without_a_way_back_is_refused(damaged):
    with pytest.raises(ValueError, match="estimator"):
        DictionaryImputer(LogisticRegression()).fit(damaged[1])
    with pytest.raises(ValueError, match="NaN"):
        DictionaryImputer(PCA()).fit(damaged[1])


def test_it_is_a_step_of_pipelines_and_searches():
    X, y = (values[:200] for values in load_breast_cancer(return_X_y=True))
    X = np.where(np.random.default_rng(0).random(X.shape) < 0.2, np.nan, X)
    learner = make_pipeline(StandardScaler(), PUDLEDictionaryLearning(random_state=0))
    steps = DictionaryImputer(learner), StandardScaler(), LogisticRegression()
    name = "dictionaryimputer__estimator__pudledictionarylearning__n_components"
    search = GridSearchCV(make_pipeline(*steps), {name: [5, 15]}, cv=2)
    assert search.fit(X, y).best_score_ > 0.9


@pytest.mark.parametrize(
    "estimator", [None, PUDLEDictionaryLearning(4, random_state=0)]
)
def test_a_sample_without_known_values_gets_the_means_of_any_estimator(estimator):
    X = np.random.default_rng(0).normal(size=(60, 6)) + 5
    X[3, 2] = np.nan
    imputer = DictionaryImputer(estimator).fit(X)
    rows = np.vstack([np.full((2, 6), np.nan), X[:5]])
    filled = imputer.transform(rows)
    np.testing.assert_allclose(filled[:2], [np.nanmean(X, axis=0)] * 2)
    np.testing.assert_array_equal(filled[2:], imputer.transform(X[:5]))


def test_a_wide_table_is_filled_by_its_few_patterns():
    """With one atom for each column the error is .9 of that of the means."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4)) @ rng.standard_normal((4, 120))
    hidden = rng.random(X.shape) < 0.1
    filled = DictionaryImputer().fit_transform(np.where(hidden, np.nan, X))
    assert np.mean((filled - X)[hidden] ** 2) < 0.1 * np.mean(X[hidden] ** 2)


@pytest.mark.parametrize("shape", [(400, 30), (200, 10), (300, 60)])
def test_independent_columns_get_their_means(shape):
    """Best scores of many penalties are .004 and .03, which are chance."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal(shape) + 5.0
    hidden = rng.random(X.shape) < 0.1
    damaged = np.where(hidden, np.nan, X)
    imputer = DictionaryImputer().fit(damaged)
    filled = imputer.transform(damaged)
    means = np.broadcast_to(imputer.means_, X.shape)
    np.testing.assert_allclose(filled[hidden], means[hidden])
