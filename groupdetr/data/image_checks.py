"""A look into every picture of a data set: is it there, does it decode, has it its recorded size, is it there twice."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from groupdetr.data.findings import Finding, RefusedError, shown
from groupdetr.data.images import examine
from groupdetr.data.records import CocoSplit, Record


@dataclass(frozen=True, eq=False)
class _Picture:
    split: str
    record: Record

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def name(self) -> str:
        return f"image {shown(self.record.image_id)}"


def inspect_pictures(
    splits: Iterable[CocoSplit], decode: bool = True, workers: int | None = None
) -> list[Finding]:
    """What is wrong with the pictures; without ``decode`` only headers are read, and copies are not looked for.

    Threads suffice: Pillow decodes without holding Python's lock.
    """
    pictures = [_Picture(split.name, record) for split in splits for record in split.records]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        looks = pool.map(lambda picture: _look(picture, decode), pictures)
        findings = _explained([finding for finding in looks if finding])
        digests = _digests(pictures, pool) if decode else {}
    return findings + list(_copies(pictures, digests))


def _look(picture: _Picture, decode: bool) -> Finding | None:
    record = picture.record
    try:
        code = examine(record.path, (record.width, record.height), decode)
    except RefusedError as error:
        return replace(error.finding, record=picture.name)
    what = "its EXIF orientation says that it is to be turned"
    return Finding(code, str(picture.path), picture.name, what) if code else None


# missing files


def _explained(findings: list[Finding]) -> list[Finding]:
    """Where a picture is missing: is it there by a name that some systems take for the same, or one folder up?"""
    names: dict[Path, dict[str, str]] = {}
    for at, finding in enumerate(findings):
        path = Path(finding.file)
        if finding.code != "missing-file":
            continue
        if path.parent not in names:
            names[path.parent] = _names(path.parent)
        if name := names[path.parent].get(_alike(path.name)):
            findings[at] = replace(
                finding, code="file-case", what=f"the file is called {shown(name)}"
            )
        elif os.path.isfile(path.parent.parent / path.name):
            findings[at] = replace(
                finding, what="there is no such picture, but there is one in the folder above"
            )
    return findings


def _names(folder: Path) -> dict[str, str]:
    try:
        return {_alike(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def _alike(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# copies


def _digests(pictures: list[_Picture], pool: ThreadPoolExecutor) -> dict[Path, bytes]:
    """Path -> hash of the content, for the files that could be copies: those of equal size."""
    sizes: dict[int, set[Path]] = defaultdict(set)
    for path in {picture.path for picture in pictures if os.path.isfile(picture.path)}:
        sizes[os.path.getsize(path)].add(path)
    alike = sorted(path for paths in sizes.values() if len(paths) > 1 for path in paths)
    return dict(zip(alike, pool.map(_digest, alike)))


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # reported already, or gone since
        return os.fsencode(path)


def _copies(pictures: list[_Picture], digests: dict[Path, bytes]) -> Iterator[Finding]:
    """Pictures that were there before: in the same split, or in another one."""
    first: dict[bytes | Path, _Picture] = {}
    for picture in pictures:
        other = first.setdefault(digests.get(picture.path, picture.path), picture)
        if other.split != picture.split:
            what = f"it is the same picture as {other.name} of the {other.split} split, {shown(other.record.file_name)}"
            yield Finding("shared-images", str(picture.path), picture.name, what)
        elif other.path != picture.path:
            what = f"it is a copy of {other.name}, {shown(other.record.file_name)}"
            yield Finding("duplicate-images", str(picture.path), picture.name, what)
