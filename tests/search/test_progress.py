"""Progress of a search, for those who wait."""

import re

import pytest
from planted import planted
from sklearn.callback import ProgressBar
from small import EndsTheFit

from skpudle import PUDLEDictionaryLearning


def test_each_epoch_of_a_search_is_a_task_and_a_line(capsys):
    pytest.importorskip("rich")
    epochs = EndsTheFit("epoch of the search", 0)  # which no number of tasks is
    learner = PUDLEDictionaryLearning(24, random_state=0, verbose=True)
    learner.set_callbacks(ProgressBar(), epochs).fit(planted(1500, 12)[0].numpy())
    shown = capsys.readouterr().out
    assert "PUDLEDictionaryLearning - search" in shown
    pattern = r"search, epoch (\d+)  ([a-z ]+)  (\d+) atoms  loss \S+"
    numbers, stages, n_atoms = zip(*re.findall(pattern, shown), strict=True)
    assert [*map(int, numbers)] == [*range(1, len(epochs.seen) + 1)]
    in_order = ["settle", "split and remove", "penalty", "polish", "done"]
    assert list(dict.fromkeys(stages)) == in_order
    assert n_atoms[-1] == "24"
