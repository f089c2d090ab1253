"""What the documentation says exists, is complete, and runs."""

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  its first import draws from Python's random

import skpudle

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for folder in ("", "guide/", "performance/")
    for path in DOCS.glob(f"{folder}*.rst")
)
MODULES = sorted(
    path.stem
    for path in (ROOT / "skpudle").iterdir()
    if (path.suffix == ".py" or path.is_dir()) and not path.stem.startswith("_")
)


def public_names():
    """Return every public name, as the API page writes it."""
    names = {name for name in skpudle.__all__ if not name.startswith("_")}
    for stem in MODULES:
        module = importlib.import_module(f"skpudle.{stem}")
        names |= {f"{stem}.{name}" for name in module.__all__ if name not in names}
    return names


def documented_names():
    text = (DOCS / "api.rst").read_text(encoding="utf-8")
    return set(re.findall(r"^   ([A-Za-z_]\w*(?:\.\w+)*)$", text, flags=re.MULTILINE))


def test_what_is_public_is_documented():
    assert documented_names() == public_names()


def public_values():
    for name in sorted(public_names()):
        *path, last = f"skpudle.{name}".split(".")
        yield name, getattr(importlib.import_module(".".join(path)), last)


def test_every_public_name_says_what_it_is():
    for name, value in public_values():
        if isinstance(value, dict):  # a registry, which the page explains
            continue
        assert value.__doc__, f"{name} has no docstring."
        members = vars(value).items() if isinstance(value, type) else ()
        silent = [
            key
            for key, member in members
            if callable(member) and not key.startswith("_") and not member.__doc__
        ]
        # torch calls these by convention; what they do is in the docstring of the class
        assert {*silent} <= {"forward", "backward"}, (
            f"{name} has methods without a docstring."
        )


def test_a_learner_says_what_it_does_by_default_before_its_parameters():
    most_words = {"PUDLEDictionaryLearning": 1200, "ConvPUDLEDictionaryLearning": 800}
    for name, value in public_values():
        if inspect.isclass(value) and hasattr(value, "fit_transform"):
            opening, _, rest = inspect.getdoc(value).partition("Parameters\n----------")
            assert "y default" in opening, name
            words = most_words.get(name, 600)
            assert len(inspect.getdoc(value).split()) <= words, name
            # which pages show before the parameters
            assert "Examples\n--------" in rest, name


def functions_of(value):
    """Return the function of a public name, or its methods."""
    if inspect.isfunction(value):
        return [value]
    if not inspect.isclass(value) or issubclass(value, tuple):
        return []
    names = [
        name for name in dir(value) if name == "__init__" or not name.startswith("_")
    ]
    members = [inspect.getattr_static(value, name) for name in names]
    members = [
        getattr(member, "__func__", getattr(member, "fn", member)) for member in members
    ]
    return [
        inspect.unwrap(member)
        for member in members
        if inspect.isfunction(member)
        and member.__module__.startswith("skpudle")
        and "."
        in member.__qualname__  # a method, and no function in a field of a dataclass
    ]


def test_public_signatures_have_types():
    for function in (
        function for _, value in public_values() for function in functions_of(value)
    ):
        signature = inspect.signature(function)
        untyped = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.name not in ("self", "cls")
            and parameter.annotation is parameter.empty
        ]
        assert not untyped, (
            f"{function.__qualname__} has parameters without a type: {untyped}."
        )
        assert signature.return_annotation is not signature.empty, function.__qualname__


def test_type_checkers_know_all_modules():
    text = (ROOT / "skpudle" / "__init__.py").read_text(encoding="utf-8")
    assert set(
        re.findall(r"^    from skpudle import (\w+) as", text, re.MULTILINE)
    ) == set(MODULES)


def test_links_of_the_readme_resolve():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert len(links) > 10
    assert not [
        link for link in links if "://" not in link and not (ROOT / link).exists()
    ]


def test_every_example_is_in_the_gallery():
    order = runpy.run_path(str(DOCS / "_ext" / "gallery_order.py"))["EXAMPLES"]
    assert set(order) == {path.name for path in (ROOT / "examples").glob("plot_*.py")}


def test_an_example_that_warns_fails_the_build():
    refuse = runpy.run_path(str(DOCS / "_ext" / "gallery_warnings.py"))[
        "refuse_warnings"
    ]
    before = warnings.filters[:]
    refuse({}, "plot_first_atoms.py", "before")
    with pytest.raises(RuntimeWarning, match="no effect"):
        warnings.warn("a parameter has no effect", RuntimeWarning, stacklevel=1)
    refuse({}, "plot_first_atoms.py", "after")
    assert warnings.filters == before


# ---------------------------------------------------------------------------- a newcomer's path


def readme_code():
    return re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )[1]


@pytest.mark.draws_from_numpy
def test_the_first_code_that_a_newcomer_sees_prints_what_it_says(capsys, monkeypatch):
    """With what the package itself depends on; scikit-learn's photographs would need Pillow."""
    for extra in ("PIL", "matplotlib"):
        monkeypatch.setitem(sys.modules, extra, None)
    exec(compile(readme_code(), "README.md", "exec"), {})
    said = re.search(
        r"```text\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )[1]
    assert capsys.readouterr().out == said


@pytest.mark.draws_from_numpy
def test_the_readme_goes_from_file_to_file(monkeypatch, tmp_path):
    files = pytest.importorskip("imageio.v3")
    photograph = np.random.default_rng(0).integers(
        256, size=(24, 32, 3), dtype=np.uint8
    )
    files.imwrite(tmp_path / "photograph.png", photograph)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    (code,) = [block for block in blocks if "imwrite" in block]
    exec(compile(code, "README.md", "exec"), {})
    clean = files.imread(tmp_path / "clean.png")
    assert (clean.dtype, clean.shape) == (photograph.dtype, photograph.shape)


def test_modules_are_there_when_they_are_used_and_not_before():
    """Neither what is optional nor the modules that only some programs need."""
    modules = "matplotlib", "skimage", "sporco", "PIL", "safetensors", "torch._dynamo"
    names = [
        *modules,
        *(f"skpudle.{name}" for name in ("datasets", "images", "pretrained")),
    ]
    code = f"""
import sys
import skpudle
print([name for name in ("torch", "sklearn", "numba") if name in sys.modules])
learner = skpudle.PUDLEDictionaryLearning
print([name for name in {names} if name in sys.modules])
assert {MODULES!r} == [name for name in dir(skpudle) if name in {MODULES!r}]
print(skpudle.pretrained.load_denoiser().n_components)
try:
    skpudle.pretrain
except AttributeError as error:
    print(error)
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])
    }
    program = [sys.executable, "-c", code]
    done = subprocess.run(
        program, capture_output=True, text=True, env=environment, check=False
    )
    assert not done.returncode, done.stderr
    said = ["[]", "[]", "64", "module 'skpudle' has no attribute 'pretrain'"]
    assert done.stdout.splitlines() == said


# ---------------------------------------------------------------------------- tables of results


def test_every_measurement_is_on_one_page():
    """Files of several directives: ``learner-results``, ``benchmark-table:: NAME`` and so on."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = [
        name
        for names in re.findall(r"benchmark-tables:: (.+)", text)
        for name in names.split()
    ]
    shown += re.findall(r"benchmark-table:: (.+)", text)
    shown += ["learners", "concepts", "depth", "intervals", "waveforms"]
    shown += ["large", "large_epochs", "large_ksvd"]
    folder = ROOT / "benchmarks" / "results"
    files = {path.stem for path in folder.glob("*.json")}
    assert files <= set(shown)
    assert set(shown) <= files
