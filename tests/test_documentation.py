"""What the documentation says exists, is complete, and runs."""

import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import skpudle

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path for folder in ("", "guide/", "performance/") for path in DOCS.glob(f"{folder}*.rst")
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


def test_every_public_name_is_documented():
    missing = public_names() - documented_names()
    assert not missing, f"Not in docs/api.rst: {sorted(missing)}."


def test_every_documented_name_is_public():
    unknown = documented_names() - public_names()
    assert not unknown, f"In docs/api.rst and not public: {sorted(unknown)}."


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_public_name_says_what_it_is(name):
    *path, last = f"skpudle.{name}".split(".")
    value = getattr(importlib.import_module(".".join(path)), last)
    if isinstance(value, dict):  # a registry, which the page explains
        return
    assert value.__doc__, f"{name} has no docstring."
    members = vars(value).items() if isinstance(value, type) else ()
    silent = [
        key
        for key, member in members
        if callable(member) and not key.startswith("_") and not member.__doc__
    ]
    # torch calls these by convention; what they do is in the docstring of the class
    assert set(silent) <= {"forward", "backward"}, f"{name} has methods without a docstring."


LEARNERS = [
    name
    for name, value in vars(skpudle).items()
    if inspect.isclass(value) and hasattr(value, "fit_transform") and not name.startswith("_")
]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_says_what_it_does_by_default_before_its_parameters(name):
    text = inspect.getdoc(getattr(skpudle, name))
    opening, _, rest = text.partition("Parameters\n----------")
    assert "y default" in opening
    assert "Examples\n--------" in rest  # which pages show before the parameters


def test_pages_of_the_api_show_examples_before_parameters():
    template = (DOCS / "_templates" / "numpydoc_docstring.rst").read_text(encoding="utf-8")
    sections = re.findall(r"{{(\w+)}}", template)
    assert sections.index("examples") < sections.index("parameters")
    numpydoc = pytest.importorskip("numpydoc")
    shipped = Path(numpydoc.__file__).parent / "templates" / "numpydoc_docstring.rst"
    assert set(sections) == set(re.findall(r"{{(\w+)}}", shipped.read_text(encoding="utf-8")))


def functions_of(value):
    """Return the function of a public name, or its methods."""
    if inspect.isfunction(value):
        return [value]
    if not inspect.isclass(value) or issubclass(value, tuple):
        return []
    names = [name for name in dir(value) if name == "__init__" or not name.startswith("_")]
    members = [inspect.getattr_static(value, name) for name in names]
    members = [getattr(member, "__func__", getattr(member, "fn", member)) for member in members]
    return [
        inspect.unwrap(member)
        for member in members
        if inspect.isfunction(member)
        and member.__module__.startswith("skpudle")
        and "." in member.__qualname__  # a method, and no function in a field of a dataclass
    ]


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_signatures_have_types(name):
    *path, last = f"skpudle.{name}".split(".")
    for function in functions_of(getattr(importlib.import_module(".".join(path)), last)):
        signature = inspect.signature(function)
        untyped = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.name not in ("self", "cls") and parameter.annotation is parameter.empty
        ]
        assert not untyped, f"{function.__qualname__} has parameters without a type: {untyped}."
        assert signature.return_annotation is not signature.empty, function.__qualname__


def test_type_checkers_know_all_modules():
    text = (ROOT / "skpudle" / "__init__.py").read_text(encoding="utf-8")
    assert set(re.findall(r"^    from skpudle import (\w+) as", text, re.MULTILINE)) == set(MODULES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_between_pages_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text):
        folder = DOCS if target.startswith("/") else page.parent
        path = (folder / target.lstrip("/")).resolve()
        if path.parent.name == "auto_examples":
            path = ROOT / "examples" / (path.name if path.name != "index" else "GALLERY_HEADER")
        found = [path.with_suffix(suffix) for suffix in (".rst", ".md", ".py")]
        assert any(file.exists() for file in found), f"{page.name} links to {target}."


