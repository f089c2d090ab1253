"""What a user of `PUDLEDictionaryLearning` can rely on, beyond scikit-learn's own checks."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, orthogonal_mp_gram
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import TensorDataset

from skpudle import PUDLEDictionaryLearning
from skpudle._learners.base import GradientLearner
from skpudle.encoding import default_step, encode
from skpudle.omp import solve_omp
from skpudle.operators import DenseDictionary
from skpudle.shrinkage import SHRINKAGES

GRADIENTS = ["dec", "ae-lasso", "ae-ls"]
OPTIMIZERS = {
    "adam": dict(),
    "sgd": dict(optimizer="sgd", optimizer_params=dict(momentum=0.9)),
    "AdamW": dict(optimizer=torch.optim.AdamW, optimizer_params=dict(weight_decay=0.1)),
    "RMSprop": dict(optimizer=torch.optim.RMSprop),
}
VARIANTS = {
    "soft": dict(),
    "hard": dict(shrinkage="hard"),
    "positive": dict(positive_code=True, positive_dict=True),
    "decay": dict(lambda_decay=0.9),
    "split": dict(split_sign=True),
}


def make(**params):
    """Return a small learner that trains for a fixed number of epochs."""
    small = dict(n_components=6, n_unfoldings=8, max_iter=4, tol=None, random_state=0)
    small |= dict(dict_init="data", optimizer="adam")
    return PUDLEDictionaryLearning(**(small | params))


def make_data(seed=0, n_samples=60, n_features=8, n_components=6):
    """Return sparse combinations of a few atoms, and the atoms."""
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.normal(size=(n_samples, n_components))
    codes *= rng.random(codes.shape) < 0.4
    return codes @ atoms + 0.01 * rng.normal(size=(n_samples, n_features)), atoms


def perturbed(atoms, size=0.3, seed=1):
    return atoms + size * np.random.default_rng(seed).normal(size=atoms.shape) / len(atoms) ** 0.5


def numpy_codes(estimator, X, **options):
    """Return codes by the public encoder with what the estimator has learned."""
    options = {
        "alpha": estimator.alpha_,
        "n_unfoldings": estimator.n_unfoldings,
        "step_size": estimator.step_size_,
        "lambda_decay": estimator.lambda_decay_,
        "shrinkage": estimator.shrinkage,
        "positive_code": estimator.positive_code,
    } | options
    return encode(torch.tensor(estimator.components_), torch.tensor(X), **options).numpy()


def assert_same(actual, expected):
    """Compare nested containers, bit for bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for name in expected:
            assert_same(actual[name], expected[name])
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    else:
        assert repr(actual) == repr(expected)  # where NaN is NaN


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


@pytest.fixture
def X():
    return make_data()[0]


@pytest.fixture
def atoms():
    return make_data()[1]


@pytest.fixture(params=GRADIENTS)
def gradient(request):
    return request.param


@pytest.fixture(params=SHRINKAGES)
def shrinkage(request):
    return request.param


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS)
def optimizer(request):
    return request.param


# ---------------------------------------------------------------------------- training


def test_training_approaches_the_dictionary_that_made_the_data(gradient):
    """From a perturbed truth, measured by the sine of the angle between atoms."""
    X, atoms = make_data(n_samples=400, n_features=16, n_components=8)
    start = perturbed(atoms)
    options = dict(n_components=8, n_unfoldings=20, alpha=0.05, max_iter=20, batch_size=50)
    estimator = make(gradient=gradient, dict_init=start, learning_rate=3e-3, **options).fit(X)

    def distance(learned):
        learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
        return np.sqrt(1 - (learned * atoms).sum(1) ** 2).max()

    assert distance(estimator.components_) < 0.8 * distance(start)


def test_loss_curve_is_the_epoch_mean_of_the_reconstruction_error(gradient, shrinkage, X, atoms):
    """With full batches, an epoch's loss is that of the dictionary which it starts from."""
    options = dict(gradient=gradient, shrinkage=shrinkage, alpha=0.1, batch_size=len(X))
    options["dict_init"] = perturbed(atoms)
    curve = make(max_iter=4, **options).fit(X).loss_curve_
    assert curve.shape == (4,)
    for n_epochs in (1, 2, 3):
        estimator = make(max_iter=n_epochs, **options).fit(X)
        codes = numpy_codes(estimator, X)
        loss = 0.5 * ((X - codes @ estimator.components_) ** 2).sum(1).mean()
        assert curve[n_epochs] == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
def test_units_of_the_data_do_not_matter(scale, shrinkage, X):
    """The same atoms, and codes in the units of the data."""
    options = dict(shrinkage=shrinkage, batch_size=16, max_iter=20, learning_rate=0.01)
    estimator, scaled = make(**options).fit(X), make(**options).fit(scale * X)
    np.testing.assert_allclose(scaled.components_, estimator.components_, rtol=0, atol=1e-6)
    codes, scaled_codes = estimator.transform(X), scaled.transform(scale * X)
    np.testing.assert_allclose(scaled_codes / scale, codes, rtol=0, atol=1e-6)
    assert scaled.alpha_ == pytest.approx(scale * estimator.alpha_, rel=1e-10)


def test_order_of_the_samples_does_not_matter_to_full_batches(gradient, shrinkage, X, atoms):
    options = dict(gradient=gradient, shrinkage=shrinkage, batch_size=len(X))
    options["dict_init"] = perturbed(atoms)
    order = np.random.default_rng(2).permutation(len(X))
    estimator, permuted = make(**options).fit(X), make(**options).fit(X[order])
    np.testing.assert_allclose(permuted.components_, estimator.components_, rtol=0, atol=1e-8)
    np.testing.assert_allclose(permuted.transform(X), estimator.transform(X), rtol=0, atol=1e-8)
    np.testing.assert_allclose(permuted.loss_curve_, estimator.loss_curve_, rtol=0, atol=1e-8)


def test_a_random_state_determines_every_bit(variant, X):
    options = variant | dict(batch_size=16)
    first, second = make(**options).fit(X), make(**options).fit(X)
    assert_same(vars(first), vars(second))
    other = make(**(options | {"random_state": 1}))
    assert not np.array_equal(other.fit(X).components_, first.components_)


def test_fitting_again_starts_over(X):
    estimator = make(batch_size=16).fit(X[:, :5])
    assert_same(vars(estimator.fit(X)), vars(make(batch_size=16).fit(X)))


