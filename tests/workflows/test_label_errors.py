"""`groupdetr check DATA --with RUN` lists label errors that were planted in a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groupdetr
from groupdetr.cli.main import main
from groupdetr.data.layouts import load
from groupdetr.data.records import CocoSplit
from groupdetr.errors import UsageError
from groupdetr.structures.detections import Detections
from groupdetr.tasks.detection2d import label_errors
from tests.json_docs import assert_documented
from tests.runs import train

NUM_GROUPS = 2


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(shapes, tmp_path_factory.mktemp("runs") / "run", "--steps", "2")


@pytest.fixture
def planted(shapes: Path, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The dataset with four errors in its train split, and the annotations that are wrong."""
    root = tmp_path / "planted"
    shutil.copytree(shapes, root)
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    annotations = content["annotations"]
    deleted, wrong_class, moved = annotations[3], annotations[9], annotations[20]
    wrong_class["category_id"] = wrong_class["category_id"] % 3 + 1
    # To the other side of the image, where it overlaps the object by less than half.
    x, y, width, height = moved["bbox"]
    moved["bbox"] = [x - width * 0.6 if x > 24 else x + width * 0.6, y, width, height]
    annotations.remove(deleted)
    spurious = {**annotations[30], "id": 999, "bbox": free_place(annotations, annotations[30])}
    annotations.append(spurious)
    file.write_text(json.dumps(content))
    return root, {
        "no annotation": deleted,
        "wrong class": wrong_class,
        "wrong box": moved,
        "no object": spurious,
    }


def free_place(annotations: Sequence[Any], annotation: Any) -> list[float]:
    """Return a box of 8 x 8 pixels that no object of the image of an annotation touches."""
    own = [row["bbox"] for row in annotations if row["image_id"] == annotation["image_id"]]
    for y in range(0, 40, 4):
        for x in range(0, 40, 4):
            if all(x + 8 <= a or a + w <= x or y + 8 <= b or b + h <= y for a, b, w, h in own):
                return [float(x), float(y), 8.0, 8.0]
    raise AssertionError("the image is full")


@pytest.fixture
def good_detector(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups that detect the objects of the original dataset, each a little differently."""
    splits = load(shapes).splits
    originals = {
        (name, record.file_name): record
        for name, split in splits.items()
        for record in split.records
    }
    random = np.random.default_rng(0)

    def detect(split: CocoSplit, index: int) -> Detections:
        corners, labels = originals[split.name, split.records[index].file_name].trainable_objects()
        order = np.argsort(-random.uniform(0.7, 0.9, len(labels)))
        return Detections(
            torch.from_numpy(np.sort(random.uniform(0.7, 0.9, len(labels)))[::-1].copy()),
            torch.from_numpy(labels[order]),
            torch.from_numpy(corners[order] + random.uniform(-0.3, 0.3, (len(labels), 4))),
        )

    def detect_with_all_groups(_: object, split: CocoSplit, *__: object) -> list[list[Detections]]:
        return [[detect(split, index) for _ in range(NUM_GROUPS)] for index in range(len(split))]

    monkeypatch.setattr(label_errors, "detect_with_all_groups", detect_with_all_groups)


@pytest.mark.usefixtures("good_detector")
def test_the_planted_errors_and_nothing_else_are_listed(
    run: Path, planted: tuple[Path, dict[str, Any]]
) -> None:
    root, errors = planted
    found = groupdetr.find_label_errors(run, root)
    assert found.folder == run / "label-errors-planted"
    assert {suspect["kind"] for suspect in found.suspects} == set(errors)
    assert len(found.suspects) == 4
    for suspect in found.suspects:
        annotation = errors[suspect["kind"]]
        assert (suspect["split"], suspect["image_id"]) == ("train", annotation["image_id"])
        if suspect["kind"] == "no annotation":
            assert suspect["annotation_id"] is None
            x, y, width, height = annotation["bbox"]
            assert suspect["detected_box"] == pytest.approx([x, y, x + width, y + height], abs=1)
        else:
            assert suspect["annotation_id"] == annotation["id"]
            assert (suspect["detected_by"] == 0) == (suspect["kind"] == "no object")


@pytest.mark.usefixtures("good_detector")
def test_the_dataset_without_errors_has_no_suspects_and_still_a_page(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    found = groupdetr.find_label_errors(run, shapes, out=tmp_path)
    assert found.suspects == []
    assert [row["trained_on"] for row in found.content["splits"]] == [True, False]
    assert "There is none." in (tmp_path / "label_errors.html").read_text()


@pytest.mark.usefixtures("good_detector")
def test_check_prints_the_documented_keys_and_writes_the_page(
    run: Path,
    planted: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _ = planted
    out = tmp_path / "out"
    assert main(["check", str(root), "--with", str(run), "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert_documented("Label errors", printed["label_errors"])
    assert printed["label_errors"] == json.loads((out / "label_errors.json").read_text())
    page = (out / "label_errors.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert main(["check", str(root), "--with", str(run), "--out", str(out)]) == 0
    assert "4 probable label errors" in capsys.readouterr().out


def test_a_detector_of_random_quality_runs_on_one_split(run: Path, shapes: Path) -> None:
    found = groupdetr.find_label_errors(run, shapes, split="val", workers=0, device="cpu")
    assert [(row["name"], row["images"]) for row in found.content["splits"]] == [("val", 6)]


def test_a_detector_with_one_group_is_used_as_it_is(shapes: Path, tmp_path: Path) -> None:
    one = train(shapes, tmp_path / "one", "--steps", "1", "--groups", "1")
    found = groupdetr.find_label_errors(one, shapes, split="val", workers=0, device="cpu")
    assert found.content["groups"] == 1


def test_what_has_no_effect_or_cannot_be_used_is_refused(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="there is no split 'test'"):
        groupdetr.find_label_errors(run, shapes, split="test", out=tmp_path / "a")
    assert main(["check", str(shapes), "--split", "val"]) == 2
    assert "--with RUN" in capsys.readouterr().err
    (tmp_path / "label_errors.html").write_text("mine")
    with pytest.raises(UsageError):
        groupdetr.find_label_errors(run, shapes, out=tmp_path)
    assert (tmp_path / "label_errors.html").read_text() == "mine"
