"""A consensus of fits: what they agree on, in any order and with any sign."""

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import NMF, PCA, FastICA

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import atom_coherence, dictionary_stability
from skpudle.plotting import StabilityDisplay


class Given(TransformerMixin, BaseEstimator):
    """Has given atoms in an order and with signs that it draws, and outliers among them."""

    def __init__(self, atoms, n_outliers=0, random_state=None):
        self.atoms, self.n_outliers, self.random_state = atoms, n_outliers, random_state

    def fit(self, X, y=None):
        rng = np.random.default_rng(self.random_state)
        atoms = self.atoms * rng.choice([-1, 1], (len(self.atoms), 1))
        wrong = rng.permutation(len(atoms))[: self.n_outliers]
        atoms[wrong] = rng.standard_normal((len(wrong), atoms.shape[1]))
        self.components_ = rng.permutation(atoms)
        return self

    def transform(self, X):
        return X @ self.components_.T


def planted():
    return make_dictionary_data(600, 16, 12, n_nonzero=2, snr_db=20, random_state=0)[:2]


ATOMS = 3 * np.random.default_rng(0).standard_normal((6, 30))
X_GIVEN = np.zeros((4, 30))


def test_order_and_sign_are_nothing_to_it():
    consensus = ConsensusDictionary(Given(ATOMS), 7, random_state=0).fit(X_GIVEN)
    np.testing.assert_allclose(consensus.stability_, 1)
    np.testing.assert_array_equal(consensus.n_agreeing_, 7)
    np.testing.assert_allclose(atom_coherence(consensus.components_, ATOMS), 1)
    norms = np.sort(np.linalg.norm(consensus.components_, axis=1))
    np.testing.assert_allclose(norms, np.sort(np.linalg.norm(ATOMS, axis=1)))


def test_outliers_do_not_count():
    """One atom of six is random in each replicate: all six are found, none is moved."""
    model = Given(ATOMS, n_outliers=1)
    consensus = ConsensusDictionary(model, 12, random_state=0).fit(X_GIVEN)
    np.testing.assert_allclose(atom_coherence(consensus.components_, ATOMS), 1)
    assert consensus.n_agreeing_.sum() == 12 * 5
    assert (consensus.stability_ < 1).any()


def test_mean_stability_is_that_of_the_metric():
    """Where all replicates match each other as they match the reference."""
    X, _ = planted()
    learner = PUDLEDictionaryLearning(12)
    consensus = ConsensusDictionary(learner, 4, resample="halves", random_state=0).fit(
        X
    )
    expected = dictionary_stability(consensus.replicates_).stability
    assert consensus.stability_.mean() == pytest.approx(expected)


def test_identical_replicates_are_their_consensus_and_a_warning():
    """Principal components leave nothing to a seed."""
    X, learner = planted()[0], PCA(4, svd_solver="full")
    model = ConsensusDictionary(learner, 3, random_state=0)
    with pytest.warns(UserWarning, match="Pass resample='bootstrap'"):
        model.fit(X)
    np.testing.assert_allclose(model.stability_, 1)
    np.testing.assert_allclose(
        model.components_, learner.fit(X).components_, atol=1e-12
    )
    np.testing.assert_allclose(model.transform(X), learner.transform(X), atol=1e-9)


@pytest.mark.parametrize("resample", ["seeds", "bootstrap"])
def test_planted_atoms_are_found_and_stable(resample):
    X, atoms = planted()
    learner = PUDLEDictionaryLearning(12)
    consensus = ConsensusDictionary(learner, 5, resample=resample, random_state=0).fit(
        X
    )
    assert atom_coherence(consensus.components_, atoms).min() > 0.99
    assert consensus.stability_.min() > 0.98
    assert consensus.score(X) == pytest.approx(consensus.estimator_.score(X))


def test_learned_encoders_belong_to_the_consensus():
    """It explains about as much as a single fit."""
    X, how = planted()[0], dict(n_unfoldings=3, max_iter=5, separate_atoms="unfolding")
    learner = PUDLEDictionaryLearning(12, random_state=0, **how)
    consensus = ConsensusDictionary(
        learner, 3, resample="bootstrap", random_state=0
    ).fit(X)

    def unexplained(model):
        left = np.square(X - model.inverse_transform(model.transform(X))).sum()
        return left / np.square(X - X.mean(axis=0)).sum()

    assert unexplained(consensus) < unexplained(learner.fit(X)) + 0.1
    assert consensus.components_ is consensus.estimator_.components_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    "estimator",
    [NMF(4, init="random", max_iter=50), FastICA(4, whiten="unit-variance")],
)
def test_estimators_with_components(estimator):
    """Codes are those of the estimator with the consensus as its components."""
    X = np.abs(planted()[0])
    consensus = ConsensusDictionary(estimator, 4, random_state=0).fit(X)
    assert consensus.components_.shape == (4, 16)
    codes = consensus.transform(X)
    assert codes.shape == (len(X), 4)
    assert list(consensus.get_feature_names_out()) == [
        f"consensusdictionary{i}" for i in range(4)
    ]
    if isinstance(estimator, NMF):
        assert (consensus.components_ >= 0).all()
    if isinstance(estimator, FastICA):
        expected = (X - X.mean(axis=0)) @ consensus.components_.T
        np.testing.assert_allclose(codes, expected, atol=1e-9)
        restored = consensus.inverse_transform(codes)
        np.testing.assert_allclose(consensus.transform(restored), codes, atol=1e-9)


def test_the_display_has_the_most_stable_atoms_first():
    consensus = ConsensusDictionary(Given(ATOMS, n_outliers=2), 5, random_state=0).fit(
        X_GIVEN
    )
    display = StabilityDisplay.from_estimator(consensus)
    drawn = display.line_.get_ydata()
    np.testing.assert_array_equal(drawn, np.sort(consensus.stability_)[::-1])
    agreeing = (
        consensus.n_agreeing_[np.argsort(-consensus.stability_, kind="stable")] / 5
    )
    np.testing.assert_array_equal(display.right_line_.get_ydata(), agreeing)


def test_a_seed_gives_the_same_bits_on_any_number_of_jobs():
    X, _ = planted()
    learner = PUDLEDictionaryLearning(12)
    model = ConsensusDictionary(learner, 3, resample="bootstrap", random_state=0)
    first = clone(model).fit(X)
    with parallel_config(backend="threading"):
        second = clone(model).set_params(n_jobs=2).fit(X)
    np.testing.assert_array_equal(first.components_, second.components_)
