"""What was read of a large COCO file, kept in the cache folder for the next start.

Reading COCO's train annotations takes seconds and a gigabyte of working memory, in every process of
a training. Their packed columns are read from the cache in a fraction of that, and all processes of
a machine map the same memory. The folder is in huggingface-hub's cache for other libraries, below
``HF_HOME``; nothing is written beside the data.

An entry is used only if the annotation file has the same path, size, time and content (BLAKE2), and
if the columns have the digest that they were written with. Whatever else is found in the folder
counts as no entry, and so does a folder that cannot be written: the file is read then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from groupdetr.data.findings import Finding, Findings
from groupdetr.data.image_decoding import max_pixels
from groupdetr.data.packed_segmentations import PackedSegmentations
from groupdetr.data.plain_coco import may_have_links
from groupdetr.data.records import Category, CocoSplit, PackedRecords, PackedTexts, RecordTable
from groupdetr.structures.json_object import JsonObject
from groupdetr.version import __version__

MIN_BYTES = 1 << 24  # of an annotation file; a smaller one is read in a fraction of a second
FORMAT = 1  # of an entry; raise it when columns or the rules for findings change
_META = "content.json"
_EMPTY = 128  # bytes of a file of numpy that holds no element; such a file cannot be mapped
Parsed = tuple[CocoSplit, Findings]
Arrays = dict[str, NDArray[np.generic]]


def cached(
    annotation_file: Path, images_dir: Path, name: str, masks: bool, read: Callable[[], Parsed]
) -> Parsed:
    """Return what ``read`` returns for an annotation file, from the cache if it is there.

    One process of a machine reads a file; others that start at the same time wait for its entry.
    ``masks`` tells whether segmentations are read.
    """
    try:
        is_large = annotation_file.stat().st_size >= MIN_BYTES
        entry = _Entry(annotation_file, images_dir, masks) if is_large else None
    except (OSError, ValueError):  # there is no such file, or no folder for the cache
        entry = None
    if entry is None:
        return read()
    with _locked(entry.folder):
        loaded = entry.load(name)
        if loaded is not None:
            return loaded
        result = read()
        if entry.store(*result):
            # Mapped from the files as in the other processes.
            return entry.load(name) or result
        return result


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time read and write an entry, where the file system has locks."""
    lock = FileLock(folder / "lock")
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Entry:
    """The entry of an annotation file in the cache folder."""

    def __init__(self, annotation_file: Path, images_dir: Path, masks: bool) -> None:
        self.file = annotation_file
        self.images_dir = images_dir
        status = annotation_file.stat()
        key = f"{annotation_file.resolve()}\0{os.path.abspath(images_dir)}\0{masks}"
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:20]
        # Imported here: it takes a second, and small files do not need it.
        from huggingface_hub import cached_assets_path, constants

        self.folder = cached_assets_path(
            "groupdetr",
            namespace="annotations",
            subfolder=f"{annotation_file.stem[:40]}-{digest}",
            assets_dir=constants.HF_ASSETS_CACHE,
        )
        state = f"{status.st_size}-{status.st_mtime_ns}-{__version__}-{FORMAT}"
        self.columns = self.folder / state

    def load(self, name: str) -> Parsed | None:
        """Return the content of the entry, None if there is none for the file as it is now."""
        try:
            meta = json.loads((self.columns / _META).read_text(encoding="utf-8"))
            if meta["file"] != _digest_of_file(self.file):
                return None
            arrays = {key: _mapped(self.columns / f"{key}.npy") for key in meta["columns"]}
            if meta["arrays"] != _digest_of_arrays(arrays):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        table = _table(arrays, self.images_dir)
        # What depends on more than the annotation file is checked again.
        if may_have_links(self.images_dir) or (table.sizes.prod(axis=1) > max_pixels()).any():
            return None
        findings = Findings(self.file)
        findings += [Finding(code, str(self.file), *rest) for code, *rest in meta["findings"]]
        categories = tuple(Category(*values) for values in meta["categories"])
        records = PackedRecords(table, np.arange(len(table.sizes)))
        return CocoSplit(name, self.file, self.images_dir, categories, records), findings

    def store(self, split: CocoSplit, findings: Findings) -> bool:
        """Write an entry, and return whether that was possible.

        Only a file whose findings depend on nothing else is stored: all images are files in one
        folder that has no links.
        """
        records = split.records
        if not isinstance(records, PackedRecords) or may_have_links(self.images_dir):
            return False
        arrays = _arrays(records.table)
        if arrays is None or any(finding.is_error for finding in findings):
            return False
        meta = {
            "file": _digest_of_file(self.file),
            "columns": list(arrays),
            "arrays": _digest_of_arrays(arrays),
            "categories": [[item.id, item.name, item.supercategory] for item in split.categories],
            "findings": [[item.code, item.record, item.what] for item in findings],
        }
        draft = self.folder / f".{os.getpid()}.part"
        try:
            draft.mkdir()
            for key, array in arrays.items():
                np.save(draft / f"{key}.npy", array)
            (draft / _META).write_text(json.dumps(meta), encoding="utf-8")
            self._remove_others(draft)
            draft.replace(self.columns)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            return False
        return True

    def _remove_others(self, draft: Path) -> None:
        """Remove entries of earlier states of the file, and drafts of processes that ended."""
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder != draft:
                shutil.rmtree(folder, ignore_errors=True)


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).hexdigest()


def _digest_of_arrays(arrays: Arrays) -> str:
    digest = hashlib.blake2b()
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()


def _mapped(path: Path) -> NDArray[np.generic]:
    """Return an array that is mapped from a file. `ValueError` if the file is damaged."""
    if path.stat().st_size <= _EMPTY:
        return np.load(path, allow_pickle=False)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    # A plain array of the same memory: slices of numpy's class for mapped files are slow.
    return np.asarray(mapped).view(np.ndarray)


def _arrays(table: RecordTable) -> Arrays | None:
    """Return the columns of a table by name; None if ids are no numbers, or paths are no names."""
    if table.paths is not None or np.object_ in (table.image_ids.dtype, table.annotation_ids.dtype):
        return None
    arrays: Arrays = {
        "image_ids": table.image_ids,
        "file_name_ends": table.file_names.ends,
        "file_names": table.file_names.content,
        "sizes": table.sizes,
        "annotation_ends": table.annotation_ends,
        "boxes": table.boxes,
        "labels": table.labels,
        "areas": table.areas,
        "crowd": table.crowd,
        "annotation_ids": table.annotation_ids,
    }
    if table.segmentations is not None:
        for key, array in vars(table.segmentations).items():
            arrays[f"segmentations_{key}"] = array
    return arrays


def _table(arrays: JsonObject, folder: Path) -> RecordTable:
    """Return the table that `_arrays` has taken apart."""
    columns = dict(arrays)
    prefix = "segmentations_"
    packed = {key.removeprefix(prefix): columns.pop(key) for key in arrays if prefix in key}
    columns["file_names"] = PackedTexts(columns.pop("file_name_ends"), columns["file_names"])
    segmentations = PackedSegmentations(**packed) if packed else None
    return RecordTable(folder=folder, paths=None, segmentations=segmentations, **columns)
