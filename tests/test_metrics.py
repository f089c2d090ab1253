"""Matching finds what was permuted, and every measure is what its formula says."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle.metrics import (
    atom_coherence,
    dictionary_error,
    dictionary_stability,
    lasso_objective,
    make_denoising_scorer,
    match_atoms,
    match_components,
    reconstruction_r2_scorer,
    recovery_rate,
    unexplained_variance,
)

ATOM_SHAPES = [(20,), (2, 5, 4)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def flipped_and_permuted(dictionary, rng):
    permutation = rng.permutation(len(dictionary))
    signs = rng.choice([-1.0, 1.0], size=len(dictionary))
    shuffled = dictionary[permutation] * signs.reshape(-1, *[1] * (dictionary.ndim - 1))
    return shuffled, permutation, signs


class Known(BaseEstimator):
    """A fitted estimator whose codes are whatever a matrix makes of the data."""

    def __init__(self, components, analysis=None, alpha=0.1):
        self.components = components
        self.analysis = analysis
        self.alpha = alpha

    def fit(self, X, y=None):
        self.components_ = self.components
        self.alpha_ = self.alpha
        return self

    def transform(self, X):
        return X @ self.analysis


# Matching


@pytest.mark.parametrize("atom_shape", ATOM_SHAPES)
def test_matching_undoes_permutation_and_signs(atom_shape, rng):
    dictionary = rng.normal(size=(30, *atom_shape))
    shuffled, permutation, signs = flipped_and_permuted(dictionary, rng)
    match = match_atoms(shuffled, dictionary)
    assert_array_equal(permutation[match.indices], np.arange(30))
    assert_array_equal(match.signs, signs[match.indices])
    assert_array_equal(match.reference_indices, np.arange(30))
    assert_allclose(match.coherences, 1)
    assert_array_equal(match.align_dictionary(shuffled), dictionary)


def test_matched_error_is_the_smallest_over_all_permutations_and_signs(rng):
    """By trying them all, with atoms of any length."""
    dictionary, reference = rng.normal(size=(2, 4, 3))
    tried = [
        np.linalg.norm(np.array(signs)[:, None] * dictionary[list(order)] - reference)
        for order in itertools.permutations(range(4))
        for signs in itertools.product([-1, 1], repeat=4)
    ]
    found = dictionary_error(dictionary, reference, match=True)
    assert_allclose(found * np.linalg.norm(reference), min(tried))


@pytest.mark.parametrize(("n_components", "n_reference"), [(3, 5), (5, 3)])
def test_different_numbers_of_atoms_match_as_far_as_they_go(n_components, n_reference):
    match = match_atoms(np.eye(6)[:n_components], -np.eye(6)[:n_reference])
    assert_array_equal(match.indices, [0, 1, 2])
    assert_array_equal(match.reference_indices, [0, 1, 2])
    assert_array_equal(match.signs, [-1, -1, -1])


@pytest.mark.parametrize(
    ("atom_shape", "n_channels"), [(20, ()), (20, (3,)), ((8, 9), ())]
)
def test_atoms_of_convolutional_learners_match_at_any_shift(
    atom_shape, n_channels, rng
):
    """Planted patterns that lie elsewhere in their atoms; their arrays differ."""
    n_axes, planted = (
        np.size(atom_shape),
        np.zeros((5, *np.ravel(atom_shape), *n_channels)),
    )
    inside = (slice(None), *[slice(1, -4)] * n_axes)
    planted[inside] = rng.normal(size=planted[inside].shape)
    learners = [ConvPUDLEDictionaryLearning(atom_shape=atom_shape) for _ in range(3)]
    for shift, learner in enumerate(learners):
        learner.components_ = -2.0 * np.roll(
            planted[::-1], shift, axis=tuple(range(1, 1 + n_axes))
        )
    match = match_atoms(learners[2], planted)
    assert_array_equal(match.indices, [4, 3, 2, 1, 0])
    assert_array_equal(match.signs, -1)
    assert_allclose(match.coherences, 1)
    assert recovery_rate(planted, learners[1], threshold=0.999) == 1
    assert recovery_rate(planted, learners[1].components_) == 0
    found = dictionary_stability(learners)
    assert_allclose(found.atoms, 1)
    assert found.by_chance < 0.9
    named = match_components(learners[2], planted)
    assert [list(one.shares) for one in named] == [[4], [3], [2], [1], [0]]
    assert_allclose([one.cosine for one in named], 1)


# Errors and coherences


@pytest.mark.parametrize("atom_shape", ATOM_SHAPES)
def test_error_is_the_relative_frobenius_norm(atom_shape, rng):
    dictionary, reference = rng.normal(size=(2, 15, *atom_shape))
    error = np.sqrt(((dictionary - reference) ** 2).sum())
    relative = error / np.sqrt((reference**2).sum())
    assert_allclose(dictionary_error(dictionary, reference), relative)
    assert_allclose(dictionary_error(7 * dictionary, 7 * reference), relative)


def test_coherence_of_what_is_missing_or_zero_is_zero():
    assert_array_equal(atom_coherence(np.eye(4)[[2, 0]], np.eye(4)), [1, 0, 1, 0])
    for unit in (1.0, 1e-200, 1e200, np.float32(1e-30)):
        assert_array_equal(
            atom_coherence(unit * np.diag([1, 0]), unit * np.eye(2)), [1, 0]
        )


def test_recovery_rate_counts_atoms_from_the_threshold_on():
    angles = np.array([0.0, 0.3, 0.6, 1.2])
    dictionary = np.zeros((4, 8))
    dictionary[:, :4], dictionary[:, 4:] = (
        np.diag(np.cos(angles)),
        np.diag(np.sin(angles)),
    )
    reference = np.eye(4, 8)
    assert recovery_rate(dictionary, reference, threshold=0.99) == 0.25
    assert recovery_rate(dictionary, reference) == 0.5
    assert recovery_rate(dictionary, reference, threshold=np.cos(0.6)) == 0.75
    assert recovery_rate(dictionary, np.eye(8), threshold=0.99) == 0.125


@pytest.mark.parametrize(
    "measure", [match_atoms, atom_coherence, recovery_rate, dictionary_error]
)
def test_atoms_of_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(3, 4\).*\(3, 5\)"):
        measure(np.ones((3, 4)), np.ones((3, 5)))


def test_other_numbers_of_codes_or_names_are_refused():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[3, 2\]"):
        lasso_objective(np.ones((3, 4)), np.ones((2, 5)), np.ones((3, 4)), 0.1)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[2, 1\]"):
        match_components(np.eye(2), np.eye(2), ["A"])


# Codes


def test_unexplained_variance_is_one_minus_the_r2(rng):
    X, reconstruction = rng.normal(size=(2, 12, 3, 2))
    expected = r2_score(
        *(a.reshape(12, -1) for a in (X, reconstruction)),
        multioutput="variance_weighted",
    )
    assert_allclose(unexplained_variance(X, reconstruction), 1 - expected)
    assert unexplained_variance(X, X) == 0
    assert_allclose(
        unexplained_variance(X, np.broadcast_to(X.mean(axis=0), X.shape)), 1
    )


# Scorers


def test_the_objective_of_the_lasso_is_that_of_its_formula(rng):
    X, atoms, codes = (
        rng.normal(size=(7, 4)),
        rng.normal(size=(6, 4)),
        rng.normal(size=(7, 6)),
    )
    samples = [
        0.5 * np.sum((x - z @ atoms) ** 2) + 0.3 * np.abs(z).sum()
        for x, z in zip(X, codes)
    ]
    assert_allclose(lasso_objective(X, codes, codes @ atoms, 0.3), np.mean(samples))


class Thresholding(Known):
    """Codes of the lasso for orthonormal atoms."""

    def transform(self, X):
        z = X @ self.components_.T
        return np.sign(z) * np.maximum(np.abs(z) - self.analysis, 0)


@pytest.fixture
def noisy(
    rng,
):  # -> clean and noisy samples (4000, 12), orthonormal atoms; noise of 0.5
    atoms = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    clean = (
        np.where(rng.random((4000, 12)) < 0.2, 3 * rng.normal(size=(4000, 12)), 0)
        @ atoms
    )
    return clean, clean + 0.5 * rng.normal(size=clean.shape), atoms


def test_denoising_scorer_is_the_error_that_clean_data_would_show(noisy):
    """Stein: without bias for soft thresholding, whatever the level."""
    clean, X, atoms = noisy
    score = make_denoising_scorer(noise_std=0.5)
    for level in (0.0, 0.2, 0.8, 2.0, 100.0):
        estimator = Thresholding(atoms, level).fit(X)
        error = np.square(estimator.transform(X) @ atoms - clean).mean()
        assert_allclose(score(estimator, X), -error, atol=0.01)


@pytest.mark.parametrize("noise_std", [0.5, None])
def test_denoising_scorer_picks_the_best_level(noise_std, noisy):
    clean, X, atoms = noisy
    score, levels = make_denoising_scorer(noise_std=noise_std), np.linspace(0, 3, 13)
    fitted = [Thresholding(atoms, level).fit(X) for level in levels]
    errors = [np.square(e.transform(X) @ atoms - clean).mean() for e in fitted]
    assert errors[np.argmax([score(e, X) for e in fitted])] < 1.05 * min(errors)


def test_cross_validation_is_that_of_its_formula(rng):
    X, atoms, analysis = (
        rng.normal(size=(7, 4)),
        rng.normal(size=(6, 4)),
        rng.normal(size=(4, 6)),
    )
    analysis[:, :3] = 0
    residual = np.square(X - X @ analysis @ atoms).mean()
    score = pickle.loads(pickle.dumps(make_denoising_scorer()))
    assert_allclose(
        score(Known(atoms, analysis).fit(X), X), -residual / (1 - 3 / 4) ** 2
    )


def test_r2_scorer_is_that_of_scikit_learn(rng):
    X, atoms, analysis = (
        rng.normal(size=(7, 4)),
        rng.normal(size=(6, 4)),
        rng.normal(size=(4, 6)),
    )
    X[:, 0] = 1  # a constant feature has no variance to explain
    expected = r2_score(X, X @ analysis @ atoms, multioutput="variance_weighted")
    assert_allclose(
        reconstruction_r2_scorer(Known(atoms, analysis).fit(X), X), expected
    )
    perfect = Known(np.eye(4), np.eye(4)).fit(X)
    assert reconstruction_r2_scorer(perfect, X) == 1


@pytest.mark.parametrize("scorer", [make_denoising_scorer(), reconstruction_r2_scorer])
def test_scorers_serve_model_selection(scorer, rng):
    X, how = rng.normal(size=(30, 6)), dict(max_iter=2, transform_algorithm="threshold")
    learner = MiniBatchDictionaryLearning(5, random_state=0, **how)
    search = GridSearchCV(learner, {"alpha": [0.1, 1.0]}, scoring=scorer, cv=2).fit(X)
    again = pickle.loads(pickle.dumps(scorer))
    scores = cross_val_score(search.best_estimator_, X, scoring=again, cv=2)
    assert_allclose(scores.mean(), search.best_score_)


def test_tensors_are_taken_as_arrays(rng):
    """Also those that have a graph, which NumPy refuses like those of another device."""
    atoms, code = rng.normal(size=(5, 6)), rng.normal(size=(7, 5))
    reference = atoms + 0.5 * rng.normal(size=(5, 6))

    def graph(array):
        return torch.tensor(array, requires_grad=True)

    learner, X = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1), code @ atoms
    for scorer in (make_denoising_scorer(noise_std=0.1), reconstruction_r2_scorer):
        assert scorer(learner, graph(X)) == scorer(learner, X)
    match = match_atoms(graph(atoms), graph(reference))
    assert_array_equal(match.indices, match_atoms(atoms, reference).indices)
    assert_array_equal(
        match.align_dictionary(graph(atoms)), match.align_dictionary(atoms)
    )
    assert lasso_objective(*map(graph, (X, code, X)), 0.1) == lasso_objective(
        X, code, X, 0.1
    )


# ---------------------------------------------------------------------------- names of components


def test_components_are_named_by_mixtures_of_references():
    """Planted mixtures come back, their terms by falling shares, whatever the scales."""
    rng = np.random.default_rng(0)
    reference = rng.dirichlet(np.full(60, 0.1), 12)
    names = [f"R{i}" for i in range(12)]
    shares = np.zeros((4, 12))
    shares[0, 3] = 1
    shares[1, [5, 2]] = 0.7, 0.3
    shares[2, [8, 0, 11]] = 0.5, 0.3, 0.2
    shares[3, [1, 4, 6, 7]] = 0.3, 0.26, 0.24, 0.2
    scales = rng.uniform(0.1, 10, 12)
    matches = match_components(
        5 * shares @ reference, scales[:, None] * reference, names
    )
    for match, planted in zip(matches[:3], shares, strict=False):
        terms = np.argsort(-planted)[: (planted > 0).sum()]
        assert list(match.shares) == [names[k] for k in terms]
        np.testing.assert_allclose(
            list(match.shares.values()), planted[terms], rtol=0, atol=1e-9
        )
        assert match.mixture_cosine == pytest.approx(1)
        assert match.cosine <= match.mixture_cosine + 1e-12
    assert matches[0].nearest == "R3"
    assert len(matches[3].shares) == 3
    assert matches[3].mixture_cosine < 1
    (alone,) = match_components(reference[2:3], reference)
    assert list(alone.shares) == [alone.nearest] == [2]


def test_components_with_signs_are_matched_up_to_sign():
    """A dictionary in another order, with other signs and norms, is matched as by `match_atoms`."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((9, 16))
    order, signs = rng.permutation(9), rng.choice([-2.0, 0.5], (9, 1))
    noisy = reference + 0.3 * rng.standard_normal((9, 16))
    matches = match_components((signs * noisy)[order], reference)
    assert [match.nearest for match in matches] == list(order)
    expected = match_atoms(noisy, reference).coherences[order]
    np.testing.assert_allclose(
        [match.cosine for match in matches], expected, rtol=1e-12
    )
    assert min(min(match.shares.values()) for match in matches) > 0
