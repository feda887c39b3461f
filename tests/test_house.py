"""The house rules: the order of imports, what may be imported early, docstrings' examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import gimlet_lab

ROOT = Path(gimlet_lab.__file__).parent

#: Left to right. What stands in one place may not import each other, but itself.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors", "progress"),
    ("model",),
    ("work",),
    ("hardware",),
    ("boundary",),
    ("capture",),
    ("analysis",),
    ("costs",),
    ("advisor",),
    ("backends",),
    ("adapt",),
)
#: These read nouns only.
READERS = ("export", "render")
NOUNS = ("errors", "progress", "model", "work")
#: Left out at import time: they are slow to load or may be missing.
LATE = ("torch", "ray", "matplotlib", "pandas", "ortools", "transformers", "IPython", "networkx", "tqdm")

FILES = sorted(ROOT.rglob("*.py"))


def part(module: str) -> str:
    """The part of the house that a module is in; the front's modules are parts of their own."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    names = [ROOT.name, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they go"
            if node.module == ROOT.name:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def place(name: str) -> int | None:
    return next((i for i, names in enumerate(ORDER) if name in names), None)


def test_the_order_covers_the_house() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"errors", "progress", "boundary"}
    placed = {name for names in ORDER for name in names} | set(READERS)
    assert folders - placed == set()


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_step_imports_a_step_to_its_right(path: Path) -> None:
    own = part(module_of(path))
    mine = place(own)
    if mine is None and own not in READERS:
        return  # the front sees all
    wrong = []
    for imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
        theirs = part(imported)
        if imported.split(".")[0] != ROOT.name or theirs == own:
            continue
        if own in READERS:
            # A page may need a row's text as a table has it: export may read render, not the other way round.
            allowed = theirs in NOUNS or (own == "export" and theirs == "render")
        else:
            there = place(theirs)
            allowed = there is not None and mine is not None and there < mine
        if not allowed:
            wrong.append(imported)
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_slow_packages_are_imported_inside_functions(path: Path) -> None:
    top = ast.parse(path.read_text(encoding="utf-8")).body
    found = [name for node in top if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If)
             for name in imports(node)]  # fmt: skip
    assert [name for name in found if name.split(".")[0] in LATE] == []


@pytest.mark.parametrize("name", [info.name for info in pkgutil.walk_packages([str(ROOT)], "gimlet_lab.")])
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    failed, _tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_examples_in_the_facade() -> None:
    failed, tried = doctest.testmod(gimlet_lab, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 0
