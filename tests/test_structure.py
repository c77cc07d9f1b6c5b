"""The structure of the package: which room may import which, read from the source.

A room is a folder or a module at the top of the package, such as `groupdetr/ops` or `groups.py`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import groupdetr
from groupdetr.cli.main import COMMANDS

ROOT = Path(groupdetr.__file__).parent


def module_name(path: Path) -> str:
    parts = ("groupdetr", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for path in ROOT.rglob("*.py")}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}

# From the bottom to the top. Imports only go down this list.
FLOORS = [
    {"console"},
    {"errors", "ops", "version"},
    {"files", "settings", "structures"},
    {"groups", "checkpoints", "data"},
    {"criterion", "evaluation", "visualize"},
    {"modeling"},
    {"detectors"},
    {"experiments", "engine"},
    {"registry"},
    {"weights", "analysis", "report", "huggingface"},
    {"tasks"},
    {"deployment", "web"},
    {"paper"},
    {"workflows"},
    {"cli"},
    {"__main__"},
]
MODEL = {"ops", "structures", "groups", "modeling", "criterion", "detectors"}
KNOW_NUM_GROUPS = {"detectors", "experiments", "weights", "report", "tasks", "paper", "workflows"}


def room(module: str) -> str:
    """The part of the package that a module belongs to: ``groupdetr.ops.boxes`` to ``ops``."""
    return module.split(".")[1] if "." in module else "__init__"


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """The modules of ours that a file imports, at its top or inside a function.

    ``from package import name`` imports the module of that name if there is one. Otherwise the
    name comes from the package's ``__init__``, and with it from the module that defines it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] == "groupdetr"
            )
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            if (node.module or "").split(".")[0] != "groupdetr":
                continue
            for alias in node.names:
                full_name = f"{node.module}.{alias.name}"
                yield full_name if full_name in TREES else defining_module(node.module, alias.name)


def imported_names(tree: ast.AST) -> dict[str, tuple[str, str]]:
    """The names that a file imports from modules of ours, with the module and the name there."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in TREES
        for alias in node.names
    }


def defining_module(package: str, name: str) -> str:
    """The module that defines what ``package/__init__.py`` imports under this name."""
    module, name_there = IMPORTED_NAMES[package].get(name, (package, name))
    return package if module == package else defining_module(module, name_there)


IMPORTED_NAMES = {name: imported_names(tree) for name, tree in TREES.items()}
IMPORTS = {name: set(imported_modules(tree)) - {name} for name, tree in TREES.items()}
ROOMS = {room(name) for name in TREES}


def test_imports_only_go_down() -> None:
    floor_of = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    assert ROOMS - {"__init__"} == floor_of.keys(), "a new room needs a floor"
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if "__init__" not in (room(name), room(other))
        and room(name) != room(other)
        and floor_of[room(other)] >= floor_of[room(name)]
    ]
    assert not upward


def test_the_package_face_is_lazy_and_nobody_of_ours_uses_it() -> None:
    """`groupdetr/__init__.py` imports what it offers only when it is used."""
    modules = {node.module for node in TREES["groupdetr"].body if isinstance(node, ast.ImportFrom)}
    ours = {module for module in modules if (module or "").startswith("groupdetr")}
    assert not ours
    users = [name for name, others in IMPORTS.items() if "groupdetr" in others]
    assert not users, "they import from the package face"


def test_no_imports_run_in_a_circle() -> None:
    """Neither at import time nor inside functions."""
    graph = {name: others & TREES.keys() for name, others in IMPORTS.items() if name != "groupdetr"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_at_most_eight_modules_are_at_the_top() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 8


def importers(importing: set[str], imported: set[str]) -> list[str]:
    return sorted(
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(name) in importing and room(other) in imported
    )


def test_ops_import_nothing_of_ours() -> None:
    assert not importers({"ops"}, ROOMS - {"ops"})


def test_the_model_imports_neither_data_nor_tasks_nor_engine() -> None:
    assert not importers(MODEL, ROOMS - MODEL - {"errors", "checkpoints"})


def test_the_engine_imports_no_detector() -> None:
    assert not importers({"engine"}, {"detectors", "experiments", "weights", "tasks"})


def test_no_library_module_imports_the_command_line() -> None:
    assert not importers(ROOMS - {"cli", "__main__"}, {"cli"})


def test_only_main_knows_both_options_and_workflows() -> None:
    """Options do not import workflows, and `main` passes their fields on as keyword arguments."""
    assert not importers({"cli"}, {"workflows"})
    for command in COMMANDS.values():
        options = load(command.options)
        workflow = inspect.signature(load(command.workflow)).parameters
        # `main` itself loads plugins and prints JSON.
        assert workflow.keys() == options.__dataclass_fields__.keys() - {"plugin", "json"}, command
        assert not hasattr(options, "run") or "run" in options.__dataclass_fields__


def load(path: str) -> type:
    module, name = path.split(":")
    return getattr(import_module(module), name)


def test_only_some_rooms_know_the_number_of_groups() -> None:
    """Everybody else reads K from the shape of a tensor."""
    rooms = {
        room(name)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("recipe.num_groups")
    }
    assert rooms <= KNOW_NUM_GROUPS


def test_groups_depend_on_training_in_one_line() -> None:
    """Only `QuerySource.active_groups` asks if the model trains for the sake of groups.

    Dropout, gradient checkpointing, denoising, the points of masks and GridMask ask too, each in a
    line that says so.
    """
    tests = [
        f"{name}: {ast.unparse(node.test)}; {ast.unparse(node)[:200]}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if room(name) in MODEL
        and isinstance(node, ast.IfExp | ast.If)
        and "self.training" in ast.unparse(node.test)
    ]
    others = ("dropout", "recompute", "denois", "points", "probability")
    assert len([test for test in tests if not any(other in test for other in others)]) == 1, tests


def test_every_file_says_what_it_is_for() -> None:
    assert not [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
