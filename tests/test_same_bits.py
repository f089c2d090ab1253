"""tools/same_bits.py finds a checkout equal to itself, and sees the smallest difference."""

import numpy as np
import same_bits

from skpudle.search import problem

CASE = "default, few rows"
# A package with the names that the case needs, and a share that its atoms are of the first rows.
CHECKOUT = """
class PUDLEDictionaryLearning:
    def __init__(self, n_components, {parameters}):
        self.n_components = n_components

    def fit(self, X):
        {begin}
        self.components_ = {share} * X[: self.n_components]

    def transform(self, X):
        return X @ self.components_.T

    def inverse_transform(self, X):
        return X @ self.components_
"""


def checkout(folder, share=1.0, parameters="random_state", begin="pass"):
    (folder / "skpudle").mkdir(parents=True)
    text = CHECKOUT.format(share=share, parameters=parameters, begin=begin)
    (folder / "skpudle" / "__init__.py").write_text(text)
    return folder


def test_a_case_equals_itself_and_not_a_changed_package(monkeypatch):
    base = same_bits.run_case(same_bits.CASES[CASE])
    assert {"components_", "alpha_", "search_alpha_", "codes", "loss_curve_"} <= base.keys()
    assert same_bits.compare(base, same_bits.run_case(same_bits.CASES[CASE])) == (True, "equal")
    monkeypatch.setattr(problem, "_ALPHA", np.nextafter(problem._ALPHA, 1))
    is_equal, text = same_bits.compare(base, same_bits.run_case(same_bits.CASES[CASE]))
    assert not is_equal
    assert "search_alpha_ up to " in text


def test_checkouts_are_compared_in_processes_of_their_own(tmp_path):
    one, near = checkout(tmp_path / "one"), checkout(tmp_path / "near", 1 + 2**-52)
    base, present = same_bits.run_checkouts([one, near], CASE)
    assert same_bits.compare(base[CASE], base[CASE]) == (True, "equal")
    is_equal, text = same_bits.compare(base[CASE], present[CASE])
    assert not is_equal
    assert text.startswith("codes up to ")
    assert "components_ up to " in text


def test_an_attribute_that_is_gone_is_a_difference():
    values = {"alpha_": np.ones(())}
    assert same_bits.compare(values, {}) == (False, "alpha_ is gone")
    assert same_bits.compare({}, values) == (True, "equal (alpha_ is new)")
    assert not same_bits.compare(values, {"alpha_": np.ones((), np.float32)})[0]
