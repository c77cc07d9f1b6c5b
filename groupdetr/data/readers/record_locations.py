"""Where records come from: the file and the line of every image and annotation that was read."""

from __future__ import annotations

from pathlib import Path

from groupdetr.data.formats import RecordLocation


class RecordLocations:
    """Numbers the images and annotations of a dataset, and knows the location of each.

    The numbers begin at 1 and are unique over all splits. ``classes`` is the file with the names of
    the classes, if there is one.
    """

    def __init__(self, classes: Path | None = None) -> None:
        self._classes = classes
        self._images: list[RecordLocation] = []
        self._annotations: list[RecordLocation] = []

    def add_image(self, location: RecordLocation) -> int:
        """Return the id of a new image."""
        self._images.append(location)
        return len(self._images)

    def add_annotation(self, location: RecordLocation) -> int:
        """Return the id of a new annotation."""
        self._annotations.append(location)
        return len(self._annotations)

    def __call__(self, kind: str, record_id: int) -> RecordLocation | None:
        """Return the location of an "image", "annotation" or "category"; None if there is none."""
        if kind == "category":
            return (
                RecordLocation(str(self._classes), f"class {record_id}") if self._classes else None
            )
        locations = self._images if kind == "image" else self._annotations
        return locations[record_id - 1] if 0 < record_id <= len(locations) else None
