"""Trackers get what the log has, once, also if a training is resumed, and never end a training."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from shlex import split
from shutil import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image

import groupdetr
from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.engine.trackers import TRACKERS, Outcome, RunTracker, Value
from groupdetr.engine.tracking import MAX_SIDE, NUM_IMAGES, flat, scalars
from groupdetr.errors import CallbackError, UsageError
from tests.runs import environment, python_command, read_log, torchrun, train, train_arguments

OPTIONS = split("--steps 12 --save-every 4 --log-with")
SHORT = split("--steps 2 --no-check --log-with")  # with one evaluation
Scalars = dict[str, dict[int, float]]  # by name, and by step


class RecordingRun(RunTracker):
    """A tracker that records all calls. Methods that are named in ``fails`` raise an error."""

    name = "tensorboard"
    package = "groupdetr"
    install = "pip install groupdetr"

    runs: list[RecordingRun]  # those that were created
    fails: dict[str, Exception]  # by method

    def __init__(self, run: RunFolder, state: dict[str, Any]) -> None:
        super().__init__(run, state)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.runs.append(self)

    def record(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, arguments))
        if method in self.fails:
            raise self.fails[method]

    def called(self, method: str) -> list[tuple[Any, ...]]:
        """The arguments of all calls of a method."""
        return [arguments for name, arguments in self.calls if name == method]

    def start(self, configuration: Mapping[str, Value], redo_from: int) -> None:
        self.record("start", configuration, redo_from)

    def how_to_view(self) -> str:
        return "nowhere"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.record("log", values, step)

    def log_images(self, images: Mapping[str, Image.Image], step: int) -> None:
        self.record("log_images", images, step)

    def log_result(self, report: Path, weights: Path, step: int) -> None:
        self.record("log_result", report, weights, step)

    def finish(self, outcome: Outcome) -> None:
        self.record("finish", outcome)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[RecordingRun]:
    """The class of a tracker that takes the place of TensorBoard."""
    recording: type[RecordingRun] = type("Recorder", (RecordingRun,), {"runs": [], "fails": {}})
    monkeypatch.setitem(TRACKERS, "tensorboard", recording)
    return recording


def scalars_of_log(run: Path) -> Scalars:
    """The numbers of the log by name and step. The rate of the backbone is not in the log."""
    values: Scalars = {}
    for record in read_log(run):
        for name, value in scalars(record).items():
            values.setdefault(name, {})[record["step"]] = value
    return values


def scalars_of_tensorboard(run: Path) -> Scalars:
    """The scalars that TensorBoard shows. A step that it would show twice is an error."""
    accumulator = events(run)
    values: Scalars = {}
    for name in accumulator.Tags()["scalars"]:
        shown = accumulator.Scalars(name)
        values[name] = {event.step: event.value for event in shown}
        assert [event.step for event in shown] == sorted(values[name]), "each step once, in order"
    return values


def events(run: Path) -> Any:
    """What TensorBoard shows of a run."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def assert_equal_to_log(logged: Scalars, run: Path, with_cost: bool = True) -> None:
    """A tracker has the numbers of the log, at the same steps, in single precision.

    Times and memory are different when steps are repeated. They are compared ``with_cost``.
    """
    expected = scalars_of_log(run)
    # The -tiny presets have one learning rate.
    expected["train/backbone_lr"] = expected["train/lr"]
    assert logged.keys() == expected.keys()
    for name, values in expected.items():
        if with_cost or name.split("/")[1] not in ("seconds", "cpu_seconds", "peak_memory_mb"):
            assert logged[name] == pytest.approx(values, rel=1e-6), name


def evaluated_steps(run: Path) -> list[int]:
    return [record["step"] for record in read_log(run) if "AP" in record]


# what is sent