def test_float32_and_float64_learn_the_same(X):
    double, single = make().fit(X), make().fit(X.astype(np.float32))
    assert single.components_.dtype == np.float32
    reconstructions = [
        estimator.inverse_transform(estimator.transform(X.astype(estimator.components_.dtype)))
        for estimator in (double, single)
    ]
    np.testing.assert_allclose(*reconstructions, rtol=0, atol=1e-4)


def test_epochs_and_updates_are_counted(X):
    estimator = make(max_iter=3, batch_size=16).fit(X)
    assert estimator.n_iter_ == 3
    assert estimator.n_steps_ == 3 * 4
    assert len(estimator.loss_curve_) == 3


@pytest.mark.parametrize(("n_samples", "n_updates"), [(255, 1), (256, 1), (257, 2), (513, 3)])
def test_batches_have_at_most_256_samples_by_default(n_samples, n_updates):
    X, _ = make_data(n_samples=n_samples)
    assert make(max_iter=1).fit(X).n_steps_ == n_updates


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_fitted_estimator_holds_no_tensors(options, X):
    """So pickles load anywhere, and no memory of a GPU is held."""
    estimator = make(**options).fit(torch.tensor(X)).partial_fit(torch.tensor(X))
    fitted = {name: value for name, value in vars(estimator).items() if name.endswith("_")}
    fitted |= {"_training_state": estimator._training_state}
    for value in leaves(fitted):
        assert isinstance(value, (np.ndarray, float, int, str))
    assert {"n_iter_", "n_steps_", "n_components_"} <= {
        name for name, value in fitted.items() if type(value) is int
    }
    assert type(estimator.alpha_) is type(estimator.step_size_) is float
    assert estimator.device_ == "cpu"


def test_n_components_is_the_number_of_features_or_of_given_atoms(X, atoms):
    assert make(n_components=None).fit(X).n_components_ == X.shape[1]
    assert make(n_components=None, dict_init=atoms[:3]).fit(X).n_components_ == 3


def test_every_atom_norm_holds(X, atoms):
    """From atoms of norm 0.5 and 2."""
    given = atoms * np.array([0.5, 2.0] * 3)[:, None]
    norms = {
        atom_norm: np.linalg.norm(
            make(atom_norm=atom_norm, dict_init=given).fit(X).components_, axis=1
        )
        for atom_norm in ("unit", "ball", None)
    }
    np.testing.assert_allclose(norms["unit"], 1, rtol=1e-12)
    assert (norms["ball"] <= 1 + 1e-12).all()
    assert norms["ball"].min() < 0.9
    assert norms[None].max() > 1.1


@pytest.mark.parametrize("dict_init", ["data", "random", "svd", "array"])
def test_signs_are_as_asked(dict_init, X, atoms):
    dict_init = atoms if dict_init == "array" else dict_init
    estimator = make(dict_init=dict_init, positive_code=True, positive_dict=True).fit(X)
    assert (estimator.components_ >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(estimator.components_, axis=1), 1)
    assert (estimator.transform(X) >= 0).all()
    signed = make().fit(X)
    assert (signed.components_ < 0).any()
    assert (signed.transform(X) < 0).any()


@pytest.mark.parametrize("dict_init", ["data", "random", "svd"])
def test_every_initialisation_trains(dict_init, gradient, X):
    estimator = make(dict_init=dict_init, gradient=gradient, learning_rate=0.01).fit(X)
    assert estimator.loss_curve_[-1] < estimator.loss_curve_[0]


