"""What would break training on a nuScenes version, or mislead it: all of it at once, before the first step.

As `groupdetr.data.check` for pictures with boxes: bad data never raises, whatever is found becomes a finding.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from groupdetr.data.findings import Finding, RefusedError, shown
from groupdetr.data.images import examine
from groupdetr.data.nuscenes.camera_frames import Footage
from groupdetr.data.nuscenes.samples import Sample, samples_of
from groupdetr.data.nuscenes.statistics import SceneReport, count
from groupdetr.data.nuscenes.tables import (
    FIELDS,
    SPLITS_FILE,
    Tables,
    empty_split,
    split_names,
    whole_split,
)

Splits = dict[str, tuple[Sample, ...]]


def check(
    root: Path | str,
    version: str,
    splits: Sequence[str] = (),
    decode: bool = True,
    two_frames: bool | None = None,
) -> SceneReport:
    """Everything that is wrong with a version. ``splits``: those that must be there; else all that are known.

    Without ``decode`` only the headers of the pictures are read: quick, but broken pictures pass. ``two_frames``: is
    an earlier frame looked at, too? Where that is not known, what is wrong with its pictures is a warning.
    """
    root = Path(root)
    read: Splits = {}
    findings = missing_tables(root / version)
    if not findings:
        try:
            tables = Tables(root, version)
            footage = Footage.of(tables)
            read, findings = _read(tables, footage, splits)
            findings += _examined(read, footage, root / version / SPLITS_FILE, decode, two_frames)
        except RefusedError as error:
            findings = [error.finding]
        except (
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # a text for a number, a list for a name
            what = f"a record holds another kind of value than it should ({error})"
            findings = [Finding("bad-table", str(root / version), "", what)]
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    return SceneReport(
        root, errors, warnings, counts={name: count(samples) for name, samples in read.items()}
    )


def missing_tables(folder: Path) -> list[Finding]:
    """One finding for each table that is not there."""
    files = [folder / f"{name}.json" for name in FIELDS]
    return [
        Finding("missing-table", str(file), "", "there is no such table")
        for file in files
        if not file.is_file()
    ]


def _read(tables: Tables, footage: Footage, splits: Sequence[str]) -> tuple[Splits, list[Finding]]:
    """The splits that can be read, and why others cannot; a `RefusedError` where nothing can go on."""
    findings: list[Finding] = []
    read: Splits = {}
    for name in splits or known_splits(tables):
        try:
            read[name] = samples_of(tables, footage, tables.scenes(name))
        except RefusedError as error:
            findings.append(error.finding if splits else _not_here(error.finding))
    if not read and not findings:
        tables.scenes("train")
    return read, [*dict.fromkeys(findings)]  # what is wrong with a table is so in every split


def _examined(
    read: Splits, footage: Footage, file: Path, decode: bool, two_frames: bool | None
) -> list[Finding]:
    """What is wrong with splits that can be read, and with their pictures."""
    whole = whole_split(file.parent.name)  # without annotations
    findings = [
        finding for name in read if name not in whole for finding in remarks(name, read[name], file)
    ]
    findings += _shared(read, file)
    unseen = {name: unseen_scenes(footage, samples) for name, samples in read.items()}
    findings += [finding for name in read for finding in _unseen(name, unseen[name], footage)]
    rest = [[sample for sample in read[name] if sample.scene not in unseen[name]] for name in read]
    return findings + inspect_pictures(footage, rest, decode, two_frames)


def known_splits(tables: Tables) -> tuple[str, ...]:
    """Those of splits.json, or else those all of whose scenes are there."""
    return tuple(split_names(tables.root / tables.version / SPLITS_FILE)) or tables.here()


def _not_here(finding: Finding) -> Finding:
    """The lists of scenes may tell of more than this version has, as the devkit's do: test scenes, or those of mini."""
    code = "split-not-here" if finding.code == "unknown-scene" else finding.code
    return Finding(code, finding.file, finding.record, finding.what)


def remarks(name: str, samples: Sequence[Sample], file: Path) -> Iterator[Finding]:
    """What is odd about a split: empty samples, classes that are not there, objects that are dropped."""
    if not samples:
        yield empty_split(file, name)
        return
    truths = [sample.truth for sample in samples]
    counted = count(samples)
    counts = {
        "sample-without-objects": (
            counted.empty_samples,
            f"of {len(samples)} samples have nothing to learn",
        ),
        "objects-out-of-range": (
            sum(int((~truth.in_range).sum()) for truth in truths),
            "objects are too far away",
        ),
        "objects-without-points": (
            sum(int((truth.points <= 0).sum()) for truth in truths),
            "objects have no point",
        ),
    }
    if not counted.objects:
        what = f"no key frame of split {shown(name)} has an object within range and with a point"
        yield Finding("split-without-objects", str(file), f"split {shown(name)}", what)
    for code, (number, what) in counts.items():
        if number:
            yield Finding(code, str(file), f"split {shown(name)}", f"{number} {what}")
    for kind, number in counted.classes.items():
        if not number:
            what = f"class {kind} has no object"
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
    files = {
        scene: (footage.root / footage.names[row] for row in rows) for scene, rows in views.items()
    }
    return [scene for scene, paths in files.items() if not any(path.exists() for path in paths)]


def _unseen(name: str, scenes: Sequence[str], footage: Footage) -> Iterator[Finding]:
    """Pictures of trainval are ten downloads, each of whole scenes; the tables tell of all of them."""
    if scenes:
        what = f"no picture of {len(scenes)} scenes is here, such as {shown(scenes[0])}"
        yield Finding("scenes-without-pictures", str(footage.root), f"split {shown(name)}", what)


def inspect_pictures(
    footage: Footage,
    splits: Iterable[Sequence[Sample]],
    decode: bool = True,
    two_frames: bool | None = None,
) -> list[Finding]:
    """What is wrong with the pictures that samples look at. ``two_frames`` as in `check`."""
    samples = [sample for split in splits for sample in split]
    now = {row for sample in samples for row in sample.views.tolist()}
    before = {row for sample in samples for row in np.unique(sample.earlier).tolist()} - now
    found = inspect_rows(footage, sorted(now), decode)
    if two_frames is False:
        return found
    earlier = inspect_rows(footage, sorted(before), decode)
    return found + [each if two_frames else _of_earlier_frames(each) for each in earlier]


def _of_earlier_frames(finding: Finding) -> Finding:
    """As a warning: it depends on the detector."""
    return replace(finding, code="earlier-frame")


def inspect_rows(footage: Footage, rows: Sequence[int], decode: bool) -> list[Finding]:
    """What is wrong with the pictures of rows."""

    def look(row: int) -> Finding | None:
        width, height = footage.sizes[row].tolist()
        try:
            examine(footage.root / footage.names[row], (width, height), decode)
        except RefusedError as error:
            return error.finding
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [finding for finding in pool.map(look, rows) if finding]
