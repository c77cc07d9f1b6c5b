"""Datasets of the Hugging Face library ``datasets`` on disk: image folders and Parquet files.

An image folder has a file ``metadata.jsonl`` beside its images, or one in the folder of each split.
All of these may be in a folder ``data``. Each line is an object with ``file_name`` and ``objects``:
``bbox``, as x, y, width and height in pixels, and ``categories`` or ``category``, as numbers or
names. Parquet files have the same columns and the images themselves.
https://huggingface.co/docs/datasets/image_dataset#object-detection
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from groupdetr.data.findings import Finding, Findings, printable, refused
from groupdetr.data.formats import DataFormat, RecordLocation, SplitAnnotations
from groupdetr.data.image_files import is_system_name
from groupdetr.data.readers.extracted_images import ExtractedImages
from groupdetr.data.readers.record_locations import RecordLocations
from groupdetr.data.readers.text_file import read_lines, read_text
from groupdetr.data.split_names import SPLIT_ALIASES, expect_one_folder, split_folders
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

_METADATA = "metadata.jsonl"
_CATEGORY_KEYS = ("categories", "category", "category_id", "labels", "label", "class")
_BOX_KEYS = ("bbox", "bboxes", "box", "boxes")
_OPTIONAL_KEYS = {"area": "area", "iscrowd": "iscrowd", "segmentation": "segmentation"}


def is_huggingface(data: Path) -> bool:
    """Return whether a path is an image folder with metadata.jsonl, or has Parquet files."""
    if data.is_file():
        return data.suffix.lower() == ".parquet"
    return data.is_dir() and bool(_metadata_files(data) or _parquet_files(data))


def read_huggingface(data: Path) -> dict[str, SplitAnnotations]:
    """Read a dataset of the library ``datasets``: train, and val and test if there are any.

    Images in Parquet files are written to the cache folder of groupdetr first. Raises `DataError`
    if the dataset cannot be read at all, and `UsageError` if pyarrow is needed and not installed.
    """
    files = {} if data.is_file() else _metadata_files(data)
    if files:
        for folder in _folders_of_metadata(data):
            expect_one_folder(folder)
    rows_by_split = {
        split: [
            _Row(row, location, file.parent)
            for file in files[split]
            for row, location in _rows(file)
        ]
        for split in files
    }
    names = _names_of_readme(data) if data.is_dir() else []
    sources: dict[str, Path] = {split: paths[0] for split, paths in files.items()}
    if not files:
        for split, paths in _parquet_files(data).items():
            rows_by_split[split], names_of_file = _parquet_rows(data, split, paths)
            names = names or names_of_file
            sources[split] = paths[0]
    classes, is_number = _class_names(rows_by_split, names)
    locations = RecordLocations()
    return {
        split: _to_coco(sources[split], rows, classes, is_number, locations)
        for split, rows in rows_by_split.items()
    }


FORMAT = DataFormat("Hugging Face datasets", is_huggingface, read_huggingface)


@dataclass(frozen=True)
class _Row:
    """One image: the row of its metadata, where it stands, and the folder of the file name."""

    content: JsonObject | str  # text: why the row cannot be read
    location: RecordLocation
    folder: Path


# image folders


def _folders_of_metadata(root: Path) -> tuple[Path, Path]:
    """Return where the metadata files or the folders of the splits may be, the first one first."""
    return root, root / "data"


def _metadata_files(root: Path) -> dict[str, list[Path]]:
    """Return the metadata files of each split. One that is in no folder of a split is of train."""
    for parent in _folders_of_metadata(root):
        files = {}
        for split, folder in split_folders(parent).items():
            if (folder / _METADATA).is_file():
                files[split] = [folder / _METADATA]
        if not files and (parent / _METADATA).is_file():
            files["train"] = [parent / _METADATA]
        if files:
            return files
    return {}


def _rows(file: Path) -> Iterator[tuple[JsonObject | str, RecordLocation]]:
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = "it is not JSON"
        if not isinstance(content, dict | str):
            content = "it is not an object"
        yield content, RecordLocation(str(file), f"line {number}")


def _names_of_readme(root: Path) -> list[str]:
    """Return the names of the classes that the dataset card has, an empty list without any."""
    file = root / "README.md"
    if not file.is_file():
        return []
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", read_text(file), re.DOTALL)
    if not match:
        return []
    try:
        card = yaml.load(match[1], Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return []
    return _names_of_objects(card)


def _names_of_objects(metadata: object) -> list[str]:
    """Return the names of the classes of objects in nested metadata of the library ``datasets``.

    Images may have classes of their own, such as the weather, and so may objects, such as a pose.
    """
    objects = _find_feature(metadata, "objects")
    if objects is None:
        return _find_names(metadata)
    for key in _CATEGORY_KEYS:
        category = _find_feature(objects, key)
        if category is not None:
            return _find_names(category)
    return _find_names(objects)


def _find_feature(value: object, name: str) -> object | None:
    """Return the first feature ``name`` in nested metadata; None without one.

    It has an entry ``name`` in a dataset card, and is the value of this key in a Parquet file.
    """
    if isinstance(value, dict):
        if value.get("name") == name:
            return value
        if isinstance(value.get(name), dict):
            return value[name]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            feature = _find_feature(item, name)
            if feature is not None:
                return feature
    return None


def _find_names(value: object) -> list[str]:
    """Return the first names of a class label in nested metadata of the library ``datasets``."""
    if isinstance(value, dict):
        names = value.get("names")
        if isinstance(names, dict):  # in YAML: "0": cat
            is_numbered = all(str(key).isdecimal() for key in names)
            names = [names[key] for key in sorted(names, key=int)] if is_numbered else None
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            if names := _find_names(item):
                return names
    return []


# Parquet files


def _parquet_files(data: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of each split: train-00000-of-00002.parquet, or train/0.parquet."""
    if data.is_file():
        return {_split_of_name(data) or "train": [data]}
    files: dict[str, list[Path]] = {}
    for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet"):
        for file in sorted(data.glob(pattern)):
            if not is_system_name(file.name):
                split = _split_of_name(file) or _split_of_folder(file, data) or "train"
                files.setdefault(split, []).append(file)
        if files:
            return files
    return files


