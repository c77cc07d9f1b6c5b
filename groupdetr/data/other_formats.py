"""Formats of datasets that are not read: what a folder or a file looks like, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from groupdetr.data.image_files import is_image_name, search_folder

_HEAD = 1 << 16  # bytes of a file that are searched for words


class _OtherFormat(NamedTuple):
    name: str
    patterns: Sequence[str]  # of file names in a folder
    words: Sequence[bytes] = ()  # that the first bytes of such a file have, all of them


_FORMATS = (
    _OtherFormat("a dataset of TFRecord files", ("*.tfrecord*", "*/*.tfrecord*")),
    _OtherFormat("a CreateML dataset", ("*createml*.json", "*/*createml*.json")),
    _OtherFormat("a COCO panoptic dataset", ("*panoptic*.json", "annotations/*panoptic*.json")),
    _OtherFormat("a LabelMe dataset", ("*.json", "*/*.json"), (b'"shapes"', b'"imagePath"')),
    _OtherFormat("a Label Studio export", ("*.json",), (b'"annotations"', b'"from_name"')),
    _OtherFormat(
        "a VGG Image Annotator project", ("*.json",), (b'"regions"', b"region_attributes")
    ),
    _OtherFormat("a Supervisely dataset", ("meta.json",), (b'"classes"', b'"geometry_type"')),
    _OtherFormat("a Supervisely dataset", ("*/ann/*.json", "ann/*.json")),
    _OtherFormat("a Datumaro dataset", ("annotations/*.json",), (b'"items"', b'"categories"')),
    _OtherFormat("a BDD100K dataset", ("*.json", "*/*.json"), (b'"box2d"',)),
    _OtherFormat("annotations of CVAT", ("*.xml", "*/*.xml"), (b"<annotations>", b"<image ")),
    _OtherFormat("a KITTI dataset", ("label_2/*.txt", "*/label_2/*.txt")),
    _OtherFormat("a DOTA dataset of rotated boxes", ("labelTxt*/*.txt", "*/labelTxt*/*.txt")),
    _OtherFormat("a Darknet dataset", ("*.data", "*/*.data"), (b"names", b"train")),
    _OtherFormat("a dataset of CSV files", ("*.csv", "*/*.csv")),
)


def looks_like(data: Path) -> str:
    """Return what a folder without a known layout looks like; an empty text if it is not known."""
    for other in _FORMATS:
        for pattern in other.patterns:
            for file in sorted(data.glob(pattern))[:3]:
                if _has_words(file, other.words):
                    return other.name
    if any(data.glob("SegmentationClass/*.png")):
        return "a dataset for semantic segmentation, without objects"
    images = search_folder(data).images
    if images and _is_classification(data, images):
        return "a dataset for image classification, with a folder for each class and no boxes"
    if images and not any(data.rglob("*.json")):
        return f"a folder of {len(images)} images without annotations"
    return ""


def _has_words(file: Path, words: Sequence[bytes]) -> bool:
    if not words:
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return False
    return all(word in head for word in words)


def _is_classification(root: Path, images: Sequence[Path]) -> bool:
    """Return whether each image is in a folder of its class, in one of a split or not."""
    folders = {image.relative_to(root).parent for image in images}
    depths = {len(folder.parts) for folder in folders}
    others = [path for path in root.rglob("*") if path.is_file() and not is_image_name(path.name)]
    return len(folders) > 1 and depths in ({1}, {2}) and not others
