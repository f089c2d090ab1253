"""A dictionary for classes or numbers: its gradient, its ends at supervision 0 and 1, its units."""

from functools import partial

import numpy as np
import pytest
import torch
from naive import naive_encode
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.utils.class_weight import compute_sample_weight

from skpudle import PUDLEClassifier, PUDLEDictionaryLearning, PUDLERegressor
from skpudle._data.sources import Samples
from skpudle._fit.run import Fitted
from skpudle._gradients import differentiate
from skpudle._learners.supervised import Classification, Regression, TaskPlan

RNG = np.random.default_rng(0)
CODES = RNG.standard_normal((240, 6)) * (RNG.random((240, 6)) < 0.4)
X = CODES @ np.random.default_rng(99).standard_normal((6, 10))
X += 0.1 * RNG.standard_normal(X.shape)
Y = np.abs(CODES[:, :3]).argmax(1)  # the code that is largest in modulus


def learner_of(kind, **params):
    small = dict(n_components=6, random_state=0)
    if params.get("supervision") != 0:
        small |= dict(max_iter=8, tol=None)
    return kind(**small | params)


classifier_of = partial(learner_of, PUDLEClassifier)
regressor_of = partial(learner_of, PUDLERegressor)
# two numbers by the moduli of codes, in different units
NUMBERS = np.abs(CODES) @ [[1.0, 0], [-2, 0], [0, 100], [0, 50], [1, 0], [0, 0]] + [
    3,
    -70,
]


@pytest.fixture(scope="module")
def fitted():
    return classifier_of().fit(X, Y)


# ---------------------------------------------------------------------------- the gradient


def on_support(atoms, x, alpha, codes):
    """Return the solution of the lasso by its optimality conditions on the support, which holds."""
    rows = []
    for sample, code in zip(x, codes):
        used = code.nonzero()[:, 0]
        active = atoms[used]
        right = active @ sample - alpha * code[used].sign()
        solution = torch.linalg.solve(active @ active.mT, right)
        rows.append(x.new_zeros(len(atoms)).index_put((used,), solution))
    return torch.stack(rows)


def one_of(n):
    return Classification(np.arange(n), total_weight=50.0)


def numbers(n):
    return Regression(
        np.arange(n), np.arange(n) + 2.0, is_flat=False, total_weight=50.0
    )


