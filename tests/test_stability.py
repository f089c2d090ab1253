"""Stability: what comes back in other fits, and how many atoms the data have."""

import numpy as np
import pytest

from skpudle import PUDLEDictionaryLearning
from skpudle.metrics import atom_coherence, dictionary_stability


def test_it_is_the_mean_coherence_with_the_other_dictionaries():
    rng = np.random.default_rng(0)
    first, second, third = rng.standard_normal((3, 5, 8))
    found = dictionary_stability([first, second, third], threshold=0.5)
    expected = (atom_coherence(second, first) + atom_coherence(third, first)) / 2
    np.testing.assert_allclose(found.atoms[0], expected)
    assert found.stability == pytest.approx(found.atoms.mean())
    assert found.n_stable == (found.atoms >= 0.5).sum() / 3


def test_order_and_sign_of_atoms_are_nothing_to_it():
    atoms = np.random.default_rng(0).standard_normal((5, 2, 3))
    found = dictionary_stability([atoms, -atoms[::-1], 3 * atoms[[2, 0, 1, 4, 3]]])
    assert found.atoms.shape == (3, 5)
    assert found.stability == pytest.approx(1)
    assert found.n_stable == 5


def test_two_dictionaries_of_one_shape_are_needed():
    atoms = np.eye(3)
    with pytest.raises(ValueError, match="got 1; pass"):
        dictionary_stability([atoms])
    with pytest.raises(ValueError, match="the same shape"):
        dictionary_stability([atoms, atoms[:2]])


def planted(n_components, n_features, n_nonzero, n, noise):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.uniform(1, 2, (n, n_components)) * rng.choice([-1, 1], (n, n_components))
    codes[rng.random(codes.shape).argsort(axis=1) >= n_nonzero] = 0
    X = codes @ atoms
    return X + noise * X.std() * rng.standard_normal(X.shape)


@pytest.mark.parametrize(
    ("n_components", "n_features", "n_nonzero", "n", "noise"),
    [(20, 16, 3, 1000, 0.1), (12, 20, 2, 800, 0.3), (24, 30, 3, 800, 0.1)],
)
def test_it_is_largest_at_the_number_of_atoms_of_the_data(
    n_components, n_features, n_nonzero, n, noise
):
    """Within 5 %, from fits to three bootstrap samples each."""
    X = planted(n_components, n_features, n_nonzero, n, noise)
    stability = {}
    for size in [n_components + k for k in (-6, -3, -2, -1, 0, 1, 2, 3, 6)]:
        fits = [
            PUDLEDictionaryLearning(size, random_state=seed)
            .fit(X[np.random.default_rng(seed).integers(0, n, n)])
            .components_
            for seed in range(3)
        ]
        stability[size] = dictionary_stability(fits).stability
    best = max(stability, key=stability.get)
    assert abs(best - n_components) <= 0.05 * n_components
