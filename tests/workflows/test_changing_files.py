"""Images that vanish or change during a training: the error names the file, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from groupdetr.cli.main import main
from groupdetr.engine.trainer import Trainer
from tests.runs import is_identical, load_checkpoint, train, train_arguments

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


def train_while_images_change(
    alter: Callable[[Path], Any], data: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train without workers. After two of four steps, all training images are altered."""
    take_step = Trainer.take_step

    def take_step_and_alter(self: Trainer, network: nn.Module, batches: list[Any]) -> Any:
        if self.step == 1:
            for path in (data / "images/train").iterdir():
                alter(path)
        return take_step(self, network, batches)

    monkeypatch.setattr(Trainer, "take_step", take_step_and_alter)
    assert main(train_arguments(data, run, *OPTIONS)) == 3
    monkeypatch.undo()


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_changes_is_named_with_what_to_do(
    change: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alter, words, remedy = CHANGES[change]
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, data)
    train_while_images_change(alter, data, run, monkeypatch)
    output = capsys.readouterr()
    assert f"where: {data / 'images/train'}" in output.err
    assert words in output.err
    assert remedy in output.err
    assert f"groupdetr train --resume {run}" in output.out + output.err


def test_a_training_whose_images_vanished_goes_on_when_they_are_back(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, data)
    train_while_images_change(Path.unlink, data, run, monkeypatch)
    assert load_checkpoint(run)["progress"]["step"] == 2
    shutil.copytree(shapes / "images/train", data / "images/train", dirs_exist_ok=True)
    assert main(["train", "--resume", str(run)]) == 0
    undisturbed = train(data, tmp_path / "undisturbed", *OPTIONS)
    assert is_identical(load_checkpoint(run)["model"], load_checkpoint(undisturbed)["model"])


def test_an_image_that_vanishes_during_an_evaluation_is_named(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    run = train(data, tmp_path / "run", *OPTIONS)
    (data / "images/val").rename(data / "images/moved")
    (data / "images/val").mkdir()
    capsys.readouterr()
    assert main(["val", str(run), "--workers", "0"]) == 3
    error = capsys.readouterr().err
    assert str(data / "images/val") in error
    assert "there is no such image" in error
