"""Progress of a search, for those who wait."""

import re
from itertools import pairwise

import pytest
import torch

from skpudle import PUDLEDictionaryLearning
from skpudle.search import Problem, begin, search


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
    assert seen[-1][2].epoch <= begin(Problem(x, 0.1), x[:20]).most_epochs


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
