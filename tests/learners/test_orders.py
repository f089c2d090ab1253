"""Orders of calls: a choice stays until it is made again, or the call is refused."""

import pickle
from functools import partial
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from small import assert_same_values, make_data

from skpudle import (
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SEED = dict(random_state=0)
TRAINED = dict(n_unfoldings=3, max_iter=2) | SEED
Rows = partial(PUDLEDictionaryLearning, 6, **SEED)
# atoms that are put there are in the units of rows as they are
Plain = partial(Rows, noise="equal", fit_intercept=False)
LEARNERS = {
    "rows": Plain(),
    "trained": Plain(gradient="ae-ls", **TRAINED),
    "adam": Plain(gradient="dec", optimizer="adam", **TRAINED),
    "hard": Plain(shrinkage="hard", **TRAINED),
    "encoder": Plain(separate_atoms=True, **TRAINED),
    "counts": CountDictionaryLearning(6, n_unfoldings=10, **SEED),
    "noodl": NOODLDictionaryLearning(6, **TRAINED),
    "classifier": PUDLEClassifier(6, **TRAINED),
    "regressor": PUDLERegressor(6, **TRAINED),
}


def data_of(learner):
    """Return counts, which every learner takes, and targets."""
    X = (8 * np.abs(make_data(n_samples=120)[0])).round()
    X[0, 0] += 1.0
    return (X, X[:, 0] > X[:, 1]) if hasattr(learner, "supervision") else (X,)


def train_on(learner, X, y=None):
    options = {"classes": [False, True]} if isinstance(learner, PUDLEClassifier) else {}
    return learner.partial_fit(X, y, **options)


@pytest.fixture(params=LEARNERS)
def learner(request):
    return clone(LEARNERS[request.param])


def test_a_pickle_goes_on_with_the_same_bits(learner):
    data = data_of(learner)
    train_on(learner, *data)
    other = pickle.loads(pickle.dumps(learner))
    for one in (other, learner):
        train_on(one, *data)
    assert_same_values(
        learner, other, "components_", "intercept_", "coef_", "loss_curve_"
    )


# ---------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize(
    "through", [lambda learner: learner, pickle.dumps], ids=["", "pickle"]
)
@pytest.mark.parametrize("alpha", ["auto", 0.5])
@pytest.mark.parametrize("begins", ["fit", "partial_fit"])
def test_partial_fit_keeps_a_chosen_penalty(begins, alpha, through):
    X = make_data(n_samples=200)[0]
    learner = getattr(Rows(alpha=alpha), begins)(X).choose_alpha(X, l0=1)
    chosen = learner.alpha_, learner.debias_
    codes = learner.transform(X)
    learner = (
        through(learner)
        if through is not pickle.dumps
        else pickle.loads(through(learner))
    )
    assert_array_equal(learner.transform(X), codes)
    for _ in range(2):
        learner.partial_fit(X)
        assert (learner.alpha_, learner.debias_) == chosen
    assert learner.fit(X).alpha_ != chosen[0]


def test_partial_fit_takes_a_penalty_that_was_set(learner):
    name = "threshold" if isinstance(learner, NOODLDictionaryLearning) else "alpha"
    data = data_of(learner)
    learner.fit(*data).set_params(**{name: 0.625})
    if getattr(learner, "learn_threshold", None):
        with pytest.raises(
            ValueError, match="alpha=0.625 was set after fit, .*fit again"
        ):
            train_on(learner, *data)
        return
    assert train_on(learner, *data).alpha_ == 0.625
    learner.set_params(**{name: "auto"})
    assert train_on(learner, *data).alpha_ == 0.625


@pytest.mark.parametrize("debias", [0.0, 0.5])
def test_partial_fit_takes_a_share_of_the_bias_that_was_set(debias):
    X = make_data()[0]
    learner = Rows().fit(X).set_params(debias=debias)
    assert learner.partial_fit(X).debias_ == debias


# ---------------------------------------------------------------------------- refused


@pytest.mark.parametrize(("before", "now"), [*permutations(["poisson", "binomial"], 2)])
def test_another_loss_is_refused_until_the_next_fit(before, now):
    learner = CountDictionaryLearning(6, n_unfoldings=10, **SEED)
    X = data_of(learner)[0].clip(0, 8)
    trials = {"poisson": 1, "binomial": 8}
    learner.set_params(loss=before, n_trials=trials[before])
    learner.set_params(dict_init="data", max_iter=2, tol=None)
    codes = learner.fit(X).transform(X)
    learner.set_params(loss=now, n_trials=trials[now])
    calls = (
        learner.transform,
        learner.score,
        learner.partial_fit,
        learner.transform_sparse,
    )
    for call in (*calls, lambda X: learner.inverse_transform(codes)):
        with pytest.raises(
            ValueError, match=f"loss='{now}' .* after fit, .*for {before.title()}"
        ):
            call(X)
    learner.set_params(loss=before, n_trials=trials[before])
    assert_array_equal(learner.transform(X), codes)
    learner.set_params(loss=now, n_trials=trials[now])
    assert learner.fit(X).transform(X).shape == codes.shape


