"""What a nuScenes records of a scene, table by table: instances and their boxes, the lidar's poses, six cameras."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupdetr.data.nuscenes.geometry import inverse, yaw
from groupdetr.data.nuscenes.names import ATTRIBUTES, CAMERAS, CATEGORIES, LIDAR
from groupdetr.data.nuscenes.synthetic_cameras import (
    LIDAR_PLACE,
    LIDAR_ROTATION,
    MOUNTS,
    Mount,
    Solid,
    picture,
)
from groupdetr.data.nuscenes.synthetic_world import Thing, World
from groupdetr.data.nuscenes.tables import FIELDS, Row
from groupdetr.data.records import Floats

KEY = 0.5  # seconds between key frames
FRAMES = 6  # pictures of a camera from one key frame to the next, sweeps included
_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")  # per cent visible

Picture = tuple[str, NDArray[np.uint8]]  # file name, [H,W,3]


class Records:
    """The tables as they grow. Tokens are 32 hexadecimal digits that depend on the seed and on what they stand for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {name: [] for name in FIELDS}
        for table, names in (("category", CATEGORIES), ("attribute", ATTRIBUTES)):
            for name in names:
                self.add(table, name, name=name, description="")
        self.rows["visibility"] = [
            {"token": str(number), "level": level, "description": ""}
            for number, level in enumerate(_LEVELS, 1)
        ]
        for channel in (LIDAR, *CAMERAS):
            self.add(
                "sensor",
                channel,
                channel=channel,
                modality="lidar" if channel == LIDAR else "camera",
            )
        filename = f"maps/{self.token('map', 'square')}.png"
        self.add("map", "square", log_tokens=[], filename=filename, category="semantic_prior")

    def token(self, table: str, *parts: Any) -> str:
        """Of the record that ``parts`` tell."""
        text = "/".join(map(str, (self.seed, table, *parts)))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def tokens(self, table: str, *parts: Any, numbers: range) -> list[str]:
        """Of a numbered row of records."""
        return [self.token(table, *parts, number) for number in numbers]

    def add(self, table: str, *parts: Any, **fields: Any) -> str:
        """Writes a record and gives its token."""
        token = self.token(table, *parts)
        self.rows[table].append({"token": token, **fields})
        return token


