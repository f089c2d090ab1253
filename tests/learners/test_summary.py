"""What `summary` says is what the fit has decided."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    PUDLERegressor,
    SporcoDictionaryLearning,
)
from skpudle.datasets import make_dictionary_data


@pytest.fixture(scope="module")
def rows():
    return make_dictionary_data(400, 12, 10, 2, snr_db=30, random_state=0)[0]


def test_a_fit_says_its_decisions(rows):
    offset = np.full(12, 30.0)
    learner = PUDLEDictionaryLearning(10, random_state=0).fit(rows + offset)
    said = learner.summary(rows + offset)
    assert (
        "400 rows of 12 features\n  10 atoms, set by you\n  baseline: root mean square"
        in said
    )
    assert f"penalty of the search: {learner.search_alpha_:.3g}" in said
    assert f"{learner.penalty_path_.score.max():.3f} of their energy" in said
    codes = learner.transform(rows + offset)
    assert f"by {(codes != 0).sum(1).mean():.1f} codes a row" in said
    assert "ended by search" in said
    assert "constant" not in said
    odd = np.stack([np.zeros(12), np.full(12, 7.0), rows[0]])
    assert "2 rows are zero or constant" in learner.summary(odd)


def test_a_fit_that_prints_ends_with_its_summary(rows, capsys):
    learner = PUDLEDictionaryLearning(10, random_state=0, verbose=1).fit(rows)
    assert capsys.readouterr().out.endswith(f"{learner.summary()}\n")


def test_independent_columns_are_said_to_share_nothing():
    x = np.random.default_rng(0).standard_normal((300, 8))
    said = PUDLEDictionaryLearning(8, random_state=0).fit(x).summary()
    assert "baseline: none" in said
    assert "explain nothing that columns share" in said


def test_a_chosen_number_names_the_numbers_that_were_tried(rows):
    learner = PUDLEDictionaryLearning("auto", random_state=0).fit(rows)
    said = learner.summary()
    assert f"{learner.n_components_} atoms, chosen by hidden entries: " in said
    assert f"{learner.size_path_.n_components.max()} explain " in said


def test_before_a_fit_and_after_a_part(rows):
    with pytest.raises(NotFittedError):
        PUDLEDictionaryLearning(5).summary()
    assert (
        "no rows" in PUDLEDictionaryLearning.from_components(rows, alpha=1.0).summary()
    )
    said = PUDLEDictionaryLearning(5, random_state=0).partial_fit(rows).summary()
    assert "ended" not in said
    assert "400 rows" in said


def test_signals_say_what_was_taken_off_them(capsys):
    signals = 0.05 * np.random.default_rng(0).standard_normal((6, 400)) - 2
    signals[:, 50:66] += np.hanning(16)
    given = dict(atom_shape=16, random_state=0, verbose=1, detrend="slow")
    said = ConvPUDLEDictionaryLearning(1, **given).fit(signals).summary()
    assert (
        "1 atom of 16 samples\n  baseline of channels: [-2.]; drift: slower than"
        in said
    )
    assert capsys.readouterr().out.endswith(f"{said}\n")


def test_images_say_what_their_codes_explain():
    signals = np.zeros((6, 40, 1))
    signals[:, 5:9, 0] = signals[:, 20:24, 0] = [1, 2, 2, 1]
    learner = ConvPUDLEDictionaryLearning(
        1, atom_shape=4, alpha=1e-3, debias=0, detrend=None, random_state=0
    ).fit(signals)
    said = learner.summary(signals)
    codes = learner.transform(signals)
    left = np.square(learner.inverse_transform(codes) - signals).sum()
    n_codes = np.count_nonzero(codes) / 6
    explained = 1 - left / np.square(signals).sum()
    assert f"{explained:.3f} of the energy" in said
    assert f"by {n_codes:.1f} codes a signal" in said
    assert "energy" not in learner.summary()


def test_denoisers_say_what_trained_them():
    images = np.random.default_rng(0).random((3, 12, 12))
    learner = ConvDenoiser(
        2, atom_shape=(3, 3), n_unfoldings=2, noise_std=0.1, max_iter=3, random_state=0
    )
    said = learner.set_params(tol=None).fit(images).summary(images)
    assert "2 atoms of 3 x 3 and 1 channel, 2 unfoldings" in said
    assert "noise of training: standard deviation 0.1" in said
    assert f"{learner.score(images):.2f} dB" in said
    assert "3 epochs of 3 updates in all, ended by max_iter" in said


def test_counts_say_what_was_chosen_and_explained(capsys):
    rng = np.random.default_rng(0)
    spectra, amounts = (
        rng.dirichlet(np.full(20, 0.2), 3),
        rng.gamma(1.0, 200.0, (60, 3)),
    )
    x = rng.poisson(amounts @ spectra)
    learner = PoissonNMF("auto", dispersion=None, random_state=0, verbose=1).fit(x)
    assert capsys.readouterr().out.endswith(f"{learner.summary()}\n")
    said = learner.summary(x)
    assert f"{learner.n_components_} atoms, chosen by hidden entries: " in said
    assert f"prior: {learner.alpha_:.3g} pseudo-events" in said
    assert "dispersion: 0 beyond Poisson" in said
    assert "explained deviance 1.000 by " in PoissonNMF.from_components(
        spectra
    ).summary(amounts @ spectra)


LEARNERS = [
    PUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    CountDictionaryLearning,
    PUDLEClassifier,
    PUDLERegressor,
    SporcoDictionaryLearning,
    PoissonNMF,
]


@pytest.mark.parametrize("kind", LEARNERS)
def test_every_learner_says_its_atoms_its_penalty_and_its_rows(kind):
    if kind is SporcoDictionaryLearning:
        pytest.importorskip("sporco")
    rng = np.random.default_rng(0)
    X = rng.poisson(20.0, (80, 6)).astype(float)
    learner = kind(3, max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = learner.fit(X, rng.integers(2, size=80)).summary(X)
    assert "3 atoms, set by you" in said
    assert f"{np.max(learner.alpha_):.3g}" in said
    assert " codes a row" in said
