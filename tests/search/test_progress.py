"""Progress of a search, for those who wait."""

import re
from itertools import pairwise

import pytest
import torch
from sklearn.callback import ProgressBar
from sklearn.callback._progressbar import RichTask

from skpudle import PUDLEDictionaryLearning
from skpudle.search import Problem, auto_alpha, search
from skpudle.search._search import SearchState
from skpudle.search.held_out import hold_out


@pytest.fixture
def planted(generator):  # -> x (n, m), atoms (p, m)
    atoms = torch.nn.functional.normalize(
        torch.randn(20, 12, generator=generator, dtype=torch.float64)
    )
    codes = torch.randn(1500, 20, generator=generator, dtype=torch.float64)
    codes = torch.where(torch.rand(1500, 20, generator=generator) < 0.1, codes, 0.0)
    return codes @ atoms, atoms


def test_the_share_rises_within_a_phase_and_ends_at_one(planted):
    x, _ = planted
    seen = []
    search(Problem(x, 0.1), x[:20], on_epoch=lambda s: seen.append((s.phase, s.share_done, s)))
    for (phase, before, one), (then, after, other) in pairwise(seen):
        assert 0 < before < 1
        assert after > before or (phase, one.stride) != (then, other.stride)
    assert seen[-1][1] == 1.0
    stages, names = seen[0][2].stages, [state.stage for _, _, state in seen[:-1]]
    assert list(dict.fromkeys(names)) == ["settle", "split and remove", "polish"]
    assert all(names.count(name) <= stages[name] for name in names)


def test_a_progress_bar_shows_each_stage_of_a_search(planted, capsys, monkeypatch):
    """A stage that ends early is complete, and with it a quarter of the search."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "200")
    seen, update = [], RichTask.progress.fget
    monkeypatch.setattr(RichTask, "progress", property(lambda task: note(task, update(task))))

    def note(task, share):
        seen.append((task.depth, task.total, share))
        return share

    learner = PUDLEDictionaryLearning(24, random_state=0).set_callbacks(ProgressBar())
    learner.fit(planted[0].numpy())
    shown = capsys.readouterr().out
    stages = list(SearchState.stages)
    for name in ("fit", "search", *stages):
        assert f"PUDLEDictionaryLearning - {name}" in shown
    n = len(stages)
    shares = [share for depth, total, share in seen if (depth, total) == (1, n)]
    assert shares == sorted(shares)
    assert {k / n for k in range(1, n + 1)} <= {round(share, 9) for share in shares}


def test_lines_tell_of_the_best_objective_which_never_rises_and_a_share_that_never_falls(
    planted, capsys
):
    x, _ = planted
    PUDLEDictionaryLearning(20, random_state=0, verbose=True).fit(x.numpy())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("search")]
    shares = [int(re.search(r"(\d+)% done", line)[1]) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    found = [re.search(r"best objective (\S+) a sample", line) for line in lines]
    best = [float(match[1]) for match in found if match]
    assert best == sorted(best, reverse=True)
    assert best
    assert all(re.search(r" \d+ atoms ", line) for line in lines)
