"""What a user of `PUDLEDictionaryLearning` can rely on in training."""

import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from small import ABSURD, OPTIMIZERS, assert_same, make, make_data, perturbed

from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode
from skpudle.encoding._unfold import default_step

# ---------------------------------------------------------------------------- training


def test_training_approaches_the_dictionary_that_made_the_data(gradient):
    """From a perturbed truth, measured by the sine of the angle between atoms."""
    X, atoms = make_data(n_samples=400, n_features=16, n_components=8)
    start = perturbed(atoms)
    options = dict(
        n_components=8, n_unfoldings=20, alpha=0.05, max_iter=20, batch_size=50
    )
    estimator = make(
        gradient=gradient, dict_init=start, learning_rate=3e-3, **options
    ).fit(X)

    def distance(learned):
        learned = learned / np.linalg.norm(learned, axis=1, keepdims=True)
        return np.sqrt(1 - (learned * atoms).sum(1) ** 2).max()

    assert distance(estimator.components_) < 0.8 * distance(start)


def test_a_random_state_determines_every_bit(variant, X):
    options = variant | dict(batch_size=16)
    first, second = make(**options).fit(X), make(**options).fit(X)
    assert_same(vars(first), vars(second))
    other = make(**(options | {"random_state": 1}))
    assert not np.array_equal(other.fit(X).components_, first.components_)


def test_float32_and_float64_learn_the_same(X):
    double, single = make().fit(X), make().fit(X.astype(np.float32))
    assert single.components_.dtype == np.float32
    reconstructions = [
        estimator.inverse_transform(
            estimator.transform(X.astype(estimator.components_.dtype))
        )
        for estimator in (double, single)
    ]
    np.testing.assert_allclose(*reconstructions, rtol=0, atol=1e-4)


def test_a_fitted_estimator_holds_no_tensors(variant, X):
    """But in the record for `partial_fit`, whose tensors are on the CPU."""
    estimator = make(**variant).fit(torch.tensor(X)).partial_fit(torch.tensor(X))
    fitted = {
        name: value for name, value in vars(estimator).items() if name.endswith("_")
    }
    assert b"torch" not in pickle.dumps(fitted)
    assert {"n_iter_", "n_steps_", "n_components_"} <= {
        name for name, value in fitted.items() if type(value) is int
    }
    assert type(estimator.alpha_) is type(estimator.step_size_) is float
    assert estimator.device_ == "cpu"


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


@pytest.mark.parametrize(
    "given",
    [np.ndarray.tolist, np.asfortranarray, torch.tensor, pd.DataFrame, np.float32],
)
def test_a_given_dictionary_may_be_any_array_like(given, X, atoms):
    """Training starts there, scaled to the constraint; the array itself is left alone."""
    start = given(3 * atoms)
    actual = make(dict_init=start, learning_rate=1e-12, max_iter=1).fit(X).components_
    np.testing.assert_allclose(actual, atoms, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(start), np.asarray(given(3 * atoms)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_gradient_mode_of_the_caller_does_not_matter(mode, gradient, X):
    expected = make(gradient=gradient).fit(X).partial_fit(X)
    with mode():
        actual = make(gradient=gradient).fit(X).partial_fit(X)
        codes = actual.transform(X)
    np.testing.assert_array_equal(actual.components_, expected.components_)
    np.testing.assert_array_equal(codes, expected.transform(X))


# ---------------------------------------------------------------------------- alpha and step


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

    monkeypatch.setattr("skpudle._fit.encoders.encode", spy)
    return collected


@pytest.mark.parametrize("max_iter", [5, 10])
def test_a_pair_of_decays_is_a_staircase_of_ten_equal_parts(max_iter, decays, X):
    """From the first to the last value, counted in updates: four an epoch."""
    estimator = make(lambda_decay=(1.0, 0.55), max_iter=max_iter, batch_size=16).fit(X)
    expected = np.repeat(np.linspace(1.0, 0.55, 10), 4 * max_iter // 10)
    np.testing.assert_allclose(decays, expected, rtol=1e-12)
    assert estimator.lambda_decay_ == pytest.approx(0.55, rel=1e-12)


def test_a_pair_of_decays_keeps_early_stopping_off_before_its_last_stage(X):
    """The objective stalls at once, since nothing moves, and may stop training only there."""
    options = dict(learning_rate=1e-12, batch_size=16, max_iter=100, tol=1e-2)
    assert make(**options).fit(X).n_iter_ < 10
    estimator = make(lambda_decay=(1.0, 0.9), **options).fit(X)
    assert 90 <= estimator.n_iter_ < 100
    assert estimator.lambda_decay_ == pytest.approx(0.9, rel=1e-12)


# ---------------------------------------------------------------------------- stopping


def test_warnings_point_at_the_line_that_called_fit_and_say_what_to_change(X):
    """Both of the step, before and after training, and that of convergence."""
    estimator = make(step_size=3.0, n_unfoldings=1, tol=1e-12, max_iter=3)
    with pytest.warns((RuntimeWarning, ConvergenceWarning)) as caught:
        estimator.fit(X)
    assert {warning.category for warning in caught} == {
        RuntimeWarning,
        ConvergenceWarning,
    }
    assert {warning.filename for warning in caught} == {__file__}
    said = "max_iter=3 epochs, before it converged. Raise max_iter, or tol (now 1e-12"
    assert any(said in str(warning.message) for warning in caught)


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
    # one small step away from the sample that the first atoms reconstruct worst
    codes = make(dict_init=atoms, max_iter=1, learning_rate=1e-300).fit(X).transform(X)
    worst = X[np.square(X - codes @ atoms).sum(1).argmax()]
    assert worst @ twice.components_[5] > 0.99 * np.linalg.norm(worst)


# ---------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("batch_size", [16, 60])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_divergence_raises_with_the_update_and_the_parameters_to_change(
    method, batch_size, X
):
    """Also of the only update of an epoch, after which no loss is computed."""
    estimator = make(
        **ABSURD, batch_size=batch_size, max_iter=1 if batch_size == 60 else 4
    )
    with pytest.raises(ValueError, match=r"at update \d+\. .*\(learning_rate,"):
        getattr(estimator, method)(X)
    assert np.isfinite(estimator.components_).all()
    assert np.isfinite(estimator.transform(X)).all()
    assert method == "partial_fit" or estimator.ended_by_ == "divergence"


# ---------------------------------------------------------------------------- partial_fit


def test_partial_fit_is_one_pass_over_batches_in_order(X, atoms):
    """Cut by the estimator or by hand; sgd and numbers leave nothing to the first data seen."""
    options = dict(optimizer=partial(torch.optim.SGD, momentum=0.9), alpha=0.1)
    options["dict_init"] = perturbed(atoms)
    whole = make(batch_size=16, **options).partial_fit(X)
    assert whole.n_steps_ == 4
    assert whole.n_iter_ == 1
    cut = make(**options)
    for start in range(0, len(X), 16):
        cut.partial_fit(X[start : start + 16])
    np.testing.assert_array_equal(cut.components_, whole.components_)
    assert cut.n_steps_ == 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
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


def test_partial_fit_goes_on_after_fit(X):
    """With the dictionary, the moments and the alpha that fit ended with."""
    options = dict(batch_size=len(X))
    estimator = make(max_iter=3, **options).fit(X).partial_fit(X)
    np.testing.assert_array_equal(
        estimator.components_, make(max_iter=4, **options).fit(X).components_
    )
