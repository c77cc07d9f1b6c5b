"""The check of a nuScenes version: everything that would break a training or mislead it.

It corresponds to `groupdetr.data.check`, which is for COCO datasets. Bad data never raises an error
here: every problem becomes a finding, so that all are reported before the first step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from groupdetr.console.text import quantity
from groupdetr.data.findings import Finding, RefusedError, printable
from groupdetr.data.image_decoding import check_image
from groupdetr.data.nuscenes.camera_frames import (
    CameraFrames,
    camera_frame_indices,
    file_name_findings,
)
from groupdetr.data.nuscenes.samples import Sample, read_scene_samples
from groupdetr.data.nuscenes.statistics import SceneCheckReport, count_objects
from groupdetr.data.nuscenes.tables import (
    FIELDS,
    SPLITS_FILE,
    Tables,
    empty_split_finding,
    read_splits_file,
    splits_of_all_scenes,
)
from groupdetr.data.processor_cores import cores
from groupdetr.data.statistics import crowded_findings

Splits = dict[str, tuple[Sample, ...]]


def check(
    root: Path | str,
    version: str,
    splits: Sequence[str] = (),
    decode: bool = True,
    two_frames: bool | None = None,
    num_queries: int | None = None,
) -> SceneCheckReport:
    """Return a report of all problems of a version. ``num_queries`` is that of one group.

    ``splits`` names the splits that must exist; without it, all known splits are checked. Without
    ``decode`` only the headers of images are read, which is quick, but does not find broken images.
    ``two_frames`` is True if the detector also uses an earlier frame, and None if that is not
    known: then problems of the images of earlier frames are warnings.
    """
    root = Path(root)
    folder = root / version
    samples: Splits = {}
    findings = missing_tables(folder)
    if not findings:
        try:
            tables = Tables(root, version)
            names = camera_file_findings(tables)
            if any(finding.is_error for finding in names):
                findings = names
            else:
                camera_frames = CameraFrames.from_tables(tables)
                samples, findings = _read_splits(tables, camera_frames, splits)
                splits_file = folder / SPLITS_FILE
                findings += names
                findings += _check_splits(samples, camera_frames, splits_file, decode, two_frames)
                findings += _crowded_samples(samples, num_queries, splits_file)
        except RefusedError as error:
            findings = [error.finding]
        # A value has an unexpected type, such as a text in the place of a number.
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            what = f"a record holds a value of the wrong type ({error})"
            findings = [Finding("bad-table", str(folder), "", what)]
    errors = [finding for finding in findings if finding.is_error]
    warnings = [finding for finding in findings if not finding.is_error]
    counts = {name: count_objects(split) for name, split in samples.items()}
    return SceneCheckReport(root, errors, warnings, counts=counts)


def missing_tables(folder: Path) -> list[Finding]:
    """Return one finding for each table that does not exist."""
    findings = []
    for name in FIELDS:
        file = folder / f"{name}.json"
        if not file.is_file():
            findings.append(Finding("missing-table", str(file), "", "there is no such table"))
    return findings


def camera_file_findings(tables: Tables) -> list[Finding]:
    """Return the findings about the file names of all camera images of a version."""
    rows = [tables["sample_data"][token] for token in camera_frame_indices(tables)]
    return file_name_findings(tables, rows)


def _read_splits(
    tables: Tables, camera_frames: CameraFrames, splits: Sequence[str]
) -> tuple[Splits, list[Finding]]:
    """Return the splits that can be read, and the findings about the others.

    `RefusedError` if no split is known.
    """
    findings: list[Finding] = []
    samples: Splits = {}
    for name in splits or known_splits(tables):
        try:
            samples[name] = read_scene_samples(tables, camera_frames, tables.scenes(name))
        except RefusedError as error:
            findings.append(error.finding if splits else _as_optional_split(error.finding))
    if not samples and not findings:
        tables.scenes("train")  # raises the error that explains how to list scenes
    # A problem of a table is found again in every split, but it is reported once.
    return samples, list(dict.fromkeys(findings))


def _check_splits(
    splits: Splits,
    camera_frames: CameraFrames,
    splits_file: Path,
    decode: bool,
    two_frames: bool | None,
) -> list[Finding]:
    """Return the findings about the splits that were read, and about their images."""
    without_annotations = splits_of_all_scenes(splits_file.parent.name)
    findings: list[Finding] = []
    for name, samples in splits.items():
        if name not in without_annotations:
            findings += statistics_findings(name, samples, splits_file)
    findings += _shared_samples(splits, splits_file)
    # A scene without any image is reported once, and its images are not checked one by one.
    checked: list[list[Sample]] = []
    for name, samples in splits.items():
        missing = scenes_without_images(camera_frames, samples)
        findings += _missing_scenes_findings(name, missing, camera_frames)
        checked.append([sample for sample in samples if sample.scene not in missing])
    findings += check_images(camera_frames, checked, decode, two_frames)
    if two_frames is False:
        return findings
    file = splits_file.parent / "sample_data.json"
    wrong_times = frame_time_findings(chain.from_iterable(splits.values()), file)
    return findings + (wrong_times if two_frames else as_warnings(wrong_times))


def known_splits(tables: Tables) -> tuple[str, ...]:
    """Return the splits of splits.json. Without that file, return the available splits.

    A split is available if all of its scenes are in this version.
    """
    listed = read_splits_file(tables.root / tables.version / SPLITS_FILE)
    return tuple(listed) or tables.available_splits()


def _as_optional_split(finding: Finding) -> Finding:
    """Turn the error that a scene is unknown into a warning.

    Lists of scenes may name scenes that this version does not have. Those of the devkit also name
    the scenes of the test set and of mini.
    """
    code = "missing-split" if finding.code == "unknown-scene" else finding.code
    return Finding(code, finding.file, finding.record, finding.what)


def statistics_findings(name: str, samples: Sequence[Sample], file: Path) -> Iterator[Finding]:
    """Yield the findings about the objects of a split.

    They are about samples without objects, classes without objects, and objects that are dropped.
    """
    record = f"split {printable(name)}"
    if not samples:
        yield empty_split_finding(file, name)
        return
    counts = count_objects(samples)
    if not counts.objects:
        what = f"no key frame of {record} has an object within range and with a point"
        yield Finding("split-without-objects", str(file), record, what)
    if counts.empty_samples:
        what = f"{counts.empty_samples} of {len(samples)} samples have no object to train on"
        yield Finding("sample-without-objects", str(file), record, what)
    out_of_range = sum(int((~sample.truth.in_range).sum()) for sample in samples)
    if out_of_range:
        yield Finding(
            "objects-out-of-range", str(file), record, f"{out_of_range} objects are too far away"
        )
    without_points = sum(int((sample.truth.points <= 0).sum()) for sample in samples)
    if without_points:
        what = f"{without_points} objects have no point"
        yield Finding("objects-without-points", str(file), record, what)
    for class_name, number in counts.classes.items():
        if not number:
            what = f"class {class_name} has no object"
            yield Finding("class-without-boxes", str(file), record, what)


def _crowded_samples(splits: Splits, num_queries: int | None, file: Path) -> list[Finding]:
    """Return the findings about samples with more objects to train on than a group has queries."""
    findings: list[Finding] = []
    if num_queries is None:
        return findings
    for name, samples in splits.items():
        counts = [int(sample.truth.trainable.sum()) for sample in samples]
        record = f"split {printable(name)}"
        findings += crowded_findings(counts, num_queries, str(file), record, "samples")
    return findings


def _shared_samples(splits: Splits, file: Path) -> list[Finding]:
    """Return the finding that key frames are both in train and in val."""
    train = {sample.token for sample in splits.get("train", ())}
    val = {sample.token for sample in splits.get("val", ())}
    shared = len(train & val)
    if not shared:
        return []
    return [Finding("shared-images", str(file), "", f"{shared} key frames are in train and in val")]


def scenes_without_images(camera_frames: CameraFrames, samples: Iterable[Sample]) -> list[str]:
    """Return the names of scenes of which no image of a key frame exists."""
    indices_by_scene: dict[str, list[int]] = defaultdict(list)
    for sample in samples:
        indices_by_scene[sample.scene] += sample.image_indices.tolist()
    missing = []
    for scene, indices in indices_by_scene.items():
        paths = (camera_frames.root / camera_frames.names[index] for index in indices)
        if not any(path.exists() for path in paths):
            missing.append(scene)
    return missing


def _missing_scenes_findings(
    name: str, scenes: Sequence[str], camera_frames: CameraFrames
) -> list[Finding]:
    """Return the finding that scenes of a split have no images.

    The images of trainval are ten downloads, each of whole scenes. The tables list all scenes.
    """
    if not scenes:
        return []
    what = f"no image of {len(scenes)} scenes exists, such as {printable(scenes[0])}"
    root = str(camera_frames.root)
    return [Finding("scenes-without-images", root, f"split {printable(name)}", what)]


def check_images(
    camera_frames: CameraFrames,
    splits: Iterable[Sequence[Sample]],
    decode: bool = True,
    two_frames: bool | None = None,
) -> list[Finding]:
    """Return the findings about the images of samples. ``two_frames`` as in `check`."""
    key_frames: set[int] = set()
    earlier_frames: set[int] = set()
    for samples in splits:
        for sample in samples:
            key_frames.update(sample.image_indices.tolist())
            earlier_frames.update(np.unique(sample.earlier_indices).tolist())
    findings = check_image_files(camera_frames, sorted(key_frames), decode)
    if two_frames is False:
        return findings
    earlier = check_image_files(camera_frames, sorted(earlier_frames - key_frames), decode)
    return findings + (earlier if two_frames else as_warnings(earlier))


def as_warnings(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings about earlier frames if it is not known whether the detector uses them."""
    return [replace(finding, code="earlier-frame") for finding in findings]


