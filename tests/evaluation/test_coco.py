"""Our COCO AP equals the published metrics of an example and those of pycocotools, for any ids."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.data.coco import read_split
from groupdetr.data.layouts import load
from groupdetr.data.records import Category, CocoSplit, Record
from groupdetr.data.segmentations import RunLengths
from groupdetr.errors import DataError
from groupdetr.evaluation import coco
from groupdetr.evaluation.coco import (
    METRICS,
    CocoEvaluation,
    evaluate,
    from_coco_results,
    to_coco_results,
)
from groupdetr.structures.detections import Detections, decode_mask, encode_masks, masks_to_boxes

SIDE = 128  # of images with masks, in pixels


def split_of(document: dict) -> CocoSplit:
    """A COCO document as a split, without files."""
    labels = {category["id"]: label for label, category in enumerate(document["categories"])}
    records = []
    for image in document["images"]:
        objects = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        records.append(
            Record(
                image_id=image["id"],
                path=Path("none.jpg"),
                file_name="none.jpg",
                width=image.get("width", 100),
                height=image.get("height", 100),
                boxes=np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4),
                labels=np.array([labels[a["category_id"]] for a in objects], dtype=np.int64),
                areas=np.array([a["area"] for a in objects], dtype=np.float64),
                crowd=np.array([bool(a["iscrowd"]) for a in objects], dtype=bool),
                annotation_ids=tuple(a["id"] for a in objects),
            )
        )
    categories = tuple(Category(c["id"], c["name"]) for c in document["categories"])
    return CocoSplit("val", Path("val.json"), Path(), categories, tuple(records))


def random_document(seed: int, images: int, classes: int, crowd: float) -> dict:
    """Boxes of all sizes. Recorded areas are smaller than the boxes. Every third image is empty."""
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    for image in range(images):
        for _ in range(0 if image % 3 == 2 else rng.integers(1, 12)):
            side = rng.choice([12.0, 50.0, 150.0], size=2) * rng.uniform(0.5, 1.5, size=2)
            x, y = rng.uniform(0, 300, size=2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(classes)),
                    "bbox": [float(x), float(y), *map(float, side)],
                    "area": float(side.prod() * rng.uniform(0.4, 1.0)),
                    "iscrowd": int(rng.random() < crowd),
                }
            )
    return {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(classes)],
        "annotations": annotations,
    }


def random_results(seed: int, document: dict) -> list[dict]:
    """Jittered copies of the annotations, some of a wrong class, and random boxes.

    Scores tie often.
    """
    rng = np.random.default_rng(seed + 1)
    images, classes = len(document["images"]), len(document["categories"])
    results = []
    for annotation in document["annotations"]:
        for _ in range(rng.integers(0, 4)):
            category = annotation["category_id"]
            if rng.random() < 0.1:
                category = int(rng.integers(classes))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": category,
                    "bbox": (np.array(annotation["bbox"]) * rng.normal(1, 0.08, size=4)).tolist(),
                    "score": round(float(rng.random()), 1),
                }
            )
    for _ in range(int(rng.integers(0, 30))):
        results.append(
            {
                "image_id": int(rng.integers(images)),
                "category_id": int(rng.integers(classes)),
                "bbox": [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(5, 200, 2).tolist()],
                "score": round(float(rng.random()), 1),
            }
        )
    return results


def by_pycocotools(document: dict, results: list[dict], kind: str = "bbox") -> list[float]:
    """The twelve metrics of the reference implementation, -1 where undefined."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = document
        truth.createIndex()
        evaluator = cocoeval.COCOeval(truth, truth.loadRes([dict(r) for r in results]), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(x) for x in evaluator.stats]


def perfect(split: CocoSplit) -> list[Detections]:
    """The annotations as detections."""
    detections = []
    for record in split.records:
        boxes = torch.from_numpy(record.boxes).clone()
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.ones(len(boxes))
        detections.append(Detections(scores, torch.from_numpy(record.labels), boxes))
    return detections


