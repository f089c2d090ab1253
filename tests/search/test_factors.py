"""Factor analysis is judged by the entries that judge atoms, and named where it is better."""

import numpy as np
import pytest
import torch
from planted import gaps_in, planted
from sklearn.datasets import load_digits
from sklearn.decomposition import FactorAnalysis

from skpudle import CountDictionaryLearning, PUDLEDictionaryLearning
from skpudle._learners import factors
from skpudle._learners.factors import FactorModel
from skpudle.inspection import findings
from skpudle.search.problem import Problem

N_FACTORS = 5


@pytest.fixture
def model():
    """Return a factor model of 8 features in units of their own."""
    rng = np.random.default_rng(0)
    tensors = (
        rng.standard_normal(8),
        rng.uniform(0.5, 2.0, 8),
        rng.standard_normal((N_FACTORS, 8)),
        rng.uniform(0.2, 1.0, 8),
    )
    return FactorModel(*map(torch.as_tensor, tensors))


def dense(n, *, seed=0):
    """Return rows (n, 25) that use all factors."""
    rng = np.random.default_rng(seed)
    loadings = 0.5 * rng.standard_normal((N_FACTORS, 25))
    return rng.standard_normal((n, N_FACTORS)) @ loadings + rng.standard_normal((n, 25))


def test_hidden_entries_are_predicted_by_their_conditional_mean(model):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    visible = gaps_in(x, 0.4)
    of_units = model.loadings.mT @ model.loadings + model.noise.diag()
    covariance = model.deviation[:, None] * of_units * model.deviation
    for i, predicted in enumerate(model.predict(x, visible)):
        seen = visible[i] == 1
        weights = torch.linalg.solve(
            covariance[seen][:, seen], (x[i] - model.mean)[seen]
        )
        expected = model.mean + covariance[:, seen] @ weights
        torch.testing.assert_close(predicted[~seen], expected[~seen])


def test_the_model_is_the_one_that_rows_give():
    """The rows of a square root of the correlations stand for all rows."""
    x = dense(500)
    x = (x - x.mean(0)) / x.std(0)
    model = factors.fit_factors(Problem(torch.as_tensor(x), 1.0), N_FACTORS)
    analysis = FactorAnalysis(N_FACTORS, svd_method="lapack", tol=1e-6).fit(x)
    found = model.loadings.mT @ model.loadings + model.noise.diag()
    # Both are at most a step of the algorithm from the same maximum.
    np.testing.assert_allclose(found, analysis.get_covariance(), atol=0.02)


def test_weights_count_like_copies():
    x = torch.as_tensor(dense(60))
    weight = torch.arange(60) % 3
    one = factors.fit_factors(
        Problem(x, 1.0, weight=weight, mask=gaps_in(x)), N_FACTORS
    )
    rows = torch.arange(60).repeat_interleave(weight)
    other = factors.fit_factors(Problem(x[rows], 1.0, mask=gaps_in(x)[rows]), N_FACTORS)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.deviation, other.deviation)
    torch.testing.assert_close(one.loadings.abs(), other.loadings.abs())
    torch.testing.assert_close(one.noise, other.noise)


@pytest.mark.parametrize("gaps", [False, True])
def test_dense_factors_are_named(gaps):
    x = dense(1000)
    if gaps:
        x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    learner = PUDLEDictionaryLearning(N_FACTORS, random_state=0).fit(x)
    assert learner.factor_score_.n_factors == N_FACTORS
    assert learner.factor_score_.is_better
    score = learner.penalty_path_.score.max()
    assert learner.factor_score_.atoms_score == pytest.approx(score, abs=1e-3)
    assert f"predicts {learner.factor_score_.score:.3f} of it" in learner.summary()
    assert any("FactorAnalysis" in sentence for sentence in findings(learner, x))


@pytest.mark.parametrize("rows", [planted()[0].numpy(), load_digits().data])
def test_sparse_rows_are_not(rows):
    learner = PUDLEDictionaryLearning(20, random_state=0).fit(rows)
    assert learner.factor_score_.score < learner.factor_score_.atoms_score
    assert not learner.factor_score_.is_better
    assert "FactorAnalysis" not in learner.summary()


def test_without_hidden_entries_nothing_is_compared():
    x = dense(100)
    learner = PUDLEDictionaryLearning(3, alpha=1.0, random_state=0)
    assert learner.fit(x).factor_score_ is None
    wide = np.random.default_rng(0).standard_normal((100, 129))
    learner = PUDLEDictionaryLearning(3, random_state=0)
    assert learner.fit(wide).factor_score_ is None
    counts = np.random.default_rng(0).poisson(3.0, (60, 6))
    learner = CountDictionaryLearning(2, max_iter=2, tol=None, random_state=0)
    assert learner.fit(counts).factor_score_ is None
