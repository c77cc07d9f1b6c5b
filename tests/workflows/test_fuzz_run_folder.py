"""Random content of the files of a run is refused with a message, or it does no harm."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from groupdetr.cli.main import main
from groupdetr.cli.options.train import options_of_run
from groupdetr.data.layouts import DatasetSplits, load
from groupdetr.engine.run_folder import RunFolder, training_data
from groupdetr.errors import GroupDETRError, UsageError
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.workflows.resume import expect_same_data
from groupdetr.workflows.train import train as train_function
from groupdetr.workflows.training_result import TrainingResult
from groupdetr.workflows.validate import unused_folder
from tests.data.fuzzing import FUZZ
from tests.data.test_check import ANYTHING, mutate
from tests.runs import train

LIMIT = 20.0  # seconds of the processor; an example takes hundredths of a second
JSON_FILES = ("data.json", "env.json", "weights/best.json", "val/metrics.json")
NAMES = ("config.yaml", "log.jsonl", *JSON_FILES)
# YAML that is no JSON: objects of Python, anchors that expand without end, dates, keys of any type.
ODD_YAML = (
    "!!python/object/apply:os.system ['touch executed']",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\nmodel: [*d, *d, *d, *d]",
    "a: &a\n  b: *a",
    "2001-01-01: 2001-01-01\n? [1, 2]\n: 3",
    "model: !!binary x",
    "model: 1_0:59:59\nsteps: .nan",
    "---\n---\n",
    "\t",
    "[" * 5000,
)


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    return train(shapes, out, "--steps", "2", "--no-check")


@pytest.fixture(scope="module")
def dataset(shapes: Path) -> DatasetSplits:
    return load(shapes)


def odd_content(name: str, content: bytes, data: st.DataObject) -> bytes:
    """Return the content of a file of a run with a random change."""
    action = data.draw(st.sampled_from(["value"] * 6 + ["bytes", "cut", "any", "yaml"]))
    event(f"{name} {action}")
    if action == "bytes":
        return data.draw(st.binary(max_size=60))
    if action == "cut":
        return content[: data.draw(st.integers(0, len(content)))]
    if action == "yaml":
        return data.draw(st.sampled_from(ODD_YAML)).encode()
    if name == "log.jsonl":
        lines: list[Any] = [json.loads(line) for line in content.splitlines()]
        index = data.draw(st.integers(0, len(lines) - 1))
        if action == "any":
            lines[index] = data.draw(ANYTHING)
        else:
            mutate(lines, data)
        return "\n".join(map(json.dumps, lines)).encode()
    parsed = yaml.safe_load(content) if name == "config.yaml" else json.loads(content)
    if action == "any":
        parsed = data.draw(ANYTHING)
    else:
        mutate(parsed, data)
    return json.dumps(parsed).encode()


@contextmanager
def changed(file: Path, content: bytes) -> Iterator[None]:
    """Replace the content of a file for a while."""
    former = file.read_bytes()
    file.write_bytes(content)
    started = time.process_time()
    try:
        yield
    finally:
        file.write_bytes(former)
    assert time.process_time() - started < LIMIT


def test_a_class_without_a_name_in_the_recorded_data_is_an_error_of_that_file(
    run: Path, dataset: DatasetSplits
) -> None:
    recorded = json.loads((run / "data.json").read_bytes())
    recorded["fingerprint"]["categories"][0] = [1]
    with (
        changed(run / "data.json", json.dumps(recorded).encode()),
        pytest.raises(UsageError, match="cannot be read") as caught,
    ):
        expect_same_data(RunFolder(run), dataset)
    assert caught.value.where == str(run / "data.json")


@settings(**FUZZ)
@given(data=st.data())
def test_any_file_of_a_run_is_refused_or_does_no_harm(
    data: st.DataObject, run: Path, dataset: DatasetSplits
) -> None:
    name = data.draw(st.sampled_from(NAMES))
    folder = RunFolder(run)
    with changed(run / name, odd_content(name, (run / name).read_bytes(), data)):
        with contextlib.suppress(GroupDETRError):
            options_of_run(run)
        with contextlib.suppress(GroupDETRError):
            training_data(run, "pass --data DATA")
        with contextlib.suppress(GroupDETRError):
            expect_same_data(folder, dataset)
        with contextlib.suppress(GroupDETRError):
            unused_folder(run, None, "val-other")
        with contextlib.suppress(GroupDETRError):
            TrainingResult(run, 1, 2, 0.5, 1.0).to_json()
        assert all(isinstance(record["step"], int) for record in folder.records())
        assert all(isinstance(command, dict) for command in folder.commands())
        if data.draw(st.integers(0, 9)) == 0:
            # Prediction needs the weights alone.
            Detector(run, "cpu", imgsz=48).predict(Image.new("RGB", (48, 48)))


@pytest.mark.slow
@settings(**{**FUZZ, "max_examples": FUZZ["max_examples"] // 10})
@given(data=st.data())
def test_a_run_with_any_file_is_resumed_or_refused(
    data: st.DataObject, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also its page and its results are written, or the error says why not."""
    copy = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(run, copy)
    name = data.draw(st.sampled_from(NAMES))
    (copy / name).write_bytes(odd_content(name, (copy / name).read_bytes(), data))
    try:
        result = train_function(resume=copy)
    except GroupDETRError as error:
        event(error.what[:20])
    else:
        event("resumed")
        assert result.metrics
        assert RunFolder(copy).report.is_file()


