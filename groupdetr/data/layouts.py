"""Datasets as they are read: the splits of a training, or one split for an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from groupdetr.data.coco import parse, parse_content
from groupdetr.data.dataset_files import (
    WHOLE,
    find_files,
    find_split_files,
    has_annotation_files,
    unknown_layout,
)
from groupdetr.data.finding_locations import with_locations
from groupdetr.data.findings import Finding, Findings, printable, raise_first_error
from groupdetr.data.fingerprint import fingerprint
from groupdetr.data.formats import DataFormat, SplitAnnotations, detect_format
from groupdetr.data.holdout import split_holdout
from groupdetr.data.json_file import read_object
from groupdetr.data.readers import coloured_masks, huggingface_datasets, pascal_voc, yolo
from groupdetr.data.records import Category, CocoSplit
from groupdetr.errors import UsageError
from groupdetr.structures.json_object import JsonObject

READERS = (
    yolo.FORMAT,
    pascal_voc.FORMAT,
    coloured_masks.FORMAT,
    huggingface_datasets.FORMAT,
    yolo.NESTED_FORMAT,
)
NEED_ANNOTATIONS = ("train", "val")  # splits that a training cannot use without annotations
HOLDOUT = 0.2  # fraction of the train images that becomes val if a dataset has no val split


@dataclass(frozen=True, eq=False)
class DatasetSplits:
    """The splits of a dataset. All have the categories of train, in the same order.

    Without a val split in the dataset, a part of train is ``held_out`` as val.
    """

    root: Path
    splits: dict[str, CocoSplit]
    held_out: bool = False

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.splits["train"].categories

    def metadata(self) -> JsonObject:
        """Return what a run records about its dataset, as JSON."""
        splits = {}
        for name, split in self.splits.items():
            splits[name] = {
                "annotations": str(split.annotation_file),
                "images_dir": str(split.images_dir),
                "images": len(split),
            }
        categories = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"root": str(self.root), "categories": categories, "splits": splits}

    def fingerprint(self) -> JsonObject:
        """Return what identifies the content of train and val."""
        splits = {name: self.splits[name].records for name in ("train", "val")}
        return fingerprint(self.categories, splits)


def load(
    data: Path | str,
    images: Path | str | None = None,
    seed: int = 0,
    masks: bool = False,
    cache: bool = False,
) -> DatasetSplits:
    """Read a dataset. Raises `DataError` for the first problem that would mislead training.

    Images are not decoded. Segmentations are read only with ``masks``. With ``cache``, a large COCO
    file that was read before is read from the cache folder (`annotation_cache.py`). ``seed``
    selects the val images if the dataset has no val split. It is not the seed of a run: runs that
    are compared must share their val images.
    """
    splits, findings = read_with_findings(data, images, seed, masks, cache=cache)
    raise_first_error(findings)
    return splits


def read_with_findings(
    data: Path | str,
    images: Path | str | None = None,
    seed: int = 0,
    masks: bool = False,
    holdout: float | None = HOLDOUT,
    cache: bool = False,
) -> tuple[DatasetSplits, list[Finding]]:
    """Return the valid part of a dataset, and all findings about its annotation files.

    Without a val split, the fraction ``holdout`` of the train images becomes val; None: no val.
    """
    splits: dict[str, CocoSplit] = {}
    findings: list[Finding] = []
    data_format = _format_of(Path(data)) if images is None else None
    if data_format is not None:
        for name, annotations in _read_format(data_format, Path(data), masks).items():
            splits[name], findings_of_file = parse_content(annotations, name, masks)
            findings += findings_of_file
    else:
        for name, files in find_files(data, images).items():
            splits[name], findings_of_file = parse(
                files.annotations, files.images, name, masks, name in NEED_ANNOTATIONS, cache
            )
            findings += findings_of_file
    categories = splits["train"].categories
    if categories:
        for name, split in splits.items():
            conflicts = _category_conflicts(split, categories)
            findings += conflicts
            if not conflicts:
                splits[name] = split.with_categories(categories)
        findings += _leave_out_parents(splits)
    held_out = False
    if "val" not in splits and holdout is not None:
        held_out = True
        splits["train"], splits["val"] = split_holdout(splits["train"], holdout, seed)
    return DatasetSplits(Path(data), splits, held_out), with_locations(findings, splits.values())


def load_split(
    data: Path | str,
    images: Path | str | None = None,
    split: str | None = None,
    masks: bool = False,
    cache: bool = False,
) -> CocoSplit:
    """Read one split with all of its images, for an evaluation. Nothing is held out.

    ``masks`` and ``cache`` as in `load`.

    ``split`` is train, val or test; None: val, or all images of a dataset whose annotation file has
    no name of a split. No other split needs to exist. The categories are those of the split. It
    may have no annotations, as COCO's test-dev.

    `UsageError` if there is no such split. `DataError` for the first problem that would mislead the
    evaluation.
    """
    root = Path(data)
    required = split or "val"
    data_format = _format_of(root) if images is None else None
    if data_format is not None:
        contents = data_format.splits(root, masks)
        if split is None and root.is_file() and len(contents) == 1:
            (required,) = contents  # a file of one split
        _expect_split(required, contents, root)
        result, findings = parse_content(contents[required], required, masks)
    else:
        files = find_split_files(root, images, required)
        if WHOLE in files:
            if split is not None:
                raise UsageError(
                    f"there is no split {split!r}, because the annotations are one file",
                    str(files[WHOLE].annotations),
                    "leave out --split: all images of the file are evaluated",
                )
            files = {"all": files[WHOLE]}
            required = "all"
        _expect_split(required, files, root)
        result, findings = parse(
            files[required].annotations,
            files[required].images,
            required,
            masks,
            needs_annotations=False,
            cache=cache,
        )
    raise_first_error(with_locations(findings, [result]))
    return result


def read_contents(data: Path, images: Path | None = None) -> dict[str, SplitAnnotations]:
    """Return the COCO annotations of each split as recorded, with all keys, masks included.

    They are not checked; `read_with_findings` does that. `DataError` if there are none to read.
    """
    data_format = _format_of(data) if images is None else None
    if data_format is not None:
        if data_format.read_masks is not None:
            return _with_train(data_format.read_masks(data, False), data)
        return _read_format(data_format, data)
    contents = {}
    for name, files in find_files(data, images).items():
        findings = Findings(files.annotations)
        content = read_object(files.annotations, findings)
        raise_first_error(findings)
        contents[name] = SplitAnnotations(content or {}, files.images, files.annotations)
    return contents


def _format_of(data: Path) -> DataFormat | None:
    """Return the format of a dataset; None if it has a layout of COCO, or is unknown.

    A dataset of COCO may have files of other formats beside its annotations.
    """
    registered = detect_format(data)
    if registered is not None or has_annotation_files(data):
        return registered
    try:
        return next((reader for reader in READERS if reader.detect(data)), None)
    except OSError:  # no permission to read a folder
        return None


def _expect_split(split: str, existing: Iterable[str], root: Path) -> None:
    """Raise `UsageError` if a split does not exist."""
    if split not in existing:
        choices = " or ".join(f"--split {name}" for name in existing)
        raise UsageError(f"there is no split {split!r}", str(root), f"choose {choices}")


def _leave_out_parents(splits: dict[str, CocoSplit]) -> Findings:
    """Leave out the categories that are only the parent of others, and that no annotation has.

    Roboflow writes such a category with the id 0. A detector would have a class without objects.
    """
    categories = splits["train"].categories
    findings = Findings(splits["train"].annotation_file)
    used = {category.id for split in splits.values() for category in split.used_categories()}
    left_out: set[int | str] = set()
    num_children = Counter(category.supercategory for category in categories)
    for category in categories:
        # Many files record a class as the parent of itself.
        own = category.supercategory == category.name
        if num_children[category.name] > own and category.id not in used:
            left_out.add(category.id)
            what = f"{printable(category.name)} is only the parent of other classes"
            findings.add("parent-category", f"category {printable(category.id)}", what)
    if left_out:
        for name, split in splits.items():
            remaining = [item for item in split.categories if item.id not in left_out]
            splits[name] = split.with_categories(tuple(remaining))
    return findings


def _read_format(
    data_format: DataFormat, data: Path, masks: bool = False
) -> dict[str, SplitAnnotations]:
    """Return the splits of a dataset in another format than COCO's. 'train' is among them."""
    return _with_train(data_format.splits(data, masks), data)


def _with_train(splits: dict[str, SplitAnnotations], data: Path) -> dict[str, SplitAnnotations]:
    """Return the splits of a dataset. `DataError` if 'train' is not among them."""
    if "train" not in splits:
        what = f"it has a {' and a '.join(splits)} split, but no train split"
        raise unknown_layout(data, what)
    return splits


def _category_conflicts(split: CocoSplit, categories: tuple[Category, ...]) -> Findings:
    """Find categories of a split that contradict those of train.

    A split may lack some of the categories.
    """
    findings = Findings(split.annotation_file)
    names = {category.id: category.name for category in categories}
    for category in split.categories:
        record = f"category {printable(category.id)}"
        name = printable(category.name)
        if category.id not in names:
            what = f"{name} is not a category of the train split"
            findings.add("category-conflict", record, what)
        elif names[category.id] != category.name:
            train_name = printable(names[category.id])
            what = f"it is {name} here and {train_name} in the train split"
            findings.add("category-conflict", record, what)
    return findings
