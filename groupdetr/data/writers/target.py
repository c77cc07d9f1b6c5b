"""What a dataset is written to: images that are copied or linked, and text files."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from groupdetr.files.writing import explained
from groupdetr.structures.json_object import JsonObject


@dataclass(frozen=True)
class SourceImage:
    """An image of a split with its annotations, as a COCO file has them."""

    path: Path
    file_name: PurePosixPath  # relative to the folder of the images of its split
    width: int  # pixels
    height: int
    entry: JsonObject
    annotations: list[JsonObject]


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
