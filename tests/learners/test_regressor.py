"""A dictionary for regression: its gradient, its ends at supervision 0 and 1, units, weights."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.inspection import permutation_importance
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning, PUDLERegressor
from skpudle._data.batches import Samples
from skpudle._gradients import differentiate
from skpudle._learners.models import Decay, Encoder
from skpudle._learners.supervised.model import TaskLayout, TaskModel, joint
from skpudle._learners.supervised.tasks import Head, Regression
from skpudle.inspection import atom_contributions


def make_data(seed=0, n=240, m=10):
    """Return samples of sparse codes, and two numbers by their moduli in different units."""
    rng = np.random.default_rng(seed)
    atoms = np.random.default_rng(99).standard_normal((6, m))
    codes = rng.standard_normal((n, 6)) * (rng.random((n, 6)) < 0.4)
    X = codes @ atoms + 0.1 * rng.standard_normal((n, m))
    return X, np.abs(codes) @ [[1.0, 0], [-2, 0], [0, 100], [0, 50], [1, 0], [0, 0]] + [3, -70]


X, Y = make_data()


def regressor_of(**params):
    small = dict(n_components=6, random_state=0)
    if params.get("supervision") != 0:
        small |= dict(max_iter=8, tol=None)
    return PUDLERegressor(**small | params)


@pytest.fixture(scope="module")
def fitted():
    return regressor_of().fit(X, Y)


# ---------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("supervision", [0.0, 0.3, 1.0])
def test_the_gradient_of_the_joint_loss_is_that_of_naive_autograd(
    supervision, n_outputs, generator
):
    """To 1e-12, in the atoms and in the regression."""
    draw = dict(generator=generator, dtype=torch.float64)
    atoms = torch.randn(9, 5, **draw)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    x, alpha, step = torch.randn(20, 5, **draw), 0.3, 0.1
    head = Head(torch.randn(n_outputs, 18, **draw), torch.randn(n_outputs, **draw))
    y, weights = torch.randn(20, n_outputs, **draw), torch.rand(20, **draw) + 0.5
    task = Regression(np.zeros(n_outputs), np.ones(n_outputs), flat=False)
    target = torch.cat([y, weights[:, None]], dim=1)
    model = TaskModel(
        joint,
        Encoder(7),
        step,
        Decay.of(1.0).at_last,
        alpha=alpha,
        data_scale=2.5,
        layout=TaskLayout(5, n_outputs, 2, unit=1.7),
        task=task,
        supervision=supervision,
        mean_weight=float(task.weights(target).mean()),
        total_weight=float(task.weights(target).sum()),
        strength=0.7,
    )
    rows = model.layout.pack(atoms, head).requires_grad_()
    dictionary, encoder, penalty = model.network(rows, 0)
    batch, options = Samples(x, target=target), dict(encoder=encoder, penalty=penalty)
    gradient, _ = differentiate(joint, dictionary, rows, batch, **options)
    found, of_head = model.layout.atoms(gradient), model.layout.head(gradient)

    leaves = [t.clone().requires_grad_() for t in (atoms, head.weights, head.intercept)]
    z = x.new_zeros(20, 9)
    for _ in range(7):
        v = z - step * (z @ leaves[0] - x) @ leaves[0].mT
        z = v.sign() * (v.abs() - step * alpha).clamp_min(0)
    features = torch.cat([z.relu(), (-z).relu()], dim=1) / 1.7
    errors = (features @ leaves[1].mT + leaves[2] - y).square().mean(1)
    task = (0.5 * weights * errors).sum() / weights.sum()
    ridge = 0.5 / (0.7 * weights.sum()) * leaves[1].square().sum() / n_outputs
    reconstruction = 0.5 * (x - z @ leaves[0]).square().sum() / 20
    loss = (1 - supervision) * reconstruction + supervision * 2.5 * task
    (by_atoms,) = torch.autograd.grad(loss, leaves[0], retain_graph=True)
    by_weights, by_intercept = torch.autograd.grad(2.5 * (task + ridge), leaves[1:])
    tight = dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, by_atoms, **tight)
    torch.testing.assert_close(of_head.weights, by_weights, **tight)
    # the copies of the intercept share its gradient
    torch.testing.assert_close(of_head.intercept * 9, by_intercept, **tight)


# ---------------------------------------------------------------------------- supervision


@pytest.mark.parametrize(
    "params",
    [
        dict(),
        dict(n_unfoldings=10, max_iter=3, tol=None),
        dict(n_unfoldings=10, dict_init="data", max_iter=3, tol=None, positive_code=True),
    ],
)
@pytest.mark.parametrize("y", [Y, Y[:, 0]], ids=["two", "one"])
def test_without_supervision_the_dictionary_is_the_unsupervised_one_to_the_bit(params, y):
    params = params | {"alpha": regressor_of(supervision=0.0, **params).fit(X, y).alpha_}
    regressor = regressor_of(supervision=0.0, C=0.5, **params).fit(X, y)
    optimizer = "adam" if len(params) > 1 else "auto"
    learner = PUDLEDictionaryLearning(
        **dict(n_components=6, random_state=0, optimizer=optimizer, split_sign=True) | params
    ).fit(X)
    np.testing.assert_array_equal(regressor.components_, learner.components_)
    codes = learner.transform(X) / np.sqrt((X**2).sum(1).mean() / 6)
    ridge = Ridge(alpha=2).fit(codes, y)
    np.testing.assert_allclose(regressor.predict(X), ridge.predict(codes))
    assert regressor.predict(X).shape == y.shape


def test_supervision_finds_what_reconstruction_has_no_use_for():
    """The number depends on one weak direction, and there are fewer atoms than strong ones."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 8)) * [3, 3, 3, 3, 3, 3, 3, 1.0]
    y = X[:, 7]
    train, test = slice(0, 400), slice(400, 600)
    without = regressor_of(n_components=4, supervision=0.0).fit(X[train], y[train])
    params = dict(n_components=4, supervision=0.9, max_iter=100, learning_rate=0.02)
    with_it = regressor_of(**params).fit(X[train], y[train])
    assert without.score(X[test], y[test]) < 0.2
    assert with_it.score(X[test], y[test]) > 0.6


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
        (other.predict(2.0**20 * X) - [1, 7]) * [2.0**-10, 2.0**10],
        fitted.predict(X),
        atol=1e-7,
    )


