"""The boxes of nuScenes in the lidar frame of their sample, and which of them are learned (PETR's rules)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.camera_frames import located
from groupdetr.data.nuscenes.geometry import inverse, poses, yaw
from groupdetr.data.nuscenes.names import BICYCLE_RACK, CATEGORIES, CLASSES
from groupdetr.data.nuscenes.tables import Row, Tables, numbers, record_of, refused
from groupdetr.data.records import Bools, Floats, Ints

RANGE = 51.2  # metres: objects are learned whose |x| and |y| in the lidar frame are less
LONGEST_GAP = 1.5  # seconds to a neighbour that tells a velocity; twice as long between two of them


@dataclass(frozen=True, eq=False)
class Objects3D:
    """The T objects of a sample that are of a class, and what a bicycle may stand in."""

    boxes: Floats  # [T,9] centre x, y, z, width, length, height in metres, yaw of the length in radians, velocity x, y
    # in metres a second, nan where it is unknown; all in the lidar frame
    labels: Ints  # [T] of CLASSES
    points: Ints  # [T] of lidar and radar on the object
    attributes: tuple[str, ...]  # [T] empty where there is none
    racks: Floats  # [R,7] bicycle racks: as boxes, without velocity

    @property
    def in_range(self) -> Bools:
        """[T] strictly within RANGE; height does not matter."""
        return np.asarray((np.abs(self.boxes[:, :2]) < RANGE).all(1), dtype=bool)

    @property
    def learned(self) -> Bools:
        """[T] in range, and with a point."""
        return self.in_range & (self.points > 0)


def objects(tables: Tables, rows: Sequence[Row], lidar_to_global: Floats) -> Objects3D:
    """The annotations of one sample."""
    names = [_category(tables, row) for row in rows]
    boxes = _boxes(tables, rows, lidar_to_global)
    chosen = [place for place, name in enumerate(names) if name in CATEGORIES]
    racks = [place for place, name in enumerate(names) if name == BICYCLE_RACK]
    kept = [rows[place] for place in chosen]
    return Objects3D(
        boxes=boxes[chosen],
        labels=np.array(
            [CLASSES.index(CATEGORIES[names[place]]) for place in chosen], dtype=np.int64
        ),
        points=np.array(
            [row["num_lidar_pts"] + row["num_radar_pts"] for row in kept], dtype=np.int64
        ),
        attributes=tuple(_attribute(tables, row) for row in kept),
        racks=boxes[racks, :7],
    )


def velocity(tables: Tables, row: Row) -> list[float]:
    """x, y, z in the world, nan where unknown, as the devkit has it: from one or two neighbours near in time."""
    first, last = (_neighbour(tables, row, way) for way in ("prev", "next"))
    seconds = (_time(tables, last) - _time(tables, first)) * 1e-6
    longest = LONGEST_GAP * (2 if row["prev"] and row["next"] else 1)
    if not 0 < seconds <= longest:
        return [math.nan] * 3
    return [
        (there - here) / seconds for here, there in zip(first["translation"], last["translation"])
    ]


def _neighbour(tables: Tables, row: Row, way: str) -> Row:
    """The same thing a key frame before or after; itself where there is none."""
    return tables.find("sample_annotation", row[way], "sample_annotation", row) if row[way] else row


def _time(tables: Tables, row: Row) -> int:
    return int(tables.find("sample", row["sample_token"], "sample_annotation", row)["timestamp"])


def _category(tables: Tables, row: Row) -> str:
    instance = tables.find("instance", row["instance_token"], "sample_annotation", row)
    return str(tables.find("category", instance["category_token"], "instance", instance)["name"])


def _attribute(tables: Tables, row: Row) -> str:
    """An object has one at most."""
    found = (
        tables.find("attribute", token, "sample_annotation", row)
        for token in row["attribute_tokens"]
    )
    return next((str(attribute["name"]) for attribute in found), "")


def _boxes(tables: Tables, rows: Sequence[Row], lidar_to_global: Floats) -> Floats:
    """[T,9] in the lidar frame."""
    table = tables["sample_annotation"]
    inside = inverse(lidar_to_global) @ poses(*located(table, rows))
    sizes = numbers(table, "bad-object", rows, "size")
    flat = (sizes <= 0).any(1)
    if flat.any():
        raise refused(
            "bad-object",
            table.file,
            record_of(rows[int(flat.argmax())]),
            "its size is not positive",
        )
    moving = np.array([velocity(tables, row) for row in rows], dtype=np.float64).reshape(-1, 3)
    moving[:, 2] = 0
    turned = moving @ lidar_to_global[:3, :3]
    return np.concatenate([inside[:, :3, 3], sizes, yaw(inside)[:, None], turned[:, :2]], axis=1)
