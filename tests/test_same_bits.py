"""tools/same_bits.py finds a checkout equal to itself, and sees the smallest difference."""

import same_bits

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
    (folder / "skpudle" / "__init__.py").write_text(CHECKOUT.format(share=share, begin=begin))
    return folder


def test_checkouts_are_compared_in_processes_of_their_own(tmp_path):
    one, near = checkout(tmp_path / "one"), checkout(tmp_path / "near", 1 + 2**-52)
    base, present = same_bits.run_checkouts([one, near], CASE)
    assert same_bits.compare(base[CASE], base[CASE]) == (True, "equal")
    is_equal, text = same_bits.compare(base[CASE], present[CASE])
    assert not is_equal
    assert text.startswith("codes up to ")
    assert "components_ up to " in text