def _split_of_name(file: Path) -> str:
    return SPLIT_ALIASES.get(re.split(r"[-_.]", file.stem.lower())[0], "")


def _split_of_folder(file: Path, root: Path) -> str:
    for part in file.relative_to(root).parts[:-1]:
        if split := SPLIT_ALIASES.get(part.lower()):
            return split
    return ""


def _parquet_rows(data: Path, split: str, files: Sequence[Path]) -> tuple[list[_Row], list[str]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "pyarrow is needed to read Parquet files",
            str(files[0]),
            "pip install 'groupdetr[parquet]'",
        ) from None
    rows: list[_Row] = []
    names: list[str] = []
    for file in files:
        images = ExtractedImages(file)
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except (OSError, pyarrow.ArrowException) as error:
            first_line = str(error).partition("\n")[0]
            raise refused(
                "unreadable-format", file, f"it is not a Parquet file ({first_line})"
            ) from None
        missing = {"image", "objects"} - set(table.schema_arrow.names)
        if missing:
            columns = ", ".join(map(printable, table.schema_arrow.names[:12]))
            what = f"it has no column {' and no column '.join(sorted(missing))}, but {columns}"
            raise refused("parquet-columns", file, what)
        names = names or _names_of_schema(table.schema_arrow.metadata)
        number = 0
        for batch in table.iter_batches(batch_size=64):
            for content in batch.to_pylist():
                number += 1
                rows.append(_extract(content, images, number, file))
        images.finish()
    return rows, names


def _names_of_schema(metadata: dict[bytes, bytes] | None) -> list[str]:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return []
    return _names_of_objects(features)


