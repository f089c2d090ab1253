"""Importance of atoms: what they are used for, and what is lost without them."""

import numpy as np
import pytest
from sklearn.decomposition import NMF, MiniBatchDictionaryLearning

from skpudle import PUDLEDictionaryLearning
from skpudle._data.arrays import to_tensor
from skpudle.datasets import make_dictionary_data
from skpudle.encoding._learned import LearnedEncoder
from skpudle.lasso import solve_lasso
from skpudle.metrics import atom_importance


@pytest.fixture(scope="module")
def data():
    X, atoms, _ = make_dictionary_data(200, 12, 8, n_nonzero=2, random_state=0)
    return X + 0.05 * np.random.default_rng(0).standard_normal(X.shape), atoms


def test_it_is_the_loss_of_a_naive_loop(data):
    """Every atom is removed from the dictionary, and all samples encoded anew by the lasso."""
    X, atoms = data
    alpha = 0.1
    learner = PUDLEDictionaryLearning.from_components(atoms, alpha=alpha)
    found = atom_importance(learner, X)

    def error(atoms):
        z = solve_lasso(to_tensor(atoms), to_tensor(X), alpha)[0].numpy()
        return np.square(X - z @ atoms).sum(), z

    whole, codes = error(np.asarray(atoms))
    total = np.square(X - X.mean(axis=0)).sum()
    naive = [
        (error(np.delete(atoms, j, axis=0))[0] - whole) / total
        for j in range(len(atoms))
    ]
    np.testing.assert_allclose(found.r2_loss, naive, atol=1e-6)
    np.testing.assert_allclose(found.usage, (codes != 0).mean(axis=0))
    energy = np.square(codes).sum(axis=0)
    np.testing.assert_allclose(found.energy, energy / energy.sum(), atol=1e-6)


@pytest.mark.parametrize("positive_code", [False, True])
@pytest.mark.parametrize("separate", [True, "unfolding"])
def test_a_learned_encoder_without_an_atom_has_no_rows_for_it(
    data, separate, positive_code
):
    """Every atom is removed from all matrices of the encoder."""
    X, atoms = data
    options = dict(separate_atoms=separate, n_unfoldings=3, max_iter=5, random_state=0)
    options |= dict(dict_init=atoms, alpha=0.1, positive_code=positive_code)
    learner = PUDLEDictionaryLearning(**options).fit(X)

    def error(*removed):
        atoms = np.delete(learner.components_, removed, axis=0)
        parts = (
            learner.analysis_components_,
            getattr(learner, "synthesis_components_", None),
        )
        if separate is True:
            parts = parts[0][None], learner.components_[None]
        parts = [to_tensor(np.delete(part, removed, axis=1)) for part in parts]
        thresholds = to_tensor(np.delete(learner.thresholds_, removed, axis=1))
        z = (
            LearnedEncoder(*parts, thresholds, positive_code)
            .encode(to_tensor(X))
            .numpy()
        )
        return np.square(X - z @ atoms).sum(axis=1), z

    errors, codes = error()
    total = np.square(X - X.mean(axis=0)).sum()
    naive = [
        (error(j)[0] - errors)[codes[:, j] != 0].sum() / total
        for j in range(len(atoms))
    ]
    np.testing.assert_allclose(atom_importance(learner, X).r2_loss, naive, atol=1e-9)


def test_missing_entries_and_split_signs(data):
    X, atoms = data
    split = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1, split_sign=True)
    whole = PUDLEDictionaryLearning.from_components(atoms, alpha=0.1)
    for name, values in atom_importance(split, X).items():
        np.testing.assert_allclose(values, atom_importance(whole, X)[name])
    with_gaps = X.copy()
    with_gaps[::3, 1] = np.nan
    assert (atom_importance(whole, with_gaps).r2_loss > 0).all()


@pytest.mark.draws_from_numpy
@pytest.mark.parametrize(
    "learner",
    [
        NMF(3, max_iter=1000, random_state=0),
        MiniBatchDictionaryLearning(3, transform_algorithm="lasso_cd", random_state=0),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_learners_of_scikit_learn(data, learner):
    X = np.abs(data[0])
    found = atom_importance(learner.fit(X), X)
    assert (found.r2_loss > 0).all()
    assert found.energy.sum() == pytest.approx(1)
