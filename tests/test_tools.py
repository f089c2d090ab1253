"""Tools that compare checkouts see the smallest difference, and each figure that gets worse."""

import re
from pathlib import Path

import constants
import numpy as np
import pytest
import same_bits
import same_quality as tool
from test_budget import LEARNERS

ROOT = Path(__file__).parents[1]

CASE = "default, few rows"
# A package with the names that the case needs, and a share that its atoms are of the first rows.
CHECKOUT = """
class PUDLEDictionaryLearning:
    def __init__(self, n_components, random_state):
        self.n_components = n_components

    def fit(self, X):
        {begin}
        self.components_ = {share} * X[: self.n_components]

    def transform(self, X):
        return X @ self.components_.T

    def inverse_transform(self, X):
        return X @ self.components_
"""


def checkout(folder, share=1.0, begin="pass"):
    (folder / "skpudle").mkdir(parents=True)
    (folder / "skpudle" / "__init__.py").write_text(
        CHECKOUT.format(share=share, begin=begin)
    )
    return folder


def test_the_smallest_difference_is_seen_in_processes_of_their_own(tmp_path):
    one, near = checkout(tmp_path / "one"), checkout(tmp_path / "near", 1 + 2**-52)
    base, present = same_bits.run_checkouts([one, near], CASE)
    assert same_bits.compare(base[CASE], base[CASE]) == (True, "equal")
    is_equal, text = same_bits.compare(base[CASE], present[CASE])
    assert not is_equal
    assert text.startswith("codes up to ")
    assert "components_ up to " in text


# ---------------------------------------------------------------------------- quality

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


def test_what_fails_in_a_checkout_breaks_the_contract(tmp_path):
    places = [
        checkout(tmp_path / "one"),
        checkout(tmp_path / "other", begin="raise ValueError('no atoms')"),
    ]
    found = {}
    tool.run_cases(places, ["planted, few atoms"], 1, found.__setitem__)
    base, here = found["planted, few atoms"]
    assert tool.compare(base, base).is_equal
    assert tool.compare(base, here).broken == ["here: ValueError: no atoms"]


# ---------------------------------------------------------------------------- constants, types


def test_cases_of_constants_that_comments_cite_exist():
    package = [path.read_text("utf-8") for path in (ROOT / "skpudle").rglob("*.py")]
    text = " ".join(re.sub(r"\n *# ?", " ", "".join(package)).split())
    cited = {*re.findall(r"benchmarks/constants\.py ([\w-]+)", text)}
    assert len(cited) >= 20
    assert cited <= constants.CASES.keys()


@pytest.mark.parametrize("name", constants.CASES)
def test_a_case_gives_constants_of_the_package_other_values(name):
    for constant in constants.CASES[name].constants:
        if isinstance(constant, tuple):
            owner, function, text = constant
            assert constants.source_with(owner, function, text, text)
            continue
        value = constants.current_value(constant)
        with constants.constant_set_to(constant, "another"):
            assert constants.current_value(constant) == "another"
        assert constants.current_value(constant) == value


def test_types_of_every_learner_refuse_an_unknown_parameter():
    lines = (ROOT / "tools" / "typed_usage.py").read_text("utf-8")
    refused = re.findall(r"^skpudle\.(\w+)\(.*# type: ignore\[call-arg\]$", lines, re.M)
    assert {kind.__name__ for kind in LEARNERS} <= {*refused}
