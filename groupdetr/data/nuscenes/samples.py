"""Key frames: what six cameras saw, where the lidar was, and what stood around it.

All geometry is in the lidar frame of the key frame: x to the right, y ahead, z up. Every picture, and the lidar, has
the vehicle's pose of its own moment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.camera_frames import INTERVALS, Footage, Frame, filmed, located
from groupdetr.data.nuscenes.geometry import poses
from groupdetr.data.nuscenes.names import CAMERAS, LIDAR
from groupdetr.data.nuscenes.objects import Objects3D, objects
from groupdetr.data.nuscenes.tables import Row, Tables, record_of, refused
from groupdetr.data.records import Floats, Ints


@dataclass(frozen=True, eq=False)
class Sample:
    """A key frame."""

    token: str
    scene: str  # its name
    time: int  # of the lidar, microseconds
    lidar_to_ego: Floats  # [4,4]
    ego_to_global: Floats  # [4,4] when the lidar looked
    truth: Objects3D  # everything that is of a class, learned or not
    footage: Footage  # that all samples share
    views: Ints  # [6] rows of the footage, in the order of CAMERAS
    earlier: Ints  # [E,6] the same of frames before, most recent first; none in the first key frame of a scene

    @property
    def lidar_to_global(self) -> Floats:
        """[4,4]"""
        return self.ego_to_global @ self.lidar_to_ego

    def frame(self) -> Frame:
        """What the cameras see."""
        return self.footage.frame(self.views, self.lidar_to_global)

    def frame_before(self, index: int) -> Frame:
        """What they saw ``index`` + 1 pictures ago, from the lidar frame of now."""
        return self.footage.frame(self.earlier[index], self.lidar_to_global)

    def objects(self) -> tuple[Floats, Ints]:
        """What is learned: boxes [T',9] as `Objects3D` has them, an unknown velocity as none, and labels [T']."""
        learned = self.truth.learned
        return np.nan_to_num(self.truth.boxes[learned], nan=0.0), self.truth.labels[learned]


def read_samples(tables: Tables, split: str) -> tuple[Sample, ...]:
    """The key frames of a split by time. A `DataError` where a table lacks what they need."""
    footage = Footage.of(tables)
    return samples_of(tables, footage, tables.scenes(split))


def samples_of(tables: Tables, footage: Footage, scenes: set[str]) -> tuple[Sample, ...]:
    """The key frames of scenes, told by their tokens."""
    chosen = [row for row in tables["sample"].values() if row["scene_token"] in scenes]
    chosen.sort(key=lambda row: (row["timestamp"], row["token"]))
    tokens = {row["token"] for row in chosen}
    annotations, sensors, rows = (
        _annotations(tables, tokens),
        _sensors(tables, tokens),
        filmed(tables),
    )
    views = {token: _views(tables, token, sensors[token], rows) for token in tokens}
    return tuple(
        _sample(
            tables, row, annotations[row["token"]], sensors[row["token"]][LIDAR], (footage, views)
        )
        for row in chosen
    )


def _annotations(tables: Tables, tokens: set[str]) -> Mapping[str, list[Row]]:
    """By sample."""
    dealt: dict[str, list[Row]] = defaultdict(list)
    for row in tables["sample_annotation"].values():
        if row["sample_token"] in tokens:
            dealt[row["sample_token"]].append(row)
    return dealt


def _sensors(tables: Tables, tokens: set[str]) -> Mapping[str, dict[str, Row]]:
    """What belongs to each key frame, by channel."""
    dealt: dict[str, dict[str, Row]] = defaultdict(dict)
    for data in tables["sample_data"].values():
        if data["is_key_frame"] and data["sample_token"] in tokens:
            dealt[data["sample_token"]][tables.channel(data)] = data
    return dealt


def _views(tables: Tables, token: str, sensors: Mapping[str, Row], rows: Mapping[str, int]) -> Ints:
    """[6] rows of the footage."""
    if missing := [channel for channel in (LIDAR, *CAMERAS) if channel not in sensors]:
        raise refused(
            "missing-view",
            tables.file("sample_data"),
            f"sample {token}",
            f"it lacks {', '.join(missing)}",
        )
    return np.array([rows[sensors[camera]["token"]] for camera in CAMERAS], dtype=np.int64)


def _sample(
    tables: Tables,
    row: Row,
    annotations: list[Row],
    lidar: Row,
    seen: tuple[Footage, Mapping[str, Ints]],
) -> Sample:
    footage, views = seen
    ego_to_global = _pose(tables, "ego_pose", lidar)
    lidar_to_ego = _pose(tables, "calibrated_sensor", lidar)
    return Sample(
        token=row["token"],
        scene=tables["scene"][row["scene_token"]]["name"],
        time=int(lidar["timestamp"]),
        lidar_to_ego=lidar_to_ego,
        ego_to_global=ego_to_global,
        truth=objects(tables, annotations, ego_to_global @ lidar_to_ego),
        footage=footage,
        views=views[row["token"]],
        earlier=footage.earlier([views[token] for token in _back(tables, row)]),
    )


def _pose(tables: Tables, name: str, data: Row) -> Floats:
    """[4,4] that a record of sample_data refers to."""
    translations, rotations = located(
        tables[name], [tables.find(name, data[f"{name}_token"], "sample_data", data)]
    )
    return np.asarray(poses(translations, rotations)[0])


def _back(tables: Tables, row: Row) -> Iterator[str]:
    """The tokens of a sample and of those before it in its scene, as many as earlier frames reach back."""
    yield row["token"]
    for _ in range(INTERVALS):
        if not row["prev"]:
            return
        before = tables.find("sample", row["prev"], "sample", row)
        if before["scene_token"] != row["scene_token"]:
            raise refused(
                "dangling-token",
                tables.file("sample"),
                record_of(row),
                "the one before is of another scene",
            )
        row = before
        yield row["token"]
