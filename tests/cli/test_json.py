"""--json: stdout holds one JSON value with the documented keys, and nothing after an error."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from groupdetr import registry
from groupdetr.cli.json_output import print_json
from groupdetr.cli.main import main
from groupdetr.engine.trainer import Trainer
from tests.json_docs import assert_documented
from tests.runs import train, train_arguments

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with two groups."""
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--steps", "4")


def printed_json(arguments: list[str], capsys: Captured, exit_code: int = 0) -> Any:
    """Run a command with --json and return the only thing in stdout."""
    assert main([*arguments, "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def write_data_with_findings(shapes: Path, folder: Path) -> list[str]:
    """Write annotations with an error and a warning, and return the arguments that name them."""
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    first, second, *_ = content["annotations"]
    first["bbox"][2] = float("nan")
    second["bbox"][2] = 0
    file = folder / "broken.json"
    file.write_text(json.dumps(content))
    return [str(file), "--images", str(shapes / "images/train")]


# the documented keys


def test_train_prints_json_and_a_plugin_and_the_progress_go_to_stderr(
    shapes: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is also true of what is written past Python's own stdout."""
    monkeypatch.setattr(registry, "_loaded_plugins", [])
    plugin = tmp_path / "talkative.py"
    plugin.write_text("print('the plugin is loaded')\n")
    run = tmp_path / "run"
    arguments = train_arguments(shapes, run, "--steps", "3", "--plugin", str(plugin), "--json")
    assert main(arguments) == 0
    del sys.modules["talkative"]
    output = capfd.readouterr()
    result = json.loads(output.out)
    assert_documented("train", result)
    assert (result["run"], result["steps"], result["groups"]) == (str(run), 3, 2)
    assert result["metrics"] == json.loads((run / "val/metrics.json").read_text())
    assert Path(result["weights"]).is_file()
    assert Path(result["report"]).is_file()
    for text in ("the plugin is loaded", "model   conditional-detr-tiny", "AP50"):
        assert text in output.err


def test_a_training_without_an_evaluation_has_no_metrics_weights_or_report(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    arguments = train_arguments(shapes, tmp_path / "run", "--steps", "4", "--stop-after", "1")
    result = printed_json(arguments, capsys)
    assert result["metrics"] == {}
    assert (result["weights"], result["report"]) == (None, None)
    assert (result["steps"], result["interrupted"]) == (1, False)


def test_an_interrupted_training_prints_json_and_ends_with_130(
    shapes: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: pytest.fail("it was not interrupted"))
    take_step = Trainer.take_step

    def take_last_step(self: Trainer, *arguments: Any) -> Any:
        self.request_stop()
        return take_step(self, *arguments)

    monkeypatch.setattr(Trainer, "take_step", take_last_step)
    arguments = train_arguments(shapes, tmp_path / "run", "--steps", "4")
    result = printed_json(arguments, capsys, exit_code=130)
    assert (result["steps"], result["interrupted"]) == (1, True)


def test_val_prints_one_object_with_ap(run: Path, tmp_path: Path, capsys: Captured) -> None:
    options = ["--per-group", "--workers", "0", "--out", str(tmp_path)]
    metrics = printed_json(["val", str(run), *options], capsys)
    assert_documented("val", metrics)
    assert 0 <= metrics["AP"] <= 1
    # The images have 48 pixels, so no object is large.
    assert metrics["AP_large"] is None
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())


def test_check_prints_the_verdict_findings_and_statistics(
    shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    data = write_data_with_findings(shapes, tmp_path)
    report = printed_json(["check", *data], capsys, exit_code=3)
    assert_documented("check", report)
    assert report["verdict"] == "refuse"
    assert "box-no-area" in {finding["code"] for finding in report["warnings"]}
    (error,) = report["errors"]
    assert error["file"] == str(tmp_path / "broken.json")
    assert error["record"] == "annotation 1"


def test_predict_doctor_and_presets_print_the_documented_keys(
    run: Path, shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    options = ["--score", "0", "--out", str(tmp_path)]
    images = printed_json(["predict", str(run), str(shapes / "images/val"), *options], capsys)
    assert_documented("predict", images)
    assert images == json.loads((tmp_path / "predictions.json").read_text())
    assert_documented("doctor", printed_json(["doctor"], capsys))
    presets = printed_json(["presets"], capsys)
    assert_documented("presets", presets)
    assert presets["table7/d"]["reported"] == 37.6


# errors


def test_after_an_error_stdout_is_empty(
    run: Path, shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    data = write_data_with_findings(shapes, tmp_path)
    nowhere = str(tmp_path / "nowhere")
    for exit_code, arguments in (
        (3, ["train", *data, "--model", "conditional-detr-tiny", "--out", nowhere]),
        (2, ["val", str(run), "--split", "test", "--workers", "0", "--out", nowhere]),
        (2, ["check", str(shapes), "--out", str(file)]),
        (2, ["predict", str(run), nowhere]),
        (2, ["demo", "--groups", "1", "--out", nowhere]),
        (2, ["doctor", "--model", "nope"]),
        (2, ["presets", "nope"]),
    ):
        assert main([*arguments, "--json"]) == exit_code, arguments
        output = capsys.readouterr()
        assert output.out == "", arguments
        assert "error: " in output.err, arguments


def test_predict_with_an_unreadable_image_prints_no_json_but_writes_the_others(
    run: Path, shapes: Path, tmp_path: Path, capsys: Captured
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    good = min((shapes / "images/val").iterdir())
    out = tmp_path / "out"
    assert main(["predict", str(run), str(broken), str(good), "--out", str(out), "--json"]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert "broken.jpg" in output.err
    (image,) = json.loads((out / "predictions.json").read_text())
    assert image["file"] == str(good)


# values


def test_undefined_numbers_are_null(capsys: Captured) -> None:
    print_json({"AP": math.nan, "rows": ({"loss": math.inf},), "steps": 3})
    assert json.loads(capsys.readouterr().out) == {"AP": None, "rows": [{"loss": None}], "steps": 3}


def test_only_the_main_process_prints(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groupdetr.engine.accelerator.is_main_process", lambda: False)
    print_json({"AP": 0.5})
    assert capsys.readouterr().out == ""
