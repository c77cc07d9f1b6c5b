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


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_changes_ends_a_training_that_can_be_resumed(
    change: str,
    workers: str,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if workers != "0" and change != "vanished":
        pytest.skip("workers pass all errors on in the same way")
    alter, words, remedy = CHANGES[change]
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    images = data / "images/train"
    take_step = Trainer.take_step

    def take_step_and_alter(self: Trainer, network: nn.Module, batches: list[Any]) -> Any:
        if self.step == 1:
            for path in images.iterdir():
                alter(path)
        return take_step(self, network, batches)

    monkeypatch.setattr(Trainer, "take_step", take_step_and_alter)
    run = tmp_path / "run"
    # With workers, some batches are loaded ahead.
    steps = ["--steps", "4" if workers == "0" else "12", "--eval-every", "100"]
    assert main(train_arguments(data, run, *steps, "--workers", workers)) == 3
    output = capsys.readouterr()
    assert str(images) in output.err
    assert words in output.err
    assert remedy in output.err
    assert f"groupdetr train --resume {run}" in output.out + output.err
    step = load_checkpoint(run)["progress"]["step"]
    assert step == 2 if workers == "0" else step >= 2

    monkeypatch.undo()
    shutil.rmtree(images)
    shutil.copytree(shapes / "images/train", images)
    assert main(["train", "--resume", str(run)]) == 0
    undisturbed = train(data, tmp_path / "undisturbed", *steps)
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
