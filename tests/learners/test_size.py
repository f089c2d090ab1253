"""n_components="auto": as many atoms as the data have."""

from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler

from skpudle import (
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle.metrics import atom_coherence


def planted(
    n_atoms, n_features, n_nonzero, n, *, decibels=None, uneven=0.0, positive=False
):
    """Draw samples of random atoms, whose use falls by Zipf's law."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((n_atoms, n_features))
    if positive:
        atoms = np.abs(atoms) * (rng.random(atoms.shape) < 0.3) + 1e-3
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.uniform(1, 2, (n, n_atoms))
    codes *= 1 if positive else rng.choice([-1, 1], codes.shape)
    luck = rng.gumbel(size=codes.shape) - uneven * np.log(np.arange(1, n_atoms + 1))
    codes[(-luck).argsort(axis=1).argsort(axis=1) >= n_nonzero] = 0
    X = codes @ atoms
    if decibels is not None:
        X += X.std() * 10 ** (-decibels / 20) * rng.standard_normal(X.shape)
    return X, atoms


NOT_NEGATIVE = dict(decibels=20, positive=True)
PROBLEMS = {
    "no noise": dict(n_atoms=12, n_features=20, n_nonzero=2, n=600),
    "10 dB": dict(n_atoms=20, n_features=30, n_nonzero=3, n=1500, decibels=10),
    "overcomplete": dict(n_atoms=60, n_features=50, n_nonzero=4, n=3000, decibels=20),
    "few": dict(n_atoms=12, n_features=64, n_nonzero=2, n=800, decibels=15),
    "non-negative": dict(n_atoms=30, n_features=40, n_nonzero=3, n=2000) | NOT_NEGATIVE,
    "uneven": dict(
        n_atoms=40, n_features=64, n_nonzero=3, n=3000, decibels=20, uneven=1.0
    ),
}


@cache
def fitted(name):  # -> data, atoms, learner
    X, atoms = planted(**PROBLEMS[name])
    signs = dict.fromkeys(
        ("positive_code", "positive_dict"), "positive" in PROBLEMS[name]
    )
    return X, atoms, PUDLEDictionaryLearning("auto", random_state=0, **signs).fit(X)


@pytest.mark.parametrize("name", PROBLEMS)
def test_as_many_atoms_as_were_planted_and_these(name):
    X, atoms, learner = fitted(name)
    assert abs(learner.n_components_ - len(atoms)) <= max(1, 0.02 * len(atoms))
    assert (atom_coherence(learner.components_, atoms) > 0.98).mean() >= 0.97
    assert learner.transform(X).shape == (len(X), learner.n_components_)


def test_the_number_is_the_smallest_that_is_as_good_as_the_best():
    *_, learner = fitted("10 dB")
    path = learner.size_path_
    assert (np.diff(path.n_components) > 0).all()
    chosen = path.n_components == learner.n_components_
    assert chosen.sum() == 1
    loss = path.score.max() - path.score
    assert loss[chosen] <= path.tolerance[chosen]
    assert (loss > path.tolerance)[path.n_components < learner.n_components_].all()
    assert {values.shape for values in path.values()} == {path.n_components.shape}


def test_counts():
    X, atoms = planted(10, 30, 2, 2000)
    counts = np.random.default_rng(1).poisson(np.exp(X + 2)).astype(float)
    learner = CountDictionaryLearning("auto", n_unfoldings=10, random_state=0).fit(
        counts
    )
    assert abs(learner.n_components_ - len(atoms)) <= 1


def test_rows_without_a_number_of_atoms_have_few():
    """Predictions of digits gain with each atom; twice as many atoms gain less than .02."""
    for seed in (0, 1):
        learner = PUDLEDictionaryLearning("auto", random_state=seed).fit(
            load_digits().data
        )
        path, log = learner.size_path_, np.log(learner.size_path_.n_components)
        gains = np.interp(log + np.log(2), log, path.score) - path.score
        assert learner.n_components_ == path.n_components[np.argmax(gains < 0.02)]
        assert path.n_components.max() < 4 * learner.n_components_


def test_the_seed_decides_about_the_atoms_and_not_about_their_number():
    X = StandardScaler().fit_transform(load_breast_cancer().data)
    one, other = (
        PUDLEDictionaryLearning("auto", random_state=seed).fit(X) for seed in (0, 1)
    )
    assert one.n_components_ == other.n_components_
    assert not np.allclose(one.components_, other.components_)
    for name in ("n_components", "score"):
        assert_array_equal(
            getattr(one.size_path_, name), getattr(other.size_path_, name)
        )


def test_noise_and_nothing_have_few_atoms():
    noise = np.random.default_rng(0).standard_normal((200, 10))
    assert (
        PUDLEDictionaryLearning("auto", random_state=0).fit(noise).n_components_ <= 10
    )
    assert (
        PUDLEDictionaryLearning("auto", random_state=0).fit(0 * noise).n_components_
        == 1
    )


def test_a_first_part_of_the_data_has_as_many_atoms_as_features():
    X, _ = planted(**PROBLEMS["no noise"])
    learner = PUDLEDictionaryLearning("auto", random_state=0).partial_fit(X)
    assert learner.n_components_ == X.shape[1]
    assert learner.size_path_ is None


@pytest.mark.parametrize("n", [1, 4])  # one recording has held-out stretches
@pytest.mark.parametrize(("shape", "size"), [((5, 5), (40, 40)), ((12,), (800,))])
def test_atoms_of_images_and_signals(shape, size, n):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((4, *shape))
    atoms /= np.sqrt(
        np.square(atoms).sum(axis=tuple(range(1, atoms.ndim)), keepdims=True)
    )
    X = np.zeros((n, *(round((4 / n) ** (1 / len(size)) * side) for side in size)))
    for image in X:
        for _ in range(int(0.02 * image.size)):
            corner = [
                rng.integers(n - k + 1) for n, k in zip(image.shape, shape, strict=True)
            ]
            window = tuple(slice(a, a + k) for a, k in zip(corner, shape, strict=True))
            image[window] += (
                rng.choice([-1, 1]) * rng.uniform(1, 2) * atoms[rng.integers(4)]
            )
    X += 0.1 * X.std() * rng.standard_normal(X.shape)
    options = dict(atom_shape=shape, stride=1, random_state=0)
    learner = ConvPUDLEDictionaryLearning("auto", **options).fit(X)
    assert learner.n_components_ == 4
    assert atom_coherence(learner, atoms).min() > 0.95
    assert (learner.size_path_.n_components == 4).any()
