"""Samples: the key frames of nuScenes, each with six images, the pose of the lidar and objects.

All geometry is in the lidar frame of the key frame: x to the right, y ahead, z up. Every image and
the lidar have the ego pose at their own time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from groupdetr.data.nuscenes.camera_frames import (
    INTERVALS,
    CameraFrames,
    Frame,
    camera_frame_indices,
    read_poses,
)
from groupdetr.data.nuscenes.geometry import pose_matrices
from groupdetr.data.nuscenes.names import CAMERAS, LIDAR
from groupdetr.data.nuscenes.objects import Objects3D, read_objects
from groupdetr.data.nuscenes.tables import Row, Tables, describe_record, refusal
from groupdetr.data.records import Floats, Ints


@dataclass(frozen=True, eq=False)
class Sample:
    """A key frame: its images, the pose of the lidar and the annotated objects."""

    token: str
    scene: str  # name of the scene
    time: int  # of the lidar, microseconds
    lidar_to_ego: Floats  # [4,4]
    ego_to_global: Floats  # [4,4] at the time of the lidar
    truth: Objects3D  # all annotated objects of a detection class, trainable or not
    camera_frames: CameraFrames  # shared by all samples
    image_indices: Ints  # [6] into camera_frames, in the order of CAMERAS
    # [E,6] indices of the images of earlier frames, most recent first. E is 0 in the first key
    # frame of a scene.
    earlier_indices: Ints

    @property
    def lidar_to_global(self) -> Floats:
        """[4,4] pose of the lidar in the global frame."""
        return self.ego_to_global @ self.lidar_to_ego

    def frame(self) -> Frame:
        """Return the six images of the key frame."""
        return self.camera_frames.frame(self.image_indices, self.lidar_to_global)

    def earlier_frame(self, index: int) -> Frame:
        """Return the six images of the frame ``index`` + 1 frames before the key frame.

        Their projections start from the lidar frame of the key frame.
        """
        return self.camera_frames.frame(self.earlier_indices[index], self.lidar_to_global)

    def trainable_objects(self) -> tuple[Floats, Ints]:
        """Return boxes [T',9] as in `Objects3D` and labels [T'] of the objects to train on.

        An unknown velocity becomes zero.
        """
        trainable = self.truth.trainable
        boxes = np.nan_to_num(self.truth.boxes[trainable], nan=0.0)
        return boxes, self.truth.labels[trainable]


def read_samples(tables: Tables, split: str) -> tuple[Sample, ...]:
    """Return the samples of a split in the order of time. `DataError` if a table is incomplete."""
    camera_frames = CameraFrames.from_tables(tables)
    return read_scene_samples(tables, camera_frames, tables.scenes(split))


def read_scene_samples(
    tables: Tables, camera_frames: CameraFrames, scenes: set[str]
) -> tuple[Sample, ...]:
    """Return the samples of scenes, given by their tokens, in the order of time."""
    rows = [row for row in tables["sample"].values() if row["scene_token"] in scenes]
    rows.sort(key=lambda row: (row["timestamp"], row["token"]))
    tokens = {row["token"] for row in rows}
    annotations = _annotations_by_sample(tables, tokens)
    sensors = _key_frame_data(tables, tokens)
    frame_indices = camera_frame_indices(tables)
    image_indices = {
        token: _image_indices(tables, token, sensors[token], frame_indices) for token in tokens
    }
    samples = []
    for row in rows:
        token = row["token"]
        lidar = sensors[token][LIDAR]
        samples.append(
            _read_sample(tables, row, annotations[token], lidar, camera_frames, image_indices)
        )
    return tuple(samples)


def _annotations_by_sample(tables: Tables, tokens: set[str]) -> Mapping[str, list[Row]]:
    """Return the records of sample_annotation of each sample."""
    by_sample: dict[str, list[Row]] = defaultdict(list)
    for row in tables["sample_annotation"].values():
        if row["sample_token"] in tokens:
            by_sample[row["sample_token"]].append(row)
    return by_sample


def _key_frame_data(tables: Tables, tokens: set[str]) -> Mapping[str, dict[str, Row]]:
    """Return the records of sample_data of each key frame, by channel."""
    by_sample: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in tables["sample_data"].values():
        if row["is_key_frame"] and row["sample_token"] in tokens:
            by_sample[row["sample_token"]][tables.channel(row)] = row
    return by_sample


def _image_indices(
    tables: Tables, token: str, sensors: Mapping[str, Row], frame_indices: Mapping[str, int]
) -> Ints:
    """Return the indices [6] of a key frame's images. `DataError` if it lacks a sensor."""
    missing = [channel for channel in (LIDAR, *CAMERAS) if channel not in sensors]
    if missing:
        what = f"it lacks {', '.join(missing)}"
        raise refusal("missing-sensor", tables.file("sample_data"), f"sample {token}", what)
    return np.array([frame_indices[sensors[camera]["token"]] for camera in CAMERAS], dtype=np.int64)


def _read_sample(
    tables: Tables,
    row: Row,
    annotations: list[Row],
    lidar: Row,
    camera_frames: CameraFrames,
    image_indices: Mapping[str, Ints],
) -> Sample:
    ego_to_global = _read_pose(tables, "ego_pose", lidar)
    lidar_to_ego = _read_pose(tables, "calibrated_sensor", lidar)
    key_frames = [image_indices[token] for token in _latest_key_frames(tables, row)]
    return Sample(
        token=row["token"],
        scene=tables["scene"][row["scene_token"]]["name"],
        time=int(lidar["timestamp"]),
        lidar_to_ego=lidar_to_ego,
        ego_to_global=ego_to_global,
        truth=read_objects(tables, annotations, ego_to_global @ lidar_to_ego),
        camera_frames=camera_frames,
        image_indices=image_indices[row["token"]],
        earlier_indices=camera_frames.earlier_frames(key_frames),
    )


def _read_pose(tables: Tables, name: str, data: Row) -> Floats:
    """Return the pose [4,4] in table ``name`` that a record of sample_data refers to."""
    row = tables.lookup(name, data[f"{name}_token"], "sample_data", data)
    translations, rotations = read_poses(tables[name], [row])
    return np.asarray(pose_matrices(translations, rotations)[0])


def _latest_key_frames(tables: Tables, row: Row) -> Iterator[str]:
    """Yield the tokens of a sample and of those before it in its scene, most recent first.

    There are at most as many as earlier frames reach back. `DataError` if one is of another scene.
    """
    yield row["token"]
    for _ in range(INTERVALS):
        if not row["prev"]:
            return
        previous = tables.lookup("sample", row["prev"], "sample", row)
        if previous["scene_token"] != row["scene_token"]:
            what = "its previous sample belongs to another scene"
            raise refusal("dangling-token", tables.file("sample"), describe_record(row), what)
        row = previous
        yield row["token"]
