"""The tables of a nuScenes version: thirteen JSON lists, read as dicts from token to record.

v1.0-trainval has 2.6 million records of sensor data. Records that no camera detector needs (radar,
lidar between key frames, and their ego poses) are dropped during reading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from groupdetr.data.findings import Finding, RefusedError, printable
from groupdetr.data.nuscenes.names import CAMERAS, LIDAR
from groupdetr.data.nuscenes.splits import official_splits
from groupdetr.data.records import Floats
from groupdetr.structures.json_object import JsonObject

Row = JsonObject  # a record of a table

# The fields that are read of each table's records. Tables are read in this order, because earlier
# ones decide which records of later ones are kept.
FIELDS = {
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


def _is_int64(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


FieldType = tuple[Callable[[object], bool], str]  # a check, and what it accepts, for messages

_INTEGER: FieldType = (_is_int64, "a whole number")
_TEXT: FieldType = (_is_text, "text")
_TOKEN_OR_EMPTY: FieldType = (_is_optional_text, "a token or empty")
# Types of fields. Those in `SHAPES` are arrays, and all others are texts.
FIELD_TYPES: dict[str, FieldType] = {
    "timestamp": _INTEGER,
    "width": _INTEGER,
    "height": _INTEGER,
    "num_lidar_pts": _INTEGER,
    "num_radar_pts": _INTEGER,
    "prev": _TOKEN_OR_EMPTY,
    "next": _TOKEN_OR_EMPTY,
    "attribute_tokens": (_is_list_of_texts, "a list of tokens"),
    "is_key_frame": (_is_bool, "true or false"),
}
SHAPES = {  # shapes of fields that are arrays of numbers; `read_floats` checks them
    "translation": (3,),
    "rotation": (4,),
    "size": (3,),
    "camera_intrinsic": (3, 3),
}


class Table(dict[str, Row]):
    """The records of one table by token. `DataError` if two records have the same token.

    A table of which no field is read is empty.
    """

    def __init__(self, file: Path, rows: Iterable[Row]) -> None:
        super().__init__()
        self.file = file
        for row in rows:
            if self.setdefault(row["token"], row) is not row:
                raise _duplicate(file, row, "token")


def _duplicate(file: Path, row: Row, field: str) -> RefusedError:
    what = f"another record has the same {field}"
    return refusal("duplicate-token", file, f"{field} {printable(row[field])}", what)


class Tables(Mapping[str, Table]):
    """A version of nuScenes on disk: ``tables["sample"][token]`` is a record."""

    def __init__(self, root: Path | str, version: str) -> None:
        """Read ``<root>/<version>/*.json``. `DataError` names a missing table or field."""
        self.root = Path(root)
        self.version = version
        self.tables: dict[str, Table] = {}
        for name, fields in FIELDS.items():
            file = self.file(name)
            rows = read_records(file, fields)
            self.tables[name] = Table(file, self._needed_rows(name, rows) if fields else [])
        name_counts = Counter(row["name"] for row in self["scene"].values())
        for row in self["scene"].values():
            if name_counts[row["name"]] > 1:
                raise _duplicate(self.file("scene"), row, "name")
        # The velocity of an object depends on the position of its neighbours in time, which may be
        # any records of the table. So all positions are checked now.
        annotations = self["sample_annotation"]
        read_floats(annotations, "bad-pose", [*annotations.values()], "translation")

    def file(self, name: str) -> Path:
        """Return the path of a table."""
        return self.root / self.version / f"{name}.json"

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def lookup(self, name: str, token: str, table: str, row: Row) -> Row:
        """Return the record of table ``name`` that ``row`` of ``table`` refers to.

        `DataError` if there is none.
        """
        try:
            return self.tables[name][token]
        except KeyError:
            what = f"it refers to {name} {printable(token)}, which does not exist"
            raise refusal("dangling-token", self.file(table), describe_record(row), what) from None

    def channel(self, row: Row) -> str:
        """Return the name of the sensor that a record of sample_data comes from."""
        calibration = self.lookup(
            "calibrated_sensor", row["calibrated_sensor_token"], "sample_data", row
        )
        sensor_token = calibration["sensor_token"]
        sensor = self.lookup("sensor", sensor_token, "calibrated_sensor", calibration)
        return str(sensor["channel"])

    def _needed_rows(self, name: str, rows: list[Row]) -> list[Row]:
        """Return the records that a camera detector needs."""
        if name == "sample_data":
            key_frame_channels = {*CAMERAS, LIDAR}
            sweep_channels = {*CAMERAS}
            needed = []
            for row in rows:
                channels = key_frame_channels if row["is_key_frame"] else sweep_channels
                if self.channel(row) in channels:
                    needed.append(row)
            return needed
        if name == "ego_pose":
            used = {row["ego_pose_token"] for row in self["sample_data"].values()}
            return [row for row in rows if row["token"] in used]
        return rows

    def scenes(self, split: str) -> set[str]:
        """Return the tokens of a split's scenes.

        `DataError` if the split is unknown or if one of its scenes is not in this version.
        """
        if split in splits_of_all_scenes(self.version):
            return set(self["scene"])
        folder = self.root / self.version
        splits = scenes_by_split(folder)
        if split not in splits:
            available = ", ".join(map(printable, self.available_splits())) or "none"
            what = (
                f"there is no list of the scenes of split {printable(split)}; "
                f"available splits: {available}"
            )
            raise refusal("unknown-split", folder / SPLITS_FILE, "", what)
        names = splits[split]
        tokens = {row["name"]: token for token, row in self["scene"].items()}
        missing = [name for name in names if name not in tokens]
        if missing:
            what = (
                f"split {printable(split)} has {len(missing)} scenes that are not in this version, "
                f"such as {printable(missing[0])}"
            )
            raise refusal("unknown-scene", self.file("scene"), "", what)
        return {tokens[name] for name in names}

    def available_splits(self) -> tuple[str, ...]:
        """Return the names of the splits all of whose scenes are in this version."""
        names = {row["name"] for row in self["scene"].values()}
        splits = list(splits_of_all_scenes(self.version))
        for split, scenes in scenes_by_split(self.root / self.version).items():
            if names.issuperset(scenes):
                splits.append(split)
        return tuple(splits)


def splits_of_all_scenes(version: str) -> tuple[str, ...]:
    """Return the split that consists of all scenes of a version, if it has one.

    It is "test" for a version of the test set, which has no lists of scenes.
    """
    return ("test",) if version.endswith("test") else ()


def scenes_by_split(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the scene names of each split of the version in ``folder``.

    The lists of ``splits.json`` in that folder, ``{"train": ["scene-0001", ...], "val": [...]}``,
    take precedence over the official ones.
    """
    return official_splits(folder.name) | read_splits_file(folder / SPLITS_FILE)


def read_splits_file(file: Path) -> dict[str, tuple[str, ...]]:
    """Return the scene names of each split in ``splits.json``, which may be missing."""
    if not file.exists():
        return {}
    splits = _load_json(file, "bad-splits")
    if not isinstance(splits, dict) or not all(map(_is_list_of_texts, splits.values())):
        raise refusal("bad-splits", file, "", "it is not an object of lists of scene names")
    return {name: tuple(scenes) for name, scenes in splits.items()}


def read_records(file: Path, fields: Iterable[str]) -> list[Row]:
    """Return the records of a table. `DataError` if one lacks one of ``fields``."""
    rows = _load_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise refusal("bad-table", file, "", "it is not a list of records")
    required = {*fields}
    for number, row in enumerate(rows):
        if not required <= row.keys():
            missing = ", ".join(sorted(required - row.keys()))
            raise refusal("missing-field", file, f"record {number}", f"it has no {missing}")
    # Tokens are checked first, because messages about other fields name the record by its token.
    for field in sorted(required - SHAPES.keys(), key=lambda field: field != "token"):
        _check_field(file, rows, field)
    return rows


def _check_field(file: Path, rows: Sequence[Row], field: str) -> None:
    """Raise a `DataError` if a value of a field has the wrong type.

    It checks one field of all records at a time, because there are millions of records.
    """
    is_valid, expected = FIELD_TYPES.get(field, _TEXT)
    for number, row in enumerate(rows):
        if not is_valid(row[field]):
            record = f"record {number}" if field == "token" else describe_record(row)
            what = f"its {field} is {printable(row[field])}, not {expected}"
            raise refusal("bad-table", file, record, what)


def read_floats(table: Table, code: str, rows: Sequence[Row], field: str) -> Floats:
    """Return a field of N records as floats [N,...].

    `DataError` with ``code`` if a value has another shape than `SHAPES` or is not finite.
    """
    values = _to_floats([row[field] for row in rows], field)
    if values is not None:
        return values
    invalid = next(row for row in rows if _to_floats([row[field]], field) is None)
    shape = " x ".join(map(str, SHAPES[field]))
    what = f"its {field} is {printable(invalid[field])}, not {shape} finite numbers"
    raise refusal(code, table.file, describe_record(invalid), what)


def _to_floats(values: Sequence[object], field: str) -> Floats | None:
    """Return values of a field as one array, or None if one of them is invalid."""
    shape = SHAPES[field]
    if not values:
        return np.zeros((0, *shape))
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # values of several lengths, or too large
        return None
    is_numeric = array.dtype.kind in "iuf"
    if not is_numeric or array.shape[1:] != shape or not np.isfinite(array).all():
        return None
    return array.astype(np.float64)


def describe_record(row: Row) -> str:
    """Return how messages name a record."""
    return f"token {printable(row['token'])}"


def _load_json(file: Path, code: str = "bad-table") -> object:
    if not file.is_file():
        raise refusal("missing-table", file, "", "there is no such table")
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise refusal(code, file, "", f"it cannot be read ({error})") from None


def empty_split_finding(file: Path, split: str) -> Finding:
    """Return the finding that a split has no sample."""
    what = "it is empty: its scenes have no key frame"
    return Finding("empty-split", str(file), f"split {printable(split)}", what)


def refusal(code: str, file: Path, record: str, what: str) -> RefusedError:
    """Return the error of a finding about a record of a table, to be raised by the caller."""
    return RefusedError(Finding(code, str(file), record, what))
