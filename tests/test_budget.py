"""What a reader of the package meets is never more than in the last commit.

Each figure is an upper bound. A change that needs fewer nodes or names lowers its figure here. A
change that mends a result or a message may raise one, and its commit says what the nodes are for.
"""

import ast
from collections import Counter
from inspect import ismodule

from test_project import PACKAGE, TREES

import skpudle

# Syntax nodes, those of `ast.walk`, of each folder of the package, of modules beside the folders
# as ".", and of all of it. Lines are not counted: a bound on lines is met by packing them.
BUDGET = {
    ".": 31_924,
    "_data": 9_289,
    "_denoiser": 6_592,
    "_fit": 12_561,
    "_learners": 28_103,
    "_nmf": 9_012,
    "_operators": 2_528,
    "encoding": 8_755,
    "inspection": 10_375,
    "lasso": 13_681,
    "pretrained": 459,
    "search": 37_637,
    "all of the package": 170_881,
}
# Largest figures of the whole package. A line is one that is neither blank, nor a comment, nor of a
# docstring. In scikit-learn, formatted to the same width, a line has 6 nodes.
MOST_NODES_A_LINE = 9.7
MOST_PARALLEL = 0.001  # share of assignments that are ``a, b = x, y``
MOST_PLACEHOLDERS = 0.002  # share of assignments to a name of PLACEHOLDERS
MOST_SPLATS = 0.012  # share of calls with ``*arguments`` or ``**arguments``
PLACEHOLDERS = {"found", "given", "how", "known", "options"}  # names that tell nothing
MOST_CLASSES_OF_A_LEARNER = 5
MOST_NAMES_OF_A_LEARNER = 77
MOST_PUBLIC_NAMES = 70
MOST_CONSTANTS = 219  # in capitals at the top of modules
MOST_NAMES_OF_SEVERAL_CONSTANTS = 0

ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, *FUNCTIONS)
PATHS = sorted(PACKAGE.rglob("*.py"))
PUBLIC = [getattr(skpudle, name) for name in skpudle.__all__]
LEARNERS = [kind for kind in PUBLIC if hasattr(kind, "_parameter_constraints")]


def count_lines(path):
    """Return how many lines of a file are code."""
    text = path.read_text("utf-8")
    of_docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, WITH_DOCSTRINGS) and ast.get_docstring(node) is not None:
            of_docstrings |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(s) and s[0] != "#" and i not in of_docstrings for i, s in lines)


def count_nodes():
    """Return the numbers of syntax nodes by the names of the table."""
    nodes = Counter()
    for path in PATHS:
        folder, *inside = path.relative_to(PACKAGE).parts
        tree = ast.parse(path.read_text("utf-8"))
        nodes[folder if inside else "."] += sum(1 for _ in ast.walk(tree))
    nodes["all of the package"] = sum(nodes.values())
    return nodes


def names_of(assignment):
    """Return the names that an assignment sets."""
    targets = (
        assignment.targets
        if isinstance(assignment, ast.Assign)
        else [assignment.target]
    )
    return {
        n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
    }


def is_parallel(assignment):
    """Return whether an assignment is ``a, b = x, y``."""
    return isinstance(assignment.targets[0], ast.Tuple) and isinstance(
        assignment.value, ast.Tuple
    )


def has_splat(call):
    """Return whether a call has an argument ``*arguments`` or ``**arguments``."""
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return starred or any(keyword.arg is None for keyword in call.keywords)


def test_no_folder_has_more_nodes_than_before():
    nodes = count_nodes()
    assert nodes.keys() == BUDGET.keys()
    assert not {name: n - BUDGET[name] for name, n in nodes.items() if n > BUDGET[name]}


def test_code_says_one_thing_a_line():
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    assignments = [node for node in nodes if isinstance(node, ASSIGNMENTS)]
    plain = [node for node in assignments if isinstance(node, ast.Assign)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    placeholders = [node for node in assignments if names_of(node) & PLACEHOLDERS]
    assert len(nodes) <= MOST_NODES_A_LINE * sum(map(count_lines, PATHS))
    assert sum(map(is_parallel, plain)) <= MOST_PARALLEL * len(plain)
    assert len(placeholders) <= MOST_PLACEHOLDERS * len(assignments)
    assert sum(map(has_splat, calls)) <= MOST_SPLATS * len(calls)


def test_learners_are_short_chains_of_classes():
    for kind in LEARNERS:
        own = [
            base
            for base in kind.__mro__
            if base.__module__.partition(".")[0] == "skpudle"
            # which stands in for scikit-learn's own class before version 1.9
            and base.__module__ != "skpudle._fit.callbacks"
        ]
        names = {
            name for base in own for name in vars(base) if not name.startswith("__")
        }
        assert len(own) <= MOST_CLASSES_OF_A_LEARNER, kind
        assert len(names) <= MOST_NAMES_OF_A_LEARNER, kind


def test_users_meet_few_names():
    """Of the package and of its modules without an underscore; ``__version__`` is no name."""
    modules = [
        getattr(skpudle, name)
        for name in dir(skpudle)
        if ismodule(getattr(skpudle, name))
    ]
    values = [
        getattr(module, name)
        for module in (skpudle, *modules)
        for name in module.__all__
    ]
    assert len({id(value) for value in values}) - 1 <= MOST_PUBLIC_NAMES


# ---------------------------------------------------------------------------- source


def test_constants_are_few_and_their_names_differ():
    statements = [node for tree in TREES.values() for node in tree.body]
    targets = [node.targets for node in statements if isinstance(node, ast.Assign)]
    found = [node for group in targets for target in group for node in ast.walk(target)]
    names = [
        node.id for node in found if isinstance(node, ast.Name) and node.id.isupper()
    ]
    assert len(names) <= MOST_CONSTANTS
    assert len(names) - len(set(names)) <= MOST_NAMES_OF_SEVERAL_CONSTANTS, Counter(
        names
    )