# weights, and all files through the commands

WEIGHTS = ("weights/best.safetensors", "weights/last.pt", "weights/previous.pt")
COMMANDS = ("predict", "val", "train")


def odd_bytes(content: bytes, data: st.DataObject) -> bytes:
    """Return the content of a file of weights with random changes."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the changes are in the header, and the others anywhere.
        end = data.draw(st.sampled_from([min(300, len(changed)), len(changed)]))
        position = data.draw(st.integers(0, max(end - 1, 0)))
        action = data.draw(st.sampled_from(["flip"] * 4 + ["cut", "insert", "remove", "any"]))
        event(action)
        if action == "flip" and changed:
            changed[position] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "cut":
            del changed[position:]
        elif action == "insert":
            changed[position:position] = data.draw(st.binary(max_size=8))
        elif action == "remove":
            del changed[position : position + data.draw(st.integers(1, 20))]
        elif action == "any":
            changed[:] = data.draw(st.binary(max_size=60))
    return bytes(changed)


@settings(**{**FUZZ, "max_examples": FUZZ["max_examples"] // 4})
@given(data=st.data())
def test_every_command_takes_or_refuses_a_run_with_any_file(
    data: st.DataObject, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(run, folder / "run")
    name = data.draw(st.sampled_from([*NAMES, *WEIGHTS, *WEIGHTS]))
    content = (run / name).read_bytes()
    odd = odd_bytes(content, data) if name in WEIGHTS else odd_content(name, content, data)
    (folder / "run" / name).write_bytes(odd)
    image = folder / "image.png"
    Image.new("RGB", (48, 48)).save(image)
    command = data.draw(st.sampled_from(COMMANDS))
    arguments = {
        "predict": [str(folder / "run"), str(image), "--out", str(folder / "predictions")],
        "val": [str(folder / "run"), "--workers", "0", "--device", "cpu"],
        "train": ["--resume", str(folder / "run"), "--workers", "0"],
    }[command]
    output = io.StringIO()
    started = time.process_time()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main([command, *arguments])
    assert time.process_time() - started < LIMIT
    event(f"{command} {name}: {code}")
    shutil.rmtree(folder)
    if code == 1:
        # The page shows the metrics of the best evaluation, which are in this file alone.
        assert (command, name) == ("train", "weights/best.json")
        assert "its page could not be written" in output.getvalue()
    else:
        assert code in (0, 2, 3)
    assert code == 0 or ("error: " in output.getvalue() and "do: " in output.getvalue())
    if command == "predict":
        assert code == 0 or name in ("config.yaml", "weights/best.safetensors")
    if name == "weights/best.safetensors" and command != "train" and code == 0:
        start = 8 + int.from_bytes(content[:8], "little")
        assert odd[start:] == content[start:], "no other number is ever used"
