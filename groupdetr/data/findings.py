"""Findings: the problems that a dataset can have, their severity and how to fix them.

An **error** could break training or mislead it silently, so training must not start. A **warning**
names a problem that training handles safely. The two tables below decide which is which.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path

from groupdetr.console.text import escape_controls
from groupdetr.errors import DataError

ERRORS = {  # code -> remedy
    # the folder and the annotation file
    "unknown-layout": "arrange the folder as one of the layouts, or give an annotation file with"
    " --images DIR",
    "missing-data": "check the path of the dataset, or download it first",
    "missing-images-folder": "pass the folder that the names of the images are relative to",
    "no-dataset": "pass the folder of a dataset, or its annotation file",
    "unreadable-format": "correct the file, or convert the dataset to COCO JSON",
    "missing-annotations": "check the path and the permissions of the annotation file",
    "not-json": "export the annotations again as COCO JSON",
    "json-too-deep": "export the annotations again as COCO JSON",
    "json-not-coco": "write one object with the lists 'images', 'annotations' and 'categories'",
    "duplicate-key": "keep one of the two values: JSON readers keep only the last one",
    "unreadable-text": "write the file again as text in UTF-8, and check its permissions",
    "several-descriptions": "pass the one that is meant",
    "several-years": "pass the folder of one year",
    "split-not-found": "correct the entry: a folder of images, or a list of images, relative to"
    " 'path' or to the file",
    "class-names": "write the names of the classes in data.yaml, as names: [cat, dog], or in"
    " classes.txt, one on each line",
    # YOLO
    "dataset-yaml": "write 'names' and the folders of the images: train: images/train",
    "unreadable-yaml": "correct this line: a key and its value, such as train: images/train, or"
    " names: [cat, dog]",
    "keypoint-shape": "write the number of keypoints of an object, and 2 or 3 as the numbers of"
    " each: kpt_shape: [17, 3]",
    "labels-missing": "put the label files into the folder beside 'images' that is called 'labels',"
    " with the same subfolders",
    "label-malformed": "write class, x center, y center, width and height, or the class and the"
    " points of a polygon, separated by spaces",
    "label-class": "correct the class, or add its name to 'names'; classes begin at 0",
    "label-not-normalised": "divide x by the width of the image, and y by its height",
    # Pascal VOC
    "xml-malformed": "export the annotations of this image again, or remove the file",
    "xml-missing": "add the file, or remove the name from the list",
    "xml-object": "write <name> and <bndbox> with <xmin>, <ymin>, <xmax> and <ymax> in pixels",
    "xml-image": "put the image beside the XML file or into JPEGImages, or remove the XML file",
    # coloured masks of CVAT
    "labelmap-line": "write name:red,green,blue:: with numbers from 0 to 255, another name and"
    " another colour for each class",
    "mask-image": "put the image into JPEGImages, or remove its name from the list",
    "mask-file": "export the masks of this image again, or remove its name from the list",
    "mask-colour": "add the colour and the name of its class to labelmap.txt",
    # Hugging Face datasets
    "metadata-row": "write an object with 'file_name' and 'objects', which has 'bbox' and"
    " 'categories'",
    "parquet-columns": "write the columns 'image' and 'objects', as the library datasets does",
    "cache-folder": "free some space there, or set the environment variable HF_HOME to another"
    " folder",
    # categories
    "no-categories": "list the classes under 'categories' as objects with 'id' and 'name'",
    "bad-category": "give the category an 'id' (a whole number or text) and a 'name' (text)",
    "duplicate-category-id": "give every category its own id",
    "ambiguous-category-name": "merge the categories, or give each one its own name",
    "category-conflict": "write the same categories, with the same ids, in every split",
    # images
    "no-images": "list the images under 'images'",
    "bad-image": "give the image an 'id' (a whole number or text) and a 'file_name' (text)",
    "duplicate-image-id": "give every image its own id",
    "duplicate-file-name": "list the image once, with all its annotations",
    "bad-size": "write 'width' and 'height' in whole pixels, or leave both out to have them read"
    " from the image",
    "bad-file-name": "write the file name relative to the image folder",
    "path-outside": "put the image into the image folder and write its name relative to that"
    " folder",
    # annotations
    "bad-annotation": "write the annotation as an object with 'image_id', 'category_id' and 'bbox'",
    "unknown-image": "add the image, correct 'image_id', or remove the annotation",
    "unknown-category": "add the category, correct 'category_id', or remove the annotation",
    "box-malformed": "write 'bbox' as four numbers: x, y, width, height in pixels",
    "box-not-finite": "correct the box or remove the annotation",
    "box-negative": "write 'bbox' as x, y, width, height, where x, y is the top left corner",
    "boxes-look-xyxy": "write 'bbox' as x, y, width, height: subtract the first corner from the"
    " second",
    "boxes-look-normalised": "write 'bbox' in pixels: multiply by the width and height of the"
    " image",
    # masks, if the task needs them
    "mask-missing": "give every object a 'segmentation', or train a box detector",
    "mask-malformed": "write 'segmentation' as a list of polygons [x, y, x, y, ...] of three points"
    " or more each, or as an object with 'size' and 'counts'",
    "mask-far-outside": "correct the polygon or remove the annotation",
    "mask-size": "write 'size' as the height and width of the image, after checking that the mask"
    " belongs to it",
    "mask-counts": "export the mask again: its run lengths must add up to the pixels of the image",
    "masks-look-normalised": "write polygons in pixels: multiply by the width and height of the"
    " image",
    # nuScenes
    "not-one-version": "pass the folder of one version, such as <root>/v1.0-trainval, with its"
    " thirteen tables",
    "missing-table": "unpack the metadata of this version into <root>/<version>: thirteen tables",
    "bad-table": "unpack the metadata again: a table is a JSON list of records",
    "duplicate-token": "unpack the metadata again, or keep one of the records",
    "missing-field": "unpack the metadata again, or add the field",
    "dangling-token": "unpack the metadata again: all tables must be of one version",
    "unknown-split": 'write <root>/<version>/splits.json: {"train": ["scene-0001", ...], "val":'
    " [...]}; the official lists are used for folders called v1.0-trainval and v1.0-mini",
    "bad-splits": 'write one object: {"train": ["scene-0001", ...], "val": [...]}',
    "empty-split": "list scenes that have key frames in splits.json",
    "split-without-objects": "annotate objects in it, or list scenes that have objects in"
    " splits.json",
    "unknown-scene": "use the version that the split belongs to, or list the existing scenes in"
    " splits.json",
    "scenes-without-images": "unpack the missing parts of the download, or list the existing scenes"
    " in <root>/<version>/splits.json",
    "missing-sensor": "unpack the metadata again: a key frame has one LIDAR_TOP and six cameras",
    "bad-pose": "unpack the metadata again: a translation is three numbers; a rotation is four"
    " numbers, not all 0",
    "bad-calibration": "unpack the metadata again: camera_intrinsic is"
    " [[fx, s, cx], [0, fy, cy], [0, 0, 1]]",
    "frame-times": "write the time of every image into sample_data.json, in microseconds:"
    " 'timestamp' rises from the image of a camera to its next one",
    "bad-object": "unpack the metadata again, or correct the annotation",
    # the whole dataset
    "no-training-boxes": "annotate objects in the train split",
    # image files
    "missing-file": "put the image there or remove its record; if no image is there, correct the "
    "folder of the images",
    "file-case": "rename the file or correct 'file_name': the letters differ in case or in how"
    " accents are encoded",
    "not-a-file": "replace it by an ordinary image file or remove the record",
    "empty-file": "copy the image again or remove its record",
    "not-an-image": "replace it by an image (JPEG, PNG, BMP, GIF, WebP, TIFF...) or remove its"
    " record",
    "truncated-image": "copy the image again or remove its record",
    "unreadable-file": "check the permissions of the file, and the drive that it is on",
    "lfs-pointer": "fetch the files of the repository with git lfs pull",
    "heif": "pip install 'groupdetr[heif]', or save it as a JPEG",
    "unreadable-image": "copy the image again, save it in another program, or remove its record",
    "image-too-large": "scale the image down or cut it into tiles",
    "value-range": "save it with finite values, from 0 to 1, 0 to 255 or 0 to 65535",
    "size-mismatch": "correct 'width' and 'height', after checking that the boxes belong to this"
    " image",
}

WARNINGS = {  # code -> how groupdetr handles it, and what to do
    "labels-without-image": "ignored; add the image, or remove the label file",
    "split-elsewhere": "read from there; correct the entry if another folder is meant",
    "test-split-missing": "left out; training does not need it",
    "class-names-invented": "they are called class_0, class_1 and so on; write 'names' in the file",
    "image-listed-twice": "read once; remove it from the list",
    "list-line": "left out, because it does not have the ending of an image",
    "images-without-xml": "left out; annotate them, or write an XML file without objects",
    "corners-from-zero": "all boxes of this dataset are read with pixels numbered from 0",
    "linked-outside": "the link is followed; make sure that its target remains available",
    "json-encoding": "read anyway; every tool can read UTF-8 without a byte order mark",
    "text-id": "kept as text; many other tools need whole numbers",
    "float-id": "read as whole numbers",
    "annotation-id": "harmless here: annotations are renumbered",
    "annotation-id-zero": "harmless here, annotations are renumbered; in other tools an id of 0"
    " silently lowers AP",
    "duplicate-annotation-id": "harmless here, annotations are renumbered; other tools keep only"
    " one of them",
    "duplicate-category-name": "only one of them has boxes; remove the other one if it is a"
    " mistake",
    "backslash": "read as a slash",
    "box-no-area": "dropped in training",
    "box-outside": "dropped in training",
    "box-clamped": "clipped to the image in training",
    "duplicate-box": "kept; remove one of the two",
    "bad-area": "width times height is used instead",
    "bad-iscrowd": "read as a crowd unless it is empty or zero; write 0 or 1",
    "mask-short-part": "the part is ignored, because it has no area",
    "mask-empty": "dropped in training",
    "mask-box-mismatch": "kept; make sure that the mask belongs to this object",
    "crowd-without-mask": "evaluation uses its box instead",
    "crowds": "dropped in training; evaluation handles them as COCO does",
    "empty-images": "kept: they teach the detector what background is; trainings of Mask2Former"
    " leave them out, as its authors do",
    "no-val-boxes": "AP cannot be measured on this split; groupdetr val writes its detections only",
    "class-without-boxes": "the detector cannot learn it; remove the category or annotate it",
    "parent-category": "it is left out: the detector does not have this class",
    "rare-class": "the detector will hardly learn it; annotate more of it, merge it with another"
    " class, or remove it",
    "objects-exceed-queries": "no query can learn or find the objects beyond the number of queries;"
    " raise --queries above the largest number of objects",
    "crowded-images": "no query can learn or find the objects beyond the number of queries; raise"
    " --queries above the largest number of objects",
    "shared-images": "figures on this split will look better than they are; remove the image from"
    " one of the two",
    "duplicate-images": "kept; remove the copies if they are a mistake",
    "sample-without-objects": "training replaces it by a random other sample",
    "objects-out-of-range": "dropped in training: they are 51.2 m or more to the side, in front or"
    " behind",
    "objects-without-points": "dropped in training and evaluation: no lidar or radar point is on"
    " them",
    "earlier-frame": "PETRv2 cannot be trained or evaluated without it; PETR does not use it",
    "missing-split": "it cannot be trained or evaluated on; ignore this if the split is not meant"
    " to be here",
    "exif-rotated": "rotated when it is read, because its recorded size, or the format, tells that"
    " the boxes were drawn on the rotated image",
    "exif-ambiguous": "read without rotation; the size does not show whether the boxes were drawn"
    " on the rotated image",
}


@dataclass(frozen=True)
class Finding:
    """One problem of one record of one file."""

    code: str  # a key of `ERRORS` or `WARNINGS`
    file: str
    record: str  # such as "annotation 17"; empty if the finding is about the whole file
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
        file = escape_controls(self.file)
        return f"{file}: {self.record}" if self.record else file

    def to_json(self) -> dict[str, str]:
        return {
            "code": self.code,
            "file": self.file,
            "record": self.record,
            "what": self.what,
            "remedy": self.remedy,
        }


class RefusedError(DataError):
    """A finding as an exception, for a file or a record that cannot be used at all."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.what, finding.where, finding.remedy)
        self.finding = finding

    def __reduce__(self) -> tuple[type[RefusedError], tuple[Finding]]:
        """Pickle by the finding, because loader workers send errors by pickle."""
        return type(self), (self.finding,)


def refused(code: str, path: Path | str, what: str) -> RefusedError:
    """Return the error for a file or a folder that cannot be used at all."""
    return RefusedError(Finding(code, str(path), "", what))


class Findings(list[Finding]):
    """The findings about one file, in the order in which they were made."""

    def __init__(self, file: Path | str) -> None:
        super().__init__()
        self.file = str(file)

    def add(self, code: str, record: str, what: str) -> None:
        self.append(Finding(code, self.file, record, what))


def raise_first_error(findings: list[Finding]) -> None:
    """Raise the first finding that is an error, if any."""
    for finding in findings:
        if finding.is_error:
            raise RefusedError(finding)


_short_repr = reprlib.Repr()
_short_repr.maxstring = 80
_short_repr.maxother = 80
_short_repr.maxlong = 80
_short_repr.maxlevel = 2  # six entries on each of six levels would be too long


def printable(value: object) -> str:
    """Return a value of a file as short text.

    It is safe to print: ``repr`` escapes the control characters that would disturb a terminal.
    """
    return _short_repr.repr(value)
