"""Writing COCO datasets: annotations/instances_train.json and images/train."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from groupdetr.data.writers.target import SourceSplit, Target


def write_coco(splits: Sequence[SourceSplit], target: Target) -> None:
    """Write a COCO dataset. Keys that are unknown to this library are kept."""
    next_id = 1
    for split in splits:
        images, annotations = [], []
        for image in target.progress(split.images, split.name):
            target.copy_turned_image(image, PurePosixPath("images", split.name) / image.file_name)
            entry = {"width": image.width, "height": image.height}
            images.append(image.entry | entry | {"file_name": str(image.file_name)})
            for annotation in image.annotations:
                width, height = annotation["bbox"][2:]
                entry = {"area": width * height, "iscrowd": 0}
                # Other programs cannot read null in their places.
                entry |= {key: value for key, value in annotation.items() if value is not None}
                # Ids that are missing, 0 or twice disturb other programs, so all are new.
                annotations.append(entry | {"id": next_id})
                next_id += 1
        content = split.content | {
            "images": images,
            "annotations": annotations,
            "categories": split.categories,
        }
        name = f"annotations/instances_{split.name}.json"
        target.write_file(name, json.dumps(content, ensure_ascii=False))
