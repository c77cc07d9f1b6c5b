"""The callbacks of `docs/callbacks.md`, in a file outside of the repository, do what it says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from groupdetr.cli.main import main
from groupdetr.engine.callbacks import (
    HOOKS,
    Callback,
    EvaluationEnd,
    StepEnd,
    TrainerInterface,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.workflows.train import train
from tests.runs import is_identical, load_checkpoint, losses_by_step, train_arguments

PAGE = (Path(__file__).parents[2] / "docs/callbacks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
CODE = "\n".join(BLOCKS)
SMALL = (
    'model="conditional-detr-tiny", steps=2, batch=4, imgsz=48, workers=0, threads=1, device="cpu"'
)
KEYWORDS: dict[str, Any] = {
    "model": "conditional-detr-tiny",
    "steps": 9,
    "batch": 4,
    "eval_every": 0.5,
    "imgsz": 48,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
}


def test_the_first_example_and_its_resume_run_as_they_are_written(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer steps on smaller images."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/mine").symlink_to(shapes)
    code = BLOCKS[0].replace("epochs=5", SMALL).replace("% 10", "% 1")
    variables: dict[str, Any] = {}
    exec(compile(code, "docs/callbacks.md", "exec"), variables)
    (resume,) = re.findall(r"`(groupdetr\.train\(resume=.*?\))`", PAGE)
    run = eval(resume, variables)
    assert run.path == Path("runs/mine")
    assert run.steps == 2


@pytest.fixture(scope="module")
def my_callbacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The classes of the page as a module in a folder of the user."""
    folder = tmp_path_factory.mktemp("mine")
    lines = [line for line in CODE.splitlines() if not line.startswith(("callbacks = ", "run = "))]
    (folder / "my_callbacks.py").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("my_callbacks")


def test_the_command_line_creates_the_callback_that_the_page_names(
    my_callbacks: ModuleType,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (option,) = re.findall(r"^groupdetr train data/mine (--callback \S+)", PAGE, flags=re.M)
    assert my_callbacks.__file__ is not None
    monkeypatch.chdir(Path(my_callbacks.__file__).parent)
    arguments = train_arguments(shapes, tmp_path / "run", *option.split(), "--steps", "10")
    assert main(arguments) == 0
    assert re.search(r"^step 10: loss \d+\.\d+, of which giou", capsys.readouterr().out, re.M)


@dataclass
class Runs:
    """One run that was never interrupted, and one that was, and lost two steps by it."""

    whole: Path
    resumed: Path


@pytest.fixture(scope="module")
def runs(my_callbacks: ModuleType, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    def callbacks() -> list[Callback]:
        return [
            my_callbacks.StopAtTarget(target=0.0),
            my_callbacks.LossTable(),
            my_callbacks.ClassBalance(),
        ]

    folder = tmp_path_factory.mktemp("runs")
    whole, resumed = folder / "whole", folder / "resumed"
    train(shapes, out=whole, callbacks=callbacks(), **KEYWORDS)
    train(shapes, out=resumed, stop_after=4, callbacks=callbacks(), **KEYWORDS)
    # A run that is killed has rows of steps after its last checkpoint.
    with (resumed / "losses.csv").open("a") as file:
        file.write("5,1.0\n6,1.0\n")
    train(resume=resumed, callbacks=callbacks())
    return Runs(whole, resumed)


def test_the_rule_ends_the_training_at_the_second_evaluation_also_after_a_resume(
    runs: Runs,
) -> None:
    """Every AP reaches the target of zero. There are three steps between evaluations."""
    for path in (runs.whole, runs.resumed):
        run = RunFolder(path)
        assert load_checkpoint(path)["progress"]["step"] == 6
        assert [record["step"] for record in run.evaluations()] == [3, 6]
        assert run.report.is_file(), "the run is complete"
        assert load_checkpoint(path)["callbacks"]["my_callbacks.StopAtTarget"] == {"reached": 2}


def test_the_table_of_losses_has_every_step_once_also_after_a_resume(runs: Runs) -> None:
    for path in (runs.whole, runs.resumed):
        rows = [line.split(",") for line in (path / "losses.csv").read_text().splitlines()]
        expected = {step: sum(losses.values()) for step, losses in losses_by_step(path).items()}
        assert len(rows) == 6
        assert {int(step): float(loss) for step, loss in rows} == expected


def test_the_balancing_sampler_survives_the_resume_bit_for_bit(runs: Runs) -> None:
    assert is_identical(load_checkpoint(runs.resumed), load_checkpoint(runs.whole))
    assert losses_by_step(runs.resumed) == losses_by_step(runs.whole)


def test_the_balancing_sampler_draws_all_classes_equally_often(my_callbacks: ModuleType) -> None:
    """Of 100 images, 90 have an object of class 0, and 10 one of class 1."""
    labels = [np.array([0])] * 90 + [np.array([1])] * 10
    records = [SimpleNamespace(labels=label) for label in labels]
    trainer = SimpleNamespace(
        task=SimpleNamespace(train=SimpleNamespace(records=records)),
        settings=SimpleNamespace(seed=0, batch=10),
        step=0,
        divide_batch=lambda indices: [indices],
    )
    my_callbacks.ClassBalance().on_train_start(trainer)
    drawn = np.concatenate(list(islice(trainer.sampler, 200)))
    assert len(drawn) == 2000
    assert 0.45 < (drawn >= 90).mean() < 0.55


# the tables


def test_the_page_has_every_hook_with_its_parameters() -> None:
    documented = re.findall(r"^\| `(on_\w+\(.*?\))`", PAGE, flags=re.M)
    expected = []
    for hook in HOOKS:
        parameters = ", ".join(inspect.signature(getattr(Callback, hook)).parameters)
        expected.append(f"{hook}({parameters})")
    assert documented == expected


def test_the_page_has_every_field_of_the_events_and_everything_of_the_trainer() -> None:
    for event in (StepEnd, EvaluationEnd):
        for field in fields(event):
            assert f"`event.{field.name}`" in PAGE
    table = PAGE[PAGE.index("## What a callback may use") : PAGE.index("## Stop by a rule")]
    documented = set(re.findall(r"trainer\.(\w+)", table))
    assert documented == {name for name in vars(TrainerInterface) if not name.startswith("_")}
    assert all(hasattr(Trainer, name) for name in ("finish", "request_stop", "divide_batch"))
