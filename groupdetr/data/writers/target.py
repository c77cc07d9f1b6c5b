"""What a dataset is written to: images that are copied or linked, and text files."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np

from groupdetr.data.image_decoding import is_turned, open_image
from groupdetr.data.image_files import is_image_name
from groupdetr.data.records import clip_boxes
from groupdetr.data.writers.orientation import turned
from groupdetr.files.writing import explained
from groupdetr.structures.json_object import JsonObject

# Pixels by which a box may leave its image without a note: the error of x + width.
ROUNDING = 1e-6
# Endings that are not Pillow's name of the format
_ENDINGS = {"JPEG": ".jpg", "JPEG2000": ".jp2"}


@dataclass(frozen=True)
class SourceImage:
    """An image of a split with its annotations, as a COCO file has them."""

    path: Path
    file_name: PurePosixPath  # relative to the folder of the images of its split
    width: int  # pixels
    height: int
    entry: JsonObject
    annotations: list[JsonObject]
    upright: bool = False  # as in `Record`


@dataclass(frozen=True)
class SourceSplit:
    """One split of a dataset that is converted."""

    name: str
    content: JsonObject
    categories: list[JsonObject]  # the same for all splits, in the order of their labels
    images: list[SourceImage]


Progress = Callable[[Sequence[SourceImage], str], Iterator[SourceImage]]


def without_progress(images: Sequence[SourceImage], label: str) -> Iterator[SourceImage]:
    """Yield the images, and show nothing."""
    return iter(images)


@dataclass
class Target:
    """The folder that a dataset is written to, and what the format could not hold."""

    folder: Path
    link: bool  # images are linked, not copied
    progress: Progress = without_progress
    notes: Counter[str] = field(default_factory=Counter)  # what was changed or lost -> how often

    def copy_image(self, source: Path, name: PurePosixPath) -> None:
        """Copy or link an image to ``name``, relative to the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with explained(path):
            if not (self.link and _link(source.resolve(), path)):
                shutil.copyfile(source, path)

    def copy_turned_image(self, image: SourceImage, name: PurePosixPath) -> None:
        """Copy or link an image to ``name`` in a format in which only its size tells whether its
        EXIF orientation is applied. If the size does not tell, its pixels are turned.
        """
        size = (image.width, image.height)
        if image.upright and is_turned(image.path, size, upright=True) != is_turned(
            image.path, size
        ):
            self.note("images turned by their EXIF orientation, and encoded again")
            self.write_image(turned(image.path), name)
        else:
            self.copy_image(image.path, name)

    def write_image(self, content: bytes, name: PurePosixPath) -> None:
        """Write an image file to ``name``, relative to the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with explained(path):
            path.write_bytes(content)

    def write_file(self, name: str, text: str) -> None:
        """Write a text file in UTF-8. The folder is new, so there is no former file to lose."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with explained(path):
            path.write_bytes(text.encode("utf-8"))

    def note(self, what: str, count: int = 1) -> None:
        """Count something that the format cannot hold, or that was changed."""
        if count:
            self.notes[what] += count


def with_image_endings(split: SourceSplit, target: Target) -> SourceSplit:
    """Return a split whose images have names with the ending of an image.

    Readers of YOLO and Pascal VOC find images in folders by their endings.
    """
    images = []
    for image in split.images:
        name = image.file_name.name
        if not is_image_name(name):
            target.note("images renamed, because their names have no ending of an image")
            image = replace(image, file_name=image.file_name.with_name(name + _ending(image.path)))
        images.append(image)
    return replace(split, images=images)


def _ending(path: Path) -> str:
    """Return the usual ending of an image file of this format."""
    with open_image(path) as image:
        name = str(image.format)
    return _ENDINGS.get(name, f".{name.lower()}")


def with_boxes_inside(image: SourceImage, target: Target) -> SourceImage:
    """Return an image whose boxes lie in it: they are clipped, and those without area left out.

    Readers of YOLO and Pascal VOC refuse other boxes. Training clips and drops the same ones.
    """
    annotations = []
    size = np.array([[image.width, image.height]])
    for annotation in image.annotations:
        x, y, width, height = annotation["bbox"]
        (corners,) = clip_boxes(np.array([[x, y, width, height]], dtype=np.float64), size).tolist()
        x0, y0, x1, y1 = corners
        if x1 <= x0 or y1 <= y0:
            target.note("boxes left out, because they have no area in their image")
            continue
        moved = np.abs(np.array(corners) - (x, y, x + width, y + height)).max()
        if moved > ROUNDING:
            target.note("boxes clipped to their image")
        if moved > 0:
            annotation = annotation | {"bbox": [x0, y0, x1 - x0, y1 - y0]}
        annotations.append(annotation)
    return replace(image, annotations=annotations)


def _link(source: Path, path: Path) -> bool:
    """Link a file and return True, or return False if the file system has no links."""
    for link in (os.link, os.symlink):
        try:
            link(source, path)
        except OSError:
            continue
        return True
    return False


def flat_names(names: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Return a file name without folders for each name; their stems differ, also in small letters.

    A format that has one annotation file for each stem needs this: a/1.jpg and b/1.png become 1.jpg
    and b_1.png.
    """
    result: dict[PurePosixPath, str] = {}
    taken: set[str] = set()
    for name in names:
        candidates = [name.stem, "_".join(name.with_suffix("").parts)]
        stem = next((text for text in candidates if text.casefold() not in taken), "")
        number = 2
        while not stem or stem.casefold() in taken:
            stem, number = f"{candidates[1]}_{number}", number + 1
        taken.add(stem.casefold())
        result[name] = stem + name.suffix
    return result
