"""Every option of every command, set to an odd value: it takes effect, or it is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from groupdetr.cli.main import COMMANDS, load, main
from groupdetr.errors import UsageError
from groupdetr.registry import experiment
from groupdetr.settings import Settings
from groupdetr.workflows import train as train_workflow
from tests.runs import IMAGE_PRESETS, SMALL_MODEL

NUMBERS = ("-1", "0", "nan", "inf", "-2.5", "1e999", "99999999999999999999999", "x", "")
# Options whose values are names of files or folders, which may be anything.
PATHS = ("data", "images", "weights", "out", "resume", "run", "inputs", "source", "callback")
OTHERS = ("settings", "auto_batch", "json", "plugin", "set")


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
    for value in NUMBERS:
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


@pytest.mark.parametrize("preset", IMAGE_PRESETS)
def test_an_odd_field_of_a_recipe_is_refused_or_makes_a_recipe(preset: str) -> None:
    recipe = experiment(preset).recipe
    odd: list[Any] = [-1, -0.5, 2.5, float("nan"), float("inf"), 2**70, "x", [], ["a"], {}, True]
    for field in dataclasses.fields(recipe):
        for value in odd:
            try:
                changed = recipe.with_options(**{field.name: value})
            except ValueError:
                continue
            assert type(getattr(changed, field.name)) in (int, float, str, bool, tuple)


@pytest.mark.parametrize(
    "assignment",
    [
        *("dropout=-1", "dropout=.nan", "decoder_layers=2.5", "preset=dino-r50", "num_classes=3"),
        *("strides=[]", "strides=[32, a]", "channels=[", "=1", "dropout", "num_heads=!!x"),
        "pretrained_backbone=true",
    ],
)
def test_an_odd_set_is_refused(
    assignment: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "conditional-detr-tiny", "--out", str(tmp_path / "run")]
    assert main(["train", str(shapes), *options, "--set", assignment]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_groups_and_set_that_differ_are_refused(shapes: Path) -> None:
    options = ["--model", "conditional-detr-tiny", "--groups", "2", "--set", "num_groups=3"]
    assert main(["train", str(shapes), *options]) == 2


def test_images_of_val_need_data(tmp_path: Path) -> None:
    from groupdetr.workflows.validate import evaluate

    with pytest.raises(UsageError):
        evaluate(tmp_path, images=tmp_path)
