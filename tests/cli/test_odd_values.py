"""Every option of every command, set to an odd value: it takes effect, or it is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from groupdetr.checkpoints import native
from groupdetr.cli.main import COMMANDS, load, main
from groupdetr.errors import UsageError
from groupdetr.registry import create_model, experiment, recipe_to_dict
from groupdetr.settings import Settings
from groupdetr.workflows import paper as paper_workflow
from groupdetr.workflows import train as train_workflow
from tests.runs import IMAGE_PRESETS, SMALL_MODEL

NUMBERS = ("-1", "0", "nan", "1e999", "99999999999999999999999", "x")
# Options whose values are names of files or folders, which may be anything.
PATHS = ("data", "images", "weights", "out", "resume", "run", "inputs", "source", "callback")
OTHERS = ("settings", "auto_batch", "json", "plugin", "set")
# Values that are neither numbers nor names of anything.
TEXTS = ("x/../y", "[/red]", "\x1b[2J", "https://example.com/a", "10 0")


def options_of(command: str) -> list[str]:
    """Return the names of the options of a command that are not files."""
    fields = dataclasses.fields(load(COMMANDS[command].options))
    names = [field.name for field in fields if field.name not in (*PATHS, *OTHERS)]
    if command == "train":
        names += [field.name for field in dataclasses.fields(Settings)]
    return names


def outcome(arguments: list[str]) -> int:
    """Run a command and return its exit code. Any exception but tyro's exit fails the test."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("name", options_of("train"))
