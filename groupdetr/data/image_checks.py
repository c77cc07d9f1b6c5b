"""Checks of the image files of a dataset: missing, broken, of another size, or duplicate."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from groupdetr.data.checked_images import MIN_IMAGES, CheckedImages, FileState, SoundImage
from groupdetr.data.findings import Finding, RefusedError, printable
from groupdetr.data.image_decoding import check_image
from groupdetr.data.processor_cores import cores
from groupdetr.data.records import CocoSplit, Record

OnProgress = Callable[[int, int], None]  # images done, images in all
_CHUNK = 32  # images that a thread checks at a time


@dataclass(frozen=True, eq=False)
class _ImageFile:
    split: str
    record: Record

    @property
    def path(self) -> Path:
        return self.record.path

    @property
    def size(self) -> tuple[int, int]:
        return self.record.width, self.record.height

    @property
    def name(self) -> str:
        return f"image {printable(self.record.image_id)}"


def inspect_images(
    splits: Iterable[CocoSplit],
    decode: bool = True,
    workers: int | None = None,
    cache: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Finding]:
    """Return all findings about the image files.

    Without ``decode``, only the headers are read, and duplicates are not searched for. Several
    threads read the images, one for each processor core by default, because Pillow releases
    Python's global lock while it decodes. With ``cache``, image files of a large dataset that have
    not changed since an earlier check are not read again (`checked_images.py`).
    """
    splits = list(splits)
    images = [_ImageFile(split.name, record) for split in splits for record in split.records]
    is_cached = cache and len(images) >= MIN_IMAGES
    checked = CheckedImages(split.images_dir for split in splits) if is_cached else CheckedImages()
    results: list[_Result] = []
    with ThreadPoolExecutor(workers or cores()) as pool:
        chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
        for of_chunk in pool.map(lambda chunk: _check_chunk(chunk, decode, checked), chunks):
            results += of_chunk
            if on_progress is not None:
                on_progress(len(results), len(images))
        findings = _explain_missing_files([result.finding for result in results if result.finding])
        digests = _digests(images, results, checked, pool) if decode else {}
    checked.save()
    return findings + list(_duplicates(images, digests))


@dataclass(frozen=True)
class _Result:
    file: FileState | None  # None if there is no such file
    finding: Finding | None


def _check_chunk(
    images: Sequence[_ImageFile], decode: bool, checked: CheckedImages
) -> list[_Result]:
    return [_check(image, decode, checked) for image in images]


def _check(image: _ImageFile, decode: bool, checked: CheckedImages) -> _Result:
    file = FileState.from_path(image.path)  # before the image is read: it may change later
    known = checked.find(image.path, file)
    if known is not None and known.size == image.size and (known.is_decoded or not decode):
        code = known.code
    else:
        try:
            code = check_image(image.path, image.size, decode)
        except RefusedError as error:
            return _Result(file, replace(error.finding, record=image.name))
        if file is not None:
            checked.add(image.path, SoundImage(file, image.size, decode, code))
    if code == "exif-ambiguous" and image.record.upright:
        code = "exif-rotated"  # The format tells what the size does not.
    if not code:
        return _Result(file, None)
    what = "its EXIF orientation rotates or mirrors it"
    return _Result(file, Finding(code, str(image.path), image.name, what))


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


def _digests(
    images: Sequence[_ImageFile],
    results: Sequence[_Result],
    checked: CheckedImages,
    pool: ThreadPoolExecutor,
) -> dict[Path, str]:
    """Return a hash of the content for each file that can be a duplicate.

    Only files of equal size can be duplicates.
    """
    files = {image.path: result.file for image, result in zip(images, results) if result.file}
    paths_by_size: dict[int, list[Path]] = defaultdict(list)
    for path, file in files.items():
        paths_by_size[file.num_bytes].append(path)
    candidates = [paths for paths in paths_by_size.values() if len(paths) > 1]
    digests: dict[Path, str] = {}
    unknown: list[Path] = []
    for path in chain(*candidates):
        known = checked.find(path, files[path])
        if known is not None and known.digest:
            digests[path] = known.digest
        else:
            unknown.append(path)
    for path, digest in zip(unknown, pool.map(_digest, unknown)):
        if digest:
            digests[path] = digest
            known = checked.find(path, files[path])
            if known is not None:
                checked.add(path, replace(known, digest=digest))
    return digests


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # reported already, or deleted since
        return ""


def _duplicates(images: list[_ImageFile], digests: dict[Path, str]) -> Iterator[Finding]:
    """Find images that occurred before, in the same split or in another one."""
    first_by_content: dict[str | Path, _ImageFile] = {}
    for image in images:
        content = digests.get(image.path, image.path)
        first = first_by_content.setdefault(content, image)
        first_file = printable(first.record.file_name)
        if first.split != image.split:
            what = f"it is the same image as {first_file} of the {first.split} split"
            yield Finding("shared-images", str(image.path), image.name, what)
        elif first.path != image.path:
            what = f"it is a copy of {first_file}"
            yield Finding("duplicate-images", str(image.path), image.name, what)
