"""The tables of a nuScenes version: thirteen JSON lists, as dicts from token to record. Read with nothing but json.

`trainval` has 2.6 million records of sensor data. What no camera detector looks at (radar, lidar between key frames,
and their poses) is dropped while reading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupdetr.data.findings import Finding, RefusedError, shown
from groupdetr.data.nuscenes.names import CAMERAS, LIDAR
from groupdetr.data.nuscenes.splits import official
from groupdetr.data.records import Floats

Row = dict[str, Any]

FIELDS = {  # table: what is read of its records; in an order that lets later tables be thinned out by earlier ones
    "log": (),
    "map": (),
    "visibility": (),
    "category": ("token", "name"),
    "attribute": ("token", "name"),
    "instance": ("token", "category_token"),
    "sensor": ("token", "channel"),
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "scene": ("token", "name"),
    "sample": ("token", "timestamp", "scene_token", "prev"),
    "sample_data": (
        "token",
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "is_key_frame",
        "filename",
        "timestamp",
        "prev",
        "width",
        "height",
    ),
    "ego_pose": ("token", "translation", "rotation"),
    "sample_annotation": (
        "token",
        "sample_token",
        "instance_token",
        "attribute_tokens",
        "translation",
        "size",
        "rotation",
        "num_lidar_pts",
        "num_radar_pts",
        "prev",
        "next",
    ),
}
SPLITS_FILE = "splits.json"


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_link(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


Kind = tuple[Callable[[Any], bool], str]

_TEXT: Kind = (_is_text, "text")
KINDS: dict[str, Kind] = {  # what a field holds; all others are texts, but for SHAPES
    **dict.fromkeys(
        ("timestamp", "width", "height", "num_lidar_pts", "num_radar_pts"),
        (_is_whole, "a whole number"),
    ),
    **dict.fromkeys(("prev", "next"), (_is_link, "a token or empty")),
    "attribute_tokens": (_is_texts, "a list of tokens"),
    "is_key_frame": (_is_bool, "true or false"),
}
SHAPES = {
    "translation": (3,),
    "rotation": (4,),
    "size": (3,),
    "camera_intrinsic": (3, 3),
}  # of numbers, see `numbers`


class Table(dict[str, Row]):
    """The records of one table by token, which is a `DataError` if two have it. None of a table that is not read."""

    def __init__(self, file: Path, rows: Iterable[Row]) -> None:
        super().__init__()
        self.file = file
        for row in rows:
            if self.setdefault(row["token"], row) is not row:
                raise _twin(file, row, "token")


def _twin(file: Path, row: Row, field: str) -> RefusedError:
    return refused(
        "duplicate-token",
        file,
        f"{field} {shown(row[field])}",
        f"another record has the same {field}",
    )


class Tables(Mapping[str, Table]):
    """A version of nuScenes on disk: ``tables["sample"][token]`` is a record."""

    def __init__(self, root: Path | str, version: str) -> None:
        """Reads ``<root>/<version>/*.json``; a `DataError` says which table or field is missing."""
        self.root, self.version = Path(root), version
        self.tables: dict[str, Table] = {}
        for name in FIELDS:
            file = self.file(name)
            rows = records(file, FIELDS[name])
            self.tables[name] = Table(file, self._seen(name, rows) if FIELDS[name] else [])
        names = Counter(row["name"] for row in self["scene"].values())
        if twins := [row for row in self["scene"].values() if names[row["name"]] > 1]:
            raise _twin(self.file("scene"), twins[0], "name")
        annotations = self["sample_annotation"]
        numbers(
            annotations, "bad-pose", [*annotations.values()], "translation"
        )  # velocities look at any of them

    def file(self, name: str) -> Path:
        """Where a table lies."""
        return self.root / self.version / f"{name}.json"

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def find(self, name: str, token: str, table: str, row: Row) -> Row:
        """The record of table ``name`` that ``row`` of ``table`` refers to. A `DataError` where there is none."""
        try:
            return self.tables[name][token]
        except KeyError:
            what = f"it refers to {name} {shown(token)}, which is not there"
            raise refused("dangling-token", self.file(table), record_of(row), what) from None

    def channel(self, data: Row) -> str:
        """The sensor that a record of sample_data comes from."""
        calibration = self.find(
            "calibrated_sensor", data["calibrated_sensor_token"], "sample_data", data
        )
        sensor = self.find("sensor", calibration["sensor_token"], "calibrated_sensor", calibration)
        return str(sensor["channel"])

    def _seen(self, name: str, rows: list[Row]) -> list[Row]:
        """The rows that a camera detector looks at."""
        if name == "sample_data":
            wanted = {*CAMERAS}, {*CAMERAS, LIDAR}
            return [row for row in rows if self.channel(row) in wanted[bool(row["is_key_frame"])]]
        if name == "ego_pose":
            used = {data["ego_pose_token"] for data in self["sample_data"].values()}
            return [row for row in rows if row["token"] in used]
        return rows

    def scenes(self, split: str) -> set[str]:
        """The tokens of a split's scenes. A `DataError` if the split is unknown or a scene of it is not there."""
        if split in whole_split(self.version):
            return set(self["scene"])
        lists = scene_names(self.root / self.version)
        if split not in lists:
            known = ", ".join(map(shown, self.here())) or "none"
            what = f"there is no list of the scenes of split {shown(split)}; those that are here: {known}"
            raise refused("unknown-split", self.root / self.version / SPLITS_FILE, "", what)
        names = lists[split]
        tokens = {row["name"]: token for token, row in self["scene"].items()}
        if missing := [name for name in names if name not in tokens]:
            what = f"split {shown(split)} has {len(missing)} scenes that are not there, such as {shown(missing[0])}"
            raise refused("unknown-scene", self.file("scene"), "", what)
        return {tokens[name] for name in names}

    def here(self) -> tuple[str, ...]:
        """The names of the splits all of whose scenes are there."""
        names = {row["name"] for row in self["scene"].values()}
        lists = scene_names(self.root / self.version)
        return (
            *whole_split(self.version),
            *(split for split, scenes in lists.items() if names.issuperset(scenes)),
        )


def whole_split(version: str) -> tuple[str, ...]:
    """The split that a version is as a whole, as that of the test scenes is; of others there is none."""
    return ("test",) if version.endswith("test") else ()


def scene_names(folder: Path) -> dict[str, tuple[str, ...]]:
    """The names of each split's scenes: those of ``splits.json`` in the folder of a version, ``{"train": ["scene-0001",
    ...], "val": [...]}``, or else the official ones."""
    return official(folder.name) | split_names(folder / SPLITS_FILE)


def split_names(file: Path) -> dict[str, tuple[str, ...]]:
    """All splits of ``splits.json``; none where there is no such file."""
    if not file.exists():
        return {}
    splits = _loaded(file, "bad-splits")
    if not isinstance(splits, dict) or not all(map(_is_names, splits.values())):
        raise refused("bad-splits", file, "", "it is not an object of lists of scene names")
    return {name: tuple(scenes) for name, scenes in splits.items()}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def records(file: Path, fields: Iterable[str]) -> list[Row]:
    """The records of a table, each with all of ``fields``."""
    rows = _loaded(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise refused("bad-table", file, "", "it is not a list of records")
    wanted = {*fields}
    for number, row in enumerate(rows):
        if not wanted <= row.keys():
            missing = ", ".join(sorted(wanted - row.keys()))
            raise refused("missing-field", file, f"record {number}", f"it has no {missing}")
    for field in sorted(wanted - SHAPES.keys(), key="token".__ne__):  # by token the others are told
        _require_kind(file, rows, field)
    return rows


def _require_kind(file: Path, rows: Sequence[Row], field: str) -> None:
    """A column at a time, as there are millions of rows."""
    fits, kind = KINDS.get(field, _TEXT)
    for number, row in enumerate(rows):
        if not fits(row[field]):
            record = f"record {number}" if field == "token" else record_of(row)
            raise refused(
                "bad-table", file, record, f"its {field} is {shown(row[field])}, not {kind}"
            )


def numbers(table: Table, code: str, rows: Sequence[Row], field: str) -> Floats:
    """A field of N records as floats [N,...], in the shape that it has to have and all finite."""
    floats = _floats([row[field] for row in rows], field)
    if floats is None:
        row = next(row for row in rows if _floats([row[field]], field) is None)
        shape = " x ".join(map(str, SHAPES[field]))
        what = f"its {field} is {shown(row[field])}, not {shape} finite numbers"
        raise refused(code, table.file, record_of(row), what)
    return floats


def _floats(values: Sequence[Any], field: str) -> Floats | None:
    if not values:
        return np.zeros((0, *SHAPES[field]))
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # of several lengths
        return None
    fits = (
        array.dtype.kind in "iuf" and array.shape[1:] == SHAPES[field] and np.isfinite(array).all()
    )
    return array.astype(np.float64) if fits else None


def record_of(row: Row) -> str:
    """How a record is told."""
    return f"token {shown(row['token'])}"


def _loaded(file: Path, code: str = "bad-table") -> Any:
    if not file.is_file():
        raise refused("missing-table", file, "", "there is no such table")
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise refused(code, file, "", f"it cannot be read ({error})") from None


def empty_split(file: Path, split: str) -> Finding:
    return Finding(
        "empty-split",
        str(file),
        f"split {shown(split)}",
        "it is empty: its scenes have no key frame",
    )


def refused(code: str, file: Path, record: str, what: str) -> RefusedError:
    """What is wrong with a record of a table, as an error."""
    return RefusedError(Finding(code, str(file), record, what))