def test_every_example_is_in_the_gallery():
    order = runpy.run_path(str(DOCS / "_ext" / "gallery_order.py"))["EXAMPLES"]
    assert set(order) == {path.name for path in (ROOT / "examples").glob("plot_*.py")}


def test_an_example_that_warns_fails_the_build():
    refuse = runpy.run_path(str(DOCS / "_ext" / "gallery_warnings.py"))["refuse_warnings"]
    before = warnings.filters[:]
    refuse({}, None, "before")
    assert warnings.filters == before
    refuse({}, "plot_first_atoms.py", "before")
    try:
        warnings.warn("FigureCanvasAgg is non-interactive, and thus cannot be shown", stacklevel=1)
        with pytest.raises(RuntimeWarning, match="no effect"):
            warnings.warn("a parameter has no effect", RuntimeWarning, stacklevel=1)
    finally:
        refuse({}, "plot_first_atoms.py", "after")
    assert warnings.filters == before


# ---------------------------------------------------------------------------- a newcomer's path


def start_page_code():
    text = (DOCS / "index.rst").read_text(encoding="utf-8")
    block = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", text)[1]
    return "\n".join(line[3:] for line in block.splitlines())


def readme_code():
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize("code", [start_page_code, readme_code])
@pytest.mark.draws_from_numpy
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_first_code_that_a_newcomer_sees_runs(code, capsys, monkeypatch):
    """With what the package itself depends on; scikit-learn's photographs would need Pillow."""
    for extra in ("PIL", "matplotlib"):
        monkeypatch.setitem(sys.modules, extra, None)
    exec(compile(code(), code.__name__, "exec"), {})
    assert "of the codes are not zero" in capsys.readouterr().out


def code_of(page):
    """Return the Python blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    blocks = re.findall(r"code-block:: python\n\n((?:    .*\n|\n)+)", text)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in blocks]


@pytest.mark.draws_from_numpy
def test_the_quick_start_runs_and_its_figures_are_right(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    page, names = DOCS / "quick_start.rst", {}
    printed = []
    for code in code_of(page):
        exec(compile(code, page.name, "exec"), names)
        printed.append(capsys.readouterr().out)
    text = page.read_text(encoding="utf-8")
    explained = re.search(r"(\d+)% of the variance explained", "".join(printed))[1]
    assert f"explain {explained} % of the variance" in text
    errors = re.findall(r"^error.* (\d\.\d+)$", "".join(printed), re.MULTILINE)
    assert len(errors) == 2
    for error in errors:
        assert f"{error} " in text
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.draws_from_numpy
def test_the_readme_goes_from_file_to_file(monkeypatch, tmp_path):
    files = pytest.importorskip("imageio.v3")
    photograph = np.random.default_rng(0).integers(256, size=(24, 32, 3), dtype=np.uint8)
    files.imwrite(tmp_path / "photograph.png", photograph)
    monkeypatch.chdir(tmp_path)
    (code,) = [block for block in code_of(ROOT / "README.md") if "imwrite" in block]
    exec(compile(code, "README.md", "exec"), {})
    clean = files.imread(tmp_path / "clean.png")
    assert (clean.dtype, clean.shape) == (photograph.dtype, photograph.shape)


def run_alone(code):
    """Return what a program prints that imports the package first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    program = [sys.executable, "-c", "import sys\nimport skpudle\n" + code]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert not done.returncode, done.stderr
    return done.stdout


def test_modules_are_there_when_they_are_used():
    code = f"""
assert {MODULES!r} == [name for name in dir(skpudle) if name in {MODULES!r}]
print(skpudle.pretrained.load_denoiser().n_components_)
try:
    skpudle.pretrain
except AttributeError as error:
    print(error)
"""
    assert run_alone(code).splitlines() == ["64", "module 'skpudle' has no attribute 'pretrain'"]


