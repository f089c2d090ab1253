"""Write the type stubs of public modules from their signatures and numpydoc docstrings.

A docstring gives the type of each parameter, attribute and result, so that types are written once.
Words outside the vocabulary become ``Any``. ``make stubs`` writes the files, and ``make lint``
fails unless they are current; mypy's stubtest then compares them with the package at run time.
"""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from numpydoc.docscrape import ClassDoc, FunctionDoc

import skpudle

ROOT = Path(__file__).parents[1]
MODULES = sorted(m.name for m in iter_modules(skpudle.__path__) if m.name[0] != "_")
HEADER = """\
# Written by `make stubs` from signatures and docstrings: change those.
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import IO, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import SparseCoder
from sklearn.utils import Bunch
from torch import Tensor
"""
# words of docstrings, and their types
WORDS = {
    "None": "None",
    "array": "NDArray[Any]",
    "array-like": "ArrayLike",
    "bool": "bool",
    "callable": "Callable[..., Any]",
    "dict": "dict[str, Any]",
    "dict of str to int": "dict[str, int]",
    "dict of str to ndarray": "dict[str, NDArray[Any]]",
    "dtype": "DTypeLike",
    "file": "IO[bytes]",
    "file object": "IO[bytes]",
    "float": "float",
    "int": "int",
    "iterable of batches": "Iterable[Any]",
    "iterable of float": "Iterable[float]",
    "list of array-like": "Sequence[ArrayLike]",
    "list of images": "Sequence[ArrayLike]",
    "list of ndarray": "list[NDArray[Any]]",
    "list of str": "list[str]",
    "memory map": "np.memmap[Any, Any]",
    "ndarray": "NDArray[Any]",
    "path-like": "str | PathLike[str]",
    "scipy.sparse.csr_array": "csr_array",
    "self": "Self",
    "sequence of array-like": "Sequence[ArrayLike]",
    "sequence of float": "Sequence[float]",
    "str": "str",
    "torch.Generator": "torch.Generator",
    "torch.device": "torch.device",
    "tuple of float": "tuple[float, ...]",
    "tuple of int": "tuple[int, ...]",
    "tuple of Tensor": "tuple[Tensor, ...]",
    "Bunch": "Bunch",
    "RandomState instance": "np.random.RandomState",
    "SparseCoder": "SparseCoder",
    "Tensor": "Tensor",
    "estimator": "Any",
    "learner": "Any",
}
# what a class is at run time, for stubs of classes whose bases are private
BASES = {"BaseEstimator": "BaseEstimator", "TransformerMixin": "TransformerMixin"}


def union(parts):
    """Return the union of types; Any absorbs the rest."""
    parts = sorted(dict.fromkeys(parts), key=lambda part: part == "None")
    return "Any" if not parts or "Any" in parts else " | ".join(parts)


def type_of(text, known):
    """Return the type that a docstring's words describe.

    Parameters
    ----------
    text : str
        As in ``int or "auto", default=None``.
    known : set of str
        Names of classes in the stub.
    """
    text = re.sub(r",? *(default ?=|default:|optional).*", "", text)
    text = re.sub(r",? of shape \(.*\)(?= or |, or |$)", "", text)  # shapes are no types
    text = re.sub(r" of (that|the|one|the same) shape.*$", "", text)
    found = []
    for literal in re.findall(r"\{[^}]*\}", text):
        found.append(f"Literal[{literal[1:-1]}]")
    for word in re.split(r", or |, | or ", re.sub(r"\{[^}]*\}", "", text)):
        word = word.strip(" ,")
        if re.fullmatch(r'"[\w-]+"', word):
            found.append(f"Literal[{word}]")
        elif word in known:
            found.append(word)
        elif word:
            found.append(WORDS.get(word, "Any"))
    return union(found)


def documented(doc, section, known):  # -> dict of names and types
    return {
        name.strip(" *`"): type_of(entry.type, known)
        for entry in (doc.get(section, []) if doc else [])
        for name in entry.name.split(",")
    }


def result_of(function, doc, known):
    """Return the type of a function's result."""
    entries = doc["Returns"] if doc else []
    if entries:
        types = [type_of(entry.type or entry.name, known) for entry in entries]
        if len(types) == 1 and re.search(r"^\w+, \w+$", entries[0].type or entries[0].name):
            parts = (entries[0].type or entries[0].name).split(", ")
            types = [type_of(part, known) for part in parts]
        return types[0] if len(types) == 1 else f"tuple[{', '.join(types)}]"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        return "Any"
    given = [n for n in ast.walk(tree) if isinstance(n, ast.Return | ast.Yield) and n.value]
    return "Any" if given else "None"


def default_of(value):
    plain = value is None or isinstance(value, bool | int | float | str)
    return repr(value) if plain and repr(value) not in ("inf", "-inf", "nan") else "..."


def annotation(kind, name, text):
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return f"{marks.get(kind, '')}{name}: {text}"


def signature_of(function, types, *, bound):
    """Return the parameters of a function as a list of texts."""
    parameters = list(inspect.signature(function).parameters.values())
    texts = [parameters.pop(0).name] if bound and parameters else []
    starred = False
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            starred = True
        if p.kind is p.KEYWORD_ONLY and not starred:
            texts.append("*")
            starred = True
        text = types.get(p.name, "Any")
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            text = "Any"
        elif p.default is None and text != "Any" and "None" not in text.split(" | "):
            text = f"{text} | None"
        default = "" if p.default is p.empty else f" = {default_of(p.default)}"
        texts.append(annotation(p.kind, p.name, text) + default)
        if p.kind is p.POSITIONAL_ONLY:
            texts.append("/")
    positional_only = [i for i, t in enumerate(texts) if t == "/"]
    return [t for i, t in enumerate(texts) if t != "/" or i == positional_only[-1]]


