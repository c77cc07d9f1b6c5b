"""Callbacks: when they are called, what they may change, and how a training ends if one fails."""

from __future__ import annotations

import math
import multiprocessing
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from groupdetr.cli.main import main
from groupdetr.detectors.tiny import TinyConditionalDETR
from groupdetr.engine.accelerator import create_accelerator
from groupdetr.engine.callback_list import CallbackList
from groupdetr.engine.callbacks import (
    HOOKS,
    Callback,
    EvaluationEnd,
    StepEnd,
    TrainerInterface,
)
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trainer import Trainer
from groupdetr.engine.training_plan import TrainingPlan
from groupdetr.errors import CallbackError
from groupdetr.settings import Settings
from groupdetr.tasks.detection2d.task import DetectionTask
from groupdetr.workflows.train import train
from tests.runs import (
    evaluations,
    is_identical,
    load_checkpoint,
    losses_by_step,
    torchrun,
)

RECIPE = TinyConditionalDETR(
    num_classes=3, num_groups=2, num_queries=6, channels=32, num_heads=2, dim_feedforward=32
)
# Six steps with an evaluation after three and six, with dropout and a moving average.
KEYWORDS: dict[str, Any] = {
    "model": "conditional-detr-tiny",
    "groups": 2,
    "set": {
        "channels": 32,
        "num_heads": 2,
        "dim_feedforward": 32,
        "decoder_layers": 2,
        "num_queries": 8,
        "dropout": 0.1,
    },
    "steps": 6,
    "batch": 4,
    "eval_every": 0.5,
    "ema": 0.9,
    "imgsz": 48,
    "workers": 0,
    "threads": 1,
    "device": "cpu",
}


class EventRecorder(Callback):
    """Appends the name of every event to a list, which several recorders may share."""

    def __init__(self, events: list[str], suffix: str = "") -> None:
        self.events, self.suffix = events, suffix

    def record(self, event: str) -> None:
        self.events.append(event + self.suffix)

    def on_train_start(self, trainer: TrainerInterface) -> None:
        self.record("train start")

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self.record(f"step {event.step}")

    def on_evaluation_progress(self, trainer: TrainerInterface, done: int, total: int) -> None:
        self.record(f"evaluated {done} of {total}")

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        self.record(f"evaluation of epoch {event.epoch:g}")

    def on_record(self, trainer: TrainerInterface, record: Mapping[str, Any]) -> None:
        self.record("record of step" if "losses" in record else "record of evaluation")

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        self.record("checkpoint")

    def on_train_end(self, trainer: TrainerInterface) -> None:
        self.record("train end")


def create_trainer(data: Path, out: Path, *callbacks: Callback) -> Trainer:
    """Return a trainer for two epochs of two steps each, with an evaluation after every epoch."""
    settings = Settings(
        epochs=2, batch=12, imgsz=48, augment="none", workers=0, threads=1, device="cpu"
    )
    dataset = DetectionTask.read(data, None)
    out.mkdir(exist_ok=True)
    plan = TrainingPlan(
        task=DetectionTask(dataset, settings, 10),
        settings=settings,
        accelerator=create_accelerator(settings),
        run=RunFolder(out),
        workers=0,
        stop_after=None,
        save_best=lambda model, weights: None,
    )
    return Trainer(plan, RECIPE.build(), RECIPE.criterion(), callbacks)


