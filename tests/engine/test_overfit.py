"""A detector that can learn anything at all learns eight real pictures by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groupdetr.cli.main import main
from tests.runs import log


@pytest.mark.slow
@pytest.mark.parametrize("model", ["conditional-detr-tiny", "mask2former-tiny"])
def test_eight_real_pictures_are_learned_by_heart(
    real_data: Path, tmp_path: Path, model: str
) -> None:
    """Of tiny COCO, the first eight with two to six objects, none of them a crowd; small ones are left in."""
    content = json.loads((real_data / "tiny_coco/train.json").read_text())
    objects: dict[int, list[dict[str, object]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        image
        for image in content["images"]
        if 2 <= len(objects.get(image["id"], [])) <= 6
        and not any(a["iscrowd"] for a in objects[image["id"]])
    ][:8]
    assert len(chosen) == 8
    annotations = [annotation for image in chosen for annotation in objects[image["id"]]]
    used = {annotation["category_id"] for annotation in annotations}
    categories = [category for category in content["categories"] if category["id"] in used]
    few = {"images": chosen, "annotations": annotations, "categories": categories}
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(few))
    (tmp_path / "images").symlink_to(real_data / "tiny_coco/images")
    run = tmp_path / "run"
    arguments = ["--model", model, "--groups", "6", "--imgsz", "160", "--augment", "none"]
    schedule = [
        "--steps",
        "700",
        "--batch",
        "8",
        "--eval-every",
        "100",
        "--workers",
        "0",
        "--no-check",
    ]
    assert (
        main(["train", str(tmp_path), *arguments, *schedule, "--device", "cpu", "--out", str(run)])
        == 0
    )
    assert max(record["AP"] for record in log(run) if "AP" in record) > 0.9