def test_the_package_is_imported_without_what_is_not_used():
    """Neither what is optional nor the modules that only some programs need."""
    modules = "matplotlib", "skimage", "sporco", "PIL", "safetensors", "torch._dynamo"
    own = "datasets", "images", "pretrained"
    names = [*modules, *(f"skpudle.{name}" for name in own)]
    assert run_alone(f"print([name for name in {names} if name in sys.modules])") == "[]\n"


# ---------------------------------------------------------------------------- tables of results


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(DOCS / "_ext" / "result_tables.py"))


def test_a_table_is_made_of_whatever_a_benchmark_wrote(tables, tmp_path):
    by_name = {"results": {"a": {"seconds": 0.25, "runs": 3}}, "machine": {"cpu": "X", "gpu": None}}
    rows = {"title": "Rows", "results": [{"name": "b", "gap": 1e-9, "all": [1, 2]}], "threads": 2}
    lists = {"results": {"first_list": [{"gap": 0.75}], "seeds": [0, 1]}}
    for name, content in {"by_name": by_name, "rows": rows, "lists": lists}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = tables["performance"](tmp_path)
    tables_shown = "By name", "Rows", "- a", "- 0.25", "- 1e-09", "Lists", "First list", "- 0.75"
    for part in (*tables_shown, "cpu X", "threads 2"):
        assert part in page
    assert "gpu" not in page
    assert "[1, 2]" not in page


