"""Formats of datasets: how a folder is recognised, and how it is read as COCO annotations.

COCO JSON itself is read by `groupdetr.data.layouts`. A further format translates its files to COCO
annotations in memory. So it has the same checks, the same training and the same evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from groupdetr.data.findings import Finding
from groupdetr.structures.json_object import JsonObject


class RecordLocation(NamedTuple):
    """Where a record was read: a file, and the part of it, such as "line 3"."""

    file: str
    record: str


# Returns the location of the "image", "annotation" or "category" with an id. None if it is not
# known.
FindLocation = Callable[[str, int], RecordLocation | None]


@dataclass(frozen=True)
class SplitAnnotations:
    """One split of a dataset as the content of a COCO annotation file.

    ``content`` has the lists ``images``, ``annotations`` and ``categories``. Boxes are x, y, width
    and height in pixels. ``images`` is the folder that the file names of the images are relative
    to. ``file`` is what messages name: the file, or the folder, that the annotations come from.

    ``findings`` are the problems that only the reader can see, such as lines that it left out.
    With ``find_location``, the problems that are found later name the file and the line of a
    record. Then ``file`` must be different for each split, and ids must be whole numbers.

    ``upright`` is True if boxes are always those of an image after its EXIF orientation. Otherwise
    the recorded width and height tell, and a square image counts as one without orientation.
    """

    content: JsonObject
    images: Path
    file: Path
    findings: tuple[Finding, ...] = ()
    find_location: FindLocation | None = None
    upright: bool = False


@dataclass(frozen=True)
class DataFormat:
    """A format of datasets.

    ``detect`` returns whether a folder or a file has this format; it must be quick. ``read``
    returns the splits by name: "train", and "val" and "test" if there are any. It raises
    `DataError` with the file, the record and the remedy for what it cannot translate.
    """

    name: str  # such as "Pascal VOC"
    detect: Callable[[Path], bool]
    read: Callable[[Path], dict[str, SplitAnnotations]]
    # As ``read``, with the masks of the objects, if reading these takes longer. The second argument
    # is True for the images alone that have masks. None: ``read`` has the masks, too.
    read_masks: Callable[[Path, bool], dict[str, SplitAnnotations]] | None = None

    def splits(self, data: Path, masks: bool = False) -> dict[str, SplitAnnotations]:
        """Return the splits by name; with ``masks``, those for instance segmentation."""
        if masks and self.read_masks is not None:
            return self.read_masks(data, True)
        return self.read(data)


_FORMATS: list[DataFormat] = []


def register_format(data_format: DataFormat) -> None:
    """Add a format, so that all commands and functions read it.

    A format of the same name is replaced. The formats are tried in the order in which they were
    added, before the layouts of COCO and the other formats that the library reads.
    """
    for index, known in enumerate(_FORMATS):
        if known.name == data_format.name:
            _FORMATS[index] = data_format
            return
    _FORMATS.append(data_format)


def detect_format(data: Path) -> DataFormat | None:
    """Return the registered format of a folder or a file; None if it has none of them."""
    for data_format in _FORMATS:
        if data_format.detect(data):
            return data_format
    return None
