"""A detector that learns anything at all overfits eight real images."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import split
from typing import Any

import pytest

from groupdetr.cli.main import main
from tests.runs import read_log

OPTIONS = split(
    "--groups 6 --imgsz 160 --augment none --steps 700 --batch 8 --eval-every 100 --workers 0 "
    "--no-check --device cpu"
)


def easy_images(content: dict[str, Any], num_images: int) -> dict[str, Any]:
    """Return the part of a COCO annotation file with the first easy images.

    An easy image has two to six objects, of any size, and none of them is a crowd. Categories
    without objects are left out.
    """
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = []
    for image in content["images"]:
        has_crowd = any(annotation["iscrowd"] for annotation in objects[image["id"]])
        if 2 <= len(objects[image["id"]]) <= 6 and not has_crowd:
            images.append(image)
    images = images[:num_images]
    annotations = [annotation for image in images for annotation in objects[image["id"]]]
    used_ids = {annotation["category_id"] for annotation in annotations}
    categories = [category for category in content["categories"] if category["id"] in used_ids]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["conditional-detr-tiny", "mask2former-tiny"])
def test_a_tiny_detector_overfits_eight_images_of_tiny_coco(
    real_data: Path, tmp_path: Path, model: str
) -> None:
    content = json.loads((real_data / "tiny_coco/train.json").read_text())
    content = easy_images(content, 8)
    assert len(content["images"]) == 8
    for split_name in ("train", "val"):
        (tmp_path / f"{split_name}.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(real_data / "tiny_coco/images")
    run = tmp_path / "run"
    arguments = ["train", str(tmp_path), "--model", model, "--out", str(run), *OPTIONS]
    assert main(arguments) == 0
    assert max(record["AP"] for record in read_log(run) if "AP" in record) > 0.9