def test_an_odd_value_of_train_has_a_plan_or_is_refused(
    name: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_plan(plan: Any, _callbacks: object) -> train_workflow.TrainingResult:
        return train_workflow.TrainingResult(plan.run.path, 1, 1, 1.0, 1.0)

    monkeypatch.setattr(train_workflow, "run_plan", run_plan)
    for value in ("-1", "nan", "99999999999999999999999"):  # each takes a third of a second
        arguments = ["train", str(shapes), "--model", "conditional-detr-tiny", "--no-check"]
        arguments += ["--device", "cpu", *SMALL_MODEL, "--out", str(tmp_path / "run")]
        code = outcome([*arguments, f"--{name.replace('_', '-')}", value])
        assert code in (0, 2), value
        assert code == 0 or capsys.readouterr().err, "a refusal says why"


@pytest.mark.parametrize("name", options_of("check"))
def test_an_odd_value_of_check_takes_effect_or_is_refused(
    name: str, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in NUMBERS:
        assert outcome(["check", str(shapes), f"--{name.replace('_', '-')}", value]) in (0, 2)


class StartedError(Exception):
    """Raised in the place of the trainings of a demo."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a very small detector of the classes of the dataset ``shapes``."""
    recipe = {"channels": 32, "num_heads": 2, "dim_feedforward": 32, "decoder_layers": 2}
    model = create_model(
        "conditional-detr-tiny", num_classes=3, num_groups=2, num_queries=8, **recipe
    )
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    categories = [[0, "circle"], [1, "square"], [2, "triangle"]]
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": categories, "imgsz": 48}
    native.save(model, path, metadata)
    return path


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for command in ("val", "predict", "import", "demo", "doctor")
        for name in options_of(command)
    ],
)
def test_an_odd_value_of_a_command_takes_effect_or_is_refused(
    command: str,
    name: str,
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train_all(*_: object) -> None:
        raise StartedError

    monkeypatch.setattr(paper_workflow, "train_all", train_all)
    monkeypatch.setattr(paper_workflow, "write_data", lambda *_: None)
    image = next((shapes / "images" / "val").iterdir())
    arguments = {
        "val": ["val", str(weights), "--data", str(shapes), "--workers", "0", "--device", "cpu"],
        "predict": ["predict", str(weights), str(image), "--device", "cpu"],
        "import": ["import", str(weights)],
        "demo": ["demo"],
        "doctor": ["doctor", "--device", "cpu"],
    }[command]
    fields = {field.name: field for field in dataclasses.fields(load(COMMANDS[command].options))}
    is_text = fields[name].type in ("str", "str | None")
    for number, value in enumerate(("-1", "0", "", *TEXTS) if is_text else (*NUMBERS, "[/red]")):
        given = [*arguments, f"--{name.replace('_', '-')}", value]
        if command != "doctor":
            out = tmp_path / f"{number}.safetensors" if command == "import" else tmp_path
            given += ["--out", str(out if command == "import" else out / str(number))]
        try:
            code = outcome(given)
        except StartedError:
            code = 0
        message = capsys.readouterr().err
        assert code in (0, 2), value
        assert code == 0 or message, "a refusal says why"
        assert "\x1b" not in message


# (command with {} in the place of a path, exit codes of a refusal)
PATH_OPTIONS = {
    "predict {weights} {}": (2, 3),
    "predict {} {image}": (2,),
    "val {} --data {data}": (2,),
    "val {weights} --data {}": (2, 3),
    "val {weights} --data {annotations} --images {}": (2, 3),
    "check {}": (3,),
    "check {annotations} --images {}": (3,),
    "train {} --model conditional-detr-tiny": (3,),
    "train {data} --model conditional-detr-tiny --weights {}": (2,),
    "train --resume {}": (2,),
    "import {}": (2,),
    "doctor --model {}": (2,),
    "check {data} --out {}": (2,),
    "val {weights} --data {data} --out {}": (2,),
    "predict {weights} {image} --out {}": (2,),
    "demo --out {}": (2,),
    "train {data} --model conditional-detr-tiny --no-check --out {}": (2,),
}
LINKS = {"link", "pipe"} if os.name == "posix" else set()


@pytest.mark.parametrize("command", PATH_OPTIONS)
def test_a_path_to_something_else_is_refused_in_a_message(
    command: str,
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))  # for a dash
    Path("video.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with ZipFile("archive.zip", "w") as archive:
        archive.writestr("a.jpg", b"a")
    Path("empty").touch()
    values = {
        "a video": "video.mp4",
        "a zip archive": "archive.zip",
        "an empty file": "empty",
        "a mistyped name": "vdieo.mp5",
        "an address": "https://example.com/data.zip",
        "nothing": "",
        "a dash": "-",
        "a name of the hub": "facebook/detr-resnet-50",
        "a long name": "x" * 300,
    }
    if os.name == "posix":
        Path("link").symlink_to("link")
        os.mkfifo("pipe")
        values |= {"a link to itself": "link", "a pipe": "pipe", "a device": "/dev/zero"}
    if command.endswith("--out {}"):
        files = ("a video", "an empty file", "a link to itself", "a pipe", "nothing")
        values = {kind: value for kind, value in values.items() if kind in files}
    names = {
        "weights": weights,
        "data": shapes,
        "annotations": shapes / "annotations" / "instances_val.json",
        "image": next((shapes / "images" / "val").iterdir()),
    }
    for kind, value in values.items():
        arguments = [part.format(value, **names) for part in command.split()]
        code = outcome(arguments)
        output = capsys.readouterr()
        assert code in (*PATH_OPTIONS[command], 2), kind
        assert "error: " in output.out + output.err, kind
    assert set(os.listdir()) - {"runs"} == {"video.mp4", "archive.zip", "empty"} | LINKS


@pytest.mark.parametrize("preset", IMAGE_PRESETS)
def test_an_odd_field_of_a_recipe_is_refused_or_makes_a_recipe(preset: str) -> None:
    recipe = experiment(preset).recipe
    odd: list[Any] = [-1, -0.5, 2.5, float("nan"), float("inf"), 2**70, "x", [], ["a"], {}, True]
    for field in dataclasses.fields(recipe):
        for value in odd:
            try:
                changed = recipe.with_options(**{field.name: value})
            except (ValueError, UsageError):
                continue
            assert type(getattr(changed, field.name)) in (int, float, str, bool, tuple)


@pytest.mark.parametrize(
    "assignment",
    [
        *("dropout=-1", "dropout=.nan", "decoder_layers=2.5", "preset=dino-r50", "num_classes=3"),
        *("strides=[]", "strides=[32, a]", "channels=[", "=1", "dropout", "num_heads=!!x"),
        *("pretrained_backbone=true", "pretrained_backbone=resnet50.pth", "encoder_layers=0"),
        *("decoder_layers=0", "dropout=1"),
    ],
)
def test_an_odd_set_is_refused(
    assignment: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "conditional-detr-tiny", "--out", str(tmp_path / "run")]
    assert main(["train", str(shapes), *options, "--set", assignment]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert assignment.partition("=")[0] in message


def test_a_list_without_brackets_is_refused_with_the_brackets(
    shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "rf-detr-micro", "--set", "map_blocks=0,1"]
    assert main(["train", str(shapes), *options]) == 2
    assert "--set 'map_blocks=[0, 1]'" in capsys.readouterr().err


def test_groups_and_set_that_differ_are_refused(shapes: Path) -> None:
    options = ["--model", "conditional-detr-tiny", "--groups", "2", "--set", "num_groups=3"]
    assert main(["train", str(shapes), *options]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["import", "{weights}", "--entry", "ema"],
        ["import", "{weights}", "--file-groups", "7"],
        ["doctor", "--model", "{weights}", "--groups", "2", "--device", "cpu"],
        ["predict", "{weights}", "{image}", "--limit", "2"],
        ["val", "{weights}", "--images", "images"],
    ],
)
def test_an_option_without_an_effect_is_refused(
    arguments: list[str], weights: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"weights": weights, "image": next((shapes / "images/val").iterdir())}
    before = sorted(weights.parent.iterdir())
    assert main([argument.format(**names) for argument in arguments]) == 2
    remedy = capsys.readouterr().err.split("do:")[1]
    assert re.search("leave (it|them)? ?out", remedy)
    assert sorted(weights.parent.iterdir()) == before
