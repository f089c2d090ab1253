"""The rules that hold the package together, read from its source.

Imports go down only; NumPy and torch meet in one module; what is optional is imported
where it is used. Ruff refuses what changes a global state.
"""

import ast
import tomllib
from pathlib import Path

import skpudle

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "skpudle"

# From low to high: imports go down from group to group. A new entry of the package belongs to one.
GROUPS = {
    # torch and not scikit-learn: tensors in, tensors out
    "mathematics": ["_compilation", "_precision", "_rows", "_states", "_shrinkage", "_losses",
                    "_operators", "lasso", "omp", "_units",
                    "encoding", "_gradients", "_optimizers", "_initialization", "search"],
    "boundary": ["_data"],
    "training": ["_fit"],
    "learners": ["_learners", "_denoiser", "_nmf"],
    "results": ["_estimators", "datasets", "metrics", "_consensus", "_imputer", "images",
                "pretrained", "inspection", "events", "sae", "plotting", "reporting",
                "__init__"],
}  # fmt: skip
ORDER = [entry for entries in GROUPS.values() for entry in entries]
# Only `_data.arrays` turns arrays into tensors and back ...
CONVERSIONS = {
    "torch.from_numpy",
    "torch.from_dlpack",
    "torch.utils.dlpack.from_dlpack",
}
# ... while these two may also meet a list or a tensor, which is all the mathematics sees.
CONVERSIONS_OF_ANYTHING = {"torch.as_tensor", "torch.asarray"}


def module(path):
    """Return the dotted name of a module inside the package: ``operators._dense``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def entry(name):
    """Return what of the top of the package a dotted name of a module belongs to."""
    return name.partition(".")[0]


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


# module: what is written in it
TREES = {module(path): parse(path) for path in sorted(PACKAGE.rglob("*.py"))}


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


def imported_modules(tree):
    """Yield the modules of the package that a module imports, or imports names from."""
    for name in imported(ast.walk(tree)):
        package, _, rest = name.partition(".")
        if package == "skpudle":
            parts = rest.split(".") if rest else []
            prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            yield next((prefix for prefix in prefixes if prefix in TREES), "__init__")


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


def test_the_top_of_the_package_is_an_overview():
    entries = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    entries -= {"__pycache__"}
    assert entries == set(ORDER), (
        "Every entry of the package belongs to one group of GROUPS."
    )


def test_imports_go_down_only():
    for here, tree in TREES.items():
        allowed = ORDER[: ORDER.index(entry(here)) + 1]
        upward = {name for name in imported_modules(tree) if entry(name) not in allowed}
        assert not upward, (
            f"{here} imports from its own height or above: {sorted(upward)}."
        )


def test_underscored_names_are_nobody_elses_business():
    """Private modules serve the whole package, along the layers; an underscored name its file."""
    private = [
        f"{here} imports {name}"
        for here, tree in TREES.items()
        for name in imported(ast.walk(tree))
        if name.startswith("skpudle.")
        and name.removeprefix("skpudle.") not in TREES
        and name.rpartition(".")[2].startswith("_")
    ]
    assert not private


def test_the_mathematics_does_not_know_scikit_learn():
    mathematics = {here for here in TREES if entry(here) in GROUPS["mathematics"]}
    knows = {
        here
        for here in TREES
        if "sklearn" in top_level(imported(ast.walk(TREES[here])))
    }
    assert not mathematics & knows


def test_arrays_and_tensors_meet_in_one_module():
    found = []
    for here in TREES.keys() - {"_data.arrays"}:
        forbidden = set(CONVERSIONS)
        if entry(here) not in GROUPS["mathematics"]:
            forbidden |= CONVERSIONS_OF_ANYTHING
        used = {
            name: line for name, line in uses(TREES[here]).items() if name in forbidden
        }
        found += [f"{here}: {name}, line {line}" for name, line in used.items()]
        found += [f"{here}: line {line}" for line in calls_numpy_method(TREES[here])]
    assert not found, f"Convert in _data/arrays.py, not in {found}."


def test_the_owner_of_the_repository_is_named_in_one_place():
    """Of the files that name a repository's address, only pyproject.toml is to be changed."""
    names = (
        "README.md",
        "CITATION.cff",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "recipe/recipe.yaml",
    )
    texts = [ROOT / name for name in names] + sorted((ROOT / "docs").rglob("*.rst"))
    texts += sorted((ROOT / ".github").rglob("*.yml"))
    assert [
        path.name for path in texts if "OWNER" in path.read_text(encoding="utf-8")
    ] == []
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]["urls"]
    assert urls["Issues"] == f"{urls['Repository']}/issues"
    assert urls["Changelog"].startswith(urls["Documentation"])


def test_modules_say_what_they_are_and_doors_what_is_public():
    """Doors are what users import: folders and modules at the top, not the modules of a folder."""
    for path in sorted(PACKAGE.rglob("*.py")):
        here, top = module(path), entry(module(path))
        assert ast.get_docstring(TREES[here]), f"{here} has no docstring."
        is_door = top == "__init__" or (here == top and not top.startswith("_"))
        names = skpudle.__all__ if top == "__init__" else public_names(TREES[here])
        assert bool(names) == is_door, f"{here}: doors alone have an __all__."
        if is_door:
            assert len(set(names)) == len(names)
            assert all(isinstance(name, str) for name in names)


def test_tests_look_at_no_clock():
    """A timed test fails on a busy machine: speed is for the benchmarks."""
    for path in (ROOT / "tests").rglob("*.py"):
        clocks = top_level(imported(ast.walk(parse(path)))) & {
            "time",
            "timeit",
            "datetime",
        }
        assert not clocks, f"{path.name} imports {sorted(clocks)}."
