"""Our COCO AP is everybody's COCO AP: the authors' published figures, pycocotools, and the traps around both."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groupdetr.data.coco import Category, CocoSplit, Record, read_split
from groupdetr.data.formats import load
from groupdetr.data.segmentations import Runs
from groupdetr.errors import DataError
from groupdetr.evaluation.coco import (
    FIGURES,
    Evaluation,
    evaluate,
    from_coco_results,
    to_coco_results,
)
from groupdetr.structures.detections import Detections, bounds, decoded, encoded

SIDE = 128  # of pictures with masks, in pixels


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
    """Boxes of all sizes with recorded areas below the box's; every third image is empty."""
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
    """Jittered copies of the truth, some of a wrong class, and clutter; scores tie often."""
    rng = np.random.default_rng(seed + 1)
    images, classes = len(document["images"]), len(document["categories"])
    results = []
    for truth in document["annotations"]:
        for _ in range(rng.integers(0, 4)):
            wrong = rng.random() < 0.1
            results.append(
                {
                    "image_id": truth["image_id"],
                    "category_id": int(rng.integers(classes)) if wrong else truth["category_id"],
                    "bbox": (np.array(truth["bbox"]) * rng.normal(1, 0.08, size=4)).tolist(),
                    "score": round(float(rng.random()), 1),
                }
            )
    for _ in range(int(rng.integers(0, 30))):
        clutter = {"image_id": int(rng.integers(images)), "category_id": int(rng.integers(classes))}
        box = [*rng.uniform(0, 300, size=2).tolist(), *rng.uniform(5, 200, size=2).tolist()]
        results.append({**clutter, "bbox": box, "score": round(float(rng.random()), 1)})
    return results


def by_pycocotools(document: dict, results: list[dict], kind: str = "bbox") -> list[float]:
    """The twelve figures of the reference implementation; -1 where undefined."""
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
    found = []
    for record in split.records:
        boxes = torch.from_numpy(record.boxes).clone()
        boxes[:, 2:] += boxes[:, :2]
        found.append(Detections(torch.ones(len(boxes)), torch.from_numpy(record.labels), boxes))
    return found


def with_masks(split: CocoSplit, document: dict) -> CocoSplit:
    """With the masks of the document's annotations."""
    records = []
    for record in split.records:
        its = [
            a["segmentation"] for a in document["annotations"] if a["image_id"] == record.image_id
        ]
        shapes = tuple(Runs(mask["counts"].encode(), (SIDE, SIDE)) for mask in its)
        records.append(dataclasses.replace(record, width=SIDE, height=SIDE, shapes=shapes))
    return dataclasses.replace(split, records=tuple(records))


