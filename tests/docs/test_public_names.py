"""The public names of the library resolve, have types and examples, and are in the reference."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import groupdetr

ROOT = Path(__file__).parents[2]
DOCUMENTED = [name for name in groupdetr.__all__ if callable(getattr(groupdetr, name))]


def type_checking_imports() -> dict[str, str]:
    """Return the imports of ``if TYPE_CHECKING`` in `groupdetr/__init__.py`: name -> module."""
    tree = ast.parse((ROOT / "groupdetr/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            imports[alias.name] = str(statement.module)
    return imports


def functions(item: Any) -> list[tuple[str, Any]]:
    """Return a function itself, or the documented methods and properties of a class."""
    if inspect.isfunction(item):
        return [(item.__name__, item)]
    found = []
    for name, value in vars(item).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not inspect.isfunction(function):
            continue
        # What dataclass has written has no file. Its types are those of the fields.
        is_written = function.__code__.co_filename != "<string>"
        if is_written and (name == "__init__" or not name.startswith("_")):
            found.append((name, function))
    return found


def reference_entries() -> set[str]:
    """Return what the pages of the reference show, such as ``groupdetr.train``."""
    pages = (ROOT / "docs/reference").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    return set(re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE))


def test_the_names_that_are_imported_when_used_are_those_that_type_checkers_see() -> None:
    lazy = {name: f"groupdetr.{module}" for name, module in groupdetr._MODULES.items()}
    assert lazy == type_checking_imports()
    assert sorted(lazy) == sorted(groupdetr.__all__) == sorted(dir(groupdetr))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Detecter'"):
        groupdetr.Detecter  # noqa: B018


def test_every_name_has_a_docstring_with_an_example() -> None:
    for name in DOCUMENTED:
        docstring = inspect.getdoc(getattr(groupdetr, name)) or ""
        assert re.match(r"[A-Z`].*[.:]\n", docstring), f"{name}: a sentence in the first line"
        assert ">>> " in docstring, name


def test_every_argument_and_every_result_has_a_type() -> None:
    for name in DOCUMENTED:
        for method, function in functions(getattr(groupdetr, name)):
            parameters = list(inspect.signature(function).parameters.values())
            untyped = [p.name for p in parameters if p.annotation is p.empty]
            assert untyped in ([], ["self"], ["cls"]), (name, method)
            assert "return" in function.__annotations__, (name, method)


def test_every_name_is_in_the_reference() -> None:
    entries = reference_entries()
    for name in DOCUMENTED:
        module = f"groupdetr.{groupdetr._MODULES[name]}"
        assert {f"groupdetr.{name}", module} & entries, name
