"""The files of `groupdetr predict`: labels, results, crops, boxes of groups; batches and stdin."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import groupdetr
from groupdetr.checkpoints import native
from groupdetr.cli.main import main
from groupdetr.errors import UsageError
from groupdetr.registry import create_model, recipe_to_dict
from groupdetr.tasks.detection2d.prediction_files import coco_image_ids
from groupdetr.tasks.detection2d.prediction_inputs import PredictionInput, annotated_paths
from tests.json_docs import assert_documented

CLASSES = [[7, "a/b"], [9, "cat"]]
SIZES = [(40, 30), (64, 48), (40, 30), (30, 40), (40, 30)]  # of the images
FILES = ["--save-txt", "--save-json", "--save-crops"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a detector with three groups and random weights."""
    torch.manual_seed(0)
    model = create_model("conditional-detr-tiny", num_classes=2, num_groups=3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    metadata = {"recipe": recipe_to_dict(model.recipe), "categories": CLASSES, "imgsz": 48}
    native.save(model, path, metadata)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(SIZES):
        paths.append(tmp_path / f"images/{number + 1:012d}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths


def predict(weights: Path, out: Path, *arguments: object) -> list[dict[str, Any]]:
    options = ["--device", "cpu", "--score", "0", "--out", str(out)]
    assert main(["predict", str(weights), *options, *map(str, arguments)]) == 0
    return json.loads((out / "predictions.json").read_text())


def test_label_files_are_those_of_yolo_with_the_score(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = predict(weights, tmp_path / "out", *images, "--save-txt")
    assert f"5 label files in {tmp_path / 'out/labels'}" in capsys.readouterr().out
    for path, image in zip(images, content):
        rows = np.loadtxt(tmp_path / f"out/labels/{path.stem}.txt")
        names = [CLASSES[int(label)][1] for label in rows[:, 0]]
        assert names == [detection["name"] for detection in image["detections"]]
        size = np.array([image["width"], image["height"]])
        centre, side = rows[:, 1:3] * size, rows[:, 3:5] * size
        boxes = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
        expected = [detection["box"] for detection in image["detections"]]
        np.testing.assert_allclose(boxes, expected, atol=1e-3)
        scores = [detection["score"] for detection in image["detections"]]
        np.testing.assert_allclose(rows[:, 5], scores, atol=1e-6)


def test_coco_results_are_read_by_pycocotools(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids of the images are those of COCO, whose files are named after them."""
    content = predict(weights, tmp_path / "out", *images, "--save-json")
    number = sum(len(image["detections"]) for image in content)
    assert f"{number} detections in {tmp_path / 'out/coco_results.json'}" in capsys.readouterr().out
    ground_truth = COCO()
    ground_truth.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(1, 6)],
        "categories": [{"id": category_id} for category_id, _ in CLASSES],
        "annotations": [],
    }
    ground_truth.createIndex()
    results = ground_truth.loadRes(str(tmp_path / "out/coco_results.json"))
    for number, image in enumerate(content, 1):
        rows = results.loadAnns(results.getAnnIds(imgIds=[number]))
        boxes = np.array([row["bbox"] for row in rows])
        expected = np.array([detection["box"] for detection in image["detections"]])
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], expected[:, 2:], atol=1e-3)


def test_names_that_are_not_all_different_numbers_are_ids_themselves() -> None:
    for paths in (["1.jpg", "b/01.jpg"], ["1.jpg", "cat.jpg"]):
        assert coco_image_ids([Path(path) for path in paths], ["1", "cat"]) == ["1", "cat"]


def test_every_detection_has_a_crop_in_the_folder_of_its_class(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (image,) = predict(weights, out, images[0], "--save-crops")
    crops = sorted((out / "crops").glob("*/*"))
    assert f"{len(image['detections'])} crops in {out / 'crops'}" in capsys.readouterr().out
    assert len(crops) == len(image["detections"])
    assert {path.parent.name for path in crops} == {"a_b", "cat"}
    pixels = np.asarray(Image.open(images[0]))
    for number, detection in enumerate(image["detections"], 1):
        folder = detection["name"].replace("/", "_")
        crop = np.asarray(Image.open(out / f"crops/{folder}/{images[0].stem}-{number}.png"))
        x0, y0 = (min(int(np.floor(x)), side - 1) for x, side in zip(detection["box"], (40, 30)))
        np.testing.assert_array_equal(crop, pixels[y0:, x0:][: crop.shape[0], : crop.shape[1]])
    # Crops of the same image that are no detections any more are removed, and no others.
    predict(weights, out, images[1], "--save-crops")
    predict(weights, out, images[0], "--save-crops", "--score", "1")
    assert {path.stem[:12] for path in (out / "crops").glob("*/*")} == {images[1].stem}


def test_files_of_the_user_are_not_replaced(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A YOLO dataset has labels of the same names, and an empty one is a decision, too."""
    out = tmp_path / "dataset"
    name = images[0].stem
    for number, (file, content) in enumerate(
        [
            (f"labels/{name}.txt", "0 0.5 0.5 0.1 0.1\n"),
            (f"labels/{name}.txt", ""),
            ("coco_results.json", '{"images": []}'),
            (f"crops/cat/{name}-1.png", "a file of the user"),
        ]
    ):
        path = out / str(number) / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
        arguments = ["predict", str(weights), str(images[0]), "--out", str(out / str(number))]
        assert main([*arguments, *FILES]) == 2
        assert str(path) in capsys.readouterr().err
        assert path.read_text() == content
        assert not (out / str(number) / "predictions.json").exists()
    predict(weights, out / "own", images[0], *FILES)
    predict(weights, out / "own", images[0], *FILES)


def test_an_image_without_detections_has_no_label_file(
    weights: Path, images: list[Path], tmp_path: Path
) -> None:
    """Neither does that of an earlier prediction remain."""
    predict(weights, tmp_path, images[0], "--save-txt")
    assert len(list((tmp_path / "labels").iterdir())) == 1
    predict(weights, tmp_path, images[0], "--save-txt", "--score", "1")
    assert list((tmp_path / "labels").iterdir()) == []


@pytest.mark.parametrize("batch", [2, 16])
def test_a_batch_gives_the_results_of_single_images_in_their_order(
    batch: int, weights: Path, images: list[Path]
) -> None:
    detector = groupdetr.Detector(weights, "cpu")
    alone = detector.predict(images, score=0)
    together = detector.predict(images, score=0, batch=batch)
    assert [result.source for result in together] == [str(path) for path in images]
    for one, other in zip(alone, together):
        assert one.image.size == other.image.size
        torch.testing.assert_close(one.detections.scores, other.detections.scores)
        torch.testing.assert_close(one.detections.boxes, other.detections.boxes, atol=1e-2, rtol=0)


def test_only_inputs_of_equal_size_run_together(
    weights: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 x 30 and 64 x 48 pixels have the same input, and nothing is padded."""
    detector = groupdetr.Detector(weights, "cpu")
    shapes = []
    forward = detector.model.forward

    def record_shape(batch: Any, *arguments: Any) -> Any:
        shapes.append(tuple(batch.pixels.shape))
        assert batch.padding is None or not batch.padding.any()
        return forward(batch, *arguments)

    monkeypatch.setattr(detector.model, "forward", record_shape)
    detector.predict(images, batch=5)
    assert sorted(shapes) == [(1, 3, 64, 48), (4, 3, 48, 64)]


def test_an_image_that_is_too_long_for_a_jpeg_file_does_not_end_a_prediction(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (65_501, 1)).save(tmp_path / "line.bmp")
    inputs = [str(tmp_path / "line.bmp"), str(images[0])]
    assert main(["predict", str(weights), *inputs, "--out", str(tmp_path / "out")]) == 3
    error = capsys.readouterr().err
    assert "1 of 2 images could not be read, or drawn and written" in error
    assert "an image of 65501 x 1 pixels cannot be written as JPEG" in error
    assert "use .png" in error
    (entry,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert entry["file"] == str(images[0])


@pytest.mark.parametrize("character", ["é", "東", "😀"])
def test_long_names_are_cut_between_characters(character: str) -> None:
    """macOS and Windows have no names with a part of a character."""
    inputs = [PredictionInput("image", f"a{character * 120}.png") for _ in range(2)]
    first, second = annotated_paths(inputs, Path("out"))
    number = 199 // len(character.encode())
    assert first.name == f"a{character * number}.png"
    assert second.name == f"a{character * number}-2.png"


def test_unreadable_images_do_not_end_a_batch(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images[1].write_bytes(b"not an image")
    arguments = ["predict", str(weights), *map(str, images), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--batch", "3", "--score", "0"]) == 3
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["file"] for image in content] == [
        str(path) for path in images if path != images[1]
    ]


def test_stdin_lists_one_path_a_line(
    weights: Path,
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spaced = images[0].rename(images[0].with_name("a name with spaces.png"))
    lines = f"{images[2]}\r\n\n{spaced}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    content = predict(weights, tmp_path / "out", images[1], "-", images[3])
    paths = [images[1], images[2], spaced, images[3]]
    assert [image["file"] for image in content] == [str(path) for path in paths]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["predict", str(weights), "-", "--out", str(tmp_path / "out")]) == 2
    assert "stdin lists no images" in capsys.readouterr().err


def test_show_groups_writes_and_draws_the_box_of_each_group(
    weights: Path, images: list[Path], tmp_path: Path
) -> None:
    without = predict(weights, tmp_path / "without", *images[:2])
    content = predict(weights, tmp_path / "out", *images[:2], "--show-groups", "--batch", "2")
    assert_documented("predict: groups", content)
    num_boxes = []
    for image, plain in zip(content, without):
        for detection, expected in zip(image["detections"], plain["detections"]):
            groups = detection.pop("groups")
            num_boxes.append(len(groups))
            assert detection["score"] == pytest.approx(expected["score"], abs=1e-5)
            # The first group is the one that runs at inference, so its box is the detection's.
            assert groups[0]["group"] == 0
            assert groups[0]["score"] == pytest.approx(detection["score"], abs=1e-5)
            assert groups[0]["box"] == pytest.approx(detection["box"], abs=1e-2)
    assert max(num_boxes) > 1, "other groups detect something at the same place"
    for path, image in zip(images, content):
        drawn = Image.open(tmp_path / "out" / image["annotated"])
        assert drawn.height > image["height"], f"the legend is below {path}"


def test_a_detector_with_one_group_has_no_groups_to_show(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_model("conditional-detr-tiny", num_classes=2, num_groups=1)
    path = tmp_path / "model.safetensors"
    native.save(model, path, {"recipe": recipe_to_dict(model.recipe), "imgsz": 48})
    arguments = ["predict", str(path), str(images[0]), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--show-groups"]) == 2
    assert "this detector has one group of queries" in capsys.readouterr().err
    with pytest.raises(UsageError, match="one group"):
        groupdetr.Detector(path, "cpu").predict(images[0], show_groups=True)


def test_the_threshold_of_the_best_f1_of_a_run_is_the_default(
    weights: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--score overrides it, and a file of the same weights has no run."""
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    shutil.copy(weights, run / "weights/best.safetensors")
    (run / "config.yaml").write_text("{}")
    detector = groupdetr.Detector(weights, "cpu")
    scores = detector.predict(images[0], score=0)[0].scores
    threshold = float(scores[9] + scores[10]) / 2
    arguments = ["predict", str(run), str(images[0]), "--device", "cpu", "--out", str(tmp_path)]

    def num_detections(*options: str) -> int:
        assert main([*arguments, *options]) == 0
        (image,) = json.loads((tmp_path / "predictions.json").read_text())
        return len(image["detections"])

    (run / "weights/best.json").write_text(json.dumps({"score_threshold": threshold}))
    assert num_detections() == 10
    line = f"score threshold {threshold:.2g}, the one of best F1"
    assert line in capsys.readouterr().out
    assert len(groupdetr.Detector(run, "cpu").predict(images[0])[0]) == 10
    assert num_detections("--score", "0") == len(scores)
    assert "best F1" not in capsys.readouterr().out

    above_half = int((scores >= 0.5).sum())
    assert len(detector.predict(images[0])[0]) == above_half
    for content in ('{"score_threshold": null}', '{"score_threshold": 7}', "{}", "["):
        (run / "weights/best.json").write_text(content)
        assert num_detections() == above_half
        assert "best F1" not in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 2])
def test_the_files_are_the_same_whether_threads_read_and_write_or_not(
    batch: int,
    weights: Path,
    images: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images[0].parent / "000000000002b.png").write_bytes(b"broken")
    outputs = []
    for workers in (0, 3):
        out = tmp_path / f"workers-{workers}"
        command = ["predict", str(weights), str(images[0].parent), "--out", str(out), *FILES]
        options = ["--device", "cpu", "--score", "0", "--batch", str(batch)]
        assert main([*command, *options, "--workers", str(workers)]) == 3
        printed = "".join(capsys.readouterr()).replace(str(out), "OUT")
        files = {
            file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()
        }
        outputs.append((printed, files))
    assert outputs[0] == outputs[1]
    assert len([path for path in outputs[0][1] if path.parent == Path()]) == len(SIZES) + 2


def test_a_stream_with_workers_has_the_results_of_one_without(
    weights: Path, images: list[Path]
) -> None:
    detector = groupdetr.Detector(weights, "cpu")
    one_by_one = detector.predict(images, 0.0)
    ahead = detector.predict(images, 0.0, workers=2)
    assert [result.source for result in ahead] == [str(path) for path in images]
    for one, other in zip(one_by_one, ahead):
        assert torch.equal(one.detections.scores, other.detections.scores)
        assert torch.equal(one.detections.boxes, other.detections.boxes)