@pytest.fixture(scope="module")
def uninterrupted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without callbacks that was never stopped."""
    return train(shapes, out=tmp_path_factory.mktemp("runs") / "uninterrupted", **KEYWORDS).path


def assert_equal_trainings(run: Path, expected: Path) -> None:
    """Assert that two runs have the same checkpoint, losses and evaluations, bit for bit."""
    checkpoint, expected_checkpoint = load_checkpoint(run), load_checkpoint(expected)
    del checkpoint["callbacks"], expected_checkpoint["callbacks"]
    assert is_identical(checkpoint, expected_checkpoint)
    assert losses_by_step(run) == losses_by_step(expected)
    assert evaluations(run) == evaluations(expected)


# when they are called


def test_callbacks_are_called_in_the_order_of_the_training(shapes: Path, tmp_path: Path) -> None:
    events: list[str] = []
    create_trainer(shapes, tmp_path, EventRecorder(events)).train()
    evaluation = ["evaluated 6 of 6", "record of evaluation"]
    assert events == [
        "train start",
        *("step 1", "record of step"),
        *("step 2", "record of step"),
        *(*evaluation, "evaluation of epoch 1", "checkpoint"),
        *("step 3", "record of step"),
        *("step 4", "record of step"),
        *(*evaluation, "evaluation of epoch 2", "checkpoint"),
        "train end",
    ]


def test_a_run_begins_with_train_start_although_a_checkpoint_is_written_before(
    shapes: Path, tmp_path: Path
) -> None:
    class ReadCheckpoint(EventRecorder):
        def on_train_start(self, trainer: TrainerInterface) -> None:
            assert load_checkpoint(trainer.run.path)["progress"]["step"] == 0
            super().on_train_start(trainer)

    events: list[str] = []
    keywords = KEYWORDS | {"steps": 1}
    train(shapes, out=tmp_path / "run", callbacks=[ReadCheckpoint(events)], **keywords)
    assert events[:2] == ["train start", "step 1"]
    assert events.count("checkpoint") == 1


def test_train_end_is_called_after_an_error_too(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    trainer = create_trainer(shapes, tmp_path, EventRecorder(events))
    plain_step = trainer.take_step

    def fail_in_second_step(network: nn.Module, micro_batches: list[Any]) -> Any:
        if trainer.step == 1:
            raise RuntimeError("the second step fails")
        return plain_step(network, micro_batches)

    monkeypatch.setattr(trainer, "take_step", fail_in_second_step)
    with pytest.raises(RuntimeError, match="the second step fails"):
        trainer.train()
    assert events == ["train start", "step 1", "record of step", "train end"]


def test_a_list_calls_every_callback_in_order(shapes: Path, tmp_path: Path) -> None:
    events: list[str] = []
    first, second = EventRecorder(events, " (first)"), EventRecorder(events, " (second)")
    trainer = create_trainer(shapes, tmp_path, first, second)
    trainer.train()
    assert events[0::2] == [event.replace("second", "first") for event in events[1::2]]
    assert set(events[0::2]) & set(events[1::2]) == set()
    assert len(events) == 2 * 18


def test_events_have_the_values_of_the_log_and_of_the_results(shapes: Path, tmp_path: Path) -> None:
    class Collector(Callback):
        def __init__(self) -> None:
            self.steps: list[StepEnd] = []
            self.evaluations: list[EvaluationEnd] = []
            self.positions: list[tuple[int, float]] = []

        def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
            self.steps.append(event)
            self.positions.append((trainer.step, trainer.epoch))

        def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
            self.evaluations.append(event)

    collector = Collector()
    trainer = create_trainer(shapes, tmp_path, collector)
    trainer.train()
    records = trainer.run.records()
    steps = [record for record in records if "losses" in record]
    for event, record in zip(collector.steps, steps, strict=True):
        assert event.step == record["step"]
        assert event.losses == record["losses"]
        assert event.loss == record["loss"] == sum(record["losses"].values())
        assert event.grad_norm == record["norm"]
        assert event.lr == record["lr"]
    assert [event.progress for event in collector.steps] == [0.25, 0.5, 0.75, 1]
    assert collector.positions == [(1, 0.5), (2, 1), (3, 1.5), (4, 2)]
    for end, record in zip(collector.evaluations, trainer.run.evaluations(), strict=True):
        assert (end.step, end.epoch) == (record["step"], record["epoch"])
        assert {"AP", "AP50", "instability"} <= end.metrics.keys() <= record.keys()
        for name, value in end.metrics.items():
            # JSON has no nan.
            assert record[name] == (None if math.isnan(value) else value)


def test_a_callback_may_leave_the_model_in_evaluation_mode(
    uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    class Evaluate(Callback):
        def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
            trainer.model.eval()

    run = train(shapes, out=tmp_path / "run", callbacks=[Evaluate()], **KEYWORDS).path
    assert_equal_trainings(run, uninterrupted)


def test_loader_processes_end_with_the_training_although_a_callback_keeps_the_trainer(
    shapes: Path, tmp_path: Path
) -> None:
    class KeepTrainer(Callback):
        def on_train_start(self, trainer: TrainerInterface) -> None:
            self.trainer = trainer
            trainer.sampler = self.micro_batches(trainer)

        def micro_batches(self, trainer: TrainerInterface) -> Iterator[list[int]]:
            while True:
                yield [0, 1, 2, 3]

        def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
            assert multiprocessing.active_children()

    keywords = KEYWORDS | {"steps": 1, "workers": 1}
    callback = KeepTrainer()
    before = set(multiprocessing.active_children())  # of other tests
    train(shapes, out=tmp_path / "run", callbacks=[callback], **keywords)
    assert callback.trainer.step == 1
    assert set(multiprocessing.active_children()) <= before


# how they end a training


class CallAtStep(Callback):
    """Calls a method of the trainer after a step."""

    def __init__(self, method: str, step: int, hook: str = "on_step_end") -> None:
        self.method, self.step, self.hook = method, step, hook

    def call(self, hook: str, trainer: TrainerInterface) -> None:
        if hook == self.hook and trainer.step == self.step:
            getattr(trainer, self.method)()

    def on_train_start(self, trainer: TrainerInterface) -> None:
        self.call("on_train_start", trainer)

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self.call("on_step_end", trainer)

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        self.call("on_evaluation_end", trainer)

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        self.call("on_checkpoint", trainer)


def test_request_stop_ends_the_training_after_the_step_with_a_checkpoint(
    shapes: Path, tmp_path: Path
) -> None:
    events: list[str] = []
    trainer = create_trainer(shapes, tmp_path, EventRecorder(events), CallAtStep("request_stop", 1))
    trainer.train()
    assert trainer.stopped_early()
    assert events == ["train start", "step 1", "record of step", "checkpoint", "train end"]
    assert load_checkpoint(tmp_path)["progress"]["step"] == 1


def test_a_run_that_a_callback_stopped_is_interrupted_and_resumes_bit_for_bit(
    uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stop = CallAtStep("request_stop", 2)
    result = train(shapes, out=run, callbacks=[stop], **KEYWORDS)
    assert (result.interrupted, result.exit_code) == (True, 130)
    assert not RunFolder(run).report.exists()
    assert not train(resume=run, callbacks=[stop]).interrupted
    assert_equal_trainings(run, uninterrupted)


class SlowCallback(Callback):
    """Moves the clock ahead, as if its hooks took hours. It ends a training that never would."""

    def __init__(self) -> None:
        self.offset = 0.0

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self.offset += 25_000
        if event.step == 6:
            trainer.finish()

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        self.offset += 6_000


def test_the_minutes_of_a_training_include_callbacks_and_checkpoints(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they took is in the checkpoint, so a resumed run does not begin to count again."""
    slow = SlowCallback()
    monotonic = time.monotonic
    monkeypatch.setattr("time.monotonic", lambda: monotonic() + slow.offset)
    keywords = {name: value for name, value in KEYWORDS.items() if name != "steps"}
    run = train(shapes, out=tmp_path / "run", callbacks=[slow], minutes=1000, **keywords)
    progress = load_checkpoint(run.path)["progress"]
    # Two steps, each with a checkpoint, take 62,000 of the 60,000 seconds. The third step ends.
    assert progress["step"] == progress["evaluated_step"] == 3
    assert 87_000 <= progress["other_seconds"] < 90_000
    assert progress["seconds"] + progress["evaluation_seconds"] < 25_000