def with_masks(split: CocoSplit, document: dict) -> CocoSplit:
    """The split with the masks of the document's annotations."""
    records = []
    for record in split.records:
        segmentations = []
        for annotation in document["annotations"]:
            if annotation["image_id"] == record.image_id:
                counts = annotation["segmentation"]["counts"].encode()
                segmentations.append(RunLengths(counts, (SIDE, SIDE)))
        with_segmentations = dataclasses.replace(
            record, width=SIDE, height=SIDE, segmentations=tuple(segmentations)
        )
        records.append(with_segmentations)
    return dataclasses.replace(split, records=tuple(records))


def without_keys(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}


def random_masks(seed: int, images: int, classes: int, crowd: float) -> tuple[dict, list[dict]]:
    """Noisy masks inside random boxes, of annotations and results. Some are empty."""
    document = random_document(seed, images, classes, crowd)
    results = random_results(seed, document)
    rng = np.random.default_rng(seed)
    for image in document["images"]:
        image |= {"width": SIDE, "height": SIDE}
    encode = pytest.importorskip("pycocotools.mask").encode
    for row in [*document["annotations"], *results]:
        x, y, w, h = (round(value / 3) for value in row["bbox"])
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        inside = mask[max(0, y) : y + h, max(0, x) : x + w]
        inside[:] = rng.random(inside.shape) < rng.choice([0.0, 0.7, 1.0], p=[0.02, 0.2, 0.78])
        rle = encode(mask)
        row["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        row["area"] = float(mask.sum())
    return document, results


def assert_equal_metrics(
    evaluation: CocoEvaluation, expected: list[float], tolerance: float = 1e-9
) -> None:
    for name, metric in zip(METRICS, expected):
        assert_equal_metric(evaluation.stats[name], metric, name, tolerance)


def assert_equal_metric(ours: float, reference: float, name: str, tolerance: float) -> None:
    """The reference writes -1 where a metric is undefined."""
    if reference == -1:
        assert math.isnan(ours), name
    else:
        assert abs(ours - reference) <= tolerance, name


def test_the_published_example() -> None:
    root = os.environ.get("GROUPDETR_TEST_DATA")
    if not root:
        pytest.skip("set GROUPDETR_TEST_DATA to the folder that holds coco_eval/")
    folder = Path(root) / "coco_eval"
    results = json.loads((folder / "results.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    split = read_split(folder / "gt.json", folder, "val")
    evaluation = evaluate(split, from_coco_results(split, results))
    assert_equal_metrics(evaluation, list(expected["stats"].values()), tolerance=1e-6)
    for row in evaluation.per_class:
        metric = expected["AP_per_class"][row.name]
        assert_equal_metric(row.AP, -1 if metric is None else metric, row.name, tolerance=1e-6)
    assert sum(row.objects for row in evaluation.per_class) == 839 - 9  # nine are crowds


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0])
)
def test_equal_to_pycocotools(seed: int, images: int, classes: int, crowd: float) -> None:
    document = random_document(seed, images, classes, crowd)
    results = random_results(seed, document)
    if not results:  # pycocotools cannot load an empty list
        return
    split = split_of(document)
    assert_equal_metrics(
        evaluate(split, from_coco_results(split, results)), by_pycocotools(document, results)
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0])
)
def test_masks_equal_to_pycocotools(seed: int, images: int, classes: int, crowd: float) -> None:
    document, results = random_masks(seed, images, classes, crowd)
    if not results:
        return
    split = with_masks(split_of(document), document)
    # Without boxes, pycocotools takes the area of a result from its mask.
    mask_results = [without_keys(result, "bbox", "area") for result in results]
    expected = by_pycocotools(document, mask_results, "segm")
    assert_equal_metrics(evaluate(split, from_coco_results(split, results), "mask"), expected)