def test_tensorboard_shows_the_figures_of_the_log_and_images_of_every_evaluation(
    shapes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = train(shapes, tmp_path / "run", *OPTIONS, "tensorboard")
    assert_equal_to_log(scalars_of_tensorboard(run), run)
    shown = events(run)
    images = shown.Tags()["images"]
    assert len(images) == NUM_IMAGES
    for name in images:
        assert [image.step for image in shown.Images(name)] == evaluated_steps(run) == [6, 12]
    weights = shown.Tensors("best_weights/text_summary")[0].tensor_proto.string_val[0].decode()
    assert Path(weights) == run / "weights/best.safetensors"


def test_without_the_option_nothing_is_sent(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    run = train(shapes, tmp_path / "run", "--steps", "1")
    assert not recorder.runs
    assert not (run / "trackers.json").exists()
    assert not (run / "tensorboard").exists()


def test_the_configuration_has_the_settings_and_the_recipe(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    train(shapes, tmp_path / "run", *SHORT, "tensorboard", "--lr", "3e-4")
    ((configuration, _),) = recorder.runs[0].called("start")
    assert configuration["lr"] == 3e-4
    assert configuration["model"] == "conditional-detr-tiny"
    assert configuration["recipe.num_queries"] == 8
    assert configuration["log_with"] == '["tensorboard"]'


def test_images_have_the_detections_of_the_evaluation_as_predict_draws_them(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    """The best weights are those of the last evaluation here, so predict has the same ones."""
    run = train(shapes, tmp_path / "run", *SHORT, "tensorboard")
    ((images, step),) = recorder.runs[0].called("log_images")
    assert step == 2
    detector = groupdetr.Detector(run)
    for name, image in images.items():
        file = shapes / "images/val" / name.removeprefix("predictions/")
        (result,) = detector.predict(file)
        expected = result.draw()
        expected.thumbnail((MAX_SIDE, MAX_SIDE))
        assert len(result), "there is something to compare"
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_scenes_are_drawn_too(scenes: Path, tmp_path: Path, recorder: type[RecordingRun]) -> None:
    options = split("--model petr-tiny --groups 2 --steps 1 --batch 1 --workers 0 --device cpu")
    command = ["train", str(scenes), "--out", str(tmp_path / "run"), *options]
    assert main([*command, "--log-with", "tensorboard"]) == 0
    ((images, _),) = recorder.runs[0].called("log_images")
    assert len(images) == 4
    for image in images.values():
        assert max(image.size) == MAX_SIDE


def test_the_page_and_the_best_weights_follow_a_complete_training(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    run = train(shapes, tmp_path / "run", *SHORT, "tensorboard")
    (tracker,) = recorder.runs
    assert tracker.called("log_result") == [
        (run / "report.html", run / "weights/best.safetensors", 2)
    ]
    assert [method for method, _ in tracker.calls][-2:] == ["log_result", "finish"]
    assert tracker.called("finish") == [("finished",)]


@pytest.mark.slow
def test_only_the_main_process_of_several_logs(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    process = torchrun(2, train_arguments(shapes, run, *OPTIONS, "tensorboard"))
    assert process.returncode == 0, process.stderr
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert_equal_to_log(scalars_of_tensorboard(run), run)


def test_a_configuration_is_flattened() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [1, "x"], "f": True, "g": Path("h")}
    expected = {"a.b": 1, "a.c.d": None, "e": '[1, "x"]', "f": True, "g": '"h"'}
    assert flat(nested) == expected


# resume


def resumed_after_kill(shapes: Path, run: Path, tracker: str) -> None:
    """Train to step 9, and resume from the checkpoint of step 4, as after a kill at step 9."""
    train(shapes, run, *OPTIONS, tracker, "--stop-after", "4")
    last = copy(run / "weights/last.pt", run.with_name("last.pt"))
    assert main(["train", "--resume", str(run), "--stop-after", "9"]) == 0
    copy(last, run / "weights/last.pt")
    assert main(["train", "--resume", str(run)]) == 0


def test_tensorboard_shows_no_step_twice_after_a_kill(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    resumed_after_kill(shapes, run, "tensorboard")
    assert len(list((run / "tensorboard").iterdir())) == 3
    assert_equal_to_log(scalars_of_tensorboard(run), run)
    shown = events(run)
    for name in shown.Tags()["images"]:
        assert [image.step for image in shown.Images(name)] == evaluated_steps(run) == [6, 12]


def test_a_tracker_that_keeps_all_gets_no_step_twice_after_a_kill(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    run = tmp_path / "run"
    resumed_after_kill(shapes, run, "tensorboard")
    calls = [call for tracker in recorder.runs for call in tracker.called("log")]
    sent = [(step, any(name.startswith("val/") for name in values)) for values, step in calls]
    assert sent == [(record["step"], "AP" in record) for record in read_log(run)]
    assert [tracker.called("start")[0][1] for tracker in recorder.runs] == [1, 5, 5]


def test_a_tracker_that_is_added_on_a_resume_gets_the_whole_log(
    shapes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = train(shapes, tmp_path / "run", "--steps", "12", "--stop-after", "8")
    assert main(["train", "--resume", str(run), "--log-with", "tensorboard"]) == 0
    assert_equal_to_log(scalars_of_tensorboard(run), run)


def test_an_option_without_names_leaves_out_the_trackers_of_a_run(
    shapes: Path, tmp_path: Path, recorder: type[RecordingRun]
) -> None:
    run = train(shapes, tmp_path / "run", *OPTIONS, "tensorboard", "--stop-after", "4")
    assert main(["train", "--resume", str(run), "--log-with"]) == 0
    assert len(recorder.runs) == 1
    assert json.loads((run / "trackers.json").read_text())["tensorboard"]["last"] == [4, False]


@pytest.mark.parametrize("content", ['{"tensorboard": ', '{"tensorboard": {"last": 8}}'])
def test_a_damaged_file_of_states_does_not_end_a_run(
    shapes: Path, tmp_path: Path, content: str
) -> None:
    pytest.importorskip("tensorboard")
    run = train(shapes, tmp_path / "run", *OPTIONS, "tensorboard", "--stop-after", "8")
    (run / "trackers.json").write_text(content)
    assert main(["train", "--resume", str(run)]) == 0
    assert_equal_to_log(scalars_of_tensorboard(run), run)


# how a training ends


class Fails(groupdetr.Callback):
    """Ends a training with an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_step_end(self, trainer: Any, event: Any) -> None:
        if event.step == 3:
            raise self.error


def stop_after_step_3(shapes: Path, run: Path) -> None:
    train(shapes, run, *OPTIONS, "tensorboard", "--stop-after", "3")


def fail_at_step_3(shapes: Path, run: Path) -> None:
    with pytest.raises(CallbackError):
        train_with(Fails(ValueError("wrong")), shapes, run)


def interrupt_at_step_3(shapes: Path, run: Path) -> None:
    """As a second Ctrl-C does."""
    with pytest.raises(KeyboardInterrupt):
        train_with(Fails(KeyboardInterrupt()), shapes, run)


def train_with(callback: groupdetr.Callback, shapes: Path, run: Path) -> None:
    groupdetr.train(
        shapes,
        model="conditional-detr-tiny",
        groups=2,
        out=run,
        steps=12,
        batch=4,
        imgsz=48,
        workers=0,
        device="cpu",
        log_with="tensorboard",
        callbacks=[callback],
    )


@pytest.mark.parametrize(
    ("train_to_end", "outcome", "last"),
    [
        (stop_after_step_3, "interrupted", 3),
        (fail_at_step_3, "failed", 2),
        (interrupt_at_step_3, "interrupted", 2),
    ],
)
def test_trackers_are_ended_however_the_training_ends(
    shapes: Path,
    tmp_path: Path,
    recorder: type[RecordingRun],
    train_to_end: Callable[[Path, Path], None],
    outcome: str,
    last: int,
) -> None:
    """A step in which a callback fails is in the log. Trackers get it when the run is resumed."""
    train_to_end(shapes, tmp_path / "run")
    (tracker,) = recorder.runs
    assert tracker.called("finish") == [(outcome,)]
    assert [step for _, step in tracker.called("log")] == list(range(1, last + 1))
    assert read_log(tmp_path / "run")[-1]["step"] == 3
    assert main(["train", "--resume", str(tmp_path / "run"), "--stop-after", "4"]) == 0
    sent = [step for tracker in recorder.runs for _, step in tracker.called("log")]
    assert sent == [1, 2, 3, 4]


# failures


@pytest.mark.parametrize("method", ["log", "log_images", "log_result", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_the_training_goes_on(
    shapes: Path,
    tmp_path: Path,
    recorder: type[RecordingRun],
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder.fails[method] = OSError(28, "No space left on device")
    run = train(shapes, tmp_path / "run", *SHORT, "tensorboard")
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "No space left on device" in line]) == 1
    assert [record["step"] for record in read_log(run)][-1] == 2
    (tracker,) = recorder.runs
    assert len(tracker.called(method)) == 1
    assert tracker.called("finish") == [("finished",)]


def test_images_that_cannot_be_drawn_are_reported_once_and_figures_still_sent(
    shapes: Path,
    tmp_path: Path,
    recorder: type[RecordingRun],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the image is gone")

    from groupdetr.tasks.detection2d import validation_images

    monkeypatch.setattr(validation_images, "load_image", fail)
    train(shapes, tmp_path / "run", *SHORT, "tensorboard")
    assert capsys.readouterr().out.count("the image is gone") == 1
    (tracker,) = recorder.runs
    assert [step for _, step in tracker.called("log")][-1] == 2
    assert not tracker.called("log_images")


def test_a_tracker_that_cannot_be_started_is_an_error_before_the_run_exists(
    shapes: Path,
    tmp_path: Path,
    recorder: type[RecordingRun],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorder.fails["start"] = RuntimeError("the server does not answer")
    run = tmp_path / "run"
    assert main(train_arguments(shapes, run, *SHORT, "tensorboard")) == 2
    error = capsys.readouterr().err
    assert "--log-with tensorboard cannot be started" in error
    assert "the server does not answer" in error
    assert not (run / "config.yaml").exists()
    recorder.fails.clear()
    train(shapes, run, *SHORT, "tensorboard")


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra(
    shapes: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TRACKERS[name], "package", "no_such_package")
    run = tmp_path / "run"
    assert main(train_arguments(shapes, run, *SHORT, name)) == 2
    assert f"pip install 'groupdetr[{name}]'" in capsys.readouterr().err
    assert not run.exists()


def test_an_unknown_tracker_is_refused_in_python(shapes: Path) -> None:
    with pytest.raises(UsageError, match="there is no tracker 'tensorbord'"):
        groupdetr.train(shapes, model="conditional-detr-tiny", log_with="tensorbord")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_does_not_end_a_training_with_tensorboard(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TensorBoard writes in a thread of its own, and raises the error of it at the next call."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    write = RecordWriter.write
    written: list[object] = []

    def write_until_full(self: Any, data: bytes) -> None:
        written.append(data)
        if len(written) > 8:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", write_until_full)
    run = train(shapes, tmp_path / "run", *SHORT, "tensorboard")
    assert "tensorboard failed and gets no further records" in capsys.readouterr().out
    assert read_log(run)[-1]["step"] == 2


# Weights & Biases, MLflow and Trackio, where they are installed


@pytest.fixture
def offline_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights & Biases without a key, in a home folder of its own."""
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def wandb_history(folder: Path) -> Scalars:
    """The scalars of an offline run, by name and step."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    values: Scalars = {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            value = json.loads(item.value_json)
            if name.startswith(("train/", "val/")):
                values.setdefault(name, {})[record.history.step.num] = value
    return values


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases, which has the format of LevelDB's log."""
    block, header = 32768, struct.Struct("<IHB")  # a checksum, the length, and the part
    position, parts = 7, b""
    while position + header.size <= len(content):
        if block - position % block < header.size:
            position += block - position % block
            continue
        _, length, part = header.unpack_from(content, position)
        position += header.size
        parts += content[position : position + length]
        position += length
        if part in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_without_a_key_logs_offline_and_every_part_has_all_records(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(shapes, tmp_path / "run", *OPTIONS, "wandb", "--stop-after", "8")
    assert "not logged in; upload it with: wandb sync" in capsys.readouterr().out
    (first,) = (run / "wandb").glob("offline-run-*")
    assert_equal_to_log(wandb_history(first), run)
    assert main(["train", "--resume", str(run)]) == 0
    (second,) = set((run / "wandb").glob("offline-run-*")) - {first}
    assert second.name.split("-")[-1] == first.name.split("-")[-1], "the id of the run"
    assert_equal_to_log(wandb_history(second), run)
    images = [path.name for path in second.rglob("*.jpg")]
    assert len(images) == NUM_IMAGES, "of the evaluation of step 12"
    assert len(list(second.rglob("*.html"))) == 1


@pytest.mark.usefixtures("offline_wandb")
def test_wandb_online_without_a_key_is_an_error_and_never_a_question(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    import wandb

    wandb.teardown()  # It reads the environment once.
    assert main(train_arguments(shapes, tmp_path / "run", *OPTIONS, "wandb")) == 2
    error = capsys.readouterr().err
    assert "not logged in" in error
    assert "WANDB_MODE=offline" in error
    wandb.teardown()


def test_mlflow_logs_to_the_run_folder_and_continues_its_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "it's a run"
    resumed_after_kill(shapes, run, "mlflow")
    assert not mlflow.is_tracking_uri_set(), "another training has a database of its own"
    client = mlflow.MlflowClient(f"sqlite:///{(run / 'mlflow/mlflow.db').as_posix()}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == run.name
    assert logged.data.params["lr"] == "0.001"
    assert logged.data.tags["best_weights"] == str(run / "weights/best.safetensors")
    history: Scalars = {}
    for name in logged.data.metrics:
        metrics = client.get_metric_history(logged.info.run_id, name)
        history[name] = {metric.step: metric.value for metric in metrics}
        assert len(history[name]) == len(metrics), "each step once"
    assert_equal_to_log(history, run, with_cost=False)
    files = [path.path for path in client.list_artifacts(logged.info.run_id)]
    assert sorted(files) == ["predictions", "report.html"]
    images = list((run / "mlflow/artifacts").rglob("*.jpg"))
    steps = {int(path.stem.removeprefix("step-")) for path in images if path.is_file()}
    assert steps == set(evaluated_steps(run))


def test_mlflow_marks_an_interrupted_run_as_killed(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{(tmp_path / 'own.db').as_posix()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = train(
        shapes, tmp_path / "run", "--steps", "9", "--stop-after", "2", "--log-with", "mlflow"
    )
    assert not (run / "mlflow").exists(), "the address of the environment counts"
    client = mlflow.MlflowClient(store)
    (logged,) = client.search_runs([client.get_experiment_by_name("groupdetr").experiment_id])
    assert logged.info.status == "KILLED"


def test_trackio_continues_its_run(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run = tmp_path / "run"
    # Trackio reads the folder of its data when it is imported.
    own = {**environment(), "TRACKIO_DIR": str(tmp_path / "trackio")}
    first = train_arguments(shapes, run, *OPTIONS, "trackio", "--stop-after", "8")
    for arguments in (first, ["train", "--resume", str(run)]):
        subprocess.run(python_command(*arguments), env=own, check=True, timeout=900)
    (database,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(database).execute("SELECT run_name, step, metrics FROM metrics")
    history: Scalars = {}
    names = set()
    for name, step, metrics in rows:
        names.add(name)
        for metric, value in json.loads(metrics).items():
            if metric.startswith(("train/", "val/")):
                assert step not in history.setdefault(metric, {}), "each step once"
                history[metric][step] = value
    assert len(names) == 1
    assert_equal_to_log(history, run)
    assert len(list((tmp_path / "trackio").rglob("*.jpg"))) == NUM_IMAGES * 2