def random_masks(seed: int, images: int, classes: int, crowd: float) -> tuple[dict, list[dict]]:
    """As boxes: noisy blobs in them, recorded and found, some of these empty."""
    document = random_document(seed, images, classes, crowd)
    results = random_results(seed, document)
    rng = np.random.default_rng(seed)
    for image in document["images"]:
        image |= {"width": SIDE, "height": SIDE}
    for row in [*document["annotations"], *results]:
        x, y, w, h = (round(value / 3) for value in row["bbox"])
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        inside = mask[max(0, y) : y + h, max(0, x) : x + w]
        inside[:] = rng.random(inside.shape) < rng.choice([0.0, 0.7, 1.0], p=[0.02, 0.2, 0.78])
        runs = pytest.importorskip("pycocotools.mask").encode(mask)
        row["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        row["area"] = float(mask.sum())
    return document, results


def assert_equal_figures(
    evaluation: Evaluation, expected: list[float], tolerance: float = 1e-9
) -> None:
    for name, figure in zip(FIGURES, expected):
        assert_equal_figure(evaluation.stats[name], figure, name, tolerance)


def assert_equal_figure(ours: float, reference: float, name: str, tolerance: float) -> None:
    """The reference writes -1 where a figure is undefined."""
    if reference == -1:
        assert math.isnan(ours), name
    else:
        assert abs(ours - reference) <= tolerance, name


def test_the_published_example() -> None:
    root = os.environ.get("GROUPDETR_TEST_DATA")
    if not root:
        pytest.skip("set GROUPDETR_TEST_DATA to the folder that holds coco_eval/")
    folder = Path(root) / "coco_eval"
    results, expected = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("results", "expected")
    )
    split = read_split(folder / "gt.json", folder, "val")
    evaluation = evaluate(split, from_coco_results(split, results))
    assert_equal_figures(evaluation, list(expected["stats"].values()), tolerance=1e-6)
    for row in evaluation.per_class:
        figure = expected["AP_per_class"][row.name]
        assert_equal_figure(row.AP, -1 if figure is None else figure, row.name, tolerance=1e-6)
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
    assert_equal_figures(
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
    alone = [
        {name: value for name, value in result.items() if name not in ("bbox", "area")}
        for result in results
    ]
    expected = by_pycocotools(document, alone, "segm")
    assert_equal_figures(evaluate(split, from_coco_results(split, results), "mask"), expected)


def test_recorded_polygons_and_crowds_equal_to_pycocotools(real_data: Path) -> None:
    """Of real pictures: found is what is recorded, moved by a few pixels, every third of another class."""
    folder = real_data / "tiny_coco"
    document = json.loads((folder / "val.json").read_text())
    split = load(folder, masks=True).splits["val"]
    found, alone = [], []
    for number, record in enumerate(split.records):
        masks = [decoded(shape.runs(record.height, record.width)) for shape in record.shapes or ()]
        moved = np.array([np.roll(mask, i % 4, i % 2) for i, mask in enumerate(masks)], dtype=bool)
        runs = encoded(moved.reshape(-1, record.height, record.width))
        labels = torch.from_numpy(
            np.where(np.arange(len(masks)) % 3 == 2, number % 80, record.labels)
        )
        scores = 1 - torch.arange(len(masks)) / 64
        found.append(Detections(scores, labels, bounds(runs), runs))
    for result in to_coco_results(split, found):
        alone.append({name: value for name, value in result.items() if name != "bbox"})
    assert sum(record.crowd.sum() for record in split.records) == 5
    evaluation = evaluate(split, found, "mask")
    assert_equal_figures(evaluation, by_pycocotools(document, alone, "segm"))
    assert 0.3 < evaluation.stats["AP"] < 0.95


def test_masks_owe_nothing_to_boxes_ids_and_order() -> None:
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
    odd = with_masks(split_of(document), document)
    assert evaluate(odd, from_coco_results(odd, results), "mask").stats == plain.stats
    assert 0.01 < plain.stats["AP"] < 0.95


def test_no_masks_found_is_zero() -> None:
    document, _ = random_masks(2, images=3, classes=1, crowd=0.0)
    split = with_masks(split_of(document), document)
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), ())
    assert evaluate(split, [nothing] * 3, "mask").stats["AP"] == 0


