"""The records of a synthetic scene in all tables of nuScenes.

They are instances and their boxes, the poses of the lidar, and the images of six cameras.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.nuscenes.geometry import invert_poses, yaw
from groupdetr.data.nuscenes.names import ATTRIBUTES, CAMERAS, CATEGORIES, LIDAR
from groupdetr.data.nuscenes.synthetic_cameras import (
    LIDAR_POSITION,
    LIDAR_ROTATION,
    MOUNTS,
    CameraMount,
    RenderedBox,
    render,
)
from groupdetr.data.nuscenes.synthetic_world import World, WorldObject
from groupdetr.data.nuscenes.tables import FIELDS, Row
from groupdetr.data.records import Floats

KEY_FRAME_INTERVAL = 0.5  # seconds
IMAGES_PER_INTERVAL = 6  # of a camera, from one key frame to the next, with sweeps
_VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")  # visible per cent

RenderedImage = tuple[str, NDArray[np.uint8]]  # file name, [H,W,3]


class SyntheticTables:
    """Tables to which records are added.

    Tokens are 32 hexadecimal digits. They depend on the seed, the table and the key of the record.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {name: [] for name in FIELDS}
        for name in CATEGORIES:
            self.add("category", name, name=name, description="")
        for name in ATTRIBUTES:
            self.add("attribute", name, name=name, description="")
        for number, level in enumerate(_VISIBILITY_LEVELS, 1):
            self.rows["visibility"].append(
                {"token": str(number), "level": level, "description": ""}
            )
        for channel in (LIDAR, *CAMERAS):
            modality = "lidar" if channel == LIDAR else "camera"
            self.add("sensor", channel, channel=channel, modality=modality)
        filename = f"maps/{self.token('map', 'square')}.png"
        self.add("map", "square", log_tokens=[], filename=filename, category="semantic_prior")

    def token(self, table: str, *key: object) -> str:
        """Return the token of the record with this key."""
        text = "/".join(map(str, (self.seed, table, *key)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def tokens(self, table: str, *key: object, numbers: range) -> list[str]:
        """Return the tokens of numbered records with a common key."""
        return [self.token(table, *key, number) for number in numbers]

    def add(self, table: str, *key: object, **fields: object) -> str:
        """Add a record and return its token."""
        token = self.token(table, *key)
        self.rows[table].append({"token": token, **fields})
        return token


@dataclass(frozen=True)
class SyntheticScene:
    """One scene, and how it is recorded."""

    name: str
    world: World
    start_time: int  # of the first key frame, microseconds
    samples: int  # number of key frames
    size: tuple[int, int]  # width and height of images
    sweeps: bool  # True if there are images between key frames

    def record(self, tables: SyntheticTables) -> Iterator[RenderedImage]:
        """Add the records of the scene to all tables, and yield its images."""
        samples = tables.tokens("sample", self.name, numbers=range(self.samples))
        log = tables.add(
            "log", self.name, logfile=self.name, vehicle="", date_captured="", location="square"
        )
        tables.rows["map"][0]["log_tokens"].append(log)
        scene = tables.add(
            "scene",
            self.name,
            name=self.name,
            description="a town square",
            log_token=log,
            nbr_samples=self.samples,
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
        )
        for number, (token, links) in enumerate(_with_links(samples)):
            timestamp = self._timestamp(number * KEY_FRAME_INTERVAL)
            row = {"token": token, "timestamp": timestamp, "scene_token": scene, **links}
            tables.rows["sample"].append(row)
        for number, world_object in enumerate(self.world.objects):
            self._record_instance(tables, world_object, number, samples)
        self._record_lidar(tables, samples)
        for camera, mount in MOUNTS.items():
            yield from self._record_camera(tables, camera, mount, samples)

    def _timestamp(self, seconds: float) -> int:
        """Return microseconds."""
        return self.start_time + round(seconds * 1e6)

    def _record_instance(
        self, tables: SyntheticTables, world_object: WorldObject, number: int, samples: list[str]
    ) -> None:
        """Add an object, and its box in every key frame."""
        tokens = tables.tokens("sample_annotation", self.name, number, numbers=range(self.samples))
        category = next(
            category for category, name in CATEGORIES.items() if name == world_object.name
        )
        instance = tables.add(
            "instance",
            self.name,
            number,
            category_token=tables.token("category", category),
            nbr_annotations=len(tokens),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        attribute_tokens = []
        if world_object.attribute:
            attribute_tokens.append(tables.token("attribute", world_object.attribute))
        for index, (token, links) in enumerate(_with_links(tokens)):
            pose = self.world.object_pose(world_object, index * KEY_FRAME_INTERVAL)
            row = {
                "token": token,
                "instance_token": instance,
                "size": list(world_object.size),
                "visibility_token": str(len(_VISIBILITY_LEVELS)),
                "attribute_tokens": attribute_tokens,
                "sample_token": samples[index],
                "num_lidar_pts": self._num_lidar_points(world_object, index),
                "num_radar_pts": 0,
                **_pose_fields(pose),
                **links,
            }
            tables.rows["sample_annotation"].append(row)

    def _num_lidar_points(self, world_object: WorldObject, key_frame: int) -> int:
        """Return the number of lidar points on an object: it falls with distance, down to 1."""
        time = key_frame * KEY_FRAME_INTERVAL
        object_position = self.world.object_pose(world_object, time)[:2, 3]
        offset = object_position - self.world.car_pose(time)[:2, 3]
        return max(1, round(4000 / float(offset @ offset)))

    def _record_lidar(self, tables: SyntheticTables, samples: list[str]) -> None:
        """Add the lidar's calibration, and a record in every key frame."""
        calibration = tables.add(
            "calibrated_sensor",
            self.name,
            LIDAR,
            sensor_token=tables.token("sensor", LIDAR),
            translation=list(LIDAR_POSITION),
            rotation=list(LIDAR_ROTATION),
            camera_intrinsic=[],
        )
        tokens = tables.tokens("sample_data", self.name, LIDAR, numbers=range(self.samples))
        for number, (token, links) in enumerate(_with_links(tokens)):
            row = {
                **_sensor_fields(LIDAR, token, samples[number], True),
                "calibrated_sensor_token": calibration,
                "width": 0,
                "height": 0,
                **links,
            }
            self._record_data(tables, row, number * KEY_FRAME_INTERVAL)

    def _record_camera(
        self, tables: SyntheticTables, camera: str, mount: CameraMount, samples: list[str]
    ) -> Iterator[RenderedImage]:
        """Add a camera's calibration and the records of its images, and yield the images."""
        width, height = self.size
        intrinsic = mount.intrinsic(width, height)
        calibration = tables.add(
            "calibrated_sensor",
            self.name,
            camera,
            sensor_token=tables.token("sensor", camera),
            translation=list(mount.position),
            rotation=list(mount.rotation),
            camera_intrinsic=intrinsic.tolist(),
        )
        last = (self.samples - 1) * IMAGES_PER_INTERVAL
        numbers = range(0, last + 1, 1 if self.sweeps else IMAGES_PER_INTERVAL)
        tokens = tables.tokens("sample_data", self.name, camera, numbers=numbers)
        for number, (token, links) in zip(numbers, _with_links(tokens)):
            time = number * KEY_FRAME_INTERVAL / IMAGES_PER_INTERVAL - mount.lead_time
            # An image between two key frames belongs to the later one.
            sample = samples[math.ceil(number / IMAGES_PER_INTERVAL)]
            is_key_frame = number % IMAGES_PER_INTERVAL == 0
            row = {
                **_sensor_fields(camera, token, sample, is_key_frame),
                "calibrated_sensor_token": calibration,
                "width": width,
                "height": height,
                **links,
            }
            self._record_data(tables, row, time)
            yield row["filename"], self._render(mount, intrinsic, time)

    def _record_data(self, tables: SyntheticTables, row: Row, time: float) -> None:
        """Add a record of sample_data, and the pose of the car at its time."""
        timestamp = self._timestamp(time)
        pose_fields = _pose_fields(self.world.car_pose(time))
        pose = tables.add("ego_pose", row["token"], timestamp=timestamp, **pose_fields)
        tables.rows["sample_data"].append({**row, "timestamp": timestamp, "ego_pose_token": pose})

    def _render(self, mount: CameraMount, intrinsic: Floats, time: float) -> NDArray[np.uint8]:
        """Return the image of a camera at a time."""
        global_to_camera = invert_poses(self.world.car_pose(time) @ mount.camera_to_ego())
        boxes = []
        for world_object in self.world.objects:
            to_camera = global_to_camera @ self.world.object_pose(world_object, time)
            boxes.append(RenderedBox(world_object.name, to_camera, world_object.size))
        return render(boxes, intrinsic, *self.size)


def _sensor_fields(channel: str, token: str, sample: str, is_key_frame: bool) -> Row:
    """Return the fields of sample_data that all sensors have in common."""
    extension = "pcd.bin" if channel == LIDAR else "jpg"
    folder = "samples" if is_key_frame else "sweeps"
    return {
        "token": token,
        "sample_token": sample,
        "is_key_frame": is_key_frame,
        "fileformat": extension.removesuffix(".bin"),
        "filename": f"{folder}/{channel}/{token}.{extension}",
    }


def _with_links(tokens: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each token with the fields "prev" and "next", empty at the ends."""
    for index, token in enumerate(tokens):
        previous = tokens[index - 1] if index > 0 else ""
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        yield token, {"prev": previous, "next": following}


def _pose_fields(pose: Floats) -> Row:
    """Return translation and rotation of an upright pose."""
    half = float(yaw(pose)) / 2
    return {
        "translation": pose[:3, 3].tolist(),
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
    }
