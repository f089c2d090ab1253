"""NOODL: the encoder of PUDLE with hard shrinkage, and a sign gradient."""

import numpy as np
import pytest

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary


@pytest.fixture
def problem():
    """Return true atoms (80, 64), atoms near them, and 800 samples that use 3 of 80 atoms."""
    x, atoms, _ = make_dictionary_data(800, 64, 80, 3, random_state=0)
    initial = perturb_dictionary(atoms, 0.15, random_state=1)
    return atoms, initial / np.linalg.norm(initial, axis=1, keepdims=True), x


def hard_thresholding(x, atoms, *, threshold, step_size, n_unfoldings, initial_threshold=None):
    """Encode by the loop, as it is written in the paper."""

    def shrink(v, level):
        return np.where(np.abs(v) >= level, v, 0)

    z = np.zeros((len(x), len(atoms)))
    if initial_threshold is not None:
        z = shrink(x @ atoms.T, initial_threshold)
    for _ in range(n_unfoldings):
        z = shrink(z + step_size * (x - z @ atoms) @ atoms.T, threshold)
    return z


def test_codes_are_those_of_pudle_with_hard_shrinkage(problem):
    """One encoder: with one dictionary and one threshold, the codes are equal to the last bit."""
    atoms, _, x = problem
    shared = dict(
        n_unfoldings=30, step_size=0.2, dict_init=atoms, max_iter=1, tol=None, random_state=0
    )
    noodl = NOODLDictionaryLearning(threshold=0.1, **shared).fit(x)
    pudle = PUDLEDictionaryLearning(alpha=0.1, shrinkage="hard", **shared).fit(x)
    pudle.components_ = noodl.components_
    np.testing.assert_array_equal(noodl.transform(x), pudle.transform(x))


@pytest.mark.parametrize("initial_threshold", [None, 0.7])
def test_codes_are_those_of_the_loop(problem, initial_threshold):
    atoms, _, x = problem
    learner = NOODLDictionaryLearning(
        threshold=0.1,
        initial_threshold=initial_threshold,
        n_unfoldings=4,
        step_size=0.2,
        dict_init=atoms,
        max_iter=1,
        tol=None,
        random_state=0,
    ).fit(x)
    expected = hard_thresholding(
        x,
        learner.components_,
        threshold=0.1,
        step_size=0.2,
        n_unfoldings=4,
        initial_threshold=initial_threshold,
    )
    np.testing.assert_allclose(learner.transform(x), expected, atol=1e-12)


def test_an_update_is_the_sign_gradient_step(problem):
    r"""``D <- D - eta mean (D z - x) sign(z)^T``, then every atom has norm 1."""
    _, initial, x = problem
    learner = NOODLDictionaryLearning(
        threshold=0.1,
        step_size=0.2,
        learning_rate=0.4,
        dict_init=initial,
        batch_size=len(x),
        random_state=0,
    ).partial_fit(x)
    z = hard_thresholding(x, initial, threshold=0.1, step_size=0.2, n_unfoldings=100)
    updated = initial - 0.4 * np.sign(z).T @ (z @ initial - x) / len(x)
    updated /= np.linalg.norm(updated, axis=1, keepdims=True)
    np.testing.assert_allclose(learner.components_, updated, atol=1e-10)


def test_the_dictionary_is_recovered_from_nearby(problem):
    """Hard thresholding does not shrink codes, so that the error vanishes."""
    atoms, initial, x = problem
    learner = NOODLDictionaryLearning(
        threshold=0.2,
        n_unfoldings=50,
        learning_rate=10,
        dict_init=initial,
        batch_size=200,
        max_iter=20,
        tol=None,
        random_state=0,
    )
    scale = np.linalg.norm(atoms)
    assert np.linalg.norm(initial - atoms) > 0.1 * scale
    assert np.linalg.norm(learner.fit(x).components_ - atoms) < 1e-4 * scale


def test_auto_is_a_share_of_the_norm_of_the_samples(problem):
    """0.07 of its root mean square, and the root of the step; what is zero has no share."""
    *_, x = problem
    learner = NOODLDictionaryLearning(48, n_unfoldings=2, step_size=0.25, max_iter=1, tol=None)
    learner.set_params(random_state=0).fit(np.vstack([x, np.zeros_like(x)]))
    norm = np.sqrt((x**2).sum(1).mean())
    np.testing.assert_allclose(learner.alpha_, 0.07 * norm * 0.5)
