"""What a reader of the package meets is never more than in the last commit.

Each figure is an upper bound. They only fall: a change that needs fewer lines or names lowers its
figure here, and none raises one.
"""

import ast
from collections import Counter
from inspect import ismodule
from pathlib import Path

from test_project import PACKAGE, TREES

import skpudle

# Lines of code that are neither blank, nor comments, nor docstrings: of each folder of the package
# with the modules beside them as ".", of all of it, and of the tests.
BUDGET = {
    ".": 2292,
    "_data": 725,
    "_denoiser": 466,
    "_fit": 1125,
    "_learners": 1973,
    "_nmf": 601,
    "_operators": 161,
    "encoding": 661,
    "inspection": 455,
    "lasso": 926,
    "pretrained": 47,
    "search": 2567,
    "all of the package": 11999,
    "tests": 12096,
}
MOST_CLASSES_OF_A_LEARNER = 5
MOST_NAMES_OF_A_LEARNER = 77
MOST_PUBLIC_NAMES = 70
MOST_CONSTANTS = 212  # in capitals at the top of modules
MOST_NAMES_OF_SEVERAL_CONSTANTS = 0

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, *FUNCTIONS)
PUBLIC = [getattr(skpudle, name) for name in skpudle.__all__]
LEARNERS = [kind for kind in PUBLIC if hasattr(kind, "_parameter_constraints")]


def count_lines(path):
    """Return how many lines of a file are code."""
    text, of_docstrings = path.read_text("utf-8"), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, WITH_DOCSTRINGS) and ast.get_docstring(node) is not None:
            of_docstrings |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(s) and s[0] != "#" and i not in of_docstrings for i, s in lines)


def measure_lines():
    """Return the lines of code by the names of the table."""
    lines = Counter()
    for path in PACKAGE.rglob("*.py"):
        folder, *inside = path.relative_to(PACKAGE).parts
        lines[folder if inside else "."] += count_lines(path)
    lines["all of the package"] = sum(lines.values())
    lines["tests"] = sum(map(count_lines, Path(__file__).parent.rglob("*.py")))
    return lines


def test_no_folder_has_more_lines_than_before():
    lines = measure_lines()
    assert lines.keys() == BUDGET.keys()
    assert not {name: n - BUDGET[name] for name, n in lines.items() if n > BUDGET[name]}


def test_learners_are_short_chains_of_classes():
    for kind in LEARNERS:
        own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "skpudle"]
        names = {name for base in own for name in vars(base) if not name.startswith("__")}
        assert len(own) <= MOST_CLASSES_OF_A_LEARNER, kind
        assert len(names) <= MOST_NAMES_OF_A_LEARNER, kind


def test_users_meet_few_names():
    """Of the package and of its modules without an underscore; ``__version__`` is no name."""
    modules = [getattr(skpudle, name) for name in dir(skpudle) if ismodule(getattr(skpudle, name))]
    values = [getattr(module, name) for module in (skpudle, *modules) for name in module.__all__]
    assert len({id(value) for value in values}) - 1 <= MOST_PUBLIC_NAMES


# ---------------------------------------------------------------------------- source


def test_constants_are_few_and_their_names_differ():
    statements = [node for tree in TREES.values() for node in tree.body]
    targets = [node.targets for node in statements if isinstance(node, ast.Assign)]
    found = [node for group in targets for target in group for node in ast.walk(target)]
    names = [node.id for node in found if isinstance(node, ast.Name) and node.id.isupper()]
    assert len(names) <= MOST_CONSTANTS
    assert len(names) - len(set(names)) <= MOST_NAMES_OF_SEVERAL_CONSTANTS, Counter(names)