@dataclass(frozen=True)
class Scene:
    """One scene to be recorded."""

    name: str
    place: World
    start: int  # microseconds, of the first key frame
    samples: int  # key frames
    size: tuple[int, int]  # width and height of pictures
    sweeps: bool  # pictures between key frames, too

    def recorded(self, records: Records) -> Iterator[Picture]:
        """Into all tables; gives the pictures as they are drawn."""
        samples = records.tokens("sample", self.name, numbers=range(self.samples))
        log = records.add(
            "log", self.name, logfile=self.name, vehicle="", date_captured="", location="square"
        )
        records.rows["map"][0]["log_tokens"].append(log)
        scene = records.add(
            "scene",
            self.name,
            name=self.name,
            description="a town square",
            log_token=log,
            nbr_samples=self.samples,
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
        )
        for number, (token, links) in enumerate(_chain(samples)):
            row = {
                "token": token,
                "timestamp": self._stamp(number * KEY),
                "scene_token": scene,
                **links,
            }
            records.rows["sample"].append(row)
        for number, thing in enumerate(self.place.things):
            self._instance(records, thing, number, samples)
        self._lidar(records, samples)
        for camera, mount in MOUNTS.items():
            yield from self._camera(records, camera, mount, samples)

    def _stamp(self, seconds: float) -> int:
        """Microseconds."""
        return self.start + round(seconds * 1e6)

    def _instance(self, records: Records, thing: Thing, which: int, samples: list[str]) -> None:
        tokens = records.tokens("sample_annotation", self.name, which, numbers=range(self.samples))
        category = next(category for category, kind in CATEGORIES.items() if kind == thing.name)
        instance = records.add(
            "instance",
            self.name,
            which,
            category_token=records.token("category", category),
            nbr_annotations=len(tokens),
            first_annotation_token=tokens[0],
            last_annotation_token=tokens[-1],
        )
        about = {
            "instance_token": instance,
            "size": list(thing.size),
            "visibility_token": str(len(_LEVELS)),
        }
        about["attribute_tokens"] = (
            [records.token("attribute", thing.attribute)] if thing.attribute else []
        )
        for number, (token, links) in enumerate(_chain(tokens)):
            seen = {
                "sample_token": samples[number],
                "num_lidar_pts": self._points(thing, number),
                "num_radar_pts": 0,
            }
            place = _located(self.place.pose(thing, number * KEY))
            records.rows["sample_annotation"].append(
                {"token": token} | about | seen | place | links
            )

    def _points(self, thing: Thing, number: int) -> int:
        """Of the lidar on a thing in a key frame: fewer, the farther it is, but some."""
        time = number * KEY
        away = self.place.pose(thing, time)[:2, 3] - self.place.vehicle(time)[:2, 3]
        return max(1, round(4000 / float(away @ away)))

    def _lidar(self, records: Records, samples: list[str]) -> None:
        calibration = records.add(
            "calibrated_sensor",
            self.name,
            LIDAR,
            sensor_token=records.token("sensor", LIDAR),
            translation=list(LIDAR_PLACE),
            rotation=list(LIDAR_ROTATION),
            camera_intrinsic=[],
        )
        tokens = records.tokens("sample_data", self.name, LIDAR, numbers=range(self.samples))
        for number, (token, links) in enumerate(_chain(tokens)):
            data = _data(LIDAR, token, samples[number], True) | {
                "calibrated_sensor_token": calibration
            }
            self._sensed(records, data | {"width": 0, "height": 0} | links, number * KEY)

    def _camera(
        self, records: Records, camera: str, mount: Mount, samples: list[str]
    ) -> Iterator[Picture]:
        intrinsic = mount.intrinsic(*self.size)
        calibration = records.add(
            "calibrated_sensor",
            self.name,
            camera,
            sensor_token=records.token("sensor", camera),
            translation=list(mount.place),
            rotation=list(mount.rotation),
            camera_intrinsic=intrinsic.tolist(),
        )
        frames = range(0, (self.samples - 1) * FRAMES + 1, 1 if self.sweeps else FRAMES)
        tokens = records.tokens("sample_data", self.name, camera, numbers=frames)
        for frame, (token, links) in zip(frames, _chain(tokens)):
            time = frame * KEY / FRAMES - mount.delay
            following = samples[
                -(-frame // FRAMES)
            ]  # pictures in between belong to the key frame after them
            data = _data(camera, token, following, frame % FRAMES == 0) | {
                "calibrated_sensor_token": calibration
            }
            self._sensed(records, data | dict(zip(("width", "height"), self.size)) | links, time)
            yield data["filename"], self._picture(mount, intrinsic, time)

    def _sensed(self, records: Records, data: Row, time: float) -> None:
        """A record of a sensor, and the vehicle's pose at its time."""
        stamp, place = self._stamp(time), _located(self.place.vehicle(time))
        pose = records.add("ego_pose", data["token"], timestamp=stamp, **place)
        records.rows["sample_data"].append(data | {"timestamp": stamp, "ego_pose_token": pose})

    def _picture(self, mount: Mount, intrinsic: Floats, time: float) -> NDArray[np.uint8]:
        seen = inverse(self.place.vehicle(time) @ mount.camera_to_ego())
        solids = [
            Solid(thing.name, seen @ self.place.pose(thing, time), thing.size)
            for thing in self.place.things
        ]
        return picture(solids, intrinsic, *self.size)


def _data(channel: str, token: str, sample: str, key: bool) -> Row:
    """What a record of any sensor says."""
    ending = "pcd.bin" if channel == LIDAR else "jpg"
    filename = f"{'samples' if key else 'sweeps'}/{channel}/{token}.{ending}"
    about = {"fileformat": ending.removesuffix(".bin"), "filename": filename}
    return {"token": token, "sample_token": sample, "is_key_frame": key, **about}


def _chain(tokens: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each token, and who comes before and after."""
    for token, before, after in zip(tokens, ["", *tokens], [*tokens[1:], ""]):
        yield token, {"prev": before, "next": after}


def _located(pose: Floats) -> Row:
    """Where something upright is."""
    half = float(yaw(pose)) / 2
    return {
        "translation": pose[:3, 3].tolist(),
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
    }
