"""What a reader of the package meets is never more than in the last commit.

Each figure is an upper bound. They only fall: a change that needs fewer lines or names lowers its
figure here, and none raises one.
"""

import ast
import re
from collections import Counter
from inspect import ismodule
from pathlib import Path

import skpudle

# Lines of code that are neither blank, nor comments, nor docstrings: of each folder of the package
# with the modules beside them as ".", of all of it, and of the tests.
BUDGET = {
    ".": 2274,
    "_data": 923,
    "_denoiser": 595,
    "_fit": 1356,
    "_learners": 2606,
    "_nmf": 731,
    "_operators": 259,
    "_optimizers": 197,
    "encoding": 1138,
    "inspection": 545,
    "lasso": 1099,
    "omp": 228,
    "pretrained": 70,
    "search": 2916,
    "all of the package": 14937,
    "tests": 14645,
}
MOST_CLASSES_OF_A_LEARNER = 5
MOST_NAMES_OF_A_LEARNER = 77
MOST_PUBLIC_NAMES = 70
MOST_CONSTANTS = 212  # in capitals at the top of modules
MOST_NAMES_OF_SEVERAL_CONSTANTS = 4
MOST_PARAMETERS = 8
MOST_FUNCTIONS_OF_MORE_PARAMETERS = 7
OF_SCIKIT_LEARN = {"_parameter_constraints"}  # by which subclasses go on from their parent's

PACKAGE = Path(skpudle.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
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
    for path in TREES:
        folder, *inside = path.relative_to(PACKAGE).parts
        lines[folder if inside else "."] += count_lines(path)
    lines["all of the package"] = sum(lines.values())
    lines["tests"] = sum(map(count_lines, Path(__file__).parent.rglob("*.py")))
    return lines


def compare_lines(lines, budget):
    """Return a sentence for each folder that is over its figure, or on one side only."""
    grown = [
        f"{name} has {n} lines of code, {n - budget[name]} more than its {budget[name]}."
        for name, n in lines.items()
        if n > budget.get(name, n)
    ]
    grown += [f"{name} with {lines[name]} lines has no figure." for name in lines.keys() - budget]
    return grown + [f"{name} has a figure and no files." for name in budget.keys() - lines]


def test_no_folder_has_more_lines_than_before():
    grown = compare_lines(measure_lines(), BUDGET)
    assert not grown, " ".join(grown)


def test_growth_and_folders_on_one_side_are_named():
    said = compare_lines({"old": 3, "new": 1, "same": 2}, {"old": 2, "gone": 5, "same": 2})
    assert said == [
        "old has 3 lines of code, 1 more than its 2.",
        "new with 1 lines has no figure.",
        "gone has a figure and no files.",
    ]


def test_lines_of_code_are_no_comments_and_no_docstrings(tmp_path):
    path = tmp_path / "module.py"
    text = '"""Two\n\nlines."""\n\n# comment\ndef f():\n    """One."""\n    return """\n"""\n'
    path.write_text(text)
    assert count_lines(path) == 3


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


def where(path, node):
    return f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"


def test_constants_are_few_and_their_names_differ():
    statements = [node for tree in TREES.values() for node in tree.body]
    targets = [node.targets for node in statements if isinstance(node, ast.Assign)]
    found = [node for group in targets for target in group for node in ast.walk(target)]
    names = [node.id for node in found if isinstance(node, ast.Name) and node.id.isupper()]
    assert len(names) <= MOST_CONSTANTS
    assert len(names) - len(set(names)) <= MOST_NAMES_OF_SEVERAL_CONSTANTS, Counter(names)


def assigned(kind):  # names in the body of a class
    targets = (node.targets for node in kind.body if isinstance(node, ast.Assign))
    return {name.id for group in targets for name in group if isinstance(name, ast.Name)}


def test_functions_have_few_parameters():
    """Of estimators parameters are the users', and compiled functions take no objects."""
    found = []
    for path, tree in TREES.items():
        if path.stem.endswith("_compiled"):
            continue
        of_estimators = {
            id(node)
            for kind in ast.walk(tree)
            if isinstance(kind, ast.ClassDef)
            and (kind.name in skpudle.__all__ or "_parameter_constraints" in assigned(kind))
            for node in kind.body
        }
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS) and id(node) not in of_estimators:
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                n = len([arg for arg in given if arg.arg not in ("self", "cls")])
                found += [f"{where(path, node)} {node.name}"] * (n > MOST_PARAMETERS)
    assert len(found) <= MOST_FUNCTIONS_OF_MORE_PARAMETERS, found


def own_private_names():
    """Return underscored names that the package defines; NamedTuple._replace is none of them."""
    found = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, FUNCTIONS):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if re.match(r"_(?!_)", name)} - OF_SCIKIT_LEARN


def of_new_instances(tree):
    """Yield the attributes of what a class method has made of its class, ``new = cls(...)``."""
    for function in (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)):
        assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        made = {
            target.id
            for node in assignments
            if ast.unparse(node.value).startswith("cls(")
            for target in node.targets
        }
        for node in ast.walk(function) if made else ():
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in made:
                yield node


def test_what_is_private_to_an_object_is_left_to_it():
    found, private = [], own_private_names()
    for path, tree in TREES.items():
        new = set(map(id, of_new_instances(tree)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in private and id(node) not in new:
                owner = node.value
                mine = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
                parent = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
                if not (mine or parent):
                    found.append(f"{where(path, node)} {ast.unparse(node)}")
    assert not found
