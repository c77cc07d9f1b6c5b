"""Files that vanish or change during a training: the error names them, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from groupdetr.cli.main import main
from groupdetr.engine.trainer import Trainer
from tests.runs import evaluations, is_identical, load_checkpoint, train, train_arguments

pytestmark = pytest.mark.usefixtures("empty_pages")

OPTIONS = ["--steps", "4", "--eval-every", "100"]


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# What happens to the images: (change of one image, words of the error, words of the remedy)
CHANGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "vanished": (Path.unlink, "there is no such image", "put the image there"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:200]), "", "copy the image again"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty", "copy the image again"),
    "of another size": (
        lambda path: Image.new("RGB", (20, 30)).save(path),
        "the image is 20 x 30 pixels, but 48 x 48 are recorded",
        "correct 'width' and 'height'",
    ),
    "a folder": (replace_by_a_folder, "it is a folder", "replace it by an ordinary image file"),
}


def train_while(
    change: Callable[[], Any], data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> int:
    """Train without workers, and call ``change`` in the second step. Return the exit code."""
    take_step = Trainer.take_step

    def take_step_and_change(self: Trainer, network: nn.Module, batches: list[Any]) -> Any:
        if self.step == 1:
            change()
        return take_step(self, network, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", take_step_and_change)
        return main(train_arguments(data, run, *OPTIONS, *options))


def alter_images(alter: Callable[[Path], Any], data: Path) -> None:
    for path in (data / "images/train").iterdir():
        alter(path)


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, which a test may change."""
    return shutil.copytree(shapes, tmp_path / "data")


@pytest.fixture(scope="module")
def undisturbed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "undisturbed", *OPTIONS)


def assert_resumes(run: Path, undisturbed: Path) -> None:
    """Assert that a run ends as one that was not disturbed."""
    assert main(["train", "--resume", str(run)]) == 0
    assert is_identical(load_checkpoint(run)["model"], load_checkpoint(undisturbed)["model"])


# images


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_changes_is_named_with_what_to_do(
    change: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alter, words, remedy = CHANGES[change]
    run = tmp_path / "run"
    assert train_while(lambda: alter_images(alter, data), data, run, monkeypatch) == 3
    output = capsys.readouterr()
    assert f"where: {data / 'images/train'}" in output.err
    assert words in output.err
    assert remedy in output.err
    assert f"groupdetr train --resume {run}" in output.out + output.err


def test_a_training_whose_images_vanished_goes_on_when_they_are_back(
    undisturbed: Path, data: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert train_while(lambda: alter_images(Path.unlink, data), data, run, monkeypatch) == 3
    assert load_checkpoint(run)["progress"]["step"] == 2
    shutil.copytree(shapes / "images/train", data / "images/train", dirs_exist_ok=True)
    assert_resumes(run, undisturbed)


def test_an_image_that_vanishes_before_an_evaluation_is_named_and_it_is_done_on_resume(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, images, moved = tmp_path / "run", data / "images/val", tmp_path / "moved"
    assert train_while(lambda: images.rename(moved), data, run, monkeypatch) == 3
    error = capsys.readouterr().err
    assert f"where: {images}" in error
    assert "there is no such image" in error
    assert load_checkpoint(run)["progress"]["step"] == 4
    moved.rename(images)
    assert main(["train", "--resume", str(run)]) == 0
    assert [record["step"] for record in evaluations(run)] == [4]
    images.rename(moved)
    images.mkdir()
    capsys.readouterr()
    assert main(["val", str(run), "--workers", "0"]) == 3
    assert str(images) in capsys.readouterr().err


# folders


def test_a_data_folder_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(
    undisturbed: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    assert train_while(lambda: data.rename(away), data, run, monkeypatch) == 3
    assert f"where: {data / 'images/train'}" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 3
    error = capsys.readouterr().err
    assert str(data) in error
    assert "there is no such file or folder" in error
    assert load_checkpoint(run)["progress"]["step"] == 2
    away.rename(data)
    assert_resumes(run, undisturbed)


def test_worker_processes_name_a_data_folder_that_vanishes(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, away = tmp_path / "run", tmp_path / "away"
    options = ("--workers", "1", "--steps", "30")
    assert train_while(lambda: data.rename(away), data, run, monkeypatch, *options) == 3
    error = capsys.readouterr().err
    assert f"where: {data / 'images/train'}" in error
    assert "Traceback" not in error


def test_a_run_folder_that_vanishes_ends_the_training_with_its_name(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert train_while(lambda: shutil.rmtree(run), data, run, monkeypatch) == 2
    error = capsys.readouterr().err
    assert "could not be written: No such file or directory" in error
    assert f"where: {run}" in error


# annotation files


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda content: content["annotations"].pop(), "train had"),
        (
            lambda content: content["annotations"][0]["bbox"].reverse(),
            "train has other annotations",
        ),
        (lambda content: content["categories"].append({"id": 9, "name": "new"}), "new (id 9)"),
    ],
)
def test_annotations_that_change_during_a_training_are_found_when_it_is_resumed(
    alter: Callable[[Any], Any],
    words: str,
    undisturbed: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are read once, so that the steps after the change are those without it."""
    run, file = tmp_path / "run", data / "annotations/instances_train.json"
    before = file.read_text()

    def change() -> None:
        content = json.loads(before)
        alter(content)
        file.write_text(json.dumps(content))

    assert train_while(change, data, run, monkeypatch, "--stop-after", "3") == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 3
    error = capsys.readouterr().err
    assert "the data have changed since this run began" in error
    assert words in error
    assert load_checkpoint(run)["progress"]["step"] == 3
    file.write_text(before)
    assert_resumes(run, undisturbed)


@pytest.mark.parametrize(
    ("split", "alter"),
    [("train", Path.unlink), ("val", lambda path: path.write_bytes(b'{"images": ['))],
)
def test_an_annotation_file_that_vanished_or_is_cut_off_is_no_reason_to_train_on_the_rest(
    alter: Callable[[Path], Any],
    split: str,
    undisturbed: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, file = tmp_path / "run", data / f"annotations/instances_{split}.json"
    before = file.read_text()
    assert train_while(lambda: alter(file), data, run, monkeypatch, "--stop-after", "3") == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 3
    assert split in capsys.readouterr().err
    file.write_text(before)
    assert_resumes(run, undisturbed)