def curves_of_both(split: CocoSplit, results: list[dict], kind: str) -> list[coco._Curves]:
    """Precision and recall as hotcoco and faster-coco-eval compute them."""
    detections = from_coco_results(split, results)
    present = sorted({int(label) for record in split.records for label in record.labels})
    pytest.importorskip("hotcoco")
    curves = []
    with pytest.MonkeyPatch.context() as patch:
        for has_hotcoco in (True, False):
            patch.setattr(coco, "HAS_HOTCOCO", has_hotcoco)
            curves.append(coco._evaluate_classes(split, detections, present, kind))
    return curves


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 9),
    classes=st.integers(1, 4),
    crowd=st.sampled_from([0.0, 0.3, 1.0]),
    kind=st.sampled_from(["box", "mask"]),
)
def test_both_evaluators_compute_the_same_curves(
    seed: int, images: int, classes: int, crowd: float, kind: str
) -> None:
    if kind == "mask":
        document, results = random_masks(seed, images, classes, crowd)
        split = with_masks(split_of(document), document)
    else:
        document = random_document(seed, images, classes, crowd)
        results, split = random_results(seed, document), split_of(document)
    if not document["annotations"] or (kind == "mask" and not results):
        return
    first, second = curves_of_both(split, results, kind)
    assert np.abs(first.precision - second.precision).max() < 1e-9
    assert np.abs(first.recall - second.recall).max() < 1e-9


def test_polygons_and_crowds_of_real_images_equal_to_pycocotools(real_data: Path) -> None:
    """Detections are the annotations, shifted by a few pixels, every third of a wrong class."""
    folder = real_data / "tiny_coco"
    document = json.loads((folder / "val.json").read_text())
    split = load(folder, masks=True).splits["val"]
    detections = []
    for number, record in enumerate(split.records):
        shifted = []
        for i, segmentation in enumerate(record.segmentations or ()):
            mask = decode_mask(segmentation.to_rle(record.height, record.width))
            shifted.append(np.roll(mask, i % 4, i % 2))
        masks = np.array(shifted, dtype=bool).reshape(-1, record.height, record.width)
        rles = encode_masks(masks)
        wrong = np.arange(len(masks)) % 3 == 2
        labels = torch.from_numpy(np.where(wrong, number % 80, record.labels))
        scores = 1 - torch.arange(len(masks)) / 64
        detections.append(Detections(scores, labels, masks_to_boxes(rles), rles))
    assert sum(record.crowd.sum() for record in split.records) == 5
    evaluation = evaluate(split, detections, "mask")
    mask_results = [without_keys(row, "bbox") for row in to_coco_results(split, detections)]
    assert_equal_metrics(evaluation, by_pycocotools(document, mask_results, "segm"))
    assert 0.3 < evaluation.stats["AP"] < 0.95


def test_boxes_ids_and_order_do_not_change_the_ap_of_masks() -> None:
    document, results = random_masks(3, images=8, classes=3, crowd=0.2)
    split = with_masks(split_of(document), document)
    plain = evaluate(split, from_coco_results(split, results), "mask")
    for row in [*document["annotations"], *results]:
        row["image_id"] = ["a", "b", "c", "d", "e", "f", "g", "h"][row["image_id"]]
        row["bbox"] = [0, 0, 1, 1]
    for image in document["images"]:
        image["id"] = "abcdefgh"[image["id"]]
    for number, annotation in enumerate(document["annotations"]):
        annotation["id"] = number
    document["images"].reverse()
    other_ids = with_masks(split_of(document), document)
    assert evaluate(other_ids, from_coco_results(other_ids, results), "mask").stats == plain.stats
    assert 0.01 < plain.stats["AP"] < 0.95


def test_masks_survive_the_file() -> None:
    document, results = random_masks(11, images=6, classes=3, crowd=0.1)
    split = with_masks(split_of(document), document)
    detections = from_coco_results(split, results)
    again = from_coco_results(split, json.loads(json.dumps(to_coco_results(split, detections))))
    assert [image.masks for image in again] == [image.masks for image in detections]
    assert evaluate(split, again, "mask").stats == evaluate(split, detections, "mask").stats


