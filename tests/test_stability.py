"""Stability: what comes back in other fits, and how many atoms the data have."""

from functools import partial

import numpy as np
import pytest

from skpudle import PoissonNMF, PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import atom_coherence, atom_support, dictionary_stability


def test_it_is_the_mean_coherence_with_the_other_dictionaries():
    """Whatever the order, the signs and the lengths of their atoms."""
    rng = np.random.default_rng(0)
    first, second, third = rng.standard_normal((3, 5, 2, 4))
    found = dictionary_stability([first, -2 * second[::-1], third], threshold=0.5)
    expected = (atom_coherence(second, first) + atom_coherence(third, first)) / 2
    np.testing.assert_allclose(found.atoms[0], expected)
    assert found.stability == pytest.approx(found.atoms.mean())
    assert found.n_stable == (found.atoms >= 0.5).sum() / 3


def test_it_is_largest_at_the_number_of_atoms_of_the_data():
    """From fits to three bootstrap samples each."""
    X, *_ = make_dictionary_data(400, 20, 12, 2, snr_db=15, random_state=0)
    samples = [
        X[np.random.default_rng(seed).integers(0, 400, 400)] for seed in range(3)
    ]
    stability = {}
    for size in (10, 12, 14):
        learners = [
            PUDLEDictionaryLearning(size, random_state=seed) for seed in range(3)
        ]
        fits = [one.fit(rows).components_ for one, rows in zip(learners, samples)]
        stability[size] = dictionary_stability(fits).stability
    assert max(stability, key=stability.get) == 12


def smooth(n, n_features, rng):
    """Return Gaussian rows whose neighbouring features have a correlation of .9."""
    rows = rng.standard_normal((n, n_features))
    for j in range(1, n_features):
        rows[:, j] = 0.9 * rows[:, j - 1] + 0.19**0.5 * rows[:, j]
    return rows


DRAWS = {
    "equal": lambda n, m, rng: rng.standard_normal((n, m)),
    "smooth": smooth,
    "non-negative": lambda n, m, rng: rng.random((n, m)),
}


@pytest.mark.parametrize(("draw", "n_components"), [*zip(DRAWS, (24, 60, 24))])
def test_random_dictionaries_agree_by_chance(draw, n_components):
    rng = np.random.default_rng(0)
    pairs = [[DRAWS[draw](n_components, 40, rng) for _ in range(2)] for _ in range(4)]
    assert (
        abs(np.mean([dictionary_stability(pair).above_chance for pair in pairs])) < 0.03
    )
    found = dictionary_stability([atoms for pair in pairs for atoms in pair])
    assert abs(found.above_chance) < 0.03


def test_chance_is_the_coherence_of_independent_dictionaries():
    """Recombined atoms lie in the span of few atoms, which alone would lower it by 0.025."""
    rng = np.random.default_rng(0)
    pairs = [[smooth(24, 40, rng) for _ in range(2)] for _ in range(24)]
    assert (
        abs(np.mean([dictionary_stability(pair).above_chance for pair in pairs])) < 0.01
    )


def test_superfluous_atoms_are_not_supported():
    X, atoms, _ = make_dictionary_data(600, 20, 8, 2, snr_db=20, random_state=1)
    X[0, 0] += 100  # an outlier
    X += 3
    learner = PUDLEDictionaryLearning(16, random_state=0).fit(X)
    support = atom_support(learner, X)
    assert support.found.shape == (8, 20)
    assert atom_coherence(support.found, atoms).min() > 0.98
    assert support.supported.sum() == 8
    assert atom_coherence(learner.components_[support.supported], atoms).min() > 0.95
    np.testing.assert_array_equal(support.supported, support.coherence >= 0.8)


NOISE = {
    "smooth": partial(smooth, 300, 12),
    "independent": lambda rng: rng.laplace(size=(300, 12)),
    "rows of unequal length": lambda rng: (
        rng.standard_normal((300, 12)) * rng.exponential(size=(300, 1))
    ),
}


@pytest.mark.parametrize("draw", NOISE.values(), ids=NOISE)
def test_noise_supports_no_atom(draw):
    X = draw(np.random.default_rng(0))
    learner = PUDLEDictionaryLearning.from_components(np.eye(12), alpha=1.0)
    support = atom_support(learner, X)
    assert support.found.shape == (0, 12)
    assert not support.supported.any()
    assert not support.coherence.any()


def test_support_by_rows_with_missing_values():
    rng = np.random.default_rng(0)
    X, atoms, _ = make_dictionary_data(600, 20, 8, 2, snr_db=20, random_state=1)
    X[rng.random(X.shape) < 0.1] = np.nan
    learner = PUDLEDictionaryLearning.from_components(atoms, alpha=1.0)
    assert atom_support(learner, X).supported.all()


def test_support_refuses_counts_that_add():
    learner = PoissonNMF.from_components(np.full((2, 4), 0.25))
    with pytest.raises(
        ValueError, match="'loss' parameter of CountDictionary.*'kullback-leibler'"
    ):
        atom_support(learner, np.ones((9, 4)))