def frame_time_findings(samples: Iterable[Sample], file: Path) -> list[Finding]:
    """Return the finding about earlier frames that are not earlier, by the times of their images.

    The times are those of ``file``, sample_data.json. PETRv2 divides by the time between frames.
    """
    with_earlier_frames = [sample for sample in samples if len(sample.earlier_indices)]
    wrong = []
    for sample in with_earlier_frames:
        times = sample.camera_frames.times
        time_of_frames = times[sample.earlier_indices].mean(1)  # [E]
        if (time_of_frames >= times[sample.image_indices].mean()).any():
            wrong.append(sample.token)
    if not wrong:
        return []
    what = (
        f"{len(wrong)} of {quantity(len(with_earlier_frames), 'sample')} with earlier frames have "
        f"one whose images are not earlier, such as {printable(wrong[0])}"
    )
    return [Finding("frame-times", str(file), "", what)]


def check_image_files(
    camera_frames: CameraFrames, indices: Sequence[int], decode: bool
) -> list[Finding]:
    """Return the findings about the images ``indices``, which are read by several threads."""

    def check_one(index: int) -> Finding | None:
        width, height = camera_frames.sizes[index].tolist()
        try:
            path = camera_frames.root / camera_frames.names[index]
            check_image(path, (width, height), decode)
        except RefusedError as error:
            return error.finding
        return None

    with ThreadPoolExecutor(cores()) as pool:
        return [finding for finding in pool.map(check_one, indices) if finding]
