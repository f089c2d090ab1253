"""What atoms and reconstructions are made of: the identities of stationary dictionaries."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from small import Batches

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning
from skpudle.inspection import (
    _contributions,
    atom_contributions,
    code_saliency,
    reconstruction_contributions,
)
from skpudle.sae import feature_directions


def samples(seed=0, n=80, m=12):
    return np.random.default_rng(seed).standard_normal((n, m))


@pytest.fixture(scope="module")
def learner():
    return PUDLEDictionaryLearning(8, alpha=0.3, random_state=0).fit(samples())


def test_a_dictionary_trained_with_a_ridge_is_made_of_its_samples():
    """Without a constraint of norms the gradient of the ridge problem vanishes: D = X A^T."""
    X, ridge = samples(n=60, m=8), 3.0
    learner = PUDLEDictionaryLearning.from_components(X[:6], alpha=0.2)
    for _ in range(600):
        codes = learner.transform(X)
        gram = codes.T @ codes + ridge * np.eye(6)
        learner.components_ = np.linalg.solve(gram, codes.T @ X)
    found = atom_contributions(learner, X, ridge=ridge, n_largest=None)
    assert found.distance < 1e-4
    # and not whatever the ridge
    assert atom_contributions(learner, X, ridge=0.0).distance > 1e-2
    A = np.zeros((6, len(X)))
    np.put_along_axis(A, found.indices, found.values, 1)
    np.testing.assert_allclose(A @ X, found.estimates, rtol=0, atol=1e-12)
    codes = learner.transform(X)
    stationary = (X - codes @ (A @ X)).T @ codes - ridge * (A @ X).T
    np.testing.assert_allclose(stationary, 0, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_contributions_sum_to_the_reconstruction_by_the_estimated_atoms(learner, ridge):
    X, new = samples(), samples(1, n=7)
    found = reconstruction_contributions(learner, X, new, ridge=ridge, n_largest=None)
    sums = np.einsum("nk,nkm->nm", found.values, X[found.indices])
    np.testing.assert_allclose(sums, found.estimates, rtol=0, atol=1e-10)
    atoms = atom_contributions(learner, X, ridge=ridge).estimates
    np.testing.assert_allclose(learner.transform(new) @ atoms, sums, rtol=0, atol=1e-10)
    errors = np.linalg.norm(
        sums - learner.inverse_transform(learner.transform(new)), axis=1
    )
    norms = np.linalg.norm(learner.inverse_transform(learner.transform(new)), axis=1)
    np.testing.assert_allclose(found.distances, errors / norms)


def test_an_atom_made_by_ten_samples_names_these_first():
    """Eight atoms make ten samples each, beside a little noise."""
    rng = np.random.default_rng(0)
    makers = np.arange(80) % 8
    X = rng.uniform(1, 2, (80, 1)) * rng.standard_normal((8, 20))[makers]
    X += 0.01 * rng.standard_normal(X.shape)
    order = rng.permutation(80)
    X, makers = X[order], makers[order]
    learner = PUDLEDictionaryLearning(8, random_state=0).fit(X)
    found = atom_contributions(learner, X, n_largest=11)
    for samples_of_atom, values in zip(found.indices, np.abs(found.values)):
        assert len(set(makers[samples_of_atom[:10]])) == 1
        assert values[10] < 0.2 * values[9]
    assert len({makers[first] for first in found.indices[:, 0]}) == 8
    new = reconstruction_contributions(learner, X, X[:5])
    assert (makers[new.indices] == makers[:5, None]).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, Batches])
def test_parts_change_nothing(learner, kind, monkeypatch):
    X = samples()
    whole = atom_contributions(learner, X)
    nine = partial(_contributions.encode_parts, n_rows=9)
    monkeypatch.setattr(_contributions, "encode_parts", nine)
    found = atom_contributions(learner, kind(X))
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_allclose(found.values, whole.values, atol=1e-12)
    assert (np.diff(np.abs(found.values)) <= 0).all()


def test_learners_of_other_packages_and_split_signs():
    X = samples()
    other = MiniBatchDictionaryLearning(8, alpha=0.2, max_iter=20, random_state=0).fit(
        X
    )
    assert atom_contributions(other, X).values.shape == (8, 10)
    split = PUDLEDictionaryLearning(8, split_sign=True, random_state=0).fit(X)
    found = atom_contributions(split, X)
    split.set_params(split_sign=False)
    np.testing.assert_array_equal(found.values, atom_contributions(split, X).values)


@pytest.mark.parametrize("n_unfoldings", [None, 4])
def test_saliency_is_the_derivative_of_the_code(n_unfoldings):
    X = samples()
    how = dict(alpha=0.3, gradient="ae-ls", max_iter=2, tol=None, random_state=0)
    learner = PUDLEDictionaryLearning(8, n_unfoldings=n_unfoldings, **how).fit(X)
    found = code_saliency(learner, X[:5], n_codes=3)
    assert found.gradients.shape == (5, 3, 12)
    codes = learner.transform(X[:5])
    np.testing.assert_array_equal(found.indices[:, 0], np.abs(codes).argmax(1))
    direction, step = samples(2, n=1)[0], 1e-6
    up, down = (learner.transform(X[:5] + sign * step * direction) for sign in (1, -1))
    slopes = np.take_along_axis((up - down) / (2 * step), found.indices, 1)
    np.testing.assert_allclose(found.gradients @ direction, slopes, atol=1e-5)


@pytest.mark.parametrize("split_sign", [False, True])
def test_a_consensus_has_what_its_estimator_has(split_sign):
    X = samples()
    learner = PUDLEDictionaryLearning(5, alpha=0.3, split_sign=split_sign)
    consensus = ConsensusDictionary(learner, 2, random_state=0).fit(X)
    for inspect in (code_saliency, atom_contributions, reconstruction_contributions):
        given = [X, X[:3]] if inspect is reconstruction_contributions else [X]
        pairs = zip(
            inspect(consensus, *given),
            inspect(consensus.estimator_, *given),
            strict=True,
        )
        for found, expected in pairs:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.draws_from_numpy
def test_an_encoder_without_a_derivative_is_refused():
    learner = MiniBatchDictionaryLearning(3, random_state=0).fit(samples())
    for given in (
        learner,
        ConsensusDictionary(learner, 2, random_state=0).fit(samples()),
    ):
        with pytest.raises(
            ValueError, match="no encoder of rows.*Pass a PUDLEDictionaryLearning"
        ):
            code_saliency(given, samples())


def test_errors_say_what_to_do(learner):
    X = samples()
    for given, options in [(X, dict(ridge=-1.0)), (np.where(X > 2, np.nan, X), {})]:
        with pytest.raises(ValueError, match="|".join([*options, "NaN"])):
            atom_contributions(learner, given, **options)


# ---------------------------------------------------------------------------- features that imply


def hierarchy(*, alone=True):
    """Return three parents, that may occur alone, with four children each, paths and samples."""
    rng = np.random.default_rng(0)
    features = np.linalg.qr(rng.standard_normal((30, 30)))[0][:15]
    parents, children = features[:3], features[3:].reshape(3, 4, 30)
    paths = np.concatenate([parents, (parents[:, None] + children).reshape(12, 30)])
    chosen = rng.choice(
        16, 4000, p=[0.55, *[0.05 * alone] * 3, *[0.025 + 0.0125 * (1 - alone)] * 12]
    )
    X = np.concatenate([np.zeros((1, 30)), paths])[chosen]
    paths /= np.linalg.norm(paths, axis=1, keepdims=True)
    return features, paths, X + 0.02 * rng.standard_normal(X.shape)


def of(atoms, **params):
    return PUDLEDictionaryLearning.from_components(
        atoms, **(dict(alpha=0.1, positive_code=True) | params)
    )


def test_the_feature_of_a_path_is_what_it_adds_to_its_parent():
    features, paths, X = hierarchy()
    found = feature_directions(of(paths), X)
    np.testing.assert_allclose(found.directions, features, rtol=0, atol=1e-9)
    assert (np.diff(found.implied.indptr) == [0] * 3 + [1] * 12).all()
    left = paths - found.implied @ paths
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    np.testing.assert_allclose(found.directions, left, rtol=0, atol=1e-9)
    assert (found.prominence[3:] > 3).all()


def test_siblings_in_the_place_of_a_path_without_an_atom_lack_its_feature():
    features, paths, X = hierarchy(alone=False)
    atoms, mean = paths[4:], features.sum(0)
    # has no atom, and is rarer
    X = X[(X @ features[3] < 0.5) | (np.arange(len(X)) % 3 == 0)]
    learner = of(atoms, intercept=mean)
    found = feature_directions(learner, X + mean)
    assert np.isfinite(found.thresholds).all()
    codes = learner.transform(X + mean)
    has = X @ features.T > 0.5
    missing = has[:, 3]
    assert (codes[missing] > 0).any()
    present = codes * ((X + mean) @ found.directions.T > found.thresholds)
    assert not present[missing].any()
    np.testing.assert_array_equal(present > 0, has[:, 4:])


def test_siblings_without_their_parent_leave_most_of_their_features():
    features, paths, X = hierarchy(alone=False)
    siblings = paths[3:]
    found = feature_directions(of(siblings), X)
    cosines = (found.directions * features[3:]).sum(1)
    np.testing.assert_allclose(cosines, (4 / 5) ** 0.5, rtol=0, atol=1e-9)
    assert ((siblings * features[3:]).sum(1) < 0.71).all()


def test_near_atoms_of_independent_features_stay():
    """One of two near atoms is no part of the other where both occur, alone and together."""
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((20, 12))
    atoms[10:] = atoms[:10] + 0.8 * atoms[10:]
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = rng.random((3000, 20)) * (rng.random((3000, 20)) < 0.1)
    found = feature_directions(of(2 * atoms), codes @ atoms)
    np.testing.assert_allclose(found.directions, atoms, rtol=0, atol=1e-12)
    assert not found.implied.nnz
    assert found.prominence.max() > 0
    assert (found.thresholds == -np.inf).all()


def fitted(X, n_components, **params):
    learner = PUDLEDictionaryLearning(
        n_components, positive_code=True, random_state=0, **params
    ).fit(X)
    return learner.choose_alpha(X, criterion="support")


def tree(seed=0):
    """Return 126 features in 32 dimensions, children that imply their parents, and samples."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((6, 21, 32))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    X = 0.02 * rng.standard_normal((4000, 32))
    for root in features:
        on = rng.random(4000) < 0.05
        child, grandchild = rng.integers(4, size=(2, 4000))
        depth, amplitudes = (
            rng.integers(3, size=4000),
            1 + 0.2 * rng.standard_normal((3, 4000)),
        )
        path = 0, 1 + child, 5 + 4 * child + grandchild
        for level, (index, amplitude) in enumerate(zip(path, amplitudes, strict=True)):
            X += (on * (depth >= level) * amplitude)[:, None] * root[index]
    return features.reshape(-1, 32), X


@pytest.mark.parametrize(
    ("data", "size", "kept"), [(tree, 45, True), (hierarchy, 15, False)]
)
def test_a_second_search_is_kept_if_its_atoms_predict_better(data, size, kept):
    """The atoms of the larger penalty have codes of twice this penalty; else nothing changes."""
    learner = fitted(X := data()[-1], size)
    before = learner.components_.copy(), learner.alpha_
    one, found = (
        feature_directions(learner, X),
        feature_directions(learner, X, refine=True),
    )
    np.testing.assert_array_equal(learner.components_, before[0])
    assert learner.alpha_ == before[1]
    assert (found.learner is not learner) == kept == (found.learner.alpha_ > before[1])
    if not kept:
        np.testing.assert_array_equal(found.directions, one.directions)


def test_without_implications_there_is_no_second_search():
    rng = np.random.default_rng(0)
    X = (rng.random((2000, 12)) * (rng.random((2000, 12)) < 0.1)) @ rng.standard_normal(
        (12, 10)
    )
    learner = fitted(X, 12)
    assert feature_directions(learner, X, refine=True).learner is learner
