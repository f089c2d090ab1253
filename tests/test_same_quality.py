"""tools/same_quality.py finds each figure that gets worse, and none where nothing does."""

import numpy as np
import pytest
import same_quality as tool
from test_same_bits import checkout

FIGURES = {"error": 0.2, "found": 1.0, "agreement": 0.9, "codes": 4.0, "seconds": 2.0}


def runs(**changes):
    return [dict(FIGURES, **changes) for _ in tool.SEEDS]


@pytest.mark.parametrize(
    ("figure", "kept", "broken"),
    [
        ("error", 0.219, 0.221),
        ("found", 0.991, 0.989),
        ("agreement", 0.881, 0.879),
        ("codes", 4.39, 4.41),
        ("codes", 3.61, 3.59),
        ("seconds", 2.39, 2.41),
    ],
)
def test_a_figure_beyond_its_limit_breaks_the_contract(figure, kept, broken):
    assert tool.compare(runs(), runs(**{figure: kept})).broken == []
    one = tool.compare(runs(), runs(**{figure: broken}))
    assert one.broken == [figure]
    assert f"{figure} " in tool.describe("case", one).partition("!")[0]
    assert tool.judge_all({"case": one})[0]


@pytest.mark.parametrize(("figure", "value"), [("error", 0.208), ("seconds", 2.1)])
def test_a_median_beyond_its_limit_breaks_the_contract(figure, value):
    one = tool.compare(runs(), runs(**{figure: value}))
    assert one.broken == []
    is_broken, text = tool.judge_all(dict.fromkeys(range(100), one))
    assert is_broken
    assert f"broken by the median: {figure}" in text


def test_atoms_match_at_any_sign_and_shift():
    atoms = np.random.default_rng(0).standard_normal((3, 8, 2))
    moved = np.zeros_like(atoms)
    atoms[:, 6:] = 0
    moved[:, 2:] = -3 * atoms[:, :6]
    np.testing.assert_allclose(tool.match(atoms, moved[::-1]), 1)
    rows = atoms.reshape(3, -1)
    np.testing.assert_allclose(tool.match(rows, -rows[::-1]), 1)
    assert tool.match(rows, moved.reshape(3, -1)).max() < 1


def test_checkouts_are_compared_in_processes_of_their_own(tmp_path):
    places = [
        checkout(tmp_path / "one"),
        checkout(tmp_path / "other", begin="raise ValueError('no atoms')"),
    ]
    found = {}
    tool.run_cases(places, ["planted, few atoms"], 1, found.__setitem__)
    base, here = found["planted, few atoms"]
    assert tool.compare(base, base).is_equal
    assert tool.compare(base, here).broken == ["here: ValueError: no atoms"]
