"""Shrinkages solve the problems that they claim to solve, entry by entry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpudle._shrinkage import SHRINKAGES, join_signs, split_signs
from skpudle._shrinkage import shrink as shrink_

VARIANTS = [(name, positive) for name in SHRINKAGES for positive in (False, True)]
PENALTIES = {
    "soft": lambda z, level: level * z.abs(),
    "hard": lambda z, level: level**2 / 2 * (z != 0).to(z),
}


def objective(name, z, v, level):
    return 0.5 * (z - v).square() + PENALTIES[name](z, level)


@torch.no_grad()
def shrink(v, level, name, positive):
    level = torch.tensor(level, dtype=v.dtype)
    return shrink_(v.clone(), level, name, positive=positive)


@pytest.mark.parametrize(("name", "positive"), VARIANTS)
@settings(deadline=None, derandomize=True)
@given(v=st.floats(-4, 4), level=st.floats(0, 3))
def test_shrinkage_beats_a_grid_of_alternatives(name, positive, v, level):
    """The proximal map of the penalty has the least objective among all codes allowed."""
    v = torch.tensor(v, dtype=torch.float64)
    shrunk = shrink(v, level, name, positive)
    grid = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    alternatives = torch.cat([grid, v.view(1), torch.zeros(1)])
    if positive:
        assert shrunk >= 0
        alternatives = alternatives[alternatives >= 0]
    best = objective(name, alternatives, v, level).min()
    assert objective(name, shrunk, v, level) <= best + 1e-15 * (1 + v.square())


def test_hard_shrinkage_keeps_what_is_at_the_threshold():
    v = torch.tensor([-0.5, -0.25, 0.25, 0.5])
    assert shrink(v, 0.5, "hard", False).tolist() == [-0.5, 0.0, 0.0, 0.5]
    assert shrink(v, 0.5, "hard", True).tolist() == [0.0, 0.0, 0.0, 0.5]


def test_parts_of_signed_codes_are_not_negative_and_join_to_the_codes(generator):
    z = torch.randn(4, 3, generator=generator)
    parts = split_signs(z)
    assert parts.amin() == 0
    assert (parts.count_nonzero(1) == 3).all()
    assert torch.equal(join_signs(parts), z)
    assert (join_signs(parts.numpy()) == z.numpy()).all()