@pytest.mark.parametrize(
    ("step", "hook", "evaluated"),
    [
        (0, "on_train_start", [0]),
        (2, "on_step_end", [2]),
        (3, "on_evaluation_end", [3]),
        (3, "on_checkpoint", [3]),
        (4, "on_step_end", [3, 4]),
    ],
)
def test_a_run_that_a_callback_finished_is_complete(
    step: int, hook: str, evaluated: list[int], shapes: Path, tmp_path: Path
) -> None:
    """It is evaluated at its last step, once, and has a page and the best weights."""
    path = tmp_path / "run"
    finish = CallAtStep("finish", step, hook)
    result = train(shapes, out=path, callbacks=[finish], **KEYWORDS)
    assert (result.steps, result.interrupted, result.exit_code) == (step, False, 0)
    run = RunFolder(path)
    assert [record["step"] for record in run.evaluations()] == evaluated
    assert run.report.is_file()
    assert run.best.is_file()
    assert load_checkpoint(path)["progress"]["step"] == step


def test_a_run_that_a_callback_finished_can_be_continued_to_its_last_step(
    uninterrupted: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(shapes, out=run, callbacks=[CallAtStep("finish", 4)], **KEYWORDS)
    assert "a callback finished the training after step 4" in capsys.readouterr().out
    train(resume=run)
    checkpoint, expected = load_checkpoint(run), load_checkpoint(uninterrupted)
    for part in ("model", "optimizer", "ema"):
        assert is_identical(checkpoint[part], expected[part])
    assert [record["step"] for record in RunFolder(run).evaluations()] == [3, 4, 6]


# exceptions


class Fails(Callback):
    """Raises an error in one hook, once the training has reached a step."""

    def __init__(self, hook: str, step: int) -> None:
        self.hook, self.step = hook, step

    def fail(self, hook: str, trainer: TrainerInterface) -> None:
        if hook == self.hook and trainer.step >= self.step:
            raise KeyError("broken")

    def on_train_start(self, trainer: TrainerInterface) -> None:
        self.fail("on_train_start", trainer)

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self.fail("on_step_end", trainer)

    def on_evaluation_progress(self, trainer: TrainerInterface, done: int, total: int) -> None:
        self.fail("on_evaluation_progress", trainer)

    def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
        self.fail("on_evaluation_end", trainer)

    def on_record(self, trainer: TrainerInterface, record: Mapping[str, Any]) -> None:
        # The record of the evaluation, not that of the step before it.
        if "AP" in record:
            self.fail("on_record", trainer)

    def on_checkpoint(self, trainer: TrainerInterface) -> None:
        self.fail("on_checkpoint", trainer)

    def on_train_end(self, trainer: TrainerInterface) -> None:
        self.fail("on_train_end", trainer)


# In which hook and after which step a callback fails. The third step ends with an evaluation.
FAILURES = [
    ("on_train_start", 0),
    ("on_step_end", 2),
    ("on_step_end", 3),
    ("on_evaluation_progress", 3),
    ("on_record", 3),
    ("on_evaluation_end", 3),
    ("on_checkpoint", 3),
    ("on_train_end", 6),
]


def test_a_failure_of_every_hook_is_tested() -> None:
    assert {hook for hook, _ in FAILURES} == set(HOOKS)


@pytest.mark.parametrize(("hook", "step"), FAILURES)
def test_an_exception_in_a_hook_ends_a_run_that_resumes_bit_for_bit(
    hook: str, step: int, uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    """The error names callback, hook, step and line; every callback gets `on_train_end`."""
    run = tmp_path / "run"
    first, last = EventRecorder([]), EventRecorder([])
    with pytest.raises(CallbackError) as caught:
        train(shapes, out=run, callbacks=[first, Fails(hook, step), last], **KEYWORDS)
    error = caught.value
    when = f"after step {step}" if step else "before the first step"
    assert error.what == f"the callback Fails failed in {hook} {when}: KeyError: 'broken'"
    assert re.fullmatch(rf"{re.escape(__file__)}, line \d+", error.where)
    assert f"groupdetr.train(resume={str(run)!r}" in error.remedy
    assert isinstance(error.__cause__, KeyError)
    assert error.exit_code == 1
    for recorder in (first, last):
        assert recorder.events.count("train end") == 1
    assert load_checkpoint(run)["progress"]["step"] == step

    train(resume=run)
    assert RunFolder(run).report.is_file()
    assert_equal_trainings(run, uninterrupted)


def test_a_second_error_in_train_end_is_a_note_of_the_first(shapes: Path, tmp_path: Path) -> None:
    class FailsTwice(Callback):
        def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
            raise ValueError("first")

        def on_train_end(self, trainer: TrainerInterface) -> None:
            raise ValueError("second")

    with pytest.raises(CallbackError, match="first") as caught:
        create_trainer(shapes, tmp_path, FailsTwice()).train()
    (note,) = caught.value.__notes__
    assert "FailsTwice failed in on_train_end after step 1: ValueError: second" in note


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_in_a_callback_passes_through(
    interruption: type[BaseException], shapes: Path, tmp_path: Path
) -> None:
    class Interrupt(Callback):
        def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
            raise interruption

    events: list[str] = []
    run = tmp_path / "run"
    with pytest.raises(interruption):
        train(shapes, out=run, callbacks=[Interrupt(), EventRecorder(events)], **KEYWORDS)
    assert events == ["train start", "train end"]
    assert load_checkpoint(run)["progress"]["step"] == 0, "the checkpoint before the first step"


# state


class Counter(Callback):
    """Counts steps, and remembers the number and a tensor."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(2)

    def on_step_end(self, trainer: TrainerInterface, event: StepEnd) -> None:
        self.count += 1
        self.sum += event.loss

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "sum": self.sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.sum = state["count"], state["sum"]


def test_the_states_of_callbacks_survive_a_resume(shapes: Path, tmp_path: Path) -> None:
    """Also of two callbacks of one class, of which one began later."""
    uninterrupted = Counter()
    train(shapes, out=tmp_path / "uninterrupted", callbacks=[uninterrupted], **KEYWORDS)
    run = tmp_path / "run"
    late = Counter()
    late.count = 100
    train(shapes, out=run, stop_after=4, callbacks=[Counter(), late], **KEYWORDS)
    resumed, late_resumed = Counter(), Counter()
    train(resume=run, callbacks=[resumed, late_resumed])
    assert resumed.count == uninterrupted.count == 6
    assert torch.equal(resumed.sum, uninterrupted.sum)
    assert late_resumed.count == 106


def test_a_callback_that_is_missing_on_resume_is_reported_and_dropped(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    name = f"{__name__}.Counter"
    train(shapes, out=run, stop_after=2, callbacks=[Counter()], **KEYWORDS)
    assert load_checkpoint(run)["callbacks"].keys() == {name}
    capsys.readouterr()
    train(resume=run, stop_after=3)
    assert f"trained with the callback {name}" in capsys.readouterr().out
    assert load_checkpoint(run)["callbacks"] == {}
    train(resume=run, stop_after=4)
    assert "trained with the callback" not in capsys.readouterr().out


def test_a_state_that_cannot_be_loaded_again_is_refused_when_it_is_saved(
    uninterrupted: Path, shapes: Path, tmp_path: Path
) -> None:
    """The state before it stays in the checkpoint, which is resumed without the callback."""

    class Best(Callback):
        def __init__(self) -> None:
            self.best: Any = 0.5

        def on_evaluation_end(self, trainer: TrainerInterface, event: EvaluationEnd) -> None:
            self.best = np.float64(event.metrics["AP"])

        def state_dict(self) -> dict[str, Any]:
            return {"values": [self.best]}

    run = tmp_path / "run"
    with pytest.raises(CallbackError) as caught:
        train(shapes, out=run, save_every=1, callbacks=[Best()], **KEYWORDS)
    expected = "the callback Best failed in state_dict after step 3: TypeError: "
    expected += "state_dict()['values'][0] is of type numpy.float64"
    assert caught.value.what.startswith(expected)
    checkpoint = load_checkpoint(run)
    assert checkpoint["progress"]["step"] == 3
    assert list(checkpoint["callbacks"].values()) == [{"values": [0.5]}]
    train(resume=run)
    assert_equal_trainings(run, uninterrupted)


def test_a_state_that_a_callback_cannot_load_is_an_error_that_changes_nothing(
    shapes: Path, tmp_path: Path
) -> None:
    class Changed(Counter):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("total")

    run = tmp_path / "run"
    train(shapes, out=run, stop_after=2, callbacks=[Changed()], **KEYWORDS)
    before = load_checkpoint(run)
    with pytest.raises(CallbackError, match="Changed failed in load_state_dict after step 2"):
        train(resume=run, callbacks=[Changed()])
    assert is_identical(load_checkpoint(run), before)


# checks before a training


def with_method(name: str, method: Any) -> Callback:
    return type("Mine", (Callback,), {name: method})()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("on_step_ends", "did you mean on_step_end?"),
        ("on_epoch_end", "did you mean on_evaluation_end?"),
        ("on_train_begin", "did you mean on_train_start?"),
        ("on_train_batch_end", "did you mean on_step_end?"),
        ("on_save_checkpoint", "did you mean on_checkpoint?"),
        ("on_xyz", "The hooks are on_train_start, on_step_end, on_evaluation_progress"),
    ],
)
def test_a_method_that_would_never_be_called_is_refused_before_the_data_are_read(
    name: str, expected: str, tmp_path: Path
) -> None:
    callback = with_method(name, lambda self, trainer: None)
    with pytest.raises(TypeError, match=f"Mine.{name} would never be called") as caught:
        train(tmp_path / "no-data", callbacks=[callback])
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "method", "expected"),
    [
        ("on_step_end", lambda self, event: None, "def on_step_end(self, trainer, event)"),
        ("on_train_start", lambda self: None, "def on_train_start(self, trainer)"),
        ("on_checkpoint", None, "must be a method: def on_checkpoint(self, trainer)"),
    ],
)
def test_a_hook_with_other_parameters_is_refused(name: str, method: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=re.escape(expected)):
        CallbackList([with_method(name, method)])


def test_a_hook_may_have_further_parameters_with_defaults_and_other_methods_any_name() -> None:
    CallbackList([with_method("on_step_end", lambda self, trainer, event, width=3: None)])
    CallbackList([with_method("on_step_end", lambda *arguments: None)])
    CallbackList([with_method("online", lambda self: None)])
    CallbackList([with_method("on_gpu", True)])


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        ([object()], "a callback must inherit from groupdetr.Callback; object does not"),
        ([Counter], "pass Counter() for Counter"),
        (Counter(), "callbacks must be a list"),
    ],
)
def test_anything_but_a_list_of_callbacks_is_refused(
    callbacks: Any, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=re.escape(expected)):
        train(tmp_path / "no-data", callbacks=callbacks)


def test_the_command_line_refuses_an_unknown_hook_as_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong_hook.py"
    file.write_text(
        "import groupdetr\n"
        "class Wrong(groupdetr.Callback):\n"
        "    def on_epoch_end(self, trainer): pass\n"
    )
    assert main(["train", str(tmp_path / "no-data"), "--callback", f"{file}:Wrong"]) == 2
    assert "did you mean on_evaluation_end?" in capsys.readouterr().err


def test_the_trainer_has_everything_that_a_callback_may_use(shapes: Path, tmp_path: Path) -> None:
    trainer = create_trainer(shapes, tmp_path)
    names = [name for name in vars(TrainerInterface) if not name.startswith("_")]
    assert len(names) == 17
    assert [name for name in names if not hasattr(trainer, name)] == []
    assert trainer.evaluated_model is trainer.model
    assert (trainer.is_main_process, trainer.num_processes) == (True, 1)
    assert asdict(trainer.settings)["batch"] == 12


# several processes

# A training in which a hook fails in the second process only, and its resume, which is finished
# by the second process only. Every process writes a file of its own.
PROGRAM = f"""
import os
import sys
import groupdetr
from groupdetr.errors import CallbackError, UsageError

data, folder = sys.argv[1:]
output = open(f"{{folder}}/output{{os.environ['RANK']}}.txt", "w")


class InSecondProcess(groupdetr.Callback):
    def on_step_end(self, trainer, event):
        if trainer.accelerator.process_index == 1:
            if event.step == 2:
                raise ValueError("broken")
            if event.step == 4:
                trainer.finish()

    def on_evaluation_end(self, trainer, event):
        print("evaluated after step", event.step, file=output)


try:
    groupdetr.train(data, out=f"{{folder}}/run", callbacks=[InSecondProcess()], **{KEYWORDS})
except CallbackError as error:
    print(error.what, file=output)
run = groupdetr.train(resume=f"{{folder}}/run", eval_every=9, callbacks=[InSecondProcess()])
print("ended after step", run.steps, "interrupted:", run.interrupted, file=output)
try:
    groupdetr.evaluate(run.path, device="cpu")
except UsageError as error:
    print(error.what, file=output)
output.close()
"""


@pytest.fixture(scope="module")
def two_processes(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that the program trained in two processes, and of their output."""
    folder = tmp_path_factory.mktemp("two")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    process = torchrun(2, [str(shapes), str(folder)], [str(program)])
    assert process.returncode == 0, process.stderr
    return folder


def test_all_processes_end_with_a_checkpoint_if_a_callback_fails_in_one_of_them(
    two_processes: Path,
) -> None:
    first, second = [(two_processes / f"output{i}.txt").read_text() for i in (0, 1)]
    assert first.startswith("a callback failed in another process after step 2\n")
    failure = "the callback InSecondProcess failed in on_step_end after step 2: ValueError: broken"
    assert second.startswith(f"{failure}\n")
    # The resume began after step 2: each step was trained once, and the fourth one evaluated.
    records = RunFolder(two_processes / "run").records()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 4]


def test_all_processes_finish_after_the_same_step_if_one_of_them_asks_for_it(
    two_processes: Path,
) -> None:
    for i in (0, 1):
        output = (two_processes / f"output{i}.txt").read_text()
        assert "evaluated after step 4\nended after step 4 interrupted: False\n" in output
    assert RunFolder(two_processes / "run").report.is_file()


def test_an_evaluation_is_refused_in_several_processes(two_processes: Path) -> None:
    """The second one would get no detections, and the first one alone would wait for it."""
    for i in (0, 1):
        last_line = (two_processes / f"output{i}.txt").read_text().splitlines()[-1]
        assert last_line.startswith("only a training is shared by several processes")
