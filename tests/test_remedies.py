"""Every option that a message names exists in the command that prints the message."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache

from groupdetr.cli.main import COMMANDS, read_options
from tests.test_structure import IMPORTS, TREES, room

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*(?![\w-])")
COMMAND = re.compile(rf"groupdetr ({'|'.join(COMMANDS)})\b")
# Programs of others whose options are named in messages.
FOREIGN = {
    "--nproc-per-node",
    "--shm-size",
    "--local-dir",
    "--revision",
    "--logdir",
    "--backend-store-uri",
    "--project",
}


@cache
def options_of(command: str) -> set[str]:
    """The options of a command, as its own help lists them."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        read_options(command, ["--help"])
    return set(OPTION.findall(text.getvalue()))


@cache
def modules_of(command: str) -> set[str]:
    """The modules that a command can run: all that its workflow imports, directly or not."""
    start = COMMANDS[command].workflow.split(":")[0]
    reached, waiting = {start}, [start]
    while waiting:
        for module in IMPORTS[waiting.pop()] - reached:
            reached.add(module)
            waiting.append(module)
    return reached


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the nodes that are docstrings, of functions, classes, modules and fields."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for statement in node.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found.add(id(statement.value))
    return found


def messages(tree: ast.AST) -> Iterator[str]:
    """The texts of a file that name an option, f-strings with their values left out."""
    skipped = docstrings(tree)
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(value) for value in node.values}
            yield "".join(v.value if isinstance(v, ast.Constant) else "X" for v in node.values)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in skipped | inside:
            yield node.value


# Modules that several commands import, and whose messages only some of them can print.
READS_ANNOTATIONS = {"check", "train", "val"}
PRINTED_BY = {
    "groupdetr.data.findings": {"check", "train"},
    "groupdetr.data.dataset_files": READS_ANNOTATIONS,
    "groupdetr.data.layouts": {"val"},
    "groupdetr.data.nuscenes.version": READS_ANNOTATIONS,
    "groupdetr.data.worker_failures": {"train", "val"},
    "groupdetr.engine.accelerator": {"train", "val", "predict", "doctor"},
    "groupdetr.engine.memory": {"train"},
    "groupdetr.modeling.backbones.pretrained": {"train"},
    "groupdetr.modeling.backbones.timm_structure": {"train"},
    "groupdetr.modeling.backbones.timm_weights": {"train"},
    "groupdetr.modeling.backbones.vovnet": {"train"},
    "groupdetr.modeling.backbones.windowed_vit": {"train"},
    # `doctor` converts models of the hub, too, but to a file in a cache.
    "groupdetr.files.replacing": set(COMMANDS) - {"doctor", "presets", "ui"},
    "groupdetr.settings": {"train"},
    "groupdetr.tasks.detection2d.group_analysis": {"groups"},
    "groupdetr.tasks.detection2d.group_vote": {"val", "predict"},
    "groupdetr.tasks.detection2d.task": {"train"},
    "groupdetr.tasks.detection2d.prediction_command": {"predict"},
    "groupdetr.tasks.detection2d.validation": {"val"},
    "groupdetr.tasks.detection3d.prediction": {"predict"},
    "groupdetr.tasks.detection_result": {"predict"},
    "groupdetr.tasks.detection3d.task": {"train"},
    "groupdetr.tasks.detection3d.validation": {"val"},
    "groupdetr.workflows.own_dataset": {"val", "ui"},
    # `ui` evaluates, too, but writes nothing.
    "groupdetr.tasks.output_files": set(COMMANDS) - {"doctor", "presets", "ui"},
    # `predict` opens files, and does not write them.
    "groupdetr.deployment.graph": {"export"},
    "groupdetr.weights.importing": {"import"},
    "groupdetr.workflows.validate": {"val"},
    "groupdetr.paper.trainings": {"train"},  # the commands of trainings
    "groupdetr.paper.slurm": {"paper"},
    "groupdetr.paper.fig8": {"paper"},
    # `demo` runs it, too, but with one detector.
    "groupdetr.workflows.paper": {"paper"},
    "groupdetr.tasks.training_config": {"train"},
}
# Style sheets have names that look like options.
WITHOUT_MESSAGES = {"report", "visualize"}


def printing_commands(module: str) -> set[str]:
    importing = {command for command in COMMANDS if module in modules_of(command)}
    return PRINTED_BY.get(module, importing)


def test_every_option_that_a_message_names_exists() -> None:
    wrong = []
    for module, tree in TREES.items():
        if room(module) in WITHOUT_MESSAGES | {"cli"}:
            continue
        for message in messages(tree):
            options = set(OPTION.findall(message)) - FOREIGN
            named = set(COMMAND.findall(message))
            if not options:
                continue
            if named:
                # The message names a command, and the options are of that command.
                known = set().union(*(options_of(command) for command in named))
                if not options <= known:
                    wrong.append(f"{module}: groupdetr {named} has no {options - known}")
                continue
            for command in printing_commands(module):
                if not options <= options_of(command):
                    wrong.append(f"{module}: {command} has no {options - options_of(command)}")
    assert not wrong, "\n".join(wrong)
