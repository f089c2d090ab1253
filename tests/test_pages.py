"""The Python on the pages of the guide runs as a reader pastes it, block after block.

A block that cannot run in the tests has a comment before it, ``.. not run: REASON``. `NOT_RUN`
lists all such blocks.
"""

import ast
import importlib.util
import random
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
ELSEWHERE = "index.rst", "quick_start.rst"  # test_documentation.py runs these and checks figures
PAGES = {
    path.relative_to(DOCS).as_posix(): path
    for path in sorted([*DOCS.glob("*.rst"), *DOCS.glob("guide/*.rst")])
    if path.name not in ELSEWHERE
}
# The number of blocks of a page that do not run here, by their reasons.
NOT_RUN = {
    "guide/concepts.rst": ["a network of yours"],
    "guide/images.rst": ["needs deepinv"],
    "guide/large_data.rst": [
        "started by torchrun",
        "needs a cluster",
        "needs a cluster",
        "needs a cluster",
    ],
    "guide/other_tools.rst": ["needs nilearn", "needs HyperSpy", "needs HyperSpy", "needs scanpy"],
}
OTHER_LANGUAGES = "console", "bash"


class Block(NamedTuple):
    """One block of Python on a page."""

    line: int  # its first line on the page, from 0
    code: str
    not_run: str | None  # the reason why it does not run in the tests


def indentation(line):
    return len(line) - len(line.lstrip())


def blocks_of(page):
    """Return the literal blocks of a page, and its code blocks but those of other languages."""
    lines, blocks, reason, position = page.read_text(encoding="utf-8").splitlines(), [], None, 0
    while position < len(lines):
        line, position = lines[position], position + 1
        directive = re.match(r"\s*\.\. code-block:: (\w+)", line)
        if mark := re.match(r"\s*\.\. not run: (.+)", line):
            reason = mark[1]
        elif directive or (line.endswith("::") and not line.lstrip().startswith("..")):
            start = position
            while position < len(lines) and (
                not lines[position].strip() or indentation(lines[position]) > indentation(line)
            ):
                position += 1
            body = lines[start:position]
            if directive is None or directive[1] not in OTHER_LANGUAGES:
                margin = min(indentation(text) for text in body if text.strip())
                code = "\n".join(text[margin:] for text in body)
                blocks.append(Block(start, code, reason))
            reason = None
        elif line.strip():  # the paragraph that leads to a literal block may follow its mark
            reason = reason if blocks_follow(lines, position) else None
    return blocks


def blocks_follow(lines, position):
    """Return whether a paragraph ends by leading to a literal block."""
    while position < len(lines) and lines[position].strip():
        position += 1
    return lines[position - 1].endswith("::")


def packages_of(code):
    """Return the packages that code imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def with_blocks():
    """Return the names of pages that have blocks which run here."""
    return [name for name, page in PAGES.items() if any(not b.not_run for b in blocks_of(page))]


@pytest.mark.parametrize("name", with_blocks())
@pytest.mark.draws_from_numpy
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's exporter warns of itself
def test_the_blocks_of_a_page_run_one_after_the_other(name, monkeypatch, tmp_path):
    page = PAGES[name]
    blocks = [block for block in blocks_of(page) if block.not_run is None]
    for package in {"matplotlib"}.union(*(packages_of(block.code) for block in blocks)):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"The page needs {package}.")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    names, state = {"__name__": "__main__"}, random.getstate()
    try:
        with torch.random.fork_rng():
            for block in blocks:  # line numbers of an error are those of the page
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
    finally:
        pyplot.close("all")
        random.setstate(state)  # packages of the blocks draw from it


def test_blocks_that_do_not_run_are_few_and_are_python():
    left_out = {}
    for name, page in PAGES.items():
        for block in blocks_of(page):
            if block.not_run is not None:
                ast.parse(block.code)
                left_out.setdefault(name, []).append(block.not_run)
    assert left_out == NOT_RUN


def test_blocks_are_found_with_their_marks(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text(
        "Text::\n\n    a = 1\n\n    b = 2\n\n"
        ".. not run: no network\n\nTwo lines\nof text::\n\n    c\n\n"
        ".. code-block:: console\n\n   $ d\n\n- item::\n\n      e\n\n"
        ".. not run: no GPU\n\n.. code-block:: python\n\n   f\n\nText::\n\n    g\n"
    )
    found = [(block.code.strip(), block.not_run) for block in blocks_of(page)]
    expected = [("a = 1\n\nb = 2", None), ("c", "no network"), ("e", None), ("f", "no GPU")]
    assert found == [*expected, ("g", None)]