def function_stub(name, function, known, *, bound=False, types=None):
    doc = FunctionDoc(function) if function.__doc__ else None
    types = documented(doc, "Parameters", known) if types is None else types
    parameters = ", ".join(signature_of(function, types, bound=bound))
    result = "None" if name == "__init__" else result_of(function, doc, known)
    return f"def {name}({parameters}) -> {result}: ..."


def fields_of(kind):  # -> names
    return {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()


def members_of(kind):  # public, and of this package; fields apart
    for name in sorted({*dir(kind)} - fields_of(kind)):
        if name.startswith("_") and name not in ("__call__", "__getitem__"):
            continue
        value = inspect.getattr_static(kind, name)
        plain = getattr(value, "__func__", getattr(value, "fn", value))  # `available_if` has `fn`
        if isinstance(value, property):
            plain = value.fget
        if getattr(plain, "__module__", "").startswith("skpudle"):
            yield name, value, plain


def class_stub(name, kind, known):
    doc = ClassDoc(kind)
    lines = []
    types = documented(doc, "Parameters", known)
    attributes = documented(doc, "Attributes", known)
    is_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    if is_tuple:
        bases = ["NamedTuple"]
        given = {**types, **attributes}
        lines += [
            f"{field}: {given.get(field, 'Any')}"
            + (" = ..." if field in kind._field_defaults else "")
            for field in kind._fields
        ]
    else:
        names = {base.__name__ for base in kind.__mro__}
        bases = [stub for base, stub in BASES.items() if base in names]
        if issubclass(kind, Warning):
            bases = [kind.__mro__[1].__name__]
        elif "Module" in names:
            bases = ["torch.nn.Module"]
        own = {member for member, *_ in members_of(kind)}
        constants = {
            n: types.get(n, "Any")
            for base in kind.__mro__
            if base.__module__.startswith("skpudle")
            for n, value in vars(base).items()
            if not n.startswith("_") and n not in own
            if not callable(value) or n in fields_of(kind)
        }
        given = constants | attributes
        lines += [f"{a}: {t}" for a, t in given.items() if a.isidentifier() and a not in own]
        if dataclasses.is_dataclass(kind) or "__init__" in {
            n for base in kind.__mro__ for n in vars(base) if base.__module__.startswith("skpudle")
        }:
            lines.append(function_stub("__init__", kind.__init__, known, bound=True, types=types))
    for member, value, plain in members_of(kind):
        if is_tuple and member in kind._fields:
            continue
        if isinstance(value, property):
            result = result_of(plain, FunctionDoc(plain) if plain.__doc__ else None, known)
            lines.append(f"@property\ndef {member}(self) -> {attributes.get(member, result)}: ...")
        elif isinstance(value, staticmethod):
            lines.append("@staticmethod\n" + function_stub(member, plain, known))
        elif isinstance(value, classmethod):
            lines.append("@classmethod\n" + function_stub(member, plain, known, bound=True))
        elif inspect.isfunction(plain):
            lines.append(function_stub(member, plain, known, bound=True))
    return f"class {name}({', '.join(bases)}):\n" + textwrap.indent(
        "\n".join(lines or ["..."]), "    "
    )


def stub_of(module, homes):
    """Return the stub of a module; names of other public modules are imported from them."""
    known = {n for n in module.__all__ if inspect.isclass(getattr(module, n))}
    imports, bodies = [], []
    for name in module.__all__:
        value = getattr(module, name)
        if homes[id(value)] != module.__name__:
            imports.append(f"from {homes[id(value)]} import {name} as {name}")
        elif inspect.isclass(value):
            bodies.append(class_stub(name, value, known))
        elif inspect.isfunction(value):
            bodies.append(function_stub(name, value, known))
        else:
            kind = "dict[str, Any]" if isinstance(value, dict) else type(value).__name__
            bodies.append(f"{name}: {kind}")
    if module is skpudle:
        imports += [f"from skpudle import {name} as {name}" for name in MODULES]
    names = ", ".join(map(repr, module.__all__))
    return "\n".join([HEADER, *imports, f"__all__ = [{names}]", *bodies]) + "\n"


def used_names_only(text):
    """Drop the imports that a stub makes no use of, and bring it into the house's format."""
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    config = ["--isolated", "--line-length", "100", "--stdin-filename", "stub.pyi", "-"]
    for command in (["check", "--quiet", "--fix", "--select", "F401,I"], ["format", "--quiet"]):
        done = subprocess.run(
            [*ruff, *command, *config], input=text, capture_output=True, text=True, check=True
        )
        text = done.stdout
    return text


def main(check):
    """Write the stubs, or with ``check`` return the names of files that are not current."""
    modules = [import_module(f"skpudle.{name}") for name in MODULES] + [skpudle]
    homes = {}
    for module in modules:
        for name in module.__all__:
            homes.setdefault(id(getattr(module, name)), module.__name__)
    stale = []
    for module in modules:
        path, text = (
            Path(module.__file__).with_suffix(".pyi"),
            used_names_only(stub_of(module, homes)),
        )
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if not check:
                path.write_text(text, "utf-8")
    return stale


if __name__ == "__main__":
    stale = main(check="--check" in sys.argv)
    if stale and "--check" in sys.argv:
        sys.exit(f"Not current: {', '.join(stale)}. Run `make stubs`.")