WRONG_RESULTS: list[tuple[dict[str, Any], str]] = [
    # of another dataset, or of another form
    ({"image_id": "nowhere"}, ""),
    ({"image_id": [1]}, ""),
    ({"category_id": 99}, ""),
    ({"bbox": [1, 2]}, ""),
    ({"bbox": "abcd"}, ""),
    ({"score": None}, ""),
    # not a box, or not a score
    ({"bbox": [1, 2, math.nan, 4]}, "the bbox or the score of a result is not finite"),
    ({"bbox": [1, -math.inf, 3, 4]}, "the bbox or the score of a result is not finite"),
    ({"score": math.nan}, "the bbox or the score of a result is not finite"),
    ({"bbox": [1, 2, -3, 4]}, "a result has the width -3 and the height 4"),
    # no run lengths, where other results have them
    ({"segmentation": None}, ""),
    ({"segmentation": [[0, 0, 4, 0, 4, 4]]}, ""),
    ({"segmentation": {"size": [9, 9], "counts": [81]}}, ""),
    ({"segmentation": {"counts": "`2"}}, ""),
    ({"segmentation": {"size": [9], "counts": "`2"}}, ""),
]


@pytest.mark.parametrize("masks", [False, True])
def test_results_that_cannot_be_evaluated_are_refused_with_their_number(masks: bool) -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    good: dict[str, Any] = {"image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    if masks:
        good["segmentation"] = {"size": [9, 9], "counts": "i2"}
    (detections, *_) = from_coco_results(split, [good])
    assert len(detections) == 1
    assert len(detections.masks or ()) == masks
    for change, message in WRONG_RESULTS:
        if masks or "segmentation" not in change:
            with pytest.raises(DataError, match=rf"(?s){message}.*result 1"):
                from_coco_results(split, [good, good | change])


@pytest.mark.parametrize(
    ("scores", "labels", "boxes", "message"),
    [
        ([0.5, 0.4], [0, 0], [[1, 2, 3, 4], [1, math.nan, 3, 4]], "detection 1 is not finite"),
        ([math.nan, 0.4], [0, 0], [[1, 2, 3, 4]] * 2, "detection 0 is not finite"),
        ([0.5, 0.4], [0, 2], [[1, 2, 3, 4]] * 2, "the label 2, but there are 2 classes"),
        ([0.5, 0.4], [-1, 0], [[1, 2, 3, 4]] * 2, "the label -1, but there are 2 classes"),
    ],
)
def test_detections_with_impossible_values_are_refused_with_their_image(
    scores: list[float], labels: list[int], boxes: list[list[float]], message: str
) -> None:
    """The evaluator would count them in some arbitrary way, or leave them out."""
    split = split_of(random_document(2, images=2, classes=2, crowd=0.0))
    bad = Detections(torch.tensor(scores), torch.tensor(labels), torch.tensor(boxes).float())
    detections = [*perfect(split)[:1], bad]
    with pytest.raises(DataError, match=rf"(?s){message}.*image {split.records[1].file_name}"):
        evaluate(split, detections)


def test_an_evaluation_survives_its_file() -> None:
    document = random_document(9, images=4, classes=2, crowd=0.0)
    split = split_of(document)
    boxes = evaluate(split, perfect(split))
    masks = dataclasses.replace(
        boxes, kind="mask", stats=boxes.stats | {"AP": 0.5, "AP_small": math.nan}
    )
    written = masks.with_box_metrics(boxes)
    read = CocoEvaluation.from_json(json.loads(json.dumps(written.to_json(), allow_nan=False)))
    assert (read.kind, read.per_class) == ("mask", written.per_class)
    assert read.by_kind()["box"] == {"AP": 1, "AP50": 1, "AP75": 1}
    assert math.isnan(read.stats.pop("AP_small"))
    assert read.stats == {
        name: value for name, value in written.stats.items() if name != "AP_small"
    }


def test_ids_of_any_type_change_nothing() -> None:
    document = random_document(3, images=8, classes=3, crowd=0.2)
    results = random_results(3, document)
    split = split_of(document)
    plain = evaluate(split, from_coco_results(split, results))

    # Numbers and strings together have no order.
    images = ["a/1.jpg", 0, -7, 2**60, "0", 3, "x", "ä"]
    categories = [90, 0, "seven"]
    for row in [*document["annotations"], *results]:
        row["image_id"] = images[row["image_id"]]
        row["category_id"] = categories[row["category_id"]]
    for image in document["images"]:
        image["id"] = images[image["id"]]
    for category in document["categories"]:
        category["id"] = categories[category["id"]]
    other_ids = split_of(document)
    assert evaluate(other_ids, from_coco_results(other_ids, results)).stats == plain.stats


def test_the_order_of_the_file_changes_nothing() -> None:
    """Detections of equal score rank by ascending image id, as in pycocotools."""
    document = random_document(4, images=9, classes=2, crowd=0.2)
    results = random_results(4, document)
    document["images"].reverse()
    split = split_of(document)
    assert_equal_metrics(
        evaluate(split, from_coco_results(split, results)), by_pycocotools(document, results)
    )


def test_perfect_detections_have_an_ap_of_one() -> None:
    document = random_document(7, images=10, classes=4, crowd=0.0)
    for number, annotation in enumerate(document["annotations"]):
        annotation["id"] = number  # pycocotools counts no object of the id 0
    split = split_of(document)
    evaluation = evaluate(split, perfect(split))
    assert evaluation.stats["AP"] == evaluation.stats["AR100"] == 1
    assert [row.AP for row in evaluation.per_class] == [1, 1, 1, 1]
    assert sum(row.objects for row in evaluation.per_class) == sum(
        len(r.labels) for r in split.records
    )


def test_a_class_without_objects_is_undefined_and_in_no_mean() -> None:
    document = random_document(9, images=4, classes=2, crowd=0.0)
    document["categories"].append({"id": 77, "name": "unicorn"})
    split = split_of(document)
    detections = perfect(split)
    detections[2] = Detections(
        torch.tensor([0.9]), torch.tensor([2]), torch.tensor([[1.0, 1, 9, 9]])
    )
    evaluation = evaluate(split, detections)
    assert evaluation.stats["AP"] == 1
    undefined = {"name": "unicorn", "AP": None, "AP50": None, "objects": 0, "images": 0}
    assert evaluation.to_json()["per_class"][2] == undefined


@pytest.mark.parametrize("images", [0, 3])
def test_without_objects_every_figure_is_undefined(images: int) -> None:
    document = random_document(1, images, classes=2, crowd=0.0) | {"annotations": []}
    split = split_of(document)
    evaluation = evaluate(split, perfect(split))
    assert set(evaluation.to_json()) == {
        *("kind", *METRICS, "per_class"),
        *("F1", "precision", "recall", "score_threshold"),
    }
    json.dumps(evaluation.to_json(), allow_nan=False)
    assert all(math.isnan(metric) for metric in evaluation.stats.values())


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_the_ap_of_no_detections_is_zero(kind: str) -> None:
    document, _ = random_masks(2, images=3, classes=1, crowd=0.0)
    split = with_masks(split_of(document), document)
    masks = () if kind == "mask" else None
    none = torch.zeros(0)
    nothing = Detections(none, none.long(), torch.zeros(0, 4), masks)
    assert evaluate(split, [nothing] * 3, kind).stats["AP"] == 0


def test_results_survive_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """They have the original ids, their evaluation is the same, and it prints nothing."""
    document = random_document(11, images=6, classes=3, crowd=0.1)
    split = split_of(document)
    detections = []
    for image in from_coco_results(split, random_results(11, document)):
        detections.append(Detections(image.scores.float(), image.labels, image.boxes.float()))
    results = json.loads(json.dumps(to_coco_results(split, detections)))
    assert {r["image_id"] for r in results} <= {r.image_id for r in split.records}
    again = from_coco_results(split, results)
    assert evaluate(split, again).stats == evaluate(split, detections).stats
    assert capsys.readouterr() == ("", "")


def test_every_image_needs_its_detections() -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    with pytest.raises(ValueError, match="2 detections for 3 images"):
        evaluate(split, perfect(split)[:2])
