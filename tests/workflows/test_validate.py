"""`groupdetr val` evaluates exactly what was named, and keeps the metrics of the training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import groupdetr
from groupdetr.cli.main import main
from groupdetr.engine.run_folder import RunFolder
from groupdetr.tasks.detection2d.report import best_errors
from groupdetr.workflows.training_result import TrainingResult
from tests.json_docs import assert_documented
from tests.runs import train

OPTIONS = ["--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--steps", "2")


@pytest.fixture(scope="module")
def one_file(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one annotation file with 24 images beside it."""
    root = tmp_path_factory.mktemp("file") / "one"
    shutil.copytree(shapes / "images/train", root)
    shutil.copy(shapes / "annotations/instances_train.json", root / "labels.json")
    return root


@pytest.fixture(scope="module")
def held_out_run(one_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(one_file, tmp_path_factory.mktemp("runs") / "run", "--steps", "2")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def evaluated_images(folder: Path) -> tuple[int, int]:
    """Return the number of images that metrics.json tells of, and of those with detections."""
    predictions = read_json(folder / "predictions.json")
    metrics = read_json(folder / "metrics.json")
    return metrics["images"], len({row["image_id"] for row in predictions})


def test_an_annotation_file_is_evaluated_with_all_of_its_images(
    run: Path, one_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shapes / "annotations/instances_train.json"
    images = ["--images", str(shapes / "images/train")]
    data = ["--data", str(file), *images]
    assert main(["val", str(run), *data, *OPTIONS, "--out", str(tmp_path / "a")]) == 0
    assert evaluated_images(tmp_path / "a") == (24, 24)
    assert f"24 images: all images of {file}" in capsys.readouterr().out
    # The images are beside the file.
    data = ["--data", str(one_file / "labels.json")]
    assert main(["val", str(run), *data, *OPTIONS, "--out", str(tmp_path / "b")]) == 0
    assert evaluated_images(tmp_path / "b") == (24, 24)


@pytest.mark.parametrize("only", ["train", "test"])
def test_a_folder_with_one_split_is_evaluated_if_the_split_is_named(
    only: str, run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes / "images/train", data / "images" / only)
    (data / "annotations").mkdir()
    source = shapes / "annotations/instances_train.json"
    shutil.copy(source, data / f"annotations/instances_{only}.json")
    arguments = ["val", str(run), "--data", str(data), *OPTIONS, "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert f"choose --split {only}" in capsys.readouterr().err
    assert main([*arguments, "--split", only]) == 0
    assert evaluated_images(tmp_path / "out") == (24, 24)
    assert f"24 images: split {only} of" in capsys.readouterr().out


def test_val_of_a_run_without_a_val_split_evaluates_what_the_training_held_out(
    held_out_run: Path, one_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the same if the data of the run are named."""
    own = read_json(held_out_run / "weights/best.json")
    for data in ([], ["--data", str(one_file)]):
        out = tmp_path / str(len(data))
        options = [*OPTIONS, "--batch", "4", "--out", str(out)]
        assert main(["val", str(held_out_run), *data, *options]) == 0
        assert evaluated_images(out) == (5, 5)
        assert "5 images: those of 24 that the training held out" in capsys.readouterr().out
        metrics = read_json(out / "metrics.json")
        assert metrics["per_class"] == own["per_class"], "the training evaluated the same images"
    options = [*OPTIONS, "--split", "train", "--out", str(tmp_path / "train")]
    assert main(["val", str(held_out_run), *options]) == 0
    assert evaluated_images(tmp_path / "train") == (19, 19)


def test_other_images_are_evaluated_beside_the_metrics_of_the_training(
    run: Path, one_file: Path, shapes: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = {
        path: path.read_bytes() for path in (copy / "val/metrics.json", copy / "weights/best.json")
    }
    other = tmp_path / "other/one"
    shutil.copytree(one_file, other)
    data = str(shapes)
    calls: list[tuple[list[str], str]] = [
        (["--data", str(one_file)], "val-one"),
        (["--data", str(other)], "val-one-2"),
        (["--data", str(one_file)], "val-one"),
        (["--data", str(one_file / "labels.json")], "val-labels"),
        (["--split", "train"], "val-train"),
        (["--data", data, "--split", "train"], "val-train"),
        (["--imgsz", "32"], "val-imgsz32"),
    ]
    for arguments, folder in calls:
        assert main(["val", str(copy), *arguments, *OPTIONS]) == 0
        assert (copy / folder / "metrics.json").is_file(), arguments
        for path, content in before.items():
            assert path.read_bytes() == content
    expected = {folder for _, folder in calls} | {"val"}
    assert {path.name for path in copy.glob("val*")} == expected


def test_other_images_are_not_evaluated_into_the_folder_of_the_training(
    run: Path, one_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "val/metrics.json").read_bytes()
    arguments = ["val", str(run), *OPTIONS, "--out", str(run / "val")]
    assert main([*arguments, "--data", str(one_file)]) == 2
    assert "has the metrics of a training" in capsys.readouterr().err
    weights = ["val", str(run / "weights/best.safetensors"), "--data", str(one_file)]
    assert main([*weights, *OPTIONS, "--out", str(run / "val")]) == 2
    assert (run / "val/metrics.json").read_bytes() == before


def test_a_resumed_run_has_the_metrics_of_its_own_evaluations(
    run: Path, one_file: Path, tmp_path: Path
) -> None:
    """Whatever is in the folder of `groupdetr val`."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    own = TrainingResult(copy, 2, 2, 1.0, 1.0).metrics
    (copy / "val/metrics.json").write_text('{"AP": 0.99, "per_class": []}')
    assert TrainingResult(copy, 2, 2, 1.0, 1.0).metrics == own
    (copy / "report.html").unlink()
    assert main(["train", "--resume", str(copy)]) == 0
    assert ">99.0<" not in (copy / "report.html").read_text()


def test_weights_that_are_no_run_are_evaluated_beside_their_file(
    run: Path, one_file: Path, tmp_path: Path
) -> None:
    """Two files of weights in a folder do not replace the metrics of each other."""
    folders = []
    for name in ("a.safetensors", "b.safetensors"):
        weights = tmp_path / name
        shutil.copy(run / "weights/best.safetensors", weights)
        metrics = groupdetr.evaluate(weights, one_file, workers=0, device="cpu")
        assert metrics["weights"] == str(weights)
        folders.append(metrics.folder.name)
    assert folders == ["val-one", "val-one-2"]


def test_a_category_without_boxes_that_the_detector_lacks_is_ignored(
    run: Path, one_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read_json(one_file / "labels.json")
    content["categories"].append({"id": 0, "name": "shapes", "supercategory": "none"})
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(content))
    arguments = ["val", str(run), "--data", str(file), "--images", str(one_file), *OPTIONS]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    content["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(content))
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "the detector has no class shapes (id 0)" in capsys.readouterr().err


def test_categories_with_other_ids_are_matched_by_name(
    run: Path, one_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training of others, such as RF-DETR's, numbers the categories of its data from 0."""
    content = read_json(one_file / "labels.json")
    for category in content["categories"]:
        category["id"] = 10 - category["id"]  # in the reverse order
    for annotation in content["annotations"]:
        annotation["category_id"] = 10 - annotation["category_id"]
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(content))
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    expected = groupdetr.evaluate(run, one_file, out=tmp_path / "same", **options)
    assert "matched by name" not in caplog.text
    renumbered = groupdetr.evaluate(run, file, images=one_file, out=tmp_path / "other", **options)
    assert "they are matched by name" in caplog.text
    for metric in ("AP", "AP50", "AR100"):
        assert renumbered[metric] == expected[metric]


@pytest.mark.parametrize("annotations", [None, []])
def test_a_split_without_annotations_has_detections_and_no_metrics(
    annotations: list[Any] | None,
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """COCO's test-dev has no annotations. `check` says it once and does not refuse the dataset."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    shutil.copytree(shapes / "images/val", data / "images/test")
    content = read_json(shapes / "annotations/instances_val.json")
    content.pop("annotations")
    if annotations is not None:
        content["annotations"] = annotations
    (data / "annotations/instances_test.json").write_text(json.dumps(content))

    own = groupdetr.check(shapes)
    report = groupdetr.check(data)
    file = str(data / "annotations/instances_test.json")
    about_test = [item for item in report.warnings if item.file == file]
    assert (report.errors, len(about_test)) == (own.errors, 1)
    assert "AP cannot be measured" in about_test[0].remedy

    capsys.readouterr()
    arguments = ["val", str(run), "--data", str(data), "--split", "test", *OPTIONS]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "6 images: split test of" in output
    assert "no metrics: the split has no annotations" in output
    assert evaluated_images(tmp_path / "out") == (6, 6)
    metrics = read_json(tmp_path / "out/metrics.json")
    subject = ("split", "weights", "data", "images")
    assert_documented("Metrics of boxes", {k: v for k, v in metrics.items() if k not in subject})
    assert (metrics["AP"], metrics["AR100"], metrics["score_threshold"]) == (None, None, None)
    assert main([*arguments, "--per-group", "--out", str(tmp_path / "groups")]) == 2
    assert "leave out --per-group" in capsys.readouterr().err


def test_a_val_split_without_annotations_is_refused_by_a_training(
    shapes: Path, tmp_path: Path
) -> None:
    """It could not choose the best weights."""
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    file = data / "annotations/instances_val.json"
    content = read_json(file)
    del content["annotations"]
    file.write_text(json.dumps(content))
    (error,) = groupdetr.check(data).errors
    assert error.what == "'annotations' is missing"


def test_val_writes_what_the_detector_misses_and_makes_up(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    """errors.json is of the same threshold as the metrics, and a page shows it."""
    assert main(["val", str(run), *OPTIONS, "--out", str(tmp_path)]) == 0
    errors = read_json(tmp_path / "errors.json")
    metrics = read_json(tmp_path / "metrics.json")
    assert_documented("errors.json", errors)
    best = errors["best_f1"]
    named = {name: best[name] for name in ("F1", "precision", "recall")}
    assert named == {name: metrics[name] for name in named}
    assert metrics["score_threshold"] == best["score"]
    objects = sum(row["count"] for row in errors["confusions"] if row["object"] is not None)
    assert objects == sum(row["objects"] for row in metrics["per_class"])
    pages = [tmp_path / "report.html", run / "report.html"]
    for page in pages:
        html = page.read_text()
        for title in ("Precision and recall", "Confusions", "Worst images"):
            assert f"<h2>{title}</h2>" in html, f"{page} has no section {title}"
        assert html.count('src="data:image/jpeg;base64,') >= len(errors["worst_images"])


def test_the_page_of_a_run_leaves_out_errors_of_other_weights(run: Path, tmp_path: Path) -> None:
    """A training may have been killed between the two files."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "weights/errors.json"
    for content in (json.dumps({**read_json(file), "step": 1}), "{", "[]", '{"step": 2}'):
        file.write_text(content)
        assert best_errors(RunFolder(copy)) is None
    shutil.copy(run / "weights/errors.json", file)
    assert best_errors(RunFolder(copy)) is not None


def test_the_metrics_in_bf16_have_a_folder_of_their_own(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    metrics = (copy / "val/metrics.json").read_bytes()
    assert main(["val", str(copy), *OPTIONS, "--precision", "bf16"]) == 0
    assert (copy / "val/metrics.json").read_bytes() == metrics
    in_bf16 = read_json(copy / "val-bf16/metrics.json")
    assert in_bf16["inference_precision"] == "bf16"
    assert in_bf16["AP"] == pytest.approx(read_json(copy / "val/metrics.json")["AP"], abs=0.05)
