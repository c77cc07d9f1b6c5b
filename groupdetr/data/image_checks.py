"""Checks of the image files of a dataset: missing, broken, of another size, or duplicate."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from groupdetr.data.findings import Finding, RefusedError, printable
from groupdetr.data.image_decoding import check_image
from groupdetr.data.records import CocoSplit, Record


@dataclass(frozen=True, eq=False)
class _ImageFile:
    split: str
    record: Record

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def name(self) -> str:
        return f"image {printable(self.record.image_id)}"


def inspect_images(
    splits: Iterable[CocoSplit], decode: bool = True, workers: int | None = None
) -> list[Finding]:
    """Return all findings about the image files.

    Without ``decode``, only the headers are read, and duplicates are not searched for. Several
    threads read the images, because Pillow releases Python's global lock while it decodes.
    """
    images = [_ImageFile(split.name, record) for split in splits for record in split.records]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda image: _check(image, decode), images)
        findings = [finding for finding in results if finding]
        findings = _explain_missing_files(findings)
        digests = _digests(images, pool) if decode else {}
    return findings + list(_duplicates(images, digests))


def _check(image: _ImageFile, decode: bool) -> Finding | None:
    record = image.record
    try:
        code = check_image(record.path, (record.width, record.height), decode)
    except RefusedError as error:
        return replace(error.finding, record=image.name)
    if not code:
        return None
    what = "its EXIF orientation rotates or mirrors it"
    return Finding(code, str(image.path), image.name, what)


# missing files


def _explain_missing_files(findings: list[Finding]) -> list[Finding]:
    """Return the findings; those of missing files name a file with nearly the same name.

    The name may differ in a way that some file systems ignore, or the file may be in the folder
    above.
    """
    names_by_folder: dict[Path, dict[str, str]] = {}
    explained = []
    for finding in findings:
        if finding.code == "missing-file":
            path = Path(finding.file)
            folder = path.parent
            if folder not in names_by_folder:
                names_by_folder[folder] = _names_by_key(folder)
            similar_name = names_by_folder[folder].get(_name_key(path.name))
            if similar_name:
                what = f"the file is called {printable(similar_name)}"
                finding = replace(finding, code="file-case", what=what)
            elif os.path.isfile(folder.parent / path.name):
                what = "there is no such image, but there is one in the folder above"
                finding = replace(finding, what=what)
        explained.append(finding)
    return explained


def _names_by_key(folder: Path) -> dict[str, str]:
    try:
        return {_name_key(name): name for name in os.listdir(folder)}
    except OSError:
        return {}


def _name_key(name: str) -> str:
    """Return a text that is equal for names that differ in case or in the encoding of accents."""
    return unicodedata.normalize("NFC", name).casefold()


# duplicate files


def _digests(images: list[_ImageFile], pool: ThreadPoolExecutor) -> dict[Path, bytes]:
    """Return a hash of the content for each file that can be a duplicate.

    Only files of equal size can be duplicates.
    """
    paths_by_size: dict[int, set[Path]] = defaultdict(set)
    for path in {image.path for image in images if os.path.isfile(image.path)}:
        paths_by_size[os.path.getsize(path)].add(path)
    candidates: list[Path] = []
    for paths in paths_by_size.values():
        if len(paths) > 1:
            candidates += paths
    candidates.sort()
    return dict(zip(candidates, pool.map(_digest, candidates)))


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # reported already, or deleted since
        return os.fsencode(path)


def _duplicates(images: list[_ImageFile], digests: dict[Path, bytes]) -> Iterator[Finding]:
    """Find images that occurred before, in the same split or in another one."""
    first_by_content: dict[bytes | Path, _ImageFile] = {}
    for image in images:
        content = digests.get(image.path, image.path)
        first = first_by_content.setdefault(content, image)
        first_file = printable(first.record.file_name)
        if first.split != image.split:
            what = f"it is the same image as {first.name} of the {first.split} split, {first_file}"
            yield Finding("shared-images", str(image.path), image.name, what)
        elif first.path != image.path:
            what = f"it is a copy of {first.name}, {first_file}"
            yield Finding("duplicate-images", str(image.path), image.name, what)
