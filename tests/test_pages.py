"""The Python on the pages runs as a reader types it, and prints what the pages say.

Blocks are doctests. What needs other programs is skipped, ``# doctest: +SKIP``.
"""

import doctest
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    path.relative_to(DOCS).as_posix(): path
    for path in sorted([*DOCS.glob("*.rst"), *DOCS.glob("guide/*.rst")])
    if ">>> " in path.read_text(encoding="utf-8")
}
# packages of blocks that run here and that skpudle does not install
NEEDED = {"guide/scikit_learn.rst": ["pandas", "dask"]}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.draws_from_numpy
@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning"
)  # torch's exporter warns of itself
def test_a_page_prints_what_it_says(name, monkeypatch, tmp_path):
    for package in ["matplotlib", *NEEDED.get(name, [])]:
        pytest.importorskip(package)
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    state, how = random.getstate(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    try:
        with torch.random.fork_rng():
            done = doctest.testfile(
                str(PAGES[name]), module_relative=False, optionflags=how
            )
    finally:
        plt.close("all")
        random.setstate(state)  # packages of the blocks draw from it
    assert not done.failed


def sentences_of(page):
    """Return the sentences of a page that have six words or more."""
    text = re.sub(
        r"(?ms)^```.*?^```|^\.\. code-block::.*?\n(?=\S)", "", page.read_text("utf-8")
    )
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z])|\n\n", re.sub(r"[`*]", "", text))
    return {" ".join(one.split()) for one in sentences if len(one.split()) >= 6}


def test_nothing_is_told_on_two_pages():
    pages = [
        DOCS.parent / "README.md",
        *sorted([*DOCS.glob("*.rst"), *DOCS.glob("guide/*.rst")]),
    ]
    told = Counter(sentence for page in pages for sentence in sentences_of(page))
    assert not [sentence for sentence, times in told.items() if times > 1]


def test_pages_have_no_blocks_of_python_that_no_test_runs():
    undirected = re.compile(
        r"code-block:: python\n|^(?!\.\.).*::\n\n +(?!>>>)\w+ = ", re.MULTILINE
    )
    assert not [
        name
        for name, page in PAGES.items()
        if undirected.search(page.read_text("utf-8"))
    ]