def test_every_measurement_is_on_one_page():
    """Files of several directives: ``learner-results``, ``benchmark-table:: NAME`` and so on."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = [
        name for names in re.findall(r"benchmark-tables:: (.+)", text) for name in names.split()
    ]
    shown += re.findall(r"benchmark-table:: (.+)", text)
    shown += [
        "learners",
        "concepts",
        "depth",
        "intervals",
        "waveforms",
        "large",
        "large_epochs",
        "large_ksvd",
    ]
    folder = ROOT / "benchmarks" / "results"
    files = {path.stem for path in folder.glob("*.json")}
    assert files <= set(shown)
    assert set(shown) <= files | {"photographs"}  # which `make demo` measures


def test_without_results_the_pages_say_so(tables, tmp_path):
    assert "No measurement" in tables["performance"](tmp_path)
    assert "No result" in tables["paper"](tmp_path)
    assert "No result" in tables["denoising"](tmp_path)


def test_results_of_the_paper_have_a_row_and_a_curve(tables, tmp_path):
    result = {"update": [0, 5], "relative_error": [0.5, 0.25], "seconds": 90.0, "finished": False}
    (tmp_path / "figure5-s20-dec.json").write_text(json.dumps(result))
    (tmp_path / "figure5-s20-spams.json").write_text(json.dumps({"relative_error": 0.75}))
    (tmp_path / "theory.json").write_text(json.dumps({"slope_ratio": 2.01}))
    page = tables["paper"](tmp_path)
    for part in ("5 updates", "- 0.25", "- 0.75", "- 1.5", "not finished", "2.01"):
        assert part in page
    pytest.importorskip("matplotlib")
    tables["draw"](tmp_path / "drawn", tmp_path)
    assert (tmp_path / "drawn" / "paper-figure5.svg").exists()


@pytest.fixture
def learner_tables(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return runpy.run_path(str(DOCS / "_ext" / "learner_tables.py"))


def test_learners_are_compared_row_by_row(learner_tables, tmp_path):
    shared = {"data": "digits", "size": "9 x 4", "atoms": 5}
    rows = [
        {"learner": "a", "R2, m/10 atoms": 0.5, "held-out objective": 3.0, "seconds": 0.25},
        {"learner": "scikit-learn MiniBatch", "R2, m/10 atoms": 0.75, "held-out objective": 2.0}
        | {"seconds": 0.5},
        {"learner": "b", "note": "stopped after 9 s"},
    ]
    path = tmp_path / "learners.json"
    path.write_text(json.dumps({"results": [shared | row for row in rows], "threads": 2}))
    page = learner_tables["learners"](path)
    for part in (
        "- **0.75**",
        "- 0.5\n",
        "- 1.5\n",
        "- **1**",
        "- 9 x 4",
        "b: stopped after 9 s",
        "threads 2",
    ):
        assert part in page
    assert "matched" not in page  # what nobody has makes no table
    pytest.importorskip("matplotlib")
    learner_tables["draw"](tmp_path, path)
    assert (tmp_path / "learners.svg").exists()


def test_large_fits_make_a_table_and_curves(learner_tables, tmp_path):
    fit = {"atoms": 4096, "features": 512, "rows": 32768, "nonzero": 8, "threads": 2, "found": 0.5}
    fit |= {"seconds": 90.0, "cpu_seconds": 150.0, "megabytes": 412.4}
    path = tmp_path / "large.json"
    other = fit | {"atoms": 2048, "rows": 16384}
    path.write_text(json.dumps({"results": [fit, other]}))
    page = learner_tables["large"](path)
    for part in ("- 4,096, 512, 32,768", "- 1.5, 2 threads", "- 2.5", "- 412", "- 50.0%"):
        assert part in page
    pytest.importorskip("matplotlib")
    learner_tables["draw_large"](tmp_path, path)
    assert (tmp_path / "large.svg").exists()


def test_scores_of_concepts_are_means_beside_published_ones(learner_tables, tmp_path):
    run = {"method": "search", "p": 100, "n": 2500, "found": 0.5, "cpu_seconds": 2.0}
    rows = [run | {"mcc_ood": 0.5, "seed": 0}, run | {"mcc_ood": 1.0, "seed": 1}]
    path = tmp_path / "concepts.json"
    path.write_text(json.dumps({"results": rows, "published": {"SAE": {"100": 0.125}}}))
    page = learner_tables["concepts"](path)
    for part in ("published: SAE\n     - 0.125", "search, 2500 samples\n     - 0.750", "- 50.0%"):
        assert part in page


@pytest.fixture
def depth_tables(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return runpy.run_path(str(DOCS / "_ext" / "depth_tables.py"))


def test_the_best_gradient_of_each_depth_is_bold(depth_tables, tmp_path):
    shared = {"noise": "none", "unfoldings": 5, "smallest error": 0.1, "largest error": 0.3}
    rows = [
        shared | {"gradient": "dec", "error": 0.125, "explained": 0.5},
        shared | {"gradient": "ae-ls", "error": 0.25, "explained": 0.75},
    ]
    path = tmp_path / "depth.json"
    path.write_text(json.dumps({"results": rows, "circumstances": {"threads": 1}}))
    page = depth_tables["depths"](path)
    for part in ("- **0.125**", "- 0.250", "- 0.500", "- **0.750**", "threads 1"):
        assert part in page
    pytest.importorskip("matplotlib")
    depth_tables["draw"](tmp_path, path)
    assert (tmp_path / "depth.svg").exists()
    assert "No measurement" in depth_tables["depths"](tmp_path / "missing.json")
    assert "No measurement" not in depth_tables["depths"]()


def test_without_results_of_learners_the_pages_say_so(learner_tables, tmp_path):
    missing = tmp_path / "missing.json"
    assert "No measurement" in learner_tables["learners"](missing)
    assert "No measurement" in learner_tables["alone"](missing)
    assert "No measurement" in learner_tables["concepts"](missing)
    pytest.importorskip("matplotlib")
    learner_tables["draw"](tmp_path, missing)
    assert (tmp_path / "learners.svg").exists()


def test_committed_results_can_be_shown(tables):
    assert "No result" not in tables["paper"]()
    assert "25.67" in tables["denoising"]()  # beside ours
    assert "No measurement" not in tables["performance"]()