def test_a_weight_is_a_number_of_repetitions():
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    order = np.random.default_rng(1).permutation(len(X))
    weighted = regressor_of().fit(X[order], Y[order], sample_weight=weights[order])
    repeated = regressor_of().fit(X.repeat(weights, axis=0), Y.repeat(weights, axis=0))
    np.testing.assert_array_equal(weighted.components_, repeated.components_)
    np.testing.assert_array_equal(weighted.coef_, repeated.coef_)


# ---------------------------------------------------------------------------- how fits go on


def test_early_stopping_holds_samples_out():
    params = dict(early_stopping=True, tol=1e-4, n_iter_no_change=3, validation_fraction=0.25)
    regressor = regressor_of(max_iter=200, learning_rate=0.05, **params).fit(X, Y)
    scores = regressor.validation_scores_
    assert len(scores) < 200
    assert len(scores) - 1 - scores.argmax() == 3  # epochs after the best
    # it ends with the best: no score of all samples is that much worse than of those held out
    left = ((regressor.predict(X) - Y) ** 2).sum(0) / Y.var(0)
    assert left.mean() >= (1 - scores.max()) * (len(X) // 4) - 1e-9


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


def test_a_wrong_shape_leaves_the_estimator_as_it_was():
    regressor = regressor_of().fit(X, Y)
    before = regressor.coef_.copy()
    with pytest.raises(ValueError, match=r"\(240,\), and the first one had \(n_samples, 2\)"):
        regressor.partial_fit(X, Y[:, 0])
    np.testing.assert_array_equal(regressor.coef_, before)


# ---------------------------------------------------------------------------- scikit-learn, torch


@pytest.mark.parametrize("y", [Y, Y[:, 0]], ids=["two", "one"])
def test_tensors_give_tensors(y):
    of_arrays = regressor_of().fit(X, y)
    regressor = regressor_of().fit(torch.tensor(X), torch.tensor(y))
    np.testing.assert_array_equal(regressor.coef_, of_arrays.coef_)
    found = regressor.predict(torch.tensor(X))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), of_arrays.predict(X))
    assert regressor.score(torch.tensor(X), torch.tensor(y)) == of_arrays.score(X, y)


def test_missing_entries():
    rng = np.random.default_rng(0)
    incomplete = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    assert regressor_of(n_unfoldings=20).fit(incomplete, Y).score(incomplete, Y) > 0.3


def test_it_stands_where_regressors_stand(fitted):
    pipeline = make_pipeline(StandardScaler(), regressor_of(max_iter=2))
    search = GridSearchCV(pipeline, {"pudleregressor__supervision": [0.2, 0.5]}, cv=2).fit(X, Y)
    assert search.best_score_ > 0.3
    importance = permutation_importance(fitted, X, Y, n_repeats=2, random_state=0)
    assert importance.importances_mean.max() > 0
    assert atom_contributions(fitted, X).indices.shape == (6, 10)