def test_partial_fit_refuses_another_number_of_atoms(learner):
    data = data_of(learner)
    n = learner.n_components
    train_on(learner, *data).set_params(n_components=n + 1)
    atoms = learner.components_.copy()
    with pytest.raises(
        ValueError, match=f"n_components={n + 1} was set after fit, .* {n} atoms"
    ):
        train_on(learner, *data)
    assert_array_equal(learner.components_, atoms)
    train_on(learner.set_params(n_components=n), *data)


def test_fewer_atoms_than_an_encoder_has_are_refused():
    learner = clone(LEARNERS["encoder"])
    data = data_of(learner)
    learner.fit(*data)
    learner.components_ = learner.components_[:2]
    for call in (learner.transform, partial(train_on, learner)):
        with pytest.raises(ValueError, match="components_.* fit again"):
            call(*data)


def test_atoms_of_other_features_are_refused(learner):
    data = data_of(learner)
    learner.fit(*data)
    learner.components_ = np.ascontiguousarray(learner.components_[:, :5])
    of_targets = (
        partial(call, y=data[-1])
        for call in (learner.score, partial(train_on, learner))
    )
    for call in (learner.transform, *of_targets):
        with pytest.raises(ValueError, match=r"components_ has the shape \(6, 5\)"):
            call(data[0])


@pytest.mark.parametrize("case", ["rows", "hard", "counts"])
def test_codes_of_fewer_atoms_lead_back_to_rows(case):
    learner = clone(LEARNERS[case])
    (X,) = data_of(learner)
    learner.fit(X)
    learner.components_ = learner.components_[:2]
    codes = learner.transform(X)
    assert codes.shape[-1] == 2
    assert learner.inverse_transform(codes).shape == X.shape


# ---------------------------------------------------------------------------- atoms


@pytest.mark.parametrize("change", ["in place", "replaced"])
@pytest.mark.parametrize("begins", ["fit", "partial_fit"])
def test_partial_fit_starts_from_atoms_that_were_put_there(learner, begins, change):
    """Sums over rows of the atoms before would lead back to these."""
    data = data_of(learner)
    learner.fit(*data) if begins == "fit" else train_on(learner, *data)
    before, new = learner.components_.copy(), learner.components_.copy()
    rolled = np.roll(new, 1, axis=1)
    far = np.square(rolled - new).reshape(len(new), -1).sum(axis=1).argmax()
    new[far] = rolled[far]  # a nearly constant atom would stay as it was
    if change == "in place":
        learner.components_[:] = new
    else:
        learner.components_ = new
    train_on(learner, *(part[:10] for part in data))
    found = learner.components_[far]
    assert np.linalg.norm(found - new[far]) < 0.8 * np.linalg.norm(found - before[far])


@pytest.mark.parametrize("n", [4, 9])
@pytest.mark.parametrize("begins", ["fit", "partial_fit"])
@pytest.mark.parametrize("case", ["rows", "trained", "hard", "counts", "noodl"])
def test_partial_fit_takes_another_number_of_atoms(case, begins, n):
    learner = clone(LEARNERS[case])
    (X,) = data_of(learner)
    getattr(learner, begins)(X)
    learner.components_ = np.resize(learner.components_, (n, X.shape[1]))
    learner.partial_fit(X).partial_fit(X)
    assert learner.transform(X).shape == (len(X), n)


# ---------------------------------------------------------------------------- zeros


def test_nothing_is_chosen_as_long_as_data_are_zero(learner):
    """Silence before a signal leaves the penalty and the atoms open."""
    X, *targets = data_of(learner)
    if not isinstance(learner, CountDictionaryLearning):
        X = 1e-3 * X
    expected = train_on(clone(learner), X, *targets)
    for _ in range(2):
        train_on(learner, 0 * X, *targets)
    assert not np.any(learner.transform(0 * X))
    train_on(learner, X, *targets)
    assert_array_equal(learner.alpha_, expected.alpha_)
    if not isinstance(
        learner, PUDLEClassifier | PUDLERegressor
    ):  # whose intercepts were learned
        assert_array_equal(learner.components_, expected.components_)


@pytest.mark.parametrize("begins", ["partial_fit", "fit"])
def test_a_penalty_that_was_chosen_in_silence_stays(begins):
    X = make_data(n_samples=200)[0]
    learner = getattr(Rows(), begins)(np.zeros_like(X)).choose_alpha(X, l0=1)
    chosen = learner.alpha_
    assert learner.partial_fit(np.zeros_like(X)).partial_fit(X).alpha_ == chosen


@pytest.mark.parametrize("begins", ["partial_fit", "fit", "from_components"])
def test_atoms_that_were_put_there_in_silence_stay(begins):
    X, atoms = make_data(n_samples=400)
    if begins == "from_components":
        learner = PUDLEDictionaryLearning.from_components(atoms, alpha=1.0).set_params(
            alpha="auto"
        )
    else:
        learner = getattr(Plain(), begins)(0 * X)
        learner.components_ = atoms
    learner.partial_fit(0 * X).partial_fit(X)
    assert (learner.components_ * atoms).sum(1).min() > 0.9  # in their order
    assert learner.alpha_ == Plain().partial_fit(X).alpha_
