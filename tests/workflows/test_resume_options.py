"""A resumed run: its data are compared, and every option takes effect or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from groupdetr.cli.main import main
from tests.runs import load_checkpoint, read_log, train

pytestmark = pytest.mark.usefixtures("empty_pages")

Content = dict[str, Any]


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, which a test may change."""
    return copytree(shapes, tmp_path / "data")


@pytest.fixture(scope="module")
def stopped_run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps of four."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(shapes, folder, "--steps", "4", "--stop-after", "2")


@pytest.fixture
def run(stopped_run: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return copytree(stopped_run, tmp_path / "run")


def change_annotations(data: Path, change: Callable[[Content], object]) -> None:
    """Change the annotation files of train and val."""
    for file in (data / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))


def swap_classes(content: Content) -> None:
    first, second = content["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def reverse_classes(content: Content) -> None:
    content["categories"].reverse()
    for number, category in enumerate(content["categories"], start=1):
        category["id"] = number


def add_class(content: Content) -> None:
    content["categories"].append({"id": 77, "name": "new"})


def remove_images(content: Content) -> None:
    content["images"] = content["images"][::2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]


def remove_object(content: Content) -> None:
    content["annotations"].pop()


def move_box(content: Content) -> None:
    content["annotations"][0]["bbox"][0] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_classes, "class"),
        (reverse_classes, "class"),
        (add_class, "the class new (id 77) is new"),
        (remove_images, "images and has"),
        (remove_object, "objects and has"),
        (move_box, "train has other annotations"),
    ],
)
def test_data_that_have_changed_are_refused_with_what_has_changed(
    change: Callable[[Content], object],
    message: str,
    run: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_annotations(data, change)
    assert main(["train", str(data), "--resume", str(run)]) == 3
    error = capsys.readouterr().err
    assert "the data have changed since this run began" in error
    assert message in error
    assert load_checkpoint(run)["progress"]["step"] == 2


def test_data_may_be_moved(run: Path, data: Path) -> None:
    assert main(["train", str(data), "--resume", str(run)]) == 0
    assert load_checkpoint(run)["progress"]["step"] == 4


def test_weight_decay_takes_effect_on_a_resumed_run(run: Path) -> None:
    assert main(["train", "--resume", str(run), "--weight-decay", "0.5"]) == 0
    groups = load_checkpoint(run)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5}


def test_another_batch_continues_after_the_images_that_were_seen(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch of 24 images in 6 steps, then batches of 8."""
    run = train(shapes, tmp_path / "batches", "--epochs", "2", "--stop-after", "6")
    assert load_checkpoint(run)["progress"]["images"] == 24
    assert main(["train", "--resume", str(run), "--batch", "8", "--stop-after", "7"]) == 0
    progress = load_checkpoint(run)["progress"]
    assert (progress["step"], progress["images"]) == (7, 32)
    assert read_log(run)[-1]["epoch"] == pytest.approx(32 / 24, abs=1e-4)
    # Six steps of 4 images and three of 8.
    assert "2 epochs = 9 steps" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0
    progress = load_checkpoint(run)["progress"]
    assert (progress["step"], progress["images"]) == (9, 48)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "dab-detr-tiny"], "--model"),
        (["--groups", "3"], "--groups"),
        (["--queries", "9"], "--queries"),
        (["--set", "num_heads=4"], "num_heads"),
        (["--weights", "other.pth"], "--weights"),
        (["--pretrained-backbone", "none"], "--pretrained-backbone"),
        (["--out", "elsewhere"], "--out"),
        (["--stop-after", "2"], "--stop-after 2 is over"),
        (["--steps", "1"], "--steps"),
        (["--layer-decay", "0.5"], "--layer-decay"),
        (["--steps", "9", "--epochs", "3"], "--epochs and --steps"),
    ],
)
def test_options_without_effect_on_a_resumed_run_are_refused(
    options: list[str], named: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(run), *options]) == 2
    assert named in capsys.readouterr().err
    assert load_checkpoint(run)["progress"]["step"] == 2


@pytest.mark.parametrize("length", [["--steps", "2"], ["--minutes", "0.0001"]])
def test_a_run_that_its_new_length_ends_at_once_is_evaluated(length: list[str], run: Path) -> None:
    """No evaluation was due after the two steps of the former part."""
    assert main(["train", "--resume", str(run), *length]) == 0
    assert load_checkpoint(run)["progress"]["evaluated_step"] == 2
    assert [record["step"] for record in read_log(run) if "AP" in record] == [2]
    assert (run / "weights/best.safetensors").is_file()
    assert (run / "report.html").is_file()


def test_a_longer_run_that_early_stop_has_ended_says_so_and_how_it_goes_on(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "3", "--batch", "12", "--lr", "0", "--backbone-lr", "0"]
    run = train(shapes, tmp_path / "stale", *options, "--early-stop", "1")
    step = load_checkpoint(run)["progress"]["step"]
    assert step < 6
    assert main(["train", "--resume", str(run), "--epochs", "4"]) == 0
    ending = f"--early-stop 1 ended the training after step {step}; to go on, "
    output = " ".join(capsys.readouterr().out.split())
    assert output.count(ending) == 2, "once by the training, and once by the longer one"
    assert output.count(f"--resume {run} --early-stop None") == 2
    assert main(["train", "--resume", str(run), "--early-stop", "None"]) == 0
    assert load_checkpoint(run)["progress"]["step"] == 8


def test_set_adds_to_the_fields_of_the_run(run: Path) -> None:
    assert main(["train", "--resume", str(run), "--set", "dropout=0.3"]) == 0
    assert "dropout=0.3" in (run / "config.yaml").read_text()
    assert "num_queries=8" in (run / "config.yaml").read_text()


def test_a_moving_average_may_begin_on_a_resumed_run(run: Path) -> None:
    assert main(["train", "--resume", str(run), "--ema", "0.9", "--stop-after", "3"]) == 0
    content = load_checkpoint(run)
    for name, weight in content["model"].items():
        assert torch.equal(content["ema"][f"module.{name}"], weight), name


def test_all_commands_of_a_run_are_kept(run: Path) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    commands = json.loads((run / "env.json").read_text())["commands"]
    assert [command["step"] for command in commands] == [0, 2]
    assert all(command["command"] and command["time"] for command in commands)


def test_a_tenth_of_an_epoch_between_evaluations_loses_none(shapes: Path, tmp_path: Path) -> None:
    options = ["--batch", "2", "--epochs", "1", "--eval-every", "0.1"]
    options += ["--instability-images", "0"]
    run = train(shapes, tmp_path / "tenths", *options)
    assert sum("peak_memory_mb" in record for record in read_log(run)) == 10
