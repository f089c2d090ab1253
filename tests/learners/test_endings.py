"""What ended a fit is told afterwards."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from small import EndsTheFit, make, make_data

from skpudle import (
    ConvDenoiser,
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
    SporcoDictionaryLearning,
)

X, _ = make_data()


STOPS_SEARCH = EndsTheFit("epoch of the search")
CONV = ConvPUDLEDictionaryLearning(2, atom_shape=4, random_state=0)
DENOISER = ConvDenoiser(2, atom_shape=4, stride=1, n_unfoldings=2, tol=None, random_state=0)
SPORCO = SporcoDictionaryLearning(6, max_iter=2, random_state=0)


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        (PUDLEDictionaryLearning(6, random_state=0), "search"),
        (make(tol=None), "max_iter"),
        (make(tol=0.9, max_iter=12), "tol"),
        (make().set_callbacks(EndsTheFit("epoch")), "callback"),
        (PUDLEDictionaryLearning(6, random_state=0).set_callbacks(STOPS_SEARCH), "callback"),
        (NOODLDictionaryLearning(6, max_iter=2, tol=None, random_state=0), "max_iter"),
        (CONV.set_callbacks(EndsTheFit("epoch")), "callback"),
        (PUDLEClassifier(6, max_iter=2, tol=None, random_state=0), "max_iter"),
        (PUDLEClassifier(6, supervision=0, random_state=0), "search"),
        (DENOISER.set_callbacks(EndsTheFit("epoch")), "callback"),
        (SPORCO, "max_iter"),
        (clone(SPORCO).set_callbacks(EndsTheFit("epoch")), "callback"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_fit_that_ends_says_by_what(learner, expected):
    if isinstance(learner, SporcoDictionaryLearning):
        pytest.importorskip("sporco")
    learner.fit(X, np.arange(len(X)) % 2)
    assert learner.ended_by_ == expected
    assert pickle.loads(pickle.dumps(learner.set_callbacks())).ended_by_ == expected


def test_what_goes_on_has_not_ended():
    learner = make().fit(X)
    assert not hasattr(learner.partial_fit(X), "ended_by_")
    atoms = learner.components_
    assert not hasattr(PUDLEDictionaryLearning.from_components(atoms, alpha=1), "ended_by_")
