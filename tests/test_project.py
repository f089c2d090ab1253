"""The rules that hold the package together, read from its source.

Imports go down only; NumPy and torch meet in one module; what is optional is imported
where it is used; nothing touches a global random state.
"""

import ast
import itertools
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skpudle"

# From low to high: a module imports only from modules before it. Place new ones here.
TENSOR_LAYERS = [  # torch and not scikit-learn: tensors in, tensors out
    "_precision",
    "shrinkage",
    "_phases",
    "_steps",
    "_normal_maps",
    "operators",
    "_runs",
    "_planning",
    "active_set",
    "_lasso_batched",
    "_lasso_compiled",
    "lasso",
    "_omp_compiled",
    "omp",
    "encoding",
    "gradients",
    "optimizers",
    "pairwise",
    "initialization",
    "_stopping",
    "_training",
    "_conv_network",
    "_crops",
]
LAYERS = [
    *TENSOR_LAYERS,
    "_arrays",
    "_interrupts",
    "_sources",
    "distributed",
    "interoperability",
    "checkpoint",
    "_images",
    "datasets",
    "_code_metrics",
    "metrics",
    "_notices",
    "_transformer",
    "_base",
    "dictionary_learning",
    "noodl",
    "images",
    "_conv_training",
    "_denoising",
    "_conv_base",
    "convolutional",
    "pretrained",
    "sporco",
    "diagnostics",
    "_drawing",
    "_curves",
    "plotting",
    "reporting",
    "__init__",
]
MAX_LINES = 420

# Only `_arrays` turns arrays into tensors and back ...
CONVERSIONS = {"torch.from_numpy", "torch.from_dlpack", "torch.utils.dlpack.from_dlpack"}
# ... while these two may also meet a list or a tensor, which is all the tensor layers see.
CONVERSIONS_OF_ANYTHING = {"torch.as_tensor", "torch.asarray"}

GLOBAL_STATE = {
    "numpy.random.seed",
    "numpy.random.set_state",
    "numpy.seterr",
    "random.seed",
    "torch.autograd.set_detect_anomaly",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.manual_seed",
    "torch.seed",
    "torch.set_default_device",
    "torch.set_default_dtype",
    "torch.set_float32_matmul_precision",
    "torch.set_num_threads",
    "torch.use_deterministic_algorithms",
}
CLOCKS = {"time", "timeit", "datetime"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def files(folder):
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for path in sorted(folder.rglob("*.py"))
    ]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def layer(path):
    """Return the dotted name of a module inside the package, as it stands in LAYERS."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def outside_functions(node):
    """Yield the nodes that run when the module is imported."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS):
            yield from outside_functions(child)


def imported(nodes):
    """Yield the absolute dotted names that import statements ask for, once each."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import names no package here; ruff refuses those (TID252).
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level(names):
    return {name.partition(".")[0] for name in names}


def imported_layers(tree):
    """Yield the layers that a module imports; a name of the package itself is ``__init__``."""
    for name in imported(ast.walk(tree)):
        package, _, rest = name.partition(".")
        if package == "skpudle":
            parts = rest.split(".") if rest else []
            prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            yield next((prefix for prefix in prefixes if prefix in LAYERS), "__init__")


def dotted(node):
    """Return ``"torch.as_tensor"`` for that expression, None for what is no dotted name."""
    if isinstance(node, ast.Name):
        return {"np": "numpy"}.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (prefix := dotted(node.value)):
        return f"{prefix}.{node.attr}"
    return None


def uses(tree):
    """Map every dotted name that a module mentions or imports to a line that does."""
    found = {}
    for node in ast.walk(tree):
        names = imported([node]) if isinstance(node, ast.ImportFrom) else [dotted(node)]
        found.update((name, node.lineno) for name in names if name)
    return found


def calls_numpy_method(tree):
    """Return the lines that call ``something.numpy(...)`` or ``something.__array__()``."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"numpy", "__array__"}
    ]


def public_names(tree):
    """Return what ``__all__`` is set to, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in map(dotted, node.targets):
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("path", files(PACKAGE))
def test_module_has_a_layer(path):
    assert layer(path) in LAYERS, (
        f"{path.name} has no place among the layers: add it to LAYERS in {Path(__file__).name}, "
        "above all that it imports."
    )


@pytest.mark.parametrize("path", files(PACKAGE))
def test_imports_go_down_only(path):
    below = set(itertools.takewhile(lambda name: name != layer(path), LAYERS))
    upward = set(imported_layers(parse(path))) - below
    assert not upward, f"{path.name} imports from its own height or above: {sorted(upward)}."


@pytest.mark.parametrize("path", files(PACKAGE))
def test_tensor_layers_do_not_know_scikit_learn(path):
    if layer(path) in TENSOR_LAYERS:
        assert "sklearn" not in top_level(imported(ast.walk(parse(path))))


@pytest.mark.parametrize("path", files(PACKAGE))
def test_arrays_and_tensors_meet_in_one_module(path):
    tree = parse(path)
    if layer(path) == "_arrays":
        return
    forbidden = set(CONVERSIONS)
    if layer(path) not in TENSOR_LAYERS:
        forbidden |= CONVERSIONS_OF_ANYTHING
    found = {name: line for name, line in uses(tree).items() if name in forbidden}
    assert not found, f"Convert in _arrays.py, not in {path.name}: {found}."
    lines = calls_numpy_method(tree)
    assert not lines, f"Convert in _arrays.py, not in {path.name}, lines {lines}."


@pytest.mark.parametrize("path", files(PACKAGE))
def test_import_needs_no_optional_package(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = {re.match(r"[\w-]+", entry)[0] for entry in project["dependencies"]}
    installed = {"sklearn" if name == "scikit-learn" else name for name in distributions}
    at_import = top_level(imported(outside_functions(parse(path))))
    optional = at_import - installed - sys.stdlib_module_names - {"skpudle"}
    assert not optional, f"Import {sorted(optional)} inside the function that uses it."


@pytest.mark.parametrize("path", files(PACKAGE))
def test_global_state_is_left_alone(path):
    found = {name: line for name, line in uses(parse(path)).items() if name in GLOBAL_STATE}
    assert not found, f"{path.name} changes global state: {found}."


@pytest.mark.parametrize("path", files(PACKAGE))
def test_module_is_small(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{path.name} has {n_lines} lines: split it by concept."


@pytest.mark.parametrize("path", files(PACKAGE))
def test_module_says_what_it_is_and_what_is_public(path):
    tree = parse(path)
    assert ast.get_docstring(tree), f"{path.name} has no docstring."
    if path.stem == "__init__" or not path.stem.startswith("_"):
        names = public_names(tree)
        assert names, f"{path.name} has no __all__."
        assert len(set(names)) == len(names)
        assert all(isinstance(name, str) for name in names)


@pytest.mark.parametrize("path", files(ROOT / "tests"))
def test_tests_look_at_no_clock(path):
    """A timed test fails on a busy machine: speed is for the benchmarks."""
    clocks = top_level(imported(ast.walk(parse(path)))) & CLOCKS
    assert not clocks, f"{path.name} imports {sorted(clocks)}."
