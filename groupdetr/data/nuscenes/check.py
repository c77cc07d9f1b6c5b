"""What would break training on a nuScenes version, or mislead it: all of it at once, before the first step.

As `groupdetr.data.check` for pictures with boxes: bad data never raises, whatever is found becomes a finding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from groupdetr.data.check import Report
from groupdetr.data.findings import Finding, RefusedError, shown
from groupdetr.data.images import examine
from groupdetr.data.nuscenes.footage import Footage
from groupdetr.data.nuscenes.names import CLASSES
from groupdetr.data.nuscenes.samples import Sample, samples_of
from groupdetr.data.nuscenes.splits import official
from groupdetr.data.nuscenes.tables import FIELDS, SPLITS_FILE, Tables, split_names

Splits = dict[str, tuple[Sample, ...]]


def check(root: Path | str, version: str, splits: Sequence[str] = (), decode: bool = True) -> Report:
    """Everything that is wrong with a version. ``splits``: those that must be there; else all that are known.

    Without ``decode`` only the headers of the pictures are read: quick, but broken pictures pass.
    """
    root = Path(root)
    findings = missing_tables(root / version)
    if not findings:
        try:
            findings = _examined(root, version, splits, decode)
        except RefusedError as error:
            findings = [error.finding]
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a text for a number, a list for a name
            what = f"a record holds another kind of value than it should ({error})"
            findings = [Finding("bad-table", str(root / version), "", what)]
    errors = [finding for finding in findings if finding.is_error]
    return Report(root, errors, [finding for finding in findings if not finding.is_error])


def missing_tables(folder: Path) -> list[Finding]:
    """One finding for each table that is not there."""
    files = [folder / f"{name}.json" for name in FIELDS]
    return [Finding("missing-table", str(file), "", "there is no such table") for file in files if not file.is_file()]


def _examined(root: Path, version: str, splits: Sequence[str], decode: bool) -> list[Finding]:
    """A `RefusedError` where nothing can go on."""
    tables = Tables(root, version)
    footage, file = Footage.of(tables), root / version / SPLITS_FILE
    findings: list[Finding] = []
    read: Splits = {}
    for name in splits or known_splits(tables, file):
        try:
            read[name] = samples_of(tables, footage, tables.scenes(name))
        except RefusedError as error:
            findings.append(error.finding if splits else _not_here(error.finding))
    if not read and not findings:
        tables.scenes("train")
    findings += [finding for name, samples in read.items() for finding in remarks(name, samples, file)]
    findings += _shared(read, file)
    unseen = {name: unseen_scenes(footage, samples) for name, samples in read.items()}
    findings += [finding for name in read for finding in _unseen(name, unseen[name], footage)]
    rest = [[sample for sample in read[name] if sample.scene not in unseen[name]] for name in read]
    return findings + inspect_pictures(footage, rest, decode)


def known_splits(tables: Tables, file: Path) -> tuple[str, ...]:
    """Those of splits.json, or else the official ones all of whose scenes are there."""
    here = {row["name"] for row in tables["scene"].values()}
    splits = official(tables.version).items()
    return tuple(split_names(file)) or tuple(name for name, scenes in splits if here.issuperset(scenes))


def _not_here(finding: Finding) -> Finding:
    """The lists of scenes may tell of more than this version has, as the devkit's do: test scenes, or those of mini."""
    code = "split-not-here" if finding.code == "unknown-scene" else finding.code
    return Finding(code, finding.file, finding.record, finding.what)


def remarks(name: str, samples: Sequence[Sample], file: Path) -> Iterator[Finding]:
    """What is odd about a split: empty samples, classes that are not there, objects that are dropped."""
    truths = [sample.truth for sample in samples]
    empty = sum(not truth.learned.any() for truth in truths)
    learned = np.concatenate([truth.labels[truth.learned] for truth in truths] or [np.empty(0, dtype=np.int64)])
    counts = {
        "sample-without-objects": (empty, f"of {len(samples)} samples have nothing to learn"),
        "objects-out-of-range": (sum(int((~truth.in_range).sum()) for truth in truths), "objects are too far away"),
        "objects-without-points": (sum(int((truth.points <= 0).sum()) for truth in truths), "objects have no point"),
    }
    if not len(learned):
        yield Finding("no-training-boxes", str(file), f"split {shown(name)}", "it has no object to learn")
    for code, (number, what) in counts.items():
        if number:
            yield Finding(code, str(file), f"split {shown(name)}", f"{number} {what}")
    for label in sorted({*range(len(CLASSES))} - {*learned.tolist()}):
        what = f"class {CLASSES[label]} has no object"
        yield Finding("class-without-boxes", str(file), f"split {shown(name)}", what)


def _shared(read: Splits, file: Path) -> list[Finding]:
    """Key frames of training that are evaluated on, too."""
    ours = {sample.token for sample in read.get("train", ())}
    shared = len(ours & {sample.token for sample in read.get("val", ())})
    what = f"{shared} key frames are in train and in val"
    return [Finding("shared-images", str(file), "", what)] if shared else []


def unseen_scenes(footage: Footage, samples: Iterable[Sample]) -> list[str]:
    """The names of scenes none of whose key frames' pictures is there."""
    views: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        views[sample.scene] += sample.views.tolist()
    files = {scene: (footage.root / footage.names[row] for row in rows) for scene, rows in views.items()}
    return [scene for scene, paths in files.items() if not any(path.exists() for path in paths)]


def _unseen(name: str, scenes: Sequence[str], footage: Footage) -> Iterator[Finding]:
    """Pictures of trainval are ten downloads, each of whole scenes; the tables tell of all of them."""
    if scenes:
        what = f"no picture of {len(scenes)} scenes is here, such as {shown(scenes[0])}"
        yield Finding("scenes-without-pictures", str(footage.root), f"split {shown(name)}", what)


def inspect_pictures(footage: Footage, splits: Iterable[Sequence[Sample]], decode: bool = True) -> list[Finding]:
    """What is wrong with the pictures that samples look at, those of earlier frames included."""
    seen = [rows for samples in splits for sample in samples for rows in (sample.views, sample.earlier.ravel())]
    rows = np.unique(np.concatenate(seen)).tolist() if seen else []

    def look(row: int) -> Finding | None:
        width, height = footage.sizes[row].tolist()
        try:
            examine(footage.root / footage.names[row], (width, height), decode)
        except RefusedError as error:
            return error.finding
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [finding for finding in pool.map(look, rows) if finding]