def test_masks_survive_the_file() -> None:
    document, results = random_masks(11, images=6, classes=3, crowd=0.1)
    split = with_masks(split_of(document), document)
    found = from_coco_results(split, results)
    again = from_coco_results(split, json.loads(json.dumps(to_coco_results(split, found))))
    assert [d.masks for d in again] == [d.masks for d in found]
    assert evaluate(split, again, "mask").stats == evaluate(split, found, "mask").stats


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [[0, 0, 4, 0, 4, 4]],
        {"size": [9, 9], "counts": [81]},
        {"counts": "`2"},
        {"size": [9], "counts": "`2"},
    ],
)
def test_results_of_which_some_have_no_run_lengths_are_refused(mask: object) -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    good = {"image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    good["segmentation"] = {"size": [9, 9], "counts": "i2"}
    assert len(from_coco_results(split, [good])[0].masks or ()) == 1
    with pytest.raises(DataError, match="result 1"):
        from_coco_results(split, [good, good | {"segmentation": mask}])


def test_figures_survive_the_file() -> None:
    document = random_document(9, images=4, classes=2, crowd=0.0)
    split = split_of(document)
    boxes = evaluate(split, perfect(split))
    masks = dataclasses.replace(
        boxes, kind="mask", stats=boxes.stats | {"AP": 0.5, "AP_small": math.nan}
    )
    written = masks.beside(boxes)
    read = Evaluation.from_json(json.loads(json.dumps(written.to_json(), allow_nan=False)))
    assert (read.kind, read.per_class) == ("mask", written.per_class)
    assert read.by_kind()["box"] == {"AP": 1, "AP50": 1, "AP75": 1}
    assert math.isnan(read.stats.pop("AP_small"))
    assert read.stats == {
        name: value for name, value in written.stats.items() if name != "AP_small"
    }


def test_ids_of_any_kind_change_nothing() -> None:
    document = random_document(3, images=8, classes=3, crowd=0.2)
    results = random_results(3, document)
    split = split_of(document)
    plain = evaluate(split, from_coco_results(split, results))

    images, categories = (
        ["a/1.jpg", 0, -7, 2**60, "0", 3, "x", "ä"],
        [90, 0, "seven"],
    )  # no order among these
    for row in [*document["annotations"], *results]:
        row["image_id"] = images[row["image_id"]]
        row["category_id"] = categories[row["category_id"]]
    for image in document["images"]:
        image["id"] = images[image["id"]]
    for category in document["categories"]:
        category["id"] = categories[category["id"]]
    odd = split_of(document)
    assert evaluate(odd, from_coco_results(odd, results)).stats == plain.stats


def test_the_order_of_the_file_changes_nothing() -> None:
    """Equal scores rank by ascending image id, as in pycocotools, whatever the order of the images."""
    document = random_document(4, images=9, classes=2, crowd=0.2)
    results = random_results(4, document)
    document["images"].reverse()
    split = split_of(document)
    assert_equal_figures(
        evaluate(split, from_coco_results(split, results)), by_pycocotools(document, results)
    )


def test_annotation_id_zero_changes_nothing() -> None:
    document = random_document(5, images=3, classes=2, crowd=0.0)
    for number, annotation in enumerate(document["annotations"]):
        annotation["id"] = number
    split = split_of(document)
    assert evaluate(split, perfect(split)).stats["AP"] == 1


def test_perfect_predictions() -> None:
    split = split_of(random_document(7, images=10, classes=4, crowd=0.0))
    evaluation = evaluate(split, perfect(split))
    assert evaluation.stats["AP"] == evaluation.stats["AR100"] == 1
    assert [row.AP for row in evaluation.per_class] == [1, 1, 1, 1]
    assert sum(row.objects for row in evaluation.per_class) == sum(
        len(r.labels) for r in split.records
    )


def test_a_class_without_objects_is_undefined_and_enters_no_mean() -> None:
    document = random_document(9, images=4, classes=2, crowd=0.0)
    document["categories"].append({"id": 77, "name": "unicorn"})
    split = split_of(document)
    found = perfect(split)
    found[2] = Detections(torch.tensor([0.9]), torch.tensor([2]), torch.tensor([[1.0, 1, 9, 9]]))
    evaluation = evaluate(split, found)
    assert evaluation.stats["AP"] == 1
    assert evaluation.to_json()["per_class"][2] == {
        **{"name": "unicorn", "AP": None, "AP50": None},
        **{"objects": 0, "images": 0},
    }


@pytest.mark.parametrize("images", [0, 3])
def test_nothing_to_find_is_undefined_not_zero(images: int) -> None:
    document = random_document(1, images, classes=2, crowd=0.0) | {"annotations": []}
    split = split_of(document)
    evaluation = evaluate(split, perfect(split))
    assert set(evaluation.to_json()) == {"kind", *FIGURES, "per_class"}
    json.dumps(evaluation.to_json(), allow_nan=False)
    assert all(math.isnan(figure) for figure in evaluation.stats.values())


def test_nothing_found_is_zero() -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert evaluate(split, [nothing] * 3).stats["AP"] == 0


def test_results_survive_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Written with original ids, read back, evaluated alike, and not a word on the terminal."""
    document = random_document(11, images=6, classes=3, crowd=0.1)
    split = split_of(document)
    single = [
        Detections(d.scores.float(), d.labels, d.boxes.float())
        for d in from_coco_results(split, random_results(11, document))
    ]
    results = json.loads(json.dumps(to_coco_results(split, single)))
    assert {r["image_id"] for r in results} <= {r.image_id for r in split.records}
    assert evaluate(split, from_coco_results(split, results)).stats == evaluate(split, single).stats
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": "nowhere"},
        {"image_id": [1]},
        {"category_id": 99},
        {"bbox": [1, 2]},
        {"bbox": "abcd"},
        {"score": None},
    ],
)
def test_results_of_another_data_set_are_refused(change: dict) -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    good = {"image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert len(from_coco_results(split, [good])[0]) == 1
    with pytest.raises(DataError, match="result 1"):
        from_coco_results(split, [good, good | change])


def test_one_answer_for_each_image() -> None:
    split = split_of(random_document(2, images=3, classes=1, crowd=0.0))
    with pytest.raises(ValueError, match="2 detections for 3 images"):
        evaluate(split, perfect(split)[:2])