def _extract(content: JsonObject, images: ExtractedImages, number: int, file: Path) -> _Row:
    """Write the image of a row to the cache, and return the row with its file name."""
    location = RecordLocation(str(file), f"row {number}")
    image: Any = content.pop("image", None)
    encoded = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(encoded, bytes) or not encoded:
        return _Row("it has no image", location, images.folder)
    name = images.add(number, encoded)
    return _Row(
        {**content, "file_name": name, "width": None, "height": None}, location, images.folder
    )


# COCO annotations


def _objects(content: JsonObject) -> list[JsonObject]:
    """Return the objects of an image, each as a dict of its values."""
    objects = content.get("objects")
    if isinstance(objects, list):
        return [item for item in objects if isinstance(item, dict)]
    if not isinstance(objects, dict):
        return []
    boxes = _first(objects, _BOX_KEYS)
    if not isinstance(boxes, list):
        return []
    items: list[JsonObject] = []
    for index in range(len(boxes)):
        item = {}
        for key, values in objects.items():
            if isinstance(values, list) and index < len(values):
                item[key] = values[index]
        items.append(item)
    return items


def _first(values: JsonObject, keys: Sequence[str]) -> Any:
    for key in keys:
        if key in values:
            return values[key]
    return None


def _class_names(
    rows_by_split: dict[str, list[_Row]], names: list[str]
) -> tuple[dict[int, str], bool]:
    """Return the names of the classes by their numbers, and whether objects have these numbers.

    ``names`` are those that the dataset lists, in their order; [] if it lists none. Without names,
    the classes are the numbers that objects have.
    """
    values = {
        _first(item, _CATEGORY_KEYS)
        for rows in rows_by_split.values()
        for row in rows
        if isinstance(row.content, dict)
        for item in _objects(row.content)
        if isinstance(_first(item, _CATEGORY_KEYS), int | str)
    }
    numbers = {value for value in values if isinstance(value, int)}
    if numbers and len(numbers) == len(values):
        if not names:
            return {number: str(number) for number in sorted(numbers) if number >= 0}, True
        return dict(enumerate(names)), True
    texts = {value for value in values if isinstance(value, str)}
    return dict(enumerate(names if texts <= set(names) else sorted(texts))), False


def _to_coco(
    source: Path,
    rows: list[_Row],
    classes: dict[int, str],
    is_number: bool,
    locations: RecordLocations,
) -> SplitAnnotations:
    findings = Findings(source)
    # Of equal names, the first one counts.
    numbers = {name: number for number, name in reversed(classes.items())}
    images: list[JsonObject] = []
    annotations: list[JsonObject] = []
    folders = [str(row.folder) for row in rows]
    folder = Path(os.path.commonpath(folders)) if folders else source.parent
    for row in rows:
        if isinstance(row.content, str):
            findings.append(
                Finding("metadata-row", row.location.file, row.location.record, row.content)
            )
            continue
        image_id = locations.add_image(row.location)
        file_name = row.content.get("file_name")
        if isinstance(file_name, str):
            file_name = (row.folder.relative_to(folder) / file_name).as_posix()
        image = {key: row.content.get(key) for key in ("width", "height")}
        images.append({"id": image_id, "file_name": file_name, **image})
        if row.content.get("objects") is None:
            what = "it has no 'objects'"
            findings.append(Finding("metadata-row", row.location.file, row.location.record, what))
        for number, item in enumerate(_objects(row.content), 1):
            category = _first(item, _CATEGORY_KEYS)
            if not is_number and isinstance(category, str):
                category = numbers.get(category, category)
            record = f"{row.location.record}, object {number}"
            annotation: JsonObject = {
                "id": locations.add_annotation(RecordLocation(row.location.file, record)),
                "image_id": image_id,
                "category_id": category,
                "bbox": _first(item, _BOX_KEYS),
            }
            for key, name in _OPTIONAL_KEYS.items():
                if item.get(key) is not None:
                    annotation[name] = item[key]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return SplitAnnotations(content, folder, source, tuple(findings), locations)
