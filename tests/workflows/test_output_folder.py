"""Nothing that a user has is lost: no command replaces a file that it did not write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.cli.main import main
from groupdetr.errors import UsageError
from groupdetr.registry import recipe_to_dict
from groupdetr.tasks.annotated_images import is_annotated
from groupdetr.weights.importing import import_weights

Content = dict[str, bytes]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of this library, without a training."""
    torch.manual_seed(0)
    model = groupdetr.create_model("conditional-detr-tiny", num_classes=3, num_groups=2)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    categories = [[1, "circle"], [2, "square"], [3, "triangle"]]
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": categories, "imgsz": 48}
    native.save(model, path, metadata)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three images, one of which is in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    for name in ("a.jpg", "b.png", "sub/a.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def content_of(folder: Path) -> Content:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused as wrong usage, and return its message."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


# predict


def test_predict_never_replaces_the_images(
    weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content_of(photos)
    message = refused(capsys, "predict", weights, photos, "--out", photos)
    assert content_of(photos) == before
    assert "2 files would be replaced" in message  # the second a.jpg is a-2.jpg
    assert f"--out {photos / 'annotated'}" in message


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "dangling link", "other image"])
def test_predict_replaces_no_file_of_its_folder_that_it_did_not_write(
    kind: str, weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if kind == "symbolic link":
        (out / "a.jpg").symlink_to(photos / "a.jpg")
    elif kind == "hard link":
        (out / "a.jpg").hardlink_to(photos / "a.jpg")
    elif kind == "dangling link":
        (out / "a.jpg").symlink_to(photos / "not-there.jpg")
    else:
        Image.new("RGB", (8, 8)).save(out / "a.jpg")
    before = content_of(tmp_path)
    assert str(out / "a.jpg") in refused(capsys, "predict", weights, photos, "--out", out)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("inside", ["", "results", "sub"])
def test_a_folder_that_holds_its_own_output_has_the_same_images_every_time(
    inside: str, weights: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in list(photos.rglob("*.*")):
        # In another format, annotated images may lie beside the images.
        Image.open(file).save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    originals = content_of(photos)
    arguments = ["predict", weights, photos, "--out", photos / inside, "--score", "0", "--json"]
    counts = []
    for _ in range(3):
        assert main([str(argument) for argument in arguments]) == 0
        output = capsys.readouterr()
        counts.append(len(json.loads(output.out)))
    assert counts == [3, 3, 3]
    assert "3 annotated images of an earlier run" in output.err
    assert content_of(photos).items() >= originals.items()


def test_a_predictions_json_of_others_is_kept(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.json").write_text('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]')
    before = content_of(tmp_path)
    assert "predictions.json" in refused(capsys, "predict", weights, photos, "--out", out)
    assert content_of(tmp_path) == before


def test_names_that_differ_in_case_only_get_different_annotated_images(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On macOS and Windows, A.jpg and a.jpg are one file."""
    (photos / "sub/a.jpg").rename(photos / "sub/A.jpg")
    out = tmp_path / "out"
    arguments = ["predict", str(weights), str(photos), "--out", str(out), "--score", "0", "--json"]
    assert main(arguments) == 0
    names = [entry["annotated"].lower() for entry in json.loads(capsys.readouterr().out)]
    assert len(set(names)) == 3


def test_a_name_of_250_bytes_can_be_annotated(weights: Path, tmp_path: Path) -> None:
    photo = tmp_path / f"{'é' * 123}.png"
    Image.new("RGB", (30, 20)).save(photo)
    assert main(["predict", str(weights), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_a_result_is_not_saved_over_its_image(weights: Path, photos: Path) -> None:
    (result,) = groupdetr.Detector(weights).predict(photos / "a.jpg", score=0)
    before = content_of(photos)
    with pytest.raises(UsageError, match="replace the original"):
        result.save(photos / "sub/../a.jpg")
    assert content_of(photos) == before
    result.save(photos / "b.png")
    assert is_annotated(photos / "b.png")
    with pytest.raises(UsageError, match="ending"):
        result.save(photos / "c.txt")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_annotated_images_are_recognised_in_every_format_and_look_the_same(
    suffix: str, weights: Path, photos: Path
) -> None:
    (result,) = groupdetr.Detector(weights).predict(photos / "a.jpg", score=0)
    path = photos / f"annotated{suffix}"
    result.save(path)
    assert is_annotated(path)
    assert not is_annotated(photos / "a.jpg")
    if suffix in (".png", ".tif"):
        assert Image.open(path).tobytes() == result.draw().tobytes()


def test_predict_that_finds_nothing_says_the_best_score_there_was(
    weights: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(weights), str(photos), "--out", str(out)]
    assert main([*arguments, "--score", "1"]) == 0
    output = capsys.readouterr().out
    assert "a.jpg: no objects (best score 0." in output
    lower = output.split("--score ")[1].split()[0]
    assert main([*arguments, "--score", lower]) == 0
    output = capsys.readouterr().out
    assert "circle" in output or "square" in output or "triangle" in output
    (result,) = groupdetr.Detector(weights).predict(photos / "a.jpg", score=1)
    assert repr(result) == f"<Result: no objects (best score {result.best_score:.3g})>"


# the other commands


def run_check(data: Path, out: Path, *_: object) -> list[object]:
    return ["check", data, "--out", out]


def run_val(data: Path, out: Path, weights: Path) -> list[object]:
    return ["val", weights, "--data", data, "--workers", 0, "--out", out]


def run_train(data: Path, out: Path, *_: object) -> list[object]:
    model = ["--model", "conditional-detr-tiny", "--groups", 2, "--steps", 1, "--batch", 2]
    return ["train", data, *model, "--workers", 0, "--out", out, "--no-check"]


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        *((run_check, folder) for folder in ("", "annotations", "images/val", "linked")),
        *((run_val, "images/val"), (run_train, "")),
    ],
)
def test_a_folder_of_the_dataset_is_no_output_folder(
    command: Callable[..., list[object]],
    folder: str,
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    if folder == "linked":
        (tmp_path / "link").symlink_to(data)
        out = tmp_path / "link"
    else:
        out = data / folder
    before = content_of(tmp_path)
    message = refused(capsys, *command(data, out, weights))
    assert "the output folder is a folder of the dataset" in message
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (run_check, "check.json"),
        (run_val, "metrics.json"),
        (run_val, "predictions.json"),
        (run_val, "per_class.csv"),
        (run_train, "data.json"),
        (run_train, "results.csv"),
        (run_train, "log.jsonl"),
        (run_train, "report.html"),
        (run_train, "weights/best.safetensors"),
        (run_train, "weights/last.pt"),
    ],
)
def test_a_file_of_others_in_the_output_folder_is_kept(
    command: Callable[..., list[object]],
    name: str,
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text('{"images": []}')
    assert str(out / name) in refused(capsys, *command(shapes, out, weights))
    assert content_of(out) == {str(out / name): b'{"images": []}'}


@pytest.mark.parametrize(
    ("command", "name"),
    [(run_check, "check.json"), (run_val, "metrics.json"), (run_train, "data.json")],
)
def test_an_annotation_file_is_not_replaced_by_a_file_of_the_same_name(
    command: Callable[..., list[object]],
    name: str,
    weights: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotations = tmp_path / name
    shutil.copy(shapes / "annotations/instances_train.json", annotations)
    before = content_of(tmp_path)
    arguments = [*command(annotations, tmp_path, weights), "--images", shapes / "images/train"]
    assert str(annotations) in refused(capsys, *arguments)
    assert content_of(tmp_path) == before


def test_the_same_command_may_be_repeated(weights: Path, shapes: Path, tmp_path: Path) -> None:
    for command in (run_check, run_val):
        arguments = [str(argument) for argument in command(shapes, tmp_path / "out", weights)]
        assert main(arguments) == main(arguments) == 0


def test_a_training_that_ended_before_its_first_step_can_be_started_again(
    weights: Path, shapes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [str(argument) for argument in run_train(shapes, run)]
    assert main(arguments) == 0
    # What was written before the configuration
    for path in list(run.iterdir()):
        if path.name not in ("env.json", "data.json", "weights"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (run / "weights").iterdir():
        if path.name != "last.pt":
            path.unlink()
    assert main(arguments) == 0


@pytest.mark.parametrize("kind", ["a file", "below a file", "a broken link"])
def test_an_output_folder_that_is_a_file_is_named(
    kind: str, weights: Path, photos: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = out = photos / "a.jpg"
    if kind == "below a file":
        out = wrong / "results"
    if kind == "a broken link":
        wrong = out = photos / "link"
        out.symlink_to(photos / "gone")
    before = content_of(photos)
    commands = [command(shapes, out, weights) for command in (run_check, run_val, run_train)]
    commands += [["predict", weights, photos, "--out", out], ["demo", "--out", out]]
    for arguments in commands:
        message = refused(capsys, *arguments)
        assert "the output folder cannot be created" in message
        assert f"where: {wrong}\n" in message
    assert content_of(photos) == before


@pytest.mark.parametrize("name", ["results.json", "table.md", "report.html"])
def test_a_demo_does_not_write_to_a_folder_of_others(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("not JSON")
    before = content_of(tmp_path)
    assert name in refused(capsys, "demo", "--out", tmp_path)
    assert content_of(tmp_path) == before


def test_an_import_does_not_replace_its_source_or_the_weights_of_a_run(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copy(weights, tmp_path / "source.safetensors")
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "config.yaml").write_text("model: mine")
    best = shutil.copy(weights, run / "weights/best.safetensors")
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = content_of(tmp_path)
    for out in (source, best, notes):
        assert str(out) in refused(capsys, "import", source, "--out", out)
        with pytest.raises(UsageError, match="would be replaced"):
            import_weights(source, out)
    assert content_of(tmp_path) == before
