"""Probable errors in the annotations of a dataset, found by the groups of a trained detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from groupdetr.analysis.label_errors import Suspect, find_suspects
from groupdetr.console.output import create_console
from groupdetr.console.text import quantity
from groupdetr.data.image_decoding import load_image
from groupdetr.data.paths import dataset_name
from groupdetr.data.records import CocoSplit
from groupdetr.engine.run_folder import write_json
from groupdetr.errors import DataError
from groupdetr.report.label_errors import (
    CheckedSplit,
    LabelErrorsReport,
    ShownSuspect,
    write_label_errors_report,
)
from groupdetr.structures.json_object import JsonObject
from groupdetr.tasks.detection2d.all_groups import detect_with_all_groups
from groupdetr.tasks.detection2d.group_vote import expect_several_groups
from groupdetr.tasks.detection2d.prediction import Detector
from groupdetr.tasks.detection2d.validation import with_classes_of
from groupdetr.tasks.result_formats import TableRow

JSON_FILE, PAGE_FILE = "label_errors.json", "label_errors.html"
MAX_SHOWN = 100  # suspects on the page
MAX_PRINTED = 10
MIN_GROUP_SCORE = 0.1  # of a group that detects what a suspect shows


@dataclass(frozen=True)
class LabelErrors:
    """The probable errors in the annotations of a dataset, the most probable ones first."""

    content: JsonObject  # that of label_errors.json
    folder: Path  # of label_errors.json and label_errors.html

    @property
    def suspects(self) -> list[JsonObject]:
        """The suspects, one object each (docs/json.md)."""
        suspects: list[JsonObject] = self.content["suspects"]
        return suspects

    def to_json(self) -> JsonObject:
        """Return the content of label_errors.json."""
        return self.content

    def show(self) -> None:
        """Print the first suspects."""
        console = create_console()
        number = len(self.suspects)
        headline = quantity(number, "probable label error")
        if number > MAX_PRINTED:
            headline += f", the first {MAX_PRINTED}"
        console.print(f"{headline}:" if number else headline)
        rows: list[TableRow] = []
        for suspect in self.suspects[:MAX_PRINTED]:
            rows.append(
                {
                    "rank": str(suspect["rank"]),
                    "score": f"{suspect['score']:.2f}",
                    "kind": suspect["kind"],
                    "annotated": suspect["class"] or "",
                    "detected": suspect["detected_class"] or "",
                    "groups": str(suspect["detected_by"]),
                    "image": f"{suspect['split']}: {suspect['file_name']}",
                }
            )
        console.print_table(rows)
        console.print(f"all of them: {self.folder / PAGE_FILE}")


@dataclass(frozen=True)
class _Found:
    """A suspect, and the split that it was found in."""

    suspect: Suspect
    split: CocoSplit


def find_label_errors(
    detector: Detector,
    splits: Mapping[str, CocoSplit],
    *,
    root: Path,
    trained_on: Sequence[str],
    batch: int,
    workers: int | None,
    out: Path,
) -> LabelErrors:
    """Write label_errors.json and label_errors.html to the folder ``out``, and return the first.

    ``splits`` are those of the dataset ``root``, by name, and ``trained_on`` the names of those
    that the detector was trained on. With one group, the scores are those of this group.
    `UsageError` for groups that attend to each other, and if the detector does not have the classes
    of the dataset.
    """
    if detector.recipe.num_groups > 1:
        expect_several_groups(detector)  # Their groups must be detectors of their own.
    found: list[_Found] = []
    checked = []
    for name, split in splits.items():
        known = with_classes_of(detector, split)
        detections = detect_with_all_groups(detector, known, batch, workers, f"check {name}")
        suspects = find_suspects(known.records, detections, detector.recipe.num_detections)
        found += [_Found(suspect, known) for suspect in suspects]
        annotations = sum(int(record.trainable.sum()) for record in known.records)
        checked.append(
            CheckedSplit(name, len(known), annotations, len(suspects), name in trained_on)
        )
    found.sort(key=lambda item: -item.suspect.score)
    num_groups = detector.recipe.num_groups
    content: JsonObject = {
        "data": str(root),
        "weights": str(detector.path),
        "groups": num_groups,
        "splits": [vars(split) for split in checked],
        "suspects": [
            to_json(rank, item.suspect, item.split, detector.names)
            for rank, item in enumerate(found, 1)
        ],
    }
    write_json(out / JSON_FILE, content)
    report = LabelErrorsReport(
        name=f"Probable label errors in {dataset_name(root)}",
        lead=f"{quantity(len(found), 'suspect')} in {root}, found by the "
        f"{quantity(num_groups, 'group')} of {detector.path}.",
        num_groups=num_groups,
        splits=checked,
        kinds=Counter(item.suspect.kind for item in found),
        shown=_shown(found, detector.names, num_groups),
    )
    write_label_errors_report(out / PAGE_FILE, report)
    return LabelErrors(content, out)


def to_json(rank: int, suspect: Suspect, split: CocoSplit, names: Sequence[str]) -> JsonObject:
    """Return the entry of one suspect in label_errors.json."""
    record = split.records[suspect.image]
    annotation = suspect.annotation
    return {
        "rank": rank,
        "kind": suspect.kind,
        "score": round(suspect.score, 6),
        "split": split.name,
        "image_id": record.image_id,
        "file_name": record.file_name,
        "annotation_id": None if annotation is None else record.annotation_ids[annotation],
        "class": None if suspect.label is None else names[suspect.label],
        "box": _rounded(suspect.box),
        "detected_class": None if suspect.detected_label is None else names[suspect.detected_label],
        "detected_box": _rounded(suspect.detected_box),
        "detected_by": _detecting_groups(suspect),
    }


def _rounded(box: Sequence[float] | None) -> list[float] | None:
    return None if box is None else [round(coordinate, 2) for coordinate in box]


def _detecting_groups(suspect: Suspect) -> int:
    """Return how many groups detect what is suggested, or the annotation itself.

    The box of a group counts from a score of `MIN_GROUP_SCORE`. Missing ones are nan.
    """
    return int((np.array(suspect.group_scores) >= MIN_GROUP_SCORE).sum())


def _shown(suspects: Sequence[_Found], names: Sequence[str], num_groups: int) -> list[ShownSuspect]:
    """Return the first suspects with their images; those that cannot be read are left out."""
    shown: list[ShownSuspect] = []
    for item in suspects[:MAX_SHOWN]:
        suspect, record = item.suspect, item.split.records[item.suspect.image]
        try:
            image = load_image(record.path, (record.width, record.height), record.upright)
        except DataError:  # It was removed since it was read.
            continue
        others = np.delete(
            record.corners, [] if suspect.annotation is None else suspect.annotation, 0
        )
        shown.append(
            ShownSuspect(
                image=image,
                caption=_caption(item, names, num_groups),
                box=suspect.box,
                others=others,
                group_boxes=np.array(suspect.group_boxes, float),
            )
        )
    return shown


def _caption(item: _Found, names: Sequence[str], num_groups: int) -> str:
    """Return what is wrong with an annotation, in words."""
    suspect = item.suspect
    parts = [f"{suspect.kind}, score {suspect.score:.2f}: "]
    if suspect.label is not None:
        parts.append(f"annotated as {names[suspect.label]}, ")
    by = f"by {_detecting_groups(suspect)} of {num_groups} groups"
    if suspect.detected_label is not None:
        parts.append(f"detected as {names[suspect.detected_label]} {by}")
    elif _detecting_groups(suspect):
        parts.append(f"hardly detected, {by}")
    else:
        parts.append("detected by no group")
    record = item.split.records[suspect.image]
    return "".join(parts) + f". {item.split.name}: {record.file_name}"
