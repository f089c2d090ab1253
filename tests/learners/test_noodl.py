"""NOODL: the encoder of PUDLE with hard shrinkage, and a sign gradient."""

import numpy as np
import pytest
import torch
from naive import naive_encode

from skpudle import NOODLDictionaryLearning, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary


@pytest.fixture
def problem():
    """Return true atoms (80, 64), atoms near them, and 800 samples that use 3 of 80 atoms."""
    x, atoms, _ = make_dictionary_data(800, 64, 80, 3, random_state=0)
    initial = perturb_dictionary(atoms, 0.15, random_state=1)
    return atoms, initial / np.linalg.norm(initial, axis=1, keepdims=True), x


def naive_codes(x, atoms, threshold=0.1, **options):
    """Encode by the loop, as it is written in the paper."""
    given = dict(alpha=threshold, step_size=0.2, shrinkage="hard") | options
    return naive_encode(torch.tensor(atoms), torch.tensor(x), **given).numpy()


@pytest.mark.parametrize("initial_threshold", [None, 0.7])
def test_codes_are_those_of_the_loop_and_of_pudle_with_hard_shrinkage(
    problem, initial_threshold
):
    atoms, _, x = problem
    shared = dict(n_unfoldings=4, step_size=0.2, dict_init=atoms, max_iter=1, tol=None)
    noodl = NOODLDictionaryLearning(
        threshold=0.1, initial_threshold=initial_threshold, random_state=0, **shared
    ).fit(x)
    how = dict(n_unfoldings=4, initial_threshold=initial_threshold)
    expected = naive_codes(x, noodl.components_, **how)
    np.testing.assert_allclose(noodl.transform(x), expected, atol=1e-12)
    if initial_threshold is None:
        pudle = PUDLEDictionaryLearning(
            alpha=0.1, shrinkage="hard", random_state=0, **shared
        )
        pudle.fit(x).components_ = noodl.components_
        np.testing.assert_array_equal(noodl.transform(x), pudle.transform(x))


def test_an_update_is_the_sign_gradient_step(problem):
    r"""``D <- D - eta mean (D z - x) sign(z)^T``, then every atom has norm 1."""
    _, initial, x = problem
    how = dict(
        threshold=0.1,
        step_size=0.2,
        learning_rate=0.4,
        batch_size=len(x),
        random_state=0,
    )
    learner = NOODLDictionaryLearning(dict_init=initial, **how).partial_fit(x)
    z = naive_codes(x, initial, n_unfoldings=100)
    updated = initial - 0.4 * np.sign(z).T @ (z @ initial - x) / len(x)
    updated /= np.linalg.norm(updated, axis=1, keepdims=True)
    np.testing.assert_allclose(learner.components_, updated, atol=1e-10)


def test_the_dictionary_is_recovered_from_nearby(problem):
    """Hard thresholding does not shrink codes, so that the error vanishes."""
    atoms, initial, x = problem
    how = dict(
        threshold=0.2, n_unfoldings=50, learning_rate=10, batch_size=200, max_iter=20
    )
    learner = NOODLDictionaryLearning(
        dict_init=initial, tol=None, random_state=0, **how
    )
    scale = np.linalg.norm(atoms)
    assert np.linalg.norm(initial - atoms) > 0.1 * scale
    assert np.linalg.norm(learner.fit(x).components_ - atoms) < 1e-4 * scale


def test_auto_is_a_share_of_the_norm_of_the_samples(problem):
    """0.07 of its root mean square, and the root of the step; what is zero has no share."""
    *_, x = problem
    learner = NOODLDictionaryLearning(
        48, n_unfoldings=2, step_size=0.25, max_iter=1, tol=None
    )
    learner.set_params(random_state=0).fit(np.vstack([x, np.zeros_like(x)]))
    norm = np.sqrt((x**2).sum(1).mean())
    np.testing.assert_allclose(learner.alpha_, 0.07 * norm * 0.5)