def test_a_given_dictionary_is_where_training_starts(X, atoms):
    """Scaled to the constraint; the array itself is left alone."""
    given = 3 * atoms
    estimator = make(dict_init=given, learning_rate=1e-12, max_iter=1).fit(X)
    np.testing.assert_allclose(estimator.components_, atoms, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(given, 3 * atoms)


@pytest.mark.parametrize(
    "given", [np.ndarray.tolist, np.asfortranarray, torch.tensor, pd.DataFrame, np.float32]
)
def test_a_given_dictionary_may_be_any_array_like(given, X, atoms):
    expected = make(dict_init=atoms).fit(X).components_
    actual = make(dict_init=given(atoms)).fit(X).components_
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_every_optimizer_trains(optimizer, gradient, X):
    estimator = make(gradient=gradient, max_iter=8, learning_rate=0.01, **optimizer).fit(X)
    assert estimator.loss_curve_[-1] < estimator.loss_curve_[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_gradient_mode_of_the_caller_does_not_matter(mode, gradient, X):
    expected = make(gradient=gradient).fit(X).partial_fit(X)
    with mode():
        actual = make(gradient=gradient).fit(X).partial_fit(X)
        codes = actual.transform(X)
    np.testing.assert_array_equal(actual.components_, expected.components_)
    np.testing.assert_array_equal(codes, expected.transform(X))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_default_parameters_reconstruct_few_unscaled_data(scale, offset, shrinkage):
    """Thirty samples of three features, in any unit and far from the origin."""
    X = scale * (np.random.default_rng(0).normal(size=(30, 3)) + offset)
    estimator = PUDLEDictionaryLearning(shrinkage=shrinkage, random_state=0, max_iter=20).fit(X)
    error = ((X - estimator.inverse_transform(estimator.transform(X))) ** 2).sum()
    assert error < 0.05 * (X**2).sum()


def test_constant_and_zero_data_can_be_learned_from():
    for X in (np.zeros((10, 3)), np.ones((10, 3)), np.full((1, 3), 2.0)):
        estimator = make(n_components=5).fit(X)
        assert np.isfinite(estimator.components_).all()
        assert np.isfinite(estimator.transform(X)).all()


# ---------------------------------------------------------------------------- alpha and step


def test_alpha_is_a_share_of_the_root_mean_square_norm(X, atoms):
    """Over the samples that are not zero."""
    X = np.concatenate([X[:41], np.zeros((50, X.shape[1]))])
    norm = np.sqrt(np.square(X[:41]).sum(1).mean())
    estimator = make(dict_init=atoms).fit(X)
    assert estimator.alpha_ == pytest.approx(0.07 * norm, rel=1e-12)


def test_a_hard_threshold_is_that_times_the_root_of_the_step(atoms, X):
    """Atoms come in whose correlation is above the threshold over that root."""
    soft = make(dict_init=atoms).fit(X)
    hard = make(dict_init=atoms, shrinkage="hard").fit(X)
    step = float(default_step(DenseDictionary(torch.tensor(atoms))))
    assert hard.alpha_ == pytest.approx(step**0.5 * soft.alpha_, rel=1e-12)


def test_a_given_alpha_is_absolute(X):
    assert make(alpha=0.25).fit(X).alpha_ == 0.25
    assert not make(alpha=1e3).fit(X).transform(X).any()


def test_step_size_is_that_of_the_learned_dictionary(X):
    estimator = make().fit(X)
    step = float(default_step(DenseDictionary(torch.tensor(estimator.components_))))
    assert estimator.step_size_ == step
    squared_norm = np.linalg.norm(estimator.components_, ord=2) ** 2
    assert 1 <= 1 / (estimator.step_size_ * squared_norm) <= 1.05


def test_a_given_step_size_is_used_as_it_is(X):
    estimator = make(step_size=0.2).fit(X)
    assert estimator.step_size_ == 0.2
    np.testing.assert_array_equal(estimator.transform(X), numpy_codes(estimator, X, step_size=0.2))


def test_a_step_beyond_its_bound_warns_with_the_bound(X, atoms):
    largest = 2 * float(default_step(DenseDictionary(torch.tensor(atoms))))
    options = dict(dict_init=atoms, learning_rate=1e-9, n_unfoldings=2, max_iter=1)
    make(step_size=0.99 * largest, **options).fit(X)
    match = rf"step_size=.* beyond 2 / L = {largest:.3g}"
    with pytest.warns(RuntimeWarning, match=match) as warned:
        make(step_size=1.01 * largest, **options).fit(X)
    assert len(warned) == 1


# ---------------------------------------------------------------------------- decay


@pytest.fixture
def decays(monkeypatch):
    """Return a list that collects the ``lambda_decay`` of every call of the encoder."""
    collected = []

    def spy(*args, lambda_decay, **kwargs):
        collected.append(lambda_decay)
        return encode(*args, lambda_decay=lambda_decay, **kwargs)

    monkeypatch.setattr("skpudle._learners.encoder.encode", spy)
    return collected


@pytest.mark.parametrize("max_iter", [5, 10])
def test_a_pair_of_decays_is_a_staircase_of_ten_equal_parts(max_iter, decays, X):
    """From the first to the last value, counted in updates: four an epoch."""
    estimator = make(lambda_decay=(1.0, 0.55), max_iter=max_iter, batch_size=16).fit(X)
    expected = np.repeat(np.linspace(1.0, 0.55, 10), 4 * max_iter // 10)
    np.testing.assert_allclose(decays, expected, rtol=1e-12)
    assert estimator.lambda_decay_ == pytest.approx(0.55, rel=1e-12)


def test_a_decay_is_the_same_throughout(decays, X):
    assert make(lambda_decay=0.9, batch_size=16).fit(X).lambda_decay_ == 0.9
    assert set(decays) == {0.9}


def test_a_pair_of_equal_decays_is_one_decay(X):
    pair, number = make(lambda_decay=(0.9, 0.9)).fit(X), make(lambda_decay=0.9).fit(X)
    np.testing.assert_array_equal(pair.components_, number.components_)


def test_partial_fit_uses_the_last_decay(decays, X):
    estimator = make(lambda_decay=(1.0, 0.55), batch_size=16).partial_fit(X).partial_fit(X)
    assert estimator.lambda_decay_ == 0.55
    assert set(decays) == {0.55}


def test_a_pair_of_decays_keeps_early_stopping_off_before_its_last_stage(X):
    """The objective stalls at once, since nothing moves, and may stop training only there."""
    options = dict(learning_rate=1e-12, batch_size=16, max_iter=40, tol=1e-2, n_iter_no_change=1)
    assert make(**options).fit(X).n_iter_ < 10
    estimator = make(lambda_decay=(1.0, 0.9), **options).fit(X)
    assert 36 <= estimator.n_iter_ < 40
    assert estimator.lambda_decay_ == pytest.approx(0.9, rel=1e-12)


# ---------------------------------------------------------------------------- stopping


def test_training_stops_when_nothing_improves(X):
    """And says nothing."""
    estimator = make(learning_rate=1e-12, max_iter=50, tol=1e-3, n_iter_no_change=2).fit(X)
    assert estimator.n_iter_ == 1 + 2


def test_training_that_ends_early_warns_with_what_to_change(X):
    estimator = make(tol=1e-4, max_iter=3, learning_rate=0.01)
    with pytest.warns(
        ConvergenceWarning,
        match=r"max_iter=3\), before .* for 5 checks.*learning_rate.*tol \(now 0.0001\)",
    ):
        estimator.fit(X)
    assert estimator.n_iter_ == 3


def test_warnings_point_at_the_line_that_called_fit(X):
    """Both of the step, before and after training, and that of convergence."""
    estimator = make(step_size=3.0, n_unfoldings=1, tol=1e-12)
    with pytest.warns((RuntimeWarning, ConvergenceWarning)) as caught:
        estimator.fit(X)
    assert {warning.category for warning in caught} == {RuntimeWarning, ConvergenceWarning}
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("batch_size", [len(make_data()[0]), 16])
def test_training_has_at_least_two_hundred_updates(batch_size, X):
    """However few batches an epoch has."""
    learner = make(n_unfoldings=1, max_iter="auto", batch_size=batch_size).fit(X)
    assert learner.n_steps_ >= 200


def test_training_has_a_hundred_epochs_unless_they_are_dear(monkeypatch, X):
    few = dict(n_unfoldings=1, max_iter="auto", batch_size=1)
    assert make(**few).fit(X).n_iter_ == 100
    monkeypatch.setattr("skpudle._learners.pudle._AUTO_OPERATIONS", 0)
    learner = make(**few, lambda_decay=(1.0, 0.5)).fit(X)
    assert (learner.n_steps_, learner.n_iter_) == (200, -(-200 // len(X)))
    assert learner.lambda_decay_ == 0.5  # the last of ten stages
    assert make(**few | dict(max_iter=4)).fit(X).n_iter_ == 4


@pytest.mark.parametrize("max_iter", [1, 2, 7])
def test_a_pair_of_decays_ends_at_the_last_in_a_few_updates_too(max_iter, X):
    learner = make(lambda_decay=(1.0, 0.5), max_iter=max_iter, batch_size=len(X)).fit(X)
    assert learner.n_steps_ == max_iter
    assert learner.lambda_decay_ == 0.5


def test_a_batch_size_may_be_a_number_of_numpy(X):
    """As it comes out of a grid for a search."""
    data = TensorDataset(torch.from_numpy(X))
    sizes = (8, np.int64(8))
    first, second = (make(batch_size=size, random_state=0).fit(data) for size in sizes)
    assert np.array_equal(first.components_, second.components_)


def test_without_a_tolerance_training_goes_through_all_epochs_in_silence(X):
    assert make(learning_rate=1e-12, max_iter=20, tol=None).fit(X).n_iter_ == 20


# ---------------------------------------------------------------------------- unused atoms


def test_unused_atoms_are_redrawn_between_epochs_and_never_at_the_end():
    """One atom is orthogonal to all samples, so that no code ever uses it."""
    X, atoms = make_data(n_components=5)
    X, atoms = np.pad(X, [(0, 0), (0, 1)]), np.pad(atoms, [(0, 1), (0, 1)])
    atoms[5, 8] = 1.0
    once = make(dict_init=atoms, max_iter=1).fit(X)
    np.testing.assert_array_equal(once.components_[5], atoms[5])
    twice = make(dict_init=atoms, max_iter=2).fit(X)
    assert twice.components_[5, 8] == 0
    # one small step away from the sample that was reconstructed worst
    directions = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert (directions @ twice.components_[5]).max() > 0.99


@pytest.mark.parametrize("atom_norm", ["unit", "ball", None])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_redrawn_atoms_do_not_depend_on_units(atom_norm, scale):
    """Their norm is 1, whatever that of the data, also where atoms may have any."""
    rng, atoms = np.random.default_rng(0), np.eye(8)
    data = np.pad(rng.normal(size=(60, 4)), [(0, 0), (0, 4)])
    atoms[:4, :4] += 0.2 * rng.normal(size=(4, 4))
    settings = dict(n_components=8, dict_init=atoms, atom_norm=atom_norm, max_iter=3)
    plain, scaled = (make(alpha=0.3 * c, **settings).fit(c * data) for c in (1, scale))
    assert not np.allclose(plain.components_[4:], np.eye(8)[4:])
    np.testing.assert_allclose(scaled.components_, plain.components_, atol=1e-6)


def test_redrawn_atoms_of_negative_samples_are_positive():
    data = -np.abs(np.random.default_rng(0).normal(size=(40, 6)))
    settings = dict(positive_dict=True, positive_code=True, dict_init=np.eye(6), max_iter=2)
    atoms = make(**settings).fit(data).components_
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1)
    assert not np.allclose(atoms, np.eye(6))
    assert (atoms >= 0).all()


# ---------------------------------------------------------------------------- divergence

ABSURD = dict(optimizer="sgd", learning_rate=1e300, atom_norm=None)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_divergence_raises_with_the_update_and_the_parameters_to_change(method, X):
    estimator = make(**ABSURD, batch_size=16)
    with pytest.raises(ValueError, match=r"at update \d+, .*learning_rate \(now 1e\+300\)"):
        getattr(estimator, method)(X)
    assert np.isfinite(estimator.components_).all()
    assert np.isfinite(estimator.transform(X)).all()


def test_the_last_finite_dictionary_is_that_before_the_divergence(X, atoms):
    estimator = make(**ABSURD, dict_init=atoms)
    with pytest.raises(ValueError, match="stopped being finite"):
        estimator.fit(X)
    np.testing.assert_array_equal(estimator.components_, atoms)
    assert estimator.n_steps_ == 0


def test_data_too_large_for_their_dtype_say_so(X):
    with pytest.raises(ValueError, match="scale the data"):
        make().fit(1e200 * X)


# ---------------------------------------------------------------------------- partial_fit


def test_partial_fit_is_one_pass_over_batches_in_order(X, atoms):
    """Cut by the estimator or by hand; sgd and numbers leave nothing to the first data seen."""
    options = dict(optimizer="sgd", optimizer_params=dict(momentum=0.9), alpha=0.1)
    options["dict_init"] = perturbed(atoms)
    whole = make(batch_size=16, **options).partial_fit(X)
    assert whole.n_steps_ == 4
    assert whole.n_iter_ == 1
    cut = make(**options)
    for start in range(0, len(X), 16):
        cut.partial_fit(X[start : start + 16])
    np.testing.assert_array_equal(cut.components_, whole.components_)
    assert cut.n_steps_ == 4


def test_partial_fit_is_an_epoch_of_fit_with_full_batches(optimizer, variant, X):
    """The same bits, one pass after the other."""
    options = optimizer | variant | dict(batch_size=len(X))
    partial_fits = make(**options)
    for n_epochs in (1, 2, 3):
        partial_fits.partial_fit(X)
        fitted = make(**options, max_iter=n_epochs).fit(X)
        np.testing.assert_array_equal(partial_fits.components_, fitted.components_)
        np.testing.assert_array_equal(partial_fits.loss_curve_, fitted.loss_curve_)
        assert partial_fits.alpha_ == fitted.alpha_
        assert partial_fits.n_steps_ == fitted.n_steps_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_partial_fit_survives_a_pickle_bit_for_bit(dtype, optimizer, X):
    X = X.astype(dtype)
    straight, pickled = make(batch_size=16, **optimizer), make(batch_size=16, **optimizer)
    for rows in (X[:40], X[40:47], X):
        straight.partial_fit(rows)
        pickled = pickle.loads(pickle.dumps(pickled)).partial_fit(rows)
    assert_same(vars(straight), vars(pickled))


def test_a_copy_trains_on_without_the_original(X):
    """Nothing that training writes into is shared."""
    original = make().partial_fit(X)
    before = copy.deepcopy(vars(original))
    copy.copy(original).partial_fit(X)
    assert_same(vars(original), before)


def test_alpha_is_frozen_at_the_first_call(X):
    estimator = make().partial_fit(X)
    alpha = estimator.alpha_
    for factor in (100.0, 1e-3):
        estimator.partial_fit(factor * X[:7])
    assert estimator.alpha_ == alpha


def test_partial_fit_counts_on(X):
    estimator = make(batch_size=16, max_iter=3).fit(X)
    curve = estimator.loss_curve_
    estimator.partial_fit(X).partial_fit(X[:5])
    assert estimator.n_steps_ == 3 * 4 + 4 + 1
    assert estimator.n_iter_ == 3 + 2
    assert len(estimator.loss_curve_) == 5
    np.testing.assert_array_equal(estimator.loss_curve_[:3], curve)


def test_partial_fit_goes_on_after_fit(X):
    """With the dictionary, the moments and the alpha that fit ended with."""
    options = dict(batch_size=len(X))
    estimator = make(max_iter=3, **options).fit(X).partial_fit(X)
    np.testing.assert_array_equal(
        estimator.components_, make(max_iter=4, **options).fit(X).components_
    )


def test_fit_after_partial_fit_starts_over(X):
    estimator = make().partial_fit(X[:30]).fit(X)
    assert_same(vars(estimator), vars(make().fit(X)))


def test_partial_fit_keeps_the_dtype_of_the_dictionary(X):
    estimator = make().partial_fit(X.astype(np.float32))
    assert estimator.partial_fit(X).components_.dtype == np.float32


def test_partial_fit_with_another_optimizer_starts_its_memory_anew(X):
    momentum = make(optimizer="sgd", optimizer_params=dict(momentum=0.9)).partial_fit(X)
    momentum.set_params(optimizer="adam", optimizer_params=None).partial_fit(X)
    assert np.isfinite(momentum.components_).all()


# ---------------------------------------------------------------------------- transform


def test_codes_are_those_of_the_public_encoder(variant, X):
    estimator = make(**variant).fit(X)
    codes = numpy_codes(estimator, X)
    if estimator.split_sign:
        codes = np.concatenate([codes.clip(min=0), (-codes).clip(min=0)], axis=1)
    np.testing.assert_array_equal(estimator.transform(X), codes)


def test_fit_transform_is_fit_then_transform(variant, X):
    options = variant | dict(batch_size=16)
    np.testing.assert_array_equal(
        make(**options).fit_transform(X), make(**options).fit(X).transform(X)
    )


def test_a_row_alone_is_coded_as_in_its_batch(variant):
    """To 1e-7 of its largest code, also where many rows are coded in several parts."""
    X, _ = make_data(n_samples=1100)
    estimator = make(**variant).fit(X)
    codes = estimator.transform(X)
    rows = np.r_[:5, 1020:1030, 1099]
    alone = np.concatenate([estimator.transform(X[row : row + 1]) for row in rows])
    largest = np.abs(codes[rows]).max(1, keepdims=True)
    assert (np.abs(alone - codes[rows]) <= 1e-7 * largest).all()


def test_transform_alpha_is_what_transform_uses(X):
    estimator = make(transform_alpha=0.5).fit(X)
    np.testing.assert_array_equal(estimator.transform(X), numpy_codes(estimator, X, alpha=0.5))
    assert estimator.alpha_ == make().fit(X).alpha_  # training does not
    assert estimator.set_params(transform_alpha=0.0).transform(X).any()


def test_split_codes_are_the_positive_and_the_negative_parts(X):
    plain, split = make().fit(X), make(split_sign=True).fit(X)
    codes, parts = plain.transform(X), split.transform(X)
    assert (parts >= 0).all()
    np.testing.assert_array_equal(parts[:, :6] - parts[:, 6:], codes)
    assert not (parts[:, :6] * parts[:, 6:]).any()
    np.testing.assert_array_equal(split.inverse_transform(parts), plain.inverse_transform(codes))
    assert split.inverse_transform(parts).shape == X.shape


@pytest.mark.parametrize("split_sign", [False, True])
def test_every_code_has_a_name(split_sign, X):
    estimator = make(split_sign=split_sign).set_output(transform="pandas").fit(X)
    names = [f"pudledictionarylearning{j}" for j in range(12 if split_sign else 6)]
    assert estimator.get_feature_names_out().tolist() == names
    assert estimator.transform(X).columns.tolist() == names


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("split_sign", [False, True])
def test_dtype_of_the_data_is_that_of_codes_and_reconstructions(split_sign, dtype, X):
    """Whatever the dictionary was learned in."""
    for learned in (np.float32, np.float64):
        estimator = make(split_sign=split_sign).fit(X.astype(learned))
        codes = estimator.transform(X.astype(dtype))
        assert codes.dtype == dtype
        assert estimator.inverse_transform(codes).dtype == dtype


def test_inverse_transform_is_the_product_with_the_atoms(X):
    estimator = make().fit(X)
    codes = estimator.transform(X)
    np.testing.assert_allclose(estimator.inverse_transform(codes), codes @ estimator.components_)


def test_a_dictionary_learned_on_an_absent_device_encodes_on_the_cpu(X):
    """Pickles travel to machines without the GPU that made them."""
    estimator = make().fit(X)
    codes, score = estimator.transform(X), estimator.score(X)
    estimator.set_params(device="cuda:97")
    np.testing.assert_array_equal(estimator.transform(X), codes)
    np.testing.assert_allclose(estimator.inverse_transform(codes), codes @ estimator.components_)
    assert estimator.score(X) == score
    with pytest.raises(ValueError, match="'cuda:97'"):
        estimator.partial_fit(X)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "score"])
def test_an_unfitted_estimator_says_so(method, X):
    with pytest.raises(NotFittedError, match="PUDLEDictionaryLearning"):
        getattr(make(), method)(X)


# ---------------------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_in_give_tensors_out_on_their_device(dtype, device, X):
    rows = torch.tensor(X, dtype=dtype, device=device)
    estimator = make().fit(rows)
    assert isinstance(estimator.components_, np.ndarray)
    assert estimator.device_.partition(":")[0] == device
    codes = estimator.transform(rows)
    back = estimator.inverse_transform(codes)
    for tensor in (codes, back, make().fit_transform(rows)):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == dtype
        assert tensor.device.type == device
        assert not tensor.requires_grad
    assert type(estimator.score(rows)) is float


def test_tensors_and_arrays_of_the_same_numbers_learn_the_same(variant, X):
    tensors, arrays = make(**variant).fit(torch.tensor(X)), make(**variant).fit(X)
    np.testing.assert_array_equal(tensors.components_, arrays.components_)
    np.testing.assert_array_equal(tensors.transform(torch.tensor(X)).numpy(), arrays.transform(X))
    assert tensors.score(torch.tensor(X)) == arrays.score(X)


def test_tensors_are_not_written_to(X):
    rows = torch.tensor(X, requires_grad=True)
    estimator = make().fit(rows)
    estimator.partial_fit(rows).transform(rows)
    np.testing.assert_array_equal(rows.detach().numpy(), X)


@pytest.mark.gpu
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_gpu_learns_what_the_cpu_learns_and_the_same_every_time(options, X):
    options = options | dict(batch_size=16)
    cpu = make(device="cpu", **options).fit(X)
    first, second = (make(device="cuda", **options).fit(X) for _ in range(2))
    np.testing.assert_allclose(first.components_, second.components_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(first.components_, cpu.components_, rtol=0, atol=1e-6)
    assert first.device_ == "cuda:0"


@pytest.mark.gpu
def test_what_a_gpu_learned_encodes_without_one(X, monkeypatch):
    estimator = make(device="cuda").fit(X).partial_fit(X)
    codes = estimator.transform(X)
    stored = pickle.dumps(estimator)
    assert b"torch._utils" not in stored
    loaded = pickle.loads(stored).set_params(device="cpu")
    np.testing.assert_allclose(loaded.transform(X), codes, rtol=0, atol=1e-10)
    loaded.partial_fit(X)


# ---------------------------------------------------------------------------- bad input

BAD_PARAMETERS = {
    "no atoms": (dict(n_components=0), "n_components"),
    "fraction of atoms": (dict(n_components=2.5), "n_components"),
    "negative alpha": (dict(alpha=-1.0), "alpha"),
    "NaN alpha": (dict(alpha=np.nan), "alpha"),
    "unknown gradient": (dict(gradient="noodl"), "gradient"),
    "no unfoldings": (dict(n_unfoldings=0), "n_unfoldings"),
    "zero step": (dict(step_size=0.0), "step_size"),
    "decay of 0": (dict(lambda_decay=0.0), "lambda_decay"),
    "decay above 1": (dict(lambda_decay=1.1), "lambda_decay"),
    "one decay in a tuple": (dict(lambda_decay=(0.9,)), r"lambda_decay=\(0.9,\) .*pair"),
    "three decays": (dict(lambda_decay=(1.0, 0.9, 0.8)), "lambda_decay=.*pair"),
    "a decay above 1": (dict(lambda_decay=(1.1, 0.9)), "lambda_decay=.*pair"),
    "a decay of 0": (dict(lambda_decay=(1.0, 0.0)), "lambda_decay=.*pair"),
    "a decay in words": (dict(lambda_decay=("1", 0.9)), "lambda_decay=.*pair"),
    "unknown shrinkage": (dict(shrinkage="firm"), "shrinkage"),
    "unknown atom norm": (dict(atom_norm="l1"), "atom_norm"),
    "unknown optimizer": (dict(optimizer="lbfgs"), "optimizer"),
    "class that is no optimizer": (dict(optimizer=dict), "optimizer"),
    "optimizer that needs a closure": (dict(optimizer=torch.optim.LBFGS), "optimizer"),
    "unknown parameter": (dict(optimizer_params=dict(momentum=0.9)), "momentum"),
    "empty batches": (dict(batch_size=0), "batch_size"),
    "no epochs": (dict(max_iter=0), "max_iter"),
    "unknown initialisation": (dict(dict_init="pca"), "dict_init"),
    "unknown device": (dict(device="gpu"), r"Device 'gpu' .* pass 'auto' or one of \['cpu'"),
    "atoms of other length": (
        dict(dict_init=np.ones((6, 7))),
        r"dict_init has shape \(6, 7\), expected .*\(6, 8\)",
    ),
    "other number of atoms": (
        dict(dict_init=np.ones((5, 8))),
        r"dict_init has shape \(5, 8\), expected .*\(6, 8\)",
    ),
    "one atom": (dict(dict_init=np.ones(8)), "Expected 2D array, got 1D array"),
    "zero atom": (
        dict(dict_init=np.diag([1.0, 0, 1, 1, 1, 1, 1, 1])[:6]),
        r"dict_init has zero or non-finite atoms, in rows \[1\]",
    ),
    "non-finite atoms": (
        dict(dict_init=np.where(np.eye(6, 8), [[1], [1], [np.nan], [1], [np.inf], [1]], 0.0)),
        r"dict_init has zero or non-finite atoms, in rows \[2, 4\]",
    ),
    "atoms in words": (dict(dict_init=np.full((6, 8), "a")), "could not convert"),
    "converged hard codes": (
        dict(n_unfoldings=None, shrinkage="hard"),
        "Converged codes .*shrinkage='hard'.* Pass shrinkage='soft'",
    ),
    "converged codes with decay": (
        dict(transform_algorithm="lasso", lambda_decay=0.9),
        "Converged codes .*lambda_decay=0.9.* Pass .*lambda_decay=1",
    ),
    "converged codes with a pair": (
        dict(n_unfoldings=None, lambda_decay=(1.0, 0.9)),
        r"Converged codes .*lambda_decay=\(1.0, 0.9\)",
    ),
}

NAN, INF = np.eye(8), np.eye(8)
NAN[2, 3], INF[2, 3] = np.nan, np.inf

BAD_DATA = {
    "infinity": (INF, "infinity"),
    "infinite tensor": (torch.tensor(INF), "infinity"),
    "empty": (np.zeros((0, 8)), r"0 sample\(s\)"),
    "without features": (np.zeros((8, 0)), r"0 feature\(s\)"),
    "1-D": (np.ones(8), "Expected 2D array, got 1D array"),
    "3-D": (np.ones((2, 2, 8)), "Found array with dim 3"),
    "complex": (np.eye(8) * 1j, "Complex data not supported"),
    "sparse": (sparse.eye_array(8).tocsr(), "dense data is required"),
    "sparse tensor": (torch.eye(8).to_sparse(), "dense tensor is required"),
    "objects": (np.full((3, 8), {}, dtype=object), "dict"),
    "words": (np.full((3, 8), "a"), "could not convert string to float"),
    "None": (None, "Expected 2D array, got scalar array"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("params", "message"), BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
def test_bad_parameters_are_named_and_leave_no_trace(params, message, method, X):
    """By scikit-learn's convention `partial_fit` validates them at its first call."""
    fitted = [make(batch_size=16).fit(X)] if method == "fit" else []
    for estimator in (make(), *fitted):
        estimator.set_params(**params)
        before = copy.deepcopy(vars(estimator))
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(estimator, method)(X)
        assert_same(vars(estimator), before)


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "score"])
@pytest.mark.parametrize(("rows", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_are_named_and_leave_no_trace(rows, message, method, X):
    for estimator in (make(), make().fit(X)):
        before = copy.deepcopy(vars(estimator))
        if method in ("transform", "score") and "components_" not in before:
            continue
        with pytest.raises((ValueError, TypeError), match=message):
            getattr(estimator, method)(rows)
        assert_same(vars(estimator), before)


@pytest.mark.parametrize("method", ["partial_fit", "transform", "score"])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_a_wrong_number_of_features_is_named_and_leaves_no_trace(kind, method, X):
    estimator = make().fit(X)
    before = copy.deepcopy(vars(estimator))
    with pytest.raises(ValueError, match="X has 5 features, but .* is expecting 8 features"):
        getattr(estimator, method)(kind(X[:, :5]))
    assert_same(vars(estimator), before)


def test_a_wrong_number_of_codes_is_named(X):
    estimator = make(split_sign=True).fit(X)
    with pytest.raises(ValueError, match="Codes have 6 columns, .* returns 12"):
        estimator.inverse_transform(estimator.transform(X)[:, :6])


# ---------------------------------------------------------------------------- score


def test_score_is_a_number_of_python_and_at_most_one(variant, X):
    for dtype in (np.float32, np.float64):
        rows = X.astype(dtype)
        score = make(**variant).fit(rows).score(rows)
        assert type(score) is float
        assert score <= 1


def test_score_of_what_can_be_inferred_is_one():
    """Some features of a point in a known plane give away the others."""
    _, atoms = make_data(n_features=12, n_components=2)
    X = np.random.default_rng(0).normal(size=(30, 2)) @ atoms
    estimator = make(n_components=2, dict_init=atoms, alpha=1e-9, n_unfoldings=3000, max_iter=1)
    estimator.set_params(learning_rate=1e-12).fit(X)
    assert estimator.score(X) == pytest.approx(1, abs=1e-6)


def test_score_of_zero_codes_compares_zero_with_the_mean(X):
    estimator = make(alpha=1e3).fit(X)
    expected = 1 - (X**2).sum() / ((X - X.mean(0)) ** 2).sum()
    assert estimator.score(X) == pytest.approx(expected, rel=1e-12)


def test_score_does_not_depend_on_the_order_or_the_units_of_rows(X):
    estimator = make().fit(X)
    assert estimator.score(X[::-1]) == pytest.approx(estimator.score(X), rel=1e-12)
    scaled = make().fit(1e3 * X)
    assert scaled.score(1e3 * X) == pytest.approx(estimator.score(X), rel=1e-8)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -1e8])
@pytest.mark.parametrize("n_samples", [1, 7, 60])
def test_score_of_constant_data_is_zero(n_samples, value, X):
    """Also where the mean of equal numbers is rounded to another one."""
    estimator = make().fit(X)
    assert estimator.score(np.full((n_samples, 8), value)) == 0.0


def test_score_of_one_feature_is_that_of_the_reconstruction(X):
    x = X[:, :1]
    estimator = make(n_components=2).fit(x)
    error = ((x - estimator.inverse_transform(estimator.transform(x))) ** 2).sum()
    expected = 1 - error / ((x - x.mean()) ** 2).sum()
    assert estimator.score(x) == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------- scikit-learn


@pytest.mark.draws_from_numpy
def test_a_pipeline_is_searched_over_alpha_in_two_processes():
    digits, labels = load_digits(return_X_y=True)
    digits, labels = digits[:200], labels[:200]
    dictionary = make(n_components=20, max_iter=3, batch_size=50, learning_rate=0.01)
    pipeline = make_pipeline(StandardScaler(), dictionary, LogisticRegression(max_iter=500))
    search = GridSearchCV(
        pipeline, {"pudledictionarylearning__alpha": ["auto", 0.5, 1e4]}, cv=2, n_jobs=2
    )
    search.fit(digits, labels)
    scores = search.cv_results_["mean_test_score"]
    assert scores[:2].min() > 0.5
    assert scores[2] < 0.2  # no codes, no digits
    assert search.best_index_ != 2


def test_a_clone_has_the_parameters_and_nothing_else(X, atoms):
    estimator = make(dict_init=atoms, optimizer=torch.optim.RMSprop).fit(X)
    cloned = clone(estimator)
    assert not hasattr(cloned, "components_")
    np.testing.assert_array_equal(cloned.fit(X).components_, estimator.components_)


def test_verbose_training_prints_a_line_an_epoch(X, capsys):
    estimator = make(verbose=1, max_iter=3, batch_size=16).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for number, (line, loss) in enumerate(zip(lines, estimator.loss_curve_, strict=True), start=1):
        assert line.startswith(f"epoch {number}/3  loss {loss:.6g}  ")
        assert "updates/s" in line
    make(verbose=0).fit(X)
    assert not capsys.readouterr().out


# ---------------------------------------------------------------------------- callbacks


class Callback:
    """Collects what it is told after each epoch, and may ask to stop."""

    def __init__(self, stop_after=None):
        self.stop_after, self.fitted, self.events = stop_after, [], []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.events.append(f"end {context.task_name}")
        if context.task_name == "epoch":
            self.fitted.append(fitted_estimator)
            return len(self.fitted) == self.stop_after
        return False


def test_a_callback_is_told_of_fit_and_every_epoch(X):
    callback = Callback()
    make(max_iter=2).set_callbacks(callback).fit(X)
    epoch = ["begin epoch", "end epoch"]
    assert callback.events == ["setup", "begin fit", *epoch, *epoch, "end fit", "teardown"]


def test_a_callback_sees_the_estimator_as_if_training_had_ended_there(X):
    callback = Callback()
    make(max_iter=3, batch_size=len(X)).set_callbacks(callback).fit(X)
    for n_epochs, seen in enumerate(callback.fitted, start=1):
        fitted = make(max_iter=n_epochs, batch_size=len(X)).fit(X)
        np.testing.assert_array_equal(seen.components_, fitted.components_)
        np.testing.assert_array_equal(seen.transform(X), fitted.transform(X))


def test_a_callback_can_stop_training(X):
    """Which is no lack of convergence."""
    estimator = make(max_iter=10, tol=1e-9, lambda_decay=(1.0, 0.9))
    estimator.set_callbacks(Callback(stop_after=2)).fit(X)
    assert estimator.n_iter_ == 2
    assert estimator.lambda_decay_ == pytest.approx(1.0 - 0.1 / 9)  # the stage it had come to


def test_a_callback_is_torn_down_after_an_error(X):
    callback = Callback()
    with pytest.raises(ValueError, match="stopped being finite"):
        make(**ABSURD).set_callbacks(callback).fit(X)
    assert callback.events[-1] == "teardown"


def test_without_a_callback_nothing_is_evaluated_between_epochs(X, monkeypatch):
    calls = []
    evaluate = GradientLearner._attributes

    def spy(self, *args):
        calls.append(self)
        return evaluate(self, *args)

    monkeypatch.setattr(GradientLearner, "_attributes", spy)
    make(max_iter=5).fit(X)
    assert len(calls) == 1


def test_the_default_device_of_torch_does_not_matter(variant, X):
    """Nothing is made there: on the device "meta" numbers do not exist."""
    options = variant | dict(batch_size=16, device="cpu")
    expected = make(**options).fit(X)
    with torch.device("meta"):
        found = make(**options).fit(X)
        codes, score = found.transform(X), found.score(X)
    assert_same(vars(found), vars(expected))
    np.testing.assert_array_equal(codes, expected.transform(X))
    assert score == expected.score(X)


def test_a_tensor_is_an_initial_dictionary_too(X, atoms):
    given = torch.tensor(atoms, requires_grad=True)
    found, expected = make(dict_init=given).fit(X), make(dict_init=atoms).fit(X)
    np.testing.assert_array_equal(found.components_, expected.components_)


def test_another_fit_leaves_nothing_of_the_fit_before(X):
    estimator = make().fit(pd.DataFrame(X, columns=[f"x{i}" for i in range(8)]))
    assert estimator.fit(X[:, :5]).n_features_in_ == 5
    assert not hasattr(estimator, "feature_names_in_")


def test_a_data_error_on_the_way_leaves_a_fitted_estimator_as_it_was(X):
    class Breaks:
        def __iter__(self):
            yield from (X[:20, :5], X[20:40, :5], X[40:, :4])

    estimator = make().fit(X)
    before = copy.deepcopy({k: v for k, v in vars(estimator).items() if k.endswith("_")})
    with pytest.raises(ValueError, match="Batch 2 of X has 4 features"):
        estimator.fit(Breaks())
    assert_same({k: v for k, v in vars(estimator).items() if k.endswith("_")}, before)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(transform_algorithm="laso"), "transform_algorithm"),
        (dict(transform_alpha=-1.0), "transform_alpha"),
        (dict(transform_algorithm="lasso", shrinkage="hard"), "Converged codes .*'hard'"),
        (dict(transform_algorithm="lasso", lambda_decay=0.9), "Converged codes .*0.9"),
    ],
)
def test_parameters_set_after_fit_are_checked_too(changed, message, X):
    kept = {name: changed[name] for name in ("shrinkage", "lambda_decay") if name in changed}
    learner = make(**kept).fit(X)
    with pytest.raises(ValueError, match=message):
        learner.set_params(**changed).transform(X)


