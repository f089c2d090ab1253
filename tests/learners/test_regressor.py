"""A dictionary for regression: its gradient, its ends at supervision 0 and 1, units, weights."""

import pickle
from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from test_classifier import CODES, X, learner_of

from skpudle import PUDLERegressor

# two numbers by the moduli of codes, in different units
Y = np.abs(CODES) @ [[1.0, 0], [-2, 0], [0, 100], [0, 50], [1, 0], [0, 0]] + [3, -70]
regressor_of = partial(learner_of, PUDLERegressor)


@pytest.fixture(scope="module")
def fitted():
    return regressor_of().fit(X, Y)


# ---------------------------------------------------------------------------- supervision


@pytest.mark.parametrize("y", [Y, Y[:, 0]], ids=["two", "one"])
def test_without_supervision_it_is_ridge_regression_on_codes(y):
    regressor = regressor_of(supervision=0.0, C=5.0).fit(X, y)
    assert regressor.n_steps_ == 0
    codes = regressor.transform(X) / np.sqrt((X**2).sum(1).mean() / 6)
    ridge = Ridge(alpha=2).fit(codes, y)
    np.testing.assert_allclose(regressor.predict(X), ridge.predict(codes))
    assert regressor.predict(X).shape == y.shape


def test_predictions_are_linear_in_codes(fitted):
    assert fitted.coef_.shape == (2, 12)
    codes = fitted.transform(X)
    np.testing.assert_allclose(fitted.predict(X), codes @ fitted.coef_.T + fitted.intercept_)
    assert fitted.score(X, Y) == r2_score(Y, fitted.predict(X))
    one = regressor_of().fit(X, Y[:, 0])
    assert one.coef_.shape == (12,)
    np.testing.assert_allclose(one.predict(X), one.transform(X) @ one.coef_ + one.intercept_)
    column = regressor_of().fit(X, Y[:, :1])
    np.testing.assert_array_equal(column.predict(X), one.predict(X)[:, None])


# ---------------------------------------------------------------------------- units, weights


def test_units_of_data_and_numbers_change_nothing_but_theirs(fitted):
    other = regressor_of().fit(2.0**20 * X, Y * [2.0**10, 2.0**-10] + [1.0, 7.0])
    np.testing.assert_allclose(other.components_, fitted.components_, atol=1e-9)
    np.testing.assert_allclose(
        (other.predict(2.0**20 * X) - [1, 7]) * [2.0**-10, 2.0**10], fitted.predict(X), atol=1e-7
    )


# ---------------------------------------------------------------------------- how fits go on


def test_it_goes_on_after_fit_and_pickles_go_on_the_same(fitted):
    first = regressor_of().fit(X, Y)
    again = pickle.loads(pickle.dumps(first))
    for one in (first, again):
        one.partial_fit(X, Y)
    np.testing.assert_array_equal(first.coef_, again.coef_)
    assert first.n_steps_ == fitted.n_steps_ + 1
    moved = np.abs(first.coef_ - fitted.coef_).max(1) / Y.std(0)
    assert (moved > 0).all()
    assert (moved < 0.1).all()
