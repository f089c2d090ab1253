"""The penalty of a search follows the data, and says what it tried."""

import warnings

import numpy as np
import pytest
from sklearn.decomposition import sparse_encode
from sklearn.model_selection import GridSearchCV

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import recovery_rate


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def pulses(rng, n=20, length=120, noise=0.1):
    """Return signals of one pulse at random places, and the pulse."""
    pulse = np.hanning(12) * np.linspace(1, -1, 12)
    signals = np.zeros((n, length))
    for signal in signals:
        for start in rng.choice(length - 12, 3, replace=False):
            signal[start : start + 12] += rng.uniform(0.5, 1.5) * pulse
    return signals + noise * signals.std() * rng.normal(size=signals.shape), pulse


@pytest.fixture(scope="module")
def noisy():
    return make_dictionary_data(6000, 20, 25, n_nonzero=3, snr_db=-1, random_state=0)[
        :2
    ]


@pytest.fixture(scope="module")
def learner(noisy):
    return PUDLEDictionaryLearning(25, random_state=0).fit(noisy[0][:1000])


def test_much_noise_calls_for_a_larger_penalty(noisy):
    """At the usual penalty atoms fit the noise."""
    X, truth = noisy
    learner = PUDLEDictionaryLearning(25, random_state=0).fit(X)
    usual = learner.penalty_path_.alpha[0]
    fixed = PUDLEDictionaryLearning(25, alpha=usual, random_state=0).fit(X)
    assert learner.search_alpha_ > 2 * usual
    assert recovery_rate(truth, learner.components_) > 1.5 * recovery_rate(
        truth, fixed.components_
    )


def test_the_path_begins_at_the_usual_penalty_and_has_the_chosen_one(noisy, learner):
    path, norm = (
        learner.penalty_path_,
        np.sqrt(np.square(noisy[0][:1000]).sum(1).mean()),
    )
    assert path.alpha[0] == pytest.approx(0.07 * norm)
    assert np.isclose(path.alpha, learner.search_alpha_).any()
    assert path.alpha.shape == path.score.shape == path.unbiased.shape
    assert path.score.max() <= 1


def test_the_number_of_atoms_does_not_drown_in_noise():
    """At the usual penalty spare atoms would fit noise, and true ones be missed."""
    X = make_dictionary_data(4000, 20, 24, n_nonzero=2, snr_db=3, random_state=1)[0]
    assert (
        20 <= PUDLEDictionaryLearning("auto", random_state=0).fit(X).n_components_ <= 28
    )


# ------------------------------------------------------------------ images and signals


def test_hidden_pixels_are_no_trap_for_a_search_over_penalties(rng):
    """The error of reconstructing the input falls with the penalty, that of hidden pixels not."""
    signals, _ = pulses(rng, noise=1.0)
    usual = (
        ConvPUDLEDictionaryLearning(1, atom_shape=12, random_state=0)
        .fit(signals)
        .search_alpha_
    )
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=12, random_state=0)
    search = GridSearchCV(learner, {"alpha": usual * np.array([0.01, 0.1, 1.0])}, cv=2)
    with warnings.catch_warnings():  # codes at the smallest penalty may not be solved
        warnings.filterwarnings("ignore", "The codes of")
        search.fit(signals)
    assert search.best_params_["alpha"] > 0.05 * usual
    assert search.best_score_ <= 1


def test_noise_lifts_the_penalty_of_signals(rng):
    """Correlations of noise with an atom stay below the universal threshold."""
    signals, pulse = pulses(rng, n=40, noise=2.0)
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=12, random_state=0).fit(signals)
    noise = np.median(np.abs(np.diff(signals, axis=1))) / 0.6745 / np.sqrt(2)
    assert learner.search_alpha_ > 0.8 * noise * np.sqrt(2 * np.log(signals.size))
    atom = learner.components_[0] / np.linalg.norm(learner.components_[0])
    shifts = np.correlate(np.pad(pulse / np.linalg.norm(pulse), 12), atom, "valid")
    assert np.abs(shifts).max() > 0.9


def lasso_of_copies(learner, X):
    """Return scikit-learn's lasso of images by all copies of a learner's atoms."""
    shape = learner.transform(X).shape
    units = np.eye(np.prod(shape[1:])).reshape(-1, *shape[1:])
    copies = learner.inverse_transform(units) - learner.intercept_
    rows = (X - learner.intercept_).reshape(len(X), -1)
    codes = sparse_encode(
        rows,
        copies.reshape(len(units), -1),
        algorithm="lasso_cd",
        alpha=learner.alpha_,
        max_iter=20_000,
    )
    return codes.reshape(shape)


@pytest.mark.draws_from_numpy  # scikit-learn's lasso has no random_state here
@pytest.mark.parametrize("kind", ["signals", "images"])
def test_codes_of_signals_are_at_all_places(kind, rng):
    """A convolution is a dictionary of all copies of its atoms, and its codes are their lasso."""
    X, _ = pulses(rng)
    learner = ConvPUDLEDictionaryLearning(1, atom_shape=12, debias=0, random_state=0)
    shape = (20, 109)
    if kind == "images":
        X = X[:, :72].reshape(20, 6, 12)
        learner.set_params(n_components=2, atom_shape=(3, 4), stride=1)
        shape = (20, 4, 9, 2)
    codes = learner.fit(X).transform(X)
    assert codes.shape == shape
    np.testing.assert_allclose(codes, lasso_of_copies(learner, X), atol=1e-3)
    assert np.abs(codes).max() > 0.1
