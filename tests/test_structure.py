"""How the house is built: which floor may import which, and how large a room may be. Read off the source, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

import groupdetr

ROOT = Path(groupdetr.__file__).parent
SOURCES = {
    ".".join(("groupdetr", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in ROOT.rglob("*.py")
}
TREES = {
    name.removesuffix(".__init__"): ast.parse(path.read_text()) for name, path in SOURCES.items()
}

BELOW_DETECTORS = {
    "ops",
    "movable",
    "masks",
    "structures",
    "cameras",
    "outputs",
    "groups",
    "linear",
    "mlp",
    "places",
    "attention",
    "encoders",
    "queries",
    "heads",
    "decoder",
    "criterion",
    "backbones",
    "detector",
    "chunked",
}
MODEL_WING = BELOW_DETECTORS | {"detectors"}
READING = {
    f"groupdetr.weights.{name}" for name in ("reading", "layout", "imagenet")
}  # how backbones open their files
KNOW_NUM_GROUPS = {
    "groups",
    "queries",
    "detectors",
    "experiments",
    "weights",
    "cli",
    "commands",
    "training",
    "fitting",
    "validation",
    "reporting",
    "tasks",  # the command line
}


def floor(module: str) -> str:
    """The part of the library a module belongs to: ``groupdetr.ops.boxes`` to ``ops``."""
    return [*module.split("."), ""][1]


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (_module(node.module or "", alias.name) for alias in node.names)


def _module(package: str, name: str) -> str:
    """``from package import name`` imports a module of that name, if there is one."""
    return f"{package}.{name}" if f"{package}.{name}" in TREES else package


IMPORTS = {
    name: {m for m in imported(tree) if m.split(".")[0] == "groupdetr"}
    for name, tree in TREES.items()
}


def offenders(floors: set[str], forbidden: set[str]) -> list[str]:
    return sorted(
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others - READING
        if floor(name) in floors and floor(other) in forbidden
    )


def test_ops_import_nothing_of_ours_but_each_other() -> None:
    assert not offenders({"ops"}, {floor(name) for name in TREES} - {"ops"})


def test_the_model_wing_imports_neither_data_nor_tasks_nor_engine() -> None:
    assert not offenders(MODEL_WING, {floor(name) for name in TREES} - MODEL_WING - {"errors"})


def test_nothing_below_detectors_imports_them() -> None:
    assert not offenders(BELOW_DETECTORS, {"detectors"})


def test_the_engine_imports_no_detector() -> None:
    assert not offenders(
        {"engine"}, MODEL_WING - {"structures", "outputs", "criterion", "ops", "groups"}
    )


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """Without what functions import when they are called: verbs of the command line do, to answer --help at once."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node)


def test_no_imports_run_in_a_circle() -> None:
    graph = {name: set(at_import_time(tree)) & TREES.keys() for name, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            yield getattr(node, field, None) or ""


def test_only_who_must_knows_the_number_of_groups() -> None:
    """Everybody else reads K off the shape of a tensor."""
    who = {name for name, tree in TREES.items() if "num_groups" in identifiers(tree)}
    assert {floor(name) for name in who} <= KNOW_NUM_GROUPS, sorted(who)


def test_the_model_asks_only_once_if_it_is_training_for_the_sake_of_groups() -> None:
    """Dropout, recomputation, denoising, the points of masks and GridMask, which has a probability, ask too, each in a
    line that says so."""
    asks = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if floor(name) in MODEL_WING
        and isinstance(node, ast.IfExp | ast.If)
        and "self.training" in ast.unparse(node.test)
    ]
    others = ("dropout", "recompute", "denoise", "points", "probability")
    assert len([ask for ask in asks if not any(other in ask for other in others)]) == 1, asks


# rooms

FUNCTIONS = [
    (f"{name}.{node.name}", node)
    for name, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Of the body, without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_are_short_and_take_few_parameters() -> None:
    assert median(lines(node) for _, node in FUNCTIONS) <= 8
    assert not [f"{name}: {lines(node)} lines" for name, node in FUNCTIONS if lines(node) > 50]
    assert not [
        f"{name}: {parameters(node)} parameters" for name, node in FUNCTIONS if parameters(node) > 6
    ]


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    assert not [f"{name}: {length} lines" for name, length in lengths.items() if length > 350]


def test_every_file_says_what_it_is_for() -> None:
    assert not [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