@pytest.mark.parametrize(
    ("task", "sides", "n_unfoldings"),
    [
        (one_of(2), 1, 7),
        (one_of(2), 1, None),
        (one_of(3), 2, 7),
        (one_of(3), 2, None),
        (numbers(1), 2, 7),
        (numbers(3), 1, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("supervision", [0.0, 0.3, 1.0])
def test_the_gradient_of_the_joint_loss_is_that_of_naive_autograd(
    supervision, n_unfoldings, task, sides, generator
):
    """To 1e-12, in the atoms and in the head."""
    draw = dict(generator=generator, dtype=torch.float64)
    atoms = torch.randn(9, 5, **draw)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    x, alpha, step, n = torch.randn(20, 5, **draw), 0.3, 0.1, task.n_outputs
    head = 0.3 * torch.randn(n, 9 * sides, **draw), torch.randn(n, **draw)
    weights = torch.rand(20, **draw) + 0.5
    labels = torch.randint(3 if n == 3 else 2, (20,), generator=generator)
    y = torch.randn(20, n, **draw)
    classifies = isinstance(task, Classification)
    target = labels[:, None].double() if classifies else y
    how = dict(supervision=supervision, split_sign=sides == 2, C=0.7)
    plan = TaskPlan(PUDLEClassifier(n_unfoldings=n_unfoldings, **how))
    plan.step_size, plan.task = step, task
    fitted = plan.with_head(Fitted(atoms=atoms, alpha=alpha, data_scale=2.5), *head)
    rows, batch = (
        plan.join(fitted).requires_grad_(),
        Samples(x, target=target, weight=weights),
    )
    rule, dictionary, options = plan.network(plan.with_rows(fitted, rows))
    gradient, evaluation = differentiate(rule, dictionary, rows, batch, **options)

    leaves = [t.clone().requires_grad_() for t in (atoms, *head)]
    if n_unfoldings is None:
        z = on_support(leaves[0], x, alpha, evaluation.codes)
    else:
        how = dict(alpha=alpha, step_size=step, n_unfoldings=n_unfoldings)
        z = naive_encode(leaves[0], x, **how)
    torch.testing.assert_close(z.detach(), evaluation.codes, rtol=0, atol=1e-9)
    features = torch.cat([z.relu(), (-z).relu()], dim=1) if sides == 2 else z
    decisions = features / (2.5 / 9) ** 0.5 @ leaves[1].mT + leaves[2]
    if not classifies:
        losses = 0.5 * (decisions - y).square().mean(1)
    elif n == 1:
        losses = torch.nn.functional.softplus(
            torch.where(labels == 1, -1, 1) * decisions[:, 0]
        )
    else:
        losses = torch.nn.functional.cross_entropy(decisions, labels, reduction="none")
    weights = weights / weights.sum()
    of_task, of_data = (
        weights @ losses,
        weights @ (x - z @ leaves[0]).square().sum(1) / 2,
    )
    ridge = (
        0.5 / (0.7 * 50.0) * leaves[1].square().sum() * (1 if classifies else 10 / n)
    )
    loss = (1 - supervision) * of_data + supervision * 2.5 * of_task
    (by_atoms,) = torch.autograd.grad(loss, leaves[0], retain_graph=True)
    by_weights, by_intercept = torch.autograd.grad(2.5 * (of_task + ridge), leaves[1:])
    tight = dict(rtol=1e-12, atol=1e-12)
    parts = plan.with_rows(fitted, gradient)
    of_weights, of_intercept = plan.head(parts.extra)
    torch.testing.assert_close(parts.atoms, by_atoms, **tight)
    torch.testing.assert_close(of_weights, by_weights, **tight)
    # the copies of the intercept share its gradient
    torch.testing.assert_close(of_intercept * 9, by_intercept, **tight)


# ---------------------------------------------------------------------------- supervision


@pytest.mark.parametrize(
    "params",
    [
        dict(),
        dict(n_unfoldings=10, max_iter=3, tol=None),
        dict(
            n_unfoldings=10, dict_init="data", max_iter=3, tol=None, positive_code=True
        ),
    ],
)
def test_without_supervision_the_dictionary_is_the_unsupervised_one_to_the_bit(params):
    params = params | {
        "alpha": classifier_of(supervision=0.0, **params).fit(X, Y).alpha_
    }
    classifier = classifier_of(supervision=0.0, **params).fit(X, Y)
    optimizer = "adam" if len(params) > 1 else "auto"
    learner = PUDLEDictionaryLearning(
        **dict(n_components=6, random_state=0, optimizer=optimizer, split_sign=True)
        | params
    ).fit(X)
    np.testing.assert_array_equal(classifier.components_, learner.components_)
    codes = learner.transform(X) / np.sqrt((X**2).sum(1).mean() / 6)
    regression = LogisticRegression(max_iter=1000).fit(codes, Y)
    np.testing.assert_allclose(
        classifier.predict_proba(X), regression.predict_proba(codes)
    )


def test_supervision_finds_what_reconstruction_has_no_use_for():
    """The label depends on one weak direction, and there are fewer atoms than strong ones."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 8)) * [3, 3, 3, 3, 3, 3, 3, 1.0]
    y = (X[:, 7] > 0).astype(int)
    train, test = slice(0, 400), slice(400, 600)
    without = classifier_of(n_components=4, supervision=0.0).fit(X[train], y[train])
    params = dict(n_components=4, supervision=0.9, max_iter=100, learning_rate=0.02)
    with_it = classifier_of(**params).fit(X[train], y[train])
    assert without.score(X[test], y[test]) < 0.65
    assert with_it.score(X[test], y[test]) > 0.8


@pytest.mark.parametrize("supervision", [0.0, 0.5])
def test_decisions_are_linear_in_codes(supervision):
    classifier = classifier_of(supervision=supervision).fit(X, Y)
    decisions = classifier.transform(X) @ classifier.coef_.T + classifier.intercept_
    np.testing.assert_allclose(classifier.decision_function(X), decisions)
    probabilities = classifier.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_allclose(np.log(probabilities), classifier.predict_log_proba(X))
    np.testing.assert_array_equal(classifier.predict(X), decisions.argmax(1))
    assert classifier.score(X, Y) == (classifier.predict(X) == Y).mean()


def test_two_classes_have_one_decision():
    names = np.where(Y == 0, "no", "yes")
    classifier = classifier_of().fit(X, names)
    assert classifier.coef_.shape == (1, 12)
    assert classifier.classes_.tolist() == ["no", "yes"]
    decisions = classifier.decision_function(X)
    np.testing.assert_array_equal(classifier.predict(X) == "yes", decisions > 0)
    np.testing.assert_allclose(
        classifier.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decisions))
    )


@pytest.mark.parametrize("y", [NUMBERS, NUMBERS[:, 0]], ids=["two", "one"])
def test_without_supervision_it_is_ridge_regression_on_codes(y):
    regressor = regressor_of(supervision=0.0, C=5.0).fit(X, y)
    assert regressor.n_steps_ == 0
    codes = regressor.transform(X) / np.sqrt((X**2).sum(1).mean() / 6)
    ridge = Ridge(alpha=2).fit(codes, y)
    np.testing.assert_allclose(regressor.predict(X), ridge.predict(codes))
    assert regressor.predict(X).shape == y.shape


def test_predictions_are_linear_in_codes():
    regressor = regressor_of().fit(X, NUMBERS)
    assert regressor.coef_.shape == (2, 12)
    expected = regressor.transform(X) @ regressor.coef_.T + regressor.intercept_
    np.testing.assert_allclose(regressor.predict(X), expected)
    assert regressor.score(X, NUMBERS) == r2_score(NUMBERS, regressor.predict(X))
    one = regressor_of().fit(X, NUMBERS[:, 0])
    assert one.coef_.shape == (12,)
    np.testing.assert_allclose(
        one.predict(X), one.transform(X) @ one.coef_ + one.intercept_
    )
    column = regressor_of().fit(X, NUMBERS[:, :1])
    np.testing.assert_array_equal(column.predict(X), one.predict(X)[:, None])


def test_units_of_numbers_are_those_of_predictions():
    one = regressor_of().fit(X, NUMBERS)
    other = regressor_of().fit(X, NUMBERS * [2.0**10, 2.0**-10] + [1.0, 7.0])
    found = (other.predict(X) - [1, 7]) * [2.0**-10, 2.0**10]
    np.testing.assert_allclose(found, one.predict(X), atol=1e-7)
    np.testing.assert_allclose(other.components_, one.components_, atol=1e-9)


# ---------------------------------------------------------------------------- weights


@pytest.mark.parametrize("given", [{0: 3.0, 2: 0.5}, "balanced"], ids=str)
def test_weights_of_classes_are_those_of_their_samples(given):
    often = np.random.default_rng(0).integers(1, 4, len(X))
    of_samples = compute_sample_weight(given, Y.repeat(often))
    by_class = classifier_of(class_weight=given).fit(X, Y, often)
    by_sample = classifier_of().fit(
        X.repeat(often, axis=0), Y.repeat(often), of_samples
    )
    np.testing.assert_allclose(by_class.coef_, by_sample.coef_, rtol=1e-9)


def test_a_class_without_weight_is_absent():
    few = classifier_of().fit(X[Y != 2], Y[Y != 2])
    by_sample = classifier_of().fit(X, Y, sample_weight=(Y != 2).astype(float))
    by_class = classifier_of(class_weight={2: 0.0}).fit(X, Y)
    for classifier in (by_sample, by_class):
        np.testing.assert_array_equal(classifier.coef_, few.coef_)
        assert classifier.classes_.tolist() == [0, 1]


# ---------------------------------------------------------------------------- partial_fit


@pytest.mark.parametrize("supervision", [0.0, 0.5, 1.0])
def test_parts_teach_it_too(supervision):
    classifier = classifier_of(
        supervision=supervision, learning_rate=0.02, batch_size=40
    )
    for _ in range(20):
        for rows in (slice(0, 120), slice(120, 240)):
            classifier.partial_fit(X[rows], Y[rows], classes=[0, 1, 2])
    majority = np.bincount(Y).max() / len(Y)
    assert classifier.score(X, Y) > majority + 0.1
    assert classifier.n_steps_ == 120


def test_a_part_may_lack_classes():
    learner = classifier_of().partial_fit(X[Y < 2], Y[Y < 2], classes=[0, 1, 2])
    assert learner.partial_fit(X, Y).predict_proba(X).shape == (len(X), 3)


@pytest.mark.parametrize("supervision", [0.0, 0.5])
@pytest.mark.parametrize(
    ("kind", "y"), [(PUDLEClassifier, Y), (PUDLERegressor, NUMBERS)]
)
def test_it_goes_on_after_fit(kind, y, supervision):
    learner = learner_of(kind, supervision=supervision).fit(X, y)
    coef, n_steps = learner.coef_.copy(), learner.n_steps_
    assert learner.partial_fit(X, y).n_steps_ == n_steps + 1
    moved = np.abs(learner.coef_ - coef).max(1) / (
        y.std(0) if kind is PUDLERegressor else 1
    )
    assert (moved > 0).all()
    assert (moved < 0.1).all()


# ---------------------------------------------------------------------------- scikit-learn, torch


def test_tensors_give_tensors(fitted):
    classifier = classifier_of().fit(torch.tensor(X), torch.tensor(Y))
    np.testing.assert_array_equal(classifier.coef_, fitted.coef_)
    for method in ("predict", "predict_proba", "decision_function", "transform"):
        result = getattr(classifier, method)(torch.tensor(X))
        assert isinstance(result, torch.Tensor)
        np.testing.assert_allclose(result.numpy(), getattr(fitted, method)(X))
    assert classifier.score(torch.tensor(X), torch.tensor(Y)) == fitted.score(X, Y)


def test_errors_say_what_to_do(fitted):
    with pytest.raises(ValueError, match=r"1 class.*\[1\]. Pass"):
        classifier_of().fit(X, np.ones(len(X), int))
    with pytest.raises(ValueError, match="first call"):
        classifier_of().partial_fit(X, Y)
    with pytest.raises(ValueError, match="unseen labels|should include all"):
        classifier_of().partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(ValueError, match="not the same as on last call"):
        clone(fitted).fit(X, Y).partial_fit(X, Y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="needs all labels at once"):
        classifier_of(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(TypeError, match="numbered rows .* as for y"):
        classifier_of().fit(iter([X]), Y)


def test_atoms_alone_make_no_classifier():
    for learner in (PUDLEClassifier, PUDLERegressor):
        with pytest.raises(
            ValueError, match=f"{learner.__name__} learns .* dict_init, and fit"
        ):
            learner.from_components(np.eye(3), alpha=0.5)


def test_a_wrong_label_leaves_the_estimator_as_it_was(fitted):
    classifier = clone(fitted).fit(X, Y)
    before = classifier.coef_.copy()
    with pytest.raises(ValueError, match="unseen labels|should include all"):
        classifier.partial_fit(X, Y + 1)
    np.testing.assert_array_equal(classifier.coef_, before)