def test_partial_fit_replaces_atoms_that_are_not_used(X):
    """As `fit` does; after ten samples for each atom, so that small batches say nothing."""
    start = np.vstack([X[:5], np.full((1, X.shape[1]), 1e-9)])
    learner = make(dict_init=start, atom_norm="ball", alpha=0.3)
    learner.partial_fit(X[:40])
    assert np.linalg.norm(learner.components_[5]) < 0.1
    learner.partial_fit(X[40:])
    assert np.linalg.norm(learner.components_[5]) > 0.9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", np.int64(5)),
        ("alpha", np.float64(0.3)),
        ("alpha", np.float32(0.3)),
        ("n_unfoldings", np.int32(3)),
        ("step_size", np.float32(0.1)),
        ("lambda_decay", np.float64(0.9)),
        ("lambda_decay", (np.float64(1.0), np.float32(0.5))),
        ("positive_code", np.bool_(True)),
        ("positive_dict", np.bool_(True)),
        ("learning_rate", np.float64(0.01)),
        ("batch_size", np.int64(8)),
        ("max_iter", np.int64(2)),
        ("tol", np.float64(0.9)),
        ("n_iter_no_change", np.int64(2)),
        ("transform_alpha", np.float64(0.2)),
        ("split_sign", np.bool_(True)),
        ("random_state", np.int64(0)),
        ("verbose", np.int64(0)),
    ],
)
def test_every_parameter_may_be_a_scalar_of_numpy(name, value, X):
    """As it comes out of ``np.linspace`` in a grid of a search; fitted attributes are Python's."""
    few = dict(n_iter_no_change=1)
    learner = make(**few | {name: value}).fit(X)
    value = tuple(map(float, value)) if isinstance(value, tuple) else value.item()
    plain = make(**few | {name: value})
    np.testing.assert_array_equal(learner.components_, plain.fit(X).components_)
    assert type(learner.alpha_) is type(learner.step_size_) is type(learner.lambda_decay_) is float


