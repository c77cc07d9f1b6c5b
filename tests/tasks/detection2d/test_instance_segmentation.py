"""Instance segmentation: from what queries say to masks of the original picture, and what these are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from groupdetr.data.formats import load
from groupdetr.evaluation.coco import BOX_FIGURES, FIGURES
from groupdetr.settings import Settings
from groupdetr.structures.detections import areas, decoded
from groupdetr.structures.masks import Canvas, Masks
from groupdetr.structures.predictions import Predictions
from groupdetr.tasks.detection2d.instance_segmentation import InstanceTask, in_picture, masks_of
from groupdetr.tasks.detection2d.task import DetectionTask

from .segmenter import draw

SIZES = [(37, 61), (90, 40)]  # width, height of the originals
INSIDE = [(29, 20), (32, 44)]  # height, width of the resized ones, padded to 32 x 44


def answer(queries: int = 7, classes: int = 3) -> Predictions:
    """Smooth masks of all sizes."""
    draw = torch.Generator().manual_seed(3)
    rough = torch.randn(2, 5, 3, 4, generator=draw)
    pixels = F.interpolate(rough, (8, 11), mode="bicubic")
    masks = Masks(torch.randn(2, queries, 5, generator=draw), Canvas(pixels, torch.tensor(INSIDE)))
    return Predictions(2 * torch.randn(2, queries, classes + 1, generator=draw), masks=masks)


def one_by_one(said: Predictions, image: int) -> list[tuple[float, int, Tensor]]:
    """(score, class, mask) of every pair of a query and a class, by falling score: the published code's steps."""
    logits = torch.einsum(
        "qc,chw->qhw", said.masks.embedding[image], said.masks.canvas.pixels[image]
    )
    (height, width), (w, h) = INSIDE[image], SIZES[image]
    shares = torch.softmax(said.logits[image], -1)[:, :-1]
    pairs = sorted(
        ((float(share), q, c) for q, row in enumerate(shares) for c, share in enumerate(row)),
        reverse=True,
    )
    found = []
    for share, q, c in pairs[:10]:
        whole = F.interpolate(logits[None, None, q], (32, 44), mode="bilinear")[
            0, 0, :height, :width
        ]
        own = F.interpolate(whole[None, None], (h, w), mode="bilinear")[0, 0]
        mask = own > 0
        sure = float(own.sigmoid()[mask].sum() / (mask.sum() + 1e-6))
        found.append((share * sure, c, mask))
    return sorted(found, key=lambda row: -row[0])


def test_masks_are_those_of_the_published_steps() -> None:
    said = answer()
    for image, found in enumerate(masks_of(said, SIZES, most=10)):
        expected = one_by_one(said, image)
        assert len(found) == 10
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        assert all(
            np.array_equal(decoded(runs), mask)
            for runs, (_, _, mask) in zip(found.masks or (), expected)
        )
        assert len(set(areas(found.masks or ()))) > 3, "not all the same"


def test_how_many_are_worked_on_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masks_of(answer(), SIZES, most=10)
    monkeypatch.setattr("groupdetr.tasks.detection2d.instance_segmentation.PIXELS", 2 * 61 * 37)
    for a, b in zip(whole, masks_of(answer(), SIZES, most=10)):
        assert a.masks == b.masks
        torch.testing.assert_close(a.scores, b.scores)


def test_no_more_maps_at_once_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(*args: object) -> Tensor:
        maps = in_picture(*args)  # type: ignore[arg-type]
        seen.append(maps.numel())
        return maps

    monkeypatch.setattr("groupdetr.tasks.detection2d.instance_segmentation.PIXELS", 3 * 4000)
    monkeypatch.setattr("groupdetr.tasks.detection2d.instance_segmentation.in_picture", watched)
    masks_of(answer(), SIZES, most=10)
    assert max(seen) <= 3 * 4000
    assert sum(seen) == 10 * sum(w * h for w, h in SIZES)


def test_boxes_are_the_tightest_and_nothing_has_none() -> None:
    said = answer()
    said.masks.embedding[0, 2] = 0  # a logit of zero is not inside
    (found, _) = masks_of(said, SIZES, most=21)
    for box, runs in zip(found.boxes.tolist(), found.masks or ()):
        rows, columns = decoded(runs).nonzero()
        tight = (
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            if len(rows)
            else [0, 0, 0, 0]
        )
        assert box == tight
    empty = torch.from_numpy(areas(found.masks or ()) == 0)
    assert empty.sum() >= 3, "one for each class"
    assert not found.scores[empty].any()


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> InstanceTask:
    folder = draw(tmp_path_factory.mktemp("colours"))
    return InstanceTask(load(folder, masks=True), Settings(imgsz=48), most=10)


def test_the_truth_has_masks_but_no_crowds(task: InstanceTask) -> None:
    truth = task.truth(0)
    assert len(truth) == len(truth.masks or ()) == 2
    assert areas(truth.masks or ()).tolist() == [28 * 16, 24 * 20]


def test_pictures_without_objects_are_evaluated_but_not_trained_on(task: InstanceTask) -> None:
    assert (len(task.train), len(task.val)) == (2, 3)


def test_ap_is_of_masks_and_that_of_boxes_stands_beside(task: InstanceTask) -> None:
    found = [task.truth(index) for index in range(3)]
    perfect = task.evaluate(found)
    assert perfect.kind == "mask"
    assert list(perfect.stats) == [*FIGURES, *BOX_FIGURES]
    assert perfect.stats["AP"] == perfect.stats["box_AP"] == perfect.stats["box_AP75"] == 1
    for detections in found:
        detections.boxes += 40
    assert task.evaluate(found).stats["AP"] == 1
    assert task.evaluate(found).stats["box_AP"] == 0
    assert list(perfect.by_kind()) == ["mask", "box"]


def test_a_data_set_read_without_masks_is_refused(tmp_path: Path) -> None:
    task = InstanceTask(load(draw(tmp_path)), Settings(imgsz=48), most=10)
    with pytest.raises(ValueError, match="were not read"):
        task.evaluate([DetectionTask.truth(task, index) for index in range(3)])
