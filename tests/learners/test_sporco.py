"""The adapter around SPORCO."""

import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import Lasso

from skpudle import Checkpoint, SporcoDictionaryLearning
from skpudle.datasets import make_dictionary_data, perturb_dictionary

bpdndl = pytest.importorskip("sporco.dictlrn.bpdndl")


@pytest.fixture(scope="module")
def problem():
    """Return samples, true atoms and atoms near them."""
    x, truth, _ = make_dictionary_data(400, 20, 30, 3, random_state=0)
    return x, truth, perturb_dictionary(truth, 0.3, random_state=1)


def test_the_dictionary_is_sporcos(problem):
    x, _, initial = problem
    learner = SporcoDictionaryLearning(
        alpha=0.1, max_iter=7, dict_init=initial, random_state=0
    )
    options = bpdndl.BPDNDictLearn.Options({"Verbose": False, "MaxMainIter": 7})
    atoms = initial / np.linalg.norm(initial, axis=1, keepdims=True)
    expected = bpdndl.BPDNDictLearn(atoms.T, x.T, 0.1, options).solve().T
    np.testing.assert_allclose(learner.fit(x).components_, expected, atol=1e-10)
    assert learner.n_iter_ == 7


@pytest.mark.draws_from_numpy
def test_codes_solve_the_lasso_one_by_one(problem):
    x, _, initial = problem
    learner = SporcoDictionaryLearning(
        max_iter=3, dict_init=initial, random_state=0
    ).fit(x)
    codes = learner.transform(x[:50])
    options = dict(fit_intercept=False, tol=1e-14, max_iter=100_000)
    lasso = Lasso(learner.alpha_ / x.shape[1], **options)
    expected = lasso.fit(learner.components_.T, x[:50].T).coef_
    np.testing.assert_allclose(codes, expected, atol=1e-6)
    np.testing.assert_allclose(learner.transform(x[7:8]), codes[7:8], atol=1e-12)


def test_options_reach_sporco(problem):
    x, _, initial = problem
    learner = SporcoDictionaryLearning(max_iter=3, dict_init=initial, random_state=0)
    centred = clone(learner).set_params(
        options={"CMOD": {"ZeroMean": True}, "MaxMainIter": 5}
    )
    centred.fit(x)
    np.testing.assert_allclose(centred.components_.mean(axis=1), 0, atol=1e-9)
    assert centred.n_iter_ == 5
    assert not np.allclose(learner.fit(x).components_.mean(axis=1), 0, atol=1e-3)


def test_a_checkpoint_is_refused(problem, tmp_path):
    learner = SporcoDictionaryLearning(max_iter=1, random_state=0)
    with pytest.raises(ValueError, match="writes no checkpoints"):
        learner.set_callbacks(Checkpoint(tmp_path / "fit.npz")).fit(problem[0])


def test_without_sporco_the_error_names_the_extra(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "sporco.dictlrn.bpdndl", None)
    with pytest.raises(ImportError, match=r"skpudle\[sporco\]"):
        SporcoDictionaryLearning(random_state=0).fit(problem[0])
