"""Ratchets: what a reader of the package meets is never more than in the last commit.

Each figure is an upper bound. Lower one whenever a change allows it, until it is at its goal.
"""

import ast
import re
import sys
from inspect import ismodule
from pathlib import Path

import numpy as np
import pytest

import skpudle
from skpudle import (
    ConvPUDLEDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
)

# name: (bound, goal). A call passes files and functions of the package; see each test for the rest.
RATCHETS = {
    "files of a default fit": (35, 24),
    "functions of a default fit": (336, 150),
    "files of a transform": (17, 13),
    "functions of a transform": (58, 50),
    "files of a training": (43, 26),
    "functions of a training": (391, 160),
    "files of a classifier": (44, 36),
    "functions of a classifier": (404, 240),
    "files of a convolution": (36, 30),
    "functions of a convolution": (269, 210),
    "classes of a learner": (5, 5),
    "names of a learner": (75, 75),
    "functions of more than 8 parameters": (7, 0),
    "underscored attributes of others": (0, 0),
    "public names": (67, 67),
}
MOST_PARAMETERS = 8
OF_SCIKIT_LEARN = {"_parameter_constraints"}  # by which subclasses go on from their parent's

PACKAGE = Path(skpudle.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in MODULES}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LEARNERS = [kind for kind in vars(skpudle).values() if hasattr(kind, "_parameter_constraints")]


def assert_at_most(name, found, offenders=()):
    bound, goal = RATCHETS[name]
    assert found <= bound, f"{name}: {found:.4g}, at most {bound} before, goal {goal}. {offenders}"


# ---------------------------------------------------------------------------- calls


def passed_by(call):
    """Return the files and functions of the package that a call passes when it is made again."""
    call()  # compiled functions and whatever else comes once
    found = set()

    def note(frame, event, _):
        code = frame.f_code
        # comprehensions are frames in some versions of Python only
        if event == "call" and not code.co_name.startswith("<"):
            found.add((code.co_filename, code.co_firstlineno, code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    functions = {entry for entry in found if Path(entry[0]).is_relative_to(PACKAGE)}
    return {file for file, *_ in functions}, functions


def of_default_fit(X):
    return lambda: PUDLEDictionaryLearning(8, random_state=0).fit(X)


def of_transform(X):
    learner = PUDLEDictionaryLearning(8, random_state=0).fit(X)
    return lambda: learner.transform(X)


def of_training(X):
    params = dict(gradient="ae-ls", max_iter=2, tol=None, random_state=0)
    return lambda: PUDLEDictionaryLearning(8, **params).fit(X)


def of_classifier(X):
    params = dict(max_iter=2, tol=None, random_state=0)
    return lambda: PUDLEClassifier(8, **params).fit(X, X[:, 0] > 0)


def of_convolution(X):
    learner = ConvPUDLEDictionaryLearning(3, atom_shape=(4, 4), stride=2, random_state=0)
    return lambda: learner.fit(X.reshape(-1, 8, 8)[:12])


@pytest.mark.parametrize(
    ("name", "call_of"),
    [
        ("default fit", of_default_fit),
        ("transform", of_transform),
        ("training", of_training),
        ("classifier", of_classifier),
        ("convolution", of_convolution),
    ],
)
def test_a_call_passes_few_files_and_functions(name, call_of):
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((400, 8)) * (rng.random((400, 8)) < 0.3)
    X = codes @ rng.standard_normal((8, 64)) + 0.01 * rng.standard_normal((400, 64))
    found, functions = passed_by(call_of(X))
    assert_at_most(f"files of a {name}", len(found))
    assert_at_most(f"functions of a {name}", len(functions))


# ---------------------------------------------------------------------------- classes


def own_classes(kind):
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "skpudle"]


def test_learners_are_short_chains_of_classes():
    chains = {kind.__name__: own_classes(kind) for kind in LEARNERS}
    assert_at_most("classes of a learner", max(map(len, chains.values())))
    names = {
        name: {n for base in chain for n in vars(base) if not n.startswith("__")}
        for name, chain in chains.items()
    }
    assert_at_most("names of a learner", max(map(len, names.values())))


# ---------------------------------------------------------------------------- source


def where(path, node):
    return f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"


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
    assert_at_most("functions of more than 8 parameters", len(found), found)


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
            if isinstance(node, ast.Attribute) and node.attr in private:
                owner = node.value
                mine = isinstance(owner, ast.Name) and owner.id in ("self", "cls")
                parent = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
                found += (
                    []
                    if mine or parent or id(node) in new
                    else [f"{where(path, node)} {ast.unparse(node)}"]
                )
    assert_at_most("underscored attributes of others", len(found), found)


def test_users_meet_few_names():
    """Those of the package and of its modules without an underscore."""
    modules = [getattr(skpudle, name) for name in dir(skpudle) if ismodule(getattr(skpudle, name))]
    values = [getattr(module, name) for module in (skpudle, *modules) for name in module.__all__]
    n_names = len({id(value) for value in values}) - 1  # __version__ is no name
    assert_at_most("public names", n_names)