# ---------------------------------------------------------------------------- orthogonal pursuit


@pytest.mark.parametrize("params", [{"n_nonzero_coefs": 2}, {"tol": 0.05}, {}])
def test_codes_of_a_pursuit_are_those_of_scikit_learn(params, X):
    named = {f"transform_{name}": value for name, value in params.items()}
    learner = make(transform_algorithm="omp", **named).fit(X)
    D, squares = learner.components_, np.square(X).sum(1)
    expected = orthogonal_mp_gram(
        D @ D.T, D @ X.T, norms_squared=squares, **params or {"n_nonzero_coefs": 1}
    )
    left_alone = squares <= params.get("tol", 0)  # where scikit-learn takes one atom all the same
    expected[:, left_alone] = 0
    np.testing.assert_allclose(learner.transform(X), expected.T, atol=1e-10)


def test_a_pursuit_knows_signs_and_gaps(X):
    learner = make(transform_algorithm="omp", positive_code=True, transform_n_nonzero_coefs=3)
    codes = learner.fit(X).transform(X)
    assert codes.min() >= 0
    assert (codes != 0).sum(1).max() <= 3
    gaps = X.copy()
    gaps[:, 0] = np.nan
    visible = solve_omp(
        torch.tensor(learner.components_[:, 1:]),
        torch.tensor(X[:, 1:]),
        n_nonzero_coefs=3,
        positive=True,
    )
    np.testing.assert_allclose(learner.transform(gaps), visible.numpy(), atol=1e-10)


# ---------------------------------------------------------------------------- without a fit


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_components_make_a_learner_that_transforms_as_the_fitted_one(options, X):
    fitted = make(**options).fit(X)
    params = fitted.get_params() | {"alpha": fitted.alpha_}
    del params["n_components"]
    learner = PUDLEDictionaryLearning.from_components(fitted.components_, **params)
    np.testing.assert_array_equal(learner.components_, fitted.components_)
    np.testing.assert_array_equal(learner.transform(X), fitted.transform(X))
    assert learner.score(X) == fitted.score(X)
    assert np.isfinite(learner.partial_fit(X).components_).all()


def test_components_alone_are_enough_for_a_pursuit_and_for_nothing_else(X, atoms):
    learner = PUDLEDictionaryLearning.from_components(2 * atoms, transform_algorithm="omp")
    np.testing.assert_array_equal(learner.components_, 2 * atoms)
    assert learner.transform(X).shape == (len(X), len(atoms))
    with pytest.raises(ValueError, match="alpha='auto'.*pass a number"):
        PUDLEDictionaryLearning.from_components(atoms)
