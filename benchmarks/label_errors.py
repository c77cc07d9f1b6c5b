"""How many planted label errors are among the first suspects of `groupdetr check DATA --with RUN`?

``plant`` copies the annotation files of a COCO dataset with errors in a share of the boxes, a third
each: deleted, moved to an IoU below 0.4, and of another class. Train a run with the copy. Then
``measure`` ranks the suspects with all groups of the run, and with each group alone as baseline.

    python benchmarks/label_errors.py plant DATA PLANTED
    groupdetr train PLANTED --model conditional-detr-lite --out RUN
    python benchmarks/label_errors.py measure RUN PLANTED --split train
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupdetr.analysis.label_errors import Suspect, find_suspects
from groupdetr.analysis.paired_iou import paired_iou
from groupdetr.data.records import Record
from groupdetr.tasks.detection2d.all_groups import detect_with_all_groups
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import with_classes_of

PLANTED_FILE = "planted.json"  # beside the folder of the copy
KINDS = ("deleted", "moved", "class")
MAX_IOU = 0.4  # of a moved box with the original one
MATCH_IOU = 0.5  # of a suspect without annotation with a box that was deleted or moved


def plant(content: dict[str, Any], share: float, seed: int) -> list[dict[str, Any]]:
    """Plant errors in a share of the annotations of a COCO file, and return a list of them."""
    random = np.random.default_rng(seed)
    annotations = content["annotations"]
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    category_ids = [category["id"] for category in content["categories"]]
    chosen = random.choice(len(annotations), round(share * len(annotations)), replace=False)
    planted, deleted = [], set()
    for number, index in enumerate(chosen.tolist()):
        annotation, kind = annotations[index], KINDS[number % 3]
        error = {
            "kind": kind,
            "annotation": annotation["id"],
            "image": annotation["image_id"],
            "box": list(annotation["bbox"]),  # the right one
        }
        if kind == "deleted":
            deleted.add(annotation["id"])
        elif kind == "class":
            others = [other for other in category_ids if other != annotation["category_id"]]
            annotation["category_id"] = int(random.choice(others))
        else:
            moved = move(annotation["bbox"], sizes[annotation["image_id"]], random)
            if moved is None:  # The object fills the image.
                continue
            annotation["bbox"] = moved
        planted.append(error)
    content["annotations"] = [row for row in annotations if row["id"] not in deleted]
    return planted


def move(
    box: Sequence[float], size: tuple[int, int], random: np.random.Generator
) -> list[float] | None:
    """Return a box moved by half of its size up to its size, inside of the image; None if full."""
    x, y, width, height = box
    for _ in range(1000):
        angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.5, 1)
        left = np.clip(x + distance * width * np.cos(angle), 0, size[0] - width)
        top = np.clip(y + distance * height * np.sin(angle), 0, size[1] - height)
        moved = [float(left), float(top), width, height]
        if paired_iou(corners(moved), corners(box)) < MAX_IOU:
            return moved
    return None


def corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y + height]


def is_planted(suspect: Suspect, record: Record, planted: Sequence[dict[str, Any]]) -> bool:
    """True if a suspect is one of the errors that were planted in its image."""
    for error in planted:
        if suspect.annotation is not None:
            is_same = record.annotation_ids[suspect.annotation] == error["annotation"]
        elif suspect.detected_box is not None and error["kind"] != "class":
            is_same = paired_iou(suspect.detected_box, corners(error["box"])) >= MATCH_IOU
        else:
            is_same = False
        if is_same:
            return True
    return False


def measure(run: Path, data: Path, split: str, first: int, device: str) -> None:
    detector = Detector(run, device)
    known = with_classes_of(detector, detector.task.read_split(data, None, split))
    images = detect_with_all_groups(detector, known, batch=4)
    planted = json.loads((data.parent / f"{data.name}-{PLANTED_FILE}").read_text(encoding="utf-8"))
    by_image: dict[object, list[dict[str, Any]]] = {}
    for error in planted[split]:
        by_image.setdefault(error["image"], []).append(error)

    def hits(groups: Sequence[int]) -> int:
        detections = [[of_image[group] for group in groups] for of_image in images]
        suspects = find_suspects(known.records, detections)[:first]
        records = [known.records[suspect.image] for suspect in suspects]
        return sum(
            is_planted(suspect, record, by_image.get(record.image_id, []))
            for suspect, record in zip(suspects, records)
        )

    every = range(detector.recipe.num_groups)
    alone = [hits([group]) for group in every]
    print(f"{len(planted[split])} planted errors in {split}; planted ones of {first} suspects:")
    print(f"all {len(every)} groups: {hits(every)}")
    print(f"one group: mean {np.mean(alone):.1f}, each {alone}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant")
    planting.add_argument("data", type=Path, help="a folder with train.json, val.json and images/")
    planting.add_argument("out", type=Path)
    planting.add_argument("--share", type=float, default=0.05)
    planting.add_argument("--seed", type=int, default=0)
    measuring = commands.add_parser("measure")
    measuring.add_argument("run", type=Path)
    measuring.add_argument("data", type=Path)
    measuring.add_argument("--split", default="train")
    measuring.add_argument("--first", type=int, default=100)
    measuring.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.run, options.data, options.split, options.first, options.device)
        return
    options.out.mkdir(parents=True)
    (options.out / "images").symlink_to((options.data / "images").resolve())
    planted = {}
    for offset, split in enumerate(("train", "val")):
        content = json.loads((options.data / f"{split}.json").read_text(encoding="utf-8"))
        planted[split] = plant(content, options.share, options.seed + offset)
        (options.out / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    file = options.out.parent / f"{options.out.name}-{PLANTED_FILE}"
    file.write_text(json.dumps(planted, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
