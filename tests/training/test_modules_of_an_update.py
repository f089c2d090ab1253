"""How many modules a reader of one update meets."""

import sys
from pathlib import Path

import numpy as np
import pytest

import skpudle
from skpudle import PUDLEDictionaryLearning
from skpudle._fit.train import Trainer

PACKAGE = Path(skpudle.__file__).parent
ONE_EPOCH = dict(n_unfoldings=5, max_iter=1, tol=None, dict_init="data", random_state=0)


def modules_of_updates(learner, X, monkeypatch):
    """Return the modules of the package whose functions the updates of a fit call."""
    met, update = set(), Trainer._update

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            met.add(path.relative_to(PACKAGE).as_posix())

    def noted(trainer, batch):
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            return update(trainer, batch)
        finally:
            sys.setprofile(before)

    monkeypatch.setattr(Trainer, "_update", noted)
    learner.fit(X)
    return met


@pytest.mark.parametrize("params", [{}, {"shrinkage": "hard"}, {"lambda_decay": 0.9}], ids=str)
def test_one_update_of_rows_passes_few_modules(params, monkeypatch):
    X = np.random.default_rng(0).standard_normal((40, 8))
    learner = PUDLEDictionaryLearning(12, optimizer="adam", batch_size=10, **ONE_EPOCH | params)
    assert len(modules_of_updates(learner, X, monkeypatch)) <= 14
