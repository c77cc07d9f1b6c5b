"""What can be wrong with a data set: every code, whether training may start, and what to do about it.

An **error** could break training or mislead it silently, so training must not start. A **warning** names something
that training copes with safely. The two tables below are the only place that decides which is which.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupdetr.errors import DataError

ERRORS = {  # code: remedy
    # the folder and the annotation file
    "unknown-layout": "arrange the folder as one of the layouts, or give an annotation file with --images DIR",
    "missing-annotations": "check the path and the permissions of the annotation file",
    "not-json": "export the annotations again as COCO JSON",
    "json-too-deep": "export the annotations again as COCO JSON",
    "json-not-coco": "write one object with the lists 'images', 'annotations' and 'categories'",
    "duplicate-key": "keep one of the two values: readers of JSON drop all but the last",
    # categories
    "no-categories": "list the classes under 'categories' as objects with 'id' and 'name'",
    "bad-category": "give the category an 'id' (a whole number or text) and a 'name' (text)",
    "duplicate-category-id": "give every category an id of its own",
    "ambiguous-category-name": "merge the categories, or give each a name of its own",
    "category-conflict": "write the same categories, with the same ids, in every split",
    # images
    "no-images": "list the pictures under 'images'",
    "bad-image": "give the image an 'id' (a whole number or text) and a 'file_name' (text)",
    "duplicate-image-id": "give every image an id of its own",
    "duplicate-file-name": "list the picture once, with all its annotations",
    "bad-size": "write 'width' and 'height' in whole pixels, or leave both out to have them read from the picture",
    "bad-file-name": "write the file name relative to the image folder",
    "path-outside": "put the picture into the image folder and write its name relative to that folder",
    # annotations
    "bad-annotation": "write the annotation as an object with 'image_id', 'category_id' and 'bbox'",
    "unknown-image": "add the image, correct 'image_id', or remove the annotation",
    "unknown-category": "add the category, correct 'category_id', or remove the annotation",
    "box-malformed": "write 'bbox' as four numbers: x, y, width, height in pixels",
    "box-not-finite": "correct the box or remove the annotation",
    "box-negative": "write 'bbox' as x, y, width, height with the corner at the top left",
    "boxes-look-xyxy": "write 'bbox' as x, y, width, height: subtract the first corner from the second",
    "boxes-look-normalised": "write 'bbox' in pixels: multiply by the width and height of the picture",
    # masks, where they are asked for
    "mask-missing": "give every object a 'segmentation', or train a detector of boxes",
    "mask-malformed": "write 'segmentation' as a list of polygons [x, y, x, y, ...] of three points or more each, or as"
    " an object with 'size' and 'counts'",
    "mask-out-of-reach": "correct the polygon or remove the annotation",
    "mask-size": "write 'size' as the height and width of the image, after checking that the mask belongs to it",
    "mask-counts": "export the mask again: the lengths of its runs must add up to the pixels of the image",
    "masks-look-normalised": "write polygons in pixels: multiply by the width and height of the picture",
    # nuScenes
    "which-version": "pass the folder of one version, such as <root>/v1.0-trainval, with its thirteen tables",
    "missing-table": "unpack the metadata of this version into <root>/<version>: thirteen tables",
    "bad-table": "unpack the metadata again: a table is a JSON list of records",
    "duplicate-token": "unpack the metadata again, or keep one of the records",
    "missing-field": "unpack the metadata again, or add the field",
    "dangling-token": "unpack the metadata again: all tables must be of one version",
    "unknown-split": 'write <root>/<version>/splits.json: {"train": ["scene-0001", ...], "val": [...]};'
    " the official lists are known of folders called v1.0-trainval and v1.0-mini",
    "bad-splits": 'write one object: {"train": ["scene-0001", ...], "val": [...]}',
    "empty-split": "list scenes that have key frames in splits.json",
    "split-without-objects": "annotate objects in it, or list scenes that have some in splits.json",
    "unknown-scene": "use the version that the split belongs to, or list the scenes that are here in splits.json",
    "scenes-without-pictures": "unpack the parts of the download that are missing, or list the scenes that are here in"
    " <root>/<version>/splits.json",
    "missing-view": "unpack the metadata again: a key frame has one LIDAR_TOP and six cameras",
    "bad-pose": "unpack the metadata again: translations are three numbers, rotations four, none of length 0",
    "bad-calibration": "unpack the metadata again: camera_intrinsic is [[fx, s, cx], [0, fy, cy], [0, 0, 1]]",
    "bad-object": "unpack the metadata again, or correct the annotation",
    # the whole
    "no-training-boxes": "annotate objects in the train split",
    # picture files
    "missing-file": "put the picture there or remove its record",
    "file-case": "rename the file or correct 'file_name': the letters differ in case or in how accents are written",
    "not-a-file": "put an ordinary picture file there or remove the record",
    "empty-file": "copy the picture again or remove its record",
    "not-an-image": "replace it by a picture (JPEG, PNG, BMP, GIF, WebP, TIFF...) or remove its record",
    "truncated-image": "copy the picture again or remove its record",
    "unreadable-image": "copy the picture again, save it anew, or remove its record",
    "image-too-large": "scale the picture down or cut it into tiles",
    "size-mismatch": "correct 'width' and 'height', after checking that the boxes belong to this picture",
}

WARNINGS = {  # code: what we do about it
    "linked-outside": "followed; make sure that the place it leads to stays there",
    "json-encoding": "read all the same; UTF-8 without a byte order mark is what every tool reads",
    "text-id": "kept as text; many other tools want whole numbers",
    "float-id": "taken as whole numbers",
    "annotation-id": "harmless here: annotations are renumbered",
    "annotation-id-zero": "harmless here, annotations are renumbered; elsewhere an id of 0 silently lowers AP",
    "duplicate-annotation-id": "harmless here, annotations are renumbered; other tools keep only one of them",
    "duplicate-category-name": "only one of them has boxes; remove the other if it is not meant",
    "backslash": "taken as a slash",
    "box-no-area": "dropped in training",
    "box-outside": "dropped in training",
    "box-clamped": "cut at the edge of the picture in training",
    "duplicate-box": "kept; remove one of the two",
    "bad-area": "width times height is used instead",
    "bad-iscrowd": "taken as a crowd unless it is empty or zero; write 0 or 1",
    "mask-short-part": "left out, as it has no area",
    "mask-empty": "dropped in training",
    "mask-beside-box": "kept; make sure that the mask belongs to this object",
    "crowd-without-mask": "its box is taken instead, in evaluation",
    "crowds": "dropped in training, honoured in evaluation",
    "empty-images": "kept: they show the detector what is background; trainings of masks leave them out, as published",
    "no-val-boxes": "AP cannot be measured on this split",
    "class-without-boxes": "it will not be learned; remove the category or annotate it",
    "objects-exceed-queries": "raise --queries above the largest number of objects",
    "crowded-images": "the objects beyond the number of queries are not learned in these images",
    "shared-images": "figures on this split will look better than they are; remove the picture from one of the two",
    "duplicate-images": "kept; remove the copies if they are not meant",
    "sample-without-objects": "another one is drawn in its place in training",
    "objects-out-of-range": "dropped in training: they are 51.2 m or more to the side, in front or behind",
    "objects-without-points": "dropped in training and evaluation: no lidar or radar point is on them",
    "earlier-frame": "PETRv2 cannot be trained or evaluated without it; PETR does not look at it",
    "split-not-here": "it cannot be trained or evaluated on; nothing to do if it is not meant to be here",
    "exif-turned": "turned on reading, as its recorded size is that of the turned picture",
    "exif-ambiguous": "read as stored; the size does not tell whether the boxes were drawn on the turned picture",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one record of one file."""

    code: str
    file: str
    record: str  # such as "annotation 17"; empty where the whole file is meant
    what: str

    @property
    def is_error(self) -> bool:
        return self.code in ERRORS

    @property
    def remedy(self) -> str:
        return ERRORS[self.code] if self.is_error else WARNINGS[self.code]

    @property
    def message(self) -> str:
        return f"{self.what}: {self.remedy}"

    @property
    def where(self) -> str:
        return f"{shown_path(self.file)}: {self.record}" if self.record else shown_path(self.file)

    def to_json(self) -> dict[str, str]:
        return {
            "code": self.code,
            "file": self.file,
            "record": self.record,
            "message": self.message,
        }


class RefusedError(DataError):
    """The data error that a finding is where nothing can go on without what it is about."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what, finding.where, finding.remedy)
        self.finding = finding

    def __reduce__(
        self,
    ) -> tuple[type[RefusedError], tuple[Finding]]:  # loader workers send errors by pickle
        return type(self), (self.finding,)


class Findings(list[Finding]):
    """The findings about one file, in the order they were made."""

    def __init__(self, file: Path | str) -> None:
        super().__init__()
        self.file = str(file)

    def add(self, code: str, record: str, what: str) -> None:
        self.append(Finding(code, self.file, record, what))


def raise_first_error(findings: list[Finding]) -> None:
    for finding in findings:
        if finding.is_error:
            raise RefusedError(finding)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
_short.maxlevel = 2  # six entries on each of six levels would be a book


def shown(value: Any) -> str:
    """A value of a file as text: short, and safe to print, since ``repr`` escapes what would upset a terminal."""
    return _short.repr(value)


def shown_path(path: str) -> str:
    """A path without what would upset a terminal: control characters and halves of surrogate pairs."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)
